//! The `bigiron` program: allocator, arguments, exit code.

use std::process::ExitCode;

/// Calls allocate and free small pieces on many threads; mimalloc does that without shared locks.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    bigiron::cli::run(bigiron::Server::builder().toolbox())
}
