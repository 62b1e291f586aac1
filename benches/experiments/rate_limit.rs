//! One caller far over its rate: what passes, what a refusal costs, and who else notices.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use crate::{
    Result,
    caller::{Caller, Way, drive, echo, pace},
    floor,
    issuer::Issuer,
    lab::{Lab, Server},
    median, verdict,
};

const PER_S: f64 = 100.0;
const BURST: f64 = 100.0;
const TIMES: f64 = 10.0;
/// What passes may differ so much from the limit and the burst.
const OFF_MAX: f64 = 0.01;
const MODEST_PER_S: f64 = 50.0;
const COST_MAX: f64 = 0.5;
const CONNECTIONS: usize = 64;
const PAIRS: usize = 7;
/// Stretches with a greedy caller.
const ROUNDS: usize = 3;
const P99_TIMES_MAX: f64 = 1.5;
/// For an answer to a request whose body never comes. The server itself waits for one 30 s long.
const AT_ONCE_MS: f64 = 50.0;
const HEADS: usize = 100;

pub(crate) fn rate_limit(lab: &Lab) -> Result<()> {
    let issuer = Issuer::new("ec")?;
    let identity = issuer.settings_with_file(&lab.folder)?;
    let limited = |rate: &str| {
        let mut settings = identity.clone();
        settings.extend(["rate_limit.enabled=true".to_owned(), format!("rate_limit.per_caller={rate}")]);
        lab.serve(None, &settings.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let one = limited(&format!("{PER_S} per 1s, burst {BURST}, block 0s"))?;
    passes(lab, &issuer, &one)?;
    let never = limited("1 per 24h, burst 1, block 0s")?;
    let always = limited("1000000 per 1s, burst 1000000, block 0s")?;
    costs(lab, &issuer, &never, &always)?;
    reads_no_body(lab, &issuer, &never)
}

/// A greedy caller and a modest one beside it, which was alone before.
fn passes(lab: &Lab, issuer: &Issuer, server: &Server) -> Result<()> {
    let time = Duration::from_secs(lab.seconds * 2);
    let mut modest = Caller::new(Way::to(server), echo(Some(&issuer.token("modest")?)));
    lab.on_load_cores(|| pace(&mut modest, MODEST_PER_S, Duration::from_secs(1)))?; // the warm-up
    let (mut off_most, mut slowest, mut success, mut times): (f64, f64, f64, _) = (0.0, TIMES, 1.0, Vec::new());
    let (mut others, mut p99s_ms) = (0, Vec::new());
    for round in 0..ROUNDS {
        // A new one each time, with its whole burst.
        let mut greedy = Caller::new(Way::to(server), echo(Some(&issuer.token(&format!("greedy-{round}"))?)));
        let (alone, beside, asked) = lab.on_load_cores(|| {
            let alone = pace(&mut modest, MODEST_PER_S, time)?;
            thread::scope(|scope| {
                let other = scope.spawn(|| pace(&mut greedy, PER_S * TIMES, time));
                let beside = pace(&mut modest, MODEST_PER_S, time)?;
                Ok((alone, beside, other.join().map_err(|_| "a load panicked")??))
            })
        })?;
        let (sent, passed) = (asked.statuses.values().sum::<u64>(), asked.of(200));
        let sent_times = sent as f64 / asked.elapsed_s / PER_S;
        let allowed = BURST + PER_S * asked.elapsed_s;
        let off = passed as f64 / allowed - 1.0;
        println!(
            "{sent_times:.2} times its rate for {:.2} s: {sent} sent, {passed} passed of {allowed:.0} allowed, {:+.2} %; \
             the other's p99 {:.3} ms, alone {:.3} ms",
            asked.elapsed_s,
            off * 100.0,
            beside.p99_ms(),
            alone.p99_ms()
        );
        off_most = if off.abs() > off_most.abs() { off } else { off_most };
        slowest = slowest.min(sent_times);
        success = success.min(beside.success());
        others += sent - passed - asked.of(429);
        times.push(beside.p99_ms() / alone.p99_ms());
        p99s_ms.push(beside.p99_ms());
    }
    let figure = format!("{:+.2} % at most", off_most * 100.0);
    verdict("what passes is within 1 % of limit and burst", off_most.abs() <= OFF_MAX, figure);
    verdict("everything else is answered 429", others == 0, format!("{others} otherwise"));
    verdict("it did send at 10 times its rate", slowest >= TIMES * 0.98, format!("{slowest:.2} times"));
    verdict("all calls of the other caller succeed", success >= 1.0, format!("{:.2} %", success * 100.0));
    let times = median(times);
    let figure = format!("{times:.2} times ({:.3} ms), median of {ROUNDS} pairs", median(p99s_ms));
    verdict(&format!("its p99 <= {P99_TIMES_MAX} times that alone"), times <= P99_TIMES_MAX, figure);
    Ok(())
}

/// CPU time of a refusal and of an echo call, with the same settings but for the rate.
fn costs(lab: &Lab, issuer: &Issuer, never: &Server, always: &Server) -> Result<()> {
    let tokens = (0..CONNECTIONS).map(|n| issuer.token(&format!("caller-{n}"))).collect::<Result<Vec<_>>>()?;
    let callers = |server: &Server| -> Vec<Caller> {
        tokens.iter().map(|token| Caller::new(Way::to(server), echo(Some(token)))).collect()
    };
    let (mut refused, mut answered) = (callers(never), callers(always));
    for caller in &mut refused {
        caller.call()?; // the one that passes
    }
    let refusal = refused.first_mut().ok_or("no callers")?;
    refusal.call()?;
    let floor = floor::start(lab, refusal)?;
    let mut bare = callers(&floor);
    let time = Duration::from_secs(lab.seconds);
    let (mut ratios, mut refusal_us, mut call_us, mut floor_us) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..=PAIRS {
        let call = 1e6 / drive(lab, always, &mut answered, time, 200)?.per_cpu_s();
        let refusal = 1e6 / drive(lab, never, &mut refused, time, 429)?.per_cpu_s();
        let floor = 1e6 / drive(lab, &floor, &mut bare, time, 429)?.per_cpu_s();
        // The first is the warm-up.
        if round > 0 {
            ratios.push(refusal / call);
            call_us.push(call);
            refusal_us.push(refusal);
            floor_us.push(floor);
        }
    }
    let ratio = median(ratios);
    let (refusal, call) = (median(refusal_us), median(call_us));
    let figure = format!("{ratio:.3} ({refusal:.2} us of {call:.2} us, medians of {PAIRS} pairs)");
    verdict(&format!("a refusal costs <= {COST_MAX} of an echo call's CPU time"), ratio <= COST_MAX, figure);
    println!("         a server that only reads and sends these bytes takes {:.2} us", median(floor_us));
    Ok(())
}

/// A head that promises a mebibyte, and nothing behind it.
fn reads_no_body(lab: &Lab, issuer: &Issuer, server: &Server) -> Result<()> {
    let token = issuer.token("caller-0")?; // whose only call is used up
    let whole = String::from_utf8(echo(Some(&token)))?;
    let (head, _) = whole.split_once("\r\n\r\n").ok_or("a request without a head")?;
    let kept = head.lines().filter(|line| !line.starts_with("Content-Length:")).collect::<Vec<_>>().join("\r\n");
    let head = format!("{kept}\r\nContent-Length: 1048576\r\n\r\n");
    let mut times =
        lab.on_load_cores(|| (0..HEADS).map(|_| refused_in_ms(server, &head)).collect::<Result<Vec<_>>>())?;
    times.sort_by(f64::total_cmp);
    let (middle, last) = (times[HEADS / 2], times[HEADS - 1]);
    let figure = format!("median {middle:.2} ms, the longest of {HEADS} {last:.2} ms");
    verdict("429 comes at once, without a byte of a body of 1 MiB", last <= AT_ONCE_MS, figure);
    Ok(())
}

fn refused_in_ms(server: &Server, head: &str) -> Result<f64> {
    let mut stream = TcpStream::connect(server.address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let began = Instant::now();
    stream.write_all(head.as_bytes())?;
    let mut status = [0; 12];
    stream.read_exact(&mut status).map_err(|error| match error.kind() {
        ErrorKind::WouldBlock => "no answer within 5 s to a head without its body".to_owned(),
        _ => error.to_string(),
    })?;
    let elapsed_ms = began.elapsed().as_secs_f64() * 1e3;
    if &status != b"HTTP/1.1 429" {
        return Err(format!("expected 429, got {}", String::from_utf8_lossy(&status)).into());
    }
    Ok(elapsed_ms)
}
