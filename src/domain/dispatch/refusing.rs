//! Whether waiting is a remedy, and what is told to whom it is none: why, and when to come back.

use super::{Dispatch, Group};
use crate::domain::line::Full;
use crate::domain::verdict::Grade;
use crate::domain::{KeyId, Refusal, Time};
use chrono::TimeDelta;

/// The share of the newest step in the smoothed pace is one in so many.
const SMOOTHING: i32 = 8;

/// Nobody is told to come back later than this because of those who wait.
const LONGEST_TURN: TimeDelta = TimeDelta::seconds(60);

impl Dispatch {
    /// Whether an account is merely busy, so that waiting is a remedy. To be asked after a pick found nobody.
    pub(super) fn has_prospect(&mut self, group: &Group) -> bool {
        let id = self.class(&group.class);
        let class = &self.classes[id];
        // Ejected ones take calls where the breaker is put aside: then they are out because they are full.
        let bounded = class.put_aside(self.rules.ejected).open;
        let hopes = |grade| grade <= Grade::Held || (bounded && grade == Grade::Ejected);
        let tried = group.tried.iter().filter(|id| {
            let entry = self.index.get(*id).and_then(|at| self.entries[*at].as_ref());
            entry.is_some_and(|e| {
                let asleep =
                    e.asleep.iter().find(|a| a.class == *self.class_ids.get(&group.class).unwrap_or(&usize::MAX));
                asleep.is_some_and(|a| a.making == class.making && hopes(a.grade))
            })
        });
        class.hopeful(self.rules.ejected) > tried.count()
    }

    /// Why nobody can, for the one who asked.
    pub(super) fn refusal(&mut self, group: &Group, now: Time) -> Refusal {
        let id = self.class(&group.class);
        if self.classes[id].unsupported.is_none() {
            let places = self.within(&group.class.scope);
            let entries = places.iter().filter_map(|at| self.entries[*at].as_ref());
            let admitted = entries.filter(|e| group.class.scope.admits(&e.standing.record)).count();
            self.classes[id].count_unsupported(admitted);
        }
        let class = &self.classes[id];
        let counts = class.reasons();
        let mut parts: Vec<_> = counts.iter().map(|(code, n)| format!("{n} {}", code.name())).collect();
        if !group.tried.is_empty() {
            parts.push(format!("{} tried already", group.tried.len()));
        }
        if parts.is_empty() {
            parts.push(match &group.class.scope {
                super::Scope::All => "none is enlisted".to_owned(),
                super::Scope::Only(_) => "none of those this key is bound to is enlisted".to_owned(),
            });
        }
        let common = counts.keys().next().copied().filter(|_| counts.len() == 1);
        let transient = counts.keys().any(|code| code.passes_by_itself());
        let until = if class.hopeful(self.rules.ejected) > 0 { Some(now) } else { self.soonest(group, now) };
        Refusal::NoAccount { common, summary: parts.join(", "), until, transient }
    }

    /// The soonest end of what keeps an account of the class out.
    /// Looked for among all of them only once for each change.
    fn soonest(&mut self, group: &Group, now: Time) -> Option<Time> {
        let id = *self.class_ids.get(&group.class)?;
        if let Some(known) = self.classes[id].soonest.filter(|end| end.is_none_or(|end| end > now)) {
            return known;
        }
        let places = self.within(&group.class.scope);
        let members = places.iter().filter_map(|at| self.entries[*at].as_ref());
        let members = members.filter(|e| group.class.admits(&e.standing.record));
        let ends = members.filter_map(|e| e.see(&group.class.wanted, false, now).end);
        let soonest = ends.filter(|end| *end > now).min();
        self.classes[id].soonest = Some(soonest);
        soonest
    }

    /// Why a call of `key` finds no place in the line, and when those before it will have been served.
    pub(super) fn line_is_full(&self, full: Full, key: &KeyId, now: Time) -> Refusal {
        let (limit, of_key, ahead) = match full {
            // The keys take turns.
            Full::Key => {
                let turns = self.line.len_of(key).saturating_mul(self.line.keys());
                (self.rules.line.per_key, true, turns.min(self.line.len()))
            }
            Full::Total => (self.rules.line.total, false, self.line.len()),
        };
        Refusal::LineFull { limit, of_key, until: self.turn_of(ahead, now) }
    }

    /// When so many will have been served, as far as the last ones tell.
    pub(super) fn turn_of(&self, ahead: usize, now: Time) -> Time {
        let ahead = i32::try_from(ahead).unwrap_or(i32::MAX);
        now + self.pace.checked_mul(ahead).unwrap_or(LONGEST_TURN).min(LONGEST_TURN)
    }

    /// One more waiter is served. Only while somebody waits do the times between tell how fast the line moves.
    pub(super) fn step(&mut self, now: Time) {
        if let Some(last) = self.served {
            let took = (now - last).clamp(TimeDelta::zero(), LONGEST_TURN);
            self.pace += (took - self.pace) / SMOOTHING;
        }
        self.served = (!self.line.is_empty()).then_some(now);
    }
}
