//! An account's health: what its past answers say about it. Pure: [`Health::after`] takes an outcome and the time.
//!
//! Three things side by side: a rejection (credential, money), cooldowns (429, 529: one for each limit) and a
//! circuit breaker (5xx, silence). What follows from them for a call is [`super::verdict`]'s. A time that the
//! upstream named is kept to the letter; one that we guessed ends in a single trial call.

mod policy;

pub use policy::Policy;

use super::breaker::{Breaker, grow, shorten};
use super::verdict::Code;
use super::{Family, Fault, Limit, Outcome, Reading, Time, Window};
use chrono::TimeDelta;
use serde::Serialize;

/// What an account's past answers say about it.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// Decides the jitter, so that accounts that fail together do not come back together.
    seed: u64,
    pub(super) rejection: Option<Rejection>,
    pub(super) cooldowns: Vec<Cooldown>,
    pub(super) breaker: Breaker,
    pub(super) readings: Vec<Reading>,
    last: Option<Last>,
}

#[derive(Debug, Clone)]
pub(super) struct Rejection {
    pub code: Code,
    pub since: Time,
    pub evidence: String,
    pub probes: u32,
    probe_at: Time,
}

#[derive(Debug, Clone)]
pub(super) struct Cooldown {
    pub code: Code,
    /// Of which window, and for which models only.
    pub of: Option<(Window, Option<Family>)>,
    pub since: Time,
    pub until: Time,
    /// The upstream named the time.
    pub named: bool,
    /// How often in a row, where it did not.
    strikes: u32,
    /// And how long its trial keeps others away.
    pub trial: TimeDelta,
    pub evidence: String,
}

impl Cooldown {
    /// Only for these models; `None` is all.
    pub fn family(&self) -> Option<Family> {
        self.of.and_then(|(_, family)| family)
    }
}

/// What an upstream said of how long it wants to be left alone.
#[derive(Debug, Clone, Copy)]
struct Said {
    /// Until then, if it said so.
    until: Option<Time>,
    /// Kept without a trial at its end.
    to_the_letter: bool,
}

/// The last outcome and its time.
#[derive(Debug, Clone, Serialize)]
pub struct Last {
    /// When it was judged.
    pub at: Time,
    /// What it was.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What is known of the call that an outcome belongs to.
#[derive(Debug, Clone, Copy)]
pub struct Attempted {
    /// When its slot was granted. What happened since cannot be this call's news.
    pub granted: Time,
    /// The account's successes within the breaker's window.
    pub successes: u32,
    /// What it asked for.
    pub asked: Asked,
}

/// What a call asked for, as far as its outcome then says something about others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// A message, of a model of this family as the upstream knows it.
    Message(Option<Family>),
    /// `count_tokens` or `models`: they have limits and faults of their own, and cost the upstream next to nothing.
    Other,
}

impl Health {
    /// The health of an account of which nothing is known.
    pub fn new(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// Takes an outcome in.
    pub fn after(&mut self, outcome: Outcome, call: Attempted, now: Time, policy: &Policy) {
        self.cooldowns.retain(|c| c.until > now || !c.named);
        self.readings.retain(|r| r.reset > now);
        self.breaker.tick(now);
        match &outcome {
            Outcome::Answered { .. } | Outcome::Success { .. } => {
                self.rejection.take_if(|r| r.since <= call.granted);
                self.answered(call, now, policy);
                if matches!(outcome, Outcome::Success { .. }) {
                    self.breaker.succeeded(call);
                }
            }
            // Somebody is there to refuse a request, or to count tokens: that does not say that messages flow again.
            Outcome::Neutral { .. } => {}
            Outcome::CredentialRejected { status } => {
                self.reject(Code::CredentialRejected, format!("status {status}"), now, policy);
            }
            Outcome::Billing { status } => self.reject(Code::Billing, format!("status {status}"), now, policy),
            Outcome::RefreshFailed => {
                self.reject(Code::RefreshFailed, "the token was not renewed".to_owned(), now, policy);
            }
            // Other servers answer those: they stumble on their own.
            Outcome::ServerFault { .. } | Outcome::Overloaded { .. } if call.asked == Asked::Other => {}
            Outcome::RateLimited { limit, until, header } => {
                let (code, of) = match limit {
                    Limit::Burst => (Code::RateLimitedBurst, None),
                    Limit::Window { window, family } => (Code::RateLimitedWindow, Some((*window, *family))),
                };
                let source = header.unwrap_or("no time named");
                let said = Said { until: *until, to_the_letter: true };
                self.cool_down(code, of, said, &format!("status 429, {source}"), call, now, policy);
            }
            Outcome::Overloaded { status, until } => {
                let source = until.map_or("no time named", |_| "retry-after");
                // An overload of hours is a page of maintenance: asked again after the longest guess, by one call.
                let last = now + policy.longest;
                let said = Said { until: until.map(|t| t.min(last)), to_the_letter: until.is_none_or(|t| t <= last) };
                let evidence = format!("status {status}, {source}");
                self.cool_down(Code::Overloaded, None, said, &evidence, call, now, policy);
            }
            // The request, or an answer given before it was read, ended it: that says nothing of the account.
            Outcome::Failed { fault: Fault::EarlyClose } => {}
            // Once it says nothing either, and there is but one trial.
            Outcome::Failed { fault: Fault::Stale } if self.breaker.is_on_trial() => {}
            Outcome::ServerFault { status } => {
                self.breaker.failed(&format!("status {status}"), call, self.seed, now, policy)
            }
            Outcome::Failed { fault } => self.breaker.failed(&fault.to_string(), call, self.seed, now, policy),
        }
        self.last = Some(Last { at: now, outcome });
    }

    /// Takes in what a probe of our own came to. `whole`: it was a message like any client's. Another proves the
    /// credential, and that somebody answers; only its failure says something about messages.
    pub fn probed(&mut self, outcome: Outcome, whole: bool, call: Attempted, now: Time, policy: &Policy) {
        let standing = self.rejection.is_some();
        if proves_credential(&outcome) {
            self.rejection.take_if(|r| r.code == Code::CredentialRejected && r.since <= call.granted);
        }
        if whole {
            if matches!(outcome, Outcome::ServerFault { .. } | Outcome::Failed { .. }) {
                self.breaker.keep_open(true, call, self.seed, now, policy);
            }
            self.after(outcome, call, now, policy);
            if standing && self.probe_at().is_some_and(|at| at <= now) {
                self.defer_probe(now, policy);
            }
            return;
        }
        match &outcome {
            Outcome::Success { .. } => drop(self.rejection.take_if(|r| r.code != Code::Billing)),
            Outcome::Failed { fault: Fault::EarlyClose } => {}
            Outcome::ServerFault { .. } | Outcome::Failed { .. } | Outcome::Overloaded { .. } => {
                // Where nobody is there at all, messages have nowhere to go either.
                let fault = if let Outcome::Failed { fault } = outcome { Some(fault) } else { None };
                let sure = matches!(fault, Some(Fault::Connect | Fault::ConnectTimeout));
                self.breaker.keep_open(sure, call, self.seed, now, policy);
            }
            Outcome::CredentialRejected { .. } | Outcome::Billing { .. } => {
                return self.after(outcome, call, now, policy);
            }
            _ => {}
        }
        if self.probe_at().is_some_and(|at| at <= now) {
            self.defer_probe(now, policy);
        }
    }

    /// Takes in how full the account's windows are.
    pub fn observe(&mut self, readings: &[Reading], now: Time) {
        self.readings.retain(|old| {
            let same = |new: &Reading| (new.window, new.family) == (old.window, old.family);
            old.reset > now && !readings.iter().any(same)
        });
        self.readings.extend(readings.iter().filter(|r| r.reset > now));
    }

    /// The operator changed the credential or asked for a fresh start: nothing of what was learnt holds.
    pub fn forget(&mut self) {
        *self = Self { last: self.last.take(), ..Self::new(self.seed) };
    }

    /// The operator switched the account on again: what was guessed is tried anew; what the upstream named stands.
    pub fn forgive(&mut self) {
        self.rejection = None;
        self.cooldowns.retain(|c| c.named);
        self.breaker = Breaker::default();
    }

    /// A probe said nothing about a rejected credential (no answer, a 5xx, no slot): try again later.
    pub fn defer_probe(&mut self, now: Time, policy: &Policy) {
        if let Some(rejection) = &mut self.rejection {
            rejection.probes += 1;
            let wait = grow(policy.probe_first, rejection.probes, policy.probe_longest);
            rejection.probe_at = now + shorten(wait, self.seed, now, policy);
        }
    }

    /// Nothing speaks against the account, nor did until now.
    pub fn is_clear(&self) -> bool {
        self.rejection.is_none() && self.cooldowns.is_empty() && self.breaker.is_clear()
    }

    /// The last outcome, for people.
    pub fn last(&self) -> Option<&Last> {
        self.last.as_ref()
    }

    /// When a rejected credential should be tried again by a probe.
    pub fn probe_at(&self) -> Option<Time> {
        self.rejection.as_ref().map(|r| r.probe_at)
    }

    /// The money, not the credential, is what was rejected.
    pub fn wants_money(&self) -> bool {
        self.rejection.as_ref().is_some_and(|r| r.code == Code::Billing)
    }

    /// When the breaker of an account lets a trial in: a probe shortly before may spare a client the try.
    pub fn trial_at(&self, now: Time) -> Option<Time> {
        self.breaker.opens_until().filter(|at| *at > now)
    }

    /// Failures lately, for ranking: 0 is none.
    pub fn strikes(&self) -> u32 {
        self.breaker.strikes()
    }

    /// How full the fullest window is that counts for models of this family, thousandths.
    pub fn used(&self, family: Option<Family>, now: Time) -> u16 {
        let counts = |r: &&Reading| r.reset > now && (r.family.is_none() || r.family == family);
        self.readings.iter().filter(counts).map(|r| r.used).max().unwrap_or(0)
    }

    /// How full its windows are, as far as answers tell.
    pub fn readings(&self, now: Time) -> impl Iterator<Item = &Reading> {
        self.readings.iter().filter(move |r| r.reset > now)
    }

    /// Whether the breaker is open, be its time over or not.
    pub fn is_open(&self) -> bool {
        self.opening().is_some()
    }

    /// Which opening of the breaker a trial now would be of.
    pub fn opening(&self) -> Option<Time> {
        self.breaker.opens_until()
    }

    /// Whether the breaker keeps calls out, or some of them.
    pub fn is_held_back(&self, now: Time) -> bool {
        self.breaker.is_held_back(now)
    }

    /// The upstream began a good answer: that ends what we only guessed of such calls. A time that the upstream named
    /// stands, and so does what began after the call did.
    fn answered(&mut self, call: Attempted, now: Time, policy: &Policy) {
        let Asked::Message(asked) = call.asked else { return };
        let other = |limited: Option<Family>| limited.is_some() && limited != asked;
        self.cooldowns.retain(|c| c.named || c.since > call.granted || c.until > now || other(c.family()));
        self.breaker.answered(call, now, policy);
    }

    fn reject(&mut self, code: Code, evidence: String, now: Time, policy: &Policy) {
        let Some(standing) = &mut self.rejection else {
            let probe_at = now + shorten(policy.probe_first, self.seed, now, policy);
            self.rejection = Some(Rejection { code, since: now, evidence, probes: 0, probe_at });
            return;
        };
        if standing.code != code {
            (standing.code, standing.since, standing.evidence) = (code, now, evidence);
        }
        // Calls that were under way together are rejected together: that is one rejection.
        if now >= standing.probe_at {
            self.defer_probe(now, policy);
        }
    }

    /// Of two cooldowns of one limit the one that ends later stands; but the upstream's word stands over a guess.
    #[allow(clippy::too_many_arguments)] // one rule, and all that it hangs on
    fn cool_down(
        &mut self,
        code: Code,
        of: Option<(Window, Option<Family>)>,
        said: Said,
        evidence: &str,
        call: Attempted,
        now: Time,
        policy: &Policy,
    ) {
        let at = self.cooldowns.iter().position(|c| c.code == code && c.of == of);
        let old = at.map(|at| self.cooldowns.swap_remove(at));
        let Said { until: said, to_the_letter: named } = said;
        let said = said.filter(|t| *t > now);
        let running = old.as_ref().filter(|c| c.until > now);
        let trial = policy.trial;
        let new = match (said, running) {
            // Calls that were under way together are limited together: that is one strike.
            (None, Some(_)) => old,
            (None, None) if old.as_ref().is_some_and(|c| call.granted < c.since) => old,
            (Some(said), Some(running)) if running.named && running.until >= said => old,
            (Some(until), _) => {
                let since = running.map_or(now, |c| c.since);
                Some(Cooldown { code, of, since, until, named, strikes: 0, trial, evidence: evidence.to_owned() })
            }
            (None, None) => {
                let strikes = old.map_or(0, |c| c.strikes) + 1;
                let first = if code == Code::Overloaded { policy.overloaded_first } else { policy.rate_limited_first };
                let wait = shorten(grow(first, strikes - 1, policy.longest), self.seed, now, policy);
                let evidence = format!("{evidence}, {strikes} in a row");
                Some(Cooldown { code, of, since: now, until: now + wait, named: false, strikes, trial, evidence })
            }
        };
        self.cooldowns.extend(new);
    }
}

/// The upstream looked at the request, so that the credential let it in.
fn proves_credential(outcome: &Outcome) -> bool {
    let looked_at = |status: &u16| matches!(status, 200..=299 | 400 | 413 | 422 | 429);
    match outcome {
        Outcome::Success { .. } | Outcome::Answered { .. } | Outcome::RateLimited { .. } => true,
        Outcome::Neutral { status } => looked_at(status),
        _ => false,
    }
}
