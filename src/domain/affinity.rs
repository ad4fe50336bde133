//! Where sessions are at home: an account that has seen a conversation answers its next turn from its prompt cache.
//!
//! Kept by the dispatcher, in two generations: whoever is used moves to the younger one, and when that is full or
//! old the older one is dropped whole. So memory is bounded, and forgetting costs nothing.

use super::{AccountId, Family, KeyId, Time};
use chrono::TimeDelta;
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// A client's session, scoped by its key: the same name under two keys is two sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Session(pub u64);

impl Session {
    /// The session that `key` calls `name`. The same on every relay and after every restart.
    pub fn of(key: &KeyId, name: &str) -> Self {
        let digest = Sha256::new().chain_update(key.as_str()).chain_update([0]).chain_update(name).finalize();
        Self(digest.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes)))
    }
}

/// Where a session belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// Its account.
    pub account: AccountId,
    /// Where calls of a family stay while its account is out for them; one of each family at the most.
    pub away: Vec<(AccountId, Option<Family>)>,
    /// Where it was served last.
    pub last: AccountId,
    /// When it was last used.
    pub used: Time,
}

/// In which way a session is served by an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    /// It has no home that is still there.
    Home,
    /// Its home, and where it stayed so far, are out for calls of this family.
    Away(Option<Family>),
    /// For this once: its home is merely full, or does not serve this, or it is served at home or where it stays.
    Elsewhere,
}

/// The homes of sessions.
pub struct Affinity {
    young: HashMap<Session, Home>,
    old: HashMap<Session, Home>,
    /// When `young` was begun.
    begun: Option<Time>,
    /// The most sessions of one generation.
    most: usize,
    ttl: TimeDelta,
}

impl Affinity {
    /// Room for `sessions`, each for `ttl` from its last use; none at all where either is zero.
    pub fn new(sessions: usize, ttl: TimeDelta) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), begun: None, most: sessions.div_ceil(2), ttl }
    }

    /// Where `session` belongs, if that is known still.
    pub fn home(&self, session: Session, now: Time) -> Option<&Home> {
        let home = self.young.get(&session).or_else(|| self.old.get(&session))?;
        (now - home.used < self.ttl).then_some(home)
    }

    /// Notes that `session` was served by `account`.
    pub fn served(&mut self, session: Session, account: &AccountId, stay: Stay, now: Time) {
        if self.most == 0 || self.ttl <= TimeDelta::zero() {
            return;
        }
        let known = self.home(session, now).cloned();
        let last = account.clone();
        let home = match (known, stay) {
            (Some(mut home), Stay::Away(family)) if home.account != *account => {
                home.away.retain(|(_, of)| *of != family);
                home.away.push((account.clone(), family));
                Home { last, used: now, ..home }
            }
            (Some(home), Stay::Elsewhere | Stay::Away(_)) => Home { last, used: now, ..home },
            (_, Stay::Home) | (None, _) => Home { account: account.clone(), away: Vec::new(), last, used: now },
        };
        let begun = *self.begun.get_or_insert(now);
        if self.young.len() >= self.most && !self.young.contains_key(&session) || now - begun >= self.ttl {
            self.old = std::mem::take(&mut self.young);
            self.begun = Some(now);
        }
        self.old.remove(&session);
        self.young.insert(session, home);
    }

    /// Sessions held, forgotten ones that were not dropped yet included.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        chrono::DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    fn id(text: &str) -> AccountId {
        AccountId::parse(text).unwrap()
    }

    #[test]
    fn a_session_stays_while_it_is_used_and_is_forgotten_an_hour_after() {
        let mut affinity = Affinity::new(10, TimeDelta::hours(1));
        affinity.served(Session(1), &id("a"), Stay::Home, at(0));
        affinity.served(Session(1), &id("a"), Stay::Elsewhere, at(3_000));
        assert_eq!(affinity.home(Session(1), at(6_599)).unwrap().account, id("a"));
        assert!(affinity.home(Session(1), at(6_600)).is_none());
    }

    #[test]
    fn a_stay_elsewhere_does_not_move_the_home() {
        let mut affinity = Affinity::new(10, TimeDelta::hours(1));
        let opus = Some(Family::Opus);
        for (account, stay, home, away) in [
            ("a", Stay::Home, "a", None),
            ("b", Stay::Away(opus), "a", Some("b")),
            ("c", Stay::Elsewhere, "a", Some("b")),
            ("a", Stay::Elsewhere, "a", Some("b")),
            ("d", Stay::Away(opus), "a", Some("d")),
            ("d", Stay::Home, "d", None),
        ] {
            affinity.served(Session(1), &id(account), stay, at(0));
            let known = affinity.home(Session(1), at(1)).unwrap();
            let stays = away.into_iter().map(|a| (id(a), opus)).collect::<Vec<_>>();
            assert_eq!((&known.account, &known.away, &known.last), (&id(home), &stays, &id(account)));
        }
    }

    #[test]
    fn memory_is_bounded_and_the_last_used_stay() {
        let mut affinity = Affinity::new(100, TimeDelta::hours(1));
        for n in 0..10_000 {
            affinity.served(Session(7), &id("a"), Stay::Home, at(0));
            affinity.served(Session(1_000 + n), &id("b"), Stay::Home, at(0));
            assert!(affinity.len() <= 100);
        }
        assert!(affinity.home(Session(7), at(1)).is_some() && affinity.home(Session(10_999), at(1)).is_some());
    }

    #[test]
    fn one_name_under_two_keys_is_two_sessions() {
        let of = |key: &str| Session::of(&KeyId::new(key), "s");
        assert_ne!(of("k1"), of("k2"));
        assert_eq!(of("k1"), Session::of(&KeyId::new("k1"), "s"));
    }
}
