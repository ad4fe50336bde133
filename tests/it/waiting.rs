//! Waiting for a busy pool, and sessions that stay with their account: through the whole stack.

use crate::fake_upstream::{FakeUpstream, Reply, Usage};
use crate::raw_client::{Request, Streaming};
use crate::relay_app::{TestRelay, body, eventually, message, stream};
use claude_relay::settings::Settings;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const USAGE: Usage = Usage { input: 10, output: 42, cache_creation_5m: 0, cache_creation_1h: 0, cache_read: 0 };

/// A relay whose only slot is held by a stream.
async fn full(upstream: &FakeUpstream, edit: impl FnOnce(&mut Settings)) -> (TestRelay, String, Streaming) {
    let relay = TestRelay::start_with(|s| {
        s.upstream.abort_linger = Duration::ZERO;
        edit(s);
    })
    .await;
    relay.add_account("a", upstream, json!({"concurrencyLimit": 1})).await;
    let key = relay.add_key(json!({})).await;
    upstream.next(Reply::stream(&["one"], USAGE).hang_after(100));
    let held = relay.open(stream(&key)).await;
    (relay, key, held)
}

async fn waiting(relay: &TestRelay) -> u64 {
    relay.admin(Request::get("/admin/status")).await.json()["waiting"].as_u64().unwrap()
}

async fn wait_for(relay: &TestRelay, n: u64) {
    while waiting(relay).await != n {
        tokio::task::yield_now().await;
    }
}

async fn patch(relay: &TestRelay, id: &str, fields: serde_json::Value) {
    let answer = relay.admin(Request::patch(&format!("/admin/accounts/{id}")).json(fields)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[actix_rt::test]
async fn a_freed_slot_a_new_account_an_edit_or_an_enabled_one_wakes_the_next() {
    let upstream = FakeUpstream::start();
    for how in ["freed", "added", "limit", "enabled"] {
        let (relay, key, held) = full(&upstream, |_| {}).await;
        relay.add_account("b", &upstream, json!({"status": "disabled"})).await;
        let later = relay.open_later(message(&key));
        wait_for(&relay, 1).await;
        match how {
            "added" => drop(relay.add_account("c", &upstream, json!({})).await),
            "limit" => patch(&relay, "a", json!({"concurrencyLimit": 2})).await,
            "enabled" => drop(relay.admin(Request::post("/admin/accounts/b/enable")).await),
            _ => {}
        }
        if how != "freed" {
            assert_eq!(later.await.unwrap().status, 200, "{how}");
            held.leave();
        } else {
            held.leave();
            assert_eq!(later.await.unwrap().status, 200, "{how}");
        }
        relay.idle().await;
    }
}

#[actix_rt::test]
async fn a_wait_ends_with_its_time_its_client_or_its_key_and_is_bounded() {
    let upstream = FakeUpstream::start();
    let (relay, key, held) = full(&upstream, |s| {
        s.queue.per_key = 2;
        s.queue.total = 3;
    })
    .await;
    let short = message(&key).header("x-stainless-timeout", "0.2");
    let late = relay.send(short).await;
    assert_eq!((late.status, late.header("x-relay-error")), (529, Some("wait_timeout")));
    assert!(late.header("retry-after").is_some());

    let record = relay.add_key_record(json!({})).await;
    let other = record["key"].as_str().unwrap().to_owned();
    let mine: Vec<_> = (0..2).map(|_| relay.open_later(message(&key))).collect();
    wait_for(&relay, 2).await;
    let full = relay.send(message(&key)).await;
    assert_eq!((full.status, full.header("x-relay-error")), (529, Some("line_full")), "{}", full.text());
    assert!(full.text().contains("this key has 2"), "{}", full.text());
    let theirs = relay.open_later(message(&other));
    wait_for(&relay, 3).await;
    let full = relay.send(message(&other)).await;
    assert!(full.header("x-relay-error") == Some("line_full") && full.text().contains("the relay has 3"));

    let revoked = Request::patch(&format!("/admin/keys/{}", record["id"].as_str().unwrap()));
    assert_eq!(relay.admin(revoked.json(json!({"status": "revoked"}))).await.status, 200);
    let ended = theirs.await.unwrap();
    assert_eq!((ended.status, ended.header("x-relay-error")), (401, Some("key_revoked")));
    wait_for(&relay, 2).await;
    held.leave();
    for answer in mine {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    relay.idle().await;
    assert_eq!(upstream.requests().len(), 3);
}

#[actix_rt::test]
async fn a_client_that_leaves_while_it_waits_is_forgotten() {
    let upstream = FakeUpstream::start();
    let (relay, key, held) = full(&upstream, |_| {}).await;
    let mut connection = crate::raw_client::Connection::open(relay.addr()).await;
    let json = body(false).to_string();
    let head = format!("POST /v1/messages HTTP/1.1\r\nhost: r\r\nx-api-key: {key}\r\ncontent-length: {}", json.len());
    connection.write(format!("{head}\r\n\r\n{json}").as_bytes()).await;
    wait_for(&relay, 1).await;
    connection.leave();
    wait_for(&relay, 0).await;
    eventually("its ticket is gone", || relay.outstanding().tickets == 0).await;
    held.leave();
    relay.idle().await;
    assert_eq!(upstream.requests().len(), 1);
}

#[actix_rt::test]
async fn a_crowd_of_one_key_does_not_starve_the_others() {
    let upstream = FakeUpstream::start();
    let (relay, heavy, held) = full(&upstream, |_| {}).await;
    let crowd: Vec<_> = (0..40).map(|_| relay.open_later(message(&heavy))).collect();
    wait_for(&relay, 40).await;
    let mut light = Vec::new();
    for n in 0..4 {
        let key = relay.add_key(json!({})).await;
        let request = message(&key).header("x-light", &n.to_string());
        light.push(relay.open_later(request));
        wait_for(&relay, 41 + n).await;
    }
    held.leave();
    for answer in crowd.into_iter().chain(light) {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    let order: Vec<_> = upstream.requests().iter().map(|r| r.header("x-light").is_some()).collect();
    let last_light = order.iter().rposition(|light| *light).unwrap();
    assert!(last_light <= 6, "light calls were served as numbers {order:?}");
}

#[actix_rt::test]
async fn whoever_waits_is_told_at_once_when_the_relay_stops() {
    let upstream = FakeUpstream::start();
    let (relay, key, held) = full(&upstream, |s| s.drain_timeout = Duration::from_millis(300)).await;
    let later = relay.open_later(message(&key));
    wait_for(&relay, 1).await;
    relay.stop().await;
    let answer = later.await.unwrap();
    assert_eq!((answer.status, answer.header("x-relay-error")), (529, Some("draining")));
    drop(held);
}

/// Ten turns of each session over eight accounts that each remember the sessions they saw: the share of turns that
/// found their conversation in the account's prompt cache.
async fn hit_rate(sessions: u32) -> f64 {
    let upstream = FakeUpstream::start();
    let relay = TestRelay::start_with(|s| s.affinity.sessions = sessions).await;
    for n in 0..8 {
        relay.add_account(&format!("a{n}"), &upstream, json!({})).await;
    }
    let key = relay.add_key(json!({})).await;
    for _ in 0..10 {
        let turns = (0..20).map(|n| relay.send(message(&key).header("x-claude-code-session-id", &format!("s{n}"))));
        assert!(futures_util::future::join_all(turns).await.iter().all(|a| a.status == 200));
    }
    let (mut seen, mut hits) = (BTreeSet::new(), 0);
    let requests = upstream.requests();
    for r in &requests {
        let place = (r.credential.clone(), r.header("x-claude-code-session-id").map(str::to_owned));
        hits += i32::from(!seen.insert(place));
    }
    f64::from(hits) / requests.len() as f64
}

#[actix_rt::test]
async fn sessions_find_their_prompt_cache() {
    let (with, without) = (hit_rate(1_000).await, hit_rate(0).await);
    println!("prompt-cache hits: {:.0} % with sessions, {:.0} % without", with * 100.0, without * 100.0);
    assert!(with >= 0.85 && without < 0.7, "{with} {without}");
}

#[actix_rt::test]
async fn a_session_is_named_in_four_ways_belongs_to_its_key_and_comes_home() {
    let upstream = FakeUpstream::start();
    let relay = TestRelay::start().await;
    for n in 0..6 {
        relay.add_account(&format!("a{n}"), &upstream, json!({})).await;
    }
    let key = relay.add_key(json!({})).await;
    let in_body = |field: &str, value: serde_json::Value| {
        let mut json = body(false);
        json[field] = value;
        Request::post("/v1/messages").header("x-api-key", &key).json(json)
    };
    let user = json!({"device_id": "d", "account_uuid": "u", "session_id": "s"}).to_string();
    type Asks<'a> = Box<dyn Fn() -> Request + 'a>;
    let ways: [Asks<'_>; 5] = [
        Box::new(|| message(&key).header("x-claude-code-session-id", "s")),
        Box::new(|| message(&key).header("x-session-id", "s")),
        Box::new(|| in_body("metadata", json!({ "user_id": user }))),
        Box::new(|| in_body("metadata", json!({"user_id": "user_1_account_2_session_s"}))),
        Box::new(|| in_body("prompt_cache_key", json!("s"))),
    ];
    let home = async |request: Request| {
        assert_eq!(relay.send(request).await.status, 200);
        upstream.requests().last().unwrap().credential.clone().unwrap()
    };
    let first = home(ways[0]()).await;
    for way in &ways {
        for _ in 0..3 {
            assert_eq!(home(way()).await, first, "one name is one session, however it is told");
        }
    }
    let mut spread = BTreeMap::new();
    for n in 0..60 {
        let at = home(message(&key).header("x-session-id", &format!("other-{n}"))).await;
        *spread.entry(at).or_insert(0) += 1;
    }
    assert!(spread.len() == 6, "{spread:?}");
    // Its home is out: it stays elsewhere, in one place, and comes home.
    let id = first.trim_start_matches("token-of-").to_owned();
    relay.admin(Request::post(&format!("/admin/accounts/{id}/drain"))).await;
    let away = home(ways[0]()).await;
    assert_ne!(away, first);
    for _ in 0..5 {
        assert_eq!(home(ways[0]()).await, away);
    }
    relay.admin(Request::post(&format!("/admin/accounts/{id}/enable"))).await;
    assert_eq!(home(ways[0]()).await, first);
}
