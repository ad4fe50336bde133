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
            Outcome::Success { .. } => self.recover(),
            Outcome::Neutral { .. } => {}
            Outcome::CredentialRejected { status } => self.reject(*status, now, policy),
            Outcome::RateLimited { until } => {
                let end = self.end(*until, policy.rate_limited_first, now, policy);
                self.cool_down(Code::RateLimitedBurst, end, now, format!("status 429, {}", source(*until)));
            }
            Outcome::Overloaded { status, until } => {
                let end = self.end(*until, policy.overloaded_first, now, policy);
                self.cool_down(Code::Overloaded, end, now, format!("status {status}, {}", source(*until)));
            }
            Outcome::ServerFault { status } => {
                let end = self.end(None, policy.overloaded_first, now, policy);
                self.cool_down(Code::ServerFault, end, now, format!("status {status}"));
            }
            // Both say nothing about the account: the request, or an answer given before it was read, ended it.
            Outcome::Failed { fault: super::Fault::EarlyClose } => {}
            Outcome::Failed { fault } => {
                let end = self.end(None, policy.overloaded_first, now, policy);
                self.cool_down(Code::ServerFault, end, now, fault.to_string());
            }
        }
        self.last = Some(Last { at: now, outcome });
    }

    /// The operator changed the credential or asked for a fresh start.
    pub fn forgive(&mut self) {
        self.recover();
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

    fn recover(&mut self) {
        self.rejection = None;
        self.cooldown = None;
        self.streak = 0;
    }

    fn reject(&mut self, status: u16, now: Time, policy: &Policy) {
        let (since, probes) = self.rejection.as_ref().map_or((now, 0), |r| (r.since, r.probes + 1));
        let wait = grow(policy.probe_first, probes, policy.probe_longest);
        self.rejection = Some(Rejection { since, status, probes, probe_at: now + wait });
    }

    fn end(&mut self, said: Option<Time>, first: TimeDelta, now: Time, policy: &Policy) -> Time {
        let grown = now + grow(first, self.streak, policy.longest);
        self.streak = self.streak.saturating_add(1);
        said.filter(|t| *t > now).unwrap_or(grown)
    }

    /// Of two cooldowns the one that ends later stands; a hard one is not displaced by a soft one.
    fn cool_down(&mut self, code: Code, until: Time, now: Time, evidence: String) {
        let stands = |old: &Cooldown| {
            old.until > now
                && (old.until >= until && (!old.code.is_soft() || code.is_soft())
                    || (code.is_soft() && !old.code.is_soft()))
        };
        if self.cooldown.as_ref().is_some_and(stands) {
            return;
        }
        self.cooldown = Some(Cooldown { code, since: now, until, evidence });
    }
}

fn grow(first: TimeDelta, times: u32, longest: TimeDelta) -> TimeDelta {
    let factor = 1_i32.checked_shl(times.min(20)).unwrap_or(i32::MAX);
    first.checked_mul(factor).unwrap_or(longest).min(longest)
}

fn source(until: Option<Time>) -> &'static str {
    if until.is_some() { "the upstream named the time" } else { "no time named" }
}
