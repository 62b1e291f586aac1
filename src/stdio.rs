//! MCP over standard input and output: one message a line, both eras, the same router as over HTTP. Calls run side by
//! side up to a limit; answers leave in the order in which they are done. Nothing else is ever written to standard
//! output.

use std::{
    future::poll_fn,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{Notify, Semaphore, mpsc, watch},
    task::JoinSet,
    time::sleep,
};

use crate::call::{Caller, Share};
use crate::mcp::{
    code::{Era, Refusal},
    encode::{self, OwnedId},
    feed::Feed,
    head::{Field, Head, Via},
    legacy::{Listening, OwnSession},
    pending::{PendingCall, Voice},
    router::{Answer, Router, Step},
    session::Session,
    trail::About,
};

/// Lines that wait to be written; who writes more waits.
const LINES_MAX: usize = 64;
const READ_BYTES: usize = 16 * 1024;
/// The least time between two messages about changes.
const CHANGES_INTERVAL: Duration = Duration::from_millis(10);

/// Serves until the input ends, or `stop` is told, and all calls are answered.
pub(crate) async fn serve(
    router: Arc<Router>,
    mut input: impl AsyncRead + Unpin,
    output: impl AsyncWrite + Unpin + Send + 'static,
    line_bytes_max: usize,
    calls_max: usize,
    stop: &Notify,
) -> io::Result<()> {
    let (lines, to_write) = mpsc::channel(LINES_MAX);
    let writer = tokio::spawn(write_lines(output, to_write));
    let session = Arc::new(OwnSession::new(&router.sessions));
    let places = Arc::new(Semaphore::new(calls_max.min(Semaphore::MAX_PERMITS)));
    let mut own_stream = JoinSet::new();
    let mut streams = JoinSet::new();
    let (going_on, end) = watch::channel(());
    let mut reader = Lines { buffer: BytesMut::new(), searched: 0, skipping: false, line_bytes_max };
    let stopped = stop.notified();
    tokio::pin!(stopped);
    loop {
        let line = tokio::select! {
            biased;
            () = &mut stopped => None,
            line = reader.next(&mut input) => line?,
        };
        let Some(line) = line else { break };
        if lines.is_closed() {
            break; // nobody reads any more
        }
        let step = match line {
            Line::Whole(line) if line.trim_ascii().is_empty() => continue,
            Line::Whole(line) => router.message(&head(), Some(&session), &line, Instant::now()),
            Line::TooLong => {
                let message = format!("a line is longer than limits.request_bytes_max, {line_bytes_max} bytes");
                let answer = Answer::refused(None, &Refusal::invalid_request(message));
                if let Some(reason) = answer.refused {
                    router.note_unread(&head(), About::default(), reason, "");
                }
                Step::Done(answer)
            }
        };
        if let (true, Some(own)) = (own_stream.is_empty(), session.scope(Era::Legacy)) {
            own_stream.spawn(tell_changes(own, lines.clone()));
        }
        while streams.try_join_next().is_some() {}
        match step {
            Step::Done(answer) => say(&lines, answer).await,
            Step::Batch(batch) => {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
                let (router, lines) = (Arc::clone(&router), lines.clone());
                tokio::spawn(async move {
                    say(&lines, batch.run(&router, |_| ()).await).await;
                    drop(place);
                });
            }
            Step::Feed(feed) => {
                let listening = feed.request_id().map(|id| session.listen(id));
                match listening {
                    Some(Ok(listening)) => {
                        let (router, lines, end) = (Arc::clone(&router), lines.clone(), end.clone());
                        streams.spawn(follow(feed, listening, router, lines, end));
                    }
                    Some(Err(refusal)) => {
                        let id = feed.request_id().map(OwnedId::as_id);
                        say(&lines, Answer::refused(id, &refusal)).await;
                    }
                    None => {} // of a request for a session's stream, which there is none of here
                }
            }
            Step::Call(call) => {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
                let (router, lines) = (Arc::clone(&router), lines.clone());
                tokio::spawn(async move {
                    run(&router, call, &lines).await;
                    drop(place);
                });
            }
        }
    }
    own_stream.shutdown().await;
    drop(going_on);
    while streams.join_next().await.is_some() {} // each has said that it is over
    drop(lines); // the writer ends when the last call has let go of its own
    writer.await.map_err(io::Error::other)?
}

/// Writes what a stream says, until its client takes it back, or until the end, of which it is told.
async fn follow(
    mut feed: Feed,
    listening: Listening,
    router: Arc<Router>,
    lines: mpsc::Sender<Bytes>,
    mut end: watch::Receiver<()>,
) {
    let told = async {
        loop {
            let said = tokio::select! {
                biased;
                said = poll_fn(|cx| feed.poll_next(true, cx)) => said,
                _ = end.changed() => break,
            };
            let Some(said) = said else { return };
            send(&lines, said.json).await;
            tokio::select! {
                () = sleep(CHANGES_INTERVAL) => {}
                _ = end.changed() => break,
            }
        }
        if let Some(farewell) = feed.farewell(&router.encoder) {
            send(&lines, farewell).await;
        }
    };
    tokio::select! {
        biased;
        () = listening.cancelled() => {}
        () = told => {}
    }
}

/// Tells a session of an older revision what has changed.
async fn tell_changes(session: Arc<Session>, lines: mpsc::Sender<Bytes>) {
    loop {
        let change = poll_fn(|cx| session.live().subscription().poll_take(cx)).await;
        send(&lines, encode::change(&change, None).into()).await;
        sleep(CHANGES_INTERVAL).await;
    }
}

fn head() -> Head<'static> {
    Head {
        caller: &Caller::ANONYMOUS,
        identity: None,
        share: Share::NOBODY,
        via: Via::Stdio,
        peer: None,
        protocol_version: Field::Absent,
        method: Field::Absent,
        name: Field::Absent,
        session_id: Field::Absent,
        params: &(),
        rates: None, // one caller, who started the process
        takes_events: true,
        at_once: false,
    }
}

async fn run(router: &Arc<Router>, call: PendingCall, lines: &mpsc::Sender<Bytes>) {
    let Some(voice) = call.voice() else { return say(lines, call.run(router).await).await };
    let mut running = std::pin::pin!(call.run(router));
    let answer = loop {
        tokio::select! {
            biased;
            answer = &mut running => break answer,
            line = next_said(&voice) => send(lines, line).await,
        }
    };
    for message in voice.outbox.close() {
        send(lines, voice.encode(&message).into()).await;
    }
    say(lines, answer).await;
}

async fn next_said(voice: &Voice) -> Bytes {
    let message = poll_fn(|cx| voice.outbox.poll_next(cx, true)).await;
    voice.encode(&message).into()
}

async fn say(lines: &mpsc::Sender<Bytes>, answer: Answer) {
    if answer.payload.len() > 0 {
        send(lines, answer.payload.into_bytes()).await;
    }
}

async fn send(lines: &mpsc::Sender<Bytes>, line: Bytes) {
    if line.is_empty() {
        return; // something that has no form on a line
    }
    let _ = lines.send(line).await; // fails only when the output is closed, and then nobody reads
}

async fn write_lines(mut output: impl AsyncWrite + Unpin, mut lines: mpsc::Receiver<Bytes>) -> io::Result<()> {
    while let Some(line) = lines.recv().await {
        output.write_all(&line).await?;
        output.write_all(b"\n").await?;
        if lines.is_empty() {
            output.flush().await?;
        }
    }
    output.flush().await
}

/// One line of input.
#[derive(Debug, PartialEq)]
enum Line {
    Whole(Bytes),
    /// Longer than the limit; it was read over and not kept.
    TooLong,
}

/// Cuts input into lines without keeping more than one of the greatest length.
struct Lines {
    buffer: BytesMut,
    /// Bytes of `buffer` that are known to have no line end.
    searched: usize,
    /// Whether the rest of a line that is too long is still coming.
    skipping: bool,
    line_bytes_max: usize,
}

impl Lines {
    async fn next(&mut self, input: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Line>> {
        loop {
            if let Some(end) = self.buffer[self.searched..].iter().position(|b| *b == b'\n') {
                let line = self.buffer.split_to(self.searched + end + 1).freeze();
                self.searched = 0;
                if std::mem::take(&mut self.skipping) || line.len() > self.line_bytes_max + 1 {
                    return Ok(Some(Line::TooLong));
                }
                return Ok(Some(Line::Whole(line.slice(..line.len() - 1))));
            }
            self.searched = self.buffer.len();
            if self.searched > self.line_bytes_max {
                self.skipping = true;
                self.buffer.clear();
                self.searched = 0;
            }
            self.buffer.reserve(READ_BYTES);
            if input.read_buf(&mut self.buffer).await? == 0 {
                let rest = self.buffer.split().freeze();
                self.searched = 0;
                let line = if std::mem::take(&mut self.skipping) { Line::TooLong } else { Line::Whole(rest) };
                return Ok((line != Line::Whole(Bytes::new())).then_some(line));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_cut_and_long_ones_read_over() {
        let long = format!("{}\n", "x".repeat(100_000));
        let text = ["a\n", "\n", "12345678\n", "123456789\n", &long, "b\r\n", "end"].concat();
        let mut lines = Lines { buffer: BytesMut::new(), searched: 0, skipping: false, line_bytes_max: 8 };
        let mut input = text.as_bytes();
        let mut read = Vec::new();
        while let Some(line) = lines.next(&mut input).await.expect("reads") {
            read.push(match line {
                Line::Whole(line) => String::from_utf8_lossy(&line).into_owned(),
                Line::TooLong => "TOO LONG".to_owned(),
            });
        }
        assert_eq!(read, ["a", "", "12345678", "TOO LONG", "TOO LONG", "b\r", "end"]);
    }
}
