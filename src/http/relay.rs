//! The life of a relayed request: key, body, what is asked, and then its attempts ([`super::failover`]).

use super::attempt::Facts;
use super::failover::Relaying;
use super::reply::{refuse, unknown_path};
use super::span::call_id;
use super::{Worker, auth, body};
use crate::domain::{Call, Endpoint, Refusal};
use crate::settings::Settings;
use actix_web::web::{Bytes, Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use chrono::TimeDelta;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// `POST /v1/messages`
pub async fn messages(request: HttpRequest, payload: Payload, worker: Data<Worker>) -> HttpResponse {
    answer(request, payload, worker, Endpoint::Messages).await
}

/// `POST /v1/messages/count_tokens`
pub async fn count_tokens(request: HttpRequest, payload: Payload, worker: Data<Worker>) -> HttpResponse {
    answer(request, payload, worker, Endpoint::CountTokens).await
}

/// `GET /v1/models` and `GET /v1/models/{model}`
pub async fn models(request: HttpRequest, payload: Payload, worker: Data<Worker>) -> HttpResponse {
    // As the client wrote it: a decoded segment could not be told from a path.
    let tail = request.uri().path().split_once("/v1/models").map_or("", |(_, tail)| tail).to_owned();
    if climbs(&tail) {
        return unknown_path(request).await;
    }
    answer(request, payload, worker, Endpoint::Models(tail)).await
}

/// True if an upstream that decodes and normalises the path could end up elsewhere, with the account's credential.
fn climbs(tail: &str) -> bool {
    let plain = tail.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/").replace("%5c", "/");
    plain.contains("%25") || plain.split(['/', '\\']).any(|segment| segment == "." || segment == "..")
}

async fn answer(request: HttpRequest, payload: Payload, worker: Data<Worker>, endpoint: Endpoint) -> HttpResponse {
    let (arrived, request_id) = (Instant::now(), call_id(&request));
    match relayed(&request, payload, &worker, endpoint, arrived, &request_id).await {
        Ok(response) => response,
        Err((refusal, key)) => {
            let (status, _) = refusal.anthropic();
            let duration_ms = u64::try_from(arrived.elapsed().as_millis()).unwrap_or(u64::MAX);
            let code = refusal.code();
            tracing::info!(request_id, key, status, error_by = "relay", code, attempts = 0, duration_ms, "refused");
            refuse(&refusal, &request_id, worker.shared.clock.now())
        }
    }
}

/// A refusal, and the id of the key if one was found.
type Refused = (Refusal, Option<String>);

async fn relayed(
    request: &HttpRequest,
    payload: Payload,
    worker: &Data<Worker>,
    endpoint: Endpoint,
    arrived: Instant,
    request_id: &str,
) -> Result<HttpResponse, Refused> {
    let shared = &worker.shared;
    let caller = auth::caller(request, &shared.actors.keys, shared.clock.now()).map_err(|r| (r, None))?;
    let key_id = caller.key.id.to_string();
    let mine = |refusal: Refusal| (refusal, Some(key_id.clone()));

    let held = body::read(request, payload, &shared.settings, &shared.body_memory).await.map_err(mine)?;
    let (mut bytes, hold) = held.split();
    let call = match &endpoint {
        Endpoint::Models(_) => {
            // A GET has no body; one that was sent all the same goes nowhere.
            bytes = Bytes::new();
            Call::bodiless(endpoint)
        }
        _ => Call::peek(endpoint, &bytes).map_err(|e| mine(e.into()))?,
    };
    let arrived_at = shared.clock.now();
    let session = header(request, "x-claude-code-session-id").or_else(|| header(request, "x-session-id"));
    let call = match session {
        Some(session) => call.of_session(Some(session.to_owned())),
        None => call,
    };
    let deadline = Some(arrived_at + patience(request, &shared.settings));
    let call = Arc::new(Call { deadline, ..call });
    let facts = Facts { request_id: request_id.to_owned(), key: key_id.clone(), arrived };
    let relaying = Relaying { request, worker, caller: &caller, call: &call, facts: &facts };
    let admission = relaying.admission(Vec::new(), None).await.map_err(mine)?;
    // The hold on the body's memory ends with this: the request is out, or has failed.
    let answer = relaying.attempts(bytes, admission).await;
    drop(hold);
    // The attempt has written the line of this call.
    Ok(answer.unwrap_or_else(|refusal| refuse(&refusal, request_id, shared.clock.now())))
}

fn header<'a>(request: &'a HttpRequest, name: &str) -> Option<&'a str> {
    request.headers().get(name)?.to_str().ok()
}

/// How long the call may wait for an account: what the settings allow, and never longer than its client waits
/// (`x-stainless-timeout`, seconds, which the SDKs of Anthropic and OpenAI send).
fn patience(request: &HttpRequest, settings: &Settings) -> TimeDelta {
    let client = header(request, "x-stainless-timeout").and_then(|t| t.trim().parse::<f64>().ok());
    let client = client.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let wait = client.map_or(settings.queue.timeout, |client| client.min(settings.queue.timeout));
    TimeDelta::from_std(wait).unwrap_or(TimeDelta::zero())
}

#[cfg(test)]
mod tests {
    use super::climbs;

    #[test]
    fn a_models_tail_stays_below_models() {
        for tail in ["", "/claude-x", "/org%2Fmodel", "/a.b", "/..a"] {
            assert!(!climbs(tail), "{tail}");
        }
        for tail in ["/..", "/%2e%2E", "/..%2F..%2Forganizations", "/a%5c..%5cb", "/%252e%252e", "/."] {
            assert!(climbs(tail), "{tail}");
        }
    }
}
