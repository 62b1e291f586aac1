//! What bigiron says of itself: the log, and metrics. Handles are passed to who measures; nobody reaches for a global.

pub(crate) mod calls;
pub(crate) mod exposition;
#[cfg(test)]
pub(crate) mod heard;
pub mod log;
pub(crate) mod meter;
pub(crate) mod rarely;
pub(crate) mod refusals;
