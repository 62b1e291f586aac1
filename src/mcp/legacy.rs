//! The rules of 2024-11-05 to 2025-11-25: `initialize` opens a session, and every later request names it.

use std::{collections::HashSet, sync::Arc, time::Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::{
    call::Caller,
    mcp::{
        LEGACY_VERSIONS,
        code::{Era, RATE_LIMITED, Refusal},
        encode::OwnedId,
        head::{Field, Head},
        session::{Full, InFlight, Session, Sessions, Start},
        wire::{Envelope, IdField, Shape, Text},
    },
};

/// The session of a transport that is itself one: a pair of pipes.
#[derive(Debug)]
pub(crate) struct OwnSession {
    opened: Mutex<Option<Arc<Session>>>,
    /// Where requests without a session are noted, so that they can be cancelled too.
    unopened: Arc<Session>,
    /// Streams of `subscriptions/listen` that nobody has taken back.
    listens: Mutex<HashSet<OwnedId>>,
}

/// Streams of `subscriptions/listen` at once.
const LISTENS_MAX: usize = 64;

impl OwnSession {
    pub(crate) fn new(sessions: &Sessions) -> Self {
        Self { opened: Mutex::default(), unopened: sessions.detached(Start::default()), listens: Mutex::default() }
    }

    /// Notes a stream of `subscriptions/listen` as open, so that it can be cancelled by the id of its request.
    pub(crate) fn listen(self: &Arc<Self>, id: &OwnedId) -> Result<Listening, Refusal> {
        let mut listens = self.listens.lock();
        if listens.len() >= LISTENS_MAX {
            let message = format!(
                "{LISTENS_MAX} streams of subscriptions/listen are open, as many as may be; cancel one, or ask for more in one"
            );
            return Err(Refusal::new(429, RATE_LIMITED, message));
        }
        let in_flight = self
            .unopened
            .begin(id.clone())
            .ok_or_else(|| Refusal::invalid_request("a request with this id is still running; ids must differ"))?;
        listens.insert(id.clone());
        Ok(Listening { own: Arc::clone(self), id: id.clone(), in_flight })
    }

    /// Where calls of an era are noted while they run.
    pub(crate) fn scope(&self, era: Era) -> Option<Arc<Session>> {
        match era {
            Era::Modern => Some(Arc::clone(&self.unopened)),
            Era::Legacy => self.opened.lock().clone(),
        }
    }

    /// Cancels a running call of either era.
    pub(crate) fn cancel(&self, id: &OwnedId) {
        self.listens.lock().remove(id); // here and not at its end, so that the next one has its room at once
        self.unopened.cancel(id);
        if let Some(session) = self.scope(Era::Legacy) {
            session.cancel(id);
        }
    }
}

/// A stream of `subscriptions/listen` that is open; its end is the drop.
#[derive(Debug)]
pub(crate) struct Listening {
    own: Arc<OwnSession>,
    id: OwnedId,
    in_flight: InFlight,
}

impl Listening {
    /// Returns when the client takes it back.
    pub(crate) async fn cancelled(&self) {
        self.in_flight.cancelled().await;
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.own.listens.lock().remove(&self.id);
    }
}

/// So much of what `initialize` said is kept for as long as the session, where a hosted handler wants to know.
const INTRODUCTION_BYTES_MAX: usize = 4096;

/// What is kept of the parameters of `initialize`: all, or of long ones what the protocol itself names.
pub(super) fn introduction(said: Value) -> Value {
    let fits = |value: &Value| value.to_string().len() <= INTRODUCTION_BYTES_MAX;
    if fits(&said) {
        return said;
    }
    let name = |value: &Value| value.as_str().map(|text| text.chars().take(NAME_CHARS_MAX).collect::<String>());
    let mut capabilities = said["capabilities"].clone();
    if let Some(capabilities) = capabilities.as_object_mut() {
        capabilities.remove("experimental");
    }
    json!({
        "protocolVersion": name(&said["protocolVersion"]),
        "capabilities": if fits(&capabilities) { capabilities } else { json!({}) },
        "clientInfo": {
            "name": name(&said["clientInfo"]["name"]).unwrap_or_default(),
            "version": name(&said["clientInfo"]["version"]).unwrap_or_default(),
        },
    })
}

/// Of a name that is too long, this much is kept.
const NAME_CHARS_MAX: usize = 128;

/// What an `initialize` comes to.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) version: &'static str,
    /// The new session's id, where the transport needs one.
    pub(crate) session_id: Option<String>,
}

/// Opens a session. The version is the client's when we have it, else our newest.
pub(crate) fn initialize(
    envelope: &Envelope<'_>,
    head: &Head<'_>,
    sessions: &Sessions,
    own: Option<&OwnSession>,
    initialize: Option<Arc<Value>>,
    caller: &Caller,
    now: Instant,
) -> Result<Opened, Refusal> {
    let params = &envelope.params;
    let Text::Is(asked) = &params.protocol_version else {
        return Err(Refusal::invalid_params(false, "params.protocolVersion is missing or not text"));
    };
    let index = LEGACY_VERSIONS.iter().position(|v| *v == asked).unwrap_or_default();
    let version = LEGACY_VERSIONS[index];
    #[allow(clippy::cast_possible_truncation)] // there are four
    let start = Start { client: params.capabilities.unwrap_or_default(), version: index as u8, initialize };
    let again = || Refusal::invalid_request("this session is initialized already; it keeps its first parameters");
    if let Some(own) = own {
        let mut own = own.opened.lock();
        if own.is_some() {
            return Err(Refusal { status: 200, ..again() });
        }
        *own = Some(sessions.detached(start));
        return Ok(Opened { version, session_id: None });
    }
    // An id that is not ours is ignored: ids are made here and nowhere else.
    if head.session_id.text().is_some_and(|id| sessions.get(id, caller, now).is_some()) {
        return Err(again());
    }
    let opened = sessions.open(start, caller.clone(), head.peer, now);
    let session_id = opened.map_err(|full| match full {
        Full::Caller => {
            Refusal::rate_limited(60, "this caller has as many sessions as one may have; end some with DELETE")
        }
        Full::Server => Refusal::overloaded(60, "the server has as many sessions as it may have"),
    })?;
    Ok(Opened { version, session_id: Some(session_id) })
}

/// The session that a request names.
pub(crate) fn session(
    head: &Head<'_>,
    sessions: &Sessions,
    own: Option<&OwnSession>,
    caller: &Caller,
    now: Instant,
) -> Result<Arc<Session>, Refusal> {
    if let Some(own) = own {
        return own.scope(Era::Legacy).ok_or_else(|| Refusal {
            status: 200,
            ..Refusal::invalid_request(
                "not initialized; send \"initialize\" first, or a request of 2026-07-28 with its _meta",
            )
        });
    }
    match head.session_id {
        Field::Absent => Err(Refusal::invalid_request(
            "the header Mcp-Session-Id is missing; send \"initialize\" first, or a request of 2026-07-28 with its _meta",
        )),
        Field::Repeated => Err(Refusal::invalid_request("the header Mcp-Session-Id stands more than once")),
        field => field.text().and_then(|id| sessions.get(id, caller, now)).ok_or_else(|| Refusal {
            status: 404,
            ..Refusal::invalid_request("no such session; it has ended, so send \"initialize\" again")
        }),
    }
}

/// What must hold for every message in a session.
pub(crate) fn check(envelope: &Envelope<'_>) -> Result<(), Refusal> {
    if !matches!(envelope.params.shape, Shape::Object | Shape::Absent) {
        return Err(Refusal::invalid_params(true, "params must be an object"));
    }
    if envelope.params.meta.progress_token == IdField::Wrong {
        return Err(Refusal::invalid_params(true, "params._meta.progressToken must be text or an integer"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_introduction_is_kept_in_short() {
        let short = json!({ "protocolVersion": "2025-06-18", "capabilities": { "roots": {} }, "more": 1 });
        assert_eq!(introduction(short.clone()), short);
        let icon = "x".repeat(100_000);
        let long = json!({
            "protocolVersion": "2025-06-18",
            "capabilities": { "roots": {}, "experimental": { "x": icon } },
            "clientInfo": { "name": "a", "version": icon, "icons": [{ "src": icon }] },
            "more": icon,
        });
        let kept = introduction(long);
        assert!(kept.to_string().len() <= INTRODUCTION_BYTES_MAX);
        assert_eq!((&kept["capabilities"], &kept["clientInfo"]["name"]), (&json!({ "roots": {} }), &json!("a")));
    }
}
