//! From a message to its answer: the tables of methods, one for each era, and what each handler does. A call that one
//! message answers comes back as a future that the front awaits where it stands; nothing is spawned for it.

use std::{sync::Arc, time::Instant};

use crate::{
    call::Caller,
    dispatch::Dispatch,
    mcp::{
        calling::PendingCall,
        catalogue::Catalogue,
        code::{Era, Refusal},
        encode::{self, Encoder, Payload},
        head::Head,
        legacy::{self, OwnSession},
        modern,
        session::{Session, Sessions},
        wire::{self, Envelope, Id, IdField, Params, ShapeLimits, Text},
    },
    outbox::LogLevel,
    shutdown::Drain,
};

/// An answer, before it is put into HTTP or on a line.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Empty when there is nothing to say.
    pub(crate) payload: Payload,
    /// The id of the session that this answer opens.
    pub(crate) session_id: Option<String>,
    pub(crate) retry_after_s: Option<u32>,
}

impl Answer {
    pub(super) fn ok(payload: Payload) -> Self {
        Self { status: 200, payload, session_id: None, retry_after_s: None }
    }

    /// A message taken in that has no answer.
    fn accepted() -> Self {
        Self { status: 202, ..Self::ok(Payload::default()) }
    }

    pub(crate) fn refused(id: Option<Id<'_>>, refusal: &Refusal) -> Self {
        Self { status: refusal.status, retry_after_s: refusal.retry_after_s, ..Self::ok(encode::refusal(id, refusal)) }
    }
}

/// What becomes of a message.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // returned once and taken apart at once; a box would cost every call
pub(crate) enum Step {
    /// It is answered.
    Done(Answer),
    /// It is a call, ready to run.
    Call(PendingCall),
}

/// What the server is called.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// Takes messages to their handlers.
#[derive(Debug)]
pub(crate) struct Router {
    pub(crate) dispatch: Dispatch,
    pub(crate) sessions: Sessions,
    pub(crate) drain: Arc<Drain>,
    catalogue: Catalogue,
    pub(super) encoder: Encoder,
    identity: Identity,
    shape: ShapeLimits,
    pub(super) stream_buffer_bytes_max: usize,
}

pub(super) type Handled = Result<Step, Refusal>;

impl Router {
    pub(crate) fn new(
        dispatch: Dispatch,
        sessions: Sessions,
        catalogue: Catalogue,
        identity: Identity,
        limits: (ShapeLimits, usize),
        drain: Arc<Drain>,
    ) -> Self {
        let encoder = Encoder::new(&identity.name, &identity.version);
        let (shape, stream_buffer_bytes_max) = limits;
        Self { dispatch, sessions, drain, catalogue, encoder, identity, shape, stream_buffer_bytes_max }
    }

    /// One message. `own` is the session of a transport that is one.
    pub(crate) fn message(&self, head: &Head<'_>, own: Option<&OwnSession>, body: &[u8], now: Instant) -> Step {
        let (envelope, fault) = wire::read(body, self.shape);
        let id = envelope.request_id();
        let handled = match fault {
            Some(fault) => {
                tracing::debug!(?fault, "what came is not a message");
                Err(fault.into())
            }
            None if own.is_some() && envelope.method.get() == Some("notifications/cancelled") => {
                if let (Some(own), IdField::Is(id)) = (own, envelope.params.request_id) {
                    own.cancel(&id.into());
                }
                Ok(Step::Done(Answer::accepted()))
            }
            None => match modern::era(&envelope, head) {
                Era::Modern => self.modern(envelope, head, own, now),
                Era::Legacy => self.legacy(envelope, head, own, now),
            },
        };
        handled.unwrap_or_else(|refusal| Step::Done(Answer::refused(id, &refusal)))
    }

    fn modern(&self, envelope: Envelope<'_>, head: &Head<'_>, own: Option<&OwnSession>, now: Instant) -> Handled {
        if envelope.is_response {
            return Err(Refusal::invalid_request("this revision has no requests to the client, so no responses"));
        }
        let Some(id) = envelope.request_id() else { return Ok(Step::Done(Answer::accepted())) };
        modern::check(&envelope, head)?;
        let Text::Is(method) = &envelope.method else { return Err(Refusal::invalid_request("\"method\" is missing")) };
        match method.as_ref() {
            // answered from bytes
            "server/discover" => Ok(self.fixed(id, Era::Modern, self.catalogue.discover())),
            "tools/list" => self.list_tools(id, Era::Modern, &envelope.params),
            // by the tool's lane
            "tools/call" => {
                self.call(id, Era::Modern, envelope.params, head, own.and_then(|own| own.scope(Era::Modern)), now)
            }
            method => Err(Refusal::method_not_found(Era::Modern, method)),
        }
    }

    fn legacy(&self, envelope: Envelope<'_>, head: &Head<'_>, own: Option<&OwnSession>, now: Instant) -> Handled {
        let caller = &Caller::ANONYMOUS;
        if let (Some("initialize"), Some(id)) = (envelope.method.get(), envelope.request_id()) {
            let opened = legacy::initialize(&envelope, head, &self.sessions, own, caller, now)?;
            let Identity { name, version } = &self.identity;
            let members = self.catalogue.initialize(opened.version, name, version);
            let answer = Answer::ok(self.encoder.fixed(id, Era::Legacy, &members));
            return Ok(Step::Done(Answer { session_id: opened.session_id, ..answer }));
        }
        let session = match legacy::session(head, &self.sessions, own, caller, now) {
            // Before its session is there, a transport that is one may be asked whether it lives.
            Err(_) if own.is_some() && envelope.method.get() == Some("ping") => return Ok(pong(&envelope)),
            session => session?,
        };
        let Some(id) = envelope.request_id() else {
            if envelope.is_response {
                return Err(Refusal::invalid_request("nothing was asked of this client under this id"));
            }
            legacy::check(&envelope)?;
            if let (Some("notifications/cancelled"), IdField::Is(id)) =
                (envelope.method.get(), envelope.params.request_id)
            {
                session.cancel(&id.into());
            }
            return Ok(Step::Done(Answer::accepted()));
        };
        legacy::check(&envelope)?;
        let Text::Is(method) = &envelope.method else {
            return Err(Refusal::invalid_request("nothing was asked of this client under this id"));
        };
        match method.as_ref() {
            // answered from bytes
            "ping" => Ok(pong(&envelope)),
            "tools/list" => self.list_tools(id, Era::Legacy, &envelope.params),
            "logging/setLevel" => set_log_level(id, &session, &envelope.params),
            // by the tool's lane
            "tools/call" => self.call(id, Era::Legacy, envelope.params, head, Some(session), now),
            method => Err(Refusal::method_not_found(Era::Legacy, method)),
        }
    }

    /// Ends the session that a DELETE names.
    pub(crate) fn end_session(&self, head: &Head<'_>, now: Instant) -> Answer {
        let caller = &Caller::ANONYMOUS;
        let ended = legacy::session(head, &self.sessions, None, caller, now);
        match ended.map(|_| head.session_id.text().is_some_and(|id| self.sessions.close(id, caller, now))) {
            Ok(_) => Answer { status: 204, ..Answer::ok(Payload::default()) },
            Err(refusal) => Answer::refused(None, &refusal),
        }
    }

    fn fixed(&self, id: Id<'_>, era: Era, members: &bytes::Bytes) -> Step {
        Step::Done(Answer::ok(self.encoder.fixed(id, era, members)))
    }

    fn list_tools(&self, id: Id<'_>, era: Era, params: &Params<'_>) -> Handled {
        let cursor = match &params.cursor {
            Text::Absent => None,
            Text::Is(cursor) => Some(cursor.as_ref()),
            Text::Wrong => return Err(Refusal::invalid_params(false, "params.cursor must be text")),
        };
        let members = self.catalogue.tools(&self.dispatch.tools(), era, cursor).ok_or_else(|| {
            Refusal::invalid_params(false, "params.cursor is none that this server gave; start again without one")
        })?;
        Ok(self.fixed(id, era, &members))
    }
}

fn pong(envelope: &Envelope<'_>) -> Step {
    Step::Done(envelope.request_id().map_or_else(Answer::accepted, |id| Answer::ok(encode::empty_result(id))))
}

fn set_log_level(id: Id<'_>, session: &Session, params: &Params<'_>) -> Handled {
    let level = params.level.get().and_then(LogLevel::parse);
    session.set_log_level(level.ok_or_else(invalid_log_level)?);
    Ok(Step::Done(Answer::ok(encode::empty_result(id))))
}

pub(super) fn invalid_log_level() -> Refusal {
    let names = "debug, info, notice, warning, error, critical, alert or emergency";
    Refusal::invalid_params(false, format!("the log level must be one of {names}"))
}
