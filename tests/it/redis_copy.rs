//! A move from the embedded engine to Redis and back: everything arrives, whatever interrupts it.

use super::journal_replay::{Data, begin, end};
use super::redis_server::RedisServer;
use super::redis_store::{options, sealer, stores};
use super::store_contract::{account_id, at, console, doc, sqlite_at};
use super::store_usage::{begun, ended, piece, sums};
use async_trait::async_trait;
use claude_relay::domain::{Ending, KeyHash};
use claude_relay::store::copy::{CopyError, FACT, UNDER_WAY, copy};
use claude_relay::store::redis::{RedisOptions, RedisStore};
use claude_relay::store::seal;
use claude_relay::store::{Begun, Counts, Restored, StoreError, Stores, Transfer, UsageFilter};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::time::Instant;

/// Some of everything.
async fn fill(stores: &Stores, accounts: usize) {
    for n in 0..accounts {
        let mut record = console(&format!("a{n:04}"));
        record["from_the_future"] = json!({"n": n});
        stores.accounts.insert(doc(record), at(0)).await.unwrap();
    }
    stores.accounts.patch(&account_id("a0000"), doc(json!({"priority": 9})), at(60)).await.unwrap();
    for n in 0..3 {
        let key = json!({"id": format!("k{n}"), "name": "n", "hash": KeyHash::of(&n.to_string()).to_hex()});
        stores.keys.insert(doc(key), at(n)).await.unwrap();
    }
    stores.facts.set_fact("admin", "hash").await.unwrap();
    for day in 0..2_i64 {
        let file = format!("old-{day}-0.jnl");
        let call = |n: usize| format!("old-{day}-{n}");
        let opens = (0..40).map(|n| begun(&call(n), &format!("k{}", n % 7), "m", at(day * 86_400))).collect();
        let ends = (0..38).map(|n| ended(&call(n), Ending::ALL[n % 6], 5)).collect();
        stores.usage.settle(piece(&file, 0, 100, opens, ends)).await.unwrap();
    }
}

async fn same(a: &Stores, b: &Stores) {
    assert_eq!(a.accounts.list().await.unwrap(), b.accounts.list().await.unwrap());
    assert_eq!(a.keys.list().await.unwrap(), b.keys.list().await.unwrap());
    assert_eq!(sums(a).await, sums(b).await);
    assert_eq!(a.usage.offsets().await.unwrap(), b.usage.offsets().await.unwrap());
    assert_eq!(a.transfer.open_calls().await.unwrap(), b.transfer.open_calls().await.unwrap());
    assert_eq!(a.facts.fact("admin").await.unwrap(), b.facts.fact("admin").await.unwrap());
}

#[actix_rt::test]
async fn there_and_back_everything_arrives_and_works() {
    let (home, away) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = RedisServer::start();
    let sqlite = sqlite_at(home.path(), Some(&"11".repeat(32)));
    fill(&sqlite, 1_200).await;
    let redis = stores(&server).await;
    // Each is sealed by a key of its own, and says so.
    sqlite.facts.set_fact(seal::FACT, "11").await.unwrap();
    redis.facts.set_fact(seal::FACT, "ab").await.unwrap();

    let dry = copy(&sqlite, &redis, true).await.unwrap();
    let untouched = Counts { facts: 1, ..Counts::default() };
    assert_eq!(redis.transfer.counts().await.unwrap(), untouched, "a dry run wrote something");
    let report = copy(&sqlite, &redis, false).await.unwrap();
    println!("{report:?}");
    assert_eq!((report.source, report.source, report.written), (dry.source, report.target, dry.written));
    assert_eq!((report.source.accounts, report.source.keys, report.source.open), (1_200, 3, 4));
    same(&sqlite, &redis).await;
    assert_eq!(redis.facts.fact(seal::FACT).await.unwrap().as_deref(), Some("ab"));

    // The records work: a patch, a hash that is taken, a call that ends, a boot that is closed.
    redis.accounts.patch(&account_id("a0001"), doc(json!({"group": "g"})), at(99)).await.unwrap();
    let taken = json!({"id": "k9", "name": "n", "hash": KeyHash::of("1").to_hex()});
    assert!(matches!(redis.keys.insert(doc(taken), at(0)).await, Err(StoreError::Duplicate(_))));
    let before = sums(&redis).await.iter().map(|r| r.requests).sum::<u64>();
    redis
        .usage
        .settle(piece("old-0-0.jnl", 100, 120, vec![], vec![ended("old-0-39", Ending::Complete, 5)]))
        .await
        .unwrap();
    assert_eq!(redis.usage.close_crashed("old").await.unwrap(), 3);
    assert_eq!(sums(&redis).await.iter().map(|r| r.requests).sum::<u64>(), before + 4);

    assert!(matches!(copy(&sqlite, &redis, false).await, Err(CopyError::NotEmpty(_))));
    let back = sqlite_at(away.path(), Some(&"22".repeat(32)));
    copy(&redis, &back, false).await.unwrap();
    same(&redis, &back).await;
    back.usage.settle(piece("old-0-0.jnl", 120, 130, vec![], vec![])).await.unwrap();
    let opened = sqlite_at(away.path(), Some(&"22".repeat(32)));
    same(&opened, &back).await;
}

#[actix_rt::test]
async fn a_relay_that_moved_goes_on_in_its_journal() {
    let data = Data::new();
    let sqlite = data.stores();
    let (mut writer, _) = data.writer("b", 0, 1 << 20);
    let calls: Vec<String> = (0..10).map(|_| begin(&mut writer)).collect();
    calls[..5].iter().for_each(|call| end(&mut writer, call));
    data.settler(&sqlite, "b").settle_all().await.unwrap();
    calls[5..8].iter().for_each(|call| end(&mut writer, call));
    let server = RedisServer::start();
    let redis = stores(&server).await;
    copy(&sqlite, &redis, false).await.unwrap();
    let report = data.settler(&redis, "next").settle_all().await.unwrap();
    assert_eq!((report.begun, report.ended, report.crashed), (0, 3, 2));
    let rows = sums(&redis).await;
    assert_eq!((rows[0].requests, rows[0].endings["complete"], rows[0].endings["relay_crashed"]), (10, 8, 2));
}

/// A target whose process dies at its `n`th write: before it, or after it and before anyone hears of it.
struct Dying {
    inner: Arc<dyn Transfer>,
    left: AtomicI64,
    before: bool,
}

#[async_trait]
impl Transfer for Dying {
    async fn counts(&self) -> Result<Counts, StoreError> {
        self.inner.counts().await
    }
    async fn facts(&self) -> Result<Vec<(String, String)>, StoreError> {
        self.inner.facts().await
    }
    async fn open_calls(&self) -> Result<Vec<Begun>, StoreError> {
        self.inner.open_calls().await
    }
    async fn clear_usage(&self) -> Result<(), StoreError> {
        self.inner.clear_usage().await
    }
    async fn restore(&self, items: Restored) -> Result<(), StoreError> {
        let dead = || Err(StoreError::Engine("dead".to_owned()));
        let left = self.left.fetch_sub(1, SeqCst);
        if left < 0 || (left == 0 && self.before) {
            return dead();
        }
        self.inner.restore(items).await?;
        if left == 0 { dead() } else { Ok(()) }
    }
}

#[actix_rt::test]
async fn a_copy_that_dies_anywhere_is_finished_by_the_next() {
    let home = tempfile::tempdir().unwrap();
    let sqlite = sqlite_at(home.path(), Some(&"11".repeat(32)));
    fill(&sqlite, 30).await;
    let mut deaths = 0;
    for step in 0.. {
        let mut died = false;
        for before in [true, false] {
            let (server, away) = (RedisServer::start(), tempfile::tempdir().unwrap());
            for target in [stores(&server).await, sqlite_at(away.path(), Some(&"22".repeat(32)))] {
                let dying = Dying { inner: target.transfer.clone(), left: AtomicI64::new(step), before };
                let doomed = Stores { transfer: Arc::new(dying), ..target.clone() };
                if copy(&sqlite, &doomed, false).await.is_err() {
                    died = true;
                    deaths += 1;
                    assert_eq!(target.facts.fact(FACT).await.unwrap().as_deref(), Some(UNDER_WAY));
                    assert!(matches!(copy(&target, &sqlite, false).await, Err(CopyError::Unfinished)));
                    let report = copy(&sqlite, &target, false).await.unwrap();
                    assert!(report.resumed && (step == 0 || report.written < 30), "step {step}: {report:?}");
                }
                same(&sqlite, &target).await;
                assert_ne!(target.facts.fact(FACT).await.unwrap().as_deref(), Some(UNDER_WAY));
            }
        }
        if !died {
            break;
        }
    }
    assert!(deaths >= 20, "only {deaths} deaths");
}

#[actix_rt::test]
async fn what_the_source_lost_between_two_attempts_is_taken_away() {
    let home = tempfile::tempdir().unwrap();
    let server = RedisServer::start();
    let (sqlite, redis) = (sqlite_at(home.path(), Some(&"11".repeat(32))), stores(&server).await);
    fill(&sqlite, 5).await;
    let dying = Dying { inner: redis.transfer.clone(), left: AtomicI64::new(2), before: true };
    let doomed = Stores { transfer: Arc::new(dying), ..redis.clone() };
    assert!(copy(&sqlite, &doomed, false).await.is_err());
    sqlite.accounts.remove(&account_id("a0003")).await.unwrap();
    copy(&sqlite, &redis, false).await.unwrap();
    same(&sqlite, &redis).await;
}

#[actix_rt::test]
async fn what_the_source_settled_between_two_attempts_goes_along() {
    let home = tempfile::tempdir().unwrap();
    let server = RedisServer::start();
    let (sqlite, redis) = (sqlite_at(home.path(), Some(&"11".repeat(32))), stores(&server).await);
    fill(&sqlite, 5).await;
    // Dies after everything is there, and before that was found out.
    let left = AtomicI64::new(4);
    let dying = Dying { inner: redis.transfer.clone(), left, before: false };
    let doomed = Stores { transfer: Arc::new(dying), ..redis.clone() };
    assert!(copy(&sqlite, &doomed, false).await.is_err());
    for (file, _) in sqlite.usage.offsets().await.unwrap() {
        let boot = file.split('-').next().unwrap().to_owned();
        sqlite.usage.close_crashed(&boot).await.unwrap();
        sqlite.usage.forget(&file).await.unwrap();
    }
    copy(&sqlite, &redis, false).await.unwrap();
    same(&sqlite, &redis).await;
}

#[actix_rt::test]
async fn a_record_that_does_not_open_stops_the_copy_before_it_begins() {
    let home = tempfile::tempdir().unwrap();
    fill(&sqlite_at(home.path(), Some(&"11".repeat(32))), 3).await;
    let other_key = sqlite_at(home.path(), Some(&"33".repeat(32)));
    let server = RedisServer::start();
    let redis = stores(&server).await;
    for dry in [true, false] {
        let refused = copy(&other_key, &redis, dry).await.unwrap_err();
        assert!(matches!(refused, CopyError::Unreadable { kind: "accounts", missing: 3, all: 3 }), "{refused}");
    }
    assert_eq!(redis.transfer.counts().await.unwrap(), Counts::default());
}

#[actix_rt::test]
async fn a_hundred_thousand_sums_are_moved() {
    let home = tempfile::tempdir().unwrap();
    let sqlite = sqlite_at(home.path(), Some(&"11".repeat(32)));
    for nth in 0..50_u64 {
        let call = |n: u64| format!("b-0-{}", nth * 2_000 + n);
        let opens = (0..2_000).map(|n| begun(&call(n), &format!("k{n}"), "m", at(nth as i64 * 86_400))).collect();
        let ends = (0..2_000).map(|n| ended(&call(n), Ending::Complete, 5)).collect();
        sqlite.usage.settle(piece("b-0-0.jnl", nth, nth + 1, opens, ends)).await.unwrap();
    }
    let server = RedisServer::start();
    let patient = RedisOptions { command_timeout: std::time::Duration::from_secs(5), ..options(&server.url()) };
    let redis = RedisStore::connect(&patient, sealer()).await.unwrap().into_stores();
    let began = Instant::now();
    let report = copy(&sqlite, &redis, false).await.unwrap();
    println!("100,000 sums moved in {:?}", began.elapsed());
    assert_eq!(report.target.sums, 100_000);
    let filter = UsageFilter { key: Some("k7".to_owned()), ..UsageFilter::default() };
    assert_eq!(redis.usage.sums(&filter).await.unwrap().len(), 50);
}
