//! The demo upstream: a small server on a loopback port of its own that answers and streams as the Messages API
//! does, so that a fresh relay has something behind it. It is labelled as what it is in every answer.

use actix_web::http::header::{AUTHORIZATION, CONTENT_TYPE};
use actix_web::web::{self, Bytes, Data};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, dev::ServerHandle};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

const TEXT: [&str; 5] = [
    "This is the demo ",
    "account of claude-relay. ",
    "Add a real one with ",
    "`claude-relay account add` ",
    "and it retires.",
];

/// Between two pieces of a streamed answer, so that one can see it stream.
const PACE: Duration = Duration::from_millis(40);

struct Token(String);

/// Starts it; it accepts `token` only.
///
/// # Errors
/// When no loopback port can be bound.
pub fn start(token: &str) -> io::Result<(SocketAddr, ServerHandle)> {
    let token = Data::new(Token(format!("Bearer {token}")));
    let server = HttpServer::new(move || {
        App::new()
            .app_data(token.clone())
            .app_data(web::PayloadConfig::new(64 << 20))
            .route("/v1/messages", web::post().to(messages))
            .route("/v1/messages/count_tokens", web::post().to(count_tokens))
            .route("/v1/models", web::get().to(models))
    });
    let server = server.workers(1).disable_signals().tcp_nodelay(true).bind(("127.0.0.1", 0))?;
    let addr = server.addrs().first().copied().ok_or_else(|| io::Error::other("no address"))?;
    let server = server.run();
    let handle = server.handle();
    actix_web::rt::spawn(server);
    Ok((addr, handle))
}

fn rejected(request: &HttpRequest) -> Option<HttpResponse> {
    let expected = request.app_data::<Data<Token>>().map(|t| t.0.clone());
    let sent = request.headers().get(AUTHORIZATION).and_then(|v| v.to_str().ok());
    (sent != expected.as_deref()).then(|| {
        let error = json!({"type": "authentication_error", "message": "demo upstream: unknown token"});
        HttpResponse::Unauthorized().json(json!({"type": "error", "error": error}))
    })
}

fn model(body: &[u8]) -> (String, bool, u64) {
    let sent: Value = serde_json::from_slice(body).unwrap_or_default();
    // Some four bytes a token: an estimate is as good as any here.
    let input = body.len() as u64 / 4;
    (sent["model"].as_str().unwrap_or("demo").to_owned(), sent["stream"].as_bool() == Some(true), input)
}

async fn messages(request: HttpRequest, body: Bytes) -> HttpResponse {
    if let Some(response) = rejected(&request) {
        return response;
    }
    let (model, stream, input) = model(&body);
    let id = format!("msg_demo_{}", uuid::Uuid::new_v4().simple());
    let mut message = json!({
        "id": id, "type": "message", "role": "assistant", "model": model, "content": [],
        "stop_reason": null, "stop_sequence": null, "usage": {"input_tokens": input, "output_tokens": 1},
    });
    let output = TEXT.len() as u64 * 5;
    if !stream {
        message["content"] = json!([{"type": "text", "text": TEXT.concat()}]);
        message["stop_reason"] = "end_turn".into();
        message["usage"]["output_tokens"] = output.into();
        return HttpResponse::Ok().json(message);
    }
    let mut events = vec![
        json!({"type": "message_start", "message": message}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
    ];
    let delta =
        |text| json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}});
    events.extend(TEXT.into_iter().map(delta));
    events.extend([
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null}, "usage": {"output_tokens": output}}),
        json!({"type": "message_stop"}),
    ]);
    let chunks = futures_util::stream::unfold(events.into_iter(), |mut events| async move {
        let event = events.next()?;
        let kind = event["type"].as_str().unwrap_or_default().to_owned();
        if kind == "content_block_delta" {
            actix_web::rt::time::sleep(PACE).await;
        }
        Some((Ok::<_, Infallible>(Bytes::from(format!("event: {kind}\ndata: {event}\n\n"))), events))
    });
    HttpResponse::Ok().insert_header((CONTENT_TYPE, "text/event-stream; charset=utf-8")).streaming(chunks)
}

async fn count_tokens(request: HttpRequest, body: Bytes) -> HttpResponse {
    rejected(&request).unwrap_or_else(|| HttpResponse::Ok().json(json!({"input_tokens": model(&body).2})))
}

async fn models(request: HttpRequest) -> HttpResponse {
    let model = json!({"type": "model", "id": "demo", "display_name": "Demo", "created_at": "2026-01-01T00:00:00Z"});
    let list = json!({"data": [model], "has_more": false, "first_id": "demo", "last_id": "demo"});
    rejected(&request).unwrap_or_else(|| HttpResponse::Ok().json(list))
}
