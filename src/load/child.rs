//! A server that is started for a measurement: on a core of its own where there is one, and gone with its owner,
//! however that ends. It has a process group of its own, so that Ctrl-C ends the load and not what is under load.

use std::{
    convert::Infallible,
    fs,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child as Process, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal},
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

use super::Result;

/// For the drain of a server that is not needed any more.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A server process. It ends with its owner.
#[derive(Debug)]
pub(crate) struct Child {
    process: Process,
    pub(crate) address: SocketAddr,
}

/// What a process has used since its start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    pub(crate) resident_bytes: u64,
}

/// The cores that this process may use.
pub(crate) fn cores() -> Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect())
}

/// Binds the calling thread, and what it starts from now on.
pub(crate) fn pin(cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    cores.iter().for_each(|&core| set.set(core));
    Ok(sched_setaffinity(None, &set)?)
}

/// Makes of this process what the arguments say, which then is killed when `owner` has ended. It is asked for by the
/// process itself since only that is safe.
pub(crate) fn become_owned(owner: u32, arguments: &[String]) -> Result<Infallible> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs()) != Some(owner) {
        return Err("its owner has ended".into());
    }
    Err(Command::new(std::env::current_exe()?).args(arguments).exec().into())
}

impl Child {
    /// Starts this program as a server, with a file of settings and further ones, on `own` cores; the caller goes on
    /// on `others`.
    pub(crate) fn start(tuning: Option<&Path>, sets: &[String], own: &[usize], others: &[usize]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench", "--owner", &std::process::id().to_string(), "--"]);
        command.args(["serve", "--listen", "127.0.0.1:0", "--set", "server.admin_listen=", "--set", "log.format=json"]);
        if let Some(file) = tuning {
            command.arg("--tuning").arg(file);
        }
        for set in sets {
            command.args(["--set", set]);
        }
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        pin(own)?; // a child inherits the cores of the thread that starts it
        let started = command.spawn();
        pin(others)?;
        let mut process = started?;
        let mut log = BufReader::new(process.stderr.take().ok_or("the server has no log")?);
        let mut said = String::new();
        let address = loop {
            let mut line = String::new();
            if log.read_line(&mut line)? == 0 {
                let _ = process.wait();
                return Err(format!("the server did not start:\n{said}{line}").into());
            }
            let url = serde_json::from_str::<serde_json::Value>(&line).ok();
            let url = url.and_then(|line| line["url"].as_str()?.strip_prefix("http://").map(str::to_owned));
            if let Some(address) = url.and_then(|url| url.split('/').next()?.parse().ok()) {
                break address;
            }
            said.push_str(&line);
        };
        // Its log is read so that it never waits for us; it ends with the process.
        thread::Builder::new().name("server-log".into()).spawn(move || {
            let _ = std::io::copy(&mut log.by_ref().take(u64::MAX), &mut std::io::sink());
        })?;
        Ok(Self { process, address })
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        let process = format!("/proc/{}", self.process.id());
        let mut run_ns = 0_u64;
        for task in fs::read_dir(format!("{process}/task"))? {
            // A thread may end between being listed and being read.
            let Ok(stat) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            run_ns += stat.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
        }
        let pages: u64 = fs::read_to_string(format!("{process}/statm"))?
            .split(' ')
            .nth(1)
            .and_then(|pages| pages.parse().ok())
            .unwrap_or(0);
        let resident_bytes = pages * rustix::param::page_size() as u64;
        Ok(Usage { cpu: Duration::from_nanos(run_ns), resident_bytes })
    }

    fn ask_to_stop(&self) {
        if let Some(pid) = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM); // an error means that it has ended already
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.ask_to_stop();
        let give_up_at = Instant::now() + STOP_TIMEOUT;
        while matches!(self.process.try_wait(), Ok(None)) && Instant::now() < give_up_at {
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
