//! One attempt at an upstream, from the journal's `begun` to its `ended`: it holds the permit and the pass, and
//! whatever becomes of it, a client that leaves or a panic included, its drop books it and gives them back.

use super::Worker;
use crate::actors::Admission;
use crate::domain::{Call, Ending, Fault, Outcome, Refusal, Usage};
use crate::platform::Plan;
use crate::platform::messages::endpoint_name;
use crate::store::{Begun, Ended};
use crate::upstream::tap::Booking;
use actix_web::web::Data;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::Span;

/// What the line at the end of a call tells besides the attempt itself.
pub struct Facts {
    /// The relay's id of the request.
    pub request_id: String,
    /// Key id.
    pub key: String,
    /// When the request came.
    pub arrived: Instant,
}

/// An attempt under way.
pub struct Attempt {
    worker: Data<Worker>,
    admission: Option<Admission>,
    call: Arc<Call>,
    call_id: String,
    plan: Arc<Plan>,
    facts: Facts,
    /// The upstream's status.
    status: Option<u16>,
    /// The status of an answer of our own, where no upstream's came.
    answered: Option<u16>,
    first_byte: Option<Duration>,
    upstream_request_id: Option<String>,
    ended: bool,
    span: Span,
}

impl Attempt {
    /// Writes `begun`; from here on the call has a row, even if the process is killed.
    pub fn begin(worker: Data<Worker>, admission: Admission, call: Arc<Call>, facts: Facts) -> Self {
        let plan = admission.permit.plan().clone();
        let call_id = worker.journal.borrow_mut().next_call();
        worker.journal.borrow_mut().begun(&Begun {
            call: call_id.clone(),
            key: facts.key.clone(),
            account: plan.account.to_string(),
            model: call.model_name().unwrap_or_default().to_owned(),
            endpoint: endpoint_name(&call.endpoint).to_owned(),
            at: worker.shared.clock.now(),
        });
        let (admission, span) = (Some(admission), Span::current());
        let (status, answered, first_byte, upstream_request_id, ended) = (None, None, None, None, false);
        Self {
            worker,
            admission,
            call,
            call_id,
            plan,
            facts,
            status,
            answered,
            first_byte,
            upstream_request_id,
            ended,
            span,
        }
    }

    /// The head of the answer is there: the account learns of it at once, not at the end of a long stream.
    pub fn head(&mut self, status: u16, upstream_request_id: Option<String>, outcome: Outcome) {
        self.status = Some(status);
        self.first_byte = Some(self.facts.arrived.elapsed());
        self.upstream_request_id = upstream_request_id;
        self.settle(outcome);
    }

    /// How to reach the upstream.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// No head came, for this reason; the client is told so.
    pub fn refused(&mut self, refusal: &Refusal) {
        let (ending, fault) = match refusal {
            Refusal::Upstream(fault) => (Ending::UpstreamError, Some(*fault)),
            _ => (Ending::RelayEnded, None),
        };
        self.answered = Some(refusal.anthropic().0);
        self.end(ending, Usage::default(), fault);
    }

    /// The id of the request, for answers of our own.
    pub fn request_id(&self) -> &str {
        &self.facts.request_id
    }

    fn settle(&self, outcome: Outcome) {
        if let Some(admission) = &self.admission {
            admission.permit.settle(outcome, self.worker.shared.clock.now());
        }
    }

    fn log(&self, ending: Ending, usage: &Usage, fault: Option<Fault>, duration: Duration) {
        let error_by = match ending {
            Ending::Complete => "none",
            Ending::UpstreamError | Ending::UpstreamCut => "upstream",
            Ending::ClientGone => "client",
            Ending::RelayEnded | Ending::RelayCrashed => "relay",
        };
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            parent: &self.span,
            request_id = self.facts.request_id,
            key = self.facts.key,
            account = self.plan.account.as_str(),
            model = self.call.model_name(),
            endpoint = endpoint_name(&self.call.endpoint),
            stream = self.call.stream,
            status = self.status.or(self.answered),
            error_by,
            fault = fault.map(Fault::code),
            attempts = 1,
            first_byte_ms = self.first_byte.map(millis),
            duration_ms = millis(duration),
            input_tokens = usage.input_tokens,
            output_tokens = usage.output_tokens,
            cache_creation_input_tokens = usage.cache_creation_input_tokens,
            cache_read_input_tokens = usage.cache_read_input_tokens,
            upstream_request_id = self.upstream_request_id,
            ending = ending.name(),
            "call"
        );
    }
}

impl Booking for Attempt {
    fn end(&mut self, ending: Ending, usage: Usage, fault: Option<Fault>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let duration = self.facts.arrived.elapsed();
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        self.worker.journal.borrow_mut().ended(&Ended {
            call: std::mem::take(&mut self.call_id),
            ending,
            status: self.status,
            usage,
            first_byte_ms: self.first_byte.map(millis),
            duration_ms: millis(duration),
        });
        if let Some(fault) = fault {
            self.settle(Outcome::Failed { fault });
        }
        self.log(ending, &usage, fault, duration);
        // Calls that we abort keep their slot for a while: the upstream may still be at work on them.
        if matches!(ending, Ending::ClientGone | Ending::RelayEnded | Ending::RelayCrashed)
            || fault.is_some_and(Fault::is_timeout)
        {
            self.linger();
        }
    }

    fn release(&mut self) {
        self.admission = None;
    }
}

impl Attempt {
    fn linger(&mut self) {
        if let Some(Admission { permit, pass }) = self.admission.take() {
            drop(pass);
            permit.release_after(self.worker.shared.settings.upstream.abort_linger);
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let ending = if std::thread::panicking() { Ending::RelayCrashed } else { Ending::ClientGone };
        self.end(ending, Usage::default(), None);
    }
}
