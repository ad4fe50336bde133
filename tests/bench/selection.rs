//! What a choice costs, from the question to the slot that comes back, by the number of accounts: `cargo bench`.
//! It prints a table and asserts nothing. The dispatcher is driven as the Scheduler drives it, on one thread.

use chrono::{DateTime, TimeDelta};
use claude_relay::domain::dispatch::{Command, Dispatch, Question, Rules, Scope};
use claude_relay::domain::document::Document;
use claude_relay::domain::health::{Asked, Attempted, Health, Policy};
use claude_relay::domain::slots::Slots;
use claude_relay::domain::standing::Grant;
use claude_relay::domain::verdict::Want;
use claude_relay::domain::{
    Account, AccountId, Call, Endpoint, KeyId, Limit, Outcome, Session, Standing, TicketId, Time,
};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

struct Pool {
    dispatch: Dispatch,
    standings: HashMap<AccountId, Standing>,
    freed: Arc<Mutex<Vec<AccountId>>>,
    now: Time,
    tickets: u64,
}

impl Pool {
    /// `n` accounts; the given share of a hundred is out for hours.
    fn new(n: usize, out: usize, fields: impl Fn(usize) -> Value) -> Self {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let (dispatch, freed) = (Dispatch::new(Rules::default(), 1), Arc::<Mutex<Vec<AccountId>>>::default());
        let mut pool = Self { dispatch, standings: HashMap::new(), freed, now, tickets: 0 };
        for i in 0..n {
            let mut doc = Document::default();
            let base =
                json!({"id": format!("a{i}"), "platform": "claude", "session_token": "t", "concurrencyLimit": 5});
            for part in [base, fields(i)] {
                part.as_object().unwrap().iter().for_each(|(name, value)| doc.set(name, value.clone()));
            }
            let record = Arc::new(Account::parse(&doc).unwrap());
            let (freed, id) = (pool.freed.clone(), record.id.clone());
            let slots = Slots::with_bell(5, move || freed.lock().unwrap().push(id.clone()));
            let mut health = Health::new(i as u64);
            if i * 100 < n * out {
                let until = Some(now + TimeDelta::hours(5));
                let outcome = Outcome::RateLimited { limit: Limit::Burst, until, header: None };
                health.after(
                    outcome,
                    Attempted { asked: Asked::Message(None), granted: now, successes: 0 },
                    now,
                    &Policy::default(),
                );
            }
            let standing = Standing { record: record.clone(), health, slots };
            pool.dispatch.put(standing.clone(), now);
            pool.standings.insert(record.id.clone(), standing);
        }
        pool
    }

    fn cycle(&mut self, call: &Arc<Call>, scope: &Scope) {
        self.cycle_of(call, scope, None);
    }

    fn cycle_of(&mut self, call: &Arc<Call>, scope: &Scope, session: Option<Session>) {
        self.tickets += 1;
        let (ticket, key) = (TicketId(self.tickets), KeyId::new("k"));
        let (call, scope, tried) = (call.clone(), scope.clone(), Arc::default());
        let deadline = self.now + TimeDelta::seconds(30);
        self.dispatch.ask(Question { ticket, key, call, session, scope, tried, deadline }, self.now);
        while let Some(command) = self.dispatch.command() {
            let Command::Ask { ticket, account, call, bounded } = command else { panic!("{command:?}") };
            let grant = self.standings[&account].grant(Want::of(&call), bounded, self.now).unwrap();
            self.dispatch.granted(ticket, self.now);
            drop(grant);
            for id in std::mem::take(&mut *self.freed.lock().unwrap()) {
                self.dispatch.freed(&id, self.now);
            }
        }
    }

    fn ask(&mut self, call: &Arc<Call>, scope: &Scope) -> Option<Grant> {
        self.tickets += 1;
        let (ticket, key) = (TicketId(self.tickets), KeyId::new(format!("k{}", self.tickets % 50)));
        let (call, scope, tried) = (call.clone(), scope.clone(), Arc::default());
        let deadline = self.now + TimeDelta::seconds(30);
        self.dispatch.ask(Question { ticket, key, call, session: None, scope, tried, deadline }, self.now);
        self.granted()
    }

    fn granted(&mut self) -> Option<Grant> {
        let Command::Ask { ticket, account, call, bounded } = self.dispatch.command()? else { panic!("refused") };
        let grant = self.standings[&account].grant(Want::of(&call), bounded, self.now).unwrap();
        self.dispatch.granted(ticket, self.now);
        Some(grant)
    }

    /// Every slot is taken, and a call waits in each scope: nanoseconds from a slot that comes back to the waiter that
    /// has it, and one more that waits in its place.
    fn measure_waiting(&mut self, call: &Arc<Call>, scopes: &[Scope]) -> (u128, u128) {
        let mut held: Vec<Vec<Grant>> = Vec::new();
        for scope in scopes {
            held.push(std::iter::from_fn(|| self.ask(call, scope)).collect());
        }
        let rounds = 20_000_usize.div_ceil(scopes.len());
        let started = Instant::now();
        for _ in 0..rounds {
            for (scope, held) in scopes.iter().zip(&mut held) {
                drop(held.pop());
                for id in std::mem::take(&mut *self.freed.lock().unwrap()) {
                    self.dispatch.freed(&id, self.now);
                }
                held.insert(0, self.granted().expect("whoever waits is served"));
                assert!(self.ask(call, scope).is_none());
            }
        }
        (started.elapsed().as_nanos() / (rounds * scopes.len()) as u128, 0)
    }

    /// The same of calls in sessions, each of them new or each of them known.
    fn measure_sessions(&mut self, call: &Arc<Call>, new: bool) -> (u128, u128) {
        let session = |n: u64| Some(Session(n.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        for n in 0..20_000 {
            self.cycle_of(call, &Scope::All, session(n % 1_000));
        }
        let started = Instant::now();
        for n in 0..20_000 {
            self.cycle_of(call, &Scope::All, session(if new { 1_000 + n } else { n % 1_000 }));
        }
        (started.elapsed().as_nanos() / 20_000, 0)
    }

    /// Every slot is taken and calls of these kinds wait: nanoseconds of a report without news, and of an edit.
    fn measure_news(&mut self, calls: &[Arc<Call>], scopes: &[Scope]) -> (u128, u128) {
        let mut held = Vec::new();
        for (call, scope) in calls.iter().flat_map(|call| scopes.iter().map(move |scope| (call, scope))) {
            held.extend(std::iter::from_fn(|| self.ask(call, scope)));
        }
        let ids: Vec<AccountId> = self.standings.keys().take(500).cloned().collect();
        let mut round = |edit: bool| {
            let started = Instant::now();
            for id in &ids {
                let standing = self.standings.get_mut(id).unwrap();
                if edit {
                    standing.record =
                        Arc::new(Account { weight: standing.record.weight + 1, ..(*standing.record).clone() });
                }
                self.dispatch.put(standing.clone(), self.now);
            }
            started.elapsed().as_nanos() / ids.len() as u128
        };
        let report = round(false);
        (report, round(true))
    }

    /// Nanoseconds of one cycle, the median of several rounds; and of the first, which makes its class.
    fn measure(&mut self, calls: &[Arc<Call>], scopes: &[Scope]) -> (u128, u128) {
        let started = Instant::now();
        self.cycle(&calls[0], &scopes[0]);
        let first = started.elapsed().as_nanos();
        for i in 0..10_000 {
            self.cycle(&calls[i % calls.len()], &scopes[i % scopes.len()]);
        }
        let mut rounds: Vec<u128> = (0..7)
            .map(|_| {
                let started = Instant::now();
                for i in 0..20_000 {
                    self.cycle(&calls[i % calls.len()], &scopes[i % scopes.len()]);
                }
                started.elapsed().as_nanos() / 20_000
            })
            .collect();
        rounds.sort_unstable();
        (rounds[3], first)
    }
}

fn call(model: &str) -> Arc<Call> {
    let body = json!({ "model": model }).to_string();
    Arc::new(Call::peek(Endpoint::Messages, body.as_bytes()).unwrap())
}

fn main() {
    println!("{:>9}  {:>26} {:>12} {:>14}", "accounts", "", "ns a choice", "first, us");
    let line = |n: usize, what: &str, (each, first): (u128, u128)| {
        println!("{n:>9}  {what:>26} {each:>12} {:>14}", first / 1_000);
    };
    for n in [10, 100, 1_000, 10_000] {
        let (calls, all) = ([call("m")], [Scope::All]);
        line(n, "all free", Pool::new(n, 0, |_| json!({})).measure(&calls, &all));
        line(n, "99 % out", Pool::new(n, 99.min(100 - 100 / n), |_| json!({})).measure(&calls, &all));
        let groups = n.min(1_000);
        let grouped = |i: usize| json!({"group": format!("g{}", i % groups)});
        let scopes: Vec<_> = (0..groups).map(|g| Scope::of([], [Arc::from(format!("g{g}"))])).collect();
        line(n, "1,000 groups", Pool::new(n, 0, grouped).measure(&calls, &scopes));
        line(n, "a call waits in each", Pool::new(n, 0, grouped).measure_waiting(&calls[0], &scopes));
        let models =
            |i: usize| json!({"models": (0..25).map(|m| format!("m{}", (i * 5 + m) % 50)).collect::<Vec<_>>()});
        let fifty: Vec<_> = (0..50).map(|m| call(&format!("m{m}"))).collect();
        line(n, "50 models", Pool::new(n, 0, models).measure(&fifty, &all));
        line(n, "known sessions", Pool::new(n, 0, |_| json!({})).measure_sessions(&calls[0], false));
        line(n, "new sessions", Pool::new(n, 0, |_| json!({})).measure_sessions(&calls[0], true));
        let (report, edit) = Pool::new(n, 0, models).measure_news(&fifty, &all);
        line(n, "a report, 50 models wait", (report, 0));
        line(n, "an edit, 50 models wait", (edit, 0));
        let (report, edit) = Pool::new(n, 0, grouped).measure_news(&calls, &scopes);
        line(n, "a report, each group waits", (report, 0));
        line(n, "an edit, each group waits", (edit, 0));
        let both = |i: usize| {
            let mut fields = models(i);
            fields["group"] = json!(format!("g{}", i % groups));
            fields
        };
        // Of a group's few accounts not every one has every model: those that all have.
        let had: Vec<_> = (0..groups).map(|g| call(&format!("m{}", g * 5 % 50))).collect();
        line(n, "both", Pool::new(n, 0, both).measure(&had, &scopes));
    }
}
