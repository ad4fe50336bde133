//! The thread that the Redis engine lives on.
//!
//! Used by [`super::RedisStore`] alone. A pooled connection is driven by a task of the runtime that opened it, and
//! dies with it; arbiters come and go, this thread does not. It ends when its last job has.

use crate::store::StoreError;
use std::thread::JoinHandle;
use tokio::runtime::{Builder, Handle};
use tokio::sync::mpsc;
use tokio::task;

/// A runtime on a thread of its own. Dropping it waits for the jobs that were spawned, not for the background.
pub struct Engine {
    handle: Handle,
    /// Every job holds a clone, and nothing is ever sent: when the last is gone, the thread ends.
    alive: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`StoreError::Engine`] when the system gives none.
    pub fn start() -> Result<Self, StoreError> {
        let failed = |e: std::io::Error| StoreError::Engine(format!("no thread for the store: {e}"));
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let (alive, mut last) = mpsc::channel::<()>(1);
        let thread = std::thread::Builder::new()
            .name("store-redis".to_owned())
            .spawn(move || runtime.block_on(async { while last.recv().await.is_some() {} }))
            .map_err(failed)?;
        Ok(Self { handle, alive: Some(alive), thread: Some(thread) })
    }

    /// Runs `job` to its end, whether or not anybody waits for it.
    pub fn spawn<T: Send + 'static>(&self, job: impl Future<Output = T> + Send + 'static) -> task::JoinHandle<T> {
        let alive = self.alive.clone();
        self.handle.spawn(async move {
            let done = job.await;
            drop(alive);
            done
        })
    }

    /// Where its jobs run.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs `job` until the engine ends.
    pub fn spawn_in_background(&self, job: impl Future<Output = ()> + Send + 'static) {
        drop(self.handle.spawn(job));
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.alive = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the store's thread panicked");
        }
    }
}
