//! The `bigiron` program: allocator, arguments, exit code.

use std::process::ExitCode;

mod allocator;

/// Calls allocate and free small pieces on many threads; mimalloc does that without shared locks.
#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator;

fn main() -> ExitCode {
    bigiron::cli::run(bigiron::Server::builder().toolbox())
}
