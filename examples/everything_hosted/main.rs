//! The tools, prompts and resources of the example `everything`, written as a plain rmcp handler that knows nothing of
//! bigiron: only this file does. Run it with
//! `cargo run --release --example everything_hosted -- --listen 127.0.0.1:5000`.

mod asking;
mod content;
mod handler;
mod hub;
mod memory;
mod questions;
mod rounds;
mod skills;
mod tasks;
mod tools;

use std::process::ExitCode;

use bigiron::{Handler, Server};

fn main() -> ExitCode {
    let server = Server::builder().identity("everything-hosted", env!("CARGO_PKG_VERSION"));
    bigiron::cli::run(server.host(Handler::new(handler::Everything::new())))
}
