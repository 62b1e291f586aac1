//! What this host can take of a tool: the peak of a closed loop, the highest rate of an open one at which calls are still
//! answered in time, and what a session costs; and the settings that follow.

use std::{fmt::Write, net::TcpStream, ops::RangeInclusive, time::Duration};

use super::{
    Arrivals, Child, Mode, Plan, Progress, Result,
    compare::{Candidate, measure, split},
    is_stopped, probe,
    requests::Target,
    table::{self, Row},
};

/// A closed loop is grown until this much is not gained any more.
const GAIN_MIN: f64 = 1.03;
const CONNECTIONS: [usize; 5] = [4, 16, 64, 256, 1024];
/// Steps of the search for the knee: to about a hundredth of the peak.
const STEPS: u32 = 6;
/// A call that computes for such a part of its time leaves nothing for a second thread on its core.
const COMPUTES_AT: f64 = 0.8;
/// The part of calls that must be answered.
const SUCCESS_MIN: f64 = 0.999;
/// Sessions that are opened to see what one costs.
const SESSIONS: usize = 30_000;
const STOPPED: &str = "stopped before the search had ended: there are no settings";
/// Requests that are always let in: calls that need no pool are among them.
const INSIDE_MIN: usize = 64;
/// Of one session, when the memory that was seen to grow says less.
const SESSION_BYTES_MIN: u64 = 200;
const SESSIONS_MAX: RangeInclusive<u64> = 1000..=10_000_000;
/// The part of the memory that sessions may have.
const SESSIONS_SHARE: u64 = 4;

/// What was found.
#[derive(Clone, Debug)]
pub(crate) struct Capacity {
    pub(crate) tool: String,
    /// Good answers per second at the peak, and per second of the server's CPU time.
    pub(crate) peak_per_s: f64,
    pub(crate) per_cpu_second: f64,
    /// The highest rate at which calls are answered in time.
    pub(crate) knee_per_s: f64,
    /// What "in time" was.
    pub(crate) p99_max: Duration,
    pub(crate) alone_p50: Duration,
    pub(crate) session_bytes: u64,
    pub(crate) memory_bytes: u64,
    /// The server's, of those that are there.
    pub(crate) cores: (usize, usize),
}

/// Finds it, on a server of its own. `p99_max` is what callers bear; without it, ten times what a call takes alone, and
/// at least 5 ms. `rows` gets every stretch of load that is finished, in order, and keeps them when it is stopped.
pub(crate) fn find(
    plan: &Plan,
    server: &Candidate,
    cores: &[usize],
    memory_bytes: u64,
    p99_max: Option<Duration>,
    rows: &mut Vec<Row>,
    progress: Progress<'_>,
) -> Result<Capacity> {
    let (servers, own) = split(cores);
    // Many sessions are opened to see what one costs, all of them by one caller.
    let limits = ["sessions_max", "per_caller_max"].map(|limit| format!("sessions.{limit}={}", 2 * SESSIONS));
    let sets = [&server.sets[..], &limits].concat();
    let child = Child::start(server.tuning.as_deref(), &sets, servers, own)?;
    let plan = Plan { address: child.address, ..plan.clone() };
    probe(&plan)?;
    let session_bytes = session_bytes(&plan, &child)?; // first, while the server's memory is as at its start
    let mut stretch = |plan: &Plan, label: &str| -> Result<Row> {
        let row = measure(plan, label, Some(&child), progress)?;
        if row.is_cut_short() {
            return Err(STOPPED.into());
        }
        rows.push(row.clone());
        Ok(row)
    };
    let alone = stretch(&Plan { connections: 1, threads: 1, rates: Vec::new(), ..plan.clone() }, "1 connection")?;
    if alone.tally.ok == 0 {
        let notes = table::notes(&alone).join(", ");
        return Err(format!("nothing to measure: no call of {} had a good answer: {notes}", plan.tool).into());
    }
    let alone_p50 = Duration::from_nanos(alone.tally.ok_ns.value_at_quantile(0.5));
    let p99_max = p99_max.unwrap_or_else(|| (alone_p50 * 10).max(Duration::from_millis(5)));

    if alone_p50 > p99_max {
        return Err(format!(
            "nothing to find: a call that is alone takes {:.3} ms, and --p99 is {} ms; say a longer one",
            ms(alone_p50),
            ms(p99_max)
        )
        .into());
    }

    let mut peak = alone;
    for connections in CONNECTIONS {
        let label = format!("{connections} connections");
        let row = stretch(&Plan { connections, rates: Vec::new(), ..plan.clone() }, &label)?;
        let gained = row.tally.goodput() / peak.tally.goodput();
        if gained > 1.0 {
            peak = row;
        }
        if gained < GAIN_MIN {
            break;
        }
    }
    let peak_per_s = peak.tally.goodput();

    let (mut good, mut bad) = (0.0, peak_per_s * 1.05);
    for _ in 0..STEPS {
        let rate = f64::midpoint(good, bad);
        let open = Plan { connections: 256, rates: vec![rate], arrivals: Arrivals::Poisson, ..plan.clone() };
        let row = stretch(&open, &format!("rate {rate:.0}"))?;
        let p99 = Duration::from_nanos(row.tally.ok_ns.value_at_quantile(0.99));
        if row.tally.success() >= SUCCESS_MIN && p99 <= p99_max {
            good = rate;
        } else {
            bad = rate;
        }
    }
    if good == 0.0 {
        return Err(format!(
            "no settings: at no rate from {:.0} calls/s on were {} % answered with p99 <= {} ms; say a longer --p99, or \
             look at what else this host does",
            bad,
            SUCCESS_MIN * 100.0,
            ms(p99_max)
        )
        .into());
    }
    Ok(Capacity {
        tool: plan.tool,
        peak_per_s,
        per_cpu_second: peak.per_cpu_second().unwrap_or(0.0),
        knee_per_s: good,
        p99_max,
        alone_p50,
        session_bytes,
        memory_bytes,
        cores: (servers.len(), cores.len()),
    })
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Memory of the server for one session that is open and idle.
fn session_bytes(plan: &Plan, child: &Child) -> Result<u64> {
    let target = Target::new(&Plan { mode: Mode::Sessions, ..plan.clone() });
    let mut stream = TcpStream::connect(plan.address)?;
    stream.set_nodelay(true)?;
    let first = target.open_session(&mut stream)?; // what the first of anything costs is not of the sessions
    let before = child.usage()?.resident_bytes;
    let sessions: Vec<_> = (0..SESSIONS)
        .map(|_| if is_stopped() { Err(STOPPED.into()) } else { target.open_session(&mut stream) })
        .collect::<Result<_>>()?;
    let after = child.usage()?.resident_bytes;
    for session in sessions.iter().chain([&first]) {
        target.close_session(&mut stream, session)?;
    }
    Ok(after.saturating_sub(before) / SESSIONS as u64)
}

impl Capacity {
    /// In words and figures.
    pub(crate) fn summary(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "{} on this host, measured with {}", self.tool, self.share());
        let _ = writeln!(text, "  peak          {:>10.0} calls/s", self.peak_per_s);
        let _ =
            writeln!(text, "  per core      {:>10.0} calls in a second of the server's CPU time", self.per_cpu_second);
        let _ = writeln!(
            text,
            "  knee          {:>10.0} calls/s: at most so many are answered with p99 <= {:.1} ms",
            self.knee_per_s,
            self.p99_max.as_secs_f64() * 1e3
        );
        let _ = writeln!(text, "  alone         {:>10.3} ms, median of one caller", self.alone_p50.as_secs_f64() * 1e3);
        let _ = writeln!(text, "  session       {:>10} bytes, open and idle", self.session_bytes);
        text
    }

    fn share(&self) -> String {
        let (own, all) = self.cores;
        format!("{own} of {all} cores")
    }

    /// The pool's threads, for a tool that computes.
    fn threads(&self) -> String {
        let computes = 1.0 / self.per_cpu_second.max(f64::MIN_POSITIVE) >= COMPUTES_AT * self.alone_p50.as_secs_f64();
        if !computes || self.cores.1 == 0 {
            return String::new();
        }
        let (own, all) = self.cores;
        format!(
            "# One for each core that was measured (of {all}): the tool computes all the time, so that further threads\n\
             # would share the cores, and everybody would wait for longer.\n\
             threads_max = {own}\n"
        )
    }

    /// The settings that follow, as a part of `tuning.toml`.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // positive, and clamped
    pub(crate) fn fragment(&self) -> String {
        let p99_s = self.p99_max.as_secs_f64();
        // Half of the time for the queue, half for those who wait for a place in it and for what comes between.
        let wait_ms = (self.p99_max.as_millis() as u64 / 2).max(1);
        let queue = ((self.peak_per_s * p99_s / 2.0).ceil() as usize).clamp(2, 250_000);
        let inside = (queue * 4).max(INSIDE_MIN);
        let inside_why = match queue * 4 < INSIDE_MIN {
            true => format!("Not fewer than {INSIDE_MIN}; four times what the queue holds would be {}.", queue * 4),
            false => "Four times what the queue holds: more would only wait.".to_owned(),
        };
        let session_bytes = self.session_bytes.max(SESSION_BYTES_MIN);
        let fitting = self.memory_bytes / SESSIONS_SHARE / session_bytes;
        let sessions = fitting.clamp(*SESSIONS_MAX.start(), *SESSIONS_MAX.end());
        let sessions_why = match sessions == fitting {
            true => format!("A quarter of the memory at {session_bytes} bytes each."),
            false => {
                format!("A quarter of the memory at {session_bytes} bytes each would be {fitting}; this is the limit.")
            }
        };
        let (tool, peak, knee) = (&self.tool, self.peak_per_s, self.knee_per_s);
        format!(
            "# What `bigiron bench --capacity --tool {tool}` found here, measured with {}:\n\
             # {peak:.0} calls/s at the peak, {knee:.0} with p99 <= {:.1} ms.\n\
             [limits]\n\
             # {inside_why}\n\
             concurrent_requests_max = {inside}\n\n\
             [pool]\n\
             {}\
             # What is done at the peak in half of the time that callers bear.\n\
             queue_max = {queue}\n\
             # Half of that time: who has to wait for longer is refused.\n\
             queue_wait_ms_max = {wait_ms}\n\
             # And who comes then is told so at once.\n\
             on_full = \"reject\"\n\n\
             [sessions]\n\
             # {sessions_why}\n\
             sessions_max = {sessions}\n\
             # A tenth of them: no single caller takes them all. With one caller, such as a proxy, write sessions_max.\n\
             per_caller_max = {}\n",
            self.share(),
            p99_s * 1e3,
            self.threads(),
            (sessions / 10).max(1)
        )
    }

    pub(crate) fn to_json(&self, rows: &[Row]) -> serde_json::Value {
        serde_json::json!({
            "tool": self.tool,
            "peak_per_s": self.peak_per_s,
            "per_cpu_second": self.per_cpu_second,
            "knee_per_s": self.knee_per_s,
            "p99_max_ms": self.p99_max.as_secs_f64() * 1e3,
            "alone_p50_ms": self.alone_p50.as_secs_f64() * 1e3,
            "session_bytes": self.session_bytes,
            "server_cores": self.cores.0,
            "cores": self.cores.1,
            "rows": rows.iter().map(Row::to_json).collect::<Vec<_>>(),
            "tuning": self.fragment(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Tuning;

    #[test]
    fn the_settings_are_ones_that_a_server_takes() {
        for (peak, p99_ms, session, memory) in
            [(480.0, 20, 210, 8 << 30), (60_000.0, 5, 300, 256 << 20), (3.0, 4000, 0, 1 << 40)]
        {
            let capacity = Capacity {
                tool: "burn".into(),
                peak_per_s: peak,
                per_cpu_second: peak,
                knee_per_s: peak * 0.9,
                p99_max: Duration::from_millis(p99_ms),
                alone_p50: Duration::from_millis(2),
                session_bytes: session,
                memory_bytes: memory,
                cores: (1, 2),
            };
            let fragment = capacity.fragment();
            let tuning: Tuning = toml::from_str(&fragment).unwrap_or_else(|error| panic!("{error}\n{fragment}"));
            let checked = crate::config::Loaded::from_program(tuning, crate::runtime::Host::read(), false);
            assert!(fragment.contains("measured with 1 of 2 cores"), "{fragment}");
            assert_eq!(fragment.contains("# Not fewer than 64"), peak < 6000.0, "{fragment}");
            assert_eq!(fragment.contains("this is the limit"), memory != 256 << 20, "{fragment}");
            assert!(checked.is_ok(), "{fragment}\n{}", checked.err().map(|e| e.to_string()).unwrap_or_default());
        }
    }
}
