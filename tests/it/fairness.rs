//! Fairness and spread on virtual time, driving the dispatcher as the Scheduler does: a crowd of one key beside
//! twenty light ones, and the share that each of several equal accounts gets.

use chrono::{DateTime, TimeDelta};
use claude_relay::domain::dispatch::{Command, Dispatch, Question, Rules, Scope};
use claude_relay::domain::document::Document;
use claude_relay::domain::health::Health;
use claude_relay::domain::slots::Slots;
use claude_relay::domain::standing::Grant;
use claude_relay::domain::verdict::Want;
use claude_relay::domain::{Account, AccountId, Call, Endpoint, KeyId, Standing, TicketId, Time};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

struct Pool {
    dispatch: Dispatch,
    standings: BTreeMap<AccountId, Standing>,
    freed: Arc<Mutex<Vec<AccountId>>>,
    now: i64,
    /// Calls that run, by the time they end.
    running: BTreeMap<(i64, u64), (Grant, usize)>,
    /// Calls that wait: whose, since when, and how long they will run.
    asked: BTreeMap<TicketId, (usize, i64, i64)>,
    waits: BTreeMap<usize, Vec<i64>>,
    picks: BTreeMap<AccountId, u32>,
    tickets: u64,
}

impl Pool {
    fn new(accounts: &[(u32, u32, &[&str])]) -> Self {
        let freed: Arc<Mutex<Vec<AccountId>>> = Arc::default();
        let mut pool = Self {
            dispatch: Dispatch::new(Rules::default(), 42),
            standings: BTreeMap::new(),
            freed: freed.clone(),
            now: 0,
            running: BTreeMap::new(),
            asked: BTreeMap::new(),
            waits: BTreeMap::new(),
            picks: BTreeMap::new(),
            tickets: 0,
        };
        for (n, (limit, weight, models)) in accounts.iter().enumerate() {
            let mut doc = Document::default();
            let fields = json!({"id": format!("a{n}"), "platform": "claude", "session_token": "t",
                "concurrencyLimit": limit, "weight": weight, "models": models});
            fields.as_object().unwrap().iter().for_each(|(name, value)| doc.set(name, value.clone()));
            let record = Arc::new(Account::parse(&doc).unwrap());
            let (freed, id) = (freed.clone(), record.id.clone());
            let slots = Slots::with_bell(*limit, move || freed.lock().unwrap().push(id.clone()));
            let standing = Standing { record: record.clone(), health: Health::new(n as u64), slots };
            pool.dispatch.put(standing.clone(), pool.time());
            pool.standings.insert(record.id.clone(), standing);
        }
        pool
    }

    fn time(&self) -> Time {
        DateTime::from_timestamp_millis(1_800_000_000_000 + self.now).unwrap()
    }

    fn ask(&mut self, key: usize, model: &str, length: i64) {
        self.tickets += 1;
        let ticket = TicketId(self.tickets);
        let body = json!({ "model": model }).to_string();
        let call = Arc::new(Call::peek(Endpoint::Messages, body.as_bytes()).unwrap());
        let deadline = self.time() + TimeDelta::hours(9);
        let (key_id, tried, scope) = (KeyId::new(format!("k{key}")), Arc::default(), Scope::All);
        let question = Question { ticket, key: key_id, call, session: None, scope, tried, deadline };
        self.asked.insert(ticket, (key, self.now, length));
        self.dispatch.ask(question, self.time());
        self.act();
    }

    fn act(&mut self) {
        while let Some(command) = self.dispatch.command() {
            let Command::Ask { ticket, account, call, bounded } = command else { panic!("refused: {command:?}") };
            let grant = self.standings[&account].grant(Want::of(&call), bounded, self.time()).unwrap();
            let (key, since, length) = self.asked.remove(&ticket).unwrap();
            self.waits.entry(key).or_default().push(self.now - since);
            *self.picks.entry(account).or_default() += 1;
            self.running.insert((self.now + length, ticket.0), (grant, key));
            self.dispatch.granted(ticket, self.time());
        }
    }

    /// Ends the call that ends next; returns whose it was.
    fn end_next(&mut self) -> Option<usize> {
        let ((at, _), (grant, key)) = self.running.pop_first()?;
        self.now = self.now.max(at);
        drop(grant);
        let freed = std::mem::take(&mut *self.freed.lock().unwrap());
        freed.iter().for_each(|id| self.dispatch.freed(id, self.time()));
        self.act();
        Some(key)
    }
}

/// Twenty light keys that each have one call after the other, with or without a key that brings a thousand at once:
/// the light keys' waits at the 95th percentile, milliseconds.
fn light_waits(heavy: bool, accounts: &[(u32, u32, &[&str])], seed: u64) -> Vec<i64> {
    let mut pool = Pool::new(accounts);
    let mut dice = seed;
    let mut length = move || {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        10 + i64::try_from((dice >> 33) % 1_990).unwrap()
    };
    let model = |key: usize| if key.is_multiple_of(2) { "m" } else { "n" };
    if heavy {
        (0..1_000).for_each(|n| pool.ask(20, model(n), length()));
    }
    (0..20).for_each(|key| pool.ask(key, model(key), length()));
    for _ in 0..4_000 {
        match pool.end_next() {
            Some(key) if key < 20 => pool.ask(key, model(key), length()),
            // The crowd does not thin out.
            Some(_) => pool.ask(20, "m", length()),
            None => break,
        }
    }
    let p95 = |mut waits: Vec<i64>| {
        waits.sort_unstable();
        waits[waits.len() * 95 / 100]
    };
    (0..20).map(|key| p95(pool.waits[&key].clone())).collect()
}

#[test]
fn a_thousand_calls_of_one_key_do_not_double_the_wait_of_another() {
    let (both, m, n): (&[&str], &[&str], &[&str]) = (&["m", "n"], &["m"], &["n"]);
    let shared = [(1, 100, both), (3, 100, both), (2, 100, m)];
    let apart = [(3, 100, m), (2, 100, n), (1, 100, m), (1, 100, n)];
    for (how, accounts) in [("some accounts serve both models", &shared[..]), ("none serves both", &apart[..])] {
        for seed in [7, 77, 777] {
            let (alone, beside) = (light_waits(false, accounts, seed), light_waits(true, accounts, seed));
            let worst = alone.iter().zip(&beside).map(|(alone, beside)| beside * 100 / alone).max().unwrap();
            println!(
                "{how}, seed {seed}: p95 wait of 20 light keys beside 1,000 calls at once is at most {worst} % of alone"
            );
            for (key, (alone, beside)) in alone.iter().zip(&beside).enumerate() {
                assert!(*beside <= 2 * alone, "light key {key} waits {beside} ms, alone {alone}");
            }
        }
    }
}

#[test]
fn who_waits_for_one_model_does_not_block_another() {
    let mut pool = Pool::new(&[(1, 100, &["m"]), (1, 100, &["n"])]);
    (0..50).for_each(|key| pool.ask(key, "m", 1_000_000));
    pool.ask(99, "n", 10);
    assert_eq!(pool.waits[&99], [0]);
}

#[test]
fn equal_accounts_share_evenly_and_unequal_ones_by_weight() {
    for n in [3_u32, 8, 20, 100] {
        let mut pool = Pool::new(&vec![(5, 100, &[][..]); n as usize]);
        for _ in 0..n * 100 {
            pool.ask(0, "m", 1);
            pool.end_next();
        }
        let (one_by_one, most) = (pool.picks.values().min().unwrap(), pool.picks.values().max().unwrap());
        println!("{n} equal accounts, one call after the other: {one_by_one} to {most}, 100 would be even");
        assert!(most - one_by_one <= if n <= 8 { 2 } else { 8 });

        let mut pool = Pool::new(&vec![(5, 100, &[][..]); n as usize]);
        (0..n * 5).for_each(|_| pool.ask(0, "m", 1_000));
        assert!(pool.picks.len() == n as usize && pool.picks.values().all(|picks| *picks == 5), "all at once");
        let mut pool = Pool::new(&vec![(5, 100, &[][..]); n as usize]);
        (0..n * 2).for_each(|_| pool.ask(0, "m", 1_000));
        let (least, most) = (pool.picks.values().min().unwrap(), pool.picks.values().max().unwrap());
        println!("{n} equal accounts, {} calls at once: {least} to {most} of 2", n * 2);
        assert!(*most <= 3);
    }
    let mut pool = Pool::new(&[(9, 100, &[]), (9, 200, &[]), (9, 400, &[])]);
    for _ in 0..7_000 {
        pool.ask(0, "m", 1);
        pool.end_next();
    }
    let picks: Vec<u32> = pool.picks.values().copied().collect();
    assert!(picks.iter().zip([1_000_u32, 2_000, 4_000]).all(|(n, fair)| n.abs_diff(fair) <= 10), "{picks:?}");
}
