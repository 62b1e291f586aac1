//! The admin listener: a few paths for operators and balancers, on a thread and a runtime of its own, so that it
//! answers whatever the rest is doing. It shares the front door's checks of Host and Origin, and of who wants something
//! changed. What metrics there are is said elsewhere.

use std::{
    convert::Infallible,
    fmt, io,
    net::{IpAddr, TcpListener as StdListener},
    pin::Pin,
    sync::Arc,
    thread,
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    Method, Request, Response, body::Incoming, header, http::request::Parts, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, oneshot},
};

use crate::{
    audit::Audit,
    cluster::Cluster,
    front::{
        body::Body,
        checks::{self, Hosts, Origins, said_once},
        headers::Headers,
        intake::{self, Bodies},
        limits,
        reply::{self, Refused},
    },
    identity::Identity,
    mcp::code::Refusal,
    shutdown::Drain,
    telemetry::exposition,
    units::ByteSize,
};

/// Connections at once: operators, a balancer, a scraper.
const CONNECTIONS_MAX: usize = 128;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the admin listener answers from.
pub(crate) struct Admin {
    pub(crate) hosts: Hosts,
    pub(crate) drain: Arc<Drain>,
    /// All metrics as text, as long as there is a server.
    pub(crate) metrics: Box<dyn Fn() -> Option<String> + Send + Sync>,
    /// Whether who sent these headers may change something by this path, and who it is; nobody when nobody is asked.
    pub(crate) administrator: Box<Administrator>,
    /// Where calls are recorded, when they are.
    pub(crate) audit: Option<Audit>,
    /// What instances share, where there are several.
    pub(crate) cluster: Option<Arc<Cluster>>,
    /// Has kept results forgotten, as long as there is a server; or says what is wrong with the wish.
    pub(crate) invalidate: Box<Invalidate>,
}

type Administrator = dyn Fn(&Headers<'_>, IpAddr, &str) -> Result<Option<Arc<Identity>>, Refused> + Send + Sync;
type Invalidate = dyn Fn(&Invalidation, &Wishing) -> Option<Result<Told, Refusal>> + Send + Sync;
/// Where results are forgotten, once that is known.
pub(crate) type Told = Pin<Box<dyn Future<Output = Reach> + Send>>;

/// Where results are forgotten by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// On all instances, or on the only one.
    All,
    /// On this one: the others cannot be told yet.
    Here,
}

/// Who wants something changed.
pub(crate) struct Wishing {
    /// Nobody where nobody is asked.
    pub(crate) identity: Option<Arc<Identity>>,
    pub(crate) address: IpAddr,
}

/// Which kept results are not to be served any more.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Invalidation {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tool: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) arguments: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) caller: Option<String>,
    /// All of them. It has to be said, so that nothing left out by mistake comes to it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) all: bool,
}

impl Invalidation {
    fn names_nothing(&self) -> bool {
        self.tool.is_none() && self.arguments.is_none() && self.caller.is_none()
    }
}

/// The member of the answer that says where results are not forgotten yet.
pub(crate) const OTHERS: &str = "others";
const NOT_YET: &str = "not told yet, since Redis is away or takes no writes: the other instances serve what they kept \
                       until it is back and does, and are told then, as long as this one runs";

/// A body here names a tool and its arguments.
const BODY_BYTES_MAX: ByteSize = ByteSize::kib(64);

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin").field("hosts", &self.hosts).field("drain", &self.drain).finish_non_exhaustive()
    }
}

/// Starts the thread. It ends when what is returned is dropped.
pub(crate) fn start(listener: StdListener, admin: Admin) -> io::Result<oneshot::Sender<Infallible>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel();
    thread::Builder::new().name("admin".into()).spawn(move || {
        let served = runtime.block_on(async {
            tokio::select! {
                served = serve(listener, Arc::new(admin)) => served,
                _ = stopped => Ok(()),
            }
        });
        if let Err(error) = served {
            tracing::error!(%error, "the admin listener ended");
        }
    })?;
    Ok(stop)
}

async fn serve(listener: StdListener, admin: Arc<Admin>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return Ok(()) };
        let Ok((stream, peer)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let admin = Arc::clone(&admin);
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let admin = Arc::clone(&admin);
                async move {
                    let (head, body) = request.into_parts();
                    let answered = admin.answer(&head, body, peer.ip()).await;
                    Ok::<_, Infallible>(answered.unwrap_or_else(Refused::into_response))
                }
            });
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
            let _ = http.serve_connection(TokioIo::new(stream), service).await; // what a prober breaks off is no news
            drop(permit);
        });
    }
}

impl Admin {
    async fn answer(&self, request: &Parts, body: Incoming, address: IpAddr) -> Result<Response<Body>, Refused> {
        let headers = Headers::scan(&request.headers);
        said_once(&headers)?;
        self.hosts.check(request.uri.authority().map(|authority| authority.as_str()), request.version, &headers)?;
        Origins::new(&[], "http://").check(&headers, &self.hosts)?;
        match (&request.method, request.uri.path()) {
            (&Method::GET | &Method::HEAD, "/health") => Ok(reply::alive()),
            (&Method::GET | &Method::HEAD, "/ready") => Ok(reply::ready(
                !self.drain.is_started(),
                self.audit.as_ref(),
                self.cluster.as_ref().map(|cluster| cluster.word()),
            )),
            (&Method::GET | &Method::HEAD, "/metrics") => match (self.metrics)() {
                Some(text) => Ok(reply::text(text, exposition::CONTENT_TYPE)),
                None => Err(Refusal::overloaded(1, "the server has stopped").into()),
            },
            (&Method::GET | &Method::HEAD, "/nodes") => match &self.cluster {
                Some(cluster) => Ok(reply::text(format!("{}\n", cluster.nodes_json()), "application/json")),
                None => {
                    let message = "this instance is alone; cluster.redis makes several of them one server";
                    Err(Refusal { status: 404, ..Refusal::invalid_request(message) }.into())
                }
            },
            (&Method::POST, "/cache/invalidate") => {
                let identity = (self.administrator)(&headers, address, request.uri.path())?;
                checks::content(&headers)?;
                let body = whole(body).await.map_err(own_limit)?;
                let wish = invalidation(&body)?;
                match (self.invalidate)(&wish, &Wishing { identity, address }) {
                    Some(Ok(reach)) => {
                        let mut told = json!({ "forgotten": wish });
                        if reach.await == Reach::Here {
                            told[OTHERS] = NOT_YET.into();
                        }
                        Ok(reply::text(format!("{told}\n"), "application/json"))
                    }
                    Some(Err(refusal)) => Err(refusal.into()),
                    None => Err(Refusal::overloaded(1, "the server has stopped").into()),
                }
            }
            (_, "/health" | "/ready" | "/metrics" | "/nodes") => Err(no_such_method("GET, HEAD")),
            (_, "/cache/invalidate") => Err(no_such_method("POST")),
            _ => {
                let message = "nothing is served at this path of the admin listener; it has /health, /ready, /metrics, \
                               /nodes, and /cache/invalidate for POST";
                Err(Refusal { status: 404, ..Refusal::invalid_request(message) }.into())
            }
        }
    }
}

/// The body, within the limits of this listener.
async fn whole(mut body: Incoming) -> Result<Bytes, Refusal> {
    let limits = limits::Config { request_bytes_max: BODY_BYTES_MAX, ..limits::Config::default() };
    let length = checks::length(&body, &limits)?;
    intake::read(&mut body, length, &limits, &Bodies::new(BODY_BYTES_MAX.as_usize())).await
}

/// The endpoint names the setting that a body is over; here none is.
fn own_limit(refusal: Refusal) -> Refusal {
    if refusal.status != 413 {
        return refusal;
    }
    let message =
        format!("the body is larger than {BODY_BYTES_MAX}, which is the most at the admin listener, whatever is set");
    Refusal { message, ..refusal }
}

fn no_such_method(allowed: &'static str) -> Refused {
    let message = format!("this path of the admin listener takes {allowed}");
    Refused::with(Refusal { status: 405, ..Refusal::invalid_request(message) }, header::ALLOW, allowed)
}

const WAYS: &str = "send {\"tool\": NAME} for the results of a tool, {\"tool\": NAME, \"arguments\": OBJECT} for those of one \
                    call (with \"caller\" too where results are not public), {\"caller\": CALLER} for those of a caller, \
                    or {\"all\": true}";

fn invalidation(body: &[u8]) -> Result<Invalidation, Refusal> {
    let wish: Invalidation =
        serde_json::from_slice(body).map_err(|error| Refusal::invalid_request(format!("{error}; {WAYS}")))?;
    match (wish.all, wish.names_nothing()) {
        (true, true) | (false, false) => Ok(wish),
        (false, true) => Err(Refusal::invalid_request(format!("this names no results; {WAYS}"))),
        (true, false) => {
            Err(Refusal::invalid_request(format!("all results and some of them cannot be meant at once; {WAYS}")))
        }
    }
}
