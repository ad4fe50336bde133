//! The life of a relayed request: key, body, what is asked, and then its attempts ([`super::failover`]).

use super::attempt::Facts;
use super::failover::Relaying;
use super::reply::{refuse, unknown_path};
use super::span::call_id;
use super::{Worker, auth, body, keep_alive};
use crate::domain::{Call, Endpoint, Refusal};
use crate::settings::Settings;
use actix_web::http::Version;
use actix_web::web::{Bytes, Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use chrono::TimeDelta;
use std::cell::Cell;
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
    match relayed(request, payload, &worker, endpoint, arrived, &request_id).await {
        Ok(response) => response,
        Err((refusal, key)) => {
            log_refusal(&refusal, &request_id, key.as_deref(), arrived);
            refuse(&refusal, &request_id, worker.shared.clock.now())
        }
    }
}

/// The line of a call that was never sent.
pub(super) fn log_refusal(refusal: &Refusal, request_id: &str, key: Option<&str>, arrived: Instant) {
    let (status, _) = refusal.anthropic();
    let duration_ms = u64::try_from(arrived.elapsed().as_millis()).unwrap_or(u64::MAX);
    let code = refusal.code();
    tracing::info!(request_id, key, status, error_by = "relay", code, attempts = 0, duration_ms, "refused");
}

/// A refusal, and the id of the key if one was found.
type Refused = (Refusal, Option<String>);

async fn relayed(
    request: HttpRequest,
    payload: Payload,
    worker: &Data<Worker>,
    endpoint: Endpoint,
    arrived: Instant,
    request_id: &str,
) -> Result<HttpResponse, Refused> {
    let shared = &worker.shared;
    let caller = auth::caller(&request, &shared.actors.keys, shared.clock.now()).map_err(|r| (r, None))?;
    let key_id = caller.key.id.to_string();
    let mine = |refusal: Refusal| (refusal, Some(key_id.clone()));

    let held = body::read(&request, payload, &shared.settings, &shared.body_memory).await.map_err(mine)?;
    let (mut bytes, hold) = held.split();
    let call = match &endpoint {
        Endpoint::Models(_) => {
            // A GET has no body; one that was sent all the same goes nowhere.
            bytes = Bytes::new();
            Call::bodiless(endpoint)
        }
        _ => Call::peek(endpoint, &bytes).map_err(|e| mine(e.into()))?,
    };
    let named = ["x-claude-code-session-id", "x-session-id"].into_iter().find_map(|name| header(&request, name));
    let call = call.in_session(named);
    let deadline = Some(shared.clock.now() + patience(&request, &shared.settings, arrived));
    let call = Arc::new(Call { deadline, ..call });
    let facts = Facts { request_id: request_id.to_owned(), key: key_id.clone(), arrived };
    let relaying = Relaying { request, worker: worker.clone(), caller, call, facts, uncoded: Cell::new(false) };
    let keep_alive = shared.settings.queue.keep_alive;
    if relaying.call.stream && !keep_alive.is_zero() && relaying.request.version() == Version::HTTP_11 {
        return keep_alive::relayed(relaying, bytes, hold, keep_alive).await.map_err(mine);
    }
    let admission = relaying.admission(Vec::new(), None).await.map_err(mine)?;
    let answer = relaying.attempts(bytes, admission).await;
    // The request is out, or has failed: its bytes are not needed any more.
    drop(hold);
    // The attempt has written the line of this call.
    Ok(answer.unwrap_or_else(|refusal| refuse(&refusal, request_id, shared.clock.now())))
}

fn header<'a>(request: &'a HttpRequest, name: &str) -> Option<&'a str> {
    request.headers().get(name)?.to_str().ok().filter(|value| !value.is_empty())
}

/// How long the call may wait for an account: what the settings allow, and never longer than its client waits
/// (`x-stainless-timeout`, seconds, which the SDKs of Anthropic and OpenAI send), which began when it arrived.
fn patience(request: &HttpRequest, settings: &Settings, arrived: Instant) -> TimeDelta {
    let client = header(request, "x-stainless-timeout").and_then(|t| t.trim().parse::<f64>().ok());
    let client = client.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let left = client.map(|client| client.saturating_sub(arrived.elapsed()));
    let wait = left.map_or(settings.queue.timeout, |left| left.min(settings.queue.timeout));
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
