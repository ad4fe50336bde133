//! Plain-text tables and times for people.
//!
//! Called by every client command. Widths are counted in terminal cells, and control characters are replaced:
//! a name or an upstream's error text must not be able to drive the operator's terminal.

use crate::domain::Time;
use serde_json::Value;

/// Rows under a heading, columns aligned; a column headed `>NAME` is flush right.
pub struct Table {
    heads: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table.
    pub fn new(heads: &[&'static str]) -> Self {
        Self { heads: heads.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; missing cells are empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| clean(&cell)).collect());
    }

    /// The text, one line a row. Columns stand two spaces apart and no line ends in spaces.
    pub fn render(&self) -> String {
        let names: Vec<String> = self.heads.iter().map(|h| h.trim_start_matches('>').to_owned()).collect();
        let lines = || std::iter::once(&names).filter(|n| n.iter().any(|n| !n.is_empty())).chain(&self.rows);
        let column = |at: usize| lines().filter_map(move |line| line.get(at)).map(|cell| width(cell)).max();
        let widths: Vec<usize> = (0..self.heads.len()).map(|at| column(at).unwrap_or(0)).collect();
        let mut out = String::new();
        for line in lines() {
            let mut text = String::new();
            for ((cell, head), wide) in line.iter().zip(&self.heads).zip(&widths) {
                let gap = " ".repeat(wide - width(cell));
                text += &if head.starts_with('>') { format!("{gap}{cell}  ") } else { format!("{cell}{gap}  ") };
            }
            out += text.trim_end();
            out.push('\n');
        }
        out
    }
}

/// One record, a line a field; times with their distance from `now`.
pub fn record(value: &Value, now: Time) -> String {
    let mut table = Table::new(&["", ""]);
    for (name, value) in value.as_object().into_iter().flatten() {
        let text = cell(Some(value));
        let distance = value.as_str().filter(|_| name.ends_with("_at")).and_then(|t| relative(t, now));
        table.row([name.clone(), distance.map_or(text.clone(), |d| format!("{text} ({d})"))]);
    }
    table.render()
}

/// The list in the field `name` of `value`; empty where there is none.
pub fn items<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

/// A value in one cell: texts bare, lists with commas, nothing as `-`.
pub fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(s)) if s.is_empty() => "-".to_owned(),
        Some(Value::String(s)) => s.clone(),
        Some(Value::Bool(b)) => if *b { "yes" } else { "no" }.to_owned(),
        Some(Value::Array(list)) if list.is_empty() => "-".to_owned(),
        Some(Value::Array(list)) => list.iter().map(|v| cell(Some(v))).collect::<Vec<_>>().join(", "),
        Some(other) => other.to_string(),
    }
}

/// A time in a cell, as a distance from `now`.
pub fn time_cell(value: Option<&Value>, now: Time) -> String {
    let distance = value.and_then(Value::as_str).and_then(|text| relative(text, now));
    distance.unwrap_or_else(|| cell(value))
}

/// `in 1h59m`, `3m ago`, `now`; `None` if `text` is no RFC 3339 time.
pub fn relative(text: &str, now: Time) -> Option<String> {
    let then = chrono::DateTime::parse_from_rfc3339(text).ok()?.to_utc();
    // What is ahead is rounded up, so that nothing that still waits reads "now".
    let ahead = then > now;
    let millis = (then - now).num_milliseconds().unsigned_abs();
    let seconds = if ahead { millis.div_ceil(1_000) } else { millis / 1_000 };
    if seconds == 0 {
        return Some("now".to_owned());
    }
    const UNITS: [(u64, char); 4] = [(86_400, 'd'), (3_600, 'h'), (60, 'm'), (1, 's')];
    let first = UNITS.iter().position(|(unit, _)| seconds >= *unit)?;
    let (unit, name) = UNITS[first];
    let rest = UNITS.get(first + 1).map(|(less, name)| (seconds % unit / less, name)).filter(|(n, _)| *n > 0);
    Some(match (ahead, rest) {
        // What is waited for is told more exactly than what is over.
        (true, Some((n, less))) => format!("in {}{name}{n}{less}", seconds / unit),
        (true, None) => format!("in {}{name}", seconds / unit),
        (false, _) => format!("{}{name} ago", seconds / unit),
    })
}

/// `text` without what could drive a terminal.
pub fn clean(text: &str) -> String {
    // Beside control characters: the marks that turn the direction of text round.
    let bad = |c: char| c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if bad(c) { '\u{fffd}' } else { c }).collect()
}

/// Terminal cells that `text` takes: two for East Asian wide characters and emoji, none for combining marks.
fn width(text: &str) -> usize {
    let cells = |c: char| match u32::from(c) {
        0x0300..=0x036f | 0x200b..=0x200f | 0x20d0..=0x20ff | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f | 0x2e80..=0xa4cf | 0xac00..=0xd7a3 | 0xf900..=0xfaff | 0xfe30..=0xfe6f => 2,
        0xff00..=0xff60 | 0xffe0..=0xffe6 | 0x1f300..=0x1f64f | 0x1f680..=0x1faff | 0x20000..=0x3fffd => 2,
        _ => 1,
    };
    text.chars().map(cells).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeDelta;
    use serde_json::json;

    #[test]
    fn columns_are_aligned_by_what_a_terminal_shows() {
        let mut table = Table::new(&["NAME", ">N", "NOTE"]);
        table.row(["日本".to_owned(), "7".to_owned(), "x".to_owned()]);
        table.row(["e\u{301}a".to_owned(), "1234".to_owned(), String::new()]);
        table.row(["…".to_owned()]);
        assert_eq!(table.render(), "NAME     N  NOTE\n日本     7  x\ne\u{301}a    1234\n…\n");
    }

    #[test]
    fn a_terminal_is_not_driven_by_data() {
        let mut table = Table::new(&["NAME"]);
        table.row(["a\u{1b}[31m\nb\u{202e}".to_owned()]);
        assert_eq!(table.render(), "NAME\na\u{fffd}[31m\u{fffd}b\u{fffd}\n");
    }

    #[test]
    fn times_are_distances() {
        let now: Time = "2026-11-23T12:00:00Z".parse().unwrap();
        for (seconds, text) in [
            (17, "in 17s"),
            (-180, "3m ago"),
            (0, "now"),
            (-59, "59s ago"),
            (7_200, "in 2h"),
            (7_199, "in 1h59m"),
            (-7_199, "1h ago"),
            (86_400 * 3 + 7_260, "in 3d2h"),
            (-86_400 * 40, "40d ago"),
        ] {
            let then = (now + TimeDelta::seconds(seconds)).to_rfc3339();
            assert_eq!(relative(&then, now).as_deref(), Some(text), "{seconds}");
        }
        assert_eq!(relative("2026-11-23T12:00:00.300Z", now).as_deref(), Some("in 1s"));
        assert_eq!(relative("soon", now), None);
    }

    #[test]
    fn a_record_has_a_line_for_each_field() {
        let now: Time = "2026-11-23T12:00:00Z".parse().unwrap();
        let value = json!({"id": "a", "accounts": ["x", "y"], "created_at": "2026-11-23T11:00:00Z", "group": null});
        let text = record(&value, now);
        assert!(text.contains("accounts    x, y\n") && text.contains("11:00:00Z (1h ago)\n"), "{text}");
        assert!(text.contains("group       -\n"), "{text}");
    }
}
