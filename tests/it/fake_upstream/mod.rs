//! A scripted upstream on a real socket: `FakeUpstream` owns the thread, the listener and the
//! questions a test asks. `script` says what is answered, `inlet` reads, `wire` writes, `calls` counts.
#![allow(dead_code, unused_imports)] // each story uses its own part

mod calls;
mod inlet;
mod script;
mod wire;

use std::future::poll_fn;
use std::net::TcpListener;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

pub use calls::Recorded;
use calls::{Script, Shared};
pub use script::{Chunks, Cut, Reply, Usage};

/// How long a wait lasts before it panics.
const PATIENCE: Duration = Duration::from_secs(10);

/// A handle to one scripted server; it stops, and frees its port, when the last clone drops.
///
/// Which reply is used: one queued by `next`, else the credential's own, else the default, that is
/// whichever of `always` and `answer_with` was called last.
#[derive(Clone)]
pub struct FakeUpstream {
    shared: Arc<Shared>,
    server: Arc<Server>,
}

struct Server {
    port: u16,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        // An answering closure may hold the last clone, and then this runs on the thread itself.
        if let Some(thread) = self.thread.take().filter(|thread| thread.thread().id() != thread::current().id()) {
            let _ = thread.join();
        }
    }
}

impl FakeUpstream {
    /// Listens on a free port of 127.0.0.1 and answers every request with a small message.
    pub fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port on loopback");
        let port = listener.local_addr().expect("a bound listener has an address").port();
        listener.set_nonblocking(true).expect("a listener can be made non-blocking");
        let shared = Arc::new(Shared::new());
        let (stop, stopped) = oneshot::channel();
        let serving = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name(format!("fake-upstream-{port}"))
            .spawn(move || run(listener, serving, stopped))
            .expect("a thread for the fake upstream");
        Self { shared, server: Arc::new(Server { port, stop: Some(stop), thread: Some(thread) }) }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.server.port
    }

    /// Sets the default reply.
    pub fn always(&self, reply: Reply) {
        self.shared.state().default = Script::Fixed(reply);
    }

    /// Queues a reply that is used once, before any other.
    pub fn next(&self, reply: Reply) {
        self.shared.state().once.push_back(reply);
    }

    /// Sets the default reply for one credential.
    pub fn always_for(&self, credential: &str, reply: Reply) {
        self.shared.state().per_credential.insert(credential.into(), reply);
    }

    /// From now on this credential gets the default reply again.
    pub fn forget_for(&self, credential: &str) {
        self.shared.state().per_credential.remove(credential);
    }

    /// Computes the default reply from each request once its body is complete (`early` has no effect).
    pub fn answer_with(&self, answer: impl Fn(&Recorded) -> Reply + Send + Sync + 'static) {
        self.shared.state().default = Script::Computed(Arc::new(answer));
    }

    /// The requests seen: at the end of the body, or of the head where the reply is early.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.state().requests.clone()
    }

    /// The requests whose answer was written to the socket entirely.
    pub fn complete(&self) -> Vec<Recorded> {
        self.shared.state().complete.clone()
    }

    /// How many calls of this credential ("" for none) are open now.
    pub fn open(&self, credential: &str) -> usize {
        self.shared.state().open.get(credential).copied().unwrap_or_default()
    }

    /// How many calls of this credential were ever open at once.
    pub fn peak(&self, credential: &str) -> usize {
        self.shared.state().peak.get(credential).copied().unwrap_or_default()
    }

    /// How many calls are open now.
    pub fn open_total(&self) -> usize {
        self.shared.state().open.values().sum()
    }

    /// How many calls their peer left before the answer was complete.
    pub fn aborted(&self) -> usize {
        self.shared.state().aborted
    }

    /// How many bytes ever arrived, on all connections.
    pub fn bytes_received(&self) -> u64 {
        self.shared.received().load(Ordering::SeqCst)
    }

    /// Blocks until so many requests were seen.
    #[track_caller]
    pub fn wait_requests(&self, count: usize) {
        self.wait_until(|upstream| upstream.shared.state().requests.len() >= count);
    }

    /// Blocks until the condition holds; not for a test whose own thread must keep running.
    #[track_caller]
    pub fn wait_until(&self, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.shared.changes();
            if condition(self) {
                return;
            }
            self.check_patience(deadline);
            self.shared.wait_for_change(seen);
        }
    }

    /// Waits, without blocking the thread, until so many requests were seen.
    pub async fn wait_requests_async(&self, count: usize) {
        self.wait_until_async(|upstream| upstream.shared.state().requests.len() >= count).await;
    }

    /// Waits, without blocking the thread, until the condition holds.
    pub async fn wait_until_async(&self, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            self.check_patience(deadline);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    #[track_caller]
    fn check_patience(&self, deadline: Instant) {
        assert!(Instant::now() < deadline, "the fake upstream waited {PATIENCE:?} in vain: {self:?}");
    }
}

impl std::fmt::Debug for FakeUpstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.shared.state();
        let seen = |requests: &[Recorded]| -> Vec<String> {
            let line = |request: &Recorded| format!("{} {} as {:?}", request.method, request.path, request.credential);
            requests.iter().map(line).collect()
        };
        f.debug_struct("FakeUpstream")
            .field("port", &self.port())
            .field("requests", &seen(&state.requests))
            .field("complete", &seen(&state.complete))
            .field("open", &state.open)
            .field("peak", &state.peak)
            .field("aborted", &state.aborted)
            .field("queued replies", &state.once.len())
            .field("bytes received", &self.bytes_received())
            .finish()
    }
}

/// The server's thread: one task a connection, all dropped when the last handle is.
fn run(listener: TcpListener, shared: Arc<Shared>, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a non-blocking listener");
        let mut accepting = pin!(async {
            let mut connection = 0;
            loop {
                let Ok((socket, _)) = listener.accept().await else {
                    continue;
                };
                connection += 1;
                tokio::spawn(wire::serve(socket, connection, Arc::clone(&shared)));
            }
        });
        let mut stopped = pin!(stopped);
        poll_fn(|cx| {
            let _: Poll<()> = accepting.as_mut().poll(cx);
            stopped.as_mut().poll(cx).map(drop)
        })
        .await;
    });
}
