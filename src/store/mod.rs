//! Where accounts, keys and usage are kept: one short trait for each, one module for each engine.
//!
//! Called by the actors (Roster, Ledger), the Admin API and start-up; never on a request's path. Records are
//! documents: a patch carries only the fields that were sent and is laid over the stored record inside one
//! transaction, so that two edits of different fields both survive, and fields that this binary does not know
//! are kept. Engines seal what the field tables mark as secret before it touches the disk.

pub mod copy;
pub mod journal;
pub mod migration;
pub mod redis;
pub mod seal;
pub mod sqlite;

use crate::domain::document::{Document, FieldError};
use crate::domain::{AccountId, Ending, KeyId, Time, Usage};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What can go wrong in a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A record with this id is there already.
    #[error("{0} exists already")]
    Duplicate(String),
    /// No record with this id.
    #[error("{0} does not exist")]
    Missing(String),
    /// The record would not be valid.
    #[error(transparent)]
    Invalid(#[from] FieldError),
    /// A sealed value does not open: the sealing key is not the one it was sealed with.
    #[error("{0}: cannot be unsealed with this sealing key")]
    Unseal(String),
    /// The engine failed or cannot be reached.
    #[error("store: {0}")]
    Engine(String),
}

/// The accounts' records. Every write is validated with [`crate::domain::Account::parse`] before it is kept.
#[async_trait]
pub trait Accounts: Send + Sync {
    /// Every record, by id.
    async fn list(&self) -> Result<Vec<Document>, StoreError>;
    /// One record.
    async fn load(&self, id: &AccountId) -> Result<Document, StoreError>;
    /// A new record; its `id` is set by the caller, `created_at` and `updated_at` by the store.
    async fn insert(&self, record: Document, now: Time) -> Result<Document, StoreError>;
    /// Lays `patch` over the record and returns what came of it. `id` cannot be changed.
    async fn patch(&self, id: &AccountId, patch: Document, now: Time) -> Result<Document, StoreError>;
    /// Takes the record away. Its usage stays.
    async fn remove(&self, id: &AccountId) -> Result<(), StoreError>;
}

/// The keys' records, with the same rules; validated with [`crate::domain::Key::parse`].
#[async_trait]
pub trait Keys: Send + Sync {
    /// Every record, by id.
    async fn list(&self) -> Result<Vec<Document>, StoreError>;
    /// One record.
    async fn load(&self, id: &KeyId) -> Result<Document, StoreError>;
    /// A new record; `id`, `hash` and `mark` are set by the caller.
    async fn insert(&self, record: Document, now: Time) -> Result<Document, StoreError>;
    /// Lays `patch` over the record and returns what came of it.
    async fn patch(&self, id: &KeyId, patch: Document, now: Time) -> Result<Document, StoreError>;
    /// Takes the record away. Its usage stays.
    async fn remove(&self, id: &KeyId) -> Result<(), StoreError>;
}

/// What was used: rows of calls, and the journal offsets up to which they were taken in.
#[async_trait]
pub trait UsageLedger: Send + Sync {
    /// Takes one piece of one journal file in: rows, open calls and the new offset commit together, so that a
    /// replay of the same piece changes nothing.
    async fn settle(&self, piece: Settlement) -> Result<(), StoreError>;
    /// The offsets settled so far, by journal file.
    async fn offsets(&self) -> Result<Vec<(String, u64)>, StoreError>;
    /// The calls of `boot` (all its journal files) that began and never ended become rows `relay_crashed`.
    async fn close_crashed(&self, boot: &str) -> Result<u64, StoreError>;
    /// Forgets the offset of a journal file that was removed.
    async fn forget(&self, file: &str) -> Result<(), StoreError>;
    /// Sums by key, account, model and day (UTC).
    async fn sums(&self, filter: &UsageFilter) -> Result<Vec<UsageRow>, StoreError>;
}

/// What became of each account: its last transitions, kept over restarts.
#[async_trait]
pub trait Events: Send + Sync {
    /// Adds one; of an account's events the last [`EVENTS_KEPT`] stay.
    async fn add_event(&self, id: &AccountId, event: Event) -> Result<(), StoreError>;
    /// Adds one if there is one already, and the last tells another state.
    async fn add_if_news(&self, id: &AccountId, event: Event) -> Result<(), StoreError>;
    /// An account's events, newest first. They go when its record is removed.
    async fn events(&self, id: &AccountId) -> Result<Vec<Event>, StoreError>;
}

/// So many events of each account are kept.
pub const EVENTS_KEPT: usize = 100;

/// One transition of an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at: Time,
    /// Whether it may take calls from then on.
    pub schedulable: bool,
    /// The codes of what speaks against it from then on.
    pub reasons: Vec<String>,
    /// What caused it: the status, the fault, the edit.
    pub cause: String,
}

impl Event {
    /// Whether it tells another state than the last one that was kept, as it was written.
    pub(crate) fn is_news_after(&self, last: Option<&str>) -> bool {
        let last: Option<Event> = last.and_then(|text| serde_json::from_str(text).ok());
        last.is_some_and(|last| (last.schedulable, &last.reasons) != (self.schedulable, &self.reasons))
    }
}

/// Small facts about the installation, by name (the admin token's hash, for one).
#[async_trait]
pub trait Facts: Send + Sync {
    /// Reads one.
    async fn fact(&self, name: &str) -> Result<Option<String>, StoreError>;
    /// Writes one.
    async fn set_fact(&self, name: &str, value: &str) -> Result<(), StoreError>;
    /// Fails if the store cannot be read and written now.
    async fn check(&self) -> Result<(), StoreError>;
}

/// What [`copy`] needs beyond the other faces; called while no relay runs.
#[async_trait]
pub trait Transfer: Send + Sync {
    /// How much there is, records that do not open included.
    async fn counts(&self) -> Result<Counts, StoreError>;
    /// Every fact, by name.
    async fn facts(&self) -> Result<Vec<(String, String)>, StoreError>;
    /// Every open call, by name.
    async fn open_calls(&self) -> Result<Vec<Begun>, StoreError>;
    /// Takes every sum, open call and offset away: what an interrupted copy put there may not be so any more.
    async fn clear_usage(&self) -> Result<(), StoreError>;
    /// Puts these as they are, times included, in place of what has the same name; so it may be done twice.
    async fn restore(&self, items: Restored) -> Result<(), StoreError>;
}

/// How much a store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Accounts.
    pub accounts: u64,
    /// Keys.
    pub keys: u64,
    /// Facts.
    pub facts: u64,
    /// Sums, one for each key, account, model and day.
    pub sums: u64,
    /// Open calls.
    pub open: u64,
    /// Offsets of journal files.
    pub offsets: u64,
}

/// What is put into another store, some of one kind at a time.
#[derive(Debug, Clone)]
pub enum Restored {
    /// Records of accounts, their secrets in the clear.
    Accounts(Vec<Document>),
    /// Records of keys.
    Keys(Vec<Document>),
    /// Sums, which replace those of the same key, account, model and day.
    Sums(Vec<UsageRow>),
    /// Open calls.
    Open(Vec<Begun>),
    /// Offsets by journal file, bytes.
    Offsets(Vec<(String, u64)>),
}

/// A call as the journal saw it begin: written before the first byte goes to an upstream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Begun {
    /// Unique: boot, worker and a counter.
    pub call: String,
    /// Whose key.
    pub key: String,
    /// Which account.
    pub account: String,
    /// Which model; empty where the endpoint has none.
    pub model: String,
    /// `messages`, `count_tokens` or `models`.
    pub endpoint: String,
    /// When.
    pub at: Time,
}

/// A call as the journal saw it end: written before its last byte leaves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// The same as in [`Begun`].
    pub call: String,
    /// How.
    pub ending: Ending,
    /// The upstream's status, if it answered.
    pub status: Option<u16>,
    /// What it used, as far as is known.
    #[serde(default)]
    pub usage: Usage,
    /// Milliseconds to the first byte of the answer, if one came.
    pub first_byte_ms: Option<u64>,
    /// Milliseconds in all.
    pub duration_ms: u64,
}

/// One piece of one journal file.
#[derive(Debug, Clone)]
pub struct Settlement {
    /// The file's name, which begins with its boot and a `-`.
    pub file: String,
    /// The offset the piece starts at; a piece that does not start at the settled offset is refused.
    pub from: u64,
    /// The offset after it.
    pub to: u64,
    /// Calls that began, in order.
    pub begun: Vec<Begun>,
    /// Calls that ended, in order; their beginning may lie in an earlier piece.
    pub ended: Vec<Ended>,
}

/// Which sums to show; `None` is all.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsageFilter {
    /// Of this key.
    pub key: Option<String>,
    /// Of this account.
    pub account: Option<String>,
    /// Of this model.
    pub model: Option<String>,
    /// From this day on, `YYYY-MM-DD`.
    pub since: Option<chrono::NaiveDate>,
    /// To this day, included.
    pub until: Option<chrono::NaiveDate>,
}

/// One sum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UsageRow {
    /// Key id.
    pub key: String,
    /// Account id.
    pub account: String,
    /// Model as the client asked for it.
    pub model: String,
    /// Day (UTC), `YYYY-MM-DD`.
    pub day: String,
    /// Calls, however they ended; each attempt at an upstream counts.
    pub requests: u64,
    /// Tokens.
    #[serde(flatten)]
    pub usage: Usage,
    /// Calls by how they ended.
    pub endings: std::collections::BTreeMap<String, u64>,
}

/// One engine, as its six faces.
#[derive(Clone)]
pub struct Stores {
    /// Accounts.
    pub accounts: Arc<dyn Accounts>,
    /// Keys.
    pub keys: Arc<dyn Keys>,
    /// Usage.
    pub usage: Arc<dyn UsageLedger>,
    /// Events.
    pub events: Arc<dyn Events>,
    /// Facts.
    pub facts: Arc<dyn Facts>,
    /// What a move to another engine needs.
    pub transfer: Arc<dyn Transfer>,
}
