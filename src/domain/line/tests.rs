//! The line's rules, a few waiters each.

use super::*;
use crate::domain::AccountId;
use std::sync::Arc;

type Named = Line<char, char>;

/// One waiter a word: key, group and ticket; they arrive in the order of their tickets.
fn line(words: &str) -> Named {
    let mut line = Line::new(Bounds { per_key: 9, total: 99 }, |_| Reach::Anywhere);
    words.split_whitespace().for_each(|word| join(&mut line, word).unwrap());
    line
}

fn join(line: &mut Named, word: &str) -> Result<(), Full> {
    let (key, group) = (word.as_bytes()[0] as char, word.as_bytes()[1] as char);
    let arrived = word[2..].parse().unwrap();
    line.join(Place { ticket: TicketId(arrived), key, group, arrived })
}

fn serve(line: &mut Named, open: &str) -> Option<Served<char, char>> {
    let next = line.next(|group| open.contains(*group))?;
    line.serve(next, |group| open.contains(*group))
}

/// The tickets in the order served, while only these groups can be.
fn drain(line: &mut Named, open: &str) -> Vec<u64> {
    std::iter::from_fn(|| serve(line, open)).map(|served| served.place.ticket.0).collect()
}

#[test]
fn keys_take_turns_and_each_goes_by_age_whatever_the_group() {
    assert_eq!(drain(&mut line("Ax1 Ay2 Ax3 Bx4 By5 Cy6"), "xy"), [1, 4, 6, 2, 5, 3]);
    assert_eq!(drain(&mut line("Ax1 By2 By3 Cy4 Ay5"), "y"), [5, 2, 4, 3], "A's turn goes to what can be served");
}

#[test]
fn a_busy_group_blocks_nobody_and_its_key_is_first_when_it_comes_free() {
    let mut line = line("Ax1 By2 By3 Cy4");
    assert_eq!((line.next(|_| false), line.next(|group| *group == 'y')), (None, Some(TicketId(2))));
    assert_eq!(drain(&mut line, "y"), [2, 4, 3]);
    join(&mut line, "By5").unwrap();
    assert_eq!(drain(&mut line, "xy"), [1, 5], "passed over thrice, A is first still");
}

/// A is served of y again and again, which takes nothing from those who wait for x: its turn there comes.
#[test]
fn what_a_key_has_of_one_group_is_not_held_against_it_in_another() {
    let mut line = line("Ax1 Bx2 Cx3 Ay4");
    let mut order = Vec::new();
    for n in 5.. {
        serve(&mut line, "y").unwrap();
        join(&mut line, &format!("Ay{n}")).unwrap();
        let Some(served) = serve(&mut line, "x") else { break };
        order.push(served.place.key);
        if n < 9 {
            join(&mut line, &format!("{}x{}", served.place.key, 100 + n)).unwrap();
        }
    }
    assert_eq!(order.iter().collect::<String>(), "ABCABCA");
}

#[test]
fn a_key_that_comes_back_joins_at_the_end() {
    let mut line = line("Ax1 Bx2 Bx3 Cx4");
    assert_eq!(line.leave(TicketId(1)).map(|place| place.key), Some('A'));
    assert_eq!(line.leave(TicketId(1)), None);
    join(&mut line, "Ax5").unwrap();
    line.leave(TicketId(2));
    assert_eq!(drain(&mut line, "x"), [3, 4, 5], "B lost a call, not its turn; A lost both");
}

#[test]
fn put_back_gives_place_and_turn_back() {
    let mut line = line("Ax1 Ax2 Bx3 Bx4");
    let first = serve(&mut line, "x").unwrap();
    serve(&mut line, "x");
    line.put_back(first);
    assert_eq!(drain(&mut line, "x"), [1, 4, 2], "before all others, and that used the turn");
    for newest_first in [false, true] {
        let mut line = self::line("Ax1 Ax2 By3");
        let mut both = vec![serve(&mut line, "x"), serve(&mut line, "x")];
        both.rotate_left(usize::from(newest_first));
        both.into_iter().flatten().for_each(|served| line.put_back(served));
        assert_eq!(drain(&mut line, "xy"), [1, 3, 2], "the older of the two turns, once");
    }
}

#[test]
fn bounds_hold_for_joining_but_not_for_coming_back() {
    let mut line = Line::new(Bounds { per_key: 1, total: 2 }, |_| Reach::Anywhere);
    join(&mut line, "Ax1").unwrap();
    assert_eq!(join(&mut line, "Ay2"), Err(Full::Key));
    let served = serve(&mut line, "x").unwrap();
    assert!(line.is_empty() && join(&mut line, "Ax3").is_ok() && join(&mut line, "Bx4").is_ok());
    line.put_back(served);
    assert_eq!((line.len(), line.len_of(&'A'), line.len_of(&'C')), (3, 2, 0));
    assert_eq!((line.room(&'A'), line.room(&'C')), (Err(Full::Key), Err(Full::Total)));
}

#[test]
fn regroup_keeps_age_and_turn_and_groups_are_listed_by_creation() {
    let mut line = line("Az1 Bx2 Ay3 Bz4");
    assert!(line.regroup(TicketId(1), 'y') && !line.regroup(TicketId(9), 'y'));
    assert_eq!(line.groups().collect::<Vec<_>>(), [(&'z', 1), (&'x', 1), (&'y', 2)]);
    assert_eq!(line.tickets().map(|t| t.0).collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(line.contains(TicketId(4)) && line.leave(TicketId(4)).is_some() && !line.contains(TicketId(4)));
    join(&mut line, "Cz5").unwrap();
    assert_eq!(line.groups().map(|(group, _)| group).collect::<String>(), "xyz", "z is new again");
    assert_eq!(drain(&mut line, "xyz"), [1, 2, 5, 3]);
    let mut line = self::line("Ax1 Bx2 By1");
    assert_eq!((line.len(), line.len_of(&'A'), drain(&mut line, "xy")), (2, 0, vec![1, 2]), "a ticket used twice");
}

/// Calls that waited for one account alone and may go anywhere from now on are no claim to the turns of others.
#[test]
fn who_is_let_go_anywhere_takes_its_keys_turn_and_no_more() {
    let mut line = line("Ah1 Ah2 Ah3 Ah4 Bx5 Cx6");
    let mut order = Vec::new();
    for ticket in 1..=4 {
        assert!(line.widen(TicketId(ticket), 'x'));
        order.push(serve(&mut line, "x").unwrap().place.key);
    }
    order.extend(drain(&mut line, "x").into_iter().map(|_| '.'));
    assert_eq!(order.iter().collect::<String>(), "ABCA..", "A's turn is as old as its first call, once");
}

/// A group is found by the accounts that it reaches, and by no other.
#[test]
fn groups_are_found_by_what_could_serve_them() {
    type Named = (Vec<AccountId>, Vec<Arc<str>>);
    fn reach(group: &Named) -> Reach<'_> {
        match (group.0.is_empty(), group.1.is_empty()) {
            (true, true) => Reach::Anywhere,
            _ => Reach::Within(&group.0, &group.1),
        }
    }
    let account = |id: &str, group: Option<&str>| {
        let mut doc = crate::domain::document::Document::default();
        doc.set("id", id);
        doc.set("platform", "claude");
        group.into_iter().for_each(|group| doc.set("group", group));
        Account::parse(&doc).unwrap()
    };
    let named = |accounts: &[&str], groups: &[&str]| -> Named {
        let accounts = accounts.iter().map(|a| AccountId::parse(a).unwrap()).collect();
        (accounts, groups.iter().map(|g| Arc::from(*g)).collect())
    };
    let mut line = Line::<char, Named>::new(Bounds { per_key: 9, total: 99 }, reach);
    let groups = [named(&[], &[]), named(&["a"], &[]), named(&["b"], &["g"]), named(&[], &["g", "h"])];
    for (n, group) in (1..).zip(&groups) {
        let place = |ticket| Place { ticket: TicketId(ticket), key: 'A', group: group.clone(), arrived: n };
        line.join(place(n)).unwrap();
        line.join(place(n + 10)).unwrap();
    }
    let (a, b, of_g, other) =
        (account("a", None), account("b", Some("h")), account("c", Some("g")), account("d", None));
    let at = |line: &Line<_, _>, account| line.groups_at(account).count();
    assert_eq!([&a, &b, &of_g, &other].map(|account| at(&line, account)), [2, 3, 3, 1]);
    assert_eq!(line.next_at(&of_g, |group| !group.1.is_empty()), Some(TicketId(3)));
    [2, 3, 4, 12, 13].into_iter().for_each(|ticket| _ = line.leave(TicketId(ticket)));
    assert_eq!([&a, &b, &of_g].map(|account| at(&line, account)), [1, 2, 2]);
    [1, 11, 14].into_iter().for_each(|ticket| _ = line.leave(TicketId(ticket)));
    assert_eq!([&a, &b, &of_g].map(|account| at(&line, account)), [0, 0, 0]);
    assert!(line.index.is_empty());
}
