//! Streams that another instance began and whose client comes back here. What Redis has kept of such a stream is read,
//! and what its call goes on to say is followed until the end. Messages are numbered: each is passed on once and in
//! order, and where one is missing the call ends in an error that says so.
//!
//! When the instance that runs the call has gone, whoever follows its stream takes it over: one of them, should there be
//! several, and the next one should that die too. A call that may be run twice is run again (`again`); any other ends in
//! an error that says that it may have run. A call whose client does not come back is not followed, so it is not run
//! again either.

use std::{
    sync::{Arc, Weak, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::Value;
use tokio::time::sleep;

use crate::{
    changes::{Change, Lists},
    cluster::{
        leases::{Claim, TakeOver},
        presence::Stake,
        sessions::Hash,
        streams::{Entry, Found, Streams},
    },
    mcp::{
        again::{self, Asker, Told},
        catalogue::Capabilities,
        code::{INTERNAL_ERROR, Refusal},
        encode::{self, OwnedId},
        events::EventLog,
        router::Router,
        session::Session,
    },
    tool::registry::CalledTool,
};

/// Between two looks for what is said next.
const PAUSE: Duration = Duration::from_millis(50);
/// Looks for a stream that may not be written yet.
const LOOKS: usize = 10;
/// Looks without news between two questions whether the writer is there.
const LOOKS_PER_ASKING: u32 = 4;
/// How long a stream is followed that nobody reads.
const UNREAD_MAX: Duration = Duration::from_secs(10);

/// What a reader elsewhere needs to know of a stream: which request it answers, whose tool it is and whether that is for
/// all, and whether its call may be run again. A session's own stream answers none.
pub(super) fn about(request: Option<&OwnedId>, tool: Option<&CalledTool>, again: bool) -> Value {
    let members = [
        ("request", request.map(OwnedId::to_value)),
        ("tool", tool.map(|tool| tool.name.as_ref().into())),
        ("guarded", tool.filter(|tool| tool.is_guarded).map(|_| true.into())),
        ("again", again.then(|| true.into())),
    ];
    members.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// Takes in the stream that an event id names, where another instance began it, and follows it.
///
/// # Errors
/// Redis does not say, or there is no room.
pub(super) async fn bring(
    session: &Arc<Session>,
    streams: &Streams,
    router: &Arc<Router>,
    asker: Asker,
    event_id: &str,
) -> Result<(), Refusal> {
    let (Some(hash), Some((id, is_own))) = (session.hash(), session.live().is_elsewhere(event_id)) else {
        return Ok(());
    };
    let mut found = None;
    for look in 0..LOOKS {
        found = streams.read(hash, id.name, id.event).await.map_err(|error| {
            tracing::debug!(%error, "a stream was not looked up");
            Refusal::overloaded(1, "streams of other instances cannot be looked up now; this one may be one of them")
        })?;
        if found.is_some() || is_own || look + 1 == LOOKS {
            break;
        }
        sleep(PAUSE).await;
    }
    // Nothing of it is left, or nothing is known of it.
    let Some(found) = found else { return Ok(()) };
    let Some(about) = found.about.as_deref().and_then(|about| serde_json::from_str::<Value>(about).ok()) else {
        return Ok(());
    };
    let tool =
        about["tool"].as_str().map(|name| CalledTool { name: name.into(), is_guarded: about["guarded"] == true });
    if tool.as_ref().is_some_and(|tool| router.dispatch.tools().is_hidden(tool, asker.identity())) {
        return Ok(());
    }
    let request = match &about["request"] {
        Value::Number(number) => number.as_i64().map(OwnedId::Number),
        text @ Value::String(_) => Some(OwnedId::Text(text.to_string().into())),
        _ => None,
    };
    let log = session.live().take_in(&id, request.is_none()).ok_or_else(|| Refusal {
        status: 409,
        ..Refusal::invalid_request("this session has as many open streams as one may have")
    })?;
    if let Some(tool) = tool {
        log.note_tool(tool);
    }
    let follower = Follower {
        session: Arc::downgrade(session),
        router: Arc::downgrade(router),
        asker,
        streams: streams.clone(),
        hash,
        about: found.about.clone().unwrap_or_default(),
        last: id.event,
        writer: found.writer,
        stake: if about["again"] == true { Stake::SecondRun } else { Stake::End },
        request,
        log,
    };
    match follower.request {
        Some(_) => drop(tokio::spawn(follower.follow(found))),
        None => follower.go_on_with(found, session, router.catalogue.capabilities()).await,
    }
    Ok(())
}

/// Who reads a stream of another instance.
struct Follower {
    session: Weak<Session>,
    router: Weak<Router>,
    /// For whom the stream is read.
    asker: Asker,
    streams: Streams,
    hash: Hash,
    about: String,
    /// The number of the last message that was passed on.
    last: u64,
    /// The process that runs the call, and with what it writes.
    writer: Option<(u32, u64)>,
    /// What it costs to take a writer for gone that lives.
    stake: Stake,
    request: Option<OwnedId>,
    log: Arc<EventLog>,
}

/// How it stands with a stream.
#[derive(PartialEq, Eq)]
enum Stands {
    Open,
    Over,
    /// A message is missing.
    Broken,
}

impl Follower {
    /// Passes on what was found.
    fn take(&mut self, found: Found) -> Stands {
        self.writer = found.writer.or(self.writer);
        for entry in found.entries {
            match entry {
                Entry::Said(number, _) if number <= self.last => {}
                Entry::Said(number, message) if number == self.last + 1 => {
                    self.log.push(message);
                    self.last = number;
                }
                Entry::Ended(number) if number <= self.last => {
                    self.log.end(Instant::now());
                    return Stands::Over;
                }
                Entry::Taken(_) => {} // what is missing before it is missed with the next message
                Entry::Said(..) | Entry::Ended(_) => return Stands::Broken,
            }
        }
        Stands::Open
    }

    /// A call's stream, until it is over, nobody reads it, or the session ends.
    async fn follow(mut self, mut found: Found) {
        let (mut silent, mut unread_since) = (0, None);
        loop {
            // Who took it over stands there at each look, until something is said.
            let before = (self.last, self.writer);
            let stands = self.take(found);
            let has_news = before != (self.last, self.writer);
            match stands {
                Stands::Over => return,
                Stands::Broken => {
                    return self.give_up("messages of this call were lost between instances; it may have run");
                }
                Stands::Open => {}
            }
            let is_over = self.session.upgrade().is_none() || self.log.has_ended();
            let unread = if self.log.is_read() { None } else { Some(*unread_since.get_or_insert_with(Instant::now)) };
            unread_since = unread;
            if is_over || unread.is_some_and(|since| since.elapsed() > UNREAD_MAX) {
                return self.let_go();
            }
            silent = if has_news { 0 } else { silent + 1 };
            if !has_news {
                sleep(PAUSE).await;
            }
            if silent % LOOKS_PER_ASKING == 1 && self.is_writer_gone().await && self.take_over().await {
                return;
            }
            found = match self.streams.read(self.hash, self.log.name(), self.last).await {
                Ok(Some(found)) => found,
                Ok(None) => return self.give_up("what this call said is not kept any more; it may have run"),
                // Redis is away for a moment, or hangs: what is missing is there afterwards, or is missed then.
                Err(_) => Found::default(),
            };
        }
    }

    async fn is_writer_gone(&self) -> bool {
        let Some((writer, _)) = self.writer else { return false };
        self.streams.presence().absent(writer).await.is_some_and(|absent| absent.is_enough_for(self.stake))
    }

    /// The instance that ran the call has gone: here it is run again, or ended, where all read it, so that there is one
    /// end. False when somebody else does, or nothing can be said now.
    async fn take_over(&self) -> bool {
        let (Some(writer), Some(router)) = (self.writer, self.router.upgrade()) else { return false };
        if router.drain.is_started() {
            return false; // its client comes back to another
        }
        let request = self.request.as_ref().map(OwnedId::to_value).unwrap_or_default();
        let claim = Claim {
            hash: self.hash,
            name: self.log.name(),
            about: &self.about,
            writer,
            seen: self.last,
            request: &request,
        };
        let (writer, missing, call, is_cancelled) = match self.streams.take_over(&claim).await {
            Ok(TakeOver::Ours { writer, missing, call, is_cancelled }) => (writer, missing, call, is_cancelled),
            Ok(TakeOver::Others) => return false,
            Ok(TakeOver::Gone) => {
                self.give_up("the instance that ran this call has ended; the call may have run");
                return true;
            }
            Err(error) => {
                tracing::debug!(%error, "a stream is not taken over yet");
                return false;
            }
        };
        self.log.write_with(writer);
        let tool = self.log.tool().map(|tool| &*tool.name);
        if is_cancelled {
            tracing::info!(tool, "a call ends whose instance has gone, and whose client has taken it back");
            self.log.finish(None).await;
            return true;
        }
        let Some(call) = call else {
            tracing::warn!(tool, "a call ends whose instance has gone; it may have run");
            self.streams.counts().given_up.fetch_add(1, Relaxed);
            self.give_up("the instance that ran this call has ended; the call may have run");
            return true;
        };
        let told = self.streams.newest(self.hash, self.log.name()).await.unwrap_or_default();
        tracing::info!(tool, "a call whose instance has gone is run again");
        self.streams.counts().again.fetch_add(1, Relaxed);
        let is_cancelled = async { self.streams.is_cancelled(self.hash, &request).await.unwrap_or(false) };
        let told = Told::of(&told, missing);
        if let Err(why) = again::run(&router, &self.log, &self.asker, &call, told, is_cancelled).await {
            let message = "the instance that ran this call has ended; the call may have run, and is not run again";
            self.give_up(&format!("{message}: {why}"));
        }
        true
    }

    fn error(&self, message: &str) -> Bytes {
        let refusal = Refusal::new(200, INTERNAL_ERROR, message);
        encode::refusal(self.request.as_ref().map(OwnedId::as_id), &refusal).into_bytes()
    }

    /// Ends the call for its client, who is told why.
    fn give_up(&self, message: &str) {
        self.log.push_answer(self.error(message));
        self.log.end(Instant::now());
    }

    /// Forgets the stream here; who comes back finds it in Redis again.
    fn let_go(&self) {
        if let Some(session) = self.session.upgrade() {
            session.live().let_go(&self.log);
        }
    }

    /// A session's own stream, which its client has left: what it said there is passed on, and from now on it speaks
    /// here. What changed in between was heard by nobody, so all is told as changed that may have.
    async fn go_on_with(mut self, mut found: Found, session: &Session, capabilities: &Capabilities) {
        while !found.entries.is_empty() {
            let before = self.last;
            if self.take(found) != Stands::Open || self.last == before {
                break; // what is missing was of changes, which are told now
            }
            let read = self.streams.read(self.hash, self.log.name(), self.last).await;
            found = read.ok().flatten().unwrap_or_default();
        }
        self.log.keep_own_in(&self.streams, self.hash, self.about.clone());
        let lists = [("tools", Lists::TOOLS), ("prompts", Lists::PROMPTS), ("resources", Lists::RESOURCES)];
        let lists =
            lists.into_iter().filter(|(family, _)| capabilities.has(family)).map(|(_, list)| Change::List(list));
        let resources = session.live().subscription().resources().into_iter().map(Change::Resource);
        for change in lists.chain(resources) {
            self.log.push(encode::change(&change, None).into());
        }
    }
}
