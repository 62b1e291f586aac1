//! The front door: HTTP. hyper stays here. Read `Front::answer` for the order in which a request is looked at; each
//! check is a function in `checks`, and what any of them refuses leaves through `reply`.
//!
//! What a message means is `mcp`'s business; connections as such (timeouts, drain) are `connection`'s.

pub(crate) mod admin;
mod body;
pub(crate) mod checks;
pub(crate) mod connection;
mod feed;
pub mod gate;
mod headers;
pub(crate) mod intake;
pub mod limits;
pub(crate) mod pressure;
mod reply;
mod stream;

use std::{sync::Arc, time::Instant};

use hyper::{
    Method, Request, Response,
    body::Incoming,
    header::{self, HeaderValue},
    http::request::Parts,
};

use crate::{
    front::{
        body::Body,
        checks::{Hosts, Origins},
        connection::Connection,
        gate::{Gate, Place},
        headers::Headers,
        intake::Bodies,
        pressure::{Level, Pressure},
        reply::Refused,
    },
    mcp::{
        calling::PendingCall,
        router::{Answer, Router, Step},
    },
    telemetry::refusals::Refusals,
};

/// What the front door knows: its lists, its limits, and where messages go.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) path: String,
    pub(crate) hosts: Hosts,
    pub(crate) origins: Origins,
    pub(crate) limits: limits::Config,
    pub(crate) gate: Gate,
    pub(crate) fairness: gate::Weights,
    pub(crate) pressure: Pressure,
    pub(crate) bodies: Bodies,
    /// Open streams that no call owns.
    pub(crate) streams: Gate,
    pub(crate) refusals: Refusals,
    pub(crate) router: Arc<Router>,
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
        Err(refused) => {
            front.refusals.count(refused.reason());
            refused.into_response()
        }
    };
    if let Some(origin) = cors {
        reply::allow_origin(&mut response, origin);
    }
    if front.pressure.level() >= Level::KeepAlive {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
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
    /// Counts an answer that is a refusal.
    fn count(&self, answer: &Answer) {
        if let Some(reason) = answer.refused {
            self.refusals.count(reason);
        }
    }

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
                let opened = self.router.open_stream(&headers.head(conn), headers.last_event_id(), Instant::now());
                return Ok(Answered::Now(feed::open(conn, opened?)?)); //          400, 404, 409, 503
            }
            Method::OPTIONS => return reply::preflight(headers, &self.origins).map(Answered::Now), // 204, 403
            Method::DELETE if checks::may_have_session(headers) => {
                let ended = self.router.end_session(&headers.head(conn), Instant::now());
                return Ok(Answered::Now(reply::answer(ended)));
            }
            _ => return Err(reply::no_such_method()), //                          405
        }
        // in which form, and how much of it
        checks::content(headers)?; //                                             415
        checks::accept(headers)?; //                                              406
        let length = checks::length(headers, &self.limits)?; //                   400, 413
        self.gate.check(conn)?; //                                                    503
        // only now is the body read, and only when it is here does it take a place
        let body = intake::read(incoming, length, &self.limits, &self.bodies).await?; // 400, 408, 413, 503
        let place = Gate::enter(conn)?; //                                        503
        let now = Instant::now(); // deadlines count from here
        let step = self.router.message(&headers.head(conn), None, &body, now);
        Ok(match step {
            Step::Call(call) => Answered::ByCall(call, place),
            Step::Done(answer) => {
                self.count(&answer);
                Answered::Now(reply::message(answer, headers.takes))
            }
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
