//! What the way through the pool adds to a call, where nothing waits for a thread: `burn` of 0 ms beside `echo`, which
//! differ by some bytes too.

use std::time::Duration;

use crate::{
    Result,
    caller::{Caller, Way, call, drive, echo, pace},
    lab::Lab,
    median, verdict,
};

const CONNECTIONS: usize = 16;
/// Of what the server answers at most through the pool.
const LOAD: f64 = 0.1;
const PAIRS: usize = 9;
const ADDED_US_MAX: f64 = 15.0;

/// A tool that does nothing on a thread of the pool, and one that does nothing where the request was read.
pub(crate) fn pool(lab: &Lab) -> Result<()> {
    let server = lab.serve(None, &[])?;
    let pooled = call(None, "burn", r#"{"ms":0}"#);
    let mut many: Vec<_> = (0..CONNECTIONS).map(|_| Caller::new(Way::to(&server), pooled.clone())).collect();
    let time = Duration::from_secs(lab.seconds);
    drive(lab, &server, &mut many, time, 200)?; // the warm-up
    let full = drive(lab, &server, &mut many, time, 200)?;
    let per_s = full.per_s() * LOAD;
    println!("one caller with {per_s:.0} calls/s, a tenth of what the pool answers; {PAIRS} pairs of stretches");
    let (mut inline, mut pooled) = (Caller::new(Way::to(&server), echo(None)), Caller::new(Way::to(&server), pooled));
    let p50_us = |caller: &mut Caller| -> Result<f64> {
        let paced = lab.on_load_cores(|| pace(caller, per_s, time))?;
        if paced.success() < 1.0 {
            return Err("a call failed".into());
        }
        Ok(paced.latency_ns.value_at_quantile(0.5) as f64 / 1e3)
    };
    let (mut inline_us, mut pooled_us, mut added_us) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..PAIRS {
        // Each is as often the first.
        let (one, other) = if round % 2 == 0 {
            let one = p50_us(&mut inline)?;
            (one, p50_us(&mut pooled)?)
        } else {
            let other = p50_us(&mut pooled)?;
            (p50_us(&mut inline)?, other)
        };
        inline_us.push(one);
        pooled_us.push(other);
        added_us.push(other - one);
    }
    let added = median(added_us);
    let figure = format!("{added:.1} us (p50 {:.1} us, inline {:.1} us)", median(pooled_us), median(inline_us));
    verdict(&format!("the way through the pool adds <= {ADDED_US_MAX} us"), added <= ADDED_US_MAX, figure);
    Ok(())
}
