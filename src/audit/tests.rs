//! The trail as an auditor and an operator meet it: what is in the file, and what happens when it cannot be written.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    sync::Barrier,
};

use parking_lot::{Condvar, Mutex};
use serde_json::Value;
use tempfile::TempDir;

use super::{writer::Opened, *};

const PATIENCE: Duration = Duration::from_secs(60);

fn config(file: &Path, policy: Policy) -> Config {
    Config { file: file.to_str().expect("a path").into(), policy, ..Config::default() }
}

fn start(config: &Config) -> Audit {
    Audit::start(config, "node-1").expect("it starts").expect("on")
}

fn head(caller: &str) -> Head<'_> {
    Head { caller, method: "tools/call", tool: Some("echo"), ..Head::default() }
}

fn lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).expect("the file");
    assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

fn member(lines: &[Value], name: &str) -> Vec<String> {
    lines.iter().filter_map(|line| line[name].as_str()).map(str::to_owned).collect()
}

/// Waits until the trail says so.
fn wait(audit: &Audit, until: impl Fn(Counts) -> bool) {
    let began = Instant::now();
    while !until(audit.counts()) {
        assert!(began.elapsed() < PATIENCE, "{:?}", audit.counts());
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn off_is_none_and_a_file_that_cannot_be_opened_is_told() {
    assert!(Audit::start(&Config::default(), "").expect("nothing to do").is_none());
    let nowhere = Config { file: "/nonexistent/audit.log".into(), ..Config::default() };
    let problem = Audit::start(&nowhere, "").expect_err("no such folder");
    assert!(problem.contains("audit.file \"/nonexistent/audit.log\" cannot be opened: No such file"), "{problem}");
}

#[test]
fn every_call_and_refusal_is_one_line_in_a_file_for_its_owner() {
    let dir = TempDir::new().expect("a folder");
    let file = dir.path().join("audit.log");
    let audit = start(&config(&file, Policy::Required));
    for outcome in [Outcome::Ok, Outcome::ToolError, Outcome::Error(-32602)] {
        audit.admit(&head("ann")).expect("let in").finish(outcome);
    }
    drop(audit.admit(&head("bob")).expect("let in"));
    audit.refusal(&head("eve"), "rate limited");
    audit.note("reload", "ok");
    audit.stop(PATIENCE).expect("all written");

    assert_eq!(fs::metadata(&file).expect("the file").permissions().mode() & 0o777, 0o600);
    let lines = lines(&file);
    assert_eq!(member(&lines, "event"), ["start", "call", "call", "call", "call", "refusal", "reload", "stop"]);
    assert_eq!(member(&lines, "outcome"), ["ok", "tool_error", "error", "cancelled", "refused"]);
    assert_eq!(member(&lines, "caller"), ["ann", "ann", "ann", "bob", "eve"]);
    assert_eq!(lines[3]["code"], -32602);
    assert_eq!(lines[5]["reason"], "rate limited");
    assert!(lines[1..5].iter().all(|line| line["duration_us"].is_u64()));
    assert!(lines.iter().all(|line| line["node"] == "node-1" && line["time"].is_string()));
    let all = Counts { written: 8, ..Counts::default() };
    assert_eq!(audit.counts(), Counts { ..all });

    // After the end: nothing is let in that needs a line, and what comes is counted.
    assert_eq!(audit.admit(&head("ann")).err(), Some(Unwritable));
    audit.note("late", "");
    assert_eq!(audit.counts(), Counts { refused: 1, dropped: 1, ..all });
    assert_eq!(audit.stop(PATIENCE), Ok(()));
}

#[test]
fn on_a_full_disk_required_refuses_until_a_write_works_again() {
    let dir = TempDir::new().expect("a folder");
    let (file, good) = (dir.path().join("audit.log"), dir.path().join("good"));
    symlink("/dev/full", &file).expect("a link");
    let audit = start(&config(&file, Policy::Required));
    for _ in 0..100 {
        assert_eq!(audit.admit(&head("ann")).err(), Some(Unwritable), "not even the first is let in");
    }
    assert_eq!(audit.counts(), Counts { refused: 100, waiting: 1, failing: true, ..Counts::default() });
    assert!(audit.stops_calls());

    fs::remove_file(&file).expect("unlinked");
    symlink(&good, &file).expect("a link");
    audit.reopen(PATIENCE).expect("reopened");
    audit.admit(&head("ann")).expect("let in").finish(Outcome::Ok);
    audit.stop(PATIENCE).expect("all written");
    assert_eq!(member(&lines(&good), "event"), ["start", "call", "stop"], "what waited is there");
}

#[test]
fn on_a_full_disk_best_effort_serves_and_counts() {
    let dir = TempDir::new().expect("a folder");
    let file = dir.path().join("audit.log");
    symlink("/dev/full", &file).expect("a link");
    let audit = start(&Config { queue_max: 16, ..config(&file, Policy::BestEffort) });
    for _ in 0..100 {
        audit.admit(&head("ann")).expect("served").finish(Outcome::Ok);
    }
    // The line that says that it begins has a place, too.
    assert_eq!(audit.counts(), Counts { dropped: 85, waiting: 16, failing: true, ..Counts::default() });
    assert!(!audit.stops_calls());
    let problem = audit.stop(PATIENCE).expect_err("nothing was written");
    assert!(problem.contains("16 lines of the audit log could not be written"), "{problem}");
}

#[test]
fn a_place_is_held_from_the_call_to_its_line() {
    let dir = TempDir::new().expect("a folder");
    let audit = start(&Config { queue_max: 16, ..config(&dir.path().join("audit.log"), Policy::Required) });
    let mut running: Vec<_> = (0..16).map(|_| audit.admit(&head("ann")).expect("a place")).collect();
    assert_eq!(audit.admit(&head("ann")).err(), Some(Unwritable), "each place has a call that runs");
    // Refusals find no place, and are not let take one that is promised.
    audit.refusal(&head("eve"), "no key");
    assert_eq!(audit.counts().dropped, 1);
    running.pop().expect("one").finish(Outcome::Ok);
    wait(&audit, |counts| counts.written == 2);
    running.push(audit.admit(&head("ann")).expect("a place again"));
    drop(running);
    audit.stop(PATIENCE).expect("all written");
    assert_eq!(audit.counts(), Counts { written: 1 + 17 + 1, dropped: 1, refused: 1, ..Counts::default() });
}

#[test]
fn a_flood_of_refusals_leaves_places_for_calls() {
    let dir = TempDir::new().expect("a folder");
    let disk = Hanging::default();
    let config = Config { queue_max: 16, ..config(&dir.path().join("audit.log"), Policy::Required) };
    let sink = disk.clone();
    let audit =
        Audit::start_with(&config, "node-1", Box::new(move || Ok(Opened::of(sink.clone())))).expect("it starts");
    for _ in 0..1000 {
        audit.refusal(&head("eve"), "no key");
    }
    let calls: Vec<_> = (0..8).map(|_| audit.admit(&head("ann")).expect("half of the places")).collect();
    assert_eq!(audit.admit(&head("ann")).err(), Some(Unwritable));
    drop(calls);
    disk.let_go();
    audit.stop(PATIENCE).expect("all written");
    assert_eq!(audit.counts(), Counts { written: 1 + 8 + 8 + 1, dropped: 992, refused: 1, ..Counts::default() });
}

#[test]
fn after_a_line_that_was_cut_off_the_next_is_whole() {
    let dir = TempDir::new().expect("a folder");
    let file = dir.path().join("audit.log");
    fs::write(&file, "{\"event\":\"a killed wri").expect("written");
    for _ in 0..2 {
        let audit = start(&config(&file, Policy::Required));
        audit.stop(PATIENCE).expect("all written");
    }
    let text = fs::read_to_string(&file).expect("the file");
    let whole: Vec<Value> = text.lines().skip(1).map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(member(&whole, "event"), ["start", "stop", "start", "stop"]);
}

#[test]
fn rotation_loses_no_line_and_doubles_none() {
    let dir = TempDir::new().expect("a folder");
    let file = dir.path().join("audit.log");
    let audit = start(&config(&file, Policy::Required));
    let call = |caller: &str| audit.admit(&head(caller)).expect("let in").finish(Outcome::Ok);
    let mut expected = vec![];
    let mut found = vec![];
    for round in 0..5 {
        for i in 0..100 {
            call(&format!("{round}/{i}"));
            expected.push(format!("{round}/{i}"));
        }
        let old = dir.path().join(format!("audit.log.{round}"));
        fs::rename(&file, &old).expect("moved");
        audit.reopen(PATIENCE).expect("reopened");
        assert!(file.exists());
        found.extend(member(&lines(&old), "caller"));
    }
    audit.stop(PATIENCE).expect("all written");
    found.extend(member(&lines(&file), "caller"));
    assert_eq!(found, expected);

    // It is noticed without being told, also when nothing else is to be done.
    let dir = TempDir::new().expect("a folder");
    let (file, old) = (dir.path().join("audit.log"), dir.path().join("audit.log.1"));
    let audit = start(&config(&file, Policy::Required));
    fs::rename(&file, &old).expect("moved");
    let began = Instant::now();
    while !file.exists() {
        assert!(began.elapsed() < PATIENCE, "the file is not made anew");
        thread::sleep(Duration::from_millis(5));
    }
    audit.admit(&head("ann")).expect("let in").finish(Outcome::Ok);
    audit.stop(PATIENCE).expect("all written");
    assert_eq!(member(&lines(&old), "event"), ["start"]);
    assert_eq!(member(&lines(&file), "event"), ["call", "stop"]);

    // Where the new file cannot be opened, the old one goes on.
    let dir = TempDir::new().expect("a folder");
    let (logs, moved) = (dir.path().join("logs"), dir.path().join("moved"));
    fs::create_dir(&logs).expect("a folder");
    let audit = start(&config(&logs.join("audit.log"), Policy::Required));
    fs::rename(&logs, &moved).expect("moved");
    let problem = audit.reopen(PATIENCE).expect_err("no folder");
    assert!(problem.contains("cannot be opened again (No such file"), "{problem}");
    audit.admit(&head("ann")).expect("let in").finish(Outcome::Ok);
    audit.stop(PATIENCE).expect("all written");
    assert_eq!(member(&lines(&moved.join("audit.log")), "event"), ["start", "call", "stop"]);
}

/// A disk that takes a few bytes, then none, then more, as a disk near its end does.
#[derive(Clone, Default)]
struct Flaky(Arc<Mutex<(Vec<u8>, usize)>>);

impl Write for Flaky {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (taken, turn) = &mut *self.0.lock();
        *turn += 1;
        if *turn % 3 == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let n = bytes.len().min(1 + *turn * 37 % 400);
        taken.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_disk_that_comes_and_goes_tears_no_line() {
    let disk = Flaky::default();
    let sink = disk.clone();
    let config = Config { policy: Policy::BestEffort, ..Config::default() };
    let audit =
        Audit::start_with(&config, "node-1", Box::new(move || Ok(Opened::of(sink.clone())))).expect("it starts");
    let callers: Vec<String> = (0..20).map(|i| format!("caller {i}")).collect();
    for caller in &callers {
        audit.admit(&head(caller)).expect("served").finish(Outcome::Ok);
    }
    wait(&audit, |counts| counts.waiting == 0); // by its own retries
    let text = String::from_utf8(disk.0.lock().0.clone()).expect("text");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(member(&lines, "caller"), callers);
}

/// A disk that hangs until it is let go.
#[derive(Clone, Default)]
struct Hanging(Arc<(Mutex<bool>, Condvar, Mutex<Vec<u8>>)>);

impl Hanging {
    fn let_go(&self) {
        *self.0.0.lock() = true;
        self.0.1.notify_all();
    }
}

impl Write for Hanging {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (free, told, taken) = &*self.0;
        let mut taken = taken.lock();
        if !taken.is_empty() {
            told.wait_while(&mut free.lock(), |free| !*free); // the first line passes, at the start
        }
        taken.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn behind_a_disk_that_hangs_the_counts_reconcile() {
    let disk = Hanging::default();
    let sink = disk.clone();
    let config = Config { queue_max: 500, ..Config::default() };
    let audit =
        Audit::start_with(&config, "node-1", Box::new(move || Ok(Opened::of(sink.clone())))).expect("it starts");
    let begin = Barrier::new(8);
    thread::scope(|scope| {
        for thread in 0..8 {
            let (audit, begin) = (&audit, &begin);
            scope.spawn(move || {
                begin.wait();
                for i in 0..1000 {
                    let caller = format!("{thread}/{i}");
                    match i % 4 {
                        0 => audit.refusal(&head(&caller), "no key"),
                        1 => drop(audit.admit(&head(&caller)).expect("served")),
                        _ => audit.admit(&head(&caller)).expect("served").finish(Outcome::Ok),
                    }
                }
            });
        }
    });
    let counts = audit.counts();
    assert_eq!(counts, Counts { written: 1, waiting: 500, dropped: 8000 - 500, ..Counts::default() });
    let stuck = audit.reopen(Duration::ZERO).expect_err("it hangs");
    assert!(stuck.contains("does not answer"), "{stuck}");

    disk.let_go();
    wait(&audit, |counts| counts.waiting == 0);
    audit.stop(PATIENCE).expect("all written");
    assert_eq!(audit.counts(), Counts { written: 502, dropped: 7500, ..Counts::default() });
    let text = String::from_utf8(disk.0.2.lock().clone()).expect("text");
    assert_eq!(text.lines().count(), 502);
    assert!(text.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()));
}

#[test]
fn the_thread_ends_with_the_last_who_could_ask_it() {
    let dir = TempDir::new().expect("a folder");
    let file = dir.path().join("audit.log");
    let audit = start(&config(&file, Policy::Required));
    let entry = audit.admit(&head("ann")).expect("let in");
    let progress = Arc::downgrade(&audit.0.progress);
    drop(audit);
    entry.finish(Outcome::Ok);
    let began = Instant::now();
    while progress.strong_count() > 0 {
        assert!(began.elapsed() < PATIENCE);
        thread::sleep(Duration::from_millis(1));
    }
    let events = member(&lines(&file), "event");
    assert_eq!(events, ["start", "call", "stop"]);
}

/// Takes some bytes, and is full then until it is let go.
struct Small(fs::File, Arc<Mutex<usize>>);

impl Write for Small {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut room = self.1.lock();
        let fits = bytes.len().min(*room);
        *room -= fits;
        if fits == 0 { Err(io::ErrorKind::StorageFull.into()) } else { self.0.write(&bytes[..fits]) }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_file_that_was_cut_short_within_a_line_begins_with_a_whole_one() {
    let dir = TempDir::new().expect("a folder");
    let path = dir.path().join("audit.log");
    let room = Arc::new(Mutex::new(usize::MAX));
    let (own_path, own_room) = (path.clone(), Arc::clone(&room));
    let open = move || {
        let file = fs::OpenOptions::new().append(true).create(true).open(&own_path)?;
        Ok(Opened::sized(Small(file.try_clone()?, Arc::clone(&own_room)), file))
    };
    let audit = Audit::start_with(&config(&path, Policy::BestEffort), "node-1", Box::new(open)).expect("it starts");
    let call = |caller: &str| audit.admit(&head(caller)).expect("served").finish(Outcome::Ok);
    for cut in [true, false] {
        let written = audit.counts().written;
        call("ann");
        wait(&audit, |counts| counts.written == written + 1);
        *room.lock() = 20;
        call("bob");
        wait(&audit, |counts| counts.failing);
        assert!(!fs::read(&path).expect("the file").ends_with(b"\n"), "there is half a line");
        if cut {
            fs::OpenOptions::new().write(true).open(&path).expect("the file").set_len(0).expect("cut");
        }
        *room.lock() = usize::MAX;
        wait(&audit, |counts| counts.waiting == 0);
        let callers = member(&lines(&path), "caller");
        assert_eq!(callers, if cut { &["bob"][..] } else { &["bob", "ann", "bob"] });
    }
    audit.stop(PATIENCE).expect("all written");
}

#[test]
fn a_check_says_what_the_start_would_and_makes_no_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let of = |file: std::path::PathBuf| Config { file: file.display().to_string(), ..Config::default() };
    for (file, fine) in [("a.log", true), ("missing/a.log", false), ("", false)] {
        let config = of(folder.path().join(file));
        let checked = Audit::check(&config);
        assert!(!folder.path().join("a.log").exists(), "a check makes no file");
        assert_eq!(checked.is_ok(), fine, "{file}: {checked:?}");
        if let Err(told) = checked {
            assert_eq!(Audit::start(&config, "n").map(drop), Err(told));
        }
    }
    for file in ["", "-"] {
        assert_eq!(Audit::check(&of(file.into())), Ok(()));
    }
}

/// Who reads the trail finds each word of it where its settings are.
#[test]
fn every_word_of_a_line_is_documented() {
    let documents = include_str!("../../tuning.toml");
    let (before, _) = documents.split_once("[audit]").expect("the section");
    let (_, section) = before.rsplit_once("# The members of a line").expect("what stands before it");
    let words: Vec<&str> = section.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let documented = |word: &str| assert!(words.contains(&word), "{word}");
    let dir = TempDir::new().expect("a folder");
    let file = dir.path().join("audit.log");
    let audit = start(&config(&file, Policy::Required));
    let arguments = serde_json::json!({ "a": 1 });
    let head = Head {
        key: Some("1a2b3c4d"),
        address: Some("192.0.2.1".parse().expect("an address")),
        session: Some("s"),
        request_id: Some(RequestId::Number(1)),
        detail: "d",
        arguments: Some(&arguments),
        ..head("ann")
    };
    for outcome in [Outcome::Ok, Outcome::ToolError, Outcome::Error(1), Outcome::Cancelled] {
        audit.admit(&head).expect("let in").finish(outcome);
    }
    audit.refusal(&Head { tool: None, name: Some("n"), ..head }, "r");
    audit.deed("invalidate", &head);
    audit.stop(PATIENCE).expect("all written");
    let lines = lines(&file);
    lines.iter().flat_map(|line| line.as_object().expect("an object").keys()).for_each(|member| documented(member));
    for member in ["event", "outcome"] {
        self::member(&lines, member).iter().for_each(|word| documented(word));
    }
    ["reload", "drain", "arguments", "arguments_cut"].into_iter().for_each(documented);
    crate::rate::RuleId::ALL.into_iter().for_each(|rule| documented(rule.name()));
}
