//! A stream that no call owns, on its way to the client: events as they come, spaced so that a flood of changes is a few
//! messages, and a comment now and then so that proxies keep the connection.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::Response;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    front::{
        Front,
        body::Body,
        connection::Connection,
        doorkeeper::TurnedAway,
        gate::StreamPlace,
        reply::{self, KEEP_ALIVE, push_event, push_event_with_id},
    },
    mcp::{code::Refusal, feed::Feed},
};

/// The least time between two rounds of changes on one stream: at most ten a second.
const CHANGES_INTERVAL: Duration = Duration::from_millis(100);
/// So much is sent at once.
const EVENT_BYTES_SENT: usize = 16 * 1024;

/// Opens the stream. It ends when `turned_away` does: who lost the key that opened it hears no more.
pub(super) fn open(
    conn: &Arc<Connection>,
    feed: Feed,
    turned_away: Option<TurnedAway>,
) -> Result<Response<Body>, Refusal> {
    let place = StreamPlace::take(&conn.front)?;
    let at = Instant::now() + conn.front.limits.stream_keep_alive();
    let stream = FeedStream {
        front: Arc::clone(&conn.front),
        feed: Some(feed),
        turned_away,
        begun: false,
        resting: false,
        timer: Box::pin(sleep_until(at)),
        _place: place,
    };
    Ok(reply::events(Body::feed(stream)))
}

/// An open stream.
pub(crate) struct FeedStream {
    front: Arc<Front>,
    /// `None` when it is over.
    feed: Option<Feed>,
    turned_away: Option<TurnedAway>,
    begun: bool,
    /// Changes wait, since some were sent just now.
    resting: bool,
    /// The end of the rest, or the next comment.
    timer: Pin<Box<Sleep>>,
    _place: StreamPlace,
}

impl FeedStream {
    /// The next bytes of the stream; `None` at its end.
    pub(crate) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.turned_away.as_mut().is_some_and(|turned_away| turned_away.as_mut().poll(cx).is_ready()) {
            (self.feed, self.turned_away) = (None, None);
        }
        let Some(feed) = &mut self.feed else { return Poll::Ready(None) };
        let mut bytes = Vec::new();
        if !self.begun {
            self.begun = true;
            // So that the client sees the stream open before the first event.
            bytes.extend_from_slice(b": open\n\n");
        }
        loop {
            match feed.poll_next(!self.resting, cx) {
                Poll::Ready(Some(said)) => {
                    match said.id {
                        Some(id) => push_event_with_id(&mut bytes, &id, &said.json),
                        None => push_event(&mut bytes, &said.json),
                    }
                    if bytes.len() >= EVENT_BYTES_SENT {
                        break;
                    }
                }
                Poll::Ready(None) => {
                    self.feed = None;
                    break;
                }
                Poll::Pending => break,
            }
        }
        if self.front.router.drain.is_hanging_up()
            && let Some(feed) = self.feed.take()
            && let Some(farewell) = feed.farewell(&self.front.router.encoder)
        {
            push_event(&mut bytes, &farewell);
        }
        let Some(feed) = &self.feed else {
            return Poll::Ready((!bytes.is_empty()).then(|| bytes.into()));
        };
        let now = Instant::now();
        if !bytes.is_empty() {
            self.resting = feed.is_of_changes();
            let rest = if self.resting { CHANGES_INTERVAL } else { self.front.limits.stream_keep_alive() };
            self.timer.as_mut().reset(now + rest);
            // The timer is asked below only when nothing is sent, so it is asked here to be woken by it.
            let _ = self.timer.as_mut().poll(cx);
            return Poll::Ready(Some(bytes.into()));
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            self.timer.as_mut().reset(Instant::now() + self.front.limits.stream_keep_alive());
            if !std::mem::take(&mut self.resting) {
                let _ = self.timer.as_mut().poll(cx);
                return Poll::Ready(Some(KEEP_ALIVE));
            }
            if let Poll::Ready(event) = self.poll_event(cx) {
                return Poll::Ready(event);
            }
        }
        Poll::Pending
    }
}
