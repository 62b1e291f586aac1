//! What still answers while nothing else can run.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{Result, lab::Lab, verdict};

/// Every worker and the whole queue taken by calls that do not end in time.
pub(crate) fn wedged(lab: &Lab) -> Result<()> {
    let sets = ["pool.queue_max=50", "limits.request_timeout_ms=20000"];
    let server = lab.serve(None, &sets)?;
    let url = format!("http://{}/mcp", server.address);
    let load = ["--url", &url, "--tool", "burn", "--arguments", r#"{"ms":60000}"#, "--connections", "80"];
    let seconds = lab.seconds + 4;
    let wedge = Command::new(&lab.program)
        .arg("bench")
        .args(load)
        .args(["--warmup", "0s", "--duration", &format!("{seconds}s"), "--timeout", "60s"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    thread::sleep(Duration::from_secs(2));
    let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let list = concat!(
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":{"#,
        r#""io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":"#,
        r#"{"name":"x","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}}}"#
    );
    let until = Instant::now() + Duration::from_secs(lab.seconds);
    while Instant::now() < until {
        for (name, address, path, body) in [
            ("/health", server.address, "/health", None),
            ("/ready", server.admin, "/ready", None),
            ("/metrics", server.admin, "/metrics", None),
            ("tools/list", server.address, "/mcp", Some(list)),
        ] {
            times.entry(name).or_default().push(ask(address, path, body)?);
        }
        thread::sleep(Duration::from_millis(10));
    }
    let mut wedge = wedge;
    wedge.kill()?;
    wedge.wait()?;
    for (name, mut times) in times {
        times.sort_by(f64::total_cmp);
        let p99 = times[times.len() * 99 / 100];
        let most = if name == "tools/list" { 100.0 } else { 50.0 };
        verdict(&format!("{name} p99 <= {most} ms"), p99 <= most, format!("{p99:.2} ms of {} asked", times.len()));
    }
    Ok(())
}

/// Milliseconds for one answer on a new connection.
fn ask(address: SocketAddr, path: &str, body: Option<&str>) -> Result<f64> {
    let began = Instant::now();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request = match body {
        None => format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"),
        Some(body) => format!(
            "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Accept: application/json, text/event-stream\r\nMCP-Protocol-Version: 2026-07-28\r\n\
             Mcp-Method: tools/list\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ),
    };
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if !answer.starts_with("HTTP/1.1 200") {
        return Err(format!("{path} answered {answer:.200}").into());
    }
    Ok(began.elapsed().as_secs_f64() * 1e3)
}
