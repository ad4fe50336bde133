//! The Redis engine: one server, Sentinel or Cluster, owned by one relay at a time.
//!
//! Opened by start-up; afterwards the actors and the Admin API reach it through [`Stores`], the same faces as the
//! embedded engine has. Connections, timers and the renewal of the owner's claim live on one thread with a runtime
//! of its own: so neither a busy nor a dying arbiter takes a connection down or lets the claim run out, and what
//! was asked for is done even if whoever asked has gone. Nothing here is on a request's path.

mod commit;
mod engine;
mod events;
mod facts;
mod keys;
mod ledger;
mod link;
mod lock;
mod options;
mod records;
mod schema;
mod sums;
mod transfer;

pub use keys::SHARDS;
pub use lock::{Holder, LockError};
pub use options::{DEFAULT_PREFIX, RedisOptions, RedisUrl, RedisUrlError, check_prefix};
pub use schema::{MIGRATIONS, Migration, SchemaError};

use super::migration::{Forecast, Status};
use super::seal::Sealer;
use super::{StoreError, Stores};
use commit::{Commit, Sent};
use deadpool_redis::redis::cmd;
use engine::Engine;
use keys::{KeyNames, Tag};
use link::{Link, Wire};
use lock::{OwnerLock, Renewal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, watch};

/// Between two tries while waiting for Redis at start.
const RETRY: Duration = Duration::from_millis(500);

/// How long a store that is dropped tries to give its claim back.
const GOODBYE: Duration = Duration::from_secs(1);

/// Why there is no store. `Display` names the address, its password masked.
#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    /// Redis does not answer, or refuses the login.
    #[error("Redis cannot be used: {0}; is it running, and are address, user and password right?")]
    Unreachable(String),
    /// Another relay has it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Its data are not ours to use.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// It failed on the way.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What every operation shares.
struct Shared {
    link: Link,
    names: KeyNames,
    sealer: Arc<Sealer>,
    lock: OwnerLock,
    /// What the data were called when we came; an emptied Redis has another name, or none.
    birth: String,
    versions: AtomicU64,
    /// Held by the patch whose turn it is.
    patching: Mutex<()>,
    /// True when the claim was given back; held while it is renewed or given back, never both at once.
    released: Mutex<bool>,
    /// Redis has lost data: no record is written into what is left, until a restart begins anew.
    strange: AtomicBool,
    /// Why the store is not ours any more, once it is not.
    lost: watch::Sender<Option<String>>,
}

/// The store in Redis. Dropping it finishes what was asked for and gives the owner's claim back.
pub struct RedisStore {
    shared: Arc<Shared>,
    engine: Engine,
}

impl RedisStore {
    /// Connects, takes the owner's claim, and brings the schema up to date. Where the claim is that of a relay that
    /// died elsewhere, this waits until it has run out.
    ///
    /// # Errors
    /// When Redis cannot be reached (within [`RedisOptions::wait_at_start`]), belongs to another relay, or has data
    /// of a newer one.
    pub async fn connect(options: &RedisOptions, sealer: Arc<Sealer>) -> Result<Self, RedisError> {
        Self::connect_with(options, sealer, MIGRATIONS).await
    }

    /// As [`RedisStore::connect`], with other migrations: for tests of these.
    ///
    /// # Errors
    /// The same.
    pub async fn connect_with(
        options: &RedisOptions,
        sealer: Arc<Sealer>,
        migrations: &'static [Migration],
    ) -> Result<Self, RedisError> {
        let engine = Engine::start()?;
        let options = options.clone();
        let ttl = options.lock_ttl;
        let open = engine.spawn(async move { Shared::open(&options, sealer, migrations).await.map(Arc::new) });
        let shared = open.await.map_err(|_| StoreError::Engine("the store's thread has ended".to_owned()))??;
        engine.spawn_in_background(keep(shared.clone(), migrations, ttl / 3));
        Ok(Self { shared, engine })
    }

    /// A handle on this relay's claim, for start-up: to hear of its loss, and to give it back at the end.
    pub fn claim(&self) -> Claim {
        Claim { shared: self.shared.clone(), runtime: self.engine.handle() }
    }

    /// The faces of this store.
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

    /// Does `work` on the store's thread. A panic in it is answered as an error.
    async fn run<T: Send + 'static, F>(&self, work: impl FnOnce(Arc<Shared>) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let job = self.engine.spawn(work(self.shared.clone()));
        job.await.map_err(|_| StoreError::Engine("internal error: the job panicked or was cut off".to_owned()))?
    }
}

impl Drop for RedisStore {
    fn drop(&mut self) {
        let shared = self.shared.clone();
        drop(self.engine.spawn(async move { shared.release().await }));
    }
}

/// This relay's claim on its Redis.
#[derive(Clone)]
pub struct Claim {
    shared: Arc<Shared>,
    runtime: Handle,
}

impl Claim {
    /// Turns to `Some` with the reason when another relay has taken the store over: nothing is written from then
    /// on, and the process had better end.
    pub fn lost(&self) -> watch::Receiver<Option<String>> {
        self.shared.lost.subscribe()
    }

    /// Gives the claim back, so that the next relay need not wait for its end; the last thing to do with a store.
    pub async fn release(&self) {
        let shared = self.shared.clone();
        // An error is the store's own end, which gives the claim back too.
        drop(self.runtime.spawn(async move { shared.release().await }).await);
    }
}

/// Every migration as it stands in this Redis. Takes no lock and changes nothing.
///
/// # Errors
/// When Redis cannot be reached or read.
pub async fn status(options: &RedisOptions) -> Result<Vec<Status>, RedisError> {
    let (engine, options) = (Engine::start()?, options.clone());
    let look = engine.spawn(async move {
        let link = reach(&options).await?;
        Ok(schema::status(&link, &KeyNames::new(&options.key_prefix), MIGRATIONS).await?)
    });
    look.await.map_err(|_| StoreError::Engine("the store's thread has ended".to_owned()))?
}

/// What the pending migrations would do. Takes no lock and changes nothing.
///
/// # Errors
/// When Redis cannot be reached or read, or is newer than this binary.
pub async fn dry_run(options: &RedisOptions) -> Result<Vec<Forecast>, RedisError> {
    let (engine, options) = (Engine::start()?, options.clone());
    let look = engine.spawn(async move {
        let link = reach(&options).await?;
        Ok(schema::dry_run(&link, &KeyNames::new(&options.key_prefix), MIGRATIONS).await?)
    });
    look.await.map_err(|_| StoreError::Engine("the store's thread has ended".to_owned()))?
}

/// A link over which Redis has answered.
async fn reach(options: &RedisOptions) -> Result<Link, RedisError> {
    let link = Link::new(options)?;
    let (began, mut told) = (Instant::now(), false);
    loop {
        let answer = async { link.wire().await?.ask::<String>(&cmd("PING")).await }.await;
        let error = match answer {
            Ok(_) => return Ok(link),
            Err(error) => error,
        };
        let problem = match error {
            StoreError::Engine(problem) => problem,
            other => other.to_string(),
        };
        // Waiting mends none of these.
        let refused = ["WRONGPASS", "NOAUTH", "NOPERM", "AuthenticationFailed", "no permissions"];
        let hopeless = refused.iter().any(|word| problem.contains(word));
        if hopeless || began.elapsed() >= options.wait_at_start {
            return Err(RedisError::Unreachable(problem));
        }
        if !told {
            tracing::warn!(problem, patience = ?options.wait_at_start, "waiting for Redis");
            told = true;
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Renews the claim for as long as the store lives.
async fn keep(shared: Arc<Shared>, migrations: &'static [Migration], every: Duration) {
    let mut answers = true;
    loop {
        // After a failure there is less time left until the claim runs out.
        tokio::time::sleep(if answers { every } else { every.min(RETRY) }).await;
        let renewed = shared.renew(migrations).await;
        let answered = renewed.is_ok();
        match renewed {
            Ok(false) => return shared.lose(),
            Err(error) if answers => tracing::error!(%error, "Redis does not answer; usage stays in the journal"),
            Ok(true) if !answers => tracing::info!("Redis answers again"),
            _ => {}
        }
        answers = answered;
    }
}

impl Shared {
    async fn open(options: &RedisOptions, sealer: Arc<Sealer>, migrations: &[Migration]) -> Result<Self, RedisError> {
        let link = reach(options).await?;
        let names = KeyNames::new(&options.key_prefix);
        // Before the claim: whoever may not use these data must not keep others waiting for it.
        schema::check(&link, &names, migrations).await?;
        let lock = OwnerLock::take(&link, &names, options.lock_ttl, &options.key_prefix).await?;
        let shared = Self {
            link,
            names,
            sealer,
            lock,
            birth: String::new(),
            strange: AtomicBool::new(false),
            versions: AtomicU64::new(0),
            patching: Mutex::new(()),
            released: Mutex::new(false),
            lost: watch::Sender::new(None),
        };
        match shared.prepare(migrations).await {
            Ok(birth) => Ok(Self { birth, ..shared }),
            Err(error) => {
                shared.release().await;
                Err(error)
            }
        }
    }

    /// Brings the data up to date, and gives their name.
    async fn prepare(&self, migrations: &[Migration]) -> Result<String, RedisError> {
        schema::migrate(&self.link, &self.names, migrations, self.lock.token).await?;
        let mut wire = self.link.wire().await?;
        facts::advise(&mut wire, &self.names).await;
        Ok(facts::name_data(&mut wire, &self.names, self.lock.token).await?)
    }

    /// Gives the claim back, once.
    async fn release(&self) {
        let bye = async {
            let mut released = self.released.lock().await;
            if std::mem::replace(&mut *released, true) {
                return Ok(());
            }
            self.lock.release(&mut self.link.wire().await?, &self.names).await
        };
        if !matches!(tokio::time::timeout(GOODBYE, bye).await, Ok(Ok(()))) {
            tracing::warn!("the claim on Redis could not be given back; it runs out by itself");
        }
    }

    /// Writes, as the owner.
    async fn commit(&self, wire: &mut Wire, commit: &Commit) -> Result<Sent, StoreError> {
        let sent = commit.send(wire, self.lock.token).await?;
        if sent == Sent::Fenced {
            self.lose();
            return Err(StoreError::Engine("another relay has taken this Redis over".to_owned()));
        }
        Ok(sent)
    }

    /// An edit in what an emptied Redis has left would be taken for the whole by the next start.
    fn whole(&self) -> Result<(), StoreError> {
        if self.strange.load(Relaxed) {
            let address = self.link.address();
            return Err(StoreError::Engine(format!(
                "{address} has lost data since this relay started; restore a backup, or restart the relay to begin anew"
            )));
        }
        Ok(())
    }

    fn lose(&self) {
        let reason = format!("another relay has taken {} over", self.link.address());
        if self.lost.send_replace(Some(reason.clone())).is_none() {
            tracing::error!(reason, "this relay does not own its store any more and writes nothing more into it");
        }
    }

    /// False if the claim is lost.
    async fn renew(&self, migrations: &[Migration]) -> Result<bool, StoreError> {
        let released = self.released.lock().await;
        if *released {
            return Ok(true);
        }
        let mut wire = self.link.wire().await?;
        match self.lock.renew(&mut wire, &self.names).await? {
            Renewal::Held => Ok(true),
            Renewal::Lost => Ok(false),
            Renewal::Strange => {
                tracing::error!(address = self.link.address(), "Redis has lost data since this relay started");
                self.strange.store(true, Relaxed);
                let others = Tag::all().filter(|tag| *tag != Tag::Owner);
                self.lock.fence(&mut wire, &self.names, others).await?;
                // One connection may be all there is.
                drop(wire);
                let failed = |e: SchemaError| StoreError::Engine(e.to_string());
                schema::migrate(&self.link, &self.names, migrations, self.lock.token).await.map_err(failed)?;
                // Last: until then every renewal finds the same and does it again.
                self.lock.fence(&mut self.link.wire().await?, &self.names, [Tag::Owner].into_iter()).await?;
                Ok(true)
            }
        }
    }

    /// A version that no record had before.
    fn next_version(&self) -> String {
        format!("{}-{}", self.lock.token, self.versions.fetch_add(1, Relaxed))
    }
}
