//! How often something happened lately: a count over a sliding window, kept in one word.
//!
//! Read by the circuit breaker (failures against successes) and by `status`. It is an estimate: of the window
//! before the running one that share counts which the sliding window still covers.

use super::Time;
use chrono::TimeDelta;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bits of each of the two counts; the rest numbers the running window.
const BITS: u32 = 20;
const MOST: u64 = (1 << BITS) - 1;

/// A count over a sliding window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally(u64);

/// The number of the window that `now` lies in, and how far it is gone, in thousandths.
fn place(now: Time, window: TimeDelta) -> (u64, u64) {
    let (now, window) = (now.timestamp_millis().max(0).unsigned_abs(), window.num_milliseconds().max(1).unsigned_abs());
    ((now / window) & (u64::MAX >> (2 * BITS)), (now % window) * 1_000 / window)
}

impl Tally {
    fn pack(number: u64, before: u64, running: u64) -> Self {
        Self((number << (2 * BITS)) | (before.min(MOST) << BITS) | running.min(MOST))
    }

    /// The counts of the last window and of the running one, as of window `number`.
    fn counts(self, number: u64) -> (u64, u64) {
        let (then, before, running) = (self.0 >> (2 * BITS), (self.0 >> BITS) & MOST, self.0 & MOST);
        match number.wrapping_sub(then) {
            0 => (before, running),
            1 => (running, 0),
            _ => (0, 0),
        }
    }

    /// The same with one more at `now`.
    #[must_use]
    pub fn plus_one(self, now: Time, window: TimeDelta) -> Self {
        let (number, _) = place(now, window);
        let (before, running) = self.counts(number);
        Self::pack(number, before, running + 1)
    }

    /// The same with one less of those at `at`, if they are not forgotten yet.
    #[must_use]
    fn less_one(self, at: Time, window: TimeDelta) -> Self {
        let (number, _) = place(at, window);
        let then = self.0 >> (2 * BITS);
        let (before, running) = self.counts(then);
        match then.wrapping_sub(number) {
            0 => Self::pack(then, before, running.saturating_sub(1)),
            1 => Self::pack(then, before.saturating_sub(1), running),
            _ => self,
        }
    }

    /// How often it happened within the last `window`.
    pub fn count(self, now: Time, window: TimeDelta) -> u32 {
        let (number, gone) = place(now, window);
        let (before, running) = self.counts(number);
        u32::try_from(running + before * (1_000 - gone) / 1_000).unwrap_or(u32::MAX)
    }
}

/// A [`Tally`] that several threads add to.
#[derive(Debug, Default)]
pub struct SharedTally(AtomicU64);

impl SharedTally {
    /// One more at `now`.
    pub fn add(&self, now: Time, window: TimeDelta) {
        let _ = self.0.fetch_update(Relaxed, Relaxed, |word| Some(Tally(word).plus_one(now, window).0));
    }

    /// One less of those at `at`.
    pub fn take_back(&self, at: Time, window: TimeDelta) {
        let _ = self.0.fetch_update(Relaxed, Relaxed, |word| Some(Tally(word).less_one(at, window).0));
    }

    /// As of now.
    pub fn get(&self) -> Tally {
        Tally(self.0.load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: TimeDelta = TimeDelta::seconds(30);

    fn at(seconds: i64) -> Time {
        chrono::DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    #[test]
    fn what_is_older_than_the_window_fades_and_is_gone() {
        let mut tally = Tally::default();
        for _ in 0..10 {
            tally = tally.plus_one(at(0), WINDOW);
        }
        let counts = [0, 29, 30, 45, 60, 300].map(|s| tally.count(at(s), WINDOW));
        assert_eq!(counts, [10, 10, 10, 5, 0, 0]);
        assert_eq!(tally.plus_one(at(300), WINDOW).count(at(300), WINDOW), 1);
    }

    #[test]
    fn what_is_taken_back_is_taken_from_the_window_that_it_was_counted_in() {
        let tally = SharedTally::default();
        [0, 0, 31].into_iter().for_each(|s| tally.add(at(s), WINDOW));
        tally.take_back(at(0), WINDOW);
        assert_eq!(tally.get().counts(place(at(31), WINDOW).0), (1, 1));
        tally.take_back(at(31), WINDOW);
        [-30, 31, 0, 0, 61].into_iter().for_each(|s| tally.take_back(at(s), WINDOW));
        assert_eq!(tally.get().counts(place(at(31), WINDOW).0), (0, 0));
    }

    #[test]
    fn a_count_does_not_overflow_into_its_neighbour() {
        let mut full = Tally::pack(place(at(0), WINDOW).0, 0, MOST);
        full = full.plus_one(at(0), WINDOW);
        assert_eq!(full.counts(place(at(0), WINDOW).0), (0, MOST));
    }
}
