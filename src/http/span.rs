//! The span of a request: its id, method and path. Not the query, which may carry a key, nor any header.

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::{Error, HttpMessage};
use tracing::Span;
use tracing_actix_web::RootSpanBuilder;

/// The relay's own id of a request, `req_` and 32 hex digits: in its log lines, and in `request-id` where the
/// relay answers itself.
#[derive(Clone)]
pub struct CallId(pub String);

impl CallId {
    fn new() -> Self {
        Self(format!("req_{}", uuid::Uuid::new_v4().simple()))
    }
}

/// Builds the span for tracing-actix-web.
pub struct CallSpan;

impl RootSpanBuilder for CallSpan {
    fn on_request_start(request: &ServiceRequest) -> Span {
        let id = CallId::new();
        let span = tracing::info_span!("request", id = %id.0, method = %request.method(), path = request.path());
        request.extensions_mut().insert(id);
        span
    }

    fn on_request_end<B: MessageBody>(_: Span, _: &Result<ServiceResponse<B>, Error>) {
        // The line at the end of a call is the attempt's, which knows when the last byte has left.
    }
}

/// The id of a request; made on the spot for one that no span was opened for.
pub fn call_id(request: &actix_web::HttpRequest) -> String {
    request.extensions().get::<CallId>().map_or_else(|| CallId::new().0, |id| id.0.clone())
}
