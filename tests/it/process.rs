//! Signals, `kill -9`, the log and the command line, on the real binary.

use crate::fake_upstream::{Chunks, FakeUpstream, Reply, Usage};
use crate::raw_client::{Ended, Request, open, send};
use crate::relay_app::{body, eventually, message, stream};
use crate::relay_process::{RelayProcess, cli, cli_json, command};
use futures_util::future::join_all;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

const USAGE: Usage = Usage { input: 10, output: 42, cache_creation_5m: 5, cache_creation_1h: 2, cache_read: 3 };

fn account(id: &str, upstream: &FakeUpstream, token: &str, limit: u32) -> String {
    json!({
        "id": id, "platform": "claudeconsole", "custom_api_endpoint": upstream.url(), "session_token": token,
        "concurrencyLimit": limit,
    })
    .to_string()
}

fn add(data: &Path, upstream: &FakeUpstream, limit: u32) -> String {
    cli_json(data, &["account", "add", "--file", "-"], &account("a", upstream, "tok-of-a-0123456789", limit));
    cli_json(data, &["key", "create", "--name", "k"], "")["key"].as_str().unwrap().to_owned()
}

#[actix_rt::test]
async fn kill_9_during_a_burst_of_streams_loses_and_doubles_nothing() {
    let (upstream, data) = (FakeUpstream::start(), tempfile::tempdir().unwrap());
    let mut relay = RelayProcess::start(data.path(), &["--no-demo"], &[]).await;
    let key = add(data.path(), &upstream, 1000);
    // Every call has a usage of its own, so that a sum that is right is right for each.
    upstream.answer_with(|request| {
        let n: u64 = request.header("x-number").unwrap().parse().unwrap();
        let usage = Usage { input: 1 << n.min(40), output: n, ..USAGE };
        let reply = Reply::stream(&["one", "two", "three"], usage).chunks(Chunks::Events);
        // A few are sure to run when the kill comes.
        if n.is_multiple_of(20) { reply.hang_after(900) } else { reply.pause(Duration::from_millis(n % 7)) }
    });
    let addr = relay.addr;
    let calls: Vec<_> = (0..120_u64)
        .map(|n| {
            let request = stream(&key).header("x-number", &n.to_string());
            actix_rt::spawn(async move { (n, open(addr, request).await.rest().await) })
        })
        .collect();
    upstream.wait_until_async(|u| u.complete().len() >= 40).await;
    relay.signal(Signal::KILL);
    relay.ended().await;
    let answers: Vec<_> = join_all(calls).await.into_iter().map(Result::unwrap).collect();
    upstream.wait_until_async(|u| u.open_total() == 0).await;

    let relay = RelayProcess::start(data.path(), &[], &[]).await;
    let rows = cli_json(data.path(), &["usage"], "")["rows"].as_array().unwrap().clone();
    let total = |field: &str| rows.iter().map(|r| r[field].as_u64().unwrap()).sum::<u64>();
    let mut endings: BTreeMap<String, u64> = BTreeMap::new();
    for row in &rows {
        for (name, n) in row["endings"].as_object().unwrap() {
            *endings.entry(name.clone()).or_default() += n.as_u64().unwrap();
        }
    }
    // A call that was killed between its `begun` and its dialling has a row that the upstream knows nothing of.
    let (rows_in_all, seen) = (total("requests"), upstream.requests().len() as u64);
    let crashed = endings.get("relay_crashed").copied().unwrap_or_default();
    assert!(
        (seen..=seen + crashed).contains(&rows_in_all),
        "{rows_in_all} rows for {seen} calls that reached the upstream"
    );
    assert_eq!(endings.values().sum::<u64>(), rows_in_all);
    let whole: Vec<u64> =
        answers.iter().filter(|(_, a)| a.ended == Ended::Complete && a.status == 200).map(|(n, _)| *n).collect();
    let complete = endings.get("complete").copied().unwrap_or_default();
    assert!(complete >= whole.len() as u64, "{} whole answers, {complete} booked", whole.len());
    assert!(endings.contains_key("relay_crashed"), "the kill came too late to prove anything: {endings:?}");
    // Each row that is complete has its own call's usage: the sum of distinct numbers tells.
    let db = rusqlite::Connection::open(data.path().join("relay.db")).unwrap();
    let mut query = db.prepare("SELECT output_tokens, input_tokens, ending FROM calls").unwrap();
    let booked: Vec<(i64, i64, String)> =
        query.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?))).unwrap().map(Result::unwrap).collect();
    for n in &whole {
        let rows: Vec<_> =
            booked.iter().filter(|(output, _, ending)| *output == n.cast_signed() && ending == "complete").collect();
        assert_eq!(rows.len(), 1, "call {n}: {rows:?}");
        assert_eq!(rows[0].1, 1 << (*n).min(40));
    }
    println!("{} calls, {} whole, {endings:?}", upstream.requests().len(), whole.len());
    drop(relay);
}

#[actix_rt::test]
async fn sigterm_lets_running_streams_end_and_a_second_relay_waits_for_the_lock() {
    let (upstream, data) = (FakeUpstream::start(), tempfile::tempdir().unwrap());
    let mut relay = RelayProcess::start(data.path(), &["--no-demo"], &[]).await;
    let key = add(data.path(), &upstream, 10);

    let second = command()
        .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data-dir"])
        .arg(data.path())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("in use by another relay"));

    let slow = Reply::stream(&["one", "two", "three"], USAGE).chunks(Chunks::Events).pause(Duration::from_millis(40));
    upstream.always(slow);
    let mut streaming = open(relay.addr, stream(&key)).await;
    assert!(streaming.next().await.unwrap().is_ok());
    assert!(streaming.header("connection").is_none());
    relay.signal(Signal::TERM);
    let refused = || std::net::TcpStream::connect_timeout(&relay.addr, Duration::from_millis(200)).is_err();
    eventually("newcomers are refused", refused).await;
    let rest = streaming.rest().await;
    assert_eq!(rest.ended, Ended::Complete);
    assert!(rest.text().ends_with("data: {\"type\":\"message_stop\"}\n\n"), "{}", rest.text());
    assert_eq!(relay.ended().await, Some(0));
    assert!(!data.path().join("admin-url").exists());
    let left: Vec<_> =
        std::fs::read_dir(data.path().join("journal")).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).collect();
    let db = rusqlite::Connection::open(data.path().join("relay.db")).unwrap();
    let settled: i64 = db.query_row("SELECT count(*) FROM calls WHERE ending = 'complete'", [], |r| r.get(0)).unwrap();
    assert_eq!(settled, 1, "the journal was not settled at the end; files left: {left:?}");
}

#[actix_rt::test]
async fn a_drain_is_bounded_and_a_second_signal_ends_at_once() {
    let (upstream, data) = (FakeUpstream::start(), tempfile::tempdir().unwrap());
    upstream.always(Reply::stream(&["one"], USAGE).hang_after(700));
    let env = [("CLAUDE_RELAY_DRAIN_TIMEOUT", "200ms")];
    let mut relay = RelayProcess::start(data.path(), &["--no-demo"], &env).await;
    let key = add(data.path(), &upstream, 10);
    let streaming = open(relay.addr, stream(&key)).await;
    relay.signal(Signal::TERM);
    assert_ne!(streaming.rest().await.ended, Ended::Complete, "a stream that was cut by the drain looked whole");
    assert_eq!(relay.ended().await, Some(0));

    let mut relay = RelayProcess::start(data.path(), &[], &[]).await;
    let held = open(relay.addr, stream(&key)).await;
    relay.signal(Signal::TERM);
    let refused = || std::net::TcpStream::connect_timeout(&relay.addr, Duration::from_millis(200)).is_err();
    eventually("it drains", refused).await;
    relay.signal(Signal::TERM);
    assert_eq!(relay.ended().await, Some(143));
    drop(held);
    let relay = RelayProcess::start(data.path(), &[], &[]).await;
    let rows = cli_json(data.path(), &["usage"], "")["rows"].clone();
    // The first was cut by the drain's end and booked with what it had said; the second died with its relay.
    assert_eq!(rows[0]["endings"], json!({"relay_ended": 1, "relay_crashed": 1}), "{rows}");
    assert_eq!(rows[0]["input_tokens"], 10);
    drop(relay);
}

#[actix_rt::test]
async fn no_secret_is_in_the_log_or_on_the_command_lines_output() {
    let (upstream, data) = (FakeUpstream::start(), tempfile::tempdir().unwrap());
    let env = [("CLAUDE_RELAY_LOG_LEVEL", "trace"), ("CLAUDE_RELAY_LOG_FORMAT", "json")];
    let mut relay = RelayProcess::start(data.path(), &[], &env).await;
    let token = std::fs::read_to_string(data.path().join("admin-token")).unwrap().trim().to_owned();
    let demo_key = relay.output().split("x-api-key: ").nth(1).unwrap().split('\'').next().unwrap().to_owned();
    let session = "sess-token-0123456789abcdef";
    let mut record: Value = serde_json::from_str(&account("a", &upstream, session, 5)).unwrap();
    record["headers"] = json!({"x-team-secret": "header-secret-0123456789"});
    record["access_token"] = json!("acc-token-0123456789abcdef");
    let shown = cli(data.path(), &["account", "add", "--file", "-"], &record.to_string());
    let key = cli_json(data.path(), &["key", "create", "--name", "k"], "")["key"].as_str().unwrap().to_owned();
    upstream.next(Reply::json(401, json!({"error": {"type": "authentication_error"}})));
    for request in [
        message(&key),
        stream(&key),
        Request::post(&format!("/v1/messages?key={key}")).json(body(false)),
        message("cr_ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"),
        Request::get(&format!("/nowhere?key={key}")),
    ] {
        send(relay.addr, request).await;
    }
    cli_json(data.path(), &["account", "set", "a", "--file", "-"], r#"{"session_token":"sess-token-new-9876543210"}"#);
    assert_eq!(send(relay.addr, message(&key)).await.status, 200);
    let outputs: Vec<_> =
        [&["account", "list"][..], &["account", "show", "a"], &["key", "list"], &["status"], &["usage"]]
            .iter()
            .flat_map(|args| [cli(data.path(), args, ""), cli(data.path(), &[*args, &["--json"]].concat(), "")])
            .chain([shown])
            .map(|o| String::from_utf8_lossy(&[o.stdout, o.stderr].concat()).into_owned())
            .collect();
    relay.signal(Signal::TERM);
    assert_eq!(relay.ended().await, Some(0));
    let log = relay.output();
    // The greeting shows the admin token and the first key, once, by design; the log lines begin after it.
    let lines: String = log.lines().filter(|l| l.starts_with('{')).collect();
    for told in [r#""credential":"session_token""#, r#""message":"dialling""#, r#""message":"the upstream answered""#] {
        assert!(lines.contains(told), "{told} is not in the log");
    }
    let sealing = std::fs::read_to_string(data.path().join("sealing.key")).unwrap();
    for secret in [
        session,
        "acc-token-0123456789abcdef",
        "header-secret-0123456789",
        "sess-token-new-9876543210",
        &key,
        &demo_key,
        &token,
        sealing.trim(),
        "cr_ffffffff",
    ] {
        assert!(!lines.contains(secret), "a secret is in the log: {secret}");
        assert!(outputs.iter().all(|o| !o.contains(secret)), "a secret was printed: {secret}");
        for file in ["relay.db", "relay.db-wal"] {
            let bytes = std::fs::read(data.path().join(file)).unwrap_or_default();
            assert!(!bytes.windows(secret.len()).any(|w| w == secret.as_bytes()), "{secret} lies in {file}");
        }
    }
    assert!(log.contains("\"ending\":\"complete\"") && log.contains("\"error_by\":\"upstream\""));
}

#[actix_rt::test]
async fn the_demo_answers_at_once_and_retires_with_the_first_real_account() {
    let (upstream, data) = (FakeUpstream::start(), tempfile::tempdir().unwrap());
    let relay = RelayProcess::start(data.path(), &[], &[]).await;
    let key = relay.output().split("x-api-key: ").nth(1).unwrap().split('\'').next().unwrap().to_owned();
    let answer = send(relay.addr, stream(&key)).await;
    assert!(answer.text().contains("account of claude-relay") && answer.ended == Ended::Complete);
    let ids = || -> Vec<String> {
        let list = cli_json(data.path(), &["account", "list"], "");
        list["accounts"].as_array().unwrap().iter().map(|a| a["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(), ["demo"]);
    drop(relay);
    // A second start finds the demo account and brings its upstream back.
    let relay = RelayProcess::start(data.path(), &[], &[]).await;
    assert_eq!(send(relay.addr, message(&key)).await.status, 200);
    cli_json(data.path(), &["account", "add", "--file", "-"], &account("real", &upstream, "t", 5));
    assert_eq!(ids(), ["real"]);
    assert_eq!(send(relay.addr, message(&key)).await.status, 200);
    assert_eq!(upstream.requests().len(), 1);
}

#[actix_rt::test]
async fn a_lost_sealing_key_is_named_at_start_and_nothing_is_overwritten() {
    let (upstream, data) = (FakeUpstream::start(), tempfile::tempdir().unwrap());
    let relay = RelayProcess::start(data.path(), &["--no-demo"], &[]).await;
    let key = add(data.path(), &upstream, 5);
    drop(relay);
    let (file, aside) = (data.path().join("sealing.key"), data.path().join("aside"));
    std::fs::rename(&file, &aside).unwrap();
    let start = command()
        .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data-dir"])
        .arg(data.path())
        .output()
        .unwrap();
    assert_eq!(start.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&start.stderr).contains("sealing.key"));
    std::fs::rename(&aside, &file).unwrap();
    let relay = RelayProcess::start(data.path(), &[], &[]).await;
    assert_eq!(send(relay.addr, message(&key)).await.status, 200);
}

#[actix_rt::test]
async fn the_command_line_says_what_to_do() {
    let data = tempfile::tempdir().unwrap();
    let absent = cli(data.path(), &["status"], "");
    assert_eq!(absent.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&absent.stderr).contains("claude-relay serve"));
    let check = command()
        .args(["serve", "--check", "--workers", "3"])
        .current_dir(data.path())
        .env("CLAUDE_RELAY_SEALING_KEY", "ab".repeat(32))
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.success() && shown.contains("workers = 3") && !shown.contains("abab"), "{shown}");
    let bad = command()
        .args(["serve", "--check"])
        .current_dir(data.path())
        .env("CLAUDE_RELAY_UPSTREAM_CONNECT_TIMEOUT", "soon")
        .output()
        .unwrap();
    assert_eq!(bad.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("upstream.connect_timeout"));

    let relay = RelayProcess::start(data.path(), &["--no-demo"], &[]).await;
    let bad = cli(data.path(), &["account", "add", "--file", "-", "--json"], r#"{"platform":"gpt"}"#);
    assert_eq!((bad.status.code(), bad.stdout.len()), (Some(1), 0));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("platform"));
    let key = cli_json(
        data.path(),
        &["key", "create", "--name", "k", "--concurrency", "3", "--expires", "2099-01-01T00:00:00Z"],
        "",
    );
    assert_eq!((&key["concurrencyLimit"], key["key"].as_str().unwrap().len()), (&json!(3), 67));
    let id = key["id"].as_str().unwrap();
    cli_json(data.path(), &["key", "revoke", id], "");
    let revoked = send(relay.addr, message(key["key"].as_str().unwrap())).await;
    assert_eq!(revoked.header("x-relay-error"), Some("key_revoked"));
    let ready = send(relay.addr, Request::get("/ready")).await;
    assert_eq!((ready.status, &ready.json()["reasons"][0]["code"]), (503, &json!("no_schedulable_account")));
    assert_eq!(send(relay.addr, Request::get("/health")).await.status, 200);
}
