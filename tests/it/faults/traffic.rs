//! Good clients beside the bad ones.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::json;

use crate::support::{Client, PATIENCE, Session, modern, modern_headers};

/// Between two good calls of one thread: together the threads make some 200 calls a second.
const TRAFFIC_PAUSE: Duration = Duration::from_millis(10);

/// Two clients that call and check every answer, one in each era.
pub(super) struct Traffic {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    calls: Arc<AtomicU64>,
}

impl Traffic {
    /// Returns when both have had an answer.
    pub(super) fn start(addr: SocketAddr) -> Self {
        let (stop, calls) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (ready, started) = mpsc::sync_channel(2);
        let thread = |mut client: Box<dyn FnMut(u64) + Send>| {
            let (stop, calls, ready) = (Arc::clone(&stop), Arc::clone(&calls), ready.clone());
            thread::spawn(move || {
                for n in 0.. {
                    client(n);
                    calls.fetch_add(1, Ordering::Relaxed);
                    if n == 0 {
                        ready.send(()).expect("somebody waits");
                    } else if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    thread::sleep(TRAFFIC_PAUSE);
                }
            })
        };
        let mut modern_client = Client::connect(addr);
        let modern_call = move |n: u64| {
            let request =
                modern(n, "tools/call", json!({ "name": "echo", "arguments": { "message": format!("m{n}") } }));
            let response = modern_client.post(&modern_headers("tools/call", "echo"), &request);
            assert_eq!((response.status, response.text()), (200, format!("m{n}")));
            assert_eq!(response.json()["id"], n);
        };
        let mut session = Some(Session::open(addr, "2025-11-25"));
        let legacy_stop = Arc::clone(&stop);
        let legacy_call = move |n: u64| {
            let Some(open) = &mut session else { return };
            let params = json!({ "name": "echo", "arguments": { "message": format!("s{n}") } });
            let response = open.request(format!("{n}"), "tools/call", params);
            assert_eq!((response.status, response.text()), (200, format!("s{n}")));
            assert_eq!(response.json()["id"], format!("{n}"));
            if legacy_stop.load(Ordering::Relaxed) {
                session.take().into_iter().for_each(Session::end);
            }
        };
        let threads = vec![thread(Box::new(modern_call)), thread(Box::new(legacy_call))];
        for _ in &threads {
            started.recv_timeout(PATIENCE).expect("good calls are answered");
        }
        Self { stop, threads, calls }
    }

    /// Ends it: how many calls were answered, all of them right.
    pub(super) fn stop(self) -> Result<u64, String> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|panic| {
                let text = panic.downcast_ref::<String>().cloned();
                format!("a good call failed beside the bad ones: {}", text.unwrap_or_default())
            })?;
        }
        Ok(self.calls.load(Ordering::Relaxed))
    }
}
