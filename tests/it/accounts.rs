//! Accounts and keys from end to end: which credential is sent where, and who is told what when one is wrong.

use crate::fake_upstream::{Chunks, FakeUpstream, Reply, Usage};
use crate::raw_client::{Ended, Request};
use crate::relay_app::{TestRelay, body, message, stream, without_waiting};
use serde_json::json;

const USAGE: Usage = Usage { input: 10, output: 42, cache_creation_5m: 5, cache_creation_1h: 2, cache_read: 3 };

#[actix_rt::test]
async fn a_console_account_with_a_session_token_works_from_end_to_end() {
    let (upstream, relay) = (FakeUpstream::start(), TestRelay::start().await);
    upstream.always(Reply::message("hello", USAGE).header("request-id", "req_upstream"));
    let stored = relay
        .add_account(
            "a08fcb0f-f07f-4775-a2c5-f87bdb907cbf",
            &upstream,
            json!({"session_token": "cr_0123456789abcdefcc"}),
        )
        .await;
    assert_eq!(stored["session_token"], "cr_0…cc (set)");
    let record = relay.add_key_record(json!({"accounts": ["a08fcb0f-f07f-4775-a2c5-f87bdb907cbf"]})).await;
    let key = record["key"].as_str().unwrap();

    let request = Request::post("/v1/messages?beta=true")
        .header("authorization", &format!("Bearer {key}"))
        .header("user-agent", "claude-cli/2.1")
        .header("anthropic-beta", "a-1,unknown-2")
        .header("x-stainless-lang", "js")
        .header("x-copy-of-key", key)
        .body(br#"{ "model":"claude-test", "big":12345678901234567890123, "s":"\u00e9\/", "messages":[] }"#.to_vec());
    let answer = relay.send(request).await;
    assert_eq!((answer.status, answer.header("request-id")), (200, Some("req_upstream")));
    assert_eq!(answer.json()["content"][0]["text"], "hello");
    assert_eq!(answer.header("x-relay-error"), None);

    let seen = &upstream.requests()[0];
    assert_eq!(
        (seen.method.as_str(), seen.path.as_str(), seen.query.as_deref()),
        ("POST", "/api/v1/messages", Some("beta=true"))
    );
    assert_eq!(seen.headers_named("authorization"), ["Bearer cr_0123456789abcdefcc"]);
    assert_eq!(seen.header("host").unwrap(), format!("127.0.0.1:{}", upstream.port()));
    assert_eq!(seen.header("user-agent"), Some("claude-cli/2.1"));
    assert_eq!(seen.header("anthropic-beta"), Some("a-1,unknown-2"));
    assert_eq!(seen.header("x-stainless-lang"), Some("js"));
    assert_eq!(
        seen.body,
        br#"{ "model":"claude-test", "big":12345678901234567890123, "s":"\u00e9\/", "messages":[] }"#
    );
    assert!(seen.headers.iter().all(|(_, v)| !v.contains(key)), "the client's key went upstream: {:?}", seen.headers);
    // The client's own headers, its body's length, and the account's host and credential: nothing else.
    let mut names: Vec<_> = seen.headers.iter().map(|(n, _)| n.to_ascii_lowercase()).collect();
    names.sort();
    let expected = ["anthropic-beta", "authorization", "content-length", "host", "user-agent", "x-stainless-lang"];
    assert_eq!(names, expected);

    let rows = relay.usage().await;
    assert_eq!(rows.len(), 1);
    for (field, value) in [
        ("requests", 1),
        ("input_tokens", 10),
        ("output_tokens", 42),
        ("cache_creation_input_tokens", 7),
        ("cache_creation_5m_input_tokens", 5),
        ("cache_creation_1h_input_tokens", 2),
        ("cache_read_input_tokens", 3),
    ] {
        assert_eq!(rows[0][field], value, "{field}");
    }
    assert_eq!((&rows[0]["key"], &rows[0]["model"]), (&record["id"], &json!("claude-test")));
    assert_eq!(rows[0]["endings"]["complete"], 1);
}

#[actix_rt::test]
async fn the_session_token_comes_first_and_none_is_a_refusal_of_its_own() {
    let (upstream, relay) = (FakeUpstream::start(), TestRelay::start().await);
    relay.add_account("both", &upstream, json!({"session_token": "s-1", "access_token": "a-1"})).await;
    relay.add_account("access", &upstream, json!({"session_token": null, "access_token": "a-2"})).await;
    relay.add_account("neither", &upstream, json!({"session_token": null})).await;
    for (id, credential) in [("both", "s-1"), ("access", "a-2")] {
        let key = relay.add_key(json!({"accounts": [id]})).await;
        assert_eq!(relay.send(message(&key)).await.status, 200);
        assert_eq!(upstream.requests().last().unwrap().credential.as_deref(), Some(credential));
    }
    let before = upstream.requests().len();
    let key = relay.add_key(json!({"accounts": ["neither"]})).await;
    let refused = relay.send(message(&key)).await;
    assert_eq!((refused.status, refused.header("x-relay-error")), (529, Some("no_credential")));
    assert_eq!(refused.json()["error"]["type"], "overloaded_error");
    assert_eq!(refused.header("x-should-retry"), Some("false"));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(upstream.requests().len(), before, "a bound key fell back to another account");
    assert_eq!(relay.reasons("neither").await, ["no_credential"]);
}

#[actix_rt::test]
async fn schemes_and_operator_headers_are_as_the_account_says() {
    let (upstream, relay) = (FakeUpstream::start(), TestRelay::start().await);
    let url = upstream.url();
    for (id, fields, header, value) in [
        ("auto-key", json!({"session_token": "sk-ant-api03-x"}), "x-api-key", "sk-ant-api03-x"),
        ("auto-bearer", json!({"session_token": "tok"}), "authorization", "Bearer tok"),
        ("forced-key", json!({"session_token": "tok", "auth_scheme": "x-api-key"}), "x-api-key", "tok"),
        (
            "claude",
            json!({"platform": "claude", "session_token": "sk-ant-oat01-x"}),
            "authorization",
            "Bearer sk-ant-oat01-x",
        ),
        (
            "anthropic",
            json!({"platform": "anthropic", "api_key": "sk-ant-x", "custom_api_endpoint": url}),
            "x-api-key",
            "sk-ant-x",
        ),
    ] {
        let mut fields = fields;
        fields["headers"] = json!({"anthropic-beta": "operator-1", "x-team": "t"});
        relay.add_account(id, &upstream, fields).await;
        let key = relay.add_key(json!({"accounts": [id]})).await;
        let answer = relay.send(message(&key).header("anthropic-beta", "client-1")).await;
        assert_eq!(answer.status, 200, "{id}: {}", answer.text());
        let seen = upstream.requests().pop().unwrap();
        let credentials: Vec<_> =
            seen.headers.iter().filter(|(n, _)| n == "x-api-key" || n == "authorization").collect();
        assert_eq!(credentials, [&(header.to_owned(), value.to_owned())], "{id}");
        assert_eq!(seen.header("anthropic-beta"), Some("client-1,operator-1"), "{id}");
        assert_eq!(seen.header("x-team"), Some("t"), "{id}");
    }
}

#[actix_rt::test]
async fn an_upstreams_401_is_theirs_and_a_wrong_relay_key_is_ours() {
    let (upstream, relay) = (FakeUpstream::start(), TestRelay::start().await);
    let theirs = json!({"type": "error", "error": {"type": "authentication_error", "message": "invalid x-api-key"}, "request_id": "req_theirs"});
    upstream.next(Reply::json(401, theirs.clone()).header("request-id", "req_theirs"));
    relay.add_account("a", &upstream, json!({})).await;
    let key = relay.add_key(json!({})).await;

    let answer = relay.send(message(&key)).await;
    assert_eq!((answer.status, answer.json()), (401, theirs));
    assert_eq!((answer.header("request-id"), answer.header("x-relay-error")), (Some("req_theirs"), None));
    assert_eq!(relay.reasons("a").await, ["credential_rejected"]);

    let wrong = relay.send(message("cr_0000000000000000000000000000000000000000000000000000000000000000")).await;
    assert_eq!((wrong.status, wrong.header("x-relay-error")), (401, Some("key_unknown")));
    assert_eq!(wrong.json()["error"]["type"], "authentication_error");
    assert_eq!(wrong.header("request-id"), wrong.json()["request_id"].as_str());
    let missing = relay.send(Request::post("/v1/messages").json(body(false))).await;
    assert_eq!((missing.status, missing.header("x-relay-error")), (401, Some("key_missing")));

    let out = relay.send(message(&key)).await;
    assert_eq!((out.status, out.header("x-relay-error")), (529, Some("credential_rejected")));
    let patch = Request::patch("/admin/accounts/a").json(json!({"session_token": "new-token"}));
    assert_eq!(relay.admin(patch).await.status, 200);
    assert_eq!(relay.reasons("a").await, [""; 0]);
    assert_eq!(relay.send(message(&key)).await.status, 200);
    assert_eq!(upstream.requests().last().unwrap().credential.as_deref(), Some("new-token"));
    // What became of it is kept: newest first, with cause and evidence.
    let events = relay.admin(Request::get("/admin/accounts/a/events")).await.json()["events"].clone();
    assert_eq!((events.as_array().unwrap().len(), &events[0]["cause"]), (2, &json!("an edit")), "{events}");
    assert_eq!((&events[1]["schedulable"], &events[1]["reasons"]), (&json!(false), &json!(["credential_rejected"])));
    assert!(events[1]["cause"].as_str().unwrap().contains("status 401"), "{events}");
}

#[actix_rt::test]
async fn a_test_of_an_account_says_what_came_back_and_clears_a_rejection() {
    let (upstream, relay) = (FakeUpstream::start(), TestRelay::start().await);
    relay.add_account("a", &upstream, json!({})).await;
    upstream
        .next(Reply::json(401, json!({"type": "error", "error": {"type": "authentication_error", "message": "no"}})));
    let test = || Request::post("/admin/accounts/a/test").json(json!({"model": "m-1"}));
    let failed = relay.admin(test()).await.json();
    assert_eq!(
        (&failed["ok"], &failed["status"], &failed["error_type"]),
        (&json!(false), &json!(401), &json!("authentication_error"))
    );
    assert_eq!(relay.reasons("a").await, ["credential_rejected"]);
    let passed = relay.admin(test()).await.json();
    assert_eq!((&passed["ok"], &passed["model"]), (&json!(true), &json!("m-1")));
    assert_eq!(relay.reasons("a").await, [""; 0]);
    let seen = upstream.requests().pop().unwrap();
    assert!(seen.header("user-agent").unwrap().starts_with("claude-relay/"), "a probe says who it is");
}

#[actix_rt::test]
async fn a_rejected_credential_is_probed_again_and_comes_back_by_itself() {
    let upstream = FakeUpstream::start();
    let relay = TestRelay::start_with(|s| s.health.probe_first = std::time::Duration::from_millis(50)).await;
    relay.add_account("a", &upstream, json!({})).await;
    let key = relay.add_key(json!({})).await;
    upstream.next(Reply::json(401, json!({"error": {}})));
    assert_eq!(relay.send(message(&key)).await.status, 401);
    upstream.wait_requests_async(2).await;
    for _ in 0..500 {
        if relay.reasons("a").await.is_empty() {
            break;
        }
    }
    assert_eq!(relay.reasons("a").await, [""; 0]);
    assert_eq!(relay.send(message(&key)).await.status, 200);
}

#[actix_rt::test]
async fn a_probe_that_settles_nothing_is_followed_by_another() {
    let upstream = FakeUpstream::start();
    let relay = TestRelay::start_with(|s| s.health.probe_first = std::time::Duration::from_millis(20)).await;
    relay.add_account("a", &upstream, json!({})).await;
    let key = relay.add_key(json!({})).await;
    for status in [401, 500, 404, 401] {
        upstream.next(Reply::json(status, json!({"error": {}})));
    }
    assert_eq!(relay.send(message(&key)).await.status, 401);
    upstream.wait_requests_async(5).await;
    for _ in 0..500 {
        if relay.reasons("a").await.is_empty() {
            break;
        }
    }
    assert_eq!(relay.reasons("a").await, [""; 0]);
}

#[actix_rt::test]
async fn a_key_that_is_revoked_or_removed_ends_its_streams() {
    let (upstream, relay) = (FakeUpstream::start(), TestRelay::start().await);
    relay.add_account("a", &upstream, json!({})).await;
    for remove in [false, true] {
        let record = relay.add_key_record(json!({})).await;
        upstream.next(Reply::stream(&["one"], USAGE).chunks(Chunks::Events).hang_after(700));
        let mut streaming = relay.open(stream(record["key"].as_str().unwrap())).await;
        assert!(streaming.next().await.unwrap().is_ok());
        let path = format!("/admin/keys/{}", record["id"].as_str().unwrap());
        let patch = Request::patch(&path).json(json!({"status": "revoked"}));
        let edit = if remove { Request::delete(&path) } else { patch };
        assert_eq!(relay.admin(edit).await.status, 200);
        let rest = streaming.rest().await;
        assert_ne!(rest.ended, Ended::Complete, "{}", rest.text());
    }
    upstream.wait_until_async(|u| u.open_total() == 0).await;
    relay.idle().await;
    assert_eq!(relay.endings().await, [("relay_ended".to_owned(), 2)]);
}

#[actix_rt::test]
async fn an_account_that_is_removed_and_added_again_keeps_its_limit() {
    let (upstream, relay) = (FakeUpstream::start(), TestRelay::start_with(without_waiting).await);
    let add = || relay.add_account("a", &upstream, json!({"concurrencyLimit": 1}));
    add().await;
    let key = relay.add_key(json!({})).await;
    upstream.next(Reply::stream(&["one"], USAGE).hang_after(100));
    let streaming = relay.open(stream(&key)).await;
    assert_eq!(relay.admin(Request::delete("/admin/accounts/a")).await.status, 200);
    assert_eq!(relay.send(message(&key)).await.header("x-relay-error"), Some("no_account"));
    add().await;
    assert_eq!(relay.send(message(&key)).await.header("x-relay-error"), Some("at_capacity"));
    assert_eq!(relay.outstanding().permits, 1);
    streaming.leave();
    relay.idle().await;
    assert_eq!(relay.send(message(&key)).await.status, 200);
}

#[actix_rt::test]
async fn an_old_stored_record_loads_and_serves() {
    let (upstream, relay) = (FakeUpstream::start(), TestRelay::start().await);
    relay.add_account("old", &upstream, json!({})).await;
    let key = relay.add_key(json!({})).await;
    let dir = relay.stop().await;
    // What an early relay would have written: nothing that is optional, and a field that this one does not know.
    let record =
        json!({"id": "old", "platform": "claudeconsole", "custom_api_endpoint": upstream.url(), "from_the_past": 1});
    let db = rusqlite::Connection::open(dir.path().join("relay.db")).unwrap();
    assert_eq!(db.execute("UPDATE accounts SET record = ?1 WHERE id = 'old'", [record.to_string()]).unwrap(), 1);
    drop(db);
    let relay = TestRelay::start_in(dir, |_| {}).await;
    assert_eq!(relay.reasons("old").await, ["no_credential"]);
    let patch = Request::patch("/admin/accounts/old").json(json!({"access_token": "a-1"}));
    assert_eq!(relay.admin(patch).await.json()["from_the_past"], 1);
    assert_eq!(relay.send(message(&key)).await.status, 200);
    assert_eq!(upstream.requests()[0].credential.as_deref(), Some("a-1"));
}

#[actix_rt::test]
async fn a_redirect_is_handed_back_without_location_and_no_byte_goes_there() {
    let (upstream, other, relay) = (FakeUpstream::start(), FakeUpstream::start(), TestRelay::start().await);
    relay.add_account("a", &upstream, json!({})).await;
    let key = relay.add_key(json!({})).await;
    for status in [301, 302, 307, 308] {
        upstream.next(Reply::text(status, "text/plain", "moved").redirect(&format!("{}/v1/messages", other.url())));
        let answer = relay.send(message(&key)).await;
        assert_eq!((answer.status, answer.header("location")), (status, None));
    }
    assert_eq!((upstream.requests().len(), other.bytes_received()), (4, 0));
}

#[actix_rt::test]
async fn a_key_is_refused_when_revoked_expired_or_at_its_limit() {
    let (upstream, relay) = (FakeUpstream::start(), TestRelay::start().await);
    relay.add_account("a", &upstream, json!({})).await;
    let expired = relay.add_key(json!({"expires_at": "2020-01-01T00:00:00Z"})).await;
    assert_eq!(relay.send(message(&expired)).await.header("x-relay-error"), Some("key_expired"));

    let limited = relay.add_key_record(json!({"concurrencyLimit": 1})).await;
    let key = limited["key"].as_str().unwrap();
    upstream.next(Reply::message("late", USAGE).hang());
    let held = relay.open_later(message(key));
    upstream.wait_requests_async(1).await;
    let refused = relay.send(message(key)).await;
    assert_eq!((refused.status, refused.header("x-relay-error")), (429, Some("key_at_limit")));
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
    assert!(refused.header("retry-after").is_some());

    // Revocation ends the running call, and holds at once.
    let path = format!("/admin/keys/{}", limited["id"].as_str().unwrap());
    assert_eq!(relay.admin(Request::patch(&path).json(json!({"status": "revoked"}))).await.status, 200);
    let ended = held.await.unwrap();
    assert_eq!((ended.status, ended.header("x-relay-error")), (401, Some("key_revoked")));
    upstream.wait_until_async(|u| u.open_total() == 0).await;
    assert_eq!(relay.endings().await, [("relay_ended".to_owned(), 1)]);
    assert_eq!(relay.reasons("a").await, [""; 0], "a revocation counted against the account");
    assert_eq!(relay.send(message(key)).await.header("x-relay-error"), Some("key_revoked"));
    relay.idle().await;
}
