//! Waiting: who parks, who is served when, and who is sent away.

use super::look::Choice;
use super::{Command, Dispatch, Group, Open, Question, State};
use crate::domain::line::{Place, Served, TicketId};
use crate::domain::{KeyId, Refusal, Time};

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
        self.line.groups_at(&entry.standing.record).any(|group| self.could_use(group, at, bounded, now))
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
                return self.settle_groups(self.groups_at(at), now);
            }
            let record = &entry.standing.record;
            if !entry.is_full()
                && let Some(ticket) = self.line.next_at(record, |group| self.could_use(group, at, false, now))
            {
                self.hand(ticket, at, false, now);
                continue;
            }
            let fits = self.line.groups_at(record).filter(|group| group.fits(&entry.standing));
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
    pub(super) fn groups_at(&self, at: usize) -> Vec<Group> {
        let Some(entry) = &self.entries[at] else { return Vec::new() };
        // Those that have tried it too: what becomes of it decides whether breakers are put aside in their class.
        let record = &entry.standing.record;
        self.line.groups_at(record).filter(|group| group.class.admits(record)).cloned().collect()
    }

    /// Gives the free slots that these groups could use to whoever's turn it is.
    pub(super) fn serve_groups(&mut self, groups: Vec<Group>, now: Time) {
        for group in groups {
            while let Some((at, bounded)) = self.pick_for(&group, now) {
                let Some(entry) = &self.entries[at] else { break };
                let can = |g: &Group| self.could_use(g, at, bounded && g.class == group.class, now);
                let Some(ticket) = self.line.next_at(&entry.standing.record, can) else { break };
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

    /// Nobody waits any more, perhaps: then the pace is measured anew by the next who do.
    pub(super) fn leave_line(&mut self, ticket: TicketId) {
        self.line.leave(ticket);
        if self.line.is_empty() {
            self.served = None;
        }
    }

    pub(super) fn refuse(&mut self, ticket: TicketId, refusal: Refusal) {
        self.leave_line(ticket);
        if let Some(Open { state: State::Waiting { due }, .. }) = self.open.remove(&ticket) {
            self.due.remove(&(due, ticket));
        }
        self.commands.push_back(Command::Refuse { ticket, refusal });
    }
}
