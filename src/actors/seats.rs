//! What outlives an account's actor: its slots, and the last view it reported.
//!
//! Shared by Roster (who fills it), the accounts (who report into it) and the Scheduler, whose successor after
//! a panic starts from these views instead of an empty pool.

use super::Account;
use super::account::AccountView;
use super::permit::Slots;
use crate::domain::AccountId;
use actix::Addr;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One enlisted account.
#[derive(Default)]
struct Seat {
    slots: Option<Arc<Slots>>,
    addr: Option<Addr<Account>>,
    view: Option<AccountView>,
}

/// Every enlisted account.
#[derive(Default)]
pub struct Seats(Mutex<BTreeMap<AccountId, Seat>>);

impl Seats {
    /// The account's slots, made at first sight.
    pub(super) fn slots(&self, id: &AccountId, limit: u32) -> Arc<Slots> {
        let mut seats = self.lock();
        let slots = seats.entry(id.clone()).or_default().slots.get_or_insert_with(|| Slots::new(limit));
        slots.set_limit(limit);
        slots.clone()
    }

    pub(super) fn sit(&self, id: &AccountId, addr: Addr<Account>) {
        self.lock().entry(id.clone()).or_default().addr = Some(addr);
    }

    /// The view stands only while the account is enlisted.
    pub(super) fn report(&self, view: &AccountView) {
        if let Some(seat) = self.lock().get_mut(&view.account.id) {
            seat.view = Some(view.clone());
        }
    }

    /// The actor is dead: it is not to be asked, but what it granted still counts.
    pub(super) fn down(&self, id: &AccountId) {
        if let Some(seat) = self.lock().get_mut(id) {
            seat.addr = None;
            seat.view = None;
        }
    }

    /// The account is no longer enlisted. Permits that are out keep their own hold on its slots.
    pub(super) fn leave(&self, id: &AccountId) -> Option<Addr<Account>> {
        self.lock().remove(id).and_then(|seat| seat.addr)
    }

    /// The account's address, unless it is dead or unknown.
    pub fn find(&self, id: &AccountId) -> Option<Addr<Account>> {
        self.lock().get(id)?.addr.clone().filter(Addr::connected)
    }

    /// Every address that answers.
    pub fn addresses(&self) -> Vec<Addr<Account>> {
        self.lock().values().filter_map(|s| s.addr.clone()).filter(Addr::connected).collect()
    }

    /// Every view.
    pub fn views(&self) -> Vec<AccountView> {
        self.lock().values().filter_map(|s| s.view.clone()).collect()
    }

    /// Every enlisted account's id, and whether its actor is alive.
    pub(super) fn roll(&self) -> Vec<(AccountId, bool)> {
        self.lock().iter().map(|(id, s)| (id.clone(), s.addr.as_ref().is_some_and(Addr::connected))).collect()
    }

    /// Slots in use over all enlisted accounts.
    pub fn in_use(&self) -> u32 {
        self.lock().values().filter_map(|s| s.slots.as_ref()).map(|s| s.in_use()).sum()
    }

    /// A panic elsewhere while the lock was held leaves a map that is whole: every edit is one step.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<AccountId, Seat>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
