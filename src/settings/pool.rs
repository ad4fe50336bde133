//! What the pool of accounts goes by: health, waiting, sessions, failover. `startup/parts.rs` makes the actors'
//! constants of it.

use super::{HOUR, MINUTE, SECOND};
use serde::{Deserialize, Serialize};
use std::time::Duration;

section! {
    /// `[health]`; the durations grow from the first to the longest.
    Health {
        /// First cooldown after a 429 that names no time, 1ms to 24h. Default 2s: such limits are of seconds; the
        /// median recovery that operators report is 17 s, which the fourth try is past.
        #[serde(with = "humantime_serde")]
        rate_limited_first: Duration = 2 * SECOND,
        /// First cooldown after a 529 or 503 that names no time, 1ms to 24h. Default 1s, as the first wait of the
        /// upstream's own SDKs (0.5 s to 8 s), doubled.
        #[serde(with = "humantime_serde")]
        overloaded_first: Duration = SECOND,
        /// The longest time that is guessed: of these two kinds, and of an open breaker, 1ms to 24h. Default 60s,
        /// as linkerd's.
        #[serde(with = "humantime_serde")]
        longest: Duration = MINUTE,
        /// How long the one trial call of a half-open account keeps the next away, 1ms to 24h; doubles with each time in
        /// a row that the breaker opens. An upstream refuses at once what it refuses; one that thinks for longer has let
        /// the call in, and one that hangs should not keep its account out for as long as it does. Default 5s.
        #[serde(with = "humantime_serde")]
        trial: Duration = 5 * SECOND,
        /// The share of a guessed time that chance may take off, percent, 0 to 50. Default 20.
        jitter: u16 = 20,
        /// Failures in a row (5xx, no answer, half an answer) that open the breaker, 1 to 1000. Default 5, as Envoy's
        /// `consecutive_5xx`.
        breaker_failures: u32 = 5,
        /// Failures in a hundred calls that open it, 1 to 100. Default 50, as Hystrix's.
        breaker_rate: u32 = 50,
        /// The fewest calls within the window for the rate to count, 1 to 100000. Default 20, as Hystrix's.
        breaker_minimum: u32 = 20,
        /// The window that the rate is taken over, 1s to 1h. Default 30s.
        #[serde(with = "humantime_serde")]
        breaker_window: Duration = 30 * SECOND,
        /// How long the breaker stays open the first time, 1ms to 24h. Default 1s, as linkerd's.
        #[serde(with = "humantime_serde")]
        breaker_first: Duration = SECOND,
        /// How long the slots grow back after the breaker was open, 0s to 1h. Default 30s, as HAProxy's advice for
        /// `slowstart`.
        #[serde(with = "humantime_serde")]
        slow_start: Duration = 30 * SECOND,
        /// Of a hundred accounts that could serve a call, so many may be kept out by their breakers at once, 0 to 100;
        /// beyond, breakers are put aside. Default 50, as Envoy's panic threshold.
        ejected_share: u16 = 50,
        /// First wait before a rejected credential is tried again, 1ms to 24h. Default 60s.
        #[serde(with = "humantime_serde")]
        probe_first: Duration = MINUTE,
        /// The longest wait between two such tries, 1ms to 24h. Default 1h.
        #[serde(with = "humantime_serde")]
        probe_longest: Duration = HOUR,
        /// The model that a test or a re-probe asks for. Default `claude-haiku-4-5`.
        probe_model: String = "claude-haiku-4-5".to_owned(),
    }
}

section! {
    /// `[queue]`: a call that finds every account busy waits its turn, fair between keys.
    Queue {
        /// How long it may wait, 0s to 24h, and never longer than its client does (`x-stainless-timeout`); 0s is not
        /// at all. Default 30s.
        #[serde(with = "humantime_serde")]
        timeout: Duration = 30 * SECOND,
        /// The most waiting calls of one key, 1 to 1000000. Default 1000.
        per_key: u32 = 1_000,
        /// The most waiting calls in all, 1 to 1000000. Default 10000.
        total: u32 = 10_000,
        /// A streaming client that has waited so long is kept alive by SSE comments, 0s to 1h. That commits to status
        /// 200 before anything is known: whatever goes wrong afterwards is an `error` event in the stream, and the
        /// client's own retries by status do not see it. Default 0s: never.
        #[serde(with = "humantime_serde")]
        keep_alive: Duration = Duration::ZERO,
    }
}

section! {
    /// `[affinity]`: a session stays with the account that has its prompt cache, while that account may take it.
    Affinity {
        /// Sessions that are remembered, 0 to 10000000; 0 turns it off. Default 100000.
        sessions: u32 = 100_000,
        /// For how long after their last use, 0s to 24h. Default 1h, the longest life of a prompt cache.
        #[serde(with = "humantime_serde")]
        ttl: Duration = HOUR,
        /// How long a session waits for its account while another is free, 0s to 1h. Default 2s.
        #[serde(with = "humantime_serde")]
        patience: Duration = 2 * SECOND,
    }
}

section! {
    /// `[failover]`: before the first byte of an answer, and only for faults of the account.
    Failover {
        /// Accounts that a call may be sent to, 1 to 10. Default 3.
        attempts: u32 = 3,
        /// Of a hundred calls, so many may be tried again, 0 to 100; of messages, and of all else, each. Default 20, as
        /// Finagle's retry budget.
        budget: u32 = 20,
        /// And in any ten seconds so many more, 0 to 10000. Default 10.
        floor: u32 = 10,
    }
}
