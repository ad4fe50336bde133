//! The schema of the embedded engine, as migrations that are applied in order when the file is opened.
//!
//! Called by [`super::SqliteStore::open`] alone. A script that was released is never edited: its checksum is
//! recorded in every database, and one that differs is refused rather than guessed about.

use crate::store::migration::{Applied, Forecast, Status, listed};
use rusqlite::{Connection, TransactionBehavior};
use sha2::{Digest, Sha256};

/// One step of the schema; its version is its place in [`MIGRATIONS`], from 1.
struct Migration {
    name: &'static str,
    script: &'static str,
}

/// Why a database was not opened.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// SQLite failed.
    #[error(transparent)]
    Engine(#[from] rusqlite::Error),
    /// A newer relay has been here.
    #[error(
        "the database has schema version {found} and this relay knows {known}; run the newer relay again, or restore \
         the backup from before its first start"
    )]
    Newer {
        /// The database's version.
        found: i64,
        /// The latest that this binary has.
        known: usize,
    },
    /// A script with this version but another text was applied.
    #[error(
        "schema version {version} ({name}) was applied from another script than this relay's; it is not its database"
    )]
    Differs {
        /// Which version.
        version: usize,
        /// Its name as recorded.
        name: String,
    },
}

const MIGRATIONS: &[Migration] =
    &[Migration { name: "initial", script: INITIAL }, Migration { name: "events", script: EVENTS }];

/// `events.event` is a JSON object; a record that goes takes its events along.
const EVENTS: &str = "
CREATE TABLE events (
    number  INTEGER PRIMARY KEY,
    account TEXT NOT NULL,
    event   TEXT NOT NULL
) STRICT;
CREATE INDEX events_by_account ON events(account, number);
CREATE TRIGGER events_go_with_their_account AFTER DELETE ON accounts BEGIN
    DELETE FROM events WHERE account = OLD.id;
END;";

const RECORDED: &str = "
CREATE TABLE IF NOT EXISTS schema_migrations (
    version    INTEGER PRIMARY KEY,
    name       TEXT NOT NULL,
    checksum   TEXT NOT NULL,
    applied_at TEXT NOT NULL
) STRICT;";

/// `calls.day` is the UTC day of `began_at`; durations are milliseconds; `duration_ms` is NULL where the relay
/// died. `keys.hash` is read from the record, so that both record tables are written alike.
const INITIAL: &str = "
CREATE TABLE accounts (
    id         TEXT PRIMARY KEY,
    record     TEXT NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL
) STRICT;
CREATE TABLE keys (
    id         TEXT PRIMARY KEY,
    record     TEXT NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    hash       TEXT NOT NULL UNIQUE GENERATED ALWAYS AS (json_extract(record, '$.hash')) VIRTUAL
) STRICT;
CREATE TABLE calls (
    call     TEXT PRIMARY KEY,
    key      TEXT NOT NULL,
    account  TEXT NOT NULL,
    model    TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    day      TEXT NOT NULL,
    began_at TEXT NOT NULL,
    ending   TEXT NOT NULL,
    status   INTEGER,
    input_tokens                   INTEGER NOT NULL,
    output_tokens                  INTEGER NOT NULL,
    cache_creation_input_tokens    INTEGER NOT NULL,
    cache_creation_5m_input_tokens INTEGER NOT NULL,
    cache_creation_1h_input_tokens INTEGER NOT NULL,
    cache_read_input_tokens        INTEGER NOT NULL,
    first_byte_ms INTEGER,
    duration_ms   INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE open_calls (
    call     TEXT PRIMARY KEY,
    key      TEXT NOT NULL,
    account  TEXT NOT NULL,
    model    TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    began_at TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE rollups (
    key      TEXT NOT NULL,
    account  TEXT NOT NULL,
    model    TEXT NOT NULL,
    day      TEXT NOT NULL,
    requests                       INTEGER NOT NULL,
    input_tokens                   INTEGER NOT NULL,
    output_tokens                  INTEGER NOT NULL,
    cache_creation_input_tokens    INTEGER NOT NULL,
    cache_creation_5m_input_tokens INTEGER NOT NULL,
    cache_creation_1h_input_tokens INTEGER NOT NULL,
    cache_read_input_tokens        INTEGER NOT NULL,
    complete       INTEGER NOT NULL,
    client_gone    INTEGER NOT NULL,
    upstream_cut   INTEGER NOT NULL,
    upstream_error INTEGER NOT NULL,
    relay_ended    INTEGER NOT NULL,
    relay_crashed  INTEGER NOT NULL,
    PRIMARY KEY (key, account, model, day)
) STRICT, WITHOUT ROWID;
CREATE INDEX rollups_by_day ON rollups(day);
CREATE TABLE journal_offsets (
    file    TEXT PRIMARY KEY,
    settled INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE facts (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;";

/// Brings the schema up to date, one transaction a script.
///
/// # Errors
/// When the database is newer than this binary, was made by other scripts, or SQLite fails.
pub fn migrate(db: &mut Connection) -> Result<(), SchemaError> {
    apply(db, MIGRATIONS)
}

fn apply(db: &mut Connection, migrations: &[Migration]) -> Result<(), SchemaError> {
    db.execute_batch(RECORDED)?;
    let found: i64 = db.query_row("SELECT ifnull(max(version), 0) FROM schema_migrations", [], |row| row.get(0))?;
    if usize::try_from(found).map_or(true, |found| found > migrations.len()) {
        return Err(SchemaError::Newer { found, known: migrations.len() });
    }
    for (version, migration) in (1..).zip(migrations) {
        let checksum = hex::encode(Sha256::digest(migration.script));
        // Inside the transaction, since a second process may be opening the same file.
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let recorded: Vec<(String, String)> = tx
            .prepare("SELECT name, checksum FROM schema_migrations WHERE version = ?1")?
            .query_map([version as i64], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        match recorded.into_iter().next() {
            Some((_, was)) if was == checksum => {}
            Some((name, _)) => return Err(SchemaError::Differs { version, name }),
            None => {
                tx.execute_batch(migration.script)?;
                tx.execute(
                    "INSERT INTO schema_migrations VALUES (?1, ?2, ?3, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))",
                    (version as i64, migration.name, checksum),
                )?;
                tx.commit()?;
                tracing::info!(version, name = migration.name, "schema migrated");
            }
        }
    }
    Ok(())
}

/// Every migration, known or recorded, in order. Changes nothing.
///
/// # Errors
/// When SQLite fails.
pub fn status(db: &Connection) -> Result<Vec<Status>, SchemaError> {
    let recorded = "SELECT version, name, checksum, applied_at FROM schema_migrations ORDER BY version";
    let there: bool =
        db.query_row("SELECT count(*) FROM sqlite_master WHERE name = 'schema_migrations'", [], |row| row.get(0))?;
    let applied = |row: &rusqlite::Row| {
        let applied =
            Applied { name: row.get(1)?, checksum: row.get(2)?, applied_at: row.get(3)?, keys: 0, changed: 0 };
        Ok((row.get(0)?, applied))
    };
    let recorded: std::collections::BTreeMap<u32, Applied> = if there {
        db.prepare(recorded)?.query_map([], applied)?.collect::<Result<_, _>>()?
    } else {
        Default::default()
    };
    Ok(listed(MIGRATIONS.iter().map(|migration| migration.name), recorded))
}

/// Tries every pending migration and takes it back.
///
/// # Errors
/// As [`migrate`].
pub fn dry_run(db: &mut Connection) -> Result<Vec<Forecast>, SchemaError> {
    let all = status(db)?;
    if let Some(found) = all.iter().find(|s| !s.known) {
        return Err(SchemaError::Newer { found: i64::from(found.version), known: MIGRATIONS.len() });
    }
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let pending = all.into_iter().zip(MIGRATIONS).filter(|(status, _)| status.applied.is_none());
    let tried = pending.map(|(status, migration)| {
        tx.execute_batch(migration.script)?;
        Ok(Forecast { version: status.version, name: status.name, keys: 0, changes: 0 })
    });
    let tried = tried.collect();
    tx.rollback()?;
    tried
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Migration = Migration { name: "one", script: "CREATE TABLE t(a);" };
    const TWO: Migration = Migration { name: "two", script: "ALTER TABLE t ADD COLUMN b;" };

    #[test]
    fn migrations_apply_in_order_and_once() {
        let mut db = Connection::open_in_memory().unwrap();
        apply(&mut db, &[ONE]).unwrap();
        apply(&mut db, &[ONE, TWO]).unwrap();
        apply(&mut db, &[ONE, TWO]).unwrap();
        db.execute("INSERT INTO t(a, b) VALUES (1, 2)", []).unwrap();
    }

    #[test]
    fn a_newer_or_a_different_database_is_refused() {
        let mut db = Connection::open_in_memory().unwrap();
        apply(&mut db, &[ONE, TWO]).unwrap();
        let newer = apply(&mut db, &[ONE]).unwrap_err();
        assert!(newer.to_string().contains("version 2 and this relay knows 1"), "{newer}");
        let edited = Migration { name: "two", script: "ALTER TABLE t ADD COLUMN c;" };
        let differs = apply(&mut db, &[ONE, edited]).unwrap_err();
        assert!(differs.to_string().contains("version 2 (two)"), "{differs}");
    }

    #[test]
    fn the_status_tells_pending_from_applied_and_a_dry_run_changes_nothing() {
        let mut db = Connection::open_in_memory().unwrap();
        assert!(status(&db).unwrap().iter().all(|s| s.known && s.applied.is_none()));
        assert_eq!(dry_run(&mut db).unwrap().len(), MIGRATIONS.len());
        assert!(status(&db).unwrap().iter().all(|s| s.applied.is_none()));
        migrate(&mut db).unwrap();
        assert!(status(&db).unwrap().iter().all(|s| s.applied.is_some()));
        assert!(dry_run(&mut db).unwrap().is_empty());
    }

    #[test]
    fn a_script_that_fails_leaves_nothing_behind() {
        let mut db = Connection::open_in_memory().unwrap();
        let broken = Migration { name: "two", script: "CREATE TABLE u(a); SELECT nonsense;" };
        assert!(apply(&mut db, &[ONE, broken]).is_err());
        apply(&mut db, &[ONE, Migration { name: "two", script: "CREATE TABLE u(a);" }]).unwrap();
    }
}
