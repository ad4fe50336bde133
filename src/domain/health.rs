//! An account's health: what its past answers say about it. Pure: [`Health::after`] takes an outcome and the time.
//!
//! A cooldown after a 5xx is *soft*: it moves the account to the end of the line but never out of it, so that with
//! one account one 500 does not become an outage of our making. What follows from health is [`super::verdict`]'s.

use super::verdict::Code;
use super::{Outcome, Time};
use chrono::TimeDelta;
use serde::Serialize;

/// Growing cooldowns where the upstream named no time. Seconds unless said otherwise.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// First cooldown after a 429 without a time.
    pub rate_limited_first: TimeDelta,
    /// First cooldown after a 529, a 503, another 5xx, or no answer.
    pub overloaded_first: TimeDelta,
    /// The longest cooldown of these kinds.
    pub longest: TimeDelta,
    /// First wait before a rejected credential is probed again; doubles up to [`Policy::probe_longest`].
    pub probe_first: TimeDelta,
    /// The longest wait between two such probes.
    pub probe_longest: TimeDelta,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            rate_limited_first: TimeDelta::seconds(2),
            overloaded_first: TimeDelta::seconds(1),
            longest: TimeDelta::seconds(60),
            probe_first: TimeDelta::seconds(60),
            probe_longest: TimeDelta::hours(1),
        }
    }
}

/// What an account's past answers say about it.
#[derive(Debug, Clone, Default)]
pub struct Health {
    pub(super) rejection: Option<Rejection>,
    pub(super) cooldown: Option<Cooldown>,
    /// Failures in a row, for growth.
    streak: u32,
    last: Option<Last>,
}

#[derive(Debug, Clone)]
pub(super) struct Rejection {
    pub since: Time,
    pub status: u16,
    pub probes: u32,
    probe_at: Time,
}

#[derive(Debug, Clone)]
pub(super) struct Cooldown {
    pub code: Code,
    pub since: Time,
    pub until: Time,
    /// The upstream named the time.
    pub named: bool,
    pub evidence: String,
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

impl Health {
    /// Takes an outcome in.
    pub fn after(&mut self, outcome: Outcome, now: Time, policy: &Policy) {
        match &outcome {
            Outcome::Success { .. } => self.recover(now),
            Outcome::Neutral { .. } => {}
            Outcome::CredentialRejected { status } => self.reject(*status, now, policy),
            Outcome::RateLimited { until } => {
                let end = self.end(*until, policy.rate_limited_first, now, policy);
                let evidence = format!("status 429, {}", source(*until));
                self.cool_down(Cooldown {
                    code: Code::RateLimitedBurst,
                    since: now,
                    until: end,
                    named: until.is_some(),
                    evidence,
                });
            }
            Outcome::Overloaded { status, until } => {
                let end = self.end(*until, policy.overloaded_first, now, policy);
                let evidence = format!("status {status}, {}", source(*until));
                self.cool_down(Cooldown {
                    code: Code::Overloaded,
                    since: now,
                    until: end,
                    named: until.is_some(),
                    evidence,
                });
            }
            Outcome::ServerFault { status } => {
                let end = self.end(None, policy.overloaded_first, now, policy);
                let evidence = format!("status {status}");
                self.cool_down(Cooldown { code: Code::ServerFault, since: now, until: end, named: false, evidence });
            }
            // Both say nothing about the account: the request, or an answer given before it was read, ended it.
            Outcome::Failed { fault: super::Fault::EarlyClose } => {}
            Outcome::Failed { fault } => {
                let end = self.end(None, policy.overloaded_first, now, policy);
                let evidence = fault.to_string();
                self.cool_down(Cooldown { code: Code::ServerFault, since: now, until: end, named: false, evidence });
            }
        }
        self.last = Some(Last { at: now, outcome });
    }

    /// The operator changed the credential or asked for a fresh start.
    pub fn forgive(&mut self) {
        (self.rejection, self.cooldown, self.streak) = (None, None, 0);
    }

    /// A probe said nothing about a rejected credential (no answer, a 5xx, no slot): try again later.
    pub fn defer_probe(&mut self, now: Time, policy: &Policy) {
        if let Some(rejection) = &mut self.rejection {
            rejection.probes += 1;
            rejection.probe_at = now + grow(policy.probe_first, rejection.probes, policy.probe_longest);
        }
    }

    /// Nothing speaks against the account, nor did until now.
    pub fn is_clear(&self) -> bool {
        self.rejection.is_none() && self.cooldown.is_none() && self.streak == 0
    }

    /// The last outcome, for people.
    pub fn last(&self) -> Option<&Last> {
        self.last.as_ref()
    }

    /// When a rejected credential should be tried again by a probe.
    pub fn probe_at(&self) -> Option<Time> {
        self.rejection.as_ref().map(|r| r.probe_at)
    }

    /// A success ends what we only guessed. A time that the upstream named stands: the success may be the answer
    /// to a call that was under way before it.
    fn recover(&mut self, now: Time) {
        self.rejection = None;
        self.cooldown.take_if(|c| !c.named || c.until <= now);
        self.streak = 0;
    }

    fn reject(&mut self, status: u16, now: Time, policy: &Policy) {
        match &self.rejection {
            // Calls that were under way together are rejected together: that is one rejection.
            Some(standing) if now < standing.probe_at => {}
            Some(_) => self.defer_probe(now, policy),
            None => {
                let probe_at = now + policy.probe_first;
                self.rejection = Some(Rejection { since: now, status, probes: 0, probe_at });
            }
        }
    }

    fn end(&mut self, said: Option<Time>, first: TimeDelta, now: Time, policy: &Policy) -> Time {
        // Failures of calls that were under way together are one failure; the next one in a row comes after the
        // cooldown.
        if self.cooldown.as_ref().is_none_or(|c| c.until <= now) {
            self.streak = self.streak.saturating_add(1);
        }
        let grown = now + grow(first, self.streak.saturating_sub(1), policy.longest);
        said.filter(|t| *t > now).unwrap_or(grown)
    }

    /// Of two cooldowns the one that ends later stands; a hard one is not displaced by a soft one.
    fn cool_down(&mut self, new: Cooldown) {
        if let Some(old) = self.cooldown.as_ref().filter(|old| old.until > new.since) {
            let keep = match (old.code.is_soft(), new.code.is_soft()) {
                (false, true) => true,
                (true, false) => false,
                _ => old.until >= new.until,
            };
            if keep {
                return;
            }
        }
        self.cooldown = Some(new);
    }
}

fn grow(first: TimeDelta, times: u32, longest: TimeDelta) -> TimeDelta {
    let factor = 1_i32.checked_shl(times.min(20)).unwrap_or(i32::MAX);
    first.checked_mul(factor).unwrap_or(longest).min(longest)
}

fn source(until: Option<Time>) -> &'static str {
    if until.is_some() { "the upstream named the time" } else { "no time named" }
}
