//! The span of a request: its id, method and path. Not the query, which may carry a key, nor any header.

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::{Error, HttpMessage};
use tracing::Span;
use tracing_actix_web::{RequestId, RootSpanBuilder};

/// Builds the span for tracing-actix-web.
pub struct CallSpan;

impl RootSpanBuilder for CallSpan {
    fn on_request_start(request: &ServiceRequest) -> Span {
        let id = call_id(request.request());
        tracing::info_span!("request", id, method = %request.method(), path = request.path())
    }

    fn on_request_end<B: MessageBody>(_: Span, _: &Result<ServiceResponse<B>, Error>) {
        // The line at the end of a call is the attempt's, which knows when the last byte has left.
    }
}

/// The relay's own id of a request, `req_` and 32 hex digits: in its log lines, and in `request-id` where the
/// relay answers itself. Made on the spot for a request that no span was opened for.
pub fn call_id(request: &actix_web::HttpRequest) -> String {
    let id = request.extensions().get::<RequestId>().copied();
    format!("req_{}", id.map_or_else(uuid::Uuid::new_v4, uuid::Uuid::from).simple())
}
