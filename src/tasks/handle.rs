//! A running task from the inside: the [`Handle`] of who runs it, who owes it an end, and the [`Link`] for the work
//! itself, which may speak, ask and learn that it is cancelled.

use std::{fmt, sync::Arc, time::Duration};

use serde_json::{Map, Value, value::RawValue};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    Tasks,
    live::{Live, QUESTIONS_MAX, Signal},
    record::{Change, Failure},
};

/// The task has ended while its work goes on: it was cancelled, took too long, cannot be kept, or another process runs
/// it by now. Nobody waits for the work any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancelled;

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the task has been cancelled or has run out of its time")
    }
}

impl std::error::Error for Cancelled {}

/// The duty to end a task. Dropping it without an end fails the task.
#[derive(Debug)]
pub struct Handle {
    link: Link,
}

impl Handle {
    pub(super) fn new(tasks: Arc<Tasks>, live: Arc<Live>) -> Self {
        Self { link: Link { tasks, live } }
    }

    /// The task was never made, so that nobody is owed an end.
    pub(super) fn discard(self) {
        self.link.live.settle();
    }

    pub(super) fn live(&self) -> &Live {
        &self.link.live
    }

    /// The task's id.
    pub fn id(&self) -> &str {
        self.link.id()
    }

    /// What the work needs of the task, to be given away.
    pub fn link(&self) -> Link {
        self.link.clone()
    }

    /// As [`Link::ask`].
    ///
    /// # Errors
    /// [`Cancelled`] when the task ends meanwhile.
    pub async fn ask(&self, requests: Map<String, Value>) -> Result<Map<String, Value>, Cancelled> {
        self.link.ask(requests).await
    }

    /// As [`Link::cancelled`].
    pub async fn cancelled(&self) {
        self.link.cancelled().await;
    }

    /// As [`Link::is_cancelled`].
    pub fn is_cancelled(&self) -> bool {
        self.link.is_cancelled()
    }

    /// As [`Link::say`].
    pub async fn say(&self, message: &str) {
        self.link.say(message).await;
    }

    /// Ends the task with a result, one JSON object without line breaks. Does nothing when it has ended. A store that
    /// cannot be reached hears of it later.
    pub async fn complete(self, result: Box<RawValue>) {
        self.end(Change::Complete(Arc::from(result))).await;
    }

    /// Ends the task with a JSON-RPC error; an error that a tool reports is a result. Otherwise as
    /// [`Handle::complete`].
    pub async fn fail(self, code: i32, message: String, data: Option<Value>) {
        self.end(Change::Fail(Failure { code, message, data })).await;
    }

    async fn end(&self, change: Change) {
        self.link.live.end_with(change);
        self.link.tasks.settle(&self.link.live).await;
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let Link { tasks, live } = &self.link;
        live.end_with(Change::Fail(Failure::internal("the task ended without an answer")));
        // Also when the end itself was given up halfway. Whatever does not get through here, the sweep does.
        if !live.is_settled()
            && let Some(runtime) = live.runtime()
        {
            let (tasks, live) = (Arc::clone(tasks), Arc::clone(live));
            runtime.spawn(async move { tasks.settle(&live).await });
        }
    }
}

/// The way from the work to its task.
#[derive(Clone, Debug)]
pub struct Link {
    tasks: Arc<Tasks>,
    live: Arc<Live>,
}

impl Link {
    /// The task's id.
    pub fn id(&self) -> &str {
        self.live.id()
    }

    /// Parks the task until the client has answered all of `requests`, and returns the answers under the same keys.
    /// Several questions may be open at once, also under equal keys: the client sees a key of its own for each. Giving
    /// this future up takes the questions back.
    ///
    /// # Errors
    /// [`Cancelled`] when the task ends meanwhile.
    pub async fn ask(&self, requests: Map<String, Value>) -> Result<Map<String, Value>, Cancelled> {
        if requests.is_empty() {
            return if self.is_cancelled() { Err(Cancelled) } else { Ok(Map::new()) };
        }
        let Some(names) = self.live.name_questions(requests.keys()) else {
            return Err(self.give_up(format!("the task asked more than {QUESTIONS_MAX} questions")).await);
        };
        let keys: Vec<String> = requests.keys().cloned().collect();
        let open = names.iter().cloned().zip(requests.into_iter().map(|(_, request)| request)).collect();
        let mut signal = self.live.subscribe();
        let questions = Questions { link: self, names, are_open: true };
        match self.tasks.change_by(&self.live, Change::Ask(open)).await {
            Ok(Some(_)) => {}
            Ok(None) => return Err(Cancelled),
            Err(error) => return Err(self.give_up(format!("the task could not ask its client: {error}")).await),
        }
        let answers = questions.answers(&mut signal).await?;
        Ok(keys.into_iter().zip(answers).collect())
    }

    /// Returns when the task is cancelled, or has ended otherwise: its time may be over, or this process seemed to be gone
    /// and another runs it by now.
    pub async fn cancelled(&self) {
        let mut signal = self.live.subscribe();
        while !signal.borrow_and_update().is_over {
            self.news(&mut signal, false).await;
            if self.tasks.is_shared() && self.is_gone().await {
                self.live.wake(true);
            }
        }
    }

    /// Whether to stop. With a store that others write to, it is [`Link::cancelled`] that learns of it.
    pub fn is_cancelled(&self) -> bool {
        self.live.is_over()
    }

    /// A line about how it goes, for people.
    pub async fn say(&self, message: &str) {
        let change = Change::Working { message: Some(message.to_owned()) };
        if let Err(error) = self.tasks.change_by(&self.live, change).await {
            tracing::warn!(%error, task = self.id(), "a task's message was not kept");
        }
    }

    /// Waits for a reason to look at the record: a signal, or so much time that it is worth a look.
    async fn news(&self, signal: &mut watch::Receiver<Signal>, look_soon: bool) {
        let pause = self.tasks.look_interval();
        if look_soon || self.tasks.is_shared() {
            // Either way it is time to look.
            let _ = timeout(pause, signal.changed()).await;
        } else if signal.changed().await.is_err() {
            // The sender lives in what this borrows from, so it is there; but never spin.
            sleep(pause).await;
        }
    }

    async fn is_gone(&self) -> bool {
        self.tasks.store.running(self.id()).await.is_ok_and(|record| record.is_none())
    }

    async fn give_up(&self, why: String) -> Cancelled {
        tracing::warn!(task = self.id(), "{why}");
        self.live.end_with(Change::Fail(Failure::internal(why)));
        self.tasks.settle(&self.live).await;
        Cancelled
    }
}

/// Open questions of a task, which are taken back on every path.
struct Questions<'l> {
    link: &'l Link,
    /// The keys that the client sees.
    names: Vec<String>,
    are_open: bool,
}

impl Questions<'_> {
    /// The answers, in the order of the names.
    async fn answers(mut self, signal: &mut watch::Receiver<Signal>) -> Result<Vec<Value>, Cancelled> {
        let Link { tasks, live } = self.link;
        loop {
            if signal.borrow_and_update().is_over {
                self.are_open = false; // the end has closed them
                return Err(Cancelled);
            }
            let mut look_soon = false;
            match tasks.store.running(live.id()).await {
                Ok(Some(record)) => {
                    let mut inputs = record.inputs;
                    if self.names.iter().all(|name| inputs.contains_key(name)) {
                        let answers = self.names.iter().filter_map(|name| inputs.remove(name)).collect();
                        if tasks.change_by(live, Change::Forget(self.names.clone())).await.is_ok() {
                            self.are_open = false;
                        }
                        return Ok(answers);
                    }
                }
                Ok(None) => live.wake(true),
                Err(error) => {
                    tracing::warn!(%error, task = live.id(), "a waiting task could not look for its answers");
                    look_soon = true;
                }
            }
            if !live.is_over() {
                self.link.news(signal, look_soon).await;
            }
        }
    }
}

impl Drop for Questions<'_> {
    fn drop(&mut self) {
        if !self.are_open || self.link.is_cancelled() {
            return;
        }
        if let Some(runtime) = self.link.live.runtime() {
            let (link, names) = (self.link.clone(), std::mem::take(&mut self.names));
            runtime.spawn(async move {
                if let Err(error) = link.tasks.change_by(&link.live, Change::Forget(names)).await {
                    tracing::warn!(%error, task = link.id(), "questions that nobody waits for stay open");
                }
            });
        }
    }
}

/// How often a store is looked at that others write to, or that failed: as often as clients are told to, within reason.
pub(super) fn look_interval(poll_interval_ms: u64) -> Duration {
    Duration::from_millis(poll_interval_ms.clamp(100, 60_000))
}
