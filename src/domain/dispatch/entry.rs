//! One account, as the dispatcher keeps it: a copy of how it stands, and what is known here alone: who was asked and
//! did not answer yet, whose turn it is, and in which classes it is asleep.

use super::class::{Asleep, Wanted};
use crate::domain::selection::Candidate;
use crate::domain::verdict::{Code, Glance, Grade, Want};
use crate::domain::{Standing, Time};

/// One account.
pub(super) struct Entry {
    pub standing: Standing,
    /// A number for its id, the same everywhere.
    pub hash: u64,
    /// Asked, and not answered yet: counted as load, or calls that arrive together would all see the same free one.
    pub asked: u32,
    pub turn: u64,
    /// The opening of its breaker that a trial was sent for.
    pub tried: Option<Time>,
    /// It said no though it looked free: not to be asked again until then, unless it reports.
    pub doubted: Option<Time>,
    /// The classes whose tiers it is out of.
    pub asleep: Vec<Asleep>,
    pub wake_at: Option<Time>,
}

impl Entry {
    /// Whether its breaker keeps calls out, or some of them, whatever call it is.
    pub fn is_held_back(&self, now: Time) -> bool {
        self.standing.health.is_held_back(now)
    }

    /// Whether every slot is taken or asked for.
    pub fn is_full(&self) -> bool {
        self.standing.slots.in_use() + self.asked >= self.standing.record.concurrency_limit
    }

    /// What it looks like for calls of this kind.
    pub fn see(&self, wanted: &Wanted, bounded: bool, now: Time) -> Glance {
        let want = Want { model: None, family: Some(wanted.family_at(&self.standing.record)) };
        let mut seen = self.standing.glance(self.standing.load(self.asked, bounded), want, now);
        // One trial at a time, the one that was asked for included.
        if seen.obstacle.is_none() && seen.trial && !bounded && self.asked > 0 {
            let grade = if self.is_held_back(now) { Grade::Held } else { Grade::Busy };
            (seen.obstacle, seen.loaded) = (Some((Code::HalfOpen, grade)), true);
        }
        if let Some(end) = self.doubted.filter(|end| *end > now && seen.obstacle.is_none()) {
            seen.obstacle = Some((Code::AtCapacity, Grade::Busy));
            (seen.end, seen.change) = (Some(end), Some(end));
        }
        seen
    }

    /// The same, for one that may be put to sleep: from now on it tells when a slot comes back.
    pub fn watch(&self, wanted: &Wanted, bounded: bool, now: Time) -> Glance {
        let seen = self.see(wanted, bounded, now);
        if !seen.loaded {
            return seen;
        }
        self.standing.slots.watch();
        self.see(wanted, bounded, now)
    }

    /// Whether a call would be a trial of its breaker that does not wait for its turn, or with little traffic it would be
    /// long in coming: the first since it opened, or the next where that hangs. One that came to nothing has had its turn.
    fn is_trial_due(&self, seen: &Glance) -> bool {
        let (health, slots) = (&self.standing.health, &self.standing.slots);
        seen.trial && health.is_open() && (self.tried != health.opening() || slots.on_trial().is_some())
    }

    /// What ranking needs to know of it.
    pub fn candidate(&self, seen: &Glance, floor: u64, share: u64) -> Candidate {
        let is_due = self.is_trial_due(seen);
        Candidate {
            last_resort: seen.last_resort,
            priority: self.standing.record.priority,
            in_use: if is_due { 0 } else { self.standing.slots.in_use() + self.asked },
            limit: self.standing.record.concurrency_limit,
            share,
            turn: if is_due { floor } else { self.turn.max(floor) },
        }
    }
}
