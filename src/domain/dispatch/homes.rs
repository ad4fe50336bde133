//! Where the sessions of calls are at home, as far as it matters for a choice. Sessions are kept by
//! [`crate::domain::affinity`]; what a home is worth hangs on the call: one that does not serve its model is none.

use super::class::ClassKey;
use super::{Dispatch, Question};
use crate::domain::affinity::Stay;
use crate::domain::verdict::Code;
use crate::domain::{AccountId, Session, Time};

impl Dispatch {
    /// The place of the session's home, and of the account where calls of this kind stay while that is out. A home
    /// that is gone, or that does not serve what is asked for, is none.
    pub(super) fn known_home(&self, session: Session, key: &ClassKey, now: Time) -> Option<(usize, Option<usize>)> {
        let home = self.affinity.home(session, now)?;
        let at = *self.index.get(&home.account)?;
        let entry = self.entries[at].as_ref().filter(|e| key.admits(&e.standing.record))?;
        let family = key.wanted.family_at(&entry.standing.record);
        let away = home.away.as_ref().filter(|(_, of)| *of == family);
        Some((at, away.and_then(|(id, _)| self.index.get(id).copied())))
    }

    /// The question's session, unless sessions are not to matter.
    pub(super) fn session(&self, question: &Question) -> Option<Session> {
        question.session.filter(|_| self.rules.sessions > 0)
    }

    /// Notes where a session was served.
    pub(super) fn note_home(&mut self, session: Session, account: &AccountId, question: &Question, now: Time) {
        let key = self.class_key(question);
        let is_out = |at: usize| {
            let Some(entry) = &self.entries[at] else { return true };
            let obstacle = entry.see(&key.wanted, false, now).obstacle;
            question.tried.contains(&entry.standing.record.id)
                || obstacle.is_some_and(|(code, _)| code != Code::AtCapacity)
        };
        let stay = match self.known_home(session, &key, now) {
            // It has one, which is gone or does not serve this.
            None => match self.affinity.home(session, now) {
                Some(home) if self.index.contains_key(&home.account) => Stay::Elsewhere,
                _ => Stay::Home,
            },
            Some((home, away)) if is_out(home) && away.is_none_or(is_out) => {
                let family = self.entries[home].as_ref().and_then(|e| key.wanted.family_at(&e.standing.record));
                Stay::Away(family)
            }
            Some(_) => Stay::Elsewhere,
        };
        self.affinity.served(session, account, stay, now);
    }
}
