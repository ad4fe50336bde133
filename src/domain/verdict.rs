//! The one verdict that everybody reads: may this account take this call now, and if not, why and until when.
//!
//! Scheduler, Account, Admin API and CLI ask here; the rule is written down once, in `weigh`. What the breaker says
//! is put aside where too much of a class is out already ([`Load::bounded`]): an outage must not be of our making.

mod code;

pub use code::{Code, Grade};

use super::breaker::{State, grow, ramp};
use super::health::Health;
use super::{Account, Call, Family, Time, credential};
use chrono::TimeDelta;
use serde::Serialize;

/// One reason with its evidence and the time it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// What.
    pub code: Code,
    /// It keeps the call out; else it is only to be known.
    pub blocks: bool,
    /// Since when, if it began with an event.
    pub since: Option<Time>,
    /// Until when, if that is known.
    pub until: Option<Time>,
    /// The status, header or count that caused it.
    pub evidence: String,
}

/// The answer to "may this account take this call now".
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// It may: no reason blocks.
    pub schedulable: bool,
    /// It may, though its breaker says no: others are asked first.
    pub last_resort: bool,
    /// Why not, and what is to be known otherwise.
    pub reasons: Vec<Reason>,
}

impl Verdict {
    /// It may, and nothing is to be said against it.
    pub fn is_clear(&self) -> bool {
        self.reasons.is_empty()
    }

    /// The time all that stands in the way is over, if known.
    pub fn until(&self) -> Option<Time> {
        let blocking = self.reasons.iter().filter(|r| r.blocks);
        blocking.map(|r| r.until).collect::<Option<Vec<_>>>()?.into_iter().max()
    }
}

/// What a call asks of an account.
#[derive(Debug, Clone, Copy, Default)]
pub struct Want<'a> {
    /// The model; `None` is any, or one that is known to be served.
    pub model: Option<&'a str>,
    /// Whether this is about one call: then limits of its family alone count, else they are only told.
    pub family: Option<Option<Family>>,
}

impl<'a> Want<'a> {
    /// What `call` asks.
    pub fn of(call: &'a Call) -> Self {
        let model = call.model_name();
        Self { model, family: Some(model.and_then(Family::of)) }
    }

    /// The same, in the account's own name of the model: what the upstream is asked for decides which limits count.
    fn mapped(self, account: &Account) -> Self {
        let family = self.model.and_then(|m| account.models.upstream_name(m)).map(Family::of);
        Self { family: self.family.and(family).or(self.family), ..self }
    }
}

/// What an account bears at this moment, and how the rest of its class is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Load {
    /// Slots taken.
    pub in_use: u32,
    /// Since when the one call of a half-open account is under way, if it is.
    pub on_trial: Option<Time>,
    /// Trials before that one that are not answered yet: each doubles the time until the next.
    pub overdue: u32,
    /// Too much of its class is ejected already: the breaker is only told.
    pub bounded: bool,
}

/// A trial keeps the next away for so long at the most.
const LONGEST_TRIAL: TimeDelta = TimeDelta::hours(1);

impl Load {
    /// When the next trial may go, if one that keeps others away for `trial` is under way.
    fn trial_ends(self, trial: TimeDelta) -> Option<Time> {
        self.on_trial.map(|began| began + grow(trial, self.overdue, LONGEST_TRIAL.max(trial)))
    }
}

/// The verdict over `account` with this health and load at `now`.
pub fn verdict(account: &Account, health: &Health, load: Load, want: Want, now: Time) -> Verdict {
    let (mut reasons, mut last_resort) = (Vec::new(), false);
    weigh(account, health, load, want, now, |code, weight, since, until, evidence| {
        last_resort |= weight == Weight::PutAside;
        reasons.push(Reason { code, blocks: weight.blocks(), since, until, evidence: evidence() });
    });
    let schedulable = !reasons.iter().any(|r| r.blocks);
    Verdict { schedulable, last_resort: schedulable && last_resort, reasons }
}

/// The same verdict in brief, for the Scheduler's walk over many accounts: nothing is allocated.
pub fn glance(account: &Account, health: &Health, load: Load, want: Want, now: Time) -> Glance {
    let (obstacle, end, change) = (None, Some(now), None);
    let mut glance = Glance { obstacle, end, change, loaded: false, last_resort: false, trial: false };
    weigh(account, health, load, want, now, |code, weight, _, until, _| {
        glance.last_resort |= weight == Weight::PutAside;
        glance.trial |= code == Code::HalfOpen && weight == Weight::Told;
        let Weight::Blocks(grade) = weight else { return };
        if glance.obstacle.is_none_or(|(_, gravest)| grade > gravest) {
            glance.obstacle = Some((code, grade));
        }
        glance.loaded |= matches!(code, Code::AtCapacity | Code::HalfOpen | Code::SlowStart);
        glance.change = [glance.change, until].into_iter().flatten().min();
        // A slot frees itself at any moment: it has no time of its own, and puts no other off.
        if grade > Grade::Held {
            glance.end = glance.end.zip(until).map(|(a, b)| a.max(b));
        }
    });
    glance
}

/// A verdict in brief.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glance {
    /// The gravest reason that blocks, if one does.
    pub obstacle: Option<(Code, Grade)>,
    /// When all that stands in the way is over, as far as it has an end.
    pub end: Option<Time>,
    /// When the first of it is over: time to look again, for what else stands in the way may be over by then.
    pub change: Option<Time>,
    /// Some of it is over as soon as a call ends, whatever else stands in the way.
    pub loaded: bool,
    /// It may take the call, but others should be asked first.
    pub last_resort: bool,
    /// The call would be its trial.
    pub trial: bool,
}

impl Glance {
    /// The account may take the call, if only as a last resort.
    pub fn schedulable(&self) -> bool {
        self.obstacle.is_none()
    }
}

/// What a reason does to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weight {
    Blocks(Grade),
    /// It would block, if not too many were out already.
    PutAside,
    Told,
}

impl Weight {
    fn blocks(self) -> bool {
        matches!(self, Self::Blocks(_))
    }
}

type Say<'a> = &'a dyn Fn() -> String;

/// Every reason that holds, in the order of [`Code::ALL`]. The one place where the rule is written down.
fn weigh(
    account: &Account,
    health: &Health,
    load: Load,
    want: Want,
    now: Time,
    mut say: impl FnMut(Code, Weight, Option<Time>, Option<Time>, Say),
) {
    const OUT: Weight = Weight::Blocks(Grade::Out);
    let want = want.mapped(account);
    if !account.active {
        say(Code::OperatorDisabled, OUT, None, None, &|| "status is not active".to_owned());
    }
    if !account.schedulable {
        say(Code::Unschedulable, OUT, None, None, &|| "schedulable is false".to_owned());
    }
    if account.draining {
        say(Code::Draining, OUT, None, None, &|| "status is draining".to_owned());
    }
    if let Some(end) = account.expires_at.filter(|end| *end <= now) {
        say(Code::Expired, OUT, Some(end), None, &|| "expires_at has passed".to_owned());
    }
    if credential::choose(account).is_none() {
        say(Code::NoCredential, OUT, None, None, &|| format!("no credential for platform {}", account.platform.name()));
    }
    if let Some(r) = &health.rejection {
        say(r.code, OUT, Some(r.since), None, &|| format!("{}, {} probes since", r.evidence, r.probes));
    }
    if let Some(model) = want.model.filter(|m| account.models.upstream_name(m).is_none()) {
        say(Code::ModelUnsupported, OUT, None, None, &|| format!("models has no {model}"));
    }
    weigh_cooldowns(health, load, want, now, &mut say);
    if account.reserve > 0 {
        let most = 1_000 - u16::from(account.reserve) * 10;
        let counts = |f: Option<Family>| want.family.is_none_or(|wanted| f.is_none() || f == wanted);
        for r in health.readings.iter().filter(|r| r.used >= most && r.reset > now && counts(r.family)) {
            let weight = if want.family.is_none() && r.family.is_some() { Weight::Told } else { OUT };
            let evidence = || format!("{} at {}.{} %", r.window.name(), r.used / 10, r.used % 10);
            say(Code::ReserveReached, weight, None, Some(r.reset), &evidence);
        }
    }
    weigh_breaker(account, health, load, now, &mut say);
    if load.in_use >= account.concurrency_limit {
        let evidence = || format!("{} of {} slots in use", load.in_use, account.concurrency_limit);
        say(Code::AtCapacity, Weight::Blocks(Grade::Busy), None, None, &evidence);
    }
}

fn weigh_cooldowns(
    health: &Health,
    load: Load,
    want: Want,
    now: Time,
    say: &mut impl FnMut(Code, Weight, Option<Time>, Option<Time>, Say),
) {
    for c in &health.cooldowns {
        let weight = match (c.family(), want.family) {
            (Some(limited), Some(wanted)) if wanted != Some(limited) => continue,
            (Some(_), None) => Weight::Told,
            _ => Weight::Blocks(Grade::Out),
        };
        if c.until > now {
            let evidence = || match c.of {
                Some((window, None)) => format!("{}: {}", window.name(), c.evidence),
                Some((window, Some(family))) => format!("{} of {}: {}", window.name(), family.name(), c.evidence),
                None => c.evidence.clone(),
            };
            say(c.code, weight, Some(c.since), Some(c.until), &evidence);
        } else if !c.named {
            // What an upstream refuses it refuses at once: a trial that takes long has been let in.
            let end = load.trial_ends(c.trial).filter(|end| *end > now);
            let weight = end.map_or(Weight::Told, |_| Weight::Blocks(Grade::Busy));
            say(Code::HalfOpen, weight, Some(c.until), end, &|| format!("after {}: {}", c.code.name(), c.evidence));
        }
    }
}

fn weigh_breaker(
    account: &Account,
    health: &Health,
    load: Load,
    now: Time,
    say: &mut impl FnMut(Code, Weight, Option<Time>, Option<Time>, Say),
) {
    let or_aside = |grade| if load.bounded { Weight::PutAside } else { Weight::Blocks(grade) };
    match &health.breaker.state {
        State::Open { since, until, evidence, .. } if *until > now => {
            say(Code::BreakerOpen, or_aside(Grade::Ejected), Some(*since), Some(*until), &|| evidence.clone());
        }
        State::Open { until, evidence, trial, .. } => {
            // A model may think for minutes: while it does, the next one may try now and then.
            let end = load.trial_ends(*trial).filter(|end| *end > now);
            let weight = end.map_or(Weight::Told, |_| or_aside(Grade::Held));
            say(Code::HalfOpen, weight, Some(*until), end, &|| evidence.clone());
        }
        State::SlowStart { since, until, .. } if *until > now => {
            let (open, next) = ramp(account.concurrency_limit, *since, *until, now);
            // Calls that hang since before it was well again are none that it serves now.
            let full = load.in_use.saturating_sub(load.overdue) >= open;
            let evidence = || format!("{} in use of {open} of {} slots", load.in_use, account.concurrency_limit);
            let (weight, end) = if full { (or_aside(Grade::Held), next) } else { (Weight::Told, *until) };
            say(Code::SlowStart, weight, Some(*since), Some(end), &evidence);
        }
        State::SlowStart { .. } | State::Closed { .. } => {}
    }
}
