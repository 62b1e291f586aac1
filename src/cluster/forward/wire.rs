//! What travels when one instance has another run a call: the call, in one body; and what comes back, as frames, each a
//! letter, a length and that many bytes. Both ends are of one deployment, and perhaps of two versions: a member that is
//! missing has its default, and a frame of a kind that is not known is passed over, as is a log message of a level that is
//! not known. What cannot be read at all breaks the call off.

use std::{sync::Arc, time::Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    call::{Caller, ClientCapabilities, Ctx, Deadline, Kind, Raw, Reply, Share},
    error::CallError,
    input::{Exchange, Memory, Required, Rounds},
    outbox::{LogLevel, Message, Outbox},
};

/// The revisions that a request may follow, as a hosted handler is told.
const VERSIONS: [&str; 5] = ["2026-07-28", "2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];

/// All of a call but its arguments.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Call {
    pub(super) tool: String,
    /// The subject; none for one whom nobody asked who he is.
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<String>,
    /// Who it counts for.
    who: u64,
    weight: u32,
    /// What is left of the time, and of how much.
    left_ms: u64,
    limit_ms: u64,
    /// What the client can do, as flags.
    client: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hears: Option<Hears>,
    talk: Talk,
    /// It may become a task.
    pub(super) defers: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<RawCall>,
}

/// What the client hears before the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Hears {
    pub(crate) progress: bool,
    /// The least severe messages, by rank.
    log: Option<u8>,
}

impl Hears {
    pub(crate) fn log_level(self) -> Option<LogLevel> {
        self.log.and_then(LogLevel::of_rank)
    }
}

/// How the client can be asked.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Talk {
    #[default]
    None,
    Rounds {
        answers: Map<String, Value>,
        kept: Option<Value>,
    },
    Stream,
}

/// The request as a hosted handler reads it. The HTTP request's head stays where it came.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct RawCall {
    version: String,
    id: Value,
    meta: Map<String, Value>,
    initialize: Option<Value>,
}

impl Call {
    /// The call as bytes, with its arguments.
    pub(super) fn encode(tool: &str, arguments: &Value, ctx: &Ctx, now: Instant) -> Bytes {
        let is_named = *ctx.caller() != Caller::ANONYMOUS;
        let call = Self {
            tool: tool.to_owned(),
            caller: is_named.then(|| ctx.caller().subject().to_owned()),
            who: ctx.share.who(),
            weight: ctx.share.weight(),
            left_ms: ctx.deadline().at().saturating_duration_since(now).as_millis() as u64,
            limit_ms: ctx.deadline().limit_ms(),
            client: ctx.client().bits(),
            hears: ctx
                .outbox
                .as_ref()
                .map(|outbox| Hears { progress: outbox.wants_progress(), log: outbox.log_level().map(LogLevel::rank) }),
            talk: match &ctx.exchange {
                Exchange::None => Talk::None,
                Exchange::Rounds(rounds) => Talk::Rounds { answers: rounds.answers.clone(), kept: rounds.kept.clone() },
                Exchange::Stream(_) => Talk::Stream,
            },
            defers: ctx.deferred.is_some(),
            raw: ctx.raw.as_ref().map(|raw| RawCall {
                version: raw.version.to_owned(),
                id: raw.id.clone(),
                meta: raw.meta.clone(),
                initialize: raw.initialize.as_deref().cloned(),
            }),
        };
        // Neither has a form that JSON lacks.
        let head = serde_json::to_vec(&call).unwrap_or_default();
        let arguments = serde_json::to_vec(arguments).unwrap_or_default();
        let mut bytes = BytesMut::with_capacity(4 + head.len() + arguments.len());
        bytes.put_u32(head.len() as u32);
        bytes.put_slice(&head);
        bytes.put_slice(&arguments);
        bytes.freeze()
    }

    /// The call and its arguments, when it is one.
    pub(super) fn decode(mut bytes: Bytes) -> Option<(Self, Value)> {
        let length = bytes.try_get_u32().ok()? as usize;
        let head = bytes.get(..length)?;
        let call = serde_json::from_slice(head).ok()?;
        Some((call, serde_json::from_slice(&bytes[length..]).ok()?))
    }

    /// What the tool sees of the call, but for its ways back.
    pub(super) fn ctx(&mut self, now: Instant) -> Ctx {
        let caller = self.caller.as_deref().map_or(Caller::ANONYMOUS, Caller::named);
        let deadline = Deadline::left(now, self.left_ms, self.limit_ms);
        let mut ctx = Ctx::new(caller, deadline, ClientCapabilities::of_bits(self.client));
        ctx.share = Share::new(self.who, self.weight);
        if let Talk::Rounds { answers, kept } = &mut self.talk {
            let (answers, kept) = (std::mem::take(answers), kept.take());
            ctx.exchange = Exchange::Rounds(Arc::new(Rounds::new(Memory { answers, kept }, Map::new())));
        }
        ctx.raw = self.raw.take().map(|raw| {
            let version = VERSIONS.into_iter().find(|version| *version == raw.version).unwrap_or_default();
            let initialize = raw.initialize.map(Arc::new);
            Box::new(Raw { version, id: raw.id, meta: raw.meta, initialize, ..Raw::default() })
        });
        ctx
    }

    /// Whether its client can be asked while it runs.
    pub(super) fn asks(&self) -> bool {
        self.talk == Talk::Stream
    }
}

/// Something that comes back.
#[derive(Debug, PartialEq)]
pub(super) enum Frame {
    Progress {
        progress: f64,
        total: Option<f64>,
        message: Option<String>,
    },
    Log(LogLevel, Value),
    Ready(Bytes),
    Release,
    /// A question, under a number of the call's own.
    Question(u64, Question),
    /// The end.
    Outcome(Result<Reply, CallError>),
    /// Of a later version.
    Unknown,
}

/// What only the instance that has the client can do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Question {
    /// To the client.
    Client { method: String, params: Value },
    /// The call is to become a task.
    Task,
    /// To the client, by the task.
    Input(Map<String, Value>),
}

/// The answer to one: of a client, what it said or the error that it sent; else an error of ours as JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Answer {
    /// The call, by its number on the connection.
    pub(super) call: u64,
    pub(super) question: u64,
    pub(super) answer: Result<Value, Value>,
}

/// Bytes before the content of a frame.
const HEAD_BYTES: usize = 5;
/// A result has no member `_meta`.
const NO_META: u32 = u32::MAX;

fn frame(letter: u8, content: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEAD_BYTES + content.len());
    bytes.put_u8(letter);
    bytes.put_u32(content.len() as u32);
    bytes.put_slice(content);
    bytes.freeze()
}

/// A message of a call. `None` for one that has no place between instances.
pub(super) fn message(message: Message) -> Bytes {
    match message {
        Message::Progress { progress, total, message } => {
            frame(b'p', json!([progress, total, message]).to_string().as_bytes())
        }
        Message::Log { level, data } => frame(b'l', json!([level.rank(), data]).to_string().as_bytes()),
        Message::Ready(json) => frame(b'r', &json),
        Message::Release => frame(b'x', b""),
        Message::Request { id, method, params } => question(id, &Question::Client { method, params }),
    }
}

pub(super) fn question(number: u64, question: &Question) -> Bytes {
    frame(b'q', &serde_json::to_vec(&(number, question)).unwrap_or_default())
}

pub(super) fn outcome(outcome: Result<Reply, CallError>) -> Bytes {
    let reply = match outcome {
        Ok(reply) => reply,
        Err(error) => return frame(b'e', &serde_json::to_vec(&Wrong::from(error)).unwrap_or_default()),
    };
    let meta = reply.meta.as_deref().unwrap_or_default();
    let mut bytes = BytesMut::with_capacity(HEAD_BYTES + 6 + meta.len() + reply.fields.len());
    bytes.put_u8(b'a');
    bytes.put_u32((6 + meta.len() + reply.fields.len()) as u32);
    bytes.put_u8(u8::from(reply.is_error));
    bytes.put_u8(match reply.kind {
        Kind::Complete => 0,
        Kind::InputRequired => 1,
        Kind::Task => 2,
    });
    bytes.put_u32(if reply.meta.is_some() { meta.len() as u32 } else { NO_META });
    bytes.put_slice(meta);
    bytes.put_slice(&reply.fields);
    bytes.freeze()
}

/// Takes the next frame off what has come so far. `Err` for what is none, or longer than may be.
pub(super) fn take(bytes: &mut BytesMut, bytes_max: usize) -> Result<Option<Frame>, ()> {
    let Some(head) = bytes.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
    let (letter, length) = (head[0], u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize);
    if length > bytes_max {
        return Err(());
    }
    if bytes.len() < HEAD_BYTES + length {
        bytes.reserve(HEAD_BYTES + length - bytes.len());
        return Ok(None);
    }
    bytes.advance(HEAD_BYTES);
    read(letter, bytes.split_to(length).freeze()).ok_or(()).map(Some)
}

fn read(letter: u8, content: Bytes) -> Option<Frame> {
    Some(match letter {
        b'p' => {
            let (progress, total, message) = serde_json::from_slice(&content).ok()?;
            Frame::Progress { progress, total, message }
        }
        b'l' => {
            let (rank, data) = serde_json::from_slice(&content).ok()?;
            LogLevel::of_rank(rank).map_or(Frame::Unknown, |level| Frame::Log(level, data))
        }
        b'r' => Frame::Ready(content),
        b'x' => Frame::Release,
        b'q' => {
            let (number, question) = serde_json::from_slice(&content).ok()?;
            Frame::Question(number, question)
        }
        b'e' => Frame::Outcome(Err(serde_json::from_slice::<Wrong>(&content).ok()?.into())),
        b'a' => Frame::Outcome(Ok(read_reply(content)?)),
        _ => Frame::Unknown,
    })
}

fn read_reply(mut content: Bytes) -> Option<Reply> {
    let is_error = content.try_get_u8().ok()? != 0;
    let kind = match content.try_get_u8().ok()? {
        0 => Kind::Complete,
        1 => Kind::InputRequired,
        2 => Kind::Task,
        _ => return None,
    };
    let meta = match content.try_get_u32().ok()? {
        NO_META => None,
        length if length as usize > content.len() => return None,
        length => Some(content.split_to(length as usize)),
    };
    Some(Reply { fields: content, meta, is_error, kind })
}

/// An error, as it travels.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Wrong {
    Tool(String),
    InvalidParams(String),
    UnknownTool(String),
    MissingCapability(u8),
    InputRequired { requests: Map<String, Value>, memory: Memory },
    NoResource(String),
    Rpc { code: i32, message: String, data: Option<Value> },
    Internal,
    Overloaded(u32),
    StoreAway(u32),
    CallerLimit { why: String, retry_after_s: u32 },
    DeadlineBeforeStart,
    TimedOut(u64),
    Nowhere { tool: String, roles: Vec<String>, retry_after_s: u32 },
    Lost,
    Draining,
    Cancelled,
}

impl From<CallError> for Wrong {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Tool(text) => Self::Tool(text),
            CallError::InvalidParams(text) => Self::InvalidParams(text),
            CallError::UnknownTool(name) => Self::UnknownTool(name),
            CallError::MissingCapability(missing) => Self::MissingCapability(missing.bits()),
            CallError::InputRequired(required) => {
                Self::InputRequired { requests: required.requests, memory: required.memory }
            }
            CallError::NoResource(uri) => Self::NoResource(uri),
            CallError::Rpc { code, message, data } => Self::Rpc { code, message, data },
            CallError::Internal => Self::Internal,
            CallError::Overloaded { retry_after_s } => Self::Overloaded(retry_after_s),
            CallError::StoreAway { retry_after_s } => Self::StoreAway(retry_after_s),
            CallError::CallerLimit { why, retry_after_s } => Self::CallerLimit { why, retry_after_s },
            CallError::DeadlineBeforeStart => Self::DeadlineBeforeStart,
            CallError::TimedOut { limit_ms } => Self::TimedOut(limit_ms),
            CallError::Nowhere { tool, roles, retry_after_s } => Self::Nowhere { tool, roles, retry_after_s },
            CallError::Lost => Self::Lost,
            CallError::Draining => Self::Draining,
            CallError::Cancelled => Self::Cancelled,
        }
    }
}

impl From<Wrong> for CallError {
    fn from(wrong: Wrong) -> Self {
        match wrong {
            Wrong::Tool(text) => Self::Tool(text),
            Wrong::InvalidParams(text) => Self::InvalidParams(text),
            Wrong::UnknownTool(name) => Self::UnknownTool(name),
            Wrong::MissingCapability(bits) => Self::MissingCapability(ClientCapabilities::of_bits(bits)),
            Wrong::InputRequired { requests, memory } => Self::InputRequired(Box::new(Required { requests, memory })),
            Wrong::NoResource(uri) => Self::NoResource(uri),
            Wrong::Rpc { code, message, data } => Self::Rpc { code, message, data },
            Wrong::Internal => Self::Internal,
            Wrong::Overloaded(retry_after_s) => Self::Overloaded { retry_after_s },
            Wrong::StoreAway(retry_after_s) => Self::StoreAway { retry_after_s },
            Wrong::CallerLimit { why, retry_after_s } => Self::CallerLimit { why, retry_after_s },
            Wrong::DeadlineBeforeStart => Self::DeadlineBeforeStart,
            Wrong::TimedOut(limit_ms) => Self::TimedOut { limit_ms },
            Wrong::Nowhere { tool, roles, retry_after_s } => Self::Nowhere { tool, roles, retry_after_s },
            Wrong::Lost => Self::Lost,
            Wrong::Draining => Self::Draining,
            Wrong::Cancelled => Self::Cancelled,
        }
    }
}

/// An error of ours as JSON, and back.
pub(super) fn wrong_to_json(error: CallError) -> Value {
    serde_json::to_value(Wrong::from(error)).unwrap_or_default()
}

pub(super) fn wrong_from_json(value: Value) -> CallError {
    serde_json::from_value::<Wrong>(value).map_or(CallError::Internal, CallError::from)
}

/// Tells the client what a frame says, when it is a message.
pub(super) fn pass_on(frame: Frame, outbox: Option<&Outbox>) {
    let Some(outbox) = outbox else { return };
    match frame {
        Frame::Progress { progress, total, message } => {
            outbox.progress(progress, total, message.as_deref().unwrap_or_default());
        }
        Frame::Log(level, data) if outbox.wants_log(level) => outbox.log(level, data),
        Frame::Ready(json) => drop(outbox.ready(json)), // without room it is dropped, as where the tool runs
        Frame::Release => outbox.release(),
        Frame::Log(..) | Frame::Question(..) | Frame::Outcome(_) | Frame::Unknown => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_arrives_as_it_was_sent() {
        let now = Instant::now();
        let client = ClientCapabilities::SAMPLING.union(ClientCapabilities::TASKS);
        let mut ctx = Ctx::new(Caller::named("ann"), Deadline::after(now, 1500), client);
        ctx.share = Share::new(7, 3);
        ctx.outbox = Some(Arc::new(Outbox::new(true, Some(LogLevel::Warning), 100)));
        let memory = Memory { answers: Map::from_iter([("who".to_owned(), json!("bob"))]), kept: Some(json!(1)) };
        ctx.exchange = Exchange::Rounds(Arc::new(Rounds::new(memory, Map::new())));
        let raw = Raw {
            version: "2025-06-18",
            id: json!("x"),
            initialize: Some(Arc::new(json!({"a": 1}))),
            ..Raw::default()
        };
        ctx.raw = Some(Box::new(raw));
        let arguments = json!({ "text": "é", "n": 0.1 });
        let bytes = Call::encode("t", &arguments, &ctx, now);
        let (mut call, there) = Call::decode(bytes.clone()).expect("a call");
        assert_eq!((call.tool.as_str(), there, call.asks(), call.defers), ("t", arguments, false, false));
        let hears = call.hears.expect("it hears");
        assert_eq!((hears.progress, hears.log_level()), (true, Some(LogLevel::Warning)));
        let ctx = call.ctx(now);
        assert_eq!((ctx.caller().subject(), ctx.share, ctx.client()), ("ann", Share::new(7, 3), client));
        assert_eq!(ctx.deadline(), Deadline::after(now, 1500));
        assert_eq!(ctx.kept(), Some(&json!(1)));
        let raw = ctx.raw.expect("raw");
        assert_eq!(
            (raw.version, raw.id, raw.initialize.as_deref()),
            ("2025-06-18", json!("x"), Some(&json!({"a": 1})))
        );
        for cut in 0..bytes.len() {
            assert!(Call::decode(bytes.slice(..cut)).is_none(), "{cut}");
        }
        let anonymous = Ctx::new(Caller::ANONYMOUS, Deadline::after(now, 1), ClientCapabilities::default());
        let (mut call, _) = Call::decode(Call::encode("t", &json!({}), &anonymous, now)).expect("a call");
        assert_eq!(*call.ctx(now).caller(), Caller::ANONYMOUS);
    }

    #[test]
    fn frames_are_read_however_they_are_cut() {
        let reply = Reply { meta: Some("\"a\":1".into()), kind: Kind::Task, ..Reply::error("no") };
        let frames = [
            (
                message(Message::Progress { progress: 1.5, total: None, message: Some("half".into()) }),
                Frame::Progress { progress: 1.5, total: None, message: Some("half".into()) },
            ),
            (
                message(Message::Log { level: LogLevel::Error, data: json!({"a": 1}) }),
                Frame::Log(LogLevel::Error, json!({"a": 1})),
            ),
            (message(Message::Ready("{}".into())), Frame::Ready("{}".into())),
            (message(Message::Release), Frame::Release),
            (question(3, &Question::Task), Frame::Question(3, Question::Task)),
            (frame(b'?', b"later"), Frame::Unknown),
            (frame(b'l', b"[200,1]"), Frame::Unknown),
            (outcome(Ok(Reply::text("x"))), Frame::Outcome(Ok(Reply::text("x")))),
            (outcome(Ok(reply.clone())), Frame::Outcome(Ok(reply))),
        ];
        let all: Vec<u8> = frames.iter().flat_map(|(bytes, _)| bytes.to_vec()).collect();
        let (mut come, mut read) = (BytesMut::new(), Vec::new());
        for byte in all {
            come.put_u8(byte);
            while let Some(frame) = take(&mut come, 1000).expect("frames") {
                read.push(frame);
            }
        }
        assert!(come.is_empty());
        assert_eq!(read, frames.map(|(_, frame)| frame));
        assert!(take(&mut BytesMut::from(&b"a\0\0\x10\0"[..]), 1000).is_err(), "too long");
        assert!(take(&mut BytesMut::from(&b"e\0\0\0\x01x"[..]), 1000).is_err(), "no error");
    }

    #[test]
    fn every_error_arrives_as_it_was() {
        let required = Required { requests: Map::from_iter([("k".to_owned(), json!({}))]), memory: Memory::default() };
        for error in [
            CallError::tool("why"),
            CallError::InvalidParams("p".into()),
            CallError::UnknownTool("t".into()),
            CallError::MissingCapability(ClientCapabilities::ROOTS),
            CallError::InputRequired(Box::new(required)),
            CallError::NoResource("u".into()),
            CallError::Rpc { code: -1, message: "m".into(), data: Some(json!(1)) },
            CallError::Internal,
            CallError::Overloaded { retry_after_s: 3 },
            CallError::StoreAway { retry_after_s: 1 },
            CallError::CallerLimit { why: "w".into(), retry_after_s: 4 },
            CallError::DeadlineBeforeStart,
            CallError::TimedOut { limit_ms: 5 },
            CallError::Nowhere { tool: "t".into(), roles: vec!["r".into()], retry_after_s: 6 },
            CallError::Lost,
            CallError::Draining,
            CallError::Cancelled,
        ] {
            let bytes = outcome(Err(error.clone()));
            assert_eq!(take(&mut BytesMut::from(&bytes[..]), 1000), Ok(Some(Frame::Outcome(Err(error)))));
        }
    }
}
