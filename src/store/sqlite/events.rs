//! Accounts' events in a table, an object each, the oldest taken away as new ones come.

use super::{SqliteStore, engine};
use crate::domain::AccountId;
use crate::store::{EVENTS_KEPT, Event, Events, StoreError};
use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

#[async_trait]
impl Events for SqliteStore {
    async fn add_event(&self, id: &AccountId, event: Event) -> Result<(), StoreError> {
        let id = id.to_string();
        let text = serde_json::to_string(&event).map_err(|e| StoreError::Engine(e.to_string()))?;
        self.run(move |db| add(db, &id, &text).map_err(engine)).await
    }

    async fn add_if_news(&self, id: &AccountId, event: Event) -> Result<(), StoreError> {
        let id = id.to_string();
        let text = serde_json::to_string(&event).map_err(|e| StoreError::Engine(e.to_string()))?;
        self.run(move |db| {
            let last = "SELECT event FROM events WHERE account = ?1 ORDER BY number DESC LIMIT 1";
            let last =
                db.prepare_cached(last).and_then(|mut q| q.query_row([&id], |row| row.get::<_, String>(0)).optional());
            match event.is_news_after(last.map_err(engine)?.as_deref()) {
                true => add(db, &id, &text).map_err(engine),
                false => Ok(()),
            }
        })
        .await
    }

    async fn events(&self, id: &AccountId) -> Result<Vec<Event>, StoreError> {
        let id = id.to_string();
        self.run(move |db| {
            let mut query = db
                .prepare_cached("SELECT event FROM events WHERE account = ?1 ORDER BY number DESC")
                .map_err(engine)?;
            let rows = query.query_map([id], |row| row.get::<_, String>(0)).map_err(engine)?;
            let texts: Vec<String> = rows.collect::<Result<_, _>>().map_err(engine)?;
            // One that a newer relay wrote otherwise must not hide the rest.
            Ok(texts.iter().filter_map(|text| serde_json::from_str(text).ok()).collect())
        })
        .await
    }
}

fn add(db: &mut Connection, id: &str, text: &str) -> rusqlite::Result<()> {
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    tx.prepare_cached("INSERT INTO events(account, event) VALUES (?1, ?2)")?.execute([id, text])?;
    let last = "SELECT number FROM events WHERE account = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2";
    let cut = format!("DELETE FROM events WHERE account = ?1 AND number <= ({last})");
    tx.prepare_cached(&cut)?.execute(params![id, i64::try_from(EVENTS_KEPT).unwrap_or(i64::MAX)])?;
    tx.commit()
}
