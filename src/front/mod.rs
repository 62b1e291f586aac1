//! The front door: HTTP. Plain requests over HTTP/1.1 are read here (`http1`); whatever else HTTP has is hyper's, which
//! stays here. Read `Front::look` and `Front::answer` for the order in which a request is looked at; each check is a
//! function in `checks`, and what any of them refuses leaves through `reply`.
//!
//! What a message means is `mcp`'s business; connections as such (timeouts, drain) are `connection`'s.

pub(crate) mod admin;
mod body;
mod came;
pub(crate) mod checks;
pub(crate) mod connection;
pub(crate) mod doorkeeper;
pub(crate) mod driven;
mod feed;
pub mod gate;
pub(crate) mod headers;
pub(crate) mod http1;
pub mod http2;
pub(crate) mod intake;
pub mod limits;
pub(crate) mod pressure;
mod rates;
mod reply;
mod sender;
mod stream;
mod unread;
mod watched;

use std::{borrow::Cow, net::IpAddr, sync::Arc, time::Instant};

use hyper::{
    Method, Response, Version,
    header::{self, HeaderValue},
};

use crate::{
    audit,
    call::Caller,
    cluster::Cluster,
    front::{
        body::Body,
        came::{Came, Inflow},
        checks::{Hosts, Origins},
        connection::Connection,
        doorkeeper::{Doorkeeper, until_turned_away},
        gate::{Gate, Place},
        headers::Headers,
        intake::Bodies,
        pressure::{Level, Pressure},
        rates::{Aheads, Charged},
        reply::Refused,
        sender::Sender,
    },
    identity::Identity,
    mcp::{
        again::Asker,
        pending::PendingCall,
        router::{Answer, Router, Step},
        shared::{Named, Shared},
    },
    rate::{Decision, Limiter, Who, real_ip::Trusted},
    telemetry::refusals::Refusals,
};

/// What the front door knows: its lists, its limits, and where messages go.
#[derive(Debug)]
pub(crate) struct Front {
    pub(crate) path: String,
    pub(crate) hosts: Hosts,
    pub(crate) origins: Origins,
    pub(crate) limits: limits::Config,
    pub(crate) http2: http2::Shared,
    pub(crate) gate: Gate,
    pub(crate) fairness: gate::Weights,
    pub(crate) pressure: Pressure,
    pub(crate) bodies: Bodies,
    /// Open streams that no call owns.
    pub(crate) streams: Gate,
    pub(crate) refusals: Refusals,
    /// Proxies whose word on addresses is believed.
    pub(crate) trusted: Trusted,
    /// Who asks who calls, where that is asked.
    pub(crate) doorkeeper: Option<Doorkeeper>,
    /// How often callers may call, where that is limited.
    pub(crate) limiter: Option<Limiter>,
    /// Whether successful answers say what is left of that.
    pub(crate) tells_rates: bool,
    /// What instances share, where there are several.
    pub(crate) cluster: Option<Arc<Cluster>>,
    /// The sessions of all instances, where there are several.
    pub(crate) sessions: Option<Arc<Shared>>,
    pub(crate) router: Arc<Router>,
}

/// Answers one request of a connection.
pub(crate) async fn serve(conn: Arc<Connection>, came: Came, mut inflow: Inflow) -> Response<Body> {
    let busy = conn.begin();
    let headers = came.headers();
    let front = &conn.front;
    let (cors, takes) = (front.origins.cors(&headers), headers.takes);
    let mut sender = Sender::of(&conn, &headers);
    let mut rate = Decision::Free;
    let mut response = match front.answer(&conn, &came, &headers, &mut sender, &mut rate, &mut inflow).await {
        Ok(Answered::Now(response)) => response,
        Ok(Answered::ByCall(mut call, place)) => {
            if call.wants_parts() {
                let mut head = came.into_parts();
                if front.doorkeeper.is_some() {
                    head.headers.remove(header::AUTHORIZATION); // it was for us, and is passed on to nobody
                }
                call.give_parts(head); // what is above has seen all that it wanted of it
            }
            // Boxed, so that only calls which wait have room for it.
            Box::pin(stream::run(&conn, call, takes, place)).await
        }
        Err(refused) => {
            front.refusals.count(refused.reason());
            front.router.note_unread(&headers.head(&sender, None), headers.about(), refused.reason(), refused.detail());
            if let (Version::HTTP_2, Inflow::ByHyper(incoming)) = (came.version(), inflow) {
                Box::pin(http2::take_rest(incoming)).await;
            }
            refused.into_response()
        }
    };
    if matches!(rate, Decision::Refused { .. }) || front.tells_rates && response.status().is_success() {
        rates::tell(response.headers_mut(), rate);
    }
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

    /// Learns who sends, when that is asked.
    fn identify(&self, conn: &Connection, headers: &Headers<'_>, sender: &mut Sender) -> Result<(), Refused> {
        if conn.is_disowned() {
            return Err(doorkeeper::disowned());
        }
        let who = match (&self.doorkeeper, conn.certified()) {
            (None, None) => return Ok(()),
            (Some(doorkeeper), certified) => {
                // The certificate of a proxy says who that is, and not for whom it asks.
                let certified = certified.filter(|_| !self.trusted.contains(conn.peer));
                doorkeeper.who(headers, certified).inspect_err(|refused| {
                    sender.identity = doorkeeper.known(headers, certified, refused);
                })
            }
            (None, Some(certified)) => doorkeeper::by_certificate(certified),
        };
        sender.identity = Some(who?);
        Ok(())
    }

    /// What is said to who is not let in, of whom nothing but the address is known. It counts for that, so that guessing is
    /// slow. Whether it is too often may not be known where instances share that; then it is what it is.
    async fn turned_away(&self, address: IpAddr, refused: Refused) -> (Decision, Refused) {
        let Some(limiter) = &self.limiter else { return (Decision::Free, refused) };
        let who = Who::Address(address);
        let (decision, passed) = match &self.cluster {
            None => rates::admit(limiter, who, None),
            Some(cluster) => rates::admit_shared(limiter, cluster, who, None).await,
        };
        let over = passed.err().filter(|_| matches!(decision, Decision::Refused { .. }));
        (decision, refused.or_too_often(over))
    }

    /// Who wants something changed by the admin listener, where that is asked. Who may not is counted, limited and written
    /// down as at the endpoint.
    pub(crate) fn administrator(
        &self,
        headers: &Headers<'_>,
        address: IpAddr,
        path: &str,
    ) -> Result<Option<Arc<Identity>>, Refused> {
        let Some(doorkeeper) = &self.doorkeeper else { return Ok(None) };
        doorkeeper.administers(headers).map(Some).map_err(|refused| {
            let known = doorkeeper.known(headers, None, &refused);
            let over = |limiter| rates::admit(limiter, Who::Address(address), None).1.err();
            let refused = refused.or_too_often(self.limiter.as_ref().and_then(over));
            self.refusals.count(refused.reason());
            if let Some(audit) = &self.router.audit {
                let caller = known.as_ref().map_or_else(|| Caller::ANONYMOUS.subject(), |known| known.principal());
                let key = known.as_ref().and_then(|known| known.key());
                let (address, detail) = (Some(address), refused.detail());
                let head = audit::Head { caller, key, address, name: Some(path), detail, ..audit::Head::default() };
                audit.refusal(&head, refused.reason().name());
            }
            refused
        })
    }

    /// The tool that the headers name, when its sender may call it: others are not charged for it, so that nobody
    /// learns by its rate that it is there, or uses it up.
    fn named<'a>(&self, headers: &Headers<'a>, sender: &Sender) -> Option<Cow<'a, str>> {
        let identity = sender.identity.as_deref();
        let tool = headers.tool()?;
        match identity {
            Some(_) if self.router.dispatch.tools().for_caller(&tool, identity).is_none() => None,
            _ => Some(tool),
        }
    }

    /// Asks the rates of what only the body says, where instances share them: of the tools that it names, and of each
    /// message of a batch. `named` is the tool of the headers, which was charged with them; they may say what they like with
    /// the older revisions.
    async fn ahead(&self, headers: &Headers<'_>, sender: &Sender, named: Option<&str>, body: &[u8]) -> Aheads {
        let (Some(limiter), Some(cluster)) = (&self.limiter, &self.cluster) else { return Aheads::default() };
        let batch = checks::may_have_session(headers).then(|| self.router.tools_called(body)).flatten();
        let mut tools = match batch {
            Some(tools) => tools,
            None if !limiter.has_tool_rules() => return Aheads::default(),
            None => match self.router.tool_called(body) {
                Some(tool) if named != Some(&tool) => vec![Some(tool)],
                _ => return Aheads::default(),
            },
        };
        // Who may not call a tool is not charged for it.
        let registry = self.router.dispatch.tools();
        let may = |tool: &String| registry.for_caller(tool, sender.identity.as_deref()).is_some();
        tools.iter_mut().for_each(|tool| *tool = tool.take().filter(may));
        drop(registry);
        Box::pin(rates::charge_ahead(limiter, cluster, sender.who(), named, tools)).await
    }

    /// Hands a message on, with the rates that are to be asked about it.
    fn message(
        &self,
        headers: &Headers<'_>,
        sender: &Sender,
        (rate, named, aheads): (&mut Decision, Option<&str>, Aheads),
        body: &[u8],
        now: Instant,
    ) -> Step {
        let Some(limiter) = &self.limiter else {
            return self.router.message(&headers.head(sender, None), None, body, now);
        };
        let charged = Charged::new(limiter, sender.who(), named, *rate, now).with(aheads);
        let step = self.router.message(&headers.head(sender, Some(&charged)), None, body, now);
        *rate = charged.decision();
        step
    }

    /// What can be said before it is known who asks. None of what the endpoint itself is asked for.
    fn look(&self, came: &Came, headers: &Headers<'_>) -> Result<Option<Response<Body>>, Refused> {
        checks::head_size(came.target_bytes(), headers, &self.limits)?; //        414, 431
        checks::said_once(headers)?; //                                           400
        self.hosts.check(came.authority(), came.version(), headers)?; //          400, 403
        self.origins.check(headers, &self.hosts)?; //                             403
        let response = match (came.method(), came.path()) {
            (&Method::OPTIONS, path) if path == self.path => reply::preflight(headers, &self.origins)?, // 405
            (_, path) if path == self.path => return Ok(None),
            (&Method::GET | &Method::HEAD, "/health") => reply::alive(),
            (&Method::GET | &Method::HEAD, "/ready") => reply::ready(
                !self.router.drain.is_started(),
                self.router.audit.as_ref(),
                self.cluster.as_ref().map(|cluster| cluster.word()),
            ),
            (&Method::GET | &Method::HEAD, path) => {
                let told = self.doorkeeper.as_ref().and_then(|doorkeeper| doorkeeper.metadata(path));
                reply::metadata(told.ok_or_else(|| reply::no_such_path(&self.path))?) // 404
            }
            _ => return Err(reply::no_such_path(&self.path)), //                  404
        };
        Ok(Some(response))
    }

    async fn answer(
        &self,
        conn: &Arc<Connection>,
        came: &Came,
        headers: &Headers<'_>,
        sender: &mut Sender,
        rate: &mut Decision,
        inflow: &mut Inflow,
    ) -> Result<Answered, Refused> {
        // who may speak at all, what for, who it is
        let known = match self.look(came, headers) {
            Ok(None) => self.identify(conn, headers, sender), //                  401, 403, 431, 503
            Ok(Some(response)) => return Ok(Answered::Now(response)),
            Err(refused) => Err(refused), //                                      400, 403, 404, 405, 414, 431
        };
        if let Err(refused) = known {
            let told; //                                                          or 429
            (*rate, told) = Box::pin(self.turned_away(sender.address, refused)).await;
            return Err(told);
        }
        // how often
        let mut named = None;
        if let Some(limiter) = &self.limiter {
            named = self.named(headers, sender);
            let (decision, passed) = match &self.cluster {
                None => rates::admit(limiter, sender.who(), named.as_deref()),
                // Boxed, so that only where it is asked there is room for it.
                Some(cluster) => Box::pin(rates::admit_shared(limiter, cluster, sender.who(), named.as_deref())).await,
            };
            *rate = decision;
            passed?; //                                                           429
        }
        let session = match &self.sessions {
            None => None,
            Some(shared) => match shared.named(headers.session_id(), !checks::may_have_session(headers)) {
                Named::Settled(session) => session,
                Named::Unknown(id) => Box::pin(shared.bring(id, sender.caller(), sender.address)).await?, // 429, 503
            },
        };
        match *came.method() {
            Method::POST => {}
            Method::GET if checks::may_have_session(headers) => {
                checks::accept_events(headers)?; //                               406
                if let Some(shared) = &self.sessions {
                    let asker = Asker::of(&headers.head(sender, None));
                    let stream = shared.bring_stream(session.as_ref(), headers.last_event_id(), asker);
                    Box::pin(stream).await?; //                                   409, 503
                }
                let opened =
                    self.router.open_stream(&headers.head(sender, None), headers.last_event_id(), Instant::now());
                return Ok(Answered::Now(feed::open(conn, opened?, until_turned_away(conn, headers, sender))?)); //          400, 404, 409, 503
            }
            Method::DELETE if checks::may_have_session(headers) => {
                let ended = self.router.end_session(&headers.head(sender, None), Instant::now())?; // 400, 404
                if let Some(shared) = &self.sessions {
                    Box::pin(shared.ended(headers.session_id())).await;
                }
                return Ok(Answered::Now(reply::answer(ended)));
            }
            _ => return Err(reply::no_such_method()), //                          405
        }
        // in which form, and how much of it
        checks::content(headers)?; //                                             415
        checks::accept(headers)?; //                                              406
        let length = checks::length(inflow, &self.limits)?; //                    413
        self.gate.check(conn, sender)?; //                                        503
        // only now is the body read, and only when it is here does a call that waits take a place
        let read;
        let body = match came.body() {
            Some(whole) => whole,
            None => {
                read = intake::read(inflow, length, &self.limits, &self.bodies).await?; // 400, 408, 413, 503
                &*read
            }
        };
        let aheads = match &self.cluster {
            None => Aheads::default(),
            Some(_) => Box::pin(self.ahead(headers, sender, named.as_deref(), body)).await,
        };
        self.gate.check(conn, sender)?; //                                        503
        let now = Instant::now(); // deadlines count from here
        let mut step = self.message(headers, sender, (rate, named.as_deref(), aheads), body, now);
        if let Some(shared) = &self.sessions
            && Shared::is_unsettled(&step, session.as_ref())
        {
            let named = headers.session_id();
            step = Box::pin(shared.settle(step, named.text().zip(session.as_ref()))).await;
        }
        if let (Step::Call(call), true) = (&mut step, self.sessions.is_some()) {
            call.may_run_again(body);
        }
        Ok(match step {
            // What is answered at once takes no place: no more of it can run at once than there are threads here.
            Step::Done(answer) => {
                self.count(&answer);
                Answered::Now(reply::message(answer, headers.takes))
            }
            Step::Call(call) => match Gate::enter(conn, sender) {
                Ok(place) => Answered::ByCall(call, place),
                Err(refusal) => {
                    let answer = call.refuse(&refusal);
                    self.count(&answer);
                    Answered::Now(reply::message(answer, headers.takes))
                }
            },
            Step::Batch(batch) => {
                let place = Gate::enter(conn, sender)?; //                        503
                let answer = batch.run(&self.router, |reason| self.refusals.count(reason)).await;
                drop(place);
                Answered::Now(reply::message(answer, headers.takes))
            }
            Step::Feed(feed) => {
                checks::accept_events(headers)?; //                               406
                Answered::Now(feed::open(conn, feed, until_turned_away(conn, headers, sender))?) //                         503
            }
        })
    }
}
