//! Instances in one process: one hands over, others run, and one of them is a stranger.

use std::{net::TcpListener as StdListener, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Map, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{Notify, oneshot},
    time::timeout,
};

use super::*;
use crate::{
    call::{Caller, ClientCapabilities, Deadline},
    input::{Answers, Exchange, Input, Memory, Rounds},
    outbox::{LogLevel, Message, Outbox},
    telemetry::heard::Heard,
};

const PATIENCE: Duration = Duration::from_secs(20);
const KEY: &str = "a key that all instances here have, long enough";
const RESULT_BYTES_MAX: usize = 1 << 20;
/// Larger than what the instances here take over.
const CALL_BYTES_MAX: usize = 2 << 20;

/// What the instances that run calls do, as tools by their names.
#[derive(Debug, Default)]
struct Tools {
    name: &'static str,
    turned: Mutex<Option<Turned>>,
    began: Notify,
    dropped: Arc<Notify>,
    runs: AtomicUsize,
}

/// Tells when it is dropped.
struct Told(Arc<Notify>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

struct Serves(Arc<Tools>);

impl Runs for Serves {
    fn admit(&self, tool: &str) -> Result<(), Turned> {
        match *self.0.turned.lock() {
            Some(turned) => Err(turned),
            None if tool == "missing" => Err(Turned::NotHere),
            None => Ok(()),
        }
    }

    fn outbox(&self, hears: Hears) -> Outbox {
        Outbox::new(hears.progress, hears.log_level(), 100_000)
    }

    fn run(&self, tool: String, arguments: Value, ctx: Ctx) -> Outcome {
        let tools = Arc::clone(&self.0);
        tools.runs.fetch_add(1, Relaxed);
        Box::pin(async move {
            let _told = Told(Arc::clone(&tools.dropped));
            match tool.as_str() {
                "who" => Ok(Reply::text(&format!("{} at {}: {arguments}", ctx.caller().subject(), tools.name))),
                "says" => {
                    ctx.progress(1.0, Some(2.0), "half");
                    ctx.log(LogLevel::Info, &"not asked for");
                    ctx.log(LogLevel::Error, &json!({ "a": 1 }));
                    Ok(Reply::text("said"))
                }
                "asks" => {
                    let answer = ctx.ask("name", Input::elicit("Who?", json!({}))).await?;
                    Ok(Reply::text(&answer.to_string()))
                }
                "fails" => Err(CallError::Rpc { code: -7, message: "no".into(), data: None }),
                "waits" => {
                    tools.began.notify_one();
                    std::future::pending().await
                }
                "much" => Ok(Reply::text(&"x".repeat(RESULT_BYTES_MAX - 100))),
                _ => Err(CallError::UnknownTool(tool)),
            }
        })
    }
}

struct Instance {
    listener: Listener,
    key: Arc<ArcSwap<Key>>,
    tools: Arc<Tools>,
    node: Node,
}

fn instance(name: &'static str, key: &str) -> Instance {
    limited(name, key, 100)
}

fn limited(name: &'static str, key: &str, calls_max: usize) -> Instance {
    let limits = Limits { calls_max, call_bytes_max: 1 << 20, bytes_max: 16 << 20, proof_within: PATIENCE };
    with_limits(name, Key::of_file(key), limits)
}

fn with_limits(name: &'static str, key: Key, limits: Limits) -> Instance {
    let socket = StdListener::bind("127.0.0.1:0").expect("a port");
    socket.set_nonblocking(true).expect("set");
    let at = socket.local_addr().expect("an address").to_string();
    let tools = Arc::new(Tools { name, ..Tools::default() });
    let key = Arc::new(ArcSwap::from_pointee(key));
    let listener = Listener::start(socket, name, Arc::clone(&key), limits, Box::new(Serves(Arc::clone(&tools))))
        .expect("it starts");
    Instance { listener, key, tools, node: node(name, &at) }
}

fn node(id: &str, at: &str) -> Node {
    Node { forwards: at.into(), ..Node::running(id) }
}

fn forwarder(nodes: &[&Node]) -> Forwarder {
    let config = Config {
        connect_timeout: PATIENCE,
        call_bytes_max: CALL_BYTES_MAX,
        result_bytes_max: RESULT_BYTES_MAX,
        in_flight_max: 100,
    };
    let forwarder = Forwarder::new("first", Key::of_file(KEY), config, Handle::current());
    let nodes: Vec<Node> = nodes.iter().map(|node| (*node).clone()).collect();
    let ids: Vec<String> = nodes.iter().map(|node| node.id.clone()).collect();
    let tools = ["who", "says", "asks", "fails", "waits", "much", "missing"];
    forwarder.see(&nodes, tools.map(|tool| Places { tool: tool.into(), placed: ids.clone(), spare: Vec::new() }));
    forwarder
}

fn ctx() -> Ctx {
    let client = ClientCapabilities::ELICITATION;
    Ctx::new(Caller::named("ann"), Deadline::after(Instant::now(), 60_000), client)
}

async fn call(forwarder: &Forwarder, tool: &str, ctx: &Ctx) -> Result<Result<Reply, CallError>, CallError> {
    let wanted = Wanted { tool, roles: &[], is_repeatable: false, is_last: false };
    timeout(PATIENCE, forwarder.call(wanted, &json!({ "n": 1 }), ctx)).await.expect("in time")
}

fn nowhere(tool: &str) -> CallError {
    CallError::Nowhere { tool: tool.into(), roles: Vec::new(), retry_after_s: 1 }
}

fn count(count: &AtomicU64) -> u64 {
    count.load(Relaxed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_runs_elsewhere_as_if_it_ran_here() {
    let b = instance("b", KEY);
    let forwarder = forwarder(&[&b.node]);
    assert_eq!(call(&forwarder, "who", &ctx()).await, Ok(Ok(Reply::text("ann at b: {\"n\":1}"))));
    let nobody = Ctx { caller: Caller::ANONYMOUS, ..ctx() };
    assert_eq!(call(&forwarder, "who", &nobody).await, Ok(Ok(Reply::text("anonymous at b: {\"n\":1}"))));
    let failed = CallError::Rpc { code: -7, message: "no".into(), data: None };
    assert_eq!(call(&forwarder, "fails", &ctx()).await, Ok(Err(failed)));
    let much = call(&forwarder, "much", &ctx()).await.expect("it ran").expect("a result");
    assert!(much.len() > RESULT_BYTES_MAX - 100);
    assert_eq!((count(&b.listener.taken().run), count(&forwarder.counts().answered)), (4, 4));
    assert_eq!((b.listener.inside(), forwarder.in_flight()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_call_says_and_asks_reaches_its_client() {
    #[derive(Debug, Default)]
    struct Client(Mutex<Option<oneshot::Sender<Result<Value, Value>>>>);
    impl Answers for Client {
        fn expect(&self) -> Option<(u64, oneshot::Receiver<Result<Value, Value>>)> {
            let (sender, answer) = oneshot::channel();
            *self.0.lock() = Some(sender);
            Some((77, answer))
        }
        fn forget(&self, _: u64) {}
    }
    let b = instance("b", KEY);
    let forwarder = forwarder(&[&b.node]);
    let outbox = Arc::new(Outbox::new(true, Some(LogLevel::Warning), 100_000));
    let said = Ctx { outbox: Some(Arc::clone(&outbox)), ..ctx() };
    assert_eq!(call(&forwarder, "says", &said).await, Ok(Ok(Reply::text("said"))));
    let log = Message::Log { level: LogLevel::Error, data: json!({ "a": 1 }) };
    let progress = Message::Progress { progress: 1.0, total: Some(2.0), message: Some("half".into()) };
    assert_eq!(outbox.close(), [log, progress]);

    let (client, outbox) = (Arc::<Client>::default(), Arc::new(Outbox::new(false, None, 100_000)));
    let exchange = Exchange::Stream(Arc::clone(&client) as _);
    let asking = Ctx { outbox: Some(Arc::clone(&outbox)), exchange, ..ctx() };
    let answered = async {
        let question = std::future::poll_fn(|cx| outbox.poll_next(cx, true)).await;
        let Message::Request { id: 77, method, params } = question else { panic!("{question:?}") };
        assert_eq!((method.as_str(), &params["message"]), ("elicitation/create", &json!("Who?")));
        let asked = client.0.lock().take().expect("it waits");
        asked.send(Ok(json!({ "action": "decline" }))).expect("it waits");
    };
    let (called, ()) = tokio::join!(call(&forwarder, "asks", &asking), answered);
    assert_eq!(called, Ok(Ok(Reply::text("{\"action\":\"decline\"}"))));

    // Without a stream: in rounds.
    let ctx_of = |answers: Map<String, Value>| {
        let rounds = Rounds::new(Memory::default(), answers);
        Ctx { exchange: Exchange::Rounds(Arc::new(rounds)), ..ctx() }
    };
    let asked = call(&forwarder, "asks", &ctx_of(Map::new())).await.expect("it ran");
    let Err(CallError::InputRequired(required)) = asked else { panic!("{asked:?}") };
    assert!(required.requests.contains_key("name"));
    let answers = Map::from_iter([("name".to_owned(), json!({ "action": "decline" }))]);
    assert_eq!(call(&forwarder, "asks", &ctx_of(answers)).await, Ok(Ok(Reply::text("{\"action\":\"decline\"}"))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_a_call_back_stops_it_and_who_is_killed_loses_it() {
    let b = instance("b", KEY);
    let forwarder = forwarder(&[&b.node]);
    {
        let ctx = ctx();
        let mut waiting = Box::pin(call(&forwarder, "waits", &ctx));
        tokio::select! {
            _ = &mut waiting => panic!("it waits"),
            () = b.tools.began.notified() => {}
        }
        assert_eq!((forwarder.in_flight(), b.listener.inside()), (1, 1));
        drop(waiting);
    }
    timeout(PATIENCE, b.tools.dropped.notified()).await.expect("it is stopped there");
    assert_eq!(forwarder.in_flight(), 0);
    // The next one finds the connection still there.
    assert!(call(&forwarder, "who", &ctx()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_one_is_asked_when_nothing_ran() {
    let (b, c) = (instance("b", KEY), instance("c", KEY));
    let gone = {
        let socket = StdListener::bind("127.0.0.1:0").expect("a port");
        node("gone", &socket.local_addr().expect("an address").to_string())
    };
    let forwarder = forwarder(&[&gone, &b.node, &c.node]);
    for (turned, counted) in [
        (Turned::NotHere, &forwarder.counts().not_here),
        (Turned::Full, &forwarder.counts().full),
        (Turned::Stopping, &forwarder.counts().stopping), // last, since who stops is asked last from then on
    ] {
        *b.tools.turned.lock() = Some(turned);
        // Who has just turned a call down is passed over for a while.
        let asked = async {
            while count(counted) == 0 {
                assert_eq!(call(&forwarder, "who", &ctx()).await, Ok(Ok(Reply::text("ann at c: {\"n\":1}"))));
            }
        };
        timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("nobody was {turned:?}"));
    }
    assert!(count(&forwarder.counts().unreachable) > 0);
    *c.tools.turned.lock() = Some(Turned::Full);
    assert_eq!(call(&forwarder, "who", &ctx()).await, Err(nowhere("who")));
    assert_eq!(call(&forwarder, "nobody has it", &ctx()).await, Err(nowhere("nobody has it")));
    assert_eq!(b.tools.runs.load(Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_sends_back_what_it_has_not_seen_and_loses_nothing() {
    let (b, c) = (instance("b", KEY), instance("c", KEY));
    let forwarder = Arc::new(forwarder(&[&b.node, &c.node]));
    let calls: Vec<_> = (0..8)
        .map(|_| {
            let forwarder = Arc::clone(&forwarder);
            tokio::spawn(async move {
                for _ in 0..100 {
                    let called = call(&forwarder, "who", &ctx()).await;
                    assert!(matches!(called, Ok(Ok(_))), "{called:?}");
                }
            })
        })
        .collect();
    while b.tools.runs.load(Relaxed) < 50 {
        tokio::task::yield_now().await;
    }
    b.listener.end().await;
    for call in calls {
        call.await.expect("every call was answered");
    }
    assert_eq!(b.tools.runs.load(Relaxed) + c.tools.runs.load(Relaxed), 800, "each ran once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_call_is_repeated_only_where_that_does_no_harm() {
    for is_repeatable in [false, true] {
        let b = instance("b", KEY);
        let forwarder = forwarder(&[&b.node]);
        let ctx = ctx();
        let wanted = Wanted { tool: "waits", roles: &[], is_repeatable, is_last: false };
        let arguments = json!({});
        let mut called = Box::pin(forwarder.call(wanted, &arguments, &ctx));
        tokio::select! {
            _ = &mut called => panic!("it waits"),
            () = b.tools.began.notified() => {}
        }
        b.listener.end().await; // after its last words it is cut off
        let lost = timeout(PATIENCE, called).await.expect("in time");
        assert_eq!(lost, if is_repeatable { Err(CallError::Lost) } else { Ok(Err(CallError::Lost)) });
        let counts = forwarder.counts();
        assert_eq!((count(&counts.lost), count(&counts.broken)), if is_repeatable { (0, 1) } else { (1, 0) });
    }
    let (b, c) = (instance("b", KEY), instance("c", KEY));
    let forwarder = forwarder(&[&b.node, &c.node]);
    let (ctx, arguments) = (ctx(), json!({}));
    let wanted = Wanted { tool: "waits", roles: &[], is_repeatable: true, is_last: false };
    let mut called = Box::pin(forwarder.call(wanted, &arguments, &ctx));
    let first = tokio::select! {
        _ = &mut called => panic!("it waits"),
        () = b.tools.began.notified() => &b,
        () = c.tools.began.notified() => &c,
    };
    let second = if std::ptr::eq(first, &b) { &c } else { &b };
    first.listener.end().await;
    tokio::select! {
        called = &mut called => panic!("it waits: {called:?}"),
        () = second.tools.began.notified() => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_known_on_both_sides() {
    let (stranger, b) = (instance("stranger", "another key, and long enough for one too"), instance("b", KEY));
    let wrong = node("x", &b.node.forwards); // what is there is not x
    let forwarder = forwarder(&[&stranger.node, &wrong]);
    assert_eq!(call(&forwarder, "who", &ctx()).await, Err(nowhere("who")));
    assert_eq!(count(&forwarder.counts().strange), 2);
    timeout(PATIENCE, forwarder.key_differs()).await.expect("it is told");
    assert_eq!(stranger.tools.runs.load(Relaxed) + b.tools.runs.load(Relaxed), 0, "nothing was handed to either");
    // With the key of the deployment it is one of us, from the next connection on.
    forwarder.take_over(Key::of_file("another key, and long enough for one too"));
    assert!(call(&forwarder, "who", &ctx()).await.expect("it ran").is_ok());
}

/// Who is refused says so; who refuses would not know of it but for who knocked.
#[tokio::test]
async fn a_wrong_key_is_told_on_both_sides_and_one_that_is_not_known_yet_alarms_nobody() {
    let said = Heard::from_now_on();
    let b = instance("b", "another key, and long enough for one too");
    let forwarder = forwarder(&[&b.node]);
    assert_eq!(call(&forwarder, "who", &ctx()).await, Err(nowhere("who")));
    let left = async || {
        while count(&b.listener.taken().forged) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        b.listener.taken().forged.store(0, Relaxed);
    };
    timeout(PATIENCE, left()).await.expect("it is counted");
    let text = said.text();
    assert_eq!(text.matches(" WARN ").count(), 2, "{text}");
    let refused = text.lines().find(|line| line.contains("left without a proof")).expect("who refuses says so");
    assert!(refused.contains("at=127.0.0.1:") && refused.contains("cluster.node_key_file"), "{refused}");
    let [ours, theirs] = [&forwarder.key().load(), &b.key.load()].map(|key| key.fingerprint());
    let refuses =
        text.lines().find(|line| line.contains("no calls are handed over there")).expect("who is refused says so");
    assert!(refuses.contains(&format!("fingerprints: {ours} here, {theirs} there")), "{refuses}");
    assert!(refused.contains(&format!("fingerprints: {theirs} here, {ours} there")), "{refused}");

    // Both started before Redis.
    forwarder.take_over(Key::own("a key that was made at the start, and is long"));
    b.key.store(Arc::new(Key::own("another one that was made at the start")));
    assert_eq!(call(&forwarder, "who", &ctx()).await, Err(nowhere("who")));
    timeout(PATIENCE, left()).await.expect("it is counted");
    b.key.store(Arc::new(Key::shared("the key of all, which is in Redis")));
    assert_eq!(call(&forwarder, "who", &ctx()).await, Err(nowhere("who")));
    timeout(PATIENCE, left()).await.expect("it is counted");
    timeout(PATIENCE, forwarder.key_differs()).await.expect("the key is looked up at once");
    forwarder.take_over(Key::shared("the key of all, which is in Redis"));
    assert!(call(&forwarder, "who", &ctx()).await.expect("it ran").is_ok());
    let later = said.text().split_off(text.len());
    assert!(!later.contains(" WARN ") && !later.contains("node_key_file"), "{later}");
    assert!(later.contains("does not know the shared key yet"), "{later}");
    assert!(later.contains("calls are handed over there from now on"), "{later}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_forged_is_refused_and_counted() {
    use http::Request;
    use hyper::client::conn::http2;
    use hyper_util::rt::{TokioExecutor, TokioIo};

    let b = instance("b", KEY);
    let connect = || async {
        let stream = TcpStream::connect(&b.node.forwards).await.expect("connects");
        let (sender, connection) =
            http2::handshake::<_, _, peer::Whole>(TokioExecutor::new(), TokioIo::new(stream)).await.expect("HTTP/2");
        tokio::spawn(connection);
        sender
    };
    let post = |path: &str, proof: Option<&str>, body: &[u8]| {
        let mut request = Request::post(format!("http://b{path}"));
        if let Some(proof) = proof {
            request = request.header(PROOF, proof);
        }
        request.body(peer::Whole::new(body.to_vec().into())).expect("a request")
    };
    let body = Call::encode("who", &json!({}), &ctx(), Instant::now());
    let mut sender = connect().await;
    let mut status = async |request| sender.send_request(request).await.expect("an answer").status().as_u16();
    assert_eq!(status(post(CALL, None, &body)).await, 401, "without a hello");
    let key = [0; 32];
    assert_eq!(status(post(CALL, Some(&proof::sign(&key, CALL, 0, &body)), &body)).await, 401);
    assert_eq!(status(post(HELLO, None, b"{\"form\":1}")).await, 401);
    assert_eq!(status(post("/", None, b"")).await, 401);
    let hello = |to: &str| proof::Hello {
        form: proof::FORM,
        from: "x".into(),
        to: to.into(),
        nonce: proof::nonce().expect("random"),
        key: key::From::File,
        fingerprint: String::new(),
    };
    let hello_bytes = |hello: &proof::Hello| serde_json::to_vec(hello).expect("JSON");
    assert_eq!(status(post(HELLO, None, &hello_bytes(&hello("c")))).await, 421, "it is another");
    // A hello by itself gives nothing.
    assert_eq!(status(post(HELLO, None, &hello_bytes(&hello("b")))).await, 200);
    assert_eq!(status(post(HELLO, None, &hello_bytes(&hello("b")))).await, 401, "twice");
    assert_eq!(status(post(CALL, None, &body)).await, 401);
    assert_eq!(status(post(CALL, Some(&proof::sign(&key, CALL, 0, &body)), &body)).await, 401);
    assert_eq!(count(&b.listener.taken().forged), 7);
    // With the key: once, and no other.
    let mut sender = connect().await;
    let hello = hello("b");
    let answer = sender.send_request(post(HELLO, None, &hello_bytes(&hello))).await.expect("an answer");
    let welcome = peer::collect(answer.into_body(), 4096).await.expect("a body");
    let welcome = serde_json::from_slice(&welcome).expect("a welcome");
    let key = proof::welcomed(KEY.as_bytes(), &hello, &welcome).expect("the same key");
    let mut status = async |request| sender.send_request(request).await.expect("an answer").status().as_u16();
    let proof = proof::sign(&key, CALL, 0, &body);
    assert_eq!(status(post(CALL, Some(&proof), &body)).await, 200);
    assert_eq!(status(post(CALL, Some(&proof), &body)).await, 401, "the same again");
    let other = Call::encode("fails", &json!({}), &ctx(), Instant::now());
    assert_eq!(status(post(CALL, Some(&proof::sign(&key, CALL, 1, &body)), &other)).await, 401, "another body");
    assert_eq!(status(post(ANSWER, Some(&proof::sign(&key, CALL, 2, &body)), &body)).await, 401, "another path");
    assert_eq!(status(post(CALL, Some(&proof::sign(&key, CALL, 3, b"{}")), b"{}")).await, 400, "no call");
    let huge = vec![b' '; (1 << 20) + 1];
    assert_eq!(status(post(CALL, Some(&proof::sign(&key, CALL, 4, &huge)), &huge)).await, 413, "too long");
    assert_eq!(status(post(CALL, Some(&proof::sign(&key, CALL, 5, &body)), b"short")).await, 401, "another length");
    assert_eq!(status(post(KNOWN, Some(&proof::sign(&key, KNOWN, 6, b"")), b"")).await, 204, "and it goes on");
    assert_eq!(count(&b.listener.taken().forged), 11);
    assert_eq!(b.tools.runs.load(Relaxed), 1);
    // What is no HTTP/2 is closed.
    let mut stream = TcpStream::connect(&b.node.forwards).await.expect("connects");
    stream.write_all(b"POST /call HTTP/1.1\r\nHost: b\r\nContent-Length: 0\r\n\r\n").await.expect("sent");
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("it is closed");
    assert!(!answer.starts_with(b"HTTP/1.1 2"));
}

/// A body that is said to be long, and never comes.
struct Never(u64);

impl hyper::body::Body for Never {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Pending
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.0)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_hold_neither_memory_nor_a_place() {
    use http::Request;
    use hyper::client::conn::http2;
    use hyper_util::rt::{TokioExecutor, TokioIo};

    let limits = Limits {
        calls_max: 100,
        call_bytes_max: 1 << 20,
        bytes_max: 1 << 20,
        proof_within: Duration::from_millis(500),
    };
    let b = with_limits("b", Key::of_file(KEY), limits);
    let stream = TcpStream::connect(&b.node.forwards).await.expect("connects");
    let mut http = http2::Builder::new(TokioExecutor::new());
    // It goes on answering and asking for signs of life.
    http.timer(hyper_util::rt::TokioTimer::new()).keep_alive_interval(Duration::from_millis(20));
    let (mut sender, connection) = http.handshake::<_, Never>(TokioIo::new(stream)).await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    // Its calls are refused by their heads, all of them, while none of the bodies has come.
    let key = [0; 32];
    for number in 0..8 {
        let proof = proof::sign(&key, CALL, number, &vec![0; 1 << 20]);
        let request = Request::post("http://b/call").header(PROOF, proof).body(Never(1 << 20)).expect("a request");
        let answer = timeout(PATIENCE, sender.send_request(request)).await.expect("it is not waited for");
        assert_eq!(answer.expect("an answer").status(), 401);
    }
    // One hello is read at a time.
    let hello = || Request::post("http://b/hello").body(Never(100)).expect("a request");
    let first = sender.send_request(hello());
    let second = sender.send_request(hello());
    let answer = tokio::select! { answer = first => answer, answer = second => answer };
    assert_eq!(answer.expect("an answer").status(), 401);
    // It is closed, whatever it says, and one of us finds all the memory there is.
    let _ = timeout(PATIENCE, connection).await.expect("it is closed");
    let forwarder = forwarder(&[&b.node]);
    let arguments = json!({ "much": "x".repeat((1 << 20) - 10_000) });
    let wanted = Wanted { tool: "who", roles: &[], is_repeatable: false, is_last: true };
    let called = timeout(PATIENCE, forwarder.call(wanted, &arguments, &ctx())).await.expect("in time");
    assert!(matches!(called, Ok(Ok(_))), "{called:?}");
    // And its connection is there when the time for a proof is over.
    tokio::time::sleep(2 * limits.proof_within).await;
    let taken = count(&b.listener.taken().forged);
    assert!(call(&forwarder, "who", &ctx()).await.is_ok());
    assert_eq!((count(&b.listener.taken().forged), count(&forwarder.counts().unreachable)), (taken, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_who_come_faster_than_they_are_closed_hold_few_places() {
    let limits = Limits { calls_max: 100, call_bytes_max: 1 << 20, bytes_max: 16 << 20, proof_within: 10 * PATIENCE };
    let b = with_limits("b", Key::of_file(KEY), limits);
    let known = forwarder(&[&b.node]);
    assert!(call(&known, "who", &ctx()).await.is_ok());
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(&b.node.forwards).await.expect("connects"));
    }
    // The oldest are closed for those that came later, and nobody waits for their time to be over.
    let later = silent.split_off(200 - 64);
    for mut one in silent {
        let mut come = Vec::new();
        let _ = timeout(PATIENCE, one.read_to_end(&mut come)).await.expect("it is closed");
    }
    assert_eq!(count(&b.listener.taken().forged), 200 - 64);
    // Who has shown the proof keeps its place, and who has the key gets one.
    assert!(call(&known, "who", &ctx()).await.is_ok() && call(&forwarder(&[&b.node]), "who", &ctx()).await.is_ok());
    assert_eq!(known.peers.lock()["b"].connections(), 1);
    drop(later);
}

/// Something that answers so to who says hello, and so to the first proof.
async fn answers(at_hello: u16, at_proof: u16, header: (&'static str, &'static str)) -> Node {
    use hyper::{server::conn::http2, service::service_fn};
    use hyper_util::rt::{TokioExecutor, TokioIo};

    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = socket.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        loop {
            let (stream, _) = socket.accept().await.expect("accepts");
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| async move {
                let is_hello = request.uri().path() == HELLO;
                let body = peer::collect(request.into_body(), 4096).await.expect("a body");
                let welcome = is_hello.then(|| {
                    let hello = serde_json::from_slice(&body).expect("a hello");
                    let (welcome, _) = proof::welcome(KEY.as_bytes(), &hello, proof::nonce().expect("random"));
                    serde_json::to_vec(&welcome).expect("JSON")
                });
                let status = if is_hello { at_hello } else { at_proof };
                let body = peer::Whole::new(welcome.unwrap_or_default().into());
                Ok::<_, std::convert::Infallible>(
                    http::Response::builder().status(status).header(header.0, header.1).body(body).expect("an answer"),
                )
            });
            tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service));
        }
    });
    node("x", &at)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_room_for_a_connection_is_no_stranger() {
    for (at_hello, at_proof) in [(503, 204), (200, 503)] {
        let stopping = forwarder(&[&answers(at_hello, at_proof, (IS_STOPPING, "1")).await]);
        assert_eq!(call(&stopping, "who", &ctx()).await, Err(nowhere("who")));
        let full = forwarder(&[&answers(at_hello, at_proof, ("x", "y")).await]);
        assert_eq!(call(&full, "who", &ctx()).await, Err(nowhere("who")));
        let counted = |of: &Forwarder| [&of.counts.full, &of.counts.stopping, &of.counts.strange].map(count);
        assert_eq!((counted(&full), counted(&stopping)), ([1, 0, 0], [0, 1, 0]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_form_is_told_as_one_of_another_version() {
    let later = forwarder(&[&answers(426, 204, (FORM, "7")).await]);
    assert_eq!(call(&later, "who", &ctx()).await, Err(nowhere("who")));
    assert_eq!(count(&later.counts.strange), 1);
    let peer = Arc::clone(&later.peers.lock()["x"]);
    let (why, told) = peer.try_connect().await.expect_err("it is refused");
    assert_eq!(why, Why::Strange);
    assert!(told.contains("another version") && told.contains("is 7 and here 1") && told.contains("503"), "{told}");

    // And one of another form that comes here is told so, before anything else in its hello is looked at.
    let b = instance("b", KEY);
    let stream = TcpStream::connect(&b.node.forwards).await.expect("connects");
    let (executor, io) = (hyper_util::rt::TokioExecutor::new(), hyper_util::rt::TokioIo::new(stream));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, peer::Whole>(executor, io).await.expect("HTTP/2");
    tokio::spawn(connection);
    for hello in [&b"{\"form\":2,\"to\":[]}"[..], b"{}"] {
        let request = http::Request::post("http://b/hello").body(peer::Whole::new(Bytes::from_static(hello)));
        let answer = sender.send_request(request.expect("a request")).await.expect("an answer");
        assert_eq!((answer.status().as_u16(), answer.headers()[FORM].as_bytes()), (426, &b"1"[..]));
    }
    let taken = b.listener.taken();
    assert_eq!((count(&taken.other_form), count(&taken.forged)), (2, 0), "it is no stranger");
}

#[tokio::test]
async fn a_stranger_is_spoken_of_once_and_not_waited_for() {
    let said = Heard::from_now_on();
    let stranger = instance("stranger", "another key, and long enough for one too");
    let forwarder = forwarder(&[&stranger.node, &answers(426, 204, (FORM, "7")).await]);
    assert_eq!(call(&forwarder, "who", &ctx()).await, Err(nowhere("who")));
    let lines = || said.text().matches("no calls are handed over there").count();
    assert_eq!(lines(), 2, "{}", said.text());
    let wanted = Wanted { tool: "who", roles: &[], is_repeatable: false, is_last: true };
    for _ in 0..5 {
        let (arguments, ctx) = (json!({}), ctx());
        let mut called = std::pin::pin!(forwarder.call(wanted, &arguments, &ctx));
        let called = loop {
            tokio::select! {
                biased;
                () = tokio::time::sleep(Duration::from_millis(1)) => {
                    assert_eq!(forwarder.news.receiver_count(), 0, "it waits for somebody to come");
                }
                called = &mut called => break called,
            }
        };
        assert_eq!(called, Err(nowhere("who")));
    }
    assert_eq!((lines(), count(&forwarder.counts().strange)), (2, 12), "{}", said.text());
    // Once it is one of us, what it is later is said again.
    forwarder.take_over(Key::of_file("another key, and long enough for one too"));
    assert!(call(&forwarder, "who", &ctx()).await.expect("it ran").is_ok());
    assert!(!forwarder.peers.lock()["stranger"].is_strange());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_is_refused_and_costs_no_connection() {
    let (b, c) = (instance("b", KEY), instance("c", KEY));
    let forwarder = forwarder(&[&b.node, &c.node]);
    assert!(call(&forwarder, "who", &ctx()).await.is_ok() && call(&forwarder, "who", &ctx()).await.is_ok());
    let large = async |bytes: usize| {
        let wanted = Wanted { tool: "who", roles: &[], is_repeatable: true, is_last: true };
        // As JSON a number may be longer than its client wrote it.
        let arguments = Value::from(vec![1e15; bytes / "1000000000000000.0,".len()]);
        timeout(PATIENCE, forwarder.call(wanted, &arguments, &ctx())).await.expect("in time")
    };
    let refused = |called| match called {
        Err(CallError::InvalidParams(why)) => why,
        other => panic!("{other:?}"),
    };
    // What nobody would take is not sent to anybody.
    let why = refused(large(CALL_BYTES_MAX + 100).await);
    assert!(why.contains("\"who\"") && why.contains("2097152 bytes"), "{why}");
    let broken = || count(&b.listener.taken().broken) + count(&c.listener.taken().broken);
    assert_eq!((broken(), count(&forwarder.counts().full)), (0, 0));
    // What the others do not take, whatever they are set to, ends no connection.
    refused(large(CALL_BYTES_MAX - 100_000).await);
    assert_eq!((broken(), count(&forwarder.counts().full)), (2, 2));
    assert!(matches!(large(900_000).await, Ok(Ok(_))));
    let connections = forwarder.peers.lock().values().map(|peer| peer.connections()).sum::<u64>();
    assert_eq!(connections, 2, "one to each, from first to last");
    assert_eq!(count(&forwarder.counts().strange), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_run_here_and_no_more() {
    let b = limited("b", KEY, 1);
    let forwarder = forwarder(&[&b.node]);
    let ctx = ctx();
    let mut waiting = Box::pin(call(&forwarder, "waits", &ctx));
    tokio::select! {
        _ = &mut waiting => panic!("it waits"),
        () = b.tools.began.notified() => {}
    }
    assert_eq!(call(&forwarder, "who", &ctx).await, Err(nowhere("who")));
    assert_eq!((count(&b.listener.taken().full), b.listener.inside()), (1, 1));
    drop(waiting);
    timeout(PATIENCE, b.tools.dropped.notified()).await.expect("it is stopped there");
    while b.listener.inside() > 0 {
        tokio::task::yield_now().await;
    }
    assert!(call(&forwarder, "who", &ctx).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_least_loaded_is_taken() {
    let (b, c) = (instance("b", KEY), instance("c", KEY));
    let forwarder = forwarder(&[&b.node, &c.node]);
    let see = |b_load, c_load| {
        let nodes = [Node { load: b_load, ..b.node.clone() }, Node { load: c_load, ..c.node.clone() }];
        let placed = vec!["b".to_owned(), "c".to_owned()];
        forwarder.see(&nodes, [Places { tool: "who".into(), placed, ..Places::default() }]);
    };
    let runs = || (b.tools.runs.load(Relaxed), c.tools.runs.load(Relaxed));
    for ((b_load, c_load), expected) in [((50, 2), (0, 10)), ((2, 50), (10, 10)), ((3, 3), (15, 15))] {
        see(b_load, c_load);
        for _ in 0..10 {
            assert!(call(&forwarder, "who", &ctx()).await.is_ok());
        }
        assert_eq!(runs(), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_could_have_it_is_asked_when_those_who_have_it_do_not_take_it() {
    let (b, c, d) = (instance("b", KEY), instance("c", KEY), instance("d", KEY));
    let forwarder = forwarder(&[&b.node, &c.node, &d.node]);
    let nodes = [&b, &c, &d].map(|one| one.node.clone());
    let (placed, spare) = (vec!["b".to_owned(), "c".to_owned()], vec!["d".to_owned()]);
    forwarder.see(&nodes, [Places { tool: "who".into(), placed, spare }]);
    let runs = |one: &Instance| one.tools.runs.load(Relaxed);
    for _ in 0..4 {
        assert!(call(&forwarder, "who", &ctx()).await.is_ok());
    }
    assert_eq!((runs(&b), runs(&c), runs(&d)), (2, 2, 0));
    *b.tools.turned.lock() = Some(Turned::Stopping);
    *c.tools.turned.lock() = Some(Turned::Stopping);
    for _ in 0..4 {
        assert!(call(&forwarder, "who", &ctx()).await.expect("it ran").is_ok());
    }
    assert_eq!((runs(&b), runs(&c), runs(&d)), (2, 2, 4));
    // After the first the two that stop are asked last.
    assert!(count(&forwarder.counts().stopping) >= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_nobody_takes_waits_a_moment_for_who_comes() {
    let (b, c) = (instance("b", KEY), instance("c", KEY));
    *b.tools.turned.lock() = Some(Turned::Stopping);
    let forwarder = forwarder(&[&b.node]);
    let (ctx, arguments) = (ctx(), json!({}));
    let wanted = Wanted { tool: "who", roles: &[], is_repeatable: false, is_last: true };
    let comes = async {
        while count(&forwarder.counts().stopping) == 0 {
            tokio::task::yield_now().await;
        }
        let placed = vec!["c".to_owned()];
        forwarder.see(std::slice::from_ref(&c.node), [Places { tool: "who".into(), placed, ..Places::default() }]);
    };
    let (called, ()) = tokio::join!(forwarder.call(wanted, &arguments, &ctx), comes);
    assert_eq!(called, Ok(Ok(Reply::text("ann at c: {}"))));
    // Nobody comes.
    *c.tools.turned.lock() = Some(Turned::Stopping);
    let called = timeout(PATIENCE, forwarder.call(wanted, &arguments, &ctx)).await.expect("it does not wait for long");
    assert_eq!(called, Err(nowhere("who")));
}
