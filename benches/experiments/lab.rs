//! What every experiment has: the program on cores of its own, servers with settings, and `bigiron bench` on the rest.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    ops::Deref,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::Value;

use crate::{BURN, Result};

pub(crate) struct Lab {
    pub(crate) program: String,
    pub(crate) folder: Arc<Folder>,
    pub(crate) seconds: u64,
    /// Of the server, and of the load.
    pub(crate) cores: (Vec<usize>, Vec<usize>),
}

/// A folder of the experiments' own, gone with the last that has it.
pub(crate) struct Folder(PathBuf);

impl Deref for Folder {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// One row of what `bigiron bench` wrote.
pub(crate) struct Row(pub(crate) Value);

impl Row {
    pub(crate) fn number(&self, name: &str) -> f64 {
        name.split('.').fold(&self.0, |value, key| &value[key]).as_f64().unwrap_or(f64::NAN)
    }

    pub(crate) fn p99_ms(&self) -> f64 {
        self.number("ok_us.p99") / 1e3
    }

    pub(crate) fn refusals(&self) -> f64 {
        self.0["refused"].as_array().into_iter().flatten().filter_map(|r| r["count"].as_f64()).sum::<f64>() + 0.0
    }
}

/// A server process; it ends with its owner.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) admin: SocketAddr,
}

impl Server {
    /// CPU time that its threads have used so far, in seconds: what the scheduler counts.
    pub(crate) fn cpu_s(&self) -> Result<f64> {
        let mut run_ns = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // A thread may end between being listed and being read.
            let Ok(schedstat) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
            run_ns += schedstat.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
        }
        if run_ns == 0 {
            Err("the kernel keeps no schedstat: CPU time cannot be measured".into())
        } else {
            Ok(run_ns as f64 / 1e9)
        }
    }

    /// Memory that it has now, in MiB.
    pub(crate) fn resident_mib(&self) -> Result<f64> {
        let statm = fs::read_to_string(format!("/proc/{}/statm", self.child.id()))?;
        let pages: u64 = statm.split(' ').nth(1).ok_or("/proc/PID/statm is not as expected")?.parse()?;
        Ok((pages * rustix::param::page_size() as u64) as f64 / f64::from(1 << 20))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Lab {
    pub(crate) fn new(program: &str, quick: bool) -> Result<Self> {
        let set = sched_getaffinity(None)?;
        let cores: Vec<_> = (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect();
        let cores = if cores.len() < 2 {
            (cores.clone(), cores)
        } else {
            let (own, others) = cores.split_at(cores.len() / 2);
            (own.to_vec(), others.to_vec())
        };
        let folder = Folder(std::env::temp_dir().join(format!("bigiron-experiments-{}", std::process::id())));
        fs::create_dir_all(&*folder)?;
        println!("server on cores {:?}, load on {:?}", cores.0, cores.1);
        Ok(Self { program: program.to_owned(), folder: Arc::new(folder), seconds: if quick { 3 } else { 10 }, cores })
    }

    /// The same with other cores for the server and for the load.
    pub(crate) fn with_cores(&self, server: &[usize], load: &[usize]) -> Self {
        let cores = (server.to_vec(), load.to_vec());
        Self { program: self.program.clone(), folder: Arc::clone(&self.folder), seconds: self.seconds, cores }
    }

    /// Runs `bigiron bench` and returns its JSON.
    pub(crate) fn bench(&self, args: &[&str]) -> Result<Value> {
        let json = self.folder.join(format!("{:?}.json", thread::current().id()));
        let seconds = format!("{}s", self.seconds);
        let mut command = Command::new(&self.program);
        command.arg("bench").args(args).arg("--json").arg(&json);
        if !args.contains(&"--duration") {
            command.args(["--duration", &seconds]);
        }
        // Where it starts the server itself, it keeps away from that by itself.
        let own = if args.contains(&"--url") { self.cores.1.clone() } else { self.all_cores() };
        pin(&own)?;
        let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output();
        pin(&self.all_cores())?;
        let output = output?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        print!("{}", String::from_utf8_lossy(&output.stdout));
        Ok(serde_json::from_slice(&fs::read(&json)?)?)
    }

    pub(crate) fn all_cores(&self) -> Vec<usize> {
        [&self.cores.0[..], &self.cores.1].concat()
    }

    /// Does something, with the threads that it starts, on the cores of the load.
    pub(crate) fn on_load_cores<T>(&self, load: impl FnOnce() -> Result<T>) -> Result<T> {
        pin(&self.cores.1)?;
        let done = load();
        pin(&self.all_cores())?;
        done
    }

    pub(crate) fn rows(&self, args: &[&str]) -> Result<Vec<Row>> {
        let mut json = self.bench(args)?;
        match json["rows"].take() {
            Value::Array(rows) => Ok(rows.into_iter().map(Row).collect()),
            _ => Err("bigiron bench wrote no rows".into()),
        }
    }

    /// What the host can take of the tool, and a file with the settings that follow.
    pub(crate) fn capacity(&self) -> Result<(f64, f64, PathBuf)> {
        let found = self.bench(&[&BURN[..], &["--capacity", "--duration", "3s", "--warmup", "1s"]].concat())?;
        let file = self.folder.join("capacity.toml");
        fs::write(&file, found["tuning"].as_str().ok_or("no settings were found")?)?;
        let of = |name: &str| found[name].as_f64().ok_or_else(|| format!("{name} was not found"));
        Ok((of("peak_per_s")?, of("p99_max_ms")?, file))
    }

    pub(crate) fn serve(&self, tuning: Option<&Path>, sets: &[&str]) -> Result<Server> {
        let mut command = Command::new(&self.program);
        command.args(["serve", "--listen", "127.0.0.1:0", "--set", "server.admin_listen=127.0.0.1:0"]);
        command.args(["--set", "log.format=json"]);
        if let Some(file) = tuning {
            command.arg("--tuning").arg(file);
        }
        for set in sets {
            command.args(["--set", set]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        pin(&self.cores.0)?;
        let child = command.spawn();
        pin(&self.all_cores())?;
        let mut child = child?;
        let mut log = BufReader::new(child.stderr.take().ok_or("no log")?);
        let (mut address, mut admin) = (None, None);
        while address.is_none() || admin.is_none() {
            let mut line = String::new();
            if log.read_line(&mut line)? == 0 {
                return Err("the server did not start".into());
            }
            let line: Value = serde_json::from_str(&line).unwrap_or_default();
            let host = |key: &str| line[key].as_str()?.split_once("://")?.1.split('/').next()?.parse().ok();
            address = address.or_else(|| host("url"));
            admin = admin.or_else(|| host("health"));
        }
        thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        let (address, admin) = (address.ok_or("no address")?, admin.ok_or("no address")?);
        Ok(Server { child, address, admin })
    }
}

pub(crate) fn pin(cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    cores.iter().for_each(|&core| set.set(core));
    Ok(sched_setaffinity(None, &set)?)
}
