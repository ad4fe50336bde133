//! Which headers travel: the client's own, less what ends at this hop, plus the account's.
//!
//! A client is passed on as it is: nothing here invents a user-agent, a beta or a fingerprint.

use crate::domain::key;
use http::header::{HeaderName, HeaderValue};
use memchr::memmem;

/// The client's headers that go up, and the operator's `extra`. `key` is the relay key that was presented: a
/// header that repeats it, or holds any relay key by its form, is left out.
pub fn forwarded<'a>(
    client: impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)>,
    key: &str,
    extra: &[(HeaderName, HeaderValue)],
) -> Vec<(HeaderName, HeaderValue)> {
    let mut out: Vec<(HeaderName, HeaderValue)> = Vec::with_capacity(32);
    let mut named: Vec<String> = Vec::new();
    for (name, value) in client {
        if name == http::header::CONNECTION {
            let tokens = value.to_str().unwrap_or_default().split(',');
            named.extend(tokens.map(|t| t.trim().to_ascii_lowercase()));
        }
        if !ends_here(name.as_str()) && !repeats(value, key) {
            out.push((name.clone(), value.clone()));
        }
    }
    if !named.is_empty() {
        out.retain(|(name, _)| !named.iter().any(|n| n == name.as_str()));
    }
    for (name, value) in extra {
        if name.as_str() == "anthropic-beta" {
            join(&mut out, name, value);
        } else {
            out.retain(|(n, _)| n != name);
            out.push((name.clone(), value.clone()));
        }
    }
    out
}

/// The upstream's headers that go back. An allowlist: what an upstream sets beyond it (cookies, its server's
/// name, transport policy for its own host) is between it and the relay.
pub fn returned(name: &str) -> bool {
    const EXACT: [&str; 9] = [
        "request-id",
        "x-request-id",
        "retry-after",
        "retry-after-ms",
        "x-should-retry",
        "content-type",
        "content-encoding",
        "cache-control",
        "vary",
    ];
    const PREFIX: [&str; 3] = ["anthropic-", "openai-", "x-ratelimit-"];
    EXACT.contains(&name) || PREFIX.iter().any(|p| name.starts_with(p))
}

/// Hop-by-hop headers (RFC 9110, 7.6.1), what the relay sets itself, what proxies in front of it added, and
/// every header a credential travels in.
fn ends_here(name: &str) -> bool {
    const EXACT: [&str; 23] = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "host",
        "content-length",
        "expect",
        "cookie",
        "forwarded",
        "via",
        "x-real-ip",
        "true-client-ip",
        "cdn-loop",
        "authorization",
        "x-api-key",
        "x-goog-api-key",
        "api-key",
        "http2-settings",
    ];
    EXACT.contains(&name) || name.starts_with("x-forwarded-") || name.starts_with("cf-")
}

fn repeats(value: &HeaderValue, key: &str) -> bool {
    let text = value.as_bytes();
    (!key.is_empty() && text.len() >= key.len() && memmem::find(text, key.as_bytes()).is_some()) || key::is_within(text)
}

/// An operator's beta joins the client's: one header, the client's values first and untouched.
fn join(out: &mut Vec<(HeaderName, HeaderValue)>, name: &HeaderName, value: &HeaderValue) {
    let mut all: Vec<u8> = Vec::new();
    for (_, sent) in out.iter().filter(|(n, _)| n == name) {
        all.extend_from_slice(sent.as_bytes());
        all.push(b',');
    }
    all.extend_from_slice(value.as_bytes());
    out.retain(|(n, _)| n != name);
    out.push((name.clone(), HeaderValue::from_bytes(&all).unwrap_or_else(|_| value.clone())));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(client: &[(&str, &str)], extra: &[(&str, &str)]) -> Vec<String> {
        let own = |list: &[(&str, &str)]| -> Vec<(HeaderName, HeaderValue)> {
            let parse = |(n, v): &(&str, &str)| (n.parse().unwrap(), HeaderValue::from_str(v).unwrap());
            list.iter().map(parse).collect()
        };
        let client = own(client);
        let out = forwarded(client.iter().map(|(n, v)| (n, v)), "cr_0123456789", &own(extra));
        out.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect()
    }

    #[test]
    fn what_the_client_said_travels_and_what_ends_here_does_not() {
        let out = run(
            &[
                ("user-agent", "claude-cli/2.1"),
                ("anthropic-version", "2023-06-01"),
                ("anthropic-beta", "a-1,unknown-2"),
                ("x-unknown", "1"),
                ("connection", "keep-alive, X-Per-Hop"),
                ("x-per-hop", "1"),
                ("x-api-key", "other"),
                ("authorization", "Bearer other"),
                ("cookie", "c"),
                ("x-forwarded-for", "1.2.3.4"),
                ("cf-ray", "r"),
                ("via", "1.1 p"),
                ("x-copy", "it is cr_0123456789!"),
            ],
            &[],
        );
        let kept = ["user-agent: claude-cli/2.1", "anthropic-version: 2023-06-01", "anthropic-beta: a-1,unknown-2"];
        assert_eq!(out, [&kept[..], &["x-unknown: 1"]].concat());
    }

    #[test]
    fn operator_headers_replace_and_betas_join() {
        let out = run(
            &[("anthropic-beta", "a"), ("anthropic-beta", "b"), ("x-team", "client")],
            &[("anthropic-beta", "oauth-1"), ("x-team", "ops")],
        );
        assert_eq!(out, ["anthropic-beta: a,b,oauth-1", "x-team: ops"]);
        assert_eq!(run(&[], &[("anthropic-beta", "oauth-1")]), ["anthropic-beta: oauth-1"]);
    }
}
