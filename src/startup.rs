//! From settings to a running relay, and from a signal to a clean end. Called by the CLI and by the tests, which
//! run the same `build`.

mod files;
mod listener;

use crate::actors::front::Drain;
use crate::actors::ledger::Flush;
use crate::actors::{self, Actors, Parts};
use crate::clock::Clock;
use crate::domain::health::Policy;
use crate::domain::{AccountId, KeyHash, Secret, document::Document};
use crate::http::admin::accounts::DEMO;
use crate::http::admin::token::{self, AdminToken};
use crate::http::span::CallSpan;
use crate::http::{self, Shared, Worker};
use crate::settings::Settings;
use crate::store::journal::{JournalError, JournalHealth, JournalWriter, Settler};
use crate::store::seal::Sealer;
use crate::store::sqlite::SqliteStore;
use crate::store::{StoreError, Stores};
use crate::upstream::dial::{Dialer, Timeouts};
use crate::upstream::probe;
use actix_web::dev::ServerHandle;
use actix_web::web::{self, Data};
use actix_web::{App, HttpServer};
use chrono::TimeDelta;
use files::DataDir;
use listener::Listener;
use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, Semaphore};
use tracing_actix_web::TracingLogger;

/// Why the relay did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another relay holds the data directory.
    #[error("{0} is in use by another relay; stop that one, or name another --data-dir")]
    Locked(String),
    /// A file or directory.
    #[error("{what}: {error}")]
    File {
        /// Which, and what was tried.
        what: String,
        /// What the system said.
        error: io::Error,
    },
    /// An address.
    #[error("cannot listen on {addr}: {error}; is another relay running, or the port taken?")]
    Listen {
        /// Which.
        addr: String,
        /// What the system said.
        error: io::Error,
    },
    /// The sealing key.
    #[error(transparent)]
    Seal(#[from] crate::store::seal::SealError),
    /// The sealing key is not the one the store was sealed with.
    #[error(
        "the store's secrets are sealed with key {stored}, but this start has key {given}; bring back the file \
         sealing.key or the value of CLAUDE_RELAY_SEALING_KEY"
    )]
    OtherSealingKey {
        /// The id of the key the store was sealed with.
        stored: String,
        /// The id of the key at hand.
        given: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Logging.
    #[error("{0}")]
    Log(String),
}

impl StartError {
    fn file(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::File { what, error }
    }
}

/// A relay that listens.
pub struct Application {
    shared: Shared,
    dir: DataDir,
    relay: (Listener, ServerHandle),
    admin: (Listener, ServerHandle),
    demo: Option<ServerHandle>,
    greeting: Greeting,
}

/// What is told once, at first start.
#[derive(Debug, Default)]
struct Greeting {
    admin_token: Option<Secret>,
    demo_key: Option<Secret>,
}

impl Application {
    /// Opens the store, starts the actors and both listeners.
    ///
    /// # Errors
    /// What kept it from starting; nothing is left running.
    pub async fn build(settings: Settings) -> Result<Self, StartError> {
        let settings = Arc::new(settings);
        let dir = DataDir::open(&settings.data_dir)?;
        listener::raise_descriptor_limit();
        let sealer = Arc::new(Sealer::open_or_create(&settings.data_dir, settings.sealing_key.as_ref())?);
        let stores = SqliteStore::open(&dir.path("relay.db"), sealer.clone())?.into_stores();
        same_sealing_key(&stores, &sealer).await?;
        let (boot, journal_dir) = (hex::encode(random::<8>()?), dir.path("journal"));
        let settler = open_journal(&journal_dir, &stores, &boot).await?;
        let (clock, journal) = (Clock::system(), Arc::new(JournalHealth::default()));
        let relay = Listener::bind(settings.listen.addrs())?;
        let admin = Listener::bind(settings.admin_listen.addrs())?;
        let actors = actors::start(parts(&settings, &stores, settler, &clock)).await?;
        let body_memory = Arc::new(Semaphore::new(settings.limits.body_memory_bytes / http::body::UNIT));
        let shared = Shared { settings, actors, stores, clock, body_memory, journal };

        let (admin_token, fresh_token) = admin_token(&shared.stores, &dir).await?;
        let (demo, demo_key) = demo(&shared).await?;
        let relay_server = serve_relay(&shared, &relay, journal_dir, boot)?;
        let admin_server = serve_admin(&shared, &admin, admin_token)?;
        dir.write_admin_url(admin.addr())?;
        let greeting = Greeting { admin_token: fresh_token, demo_key };
        Ok(Self { shared, dir, relay: (relay, relay_server), admin: (admin, admin_server), demo, greeting })
    }

    /// Where clients call.
    pub fn relay_addr(&self) -> SocketAddr {
        self.relay.0.addr()
    }

    /// Where operators call.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin.0.addr()
    }

    /// The actors, for tests that talk to them beside HTTP.
    pub fn actors(&self) -> &Actors {
        &self.shared.actors
    }

    /// Stops taking calls, lets running ones end within the drain timeout, settles the journal and closes.
    pub async fn stop(self) {
        let Self { shared, dir, relay: (listener, server), admin: (_, admin), demo, .. } = self;
        let _ = shared.actors.front.addr().send(Drain).await;
        server.pause().await;
        listener.refuse();
        let (deadline, bound) = (Instant::now(), shared.settings.drain_timeout);
        let busy = || shared.actors.outstanding().passes + shared.actors.outstanding().permits > 0;
        while busy() && deadline.elapsed() < bound {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let whole = !busy();
        if !whole {
            tracing::warn!(held = ?shared.actors.outstanding(), "the drain timeout is over: running calls are cut");
        }
        server.stop(whole).await;
        if let Some(demo) = demo {
            demo.stop(false).await;
        }
        match shared.actors.ledger.addr().send(Flush).await {
            Ok(Ok(())) => {}
            failed => tracing::error!(?failed, "the journal could not be settled; the next start settles it"),
        }
        admin.stop(false).await;
        shared.actors.stop();
        dir.remove_admin_url();
    }

    fn greet(&self) {
        let relay = self.relay_addr();
        println!("claude-relay {} listens on http://{relay}", env!("CARGO_PKG_VERSION"));
        println!("admin API on http://{}/admin, data in {}", self.admin_addr(), self.dir.root().display());
        if let Some(token) = &self.greeting.admin_token {
            println!(
                "\nThe admin token, shown this once (the local CLI reads it from the data directory):\n  {}",
                token.expose()
            );
        }
        if let Some(key) = &self.greeting.demo_key {
            println!("\nThe store is empty, so there is a demo account and one key. Try it:\n");
            println!("  curl -N http://{relay}/v1/messages \\\n    -H 'x-api-key: {}' \\", key.expose());
            println!("    -H 'content-type: application/json' -H 'anthropic-version: 2023-06-01' \\");
            println!("    -d '{DEMO_REQUEST}'\n");
            println!("Add a real account with `claude-relay account add --file FILE`; the demo account then retires.");
        }
    }
}

/// Runs until a signal; a second one ends the process at once.
///
/// # Errors
/// What kept it from starting.
pub fn serve(settings: Settings) -> Result<(), StartError> {
    let _flush_logs = crate::telemetry::init(&settings.log).map_err(StartError::Log)?;
    actix_web::rt::System::new().block_on(async {
        let mut terminate = signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut interrupt = signal(tokio::signal::unix::SignalKind::interrupt())?;
        let application = Application::build(settings).await?;
        application.greet();
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("shutting down; a second signal ends at once");
        tokio::select! {
            () = application.stop() => {}
            _ = terminate.recv() => std::process::exit(143),
            _ = interrupt.recv() => std::process::exit(130),
        }
        Ok(())
    })
}

fn signal(kind: tokio::signal::unix::SignalKind) -> Result<tokio::signal::unix::Signal, StartError> {
    tokio::signal::unix::signal(kind).map_err(StartError::file("signal handler"))
}

fn random<const N: usize>() -> Result<[u8; N], StartError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| StoreError::Engine(format!("no random numbers: {e}")))?;
    Ok(bytes)
}

fn timeouts(settings: &Settings) -> Timeouts {
    let upstream = &settings.upstream;
    Timeouts { connect: upstream.connect_timeout, first_byte: upstream.first_byte_timeout, idle: upstream.idle_timeout }
}

/// The name of the fact that tells by which key the store's secrets are sealed.
const SEALED_BY: &str = "sealing_key_id";

/// A relay that came up with another sealing key would leave every account out; better that it does not come up.
async fn same_sealing_key(stores: &Stores, sealer: &Sealer) -> Result<(), StartError> {
    match stores.facts.fact(SEALED_BY).await? {
        Some(id) if id != sealer.key_id() => {
            Err(StartError::OtherSealingKey { stored: id, given: sealer.key_id().into() })
        }
        Some(_) => Ok(()),
        None => Ok(stores.facts.set_fact(SEALED_BY, sealer.key_id()).await?),
    }
}

/// What a relay that was killed left in its journals is booked before the first call.
async fn open_journal(dir: &Path, stores: &Stores, boot: &str) -> Result<Arc<Mutex<Settler>>, StartError> {
    files::private_dir(dir)?;
    let settler = Settler::new(dir, stores.usage.clone(), boot);
    let mut settler = settler.map_err(StartError::file(dir.display().to_string()))?;
    let report = settler.recover().await?;
    if report.crashed > 0 {
        tracing::warn!(
            calls = report.crashed,
            "calls were running when the relay last ended; they are booked as relay_crashed"
        );
    }
    Ok(Arc::new(Mutex::new(settler)))
}

fn parts(settings: &Settings, stores: &Stores, settler: Arc<Mutex<Settler>>, clock: &Clock) -> Parts {
    let health = &settings.health;
    let span = |d: Duration| TimeDelta::from_std(d).unwrap_or(TimeDelta::hours(24));
    Parts {
        stores: stores.clone(),
        settler: Some(settler),
        settle_interval: settings.journal.settle_interval,
        clock: clock.clone(),
        policy: Policy {
            rate_limited_first: span(health.rate_limited_first),
            overloaded_first: span(health.overloaded_first),
            longest: span(health.longest),
            probe_first: span(health.probe_first),
            probe_longest: span(health.probe_longest),
        },
        probe: Arc::new(probe::prober(timeouts(settings), clock.clone())),
        probe_model: health.probe_model.clone(),
        on_fatal: Arc::new(|role| {
            tracing::error!(role, "an actor died three times within a minute; the process ends");
            // Left to the init system: a fault that comes back at once is not mended by trying.
            std::process::exit(70);
        }),
    }
}

/// The hash to check against, and the token itself if it was made just now.
async fn admin_token(stores: &Stores, dir: &DataDir) -> Result<(AdminToken, Option<Secret>), StartError> {
    let stored = stores.facts.fact(token::FACT).await?;
    if let Some(hash) = stored.as_deref().and_then(KeyHash::from_hex) {
        return Ok((AdminToken(hash), None));
    }
    let fresh = token::generate(random()?);
    dir.write_private("admin-token", fresh.expose())?;
    let hash = KeyHash::of(fresh.expose());
    stores.facts.set_fact(token::FACT, &hash.to_hex()).await?;
    Ok((AdminToken(hash), Some(fresh)))
}

/// With an empty store: a demo account and one key. Where there is a demo account: its upstream, on a port that
/// changes with each start.
async fn demo(shared: &Shared) -> Result<(Option<ServerHandle>, Option<Secret>), StartError> {
    let accounts = shared.stores.accounts.list().await?;
    let is_demo = |doc: &Document| doc.get("demo").and_then(serde_json::Value::as_bool) == Some(true);
    let existing = accounts.iter().any(is_demo);
    let empty = accounts.is_empty() && shared.stores.keys.list().await?.is_empty();
    if !(existing || empty && shared.settings.demo) {
        return Ok((None, None));
    }
    let token = hex::encode(random::<16>()?);
    let (addr, handle) = http::demo::start(&token).map_err(StartError::file("the demo upstream"))?;
    let mut record = Document::default();
    record.set("custom_api_endpoint", format!("http://{addr}"));
    record.set("session_token", token);
    let roster = shared.actors.roster.addr();
    let lost = |_| StartError::Store(StoreError::Engine("the roster did not answer".to_owned()));
    if existing {
        let id = AccountId::parse(DEMO).map_err(StoreError::from)?;
        roster.send(actors::roster::Amend { id, patch: record }).await.map_err(lost)??;
        return Ok((Some(handle), None));
    }
    record.set("id", DEMO);
    record.set("name", "Demo (built in; retires when a real account is added)");
    record.set("platform", "claudeconsole");
    record.set("demo", true);
    roster.send(actors::roster::Enlist { record }).await.map_err(lost)??;
    let mut key = Document::default();
    key.set("name", "first key");
    let (_, plain) = http::admin::keys::issue(shared, key).await.map_err(|e| StoreError::Engine(e.to_string()))?;
    Ok((Some(handle), Some(Secret::new(plain.expose()))))
}

/// What the greeting's curl sends.
const DEMO_REQUEST: &str =
    r#"{"model":"demo","max_tokens":64,"stream":true,"messages":[{"role":"user","content":"Hello"}]}"#;

/// How long a graceful stop waits for connections once no call is left: they only have bytes to flush.
const LAST_BYTES: u64 = 2;

fn serve_relay(
    shared: &Shared,
    listener: &Listener,
    journal_dir: std::path::PathBuf,
    boot: String,
) -> Result<ServerHandle, StartError> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let workers = if shared.settings.workers == 0 { cores } else { shared.settings.workers };
    let (limits, shared, number) = (shared.settings.limits.clone(), shared.clone(), Arc::new(AtomicUsize::new(0)));
    let mut server = HttpServer::new(move || {
        let number = number.fetch_add(1, SeqCst);
        let journal = JournalWriter::create(&journal_dir, &boot, number, shared.journal.clone())
            .expect("the journal's directory was writable a moment ago");
        let dialer = Dialer::new(timeouts(&shared.settings));
        let worker = Data::new(Worker { shared: shared.clone(), dialer, journal: RefCell::new(journal) });
        keep_trying_the_journal(&worker);
        App::new()
            .wrap(TracingLogger::<CallSpan>::new())
            .app_data(worker)
            .app_data(Data::new(shared.clone()))
            .configure(http::relay_routes)
    })
    .workers(workers)
    .disable_signals()
    .tcp_nodelay(true)
    .h1_allow_half_closed(false)
    .keep_alive(limits.keep_alive)
    .client_request_timeout(limits.header_timeout)
    .shutdown_timeout(LAST_BYTES);
    for socket in listener.sockets()? {
        server = server.listen(socket).map_err(StartError::file("listen"))?;
    }
    Ok(run(server.run()))
}

fn serve_admin(shared: &Shared, listener: &Listener, token: AdminToken) -> Result<ServerHandle, StartError> {
    let shared = shared.clone();
    let mut server = HttpServer::new(move || {
        App::new()
            .app_data(Data::new(token))
            .app_data(Data::new(shared.clone()))
            .app_data(web::PayloadConfig::new(1 << 20))
            .configure(http::admin_routes)
    })
    .workers(1)
    .disable_signals()
    .tcp_nodelay(true)
    .shutdown_timeout(LAST_BYTES);
    for socket in listener.sockets()? {
        server = server.listen(socket).map_err(StartError::file("listen"))?;
    }
    Ok(run(server.run()))
}

fn run(server: actix_web::dev::Server) -> ServerHandle {
    let handle = server.handle();
    actix_web::rt::spawn(server);
    handle
}

/// What could not be written (a full disk) is tried again every second while the worker lives.
fn keep_trying_the_journal(worker: &Data<Worker>) {
    let worker = Arc::downgrade(&worker.clone().into_inner());
    actix_web::rt::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tick.tick().await;
            match worker.upgrade() {
                Some(worker) if worker.shared.journal.degraded() => worker.journal.borrow_mut().retry(),
                Some(_) => {}
                None => return,
            }
        }
    });
}
