//! A record as an operator writes it: a JSON object checked against a table of field names.
//!
//! Accounts and keys are documents at the edges (Admin API, store) and typed values inside. A patch is a
//! document too, holding only the fields that were sent, so that two edits of different fields both survive.
//! A stored document keeps fields that this binary does not know: a newer relay may have written them.

use super::Secret;
use serde_json::{Map, Value};
use std::fmt;

/// No text field needs more, bytes.
const LONGEST_TEXT: usize = 2048;

/// One field a record may have.
pub struct Field {
    /// The name that is stored and returned.
    pub name: &'static str,
    /// The other spelling accepted on input (camelCase for a snake_case name and the reverse).
    pub alias: Option<&'static str>,
    /// How its value is protected.
    pub guard: Guard,
}

/// How a field's value is protected at rest and on its way out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Stored and shown as it is.
    Open,
    /// Sealed at rest, shown as a mark.
    Secret,
    /// An object of header values: sealed at rest as a whole, each value shown as a mark.
    SecretMap,
    /// Set by the relay itself: returned, stored, refused on input.
    Fixed,
}

/// What is wrong with one field, and what to do about it. `Display` is meant for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct FieldError {
    /// The field as the operator knows it.
    pub field: String,
    /// The problem with its remedy.
    pub problem: String,
}

impl FieldError {
    /// An error about `field`.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}

/// A JSON object that may hold secrets in the clear: it has no `Display` and its `Debug` shows names only.
#[derive(Clone, Default, PartialEq)]
pub struct Document(Map<String, Value>);

impl Document {
    /// Reads what an operator sent: names in either spelling, none unknown, none twice, none that is the
    /// relay's own to set.
    ///
    /// # Errors
    /// Names the first field at fault.
    pub fn from_input(value: Value, fields: &[Field]) -> Result<Self, FieldError> {
        let Value::Object(sent) = value else {
            return Err(FieldError::new("body", "expected a JSON object"));
        };
        let mut out = Map::new();
        for (name, value) in sent {
            let Some(field) = fields.iter().find(|f| f.name == name || f.alias == Some(&name)) else {
                let known: Vec<_> = fields.iter().filter(|f| f.guard != Guard::Fixed).map(|f| f.name).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(FieldError::new(name, format!("unknown field; known are {known}")));
            };
            if field.guard == Guard::Fixed {
                return Err(FieldError::new(name, "set by the relay itself; leave it out"));
            }
            if field.guard == Guard::Open && value.as_str().is_some_and(|text| text.trim().is_empty()) {
                return Err(FieldError::new(name, "is empty; leave it out, or send null to take it away"));
            }
            if out.insert(field.name.to_owned(), value).is_some() {
                return Err(FieldError::new(name, format!("sent twice, once as {}; send one", field.name)));
            }
        }
        Ok(Self(out))
    }

    /// Takes a stored object as it is, unknown fields and all.
    pub fn from_stored(map: Map<String, Value>) -> Self {
        Self(map)
    }

    /// The object to store; the caller seals what [`Guard`] says.
    pub fn into_map(self) -> Map<String, Value> {
        self.0
    }

    /// Lays `patch` over this record: `null` takes a field away, anything else replaces it.
    pub fn apply(&mut self, patch: Document) {
        for (name, value) in patch.0 {
            if value.is_null() {
                self.0.remove(&name);
            } else {
                self.0.insert(name, value);
            }
        }
    }

    /// True if nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True if the field is in it, even as `null`.
    pub fn names(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A field's value; `null` counts as absent.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|v| !v.is_null())
    }

    /// Sets a field.
    pub fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.0.insert(name.to_owned(), value.into());
    }

    /// The record as it may be shown: every secret replaced by its mark.
    pub fn masked(&self, fields: &[Field]) -> Value {
        let mut out = self.0.clone();
        for field in fields {
            let Some(value) = out.get_mut(field.name) else { continue };
            match (field.guard, value) {
                (Guard::Secret, value) => *value = mark(value),
                (Guard::SecretMap, Value::Object(map)) => map.values_mut().for_each(|v| *v = mark(v)),
                _ => {}
            }
        }
        Value::Object(out)
    }

    /// A text field, trimmed; absent if empty.
    ///
    /// # Errors
    /// When the value is no string, is longer than 2,048 bytes, or has control characters.
    pub fn text(&self, name: &str) -> Result<Option<&str>, FieldError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let text = value.as_str().ok_or_else(|| wrong(name, "a string", value))?.trim();
        if text.len() > LONGEST_TEXT {
            return Err(FieldError::new(name, format!("longer than {LONGEST_TEXT} bytes; shorten it")));
        }
        if text.chars().any(char::is_control) {
            return Err(FieldError::new(name, "control characters are not allowed; remove them"));
        }
        Ok(Some(text).filter(|t| !t.is_empty()))
    }

    /// A secret text field.
    ///
    /// # Errors
    /// As [`Document::text`], and when it could not stand in a header (only visible ASCII can).
    pub fn secret(&self, name: &str) -> Result<Option<Secret>, FieldError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        // The value must not appear in the error, so the type is checked without quoting it.
        let text = value.as_str().ok_or_else(|| FieldError::new(name, "expected a string"))?.trim();
        if text.bytes().any(|b| !(0x21..=0x7e).contains(&b)) {
            return Err(FieldError::new(name, "only visible ASCII without spaces can be a credential"));
        }
        Ok(Some(text).filter(|t| !t.is_empty()).map(Secret::new))
    }

    /// A switch.
    ///
    /// # Errors
    /// When the value is no boolean.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool, FieldError> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(wrong(name, "true or false", other)),
        }
    }

    /// A whole number within `range`.
    ///
    /// # Errors
    /// When the value is no integer or lies outside.
    pub fn integer(&self, name: &str, range: std::ops::RangeInclusive<i64>) -> Result<Option<i64>, FieldError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let expected = || format!("an integer from {} to {}", range.start(), range.end());
        match value.as_i64() {
            Some(n) if range.contains(&n) => Ok(Some(n)),
            _ => Err(wrong(name, &expected(), value)),
        }
    }

    /// A point in time in RFC 3339.
    ///
    /// # Errors
    /// When the value is not one.
    pub fn time(&self, name: &str) -> Result<Option<super::Time>, FieldError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        chrono::DateTime::parse_from_rfc3339(text)
            .map(|t| Some(t.to_utc()))
            .map_err(|_| FieldError::new(name, format!("expected a time such as 2027-01-31T00:00:00Z, got {text:?}")))
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

fn mark(value: &Value) -> Value {
    match value {
        Value::String(s) => Value::String(Secret::new(s.as_str()).mark()),
        Value::Null => Value::Null,
        _ => Value::String("*** (set)".to_owned()),
    }
}

/// An error that says what was expected and shows what came, shortened.
pub fn wrong(field: &str, expected: &str, got: &Value) -> FieldError {
    let shown: String = got.to_string().chars().take(60).collect();
    FieldError::new(field, format!("expected {expected}, got {shown}"))
}
