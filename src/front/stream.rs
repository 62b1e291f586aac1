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
    time::{Instant, Sleep, sleep_until},
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
        calling::{PendingCall, Voice},
        events::EventLog,
        router::Answer,
    },
    outbox::Message,
    shutdown::Drain,
};

/// The least time between two progress reports to one client; of those that come faster the newest is sent.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(10);

/// So much is sent before more is taken out of the outbox: a tool may fill it as fast as it is emptied.
const EVENT_BYTES_SENT: usize = 16 * 1024;

/// A session's call that takes longer than this gets its stream, so that its client can come back to it.
const SILENT_MAX: Duration = Duration::from_secs(1);

type Running = Pin<Box<dyn Future<Output = Answer> + Send>>;

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
        voice,
        call: Some(call),
        first: None,
        pace: Pace::default(),
        quiet: Quiet::new(conn.front.limits.stream_keep_alive()),
        resumable: None,
        wants_release: false,
        alone: false,
        place: Some(place),
    };
    let mut silence: Option<Pin<Box<Sleep>>> = None;
    let spoken = poll_fn(|cx| {
        if let Poll::Ready(spoken) = stream.poll(cx) {
            return Poll::Ready(spoken);
        }
        if stream.voice.session.is_none() {
            return Poll::Pending;
        }
        let timer = silence.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + SILENT_MAX)));
        timer.as_mut().poll(cx).map(|()| Spoken::default())
    });
    match spoken.await {
        // It said nothing before it was done.
        Spoken { said, end: Some(answer) } if said.is_empty() => finish(answer, takes),
        spoken => {
            stream.first = stream.open(spoken);
            reply::events(Body::events(stream))
        }
    }
}

fn finish(answer: Answer, takes: Takes) -> Response<Body> {
    if answer.payload.len() == 0 { reply::silence(takes) } else { reply::message(answer, takes) }
}

/// A running call, as events.
pub(crate) struct CallStream {
    voice: Voice,
    /// `None` when it is over.
    call: Option<Running>,
    /// What had been said before the stream began.
    first: Option<Bytes>,
    pace: Pace,
    quiet: Quiet,
    /// Where what is said is kept, once the stream has begun.
    resumable: Option<Resumable>,
    /// The tool lets the connection go as soon as the client can come back.
    wants_release: bool,
    /// It goes on in a task of its own already.
    alone: bool,
    place: Option<Place>,
}

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

/// What came out of a call at one moment.
#[derive(Default)]
struct Spoken {
    said: Vec<Bytes>,
    /// The call is over.
    end: Option<Answer>,
}

impl Spoken {
    /// All messages, the answer last.
    fn messages(self) -> impl Iterator<Item = Bytes> {
        let answer = self.end.filter(|answer| answer.payload.len() > 0);
        self.said.into_iter().chain(answer.map(|answer| answer.payload.into_bytes()))
    }
}

impl CallStream {
    /// The stream's beginning.
    fn open(&mut self, spoken: Spoken) -> Option<Bytes> {
        let mut bytes = Vec::new();
        let session = self.voice.session.as_ref();
        if let Some(log) = self.voice.open_log() {
            let reader = log.attach();
            // Clients of older revisions take an event without data for a broken one.
            let has_id = session.is_some_and(|s| s.version() == LEGACY_VERSIONS[0]);
            if has_id {
                push_first_event(&mut bytes, &log.id(0));
            }
            self.resumable = Some(Resumable { log, reader, has_id });
        }
        bytes.extend_from_slice(&self.write_events(spoken));
        (!bytes.is_empty()).then(|| bytes.into())
    }

    /// The next bytes of the stream; `None` at its end.
    pub(crate) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(first) = self.first.take() {
            self.quiet.restart();
            return Poll::Ready(Some(first));
        }
        let gone = self.is_released() || self.resumable.as_ref().is_some_and(|r| !r.log.is_reader(r.reader));
        if gone || self.call.is_none() {
            return Poll::Ready(None);
        }
        match self.poll(cx) {
            Poll::Pending => self.quiet.poll(cx).map(|()| Some(KEEP_ALIVE)),
            Poll::Ready(spoken) => {
                self.quiet.restart();
                let events = self.write_events(spoken);
                if events.is_empty() && self.call.is_some() && !self.is_released() {
                    cx.waker().wake_by_ref(); // something was said that is no event
                    return Poll::Pending;
                }
                Poll::Ready((!events.is_empty()).then(|| events.into()))
            }
        }
    }

    /// Whether the connection is let go: never before the client has an id to come back with.
    fn is_released(&self) -> bool {
        self.wants_release && self.resumable.as_ref().is_some_and(|r| r.has_id)
    }

    /// What was said as bytes of the stream.
    fn write_events(&mut self, spoken: Spoken) -> Vec<u8> {
        let mut bytes = Vec::new();
        let is_over = spoken.end.is_some();
        let mut messages = spoken.messages().peekable();
        while let Some(json) = messages.next() {
            match &mut self.resumable {
                Some(Resumable { log, has_id, .. }) => {
                    *has_id = true;
                    let is_answer = is_over && messages.peek().is_none();
                    let number = if is_answer { log.push_answer(json.clone()) } else { log.push(json.clone()) };
                    push_event_with_id(&mut bytes, &log.id(number), &json);
                }
                None => push_event(&mut bytes, &json),
            }
        }
        if let (true, Some(Resumable { log, .. })) = (is_over, &self.resumable) {
            log.end(std::time::Instant::now());
        }
        bytes
    }

    /// What the call says next, or its end with all that it said until then.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Spoken> {
        let Some(call) = &mut self.call else { return Poll::Ready(Spoken::default()) };
        // The call first: what it says while it is polled goes out with this event and not the next.
        let end = match call.as_mut().poll(cx) {
            Poll::Ready(answer) => Some(answer),
            Poll::Pending => None,
        };
        let mut said = Vec::new();
        if end.is_some() {
            self.call = None;
            for message in self.voice.outbox.close() {
                if message != Message::Release {
                    said.push(self.voice.encode(&message).into());
                }
            }
            return Poll::Ready(Spoken { said, end });
        }
        let mut bytes = 0;
        loop {
            let due = self.pace.is_due(cx);
            match self.voice.outbox.poll_next(cx, due) {
                Poll::Ready(Message::Release) => {
                    if self.voice.session.is_some() {
                        self.wants_release = true;
                        return Poll::Ready(Spoken { said, end: None });
                    }
                }
                Poll::Ready(message) => {
                    if matches!(message, Message::Progress { .. }) {
                        self.pace.restart();
                    }
                    let json = self.voice.encode(&message);
                    bytes += json.len();
                    said.push(json.into());
                    if bytes >= EVENT_BYTES_SENT {
                        return Poll::Ready(Spoken { said, end: None });
                    }
                }
                Poll::Pending if said.is_empty() => return Poll::Pending,
                Poll::Pending => return Poll::Ready(Spoken { said, end: None }),
            }
        }
    }

    /// The rest of a call whose connection has ended, kept for the client's return.
    async fn go_on(mut self, drain: Arc<Drain>) {
        let mut over = pin!(drain.until_over());
        let mut is_over = false;
        while self.call.is_some() {
            let spoken = poll_fn(|cx| {
                // The call looks at the drain when it is polled, and has no connection that would be woken for it.
                is_over = is_over || over.as_mut().poll(cx).is_ready();
                self.poll(cx)
            });
            let spoken = spoken.await;
            self.write_events(spoken);
        }
    }
}

impl Drop for CallStream {
    fn drop(&mut self) {
        let Some(resumable) = &self.resumable else { return };
        if self.call.is_none() {
            return;
        }
        let runtime = match Handle::try_current() {
            Ok(runtime) if !self.alone && !std::thread::panicking() => runtime,
            // It panicked, or the threads end: nobody will hear more of it.
            _ => return resumable.log.end(std::time::Instant::now()),
        };
        let rest = Self {
            voice: self.voice.clone(),
            call: self.call.take(),
            first: None,
            pace: Pace::default(),
            quiet: Quiet::new(self.quiet.interval),
            // A reader of nothing: who comes back takes over from whoever was before.
            resumable: Some(Resumable { log: Arc::clone(&resumable.log), reader: 0, has_id: true }),
            wants_release: false,
            alone: true,
            place: self.place.take(),
        };
        // The one task that a call ever gets. It ends with the call, which has a deadline.
        let drain = rest.place.as_ref().map(|place| Arc::clone(&place.front().router.drain)).unwrap_or_default();
        runtime.spawn(rest.go_on(drain));
    }
}

/// Spaces progress reports.
#[derive(Default)]
struct Pace {
    /// Runs while it is too early for the next.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    fn restart(&mut self) {
        let at = Instant::now() + PROGRESS_INTERVAL;
        match &mut self.timer {
            Some(timer) => timer.as_mut().reset(at),
            None => self.timer = Some(Box::pin(sleep_until(at))),
        }
    }

    /// Whether the next may go; if not, the task is woken when it may.
    fn is_due(&mut self, cx: &mut Context<'_>) -> bool {
        self.timer.as_mut().is_none_or(|timer| timer.as_mut().poll(cx).is_ready())
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
