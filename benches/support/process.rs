//! Cores and CPU time: which cores there are, a child process bound to one, what it used, and what else ran there.
//!
//! CPU time is the scheduler's own count for the server's threads (`schedstat`, nanoseconds). It includes kernel
//! work done on their behalf, but also network interrupts that happened to land on them; how it divides into user
//! and system is sampled by clock tick and good to a few percent only.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::Result;

const START_TIMEOUT: Duration = Duration::from_secs(20);

/// The cores that this process may use, by number.
pub(crate) fn allowed_cores() -> Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect())
}

/// Binds the calling thread, and what it starts from now on.
pub(crate) fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    Ok(sched_setaffinity(None, &set)?)
}

pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A server process. Ends with its owner.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    child: Child,
}

impl Server {
    /// Starts a command on a core and waits until it accepts connections. `own_core` is where the caller goes on:
    /// a child inherits the affinity of the thread that starts it, so that thread moves over and back.
    pub(crate) fn start(
        mut command: Command,
        address: SocketAddr,
        core: usize,
        own_core: usize,
        log: &Path,
    ) -> Result<Self> {
        let output = File::create(log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        pin(core)?;
        let child = command.spawn();
        pin(own_core)?;
        let child = child.map_err(|error| format!("{} did not start: {error}", command.get_program().display()))?;
        let mut server = Self { address, child };
        server.wait_for_listener(log)?;
        Ok(server)
    }

    fn wait_for_listener(&mut self, log: &Path) -> Result<()> {
        let give_up_at = Instant::now() + START_TIMEOUT;
        while TcpStream::connect(self.address).is_err() {
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > give_up_at {
                let said = fs::read_to_string(log).unwrap_or_default();
                return Err(format!("nothing listens on {} (ended: {ended:?}); it said:\n{said}", self.address).into());
            }
            sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Asks it to end and waits until it has.
    #[allow(dead_code)] // most have nothing to say at their end
    pub(crate) fn stop(mut self) -> Result<()> {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).ok_or("a process without an id")?;
        kill_process(id, Signal::TERM)?;
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the server ended with {status}").into()) }
    }

    pub(crate) fn usage(&self) -> Result<Usage> {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let mut run_ns = 0;
        for thread in fs::read_dir(process.join("task"))? {
            // A thread may end between being listed and being read.
            run_ns += run_ns_of(&thread?.path()).unwrap_or(0);
        }
        let stat = fs::read_to_string(process.join("stat"))?;
        // Fields are counted behind the command's name, which may hold anything.
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        let mut ticks = fields.split(' ').skip(11).map(str::parse::<u64>);
        let (Some(Ok(user_ticks)), Some(Ok(system_ticks))) = (ticks.next(), ticks.next()) else {
            return Err("/proc/PID/stat is not as expected".into());
        };
        Ok(Usage { run_ns, user_ticks, system_ticks })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing to save: the process holds no state that outlives the bench.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What a process has used since it began.
#[derive(Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) run_ns: u64,
    pub(crate) user_ticks: u64,
    pub(crate) system_ticks: u64,
}

/// What a core has done since boot, in ticks.
#[derive(Clone, Copy)]
pub(crate) struct CoreTime {
    idle: u64,
    stolen: u64,
    total: u64,
}

impl CoreTime {
    pub(crate) fn of(core: usize) -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let name = format!("cpu{core} ");
        let line = stat.lines().find_map(|line| line.strip_prefix(&name));
        let line = line.ok_or_else(|| format!("/proc/stat has no core {core}"))?;
        // user nice system idle iowait irq softirq steal; guest time is part of user time already
        let ticks: Vec<u64> = line.split(' ').take(8).filter_map(|field| field.parse().ok()).collect();
        let [_, _, _, idle, waiting, _, _, stolen] = ticks[..] else {
            return Err("/proc/stat is not as expected".into());
        };
        Ok(Self { idle: idle + waiting, stolen, total: ticks.iter().sum() })
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            // The kernel lets the waiting part of it step back a little now and then.
            idle: self.idle.saturating_sub(earlier.idle),
            stolen: self.stolen - earlier.stolen,
            total: self.total - earlier.total,
        }
    }

    /// Time in which anything ran here, the hypervisor's apart.
    pub(crate) fn busy_share(self) -> f64 {
        self.total.saturating_sub(self.idle + self.stolen) as f64 / self.total.max(1) as f64
    }

    pub(crate) fn stolen_share(self) -> f64 {
        self.stolen as f64 / self.total.max(1) as f64
    }
}

/// CPU time of the calling thread.
pub(crate) fn own_run_ns() -> Result<u64> {
    run_ns_of(Path::new("/proc/thread-self"))
}

fn run_ns_of(task: &Path) -> Result<u64> {
    let schedstat = fs::read_to_string(task.join("schedstat"))
        .map_err(|error| format!("the kernel keeps no schedstat ({error}): CPU time cannot be measured"))?;
    Ok(schedstat.split(' ').next().unwrap_or_default().parse()?)
}
