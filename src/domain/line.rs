//! The waiting line: which of the calls that wait for an account is next. The dispatcher asks it whenever an account
//! comes free, and alone changes it.
//!
//! Fair between keys, first come first served inside one. The round is no ring of keys but a stamp on each, of when
//! it was last served or joined, and the least goes first: a key passed over because its accounts are all busy keeps
//! its stamp, and so is first the moment one of them is free, however many others went before it meanwhile.

mod reach;

use super::Account;
use reach::Index;
pub use reach::Reach;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

/// Names one waiting question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TicketId(pub u64);

/// How many may wait.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Of one key.
    pub per_key: usize,
    /// In all.
    pub total: usize,
}

/// Which bound is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The key's own.
    Key,
    /// Everybody's.
    Total,
}

/// One waiter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place<K, G> {
    /// Its name; no two waiters share one.
    pub ticket: TicketId,
    /// Whose call it is: fairness is between these.
    pub key: K,
    /// Calls of one group can be served by exactly the same accounts.
    pub group: G,
    /// The caller's arrival number: of one key's calls the lesser goes first.
    pub arrived: u64,
}

/// A ticket that was served, with what puts it back. Not `Clone`: it goes back once at most.
#[derive(Debug, PartialEq, Eq)]
pub struct Served<K, G> {
    /// Where it waited.
    pub place: Place<K, G>,
    /// Its key's stamps before: its own, and those of its queues by group number.
    stamp: u64,
    stamps: Vec<(u64, u64)>,
}

/// The waiting line. No order that shows depends on a hash, so that a simulation replays exactly.
#[derive(Debug)]
pub struct Line<K, G> {
    bounds: Bounds,
    places: BTreeMap<TicketId, Place<K, G>>,
    /// Only keys with waiters: one that comes back is new.
    turns: BTreeMap<K, Turn>,
    /// Only groups with waiters, by number, which is the order of creation.
    groups: BTreeMap<u64, Group<K, G>>,
    /// For look-ups only, never walked.
    numbers: HashMap<G, u64>,
    reach: fn(&G) -> Reach<'_>,
    /// Groups by what could serve them.
    index: Index,
    /// The last stamp or group number given. One counter, so that each is given once.
    last: u64,
}

/// One key's share of the line.
#[derive(Debug)]
struct Turn {
    /// When it was last served, or joined. No two keys share one.
    stamp: u64,
    waiting: usize,
    /// By group number. None is empty.
    queues: BTreeMap<u64, Queue>,
}

/// The calls of one key in one group.
#[derive(Debug)]
struct Queue {
    /// When the key last had something that these calls could have had, or joined: what others are served by is not
    /// held against them.
    stamp: u64,
    /// Oldest first.
    calls: BTreeSet<(u64, TicketId)>,
}

#[derive(Debug)]
struct Group<K, G> {
    name: G,
    waiting: usize,
    /// The keys that wait in it, by their stamps.
    round: BTreeMap<u64, K>,
}

impl<K, G> Group<K, G> {
    /// Moves a key in the round.
    fn restamp(&mut self, queue: &mut Queue, stamp: u64) {
        if let Some(key) = self.round.remove(&queue.stamp) {
            self.round.insert(stamp, key);
        }
        queue.stamp = stamp;
    }
}

impl<K: Clone + Ord, G: Clone + Eq + Hash> Line<K, G> {
    /// An empty line. `reach` tells what could serve a group.
    pub fn new(bounds: Bounds, reach: fn(&G) -> Reach<'_>) -> Self {
        Self {
            bounds,
            places: BTreeMap::new(),
            turns: BTreeMap::new(),
            groups: BTreeMap::new(),
            numbers: HashMap::new(),
            reach,
            index: Index::default(),
            last: 0,
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The group that this ticket waits in, if it waits.
    pub fn group(&self, ticket: TicketId) -> Option<&G> {
        self.places.get(&ticket).map(|place| &place.group)
    }

    /// How many of this key wait.
    pub fn len_of(&self, key: &K) -> usize {
        self.turns.get(key).map_or(0, |turn| turn.waiting)
    }

    /// How many keys wait.
    pub fn keys(&self) -> usize {
        self.turns.len()
    }

    /// Who waits in this group, by key and age.
    pub fn tickets_in(&self, group: &G) -> Vec<TicketId> {
        let Some(number) = self.numbers.get(group) else { return Vec::new() };
        let keys = self.groups.get(number).into_iter().flat_map(|group| group.round.values());
        let queues = keys.filter_map(|key| self.turns.get(key)?.queues.get(number));
        queues.flat_map(|queue| queue.calls.iter().map(|(_, ticket)| *ticket)).collect()
    }

    /// Whether somebody waits in this group.
    pub fn has_group(&self, group: &G) -> bool {
        self.numbers.contains_key(group)
    }

    /// Whether this ticket waits.
    pub fn contains(&self, ticket: TicketId) -> bool {
        self.places.contains_key(&ticket)
    }

    /// Whether one more of this key may join. If both bounds are reached, its own is named: that one it can help.
    pub fn room(&self, key: &K) -> Result<(), Full> {
        let (key, total) = (self.len_of(key) < self.bounds.per_key, self.len() < self.bounds.total);
        if key { total.then_some(()).ok_or(Full::Total) } else { Err(Full::Key) }
    }

    /// Adds a waiter. A key without waiters joins at the end of the round.
    pub fn join(&mut self, place: Place<K, G>) -> Result<(), Full> {
        self.room(&place.key)?;
        let fresh = self.fresh();
        let stamp = self.turns.get(&place.key).map_or(fresh, |turn| turn.stamp);
        self.link(place, stamp, stamp, false);
        Ok(())
    }

    /// Its asker left. The key's turn is not used up.
    pub fn leave(&mut self, ticket: TicketId) -> Option<Place<K, G>> {
        self.unlink(ticket).map(|(place, _)| place)
    }

    /// Whose turn it is among the groups that `can` accepts: of the keys that wait in one of them the one served
    /// longest ago, of its calls the oldest. Changes nothing; `can` is asked once a group, in their order.
    pub fn next(&self, can: impl FnMut(&G) -> bool) -> Option<TicketId> {
        self.next_of(self.groups.iter(), can)
    }

    /// The same among the groups that this account could serve. One that it could serve for two reasons may be asked
    /// about twice.
    pub fn next_at(&self, account: &Account, can: impl FnMut(&G) -> bool) -> Option<TicketId> {
        self.next_of(self.index.at(account).filter_map(|n| self.groups.get_key_value(n)), can)
    }

    fn next_of<'a>(
        &'a self,
        groups: impl Iterator<Item = (&'a u64, &'a Group<K, G>)>,
        mut can: impl FnMut(&G) -> bool,
    ) -> Option<TicketId>
    where
        K: 'a,
        G: 'a,
    {
        let open: Vec<(&u64, &Group<K, G>)> = groups.filter(|(_, group)| can(&group.name)).collect();
        let firsts = open.iter().filter_map(|(_, group)| group.round.first_key_value());
        let (_, key) = firsts.min_by_key(|(stamp, _)| **stamp)?;
        let queues = &self.turns.get(key)?.queues;
        let oldest = open.iter().filter_map(|(number, _)| queues.get(number)?.calls.first());
        oldest.min().map(|(_, ticket)| *ticket)
    }

    /// The ticket is served: it leaves the line, and its key goes to the end of the round in every group that could
    /// have had the same (`shares`). In others it keeps its turn: else a key that is served often of one thing
    /// would never come to its turn for another.
    pub fn serve(&mut self, ticket: TicketId, mut shares: impl FnMut(&G) -> bool) -> Option<Served<K, G>> {
        let key = self.places.get(&ticket)?.key.clone();
        let turn = self.turns.get(&key)?;
        let (stamp, stamps) = (turn.stamp, turn.queues.iter().map(|(number, queue)| (*number, queue.stamp)).collect());
        let (place, _) = self.unlink(ticket)?;
        let fresh = self.fresh();
        if let Some(turn) = self.turns.get_mut(&key) {
            turn.stamp = fresh;
            for (number, queue) in &mut turn.queues {
                let Some(group) = self.groups.get_mut(number).filter(|g| shares(&g.name)) else { continue };
                group.restamp(queue, fresh);
            }
        }
        Some(Served { place, stamp, stamps })
    }

    /// The account said no after all: the ticket is where it was, and its key has its turn back. Not subject to
    /// bounds, since it has been let in once.
    pub fn put_back(&mut self, served: Served<K, G>) {
        let Served { place, stamp, stamps } = served;
        let before =
            |number: Option<u64>| stamps.iter().find(|(n, _)| Some(*n) == number).map_or(stamp, |(_, old)| *old);
        // Whatever came between, a turn that was not used is owed: the older stamp wins.
        for (number, queue) in self.turns.get_mut(&place.key).into_iter().flat_map(|turn| &mut turn.queues) {
            if let Some(group) = self.groups.get_mut(number) {
                group.restamp(queue, queue.stamp.min(before(Some(*number))));
            }
        }
        let own = before(self.numbers.get(&place.group).copied());
        self.link(place, stamp, own, true);
    }

    /// The ticket waits in another group from now on, as old as it was. `false` if it does not wait.
    pub fn regroup(&mut self, ticket: TicketId, group: G) -> bool {
        self.move_to(ticket, group, true)
    }

    /// The ticket, which waited for one account alone, waits among all from now on. It is as old as it was, but how
    /// long its key had nothing of that account is no claim to turns of others.
    pub fn widen(&mut self, ticket: TicketId, group: G) -> bool {
        self.move_to(ticket, group, false)
    }

    fn move_to(&mut self, ticket: TicketId, group: G, owed: bool) -> bool {
        let Some(of_key) = self.places.get(&ticket).and_then(|p| self.turns.get(&p.key)).map(|t| t.stamp) else {
            return false;
        };
        let Some((place, own)) = self.unlink(ticket) else { return false };
        self.link(Place { group, ..place }, of_key, if owed { own } else { of_key }, owed);
        true
    }

    /// The groups with waiters and how many, in the order in which they came to have any.
    pub fn groups(&self) -> impl Iterator<Item = (&G, usize)> {
        self.groups.values().map(|group| (&group.name, group.waiting))
    }

    /// The groups that this account could serve, as far as their reach tells; one may come twice.
    pub fn groups_at(&self, account: &Account) -> impl Iterator<Item = &G> {
        self.index.at(account).filter_map(|n| self.groups.get(n)).map(|group| &group.name)
    }

    /// Everybody who waits, by ticket.
    pub fn tickets(&self) -> impl Iterator<Item = TicketId> {
        self.places.keys().copied()
    }

    fn fresh(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Adds a waiter: its key has no younger stamp than `stamp` from now on. Its queue has `own` if it is new, or none
    /// younger if that turn is `owed`.
    fn link(&mut self, place: Place<K, G>, stamp: u64, own: u64, owed: bool) {
        // A ticket used twice would leave its first place behind in the queues for ever.
        self.unlink(place.ticket);
        let fresh = self.fresh();
        let number = *self.numbers.entry(place.group.clone()).or_insert(fresh);
        let empty = || Group { name: place.group.clone(), waiting: 0, round: BTreeMap::new() };
        let group = self.groups.entry(number).or_insert_with(empty);
        if group.waiting == 0 {
            self.index.add((self.reach)(&place.group), number);
        }
        group.waiting += 1;
        let empty = || Turn { stamp, waiting: 0, queues: BTreeMap::new() };
        let turn = self.turns.entry(place.key.clone()).or_insert_with(empty);
        turn.waiting += 1;
        turn.stamp = turn.stamp.min(stamp);
        let own = own.min(turn.stamp);
        let queue = turn.queues.entry(number).or_insert_with(|| {
            group.round.insert(own, place.key.clone());
            Queue { stamp: own, calls: BTreeSet::new() }
        });
        if owed {
            group.restamp(queue, queue.stamp.min(own));
        }
        queue.calls.insert((place.arrived, place.ticket));
        self.places.insert(place.ticket, place);
    }

    /// Takes a waiter out, and says its queue's stamp; with its last waiter a key or a group goes too.
    fn unlink(&mut self, ticket: TicketId) -> Option<(Place<K, G>, u64)> {
        let place = self.places.remove(&ticket)?;
        let number = *self.numbers.get(&place.group)?;
        let turn = self.turns.get_mut(&place.key)?;
        let group = self.groups.get_mut(&number)?;
        let queue = turn.queues.get_mut(&number)?;
        let stamp = queue.stamp;
        queue.calls.remove(&(place.arrived, ticket));
        if queue.calls.is_empty() {
            turn.queues.remove(&number);
            group.round.remove(&stamp);
        }
        turn.waiting -= 1;
        if turn.waiting == 0 {
            self.turns.remove(&place.key);
        }
        group.waiting -= 1;
        if group.waiting == 0 {
            self.groups.remove(&number);
            self.numbers.remove(&place.group);
            self.index.remove((self.reach)(&place.group), number);
        }
        Some((place, stamp))
    }
}

#[cfg(test)]
mod tests;
