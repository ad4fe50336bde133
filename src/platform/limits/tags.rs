//! The names of the rate headers, as one table for `limited` and `readings`.
//!
//! Counted limits: docs.anthropic.com/en/api/rate-limits and platform.openai.com/docs/guides/rate-limits. The
//! `unified` ones of subscriptions are documented nowhere; they are as observed on the wire and as clients read
//! them. A family's tag has been seen as `7d_opus` and as `7d-opus`; `7d_oi` ("overage included") is Fable's.

use crate::domain::{Family, Window};

/// `allowed`, `allowed_warning` or `rejected`, over all of a subscription's windows together.
pub const STATUS: &str = "anthropic-ratelimit-unified-status";

/// When the window that decided the status starts anew.
pub const RESET: &str = "anthropic-ratelimit-unified-reset";

/// Which window decided the status.
const CLAIM: &str = "anthropic-ratelimit-unified-representative-claim";

/// One window of a subscription, in one spelling.
pub struct Tag {
    /// Its name as a representative claim.
    pub claim: &'static str,
    pub window: Window,
    pub family: Option<Family>,
    pub status: &'static str,
    pub utilization: &'static str,
    pub reset: &'static str,
}

macro_rules! tag {
    ($tag:literal, $claim:literal, $window:ident, $family:expr) => {
        Tag {
            claim: $claim,
            window: Window::$window,
            family: $family,
            status: concat!("anthropic-ratelimit-unified-", $tag, "-status"),
            utilization: concat!("anthropic-ratelimit-unified-", $tag, "-utilization"),
            reset: concat!("anthropic-ratelimit-unified-", $tag, "-reset"),
        }
    };
}

/// Every window that has a name here.
pub static TAGS: [Tag; 12] = [
    tag!("5h", "five_hour", FiveHour, None),
    tag!("7d", "seven_day", SevenDay, None),
    tag!("7d_opus", "seven_day_opus", SevenDay, Some(Family::Opus)),
    tag!("7d-opus", "seven_day_opus", SevenDay, Some(Family::Opus)),
    tag!("7d_sonnet", "seven_day_sonnet", SevenDay, Some(Family::Sonnet)),
    tag!("7d-sonnet", "seven_day_sonnet", SevenDay, Some(Family::Sonnet)),
    tag!("7d_haiku", "seven_day_haiku", SevenDay, Some(Family::Haiku)),
    tag!("7d-haiku", "seven_day_haiku", SevenDay, Some(Family::Haiku)),
    tag!("7d_oi", "seven_day_overage_included", SevenDay, Some(Family::Fable)),
    tag!("7d-oi", "seven_day_overage_included", SevenDay, Some(Family::Fable)),
    tag!("7d_fable", "seven_day_fable", SevenDay, Some(Family::Fable)),
    tag!("7d-fable", "seven_day_fable", SevenDay, Some(Family::Fable)),
];

/// The windows that the representative claim names: one window, in each of its spellings.
pub fn claim<'a>(header: &impl Fn(&str) -> Option<&'a str>) -> impl Iterator<Item = &'static Tag> {
    let claimed = header(CLAIM).map(str::trim);
    TAGS.iter().filter(move |tag| claimed.is_some_and(|c| c.eq_ignore_ascii_case(tag.claim)))
}

/// One limit that is counted down.
pub struct Count {
    pub window: Window,
    pub limit: &'static str,
    pub remaining: &'static str,
    pub reset: &'static str,
}

macro_rules! by_anthropic {
    ($what:literal, $window:ident) => {
        Count {
            window: Window::$window,
            limit: concat!("anthropic-ratelimit-", $what, "-limit"),
            remaining: concat!("anthropic-ratelimit-", $what, "-remaining"),
            reset: concat!("anthropic-ratelimit-", $what, "-reset"),
        }
    };
}

macro_rules! by_others {
    ($what:literal, $window:ident) => {
        Count {
            window: Window::$window,
            limit: concat!("x-ratelimit-limit-", $what),
            remaining: concat!("x-ratelimit-remaining-", $what),
            reset: concat!("x-ratelimit-reset-", $what),
        }
    };
}

/// Anthropic's, whose resets are RFC 3339.
pub static COUNTED_BY_ANTHROPIC: [Count; 4] = [
    by_anthropic!("requests", Requests),
    by_anthropic!("tokens", Tokens),
    by_anthropic!("input-tokens", Tokens),
    by_anthropic!("output-tokens", Tokens),
];

/// OpenAI's and everybody else's, whose resets are spans such as `6m0s`.
pub static COUNTED_BY_OTHERS: [Count; 2] = [by_others!("requests", Requests), by_others!("tokens", Tokens)];
