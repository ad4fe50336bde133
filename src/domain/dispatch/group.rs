//! Calls that can be served by exactly the same accounts: they wait as one, and what comes free is offered to all of
//! them or to none. The line is asked by group; the dispatcher alone knows what one is.

use super::Scope;
use super::class::ClassKey;
use crate::domain::line::Reach;
use crate::domain::{AccountId, Standing};
use std::sync::Arc;

/// A key bound to more accounts than this waits among all: noting each would cost more than looking.
const FEW: usize = 64;

/// Calls of one group can be served by exactly the same accounts.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Group {
    pub class: ClassKey,
    pub tried: Arc<[AccountId]>,
    /// Only this one, for as long as its session has patience.
    pub home: Option<AccountId>,
}

impl Group {
    /// What could serve it, for the line to find it by.
    pub fn reach(&self) -> Reach<'_> {
        match (&self.home, &self.class.scope) {
            (Some(home), _) => Reach::Within(std::slice::from_ref(home), &[]),
            (None, Scope::Only(binding)) if binding.accounts().len() <= FEW => {
                Reach::Within(binding.accounts(), binding.groups())
            }
            (None, _) => Reach::Anywhere,
        }
    }

    /// Whether the account could serve it, as it stands on paper.
    pub fn fits(&self, standing: &Standing) -> bool {
        let id = &standing.record.id;
        self.home.as_ref().is_none_or(|home| home == id)
            && !self.tried.contains(id)
            && self.class.admits(&standing.record)
    }
}
