//! The level behind the memory, which instances share: what is asked of it, in words of this cache. What it is made of,
//! and what happens while it is away, is known there.

use std::{sync::Arc, time::Instant};

use super::{
    Asked, Cache, Which,
    entry::Kept,
    flight::{Landed, Lead, Since},
    generation::Stamp,
};
use crate::{
    call::Reply,
    cluster::{
        cache::{Entry, Look, ResultId, Turn},
        changes::Forget,
        keys::hex,
    },
};

/// What is behind the memory.
pub(super) enum Behind {
    Found(Arc<Kept>),
    /// Nothing: it is to be made here, and written when there is such a level.
    Make(Option<Turn>),
}

impl Cache {
    /// Looks there. With `alone`, waits while another instance makes it.
    pub(super) async fn look_behind(&self, asked: &Asked<'_>, stamp: Stamp, alone: bool) -> Behind {
        let Some(second) = &self.second else { return Behind::Make(None) };
        match Box::pin(second.look(of(asked), alone)).await {
            Look::Make(turn) => Behind::Make(Some(turn)),
            Look::Found(entry) => match self.kept(asked, entry, stamp) {
                Some(kept) => Behind::Found(self.or_old(asked, kept)),
                None => Behind::Make(None),
            },
        }
    }

    /// What was made elsewhere, as if it had been made here; unless this instance would not keep it.
    fn kept(&self, asked: &Asked<'_>, entry: Entry, stamp: Stamp) -> Option<Kept> {
        let ttl_s = if entry.is_error { asked.policy.error_ttl_s? } else { asked.policy.ttl_s };
        let reply = Reply { is_error: entry.is_error, meta: entry.meta, ..Reply::of(entry.fields) };
        if reply.len() > self.entry_bytes_max {
            return None;
        }
        let now = Instant::now();
        let made_at = now.checked_sub(entry.ttl - entry.left).unwrap_or(now);
        let left = entry.left.min(std::time::Duration::from_secs(ttl_s));
        Some(Kept::new(asked, reply, made_at, now + left, stamp))
    }

    /// What was found, or the old result that is still good in place of a failure: for as long as that one counts.
    pub(super) fn or_old(&self, asked: &Asked<'_>, kept: Kept) -> Arc<Kept> {
        let now = Instant::now();
        match self.instead(asked, now).filter(|_| kept.reply.is_error()) {
            Some(old) => {
                old.put_off(now, kept.fresh_until.saturating_duration_since(now));
                old
            }
            None => Arc::new(kept),
        }
    }

    /// Ends a run for who waits and for both levels. What was invalidated while it ran is kept in none. Says whether it
    /// is kept.
    pub(super) fn land(&self, asked: &Asked<'_>, lead: Lead<'_>, landed: Landed, turn: Option<Turn>) -> bool {
        let made = landed.made().map(Arc::clone);
        let mut is_kept = false;
        lead.land(landed, |landed| is_kept = self.keep(asked, landed));
        if let Some(kept) = made.filter(|_| is_kept) {
            self.share(asked, turn, &kept);
        } // else a turn is dropped, which ends it
        is_kept
    }

    /// The same for a run that nobody waits for, and that began when `since` was.
    pub(super) fn land_alone(&self, asked: &Asked<'_>, since: Since, landed: &Landed, turn: Option<Turn>) -> bool {
        let mut is_kept = false;
        self.flights.land_alone(&asked.key, since, || is_kept = self.keep(asked, landed));
        if let Some(kept) = landed.made().filter(|_| is_kept) {
            self.share(asked, turn, kept);
        }
        is_kept
    }

    fn share(&self, asked: &Asked<'_>, turn: Option<Turn>, kept: &Kept) {
        let (Some(second), Some(turn)) = (&self.second, turn) else { return };
        let ttl = kept.fresh_until.saturating_duration_since(kept.made_at);
        let Reply { fields, meta, is_error, .. } = kept.reply.clone();
        second.keep(of(asked), turn, &Entry { fields, meta, is_error, ttl, left: ttl });
    }

    /// Has the other instances forget it too, and what they share.
    pub(super) fn invalidate_behind(&self, which: Which<'_>) {
        if let Some(second) = &self.second {
            second.forget(match which {
                Which::All => Forget::All,
                Which::Tool(tool) => Forget::Tool(tool.to_owned()),
                Which::Caller(caller) => Forget::Caller(caller.to_owned()),
                Which::Key(key) => Forget::Key(hex(key.bytes())),
            });
        }
    }
}

fn of<'a>(asked: &'a Asked<'_>) -> ResultId<'a> {
    ResultId { key: asked.key.bytes(), tool: asked.tool, caller: asked.caller }
}
