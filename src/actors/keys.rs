//! The relay's keys as every worker sees them: a snapshot by hash, read before a body is buffered.
//!
//! Not an actor, since checking a key must cost no message. An entry is shared and changed in place: a
//! revocation holds for every worker and every running call the moment it is made, and a key's slots survive
//! every edit. Edits go through one lock together with the store, so that both see them in the same order.

use crate::domain::document::Document;
use crate::domain::slots::Slots;
use crate::domain::{Key, KeyHash, KeyId, Time};
use crate::store::{Keys, StoreError};
use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// What stands in for "no limit"; a key's calls are counted all the same.
const UNLIMITED: u32 = u32::MAX;

/// The wait before a store that failed is asked again what became of an edit.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// One key.
#[derive(Debug)]
pub struct KeyEntry {
    /// Its identity.
    pub id: KeyId,
    hash: KeyHash,
    key: ArcSwap<Key>,
    slots: Arc<Slots>,
    /// Ends every call of the relay, this key's included.
    all: CancellationToken,
    revoked: ArcSwap<CancellationToken>,
}

impl KeyEntry {
    /// An entry for `key`, for tests that send `Route` themselves as much as for the ring.
    pub fn new(key: Key) -> Arc<Self> {
        Self::under(key, &CancellationToken::new())
    }

    fn under(key: Key, all: &CancellationToken) -> Arc<Self> {
        let entry = Self {
            id: key.id.clone(),
            hash: key.hash,
            slots: Slots::new(key.concurrency_limit.unwrap_or(UNLIMITED)),
            revoked: ArcSwap::from_pointee(all.child_token()),
            all: all.clone(),
            key: ArcSwap::from_pointee(key),
        };
        entry.put(entry.key.load_full());
        Arc::new(entry)
    }

    /// The key as it is now.
    pub fn key(&self) -> Arc<Key> {
        self.key.load_full()
    }

    /// Its calls.
    pub fn slots(&self) -> &Arc<Slots> {
        &self.slots
    }

    /// Fires when the key is revoked, or the relay ends every call; running calls end by it.
    pub fn revoked(&self) -> CancellationToken {
        CancellationToken::clone(&self.revoked.load())
    }

    fn put(&self, key: Arc<Key>) {
        self.slots.set_limit(key.concurrency_limit.unwrap_or(UNLIMITED));
        let active = key.active;
        self.key.store(key);
        match (active, self.revoked.load().is_cancelled()) {
            (false, _) => self.revoked.load().cancel(),
            (true, true) => self.revoked.store(Arc::new(self.all.child_token())),
            (true, false) => {}
        }
    }
}

/// Every key.
pub struct KeyRing {
    store: Arc<dyn Keys>,
    by_hash: ArcSwap<HashMap<KeyHash, Arc<KeyEntry>>>,
    edits: Mutex<()>,
    all: CancellationToken,
}

impl KeyRing {
    /// Loads every key from the store.
    ///
    /// # Errors
    /// When the store cannot be read. A record that does not parse is left out and logged.
    pub async fn load(store: Arc<dyn Keys>) -> Result<Arc<Self>, StoreError> {
        let (mut map, all) = (HashMap::new(), CancellationToken::new());
        for doc in store.list().await? {
            match Key::parse(&doc) {
                Ok(key) => drop(map.insert(key.hash, KeyEntry::under(key, &all))),
                Err(error) => tracing::error!(%error, id = ?doc.get("id"), "a stored key is left out"),
            }
        }
        Ok(Arc::new(Self { store, by_hash: ArcSwap::from_pointee(map), edits: Mutex::new(()), all }))
    }

    /// The key that was presented, if it is one of ours; usable or not.
    pub fn find(&self, presented: &str) -> Option<Arc<KeyEntry>> {
        let hash = KeyHash::of(presented);
        self.by_hash.load().get(&hash).filter(|entry| entry.hash.matches(&hash)).cloned()
    }

    /// Every entry, in no order.
    pub fn entries(&self) -> Vec<Arc<KeyEntry>> {
        self.by_hash.load().values().cloned().collect()
    }

    /// Stores a new key; it holds on every worker when this returns.
    ///
    /// # Errors
    /// What the store says.
    pub async fn create(self: &Arc<Self>, record: Document, now: Time) -> Result<Document, StoreError> {
        let ring = self.clone();
        whole(async move { ring.create_now(record, now).await }).await
    }

    async fn create_now(self: &Arc<Self>, record: Document, now: Time) -> Result<Document, StoreError> {
        let _one = self.edits.lock().await;
        let id = record.get("id").and_then(|id| id.as_str()).map(KeyId::new);
        let stored = self.store.insert(record, now).await;
        match &stored {
            Ok(stored) => self.take(Key::parse(stored)?),
            Err(StoreError::Engine(_)) => id.iter().for_each(|id| self.read_again(id)),
            Err(_) => {}
        }
        stored
    }

    /// Changes a key; a revocation holds, and running calls end, when this returns.
    ///
    /// # Errors
    /// What the store says.
    pub async fn patch(self: &Arc<Self>, id: &KeyId, patch: Document, now: Time) -> Result<Document, StoreError> {
        let (ring, id) = (self.clone(), id.clone());
        whole(async move { ring.patch_now(&id, patch, now).await }).await
    }

    async fn patch_now(self: &Arc<Self>, id: &KeyId, patch: Document, now: Time) -> Result<Document, StoreError> {
        let _one = self.edits.lock().await;
        let stored = self.store.patch(id, patch, now).await;
        match &stored {
            Ok(stored) => self.take(Key::parse(stored)?),
            Err(StoreError::Missing(_)) => self.drop_entry(id),
            Err(StoreError::Engine(_)) => self.read_again(id),
            Err(_) => {}
        }
        stored
    }

    /// Takes a key away; running calls end.
    ///
    /// # Errors
    /// What the store says.
    pub async fn remove(self: &Arc<Self>, id: &KeyId) -> Result<(), StoreError> {
        let (ring, id) = (self.clone(), id.clone());
        whole(async move { ring.remove_now(&id).await }).await
    }

    async fn remove_now(self: &Arc<Self>, id: &KeyId) -> Result<(), StoreError> {
        let _one = self.edits.lock().await;
        let removed = self.store.remove(id).await;
        match &removed {
            // What the store does not have must not open anything here either.
            Ok(()) | Err(StoreError::Missing(_)) => self.drop_entry(id),
            Err(StoreError::Engine(_)) => self.read_again(id),
            Err(_) => {}
        }
        removed
    }

    /// A store that fails may have done what was asked all the same: the record is read until it answers.
    fn read_again(self: &Arc<Self>, id: &KeyId) {
        let (ring, id) = (self.clone(), id.clone());
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(READ_AGAIN).await;
                let _one = ring.edits.lock().await;
                match ring.store.load(&id).await.and_then(|doc| Ok(Key::parse(&doc)?)) {
                    Ok(key) => return ring.take(key),
                    Err(StoreError::Missing(_)) => return ring.drop_entry(&id),
                    Err(error) => tracing::warn!(%error, key = %id, "whether a key's edit was stored is not known yet"),
                }
            }
        });
    }

    fn take(&self, key: Key) {
        match self.by_hash.load().get(&key.hash) {
            Some(entry) => entry.put(Arc::new(key)),
            None => self.rebuild(|map| drop(map.insert(key.hash, KeyEntry::under(key.clone(), &self.all)))),
        }
    }

    fn drop_entry(&self, id: &KeyId) {
        for entry in self.entries().into_iter().filter(|e| e.id == *id) {
            entry.revoked.load().cancel();
            self.rebuild(|map| drop(map.remove(&entry.hash)));
        }
    }

    /// One record, as the store has it.
    ///
    /// # Errors
    /// What the store says.
    pub async fn show(&self, id: &KeyId) -> Result<Document, StoreError> {
        self.store.load(id).await
    }

    /// Every record, as the store has it.
    ///
    /// # Errors
    /// What the store says.
    pub async fn list(&self) -> Result<Vec<Document>, StoreError> {
        self.store.list().await
    }

    /// Ends every running call of every key.
    pub fn end_all_calls(&self) {
        self.all.cancel();
    }

    fn rebuild(&self, edit: impl Fn(&mut HashMap<KeyHash, Arc<KeyEntry>>)) {
        self.by_hash.rcu(|old| {
            let mut map = HashMap::clone(old);
            edit(&mut map);
            map
        });
    }
}

/// An edit runs to its end even if whoever asked for it leaves in between: what is stored and what holds must not
/// part.
async fn whole<T: Send + 'static>(
    edit: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    let done = tokio::spawn(edit).await;
    done.unwrap_or_else(|error| Err(StoreError::Engine(format!("the edit did not end: {error}"))))
}
