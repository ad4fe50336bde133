//! A streaming client that waits long for an account, kept alive by SSE comments (`queue.keep_alive`, off unless set).
//!
//! A status 200 then precedes the verdict. What goes wrong afterwards cannot be a status any more: it becomes the
//! protocol's `error` event, with the upstream's own error in it where there is one.

use super::answer::is_coded;
use super::failover::Relaying;
use super::relay::log_refusal;
use super::reply::refuse;
use crate::domain::Refusal;
use actix_web::HttpResponse;
use actix_web::body::{BodySize, BoxBody, MessageBody, to_bytes_limited};
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use actix_web::web::Bytes;
use futures_util::future::LocalBoxFuture;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// A comment, which every reader of event streams passes over (WHATWG HTML, 9.2.6).
const COMMENT: &[u8] = b": waiting for an account\n\n";

/// No error's body is larger than this in an event.
const LARGEST_ERROR: usize = 64 * 1024;

/// Relays a call whose client is kept alive once it has waited for `patience`.
///
/// # Errors
/// Why no account was found before that.
pub async fn relayed(
    relaying: Relaying,
    bytes: Bytes,
    hold: Option<OwnedSemaphorePermit>,
    patience: Duration,
) -> Result<HttpResponse, Refusal> {
    let relaying = Rc::new(relaying);
    let mut waiting = {
        let relaying = relaying.clone();
        Box::pin(async move { relaying.admission(Vec::new(), None).await })
    };
    let answer = |relaying: Rc<Relaying>, answer: Result<HttpResponse, Refusal>| {
        let now = relaying.worker.shared.clock.now();
        answer.unwrap_or_else(|refusal| refuse(&refusal, &relaying.facts.request_id, now))
    };
    if let Ok(admitted) = tokio::time::timeout(patience, &mut waiting).await {
        let answered = relaying.attempts(bytes, admitted?).await;
        drop(hold);
        return Ok(answer(relaying, answered));
    }
    relaying.uncoded.set(true);
    let request_id = relaying.facts.request_id.clone();
    let rest = async move {
        let answered = match waiting.await {
            Ok(admission) => relaying.attempts(bytes, admission).await,
            Err(refusal) => {
                let facts = &relaying.facts;
                log_refusal(&refusal, &facts.request_id, Some(&facts.key), facts.arrived);
                Err(refusal)
            }
        };
        drop(hold);
        into_stream(answer(relaying, answered)).await
    };
    let mut comments = interval(patience);
    comments.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut response = HttpResponse::Ok();
    response.insert_header((CONTENT_TYPE, "text/event-stream; charset=utf-8"));
    response.insert_header((CACHE_CONTROL, "no-cache")).insert_header(("request-id", request_id));
    Ok(response.body(KeptAlive { waiting: Some(Box::pin(rest)), comments, stream: BoxBody::new(()) }))
}

/// The body of an answer whose head has gone out already: as it is if it is a stream, else an error event.
async fn into_stream(response: HttpResponse) -> BoxBody {
    if is_coded(response.headers()) {
        return error_event(&own_error("the upstream's answer was coded though none was asked for"));
    }
    let kind = response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if response.status().is_success() && kind.starts_with("text/event-stream") {
        return response.into_body();
    }
    let body = to_bytes_limited(response.into_body(), LARGEST_ERROR).await.ok().and_then(Result::ok);
    let error: Option<serde_json::Value> = body.and_then(|b| serde_json::from_slice(&b).ok());
    let error = error.filter(|e| e["type"] == "error");
    error_event(&error.unwrap_or_else(|| own_error("the upstream's answer was no event stream")))
}

fn own_error(message: &str) -> serde_json::Value {
    serde_json::json!({"type": "error", "error": {"type": "api_error", "message": message}})
}

fn error_event(error: &serde_json::Value) -> BoxBody {
    BoxBody::new(format!("event: error\ndata: {error}\n\n"))
}

/// Comments, and then the stream.
struct KeptAlive {
    waiting: Option<LocalBoxFuture<'static, BoxBody>>,
    comments: Interval,
    stream: BoxBody,
}

impl MessageBody for KeptAlive {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let this = self.get_mut();
        if let Some(waiting) = &mut this.waiting {
            let Poll::Ready(stream) = waiting.as_mut().poll(cx) else {
                ready!(this.comments.poll_tick(cx));
                return Poll::Ready(Some(Ok(Bytes::from_static(COMMENT))));
            };
            (this.stream, this.waiting) = (stream, None);
        }
        Pin::new(&mut this.stream).poll_next(cx)
    }
}
