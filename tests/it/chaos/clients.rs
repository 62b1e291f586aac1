//! Clients that call one tool after another while instances die, and look at all that they are told: ids without gap or
//! double, progress that grows, one end for each call, and the right one.

use std::{
    io,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    tally::Tally,
    wire::{Answer, send},
};
use crate::support::{meta, modern, modern_headers};

/// What is called: so many events, in so much time.
#[derive(Clone, Copy)]
pub(super) struct Work {
    pub(super) steps: u64,
    pub(super) pause_ms: u64,
}

/// A call that has not ended after this is lost.
const LOST: Duration = Duration::from_secs(120);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// One client: where it calls, what it is called, what it has seen.
pub(super) struct Client {
    addr: SocketAddr,
    name: String,
    work: Work,
    count: u64,
    pub(super) tally: Tally,
    /// Calls that it saw the result of.
    pub(super) done: Vec<String>,
}

/// How a call ended.
enum End {
    /// With this message.
    Message(Value),
    /// The connection broke, and there is nothing to come back with.
    Cut,
    Odd(String),
}

impl Client {
    pub(super) fn new(addr: SocketAddr, name: String, work: Work) -> Self {
        Self { addr, name, work, count: 0, tally: Tally::default(), done: Vec::new() }
    }

    fn arguments(&self) -> Value {
        json!({ "label": format!("{}-{}", self.name, self.count), "steps": self.work.steps, "pause_ms": self.work.pause_ms })
    }

    /// Counts what a call came to.
    fn ended(&mut self, end: End, must_be_result: bool) {
        let label = format!("{}-{}", self.name, self.count);
        let message = match end {
            End::Message(message) => message,
            End::Cut => {
                self.tally.cut += 1;
                return;
            }
            End::Odd(what) => {
                self.tally.odd.push(format!("{label}: {what}"));
                return;
            }
        };
        let expected = format!("{label} took {} steps", self.work.steps);
        if message["result"]["content"][0]["text"] == json!(expected) {
            self.tally.results += 1;
            self.done.push(label);
            return;
        }
        let error = message["error"]["message"].as_str().unwrap_or_default();
        let says_so = error.contains("may have run") || error.contains("may have had effects");
        if says_so && !must_be_result {
            self.tally.errors += 1;
        } else {
            self.tally.odd.push(format!("{label}: {message}"));
        }
    }
}

fn odd(answer: Answer) -> End {
    let status = answer.status;
    End::Odd(format!("{status} {:?}", answer.json()))
}

/// A client of a revision with sessions, which comes back for what it missed.
pub(super) struct Legacy {
    pub(super) client: Client,
    session: String,
}

/// What a client has of a stream.
#[derive(Default)]
struct Seen {
    last: Option<String>,
    number: u64,
    progress: u64,
    /// When it broke; until it has gone on.
    broken: Option<Instant>,
}

impl Legacy {
    /// Opens a session, at whichever instance is there.
    pub(super) fn open(addr: SocketAddr, name: String, work: Work) -> Self {
        let client = json!({ "name": "chaos", "version": "1" });
        let params = json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client });
        let request = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params }).to_string();
        let until = Instant::now() + LOST;
        let session = loop {
            assert!(Instant::now() < until, "no session is opened");
            match send(addr, "POST", &[], &request) {
                Ok(answer) if answer.status == 200 => {
                    break answer.header("mcp-session-id").expect("a session").to_owned();
                }
                _ => thread::sleep(PAUSE),
            }
        };
        Self { client: Client::new(addr, name, work), session }
    }

    fn headers(&self) -> [(&'static str, &str); 2] {
        [("Mcp-Session-Id", &self.session), ("MCP-Protocol-Version", "2025-11-25")]
    }

    /// Calls a tool and sees to it that it ends. With `may_run_twice` it is called again when it is not known whether it
    /// was.
    pub(super) fn call(&mut self, tool: &str, may_run_twice: bool) {
        loop {
            self.client.count += 1;
            self.client.tally.sent += 1;
            let end = self.try_call(tool);
            let is_cut = matches!(end, End::Cut);
            self.client.ended(end, may_run_twice);
            if !(is_cut && may_run_twice) {
                return;
            }
            thread::sleep(PAUSE);
        }
    }

    fn try_call(&mut self, tool: &str) -> End {
        let id = self.client.count;
        let params = json!({ "name": tool, "arguments": self.client.arguments(), "_meta": { "progressToken": id } });
        let request = json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params });
        let mut answer = match send(self.client.addr, "POST", &self.headers(), &request.to_string()) {
            Err(_) => return End::Cut,
            Ok(answer) if answer.status == 502 => return End::Cut,
            Ok(answer) if answer.status == 200 && answer.is_stream() => answer,
            Ok(answer) => return odd(answer),
        };
        let mut seen = Seen::default();
        let until = Instant::now() + LOST;
        let end = loop {
            if let Ok(Some(end)) = self.read(&mut answer, &mut seen, id, until) {
                break end;
            }
            if seen.last.is_none() {
                return End::Cut;
            }
            if Instant::now() > until {
                return End::Odd(format!("no end after event {:?}", seen.last));
            }
            answer = match self.resume(&mut seen, until) {
                Ok(answer) => answer,
                Err(what) => return End::Odd(what),
            };
        };
        self.client.tally.skipped +=
            usize::try_from(self.client.work.steps - seen.progress.min(self.client.work.steps)).unwrap_or(0);
        // Nothing comes after the end, wherever that is asked.
        if id.is_multiple_of(4)
            && let Some(last) = &seen.last
            && let Ok(mut answer) = self.get(last)
            && answer.status == 200
            && let Ok(Some(more)) = answer.event(until)
        {
            return End::Odd(format!("after the end: {more:?}"));
        }
        end
    }

    /// Reads until the call ends; none when its stream ends before.
    fn read(&mut self, answer: &mut Answer, seen: &mut Seen, request: u64, until: Instant) -> io::Result<Option<End>> {
        while let Some((id, message)) = answer.event(until)? {
            let Some(message) = message else {
                seen.last = id.or_else(|| seen.last.take());
                continue;
            };
            let Some(id) = id else { return Ok(Some(End::Odd(format!("no id: {message}")))) };
            let number = id.rsplit('-').next().and_then(|number| number.parse::<u64>().ok());
            if number != Some(seen.number + 1) {
                return Ok(Some(End::Odd(format!("event {id} after {:?}: {message}", seen.last))));
            }
            if let Some(broken) = seen.broken.take() {
                self.client.tally.went_on.push(broken.elapsed());
            }
            (seen.number, seen.last) = (seen.number + 1, Some(id));
            self.client.tally.events += 1;
            if message["method"] == "notifications/progress" {
                let progress = message["params"]["progress"].as_f64().unwrap_or_default() as u64;
                if progress <= seen.progress {
                    self.client.tally.back += 1;
                } else {
                    self.client.tally.skipped += usize::try_from(progress - seen.progress - 1).unwrap_or(0);
                    seen.progress = progress;
                }
            } else if message["id"] == json!(request) {
                return Ok(Some(End::Message(message)));
            } else {
                return Ok(Some(End::Odd(format!("not of this call: {message}"))));
            }
        }
        Ok(None)
    }

    fn resume(&mut self, seen: &mut Seen, until: Instant) -> Result<Answer, String> {
        let last = seen.last.clone().unwrap_or_default();
        let broken = *seen.broken.get_or_insert_with(Instant::now);
        loop {
            match self.get(&last) {
                Ok(answer) if answer.status == 200 && answer.is_stream() => {
                    self.client.tally.resumed.push(broken.elapsed());
                    return Ok(answer);
                }
                Ok(answer) if answer.status == 404 => return Err(format!("the session is lost after {last}")),
                _ if Instant::now() > until => return Err(format!("not resumed after {last}")),
                _ => thread::sleep(PAUSE),
            }
        }
    }

    fn get(&self, last: &str) -> io::Result<Answer> {
        let [session, version] = self.headers();
        send(self.client.addr, "GET", &[session, version, ("Last-Event-ID", last)], "")
    }
}

/// A client of 2026-07-28 that reads what comes: a broken connection is the end.
pub(super) fn call_plain(client: &mut Client, tool: &str) {
    client.count += 1;
    client.tally.sent += 1;
    let end = try_plain(client, tool);
    client.ended(end, false);
}

fn try_plain(client: &mut Client, tool: &str) -> End {
    let mut params = json!({ "name": tool, "arguments": client.arguments(), "_meta": meta() });
    params["_meta"]["progressToken"] = json!(client.count);
    let request = modern(client.count, "tools/call", params).to_string();
    let mut answer = match send(client.addr, "POST", &modern_headers("tools/call", tool), &request) {
        Ok(answer) if answer.status == 200 && answer.is_stream() => answer,
        Ok(answer) if answer.status == 502 => return End::Cut,
        Err(_) => return End::Cut,
        Ok(answer) => return odd(answer),
    };
    let until = Instant::now() + LOST;
    while let Ok(Some((_, message))) = answer.event(until) {
        client.tally.events += 1;
        match message {
            Some(message) if message.get("id").is_some() => return End::Message(message),
            _ => {}
        }
    }
    End::Cut
}

/// A client of 2026-07-28 whose calls become tasks.
pub(super) fn call_task(client: &mut Client, tool: &str, must_be_result: bool) {
    client.count += 1;
    client.tally.sent += 1;
    let end = try_task(client, tool);
    client.ended(end, must_be_result);
}

fn try_task(client: &Client, tool: &str) -> End {
    let ask = |method: &str, name: &str, mut params: Value| {
        params["_meta"] = meta();
        params["_meta"]["io.modelcontextprotocol/clientCapabilities"] =
            json!({ "extensions": { "io.modelcontextprotocol/tasks": {} } });
        send(client.addr, "POST", &modern_headers(method, name), &modern(1, method, params).to_string())
    };
    let begun = match ask("tools/call", tool, json!({ "name": tool, "arguments": client.arguments() })) {
        Ok(answer) if answer.status == 200 => answer.json(),
        Ok(answer) if answer.status == 502 => return End::Cut,
        Err(_) => return End::Cut,
        Ok(answer) => return odd(answer),
    };
    let Ok(begun) = begun else { return End::Cut };
    let Some(id) = begun["result"]["taskId"].as_str() else { return End::Odd(format!("no task: {begun}")) };
    let until = Instant::now() + LOST;
    while Instant::now() < until {
        let answer = ask("tasks/get", id, json!({ "taskId": id }));
        let Ok(Ok(task)) = answer.map(Answer::json) else { continue };
        let task = &task["result"];
        match task["status"].as_str() {
            Some("completed") => return End::Message(json!({ "result": task["result"] })),
            Some("failed") => return End::Message(json!({ "error": task["error"] })),
            Some("working") | None => thread::sleep(5 * PAUSE),
            Some(_) => return End::Odd(format!("{task}")),
        }
    }
    End::Odd(format!("the task {id} does not end"))
}
