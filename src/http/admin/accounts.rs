//! `/admin/accounts`: create, list, show, change, remove, test. Records go in and out in the operator's names,
//! secrets as marks.

use super::status::status_of;
use super::{AdminError, State, json, optional_json};
use crate::actors::Account;
use crate::actors::account::{Probe, Reset};
use crate::actors::roster::{Amend, Enlist, Retire};
use crate::domain::account::FIELDS;
use crate::domain::document::{Document, Field, FieldError, Guard};
use crate::domain::{AccountId, Outcome, ProbeKind};
use actix_web::HttpResponse;
use actix_web::web::{Path, Payload};
use serde_json::json;

type Answer = Result<HttpResponse, AdminError>;

/// The id of the account that an empty store starts with.
pub const DEMO: &str = "demo";

/// The fields of a test; the other operations take none.
const TEST_FIELDS: &[Field] = &[Field { name: "model", alias: None, guard: Guard::Open }];

fn id(path: &Path<String>) -> Result<AccountId, AdminError> {
    AccountId::parse(path).map_err(|_| AdminError::Store(crate::store::StoreError::Missing(format!("account {path}"))))
}

fn gone(_: actix::MailboxError) -> AdminError {
    AdminError::Actor("the roster")
}

pub async fn list(state: State) -> Answer {
    let all = state.stores.accounts.list().await?;
    let shown: Vec<_> = all.iter().map(|doc| doc.masked(FIELDS)).collect();
    Ok(HttpResponse::Ok().json(json!({ "accounts": shown })))
}

pub async fn create(state: State, body: Payload) -> Answer {
    let mut record = Document::from_input(json(body).await?, FIELDS)?;
    if record.get("id").is_none() {
        record.set("id", uuid::Uuid::new_v4().to_string());
    }
    let stored = state.actors.roster.addr().send(Enlist { record }).await.map_err(gone)??;
    retire_demo(&state, &stored).await;
    Ok(HttpResponse::Created().json(stored.masked(FIELDS)))
}

/// The demo account has done its work once there is a real one.
async fn retire_demo(state: &State, added: &Document) {
    let Ok(id) = AccountId::parse(DEMO) else { return };
    let is_demo = |doc: &Document| doc.get("demo").and_then(serde_json::Value::as_bool) == Some(true);
    if is_demo(added) || !state.stores.accounts.load(&id).await.is_ok_and(|doc| is_demo(&doc)) {
        return;
    }
    match state.actors.roster.addr().send(Retire { id }).await {
        Ok(Ok(())) => tracing::info!("the demo account is retired: a real account was added"),
        failed => tracing::error!(?failed, "the demo account could not be retired"),
    }
}

pub async fn show(state: State, path: Path<String>) -> Answer {
    let stored = state.stores.accounts.load(&id(&path)?).await?;
    Ok(HttpResponse::Ok().json(stored.masked(FIELDS)))
}

pub async fn change(state: State, path: Path<String>, body: Payload) -> Answer {
    let patch = Document::from_input(json(body).await?, FIELDS)?;
    if patch.is_empty() {
        return Err(FieldError::new("body", "names no field to change").into());
    }
    let stored = state.actors.roster.addr().send(Amend { id: id(&path)?, patch }).await.map_err(gone)??;
    Ok(HttpResponse::Ok().json(stored.masked(FIELDS)))
}

pub async fn remove(state: State, path: Path<String>) -> Answer {
    let id = id(&path)?;
    state.actors.roster.addr().send(Retire { id: id.clone() }).await.map_err(gone)??;
    Ok(HttpResponse::Ok().json(json!({ "removed": id })))
}

/// What was sent with an operation; nothing at all is as good as an empty object.
async fn sent(body: Payload, fields: &[Field]) -> Result<Document, AdminError> {
    let body = optional_json(body).await?;
    Ok(body.map(|body| Document::from_input(body, fields)).transpose()?.unwrap_or_default())
}

pub async fn test(state: State, path: Path<String>, body: Payload) -> Answer {
    let model = sent(body, TEST_FIELDS).await?.text("model")?.map(str::to_owned);
    ask(&state, &id(&path)?, Probe { kind: Some(ProbeKind::Messages), model, own: false }).await
}

/// `POST /admin/accounts/{id}/probe`: as the account's record says, and as cheaply.
pub async fn probe(state: State, path: Path<String>, body: Payload) -> Answer {
    sent(body, &[]).await?;
    ask(&state, &id(&path)?, Probe { kind: None, model: None, own: false }).await
}

async fn ask(state: &State, id: &AccountId, probe: Probe) -> Answer {
    let asked = probe.model.clone().unwrap_or_else(|| state.settings.health.probe_model.clone());
    let report = find(state, id).await?.send(probe).await.map_err(|_| AdminError::Actor("the account"))?;
    Ok(HttpResponse::Ok().json(json!({
        "account": id,
        "ok": matches!(report.outcome, Outcome::Success { .. }),
        "probe": report.probe,
        "model": asked,
        "outcome": serde_json::to_value(&report.outcome).unwrap_or_default()["kind"],
        "status": report.outcome.status(),
        "error_type": report.error_type,
        "message": report.message,
        "duration_ms": report.duration_ms,
    })))
}

async fn find(state: &State, id: &AccountId) -> Result<actix::Addr<Account>, AdminError> {
    // The store knows best whether there is such an account; its actor may be on its way back from a panic.
    state.stores.accounts.load(id).await?;
    state.actors.seats.find(id).ok_or(AdminError::Actor("the account"))
}

/// `POST /admin/accounts/{id}/drain`: no new call; running ones end.
pub async fn drain(state: State, path: Path<String>, body: Payload) -> Answer {
    sent(body, &[]).await?;
    switch(&state, &id(&path)?, &[("status", "draining".into())]).await
}

/// `POST /admin/accounts/{id}/enable`
pub async fn enable(state: State, path: Path<String>, body: Payload) -> Answer {
    sent(body, &[]).await?;
    switch(&state, &id(&path)?, &[("status", "active".into()), ("schedulable", true.into())]).await
}

/// `POST /admin/accounts/{id}/disable`
pub async fn disable(state: State, path: Path<String>, body: Payload) -> Answer {
    sent(body, &[]).await?;
    switch(&state, &id(&path)?, &[("status", "disabled".into())]).await
}

async fn switch(state: &State, id: &AccountId, fields: &[(&str, serde_json::Value)]) -> Answer {
    let mut patch = Document::default();
    fields.iter().for_each(|(name, value)| patch.set(name, value.clone()));
    state.actors.roster.addr().send(Amend { id: id.clone(), patch }).await.map_err(gone)??;
    status_of(state, id).await
}

/// `POST /admin/accounts/{id}/reset`: what was learnt from past answers is forgotten.
pub async fn reset(state: State, path: Path<String>, body: Payload) -> Answer {
    sent(body, &[]).await?;
    let id = id(&path)?;
    find(&state, &id).await?.send(Reset).await.map_err(|_| AdminError::Actor("the account"))?;
    status_of(&state, &id).await
}
