//! The two HTTP servers, and what each relay worker does beside its requests.

use super::StartError;
use super::listener::Listener;
use super::parts::timeouts;
use crate::http::admin::token::AdminToken;
use crate::http::span::CallSpan;
use crate::http::{self, Shared, Worker};
use crate::store::journal::JournalWriter;
use crate::upstream::dial::Dialer;
use crate::upstream::stall::ClientSocket;
use actix_web::dev::ServerHandle;
use actix_web::rt::net::TcpStream;
use actix_web::web::Data;
use actix_web::{App, HttpServer};
use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tracing_actix_web::TracingLogger;

/// How long a graceful stop waits for connections once no call is left: they only have bytes to flush.
const LAST_BYTES: u64 = 2;

/// Starts the relay's server: one client, one journal for each worker.
pub(super) fn serve_relay(
    shared: &Shared,
    listener: &Listener,
    journal_dir: PathBuf,
    boot: String,
    tls: Arc<rustls::ClientConfig>,
) -> Result<ServerHandle, StartError> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let workers = if shared.settings.workers == 0 { cores } else { shared.settings.workers };
    let (limits, shared, number) = (shared.settings.limits.clone(), shared.clone(), Arc::new(AtomicUsize::new(0)));
    let mut server = HttpServer::new(move || {
        let number = number.fetch_add(1, SeqCst);
        let journal = JournalWriter::create(&journal_dir, &boot, number, shared.journal.clone())
            .expect("the journal's directory was writable a moment ago");
        let dialer = Dialer::new(timeouts(&shared.settings), tls.clone());
        let worker = Data::new(Worker {
            shared: shared.clone(),
            dialer,
            journal: RefCell::new(journal),
            under_way: Rc::default(),
        });
        keep_house(&worker);
        App::new()
            .wrap(TracingLogger::<CallSpan>::new())
            .app_data(worker)
            .app_data(Data::new(shared.clone()))
            .configure(http::relay_routes)
    })
    .on_connect(|connection, data| {
        if let Some(tcp) = connection.downcast_ref::<TcpStream>() {
            data.insert(ClientSocket::of(tcp));
        }
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

/// Starts the Admin API's server.
pub(super) fn serve_admin(shared: &Shared, listener: &Listener, token: AdminToken) -> Result<ServerHandle, StartError> {
    let shared = shared.clone();
    let mut server = HttpServer::new(move || {
        App::new().app_data(Data::new(token)).app_data(Data::new(shared.clone())).configure(http::admin_routes)
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

/// Every second while the worker lives: what could not be written (a full disk) is tried again, and answers that
/// their clients do not take are ended.
fn keep_house(worker: &Data<Worker>) {
    let worker = Arc::downgrade(&worker.clone().into_inner());
    actix_web::rt::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            let now = tick.tick().await;
            let Some(worker) = worker.upgrade() else { return };
            worker.under_way.look(now);
            if worker.shared.journal.degraded() {
                worker.journal.borrow_mut().retry();
            }
        }
    });
}
