//! An upstream account: its record, what an operator may write in it, and the typed view the relay works with.
//!
//! Field names are a contract with operators and stay as they are: `concurrencyLimit` is camelCase for
//! history's sake, the rest is snake_case, and both spellings are read.

mod parse;

pub(super) use parse::group_name;

use super::document::{Field, FieldError, Guard};
use super::{Family, Secret, Time};
use http::Uri;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// An account's identity: 1 to 64 of `A-Z a-z 0-9 . _ -`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AccountId(Arc<str>);

impl AccountId {
    /// Checks `text`.
    ///
    /// # Errors
    /// When it is empty, too long, or has other characters.
    pub fn parse(text: &str) -> Result<Self, FieldError> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if text.is_empty() || text.len() > 64 || !text.bytes().all(fits) || text.bytes().all(|b| b == b'.') {
            return Err(FieldError::new("id", "1 to 64 letters, digits, '.', '_' or '-'; leave it out to get one"));
        }
        Ok(Self(text.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccountId({})", self.0)
    }
}

/// The kinds of upstream the relay can speak to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// An endpoint that speaks the Messages API at a base the operator names.
    ClaudeConsole,
    /// A Claude subscription, by OAuth token.
    Claude,
    /// Anthropic's API, by API key.
    Anthropic,
}

impl Platform {
    /// Every platform with its name on the wire.
    pub const ALL: [(&'static str, Platform); 3] =
        [("claudeconsole", Self::ClaudeConsole), ("claude", Self::Claude), ("anthropic", Self::Anthropic)];

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, p)| *p == self).map_or("", |(n, _)| n)
    }
}

/// In which header a console account's token travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthScheme {
    /// A token starting `sk-ant-` goes in `x-api-key`, any other in `Authorization: Bearer`.
    Auto,
    /// Always `x-api-key`.
    XApiKey,
    /// Always `Authorization: Bearer`.
    Bearer,
}

/// What the relay asks an upstream in order to learn how an account stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeKind {
    /// `POST /v1/messages/count_tokens`: costs nothing, and has a limit of its own.
    CountTokens,
    /// `GET /v1/models`: costs nothing, where an upstream counts no tokens.
    Models,
    /// `POST /v1/messages` for one token: the only one that proves everything, and the only one that costs.
    Messages,
    /// The upstream is asked nothing of the relay's own accord.
    None,
}

impl ProbeKind {
    /// Every kind with its name on the wire, the default first.
    pub const ALL: [(&'static str, ProbeKind); 4] = [
        ("count_tokens", Self::CountTokens),
        ("models", Self::Models),
        ("messages", Self::Messages),
        ("none", Self::None),
    ];

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }

    /// What to ask where this one leaves the question open.
    pub fn next(self) -> Option<Self> {
        match self {
            Self::CountTokens => Some(Self::Models),
            Self::Models => Some(Self::Messages),
            Self::Messages | Self::None => None,
        }
    }
}

/// Which models an account serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Models {
    /// Whatever is asked.
    Any,
    /// Asked name to the name its upstream knows (the same, where a list was written).
    Map(BTreeMap<String, String>),
}

impl Models {
    /// What to ask the upstream for when a client asks for `model`; `None` if it is not served here.
    pub fn upstream_name<'a>(&'a self, model: &'a str) -> Option<&'a str> {
        match self {
            Self::Any => Some(model),
            Self::Map(map) => map.get(model).map(String::as_str),
        }
    }

    /// The family of what the upstream is asked for when a client asks for `model`.
    pub fn family(&self, model: &str) -> Option<Family> {
        self.upstream_name(model).and_then(Family::of)
    }

    /// Whether it serves models of which nobody has heard.
    pub fn serves_any(&self) -> bool {
        *self == Self::Any
    }

    /// The models that it names.
    pub fn listed(&self) -> impl Iterator<Item = &str> {
        let map = match self {
            Self::Any => None,
            Self::Map(map) => Some(map),
        };
        map.into_iter().flat_map(|map| map.keys().map(String::as_str))
    }
}

/// An account, checked and typed.
#[derive(Debug, Clone)]
pub struct Account {
    /// Its identity.
    pub id: AccountId,
    /// What people call it.
    pub name: String,
    /// What it speaks to.
    pub platform: Platform,
    /// The operator's endpoint; `None` means the platform's own.
    pub endpoint: Option<Uri>,
    /// Comes before [`Account::access_token`].
    pub session_token: Option<Secret>,
    /// The second choice of a token.
    pub access_token: Option<Secret>,
    /// The key of an `anthropic` account.
    pub api_key: Option<Secret>,
    /// Where a console account's token goes.
    pub auth_scheme: AuthScheme,
    /// `status` is `active` or `draining`.
    pub active: bool,
    /// `status` is `draining`: what runs may end here, nothing new begins.
    pub draining: bool,
    /// The operator's second switch: keep it, but send it nothing.
    pub schedulable: bool,
    /// How many calls it may hold at once.
    pub concurrency_limit: u32,
    /// Lower goes first.
    pub priority: i64,
    /// A share among equals, 1 to 1,000; 100 unless set.
    pub weight: u32,
    /// A label for keys and people, 1 to 64 characters.
    pub group: Option<String>,
    /// Percent of each of its windows that is kept back, 0 to 99.
    pub reserve: u8,
    /// What the relay asks in order to learn how it stands.
    pub probe: ProbeKind,
    /// Headers added to every request of this account.
    pub headers: Vec<(String, Secret)>,
    /// Which models it serves.
    pub models: Models,
    /// When it stops being used.
    pub expires_at: Option<Time>,
}

impl Account {
    /// Whether the operator lets calls in: both switches are on, and it does not drain.
    pub fn is_enabled(&self) -> bool {
        self.active && self.schedulable && !self.draining
    }

    /// Whether it reaches the same upstream with the same credential as `other`: then what one learnt holds for both.
    pub fn reaches_as(&self, other: &Self) -> bool {
        let credential = |a: &'_ Self| {
            (a.platform, a.auth_scheme, a.session_token.clone(), a.access_token.clone(), a.api_key.clone())
        };
        credential(self) == credential(other) && (&self.endpoint, &self.headers) == (&other.endpoint, &other.headers)
    }
}

const fn field(name: &'static str, alias: Option<&'static str>, guard: Guard) -> Field {
    Field { name, alias, guard }
}

/// The fields of an account's record.
pub const FIELDS: &[Field] = &[
    field("id", None, Guard::Open),
    field("name", None, Guard::Open),
    field("description", None, Guard::Open),
    field("platform", None, Guard::Open),
    field("custom_api_endpoint", Some("customApiEndpoint"), Guard::Open),
    field("session_token", Some("sessionToken"), Guard::Secret),
    field("access_token", Some("accessToken"), Guard::Secret),
    field("api_key", Some("apiKey"), Guard::Secret),
    field("auth_scheme", Some("authScheme"), Guard::Open),
    field("status", None, Guard::Open),
    field("schedulable", None, Guard::Open),
    field("concurrencyLimit", Some("concurrency_limit"), Guard::Open),
    field("priority", None, Guard::Open),
    field("weight", None, Guard::Open),
    field("group", None, Guard::Open),
    field("reserve", None, Guard::Open),
    field("probe", None, Guard::Open),
    field("headers", None, Guard::SecretMap),
    field("models", None, Guard::Open),
    field("expires_at", Some("expiresAt"), Guard::Open),
    field("created_at", Some("createdAt"), Guard::Fixed),
    field("updated_at", Some("updatedAt"), Guard::Fixed),
];

/// The limit of an account that names none.
pub const DEFAULT_CONCURRENCY_LIMIT: i64 = 5;
