//! Copies one store into another, whichever engines they are: `claude-relay migrate --from … --to …`.
//!
//! Called by the CLI while no relay runs. Records are unsealed by the one and sealed by the other. What is written
//! carries its name, so that a copy that was interrupted is simply run again; a fact in the target says that one
//! is under way, and only then may the target hold anything at the start. The rows of single calls stay where they
//! are: sums, open calls and offsets are what the next settlement builds on.

use super::{Counts, Restored, StoreError, Stores, UsageFilter, seal};
use crate::domain::document::Document;
use crate::domain::{AccountId, KeyId};
use serde::Serialize;
use std::collections::HashMap;

/// The fact that says a copy into this store is under way; a relay must not start on such a store.
pub const FACT: &str = "copy";

/// Its value while it is, and when it is done.
pub const UNDER_WAY: &str = "under way";
const DONE: &str = "done";

/// Facts about the store that has them, which another one must not take over: it may be sealed by another key.
const LOCAL: [&str; 2] = [FACT, seal::FACT];

/// Records or rows written in one go.
const BATCH: usize = 500;

/// What was copied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CopyReport {
    /// Nothing was written.
    pub dry_run: bool,
    /// True if it went on where one was interrupted.
    pub resumed: bool,
    /// What the source has.
    pub source: Counts,
    /// What the target has now.
    pub target: Counts,
    /// Records and rows written (or, in a dry run, that would be); those that were there already are not.
    pub written: u64,
}

/// Why a copy was not made or not finished.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// There is something in the target that no copy put there.
    #[error("the target is not empty ({0}); a copy goes into an empty store only")]
    NotEmpty(String),
    /// The source itself was never finished.
    #[error("the source is an unfinished copy; finish that one first")]
    Unfinished,
    /// A record of the source does not open, so that it would be left behind.
    #[error(
        "{missing} of {all} {kind} cannot be read (the log says which); mend or remove them first, nothing was left out \
         silently"
    )]
    Unreadable {
        /// accounts or keys
        kind: &'static str,
        /// How many.
        missing: u64,
        /// Of how many.
        all: u64,
    },
    /// What came out is not what went in.
    #[error("the target differs from the source after the copy: {0}; run it again")]
    Differs(String),
    /// A store failed; run it again to go on.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Copies everything but the rows of single calls.
///
/// # Errors
/// When the target is not empty, a record of the source cannot be read, or a store fails. What was written stays,
/// and the next run goes on from it.
pub async fn copy(from: &Stores, to: &Stores, dry_run: bool) -> Result<CopyReport, CopyError> {
    if from.facts.fact(FACT).await?.as_deref() == Some(UNDER_WAY) {
        return Err(CopyError::Unfinished);
    }
    let before = counts(to).await?;
    let resumed = to.facts.fact(FACT).await?.as_deref() == Some(UNDER_WAY);
    if !resumed && before != Counts::default() {
        return Err(CopyError::NotEmpty(told(&before)));
    }
    let source = counts(from).await?;
    let mut report = CopyReport { dry_run, resumed, source, target: before, written: 0 };
    let everything = read(from, &source).await?;
    if dry_run {
        report.written = everything.len();
        return Ok(report);
    }
    to.facts.set_fact(FACT, UNDER_WAY).await?;
    if resumed {
        // Calls may have been settled in the source since: usage is copied anew, records where they differ.
        to.transfer.clear_usage().await?;
    }
    report.written = write(to, everything.clone()).await?;
    report.target = counts(to).await?;
    if report.target != source {
        return Err(CopyError::Differs(format!("{} instead of {}", told(&report.target), told(&source))));
    }
    let arrived = read(to, &source).await?;
    if let Some(what) = everything.differs_from(&arrived) {
        return Err(CopyError::Differs(what.to_owned()));
    }
    to.facts.set_fact(FACT, DONE).await?;
    Ok(report)
}

/// All that is copied. It fits into memory where it fits into Redis.
#[derive(Clone)]
struct Everything {
    accounts: Vec<Document>,
    keys: Vec<Document>,
    facts: Vec<(String, String)>,
    sums: Vec<super::UsageRow>,
    open: Vec<super::Begun>,
    offsets: Vec<(String, u64)>,
}

impl Everything {
    fn len(&self) -> u64 {
        let records = self.accounts.len() + self.keys.len() + self.facts.len();
        (records + self.sums.len() + self.open.len() + self.offsets.len()) as u64
    }

    fn differs_from(&self, other: &Self) -> Option<&'static str> {
        [
            ("accounts", self.accounts == other.accounts),
            ("keys", self.keys == other.keys),
            ("facts", self.facts == other.facts),
            ("sums", self.sums == other.sums),
            ("open calls", self.open == other.open),
            ("offsets", self.offsets == other.offsets),
        ]
        .into_iter()
        .find_map(|(what, same)| (!same).then_some(what))
    }
}

async fn read(stores: &Stores, counts: &Counts) -> Result<Everything, CopyError> {
    let mut facts = stores.transfer.facts().await?;
    facts.retain(|(name, _)| !LOCAL.contains(&name.as_str()));
    let everything = Everything {
        accounts: stores.accounts.list().await?,
        keys: stores.keys.list().await?,
        facts,
        sums: stores.usage.sums(&UsageFilter::default()).await?,
        open: stores.transfer.open_calls().await?,
        offsets: stores.usage.offsets().await?,
    };
    for (kind, listed, all) in
        [("accounts", everything.accounts.len(), counts.accounts), ("keys", everything.keys.len(), counts.keys)]
    {
        let missing = all.saturating_sub(listed as u64);
        if missing > 0 {
            return Err(CopyError::Unreadable { kind, missing, all });
        }
    }
    Ok(everything)
}

/// Writes what is not there yet, and takes away what an interrupted copy wrote and the source has lost since.
async fn write(to: &Stores, everything: Everything) -> Result<u64, CopyError> {
    let Everything { accounts, keys, facts, sums, open, offsets } = everything;
    let mut written = 0;
    let (accounts, gone) = missing(accounts, to.accounts.list().await?);
    for id in gone {
        to.accounts.remove(&AccountId::parse(&id).map_err(StoreError::from)?).await?;
    }
    let (keys, gone) = missing(keys, to.keys.list().await?);
    for id in gone {
        to.keys.remove(&KeyId::new(id)).await?;
    }
    let there = to.transfer.facts().await?;
    for (name, value) in facts.into_iter().filter(|fact| !there.contains(fact)) {
        to.facts.set_fact(&name, &value).await?;
        written += 1;
    }
    let mut put = async |items: Restored, count: usize| {
        written += count as u64;
        to.transfer.restore(items).await
    };
    for part in accounts.chunks(BATCH) {
        put(Restored::Accounts(part.to_vec()), part.len()).await?;
    }
    for part in keys.chunks(BATCH) {
        put(Restored::Keys(part.to_vec()), part.len()).await?;
    }
    let there = to.usage.sums(&UsageFilter::default()).await?;
    let there: HashMap<_, _> = there.iter().map(|r| ((&r.key, &r.account, &r.model, &r.day), r)).collect();
    let sums: Vec<_> = sums
        .iter()
        .filter(|r| there.get(&(&r.key, &r.account, &r.model, &r.day)).is_none_or(|there| there != r))
        .cloned()
        .collect();
    for part in sums.chunks(BATCH) {
        put(Restored::Sums(part.to_vec()), part.len()).await?;
    }
    for part in open.chunks(BATCH) {
        put(Restored::Open(part.to_vec()), part.len()).await?;
    }
    for part in offsets.chunks(BATCH) {
        put(Restored::Offsets(part.to_vec()), part.len()).await?;
    }
    Ok(written)
}

/// The records that are not in `there` as they are, and the ids that are there only.
fn missing(records: Vec<Document>, there: Vec<Document>) -> (Vec<Document>, Vec<String>) {
    let id = |record: &Document| record.get("id").and_then(|id| id.as_str()).unwrap_or_default().to_owned();
    let mut there: HashMap<String, Document> = there.into_iter().map(|record| (id(&record), record)).collect();
    let missing = records.into_iter().filter(|record| there.remove(&id(record)).as_ref() != Some(record)).collect();
    (missing, there.into_keys().collect())
}

/// What a store has, without the facts that stay in it.
async fn counts(stores: &Stores) -> Result<Counts, StoreError> {
    let mut counts = stores.transfer.counts().await?;
    for name in LOCAL {
        if stores.facts.fact(name).await?.is_some() {
            counts.facts -= 1;
        }
    }
    Ok(counts)
}

fn told(counts: &Counts) -> String {
    let Counts { accounts, keys, facts, sums, open, offsets } = counts;
    format!(
        "{accounts} accounts, {keys} keys, {facts} facts, {sums} sums, {open} open calls, {offsets} journal offsets"
    )
}
