//! The reason for every choice: what a call would get now, and what every account's verdict over it is.

use super::class::{Wanted, is_bounded};
use super::look::Choice;
use super::{Dispatch, Group, Question};
use crate::domain::standing::Standing;
use crate::domain::verdict::{Glance, Grade, Verdict, Want};
use crate::domain::{AccountId, Refusal, Time};

/// One account, as a call sees it.
#[derive(Debug, Clone)]
pub struct Explained {
    /// The account.
    pub standing: Standing,
    /// The verdict over it for this call.
    pub verdict: Verdict,
    /// The call's session is at home here.
    pub home: bool,
}

/// Why the picked account is picked, or why none is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The session's home.
    Home,
    /// Where the session stays while its home is out.
    Away,
    /// The least loaded for its share in the first tier that has one free.
    Best,
    /// Too much of the pool is ejected: the best of those.
    LastResort,
    /// The session's home is full: the call waits for it for a moment.
    HomeFull,
    /// Every account that could is busy: the call waits.
    Waits,
    /// Nobody can, and waiting is no remedy.
    Refused,
}

/// What a call would get.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// Who would be asked.
    pub picked: Option<AccountId>,
    /// Why that one, or why nobody.
    pub why: Why,
    /// What it would be told, where waiting is no remedy either.
    pub refusal: Option<Refusal>,
    /// Every account in the call's scope, by id.
    pub accounts: Vec<Explained>,
    /// Calls that wait, of whatever kind.
    pub waiting: usize,
}

impl Dispatch {
    /// What would become of `question` now. Changes nothing.
    pub fn explain(&mut self, question: &Question, now: Time) -> Explanation {
        self.wake_due(now);
        let key = self.class_key(question);
        // The next call is to find what this one found: a look does not use up chance.
        let dice = self.dice;
        let choice = self.choose(question, &key, now);
        self.dice = dice;
        let home = self.session(question).and_then(|session| {
            let id_at = |at: usize| self.entries[at].as_ref().map(|e| e.standing.record.id.clone());
            match self.known_home(session, &key, now) {
                Some((home, away)) => Some((id_at(home)?, away.and_then(id_at))),
                None => Some((self.first_home(&key, session)?, None)),
            }
        });
        let home_of = |id: &AccountId| home.as_ref().is_some_and(|(home, _)| home == id);
        let away_of = |id: &AccountId| home.as_ref().is_some_and(|(_, away)| away.as_ref() == Some(id));
        let id_at = |at: usize| self.entries[at].as_ref().map(|e| e.standing.record.id.clone());
        let (picked, why) = match choice {
            Choice::Take { bounded: true, at } => (id_at(at), Why::LastResort),
            Choice::Take { at, .. } => {
                let id = id_at(at);
                let why = match &id {
                    Some(id) if home_of(id) => Why::Home,
                    Some(id) if away_of(id) => Why::Away,
                    _ => Why::Best,
                };
                (id, why)
            }
            Choice::Home(_) => (None, Why::HomeFull),
            Choice::Nobody => (None, Why::Waits),
        };
        let group = Group { class: key, tried: question.tried.clone(), home: None };
        let refused = why == Why::Waits && (question.deadline <= now || !self.has_prospect(&group));
        let refusal = refused.then(|| self.refusal(&group, now));
        let why = if refused { Why::Refused } else { why };
        let class = self.class_key(question);
        let members = self.entries.iter().flatten().filter(|e| class.admits(&e.standing.record));
        let bounded = self.is_bounded_among(members.map(|e| e.see(&class.wanted, false, now)));
        let admitted = self.entries.iter().flatten().filter(|e| question.scope.admits(&e.standing.record));
        let mut accounts: Vec<_> = admitted
            .map(|e| Explained {
                standing: e.standing.clone(),
                verdict: e.standing.verdict(Want::of(&question.call), bounded, now),
                home: home_of(&e.standing.record.id),
            })
            .collect();
        accounts.sort_by(|a, b| a.standing.record.id.cmp(&b.standing.record.id));
        Explanation { picked, why, refusal, accounts, waiting: self.line.len() }
    }

    fn first_home(&mut self, key: &super::ClassKey, session: super::Session) -> Option<AccountId> {
        let class = self.class(key);
        let at = self.classes[class].first_home(session, &self.entries)?;
        self.entries[at].as_ref().map(|e| e.standing.record.id.clone())
    }

    /// Whether breakers are put aside for calls of any model by any key.
    pub fn is_bounded(&self, now: Time) -> bool {
        self.is_bounded_among(self.entries.iter().flatten().map(|e| e.see(&Wanted::default(), false, now)))
    }

    fn is_bounded_among(&self, seen: impl Iterator<Item = Glance>) -> bool {
        let (mut members, mut out, mut ejected) = (0, 0, 0);
        for seen in seen {
            members += 1;
            match seen.obstacle {
                Some((_, Grade::Out)) => out += 1,
                Some((_, Grade::Held | Grade::Ejected)) => ejected += 1,
                _ => {}
            }
        }
        is_bounded(members, out, ejected, self.rules.ejected)
    }
}
