//! `anthropic`: Anthropic's API, reached with an API key in `x-api-key`.

use crate::domain::Account;
use http::Uri;

/// The operator's base, else Anthropic's own.
pub fn base(account: &Account) -> Uri {
    account.endpoint.clone().unwrap_or_else(|| Uri::from_static(super::messages::ANTHROPIC))
}
