//! Answers as bytes. A result is written around the members that a tool or the catalogue made, so that they are
//! serialised once and, when they are large or kept, not even copied.

use bytes::Bytes;
use serde_json::json;

use crate::{
    call::{Kind, Reply, push_json_string},
    changes::{Change, Lists},
    dispatch::{Answered, Served},
    mcp::{
        code::{Era, Refusal},
        wire::Id,
    },
    outbox::Message,
};

/// Members above this size are sent as they are, between a prefix and a suffix; smaller ones are copied into one
/// buffer, which costs less than a longer gather list.
const COPY_BYTES_MAX: usize = 4096;

/// A request id that outlives the request's bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum OwnedId {
    Number(i64),
    /// Its JSON, quotes included.
    Text(Box<str>),
}

impl From<Id<'_>> for OwnedId {
    fn from(id: Id<'_>) -> Self {
        match id {
            Id::Number(number) => Self::Number(number),
            Id::Text(json) => Self::Text(json.into()),
        }
    }
}

impl OwnedId {
    pub(crate) fn as_id(&self) -> Id<'_> {
        match self {
            Self::Number(number) => Id::Number(*number),
            Self::Text(json) => Id::Text(json),
        }
    }

    pub(crate) fn to_value(&self) -> serde_json::Value {
        match self {
            Self::Number(number) => (*number).into(),
            Self::Text(json) => serde_json::from_str(json).unwrap_or_default(),
        }
    }
}

/// A message's bytes, in up to three pieces.
#[derive(Clone, Debug, Default)]
pub(crate) struct Payload {
    pub(crate) parts: [Bytes; 3],
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Self { parts: [bytes.into(), Bytes::new(), Bytes::new()] }
    }
}

impl Payload {
    pub(crate) fn len(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }

    /// One piece, copied together when there are more.
    pub(crate) fn into_bytes(self) -> Bytes {
        if self.parts[1].is_empty() && self.parts[2].is_empty() {
            let [first, ..] = self.parts;
            return first;
        }
        self.parts.concat().into()
    }
}

/// Writes results. Holds what stands in every modern one.
#[derive(Debug)]
pub(crate) struct Encoder {
    /// `"io.modelcontextprotocol/serverInfo":{...}`.
    server_info_member: String,
    /// The end of a plain modern result, from after its members: `,"_meta":{...}}}`.
    modern_tail: Bytes,
}

impl Encoder {
    pub(crate) fn new(name: &str, version: &str) -> Self {
        let server_info = json!({ "name": name, "version": version });
        let server_info_member = format!("\"io.modelcontextprotocol/serverInfo\":{server_info}");
        let modern_tail = format!(",\"_meta\":{{{server_info_member}}}}}}}").into();
        Self { server_info_member, modern_tail }
    }

    /// A tool's answer.
    pub(crate) fn reply(&self, id: Id<'_>, era: Era, answered: &Answered) -> Payload {
        let Answered { reply, served } = answered;
        if reply.meta.is_none() && *served == Served::Fresh && reply.is_final() {
            return self.fixed(id, era, &reply.fields);
        }
        surround(id, era, reply.kind, &reply.fields, &self.tail_with(era, reply, *served))
    }

    /// A modern result that has nothing but its `_meta`.
    pub(crate) fn empty_with_meta(&self, id: Id<'_>, meta: Bytes) -> Payload {
        let tail = format!("\"_meta\":{{{},{}}}}}}}", self.server_info_member, String::from_utf8_lossy(&meta));
        surround(id, Era::Modern, Kind::Complete, &Bytes::new(), &tail.into())
    }

    /// Members of a result that are the same for everybody, with the given ones after the `resultType`.
    pub(crate) fn fixed(&self, id: Id<'_>, era: Era, members: &Bytes) -> Payload {
        match era {
            Era::Modern => surround(id, era, Kind::Complete, members, &self.modern_tail),
            Era::Legacy => surround(id, era, Kind::Complete, members, &Bytes::from_static(b"}}")),
        }
    }

    fn tail_with(&self, era: Era, reply: &Reply, served: Served) -> Bytes {
        let mut meta = Vec::with_capacity(256);
        let mut member = |bytes: &[u8]| {
            meta.extend_from_slice(if meta.is_empty() { b",\"_meta\":{" } else { b"," });
            meta.extend_from_slice(bytes);
        };
        if era == Era::Modern {
            member(self.server_info_member.as_bytes());
        }
        if let Some(own) = reply.meta.as_deref().filter(|own| !own.is_empty()) {
            member(own);
        }
        match served {
            Served::Fresh => {}
            Served::Miss => member(br#""bigiron/cache":{"status":"miss"}"#),
            Served::Hit { age_s } => {
                member(format!(r#""bigiron/cache":{{"status":"hit","age_s":{age_s}}}"#).as_bytes())
            }
            Served::Stale { age_s } => {
                member(format!(r#""bigiron/cache":{{"status":"stale","age_s":{age_s}}}"#).as_bytes())
            }
        }
        meta.extend_from_slice(if meta.is_empty() { b"}}" } else { b"}}}" });
        meta.into()
    }
}

/// A whole response with `members` as its result.
fn surround(id: Id<'_>, era: Era, kind: Kind, members: &Bytes, tail: &Bytes) -> Payload {
    // Members of nothing need no comma after them.
    let tail = &if members.is_empty() && tail.starts_with(b",") { tail.slice(1..) } else { tail.clone() };
    let small = members.len() <= COPY_BYTES_MAX;
    let mut out = Vec::with_capacity(96 + if small { members.len() + tail.len() } else { 0 });
    out.extend_from_slice(br#"{"jsonrpc":"2.0","id":"#);
    push_id(&mut out, id);
    match (era, kind) {
        (Era::Modern, Kind::Complete) => out.extend_from_slice(br#","result":{"resultType":"complete","#),
        (Era::Modern, kind) => {
            out.extend_from_slice(br#","result":{"resultType":""#);
            out.extend_from_slice(kind.name().as_bytes());
            out.extend_from_slice(br#"","#);
        }
        (Era::Legacy, _) => out.extend_from_slice(br#","result":{"#),
    }
    if small {
        out.extend_from_slice(members);
        out.extend_from_slice(tail);
        return out.into();
    }
    Payload { parts: [out.into(), members.clone(), tail.clone()] }
}

/// A response whose result is `{}`, as the older revisions have it.
pub(crate) fn empty_result(id: Id<'_>) -> Payload {
    let mut out = Vec::with_capacity(64);
    out.extend_from_slice(br#"{"jsonrpc":"2.0","id":"#);
    push_id(&mut out, id);
    out.extend_from_slice(br#","result":{}}"#);
    out.into()
}

/// An error response; without an id when there was none to read.
pub(crate) fn refusal(id: Option<Id<'_>>, refusal: &Refusal) -> Payload {
    let mut out = Vec::with_capacity(128 + refusal.message.len());
    out.extend_from_slice(br#"{"jsonrpc":"2.0","#);
    if let Some(id) = id {
        out.extend_from_slice(br#""id":"#);
        push_id(&mut out, id);
        out.push(b',');
    }
    out.extend_from_slice(format!(r#""error":{{"code":{},"message":"#, refusal.code).as_bytes());
    push_json_string(&mut out, &refusal.message);
    if let Some(data) = &refusal.data {
        out.extend_from_slice(format!(r#","data":{data}"#).as_bytes());
    }
    out.extend_from_slice(b"}}");
    out.into()
}

/// The key of the listen request's id, in what its stream says.
pub(crate) const SUBSCRIPTION_ID: &str = "io.modelcontextprotocol/subscriptionId";

/// A change, as a notification. `listen` is the id of the request whose stream it is on.
pub(crate) fn change(change: &Change, listen: Option<&OwnedId>) -> Vec<u8> {
    let (method, members) = match change {
        Change::List(Lists::TOOLS) => ("tools/list_changed", Bytes::new()),
        Change::List(Lists::PROMPTS) => ("prompts/list_changed", Bytes::new()),
        Change::List(_) => ("resources/list_changed", Bytes::new()),
        Change::Resource(uri) => ("resources/updated", format!("\"uri\":{}", json!(uri)).into()),
        Change::Task { members, .. } => ("tasks", members.clone()),
    };
    notice(method, &members, listen)
}

/// The first message of a listen stream: what was accepted.
pub(crate) fn acknowledged(id: &OwnedId, accepted: serde_json::Map<String, serde_json::Value>) -> Bytes {
    let members = format!("\"notifications\":{}", serde_json::Value::Object(accepted));
    notice("subscriptions/acknowledged", members.as_bytes(), Some(id)).into()
}

fn notice(method: &str, members: &[u8], listen: Option<&OwnedId>) -> Vec<u8> {
    let mut out = Vec::with_capacity(160 + members.len());
    out.extend_from_slice(br#"{"jsonrpc":"2.0","method":"notifications/"#);
    out.extend_from_slice(method.as_bytes());
    out.push(b'"');
    if !members.is_empty() || listen.is_some() {
        out.extend_from_slice(br#","params":{"#);
        out.extend_from_slice(members);
        if let Some(id) = listen {
            out.extend_from_slice(if members.is_empty() { b"\"_meta\":{\"" } else { b",\"_meta\":{\"" });
            out.extend_from_slice(SUBSCRIPTION_ID.as_bytes());
            out.extend_from_slice(b"\":");
            push_id(&mut out, id.as_id());
            out.push(b'}');
        }
        out.push(b'}');
    }
    out.push(b'}');
    out
}

/// Something that a tool said, as a notification. `progress_token` is the token's JSON.
pub(crate) fn notification(message: &Message, progress_token: Option<&OwnedId>) -> Vec<u8> {
    let json = match message {
        Message::Progress { progress, total, message } => {
            let mut params = json!({ "progress": plain_number(*progress) });
            if let Some(total) = total {
                params["total"] = plain_number(*total);
            }
            if let Some(message) = message {
                params["message"] = message.as_str().into();
            }
            // The token is echoed as it came, so it is put in by hand.
            let mut out = br#"{"jsonrpc":"2.0","method":"notifications/progress","params":{"#.to_vec();
            if let Some(token) = progress_token {
                out.extend_from_slice(br#""progressToken":"#);
                push_id(&mut out, token.as_id());
                out.push(b',');
            }
            out.extend_from_slice(&params.to_string().as_bytes()[1..]);
            out.push(b'}');
            return out;
        }
        Message::Ready(json) => return json.to_vec(),
        Message::Release => return Vec::new(),
        Message::Request { id, method, params } => match params {
            serde_json::Value::Null => json!({ "jsonrpc": "2.0", "id": id, "method": method }),
            params => json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }),
        },
        Message::Log { level, data } => json!({
            "jsonrpc": "2.0",
            "method": "notifications/message",
            "params": { "level": level.name(), "data": data },
        }),
    };
    json.to_string().into_bytes()
}

/// Whole numbers without a fraction, as people expect of counts.
fn plain_number(number: f64) -> serde_json::Value {
    #[allow(clippy::cast_possible_truncation)] // whole and within 2^53
    if number.fract() == 0.0 && number.abs() < 9e15 { (number as i64).into() } else { number.into() }
}

fn push_id(out: &mut Vec<u8>, id: Id<'_>) {
    match id {
        Id::Text(json) => out.extend_from_slice(json.as_bytes()),
        Id::Number(number) => out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn parsed(payload: Payload) -> Value {
        serde_json::from_slice(&payload.into_bytes()).expect("valid JSON")
    }

    #[test]
    fn results_are_whole_in_both_eras_and_sizes() {
        let encoder = Encoder::new("n", "1");
        for size in [1, COPY_BYTES_MAX, COPY_BYTES_MAX * 4] {
            for served in [Served::Fresh, Served::Miss, Served::Hit { age_s: 3 }] {
                for meta in [None, Some(Bytes::from_static(br#""a":1"#)), Some(Bytes::new())] {
                    for era in [Era::Modern, Era::Legacy] {
                        let mut reply = Reply::text(&"x".repeat(size));
                        reply.meta = meta.clone();
                        let value = parsed(encoder.reply(Id::Text("\"a\""), era, &Answered { reply, served }));
                        assert_eq!(value["id"], "a");
                        assert_eq!(value["result"]["content"][0]["text"].as_str().map(str::len), Some(size));
                        let modern = era == Era::Modern;
                        assert_eq!(value["result"]["resultType"] == "complete", modern);
                        let own = &value["result"]["_meta"];
                        assert_eq!(own["io.modelcontextprotocol/serverInfo"]["name"] == "n", modern);
                        assert_eq!(own["bigiron/cache"]["age_s"] == 3, served == Served::Hit { age_s: 3 });
                        assert_eq!(own["a"] == 1, meta.as_ref().is_some_and(|m| !m.is_empty()));
                    }
                }
            }
        }
    }

    #[test]
    fn notifications_echo_the_token() {
        let message = Message::Progress { progress: 50.0, total: Some(100.0), message: Some("half\n".into()) };
        let text = notification(&message, Some(&OwnedId::Text("\"t\"".into())));
        let value: Value = serde_json::from_slice(&text).expect("valid JSON");
        assert_eq!(value["params"], json!({"progressToken":"t","progress":50,"total":100,"message":"half\n"}));
        assert!(!text.contains(&b'\n'));
    }
}
