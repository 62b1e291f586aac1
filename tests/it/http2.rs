//! HTTP/2: what HTTP/1.1 promises, it promises too; and floods of frames end the connection that they come on, and
//! nothing else.

mod floods;
mod raw;

use std::{
    convert::Infallible,
    io::Write,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    thread,
    time::Duration,
};

use bigiron::{Ctx, Lane, Server, config::Tuning, server::Running};
use bytes::Bytes;
use hyper::{
    Request,
    body::{Body as _, Frame},
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::{net::TcpStream, runtime::Runtime, sync::Semaphore, task::JoinHandle};

use self::raw::{Raw, kind};
use crate::support::{PATIENCE, Response, eventually, get, metric, modern, start};

/// A server with tools that wait and that say much.
pub(crate) struct Served {
    pub(crate) running: Running,
    /// Runs of `wait` that are not over.
    inside: Arc<AtomicUsize>,
    /// `wait` goes on by one of these.
    go: Arc<Semaphore>,
}

/// Counts a running call, down again when it is dropped.
struct Inside(Arc<AtomicUsize>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

pub(crate) fn serve(tune: impl FnOnce(&mut Tuning)) -> Served {
    let (inside, go) = (Arc::<AtomicUsize>::default(), Arc::new(Semaphore::new(0)));
    let (counted, awaited) = (Arc::clone(&inside), Arc::clone(&go));
    let server = Server::builder()
        .tool("quick", "Answers at once", Lane::Inline, |(): (), _| "quick")
        .tool("much", "Says a megabyte", Lane::Inline, |(): (), _| "x".repeat(1 << 20))
        .async_tool("wait", "Waits", move |(): (), _: Ctx| {
            counted.fetch_add(1, Ordering::SeqCst);
            let (inside, go) = (Inside(Arc::clone(&counted)), Arc::clone(&awaited));
            async move {
                go.acquire().await.expect("it is never closed").forget();
                drop(inside);
                "waited"
            }
        });
    Served { running: start(server, tune), inside, go }
}

impl Served {
    fn addr(&self) -> SocketAddr {
        self.running.addr()
    }

    fn inside(&self) -> usize {
        self.inside.load(Ordering::SeqCst)
    }
}

/// A body that is there at once, in one piece; or one that never comes to its end.
struct Sent {
    bytes: Option<Bytes>,
    ends: bool,
}

impl hyper::body::Body for Sent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.bytes.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None if self.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

/// A client of HTTP/2, on one connection.
struct Client {
    runtime: Runtime,
    sender: SendRequest<Sent>,
    connection: JoinHandle<hyper::Result<()>>,
    addr: SocketAddr,
}

impl Client {
    fn connect(addr: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let (sender, connection) = runtime.block_on(async {
            let stream = TcpStream::connect(addr).await.expect("connects");
            let mut builder = http2::Builder::new(TokioExecutor::new());
            let handshake = builder.timer(TokioTimer::new()).handshake(TokioIo::new(stream));
            let (sender, connection) = handshake.await.expect("HTTP/2");
            (sender, tokio::spawn(connection))
        });
        Self { runtime, sender, connection, addr }
    }

    fn request(&self, headers: &[(&str, &str)], body: &Value) -> Request<Sent> {
        let usual = [
            ("content-type", "application/json"),
            ("accept", "application/json, text/event-stream"),
            ("mcp-protocol-version", "2026-07-28"),
        ];
        let mut request = Request::post(format!("http://{}/mcp", self.addr));
        for (name, value) in usual.iter().chain(headers) {
            request = request.header(*name, *value);
        }
        request.body(Sent { bytes: Some(body.to_string().into()), ends: true }).expect("a request")
    }

    fn calling(&self, tool: &str) -> Request<Sent> {
        let headers = [("mcp-method", "tools/call"), ("mcp-name", tool)];
        self.request(&headers, &modern(1, "tools/call", json!({ "name": tool, "arguments": {} })))
    }

    /// Sends, and answers when the answer is whole.
    fn send(&self, request: Request<Sent>) -> JoinHandle<Result<Response, hyper::Error>> {
        let mut sender = self.sender.clone();
        self.runtime.spawn(async move {
            let (head, mut body) = sender.send_request(request).await?.into_parts();
            let text = |value: &hyper::header::HeaderValue| value.to_str().expect("text").to_owned();
            let headers = head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
            let mut response = Response { status: head.status.as_u16(), headers, body: Vec::new() };
            while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                if let Ok(data) = frame?.into_data() {
                    response.body.extend_from_slice(&data);
                }
            }
            Ok(response)
        })
    }

    fn wait(&self, answer: JoinHandle<Result<Response, hyper::Error>>) -> Response {
        let answer = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, answer).await });
        answer.expect("an answer in time").expect("no panic").expect("an answer")
    }

    fn ask(&self, request: Request<Sent>) -> Response {
        self.wait(self.send(request))
    }

    /// Waits for the connection's end; whether the server ended it in order.
    fn ended(self) -> bool {
        let ended = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, self.connection).await });
        ended.expect("it ends").expect("no panic").is_ok()
    }
}

#[test]
fn many_calls_share_a_connection() {
    let served = serve(|_| {});
    let client = Client::connect(served.addr());
    let waiting: Vec<_> = (0..20).map(|_| client.send(client.calling("wait"))).collect();
    eventually("all wait at once", || served.inside() == 20);
    assert_eq!(served.running.connections(), 1);
    let response = client.ask(client.calling("quick"));
    assert_eq!((response.status, response.text().as_str()), (200, "quick"));
    assert_eq!(response.header("content-type"), Some("application/json"));
    served.go.add_permits(20);
    for answer in waiting {
        assert_eq!(client.wait(answer).text(), "waited");
    }
    assert_eq!(client.ask(client.calling("much")).text().len(), 1 << 20);
}

#[test]
fn what_is_refused_is_refused_in_the_same_words() {
    let served = serve(|tuning| {
        tuning.limits.request_bytes_max = bigiron::units::ByteSize::kib(4);
        tuning.limits.body_bytes_per_s_min = 0;
        tuning.limits.headers_max = 16;
    });
    let client = Client::connect(served.addr());
    let quick = json!({ "name": "quick", "arguments": {} });
    let large = modern(1, "tools/call", json!({ "name": "quick", "arguments": { "x": "x".repeat(8 << 10) } }));
    let with = |headers: &[(&str, &str)]| {
        let all = [&[("mcp-method", "tools/call"), ("mcp-name", "quick")], headers].concat();
        client.request(&all, &modern(1, "tools/call", quick.clone()))
    };
    let long = "x".repeat(17 << 10);
    let many: Vec<String> = (0..20).map(|n| format!("x-{n}")).collect();
    let many: Vec<_> = many.iter().map(|name| (name.as_str(), "x")).collect();
    let mut foreign = with(&[]);
    *foreign.uri_mut() = "http://elsewhere.example/mcp".parse().expect("a URI");
    let mut nowhere = with(&[]);
    *nowhere.uri_mut() = format!("http://{}/nowhere", served.addr()).parse().expect("a URI");
    for (request, status) in [
        (with(&[("content-length", "8192")]), 413),
        (client.request(&[], &large), 413),
        (with(&[("x-long", &long)]), 431),
        (with(&many), 431),
        (with(&[("host", "elsewhere.example")]), 400),
        (foreign, 403),
        (nowhere, 404),
        (with(&[("origin", "https://elsewhere.example")]), 403),
        (with(&[("content-encoding", "gzip")]), 415),
    ] {
        let said = format!("{} {:?}", request.uri(), request.headers().keys().collect::<Vec<_>>());
        if status == 413 && request.headers().contains_key("content-length") {
            // The length that is said is over the limit, so that the body is not waited for.
            let waits = request.map(|_| Sent { bytes: None, ends: false });
            assert_eq!(client.ask(waits).status, status, "{said}");
            continue;
        }
        let response = client.ask(request);
        assert_eq!(response.status, status, "{said}");
        assert!(response.json()["error"]["message"].is_string(), "{said}: {response:?}");
    }
    assert_eq!(client.ask(client.calling("quick")).text(), "quick", "the connection goes on");
}

#[test]
fn a_body_that_does_not_come_is_not_waited_for() {
    let served = serve(|tuning| {
        tuning.limits.body_timeout_ms = 300;
        tuning.limits.body_bytes_per_s_min = 0;
    });
    let client = Client::connect(served.addr());
    let slow = client.calling("quick").map(|_| Sent { bytes: Some(Bytes::from_static(b"{")), ends: false });
    assert_eq!(client.ask(slow).status, 408);
    assert_eq!(client.ask(client.calling("quick")).status, 200);
}

#[test]
fn a_call_that_takes_too_long_is_answered() {
    let served = serve(|tuning| tuning.limits.request_timeout_ms = 100);
    let client = Client::connect(served.addr());
    let response = client.ask(client.calling("wait"));
    assert!(response.json().to_string().contains("100"), "{response:?}");
    eventually("the call is over", || served.inside() == 0);
}

#[test]
fn a_stream_that_is_taken_back_takes_its_call_along() {
    let served = serve(|_| {});
    let client = Client::connect(served.addr());
    let (kept, given_up) = (client.send(client.calling("wait")), client.send(client.calling("wait")));
    eventually("both wait", || served.inside() == 2);
    given_up.abort();
    eventually("one call is dropped", || served.inside() == 1);
    served.go.add_permits(1);
    assert_eq!(client.wait(kept).text(), "waited");
}

#[test]
fn a_client_that_is_gone_takes_its_calls_along() {
    let served = serve(|_| {});
    let client = Client::connect(served.addr());
    let _waiting: Vec<_> = (0..3).map(|_| client.send(client.calling("wait"))).collect();
    eventually("all wait", || served.inside() == 3);
    drop(client.runtime);
    eventually("nothing is left", || served.inside() == 0 && served.running.connections() == 0);
    eventually("no place is taken", || served.running.in_flight() == 0);
}

#[test]
fn one_connection_has_no_more_than_its_share() {
    let served = serve(|tuning| {
        tuning.limits.concurrent_requests_max = 10;
        tuning.http2.streams_max = 100;
    });
    let client = Client::connect(served.addr());
    let waiting: Vec<_> = (0..30).map(|_| client.send(client.calling("wait"))).collect();
    eventually("the others are refused", || waiting.iter().filter(|answer| answer.is_finished()).count() == 21);
    assert_eq!(served.inside(), 9);
    served.go.add_permits(9);
    let statuses: Vec<u16> = waiting.into_iter().map(|answer| client.wait(answer).status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 9, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 503).count(), 21, "{statuses:?}");
}

#[test]
fn all_connections_together_have_no_more_requests_than_there_may_be_connections() {
    let served = serve(|tuning| tuning.limits.connections_max = 8);
    let (one, two) = (Client::connect(served.addr()), Client::connect(served.addr()));
    let waiting: Vec<_> =
        (0..8).map(|n| if n % 2 == 0 { &one } else { &two }).map(|c| (c, c.send(c.calling("wait")))).collect();
    eventually("all of them run", || served.inside() == 8);
    let refused = two.ask(two.calling("quick"));
    assert_eq!(refused.status, 503, "{refused:?}");
    served.go.add_permits(8);
    for (client, answer) in waiting {
        assert_eq!(client.wait(answer).status, 200);
    }
    eventually("there is room again", || two.ask(two.calling("quick")).status == 200);
}

#[test]
fn a_stop_finishes_what_is_in_flight_and_says_goodbye() {
    let served = serve(|_| {});
    let client = Client::connect(served.addr());
    let idle = Client::connect(served.addr());
    assert_eq!(idle.ask(idle.calling("quick")).status, 200);
    let waiting = client.send(client.calling("wait"));
    eventually("it waits", || served.inside() == 1);
    let Served { running, inside, go } = served;
    let stopping = thread::spawn(move || running.stop());
    assert!(idle.ended(), "GOAWAY, and no broken connection");
    assert_eq!(inside.load(Ordering::SeqCst), 1);
    go.add_permits(1);
    assert_eq!(client.wait(waiting).text(), "waited");
    assert!(client.ended());
    assert_eq!(stopping.join().expect("it stops").cut, 0);
}

#[test]
fn the_end_of_the_grace_answers_what_still_runs() {
    let served = serve(|tuning| {
        tuning.server.drain_grace_ms = 200;
        tuning.limits.request_timeout_ms = 200;
        tuning.tools.insert("wait".into(), bigiron::tool::Config { timeout_ms: Some(200), ..Default::default() });
    });
    let client = Client::connect(served.addr());
    let waiting = client.send(client.calling("wait"));
    eventually("it waits", || served.inside() == 1);
    let _ = served.running.stop();
    let response = client.wait(waiting);
    assert!(response.json()["error"].is_object() || response.json()["result"]["isError"] == true, "{response:?}");
}

#[test]
fn streams_of_changes_end_with_the_server() {
    let served = serve(|_| {});
    let client = Client::connect(served.addr());
    let listen = modern(7, "subscriptions/listen", json!({ "notifications": { "toolsListChanged": true } }));
    let listening = client.send(client.request(&[("mcp-method", "subscriptions/listen")], &listen));
    eventually("it listens", || metric(&served.running, "bigiron_streams") == 1.0);
    let stopping = thread::spawn(move || served.running.stop());
    let response = client.wait(listening);
    assert!(response.status == 200 && response.body.starts_with(b": open\n\n"), "{response:?}");
    assert_eq!(stopping.join().expect("it stops").cut, 0);
}

#[test]
fn an_answer_that_is_not_taken_is_given_up_and_no_other_is() {
    let served = serve(|tuning| tuning.limits.write_timeout_ms = 300);
    let mut raw = Raw::connect(served.addr(), &[(raw::INITIAL_WINDOW_SIZE, 0)]);
    raw.call(1, "quick");
    raw.call(3, "much");
    // The pings keep time: the server answers them, whatever is not taken.
    for stream in [1, 3] {
        let reset = raw.until(|frame| frame.kind == kind::RST_STREAM).expect("the stream is reset");
        assert!([1, 3].contains(&reset.stream), "{stream}: {reset:?}");
    }
    assert_eq!(metric(&served.running, "bigiron_http2_untaken_total"), 2.0);
    raw.send(&raw::frame(kind::WINDOW_UPDATE, 0, 0, &(1u32 << 20).to_be_bytes()));
    raw.send(&raw::settings(&[(raw::INITIAL_WINDOW_SIZE, 1 << 16)]));
    raw.call(5, "quick");
    let data = raw.until(|frame| frame.kind == kind::DATA).expect("an answer");
    assert!(data.stream == 5 && String::from_utf8_lossy(&data.payload).contains("quick"), "{data:?}");
}

#[test]
fn a_connection_without_requests_is_ended_in_order() {
    let served = serve(|tuning| tuning.limits.idle_timeout_ms = 100);
    let client = Client::connect(served.addr());
    assert!(client.ended());
    // One that says nothing more, and answers no ping. What it sends then brings no reset. (On a host that is busy the end
    // may be over before.)
    let ends = || {
        let mut raw = Raw::connect(served.addr(), &[]);
        assert!(raw.until(|frame| frame.kind == kind::GOAWAY).is_some());
        assert!(raw.until(|_| false).is_none(), "and closed");
        thread::sleep(Duration::from_millis(50)); // as it would be on its way
        let ping = raw::frame(kind::PING, 0, 0, &[0; 8]);
        raw.offer(&ping) && raw.offer(&ping)
    };
    assert!((0..5).any(|_| ends()));
    eventually("nothing is left of them", || served.running.connections() == 0);
}

#[test]
fn without_prior_knowledge_it_is_not_spoken_in_the_clear() {
    let changes: [fn(&mut Tuning); 2] = [|t| t.http2.enabled = false, |t| t.http2.prior_knowledge = false];
    for change in changes {
        let served = serve(change);
        let mut stream = std::net::TcpStream::connect(served.addr()).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("sends");
        let mut answer = Vec::new();
        let _ = std::io::Read::read_to_end(&mut stream, &mut answer);
        assert!(answer.is_empty(), "closed without an answer: {:?}", String::from_utf8_lossy(&answer));
        assert_eq!(get(served.addr(), "/ready").status, 200);
    }
}

#[test]
fn a_slow_beginning_is_read_whichever_it_is() {
    let served = serve(|_| {});
    let all = b"POST /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n";
    for cut in [1, 2, 20] {
        let (slow, rest) = all.split_at(cut);
        let mut stream = std::net::TcpStream::connect(served.addr()).expect("connects");
        stream.set_nodelay(true).expect("nodelay");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(slow).expect("sends");
        thread::sleep(Duration::from_millis(30)); // so that it is looked at more than once
        stream.write_all(rest).expect("sends");
        let mut answer = [0; 12];
        std::io::Read::read_exact(&mut stream, &mut answer).expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 404");
    }
    let mut raw = Raw::begin(served.addr());
    for part in raw::PREFACE.chunks(7) {
        raw.send(part);
        thread::sleep(Duration::from_millis(15));
    }
    raw.send(&raw::settings(&[]));
    raw.call(1, "quick");
    assert!(raw.until(|frame| frame.kind == kind::DATA).is_some());
}
