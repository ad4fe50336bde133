//! What an account is and how it stands: its record, its health and its slots, in one value.
//!
//! The Account actor keeps the true one and grants by it; the Scheduler keeps copies and chooses by them. Both
//! judge with the same functions, so that they differ only by what has not been reported yet.

use super::health::Health;
use super::slots::{Slot, Slots, Trial};
use super::verdict::{Glance, Grade, Load, Verdict, Want, glance, verdict};
use super::{Account, Time};
use std::sync::Arc;

/// An account's record, health and slots.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Its record.
    pub record: Arc<Account>,
    /// Its health, as of the copy.
    pub health: Health,
    /// Its slots, live.
    pub slots: Arc<Slots>,
}

/// A slot that was granted.
#[derive(Debug)]
pub struct Grant {
    /// The slot.
    pub slot: Slot,
    /// The call is the trial of a half-open account.
    pub trial: Option<Trial>,
}

impl Standing {
    /// What it bears now; `asked` are calls that were sent to it and are not answered yet.
    pub fn load(&self, asked: u32, bounded: bool) -> Load {
        let (in_use, on_trial) = (self.slots.in_use().saturating_add(asked), self.slots.on_trial());
        Load { in_use, on_trial, overdue: self.slots.overdue(), bounded }
    }

    /// May it take this call, and if not, why.
    pub fn verdict(&self, want: Want, bounded: bool, now: Time) -> Verdict {
        verdict(&self.record, &self.health, self.load(0, bounded), want, now)
    }

    /// The verdict as people are told it: with its breaker put aside, where too much of the pool is out.
    pub fn told(&self, want: Want, aside: PutAside, now: Time) -> Verdict {
        let gravest = self.glance(self.load(0, false), want, now).obstacle.map(|(_, grade)| grade);
        self.verdict(want, aside.lifts(gravest), now)
    }

    /// The same in brief.
    pub fn glance(&self, load: Load, want: Want, now: Time) -> Glance {
        glance(&self.record, &self.health, load, want, now)
    }

    /// Takes a slot for a call if the verdict allows it: the one place where a slot of an account is granted.
    ///
    /// # Errors
    /// The verdict that does not allow it.
    pub fn grant(&self, want: Want, bounded: bool, now: Time) -> Result<Grant, Verdict> {
        let before = self.load(0, bounded);
        let seen = self.glance(before, want, now);
        if !seen.schedulable() {
            return Err(self.verdict(want, bounded, now));
        }
        let Some(slot) = self.slots.try_take() else {
            // Taken by a probe, or the limit was lowered, between the look and the take.
            let load = Load { in_use: self.slots.limit(), ..self.load(0, bounded) };
            return Err(verdict(&self.record, &self.health, load, want, now));
        };
        let trial = if seen.trial { self.slots.try_trial(before.on_trial, now) } else { None };
        if seen.trial && trial.is_none() {
            // Another began between the look and the take: does that keep the call out?
            let load = Load { in_use: 0, on_trial: Some(now), overdue: 0, bounded };
            let said = verdict(&self.record, &self.health, load, want, now);
            if !said.schedulable {
                return Err(said);
            }
        }
        Ok(Grant { slot, trial })
    }
}

/// Which breakers are put aside in a class: an outage must not be of our making.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PutAside {
    /// Those that are open: so many accounts are ejected that calls go to them all the same, after all others.
    pub open: bool,
    /// Those that hold back, for a trial or a slow start: these take what they can.
    pub held: bool,
}

impl PutAside {
    /// Of so many usable accounts so many are held back and so many ejected; more than `percent`, or all, is too much.
    pub fn of(usable: usize, held: usize, ejected: usize, percent: usize) -> Self {
        let too_many = |out: usize| out > 0 && (out * 100 > usable * percent || out >= usable);
        Self { open: too_many(ejected), held: too_many(held + ejected) }
    }

    /// Whether that of an account is, by the gravest reason that blocks it.
    pub fn lifts(self, gravest: Option<Grade>) -> bool {
        if gravest == Some(Grade::Ejected) { self.open } else { self.held }
    }
}
