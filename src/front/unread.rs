//! What a client sends and nobody reads: it is taken in and thrown away, within bounds of size and time, before a
//! connection or a stream ends. An end with bytes unread is a reset, which takes with it what is left of the last
//! answer on its way. The same for all ways in which requests are read, and for a connection that has had its time (it
//! idles, or a head does not come): its next request may be on its way. At once ends who does not take what is sent, and
//! who idles while memory is short.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep_until},
};

use super::{
    connection::Connection,
    watched::{READ_BYTES, poll_look},
};

/// As much of a body is always taken that nobody reads. With more to come of one that was refused, a connection is not
/// used again.
pub(super) const UNREAD_BYTES_MAX: u64 = 64 * 1024;
/// What is on its way is taken for so long, as long as it comes without such a pause.
pub(super) const UNREAD_TIME: Duration = Duration::from_secs(3);
pub(super) const UNREAD_PAUSE: Duration = Duration::from_millis(500);
/// How long the end of a connection may take to be said.
pub(super) const END_TIME: Duration = Duration::from_secs(1);

/// The longest that an end is waited for, whatever of these it is at.
pub(super) const ENDING_TIME_MAX: Duration = Duration::from_secs(5);

/// The most that is taken on a connection: no more than somebody might have read.
pub(super) fn bytes_max(conn: &Connection) -> u64 {
    conn.front.limits.request_bytes_max.0.max(UNREAD_BYTES_MAX)
}

/// What came of taking it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Nothing more comes.
    All,
    /// As much as there may be.
    Enough,
    /// It did not come in time.
    Late,
}

/// How much is still taken, and until when.
pub(super) struct Taking {
    bytes_left: u64,
    pause: Duration,
    end: Instant,
    /// Mostly all is there at once, and no timer is made.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Taking {
    pub(super) fn new(bytes_max: u64, time: Duration, pause: Duration) -> Self {
        Self { bytes_left: bytes_max, pause, end: Instant::now() + time, timer: None }
    }

    /// Has as long again.
    pub(super) fn begin_again(&mut self, time: Duration) {
        (self.end, self.timer) = (Instant::now() + time, None);
    }

    /// Takes what `next` gives, by its bytes, until it gives none.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut next: impl FnMut(&mut Context<'_>) -> Poll<Option<u64>>,
    ) -> Poll<Taken> {
        while self.bytes_left > 0 {
            match next(cx) {
                Poll::Ready(Some(bytes)) => {
                    self.bytes_left = self.bytes_left.saturating_sub(bytes);
                    self.timer = None;
                }
                Poll::Ready(None) => return Poll::Ready(Taken::All),
                Poll::Pending => {
                    let until = (Instant::now() + self.pause).min(self.end);
                    let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
                    return timer.as_mut().poll(cx).map(|()| Taken::Late);
                }
            }
        }
        Poll::Ready(Taken::Enough)
    }
}

/// The end of a connection: that nothing more comes is said, which for TLS is a message of its own; then what the
/// client has sent behind its request is taken, and it has time to see the end.
pub(super) struct Ending {
    taking: Taking,
    is_said: bool,
    /// Nothing is known to have come that was not read.
    is_dry: bool,
}

impl Ending {
    pub(super) fn new(bytes_max: u64, is_dry: bool) -> Self {
        Self { taking: Taking::new(bytes_max, END_TIME, END_TIME), is_said: false, is_dry }
    }

    pub(super) fn poll<S: AsyncRead + AsyncWrite + Unpin>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Poll<()> {
        let Self { taking, is_said, is_dry } = self;
        if !*is_said {
            let said = taking.poll(cx, |cx| Pin::new(&mut *stream).poll_shutdown(cx).map(|_| None));
            if said.is_pending() {
                return Poll::Pending;
            }
            *is_said = true;
            taking.begin_again(UNREAD_TIME);
            taking.pause = UNREAD_PAUSE;
        }
        let taken = taking.poll(cx, |cx| match poll_look(stream, cx, READ_BYTES, |came| Ok(came.len() as u64)) {
            Poll::Ready(Ok(bytes @ 1..)) => {
                *is_dry = false;
                Poll::Ready(Some(bytes))
            }
            Poll::Ready(_) => Poll::Ready(None),
            Poll::Pending if *is_dry => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        taken.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    async fn taken(taking: &mut Taking, mut pieces: Vec<u64>, then: Option<()>) -> Taken {
        pieces.reverse();
        poll_fn(|cx| {
            taking.poll(cx, |_| match pieces.pop() {
                Some(bytes) => Poll::Ready(Some(bytes)),
                None => then.map_or(Poll::Pending, |()| Poll::Ready(None)),
            })
        })
        .await
    }

    const LONG: Duration = Duration::from_secs(600);
    const SHORT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn it_ends_with_what_comes_with_so_many_bytes_and_in_time() {
        let taking = || Taking::new(100, LONG, SHORT);
        assert_eq!(taken(&mut taking(), vec![10, 89], Some(())).await, Taken::All);
        assert_eq!(taken(&mut taking(), vec![10, 90], None).await, Taken::Enough);
        let mut late = taking();
        assert_eq!(taken(&mut late, vec![10], None).await, Taken::Late);
        late.begin_again(LONG);
        assert_eq!(taken(&mut late, vec![89], None).await, Taken::Late, "as long again, and no more bytes");
        assert_eq!(taken(&mut late, vec![1], None).await, Taken::Enough);
        // What drips in without a pause has an end too.
        let (mut dripping, mut drops) = (Taking::new(u64::MAX, SHORT, LONG), tokio::time::interval(SHORT / 10));
        let dripped = poll_fn(|cx| dripping.poll(cx, |cx| drops.poll_tick(cx).map(|_| Some(1)))).await;
        assert_eq!(dripped, Taken::Late);
    }

    #[tokio::test]
    async fn an_end_waits_for_who_has_sent_more_and_for_nobody_else() {
        for (is_dry, sent, waits) in [(true, 0, false), (true, 10, true), (false, 0, true)] {
            let (mut client, mut server) = duplex(100);
            client.write_all(&vec![b'x'; sent]).await.expect("sent");
            let mut ending = Ending::new(1000, is_dry);
            let is_over = poll_fn(|cx| ending.poll(&mut server, cx)).now_or_never().is_some();
            assert_eq!(is_over, !waits, "{is_dry} {sent}");
            assert_eq!(client.read(&mut [0; 1]).await.expect("the end"), 0, "it is told");
            drop(client);
            if waits {
                let left = poll_fn(|cx| ending.poll(&mut server, cx)).now_or_never();
                assert!(left.is_some(), "who has left is not waited for");
            }
        }
    }
}
