//! `/admin/status` and `/admin/usage`: the pool at a glance, by the same verdict that the Scheduler reads, and
//! what was used.

use super::{AdminError, State};
use crate::actors::account::{AccountView, Describe};
use crate::actors::ledger::Flush;
use crate::domain::document::FieldError;
use crate::domain::{AccountId, Time};
use crate::http::probes;
use crate::store::{StoreError, UsageFilter};
use actix_web::HttpResponse;
use actix_web::web::{Path, Query};
use futures_util::future::join_all;
use serde_json::{Value, json};

type Answer = Result<HttpResponse, AdminError>;

fn shown(view: &AccountView, now: Time) -> Value {
    let verdict = view.verdict(None, now);
    json!({
        "id": view.account.id,
        "name": view.account.name,
        "platform": view.account.platform.name(),
        "schedulable": verdict.schedulable,
        "reasons": verdict.reasons,
        "in_use": view.slots.in_use(),
        "limit": view.slots.limit(),
        "priority": view.account.priority,
        "group": view.account.group,
        "last": last(view),
    })
}

/// The last outcome: what the account was told, or a later success that was only noted.
fn last(view: &AccountView) -> Value {
    let told = view.health.last();
    match view.slots.last_success() {
        Some((at, status)) if told.is_none_or(|told| told.at < at) => {
            json!({"at": at, "kind": "success", "status": status})
        }
        _ => json!(told),
    }
}

pub async fn status(state: State) -> Answer {
    // The accounts themselves are asked, since they report to others only what changes a verdict.
    let asked = state.actors.seats.addresses().into_iter().map(|addr| async move { addr.send(Describe).await });
    let (views, now) = (join_all(asked).await, state.clock.now());
    let accounts: Vec<_> = views.iter().flatten().map(|v| shown(v, now)).collect();
    let reasons = probes::reasons(&state).await;
    let held = state.actors.outstanding();
    Ok(HttpResponse::Ok().json(json!({
        "ready": reasons.is_empty(),
        "reasons": reasons,
        "accounts": accounts,
        "keys": state.actors.keys.entries().len(),
        "in_flight": held.permits,
        "version": env!("CARGO_PKG_VERSION"),
    })))
}

/// `GET /admin/accounts/{id}/status`
pub async fn account(state: State, path: Path<String>) -> Answer {
    let id = AccountId::parse(&path).map_err(|_| StoreError::Missing(format!("account {path}")))?;
    state.stores.accounts.load(&id).await?;
    let account = state.actors.seats.find(&id).ok_or(AdminError::Actor("the account"))?;
    let view = account.send(Describe).await.map_err(|_| AdminError::Actor("the account"))?;
    Ok(HttpResponse::Ok().json(shown(&view, state.clock.now())))
}

/// `GET /admin/accounts/{id}/events`: the last transitions, newest first.
pub async fn events(state: State, path: Path<String>) -> Answer {
    let id = AccountId::parse(&path).map_err(|_| StoreError::Missing(format!("account {path}")))?;
    state.stores.accounts.load(&id).await?;
    Ok(HttpResponse::Ok().json(json!({ "events": state.stores.events.events(&id).await? })))
}

/// `GET /admin/usage`: what the journal holds is settled first, so that the sums are of this moment.
pub async fn usage(state: State, request: actix_web::HttpRequest) -> Answer {
    let filter = Query::<UsageFilter>::from_query(request.query_string());
    let filter = filter.map_err(|e| FieldError::new("query", e.to_string()))?.into_inner();
    state.actors.ledger.addr().send(Flush).await.map_err(|_| AdminError::Actor("the ledger"))??;
    let rows = state.stores.usage.sums(&filter).await?;
    Ok(HttpResponse::Ok().json(json!({ "rows": rows })))
}
