//! Migrations of the Redis engine: in order, once, safe to interrupt; a newer or another schema is refused.

use super::redis_server::RedisServer;
use super::redis_store::{connect, options, sealer, stores};
use super::store_contract::{at, console, doc};
use super::store_usage::{begun, ended, piece, sums};
use claude_relay::domain::document::Document;
use claude_relay::domain::{Ending, KeyHash};
use claude_relay::store::redis::{MIGRATIONS, Migration, RedisError, RedisStore, SchemaError, dry_run, status};
use claude_relay::store::{StoreError, Stores};
use serde_json::json;

async fn connect_with(server: &RedisServer, migrations: &'static [Migration]) -> Result<Stores, RedisError> {
    Ok(RedisStore::connect_with(&options(&server.url()), sealer(), migrations).await?.into_stores())
}

fn key(n: usize) -> Document {
    doc(json!({"id": format!("k{n}"), "name": "n", "hash": KeyHash::of(&n.to_string()).to_hex()}))
}

/// What a relay of schema 1 leaves: no index of hashes, and records without a version.
async fn schema_1(server: &RedisServer, keys: usize) -> (Vec<Document>, Vec<Document>) {
    let stores = connect_with(server, &MIGRATIONS[..1]).await.unwrap();
    for n in 0..keys {
        stores.keys.insert(key(n), at(0)).await.unwrap();
    }
    stores.accounts.insert(doc(console("a")), at(0)).await.unwrap();
    let open = vec![begun("b-0-1", "k", "m", at(0)), begun("b-0-2", "k", "m", at(0))];
    stores.usage.settle(piece("b-0-0.jnl", 0, 9, open, vec![ended("b-0-1", Ending::Complete, 3)])).await.unwrap();
    let there = (stores.accounts.list().await.unwrap(), stores.keys.list().await.unwrap());
    drop(stores);
    server.raw("DEL claude-relay:{keys}hashes");
    for n in 0..keys {
        server.raw(&format!("HDEL claude-relay:{{keys}}rec:k{n} #version"));
    }
    server.raw("HDEL claude-relay:{accounts}rec:a #version");
    there
}

#[actix_rt::test]
async fn data_of_schema_1_survive_to_2() {
    let server = RedisServer::start_with(&["--enable-debug-command", "yes"]);
    let (accounts, keys) = schema_1(&server, 700).await;
    let before = server.raw("DEBUG DIGEST");
    let pending = status(&options(&server.url())).await.unwrap();
    assert_eq!(pending.iter().map(|s| s.applied.is_some()).collect::<Vec<_>>(), [true, false]);
    let forecast = dry_run(&options(&server.url())).await.unwrap();
    assert_eq!(forecast.len(), 1);
    assert_eq!((forecast[0].name.as_str(), forecast[0].keys, forecast[0].changes), ("key_hashes", 700, 700));
    assert_eq!(server.raw("DEBUG DIGEST"), before, "a dry run wrote something");

    let migrated = stores(&server).await;
    assert_eq!(migrated.accounts.list().await.unwrap(), accounts);
    assert_eq!(migrated.keys.list().await.unwrap(), keys);
    assert_eq!(sums(&migrated).await[0].requests, 1);
    assert_eq!(migrated.usage.offsets().await.unwrap(), [("b-0-0.jnl".to_owned(), 9)]);
    let again = doc(json!({"id": "other", "name": "n", "hash": KeyHash::of("699").to_hex()}));
    assert!(matches!(migrated.keys.insert(again, at(0)).await, Err(StoreError::Duplicate(_))));
    let patched = migrated.accounts.patch(&"a".parse_id(), doc(json!({"priority": 1})), at(1)).await.unwrap();
    assert_eq!(patched.get("priority"), Some(&json!(1)), "a record without a version takes a patch");
    drop(migrated);

    let done = status(&options(&server.url())).await.unwrap();
    let applied = done[1].applied.as_ref().unwrap();
    assert_eq!((applied.keys, applied.changed, applied.checksum.len()), (700, 700, 64));
    assert!(applied.applied_at.ends_with('Z') && done.iter().all(|s| s.known));
    assert!(dry_run(&options(&server.url())).await.unwrap().is_empty());
}

trait ParseId {
    fn parse_id(&self) -> claude_relay::domain::AccountId;
}

impl ParseId for str {
    fn parse_id(&self) -> claude_relay::domain::AccountId {
        super::store_contract::account_id(self)
    }
}

/// Fails at the last of its keys while `trap` is there; counts in each record how often it was there.
const TRAPPED: Migration = Migration {
    name: "trapped",
    script: "
-- keys: {keys}rec:*
-- with: {keys}trap
if redis.call('HGET', KEYS[1], 'id') == '\"k49\"' and redis.call('EXISTS', KEYS[2]) == 1 then
  return redis.error_reply('ERR interrupted')
end
if redis.call('HEXISTS', KEYS[1], 'marked') == 1 then return 0 end
redis.call('HSET', KEYS[1], 'marked', 'true')
return 1",
};

static WITH_TRAP: [Migration; 3] = [MIGRATIONS[0], MIGRATIONS[1], TRAPPED];

#[actix_rt::test]
async fn a_migration_that_was_interrupted_is_finished_by_the_next_start() {
    let server = RedisServer::start();
    schema_1(&server, 50).await;
    server.raw("SET claude-relay:{keys}trap 1");
    let error = connect_with(&server, &WITH_TRAP).await.err().unwrap();
    assert!(error.to_string().contains("interrupted"), "{error}");
    let known = status(&options(&server.url())).await.unwrap();
    assert!(known.len() == 2 && known[1].applied.is_some(), "what came before it is recorded: {known:?}");
    server.raw("DEL claude-relay:{keys}trap");
    let stores = connect_with(&server, &WITH_TRAP).await.unwrap();
    let keys = stores.keys.list().await.unwrap();
    assert_eq!((keys.len(), keys.iter().filter(|k| k.get("marked") == Some(&json!(true))).count()), (50, 50));
}

#[actix_rt::test]
async fn a_newer_schema_and_an_edited_migration_are_refused_and_nothing_is_touched() {
    static EDITED: [Migration; 2] = [MIGRATIONS[0], Migration { name: "key_hashes", script: "return 0" }];
    let server = RedisServer::start_with(&["--enable-debug-command", "yes"]);
    drop(connect_with(&server, &WITH_TRAP).await.unwrap());
    let before = server.raw("DEBUG DIGEST");
    let newer = RedisStore::connect(&options(&server.url()), sealer()).await.err().unwrap();
    assert!(matches!(newer, RedisError::Schema(SchemaError::Newer { found: 3, known: 2 })), "{newer}");
    println!("{newer}");
    let shown = status(&options(&server.url())).await.unwrap();
    assert_eq!((shown.len(), shown[2].known, shown[2].name.as_str()), (3, false, "trapped"));
    assert!(matches!(dry_run(&options(&server.url())).await, Err(RedisError::Schema(SchemaError::Newer { .. }))));
    server.raw("HDEL claude-relay:{owner}schema 3");
    let before_edit = server.raw("DEBUG DIGEST");
    let edited = connect_with(&server, &EDITED).await.err().unwrap();
    assert!(matches!(&edited, RedisError::Schema(SchemaError::Differs { version: 2, .. })), "{edited}");
    assert_eq!(server.raw("DEBUG DIGEST"), before_edit);
    assert_ne!(before, before_edit);
    connect(&server).await;
}
