//! From an answer to an [`Outcome`]: the one place where an upstream's status is given a meaning.
//!
//! The body counts for the few statuses that [`wants_body`] names, and there only the API's own JSON error. Its
//! message may quote the client, so a phrase is believed only where a sentence of the API can have it: otherwise
//! a client could bench an account by having its own words refused.

use super::limits;
use crate::domain::{Endpoint, Outcome, Time};
use serde_json::Value;

/// True if the status alone does not say what is meant.
pub fn wants_body(status: u16) -> bool {
    matches!(status, 400..=403 | 429)
}

/// Judges an answer. `header` looks a header up by its lower-case name; `body` is the whole body, decoded, where
/// [`wants_body`] asks for it, or `None` if it could not be read within bounds.
pub fn judge<'a>(
    status: u16,
    header: impl Fn(&str) -> Option<&'a str>,
    endpoint: &Endpoint,
    body: Option<&[u8]>,
    now: Time,
) -> Outcome {
    // count_tokens and models have limits of their own, which say nothing about messages.
    let own_limits = *endpoint != Endpoint::Messages;
    match status {
        200..=299 if !own_limits => Outcome::Success { status },
        400..=403 => refused(status, body.and_then(ApiError::read).as_ref()),
        429 if own_limits || body.and_then(ApiError::read).is_some_and(|e| e.wants_extra_usage()) => {
            Outcome::Neutral { status }
        }
        429 => {
            let (limit, until, header) = limits::limited(header, now);
            Outcome::RateLimited { limit, until, header }
        }
        503 | 529 => Outcome::Overloaded { status, until: limits::retry_after(header, now).map(|(until, _)| until) },
        500.. => Outcome::ServerFault { status },
        _ => Outcome::Neutral { status },
    }
}

/// 400 to 403: the client's fault, the credential's, or the account's money's.
fn refused(status: u16, error: Option<&ApiError>) -> Outcome {
    let kind = error.map_or("", |e| e.kind.as_str());
    match status {
        _ if error.is_some_and(ApiError::names_billing) => Outcome::Billing { status },
        402 => Outcome::Billing { status },
        401 => Outcome::CredentialRejected { status },
        403 => match kind {
            "permission_error" if error.is_some_and(ApiError::is_about_the_request) => Outcome::Neutral { status },
            "permission_error" | "authentication_error" => Outcome::CredentialRejected { status },
            "invalid_request_error" => Outcome::Neutral { status },
            // A firewall's page, or an answer that nobody documents.
            _ => Outcome::ServerFault { status },
        },
        _ => Outcome::Neutral { status },
    }
}

/// `{"error":{"type":…,"message":…}}` (docs.anthropic.com/en/api/errors), in lower case.
struct ApiError {
    kind: String,
    message: String,
}

impl ApiError {
    fn read(body: &[u8]) -> Option<Self> {
        let answer: Value = serde_json::from_slice(body).ok()?;
        let error = answer.get("error")?.as_object()?;
        let text = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default().trim().to_lowercase();
        Some(Self { kind: text("type"), message: text("message") })
    }

    /// No credit, a spending limit that is reached, or a disabled organisation. Anthropic answers all of these as
    /// 400 `invalid_request_error`, so that only the message tells.
    fn names_billing(&self) -> bool {
        const PHRASES: [&str; 3] =
            ["credit balance is too low", "organization has been disabled", "account has been disabled"];
        let reached = self.before("usage limits").is_some_and(|before| before.contains("reached"));
        self.kind == "billing_error" || reached || PHRASES.iter().any(|phrase| self.before(phrase).is_some())
    }

    /// A request of long context on a subscription that was not granted it: no limit of the account is reached, and
    /// a shorter request would be served ("Extra usage is required for long context requests.").
    fn wants_extra_usage(&self) -> bool {
        self.before("extra usage is required for long context").is_some()
    }

    /// What stands before `phrase`, if that is plain words: what the API quotes from a client stands after a colon,
    /// a quote, a digit or the like.
    fn before(&self, phrase: &str) -> Option<&str> {
        let before = &self.message[..self.message.find(phrase)?];
        before.bytes().all(|b| b.is_ascii_alphabetic() || b == b' ').then_some(before)
    }

    /// The credential is good; what was asked for is not open to it.
    fn is_about_the_request(&self) -> bool {
        let words = || self.message.split(|c: char| !c.is_ascii_alphanumeric());
        words().any(|word| matches!(word, "model" | "models" | "feature" | "features" | "beta"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Limit, Window};

    fn at(seconds: i64) -> Time {
        chrono::DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    fn outcome(status: u16, headers: &[(&str, &str)], endpoint: &Endpoint, body: Option<&str>) -> Outcome {
        let find = |name: &str| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        judge(status, find, endpoint, body.map(str::as_bytes), at(0))
    }

    fn said(status: u16, body: Option<&str>) -> Outcome {
        outcome(status, &[], &Endpoint::Messages, body)
    }

    fn error(kind: &str, message: &str) -> String {
        serde_json::json!({"type": "error", "error": {"type": kind, "message": message}}).to_string()
    }

    #[test]
    fn a_clients_fault_is_neutral_and_an_upstreams_is_not() {
        for status in [101, 304, 400, 404, 405, 408, 409, 413, 422, 499] {
            assert_eq!(said(status, None), Outcome::Neutral { status });
        }
        assert_eq!(said(200, None), Outcome::Success { status: 200 });
        assert_eq!(said(401, None), Outcome::CredentialRejected { status: 401 });
        assert_eq!(said(402, None), Outcome::Billing { status: 402 });
        for status in [403, 500, 502, 504, 520, 599] {
            assert_eq!(said(status, None), Outcome::ServerFault { status });
        }
        for status in [503, 529] {
            assert_eq!(said(status, None), Outcome::Overloaded { status, until: None });
        }
    }

    #[test]
    fn the_body_is_asked_for_where_the_meaning_hangs_on_it() {
        let asked: Vec<u16> = (100..600).filter(|status| wants_body(*status)).collect();
        assert_eq!(asked, [400, 401, 402, 403, 429]);
        let money = error("billing_error", "Your credit balance is too low");
        for status in [404, 413, 429, 500, 529] {
            assert_eq!(said(status, Some(&money)), said(status, None));
        }
    }

    #[test]
    fn a_request_that_wants_extra_usage_is_no_limit_of_the_account() {
        let long = error("rate_limit_error", "Extra usage is required for long context requests.");
        assert_eq!(said(429, Some(&long)), Outcome::Neutral { status: 429 });
        let quoted = error("rate_limit_error", "Limited: \"extra usage is required for long context\"");
        assert_eq!(said(429, Some(&quoted)), said(429, None));
    }

    #[test]
    fn a_body_that_names_billing_is_told_from_a_rejected_credential() {
        for (kind, message) in [
            ("billing_error", "Please check your plan"),
            ("invalid_request_error", "Your credit balance is too low to access the Anthropic API. Please go to Plans"),
            ("invalid_request_error", "This organization has been disabled."),
            ("authentication_error", "Your account has been disabled"),
            ("permission_error", "Your organization has been disabled: model access is over."),
            ("invalid_request_error", "You have reached your specified API usage limits. You will regain access on"),
            ("invalid_request_error", "You have reached your specified workspace API usage limits."),
        ] {
            for status in [400, 401, 402, 403] {
                assert_eq!(said(status, Some(&error(kind, message))), Outcome::Billing { status }, "{message}");
            }
        }
    }

    #[test]
    fn what_the_api_quotes_from_a_client_names_no_billing() {
        for message in [
            "anthropic-beta: Unexpected value(s) `credit balance is too low`",
            "messages.0: \"Your credit balance is too low\" is not a role",
            "tools.0.custom.name: This organization has been disabled",
            "Unknown name 'account has been disabled'",
            "max_tokens: the usage limits are reached",
            "This feature has usage limits",
        ] {
            let body = error("invalid_request_error", message);
            assert_eq!(said(400, Some(&body)), Outcome::Neutral { status: 400 }, "{message}");
            assert_eq!(said(401, Some(&body)), Outcome::CredentialRejected { status: 401 }, "{message}");
        }
    }

    #[test]
    fn only_a_json_error_speaks() {
        for body in [
            "Your credit balance is too low",
            "<html>This organization has been disabled.</html>",
            r#"{"message":"Your credit balance is too low"}"#,
            r#"{"error":"Your credit balance is too low"}"#,
            r#"{"error":{"type":7,"message":["This organization has been disabled."]}}"#,
            r#"["error",{"type":"billing_error"}]"#,
            r#"{"error":{"type":"billing_error"#,
            "null",
            "",
        ] {
            for (status, without) in [(400, said(400, None)), (401, said(401, None)), (403, said(403, None))] {
                assert_eq!(said(status, Some(body)), without, "{body}");
            }
        }
        assert_eq!(judge(403, |_| None, &Endpoint::Messages, Some(&[0xff, 0xfe]), at(0)), said(403, None));
    }

    #[test]
    fn a_403_is_the_credentials_the_clients_or_a_firewalls() {
        let (rejected, neutral) = (Outcome::CredentialRejected { status: 403 }, Outcome::Neutral { status: 403 });
        for (kind, message, expected) in [
            ("permission_error", "OAuth authentication is currently not allowed for this organization.", &rejected),
            ("permission_error", "Your API key does not have permission to use the specified resource.", &rejected),
            ("permission_error", "", &rejected),
            ("authentication_error", "invalid x-api-key for this model", &rejected),
            ("permission_error", "Your organization does not have access to the model claude-opus-9", &neutral),
            ("permission_error", "This Feature is not enabled for you", &neutral),
            ("invalid_request_error", "prompt is too long", &neutral),
            ("forbidden", "Request not allowed", &Outcome::ServerFault { status: 403 }),
            ("permission_error", "Remodelling is not for you", &rejected),
        ] {
            assert_eq!(said(403, Some(&error(kind, message))), *expected, "{kind} {message}");
        }
    }

    #[test]
    fn a_429_is_told_apart_by_its_headers() {
        let burst = Outcome::RateLimited { limit: Limit::Burst, until: Some(at(17)), header: Some("retry-after") };
        assert_eq!(outcome(429, &[("retry-after", "17")], &Endpoint::Messages, None), burst);
        let rejected = [
            ("anthropic-ratelimit-unified-status", "rejected"),
            ("anthropic-ratelimit-unified-representative-claim", "five_hour"),
            ("anthropic-ratelimit-unified-5h-reset", "1800003600"),
            ("retry-after", "17"),
        ];
        let window = Outcome::RateLimited {
            limit: Limit::Window { window: Window::FiveHour, family: None },
            until: Some(at(3_600)),
            header: Some("anthropic-ratelimit-unified-5h-reset"),
        };
        assert_eq!(outcome(429, &rejected, &Endpoint::Messages, None), window);
    }

    #[test]
    fn an_overload_lasts_as_long_as_it_says() {
        for (headers, until) in [
            (&[("retry-after", "17"), ("retry-after-ms", "3000")][..], Some(at(3))),
            (&[("retry-after", "17")][..], Some(at(17))),
            (&[("retry-after", "0")][..], None),
            (&[("anthropic-ratelimit-unified-reset", "1800003600")][..], None),
        ] {
            let judged = outcome(529, headers, &Endpoint::Messages, None);
            assert_eq!(judged, Outcome::Overloaded { status: 529, until }, "{headers:?}");
        }
    }

    #[test]
    fn count_tokens_and_models_have_limits_of_their_own_but_not_a_credential() {
        for endpoint in [Endpoint::CountTokens, Endpoint::Models(String::new())] {
            let judged = |status| outcome(status, &[("retry-after", "60")], &endpoint, None);
            assert_eq!(judged(200), Outcome::Neutral { status: 200 });
            assert_eq!(judged(404), Outcome::Neutral { status: 404 });
            assert_eq!(judged(429), Outcome::Neutral { status: 429 });
            assert_eq!(judged(401), Outcome::CredentialRejected { status: 401 });
            assert_eq!(judged(500), Outcome::ServerFault { status: 500 });
            let money = error("billing_error", "");
            assert_eq!(outcome(400, &[], &endpoint, Some(&money)), Outcome::Billing { status: 400 });
        }
    }
}
