//! How accounts go out and come back, and what an operator is told: through the whole stack.

use crate::fake_upstream::{Cut, FakeUpstream, Reply, Usage};
use crate::raw_client::Request;
use crate::relay_app::{TestRelay, body, eventually, message, stream, without_waiting};
use claude_relay::actors::front::Drain;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime};

const USAGE: Usage = Usage { input: 10, output: 42, cache_creation_5m: 0, cache_creation_1h: 0, cache_read: 0 };

fn limited(headers: &[(&str, String)]) -> Reply {
    let body = json!({"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"}});
    headers.iter().fold(Reply::json(429, body), |reply, (name, value)| reply.header(name, value))
}

fn asking(key: &str, model: &str) -> Request {
    let mut json = body(false);
    json["model"] = json!(model);
    Request::post("/v1/messages").header("x-api-key", key).json(json)
}

/// The first reason of the account, and the seconds until it ends.
async fn reason(relay: &TestRelay, id: &str) -> (String, Option<i64>, String) {
    let status = relay.account_status(id).await;
    let reason = &status["reasons"][0];
    let until = reason["until"].as_str().map(|t| t.parse::<chrono::DateTime<chrono::Utc>>().unwrap());
    let left = until.map(|t| (t - chrono::Utc::now()).num_milliseconds());
    let text = |name: &str| reason[name].as_str().unwrap_or_default().to_owned();
    (text("code"), left.map(|ms| (ms + 999) / 1_000), text("evidence"))
}

#[actix_rt::test]
async fn a_429_benches_for_what_its_headers_say_and_for_no_longer() {
    let epoch = |s: i64| (chrono::Utc::now().timestamp() + s).to_string();
    let date = |s: u64| httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(s));
    let rfc = |s: i64| (chrono::Utc::now() + chrono::TimeDelta::seconds(s)).to_rfc3339();
    let unified = "anthropic-ratelimit-unified-status";
    let claim = "anthropic-ratelimit-unified-representative-claim";
    type Form<'a> = (&'a str, Vec<(&'a str, String)>, &'a str, i64);
    let forms: Vec<Form<'_>> = vec![
        ("seconds", vec![("retry-after", "17".into())], "rate_limited_burst", 17),
        ("a date", vec![("retry-after", date(30))], "rate_limited_burst", 30),
        (
            "milliseconds",
            vec![("retry-after-ms", "4000".into()), ("retry-after", "60".into())],
            "rate_limited_burst",
            4,
        ),
        (
            "RFC 3339",
            vec![
                ("anthropic-ratelimit-requests-remaining", "0".into()),
                ("anthropic-ratelimit-requests-reset", rfc(25)),
            ],
            "rate_limited_burst",
            25,
        ),
        (
            "a span",
            vec![("x-ratelimit-remaining-requests", "0".into()), ("x-ratelimit-reset-requests", "6m0s".into())],
            "rate_limited_burst",
            360,
        ),
        (
            "five hours",
            vec![
                (unified, "rejected".into()),
                (claim, "five_hour".into()),
                ("anthropic-ratelimit-unified-5h-reset", epoch(7_200)),
                ("retry-after", "7200".into()),
            ],
            "rate_limited_window",
            7_200,
        ),
        (
            "a burst beside a window",
            vec![
                (unified, "allowed".into()),
                ("anthropic-ratelimit-unified-5h-reset", epoch(7_200)),
                ("anthropic-ratelimit-unified-reset", epoch(7_200)),
                ("retry-after", "12".into()),
            ],
            "rate_limited_burst",
            12,
        ),
        ("nothing", vec![], "rate_limited_burst", 2),
    ];
    for (name, headers, code, seconds) in forms {
        let upstream = FakeUpstream::start();
        let relay = TestRelay::start_with(without_waiting).await;
        relay.add_account("a", &upstream, json!({})).await;
        let key = relay.add_key(json!({})).await;
        upstream.next(limited(&headers));
        assert_eq!(relay.send(message(&key)).await.status, 429);
        let (said, left, evidence) = reason(&relay, "a").await;
        assert_eq!(said, code, "{name}: {evidence}");
        let left = left.unwrap();
        assert!((seconds - 3..=seconds).contains(&left), "{name}: {left} s left of {seconds}");
        assert!(evidence.contains("status 429"), "{name}: {evidence}");
        let refused = relay.send(message(&key)).await;
        let after: i64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert_eq!((refused.status, refused.header("x-relay-error")), (529, Some(code)), "{name}");
        assert!((seconds - 3..=seconds + 1).contains(&after), "{name}: retry-after {after}");
        assert_eq!(upstream.requests().len(), 1, "{name}: it was asked while it was out");
    }
}

#[actix_rt::test]
async fn a_familys_window_benches_that_family_alone() {
    let (upstream, relay) = (FakeUpstream::start(), TestRelay::start_with(without_waiting).await);
    relay.add_account("a", &upstream, json!({"priority": 1})).await;
    relay.add_account("b", &upstream, json!({"priority": 2})).await;
    let key = relay.add_key(json!({})).await;
    let reset = (chrono::Utc::now().timestamp() + 9_000).to_string();
    upstream.next(limited(&[
        ("anthropic-ratelimit-unified-status", "rejected".to_owned()),
        ("anthropic-ratelimit-unified-representative-claim", "seven_day_opus".to_owned()),
        ("anthropic-ratelimit-unified-7d_opus-reset", reset),
    ]));
    for (model, account) in [("claude-opus-4-5", "b"), ("claude-opus-4-5", "b"), ("claude-sonnet-4-5", "a")] {
        assert_eq!(relay.send(asking(&key, model)).await.status, 200);
        let last = upstream.requests().last().unwrap().credential.clone();
        assert_eq!(last, Some(format!("token-of-{account}")), "{model}");
    }
    let status = relay.account_status("a").await;
    assert_eq!((&status["schedulable"], &status["reasons"][0]["blocks"]), (&json!(true), &json!(false)));
}

#[actix_rt::test]
async fn an_upstream_that_dies_is_out_soon_and_back_soon_and_all_of_it_is_told() {
    for (name, bad) in [
        ("500", Reply::json(500, json!({}))),
        ("closing", Reply::hangup(Cut::Rst)),
        ("hanging", Reply::message("never", USAGE).hang()),
    ] {
        let upstream = FakeUpstream::start();
        let relay = TestRelay::start_with(|s| {
            s.health.breaker_first = Duration::from_millis(150);
            s.health.slow_start = Duration::from_millis(300);
            s.upstream.first_byte_timeout = Duration::from_millis(50);
            s.upstream.abort_linger = Duration::ZERO;
            s.failover.floor = 1_000;
        })
        .await;
        for id in ["a", "b", "c"] {
            relay.add_account(id, &upstream, json!({"probe": "none"})).await;
        }
        let key = relay.add_key(json!({})).await;
        let of_a = || upstream.requests().iter().filter(|r| r.credential.as_deref() == Some("token-of-a")).count();
        upstream.always_for("token-of-a", bad);
        let died = Instant::now();
        while !relay.reasons("a").await.contains(&"breaker_open".to_owned()) {
            assert_eq!(relay.send(message(&key)).await.status, 200, "{name}: no client sees it");
            assert!(died.elapsed() < Duration::from_secs(10), "{name}: {} {}", of_a(), relay.account_status("a").await);
        }
        let (ejected, asked) = (died.elapsed(), of_a());
        assert_eq!(asked, 5, "{name}: as many failures as open the breaker");
        let (_, _, evidence) = reason(&relay, "a").await;
        assert!(evidence.starts_with("5 failures in a row"), "{evidence}");
        upstream.always_for("token-of-a", Reply::message("back", USAGE));
        let revived = Instant::now();
        while relay.reasons("a").await != [""; 0] {
            assert_eq!(relay.send(message(&key)).await.status, 200);
        }
        println!("{name}: ejected after {ejected:.0?}, full traffic {:.0?} after it was back", revived.elapsed());
        // Half-open may last no time at all; the others are kept, the last of them a moment later.
        for step in [r#"["breaker_open"]"#, r#"["slow_start"]"#, "[]"] {
            while !transitions(&relay, "a").await.iter().any(|seen| seen == step) {
                assert!(
                    revived.elapsed() < Duration::from_secs(10),
                    "{name}: {step} is not told: {:?}",
                    relay.admin(Request::get("/admin/accounts/a/events")).await.json()
                );
                tokio::task::yield_now().await;
            }
        }
    }
}

async fn transitions(relay: &TestRelay, id: &str) -> Vec<String> {
    let events = relay.admin(Request::get(&format!("/admin/accounts/{id}/events"))).await.json();
    events["events"].as_array().unwrap().iter().map(|e| e["reasons"].to_string()).collect()
}

#[actix_rt::test]
async fn a_sole_account_is_never_put_out_by_its_breaker() {
    let (upstream, relay) = (FakeUpstream::start(), TestRelay::start_with(without_waiting).await);
    relay.add_account("a", &upstream, json!({"probe": "none"})).await;
    let key = relay.add_key(json!({})).await;
    upstream.always(Reply::json(500, json!({"from": "upstream"})));
    for _ in 0..30 {
        let answer = relay.send(message(&key)).await;
        assert_eq!((answer.status, answer.header("x-relay-error")), (500, None));
    }
    assert_eq!(upstream.requests().len(), 30);
    let status = relay.account_status("a").await;
    assert_eq!((&status["schedulable"], &status["last_resort"]), (&json!(true), &json!(true)), "{status}");
}

#[actix_rt::test]
async fn a_probe_that_fails_keeps_it_out_without_a_clients_call() {
    let upstream = FakeUpstream::start();
    let relay = TestRelay::start_with(|s| s.health.breaker_first = Duration::from_millis(60)).await;
    relay.add_account("a", &upstream, json!({"probe": "messages", "priority": 1})).await;
    relay.add_account("b", &upstream, json!({"priority": 2})).await;
    let key = relay.add_key(json!({})).await;
    upstream.always_for("token-of-a", Reply::json(500, json!({})));
    for _ in 0..5 {
        assert_eq!(relay.send(message(&key)).await.status, 200);
    }
    let own = |r: &&crate::fake_upstream::Recorded| {
        r.credential.as_deref() == Some("token-of-a")
            && r.header("user-agent").is_some_and(|ua| ua.starts_with("claude-relay/"))
    };
    upstream.wait_until_async(|u| u.requests().iter().filter(own).count() >= 3).await;
    let of_a = upstream.requests().iter().filter(|r| r.credential.as_deref() == Some("token-of-a")).count();
    assert_eq!(of_a - upstream.requests().iter().filter(own).count(), 5, "a client's call was spent on it");
}

/// An upstream whose count_tokens is broken, by itself: messages alone decide.
#[actix_rt::test]
async fn a_probe_that_cannot_be_answered_keeps_nobody_out_for_long() {
    let upstream = FakeUpstream::start();
    let relay = TestRelay::start_with(|s| s.health.breaker_first = Duration::from_millis(60)).await;
    for (id, priority) in [("a", 1), ("b", 2), ("c", 3)] {
        relay.add_account(id, &upstream, json!({"probe": "count_tokens", "priority": priority})).await;
    }
    let key = relay.add_key(json!({})).await;
    upstream.always_for("token-of-a", Reply::json(500, json!({})));
    for _ in 0..5 {
        assert_eq!(relay.send(message(&key)).await.status, 200);
    }
    assert_eq!(relay.reasons("a").await, ["breaker_open"]);
    upstream.always_for("token-of-a", Reply::json(500, json!({})));
    upstream.wait_until_async(|u| u.requests().iter().any(|r| r.path.contains("count_tokens"))).await;
    // Messages of "a" are well again; everything else is not.
    upstream.forget_for("token-of-a");
    upstream.answer_with(|r| match r.path.contains("count_tokens") || r.path.contains("models") {
        true => Reply::json(500, json!({})),
        false => Reply::message("back", USAGE),
    });
    let since = Instant::now();
    while relay.account_status("a").await["schedulable"] != json!(true) {
        assert!(since.elapsed() < Duration::from_secs(10), "{}", relay.account_status("a").await);
        assert_eq!(relay.send(message(&key)).await.status, 200);
    }
}

/// The trial of a sole account may take as long as a model thinks: that is no reason to turn the others away.
#[actix_rt::test]
async fn a_sole_account_takes_calls_while_its_trial_is_under_way() {
    let upstream = FakeUpstream::start();
    let relay = TestRelay::start_with(|s| {
        s.health.breaker_first = Duration::from_millis(1);
        s.queue.timeout = Duration::ZERO;
        s.upstream.abort_linger = Duration::ZERO;
    })
    .await;
    relay.add_account("a", &upstream, json!({"probe": "none", "concurrencyLimit": 9})).await;
    let key = relay.add_key(json!({})).await;
    for _ in 0..5 {
        upstream.next(Reply::json(500, json!({})));
        assert_eq!(relay.send(message(&key)).await.status, 500);
    }
    while relay.reasons("a").await != ["half_open"] {
        tokio::task::yield_now().await;
    }
    upstream.next(Reply::message("thinking", USAGE).hang());
    let trial = relay.open_later(message(&key));
    upstream.wait_requests_async(6).await;
    let status = relay.account_status("a").await;
    assert_eq!((&status["schedulable"], &status["last_resort"]), (&json!(true), &json!(true)), "{status}");
    // Nor is its slow start one.
    for _ in 0..3 {
        upstream.next(Reply::stream(&["one"], USAGE).hang_after(200));
        let mut held = relay.open(stream(&key)).await;
        assert_eq!(held.status, 200);
        held.next().await;
        tokio::spawn(async move { held.leave() });
    }
    trial.abort();
    relay.idle().await;
}

/// A stream that begins well and ends with the upstream's own error is no success.
#[actix_rt::test]
async fn a_stream_that_ends_with_an_error_event_counts_as_the_failure_it_is() {
    let upstream = FakeUpstream::start();
    let error = |kind: &str| {
        let error = json!({"type": "error", "error": {"type": kind, "message": "x"}});
        Reply::sse(&format!("event: ping\ndata: {{\"type\": \"ping\"}}\n\nevent: error\ndata: {error}\n\n"))
    };
    for (kind, out) in [("overloaded_error", true), ("api_error", true), ("invalid_request_error", false)] {
        let relay = TestRelay::start().await;
        for (id, priority) in [("a", 1), ("b", 2)] {
            relay.add_account(id, &upstream, json!({"probe": "none", "priority": priority})).await;
        }
        let key = relay.add_key(json!({})).await;
        upstream.always_for("token-of-a", error(kind));
        for _ in 0..5 {
            assert!(relay.send(stream(&key)).await.text().contains(kind));
            relay.idle().await;
        }
        let told = if out { vec!["breaker_open".to_owned()] } else { Vec::new() };
        assert_eq!(relay.reasons("a").await, told, "{kind}");
        assert_eq!(relay.endings().await, [("upstream_error".to_owned(), 5)]);
    }
}

/// The share of calls that went well is told of an account that is out too, and whatever the fault was.
#[actix_rt::test]
async fn the_success_rate_outlives_the_breaker_and_counts_every_fault() {
    let (upstream, relay) = (FakeUpstream::start(), TestRelay::start().await);
    for (id, priority) in [("a", 1), ("b", 2), ("c", 3)] {
        relay.add_account(id, &upstream, json!({"probe": "none", "priority": priority})).await;
    }
    let key = relay.add_key(json!({})).await;
    for _ in 0..10 {
        assert_eq!(relay.send(message(&key)).await.status, 200);
    }
    upstream.always_for("token-of-a", Reply::json(500, json!({})));
    for _ in 0..5 {
        assert_eq!(relay.send(message(&key)).await.status, 200);
    }
    upstream.always_for("token-of-b", limited(&[("retry-after", "9".to_owned())]));
    assert_eq!(relay.send(message(&key)).await.status, 200);
    let rate = async |id: &str| relay.account_status(id).await["success_rate"].as_f64().unwrap();
    assert!((rate("a").await - 10.0 / 15.0).abs() < 0.01, "{}", rate("a").await);
    assert!((rate("b").await - 5.0 / 6.0).abs() < 0.01, "{}", rate("b").await);
}

/// What an earlier process had learnt is forgotten, and the events say so.
#[actix_rt::test]
async fn events_outlive_the_process_and_say_what_it_forgot() {
    let (upstream, relay) = (FakeUpstream::start(), TestRelay::start().await);
    relay.add_account("a", &upstream, json!({"probe": "none"})).await;
    relay.add_account("b", &upstream, json!({})).await;
    let key = relay.add_key(json!({"accounts": ["a"]})).await;
    upstream
        .next(Reply::json(401, json!({"type": "error", "error": {"type": "authentication_error", "message": "no"}})));
    assert_eq!(relay.send(message(&key)).await.status, 401);
    while transitions(&relay, "a").await.is_empty() {
        tokio::task::yield_now().await;
    }
    let dir = relay.stop().await;
    let relay = TestRelay::start_in(dir, |_| {}).await;
    while transitions(&relay, "a").await.len() < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(transitions(&relay, "a").await, ["[]", r#"["credential_rejected"]"#]);
    assert!(transitions(&relay, "b").await.is_empty(), "what was well and is well is no news");
}

#[actix_rt::test]
async fn explain_names_the_reason_of_each_and_whom_the_next_call_goes_to() {
    let (upstream, relay) = (FakeUpstream::start(), TestRelay::start().await);
    let mut expected = vec![];
    for (id, fields, code) in [
        ("disabled", json!({"status": "disabled"}), "operator_disabled"),
        ("held", json!({"schedulable": false}), "unschedulable"),
        ("draining", json!({"status": "draining"}), "draining"),
        ("expired", json!({"expires_at": "2020-01-01T00:00:00Z"}), "expired"),
        ("bare", json!({"session_token": null}), "no_credential"),
        ("other-model", json!({"models": ["another"]}), "model_unsupported"),
        ("full", json!({"concurrencyLimit": 1, "group": "x", "priority": 1}), "at_capacity"),
        ("rejected", json!({"group": "x", "probe": "none"}), "credential_rejected"),
        ("poor", json!({"group": "x", "probe": "none"}), "billing"),
        ("bursting", json!({"group": "x"}), "rate_limited_burst"),
        ("spent", json!({"group": "x"}), "rate_limited_window"),
        ("overloaded", json!({"group": "x"}), "overloaded"),
    ] {
        relay.add_account(id, &upstream, fields).await;
        expected.push((id, code));
    }
    let error = |status, message: &str| {
        Reply::json(status, json!({"type": "error", "error": {"type": "e", "message": message}}))
    };
    for (id, reply) in [
        ("rejected", error(401, "no")),
        ("poor", error(400, "Your credit balance is too low")),
        ("bursting", limited(&[("retry-after", "100".to_owned())])),
        (
            "spent",
            limited(&[
                ("anthropic-ratelimit-unified-status", "rejected".to_owned()),
                ("retry-after", "9000".to_owned()),
            ]),
        ),
        ("overloaded", error(529, "later").header("retry-after", "50")),
    ] {
        upstream.always_for(&format!("token-of-{id}"), reply);
        let bound = relay.add_key(json!({"accounts": [id]})).await;
        relay.send(message(&bound)).await;
    }
    let holder = relay.add_key(json!({"accounts": ["full"]})).await;
    upstream.always_for("token-of-full", Reply::stream(&["one"], USAGE).hang_after(100));
    let held = relay.open(stream(&holder)).await;
    relay.add_account("good", &upstream, json!({})).await;
    let record = relay.add_key_record(json!({})).await;
    let model = body(false)["model"].as_str().unwrap().to_owned();
    let path = format!("/admin/explain?key={}&model={model}", record["id"].as_str().unwrap());
    let told = relay.admin(Request::get(&path)).await.json();
    assert_eq!(told["picked"], "good", "{told:#}");
    let of = |id: &str| told["accounts"].as_array().unwrap().iter().find(|a| a["id"] == id).unwrap().clone();
    for (id, code) in expected {
        let account = of(id);
        assert_eq!(
            (&account["reasons"][0]["code"], &account["schedulable"]),
            (&json!(code), &json!(false)),
            "{account:#}"
        );
        assert!(account["reasons"][0]["evidence"].as_str().is_some_and(|e| !e.is_empty()));
    }
    assert_eq!((&of("good")["schedulable"], &of("good")["picked"]), (&json!(true), &json!(true)));
    assert!(relay.send(message(record["key"].as_str().unwrap())).await.status == 200);
    assert_eq!(upstream.requests().last().unwrap().credential.as_deref(), Some("token-of-good"));
    let wrong = relay.admin(Request::get("/admin/explain")).await;
    assert_eq!((wrong.status, wrong.json()["error"]["code"].clone()), (400, Value::from("invalid_field")));
    held.leave();
    // A reset forgets what was learnt.
    assert_eq!(relay.admin(Request::post("/admin/accounts/bursting/reset")).await.status, 200);
    assert_eq!(relay.reasons("bursting").await, [""; 0]);
}

#[actix_rt::test]
async fn explain_says_what_admission_would_say_and_takes_nothing() {
    let (upstream, relay) = (FakeUpstream::start(), TestRelay::start().await);
    relay.add_account("a", &upstream, json!({})).await;
    let explain = async |record: &Value| {
        let path = format!("/admin/explain?key={}&model=claude-test", record["id"].as_str().unwrap());
        relay.admin(Request::get(&path)).await.json()
    };
    let limited = relay.add_key_record(json!({"concurrencyLimit": 1})).await;
    assert_eq!(explain(&limited).await["picked"], "a");
    assert_eq!(explain(&limited).await["refusal"], Value::Null);
    upstream.next(Reply::stream(&["one"], USAGE).hang_after(100));
    let held = relay.open(stream(limited["key"].as_str().unwrap())).await;
    let mut barred = vec![(limited, "key_at_limit")];
    for (fields, code) in
        [(json!({"status": "revoked"}), "key_revoked"), (json!({"expires_at": "2020-01-01T00:00:00Z"}), "key_expired")]
    {
        barred.push((relay.add_key_record(fields).await, code));
    }
    for (record, code) in &barred {
        let told = explain(record).await;
        assert_eq!((&told["picked"], &told["waits"]), (&Value::Null, &json!(false)), "{told:#}");
        assert_eq!(told["refusal"]["code"], *code);
        assert!(told["why"].as_str().unwrap().contains("not let in"), "{told:#}");
        // The accounts are none the worse for it.
        let account = &told["accounts"][0];
        assert_eq!((&account["schedulable"], &account["picked"]), (&json!(true), &json!(false)));
    }
    assert_eq!((relay.outstanding().permits, relay.outstanding().passes), (1, 1));
    held.leave();
    relay.idle().await;
    relay.actors().front.addr().send(Drain).await.unwrap();
    let told = relay.admin(Request::get("/admin/explain?model=claude-test")).await.json();
    assert_eq!((&told["picked"], &told["refusal"]["code"]), (&Value::Null, &json!("draining")), "{told:#}");
}

/// The metrics say what `status` says.
#[actix_rt::test]
async fn metrics_are_the_pool_by_the_same_verdicts() {
    let (upstream, relay) = (FakeUpstream::start(), TestRelay::start().await);
    relay.add_account("a", &upstream, json!({"concurrencyLimit": 1, "priority": 1})).await;
    relay.add_account("b", &upstream, json!({"priority": 2})).await;
    let (key, bound) = (relay.add_key(json!({})).await, relay.add_key(json!({"accounts": ["b"]})).await);
    upstream.next(limited(&[("retry-after", "60".to_owned())]));
    assert_eq!(relay.send(message(&bound)).await.status, 429);
    upstream.next(Reply::stream(&["one"], USAGE).hang_after(200));
    let held = relay.open(stream(&key)).await;
    let waiting = relay.open_later(message(&key));
    eventually("it waits", || relay.outstanding().tickets == 1).await;
    let answer = relay.admin(Request::get("/admin/metrics")).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/plain; version=0.0.4; charset=utf-8")));
    let text = answer.text();
    for line in [
        "claude_relay_ready 1",
        "claude_relay_calls_open 1",
        "claude_relay_calls_waiting 1",
        r#"claude_relay_account_schedulable{account="a",platform="claudeconsole"} 0"#,
        r#"claude_relay_account_reason{account="a",platform="claudeconsole",code="at_capacity",blocks="true"} 1"#,
        r#"claude_relay_account_reason{account="b",platform="claudeconsole",code="rate_limited_burst",blocks="true"} 1"#,
        r#"claude_relay_account_slots_limit{account="a",platform="claudeconsole"} 1"#,
        r#"claude_relay_account_waiting{account="a",platform="claudeconsole"} 1"#,
        r#"claude_relay_account_recent_calls{account="b",platform="claudeconsole",result="fault"} 1"#,
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    let gauges = text.lines().filter(|l| l.starts_with("# TYPE")).count();
    assert_eq!(gauges, text.lines().filter(|l| l.starts_with("# HELP")).count());
    assert!(!text.contains("token-of") && !text.contains(&key));
    held.leave();
    waiting.await.unwrap();
}

/// A probe holds a slot, and the only one perhaps: it gives up before calls may have it again.
#[actix_rt::test]
async fn a_probe_that_hangs_stands_in_no_calls_way() {
    let upstream = FakeUpstream::start();
    let relay = TestRelay::start_with(|s| {
        s.health.breaker_first = Duration::from_millis(300);
        s.queue.timeout = Duration::from_secs(9);
    })
    .await;
    relay.add_account("a", &upstream, json!({"probe": "count_tokens", "concurrencyLimit": 1})).await;
    let key = relay.add_key(json!({})).await;
    let broken = Arc::new(AtomicBool::new(true));
    let is_broken = broken.clone();
    upstream.answer_with(move |r| match (r.path.contains("count_tokens"), is_broken.load(SeqCst)) {
        (true, _) => Reply::message("never", USAGE).hang(),
        (false, true) => Reply::json(500, json!({})),
        (false, false) => Reply::message("back", USAGE),
    });
    for _ in 0..5 {
        assert_eq!(relay.send(message(&key)).await.status, 500);
    }
    upstream.wait_until_async(|u| u.requests().iter().any(|r| r.path.contains("count_tokens"))).await;
    broken.store(false, SeqCst);
    // With the slot gone for as long as the probe hangs, it would wait in vain.
    assert_eq!(relay.send(message(&key)).await.status, 200);
    relay.idle().await;
}

/// An upstream that hung, and is well again, is back though its trial hangs still.
#[actix_rt::test]
async fn a_trial_that_hangs_does_not_keep_a_recovered_account_out() {
    let upstream = FakeUpstream::start();
    let relay = TestRelay::start_with(|s| {
        s.health.breaker_first = Duration::from_millis(1);
        s.health.trial = Duration::from_millis(50);
        s.upstream.abort_linger = Duration::ZERO;
    })
    .await;
    for (id, priority) in [("a", 1), ("b", 2), ("c", 3)] {
        relay.add_account(id, &upstream, json!({"probe": "none", "priority": priority})).await;
    }
    let key = relay.add_key(json!({})).await;
    upstream.always_for("token-of-a", Reply::json(500, json!({})));
    for _ in 0..5 {
        assert_eq!(relay.send(message(&key)).await.status, 200);
    }
    upstream.always_for("token-of-a", Reply::message("never", USAGE).hang());
    while relay.reasons("a").await != ["half_open"] {
        tokio::task::yield_now().await;
    }
    let trial = relay.open_later(message(&key));
    eventually("its trial hangs", || upstream.open("token-of-a") == 1).await;
    upstream.always_for("token-of-a", Reply::message("back", USAGE));
    while !relay.reasons("a").await.contains(&"slow_start".to_owned()) {
        assert_eq!(relay.send(message(&key)).await.status, 200);
    }
    trial.abort();
    relay.idle().await;
}

/// What is broken of count_tokens uses up no retry of messages.
#[actix_rt::test]
async fn messages_have_a_retry_budget_of_their_own() {
    let upstream = FakeUpstream::start();
    let relay = TestRelay::start_with(|s| (s.failover.budget, s.failover.floor) = (0, 3)).await;
    for (id, priority) in [("a", 1), ("b", 2)] {
        relay.add_account(id, &upstream, json!({"probe": "none", "priority": priority})).await;
    }
    let key = relay.add_key(json!({})).await;
    upstream.always_for("token-of-a", Reply::json(500, json!({})));
    let count = || Request::post("/v1/messages/count_tokens").header("x-api-key", &key).json(body(false));
    for n in 0..8 {
        assert_eq!(relay.send(count()).await.status == 200, n < 3, "call {n}");
    }
    assert_eq!(relay.send(message(&key)).await.status, 200);
}
