//! From a message to its answer: the tables of methods, one for each era. What is not answered from bytes comes back as a
//! call that the front awaits where it stands, or as a stream that it opens; nothing is spawned for either.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::Instant,
};

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::{
    audit::Audit,
    call::ClientCapabilities,
    changes::Changes,
    dispatch::{Dispatch, Features, Work},
    mcp::{
        batch::{self, Batch},
        catalogue::Catalogue,
        code::{Era, Refusal},
        elsewhere,
        encode::{self, Encoder, OwnedId, Payload},
        ending::Hints,
        feed::{self, Feed},
        head::{Field, Head},
        legacy::{self, OwnSession},
        listing::Listing,
        live::{SUBSCRIBED_BYTES_MAX, asker},
        modern,
        pending::PendingCall,
        seal::Sealer,
        session::{Session, Sessions},
        tasking,
        wire::{self, Envelope, Id, IdField, Params, ShapeLimits, Text, WireFault},
    },
    outbox::{LogLevel, Patience},
    shutdown::Drain,
    skill::Skills,
    tasks::Tasks,
    telemetry::{meter::Sharded, refusals::Reason},
};

/// Values proposed at once: the most that the protocol allows.
const PROPOSED_MAX: usize = 100;

/// An answer, before it is put into HTTP or on a line.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Empty when there is nothing to say.
    pub(crate) payload: Payload,
    /// The id of the session that this answer opens.
    pub(crate) session_id: Option<String>,
    pub(crate) retry_after_s: Option<u32>,
    /// Why there is no result.
    pub(crate) refused: Option<Reason>,
    /// It was for another instance, perhaps.
    pub(crate) elsewhere: Option<Box<Elsewhere>>,
}

/// What a client sent to an instance that it does not concern.
#[derive(Debug)]
pub(crate) enum Elsewhere {
    /// It takes a call back that does not run here.
    Cancel(OwnedId),
    /// It answers a question that was not asked here.
    Answer(u64, Result<Value, Value>),
}

impl Answer {
    pub(super) fn ok(payload: Payload) -> Self {
        Self { status: 200, payload, session_id: None, retry_after_s: None, refused: None, elsewhere: None }
    }

    /// A message taken in that has no answer.
    pub(super) fn accepted() -> Self {
        Self { status: 202, ..Self::ok(Payload::default()) }
    }

    pub(crate) fn refused(id: Option<Id<'_>>, refusal: &Refusal) -> Self {
        Self {
            status: refusal.status,
            retry_after_s: refusal.retry_after_s,
            refused: Some(Reason::of(refusal.status, refusal.code)),
            ..Self::ok(encode::refusal(id, refusal))
        }
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
    /// It opens a stream.
    Feed(Feed),
    /// It was several messages.
    Batch(Batch),
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
    pub(crate) features: Features,
    /// Methods that are work: those of tasks and of hosted handlers.
    pub(crate) methods: BTreeMap<&'static str, Arc<Work>>,
    pub(crate) tasks: Option<Arc<Tasks>>,
    pub(crate) audit: Option<Audit>,
    pub(crate) skills: Skills,
    pub(crate) sessions: Sessions,
    pub(crate) drain: Arc<Drain>,
    pub(crate) changes: Changes,
    /// A handle for each thread, to be cloned for calls.
    pub(crate) changes_here: Sharded<OnceLock<Changes>>,
    pub(crate) catalogue: Catalogue,
    pub(crate) encoder: Encoder,
    pub(crate) identity: Identity,
    pub(crate) sealer: Sealer,
    pub(crate) shape: ShapeLimits,
    pub(crate) stream_buffer_bytes_max: usize,
    /// How clients are waited for.
    pub(crate) patience: Arc<Patience>,
    /// For what has no time limit of its own.
    pub(crate) request_timeout_ms: u64,
}

/// A request on its way to its handler.
pub(super) struct Request<'a, 'm> {
    pub(super) id: Id<'m>,
    pub(super) method: &'a str,
    pub(super) era: Era,
    pub(super) params: &'a mut Params<'m>,
    pub(super) head: &'a Head<'a>,
    /// The whole message, for what only few methods read.
    pub(super) body: &'a [u8],
    pub(super) now: Instant,
}

pub(super) type Handled = Result<Step, Refusal>;

impl Router {
    /// A way for a call to say what changed.
    pub(super) fn changes(&self) -> Changes {
        self.changes_here.own().get_or_init(|| self.changes.apart()).clone()
    }

    /// What a refused caller is to be told to wait, in seconds.
    pub(crate) fn retry_after_s(&self) -> u32 {
        self.dispatch.retry_after_s()
    }

    /// One message. `own` is the session of a transport that is one.
    pub(crate) fn message(&self, head: &Head<'_>, own: Option<&OwnSession>, body: &[u8], now: Instant) -> Step {
        let mut envelope = Envelope::default();
        if self.features.has_hosted {
            envelope.params.meta.whole = Some(Map::new());
        }
        let fault = wire::read_into(&mut envelope, body, self.shape);
        if batch::is_one(body) && matches!(fault, Some(WireFault::InvalidRequest(_))) {
            let taken = self.batch(head, own, body, now);
            return taken.unwrap_or_else(|refusal| {
                self.note_refusal(head, body, &refusal);
                Step::Done(Answer::refused(None, &refusal))
            });
        }
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
                Era::Modern => self.modern(&mut envelope, head, own, body, now),
                Era::Legacy => self.legacy(&mut envelope, head, own, body, now),
            },
        };
        handled.unwrap_or_else(|refusal| {
            self.note_refusal(head, body, &refusal);
            Step::Done(Answer::refused(id, &refusal))
        })
    }

    /// The tool that a message calls, for who has to know it before the message is taken in.
    pub(crate) fn tool_called(&self, body: &[u8]) -> Option<String> {
        let (envelope, fault) = wire::read(body, self.shape);
        let is_call = fault.is_none() && envelope.method.get() == Some("tools/call");
        envelope.params.name.get().filter(|_| is_call).map(str::to_owned)
    }

    fn modern(
        &self,
        envelope: &mut Envelope<'_>,
        head: &Head<'_>,
        own: Option<&OwnSession>,
        body: &[u8],
        now: Instant,
    ) -> Handled {
        if envelope.is_response {
            return Err(Refusal::invalid_request("this revision has no requests to the client, so no responses"));
        }
        let Some(id) = envelope.request_id() else { return Ok(Step::Done(Answer::accepted())) };
        modern::check(envelope, head)?;
        let Text::Is(method) = &envelope.method else { return Err(Refusal::invalid_request("\"method\" is missing")) };
        let request = Request { id, method, era: Era::Modern, params: &mut envelope.params, head, body, now };
        let scope = || own.and_then(|own| own.scope(Era::Modern));
        if !self.offers(method) {
            return Err(Refusal::method_not_found(Era::Modern, method));
        }
        match method.as_ref() {
            // answered from bytes
            "server/discover" => Ok(self.fixed(id, Era::Modern, self.catalogue.discover())),
            // streams
            "subscriptions/listen" => self.listen(&request),
            "skills/list" | "skills/get" | "resources/directory/read" if !self.skills.is_empty() => {
                self.skill(method, &request)
            }
            // by what they name
            "tools/call" => self.call_tool(request, scope()),
            "tasks/get" | "tasks/update" | "tasks/cancel" if self.methods.contains_key(method.as_ref()) => {
                let client = request.params.meta.client_capabilities.unwrap_or_default();
                match ClientCapabilities::TASKS.missing_from(client) {
                    missing if missing.is_empty() => self.of_both_eras(method, request, scope()),
                    missing => Err(Refusal::missing_capability(Era::Modern, missing)),
                }
            }
            // what a session remembers, and there is none
            method if method.ends_with("/subscribe") || method.ends_with("/unsubscribe") => {
                Err(Refusal::method_not_found(Era::Modern, method))
            }
            method => self.of_both_eras(method, request, scope()),
        }
    }

    fn legacy(
        &self,
        envelope: &mut Envelope<'_>,
        head: &Head<'_>,
        own: Option<&OwnSession>,
        body: &[u8],
        now: Instant,
    ) -> Handled {
        let caller = head.caller;
        if let (Some("initialize"), Some(id)) = (envelope.method.get(), envelope.request_id()) {
            let said = self.features.wants_initialize().then(|| wire::member(body, self.shape, "params")).flatten();
            let said = said.map(|said| Arc::new(legacy::introduction(said)));
            let opened = legacy::initialize(envelope, head, &self.sessions, own, said, caller, now)?;
            let Identity { name, version } = &self.identity;
            let members = self.catalogue.initialize(opened.version, name, version);
            let answer = Answer::ok(self.encoder.fixed(id, Era::Legacy, &members));
            return Ok(Step::Done(Answer { session_id: opened.session_id, ..answer }));
        }
        let session = match legacy::session(head, &self.sessions, own, caller, now) {
            // Before its session is there, a transport that is one may be asked whether it lives.
            Err(_) if own.is_some() && envelope.method.get() == Some("ping") => return Ok(pong(envelope)),
            session => session?,
        };
        if envelope.is_response {
            return self.take_answer(envelope, &session, body);
        }
        let Some(id) = envelope.request_id() else {
            legacy::check(envelope)?;
            if let (Some("notifications/cancelled"), IdField::Is(id)) =
                (envelope.method.get(), envelope.params.request_id)
            {
                let id = OwnedId::from(id);
                if !session.cancel(&id) {
                    let elsewhere = Some(Box::new(Elsewhere::Cancel(id)));
                    return Ok(Step::Done(Answer { elsewhere, ..Answer::accepted() }));
                }
            }
            return Ok(Step::Done(Answer::accepted()));
        };
        legacy::check(envelope)?;
        let Text::Is(method) = &envelope.method else { return Err(Refusal::invalid_request("\"method\" is missing")) };
        let request = Request { id, method, era: Era::Legacy, params: &mut envelope.params, head, body, now };
        match method.as_ref() {
            // answered from bytes
            "ping" => Ok(Step::Done(Answer::ok(encode::empty_result(id)))),
            // what the session remembers
            "logging/setLevel" => set_log_level(id, &session, request.params),
            "resources/subscribe" | "resources/unsubscribe" if self.offers(method) => {
                let done = subscribe(id, &session, request.params, method == "resources/subscribe")?;
                let told = self.methods.contains_key(method.as_ref());
                if told { self.of_both_eras(method, request, Some(session)) } else { Ok(done) }
            }
            // by what they name
            "tools/call" => self.call_tool(request, Some(session)),
            method if is_modern_only(method) || !self.offers(method) => {
                Err(Refusal::method_not_found(Era::Legacy, method))
            }
            method => self.of_both_eras(method, request, Some(session)),
        }
    }

    /// Methods that mean the same in all revisions.
    fn of_both_eras(&self, method: &str, request: Request<'_, '_>, scope: Option<Arc<Session>>) -> Handled {
        match method {
            // answered from bytes
            "tools/list" => self.list_tools(&request),
            "resources/list" => self.list(&self.catalogue.resources, "resources/list", request, scope),
            "resources/templates/list" => {
                self.list(&self.catalogue.templates, "resources/templates/list", request, scope)
            }
            "prompts/list" => self.list(&self.catalogue.prompts, "prompts/list", request, scope),
            // by what they name
            "prompts/get" => self.get_prompt(request, scope),
            "resources/read" => self.read_resource(request, scope),
            "completion/complete" => self.complete(request, scope),
            method => {
                let (era, refused) = (request.era, method.to_owned());
                let hints = if method.starts_with("skills/") { Hints::Missing } else { Hints::No };
                let handled = self.call_hosted(request, method, hints, scope);
                handled.unwrap_or_else(|| Err(Refusal::method_not_found(era, &refused)))
            }
        }
    }

    /// What the skills extension answers.
    fn skill(&self, method: &str, request: &Request<'_, '_>) -> Handled {
        let uri = request.params.uri.get();
        let page = self.catalogue.page_entries_max();
        let invalid = |message: &str| Refusal::invalid_params(false, message);
        let members = match (method, uri) {
            ("skills/list", _) => self.skills.list(cursor(request.params)?, page).ok_or_else(bad_cursor)?,
            (_, None) => return Err(invalid("params.uri is missing or not text")),
            ("skills/get", Some(uri)) => self
                .skills
                .get(uri)
                .ok_or_else(|| invalid("params.uri names no skill; skills/list names those that there are"))?,
            (_, Some(uri)) => {
                let members = self.skills.directory(uri, cursor(request.params)?, page);
                members.ok_or_else(|| {
                    invalid("params.uri names no folder of a skill, or params.cursor is none that this server gave")
                })?
            }
        };
        Ok(self.fixed(request.id, request.era, &self.with_hints(members)))
    }

    /// Members with how long they may be kept.
    pub(super) fn with_hints(&self, members: Bytes) -> Bytes {
        [&members[..], b",", &self.catalogue.hints].concat().into()
    }

    /// Whether a method belongs to something that is offered.
    fn offers(&self, method: &str) -> bool {
        let capabilities = self.catalogue.capabilities();
        match method {
            "completion/complete" => capabilities.has("completions"),
            method if method.starts_with("resources/") => capabilities.has("resources"),
            method if method.starts_with("prompts/") => capabilities.has("prompts"),
            _ => true,
        }
    }

    /// A stream of a session that a GET opens, or comes back to.
    pub(crate) fn open_stream(&self, head: &Head<'_>, last_event_id: Field<'_>, now: Instant) -> Result<Feed, Refusal> {
        let session = legacy::session(head, &self.sessions, None, head.caller, now)?;
        let (log, after) = match last_event_id {
            Field::Absent => {
                let log = session.live().open_stream(true, now).ok_or_else(|| Refusal {
                    status: 409,
                    ..Refusal::invalid_request("this session has as many open streams as one may have")
                })?;
                session.share_own_stream(&log, &elsewhere::about(None, None, false));
                (log, 0)
            }
            // An id of another session, or of a stream that is not kept any more: its rest is nothing. Not 404, which
            // would say that the session has ended.
            field => {
                let found = field.text().and_then(|id| session.live_if_any()?.find_stream(id, now));
                let Some(found) = found else { return Ok(Feed::Nothing) };
                let tools = self.dispatch.tools();
                if found.0.tool().is_some_and(|tool| tools.is_hidden(tool, head.identity)) {
                    return Ok(Feed::Nothing);
                }
                found
            }
        };
        Ok(Feed::of_session(session, log, after))
    }

    fn listen(&self, request: &Request<'_, '_>) -> Handled {
        let params = wire::member(request.body, self.shape, "params");
        let id = OwnedId::from(request.id);
        let (capabilities, has_tasks) = (self.catalogue.capabilities(), self.tasks.is_some());
        let may_call = tasking::may_call(&self.dispatch.tools(), request.head.identity);
        let who = (request.head.caller, may_call);
        feed::listen(id, params, capabilities, &self.changes, has_tasks, who).map(Step::Feed)
    }

    /// What the client answered to a question of a call.
    fn take_answer(&self, envelope: &Envelope<'_>, session: &Session, body: &[u8]) -> Handled {
        let answer = match wire::member(body, self.shape, "result") {
            Some(result) => Ok(result),
            None => Err(wire::member(body, self.shape, "error").unwrap_or_default()),
        };
        let asked = match envelope.request_id() {
            Some(Id::Number(id)) => u64::try_from(id).ok(),
            _ => None,
        };
        if let (Some(tag), Some(id)) = (self.sessions.tag(), asked)
            && asker(id).is_some_and(|asker| asker != tag)
        {
            let elsewhere = Some(Box::new(Elsewhere::Answer(id, answer)));
            return Ok(Step::Done(Answer { elsewhere, ..Answer::accepted() }));
        }
        let taken = asked.zip(session.live_if_any()).is_some_and(|(id, live)| live.answer(id, answer));
        if taken {
            return Ok(Step::Done(Answer::accepted()));
        }
        Err(nothing_was_asked())
    }

    /// Ends the session that a DELETE names.
    pub(crate) fn end_session(&self, head: &Head<'_>, now: Instant) -> Result<Answer, Refusal> {
        let caller = head.caller;
        legacy::session(head, &self.sessions, None, caller, now)?;
        // Whether it was there still, or another request has just ended it, is the same to who wants its end.
        let _ = head.session_id.text().map(|id| self.sessions.close(id, caller, now));
        Ok(Answer { status: 204, ..Answer::ok(Payload::default()) })
    }

    pub(super) fn fixed(&self, id: Id<'_>, era: Era, members: &Bytes) -> Step {
        Step::Done(Answer::ok(self.encoder.fixed(id, era, members)))
    }

    fn list_tools(&self, request: &Request<'_, '_>) -> Handled {
        let cursor = cursor(request.params)?;
        let page = self.catalogue.tools(&self.dispatch.tools(), request.head.identity, request.era, cursor);
        Ok(self.fixed(request.id, request.era, &page.ok_or_else(bad_cursor)?))
    }

    /// A list whose first part is ours, and whose rest a hosted handler may have.
    fn list(&self, ours: &Listing, method: &str, request: Request<'_, '_>, scope: Option<Arc<Session>>) -> Handled {
        let cursor = cursor(request.params)?;
        let elsewhere = cursor.map_or(ours.is_empty(), |cursor| cursor.starts_with('h') && cursor.contains(':'));
        if elsewhere && self.methods.contains_key(method) {
            let handled = self.call_hosted(request, method, Hints::Missing, scope);
            return handled.unwrap_or_else(|| Err(bad_cursor()));
        }
        let page = ours.get(request.era, cursor).ok_or_else(bad_cursor)?;
        Ok(self.fixed(request.id, request.era, &page))
    }

    /// `completion/complete`.
    fn complete(&self, request: Request<'_, '_>, scope: Option<Arc<Session>>) -> Handled {
        let invalid = |message: &str| Refusal::invalid_params(false, message);
        let params = wire::member(request.body, self.shape, "params").unwrap_or_default();
        let Some(Value::Object(reference)) = params.get("ref") else {
            return Err(invalid("params.ref must say what to complete for: {\"type\": \"ref/prompt\", \"name\": ...}"));
        };
        let argument = |key: &str| params.get("argument").and_then(|a| a.get(key)).and_then(Value::as_str);
        let (Some(name), Some(so_far)) = (argument("name"), argument("value")) else {
            return Err(invalid("params.argument must have a name and the value so far, both texts"));
        };
        let Some(mut values) = self.features.complete(reference, name, so_far) else {
            let handled = self.call_hosted(request, "completion/complete", Hints::No, scope);
            return handled.unwrap_or_else(|| Err(invalid("params.ref names nothing that this server has")));
        };
        let (total, has_more) = (values.len(), values.len() > PROPOSED_MAX);
        values.truncate(PROPOSED_MAX);
        let completion = serde_json::json!({ "values": values, "total": total, "hasMore": has_more });
        let members = format!("\"completion\":{completion}").into();
        Ok(self.fixed(request.id, request.era, &members))
    }
}

/// Methods that the revisions with sessions do not have.
fn is_modern_only(method: &str) -> bool {
    matches!(method, "server/discover" | "subscriptions/listen")
        || ["tasks/", "skills/", "resources/directory/"].iter().any(|family| method.starts_with(family))
}

fn cursor<'a>(params: &'a Params<'_>) -> Result<Option<&'a str>, Refusal> {
    match &params.cursor {
        Text::Absent => Ok(None),
        Text::Is(cursor) => Ok(Some(cursor.as_ref())),
        Text::Wrong => Err(Refusal::invalid_params(false, "params.cursor must be text")),
    }
}

fn bad_cursor() -> Refusal {
    Refusal::invalid_params(false, "params.cursor is none that this server gave; start again without one")
}

fn pong(envelope: &Envelope<'_>) -> Step {
    Step::Done(envelope.request_id().map_or_else(Answer::accepted, |id| Answer::ok(encode::empty_result(id))))
}

fn set_log_level(id: Id<'_>, session: &Session, params: &Params<'_>) -> Handled {
    let level = params.level.get().and_then(LogLevel::parse);
    session.set_log_level(level.ok_or_else(invalid_log_level)?);
    Ok(Step::Done(Answer::ok(encode::empty_result(id))))
}

fn subscribe(id: Id<'_>, session: &Session, params: &Params<'_>, on: bool) -> Handled {
    let Text::Is(uri) = &params.uri else {
        return Err(Refusal::invalid_params(false, "params.uri is missing or not text"));
    };
    if uri.len() > SUBSCRIBED_BYTES_MAX {
        let message = format!("params.uri has {} bytes; at most {SUBSCRIBED_BYTES_MAX}", uri.len());
        return Err(Refusal::invalid_params(false, message));
    }
    if !on {
        session.live_if_any().into_iter().for_each(|live| live.unsubscribe(uri));
        session.note_change();
    } else if !session.live().subscribe(uri) {
        return Err(Refusal::invalid_params(false, "this session has as many subscriptions as one may have"));
    } else {
        session.note_change();
    }
    Ok(Step::Done(Answer::ok(encode::empty_result(id))))
}

pub(super) fn nothing_was_asked() -> Refusal {
    Refusal::invalid_request("nothing was asked of this client under this id, or the call is over")
}

pub(super) fn invalid_log_level() -> Refusal {
    let names = "debug, info, notice, warning, error, critical, alert or emergency";
    Refusal::invalid_params(false, format!("the log level must be one of {names}"))
}
