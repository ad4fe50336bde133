//! Usage in SQLite: a row for every call, sums by key, account, model and day, and the journal's offsets.
//!
//! Reached through [`UsageLedger`] by the Ledger actor and the Admin API; runs on the store's thread. Rows, sums,
//! open calls and the offset commit together, and only a row that was really new adds to the sums: so a piece
//! that comes twice, by whatever accident, counts once.

use super::{SqliteStore, engine};
use crate::domain::{Ending, Usage};
use crate::store::{Begun, Settlement, StoreError, UsageFilter, UsageLedger, UsageRow};
use async_trait::async_trait;
use chrono::{DateTime, SecondsFormat};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params_from_iter};
use std::collections::HashMap;

/// No answer uses more tokens; what an upstream claims beyond would, summed, leave SQLite's integers and stop
/// every later settlement.
const MOST_TOKENS: u64 = 1 << 40;

const ENDINGS: usize = Ending::ALL.len();

const INSERT_CALL: &str = "INSERT OR IGNORE INTO calls
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)";

const INSERT_OPEN: &str = "INSERT OR IGNORE INTO open_calls SELECT ?1, ?2, ?3, ?4, ?5, ?6
    WHERE NOT EXISTS (SELECT 1 FROM calls WHERE call = ?1)";

pub(super) const COUNTED: [&str; 7 + ENDINGS] = [
    "requests",
    "input_tokens",
    "output_tokens",
    "cache_creation_input_tokens",
    "cache_creation_5m_input_tokens",
    "cache_creation_1h_input_tokens",
    "cache_read_input_tokens",
    "complete",
    "client_gone",
    "upstream_cut",
    "upstream_error",
    "relay_ended",
    "relay_crashed",
];

#[async_trait]
impl UsageLedger for SqliteStore {
    async fn settle(&self, piece: Settlement) -> Result<(), StoreError> {
        self.run(move |db| settle(db, piece)).await
    }

    async fn offsets(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.run(|db| {
            let mut query =
                db.prepare_cached("SELECT file, settled FROM journal_offsets ORDER BY file").map_err(engine)?;
            let rows = query.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs())));
            rows.and_then(Iterator::collect).map_err(engine)
        })
        .await
    }

    async fn close_crashed(&self, boot: &str) -> Result<u64, StoreError> {
        let boot = boot.to_owned();
        self.run(move |db| close_crashed(db, &boot)).await
    }

    async fn forget(&self, file: &str) -> Result<(), StoreError> {
        let file = file.to_owned();
        self.run(move |db| db.execute("DELETE FROM journal_offsets WHERE file = ?1", [file]).map(drop).map_err(engine))
            .await
    }

    async fn sums(&self, filter: &UsageFilter) -> Result<Vec<UsageRow>, StoreError> {
        let filter = filter.clone();
        self.run(move |db| sums(db, filter)).await
    }
}

/// An open call, as `open_calls` keeps it.
pub(super) struct Open {
    pub call: String,
    pub key: String,
    pub account: String,
    pub model: String,
    pub endpoint: String,
    pub began_at: String,
}

impl From<Begun> for Open {
    fn from(begun: Begun) -> Self {
        let Begun { call, key, account, model, endpoint, at } = begun;
        Self { call, key, account, model, endpoint, began_at: at.to_rfc3339_opts(SecondsFormat::Millis, true) }
    }
}

impl TryFrom<Open> for Begun {
    type Error = StoreError;

    fn try_from(open: Open) -> Result<Self, StoreError> {
        let Open { call, key, account, model, endpoint, began_at } = open;
        let at = DateTime::parse_from_rfc3339(&began_at)
            .map_err(|_| StoreError::Engine(format!("{call}: {began_at} is no time")))?;
        Ok(Self { call, key, account, model, endpoint, at: at.to_utc() })
    }
}

impl Open {
    pub(super) fn from_row(row: &Row) -> rusqlite::Result<Self> {
        Ok(Self {
            call: row.get(0)?,
            key: row.get(1)?,
            account: row.get(2)?,
            model: row.get(3)?,
            endpoint: row.get(4)?,
            began_at: row.get(5)?,
        })
    }

    /// The UTC day: the beginning of an RFC 3339 time in Z.
    fn day(&self) -> &str {
        self.began_at.get(..10).unwrap_or_default()
    }
}

/// What a call came to.
struct Close {
    ending: Ending,
    status: Option<u16>,
    usage: Usage,
    first_byte_ms: Option<u64>,
    duration_ms: Option<u64>,
}

/// Rows on their way in, and the sums they add, by key, account, model and day.
struct Intake<'t> {
    tx: &'t Transaction<'t>,
    added: HashMap<[String; 4], [i64; COUNTED.len()]>,
}

impl Intake<'_> {
    /// Inserts the row, and adds it to the sums only if it was not there.
    fn row(&mut self, open: Open, close: &Close) -> rusqlite::Result<()> {
        let tokens = tokens(&close.usage);
        let inserted = self.tx.prepare_cached(INSERT_CALL)?.execute(rusqlite::params![
            open.call,
            open.key,
            open.account,
            open.model,
            open.endpoint,
            open.day(),
            open.began_at,
            close.ending.name(),
            close.status,
            tokens[0],
            tokens[1],
            tokens[2],
            tokens[3],
            tokens[4],
            tokens[5],
            close.first_byte_ms.map(signed),
            close.duration_ms.map(signed),
        ])?;
        if inserted == 0 {
            return Ok(());
        }
        let day = open.day().to_owned();
        let sum = self.added.entry([open.key, open.account, open.model, day]).or_default();
        sum[0] += 1;
        for (to, tokens) in sum[1..].iter_mut().zip(tokens) {
            *to += tokens;
        }
        if let Some(nth) = Ending::ALL.iter().position(|e| *e == close.ending) {
            sum[7 + nth] += 1;
        }
        Ok(())
    }

    fn write_sums(self) -> rusqlite::Result<()> {
        let columns = COUNTED.join(", ");
        let places = vec!["?"; 4 + COUNTED.len()].join(", ");
        let adds = COUNTED.map(|name| format!("{name} = {name} + excluded.{name}")).join(", ");
        let mut upsert = self.tx.prepare_cached(&format!(
            "INSERT INTO rollups(key, account, model, day, {columns}) VALUES ({places})
             ON CONFLICT(key, account, model, day) DO UPDATE SET {adds}"
        ))?;
        for (group, sum) in self.added {
            let texts = group.into_iter().map(rusqlite::types::Value::from);
            upsert.execute(params_from_iter(texts.chain(sum.into_iter().map(Into::into))))?;
        }
        Ok(())
    }
}

fn settle(db: &mut Connection, piece: Settlement) -> Result<(), StoreError> {
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(engine)?;
    let settled = tx
        .prepare_cached("SELECT settled FROM journal_offsets WHERE file = ?1")
        .and_then(|mut query| query.query_row([&piece.file], |row| row.get::<_, i64>(0)).optional())
        .map_err(engine)?
        .map_or(0, i64::unsigned_abs);
    if piece.to <= settled {
        return Ok(());
    }
    if piece.from != settled {
        let Settlement { file, from, to, .. } = piece;
        return Err(StoreError::Engine(format!("{file}: bytes {from} to {to} do not follow the settled {settled}")));
    }
    take_in(&tx, piece).map_err(engine)?;
    tx.commit().map_err(engine)
}

fn take_in(tx: &Transaction, piece: Settlement) -> rusqlite::Result<()> {
    let mut begun: HashMap<String, Begun> = piece.begun.into_iter().map(|b| (b.call.clone(), b)).collect();
    let mut intake = Intake { tx, added: HashMap::new() };
    let mut take_open = tx.prepare_cached("DELETE FROM open_calls WHERE call = ?1 RETURNING *")?;
    let mut orphans = 0_u64;
    for ended in piece.ended {
        // Most calls end in the piece they began in and never touch `open_calls`.
        let open = match begun.remove(&ended.call) {
            Some(begun) => Some(begun.into()),
            None => take_open.query_row([&ended.call], Open::from_row).optional()?,
        };
        let close = Close {
            ending: ended.ending,
            status: ended.status,
            usage: ended.usage,
            first_byte_ms: ended.first_byte_ms,
            duration_ms: Some(ended.duration_ms),
        };
        match open {
            Some(open) => intake.row(open, &close)?,
            None => orphans += 1,
        }
    }
    if orphans > 0 {
        tracing::warn!(file = piece.file, orphans, "calls ended whose beginning is unknown; they are not counted");
    }
    let mut keep_open = tx.prepare_cached(INSERT_OPEN)?;
    for open in begun.into_values().map(Open::from) {
        keep_open.execute((open.call, open.key, open.account, open.model, open.endpoint, open.began_at))?;
    }
    intake.write_sums()?;
    tx.prepare_cached("INSERT OR REPLACE INTO journal_offsets(file, settled) VALUES (?1, ?2)")?
        .execute((piece.file, signed(piece.to)))?;
    Ok(())
}

fn close_crashed(db: &mut Connection, boot: &str) -> Result<u64, StoreError> {
    let close = |tx: &Transaction| -> rusqlite::Result<u64> {
        // `.` is the character after `-`: the range holds every call that starts with the boot and a `-`.
        let open: Vec<Open> = tx
            .prepare_cached("DELETE FROM open_calls WHERE call >= ?1 || '-' AND call < ?1 || '.' RETURNING *")?
            .query_map([boot], Open::from_row)?
            .collect::<Result<_, _>>()?;
        let count = open.len() as u64;
        let mut intake = Intake { tx, added: HashMap::new() };
        let crashed = Close {
            ending: Ending::RelayCrashed,
            status: None,
            usage: Usage::default(),
            first_byte_ms: None,
            duration_ms: None,
        };
        for open in open {
            intake.row(open, &crashed)?;
        }
        intake.write_sums().map(|()| count)
    };
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(engine)?;
    let count = close(&tx).map_err(engine)?;
    tx.commit().map_err(engine)?;
    Ok(count)
}

fn sums(db: &Connection, filter: UsageFilter) -> Result<Vec<UsageRow>, StoreError> {
    let UsageFilter { key, account, model, since, until } = filter;
    let wanted = [
        ("key =", key),
        ("account =", account),
        ("model =", model),
        ("day >=", since.map(|day| day.to_string())),
        ("day <=", until.map(|day| day.to_string())),
    ];
    let mut sql = format!("SELECT key, account, model, day, {} FROM rollups WHERE true", COUNTED.join(", "));
    let mut values = Vec::new();
    for (condition, value) in wanted {
        if let Some(value) = value {
            sql.push_str(&format!(" AND {condition} ?"));
            values.push(value);
        }
    }
    sql.push_str(" ORDER BY key, account, model, day");
    let mut query = db.prepare_cached(&sql).map_err(engine)?;
    let rows = query.query_map(params_from_iter(values), usage_row);
    rows.and_then(Iterator::collect).map_err(engine)
}

fn usage_row(row: &Row) -> rusqlite::Result<UsageRow> {
    let count = |nth: usize| row.get::<_, i64>(4 + nth).map(i64::unsigned_abs);
    let mut endings = std::collections::BTreeMap::new();
    for (nth, ending) in Ending::ALL.iter().enumerate() {
        let calls = count(7 + nth)?;
        if calls > 0 {
            endings.insert(ending.name().to_owned(), calls);
        }
    }
    Ok(UsageRow {
        key: row.get(0)?,
        account: row.get(1)?,
        model: row.get(2)?,
        day: row.get(3)?,
        requests: count(0)?,
        usage: Usage {
            input_tokens: count(1)?,
            output_tokens: count(2)?,
            cache_creation_input_tokens: count(3)?,
            cache_creation_5m_input_tokens: count(4)?,
            cache_creation_1h_input_tokens: count(5)?,
            cache_read_input_tokens: count(6)?,
        },
        endings,
    })
}

/// A row's counters in the order of [`COUNTED`].
pub(super) fn counters(row: &UsageRow) -> [i64; COUNTED.len()] {
    let tokens = tokens_uncut(&row.usage);
    let endings = Ending::ALL.map(|ending| row.endings.get(ending.name()).copied().unwrap_or_default());
    let mut all = [row.requests].into_iter().chain(tokens).chain(endings).map(signed);
    std::array::from_fn(|_| all.next().unwrap_or_default())
}

fn tokens(usage: &Usage) -> [i64; 6] {
    tokens_uncut(usage).map(|n| signed(n.min(MOST_TOKENS)))
}

fn tokens_uncut(usage: &Usage) -> [u64; 6] {
    [
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_creation_input_tokens,
        usage.cache_creation_5m_input_tokens,
        usage.cache_creation_1h_input_tokens,
        usage.cache_read_input_tokens,
    ]
}

fn signed(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ending_has_its_column_in_order() {
        assert_eq!(COUNTED[7..], Ending::ALL.map(Ending::name));
    }
}
