//! From settings to what the actors need: the one place where a setting becomes a constant of theirs.

use crate::actors::Parts;
use crate::clock::Clock;
use crate::domain::dispatch::Rules;
use crate::domain::health::Policy;
use crate::domain::line::Bounds;
use crate::domain::retry::RetryBudget;
use crate::settings::{Health, Settings};
use crate::store::Stores;
use crate::store::journal::{JournalHealth, Settler};
use crate::upstream::dial::Timeouts;
use crate::upstream::probe;
use chrono::TimeDelta;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// The exit code of a relay that cannot go on (EX_SOFTWARE, sysexits.h).
pub(super) const EXIT_FATAL: i32 = 70;

/// Settings are bounded: none is longer than a day.
fn span(duration: Duration) -> TimeDelta {
    TimeDelta::from_std(duration).unwrap_or(TimeDelta::hours(24))
}

fn policy(health: &Health) -> Policy {
    Policy {
        rate_limited_first: span(health.rate_limited_first),
        overloaded_first: span(health.overloaded_first),
        longest: span(health.longest),
        trial: span(health.trial),
        jitter: health.jitter * 10,
        breaker_failures: health.breaker_failures,
        breaker_rate: health.breaker_rate,
        breaker_minimum: health.breaker_minimum,
        breaker_window: span(health.breaker_window),
        breaker_first: span(health.breaker_first),
        slow_start: span(health.slow_start),
        probe_first: span(health.probe_first),
        probe_longest: span(health.probe_longest),
    }
}

fn rules(settings: &Settings) -> Rules {
    let (queue, affinity) = (&settings.queue, &settings.affinity);
    Rules {
        line: Bounds { per_key: queue.per_key as usize, total: queue.total as usize },
        patience: span(affinity.patience),
        sessions: affinity.sessions as usize,
        session_ttl: span(affinity.ttl),
        ejected: usize::from(settings.health.ejected_share),
    }
}

/// How long each phase of an attempt may take.
pub(super) fn timeouts(settings: &Settings) -> Timeouts {
    let upstream = &settings.upstream;
    Timeouts { connect: upstream.connect_timeout, first_byte: upstream.first_byte_timeout, idle: upstream.idle_timeout }
}

/// What the actors get, by the settings.
pub(super) fn parts(
    settings: &Settings,
    stores: &Stores,
    settler: Arc<Mutex<Settler>>,
    clock: &Clock,
    journal: Arc<JournalHealth>,
    tls: Arc<rustls::ClientConfig>,
) -> Parts {
    Parts {
        stores: stores.clone(),
        settler: Some(settler),
        journal,
        settle_interval: match settings.redis_options() {
            Some(_) => settings.redis.settle_interval,
            None => settings.journal.settle_interval,
        },
        clock: clock.clone(),
        policy: policy(&settings.health),
        dispatch: rules(settings),
        wait: span(settings.queue.timeout),
        retries: RetryBudget::new(settings.failover.budget, settings.failover.floor),
        probe: Arc::new(probe::prober(timeouts(settings), tls, clock.clone())),
        probe_model: settings.health.probe_model.clone(),
        on_fatal: Arc::new(|role| {
            // Not by the log alone: its thread may not get to write it any more.
            eprintln!("claude-relay: the actor {role} died three times within a minute; the process ends");
            // Left to the init system: a fault that comes back at once is not mended by trying.
            std::process::exit(EXIT_FATAL);
        }),
    }
}
