//! One attempt at an upstream, from the journal's `begun` to its `ended`: it holds the permit and the pass, and
//! whatever becomes of it, a client that leaves or a panic included, its drop books it and gives them back.

use super::Worker;
use crate::actors::{Admission, Pass};
use crate::domain::{Call, Ending, Fault, Outcome, Reading, Refusal, Usage};
use crate::platform::Plan;
use crate::platform::messages::endpoint_name;
use crate::store::{Begun, Ended};
use crate::upstream::tap::Booking;
use actix_web::web::Data;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::Span;

/// What the line at the end of a call tells besides the attempt itself.
#[derive(Debug, Clone)]
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
    /// 1 is the first.
    number: u32,
    begun: Instant,
    /// The upstream's status.
    status: Option<u16>,
    /// What the head came to, if it was judged.
    judged: Option<Judged>,
    /// The status of the client's answer, where that is not this upstream's.
    answered: Option<u16>,
    first_byte: Option<Duration>,
    upstream_request_id: Option<String>,
    booked: Option<Booked>,
    logged: bool,
    span: Span,
}

/// What the head of an answer came to.
#[derive(Clone, Copy)]
enum Judged {
    /// The account's fault.
    Fault,
    /// 2xx to a message.
    Good { status: u16 },
}

/// How it ended.
struct Booked {
    ending: Ending,
    usage: Usage,
    fault: Option<Fault>,
    duration: Duration,
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Attempt {
    /// Writes `begun`; from here on the attempt has a row, even if the process is killed.
    pub fn begin(worker: Data<Worker>, admission: Admission, call: Arc<Call>, facts: Facts, number: u32) -> Self {
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
        Self {
            worker,
            admission: Some(admission),
            call,
            call_id,
            plan,
            facts,
            number,
            begun: Instant::now(),
            status: None,
            judged: None,
            answered: None,
            first_byte: None,
            upstream_request_id: None,
            booked: None,
            logged: false,
            span: Span::current(),
        }
    }

    /// The head of the answer is there.
    pub fn head(&mut self, status: u16, upstream_request_id: Option<String>) {
        self.status = Some(status);
        self.first_byte = Some(self.facts.arrived.elapsed());
        self.upstream_request_id = upstream_request_id;
    }

    /// The answer is judged: the account learns of it at once, not at the end of a long stream. What begins well
    /// counts as a success only when it ends well.
    pub fn judged(&mut self, outcome: Outcome, readings: Vec<Reading>) {
        let outcome = match outcome {
            Outcome::Success { status } => {
                self.judged = Some(Judged::Good { status });
                if let Some(admission) = &self.admission {
                    admission.permit.first_byte(self.begun.elapsed());
                }
                Outcome::Answered { status }
            }
            outcome => {
                self.judged = outcome.is_accounts_fault().then_some(Judged::Fault);
                outcome
            }
        };
        self.settle(outcome, readings);
    }

    /// How to reach the upstream.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// The client is told this.
    pub fn refused(&mut self, refusal: &Refusal) {
        let (ending, fault) = match refusal {
            Refusal::Upstream(fault) => (Ending::UpstreamError, Some(*fault)),
            _ => (Ending::RelayEnded, None),
        };
        self.answered = Some(refusal.anthropic().0);
        self.end(ending, Usage::default(), fault);
    }

    /// It failed, and another account is looked for: it is booked, and its slot is given back; one that was `aborted`
    /// keeps it for a while, since the upstream may still be at work on it.
    pub fn failed(&mut self, fault: Option<Fault>, aborted: bool) {
        self.book(Ending::UpstreamError, Usage::default(), fault);
        if let Some(Admission { permit, .. }) = self.admission.take()
            && aborted
        {
            permit.release_after(self.worker.shared.settings.upstream.abort_linger);
        }
    }

    /// The key's slot, which the next attempt holds too.
    pub fn pass(&self) -> Option<Pass> {
        self.admission.as_ref().map(|admission| admission.pass.clone())
    }

    /// There is another account: this attempt is not the call's last.
    pub fn followed(mut self) {
        self.log("attempt");
    }

    /// There is none: the client is told this status.
    pub fn last(mut self, answered: u16) {
        self.answered = Some(answered);
        self.log("call");
    }

    /// The id of the request, for answers of our own.
    pub fn request_id(&self) -> &str {
        &self.facts.request_id
    }

    fn settle(&mut self, outcome: Outcome, readings: Vec<Reading>) {
        let now = self.worker.shared.clock.now();
        if let Some(admission) = &mut self.admission {
            admission.permit.settle(outcome, readings, now);
        }
    }

    fn book(&mut self, ending: Ending, usage: Usage, fault: Option<Fault>) {
        let duration = self.facts.arrived.elapsed();
        self.worker.journal.borrow_mut().ended(&Ended {
            call: std::mem::take(&mut self.call_id),
            ending,
            status: self.status,
            usage,
            first_byte_ms: self.first_byte.map(millis),
            duration_ms: millis(duration),
        });
        match (fault, self.judged) {
            // One attempt is one fault at the most.
            (_, Some(Judged::Fault)) => {}
            (Some(fault), _) => self.settle(Outcome::Failed { fault }, Vec::new()),
            (None, Some(Judged::Good { status })) if ending == Ending::Complete => {
                self.settle(Outcome::Success { status }, Vec::new());
            }
            (None, _) => {}
        }
        self.booked = Some(Booked { ending, usage, fault, duration });
    }

    fn log(&mut self, what: &'static str) {
        let Some(Booked { ending, usage, fault, duration }) = &self.booked else { return };
        self.logged = true;
        let error_by = match ending {
            Ending::Complete => "none",
            Ending::UpstreamError | Ending::UpstreamCut => "upstream",
            Ending::ClientGone => "client",
            Ending::RelayEnded | Ending::RelayCrashed => "relay",
        };
        tracing::info!(
            parent: &self.span,
            request_id = self.facts.request_id,
            key = self.facts.key,
            account = self.plan.account.as_str(),
            model = self.call.model_name(),
            endpoint = endpoint_name(&self.call.endpoint),
            stream = self.call.stream,
            status = self.answered.or(self.status),
            error_by,
            fault = fault.map(Fault::code),
            attempts = self.number,
            first_byte_ms = self.first_byte.map(millis),
            duration_ms = millis(*duration),
            input_tokens = usage.input_tokens,
            output_tokens = usage.output_tokens,
            cache_creation_input_tokens = usage.cache_creation_input_tokens,
            cache_read_input_tokens = usage.cache_read_input_tokens,
            upstream_request_id = self.upstream_request_id,
            ending = ending.name(),
            "{what}"
        );
    }
}

impl Booking for Attempt {
    fn end(&mut self, ending: Ending, usage: Usage, fault: Option<Fault>) {
        if self.booked.is_some() {
            return;
        }
        self.book(ending, usage, fault);
        self.log("call");
        if let (Ending::ClientGone, None, Some(admission)) = (ending, self.status, &self.admission) {
            admission.permit.no_first_byte(self.begun.elapsed());
        }
        let aborted = matches!(ending, Ending::ClientGone | Ending::RelayEnded | Ending::RelayCrashed);
        if (aborted || fault.is_some_and(Fault::is_timeout))
            && let Some(Admission { permit, pass }) = self.admission.take()
        {
            drop(pass);
            permit.release_after(self.worker.shared.settings.upstream.abort_linger);
        }
    }

    fn release(&mut self) {
        self.admission = None;
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let ending = if std::thread::panicking() { Ending::RelayCrashed } else { Ending::ClientGone };
        self.end(ending, Usage::default(), None);
        if !self.logged {
            // Its client left, or the relay ended it, while another account was looked for.
            self.log("call");
        }
    }
}
