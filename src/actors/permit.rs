//! The concurrency semaphore of an account or a key, and the proofs that a call holds one of its slots.
//!
//! Slots outlive their actor: a permit gives its slot back by itself, with no mailbox in between, and an
//! account that was respawned after a panic still counts the calls that its predecessor granted.

use super::account::{Account, Settled};
use crate::domain::{AccountId, Outcome, Time};
use crate::platform::Plan;
use actix::Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering::SeqCst};
use std::time::Duration;

/// A limit and how much of it is taken.
#[derive(Debug)]
pub struct Slots {
    limit: AtomicU32,
    in_use: AtomicU32,
    /// Nothing speaks against the account, so that one more success is no news for its actor: it is noted here
    /// instead of being told, which spares a message and the waking of a thread for nearly every call.
    well: AtomicBool,
    /// The last success noted: milliseconds since 1970 times 1,000, plus its status; 0 is none.
    last_success: AtomicI64,
}

impl Slots {
    /// `limit` free slots.
    pub fn new(limit: u32) -> Arc<Self> {
        let (limit, in_use) = (AtomicU32::new(limit), AtomicU32::new(0));
        Arc::new(Self { limit, in_use, well: AtomicBool::new(false), last_success: AtomicI64::new(0) })
    }

    /// Takes a slot, unless all are taken. Checked and taken in one step.
    pub fn try_take(self: &Arc<Self>) -> Option<Slot> {
        let limit = self.limit();
        let more = |n| (n < limit).then_some(n + 1);
        self.in_use.fetch_update(SeqCst, SeqCst, more).ok().map(|_| Slot(self.clone()))
    }

    /// Slots taken now. May exceed [`Slots::limit`] for a while after the limit was lowered.
    pub fn in_use(&self) -> u32 {
        self.in_use.load(SeqCst)
    }

    /// Slots in all.
    pub fn limit(&self) -> u32 {
        self.limit.load(SeqCst)
    }

    /// The account's actor says whether successes are news to it.
    pub(super) fn set_well(&self, well: bool) {
        self.well.store(well, SeqCst);
    }

    /// The last success that was noted and not told: when, and its status.
    pub fn last_success(&self) -> Option<(Time, i64)> {
        let noted = self.last_success.load(SeqCst);
        let at = chrono::DateTime::from_timestamp_millis(noted / 1_000)?;
        (noted != 0).then_some((at, noted % 1_000))
    }

    /// Changes the limit; calls that run are not touched.
    pub fn set_limit(&self, limit: u32) {
        self.limit.store(limit, SeqCst);
    }
}

/// One slot; dropping it gives it back.
#[derive(Debug)]
pub struct Slot(Arc<Slots>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.in_use.fetch_sub(1, SeqCst);
    }
}

/// Proof that a call holds one slot of a key's own limit.
#[derive(Debug)]
pub struct Pass(#[allow(dead_code, reason = "held for its Drop")] Slot);

impl Pass {
    /// Takes one, unless the key is at its limit.
    pub fn take(slots: &Arc<Slots>) -> Option<Self> {
        slots.try_take().map(Self)
    }
}

/// Proof that a call holds one slot of an account, and all that is needed to reach its upstream. Only an
/// Account makes one; it is kept until the last byte of the answer.
#[derive(Debug)]
pub struct Permit {
    slot: Slot,
    plan: Arc<Plan>,
    generation: u64,
    account: Addr<Account>,
}

impl Permit {
    pub(super) fn new(slot: Slot, plan: Arc<Plan>, generation: u64, account: Addr<Account>) -> Self {
        Self { slot, plan, generation, account }
    }

    /// Whose slot it is.
    pub fn account_id(&self) -> &AccountId {
        &self.plan.account
    }

    /// How to reach the upstream.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Tells the account what the attempt came to at `now`.
    pub fn settle(&self, outcome: Outcome, now: Time) {
        let slots = &self.slot.0;
        if let Outcome::Success { status } = outcome
            && slots.well.load(SeqCst)
        {
            slots.last_success.store(now.timestamp_millis() * 1_000 + i64::from(status), SeqCst);
            return;
        }
        self.account.do_send(Settled { outcome, generation: self.generation });
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_never_exceeded_and_every_slot_comes_back() {
        let slots = Slots::new(5);
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let slots = slots.clone();
                std::thread::spawn(move || {
                    for _ in 0..10_000 {
                        let slot = slots.try_take();
                        assert!(slots.in_use() <= 5);
                        drop(slot);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(slots.in_use(), 0);
    }

    #[test]
    fn lowering_the_limit_keeps_running_calls_and_refuses_new_ones() {
        let slots = Slots::new(2);
        let held = [slots.try_take().unwrap(), slots.try_take().unwrap()];
        slots.set_limit(1);
        assert!(slots.try_take().is_none());
        drop(held);
        assert!(slots.try_take().is_some());
    }
}
