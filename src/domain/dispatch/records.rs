//! Accounts as they come, change and go, and what is kept of their records beside them: groups, listed models, and
//! which place changed when.

use super::entry::Entry;
use super::{Dispatch, MOST_CHANGES};
use crate::domain::{Account, AccountId, Standing, Time};
use sha2::{Digest, Sha256};
use std::sync::Arc;

impl Dispatch {
    /// An account is new, or says how it stands.
    pub fn put(&mut self, standing: Standing, now: Time) {
        let id = standing.record.id.clone();
        match self.index.get(&id).copied() {
            Some(at) => {
                // While its old record tells in which tiers it belongs.
                self.wake(at);
                let same = |e: &Entry| Arc::ptr_eq(&e.standing.record, &standing.record);
                let edited = !self.entries[at].as_ref().is_some_and(same);
                let could = if edited { self.groups_at(at) } else { Vec::new() };
                let Some(entry) = self.entries[at].as_mut() else { return };
                let old = std::mem::replace(&mut entry.standing, standing);
                entry.doubted = None;
                if old.health.is_open() && !entry.standing.health.is_open() {
                    // What it had to pay for its failures ends with them.
                    entry.turn = 0;
                }
                if !edited {
                    return self.settle_at(at, !old.health.is_clear(), now);
                }
                let new = entry.standing.record.clone();
                self.ungroup(&old.record, at);
                self.group(&new, at);
                self.list(&new, 1);
                self.list(&old.record, -1);
                self.changed(at);
                self.settle_edit(could, at, now);
            }
            None => {
                self.list(&standing.record, 1);
                let digest = Sha256::digest(id.as_str());
                let record = standing.record.clone();
                let hash = digest.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
                let (asleep, wake_at) = (Vec::new(), None);
                let (turn, tried, doubted) = (0, None, None);
                let entry = Entry { standing, hash, asked: 0, turn, tried, doubted, asleep, wake_at };
                let at = self.free.pop().unwrap_or(self.entries.len());
                if at == self.entries.len() {
                    self.entries.push(None);
                }
                self.entries[at] = Some(entry);
                self.index.insert(id, at);
                self.group(&record, at);
                self.changed(at);
                self.settle_edit(Vec::new(), at, now);
            }
        }
    }

    /// An account is gone, or its actor is dead.
    pub fn remove(&mut self, id: &AccountId, now: Time) {
        let Some(at) = self.index.remove(id) else { return };
        self.wake(at);
        let could = self.groups_at(at);
        if let Some(entry) = self.entries[at].take() {
            self.changed(at);
            self.list(&entry.standing.record, -1);
            self.ungroup(&entry.standing.record, at);
            entry.wake_at.map(|t| self.wakes.remove(&(t, at)));
        }
        self.free.push(at);
        self.settle_edit(could, at, now);
    }

    fn list(&mut self, record: &Account, by: isize) {
        for model in record.models.listed() {
            match self.listed.get_mut(model) {
                Some(count) => {
                    *count = count.saturating_add_signed(by);
                    if *count == 0 {
                        self.listed.remove(model);
                        self.regroup = true;
                    }
                }
                None => {
                    self.listed.insert(model.into(), 1);
                    self.regroup = true;
                }
            }
        }
    }

    /// The account at this place is new, gone or another: classes learn of it when they are next used.
    fn changed(&mut self, at: usize) {
        self.epoch += 1;
        self.changes.push_back(at);
        if self.changes.len() > MOST_CHANGES {
            self.changes.pop_front();
        }
    }

    fn group(&mut self, record: &Account, at: usize) {
        if let Some(group) = &record.group {
            self.by_group.entry(group.as_str().into()).or_default().insert(at);
        }
    }

    fn ungroup(&mut self, record: &Account, at: usize) {
        let Some(group) = record.group.as_deref() else { return };
        if let Some(places) = self.by_group.get_mut(group) {
            places.remove(&at);
            if places.is_empty() {
                self.by_group.remove(group);
            }
        }
    }
}
