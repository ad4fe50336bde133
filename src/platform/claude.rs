//! `claude`: a Claude subscription, reached with an OAuth token as a bearer.
//!
//! The OAuth endpoint's own beta is not built in: an operator sets it in the account's `headers`.

use crate::domain::Account;
use http::Uri;

/// The operator's base, else Anthropic's own.
pub fn base(account: &Account) -> Uri {
    account.endpoint.clone().unwrap_or_else(|| Uri::from_static(super::messages::ANTHROPIC))
}
