//! The answer's way to the client: every chunk untouched, metered on the way, booked before its last byte leaves.
//!
//! The last byte is the chunk that completes the content-length, the chunk that ends the terminal event, or the
//! end of the upstream's body, whichever comes first. From then on the call is complete, even if the client
//! leaves or the upstream dawdles over its connection. Before it, an answer that ends is cut: the client gets
//! the protocol's error event where one can stand (an uncompressed stream, between two events), and then an
//! aborted connection; never a clean end, which SDKs take for success.

use crate::domain::{Ending, Fault, Usage};
use crate::platform::messages::error_event;
use crate::platform::meter::{Meter, Terminal};
use actix_http::body::{BodySize, MessageBody};
use awc::ClientResponse;
use bytes::Bytes;
use futures_util::Stream;
use std::future::Future;
use std::pin::Pin;
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
}

/// What a tap must know of the call.
pub struct Expect {
    /// The upstream's status was a success.
    pub success: bool,
    /// An event stream must end with its terminal event to be whole.
    pub terminal_event: bool,
    /// Content-length, if the answer has one.
    pub length: Option<u64>,
    /// The client reads HTTP/1.0: it has no chunking by which to see a cut, so that an error event is sent even
    /// inside an event, where it at least breaks the client's parser.
    pub blunt: bool,
    /// The longest silence between two chunks.
    pub idle: Duration,
    /// For the error event.
    pub request_id: String,
}

/// The body of an answer.
pub struct Tap<B: Booking> {
    /// Dropped first: the upstream's connection is closed before the booking lets go of the slot.
    upstream: Option<ClientResponse>,
    booking: B,
    meter: Meter,
    expect: Expect,
    left: Option<u64>,
    ended: bool,
    phase: Phase,
    last: Instant,
    timer: Option<Pin<Box<Sleep>>>,
    revoked: Pin<Box<WaitForCancellationFutureOwned>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// The answer is cut; abort when the time of the last bytes to leave is over.
    Aborting,
    Done,
}

/// The connection is to be aborted.
#[derive(Debug, thiserror::Error)]
#[error("the answer was cut")]
pub struct Abort;

impl<B: Booking> Tap<B> {
    /// A tap over `upstream`'s body; `revoked` ends it at once.
    pub fn new(upstream: ClientResponse, meter: Meter, expect: Expect, booking: B, revoked: CancellationToken) -> Self {
        Self {
            upstream: Some(upstream),
            booking,
            meter,
            left: expect.length,
            expect,
            ended: false,
            phase: Phase::Open,
            last: Instant::now(),
            timer: None,
            revoked: Box::pin(revoked.cancelled_owned()),
        }
    }

    fn end(&mut self, ending: Ending, fault: Option<Fault>) {
        if !self.ended {
            self.ended = true;
            self.booking.end(ending, self.meter.usage(), fault);
        }
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
        let stopped = self.expect.terminal_event && self.meter.is_stream() && self.meter.is_legible();
        match self.meter.terminal() {
            None if stopped => self.end(Ending::UpstreamCut, Some(Fault::Cut)),
            Some(Terminal::Error) => self.end(Ending::UpstreamError, None),
            _ if self.expect.success => self.end(Ending::Complete, None),
            _ => self.end(Ending::UpstreamError, None),
        }
    }

    /// True if the answer can be taken for whole now that no more of it comes.
    fn is_whole(&self) -> bool {
        let wants = self.expect.terminal_event && self.meter.is_stream() && self.meter.is_legible();
        self.left.is_none_or(|n| n == 0) && !(wants && self.meter.terminal().is_none())
    }

    /// The answer is cut: an error event if one can stand here, then the abort.
    fn cut(
        &mut self,
        ending: Ending,
        fault: Option<Fault>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Abort>>> {
        self.upstream = None;
        self.end(ending, fault);
        // actix drops what it has not written yet when a body fails: what came before the cut leaves first.
        self.phase = Phase::Aborting;
        let mut timer = Box::pin(sleep_until(Instant::now() + LAST_BYTES_LEAVE));
        let _ = timer.as_mut().poll(cx);
        self.timer = Some(timer);
        let stands = self.meter.accepts_event() || (self.expect.blunt && self.meter.is_identity());
        if !(self.meter.is_stream() && self.expect.length.is_none() && stands) {
            return Poll::Pending;
        }
        let message = fault.map_or_else(|| "the relay ended the call".to_owned(), |f| f.to_string());
        let event = error_event(&message, &self.expect.request_id);
        let gap = if self.meter.accepts_event() { "" } else { "\n\n" };
        Poll::Ready(Some(Ok(Bytes::from(format!("{gap}{event}")))))
    }

    /// The bound on silence. The timer is armed once and looked at when it fires, not reset for every chunk.
    fn silent_too_long(&mut self, cx: &mut Context<'_>) -> bool {
        let bound = if self.ended { TAIL } else { self.expect.idle };
        loop {
            let deadline = self.last + bound;
            let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
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
}

impl<B: Booking + Unpin> MessageBody for Tap<B> {
    type Error = Abort;

    fn size(&self) -> BodySize {
        self.expect.length.map_or(BodySize::Stream, BodySize::Sized)
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Abort>>> {
        let this = self.get_mut();
        match this.phase {
            Phase::Open => {}
            Phase::Done => return Poll::Ready(None),
            Phase::Aborting => {
                let waiting = this.timer.as_mut().is_some_and(|t| t.as_mut().poll(cx).is_pending());
                if waiting {
                    return Poll::Pending;
                }
                this.phase = Phase::Done;
                return Poll::Ready(Some(Err(Abort)));
            }
        }
        if !this.ended && this.revoked.as_mut().poll(cx).is_ready() {
            return this.cut(Ending::RelayEnded, None, cx);
        }
        let Some(upstream) = this.upstream.as_mut() else { return Poll::Ready(None) };
        match Pin::new(upstream).poll_next(cx) {
            Poll::Ready(Some(Ok(chunk))) => {
                this.last = Instant::now();
                this.after(&chunk);
                Poll::Ready(Some(Ok(chunk)))
            }
            Poll::Ready(None) if this.is_whole() => {
                this.whole();
                this.done()
            }
            // What has been whole stays whole, whatever the connection does afterwards.
            Poll::Ready(_) if this.ended => this.done(),
            Poll::Ready(_) => this.cut(Ending::UpstreamCut, Some(Fault::Cut), cx),
            Poll::Pending if this.silent_too_long(cx) => {
                if this.ended {
                    this.done()
                } else {
                    this.cut(Ending::UpstreamCut, Some(Fault::IdleTimeout), cx)
                }
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<B: Booking> Tap<B> {
    fn done(&mut self) -> Poll<Option<Result<Bytes, Abort>>> {
        self.upstream = None;
        self.phase = Phase::Done;
        Poll::Ready(None)
    }
}

impl<B: Booking> Drop for Tap<B> {
    fn drop(&mut self) {
        self.upstream = None;
        self.end(Ending::ClientGone, None);
    }
}
