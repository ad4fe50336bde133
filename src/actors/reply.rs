//! How a queued question is answered, and how its asker can leave.
//!
//! Not an actix reply: dropping a `send()` does not cancel the handler's future, so that a client that left
//! would keep its place. A [`Ticket`] tells `Left` when it is dropped unanswered, and an answer whose asker is
//! gone drops what it carries, which gives permits and passes back.

use super::{Front, Live};
pub use crate::domain::TicketId;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use tokio::sync::oneshot;

/// Where an answer goes; used once.
pub struct Reply<T>(Box<dyn FnOnce(T) + Send>);

impl<T: Send + 'static> Reply<T> {
    /// A reply and the end that waits for it.
    pub fn channel() -> (Self, oneshot::Receiver<T>) {
        let (sender, receiver) = oneshot::channel();
        let send = move |answer| drop(sender.send(answer));
        (Self(Box::new(send)), receiver)
    }

    /// A reply that makes of its answer what this one wants.
    pub fn map<U: Send + 'static>(self, f: impl FnOnce(U) -> T + Send + 'static) -> Reply<U> {
        Reply(Box::new(move |answer| (self.0)(f(answer))))
    }

    /// Answers.
    pub fn send(self, answer: T) {
        (self.0)(answer);
    }
}

/// Tells Front, and through it the Scheduler, that the asker of a question no longer waits.
#[derive(Debug, Clone, Copy, actix::Message)]
#[rtype(result = "()")]
pub struct Left {
    /// Whose question.
    pub ticket: TicketId,
}

/// Numbers tickets and counts those outstanding.
#[derive(Debug, Default)]
pub struct TicketCounter {
    next: AtomicU64,
    outstanding: AtomicUsize,
}

impl TicketCounter {
    /// Tickets that are neither answered nor left.
    pub fn outstanding(&self) -> usize {
        self.outstanding.load(Relaxed)
    }
}

/// A place in the line. Dropping it before the answer came tells `Left`.
pub struct Ticket {
    id: TicketId,
    front: Live<Front>,
    counter: Arc<TicketCounter>,
    answered: bool,
}

impl Ticket {
    /// A new place.
    pub fn new(front: &Live<Front>, counter: &Arc<TicketCounter>) -> Self {
        counter.outstanding.fetch_add(1, Relaxed);
        let id = TicketId(counter.next.fetch_add(1, Relaxed));
        Self { id, front: front.clone(), counter: counter.clone(), answered: false }
    }

    /// Its number.
    pub fn id(&self) -> TicketId {
        self.id
    }

    /// The answer came: nobody needs to be told.
    pub fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.counter.outstanding.fetch_sub(1, Relaxed);
        if !self.answered {
            self.front.addr().do_send(Left { ticket: self.id });
        }
    }
}
