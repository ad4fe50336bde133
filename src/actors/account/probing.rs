//! What an account does of its own accord: it notes when its time is over, and probes while it is out.
//!
//! A rejected credential is tried again with growing waits. An account whose breaker is open is probed shortly
//! before its trial, cheaply: a failure keeps it out without costing a client's call, a success leaves the trial to
//! a real call, since a count of tokens proves little about messages. One that the operator switched off is left
//! alone.

use super::{Account, Probe};
use crate::domain::health::Asked;
use crate::domain::verdict::{Load, Want, verdict};
use crate::domain::{Fault, Outcome, ProbeKind, ProbeReport, Standing, Time};
use actix::{ActorFutureExt, AsyncContext, Context, Handler, ResponseActFuture, WrapFuture};
use chrono::TimeDelta;
use std::time::Duration;

/// How long a probe that failed keeps its slot.
const PROBE_LINGER: Duration = Duration::from_millis(250);

/// How long a probe of our own accord may take: it asks for one token, or for none.
const OWN_PATIENCE: Duration = Duration::from_secs(10);

/// An account is probed so long before its trial at the most.
const LEAD: TimeDelta = TimeDelta::seconds(1);

/// What the alarm is set for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Errand {
    Probe,
    /// Something that stood in the way is over.
    Look,
}

impl Account {
    /// Sets the alarm for what time alone will bring.
    pub(super) fn look_ahead(&mut self, ctx: &mut Context<Self>) {
        if let Some(old) = self.alarm.take() {
            ctx.cancel_future(old);
        }
        let now = self.now();
        if self.probing > 0 {
            // What it finds is reported, and then there is more to look ahead to.
            return;
        }
        let Some((at, errand)) = self.errand(now) else { return };
        let wait = (at - now).to_std().unwrap_or_default() + Duration::from_millis(1);
        self.alarm = Some(ctx.run_later(wait, move |actor, ctx| {
            actor.alarm = None;
            match errand {
                Errand::Probe => {
                    actor.probed_for = actor.standing.health.trial_at(actor.now());
                    ctx.notify(Probe { kind: None, model: None, own: true });
                }
                Errand::Look => actor.report("its time is over", ctx),
            }
        }));
    }

    fn errand(&self, now: Time) -> Option<(Time, Errand)> {
        let Standing { record, health, slots } = &self.standing;
        let expired = record.expires_at.is_some_and(|end| end <= now);
        let probed = record.is_enabled() && !expired && record.probe != ProbeKind::None && self.plan.is_some();
        let rejected = health.probe_at().filter(|_| probed);
        // One that has failed just now is not asked at once: half of a short wait is left to it.
        let before = |at: Time| at - LEAD.min((at - now) / 2);
        let trial =
            health.trial_at(now).filter(|at| probed && slots.on_trial().is_none() && self.probed_for != Some(*at));
        let said = verdict(record, health, Load::default(), Want::default(), now);
        let over = said.reasons.iter().filter_map(|r| r.until).filter(|until| *until > now).min();
        let expires = record.expires_at.filter(|end| *end > now);
        let probes = [rejected, trial.map(before)].into_iter().flatten().map(|at| (at, Errand::Probe));
        let looks = [over, expires].into_iter().flatten().map(|at| (at, Errand::Look));
        probes.chain(looks).min()
    }

    /// What a probe asks: the record's kind, but only a real message tells whether there is money again.
    fn probe_kind(&self) -> ProbeKind {
        match self.standing.record.probe {
            ProbeKind::CountTokens | ProbeKind::Models if self.standing.health.wants_money() => ProbeKind::Messages,
            kind => kind,
        }
    }

    /// What a probe asks for: the setting's model, or the account's own first one where it does not serve that.
    fn probe_model(&self, named: Option<String>) -> String {
        let models = &self.standing.record.models;
        let model = named.unwrap_or_else(|| self.surroundings.probe_model.clone());
        let served = models.upstream_name(&model).or_else(|| models.upstream_name(models.listed().next()?));
        served.unwrap_or(&model).to_owned()
    }

    /// How long a probe may take. It holds a slot: one of our own accord must not hold it once calls may have it, nor
    /// a stop up.
    fn patience(&self, own: bool, now: Time) -> Duration {
        match self.standing.health.trial_at(now).filter(|_| self.probe_kind() != ProbeKind::Messages) {
            // The operator waits for it as long as the prober itself does.
            _ if !own => Duration::MAX,
            Some(trial) => (trial - now).to_std().unwrap_or_default().min(OWN_PATIENCE),
            None => OWN_PATIENCE,
        }
    }

    fn probed(&mut self, report: &ProbeReport, whole: bool, granted: Time, ctx: &mut Context<Self>) {
        let (now, policy) = (self.now(), self.surroundings.policy);
        let asked = if whole { Asked::Message(None) } else { Asked::Other };
        let call = self.attempted(granted, asked, now);
        let health = &mut self.standing.health;
        health.probed(report.outcome.clone(), whole, call, now, &policy);
        self.report("a probe", ctx);
    }
}

/// A probe that was given up.
fn late(kind: ProbeKind, after: Duration) -> ProbeReport {
    let fault = Fault::FirstByteTimeout;
    ProbeReport {
        probe: kind.name(),
        outcome: Outcome::Failed { fault },
        error_type: None,
        message: Some(fault.to_string()),
        duration_ms: u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
    }
}

/// Whether a probe's answer leaves open what it was to find out, so that another endpoint is asked: it has none such,
/// or fails there in a way that tells nothing about a rejected credential.
fn leaves_open(outcome: &Outcome, rejected: bool) -> bool {
    match outcome {
        Outcome::Neutral { status } => matches!(status, 404 | 405),
        Outcome::ServerFault { status } => *status == 501 || rejected,
        _ => false,
    }
}

impl Handler<Probe> for Account {
    type Result = ResponseActFuture<Self, ProbeReport>;

    fn handle(&mut self, msg: Probe, ctx: &mut Self::Context) -> Self::Result {
        let kind = msg.kind.unwrap_or_else(|| self.probe_kind());
        let refused = |message: &str| ProbeReport {
            probe: kind.name(),
            outcome: Outcome::Failed { fault: Fault::EarlyClose },
            error_type: None,
            message: Some(message.to_owned()),
            duration_ms: 0,
        };
        let Some(plan) = self.plan.clone() else {
            let report = refused("the account has no credential; nothing was sent");
            return Box::pin(async move { report }.into_actor(self));
        };
        let granted = self.now();
        // A probe is a call like any other: it takes a slot, or the limit would not be one.
        let Some(slot) = self.standing.slots.try_take() else {
            let report = refused("every slot is in use; nothing was sent");
            self.probed(&report, false, granted, ctx);
            return Box::pin(async move { report }.into_actor(self));
        };
        let model = self.probe_model(msg.model);
        let (generation, send, named) = (self.generation, self.surroundings.probe.clone(), msg.kind.is_some());
        let rejected = self.standing.health.probe_at().is_some();
        self.probing += 1;
        let (begun, ends) = (tokio::time::Instant::now(), self.patience(msg.own, granted));
        let probe = async move {
            let mut kind = kind;
            loop {
                let left = ends.saturating_sub(begun.elapsed());
                let sent = tokio::time::timeout(left, send(plan.clone(), kind, model.clone())).await;
                let report = sent.unwrap_or_else(|_| late(kind, begun.elapsed()));
                // An upstream need not have every endpoint; only messages are what it is there for.
                let next = kind.next().filter(|_| !named && leaves_open(&report.outcome, rejected));
                match next {
                    Some(next) => kind = next,
                    None => return (report, kind),
                }
            }
        };
        Box::pin(probe.into_actor(self).map(move |(report, kind), actor, ctx| {
            actor.probing -= 1;
            // What we gave up on, the upstream may still be at work on.
            if matches!(report.outcome, Outcome::Failed { .. }) {
                ctx.run_later(PROBE_LINGER, move |_, _| drop(slot));
            } else {
                drop(slot);
            }
            if generation == actor.generation {
                actor.probed(&report, kind == ProbeKind::Messages, granted, ctx);
            } else {
                actor.look_ahead(ctx);
            }
            report
        }))
    }
}
