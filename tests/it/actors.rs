//! The actors by their messages alone: no HTTP, no socket. Also what a panic in each of them does, and does not.

use crate::failing_store::{Fuse, failing};
use crate::relay_app::eventually;
use claude_relay::actors::account::{Acquire, Busy, Describe, Probe, Reset, Settled};
use claude_relay::actors::front::{Drain, Route};
use claude_relay::actors::ledger::Flush;
use claude_relay::actors::permit::{Granted, Permit};
use claude_relay::actors::reply::{Reply, Ticket, TicketId};
use claude_relay::actors::roster::{Amend, Enlist, Find, Retire};
use claude_relay::actors::scheduler::{Explain, Reported, Scope, Select, Survey, question};
use claude_relay::actors::{Account, Actors, KeyEntry, Parts, ProbeFn, start};
use claude_relay::clock::Clock;
use claude_relay::domain::dispatch::Rules;
use claude_relay::domain::document::Document;
use claude_relay::domain::health::{Asked, Policy};
use claude_relay::domain::retry::RetryBudget;
use claude_relay::domain::standing::PutAside;
use claude_relay::domain::verdict::{Code, Verdict};
use claude_relay::domain::{
    AccountId, Call, Ending, Endpoint, Key, Limit, Outcome, PlainKey, ProbeReport, Reading, Refusal, Time, Usage,
    Window,
};
use claude_relay::store::journal::{JournalHealth, JournalWriter, Settler};
use claude_relay::store::seal::Sealer;
use claude_relay::store::sqlite::SqliteStore;
use claude_relay::store::{Begun, Ended, Stores, UsageFilter};
use futures_util::FutureExt;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

const BOOT: &str = "00112233aabbccdd";

/// Actors over a store of their own, on a clock that stands still until it is moved.
struct Pool {
    actors: Actors,
    stores: Stores,
    accounts_fuse: Fuse,
    usage_fuse: Fuse,
    journal: Arc<JournalHealth>,
    now: Arc<AtomicI64>,
    fatal: Arc<Mutex<Vec<&'static str>>>,
    dir: TempDir,
}

impl Pool {
    async fn start() -> Self {
        Self::start_with(Arc::new(|_, _, _| Box::pin(async { unreachable!("nothing is probed here") }))).await
    }

    async fn start_with(probe: ProbeFn) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sealer = Arc::new(Sealer::open_or_create(dir.path(), None).unwrap());
        let stores = SqliteStore::open(&dir.path().join("relay.db"), sealer).unwrap().into_stores();
        let (accounts_fuse, usage_fuse) = (Fuse::default(), Fuse::default());
        let stores = failing(stores, &accounts_fuse, &usage_fuse);
        let settler = Settler::new(&dir.path().join("journal"), stores.usage.clone(), BOOT).unwrap();
        let journal = Arc::new(JournalHealth::default());
        let (now, fatal) = (Arc::new(AtomicI64::new(1_800_000_000_000)), Arc::new(Mutex::new(Vec::new())));
        let (clock, deaths) = (now.clone(), fatal.clone());
        let parts = Parts {
            stores: stores.clone(),
            settler: Some(Arc::new(tokio::sync::Mutex::new(settler))),
            journal: journal.clone(),
            settle_interval: Duration::from_millis(20),
            clock: Clock::from_fn(move || chrono::DateTime::from_timestamp_millis(clock.load(SeqCst)).unwrap()),
            policy: Policy { jitter: 0, ..Policy::default() },
            dispatch: Rules::default(),
            wait: chrono::TimeDelta::zero(),
            retries: RetryBudget::new(20, 10),
            probe,
            probe_model: "probe-model".to_owned(),
            on_fatal: Arc::new(move |role| deaths.lock().unwrap().push(role)),
        };
        let actors = start(parts).await.unwrap();
        Self { actors, stores, accounts_fuse, usage_fuse, journal, now, fatal, dir }
    }

    fn now(&self) -> Time {
        chrono::DateTime::from_timestamp_millis(self.now.load(SeqCst)).unwrap()
    }

    async fn enlist(&self, id: &str, extra: Value) -> AccountId {
        let mut record = Document::default();
        record.set("id", id);
        record.set("platform", "claude");
        record.set("session_token", "t");
        for (name, value) in extra.as_object().unwrap() {
            record.set(name, value.clone());
        }
        self.actors.roster.addr().send(Enlist { record }).await.unwrap().unwrap();
        AccountId::parse(id).unwrap()
    }

    async fn account(&self, id: &AccountId) -> actix::Addr<Account> {
        self.actors.roster.addr().send(Find { id: id.clone() }).await.unwrap().unwrap()
    }

    async fn select(&self, scope: Scope) -> Result<Permit, Refusal> {
        self.actors.select(call(), scope, &[]).await
    }

    async fn verdict(&self, id: &AccountId) -> Verdict {
        let asked = question(TicketId(u64::MAX), call(), Scope::All, &[], self.now());
        let explained = self.actors.scheduler.addr().send(Explain(asked)).await.unwrap();
        explained.accounts.into_iter().find(|a| a.standing.record.id == *id).unwrap().verdict
    }

    async fn codes(&self, id: &AccountId) -> Vec<Code> {
        self.verdict(id).await.reasons.into_iter().map(|r| r.code).collect()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.actors.stop();
    }
}

fn rate_limited(until: Time) -> Outcome {
    Outcome::RateLimited { limit: Limit::Burst, until: Some(until), header: Some("retry-after") }
}

fn settled(outcome: Outcome, pool: &Pool) -> Settled {
    let granted =
        Granted { at: pool.now(), generation: 0, asked: Asked::Message(None), window: chrono::TimeDelta::seconds(30) };
    Settled { outcome, readings: vec![], granted, trial: None }
}

fn call() -> Arc<Call> {
    Arc::new(Call::peek(Endpoint::Messages, br#"{"model":"m"}"#).unwrap())
}

fn key(extra: Value) -> Arc<KeyEntry> {
    let mut doc = Document::default();
    doc.set("id", "k");
    doc.set("name", "k");
    doc.set("hash", PlainKey::from_random([7; 32]).hash().to_hex());
    for (name, value) in extra.as_object().unwrap() {
        doc.set(name, value.clone());
    }
    KeyEntry::new(Key::parse(&doc).unwrap())
}

#[actix_rt::test]
async fn a_scheduler_selects_an_account_grants_and_a_settlement_shows_in_the_verdict() {
    let pool = Pool::start().await;
    let id = pool.enlist("a", json!({"concurrencyLimit": 2})).await;
    let first = pool.select(Scope::All).await.unwrap();
    let mut second = pool.select(Scope::All).await.unwrap();
    assert_eq!((first.account_id(), pool.actors.outstanding().permits), (&id, 2));
    let refused = pool.select(Scope::All).await.unwrap_err();
    assert!(matches!(refused, Refusal::NoAccount { common: Some(Code::AtCapacity), .. }), "{refused:?}");
    drop(first);
    assert_eq!(pool.actors.outstanding().permits, 1);

    second.settle(rate_limited(pool.now() + chrono::TimeDelta::seconds(17)), vec![], pool.now());
    let account = pool.account(&id).await;
    // A question through the same mailbox comes after the settlement.
    let view = account.send(Describe).await.unwrap();
    assert_eq!(view.verdict(PutAside::default(), pool.now()).reasons[0].code, Code::RateLimitedBurst);
    assert_eq!(pool.codes(&id).await, [Code::RateLimitedBurst]);
    let Err(Busy(verdict)) = account.send(Acquire { call: call(), bounded: false }).await.unwrap() else {
        panic!("granted")
    };
    assert_eq!(verdict.until(), Some(pool.now() + chrono::TimeDelta::seconds(17)));
    pool.now.fetch_add(17_000, SeqCst);
    assert!(account.send(Acquire { call: call(), bounded: false }).await.unwrap().is_ok());
}

#[actix_rt::test]
async fn a_stale_view_costs_a_step_and_never_a_grant_over_the_limit() {
    let pool = Pool::start().await;
    let (a, b) = (pool.enlist("a", json!({"concurrencyLimit": 1})).await, pool.enlist("b", json!({})).await);
    let held = pool.account(&a).await.send(Acquire { call: call(), bounded: false }).await.unwrap().unwrap();
    for _ in 0..5 {
        assert_eq!(pool.select(Scope::All).await.unwrap().account_id(), &b);
    }
    let only = Scope::only([a.clone()]);
    assert!(pool.select(only.clone()).await.is_err(), "a bound call went elsewhere");
    drop(held);
    assert_eq!(pool.select(only).await.unwrap().account_id(), &a);
    assert!(pool.actors.select(call(), Scope::All, &[a, b]).await.is_err(), "tried accounts are tried again");
}

#[actix_rt::test]
async fn a_success_on_a_healthy_account_is_noted_with_its_status_and_time() {
    let pool = Pool::start().await;
    let id = pool.enlist("a", json!({})).await;
    let mut permit = pool.select(Scope::All).await.unwrap();
    permit.settle(Outcome::Success { status: 201 }, vec![], pool.now());
    let view = pool.account(&id).await.send(Describe).await.unwrap();
    assert_eq!(view.standing.slots.vitals().last_success(), Some((pool.now(), 201)));
}

#[actix_rt::test]
async fn a_large_pool_is_sampled_and_no_free_account_is_missed() {
    let pool = Pool::start().await;
    for i in 0..150 {
        pool.enlist(&format!("a{i}"), json!({"concurrencyLimit": 1})).await;
    }
    // All 150 slots are found, though the last few only by looking at everybody; and each account has one.
    let mut held = Vec::new();
    for _ in 0..150 {
        held.push(pool.select(Scope::All).await.unwrap());
    }
    assert!(pool.select(Scope::All).await.is_err());
    drop(held);
    // A better priority wins whatever the dice say.
    let first = pool.enlist("first", json!({"priority": 1})).await;
    for _ in 0..5 {
        assert_eq!(pool.select(Scope::All).await.unwrap().account_id(), &first);
    }
    pool.actors.roster.addr().send(Retire { id: first }).await.unwrap().unwrap();
    let mut seen = std::collections::BTreeMap::new();
    for _ in 0..3_000 {
        *seen.entry(pool.select(Scope::All).await.unwrap().account_id().to_string()).or_insert(0) += 1;
    }
    let (least, most) = (seen.values().min().unwrap(), seen.values().max().unwrap());
    assert!(
        seen.len() == 150 && *least >= 10 && *most <= 30,
        "20 each would be even: {} of 150, {least} to {most}",
        seen.len()
    );
}

#[actix_rt::test]
async fn edits_reach_the_account_and_only_mending_ones_clear_its_health() {
    let pool = Pool::start().await;
    let id = pool.enlist("a", json!({})).await;
    let account = pool.account(&id).await;
    account.send(settled(Outcome::CredentialRejected { status: 401 }, &pool)).await.unwrap();
    let amend = |field: &'static str, value: Value| {
        let mut patch = Document::default();
        patch.set(field, value);
        pool.actors.roster.addr().send(Amend { id: id.clone(), patch })
    };
    amend("name", json!("renamed")).await.unwrap().unwrap();
    assert_eq!(pool.codes(&id).await, [Code::CredentialRejected]);
    amend("session_token", json!("new")).await.unwrap().unwrap();
    assert_eq!(pool.codes(&id).await, []);
    // A late answer to the old credential says nothing about the new one.
    account.send(settled(Outcome::CredentialRejected { status: 401 }, &pool)).await.unwrap();
    assert_eq!(pool.codes(&id).await, []);
    amend("status", json!("disabled")).await.unwrap().unwrap();
    assert_eq!(pool.codes(&id).await, [Code::OperatorDisabled]);
    pool.actors.roster.addr().send(Retire { id: id.clone() }).await.unwrap().unwrap();
    assert!(pool.actors.scheduler.addr().send(Survey).await.unwrap().accounts.is_empty());
    eventually("the actor has ended", || !account.connected()).await;
    assert!(pool.actors.roster.addr().send(Find { id }).await.unwrap().is_none());
}

/// Naming a field mends nothing; switching off and on gives what was guessed another chance; a new credential, or a
/// reset, starts from nothing.
#[actix_rt::test]
async fn what_the_upstream_named_outlives_every_edit_but_that_of_the_credential() {
    let pool = Pool::start().await;
    let id = pool.enlist("a", json!({"reserve": 50})).await;
    let account = pool.account(&id).await;
    let amend = |field: &'static str, value: Value| {
        let mut patch = Document::default();
        patch.set(field, value);
        pool.actors.roster.addr().send(Amend { id: id.clone(), patch })
    };
    let limited = || rate_limited(pool.now() + chrono::TimeDelta::hours(2));
    let used =
        Reading { window: Window::FiveHour, family: None, used: 900, reset: pool.now() + chrono::TimeDelta::hours(3) };
    let both = [Code::RateLimitedBurst, Code::ReserveReached];
    account.send(Settled { readings: vec![used], ..settled(limited(), &pool) }).await.unwrap();
    account.send(settled(Outcome::CredentialRejected { status: 401 }, &pool)).await.unwrap();
    amend("session_token", json!("t")).await.unwrap().unwrap();
    assert_eq!(pool.codes(&id).await, [&[Code::CredentialRejected], &both[..]].concat(), "it is the same one");
    amend("status", json!("disabled")).await.unwrap().unwrap();
    assert_eq!(pool.codes(&id).await.len(), 4);
    amend("status", json!("active")).await.unwrap().unwrap();
    assert_eq!(pool.codes(&id).await, both);
    amend("session_token", json!("new")).await.unwrap().unwrap();
    assert_eq!(pool.codes(&id).await, []);
    // What an answer to the old one tells of its windows says nothing of the new one's.
    account.send(Settled { readings: vec![used], ..settled(limited(), &pool) }).await.unwrap();
    assert_eq!(pool.codes(&id).await, []);
    let fresh = Granted { generation: 1, ..settled(limited(), &pool).granted };
    account.send(Settled { readings: vec![used], granted: fresh, ..settled(limited(), &pool) }).await.unwrap();
    assert_eq!(pool.codes(&id).await, both);
    account.send(Reset).await.unwrap();
    assert_eq!(pool.codes(&id).await, []);
}

/// The report of an account that was retired may be under way when it goes: it must not come back by it.
#[actix_rt::test]
async fn a_late_report_does_not_bring_a_retired_account_back() {
    let pool = Pool::start().await;
    let id = pool.enlist("a", json!({})).await;
    let view = pool.account(&id).await.send(Describe).await.unwrap();
    pool.actors.roster.addr().send(Retire { id }).await.unwrap().unwrap();
    pool.actors.scheduler.addr().send(Reported(view)).await.unwrap();
    assert!(pool.actors.scheduler.addr().send(Survey).await.unwrap().accounts.is_empty());
    let refused = pool.select(Scope::All).await.unwrap_err();
    assert!(matches!(refused, Refusal::NoAccount { common: None, .. }), "{refused:?}");
}

#[actix_rt::test]
async fn those_who_answer_are_looked_at_as_they_reported_last() {
    let pool = Pool::start().await;
    let names = || pool.actors.seats.look(|all| all.map(|s| s.record.name.clone()).collect::<Vec<_>>());
    assert!(names().is_empty());
    let a = pool.enlist("a", json!({"name": "one"})).await;
    pool.enlist("b", json!({"name": "two"})).await;
    assert_eq!(names(), ["one", "two"]);
    let mut patch = Document::default();
    patch.set("name", "renamed");
    pool.actors.roster.addr().send(Amend { id: a.clone(), patch }).await.unwrap().unwrap();
    pool.account(&a).await.send(Describe).await.unwrap();
    assert_eq!(names(), ["renamed", "two"]);
    pool.actors.roster.addr().send(Retire { id: a }).await.unwrap().unwrap();
    assert_eq!(names(), ["two"]);
}

#[actix_rt::test]
async fn front_admits_by_key_and_gives_the_pass_back_whatever_happens() {
    let pool = Pool::start().await;
    let limited = key(json!({"concurrencyLimit": 1}));
    let route = |key: &Arc<KeyEntry>| pool.actors.route(key.clone(), call(), Arc::default(), None);
    let refused = route(&limited).await.unwrap_err();
    assert!(matches!(refused, Refusal::NoAccount { common: None, .. }));
    assert_eq!(limited.slots().in_use(), 0, "a refused call kept its pass");
    pool.enlist("a", json!({})).await;
    let admitted = route(&limited).await.unwrap();
    assert_eq!(route(&limited).await.unwrap_err(), Refusal::KeyAtLimit { limit: 1 });
    let again = pool.actors.route(limited.clone(), call(), Arc::default(), Some(admitted.pass)).await.unwrap();
    drop((again, admitted.permit));
    assert_eq!(limited.slots().in_use(), 0);
    assert_eq!(route(&key(json!({"status": "revoked"}))).await.unwrap_err(), Refusal::KeyRevoked);
    assert_eq!(route(&key(json!({"expires_at": "2020-01-01T00:00:00Z"}))).await.unwrap_err(), Refusal::KeyExpired);
    pool.actors.front.addr().send(Drain).await.unwrap();
    assert_eq!(route(&limited).await.unwrap_err(), Refusal::Draining);
    assert_eq!(pool.actors.tickets.outstanding(), 0);
}

#[actix_rt::test]
async fn a_retry_that_finds_no_account_is_given_back_to_the_budget() {
    let pool = Pool::start().await;
    let a = pool.enlist("a", json!({})).await;
    let key = key(json!({}));
    let first = || pool.actors.route(key.clone(), call(), Arc::default(), None);
    let again = |tried: Arc<[AccountId]>, pass| pool.actors.route(key.clone(), call(), tried, Some(pass));
    for _ in 0..50 {
        let pass = first().await.unwrap().pass;
        let refused = again([a.clone()].into(), pass).await.unwrap_err();
        assert!(matches!(refused, Refusal::NoAccount { .. }), "{refused:?}");
    }
    // One that is sent is paid for: ten, and a fifth of the calls.
    let mut sent = 0;
    let refused = loop {
        let pass = first().await.unwrap().pass;
        match again(Arc::default(), pass).await {
            Ok(_) => sent += 1,
            Err(refused) => break refused,
        }
    };
    assert_eq!((refused, sent), (Refusal::RetryBudget, 25));
}

#[actix_rt::test]
async fn a_caller_that_leaves_gives_everything_back() {
    let pool = Pool::start().await;
    pool.enlist("a", json!({"concurrencyLimit": 1})).await;
    let key = key(json!({}));
    for _ in 0..100 {
        let route = pool.actors.route(key.clone(), call(), Arc::default(), None);
        // Asked, and gone: before the answer, or with it just come.
        drop(route.now_or_never());
    }
    eventually("nothing is held", || {
        pool.actors.outstanding() == crate::relay_app::NOTHING && key.slots().in_use() == 0
    })
    .await;
    assert!(pool.select(Scope::All).await.is_ok());
}

#[actix_rt::test]
async fn a_panic_in_an_account_leaves_the_others_serving_and_its_slots_counted() {
    let panics = Arc::new(AtomicUsize::new(0));
    let count = panics.clone();
    let probe: ProbeFn = Arc::new(move |_, _, _| {
        count.fetch_add(1, SeqCst);
        panic!("a probe that panics in the account's handler")
    });
    let pool = Pool::start_with(probe).await;
    let (a, b) = (pool.enlist("a", json!({"concurrencyLimit": 2})).await, pool.enlist("b", json!({})).await);
    let only = |id: &AccountId| Scope::only([id.clone()]);
    let mut held = pool.select(only(&a)).await.unwrap();
    for round in 1..=3 {
        let dying = pool.account(&a).await;
        assert!(dying.send(Probe { kind: None, model: None, own: false }).await.is_err());
        assert_eq!(panics.load(SeqCst), round);
        assert!(pool.select(only(&b)).await.is_ok());
        let seats = pool.actors.seats.clone();
        eventually("it is respawned", || seats.find(&a).is_some_and(|fresh| fresh != dying)).await;
        // Its answer comes after its first report.
        pool.account(&a).await.send(Describe).await.unwrap();
        // The probe's own slot came back with the unwinding; the call that runs still counts.
        assert_eq!(pool.actors.outstanding().permits, 1);
        let second = pool.select(only(&a)).await.unwrap();
        assert!(pool.select(only(&a)).await.is_err(), "the respawned account grants over its limit");
        drop(second);
    }
    held.settle(Outcome::Success { status: 200 }, vec![], pool.now());
    drop(held);
    assert_eq!(pool.actors.outstanding().permits, 0);
    assert!(pool.fatal.lock().unwrap().is_empty());
}

#[actix_rt::test]
async fn a_panic_in_front_or_scheduler_is_survived_with_the_pool_intact() {
    let pool = Pool::start().await;
    let id = pool.enlist("a", json!({"concurrencyLimit": 2})).await;
    let held = pool.select(Scope::All).await.unwrap();
    let account = pool.account(&id).await;
    for _ in 0..Policy::default().breaker_failures {
        account.send(settled(Outcome::ServerFault { status: 500 }, &pool)).await.unwrap();
    }

    let old = pool.actors.front.addr();
    let (reply, _) = Reply::<Result<claude_relay::actors::Admission, Refusal>>::channel();
    let reply = reply.map(|_: Result<_, Refusal>| panic!("a reply that panics in Front's handler"));
    let ticket = TicketId(u64::MAX);
    let revoked = key(json!({"status": "revoked"}));
    old.do_send(Route { ticket, key: revoked, call: call(), tried: Arc::default(), again: false, pass: None, reply });
    eventually("front is respawned", || pool.actors.front.addr() != old).await;
    assert!(pool.actors.route(key(json!({})), call(), Arc::default(), None).await.is_ok());

    let old = pool.actors.scheduler.addr();
    let (reply, _) = Reply::<Result<Permit, Refusal>>::channel();
    let reply = reply.map(|_: Result<Permit, Refusal>| panic!("a reply that panics in the Scheduler"));
    old.do_send(Select { question: question(ticket, call(), Scope::only([]), &[], pool.now()), reply });
    eventually("the scheduler is respawned", || pool.actors.scheduler.addr() != old).await;
    // The successor knows the accounts, their health and their slots.
    assert_eq!(pool.codes(&id).await, [Code::BreakerOpen]);
    let second = pool.select(Scope::All).await.unwrap();
    assert!(pool.select(Scope::All).await.is_err());
    drop((held, second));
    assert_eq!(pool.actors.outstanding(), crate::relay_app::NOTHING);
    assert!(pool.fatal.lock().unwrap().is_empty());
}

#[actix_rt::test]
async fn a_panic_in_roster_or_ledger_is_survived_and_nothing_is_lost() {
    let pool = Pool::start().await;
    let id = pool.enlist("a", json!({})).await;
    let held = pool.select(Scope::All).await.unwrap();
    pool.accounts_fuse.light(1);
    let old = pool.actors.roster.addr();
    let mut record = Document::default();
    record.set("id", "b");
    record.set("platform", "claude");
    assert!(old.send(Enlist { record }).await.is_err());
    eventually("roster is respawned", || pool.actors.roster.addr() != old).await;
    // The accounts did not notice, and the next edit works.
    assert_eq!((pool.actors.outstanding().permits, held.account_id()), (1, &id));
    let b = pool.enlist("b", json!({})).await;
    assert_eq!(pool.select(Scope::only([b.clone()])).await.unwrap().account_id(), &b);
    drop(held);

    let old = pool.actors.ledger.addr();
    pool.usage_fuse.light(1);
    let mut journal = JournalWriter::create(&pool.dir.path().join("journal"), BOOT, 0, pool.journal.clone()).unwrap();
    let call = journal.next_call();
    let at = pool.now();
    let [key, account, model, endpoint] = ["k", "a", "m", "messages"].map(str::to_owned);
    journal.begun(&Begun { call: call.clone(), key, account, model, endpoint, at });
    let usage = Usage { output_tokens: 7, ..Usage::default() };
    let (status, first_byte_ms, duration_ms) = (Some(200), Some(1), 2);
    journal.ended(&Ended { call, ending: Ending::Complete, status, usage, first_byte_ms, duration_ms });
    eventually("ledger is respawned", || pool.actors.ledger.addr() != old).await;
    assert!(pool.usage_fuse.is_burnt());
    pool.actors.ledger.addr().send(Flush).await.unwrap().unwrap();
    let rows = pool.stores.usage.sums(&UsageFilter::default()).await.unwrap();
    assert_eq!((rows.len(), rows[0].requests, rows[0].usage), (1, 1, usage));
    assert!(pool.fatal.lock().unwrap().is_empty());
}

#[actix_rt::test]
async fn three_deaths_of_one_role_within_a_minute_are_fatal() {
    let pool = Pool::start().await;
    for deaths in 1..=3 {
        let old = pool.actors.front.addr();
        let (reply, _) = Reply::<Result<claude_relay::actors::Admission, Refusal>>::channel();
        let reply = reply.map(|_: Result<_, Refusal>| panic!("again"));
        let revoked = key(json!({"status": "revoked"}));
        old.do_send(Route {
            ticket: TicketId(0),
            key: revoked,
            call: call(),
            tried: Arc::default(),
            again: false,
            pass: None,
            reply,
        });
        eventually("front is respawned", || pool.actors.front.addr() != old).await;
        assert_eq!(pool.fatal.lock().unwrap().len(), usize::from(deaths == 3));
    }
    assert_eq!(*pool.fatal.lock().unwrap(), ["front"]);
}

#[actix_rt::test]
async fn a_ticket_counts_until_it_is_answered_or_left() {
    let pool = Pool::start().await;
    let ticket = || Ticket::new(&pool.actors.front, &pool.actors.tickets);
    let (one, two) = (ticket(), ticket());
    assert_ne!(one.id(), two.id());
    assert_eq!(pool.actors.tickets.outstanding(), 2);
    one.answered();
    drop(two);
    assert_eq!(pool.actors.tickets.outstanding(), 0);
}

#[actix_rt::test]
async fn a_probe_takes_a_slot_and_its_outcome_counts() {
    let report =
        |outcome: Outcome| ProbeReport { probe: "messages", outcome, error_type: None, message: None, duration_ms: 1 };
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let probe: ProbeFn = Arc::new(move |plan, _, model| {
        seen.lock().unwrap().push((plan.account.to_string(), model));
        let report = report(Outcome::Success { status: 200 });
        Box::pin(async move { report })
    });
    let pool = Pool::start_with(probe).await;
    let id = pool.enlist("a", json!({"concurrencyLimit": 1, "models": {"asked": "upstream"}})).await;
    let account = pool.account(&id).await;
    account.send(settled(Outcome::CredentialRejected { status: 401 }, &pool)).await.unwrap();
    let answer = account.send(Probe { kind: None, model: Some("asked".to_owned()), own: false }).await.unwrap();
    assert_eq!(answer.outcome, Outcome::Success { status: 200 });
    assert_eq!(*asked.lock().unwrap(), [("a".to_owned(), "upstream".to_owned())]);
    assert_eq!(pool.account(&id).await.send(Describe).await.unwrap().standing.health.probe_at(), None);
    let call = Arc::new(Call::peek(Endpoint::Messages, br#"{"model":"asked"}"#).unwrap());
    let held = account.send(Acquire { call, bounded: false }).await.unwrap().unwrap();
    let full = account.send(Probe { kind: None, model: None, own: false }).await.unwrap();
    assert!(full.message.unwrap().contains("every slot is in use"));
    assert_eq!(asked.lock().unwrap().len(), 1, "a probe went over the limit");
    drop(held);
}
