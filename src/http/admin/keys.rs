//! `/admin/keys`: create (the plain key stands in this one answer and nowhere else), list, show, change, remove.

use super::{AdminError, State, json};
use crate::domain::document::{Document, FieldError};
use crate::domain::key::FIELDS;
use crate::domain::{AccountId, KeyId, PlainKey};
use crate::store::StoreError;
use actix_web::HttpResponse;
use actix_web::web::{Path, Payload};
use serde_json::{Value, json};

type Answer = Result<HttpResponse, AdminError>;

/// The record as it may be shown: without the hash, which nobody needs to see.
fn shown(record: &Document) -> Value {
    let mut value = record.masked(FIELDS);
    if let Some(map) = value.as_object_mut() {
        map.remove("hash");
    }
    value
}

/// A key bound to an account that does not exist could never be used: more likely a slip than a plan.
async fn check_binding(state: &State, record: &Document) -> Result<(), AdminError> {
    for id in record.get("accounts").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        let known = match AccountId::parse(id) {
            Ok(id) => state.stores.accounts.load(&id).await,
            Err(error) => Err(error.into()),
        };
        match known {
            Ok(_) => {}
            Err(StoreError::Missing(_) | StoreError::Invalid(_)) => {
                return Err(FieldError::new("accounts", format!("there is no account {id:?}; add it first")).into());
            }
            Err(other) => return Err(other.into()),
        }
    }
    Ok(())
}

/// Stores a new key and returns its record with the plain key in it.
pub async fn issue(state: &super::Shared, mut record: Document) -> Result<(Value, PlainKey), AdminError> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|e| StoreError::Engine(format!("no random numbers: {e}")))?;
    let plain = PlainKey::from_random(random);
    record.set("id", uuid::Uuid::new_v4().to_string());
    record.set("hash", plain.hash().to_hex());
    record.set("mark", plain.mark());
    if record.get("status").is_none() {
        record.set("status", "active");
    }
    let stored = state.actors.keys.create(record, state.clock.now()).await?;
    let mut value = shown(&stored);
    value["key"] = plain.expose().into();
    Ok((value, plain))
}

pub async fn list(state: State) -> Answer {
    let all = state.actors.keys.list().await?;
    Ok(HttpResponse::Ok().json(json!({ "keys": all.iter().map(shown).collect::<Vec<_>>() })))
}

pub async fn create(state: State, body: Payload) -> Answer {
    let record = Document::from_input(json(body).await?, FIELDS)?;
    if record.text("name")?.is_none() {
        return Err(FieldError::new("name", "required; say who will hold the key").into());
    }
    check_binding(&state, &record).await?;
    let (value, _) = issue(&state, record).await?;
    Ok(HttpResponse::Created().json(value))
}

pub async fn show(state: State, path: Path<String>) -> Answer {
    Ok(HttpResponse::Ok().json(shown(&state.actors.keys.show(&KeyId::new(path.as_str())).await?)))
}

pub async fn change(state: State, path: Path<String>, body: Payload) -> Answer {
    let patch = Document::from_input(json(body).await?, FIELDS)?;
    if patch.is_empty() {
        return Err(FieldError::new("body", "names no field to change").into());
    }
    check_binding(&state, &patch).await?;
    let stored = state.actors.keys.patch(&KeyId::new(path.as_str()), patch, state.clock.now()).await?;
    Ok(HttpResponse::Ok().json(shown(&stored)))
}

pub async fn remove(state: State, path: Path<String>) -> Answer {
    state.actors.keys.remove(&KeyId::new(path.as_str())).await?;
    Ok(HttpResponse::Ok().json(json!({ "removed": path.as_str() })))
}
