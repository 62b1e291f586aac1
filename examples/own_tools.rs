//! A server of your own: one tool that burns CPU, on the worker pool, and one that waits for I/O.
//! Run it with `cargo run --release --example own_tools`; it takes the same arguments as `bigiron`.

use std::{process::ExitCode, time::Duration};

use bigiron::{Ctx, Json, Lane, Server};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, JsonSchema)]
struct Below {
    /// Primes below this number are counted.
    below: u32,
}

#[derive(Serialize, JsonSchema)]
struct Count {
    primes: usize,
}

#[derive(Deserialize, JsonSchema)]
struct Nap {
    /// How long to wait, in milliseconds.
    #[schemars(range(max = 1000))]
    ms: u64,
}

fn main() -> ExitCode {
    let server = Server::builder()
        .tool("count_primes", "Counts primes", Lane::Pool, |args: Below, ctx: Ctx| {
            let is_prime = |n: &u32| (2..).take_while(|d| d * d <= *n).all(|d| !n.is_multiple_of(d));
            let primes = (2..args.below).take_while(|_| !ctx.is_cancelled()).filter(is_prime).count();
            Json(Count { primes })
        })
        .async_tool("nap", "Waits", |args: Nap, _| async move {
            tokio::time::sleep(Duration::from_millis(args.ms)).await;
            format!("waited {} ms", args.ms)
        });
    bigiron::cli::run(server)
}
