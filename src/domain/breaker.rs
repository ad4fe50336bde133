//! The circuit breaker of an account: closed, open, half-open, slow start. Part of [`super::health`].
//!
//! Half-open is no state of its own: it is an open breaker whose time is over, so that nothing has to happen at
//! that moment. Only calls that were granted after it opened say anything about whether it may close.

use super::Time;
use super::health::{Attempted, Policy};
use super::tally::Tally;
use chrono::TimeDelta;

/// The breaker.
#[derive(Debug, Clone, Default)]
pub(super) struct Breaker {
    pub state: State,
    failures: Tally,
}

/// What it is in.
#[derive(Debug, Clone)]
pub(super) enum State {
    /// Calls flow; `streak` failures in a row were the last.
    Closed { streak: u32 },
    /// No call until then, and from then on one at a time. `probed`: a probe that does not prove much has put it off
    /// already; the next word is a call's.
    /// `trial`: how long one that is not answered keeps the next away.
    Open { since: Time, until: Time, trips: u32, evidence: String, trial: TimeDelta, probed: bool },
    /// Calls flow again, more and more of them. `opened`: a call granted before that says nothing. `proven`: one came
    /// to a good end; until then a failure is the trial's.
    SlowStart { opened: Time, since: Time, until: Time, trips: u32, streak: u32, proven: bool },
}

impl Default for State {
    fn default() -> Self {
        Self::Closed { streak: 0 }
    }
}

impl Breaker {
    pub fn is_clear(&self) -> bool {
        matches!(self.state, State::Closed { streak: 0 })
    }

    /// What time alone changes. A slow start in which nothing came to a good end proves nothing by being over.
    pub fn tick(&mut self, now: Time) {
        if let State::SlowStart { until, streak, proven: true, .. } = self.state
            && until <= now
        {
            self.state = State::Closed { streak };
        }
    }

    /// A call failed: a 5xx, silence, or half an answer.
    pub fn failed(&mut self, evidence: &str, call: Attempted, seed: u64, now: Time, policy: &Policy) {
        match &mut self.state {
            State::Closed { streak } => {
                let streak = *streak + 1;
                self.count(streak, 0, evidence, call, seed, now, policy);
            }
            State::SlowStart { opened, trips, proven: false, .. } if call.granted >= *opened => {
                let trips = *trips;
                self.trip(trips, &format!("the trial failed: {evidence}"), seed, now, policy);
            }
            State::SlowStart { opened, trips, streak, .. } if call.granted >= *opened => {
                *streak += 1;
                let (streak, trips) = (*streak, *trips);
                self.count(streak, trips, evidence, call, seed, now, policy);
            }
            State::Open { since, trips, until, .. } if *until <= now && call.granted >= *since => {
                let trips = *trips;
                self.trip(trips, &format!("the trial failed: {evidence}"), seed, now, policy);
            }
            // Granted before it opened, or failing with the others: no news.
            State::SlowStart { .. } | State::Open { .. } => {}
        }
    }

    /// Opens if it is time to. Sources of the defaults: Envoy's outlier detection (5 in a row), Hystrix (half of at
    /// least 20 calls).
    #[allow(clippy::too_many_arguments)] // one rule, and all that it hangs on
    fn count(
        &mut self,
        streak: u32,
        trips: u32,
        evidence: &str,
        call: Attempted,
        seed: u64,
        now: Time,
        policy: &Policy,
    ) {
        self.failures = self.failures.plus_one(now, policy.breaker_window);
        let failed = self.failures.count(now, policy.breaker_window);
        let calls = failed.saturating_add(call.successes);
        let often =
            calls >= policy.breaker_minimum && failed.saturating_mul(100) >= policy.breaker_rate.saturating_mul(calls);
        if streak >= policy.breaker_failures {
            self.trip(trips, &format!("{streak} failures in a row, the last: {evidence}"), seed, now, policy);
        } else if often {
            self.trip(trips, &format!("{failed} of {calls} calls failed, the last: {evidence}"), seed, now, policy);
        } else if trips == 0 {
            self.state = State::Closed { streak };
        }
    }

    fn trip(&mut self, trips: u32, evidence: &str, seed: u64, now: Time, policy: &Policy) {
        let wait = shorten(grow(policy.breaker_first, trips, policy.longest), seed, now, policy);
        let evidence = evidence.to_owned();
        let trial = grow(policy.trial, trips, policy.longest.max(policy.trial));
        let trips = trips.saturating_add(1);
        self.state = State::Open { since: now, until: now + wait, trips, evidence, trial, probed: false };
        // What opened it is done with: a recovered account starts with a clean sheet.
        self.failures = Tally::default();
    }

    /// A probe failed: an open breaker stays open, for longer than before. Unless the failure is as sure as a call's
    /// it puts off one trial, not one after the other: or an endpoint that is broken by itself would keep the account
    /// out for ever. Too late, it says nothing: from `until` on calls decide.
    pub fn keep_open(&mut self, sure: bool, call: Attempted, seed: u64, now: Time, policy: &Policy) {
        if let State::Open { since, until, trips, probed, .. } = self.state
            && call.granted >= since
            && until > now
            && (sure || !probed)
        {
            self.trip(trips, "a probe failed", seed, now, policy);
            if let State::Open { probed, .. } = &mut self.state {
                *probed = !sure;
            }
        }
    }

    /// Whether it keeps calls out, or some of them.
    pub fn is_held_back(&self, now: Time) -> bool {
        match self.state {
            State::Open { .. } => true,
            State::SlowStart { until, .. } => until > now,
            State::Closed { .. } => false,
        }
    }

    /// Whether the next failure would be the trial's.
    pub fn is_on_trial(&self) -> bool {
        matches!(self.state, State::Open { .. } | State::SlowStart { proven: false, .. })
    }

    /// The upstream began a good answer.
    pub fn answered(&mut self, call: Attempted, now: Time, policy: &Policy) {
        if let State::Open { since, trips, .. } = self.state
            && call.granted >= since
        {
            let (opened, until) = (since, now + policy.slow_start);
            self.state = State::SlowStart { opened, since: now, until, trips, streak: 0, proven: false };
        }
    }

    /// A call came to a good end: failures are no longer in a row.
    pub fn succeeded(&mut self, call: Attempted) {
        match &mut self.state {
            State::Closed { streak } => *streak = 0,
            State::SlowStart { opened, streak, proven, .. } if call.granted >= *opened => {
                (*streak, *proven) = (0, true);
            }
            State::SlowStart { .. } | State::Open { .. } => {}
        }
    }

    pub fn opens_until(&self) -> Option<Time> {
        match self.state {
            State::Open { until, .. } => Some(until),
            _ => None,
        }
    }

    pub fn strikes(&self) -> u32 {
        match self.state {
            State::Closed { streak } | State::SlowStart { streak, .. } => streak,
            State::Open { trips, .. } => trips,
        }
    }
}

/// The slots that an account in slow start may use: from one to all, in step with time; and when there is one more.
pub(super) fn ramp(limit: u32, since: Time, until: Time, now: Time) -> (u32, Time) {
    let whole = (until - since).num_milliseconds().max(1);
    let gone = (now - since).num_milliseconds().clamp(0, whole);
    let share = |slots: i64| slots * whole / i64::from(limit.max(1));
    let open = (i64::from(limit) * gone / whole).max(1);
    // Rounded up: at that moment there is one more indeed.
    let next = since + TimeDelta::milliseconds((share(open + 1) + 1).min(whole));
    (u32::try_from(open).unwrap_or(limit).min(limit), next.min(until))
}

pub(super) fn grow(first: TimeDelta, times: u32, longest: TimeDelta) -> TimeDelta {
    let factor = 1_i32.checked_shl(times.min(20)).unwrap_or(i32::MAX);
    first.checked_mul(factor).unwrap_or(longest).min(longest)
}

/// Takes off what chance may take off, so that what failed together does not come back together.
pub(super) fn shorten(wait: TimeDelta, seed: u64, now: Time, policy: &Policy) -> TimeDelta {
    let chance = mix(seed ^ now.timestamp_millis().unsigned_abs()) % 1_000;
    let millis = wait.num_milliseconds();
    let off = millis.saturating_mul(i64::from(policy.jitter)) / 1_000 * i64::try_from(chance).unwrap_or(0) / 1_000;
    TimeDelta::milliseconds((millis - off).max(1))
}

/// The finaliser of splitmix64 (Steele, Lea, Flood 2014): every bit of the input moves every bit of the output.
pub(super) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}
