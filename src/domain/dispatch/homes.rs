//! Where the sessions of calls are at home, as far as it matters for a choice. Sessions are kept by
//! [`crate::domain::affinity`]; what a home is worth hangs on the call: one that does not serve its model is none, and
//! then the call is at home where a session without a past would be.

use super::class::ClassKey;
use super::{Dispatch, Question};
use crate::domain::affinity::Stay;
use crate::domain::verdict::Code;
use crate::domain::{AccountId, Family, Session, Time};

/// Where a session belongs for calls of one kind, by places.
#[derive(Debug, Default)]
pub(super) struct Homes {
    pub home: Option<usize>,
    /// Where it stays while that is out.
    pub away: Option<usize>,
    /// The session has a home that serves this: it may wait for that a moment.
    pub is_known: bool,
    /// It was served last where it stays: that has its prompt cache, and its home may have none.
    pub is_away: bool,
}

impl Dispatch {
    /// Where `session` belongs.
    pub(super) fn homes(&mut self, session: Session, key: &ClassKey, now: Time) -> Homes {
        let known = self.affinity.home(session, now).cloned();
        let serves = |id: &AccountId| {
            let at = *self.index.get(id)?;
            self.entries[at].as_ref().filter(|e| key.admits(&e.standing.record)).map(|_| at)
        };
        let home = known.as_ref().and_then(|home| serves(&home.account));
        let away = known.as_ref().and_then(|home| {
            let mut stays = home.away.iter().filter_map(|(id, of)| Some((id, serves(id)?, of)));
            stays.find(|(_, at, of)| self.family_at(*at, key) == **of).map(|(id, at, _)| (at, *id == home.last))
        });
        let is_away = away.is_some_and(|(_, last)| last);
        let away = away.map(|(at, _)| at);
        let is_known = home.is_some();
        let home = home.or_else(|| {
            let class = self.class(key);
            self.classes[class].first_home(session, &self.entries)
        });
        Homes { home, away, is_known, is_away }
    }

    /// The question's session, unless sessions are not to matter.
    pub(super) fn session(&self, question: &Question) -> Option<Session> {
        question.session.filter(|_| self.rules.sessions > 0)
    }

    fn family_at(&self, at: usize, key: &ClassKey) -> Option<Family> {
        self.entries[at].as_ref().and_then(|e| key.wanted.family_at(&e.standing.record))
    }

    /// Notes where a session was served.
    pub(super) fn note_home(&mut self, session: Session, account: &AccountId, question: &Question, now: Time) {
        let Some(&served) = self.index.get(account) else { return };
        let key = self.class_key(question);
        let Homes { home, away, .. } = self.homes(session, &key, now);
        let is_out = |at: usize| {
            let Some(entry) = &self.entries[at] else { return true };
            let obstacle = entry.see(&key.wanted, false, now).obstacle;
            question.tried.contains(&entry.standing.record.id)
                || obstacle.is_some_and(|(code, _)| code != Code::AtCapacity)
        };
        let priority = |at: usize| self.entries[at].as_ref().map(|e| e.standing.record.priority);
        let stays = Stay::Away(self.family_at(served, &key));
        let known = self.affinity.home(session, now);
        let gone = known.is_some_and(|home| !self.index.contains_key(&home.account));
        let (at, stay) = match home {
            // A stand-in is no home: the session comes back when its own account does.
            Some(home) if (known.is_none() || gone) && home != served => {
                let stands_in = is_out(home) || priority(served) > priority(home);
                if stands_in { (home, stays) } else { (served, Stay::Home) }
            }
            _ if known.is_none() || gone => (served, Stay::Home),
            // Out, full, or none that serves this: the next time it goes there at once, until its home has room.
            Some(home) if home != served && away.is_none_or(is_out) => (served, stays),
            _ => (served, Stay::Elsewhere),
        };
        let Some(entry) = &self.entries[at] else { return };
        let home = entry.standing.record.id.clone();
        if gone || known.is_none() {
            self.affinity.served(session, &home, Stay::Home, now);
        }
        if at != served || stay != Stay::Home {
            self.affinity.served(session, account, stay, now);
        }
    }
}
