//! A connection as long as its requests are plain: its states, from one request to the next. What is done in each is in
//! `talk`, or in `apart` when it is rare or takes long. With thousands of connections every line of memory that a request
//! touches comes from afar, so that what is kept here is little, and written out: the layers of an `async fn` each keep a
//! state of their own.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite};

use super::talk::{Answering, Begun, Next, Over, Talk};
use crate::front::{came::Fed, connection::Connection};

/// A connection with a request on it that is not plain.
pub(super) struct HandedOver<S> {
    pub(super) conn: Arc<Connection>,
    pub(super) stream: S,
    /// What was read of it.
    pub(super) ahead: Vec<u8>,
}

/// A connection until it ends, or until a request comes that is not plain.
pub(super) struct Talking<S> {
    /// None while [`At::Apart`] has it.
    talk: Option<Talk<S>>,
    at: At<S>,
}

/// How far a connection is.
enum At<S> {
    /// Between requests, or in a head of which so many pieces have come.
    Head { pieces: usize },
    /// A request is being answered. Its body may still be on its way.
    Answer { answering: Answering, fed: Option<Arc<Fed>> },
    /// At what is rare or takes long, in a future of its own, so that a connection keeps no room for it. None when the
    /// connection ends with it.
    Apart(Pin<Box<dyn Future<Output = Option<Talk<S>>> + Send>>),
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Talking<S> {
    pub(super) fn new(conn: Arc<Connection>, stream: S) -> Self {
        Self { talk: Some(Talk::new(conn, stream)), at: At::Head { pieces: 0 } }
    }

    /// One of which nothing is left.
    pub(super) fn over() -> Self {
        Self { talk: None, at: At::Head { pieces: 0 } }
    }

    /// The same on its way to its end, if it is between requests or in a head.
    pub(super) fn timed_out(mut self) -> Self {
        if let At::Head { .. } = self.at {
            self.at = self.apart(Talk::timed_out);
        }
        self
    }

    /// Goes on. Ready when it is over, or with what is not plain.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<HandedOver<S>>> {
        loop {
            let then = match (&mut self.at, &mut self.talk) {
                (At::Head { pieces }, Some(talk)) => match ready!(talk.poll_next(cx, pieces)) {
                    Ok(Next::Plain(answering, fed)) => Ok(At::Answer { answering, fed }),
                    Ok(Next::Other(ahead)) => {
                        let handed = self.talk.take();
                        return Poll::Ready(handed.map(|Talk { stream, conn, .. }| HandedOver { conn, stream, ahead }));
                    }
                    Err(over) => Err(over),
                },
                (At::Answer { answering, fed }, Some(talk)) => {
                    match ready!(talk.poll_answer(cx, answering, fed.as_deref())) {
                        Ok((Begun::Sent, false)) if fed.as_ref().is_none_or(|fed| fed.missing() == 0) => {
                            Ok(At::Head { pieces: 0 })
                        }
                        Ok((begun, closes)) => {
                            let fed = fed.take();
                            Ok(self.apart(|talk| talk.finish(begun, closes, fed)))
                        }
                        Err(over) => Err(over),
                    }
                }
                (At::Apart(apart), _) => {
                    self.talk = ready!(apart.as_mut().poll(cx));
                    Ok(At::Head { pieces: 0 })
                }
                (_, None) => return Poll::Ready(None),
            };
            self.at = then.unwrap_or_else(|Over| self.apart(Talk::ended));
        }
    }

    fn apart<F>(&mut self, what: impl FnOnce(Talk<S>) -> F) -> At<S>
    where
        F: Future<Output = Option<Talk<S>>> + Send + 'static,
    {
        match self.talk.take() {
            Some(talk) => At::Apart(Box::pin(what(talk))),
            None => At::Head { pieces: 0 }, // not reached: it is only called with one
        }
    }
}
