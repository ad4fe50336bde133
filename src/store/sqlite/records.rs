//! Accounts and keys in SQLite: each record is one JSON text, its secret fields sealed one by one.
//!
//! Reached through [`Accounts`] and [`Keys`]; runs on the store's thread. Both kinds share this code and differ
//! in a [`Kind`]. A patch does not open the fields it replaces, so that a record whose sealing key was lost can
//! be mended by sending its secrets again.

use super::{SqliteStore, engine};
use crate::domain::account::{self, Account};
use crate::domain::document::{Document, Field, FieldError, Guard};
use crate::domain::key::{self, Key};
use crate::domain::{AccountId, KeyId, Time};
use crate::store::seal::Sealer;
use crate::store::{Accounts, Keys, StoreError};
use async_trait::async_trait;
use chrono::SecondsFormat;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use serde_json::{Map, Value};

/// What accounts and keys do not have in common.
pub(super) struct Kind {
    table: &'static str,
    name: &'static str,
    fields: &'static [Field],
    /// Validates a record and gives its id.
    check: fn(&Document) -> Result<String, FieldError>,
}

pub(super) static ACCOUNT: Kind = Kind {
    table: "accounts",
    name: "account",
    fields: account::FIELDS,
    check: |record| Account::parse(record).map(|a| a.id.as_str().to_owned()),
};

pub(super) static KEY: Kind = Kind {
    table: "keys",
    name: "key",
    fields: key::FIELDS,
    check: |record| Key::parse(record).map(|k| k.id.as_str().to_owned()),
};

impl SqliteStore {
    async fn list(&self, kind: &'static Kind) -> Result<Vec<Document>, StoreError> {
        let sealer = self.sealer.clone();
        self.run(move |db| list(db, &sealer, kind)).await
    }

    async fn load(&self, kind: &'static Kind, id: &str) -> Result<Document, StoreError> {
        let (sealer, id) = (self.sealer.clone(), id.to_owned());
        self.run(move |db| unsealed(&sealer, kind, &id, stored(db, kind, &id)?)).await
    }

    async fn insert(&self, kind: &'static Kind, record: Document, now: Time) -> Result<Document, StoreError> {
        let sealer = self.sealer.clone();
        self.run(move |db| insert(db, &sealer, kind, record, now)).await
    }

    async fn patch(&self, kind: &'static Kind, id: &str, patch: Document, now: Time) -> Result<Document, StoreError> {
        let (sealer, id) = (self.sealer.clone(), id.to_owned());
        self.run(move |db| lay_over(db, &sealer, kind, &id, patch, now)).await
    }

    async fn remove(&self, kind: &'static Kind, id: &str) -> Result<(), StoreError> {
        let id = id.to_owned();
        self.run(move |db| {
            let removed = db.execute(&format!("DELETE FROM {} WHERE id = ?1", kind.table), [&id]).map_err(engine)?;
            if removed == 0 { Err(kind.missing(&id)) } else { Ok(()) }
        })
        .await
    }
}

macro_rules! face {
    ($face:ident, $kind:ident, $id:ty) => {
        #[async_trait]
        impl $face for SqliteStore {
            async fn list(&self) -> Result<Vec<Document>, StoreError> {
                self.list(&$kind).await
            }
            async fn load(&self, id: &$id) -> Result<Document, StoreError> {
                self.load(&$kind, id.as_str()).await
            }
            async fn insert(&self, record: Document, now: Time) -> Result<Document, StoreError> {
                self.insert(&$kind, record, now).await
            }
            async fn patch(&self, id: &$id, patch: Document, now: Time) -> Result<Document, StoreError> {
                self.patch(&$kind, id.as_str(), patch, now).await
            }
            async fn remove(&self, id: &$id) -> Result<(), StoreError> {
                self.remove(&$kind, id.as_str()).await
            }
        }
    };
}

face!(Accounts, ACCOUNT, AccountId);
face!(Keys, KEY, KeyId);

impl Kind {
    fn missing(&self, id: &str) -> StoreError {
        StoreError::Missing(format!("{} {id}", self.name))
    }

    /// The fields of `record` that are sealed, with the context each is sealed for.
    fn secrets<'a>(&'a self, id: &'a str) -> impl Iterator<Item = (&'static Field, String)> + 'a {
        let sealed = self.fields.iter().filter(|f| matches!(f.guard, Guard::Secret | Guard::SecretMap));
        sealed.map(move |field| (field, format!("{} {id} {}", self.name, field.name)))
    }
}

/// A record that does not open is left out, loudly: it must not take all the others with it.
fn list(db: &Connection, sealer: &Sealer, kind: &Kind) -> Result<Vec<Document>, StoreError> {
    let sql = format!("SELECT id, record FROM {} ORDER BY id", kind.table);
    let mut query = db.prepare_cached(&sql).map_err(engine)?;
    let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(engine)?;
    let mut records = Vec::new();
    for row in rows {
        let (id, text): (String, String) = row.map_err(engine)?;
        match parsed(kind, &id, &text).and_then(|map| unsealed(sealer, kind, &id, map)) {
            Ok(record) => records.push(record),
            Err(error) => tracing::error!(kind = kind.name, id, %error, "a stored record is left out"),
        }
    }
    Ok(records)
}

fn insert(
    db: &mut Connection,
    sealer: &Sealer,
    kind: &Kind,
    sent: Document,
    now: Time,
) -> Result<Document, StoreError> {
    // Laid over nothing, so that no `null` is stored.
    let mut record = Document::default();
    record.apply(sent);
    let id = (kind.check)(&record)?;
    let at = written(now);
    record.set("id", id.as_str());
    record.set("created_at", at.as_str());
    record.set("updated_at", at.as_str());
    let text = sealed(sealer, kind, &id, &record)?;
    let sql = format!(
        "INSERT INTO {}(id, record, created_at, updated_at) VALUES (?1, ?2, ?3, ?3) ON CONFLICT DO NOTHING",
        kind.table
    );
    match db.execute(&sql, (&id, text, at)).map_err(engine)? {
        0 => Err(StoreError::Duplicate(format!("{} {id}", kind.name))),
        _ => Ok(record),
    }
}

/// Puts a record as it is, times included, in place of what may be there: for [`crate::store::copy`].
pub(super) fn restore(db: &Connection, sealer: &Sealer, kind: &Kind, record: Document) -> Result<(), StoreError> {
    let id = (kind.check)(&record)?;
    let time = |name: &str| record.get(name).and_then(Value::as_str).unwrap_or_default();
    let text = sealed(sealer, kind, &id, &record)?;
    let sql = format!(
        "INSERT INTO {}(id, record, created_at, updated_at) VALUES (?1, ?2, ?3, ?4) ON CONFLICT (id)
         DO UPDATE SET record = excluded.record, created_at = excluded.created_at, updated_at = excluded.updated_at",
        kind.table
    );
    db.execute(&sql, (&id, text, time("created_at"), time("updated_at"))).map(drop).map_err(engine)
}

fn lay_over(
    db: &mut Connection,
    sealer: &Sealer,
    kind: &Kind,
    id: &str,
    patch: Document,
    now: Time,
) -> Result<Document, StoreError> {
    // Immediate: the record that is read must be the one that is replaced, whoever else writes.
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(engine)?;
    let mut map = stored(&tx, kind, id)?;
    let mut patch = patch.into_map();
    if patch.get("id").is_some_and(|sent| sent.as_str() != Some(id)) {
        return Err(FieldError::new("id", "cannot be changed; leave it out, or make a new record").into());
    }
    patch.remove("created_at");
    for name in patch.keys() {
        map.remove(name);
    }
    let mut record = unsealed(sealer, kind, id, map)?;
    record.apply(Document::from_stored(patch));
    let at = written(now);
    record.set("id", id);
    record.set("updated_at", at.as_str());
    (kind.check)(&record)?;
    let text = sealed(sealer, kind, id, &record)?;
    let sql = format!("UPDATE {} SET record = ?2, updated_at = ?3 WHERE id = ?1", kind.table);
    tx.execute(&sql, (id, text, at)).map_err(engine)?;
    tx.commit().map_err(engine)?;
    Ok(record)
}

fn stored(db: &Connection, kind: &Kind, id: &str) -> Result<Map<String, Value>, StoreError> {
    let sql = format!("SELECT record FROM {} WHERE id = ?1", kind.table);
    let mut query = db.prepare_cached(&sql).map_err(engine)?;
    let text: Option<String> = query.query_row([id], |row| row.get(0)).optional().map_err(engine)?;
    parsed(kind, id, &text.ok_or_else(|| kind.missing(id))?)
}

fn parsed(kind: &Kind, id: &str, text: &str) -> Result<Map<String, Value>, StoreError> {
    serde_json::from_str(text)
        .map_err(|e| StoreError::Engine(format!("{} {id}: its stored record is not a JSON object: {e}", kind.name)))
}

/// A secret that stands in the clear is refused like one that does not open: nothing here writes such a record.
fn unsealed(sealer: &Sealer, kind: &Kind, id: &str, mut map: Map<String, Value>) -> Result<Document, StoreError> {
    for (field, context) in kind.secrets(id) {
        let Some(value) = map.get_mut(field.name).filter(|v| !v.is_null()) else { continue };
        let secret = sealer.unseal(&context, value.as_str().unwrap_or_default())?;
        *value = match field.guard {
            Guard::SecretMap => serde_json::from_str(secret.expose())
                .map_err(|_| StoreError::Engine(format!("{context}: what was sealed is not JSON")))?,
            _ => Value::from(secret.expose()),
        };
    }
    Ok(Document::from_stored(map))
}

fn sealed(sealer: &Sealer, kind: &Kind, id: &str, record: &Document) -> Result<String, StoreError> {
    let mut map = record.clone().into_map();
    for (field, context) in kind.secrets(id) {
        let Some(value) = map.get_mut(field.name) else { continue };
        let text = match (field.guard, &*value) {
            (Guard::Secret, Value::String(text)) => sealer.seal(&context, text)?,
            (_, other) => sealer.seal(&context, &other.to_string())?,
        };
        *value = Value::String(text);
    }
    Ok(Value::Object(map).to_string())
}

fn written(now: Time) -> String {
    now.to_rfc3339_opts(SecondsFormat::Millis, true)
}
