//! `claudeconsole`: an endpoint that speaks the Messages API at a base that the operator must name.

use crate::domain::Account;
use http::Uri;

/// The operator's base; a record without one does not parse.
pub fn base(account: &Account) -> Option<Uri> {
    account.endpoint.clone()
}
