//! The other peer: tower-mcp's HTTP server with one `echo` tool, put together as its documentation does, with the
//! revision 2026-07-28 compiled in. Default settings: JSON answers, sessions for the older revisions.
//!
//! Not here: anything tuned, and no log subscriber.

use std::{error::Error, net::SocketAddr};

use axum::serve::ListenerExt;
use clap::Parser;
use tower_mcp::{CallToolResult, HttpTransport, McpRouter, ToolBuilder};

#[cfg(not(feature = "system-allocator"))]
use mimalloc::MiMalloc as Inner;
#[cfg(feature = "system-allocator")]
use std::alloc::System as Inner;

#[path = "../../../support/allocations.rs"]
mod allocations;

#[global_allocator]
static ALLOCATOR: allocations::Counting<Inner> = allocations::Counting(Inner);

#[derive(Parser)]
struct Args {
    #[arg(long)]
    listen: SocketAddr,
    /// Worker threads of the runtime.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct EchoArguments {
    /// What to send back.
    message: String,
}

fn main() -> Result<(), Box<dyn Error>> {
    allocations::count_if_asked()?;
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(args.threads).enable_all().build()?;
    // Spawned, so that accepting too runs on a worker and not on the thread that waits here.
    runtime.block_on(async { tokio::spawn(serve(args.listen)).await })??;
    Ok(())
}

async fn serve(listen: SocketAddr) -> std::io::Result<()> {
    let echo = ToolBuilder::new("echo")
        .description("Sends the message back")
        .handler(|EchoArguments { message }: EchoArguments| async move { Ok(CallToolResult::text(message)) })
        .build();
    let router = McpRouter::new().server_info("tower-mcp", "1.0.0").tool(echo);
    let router = HttpTransport::new(router).into_router_at("/mcp");
    let listener = tokio::net::TcpListener::bind(listen).await?.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            eprintln!("tower-mcp: TCP_NODELAY could not be set: {error}");
        }
    });
    axum::serve(listener, router).await
}
