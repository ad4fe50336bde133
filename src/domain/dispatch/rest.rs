//! Who is left out of which class, and until when: an account that was looked at in vain rests until something about it
//! changes, and a class is patched where a record has changed.

use super::class::{Asleep, Class, ClassKey};
use super::{DOUBT, Dispatch, MOST_CLASSES, Scope};
use crate::domain::Time;
use std::collections::BTreeSet;

impl Dispatch {
    /// The class of `key`, made if it is not there, and told of what has changed since it was last used.
    pub(super) fn class(&mut self, key: &ClassKey) -> usize {
        let Some(&id) = self.class_ids.get(key) else {
            if self.classes.len() >= MOST_CLASSES {
                self.class_ids.clear();
                self.classes.clear();
            }
            let id = self.classes.len();
            self.class_ids.insert(key.clone(), id);
            let class = self.make(key);
            self.classes.push(class);
            return id;
        };
        let missed = self.epoch - self.classes[id].epoch;
        if missed == 0 {
            return id;
        }
        match usize::try_from(missed).ok().and_then(|missed| self.changes.len().checked_sub(missed)) {
            Some(first) => {
                for at in self.changes.iter().skip(first) {
                    self.classes[id].patch(key, *at, &self.entries);
                }
                self.classes[id].epoch = self.epoch;
            }
            None => self.classes[id] = self.make(key),
        }
        id
    }

    fn make(&mut self, key: &ClassKey) -> Class {
        self.makings += 1;
        Class::build(key, self.makings, self.epoch, &self.entries, self.within(&key.scope))
    }

    /// The places of the accounts that a scope may admit, in order.
    pub(super) fn within(&self, scope: &Scope) -> Vec<usize> {
        let Scope::Only(binding) = scope else { return (0..self.entries.len()).collect() };
        let named = binding.accounts().iter().filter_map(|id| self.index.get(id).copied());
        let grouped = binding.groups().iter().filter_map(|group| self.by_group.get(group)).flatten().copied();
        let places: BTreeSet<usize> = named.chain(grouped).collect();
        places.into_iter().collect()
    }

    pub(super) fn put_to_sleep(&mut self, at: usize, asleep: Asleep, until: Option<Time>) {
        if let Some(entry) = &mut self.entries[at] {
            match entry.asleep.iter_mut().find(|old| old.class == asleep.class) {
                // Of an earlier making of the class.
                Some(old) => *old = asleep,
                None => entry.asleep.push(asleep),
            }
        }
        until.into_iter().for_each(|until| self.wake_by(at, until));
    }

    pub(super) fn wake_by(&mut self, at: usize, time: Time) {
        let Some(entry) = &mut self.entries[at] else { return };
        if entry.wake_at.is_none_or(|old| time < old) {
            entry.wake_at.map(|old| self.wakes.remove(&(old, at)));
            entry.wake_at = Some(time);
            self.wakes.insert((time, at));
        }
    }

    /// The account said no though it looked free: it is asked again a little later, or when it reports.
    pub(super) fn doubt(&mut self, at: usize, now: Time) {
        if let Some(entry) = &mut self.entries[at] {
            entry.doubted = Some(now + DOUBT);
        }
        self.wake_by(at, now + DOUBT);
    }

    /// Something about the account has changed: it is looked at anew wherever it was left out.
    pub(super) fn wake(&mut self, at: usize) {
        let Some(entry) = &mut self.entries[at] else { return };
        let priority = entry.standing.record.priority;
        let place = u32::try_from(at).unwrap_or(u32::MAX);
        for asleep in entry.asleep.drain(..) {
            if let Some(class) = self.classes.get_mut(asleep.class).filter(|c| c.making == asleep.making) {
                class.wake(place, priority, asleep);
            }
        }
    }

    /// Wakes whose time has come.
    pub(super) fn wake_due(&mut self, now: Time) {
        while let Some(&(time, at)) = self.wakes.first().filter(|(time, _)| *time <= now) {
            self.wakes.remove(&(time, at));
            if let Some(entry) = &mut self.entries[at] {
                entry.wake_at = None;
            }
            self.wake(at);
            self.woken.push(at);
        }
    }
}
