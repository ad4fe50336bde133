//! Answers under way on one worker thread, looked at every second: a client that takes nothing more of its answer
//! would otherwise keep an account's slot for ever, since actix asks a body for more only when there is room, and
//! neither a timeout nor a revocation inside the body is reached.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::rc::{Rc, Weak};
use std::time::Duration;
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

/// The socket of a client's connection, by number: to reset it where nothing else can tell the client that its
/// answer was cut. An HTTP/1.0 answer without a length ends with the connection, so that a plain close would look
/// like its end; and a client that takes nothing keeps actix waiting for room.
#[derive(Debug, Clone, Copy)]
pub struct ClientSocket(RawFd);

impl ClientSocket {
    /// The socket of `connection`.
    pub fn of(connection: &impl AsRawFd) -> Self {
        Self(connection.as_raw_fd())
    }

    /// Makes its close, by which an abort ends, a reset. To be called only while the body of an answer on this
    /// connection is alive.
    pub(super) fn close_by_reset(self) {
        let told = rustix::net::sockopt::set_socket_linger(self.borrow(), Some(Duration::ZERO));
        tracing::debug!(?told, "a client's connection ends by a reset");
    }

    /// Ends it now, though actix waits for room to write in it. Under the same condition.
    pub(super) fn end(self) {
        self.close_by_reset();
        let told = rustix::net::shutdown(self.borrow(), rustix::net::Shutdown::Both);
        tracing::debug!(?told, "a client's connection is ended: it takes nothing");
    }

    /// Bytes that the client has not taken yet: it takes something if this changes. Under the same condition.
    pub(super) fn unsent(self) -> Option<i32> {
        /// `SIOCOUTQ` (Linux, tcp(7)).
        const SIOCOUTQ: rustix::ioctl::Opcode = 0x5411;
        // SAFETY: the request writes one int, which is what the getter gives it.
        #[allow(unsafe_code)]
        unsafe {
            rustix::ioctl::ioctl(self.borrow(), rustix::ioctl::Getter::<SIOCOUTQ, i32>::new()).ok()
        }
    }

    fn borrow(&self) -> BorrowedFd<'_> {
        // SAFETY: actix's dispatcher owns both the connection and the body of its answer, and drops the body no
        // later than the connection; the callers are methods of that body. So the number still names this socket.
        #[allow(unsafe_code)]
        unsafe {
            BorrowedFd::borrow_raw(self.0)
        }
    }
}
