//! What is done again and again while a server runs: ending sessions that nobody uses, and tasks whose time is over; and
//! saying that everybody may call.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::time::sleep;

use crate::{front::Front, tasks::Tasks};

/// Between two looks at the tasks: the most that one lives longer than it may, whatever transport they are made over.
const TASKS_PAUSE: Duration = Duration::from_secs(5);

/// Between two reminders of what an operator allowed and should not forget.
pub(super) const REMINDER_PAUSE: Duration = Duration::from_secs(3600);

/// Ends sessions that nobody uses, often enough that none lives an eighth longer than it may.
pub(super) async fn sessions(front: Arc<Front>, idle_timeout_s: u64) {
    let pause = Duration::from_secs((idle_timeout_s / 8).clamp(1, 60));
    loop {
        sleep(pause).await;
        let ended = front.router.sessions.sweep(Instant::now());
        if ended > 0 {
            tracing::debug!(ended, "idle sessions ended");
        }
    }
}

/// Where nobody is asked who they are.
pub(super) const ALL_MAY_CALL: &str = "no authentication: everybody who reaches the address can call every tool";
/// Where the admin listener is open to others.
pub(super) const ALL_MAY_READ: &str =
    "everybody who reaches the admin listener can read metrics and nodes, and it has no TLS";

/// Says at once and again after each pause what is open, so that who comes to the log later learns of it too.
pub(super) async fn remind(of: &'static str, pause: Duration) {
    loop {
        tracing::warn!("{of}");
        sleep(pause).await;
    }
}

/// Ends tasks whose time is over, from the start on: a store may have some of a process before.
pub(super) async fn tasks(tasks: Arc<Tasks>) {
    loop {
        let swept = Arc::clone(&tasks);
        // A task of its own, so that a store that panics does not end all sweeping.
        match tokio::spawn(async move { swept.sweep(SystemTime::now()).await }).await {
            Ok(0) => {}
            Ok(expired) => tracing::debug!(expired, "tasks whose time was over"),
            Err(error) => tracing::error!(%error, "the store of tasks failed in a sweep; the next one tries again"),
        }
        sleep(TASKS_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Notify;

    use crate::{
        config::{Loaded, Tuning},
        runtime::Host,
        server::{Server, parts::io_runtime},
        tasks::{After, Change, Record, Store, StoreFuture},
        telemetry::heard::Heard,
    };

    use super::*;

    /// A store that is always empty, tells when it is swept, and panics at it.
    #[derive(Debug, Default)]
    struct Swept(Notify);

    impl Store for Swept {
        fn insert(&self, _: Record) -> StoreFuture<'_, ()> {
            Box::pin(async { Ok(()) })
        }

        fn load<'a>(&'a self, _: &'a str) -> StoreFuture<'a, Option<Record>> {
            Box::pin(async { Ok(None) })
        }

        fn change<'a>(&'a self, _: &'a str, _: Change, _: SystemTime) -> StoreFuture<'a, Option<After>> {
            Box::pin(async { Ok(None) })
        }

        fn sweep(&self, _: SystemTime) -> StoreFuture<'_, usize> {
            self.0.notify_one();
            panic!("a store that fails")
        }
    }

    #[tokio::test]
    async fn that_all_may_call_is_said_again_and_again() {
        let heard = Heard::from_now_on();
        let said = || heard.text().matches("no authentication").count();
        let thrice = async {
            while said() < 3 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let in_time = tokio::time::timeout(4 * TASKS_PAUSE, async {
            tokio::select! {
                () = remind(ALL_MAY_CALL, Duration::from_millis(1)) => {}
                () = thrice => {}
            }
        });
        in_time.await.expect("said, and said again");
    }

    #[test]
    fn tasks_are_swept_with_no_listener_too() {
        let loaded = Loaded::from_program(Tuning::default(), Host::read(), false).expect("settings");
        let runtime = io_runtime(1).expect("a runtime");
        let store = Arc::<Swept>::default();
        let server = Server::builder().tasks_in(Arc::clone(&store) as _);
        let _router = server.router(&loaded, "", None, Arc::default(), &runtime).expect("a router");
        let twice = async {
            store.0.notified().await;
            store.0.notified().await;
        };
        let in_time = runtime.block_on(async { tokio::time::timeout(4 * TASKS_PAUSE, twice).await });
        in_time.expect("swept, and swept again");
    }
}
