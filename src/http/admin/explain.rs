//! `GET /admin/explain`: what would become of a call now, and why: every account's verdict, and who would be picked.

use super::{AdminError, State};
use crate::actors::front::{barred, question};
use crate::actors::scheduler::{self, Explain};
use crate::domain::call::Model;
use crate::domain::dispatch::{Explained, Explanation, Scope, Why};
use crate::domain::document::FieldError;
use crate::domain::{Call, Endpoint, Refusal, Session, TicketId, Time};
use crate::store::StoreError;
use actix_web::web::Query;
use actix_web::{HttpRequest, HttpResponse};
use chrono::TimeDelta;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    key: Option<String>,
    model: String,
    session: Option<String>,
}

pub async fn explain(state: State, request: HttpRequest) -> Result<HttpResponse, AdminError> {
    let asked = Query::<Asked>::from_query(request.query_string());
    let Asked { key, model, session } = asked.map_err(|e| FieldError::new("query", e.to_string()))?.into_inner();
    if !Model::is_name(&model) {
        let expected = "required; a model name such as \"claude-opus-4-5\", of 256 bytes at the most";
        return Err(FieldError::new("model", expected).into());
    }
    let named = Some(Model { name: model.clone(), span: 0..0 });
    let call = Call { model: named, ..Call::bodiless(Endpoint::Messages) }.in_session(session.as_deref());
    let (now, wait) = (state.clock.now(), state.settings.queue.timeout);
    let deadline = now + TimeDelta::from_std(wait).unwrap_or(TimeDelta::zero());
    // No such ticket waits: this one only asks.
    let (ticket, call) = (TicketId(u64::MAX), Arc::new(call));
    let draining = state.actors.is_draining();
    let (question, barred) = match &key {
        Some(key) => {
            let entry = state.actors.keys.entries().into_iter().find(|entry| entry.id.as_str() == key);
            let entry = entry.ok_or_else(|| StoreError::Missing(format!("key {key}")))?;
            (question(ticket, &entry, call, Arc::default(), deadline), barred(&entry, draining, false, now))
        }
        None => {
            let mut open = scheduler::question(ticket, call, Scope::All, &[], deadline);
            open.session = session.as_deref().map(|name| Session::of(&open.key, name));
            (open, draining.then_some(Refusal::Draining))
        }
    };
    let explained = state.actors.scheduler.addr().send(Explain(question)).await;
    let mut explained = explained.map_err(|_| AdminError::Actor("the scheduler"))?;
    let is_barred = barred.is_some();
    if is_barred {
        (explained.picked, explained.why, explained.refusal) = (None, Why::Refused, barred);
    }
    let mut answer = shown(&explained, now);
    if is_barred {
        answer["why"] = json!("the call is not let in, whatever the accounts could take");
    }
    answer["key"] = json!(key);
    answer["model"] = json!(model);
    answer["session"] = json!(session);
    Ok(HttpResponse::Ok().json(answer))
}

fn shown(explained: &Explanation, now: Time) -> Value {
    let picked = |a: &Explained| explained.picked.as_ref() == Some(&a.standing.record.id);
    let accounts = explained.accounts.iter().map(|account| {
        let record = &account.standing.record;
        json!({
            "id": record.id,
            "name": record.name,
            "platform": record.platform.name(),
            "priority": record.priority,
            "in_use": account.standing.slots.in_use(),
            "limit": account.standing.slots.limit(),
            "schedulable": account.verdict.schedulable,
            "last_resort": account.verdict.last_resort,
            "home": account.home,
            "picked": picked(account),
            "reasons": account.verdict.reasons,
        })
    });
    let refusal = explained.refusal.as_ref().map(|refusal| {
        json!({"code": refusal.code(), "message": refusal.to_string(), "retry_after": refusal.retry_after(now)})
    });
    json!({
        "picked": explained.picked,
        "why": words(explained.why),
        "waits": matches!(explained.why, Why::Waits | Why::HomeFull),
        "refusal": refusal,
        "waiting": explained.waiting,
        "accounts": accounts.collect::<Vec<_>>(),
    })
}

fn words(why: Why) -> &'static str {
    match why {
        Why::Home => "it is the session's home, and may take the call",
        Why::Away => "the session stays there while its home is out",
        Why::Best => "of those that may take the call in the first tier it bears the least for its share",
        Why::LastResort => "so many are ejected by their breakers that these are put aside",
        Why::HomeFull => "it is the session's home, and full; the call waits for it a moment, though others are free",
        Why::Waits => "every account that could take the call is busy; it waits its turn",
        Why::Refused => "no account can take the call, and waiting is no remedy",
    }
}
