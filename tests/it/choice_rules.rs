//! Who is chosen, over random histories of a pool: held against every account's verdict, one by one, after every
//! event. The chooser keeps tiers of whom it believes able; the verdicts know nothing of those.

use crate::health_rules::{Came, came, config};
use crate::pool::{Pool, account, groups, id, models, ms};
use chrono::TimeDelta;
use claude_relay::domain::account::Models;
use claude_relay::domain::dispatch::{Explained, Question, Rules, Scope, Why};
use claude_relay::domain::selection::{Candidate, Quality, rank, share};
use claude_relay::domain::verdict::Code;
use claude_relay::domain::{Account, Family, TicketId};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

const MODELS: [&str; 5] = ["m0", "claude-opus-9", "claude-sonnet-9", "zzz", "some-opus"];

/// What an operator may change of an account.
#[derive(Debug, Clone)]
enum Edit {
    Priority(i64),
    Weight(u32),
    Group(Option<u8>),
    Models(u8),
    Limit(u32),
    Active(bool),
    Schedulable(bool),
    Draining(bool),
    Expires(Option<i64>),
}

#[derive(Debug, Clone)]
enum Step {
    /// A call, by model and scope; `false` may not wait.
    Ask(usize, usize, bool),
    End(usize),
    Leave(usize),
    Edit(u8, Edit),
    Came(u8, Came),
    Pass(i64),
    Retire(u8),
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        (0..3_i64).prop_map(Edit::Priority),
        prop::sample::select(vec![1, 50, 100, 200]).prop_map(Edit::Weight),
        prop::option::of(0..2_u8).prop_map(Edit::Group),
        (0..6_u8).prop_map(Edit::Models),
        (1..4_u32).prop_map(Edit::Limit),
        any::<bool>().prop_map(Edit::Active),
        any::<bool>().prop_map(Edit::Schedulable),
        any::<bool>().prop_map(Edit::Draining),
        prop::option::of(-1_000..9_000_i64).prop_map(Edit::Expires),
    ]
}

fn steps(accounts: u8) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => (0..MODELS.len(), 0..5_usize, prop::bool::weighted(0.8)).prop_map(|(m, s, wait)| Step::Ask(m, s, wait)),
        5 => any::<usize>().prop_map(Step::End),
        1 => any::<usize>().prop_map(Step::Leave),
        4 => (0..accounts, edit()).prop_map(|(a, edit)| Step::Edit(a, edit)),
        6 => (0..accounts, came()).prop_map(|(a, came)| Step::Came(a, came)),
        3 => (0..9_000_i64).prop_map(Step::Pass),
        1 => (0..accounts).prop_map(Step::Retire),
    ];
    prop::collection::vec(step, 1..80)
}

fn name(n: u8) -> String {
    format!("a{n:03}")
}

fn scope(n: usize) -> Scope {
    match n {
        0 => Scope::All,
        1 => Scope::only([id("a000"), id("a001"), id("gone")]),
        2 => groups(["g0"]),
        3 => Scope::of([id("a002")], [Arc::from("g1")]),
        _ => groups(["g0", "g1"]),
    }
}

/// What the scope says, once more.
fn admits(n: usize, a: &Account) -> bool {
    let (id, group) = (a.id.as_str(), a.group.as_deref());
    match n {
        0 => true,
        1 => id == "a000" || id == "a001",
        2 => group == Some("g0"),
        3 => id == "a002" || group == Some("g1"),
        _ => group.is_some(),
    }
}

fn change(a: &mut Account, edit: &Edit, now: claude_relay::domain::Time) {
    match *edit {
        Edit::Priority(priority) => a.priority = priority,
        Edit::Weight(weight) => a.weight = weight,
        Edit::Group(group) => a.group = group.map(|n| format!("g{n}")),
        Edit::Models(0 | 1) => a.models = Models::Any,
        Edit::Models(n) => a.models = models(MODELS.into_iter().skip(usize::from(n) - 2).take(2)),
        Edit::Limit(limit) => a.concurrency_limit = limit,
        Edit::Active(on) => a.active = on,
        Edit::Schedulable(on) => a.schedulable = on,
        Edit::Draining(on) => a.draining = on,
        Edit::Expires(after) => a.expires_at = after.map(|t| now + ms(t)),
    }
}

/// A pool with the questions that were asked of it, by model and scope.
struct Played {
    pool: Pool,
    open: BTreeMap<TicketId, (Question, usize, usize)>,
}

impl Played {
    fn new(accounts: u8) -> Self {
        let mut pool = Pool::new(Rules { patience: TimeDelta::zero(), ..Rules::default() });
        pool.policy.breaker_failures = 2;
        (0..accounts).for_each(|n| pool.put(account(&name(n), |a| a.concurrency_limit = 2)));
        Self { pool, open: BTreeMap::new() }
    }

    fn step(&mut self, step: &Step) {
        let before = self.pool.asked.len();
        let pool = &mut self.pool;
        let nth = |at: usize, all: Vec<TicketId>| at.checked_rem(all.len()).map(|n| all[n]);
        let known = |n: &u8| name(*n);
        match step {
            Step::Ask(model, scope, wait) => {
                let mut question = pool.question(MODELS[*model], self::scope(*scope));
                if !wait {
                    question.deadline = pool.now;
                }
                let said = pool.dispatch.explain(&question, pool.now);
                let ticket = pool.ask(question.clone());
                self.open.insert(ticket, (question, *model, *scope));
                let asked = pool.asked.iter().find(|(t, ..)| *t == ticket);
                let told = (said.picked.is_some(), said.why == Why::LastResort, said.why == Why::Refused);
                assert_eq!(told.0, asked.is_some(), "what was said is not what is done: {said:?}");
                assert!(!told.0 || pool.accounts.len() > 8 || asked.map(|(_, a, _)| a) == said.picked.as_ref());
                assert!(asked.is_none_or(|(_, _, bounded)| *bounded == told.1));
                assert_eq!(told.2, pool.refused.contains_key(&ticket), "{said:?}");
                assert_eq!(said.refusal.as_ref(), pool.refused.get(&ticket));
            }
            Step::End(at) => {
                if let Some(ticket) = nth(*at, pool.held.keys().copied().collect()) {
                    pool.end(ticket);
                }
            }
            Step::Leave(at) => {
                if let Some(ticket) = nth(*at, self.waiting()) {
                    self.pool.left(ticket);
                    self.open.remove(&ticket);
                }
            }
            Step::Edit(n, edit) => {
                let old = pool.accounts.get(&id(&known(n))).map(|s| (*s.record).clone());
                let mut record = old.unwrap_or_else(|| account(&known(n), |_| ()));
                change(&mut record, edit, pool.now);
                pool.put(record);
            }
            Step::Came(n, came) => {
                if pool.accounts.contains_key(&id(&known(n))) {
                    pool.outcome(&known(n), came.at(pool.now));
                }
            }
            Step::Pass(time) => pool.pass(ms(*time)),
            Step::Retire(n) => pool.retire(&known(n)),
        }
        assert_eq!(self.pool.busy, 0, "whoever is asked can");
        for (ticket, account, _) in &self.pool.asked[before..] {
            let (record, (_, model, scope)) = (&self.pool.accounts[account].record, &self.open[ticket]);
            assert!(admits(*scope, record) && record.models.upstream_name(MODELS[*model]).is_some(), "{account}");
        }
    }

    /// Who was neither served nor sent away.
    fn waiting(&self) -> Vec<TicketId> {
        let asked = |t: &TicketId| self.pool.asked.iter().any(|(asked, ..)| asked == t);
        self.open.keys().copied().filter(|t| !asked(t) && !self.pool.refused.contains_key(t)).collect()
    }

    fn check(&mut self) {
        let waiting = self.waiting();
        assert_eq!(self.pool.dispatch.waiting(), waiting.len());
        for ticket in waiting {
            let (question, model, scope) = self.open[&ticket].clone();
            let why = self.check_one(question, model, scope);
            assert!(matches!(why, Why::Waits | Why::Refused), "{ticket:?} waits and could be served: {why:?}");
            assert_eq!(why, Why::Waits, "{ticket:?} waits for nothing");
        }
        for (model, scope) in [(0, 0), (1, 2), (2, 3), (3, 0), (4, 4)] {
            let question = self.pool.question(MODELS[model], self::scope(scope));
            self.check_one(question, model, scope);
        }
    }

    /// Holds one choice against the verdicts.
    fn check_one(&mut self, question: Question, model: usize, scope: usize) -> Why {
        let now = self.pool.now;
        let said = self.pool.dispatch.explain(&question, now);
        let within = |e: &&Explained| admits(scope, &e.standing.record);
        assert_eq!(said.accounts.iter().filter(within).count(), said.accounts.len(), "out of its binding");
        let there = self.pool.accounts.values().filter(|s| admits(scope, &s.record)).count();
        assert_eq!(said.accounts.len(), there, "everyone within it is told of");
        let able: Vec<_> = said.accounts.iter().filter(|e| e.verdict.schedulable).collect();
        assert_eq!(said.picked.is_some(), !able.is_empty(), "{said:?}");
        let family = Family::of(MODELS[model]);
        let rank = |e: &&&Explained| {
            let s = &e.standing;
            let quality = Quality { strikes: s.health.strikes(), used: s.health.used(family, now), first_byte: None };
            rank(&Candidate {
                last_resort: e.verdict.last_resort,
                priority: s.record.priority,
                in_use: s.slots.in_use(),
                limit: s.record.concurrency_limit,
                share: share(s.record.weight, quality),
                turn: 0,
            })
        };
        let Some(picked) = &said.picked else {
            let passing = |code| matches!(code, Code::AtCapacity | Code::HalfOpen | Code::SlowStart);
            let busy = |e: &Explained| e.verdict.reasons.iter().filter(|r| r.blocks).all(|r| passing(r.code));
            let waits = said.accounts.iter().any(busy) && question.deadline > now;
            assert_eq!(said.why, if waits { Why::Waits } else { Why::Refused }, "{said:?}");
            return said.why;
        };
        let chosen = able.iter().find(|e| e.standing.record.id == *picked).expect("who is picked can");
        let first = |last_resort| able.iter().filter(move |e| e.verdict.last_resort == last_resort);
        assert_eq!(chosen.verdict.last_resort, first(false).next().is_none(), "a last resort is the last");
        let tier = first(chosen.verdict.last_resort).map(|e| e.standing.record.priority).min();
        let few = said.accounts.len() <= 8;
        if !chosen.verdict.last_resort || few {
            assert_eq!(Some(chosen.standing.record.priority), tier, "the first tier that can: {said:?}");
        }
        // The trial of a breaker goes first, whatever the others bear.
        let on_trial = |e: &&&Explained| e.standing.health.is_open() && !e.verdict.last_resort;
        if few && !on_trial(&chosen) && !able.iter().any(|e| on_trial(&e)) {
            assert!(able.iter().all(|other| rank(&chosen) <= rank(&other)), "{picked} is not the best of {said:?}");
        }
        said.why
    }
}

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn whoever_is_chosen_is_the_best_of_those_who_can(accounts in 1..=8_u8, steps in steps(8)) {
        let mut played = Played::new(accounts);
        for step in &steps {
            played.step(step);
            played.check();
        }
    }

    #[test]
    fn a_pool_too_large_to_look_at_keeps_to_the_same_rules(steps in steps(30)) {
        let mut played = Played::new(30);
        for step in &steps {
            played.step(step);
            played.check();
        }
    }
}
