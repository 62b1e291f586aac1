//! Listening: a connection of its own, made again whenever it breaks or falls silent. Redis keeps no message for who is
//! not listening, so after each such time a listener is told that something may have been missed, once the connection
//! stands again: what it then looks up cannot be overtaken.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::StreamExt;
use redis::{Msg, RedisError};
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};

use super::{LinkError, Refused, Shared};

/// Messages that wait for the listener; when there are more it is told that some were missed.
const WAITING_MAX: usize = 4096;
/// Between two questions whether the connection still stands.
const PING: Duration = Duration::from_millis(1000);

/// What was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) channel: String,
    pub(crate) payload: Vec<u8>,
}

/// What a listener hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// From now on everything is heard: the first event there is.
    Begun,
    Message(Message),
    /// Something may have been missed; from now on everything is heard again.
    Gap,
}

/// A listener. Its drop ends it.
#[derive(Debug)]
pub(crate) struct Subscription {
    events: mpsc::Receiver<Event>,
    task: JoinHandle<()>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Subscription {
    /// Begins to listen, in a task of the runtime that this is called in. `held` keeps the link.
    pub(super) fn start(
        shared: Arc<Shared>,
        held: Arc<oneshot::Sender<std::convert::Infallible>>,
        channels: Vec<String>,
    ) -> Self {
        let (sender, events) = mpsc::channel(WAITING_MAX);
        let task = tokio::spawn(async move {
            let _held = held;
            let mut out = Out { sender, begun: false, owes_gap: false, deaf: None, missed: &shared.counts.missed };
            for turn in 0.. {
                let next_attempt = Instant::now() + shared.pause();
                match listen(&shared, &channels, turn, &mut out).await {
                    Ok(()) => return, // nobody hears it
                    Err(error)
                        if LinkError::of(&error) == LinkError::Refused(Refused::Denied) && out.deaf.is_none() =>
                    {
                        out.deaf = Some(Deaf::enter(&shared.deaf, &error));
                    }
                    Err(error) => tracing::debug!(%error, "a subscription is made again"),
                }
                out.owes_gap = out.begun;
                sleep_until(next_attempt).await;
            }
        });
        Self { events, task }
    }

    /// The next event. None only when the runtime ends.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

/// One listener that may not listen, as long as that is so. It is said of the first one.
struct Deaf<'a>(&'a AtomicUsize);

impl<'a> Deaf<'a> {
    fn enter(all: &'a AtomicUsize, error: &RedisError) -> Self {
        if all.fetch_add(1, Relaxed) == 0 {
            tracing::error!(
                why = error.detail().unwrap_or_default(),
                "the user of Redis (cluster.user) may not SUBSCRIBE, so that nothing of other instances is heard"
            );
        }
        Self(all)
    }

    /// It may by now. That is said of the last one.
    fn hears(self) {
        let all = self.0;
        std::mem::forget(self); // it is counted here, as its drop would
        if all.fetch_sub(1, Relaxed) == 1 {
            tracing::info!("what other instances tell is heard");
        }
    }
}

impl Drop for Deaf<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

struct Out<'a> {
    sender: mpsc::Sender<Event>,
    deaf: Option<Deaf<'a>>,
    missed: &'a AtomicU64,
    begun: bool,
    owes_gap: bool,
}

impl Out<'_> {
    /// Whether anybody listens. What has no room is a gap, told when there is room.
    fn send(&mut self, event: Event) -> bool {
        if self.owes_gap && event != Event::Gap && !self.send(Event::Gap) {
            return false;
        }
        if self.owes_gap && event != Event::Gap {
            self.missed.fetch_add(1, Relaxed);
            return true; // still no room: this one is part of the gap
        }
        match self.sender.try_send(event) {
            Ok(()) => {
                self.owes_gap = false;
                true
            }
            Err(TrySendError::Full(event)) => {
                self.missed.fetch_add(u64::from(event != Event::Gap), Relaxed);
                self.owes_gap = true;
                true
            }
            Err(TrySendError::Closed(_)) => false,
        }
    }

    /// All channels are subscribed.
    fn stands(&mut self) -> bool {
        if let Some(deaf) = self.deaf.take() {
            deaf.hears();
        }
        if self.begun {
            self.owes_gap = true;
            return self.send(Event::Gap);
        }
        self.begun = true;
        self.send(Event::Begun)
    }
}

/// Listens until the connection breaks (an error) or nobody hears it any more.
async fn listen(shared: &Shared, channels: &[String], turn: usize, out: &mut Out<'_>) -> Result<(), RedisError> {
    let late = || RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
    let foreign = || RedisError::from(std::io::Error::other("it is another deployment's"));
    let mut owner = shared.owner.subscribe();
    let _ = owner.wait_for(|owner| owner.lets_pass()).await; // who could end it is `shared`
    let (connection, master) = shared.way.subscriber(turn).await?;
    let (mut sink, mut messages) = connection.split();
    let mut followed = shared.master.subscribe();
    // The link looks who the master is, and this goes where the link goes.
    let moved = followed.wait_for(|followed| followed.is_some() && *followed != master);
    timeout(shared.command, sink.subscribe(channels)).await.map_err(|_| late())??;
    if !out.stands() {
        return Ok(());
    }
    let pings = async {
        let mut every = interval(PING);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            match timeout(shared.command, sink.ping::<redis::Value>()).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return error,
                Err(_) => return late(),
            }
        }
    };
    tokio::pin!(pings, moved);
    loop {
        tokio::select! {
            error = &mut pings => return Err(error),
            _ = &mut moved => return Err(std::io::Error::other("another server is the master").into()),
            message = messages.next() => {
                let Some(message) = message else {
                    return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
                };
                if !owner.borrow().lets_pass() {
                    return Err(foreign());
                }
                if !out.send(Event::Message(heard(&message))) {
                    return Ok(());
                }
            }
            () = out.sender.closed() => return Ok(()),
        }
    }
}

fn heard(message: &Msg) -> Message {
    Message { channel: message.get_channel_name().to_owned(), payload: message.get_payload_bytes().to_vec() }
}
