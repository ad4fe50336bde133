//! `/admin/status` and `/admin/usage`: the pool at a glance, by the same verdict that the Scheduler reads, and
//! what was used.

use super::{AdminError, State};
use crate::actors::account::{AccountView, Describe};
use crate::actors::ledger::Flush;
use crate::actors::scheduler::{Overview, Survey};
use crate::domain::document::FieldError;
use crate::domain::{AccountId, Standing};
use crate::http::probes;
use crate::store::{StoreError, UsageFilter};
use actix_web::HttpResponse;
use actix_web::web::{Path, Query};
use chrono::TimeDelta;
use futures_util::future::join_all;
use serde_json::{Value, json};
use std::collections::HashMap;

type Answer = Result<HttpResponse, AdminError>;

/// What the Scheduler knows beside the accounts themselves.
pub(super) struct Pool {
    waiting: HashMap<AccountId, usize>,
    pub overview: Overview,
}

impl Pool {
    pub async fn survey(state: &State) -> Result<Self, AdminError> {
        let overview = state.actors.scheduler.addr().send(Survey).await;
        let overview = overview.map_err(|_| AdminError::Actor("the scheduler"))?;
        let waiting = overview.accounts.iter().map(|v| (v.standing.record.id.clone(), v.waiting)).collect();
        Ok(Self { waiting, overview })
    }

    /// The window that recent calls are counted over.
    pub fn window(state: &State) -> TimeDelta {
        TimeDelta::from_std(state.settings.health.breaker_window).unwrap_or(TimeDelta::seconds(30))
    }

    fn shown(&self, view: &AccountView, state: &State) -> Value {
        let (now, window) = (state.clock.now(), Self::window(state));
        let Standing { record, health, slots } = &view.standing;
        let verdict = view.verdict(self.overview.aside, now);
        let (good, bad) = (slots.vitals().successes(now, window), slots.vitals().faults(now, window));
        let rate = (good + bad > 0).then(|| f64::from(good) / f64::from(good + bad));
        json!({
            "id": record.id,
            "name": record.name,
            "platform": record.platform.name(),
            "schedulable": verdict.schedulable,
            "last_resort": verdict.last_resort,
            "reasons": verdict.reasons,
            "until": verdict.until().filter(|_| !verdict.schedulable),
            "in_use": slots.in_use(),
            "limit": slots.limit(),
            "waiting": self.waiting.get(&record.id).copied().unwrap_or_default(),
            "ttfb_ms": slots.vitals().first_byte().map(|d| d.as_secs_f64() * 1_000.0),
            "success_rate": rate,
            "priority": record.priority,
            "group": record.group,
            "windows": health.readings(now).collect::<Vec<_>>(),
            "last": last(view),
        })
    }
}

/// The last outcome: what the account was told, or a later success that was only noted.
fn last(view: &AccountView) -> Value {
    let told = view.standing.health.last();
    match view.standing.slots.vitals().last_success() {
        Some((at, status)) if told.is_none_or(|told| told.at < at) => {
            json!({"at": at, "kind": "success", "status": status})
        }
        _ => json!(told),
    }
}

pub async fn status(state: State) -> Answer {
    let pool = Pool::survey(&state).await?;
    // The accounts themselves are asked, since they report to others only what changes a verdict.
    let asked = state.actors.seats.addresses().into_iter().map(|addr| async move { addr.send(Describe).await });
    let views = join_all(asked).await;
    let accounts: Vec<_> = views.iter().flatten().map(|v| pool.shown(v, &state)).collect();
    let reasons = probes::reasons(&state).await;
    let held = state.actors.outstanding();
    Ok(HttpResponse::Ok().json(json!({
        "ready": reasons.is_empty(),
        "reasons": reasons,
        "accounts": accounts,
        "keys": state.actors.keys.entries().len(),
        "in_flight": held.permits,
        "waiting": pool.overview.waiting,
        "sessions": pool.overview.sessions,
        "version": env!("CARGO_PKG_VERSION"),
    })))
}

/// `GET /admin/accounts/{id}/status`
pub async fn account(state: State, path: Path<String>) -> Answer {
    let id = AccountId::parse(&path).map_err(|_| StoreError::Missing(format!("account {path}")))?;
    status_of(&state, &id).await
}

/// One account's line.
pub(super) async fn status_of(state: &State, id: &AccountId) -> Answer {
    state.stores.accounts.load(id).await?;
    let account = state.actors.seats.find(id).ok_or(AdminError::Actor("the account"))?;
    let view = account.send(Describe).await.map_err(|_| AdminError::Actor("the account"))?;
    Ok(HttpResponse::Ok().json(Pool::survey(state).await?.shown(&view, state)))
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
