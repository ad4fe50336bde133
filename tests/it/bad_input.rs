//! Wrong input: a clear error each, which names what is wrong, and the relay goes on.

use crate::fake_upstream::FakeUpstream;
use crate::raw_client::{Connection, Request, send};
use crate::relay_app::{TestRelay, body, message};
use serde_json::{Value, json};
use std::time::Duration;

async fn relay_with(upstream: &FakeUpstream) -> (TestRelay, String) {
    let relay = TestRelay::start_with(|s| {
        s.limits.max_body_bytes = 1 << 20;
        s.limits.upload_timeout = Duration::from_millis(300);
        s.limits.header_timeout = Duration::from_secs(1);
    })
    .await;
    relay.add_account("a", upstream, json!({})).await;
    let key = relay.add_key(json!({})).await;
    (relay, key)
}

#[actix_rt::test]
async fn a_bad_request_body_names_the_field() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    for (sent, message) in [
        ("{", "body: not valid JSON"),
        ("[]", "body: expected a JSON object"),
        ("{}", "model: required"),
        (r#"{"model":5}"#, "model: expected a string"),
        (r#"{"model":"m","stream":"yes"}"#, "stream: expected true or false"),
    ] {
        let request = Request::post("/v1/messages").header("x-api-key", &key).body(sent.as_bytes().to_vec());
        let answer = relay.send(request).await;
        assert_eq!((answer.status, answer.header("x-relay-error")), (400, Some("body_invalid")), "{sent}");
        let error = &answer.json()["error"];
        assert_eq!(error["type"], "invalid_request_error");
        assert!(error["message"].as_str().unwrap().starts_with(message), "{error}");
    }
    assert_eq!(upstream.requests().len(), 0);
}

#[actix_rt::test]
async fn a_body_over_the_limit_is_refused_unread() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    let large = vec![b'x'; 40 << 20];
    let chunks: Vec<_> = large.chunks(1 << 16).map(<[u8]>::to_vec).collect();
    let post = || Request::post("/v1/messages").header("x-api-key", &key);
    for request in [
        post().body(large.clone()),
        post().chunked_body(chunks),
        post().header("expect", "100-continue").body(large.clone()),
    ] {
        let answer = relay.send(request).await;
        assert_eq!((answer.status, answer.header("x-relay-error")), (413, Some("body_too_large")));
        assert_eq!(answer.json()["error"]["type"], "request_too_large");
    }
    // Without a key, nothing of a body is read, whatever its size.
    let anonymous = Request::post("/v1/messages").body(large);
    assert_eq!(relay.send(anonymous).await.status, 401);
    let fitting = message(&key).header("expect", "100-continue");
    let answer = relay.send(fitting).await;
    assert_eq!((answer.status, answer.interim.as_slice()), (200, &[100][..]));
}

#[actix_rt::test]
async fn a_body_that_trickles_in_is_given_up() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    let mut connection = Connection::open(relay.addr()).await;
    let head = format!("POST /v1/messages HTTP/1.1\r\nhost: r\r\nx-api-key: {key}\r\ncontent-length: 100\r\n\r\n");
    connection.write(head.as_bytes()).await;
    let trickle = async {
        loop {
            connection.write(b"{").await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            if relay.outstanding().passes > 0 {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(500), trickle).await;
    let _ = tokio::time::timeout(Duration::from_secs(5), connection.closed()).await.expect("it is still open");
    let json = body(false).to_string();
    let head = format!(
        "POST /v1/messages HTTP/1.1\r\nhost: r\r\nx-api-key: {key}\r\ncontent-length: {}\r\n\r\n",
        json.len() + 1
    );
    let late = relay.send(Request::raw(format!("{head}{json}"))).await;
    assert_eq!((late.status, late.header("x-relay-error")), (408, Some("upload_timeout")));
    assert_eq!(relay.send(message(&key)).await.status, 200);
}

#[actix_rt::test]
async fn requests_that_could_be_read_in_two_ways_are_refused() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    let json = body(false).to_string();
    let n = json.len();
    let head =
        |framing: &str| format!("POST /v1/messages HTTP/1.1\r\nhost: r\r\nx-api-key: {key}\r\n{framing}\r\n\r\n{json}");
    for framing in [
        format!("content-length: {n}\r\ncontent-length: {}", n + 1),
        format!("content-length: {n}\r\ntransfer-encoding: chunked"),
        format!("transfer-encoding: chunked\r\ncontent-length: {n}"),
        "content-length: 999999999999999999999999999".to_owned(),
        format!("content-length: +{n}"),
        "content-length: -1".to_owned(),
        "transfer-encoding: chunked, identity".to_owned(),
        "transfer-encoding: xchunked".to_owned(),
    ] {
        let answer = send(relay.addr(), Request::raw(head(&framing))).await;
        assert!(answer.status == 400 || answer.status == 501 || answer.status == 413, "{framing}: {}", answer.status);
    }
    assert_eq!(upstream.requests().len(), 0);
    let long = "x".repeat(200_000);
    let answer = relay.send(message(&key).header("x-long", &long)).await;
    assert!((400..=431).contains(&answer.status) || answer.status == 0, "{}", answer.status);
    assert_eq!(relay.send(message(&key)).await.status, 200);
}

#[actix_rt::test]
async fn paths_and_methods_answer_in_json_and_the_base_path_answers_without_a_key() {
    let upstream = FakeUpstream::start();
    let (relay, key) = relay_with(&upstream).await;
    for (request, status, code) in [
        (Request::get("/v1/messages"), 405, "method_not_allowed"),
        (Request::post("/v1/models"), 405, "method_not_allowed"),
        (Request::post("/"), 405, "method_not_allowed"),
        (Request::post("/v1/complete"), 404, "not_found"),
        (Request::get("/admin/accounts"), 404, "not_found"),
        (Request::get("/v1/models/a/b"), 404, "not_found"),
    ] {
        let answer = relay.send(request.header("x-api-key", &key)).await;
        assert_eq!((answer.status, answer.header("x-relay-error")), (status, Some(code)));
        assert_eq!(answer.json()["type"], "error");
    }
    for path in ["/", "/api", "/claude"] {
        assert_eq!(relay.send(Request::head(path)).await.status, 200);
        assert_eq!(relay.send(Request::get(path)).await.status, 200);
    }
}

#[actix_rt::test]
async fn the_admin_api_names_the_field_and_the_remedy() {
    let upstream = FakeUpstream::start();
    let (relay, _) = relay_with(&upstream).await;
    let good =
        json!({"id": "b", "platform": "claudeconsole", "custom_api_endpoint": "https://h/api", "session_token": "t"});
    let with = |field: &str, value: Value| {
        let mut record = good.clone();
        record[field] = value;
        record
    };
    for (record, status, field) in [
        (json!([]), 400, "body"),
        (with("platform", json!("gpt")), 400, "platform"),
        (with("custom_api_endpoint", json!("ftp://h")), 400, "custom_api_endpoint"),
        (with("custom_api_endpoint", json!("https://user:pw@h")), 400, "custom_api_endpoint"),
        (with("concurrencyLimit", json!(-1)), 400, "concurrencyLimit"),
        (with("concurrencyLimit", json!(1e12)), 400, "concurrencyLimit"),
        (with("concurrencyLimit", json!("5")), 400, "concurrencyLimit"),
        (with("session_token", json!(5)), 400, "session_token"),
        (with("colour", json!("red")), 400, "colour"),
    ] {
        let answer = relay.admin(Request::post("/admin/accounts").json(record.clone())).await;
        let error = &answer.json()["error"];
        assert_eq!((answer.status, error["field"].as_str()), (status, Some(field)), "{record}: {error}");
    }
    let broken = Request::post("/admin/accounts").body(b"{".to_vec());
    assert_eq!(relay.admin(broken).await.json()["error"]["code"], "invalid_body");
    assert_eq!(relay.admin(Request::post("/admin/accounts").json(good.clone())).await.status, 201);
    let again = relay.admin(Request::post("/admin/accounts").json(good)).await;
    assert_eq!((again.status, again.json()["error"]["code"].as_str()), (409, Some("duplicate")));
    for (request, status, code) in [
        (Request::get("/admin/accounts/none"), 404, "missing"),
        (Request::patch("/admin/accounts/none").json(json!({"name": "x"})), 404, "missing"),
        (Request::patch("/admin/accounts/b").json(json!({})), 400, "invalid_field"),
        (Request::patch("/admin/accounts/b").json(json!({"id": "c"})), 400, "invalid_field"),
        (Request::post("/admin/keys").json(json!({})), 400, "invalid_field"),
        (Request::post("/admin/keys").json(json!({"name": "k", "accounts": ["none"]})), 400, "invalid_field"),
        (Request::get("/admin/usage?colour=red"), 400, "invalid_field"),
        (Request::delete("/admin/keys/none"), 404, "missing"),
        (Request::get("/admin/nothing"), 404, "not_found"),
        (Request::delete("/admin/accounts"), 405, "method_not_allowed"),
    ] {
        let answer = relay.admin(request).await;
        assert_eq!((answer.status, answer.json()["error"]["code"].as_str()), (status, Some(code)), "{}", answer.text());
    }
    let anonymous = send(relay.admin_addr(), Request::get("/admin/accounts")).await;
    assert_eq!((anonymous.status, anonymous.json()["error"]["code"].as_str()), (401, Some("unauthorized")));
}

#[actix_rt::test]
async fn an_operation_on_an_account_names_the_field_it_does_not_know() {
    let upstream = FakeUpstream::start();
    let (relay, _) = relay_with(&upstream).await;
    for verb in ["test", "probe", "drain", "enable", "disable", "reset"] {
        let path = format!("/admin/accounts/a/{verb}");
        for (sent, field) in [(json!({"colour": "red"}), "colour"), (json!([]), "body"), (json!("x"), "body")] {
            let answer = relay.admin(Request::post(&path).json(sent.clone())).await;
            let error = &answer.json()["error"];
            let told = (answer.status, error["code"].as_str(), error["field"].as_str());
            assert_eq!(told, (400, Some("invalid_field"), Some(field)), "{verb} {sent}: {error}");
        }
        let broken = relay.admin(Request::post(&path).body(b"{".to_vec())).await;
        assert_eq!((broken.status, broken.json()["error"]["code"].as_str()), (400, Some("invalid_body")), "{verb}");
    }
    for model in [json!(5), json!("")] {
        let answer = relay.admin(Request::post("/admin/accounts/a/test").json(json!({"model": model}))).await;
        assert_eq!((answer.status, answer.json()["error"]["field"].as_str()), (400, Some("model")));
    }
    assert_eq!((upstream.requests().len(), relay.reasons("a").await.len()), (0, 0), "something was done all the same");
    for verb in ["test", "probe", "drain", "enable", "disable", "reset"] {
        let path = format!("/admin/accounts/a/{verb}");
        assert_eq!(relay.admin(Request::post(&path)).await.status, 200, "{verb}");
        assert_eq!(relay.admin(Request::post(&path).json(json!({}))).await.status, 200, "{verb}");
    }
}

#[actix_rt::test]
async fn two_edits_of_different_fields_both_survive() {
    let upstream = FakeUpstream::start();
    let (relay, _) = relay_with(&upstream).await;
    let edits = (0..20).map(|i| {
        let field = if i % 2 == 0 { json!({"priority": i}) } else { json!({"description": format!("edit {i}")}) };
        relay.admin(Request::patch("/admin/accounts/a").json(field))
    });
    assert!(futures_util::future::join_all(edits).await.iter().all(|a| a.status == 200));
    let record = relay.admin(Request::get("/admin/accounts/a")).await.json();
    assert!(record["priority"].is_i64() && record["description"].is_string(), "{record}");
    assert_eq!(record["name"], "account a");
}
