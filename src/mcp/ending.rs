//! What a call comes to, as its client is told it: the result, the refusal, or the questions that it is to be made again
//! with. Which status and code a failure has is `code`'s business.

use std::time::Instant;

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::{
    audit::{Entry, Outcome},
    call::{Caller, ClientCapabilities, Kind, Reply},
    dispatch::{Answered, Served},
    error::CallError,
    input::Required,
    mcp::{
        code::{self, Era, Refusal},
        encode::Payload,
        router::{Answer, Router},
        seal,
        wire::Id,
    },
    telemetry::calls::{CallMeter, Ended, Phase},
};

/// What the state of a call is bound to that may ask for more.
#[derive(Debug)]
pub(super) enum BoundTo {
    /// It cannot ask.
    Nothing,
    This(Vec<u8>),
    /// To be made of the caller, the method, the name and the arguments when it asks, which is seldom.
    Request(Caller, Box<str>, Box<str>, Value),
}

/// Whether a result says how long it may be kept, from 2026-07-28 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hints {
    No,
    /// Ours are added.
    Ours,
    /// The handler's own, or ours when it has none.
    Missing,
}

/// What a call is answered with, and to whom.
pub(super) struct Ending<'a> {
    pub(super) router: &'a Router,
    pub(super) id: Id<'a>,
    pub(super) era: Era,
    pub(super) meter: Option<&'a CallMeter>,
    /// Of what is no tool.
    pub(super) hints: Option<Hints>,
    pub(super) client: ClientCapabilities,
    pub(super) bound_to: BoundTo,
}

impl Ending<'_> {
    /// The end of a call that is told to the client; empty for one that was taken back.
    pub(super) fn answer(&self, outcome: Result<Answered, CallError>, entry: Option<Box<Entry>>) -> Answer {
        let began = Instant::now();
        let (answer, outcome) = self.encode(outcome);
        if let Some(entry) = entry {
            entry.finish(outcome);
        }
        if let Some(meter) = self.meter {
            meter.took(Phase::Encode, began.elapsed());
        }
        answer
    }

    /// With the word for it in the audit trail.
    fn encode(&self, outcome: Result<Answered, CallError>) -> (Answer, Outcome<'static>) {
        let refused =
            |refusal: &Refusal| (Answer::refused(Some(self.id), refusal), Outcome::Error(i64::from(refusal.code)));
        let answered = match outcome {
            Ok(answered) => self.with_hints(answered),
            Err(CallError::InputRequired(required)) => match self.ask(&required) {
                Ok(reply) => Answered { reply, served: Served::Fresh },
                Err(refusal) => return refused(&refusal),
            },
            Err(error) => match code::of_call(&error, self.era, self.hints.is_none()) {
                Some(Ok(reply)) => Answered { reply, served: Served::Fresh },
                Some(Err(refusal)) => return refused(&refusal),
                None => return (Answer::ok(Payload::default()), Outcome::Cancelled),
            },
        };
        let outcome = if answered.reply.is_error { Outcome::ToolError } else { Outcome::Ok };
        (Answer::ok(self.router.encoder.reply(self.id, self.era, &answered)), outcome)
    }

    /// A result that says how long it may be kept, where it must.
    fn with_hints(&self, mut answered: Answered) -> Answered {
        let Some(hints) = self.hints else { return answered };
        let wanted = match hints {
            Hints::No => false,
            Hints::Ours => true,
            Hints::Missing => !has_member(&answered.reply.fields, "ttlMs"),
        };
        if wanted && self.era == Era::Modern && answered.reply.is_final() {
            let separator: &[u8] = if answered.reply.fields.is_empty() { b"" } else { b"," };
            answered.reply.fields = [&answered.reply.fields, separator, &self.router.catalogue.hints].concat().into();
        }
        answered
    }

    /// Questions, as the result that has the client make the call again.
    fn ask(&self, required: &Required) -> Result<Reply, Refusal> {
        let needs = required.requests.values().fold(ClientCapabilities::default(), |all, r| all.union(need_of(r)));
        let missing = needs.missing_from(self.client);
        if !missing.is_empty() {
            let error = CallError::MissingCapability(missing);
            if let Some(Err(refusal)) = code::of_call(&error, self.era, false) {
                return Err(refusal);
            }
        }
        let made;
        let bound_to = match &self.bound_to {
            BoundTo::This(bound_to) => bound_to,
            BoundTo::Request(caller, method, name, arguments) => {
                made = seal::binding(caller, method, name, arguments);
                &made
            }
            BoundTo::Nothing => {
                let message = "input is required, and this request has no way to ask for it";
                return Err(Refusal::new(200, code::INTERNAL_ERROR, message));
            }
        };
        let mut members = Map::new();
        if !required.requests.is_empty() {
            members.insert("inputRequests".into(), Value::Object(required.requests.clone()));
        }
        if !required.memory.is_empty() || required.requests.is_empty() {
            let sealed = self.router.sealer.seal(&required.memory, bound_to);
            let sealed =
                sealed.ok_or_else(|| Refusal::new(200, code::INTERNAL_ERROR, "the call's state has no JSON form"))?;
            members.insert("requestState".into(), sealed.into());
        }
        let json = Value::Object(members).to_string();
        let fields = Bytes::copy_from_slice(&json.as_bytes()[1..json.len() - 1]);
        Ok(Reply { kind: Kind::InputRequired, ..Reply::of(fields) })
    }
}

/// What a client must be able to do to answer a question.
fn need_of(request: &Value) -> ClientCapabilities {
    match request.get("method").and_then(Value::as_str) {
        Some("sampling/createMessage") => ClientCapabilities::SAMPLING,
        Some("elicitation/create") => ClientCapabilities::ELICITATION,
        Some("roots/list") => ClientCapabilities::ROOTS,
        _ => ClientCapabilities::default(),
    }
}

fn has_member(fields: &[u8], name: &str) -> bool {
    let whole = [b"{", fields, b"}"].concat();
    serde_json::from_slice::<std::collections::HashMap<String, serde::de::IgnoredAny>>(&whole)
        .is_ok_and(|members| members.contains_key(name))
}

pub(super) fn ended_with(outcome: &Result<Answered, CallError>) -> Ended {
    Ended::with(outcome.as_ref().map(|answered| &answered.reply))
}
