//! HTTP/1.1 on a connection: its requests, one after the other. Plain ones are read and answered here (`plain`, `talk`
//! and `apart`, with `wire` for what comes in and `sending` for what goes out), which costs a part of what a general server
//! must do for any request. With the first that is not plain the connection is hyper's, to its end.

mod apart;
mod plain;
mod sending;
mod talk;
pub(crate) mod wire;

use std::{
    convert::Infallible,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use hyper::{
    header::{self, HeaderValue},
    server::conn::http1::{self, Connection as Hyper},
    service::{HttpService, service_fn},
};
use hyper_util::rt::TokioTimer;
use tokio::io::{AsyncRead, AsyncWrite};

use self::plain::{HandedOver, Talking};
use crate::front::{
    body::Body,
    came::{Came, Inflow},
    connection::Connection,
    driven::{Driven, Protocol},
    serve,
    watched::Watched,
};

/// hyper's buffer for one connection; beyond it, a head is refused with 431 and no body.
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// What hyper takes without being told.
const HYPER_HEADERS_MAX: usize = 100;

/// Drives a connection until it ends.
pub(crate) fn drive<S>(conn: Arc<Connection>, stream: S) -> Driven<Http1<S>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let way = Way::Plain(Talking::new(Arc::clone(&conn), stream));
    Driven::new(conn, Http1 { way })
}

/// HTTP/1.1, as it is spoken now.
pub(crate) struct Http1<S> {
    way: Way<S>,
}

enum Way<S> {
    Plain(Talking<S>),
    Hyper(Pin<Box<dyn General<S>>>),
}

/// What hyper makes of a connection.
trait General<S>: Future<Output = hyper::Result<()>> + Send {
    fn hang_up(self: Pin<&mut Self>);

    /// What it was made of, without what was read and is no whole request.
    fn give_back(self: Pin<Box<Self>>) -> S;
}

impl<S, V> General<S> for Hyper<Watched<S>, V>
where
    Self: Send,
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    V: HttpService<hyper::body::Incoming, ResBody = Body>,
    V::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn hang_up(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }

    fn give_back(self: Pin<Box<Self>>) -> S {
        Pin::into_inner(self).into_parts().io.into_stream()
    }
}

impl<S> Future for Http1<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Output = hyper::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        loop {
            match &mut self.way {
                Way::Plain(talking) => match ready!(talking.poll(cx)) {
                    None => return Poll::Ready(Ok(())),
                    Some(handed) => self.way = Way::Hyper(hand_over(handed)),
                },
                Way::Hyper(general) => return general.as_mut().poll(cx),
            }
        }
    }
}

impl<S> Protocol for Http1<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    const HAS_STREAMS: bool = false;

    fn hang_up(&mut self, conn: &Connection) {
        conn.hang_up();
        // hyper would give up a head that has begun; its answer says that it is the last.
        if let Way::Hyper(general) = &mut self.way
            && !conn.is_in_head()
        {
            general.as_mut().hang_up();
        }
    }

    fn end(&mut self, conn: &Arc<Connection>) {
        conn.hang_up(); // if it is at its end already, or at what leads there
        let talking = match mem::replace(&mut self.way, Way::Plain(Talking::over())) {
            Way::Plain(talking) => talking,
            Way::Hyper(general) => Talking::new(Arc::clone(conn), general.give_back()),
        };
        self.way = Way::Plain(talking.timed_out());
    }
}

/// The connection from its first request on that is not plain.
fn hand_over<S>(HandedOver { conn, stream, ahead }: HandedOver<S>) -> Pin<Box<dyn General<S>>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = Watched::new(stream, Arc::clone(&conn)).after(ahead.into());
    let service = {
        let conn = Arc::clone(&conn);
        service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let conn = Arc::clone(&conn);
            let (head, body) = request.into_parts();
            let came = Came::ByHyper(Box::new(head));
            // Boxed: hyper keeps room for one in each connection, also idle, and moves it there for each request. So
            // the room is there for those alone that are being served, and mostly the same warm one.
            Box::pin(async move {
                let mut response = serve(Arc::clone(&conn), came, Inflow::ByHyper(body)).await;
                if response.headers().get(header::CONNECTION).is_some_and(|value| value == "close") {
                    conn.read_no_more(); // some of its body may be on its way
                }
                if conn.is_hung_up() {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response)
            })
        })
    };
    let mut http = http1::Builder::new();
    // The timer is set so that hyper can never lack one; the header timeout is ours (see the head of `driven`).
    http.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(BUFFER_BYTES_MAX);
    http.keep_alive(!conn.is_hung_up()); // the request that is here is still answered
    if conn.front.limits.headers_max != HYPER_HEADERS_MAX {
        http.max_headers(conn.front.limits.headers_max); // any number that is set costs hyper an allocation a request
    }
    Box::pin(http.serve_connection(io, service))
}
