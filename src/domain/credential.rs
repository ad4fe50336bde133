//! Which of an account's secrets is presented upstream, and in which header.
//!
//! Read by the verdict (an account without one is never selected) and by the platforms (which put it on the
//! wire). `session_token` comes before `access_token`: it is the shorter-lived one an operator pastes last.

use super::account::AuthScheme;
use super::{Account, Platform, Secret};

/// Which field the credential came from; safe to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `session_token`
    SessionToken,
    /// `access_token`
    AccessToken,
    /// `api_key`
    ApiKey,
}

impl Kind {
    /// The field's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::SessionToken => "session_token",
            Self::AccessToken => "access_token",
            Self::ApiKey => "api_key",
        }
    }
}

/// The header a credential travels in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// `x-api-key: VALUE`
    XApiKey,
    /// `authorization: Bearer VALUE`
    Bearer,
}

/// A chosen credential.
#[derive(Debug)]
pub struct Credential<'a> {
    /// Where it came from.
    pub kind: Kind,
    /// Where it goes.
    pub carrier: Carrier,
    /// What it is.
    pub secret: &'a Secret,
}

/// The credential `account` presents, or `None` if it has none it could use on its platform.
pub fn choose(account: &Account) -> Option<Credential<'_>> {
    let session = account.session_token.as_ref().map(|s| (Kind::SessionToken, s));
    let token = || session.or(account.access_token.as_ref().map(|s| (Kind::AccessToken, s)));
    let (kind, secret) = match account.platform {
        Platform::ClaudeConsole | Platform::Claude => token()?,
        Platform::Anthropic => (Kind::ApiKey, account.api_key.as_ref()?),
    };
    let carrier = match (account.platform, account.auth_scheme) {
        (Platform::Anthropic, _) | (Platform::ClaudeConsole, AuthScheme::XApiKey) => Carrier::XApiKey,
        (Platform::Claude, _) | (Platform::ClaudeConsole, AuthScheme::Bearer) => Carrier::Bearer,
        (Platform::ClaudeConsole, AuthScheme::Auto) if secret.expose().starts_with("sk-ant-") => Carrier::XApiKey,
        (Platform::ClaudeConsole, AuthScheme::Auto) => Carrier::Bearer,
    };
    Some(Credential { kind, carrier, secret })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::document::Document;
    use serde_json::json;

    fn chosen(fields: serde_json::Value) -> Option<(Kind, Carrier, String)> {
        let mut doc = Document::from_input(fields, crate::domain::account::FIELDS).unwrap();
        doc.set("id", "a");
        let account = Account::parse(&doc).unwrap();
        choose(&account).map(|c| (c.kind, c.carrier, c.secret.expose().to_owned()))
    }

    #[test]
    fn the_credential_follows_platform_field_and_scheme() {
        use Carrier::{Bearer, XApiKey};
        use Kind::{AccessToken, ApiKey, SessionToken};
        let url = "https://h/api";
        for (fields, expected) in [
            (json!({"session_token":"s","access_token":"a"}), Some((SessionToken, Bearer, "s"))),
            (json!({"access_token":"a"}), Some((AccessToken, Bearer, "a"))),
            (json!({"session_token":"sk-ant-1"}), Some((SessionToken, XApiKey, "sk-ant-1"))),
            (json!({"session_token":"s","auth_scheme":"x-api-key"}), Some((SessionToken, XApiKey, "s"))),
            (json!({"session_token":"sk-ant-1","auth_scheme":"bearer"}), Some((SessionToken, Bearer, "sk-ant-1"))),
            (json!({"api_key":"k"}), None),
            (json!({"session_token":"  "}), None),
        ] {
            let mut fields = fields;
            fields["platform"] = json!("claudeconsole");
            fields["custom_api_endpoint"] = json!(url);
            assert_eq!(chosen(fields.clone()), expected.map(|(k, c, s)| (k, c, s.to_owned())), "{fields}");
        }
        let claude = chosen(json!({"platform":"claude","session_token":"sk-ant-oat","access_token":"a"}));
        assert_eq!(claude, Some((SessionToken, Bearer, "sk-ant-oat".to_owned())));
        assert_eq!(chosen(json!({"platform":"anthropic","api_key":"k"})), Some((ApiKey, XApiKey, "k".to_owned())));
        assert_eq!(chosen(json!({"platform":"anthropic","session_token":"s"})), None);
    }
}
