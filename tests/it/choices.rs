//! Choices one by one: stories of homes, tries and waits that random histories tell too seldom.

use crate::pool::{FAILED, Pool, TimeDelta, account, id, models, ms};
use claude_relay::domain::account::Models;
use claude_relay::domain::dispatch::{Question, Rules, Scope, Why};
use claude_relay::domain::line::Bounds;
use claude_relay::domain::{KeyId, Limit, Outcome, Session, TicketId, Window};
use std::collections::BTreeMap;

const MODELS: [&str; 2] = ["claude-opus", "claude-haiku"];

fn pool() -> Pool {
    Pool::new(Rules::default())
}

fn of_session(pool: &mut Pool, n: u64, model: &str) -> Question {
    let session = Some(Session(n.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
    Question { session, ..pool.question(model, Scope::All) }
}

/// Serves one call of session `n` at once, and says where.
fn served(pool: &mut Pool, n: u64, model: &str) -> String {
    let question = of_session(pool, n, model);
    let ticket = pool.ask(question);
    pool.end(ticket).expect("it was served").to_string()
}

fn opus_limited(pool: &mut Pool, name: &str) {
    let limit = Limit::Window { window: Window::SevenDay, family: Some(claude_relay::domain::Family::Opus) };
    let until = Some(pool.now + TimeDelta::minutes(10));
    pool.outcome(name, Outcome::RateLimited { limit, until, header: None });
}

/// A session that asks for two models, no account of which serves both, is at home twice and stays so.
#[test]
fn a_home_that_does_not_serve_the_model_does_not_unsettle_the_session() {
    let mut pool = pool();
    for n in 0..6 {
        let model = if n % 2 == 0 { MODELS[0] } else { MODELS[1] };
        pool.put(account(&format!("a{n}"), |a| a.models = models([model])));
    }
    for session in 0..20 {
        let first: Vec<_> = MODELS.iter().map(|model| served(&mut pool, session, model)).collect();
        for round in 0..6 {
            let model = round % 2;
            assert_eq!(served(&mut pool, session, MODELS[model]), first[model], "session {session}");
        }
    }
}

/// Out for opus is not out for haiku: the one stays elsewhere, always at the same place, the other at home.
#[test]
fn a_stay_away_is_for_the_family_that_is_out_and_does_not_drift() {
    let mut pool = pool();
    (0..5).for_each(|n| pool.put(account(&format!("a{n}"), |a| a.concurrency_limit = 1)));
    let home = served(&mut pool, 1, "claude-opus");
    opus_limited(&mut pool, &home);
    let away = served(&mut pool, 1, "claude-opus");
    assert_ne!(away, home);
    for _ in 0..3 {
        assert_eq!(served(&mut pool, 1, "claude-haiku"), home);
        assert_eq!(served(&mut pool, 1, "claude-opus"), away);
    }
    // Where it stays is full for once: that moves nothing.
    let holder = Question { scope: Scope::only([id(&away)]), ..pool.question("m", Scope::All) };
    let holder = pool.ask(holder);
    assert_ne!(served(&mut pool, 1, "claude-opus"), away);
    pool.end(holder);
    assert_eq!(served(&mut pool, 1, "claude-opus"), away);
    pool.retire(&home);
    let moved = served(&mut pool, 1, "claude-haiku");
    assert_eq!((served(&mut pool, 1, "claude-haiku"), served(&mut pool, 1, "claude-opus")), (moved.clone(), moved));
}

/// First homes follow the weights, in a small pool as in one of many wards, and one that leaves takes few along.
#[test]
fn first_homes_are_spread_by_weight_in_pools_of_any_size() {
    for accounts in [3_u64, 40, 200] {
        let mut pool = pool();
        let name = |n: u64| format!("a{n:04}");
        let heavy = |n: u64| n.is_multiple_of(3);
        (0..accounts).for_each(|n| pool.put(account(&name(n), |a| a.weight = if heavy(n) { 200 } else { 100 })));
        let sessions = accounts * 60;
        let home = |pool: &mut Pool, n: u64| {
            let question = of_session(pool, n, "m");
            let said = pool.dispatch.explain(&question, pool.now);
            assert_eq!(said.why, Why::Home);
            said.picked.unwrap()
        };
        let homes: Vec<_> = (0..sessions).map(|n| home(&mut pool, n)).collect();
        let mut count = BTreeMap::new();
        homes.iter().for_each(|home| *count.entry(home.to_string()).or_insert(0_u64) += 1);
        let (of_heavy, all) = (count.iter().filter(|(a, _)| heavy(a[1..].parse().unwrap())), sessions);
        let share = of_heavy.map(|(_, n)| n).sum::<u64>() * 1_000 / all;
        assert!((470..=530).contains(&share), "{share} of 1000 with the third that weighs twice, of {accounts}");
        let (least, most) = (count.values().min().unwrap(), count.values().max().unwrap());
        assert!(count.len() as u64 == accounts && *least >= 18 && *most <= 130, "{least} to {most} of {accounts}");
        let gone = name(1);
        pool.retire(&gone);
        let stayed = homes.iter().enumerate().filter(|(n, old)| home(&mut pool, *n as u64) == **old).count() as u64;
        let lost = count[&gone];
        assert!(sessions - stayed <= lost * 3 + accounts, "{} of {sessions} moved with the {lost}", sessions - stayed);
    }
}

/// Of three, one has failed the call and is ejected, one is out and one merely busy: it may wait for that.
#[test]
fn an_ejected_account_that_was_tried_takes_no_prospect_away() {
    let mut pool = pool();
    ["busy", "tried"].into_iter().for_each(|n| pool.put(account(n, |a| a.concurrency_limit = 1)));
    pool.put(account("out", |a| a.active = false));
    (0..5).for_each(|_| pool.outcome("tried", FAILED));
    let question = pool.question("m", Scope::All);
    let holder = pool.ask(question);
    let question = Question { tried: [id("tried")].into(), ..pool.question("m", Scope::All) };
    let ticket = pool.ask(question);
    assert!(!pool.refused.contains_key(&ticket), "{:?}", pool.refused);
    pool.end(holder);
    assert_eq!(pool.held[&ticket].0, id("busy"));
}

fn home_of(pool: &mut Pool, n: u64) -> String {
    served(pool, n, "m")
}

/// The slot of a home that is waited for comes back, is taken by another, and comes back again.
#[test]
fn who_waits_for_its_home_hears_of_every_slot_that_comes_back() {
    let mut pool = pool();
    ["a", "b"].into_iter().for_each(|n| pool.put(account(n, |a| a.concurrency_limit = 1)));
    let home = home_of(&mut pool, 1);
    let at_home = |pool: &mut Pool, key: &str| {
        let question = Question { key: KeyId::new(key), ..pool.question("m", Scope::only([id(&home)])) };
        pool.ask(question)
    };
    let first = at_home(&mut pool, "x");
    // Whose turn it is before the session's.
    let second = at_home(&mut pool, "y");
    let question = of_session(&mut pool, 1, "m");
    let patient = pool.ask(question);
    pool.end(first);
    assert!(pool.held.contains_key(&second) && !pool.held.contains_key(&patient));
    pool.pass(ms(100));
    pool.end(second);
    assert_eq!(pool.held[&patient].0, id(&home));
}

/// There is no room in the line to wait for a home, but another account is free.
#[test]
fn a_full_line_sends_a_session_elsewhere_rather_than_away() {
    let mut pool = Pool::new(Rules { line: Bounds { per_key: 1, total: 1 }, ..Rules::default() });
    ["a", "b"].into_iter().for_each(|n| pool.put(account(n, |a| a.concurrency_limit = 1)));
    let home = home_of(&mut pool, 1);
    let ask = |pool: &mut Pool| {
        let question = pool.question("m", Scope::only([id(&home)]));
        pool.ask(question)
    };
    let (holder, waiter) = (ask(&mut pool), ask(&mut pool));
    assert!(pool.held.contains_key(&holder) && !pool.refused.contains_key(&waiter));
    let question = of_session(&mut pool, 1, "m");
    let ticket = pool.ask(question);
    assert!(pool.held.get(&ticket).is_some_and(|(account, _)| *account != id(&home)), "{:?}", pool.refused);
}

/// A name of ours for opus is opus: the account's limit for that family counts, and no other's does.
#[test]
fn a_mapped_model_is_of_the_family_that_the_upstream_is_asked_for() {
    let mut pool = pool();
    pool.put(account("a", |a| {
        let pairs = [("best", "claude-opus"), ("claude-opus-cheap", "claude-haiku")];
        a.models = Models::Map(pairs.into_iter().map(|(from, to)| (from.to_owned(), to.to_owned())).collect());
    }));
    opus_limited(&mut pool, "a");
    let mut ask = |model| {
        let question = pool.question(model, Scope::All);
        let ticket: TicketId = pool.ask(question);
        pool.held.contains_key(&ticket)
    };
    assert_eq!([ask("best"), ask("claude-opus-cheap")], [false, true]);
}

fn of_key(pool: &mut Pool, key: &str, name: &str) -> TicketId {
    let question = Question { key: KeyId::new(key), ..pool.question("m", Scope::only([id(name)])) };
    pool.ask(question)
}

/// A key whose sessions wait for their home, one after the other in vain, has its turn elsewhere, and no more than that.
#[test]
fn sessions_that_lose_patience_do_not_go_past_everybody() {
    let mut pool = pool();
    ["a", "b"].into_iter().for_each(|n| pool.put(account(n, |a| a.concurrency_limit = 1)));
    let sessions: Vec<u64> = (0..200).filter(|n| home_of(&mut pool, *n) == "a").take(12).collect();
    let mut holder = of_key(&mut pool, "x", "a");
    for session in &sessions {
        let question = Question { key: KeyId::new("heavy"), ..of_session(&mut pool, *session, "m") };
        pool.ask(question);
        pool.pass(ms(100));
    }
    let mut running = of_key(&mut pool, "x", "b");
    let light: Vec<TicketId> = (0..5).map(|n| of_key(&mut pool, &format!("light{n}"), "b")).collect();
    let mut order = String::new();
    for _ in 0..12 {
        pool.pass(ms(200));
        let before = pool.asked.len();
        pool.end(running);
        let [(ticket, account, _)] = &pool.asked[before..] else {
            panic!("one is served: {:?}", &pool.asked[before..])
        };
        assert_eq!(*account, id("b"));
        order.push(if light.contains(ticket) { 'l' } else { 'h' });
        running = *ticket;
    }
    assert!(!order.trim_end_matches('h').contains("hh"), "{order}");
    holder = pool.end(holder).map_or(holder, |_| holder);
    assert!(!pool.held.contains_key(&holder));
}

/// It never comes to a refusal while another account is free: half of a short time is for those.
#[test]
fn a_session_in_a_hurry_is_served_elsewhere_in_time() {
    for wait in [1, 2, 900, 1_500, 3_000] {
        let mut pool = pool();
        ["a", "b"].into_iter().for_each(|n| pool.put(account(n, |a| a.concurrency_limit = 1)));
        let home = home_of(&mut pool, 1);
        of_key(&mut pool, "x", &home);
        let question = Question { deadline: pool.now + ms(wait), ..of_session(&mut pool, 1, "m") };
        let ticket = pool.ask(question);
        pool.pass(ms(wait.min(2_000)));
        assert!(pool.held.get(&ticket).is_some_and(|(at, _)| *at != id(&home)), "{wait} ms: {:?}", pool.refused);
    }
}

/// A session that is first seen while its account is out, or that a burst sent to a backup, comes home.
#[test]
fn a_stand_in_does_not_become_the_home() {
    for full in [false, true] {
        let mut pool = pool();
        pool.put(account("first", |a| (a.priority, a.concurrency_limit) = (1, 1)));
        pool.put(account("backup", |a| a.priority = 2));
        let holder = full.then(|| of_key(&mut pool, "x", "first"));
        if !full {
            let until = Some(pool.now + TimeDelta::seconds(3));
            pool.outcome("first", Outcome::RateLimited { limit: Limit::Burst, until, header: None });
        }
        assert_eq!(served(&mut pool, 1, "m"), "backup");
        holder.into_iter().for_each(|holder| _ = pool.end(holder));
        pool.pass(TimeDelta::seconds(4));
        assert_eq!([0; 3].map(|_| served(&mut pool, 1, "m")), ["first"; 3], "full: {full}");
    }
}

/// So does one whose home does not serve the model, while the account where that would be at home is out.
#[test]
fn a_second_model_stays_where_it_stands_in() {
    let mut pool = pool();
    pool.put(account("opus", |a| a.models = models(["claude-opus"])));
    (0..4).for_each(|n| pool.put(account(&format!("h{n}"), |a| a.models = models(["claude-haiku"]))));
    assert_eq!(served(&mut pool, 1, "claude-opus"), "opus");
    let home = served(&mut pool, 1, "claude-haiku");
    let until = Some(pool.now + TimeDelta::hours(1));
    pool.outcome(&home, Outcome::RateLimited { limit: Limit::Burst, until, header: None });
    let away = served(&mut pool, 1, "claude-haiku");
    assert_ne!(away, home);
    for _ in 0..6 {
        assert_eq!(served(&mut pool, 1, "claude-haiku"), away);
        assert_eq!(served(&mut pool, 1, "claude-opus"), "opus");
    }
    pool.pass(TimeDelta::hours(1));
    assert_eq!(served(&mut pool, 1, "claude-haiku"), home);
}

/// One of two is dead, the other is on its way back: that one takes what it can, and the dead one nothing.
#[test]
fn a_slow_start_is_put_aside_before_an_open_breaker_is() {
    let mut pool = pool();
    ["dead", "slow"].into_iter().for_each(|n| pool.put(account(n, |a| a.concurrency_limit = 4)));
    (0..5).for_each(|_| pool.outcome("slow", FAILED));
    pool.pass(TimeDelta::seconds(2));
    pool.outcome("slow", claude_relay::domain::Outcome::Success { status: 200 });
    (0..5).for_each(|_| pool.outcome("dead", FAILED));
    let asked: Vec<_> = (0..6)
        .map(|_| {
            let question = pool.question("m", Scope::All);
            let ticket = pool.ask(question);
            pool.held.get(&ticket).map(|(at, _)| at.to_string())
        })
        .collect();
    let slow = Some("slow".to_owned());
    assert_eq!(asked, [slow.clone(), slow.clone(), slow.clone(), slow, None, None], "it has four slots");
    assert!(pool.refused.is_empty(), "the other two wait for it");
}

/// When to come back is told by how fast the line moves while somebody waits in it, and by whose turn it is.
#[test]
fn retry_after_is_the_pace_of_the_line() {
    let mut pool = Pool::new(Rules { line: Bounds { per_key: 30, total: 60 }, ..Rules::default() });
    pool.put(account("a", |a| a.concurrency_limit = 1));
    let mut running = of_key(&mut pool, "x", "a");
    let wait = |pool: &mut Pool, n: u64| -> Vec<_> { (0..n).map(|_| of_key(pool, "heavy", "a")).collect() };
    let told = |pool: &mut Pool, ticket: TicketId| pool.refused[&ticket].retry_after(pool.now).unwrap();
    // Nobody waits for an hour: that says nothing of how long a call takes.
    pool.pass(TimeDelta::hours(1));
    wait(&mut pool, 30);
    for _ in 0..20 {
        pool.pass(ms(1_000));
        let before = pool.asked.len();
        pool.end(running);
        running = pool.asked[before].0;
        wait(&mut pool, 1);
    }
    let full = of_key(&mut pool, "heavy", "a");
    let said = told(&mut pool, full);
    assert!((25..=31).contains(&said), "30 calls of a second each: {said}");
    let explained = {
        let question = Question { key: KeyId::new("heavy"), ..pool.question("m", Scope::All) };
        pool.dispatch.explain(&question, pool.now)
    };
    assert_eq!((explained.why, explained.refusal.map(|r| r.code())), (Why::Refused, Some("line_full")));
    let late = Question { key: KeyId::new("y"), deadline: pool.now + ms(500), ..pool.question("m", Scope::All) };
    let late = pool.ask(late);
    pool.pass(ms(500));
    assert_eq!(pool.refused[&late].code(), "wait_timeout");
    let said = told(&mut pool, late);
    assert!((25..=32).contains(&said), "behind 30 others: {said}");
}

/// An edit is learnt by every class that is used again, however many there were since.
#[test]
fn classes_learn_of_edits_of_accounts_that_come_and_go() {
    let mut pool = pool();
    (0..20).for_each(|n| pool.put(account(&format!("a{n}"), |a| a.group = Some(format!("g{}", n % 4)))));
    let scopes: Vec<Scope> = (0..4).map(|g| crate::pool::groups([format!("g{g}").as_str()])).collect();
    let ask = |pool: &mut Pool, scope: &Scope, model: &str| {
        let question = pool.question(model, scope.clone());
        let ticket = pool.ask(question);
        pool.end(ticket).map(|at| at.to_string())
    };
    for round in 0..40_u32 {
        for (n, edits) in [(round % 20, 1), ((round * 7 + 3) % 20, if round % 9 == 8 { 50 } else { 2 })] {
            for edit in 0..edits {
                let (group, priority) = ((n + edit + round) % 4, i64::from((edit + round) % 3));
                pool.put(account(&format!("a{n}"), |a| (a.group, a.priority) = (Some(format!("g{group}")), priority)));
            }
        }
        if round % 5 == 4 {
            pool.retire(&format!("a{}", (round + 1) % 20));
        }
        for (g, scope) in scopes.iter().enumerate() {
            let group = format!("g{g}");
            let able = pool.accounts.values().filter(|s| s.record.group.as_deref() == Some(&group));
            let first = able.clone().map(|s| s.record.priority).min();
            let able: Vec<_> =
                able.filter(|s| Some(s.record.priority) == first).map(|s| s.record.id.to_string()).collect();
            let asked = ask(&mut pool, scope, "m");
            assert_eq!(asked.is_some(), !able.is_empty(), "round {round}, {group}");
            assert!(asked.is_none_or(|at| able.contains(&at)), "round {round}, {group}");
        }
    }
}

/// A burst fills the first tier: a session that a backup took stays there, at once and with its cache, until its own
/// account has room again.
#[test]
fn who_overflows_stays_where_it_was_while_its_home_is_full() {
    let mut pool = pool();
    pool.put(account("first", |a| (a.priority, a.concurrency_limit) = (1, 1)));
    (0..4).for_each(|n| pool.put(account(&format!("b{n}"), |a| a.priority = 2)));
    let holder = of_key(&mut pool, "x", "first");
    let away = served(&mut pool, 1, "m");
    for _ in 0..5 {
        assert_eq!(served(&mut pool, 1, "m"), away);
    }
    pool.end(holder);
    assert_eq!(served(&mut pool, 1, "m"), "first");
    // From now on that has its cache: it is waited for.
    of_key(&mut pool, "x", "first");
    let question = of_session(&mut pool, 1, "m");
    let ticket = pool.ask(question);
    assert!(!pool.held.contains_key(&ticket) && !pool.refused.contains_key(&ticket));
}

/// Calls of two families in one session each have a place of their own while their homes are out.
#[test]
fn a_stay_of_one_family_does_not_end_that_of_another() {
    let mut pool = pool();
    (0..3).for_each(|n| pool.put(account(&format!("o{n}"), |a| a.models = models(["claude-opus"]))));
    (0..3).for_each(|n| pool.put(account(&format!("h{n}"), |a| a.models = models(["claude-haiku"]))));
    let homes = ["claude-opus", "claude-haiku"].map(|model| served(&mut pool, 1, model));
    for home in &homes {
        let until = Some(pool.now + TimeDelta::hours(1));
        pool.outcome(home, Outcome::RateLimited { limit: Limit::Burst, until, header: None });
    }
    let away = ["claude-opus", "claude-haiku"].map(|model| served(&mut pool, 1, model));
    for _ in 0..6 {
        assert_eq!(["claude-opus", "claude-haiku"].map(|model| served(&mut pool, 1, model)), away);
    }
}

/// A retry waits for an account whose breaker holds it back; that another, which it has tried, goes out makes all the
/// difference.
#[test]
fn what_becomes_of_a_tried_account_concerns_who_tried_it() {
    let mut pool = pool();
    ["x", "y"].into_iter().for_each(|n| pool.put(account(n, |_| ())));
    (0..5).for_each(|_| pool.outcome("y", FAILED));
    pool.pass(TimeDelta::seconds(2));
    let trial = of_key(&mut pool, "t", "y");
    let question = Question { tried: [id("x")].into(), ..pool.question("m", Scope::All) };
    let ticket = pool.ask(question);
    assert!(!pool.held.contains_key(&ticket) && !pool.refused.contains_key(&ticket), "y's trial is under way");
    pool.outcome("x", Outcome::CredentialRejected { status: 401 });
    assert_eq!(pool.held.get(&ticket).map(|(at, _)| at), Some(&id("y")));
    pool.end(trial);
}

/// With little traffic too: who is well again is asked at once, and then in its turn, however often it has failed.
#[test]
fn a_recovered_account_is_asked_again_by_the_next_call() {
    for accounts in [3, 20, 100] {
        let mut pool = pool();
        (0..accounts).for_each(|n| pool.put(account(&format!("a{n}"), |_| ())));
        for _ in 0..accounts * 2 {
            let question = pool.question("m", Scope::All);
            let ticket = pool.ask(question);
            pool.end(ticket);
        }
        let failing = id("a1");
        for _ in 0..5 {
            // A client's calls fail on it, and it is picked for each.
            of_key(&mut pool, "x", "a1");
            pool.outcome("a1", FAILED);
        }
        pool.held.clear();
        pool.ring();
        pool.pass(TimeDelta::seconds(2));
        let question = pool.question("m", Scope::All);
        let ticket = pool.ask(question);
        let tried = pool.end(ticket);
        if accounts <= 8 {
            assert_eq!(tried, Some(failing.clone()), "the next call is its trial");
        }
        pool.outcome("a1", claude_relay::domain::Outcome::Success { status: 200 });
        pool.pass(TimeDelta::seconds(30));
        let mut seen = 0;
        for _ in 0..accounts * 10 {
            let question = pool.question("m", Scope::All);
            let ticket = pool.ask(question);
            seen += i32::from(pool.end(ticket) == Some(failing.clone()));
        }
        assert!((4..=16).contains(&seen), "{seen} of ten rounds of {accounts}");
    }
}

/// An account that fails now and then has no more than its share for it.
#[test]
fn a_flaky_account_is_asked_less_and_not_more() {
    for every in [3, 10] {
        let mut pool = pool();
        (0..4).for_each(|n| pool.put(account(&format!("a{n}"), |_| ())));
        let (mut picks, calls) = (0, 2_000);
        for _ in 0..calls {
            let question = pool.question("m", Scope::All);
            let ticket = pool.ask(question);
            let at = pool.end(ticket).expect("it was served");
            pool.pass(ms(20));
            if at == id("a0") {
                picks += 1;
                let outcome = if picks % every == 0 { FAILED } else { Outcome::Success { status: 200 } };
                pool.outcome("a0", outcome);
            }
        }
        let share = picks * 100 / calls;
        assert!((10..=26).contains(&share), "{share} % of the calls of four, failing one of {every}");
    }
}

/// A trial that hangs is load, but not of the kind that keeps the next trial, or a slow start, away.
#[test]
fn a_trial_that_hangs_is_followed_by_another_with_little_traffic_too() {
    let mut pool = pool();
    (0..3).for_each(|n| pool.put(account(&format!("a{n}"), |a| a.concurrency_limit = 4)));
    (0..9).for_each(|_| {
        let question = pool.question("m", Scope::All);
        let ticket = pool.ask(question);
        pool.end(ticket);
    });
    (0..5).for_each(|_| pool.outcome("a0", FAILED));
    pool.pass(TimeDelta::seconds(2));
    let ask = |pool: &mut Pool| {
        let question = pool.question("m", Scope::All);
        let ticket = pool.ask(question);
        (ticket, pool.held[&ticket].0.to_string())
    };
    let (_, hangs) = ask(&mut pool);
    assert_eq!(hangs, "a0", "the trial, which hangs from now on");
    let mut next = None;
    for call in 0..60 {
        pool.pass(ms(200));
        let (ticket, at) = ask(&mut pool);
        if at == "a0" {
            next = Some((call, ticket));
            break;
        }
        pool.end(ticket);
    }
    let (call, trial) = next.expect("another trial is sent");
    assert!((24..=27).contains(&call), "after health.trial, 5 s: call {call}");
    pool.outcome("a0", claude_relay::domain::Outcome::Success { status: 200 });
    pool.end(trial);
    let (_, first) = (0..12).map(|_| ask(&mut pool)).find(|(_, at)| at == "a0").expect("its slow start lets one in");
    assert_eq!(first, "a0");
}

/// A session whose home is full goes to one place meanwhile, and waits for its home but once.
#[test]
fn a_session_whose_home_stays_full_stays_in_one_place() {
    let mut pool = pool();
    (0..4).for_each(|n| pool.put(account(&format!("a{n}"), |a| a.concurrency_limit = 2)));
    let home = served(&mut pool, 1, "m");
    let holders = [0; 2].map(|_| of_key(&mut pool, "x", &home));
    let question = of_session(&mut pool, 1, "m");
    let patient = pool.ask(question);
    assert!(!pool.held.contains_key(&patient));
    pool.pass(TimeDelta::seconds(2));
    let away = pool.end(patient).expect("its patience is over").to_string();
    for _ in 0..5 {
        assert_eq!(served(&mut pool, 1, "m"), away);
    }
    pool.end(holders[0]);
    assert_eq!(served(&mut pool, 1, "m"), home);
}
