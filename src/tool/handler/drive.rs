//! A future run to its end on one thread: for handlers whose tools may block or burn CPU, on a thread of the worker
//! pool. Not the runtime's own `block_on`, which a thread of the runtime may not call, and the pool borrows those when it
//! is full.

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::Duration,
};

use tokio::runtime::Handle;

use crate::{
    call::Ctx,
    error::CallError,
    tool::{Outcome, Running},
};

/// How often a call that waits looks whether somebody still waits for it.
const LOOK: Duration = Duration::from_millis(20);

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a call on this thread, until it is done or `ctx` says that nobody waits for it.
pub(super) fn on_this_thread(runtime: &Handle, running: Running, ctx: &Ctx) -> Outcome {
    let _entered = runtime.enter(); // for timers, sockets and tasks
    let mut running = pin!(running);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut cx = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(outcome) = running.as_mut().poll(&mut cx) {
            return outcome;
        }
        if ctx.is_cancelled() {
            return Err(CallError::Cancelled); // which nobody hears
        }
        thread::park_timeout(LOOK);
    }
}
