//! The thread that the writers share.
//!
//! They wait for Postgres nearly all of the time, so one thread is enough for them. On the service's own, whoever wakes a writer wakes a
//! thread that may have to wake another to wait in its place, twice for each order that comes alone.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Held by a writer until it has tried to open its connection. All of them are done when the channel is closed; nothing is ever sent.
pub(super) type Opening = mpsc::Sender<Infallible>;

pub(super) struct Thread {
    handle: Handle,
    /// Held by each task; the thread ends with the last.
    alive: Arc<DropGuard>,
}

impl Thread {
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let ended = CancellationToken::new();
        let alive = Arc::new(ended.clone().drop_guard());
        thread::Builder::new().name("writers".to_owned()).spawn(move || runtime.block_on(ended.cancelled()))?;
        Ok(Self { handle, alive })
    }

    /// Runs `task` on the thread, as one of `tasks`.
    pub(super) fn spawn(&self, tasks: &mut JoinSet<()>, task: impl Future<Output = ()> + Send + 'static) {
        let alive = Arc::clone(&self.alive);
        let task = async move {
            task.await;
            drop(alive);
        };
        tasks.spawn_on(task, &self.handle);
    }
}
