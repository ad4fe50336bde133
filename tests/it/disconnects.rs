//! Clients that leave: the upstream's connection is closed, the slot comes back, and what is known is booked.

use crate::fake_upstream::{FakeUpstream, Reply, Usage};
use crate::raw_client::{Ended, Request};
use crate::relay_app::{NOTHING, TestRelay, message, stream};
use serde_json::json;
use std::time::{Duration, Instant};

const USAGE: Usage = Usage { input: 10, output: 42, cache_creation_5m: 0, cache_creation_1h: 0, cache_read: 0 };

async fn relay_with(upstream: &FakeUpstream) -> (TestRelay, String) {
    let relay = TestRelay::start().await;
    relay.add_account("a", upstream, json!({"concurrencyLimit": 1})).await;
    let key = relay.add_key(json!({})).await;
    (relay, key)
}

/// Both ends of the call are over within a second: the upstream's connection, and the slot.
async fn is_over(upstream: &FakeUpstream, relay: &TestRelay) {
    let started = Instant::now();
    upstream.wait_until_async(|u| u.open_total() == 0).await;
    relay.idle().await;
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[actix_rt::test]
async fn before_the_head() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    upstream.next(Reply::message("never", USAGE).hang());
    let mut connection = crate::raw_client::Connection::open(relay.addr()).await;
    let json = crate::relay_app::body(false).to_string();
    let head =
        format!("POST /v1/messages HTTP/1.1\r\nhost: r\r\nx-api-key: {key}\r\ncontent-length: {}\r\n\r\n", json.len());
    connection.write(format!("{head}{json}").as_bytes()).await;
    upstream.wait_requests_async(1).await;
    assert_eq!(relay.outstanding().permits, 1);
    connection.leave();
    is_over(&upstream, &relay).await;
    assert_eq!(relay.endings().await, [("client_gone".to_owned(), 1)]);
}

#[actix_rt::test]
async fn in_the_middle_of_a_stream_and_while_the_upstream_is_silent() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    for reset in [false, true] {
        upstream.next(Reply::stream(&["one", "two"], USAGE).hang_after(700));
        let mut streaming = relay.open(stream(&key)).await;
        assert!(streaming.next().await.unwrap().is_ok());
        if reset {
            streaming.reset()
        } else {
            streaming.leave()
        }
        is_over(&upstream, &relay).await;
    }
    assert_eq!(relay.endings().await, [("client_gone".to_owned(), 2)]);
    assert_eq!(relay.usage().await[0]["input_tokens"], 20, "what was known when the clients left is booked");
    assert_eq!(relay.reasons("a").await, [""; 0]);
}

#[actix_rt::test]
async fn after_the_terminal_event_the_call_is_complete() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    // The upstream keeps its connection open behind the last event, as some do.
    upstream.next(Reply::stream(&["one"], USAGE).hang_after(usize::MAX));
    let mut streaming = relay.open(stream(&key)).await;
    let mut text = String::new();
    while !text.contains("message_stop\"}\n\n") {
        text.push_str(&String::from_utf8(streaming.next().await.unwrap().unwrap()).unwrap());
    }
    streaming.leave();
    is_over(&upstream, &relay).await;
    assert_eq!(relay.endings().await, [("complete".to_owned(), 1)]);
    assert_eq!(relay.usage().await[0]["output_tokens"], 42);
}

#[actix_rt::test]
async fn while_the_body_still_comes_nothing_was_taken() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    let mut connection = crate::raw_client::Connection::open(relay.addr()).await;
    let head =
        format!("POST /v1/messages HTTP/1.1\r\nhost: r\r\nx-api-key: {key}\r\ncontent-length: 1000\r\n\r\n{{\"model\"");
    connection.write(head.as_bytes()).await;
    // All that was sent is there, and held: no slot, no pass, no ticket.
    assert_eq!((upstream.requests().len(), relay.outstanding()), (0, NOTHING));
    connection.leave();
    assert_eq!(relay.send(message(&key)).await.status, 200);
    assert_eq!(upstream.requests().len(), 1);
}

#[actix_rt::test]
async fn a_client_that_takes_nothing_of_its_answer_gives_the_slot_back() {
    let upstream = FakeUpstream::start();
    let relay = TestRelay::start_with(|s| s.limits.send_timeout = Duration::from_secs(1)).await;
    relay.add_account("a", &upstream, json!({"concurrencyLimit": 1})).await;
    let key = relay.add_key(json!({})).await;
    let text = "x".repeat(64 << 20);
    upstream.next(Reply::stream(&[&text], USAGE));
    let streaming = relay.open(stream(&key)).await;
    assert_eq!((streaming.status, relay.outstanding().permits), (200, 1));
    // Nothing is read from here on.
    upstream.wait_until_async(|u| u.open_total() == 0).await;
    relay.idle().await;
    assert_eq!(relay.endings().await, [("client_gone".to_owned(), 1)]);
    assert_eq!(relay.send(message(&key)).await.status, 200);
    // Whoever reads on after all does not take the part for the whole.
    assert_ne!(streaming.rest().await.ended, Ended::Complete);
}

#[actix_rt::test]
async fn a_client_that_reads_slowly_is_not_taken_for_one_that_takes_nothing() {
    let upstream = FakeUpstream::start();
    let relay = TestRelay::start_with(|s| s.limits.send_timeout = Duration::from_secs(2)).await;
    relay.add_account("a", &upstream, json!({})).await;
    let key = relay.add_key(json!({})).await;
    let text = "x".repeat(12 << 20);
    upstream.next(Reply::stream(&[&text], USAGE));
    let mut streaming = relay.open(stream(&key)).await;
    let (started, mut read) = (Instant::now(), 0);
    // A quarter of a megabyte a second at the most, for longer than twice the timeout.
    while started.elapsed() < Duration::from_secs(5) {
        read += streaming.next().await.unwrap().expect("cut though it reads").len();
        let due = Duration::from_secs_f64(read as f64 / 250_000.0);
        tokio::time::sleep(due.saturating_sub(started.elapsed()).min(Duration::from_millis(200))).await;
    }
    assert_eq!(relay.outstanding().permits, 1);
    streaming.leave();
    is_over(&upstream, &relay).await;
}

#[actix_rt::test]
async fn a_revocation_reaches_a_client_that_takes_nothing() {
    let upstream = FakeUpstream::start();
    let (relay, _) = relay_with(&upstream).await;
    let record = relay.add_key_record(json!({})).await;
    let text = "x".repeat(64 << 20);
    upstream.next(Reply::stream(&[&text], USAGE));
    let streaming = relay.open(stream(record["key"].as_str().unwrap())).await;
    let path = format!("/admin/keys/{}", record["id"].as_str().unwrap());
    assert_eq!(relay.admin(Request::patch(&path).json(json!({"status": "revoked"}))).await.status, 200);
    upstream.wait_until_async(|u| u.open_total() == 0).await;
    relay.idle().await;
    assert_eq!(relay.endings().await, [("relay_ended".to_owned(), 1)]);
    drop(streaming);
}

#[actix_rt::test]
async fn an_aborted_call_keeps_its_slot_for_the_linger() {
    let upstream = FakeUpstream::start();
    let relay = TestRelay::start_with(|s| {
        s.upstream.abort_linger = Duration::from_secs(2);
        s.queue.timeout = Duration::ZERO;
    })
    .await;
    relay.add_account("a", &upstream, json!({"concurrencyLimit": 1})).await;
    let key = relay.add_key(json!({})).await;
    upstream.next(Reply::stream(&["one"], USAGE).hang_after(100));
    let streaming = relay.open(stream(&key)).await;
    streaming.leave();
    upstream.wait_until_async(|u| u.open_total() == 0).await;
    let refused = relay.send(message(&key)).await;
    assert_eq!((refused.status, refused.header("x-relay-error")), (529, Some("at_capacity")));
    assert_eq!(refused.header("retry-after"), Some("1"));
    relay.idle().await;
    assert_eq!(relay.send(message(&key)).await.status, 200);
}
