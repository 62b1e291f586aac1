//! What the program does: serves until a signal, or the end of its input, stops it; logs, and says how it went by its exit
//! code.

use std::{process::ExitCode, sync::Arc, time::Duration};

use tokio::{sync::Notify, time::timeout};

use super::{
    StartError,
    builder::Builder,
    parts::io_runtime,
    running::{announce_root, announce_settings, end_audit, note, tool_names},
    standing, watch,
};
use crate::{
    config::{Loaded, weak},
    runtime::{self},
    shutdown::Signals,
    stdio,
    telemetry::{self},
};

impl Builder {
    /// Serves by settings that were loaded: over HTTP until a signal stops it, or over standard input and output until
    /// the input ends. Logs, and returns the process's exit code.
    pub fn serve(self, loaded: &Loaded, stdio: bool) -> ExitCode {
        if let Err(message) = telemetry::log::init(&loaded.tuning.log) {
            return StartError::config(message).tell();
        }
        telemetry::log::log_panics();
        let served = if stdio { self.serve_stdio(loaded) } else { self.serve_http(loaded) };
        served.unwrap_or_else(|error| error.tell())
    }

    fn serve_http(self, loaded: &Loaded) -> Result<ExitCode, StartError> {
        let root = self.toolbox_root(loaded);
        let running = self.start_with(loaded)?;
        let signals = {
            let _inside = running.io.enter();
            Signals::listen().map_err(|e| StartError::host("cannot listen for signals", e))?
        };
        // Before the start is told: who reads that line may send any signal.
        running.reload_on_hangup().map_err(|e| StartError::host("cannot listen for signals", e))?;
        running.announce(loaded, root.as_deref());
        standing::announce(loaded, &running.front, running.secure.as_deref());
        for weak in weak(loaded, root.as_deref()) {
            tracing::warn!("weak: {weak}");
        }
        Ok(running.until_signal(signals))
    }

    fn serve_stdio(self, loaded: &Loaded) -> Result<ExitCode, StartError> {
        let root = self.toolbox_root(loaded);
        let runtime = io_runtime(loaded.resolved.io_threads)?;
        let router = self.router(loaded, &runtime::host_name(), None, Arc::default(), &runtime)?;
        watch::start_without_front(&router).map_err(|e| StartError::host("cannot start the watching thread", e))?;
        tracing::info!(tools = tool_names(&router), "serving MCP on standard input and output");
        if let Some(root) = root {
            announce_root(&root);
        }
        announce_settings(loaded, &router);
        let (input, output) = (tokio::io::stdin(), tokio::io::stdout());
        let line_bytes_max = loaded.tuning.limits.request_bytes_max.as_usize();
        let calls_max = loaded.resolved.concurrent_requests_max;
        let grace = Duration::from_millis(loaded.tuning.server.drain_grace_ms);
        let served = runtime.block_on(async {
            let mut signals = Signals::listen()?;
            let stop = Notify::new();
            let served = stdio::serve(Arc::clone(&router), input, output, line_bytes_max, calls_max, &stop);
            tokio::pin!(served);
            tokio::select! {
                served = &mut served => return served.map(|()| 0),
                (signal, _) = signals.next() => {
                    tracing::info!(signal, "draining");
                    note(&router, "drain", signal);
                }
            }
            stop.notify_one(); // nothing more is read; what runs is answered
            tokio::select! {
                served = timeout(grace, served) => served.unwrap_or(Ok(())).map(|()| 0),
                (_, code) = signals.next() => Ok(code),
            }
        });
        end_audit(&router);
        runtime.shutdown_background(); // a read from standard input cannot be called back
        served.map(ExitCode::from).map_err(|e| StartError::host("standard input or output", e))
    }
}
