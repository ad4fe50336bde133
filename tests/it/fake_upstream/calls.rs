//! What the fake upstream knows: the script still to come, the requests seen, and the calls that
//! are open, complete or aborted. Shared by the server's thread and every test thread.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use super::script::{Reply, Usage};

/// One request as it came off the wire.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub method: String,
    pub path: String,
    pub query: Option<String>,
    /// In the order and with the spelling of the wire.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The `x-api-key` value, else the Bearer token.
    pub credential: Option<String>,
    /// Which connection carried it, counted from 1 in the order of acceptance.
    pub connection: u64,
}

impl Recorded {
    /// The first header of this name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers_named(name).into_iter().next()
    }

    /// Every header of this name, in any case.
    pub fn headers_named(&self, name: &str) -> Vec<&str> {
        let named = self.headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }
}

pub(super) type Answerer = Arc<dyn Fn(&Recorded) -> Reply + Send + Sync>;

#[derive(Clone)]
pub(super) enum Script {
    Fixed(Reply),
    Computed(Answerer),
}

pub(super) struct State {
    pub(super) once: VecDeque<Reply>,
    pub(super) per_credential: HashMap<String, Reply>,
    pub(super) default: Script,
    pub(super) requests: Vec<Recorded>,
    pub(super) complete: Vec<Recorded>,
    pub(super) open: HashMap<String, usize>,
    pub(super) peak: HashMap<String, usize>,
    pub(super) aborted: usize,
    changes: u64,
}

/// The state behind its lock, and the bell that rings at every change of it.
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    received: AtomicU64,
}

impl Shared {
    pub(super) fn new() -> Self {
        let usage = Usage { input: 10, output: 5, ..Usage::default() };
        let state = State {
            once: VecDeque::new(),
            per_credential: HashMap::new(),
            default: Script::Fixed(Reply::message("Hello from the fake upstream.", usage)),
            requests: Vec::new(),
            complete: Vec::new(),
            open: HashMap::new(),
            peak: HashMap::new(),
            aborted: 0,
            changes: 0,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), received: AtomicU64::new(0) }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics under this lock")
    }

    pub(super) fn received(&self) -> &AtomicU64 {
        &self.received
    }

    pub(super) fn changes(&self) -> u64 {
        self.state().changes
    }

    /// Waits for a change after `seen`, or a moment, since the byte count rings no bell.
    pub(super) fn wait_for_change(&self, seen: u64) {
        let moment = Duration::from_millis(20);
        drop(self.changed.wait_timeout_while(self.state(), moment, |state| state.changes == seen));
    }

    fn change<T>(&self, edit: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let outcome = edit(&mut state);
        state.changes += 1;
        drop(state);
        self.changed.notify_all();
        outcome
    }

    pub(super) fn record(&self, request: &Recorded) {
        self.change(|state| state.requests.push(request.clone()));
    }

    /// The reply to this request if it is one that does not wait for the body.
    pub(super) fn early_reply(&self, request: &Recorded) -> Option<Reply> {
        let mut state = self.state();
        if let Some(next) = state.once.front() {
            return if next.early { state.once.pop_front() } else { None };
        }
        match state.standing(request) {
            Script::Fixed(reply) if reply.early => Some(reply),
            _ => None,
        }
    }

    /// The reply to a request whose body is complete.
    pub(super) fn reply_to(&self, request: &Recorded) -> Reply {
        let script = {
            let mut state = self.state();
            match state.once.pop_front() {
                Some(reply) => return reply,
                None => state.standing(request),
            }
        };
        match script {
            Script::Fixed(reply) => reply,
            // Outside of the lock: it may ask the upstream what is open.
            Script::Computed(answerer) => answerer(request),
        }
    }

    /// Counts a call as open from here on.
    pub(super) fn opened(self: &Arc<Self>, request: &Recorded) -> Call {
        let credential = request.credential.clone().unwrap_or_default();
        self.change(|state| {
            let open = state.open.entry(credential.clone()).or_default();
            *open += 1;
            let peak = state.peak.entry(credential.clone()).or_default();
            *peak = (*peak).max(*open);
        });
        Call { shared: Arc::clone(self), credential, ended: false }
    }
}

impl State {
    fn standing(&self, request: &Recorded) -> Script {
        let own = request.credential.as_ref().and_then(|credential| self.per_credential.get(credential));
        own.map_or_else(|| self.default.clone(), |reply| Script::Fixed(reply.clone()))
    }
}

/// One call held open. Dropped without an end of its own, it counts as aborted by the peer.
pub(super) struct Call {
    shared: Arc<Shared>,
    credential: String,
    ended: bool,
}

impl Call {
    /// Makes the last write under the lock and, where it went whole, counts the call as complete: who
    /// has read the whole answer never finds the call still open.
    pub(super) fn complete_by(
        &mut self,
        request: &Recorded,
        last_write: impl FnOnce() -> io::Result<bool>,
    ) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        shared.change(|state| {
            if last_write()? {
                state.complete.push(request.clone());
                self.end(state);
            }
            Ok(())
        })
    }

    /// The script broke the answer off: neither complete nor aborted.
    pub(super) fn cut_short(&mut self) {
        let shared = Arc::clone(&self.shared);
        shared.change(|state| self.end(state));
    }

    fn end(&mut self, state: &mut State) {
        self.ended = true;
        *state.open.entry(self.credential.clone()).or_insert(1) -= 1;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.ended {
            let shared = Arc::clone(&self.shared);
            shared.change(|state| {
                self.end(state);
                state.aborted += 1;
            });
        }
    }
}
