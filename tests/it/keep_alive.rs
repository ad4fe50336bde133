//! Streaming clients that are kept alive while they wait for an account (`queue.keep_alive`): comments, then the
//! stream as it is, or an error event, since the status has gone out.

use crate::fake_upstream::{FakeUpstream, Reply, Usage};
use crate::raw_client::{Ended, Streaming};
use crate::relay_app::{TestRelay, message, stream};
use serde_json::{Value, json};
use std::time::Duration;

const USAGE: Usage = Usage { input: 10, output: 42, cache_creation_5m: 0, cache_creation_1h: 0, cache_read: 0 };
const COMMENT: &str = ": waiting for an account\n\n";

/// A relay whose only slot is taken by a stream that hangs.
async fn full(upstream: &FakeUpstream, timeout: Duration) -> (TestRelay, String, Streaming) {
    let relay = TestRelay::start_with(|s| {
        s.queue.keep_alive = Duration::from_millis(30);
        s.queue.timeout = timeout;
        s.upstream.abort_linger = Duration::ZERO;
    })
    .await;
    relay.add_account("a", upstream, json!({"concurrencyLimit": 1})).await;
    let key = relay.add_key(json!({})).await;
    upstream.next(Reply::stream(&["one"], USAGE).hang_after(100));
    let held = relay.open(stream(&key)).await;
    (relay, key, held)
}

/// The error in the only event of a stream that has nothing but comments before it.
fn error_after_comments(text: &str) -> Value {
    let event = text.trim_start_matches(COMMENT);
    assert!(text.starts_with(COMMENT) && event.starts_with("event: error\ndata: {"), "{text}");
    serde_json::from_str(event.trim().trim_start_matches("event: error\ndata: ")).unwrap()
}

#[actix_rt::test]
async fn comments_come_first_and_then_the_stream_without_a_coding() {
    let upstream = FakeUpstream::start();
    let (relay, key, held) = full(&upstream, Duration::from_secs(30)).await;
    upstream.next(Reply::stream(&["two"], USAGE));
    let mut waiting = relay.open(stream(&key).header("accept-encoding", "gzip")).await;
    assert_eq!((waiting.status, waiting.header("content-type")), (200, Some("text/event-stream; charset=utf-8")));
    assert_eq!(waiting.next().await.unwrap().unwrap(), COMMENT.as_bytes());
    held.leave();
    let whole = waiting.rest().await;
    let text = whole.text();
    let told = text.trim_start_matches(COMMENT);
    assert!(told.starts_with("event: message_start\n") && told.contains("message_stop"), "{text}");
    assert_eq!(whole.ended, Ended::Complete);
    assert_eq!(upstream.requests()[1].header("accept-encoding"), Some("identity"));
    relay.idle().await;
    assert_eq!(relay.endings().await, [("client_gone".to_owned(), 1), ("complete".to_owned(), 1)]);
}

#[actix_rt::test]
async fn a_client_that_leaves_while_it_is_kept_alive_leaves_the_line() {
    let upstream = FakeUpstream::start();
    let (relay, key, held) = full(&upstream, Duration::from_secs(30)).await;
    let mut waiting = relay.open(stream(&key)).await;
    assert!(waiting.next().await.unwrap().is_ok());
    waiting.leave();
    crate::relay_app::eventually("it left", || relay.outstanding().tickets == 0).await;
    held.leave();
    relay.idle().await;
    assert_eq!(upstream.requests().len(), 1);
}

#[actix_rt::test]
async fn what_goes_wrong_later_is_an_event() {
    let upstream = FakeUpstream::start();
    let (relay, key, held) = full(&upstream, Duration::from_millis(100)).await;
    let late = relay.send(stream(&key)).await;
    assert_eq!((late.status, &late.ended), (200, &Ended::Complete));
    assert_eq!(error_after_comments(&late.text())["error"]["type"], "overloaded_error");
    // One that did not stream is told by its status, as ever.
    let late = relay.send(message(&key)).await;
    assert_eq!((late.status, late.header("x-relay-error")), (529, Some("wait_timeout")));
    held.leave();
}

#[actix_rt::test]
async fn the_upstreams_own_error_is_passed_on_in_the_event() {
    let upstream = FakeUpstream::start();
    let (relay, key, held) = full(&upstream, Duration::from_secs(30)).await;
    let error = json!({"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long"}});
    upstream.next(Reply::json(400, error.clone()));
    let mut waiting = relay.open(stream(&key)).await;
    let mut text = String::from_utf8(waiting.next().await.unwrap().unwrap()).unwrap();
    held.leave();
    text += &waiting.rest().await.text();
    assert_eq!(error_after_comments(&text), error);
}

#[actix_rt::test]
async fn an_answer_that_is_coded_all_the_same_is_an_error_and_not_bytes_that_nobody_can_read() {
    let upstream = FakeUpstream::start();
    let error = json!({"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long"}});
    for coded in [Reply::stream(&["two"], USAGE).gzip(), Reply::json(400, error).gzip()] {
        let (relay, key, held) = full(&upstream, Duration::from_secs(30)).await;
        upstream.next(coded);
        let mut waiting = relay.open(stream(&key)).await;
        let mut text = String::from_utf8(waiting.next().await.unwrap().unwrap()).unwrap();
        held.leave();
        let whole = waiting.rest().await;
        text += &whole.text();
        let told = error_after_comments(&text);
        assert_eq!(told["error"]["message"], "the upstream's answer was coded though none was asked for");
        assert_eq!(whole.ended, Ended::Complete);
        relay.idle().await;
        assert_eq!(relay.endings().await, [("client_gone".to_owned(), 1), ("upstream_error".to_owned(), 1)]);
    }
    upstream.wait_until_async(|u| u.open_total() == 0).await;
}
