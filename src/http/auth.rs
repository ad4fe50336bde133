//! Finds the relay key in a request, before any of its body is read.
//!
//! Clients put it in `x-api-key`, `Authorization: Bearer`, `x-goog-api-key`, `api-key` or `?key=`. Where several
//! credentials were sent, the first that is a usable key counts, else the first that is known.

use crate::actors::{KeyEntry, KeyRing};
use crate::domain::{Refusal, Time, key};
use actix_web::HttpRequest;
use actix_web::http::header::AUTHORIZATION;
use std::sync::Arc;

/// Who calls, and what must not travel on.
pub struct Caller {
    /// The key.
    pub key: Arc<KeyEntry>,
    /// As it was presented.
    pub presented: String,
    /// The query without it; `None` if nothing is left.
    pub query: Option<String>,
}

/// Finds the caller of `request`.
///
/// # Errors
/// No key, an unknown one, or one that is not accepted at `now`.
pub fn caller(request: &HttpRequest, keys: &KeyRing, now: Time) -> Result<Caller, Refusal> {
    let candidates = presented(request);
    if candidates.is_empty() {
        return Err(Refusal::KeyMissing);
    }
    let known: Vec<_> = candidates.iter().filter_map(|text| Some((keys.find(text)?, *text))).collect();
    let best = known.iter().find(|(key, _)| key.key().usable(now)).or(known.first());
    let (key, presented) = best.cloned().ok_or(Refusal::KeyUnknown)?;
    let record = key.key();
    if !record.active {
        return Err(Refusal::KeyRevoked);
    }
    if !record.usable(now) {
        return Err(Refusal::KeyExpired);
    }
    let query = without_keys(request.query_string(), presented);
    Ok(Caller { presented: presented.to_owned(), key, query })
}

fn presented(request: &HttpRequest) -> Vec<&str> {
    let named = |name: &'static str| request.headers().get_all(name).filter_map(|v| v.to_str().ok());
    let bearer = named(AUTHORIZATION.as_str()).filter_map(|v| {
        let (scheme, token) = v.trim().split_once([' ', '\t'])?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token)
    });
    let in_query = request.query_string().split('&').filter_map(|pair| pair.strip_prefix("key="));
    let all = named("x-api-key").chain(bearer).chain(named("x-goog-api-key")).chain(named("api-key")).chain(in_query);
    all.map(str::trim).filter(|t| !t.is_empty()).collect()
}

/// The query less every parameter that repeats the key or holds a relay key by its form, however it is escaped.
fn without_keys(query: &str, key: &str) -> Option<String> {
    let ours = |pair: &&str| {
        let plain = unescaped(pair);
        plain.contains(key) || key::is_within(plain.as_bytes()) || plain.starts_with("key=cr_")
    };
    let kept: Vec<_> = query.split('&').filter(|pair| !pair.is_empty() && !ours(pair)).collect();
    (!kept.is_empty()).then(|| kept.join("&"))
}

/// Percent-escapes resolved, for looking only: what travels is as it was sent.
fn unescaped(text: &str) -> String {
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while at < bytes.len() {
        let escape = bytes.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        let decoded = escape.and_then(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
        out.push(decoded.unwrap_or(bytes[at]));
        at += if decoded.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::test::TestRequest;

    #[test]
    fn every_place_is_looked_at_in_order_and_empty_ones_are_passed_over() {
        let request = TestRequest::with_uri("/v1/messages?key=q")
            .insert_header(("api-key", "d"))
            .insert_header(("x-goog-api-key", "c"))
            .insert_header(("authorization", "bearer b"))
            .insert_header(("x-api-key", " "))
            .to_http_request();
        assert_eq!(presented(&request), ["b", "c", "d", "q"]);
        assert!(presented(&TestRequest::with_uri("/?key=").to_http_request()).is_empty());
    }

    #[test]
    fn the_query_keeps_everything_but_keys() {
        assert_eq!(without_keys("beta=true&key=cr_1&x=%20", "cr_1").as_deref(), Some("beta=true&x=%20"));
        assert_eq!(without_keys("key=theirs&a=cr_1", "cr_1").as_deref(), Some("key=theirs"));
        assert_eq!(without_keys("key=cr_2&b", "cr_1").as_deref(), Some("b"));
        assert_eq!(without_keys("key=cr_1", "cr_1"), None);
        assert_eq!(without_keys("x=cr%5F1&y=%63r_%31&z=100%", "cr_1").as_deref(), Some("z=100%"));
        let other = format!("tok=cr_{}&a=1", "ab".repeat(32));
        assert_eq!(without_keys(&other, "cr_1").as_deref(), Some("a=1"));
    }
}
