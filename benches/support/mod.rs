//! What the load benches share, in the order in which a run uses it:
//!
//! `servers` builds and starts what is measured, `process` pins it and reads its CPU time, `requests` has the
//! bytes of each row and proves that a server answers them rightly, `generator` sends them over raw sockets and
//! checks every answer with `reply`, `window` measures one stretch of time and says whether it counts, `table`
//! turns windows into medians.
//!
//! Not here: any rule of the server under test. Only `tools` imports bigiron, to be a server with more tools.

pub(crate) mod allocations;
pub(crate) mod generator;
pub(crate) mod process;
/// One parser of answers for the benches and for `bigiron bench`: what one of them does not read rightly, neither does.
#[allow(dead_code)] // that one also asks whether the connection is to be closed
#[path = "../../src/load/reply.rs"]
pub(crate) mod reply;
pub(crate) mod requests;
pub(crate) mod servers;
pub(crate) mod table;
pub(crate) mod tools;
pub(crate) mod window;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
