//! From a response head to an [`Outcome`]: the one place where an upstream's status is given a meaning.

use crate::domain::{Endpoint, Outcome, Time};
use chrono::TimeDelta;

/// No upstream's word binds for longer than this; a larger value is a mistake of its clock or its units.
const LONGEST: TimeDelta = TimeDelta::days(8);

/// Judges a response head. `header` looks a header up by its lower-case name.
pub fn judge<'a>(status: u16, header: impl Fn(&str) -> Option<&'a str>, endpoint: &Endpoint, now: Time) -> Outcome {
    // count_tokens and models have limits of their own, which say nothing about messages.
    let own_limits = *endpoint != Endpoint::Messages;
    match status {
        200..=299 if !own_limits => Outcome::Success { status },
        401 => Outcome::CredentialRejected { status },
        429 if own_limits => Outcome::Neutral { status },
        429 => Outcome::RateLimited { until: until(header, now) },
        503 | 529 => Outcome::Overloaded { status, until: until(header, now) },
        500.. => Outcome::ServerFault { status },
        _ => Outcome::Neutral { status },
    }
}

/// `retry-after-ms` (milliseconds) over `retry-after` (seconds or an HTTP date, RFC 9110, 10.2.3).
fn until<'a>(header: impl Fn(&str) -> Option<&'a str>, now: Time) -> Option<Time> {
    let millis = |text: &str, unit: f64| {
        let n = text.trim().parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0)?;
        #[allow(clippy::cast_possible_truncation)] // as saturates, and the result is capped below
        Some(now + TimeDelta::try_milliseconds((n * unit) as i64).unwrap_or(LONGEST).min(LONGEST))
    };
    let date = |text: &str| httpdate::parse_http_date(text.trim()).ok().map(Time::from);
    let said = header("retry-after-ms")
        .and_then(|t| millis(t, 1.0))
        .or_else(|| header("retry-after").and_then(|t| millis(t, 1_000.0).or_else(|| date(t))))?;
    Some(said.min(now + LONGEST)).filter(|t| *t > now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Time {
        chrono::DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    fn outcome(status: u16, headers: &[(&str, &str)], endpoint: &Endpoint) -> Outcome {
        let find = |name: &str| headers.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        judge(status, find, endpoint, at(0))
    }

    #[test]
    fn a_clients_fault_is_neutral_and_an_upstreams_is_not() {
        for status in [400, 403, 404, 413, 422] {
            assert_eq!(outcome(status, &[], &Endpoint::Messages), Outcome::Neutral { status });
        }
        assert_eq!(outcome(200, &[], &Endpoint::Messages), Outcome::Success { status: 200 });
        assert_eq!(outcome(401, &[], &Endpoint::Messages), Outcome::CredentialRejected { status: 401 });
        assert_eq!(outcome(500, &[], &Endpoint::Messages), Outcome::ServerFault { status: 500 });
        assert_eq!(outcome(529, &[], &Endpoint::Messages), Outcome::Overloaded { status: 529, until: None });
    }

    #[test]
    fn every_form_of_retry_after_is_read() {
        let date = httpdate::fmt_http_date(std::time::SystemTime::from(at(40)));
        for (headers, until) in [
            (vec![("retry-after", "17")], Some(at(17))),
            (vec![("retry-after", "17"), ("retry-after-ms", "3000")], Some(at(3))),
            (vec![("retry-after", date.as_str())], Some(at(40))),
            (vec![("retry-after", "0")], None),
            (vec![("retry-after", "-5")], None),
            (vec![("retry-after", "soon")], None),
            (vec![("retry-after", "999999999999")], Some(at(0) + LONGEST)),
            (vec![], None),
        ] {
            assert_eq!(outcome(429, &headers, &Endpoint::Messages), Outcome::RateLimited { until }, "{headers:?}");
        }
    }

    #[test]
    fn a_429_on_count_tokens_or_models_does_not_bench() {
        for endpoint in [Endpoint::CountTokens, Endpoint::Models(String::new())] {
            assert_eq!(outcome(429, &[("retry-after", "60")], &endpoint), Outcome::Neutral { status: 429 });
        }
    }
}
