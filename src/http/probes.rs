//! What balancers and people ask without a key: is the process up, and would a call find an account.

use super::Shared;
use crate::domain::Standing;
use crate::domain::verdict::{Load, Want};
use actix_web::HttpResponse;
use actix_web::web::Data;
use serde_json::json;
use std::time::Duration;

/// How long a readiness probe waits for the store: balancers give up after a few seconds.
const STORE_PATIENCE: Duration = Duration::from_secs(1);

/// `/` and `/api`: clients ask here before their first call; nothing of the installation is told.
pub async fn greeting() -> HttpResponse {
    HttpResponse::Ok().json(json!({"service": "claude-relay", "status": "ok"}))
}

/// `/health`: the process answers.
pub async fn health() -> HttpResponse {
    HttpResponse::Ok().json(json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")}))
}

/// `/ready`: 200 if a call would be taken and booked, else 503 with the reasons. `degraded` is a relay that still
/// takes calls, but cannot store what it should.
pub async fn ready(shared: Data<Shared>) -> HttpResponse {
    let reasons = reasons(&shared).await;
    let keeps = |reason: &serde_json::Value| reason["code"] == "store" || reason["code"] == "journal";
    let status = match reasons.as_slice() {
        [] => "ready",
        some if some.iter().all(keeps) => "degraded",
        _ => "not_ready",
    };
    let body = json!({"ready": reasons.is_empty(), "status": status, "reasons": reasons});
    if reasons.is_empty() { HttpResponse::Ok().json(body) } else { HttpResponse::ServiceUnavailable().json(body) }
}

/// Why the relay is not ready; empty if it is.
pub async fn reasons(shared: &Shared) -> Vec<serde_json::Value> {
    let mut out = Vec::new();
    let mut say = |code: &str, message: String| out.push(json!({"code": code, "message": message}));
    if shared.actors.is_draining() {
        say("draining", "the relay is shutting down".to_owned());
    }
    match tokio::time::timeout(STORE_PATIENCE, shared.stores.facts.check()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            // Anybody may ask: where the store is, and what it said, is for the log.
            tracing::warn!(%error, "the store is not usable");
            say("store", "the store cannot be used; the log says why".to_owned());
        }
        Err(_) => say("store", "the store does not answer; usage stays in the journal".to_owned()),
    }
    if shared.journal.degraded() {
        say("journal", "usage cannot be written to the journal; is the disk full?".to_owned());
    }
    let now = shared.clock.now();
    // A pool that is merely busy is ready: a balancer that took it away would make the others busier.
    let idle = Load { bounded: true, ..Load::default() };
    let ready = |s: &Standing| s.glance(idle, Want::default(), now).schedulable();
    let mut seen = 0;
    let any = shared.actors.seats.look(|all| all.inspect(|_| seen += 1).any(ready));
    if !any {
        say("no_schedulable_account", format!("{seen} accounts, none of which could take a call now"));
    }
    out
}
