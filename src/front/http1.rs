//! HTTP/1.1 on a connection: its requests, one after the other.

use std::{future::Future, pin::Pin, sync::Arc};

use hyper::{
    rt::{Read, Write},
    server::conn::http1::{self, Connection as Http1},
    service::{HttpService, service_fn},
};
use hyper_util::rt::TokioTimer;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::front::{
    body::Body,
    connection::{Connection, Served, drive},
    serve,
    watched::Watched,
};

/// hyper's buffer for one connection; beyond it, a head is refused with 431 and no body.
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// What hyper takes without being told.
const HYPER_HEADERS_MAX: usize = 100;

/// Serves a connection until it ends.
pub(crate) fn run<S>(conn: Arc<Connection>, stream: S) -> impl Future<Output = ()> + Send
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = Watched::new(stream, Arc::clone(&conn));
    let service = {
        let conn = Arc::clone(&conn);
        service_fn(move |request| {
            let conn = Arc::clone(&conn);
            // Boxed: hyper keeps room for one in each connection, also idle, and moves it there for each request. So
            // the room is there for those alone that are being served, and mostly the same warm one.
            Box::pin(async move { Ok::<_, std::convert::Infallible>(serve(conn, request).await) })
        })
    };
    let mut http = http1::Builder::new();
    // The timer is set so that hyper can never lack one; the header timeout is ours (see the head of `connection`).
    http.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(BUFFER_BYTES_MAX);
    if conn.front.limits.headers_max != HYPER_HEADERS_MAX {
        http.max_headers(conn.front.limits.headers_max); // any number that is set costs hyper an allocation a request
    }
    let served = http.serve_connection(io, service);
    async move { drive(&conn, served).await }
}

impl<I, S> Served for Http1<I, S>
where
    I: Read + Write + Unpin + 'static,
    S: HttpService<hyper::body::Incoming, ResBody = Body>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    const HAS_STREAMS: bool = false;

    fn hang_up(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}
