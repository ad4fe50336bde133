//! The accounts that calls of one kind could use, ready to be chosen from.
//!
//! A class is a scope (all accounts, or those that a key is bound to) and a model. Its tiers hold the accounts that
//! were schedulable when last seen: one that turns out not to be is taken out then, and comes back when something
//! about it changes. So a choice looks at a few accounts, however many there are and however many are out, and
//! every account that is looked at in vain is paid for by a change.

use super::{Entry, Scope};
use crate::domain::breaker::mix;
use crate::domain::selection::affinity;
use crate::domain::standing::PutAside;
use crate::domain::verdict::{Code, Grade};
use crate::domain::window::Family;
use crate::domain::{Account, Session, Time};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

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
    /// Of which making of the class; what was noted of an earlier one is void.
    pub making: u64,
    pub code: Code,
    pub grade: Grade,
}

/// Accounts of one ward, about: a session is at home in a ward first, and then with one of its accounts, so that few
/// are compared even where there are many. A smaller pool is one ward.
const WARD: usize = 64;

/// Places in no order, each once; any of them is taken out at the same small cost.
#[derive(Default)]
pub(super) struct Bag {
    items: Vec<u32>,
    at: HashMap<u32, usize>,
}

impl Bag {
    fn put(&mut self, item: u32) {
        self.at.insert(item, self.items.len());
        self.items.push(item);
    }

    fn take(&mut self, item: u32) {
        let Some(place) = self.at.remove(&item) else { return };
        self.items.swap_remove(place);
        if let Some(moved) = self.items.get(place) {
            self.at.insert(*moved, place);
        }
    }

    pub fn items(&self) -> &[u32] {
        &self.items
    }
}

/// One class.
#[derive(Default)]
pub(super) struct Class {
    /// Which making of it: none has the number of another, of this class or of any.
    pub making: u64,
    /// The last change of an account's record that it knows of.
    pub epoch: u64,
    /// What is asked for; where all its accounts ask their upstream for the same family, no more than that.
    pub wanted: Wanted,
    /// That family.
    family: Option<Option<Family>>,
    /// Accounts in it, schedulable or not, in no order.
    members: Vec<u32>,
    /// Accounts that its scope admits, but that do not serve the model; counted when it is asked for.
    pub unsupported: Option<usize>,
    pub tiers: BTreeMap<i64, Vec<u32>>,
    /// The least turn that counts, by tier: who comes back does not catch up on all that it missed.
    pub floors: BTreeMap<i64, u64>,
    /// Kept out by their open breakers.
    pub ejected: Bag,
    /// Held back by their breakers for now.
    pub held: Bag,
    /// Of these two none had a slot free when all were last looked at, and none came free since.
    pub exhausted: bool,
    /// Accounts asleep by what keeps them out.
    codes: [u32; Code::ALL.len()],
    pub out: usize,
    pub busy: usize,
    /// The soonest end of what keeps somebody out, if it was looked for since the last change.
    pub soonest: Option<Option<Time>>,
    /// Where sessions are at home at first: accounts of the first tier, by ward, with the weight of all in it; made
    /// when it is asked for.
    wards: Vec<(u64, u32, Vec<u32>)>,
}

impl Class {
    /// The class of `key` over the accounts at these places, which are all that its scope may admit.
    pub fn build(key: &ClassKey, making: u64, epoch: u64, entries: &[Option<Entry>], places: Vec<usize>) -> Self {
        let mut class = Self { making, epoch, wanted: key.wanted.clone(), ..Self::default() };
        for at in places {
            let Some(entry) = &entries[at] else { continue };
            if class.admit(key, at, entry) && entry.turn > 0 {
                let floor = class.floors.entry(entry.standing.record.priority).or_insert(u64::MAX);
                *floor = (*floor).min(entry.turn);
            }
        }
        class
    }

    /// The account at this place is new, gone or another than it was. It must be awake: in the tiers, or no member.
    pub fn patch(&mut self, key: &ClassKey, at: usize, entries: &[Option<Entry>]) {
        let place = u32::try_from(at).unwrap_or(u32::MAX);
        if let Some(member) = self.members.iter().position(|m| *m == place) {
            self.members.swap_remove(member);
            for tier in self.tiers.values_mut() {
                if let Some(awake) = tier.iter().position(|a| *a == place) {
                    tier.swap_remove(awake);
                }
            }
            self.tiers.retain(|_, tier| !tier.is_empty());
        }
        (self.soonest, self.unsupported, self.exhausted) = (None, None, false);
        self.wards.clear();
        if let Some(entry) = &entries[at] {
            self.admit(key, at, entry);
        }
    }

    fn admit(&mut self, key: &ClassKey, at: usize, entry: &Entry) -> bool {
        let record = &entry.standing.record;
        if !key.admits(record) {
            return false;
        }
        let (place, family) = (u32::try_from(at).unwrap_or(u32::MAX), key.wanted.family_at(record));
        self.members.push(place);
        self.tiers.entry(record.priority).or_default().push(place);
        match self.family {
            None => self.wanted = Wanted::Unlisted(family),
            Some(known) if known != family => self.wanted = key.wanted.clone(),
            Some(_) => {}
        }
        self.family.get_or_insert(family);
        true
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
        let enabled = || {
            let members = self.members.iter().filter_map(|at| Some((*at, entries[*at as usize].as_ref()?)));
            members.filter(|(_, e)| e.standing.record.is_enabled())
        };
        let first = enabled().map(|(_, e)| e.standing.record.priority).min();
        let residents = || enabled().filter(|(_, e)| Some(e.standing.record.priority) == first);
        let count = (residents().count() / WARD).next_power_of_two() as u64;
        let mut wards: Vec<_> = (0..count).map(|ward| (mix(ward), 0, Vec::new())).collect();
        for (at, entry) in residents() {
            let (_, weight, inmates) = &mut wards[(entry.hash & (count - 1)) as usize];
            *weight += entry.standing.record.weight.max(1);
            inmates.push(at);
        }
        wards.retain(|(_, weight, _)| *weight > 0);
        self.wards = wards;
    }

    pub fn fall_asleep(&mut self, at: u32, code: Code, grade: Grade) {
        (self.soonest, self.exhausted) = (None, false);
        self.codes[code as usize] += 1;
        match grade {
            Grade::Out => self.out += 1,
            Grade::Busy => self.busy += 1,
            Grade::Held => self.held.put(at),
            Grade::Ejected => self.ejected.put(at),
        }
    }

    pub fn wake(&mut self, at: u32, priority: i64, asleep: Asleep) {
        (self.soonest, self.exhausted) = (None, false);
        self.codes[asleep.code as usize] -= 1;
        match asleep.grade {
            Grade::Out => self.out -= 1,
            Grade::Busy => self.busy -= 1,
            Grade::Held => self.held.take(at),
            Grade::Ejected => self.ejected.take(at),
        }
        self.tiers.entry(priority).or_default().push(at);
    }

    /// Which breakers are put aside.
    pub fn put_aside(&self, percent: usize) -> PutAside {
        let usable = self.members.len().saturating_sub(self.out);
        PutAside::of(usable, self.held.items.len(), self.ejected.items.len(), percent)
    }

    /// Of so many accounts that its scope admits those that are no members do not serve the model.
    pub fn count_unsupported(&mut self, admitted: usize) {
        self.unsupported = Some(admitted.saturating_sub(self.members.len()));
    }

    /// Accounts that are merely busy, so that waiting is a remedy.
    pub fn hopeful(&self, percent: usize) -> usize {
        let ejected = if self.put_aside(percent).open { self.ejected.items.len() } else { 0 };
        self.busy + self.held.items.len() + ejected
    }

    /// Counts of what keeps its accounts out.
    pub fn reasons(&self) -> BTreeMap<Code, usize> {
        let unsupported = self.unsupported.unwrap_or(0);
        let asleep = Code::ALL.into_iter().map(|code| (code, self.codes[code as usize] as usize));
        let mut counts: BTreeMap<_, _> = asleep.filter(|(_, n)| *n > 0).collect();
        if unsupported > 0 {
            *counts.entry(Code::ModelUnsupported).or_default() += unsupported;
        }
        counts
    }
}

fn most_wanted<T>(of: impl Iterator<Item = (f64, T)>) -> Option<T> {
    of.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, wanted)| wanted)
}
