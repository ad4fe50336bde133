//! Accounts and keys in Redis: a hash for each record, a field for each of its fields, its value as JSON.
//!
//! Reached through [`Accounts`] and [`Keys`]. Both kinds share this code and differ in a [`Kind`]. A patch reads
//! the record, checks what would come of it, and writes its own fields alone, if `#version` is still what was
//! read; else it begins again. It does not open the fields it replaces, so that a record whose sealing key was
//! lost can be mended by sending its secrets again.

use super::commit::{Commit, Sent};
use super::keys::Tag;
use super::link::Wire;
use super::{RedisStore, Shared};
use crate::domain::account::{self, Account};
use crate::domain::document::{Document, Field, FieldError, Guard};
use crate::domain::key::{self, Key};
use crate::domain::{AccountId, KeyId, Time};
use crate::store::{Accounts, Keys, StoreError};
use async_trait::async_trait;
use chrono::SecondsFormat;
use deadpool_redis::redis::cmd;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The field that changes with every write. No field of a document begins with `#`.
const VERSION: &str = "#version";

/// How often a patch begins again when others write the same record.
const TRIES: usize = 100;

/// What accounts and keys do not have in common.
pub(super) struct Kind {
    pub tag: Tag,
    pub name: &'static str,
    fields: &'static [Field],
    /// Validates a record and gives its id.
    check: fn(&Document) -> Result<String, FieldError>,
    /// True if no two records may have the same `hash`.
    hashed: bool,
}

pub(super) static ACCOUNT: Kind = Kind {
    tag: Tag::Accounts,
    name: "account",
    fields: account::FIELDS,
    check: |record| Account::parse(record).map(|a| a.id.as_str().to_owned()),
    hashed: false,
};

pub(super) static KEY: Kind = Kind {
    tag: Tag::Keys,
    name: "key",
    fields: key::FIELDS,
    check: |record| Key::parse(record).map(|k| k.id.as_str().to_owned()),
    hashed: true,
};

macro_rules! face {
    ($face:ident, $kind:ident, $id:ty) => {
        #[async_trait]
        impl $face for RedisStore {
            async fn list(&self) -> Result<Vec<Document>, StoreError> {
                self.run(|shared| async move { shared.list(&$kind).await }).await
            }
            async fn load(&self, id: &$id) -> Result<Document, StoreError> {
                let id = id.as_str().to_owned();
                self.run(|shared| async move { shared.load(&$kind, &id).await }).await
            }
            async fn insert(&self, record: Document, now: Time) -> Result<Document, StoreError> {
                self.run(move |shared| async move { shared.insert(&$kind, record, now).await }).await
            }
            async fn patch(&self, id: &$id, patch: Document, now: Time) -> Result<Document, StoreError> {
                let id = id.as_str().to_owned();
                self.run(move |shared| async move { shared.patch(&$kind, &id, patch, now).await }).await
            }
            async fn remove(&self, id: &$id) -> Result<(), StoreError> {
                let id = id.as_str().to_owned();
                self.run(|shared| async move { shared.remove(&$kind, &id).await }).await
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

    /// How the field `name` of the record `id` is guarded, with the context it is sealed for.
    fn secret(&self, id: &str, name: &str) -> Option<(Guard, String)> {
        let field = self.fields.iter().find(|f| f.name == name)?;
        let sealed = matches!(field.guard, Guard::Secret | Guard::SecretMap);
        sealed.then(|| (field.guard, format!("{} {id} {name}", self.name)))
    }
}

/// A record as it lies in Redis.
struct Stored {
    version: Option<String>,
    fields: BTreeMap<String, String>,
}

impl Stored {
    fn from(raw: Vec<(String, String)>) -> Self {
        let mut fields: BTreeMap<String, String> = raw.into_iter().collect();
        Self { version: fields.remove(VERSION), fields }
    }
}

impl Shared {
    /// A record that does not open is left out, loudly: it must not take all the others with it.
    async fn list(&self, kind: &Kind) -> Result<Vec<Document>, StoreError> {
        let mut wire = self.link.wire().await?;
        let mut ids: Vec<String> = wire.ask(cmd("SMEMBERS").arg(self.names.ids(kind.tag))).await?;
        ids.sort_unstable();
        let reads: Vec<_> = ids.iter().map(|id| cmd("HGETALL").arg(self.names.record(kind.tag, id)).clone()).collect();
        let found: Vec<Vec<(String, String)>> = wire.ask_many(&reads).await?;
        let mut records = Vec::with_capacity(found.len());
        for (id, raw) in ids.iter().zip(found) {
            let stored = if raw.is_empty() { Err(kind.missing(id)) } else { Ok(Stored::from(raw)) };
            match stored.and_then(|stored| self.opened(kind, id, stored.fields)) {
                Ok(record) => records.push(record),
                Err(error) => tracing::error!(kind = kind.name, id, %error, "a stored record is left out"),
            }
        }
        Ok(records)
    }

    async fn load(&self, kind: &Kind, id: &str) -> Result<Document, StoreError> {
        let stored = self.stored(&mut self.link.wire().await?, kind, id).await?;
        self.opened(kind, id, stored.fields)
    }

    async fn insert(&self, kind: &Kind, sent: Document, now: Time) -> Result<Document, StoreError> {
        self.whole()?;
        // Laid over nothing, so that no `null` is stored.
        let mut record = Document::default();
        record.apply(sent);
        let id = (kind.check)(&record)?;
        let at = written(now);
        record.set("id", id.as_str());
        record.set("created_at", at.as_str());
        record.set("updated_at", at.as_str());
        let key = self.names.record(kind.tag, &id);
        let mut commit = Commit::new(&self.names, kind.tag);
        commit.expect(&key, "id", None);
        self.claim_hash(&mut commit, kind, &id, None, &record);
        commit.run("HSET", &key, 2, self.sealed(kind, &id, record.clone().into_map())?);
        commit.run("SADD", &self.names.ids(kind.tag), 1, [id.as_str()]);
        match self.commit(&mut self.link.wire().await?, &commit).await? {
            Sent::Done => Ok(record),
            _ => Err(StoreError::Duplicate(format!("{} {id}", kind.name))),
        }
    }

    async fn patch(&self, kind: &Kind, id: &str, patch: Document, now: Time) -> Result<Document, StoreError> {
        self.whole()?;
        let mut patch = patch.into_map();
        if patch.get("id").is_some_and(|sent| sent.as_str() != Some(id)) {
            return Err(FieldError::new("id", "cannot be changed; leave it out, or make a new record").into());
        }
        patch.remove("created_at");
        patch.insert("id".to_owned(), id.into());
        patch.insert("updated_at".to_owned(), written(now).into());
        let key = self.names.record(kind.tag, id);
        // Our own patches take turns: a hundred that race for one record would keep every connection busy retrying.
        let _turn = self.link.bounded(self.patching.lock()).await?;
        let mut wire = self.link.wire().await?;
        for _ in 0..TRIES {
            let Stored { version, fields } = self.stored(&mut wire, kind, id).await?;
            let stored_id = fields.get("id").cloned();
            let before = fields.get("hash").and_then(|text| serde_json::from_str::<String>(text).ok());
            let kept = fields.into_iter().filter(|(name, _)| !patch.contains_key(name)).collect();
            let mut record = self.opened(kind, id, kept)?;
            record.apply(Document::from_stored(patch.clone()));
            (kind.check)(&record)?;

            let (gone, set): (Map<_, _>, Map<_, _>) = patch.clone().into_iter().partition(|(_, value)| value.is_null());
            let mut commit = Commit::new(&self.names, kind.tag);
            commit.expect(&key, VERSION, version.as_deref());
            // A record of the first schema has no version, and neither has one that was removed.
            commit.expect(&key, "id", stored_id.as_deref());
            self.claim_hash(&mut commit, kind, id, before, &record);
            commit.run("HSET", &key, 2, self.sealed(kind, id, set)?);
            commit.run("HDEL", &key, 1, gone.into_iter().map(|(name, _)| name));
            match self.commit(&mut wire, &commit).await? {
                Sent::Done => return Ok(record),
                Sent::Unmet(2..) => return Err(StoreError::Duplicate(format!("{} with this hash", kind.name))),
                _ => {}
            }
        }
        Err(StoreError::Engine(format!("{} {id}: others wrote it {TRIES} times meanwhile", kind.name)))
    }

    async fn remove(&self, kind: &Kind, id: &str) -> Result<(), StoreError> {
        let key = self.names.record(kind.tag, id);
        let mut wire = self.link.wire().await?;
        for _ in 0..TRIES {
            let Stored { version, fields } = self.stored(&mut wire, kind, id).await?;
            let mut commit = Commit::new(&self.names, kind.tag);
            commit.expect(&key, VERSION, version.as_deref());
            if let Some(hash) = fields.get("hash").filter(|_| kind.hashed)
                && let Ok(hash) = serde_json::from_str::<String>(hash)
            {
                commit.run("HDEL", &self.names.hashes(), 1, [hash]);
            }
            commit.run("SREM", &self.names.ids(kind.tag), 1, [id]);
            commit.run_bare("DEL", &key);
            if kind.tag == Tag::Accounts {
                commit.run_bare("DEL", &self.names.events(id));
            }
            if self.commit(&mut wire, &commit).await? == Sent::Done {
                return Ok(());
            }
        }
        Err(StoreError::Engine(format!("{} {id}: others wrote it {TRIES} times meanwhile", kind.name)))
    }

    /// Puts a record as it is, times included, in place of what may be there: for [`crate::store::copy`].
    pub(super) async fn restore(&self, kind: &Kind, wire: &mut Wire, record: Document) -> Result<(), StoreError> {
        let id = (kind.check)(&record)?;
        let key = self.names.record(kind.tag, &id);
        let mut commit = Commit::new(&self.names, kind.tag);
        if kind.hashed
            && let Some(hash) = record.get("hash").and_then(Value::as_str)
        {
            commit.run("HSET", &self.names.hashes(), 2, [hash, &id]);
        }
        commit.run_bare("DEL", &key);
        commit.run("HSET", &key, 2, self.sealed(kind, &id, record.into_map())?);
        commit.run("SADD", &self.names.ids(kind.tag), 1, [id]);
        self.commit(wire, &commit).await.map(drop)
    }

    /// Puts the record's hash in the index, if nobody else has it, in place of the hash it had `before`.
    fn claim_hash(&self, commit: &mut Commit, kind: &Kind, id: &str, before: Option<String>, record: &Document) {
        let after = record.get("hash").and_then(Value::as_str);
        if !kind.hashed || before.as_deref() == after {
            return;
        }
        if let Some(hash) = after {
            commit.expect(&self.names.hashes(), hash, None);
            commit.run("HSET", &self.names.hashes(), 2, [hash, id]);
        }
        commit.run("HDEL", &self.names.hashes(), 1, before);
    }

    async fn stored(&self, wire: &mut Wire, kind: &Kind, id: &str) -> Result<Stored, StoreError> {
        let raw: Vec<(String, String)> = wire.ask(cmd("HGETALL").arg(self.names.record(kind.tag, id))).await?;
        if raw.is_empty() { Err(kind.missing(id)) } else { Ok(Stored::from(raw)) }
    }

    /// A secret that stands in the clear is refused like one that does not open: nothing here writes such a record.
    fn opened(&self, kind: &Kind, id: &str, fields: BTreeMap<String, String>) -> Result<Document, StoreError> {
        let mut map = Map::new();
        for (name, text) in fields {
            let wrong = || StoreError::Engine(format!("{} {id}: its stored {name} is not JSON", kind.name));
            let mut value: Value = serde_json::from_str(&text).map_err(|_| wrong())?;
            if let Some((guard, context)) = kind.secret(id, &name) {
                let secret = self.sealer.unseal(&context, value.as_str().unwrap_or_default())?;
                value = match guard {
                    Guard::SecretMap => serde_json::from_str(secret.expose())
                        .map_err(|_| StoreError::Engine(format!("{context}: what was sealed is not JSON")))?,
                    _ => Value::from(secret.expose()),
                };
            }
            map.insert(name, value);
        }
        Ok(Document::from_stored(map))
    }

    /// Names and values to store, a new version among them.
    fn sealed(&self, kind: &Kind, id: &str, map: Map<String, Value>) -> Result<Vec<String>, StoreError> {
        let mut out = vec![VERSION.to_owned(), self.next_version()];
        for (name, value) in map.into_iter().filter(|(name, _)| !name.starts_with('#')) {
            let value = match (kind.secret(id, &name), value) {
                (Some((Guard::Secret, context)), Value::String(text)) => self.sealer.seal(&context, &text)?.into(),
                (Some((_, context)), other) => self.sealer.seal(&context, &other.to_string())?.into(),
                (None, value) => value,
            };
            out.extend([name, value.to_string()]);
        }
        Ok(out)
    }
}

fn written(now: Time) -> String {
    now.to_rfc3339_opts(SecondsFormat::Millis, true)
}
