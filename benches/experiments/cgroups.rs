//! Too little memory, and too little CPU time, as cgroups give them.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::{
    Result,
    lab::{Lab, Row},
    verdict,
};

/// A cgroup of 256 MiB, and clients that want the server to hold more than that.
pub(crate) fn memory(lab: &Lab) -> Result<()> {
    const LIMIT: u64 = 256 << 20;
    let group = Group::new("memory")?;
    group.set(("memory.limit_in_bytes", "memory.max"), &LIMIT.to_string())?;
    let server = group.around(|| lab.serve(None, &["cache.bytes_max=64MiB", "tools.echo.cache_ttl_s=600"]))?;
    let pid = server.child.id();
    let resident = || {
        let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4 / 1024
    };
    println!("at the start {} MiB", resident());
    let (mut answered, mut refused, mut most) = (0_u64, 0_u64, 0);
    let large = "x".repeat(900 << 10);
    thread::scope(|scope| {
        let senders: Vec<_> = (0..200)
            .map(|n| {
                let (address, large) = (server.address, &large);
                scope.spawn(move || {
                    let mut counts = (0_u64, 0_u64);
                    for turn in 0..10 {
                        match echo(address, &format!("{n}-{turn}-{large}")) {
                            Ok(200) => counts.0 += 1,
                            Ok(_) => counts.1 += 1,
                            Err(_) => {}
                        }
                    }
                    counts
                })
            })
            .collect();
        while senders.iter().any(|sender| !sender.is_finished()) {
            most = most.max(resident());
            thread::sleep(Duration::from_millis(5));
        }
        for sender in senders {
            let (good, bad) = sender.join().unwrap_or_default();
            answered += good;
            refused += bad;
        }
    });
    let kills = group.kills()?;
    verdict("the kernel kills nothing", kills == 0, format!("{kills} kills, at most {most} MiB of 256"));
    verdict("some are answered, some refused", answered > 0, format!("{answered} answered, {refused} refused"));
    let normal = Instant::now() + Duration::from_secs(5);
    let mut after = 0;
    while Instant::now() < normal && after != 200 {
        after = echo(server.address, "hello").unwrap_or(0);
        thread::sleep(Duration::from_millis(50));
    }
    verdict("normal afterwards", after == 200, format!("HTTP {after}, {} MiB", resident()));
    Ok(())
}

/// Calls echo on a new connection; the HTTP status.
fn echo(address: SocketAddr, message: &str) -> Result<u16> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"echo","arguments":{{"message":"{message}"}},"_meta":{{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{{"name":"x","version":"1"}},"io.modelcontextprotocol/clientCapabilities":{{}}}}}}}}"#
    );
    let head = format!(
        "POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\nMCP-Protocol-Version: 2026-07-28\r\n\
         Mcp-Method: tools/call\r\nMcp-Name: echo\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    let _ = stream.write_all(body.as_bytes()); // a refusal may come before the body is read
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
    Ok(std::str::from_utf8(&status[9..])?.parse()?)
}

/// So little CPU time that everything is late, and then all of it again.
pub(crate) fn quota(lab: &Lab) -> Result<()> {
    const PERIOD_US: u64 = 100_000;
    let group = Group::new("cpu")?;
    let server = lab.serve(None, &[])?;
    let url = format!("http://{}/mcp", server.address);
    let load = |seconds: u64| -> Result<Row> {
        let duration = format!("{seconds}s");
        let args = ["--url", &url, "--connections", "64", "--warmup", "1s", "--duration", &duration];
        lab.rows(&args)?.pop().ok_or_else(|| "no row".into())
    };
    let before = load(lab.seconds)?;
    group.set_cpu_quota(Some(PERIOD_US / 20), PERIOD_US)?;
    group.take_in(server.child.id())?;
    let during = load(lab.seconds * 3)?;
    group.set_cpu_quota(None, PERIOD_US)?;
    thread::sleep(Duration::from_secs(1));
    let after = load(lab.seconds)?;
    let wrong: f64 = ["broken", "tool_errors", "timed_out"].iter().map(|name| during.number(name)).sum();
    let refused = during.0["refused"].as_array().into_iter().flatten();
    let is_right = wrong == 0.0 && refused.clone().all(|refused| refused["status"] == 503);
    let figure = format!("{:.0} answered, {:.0} refused with 503", during.number("ok"), during.refusals());
    verdict("with 5 % of a core nothing is answered wrongly", is_right && during.number("ok") > 0.0, figure);
    let share = after.number("goodput_per_s") / before.number("goodput_per_s");
    verdict("from 1 s after on >= 0.90 of before", share >= 0.90, format!("{share:.3}"));
    drop(server); // the group is removed when nobody is in it
    Ok(())
}

/// A memory cgroup, version 1 or 2, gone with its owner.
struct Group {
    folder: PathBuf,
    is_v2: bool,
}

impl Group {
    fn new(controller: &str) -> Result<Self> {
        let v1 = Path::new("/sys/fs/cgroup").join(controller);
        let (root, is_v2) = if v1.is_dir() { (v1, false) } else { (PathBuf::from("/sys/fs/cgroup"), true) };
        let folder = root.join(format!("bigiron-experiment-{}", std::process::id()));
        fs::create_dir(&folder)
            .map_err(|error| format!("cannot make the cgroup {}: {error}; run as root", folder.display()))?;
        Ok(Self { folder, is_v2 })
    }

    /// Sets a limit, by the names of its file in version 1 and 2.
    fn set(&self, file: (&str, &str), value: &str) -> Result<()> {
        let file = self.folder.join(if self.is_v2 { file.1 } else { file.0 });
        fs::write(&file, value).map_err(|error| format!("cannot write {}: {error}", file.display()).into())
    }

    fn set_cpu_quota(&self, quota_us: Option<u64>, period_us: u64) -> Result<()> {
        if self.is_v2 {
            let quota = quota_us.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
            return self.set(("", "cpu.max"), &format!("{quota} {period_us}"));
        }
        self.set(("cpu.cfs_period_us", ""), &period_us.to_string())?;
        self.set(("cpu.cfs_quota_us", ""), &quota_us.map_or_else(|| "-1".to_owned(), |quota| quota.to_string()))
    }

    fn take_in(&self, process: u32) -> Result<()> {
        Ok(fs::write(self.folder.join("cgroup.procs"), process.to_string())?)
    }

    /// What is started inside belongs to the group; this process leaves it again.
    fn around<T>(&self, start: impl FnOnce() -> Result<T>) -> Result<T> {
        let own = std::process::id();
        self.take_in(own)?;
        let started = start();
        fs::write(self.folder.parent().ok_or("no parent")?.join("cgroup.procs"), own.to_string())?;
        started
    }

    fn kills(&self) -> Result<u64> {
        let file = if self.is_v2 { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(self.folder.join(file))?;
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(line.ok_or("the kernel does not count kills")?.trim().parse()?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..50 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(100)); // until its processes are gone
        }
    }
}
