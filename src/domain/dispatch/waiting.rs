//! Waiting: who parks, who is served when, and who is sent away.

use super::look::Choice;
use super::{Command, Dispatch, Group, Open, Question, State};
use crate::domain::line::{Full, Place, Served, TicketId};
use crate::domain::verdict::{Code, Grade};
use crate::domain::{KeyId, Refusal, Time};
use chrono::TimeDelta;

/// The share of the newest step in the smoothed pace is one in so many.
const SMOOTHING: i32 = 8;

impl Dispatch {
    /// Finds an account for a call, or a place in the line, or the reason why neither.
    pub(super) fn seek(&mut self, question: Question, arrived: u64, now: Time) {
        let class = self.class_key(&question);
        let mut choice = self.choose(&question, &class, now);
        if let Choice::Take { at, bounded } = choice
            && self.somebody_could_use(at, bounded, now)
        {
            // Its slot came back this very moment: those who wait go first.
            self.serve(now);
            choice = self.choose(&question, &class, now);
        }
        let home = match choice {
            Choice::Take { at, bounded } => {
                self.picked(&class, at, now);
                return self.send(question, arrived, at, bounded, None);
            }
            Choice::Home(home) => Some(home),
            Choice::Nobody => None,
        };
        let group = Group { class: class.clone(), tried: question.tried.clone(), home };
        let hopeless = group.home.is_none() && !self.has_prospect(&group);
        if question.deadline <= now || hopeless {
            let refusal = self.refusal(&group, now);
            return self.commands.push_back(Command::Refuse { ticket: question.ticket, refusal });
        }
        let place = Place { ticket: question.ticket, key: question.key.clone(), group, arrived };
        let patient = place.group.home.is_some();
        if let Err(full) = self.line.join(place) {
            // No room to wait for its home: another that is free will do.
            let free = if patient { self.pick(&class, &question.tried, now) } else { None };
            if let Some((at, bounded)) = free {
                self.picked(&class, at, now);
                return self.send(question, arrived, at, bounded, None);
            }
            let refusal = self.line_is_full(full, now);
            return self.commands.push_back(Command::Refuse { ticket: question.ticket, refusal });
        }
        let due = if patient { question.deadline.min(now + self.rules.patience) } else { question.deadline };
        self.park_until(question, arrived, due);
    }

    pub(super) fn park(&mut self, question: Question, arrived: u64) {
        let due = question.deadline;
        self.park_until(question, arrived, due);
    }

    fn park_until(&mut self, question: Question, arrived: u64, due: Time) {
        let ticket = question.ticket;
        self.due.insert((due, ticket));
        self.open.insert(ticket, Open { question, arrived, state: State::Waiting { due } });
    }

    fn send(
        &mut self,
        question: Question,
        arrived: u64,
        at: usize,
        bounded: bool,
        served: Option<Served<KeyId, Group>>,
    ) {
        let Some(entry) = &self.entries[at] else { return };
        let (ticket, call, account) = (question.ticket, question.call.clone(), entry.standing.record.id.clone());
        let state = State::Asked { account: account.clone(), served };
        self.open.insert(ticket, Open { question, arrived, state });
        self.commands.push_back(Command::Ask { ticket, account, call, bounded });
    }

    fn somebody_could_use(&self, at: usize, bounded: bool, now: Time) -> bool {
        !self.line.is_empty() && self.line.groups().any(|(group, _)| self.could_use(group, at, bounded, now))
    }

    fn could_use(&self, group: &Group, at: usize, bounded: bool, now: Time) -> bool {
        let Some(entry) = &self.entries[at] else { return false };
        group.fits(&entry.standing) && entry.see(&group.class.wanted, bounded, now).schedulable()
    }

    /// Gives what has come free at one account to whoever's turn it is. Not to be asked of a change that could make
    /// another account usable.
    pub(super) fn serve_at(&mut self, at: usize, now: Time) {
        let mut watched = false;
        while !self.line.is_empty() {
            let Some(entry) = &self.entries[at] else { return };
            if entry.is_held_back(now) {
                // Of use only where the breaker is put aside, which is a matter of a whole class.
                return self.serve(now);
            }
            if !entry.is_full()
                && let Some(ticket) = self.line.next(|group| self.could_use(group, at, false, now))
            {
                self.hand(ticket, at, false, now);
                continue;
            }
            let fits = self.line.groups().filter(|(group, _)| group.fits(&entry.standing));
            let seen = fits.map(|(group, _)| entry.see(&group.class.wanted, false, now));
            let Some(change) = seen.map(|seen| seen.change).reduce(|a, b| [a, b].into_iter().flatten().min()) else {
                return;
            };
            change.into_iter().filter(|change| *change > now).for_each(|change| self.wake_by(at, change));
            if std::mem::replace(&mut watched, true) {
                return;
            }
            // Somebody wants the next one that comes back, and one may have just now.
            if let Some(entry) = &self.entries[at] {
                entry.standing.slots.watch();
            }
        }
    }

    pub(super) fn serve_woken(&mut self, now: Time) {
        while let Some(at) = self.woken.pop() {
            self.serve_at(at, now);
        }
    }

    /// The waiter leaves the line for this account.
    fn hand(&mut self, ticket: TicketId, at: usize, bounded: bool, now: Time) {
        let Some(entry) = &self.entries[at] else { return };
        let served = self.line.serve(ticket, |group| group.fits(&entry.standing));
        let (Some(served), Some(open)) = (served, self.open.remove(&ticket)) else { return };
        if let State::Waiting { due } = open.state {
            self.due.remove(&(due, ticket));
        }
        self.step(now);
        let class = self.class_key(&open.question);
        self.picked(&class, at, now);
        self.send(open.question, open.arrived, at, bounded, Some(served));
    }

    /// Gives every free slot to whoever's turn it is.
    pub(super) fn serve(&mut self, now: Time) {
        if self.line.is_empty() {
            return;
        }
        let groups: Vec<Group> = self.line.groups().map(|(group, _)| group.clone()).collect();
        for group in groups {
            while let Some((at, bounded)) = self.pick_for(&group, now) {
                let Some(ticket) = self.line.next(|g| self.could_use(g, at, bounded && g.class == group.class, now))
                else {
                    break;
                };
                self.hand(ticket, at, bounded, now);
            }
        }
    }

    fn pick_for(&mut self, group: &Group, now: Time) -> Option<(usize, bool)> {
        if !self.line.has_group(group) {
            return None;
        }
        match &group.home {
            None => self.pick(&group.class, &group.tried, now),
            Some(home) => {
                let at = *self.index.get(home)?;
                let entry = self.entries[at].as_ref().filter(|e| group.fits(&e.standing))?;
                entry.watch(&group.class.wanted, false, now).schedulable().then_some((at, false))
            }
        }
    }

    /// After a change that may have made things worse: serves who can be, and sends away who has no prospect.
    pub(super) fn settle_line(&mut self, now: Time) {
        if self.line.is_empty() {
            return;
        }
        self.regroup_all();
        self.leave_lost_homes(now);
        self.serve(now);
        // Whoever still waits for more than its home found nobody a moment ago.
        let groups: Vec<Group> = self.line.groups().map(|(g, _)| g.clone()).filter(|g| g.home.is_none()).collect();
        for group in groups.into_iter().filter(|group| !self.has_prospect(group)).collect::<Vec<_>>() {
            let refusal = self.refusal(&group, now);
            let lost: Vec<_> = self.line.tickets().filter(|t| self.line.group(*t) == Some(&group)).collect();
            lost.into_iter().for_each(|ticket| self.refuse(ticket, refusal.clone()));
        }
    }

    /// After an edit a model may be listed that was not, or the other way round: then calls wait in another group.
    fn regroup_all(&mut self) {
        if std::mem::replace(&mut self.grouped, self.epoch) != self.epoch {
            self.line.tickets().collect::<Vec<_>>().into_iter().for_each(|ticket| self.regroup(ticket));
        }
    }

    pub(super) fn regroup(&mut self, ticket: TicketId) {
        let (Some(open), Some(group)) = (self.open.get(&ticket), self.line.group(ticket)) else { return };
        let class = self.class_key(&open.question);
        if class != group.class {
            let group = Group { class, ..group.clone() };
            self.line.regroup(ticket, group);
        }
    }

    /// A home that is not merely full any more is not waited for.
    fn leave_lost_homes(&mut self, now: Time) {
        let lost = |group: &Group| {
            let at = group.home.as_ref().map(|home| self.index.get(home).copied())?;
            let entry = at.and_then(|at| self.entries[at].as_ref());
            let seen = entry.map(|e| e.see(&group.class.wanted, false, now));
            Some(seen.is_none_or(|s| s.obstacle.is_some_and(|(code, _)| code != Code::AtCapacity)))
        };
        let gone: Vec<Group> = self.line.groups().map(|(g, _)| g.clone()).filter(|g| lost(g) == Some(true)).collect();
        if gone.is_empty() {
            return;
        }
        let whose: Vec<TicketId> =
            self.line.tickets().filter(|t| self.line.group(*t).is_some_and(|g| gone.contains(g))).collect();
        whose.into_iter().for_each(|ticket| self.lose_patience(ticket));
    }

    /// From now on any account will do.
    fn lose_patience(&mut self, ticket: TicketId) {
        let Some(open) = self.open.get_mut(&ticket) else { return };
        let State::Waiting { due } = &mut open.state else { return };
        self.due.remove(&(*due, ticket));
        *due = open.question.deadline;
        self.due.insert((*due, ticket));
        if let Some(group) = self.line.group(ticket).cloned() {
            self.line.regroup(ticket, Group { home: None, ..group });
        }
    }

    /// Ends the patience, or the wait, of those whose time is over.
    pub(super) fn end_waits(&mut self, now: Time) {
        let mut impatient = false;
        while let Some(&(due, ticket)) = self.due.first().filter(|(due, _)| *due <= now) {
            self.due.remove(&(due, ticket));
            let group = self.line.group(ticket).cloned();
            let late = self.open.get(&ticket).is_none_or(|open| open.question.deadline <= now);
            match group {
                Some(group) if late => {
                    let until = self.refusal(&group, now).until(now);
                    self.refuse(ticket, Refusal::WaitedTooLong { until });
                }
                Some(_) => {
                    self.lose_patience(ticket);
                    impatient = true;
                }
                None => {}
            }
        }
        if impatient {
            self.settle_line(now);
        }
    }

    pub(super) fn refuse(&mut self, ticket: TicketId, refusal: Refusal) {
        self.line.leave(ticket);
        if let Some(Open { state: State::Waiting { due }, .. }) = self.open.remove(&ticket) {
            self.due.remove(&(due, ticket));
        }
        self.commands.push_back(Command::Refuse { ticket, refusal });
    }

    /// Whether an account is merely busy, so that waiting is a remedy. To be asked after a pick found nobody.
    pub(super) fn has_prospect(&mut self, group: &Group) -> bool {
        let id = self.class(&group.class);
        let class = &self.classes[id];
        // Ejected ones take calls where the breaker is put aside: then they are out because they are full.
        let bounded = class.is_bounded(self.rules.ejected);
        let hopes = |grade| grade <= Grade::Held || (bounded && grade == Grade::Ejected);
        let tried = group.tried.iter().filter(|id| {
            let entry = self.index.get(*id).and_then(|at| self.entries[*at].as_ref());
            entry.is_some_and(|e| {
                let asleep =
                    e.asleep.iter().find(|a| a.class == *self.class_ids.get(&group.class).unwrap_or(&usize::MAX));
                asleep.is_some_and(|a| a.epoch == class.epoch && hopes(a.grade))
            })
        });
        class.hopeful(self.rules.ejected) > tried.count()
    }

    /// Why nobody can, for the one who asked.
    pub(super) fn refusal(&mut self, group: &Group, now: Time) -> Refusal {
        let id = self.class(&group.class);
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
        let members = self.entries.iter().flatten().filter(|e| group.class.admits(&e.standing.record));
        let ends = members.filter_map(|e| e.see(&group.class.wanted, false, now).end);
        let soonest = ends.filter(|end| *end > now).min();
        self.classes[id].soonest = Some(soonest);
        soonest
    }

    fn line_is_full(&self, full: Full, now: Time) -> Refusal {
        let (limit, of_key) = match full {
            Full::Key => (self.rules.line.per_key, true),
            Full::Total => (self.rules.line.total, false),
        };
        // As long as those before it will take, as far as the last ones tell.
        let each = self.pace.map_or(TimeDelta::milliseconds(100), |(each, _)| each);
        let ahead = i32::try_from(self.line.len()).unwrap_or(i32::MAX);
        let until = now + each.checked_mul(ahead).unwrap_or(TimeDelta::seconds(60)).min(TimeDelta::seconds(60));
        Refusal::LineFull { limit, of_key, until }
    }

    /// One more waiter is served.
    fn step(&mut self, now: Time) {
        self.pace = Some(match self.pace {
            Some((each, last)) => {
                let took = (now - last).clamp(TimeDelta::zero(), TimeDelta::seconds(60));
                (each + (took - each) / SMOOTHING, now)
            }
            None => (TimeDelta::milliseconds(100), now),
        });
    }
}
