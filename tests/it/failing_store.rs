//! A store that panics when it is told to, to prove that the actors above it survive.

use async_trait::async_trait;
use claude_relay::domain::document::Document;
use claude_relay::domain::{AccountId, Time};
use claude_relay::store::{Accounts, Settlement, StoreError, Stores, UsageFilter, UsageLedger, UsageRow};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// How many of the next writes panic.
#[derive(Clone, Default)]
pub struct Fuse(Arc<AtomicU32>);

impl Fuse {
    /// The next `n` writes panic.
    pub fn light(&self, n: u32) {
        self.0.store(n, SeqCst);
    }

    /// True once as many writes have panicked.
    pub fn is_burnt(&self) -> bool {
        self.0.load(SeqCst) == 0
    }

    fn burn(&self) {
        let lit = self.0.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok();
        assert!(!lit, "a store that panics, as this test wants");
    }
}

/// `stores` with a fuse in front of new accounts, and one in front of settlements.
pub fn failing(stores: Stores, accounts: &Fuse, usage: &Fuse) -> Stores {
    Stores {
        accounts: Arc::new(FailingAccounts(stores.accounts.clone(), accounts.clone())),
        usage: Arc::new(FailingUsage(stores.usage.clone(), usage.clone())),
        ..stores
    }
}

struct FailingAccounts(Arc<dyn Accounts>, Fuse);

#[async_trait]
impl Accounts for FailingAccounts {
    async fn list(&self) -> Result<Vec<Document>, StoreError> {
        self.0.list().await
    }
    async fn load(&self, id: &AccountId) -> Result<Document, StoreError> {
        self.0.load(id).await
    }
    async fn insert(&self, record: Document, now: Time) -> Result<Document, StoreError> {
        self.1.burn();
        self.0.insert(record, now).await
    }
    async fn patch(&self, id: &AccountId, patch: Document, now: Time) -> Result<Document, StoreError> {
        self.0.patch(id, patch, now).await
    }
    async fn remove(&self, id: &AccountId) -> Result<(), StoreError> {
        self.0.remove(id).await
    }
}

struct FailingUsage(Arc<dyn UsageLedger>, Fuse);

#[async_trait]
impl UsageLedger for FailingUsage {
    async fn settle(&self, piece: Settlement) -> Result<(), StoreError> {
        self.1.burn();
        self.0.settle(piece).await
    }
    async fn offsets(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.0.offsets().await
    }
    async fn close_crashed(&self, boot: &str) -> Result<u64, StoreError> {
        self.0.close_crashed(boot).await
    }
    async fn forget(&self, file: &str) -> Result<(), StoreError> {
        self.0.forget(file).await
    }
    async fn sums(&self, filter: &UsageFilter) -> Result<Vec<UsageRow>, StoreError> {
        self.0.sums(filter).await
    }
}
