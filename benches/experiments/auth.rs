//! What it costs to know who calls, and to count how often.

use std::time::Duration;

use crate::{
    Result,
    caller::{Caller, Driven, Way, drive, echo},
    issuer::Issuer,
    lab::{Lab, Server},
    median, verdict,
};

const CALLERS: usize = 64;
const SHARE_MIN: f64 = 0.85;
/// Pairs of stretches, at least five.
const PAIRS: usize = 7;
/// More than any load here, so that all is counted and nothing refused.
const RATE: [&str; 3] = [
    "rate_limit.enabled=true",
    "rate_limit.per_caller=1000000 per 1s, burst 1000000",
    "rate_limit.per_ip=1000000 per 1s, burst 1000000",
];

/// One way to be served, and its connections.
struct Side {
    name: &'static str,
    server: Server,
    callers: Vec<Caller>,
    driven: Vec<Driven>,
}

/// The inline echo call with tokens and rate limits, against the same without either.
pub(crate) fn auth(lab: &Lab) -> Result<()> {
    let issuer = Issuer::new("ec")?;
    let tokens = (0..CALLERS).map(|n| issuer.token(&format!("caller-{n}"))).collect::<Result<Vec<_>>>()?;
    let identity = issuer.settings_with_file(&lab.folder)?;
    let identity: Vec<&str> = identity.iter().map(String::as_str).collect();
    let forgetful = [&identity[..], &["auth.tokens_remembered_max=0"]].concat();
    let both = [&identity[..], &RATE].concat();
    let mut sides = Vec::new();
    let all: [(&'static str, &[&str], bool); 5] = [
        ("neither", &[], false),
        ("tokens and rate limits", &both, true),
        ("rate limits alone", &RATE, false),
        ("tokens alone", &identity, true),
        ("tokens, none remembered", &forgetful, true),
    ];
    for (name, settings, has_tokens) in all {
        let server = lab.serve(None, settings)?;
        let token = |n: usize| has_tokens.then(|| tokens[n].as_str());
        let callers = (0..CALLERS).map(|n| Caller::new(Way::to(&server), echo(token(n)))).collect();
        sides.push(Side { name, server, callers, driven: Vec::new() });
    }
    println!("echo, HTTP/1.1, {CALLERS} connections with a caller each, {PAIRS} stretches of each in turn");
    for round in 0..=PAIRS {
        for side in &mut sides {
            let driven = drive(lab, &side.server, &mut side.callers, Duration::from_secs(lab.seconds), 200)?;
            // The first is the warm-up.
            if round > 0 {
                side.driven.push(driven);
            }
        }
    }
    let plain = sides[0].driven.clone();
    let share_of = |side: &Side, of: fn(Driven) -> f64| {
        median(side.driven.iter().zip(&plain).map(|(driven, plain)| of(*driven) / of(*plain)).collect())
    };
    println!("{:26} {:>10} {:>16} {:>8} {:>18}", "", "calls/s", "calls/CPU-second", "share", "share by calls/s");
    for side in &sides {
        println!(
            "{:26} {:>10.0} {:>16.0} {:>8.3} {:>18.3}",
            side.name,
            median(side.driven.iter().map(|driven| driven.per_s()).collect()),
            median(side.driven.iter().map(|driven| driven.per_cpu_s()).collect()),
            share_of(side, Driven::per_cpu_s),
            share_of(side, Driven::per_s),
        );
    }
    let share = share_of(&sides[1], Driven::per_cpu_s);
    let what = format!("calls per CPU-second with tokens and rate limits >= {SHARE_MIN} of those without");
    verdict(&what, share >= SHARE_MIN, format!("{share:.3}, median of {PAIRS} pairs"));
    Ok(())
}
