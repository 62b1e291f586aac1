//! What handlers tell their subscribers.

use super::*;

/// A handler that tells its subscribers of changes by the sinks that it was given.
#[derive(Clone, Default)]
struct Telling {
    sinks: Arc<Mutex<Vec<SubscriptionSink>>>,
}

impl Telling {
    async fn tell(&self, uri: &str) -> usize {
        let sinks = self.sinks.lock().clone();
        let mut told = 0;
        for sink in sinks {
            told += usize::from(sink.notify_resource_updated(uri).await.is_ok());
        }
        told
    }
}

impl ServerHandler for Telling {
    fn get_info(&self) -> ServerConfig {
        let able = ServerCapabilities::builder().enable_resources().enable_resources_subscribe();
        ServerConfig::new(able.enable_resources_list_changed().build())
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(requested.clone())
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        self.sinks.lock().push(context.sink().clone());
        context.cancelled().await;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_subscribers_are_told_is_heard_while_somebody_wants_to() {
    let telling = Telling::default();
    let changes = Changes::default();
    let _hosted = Hosted::new(vec![Handler::new(telling.clone())], changes.clone()).await.expect("hosted");
    eventually("it has a subscriber", || !telling.sinks.lock().is_empty()).await;
    assert_eq!(telling.tell("a:1").await, 0, "nobody asked about it");
    let subscription = changes.subscribe(Lists::ALL, vec![Topic::Resource("a:1".into())]);
    let told = async {
        while telling.tell("a:1").await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await
        }
    };
    tokio::time::timeout(Duration::from_secs(5), told).await.expect("told");
    assert_eq!(poll_fn(|cx| subscription.poll_take(cx)).await, Change::Resource("a:1".into()));
    let sink = telling.sinks.lock()[0].clone();
    let closed = async {
        while sink.notify_resource_list_changed().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await
        }
    };
    tokio::time::timeout(Duration::from_secs(5), closed).await.expect("the one before is closed");
    drop(subscription);
    let over = async {
        while telling.tell("a:1").await > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await
        }
    };
    tokio::time::timeout(Duration::from_secs(5), over).await.expect("nobody asks any more");
}

/// A handler that ends every subscription to a resource that it does not know.
#[derive(Clone, Default)]
struct Picky {
    telling: Telling,
    refused: Arc<AtomicUsize>,
}

impl ServerHandler for Picky {
    fn get_info(&self) -> ServerConfig {
        self.telling.get_info()
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(requested.clone())
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let uris = context.accepted().resource_subscriptions.clone().unwrap_or_default();
        if uris.iter().any(|uri| uri == "bad:panics") {
            panic!("a resource that is too much for it");
        }
        if uris.iter().any(|uri| uri.starts_with("bad:")) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(ErrorData::invalid_params("no such resource", None));
        }
        self.telling.listen(context).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_that_a_handler_does_not_like_keeps_no_other_from_being_heard() {
    let picky = Picky::default();
    let changes = Changes::default();
    let _hosted = Hosted::new(vec![Handler::new(picky.clone())], changes.clone()).await.expect("hosted");
    let hears = |uri: String| {
        let (picky, changes) = (picky.clone(), changes.clone());
        async move {
            let reader = changes.subscribe(Lists::default(), vec![Topic::Resource(uri.as_str().into())]);
            let told = async {
                while picky.telling.tell(&uri).await == 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await
                }
            };
            tokio::time::timeout(Duration::from_secs(10), told).await.unwrap_or_else(|_| panic!("{uri} is heard of"));
            assert_eq!(poll_fn(|cx| reader.poll_take(cx)).await, Change::Resource(uri.as_str().into()));
            reader
        }
    };
    let resource = |uri: &str| Topic::Resource(uri.into());
    let topics = ["bad:1", "a:1", "a:2", "bad:panics", "a:3"].map(resource).into();
    let others = changes.subscribe(Lists::RESOURCES, topics);
    let _one = hears("a:1".into()).await;
    let _two = hears("a:4".into()).await;
    // What was refused is left out soon, and not asked for again with each other resource.
    let left_out = async {
        for n in 5.. {
            let before = picky.refused.load(Ordering::SeqCst);
            let _reader = hears(format!("a:{n}")).await;
            if before > 0 && picky.refused.load(Ordering::SeqCst) == before {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), left_out).await.expect("it is left out");
    // The lists are heard as well.
    let listed = async {
        loop {
            let sinks = picky.telling.sinks.lock().clone();
            for sink in sinks {
                let _ = sink.notify_resource_list_changed().await; // one that is closed says so
            }
            if poll_fn(|cx| others.poll_take(cx)).await == Change::List(Lists::RESOURCES) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), listed).await.expect("the lists are heard");
}
