//! The durable state of one task, and what may happen to it. [`Record::apply`] is the whole state machine: values in,
//! values out, no clock and no lock. Who keeps records is in `store`; how they are written for clients is in `wire`.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};

/// Characters of a status message that are kept; it is a line for people, not a result.
pub const STATUS_MESSAGE_CHARS_MAX: usize = 500;

/// Where a task stands. The last three are for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It runs.
    Working,
    /// It waits for answers of the client.
    InputRequired,
    /// It has a result, which may say `isError`.
    Completed,
    /// It ended with a JSON-RPC error; what a tool itself reports as an error is `Completed`.
    Failed,
    /// The client called it off.
    Cancelled,
}

impl Status {
    /// Whether nothing can happen to the task any more.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// The JSON-RPC error of a task that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Its code.
    pub code: i32,
    /// Its message.
    pub message: String,
    /// Its data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

impl Failure {
    /// A fault of ours.
    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self { code: -32603, message: message.into(), data: None }
    }
}

/// Something that happens to a task.
#[derive(Clone, Debug)]
pub enum Change {
    /// The run says how it goes. The task stays `input_required` while it asks something.
    Working {
        /// The new status message.
        message: Option<String>,
    },
    /// The run asks the client. A key must not have been used in this task before.
    Ask(Map<String, Value>),
    /// The client answers. What was not asked, or is answered already, is ignored.
    Answer(Map<String, Value>),
    /// The run has read the answers under these keys, or does not want them any more.
    Forget(Vec<String>),
    /// The run ended with a result.
    Complete(Arc<RawValue>),
    /// The run ended with an error.
    Fail(Failure),
    /// The client calls the task off.
    Cancel,
}

/// What a change did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing; the record is as it was.
    None,
    /// Something that a client cannot see.
    Hidden,
    /// Something that a client can see, so that it is worth telling.
    Visible,
}

/// The durable state of one task. A store may keep it anywhere; its form is that of `serde_json`. Members that this
/// version does not know are passed over, since instances of two versions may share a store for a while.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Names the task; cannot be guessed.
    pub id: String,
    /// The subject of the caller who made it.
    pub owner: String,
    /// Who it counts for where a caller may have so many, when that is not the owner; see [`Record::counts_for`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts_for: Option<String>,
    /// The tool whose call it is, so that who may not call it any more does not see what came of it either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_by: Option<String>,
    /// Where it stands.
    pub status: Status,
    /// A line about that, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_message: Option<String>,
    /// When it was made, in milliseconds since 1970.
    pub created_at_ms: u64,
    /// When a client could last see a difference, in milliseconds since 1970.
    pub last_updated_at_ms: u64,
    /// How long it is kept after it was made.
    pub ttl_ms: u64,
    /// How often to ask for it.
    pub poll_interval_ms: u64,
    /// Grows with every change, so that a store can tell whether somebody else wrote in between, and so that news of a
    /// task does not overtake newer news.
    pub version: u64,
    /// The open questions, by key.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub input_requests: Map<String, Value>,
    /// Answers that the run has not read yet, by key.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub inputs: Map<String, Value>,
    /// The result, when it is completed.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "shared_json")]
    pub result: Option<Arc<RawValue>>,
    /// The error, when it has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
    /// The request that is kept beside the record, for another instance to run it again.
    #[serde(skip)]
    pub request: Option<Bytes>,
}

impl Record {
    /// A task that has just started.
    pub fn new(id: String, owner: &str, now: SystemTime, ttl_ms: u64, poll_interval_ms: u64) -> Self {
        let now_ms = millis(now);
        Self {
            id,
            owner: owner.to_owned(),
            counts_for: None,
            made_by: None,
            status: Status::Working,
            status_message: None,
            created_at_ms: now_ms,
            last_updated_at_ms: now_ms,
            ttl_ms,
            poll_interval_ms,
            version: 0,
            input_requests: Map::new(),
            inputs: Map::new(),
            result: None,
            error: None,
            request: None,
        }
    }

    /// Another run begins where one was lost: what that one asked and was told is nobody's.
    pub(super) fn begin_again(&mut self, now: SystemTime) {
        self.status = Status::Working;
        self.status_message = None;
        self.input_requests = Map::new();
        self.inputs = Map::new();
        self.version += 1;
        self.last_updated_at_ms = self.last_updated_at_ms.max(millis(now));
    }

    /// Who it counts for where a caller may have so many. Without authentication all callers are one owner, and then each
    /// address counts for itself.
    pub fn counts_for(&self) -> &str {
        self.counts_for.as_deref().unwrap_or(&self.owner)
    }

    /// Whether nobody is promised to find it any more.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        millis(now) >= self.created_at_ms.saturating_add(self.ttl_ms)
    }

    /// Bytes held that are not the server's own: the result and the unread answers.
    pub fn bytes(&self) -> usize {
        self.result.as_ref().map_or(0, |r| r.get().len()) + bytes_of(&self.inputs)
    }

    /// Applies a change and says what it did. Nothing happens to a task that has ended.
    pub fn apply(&mut self, change: Change, now: SystemTime) -> Effect {
        let effect = if self.status.is_final() { Effect::None } else { self.apply_live(change) };
        if effect != Effect::None {
            self.version += 1;
        }
        if effect == Effect::Visible {
            // The clock may have been set back; what a client saw does not go back with it.
            self.last_updated_at_ms = self.last_updated_at_ms.max(millis(now));
        }
        effect
    }

    fn apply_live(&mut self, change: Change) -> Effect {
        match change {
            Change::Working { message } => self.say(message),
            Change::Ask(requests) => self.ask(requests),
            Change::Answer(answers) => self.answer(answers),
            Change::Forget(keys) => self.forget(&keys),
            Change::Complete(result) => {
                self.result = Some(result);
                self.end(Status::Completed)
            }
            Change::Fail(failure) => {
                self.error = Some(failure);
                self.end(Status::Failed)
            }
            Change::Cancel => self.end(Status::Cancelled),
        }
    }

    fn say(&mut self, message: Option<String>) -> Effect {
        let message = message.map(|m| m.chars().take(STATUS_MESSAGE_CHARS_MAX).collect());
        if message == self.status_message {
            return Effect::None;
        }
        self.status_message = message;
        Effect::Visible
    }

    fn ask(&mut self, requests: Map<String, Value>) -> Effect {
        if requests.is_empty() {
            return Effect::None;
        }
        self.input_requests.extend(requests);
        self.status = Status::InputRequired;
        Effect::Visible
    }

    fn answer(&mut self, answers: Map<String, Value>) -> Effect {
        let mut effect = Effect::None;
        for (key, answer) in answers {
            if self.input_requests.remove(&key).is_some() {
                self.inputs.insert(key, answer);
                effect = Effect::Visible;
            }
        }
        self.work_on();
        effect
    }

    fn forget(&mut self, keys: &[String]) -> Effect {
        let mut effect = Effect::None;
        for key in keys {
            if self.input_requests.remove(key).is_some() {
                effect = Effect::Visible;
            } else if self.inputs.remove(key).is_some() && effect == Effect::None {
                effect = Effect::Hidden;
            }
        }
        self.work_on();
        effect
    }

    fn work_on(&mut self) {
        if self.input_requests.is_empty() {
            self.status = Status::Working;
        }
    }

    fn end(&mut self, status: Status) -> Effect {
        self.status = status;
        // What the message said of the run is not true any more.
        self.status_message = None;
        self.input_requests = Map::new();
        self.inputs = Map::new();
        Effect::Visible
    }
}

impl Change {
    /// Bytes that it may add to what a record holds; see [`Record::bytes`].
    pub fn bytes(&self) -> usize {
        match self {
            Self::Complete(result) => result.get().len(),
            Self::Answer(answers) => bytes_of(answers),
            _ => 0,
        }
    }
}

/// Milliseconds since 1970; 0 for what lies before.
pub(super) fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn bytes_of(map: &Map<String, Value>) -> usize {
    map.iter().map(|(key, value)| key.len() + value_bytes(value)).sum()
}

/// About what a value takes as text. The depth is that of what was read, which the reader limits.
fn value_bytes(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(value_bytes).sum::<usize>(),
        Value::Object(members) => 2 + bytes_of(members),
    }
}

/// A shared text of JSON, which serde by itself knows only as a box.
mod shared_json {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use serde_json::value::RawValue;

    pub(super) fn serialize<S: Serializer>(json: &Option<Arc<RawValue>>, serializer: S) -> Result<S::Ok, S::Error> {
        json.as_deref().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(json: D) -> Result<Option<Arc<RawValue>>, D::Error> {
        Ok(Option::<Box<RawValue>>::deserialize(json)?.map(Arc::from))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn record() -> Record {
        Record::new("id".into(), "owner", at(100), 60_000, 1000)
    }

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    fn raw(json: &str) -> Arc<RawValue> {
        Arc::from(RawValue::from_string(json.into()).expect("JSON"))
    }

    fn failure() -> Failure {
        Failure { code: -1, message: "broken".into(), data: None }
    }

    fn changes() -> Vec<(&'static str, Change)> {
        vec![
            ("say", Change::Working { message: Some("half".into()) }),
            ("ask", Change::Ask(map(json!({ "a": 1, "b": 2 })))),
            ("answer a", Change::Answer(map(json!({ "a": 10 })))),
            ("answer both", Change::Answer(map(json!({ "a": 10, "b": 20 })))),
            ("answer other", Change::Answer(map(json!({ "z": 0 })))),
            ("forget", Change::Forget(vec!["a".into(), "b".into()])),
            ("complete", Change::Complete(raw("{}"))),
            ("fail", Change::Fail(failure())),
            ("cancel", Change::Cancel),
        ]
    }

    /// From each state, by each of [`changes`] in their order, to a status; `!` is something that clients see, `~` is
    /// something that they do not, `.` is nothing.
    const TABLE: [(&str, &str); 4] = [
        ("fresh", "W! I! W. W. W. W. C! F! X!"),
        ("asking", "I! I! I! W! I. W! C! F! X!"),
        ("half answered", "I! I! I. W! I. W! C! F! X!"),
        ("answered", "W! I! W. W. W. W~ C! F! X!"),
    ];

    fn cell(text: &str) -> (Status, Effect) {
        let status = match &text[..1] {
            "W" => Status::Working,
            "I" => Status::InputRequired,
            "C" => Status::Completed,
            "F" => Status::Failed,
            _ => Status::Cancelled,
        };
        let effect = match &text[1..] {
            "!" => Effect::Visible,
            "~" => Effect::Hidden,
            _ => Effect::None,
        };
        (status, effect)
    }

    fn started(name: &str) -> Record {
        let mut record = record();
        let ask = Change::Ask(map(json!({ "a": 1, "b": 2 })));
        let answer = |answers| Change::Answer(map(answers));
        let before = match name {
            "asking" => vec![ask],
            "half answered" => vec![ask, answer(json!({ "a": 10 }))],
            "answered" => vec![ask, answer(json!({ "a": 10, "b": 20 }))],
            _ => vec![],
        };
        for change in before {
            record.apply(change, at(100));
        }
        record
    }

    #[test]
    fn the_state_machine() {
        use Status::InputRequired;
        for (name, cells) in TABLE {
            let start = started(name);
            let cells: Vec<_> = cells.split(' ').map(cell).collect();
            assert_eq!(cells.len(), changes().len(), "{name}");
            for ((what, change), (status, effect)) in changes().into_iter().zip(cells) {
                let mut record = start.clone();
                let did = record.apply(change, at(200));
                assert_eq!((record.status, did), (status, effect), "{name}, then {what}");
                let updated = if effect == Effect::Visible { 200_000 } else { 100_000 };
                assert_eq!(record.last_updated_at_ms, updated, "{name}, then {what}");
                assert_eq!(record.version - start.version, u64::from(effect != Effect::None), "{name}, then {what}");
                assert_eq!(status == InputRequired, !record.input_requests.is_empty(), "{name}, then {what}");
            }
        }
    }

    #[test]
    fn an_ended_task_ignores_everything() {
        for (name, end) in
            [("complete", Change::Complete(raw("1"))), ("fail", Change::Fail(failure())), ("cancel", Change::Cancel)]
        {
            let mut ended = record();
            ended.apply(Change::Ask(map(json!({ "a": 1, "b": 2 }))), at(110));
            ended.apply(Change::Answer(map(json!({ "a": 1 }))), at(110));
            ended.apply(end, at(120));
            assert!(ended.input_requests.is_empty() && ended.inputs.is_empty(), "{name} leaves nothing open");
            let before = serde_json::to_string(&ended).expect("JSON");
            for (what, change) in changes() {
                assert_eq!(ended.apply(change, at(200)), Effect::None, "{name}, then {what}");
            }
            assert_eq!(serde_json::to_string(&ended).expect("JSON"), before, "{name}");
        }
    }

    #[test]
    fn partial_answers_stay_and_an_answer_counts_once() {
        let mut record = record();
        record.apply(Change::Ask(map(json!({ "a": 1, "b": 2 }))), at(100));
        record.apply(Change::Answer(map(json!({ "a": "first" }))), at(100));
        record.apply(Change::Answer(map(json!({ "a": "second", "b": "b" }))), at(100));
        assert_eq!(record.inputs, map(json!({ "a": "first", "b": "b" })));
        assert_eq!(record.status, Status::Working);
    }

    #[test]
    fn a_message_is_cut_and_does_not_repeat_itself() {
        let mut record = record();
        let long = || Change::Working { message: Some("ä".repeat(STATUS_MESSAGE_CHARS_MAX + 1)) };
        assert_eq!(record.apply(long(), at(100)), Effect::Visible);
        assert_eq!(record.status_message.as_ref().map(|m| m.chars().count()), Some(STATUS_MESSAGE_CHARS_MAX));
        assert_eq!(record.apply(long(), at(100)), Effect::None);
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_turn_updates_back() {
        let mut record = record();
        record.apply(Change::Working { message: Some("on".into()) }, at(1));
        assert_eq!(record.last_updated_at_ms, 100_000);
    }

    #[test]
    fn a_record_survives_its_store() {
        let mut asking = record();
        asking.apply(Change::Ask(map(json!({ "a": { "method": "roots/list" }, "b": {} }))), at(101));
        asking.apply(Change::Answer(map(json!({ "b": [1] }))), at(102));
        let mut completed = record();
        completed.apply(Change::Complete(raw(r#"{"content":[],"n":1.50}"#)), at(101));
        let mut failed = record();
        failed.apply(Change::Fail(Failure { data: Some(json!({ "why": 1 })), ..failure() }), at(101));
        for record in [record(), asking, completed, failed] {
            let text = serde_json::to_string(&record).expect("JSON");
            let back: Record = serde_json::from_str(&text).expect("a record");
            assert_eq!(serde_json::to_string(&back).expect("JSON"), text);
            assert_eq!(back.bytes(), record.bytes());
        }
    }

    #[test]
    fn a_record_is_kept_for_its_whole_ttl() {
        assert!(!record().is_expired(at(0)));
        assert!(!record().is_expired(at(100 + 60) - Duration::from_millis(1)));
        assert!(record().is_expired(at(100 + 60)));
    }

    #[test]
    fn a_change_says_at_least_what_it_adds() {
        for (what, change) in changes() {
            let mut record = record();
            record.apply(Change::Ask(map(json!({ "a": 1, "b": 2 }))), at(100));
            let bytes = change.bytes();
            record.apply(change, at(100));
            assert!(record.bytes() <= bytes, "{what}: {} <= {bytes}", record.bytes());
        }
    }
}
