//! The Admin API: JSON under `/admin/`, on a listener of its own, behind a bearer token.
//!
//! Every answer is JSON; an error is `{"error":{"code","field"?,"message"}}`. Accounts go through Roster and keys
//! through the key ring, so that what runs and what is stored change together.

pub mod accounts;
mod explain;
pub mod keys;
mod metrics;
mod status;
pub mod token;

use super::Shared;
use crate::domain::document::FieldError;
use crate::store::StoreError;
use actix_web::dev::HttpServiceFactory;
use actix_web::http::StatusCode;
use actix_web::middleware::from_fn;
use actix_web::web::{self, Data};
use actix_web::{HttpRequest, HttpResponse, ResponseError};
use std::fmt;

/// Everything under `/admin`.
pub fn scope() -> impl HttpServiceFactory {
    web::scope("/admin")
        .wrap(from_fn(token::required))
        .service(web::resource("/accounts").get(accounts::list).post(accounts::create).default_service(wrong_method()))
        .service(
            web::resource("/accounts/{id}")
                .get(accounts::show)
                .patch(accounts::change)
                .delete(accounts::remove)
                .default_service(wrong_method()),
        )
        .service(web::resource("/accounts/{id}/test").post(accounts::test).default_service(wrong_method()))
        .service(web::resource("/accounts/{id}/probe").post(accounts::probe).default_service(wrong_method()))
        .service(web::resource("/accounts/{id}/drain").post(accounts::drain).default_service(wrong_method()))
        .service(web::resource("/accounts/{id}/enable").post(accounts::enable).default_service(wrong_method()))
        .service(web::resource("/accounts/{id}/disable").post(accounts::disable).default_service(wrong_method()))
        .service(web::resource("/accounts/{id}/reset").post(accounts::reset).default_service(wrong_method()))
        .service(web::resource("/accounts/{id}/events").get(status::events).default_service(wrong_method()))
        .service(web::resource("/accounts/{id}/status").get(status::account).default_service(wrong_method()))
        .service(web::resource("/keys").get(keys::list).post(keys::create).default_service(wrong_method()))
        .service(
            web::resource("/keys/{id}")
                .get(keys::show)
                .patch(keys::change)
                .delete(keys::remove)
                .default_service(wrong_method()),
        )
        .service(web::resource("/explain").get(explain::explain).default_service(wrong_method()))
        .service(web::resource("/metrics").get(metrics::metrics).default_service(wrong_method()))
        .service(web::resource("/status").get(status::status).default_service(wrong_method()))
        .service(web::resource("/usage").get(status::usage).default_service(wrong_method()))
        .default_service(web::to(unknown_path))
}

/// An error of the Admin API, as data.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// No token, or not the one.
    #[error("the admin token is missing or wrong: send it as Authorization: Bearer")]
    Unauthorized,
    /// Nothing here.
    #[error("no such path: {0}")]
    NoPath(String),
    /// Something here, but not by this method.
    #[error("method {0} is not allowed here")]
    WrongMethod(String),
    /// The body is no JSON.
    #[error("body: {0}")]
    Body(String),
    /// A field is at fault.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// What the store said.
    #[error(transparent)]
    Store(StoreError),
    /// The journal could not be settled.
    #[error(transparent)]
    Journal(#[from] crate::store::journal::JournalError),
    /// An actor did not answer.
    #[error("{0} did not answer; try again")]
    Actor(&'static str),
}

impl From<StoreError> for AdminError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Invalid(field) => Self::Field(field),
            other => Self::Store(other),
        }
    }
}

impl AdminError {
    fn code(&self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::NoPath(_) => "not_found",
            Self::WrongMethod(_) => "method_not_allowed",
            Self::Body(_) => "invalid_body",
            Self::Field(_) => "invalid_field",
            Self::Store(StoreError::Duplicate(_)) => "duplicate",
            Self::Store(StoreError::Missing(_)) => "missing",
            Self::Store(_) | Self::Journal(_) => "store",
            Self::Actor(_) => "unavailable",
        }
    }
}

impl ResponseError for AdminError {
    fn status_code(&self) -> StatusCode {
        match self {
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::NoPath(_) | Self::Store(StoreError::Missing(_)) => StatusCode::NOT_FOUND,
            Self::WrongMethod(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Body(_) | Self::Field(_) => StatusCode::BAD_REQUEST,
            Self::Store(StoreError::Duplicate(_)) => StatusCode::CONFLICT,
            Self::Store(_) | Self::Journal(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Actor(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn error_response(&self) -> HttpResponse {
        let mut error = serde_json::json!({"code": self.code(), "message": self.to_string()});
        if let Self::Field(field) = self {
            error["field"] = field.field.clone().into();
        }
        HttpResponse::build(self.status_code()).json(serde_json::json!({ "error": error }))
    }
}

/// How long the body of an admin request may take.
const BODY_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

/// The largest body of an admin request, bytes.
const LARGEST_BODY: usize = 1 << 20;

/// A JSON body, with errors in our shape; none at all is `None`.
async fn optional_json(body: web::Payload) -> Result<Option<serde_json::Value>, AdminError> {
    let read = tokio::time::timeout(BODY_PATIENCE, body.to_bytes_limited(LARGEST_BODY)).await;
    let read = read.map_err(|_| AdminError::Body("did not arrive in time".to_owned()))?;
    let bytes = read.map_err(|_| AdminError::Body(format!("larger than {LARGEST_BODY} bytes")))?;
    let bytes = bytes.map_err(|e| AdminError::Body(format!("could not be read: {e}")))?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let parsed = serde_json::from_slice(&bytes);
    parsed.map(Some).map_err(|e| AdminError::Body(format!("not valid JSON: {e}")))
}

/// A JSON body that must be there.
async fn json(body: web::Payload) -> Result<serde_json::Value, AdminError> {
    optional_json(body).await?.ok_or_else(|| AdminError::Body("expected a JSON object, got nothing".to_owned()))
}

/// 404, as JSON.
pub async fn unknown_path(request: HttpRequest) -> Result<HttpResponse, AdminError> {
    Err(AdminError::NoPath(request.path().chars().take(200).collect()))
}

fn wrong_method() -> actix_web::Route {
    web::route().to(|request: HttpRequest| async move {
        Err::<HttpResponse, _>(AdminError::WrongMethod(request.method().to_string()))
    })
}

/// What handlers get.
type State = Data<Shared>;

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}
