//! The facts of one request, read once from its path and body.
//!
//! The body is skimmed, never re-written: only `model`, `stream` and the session are looked at, and `model` is
//! remembered by its place, so that an account that maps model names can exchange those bytes and no others.

use super::Time;
use super::skim::{self, Field, NoObject};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::ops::Range;

/// What is asked of an upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `POST /v1/messages`
    Messages,
    /// `POST /v1/messages/count_tokens`
    CountTokens,
    /// `GET /v1/models` and what lies below it; the tail is as the client sent it, with its leading `/`.
    Models(String),
}

/// One request, as far as routing needs to know it.
#[derive(Debug, Clone)]
pub struct Call {
    /// What is asked.
    pub endpoint: Endpoint,
    /// For which model; `None` where the endpoint has none.
    pub model: Option<Model>,
    /// Whether an event stream was asked for.
    pub stream: bool,
    /// Body bytes.
    pub size: usize,
    /// What the client calls the conversation; its turns are served from one prompt cache if they can be.
    pub session: Option<String>,
    /// Until when it may wait for an account; `None` is as long as the settings allow.
    pub deadline: Option<Time>,
}

/// A model's name and the place of its JSON string (quotes included) in the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// As the client asked for it.
    pub name: String,
    /// Byte range in the body.
    pub span: Range<usize>,
}

impl Model {
    /// Whether `name` can name a model: 1 to 256 bytes without control characters.
    pub fn is_name(name: &str) -> bool {
        !name.is_empty() && name.len() <= 256 && !name.chars().any(char::is_control)
    }
}

/// Why a body cannot be relayed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// It is not JSON.
    #[error("body: not valid JSON: {0}")]
    NotJson(String),
    /// It is JSON, but a field that routing needs is wrong.
    #[error("{field}: {problem}")]
    Field {
        /// The field.
        field: &'static str,
        /// What is wrong and what would be right.
        problem: &'static str,
    },
}

/// What is read of a body, each as it stands there.
#[derive(Default)]
struct Peek {
    model: Option<Range<usize>>,
    stream: Option<Range<usize>>,
    metadata: Option<Range<usize>>,
    prompt_cache_key: Option<Range<usize>>,
}

impl Peek {
    fn at(text: &str) -> Result<Self, BodyError> {
        let mut peek = Self::default();
        for field in skim::fields(text) {
            let Field { name, value } = field.map_err(|NoObject| no_object(text))?;
            let place = match &*name {
                "model" => &mut peek.model,
                "stream" => &mut peek.stream,
                "metadata" => &mut peek.metadata,
                "prompt_cache_key" => &mut peek.prompt_cache_key,
                _ => continue,
            };
            // Which of two counts is not the same for every reader: the relay must not read another than the upstream.
            if place.replace(value).is_some() {
                return Err(BodyError::NotJson(format!("duplicate field `{name}`")));
            }
        }
        Ok(peek)
    }
}

/// What is wrong with a text that is no object, as a full parser says it.
fn no_object(text: &str) -> BodyError {
    match serde_json::from_str::<IgnoredAny>(text) {
        Ok(_) => BodyError::Field { field: "body", problem: "expected a JSON object" },
        Err(e) => BodyError::NotJson(e.to_string()),
    }
}

/// A session's name is no longer than this, bytes.
const LONGEST_SESSION: usize = 512;

/// The session in `metadata.user_id`: since 2026 Claude Code writes a JSON object there, as a string; before, it was
/// `user_…_account_…_session_…`. Whatever else stands there names a user, not a conversation.
fn session_of(metadata: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Metadata {
        user_id: String,
    }
    #[derive(Deserialize)]
    struct UserId {
        session_id: String,
    }
    let Metadata { user_id } = serde_json::from_str(metadata).ok()?;
    match serde_json::from_str::<UserId>(&user_id) {
        Ok(user) => Some(user.session_id),
        Err(_) => user_id.rsplit_once("_session_").map(|(_, session)| session.to_owned()),
    }
}

impl Call {
    /// A call without a body.
    pub fn bodiless(endpoint: Endpoint) -> Self {
        Self { endpoint, model: None, stream: false, size: 0, session: None, deadline: None }
    }

    /// Reads the facts out of a JSON body.
    ///
    /// # Errors
    /// When the body is no JSON object, lacks `model`, or has a `model` or `stream` of another type.
    pub fn peek(endpoint: Endpoint, body: &[u8]) -> Result<Self, BodyError> {
        let wrong = |field, problem| BodyError::Field { field, problem };
        // JSON is UTF-8 (RFC 8259, 8.1).
        let text = std::str::from_utf8(body)
            .map_err(|e| BodyError::NotJson(format!("invalid UTF-8 at byte {}", e.valid_up_to())))?;
        let peek = Peek::at(text)?;
        let raw = |place: Option<Range<usize>>| place.map(|p| &text[p]).filter(|value| *value != "null");
        let span = peek.model.filter(|p| text[p.clone()] != *"null");
        let span = span.ok_or_else(|| wrong("model", "required; a model name such as \"claude-opus-4-5\""))?;
        let name: String =
            serde_json::from_str(&text[span.clone()]).map_err(|_| wrong("model", "expected a string"))?;
        if !Model::is_name(&name) {
            return Err(wrong("model", "expected 1 to 256 bytes without control characters"));
        }
        let stream = match raw(peek.stream) {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(wrong("stream", "expected true or false")),
        };
        let model = Model { name, span };
        // What is wrong in these is for the upstream to say.
        let cache_key = || serde_json::from_str(raw(peek.prompt_cache_key)?).ok();
        let session = raw(peek.metadata).and_then(session_of).or_else(cache_key);
        let call = Self { endpoint, model: Some(model), stream, size: body.len(), session: None, deadline: None };
        Ok(call.in_session(session.as_deref()))
    }

    /// The same call, of this session rather than of the one that its body names; a name that is empty or too long
    /// is none.
    #[must_use]
    pub fn in_session(self, named: Option<&str>) -> Self {
        let named = named.filter(|s| !s.is_empty() && s.len() <= LONGEST_SESSION).map(str::to_owned);
        Self { session: named.or(self.session), ..self }
    }

    /// The model's name, if the endpoint has one.
    pub fn model_name(&self) -> Option<&str> {
        self.model.as_ref().map(|m| m.name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_model_and_stream_are_read() {
        let body = br#" {"big":12345678901234567890123,"x":{"model":"inner"},"model" : "claude-\u0061","stream":true}"#;
        let call = Call::peek(Endpoint::Messages, body).unwrap();
        let model = call.model.unwrap();
        assert_eq!((model.name.as_str(), call.stream), ("claude-a", true));
        assert_eq!(&body[model.span], br#""claude-\u0061""#);
    }

    #[test]
    fn a_session_is_found_in_each_of_its_forms() {
        let session = |tail: &str| {
            let body = format!(r#"{{"model":"m",{tail}}}"#);
            Call::peek(Endpoint::Messages, body.as_bytes()).unwrap().session
        };
        let json = r#""metadata":{"user_id":"{\"device_id\":\"d\",\"account_uuid\":\"\",\"session_id\":\"s-1\"}"}"#;
        assert_eq!(session(json).as_deref(), Some("s-1"));
        assert_eq!(session(r#""metadata":{"user_id":"user_1_account_2_session_s-2"}"#).as_deref(), Some("s-2"));
        assert_eq!(session(r#""prompt_cache_key":"s-3""#).as_deref(), Some("s-3"));
        for none in
            [r#""metadata":{"user_id":"alice"}"#, r#""metadata":5"#, r#""metadata":null"#, r#""prompt_cache_key":"""#]
        {
            assert_eq!(session(none), None, "{none}");
        }
    }

    #[test]
    fn a_null_counts_as_absent() {
        assert!(!Call::peek(Endpoint::Messages, br#"{"model":"m","stream":null}"#).unwrap().stream);
    }

    #[test]
    fn a_bad_body_names_the_field() {
        for (body, start) in [
            (&b"{"[..], "body: not valid JSON"),
            (b"", "body: not valid JSON"),
            (b"[\"m\",true]", "body: expected"),
            (b"{\"model\":\"m\"} x", "body: not valid JSON"),
            (b"{\"model\":\"m\",\"a\":\"\xff\"}", "body: not valid JSON: invalid UTF-8"),
            (b"{}", "model: required"),
            (b"{\"model\":5}", "model: expected"),
            (b"{\"model\":\"\"}", "model: expected"),
            (b"{\"model\":\"m\",\"stream\":\"yes\"}", "stream: expected"),
            (b"{\"model\":\"m\",\"model\":\"n\"}", "body: not valid JSON: duplicate field"),
        ] {
            let error = Call::peek(Endpoint::Messages, body).unwrap_err().to_string();
            assert!(error.starts_with(start), "{error}");
        }
    }
}
