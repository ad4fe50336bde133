//! How many calls may be tried again: a share of all calls, and a few more. So that a total outage is not made
//! worse by the calls that look for a way round it.
//!
//! Kept by Front, which sees every attempt. As Finagle's RetryBudget, over a sliding window.

use super::Time;
use super::tally::{SharedTally, Tally};
use chrono::TimeDelta;
use std::sync::Arc;

/// What the budget is counted over.
const WINDOW: TimeDelta = TimeDelta::seconds(10);

/// One retry that was taken out. Dropped before it is [`Retry::spent`], it goes back: it cost no upstream anything.
#[derive(Debug)]
#[must_use]
pub struct Retry {
    retries: Arc<SharedTally>,
    at: Time,
    spent: bool,
}

impl Retry {
    /// An account was found: the retry is sent.
    pub fn spent(mut self) {
        self.spent = true;
    }
}

impl Drop for Retry {
    fn drop(&mut self) {
        if !self.spent {
            self.retries.take_back(self.at, WINDOW);
        }
    }
}

/// The budget of the whole pool. Clones have the retries in common.
#[derive(Debug, Clone)]
pub struct RetryBudget {
    calls: Tally,
    /// Shared with every [`Retry`] that may still be given back.
    retries: Arc<SharedTally>,
    percent: u32,
    floor: u32,
}

impl RetryBudget {
    /// Of a hundred calls `percent` may be tried again, and in any ten seconds `floor` more.
    pub fn new(percent: u32, floor: u32) -> Self {
        Self { calls: Tally::default(), retries: Arc::default(), percent, floor }
    }

    /// The same budget, with nothing in common with this one.
    #[must_use]
    pub fn apart(self) -> Self {
        Self::new(self.percent, self.floor)
    }

    /// A call began.
    pub fn deposit(&mut self, now: Time) {
        self.calls = self.calls.plus_one(now, WINDOW);
    }

    /// Takes one retry out, if there is one.
    pub fn withdraw(&self, now: Time) -> Option<Retry> {
        let share = u64::from(self.calls.count(now, WINDOW)) * u64::from(self.percent) / 100;
        if u64::from(self.retries.get().count(now, WINDOW)) >= share + u64::from(self.floor) {
            return None;
        }
        self.retries.add(now, WINDOW);
        Some(Retry { retries: self.retries.clone(), at: now, spent: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spend(budget: &RetryBudget, now: Time) -> bool {
        budget.withdraw(now).map(Retry::spent).is_some()
    }

    #[test]
    fn a_total_outage_costs_a_fifth_more_and_the_floor() {
        let mut budget = RetryBudget::new(20, 10);
        let mut retries = 0_u32;
        for call in 0..10_000_i64 {
            let now = chrono::DateTime::from_timestamp_millis(1_800_000_000_000 + call).unwrap();
            budget.deposit(now);
            retries += (0..2).map(|_| u32::from(spend(&budget, now))).sum::<u32>();
        }
        assert!((2_000..=2_010).contains(&retries), "{retries}");
    }

    #[test]
    fn a_quiet_relay_may_retry_by_the_floor_alone() {
        let now = chrono::DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let mut budget = RetryBudget::new(20, 2);
        budget.deposit(now);
        assert_eq!([0, 1, 2].map(|_| spend(&budget, now)), [true, true, false]);
        assert!(spend(&budget, now + TimeDelta::seconds(20)));
    }

    #[test]
    fn a_retry_that_was_not_sent_goes_back() {
        let now = chrono::DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let budget = RetryBudget::new(0, 1);
        (0..5).for_each(|_| drop(budget.withdraw(now).unwrap()));
        let under_way = budget.withdraw(now).unwrap();
        assert!(budget.withdraw(now).is_none(), "one that may still be sent is not there for another");
        drop(under_way);
        assert!(spend(&budget, now) && !spend(&budget, now));
    }
}
