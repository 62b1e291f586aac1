//! The settings as a whole: the documented file, the layers, the faults, the relations.

use std::{collections::BTreeSet, ffi::OsString, time::Instant};

use super::{Faults, Loaded, Origin, Tuning, known::Known, layers::Layers, ranges::RANGES};
use crate::runtime::Host;

const FILE: &str = include_str!("../../tuning.toml");

fn host() -> Host {
    Host {
        cores: 4,
        cpu_quota_millicores: None,
        memory_bytes: 16 << 30,
        memory_limit_bytes: None,
        descriptors_max: 20_000,
    }
}

/// What an operator gives, as texts. The file is called t.toml.
#[derive(Default)]
struct Given<'a> {
    file: &'a str,
    environment: &'a [(&'a str, &'a str)],
    sets: &'a [&'a str],
    listen: Option<&'a str>,
    insecure_no_auth: bool,
    host: Option<Host>,
}

impl Given<'_> {
    fn load(&self) -> Result<Loaded, Faults> {
        let mut layers = Layers::new();
        layers.file("t.toml", self.file);
        layers.environment(self.environment.iter().map(|(n, v)| (OsString::from(n), OsString::from(v))).collect());
        self.sets.iter().for_each(|set| layers.set(set));
        self.listen.iter().for_each(|address| layers.listen(address));
        let (tuning, origins) = layers.finish()?;
        Loaded::build(tuning, origins, self.host.clone().unwrap_or_else(host), self.insecure_no_auth)
    }

    fn faults(&self) -> String {
        match self.load() {
            Ok(_) => panic!("accepted: {:?} {:?} {:?}", self.file, self.environment, self.sets),
            Err(faults) => faults.to_string(),
        }
    }
}

fn of_file(file: &str) -> Given<'_> {
    Given { file, ..Given::default() }
}

#[test]
fn the_documented_file_is_the_defaults_and_names_every_setting() {
    let loaded = of_file(FILE).load().expect("tuning.toml");
    assert_eq!(loaded.tuning, Tuning::default());
    for setting in loaded.settings() {
        assert!(matches!(setting.origin, Origin::File { .. }), "{} is missing in tuning.toml", setting.path);
    }
}

#[test]
fn the_example_of_a_tool_names_every_setting_of_a_tool() {
    let start = FILE.find("# [tools.search_text]").expect("the example");
    let example: String =
        FILE[start..].lines().map(|l| format!("{}\n", l.trim_start_matches('#').trim_start())).collect();
    // Two marks: text about a setting. One mark: the setting.
    let settings: String = FILE[start..]
        .lines()
        .filter(|line| !line.starts_with("# # ") && *line != "#")
        .map(|line| format!("{}\n", line.trim_start_matches("# ")))
        .collect();
    // Without these a tool's rates, rights and place would mean nothing.
    let sets = &["rate_limit.enabled=true", "auth.keys_file=keys.toml", "cluster.redis=redis://127.0.0.1"];
    let given = Given { file: &settings, sets, ..Given::default() };
    let loaded = given.load().unwrap_or_else(|faults| panic!("{faults}\n{example}"));
    let named: BTreeSet<String> =
        loaded.settings().into_iter().filter(|s| s.section == "tools.search_text").map(|s| s.key).collect();
    let known: BTreeSet<String> =
        Known::settings().all().filter(|(path, _)| path.tool.is_some()).map(|(path, _)| path.key).collect();
    assert_eq!(named, known);
}

#[test]
fn each_layer_goes_over_the_one_before_and_says_so() {
    let mut given = Given::default();
    let listen = |given: &Given<'_>| {
        let loaded = given.load().expect("valid");
        (loaded.listen.port(), loaded.origin("server.listen").to_string())
    };
    assert_eq!(listen(&given), (5000, "default".into()));
    given.file = "# first\n[server]\nlisten = '127.0.0.1:1'\n";
    assert_eq!(listen(&given), (1, "t.toml:3".into()));
    given.environment = &[("BIGIRON_SERVER__LISTEN", "127.0.0.1:2")];
    assert_eq!(listen(&given), (2, "environment BIGIRON_SERVER__LISTEN".into()));
    given.sets = &["server.listen=127.0.0.1:3", "server.listen=127.0.0.1:4"];
    assert_eq!(listen(&given), (4, "--set".into()));
    given.listen = Some("localhost:5");
    assert_eq!(listen(&given), (5, "--listen".into()));

    let mut tuning = Tuning::default();
    tuning.pool.threads = 3;
    let loaded = Loaded::from_program(tuning, host(), false).expect("valid");
    assert_eq!(loaded.origin("pool.threads"), Origin::Program);
    assert_eq!(loaded.origin("pool.threads_max"), Origin::Default);
}

#[test]
fn values_of_words_need_no_second_quotes() {
    let sets = [
        "log.level=info,bigiron::front=debug",
        "toolbox.root=/usr",
        "server.instructions=2024",
        "server.allowed_hosts=[\"a.example\", 'b.example']",
        "limits.request_bytes_max=2MiB",
        "limits.result_bytes_max=3000000",
        "limits.headers_max = 1_00",
        "server.admin_listen=",
        "pool.on_full=reject",
        "tools.git.log.timeout_ms=7",
        "tools.git.log.cache_ttl_s=9",
        "tools.git.log.cache_scope=\"public\"",
    ];
    let loaded = Given {
        sets: &sets,
        environment: &[
            ("BIGIRON_TOOLS__read__file__TIMEOUT_MS", "6"),
            ("BIGIRON_CACHE__BYTES_MAX", "1GiB"),
            ("BIGIRON_SERVICE_HOST", "10.0.0.1"),
            ("BIGIRON_PORT", "tcp://10.0.0.1:80"),
            ("OTHER__THING", "x"),
        ],
        ..Given::default()
    }
    .load()
    .expect("valid");
    let tuning = &loaded.tuning;
    assert_eq!(tuning.server.instructions, "2024");
    assert_eq!(tuning.server.allowed_hosts, ["a.example", "b.example"]);
    assert_eq!((tuning.limits.request_bytes_max.0, tuning.limits.result_bytes_max.0), (2 << 20, 3_000_000));
    assert_eq!(tuning.limits.headers_max, 100);
    assert_eq!(loaded.admin_listen, None);
    assert_eq!(tuning.cache.bytes_max.0, 1 << 30);
    assert_eq!(tuning.tools["git.log"].timeout_ms, Some(7));
    assert_eq!(tuning.tools["read__file"].timeout_ms, Some(6));
    let zeros: Vec<_> = loaded.resolved.derived().iter().map(|d| d.path).collect();
    assert!(zeros.contains(&"pool.threads"), "{zeros:?}");
}

#[test]
fn a_wrong_file_is_told_line_by_line() {
    // What stands in the file, and what has to be said of it.
    for (file, said) in [
        ("[server]\nlisten", &["t.toml:2:", "not valid TOML", "2 | listen"][..]),
        ("[server]\n\nlisten = \n", &["t.toml:3:", "not valid TOML"]),
        ("[server]\nlisten = 'a'\nlisten = 'b'", &["t.toml:3:1", "duplicate key"]),
        (
            "[limits]\n\nrequest_timeout = 5",
            &[
                "t.toml:3:1: there is no setting limits.request_timeout; did you mean limits.request_timeout_ms?",
                "    3 | request_timeout = 5\n      | ^^^^^^^^^^^^^^^",
            ],
        ),
        ("[limit]\nrequest_timeout_ms = 5", &["t.toml:1:2: there is no section [limit]; did you mean [limits]?"]),
        ("listen = '127.0.0.1:1'", &["t.toml:1:1: listen stands in no section; did you mean server.listen?"]),
        ("limits = 5", &["t.toml:1:1: limits is a section: write [limits]"]),
        ("[[limits]]", &["t.toml:1:3: limits is a section: write [limits]"]),
        ("limits.request_timeout = 5", &["t.toml:1:8: ", "did you mean limits.request_timeout_ms?"]),
        ("[tools]\nread_file = 5", &["t.toml:2:1: ", "write [tools.read_file]"]),
        ("[tools.read_file]\ntimeout = 5", &["t.toml:2:1: ", "did you mean tools.read_file.timeout_ms?"]),
        (
            "[limits]\nrequest_timeout_ms = '5s'",
            &["t.toml:2:22: limits.request_timeout_ms: expected a whole number, 0 or more, found the text \"5s\""],
        ),
        ("[limits]\nrequest_timeout_ms = -5", &["t.toml:2:22: ", "found the number -5"]),
        ("[limits]\nrequest_timeout_ms = 5.5", &["found the number 5.5"]),
        ("[limits]\nrequest_timeout_ms = nan", &["a number that is not finite"]),
        (
            "[limits]\nrequest_timeout_ms = 99999999999999999999",
            &["t.toml:2:22: limits.request_timeout_ms: too large: 1 to 86400000 is the range"],
        ),
        ("[limits]\nrequest_timeout_ms = 1979-05-27", &["found a date"]),
        ("[limits]\nrequest_timeout_ms = {}", &["found a table"]),
        ("[limits.request_timeout_ms]", &["found a table"]),
        ("[limits]\nrequest_bytes_max = '1MB'", &["t.toml:2:21: limits.request_bytes_max: unknown unit \"MB\"", "KiB"]),
        ("[limits]\nrequest_bytes_max = true", &["expected a size", "found true"]),
        ("[server]\nallowed_hosts = 'a'", &["expected a list of texts", "found one text that is in no list"]),
        ("[pool]\non_full = 'rejcet'", &["t.toml:2:11: ", "did you mean \"reject\"?"]),
        ("[tools.x]\ncache_scope = 'all'", &["one of \"caller\", \"public\""]),
    ] {
        let faults = of_file(file).faults();
        for words in said {
            assert!(faults.contains(words), "{file:?}: {words:?} is not in:\n{faults}");
        }
    }
}

#[test]
fn all_faults_are_told_in_the_order_of_the_layers_and_lines() {
    let faults = Given {
        file: "[server]\nlistn = 1\n[limit]\n[pool]\nthreads = 'x'\n",
        environment: &[("BIGIRON_POOL__QUEUE", "5"), ("BIGIRON_CACHE__BYTES_MAX", "1GB"), ("BIGIRON_TOOLS__x", "1")],
        sets: &["pool.threads", "threads=5", "limits.json_depth=5", "pool.threads=-1"],
        ..Given::default()
    }
    .faults();
    let mut rest = faults.as_str();
    for words in [
        "t.toml:2:1: there is no setting server.listn; did you mean server.listen?",
        "t.toml:3:2: there is no section [limit]",
        "t.toml:5:11: pool.threads: expected a whole number",
        "environment BIGIRON_CACHE__BYTES_MAX: cache.bytes_max: unknown unit \"GB\"",
        "environment BIGIRON_POOL__QUEUE: there is no setting pool.queue; did you mean pool.queue_max?",
        "environment BIGIRON_TOOLS__x: a setting of a tool is named BIGIRON_TOOLS__name__KEY",
        "--set pool.threads: expected section.key=value",
        "--set threads=5: expected section.key=value",
        "--set limits.json_depth=5: there is no setting limits.json_depth; did you mean limits.json_depth_max?",
        "--set pool.threads=-1: pool.threads: expected a whole number, 0 or more, found the number -1",
    ] {
        let Some(at) = rest.find(words) else { panic!("{words:?} is not (in its place) in:\n{faults}") };
        rest = &rest[at..];
    }
}

#[test]
fn what_cannot_work_together_is_refused_with_places() {
    let long_name = format!("tools.{}.timeout_ms=1", "x".repeat(129));
    for (sets, said) in [
        (
            &["limits.request_timeout_ms=60000"][..],
            &["limits.request_timeout_ms = 60000 (--set): more than server.drain_grace_ms = 30000 (default)"][..],
        ),
        (&["tools.x.timeout_ms=40000"], &["tools.x.timeout_ms = 40000 (--set): more than server.drain_grace_ms"]),
        (&["limits.request_timeout_ms=0"], &["limits.request_timeout_ms = 0 (--set): the least is 1, because"]),
        (&["limits.header_bytes_max=4KiB"], &["limits.header_bytes_max = \"4KiB\" (--set): the least is \"8KiB\""]),
        (&["limits.json_depth_max=500"], &["the most is 128, because deeper ones"]),
        (&["pool.nice=99999999999"], &["--set pool.nice=99999999999: pool.nice: too large: 0 to 19 is the range"]),
        (&["tools.x.timeout_ms=99999999999999999999"], &["tools.x.timeout_ms: too large: 1 to 86400000 is the range"]),
        (
            &["fairness.weights=['10.0.0.5=4', '::ffff:10.0.0.5=2']"],
            &["\"::ffff:10.0.0.5=2\" is of a caller that has a weight already"],
        ),
        (&["tools.x.cache_ttl_s=0"], &["tools.x.cache_ttl_s = 0 (--set): the least is 1"]),
        (
            &["pool.threads=9", "pool.threads_max=8"],
            &["pool.threads = 9 (--set): more than pool.threads_max = 8 (--set)"],
        ),
        (
            &["cache.entry_bytes_max=300MiB"],
            &["cache.entry_bytes_max = \"300MiB\" (--set): more than cache.bytes_max = \"256MiB\" (default)"],
        ),
        (&["sessions.per_caller_max=200000"], &["more than sessions.sessions_max = 100000"]),
        (&["toolbox.output_bytes_max=16MiB"], &["more than limits.result_bytes_max"]),
        (&["toolbox.root=/nowhere/at/all"], &["toolbox.root = \"/nowhere/at/all\"", "this folder cannot be read"]),
        (&["toolbox.root=/proc/version"], &["this is no folder"]),
        (&["limits.connections_max=30000"], &["this process may have 20000 files open", "19936 for connections"]),
        (
            &["limits.request_bytes_max=1GiB", "limits.concurrent_requests_max=100"],
            &["limits.request_bytes_max = \"1GiB\" (--set)", "102400 MiB", "more than the 16384 MiB"],
        ),
        (
            &["limits.connections_max=0", "cache.bytes_max=20GiB"],
            &["limits.connections_max = 0 (--set, 19936 on this host)"],
        ),
        (&["limits.body_bytes_per_s_min=1000000"], &["limits.body_timeout_ms = 30000", "limits.request_bytes_max"]),
        (&["server.path=mcp"], &["server.path = \"mcp\" (--set)", "a path starts with a slash"]),
        (&["server.path=/health"], &["answers whether the server is well"]),
        (&["server.listen=5000"], &["server.listen = \"5000\" (--set): expected an IP address and a port"]),
        (&["server.listen=0.0.0.0:5000"], &["no authentication", "--insecure-no-auth"]),
        (
            &["server.admin_listen=[::]:5001", "auth.keys_file=keys.toml"],
            &["server.admin_listen", "the admin listener asks nobody who reads", "--insecure-no-auth"],
        ),
        (&["auth.issuer=https://a.example"], &["auth.audience names nobody"]),
        (&["auth.leeway_s=31"], &["auth.leeway_s = 31 (--set): the most is 30"]),
        (
            &["auth.leeway_s=31", "auth.issuer=https://a.example", "auth.audience=['u']", "auth.jwks_file=k"],
            &["auth.leeway_s = 31 (--set): the most is 30"],
        ),
        (
            &["auth.keys_file=k", "tools.x.subjects=[{ subject = 'a', issuer = 'https://a.example' }]"],
            &["nobody is of the issuer \"https://a.example\"; here there is \"bigiron:keys\""],
        ),
        (
            &["auth.keys_file=k", "tools.x.subjects=[{ subject = '', issuer = 'bigiron:keys' }]"],
            &["tools.x.subjects", "or an empty text"],
        ),
        (
            &["auth.keys_file=k", "tools.x.scopes_any=['a b']"],
            &["tools.x.scopes_any", "nobody can have the scope \"a b\""],
        ),
        (&["tools.x.scopes_any=['a']"], &["tools.x.scopes_any", "nobody is asked who they are"]),
        (&["tools.x.groups=[]", "auth.keys_file=keys.toml"], &["tools.x.groups", "names nobody"]),
        (
            &["server.admin_listen=[::]:5001"],
            &["server.admin_listen", "health, metrics and nodes", "--insecure-no-auth"],
        ),
        (&["server.admin_listen=127.0.0.1:5000"], &["the same as server.listen"]),
        (&["server.allowed_origins=['*']"], &["every page of every site could call"]),
        (&["server.allowed_origins=['https://a.example/x']"], &["\"https://a.example/x\": expected an origin"]),
        (&["server.allowed_hosts=['http://a.example']"], &["\"http://a.example\": expected a host name"]),
        (&["server.trusted_proxies=['10.0.0.1/8']"], &["server.trusted_proxies", "write \"10.0.0.0/8\""]),
        (&["rate_limit.keys_max=10"], &["rate_limit.keys_max = 10 (--set): the least is 1024"]),
        (
            &["tools.x.rate=1 per 1s"],
            &[
                "tools.x.rate = \"1 per 1s, burst 1, block 0s\" (--set): this limits nobody with rate_limit.enabled = false",
            ],
        ),
        (
            &["rate_limit.enabled=true", "rate_limit.per_caller=off", "rate_limit.per_ip=off", "tools.x.rate=off"],
            &["rate_limit.enabled = true (--set): every rate is \"off\""],
        ),
        (&["audit.policy=required"], &["audit.policy = \"required\" (--set)", "audit.file = \"\" (default)"]),
        (
            &["audit.policy=required", "audit.file=-", "audit.queue_max=16"],
            &["audit.queue_max = 16 (--set): less than limits.concurrent_requests_max = 0"],
        ),
        (&["log.level=inof"], &["\"inof\" is no level; did you mean \"info\""]),
        (&["log.level=info,hyper=dbug"], &["\"dbug\" is no level; did you mean \"debug\""]),
        (
            &["tools.x.cache_scope=public"],
            &["tools.x.cache_scope = \"public\" (--set): this says nothing without tools.x.cache_ttl_s"],
        ),
        (&["tools.a b.timeout_ms=1"], &["[tools.a b]: no tool can have this name"]),
        (&[long_name.as_str()], &["no tool can have this name"]),
    ] {
        let faults = Given { sets, ..Given::default() }.faults();
        for words in said {
            assert!(faults.contains(words), "{sets:?}: {words:?} is not in:\n{faults}");
        }
    }
}

#[test]
fn one_wrong_value_is_one_fault() {
    for set in ["limits.request_timeout_ms=90000000", "limits.connections_max=2000000", "pool.threads=5000"] {
        let faults = Given { sets: &[set], ..Given::default() }.load().expect_err(set);
        assert_eq!(faults.count(), 1, "{faults}");
    }
}

#[test]
fn only_a_near_name_is_proposed() {
    for (word, candidate, is_near) in [
        ("rejcet", "reject", true),
        ("request_timeout", "request_timeout_ms", true),
        ("echo", "fetch", false),
        ("refuse", "reject", false),
        ("ab", "cd", false),
    ] {
        assert_eq!(super::nearest(word, [candidate].into_iter()).is_some(), is_near, "{word}");
    }
}

#[test]
fn a_section_for_a_tool_that_there_is_not_is_told_with_its_place() {
    let given = Given {
        file: "[tools.read_file]\n[tools.serach_text]\n[tools.qqq]\ntimeout_ms = 5\n",
        environment: &[("BIGIRON_TOOLS__READ_FILE__TIMEOUT_MS", "5")],
        ..Given::default()
    };
    let loaded = given.load().expect("whether there is such a tool is asked later");
    let faults = loaded.check_tools(["read_file", "search_text"].into_iter()).expect_err("three").to_string();
    for words in [
        "t.toml:2: [tools.serach_text]: no tool has this name; did you mean [tools.search_text]?",
        "t.toml:3: [tools.qqq]: no tool has this name",
        "environment BIGIRON_TOOLS__READ_FILE__TIMEOUT_MS: [tools.READ_FILE]: no tool has this name; did you mean [tools.read_file]?",
    ] {
        assert!(faults.contains(words), "{words:?} is not in:\n{faults}");
    }
    assert_eq!(loaded.check_tools(["read_file", "serach_text", "qqq", "READ_FILE"].into_iter()), Ok(()));
}

#[test]
fn what_is_unusual_and_works_is_accepted() {
    for sets in [
        &["pool.threads_max=1"][..],
        &["cache.bytes_max=0"],
        &["limits.body_bytes_per_s_min=0"],
        &["lists.ttl_ms=0"],
        &["server.listen=127.0.0.1:0", "server.admin_listen=127.0.0.1:0"],
        &["toolbox.enabled=false", "toolbox.root=/nowhere/at/all"],
        &["limits.request_timeout_ms=60000", "server.drain_grace_ms=60000"],
        &["log.level=warn,bigiron::front=trace,[span{field=1}]=debug"],
        &["log.level=OFF"],
        &["tools.x.cache_ttl_s=5", "tools.x.cache_scope=public"],
        &["server.trusted_proxies=['10.0.0.0/8', '2001:db8::1']"],
        &["rate_limit.enabled=true"],
        &["tools.x.rate=off"],
        &["server.listen=0.0.0.0:0", "auth.keys_file=keys.toml", "tools.x.subjects=['ann']"],
        &["auth.keys_file=k", "tools.x.subjects=['bob', { subject = 'ann', issuer = 'bigiron:keys' }]"],
        &["rate_limit.enabled=true", "rate_limit.per_caller=off", "rate_limit.per_ip=off", "tools.x.rate=5 per 1m"],
        &["audit.policy=required", "audit.file=-"],
    ] {
        if let Err(faults) = (Given { sets, ..Given::default() }.load()) {
            panic!("{sets:?}: {faults}");
        }
    }
    let open = Given { listen: Some("0.0.0.0:0"), insecure_no_auth: true, ..Given::default() };
    assert!(open.load().is_ok_and(|loaded| loaded.insecure_no_auth));
}

#[test]
fn a_cache_without_room_is_warned_of_when_a_tool_wants_it() {
    let warnings = |sets: &[&str]| Given { sets, ..Given::default() }.load().expect("valid").warnings();
    let said = warnings(&["cache.bytes_max=0B", "tools.x.cache_ttl_s=5"]);
    assert_eq!(said, ["cache.bytes_max = 0 (--set): no result is kept, although tools.x.cache_ttl_s is set (--set)"]);
    assert!(warnings(&["cache.bytes_max=0B"]).is_empty() && warnings(&["tools.x.cache_ttl_s=5"]).is_empty());
}

#[test]
fn the_defaults_hold_on_hosts_of_every_size() {
    const MIB: u64 = 1 << 20;
    for cores in [1, 2, 4, 16, 64, 192, 512] {
        for memory_bytes in [512 * MIB, 1024 * MIB, 4096 * MIB, 65_536 * MIB, 0] {
            for descriptors_max in [256, 1024, 20_000, 1 << 20, u64::MAX] {
                let host = Host { cores, memory_bytes, descriptors_max, ..host() };
                let given = Given { host: Some(host.clone()), ..Given::default() };
                if let Err(faults) = given.load() {
                    panic!("{host:?}: {faults}");
                }
            }
        }
    }
}

#[test]
fn every_range_is_of_a_setting_and_holds_its_default() {
    let defaults = Given {
        sets: &[
            "tools.x.timeout_ms=5000",
            "tools.x.cache_ttl_s=5",
            "tools.x.concurrency_max=5",
            "tools.x.stale_while_revalidate_s=5",
            "tools.x.stale_if_error_s=5",
            "tools.x.cache_error_ttl_s=5",
            "tools.x.waiting_max=5",
            "tools.x.spread=5",
            "cluster.redis=redis://127.0.0.1",
        ],
        ..Given::default()
    };
    let settings = defaults.load().expect("valid").settings();
    for range in RANGES {
        let path = range.path.replace('*', "x");
        assert!(settings.iter().any(|s| s.path == path), "{path}");
        assert!(range.least < range.most, "{path}");
    }
}

#[test]
fn a_tool_that_is_placed_is_somewhere() {
    const REDIS: &str = "cluster.redis=redis://127.0.0.1";
    let load = |sets: &[&str]| Given { sets, ..Given::default() }.load();
    load(&[REDIS, "tools.x.spread=2", "tools.y.roles=[\"search\"]"]).expect("valid");
    load(&["cluster.roles=[\"search\"]"]).expect("what an instance is for need not matter");
    for (sets, wrong) in [
        (&["tools.x.spread=2"][..], "tools.x.spread = 2 (--set): an instance without cluster.redis is alone"),
        (&["tools.x.roles=[\"a\"]"], "cluster.redis"),
        (&[REDIS, "tools.x.spread=0"], "the least is 1"),
        (&[REDIS, "tools.x.roles=[]"], "names no role"),
        (&[REDIS, "tools.x.roles=[\"a b\"]"], "names no role"),
        (&[REDIS, "cluster.forward_listen=nowhere"], "expected an IP address and a port"),
        (&[REDIS, "tools.x.spread=2", "cluster.forward_listen=0.0.0.0:5002"], "set cluster.forward_advertise"),
        (&[REDIS, "cluster.node_key_file=k"], "where no tool is placed"),
    ] {
        let faults = load(sets).expect_err("refused").to_string();
        assert!(faults.contains(wrong), "{sets:?}: {faults}");
    }
    let far = "cluster.forward_advertise=10.0.0.1:5002";
    load(&[REDIS, "tools.x.spread=2", "cluster.forward_listen=0.0.0.0:5002", far]).expect("valid");
}

#[test]
fn a_hundred_thousand_tools_are_read_in_time_right_or_wrong() {
    let tools = |key: &str| (0..100_000).map(|i| format!("[tools.t{i}]\n{key} = 60000\n")).collect::<String>();
    let (right, unknown, related) = (tools("cache_ttl_s"), tools("timeout"), tools("timeout_ms"));
    let started = Instant::now();
    assert_eq!(of_file(&right).load().expect("valid").tuning.tools.len(), 100_000);
    assert!(of_file(&unknown).faults().ends_with("and 99950 more"));
    assert!(of_file(&related).faults().ends_with("and 99950 more"));
    // In a release build about 0.2 s each; what this keeps out is time that grows with the square.
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}

#[test]
fn no_damage_to_a_file_does_more_than_a_fault() {
    let text = FILE.replace("# [tools", "[tools");
    for cut in (0..text.len()).step_by(97).filter(|cut| text.is_char_boundary(*cut)) {
        let (before, after) = text.split_at(cut);
        for damaged in
            [before.to_owned(), after.to_owned(), format!("{before}\u{0}\"[{after}"), format!("{before}=]\n{after}")]
        {
            if let Err(faults) = of_file(&damaged).load() {
                assert!(!faults.to_string().chars().any(|c| c.is_control() && c != '\n'), "{faults}");
            }
        }
    }
}

#[test]
fn secrets_are_not_shown_when_they_are_wrong() {
    let secret = "a-secret-that-nobody-may-see";
    let files = [
        format!("[input]\nstate_keys = \"{secret}\"\n"),
        format!("[input]\nstate_keys = [\"{secret}\n"),
        format!("[input]\nstate_keys = [\n  \"{secret}\n]\n"),
    ];
    let set = format!("input.state_keys={secret}");
    let sets = [set.as_str()];
    let given = files.iter().map(|file| Given { file, ..Given::default() });
    for given in given.chain([Given { sets: &sets, ..Given::default() }]) {
        let told = given.load().expect_err("a fault").to_string();
        assert!(told.contains("t.toml:") || told.contains("input.state_keys=***"), "{told}");
        assert!(!told.contains(secret), "{told}");
    }
}

#[test]
fn a_redis_that_is_not_protected_is_refused_or_warned_of() {
    let load = |sets: &[&str]| Given { sets, ..Given::default() }.load();
    let far = "cluster.redis=redis://192.0.2.1";
    assert!(load(&[far]).expect_err("on another host").to_string().contains("rediss://"));
    let meant = load(&[far, "cluster.allow_unprotected=true"]).expect("when it is meant");
    assert!(meant.warnings().iter().any(|warning| warning.contains("cluster.allow_unprotected")), "and it is said");
    let told = load(&["cluster.redis=redis://:hunter2@h"]).expect_err("a password").to_string();
    assert!(told.contains("cluster.password_file") && !told.contains("hunter2"), "{told}");
    assert!(load(&["cluster.password=hunter2"]).is_err(), "a command line is read by others");
    let slow = load(&["cluster.redis=redis://[::1]", "cluster.connect_timeout_ms=6000"]).expect_err("too slow");
    assert!(slow.to_string().contains("cluster.heartbeat_s = 5"), "{slow}");
}

#[test]
fn a_small_host_starts_with_the_defaults() {
    let small = Host { memory_limit_bytes: Some(256 << 20), ..host() };
    let loaded = |sets: &[&str]| {
        let sets = sets.iter().map(|set| (*set).to_owned()).collect();
        Loaded::from_sources(super::Sources { sets, ..super::Sources::default() }, small.clone())
    };
    let defaults = loaded(&[]).expect("what nobody set is lowered");
    assert_eq!(defaults.tuning.cache.bytes_max.0, 32 << 20);
    assert_eq!(defaults.tuning.sessions.resume_bytes_max.0, 16 << 20);
    assert_eq!(defaults.tuning.sessions.sessions_max, 16 << 10);
    let told = defaults.resolved.derived().iter().find(|derived| derived.path == "cache.bytes_max");
    assert_eq!(told.map(|derived| derived.because), Some("an eighth of the memory, which is less than the default"));
    assert!(loaded(&["cache.bytes_max=255MiB"]).is_err(), "what was set is kept, and refused when it cannot be");
    let large = Loaded::from_sources(super::Sources::default(), host()).expect("the defaults");
    assert_eq!(large.tuning, Tuning::default());
}
