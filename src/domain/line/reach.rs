//! Which groups of waiters an account could serve. There may be as many groups as accounts, and what comes free at one
//! account concerns few of them: the line finds those here.

use crate::domain::{Account, AccountId};
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

/// What could serve the calls of a group, at the most.
#[derive(Debug, Clone, Copy)]
pub enum Reach<'a> {
    /// Any account.
    Anywhere,
    /// One of these, or one of these groups of accounts.
    Within(&'a [AccountId], &'a [Arc<str>]),
}

/// Groups, by their numbers, by what could serve them.
#[derive(Debug, Default)]
pub(super) struct Index {
    by_account: HashMap<AccountId, BTreeSet<u64>>,
    by_group: HashMap<Arc<str>, BTreeSet<u64>>,
    anywhere: BTreeSet<u64>,
}

impl Index {
    pub fn add(&mut self, reach: Reach, number: u64) {
        let Reach::Within(accounts, groups) = reach else {
            self.anywhere.insert(number);
            return;
        };
        for account in accounts {
            self.by_account.entry(account.clone()).or_default().insert(number);
        }
        for name in groups {
            self.by_group.entry(name.clone()).or_default().insert(number);
        }
    }

    pub fn remove(&mut self, reach: Reach, number: u64) {
        let Reach::Within(accounts, groups) = reach else {
            self.anywhere.remove(&number);
            return;
        };
        accounts.iter().for_each(|account| drop_from(&mut self.by_account, account, number));
        groups.iter().for_each(|name| drop_from(&mut self.by_group, name, number));
    }

    /// Those that this account could serve; one may come twice.
    pub fn at(&self, account: &Account) -> impl Iterator<Item = &u64> {
        let of_group = account.group.as_deref().and_then(|group| self.by_group.get(group));
        self.by_account.get(&account.id).into_iter().chain(of_group).flatten().chain(&self.anywhere)
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.by_account.is_empty() && self.by_group.is_empty() && self.anywhere.is_empty()
    }
}

fn drop_from<M: Eq + Hash>(index: &mut HashMap<M, BTreeSet<u64>>, mark: &M, number: u64) {
    if let Some(numbers) = index.get_mut(mark) {
        numbers.remove(&number);
        if numbers.is_empty() {
            index.remove(mark);
        }
    }
}
