//! What a change means for those who wait: whoever can be served is, whoever waited for a home that is lost waits for
//! any account, whoever has no prospect or no time left is sent away.

use super::{Dispatch, Group, State};
use crate::domain::line::TicketId;
use crate::domain::verdict::Code;
use crate::domain::{Refusal, Time};

impl Dispatch {
    /// After the record at this place has changed: serves who can be, and sends away who has no prospect. `could`:
    /// the groups that it could serve before.
    pub(super) fn settle_edit(&mut self, could: Vec<Group>, at: usize, now: Time) {
        if std::mem::take(&mut self.regroup) {
            // A model is listed that was not, or the other way round: then calls wait in other groups.
            self.line.tickets().collect::<Vec<_>>().into_iter().for_each(|ticket| self.regroup(ticket));
            return self.settle_groups(self.line.groups().map(|(group, _)| group.clone()).collect(), now);
        }
        let mut groups = could;
        groups.extend(self.groups_at(at));
        self.settle_groups(groups, now);
    }

    /// The same after an account has told how it stands: that concerns only those who could use it.
    pub(super) fn settle_at(&mut self, at: usize, was_unwell: bool, now: Time) {
        self.serve_at(at, now);
        let changed = |e: &super::Entry| {
            let record = &e.standing.record;
            was_unwell
                || !e.standing.health.is_clear()
                || record.reserve > 0
                || record.expires_at.is_some_and(|end| end <= now)
        };
        if !self.line.is_empty() && self.entries[at].as_ref().is_some_and(changed) {
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
}
