//! More load than there is room for: of one tool, over many connections, for a time, and by one caller of two.

use std::{thread, time::Duration};

use crate::{
    BURN, Result,
    caller::{Caller, Way, drive, echo},
    floor,
    lab::{Lab, Row, Server},
    verdict,
};

/// Connections of calls of microseconds; the first are what the others are compared with.
const CONNECTIONS: [usize; 3] = [256, 1000, 5000];

/// Rates as `bigiron bench` takes them.
fn rates(peak: f64, factors: &[f64]) -> String {
    factors.iter().map(|factor| format!("{:.1}", peak * factor)).collect::<Vec<_>>().join(",")
}

/// A tool of 2 ms at the peak and far beyond it, with each policy.
pub(crate) fn overload(lab: &Lab) -> Result<()> {
    let (peak, _, tuning) = lab.capacity()?;
    let tuning = tuning.to_str().ok_or("a path that is no text")?;
    for policy in ["reject", "wait", "caller-runs"] {
        println!("\npool.on_full = \"{policy}\", 1000 connections, open loop");
        let (set, rates) = (format!("pool.on_full=\"{policy}\""), rates(peak, &[0.8, 1.0, 2.0, 5.0, 10.0]));
        let load = ["--tuning", tuning, "--set", &set, "--connections", "1000", "--rate", &rates];
        let rows = lab.rows(&[&BURN[..], &load].concat())?;
        let [calm, full, overloaded @ ..] = &rows[..] else { return Err("rows are missing".into()) };
        // What this policy does to latencies is shown and not judged: it lets clients wait, and runs calls meanwhile.
        let is_judged = policy != "caller-runs";
        for ((row, times), least) in overloaded.iter().zip([2, 5, 10]).zip([0.97, 0.95, 0.90]) {
            let share = row.number("goodput_per_s") / peak;
            let ratio = row.p99_ms() / calm.p99_ms();
            if !is_judged {
                println!("         at {times} times: goodput {share:.3} of the peak, p99 {ratio:.2} x that at 80 %");
                continue;
            }
            verdict(&format!("goodput at {times} times >= {least} of the peak"), share >= least, format!("{share:.3}"));
            let what = format!("p99 of admitted calls at {times} times <= 2 x that at 80 % ({:.1} ms)", calm.p99_ms());
            verdict(&what, ratio <= 2.0, format!("{:.1} ms, {ratio:.2} x", row.p99_ms()));
            if row.refusals() > 0.0 {
                let p99 = row.number("refused_us.p99") / 1e3;
                verdict(
                    &format!("refusals at {times} times answer in 5 ms at p99"),
                    p99 <= 5.0,
                    format!("{p99:.2} ms"),
                );
            }
        }
        // What the server spends besides good answers, by refusal.
        let per_good = full.number("server_cpu_s") / full.number("ok");
        if let Some(row) = overloaded.last().filter(|row| row.refusals() > 0.0) {
            let cost = (row.number("server_cpu_s") - row.number("ok") * per_good) / row.refusals() * 1e6;
            println!("         a refusal costs the server about {cost:.0} us of CPU time");
        }
    }
    Ok(())
}

/// Calls of microseconds over more and more connections, and what of a loss the host's kernel has alone.
pub(crate) fn short_calls(lab: &Lab) -> Result<()> {
    let rows = lab.rows(&["--connections", &CONNECTIONS.map(|count| count.to_string()).join(",")])?;
    let first = rows.first().map_or(f64::NAN, |row| row.number("goodput_per_s"));
    for row in &rows[1..] {
        let share = row.number("goodput_per_s") / first;
        let label = row.0["label"].as_str().unwrap_or_default();
        verdict(&format!("throughput with {label} >= 0.90 of that with 256"), share >= 0.90, format!("{share:.3}"));
    }
    let server = lab.serve(None, &[])?;
    let mut caller = Caller::new(Way::to(&server), echo(None));
    caller.call()?;
    let floor = floor::start(lab, &caller)?;
    println!("\ncalls in a second of the server's CPU time, and of those with {}:", CONNECTIONS[0]);
    println!("{:<17}{:>16}{:>32}", "", "bigiron", "only reading and answering");
    let mut firsts = None;
    for count in CONNECTIONS {
        let (own, bare) = (per_cpu_s(lab, &server, count)?, per_cpu_s(lab, &floor, count)?);
        let (own_first, bare_first) = *firsts.get_or_insert((own, bare));
        let (own_share, bare_share) = (own / own_first, bare / bare_first);
        println!("{count:>4} connections {own:>9.0} {own_share:>6.3}{bare:>25.0} {bare_share:>6.3}");
    }
    Ok(())
}

/// Calls over so many connections, by a load that costs less than the server.
fn per_cpu_s(lab: &Lab, server: &Server, connections: usize) -> Result<f64> {
    let mut callers: Vec<_> = (0..connections).map(|_| Caller::new(Way::to(server), echo(None))).collect();
    let warm_up = Duration::from_secs(1);
    drive(lab, server, &mut callers, warm_up, 200)?;
    Ok(drive(lab, server, &mut callers, Duration::from_secs(lab.seconds), 200)?.per_cpu_s())
}

/// Ten times the load with clients that try again at once, and back.
pub(crate) fn metastability(lab: &Lab) -> Result<()> {
    let (peak, _, tuning) = lab.capacity()?;
    let tuning = tuning.to_str().ok_or("a path that is no text")?;
    // Second by second, over the same connections and without a pause.
    let seconds = usize::try_from(lab.seconds)?;
    let factors = [vec![0.8; seconds], vec![8.0; seconds], vec![0.8; seconds + 1]].concat();
    let rates = rates(peak, &factors);
    let load = ["--tuning", tuning, "--connections", "1000", "--retries", "3", "--warmup", "1s", "--rate", &rates];
    let load = [&BURN[..], &load, &["--continuous", "--duration", "1s"]].concat();
    let rows = lab.rows(&load)?;
    if rows.len() != factors.len() {
        return Err("rows are missing".into());
    }
    let (before, after) = (&rows[..seconds], &rows[2 * seconds + 1..]);
    let mean = |rows: &[Row], of: fn(&Row) -> f64| rows.iter().map(of).sum::<f64>() / rows.len() as f64;
    let success: fn(&Row) -> f64 = |row| row.number("success");
    let (was, is) = (mean(before, success), mean(after, success));
    verdict(
        "success from 1 s after the overload on >= 0.99 of before",
        is >= 0.99 * was,
        format!("{is:.3} of {was:.3}"),
    );
    let (was, is) = (mean(before, Row::p99_ms), mean(after, Row::p99_ms));
    let figure = format!("{:.2} x ({is:.1} ms, before {was:.1} ms)", is / was);
    verdict("p99 from 1 s after on <= 1.5 x that before, mean over seconds", is <= 1.5 * was, figure);
    Ok(())
}

/// One caller at ten times its share, another at a fifth of its own.
pub(crate) fn fairness(lab: &Lab) -> Result<()> {
    let (peak, _, tuning) = lab.capacity()?;
    let share = peak / 2.0;
    let server = lab.serve(Some(&tuning), &[])?;
    let url = format!("http://{}/mcp", server.address);
    let greedy = format!("{:.1}", share * 10.0);
    let modest = format!("{:.1}", share * 0.2);
    let of = |from: &'static str, rate: &str, connections: &str, seconds: u64| -> Vec<String> {
        let seconds = format!("{seconds}s");
        let args =
            ["--url", &url, "--from", from, "--rate", rate, "--connections", connections, "--duration", &seconds];
        BURN.iter().chain(&args).map(|arg| (*arg).to_owned()).collect()
    };
    let run =
        |args: Vec<String>| lab.rows(&args.iter().map(String::as_str).collect::<Vec<_>>()).map_err(|e| e.to_string());
    let alone = run(of("127.0.0.2", &modest, "16", lab.seconds))?.remove(0);
    let beside = thread::scope(|scope| {
        let other = scope.spawn(|| run(of("127.0.0.1", &greedy, "1000", lab.seconds + 6)));
        thread::sleep(Duration::from_secs(3));
        let beside = run(of("127.0.0.2", &modest, "16", lab.seconds));
        let other = other.join().map_err(|_| "the other load panicked".to_owned())?;
        other.and(beside)
    })?
    .remove(0);
    let success = beside.number("success");
    verdict("success of the modest caller >= 99.9 %", success >= 0.999, format!("{:.2} %", success * 100.0));
    let ratio = beside.p99_ms() / alone.p99_ms();
    let figure = format!("{ratio:.2} x ({:.1} ms, alone {:.1} ms)", beside.p99_ms(), alone.p99_ms());
    verdict("its p99 <= 2 x its p99 alone", ratio <= 2.0, figure);
    Ok(())
}
