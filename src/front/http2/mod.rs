//! HTTP/2 on a connection: many requests at once, each a stream in a task of its own, with the same promises that
//! HTTP/1.1 has. Where hyper has a limit it is set here; where it has none, there is `meter` for frames that do nothing,
//! `paced` for answers that are not taken, and the executor for streams whose client takes nothing for too long.

mod config;
pub(crate) mod meter;
mod paced;

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    net::IpAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::{
    Request, Response, StatusCode,
    body::{Body as _, Frame, Incoming},
    header::{CONNECTION, HOST, HeaderValue},
    rt::{Executor, Read, Write},
    server::conn::http2::{self, Connection as Http2},
    service::{HttpService, service_fn},
};
use hyper_util::rt::TokioTimer;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Sleep, sleep_until},
};

pub use self::config::Config;
use self::{
    meter::{Flood, Meter},
    paced::{Paced, Untaken},
};
use crate::{
    front::{
        came::{Came, Inflow},
        connection::Connection,
        driven::{Driven, Protocol},
        pressure::Level,
        reply, serve,
        unread::{Taking, UNREAD_BYTES_MAX},
        watched::{Metered, Watched},
    },
    mcp::code::Refusal,
    telemetry::rarely::Rarely,
};

/// What a client sends first on every connection of HTTP/2.
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

tokio::task_local! {
    /// Of the stream whose task runs.
    static UNTAKEN: Arc<Untaken>;
}

/// The settings, and what is counted.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    floods: AtomicU64,
    untaken: AtomicU64,
    /// Requests that are not over, on all connections together: as many as over HTTP/1.1, where each has a connection.
    open: AtomicUsize,
    open_max: usize,
    said: Rarely,
}

/// A request that is not over. Its end is counted on drop.
pub(super) struct Open(Arc<Connection>);

impl Open {
    fn of(conn: &Arc<Connection>) -> Option<Self> {
        let shared = &conn.front.http2;
        let open = Self(Arc::clone(conn));
        (shared.open.fetch_add(1, Relaxed) < shared.open_max).then_some(open)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.front.http2.open.fetch_sub(1, Relaxed);
    }
}

impl Shared {
    pub(crate) fn new(config: Config, open_max: usize) -> Self {
        let (floods, untaken) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { config, floods, untaken, open: AtomicUsize::new(0), open_max, said: Rarely::new() }
    }

    /// Connections that were ended for a flood of frames.
    pub(crate) fn floods(&self) -> u64 {
        self.floods.load(Relaxed)
    }

    /// Answers that were given up since their client did not take them.
    pub(crate) fn untaken(&self) -> u64 {
        self.untaken.load(Relaxed)
    }

    /// Counts and logs a flood, and makes of it what ends the connection.
    pub(super) fn flooded(&self, peer: IpAddr, flood: Flood) -> io::Error {
        self.floods.fetch_add(1, Relaxed);
        if let Some(left_out) = self.said.may(Instant::now()) {
            let frame = flood.frame;
            tracing::warn!(%peer, frame, left_out, "a flood of HTTP/2 frames that do nothing: the connection is closed");
        }
        io::Error::other("more frames that do nothing than http2.control_frames_per_s_max")
    }
}

/// Drives a connection until it ends.
pub(crate) fn drive<S>(conn: Arc<Connection>, stream: S) -> impl Future<Output = ()> + Send
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let config = &conn.front.http2.config;
    let meter = Meter::new(config.control_frames_per_s_max, Instant::now());
    let io = Metered::new(Watched::new(stream, Arc::clone(&conn)), meter);
    let service = {
        let conn = Arc::clone(&conn);
        service_fn(move |request| {
            let conn = Arc::clone(&conn);
            // Boxed, as it is moved into its task and then from state to state.
            Box::pin(async move { Ok::<_, Infallible>(answer(conn, request).await) })
        })
    };
    let mut http = http2::Builder::new(Streams(Arc::clone(&conn)));
    http.timer(TokioTimer::new())
        .max_concurrent_streams(config.streams_max)
        .max_header_list_size(header_list_bytes_max(&conn))
        .max_frame_size(small(config.frame_bytes_max.0))
        .initial_stream_window_size(small(config.stream_window_bytes.0))
        .initial_connection_window_size(small(config.connection_window_bytes.0))
        .max_send_buf_size(config.send_buffer_bytes_max.as_usize())
        .max_pending_accept_reset_streams(config.pending_resets_max)
        .max_local_error_reset_streams(config.error_resets_max)
        .keep_alive_interval(config.ping_interval())
        .keep_alive_timeout(config.ping_timeout());
    let protocol = Box::pin(http.serve_connection(io, service));
    Driven::new(conn, protocol)
}

fn header_list_bytes_max(conn: &Connection) -> u32 {
    match conn.front.http2.config.header_list_bytes_max.0 {
        0 => small(conn.front.limits.header_bytes_max.0.saturating_mul(2)),
        size => small(size),
    }
}

/// Sizes are in range, which is checked at the start.
fn small(size: u64) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// Answers one request, which is made to look as one of HTTP/1.1 does.
async fn answer(conn: Arc<Connection>, mut request: Request<Incoming>) -> Response<Paced> {
    let busy = conn.begin();
    let authority = request.uri().authority().map(|authority| authority.as_str());
    if !request.headers().contains_key(HOST)
        && let Some(host) = authority.and_then(|authority| HeaderValue::from_str(authority).ok())
    {
        request.headers_mut().insert(HOST, host);
    }
    let (count, max) = (request.headers().len(), conn.front.limits.headers_max);
    let open = Open::of(&conn);
    let mut response = if open.is_none() {
        let message = "as many requests are open as there may be connections, limits.connections_max";
        let refused = reply::Refused::from(Refusal::overloaded(1, message));
        conn.front.refusals.count(refused.reason());
        refused.into_response()
    } else if count > max {
        let message = format!("there are {count} headers; limits.headers_max is {max}");
        let refused = reply::Refused::from(Refusal { status: 431, ..Refusal::invalid_request(message) });
        conn.front.refusals.count(refused.reason());
        refused.into_response()
    } else {
        let (head, body) = request.into_parts();
        serve(Arc::clone(&conn), Came::ByHyper(Box::new(head)), Inflow::ByHyper(body)).await
    };
    // HTTP/1.1 ends a connection by this header. Here most that was wrong with a request is over with its stream; but not a
    // certificate that has ended, and not a want of memory.
    let says_close = response.headers_mut().remove(CONNECTION).is_some();
    if says_close && (response.status() == StatusCode::FORBIDDEN || conn.front.pressure.level() >= Level::KeepAlive) {
        conn.end_soon();
    }
    let untaken = UNTAKEN.try_with(Arc::clone).unwrap_or_default();
    response.map(|body| Paced::new(body, &conn, untaken, (busy, open)))
}

/// The body of a request that was refused is taken before the answer for so long.
const REST_TIME: Duration = Duration::from_millis(200);

/// Takes the body of a request that was refused without it, when it is short and on its way: an answer that comes before
/// the end of the request has a reset in its wake, for which some clients forget the answer.
pub(super) async fn take_rest(mut body: Incoming) {
    let mut taking = Taking::new(UNREAD_BYTES_MAX, REST_TIME, REST_TIME);
    let bytes = |frame: Frame<Bytes>| frame.data_ref().map_or(0, Bytes::len) as u64;
    poll_fn(|cx| {
        taking.poll(cx, |cx| Pin::new(&mut body).poll_frame(cx).map(|frame| frame.and_then(Result::ok).map(bytes)))
    })
    .await;
}

/// Runs the streams of a connection, each in a task of its own. It ends when hyper ends it, which it does when the
/// client takes the request back and when the connection is gone; or when the client takes nothing for too long.
#[derive(Clone)]
struct Streams(Arc<Connection>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        tokio::spawn(look_after(Arc::clone(&self.0), stream));
    }
}

async fn look_after(conn: Arc<Connection>, stream: impl Future<Output = ()>) {
    let untaken = Arc::<Untaken>::default();
    let mut stream = pin!(UNTAKEN.scope(Arc::clone(&untaken), stream));
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    loop {
        // What the stream runs looks at the drain when it is polled, and this is who polls it then.
        let mut woken = pin!(conn.woken.notified());
        let ended = poll_fn(|cx| {
            if stream.as_mut().poll(cx).is_ready() {
                return Poll::Ready(true);
            }
            // Most answers are taken at once; only those that are not get a timer.
            while let Some(since) = untaken.since() {
                let due = conn.moment(since) + conn.front.limits.write_timeout();
                let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(due.into())));
                if timer.as_mut().poll(cx).is_pending() {
                    break;
                }
                if Instant::now() >= due {
                    conn.front.http2.untaken.fetch_add(1, Relaxed);
                    tracing::debug!(peer = %conn.peer, "a stream was reset: the client does not take its answer");
                    return Poll::Ready(true);
                }
                timer.as_mut().reset(due.into());
            }
            woken.as_mut().poll(cx).map(|()| false)
        });
        if ended.await {
            return;
        }
    }
}

impl<I, S> Protocol for Pin<Box<Http2<I, S, Streams>>>
where
    I: Read + Write + Unpin + 'static,
    S: HttpService<Incoming, ResBody = Paced>,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    const HAS_STREAMS: bool = true;

    fn hang_up(&mut self, _: &Connection) {
        self.as_mut().graceful_shutdown();
    }

    /// hyper keeps what it has, and ends it when nothing more comes (see `watched`).
    fn end(&mut self, conn: &Arc<Connection>) {
        conn.read_no_more();
    }
}
