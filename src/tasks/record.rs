//! What is kept of a task, and what may happen to it. Pure: a store applies a [`Change`] to a [`Record`] and keeps the
//! outcome. A task that has ended stays as it ended.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// How far a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It runs.
    Working,
    /// It waits for answers of its client.
    InputRequired,
    /// It has a result, which may say that the tool failed.
    Completed,
    /// It ended with a JSON-RPC error.
    Failed,
    /// Its client took it back.
    Cancelled,
}

impl Status {
    /// Whether nothing can happen any more.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

/// A task as it is kept. Any store can keep it: it is plain data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// 192 random bits in hex.
    pub id: String,
    /// Who may see it: the subject of the caller.
    pub owner: String,
    /// How far it is.
    pub status: Status,
    /// Milliseconds since 1970.
    pub created_at_ms: u64,
    /// Milliseconds since 1970.
    pub updated_at_ms: u64,
    /// How long it is kept after its creation, in milliseconds.
    pub ttl_ms: u64,
    /// How often its client should ask, in milliseconds.
    pub poll_interval_ms: u64,
    /// Questions without an answer, by key.
    pub input_requests: Map<String, Value>,
    /// The result object of the call.
    pub result: Option<Value>,
    /// The error object of the call.
    pub error: Option<Value>,
}

/// What may happen to a task.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// It needs answers to these questions, and waits.
    Ask(Map<String, Value>),
    /// Answers came to the questions with these keys.
    Answered(Vec<String>),
    /// It ended with this result.
    Complete(Value),
    /// It ended with this error.
    Fail(Value),
    /// Its client took it back.
    Cancel,
}

impl Record {
    /// Applies a change; false when nothing happened, because the task has ended or was not concerned.
    pub fn apply(&mut self, change: Change, now: SystemTime) -> bool {
        if self.status.is_terminal() {
            return false;
        }
        match change {
            Change::Ask(requests) => {
                self.status = Status::InputRequired;
                self.input_requests = requests;
            }
            Change::Answered(keys) => {
                let before = self.input_requests.len();
                self.input_requests.retain(|key, _| !keys.contains(key));
                if self.input_requests.len() == before {
                    return false;
                }
                if self.input_requests.is_empty() {
                    self.status = Status::Working;
                }
            }
            Change::Complete(result) => self.end(Status::Completed, Some(result), None),
            Change::Fail(error) => self.end(Status::Failed, None, Some(error)),
            Change::Cancel => self.end(Status::Cancelled, None, None),
        }
        self.updated_at_ms = millis(now).max(self.updated_at_ms);
        true
    }

    fn end(&mut self, status: Status, result: Option<Value>, error: Option<Value>) {
        self.status = status;
        self.input_requests.clear();
        self.result = result;
        self.error = error;
    }

    /// Whether its time is over.
    pub fn is_over(&self, now: SystemTime) -> bool {
        millis(now) > self.created_at_ms.saturating_add(self.ttl_ms)
    }

    /// The members of the result that tells of its creation.
    pub(crate) fn created_members(&self) -> Bytes {
        members(&self.envelope())
    }

    /// The members of its whole state.
    pub(crate) fn detailed_members(&self) -> Bytes {
        let mut state = self.envelope();
        if self.status == Status::InputRequired {
            state["inputRequests"] = Value::Object(self.input_requests.clone());
        }
        for (key, value) in [("result", &self.result), ("error", &self.error)] {
            if let Some(value) = value {
                state[key] = value.clone();
            }
        }
        members(&state)
    }

    fn envelope(&self) -> Value {
        json!({
            "taskId": self.id,
            "status": self.status,
            "createdAt": iso8601(self.created_at_ms),
            "lastUpdatedAt": iso8601(self.updated_at_ms),
            "ttlMs": self.ttl_ms,
            "pollIntervalMs": self.poll_interval_ms,
        })
    }
}

fn members(value: &Value) -> Bytes {
    let json = value.to_string();
    Bytes::copy_from_slice(&json.as_bytes()[1..json.len() - 1])
}

/// Milliseconds since 1970.
pub(super) fn millis(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis()).unwrap_or(u64::MAX)
}

/// `2026-07-28T12:34:56.789Z`. Days to dates by the civil calendar, whose eras of 400 years are all alike.
fn iso8601(millis: u64) -> String {
    let (seconds, millis) = (millis / 1000, millis % 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468; // days since the first of March of the year 0, where leap days end a year
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            id: "t".into(),
            owner: "o".into(),
            status: Status::Working,
            created_at_ms: 1000,
            updated_at_ms: 1000,
            ttl_ms: 500,
            poll_interval_ms: 10,
            input_requests: Map::new(),
            result: None,
            error: None,
        }
    }

    fn questions(keys: &[&str]) -> Map<String, Value> {
        keys.iter().map(|key| ((*key).to_owned(), json!({}))).collect()
    }

    #[test]
    fn times_read_as_people_write_them() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_785_196_800_123, "2026-07-28T00:00:00.123Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(iso8601(millis), text);
        }
    }

    #[test]
    fn a_task_asks_goes_on_and_ends_once() {
        let now = UNIX_EPOCH + Duration::from_millis(1200);
        let mut task = record();
        assert!(task.apply(Change::Ask(questions(&["a", "b"])), now));
        assert_eq!((task.status, task.updated_at_ms), (Status::InputRequired, 1200));
        assert!(!task.apply(Change::Answered(vec!["c".into()]), now));
        assert!(task.apply(Change::Answered(vec!["a".into()]), now));
        assert_eq!(task.status, Status::InputRequired, "one is still open");
        assert!(task.apply(Change::Answered(vec!["b".into(), "c".into()]), now));
        assert_eq!(task.status, Status::Working);
        assert!(task.apply(Change::Complete(json!({ "content": [] })), now));
        for late in [Change::Cancel, Change::Fail(json!({})), Change::Ask(questions(&["a"]))] {
            let before = task.clone();
            assert!(!task.apply(late, now));
            assert_eq!(task, before);
        }
        let text = String::from_utf8(task.detailed_members().to_vec()).expect("UTF-8");
        let state: Value = serde_json::from_str(&format!("{{{text}}}")).expect("JSON");
        assert_eq!(state["result"], json!({ "content": [] }));
        assert!(state.get("error").is_none() && state.get("inputRequests").is_none());
        assert!(!task.is_over(UNIX_EPOCH + Duration::from_millis(1500)));
        assert!(task.is_over(UNIX_EPOCH + Duration::from_millis(1501)));
    }
}
