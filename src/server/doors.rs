//! The listeners of the endpoint and the I/O threads behind them: one listener for a runtime over all threads, or one for
//! each thread, which then has a runtime of its own.

use std::{convert::Infallible, future::Future, io, net::TcpListener, sync::Arc, thread};

use tokio::{
    runtime::Runtime,
    sync::{Notify, oneshot},
};

use crate::{runtime::Flavor, server::parts::moving_bytes};

/// How a listener is told to stop, and tells that it has.
#[derive(Debug, Default)]
pub(super) struct Door {
    pub(super) stop: Arc<Notify>,
    pub(super) ended: Notify,
}

/// What keeps a thread that has a runtime of its own: its drop ends the thread.
pub(super) type Life = oneshot::Sender<Infallible>;

/// Accepts on every socket, as the flavor says. Returns the doors, and what ends the threads that were made for it.
pub(super) fn open<F>(
    sockets: Vec<TcpListener>,
    flavor: Flavor,
    shared: &Runtime,
    accept: impl Fn(TcpListener, Arc<Notify>) -> F,
) -> io::Result<(Vec<Arc<Door>>, Vec<Life>)>
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let (mut doors, mut threads) = (Vec::new(), Vec::new());
    for (number, socket) in sockets.into_iter().enumerate() {
        let door = Arc::<Door>::default();
        let accepting = watched(accept(socket, Arc::clone(&door.stop)), Arc::clone(&door));
        match flavor {
            Flavor::MultiThread => drop(shared.spawn(accepting)),
            Flavor::CurrentThread => threads.push(own_thread(number, accepting)?),
        }
        doors.push(door);
    }
    Ok((doors, threads))
}

async fn watched(accepting: impl Future<Output = io::Result<()>>, door: Arc<Door>) {
    if let Err(error) = accepting.await {
        tracing::error!(%error, "the listener ended");
    }
    door.ended.notify_one();
}

/// A thread with a runtime of its own, for as long as what is returned lives.
fn own_thread(number: usize, accepting: impl Future<Output = ()> + Send + 'static) -> io::Result<Life> {
    let runtime = moving_bytes(&mut tokio::runtime::Builder::new_current_thread()).build()?;
    let (life, ended) = oneshot::channel();
    thread::Builder::new().name(format!("io-{number}")).spawn(move || {
        runtime.block_on(async {
            tokio::spawn(accepting);
            let _ = ended.await; // nothing is ever sent: it is the other end's drop
        });
        runtime.shutdown_background();
    })?;
    Ok(life)
}
