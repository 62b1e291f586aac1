//! An rmcp handler, made with rmcp's macros and knowing nothing of bigiron, served by it: both families of revisions,
//! limits, deadlines, drain and the command line come with it. Run it with `cargo run --release --example hosted`.

use std::process::ExitCode;

use bigiron::{
    Handler, Server,
    rmcp::{
        ServerHandler,
        handler::server::{router::tool::ToolRouter, wrapper::Parameters},
        model::{ServerCapabilities, ServerConfig},
        tool, tool_handler, tool_router,
    },
};

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct EchoArguments {
    /// What to send back.
    message: String,
}

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

fn main() -> ExitCode {
    bigiron::cli::run(Server::builder().host(Handler::new(Echo::new())))
}
