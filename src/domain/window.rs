//! The windows that upstreams limit by, and how much of each is used as their headers tell it.

use super::Time;
use super::breaker::mix;
use serde::Serialize;

/// One of an account's limits over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    /// A subscription's five hours.
    FiveHour,
    /// A subscription's seven days.
    SevenDay,
    /// A window of a subscription that the headers do not name.
    Unified,
    /// Requests, as an API key's limit counts them.
    Requests,
    /// Tokens, input tokens or output tokens: whichever is nearest to its end.
    Tokens,
}

impl Window {
    /// The name in reasons.
    pub fn name(self) -> &'static str {
        match self {
            Self::FiveHour => "five_hour",
            Self::SevenDay => "seven_day",
            Self::Unified => "unified",
            Self::Requests => "requests",
            Self::Tokens => "tokens",
        }
    }
}

/// A family of models that a subscription limits apart from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// `opus`
    Opus,
    /// `sonnet`
    Sonnet,
    /// `haiku`
    Haiku,
    /// `fable`
    Fable,
}

impl Family {
    /// Every family with the word that names it in models.
    pub const ALL: [(&'static str, Family); 4] =
        [("opus", Self::Opus), ("sonnet", Self::Sonnet), ("haiku", Self::Haiku), ("fable", Self::Fable)];

    /// The family of a model, by its name; `None` if the name tells none.
    pub fn of(model: &str) -> Option<Self> {
        Self::ALL.iter().find(|(word, _)| model.contains(word)).map(|(_, family)| *family)
    }

    /// The word.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, f)| *f == self).map_or("", |(word, _)| word)
    }
}

impl Window {
    /// An API key's limit, which counts for calls of one kind only; a subscription's are for all its calls.
    pub fn is_counted(self) -> bool {
        matches!(self, Self::Requests | Self::Tokens)
    }
}

/// How much of one window is used, as of one answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Reading {
    /// Which window.
    pub window: Window,
    /// For these models only.
    pub family: Option<Family>,
    /// Thousandths used, 0 to 1,000.
    pub used: u16,
    /// When it starts anew.
    pub reset: Time,
}

/// Tells sets of readings apart that differ in a window, or by a hundredth in how much of one is used. Never 0 but
/// for none.
pub fn fingerprint(readings: &[Reading]) -> u64 {
    readings.iter().fold(0, |print, r| {
        let family = r.family.map_or(0, |family| 1 + family as u64);
        mix(print ^ ((r.window as u64) << 32 | family << 16 | u64::from(r.used / 10))) | 1
    })
}
