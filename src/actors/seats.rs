//! What outlives an account's actor: its slots, and the last view it reported.
//!
//! Shared by Roster (who fills it), the accounts (who report into it) and the Scheduler, whose successor after
//! a panic starts from these views instead of an empty pool.

use super::account::AccountView;
use super::scheduler::Freed;
use super::{Account, Live, Scheduler};
use crate::domain::health::Health;
use crate::domain::slots::Slots;
use crate::domain::{AccountId, Standing};
use actix::Addr;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// One enlisted account.
#[derive(Default)]
struct Seat {
    slots: Option<Arc<Slots>>,
    addr: Option<Addr<Account>>,
    /// How it stood when it last reported, be its actor alive or not.
    standing: Option<Standing>,
}

#[derive(Default)]
struct Seating {
    enlisted: BTreeMap<AccountId, Seat>,
    /// Slots of accounts that were retired while calls held some: one that is enlisted again under the same id
    /// finds them taken.
    retired: BTreeMap<AccountId, Weak<Slots>>,
}

/// Every enlisted account.
pub struct Seats {
    seating: Mutex<Seating>,
    /// Who is told of a watched slot that comes back.
    scheduler: Live<Scheduler>,
}

impl Seats {
    pub(super) fn new(scheduler: Live<Scheduler>) -> Self {
        Self { seating: Mutex::default(), scheduler }
    }

    /// The account's slots, made at first sight.
    pub(super) fn slots(&self, id: &AccountId, limit: u32) -> Arc<Slots> {
        let bell = {
            let (scheduler, id) = (self.scheduler.clone(), id.clone());
            move || scheduler.addr().do_send(Freed { id: id.clone() })
        };
        let mut seating = self.lock();
        let left = seating.retired.remove(id).and_then(|weak| weak.upgrade());
        let seat = seating.enlisted.entry(id.clone()).or_default();
        let slots = seat.slots.get_or_insert_with(|| left.unwrap_or_else(|| Slots::with_bell(limit, bell)));
        slots.set_limit(limit);
        slots.clone()
    }

    pub(super) fn sit(&self, id: &AccountId, addr: Addr<Account>) {
        self.lock().enlisted.entry(id.clone()).or_default().addr = Some(addr);
    }

    /// Kept only while the account is enlisted.
    pub(super) fn report(&self, standing: &Standing) {
        if let Some(seat) = self.lock().enlisted.get_mut(&standing.record.id) {
            seat.standing = Some(standing.clone());
        }
    }

    /// The health that the account reported last, for its successor after a panic: a window that is used up is so
    /// still.
    pub(super) fn health(&self, id: &AccountId) -> Option<Health> {
        self.lock().enlisted.get(id)?.standing.as_ref().map(|s| s.health.clone())
    }

    /// The actor is dead: it is not to be asked, but what it granted still counts.
    pub(super) fn down(&self, id: &AccountId) {
        if let Some(seat) = self.lock().enlisted.get_mut(id) {
            seat.addr = None;
        }
    }

    /// The account is no longer enlisted. Permits that are out keep their own hold on its slots.
    pub(super) fn leave(&self, id: &AccountId) -> Option<Addr<Account>> {
        let mut seating = self.lock();
        seating.retired.retain(|_, weak| weak.strong_count() > 0);
        let seat = seating.enlisted.remove(id)?;
        if let Some(slots) = &seat.slots {
            seating.retired.insert(id.clone(), Arc::downgrade(slots));
        }
        seat.addr
    }

    /// The account's address, unless it is dead or unknown.
    pub fn find(&self, id: &AccountId) -> Option<Addr<Account>> {
        self.lock().enlisted.get(id)?.addr.clone().filter(Addr::connected)
    }

    /// Every address that answers.
    pub fn addresses(&self) -> Vec<Addr<Account>> {
        self.lock().enlisted.values().filter_map(|s| s.addr.clone()).filter(Addr::connected).collect()
    }

    /// Every account that answers, as it reported last.
    pub fn views(&self) -> Vec<AccountView> {
        let view = |seat: &Seat| {
            let addr = seat.addr.clone().filter(Addr::connected)?;
            Some(AccountView { standing: seat.standing.clone()?, addr, waiting: 0 })
        };
        self.lock().enlisted.values().filter_map(view).collect()
    }

    /// Looks at how every account that answers reported last, without a copy; briefly, since all wait meanwhile.
    pub fn look<T>(&self, look: impl FnOnce(&mut dyn Iterator<Item = &Standing>) -> T) -> T {
        let seating = self.lock();
        let answers = |seat: &&Seat| seat.addr.as_ref().is_some_and(Addr::connected);
        look(&mut seating.enlisted.values().filter(answers).filter_map(|seat| seat.standing.as_ref()))
    }

    /// Every enlisted account's id, and whether its actor is alive.
    pub(super) fn roll(&self) -> Vec<(AccountId, bool)> {
        self.lock().enlisted.iter().map(|(id, s)| (id.clone(), s.addr.as_ref().is_some_and(Addr::connected))).collect()
    }

    /// Slots in use over all accounts, those that were retired with calls under way included.
    pub fn in_use(&self) -> u32 {
        let seating = self.lock();
        let enlisted = seating.enlisted.values().filter_map(|s| s.slots.clone());
        let retired = seating.retired.values().filter_map(Weak::upgrade);
        enlisted.chain(retired).map(|s| s.in_use()).sum()
    }

    /// A panic elsewhere while the lock was held leaves a map that is whole: every edit is one step.
    fn lock(&self) -> MutexGuard<'_, Seating> {
        self.seating.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
