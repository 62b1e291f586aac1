//! Looks after what cannot look after itself, some times a second, on a thread that does nothing else: threads that hang,
//! polls that take too long, and memory.

use std::{
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use crate::{
    front::{Front, pressure::Level},
    listener::{Connections, Secure},
    mcp::router::Router,
};

/// Between two looks: as long as memory may fill unseen.
const PAUSE: Duration = Duration::from_millis(25);
/// How much of the kept results goes at each look while memory is short.
const CACHE_GIVEN_UP: f64 = 0.25;

/// Starts the thread for a front door. It ends some time after the last who serves by it.
pub(super) fn start(
    front: &Arc<Front>,
    connections: &Arc<Connections>,
    secure: Option<&Arc<Secure>>,
) -> std::io::Result<()> {
    let (front, connections, secure) = (Arc::downgrade(front), Arc::downgrade(connections), secure.map(Arc::clone));
    spawn(move || {
        if let (Some(secure), Some(connections)) = (&secure, connections.upgrade())
            && let Some(files) = secure.look_after(Instant::now(), &connections)
            && let Some(front) = front.upgrade()
        {
            super::running::note(&front.router, "reload", &files);
        }
        look(&front, &connections)
    })
}

/// The same for a server that has no front door: over pipes.
pub(super) fn start_without_front(router: &Arc<Router>) -> std::io::Result<()> {
    let router = Arc::downgrade(router);
    spawn(move || {
        let router = router.upgrade();
        if let Some(router) = &router {
            router.dispatch.look_after(Instant::now());
        }
        router.is_some()
    })
}

/// `look` says false when there is nothing left to look after.
fn spawn(look: impl Fn() -> bool + Send + 'static) -> std::io::Result<()> {
    let looks = move || {
        while look() {
            thread::sleep(PAUSE);
        }
    };
    thread::Builder::new().name("watch".into()).spawn(looks).map(drop)
}

fn look(front: &Weak<Front>, connections: &Weak<Connections>) -> bool {
    let Some(front) = front.upgrade() else { return false };
    front.router.dispatch.look_after(Instant::now());
    if let Some(news) = front.doorkeeper.as_ref().and_then(|doorkeeper| doorkeeper.look_after(Instant::now())) {
        super::running::note(&front.router, "reload", &news);
    }
    let before = front.pressure.level();
    let level = front.pressure.look();
    if level >= Level::Streams {
        front.router.dispatch.give_up_kept(CACHE_GIVEN_UP);
    }
    if before < Level::KeepAlive
        && level >= Level::KeepAlive
        && let Some(connections) = connections.upgrade()
    {
        connections.wake_all(); // those with nothing on them end
    }
    true
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpStream,
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use super::*;
    use crate::{Ctx, Lane, Server, Tool, config::Tuning, server::Running, tool};

    const PATIENCE: Duration = Duration::from_secs(60);
    /// Hundredths of the memory that are in use.
    const ENOUGH: u64 = 50;
    const STREAMS: u64 = 88;
    const KEEP_ALIVE: u64 = 93;
    const CALLS: u64 = 96;

    /// Serves `count`, of which each result is kept and says how often it ran.
    fn serve() -> (Running, Arc<AtomicUsize>) {
        let runs = Arc::<AtomicUsize>::default();
        let counting = Arc::clone(&runs);
        let count = Tool::new("count", "Counts its runs", Lane::Inline, move |(): (), _: Ctx| {
            format!("run {}", counting.fetch_add(1, SeqCst) + 1)
        });
        let mut tuning = Tuning::default();
        tuning.server.listen = "127.0.0.1:0".into();
        tuning.server.admin_listen = String::new();
        tuning.tools.insert("count".into(), tool::Config { cache_ttl_s: Some(600), ..tool::Config::default() });
        (Server::builder().with(count.read_only()).start(tuning).expect("it starts"), runs)
    }

    fn connect(running: &Running) -> TcpStream {
        let stream = TcpStream::connect(running.addr()).expect("it accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time is set");
        stream
    }

    /// Sends a request, and reads what comes at once: the head at least.
    fn ask(stream: &mut TcpStream, method: &str, params: &str) -> String {
        const META: &str = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{"name":"t","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}"#;
        let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{{params},{META}}}}}"#);
        let name = if method == "tools/call" { "Mcp-Name: count\r\n" } else { "" };
        write!(
            stream,
            "POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Accept: application/json, text/event-stream\r\nMCP-Protocol-Version: 2026-07-28\r\n\
             Mcp-Method: {method}\r\n{name}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .expect("it is sent");
        let mut answer = [0; 8192];
        let length = stream.read(&mut answer).expect("an answer");
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }

    fn call(stream: &mut TcpStream) -> String {
        ask(stream, "tools/call", r#""name":"count","arguments":{}"#)
    }

    fn listen(running: &Running) -> String {
        ask(&mut connect(running), "subscriptions/listen", r#""notifications":{"toolsListChanged":true}"#)
    }

    fn until(running: &Running, level: Level) {
        let end = Instant::now() + PATIENCE;
        while running.front.pressure.level() != level {
            assert!(Instant::now() < end, "it is never {level:?}");
            thread::sleep(PAUSE);
        }
    }

    #[test]
    fn the_shorter_memory_is_the_more_is_refused_and_all_is_well_afterwards() {
        let (running, runs) = serve();
        let pressure = &running.front.pressure;
        let (mut one, mut idle) = (connect(&running), connect(&running));
        for stream in [&mut one, &mut idle] {
            assert!(call(stream).contains("run 1"), "its result is kept");
        }
        assert!(listen(&running).starts_with("HTTP/1.1 200"));

        pressure.pretend(STREAMS);
        until(&running, Level::Streams);
        let refused = listen(&running);
        assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("memory is short"), "{refused}");
        let end = Instant::now() + PATIENCE;
        while runs.load(SeqCst) < 3 {
            assert!(Instant::now() < end, "kept results do not go");
            assert!(call(&mut one).starts_with("HTTP/1.1 200"));
        }

        pressure.pretend(KEEP_ALIVE);
        assert_eq!(idle.read(&mut [0]).expect("no reset"), 0, "with nothing on it, it ends");
        let answer = call(&mut connect(&running));
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");

        pressure.pretend(CALLS);
        until(&running, Level::Calls);
        let refused = call(&mut connect(&running));
        assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("-31503"), "{refused}");
        assert!(refused.to_ascii_lowercase().contains("retry-after: "), "{refused}");

        pressure.pretend(ENOUGH);
        until(&running, Level::Nothing);
        assert!(listen(&running).starts_with("HTTP/1.1 200"));
        let mut stays = connect(&running);
        for _ in 0..2 {
            assert!(call(&mut stays).starts_with("HTTP/1.1 200"), "the connection is kept");
        }
        running.stop();
    }
}
