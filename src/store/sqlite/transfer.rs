//! What [`crate::store::copy`] needs of this engine beyond the other faces.
//!
//! Called through [`Transfer`] while no relay runs; each call is one transaction on the store's thread.

use super::ledger::{COUNTED, Open, counters};
use super::records::{ACCOUNT, KEY, restore};
use super::{SqliteStore, engine};
use crate::store::{Begun, Counts, Restored, StoreError, Transfer};
use async_trait::async_trait;
use rusqlite::{Transaction, TransactionBehavior, params_from_iter, types};

#[async_trait]
impl Transfer for SqliteStore {
    async fn counts(&self) -> Result<Counts, StoreError> {
        self.run(|db| {
            let count = |table: &str| {
                let sql = format!("SELECT count(*) FROM {table}");
                db.query_row(&sql, [], |row| row.get::<_, i64>(0)).map(i64::unsigned_abs).map_err(engine)
            };
            Ok(Counts {
                accounts: count("accounts")?,
                keys: count("keys")?,
                facts: count("facts")?,
                sums: count("rollups")?,
                open: count("open_calls")?,
                offsets: count("journal_offsets")?,
            })
        })
        .await
    }

    async fn facts(&self) -> Result<Vec<(String, String)>, StoreError> {
        self.run(|db| {
            let mut query = db.prepare("SELECT name, value FROM facts ORDER BY name").map_err(engine)?;
            let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
            rows.and_then(Iterator::collect).map_err(engine)
        })
        .await
    }

    async fn open_calls(&self) -> Result<Vec<Begun>, StoreError> {
        self.run(|db| {
            let mut query = db.prepare("SELECT * FROM open_calls ORDER BY call").map_err(engine)?;
            let rows: Result<Vec<Open>, _> = query.query_map([], Open::from_row).and_then(Iterator::collect);
            rows.map_err(engine)?.into_iter().map(Begun::try_from).collect()
        })
        .await
    }

    async fn clear_usage(&self) -> Result<(), StoreError> {
        self.run(|db| {
            let tables = ["rollups", "open_calls", "journal_offsets"].map(|table| format!("DELETE FROM {table};"));
            db.execute_batch(&format!("BEGIN IMMEDIATE; {} COMMIT", tables.concat())).map_err(engine)
        })
        .await
    }

    async fn restore(&self, items: Restored) -> Result<(), StoreError> {
        let sealer = self.sealer.clone();
        self.run(move |db| {
            let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(engine)?;
            match items {
                Restored::Accounts(records) => {
                    records.into_iter().try_for_each(|record| restore(&tx, &sealer, &ACCOUNT, record))?;
                }
                Restored::Keys(records) => {
                    records.into_iter().try_for_each(|record| restore(&tx, &sealer, &KEY, record))?;
                }
                usage => restore_usage(&tx, usage).map_err(engine)?,
            }
            tx.commit().map_err(engine)
        })
        .await
    }
}

fn restore_usage(tx: &Transaction, items: Restored) -> rusqlite::Result<()> {
    match items {
        Restored::Sums(rows) => {
            let (columns, places) = (COUNTED.join(", "), vec!["?"; 4 + COUNTED.len()].join(", "));
            let sql = format!("INSERT OR REPLACE INTO rollups(key, account, model, day, {columns}) VALUES ({places})");
            let mut insert = tx.prepare_cached(&sql)?;
            for row in rows {
                let counts = counters(&row).map(types::Value::from);
                let texts = [row.key, row.account, row.model, row.day].map(types::Value::from);
                insert.execute(params_from_iter(texts.into_iter().chain(counts)))?;
            }
        }
        Restored::Open(calls) => {
            let mut insert = tx.prepare_cached("INSERT OR REPLACE INTO open_calls VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
            for open in calls.into_iter().map(Open::from) {
                insert.execute((open.call, open.key, open.account, open.model, open.endpoint, open.began_at))?;
            }
        }
        Restored::Offsets(offsets) => {
            let sql = "INSERT OR REPLACE INTO journal_offsets(file, settled) VALUES (?1, ?2)";
            let mut insert = tx.prepare_cached(sql)?;
            for (file, settled) in offsets {
                insert.execute((file, i64::try_from(settled).unwrap_or(i64::MAX)))?;
            }
        }
        Restored::Accounts(_) | Restored::Keys(_) => {}
    }
    Ok(())
}
