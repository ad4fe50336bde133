//! Answers that the relay makes itself. The one place where a [`Refusal`] becomes HTTP, in the caller's shape.
//!
//! Such an answer carries `x-relay-error`, which no relayed answer does, so that a wrong relay key is never
//! confused with a rejected upstream credential.

use super::span::call_id;
use crate::domain::{Refusal, Time};
use actix_web::http::StatusCode;
use actix_web::{HttpRequest, HttpResponse, Route, web};

/// Renders `refusal` as the Messages API would (docs.anthropic.com/en/api/errors).
pub fn refuse(refusal: &Refusal, request_id: &str, now: Time) -> HttpResponse {
    let (status, kind) = refusal.anthropic();
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = HttpResponse::build(status);
    response.insert_header(("x-relay-error", refusal.code())).insert_header(("request-id", request_id));
    if let Some(seconds) = refusal.retry_after(now) {
        response.insert_header(("retry-after", seconds.to_string()));
    }
    if !refusal.is_transient() {
        response.insert_header(("x-should-retry", "false"));
    }
    response.json(serde_json::json!({
        "type": "error",
        "error": {"type": kind.name(), "message": refusal.to_string()},
        "request_id": request_id,
    }))
}

/// Refuses a request that reached no relaying handler.
pub fn refuse_early(request: &HttpRequest, refusal: &Refusal) -> HttpResponse {
    refuse(refusal, &call_id(request), chrono::Utc::now())
}

/// 404, as JSON.
pub async fn unknown_path(request: HttpRequest) -> HttpResponse {
    refuse_early(&request, &Refusal::NotFound(request.path().chars().take(200).collect()))
}

/// 405, as JSON.
pub fn wrong_method() -> Route {
    web::route().to(|request: HttpRequest| async move {
        refuse_early(&request, &Refusal::MethodNotAllowed(request.method().to_string()))
    })
}
