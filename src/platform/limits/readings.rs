//! How much of each window is used, as an upstream's headers tell it with every answer.
//!
//! This runs on every request: a header that is none of ours costs one comparison of its first bytes, and an
//! answer without any allocates nothing. The same name twice: the first value that can be read holds.

use super::moment::{count, number, reset, reset_or_span};
use super::tags::{COUNTED_BY_ANTHROPIC, COUNTED_BY_OTHERS, Count, TAGS};
use crate::domain::{Reading, Time};

const COUNTS: usize = COUNTED_BY_ANTHROPIC.len() + COUNTED_BY_OTHERS.len();

/// What is known so far of every window.
#[derive(Default)]
struct Found {
    counts: [Counted; COUNTS],
    shares: [Share; TAGS.len()],
}

#[derive(Default, Clone, Copy)]
struct Counted {
    limit: Option<f64>,
    remaining: Option<f64>,
    reset: Option<Time>,
}

#[derive(Default, Clone, Copy)]
struct Share {
    used: Option<f64>,
    reset: Option<Time>,
}

/// The windows that `headers` (names in lower case) tell of, each once and where it is most used. One that does
/// not say when it starts anew is left out: nothing would tell when the reading ends.
pub fn readings<'a>(headers: impl Iterator<Item = (&'a str, &'a str)>, now: Time) -> Vec<Reading> {
    let mut found: Option<Found> = None;
    for (name, value) in headers {
        if name.starts_with("anthropic-ratelimit-") || name.starts_with("x-ratelimit-") {
            found.get_or_insert_default().take(name, value, now);
        }
    }
    found.map_or_else(Vec::new, |found| found.readings())
}

fn counts() -> impl Iterator<Item = &'static Count> {
    COUNTED_BY_ANTHROPIC.iter().chain(&COUNTED_BY_OTHERS)
}

impl Found {
    fn take(&mut self, name: &str, value: &str, now: Time) {
        if name.starts_with("anthropic-ratelimit-unified-") {
            for (tag, share) in TAGS.iter().zip(&mut self.shares) {
                if tag.utilization == name {
                    share.used = share.used.or_else(|| number(value));
                } else if tag.reset == name {
                    share.reset = share.reset.or_else(|| reset(value, now));
                }
            }
            return;
        }
        for (names, counted) in counts().zip(&mut self.counts) {
            if names.limit == name {
                counted.limit = counted.limit.or_else(|| number(value));
            } else if names.remaining == name {
                counted.remaining = counted.remaining.or_else(|| count(value));
            } else if names.reset == name {
                let read = if name.starts_with('x') { reset_or_span } else { reset };
                counted.reset = counted.reset.or_else(|| read(value, now));
            }
        }
    }

    fn readings(&self) -> Vec<Reading> {
        let shares = TAGS.iter().zip(&self.shares).filter_map(|(tag, share)| {
            let used = thousandths(share.used?);
            Some(Reading { window: tag.window, family: tag.family, used, reset: share.reset? })
        });
        let counted = counts().zip(&self.counts).filter_map(|(names, counted)| {
            let limit = counted.limit.filter(|limit| *limit > 0.0)?;
            let used = thousandths((limit - counted.remaining?) / limit);
            Some(Reading { window: names.window, family: None, used, reset: counted.reset? })
        });
        let mut out: Vec<Reading> = Vec::new();
        for reading in shares.chain(counted) {
            match out.iter_mut().find(|r| (r.window, r.family) == (reading.window, reading.family)) {
                Some(known) if (known.used, known.reset) < (reading.used, reading.reset) => *known = reading,
                Some(_) => {}
                None => out.push(reading),
            }
        }
        out
    }
}

/// What is not quite used up never reads as used up.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // within 0 to 1,000
fn thousandths(fraction: f64) -> u16 {
    if fraction >= 1.0 { 1_000 } else { (fraction * 1_000.0).round().clamp(0.0, 999.0) as u16 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Family, Window};

    fn at(seconds: i64) -> Time {
        chrono::DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    type Row = (Window, Option<Family>, u16, Time);

    /// Reads lines of `name: value`.
    fn read(text: &str) -> Vec<Row> {
        let headers = text.lines().filter_map(|line| line.trim().split_once(':'));
        readings(headers, at(0)).into_iter().map(|r| (r.window, r.family, r.used, r.reset)).collect()
    }

    #[test]
    fn an_answer_without_rate_headers_tells_nothing() {
        let out = read("content-type: application/json\nanthropic-organization-id: a\nx-request-id: b\nretry-after: 5");
        assert!(out.is_empty());
        assert_eq!(out.capacity(), 0);
    }

    #[test]
    fn counted_limits_are_read_and_tokens_are_the_most_used_of_theirs() {
        let out = read(
            "anthropic-ratelimit-requests-limit: 50
             anthropic-ratelimit-requests-remaining: 49
             anthropic-ratelimit-requests-reset: 2027-01-15T08:00:01Z
             anthropic-ratelimit-tokens-limit: 100000
             anthropic-ratelimit-tokens-remaining: 60000
             anthropic-ratelimit-tokens-reset: 2027-01-15T08:00:02Z
             anthropic-ratelimit-input-tokens-limit: 80000
             anthropic-ratelimit-input-tokens-remaining: 8000
             anthropic-ratelimit-input-tokens-reset: 2027-01-15T08:00:03Z
             anthropic-ratelimit-output-tokens-limit: 20000
             anthropic-ratelimit-output-tokens-remaining: 20000
             anthropic-ratelimit-output-tokens-reset: 2027-01-15T08:00:04Z",
        );
        assert_eq!(out, [(Window::Requests, None, 20, at(1)), (Window::Tokens, None, 900, at(3))]);
    }

    #[test]
    fn the_form_of_openai_is_read_into_the_same_windows() {
        let out = read(
            "x-ratelimit-limit-requests: 60
             x-ratelimit-remaining-requests: 59
             x-ratelimit-reset-requests: 1s
             x-ratelimit-limit-tokens: 150000
             x-ratelimit-remaining-tokens: 0
             x-ratelimit-reset-tokens: 6m0s",
        );
        assert_eq!(out, [(Window::Requests, None, 17, at(1)), (Window::Tokens, None, 1000, at(360))]);
    }

    #[test]
    fn a_subscriptions_windows_are_read_for_all_models_and_for_a_family() {
        let out = read(
            "anthropic-ratelimit-unified-status: allowed_warning
             anthropic-ratelimit-unified-5h-utilization: 0.29
             anthropic-ratelimit-unified-5h-reset: 1800003600
             anthropic-ratelimit-unified-7d-utilization:  1.08
             anthropic-ratelimit-unified-7d-reset: 1800086400000
             anthropic-ratelimit-unified-7d-surpassed-threshold: 0.75
             anthropic-ratelimit-unified-7d_opus-utilization: 0.5
             anthropic-ratelimit-unified-7d_opus-reset: 2027-01-15T09:00:00Z
             anthropic-ratelimit-unified-7d-sonnet-utilization: 0
             anthropic-ratelimit-unified-7d-sonnet-reset: 1800003600
             anthropic-ratelimit-unified-7d_oi-utilization: 0.9996
             anthropic-ratelimit-unified-7d_oi-reset: 1800003600
             anthropic-ratelimit-unified-7d_omelette-utilization: 0.7
             anthropic-ratelimit-unified-7d_omelette-reset: 1800003600
             anthropic-ratelimit-unified-overage-utilization: 0.9
             anthropic-ratelimit-unified-fallback-percentage: 0.5",
        );
        assert_eq!(
            out,
            [
                (Window::FiveHour, None, 290, at(3_600)),
                (Window::SevenDay, None, 1_000, at(86_400)),
                (Window::SevenDay, Some(Family::Opus), 500, at(3_600)),
                (Window::SevenDay, Some(Family::Sonnet), 0, at(3_600)),
                (Window::SevenDay, Some(Family::Fable), 999, at(3_600)),
            ]
        );
    }

    #[test]
    fn a_reading_without_an_end_ahead_or_a_number_is_left_out() {
        let share = |used: &str, reset: &str| {
            read(&format!(
                "anthropic-ratelimit-unified-5h-utilization:{used}\nanthropic-ratelimit-unified-5h-reset:{reset}"
            ))
        };
        assert_eq!(share(" 0.5 ", " 1800000001 ").len(), 1);
        for (used, reset) in [
            ("0.5", "1800000000"),
            ("0.5", "1799999999"),
            ("0.5", "1800691201"),
            ("0.5", "soon"),
            ("0.5", ""),
            ("0.5", "99999999999999999999999999999"),
            ("-0.5", "1800000001"),
            ("NaN", "1800000001"),
            ("inf", "1800000001"),
            ("1e999", "1800000001"),
            ("half", "1800000001"),
            ("", "1800000001"),
        ] {
            assert_eq!(share(used, reset), [], "{used} {reset}");
        }
        assert_eq!(read("anthropic-ratelimit-unified-5h-utilization: 0.5"), []);
        assert_eq!(read("anthropic-ratelimit-unified-5h-reset: 1800000001"), []);
    }

    #[test]
    fn counts_that_make_no_share_are_left_out_and_overdrawn_ones_are_full() {
        for (limit, remaining, reset, used) in [
            ("50", "25", "17s", Some(500)),
            (" 50 ", " 25 ", " 17s ", Some(500)),
            ("100000", "1", "17s", Some(999)),
            ("50", "-3", "17s", Some(1_000)),
            ("50", "60", "17s", Some(0)),
            ("1e308", "-1e308", "17s", Some(1_000)),
            ("0", "0", "17s", None),
            ("-1", "0", "17s", None),
            ("NaN", "0", "17s", None),
            ("50", "inf", "17s", None),
            ("50", "", "17s", None),
            ("fifty", "1", "17s", None),
            ("50", "25", "0s", None),
            ("50", "25", "9d", None),
            ("50", "25", "", None),
        ] {
            let out = read(&format!(
                "x-ratelimit-limit-requests:{limit}\nx-ratelimit-remaining-requests:{remaining}\nx-ratelimit-reset-requests:{reset}"
            ));
            assert_eq!(out.first().map(|r| r.2), used, "{limit} {remaining} {reset}");
        }
        assert_eq!(read("x-ratelimit-limit-requests: 5\nx-ratelimit-remaining-requests: 1"), []);
    }

    #[test]
    fn of_a_name_that_comes_twice_the_first_readable_value_holds() {
        let out = read(
            "anthropic-ratelimit-unified-5h-utilization: much
             anthropic-ratelimit-unified-5h-utilization: 0.2
             anthropic-ratelimit-unified-5h-utilization: 0.9
             anthropic-ratelimit-unified-5h-reset: 1
             anthropic-ratelimit-unified-5h-reset: 1800000005",
        );
        assert_eq!(out, [(Window::FiveHour, None, 200, at(5))]);
    }

    #[test]
    fn the_spellings_of_one_window_make_one_reading() {
        let out = read(
            "anthropic-ratelimit-unified-7d_opus-utilization: 0.2
             anthropic-ratelimit-unified-7d_opus-reset: 1800000005
             anthropic-ratelimit-unified-7d-opus-utilization: 0.4
             anthropic-ratelimit-unified-7d-opus-reset: 1800000006",
        );
        assert_eq!(out, [(Window::SevenDay, Some(Family::Opus), 400, at(6))]);
    }
}
