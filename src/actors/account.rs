//! Account: one upstream account. It owns the credential, the slots and the health, and it alone grants.
//!
//! Every change of its health or record is reported to the Scheduler and into [`Seats`]; a call that went well
//! on a healthy account changes nothing and is not. A settlement carries the generation of the credential it
//! was made with, so that a late 401 for the old token does not bench the new one.

mod probing;

use super::permit::{Granted, Permit};
use super::roster::{Down, Roster};
use super::scheduler::{Reported, Scheduler};
use super::seats::Seats;
use super::{Live, Parts, ProbeFn};
use crate::clock::Clock;
use crate::domain::affinity::Session;
use crate::domain::health::{Asked, Attempted, Health, Policy};
use crate::domain::slots::{Slots, Trial};
use crate::domain::standing::PutAside;
use crate::domain::verdict::{Code, Reason, Verdict, Want};
use crate::domain::{self, Call, Endpoint, KeyId, Outcome, ProbeReport, Reading, Standing, Time};
use crate::platform::Plan;
use crate::store::{Event, Events};
use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler, Message, MessageResult, SpawnHandle};
use std::sync::Arc;

/// The actor.
pub struct Account {
    standing: Standing,
    plan: Option<Arc<Plan>>,
    generation: u64,
    alarm: Option<SpawnHandle>,
    /// The trial that has been probed for: one probe each.
    probed_for: Option<Time>,
    /// What was reported last, codes and the ends of windows: a change is a transition.
    told: Option<Vec<(Code, Option<Time>)>>,
    retired: bool,
    /// The transition that is being kept.
    keeping: Option<tokio::task::JoinHandle<()>>,
    /// Probes under way.
    probing: u32,
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
    /// Its record, its health when it reported, and its slots, live.
    pub standing: Standing,
    /// Its address.
    pub addr: Addr<Account>,
    /// Calls that wait and that it could take; only the Scheduler knows.
    pub waiting: usize,
}

impl AccountView {
    /// The verdict over it for any call; `aside` are the breakers that are put aside, since too many are ejected.
    pub fn verdict(&self, aside: PutAside, now: Time) -> Verdict {
        self.standing.told(Want::default(), aside, now)
    }
}

/// Asks for a slot for one call.
#[derive(Message)]
#[rtype(result = "Result<Permit, Busy>")]
pub struct Acquire {
    /// Which call.
    pub call: Arc<Call>,
    /// Whatever the breaker says: too many others are ejected already.
    pub bounded: bool,
}

/// Why a slot was not granted.
#[derive(Debug)]
pub struct Busy(pub Verdict);

/// What an attempt came to. [`Permit::settle`] sends it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Settled {
    /// The judgement.
    pub outcome: Outcome,
    /// How full the account's windows are, as the answer tells.
    pub readings: Vec<Reading>,
    /// When, and by which credential, it was granted.
    pub granted: Granted,
    /// It was the trial of a half-open account: over, once this is taken in.
    pub trial: Option<Trial>,
}

/// The operator edited the record.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Amended {
    /// The new record.
    pub record: Arc<domain::Account>,
}

/// The operator wants a fresh start: what was learnt from past answers is forgotten.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Reset;

/// Sends one small request upstream, whatever the verdict, if a slot is free.
#[derive(Message)]
#[rtype(result = "ProbeReport")]
pub struct Probe {
    /// What to ask; `None` is what the account's record says.
    pub kind: Option<domain::ProbeKind>,
    /// The model to ask for; `None` is the setting's.
    pub model: Option<String>,
    /// Of the account's own accord: it gives up before calls may have its slot again.
    pub own: bool,
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
        let seed = Session::of(&KeyId::new("account"), record.id.as_str()).0;
        let health = surroundings.seats.health(&record.id).unwrap_or_else(|| Health::new(seed));
        let standing = Standing { record, health, slots };
        Self {
            standing,
            plan,
            generation: 0,
            alarm: None,
            probed_for: None,
            told: None,
            retired: false,
            keeping: None,
            probing: 0,
            surroundings,
        }
    }

    fn now(&self) -> Time {
        self.surroundings.clock.now()
    }

    fn view(&self, addr: Addr<Self>) -> AccountView {
        AccountView { standing: self.standing.clone(), addr, waiting: 0 }
    }

    /// A transition is kept for the operator; a store that cannot take it is no reason to stop.
    fn note_transition(&mut self, cause: &str) {
        let now = self.now();
        let Standing { record, health, .. } = &self.standing;
        let verdict = domain::verdict::verdict(record, health, domain::verdict::Load::default(), Want::default(), now);
        // Another window is another story, though its code is the same.
        let end = |r: &Reason| r.until.filter(|_| r.code == Code::RateLimitedWindow);
        let seen: Vec<_> = verdict.reasons.iter().map(|r| (r.code, end(r))).collect();
        let before = self.told.replace(seen);
        if before == self.told {
            return;
        }
        let evidence: Vec<_> = verdict.reasons.iter().map(|r| r.evidence.as_str()).collect();
        let event = Event {
            at: now,
            schedulable: verdict.schedulable,
            reasons: verdict.reasons.iter().map(|r| r.code.name().to_owned()).collect(),
            cause: if evidence.is_empty() { cause.to_owned() } else { format!("{cause}: {}", evidence.join("; ")) },
        };
        let id = self.standing.record.id.clone();
        let (events, first) = (self.surroundings.events.clone(), before.is_none());
        // One after the other: whoever reads them is to find them in order.
        let before = self.keeping.take();
        self.keeping = Some(tokio::spawn(async move {
            if let Some(before) = before {
                let _ = before.await;
            }
            keep_event(events, id, event, first).await;
        }));
    }

    fn report(&mut self, cause: &str, ctx: &mut Context<Self>) {
        self.note_transition(cause);
        self.standing.slots.vitals().set_well(self.standing.health.is_clear());
        let view = self.view(ctx.address());
        self.surroundings.seats.report(&view.standing);
        self.surroundings.scheduler.addr().do_send(Reported(view));
        self.look_ahead(ctx);
    }

    fn attempted(&self, granted: Time, asked: Asked, now: Time) -> Attempted {
        let vitals = self.standing.slots.vitals();
        Attempted { granted, asked, successes: vitals.successes(now, self.surroundings.policy.breaker_window) }
    }

    fn asked(&self, call: &Call) -> Asked {
        let model = call.model_name().filter(|_| call.endpoint == Endpoint::Messages);
        model.map_or(Asked::Other, |model| Asked::Message(self.standing.record.models.family(model)))
    }

    /// What calls under way will say is about what was: it is not listened to.
    fn forget(&mut self) {
        self.generation += 1;
        self.standing.health.forget();
        self.standing.slots.vitals().forget_told();
    }
}

/// Keeps a transition. The first look after a start is one only where it differs from what was kept last: what an
/// earlier process had learnt is forgotten, and whoever reads the events is to know that.
async fn keep_event(events: Arc<dyn Events>, id: domain::AccountId, event: Event, first: bool) {
    if first {
        if let Err(error) = events.add_if_news(&id, event).await {
            tracing::warn!(%error, account = %id, "an account's events could not be looked at");
        }
        return;
    }
    let Event { schedulable, reasons, cause, .. } = &event;
    tracing::info!(account = %id, schedulable, ?reasons, cause, "transition");
    let kept = events.add_event(&id, event);
    if let Err(error) = kept.await {
        tracing::warn!(%error, account = %id, "an account's transition could not be kept");
    }
}

impl Actor for Account {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.report("started, with nothing learnt yet", ctx);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if !self.retired {
            let (id, panicked) = (self.standing.record.id.clone(), std::thread::panicking());
            self.surroundings.roster.addr().do_send(Down { id, panicked });
        }
    }
}

impl Handler<Acquire> for Account {
    type Result = MessageResult<Acquire>;

    fn handle(&mut self, msg: Acquire, ctx: &mut Self::Context) -> Self::Result {
        let (now, want) = (self.now(), Want::of(&msg.call));
        let busy = |account: &Self| Busy(account.standing.verdict(want, msg.bounded, now));
        let Some(plan) = &self.plan else { return MessageResult(Err(busy(self))) };
        let granted = Granted {
            at: now,
            generation: self.generation,
            asked: self.asked(&msg.call),
            window: self.surroundings.policy.breaker_window,
        };
        let grant = self.standing.grant(want, msg.bounded, now).map_err(Busy);
        MessageResult(grant.map(|grant| Permit::new(grant, plan.clone(), granted, ctx.address())))
    }
}

impl Handler<Settled> for Account {
    type Result = ();

    fn handle(&mut self, msg: Settled, ctx: &mut Self::Context) {
        let now = self.now();
        if msg.granted.generation == self.generation {
            let asked = msg.granted.asked;
            // The counts of count_tokens and models are not those of messages.
            let counts = |r: &&Reading| asked != Asked::Other || !r.window.is_counted();
            let readings: Vec<_> = msg.readings.iter().filter(counts).copied().collect();
            self.standing.health.observe(&readings, now);
            let quiet = !msg.outcome.is_accounts_fault() && self.standing.health.is_clear() && readings.is_empty();
            if !quiet {
                tracing::debug!(account = %self.standing.record.id, outcome = ?msg.outcome, "outcome");
            }
            let call = self.attempted(msg.granted.at, asked, now);
            self.standing.health.after(msg.outcome, call, now, &self.surroundings.policy);
            drop(msg.trial);
            if !quiet {
                self.report("an answer", ctx);
            }
        }
    }
}

impl Handler<Amended> for Account {
    type Result = ();

    fn handle(&mut self, msg: Amended, ctx: &mut Self::Context) {
        self.standing.slots.set_limit(msg.record.concurrency_limit);
        self.plan = Plan::of(&msg.record).map(Arc::new);
        let old = std::mem::replace(&mut self.standing.record, msg.record);
        let new = &self.standing.record;
        if !new.reaches_as(&old) {
            self.forget();
        } else if new.is_enabled() && !old.is_enabled() {
            self.standing.health.forgive();
        }
        self.report("an edit", ctx);
    }
}

impl Handler<Reset> for Account {
    type Result = ();

    fn handle(&mut self, _: Reset, ctx: &mut Self::Context) {
        self.forget();
        self.report("a reset", ctx);
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
