//! The peer: rmcp's own Streamable HTTP server with one `echo` tool, put together as its documentation does,
//! with the macros and under axum. Default settings (sessions for the older revisions, answers as SSE), or
//! `--stateless-json` (no sessions, answers as JSON), the fastest that its configuration offers.
//!
//! Not here: anything tuned, and no log subscriber, so that its `info!` lines cost next to nothing.

use std::{error::Error, net::SocketAddr, sync::Arc};

use axum::{Router, serve::ListenerExt};
use clap::Parser;
use rmcp::{
    ServerHandler,
    handler::server::{router::tool::ToolRouter, wrapper::Parameters},
    model::{ServerCapabilities, ServerConfig},
    schemars, tool, tool_handler, tool_router,
    transport::streamable_http_server::{
        StreamableHttpServerConfig, StreamableHttpService, session::local::LocalSessionManager,
    },
};

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
    /// No sessions, and JSON instead of SSE.
    #[arg(long)]
    stateless_json: bool,
}

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct EchoArguments {
    /// What to send back.
    message: String,
}

#[derive(Clone)]
struct Echo {
    tool_router: ToolRouter<Self>,
}

#[tool_router]
impl Echo {
    fn new() -> Self {
        Self { tool_router: Self::tool_router() }
    }

    #[tool(description = "Sends the message back")]
    fn echo(&self, Parameters(EchoArguments { message }): Parameters<EchoArguments>) -> String {
        message
    }
}

#[tool_handler(router = self.tool_router)]
impl ServerHandler for Echo {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    allocations::count_if_asked()?;
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(args.threads).enable_all().build()?;
    // Spawned, so that accepting too runs on a worker and not on the thread that waits here.
    runtime.block_on(async { tokio::spawn(serve(args.listen, args.stateless_json)).await })??;
    Ok(())
}

async fn serve(listen: SocketAddr, stateless_json: bool) -> std::io::Result<()> {
    let mut config = StreamableHttpServerConfig::default();
    if stateless_json {
        config = config.with_legacy_session_mode(false).with_json_response(true);
    }
    // A clone for each session or call, as in rmcp's examples; cheaper than building the tools anew each time.
    let handler = Echo::new();
    let sessions = Arc::new(LocalSessionManager::default());
    let service = StreamableHttpService::new(move || Ok(handler.clone()), sessions, config);
    let router = Router::new().nest_service("/mcp", service);
    let listener = tokio::net::TcpListener::bind(listen).await?.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            eprintln!("stock-rmcp: TCP_NODELAY could not be set: {error}");
        }
    });
    axum::serve(listener, router).await
}
