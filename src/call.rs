//! The shared words of a call: what goes down to a tool ([`Ctx`], [`Deadline`], [`Caller`]) and what comes back
//! ([`Reply`]). Values only; who makes a call and where it runs is said elsewhere.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    changes::Changes,
    error::CallError,
    input::{Defers, Exchange},
    outbox::{LogLevel, Outbox},
};

/// Where a tool runs. A word, because it decides what a slow call can hurt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// In the connection's task, at once. For work of microseconds: it holds an I/O thread while it runs.
    Inline,
    /// On a thread of the worker pool. For work that burns CPU or blocks.
    Pool,
    /// In the connection's task, awaiting. For I/O.
    Async,
}

/// Who calls. One subject today: everybody on a listener without authentication.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Caller(Option<Arc<str>>);

impl Caller {
    /// The caller on a listener that asks nobody who they are.
    pub const ANONYMOUS: Self = Self(None);

    /// The caller of this name.
    pub(crate) fn named(subject: &str) -> Self {
        if subject == Self::ANONYMOUS.subject() { Self::ANONYMOUS } else { Self(Some(subject.into())) }
    }

    /// A stable name of the caller, for keys and logs. Never a token.
    pub fn subject(&self) -> &str {
        self.0.as_deref().unwrap_or("anonymous")
    }

    /// Under which name limits for one caller count: the own, or that of the address of an anonymous one.
    pub(crate) fn counts_for(&self, share: Share) -> String {
        match &self.0 {
            Some(subject) => subject.as_ref().to_owned(),
            None => format!("{}/{:x}", self.subject(), share.who),
        }
    }
}

/// Who a call counts for when there is not enough for all, with its weight. The authenticated caller, or the address
/// that an anonymous one calls from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Share {
    who: u64,
    weight: u32,
}

impl Share {
    /// Everybody of whom nothing is known.
    pub(crate) const NOBODY: Self = Self { who: 0, weight: 1 };

    pub(crate) const fn new(who: u64, weight: u32) -> Self {
        Self { who, weight: if weight == 0 { 1 } else { weight } }
    }

    pub(crate) const fn who(self) -> u64 {
        self.who
    }

    /// How much of a contended resource it gets, beside others.
    pub(crate) const fn weight(self) -> u32 {
        self.weight
    }
}

/// The moment after which nobody wants the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline {
    at: Instant,
    limit_ms: u64,
}

impl Deadline {
    /// `limit_ms` after `now`.
    pub fn after(now: Instant, limit_ms: u64) -> Self {
        Self { at: now + Duration::from_millis(limit_ms), limit_ms }
    }

    /// The moment that is `left_ms` after `now`, which a limit of `limit_ms` led to.
    pub(crate) fn left(now: Instant, left_ms: u64, limit_ms: u64) -> Self {
        const MONTH_MS: u64 = 31 * 24 * 60 * 60 * 1000; // no limit is longer
        Self { limit_ms, ..Self::after(now, left_ms.min(limit_ms).min(MONTH_MS)) }
    }

    /// The moment itself.
    pub fn at(self) -> Instant {
        self.at
    }

    /// The limit that led to it, in milliseconds.
    pub fn limit_ms(self) -> u64 {
        self.limit_ms
    }

    /// Whether it has passed at `now`.
    pub fn passed(self, now: Instant) -> bool {
        now >= self.at
    }

    /// Whether so little is left at `now`, a hundredth of the limit, that nothing is worth beginning.
    pub(crate) fn is_as_good_as_passed(self, now: Instant) -> bool {
        now + Duration::from_millis(self.limit_ms) / 100 >= self.at
    }
}

/// The extension with which a call may become a task.
pub(crate) const TASKS_EXTENSION: &str = "io.modelcontextprotocol/tasks";

/// What the client says that it can do, as far as a tool can ask for it. A set of flags, cheap to carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientCapabilities(u8);

impl ClientCapabilities {
    /// The client can run a model for the server.
    pub const SAMPLING: Self = Self(1);
    /// The client can ask its user.
    pub const ELICITATION: Self = Self(2);
    /// The client can list its roots.
    pub const ROOTS: Self = Self(4);
    /// The client can poll a task instead of waiting for a call.
    pub const TASKS: Self = Self(8);

    /// Each flag with the name it has on the wire.
    pub const NAMES: [(&str, Self); 3] =
        [("sampling", Self::SAMPLING), ("elicitation", Self::ELICITATION), ("roots", Self::ROOTS)];

    /// Both sets together.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What of `self` is not in `declared`.
    #[must_use]
    pub const fn missing_from(self, declared: Self) -> Self {
        Self(self.0 & !declared.0)
    }

    pub(crate) const fn bits(self) -> u8 {
        self.0
    }

    pub(crate) const fn of_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// Whether no flag is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all flags of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// The state of one pool job, shared by who waits for it and who runs it: it starts at most once, and never after it
/// was given up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ticket(Arc<AtomicU8>);

impl Ticket {
    const QUEUED: u8 = 0;
    const RUNNING: u8 = 1;
    const GIVEN_UP: u8 = 2;

    /// Takes the job up; false when it was given up before.
    pub(crate) fn start(&self) -> bool {
        self.0.compare_exchange(Self::QUEUED, Self::RUNNING, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Nobody waits any more. Says what the job was at until then.
    pub(crate) fn give_up(&self) -> Before {
        match self.0.swap(Self::GIVEN_UP, Ordering::AcqRel) {
            Self::QUEUED => Before::Queued,
            Self::RUNNING => Before::Running,
            _ => Before::GivenUp,
        }
    }

    /// Whether it is of the same job.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn is_given_up(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Self::GIVEN_UP
    }
}

/// What a job was at when it was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    Queued,
    /// It may have had effects.
    Running,
    GivenUp,
}

/// What comes on top of a call's time limit: waiting for its client is not the tool's time, and a task has more.
fn extra_time(outbox: Option<&Outbox>, deferred: Option<&dyn Defers>) -> Duration {
    let waited = outbox.map_or(Duration::ZERO, |o| o.waited(Instant::now()));
    waited + deferred.map_or(Duration::ZERO, Defers::extra_time)
}

/// What a call may wait for besides its tool, for those who time it. Most have nothing, and take no room for it.
#[derive(Clone, Debug)]
pub(crate) struct Waits(Option<Box<WaitsFor>>);

#[derive(Clone, Debug)]
struct WaitsFor {
    outbox: Option<Arc<Outbox>>,
    deferred: Option<Arc<dyn Defers>>,
}

impl Waits {
    /// What comes on top of the call's time limit, as of now.
    pub(crate) fn extra_time(&self) -> Duration {
        let Some(waits) = &self.0 else { return Duration::ZERO };
        extra_time(waits.outbox.as_deref(), waits.deferred.as_deref())
    }

    /// Whether something was said or asked on the way, or a task was made: that is its client's alone, and so is what comes
    /// of the call.
    pub(crate) fn is_of_one_client(&self) -> bool {
        let Some(waits) = &self.0 else { return false };
        waits.outbox.as_ref().is_some_and(|outbox| outbox.was_used())
            || waits.deferred.as_ref().is_some_and(|deferred| deferred.task().is_some())
    }
}

/// What a tool knows of the call it serves, and its way to say something before it is done.
#[derive(Clone, Debug)]
pub struct Ctx {
    pub(crate) caller: Caller,
    pub(crate) share: Share,
    pub(crate) deadline: Deadline,
    pub(crate) client: ClientCapabilities,
    pub(crate) ticket: Option<Ticket>,
    pub(crate) outbox: Option<Arc<Outbox>>,
    pub(crate) exchange: Exchange,
    pub(crate) changes: Option<Changes>,
    pub(crate) raw: Option<Box<Raw>>,
    pub(crate) deferred: Option<Arc<dyn Defers>>,
}

/// Whether somebody may call the tool of a name.
#[derive(Clone)]
pub(crate) struct MayCall(pub(crate) Arc<dyn Fn(&str) -> bool + Send + Sync>);

impl fmt::Debug for MayCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MayCall")
    }
}

/// The request as it came, for a hosted handler, which reads it in its own way, and who made it. Made only for work that
/// wants it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Raw {
    /// The revision that the request follows.
    pub(crate) version: &'static str,
    pub(crate) id: Value,
    pub(crate) meta: Map<String, Value>,
    /// What the session's `initialize` said, up to 2025-11-25.
    pub(crate) initialize: Option<Arc<Value>>,
    /// The HTTP request's head.
    pub(crate) parts: Option<http::request::Parts>,
    /// Which tools its caller may call today, for what came of one before. Here, since a [`Ctx`] is moved about a lot and
    /// few calls have this.
    pub(crate) may_call: Option<MayCall>,
}

impl Ctx {
    pub(crate) fn new(caller: Caller, deadline: Deadline, client: ClientCapabilities) -> Self {
        Self {
            caller,
            share: Share::NOBODY,
            deadline,
            client,
            ticket: None,
            outbox: None,
            exchange: Exchange::None,
            changes: None,
            raw: None,
            deferred: None,
        }
    }

    /// Who calls.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// When the answer must be there.
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// Whether to stop: the client has left or took the call back, or the deadline has passed. A loop on a worker
    /// thread asks this every few milliseconds; an async tool need not, since its future is dropped. What a tool on a
    /// worker thread returns after that is not used.
    pub fn is_cancelled(&self) -> bool {
        self.ticket.as_ref().is_some_and(Ticket::is_given_up)
            || self.deferred.as_ref().is_some_and(|deferred| deferred.is_cancelled())
            || Instant::now() >= self.deadline.at() + self.extra_time()
    }

    /// For who times the call while its tool has this.
    pub(crate) fn waits(&self) -> Waits {
        let has_any = self.outbox.is_some() || self.deferred.is_some();
        let waits = || WaitsFor { outbox: self.outbox.clone(), deferred: self.deferred.clone() };
        Waits(has_any.then(|| Box::new(waits())))
    }

    /// See [`extra_time`].
    pub(crate) fn extra_time(&self) -> Duration {
        extra_time(self.outbox.as_deref(), self.deferred.as_deref())
    }

    /// Whether the client asked to hear of progress, so that a tool can spare itself the counting.
    pub fn wants_progress(&self) -> bool {
        self.outbox.as_ref().is_some_and(|o| o.wants_progress())
    }

    /// Reports progress; it must grow from call to call. Does nothing when the client did not ask. Reports that come
    /// faster than the client is told of them replace each other: the newest wins.
    pub fn progress(&self, progress: f64, total: Option<f64>, message: &str) {
        if let Some(outbox) = &self.outbox {
            outbox.progress(progress, total, message);
        }
    }

    /// Sends a log message to the client, when it asked for this level. `data` is any JSON value, usually text.
    pub fn log(&self, level: LogLevel, data: &impl Serialize) {
        if let Some(outbox) = self.outbox.as_ref().filter(|o| o.wants_log(level)) {
            outbox.log(level, serde_json::to_value(data).unwrap_or(Value::Null));
        }
    }

    /// What the client says that it can do.
    pub fn client(&self) -> ClientCapabilities {
        self.client
    }

    /// A way to tell clients that a list or a resource has changed.
    pub fn changes(&self) -> Changes {
        self.changes.clone().unwrap_or_default()
    }

    /// Ends the connection that the client waits on, without ending the call: the client comes back for the result, so
    /// that no connection is held for long work. Does nothing where clients cannot come back (2026-07-28, which has
    /// tasks for this).
    pub fn release_connection(&self) {
        if let Some(outbox) = &self.outbox {
            outbox.release();
        }
    }

    /// Whether the client hears of this call while it runs, so that it is nobody else's.
    pub(crate) fn is_watched(&self) -> bool {
        self.outbox.as_ref().is_some_and(|o| o.is_watched())
    }

    /// Whether the call brings what its client answered, so that its result is of these answers.
    pub(crate) fn has_answers(&self) -> bool {
        matches!(&self.exchange, Exchange::Rounds(rounds) if rounds.has_begun())
    }

    /// Whether the client can be asked while the call runs, so that what it comes to may be of the answers.
    pub(crate) fn can_ask_now(&self) -> bool {
        matches!(self.exchange, Exchange::Stream(_))
    }

    /// Goes on only when the client declared `needed`.
    ///
    /// # Errors
    /// [`CallError::MissingCapability`] with what is missing.
    pub fn require(&self, needed: ClientCapabilities) -> Result<(), CallError> {
        let missing = needed.missing_from(self.client);
        if missing.is_empty() { Ok(()) } else { Err(CallError::MissingCapability(missing)) }
    }
}

/// A tool's answer, already JSON: the members of the result object without its braces, so that what differs between
/// revisions is written around it and what is equal is written once (and cached once).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub(crate) fields: Bytes,
    /// The members of `_meta`, without braces.
    pub(crate) meta: Option<Bytes>,
    pub(crate) is_error: bool,
    pub(crate) kind: Kind,
}

/// What a result is, as `resultType` says it from 2026-07-28 on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The answer.
    #[default]
    Complete,
    /// Questions that must be answered first.
    InputRequired,
    /// A task that will have the answer.
    Task,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::InputRequired => "input_required",
            Self::Task => "task",
        }
    }
}

impl Reply {
    /// One block of text.
    pub fn text(text: &str) -> Self {
        Self::text_as(text, false)
    }

    /// One block of text that tells the agent what went wrong, with `isError: true`.
    pub fn error(text: &str) -> Self {
        Self::text_as(text, true)
    }

    /// The members of a result, without its braces.
    pub(crate) fn of(fields: impl Into<Bytes>) -> Self {
        Self { fields: fields.into(), meta: None, is_error: false, kind: Kind::Complete }
    }

    fn text_as(text: &str, is_error: bool) -> Self {
        let mut json = Vec::with_capacity(text.len() + 64);
        json.extend_from_slice(br#""content":[{"type":"text","text":"#);
        push_json_string(&mut json, text);
        json.extend_from_slice(b"}]");
        if is_error {
            json.extend_from_slice(br#","isError":true"#);
        }
        Self { meta: None, is_error, ..Self::of(json) }
    }

    /// A value in both forms that clients read: `structuredContent`, and its JSON as text for older ones.
    ///
    /// # Errors
    /// [`CallError::Internal`] when the value has no JSON form (a map with keys that are not text).
    pub fn structured(value: &impl Serialize) -> Result<Self, CallError> {
        let value = serde_json::to_string(value).map_err(|error| {
            tracing::error!(%error, "a tool's result has no JSON form");
            CallError::Internal
        })?;
        let mut json = Vec::with_capacity(value.len() * 2 + 96);
        json.extend_from_slice(br#""content":[{"type":"text","text":"#);
        push_json_string(&mut json, &value);
        json.extend_from_slice(br#"}],"structuredContent":"#);
        json.extend_from_slice(value.as_bytes());
        Ok(Self::of(json))
    }

    /// Whether the tool says that it failed.
    pub fn is_error(&self) -> bool {
        self.is_error
    }

    /// Whether it is the answer, and not a step on the way to it.
    pub(crate) fn is_final(&self) -> bool {
        self.kind == Kind::Complete
    }

    /// The answer as one JSON object, for a reader in the same process.
    pub fn to_json(&self) -> Value {
        let mut json = Vec::with_capacity(self.fields.len() + 2);
        json.push(b'{');
        json.extend_from_slice(&self.fields);
        json.push(b'}');
        serde_json::from_slice(&json).unwrap_or(Value::Null)
    }

    /// Bytes held, for budgets.
    pub(crate) fn len(&self) -> usize {
        self.fields.len() + self.meta.as_ref().map_or(0, Bytes::len)
    }
}

/// Appends `text` as a JSON string.
pub(crate) fn push_json_string(out: &mut Vec<u8>, text: &str) {
    // Writing text into a Vec cannot fail: neither the text nor the writer has a way to.
    let written = serde_json::to_writer(out, text);
    debug_assert!(written.is_ok());
}
