//! Real `redis-server` processes on free ports, each with a folder of its own. They end when dropped.

#![allow(dead_code)] // each of the two who include this file uses a part of it

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// No test waits longer than this for something that should happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// One process: a server or a sentinel.
pub(crate) struct Redis {
    child: Option<Child>,
    folder: TempDir,
    pub(crate) port: u16,
    program: &'static str,
    args: Vec<String>,
    password: Option<String>,
}

impl Redis {
    /// A server that keeps nothing on disk.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(args: &[&str]) -> Self {
        let port = free_port();
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let mut redis = Self { child: None, folder: folder(), port, program: "redis-server", args, password: None };
        redis.restart();
        redis
    }

    pub(crate) fn with_password(password: &str) -> Self {
        let mut redis = Self {
            child: None,
            folder: folder(),
            port: free_port(),
            program: "redis-server",
            args: vec!["--requirepass".into(), password.into()],
            password: Some(password.into()),
        };
        redis.restart();
        redis
    }

    /// A sentinel that watches the master at `master`, with a quorum of two, and takes it for down after so long.
    pub(crate) fn sentinel(master: u16, down_after_ms: u32) -> Self {
        let (port, folder) = (free_port(), folder());
        let text = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor mymaster 127.0.0.1 {master} 2\n\
             sentinel down-after-milliseconds mymaster {down_after_ms}\nsentinel failover-timeout mymaster 3000\n",
            folder.path().display()
        );
        let file = folder.path().join("sentinel.conf");
        std::fs::write(&file, text).expect("a file of settings");
        let args = vec![file.display().to_string()];
        let mut redis = Self { child: None, folder, port, program: "redis-sentinel", args, password: None };
        redis.restart();
        redis
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Starts it, on the same port as before and with nothing of before.
    pub(crate) fn restart(&mut self) {
        assert!(self.child.is_none(), "it runs");
        let mut command = Command::new(self.program);
        match self.program {
            "redis-sentinel" => command.args(&self.args),
            _ => command
                .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
                .args(["--dir", &self.folder.path().display().to_string(), "--repl-diskless-sync-delay", "0"])
                .args(&self.args),
        };
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.unwrap_or_else(|e| {
            panic!("{} does not start ({e}): run scripts/setup-tests.sh, or apt-get install {0}", self.program)
        });
        self.child = Some(child);
        eventually("it answers", || self.ask("PING").is_some());
    }

    /// The same, to follow this master from now on.
    pub(crate) fn restart_as_replica_of(&mut self, master: u16) {
        self.args = ["--replicaof", "127.0.0.1", &master.to_string()].map(str::to_owned).into();
        self.restart();
    }

    /// Ends it as a power cut does.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops it without ending it: its connections stay, and nothing is answered.
    pub(crate) fn hang(&self) {
        self.signal("STOP");
    }

    pub(crate) fn wake(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.expect("kill (package procps) is there").success());
    }

    /// What it answers to an inline command: the first line.
    fn ask(&self, command: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        stream.write_all(format!("{command}\r\n").as_bytes()).ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok()?;
        (!line.is_empty()).then_some(line)
    }

    /// What `redis-cli` prints for a command.
    pub(crate) fn cli(&self, args: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "--no-auth-warning"]);
        if let Some(password) = &self.password {
            command.args(["-a", password]);
        }
        let output = command.args(args).output().expect("redis-cli (package redis-tools) is there");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// All keys that begin so.
    pub(crate) fn keys(&self, prefix: &str) -> Vec<String> {
        let text = self.cli(&["KEYS", &format!("{prefix}*")]);
        text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A master, two replicas, three sentinels that agree on it.
pub(crate) struct Sentinels {
    pub(crate) servers: Vec<Redis>,
    pub(crate) sentinels: Vec<Redis>,
}

impl Sentinels {
    pub(crate) fn start() -> Self {
        Self::start_with(500)
    }

    /// With so many milliseconds of silence until the master counts as down.
    pub(crate) fn start_with(down_after_ms: u32) -> Self {
        let master = Redis::start();
        let of = master.port.to_string();
        let replicas = (0..2).map(|_| Redis::start_with(&["--replicaof", "127.0.0.1", &of]));
        let mut servers: Vec<_> = replicas.collect();
        servers.insert(0, master);
        let synced = || servers[0].cli(&["INFO", "replication"]).matches("state=online").count() == 2;
        eventually("both replicas follow", synced);
        let sentinels: Vec<_> = (0..3).map(|_| Redis::sentinel(servers[0].port, down_after_ms)).collect();
        let all = Self { servers, sentinels };
        all.until_whole();
        all
    }

    /// Waits until the sentinels know all and agree that all is well.
    fn until_whole(&self) {
        for sentinel in &self.sentinels {
            eventually("a sentinel knows all", || {
                let text = sentinel.cli(&["SENTINEL", "MASTER", "mymaster"]);
                let lines: Vec<_> = text.lines().collect();
                let is = |key: &str, value: &str| lines.chunks(2).any(|pair| pair == [key, value]);
                is("num-slaves", "2") && is("num-other-sentinels", "2") && is("flags", "master")
            });
        }
    }

    /// The port of the master, as the sentinels say.
    pub(crate) fn master(&self) -> u16 {
        let told = self.sentinels[0].cli(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"]);
        told.lines().nth(1).and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("no master: {told}"))
    }

    /// The server that has this port.
    pub(crate) fn at(&self, port: u16) -> &Redis {
        self.servers.iter().find(|server| server.port == port).expect("one of ours")
    }

    /// Kills the master, waits until another one is, has the old one follow it, and waits until all is well again.
    /// Returns how many keys the master had and the next one has, and how long there was none.
    pub(crate) fn fail_over(&mut self) -> (u64, u64, Duration) {
        let old = self.master();
        let count = |server: &Redis| server.cli(&["DBSIZE"]).parse::<u64>().unwrap_or_default();
        let before = count(self.at(old));
        self.servers.iter_mut().find(|server| server.port == old).expect("one of ours").kill();
        let killed = Instant::now();
        eventually("another one is the master", || {
            self.sentinels.iter().all(|sentinel| {
                let told = sentinel.cli(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"]);
                told.lines().nth(1).is_some_and(|port| port != old.to_string())
            }) && self.at(self.master()).cli(&["ROLE"]).starts_with("master")
        });
        let new = self.master();
        let (after, without) = (count(self.at(new)), killed.elapsed());
        self.servers.iter_mut().find(|server| server.port == old).expect("one of ours").restart_as_replica_of(new);
        let synced = || self.at(new).cli(&["INFO", "replication"]).matches("state=online").count() == 2;
        eventually("both replicas follow", synced);
        self.until_whole();
        (before, after, without)
    }

    pub(crate) fn url(&self) -> String {
        let hosts: Vec<_> = self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port)).collect();
        format!("redis+sentinel://{}/mymaster", hosts.join(","))
    }
}

/// Three masters with a replica each.
pub(crate) struct Six(pub(crate) Vec<Redis>);

impl Six {
    pub(crate) fn start() -> Self {
        let args = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"];
        let servers: Vec<_> = (0..6).map(|_| Redis::start_with(&args)).collect();
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]).args(servers.iter().map(|server| format!("127.0.0.1:{}", server.port)));
        create.args(["--cluster-replicas", "1", "--cluster-yes"]);
        let output = create.output().expect("redis-cli (package redis-tools) is there");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        for server in &servers {
            eventually("the cluster is whole", || server.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok"));
        }
        Self(servers)
    }

    /// What it says to be, by its own id.
    fn id(&self, of: usize) -> String {
        self.0[of].cli(&["CLUSTER", "MYID"])
    }

    /// The servers that are masters.
    pub(crate) fn masters(&self) -> Vec<usize> {
        (0..self.0.len()).filter(|of| self.0[*of].cli(&["ROLE"]).starts_with("master")).collect()
    }

    /// The slot of a key, and the master that has it; nothing when there is no such key.
    pub(crate) fn find(&self, key: &str, masters: &[usize]) -> Option<(u16, usize)> {
        let slot = self.0[0].cli(&["CLUSTER", "KEYSLOT", key]).parse().ok()?;
        let holds = |of: &usize| self.0[*of].cli(&["EXISTS", key]) == "1";
        Some((slot, masters.iter().copied().find(holds)?))
    }

    /// Moves one slot, key by key; `halfway` is called while it is in two places.
    pub(crate) fn move_slot(&self, slot: u16, from: usize, to: usize, mut halfway: impl FnMut()) {
        let (source, target, slot) = (&self.0[from], &self.0[to], slot.to_string());
        let (from_id, to_id) = (self.id(from), self.id(to));
        assert_eq!(target.cli(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id]), "OK");
        assert_eq!(source.cli(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id]), "OK");
        loop {
            let keys = source.cli(&["CLUSTER", "GETKEYSINSLOT", &slot, "1"]);
            let Some(key) = keys.lines().next().filter(|key| !key.is_empty()) else { break };
            let moved = source.cli(&["MIGRATE", "127.0.0.1", &target.port.to_string(), key, "0", "5000"]);
            assert!(moved == "OK" || moved == "NOKEY", "{moved}");
            halfway();
        }
        for server in [target, source] {
            assert_eq!(server.cli(&["CLUSTER", "SETSLOT", &slot, "NODE", &to_id]), "OK"); // the others hear of it
        }
    }

    /// Moves so many slots of one master to another one with the tool that comes with Redis.
    pub(crate) fn reshard(&self, from: usize, to: usize, slots: usize) {
        let mut reshard = Command::new("redis-cli");
        reshard.args(["--cluster", "reshard", &format!("127.0.0.1:{}", self.0[0].port)]);
        reshard.args(["--cluster-from", &self.id(from), "--cluster-to", &self.id(to)]);
        reshard.args(["--cluster-slots", &slots.to_string(), "--cluster-yes"]);
        let output = reshard.output().expect("redis-cli (package redis-tools) is there");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        for server in &self.0 {
            eventually("all agree", || server.cli(&["CLUSTER", "INFO"]).contains("cluster_state:ok"));
        }
    }

    /// Slots that a master has.
    pub(crate) fn slots_of(&self, of: usize) -> usize {
        let (id, told) = (self.id(of), self.0[of].cli(&["CLUSTER", "NODES"]));
        let line = told.lines().find(|line| line.starts_with(&id)).expect("itself");
        let range = |range: &str| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some(last.parse::<usize>().ok()? + 1 - first.parse::<usize>().ok()?)
        };
        line.split(' ').skip(8).filter_map(range).sum()
    }

    pub(crate) fn url(&self) -> String {
        let hosts: Vec<_> = self.0.iter().map(|server| format!("127.0.0.1:{}", server.port)).collect();
        format!("redis-cluster://{}", hosts.join(","))
    }
}

/// Waits until it is so.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

/// A port that is free, and so is the one 10000 above it, where nodes of a cluster speak to each other. Below those that
/// the system gives out by itself, so that nobody gets it in between; each process begins elsewhere.
pub(crate) fn free_port() -> u16 {
    const FIRST: u16 = 11_000;
    const COUNT: u16 = 11_000;
    static TURN: AtomicU16 = AtomicU16::new(0);
    let begin = (std::process::id() % u32::from(COUNT)) as u16;
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    for _ in 0..COUNT {
        let port = FIRST + (begin + TURN.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT;
        if is_free(port) && is_free(port + 10_000) {
            return port;
        }
    }
    panic!("no port is free");
}
