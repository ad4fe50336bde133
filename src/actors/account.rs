//! Account: one upstream account. It owns the credential, the slots and the health, and it alone grants.
//!
//! Every change of its health or record is reported to the Scheduler and into [`Seats`]; a call that went well
//! on a healthy account changes nothing and is not. A settlement carries the generation of the credential it
//! was made with, so that a late 401 for the old token does not bench the new one.

use super::permit::{Permit, Slots};
use super::roster::{Down, Roster};
use super::scheduler::{Reported, Scheduler};
use super::seats::Seats;
use super::{Live, Parts, ProbeFn};
use crate::clock::Clock;
use crate::domain::health::{Health, Policy};
use crate::domain::verdict::{Code, Verdict, verdict};
use crate::domain::{self, Call, Fault, Outcome, ProbeReport, Time};
use crate::platform::Plan;
use crate::store::{Event, Events};
use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message, MessageResult,
    ResponseActFuture, SpawnHandle, WrapFuture,
};
use std::sync::Arc;
use std::time::Duration;

/// How long a probe that failed keeps its slot.
const PROBE_LINGER: Duration = Duration::from_millis(250);

/// The actor.
pub struct Account {
    record: Arc<domain::Account>,
    plan: Option<Arc<Plan>>,
    generation: u64,
    slots: Arc<Slots>,
    health: Health,
    reprobe: Option<SpawnHandle>,
    /// The codes that were reported last: a change of them is a transition.
    told: Option<Vec<Code>>,
    retired: bool,
    surroundings: Surroundings,
}

/// What an account needs around it.
#[derive(Clone)]
pub(super) struct Surroundings {
    pub scheduler: Live<Scheduler>,
    pub roster: Live<Roster>,
    pub seats: Arc<Seats>,
    pub events: Arc<dyn Events>,
    pub clock: Clock,
    pub policy: Policy,
    pub probe: ProbeFn,
    pub probe_model: String,
}

impl Surroundings {
    pub(super) fn new(parts: &Parts, actors: &super::Actors) -> Self {
        Self {
            scheduler: actors.scheduler.clone(),
            roster: actors.roster.clone(),
            seats: actors.seats.clone(),
            events: parts.stores.events.clone(),
            clock: parts.clock.clone(),
            policy: parts.policy,
            probe: parts.probe.clone(),
            probe_model: parts.probe_model.clone(),
        }
    }
}

/// How an account looks from outside.
#[derive(Clone)]
pub struct AccountView {
    /// Its record.
    pub account: Arc<domain::Account>,
    /// Its health when it reported.
    pub health: Health,
    /// Its slots, live.
    pub slots: Arc<Slots>,
    /// Its address.
    pub addr: Addr<Account>,
}

impl AccountView {
    /// The verdict over it, as the account itself would give it.
    pub fn verdict(&self, call: Option<&Call>, now: Time) -> Verdict {
        verdict(&self.account, &self.health, self.slots.in_use(), call, now)
    }
}

/// Asks for a slot for one call.
#[derive(Message)]
#[rtype(result = "Result<Permit, Busy>")]
pub struct Acquire {
    /// Which call.
    pub call: Arc<Call>,
}

/// Why a slot was not granted.
#[derive(Debug)]
pub struct Busy(pub Verdict);

/// What an attempt came to.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Settled {
    /// The judgement.
    pub outcome: Outcome,
    /// Which credential it was made with: [`Permit::settle`] fills it in.
    pub generation: u64,
}

/// The operator edited the record.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Amended {
    /// The new record.
    pub record: Arc<domain::Account>,
    /// The edit touched a credential, the endpoint or a switch: start with a clean health.
    pub forgive: bool,
}

/// Sends one small request upstream, whatever the verdict, if a slot is free.
#[derive(Message)]
#[rtype(result = "ProbeReport")]
pub struct Probe {
    /// The model to ask for; `None` is the setting's.
    pub model: Option<String>,
}

/// How it looks now.
#[derive(Message)]
#[rtype(result = "AccountView")]
pub struct Describe;

/// The account is no longer enlisted: the actor ends, running calls go on.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Retired;

impl Account {
    pub(super) fn new(record: Arc<domain::Account>, slots: Arc<Slots>, surroundings: Surroundings) -> Self {
        let plan = Plan::of(&record).map(Arc::new);
        let (health, reprobe, told, retired) = (Health::default(), None, None, false);
        Self { record, plan, generation: 0, slots, health, reprobe, told, retired, surroundings }
    }

    fn view(&self, addr: Addr<Self>) -> AccountView {
        AccountView { account: self.record.clone(), health: self.health.clone(), slots: self.slots.clone(), addr }
    }

    /// A transition is kept for the operator; a store that cannot take it is no reason to stop.
    fn note_transition(&mut self, cause: &str) {
        let now = self.surroundings.clock.now();
        let verdict = verdict(&self.record, &self.health, 0, None, now);
        let codes: Vec<Code> = verdict.reasons.iter().map(|r| r.code).collect();
        if self.told.replace(codes.clone()).is_none_or(|before| before == codes) {
            return;
        }
        let evidence: Vec<_> = verdict.reasons.iter().map(|r| r.evidence.as_str()).collect();
        let event = Event {
            at: now,
            schedulable: verdict.schedulable,
            reasons: codes.iter().map(|code| code.name().to_owned()).collect(),
            cause: if evidence.is_empty() { cause.to_owned() } else { format!("{cause}: {}", evidence.join("; ")) },
        };
        let (events, id) = (self.surroundings.events.clone(), self.record.id.clone());
        tokio::spawn(async move {
            if let Err(error) = events.add_event(&id, event).await {
                tracing::warn!(%error, account = %id, "an account's transition could not be kept");
            }
        });
    }

    fn report(&mut self, cause: &str, ctx: &Context<Self>) {
        self.note_transition(cause);
        self.slots.set_well(self.health.is_clear());
        let view = self.view(ctx.address());
        self.surroundings.seats.report(&view);
        self.surroundings.scheduler.addr().do_send(Reported(view));
    }

    fn take(&mut self, outcome: Outcome, ctx: &mut Context<Self>) {
        let now = self.surroundings.clock.now();
        let quiet = matches!(outcome, Outcome::Success { .. } | Outcome::Neutral { .. }) && self.health.is_clear();
        if !quiet {
            tracing::debug!(account = %self.record.id, ?outcome, "outcome");
        }
        let was_rejected = self.health.probe_at();
        self.health.after(outcome, now, &self.surroundings.policy);
        if !quiet {
            self.report("an answer", ctx);
        }
        if self.health.probe_at() != was_rejected {
            self.schedule_reprobe(now, ctx);
        }
    }

    /// A probe that settled nothing is followed by another, or the account would stay out for ever.
    fn probe_again(&mut self, ctx: &mut Context<Self>) {
        let now = self.surroundings.clock.now();
        if self.reprobe.is_none() && self.health.probe_at().is_some_and(|at| at <= now) {
            self.health.defer_probe(now, &self.surroundings.policy);
            self.schedule_reprobe(now, ctx);
        }
    }

    /// A rejected credential is tried again by a probe of our own, never at a client's cost.
    fn schedule_reprobe(&mut self, now: Time, ctx: &mut Context<Self>) {
        if let Some(old) = self.reprobe.take() {
            ctx.cancel_future(old);
        }
        let Some(at) = self.health.probe_at() else { return };
        tracing::warn!(account = %self.record.id, probe_at = %at, "the upstream rejects this account's credential");
        let wait = (at - now).to_std().unwrap_or(Duration::ZERO);
        self.reprobe = Some(ctx.run_later(wait, |actor, ctx| {
            actor.reprobe = None;
            if actor.record.active && actor.record.schedulable {
                ctx.notify(Probe { model: None });
            } else {
                // An account that the operator switched off is left alone until it is switched on.
                actor.probe_again(ctx);
            }
        }));
    }
}

impl Actor for Account {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.report("started", ctx);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if !self.retired {
            let (id, panicked) = (self.record.id.clone(), std::thread::panicking());
            self.surroundings.roster.addr().do_send(Down { id, panicked });
        }
    }
}

impl Handler<Acquire> for Account {
    type Result = MessageResult<Acquire>;

    fn handle(&mut self, msg: Acquire, ctx: &mut Self::Context) -> Self::Result {
        let now = self.surroundings.clock.now();
        let judged = |in_use| verdict(&self.record, &self.health, in_use, Some(&msg.call), now);
        let verdict = judged(self.slots.in_use());
        if !verdict.schedulable {
            return MessageResult(Err(Busy(verdict)));
        }
        MessageResult(match (self.slots.try_take(), &self.plan) {
            (Some(slot), Some(plan)) => Ok(Permit::new(slot, plan.clone(), self.generation, ctx.address())),
            _ => Err(Busy(judged(self.slots.limit()))),
        })
    }
}

impl Handler<Settled> for Account {
    type Result = ();

    fn handle(&mut self, msg: Settled, ctx: &mut Self::Context) {
        if msg.generation == self.generation {
            self.take(msg.outcome, ctx);
        }
    }
}

impl Handler<Amended> for Account {
    type Result = ();

    fn handle(&mut self, msg: Amended, ctx: &mut Self::Context) {
        self.slots.set_limit(msg.record.concurrency_limit);
        self.plan = Plan::of(&msg.record).map(Arc::new);
        self.record = msg.record;
        if msg.forgive {
            self.generation += 1;
            self.health.forgive();
            let now = self.surroundings.clock.now();
            self.schedule_reprobe(now, ctx);
        }
        self.report("an edit", ctx);
    }
}

impl Handler<Probe> for Account {
    type Result = ResponseActFuture<Self, ProbeReport>;

    fn handle(&mut self, msg: Probe, ctx: &mut Self::Context) -> Self::Result {
        let refused = |message: &str| ProbeReport {
            outcome: Outcome::Failed { fault: Fault::EarlyClose },
            error_type: None,
            message: Some(message.to_owned()),
            duration_ms: 0,
        };
        let Some(plan) = self.plan.clone() else {
            return Box::pin(
                async move { refused("the account has no credential; nothing was sent") }.into_actor(self),
            );
        };
        // A probe is a call like any other: it takes a slot, or the limit would not be one.
        let Some(slot) = self.slots.try_take() else {
            self.probe_again(ctx);
            return Box::pin(async move { refused("every slot is in use; nothing was sent") }.into_actor(self));
        };
        let model = msg.model.unwrap_or_else(|| self.surroundings.probe_model.clone());
        let model = self.record.models.upstream_name(&model).unwrap_or(&model).to_owned();
        let generation = self.generation;
        let probe = (self.surroundings.probe)(plan, model).into_actor(self);
        Box::pin(probe.map(move |report, actor, ctx| {
            // What we gave up on, the upstream may still be at work on.
            if matches!(report.outcome, Outcome::Failed { .. }) {
                ctx.run_later(PROBE_LINGER, move |_, _| drop(slot));
            } else {
                drop(slot);
            }
            if generation == actor.generation {
                actor.take(report.outcome.clone(), ctx);
                actor.probe_again(ctx);
            }
            report
        }))
    }
}

impl Handler<Describe> for Account {
    type Result = MessageResult<Describe>;

    fn handle(&mut self, _: Describe, ctx: &mut Self::Context) -> Self::Result {
        MessageResult(self.view(ctx.address()))
    }
}

impl Handler<Retired> for Account {
    type Result = ();

    fn handle(&mut self, _: Retired, ctx: &mut Self::Context) {
        self.retired = true;
        ctx.stop();
    }
}
