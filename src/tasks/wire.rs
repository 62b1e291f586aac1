//! How clients see a task: the members of the results that carry one, without braces. `resultType` stands before them
//! and is the caller's, since the same members are also the parameters of `notifications/tasks`.

use bytes::Bytes;
use serde::Serialize;
use serde_json::{Map, Value, value::RawValue};

use super::record::{Failure, Record, Status};

/// The members in their order. What does not belong to the status is not there.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Members<'a> {
    task_id: &'a str,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_message: Option<&'a str>,
    created_at: String,
    last_updated_at: String,
    ttl_ms: u64,
    poll_interval_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_requests: Option<&'a Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a Failure>,
}

impl Record {
    /// The members of a `CreateTaskResult`: the task without what came of it.
    pub fn created_members(&self) -> Bytes {
        written(&self.plain())
    }

    /// The members of the answer to `tasks/get` and of the parameters of `notifications/tasks`: the task and what the
    /// status calls for, which are the open questions, the result or the error.
    pub fn detailed_members(&self) -> Bytes {
        let mut members = self.plain();
        match self.status {
            Status::InputRequired => members.input_requests = Some(&self.input_requests),
            Status::Completed => members.result = self.result.as_deref(),
            Status::Failed => members.error = self.error.as_ref(),
            Status::Working | Status::Cancelled => {}
        }
        written(&members)
    }

    fn plain(&self) -> Members<'_> {
        Members {
            task_id: &self.id,
            status: self.status,
            status_message: self.status_message.as_deref(),
            created_at: iso_8601(self.created_at_ms),
            last_updated_at: iso_8601(self.last_updated_at_ms),
            ttl_ms: self.ttl_ms,
            poll_interval_ms: self.poll_interval_ms,
            input_requests: None,
            result: None,
            error: None,
        }
    }
}

fn written(members: &Members<'_>) -> Bytes {
    // Text keys and plain values always have a JSON form, and a Vec always takes it.
    let object = serde_json::to_vec(members);
    debug_assert!(object.is_ok());
    let object = Bytes::from(object.unwrap_or_else(|_| b"{}".to_vec()));
    object.slice(1..object.len() - 1)
}

/// A moment as text, in UTC: `2026-07-28T09:05:03.007Z`.
fn iso_8601(since_1970_ms: u64) -> String {
    let (seconds, ms) = (since_1970_ms / 1000, since_1970_ms % 1000);
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// Year, month and day in the Gregorian calendar. Years are counted from March, so that a leap day is the last day of
/// its year and months have the same lengths in all years.
fn date(days_since_1970: u64) -> (u64, u64, u64) {
    const DAYS_TO_1970: u64 = 719_468; // from 1 March of the year 0
    const DAYS_OF_4_YEARS: u64 = 1_461;
    const DAYS_OF_100_YEARS: u64 = 36_524;
    const DAYS_OF_400_YEARS: u64 = 146_097;
    let days = days_since_1970 + DAYS_TO_1970;
    let day = days % DAYS_OF_400_YEARS;
    // Without the leap days that have passed, each year has 365 days.
    let leap_days = day / (DAYS_OF_4_YEARS - 1) - day / DAYS_OF_100_YEARS + day / (DAYS_OF_400_YEARS - 1);
    let year = (day - leap_days) / 365;
    let day = day - (year * 365 + year / 4 - year / 100);
    // From March on the months have 31, 30, 31, 30, 31 days, again and again: 153 in five.
    let month = (day * 5 + 2) / 153;
    let day = day - (month * 153 + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (days / DAYS_OF_400_YEARS * 400 + year + next, month, day)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::Arc,
        time::{Duration, SystemTime},
    };

    use serde_json::json;

    use super::*;
    use crate::tasks::record::Change;

    fn object(members: &Bytes) -> Value {
        let text = String::from_utf8(members.to_vec()).expect("text");
        serde_json::from_str(&format!("{{{text}}}")).expect("members")
    }

    fn at() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(1_785_229_503_007)
    }

    fn after(changes: impl IntoIterator<Item = Change>) -> Record {
        let mut record = Record::new("abc".into(), "somebody", at(), 60_000, 500);
        for change in changes {
            record.apply(change, at() + Duration::from_secs(2));
        }
        record
    }

    fn plain(status: &str) -> Value {
        json!({
            "taskId": "abc", "status": status,
            "createdAt": "2026-07-28T09:05:03.007Z", "lastUpdatedAt": "2026-07-28T09:05:05.007Z",
            "ttlMs": 60_000, "pollIntervalMs": 500,
        })
    }

    fn with(mut object: Value, key: &str, value: Value) -> Value {
        object[key] = value;
        object
    }

    #[test]
    fn each_status_has_its_members() {
        let requests = json!({ "a": { "method": "roots/list" } });
        let ask = Change::Ask(requests.as_object().expect("an object").clone());
        let result = RawValue::from_string(r#"{"content":[],"isError":true}"#.into()).expect("JSON");
        let failure = Failure { code: -32603, message: "broken".into(), data: None };
        let rows = [
            (
                after([Change::Working { message: Some("on".into()) }]),
                with(plain("working"), "statusMessage", json!("on")),
            ),
            (after([ask]), with(plain("input_required"), "inputRequests", requests)),
            (
                after([Change::Complete(Arc::from(result))]),
                with(plain("completed"), "result", json!({ "content": [], "isError": true })),
            ),
            (
                after([Change::Fail(failure)]),
                with(plain("failed"), "error", json!({ "code": -32603, "message": "broken" })),
            ),
            (after([Change::Cancel]), plain("cancelled")),
        ];
        for (record, expected) in rows {
            assert_eq!(object(&record.detailed_members()), expected);
            let mut expected = expected;
            let members = expected.as_object_mut().expect("an object");
            members.retain(|key, _| !["inputRequests", "result", "error"].contains(&key.as_str()));
            assert_eq!(object(&record.created_members()), expected, "without what came of it");
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let rows = [
            (0, "1970-01-01T00:00:00.000Z"),
            (68_169_599_999, "1972-02-28T23:59:59.999Z"),
            (68_169_600_000, "1972-02-29T00:00:00.000Z"),
            (68_256_000_000, "1972-03-01T00:00:00.000Z"),
            (946_684_799_000, "1999-12-31T23:59:59.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_164_800_000, "2024-02-29T00:00:00.000Z"),
            (4_107_456_000_000, "2100-02-28T00:00:00.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (13_574_563_200_000, "2400-02-29T00:00:00.000Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        ];
        for (ms, text) in rows {
            assert_eq!(iso_8601(ms), text);
        }
    }

    #[test]
    fn every_day_of_800_years_follows_the_one_before() {
        let mut before = date(0);
        for days in 1..800 * 365 {
            let (year, month, day) = before;
            let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 => 28 + u64::from(is_leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            let next = match (month, day) {
                (12, 31) => (year + 1, 1, 1),
                _ if day == length => (year, month + 1, 1),
                _ => (year, month, day + 1),
            };
            before = date(days);
            assert_eq!(before, next, "day {days}");
        }
    }
}
