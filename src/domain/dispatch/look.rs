//! Choosing: which account would take this call best, seen from here.

use super::class::{Asleep, Class, ClassKey, Wanted};
use super::homes::Homes;
use super::{Dispatch, Entry, Question};
use crate::domain::breaker::mix;
use crate::domain::selection::{self, Quality, rank, share};
use crate::domain::verdict::{Code, Glance};
use crate::domain::{AccountId, Standing, Time};

/// A tier of so many is looked at whole: in a small pool chance decides nothing.
const SMALL: usize = 8;

/// Accounts looked at in a larger one. Two are what evens the load out (Mitzenmacher 2001); with four, equal accounts
/// are asked within one call of a hundred equally often.
const DRAWN: usize = 4;

/// Turns that an account may catch up on after it was out: more would be a flood.
const CATCH_UP: u64 = 4;

/// What a look came to.
pub(super) enum Choice {
    /// Ask this one, by its place.
    Take { at: usize, bounded: bool },
    /// Its home is full: wait for that one for a moment, though another is free.
    Home(AccountId),
    /// Nobody can.
    Nobody,
}

impl Dispatch {
    /// The account for this call: its session's home first. `patient`: it has not waited for that one yet.
    pub(super) fn choose(&mut self, question: &Question, key: &ClassKey, patient: bool, now: Time) -> Choice {
        if let Some(session) = self.session(question) {
            let Homes { home, away, is_known, is_away } = self.homes(session, key, now);
            let stand_in = |this: &Self| {
                let (at, seen) = away.and_then(|at| this.suits(at, question, key, now))?;
                seen.schedulable().then_some(Choice::Take { at, bounded: false })
            };
            match home.and_then(|at| self.suits(at, question, key, now)) {
                Some((at, seen)) if seen.schedulable() => return Choice::Take { at, bounded: false },
                Some((_, seen))
                    if is_full(&seen)
                        && is_away
                        && let Some(choice) = stand_in(self) =>
                {
                    return choice;
                }
                Some((at, seen)) if is_known && is_full(&seen) && patient && self.has_patience(question, now) => {
                    let free = self.pick(key, &question.tried, now);
                    return match (free, &self.entries[at]) {
                        (Some(_), Some(entry)) => Choice::Home(entry.standing.record.id.clone()),
                        _ => Choice::Nobody,
                    };
                }
                _ => {}
            }
            if let Some(choice) = stand_in(self) {
                return choice;
            }
        }
        match self.pick(key, &question.tried, now) {
            Some((at, bounded)) => Choice::Take { at, bounded },
            None => Choice::Nobody,
        }
    }

    /// What the account at `at` looks like, if calls of this class may go there at all.
    fn suits(&self, at: usize, question: &Question, key: &ClassKey, now: Time) -> Option<(usize, Glance)> {
        let entry = self.entries.get(at)?.as_ref()?;
        let record = &entry.standing.record;
        if question.tried.contains(&record.id) || !key.admits(record) {
            return None;
        }
        Some((at, entry.watch(&key.wanted, false, now)))
    }

    fn has_patience(&self, question: &Question, now: Time) -> bool {
        self.rules.patience > chrono::TimeDelta::zero() && question.deadline > now
    }

    /// The best account of a class, or `None` if none can take a call.
    pub(super) fn pick(&mut self, key: &ClassKey, tried: &[AccountId], now: Time) -> Option<(usize, bool)> {
        let id = self.class(key);
        let mut class = std::mem::take(&mut self.classes[id]);
        let mut from = i64::MIN;
        let mut found = None;
        while let Some((&priority, _)) = class.tiers.range(from..).next() {
            found = self.best_of_tier(id, &mut class, priority, tried, now).map(|at| (at, false));
            if found.is_some() || priority == i64::MAX {
                break;
            }
            from = priority + 1;
        }
        if found.is_none() {
            found = self.last_resort(&mut class, tried, now).map(|at| (at, true));
        }
        self.classes[id] = class;
        found
    }

    fn best_of_tier(
        &mut self,
        id: usize,
        class: &mut Class,
        priority: i64,
        tried: &[AccountId],
        now: Time,
    ) -> Option<usize> {
        let floor = class.floors.get(&priority).copied().unwrap_or(0);
        loop {
            let tier = class.tiers.get(&priority)?;
            let whole = tier.len() <= SMALL;
            let (places, drawn) = self.draw(tier.len());
            let mut best = None;
            let mut asleep = Vec::new();
            for &place in &places[..drawn] {
                let at = tier[place];
                let Some(entry) = &self.entries[at as usize] else { continue };
                let seen = entry.watch(&class.wanted, false, now);
                match seen.obstacle {
                    Some((code, grade)) => asleep.push((place, at, code, grade, seen)),
                    None if tried.contains(&entry.standing.record.id) => {}
                    None => {
                        let rank = rank(&entry.candidate(&seen, floor, self.share(entry, &class.wanted, now)));
                        // Between equals something like chance decides, or the first of the tier would always win.
                        let rank = (rank, mix(entry.hash ^ entry.turn.max(floor)));
                        if best.is_none_or(|(least, _)| rank < least) {
                            best = Some((rank, at as usize));
                        }
                    }
                }
            }
            if asleep.is_empty() {
                let best = best.map(|(_, at)| at);
                return if best.is_some() || whole {
                    best
                } else {
                    self.any_of(&class.tiers[&priority], &class.wanted, tried, now)
                };
            }
            for (place, at, code, grade, seen) in asleep.into_iter().rev() {
                if let Some(tier) = class.tiers.get_mut(&priority) {
                    tier.swap_remove(place);
                }
                class.fall_asleep(at, code, grade);
                let asleep = Asleep { class: id, making: class.making, code, grade };
                self.put_to_sleep(at as usize, asleep, seen.change.filter(|change| *change > now));
            }
            if class.tiers.get(&priority).is_some_and(Vec::is_empty) {
                class.tiers.remove(&priority);
            }
            if let Some((_, at)) = best {
                return Some(at);
            }
        }
    }

    /// All that were drawn have been tried: one that has not, if there is one.
    fn any_of(&self, tier: &[u32], wanted: &Wanted, tried: &[AccountId], now: Time) -> Option<usize> {
        let fit = |at: &&u32| {
            let entry = self.entries[**at as usize].as_ref();
            entry.is_some_and(|e| !tried.contains(&e.standing.record.id) && e.see(wanted, false, now).schedulable())
        };
        tier.iter().find(fit).map(|at| *at as usize)
    }

    /// Where breakers are put aside: those that merely hold back go first, whatever they bear, for they answer.
    fn last_resort(&mut self, class: &mut Class, tried: &[AccountId], now: Time) -> Option<usize> {
        let aside = class.put_aside(self.rules.ejected);
        if class.exhausted || !aside.held {
            return None;
        }
        let mut found = self.best_of_few(class.held.items(), class, tried, now);
        if found.is_none() && aside.open {
            found = self.best_of_few(class.ejected.items(), class, tried, now);
        }
        // All were looked at in vain, and tell when a slot comes back.
        class.exhausted = found.is_none() && tried.is_empty();
        found
    }

    /// A few first, and all only if none of the few can.
    fn best_of_few(&mut self, of: &[u32], class: &Class, tried: &[AccountId], now: Time) -> Option<usize> {
        let (places, drawn) = self.draw(of.len());
        let few = places[..drawn].iter().map(|&place| of[place]);
        let best = self.best_bounded(few, class, tried, now);
        best.or_else(|| self.best_bounded(of.iter().copied(), class, tried, now))
    }

    fn best_bounded(
        &self,
        of: impl Iterator<Item = u32>,
        class: &Class,
        tried: &[AccountId],
        now: Time,
    ) -> Option<usize> {
        let candidates = of.filter_map(|at| {
            let entry = self.entries[at as usize].as_ref()?;
            let seen = entry.watch(&class.wanted, true, now);
            let fit = seen.schedulable() && !tried.contains(&entry.standing.record.id);
            fit.then(|| (rank(&entry.candidate(&seen, 0, self.share(entry, &class.wanted, now))), at as usize))
        });
        candidates.min().map(|(_, at)| at)
    }

    /// Places to look at, and how many: all of a few, some of many, in ascending order and none twice.
    fn draw(&mut self, of: usize) -> ([usize; SMALL], usize) {
        self.dice = self.dice.wrapping_add(1);
        let mut places = std::array::from_fn(|place| place);
        if of <= SMALL {
            return (places, of);
        }
        for place in &mut places[..DRAWN] {
            self.dice = self.dice.wrapping_add(1);
            *place = (mix(self.dice) % of as u64) as usize;
        }
        places[..DRAWN].sort_unstable();
        let mut drawn = 1;
        for next in 1..DRAWN {
            if places[next] != places[drawn - 1] {
                places[drawn] = places[next];
                drawn += 1;
            }
        }
        (places, drawn)
    }

    fn share(&self, entry: &Entry, wanted: &Wanted, now: Time) -> u64 {
        let Standing { record, health, slots } = &entry.standing;
        let family = wanted.family_at(record);
        let own = slots.vitals().first_byte();
        let quality =
            Quality { strikes: health.strikes(), used: health.used(family, now), first_byte: own.zip(self.usual) };
        share(record.weight, quality)
    }

    /// The account is picked: it is this one's turn no longer.
    pub(super) fn picked(&mut self, key: &ClassKey, at: usize, now: Time) {
        let id = self.class(key);
        let Some(entry) = &self.entries[at] else { return };
        let share = self.share(entry, &self.classes[id].wanted, now);
        let (priority, own) = (entry.standing.record.priority, entry.standing.slots.vitals().first_byte());
        let floor = self.classes[id].floors.entry(priority).or_insert(0);
        let Some(entry) = &mut self.entries[at] else { return };
        let (turn, step) = (entry.turn.max(*floor), selection::turn(share));
        *floor = (*floor).max(turn.saturating_sub(step * CATCH_UP));
        entry.turn = turn + step;
        entry.tried = entry.standing.health.opening();
        entry.asked += 1;
        if let Some(own) = own {
            self.usual = Some(self.usual.map_or(own, |usual| usual * 63 / 64 + own / 64));
        }
    }
}

/// Nothing but its load keeps calls away.
fn is_full(seen: &Glance) -> bool {
    seen.obstacle.is_some_and(|(code, _)| code == Code::AtCapacity)
}
