//! The clock, read at the edges and passed in: domain code takes the time as an argument.

use crate::domain::Time;
use chrono::SubsecRound;
use std::fmt;
use std::sync::Arc;

/// A source of the current time, shared by every thread.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Time + Send + Sync>);

impl Clock {
    /// The machine's clock, in whole milliseconds: every store keeps these, and none more.
    pub fn system() -> Self {
        Self(Arc::new(|| chrono::Utc::now().trunc_subsecs(3)))
    }

    /// A clock of the caller's own, for tests.
    pub fn from_fn(now: impl Fn() -> Time + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// Now.
    pub fn now(&self) -> Time {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}
