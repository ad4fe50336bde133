//! The attempts of one call: on another account each time, while the fault is the account's, nothing has gone out,
//! and the settings and the pool's retry budget allow it.
//!
//! An answer of the upstream that is given up for another attempt is kept: when no attempt does better, the client
//! gets the most useful one as it was; without one it is told when to come back, if that is known. A client's fault
//! is never tried again, nor is anything after the first byte.

use super::Worker;
use super::answer::{self, Start};
use super::attempt::{Attempt, Facts};
use super::auth::Caller;
use crate::actors::{Admission, Pass};
use crate::domain::{AccountId, Call, Ending, Fault, Refusal, Usage};
use crate::platform::{judge, limits};
use crate::upstream::tap::Booking;
use actix_web::http::Method;
use actix_web::web::{Bytes, Data};
use actix_web::{HttpRequest, HttpResponse};
use answer::Kept;
use awc::ClientResponse;
use http::header::{ACCEPT_ENCODING, HeaderValue};
use std::cell::Cell;
use std::sync::Arc;

/// A call that is relayed.
pub struct Relaying {
    /// As it came.
    pub request: HttpRequest,
    /// This thread.
    pub worker: Data<Worker>,
    /// Whose.
    pub caller: Caller,
    /// What is asked.
    pub call: Arc<Call>,
    /// For the log.
    pub facts: Facts,
    /// The head of the answer went out already, without a content coding: the upstream must use none either.
    pub uncoded: Cell<bool>,
}

/// What one attempt came to.
enum Sent {
    /// An answer for the client.
    Answer(ClientResponse, Start),
    /// An answer that is the account's fault, and too large or too slow to be put aside.
    Fault(ClientResponse, Start),
    /// The account failed, with this answer if it was a whole one.
    Failed(Option<Kept>, Option<Fault>),
    /// The relay ends the call.
    Ended(Refusal),
}

impl Relaying {
    /// An account for the call, other than those that were `tried`; waits for one if it must.
    ///
    /// # Errors
    /// Why there is none, or why the call ended while it waited.
    pub async fn admission(&self, tried: Vec<AccountId>, pass: Option<Pass>) -> Result<Admission, Refusal> {
        let actors = &self.worker.shared.actors;
        let route = actors.route(self.caller.key.clone(), self.call.clone(), tried.into(), pass);
        let revoked = self.caller.key.revoked();
        tokio::select! {
            biased;
            admission = route => admission,
            () = revoked.cancelled() => Err(self.ended()),
        }
    }

    /// Sends the call until an account answers for good.
    ///
    /// # Errors
    /// What the client is told where no upstream's answer can be.
    pub async fn attempts(&self, bytes: Bytes, first: Admission) -> Result<HttpResponse, Refusal> {
        let most = self.worker.shared.settings.failover.attempts;
        let (mut tried, mut best, mut admission) = (Vec::new(), None::<Kept>, first);
        let (mut forgiven, mut broken) = (false, None);
        for number in 1.. {
            let mut attempt =
                Attempt::begin(self.worker.clone(), admission, self.call.clone(), self.facts.clone(), number);
            let (kept, fault) = match self.send(bytes.clone(), &mut attempt).await {
                Sent::Answer(upstream, start) => return Ok(answer::respond(self, upstream, start, attempt)),
                Sent::Fault(upstream, start) => {
                    tried.push(attempt.plan().account.clone());
                    let next = if number < most { self.at_once(&tried, &attempt).await } else { None };
                    let Some(next) = next else { return Ok(answer::respond(self, upstream, start, attempt)) };
                    // What is given up here cannot be told any more, but that something better than our own credential's
                    // trouble was there can.
                    let useful = usefulness(upstream.status().as_u16()) > 0;
                    broken = broken.or(useful.then_some(Fault::Cut));
                    drop(upstream);
                    attempt.failed(None, true);
                    attempt.followed();
                    admission = next;
                    continue;
                }
                Sent::Ended(refusal) => {
                    attempt.refused(&refusal);
                    return Err(refusal);
                }
                Sent::Failed(kept, fault) => (kept, fault),
            };
            broken = fault.or(broken);
            best = match (best, kept) {
                (Some(old), Some(new)) => Some(old.or_better(new)),
                (old, new) => new.or(old),
            };
            // A connection that ended says little of its account, which may be asked once more, but only once.
            let excused = fault.is_some_and(Fault::is_connections) && !std::mem::replace(&mut forgiven, true);
            if !excused {
                tried.push(attempt.plan().account.clone());
            }
            // An answer that came before the upload was done may be the upstream's opinion of the upload.
            let again = number < most && (excused || fault != Some(Fault::EarlyClose));
            let pass = attempt.pass();
            attempt.failed(fault, fault.is_some_and(Fault::is_timeout));
            let refused = match again {
                true => match self.admission(tried.clone(), pass).await {
                    Ok(next) => {
                        attempt.followed();
                        admission = next;
                        continue;
                    }
                    Err(refusal) => Some(refusal),
                },
                false => None,
            };
            let told = match refused.filter(|refusal| is_telling(refusal, best.as_ref().map(Kept::status))) {
                Some(refusal) => Err(refusal),
                // A broken connection may pass; a rejected credential of ours is nothing that the client could mend.
                None => match best.filter(|kept| broken.is_none() || usefulness(kept.status()) > 0) {
                    Some(best) => Ok(best),
                    None => Err(Refusal::Upstream(broken.unwrap_or(Fault::Cut))),
                },
            };
            attempt.last(told.as_ref().map_or_else(|refusal| refusal.anthropic().0, Kept::status));
            return told.map(Kept::respond);
        }
        Err(Refusal::Internal)
    }

    /// Another account that is free this moment: while it is looked for, this attempt's answer stays open.
    async fn at_once(&self, tried: &[AccountId], attempt: &Attempt) -> Option<Admission> {
        let worker = &self.worker.shared;
        let hurried = Arc::new(Call { deadline: Some(worker.clock.now()), ..Call::clone(&self.call) });
        worker.actors.route(self.caller.key.clone(), hurried, tried.into(), attempt.pass()).await.ok()
    }

    fn ended(&self) -> Refusal {
        if self.worker.shared.actors.is_draining() { Refusal::Draining } else { Refusal::KeyRevoked }
    }

    /// Sends one attempt and waits for the head, or for the key's revocation; then judges what came.
    async fn send(&self, bytes: Bytes, attempt: &mut Attempt) -> Sent {
        let plan = attempt.plan().clone();
        tracing::debug!(
            account = %plan.account,
            credential = plan.credential_kind.name(),
            endpoint = plan.address(&self.call.endpoint),
            "dialling"
        );
        let query = self.caller.query.as_deref();
        let prepared = plan.prepare(&self.call, bytes, query, self.request.headers().iter(), &self.caller.presented);
        // Not possible with a plan that was built and a query that was parsed, but no reason to panic.
        let Some(mut prepared) = prepared else { return Sent::Ended(Refusal::Internal) };
        if self.uncoded.get() {
            prepared.headers.retain(|(name, _)| *name != ACCEPT_ENCODING);
            prepared.headers.push((ACCEPT_ENCODING, HeaderValue::from_static("identity")));
        }
        let method = if self.call.model.is_some() { Method::POST } else { Method::GET };
        let revoked = self.caller.key.revoked();
        let sent = tokio::select! {
            sent = self.worker.dialer.send(&plan, method, prepared) => sent,
            () = revoked.cancelled() => return Sent::Ended(self.ended()),
        };
        match sent {
            Ok(upstream) => self.judge(upstream, attempt).await,
            Err(fault) => Sent::Failed(None, Some(fault)),
        }
    }

    /// Gives the answer a meaning. Where that hangs on the body, or the answer may be given up for another, its body
    /// is read first, as far as it is small and quick.
    async fn judge(&self, mut upstream: ClientResponse, attempt: &mut Attempt) -> Sent {
        let status = upstream.status().as_u16();
        let may_fail_over = status == 429 || status >= 500;
        let start = match judge::wants_body(status) || may_fail_over {
            true => Start::read(&mut upstream).await,
            false => Start::Open(Bytes::new()),
        };
        let now = self.worker.shared.clock.now();
        let headers = upstream.headers();
        let find = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        let upstream_id = find("request-id").map(str::to_owned);
        tracing::debug!(status, upstream_request_id = upstream_id, "the upstream answered");
        let plain = start.plain(find("content-encoding"));
        let outcome = judge::judge(status, find, &self.call.endpoint, plain.as_deref(), now);
        let readings = limits::readings(
            headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?))),
            now,
        );
        let accounts_fault = outcome.is_accounts_fault();
        attempt.head(status, upstream_id);
        // Of a body that broke off, a head that names the account's fault is believed; else the cut is the fault.
        if accounts_fault || !matches!(start, Start::Cut) {
            attempt.judged(outcome, readings);
        }
        match start {
            Start::Cut => Sent::Failed(None, Some(Fault::Cut)),
            Start::Whole(body) if accounts_fault => Sent::Failed(Some(Kept::new(&upstream, body)), None),
            start if accounts_fault => Sent::Fault(upstream, start),
            start => Sent::Answer(upstream, start),
        }
    }
}

/// Books a whole answer that goes to the client as it is.
pub(super) fn book_whole(attempt: &mut Attempt, success: bool) {
    attempt.end(if success { Ending::Complete } else { Ending::UpstreamError }, Usage::default(), None);
}

/// How useful an answer is to a client whose call has failed everywhere: the greater the more. Waiting is a remedy
/// for some, and says so; a rejected credential of ours is nothing that it could mend.
pub(super) fn usefulness(status: u16) -> u8 {
    match status {
        429 | 503 | 529 => 2,
        500.. => 1,
        _ => 0,
    }
}

/// Whether a client whose call has failed is better told why there was no further attempt than what the last one came
/// to; `kept` is the status of the upstream's answer, where there is one.
fn is_telling(refusal: &Refusal, kept: Option<u16>) -> bool {
    match (refusal, kept.map(usefulness)) {
        // Whatever the upstream said: it is not for a key that holds no more.
        (Refusal::KeyRevoked, _) => true,
        (_, Some(1..)) => false,
        (Refusal::KeyExpired | Refusal::Draining | Refusal::LineFull { .. } | Refusal::WaitedTooLong { .. }, _) => true,
        (Refusal::NoAccount { transient, until, .. }, _) => *transient && until.is_some(),
        // SDKs take our own credential's trouble for theirs, and for final: another try may find another account.
        (Refusal::RetryBudget, kept) => kept.is_some(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_where_it_says_more_than_the_last_attempt() {
        let until = chrono::DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let none = |until, transient| Refusal::NoAccount { common: None, summary: String::new(), until, transient };
        for (refusal, instead_of_a_fault, of_a_401, of_a_500) in [
            (Refusal::KeyRevoked, true, true, true),
            (Refusal::KeyExpired, true, true, false),
            (Refusal::Draining, true, true, false),
            (Refusal::LineFull { limit: 1, of_key: false, until }, true, true, false),
            (Refusal::WaitedTooLong { until }, true, true, false),
            (none(Some(until), true), true, true, false),
            (none(None, true), false, false, false),
            (none(Some(until), false), false, false, false),
            (Refusal::RetryBudget, false, true, false),
            (Refusal::Internal, false, false, false),
        ] {
            let told = [None, Some(401), Some(500)].map(|kept| is_telling(&refusal, kept));
            assert_eq!(told, [instead_of_a_fault, of_a_401, of_a_500], "{refusal:?}");
        }
    }
}
