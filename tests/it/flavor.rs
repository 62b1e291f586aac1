//! I/O threads with a runtime each: all of them serve, a stop ends all of them, and a port in use is found.

use std::{collections::HashSet, sync::Arc, thread};

use bigiron::{Ctx, Lane, Server, config::Tuning, runtime::Flavor, server::Builder};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use crate::support::{call, start};

#[derive(Deserialize, JsonSchema)]
struct Nothing {}

/// A server with one tool in each lane, whose calls note the thread that they run on.
fn server() -> (Builder, Arc<Mutex<HashSet<String>>>) {
    let threads = Arc::<Mutex<HashSet<String>>>::default();
    let seen = Arc::clone(&threads);
    let server = Server::builder()
        .tool("where", "Notes where it runs", Lane::Inline, move |_: Nothing, _: Ctx| {
            seen.lock().insert(thread::current().name().unwrap_or("").to_owned());
            "noted"
        })
        .tool("pool", "Runs elsewhere", Lane::Pool, |_: Nothing, _: Ctx| "done");
    (server, threads)
}

fn two_threads(tuning: &mut Tuning) {
    tuning.runtime.io_threads = 2;
    tuning.runtime.flavor = Flavor::CurrentThread;
}

#[test]
fn every_thread_serves_and_a_stop_ends_them() {
    let (server, threads) = server();
    let running = start(server, two_threads);
    let addr = running.addr();
    // Each call is a connection, and the kernel deals those out by their ports: with so many, one thread alone does not
    // get all of them, but for once in 2^199 runs.
    for _ in 0..200 {
        assert_eq!(call(addr, "where", json!({})).text(), "noted");
    }
    assert_eq!(call(addr, "pool", json!({})).text(), "done");
    assert_eq!(*threads.lock(), HashSet::from(["io-0".to_owned(), "io-1".to_owned()]));
    assert_eq!(running.stop().cut, 0);
    assert!(std::net::TcpStream::connect(addr).is_err(), "no listener is left");
}

#[test]
fn a_port_in_use_is_found() {
    let (running, again) = (start(server().0, two_threads), server().0);
    let mut tuning = Tuning::default();
    two_threads(&mut tuning);
    tuning.server.listen = running.addr().to_string();
    tuning.server.admin_listen = String::new();
    let error = again.start(tuning).expect_err("the port is taken");
    assert!(error.to_string().contains("server.listen"), "{error}");
    running.stop();
}
