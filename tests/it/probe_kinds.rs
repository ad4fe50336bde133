//! What each kind of probe asks of an upstream, and what it makes of the answers.

use crate::fake_upstream::{Cut, FakeUpstream, Reply};
use claude_relay::clock::Clock;
use claude_relay::domain::account::FIELDS;
use claude_relay::domain::document::Document;
use claude_relay::domain::{Account, Fault, Outcome, ProbeKind, ProbeReport};
use claude_relay::platform::Plan;
use claude_relay::upstream::connector::tls_config;
use claude_relay::upstream::dial::Timeouts;
use claude_relay::upstream::probe::prober;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

async fn probed(upstream: &FakeUpstream, kind: ProbeKind, reply: Option<Reply>) -> ProbeReport {
    let sent =
        json!({"id": "a", "platform": "claudeconsole", "custom_api_endpoint": upstream.url(), "session_token": "t"});
    let account = Account::parse(&Document::from_input(sent, FIELDS).unwrap()).unwrap();
    let wait = Duration::from_secs(5);
    let timeouts = Timeouts { connect: wait, first_byte: wait, idle: wait };
    let probe = prober(timeouts, tls_config(None).unwrap(), Clock::system());
    if let Some(reply) = reply {
        upstream.next(reply);
    }
    probe(Arc::new(Plan::of(&account).unwrap()), kind, "m-1".to_owned()).await
}

fn error(status: u16, kind: &str, message: &str) -> Reply {
    Reply::json(status, json!({"type": "error", "error": {"type": kind, "message": message}}))
}

#[actix_rt::test]
async fn each_kind_asks_its_own_endpoint_and_none_asks_nothing() {
    let upstream = FakeUpstream::start();
    for (kind, name, method, path, body) in [
        (ProbeKind::Messages, "messages", "POST", "/v1/messages", Some(json!(1))),
        (ProbeKind::CountTokens, "count_tokens", "POST", "/v1/messages/count_tokens", Some(json!(null))),
        (ProbeKind::Models, "models", "GET", "/v1/models", None),
    ] {
        let report = probed(&upstream, kind, Some(Reply::json(200, json!({"input_tokens": 3})))).await;
        assert_eq!((report.probe, report.outcome), (name, Outcome::Success { status: 200 }));
        let asked = upstream.requests().pop().unwrap();
        assert_eq!(asked.method, method);
        assert!(asked.path.ends_with(path), "{}", asked.path);
        assert_eq!(asked.header("authorization"), Some("Bearer t"));
        assert_eq!(asked.header("content-type").is_some(), body.is_some());
        let sent: Option<serde_json::Value> = serde_json::from_slice(&asked.body).ok();
        assert_eq!(sent.as_ref().map(|b| b["max_tokens"].clone()), body);
        assert!(sent.is_none_or(|b| b["model"] == "m-1"));
    }
    let report = probed(&upstream, ProbeKind::None, None).await;
    assert_eq!((report.probe, report.outcome), ("none", Outcome::Failed { fault: Fault::EarlyClose }));
    assert_eq!(upstream.requests().len(), 3);
}

#[actix_rt::test]
async fn an_endpoint_that_is_not_there_says_nothing_and_a_credential_that_is_refused_does() {
    let upstream = FakeUpstream::start();
    for kind in [ProbeKind::CountTokens, ProbeKind::Models] {
        for (reply, expected) in [
            (error(404, "not_found_error", "x"), Outcome::Neutral { status: 404 }),
            (Reply::text(405, "text/html", "no"), Outcome::Neutral { status: 405 }),
            (error(400, "invalid_request_error", "x"), Outcome::Neutral { status: 400 }),
            (error(429, "rate_limit_error", "x").header("retry-after", "60"), Outcome::Neutral { status: 429 }),
            (error(401, "authentication_error", "x"), Outcome::CredentialRejected { status: 401 }),
            (error(403, "permission_error", "x"), Outcome::CredentialRejected { status: 403 }),
            (
                error(400, "invalid_request_error", "This organization has been disabled."),
                Outcome::Billing { status: 400 },
            ),
            (Reply::text(403, "text/html", "firewall"), Outcome::ServerFault { status: 403 }),
            (error(500, "api_error", "x"), Outcome::ServerFault { status: 500 }),
            (error(529, "overloaded_error", "x"), Outcome::Overloaded { status: 529, until: None }),
        ] {
            assert_eq!(probed(&upstream, kind, Some(reply)).await.outcome, expected, "{kind:?}");
        }
    }
}

#[actix_rt::test]
async fn a_cut_answer_is_a_failure_only_where_its_status_says_nothing() {
    let upstream = FakeUpstream::start();
    let cut = |status| error(status, "authentication_error", "revoked").cut(10, Cut::Fin);
    let report = probed(&upstream, ProbeKind::Messages, Some(cut(200))).await;
    assert_eq!(report.outcome, Outcome::Failed { fault: Fault::Cut });
    let report = probed(&upstream, ProbeKind::Messages, Some(cut(401))).await;
    assert_eq!((report.outcome, report.message), (Outcome::CredentialRejected { status: 401 }, None));
    let report = probed(&upstream, ProbeKind::Messages, Some(error(401, "authentication_error", "revoked"))).await;
    assert_eq!(report.error_type.as_deref(), Some("authentication_error"));
    assert_eq!(report.message.as_deref(), Some("revoked"));
}
