//! The accounts that calls of one kind could use, ready to be chosen from.
//!
//! A class is a scope (all accounts, or those that a key is bound to) and a model. Its tiers hold the accounts that
//! were schedulable when last seen: one that turns out not to be is taken out then, and comes back when something
//! about it changes. So a choice looks at a few accounts, however many there are and however many are out, and
//! every account that is looked at in vain is paid for by a change.

use super::Entry;
use crate::domain::selection::affinity;
use crate::domain::verdict::{Code, Grade};
use crate::domain::window::Family;
use crate::domain::{Account, AccountId, Session, Time};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Which accounts may be considered.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Every one.
    All,
    /// These and no others, even if none of them can.
    Only(Arc<Binding>),
}

/// What a key is bound to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Binding {
    /// Accounts by id.
    pub accounts: Arc<[AccountId]>,
    /// Accounts by their group.
    pub groups: Arc<[Arc<str>]>,
}

impl Scope {
    /// These accounts and these groups; all if neither is named.
    pub fn of(accounts: &Arc<[AccountId]>, groups: &Arc<[Arc<str>]>) -> Self {
        if accounts.is_empty() && groups.is_empty() {
            return Self::All;
        }
        Self::Only(Arc::new(Binding { accounts: accounts.clone(), groups: groups.clone() }))
    }

    /// These accounts alone.
    pub fn only(accounts: impl IntoIterator<Item = AccountId>) -> Self {
        Self::Only(Arc::new(Binding { accounts: accounts.into_iter().collect(), groups: Arc::default() }))
    }

    /// Whether `account` may be considered.
    pub fn admits(&self, account: &Account) -> bool {
        match self {
            Self::All => true,
            Self::Only(binding) => {
                let grouped = account.group.as_deref().is_some_and(|g| binding.groups.iter().any(|b| **b == *g));
                grouped || binding.accounts.contains(&account.id)
            }
        }
    }
}

/// A model, as far as it matters for who could serve it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Wanted {
    /// It stands in the `models` of an account.
    Listed(Arc<str>),
    /// It stands in none: clients may write what they like, which must not make a class each.
    Unlisted(Option<Family>),
}

impl Wanted {
    pub fn served_by(&self, account: &Account) -> bool {
        match self {
            Self::Listed(model) => account.models.upstream_name(model).is_some(),
            Self::Unlisted(_) => account.models.serves_any(),
        }
    }

    pub fn family(&self) -> Option<Family> {
        match self {
            Self::Listed(model) => Family::of(model),
            Self::Unlisted(family) => *family,
        }
    }
}

/// What makes a class.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct ClassKey {
    pub scope: Scope,
    pub wanted: Wanted,
}

impl ClassKey {
    pub fn admits(&self, account: &Account) -> bool {
        self.scope.admits(account) && self.wanted.served_by(account)
    }
}

/// Why an account is out of the tiers of one class.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asleep {
    pub class: usize,
    /// Of which making of the classes; an older one is void.
    pub epoch: u64,
    pub code: Code,
    pub grade: Grade,
}

/// The most places of a session table, and how many there are for each account.
const MOST_PLACES: usize = 1 << 17;
const PLACES_EACH: usize = 8;
const NOBODY: u32 = u32::MAX;

/// One class.
#[derive(Default)]
pub(super) struct Class {
    pub epoch: u64,
    pub family: Option<Family>,
    /// Accounts in it, schedulable or not.
    pub members: usize,
    /// Accounts that its scope admits, but that do not serve the model.
    pub unsupported: usize,
    pub tiers: BTreeMap<i64, Vec<u32>>,
    /// The least turn that counts, by tier: who comes back does not catch up on all that it missed.
    pub floors: BTreeMap<i64, u64>,
    pub ejected: Vec<u32>,
    /// Accounts asleep by what keeps them out.
    codes: [u32; Code::ALL.len()],
    pub out: usize,
    pub busy: usize,
    /// The soonest end of what keeps somebody out; may have passed.
    pub soonest: Option<Time>,
    /// Where sessions are at home at first: accounts of the first tier, and a table that is filled as it is asked.
    residents: Vec<u32>,
    homes: Vec<u32>,
}

impl Class {
    /// The class of `key` over these accounts.
    pub fn build(key: &ClassKey, epoch: u64, entries: &[Option<Entry>]) -> Self {
        let mut class = Self { epoch, family: key.wanted.family(), ..Self::default() };
        for (at, entry) in entries.iter().enumerate() {
            let Some(entry) = entry else { continue };
            let record = &entry.standing.record;
            if !key.scope.admits(record) {
                continue;
            }
            if !key.wanted.served_by(record) {
                class.unsupported += 1;
                continue;
            }
            class.members += 1;
            class.tiers.entry(record.priority).or_default().push(u32::try_from(at).unwrap_or(NOBODY));
            let floor = class.floors.entry(record.priority).or_insert(u64::MAX);
            *floor = (*floor).min(if entry.turn == 0 { u64::MAX } else { entry.turn });
        }
        class.floors.retain(|_, floor| *floor != u64::MAX);
        let enabled = |at: &u32| entries[*at as usize].as_ref().is_some_and(|e| e.standing.record.is_enabled());
        let first = class.tiers.values().map(|tier| tier.iter().copied().filter(enabled).collect::<Vec<_>>());
        class.residents = first.into_iter().find(|tier| !tier.is_empty()).unwrap_or_default();
        class
    }

    /// Where `session` is at home before it is known.
    pub fn first_home(&mut self, session: Session, entries: &[Option<Entry>]) -> Option<usize> {
        if self.residents.is_empty() {
            return None;
        }
        if self.homes.is_empty() {
            let places = (self.residents.len() * PLACES_EACH).next_power_of_two().min(MOST_PLACES);
            self.homes = vec![NOBODY; places];
        }
        let place = (session.0 & (self.homes.len() as u64 - 1)) as usize;
        if self.homes[place] == NOBODY {
            let want = |at: &u32| {
                let entry = entries[*at as usize].as_ref();
                entry.map_or(0.0, |e| affinity(place as u64, e.hash, e.standing.record.weight))
            };
            let best = self.residents.iter().copied().max_by(|a, b| want(a).total_cmp(&want(b)));
            self.homes[place] = best.unwrap_or(NOBODY);
        }
        Some(self.homes[place] as usize)
    }

    pub fn fall_asleep(&mut self, at: u32, code: Code, grade: Grade, end: Option<Time>) {
        self.codes[code as usize] += 1;
        match grade {
            Grade::Out => self.out += 1,
            Grade::Busy => self.busy += 1,
            Grade::Ejected => self.ejected.push(at),
        }
        self.soonest = [self.soonest, end].into_iter().flatten().min();
    }

    pub fn wake(&mut self, at: u32, priority: i64, asleep: Asleep) {
        self.codes[asleep.code as usize] -= 1;
        match asleep.grade {
            Grade::Out => self.out -= 1,
            Grade::Busy => self.busy -= 1,
            Grade::Ejected => {
                if let Some(place) = self.ejected.iter().position(|e| *e == at) {
                    self.ejected.swap_remove(place);
                }
            }
        }
        self.tiers.entry(priority).or_default().push(at);
    }

    /// Counts of what keeps its accounts out.
    pub fn reasons(&self) -> BTreeMap<Code, usize> {
        let asleep = Code::ALL.into_iter().map(|code| (code, self.codes[code as usize] as usize));
        let mut counts: BTreeMap<_, _> = asleep.filter(|(_, n)| *n > 0).collect();
        if self.unsupported > 0 {
            *counts.entry(Code::ModelUnsupported).or_default() += self.unsupported;
        }
        counts
    }
}

/// Whether the breaker is put aside in a class: more of its usable accounts are ejected than `percent` allows, or
/// all of them are.
pub(super) fn is_bounded(members: usize, out: usize, ejected: usize, percent: usize) -> bool {
    let usable = members.saturating_sub(out);
    ejected * 100 > usable * percent || (ejected > 0 && ejected >= usable)
}
