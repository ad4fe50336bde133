//! Waiting: who parks, who is served when, and who is sent away.

use super::look::Choice;
use super::{Command, Dispatch, Group, Open, Question, State};
use crate::domain::line::{Full, Place, Served, TicketId};
use crate::domain::verdict::{Code, Grade};
use crate::domain::{KeyId, Refusal, Time};
use chrono::TimeDelta;

/// The share of the newest step in the smoothed pace is one in so many.
const SMOOTHING: i32 = 8;

/// Nobody is told to come back later than this because of those who wait.
const LONGEST_TURN: TimeDelta = TimeDelta::seconds(60);

impl Dispatch {
    /// Finds an account for a call, or a place in the line, or the reason why neither. `patient`: it may wait for its
    /// session's home for a moment.
    pub(super) fn seek(&mut self, question: Question, arrived: u64, patient: bool, now: Time) {
        if let Some(closed) = self.closed.clone() {
            return self.commands.push_back(Command::Refuse { ticket: question.ticket, refusal: closed });
        }
        let class = self.class_key(&question);
        let mut choice = self.choose(&question, &class, patient, now);
        if let Choice::Take { at, bounded } = choice
            && self.somebody_could_use(at, bounded, now)
        {
            // Its slot came back this very moment: those who wait go first.
            self.serve(now);
            choice = self.choose(&question, &class, patient, now);
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
            let refusal = self.line_is_full(full, &question.key, now);
            return self.commands.push_back(Command::Refuse { ticket: question.ticket, refusal });
        }
        // Half of a short time at the most: the other half is for whoever else comes free.
        let due =
            if patient { now + self.rules.patience.min((question.deadline - now) / 2) } else { question.deadline };
        self.park_until(question, arrived, due);
    }

    pub(super) fn park(&mut self, question: Question, arrived: u64) {
        if let Some(closed) = self.closed.clone() {
            return self.refuse(question.ticket, closed);
        }
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
        let Some(entry) = self.entries[at].as_ref().filter(|_| !self.line.is_empty()) else { return false };
        self.line.groups_at(&entry.standing.record.id).any(|group| self.could_use(group, at, bounded, now))
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
                return self.serve_groups(self.groups_at(at), now);
            }
            let id = &entry.standing.record.id;
            if !entry.is_full()
                && let Some(ticket) = self.line.next_at(id, |group| self.could_use(group, at, false, now))
            {
                self.hand(ticket, at, false, now);
                continue;
            }
            let fits = self.line.groups_at(id).filter(|group| group.fits(&entry.standing));
            let seen = fits.map(|group| entry.see(&group.class.wanted, false, now));
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
        self.serve_groups(self.line.groups().map(|(group, _)| group.clone()).collect(), now);
    }

    /// The groups that the account at this place could serve, as it stands on paper.
    fn groups_at(&self, at: usize) -> Vec<Group> {
        let Some(entry) = &self.entries[at] else { return Vec::new() };
        let groups = self.line.groups_at(&entry.standing.record.id);
        groups.filter(|group| group.fits(&entry.standing)).cloned().collect()
    }

    /// Gives the free slots that these groups could use to whoever's turn it is.
    fn serve_groups(&mut self, groups: Vec<Group>, now: Time) {
        for group in groups {
            while let Some((at, bounded)) = self.pick_for(&group, now) {
                let Some(entry) = &self.entries[at] else { break };
                let can = |g: &Group| self.could_use(g, at, bounded && g.class == group.class, now);
                let Some(ticket) = self.line.next_at(&entry.standing.record.id, can) else { break };
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

    /// After a change of records: serves who can be, and sends away who has no prospect.
    pub(super) fn settle_line(&mut self, now: Time) {
        if std::mem::take(&mut self.regroup) {
            // A model may be listed that was not, or the other way round: then calls wait in another group.
            self.line.tickets().collect::<Vec<_>>().into_iter().for_each(|ticket| self.regroup(ticket));
        }
        self.settle_groups(self.line.groups().map(|(group, _)| group.clone()).collect(), now);
    }

    /// The same after an account has told how it stands: that concerns only those who could use it.
    pub(super) fn settle_at(&mut self, at: usize, now: Time) {
        self.serve_at(at, now);
        let worse = |e: &super::Entry| {
            let record = &e.standing.record;
            !e.standing.health.is_clear() || record.reserve > 0 || record.expires_at.is_some_and(|end| end <= now)
        };
        if !self.line.is_empty() && self.entries[at].as_ref().is_some_and(worse) {
            self.settle_groups(self.groups_at(at), now);
        }
    }

    pub(super) fn settle_groups(&mut self, mut groups: Vec<Group>, now: Time) {
        let let_go: Vec<Group> = groups.iter().filter(|group| self.is_lost_home(group, now)).cloned().collect();
        for group in let_go {
            for ticket in self.line.tickets_in(&group) {
                self.lose_patience(ticket);
            }
            groups.push(Group { home: None, ..group });
        }
        self.serve_groups(groups.clone(), now);
        // Whoever still waits for more than its home found nobody a moment ago.
        for group in groups.into_iter().filter(|group| group.home.is_none()) {
            if self.line.has_group(&group) && !self.has_prospect(&group) {
                let refusal = self.refusal(&group, now);
                self.line.tickets_in(&group).into_iter().for_each(|ticket| self.refuse(ticket, refusal.clone()));
            }
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
    fn is_lost_home(&self, group: &Group, now: Time) -> bool {
        let Some(home) = &group.home else { return false };
        let entry = self.index.get(home).and_then(|at| self.entries[*at].as_ref());
        let seen = entry.filter(|e| group.fits(&e.standing)).map(|e| e.see(&group.class.wanted, false, now));
        seen.is_none_or(|s| s.obstacle.is_some_and(|(code, _)| code != Code::AtCapacity))
    }

    /// From now on any account will do.
    fn lose_patience(&mut self, ticket: TicketId) {
        let Some(open) = self.open.get_mut(&ticket) else { return };
        let State::Waiting { due } = &mut open.state else { return };
        self.due.remove(&(*due, ticket));
        *due = open.question.deadline;
        self.due.insert((*due, ticket));
        if let Some(group) = self.line.group(ticket).cloned() {
            self.line.widen(ticket, Group { home: None, ..group });
        }
    }

    /// Ends the patience, or the wait, of those whose time is over.
    pub(super) fn end_waits(&mut self, now: Time) {
        let mut let_go = Vec::new();
        while let Some(&(due, ticket)) = self.due.first().filter(|(due, _)| *due <= now) {
            self.due.remove(&(due, ticket));
            let Some(group) = self.line.group(ticket).cloned() else { continue };
            if group.home.is_some() {
                // Any account will do from now on, if only at the last moment.
                self.lose_patience(ticket);
                let group = Group { home: None, ..group };
                self.serve_groups(vec![group.clone()], now);
                if !let_go.contains(&group) {
                    let_go.push(group);
                }
            } else {
                self.refuse(ticket, Refusal::WaitedTooLong { until: self.turn_of(self.line.len(), now) });
            }
        }
        self.settle_groups(let_go, now);
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
    fn turn_of(&self, ahead: usize, now: Time) -> Time {
        let ahead = i32::try_from(ahead).unwrap_or(i32::MAX);
        now + self.pace.checked_mul(ahead).unwrap_or(LONGEST_TURN).min(LONGEST_TURN)
    }

    /// One more waiter is served. Only while somebody waits do the times between tell how fast the line moves.
    fn step(&mut self, now: Time) {
        if let Some(last) = self.served {
            let took = (now - last).clamp(TimeDelta::zero(), LONGEST_TURN);
            self.pace += (took - self.pace) / SMOOTHING;
        }
        self.served = (!self.line.is_empty()).then_some(now);
    }
}
