//! The accounts that calls of one kind could use, ready to be chosen from.
//!
//! A class is a scope (all accounts, or those that a key is bound to) and a model. Its tiers hold the accounts that
//! were schedulable when last seen: one that turns out not to be is taken out then, and comes back when something
//! about it changes. So a choice looks at a few accounts, however many there are and however many are out, and
//! every account that is looked at in vain is paid for by a change.

use super::Entry;
use crate::domain::breaker::mix;
use crate::domain::selection::affinity;
use crate::domain::verdict::{Code, Grade};
use crate::domain::window::Family;
use crate::domain::{Account, AccountId, Session, Time};
use std::collections::{BTreeMap, BTreeSet};
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

impl Default for Wanted {
    fn default() -> Self {
        Self::Unlisted(None)
    }
}

impl Wanted {
    pub fn served_by(&self, account: &Account) -> bool {
        match self {
            Self::Listed(model) => account.models.upstream_name(model).is_some(),
            Self::Unlisted(_) => account.models.serves_any(),
        }
    }

    /// The family of what the account's upstream is asked for.
    pub fn family_at(&self, account: &Account) -> Option<Family> {
        match self {
            Self::Listed(model) => account.models.family(model),
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

/// Accounts of one ward, about: a session is at home in a ward first, and then with one of its accounts, so that few
/// are compared even where there are many. A smaller pool is one ward.
const WARD: usize = 64;

/// One class.
#[derive(Default)]
pub(super) struct Class {
    pub epoch: u64,
    /// What is asked for; where all its accounts ask their upstream for the same family, no more than that.
    pub wanted: Wanted,
    /// Accounts in it, schedulable or not.
    pub members: usize,
    /// Accounts that its scope admits, but that do not serve the model.
    pub unsupported: usize,
    pub tiers: BTreeMap<i64, Vec<u32>>,
    /// The least turn that counts, by tier: who comes back does not catch up on all that it missed.
    pub floors: BTreeMap<i64, u64>,
    /// Kept out by their breakers, altogether or for now.
    pub ejected: Vec<u32>,
    /// Accounts asleep by what keeps them out.
    codes: [u32; Code::ALL.len()],
    pub out: usize,
    pub busy: usize,
    /// Of the ejected those that are merely held back.
    pub held: usize,
    /// The soonest end of what keeps somebody out, if it was looked for since the last change.
    pub soonest: Option<Option<Time>>,
    /// Where sessions are at home at first: accounts of the first tier.
    residents: Vec<u32>,
    /// The same by ward, with the weight of all in it; made when it is asked for.
    wards: Vec<(u64, u32, Vec<u32>)>,
}

impl Class {
    /// The class of `key` over the accounts at these places, which are all that its scope may admit.
    pub fn build(key: &ClassKey, epoch: u64, entries: &[Option<Entry>], places: Vec<usize>) -> Self {
        let mut class = Self { epoch, wanted: key.wanted.clone(), ..Self::default() };
        let mut families = BTreeSet::new();
        for at in places {
            let Some(entry) = &entries[at] else { continue };
            let record = &entry.standing.record;
            if !key.scope.admits(record) {
                continue;
            }
            if !key.wanted.served_by(record) {
                class.unsupported += 1;
                continue;
            }
            class.members += 1;
            families.insert(key.wanted.family_at(record));
            class.tiers.entry(record.priority).or_default().push(u32::try_from(at).unwrap_or(u32::MAX));
            let floor = class.floors.entry(record.priority).or_insert(u64::MAX);
            *floor = (*floor).min(if entry.turn == 0 { u64::MAX } else { entry.turn });
        }
        if let (1, Some(family)) = (families.len(), families.first()) {
            class.wanted = Wanted::Unlisted(*family);
        }
        class.floors.retain(|_, floor| *floor != u64::MAX);
        let enabled = |at: &u32| entries[*at as usize].as_ref().is_some_and(|e| e.standing.record.is_enabled());
        let first = class.tiers.values().map(|tier| tier.iter().copied().filter(enabled).collect::<Vec<_>>());
        class.residents = first.into_iter().find(|tier| !tier.is_empty()).unwrap_or_default();
        class
    }

    /// Where `session` is at home before it is known.
    pub fn first_home(&mut self, session: Session, entries: &[Option<Entry>]) -> Option<usize> {
        if self.wards.is_empty() {
            self.open_wards(entries);
        }
        let ward = most_wanted(self.wards.iter().map(|ward| (affinity(session.0, ward.0, ward.1), ward)))?;
        let entry = |at: &u32| entries[*at as usize].as_ref();
        let inmates = ward.2.iter().filter_map(|at| {
            let entry = entry(at)?;
            Some((affinity(session.0, entry.hash, entry.standing.record.weight), *at))
        });
        most_wanted(inmates).map(|at| at as usize)
    }

    /// Accounts are in the ward that their own hash says, so that one that comes or goes moves few sessions.
    fn open_wards(&mut self, entries: &[Option<Entry>]) {
        let count = (self.residents.len() / WARD).next_power_of_two() as u64;
        self.wards = (0..count).map(|ward| (mix(ward), 0, Vec::new())).collect();
        for at in &self.residents {
            let Some(entry) = &entries[*at as usize] else { continue };
            let (_, weight, inmates) = &mut self.wards[(entry.hash & (count - 1)) as usize];
            *weight += entry.standing.record.weight.max(1);
            inmates.push(*at);
        }
        self.wards.retain(|(_, weight, _)| *weight > 0);
    }

    pub fn fall_asleep(&mut self, at: u32, code: Code, grade: Grade) {
        self.soonest = None;
        self.codes[code as usize] += 1;
        match grade {
            Grade::Out => self.out += 1,
            Grade::Busy => self.busy += 1,
            Grade::Held | Grade::Ejected => {
                self.held += usize::from(grade == Grade::Held);
                self.ejected.push(at);
            }
        }
    }

    pub fn wake(&mut self, at: u32, priority: i64, asleep: Asleep) {
        self.soonest = None;
        self.codes[asleep.code as usize] -= 1;
        match asleep.grade {
            Grade::Out => self.out -= 1,
            Grade::Busy => self.busy -= 1,
            Grade::Held | Grade::Ejected => {
                self.held -= usize::from(asleep.grade == Grade::Held);
                if let Some(place) = self.ejected.iter().position(|e| *e == at) {
                    self.ejected.swap_remove(place);
                }
            }
        }
        self.tiers.entry(priority).or_default().push(at);
    }

    /// Whether its breakers are put aside: too many accounts are kept out by them.
    pub fn is_bounded(&self, percent: usize) -> bool {
        is_bounded(self.members, self.out, self.ejected.len(), percent)
    }

    /// Accounts that are merely busy, so that waiting is a remedy.
    pub fn hopeful(&self, percent: usize) -> usize {
        self.busy + if self.is_bounded(percent) { self.ejected.len() } else { self.held }
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

fn most_wanted<T>(of: impl Iterator<Item = (f64, T)>) -> Option<T> {
    of.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, wanted)| wanted)
}

/// Whether the breaker is put aside in a class: more of its usable accounts are ejected than `percent` allows, or
/// all of them are.
pub(super) fn is_bounded(members: usize, out: usize, ejected: usize, percent: usize) -> bool {
    let usable = members.saturating_sub(out);
    ejected * 100 > usable * percent || (ejected > 0 && ejected >= usable)
}
