//! How many calls may be tried again: a share of all calls, and a few more. So that a total outage is not made
//! worse by the calls that look for a way round it.
//!
//! Kept by Front, which sees every attempt. As Finagle's RetryBudget, over a sliding window.

use super::Time;
use super::tally::Tally;
use chrono::TimeDelta;

/// What the budget is counted over.
const WINDOW: TimeDelta = TimeDelta::seconds(10);

/// The budget of the whole pool.
#[derive(Debug, Clone)]
pub struct RetryBudget {
    calls: Tally,
    retries: Tally,
    percent: u32,
    floor: u32,
}

impl RetryBudget {
    /// Of a hundred calls `percent` may be tried again, and in any ten seconds `floor` more.
    pub fn new(percent: u32, floor: u32) -> Self {
        Self { calls: Tally::default(), retries: Tally::default(), percent, floor }
    }

    /// A call began.
    pub fn deposit(&mut self, now: Time) {
        self.calls = self.calls.plus_one(now, WINDOW);
    }

    /// Takes one retry out, if there is one.
    pub fn withdraw(&mut self, now: Time) -> bool {
        let share = u64::from(self.calls.count(now, WINDOW)) * u64::from(self.percent) / 100;
        let allowed = u64::from(self.retries.count(now, WINDOW)) < share + u64::from(self.floor);
        if allowed {
            self.retries = self.retries.plus_one(now, WINDOW);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_total_outage_costs_a_fifth_more_and_the_floor() {
        let mut budget = RetryBudget::new(20, 10);
        let mut retries = 0_u32;
        for call in 0..10_000_i64 {
            let now = chrono::DateTime::from_timestamp_millis(1_800_000_000_000 + call).unwrap();
            budget.deposit(now);
            retries += (0..2).map(|_| u32::from(budget.withdraw(now))).sum::<u32>();
        }
        assert!((2_000..=2_010).contains(&retries), "{retries}");
    }

    #[test]
    fn a_quiet_relay_may_retry_by_the_floor_alone() {
        let now = chrono::DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let mut budget = RetryBudget::new(20, 2);
        budget.deposit(now);
        assert_eq!([0, 1, 2].map(|_| budget.withdraw(now)), [true, true, false]);
        assert!(budget.withdraw(now + TimeDelta::seconds(20)));
    }
}
