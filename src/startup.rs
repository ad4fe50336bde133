//! From settings to a running relay, and from a signal to a clean end. Called by the CLI and by the tests, which
//! run the same `build`.

mod files;
mod first_run;
mod listener;
pub mod migrate;
mod parts;
mod servers;
mod store;

use crate::actors::front::Drain;
use crate::actors::ledger::Flush;
use crate::actors::{self, Actors};
use crate::clock::Clock;
use crate::http::{self, Shared};
use crate::settings::Settings;
use crate::store::journal::{JournalError, JournalHealth, Settler};
use crate::store::redis::Claim;
use crate::store::{StoreError, Stores};
use crate::upstream::connector::tls_config;
use actix_web::dev::ServerHandle;
use files::DataDir;
use first_run::Greeting;
use listener::Listener;
use parts::parts;
use servers::{serve_admin, serve_relay};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::Opened;
use tokio::sync::{Mutex, Semaphore};

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
    /// Redis.
    #[error(transparent)]
    Redis(#[from] crate::store::redis::RedisError),
    /// A move of the store was interrupted.
    #[error("a move into this store was interrupted; run `claude-relay migrate --from … --to …` again to finish it")]
    UnfinishedCopy,
    /// A move of the store.
    #[error(transparent)]
    Copy(#[from] crate::store::copy::CopyError),
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
    claim: Option<Claim>,
    relay: (Listener, ServerHandle),
    admin: (Listener, ServerHandle),
    demo: Option<ServerHandle>,
    greeting: Greeting,
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
        let Opened { stores, claim } = store::open(&settings, &dir).await?;
        // A boot begins with its directory's name, so that relays on one Redis can tell their journals apart.
        let boot = format!("{}{}", dir.name(hex::encode(random::<4>()?))?, hex::encode(random::<4>()?));
        let journal_dir = dir.path("journal");
        let settler = open_journal(&journal_dir, &stores, &boot).await?;
        let (clock, journal) = (Clock::system(), Arc::new(JournalHealth::default()));
        let relay = Listener::bind(settings.listen.addrs())?;
        let admin = Listener::bind(settings.admin_listen.addrs())?;
        let ca_file = Some(settings.upstream.ca_file.as_path()).filter(|p| !p.as_os_str().is_empty());
        let tls = tls_config(ca_file).map_err(StartError::file("upstream.ca_file"))?;
        let parts = parts(&settings, &stores, settler, &clock, journal.clone(), tls.clone());
        let actors = actors::start(parts).await?;
        let body_memory = Arc::new(Semaphore::new(settings.limits.body_memory_bytes / http::body::UNIT));
        let shared = Shared { settings, actors, stores, clock, body_memory, journal };

        let serve = async {
            let (token, admin_token) = first_run::admin_token(&shared.stores, &dir).await?;
            let (demo, demo_key) = first_run::demo(&shared).await?;
            let relay_server = serve_relay(&shared, &relay, journal_dir, boot, tls)?;
            let admin_server = serve_admin(&shared, &admin, token)?;
            dir.write_admin_url(admin.addr())?;
            Ok((relay_server, admin_server, demo, Greeting { admin_token, demo_key }))
        };
        match serve.await {
            Ok((relay_server, admin_server, demo, greeting)) => {
                claim.iter().for_each(store::end_when_lost);
                Ok(Self {
                    shared,
                    dir,
                    claim,
                    relay: (relay, relay_server),
                    admin: (admin, admin_server),
                    demo,
                    greeting,
                })
            }
            Err(error) => {
                shared.actors.stop();
                Err(error)
            }
        }
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
        let Self { shared, dir, claim, relay: (listener, server), admin: (_, admin), demo, .. } = self;
        let _ = shared.actors.front.addr().send(Drain).await;
        server.pause().await;
        listener.refuse();
        if !idle_within(&shared.actors, shared.settings.drain_timeout).await {
            tracing::warn!(held = ?shared.actors.outstanding(), "the drain timeout is over: running calls are cut");
            shared.actors.keys.end_all_calls();
            // Each is booked as it ends, and its client is told.
            idle_within(&shared.actors, LAST_CALLS).await;
        }
        server.stop(true).await;
        if let Some(demo) = demo {
            demo.stop(false).await;
        }
        match shared.actors.ledger.addr().send(Flush).await {
            Ok(Ok(())) => {}
            failed => tracing::error!(?failed, "the journal could not be settled; the next start settles it"),
        }
        admin.stop(false).await;
        shared.actors.stop();
        if let Some(claim) = claim {
            claim.release().await;
        }
        dir.remove_admin_url();
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
        // A file size limit (`ulimit -f`) is to be an error of the write, which the journal survives, not an end.
        let _file_too_large = signal(tokio::signal::unix::SignalKind::from_raw(SIGXFSZ))?;
        let application = Application::build(settings).await?;
        application.greeting.tell(application.relay_addr(), application.admin_addr(), &application.dir);
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

/// The signal of a write over the file size limit (Linux, signal(7)).
const SIGXFSZ: i32 = 25;

/// How long calls that are cut at the end of a drain may take to be booked.
const LAST_CALLS: Duration = Duration::from_secs(2);

/// True once no call is held; false if some still are after `bound`.
async fn idle_within(actors: &Actors, bound: Duration) -> bool {
    let started = Instant::now();
    loop {
        let held = actors.outstanding();
        if held.passes + held.permits == 0 {
            return true;
        }
        if started.elapsed() >= bound {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn signal(kind: tokio::signal::unix::SignalKind) -> Result<tokio::signal::unix::Signal, StartError> {
    tokio::signal::unix::signal(kind).map_err(StartError::file("signal handler"))
}

fn random<const N: usize>() -> Result<[u8; N], StartError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| StoreError::Engine(format!("no random numbers: {e}")))?;
    Ok(bytes)
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
