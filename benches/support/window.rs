//! One window: a stretch of load on one server, its figures, and whether they count.
//!
//! A window counts when the server's core was the bottleneck and was the server's own. Otherwise its rate is that
//! of the generator, or of whatever else ran, and is not averaged in. What this cannot see is a slower host: clock
//! frequency, caches shared with neighbours, interrupts. Compare servers within a run, not runs with each other.

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    Result,
    generator::Generator,
    process::{CoreTime, Server, own_run_ns},
    requests::{Expected, Row},
};

/// Connections settle, caches fill, the allocator grows.
const WARM_UP: Duration = Duration::from_millis(300);
/// Below this the server was waiting: the generator was the limit.
const SERVER_SHARE_MIN: f64 = 0.90;
/// Of the server's core; above this somebody else took part. Clock ticks make it good to about one percent.
const OTHERS_SHARE_MAX: f64 = 0.05;
/// Taken by the hypervisor, of either core.
const STOLEN_SHARE_MAX: f64 = 0.02;

pub(crate) struct Window {
    pub(crate) calls_per_s: f64,
    /// Of the server's process: all of it, and the parts as the kernel samples them.
    pub(crate) cpu_us_per_call: f64,
    pub(crate) user_us_per_call: f64,
    pub(crate) system_us_per_call: f64,
    pub(crate) calls_per_cpu_s: f64,
    pub(crate) latency_p50_us: f64,
    pub(crate) latency_p99_us: f64,
    /// Shares of a core's time, 0 to 1.
    pub(crate) server_share: f64,
    pub(crate) generator_share: f64,
    pub(crate) others_share: f64,
    pub(crate) others_beside_generator_share: f64,
    pub(crate) stolen_share: f64,
}

pub(crate) struct Load<'a> {
    pub(crate) row: Row,
    pub(crate) connections: usize,
    pub(crate) duration: Duration,
    pub(crate) expected: &'a Expected,
    pub(crate) plain: bool,
    pub(crate) server_core: usize,
    pub(crate) generator_core: usize,
}

impl Window {
    pub(crate) fn measure(server: &Server, load: &Load<'_>) -> Result<Self> {
        let mut generator = Generator::start(load.row, server.address, load.connections, load.expected, load.plain)?;
        generator.drive(WARM_UP)?;

        let used = server.usage()?;
        let generator_ran_ns = own_run_ns()?;
        let cores = [CoreTime::of(load.server_core)?, CoreTime::of(load.generator_core)?];
        let driven = generator.drive(load.duration)?;
        let [server_core, generator_core] =
            [CoreTime::of(load.server_core)?.since(cores[0]), CoreTime::of(load.generator_core)?.since(cores[1])];
        let generator_ran_ns = own_run_ns()? - generator_ran_ns;
        let now_used = server.usage()?;
        generator.finish()?;

        let calls = driven.calls as f64;
        let seconds = driven.elapsed.as_secs_f64();
        // Threads that ended take their time out of the sum.
        let cpu_s = now_used.run_ns.saturating_sub(used.run_ns) as f64 / 1e9;
        let cpu_us_per_call = cpu_s * 1e6 / calls;
        let user_ticks = (now_used.user_ticks - used.user_ticks) as f64;
        let system_ticks = (now_used.system_ticks - used.system_ticks) as f64;
        let user_us_per_call = cpu_us_per_call * user_ticks / (user_ticks + system_ticks);
        let server_share = cpu_s / seconds;
        let generator_share = generator_ran_ns as f64 / 1e9 / seconds;
        Ok(Self {
            calls_per_s: calls / seconds,
            cpu_us_per_call,
            user_us_per_call,
            system_us_per_call: cpu_us_per_call - user_us_per_call,
            calls_per_cpu_s: calls / cpu_s,
            latency_p50_us: driven.latency_ns.value_at_quantile(0.50) as f64 / 1e3,
            latency_p99_us: driven.latency_ns.value_at_quantile(0.99) as f64 / 1e3,
            server_share,
            generator_share,
            others_share: (server_core.busy_share() - server_share).max(0.0),
            others_beside_generator_share: (generator_core.busy_share() - generator_share).max(0.0),
            stolen_share: server_core.stolen_share().max(generator_core.stolen_share()),
        })
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "calls_per_s": self.calls_per_s,
            "cpu_us_per_call": self.cpu_us_per_call,
            "user_us_per_call": self.user_us_per_call,
            "system_us_per_call": self.system_us_per_call,
            "calls_per_cpu_s": self.calls_per_cpu_s,
            "latency_p50_us": self.latency_p50_us,
            "latency_p99_us": self.latency_p99_us,
            "server_share": self.server_share,
            "generator_share": self.generator_share,
            "others_share": self.others_share,
            "others_beside_generator_share": self.others_beside_generator_share,
            "stolen_share": self.stolen_share,
        })
    }

    /// Why the window does not count; None when it does.
    pub(crate) fn fault(&self) -> Option<String> {
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        if self.stolen_share > STOLEN_SHARE_MAX {
            return Some(format!("the hypervisor took {} of a core", percent(self.stolen_share)));
        }
        if self.others_share > OTHERS_SHARE_MAX {
            return Some(format!("other load took {} of the server's core", percent(self.others_share)));
        }
        if self.server_share < SERVER_SHARE_MIN {
            return Some(format!(
                "the server used {} of its core only: the generator was the limit (it had {} of its own, others {})",
                percent(self.server_share),
                percent(self.generator_share),
                percent(self.others_beside_generator_share)
            ));
        }
        None
    }
}
