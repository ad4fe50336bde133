//! What a client sees of an answer: the upstream's bytes, as they come, with its headers and no others.

use crate::fake_upstream::{Chunks, FakeUpstream, Reply, Usage};
use crate::raw_client::{Ended, Request};
use crate::relay_app::{TestRelay, body, message, stream};
use serde_json::json;
use std::time::Duration;

const USAGE: Usage = Usage { input: 10, output: 42, cache_creation_5m: 5, cache_creation_1h: 2, cache_read: 3 };

async fn relay_with(upstream: &FakeUpstream) -> (TestRelay, String) {
    let relay = TestRelay::start().await;
    relay.add_account("a", upstream, json!({})).await;
    let key = relay.add_key(json!({})).await;
    (relay, key)
}

/// A stream with everything that a relay might be tempted to touch.
fn odd_stream() -> String {
    let usage = r#"{"type":"message_start","message":{"usage":{"input_tokens":10,"output_tokens":1}}}"#;
    format!(
        ": comment\r\n\r\nevent: message_start\r\ndata: {usage}\r\n\r\nevent: ping\ndata: {{\"type\":\"ping\"}}\n\n\
         event: unknown_event\ndata: {{\"x\": \"\u{e9}\u{1F600}\"}}\n\nid: 7\nretry: 10\n\n\
         event: message_delta\ndata: {{\"type\":\"message_delta\",\"usage\":{{\"output_tokens\":42}}}}\n\n\
         event: message_stop\ndata: {{\"type\":\"message_stop\"}}\n\n"
    )
}

#[actix_rt::test]
async fn a_stream_is_passed_on_byte_for_byte_however_it_is_cut_into_chunks() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    let text = odd_stream();
    for chunks in [Chunks::Whole, Chunks::Events, Chunks::Bytes(1), Chunks::Bytes(7), Chunks::At(vec![13, 14, 190])] {
        upstream.next(Reply::sse(&text).chunks(chunks));
        let answer = relay.send(stream(&key)).await;
        assert_eq!((answer.status, answer.ended.clone(), answer.text()), (200, Ended::Complete, text.clone()));
        assert!(answer.header("connection").is_none(), "a stream must not carry connection: close");
    }
    let row = &relay.usage().await[0];
    assert_eq!((&row["requests"], &row["output_tokens"]), (&json!(5), &json!(5 * 42)));
    assert_eq!(relay.endings().await, [("complete".to_owned(), 5)]);
}

#[actix_rt::test]
async fn every_event_leaves_at_once() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    // The upstream stops after the first event: what came before it must be here all the same.
    let text = odd_stream();
    let first = text.find("event: ping").unwrap();
    upstream.next(Reply::sse(&text).hang_after(first));
    let mut streaming = relay.open(stream(&key)).await;
    let mut seen = Vec::new();
    while seen.len() < first {
        seen.extend(streaming.next().await.unwrap().unwrap());
    }
    assert_eq!(seen, text.as_bytes()[..first]);
    streaming.leave();
    upstream.wait_until_async(|u| u.aborted() == 1).await;
    relay.idle().await;
}

#[actix_rt::test]
async fn headers_come_back_by_an_allowlist() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    let reply = Reply::message("hi", USAGE)
        .header("request-id", "req_1")
        .header("anthropic-ratelimit-requests-remaining", "9")
        .header("x-ratelimit-limit", "5")
        .header("x-should-retry", "false")
        .header("cache-control", "no-store")
        .header("set-cookie", "a=b")
        .header("server", "upstream")
        .header("x-relay-error", "forged")
        .header("strict-transport-security", "max-age=1");
    upstream.next(reply);
    let answer = relay.send(message(&key)).await;
    for (name, value) in [
        ("request-id", Some("req_1")),
        ("anthropic-ratelimit-requests-remaining", Some("9")),
        ("x-ratelimit-limit", Some("5")),
        ("x-should-retry", Some("false")),
        ("cache-control", Some("no-store")),
        ("content-type", Some("application/json")),
        ("set-cookie", None),
        ("server", None),
        ("x-relay-error", None),
        ("strict-transport-security", None),
        ("transfer-encoding", None),
    ] {
        assert_eq!(answer.header(name), value, "{name}");
    }
}

#[actix_rt::test]
async fn errors_of_the_upstream_stay_as_they_are_and_only_its_own_faults_count_against_it() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    let error = |kind: &str| json!({"type": "error", "error": {"type": kind, "message": "prompt is too long"}});
    for status in [400, 403, 404, 413, 422] {
        upstream.next(Reply::json(status, error("invalid_request_error")));
        let answer = relay.send(message(&key)).await;
        assert_eq!((answer.status, answer.json()), (status, error("invalid_request_error")));
        assert_eq!(relay.reasons("a").await, [""; 0], "a client's {status} counted against the account");
    }
    upstream.next(Reply::json(500, error("api_error")));
    assert_eq!(relay.send(message(&key)).await.status, 500);
    assert_eq!(relay.reasons("a").await, [""; 0]);
    // One account, one 500: it is still the last resort.
    assert_eq!(relay.send(message(&key)).await.status, 200);
    assert_eq!(relay.reasons("a").await, [""; 0]);

    upstream.next(Reply::json(429, error("rate_limit_error")).header("retry-after", "17"));
    let limited = relay.send(message(&key)).await;
    assert_eq!((limited.status, limited.header("retry-after")), (429, Some("17")));
    let refused = relay.send(message(&key)).await;
    assert_eq!((refused.status, refused.header("x-relay-error")), (529, Some("rate_limited_burst")));
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((15..=17).contains(&seconds), "{seconds}");
}

#[actix_rt::test]
async fn a_429_on_count_tokens_does_not_bench_the_account() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    upstream.next(Reply::json(429, json!({"error": {}})).header("retry-after", "60"));
    let count = Request::post("/claude/v1/messages/count_tokens").header("x-api-key", &key).json(body(false));
    assert_eq!(relay.send(count).await.status, 429);
    assert_eq!(upstream.requests()[0].path, "/api/v1/messages/count_tokens");
    assert_eq!(relay.send(message(&key)).await.status, 200);
    upstream.next(Reply::json(200, json!({"data": []})));
    let models = Request::get("/api/v1/models/claude-x%2F1?limit=2").header("x-api-key", &key);
    assert_eq!(relay.send(models).await.status, 200);
    let seen = upstream.requests().pop().unwrap();
    assert_eq!((seen.method.as_str(), seen.path.as_str()), ("GET", "/api/v1/models/claude-x%2F1"));
    assert_eq!((seen.query.as_deref(), seen.body.len(), seen.header("content-length")), (Some("limit=2"), 0, None));
}

#[actix_rt::test]
async fn usage_is_counted_in_a_compressed_answer_which_is_passed_on_unread() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    for reply in [Reply::message("hi", USAGE).gzip(), Reply::stream(&["a", "b"], USAGE).gzip().chunks(Chunks::Events)] {
        upstream.next(reply);
        let answer = relay.send(stream(&key).header("accept-encoding", "gzip, br")).await;
        assert_eq!(answer.header("content-encoding"), Some("gzip"));
        assert_eq!(answer.body[..2], [0x1f, 0x8b]);
        assert_eq!(upstream.requests().pop().unwrap().header("accept-encoding"), Some("gzip, br"));
    }
    let row = &relay.usage().await[0];
    assert_eq!((&row["output_tokens"], &row["cache_read_input_tokens"]), (&json!(84), &json!(6)));
}

#[actix_rt::test]
async fn the_key_is_taken_from_every_place_and_never_travels() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    let post = |path: &str| Request::post(path).json(body(false));
    let bearer = format!("Bearer {key}");
    for request in [
        post("/v1/messages").header("authorization", &bearer),
        post("/v1/messages").header("x-goog-api-key", &key),
        post("/v1/messages").header("api-key", &key),
        post("/v1/messages").header("x-api-key", "sk-something-else").header("authorization", &bearer),
        post(&format!("/v1/messages?beta=true&key={key}")),
    ] {
        assert_eq!(relay.send(request).await.status, 200);
        let seen = upstream.requests().pop().unwrap();
        assert!(!format!("{:?}{:?}", seen.headers, seen.query).contains(&key[3..]));
        assert_eq!(seen.headers_named("x-api-key").len() + seen.headers_named("authorization").len(), 1);
        assert!(seen.headers.iter().all(|(_, v)| v != "sk-something-else"));
    }
    assert_eq!(upstream.requests().pop().unwrap().query.as_deref(), Some("beta=true"));
}

#[actix_rt::test]
async fn an_answer_without_framing_is_a_502_and_never_an_empty_success() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    upstream.next(Reply::message("lost", USAGE).no_framing());
    let answer = relay.send(message(&key)).await;
    assert_eq!((answer.status, answer.header("x-relay-error")), (502, Some("upstream_framing")));
}

#[actix_rt::test]
async fn what_an_unframed_answer_leaves_behind_is_not_read_as_the_next_answer() {
    let upstream = FakeUpstream::start();
    let relay = TestRelay::start_with(|s| s.workers = 1).await;
    relay.add_account("a", &upstream, json!({})).await;
    let key = relay.add_key(json!({})).await;
    let forged = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged";
    let late =
        Reply::text(200, "text/plain", forged).no_framing().chunks(Chunks::Bytes(1)).pause(Duration::from_millis(1));
    upstream.next(late);
    let answer = relay.send(message(&key)).await;
    assert_eq!((answer.status, answer.header("x-relay-error")), (502, Some("upstream_framing")));
    for _ in 0..20 {
        let next = relay.send(message(&key)).await;
        assert!(next.status == 200 && next.text() != "forged", "{}", next.text());
    }
    // The same behind an answer that has no body by its status.
    let late = format!("HTTP/1.1 204 No Content\r\n\r\n{forged}");
    upstream.next(Reply::raw(&late).chunks(Chunks::At(vec![27])).pause(Duration::from_millis(20)));
    assert_eq!(relay.send(message(&key)).await.status, 204);
    for _ in 0..20 {
        assert_ne!(relay.send(message(&key)).await.text(), "forged");
    }
}

#[actix_rt::test]
async fn interim_answers_are_not_taken_for_the_final_one() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    let last = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
    for early in [
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n",
        "HTTP/1.1 102 Processing\r\ncontent-length: 0\r\n\r\n",
    ] {
        for chunks in [Chunks::Whole, Chunks::Bytes(1), Chunks::At(vec![early.len()])] {
            upstream.next(Reply::raw(&format!("{early}{last}")).chunks(chunks).pause(Duration::from_micros(100)));
            let answer = relay.send(message(&key)).await;
            assert_eq!((answer.status, answer.text().as_str(), answer.interim.len()), (200, "{}", 0), "{early}");
        }
    }
    assert_eq!(relay.endings().await, [("complete".to_owned(), 9)]);
}

#[actix_rt::test]
async fn an_empty_answer_is_complete_and_a_length_beside_chunking_does_not_count() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    upstream.next(Reply::text(200, "application/json", ""));
    let empty = relay.send(message(&key)).await;
    assert_eq!((empty.status, empty.body.len(), empty.ended), (200, 0, Ended::Complete));
    let both = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    upstream.next(Reply::raw(both));
    let answer = relay.send(message(&key)).await;
    assert!(answer.text() == "hello" || answer.status == 502, "{} {}", answer.status, answer.text());
    let identity = "HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\nhello";
    upstream.next(Reply::raw(identity).close());
    assert_eq!(relay.send(message(&key)).await.header("x-relay-error"), Some("upstream_framing"));
    let old = "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    upstream.next(Reply::raw(old).close());
    assert_eq!(relay.send(message(&key)).await.status, 502);
}

#[actix_rt::test]
async fn an_early_answer_to_a_large_body_reaches_the_client() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    let error = json!({"type": "error", "error": {"type": "request_too_large", "message": "too large"}});
    upstream.next(Reply::json(413, error.clone()).early());
    let mut large = body(false);
    large["padding"] = json!("x".repeat(8 << 20));
    let answer = relay.send(message(&key).json(large)).await;
    assert_eq!((answer.status, answer.json()), (413, error));
    assert_eq!(relay.reasons("a").await, [""; 0]);
}

#[actix_rt::test]
async fn a_dead_upstream_is_a_502_and_a_silent_one_a_504() {
    let upstream = FakeUpstream::start();
    let relay = TestRelay::start_with(|s| {
        s.upstream.connect_timeout = Duration::from_millis(50);
        s.upstream.first_byte_timeout = Duration::from_millis(100);
    })
    .await;
    relay.add_account("silent", &upstream, json!({})).await;
    relay.add_account("dead", &upstream, json!({"custom_api_endpoint": "http://127.0.0.1:1"})).await;
    upstream.always(Reply::message("never", USAGE).hang());
    for (id, status, code) in [("silent", 504, "upstream_timeout"), ("dead", 502, "upstream_unreachable")] {
        let key = relay.add_key(json!({"accounts": [id]})).await;
        let answer = relay.send(message(&key)).await;
        assert_eq!((answer.status, answer.header("x-relay-error")), (status, Some(code)));
        assert_eq!(relay.reasons(id).await, [""; 0]);
    }
    assert_eq!(relay.endings().await, [("upstream_error".to_owned(), 2)]);
    relay.idle().await;
}

#[actix_rt::test]
async fn an_http_1_0_client_gets_no_chunking() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    upstream.next(Reply::sse(&odd_stream()));
    let json = body(true).to_string();
    let raw = format!("POST /v1/messages HTTP/1.0\r\nx-api-key: {key}\r\ncontent-length: {}\r\n\r\n{json}", json.len());
    let answer = relay.send(Request::raw(raw)).await;
    assert_eq!((answer.status, answer.header("transfer-encoding")), (200, None));
    assert_eq!(answer.text(), odd_stream());
}
