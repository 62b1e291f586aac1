//! A call on its way to the client: JSON when it is over before it says anything, an event stream from the moment it
//! does. The stream owns the running call, so that nothing is spawned and the client's leaving drops the work.
//!
//! Sessions (up to 2025-11-25) differ in one thing: there, a lost connection does not take a call back. From the first
//! event on, what is said is kept under ids, and a call whose connection ends goes on by itself until the client comes
//! back for the rest.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::Response;
use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Instant, Sleep, sleep_until, timeout},
};

use crate::{
    front::{
        body::Body,
        connection::Connection,
        gate::Place,
        headers::Takes,
        reply::{self, KEEP_ALIVE, push_event, push_event_with_id, push_first_event},
    },
    mcp::{
        LEGACY_VERSIONS,
        events::EventLog,
        pending::PendingCall,
        router::Answer,
        speaking::{Speaking, Spoken},
    },
    shutdown::Drain,
};

/// A session's call that takes longer than this gets its stream, so that its client can come back to it.
const SILENT_MAX: Duration = Duration::from_secs(1);

/// How long a client waits for its first event until other instances find the stream, should Redis be slow.
const SHARED_MAX: Duration = Duration::from_millis(500);

/// So many bytes of events a call says before the first of them is sent.
const UNSENT_MAX: usize = 64 * 1024;

/// Runs a call and answers in the form that it needs.
pub(super) async fn run(conn: &Arc<Connection>, call: PendingCall, takes: Takes, place: Place) -> Response<Body> {
    let Some(voice) = call.voice() else {
        let answer = call.run(&conn.front.router).await;
        conn.front.count(&answer);
        return finish(answer, takes);
    };
    let owner = Arc::clone(conn);
    let call = Box::pin(async move {
        let answer = call.run(&owner.front.router).await;
        owner.front.count(&answer);
        answer
    });
    let mut stream = CallStream {
        speaking: Speaking::new(voice, call),
        first: None,
        quiet: Quiet::new(conn.front.limits.stream_keep_alive()),
        resumable: None,
        last: None,
        alone: false,
        place: Some(place),
    };
    let mut silence: Option<Pin<Box<Sleep>>> = None;
    let spoken = poll_fn(|cx| {
        if let Poll::Ready(spoken) = stream.speaking.poll(cx) {
            return Poll::Ready(spoken);
        }
        if stream.speaking.voice.session.is_none() {
            return Poll::Pending;
        }
        let timer = silence.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + SILENT_MAX)));
        timer.as_mut().poll(cx).map(|()| Spoken::default())
    });
    match spoken.await {
        // It said nothing before it was done.
        Spoken { said, end: Some(answer) } if said.is_empty() => finish(answer, takes),
        spoken => {
            let shared;
            (stream.first, shared) = stream.open(spoken);
            // An id to come back with is worth nothing before it is found wherever the client comes back to.
            if let Some(shared) = shared {
                let mut shared = pin!(timeout(SHARED_MAX, shared));
                poll_fn(|cx| {
                    stream.go_on_unsent(cx);
                    shared.as_mut().poll(cx).map(drop)
                })
                .await;
            }
            reply::events(Body::events(stream))
        }
    }
}

fn finish(answer: Answer, takes: Takes) -> Response<Body> {
    if answer.payload.len() == 0 { reply::silence(takes) } else { reply::message(answer, takes) }
}

/// A running call, as events.
pub(crate) struct CallStream {
    speaking: Speaking,
    /// What had been said before the stream began.
    first: Option<Bytes>,
    quiet: Quiet,
    /// Where what is said is kept, once the stream has begun.
    resumable: Option<Resumable>,
    /// The last events, which wait until the end is known to other instances, where there are any.
    last: Option<(Bytes, Finishing)>,
    /// It goes on in a task of its own already.
    alone: bool,
    place: Option<Place>,
}

/// Whether the end was the end.
type Finishing = Pin<Box<dyn Future<Output = bool> + Send>>;

/// A stream that its client can come back to.
struct Resumable {
    log: Arc<EventLog>,
    reader: u64,
    /// The client has been given an id to come back with.
    has_id: bool,
}

impl Drop for Resumable {
    fn drop(&mut self) {
        self.log.detach(self.reader, std::time::Instant::now());
    }
}

impl CallStream {
    /// The stream's beginning, and what resolves when other instances find it.
    fn open(&mut self, spoken: Spoken) -> (Option<Bytes>, Option<oneshot::Receiver<()>>) {
        let (mut bytes, mut shared) = (Vec::new(), None);
        let session = self.speaking.voice.session.as_ref();
        if let Some((log, opened)) = self.speaking.voice.open_log() {
            shared = opened;
            let reader = log.attach();
            // Clients of older revisions take an event without data for a broken one.
            let has_id = session.is_some_and(|s| s.version() == LEGACY_VERSIONS[0]);
            if has_id {
                push_first_event(&mut bytes, &log.id(0));
            }
            self.resumable = Some(Resumable { log, reader, has_id });
        }
        bytes.extend_from_slice(&self.write_events(spoken));
        if let Some((last, _)) = &mut self.last {
            *last = bytes.into();
            return (None, shared);
        }
        ((!bytes.is_empty()).then(|| bytes.into()), shared)
    }

    /// Runs the call on while nothing of it is sent yet. What it says goes out with the first events, up to so much.
    fn go_on_unsent(&mut self, cx: &mut Context<'_>) {
        while !self.speaking.is_over() && self.first.as_ref().is_none_or(|first| first.len() < UNSENT_MAX) {
            let Poll::Ready(spoken) = self.speaking.poll(cx) else { return };
            let more = self.write_events(spoken);
            if let Some((last, _)) = &mut self.last {
                *last = more.into();
            } else if !more.is_empty() {
                let first = self.first.take().unwrap_or_default();
                self.first = Some([first.as_ref(), more.as_slice()].concat().into());
            }
        }
    }

    /// The next bytes of the stream; `None` at its end.
    pub(crate) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(first) = self.first.take() {
            self.quiet.restart();
            return Poll::Ready(Some(first));
        }
        if let Some((_, finishing)) = &mut self.last {
            let is_end = std::task::ready!(finishing.as_mut().poll(cx));
            let last = self.last.take().map(|(last, _)| last);
            return Poll::Ready(last.filter(|last| is_end && !last.is_empty()));
        }
        if self.is_lost(cx) {
            self.speaking.give_up();
        }
        let gone =
            self.is_released() || self.resumable.as_ref().is_some_and(|r| r.log.poll_cut(r.reader, cx).is_ready());
        if gone || self.speaking.is_over() {
            return Poll::Ready(None);
        }
        match self.speaking.poll(cx) {
            Poll::Pending => self.quiet.poll(cx).map(|()| Some(KEEP_ALIVE)),
            Poll::Ready(spoken) => {
                self.quiet.restart();
                let is_over = spoken.end.is_some();
                let events = self.write_events(spoken);
                if is_over && self.last.is_some() {
                    if let Some((last, _)) = &mut self.last {
                        *last = events.into();
                    }
                    return self.poll_event(cx);
                }
                if events.is_empty() && !self.speaking.is_over() && !self.is_released() {
                    cx.waker().wake_by_ref(); // something was said that is no event
                    return Poll::Pending;
                }
                Poll::Ready((!events.is_empty()).then(|| events.into()))
            }
        }
    }

    /// Whether the connection is let go: never before the client has an id to come back with.
    fn is_released(&self) -> bool {
        self.speaking.wants_release && self.resumable.as_ref().is_some_and(|r| r.has_id)
    }

    /// Whether another instance has taken the stream over, since this one seemed to be gone: the call ends there, and
    /// what comes of this run is nobody's. The client is cut off here and comes back to the other.
    fn is_lost(&self, cx: &Context<'_>) -> bool {
        let Some(Resumable { log, .. }) = &self.resumable else { return false };
        let is_lost = log.poll_lost(cx).is_ready();
        if is_lost {
            log.end(std::time::Instant::now());
        }
        is_lost
    }

    /// What was said as bytes of the stream.
    fn write_events(&mut self, spoken: Spoken) -> Vec<u8> {
        let mut bytes = Vec::new();
        let (is_over, mut last) = (spoken.end.is_some(), None);
        for (json, is_answer) in spoken.messages() {
            match &mut self.resumable {
                Some(Resumable { log, has_id, .. }) => {
                    *has_id = true;
                    let number = if is_answer {
                        last = Some(json.clone());
                        log.newest() + 1
                    } else {
                        log.push(json.clone())
                    };
                    push_event_with_id(&mut bytes, &log.id(number), &json);
                }
                None => push_event(&mut bytes, &json),
            }
        }
        if let (true, Some(Resumable { log, .. })) = (is_over, &self.resumable) {
            let log = Arc::clone(log);
            self.last = Some((Bytes::new(), Box::pin(async move { log.finish(last).await })));
        }
        bytes
    }

    /// The rest of a call whose connection has ended, kept for the client's return.
    async fn go_on(mut self, drain: Arc<Drain>) {
        let mut over = pin!(drain.until_over());
        let mut is_over = false;
        while !self.speaking.is_over() {
            let spoken = poll_fn(|cx| {
                // The call looks at the drain when it is polled, and has no connection that would be woken for it.
                is_over = is_over || over.as_mut().poll(cx).is_ready();
                if self.is_lost(cx) {
                    self.speaking.give_up();
                }
                self.speaking.poll(cx)
            });
            let spoken = spoken.await;
            self.write_events(spoken);
            if let Some((_, finishing)) = self.last.take() {
                finishing.await;
            }
        }
    }
}

impl Drop for CallStream {
    fn drop(&mut self) {
        let Some(resumable) = &self.resumable else { return };
        if self.speaking.is_over() {
            // The end is written in any case, for who comes back.
            if let (Some((_, finishing)), Ok(runtime)) = (self.last.take(), Handle::try_current()) {
                runtime.spawn(finishing);
            }
            return;
        }
        let runtime = match Handle::try_current() {
            Ok(runtime) if !self.alone && !std::thread::panicking() => runtime,
            // It panicked, or the threads end: nobody will hear more of it.
            _ => return resumable.log.end(std::time::Instant::now()),
        };
        let rest = Self {
            speaking: self.speaking.hand_over(),
            first: None,
            quiet: Quiet::new(self.quiet.interval),
            // A reader of nothing: who comes back takes over from whoever was before.
            resumable: Some(Resumable { log: Arc::clone(&resumable.log), reader: 0, has_id: true }),
            last: None,
            alone: true,
            place: self.place.take(),
        };
        // The one task that a call ever gets. It ends with the call, which has a deadline.
        let drain = rest.place.as_ref().map(|place| Arc::clone(&place.front().router.drain)).unwrap_or_default();
        runtime.spawn(rest.go_on(drain));
    }
}

/// Waits for a stream to have been silent for a while. The timer is made by the first silence, as few streams have one.
struct Quiet {
    interval: Duration,
    since: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Quiet {
    fn new(interval: Duration) -> Self {
        Self { interval, since: Instant::now(), timer: None }
    }

    fn restart(&mut self) {
        self.since = Instant::now();
    }

    /// Ready when a comment is due; the next one is due an interval later.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let at = self.since + self.interval;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() != at {
            timer.as_mut().reset(at);
        }
        std::task::ready!(timer.as_mut().poll(cx));
        self.restart();
        Poll::Ready(())
    }
}
