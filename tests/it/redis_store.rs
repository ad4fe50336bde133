//! The Redis engine over real servers: what only it can show. What every store must do is in `store_contract`.

use super::redis_server::{RedisServer, raw};
use super::store_contract::{account_id, at, console, doc};
use super::store_usage::{begun, ended, piece, sums};
use claude_relay::domain::{Ending, KeyHash, KeyId, Secret};
use claude_relay::store::redis::{RedisError, RedisOptions, RedisStore, RedisUrl};
use claude_relay::store::seal::Sealer;
use claude_relay::store::{StoreError, Stores};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

pub const TTL: Duration = Duration::from_millis(1_500);

pub fn options(url: &str) -> RedisOptions {
    let span = Duration::from_millis;
    RedisOptions {
        connect_timeout: span(500),
        command_timeout: span(1_000),
        wait_timeout: span(2_000),
        lock_ttl: TTL,
        ..RedisOptions::new(RedisUrl::parse(&Secret::new(url)).unwrap())
    }
}

pub fn sealer() -> Arc<Sealer> {
    sealer_with("ab")
}

fn sealer_with(byte: &str) -> Arc<Sealer> {
    Arc::new(Sealer::open_or_create(Path::new("/nowhere"), Some(&Secret::new(byte.repeat(32)))).unwrap())
}

pub async fn connect(server: &RedisServer) -> RedisStore {
    RedisStore::connect(&options(&server.url()), sealer()).await.unwrap()
}

pub async fn stores(server: &RedisServer) -> Stores {
    connect(server).await.into_stores()
}

pub async fn stores_at(url: &str) -> Stores {
    RedisStore::connect(&options(url), sealer()).await.unwrap().into_stores()
}

#[actix_rt::test]
async fn secrets_are_not_in_the_files_of_redis_and_come_back() {
    let server = RedisServer::start();
    let stores = stores(&server).await;
    let plain = format!("cr_{}", "5e".repeat(32));
    let secrets =
        ["sk-ant-session-0123456789", "the-header-value", "sk-patched-in-secret", "sk-api-key-secret", &plain];
    let mut sent = console("a");
    sent["api_key"] = json!(secrets[3]);
    stores.accounts.insert(doc(sent), at(0)).await.unwrap();
    let patch = doc(json!({"access_token": secrets[2]}));
    let record = stores.accounts.patch(&account_id("a"), patch, at(1)).await.unwrap();
    let key = json!({"id": "k", "name": "n", "hash": KeyHash::of(&plain).to_hex()});
    stores.keys.insert(doc(key), at(0)).await.unwrap();
    // The append-only file has every write, the dump what is there now.
    assert_eq!(server.raw("SAVE"), "+OK\r\n");
    let mut kinds = Vec::new();
    for path in server.files() {
        let bytes = std::fs::read(&path).unwrap();
        for secret in secrets {
            assert!(!bytes.windows(secret.len()).any(|w| w == secret.as_bytes()), "{secret} in {path:?}");
        }
        if bytes.windows(6).any(|w| w == b"sealed") {
            kinds.push(path.extension().unwrap().to_str().unwrap().to_owned());
        }
    }
    assert!(kinds.contains(&"rdb".to_owned()) && kinds.contains(&"aof".to_owned()), "{kinds:?}");
    drop(stores);
    let again = self::stores(&server).await;
    assert_eq!(again.accounts.load(&account_id("a")).await.unwrap(), record);
}

#[actix_rt::test]
async fn a_patch_writes_its_own_fields_alone() {
    let server = RedisServer::start();
    let stores = stores(&server).await;
    stores.accounts.insert(doc(console("a")), at(0)).await.unwrap();
    let field = |name: &str| server.raw(&format!("HGET claude-relay:{{accounts}}rec:a {name}"));
    let sealed = field("session_token");
    assert!(sealed.contains("sealed:v1:"), "{sealed}");
    stores.accounts.patch(&account_id("a"), doc(json!({"priority": 7})), at(1)).await.unwrap();
    assert_eq!(field("session_token"), sealed, "sealed anew, so written");
    assert_eq!(field("priority"), "$1\r\n7\r\n");
    stores.accounts.patch(&account_id("a"), doc(json!({"priority": null})), at(1)).await.unwrap();
    assert_eq!(field("priority"), "$-1\r\n");
}

#[actix_rt::test]
async fn a_record_that_does_not_open_is_left_out_and_can_be_mended() {
    let server = RedisServer::start();
    let first = stores(&server).await;
    first.accounts.insert(doc(json!({"id": "good", "platform": "claude"})), at(0)).await.unwrap();
    first.accounts.insert(doc(console("sealed")), at(0)).await.unwrap();
    drop(first);
    for line in [
        "SADD claude-relay:{accounts}ids garbage clear gone",
        "HSET claude-relay:{accounts}rec:garbage id '\"garbage\"' platform '{'",
        "HSET claude-relay:{accounts}rec:clear id '\"clear\"' platform '\"claude\"' api_key '\"k\"'",
    ] {
        assert!(server.raw(line).starts_with(':'), "{line}");
    }
    let other = RedisStore::connect(&options(&server.url()), sealer_with("cd")).await.unwrap().into_stores();
    let listed = async || {
        let records = other.accounts.list().await.unwrap();
        records.iter().map(|d| d.get("id").unwrap().clone()).collect::<Vec<_>>()
    };
    assert_eq!(listed().await, ["good"]);
    let load = async |id: &str| other.accounts.load(&account_id(id)).await;
    assert!(matches!(load("sealed").await, Err(StoreError::Unseal(_))));
    assert!(matches!(load("clear").await, Err(StoreError::Unseal(_))));
    assert!(matches!(load("garbage").await, Err(StoreError::Engine(_))));
    assert!(matches!(load("gone").await, Err(StoreError::Missing(_))));
    let partly = other.accounts.patch(&account_id("sealed"), doc(json!({"headers": null})), at(1)).await;
    assert!(matches!(partly, Err(StoreError::Unseal(_))));
    let anew = doc(json!({"headers": null, "session_token": "sk-new-0123456789abcdef"}));
    other.accounts.patch(&account_id("sealed"), anew, at(1)).await.unwrap();
    assert_eq!(listed().await, ["good", "sealed"]);
    other.accounts.remove(&account_id("garbage")).await.unwrap();
    assert!(matches!(load("garbage").await, Err(StoreError::Missing(_))));
}

/// Between a patch's reading and its writing, as another process would: here, as the script passes by.
#[actix_rt::test]
async fn a_record_that_somebody_else_writes_meanwhile_is_read_again() {
    let server = RedisServer::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (proxy, redis, armed) =
        (listener.local_addr().unwrap().port(), server.port(), Arc::new(AtomicBool::new(false)));
    let trigger = armed.clone();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let to = TcpStream::connect(("127.0.0.1", redis)).unwrap();
            let (mut from, mut back, trigger) = (client.try_clone().unwrap(), to.try_clone().unwrap(), trigger.clone());
            std::thread::spawn(move || std::io::copy(&mut back, &mut &client));
            std::thread::spawn(move || {
                let (mut to, mut buffer) = (to, [0; 16 << 10]);
                while let Ok(read @ 1..) = from.read(&mut buffer) {
                    let writes = buffer[..read].windows(7).any(|w| w == b"EVALSHA");
                    if writes && trigger.swap(false, SeqCst) {
                        let change = "#version other platform '\"claudeconsole\"'";
                        raw(redis, &format!("HSET claude-relay:{{accounts}}rec:a {change}")).unwrap();
                    }
                    to.write_all(&buffer[..read]).unwrap();
                }
            });
        }
    });
    let accounts = stores_at(&format!("redis://127.0.0.1:{proxy}")).await.accounts;
    let record = json!({"id": "a", "platform": "claude", "custom_api_endpoint": "https://up.example/api"});
    accounts.insert(doc(record), at(0)).await.unwrap();
    // Fits the account as it was read; a console account needs its endpoint.
    armed.store(true, SeqCst);
    let refused = accounts.patch(&account_id("a"), doc(json!({"custom_api_endpoint": null})), at(1)).await;
    assert!(matches!(refused, Err(StoreError::Invalid(e)) if e.field == "custom_api_endpoint"));
    assert!(!armed.load(SeqCst));
    accounts.patch(&account_id("a"), doc(json!({"priority": 1})), at(2)).await.unwrap();
}

#[actix_rt::test]
async fn a_changed_hash_is_looked_up_and_the_old_one_free_again() {
    let server = RedisServer::start();
    let keys = stores(&server).await.keys;
    let hash = |plain: &str| KeyHash::of(plain).to_hex();
    for id in ["k1", "k2"] {
        keys.insert(doc(json!({"id": id, "name": "n", "hash": hash(id)})), at(0)).await.unwrap();
    }
    let taken = keys.patch(&KeyId::new("k1"), doc(json!({"hash": hash("k2")})), at(1)).await;
    assert!(matches!(taken, Err(StoreError::Duplicate(_))));
    keys.patch(&KeyId::new("k1"), doc(json!({"hash": hash("new")})), at(1)).await.unwrap();
    keys.insert(doc(json!({"id": "k3", "name": "n", "hash": hash("k1")})), at(0)).await.unwrap();
    assert_eq!(server.raw("HLEN claude-relay:{keys}hashes"), ":3\r\n");
}

/// Four commands a second and seven a batch are what the design allows; prints what it is.
#[actix_rt::test]
async fn a_thousand_calls_cost_few_commands() {
    let server = RedisServer::start();
    let stores = stores(&server).await;
    let before = server.commands();
    // As the Settler brings them: 256 KiB of journal are some 450 calls of two lines; a tenth end a piece later.
    let calls: Vec<String> = (0..1_000).map(|n| format!("0123456789abcdef-0-{n}")).collect();
    for nth in 0..3_u64 {
        let at_most = |n: usize| (n * 334).min(1_000);
        let (from, to) = (at_most(nth as usize), at_most(nth as usize + 1));
        let late = |n: usize| if n == 0 { 0 } else { at_most(n) - 33 };
        let until = if nth == 2 { 1_000 } else { late(nth as usize + 1) };
        let begins = (from..to).map(|n| begun(&calls[n], &format!("k{}", n % 50), &format!("m{}", n % 3), at(0)));
        let ends = (late(nth as usize)..until).map(|n| ended(&calls[n], Ending::Complete, 1));
        stores
            .usage
            .settle(piece("0123456789abcdef-0-0.jnl", nth, nth + 1, begins.collect(), ends.collect()))
            .await
            .unwrap();
    }
    let after = server.commands();
    let difference: Vec<(&str, u64)> = after
        .iter()
        .map(|(name, count)| (name.as_str(), count - before.get(name).copied().unwrap_or(0)))
        .filter(|(name, count)| *count > 0 && !matches!(*name, "info" | "quit"))
        .collect();
    let total: u64 = difference.iter().map(|(_, count)| count).sum();
    println!("INFO commandstats for 1,000 calls in 3 pieces: {total} commands, {difference:?}");
    assert_eq!(sums(&stores).await.iter().map(|r| r.requests).sum::<u64>(), 1_000);
    assert!(total <= 100, "more than 0.1 commands a call");
}

#[actix_rt::test]
async fn what_is_kept_of_single_calls_is_bounded() {
    let server = RedisServer::start();
    let stores = stores(&server).await;
    for nth in 0..33_u64 {
        let calls: Vec<String> = (0..1_000).map(|n| format!("b-0-{}", nth * 1_000 + n)).collect();
        let begins = calls.iter().map(|call| begun(call, "k", "m", at(0))).collect();
        let ends = calls.iter().map(|call| ended(call, Ending::Complete, 1)).collect();
        stores.usage.settle(piece("b-0-0.jnl", nth, nth + 1, begins, ends)).await.unwrap();
    }
    assert_eq!(server.raw("LLEN claude-relay:{usage-0}calls"), ":20000\r\n");
    let last = server.raw("LRANGE claude-relay:{usage-0}calls -1 -1");
    assert!(last.contains(r#""call":"b-0-32999""#) && last.contains(r#""ending":"complete""#), "{last}");
    // A bit a call, and a TTL on it.
    assert!(
        server.raw("STRLEN claude-relay:{usage-0}done:b-0:0").trim_start_matches(':').trim().parse::<u64>().unwrap()
            < 5_000
    );
    assert!(!server.raw("TTL claude-relay:{usage-0}done:b-0:0").starts_with(":-"));
}

#[actix_rt::test]
async fn every_key_is_under_the_prefix_and_in_a_known_slot() {
    let server = RedisServer::start();
    let other = RedisOptions { key_prefix: "other:".to_owned(), ..options(&server.url()) };
    let both = [stores(&server).await, RedisStore::connect(&other, sealer()).await.unwrap().into_stores()];
    for stores in &both {
        stores.accounts.insert(doc(console("a")), at(0)).await.unwrap();
        let calls = (
            vec![begun("b-1-1", "k", "m", at(0)), begun("b-1-2", "k", "m", at(0))],
            vec![ended("b-1-1", Ending::Complete, 1)],
        );
        stores.usage.settle(piece("b-1-0.jnl", 0, 9, calls.0, calls.1)).await.unwrap();
        stores.facts.set_fact("f", "v").await.unwrap();
    }
    let keys = server.raw("KEYS *");
    let keys: Vec<&str> = keys.lines().filter(|line| !line.starts_with(['$', '*'])).collect();
    assert!(keys.len() > 30, "{keys:?}");
    for key in keys {
        let rest = key.strip_prefix("claude-relay:").or(key.strip_prefix("other:")).unwrap_or_else(|| panic!("{key}"));
        assert!(["{owner}", "{accounts}", "{keys}", "{usage-"].iter().any(|tag| rest.starts_with(tag)), "{key}");
    }
}

#[actix_rt::test]
async fn redis_that_is_down_at_start_is_named_with_its_password_masked_or_waited_for() {
    let mut server = RedisServer::start_with(&["--requirepass", "s3cret"]);
    let url = server.url().replace("redis://", "redis://:s3cret@");
    let wrong = options(&server.url().replace("redis://", "redis://:wr0ng@"));
    let refused = RedisStore::connect(&wrong, sealer()).await.err().unwrap().to_string();
    assert!(refused.contains(":***@127.0.0.1") && !refused.contains("wr0ng"), "{refused}");
    server.stop();
    let down = RedisStore::connect(&options(&url), sealer()).await.err().unwrap();
    assert!(matches!(down, RedisError::Unreachable(_)));
    let text = format!("{down} {down:?}");
    assert!(text.contains(&format!("redis://:***@127.0.0.1:{}", server.port())) && !text.contains("s3cret"), "{text}");
    println!("down at start: {down}");

    let patient = RedisOptions { wait_at_start: Duration::from_secs(20), ..options(&url) };
    let waiting = actix_rt::spawn(async move { RedisStore::connect(&patient, sealer()).await.map(|_| ()) });
    actix_rt::time::sleep(Duration::from_millis(700)).await;
    server.start_again();
    waiting.await.unwrap().unwrap();

    server.hang();
    let began = Instant::now();
    let hung = RedisStore::connect(&options(&url), sealer()).await.err().unwrap();
    println!("hung at start, after {:?}: {hung}", began.elapsed());
    assert!(matches!(hung, RedisError::Unreachable(_)) && began.elapsed() < Duration::from_secs(3));
    server.go_on();
}
