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
