//! Tools for measuring the server itself: `echo` costs next to nothing, `burn` costs exactly what is asked.

use std::{hint, time::Duration};

use rustix::time::{ClockId, clock_gettime};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::{Ctx, Lane},
    error::CallError,
    tool::{Json, Tool},
    toolbox::output::stopped,
};

/// Longest time that one call burns.
const BURN_MS_MAX: u64 = 60_000;
/// Rounds between two looks at the clock: some microseconds.
const ROUNDS_PER_LOOK: u32 = 2_000;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct EchoArgs {
    /// The text to send back.
    message: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct BurnArgs {
    /// Milliseconds of CPU time to spend on one thread.
    #[schemars(range(max = 60_000))]
    ms: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Burned {
    /// Milliseconds spent.
    burned_ms: u64,
}

/// Answers with what it was given. For checking a connection and measuring what a call costs without its work.
pub(super) fn echo() -> Tool {
    Tool::new(
        "echo",
        "Returns the message unchanged. Use it to check that the connection works; it reads nothing.",
        Lane::Inline, // microseconds: copying one text
        |args: EchoArgs, _: Ctx| args.message,
    )
    .title("Echo")
    .read_only()
    .idempotent()
    .closed_world()
}

/// Keeps a worker thread busy. For measuring how the server behaves while work is done.
pub(super) fn burn() -> Tool {
    Tool::new(
        "burn",
        "Keeps one CPU busy for the given number of milliseconds (at most 60000) and returns how long it did. Only for \
         measuring the server under load; it computes nothing of use.",
        Lane::Pool,
        |args: BurnArgs, ctx: Ctx| burn_for(args.ms, &ctx).map(|burned_ms| Json(Burned { burned_ms })),
    )
    .title("Burn CPU time")
    .read_only()
    .idempotent()
    .closed_world()
}

fn burn_for(ms: u64, ctx: &Ctx) -> Result<u64, CallError> {
    if ms > BURN_MS_MAX {
        return Err(CallError::tool(format!("ms is {ms}; ask for at most {BURN_MS_MAX}")));
    }
    // CPU time and not time: threads that share a core burn no more than there is.
    let spent = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
    };
    let (start, all) = (spent(), Duration::from_millis(ms));
    let mut state = ms | 1;
    while spent().saturating_sub(start) < all {
        if ctx.is_cancelled() {
            return Err(stopped(ctx));
        }
        for _ in 0..ROUNDS_PER_LOOK {
            state = hint::black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
    Ok(u64::try_from(spent().saturating_sub(start).as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::toolbox::tests::{cancelled_ctx, ctx};

    #[test]
    fn burn_lasts_as_long_as_asked_and_stops_when_cancelled() {
        assert!(burn_for(20, &ctx()).expect("burns") >= 20);
        assert_eq!(burn_for(0, &ctx()), Ok(0));
        assert_eq!(burn_for(BURN_MS_MAX, &cancelled_ctx()), Err(CallError::Cancelled));
        assert!(matches!(burn_for(BURN_MS_MAX + 1, &ctx()), Err(CallError::Tool(text)) if text.contains("at most")));
    }
}
