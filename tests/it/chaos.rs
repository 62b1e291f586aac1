//! Three instances behind a balancer, of which one is killed again and again: each call comes to one end, and to the right
//! one. What may be run twice comes to its result; of the rest it is said that it may have run, and it has not twice.

#![allow(clippy::print_stderr)] // what is counted is told

mod clients;
mod tally;
mod wire;

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use self::{
    clients::{Client, Legacy, Work, call_plain, call_task},
    tally::{Tally, p99},
};
use crate::{
    balancer::Nginx,
    cluster::node,
    redis::{Redis, free_port},
    support::{Process, eventually, get},
};

/// Three instances, a Redis, an nginx, and a file in which calls leave a line.
struct Farm {
    instances: Vec<Option<Process>>,
    ports: [u16; 3],
    nginx: Nginx,
    redis: Redis,
    folder: TempDir,
}

impl Farm {
    fn start(upstream: &str) -> Self {
        let ports = [free_port(), free_port(), free_port()];
        let redis = Redis::start();
        let mut farm = Self {
            instances: vec![None, None, None],
            ports,
            nginx: Nginx::start(upstream, ports),
            redis,
            folder: tempfile::tempdir().expect("a folder"),
        };
        (0..3).for_each(|at| farm.restart(at));
        farm
    }

    /// Starts an instance where it was before, and waits until it serves.
    fn restart(&mut self, at: usize) {
        let args = node(&self.redis, &format!("n{at}"));
        let more = [
            "limits.request_timeout_ms=60000", // a busy machine is no fault of theirs
            "server.drain_grace_ms=60000",
            "tasks.poll_interval_ms=100",
            "tasks.per_caller_max=10000", // all come from one address
        ];
        let more = more.into_iter().flat_map(|set| ["--set", set]);
        let args: Vec<_> = args.iter().map(String::as_str).chain(more).collect();
        let effects = self.effects_file();
        let effects = [("EVERYTHING_EFFECTS", effects.as_str())];
        let instance = Process::start_example_at("everything", self.ports[at], &effects, &args);
        eventually("it serves", || get(instance.admin_addr, "/ready").json()["cluster"] == "up");
        self.instances[at] = Some(instance);
    }

    fn kill(&mut self, at: usize) {
        let mut instance = self.instances[at].take().expect("it runs");
        instance.signal("KILL");
        instance.wait();
    }

    fn effects_file(&self) -> String {
        self.folder.path().join("effects").display().to_string()
    }

    /// How often each call has left its line.
    fn effects(&self) -> HashMap<String, usize> {
        let text = std::fs::read_to_string(self.effects_file()).unwrap_or_default();
        text.lines().fold(HashMap::new(), |mut counts, line| {
            *counts.entry(line.to_owned()).or_default() += 1;
            counts
        })
    }
}

/// So many clients of each kind, half of each with the tool that may be run twice, while one instance is killed so often
/// and so long after the last. Prints what came of it.
fn chaos(clients: [usize; 3], kills: usize, pause: Duration, work: Work) -> [Tally; 5] {
    let mut farm = Farm::start("bigiron");
    let addr = farm.nginx.addr;
    let is_over = AtomicBool::new(false);
    let [legacy, plain, tasks] = clients;
    let mut tallies: [Tally; 5] = Default::default();
    let mut done = Vec::new();
    let began = Instant::now();
    thread::scope(|scope| {
        let is_over = &is_over;
        let mut threads = Vec::new();
        for n in 0..legacy {
            threads.push((
                n % 2,
                scope.spawn(move || {
                    let mut client = Legacy::open(addr, format!("legacy{n}"), work);
                    while !is_over.load(Ordering::SeqCst) {
                        client.call(if n % 2 == 0 { "steps" } else { "steps_once" }, n % 2 == 0);
                    }
                    client.client
                }),
            ));
        }
        for n in 0..plain {
            threads.push((
                2,
                scope.spawn(move || {
                    let mut client = Client::new(addr, format!("plain{n}"), work);
                    while !is_over.load(Ordering::SeqCst) {
                        call_plain(&mut client, "steps_once");
                    }
                    client
                }),
            ));
        }
        for n in 0..tasks {
            threads.push((
                3 + n % 2,
                scope.spawn(move || {
                    let mut client = Client::new(addr, format!("task{n}"), work);
                    while !is_over.load(Ordering::SeqCst) {
                        call_task(&mut client, if n % 2 == 0 { "steps" } else { "steps_once" }, n % 2 == 0);
                    }
                    client
                }),
            ));
        }
        for kill in 0..kills {
            thread::sleep(pause);
            // With few, each once, so that somebody was there to lose a call.
            let random = || usize::try_from(getrandom::u32().expect("random numbers") % 3).expect("a small number");
            let at = if kills <= 3 { kill } else { random() };
            farm.kill(at);
            farm.restart(at);
            eprintln!("kill {} of {kills} after {} s: instance {at}", kill + 1, began.elapsed().as_secs());
        }
        thread::sleep(pause);
        is_over.store(true, Ordering::SeqCst);
        for (kind, thread) in threads {
            let client = thread.join().expect("a client");
            tallies[kind].add(client.tally);
            if [1, 2, 4].contains(&kind) {
                done.extend(client.done);
            }
        }
    });
    let names = [
        "sessions, may run twice",
        "sessions, may not",
        "stateless, may not",
        "tasks, may run twice",
        "tasks, may not",
    ];
    for (name, tally) in names.iter().zip(&tallies) {
        eprintln!("{name}: {tally}");
    }
    let once = [&tallies[1], &tallies[2], &tallies[4]];
    let sent: usize = once.iter().map(|tally| tally.sent).sum();
    let effects = farm.effects();
    eprintln!("side effects: {} calls of {sent} began, {} were seen to end", effects.len(), done.len());
    let doubled: Vec<_> = effects.iter().filter(|(_, count)| **count > 1).collect();
    assert!(doubled.is_empty(), "run twice: {doubled:?}");
    assert!(done.iter().all(|label| effects.contains_key(label)), "results without effects");
    assert!(effects.len() <= sent);
    for (name, tally) in names.iter().zip(&tallies) {
        tally.check(name);
    }
    tallies
}

#[test]
fn no_call_is_lost_or_doubled_while_instances_are_killed() {
    let work = Work { steps: 20, pause_ms: 50 };
    let tallies = chaos([12, 2, 4], 3, Duration::from_millis(1200), work);
    assert!(tallies.iter().all(|tally| tally.results > 0));
    assert!(!tallies[0].resumed.is_empty() || !tallies[1].resumed.is_empty(), "somebody came back");
}

#[test]
#[ignore = "takes 10 min: cargo test --test it -- --ignored --nocapture a_hundred_kills"]
fn a_hundred_kills() {
    let work = Work { steps: 20, pause_ms: 100 };
    let tallies = chaos([64, 8, 8], 100, Duration::from_millis(4500), work);
    for tally in &tallies[..2] {
        assert!(p99(&tally.resumed) <= Duration::from_secs(2), "{tally}");
    }
}

/// An official client with a session: it says who runs its call, that one is killed, and all goes on.
fn official(interpreter: &str, program: &str, upstream: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let interpreter = root.join(interpreter);
    assert!(interpreter.exists(), "{} is missing: scripts/setup-tests.sh installs it", interpreter.display());
    let mut farm = Farm::start(upstream);
    let mut command = Command::new(interpreter);
    command.arg(root.join("tests/clients").join(program)).arg(format!("http://{}/mcp", farm.nginx.addr));
    command.current_dir(root).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the interpreter runs");
    let mut complaints = child.stderr.take().expect("piped");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next = || {
        let Some(Ok(line)) = lines.next() else {
            let mut text = String::new();
            let _ = complaints.read_to_string(&mut text);
            panic!("{program} has ended: {text}");
        };
        serde_json::from_str::<Value>(&line).unwrap_or_else(|e| panic!("{program} printed {line:?}: {e}"))
    };
    // Twice: a call that may be run twice, and one that may not.
    for _ in 0..2 {
        let runs = next()["runs"].as_str().expect("who runs it").to_owned();
        let pid: u32 = runs.strip_prefix("process ").expect("a process").parse().expect("a number");
        let is_it = |instance: &Option<Process>| instance.as_ref().is_some_and(|instance| instance.pid() == pid);
        let at = farm.instances.iter().position(is_it).expect("one of ours");
        farm.kill(at);
        farm.restart(at);
    }
    let said = next();
    assert!(child.wait().expect("a child of ours").success(), "{said}");
    assert_eq!(said["steps"], json!((1..=20).collect::<Vec<_>>()), "each once, in order: {said}");
    assert_eq!(said["result"], "again took 20 steps", "{said}");
    assert!(said["error"].as_str().is_some_and(|error| error.contains("may have run")), "{said}");
    assert_eq!(said["echo"], "took 1 steps", "the session lives: {said}");
    assert_eq!(farm.effects(), HashMap::from([("once".to_owned(), 1)]), "run once");
}

#[test]
fn the_typescript_client_comes_back_to_another_instance() {
    official("tests/clients/node_modules/.bin/node", "chaos.mjs", "bigiron");
}

#[test]
fn the_python_client_comes_back_to_another_instance() {
    official("tests/clients/.venv/bin/python", "chaos.py", "bigiron_by_session");
}
