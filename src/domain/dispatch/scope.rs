//! Which accounts a call may go to, by its key: all of them, or those that the key is bound to.
//!
//! Every look-up of a class hashes and compares its scope, so that a binding knows its own hash: one of thousands of
//! accounts costs a call no more than one of two.

use crate::domain::{Account, AccountId};
use std::hash::{DefaultHasher, Hash, Hasher};
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    hash: u64,
    accounts: Vec<AccountId>,
    groups: Vec<Arc<str>>,
}

impl Hash for Binding {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Binding {
    /// Accounts by id, in order.
    pub fn accounts(&self) -> &[AccountId] {
        &self.accounts
    }

    /// Accounts by their group, in order.
    pub fn groups(&self) -> &[Arc<str>] {
        &self.groups
    }
}

impl Scope {
    /// These accounts and these groups; all if neither is named.
    pub fn of(accounts: impl IntoIterator<Item = AccountId>, groups: impl IntoIterator<Item = Arc<str>>) -> Self {
        let mut accounts: Vec<_> = accounts.into_iter().collect();
        let mut groups: Vec<_> = groups.into_iter().collect();
        if accounts.is_empty() && groups.is_empty() {
            return Self::All;
        }
        accounts.sort_unstable();
        accounts.dedup();
        groups.sort_unstable();
        groups.dedup();
        let mut hasher = DefaultHasher::new();
        (&accounts, &groups).hash(&mut hasher);
        Self::Only(Arc::new(Binding { hash: hasher.finish(), accounts, groups }))
    }

    /// These accounts alone.
    pub fn only(accounts: impl IntoIterator<Item = AccountId>) -> Self {
        Self::of(accounts, [])
    }

    /// Whether `account` may be considered.
    pub fn admits(&self, account: &Account) -> bool {
        match self {
            Self::All => true,
            Self::Only(binding) => {
                let in_group = |group: &str| binding.groups.binary_search_by(|g| (**g).cmp(group)).is_ok();
                account.group.as_deref().is_some_and(in_group) || binding.accounts.binary_search(&account.id).is_ok()
            }
        }
    }
}
