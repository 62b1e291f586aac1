//! The front door: HTTP. hyper stays here. Read `Front::answer` for the order in which a request is looked at; each
//! check is a function in `checks`, and what any of them refuses leaves through `reply`.
//!
//! What a message means is `mcp`'s business; connections as such (timeouts, drain) are `connection`'s.

pub(crate) mod admin;
mod body;
pub(crate) mod checks;
pub(crate) mod connection;
mod feed;
mod headers;
pub(crate) mod intake;
pub mod limits;
mod reply;
mod stream;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use hyper::{Method, Request, Response, body::Incoming, http::request::Parts};

use crate::{
    front::{
        body::Body,
        checks::{Hosts, Origins},
        connection::Connection,
        headers::Headers,
        intake::Bodies,
        reply::Refused,
    },
    mcp::{
        calling::PendingCall,
        code::Refusal,
        router::{Router, Step},
    },
};

/// What the front door knows: its lists, its limits, and where messages go.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) path: String,
    pub(crate) hosts: Hosts,
    pub(crate) origins: Origins,
    pub(crate) limits: limits::Config,
    pub(crate) gate: Gate,
    pub(crate) bodies: Bodies,
    /// Open streams that no call owns.
    pub(crate) streams: Gate,
    pub(crate) router: Arc<Router>,
}

/// Counts requests being served, up to a limit. On cache lines of its own: every request writes here.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Gate {
    inside: AtomicUsize,
    max: usize,
}

/// A place inside the gate, free again when dropped.
#[derive(Debug)]
struct Place(Arc<Connection>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.front.gate.inside.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A place among the open streams.
struct StreamPlace(Arc<Front>);

impl StreamPlace {
    fn take(front: &Arc<Front>) -> Result<Self, Refusal> {
        let place = Self(Arc::clone(front)); // counted from here on, also when it is refused at once
        if front.streams.inside.fetch_add(1, Ordering::AcqRel) < front.streams.max {
            return Ok(place);
        }
        let message = format!("{} streams are open, as many as may be at once", front.streams.max);
        Err(Refusal::overloaded(STREAM_RETRY_AFTER_S, message))
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        self.0.streams.inside.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Streams stay open for long, so that there is little sense in trying again at once.
const STREAM_RETRY_AFTER_S: u32 = 30;

impl Gate {
    pub(crate) fn new(max: usize) -> Self {
        Self { inside: AtomicUsize::new(0), max }
    }

    pub(crate) fn inside(&self) -> usize {
        self.inside.load(Ordering::Relaxed)
    }

    /// Refuses when there is no place, without taking one.
    fn check(&self) -> Result<(), Refusal> {
        if self.inside() < self.max { Ok(()) } else { Err(self.full()) }
    }

    fn full(&self) -> Refusal {
        Refusal::overloaded(1, format!("{} requests are being served, as many as may be at once", self.max))
    }

    fn enter(conn: &Arc<Connection>) -> Result<Place, Refusal> {
        let gate = &conn.front.gate;
        let place = Place(Arc::clone(conn)); // counted from here on, also when it is refused at once
        if gate.inside.fetch_add(1, Ordering::AcqRel) < gate.max {
            return Ok(place);
        }
        Err(gate.full())
    }
}

/// Answers one request of a connection.
pub(crate) async fn serve(conn: Arc<Connection>, request: Request<Incoming>) -> Response<Body> {
    let busy = conn.begin();
    let (head, incoming) = request.into_parts();
    let headers = Headers::scan(&head.headers);
    let front = &conn.front;
    let (cors, takes) = (front.origins.cors(&headers), headers.takes);
    let mut response = match front.answer(&conn, &head, &headers, incoming).await {
        Ok(Answered::Now(response)) => response,
        Ok(Answered::ByCall(mut call, place)) => {
            if call.wants_parts() {
                call.give_parts(head); // what is above has seen all that it wanted of it
            }
            stream::run(&conn, call, takes, place).await
        }
        Err(refused) => refused.into_response(),
    };
    if let Some(origin) = cors {
        reply::allow_origin(&mut response, origin);
    }
    response.body_mut().hold(busy);
    response
}

/// What becomes of a request that was let in.
#[allow(clippy::large_enum_variant)] // the large one is the common one, and neither lives long
enum Answered {
    Now(Response<Body>),
    ByCall(PendingCall, Place),
}

impl Front {
    async fn answer(
        &self,
        conn: &Arc<Connection>,
        head: &Parts,
        headers: &Headers<'_>,
        incoming: Incoming,
    ) -> Result<Answered, Refused> {
        // who may speak at all
        checks::head_size(&head.uri, headers, &self.limits)?; //                  414, 431
        checks::said_once(headers)?; //                                           400
        self.hosts.check(&head.uri, head.version, headers)?; //                   400, 403
        self.origins.check(headers, &self.hosts)?; //                             403
        // what for
        match (&head.method, head.uri.path()) {
            (_, path) if path == self.path => {}
            (&Method::GET | &Method::HEAD, "/health") => return Ok(Answered::Now(reply::alive())),
            (&Method::GET | &Method::HEAD, "/ready") => {
                return Ok(Answered::Now(reply::ready(!self.router.drain.is_started())));
            }
            _ => return Err(reply::no_such_path(&self.path)), //                  404
        }
        match head.method {
            Method::POST => {}
            Method::GET if checks::may_have_session(headers) => {
                checks::accept_events(headers)?; //                               406
                let opened = self.router.open_stream(&headers.head(conn.peer), headers.last_event_id(), Instant::now());
                return Ok(Answered::Now(feed::open(conn, opened?)?)); //          400, 404, 409, 503
            }
            Method::OPTIONS => return reply::preflight(headers, &self.origins).map(Answered::Now), // 204, 403
            Method::DELETE if checks::may_have_session(headers) => {
                let ended = self.router.end_session(&headers.head(conn.peer), Instant::now());
                return Ok(Answered::Now(reply::answer(ended)));
            }
            _ => return Err(reply::no_such_method()), //                          405
        }
        // in which form, and how much of it
        checks::content(headers)?; //                                             415
        checks::accept(headers)?; //                                              406
        let length = checks::length(headers, &self.limits)?; //                   400, 413
        self.gate.check()?; //                                                    503
        // only now is the body read, and only when it is here does it take a place
        let body = intake::read(incoming, length, &self.limits, &self.bodies).await?; // 400, 408, 413, 503
        let place = Gate::enter(conn)?; //                                        503
        let now = Instant::now(); // deadlines count from here
        let step = self.router.message(&headers.head(conn.peer), None, &body, now);
        Ok(match step {
            Step::Call(call) => Answered::ByCall(call, place),
            Step::Done(answer) => Answered::Now(reply::message(answer, headers.takes)),
            Step::Batch(batch) => {
                let answer = batch.run(&self.router).await;
                drop(place);
                Answered::Now(reply::message(answer, headers.takes))
            }
            Step::Feed(feed) => {
                checks::accept_events(headers)?; //                               406
                Answered::Now(feed::open(conn, feed)?) //                         503
            }
        })
    }
}
