//! The limit of the rig: hyper's HTTP/1.1 server with nothing behind it. Every POST is answered with the same
//! bytes, those of the file given, whatever it asked. With parsing (the default) the body is first read into a
//! `serde_json::Value`, which is the least that a server of JSON-RPC does; with `--no-parse` it is only read.
//! Every GET opens a chunked response of one event that never ends.
//!
//! Not here: routing, header checks, limits, ids. It is no MCP server, and its figure is a line to measure
//! against, not one to reach.

use std::{
    convert::Infallible,
    error::Error,
    net::SocketAddr,
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt, Either, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Frame, Incoming},
    header::{CONNECTION, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

#[path = "../../../support/allocations.rs"]
mod allocations;

#[global_allocator]
static ALLOCATOR: allocations::Counting<mimalloc::MiMalloc> = allocations::Counting(mimalloc::MiMalloc);

#[derive(Parser)]
struct Args {
    #[arg(long)]
    listen: SocketAddr,
    /// Worker threads of the runtime.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// The answer, byte for byte.
    #[arg(long)]
    body: PathBuf,
    /// Answer without parsing what was asked.
    #[arg(long)]
    no_parse: bool,
    /// The status of the answer.
    #[arg(long, default_value = "200")]
    status: StatusCode,
    /// Answer by the head alone, and end the connection, since the body is not read.
    #[arg(long)]
    unread: bool,
}

/// How every POST is answered.
#[derive(Clone)]
struct Plan {
    body: Bytes,
    parse: bool,
    status: StatusCode,
    unread: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    allocations::count_if_asked()?;
    let args = Args::parse();
    let body = Bytes::from(std::fs::read(&args.body)?);
    let plan = Plan { body, parse: !args.no_parse, status: args.status, unread: args.unread };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(args.threads).enable_all().build()?;
    // Spawned, so that accepting too runs on a worker and not on the thread that waits here.
    runtime.block_on(async { tokio::spawn(serve(args.listen, plan)).await })??;
    Ok(())
}

async fn serve(listen: SocketAddr, plan: Plan) -> std::io::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let plan = plan.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| answer(request, plan.clone()));
            // As in hyper's own examples: with a timer, thus with its time limit on reading a head.
            let connection =
                http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
            // A connection that ends badly is the generator's to report.
            drop(connection.await);
        });
    }
}

/// A body with one event, which then stays open.
struct Open(Option<Bytes>);

impl Body for Open {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.take().map_or(Poll::Pending, |event| Poll::Ready(Some(Ok(Frame::data(event)))))
    }
}

type Answer = Either<Full<Bytes>, Open>;

async fn answer(request: Request<Incoming>, plan: Plan) -> Result<Response<Answer>, Infallible> {
    if request.method() == Method::GET {
        let mut response = Response::new(Either::Right(Open(Some(Bytes::from_static(b": open\n\n")))));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        return Ok(response);
    }
    if plan.unread {
        let mut response = plan.response();
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return Ok(response);
    }
    let asked = request.into_body().collect().await.map(|collected| collected.to_bytes());
    let understood = match &asked {
        Ok(asked) if plan.parse => serde_json::from_slice::<serde_json::Value>(asked).is_ok_and(|value| value.is_object()),
        Ok(_) => true,
        Err(_) => false,
    };
    if !understood {
        let mut refusal = Response::new(Either::Left(Full::default()));
        *refusal.status_mut() = StatusCode::BAD_REQUEST;
        return Ok(refusal);
    }
    Ok(plan.response())
}

impl Plan {
    fn response(self) -> Response<Answer> {
        let mut response = Response::new(Either::Left(Full::new(self.body)));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}
