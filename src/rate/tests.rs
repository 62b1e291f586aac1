//! The limiter as its users meet it: what passes, for whom, for how long, and with how much memory.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::*;

const SECOND: Duration = Duration::from_secs(1);
/// The fewest that the settings take.
const KEYS_MIN: usize = 1024;

fn rule(text: &str) -> Rule {
    text.parse().expect(text)
}

/// A tool with a rule for all callers and one for each.
fn tool(name: &'static str, for_all: &str, for_each: &str) -> (&'static str, ToolRules) {
    (name, ToolRules { for_all: rule(for_all), for_each: rule(for_each) })
}

fn off() -> Config {
    Config { enabled: true, per_caller: Rule::OFF, per_ip: Rule::OFF, ..Config::default() }
}

fn per_caller(text: &str) -> Config {
    Config { per_caller: rule(text), ..off() }
}

fn limiter(config: &Config) -> (Limiter, Instant) {
    limiter_with(config, [])
}

fn limiter_with<const N: usize>(config: &Config, tools: [(&'static str, ToolRules); N]) -> (Limiter, Instant) {
    let now = Instant::now();
    (Limiter::new(config, tools, now).expect("on"), now)
}

/// One call of a caller, to no tool.
fn call(limiter: &Limiter, caller: &str, now: Instant) -> Decision {
    limiter.decide(&limiter.claims(Who::Caller(caller), None), now)
}

fn passes(decision: Decision) -> bool {
    !matches!(decision, Decision::Refused { .. })
}

#[test]
fn off_is_none_and_the_defaults_are_as_documented() {
    let config = Config::default();
    assert!(Limiter::new(&config, [], Instant::now()).is_none());
    assert_eq!(config.per_caller, Rule::new(60, 60, 60, 60).expect("in range"));
    assert_eq!(config.per_ip, Rule::new(100, 60, 100, 0).expect("in range"));
}

#[test]
fn settings_read_from_a_file_and_wrong_ones_are_told() {
    let config: Config = toml::from_str("enabled = true\nper_caller = \"10 per 1m, burst 20\"").expect("good");
    assert_eq!(config.per_caller, Rule::new(10, 60, 20, 0).expect("in range"));

    let wrong = toml::from_str::<Config>("per_caller = \"10 per minute\"").expect_err("no time").to_string();
    assert!(wrong.contains("\"minute\" is not a time such as 60s, 5m or 1h"), "{wrong}");
    assert!(toml::from_str::<Config>("per_callers = \"off\"").is_err());
}

#[test]
fn the_figures_are_those_of_a_minute_of_sixty() {
    let (limiter, now) = limiter(&per_caller("60 per 60s, burst 60, block 60s"));
    let rule = RuleId::Caller;
    for used in 1..=60 {
        let (remaining, reset_s) = (60 - used, u64::from(used));
        assert_eq!(call(&limiter, "ann", now), Decision::Allowed { rule, limit: 60, remaining, reset_s });
    }
    let refused = Decision::Refused { rule, limit: 60, per_s: 60, retry_after_s: 60, reset_s: 60 };
    assert_eq!(call(&limiter, "ann", now), refused);
    let later = now + Duration::from_millis(30_500);
    let refused = Decision::Refused { rule, limit: 60, per_s: 60, retry_after_s: 30, reset_s: 30 };
    assert_eq!(call(&limiter, "ann", later), refused, "the block lasts, and knocking does not lengthen it");
    assert!(matches!(call(&limiter, "ann", now + 60 * SECOND), Decision::Allowed { remaining: 59, .. }));
}

#[test]
fn without_a_block_the_wait_is_for_the_next_one() {
    let (limiter, now) = limiter(&per_caller("1 per 10s, burst 3"));
    for _ in 0..3 {
        assert!(passes(call(&limiter, "ann", now)));
    }
    let Decision::Refused { limit, retry_after_s, reset_s, .. } = call(&limiter, "ann", now + SECOND) else {
        panic!("a fourth")
    };
    assert_eq!((limit, retry_after_s, reset_s), (1, 9, 29));
    assert!(passes(call(&limiter, "ann", now + 10 * SECOND)));
    assert!(!passes(call(&limiter, "ann", now + 10 * SECOND)));
}

#[test]
fn at_ten_times_the_rate_what_passes_is_the_rate_and_the_burst() {
    for (text, seconds, limit, burst) in
        [("60 per 60s", 600, 600, 60), ("100 per 1s, burst 50", 100, 10_000, 50), ("7 per 3s, burst 1", 3000, 7000, 1)]
    {
        let (limiter, began) = limiter(&per_caller(text));
        let calls = limit * 10;
        let (mut passed, mut of_others) = (0, 0);
        for i in 0..calls {
            let now = began + Duration::from_secs(seconds).mul_f64(f64::from(i) / f64::from(calls));
            passed += i32::from(passes(call(&limiter, "loud", now)));
            if i % 20 == 0 {
                of_others += i32::from(passes(call(&limiter, "quiet", now)));
            }
        }
        let expected = limit + burst;
        assert!((passed - expected).abs() * 100 <= expected, "{text}: {passed} passed, of {expected}");
        assert_eq!(of_others, calls / 20, "{text}: who keeps to half the rate notices nothing");
    }
}

#[test]
fn with_a_block_a_loud_caller_gets_a_burst_for_each_block() {
    let (limiter, began) = limiter(&per_caller("60 per 60s, burst 60, block 60s"));
    let passed = (0..6000u32).filter(|i| passes(call(&limiter, "loud", began + SECOND / 10 * *i))).count();
    // Ten calls a second for ten minutes: about 66 pass in 6.6 s, then none for 60 s, nine times and a part.
    assert!((590..=670).contains(&passed), "{passed}");
}

#[test]
fn each_kind_of_caller_has_its_rule() {
    let config = Config { per_caller: rule("1 per 60s"), per_ip: rule("2 per 60s"), ..off() };
    let (limiter, now) = limiter(&config);
    let of = |who| limiter.decide(&limiter.claims(who, None), now);
    let address = |text: &str| Who::Address(text.parse().expect(text));
    assert!(matches!(of(Who::Caller("ann")), Decision::Allowed { rule: RuleId::Caller, limit: 1, .. }));
    assert!(!passes(of(Who::Caller("ann"))));
    assert!(passes(of(Who::Caller("bob"))));
    assert!(matches!(of(address("192.0.2.1")), Decision::Allowed { rule: RuleId::Address, limit: 2, .. }));
    assert!(passes(of(address("::ffff:192.0.2.1"))), "the same address");
    assert!(!passes(of(address("192.0.2.1"))));
    assert!(passes(of(address("2001:db8::1"))));
    assert!(passes(of(address("2001:db8::2"))));
    assert!(!passes(of(address("2001:db8::3"))), "one /64");
    assert!(passes(of(address("2001:db8:0:1::1"))));
}

#[test]
fn rules_of_tools_are_for_all_or_for_each() {
    let tools = [tool("shared", "3 per 60s", "off"), tool("free", "off", "off"), tool("own", "off", "1 per 60s")];
    let (limiter, now) = limiter_with(&per_caller("100 per 60s"), tools);
    let of = |who, tool| limiter.decide(&limiter.claims(Who::Caller(who), Some(tool)), now);
    assert!(passes(of("ann", "shared")) && passes(of("bob", "shared")));
    assert!(matches!(of("ann", "shared"), Decision::Allowed { rule: RuleId::Tool, remaining: 0, .. }));
    assert!(matches!(of("eve", "shared"), Decision::Refused { rule: RuleId::Tool, limit: 3, .. }));
    assert!(passes(of("ann", "own")) && passes(of("bob", "own")));
    assert!(matches!(of("ann", "own"), Decision::Refused { rule: RuleId::ToolAndCaller, .. }));
    assert!(matches!(of("ann", "free"), Decision::Allowed { rule: RuleId::Caller, .. }), "an off rule is none");
    let claims = limiter.tool_claims(Who::Caller("ann"), "free");
    assert_eq!(limiter.decide(&claims, now), Decision::Free);
    // What only the body names is the same rule as what a header names.
    let claims = limiter.tool_claims(Who::Caller("eve"), "shared");
    assert!(matches!(limiter.decide(&claims, now), Decision::Refused { rule: RuleId::Tool, .. }));
}

#[test]
fn when_one_rule_refuses_no_rule_is_charged() {
    let tools = [tool("echo", "1 per 1h, block 2h", "5 per 1h")];
    let (limiter, now) = limiter_with(&per_caller("10 per 1h"), tools);
    let claims = limiter.claims(Who::Caller("ann"), Some("echo"));
    assert!(passes(limiter.decide(&claims, now)));
    for _ in 0..100 {
        let refused = limiter.decide(&claims, now);
        assert!(matches!(refused, Decision::Refused { rule: RuleId::Tool, retry_after_s: 7200, .. }), "{refused:?}");
    }
    // One call has been charged to the caller, and no more.
    assert!(matches!(call(&limiter, "ann", now), Decision::Allowed { remaining: 8, .. }));
}

#[test]
fn other_rules_keep_what_is_remembered() {
    let (limiter, now) = limiter(&per_caller("2 per 10s"));
    assert!(passes(call(&limiter, "ann", now)) && passes(call(&limiter, "ann", now)));
    let wider = limiter.reconfigured(&per_caller("4 per 10s"), []).expect("on");
    assert!(matches!(call(&wider, "bob", now), Decision::Allowed { limit: 4, remaining: 3, .. }));
    assert!(!passes(call(&wider, "ann", now)), "two of two are ten seconds, which is all of four");
    assert!(passes(call(&wider, "ann", now + 3 * SECOND)));
    assert!(limiter.reconfigured(&Config::default(), []).is_none());
}

#[test]
fn a_clock_that_goes_back_is_no_panic_and_no_gift() {
    let (limiter, now) = limiter(&per_caller("1 per 10s"));
    assert!(passes(call(&limiter, "ann", now + 5 * SECOND)));
    assert!(!passes(call(&limiter, "ann", now)));
    assert!(!passes(call(&limiter, "ann", now - SECOND)));
}

#[test]
fn a_million_addresses_are_bounded_and_free_nobody() {
    let config = Config {
        per_caller: rule("10 per 60s, block 1h"),
        per_ip: rule("10 per 60s"),
        keys_max: 20_000, // a million keys for ten thousand places: half of them are for callers
        ..off()
    };
    let (limiter, now) = limiter(&config);
    let of = |address: u128, now| {
        let address = IpAddr::V6(Ipv6Addr::from_bits((0x2001_0db8 << 96) | (address << 64) | 1));
        limiter.decide(&limiter.claims(Who::Address(address), None), now)
    };
    let (hot, known) = (u128::from(u32::MAX), u128::from(u32::MAX) - 1);
    for _ in 0..10 {
        assert!(passes(of(hot, now)) && passes(call(&limiter, "blocked", now)));
    }
    assert!(!passes(of(hot, now)) && !passes(call(&limiter, "blocked", now)));
    assert!(passes(of(known, now)));
    let passed = (0..1_000_000).filter(|&i| passes(of(i, now))).count();
    // Each that has a place passes, and of all others a burst for each part of the map.
    assert!((9_000..=10_000 + 64 * 10).contains(&passed), "{passed}");
    assert!((9_000..=10_001).contains(&limiter.keys()), "{}", limiter.keys());
    assert_eq!(limiter.unremembered(), 64 * 10);
    assert!(!passes(of(hot, now)), "limited, not blocked, and still remembered");
    assert!(!passes(call(&limiter, "blocked", now)) && passes(call(&limiter, "new", now)));
    assert!(!passes(call(&limiter, "blocked", now + 3599 * SECOND)));
    assert!(matches!(of(known, now), Decision::Allowed { remaining: 8, .. }), "who is known notices nothing");
    // Later all of them have their burst again, and make room.
    let later = now + 60 * SECOND;
    for newcomer in 1_000_000..1_005_000 {
        assert!(matches!(of(newcomer, later), Decision::Allowed { remaining: 9, .. }), "a place of its own");
    }
    assert_eq!(limiter.unremembered(), 64 * 10);
}

#[test]
fn addresses_drive_out_no_caller_and_no_tool() {
    // What addresses use up takes the longest to come back, so that of all keys theirs would be kept.
    let config = Config { per_caller: rule("2 per 60s"), per_ip: rule("2 per 1h"), keys_max: KEYS_MIN, ..off() };
    let (limiter, now) = limiter_with(&config, [tool("dear", "2 per 60s", "1 per 1h")]);
    let of = |who, tool| limiter.decide(&limiter.claims(who, tool), now);
    for caller in ["ann", "bob"] {
        assert!(passes(of(Who::Caller(caller), Some("dear"))) && passes(of(Who::Caller(caller), None)));
    }
    for i in 0..100_000 {
        let _ = of(Who::Address(Ipv4Addr::from_bits(0x0a00_0000 + i).into()), Some("dear"));
        let _ = of(Who::Address(Ipv4Addr::from_bits(0x0a00_0000 + i).into()), None);
    }
    for caller in ["ann", "bob"] {
        assert!(matches!(of(Who::Caller(caller), None), Decision::Refused { rule: RuleId::Caller, .. }), "{caller}");
    }
    let claims = limiter.tool_claims(Who::Caller("eve"), "dear");
    assert!(matches!(limiter.decide(&claims, now), Decision::Refused { rule: RuleId::Tool, .. }));
    // Nor do they take the room of those who come new.
    let newcomers = (0..200).map(|i| call(&limiter, &format!("new {i}"), now));
    assert!(newcomers.into_iter().all(|decision| matches!(decision, Decision::Allowed { remaining: 1, .. })));
}

#[test]
fn where_no_place_can_be_had_newcomers_share_one_limit() {
    let config = Config { per_caller: rule("2 per 60s, block 1h"), keys_max: KEYS_MIN, ..off() };
    let (limiter, now) = limiter_with(&config, [tool("own", "off", "1 per 2h"), tool("other", "off", "3 per 60s")]);
    let name = |i: usize| format!("caller {i}");
    for i in 0..KEYS_MIN * 4 {
        for _ in 0..3 {
            call(&limiter, &name(i), now);
        }
    }
    assert_eq!(limiter.keys(), KEYS_MIN / 2, "enough keys that every part is full");
    assert_eq!(limiter.unremembered(), 64 * 2, "a burst for each part, and no more");
    assert!((0..10_000).all(|i| !passes(call(&limiter, &format!("new {i}"), now))), "what newcomers share is used up");
    let of = |i: usize, tool, now| limiter.decide(&limiter.tool_claims(Who::Caller(&name(i)), tool), now);
    let passed = |tool| (0..10_000).filter(|&i| passes(of(i, tool, now))).count();
    assert_eq!(passed("own"), 64, "under each rule they share another");
    assert_eq!(passed("other"), 64 * 3);
    // Nobody who has no place is blocked for what others did.
    let later = now + 61 * SECOND;
    assert!(passes(call(&limiter, "new", later)) && passes(call(&limiter, "new", later)));
    let held = (0..KEYS_MIN * 4).filter(|&i| !passes(call(&limiter, &name(i), later))).count();
    assert!(held >= KEYS_MIN / 2, "each that was blocked still is: {held}");
    let later = now + 3600 * SECOND;
    assert!(passes(call(&limiter, "newer", later)) && passes(call(&limiter, "newer", later)));
    assert!(matches!(call(&limiter, "newer", later), Decision::Refused { retry_after_s: 3600, .. }), "a place again");
}

#[test]
fn two_newcomers_of_one_call_do_not_take_one_place() {
    let config = Config { per_caller: rule("1000 per 1h"), keys_max: KEYS_MIN, ..off() };
    // In each of them some call has its two keys in one part, with one place left.
    for _ in 0..20 {
        let (limiter, now) = limiter_with(&config, [tool("own", "off", "1000 per 1h")]);
        for i in 0..KEYS_MIN {
            let name = format!("caller {i}");
            assert!(passes(limiter.decide(&limiter.claims(Who::Caller(&name), Some("own")), now)));
        }
        assert!(limiter.keys() <= KEYS_MIN / 2, "{}", limiter.keys());
    }
}

#[test]
fn eight_threads_get_what_one_would() {
    let tools = [tool("a", "2200 per 1h", "550 per 1h"), tool("b", "2200 per 1h", "550 per 1h")];
    let (limiter, now) = limiter_with(&per_caller("1000 per 1h"), tools);
    let (passed, start) = (AtomicUsize::new(0), Barrier::new(8));
    thread::scope(|scope| {
        for thread in 0..8 {
            let (limiter, passed, start) = (&limiter, &passed, &start);
            scope.spawn(move || {
                start.wait();
                for i in 0..2000 {
                    // Four callers, two tools, in orders that differ from thread to thread.
                    let caller = ["ann", "bob", "eve", "zoe"][(i * 3 + thread) % 4];
                    let tool = ["a", "b"][(i / 4 + thread) % 2];
                    let claims = limiter.claims(Who::Caller(caller), Some(tool));
                    passed.fetch_add(usize::from(passes(limiter.decide(&claims, now))), Ordering::Relaxed);
                }
            });
        }
    });
    // 2000 for each caller and tool were asked for; each caller's own limit is what stops it.
    assert_eq!(passed.into_inner(), 4 * 1000);
    for caller in ["ann", "bob", "eve", "zoe"] {
        assert!(!passes(call(&limiter, caller, now)));
    }
    // Each that passed has been charged to its tool, and each that was refused has not.
    let more = |tool: &str| {
        let mut callers = (0..1000).map(|i| format!("new {i}"));
        callers
            .by_ref()
            .take_while(|who| passes(limiter.decide(&limiter.claims(Who::Caller(who), Some(tool)), now)))
            .count()
    };
    assert_eq!(more("a") + more("b"), 2 * 2200 - 4000);
}
