//! Real `redis-server` processes on free ports, each with a folder of its own. They end when dropped.

#![allow(dead_code)] // each of the two who include this file uses a part of it

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, AtomicU16, Ordering},
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
    hangs: AtomicBool,
}

impl Redis {
    /// A server that keeps nothing on disk.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(args: &[&str]) -> Self {
        let password = args.iter().skip_while(|arg| **arg != "--requirepass").nth(1).copied();
        Self::first("redis-server", password, |_, _| args.iter().map(|arg| (*arg).to_owned()).collect())
    }

    /// A server that was to save to a folder that is gone, so that it takes no writes any more (MISCONF).
    pub(crate) fn that_cannot_save(before: impl FnOnce(&Self)) -> Self {
        let gone = folder();
        let redis = Self::start_with(&["--dir", &gone.path().display().to_string()]);
        before(&redis);
        drop(gone);
        assert_eq!(redis.cli(&["CONFIG", "SET", "save", "3600 1"]), "OK");
        redis.cli(&["BGSAVE"]);
        eventually("it cannot save", || redis.cli(&["INFO", "persistence"]).contains("rdb_last_bgsave_status:err"));
        redis
    }

    pub(crate) fn with_password(password: &str) -> Self {
        Self::first("redis-server", Some(password), |_, _| vec!["--requirepass".into(), password.into()])
    }

    /// A sentinel that watches the master at `master`, with a quorum of two, and takes it for down after so long.
    pub(crate) fn sentinel(master: u16, down_after_ms: u32) -> Self {
        Self::first("redis-sentinel", None, |port, folder| {
            let text = format!(
                "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor mymaster 127.0.0.1 {master} 2\n\
                 sentinel down-after-milliseconds mymaster {down_after_ms}\nsentinel failover-timeout mymaster 3000\n",
                folder.display()
            );
            let file = folder.join("sentinel.conf");
            std::fs::write(&file, text).expect("a file of settings");
            vec![file.display().to_string()]
        })
    }

    /// Starts it on a port that is free, with the arguments made for that port and that folder. Another process may take
    /// the port in between: then another port.
    fn first(program: &'static str, password: Option<&str>, args: impl Fn(u16, &Path) -> Vec<String>) -> Self {
        const TRIES: usize = 20;
        for _ in 0..TRIES {
            let (port, folder) = (free_port(), folder());
            let args = args(port, folder.path());
            let (password, hangs) = (password.map(str::to_owned), AtomicBool::new(false));
            let mut redis = Self { child: None, folder, port, program, args, password, hangs };
            if redis.is_begun() {
                return redis;
            }
        }
        panic!("{program} got none of {TRIES} ports that were free");
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Starts it, on the same port as before and with nothing of before.
    pub(crate) fn restart(&mut self) {
        assert!(self.is_begun(), "{} got its port {} back", self.program, self.port);
    }

    /// Whether it runs and has its port: what answers there is this process and no other one.
    fn is_begun(&mut self) -> bool {
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
        let id = child.id();
        self.child = Some(child);
        let mut has_ended = false;
        eventually("it answers", || {
            has_ended = self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
            has_ended || self.answering() == Some(id)
        });
        if has_ended {
            self.kill();
        }
        !has_ended
    }

    /// The same, to follow this master from now on.
    pub(crate) fn restart_as_replica_of(&mut self, master: u16) {
        self.args = ["--replicaof", "127.0.0.1", &master.to_string()].map(str::to_owned).into();
        self.restart();
    }

    /// The same, with a password from now on.
    pub(crate) fn restart_with_password(&mut self, password: &str) {
        self.args = vec!["--requirepass".into(), password.into()];
        self.password = Some(password.into());
        self.restart();
    }

    /// Ends it as a power cut does.
    pub(crate) fn kill(&mut self) {
        *self.hangs.get_mut() = false;
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops it without ending it: its connections stay, and nothing is answered.
    pub(crate) fn hang(&self) {
        self.signal("STOP");
        self.hangs.store(true, Ordering::Relaxed);
    }

    pub(crate) fn wake(&self) {
        self.signal("CONT");
        self.hangs.store(false, Ordering::Relaxed);
    }

    fn signal(&self, name: &str) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.expect("kill (package procps) is there").success());
    }

    /// The number of the process that answers on its port.
    fn answering(&self) -> Option<u32> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        if let Some(password) = &self.password {
            write!(stream, "AUTH {password}\r\n").ok()?;
        }
        stream.write_all(b"INFO server\r\n").ok()?;
        // No QUIT, which a sentinel does not know; where there is no such line it is the pause that ends this.
        let lines = BufReader::new(stream).lines().map_while(Result::ok);
        lines.filter_map(|line| line.strip_prefix("process_id:")?.trim_end().parse().ok()).next()
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
        Self::start_with(1500) // where all is slow a shorter silence is no death
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

    /// The port of the master, once all sentinels that do not hang agree on it and it is one: they hear of a new one one
    /// after the other.
    pub(crate) fn master(&self) -> u16 {
        let mut agreed = None;
        eventually("the sentinels agree", || {
            agreed = self.agreed();
            agreed.is_some()
        });
        agreed.expect("they agree")
    }

    fn agreed(&self) -> Option<u16> {
        let awake = self.sentinels.iter().filter(|sentinel| !sentinel.hangs.load(Ordering::Relaxed));
        let named = awake.map(|sentinel| {
            let told = sentinel.cli(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"]);
            told.lines().nth(1)?.parse().ok()
        });
        let named: Option<Vec<u16>> = named.collect();
        let (first, others) = named.as_ref()?.split_first()?;
        let is_one = || self.at(*first).cli(&["ROLE"]).starts_with("master");
        (others.iter().all(|other| other == first) && is_one()).then_some(*first)
    }

    /// The server that has this port.
    pub(crate) fn at(&self, port: u16) -> &Redis {
        self.servers.iter().find(|server| server.port == port).expect("one of ours")
    }

    fn at_mut(&mut self, port: u16) -> &mut Redis {
        self.servers.iter_mut().find(|server| server.port == port).expect("one of ours")
    }

    /// Kills the master. Returns its port.
    pub(crate) fn kill_master(&mut self) -> u16 {
        let port = self.master();
        self.at_mut(port).kill();
        port
    }

    /// Kills the master, waits until another one is, has the old one follow it, and waits until all is well again.
    /// Returns how many keys the master had and the next one has, and how long there was none.
    pub(crate) fn fail_over(&mut self) -> (u64, u64, Duration) {
        let old = self.master();
        let count = |server: &Redis| server.cli(&["DBSIZE"]).parse::<u64>().unwrap_or_default();
        let before = count(self.at(old));
        self.at_mut(old).kill();
        let killed = Instant::now();
        // It runs no more, so whom they agree on is another one.
        let new = self.master();
        let (after, without) = (count(self.at(new)), killed.elapsed());
        self.at_mut(old).restart_as_replica_of(new);
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
        let address = format!("127.0.0.1:{}", self.0[0].port);
        let mut check = Command::new("redis-cli");
        check.args(["--cluster", "check", &address]);
        // Each may say that all is well while they do not say the same yet, and then the tool does nothing.
        eventually("all say the same", || check.output().is_ok_and(|output| output.status.success()));
        let mut reshard = Command::new("redis-cli");
        reshard.args(["--cluster", "reshard", &address]);
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
        self.ranges_of(of).iter().map(|(first, last)| usize::from(last + 1 - first)).sum()
    }

    /// Whether a master has this slot.
    pub(crate) fn has_slot(&self, of: usize, slot: u16) -> bool {
        self.ranges_of(of).iter().any(|(first, last)| (*first..=*last).contains(&slot))
    }

    fn ranges_of(&self, of: usize) -> Vec<(u16, u16)> {
        let (id, told) = (self.id(of), self.0[of].cli(&["CLUSTER", "NODES"]));
        let line = told.lines().find(|line| line.starts_with(&id)).expect("itself");
        let range = |range: &str| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            Some((first.parse().ok()?, last.parse().ok()?))
        };
        line.split(' ').skip(8).filter_map(range).collect()
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
    const APART: u32 = 307; // processes that are started one after the other have neighbouring numbers
    static TURN: AtomicU16 = AtomicU16::new(0);
    let begin = (std::process::id().wrapping_mul(APART) % u32::from(COUNT)) as u16;
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    for _ in 0..COUNT {
        let port = FIRST + (begin + TURN.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT;
        if is_free(port) && is_free(port + 10_000) {
            return port;
        }
    }
    panic!("no port is free");
}
