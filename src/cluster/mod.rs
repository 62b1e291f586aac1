//! What instances share, through one Redis: who there is (`registry`), and what has to hold across all of them. An
//! instance that is alone has none of it: nothing here is made then, and nothing is asked.
//!
//! `link` is the only place that knows Redis. What it is asked for is written in the parts beside it, as scripts where
//! two things have to happen together; the clock is Redis' own.

pub(crate) mod config;
mod endpoint;
pub(crate) mod link;

pub use config::Config;
