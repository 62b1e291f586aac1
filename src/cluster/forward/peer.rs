//! Another instance, as one that runs calls of ours: one connection of HTTP/2, made when it is needed and kept, with all
//! calls on it side by side. What is said here of a call that failed is whether it can have run.

use std::{
    convert::Infallible,
    error::Error as _,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use http::{Request, Response, StatusCode, header};
use hyper::{
    body::{Body, Frame as Part, Incoming, SizeHint},
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{
    net::TcpStream,
    runtime::Handle,
    sync::{Notify, watch},
    time::timeout,
};

use super::{
    ANSWER, CALL, FORM, HELLO, IS_STOPPING, KNOWN, PROOF,
    back::{self, Answering},
    key::Key,
    proof::{self, Code, Hello, Welcome},
    wire::{self, Frame},
};
use crate::{
    call::{Ctx, Reply},
    error::CallError,
};

/// Between two pings of a connection with calls on it, and how long one may take.
const PING: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3));
/// After it was not reached or took nothing, others are asked first for so long.
const FAILING: Duration = Duration::from_secs(1);
/// A welcome is some hundred bytes.
const WELCOME_BYTES_MAX: usize = 4096;
const WINDOW_BYTES: u32 = 1 << 20;

/// What all peers have of this instance.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) id: String,
    /// The key of the deployment.
    pub(super) key: Arc<ArcSwap<Key>>,
    /// Told when another instance has another key.
    pub(super) key_differs: Notify,
    pub(super) runtime: Handle,
    pub(super) connect_timeout: Duration,
    /// Size of a frame that comes back.
    pub(super) frame_bytes_max: usize,
    /// Calls that one peer is given at once.
    pub(super) in_flight_max: usize,
}

/// What became of a call.
#[derive(Debug)]
pub(super) enum Sent {
    Outcome(Result<Reply, CallError>),
    /// For certain.
    NotRun(Why),
    /// Or nobody knows.
    MayHaveRun,
}

/// Why it did not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Unreachable,
    NotHere,
    Stopping,
    Full,
    /// The call is larger than what it takes over.
    TooLarge,
    /// It does not know us, or we do not know it.
    Strange,
    /// One of both does not know the key of the deployment yet.
    NotYet,
}

/// Another instance.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) id: String,
    /// Host and port.
    pub(super) at: String,
    own: Arc<Own>,
    load: AtomicU64,
    max_load: AtomicU64,
    in_flight: AtomicUsize,
    failed: Mutex<Option<Instant>>,
    /// Why nothing is handed over there, since it is none of us as it seems: said once, and so until it is one.
    strange: Mutex<Option<String>>,
    state: Mutex<State>,
    #[cfg(test)]
    connections: AtomicU64,
}

#[derive(Debug)]
enum State {
    Down,
    Connecting(watch::Receiver<Option<Result<Arc<Conn>, Why>>>),
    Up(Arc<Conn>),
}

/// A connection on which both have said who they are.
#[derive(Debug)]
pub(super) struct Conn {
    sender: SendRequest<Whole>,
    key: Code,
    next: AtomicU64,
}

/// A body that is there.
#[derive(Debug)]
pub(super) struct Whole(Option<Bytes>);

impl Whole {
    pub(super) fn new(bytes: Bytes) -> Self {
        Self(Some(bytes))
    }
}

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Part<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().filter(|bytes| !bytes.is_empty()).map(|bytes| Ok(Part::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Bytes::is_empty)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

/// The next piece of a body. None at its end, or when it broke off.
pub(super) async fn chunk<B: Body<Data = Bytes> + Unpin>(body: &mut B) -> Option<Result<Bytes, B::Error>> {
    loop {
        let part = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
        match part.map(Part::into_data) {
            Ok(Ok(data)) => return Some(Ok(data)),
            Ok(Err(_)) => {} // trailers, of which we send none
            Err(error) => return Some(Err(error)),
        }
    }
}

/// A body of so many bytes at most. None when it is longer, or broke off.
pub(super) async fn collect(mut body: Incoming, bytes_max: usize) -> Option<Bytes> {
    let mut all = BytesMut::with_capacity(body.size_hint().lower().min(bytes_max as u64) as usize);
    while let Some(chunk) = chunk(&mut body).await {
        let chunk = chunk.ok()?;
        if all.len() + chunk.len() > bytes_max {
            return None;
        }
        all.extend_from_slice(&chunk);
    }
    Some(all.freeze())
}

/// Counts a call that is under way.
struct InFlight<'a>(&'a AtomicUsize);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Peer {
    pub(super) fn new(id: &str, at: &str, own: &Arc<Own>) -> Self {
        Self {
            id: id.to_owned(),
            at: at.to_owned(),
            own: Arc::clone(own),
            load: AtomicU64::new(0),
            max_load: AtomicU64::new(1),
            in_flight: AtomicUsize::new(0),
            failed: Mutex::new(None),
            strange: Mutex::new(None),
            state: Mutex::new(State::Down),
            #[cfg(test)]
            connections: AtomicU64::new(0),
        }
    }

    /// What it said last of its load.
    pub(super) fn note_load(&self, load: u64, max_load: u64) {
        self.load.store(load, Relaxed);
        self.max_load.store(max_load.max(1), Relaxed);
    }

    /// Whether it could not be reached just now, or took nothing.
    pub(super) fn is_failing(&self, now: Instant) -> bool {
        self.failed.lock().is_some_and(|at| now.saturating_duration_since(at) < FAILING)
    }

    /// Whether it was none of us as it seemed, when it was last asked.
    pub(super) fn is_strange(&self) -> bool {
        self.strange.lock().is_some()
    }

    /// How much it has to do, in millionths of what it can.
    pub(super) fn load(&self) -> u64 {
        let load = self.load.load(Relaxed).saturating_add(self.in_flight.load(Relaxed) as u64);
        load.saturating_mul(1_000_000) / self.max_load.load(Relaxed)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Relaxed)
    }

    /// Connections that were begun.
    #[cfg(test)]
    pub(super) fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    /// Has it run a call. Dropping the future takes the call back there.
    pub(super) async fn call(self: &Arc<Self>, body: &Bytes, ctx: &Ctx) -> Sent {
        if self.in_flight.fetch_add(1, Relaxed) >= self.own.in_flight_max {
            self.in_flight.fetch_sub(1, Relaxed);
            return Sent::NotRun(Why::Full);
        }
        let _in_flight = InFlight(&self.in_flight);
        let conn = match self.connection().await {
            Ok(conn) => conn,
            Err(why) => return self.fails(why),
        };
        let number = conn.next.fetch_add(1, Relaxed);
        let response = match conn.send(CALL, number, body.clone()).await {
            Ok(response) => response,
            Err(Failed::NotSent) => return self.fails(Why::Unreachable),
            Err(Failed::Broken) => {
                self.fails(Why::Unreachable);
                return Sent::MayHaveRun;
            }
        };
        match response.status() {
            StatusCode::OK => self.hear(&conn, number, response.into_body(), ctx).await,
            StatusCode::NOT_FOUND => Sent::NotRun(Why::NotHere),
            StatusCode::PAYLOAD_TOO_LARGE => Sent::NotRun(Why::TooLarge),
            StatusCode::SERVICE_UNAVAILABLE if response.headers().contains_key(IS_STOPPING) => {
                self.fails(Why::Stopping)
            }
            StatusCode::SERVICE_UNAVAILABLE => Sent::NotRun(Why::Full),
            status => {
                tracing::debug!(peer = self.id, %status, "a call was not taken over");
                self.drop_connection(&conn);
                Sent::NotRun(Why::Strange)
            }
        }
    }

    /// Others are asked first for a while.
    fn fails(&self, why: Why) -> Sent {
        *self.failed.lock() = Some(Instant::now());
        Sent::NotRun(why)
    }

    /// Takes in what comes back until the outcome, passes it on, and answers what is asked.
    async fn hear(&self, conn: &Arc<Conn>, number: u64, mut body: Incoming, ctx: &Ctx) -> Sent {
        let mut come = BytesMut::new();
        let mut answering = Answering::default();
        loop {
            let frame = match wire::take(&mut come, self.own.frame_bytes_max) {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    tokio::select! {
                        biased;
                        () = answering.next() => {}
                        more = chunk(&mut body) => match more {
                            Some(Ok(bytes)) => come.extend_from_slice(&bytes),
                            Some(Err(_)) | None => return Sent::MayHaveRun,
                        },
                    }
                    continue;
                }
                Err(()) => {
                    tracing::warn!(peer = self.id, "what came back of a call is no frame of ours");
                    return Sent::MayHaveRun;
                }
            };
            match frame {
                Frame::Outcome(outcome) => return Sent::Outcome(outcome),
                Frame::Question(question, what) => {
                    let (conn, ctx) = (Arc::clone(conn), ctx.clone());
                    answering.add(move |is_room| async move {
                        let answer = if is_room { back::answer(what, &ctx).await } else { back::no_room() };
                        let answer = wire::Answer { call: number, question, answer };
                        let body = serde_json::to_vec(&answer).unwrap_or_default().into();
                        let own = conn.next.fetch_add(1, Relaxed);
                        // Where it does not arrive, the call has ended there.
                        let _ = conn.send(ANSWER, own, body).await;
                    });
                }
                message => wire::pass_on(message, ctx.outbox.as_deref()),
            }
        }
    }

    /// The connection that there is, or a new one. Who comes while one is made waits for it too.
    async fn connection(self: &Arc<Self>) -> Result<Arc<Conn>, Why> {
        let mut made = {
            let mut state = self.state.lock();
            match &*state {
                State::Up(conn) if !conn.sender.is_closed() => return Ok(Arc::clone(conn)),
                State::Connecting(made) if made.has_changed().is_ok() => made.clone(),
                _ => {
                    let (sender, made) = watch::channel(None);
                    *state = State::Connecting(made.clone());
                    let peer = Arc::clone(self);
                    self.own.runtime.spawn(async move {
                        let made = peer.connect().await;
                        *peer.state.lock() = match &made {
                            Ok(conn) => State::Up(Arc::clone(conn)),
                            Err(_) => State::Down,
                        };
                        sender.send_replace(Some(made));
                    });
                    made
                }
            }
        };
        let made = made.wait_for(Option::is_some).await;
        made.ok().and_then(|made| made.clone()).unwrap_or(Err(Why::Unreachable))
    }

    /// Uses this connection no more.
    fn drop_connection(&self, conn: &Arc<Conn>) {
        let mut state = self.state.lock();
        if matches!(&*state, State::Up(up) if Arc::ptr_eq(up, conn)) {
            *state = State::Down;
        }
    }

    async fn connect(&self) -> Result<Arc<Conn>, Why> {
        let made = timeout(self.own.connect_timeout, self.try_connect()).await;
        let made = made.unwrap_or_else(|_| Err((Why::Unreachable, "there was no connection in time".into())));
        let (why, error) = match made {
            Ok(conn) => {
                let was_strange = self.strange.lock().take().is_some();
                if was_strange {
                    tracing::info!(peer = self.id, at = self.at, "calls are handed over there from now on");
                }
                return Ok(conn);
            }
            Err(failed) => failed,
        };
        if !matches!(why, Why::Strange | Why::NotYet) {
            tracing::debug!(peer = self.id, at = self.at, error, "an instance cannot be reached");
            return Err(why);
        }
        // Each call tries: it is one of us again as soon as it can be, and is not spoken of each time until then.
        let before = self.strange.lock().replace(error.clone());
        if before.as_ref() != Some(&error) {
            match why {
                Why::NotYet => {
                    tracing::info!(peer = self.id, at = self.at, error, "no calls are handed over there yet")
                }
                _ => tracing::warn!(peer = self.id, at = self.at, error, "no calls are handed over there"),
            }
        }
        Err(why)
    }

    pub(super) async fn try_connect(&self) -> Result<Arc<Conn>, (Why, String)> {
        let unreachable = |error: &dyn std::fmt::Display| (Why::Unreachable, error.to_string());
        #[cfg(test)]
        self.connections.fetch_add(1, Relaxed);
        let stream = TcpStream::connect(&self.at).await.map_err(|error| unreachable(&error))?;
        let _ = stream.set_nodelay(true); // it works without
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .keep_alive_interval(PING.0)
            .keep_alive_timeout(PING.1)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(16 * WINDOW_BYTES)
            .max_concurrent_reset_streams(self.own.in_flight_max)
            .max_local_error_reset_streams(None);
        let handshake = http.handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|error| unreachable(&error))?;
        tokio::spawn(connection); // ends with the sender, or with the other side
        let own = self.own.key.load_full();
        let hello = Hello {
            form: proof::FORM,
            key: own.from,
            from: self.own.id.clone(),
            to: self.id.clone(),
            nonce: proof::nonce().map_err(|error| (Why::Unreachable, error))?,
            fingerprint: own.fingerprint(),
        };
        let body = serde_json::to_vec(&hello).unwrap_or_default();
        let request = request(HELLO).body(Whole::new(body.into())).map_err(|error| unreachable(&error))?;
        let response = sender.clone().send_request(request).await.map_err(|error| unreachable(&error))?;
        let strange = |what: &str| (Why::Strange, what.to_owned());
        match response.status() {
            StatusCode::OK => {}
            StatusCode::SERVICE_UNAVAILABLE => return Err(takes_none(&response)),
            StatusCode::UPGRADE_REQUIRED => {
                let theirs = response.headers().get(FORM).and_then(|form| form.to_str().ok()).unwrap_or("another one");
                return Err(strange(&format!(
                    "it is of another version, whose form of handing calls over is {theirs} and here {}: tools that only \
                     it has are answered with 503 until both are of one",
                    proof::FORM
                )));
            }
            StatusCode::MISDIRECTED_REQUEST => {
                return Err(strange("another instance is there, which is what cluster.forward_advertise is for"));
            }
            status => return Err(strange(&format!("what is there answers {status}"))),
        }
        let welcome = collect(response.into_body(), WELCOME_BYTES_MAX).await;
        let welcome = welcome.and_then(|body| serde_json::from_slice::<Welcome>(&body).ok());
        let welcome = welcome.ok_or_else(|| strange("what is there is no instance"))?;
        let Some(key) = proof::welcomed(&own.secret, &hello, &welcome) else {
            self.own.key_differs.notify_one();
            let (told, passes) = own.differs(welcome.key, &welcome.fingerprint);
            return Err((if passes { Why::NotYet } else { Why::Strange }, told));
        };
        let conn = Conn { sender, key, next: AtomicU64::new(1) };
        // A call may follow late, or never, and there a stranger is soon closed.
        match conn.send(KNOWN, 0, Bytes::new()).await {
            Ok(response) if response.status().is_success() => Ok(Arc::new(conn)),
            Ok(response) if response.status() == StatusCode::SERVICE_UNAVAILABLE => Err(takes_none(&response)),
            Ok(response) => Err(strange(&format!("it answers a proof with {}", response.status()))),
            Err(_) => Err((Why::Unreachable, "the connection broke".into())),
        }
    }
}

/// Why one of us that answers 503 takes nothing now.
fn takes_none(response: &Response<Incoming>) -> (Why, String) {
    let why = if response.headers().contains_key(IS_STOPPING) { Why::Stopping } else { Why::Full };
    (why, format!("it takes no connection now: {}", response.status()))
}

fn request(path: &str) -> http::request::Builder {
    Request::post(format!("http://node{path}")).header(header::CONTENT_TYPE, "application/octet-stream")
}

/// Why a request has no response.
enum Failed {
    /// It is certain that nobody has seen it.
    NotSent,
    Broken,
}

impl Conn {
    async fn send(&self, path: &str, number: u64, body: Bytes) -> Result<Response<Incoming>, Failed> {
        let proof = proof::sign(&self.key, path, number, &body);
        let request = request(path).header(PROOF, proof).body(Whole::new(body));
        let request = request.map_err(|_| Failed::NotSent)?;
        self.sender.clone().try_send_request(request).await.map_err(|mut failed| {
            if failed.take_message().is_some() || is_refused(failed.error()) { Failed::NotSent } else { Failed::Broken }
        })
    }
}

/// Whether the other side said that it has not looked at the request: by its last words, which name the last one that it
/// did look at, or of this one alone.
fn is_refused(error: &hyper::Error) -> bool {
    let h2 = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
    h2.is_some_and(|error| {
        error.is_remote()
            && (error.is_go_away() || error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM))
    })
}
