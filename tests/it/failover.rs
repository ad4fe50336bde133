//! Trying another account: which faults, how often, with what, and what the client gets when all fail.

use crate::fake_upstream::{Cut, FakeUpstream, Reply, Usage};
use crate::raw_client::{Request, Streaming};
use crate::relay_app::{TestRelay, body, eventually, message, stream};
use claude_relay::settings::Settings;
use serde_json::{Value, json};
use std::time::Duration;

const USAGE: Usage = Usage { input: 10, output: 42, cache_creation_5m: 0, cache_creation_1h: 0, cache_read: 0 };

/// A relay whose first account answers badly and whose others, in the order of their names, come after it.
async fn pool(upstream: &FakeUpstream, accounts: usize, edit: impl FnOnce(&mut Settings)) -> (TestRelay, String) {
    let relay = TestRelay::start_with(edit).await;
    for n in 0..accounts {
        relay.add_account(&format!("a{n}"), upstream, json!({"priority": n + 1})).await;
    }
    let key = relay.add_key(json!({"concurrencyLimit": 1})).await;
    (relay, key)
}

fn error(status: u16, kind: &str, message: &str) -> Reply {
    Reply::json(status, json!({"type": "error", "error": {"type": kind, "message": message}}))
}

fn asked(upstream: &FakeUpstream) -> Vec<String> {
    upstream.requests().into_iter().filter_map(|r| r.credential).collect()
}

#[actix_rt::test]
async fn every_fault_of_an_account_is_tried_on_another_once() {
    let gzip = error(529, "overloaded_error", "Overloaded").gzip();
    let faults: Vec<(&str, Reply)> = vec![
        ("500", Reply::json(500, json!({}))),
        ("503", error(503, "api_error", "later")),
        ("529", error(529, "overloaded_error", "Overloaded")),
        ("529 compressed", gzip),
        ("429", error(429, "rate_limit_error", "slow down").header("retry-after", "7")),
        ("401", error(401, "authentication_error", "invalid token")),
        ("403", error(403, "permission_error", "token revoked")),
        ("403 of a firewall", Reply::text(403, "text/html", "<html>blocked</html>")),
        ("no credit", error(400, "invalid_request_error", "Your credit balance is too low to access the API.")),
        ("hang", Reply::message("never", USAGE).hang()),
        ("close", Reply::hangup(Cut::Fin)),
        ("reset", Reply::hangup(Cut::Rst)),
        ("an error that breaks off", Reply::json(500, json!({"long": "x".repeat(200)})).cut(50, Cut::Fin)),
    ];
    for (name, reply) in faults {
        let upstream = FakeUpstream::start();
        let (relay, key) = pool(&upstream, 2, |s| s.upstream.first_byte_timeout = Duration::from_millis(200)).await;
        upstream.always_for("token-of-a0", reply);
        upstream.always_for("token-of-a1", Reply::message("good", USAGE));
        let sent = body(false).to_string();
        let answer = relay.send(message(&key)).await;
        assert_eq!((answer.status, answer.header("x-relay-error")), (200, None), "{name}: {}", answer.text());
        assert_eq!(asked(&upstream), ["token-of-a0", "token-of-a1"], "{name}");
        let bodies: Vec<_> = upstream.requests().into_iter().map(|r| r.body).collect();
        assert!(bodies.iter().all(|b| *b == sent.as_bytes()), "{name}: a body was changed");
        relay.idle().await;
        let mut rows = relay.endings().await;
        rows.sort();
        assert_eq!(rows, [("complete".to_owned(), 1), ("upstream_error".to_owned(), 1)], "{name}: a row an attempt");
    }
}

#[actix_rt::test]
async fn a_clients_fault_is_never_tried_again_nor_is_anything_after_the_first_byte() {
    let upstream = FakeUpstream::start();
    let (relay, key) = pool(&upstream, 2, |_| {}).await;
    for status in [400, 404, 413, 422] {
        upstream.next(error(status, "invalid_request_error", "prompt is too long").header("request-id", "up-1"));
        let answer = relay.send(message(&key)).await;
        assert_eq!((answer.status, answer.header("request-id")), (status, Some("up-1")));
        assert!(answer.text().contains("prompt is too long"));
    }
    upstream.next(Reply::stream(&["one", "two"], USAGE).cut(300, Cut::Fin));
    assert_eq!(relay.send(stream(&key)).await.status, 200);
    upstream.next(error(429, "rate_limit_error", "too many"));
    let counted = Request::post("/v1/messages/count_tokens").header("x-api-key", &key).json(body(false));
    assert_eq!(relay.send(counted).await.status, 429);
    assert_eq!(upstream.requests().len(), 6);
    assert!(asked(&upstream).iter().all(|c| c == "token-of-a0"));
}

#[actix_rt::test]
async fn the_most_useful_answer_is_passed_on_as_it_was() {
    for (first, second, told) in [(429, 401, 429), (401, 529, 529), (500, 429, 429), (401, 500, 500), (429, 529, 529)] {
        let upstream = FakeUpstream::start();
        let (relay, key) = pool(&upstream, 2, |_| {}).await;
        for (n, status) in [first, second].into_iter().enumerate() {
            let reply = error(status, "some_error", &format!("words of {status}")).header("x-should-retry", "true");
            upstream.always_for(&format!("token-of-a{n}"), reply.header("retry-after", "9"));
        }
        let answer = relay.send(message(&key)).await;
        assert_eq!((answer.status, answer.header("x-relay-error")), (told, None), "{first} {second}");
        assert_eq!((answer.header("retry-after"), answer.header("x-should-retry")), (Some("9"), Some("true")));
        assert!(answer.text().contains(&format!("words of {told}")), "{}", answer.text());
    }
}

#[actix_rt::test]
async fn attempts_are_bounded_by_their_number() {
    for (attempts, seen) in [(1, 1), (3, 3), (10, 5)] {
        let upstream = FakeUpstream::start();
        upstream.always(Reply::json(500, json!({"error": "x"})));
        let (relay, key) = pool(&upstream, 5, |s| s.failover.attempts = attempts).await;
        assert_eq!(relay.send(message(&key)).await.status, 500);
        assert_eq!(upstream.requests().len(), seen);
    }
}

#[actix_rt::test]
async fn a_total_outage_costs_a_fifth_more_at_most() {
    let upstream = FakeUpstream::start();
    upstream.always(Reply::json(500, json!({})));
    let (relay, key) = pool(&upstream, 3, |s| s.failover.floor = 0).await;
    for _ in 0..200 {
        assert_eq!(relay.send(message(&key)).await.status, 500);
    }
    // The relay's own probes are no attempts of a call.
    let requests = upstream.requests().iter().filter(|r| !r.path.contains("count_tokens")).count();
    println!("a total outage: {requests} attempts for 200 calls");
    assert!((201..=241).contains(&requests), "{requests}");
}

/// Neither is put aside; but while nothing has gone out, another account that is free is better than either.
#[actix_rt::test]
async fn large_and_slow_errors_give_way_to_a_free_account_and_else_stream_through_as_they_are() {
    let page = "x".repeat(200 * 1024);
    let large = Reply::text(500, "text/html", page.clone());
    for (accounts, status, asked) in [(2, 200, 2), (1, 500, 1)] {
        let upstream = FakeUpstream::start();
        let (relay, key) = pool(&upstream, accounts, |_| {}).await;
        upstream.next(large.clone());
        let answer = relay.send(message(&key)).await;
        assert_eq!((answer.status, upstream.requests().len()), (status, asked));
        assert_eq!(answer.text() == page, status == 500);
        relay.idle().await;
    }
    let upstream = FakeUpstream::start();
    let (relay, key) = pool(&upstream, 2, |_| {}).await;
    upstream.next(Reply::text(500, "text/html", page).hang_after(100));
    assert_eq!(relay.send(message(&key)).await.status, 200);
    relay.idle().await;
    upstream.wait_until_async(|u| u.open_total() == 0).await;
    assert_eq!(relay.endings().await, [("complete".to_owned(), 1), ("upstream_error".to_owned(), 1)]);
}

/// SDKs take a 401 for theirs, and for final. Where another try may help, that is what they are told.
#[actix_rt::test]
async fn a_rejected_credential_of_ours_is_the_last_thing_a_client_is_told() {
    let rejected = || error(401, "authentication_error", "invalid token");
    let upstream = FakeUpstream::start();
    // The other account is out for a while.
    let (relay, key) = pool(&upstream, 2, |_| {}).await;
    let bound = relay.add_key(json!({"accounts": ["a1"]})).await;
    upstream.next(error(429, "rate_limit_error", "slow down").header("retry-after", "17"));
    assert_eq!(relay.send(message(&bound)).await.status, 429);
    upstream.next(rejected());
    let answer = relay.send(message(&key)).await;
    assert_eq!((answer.status, answer.header("x-relay-error")), (529, Some("no_account")), "{}", answer.text());
    assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 15);
    // So many calls are tried again that this one is not.
    let (relay, key) = pool(&upstream, 2, |s| (s.failover.budget, s.failover.floor) = (0, 0)).await;
    upstream.next(rejected());
    let answer = relay.send(message(&key)).await;
    assert_eq!((answer.status, answer.header("x-relay-error")), (529, Some("retry_budget")), "{}", answer.text());
    assert_eq!(relay.send(message(&key)).await.status, 200, "the next call finds the other account");
    // The other account gives no answer at all.
    let (relay, key) = pool(&upstream, 2, |_| {}).await;
    upstream.always_for("token-of-a0", rejected());
    upstream.always_for("token-of-a1", Reply::hangup(Cut::Rst));
    let answer = relay.send(message(&key)).await;
    assert_eq!((answer.status, answer.header("x-relay-error")), (502, Some("upstream_closed")));
    // There is no other.
    let (relay, key) = pool(&upstream, 1, |_| {}).await;
    let answer = relay.send(message(&key)).await;
    assert_eq!((answer.status, answer.header("x-relay-error")), (401, None));
}

#[actix_rt::test]
async fn a_kept_connection_that_was_given_up_is_tried_once_more_on_the_same_account() {
    let upstream = FakeUpstream::start();
    let (relay, key) = pool(&upstream, 1, |s| s.workers = 1).await;
    for _ in 0..3 {
        upstream.next(Reply::message("first", USAGE));
        assert_eq!(relay.send(message(&key)).await.status, 200);
        // The kept connection is closed with the next request; a fresh one serves it.
        upstream.next(Reply::hangup(Cut::Fin));
        upstream.next(Reply::message("again", USAGE));
        let answer = relay.send(message(&key)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    // A fresh connection that is closed without an answer is the account's fault, and it is the only account.
    upstream.next(Reply::message("closing", USAGE).close());
    assert_eq!(relay.send(message(&key)).await.status, 200);
    upstream.next(Reply::hangup(Cut::Fin));
    let before = upstream.requests().len();
    let answer = relay.send(message(&key)).await;
    assert_eq!((answer.status, answer.header("x-relay-error")), (502, Some("upstream_closed")));
    assert_eq!(upstream.requests().len(), before + 1);
}

/// A relay whose first account answers with `reply`, and whose second has its only slot taken by a stream that hangs.
async fn second_is_full(upstream: &FakeUpstream, reply: Reply, wait: Duration) -> (TestRelay, Value, Streaming) {
    let (relay, _) = pool(upstream, 1, |s| s.queue.timeout = wait).await;
    relay.add_account("full", upstream, json!({"priority": 2, "concurrencyLimit": 1})).await;
    let holder = relay.add_key(json!({"accounts": ["full"]})).await;
    upstream.next(Reply::stream(&["one"], USAGE).hang_after(100));
    let held = relay.open(stream(&holder)).await;
    upstream.always_for("token-of-a0", reply);
    let key = relay.add_key_record(json!({})).await;
    (relay, key, held)
}

#[actix_rt::test]
async fn a_refusal_that_says_when_to_come_back_goes_before_a_broken_connection() {
    let upstream = FakeUpstream::start();
    let wait = Duration::from_millis(100);
    for (wait, code) in [(Duration::ZERO, "at_capacity"), (wait, "wait_timeout")] {
        let (relay, key, held) = second_is_full(&upstream, Reply::hangup(Cut::Fin), wait).await;
        let answer = relay.send(message(key["key"].as_str().unwrap())).await;
        assert_eq!((answer.status, answer.header("x-relay-error")), (529, Some(code)));
        assert!(answer.header("retry-after").is_some());
        held.leave();
        relay.idle().await;
    }
    // An answer of an upstream goes before either.
    let error = error(500, "api_error", "words of 500");
    let (relay, key, held) = second_is_full(&upstream, error, wait).await;
    let answer = relay.send(message(key["key"].as_str().unwrap())).await;
    assert_eq!((answer.status, answer.header("x-relay-error")), (500, None), "{}", answer.text());
    held.leave();
}

#[actix_rt::test]
async fn a_key_that_is_revoked_between_two_attempts_is_told_so() {
    let upstream = FakeUpstream::start();
    let error = error(500, "api_error", "words of 500");
    let (relay, key, held) = second_is_full(&upstream, error, Duration::from_secs(30)).await;
    let waiting = relay.open_later(message(key["key"].as_str().unwrap()));
    eventually("it waits", || upstream.requests().len() == 2 && relay.outstanding().tickets == 1).await;
    let path = format!("/admin/keys/{}", key["id"].as_str().unwrap());
    assert_eq!(relay.admin(Request::patch(&path).json(json!({"status": "revoked"}))).await.status, 200);
    let answer = waiting.await.unwrap();
    assert_eq!((answer.status, answer.header("x-relay-error")), (401, Some("key_revoked")));
    held.leave();
}

#[actix_rt::test]
async fn a_client_that_leaves_during_the_second_attempt_frees_everything() {
    let upstream = FakeUpstream::start();
    let (relay, key) = pool(&upstream, 2, |_| {}).await;
    upstream.always_for("token-of-a0", Reply::json(500, json!({})));
    upstream.always_for("token-of-a1", Reply::message("never", USAGE).hang());
    let mut connection = crate::raw_client::Connection::open(relay.addr()).await;
    let json = body(false).to_string();
    let head = format!("POST /v1/messages HTTP/1.1\r\nhost: r\r\nx-api-key: {key}\r\ncontent-length: {}", json.len());
    connection.write(format!("{head}\r\n\r\n{json}").as_bytes()).await;
    upstream.wait_requests_async(2).await;
    let held = relay.outstanding();
    assert_eq!((held.permits, held.passes), (1, 1), "one slot of an account, and the key's own");
    connection.leave();
    relay.idle().await;
    upstream.wait_until_async(|u| u.open_total() == 0).await;
    let mut rows = relay.endings().await;
    rows.sort();
    assert_eq!(rows, [("client_gone".to_owned(), 1), ("upstream_error".to_owned(), 1)]);
}

#[actix_rt::test]
async fn a_mapped_model_is_mapped_anew_for_each_account() {
    let upstream = FakeUpstream::start();
    let relay = TestRelay::start().await;
    let asked: Value = body(false)["model"].clone();
    for (n, to) in ["first-name", "second-name"].into_iter().enumerate() {
        let models = json!({ asked.as_str().unwrap(): to });
        relay.add_account(&format!("a{n}"), &upstream, json!({"priority": n + 1, "models": models})).await;
    }
    let key = relay.add_key(json!({})).await;
    upstream.next(Reply::json(500, json!({})));
    assert_eq!(relay.send(message(&key)).await.status, 200);
    let models: Vec<Value> = upstream
        .requests()
        .iter()
        .map(|r| serde_json::from_slice::<Value>(&r.body).unwrap()["model"].clone())
        .collect();
    assert_eq!(models, ["first-name", "second-name"]);
}
