//! Floods of HTTP/2 frames on some connections, and echo calls on others.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::{process::setpriority_process, thread::gettid};

use crate::{
    Result,
    caller::{Caller, Paced, Way, echo, pace_all},
    frames::{Flood, floods as all_floods},
    lab::{Lab, Server},
    median, verdict,
};

const CPU_MAX: f64 = 0.2;
const GROWTH_MAX_MIB: f64 = 16.0;
const P99_TIMES_MAX: f64 = 1.5;
const CALLERS: usize = 4;
const PER_S_EACH: f64 = 250.0;
const PAIRS: usize = 5;
/// An attacker comes again at this distance: so that each stretch has many floods in it, all of them whole.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// For a flood to be cut.
const CUT_MAX: Duration = Duration::from_secs(10);

/// What one stretch with an attack was, and the calm one before it.
struct Pair {
    cpu: f64,
    p99_times: f64,
    success: f64,
}

/// What the attacker saw.
#[derive(Default)]
struct Seen {
    floods: AtomicU64,
    /// Those that the server did not end though it had to.
    endured: AtomicU64,
    /// Sums, over those that it ended.
    cut_us: AtomicU64,
    sent_bytes: AtomicU64,
}

pub(crate) fn floods(lab: &Lab) -> Result<()> {
    for flood in all_floods() {
        one(lab, &flood).map_err(|error| format!("{}: {error}", flood.name))?;
    }
    Ok(())
}

fn one(lab: &Lab, flood: &Flood) -> Result<()> {
    let server = lab.serve(None, &[])?;
    let mut callers: Vec<_> = (0..CALLERS).map(|_| Caller::new(Way::to(&server), echo(None))).collect();
    let time = Duration::from_secs(lab.seconds);
    let seen = Seen::default();
    // Another address, which is another caller.
    let way = Way { from: Some(IpAddr::from([127, 0, 0, 2])), ..Way::to(&server) };
    let mut most_mib: f64 = 0.0;
    let (pairs, at_first_mib) = lab.on_load_cores(|| {
        pace_all(&mut callers, PER_S_EACH, time)?; // the warm-up
        let at_first_mib = server.resident_mib()?;
        let mut pairs = Vec::new();
        for _ in 0..PAIRS {
            let (calm, calm_cpu) = stretch(&server, &mut callers, time)?;
            let is_over = AtomicBool::new(false);
            let (beside, cpu) = thread::scope(|scope| {
                let attacker = scope.spawn(|| attack(&way, flood, &is_over, &seen));
                let watcher = scope.spawn(|| watch(&server, &is_over));
                let beside = stretch(&server, &mut callers, time);
                is_over.store(true, Ordering::Relaxed);
                most_mib = most_mib.max(watcher.join().map_err(|_| "a watcher panicked")??);
                attacker.join().map_err(|_| "an attack panicked")??;
                beside
            })?;
            let (p99_times, success) = (beside.p99_ms() / calm.p99_ms(), beside.success());
            pairs.push(Pair { cpu: cpu - calm_cpu, p99_times, success });
        }
        Ok((pairs, at_first_mib))
    })?;
    let name = flood.name;
    let (floods, endured) = (seen.floods.load(Ordering::Relaxed), seen.endured.load(Ordering::Relaxed));
    if flood.is_cut {
        let cut = (floods - endured).max(1);
        let took_ms = seen.cut_us.load(Ordering::Relaxed) as f64 / cut as f64 / 1e3;
        let sent_kib = seen.sent_bytes.load(Ordering::Relaxed) as f64 / cut as f64 / 1024.0;
        let figure = format!("{cut} of {floods}, on average after {took_ms:.1} ms and {sent_kib:.0} KiB");
        verdict(&format!("{name}: each connection is ended"), endured == 0 && floods > 0, figure);
    } else {
        println!("         {name}: {floods} connections with calls whose answers cannot be sent");
    }
    let cpu = median(pairs.iter().map(|pair| pair.cpu).collect());
    verdict(&format!("{name}: CPU time <= {CPU_MAX} of a core"), cpu <= CPU_MAX, format!("{cpu:.3}"));
    let growth = most_mib - at_first_mib;
    let figure = format!("{growth:.1} MiB on {at_first_mib:.1}");
    verdict(&format!("{name}: memory grows by <= {GROWTH_MAX_MIB} MiB"), growth <= GROWTH_MAX_MIB, figure);
    let times = median(pairs.iter().map(|pair| pair.p99_times).collect());
    let success = pairs.iter().map(|pair| pair.success).fold(1.0, f64::min);
    let figure = format!("{times:.2} times, median of {PAIRS} pairs");
    verdict(
        &format!("{name}: p99 of the others <= {P99_TIMES_MAX} times that without"),
        times <= P99_TIMES_MAX,
        figure,
    );
    verdict(&format!("{name}: all of their calls succeed"), success >= 1.0, format!("{:.2} %", success * 100.0));
    Ok(())
}

/// Echo calls for so long, and what of a core the server used.
fn stretch(server: &Server, callers: &mut [Caller], time: Duration) -> Result<(Paced, f64)> {
    let cpu_s = server.cpu_s()?;
    let paced = pace_all(callers, PER_S_EACH, time)?;
    let cpu = (server.cpu_s()? - cpu_s) / paced.elapsed_s;
    Ok((paced, cpu))
}

/// The most memory that the server had.
fn watch(server: &Server, is_over: &AtomicBool) -> Result<f64> {
    let mut most: f64 = 0.0;
    while !is_over.load(Ordering::Relaxed) {
        most = most.max(server.resident_mib()?);
        thread::sleep(LOOK_EVERY);
    }
    Ok(most.max(server.resident_mib()?))
}

/// Floods on a new connection, again and again; those of a flood that is not cut stay open to the end.
fn attack(way: &Way, flood: &Flood, is_over: &AtomicBool, seen: &Seen) -> Result<()> {
    // So that it is the server that keeps others waiting, and not that we share cores with them.
    setpriority_process(Some(gettid()), 19)?;
    let mut kept = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let began = Instant::now();
        let mut stream = way.open()?;
        stream.set_write_timeout(Some(CUT_MAX))?;
        stream.set_read_timeout(Some(CUT_MAX))?;
        seen.floods.fetch_add(1, Ordering::Relaxed);
        if flood.is_cut {
            let mut reader = stream.try_clone()?;
            let (sent_bytes, is_cut) = thread::scope(|scope| {
                let ends = scope.spawn(move || reads_to_the_end(&mut reader));
                let sent_bytes = send(&mut stream, &flood.bytes);
                (sent_bytes, ends.join().unwrap_or(false))
            });
            if is_cut {
                seen.cut_us.fetch_add(u64::try_from(began.elapsed().as_micros())?, Ordering::Relaxed);
                seen.sent_bytes.fetch_add(sent_bytes as u64, Ordering::Relaxed);
            } else {
                seen.endured.fetch_add(1, Ordering::Relaxed);
            }
        } else {
            send(&mut stream, &flood.bytes);
            kept.push(stream);
        }
        thread::sleep(AGAIN_AFTER.saturating_sub(began.elapsed()));
    }
    Ok(())
}

/// How much was sent until it could not be sent any more.
fn send(stream: &mut TcpStream, bytes: &[u8]) -> usize {
    let mut sent = 0;
    while sent < bytes.len() {
        match stream.write(&bytes[sent..]) {
            Ok(0) => break,
            Ok(more) => sent += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    sent
}

/// Whether the server ended the connection.
fn reads_to_the_end(stream: &mut TcpStream) -> bool {
    let mut room = [0; 4096];
    loop {
        match stream.read(&mut room) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }
}
