//! From failures to statuses and codes: the one table. Everything that refuses a message makes a [`Refusal`] here.
//! Codes are those of JSON-RPC and of the 2026-07-28 revision; our own (-31xxx) lie outside the reserved range.

use serde_json::{Value, json};

use crate::{
    call::{ClientCapabilities, Reply, TASKS_EXTENSION},
    error::CallError,
    mcp::{MODERN_VERSION, wire::WireFault},
};

pub(crate) const PARSE_ERROR: i32 = -32700;
pub(crate) const INVALID_REQUEST: i32 = -32600;
pub(crate) const METHOD_NOT_FOUND: i32 = -32601;
pub(crate) const INVALID_PARAMS: i32 = -32602;
pub(crate) const INTERNAL_ERROR: i32 = -32603;
/// Up to 2025-11-25; later it is one of invalid parameters.
pub(crate) const RESOURCE_NOT_FOUND: i32 = -32002;
pub(crate) const HEADER_MISMATCH: i32 = -32020;
pub(crate) const MISSING_CAPABILITY: i32 = -32021;
pub(crate) const UNSUPPORTED_VERSION: i32 = -32022;
/// One caller asks for more than one may have.
pub(crate) const RATE_LIMITED: i32 = -31429;
/// No room or stopping.
pub(crate) const OVERLOADED: i32 = -31503;
/// The deadline passed before the call started.
pub(crate) const DEADLINE_BEFORE_START: i32 = -31504;

/// Which family of rules a request follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Era {
    /// 2026-07-28: stateless.
    Modern,
    /// 2024-11-05 to 2025-11-25: sessions.
    Legacy,
}

/// A request that gets no result: what the client is told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) code: i32,
    pub(crate) message: String,
    pub(crate) data: Option<Value>,
    pub(crate) retry_after_s: Option<u32>,
    /// For the audit trail, and not for the client: which of several things it was.
    pub(crate) detail: &'static str,
}

impl Refusal {
    pub(crate) fn new(status: u16, code: i32, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), data: None, retry_after_s: None, detail: "" }
    }

    /// 400 for a message that breaks the protocol.
    pub(crate) fn invalid_request(message: impl Into<String>) -> Self {
        Self::new(400, INVALID_REQUEST, message)
    }

    /// 400 for headers that are missing or contradict the body.
    pub(crate) fn header_mismatch(message: impl Into<String>) -> Self {
        Self::new(400, HEADER_MISMATCH, message)
    }

    /// 400 for a revision that requests cannot use on their own.
    pub(crate) fn unsupported_version(requested: &str) -> Self {
        let mut refusal = Self::new(400, UNSUPPORTED_VERSION, "this protocol version is not supported");
        refusal.data = Some(json!({ "supported": [MODERN_VERSION], "requested": requested }));
        refusal
    }

    /// 400 for a request that needs more than its client says it can do.
    pub(crate) fn missing_capability(era: Era, missing: ClientCapabilities) -> Self {
        let message = CallError::MissingCapability(missing).to_string();
        let mut refusal = Self::new(if era == Era::Modern { 400 } else { 200 }, MISSING_CAPABILITY, message);
        refusal.data = Some(json!({ "requiredCapabilities": capabilities_object(missing) }));
        refusal
    }

    pub(crate) fn method_not_found(era: Era, method: &str) -> Self {
        let method: String = method.chars().take(64).collect();
        let status = if era == Era::Modern { 404 } else { 200 };
        Self::new(status, METHOD_NOT_FOUND, format!("method not found: {method}"))
    }

    /// Parameters that a known method does not take. `broken` says that the message breaks the protocol itself.
    pub(crate) fn invalid_params(broken: bool, message: impl Into<String>) -> Self {
        Self::new(if broken { 400 } else { 200 }, INVALID_PARAMS, message)
    }

    /// 503 with the time to wait.
    pub(crate) fn overloaded(retry_after_s: u32, message: impl Into<String>) -> Self {
        Self::new(503, OVERLOADED, message).after(retry_after_s)
    }

    /// 429 with the time to wait.
    pub(crate) fn rate_limited(retry_after_s: u32, message: impl Into<String>) -> Self {
        Self::new(429, RATE_LIMITED, message).after(retry_after_s)
    }

    /// Says when to try again: in the header, and in the message, since in a batch or on a stream there is only that.
    fn after(mut self, retry_after_s: u32) -> Self {
        self.data = Some(json!({ "retryAfter": retry_after_s }));
        self.retry_after_s = Some(retry_after_s);
        self
    }
}

impl From<WireFault> for Refusal {
    fn from(fault: WireFault) -> Self {
        match fault {
            WireFault::Parse(message) => Self::new(400, PARSE_ERROR, message),
            WireFault::InvalidRequest(message) => Self::invalid_request(message),
            WireFault::InvalidParams(message) => Self::invalid_params(true, message),
        }
    }
}

/// What a failed call becomes: a result that the agent reads, or a refusal that the client's code reads. `None` for a
/// call that was taken back, to which nothing may be said. Only tools
/// have results that say that they failed.
pub(crate) fn of_call(error: &CallError, era: Era, is_tool: bool) -> Option<Result<Reply, Refusal>> {
    let message = error.to_string();
    let modern = era == Era::Modern;
    Some(match error {
        CallError::Tool(_) | CallError::TimedOut { .. } if is_tool => Ok(Reply::error(&message)),
        CallError::Tool(_) | CallError::TimedOut { .. } => Err(Refusal::new(200, INTERNAL_ERROR, message)),
        CallError::InvalidParams(_) | CallError::UnknownTool(_) => Err(Refusal::invalid_params(false, message)),
        CallError::MissingCapability(missing) => Err(Refusal::missing_capability(era, *missing)),
        CallError::InputRequired(_) => {
            Err(Refusal::new(200, INTERNAL_ERROR, "input was required where none can be asked for"))
        }
        CallError::NoResource(uri) => {
            let mut refusal = Refusal::new(200, if modern { INVALID_PARAMS } else { RESOURCE_NOT_FOUND }, message);
            refusal.data = Some(json!({ "uri": uri }));
            Err(refusal)
        }
        CallError::Rpc { code, data, .. } => {
            Err(Refusal { data: data.clone(), ..Refusal::new(rpc_status(*code, era), *code, message) })
        }
        CallError::Internal | CallError::Lost => Err(Refusal::new(200, INTERNAL_ERROR, message)),
        CallError::Overloaded { retry_after_s }
        | CallError::StoreAway { retry_after_s }
        | CallError::Nowhere { retry_after_s, .. } => Err(Refusal::overloaded(*retry_after_s, message)),
        CallError::CallerLimit { retry_after_s, .. } => Err(Refusal::rate_limited(*retry_after_s, message)),
        CallError::Draining => Err(Refusal::overloaded(1, message)),
        CallError::DeadlineBeforeStart => Err(Refusal::new(503, DEADLINE_BEFORE_START, message).after(1)),
        CallError::Cancelled => return None,
    })
}

/// The HTTP status of an error whose code a tool's author chose.
fn rpc_status(code: i32, era: Era) -> u16 {
    match (era, code) {
        (Era::Modern, METHOD_NOT_FOUND) => 404,
        (Era::Modern, HEADER_MISMATCH | MISSING_CAPABILITY | UNSUPPORTED_VERSION) => 400,
        _ => 200,
    }
}

fn capabilities_object(capabilities: ClientCapabilities) -> Value {
    let names = ClientCapabilities::NAMES.iter().filter(|(_, flag)| capabilities.contains(*flag));
    let mut object: serde_json::Map<_, _> = names.map(|(name, _)| ((*name).to_owned(), json!({}))).collect();
    if capabilities.contains(ClientCapabilities::TASKS) {
        object.insert("extensions".into(), json!({ TASKS_EXTENSION: {} }));
    }
    Value::Object(object)
}
