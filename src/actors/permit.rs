//! The proofs that a call holds a slot: of an account, and of its key.
//!
//! A permit gives its slot back by itself, with no mailbox in between, and an account that was respawned after a
//! panic still counts the calls that its predecessor granted: the slots are shared, see [`crate::domain::slots`].

use super::account::{Account, Settled};
use crate::domain::health::Asked;
use crate::domain::slots::{Slot, Slots, Trial};
use crate::domain::standing::Grant;
use crate::domain::{AccountId, Outcome, Reading, Time};
use crate::platform::Plan;
use actix::Addr;
use chrono::TimeDelta;
use std::sync::Arc;
use std::time::Duration;

/// Proof that a call holds one slot of a key's own limit. Clones are of one slot: it comes back with the last.
#[derive(Debug, Clone)]
pub struct Pass(#[allow(dead_code, reason = "held for its Drop")] Arc<Slot>);

impl Pass {
    /// Takes one, unless the key is at its limit.
    pub fn take(slots: &Arc<Slots>) -> Option<Self> {
        slots.try_take().map(|slot| Self(Arc::new(slot)))
    }
}

/// Proof that a call holds one slot of an account, and all that is needed to reach its upstream. Only an
/// Account makes one; it is kept until the last byte of the answer.
#[derive(Debug)]
pub struct Permit {
    slot: Slot,
    /// The call is the one that a half-open account is tried with.
    trial: Option<Trial>,
    plan: Arc<Plan>,
    ticket: Granted,
    account: Addr<Account>,
}

/// When, and by which credential, a permit was granted.
#[derive(Debug, Clone, Copy)]
pub struct Granted {
    /// When.
    pub at: Time,
    /// Which credential the account had.
    pub generation: u64,
    /// What the call asks for.
    pub asked: Asked,
    /// The window over which successes are counted.
    pub window: TimeDelta,
}

/// What counts against an account in `status`; a connection that ended says nothing of it.
fn is_fault(outcome: &Outcome) -> bool {
    let of_connection = matches!(outcome, Outcome::Failed { fault } if fault.is_connections());
    outcome.is_accounts_fault() && !of_connection
}

impl Permit {
    pub(super) fn new(grant: Grant, plan: Arc<Plan>, ticket: Granted, account: Addr<Account>) -> Self {
        Self { slot: grant.slot, trial: grant.trial, plan, ticket, account }
    }

    /// Whose slot it is.
    pub fn account_id(&self) -> &AccountId {
        &self.plan.account
    }

    /// How to reach the upstream.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// The answer's first byte came after so long.
    pub fn first_byte(&self, took: Duration) {
        self.slot.of().vitals().note_first_byte(took);
    }

    /// The client left after so long, and no first byte had come.
    pub fn no_first_byte(&self, after: Duration) {
        self.slot.of().vitals().note_no_first_byte(after);
    }

    /// Tells the account what the attempt came to at `now`, and how full its windows are.
    pub fn settle(&mut self, outcome: Outcome, readings: Vec<Reading>, now: Time) {
        let vitals = self.slot.of().vitals();
        if let Outcome::Success { status } = outcome {
            vitals.note_success(status, now, self.ticket.window);
        }
        if is_fault(&outcome) {
            vitals.note_fault(now, self.ticket.window);
        }
        let good = matches!(outcome, Outcome::Answered { .. } | Outcome::Success { .. });
        if good && vitals.is_well() && !vitals.is_news(&readings) {
            return;
        }
        let trial = self.trial.take();
        self.account.do_send(Settled { outcome, readings, granted: self.ticket, trial });
    }

    /// Gives the slot back only after `linger`: for a call that was aborted, whose upstream may still be at
    /// work on it. Without a runtime to wait in (the process ends) it is given back at once.
    pub fn release_after(self, linger: Duration) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current()
            && !linger.is_zero()
        {
            let slot = self.slot;
            runtime.spawn(async move {
                tokio::time::sleep(linger).await;
                drop(slot);
            });
        }
    }
}
