//! What every store must do, whichever engine: each contract is a function of [`Stores`], run for each engine.
//!
//! A new engine adds a `mod` with its maker and one `engine!` line. What only an engine's files can show (secrets
//! at rest) stands at the end, for Redis in `redis_store`. The contracts about usage are in `store_usage`.

use super::redis_kinds::Cluster;
use super::redis_server::RedisServer;
use super::redis_store;
use super::store_usage::*;
use chrono::DateTime;
use claude_relay::domain::document::Document;
use claude_relay::domain::{Account, AccountId, KeyHash, KeyId, Secret, Time};
use claude_relay::store::seal::Sealer;
use claude_relay::store::sqlite::SqliteStore;
use claude_relay::store::{EVENTS_KEPT, Event, Restored, StoreError, Stores};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use tempfile::TempDir;

/// Runs every contract over stores that `$make` gives, with what must outlive them.
macro_rules! engine {
    ($engine:ident: $make:path) => {
        contract!($engine: $make:
            records_are_inserted_listed_loaded_and_removed
            keys_follow_the_same_rules_and_no_hash_comes_twice
            a_patch_lays_over_and_keeps_what_it_does_not_know
            an_invalid_patch_leaves_the_record_untouched
            racing_patches_of_different_fields_all_survive
            racing_inserts_of_one_id_or_hash_let_one_through
            records_of_older_and_newer_relays_load_and_keep_their_fields
            usage_is_settled_once_whatever_comes_again
            calls_stay_open_across_pieces_and_crashed_ones_become_rows
            sums_are_filtered
            absurd_token_counts_do_not_stop_the_ledger
            settlements_of_several_files_at_once_all_count
            facts_are_kept
            events_are_bounded_newest_first_and_go_with_their_account
            ten_thousand_accounts
            a_hundred_thousand_rows
        );
    };
}

macro_rules! contract {
    ($engine:ident: $make:path: $($name:ident)*) => {
        mod $engine {
            $(#[actix_rt::test]
            async fn $name() {
                let (stores, keep) = $make().await;
                super::$name(stores).await;
                drop(keep);
            })*
        }
    };
}

engine!(sqlite: super::make_sqlite);
engine!(redis: super::make_redis);

contract!(redis_cluster: super::make_cluster:
    keys_follow_the_same_rules_and_no_hash_comes_twice
    racing_patches_of_different_fields_all_survive
    usage_is_settled_once_whatever_comes_again
    settlements_of_several_files_at_once_all_count
);

async fn events_are_bounded_newest_first_and_go_with_their_account(stores: Stores) {
    let (a, b) = (AccountId::parse("a").unwrap(), AccountId::parse("b").unwrap());
    let event = |n: i64| Event {
        at: DateTime::from_timestamp(1_800_000_000 + n, 0).unwrap(),
        schedulable: n % 2 == 0,
        reasons: vec!["overloaded".to_owned()],
        cause: format!("number {n}"),
    };
    for id in ["a", "b"] {
        let record = doc(json!({"id": id, "platform": "claude"}));
        stores.accounts.insert(record, DateTime::from_timestamp(0, 0).unwrap()).await.unwrap();
    }
    assert!(stores.events.events(&a).await.unwrap().is_empty());
    let kept = i64::try_from(EVENTS_KEPT).unwrap();
    for n in 0..kept + 20 {
        stores.events.add_event(&a, event(n)).await.unwrap();
    }
    stores.events.add_event(&b, event(7)).await.unwrap();
    let all = stores.events.events(&a).await.unwrap();
    let expected: Vec<_> = (20..kept + 20).rev().map(event).collect();
    assert_eq!(all, expected);
    // Only what tells another state than the last is news, and where nothing is kept nothing is.
    stores.events.add_if_news(&b, event(9)).await.unwrap();
    assert_eq!(stores.events.events(&b).await.unwrap(), [event(7)]);
    stores.events.add_if_news(&b, event(10)).await.unwrap();
    assert_eq!(stores.events.events(&b).await.unwrap(), [event(10), event(7)]);
    stores.accounts.remove(&a).await.unwrap();
    stores.events.add_if_news(&a, event(1)).await.unwrap();
    assert!(stores.events.events(&a).await.unwrap().is_empty());
}

async fn make_sqlite() -> (Stores, TempDir) {
    fresh_sqlite()
}

async fn make_redis() -> (Stores, RedisServer) {
    let server = RedisServer::start();
    (redis_store::stores(&server).await, server)
}

async fn make_cluster() -> (Stores, Cluster) {
    let cluster = Cluster::start();
    (redis_store::stores_at(&cluster.url()).await, cluster)
}

pub fn sqlite_at(dir: &Path, key: Option<&str>) -> Stores {
    let sealer = Sealer::open_or_create(dir, key.map(Secret::new).as_ref()).unwrap();
    SqliteStore::open(&dir.join("relay.db"), Arc::new(sealer)).unwrap().into_stores()
}

fn fresh_sqlite() -> (Stores, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (sqlite_at(dir.path(), None), dir)
}

pub fn doc(value: Value) -> Document {
    Document::from_stored(value.as_object().unwrap().clone())
}

pub fn at(seconds: i64) -> Time {
    DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
}

pub fn account_id(text: &str) -> AccountId {
    AccountId::parse(text).unwrap()
}

pub fn console(id: &str) -> Value {
    json!({"id": id, "platform": "claudeconsole", "custom_api_endpoint": "https://up.example/api",
           "session_token": "sk-ant-session-0123456789", "headers": {"X-Team": "the-header-value"}})
}

async fn records_are_inserted_listed_loaded_and_removed(stores: Stores) {
    let accounts = stores.accounts;
    let mut sent = console("b");
    sent["group"] = Value::Null;
    let inserted = accounts.insert(doc(sent), at(0)).await.unwrap();
    assert_eq!(inserted.get("created_at"), Some(&json!("2027-01-15T08:00:00.000Z")));
    assert_eq!(inserted.get("updated_at"), inserted.get("created_at"));
    accounts.insert(doc(json!({"id": "a", "platform": "claude"})), at(1)).await.unwrap();

    assert_eq!(accounts.load(&account_id("b")).await.unwrap(), inserted);
    let listed = accounts.list().await.unwrap();
    assert_eq!(listed.iter().map(|d| d.get("id").unwrap()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(listed[1], inserted);
    assert_eq!(listed[1].get("session_token"), Some(&json!("sk-ant-session-0123456789")));
    assert_eq!(listed[1].get("headers"), Some(&json!({"X-Team": "the-header-value"})));
    assert!(!listed[1].clone().into_map().contains_key("group"), "null is not stored");

    assert!(matches!(accounts.insert(doc(console("b")), at(2)).await, Err(StoreError::Duplicate(_))));
    let invalid = accounts.insert(doc(json!({"id": "c", "platform": "gpt"})), at(2)).await;
    assert!(matches!(invalid, Err(StoreError::Invalid(e)) if e.field == "platform"));
    assert_eq!(accounts.load(&account_id("b")).await.unwrap(), inserted);

    accounts.remove(&account_id("b")).await.unwrap();
    assert!(matches!(accounts.load(&account_id("b")).await, Err(StoreError::Missing(_))));
    assert!(matches!(accounts.remove(&account_id("b")).await, Err(StoreError::Missing(_))));
    let patched = accounts.patch(&account_id("b"), doc(json!({"name": "x"})), at(2)).await;
    assert!(matches!(patched, Err(StoreError::Missing(_))));
    assert_eq!(accounts.list().await.unwrap().len(), 1);
    accounts.insert(doc(console("b")), at(3)).await.unwrap();
}

async fn keys_follow_the_same_rules_and_no_hash_comes_twice(stores: Stores) {
    let keys = stores.keys;
    let key = |id: &str, plain: &str| {
        doc(json!({"id": id, "name": "n", "hash": KeyHash::of(plain).to_hex(), "mark": "cr_0…00"}))
    };
    let inserted = keys.insert(key("k1", "one"), at(0)).await.unwrap();
    assert!(matches!(keys.insert(key("k1", "two"), at(0)).await, Err(StoreError::Duplicate(_))));
    assert!(matches!(keys.insert(key("k2", "one"), at(0)).await, Err(StoreError::Duplicate(_))));
    let no_hash = keys.insert(doc(json!({"id": "k3", "name": "n"})), at(0)).await;
    assert!(matches!(no_hash, Err(StoreError::Invalid(e)) if e.field == "hash"));
    assert_eq!(keys.load(&KeyId::new("k1")).await.unwrap(), inserted);
    let patched = keys.patch(&KeyId::new("k1"), doc(json!({"status": "revoked"})), at(9)).await.unwrap();
    assert_eq!((patched.get("status"), patched.get("hash")), (Some(&json!("revoked")), inserted.get("hash")));
    assert_eq!(keys.list().await.unwrap(), [patched]);
    keys.remove(&KeyId::new("k1")).await.unwrap();
    assert!(matches!(keys.load(&KeyId::new("k1")).await, Err(StoreError::Missing(_))));
    keys.insert(key("k2", "one"), at(0)).await.unwrap();
}

async fn a_patch_lays_over_and_keeps_what_it_does_not_know(stores: Stores) {
    let accounts = stores.accounts;
    let mut sent = console("a");
    sent["from_the_future"] = json!({"deep": [1, 2]});
    sent["group"] = json!("g");
    accounts.insert(doc(sent), at(0)).await.unwrap();
    let patch = json!({"priority": 7, "group": null, "id": "a", "created_at": "2020-01-01T00:00:00Z",
                       "session_token": "sk-ant-another-0123456789"});
    let patched = accounts.patch(&account_id("a"), doc(patch), at(60)).await.unwrap();
    let mut expected = console("a");
    for (name, value) in [
        ("from_the_future", json!({"deep": [1, 2]})),
        ("priority", json!(7)),
        ("session_token", json!("sk-ant-another-0123456789")),
        ("created_at", json!("2027-01-15T08:00:00.000Z")),
        ("updated_at", json!("2027-01-15T08:01:00.000Z")),
    ] {
        expected[name] = value;
    }
    assert_eq!(Value::Object(patched.clone().into_map()), expected);
    assert_eq!(accounts.load(&account_id("a")).await.unwrap(), patched);
}

async fn an_invalid_patch_leaves_the_record_untouched(stores: Stores) {
    let accounts = stores.accounts;
    let before = accounts.insert(doc(console("a")), at(0)).await.unwrap();
    for (patch, field) in [
        (json!({"name": "fine", "concurrencyLimit": 0}), "concurrencyLimit"),
        (json!({"custom_api_endpoint": null}), "custom_api_endpoint"),
        (json!({"id": "b"}), "id"),
        (json!({"id": null}), "id"),
    ] {
        let error = accounts.patch(&account_id("a"), doc(patch), at(1)).await.unwrap_err();
        assert!(matches!(&error, StoreError::Invalid(e) if e.field == field), "{error}");
    }
    assert_eq!(accounts.list().await.unwrap(), [before]);
}

async fn racing_patches_of_different_fields_all_survive(stores: Stores) {
    let accounts = stores.accounts;
    accounts.insert(doc(console("a")), at(0)).await.unwrap();
    let tasks: Vec<_> = (0..100)
        .map(|n| {
            let accounts = accounts.clone();
            let field = if n == 50 { "api_key".to_owned() } else { format!("field_{n}") };
            actix_rt::spawn(async move {
                accounts.patch(&account_id("a"), doc(json!({field: format!("v{n}")})), at(n)).await.unwrap()
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let record = accounts.load(&account_id("a")).await.unwrap();
    for n in (0..100).filter(|n| *n != 50) {
        assert_eq!(record.get(&format!("field_{n}")), Some(&json!(format!("v{n}"))));
    }
    assert_eq!(record.get("api_key"), Some(&json!("v50")));
}

async fn racing_inserts_of_one_id_or_hash_let_one_through(stores: Stores) {
    let insert = |n: usize| {
        let (accounts, keys) = (stores.accounts.clone(), stores.keys.clone());
        actix_rt::spawn(async move {
            let key = json!({"id": format!("k{n}"), "name": "n", "hash": KeyHash::of("one").to_hex()});
            (accounts.insert(doc(console("a")), at(0)).await, keys.insert(doc(key), at(0)).await)
        })
    };
    let (mut accounts, mut keys) = (0, 0);
    for task in (0..20).map(insert).collect::<Vec<_>>() {
        let (account, key) = task.await.unwrap();
        accounts += usize::from(account.is_ok());
        keys += usize::from(key.is_ok());
        assert!(matches!(account, Ok(_) | Err(StoreError::Duplicate(_))));
        assert!(matches!(key, Ok(_) | Err(StoreError::Duplicate(_))));
    }
    assert_eq!((accounts, keys, stores.keys.list().await.unwrap().len()), (1, 1, 1));
}

/// Through [`Restored`], which puts records as they are, as another relay may have left them.
async fn records_of_older_and_newer_relays_load_and_keep_their_fields(stores: Stores) {
    let old = json!({"id": "old", "platform": "claude", "created_at": "2020-01-01T00:00:00Z"});
    let newer = json!({"id": "new", "platform": "claude", "created_at": "2030-01-01T00:00:00Z",
                       "updated_at": "2030-01-01T00:00:00Z", "quota": {"daily": 3}, "session_token": "sk-newer-0123"});
    let records = vec![doc(newer.clone()), doc(old.clone())];
    stores.transfer.restore(Restored::Accounts(records.clone())).await.unwrap();
    assert_eq!(stores.accounts.list().await.unwrap(), records);
    for record in &records {
        Account::parse(record).unwrap();
    }
    for id in ["old", "new"] {
        stores.accounts.patch(&account_id(id), doc(json!({"priority": 3})), at(0)).await.unwrap();
    }
    let expected = |mut record: Value| {
        record["priority"] = json!(3);
        record["updated_at"] = json!("2027-01-15T08:00:00.000Z");
        doc(record)
    };
    assert_eq!(stores.accounts.list().await.unwrap(), [expected(newer), expected(old)]);
    let key = json!({"id": "k", "name": "n", "hash": KeyHash::of("k").to_hex()});
    stores.transfer.restore(Restored::Keys(vec![doc(key.clone())])).await.unwrap();
    assert_eq!(stores.keys.list().await.unwrap(), [doc(key.clone())]);
    let again = stores.keys.insert(doc(json!({"id": "k2", "name": "n", "hash": key["hash"]})), at(0)).await;
    assert!(matches!(again, Err(StoreError::Duplicate(_))));
}

async fn facts_are_kept(stores: Stores) {
    let facts = stores.facts;
    facts.check().await.unwrap();
    assert_eq!(facts.fact("x").await.unwrap(), None);
    facts.set_fact("x", "1").await.unwrap();
    facts.set_fact("x", "2").await.unwrap();
    facts.check().await.unwrap();
    assert_eq!(facts.fact("x").await.unwrap().as_deref(), Some("2"));
}

async fn ten_thousand_accounts(stores: Stores) {
    let began = Instant::now();
    for n in 0..10_000 {
        stores.accounts.insert(doc(console(&format!("a{n:05}"))), at(n)).await.unwrap();
    }
    let inserted = began.elapsed();
    let listed = stores.accounts.list().await.unwrap();
    println!("10,000 accounts: inserted in {inserted:?}, listed in {:?}", began.elapsed() - inserted);
    assert_eq!(listed.len(), 10_000);
    for (n, record) in listed.iter().enumerate() {
        assert_eq!(record.get("id"), Some(&json!(format!("a{n:05}"))));
    }
    assert_eq!(listed[9_999].get("session_token"), Some(&json!("sk-ant-session-0123456789")));
}

#[actix_rt::test]
async fn secrets_are_not_in_the_files_of_sqlite_and_come_back() {
    let (stores, dir) = fresh_sqlite();
    let secrets = ["sk-ant-session-0123456789", "the-header-value", "sk-patched-in-secret", "sk-api-key-secret"];
    let mut sent = console("a");
    sent["api_key"] = json!(secrets[3]);
    stores.accounts.insert(doc(sent), at(0)).await.unwrap();
    let patch = doc(json!({"access_token": secrets[2]}));
    let record = stores.accounts.patch(&account_id("a"), patch, at(1)).await.unwrap();
    let no_secret_in = |expect_wal: bool| {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            for secret in secrets {
                assert!(!bytes.windows(secret.len()).any(|w| w == secret.as_bytes()), "{secret} in {path:?}");
            }
            names.push(path.file_name().unwrap().to_str().unwrap().to_owned());
        }
        assert_eq!(names.contains(&"relay.db-wal".to_owned()), expect_wal, "{names:?}");
    };
    no_secret_in(true);
    drop(stores);
    no_secret_in(false);
    let again = sqlite_at(dir.path(), None);
    assert_eq!(again.accounts.load(&account_id("a")).await.unwrap(), record);
}

#[actix_rt::test]
async fn a_record_that_does_not_open_is_left_out_and_can_be_mended() {
    let (stores, dir) = fresh_sqlite();
    stores.accounts.insert(doc(json!({"id": "good", "platform": "claude"})), at(0)).await.unwrap();
    stores.accounts.insert(doc(console("sealed")), at(0)).await.unwrap();
    drop(stores);
    let db = rusqlite::Connection::open(dir.path().join("relay.db")).unwrap();
    db.execute_batch(
        "INSERT INTO accounts VALUES ('garbage', '{', '', '');
         INSERT INTO accounts VALUES ('clear', '{\"id\":\"clear\",\"platform\":\"claude\",\"api_key\":\"k\"}', '', '')",
    )
    .unwrap();
    drop(db);
    let other = sqlite_at(dir.path(), Some(&"cd".repeat(32)));
    let ids = |records: Vec<Document>| records.iter().map(|d| d.get("id").unwrap().clone()).collect::<Vec<_>>();
    assert_eq!(ids(other.accounts.list().await.unwrap()), ["good"]);
    assert!(matches!(other.accounts.load(&account_id("sealed")).await, Err(StoreError::Unseal(_))));
    assert!(matches!(other.accounts.load(&account_id("clear")).await, Err(StoreError::Unseal(_))));
    assert!(matches!(other.accounts.load(&account_id("garbage")).await, Err(StoreError::Engine(_))));
    let partly = other.accounts.patch(&account_id("sealed"), doc(json!({"headers": null})), at(1)).await;
    assert!(matches!(partly, Err(StoreError::Unseal(_))));
    let anew = doc(json!({"headers": null, "session_token": "sk-new-0123456789abcdef"}));
    other.accounts.patch(&account_id("sealed"), anew, at(1)).await.unwrap();
    assert_eq!(ids(other.accounts.list().await.unwrap()), ["good", "sealed"]);
}
