//! The connection to Redis, and the only place that knows how one is had. Whoever asks Redis something asks a [`Link`]:
//! each command has a time, so many are under way at once and no more, and while Redis is away they fail at once and
//! cost nothing. One task looks whether it is there (`keep`); it tries once in a second at most, whatever fails.
//!
//! ```text
//!            +--- broke: another at once ----+
//!            v                               |
//!       Connecting ---------> Up ------------+
//!            |                |  no answer, several times in a row
//!            v                v
//!           Away <------------+      back to Up when one look succeeds
//! ```

mod connection;
mod error;
mod keep;
mod parts;
mod redirect;
mod rights;
mod scan;
mod sentinels;
mod state;
mod subscribe;
mod way;
mod why;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use redis::FromRedisValue;
pub(crate) use redis::{Cmd, Pipeline, Script, ScriptInvocation, cmd, pipe};
use tokio::{
    sync::{Notify, Semaphore, oneshot, watch},
    time::{Instant, timeout, timeout_at},
};

pub(crate) use self::{
    error::{LinkError, Refused},
    scan::literal,
    state::State,
    subscribe::{Event, Subscription},
};
use self::{
    scan::Part,
    sentinels::Master,
    state::{Current, Switch},
    way::Way,
};
use super::config::Config;

/// A handle on Redis; clones share one connection.
#[derive(Clone)]
pub(crate) struct Link {
    shared: Arc<Shared>,
    /// Ends the task when the last handle is gone.
    _stop: Arc<oneshot::Sender<std::convert::Infallible>>,
}

struct Shared {
    way: Way,
    switch: Switch,
    places: Semaphore,
    command: Duration,
    probe: Duration,
    /// Something is odd with the connection: the task looks at once.
    look: Notify,
    /// It is to be replaced, although it answers.
    is_stale: AtomicBool,
    /// It says no more whose the keys are, which are ours.
    forgot_owner: Notify,
    /// Listeners that may not listen.
    deaf: AtomicUsize,
    /// The master that the connection goes to, while there is one and sentinels named it.
    master: watch::Sender<Option<Master>>,
    /// Whose it is that is there: while it is not known to be ours, it is for us as if nothing were.
    owner: watch::Sender<Owner>,
    counts: Counts,
}

/// What came of commands, since the start.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Answers of Redis, refusals among them.
    pub(crate) answered: AtomicU64,
    /// Commands without an answer in time, and those whose connection broke.
    pub(crate) unknown: AtomicU64,
    /// Commands that were not sent, because Redis was away.
    pub(crate) away: AtomicU64,
    /// Commands that were not sent, because too many were under way.
    pub(crate) crowded: AtomicU64,
    /// Answers that said no.
    pub(crate) refused: AtomicU64,
    /// Messages that a listener had no room for; it was told that there was a gap.
    pub(crate) missed: AtomicU64,
    /// Attempts to connect.
    pub(crate) connects: AtomicU64,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("way", &self.shared.way).field("state", &self.state()).finish_non_exhaustive()
    }
}

impl Link {
    /// Begins to connect, in a task of the runtime that this is called in, and returns.
    ///
    /// # Errors
    /// Settings are wrong, or a file that they name cannot be read. That Redis is away is no error.
    pub(crate) fn start(config: &Config) -> Result<Self, String> {
        Self::start_at(config, Owner::Anybody)
    }

    /// The same for an instance, which first has to know whose it is that is there ([`Self::note_owner`]): until then
    /// commands fail as while Redis is away. And it may do all that an instance has to do, or counts as away.
    pub(super) fn start_unowned(config: &Config) -> Result<Self, String> {
        Self::start_at(config, Owner::Unknown)
    }

    fn start_at(config: &Config, owner: Owner) -> Result<Self, String> {
        let way = Way::new(config)?;
        let shared = Arc::new(Shared {
            switch: Switch::new(config.failures_max, way.url()),
            way,
            places: Semaphore::new(config.in_flight_max),
            command: config.command_timeout(),
            probe: Duration::from_millis(config.probe_ms),
            look: Notify::new(),
            is_stale: AtomicBool::new(false),
            forgot_owner: Notify::new(),
            deaf: AtomicUsize::new(0),
            master: watch::Sender::new(None),
            owner: watch::Sender::new(owner),
            counts: Counts::default(),
        });
        let (stop, stopped) = oneshot::channel();
        let kept = Arc::clone(&shared);
        tokio::spawn(async move {
            tokio::select! {
                never = keep::keep(&kept) => match never {},
                _ = stopped => {}
            }
        });
        Ok(Self { shared, _stop: Arc::new(stop) })
    }

    /// Asks one command.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub(crate) async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, LinkError> {
        self.ask(Ask::Command(command)).await
    }

    /// Asks several commands in one go; in a cluster their keys are of one slot.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub(crate) async fn pipeline<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, LinkError> {
        self.ask(Ask::Pipeline(commands)).await
    }

    /// Runs a script, by its hash; Redis is given the text when it does not know it.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub(crate) async fn script<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, LinkError> {
        self.ask(Ask::Script(script)).await
    }

    /// The same, also where what is there is another deployment's: to see whose it is.
    pub(super) async fn script_of_anybody<T: FromRedisValue>(
        &self,
        script: &ScriptInvocation<'_>,
    ) -> Result<T, LinkError> {
        self.ask_anybody(Ask::Script(script)).await
    }

    /// Notes whose it is that is there. As long as it is another's, commands fail as while Redis is away, and what is
    /// told there is not heard.
    pub(super) fn note_owner(&self, is_ours: bool) {
        let owner = if is_ours { Owner::Us } else { Owner::Another };
        let mut was_in_vain = false;
        self.shared.owner.send_if_modified(|before| {
            was_in_vain = is_ours && !before.lets_pass();
            std::mem::replace(before, owner) != owner
        });
        if was_in_vain {
            self.shared.switch.is_of_use();
            self.shared.switch.repeat(); // who waits for Redis has waited in vain so far
        }
    }

    /// We have left: commands fail from now on, so that nothing is written again. Whether Redis is there is known as
    /// before.
    pub(super) fn give_up(&self) {
        self.shared.owner.send_replace(Owner::UsNoMore);
    }

    /// Whether it was ours until we left.
    pub(crate) fn is_given_up(&self) -> bool {
        *self.shared.owner.borrow() == Owner::UsNoMore
    }

    /// Whether it is not ours, or not known to be.
    pub(crate) fn is_foreign(&self) -> bool {
        !self.shared.owner.borrow().lets_pass()
    }

    /// Whether it is known to be another deployment's.
    pub(crate) fn is_anothers(&self) -> bool {
        *self.shared.owner.borrow() == Owner::Another
    }

    /// Returns when it was ours and is nobody's any more, though it is there: it was emptied. Until that is said again
    /// another deployment could take it.
    pub(super) async fn forgot_owner(&self) {
        self.shared.forgot_owner.notified().await;
    }

    /// Whether nothing that other instances tell is heard, because the user of Redis may not listen.
    pub(crate) fn is_deaf(&self) -> bool {
        self.shared.deaf.load(Relaxed) > 0
    }

    /// Listens on these channels, and says when something may have been missed.
    pub(crate) fn subscribe(&self, channels: Vec<String>) -> Subscription {
        Subscription::start(Arc::clone(&self.shared), Arc::clone(&self._stop), channels)
    }

    /// Where Redis is, as a URL; there is no secret in it.
    pub(crate) fn address(&self) -> &str {
        self.shared.switch.address()
    }

    /// Whether commands fail at once, because Redis does not answer.
    pub(crate) fn is_away(&self) -> bool {
        self.is_foreign() || !self.shared.switch.is_up() && self.state().is_away()
    }

    /// Whether Redis was there at least once.
    pub(crate) fn was_up(&self) -> bool {
        self.shared.switch.was_up()
    }

    /// Whether Redis is there.
    pub(crate) fn state(&self) -> State {
        self.shared.switch.state()
    }

    /// The same, to wait for a change.
    pub(crate) fn watch(&self) -> watch::Receiver<State> {
        self.shared.switch.watch()
    }

    /// How often Redis went away.
    pub(crate) fn times_away(&self) -> u64 {
        self.shared.switch.times_away()
    }

    /// Commands under way.
    pub(crate) fn in_flight(&self, in_flight_max: usize) -> usize {
        in_flight_max.saturating_sub(self.shared.places.available_permits())
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.shared.counts
    }

    /// Waits until it is known whether Redis is there.
    ///
    /// # Errors
    /// It is not: in words, why.
    pub(crate) async fn first_word(&self, patience: Duration) -> Result<(), String> {
        let mut state = self.watch();
        let known = timeout(patience, state.wait_for(|state| *state != State::Connecting)).await;
        match known {
            Ok(Ok(state)) => match &*state {
                State::Away(why) => Err(why.to_string()),
                _ => Ok(()),
            },
            _ => Err(format!("no word of it within {} ms", patience.as_millis())),
        }
    }

    async fn ask<T: FromRedisValue>(&self, ask: Ask<'_>) -> Result<T, LinkError> {
        if self.is_foreign() {
            self.shared.counts.away.fetch_add(1, Relaxed);
            return Err(LinkError::Away);
        }
        self.ask_anybody(ask).await
    }

    async fn ask_anybody<T: FromRedisValue>(&self, ask: Ask<'_>) -> Result<T, LinkError> {
        let Shared { switch, places, counts, .. } = &*self.shared;
        let Ok(_place) = places.try_acquire() else {
            counts.crowded.fetch_add(1, Relaxed);
            return Err(LinkError::Crowded);
        };
        let until = Instant::now() + self.shared.command;
        let current = switch.connection(until).await.inspect_err(|_| {
            counts.away.fetch_add(1, Relaxed);
        })?;
        let mut connection = current.connection.clone();
        let answer = timeout_at(until, async {
            match ask {
                Ask::Command(command) => command.query_async(&mut connection).await,
                Ask::Pipeline(commands) => commands.query_async(&mut connection).await,
                Ask::Script(script) => script.invoke_async(&mut connection).await,
                Ask::At(part, command) => scan::ask_at(&mut connection, part, command).await,
                Ask::EachMaster(command) => scan::ask_each_master(&mut connection, command).await,
            }
        });
        let error = match answer.await {
            Ok(Ok(value)) => {
                switch.answered();
                counts.answered.fetch_add(1, Relaxed);
                return Ok(value);
            }
            Ok(Err(error)) => LinkError::of(&error),
            Err(_) => LinkError::Unknown("no answer in time"),
        };
        self.shared.met(&error, &current);
        Err(error)
    }
}

/// Whose it is that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// That does not matter: this is no instance.
    Anybody,
    /// It was not asked yet.
    Unknown,
    Us,
    /// It was ours, and we have left.
    UsNoMore,
    Another,
}

impl Owner {
    fn lets_pass(self) -> bool {
        matches!(self, Self::Anybody | Self::Us)
    }
}

enum Ask<'a> {
    Command(&'a Cmd),
    Pipeline(&'a Pipeline),
    Script(&'a ScriptInvocation<'a>),
    At(&'a Part, &'a Cmd),
    EachMaster(&'a Cmd),
}

impl Shared {
    /// Draws the conclusions from a failure.
    fn met(&self, error: &LinkError, current: &Current) {
        let count = match error {
            LinkError::Unknown(_) => &self.counts.unknown,
            LinkError::Refused(_) => &self.counts.refused,
            _ => &self.counts.answered,
        };
        count.fetch_add(1, Relaxed);
        if !error.is_of_redis_itself() {
            self.switch.answered();
            if *error == LinkError::Refused(Refused::ReadOnly) && self.way.is_sentinel() {
                self.is_stale.store(true, Relaxed); // another is the master by now
                self.look.notify_one();
            }
            return;
        }
        match error {
            // One that broke says nothing about Redis: the task finds that out.
            LinkError::Unknown("the connection broke") => self.look.notify_one(),
            _ if self.switch.failed(current) => {
                self.switch.away(self.way.outage(error.to_string()), self.probe);
                self.look.notify_one();
            }
            _ => {}
        }
    }

    /// From the beginning of one attempt to that of the next: instances do not try in step.
    fn pause(&self) -> Duration {
        let quarter = self.probe / 4;
        let random = getrandom::u32().unwrap_or(u32::MAX / 2);
        self.probe + quarter.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}
