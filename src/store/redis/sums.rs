//! The sums of one day in Redis: how a group and its counters are written, and how they are added up.
//!
//! Used by [`super::ledger`]. One hash field holds all counters of a group, so that a piece with a thousand calls
//! reads and writes each day by one command. Counters that a newer relay put behind ours are kept.

use crate::domain::{Ending, Usage};
use crate::store::{StoreError, UsageRow};

/// No answer uses more tokens; what an upstream claims beyond is cut, as in the embedded engine.
const MOST_TOKENS: u64 = 1 << 40;

/// What is counted, in order: requests, six kinds of tokens, then each ending.
const COUNTERS: usize = 7 + Ending::ALL.len();

/// A group of calls within a day.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Group {
    /// Key id.
    pub key: String,
    /// Account id.
    pub account: String,
    /// Model.
    pub model: String,
}

impl Group {
    /// The field's name: a JSON list, since a model may have any character.
    pub fn field(&self) -> String {
        serde_json::json!([self.key, self.account, self.model]).to_string()
    }

    fn read(field: &str) -> Option<Self> {
        let [key, account, model]: [String; 3] = serde_json::from_str(field).ok()?;
        Some(Self { key, account, model })
    }
}

/// The counters of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sum(Vec<u64>);

impl Default for Sum {
    fn default() -> Self {
        Self(vec![0; COUNTERS])
    }
}

impl Sum {
    /// Reads a field's value; nothing is all zero.
    ///
    /// # Errors
    /// [`StoreError::Engine`] when it is not a list of numbers: then nothing is added to it.
    pub fn read(text: Option<&str>) -> Result<Self, StoreError> {
        let Some(text) = text else { return Ok(Self::default()) };
        let mut counters: Vec<u64> = serde_json::from_str(text)
            .map_err(|_| StoreError::Engine(format!("a stored sum cannot be read: {text}")))?;
        // An older relay may have counted less.
        counters.resize(counters.len().max(COUNTERS), 0);
        Ok(Self(counters))
    }

    /// The field's value.
    pub fn text(&self) -> String {
        serde_json::json!(self.0).to_string()
    }

    /// Adds one call.
    pub fn add_call(&mut self, usage: &Usage, ending: Ending) {
        self.add(0, 1);
        for (nth, tokens) in (1..).zip(tokens(usage)) {
            self.add(nth, tokens.min(MOST_TOKENS));
        }
        if let Some(nth) = Ending::ALL.iter().position(|e| *e == ending) {
            self.add(7 + nth, 1);
        }
    }

    /// Adds what was counted elsewhere.
    pub fn add_sum(&mut self, other: &Self) {
        self.0.resize(self.0.len().max(other.0.len()), 0);
        for (nth, count) in other.0.iter().enumerate() {
            self.add(nth, *count);
        }
    }

    fn add(&mut self, nth: usize, count: u64) {
        self.0[nth] = self.0[nth].saturating_add(count);
    }

    /// As the store shows it.
    pub fn row(&self, group: Group, day: String) -> UsageRow {
        let endings = Ending::ALL.iter().zip(&self.0[7..]).filter(|(_, calls)| **calls > 0);
        let count = |nth: usize| self.0[nth];
        UsageRow {
            key: group.key,
            account: group.account,
            model: group.model,
            day,
            requests: count(0),
            usage: Usage {
                input_tokens: count(1),
                output_tokens: count(2),
                cache_creation_input_tokens: count(3),
                cache_creation_5m_input_tokens: count(4),
                cache_creation_1h_input_tokens: count(5),
                cache_read_input_tokens: count(6),
            },
            endings: endings.map(|(ending, calls)| (ending.name().to_owned(), *calls)).collect(),
        }
    }

    /// The counters of a row that another store showed.
    pub fn of_row(row: &UsageRow) -> (Group, Self) {
        let group = Group { key: row.key.clone(), account: row.account.clone(), model: row.model.clone() };
        let mut counters = vec![row.requests];
        counters.extend(tokens(&row.usage));
        counters.extend(Ending::ALL.map(|ending| row.endings.get(ending.name()).copied().unwrap_or_default()));
        (group, Self(counters))
    }
}

/// Reads one day's hash.
///
/// # Errors
/// As [`Sum::read`].
pub fn read_day(fields: Vec<(String, String)>) -> Result<Vec<(Group, Sum)>, StoreError> {
    let unreadable = |field: &str| StoreError::Engine(format!("a stored sum's name cannot be read: {field}"));
    fields
        .into_iter()
        .map(|(field, value)| Ok((Group::read(&field).ok_or_else(|| unreadable(&field))?, Sum::read(Some(&value))?)))
        .collect()
}

/// In the order of the counters.
fn tokens(usage: &Usage) -> [u64; 6] {
    [
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_creation_input_tokens,
        usage.cache_creation_5m_input_tokens,
        usage.cache_creation_1h_input_tokens,
        usage.cache_read_input_tokens,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_reads_back_and_keeps_counters_it_does_not_know() {
        let mut sum = Sum::default();
        let usage = Usage { input_tokens: 3, cache_read_input_tokens: u64::MAX, ..Usage::default() };
        sum.add_call(&usage, Ending::RelayCrashed);
        assert_eq!(sum.text(), format!("[1,3,0,0,0,0,{MOST_TOKENS},0,0,0,0,0,1]"));
        assert_eq!(Sum::read(Some(&sum.text())).unwrap(), sum);
        let mut newer = Sum::read(Some("[1,0,0,0,0,0,0,1,0,0,0,0,0,9]")).unwrap();
        newer.add_call(&usage, Ending::Complete);
        assert!(newer.text().ends_with(",9]"), "{}", newer.text());
        assert_eq!(Sum::read(Some("[7]")).unwrap().0.len(), COUNTERS);
        assert!(Sum::read(Some("7")).is_err());
    }

    #[test]
    fn a_row_of_another_store_comes_back_the_same() {
        let mut sum = Sum::default();
        sum.add_call(&Usage { output_tokens: 5, ..Usage::default() }, Ending::ClientGone);
        let group = Group { key: "k".into(), account: "a".into(), model: "m\"[".into() };
        let row = sum.row(group.clone(), "2027-01-15".into());
        assert_eq!(Sum::of_row(&row), (group.clone(), sum));
        assert_eq!(Group::read(&group.field()), Some(group));
    }
}
