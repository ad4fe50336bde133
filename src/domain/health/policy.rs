//! The constants of health, as settings give them: `startup/parts.rs` makes them of the section `health`.

use chrono::TimeDelta;

/// The constants of health. All are settings of the section `health`, where their sources stand.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// First cooldown after a 429 without a time.
    pub rate_limited_first: TimeDelta,
    /// First cooldown after a 529 or 503 without a time.
    pub overloaded_first: TimeDelta,
    /// The longest guessed cooldown.
    pub longest: TimeDelta,
    /// How long a trial that is not answered keeps the next away; doubles with each time in a row that the breaker
    /// opens, up to [`Policy::longest`].
    pub trial: TimeDelta,
    /// The share of a guessed time that chance may take off, thousandths.
    pub jitter: u16,
    /// Failures in a row that open the breaker.
    pub breaker_failures: u32,
    /// Failures in a hundred calls that open it.
    pub breaker_rate: u32,
    /// The fewest calls within the window for the rate to count.
    pub breaker_minimum: u32,
    /// The window that the rate is taken over.
    pub breaker_window: TimeDelta,
    /// How long it stays open the first time; doubles with each time in a row, up to [`Policy::longest`].
    pub breaker_first: TimeDelta,
    /// How long the slots grow back after the breaker was open.
    pub slow_start: TimeDelta,
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
            trial: TimeDelta::seconds(5),
            jitter: 200,
            breaker_failures: 5,
            breaker_rate: 50,
            breaker_minimum: 20,
            breaker_window: TimeDelta::seconds(30),
            breaker_first: TimeDelta::seconds(1),
            slow_start: TimeDelta::seconds(30),
            probe_first: TimeDelta::seconds(60),
            probe_longest: TimeDelta::hours(1),
        }
    }
}
