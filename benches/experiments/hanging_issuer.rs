//! An issuer that takes connections and says nothing, whenever its keys are to be fetched.

use std::{
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use crate::{
    Result,
    caller::{Caller, Way, echo, pace, pace_all},
    issuer::{Issuer, KeysServer},
    lab::Lab,
    median, verdict,
};

/// Unchanged is within so much: the p99 of two equal stretches differs by about a tenth.
const P99_TIMES_MAX: f64 = 1.2;
const UNKNOWN_KEY_MAX_MS: f64 = 2000.0;
const CALLERS: usize = 4;
const PER_S_EACH: f64 = 250.0;
const STRANGER_PER_S: f64 = 10.0;
const PAIRS: usize = 5;

/// Fetches of keys that hang, and calls with tokens of a known key.
pub(crate) fn hanging_issuer(lab: &Lab) -> Result<()> {
    let (issuer, other) = (Issuer::new("ec")?, Issuer::new("other")?);
    let keys = KeysServer::start(issuer.keys())?;
    let mut settings = Issuer::settings();
    settings.extend([
        format!("auth.jwks_url={}", keys.url),
        "auth.jwks_refresh_s=1".into(),
        "auth.jwks_retry_s=1".into(),
    ]);
    let server = lab.serve(None, &settings.iter().map(String::as_str).collect::<Vec<_>>())?;
    let mut callers = Vec::new();
    for n in 0..CALLERS {
        callers.push(Caller::new(Way::to(&server), echo(Some(&issuer.token(&format!("caller-{n}"))?))));
    }
    let until = Instant::now() + Duration::from_secs(10);
    while callers[0].call()? != 200 {
        if Instant::now() > until {
            return Err("the keys were not fetched within 10 s".into());
        }
        thread::sleep(Duration::from_millis(20));
    }
    let mut stranger = Caller::new(Way::to(&server), echo(Some(&other.token("eve")?)));
    let time = Duration::from_secs(lab.seconds);
    let (mut times, mut success, mut unknown_ms): (Vec<f64>, f64, f64) = (Vec::new(), 1.0, 0.0);
    let (mut calm_ms, mut hung_ms, mut refused) = (Vec::new(), Vec::new(), 0);
    let mut asked = 0;
    lab.on_load_cores(|| {
        pace_all(&mut callers, PER_S_EACH, time)?; // the warm-up
        for _ in 0..PAIRS {
            // Tokens of a key that is not known ask for a fetch, in both.
            let mut stretch = |hangs: bool| {
                keys.hangs.store(hangs, Ordering::SeqCst);
                let before = keys.asked.load(Ordering::SeqCst);
                thread::scope(|scope| {
                    let strange = scope.spawn(|| pace(&mut stranger, STRANGER_PER_S, time));
                    let paced = pace_all(&mut callers, PER_S_EACH, time);
                    let paced = paced.map_err(|error| format!("a token of a known key: {error}"))?;
                    let strange = strange.join().map_err(|_| "a load panicked")?;
                    let strange = strange.map_err(|error| format!("a token of an unknown key: {error}"))?;
                    Ok::<_, Box<dyn std::error::Error + Send + Sync>>((
                        paced,
                        strange,
                        keys.asked.load(Ordering::SeqCst) - before,
                    ))
                })
            };
            let (calm, _, _) = stretch(false)?;
            let (hung, strange, fetches) = stretch(true)?;
            times.push(hung.p99_ms() / calm.p99_ms());
            calm_ms.push(calm.p99_ms());
            hung_ms.push(hung.p99_ms());
            success = success.min(hung.success());
            unknown_ms = unknown_ms.max(strange.latency_ns.max() as f64 / 1e6);
            refused +=
                strange.statuses.iter().filter(|(status, _)| **status != 401).map(|(_, count)| count).sum::<u64>();
            asked += fetches;
        }
        Ok(())
    })?;
    verdict(
        "the issuer's keys are asked for while that hangs",
        asked > 0,
        format!("{asked} times in {PAIRS} stretches"),
    );
    let times = median(times);
    let figure =
        format!("{times:.2} times ({:.3} ms, {:.3} ms), median of {PAIRS} pairs", median(hung_ms), median(calm_ms));
    verdict(
        &format!("p99 of valid calls meanwhile <= {P99_TIMES_MAX} times that before"),
        times <= P99_TIMES_MAX,
        figure,
    );
    verdict("all of them succeed", success >= 1.0, format!("{:.2} %", success * 100.0));
    let figure = format!("{unknown_ms:.1} ms at most, {refused} answered otherwise");
    verdict("a token of an unknown key is 401 within 2 s", unknown_ms <= UNKNOWN_KEY_MAX_MS && refused == 0, figure);
    Ok(())
}
