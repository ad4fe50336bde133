//! What upstreams' rate headers say: which limit a 429 speaks of and until when ([`limited`], for `judge`), and
//! how much of each window is used ([`readings`], from every answer).
//!
//! A 429 is a burst unless the upstream itself says that a window is used up: subscription answers always carry
//! resets hours away, and an account benched by one of these for a burst of seconds is what operators suffer
//! most from.

mod moment;
mod readings;
mod tags;

pub use moment::retry_after;
pub use readings::readings;

use crate::domain::{Family, Limit, Time, Window};
use moment::{number, reset, reset_or_span};
use tags::{COUNTED_BY_ANTHROPIC, COUNTED_BY_OTHERS, Count, RESET, STATUS, TAGS, Tag, claim};

/// Which limit a 429 speaks of, until when, and which header said so. `header` looks a header up by its
/// lower-case name.
pub fn limited<'a>(header: impl Fn(&str) -> Option<&'a str>, now: Time) -> (Limit, Option<Time>, Option<&'static str>) {
    let (limit, end) = match spent(&header, now) {
        Spent::Window(window, family) => (Limit::Window { window, family }, window_end(&header, window, family, now)),
        Spent::Elsewhere => (Limit::Burst, None),
        Spent::Nothing => (Limit::Burst, burst_end(&header, now)),
    };
    (limit, end.map(|(until, _)| until), end.map(|(_, name)| name))
}

/// What is used up of a subscription.
enum Spent {
    Nothing,
    Window(Window, Option<Family>),
    /// Something that this relay has no name for, while the windows that all models share have room.
    Elsewhere,
}

fn spent<'a>(header: &impl Fn(&str) -> Option<&'a str>, now: Time) -> Spent {
    let says = |name: &str, words: &[&str]| {
        let said = header(name).map(str::trim);
        said.is_some_and(|s| words.iter().any(|w| s.eq_ignore_ascii_case(w)))
    };
    let rejects = |name| says(name, &["rejected"]);
    let allows = |name| says(name, &["allowed", "allowed_warning"]);
    // The upstream's word over all windows together. A 429 in spite of it is about something shorter.
    if allows(STATUS) {
        return Spent::Nothing;
    }
    let rejected = rejects(STATUS);
    let full = |tag: &&Tag| {
        let over = || header(tag.utilization).and_then(number).is_some_and(|used| used >= 1.0);
        rejects(tag.status) || (!allows(tag.status) && over())
    };
    if let Some(tag) = claim(header).find(|tag| rejected || full(tag)) {
        return Spent::Window(tag.window, tag.family);
    }
    // Without a claim, one that holds for all models goes before one of a family: told of the family alone, every
    // other model would run into the wider one again and again.
    let end = |tag: &&Tag| (tag.family.is_none(), header(tag.reset).and_then(|text| reset(text, now)));
    if let Some(tag) = TAGS.iter().filter(|tag| rejects(tag.status)).max_by_key(end) {
        return Spent::Window(tag.window, tag.family);
    }
    let shared = || TAGS.iter().filter(|tag| tag.family.is_none());
    match rejected {
        true if shared().all(|tag| allows(tag.status)) => Spent::Elsewhere,
        true => Spent::Window(Window::Unified, None),
        false => Spent::Nothing,
    }
}

/// A window ends with its own reset, else with the one of all windows, else when the upstream wants to be asked.
fn window_end<'a>(
    header: &impl Fn(&str) -> Option<&'a str>,
    window: Window,
    family: Option<Family>,
    now: Time,
) -> Option<(Time, &'static str)> {
    let own = TAGS.iter().filter(|tag| (tag.window, tag.family) == (window, family)).map(|tag| tag.reset);
    own.chain([RESET]).find_map(|name| Some((reset(header(name)?, now)?, name))).or_else(|| retry_after(header, now))
}

/// A burst ends when the upstream wants to be asked again, else when the last of the emptied counts is full again.
fn burst_end<'a>(header: &impl Fn(&str) -> Option<&'a str>, now: Time) -> Option<(Time, &'static str)> {
    let latest = |counts: &'static [Count], read: fn(&str, Time) -> Option<Time>| {
        let emptied = |count: &&Count| header(count.remaining).and_then(moment::count).is_some_and(|left| left <= 0.0);
        let ends = counts.iter().filter(emptied).filter_map(|c| Some((read(header(c.reset)?, now)?, c.reset)));
        ends.max_by_key(|(end, _)| *end)
    };
    retry_after(header, now)
        .or_else(|| latest(&COUNTED_BY_ANTHROPIC, reset))
        .or_else(|| latest(&COUNTED_BY_OTHERS, reset_or_span))
}

#[cfg(test)]
mod limited_tests;
