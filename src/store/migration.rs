//! What both engines say of their migrations: what was applied, and what is pending.
//!
//! Made by the engines' schema modules, shown by `claude-relay migrate`. The steps themselves are the engines' own:
//! SQL in one, Lua in the other.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is recorded of a migration that was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Its name then.
    pub name: String,
    /// SHA-256 of its file then, hex.
    pub checksum: String,
    /// When, RFC 3339, by the store's clock.
    pub applied_at: String,
    /// How many keys it looked at; 0 where the engine does not go by keys.
    #[serde(default)]
    pub keys: u64,
    /// How many of them it changed.
    #[serde(default)]
    pub changed: u64,
}

/// One migration as it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// From 1.
    pub version: u32,
    /// Its name here, or as recorded where this binary does not know it.
    pub name: String,
    /// False if a newer relay applied it.
    pub known: bool,
    /// What was recorded, if it was applied.
    pub applied: Option<Applied>,
}

/// What a migration would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Forecast {
    /// From 1.
    pub version: u32,
    /// Its name.
    pub name: String,
    /// How many keys it would look at.
    pub keys: u64,
    /// How many of them it would change. What an earlier pending migration changes is not foreseen.
    pub changes: u64,
}

/// Every migration in order: the known ones by name, from version 1, then those that only were recorded.
pub(super) fn listed<'a>(known: impl Iterator<Item = &'a str>, mut recorded: BTreeMap<u32, Applied>) -> Vec<Status> {
    let ours = (1..).zip(known).map(|(version, name)| {
        let applied = recorded.remove(&version);
        Status { version, name: name.to_owned(), known: true, applied }
    });
    let mut all: Vec<Status> = ours.collect();
    let newer = |(version, applied): (u32, Applied)| {
        let name = applied.name.clone();
        Status { version, name, known: false, applied: Some(applied) }
    };
    all.extend(recorded.into_iter().map(newer));
    all
}
