//! A small request of the relay's own through one account: `account test`, and the re-probe of a rejected
//! credential. It runs on the control thread, says who it is by its user-agent, and reads a bounded answer.
//!
//! Of an endpoint other than messages a good answer is a success here: it proves the credential, and that somebody
//! answers. An upstream that has no such endpoint (404, 405) has said nothing about the account.

use super::dial::{Dialer, Timeouts};
use crate::clock::Clock;
use crate::domain::{Call, Endpoint, Fault, Outcome, ProbeKind, ProbeReport};
use crate::platform::{Plan, judge, messages};
use awc::http::Method;
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue, USER_AGENT};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A probe that has no answer by then has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// As much of an answer as is read.
const LARGEST_ANSWER: usize = 256 * 1024;

thread_local! {
    static DIALER: std::cell::OnceCell<Rc<Dialer>> = const { std::cell::OnceCell::new() };
}

/// The function that the actors probe with.
pub fn prober(
    timeouts: Timeouts,
    tls: Arc<rustls::ClientConfig>,
    clock: Clock,
) -> impl Fn(Arc<Plan>, ProbeKind, String) -> LocalBoxFuture<'static, ProbeReport> {
    let timeouts = Timeouts { first_byte: timeouts.first_byte.min(PATIENCE), ..timeouts };
    move |plan, kind, model| {
        let (clock, tls) = (clock.clone(), tls.clone());
        Box::pin(async move {
            let dialer = DIALER.with(|cell| cell.get_or_init(|| Rc::new(Dialer::new(timeouts, tls))).clone());
            let started = Instant::now();
            let (outcome, said) = match messages::probe(kind, &model) {
                Some((endpoint, body)) => probe(&dialer, &plan, endpoint, body, &clock).await,
                // No fault of the account's: early-close is the one that counts against nobody.
                None => failed(Fault::EarlyClose, "the account's probe is none; nothing was sent"),
            };
            let duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            ProbeReport { probe: kind.name(), outcome, error_type: said.kind, message: said.message, duration_ms }
        })
    }
}

/// What the answer's error says, or why there is none.
#[derive(Default)]
struct Said {
    kind: Option<String>,
    message: Option<String>,
}

fn failed(fault: Fault, message: impl ToString) -> (Outcome, Said) {
    (Outcome::Failed { fault }, Said { kind: None, message: Some(message.to_string()) })
}

async fn probe(dialer: &Dialer, plan: &Plan, endpoint: Endpoint, body: String, clock: &Clock) -> (Outcome, Said) {
    let mut headers = vec![
        (USER_AGENT, HeaderValue::from_static(concat!("claude-relay/", env!("CARGO_PKG_VERSION")))),
        (ACCEPT, HeaderValue::from_static("application/json")),
        (HeaderName::from_static("anthropic-version"), HeaderValue::from_static(messages::PROBE_VERSION)),
    ];
    let method = if body.is_empty() { Method::GET } else { Method::POST };
    if !body.is_empty() {
        headers.push((CONTENT_TYPE, HeaderValue::from_static("application/json")));
    }
    let call = Call::bodiless(endpoint);
    let request = plan.prepare(&call, Bytes::from(body), None, headers.iter().map(|(n, v)| (n, v)), "");
    let Some(request) = request else { return failed(Fault::Protocol, Fault::Protocol) };
    let mut answer = match dialer.send(plan, method, request).await {
        Ok(answer) => answer,
        Err(fault) => return failed(fault, fault),
    };
    let status = answer.status();
    if status.is_success() && call.endpoint != Endpoint::Messages {
        // The head proves all there is to prove; a list of models can be long.
        return (Outcome::Success { status: status.as_u16() }, Said::default());
    }
    let body = tokio::time::timeout(PATIENCE, answer.body().limit(LARGEST_ANSWER)).await.ok().and_then(Result::ok);
    if body.is_none() && status.is_success() {
        return failed(Fault::Cut, Fault::Cut);
    }
    let find = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok());
    let outcome = judge::judge(status.as_u16(), find, &call.endpoint, body.as_deref(), clock.now());
    let error: serde_json::Value = body.and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default();
    let text = |field: &str| error["error"][field].as_str().map(str::to_owned);
    (outcome, Said { kind: text("type"), message: text("message") })
}
