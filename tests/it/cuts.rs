//! Answers that end early. Whatever the upstream does, the client never takes a part for the whole.

use crate::fake_upstream::{Chunks, Cut, FakeUpstream, Reply, Usage};
use crate::raw_client::{Answer, Ended, Request};
use crate::relay_app::{TestRelay, message, stream};
use serde_json::json;
use std::time::Duration;

const USAGE: Usage = Usage { input: 10, output: 42, cache_creation_5m: 0, cache_creation_1h: 0, cache_read: 0 };

const STREAM: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":10,\"output_tokens\":1}}}\n\n\
    event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"h\u{e9}\"}}\n\n\
    event: message_delta\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":42}}\n\n\
    event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n";

async fn relay_with(upstream: &FakeUpstream) -> (TestRelay, String) {
    let relay = TestRelay::start_with(|s| s.upstream.idle_timeout = Duration::from_millis(150)).await;
    relay.add_account("a", upstream, json!({"concurrencyLimit": 50})).await;
    let key = relay.add_key(json!({})).await;
    (relay, key)
}

/// A part, seen as one: an error event at an event boundary, or an aborted connection; usually both.
fn is_seen_as_cut(answer: &Answer, sent: &str) {
    let text = answer.text();
    let told = text.contains("event: error\n");
    assert!(told || answer.ended != Ended::Complete, "a part was taken for the whole: {text}");
    let ends = |t: &str| t.matches("message_stop").count();
    assert!(ends(&text) <= ends(sent), "an invented end: {text}");
    if told {
        let (before, event) = text.split_at(text.find("event: error\n").unwrap());
        assert_eq!(before, sent, "the error event stands inside an event");
        assert!(before.is_empty() || before.ends_with("\n\n"), "{text}");
        assert!(event.contains("\"type\":\"error\"") && event.ends_with("\n\n"), "{event}");
        assert_ne!(answer.ended, Ended::Complete, "the connection ended cleanly after the error event");
    } else {
        assert_eq!(text, sent);
    }
}

#[actix_rt::test]
async fn a_stream_cut_at_every_byte_is_an_error_or_whole() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    let whole_from = STREAM.len();
    let (mut told, mut aborted) = (0, 0);
    for at in 1..=STREAM.len() {
        let Some(sent) = STREAM.get(..at) else { continue };
        upstream.next(Reply::sse(STREAM).chunks(Chunks::Whole).cut(at, Cut::Fin));
        let answer = relay.send(stream(&key)).await;
        assert_eq!(answer.status, 200);
        if at == whole_from {
            assert_eq!((answer.text().as_str(), answer.ended), (STREAM, Ended::Complete));
        } else {
            is_seen_as_cut(&answer, sent);
            let seen = if answer.text().contains("event: error") { &mut told } else { &mut aborted };
            *seen += 1;
        }
    }
    assert_eq!(told, 3, "one error event for each event boundary inside the stream");
    assert!(aborted > 200);
    let endings = relay.endings().await;
    assert_eq!(endings, [("complete".to_owned(), 1), ("upstream_cut".to_owned(), told + aborted)]);
}

#[actix_rt::test]
async fn every_way_of_cutting_in_every_framing_is_seen() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    let half = STREAM.find("event: message_delta").unwrap();
    for cut in [Cut::Fin, Cut::Rst] {
        for reply in [
            Reply::sse(STREAM).cut(half, cut),
            Reply::sse(STREAM).cut(half + 10, cut),
            Reply::sse(STREAM).content_length().cut(half, cut),
            Reply::message("a long answer", USAGE).cut(30, cut),
            Reply::message("a long answer", USAGE).chunked().cut(30, cut),
            Reply::sse(STREAM).gzip().chunks(Chunks::Events).cut(60, cut),
        ] {
            upstream.next(reply);
            let answer = relay.send(stream(&key)).await;
            assert_eq!(answer.status, 200);
            let told = answer.text().contains("event: error\n");
            assert!(told || answer.ended != Ended::Complete, "{:?} {}", answer.ended, answer.text());
        }
    }
    assert_eq!(relay.endings().await, [("upstream_cut".to_owned(), 12)]);
    // A good head does not make up for a cut: the breaker is open, and the sole account takes calls all the same.
    assert_eq!(relay.reasons("a").await, ["breaker_open"]);
}

#[actix_rt::test]
async fn a_clean_end_without_the_terminal_event_is_a_cut() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    let short = &STREAM[..STREAM.find("event: message_stop").unwrap()];
    upstream.next(Reply::sse(short));
    is_seen_as_cut(&relay.send(stream(&key)).await, short);
    // What the answer said it used is booked all the same.
    // A length that is kept is no proof either.
    upstream.next(Reply::sse(short).content_length());
    is_seen_as_cut(&relay.send(stream(&key)).await, short);
    let row = &relay.usage().await[0];
    assert_eq!((&row["output_tokens"], &row["endings"]["upstream_cut"]), (&json!(84), &json!(2)));
}

#[actix_rt::test]
async fn a_stream_that_stops_coming_is_cut_at_the_idle_timeout() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    let half = STREAM.find("event: message_delta").unwrap();
    upstream.next(Reply::sse(STREAM).hang_after(half));
    let answer = relay.send(stream(&key)).await;
    is_seen_as_cut(&answer, &STREAM[..half]);
    assert!(answer.text().contains("stopped coming"));
    upstream.wait_until_async(|u| u.open_total() == 0).await;
    relay.idle().await;
}

#[actix_rt::test]
async fn an_upstreams_own_error_event_is_passed_on_and_nothing_is_added() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    let text = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\"}}\n\n";
    upstream.next(Reply::sse(text));
    let answer = relay.send(stream(&key)).await;
    assert_eq!((answer.text().as_str(), answer.ended), (text, Ended::Complete));
    assert_eq!(relay.endings().await, [("upstream_error".to_owned(), 1)]);
}

#[actix_rt::test]
async fn after_the_terminal_event_a_cut_changes_nothing() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    for reply in [Reply::sse(STREAM).cut(STREAM.len(), Cut::Rst), Reply::sse(STREAM).hang_after(STREAM.len())] {
        upstream.next(reply);
        let answer = relay.send(stream(&key)).await;
        assert_eq!((answer.text().as_str(), answer.ended), (STREAM, Ended::Complete));
    }
    assert_eq!(relay.endings().await, [("complete".to_owned(), 2)]);
    assert_eq!(relay.reasons("a").await, [""; 0]);
    relay.idle().await;
}

#[actix_rt::test]
async fn an_http_1_0_client_sees_a_cut_by_an_error_event_or_a_reset() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    let json = crate::relay_app::body(true).to_string();
    let raw = format!("POST /v1/messages HTTP/1.0\r\nx-api-key: {key}\r\ncontent-length: {}\r\n\r\n{json}", json.len());
    for reply in [
        Reply::sse(STREAM).chunks(Chunks::Events).cut(150, Cut::Fin),
        Reply::sse(STREAM).gzip().chunks(Chunks::Events).cut(60, Cut::Fin),
        Reply::message("a long answer", USAGE).chunked().cut(30, Cut::Fin),
        Reply::message("a long answer", USAGE).cut(30, Cut::Fin),
    ] {
        upstream.next(reply);
        let answer = relay.send(Request::raw(raw.clone())).await;
        let told = answer.text().contains("event: error\n");
        assert!(told || answer.ended != Ended::Complete, "{:?} {}", answer.ended, answer.text());
    }
}

#[actix_rt::test]
async fn a_connection_closed_without_an_answer_is_a_502() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    for cut in [Cut::Fin, Cut::Rst] {
        upstream.next(Reply::hangup(cut));
        let answer = relay.send(message(&key)).await;
        assert_eq!((answer.status, answer.header("x-relay-error")), (502, Some("upstream_closed")));
    }
}
