//! The command line, run as a process: exit codes, what it prints and where, and the order of the settings' sources.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::Process;

/// A folder to start in, so that no tuning.toml lies about, and a clean environment.
struct Place {
    folder: TempDir,
}

struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Place {
    fn new() -> Self {
        Self { folder: TempDir::new().expect("a temporary folder") }
    }

    /// With a file of settings in it.
    fn with(name: &str, text: impl AsRef<[u8]>) -> Self {
        let place = Self::new();
        fs::write(place.path().join(name), text).expect("a file");
        place
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bigiron"));
        command.args(arguments).current_dir(self.path()).env_clear().stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        ran(self.command(arguments))
    }
}

fn ran(mut command: Command) -> Ran {
    let Output { status, stdout, stderr } = command.output().expect("bigiron starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ran { code: status.code(), out: text(stdout), err: text(stderr) }
}

impl Ran {
    /// The line of `check` for a setting.
    fn line(&self, key: &str) -> &str {
        let found = self.out.lines().find(|line| line.split(' ').next() == Some(key));
        found.unwrap_or_else(|| panic!("no {key} in:\n{}\n{}", self.out, self.err))
    }
}

#[test]
fn verbs_end_as_they_say() {
    let place = Place::new();
    for (arguments, code, out, err) in [
        (&["check"][..], 0, "[server]", ""),
        (&["schema"], 0, "\"$schema\"", ""),
        (&["--version"], 0, concat!("bigiron ", env!("CARGO_PKG_VERSION")), ""),
        (&["--help"], 0, "BIGIRON_SECTION__KEY=value", ""),
        (&["serve", "--help"], 0, "--insecure-no-auth", ""),
        (&["check", "--help"], 0, "--tuning <FILE>", ""),
        (&["--nonsense"], 2, "", "unexpected argument '--nonsense'"),
        (&["nonsense"], 2, "", "nonsense"),
        (&["--listen"], 2, "", "a value is required"),
        (&["check", "--stdio"], 2, "", "unexpected argument '--stdio'"),
        // Serving starts with the same look at the settings, with and without the verb.
        (&["--set", "pool.thread=5"], 78, "", "did you mean pool.threads?"),
        (&["serve", "--set", "pool.thread=5"], 78, "", "did you mean pool.threads?"),
        (&["serve", "--stdio", "--set", "pool.thread=5"], 78, "", "did you mean pool.threads?"),
    ] {
        let ran = place.run(arguments);
        assert_eq!(ran.code, Some(code), "{arguments:?}: {}{}", ran.out, ran.err);
        assert!(ran.out.contains(out) && ran.err.contains(err), "{arguments:?}: {}{}", ran.out, ran.err);
        assert_eq!(ran.out.is_empty(), code != 0, "{arguments:?}: only what was asked for is on standard output");
        assert_eq!(ran.err.is_empty(), code == 0, "{arguments:?}: {}", ran.err);
    }
}

#[test]
fn a_wrong_file_is_refused_with_line_word_and_suggestion() {
    for (text, said) in [
        (
            "[limits]\nrequest_timeout = 5\n",
            &["tuning.toml:2:1", "limits.request_timeout;", "limits.request_timeout_ms?"][..],
        ),
        ("\n[limit]\n", &["tuning.toml:2:2", "[limit]", "[limits]?"]),
        ("listen = '127.0.0.1:0'\n", &["tuning.toml:1:1", "listen", "server.listen?"]),
        ("[limits]\nrequest_timeout_ms = '5s'\n", &["tuning.toml:2:22", "\"5s\"", "a whole number"]),
        ("[limits]\nrequest_bytes_max = '1MB'\n", &["tuning.toml:2:21", "\"MB\"", "MiB"]),
        ("[pool]\non_full = 'rejcet'\n", &["tuning.toml:2:11", "\"rejcet\"", "\"reject\"?"]),
        ("[server]\nlisten = [\n", &["tuning.toml:", "not valid TOML"]),
        (
            "[limits]\nrequest_timeout_ms = 40000\n",
            &["limits.request_timeout_ms = 40000 (tuning.toml:2)", "server.drain_grace_ms = 30000 (default)"],
        ),
        ("[server]\nlisten = '0.0.0.0:0'\n", &["server.listen = \"0.0.0.0:0\" (tuning.toml:2)", "--insecure-no-auth"]),
        ("[tools.x]\ncache_scope = 'public'\n", &["tools.x.cache_scope", "(tuning.toml:2)", "cache_ttl_s"]),
    ] {
        let place = Place::with("tuning.toml", text);
        for verb in ["check", "serve"] {
            let ran = place.run(&[verb]);
            assert_eq!(ran.code, Some(78), "{text:?}: {}", ran.err);
            assert!(ran.out.is_empty(), "{text:?}: {}", ran.out);
            for words in said {
                assert!(ran.err.contains(words), "{text:?}: {words:?} is not in:\n{}", ran.err);
            }
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_is_refused() {
    let place = Place::with("latin1.toml", b"[server]\n\ninstructions = '\xe4'\n");
    fs::create_dir(place.path().join("folder.toml")).expect("a folder");
    for (file, said) in [
        ("missing.toml", "missing.toml: this file of settings cannot be read"),
        ("folder.toml", "folder.toml: this file of settings cannot be read"),
        ("latin1.toml", "line 3 is not UTF-8"),
        ("/dev/zero", "it is longer than 32 MiB"),
    ] {
        let ran = place.run(&["check", "--tuning", file]);
        assert_eq!(ran.code, Some(78), "{file}");
        assert!(ran.err.contains(said), "{file}: {}", ran.err);
    }
}

#[test]
fn all_faults_are_told_at_once() {
    let place = Place::with("tuning.toml", "[server]\nlistn = 1\n[pool]\nthreads = 'x'\n");
    let mut command = place.command(&["check", "--set", "cache.bytes=1"]);
    command.env("BIGIRON_LIMITS__HEADER_MAX", "1");
    let ran = ran(command);
    assert_eq!(ran.code, Some(78));
    for words in [
        "4 faults",
        "tuning.toml:2:1",
        "tuning.toml:4:11",
        "environment BIGIRON_LIMITS__HEADER_MAX",
        "--set cache.bytes=1",
    ] {
        assert!(ran.err.contains(words), "{words:?} is not in:\n{}", ran.err);
    }
}

#[test]
fn check_says_where_each_value_came_from() {
    let file = "[server]\nlisten = '127.0.0.1:1'\npath = '/p'\n[pool]\nthreads = 3\nqueue_max = 7\n[tools.read_file]\ntimeout_ms = 9\n";
    let place = Place::with("tuning.toml", file);
    let mut command =
        place.command(&["check", "--set", "pool.threads=4", "--set", "log.level=warn", "--listen", "127.0.0.1:0"]);
    command.env("BIGIRON_POOL__THREADS", "5").env("BIGIRON_POOL__KEEP_ALIVE_S", "6").env("BIGIRON_SERVICE_PORT", "80");
    let ran = ran(command);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    for (key, said) in [
        ("listen", &["\"127.0.0.1:0\"", "# --listen"][..]),
        ("path", &["\"/p\"", "# tuning.toml:3"]),
        ("threads", &["= 4 ", "# --set"]),
        ("threads_max", &["= 0 ", "# default; here 8: twice pool.threads"]),
        ("queue_max", &["= 7 ", "# tuning.toml:6"]),
        ("keep_alive_s", &["= 6 ", "# environment BIGIRON_POOL__KEEP_ALIVE_S"]),
        ("level", &["= \"warn\" ", "# --set"]),
        ("headers_max", &["= 100 ", "# default"]),
        ("concurrent_requests_max", &["= 0 ", "# default; here "]),
    ] {
        for words in said {
            assert!(ran.line(key).contains(words), "{words:?} is not in: {}", ran.line(key));
        }
    }
    let tool = ran.out.split("[tools.read_file]").nth(1).unwrap_or_else(|| panic!("no [tools.read_file]: {}", ran.out));
    assert!(tool.contains("timeout_ms") && tool.contains("= 9 ") && tool.contains("# tuning.toml:8"), "{tool}");
}

#[test]
fn a_named_file_takes_the_place_of_the_one_in_the_folder() {
    let place = Place::with("tuning.toml", "[pool]\nthreads = 3\n");
    fs::write(place.path().join("other.toml"), "[pool]\nqueue_max = 7\n").expect("a file");
    let ran = place.run(&["check", "--tuning", "other.toml"]);
    assert!(ran.line("queue_max").contains("# other.toml:2"), "{}", ran.out);
    assert!(ran.line("threads").contains("= 0 "), "{}", ran.out);
}

#[test]
fn what_check_prints_is_a_file_of_the_same_settings() {
    let place = Place::new();
    let first = place.run(&[
        "check",
        "--set",
        "tools.read_file.timeout_ms=5",
        "--set",
        "server.instructions=\"say \\\"hi\\\"\\nthere\"",
    ]);
    assert_eq!(first.code, Some(0), "{}", first.err);
    fs::write(place.path().join("tuning.toml"), &first.out).expect("a file");
    let second = place.run(&["check"]);
    assert_eq!(second.code, Some(0), "{}\n{}", second.err, first.out);
    let values = |out: &str| toml::from_str::<toml::Table>(out).expect("TOML");
    assert_eq!(values(&first.out), values(&second.out));
}

#[test]
fn the_schema_accepts_the_documented_file_and_refuses_an_unknown_key() {
    let ran = Place::new().run(&["schema"]);
    let schema: Value = serde_json::from_str(&ran.out).expect("JSON");
    let validator = jsonschema::validator_for(&schema).expect("a valid JSON Schema");
    let file = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tuning.toml")).expect("tuning.toml");
    let mut settings: Value = toml::from_str(&file).expect("TOML");
    assert!(validator.is_valid(&settings), "{:?}", validator.validate(&settings));
    settings["limits"]["request_timeout"] = 5.into();
    assert!(!validator.is_valid(&settings));
}

#[test]
fn an_address_that_others_can_reach_needs_a_word() {
    let place = Place::new();
    for arguments in
        [&["--listen", "0.0.0.0:0"][..], &["--listen", "[::]:0"], &["--set", "server.admin_listen=0.0.0.0:0"]]
    {
        for verb in ["serve", "check"] {
            let ran = place.run(&[&[verb], arguments].concat());
            assert_eq!(ran.code, Some(78), "{arguments:?}: {}", ran.err);
            assert!(ran.err.contains("--insecure-no-auth"), "{arguments:?}: {}", ran.err);
        }
        let ran = place.run(&[&["check", "--insecure-no-auth"], arguments].concat());
        assert_eq!(ran.code, Some(0), "{arguments:?}: {}", ran.err);
    }
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let mut child =
        Place::new().command(&["schema"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("bigiron");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("bigiron ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn settings_can_come_through_a_pipe() {
    let place = Place::new();
    let mut command = place.command(&["check", "--tuning", "/dev/stdin"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("bigiron");
    child.stdin.take().expect("a pipe").write_all(b"[pool]\nthreads = 3\n").expect("written");
    let output = child.wait_with_output().expect("bigiron ends");
    assert!(String::from_utf8_lossy(&output.stdout).contains("/dev/stdin:2"), "{output:?}");
}

#[test]
fn a_variable_with_one_underscore_too_few_is_not_passed_over() {
    let place = Place::new();
    let mut command = place.command(&["check"]);
    command.env("BIGIRON_LIMITS_REQUEST_TIMEOUT_MS", "8000").env("BIGIRON_PORT_5000_TCP", "a name of somebody else's");
    let ran = ran(command);
    assert_eq!(ran.code, Some(78));
    assert!(ran.err.contains("one fault") && ran.err.contains("BIGIRON_LIMITS__REQUEST_TIMEOUT_MS"), "{}", ran.err);
}

#[test]
fn the_start_says_where_settings_are_from_and_that_there_is_no_tool() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Process::start_in(folder.path(), &["--set", "toolbox.enabled=false"]);
    let settings = server.log_line_with("settings;");
    assert!(settings.contains("\"file\":\"built-in defaults\""), "{settings}");
    let pool = server.log_line_with("queue_max");
    assert!(pool.contains("\"on_full\":\"caller-runs\"") && pool.contains("\"threads\":"), "{pool}");
    assert!(server.log_line_with("no tool is served").contains("WARN"));

    let file = folder.path().join("tuning.toml");
    fs::write(&file, "[pool]\nqueue_max = 7\n").expect("written");
    let server = Process::start_in(folder.path(), &[]);
    let settings = server.log_line_with("settings;");
    assert!(settings.contains("/tuning.toml\""), "{settings}");
    assert!(server.log_line_with("queue_max").contains("\"queue_max\":7"));
}
