//! The relay's HTTP face. This file is the route table; each module answers one kind of request.

pub mod admin;
pub mod answer;
pub mod attempt;
pub mod auth;
pub mod body;
pub mod demo;
pub mod failover;
pub mod keep_alive;
pub mod probes;
pub mod relay;
pub mod reply;
pub mod span;

use crate::actors::Actors;
use crate::clock::Clock;
use crate::settings::Settings;
use crate::store::Stores;
use crate::store::journal::{JournalHealth, JournalWriter};
use crate::upstream::dial::Dialer;
use crate::upstream::stall::UnderWay;
use actix_web::web::{self, ServiceConfig};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// What every HTTP thread shares with the others.
#[derive(Clone)]
pub struct Shared {
    /// Settings.
    pub settings: Arc<Settings>,
    /// The actors.
    pub actors: Actors,
    /// The store, for readiness, facts and sums.
    pub stores: Stores,
    /// The clock.
    pub clock: Clock,
    /// Bytes of request bodies that may be held at once.
    pub body_memory: Arc<Semaphore>,
    /// Whether usage can be written.
    pub journal: Arc<JournalHealth>,
}

/// What one HTTP thread has for itself: its client and its journal.
pub struct Worker {
    /// What it shares.
    pub shared: Shared,
    /// Its way out.
    pub dialer: Dialer,
    /// Its journal.
    pub journal: RefCell<JournalWriter>,
    /// Answers that clients are still taking.
    pub under_way: Rc<UnderWay>,
}

/// The relay's listener.
pub fn relay_routes(cfg: &mut ServiceConfig) {
    for prefix in ["", "/api", "/claude"] {
        cfg.service(
            web::resource(format!("{prefix}/v1/messages")).post(relay::messages).default_service(reply::wrong_method()),
        )
        .service(
            web::resource(format!("{prefix}/v1/messages/count_tokens"))
                .post(relay::count_tokens)
                .default_service(reply::wrong_method()),
        )
        .service(
            web::resource([format!("{prefix}/v1/models"), format!("{prefix}/v1/models/{{model}}")])
                .get(relay::models)
                .default_service(reply::wrong_method()),
        );
    }
    for path in ["/", "/api", "/api/", "/claude", "/claude/"] {
        cfg.service(
            web::resource(path)
                .get(probes::greeting)
                .route(web::head().to(probes::greeting))
                .default_service(reply::wrong_method()),
        );
    }
    probe_routes(cfg);
    cfg.default_service(web::to(reply::unknown_path));
}

/// The admin listener.
pub fn admin_routes(cfg: &mut ServiceConfig) {
    cfg.service(admin::scope());
    probe_routes(cfg);
    cfg.default_service(web::to(admin::unknown_path));
}

fn probe_routes(cfg: &mut ServiceConfig) {
    cfg.service(web::resource("/health").get(probes::health).route(web::head().to(probes::health)));
    cfg.service(web::resource("/ready").get(probes::ready).route(web::head().to(probes::ready)));
}
