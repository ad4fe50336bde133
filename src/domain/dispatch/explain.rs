//! The reason for every choice: what a call would get now, and what every account's verdict over it is.

use super::class::Wanted;
use super::look::Choice;
use super::{Dispatch, Group, Question};
use crate::domain::standing::{PutAside, Standing};
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
        let choice = self.choose(question, &key, true, now);
        self.dice = dice;
        let homes = self.session(question).map(|session| self.homes(session, &key, now)).unwrap_or_default();
        let id_at = |at: usize| self.entries[at].as_ref().map(|e| e.standing.record.id.clone());
        let (home, away) = (homes.home.and_then(id_at), homes.away.and_then(id_at));
        let (picked, why) = match choice {
            Choice::Take { bounded: true, at } => (id_at(at), Why::LastResort),
            Choice::Take { at, .. } => {
                let id = id_at(at);
                let why = match &id {
                    Some(_) if id == home => Why::Home,
                    Some(_) if id == away => Why::Away,
                    _ => Why::Best,
                };
                (id, why)
            }
            Choice::Home(_) => (None, Why::HomeFull),
            Choice::Nobody => (None, Why::Waits),
        };
        let group = Group { class: key, tried: question.tried.clone(), home: None };
        let waits = matches!(why, Why::Waits | Why::HomeFull);
        let full = if waits { self.line.room(&question.key).err() } else { None };
        let refusal = match full {
            _ if why == Why::Waits && (question.deadline <= now || !self.has_prospect(&group)) => {
                Some(self.refusal(&group, now))
            }
            Some(full) if why == Why::Waits => Some(self.line_is_full(full, &question.key, now)),
            _ => None,
        };
        let elsewhere = match full {
            // No room to wait for its home: another that is free will do.
            Some(_) if why == Why::HomeFull => self.pick(&group.class, &question.tried, now),
            _ => None,
        };
        self.dice = dice;
        let id_at = |at: usize| self.entries[at].as_ref().map(|e| e.standing.record.id.clone());
        let (picked, why) = match (elsewhere, &refusal) {
            (Some((at, bounded)), _) => (id_at(at), if bounded { Why::LastResort } else { Why::Best }),
            (None, Some(_)) => (None, Why::Refused),
            (None, None) => (picked, why),
        };
        let class = &group.class;
        let members = self.entries.iter().flatten().filter(|e| class.admits(&e.standing.record));
        let aside = self.put_aside_among(members.map(|e| e.see(&class.wanted, false, now)));
        let admitted = self.entries.iter().flatten().filter(|e| question.scope.admits(&e.standing.record));
        let mut accounts: Vec<_> = admitted
            .map(|e| Explained {
                standing: e.standing.clone(),
                verdict: e.standing.told(Want::of(&question.call), aside, now),
                home: home.as_ref() == Some(&e.standing.record.id),
            })
            .collect();
        accounts.sort_by(|a, b| a.standing.record.id.cmp(&b.standing.record.id));
        Explanation { picked, why, refusal, accounts, waiting: self.line.len() }
    }

    /// Which breakers are put aside for calls of any model by any key.
    pub fn put_aside(&self, now: Time) -> PutAside {
        self.put_aside_among(self.entries.iter().flatten().map(|e| e.see(&Wanted::default(), false, now)))
    }

    fn put_aside_among(&self, seen: impl Iterator<Item = Glance>) -> PutAside {
        let (mut usable, mut held, mut ejected) = (0, 0, 0);
        for seen in seen {
            let grade = seen.obstacle.map(|(_, grade)| grade);
            usable += usize::from(grade != Some(Grade::Out));
            held += usize::from(grade == Some(Grade::Held));
            ejected += usize::from(grade == Some(Grade::Ejected));
        }
        PutAside::of(usable, held, ejected, self.rules.ejected)
    }
}
