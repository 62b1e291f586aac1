//! What the kernel says of this process, for the metrics that every program is expected to have.

use std::fs;

use rustix::{
    param::clock_ticks_per_second,
    process::{Resource, getrlimit},
    time::{ClockId, clock_gettime},
};

/// When the process started, in seconds since 1970. It does not change, so it is read once.
pub(super) fn started_at_s() -> Option<f64> {
    started_at(
        &fs::read_to_string("/proc/self/stat").ok()?,
        &fs::read_to_string("/proc/stat").ok()?,
        clock_ticks_per_second(),
    )
}

/// From the boot on, the kernel counts in ticks; when the boot was, it says elsewhere.
#[allow(clippy::cast_precision_loss)] // ticks since a boot
fn started_at(process: &str, host: &str, ticks_per_s: u64) -> Option<f64> {
    // The program's own name stands in parentheses and may hold spaces and parentheses.
    let (_, after_name) = process.rsplit_once(')')?;
    let ticks: u64 = after_name.split_whitespace().nth(19)?.parse().ok()?;
    let boot_s: u64 = host.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot_s as f64 + ticks as f64 / ticks_per_s as f64)
}

/// CPU time of all threads so far, in seconds.
#[allow(clippy::cast_precision_loss)] // seconds of CPU time
pub(super) fn cpu_s() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

/// Open files, connections among them.
pub(super) fn open_fds() -> Option<u64> {
    // The kernel says it as the size of the folder from 6.2 on. Before, each has to be listed.
    match fs::metadata("/proc/self/fd").ok()?.len() {
        0 => Some((fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1)), // less the one that lists
        count => Some(count),
    }
}

/// Files that may be open.
pub(super) fn max_fds() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn the_start_is_read_from_ticks_and_the_boot() {
        let fields: String = (4..=21).map(|n| format!(" {n}")).collect();
        let process = format!("7 (a name) of (two) S{fields} 250 0 0\n");
        assert_eq!(started_at(&process, "cpu  1 2\nbtime 1000\nprocesses 5\n", 100), Some(1002.5));
        assert_eq!(started_at("7 (cut off", "btime 1000", 100), None);
        assert_eq!(started_at(&process, "cpu 1", 100), None);
    }

    #[test]
    fn this_process_can_be_read() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
        let started = started_at_s().expect("Linux");
        assert!(started <= now + 2.0 && started > now - 86_400.0, "{started} {now}");
        let before = open_fds().expect("Linux");
        let files: Vec<_> = (0..50).map(|_| fs::File::open("/dev/null").expect("it opens")).collect();
        // Other tests open and close files at the same time, but not fifty.
        assert!(open_fds().expect("Linux") >= before + 25, "{before}");
        drop(files);
        assert!(max_fds().is_none_or(|max| max >= before));
        assert!(cpu_s() > 0.0);
    }
}
