//! Who there is: each instance writes a heartbeat, looks at those of the others, and removes who has none any more. The
//! clock is Redis' own. What changes is told at once, and found with the next heartbeat where that was not heard.
//! Everything that is written expires by itself, so nothing is left when all are gone at once; what an empty Redis has
//! lost is there again with the next heartbeat, which is made at once where the link finds it emptied.
//!
//! Here is what an instance holds of it and what it is asked. The task that takes part is `member`, what it finds is of
//! `look`, and whose all of it is says `claim`, for longer than there are instances.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use super::{
    keys::Keys,
    link::Link,
    look::Dead,
    member::Member,
    node::{Node, Status},
};

/// Who has been silent for so many may be.
pub(super) const PERIODS_TO_LATE: u32 = 2;
/// What nobody renews expires after so many: later, so that a death is seen, and not only an absence.
pub(super) const PERIODS_TO_EXPIRY: u32 = 6;
const ORDERS_MAX: usize = 8;

/// What an instance says of itself, asked at each heartbeat.
pub(crate) type Me = Box<dyn Fn() -> Option<About> + Send + Sync>;

/// The part of it that changes.
#[derive(Clone, Debug, Default)]
pub(crate) struct About {
    pub(crate) load: u64,
    pub(crate) max_load: u64,
    /// Those that it can run.
    pub(crate) tools: Vec<String>,
    /// Where it takes calls over from others; empty where it takes none.
    pub(crate) forwards: String,
    /// What is said of the key by which it does; empty where there is nothing to say.
    pub(crate) node_key: String,
}

/// The nodes as of one look.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// In the order of their ids.
    pub(crate) nodes: Vec<Node>,
    /// When that was.
    pub(crate) at: Instant,
}

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Nodes that this one removed.
    pub(crate) reaped: AtomicU64,
    /// Heartbeats that Redis did not take.
    pub(crate) missed: AtomicU64,
    /// Records that nobody of ours can have written.
    pub(crate) corrupt: AtomicU64,
    /// Redis is there and refused the last heartbeat: it is full, or takes no writes.
    pub(crate) is_refused: AtomicBool,
}

/// What this instance is called, and how the registry is kept.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) keys: Keys,
    /// The name of the deployment.
    pub(crate) cluster: String,
    /// The name of this instance.
    pub(crate) id: String,
    /// The name of this process: another in each start.
    pub(crate) run: String,
    pub(crate) address: String,
    pub(crate) roles: Vec<String>,
    pub(crate) period: Duration,
    /// The longest that anything of clients stays in Redis.
    pub(crate) kept_for: Duration,
    /// Where it is set that tools are to be.
    pub(crate) placed: Vec<String>,
}

impl Named {
    /// Who is not waited for by who leaves.
    pub(super) fn late(&self) -> Dead {
        Dead { periods: PERIODS_TO_LATE, period: self.period }
    }
}

/// What its task is told.
pub(super) enum Order {
    Status(Status, oneshot::Sender<()>),
    Leave(oneshot::Sender<()>),
}

/// The registry, as one instance takes part in it. Its task ends with the last handle.
pub(crate) struct Registry {
    orders: mpsc::Sender<Order>,
    view: watch::Receiver<Arc<View>>,
    counts: Arc<Counts>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("view", &self.view.borrow()).finish_non_exhaustive()
    }
}

impl Registry {
    /// Takes part from now on, as starting; in a task of the runtime that this is called in.
    pub(crate) fn start(link: Link, named: Named, me: Me) -> Self {
        let (orders, receiver) = mpsc::channel(ORDERS_MAX);
        let (seen, view) = watch::channel(Arc::new(View { nodes: Vec::new(), at: Instant::now() }));
        let counts = Arc::<Counts>::default();
        let member = Member::new(link, named, me, seen, Arc::clone(&counts));
        tokio::spawn(member.live(receiver));
        Self { orders, view, counts }
    }

    /// Says where this instance stands, and returns when Redis knows it or could not be told.
    pub(crate) async fn status(&self, status: Status) {
        let (done, told) = oneshot::channel();
        if self.orders.send(Order::Status(status, done)).await.is_ok() {
            let _ = told.await;
        }
    }

    /// Takes part no more: nothing of this instance is left.
    pub(crate) async fn leave(&self) {
        let (done, told) = oneshot::channel();
        if self.orders.send(Order::Leave(done)).await.is_ok() {
            let _ = told.await;
        }
    }

    /// The nodes as of the last look, this one among them.
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// The same, to wait for a change.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }
}
