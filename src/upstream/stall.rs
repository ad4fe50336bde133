//! Answers under way on one worker thread, looked at every second: a client that takes nothing more of its answer
//! would otherwise keep an account's slot for ever, since actix asks a body for more only when there is room, and
//! neither a timeout nor a revocation inside the body is reached.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use tokio::time::Instant;

/// An answer that can be looked at from outside.
pub trait Watched {
    /// Ends what must be ended by now.
    fn look(&mut self, now: Instant);
}

/// The answers of one thread.
#[derive(Default)]
pub struct UnderWay {
    answers: RefCell<HashMap<u64, Weak<RefCell<dyn Watched>>>>,
    next: Cell<u64>,
}

impl UnderWay {
    /// Adds one; the number takes it off again.
    pub fn add(&self, answer: &Rc<RefCell<impl Watched + 'static>>) -> u64 {
        let number = self.next.get();
        self.next.set(number + 1);
        let weak: Weak<RefCell<dyn Watched>> = Rc::<_>::downgrade(answer) as _;
        self.answers.borrow_mut().insert(number, weak);
        number
    }

    /// It is over.
    pub fn remove(&self, number: u64) {
        self.answers.borrow_mut().remove(&number);
    }

    /// Looks at each.
    pub fn look(&self, now: Instant) {
        let all: Vec<_> = self.answers.borrow().values().filter_map(Weak::upgrade).collect();
        for answer in all {
            // An answer that is being polled right now is not stalled.
            if let Ok(mut answer) = answer.try_borrow_mut() {
                answer.look(now);
            }
        }
    }
}
