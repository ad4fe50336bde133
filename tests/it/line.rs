//! The waiting line over random histories: against one that scans a plain list, and against what it promises.

use claude_relay::domain::line::{Bounds, Full, Line, Reach, Served, TicketId};
use proptest::prelude::*;
use std::collections::BTreeMap;

const KEYS: u8 = 4;
const GROUPS: u8 = 4;
const BOUNDS: Bounds = Bounds { per_key: 5, total: 12 };

type Place = claude_relay::domain::line::Place<u8, u8>;

/// What is done to a line. A `usize` chooses among what is there, modulo how many.
#[derive(Debug, Clone)]
enum Step {
    /// By a key, in a group, so many arrival numbers late: numbers may come out of order, and twice.
    Join(u8, u8, u64),
    Leave(usize),
    /// Ask who is next among these groups, a bit each, and serve that one.
    Serve(u8),
    /// Serve one whose turn it may not be.
    ServeAnyway(usize),
    PutBack(usize),
    Regroup(usize, u8),
}

fn history() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..KEYS, 0..GROUPS, 0..3_u64).prop_map(|(key, group, late)| Step::Join(key, group, late)),
        1 => any::<usize>().prop_map(Step::Leave),
        6 => (0..1_u8 << GROUPS).prop_map(Step::Serve),
        1 => any::<usize>().prop_map(Step::ServeAnyway),
        2 => any::<usize>().prop_map(Step::PutBack),
        2 => (any::<usize>(), 0..GROUPS).prop_map(|(at, group)| Step::Regroup(at, group)),
    ];
    prop::collection::vec(step, 1..150)
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() }
}

/// What came of a step.
enum Event<'a> {
    Joined(&'a Place),
    Next(u8, Option<TicketId>),
    Served(&'a Place),
    Back(&'a Place),
    Over,
}

fn open(place: &Place, groups: u8) -> bool {
    groups & (1 << place.group) != 0
}

/// Plays a history, keeps its own list of who waits, and shows `see` each event with the list after it.
fn play(history: &[Step], mut see: impl FnMut(Event, &[Place])) {
    let mut line = Line::new(BOUNDS, |_| Reach::Anywhere);
    let (mut waiting, mut out, mut joined) = (Vec::<Place>::new(), Vec::<Served<u8, u8>>::new(), 0_u64);
    for step in history {
        let chosen = |at: usize| at.checked_rem(waiting.len());
        let mut serve = None;
        match *step {
            Step::Join(key, group, late) => {
                joined += 1;
                let place = Place { ticket: TicketId(joined), key, group, arrived: joined.saturating_sub(late) };
                let full = if waiting.iter().filter(|p| p.key == key).count() >= BOUNDS.per_key {
                    Err(Full::Key)
                } else if waiting.len() >= BOUNDS.total {
                    Err(Full::Total)
                } else {
                    Ok(())
                };
                assert_eq!((line.room(&key), line.join(place.clone())), (full, full));
                if full.is_ok() {
                    waiting.push(place.clone());
                    see(Event::Joined(&place), &waiting);
                }
            }
            Step::Leave(at) => {
                if let Some(at) = chosen(at) {
                    let place = waiting.remove(at);
                    assert_eq!(line.leave(place.ticket), Some(place));
                }
            }
            Step::Serve(groups) => {
                let mut asked = 0;
                let next = line.next(|group| (asked += 1, groups & (1 << group) != 0).1);
                assert_eq!(asked, line.groups().count(), "each group is asked about once");
                see(Event::Next(groups, next), &waiting);
                serve = next.map(|next| waiting.iter().position(|p| p.ticket == next).expect("it waits"));
            }
            Step::ServeAnyway(at) => serve = chosen(at),
            Step::PutBack(at) => {
                if let Some(at) = at.checked_rem(out.len()) {
                    let served = out.remove(at);
                    let place = served.place.clone();
                    line.put_back(served);
                    waiting.push(place.clone());
                    see(Event::Back(&place), &waiting);
                }
            }
            Step::Regroup(at, group) => {
                if let Some(at) = chosen(at) {
                    waiting[at].group = group;
                    assert!(line.regroup(waiting[at].ticket, group));
                }
            }
        }
        if let Some(at) = serve {
            let place = waiting.remove(at);
            let served = line.serve(place.ticket, |_| true).expect("it waits");
            assert_eq!(served.place, place);
            assert!(line.serve(place.ticket, |_| true).is_none() && line.leave(place.ticket).is_none(), "served once");
            out.push(served);
            see(Event::Served(&place), &waiting);
        }
        see(Event::Over, &waiting);
        assert_same(&line, &waiting);
    }
    for left in (0..waiting.len()).rev() {
        let next = line.next(|_| true).expect("nobody is lost");
        assert!(line.serve(next, |_| true).is_some() && line.len() == left);
    }
    assert!(line.is_empty() && line.next(|_| true).is_none() && line.groups().next().is_none());
}

fn assert_same(line: &Line<u8, u8>, waiting: &[Place]) {
    let mut tickets: Vec<_> = waiting.iter().map(|p| p.ticket).collect();
    tickets.sort();
    assert_eq!(line.tickets().collect::<Vec<_>>(), tickets);
    assert!(tickets.iter().all(|ticket| line.contains(*ticket)));
    assert_eq!((line.len(), line.is_empty()), (waiting.len(), waiting.is_empty()));
    for key in 0..KEYS {
        assert_eq!(line.len_of(&key), waiting.iter().filter(|p| p.key == key).count());
    }
    let mut groups: Vec<_> = line.groups().map(|(group, n)| (*group, n)).collect();
    groups.sort();
    let counted = (0..GROUPS).map(|group| (group, waiting.iter().filter(|p| p.group == group).count()));
    assert_eq!(groups, counted.filter(|(_, n)| *n > 0).collect::<Vec<_>>());
}

/// What a bystander remembers of one key, in events.
#[derive(Default)]
struct Seen {
    /// Since when it has had a waiter all the time.
    waits_since: u64,
    /// When it was served, except where the ticket came back.
    served: BTreeMap<TicketId, u64>,
    /// When a ticket of it last came back.
    back: u64,
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn next_is_what_a_scan_of_a_plain_list_finds(history in history()) {
        let (mut stamps, mut before, mut now) = (BTreeMap::new(), BTreeMap::new(), 0_u64);
        play(&history, |event, waiting| {
            now += 1;
            match event {
                Event::Joined(place) => _ = stamps.entry(place.key).or_insert(now),
                Event::Next(groups, next) => {
                    let can = waiting.iter().filter(|p| open(p, groups));
                    assert_eq!(next, can.min_by_key(|p| (stamps[&p.key], p.arrived, p.ticket)).map(|p| p.ticket));
                }
                Event::Served(place) => _ = before.insert(place.ticket, stamps.insert(place.key, now).unwrap()),
                Event::Back(place) => {
                    let stamp = stamps.entry(place.key).or_insert(now);
                    *stamp = before[&place.ticket].min(*stamp);
                }
                Event::Over => stamps.retain(|key, _| waiting.iter().any(|p| p.key == *key)),
            }
        });
    }

    /// Between two services of one key, every other that waits all along and can be served at the second was
    /// served too. A service that was taken back counts for neither.
    #[test]
    fn nobody_is_passed_over_twice(history in history()) {
        let mut seen: [Seen; KEYS as usize] = Default::default();
        let mut now = 0;
        play(&history, |event, waiting| {
            now += 1;
            match event {
                Event::Next(groups, None) => assert!(!waiting.iter().any(|p| open(p, groups)), "one could be served"),
                Event::Next(groups, Some(next)) => {
                    let chosen = waiting.iter().find(|p| p.ticket == next).unwrap();
                    assert!(open(chosen, groups));
                    let a = &seen[usize::from(chosen.key)];
                    let last = a.served.values().copied().max().filter(|last| a.back < *last);
                    for other in waiting.iter().filter(|p| open(p, groups)) {
                        let b = &seen[usize::from(other.key)];
                        if other.key == chosen.key {
                            assert!((chosen.arrived, next) <= (other.arrived, other.ticket), "the oldest of a key");
                        } else if let Some(last) = last.filter(|last| b.waits_since < *last) {
                            assert!(b.served.values().any(|at| *at > last), "{other:?} was passed over twice");
                        }
                    }
                }
                Event::Served(place) => _ = seen[usize::from(place.key)].served.insert(place.ticket, now),
                Event::Back(place) => {
                    let key = &mut seen[usize::from(place.key)];
                    (key.back, _) = (now, key.served.remove(&place.ticket));
                }
                Event::Joined(_) | Event::Over => {}
            }
            for (key, seen) in (0..KEYS).zip(&mut seen) {
                if !waiting.iter().any(|p| p.key == key) {
                    seen.waits_since = now + 1;
                }
            }
        });
    }
}
