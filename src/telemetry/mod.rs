//! What bigiron says of itself. The log today; metrics and traces will stand beside it.

pub mod log;
pub(crate) mod rarely;
