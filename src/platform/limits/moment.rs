//! Times and numbers as rate headers write them. Whatever does not parse, has passed, or lies absurdly far ahead
//! is `None`: the caller then asks the next header.

use crate::domain::Time;
use chrono::{DateTime, TimeDelta};

/// No upstream's word binds for longer than this; a larger value is a mistake of its clock or its units.
pub const LONGEST: TimeDelta = TimeDelta::days(8);

const SECOND: f64 = 1_000.0;

/// Later than this many seconds is the year 5138: milliseconds then.
const LATEST_SECOND: f64 = 1e11;

/// A number that is one: finite and not negative.
pub fn number(text: &str) -> Option<f64> {
    count(text).filter(|n| *n >= 0.0)
}

/// A number that may be negative, as what remains of an overdrawn limit is.
pub fn count(text: &str) -> Option<f64> {
    text.trim().parse::<f64>().ok().filter(|n| n.is_finite())
}

/// A reset as Anthropic writes it: RFC 3339, or epoch seconds where a subscription's window is meant. Milliseconds
/// are taken as well.
pub fn reset(text: &str, now: Time) -> Option<Time> {
    let time = match number(text) {
        Some(n) => epoch(n)?,
        None => DateTime::parse_from_rfc3339(text.trim()).ok()?.to_utc(),
    };
    near(time, now)
}

/// A reset as OpenAI writes it: a span such as `6m0s`. Others with the same header names send seconds, or a point
/// in time.
pub fn reset_or_span(text: &str, now: Time) -> Option<Time> {
    let millis = match number(text) {
        Some(n) => Some(n * SECOND).filter(|millis| *millis <= cap()),
        None => span(text.trim()),
    };
    millis.map_or_else(|| reset(text, now), |millis| near(after(now, millis)?, now))
}

/// When the upstream wants to be asked again, and the header that says so: `retry-after-ms` (milliseconds) over
/// `retry-after` (seconds or an HTTP date, RFC 9110, 10.2.3).
pub fn retry_after<'a>(header: impl Fn(&str) -> Option<&'a str>, now: Time) -> Option<(Time, &'static str)> {
    let within = |millis: f64| near(after(now, millis)?, now);
    let date = |text: &str| near(Time::from(httpdate::parse_http_date(text.trim()).ok()?), now);
    let millis = || within(number(header("retry-after-ms")?)?).map(|t| (t, "retry-after-ms"));
    let seconds = || {
        let text = header("retry-after")?;
        // A number too large for a wait is a point in time, as some gateways write it, or a mistake.
        let seconds = |n: f64| within(n * SECOND).or_else(|| near(epoch(n)?, now));
        let time = number(text).map_or_else(|| date(text), seconds);
        time.map(|t| (t, "retry-after"))
    };
    millis().or_else(seconds)
}

/// [`LONGEST`] in milliseconds.
fn cap() -> f64 {
    LONGEST.as_seconds_f64() * SECOND
}

fn near(time: Time, now: Time) -> Option<Time> {
    let ahead = time - now;
    (ahead > TimeDelta::zero() && ahead <= LONGEST).then_some(time)
}

#[allow(clippy::cast_possible_truncation)] // as saturates, and what is out of range is None
fn after(now: Time, millis: f64) -> Option<Time> {
    now.checked_add_signed(TimeDelta::try_milliseconds(millis as i64)?)
}

#[allow(clippy::cast_possible_truncation)] // as saturates, and what is out of range is None
fn epoch(n: f64) -> Option<Time> {
    let millis = if n > LATEST_SECOND { n } else { n * SECOND };
    DateTime::from_timestamp_millis(millis as i64)
}

/// `1h2m3.5s`, `120ms`: a span as Go prints one, in milliseconds.
fn span(text: &str) -> Option<f64> {
    let numeric = |c: char| c.is_ascii_digit() || c == '.';
    let (mut rest, mut total) = (text, None);
    while !rest.is_empty() {
        let (figure, tail) = rest.split_at(rest.find(|c| !numeric(c))?);
        let (unit, tail) = tail.split_at(tail.find(numeric).unwrap_or(tail.len()));
        let unit = match unit {
            "ms" => 1.0,
            "s" => SECOND,
            "m" => 60.0 * SECOND,
            "h" => 3_600.0 * SECOND,
            "d" => 86_400.0 * SECOND,
            _ => return None,
        };
        total = Some(total.unwrap_or(0.0) + number(figure)? * unit);
        rest = tail;
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> Time {
        DateTime::from_timestamp_millis(1_800_000_000_000 + millis).unwrap()
    }

    #[test]
    fn every_form_of_a_reset_is_read_and_nothing_else() {
        let later = at(90_000).to_rfc3339();
        for (text, expected) in [
            (later.as_str(), Some(at(90_000))),
            (" 2027-01-15T08:00:01Z ", Some(at(1_000))),
            ("2027-01-15T10:00:01.5+02:00", Some(at(1_500))),
            ("1800000090", Some(at(90_000))),
            (" 1800000090.25\t", Some(at(90_250))),
            ("1800000090000", Some(at(90_000))),
            ("1800691200", Some(at(0) + LONGEST)),
            ("1800691201", None),
            ("1800000000", None),
            ("1799999999", None),
            ("90", None),
            ("0", None),
            ("-1800000090", None),
            ("6m0s", None),
            ("99999999999999999999999999", None),
            ("1e308", None),
            ("1e999", None),
            ("NaN", None),
            ("inf", None),
            ("9999-12-31T23:59:59Z", None),
            ("2027-13-45T00:00:00Z", None),
            ("0000-01-01T00:00:00+23:59", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(reset(text, at(0)), expected, "{text:?}");
        }
    }

    #[test]
    fn every_form_of_a_span_is_read_and_nothing_else() {
        for (text, expected) in [
            ("6m0s", Some(at(360_000))),
            ("1s", Some(at(1_000))),
            ("120ms", Some(at(120))),
            ("1h2m3.5s", Some(at(3_723_500))),
            (" 2m59.56s ", Some(at(179_560))),
            ("1d1h", Some(at(90_000_000))),
            ("8d", Some(at(0) + LONGEST)),
            ("8d1s", None),
            ("17", Some(at(17_000))),
            ("0.5", Some(at(500))),
            ("1800000090", Some(at(90_000))),
            ("1800000090000", Some(at(90_000))),
            ("2027-01-15T08:00:01Z", Some(at(1_000))),
            ("0s", None),
            ("0", None),
            ("-5", None),
            ("-5s", None),
            ("5x", None),
            ("s", None),
            ("5s5", None),
            ("1.2.3s", None),
            ("5 s", None),
            ("\u{b5}s", None),
            ("5\u{b5}s", None),
            ("99999999999999999999h", None),
            ("NaN", None),
            ("inf", None),
            ("", None),
        ] {
            assert_eq!(reset_or_span(text, at(0)), expected, "{text:?}");
        }
        let endless = format!("{}s", "9".repeat(400));
        assert_eq!(reset_or_span(&endless, at(0)), None);
    }

    #[test]
    fn no_time_is_near_the_end_of_time() {
        for (text, now) in [("17", Time::MAX_UTC), ("8d", Time::MAX_UTC), ("17", Time::MIN_UTC)] {
            assert!(reset_or_span(text, now).is_none_or(|t| t > now));
            assert!(retry_after(|_| Some(text), now).is_none_or(|(t, _)| t > now));
            assert_eq!(reset("1800000090", now), None);
        }
    }

    #[test]
    fn every_form_of_retry_after_is_read() {
        let date = |seconds: i64| httpdate::fmt_http_date(std::time::SystemTime::from(at(seconds * 1_000)));
        let (soon, past, far) = (date(40), date(-40), date(90 * 86_400));
        let (said, said_ms) = ("retry-after", "retry-after-ms");
        for (plain, ms, expected) in [
            (Some("17"), None, Some((at(17_000), said))),
            (Some(" 1.5 "), None, Some((at(1_500), said))),
            (Some("17"), Some("3000"), Some((at(3_000), said_ms))),
            (None, Some("250.9"), Some((at(250), said_ms))),
            (Some("17"), Some("soon"), Some((at(17_000), said))),
            (Some("17"), Some("0"), Some((at(17_000), said))),
            (Some(soon.as_str()), None, Some((at(40_000), said))),
            (Some(past.as_str()), None, None),
            (Some(far.as_str()), None, None),
            (Some("999999999999"), None, None),
            (Some("1e300"), None, None),
            (Some("1800000030"), None, Some((at(30_000), said))),
            (Some("1800000030000"), None, Some((at(30_000), said))),
            (Some("0"), None, None),
            (Some("-5"), None, None),
            (Some("NaN"), None, None),
            (Some("inf"), None, None),
            (Some("soon"), None, None),
            (Some(""), Some(""), None),
            (None, None, None),
        ] {
            let header = |name: &str| if name == said { plain } else { ms.filter(|_| name == said_ms) };
            assert_eq!(retry_after(header, at(0)), expected, "{plain:?} {ms:?}");
        }
    }
}
