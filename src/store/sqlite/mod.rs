//! The embedded engine: one SQLite file, one connection, one thread that owns it.
//!
//! Opened by start-up; afterwards the actors and the Admin API reach it through [`Stores`]. Work is sent to the
//! thread as closures, so that no blocking call runs on an async thread; a job that was sent is done even if
//! whoever asked has gone. Everything is synced at every commit (see `configure`).

mod events;
mod ledger;
mod records;
mod schema;
mod transfer;

use super::migration::{Forecast, Status};
use super::seal::Sealer;
use super::{Facts, StoreError, Stores};
use async_trait::async_trait;
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long a statement waits for a lock that another process (an operator's `sqlite3`) holds.
const BUSY: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// The store in one SQLite file. Dropping it finishes what was asked for and closes the file.
pub struct SqliteStore {
    /// `None` only while dropping.
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    sealer: Arc<Sealer>,
}

impl SqliteStore {
    /// Opens or creates the file at `path` with mode 0600 and brings its schema up to date. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Engine`] when the file cannot be opened, belongs to a newer relay, or was migrated by
    /// other scripts than ours.
    pub fn open(path: &Path, sealer: Arc<Sealer>) -> Result<Self, StoreError> {
        let named = |e: &dyn std::fmt::Display| StoreError::Engine(format!("{}: {e}", path.display()));
        make_private(path).map_err(|e| named(&e))?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut db = Connection::open_with_flags(path, flags).map_err(|e| named(&e))?;
        configure(&db).map_err(|e| named(&e))?;
        schema::migrate(&mut db).map_err(|e| named(&e))?;
        let (jobs, inbox) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new()
            .name("store-sqlite".to_owned())
            .spawn(move || inbox.into_iter().for_each(|job| job(&mut db)))
            .map_err(|e| named(&e))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), sealer })
    }

    /// The five faces of this store.
    pub fn into_stores(self) -> Stores {
        let store = Arc::new(self);
        Stores {
            accounts: store.clone(),
            keys: store.clone(),
            usage: store.clone(),
            events: store.clone(),
            facts: store.clone(),
            transfer: store,
        }
    }

    /// Does `work` on the store's thread. A panic in it is answered as an error, and its transaction is rolled
    /// back while it unwinds.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let closed = || StoreError::Engine("the store's thread has ended".to_owned());
        let (reply, answer) = oneshot::channel();
        let job = Box::new(move |db: &mut Connection| {
            let result = catch_unwind(AssertUnwindSafe(|| work(db)));
            let result = result.unwrap_or_else(|_| {
                tracing::error!("a job of the store panicked");
                Err(StoreError::Engine("internal error: the job panicked".to_owned()))
            });
            // Whoever asked may have gone; the work is done all the same.
            let _ = reply.send(result);
        });
        self.jobs.as_ref().ok_or_else(closed)?.send(job).map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }
}

impl Drop for SqliteStore {
    /// Waits for the thread, so that whoever opens the file next finds it closed and all of it written.
    fn drop(&mut self) {
        self.jobs = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the store's thread panicked");
        }
    }
}

#[async_trait]
impl Facts for SqliteStore {
    async fn fact(&self, name: &str) -> Result<Option<String>, StoreError> {
        let name = name.to_owned();
        self.run(move |db| {
            let mut query = db.prepare_cached("SELECT value FROM facts WHERE name = ?1").map_err(engine)?;
            query.query_row([name], |row| row.get(0)).optional().map_err(engine)
        })
        .await
    }

    async fn set_fact(&self, name: &str, value: &str) -> Result<(), StoreError> {
        let fact = [name.to_owned(), value.to_owned()];
        self.run(move |db| {
            let sql = "INSERT INTO facts(name, value) VALUES (?1, ?2)
                       ON CONFLICT(name) DO UPDATE SET value = excluded.value";
            db.prepare_cached(sql).and_then(|mut s| s.execute(fact)).map(drop).map_err(engine)
        })
        .await
    }

    async fn check(&self) -> Result<(), StoreError> {
        // The write lock and a write, taken back: proves as much as can be without a sync at every probe.
        self.run(|db| {
            let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(engine)?;
            tx.execute("INSERT OR REPLACE INTO facts(name, value) VALUES ('check', '')", []).map_err(engine)?;
            tx.rollback().map_err(engine)
        })
        .await
    }
}

/// Every migration as it stands in the file at `path`, which is only read. Blocks.
///
/// # Errors
/// [`StoreError::Engine`] when there is no such database.
pub fn status(path: &Path) -> Result<Vec<Status>, StoreError> {
    let named = |e: &dyn std::fmt::Display| StoreError::Engine(format!("{}: {e}", path.display()));
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(|e| named(&e))?;
    schema::status(&db).map_err(|e| named(&e))
}

/// Tries the pending migrations on the file at `path` and takes them back. Blocks.
///
/// # Errors
/// [`StoreError::Engine`] when there is no such database, or one of them fails.
pub fn dry_run(path: &Path) -> Result<Vec<Forecast>, StoreError> {
    let named = |e: &dyn std::fmt::Display| StoreError::Engine(format!("{}: {e}", path.display()));
    let mut db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(|e| named(&e))?;
    schema::dry_run(&mut db).map_err(|e| named(&e))
}

/// `FULL` (not `NORMAL`, which after a power loss may have forgotten the last commits): an edit that was
/// confirmed must hold, and a journal file is removed on the strength of a committed offset. It costs one sync
/// a commit, and commits are edits by people and batches of usage.
fn configure(db: &Connection) -> rusqlite::Result<()> {
    db.busy_timeout(BUSY)?;
    let mode: String = db.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        tracing::warn!(mode, "the file system does not carry SQLite's WAL; the store will be slower");
    }
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "foreign_keys", true)?;
    db.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// SQLite gives its WAL the mode of the database, so it is enough that the file is private before it opens it.
fn make_private(path: &Path) -> std::io::Result<()> {
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "others could read the database; its mode is now 600");
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

/// What SQLite said, as a store's error.
fn engine(error: rusqlite::Error) -> StoreError {
    StoreError::Engine(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Secret;

    fn open(path: &Path) -> Result<SqliteStore, StoreError> {
        let key = Secret::new("ab".repeat(32));
        SqliteStore::open(path, Arc::new(Sealer::open_or_create(path, Some(&key)).unwrap()))
    }

    #[actix_rt::test]
    async fn a_panic_in_a_job_is_an_error_and_leaves_no_transaction_behind() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir.path().join("db")).unwrap();
        let result: Result<(), _> = store
            .run(|db| {
                let tx = db.transaction().map_err(engine)?;
                tx.execute("INSERT INTO facts VALUES ('half', 'done')", []).map_err(engine)?;
                panic!("on purpose")
            })
            .await;
        assert!(matches!(result, Err(StoreError::Engine(_))));
        store.check().await.unwrap();
        assert_eq!(store.fact("half").await.unwrap(), None);
    }

    #[actix_rt::test]
    async fn what_was_asked_is_done_though_nobody_waits_and_the_store_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir.path().join("db")).unwrap();
        store.jobs.as_ref().unwrap().send(Box::new(|_| std::thread::sleep(Duration::from_millis(50)))).unwrap();
        for n in 0..10 {
            let name = n.to_string();
            let mut asked = Box::pin(store.set_fact(&name, "x"));
            // Polled once, so that it is sent, and dropped before its answer.
            std::future::poll_fn(|cx| std::task::Poll::Ready(asked.as_mut().poll(cx).is_pending())).await;
        }
        drop(store);
        assert_eq!(open(&dir.path().join("db")).unwrap().fact("9").await.unwrap().as_deref(), Some("x"));
    }

    #[test]
    fn the_file_is_private_even_if_it_was_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let store = open(&path).unwrap();
        for entry in fs::read_dir(dir.path()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
        }
        drop(store);
    }
}
