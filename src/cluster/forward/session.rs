//! One connection of another instance, and the calls on it. Who connects says who it is (a hello of 4 KiB at most, one at a
//! time) and proves in the head of each request that it has the key of the deployment. Without that proof nothing of a
//! request's body is read and no memory is set aside for it: it is refused, and counted; who has shown none a few seconds
//! after connecting is closed. What is taken over runs in a task of its own, which ends when the other instance takes the
//! call back or is gone. Where connections come from is `listener`'s business.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch},
    time::{sleep, timeout},
};

use super::{
    ANSWER, CALL, FORM, HELLO, IS_STOPPING, KNOWN, PROOF,
    back::{Back, Client, Deferred},
    body::Body,
    listener::{KIB, Shared, Turned},
    peer::collect,
    proof::{self, Code, Form, Hello, Proven, Used, Welcome},
    wire::{self, Call},
};
use crate::{cluster::node::is_id, input::Exchange};

/// For the last frames to be taken.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(1);
/// So long a call may be on its way here; what is not there by then holds memory for nothing.
const BODY_WITHIN: Duration = Duration::from_secs(5);
const HELLO_BYTES_MAX: usize = 4096;
const HEADERS_BYTES_MAX: u32 = 16 * 1024;
const WINDOW_BYTES: u32 = 1 << 20;
/// Between two pings of a connection, and how long one may take: who hangs or is cut off loses its calls.
const PING: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(10));

/// One connection.
struct Session {
    shared: Arc<Shared>,
    /// From where.
    at: SocketAddr,
    /// Who connected, and the key of the connection.
    known: OnceLock<(Hello, Code)>,
    /// Its number among those without a proof.
    number: u64,
    /// A request had the proof that it has the key of the deployment.
    is_proven: AtomicBool,
    /// Something here was without a proof, and was told.
    is_told: AtomicBool,
    /// Held while a hello is read: strangers have one at a time.
    greeting: Semaphore,
    used: Used,
    /// The calls that run, by their numbers.
    backs: Mutex<HashMap<u64, Arc<Back>>>,
}

pub(super) async fn serve(
    (stream, at): (TcpStream, SocketAddr),
    shared: Arc<Shared>,
    (number, mut crowded): (u64, oneshot::Receiver<Infallible>),
    mut stopped: watch::Receiver<bool>,
    _place: Option<OwnedSemaphorePermit>,
) {
    let _ = stream.set_nodelay(true); // it works without
    let limits = shared.limits;
    let session = Arc::new(Session {
        shared,
        at,
        number,
        known: OnceLock::new(),
        is_proven: AtomicBool::new(false),
        is_told: AtomicBool::new(false),
        greeting: Semaphore::new(1),
        used: Used::default(),
        backs: Mutex::default(),
    });
    let served = Arc::clone(&session);
    let service = service_fn(move |request| {
        let session = Arc::clone(&served);
        async move { Ok::<_, Infallible>(session.answer(request).await.unwrap_or_else(refusal)) }
    });
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new())
        .max_concurrent_streams(u32::try_from(limits.calls_max.saturating_mul(2)).unwrap_or(u32::MAX))
        .max_header_list_size(HEADERS_BYTES_MAX)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(16 * WINDOW_BYTES)
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        // Calls that are taken back are no flood.
        .max_pending_accept_reset_streams(limits.calls_max)
        .max_local_error_reset_streams(limits.calls_max);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let mut proof = pin!(sleep(limits.proof_within));
    let (mut is_waiting, mut may_be_crowded) = (true, true);
    loop {
        tokio::select! {
            served = connection.as_mut() => {
                if let Err(error) = served {
                    tracing::debug!(%error, "the connection of another instance ended");
                }
                session.has_left();
                break;
            }
            () = async { drop(stopped.wait_for(|stop| *stop).await) } => {
                connection.as_mut().graceful_shutdown();
                let _ = timeout(LAST_WORDS, connection.as_mut()).await;
                break;
            }
            () = proof.as_mut(), if is_waiting => {
                is_waiting = false;
                if !session.is_proven.load(Relaxed) {
                    session.forged("there was no proof in time");
                    break;
                }
            }
            _ = &mut crowded, if may_be_crowded => {
                may_be_crowded = false; // also when it is proven
                if !session.is_proven.load(Relaxed) {
                    session.forged("there was no proof before many others came");
                    break;
                }
            }
        }
    }
    session.shared.unproven.leave(number);
    session.backs.lock().drain().for_each(|(_, back)| back.end());
}

/// A request that gets no more than a status.
#[derive(Clone, Copy, Debug)]
enum Refused {
    Status(StatusCode),
    /// It speaks another form of what instances say to each other.
    Form,
    Stopping,
}

fn refusal(refused: Refused) -> Response<Body> {
    match refused {
        Refused::Status(code) => status(code),
        Refused::Form => {
            let mut response = status(StatusCode::UPGRADE_REQUIRED);
            response.headers_mut().insert(FORM, HeaderValue::from(proof::FORM));
            response
        }
        Refused::Stopping => {
            let mut response = status(StatusCode::SERVICE_UNAVAILABLE);
            response.headers_mut().insert(IS_STOPPING, HeaderValue::from_static("1"));
            response
        }
    }
}

fn status(code: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::default());
    *response.status_mut() = code;
    response
}

impl Shared {
    fn turned(&self, turned: Turned) -> Refused {
        let (count, refused) = match turned {
            Turned::NotHere => (&self.taken.not_here, Refused::Status(StatusCode::NOT_FOUND)),
            Turned::Stopping => (&self.taken.stopping, Refused::Stopping),
            Turned::Full => (&self.taken.full, Refused::Status(StatusCode::SERVICE_UNAVAILABLE)),
        };
        count.fetch_add(1, Relaxed);
        refused
    }

    fn broken(&self) -> Refused {
        self.taken.broken.fetch_add(1, Relaxed);
        Refused::Status(StatusCode::BAD_REQUEST)
    }
}

impl Session {
    fn forged(&self, why: &str) -> Refused {
        self.is_told.store(true, Relaxed);
        self.shared.taken.forged.fetch_add(1, Relaxed);
        if let Some(left_out) = self.shared.said.may(Instant::now()) {
            let at = self.at;
            tracing::warn!(%at, left_out, why, "a request at cluster.forward_listen is of no instance of this deployment");
        }
        Refused::Status(StatusCode::UNAUTHORIZED)
    }

    /// Who connected has closed the connection. Who said hello and then shows no proof has found that the keys differ: it
    /// says so where it runs, and here nobody would know of it.
    fn has_left(&self) {
        let Some((hello, _)) = self.known.get() else { return };
        if self.is_proven.load(Relaxed) || self.is_told.load(Relaxed) {
            return;
        }
        let shared = &self.shared;
        shared.taken.forged.fetch_add(1, Relaxed);
        let Some(left_out) = shared.said.may(Instant::now()) else { return };
        let (at, node) = (self.at, &hello.from);
        match shared.key.load().differs(hello.key, &hello.fingerprint) {
            (why, true) => tracing::info!(%at, node, left_out, why, "an instance hands no calls over here yet"),
            (why, false) => tracing::warn!(
                %at,
                node,
                left_out,
                why,
                "who said hello at cluster.forward_listen left without a proof that it has the key: it hands no calls over here"
            ),
        }
    }

    async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, Refused> {
        let (head, body) = request.into_parts();
        let proof = head.headers.get(PROOF).and_then(|value| value.to_str().ok());
        match (&head.method, head.uri.path()) {
            (&Method::POST, HELLO) => self.hello(body).await,
            (&Method::POST, path @ (KNOWN | CALL | ANSWER)) => {
                let known = self.known.get().ok_or_else(|| self.forged("no hello came first"))?;
                let proof = proof.ok_or_else(|| self.forged("there is no proof"))?;
                let proven = proof::verify(&known.1, path, proof).filter(|proven| self.used.take(proven.number));
                let proven = proven.ok_or_else(|| self.forged("the proof is wrong"))?;
                if !self.is_proven.swap(true, Relaxed) {
                    self.shared.unproven.leave(self.number);
                }
                if path == KNOWN && proven.length == 0 {
                    return Ok(status(StatusCode::NO_CONTENT)); // also while calls have all the memory
                }
                let (body, memory) = self.read(body, &proven).await?;
                match path {
                    CALL => self.call(proven.number, body, memory),
                    ANSWER => self.take_answer(&body),
                    _ => Ok(status(StatusCode::NO_CONTENT)),
                }
            }
            _ => Err(self.forged("nothing is there")),
        }
    }

    async fn hello(&self, body: Incoming) -> Result<Response<Body>, Refused> {
        let shared = &self.shared;
        let _turn = self.greeting.try_acquire().map_err(|_| self.forged("it says hello twice at once"))?;
        let body = timeout(BODY_WITHIN, collect(body, HELLO_BYTES_MAX)).await.ok().flatten();
        let form = body.as_ref().and_then(|body| serde_json::from_slice::<Form>(body).ok());
        if let Some(Form { form }) = form.filter(|form| form.form != proof::FORM) {
            shared.taken.other_form.fetch_add(1, Relaxed);
            if let Some(left_out) = shared.said.may(Instant::now()) {
                let own = proof::FORM;
                tracing::warn!(
                    left_out,
                    form,
                    own,
                    "what says hello in the form of another version hands no calls over here"
                );
            }
            return Err(Refused::Form);
        }
        let hello = body.and_then(|body| serde_json::from_slice::<Hello>(&body).ok());
        let hello = hello.filter(|hello| is_id(&hello.from) && proof::is_nonce(&hello.nonce));
        let hello = hello.ok_or_else(|| self.forged("what was said is no hello"))?;
        if hello.to != shared.id {
            return Err(Refused::Status(StatusCode::MISDIRECTED_REQUEST));
        }
        let nonce = proof::nonce().map_err(|_| Refused::Status(StatusCode::INTERNAL_SERVER_ERROR))?;
        let own = shared.key.load();
        let (welcome, key) = proof::welcome(&own.secret, &hello, nonce);
        let welcome = Welcome { key: own.from, fingerprint: own.fingerprint(), ..welcome };
        self.known.set((hello, key)).map_err(|_| self.forged("it said hello twice"))?;
        Ok(Response::new(Body::whole(serde_json::to_vec(&welcome).unwrap_or_default().into())))
    }

    /// Reads a body of one of us, for which there has to be memory.
    async fn read(&self, body: Incoming, proven: &Proven) -> Result<(Bytes, OwnedSemaphorePermit), Refused> {
        let shared = &self.shared;
        let is_as_said = body.size_hint().exact() == Some(proven.length);
        let length = usize::try_from(proven.length).ok().filter(|_| is_as_said);
        let length = length.ok_or_else(|| self.forged("the body is longer or shorter than its proof says"))?;
        if length > shared.limits.call_bytes_max {
            shared.broken();
            return Err(Refused::Status(StatusCode::PAYLOAD_TOO_LARGE));
        }
        let kib = u32::try_from(length / KIB + 1).unwrap_or(u32::MAX);
        let memory = Arc::clone(&shared.memory).try_acquire_many_owned(kib);
        let memory = memory.map_err(|_| shared.turned(Turned::Full))?;
        let body = timeout(BODY_WITHIN, collect(body, length)).await.ok().flatten().ok_or_else(|| shared.broken())?;
        if !proven.is_of(&body) {
            return Err(self.forged("the body is not the one of its proof"));
        }
        Ok((body, memory))
    }

    fn call(
        self: &Arc<Self>,
        number: u64,
        body: Bytes,
        memory: OwnedSemaphorePermit,
    ) -> Result<Response<Body>, Refused> {
        let shared = &self.shared;
        let (mut call, arguments) = Call::decode(body).ok_or_else(|| shared.broken())?;
        shared.runs.admit(&call.tool).map_err(|turned| shared.turned(turned))?;
        let place = Place::enter(self, number, memory).ok_or_else(|| shared.turned(Turned::Full))?;
        shared.taken.run.fetch_add(1, Relaxed);
        let mut ctx = call.ctx(Instant::now());
        let back = Arc::<Back>::default();
        ctx.outbox = call.hears.map(|hears| Arc::new(shared.runs.outbox(hears)));
        if call.asks() && ctx.outbox.is_some() {
            ctx.exchange = Exchange::Stream(Arc::new(Client(Arc::clone(&back))));
        }
        if call.defers {
            ctx.deferred = Some(Arc::new(Deferred::new(Arc::clone(&back))));
        }
        self.backs.lock().insert(number, Arc::clone(&back));
        let outbox = ctx.outbox.clone();
        let run = shared.runs.run(call.tool, arguments, ctx);
        Ok(Response::new(Body::of_call(run, outbox, back, place)))
    }

    fn take_answer(&self, body: &[u8]) -> Result<Response<Body>, Refused> {
        let answer: wire::Answer = serde_json::from_slice(body).map_err(|_| self.shared.broken())?;
        let back = self.backs.lock().get(&answer.call).map(Arc::clone);
        // Whoever asked may have gone.
        let is_taken = back.is_some_and(|back| back.answered(answer.question, answer.answer));
        Ok(status(if is_taken { StatusCode::NO_CONTENT } else { StatusCode::GONE }))
    }
}

/// A call's place among those that are taken over.
pub(super) struct Place {
    session: Arc<Session>,
    number: u64,
    _memory: OwnedSemaphorePermit,
}

impl Place {
    fn enter(session: &Arc<Session>, number: u64, memory: OwnedSemaphorePermit) -> Option<Self> {
        let place = Self { session: Arc::clone(session), number, _memory: memory };
        let shared = &session.shared;
        (shared.taken.inside.fetch_add(1, Relaxed) < shared.limits.calls_max).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.session.shared.taken.inside.fetch_sub(1, Relaxed);
        let back = self.session.backs.lock().remove(&self.number);
        if let Some(back) = back {
            back.end();
        }
    }
}
