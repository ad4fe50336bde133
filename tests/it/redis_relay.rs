//! A whole relay on Redis: calls go on when Redis does not, usage settles once when it is back, a second relay is
//! refused, and Redis sees next to nothing of the calls.

use crate::fake_upstream::{Chunks, FakeUpstream, Reply, Usage};
use crate::raw_client::{Ended, Request, open, send};
use crate::redis_server::RedisServer;
use crate::relay_app::{TestRelay, message, stream};
use crate::relay_process::{RelayProcess, cli_json, command};
use claude_relay::settings::RedisAddress;
use claude_relay::settings::Settings;
use futures_util::future::join_all;
use serde_json::json;
use std::time::Duration;

const USAGE: Usage = Usage { input: 10, output: 42, cache_creation_5m: 5, cache_creation_1h: 2, cache_read: 3 };

fn on(redis: &RedisServer) -> impl FnOnce(&mut Settings) {
    let url = RedisAddress::parse(&redis.url()).unwrap();
    move |settings| {
        settings.redis.url = url;
        settings.redis.connect_timeout = Duration::from_millis(300);
        settings.redis.command_timeout = Duration::from_millis(300);
        settings.redis.wait_timeout = Duration::from_millis(300);
    }
}

#[actix_rt::test]
async fn an_account_a_key_a_call_and_its_usage_survive_a_restart_of_the_relay() {
    let (upstream, redis) = (FakeUpstream::start(), RedisServer::start());
    let relay = TestRelay::start_in(tempfile::tempdir().unwrap(), on(&redis)).await;
    upstream.always(Reply::message("hi", USAGE));
    relay.add_account("a", &upstream, json!({})).await;
    let key = relay.add_key(json!({"accounts": ["a"]})).await;
    assert_eq!(relay.send(message(&key)).await.status, 200);
    assert_eq!(relay.send(Request::get("/ready")).await.status, 200);
    let dir = relay.stop().await;
    assert!(!dir.path().join("relay.db").exists());

    let relay = TestRelay::start_in(dir, on(&redis)).await;
    assert_eq!(relay.send(message(&key)).await.status, 200);
    assert_eq!(upstream.requests()[1].credential.as_deref(), Some("token-of-a"));
    let rows = relay.usage().await;
    assert_eq!((&rows[0]["requests"], &rows[0]["output_tokens"]), (&json!(2), &json!(84)));
}

#[actix_rt::test]
async fn calls_go_on_while_redis_hangs_or_is_gone_and_settle_once_when_it_is_back() {
    let (upstream, mut redis) = (FakeUpstream::start(), RedisServer::start());
    let relay = TestRelay::start_in(tempfile::tempdir().unwrap(), on(&redis)).await;
    upstream.always(Reply::message("hi", USAGE));
    relay.add_account("a", &upstream, json!({})).await;
    let key = relay.add_key(json!({})).await;
    let ready = || async { relay.send(Request::get("/ready")).await };
    for gone in [false, true] {
        upstream.next(Reply::stream(&["one", "two"], USAGE).chunks(Chunks::Events).pause(Duration::from_millis(50)));
        let streaming = relay.open(stream(&key)).await;
        if gone {
            redis.stop()
        } else {
            redis.hang()
        }
        for _ in 0..5 {
            assert_eq!(relay.send(message(&key)).await.status, 200);
        }
        assert_eq!(streaming.rest().await.ended, Ended::Complete);
        let degraded = ready().await;
        assert_eq!((degraded.status, &degraded.json()["reasons"][0]["code"]), (503, &json!("store")));
        assert_eq!(degraded.json()["status"], "degraded");
        let edit = relay.admin(Request::patch("/admin/accounts/a").json(json!({"name": "x"}))).await;
        assert_eq!(edit.status, 500, "an edit that was not stored was taken: {}", edit.text());
        if gone {
            redis.start_again()
        } else {
            redis.go_on()
        }
        for _ in 0..200 {
            if ready().await.status == 200 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(ready().await.status, 200);
        let edit = relay.admin(Request::patch("/admin/accounts/a").json(json!({"name": "x"}))).await;
        assert_eq!(edit.status, 200, "{}", edit.text());
    }
    let rows = relay.usage().await;
    assert_eq!((&rows[0]["requests"], &rows[0]["output_tokens"]), (&json!(12), &json!(12 * 42)));
}

#[actix_rt::test]
async fn redis_sees_next_to_nothing_of_the_calls() {
    let (upstream, redis) = (FakeUpstream::start(), RedisServer::start());
    let relay = TestRelay::start_in(tempfile::tempdir().unwrap(), on(&redis)).await;
    upstream.always(Reply::message("hi", USAGE));
    relay.add_account("a", &upstream, json!({"concurrencyLimit": 100})).await;
    let key = relay.add_key(json!({})).await;
    assert_eq!(relay.send(message(&key)).await.status, 200);
    relay.usage().await;
    let before: u64 = redis.commands().values().sum();
    for _ in 0..50 {
        let calls = (0..20).map(|_| relay.send(message(&key)));
        assert!(join_all(calls).await.iter().all(|a| a.status == 200));
    }
    let rows = relay.usage().await;
    assert_eq!(rows[0]["requests"], 1001);
    let after: u64 = redis.commands().values().sum();
    println!("{} commands for 1,000 calls and one look at the usage: {:?}", after - before, redis.commands());
    assert!(after - before <= 100, "{} commands for 1,000 calls", after - before);
}

#[actix_rt::test]
async fn a_second_relay_is_refused_and_a_missing_redis_is_named_without_its_password() {
    let (upstream, redis, data, other) =
        (FakeUpstream::start(), RedisServer::start(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let url = redis.url();
    let env = [("CLAUDE_RELAY_REDIS_URL", url.as_str())];
    let mut relay = RelayProcess::start(data.path(), &["--no-demo"], &env).await;
    let account =
        json!({"id": "a", "platform": "claudeconsole", "custom_api_endpoint": upstream.url(), "session_token": "t"});
    cli_json(data.path(), &["account", "add", "--file", "-"], &account.to_string());
    let key = cli_json(data.path(), &["key", "create", "--name", "k"], "")["key"].as_str().unwrap().to_owned();
    assert_eq!(send(relay.addr, message(&key)).await.status, 200);

    let start = |dir: &std::path::Path, url: &str| {
        let mut command = command();
        command.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data-dir"]).arg(dir);
        command.env("CLAUDE_RELAY_REDIS_URL", url).output().unwrap()
    };
    let second = start(other.path(), &url);
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another relay"), "{second:?}");
    let missing = start(other.path(), "redis://user:hunter2@127.0.0.1:1/0");
    let told = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(missing.status.code() == Some(1) && told.contains("127.0.0.1:1") && !told.contains("hunter2"), "{told}");
    let bad = start(other.path(), "http://user:hunter2@h/");
    let told = String::from_utf8_lossy(&bad.stderr).into_owned();
    assert!(bad.status.code() == Some(2) && told.contains("redis.url") && !told.contains("hunter2"), "{told}");

    // Killed and started anew, it has everything; its usage comes from the journal.
    upstream.next(Reply::stream(&["one"], USAGE).hang_after(700));
    let cut = open(relay.addr, stream(&key)).await;
    relay.signal(rustix::process::Signal::KILL);
    relay.ended().await;
    drop(cut);
    let relay = RelayProcess::start(data.path(), &[], &env).await;
    assert_eq!(send(relay.addr, message(&key)).await.status, 200);
    let rows = cli_json(data.path(), &["usage"], "")["rows"].clone();
    assert_eq!(rows[0]["endings"], json!({"complete": 2, "relay_crashed": 1}), "{rows}");
    let migrations = command().args(["migrate", "--status", "--json", "--redis-url", &url]).output().unwrap();
    let migrations: serde_json::Value = serde_json::from_slice(&migrations.stdout).unwrap();
    assert!(migrations["migrations"].as_array().unwrap().iter().all(|m| !m["applied"].is_null()), "{migrations}");
}

#[actix_rt::test]
async fn a_take_over_from_elsewhere_leaves_the_dead_relays_journal_its_usage() {
    let (upstream, redis, one, two) =
        (FakeUpstream::start(), RedisServer::start(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (url, sealing) = (redis.url(), "ab".repeat(32));
    let env = [
        ("CLAUDE_RELAY_REDIS_URL", url.as_str()),
        ("CLAUDE_RELAY_REDIS_SETTLE_INTERVAL", "20ms"),
        ("CLAUDE_RELAY_SEALING_KEY", sealing.as_str()),
    ];
    let mut first = RelayProcess::start(one.path(), &["--no-demo"], &env).await;
    let account =
        json!({"id": "a", "platform": "claudeconsole", "custom_api_endpoint": upstream.url(), "session_token": "t"});
    cli_json(one.path(), &["account", "add", "--file", "-"], &account.to_string());
    let key = cli_json(one.path(), &["key", "create", "--name", "k"], "")["key"].as_str().unwrap().to_owned();
    // Its `begun` is settled while it runs; its `ended` is written and never settled.
    upstream.next(Reply::stream(&["one"], USAGE).chunks(Chunks::Events).pause(Duration::from_millis(60)));
    let streaming = open(first.addr, stream(&key)).await;
    for _ in 0..500 {
        if redis.raw("HLEN claude-relay:{usage-0}open") == ":1\r\n"
            || redis.raw("HLEN claude-relay:{usage-1}open") == ":1\r\n"
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    redis.hang();
    assert_eq!(streaming.rest().await.ended, Ended::Complete);
    first.signal(rustix::process::Signal::KILL);
    first.ended().await;
    redis.go_on();
    let mut second = RelayProcess::start(two.path(), &["--no-demo"], &env).await;
    second.signal(rustix::process::Signal::TERM);
    assert_eq!(second.ended().await, Some(0));
    let third = RelayProcess::start(one.path(), &["--no-demo"], &env).await;
    let rows = cli_json(one.path(), &["usage"], "")["rows"].clone();
    assert_eq!((&rows[0]["endings"], &rows[0]["output_tokens"]), (&json!({"complete": 1}), &json!(42)), "{rows}");
    drop(third);
}

#[actix_rt::test]
async fn after_redis_lost_its_data_edits_are_refused_and_a_key_can_still_be_revoked() {
    let (upstream, mut redis) = (FakeUpstream::start(), RedisServer::start());
    let relay = TestRelay::start_in(tempfile::tempdir().unwrap(), |s| {
        on(&redis)(s);
        s.redis.lock_ttl = Duration::from_secs(1);
    })
    .await;
    upstream.always(Reply::message("hi", USAGE));
    relay.add_account("a", &upstream, json!({})).await;
    let record = relay.add_key_record(json!({})).await;
    let key = record["key"].as_str().unwrap();
    redis.stop_and_lose_data();
    redis.start_again();
    // The next renewal of the claim finds it out.
    for _ in 0..500 {
        if !redis.raw("GET claude-relay:{owner}lock").starts_with("$-1") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(relay.send(message(key)).await.status, 200, "calls go on");
    assert_eq!(relay.send(Request::get("/ready")).await.status, 503);
    let more = relay.admin(Request::post("/admin/keys").json(json!({"name": "new"}))).await;
    assert!(more.status == 500 && more.text().contains("lost data"), "{}", more.text());
    let path = format!("/admin/keys/{}", record["id"].as_str().unwrap());
    assert_eq!(relay.admin(Request::delete(&path)).await.status, 404);
    assert_eq!(relay.send(message(key)).await.header("x-relay-error"), Some("key_unknown"));
}

#[actix_rt::test]
async fn a_relay_that_lost_its_claim_ends_and_writes_nothing_more() {
    let (redis, one, two) = (RedisServer::start(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (url, key) = (redis.url(), "ab".repeat(32));
    let env = [
        ("CLAUDE_RELAY_REDIS_URL", url.as_str()),
        ("CLAUDE_RELAY_REDIS_LOCK_TTL", "1s"),
        ("CLAUDE_RELAY_SEALING_KEY", key.as_str()),
    ];
    let mut first = RelayProcess::start(one.path(), &["--no-demo"], &env).await;
    first.signal(rustix::process::Signal::STOP);
    let second = RelayProcess::start(two.path(), &["--no-demo"], &env).await;
    first.signal(rustix::process::Signal::CONT);
    assert_eq!(first.ended().await, Some(70));
    assert!(first.output().contains("taken") && first.output().contains("the process ends"), "{}", first.output());
    assert_eq!(send(second.addr, Request::get("/health")).await.status, 200);
}

#[actix_rt::test]
async fn the_store_moves_to_redis_and_back_and_keys_and_accounts_work_after_it() {
    let (upstream, redis, data) = (FakeUpstream::start(), RedisServer::start(), tempfile::tempdir().unwrap());
    let relay = RelayProcess::start(data.path(), &["--no-demo"], &[]).await;
    let account =
        json!({"id": "a", "platform": "claudeconsole", "custom_api_endpoint": upstream.url(), "session_token": "t"});
    cli_json(data.path(), &["account", "add", "--file", "-"], &account.to_string());
    let key = cli_json(data.path(), &["key", "create", "--name", "k"], "")["key"].as_str().unwrap().to_owned();
    assert_eq!(send(relay.addr, message(&key)).await.status, 200);
    let (file, url) = (format!("sqlite:{}", data.path().join("relay.db").display()), redis.url());
    let migrate = |from: &str, to: &str, more: &[&str]| {
        let output = command().args(["migrate", "--json", "--from", from, "--to", to]).args(more).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (code, told) = migrate(&file, &url, &[]);
    assert!(code == Some(1) && told.contains("in use by another relay"), "{told}");
    stop(relay).await;

    let (code, told) = migrate(&file, &url, &["--dry-run"]);
    assert!(code == Some(0) && told.contains("\"dry_run\": true"), "{told}");
    assert_eq!(migrate(&file, &url, &[]).0, Some(0));
    let (code, told) = migrate(&file, &url, &[]);
    assert!(code == Some(1) && told.contains("not empty"), "{told}");
    let env = [("CLAUDE_RELAY_REDIS_URL", url.as_str())];
    let relay = RelayProcess::start(data.path(), &[], &env).await;
    assert_eq!(send(relay.addr, message(&key)).await.status, 200);
    assert_eq!(cli_json(data.path(), &["usage"], "")["rows"][0]["requests"], 2);
    stop(relay).await;

    let back = tempfile::tempdir().unwrap();
    let there = format!("sqlite:{}", back.path().join("relay.db").display());
    let (code, told) = migrate(&url, &there, &[]);
    assert!(code == Some(1) && told.contains("sealing.key"), "a new key was made for old secrets: {told}");
    let (code, told) = migrate(&url, &there, &["--data-dir", data.path().to_str().unwrap()]);
    assert_eq!(code, Some(0), "{told}");
    std::fs::copy(data.path().join("admin-token"), back.path().join("admin-token")).unwrap();
    let relay = RelayProcess::start(back.path(), &[], &[]).await;
    assert_eq!(send(relay.addr, message(&key)).await.status, 200);
    assert_eq!(cli_json(back.path(), &["usage"], "")["rows"][0]["requests"], 3);
}

#[actix_rt::test]
async fn a_redis_that_comes_back_empty_is_told_of_and_its_usage_is_booked_again_from_the_journal() {
    let (upstream, mut redis) = (FakeUpstream::start(), RedisServer::start());
    let relay = TestRelay::start_in(tempfile::tempdir().unwrap(), on(&redis)).await;
    upstream.always(Reply::message("hi", USAGE));
    relay.add_account("a", &upstream, json!({})).await;
    let key = relay.add_key(json!({})).await;
    for _ in 0..3 {
        assert_eq!(relay.send(message(&key)).await.status, 200);
    }
    assert_eq!(relay.usage().await[0]["requests"], 3);
    redis.stop_and_lose_data();
    for _ in 0..4 {
        assert_eq!(relay.send(message(&key)).await.status, 200);
    }
    redis.start_again();
    // The first attempt finds that its offset is unknown, the next one begins anew.
    for _ in 0..100 {
        let answer = relay.admin(Request::get("/admin/usage")).await;
        if answer.status == 200 && answer.json()["rows"][0]["requests"] == 7 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let rows = relay.usage().await;
    assert_eq!((&rows[0]["requests"], &rows[0]["output_tokens"]), (&json!(7), &json!(7 * 42)));
    let degraded = relay.send(Request::get("/ready")).await;
    assert_eq!((degraded.status, &degraded.json()["reasons"][0]["code"]), (503, &json!("store")));
    assert_eq!(relay.send(message(&key)).await.status, 200, "what is in memory serves on");
    relay.stop().await;
    assert_eq!(redis.raw("EXISTS claude-relay:{owner}lock"), ":0\r\n", "the claim was not given back");
}

#[actix_rt::test]
async fn a_relay_that_slept_through_its_claim_ends_itself() {
    let (redis, home, away) = (RedisServer::start(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (url, sealing) = (redis.url(), "ab".repeat(32));
    let env = [
        ("CLAUDE_RELAY_REDIS_URL", url.as_str()),
        ("CLAUDE_RELAY_SEALING_KEY", &sealing),
        ("CLAUDE_RELAY_REDIS_LOCK_TTL", "1s"),
    ];
    let mut first = RelayProcess::start(home.path(), &["--no-demo"], &env).await;
    first.signal(rustix::process::Signal::STOP);
    let _second = RelayProcess::start(away.path(), &["--no-demo"], &env).await;
    first.signal(rustix::process::Signal::CONT);
    assert_eq!(first.ended().await, Some(70));
    assert!(first.output().contains("another relay has taken"), "{}", first.output());
}

#[actix_rt::test]
async fn the_schema_of_either_store_is_shown_and_a_dry_run_changes_nothing() {
    let redis = RedisServer::start();
    let data = tempfile::tempdir().unwrap();
    let migrate = |url: &str, flag: &str| {
        let mut run = command();
        run.args(["migrate", "--json", flag, "--data-dir"]).arg(data.path());
        if !url.is_empty() {
            run.env("CLAUDE_RELAY_REDIS_URL", url);
        }
        let output = run.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        answer["migrations"].as_array().unwrap().clone()
    };
    let pending = migrate(&redis.url(), "--status");
    assert!(pending.len() == 2 && pending.iter().all(|m| m["applied"].is_null()), "{pending:?}");
    assert_eq!((migrate(&redis.url(), "--dry-run").len(), redis.raw("DBSIZE").as_str()), (2, ":0\r\n"));
    let relay = RelayProcess::start(data.path(), &["--no-demo"], &[]).await;
    // Looking does not disturb a relay that runs.
    let applied = migrate("", "--status");
    assert!(!applied.is_empty() && applied.iter().all(|m| m["applied"]["applied_at"].is_string()), "{applied:?}");
    assert!(migrate("", "--dry-run").is_empty());
    stop(relay).await;
}

async fn stop(mut relay: RelayProcess) {
    relay.signal(rustix::process::Signal::TERM);
    assert_eq!(relay.ended().await, Some(0));
}
