//! The answer's way to the client: every chunk untouched, metered on the way, booked before its last byte leaves.
//!
//! The last byte is the chunk that completes the content-length, the chunk that ends the terminal event, or the
//! end of the upstream's body, whichever comes first. From then on the call is complete, even if the client
//! leaves or the upstream dawdles over its connection. Before it, an answer that ends is cut: the client gets
//! the protocol's error event where one can stand (an uncompressed stream, between two events), and then an
//! aborted connection; never a clean end, which SDKs take for success.

use super::stall::{ClientSocket, UnderWay, Watched};
use crate::domain::{Ending, Fault, Usage};
use crate::platform::messages::error_event;
use crate::platform::meter::{Meter, Terminal};
use actix_http::body::{BodySize, MessageBody};
use awc::ClientResponse;
use bytes::Bytes;
use futures_util::Stream;
use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How long an upstream may take to end its connection after the terminal event, before we do.
const TAIL: Duration = Duration::from_millis(500);

/// How long the last bytes before a cut, and the error event, are given to leave before the connection is
/// aborted under them.
const LAST_BYTES_LEAVE: Duration = Duration::from_millis(50);

/// Learns how the call ended, once. It holds the permit and the pass, which its drop gives back.
pub trait Booking {
    /// The call ended.
    fn end(&mut self, ending: Ending, usage: Usage, fault: Option<Fault>);
    /// The upstream has nothing more to do with it, though its client may not have taken all of it yet.
    fn release(&mut self);
}

/// What a tap must know of the call.
pub struct Expect {
    /// The upstream's status was a success.
    pub success: bool,
    /// An event stream must end with its terminal event to be whole.
    pub terminal_event: bool,
    /// Content-length, if the answer has one and is no event stream: a stream that lacks its terminal event must
    /// not end as its length announced.
    pub length: Option<u64>,
    /// The client reads HTTP/1.0: it has no chunking by which to see a cut, so that an error event is sent even
    /// inside an event, where it at least breaks the client's parser.
    pub blunt: bool,
    /// The longest silence of the upstream between two chunks.
    pub idle: Duration,
    /// The longest time that the client may take nothing of what is there.
    pub send: Duration,
    /// For the error event.
    pub request_id: String,
    /// The client's connection.
    pub socket: Option<ClientSocket>,
}

/// The body of an answer: an `Answer` that the thread's watch can reach too.
pub struct Tap<B: Booking + 'static> {
    answer: Rc<RefCell<Answer<B>>>,
    size: BodySize,
    under_way: Rc<UnderWay>,
    number: u64,
}

impl<B: Booking> Tap<B> {
    /// A tap over `upstream`'s body, of which `first` was read already; `revoked` ends it at once.
    pub fn new(
        upstream: ClientResponse,
        first: Bytes,
        meter: Meter,
        expect: Expect,
        booking: B,
        revoked: CancellationToken,
        under_way: Rc<UnderWay>,
    ) -> Self {
        let size = expect.length.map_or(BodySize::Stream, BodySize::Sized);
        let answer = Rc::new(RefCell::new(Answer {
            upstream: Some(upstream),
            first,
            booking,
            meter,
            left: expect.length,
            expect,
            ended: false,
            phase: Phase::Open,
            last: Instant::now(),
            handed_out: None,
            unsent: None,
            timer: None,
            ending: Box::pin(revoked.clone().cancelled_owned()),
            revoked,
        }));
        let number = under_way.add(&answer);
        Self { answer, size, under_way, number }
    }
}

impl<B: Booking> MessageBody for Tap<B> {
    type Error = Abort;

    fn size(&self) -> BodySize {
        self.size
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Abort>>> {
        self.answer.borrow_mut().poll(cx)
    }
}

impl<B: Booking> Drop for Tap<B> {
    fn drop(&mut self) {
        self.under_way.remove(self.number);
        let mut answer = self.answer.borrow_mut();
        answer.upstream = None;
        answer.end(Ending::ClientGone, None);
    }
}

/// An answer on its way.
struct Answer<B: Booking> {
    /// Dropped first: the upstream's connection is closed before the booking lets go of the slot.
    upstream: Option<ClientResponse>,
    /// What was read of it already.
    first: Bytes,
    booking: B,
    meter: Meter,
    expect: Expect,
    left: Option<u64>,
    ended: bool,
    phase: Phase,
    /// When the upstream last sent something.
    last: Instant,
    /// When a chunk was handed out after which no more has been asked for, or the client took something since.
    handed_out: Option<Instant>,
    /// What lay unsent in the client's socket when it was last looked at.
    unsent: Option<i32>,
    timer: Option<Pin<Box<Sleep>>>,
    ending: Pin<Box<WaitForCancellationFutureOwned>>,
    revoked: CancellationToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// The answer is cut; abort when the time of the last bytes to leave is over.
    Leaving,
    /// Abort when asked next.
    Abort,
    Done,
}

/// The connection is to be aborted.
#[derive(Debug, thiserror::Error)]
#[error("the answer was cut")]
pub struct Abort;

type Next = Poll<Option<Result<Bytes, Abort>>>;

impl<B: Booking> Answer<B> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Next {
        self.handed_out = None;
        match self.phase {
            Phase::Open => {}
            Phase::Done => return Poll::Ready(None),
            Phase::Leaving if self.timer.as_mut().is_some_and(|t| t.as_mut().poll(cx).is_pending()) => {
                return Poll::Pending;
            }
            Phase::Leaving | Phase::Abort => {
                self.phase = Phase::Done;
                return Poll::Ready(Some(Err(Abort)));
            }
        }
        if !self.ended && self.ending.as_mut().poll(cx).is_ready() {
            return self.cut(Ending::RelayEnded, None, cx);
        }
        let Some(upstream) = self.upstream.as_mut() else { return self.done() };
        if !self.first.is_empty() {
            let first = std::mem::take(&mut self.first);
            self.handed_out = Some(Instant::now());
            self.after(&first);
            return Poll::Ready(Some(Ok(first)));
        }
        match Pin::new(upstream).poll_next(cx) {
            Poll::Ready(Some(Ok(chunk))) => {
                self.last = Instant::now();
                self.handed_out = Some(self.last);
                self.after(&chunk);
                Poll::Ready(Some(Ok(chunk)))
            }
            Poll::Ready(None) if self.is_whole() => {
                self.whole();
                self.done()
            }
            // What has been whole stays whole, whatever the connection does afterwards.
            Poll::Ready(_) if self.ended => self.done(),
            Poll::Ready(_) => self.cut(Ending::UpstreamCut, Some(Fault::Cut), cx),
            Poll::Pending if self.silent_too_long(cx) && self.ended => self.done(),
            Poll::Pending if self.silent_too_long(cx) => self.cut(Ending::UpstreamCut, Some(Fault::IdleTimeout), cx),
            Poll::Pending => Poll::Pending,
        }
    }

    fn end(&mut self, ending: Ending, fault: Option<Fault>) {
        if !self.ended {
            self.ended = true;
            self.booking.end(ending, self.meter.usage(), fault);
        }
    }

    fn done(&mut self) -> Next {
        self.upstream = None;
        self.phase = Phase::Done;
        Poll::Ready(None)
    }

    /// Books the call if this chunk was its last.
    fn after(&mut self, chunk: &Bytes) {
        self.meter.feed(chunk);
        self.left = self.left.map(|n| n.saturating_sub(chunk.len() as u64));
        if self.left == Some(0) || (self.expect.terminal_event && self.meter.terminal().is_some()) {
            self.whole();
        }
    }

    fn whole(&mut self) {
        match self.meter.terminal() {
            // Its status was judged already.
            _ if !self.expect.success => self.end(Ending::UpstreamError, None),
            Some(Terminal::Error { of_client }) => {
                self.end(Ending::UpstreamError, (!of_client).then_some(Fault::ErrorEvent));
            }
            _ => self.end(Ending::Complete, None),
        }
    }

    /// True if the answer can be taken for whole now that no more of it comes.
    fn is_whole(&self) -> bool {
        let told = !self.expect.terminal_event || !self.meter.is_legible() || self.meter.terminal().is_some();
        told && self.left.is_none_or(|n| n == 0)
    }

    /// The answer is cut: an error event if one can stand here, then the abort. actix drops what it has not
    /// written yet when a body fails, so that what came before the cut is given time to leave first.
    fn cut(&mut self, ending: Ending, fault: Option<Fault>, cx: &mut Context<'_>) -> Next {
        self.upstream = None;
        self.end(ending, fault);
        // Whether its client ever takes the rest or not: the upstream has nothing more to do with it.
        self.booking.release();
        self.phase = Phase::Leaving;
        let mut timer = Box::pin(sleep_until(Instant::now() + LAST_BYTES_LEAVE));
        let _ = timer.as_mut().poll(cx);
        self.timer = Some(timer);
        let stands = self.meter.accepts_event() || (self.expect.blunt && self.meter.is_identity());
        if !(self.meter.is_stream() && self.expect.length.is_none() && stands) {
            if let Some(socket) = self.expect.socket.filter(|_| self.expect.blunt) {
                socket.close_by_reset();
            }
            return Poll::Pending;
        }
        let message = fault.map_or_else(|| "the relay ended the call".to_owned(), |f| f.to_string());
        let event = error_event(&message, &self.expect.request_id);
        let gap = if self.meter.accepts_event() { "" } else { "\n\n" };
        Poll::Ready(Some(Ok(Bytes::from(format!("{gap}{event}")))))
    }

    /// The bound on silence. The timer is armed once and looked at when it fires, not reset for every chunk.
    fn silent_too_long(&mut self, cx: &mut Context<'_>) -> bool {
        let deadline = self.last + if self.ended { TAIL } else { self.expect.idle };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        loop {
            if timer.deadline() > deadline {
                timer.as_mut().reset(deadline);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return false;
            }
            if Instant::now() >= deadline {
                return true;
            }
            timer.as_mut().reset(deadline);
        }
    }

    /// Ends it without a poll: its client takes nothing, and may never ask again.
    fn stop(&mut self, ending: Ending) {
        self.upstream = None;
        if let Some(socket) = self.expect.socket.filter(|_| !self.ended) {
            socket.end();
        }
        self.phase = if self.ended { Phase::Done } else { Phase::Abort };
        self.end(ending, None);
        self.booking.release();
    }
}

impl<B: Booking> Watched for Answer<B> {
    fn look(&mut self, now: Instant) {
        if self.phase != Phase::Open || self.upstream.is_none() {
            return;
        }
        // actix asks for more only when a good part of the socket's buffer is free: a client that reads slowly is
        // seen by the buffer, not by the asking.
        if self.handed_out.is_some() && !self.ended {
            let unsent = self.expect.socket.and_then(ClientSocket::unsent);
            if unsent != self.unsent {
                self.unsent = unsent;
                self.handed_out = Some(now);
            }
        }
        let waits = self.handed_out.map(|at| now.saturating_duration_since(at));
        match waits {
            // The last chunk is with the client, or on its way: the upstream has nothing more to say.
            Some(waits) if self.ended && waits >= TAIL => self.stop(Ending::Complete),
            Some(_) if !self.ended && self.revoked.is_cancelled() => self.stop(Ending::RelayEnded),
            Some(waits) if !self.ended && waits >= self.expect.send => self.stop(Ending::ClientGone),
            _ => {}
        }
    }
}
