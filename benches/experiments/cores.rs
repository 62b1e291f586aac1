//! What a core does of calls of microseconds where one server has 1, 2, 4 ... of them: `echo` with an I/O thread on each.
//!
//! The load has as many cores of its own, and in the last step, where the server has all, the same ones: there the calls
//! in a second of the server's CPU time still say what its threads cost each other, and a bit more.

use std::time::Duration;

use crate::{
    Result,
    caller::{Caller, Way, drive, echo},
    lab::Lab,
    median, verdict,
};

const CONNECTIONS_PER_CORE: usize = 32;
const ROUNDS: usize = 5;
const SHARE_MIN: f64 = 0.9;

pub(crate) fn cores(lab: &Lab) -> Result<()> {
    let all = lab.all_cores();
    let steps = steps(all.len());
    println!("{:<15}{:>6}{:>12}{:>18}{:>14}", "flavor", "cores", "calls/s", "calls/CPU-second", "of one core's");
    for flavor in ["multi_thread", "current_thread"] {
        let mut found: Vec<(Vec<f64>, Vec<f64>)> = vec![Default::default(); steps.len()];
        // In turn, so that a change of the host's mood meets all of them.
        for _ in 0..ROUNDS {
            for (&count, (per_s, per_cpu_s)) in steps.iter().zip(&mut found) {
                let (one, other) = calls(lab, flavor, &all, count)?;
                per_s.push(one);
                per_cpu_s.push(other);
            }
        }
        let mut first = None;
        for (count, (per_s, per_cpu_s)) in steps.iter().zip(found) {
            let (per_s, per_cpu_s) = (median(per_s), median(per_cpu_s));
            let share = per_cpu_s / *first.get_or_insert(per_cpu_s);
            let shared = if is_shared(*count, all.len()) { "  the load on the same cores" } else { "" };
            println!("{flavor:<15}{count:>6}{per_s:>12.0}{per_cpu_s:>18.0}{share:>14.3}{shared}");
            if *count > 1 {
                let what = format!("{flavor}, {count} cores: calls of a core >= {SHARE_MIN} of one core's");
                verdict(&what, share >= SHARE_MIN, format!("{share:.3}, median of {ROUNDS}"));
            }
        }
    }
    Ok(())
}

/// 1, 2, 4 ... as long as there are as many for the load; and all.
fn steps(all: usize) -> Vec<usize> {
    let mut steps: Vec<_> = (0..).map(|power| 1 << power).take_while(|&count| count * 2 <= all).collect();
    steps.push(all.max(1));
    steps.dedup();
    steps
}

fn is_shared(count: usize, all: usize) -> bool {
    count * 2 > all
}

/// Calls in a second, and in a second of the server's CPU time.
fn calls(lab: &Lab, flavor: &str, all: &[usize], count: usize) -> Result<(f64, f64)> {
    let (own, rest) = all.split_at(count);
    let lab = lab.with_cores(own, if is_shared(count, all.len()) { all } else { &rest[..count] });
    let sets = [format!("runtime.flavor=\"{flavor}\""), format!("runtime.io_threads={count}")];
    let server = lab.serve(None, &sets.each_ref().map(String::as_str))?;
    let connections = CONNECTIONS_PER_CORE * count;
    let mut callers: Vec<_> = (0..connections).map(|_| Caller::new(Way::to(&server), echo(None))).collect();
    drive(&lab, &server, &mut callers, Duration::from_secs(1), 200)?; // the warm-up
    let driven = drive(&lab, &server, &mut callers, Duration::from_secs(lab.seconds.div_ceil(3)), 200)?;
    Ok((driven.per_s(), driven.per_cpu_s()))
}
