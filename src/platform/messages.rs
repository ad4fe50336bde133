//! The Messages API as the three platforms share it: where its endpoints lie under a base, and its events.

use crate::domain::{Endpoint, ProbeKind};

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

/// A small request of the relay's own, as `account test` and a re-probe send it: its endpoint and its body, which
/// is empty where a GET is meant. `None` if nothing is to be asked.
pub fn probe(kind: ProbeKind, model: &str) -> Option<(Endpoint, String)> {
    let mut body = serde_json::json!({"model": model, "messages": [{"role": "user", "content": "ping"}]});
    match kind {
        ProbeKind::Messages => {
            body["max_tokens"] = 1.into();
            Some((Endpoint::Messages, body.to_string()))
        }
        ProbeKind::CountTokens => Some((Endpoint::CountTokens, body.to_string())),
        ProbeKind::Models => Some((Endpoint::Models(String::new()), String::new())),
        ProbeKind::None => None,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_probe_of_messages_asks_for_tokens() {
        let asked = |kind| probe(kind, "m-1");
        let body = r#"{"max_tokens":1,"messages":[{"content":"ping","role":"user"}],"model":"m-1"}"#;
        assert_eq!(asked(ProbeKind::Messages), Some((Endpoint::Messages, body.to_owned())));
        let body = body.replace(r#""max_tokens":1,"#, "");
        assert_eq!(asked(ProbeKind::CountTokens), Some((Endpoint::CountTokens, body)));
        assert_eq!(asked(ProbeKind::Models), Some((Endpoint::Models(String::new()), String::new())));
        assert_eq!(asked(ProbeKind::None), None);
    }
}
