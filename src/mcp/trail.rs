//! What the audit trail is told: each call when it is let in, and each message that is refused. The ends of calls are
//! told in `calling`; what is refused before it is a message, by the transport.

use serde_json::Value;

use crate::{
    audit::{self, Outcome, RequestId, Unwritable},
    mcp::{
        code::Refusal,
        head::Head,
        router::{Request, Router},
        wire::{self, Id, Params},
    },
    telemetry::refusals::Reason,
};

/// What a client that is refused for want of a line is told to wait: about as long as between two tries to write.
const RETRY_AFTER_S: u32 = 1;
const TOOLS_CALL: &str = "tools/call";
/// What is said of a call of a tool that is not for who calls it.
const NO_RIGHT: &str = "no_right";

/// What is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct About<'a> {
    pub(crate) id: Option<Id<'a>>,
    pub(crate) method: &'a str,
    pub(crate) name: Option<&'a str>,
    /// The name is that of a tool.
    pub(crate) tool: bool,
    pub(crate) arguments: Option<&'a Value>,
}

impl<'a> About<'a> {
    /// As far as headers say it.
    pub(crate) fn unread(method: Option<&'a str>, name: Option<&'a str>) -> Self {
        Self { method: method.unwrap_or_default(), name, tool: method == Some(TOOLS_CALL), ..Self::default() }
    }
}

/// The beginning of a line.
pub(super) fn head<'a>(head: &Head<'a>, about: About<'a>) -> audit::Head<'a> {
    let About { id, method, name, tool, arguments } = about;
    audit::Head {
        caller: head.caller.subject(),
        key: head.identity.and_then(|identity| identity.key()),
        detail: "",
        address: head.peer,
        session: head.session_id.text(),
        request_id: id.map(|id| match id {
            Id::Number(number) => RequestId::Number(number),
            Id::Text(json) => RequestId::Text(json),
        }),
        method,
        tool: name.filter(|_| tool),
        name: name.filter(|_| !tool),
        arguments,
    }
}

/// The refusal of a call that would leave no trace.
pub(super) fn unwritable(error: Unwritable) -> Refusal {
    Refusal::overloaded(RETRY_AFTER_S, error.to_string())
}

/// What a message names, by any method's rules.
pub(super) fn name_of<'a>(params: &'a Params<'_>) -> Option<&'a str> {
    params.name.get().or_else(|| params.uri.get()).or_else(|| params.task_id.get())
}

impl Router {
    /// Something that is answered from bytes was read.
    pub(super) fn note_answered(&self, request: &Request<'_, '_>, name: &str) -> Result<(), Refusal> {
        let Some(audit) = &self.audit else { return Ok(()) };
        let about = About { id: Some(request.id), method: request.method, name: Some(name), ..About::default() };
        let entry = audit.admit(&head(request.head, about)).map_err(unwritable)?;
        entry.finish(Outcome::Ok);
        Ok(())
    }

    /// A message was refused. It is read once more for its line, so that messages which are not cost nothing.
    pub(super) fn note_refusal(&self, around: &Head<'_>, body: &[u8], refusal: &Refusal) {
        if self.audit.is_none() {
            return;
        }
        let (envelope, _) = wire::read(body, self.shape);
        let method = envelope.method.get();
        let about = About {
            id: envelope.request_id(),
            arguments: envelope.params.arguments.as_ref(),
            ..About::unread(method, name_of(&envelope.params))
        };
        let detail = if self.is_hidden(around, &about) { NO_RIGHT } else { refusal.detail };
        self.note_unread(around, about, Reason::of(refusal.status, refusal.code), detail);
    }

    /// Whether a tool is asked for that there is, and that its sender may not call: to him it is as if there were none.
    fn is_hidden(&self, around: &Head<'_>, about: &About<'_>) -> bool {
        let tools = self.dispatch.tools();
        let hidden = |name| tools.get(name).is_some() && tools.for_caller(name, around.identity).is_none();
        about.tool && about.name.is_some_and(hidden)
    }

    /// Something was refused before it was read as a message. `detail` says which of several things it was.
    pub(crate) fn note_unread(&self, around: &Head<'_>, about: About<'_>, reason: Reason, detail: &str) {
        if let Some(audit) = &self.audit {
            audit.refusal(&audit::Head { detail, ..head(around, about) }, reason.name());
        }
    }
}
