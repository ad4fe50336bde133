//! The Messages API as the three platforms share it: where its endpoints lie under a base, and its events.

use crate::domain::Endpoint;

/// Anthropic's API (docs.anthropic.com/en/api/overview).
pub const ANTHROPIC: &str = "https://api.anthropic.com";

/// The path before `/v1/…` of a base as operators write it: one trailing `/` is trimmed, and a base that already
/// ends in `/v1` or `/v1/messages` means the same as one that does not.
pub fn root(path: &str) -> String {
    let path = path.strip_suffix('/').unwrap_or(path);
    path.strip_suffix("/v1/messages").or_else(|| path.strip_suffix("/v1")).unwrap_or(path).to_owned()
}

/// The path of an endpoint below a root.
pub fn path(root: &str, endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Messages => format!("{root}/v1/messages"),
        Endpoint::CountTokens => format!("{root}/v1/messages/count_tokens"),
        Endpoint::Models(tail) => format!("{root}/v1/models{tail}"),
    }
}

/// The name in rows and logs.
pub fn endpoint_name(endpoint: &Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Messages => "messages",
        Endpoint::CountTokens => "count_tokens",
        Endpoint::Models(_) => "models",
    }
}

/// A small real request: what `account test` and a re-probe send.
pub fn probe_body(model: &str) -> String {
    serde_json::json!({
        "model": model,
        "max_tokens": 1,
        "messages": [{"role": "user", "content": "ping"}],
    })
    .to_string()
}

/// The version header of a probe (docs.anthropic.com/en/api/versioning).
pub const PROBE_VERSION: &str = "2023-06-01";

/// The event that tells a client that its stream broke, in the API's own shape.
pub fn error_event(message: &str, request_id: &str) -> String {
    let data = serde_json::json!({
        "type": "error",
        "error": {"type": "api_error", "message": message},
        "request_id": request_id,
    });
    format!("event: error\ndata: {data}\n\n")
}
