//! Tables of 429s as upstreams send them, for [`super::limited`].

use super::*;

fn at(seconds: i64) -> Time {
    chrono::DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
}

/// A 429 with these headers, as lines of `name: value`; `~` stands for `anthropic-ratelimit-`.
fn said(text: &str) -> (Limit, Option<Time>, Option<&'static str>) {
    let lines = || text.lines().filter_map(|line| line.trim().split_once(':'));
    let find = |name: &str| lines().find(|(n, _)| n.replace('~', "anthropic-ratelimit-") == name).map(|(_, v)| v);
    limited(find, at(0))
}

fn window(window: Window, family: Option<Family>) -> Limit {
    Limit::Window { window, family }
}

const ENDS: &str = "~unified-reset: 1800007200\n~unified-5h-reset: 1800003600\n~unified-7d-reset: 1800086400";
const OWN_5H: Option<&str> = Some("anthropic-ratelimit-unified-5h-reset");
const OWN_7D: Option<&str> = Some("anthropic-ratelimit-unified-7d-reset");

#[test]
fn a_rejected_window_lasts_until_its_own_reset() {
    let five = (window(Window::FiveHour, None), Some(at(3_600)), OWN_5H);
    let seven = (window(Window::SevenDay, None), Some(at(86_400)), OWN_7D);
    for (text, expected) in [
        ("~unified-status: rejected\n~unified-representative-claim: five_hour", five),
        ("~unified-status: Rejected \n~unified-representative-claim:  Five_Hour ", five),
        ("~unified-status: rejected\n~unified-representative-claim: seven_day", seven),
        ("~unified-status: rejected\n~unified-5h-status: rejected\nretry-after: 5", five),
        ("~unified-5h-status: rejected", five),
        ("~unified-7d-status: rejected\n~unified-5h-status: allowed", seven),
        // Both are used up: nothing goes before the later one is over.
        ("~unified-7d-status: rejected\n~unified-5h-status: rejected", seven),
        ("~unified-status: rejected\n~unified-representative-claim: overage\n~unified-5h-status: rejected", five),
        ("~unified-representative-claim: five_hour\n~unified-5h-utilization: 1.0", five),
        ("~unified-representative-claim: five_hour\n~unified-5h-utilization: 1.08\nretry-after: 5", five),
    ] {
        assert_eq!(said(&format!("{text}\n{ENDS}")), expected, "{text}");
    }
}

#[test]
fn a_window_without_a_reset_of_its_own_takes_the_next_best() {
    let rejected = "~unified-status: rejected\n~unified-representative-claim: five_hour\nretry-after: 60";
    for (text, until, header) in [
        ("~unified-5h-reset: 1800003600\n~unified-reset: 1800007200", Some(at(3_600)), OWN_5H),
        ("~unified-reset: 1800007200", Some(at(7_200)), Some(RESET)),
        ("~unified-5h-reset: 1799999999\n~unified-reset: 1800007200", Some(at(7_200)), Some(RESET)),
        ("~unified-5h-reset: soon\n~unified-reset: 2027-01-15T10:00:00Z", Some(at(7_200)), Some(RESET)),
        ("~unified-5h-reset: 1800003600000", Some(at(3_600)), OWN_5H),
        ("~unified-5h-reset: 18446744073709551616\n~unified-reset: NaN", Some(at(60)), Some("retry-after")),
        ("~unified-5h-reset: 1900000000", Some(at(60)), Some("retry-after")),
        ("retry-after-ms: 5000", Some(at(5)), Some("retry-after-ms")),
    ] {
        let expected = (window(Window::FiveHour, None), until, header);
        assert_eq!(said(&format!("{rejected}\n{text}")), expected, "{text}");
    }
    let bare = "~unified-status: rejected\n~unified-representative-claim: five_hour";
    assert_eq!(said(bare), (window(Window::FiveHour, None), None, None));
}

#[test]
fn a_family_window_is_told_from_the_one_of_all_models() {
    for (tag, claim, family) in [
        ("7d_opus", "seven_day_opus", Family::Opus),
        ("7d-opus", "seven_day_opus", Family::Opus),
        ("7d_sonnet", "seven_day_sonnet", Family::Sonnet),
        ("7d_haiku", "seven_day_haiku", Family::Haiku),
        ("7d_oi", "seven_day_overage_included", Family::Fable),
    ] {
        let expected = (window(Window::SevenDay, Some(family)), Some(at(9_000)));
        let reset = format!("~unified-{tag}-reset: 1800009000\n{ENDS}");
        let by_claim = said(&format!("~unified-status: rejected\n~unified-representative-claim: {claim}\n{reset}"));
        assert_eq!((by_claim.0, by_claim.1), expected, "{tag}");
        let by_status = said(&format!("~unified-{tag}-status: rejected\n~unified-5h-status: allowed\n{reset}"));
        assert_eq!((by_status.0, by_status.1), expected, "{tag}");
        let full = format!("~unified-representative-claim: {claim}\n~unified-{tag}-utilization: 1.01\n{reset}");
        assert_eq!(said(&full).0, expected.0, "{tag}");
        let wider = said(&format!("~unified-{tag}-status: rejected\n~unified-5h-status: rejected\n{reset}"));
        assert_eq!(wider.0, window(Window::FiveHour, None), "{tag}");
    }
}

/// As it was seen: one family's week is used up, and every window that all models share has room.
#[test]
fn a_real_answer_about_one_family_leaves_the_others_alone() {
    let answer = "~unified-5h-reset: 1800003600\n~unified-5h-status: allowed\n~unified-5h-utilization: 0.0
        ~unified-7d-reset: 1800086400\n~unified-7d-status: allowed_warning\n~unified-7d-utilization: 0.94
        ~unified-7d_oi-reset: 1800086400\n~unified-7d_oi-status: rejected\n~unified-7d_oi-utilization: 1.0
        ~unified-overage-status: rejected\n~unified-representative-claim: seven_day_overage_included
        ~unified-reset: 1800086400\n~unified-status: rejected\nretry-after: 86400\nx-should-retry: true";
    let own = Some("anthropic-ratelimit-unified-7d_oi-reset");
    assert_eq!(said(answer), (window(Window::SevenDay, Some(Family::Fable)), Some(at(86_400)), own));
    // The same of a family yet unnamed: a day's bench of every model would be wrong, a short one is a guess.
    let unknown = answer.replace("7d_oi", "7d_new").replace("seven_day_overage_included", "seven_day_new");
    assert_eq!(said(&unknown), (Limit::Burst, None, None));
}

#[test]
fn a_rejection_that_names_no_window_is_of_the_subscription() {
    for text in [
        "~unified-status: rejected",
        "~unified-status: rejected\n~unified-representative-claim: overage",
        "~unified-status: rejected\n~unified-representative-claim: ten_year\n~unified-5h-status: allowed",
    ] {
        let unified = window(Window::Unified, None);
        assert_eq!(said(&format!("{text}\n{ENDS}")), (unified, Some(at(7_200)), Some(RESET)), "{text}");
        assert_eq!(said(text), (unified, None, None), "{text}");
    }
}

#[test]
fn a_429_while_the_windows_have_room_is_a_burst() {
    for text in [
        "~unified-status: allowed",
        "~unified-status:  ALLOWED_WARNING ",
        "~unified-status: allowed\n~unified-representative-claim: five_hour",
        "~unified-status: allowed\n~unified-representative-claim: five_hour\n~unified-5h-utilization: 1.2",
        "~unified-status: allowed\n~unified-5h-status: rejected",
        "~unified-status: allowed_warning\n~unified-7d_opus-status: rejected",
        "~unified-representative-claim: five_hour",
        "~unified-representative-claim: five_hour\n~unified-5h-status: allowed\n~unified-5h-utilization: 1.0",
        "~unified-representative-claim: five_hour\n~unified-5h-utilization: 0.99",
        "~unified-representative-claim: five_hour\n~unified-5h-utilization: NaN",
        "~unified-representative-claim: five_hour\n~unified-5h-utilization: inf",
        "~unified-representative-claim: five_hour\n~unified-5h-utilization: -1.5",
        "~unified-5h-utilization: 1.0",
        "~unified-status: \n~unified-5h-status: ",
        "",
    ] {
        assert_eq!(said(&format!("{text}\n{ENDS}")), (Limit::Burst, None, None), "{text}");
        let timed = said(&format!("{text}\n{ENDS}\nretry-after: 17"));
        assert_eq!(timed, (Limit::Burst, Some(at(17)), Some("retry-after")), "{text}");
    }
}

#[test]
fn a_burst_lasts_as_long_as_the_best_header_says() {
    let emptied = "~requests-remaining: 0\n~requests-reset: 2027-01-15T08:00:30Z
        ~input-tokens-remaining: 0\n~input-tokens-reset: 2027-01-15T08:00:50Z
        ~output-tokens-remaining: 5\n~output-tokens-reset: 2027-01-15T08:01:50Z
        x-ratelimit-remaining-tokens: 0\nx-ratelimit-reset-tokens: 5m0s";
    let input = Some("anthropic-ratelimit-input-tokens-reset");
    let retry = Some("retry-after");
    for (text, until, header) in [
        ("retry-after: 17\nretry-after-ms: 3000", Some(at(3)), Some("retry-after-ms")),
        ("retry-after: 17", Some(at(17)), retry),
        ("retry-after: Fri, 15 Jan 2027 08:00:40 GMT", Some(at(40)), retry),
        ("retry-after: 99999999999", Some(at(50)), input),
        ("retry-after: 1800000030", Some(at(30)), retry),
        ("retry-after: 0", Some(at(50)), input),
        ("retry-after: Fri, 15 Jan 2027 07:00:00 GMT", Some(at(50)), input),
        ("retry-after: NaN\nretry-after-ms: -1", Some(at(50)), input),
        ("", Some(at(50)), input),
    ] {
        assert_eq!(said(&format!("{text}\n{emptied}")), (Limit::Burst, until, header), "{text}");
    }
}

#[test]
fn only_an_emptied_count_ends_a_burst() {
    let tokens = Some("anthropic-ratelimit-tokens-reset");
    let (others, other_tokens) = (Some("x-ratelimit-reset-requests"), Some("x-ratelimit-reset-tokens"));
    for (text, until, header) in [
        ("~tokens-remaining: 0\n~tokens-reset: 2027-01-15T08:00:09Z", Some(9_000), tokens),
        ("~tokens-remaining:  -20 \n~tokens-reset:  2027-01-15T08:00:09Z ", Some(9_000), tokens),
        ("~tokens-remaining: 1\n~tokens-reset: 2027-01-15T08:00:09Z", None, None),
        ("~tokens-reset: 2027-01-15T08:00:09Z", None, None),
        ("~tokens-remaining: 0", None, None),
        ("~tokens-remaining: 0\n~tokens-reset: 2027-01-15T07:59:59Z", None, None),
        ("~tokens-remaining: 0\n~tokens-reset: 2028-01-15T08:00:09Z", None, None),
        ("x-ratelimit-remaining-requests: 0\nx-ratelimit-reset-requests: 120ms", Some(120), others),
        ("x-ratelimit-remaining-requests: 0\nx-ratelimit-reset-requests: 6m0s", Some(360_000), others),
        ("x-ratelimit-remaining-requests: 0\nx-ratelimit-reset-requests: 17", Some(17_000), others),
        ("x-ratelimit-remaining-requests: 3\nx-ratelimit-reset-requests: 6m0s", None, None),
        ("x-ratelimit-remaining-tokens: 0\nx-ratelimit-reset-tokens: 1h2m3.5s", Some(3_723_500), other_tokens),
        ("x-ratelimit-remaining-tokens: no\nx-ratelimit-reset-tokens: 1h", None, None),
    ] {
        let (limit, end, by) = said(text);
        let millis = end.map(|t| (t - at(0)).num_milliseconds());
        assert_eq!((limit, millis, by), (Limit::Burst, until, header), "{text}");
    }
}
