//! What is measured of the calls of one tool: how they ended, and where their time went.

use std::time::Duration;

use crate::{
    call::{Kind, Reply},
    error::CallError,
    telemetry::meter::{Counts, Distribution, Histogram, Sharded},
};

/// How a call ended, as far as the one who watches a server wants to tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Ok,
    /// The tool said that it failed.
    ToolError,
    /// The client asked for what cannot be.
    Refused,
    /// It became a task, or asks its client first.
    GoesOn,
    TimedOut,
    /// Its time was over before it started.
    Expired,
    /// A limit or a queue was full.
    Overloaded,
    /// A panic, or a fault of ours.
    Failed,
    /// Nobody waited for it any more.
    Cancelled,
}

impl Ended {
    /// Each with its word.
    pub(crate) const ALL: [(Self, &'static str); 9] = [
        (Self::Ok, "ok"),
        (Self::ToolError, "tool_error"),
        (Self::Refused, "refused"),
        (Self::GoesOn, "goes_on"),
        (Self::TimedOut, "timed_out"),
        (Self::Expired, "expired"),
        (Self::Overloaded, "overloaded"),
        (Self::Failed, "failed"),
        (Self::Cancelled, "cancelled"),
    ];

    /// What each word means, for who reads the metrics.
    pub(crate) const HELP: &'static str = "Calls of tools, by how each ended. ok: answered. tool_error: the tool said \
        that it failed. refused: the client asked for what cannot be, such as wrong arguments. goes_on: became a task, or \
        asks the client first. timed_out: ran past the timeout. expired: the time was over before the tool began. \
        overloaded: a limit or a queue was full. failed: a panic, or a fault of the server. cancelled: the client left. \
        One that was handed over to another instance counts where it came";

    pub(crate) fn with(outcome: Result<&Reply, &CallError>) -> Self {
        match outcome {
            Ok(reply) if reply.kind != Kind::Complete => Self::GoesOn,
            Ok(reply) if reply.is_error => Self::ToolError,
            Ok(_) => Self::Ok,
            Err(CallError::InputRequired(_)) => Self::GoesOn,
            Err(CallError::Tool(_)) => Self::ToolError,
            Err(CallError::TimedOut { .. }) => Self::TimedOut,
            Err(CallError::DeadlineBeforeStart) => Self::Expired,
            Err(
                CallError::Overloaded { .. }
                | CallError::StoreAway { .. }
                | CallError::CallerLimit { .. }
                | CallError::Nowhere { .. }
                | CallError::Draining,
            ) => Self::Overloaded,
            Err(CallError::Internal | CallError::Lost) => Self::Failed,
            Err(CallError::Cancelled) => Self::Cancelled,
            Err(_) => Self::Refused,
        }
    }
}

/// What the cache did for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cached {
    /// It served a kept result.
    Hit,
    /// None of the others: the tool ran for it, or it was refused, or its time was up.
    Miss,
    /// It served an old result: a new one was being made, or could not be.
    Stale,
    /// Another call's run, for which it waited, served this one too.
    Coalesced,
    /// A result was dropped for want of room.
    Evicted,
    /// A new result was made while the old one was served.
    Refreshed,
    /// And none was: the tool failed, or its results were forgotten meanwhile.
    NotRefreshed,
}

impl Cached {
    /// How many there are.
    const COUNT: usize = 7;

    /// What befalls a call.
    pub(crate) const REQUESTS: [(Self, &'static str); 4] =
        [(Self::Hit, "hit"), (Self::Miss, "miss"), (Self::Stale, "stale"), (Self::Coalesced, "coalesced")];

    /// What comes of making a result anew that is still served.
    pub(crate) const REFRESHES: [(Self, &'static str); 2] = [(Self::Refreshed, "kept"), (Self::NotRefreshed, "failed")];
}

/// Measures the calls of one tool.
#[derive(Debug, Default)]
pub(crate) struct CallMeter(Sharded<Shard>);

#[derive(Debug, Default)]
struct Shard {
    ended: Counts<{ Ended::ALL.len() }>,
    slow_polls: Counts<1>,
    cached: Counts<{ Cached::COUNT }>,
    queue: Histogram,
    run: Histogram,
    encode: Histogram,
}

/// Where the time of a call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Waiting for a thread.
    Queue,
    /// In the tool.
    Run,
    /// Writing the answer.
    Encode,
}

impl Phase {
    pub(crate) const ALL: [(Self, &'static str); 3] =
        [(Self::Queue, "queue"), (Self::Run, "run"), (Self::Encode, "encode")];
}

impl CallMeter {
    pub(crate) fn ended(&self, ended: Ended) {
        self.0.own().ended.add(ended as usize);
    }

    pub(crate) fn took(&self, phase: Phase, duration: Duration) {
        let shard = self.0.own();
        match phase {
            Phase::Queue => &shard.queue,
            Phase::Run => &shard.run,
            Phase::Encode => &shard.encode,
        }
        .record(duration);
    }

    /// A poll that held its thread for long.
    pub(crate) fn slow_poll(&self) {
        self.0.own().slow_polls.add(0);
    }

    pub(crate) fn cached(&self, what: Cached) {
        self.0.own().cached.add(what as usize);
    }

    pub(crate) fn cached_count(&self, what: Cached) -> u64 {
        self.0.iter().map(|shard| shard.cached.get(what as usize)).sum()
    }

    pub(crate) fn count(&self, ended: Ended) -> u64 {
        self.0.iter().map(|shard| shard.ended.get(ended as usize)).sum()
    }

    pub(crate) fn slow_polls(&self) -> u64 {
        self.0.iter().map(|shard| shard.slow_polls.get(0)).sum()
    }

    pub(crate) fn distribution(&self, phase: Phase) -> Distribution {
        Distribution::of(self.0.iter().map(|shard| match phase {
            Phase::Queue => &shard.queue,
            Phase::Run => &shard.run,
            Phase::Encode => &shard.encode,
        }))
    }

    /// Notes a call's end, and on drop that nobody waited for it.
    pub(crate) fn watch(&self) -> Watch<'_> {
        Watch(Some(self))
    }
}

/// A call whose end is not known yet.
pub(crate) struct Watch<'m>(Option<&'m CallMeter>);

impl Watch<'_> {
    pub(crate) fn ended(mut self, ended: Ended) {
        if let Some(meter) = self.0.take() {
            meter.ended(ended);
        }
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if let Some(meter) = self.0.take() {
            meter.ended(Ended::Cancelled);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_counted_once_however_it_ends() {
        let meter = CallMeter::default();
        meter.watch().ended(Ended::Ok);
        drop(meter.watch());
        let counts: Vec<u64> = Ended::ALL.iter().map(|(ended, _)| meter.count(*ended)).collect();
        assert_eq!(counts, [1, 0, 0, 0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn names_stand_at_their_index() {
        for (index, (ended, _)) in Ended::ALL.iter().enumerate() {
            assert_eq!(*ended as usize, index);
        }
        for (_, word) in Ended::ALL {
            assert!(Ended::HELP.contains(&format!(" {word}: ")), "{word}");
        }
        let of_calls = Cached::REQUESTS.iter().chain(&Cached::REFRESHES).map(|(what, _)| *what);
        let mut places: Vec<_> = of_calls.chain([Cached::Evicted]).map(|what| what as usize).collect();
        places.sort_unstable();
        assert_eq!(places, (0..Cached::COUNT).collect::<Vec<_>>());
    }
}
