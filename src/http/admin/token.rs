//! The admin token: made at first start, kept as a hash, shown once; a file of mode 0600 in the data directory
//! lets the local CLI use it.

use super::AdminError;
use crate::domain::{KeyHash, Secret};
use actix_web::Error;
use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::AUTHORIZATION;
use actix_web::middleware::Next;
use actix_web::web::Data;

/// The name of the fact that holds the token's hash.
pub const FACT: &str = "admin_token_sha256";

/// The hash that requests are checked against.
#[derive(Clone, Copy)]
pub struct AdminToken(pub KeyHash);

/// A new token: `cra_` and 64 hex digits.
pub fn generate(random: [u8; 32]) -> Secret {
    Secret::new(format!("cra_{}", hex::encode(random)))
}

/// Lets a request pass that bears the token.
pub async fn required(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let sent = request.headers().get(AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| {
        let (scheme, token) = v.trim().split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| KeyHash::of(token.trim()))
    });
    let expected = request.app_data::<Data<AdminToken>>().map(|t| t.0);
    if !sent.zip(expected).is_some_and(|(sent, expected)| sent.matches(&expected)) {
        return Err(AdminError::Unauthorized.into());
    }
    next.call(request).await
}
