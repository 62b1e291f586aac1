//! The server of the rows for which the program itself has no tool: the benches start themselves as it. The only file
//! here that knows bigiron; all settings but the time to live of one tool are its defaults.

use std::process::ExitCode;

use bigiron::{Ctx, Lane, Server, server::Builder};

/// The program's; each bench makes it its own.
#[path = "../../src/allocator.rs"]
pub(crate) mod allocator;

/// What a bench is called with to be this server instead; the rest is the command line of `bigiron`.
pub(crate) const SERVE: &str = "serve";
/// Tools in the list.
const LISTED: usize = 100;
/// Results of one tool are kept, for longer than any run.
const CACHED: [&str; 2] = ["tools.text.cache_ttl_s=86400", "tools.text.cache_not_read_only=true"];

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Echo {
    /// What to send back.
    message: String,
}

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Text {
    /// Length of the text.
    bytes: usize,
}

/// Serves when this process was asked to; `None` when it is to measure.
pub(crate) fn serve_if_asked() -> Option<ExitCode> {
    (std::env::args().nth(1)? == SERVE).then(|| bigiron::cli::run(server()))
}

/// The arguments for a server on this address.
pub(crate) fn arguments(address: std::net::SocketAddr) -> Vec<String> {
    let listen = address.to_string();
    let sets = ["server.admin_listen=", "log.level=error", "toolbox.enabled=false"];
    let sets = sets.iter().chain(&CACHED).flat_map(|set| ["--set", set]);
    [SERVE, "--listen", &listen].into_iter().chain(sets).map(str::to_owned).collect()
}

fn server() -> Builder {
    let mut server = Server::builder()
        .tool("echo", "Sends a text back", Lane::Inline, |echo: Echo, _: Ctx| echo.message)
        .tool("pool", "Sends a text back from a thread of the pool", Lane::Pool, |echo: Echo, _: Ctx| echo.message)
        .tool("progress", "Tells of its progress once and sends a text back", Lane::Inline, |echo: Echo, ctx: Ctx| {
            ctx.progress(1.0, Some(2.0), "half of it");
            echo.message
        })
        .tool("text", "Makes a text", Lane::Inline, |text: Text, _: Ctx| "x".repeat(text.bytes));
    for number in 5..=LISTED {
        let name = format!("tool-{number:03}").leak();
        server = server
            .tool(name, "Stands in the list as one of many tools", Lane::Inline, |echo: Echo, _: Ctx| echo.message);
    }
    server
}
