//! What the tests share: a real `bigiron` process on free ports, a server in this process, and a small HTTP client that
//! checks on every answer what nobody asked about.

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use bigiron::{
    config::Tuning,
    server::{Builder, Running},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

/// No test waits longer than this for something that should happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A `bigiron` process. Killed when dropped.
pub(crate) struct Process {
    child: Child,
    pub(crate) addr: SocketAddr,
    pub(crate) admin_addr: SocketAddr,
    /// The log until it said that it serves.
    pub(crate) began: Vec<String>,
    log: mpsc::Receiver<String>,
}

impl Process {
    /// Starts `bigiron serve` on free ports in the project's folder, and waits until it says that it serves.
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::start_in(Path::new(env!("CARGO_MANIFEST_DIR")), args)
    }

    pub(crate) fn start_in(folder: &Path, args: &[&str]) -> Self {
        Self::start_program(Path::new(env!("CARGO_BIN_EXE_bigiron")), folder, args)
    }

    /// The same for an example, which is a program with the same command line.
    pub(crate) fn start_example(name: &str) -> Self {
        Self::start_example_with(name, &[])
    }

    pub(crate) fn start_example_with(name: &str, args: &[&str]) -> Self {
        Self::start_example_at(name, 0, &[], args)
    }

    /// The same at a port and with variables of the environment.
    pub(crate) fn start_example_at(name: &str, port: u16, variables: &[(&str, &str)], args: &[&str]) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_bigiron")).with_file_name("examples").join(name);
        assert!(program.exists(), "{} is missing: cargo test builds it", program.display());
        let mut command = Command::new(program);
        command.envs(variables.iter().copied()).current_dir(env!("CARGO_MANIFEST_DIR"));
        Self::start_at(command, port, args)
    }

    fn start_program(program: &Path, folder: &Path, args: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.current_dir(folder);
        Self::start_at(command, 0, args)
    }

    /// At this port of the loopback address, unless the arguments have an address.
    fn start_at(mut command: Command, port: u16, args: &[&str]) -> Self {
        let listen = ["--listen".to_owned(), format!("127.0.0.1:{port}")];
        let mut child = command
            .args(["serve", "--set", "server.admin_listen=127.0.0.1:0", "--set", "log.format=json"])
            .args(if args.contains(&"--listen") { &[][..] } else { &listen })
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stderr = child.stderr.take().expect("piped");
        let (lines, log) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if lines.send(line).is_err() {
                    return;
                }
            }
        });
        let (mut addr, mut admin_addr, mut began) = (None, None, Vec::new());
        while addr.is_none() || admin_addr.is_none() {
            let text = log.recv_timeout(PATIENCE).expect("the start says where it serves");
            let line: Value = serde_json::from_str(&text).expect("a log line is JSON");
            began.push(text);
            let host = |key: &str| {
                let (_, rest) = line[key].as_str()?.split_once("://")?;
                rest.split('/').next()?.parse().ok()
            };
            addr = addr.or_else(|| host("url"));
            admin_addr = admin_addr.or_else(|| host("health"));
        }
        let (addr, admin_addr) = (addr.expect("found"), admin_addr.expect("found"));
        Self { child, addr, admin_addr, began, log }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status();
        assert!(sent.expect("kill (package procps) is there").success());
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                return status;
            }
            assert!(Instant::now() < until, "the process does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The log lines that came since the last look.
    pub(crate) fn log_lines(&self) -> Vec<String> {
        self.log.try_iter().collect()
    }

    /// Waits for a log line that has this text in it, and counts the lines until then.
    pub(crate) fn log_line_count_until(&self, text: &str) -> usize {
        for count in 1.. {
            let line = self.log.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no log line with {text:?}"));
            if line.contains(text) {
                return count;
            }
        }
        unreachable!("counting does not end")
    }

    /// Waits for a log line that has this text in it.
    pub(crate) fn log_line_with(&self, text: &str) -> String {
        loop {
            let line = self.log.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no log line with {text:?}"));
            if line.contains(text) {
                return line;
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts a server in this process, on free ports.
pub(crate) fn start(server: Builder, tune: impl FnOnce(&mut Tuning)) -> Running {
    let mut tuning = Tuning::default();
    tuning.server.listen = "127.0.0.1:0".into();
    tuning.server.admin_listen = "127.0.0.1:0".into();
    tune(&mut tuning);
    server.start(tuning).expect("the server starts")
}

/// How many of `wanted` connections this process can hold beside all else that it does: the limit on open files is raised
/// as far as it goes.
pub(crate) fn connections_that_fit(wanted: usize) -> usize {
    const ALL_ELSE: u64 = 4000; // other tests run beside this one
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("to its own hard limit");
    let most = limit.maximum.map_or(u64::MAX, |most| most.saturating_sub(ALL_ELSE));
    wanted.min(usize::try_from(most).unwrap_or(usize::MAX))
}

/// Waits until `done`.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "this never happened: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A response, read to its end.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("not JSON ({e}): {}", String::from_utf8_lossy(&self.body)))
    }

    /// The messages of an event stream.
    pub(crate) fn events(&self) -> Vec<Value> {
        self.events_with_ids().into_iter().filter_map(|event| event.message).collect()
    }

    /// The events of a stream, each with what else it says.
    pub(crate) fn events_with_ids(&self) -> Vec<Event> {
        let text = std::str::from_utf8(&self.body).expect("UTF-8");
        assert!(text.is_empty() || text.ends_with("\n\n"), "the last event is whole: {text:?}");
        text.split_terminator("\n\n").filter_map(Event::read).collect()
    }

    /// The code of a JSON-RPC error.
    pub(crate) fn code(&self) -> Option<i64> {
        self.json()["error"]["code"].as_i64()
    }

    /// The first text of a tool's result.
    pub(crate) fn text(&self) -> String {
        self.json()["result"]["content"][0]["text"].as_str().unwrap_or_default().to_owned()
    }
}

/// One event of a stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Event {
    pub(crate) id: Option<String>,
    pub(crate) retry_ms: Option<u64>,
    /// `None` for one without data, which only brings an id.
    pub(crate) message: Option<Value>,
}

impl Event {
    /// Reads the lines of one event, strictly; `None` for a comment.
    fn read(text: &str) -> Option<Self> {
        let mut event = Self::default();
        let mut is_comment = true;
        for line in text.split('\n') {
            if line.starts_with(':') {
                continue;
            }
            is_comment = false;
            let (field, value) = line.split_once(": ").unwrap_or_else(|| panic!("no line of an event: {line:?}"));
            match field {
                "id" => event.id = Some(value.to_owned()),
                "retry" => event.retry_ms = Some(value.parse().expect("a number")),
                "data" if value.is_empty() => {}
                "data" => event.message = Some(serde_json::from_str(value).expect("an event is JSON")),
                _ => panic!("an unknown field: {line:?}"),
            }
        }
        (!is_comment).then_some(event)
    }
}

/// A response that is read while it comes.
pub(crate) struct Stream {
    client: Client,
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    unread: String,
    is_over: bool,
}

impl Stream {
    /// The next event; `None` at the end of the stream.
    pub(crate) fn next(&mut self) -> Option<Event> {
        loop {
            let event = Event::read(&self.block()?);
            if event.is_some() {
                return event;
            }
        }
    }

    /// The next comment. No event may come before it.
    pub(crate) fn comment(&mut self) -> String {
        let block = self.block().expect("the stream goes on");
        assert_eq!(Event::read(&block), None, "a comment and not {block:?}");
        block
    }

    /// The next event or comment as it came; `None` at the end of the stream.
    fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.unread.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.unread = rest;
                return Some(block);
            }
            if self.is_over {
                assert!(self.unread.is_empty(), "half an event: {:?}", self.unread);
                return None;
            }
            match self.client.chunk() {
                Some(chunk) if !chunk.is_empty() => {
                    self.unread.push_str(std::str::from_utf8(&chunk).expect("UTF-8, and events are not cut"));
                }
                _ => self.is_over = true,
            }
        }
    }

    /// The message of the next event that has one.
    pub(crate) fn message(&mut self) -> Value {
        loop {
            let event = self.next().expect("the stream goes on");
            if let Some(message) = event.message {
                return message;
            }
        }
    }

    /// Whether it is a stream that ends without an event.
    pub(crate) fn has_nothing(mut self) -> bool {
        assert_eq!(self.status, 200);
        self.next().is_none()
    }

    /// Ends the connection.
    pub(crate) fn hang_up(self) {}

    /// Reads byte by byte with a pause after each, while the connection lives and as long as is wanted.
    pub(crate) fn trickle(mut self, pause: Duration, is_enough: &AtomicBool) {
        while !is_enough.load(Ordering::SeqCst) && self.client.stream.get_mut().read(&mut [0]).is_ok_and(|n| n > 0) {
            thread::sleep(pause);
        }
    }
}

/// A connection that is kept open between requests.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    pub(crate) fn connect(addr: SocketAddr) -> Self {
        Self::over(TcpStream::connect_timeout(&addr, PATIENCE).expect("connects"))
    }

    /// One with so little room, here and in the kernel on the other side, that the server meets the client's not reading
    /// after some 10 KiB and not after megabytes.
    pub(crate) fn connect_narrow(addr: SocketAddr) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(2048).expect("a small buffer");
        socket.set_tcp_mss(536).expect("small segments");
        socket.connect_timeout(&addr.into(), PATIENCE).expect("connects");
        Self::over(socket.into())
    }

    fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("nodelay");
        Self { stream: BufReader::new(stream) }
    }

    /// From another address of this host.
    pub(crate) fn connect_from(own: IpAddr, addr: SocketAddr) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::STREAM, None);
        let socket = socket.expect("a socket");
        socket.bind(&SocketAddr::new(own, 0).into()).expect("binds");
        socket.connect_timeout(&addr.into(), PATIENCE).expect("connects");
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("nodelay");
        Self { stream: BufReader::new(stream) }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("sends");
    }

    /// Reads some bytes, at most so many; none at the end.
    pub(crate) fn read_some(&mut self, max: usize) -> usize {
        self.stream.read(&mut vec![0; max]).unwrap_or(0)
    }

    /// Another hand on its sending side.
    pub(crate) fn writer(&self) -> TcpStream {
        self.stream.get_ref().try_clone().expect("a descriptor")
    }

    /// Ends the sending side only.
    pub(crate) fn half_close(&mut self) {
        self.stream.get_mut().shutdown(Shutdown::Write).expect("shuts down");
    }

    /// The next response; `None` when the connection ends before one.
    pub(crate) fn receive(&mut self) -> Option<Response> {
        let (status, headers) = self.head()?;
        let mut response = Response { status, headers, body: Vec::new() };
        if response.header("transfer-encoding").is_some() {
            response.body = self.chunks();
        } else if let Some(length) = response.header("content-length").map(str::to_owned) {
            response.body = vec![0; length.parse().expect("a length")];
            self.stream.read_exact(&mut response.body).expect("the whole body");
        }
        check(&response);
        Some(response)
    }

    /// Sends a request whose answer is a stream, and reads its head.
    pub(crate) fn open(mut self, request: &[u8]) -> Stream {
        self.send(request);
        let (status, headers) = self.head().expect("an answer");
        Stream { client: self, status, headers, unread: String::new(), is_over: false }
    }

    /// Status and headers.
    fn head(&mut self) -> Option<(u16, Vec<(String, String)>)> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let status =
            line.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("status line {line:?}"));
        let mut headers = Vec::new();
        loop {
            line.clear();
            self.stream.read_line(&mut line).expect("a header");
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        Some((status, headers))
    }

    fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let chunk = self.chunk().expect("the body goes on");
            if chunk.is_empty() {
                return body;
            }
            body.extend_from_slice(&chunk);
        }
    }

    /// The next chunk, empty at the end of the body; `None` when the connection ended before that.
    fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).expect("a chunk in time") == 0 {
            return None;
        }
        let size = usize::from_str_radix(line.trim(), 16).unwrap_or_else(|_| panic!("chunk size {line:?}"));
        let mut chunk = vec![0; size + 2];
        self.stream.read_exact(&mut chunk).expect("a whole chunk");
        chunk.truncate(size);
        Some(chunk)
    }

    /// Whether the server has closed the connection. Waits for it; one that stays open and silent is not closed.
    pub(crate) fn is_closed(&mut self) -> bool {
        match self.stream.read(&mut [0]) {
            Ok(n) => n == 0,
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }

    /// Whether the connection has an end, after which nothing was wrong with it.
    pub(crate) fn ends(&mut self) -> bool {
        self.stream.read(&mut [0]).is_ok_and(|bytes| bytes == 0)
            && self.stream.get_ref().take_error().is_ok_and(|error| error.is_none())
    }

    /// Whether nothing has come that was not read.
    pub(crate) fn has_nothing_yet(&self) -> bool {
        let stream = self.stream.get_ref();
        stream.set_nonblocking(true).expect("a socket");
        let peeked = stream.peek(&mut [0]);
        stream.set_nonblocking(false).expect("a socket");
        self.stream.buffer().is_empty() && peeked.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    }

    /// Waits for no longer than this, for bytes in either direction.
    pub(crate) fn set_patience(&self, patience: Duration) {
        self.stream.get_ref().set_read_timeout(Some(patience)).expect("a timeout");
        self.stream.get_ref().set_write_timeout(Some(patience)).expect("a timeout");
    }

    /// Sends what the server may not take: whether it took it all.
    pub(crate) fn offer(&mut self, bytes: &[u8]) -> bool {
        self.stream.get_mut().write_all(bytes).is_ok()
    }

    /// Takes in little, so that a large response cannot be written at once.
    pub(crate) fn narrow(&self) {
        rustix::net::sockopt::set_socket_recv_buffer_size(self.stream.get_ref(), 4096).expect("a small buffer");
    }

    /// Ends the connection with a reset, as a crash or a firewall does.
    pub(crate) fn reset(self) {
        rustix::net::sockopt::set_socket_linger(self.stream.get_ref(), Some(Duration::ZERO)).expect("no lingering");
    }

    /// One request and its response.
    pub(crate) fn post(&mut self, headers: &[(&str, &str)], body: &Value) -> Response {
        self.send(&post_bytes(headers, body.to_string().as_bytes()));
        self.receive().expect("an answer")
    }
}

/// What holds for every answer, whatever it is about.
fn check(response: &Response) {
    let json = response.header("content-type") == Some("application/json");
    if response.status >= 400 && !response.body.is_empty() {
        assert!(json, "a refusal is JSON: {response:?}");
    }
    if json {
        let value = response.json();
        if value.get("jsonrpc").is_some() {
            assert!(value.get("result").is_some() != value.get("error").is_some(), "one of result and error: {value}");
            assert!(value.get("id") != Some(&Value::Null), "an id is never null: {value}");
        }
    }
    if response.status == 202 || response.status == 204 {
        assert!(response.body.is_empty(), "{response:?}");
    }
}

/// The bytes of a POST with the usual headers and those given; a given one replaces the usual one, and an empty value
/// leaves it out.
pub(crate) fn post_bytes(headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let length = body.len().to_string();
    let usual = [
        ("Host", "127.0.0.1"),
        ("Content-Type", "application/json"),
        ("Accept", "application/json, text/event-stream"),
        ("Content-Length", length.as_str()),
    ];
    let mut text = "POST /mcp HTTP/1.1\r\n".to_owned();
    let kept = usual.iter().filter(|(name, _)| !headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name)));
    for (name, value) in kept.chain(headers).filter(|(_, value)| !value.is_empty()) {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    [text.as_bytes(), body].concat()
}

/// The `_meta` of a request of 2026-07-28.
pub(crate) fn meta() -> Value {
    json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": { "name": "tests", "version": "1" },
        "io.modelcontextprotocol/clientCapabilities": {}
    })
}

/// A request of 2026-07-28.
pub(crate) fn modern(id: impl Into<Value>, method: &str, mut params: Value) -> Value {
    if params.get("_meta").is_none() {
        params["_meta"] = meta();
    }
    json!({ "jsonrpc": "2.0", "id": id.into(), "method": method, "params": params })
}

/// Its headers.
pub(crate) fn modern_headers<'a>(method: &'a str, name: &'a str) -> [(&'a str, &'a str); 3] {
    [("MCP-Protocol-Version", "2026-07-28"), ("Mcp-Method", method), ("Mcp-Name", name)]
}

/// Opens a stream of changes.
pub(crate) fn listen(addr: SocketAddr, id: impl Into<Value>, filter: Value) -> Stream {
    let request = modern(id, "subscriptions/listen", json!({ "notifications": filter }));
    let headers = [("MCP-Protocol-Version", "2026-07-28"), ("Mcp-Method", "subscriptions/listen")];
    Client::connect(addr).open(&post_bytes(&headers, request.to_string().as_bytes()))
}

/// Calls a tool on a new connection, in the way of 2026-07-28.
pub(crate) fn call(addr: SocketAddr, tool: &str, arguments: Value) -> Response {
    let request = modern(1, "tools/call", json!({ "name": tool, "arguments": arguments }));
    Client::connect(addr).post(&modern_headers("tools/call", tool), &request)
}

/// GET on a new connection.
pub(crate) fn get(addr: SocketAddr, path: &str) -> Response {
    let mut client = Client::connect(addr);
    client.send(format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").as_bytes());
    client.receive().expect("an answer")
}

/// What the admin listener tells Prometheus.
pub(crate) fn metrics(running: &Running) -> String {
    let response = get(running.admin_addr().expect("an admin listener"), "/metrics");
    assert_eq!(response.status, 200);
    assert_eq!(response.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    String::from_utf8(response.body).expect("UTF-8")
}

/// The value of one series.
pub(crate) fn metric(running: &Running, series: &str) -> f64 {
    let text = metrics(running);
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{series} is not in\n{text}")).parse().expect("a number")
}

/// A session of an older revision on one connection.
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) id: String,
}

impl Session {
    pub(crate) fn open(addr: SocketAddr, version: &str) -> Self {
        Self::open_with(addr, version, json!({}))
    }

    /// The same for a client that can do something.
    pub(crate) fn open_with(addr: SocketAddr, version: &str, capabilities: Value) -> Self {
        let mut client = Client::connect(addr);
        let params = json!({ "protocolVersion": version, "capabilities": capabilities, "clientInfo": { "name": "tests", "version": "1" } });
        let request = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params });
        let response = client.post(&[], &request);
        assert_eq!(response.status, 200, "{response:?}");
        let id = response.header("mcp-session-id").expect("a session id").to_owned();
        let mut session = Self { client, id };
        assert_eq!(session.notify("notifications/initialized", json!({})).status, 202);
        session
    }

    pub(crate) fn request(&mut self, id: impl Into<Value>, method: &str, params: Value) -> Response {
        let request = json!({ "jsonrpc": "2.0", "id": id.into(), "method": method, "params": params });
        self.client.post(&[("Mcp-Session-Id", &self.id)], &request)
    }

    pub(crate) fn notify(&mut self, method: &str, params: Value) -> Response {
        let request = json!({ "jsonrpc": "2.0", "method": method, "params": params });
        self.client.post(&[("Mcp-Session-Id", &self.id)], &request)
    }

    /// A request on a connection of its own, whose answer is read while it comes.
    pub(crate) fn stream(&self, addr: SocketAddr, id: impl Into<Value>, method: &str, params: Value) -> Stream {
        let request = json!({ "jsonrpc": "2.0", "id": id.into(), "method": method, "params": params });
        let bytes = post_bytes(&[("Mcp-Session-Id", &self.id)], request.to_string().as_bytes());
        Client::connect(addr).open(&bytes)
    }

    /// The session's own stream, or the rest of another after an event.
    pub(crate) fn listen(&self, addr: SocketAddr, last_event_id: Option<&str>) -> Stream {
        let resume = last_event_id.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        let head = "GET /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n";
        Client::connect(addr).open(format!("{head}Mcp-Session-Id: {}\r\n{resume}\r\n", self.id).as_bytes())
    }

    /// Answers a question of the server, on a connection of its own.
    pub(crate) fn answer(&self, addr: SocketAddr, question: &Value, result: Value) -> Response {
        let answer = json!({ "jsonrpc": "2.0", "id": question["id"], "result": result });
        Client::connect(addr).post(&[("Mcp-Session-Id", &self.id)], &answer)
    }

    /// Ends it, as a client that is done does.
    pub(crate) fn end(mut self) {
        let request = format!("DELETE /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nMcp-Session-Id: {}\r\n\r\n", self.id);
        self.client.send(request.as_bytes());
        assert_eq!(self.client.receive().expect("an answer").status, 204);
    }
}
