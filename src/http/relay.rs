//! The life of a relayed request: key, body, admission, one attempt, and the answer's way back.

use super::attempt::{Attempt, Facts};
use super::auth::{self, Caller};
use super::reply::{refuse, unknown_path};
use super::span::call_id;
use super::{Worker, body};
use crate::domain::{Call, Ending, Endpoint, Refusal, Usage};
use crate::platform::meter::Meter;
use crate::platform::{headers, judge};
use crate::upstream::dial::content_length;
use crate::upstream::stall::ClientSocket;
use crate::upstream::tap::{Booking, Expect, Tap};
use actix_web::body::BoxBody;
use actix_web::http::header::{self, HeaderMap};
use actix_web::http::{Method, StatusCode, Version};
use actix_web::web::{Bytes, Data, Payload};
use actix_web::{HttpRequest, HttpResponse};
use awc::ClientResponse;
use std::sync::Arc;
use std::time::Instant;

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
    let call = Arc::new(call);
    let admission = shared.actors.route(caller.key.clone(), call.clone(), Vec::new(), None).await.map_err(mine)?;

    let facts = Facts { request_id: request_id.to_owned(), key: key_id.clone(), arrived };
    let plan = admission.permit.plan().clone();
    let attempt = Attempt::begin(worker.clone(), admission, call.clone(), facts);
    tracing::debug!(
        account = %plan.account,
        credential = plan.credential_kind.name(),
        endpoint = plan.address(&call.endpoint),
        "dialling"
    );
    let answer = dial(request, bytes, worker, &caller, &call, attempt).await;
    // The request is out, or has failed: its bytes are not needed any more.
    drop(hold);
    Ok(match answer {
        Ok((upstream, attempt)) => respond(request, worker, &caller, &call, upstream, attempt),
        // The attempt has written the line of this call.
        Err(refusal) => refuse(&refusal, request_id, shared.clock.now()),
    })
}

/// Sends the attempt and waits for the head, or for the key's revocation.
async fn dial(
    request: &HttpRequest,
    bytes: Bytes,
    worker: &Data<Worker>,
    caller: &Caller,
    call: &Call,
    mut attempt: Attempt,
) -> Result<(ClientResponse, Attempt), Refusal> {
    let plan = attempt.plan().clone();
    let query = caller.query.as_deref();
    let prepared = plan.prepare(call, bytes, query, request.headers().iter(), &caller.presented);
    let sent = match prepared {
        Some(prepared) => {
            let method = if call.model.is_some() { Method::POST } else { Method::GET };
            let revoked = caller.key.revoked();
            tokio::select! {
                sent = worker.dialer.send(&plan, method, prepared) => sent.map_err(Refusal::Upstream),
                () = revoked.cancelled() => {
                    let draining = worker.shared.actors.is_draining();
                    Err(if draining { Refusal::Draining } else { Refusal::KeyRevoked })
                }
            }
        }
        // Not possible with a plan that was built and a query that was parsed, but no reason to panic.
        None => Err(Refusal::Internal),
    };
    let upstream = match sent {
        Ok(upstream) => upstream,
        Err(refusal) => {
            attempt.refused(&refusal);
            return Err(refusal);
        }
    };
    let status = upstream.status().as_u16();
    let find = |name: &str| upstream.headers().get(name).and_then(|v| v.to_str().ok());
    let upstream_id = find("request-id").map(str::to_owned);
    tracing::debug!(status, upstream_request_id = upstream_id, "the upstream answered");
    let outcome = judge::judge(status, find, &call.endpoint, worker.shared.clock.now());
    attempt.head(status, upstream_id, outcome);
    Ok((upstream, attempt))
}

/// The upstream's head as the client gets it, over a body that is a [`Tap`].
fn respond(
    request: &HttpRequest,
    worker: &Data<Worker>,
    caller: &Caller,
    call: &Call,
    upstream: ClientResponse,
    attempt: Attempt,
) -> HttpResponse {
    let status = upstream.status();
    let find = |name: header::HeaderName| upstream.headers().get(name).and_then(|v| v.to_str().ok());
    let (success, counts) = (status.as_u16() < 400, status.is_success() && call.endpoint == Endpoint::Messages);
    let meter = Meter::new(find(header::CONTENT_TYPE), find(header::CONTENT_ENCODING), counts);
    let bodiless = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let terminal_event = counts && meter.is_stream();
    let announced = if bodiless { Some(0) } else { content_length(&upstream) };
    let length = announced.filter(|_| !terminal_event);
    let old_client = request.version() < Version::HTTP_11;
    let expect = Expect {
        success,
        terminal_event,
        length,
        blunt: old_client,
        idle: worker.dialer.timeouts().idle,
        send: worker.shared.settings.limits.send_timeout,
        request_id: attempt.request_id().to_owned(),
        socket: request.conn_data::<ClientSocket>().copied(),
    };
    let mut response = HttpResponse::new(status);
    pass_back(upstream.headers(), response.headers_mut());
    if old_client && length.is_none() {
        // HTTP/1.0 knows no chunking: the end of the connection is the end of the body.
        response.head_mut().no_chunking(true);
        response.head_mut().set_connection_type(actix_http::ConnectionType::Close);
    }
    if length == Some(0) {
        // actix asks an empty body for nothing, so that a tap would not learn that it is over.
        let mut attempt = attempt;
        attempt.end(if success { Ending::Complete } else { Ending::UpstreamError }, Usage::default(), None);
        return response.set_body(BoxBody::new(()));
    }
    let tap = Tap::new(upstream, meter, expect, attempt, caller.key.revoked(), worker.under_way.clone());
    response.set_body(tap).map_into_boxed_body()
}

fn pass_back(from: &HeaderMap, to: &mut HeaderMap) {
    for (name, value) in from {
        if headers::returned(name.as_str()) {
            to.append(name.clone(), value.clone());
        }
    }
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
