//! A small request of the relay's own through one account: `account test`, and the re-probe of a rejected
//! credential. It runs on the control thread, says who it is by its user-agent, and reads a bounded answer.

use super::dial::{Dialer, Timeouts};
use crate::clock::Clock;
use crate::domain::{Call, Endpoint, Fault, Outcome, ProbeReport};
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
) -> impl Fn(Arc<Plan>, String) -> LocalBoxFuture<'static, ProbeReport> {
    let timeouts = Timeouts { first_byte: timeouts.first_byte.min(PATIENCE), ..timeouts };
    move |plan, model| {
        let (clock, tls) = (clock.clone(), tls.clone());
        Box::pin(async move {
            let dialer = DIALER.with(|cell| cell.get_or_init(|| Rc::new(Dialer::new(timeouts, tls))).clone());
            let started = Instant::now();
            let mut report = probe(&dialer, &plan, &model, &clock).await;
            report.duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            report
        })
    }
}

async fn probe(dialer: &Dialer, plan: &Plan, model: &str, clock: &Clock) -> ProbeReport {
    let failed = |fault: Fault| ProbeReport {
        outcome: Outcome::Failed { fault },
        error_type: None,
        message: Some(fault.to_string()),
        duration_ms: 0,
    };
    let headers = [
        (USER_AGENT, HeaderValue::from_static(concat!("claude-relay/", env!("CARGO_PKG_VERSION")))),
        (CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (ACCEPT, HeaderValue::from_static("application/json")),
        (HeaderName::from_static("anthropic-version"), HeaderValue::from_static(messages::PROBE_VERSION)),
    ];
    let body = Bytes::from(messages::probe_body(model));
    let call = Call::bodiless(Endpoint::Messages);
    let Some(request) = plan.prepare(&call, body, None, headers.iter().map(|(n, v)| (n, v)), "") else {
        return failed(Fault::Protocol);
    };
    let mut answer = match dialer.send(plan, Method::POST, request).await {
        Ok(answer) => answer,
        Err(fault) => return failed(fault),
    };
    let headers = answer.headers().clone();
    let find = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let outcome = judge::judge(answer.status().as_u16(), find, &Endpoint::Messages, clock.now());
    let Ok(Ok(body)) = tokio::time::timeout(PATIENCE, answer.body().limit(LARGEST_ANSWER)).await else {
        return failed(Fault::Cut);
    };
    let error = serde_json::from_slice::<serde_json::Value>(&body).unwrap_or_default();
    let said = |field: &str| error["error"][field].as_str().map(str::to_owned);
    ProbeReport { outcome, error_type: said("type"), message: said("message"), duration_ms: 0 }
}
