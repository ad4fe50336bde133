//! Front: the first actor a request meets. It admits by key (status, expiry, the key's own concurrency) and
//! while the relay is not shutting down, then hands the question on to the Scheduler with its reply.

use super::permit::{Pass, Permit};
use super::reply::{Left, Reply, TicketId};
use super::scheduler::{Close, Scheduler, Select};
use super::watch::Watch;
use super::{Actors, KeyEntry, Live, Parts};
use crate::clock::Clock;
use crate::domain::dispatch::Question;
use crate::domain::retry::{Retry, RetryBudget};
use crate::domain::{AccountId, Call, Endpoint, Refusal, Session, Time};
use actix::{Actor, Context, Handler, Message};
use chrono::TimeDelta;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// The actor.
pub struct Front {
    scheduler: Live<Scheduler>,
    clock: Clock,
    /// How long a call may wait for an account.
    wait: TimeDelta,
    /// Of messages, and of all else: what is broken in one endpoint must not use up the retries of the other.
    retries: [RetryBudget; 2],
    draining: Arc<AtomicBool>,
    _watch: Watch,
}

/// Lets one call in, and finds it an account.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Route {
    /// The caller's place in the line.
    pub ticket: TicketId,
    /// Whose call.
    pub key: Arc<KeyEntry>,
    /// Which call.
    pub call: Arc<Call>,
    /// Accounts that were tried for it already.
    pub tried: Arc<[AccountId]>,
    /// The call was sent before, and is to be tried again.
    pub again: bool,
    /// The pass it holds from an earlier attempt.
    pub pass: Option<Pass>,
    /// Where the answer goes.
    pub reply: Reply<Result<Admission, Refusal>>,
}

/// A call that was let in.
#[derive(Debug)]
pub struct Admission {
    /// Its slot of the key.
    pub pass: Pass,
    /// Its slot of an account.
    pub permit: Permit,
}

/// From now on no call is let in. Holds for a respawned Front too.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Drain;

impl Front {
    pub(super) fn new(parts: &Parts, actors: &Actors, watch: Watch) -> Self {
        Self {
            scheduler: actors.scheduler.clone(),
            clock: parts.clock.clone(),
            wait: parts.wait,
            retries: [parts.retries.clone(), parts.retries.clone().apart()],
            draining: actors.draining.clone(),
            _watch: watch,
        }
    }

    fn admit(
        &mut self,
        key: &KeyEntry,
        pass: Option<Pass>,
        (again, endpoint): (bool, &Endpoint),
        now: Time,
    ) -> Result<(Pass, Option<Retry>), Refusal> {
        if let Some(refusal) = barred(key, self.draining.load(SeqCst), pass.is_some(), now) {
            return Err(refusal);
        }
        let pass = pass.or_else(|| Pass::take(key.slots())).ok_or_else(|| at_limit(key))?;
        let retries = &mut self.retries[usize::from(*endpoint != Endpoint::Messages)];
        if !again {
            retries.deposit(now);
            return Ok((pass, None));
        }
        let retry = retries.withdraw(now).ok_or(Refusal::RetryBudget)?;
        Ok((pass, Some(retry)))
    }
}

/// Why a call of `key` is not let in at `now`, if it is not; one that `holds` a slot of the key already needs no
/// other. Looks only: it takes none, so that the last one may be gone a moment later.
pub fn barred(key: &KeyEntry, draining: bool, holds: bool, now: Time) -> Option<Refusal> {
    let record = key.key();
    if draining {
        return Some(Refusal::Draining);
    }
    if !record.active || key.revoked().is_cancelled() {
        return Some(Refusal::KeyRevoked);
    }
    if !record.usable(now) {
        return Some(Refusal::KeyExpired);
    }
    (!holds && key.slots().in_use() >= key.slots().limit()).then(|| at_limit(key))
}

fn at_limit(key: &KeyEntry) -> Refusal {
    Refusal::KeyAtLimit { limit: key.slots().limit() }
}

impl Actor for Front {
    type Context = Context<Self>;
}

impl Handler<Route> for Front {
    type Result = ();

    fn handle(&mut self, msg: Route, _: &mut Self::Context) {
        let now = self.clock.now();
        let (pass, retry) = match self.admit(&msg.key, msg.pass, (msg.again, &msg.call.endpoint), now) {
            Ok(admitted) => admitted,
            Err(refusal) => return msg.reply.send(Err(refusal)),
        };
        let question = question(msg.ticket, &msg.key, msg.call, msg.tried, now + self.wait);
        // The pass and the retry travel in the reply: whatever becomes of the question, they come back.
        let reply = msg.reply.map(|answer: Result<Permit, Refusal>| {
            let permit = answer?;
            retry.into_iter().for_each(Retry::spent);
            Ok(Admission { pass, permit })
        });
        self.scheduler.addr().do_send(Select { question, reply });
    }
}

/// What the Scheduler is asked for a call of `key`: its binding is the scope, and sessions are its own.
pub fn question(
    ticket: TicketId,
    key: &KeyEntry,
    call: Arc<Call>,
    tried: Arc<[AccountId]>,
    deadline: Time,
) -> Question {
    let record = key.key();
    let scope = record.scope.clone();
    let session = call.session.as_deref().map(|name| Session::of(&key.id, name));
    let deadline = call.deadline.map_or(deadline, |end| end.min(deadline));
    Question { ticket, key: key.id.clone(), call, session, scope, tried, deadline }
}

impl Handler<Left> for Front {
    type Result = ();

    fn handle(&mut self, msg: Left, _: &mut Self::Context) {
        self.scheduler.addr().do_send(msg);
    }
}

impl Handler<Drain> for Front {
    type Result = ();

    fn handle(&mut self, _: Drain, _: &mut Self::Context) {
        self.draining.store(true, SeqCst);
        self.scheduler.addr().do_send(Close);
    }
}
