//! Ways back: what is said by them reaches the call that they are lent to, and they are lent again.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_outlives_its_call_reaches_no_other() {
    let (hosted, plain) = host_plain().await;
    // A task that goes on when its call is over.
    assert_eq!(text(call(&hosted, "late", modern(ClientCapabilities::default())).await), "begun");
    let until = Instant::now() + Duration::from_millis(150);
    let mut calls = 0;
    while Instant::now() < until {
        let (ctx, outbox) = heard();
        assert_eq!(text(call(&hosted, "steps", ctx).await), "stepped");
        tokio::time::sleep(Duration::from_millis(3)).await;
        let messages = messages(&outbox);
        assert!(!messages.iter().any(|m| m["params"]["data"] == "a secret"), "{messages:?}");
        calls += 1;
    }
    assert!(calls > 3);
    // A peer that is kept: what is said by it about lists is for everybody, and nothing else is for anybody.
    assert_eq!(text(call(&hosted, "keep", modern(ClientCapabilities::default())).await), "kept");
    let kept = plain.kept.lock().clone().expect("kept");
    for _ in 0..10 {
        let (ctx, outbox) = heard();
        let (done, said) = tokio::join!(call(&hosted, "steps", ctx), log(&kept, "a secret"));
        assert_eq!((text(done), said), ("stepped".into(), ()));
        assert!(!messages(&outbox).iter().any(|m| m["params"]["data"] == "a secret"));
    }
    assert!(kept.create_elicitation(question()).await.is_err(), "nobody can be asked outside a call");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_heard_from_any_peer_at_any_time() {
    let plain = plain("one");
    let changes = Changes::default();
    let subscription = changes.subscribe(Lists::ALL, vec![]);
    let hosted = Hosted::new(vec![Handler::new(plain.clone())], changes).await.expect("hosted");
    assert_eq!(text(call(&hosted, "keep", modern(ClientCapabilities::default())).await), "kept");
    let kept = plain.kept.lock().clone().expect("kept");
    // However many calls there are meanwhile, a peer that is kept goes on to be heard.
    for _ in 0..300 {
        assert_eq!(text(call(&hosted, "nothing", modern(ClientCapabilities::default())).await), "nothing");
    }
    kept.notify_prompt_list_changed().await.expect("heard");
    assert_eq!(poll_fn(|cx| subscription.poll_take(cx)).await, Change::List(Lists::PROMPTS));
    kept.notify_tool_list_changed().await.expect("heard");
    tokio::time::timeout(Duration::from_secs(5), hosted.tools_changed.notified()).await.expect("told");
}

#[tokio::test(flavor = "multi_thread")]
async fn ways_back_are_used_again_when_nobody_keeps_them() {
    let (hosted, plain) = host_plain().await;
    let made = || hosted.ways_back_made();
    for _ in 0..50 {
        call(&hosted, "nothing", modern(ClientCapabilities::default())).await.expect("an answer");
    }
    eventually("it listens", || made() >= 2).await; // in a task of its own
    assert_eq!(made(), 2, "one that listens at the start, and one for all calls, the listing included");
    call(&hosted, "keep", modern(ClientCapabilities::default())).await.expect("an answer");
    for _ in 0..50 {
        call(&hosted, "nothing", modern(ClientCapabilities::default())).await.expect("an answer");
    }
    assert_eq!(made(), 3, "the one that is kept is set apart");
    // Neither calls that are dropped nor peers that are let go take one for ever.
    *plain.kept.lock() = None;
    for _ in 0..50 {
        let hanging = call(&hosted, "hang", modern(ClientCapabilities::default()));
        assert!(tokio::time::timeout(Duration::from_millis(2), hanging).await.is_err());
    }
    // Each that was dropped is set apart until its loop has settled, and is lent again then.
    let lent_again = async {
        loop {
            let before = made();
            call(&hosted, "nothing", modern(ClientCapabilities::default())).await.expect("an answer");
            if made() == before {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), lent_again).await.expect("none is lost");
}
