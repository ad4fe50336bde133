//! What differs between upstreams: where a call goes, what carries the credential, how an answer is judged
//! and metered. No I/O: a [`Plan`] is built once per edit of an account, a [`Prepared`] once per attempt.
//!
//! The URL of every attempt is built from the account alone: nothing a client sends can move a token to
//! another host.

pub mod anthropic;
pub mod claude;
pub mod claudeconsole;
pub mod decode;
pub mod headers;
pub mod judge;
pub mod limits;
pub mod messages;
pub mod meter;
pub mod sse;

use crate::domain::credential::{self, Carrier, Kind};
use crate::domain::{Account, AccountId, Call, Endpoint, Platform};
use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Uri};

/// Where and how one account is reached: everything about an attempt that does not depend on the request.
#[derive(Debug)]
pub struct Plan {
    /// Whose plan it is.
    pub account: AccountId,
    /// True for https.
    pub tls: bool,
    /// Which field the credential came from; safe to log.
    pub credential_kind: Kind,
    authority: Authority,
    host: HeaderValue,
    /// The path before `/v1/…`, without a trailing slash.
    root: String,
    messages: PathAndQuery,
    credential: (HeaderName, HeaderValue),
    extra: Vec<(HeaderName, HeaderValue)>,
    models: crate::domain::account::Models,
}

/// One attempt, ready to be dialled.
#[derive(Debug)]
pub struct Prepared {
    /// Scheme `http` always, with an explicit port: TLS is the connector's business ([`Plan::tls`]).
    pub uri: Uri,
    /// Every header, `host` included.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The client's bytes, or these with the model's name exchanged.
    pub body: Bytes,
}

impl Plan {
    /// The plan of `account`, or `None` if it has no credential that its platform could use.
    pub fn of(account: &Account) -> Option<Self> {
        let chosen = credential::choose(account)?;
        let base = match account.platform {
            Platform::ClaudeConsole => claudeconsole::base(account)?,
            Platform::Claude => claude::base(account),
            Platform::Anthropic => anthropic::base(account),
        };
        let (name, text) = match chosen.carrier {
            Carrier::XApiKey => (HeaderName::from_static("x-api-key"), chosen.secret.expose().to_owned()),
            Carrier::Bearer => (header::AUTHORIZATION, format!("Bearer {}", chosen.secret.expose())),
        };
        let mut value = HeaderValue::from_str(&text).ok()?;
        value.set_sensitive(true);
        let tls = base.scheme_str() == Some("https");
        let root = messages::root(base.path());
        let given = base.authority()?;
        let port = given.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let extra = account.headers.iter().map(|(n, v)| {
            let mut value = HeaderValue::from_str(v.expose()).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::from_bytes(n.as_bytes()).ok()?, value))
        });
        Some(Self {
            account: account.id.clone(),
            tls,
            credential_kind: chosen.kind,
            authority: format!("{}:{port}", given.host()).parse().ok()?,
            host: HeaderValue::from_str(given.as_str()).ok()?,
            messages: format!("{root}/v1/messages").parse().ok()?,
            root,
            credential: (name, value),
            extra: extra.collect::<Option<_>>()?,
            models: account.models.clone(),
        })
    }

    /// The outbound form of `call`. `client` are the client's headers, `query` its query string without what
    /// authenticated it, `key` the relay key it presented, which must not travel in any header.
    pub fn prepare<'a>(
        &self,
        call: &Call,
        body: Bytes,
        query: Option<&str>,
        client: impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)>,
        key: &str,
    ) -> Option<Prepared> {
        let mut headers = headers::forwarded(client, key, &self.extra);
        headers.push((header::HOST, self.host.clone()));
        headers.push(self.credential.clone());
        let target = match (&call.endpoint, query) {
            (Endpoint::Messages, None) => self.messages.clone(),
            (endpoint, None) => messages::path(&self.root, endpoint).try_into().ok()?,
            (endpoint, Some(query)) => {
                let mut target = messages::path(&self.root, endpoint);
                target.push('?');
                target.push_str(query);
                target.try_into().ok()?
            }
        };
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(http::uri::Scheme::HTTP);
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(target);
        Some(Prepared { uri: Uri::from_parts(parts).ok()?, headers, body: self.mapped(call, body) })
    }

    /// The endpoint a call goes to, for the log: no query, no credential.
    pub fn address(&self, endpoint: &Endpoint) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        let host = self.host.to_str().unwrap_or_default();
        format!("{scheme}://{host}{}", messages::path(&self.root, endpoint))
    }

    fn mapped(&self, call: &Call, body: Bytes) -> Bytes {
        let Some(model) = &call.model else { return body };
        match self.models.upstream_name(&model.name) {
            Some(name) if name != model.name => {
                let quoted = serde_json::Value::from(name).to_string();
                let mut out = BytesMut::with_capacity(body.len() + quoted.len());
                out.extend_from_slice(&body[..model.span.start]);
                out.extend_from_slice(quoted.as_bytes());
                out.extend_from_slice(&body[model.span.end..]);
                out.freeze()
            }
            _ => body,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{account, document::Document};
    use serde_json::{Value, json};

    fn plan(extra: Value) -> Plan {
        let mut doc = Document::default();
        doc.set("id", "a");
        doc.set("platform", "claudeconsole");
        doc.set("custom_api_endpoint", "https://h/api");
        doc.set("session_token", "t");
        doc.apply(Document::from_input(extra, account::FIELDS).unwrap());
        Plan::of(&Account::parse(&doc).unwrap()).unwrap()
    }

    fn url(base: &str, endpoint: &Endpoint) -> String {
        plan(json!({ "custom_api_endpoint": base })).address(endpoint)
    }

    #[test]
    fn the_url_join_table() {
        let models = Endpoint::Models("/m-1".to_owned());
        for (base, root) in [
            ("https://h", "https://h"),
            ("https://h/", "https://h"),
            ("https://h/api", "https://h/api"),
            ("https://h/api/", "https://h/api"),
            ("https://h/api//", "https://h/api/"),
            ("https://h/v1", "https://h"),
            ("https://h/v1/", "https://h"),
            ("https://h/api/v1", "https://h/api"),
            ("https://h/v1/messages", "https://h"),
            ("https://h/api/v1/messages/", "https://h/api"),
            ("https://h/apiv1", "https://h/apiv1"),
            ("http://h:8080/api", "http://h:8080/api"),
            ("http://[::1]:8080", "http://[::1]:8080"),
        ] {
            assert_eq!(url(base, &Endpoint::Messages), format!("{root}/v1/messages"), "{base}");
            assert_eq!(url(base, &Endpoint::CountTokens), format!("{root}/v1/messages/count_tokens"), "{base}");
            assert_eq!(url(base, &models), format!("{root}/v1/models/m-1"), "{base}");
        }
    }

    #[test]
    fn a_plain_plan_dials_an_explicit_port_and_keeps_the_host_as_written() {
        let call = Call::bodiless(Endpoint::Messages);
        for (base, uri, host) in [
            ("https://h/api", "http://h:443/api/v1/messages?beta=true", "h"),
            ("http://h/api", "http://h:80/api/v1/messages?beta=true", "h"),
            ("http://h:8080", "http://h:8080/v1/messages?beta=true", "h:8080"),
        ] {
            let plan = plan(json!({ "custom_api_endpoint": base }));
            let out = plan.prepare(&call, Bytes::new(), Some("beta=true"), [].into_iter(), "cr_x").unwrap();
            assert_eq!(out.uri.to_string(), uri);
            assert!(out.headers.contains(&(header::HOST, HeaderValue::from_str(host).unwrap())));
        }
    }

    #[test]
    fn only_the_bytes_of_a_mapped_model_change() {
        let plan = plan(json!({"models": {"asked": "real \"one\"", "same": "same"}}));
        for (sent, expected) in [
            (r#"{ "a":1, "model" : "asked","z":1.0}"#, r#"{ "a":1, "model" : "real \"one\"","z":1.0}"#),
            (r#"{"model":"same"}"#, r#"{"model":"same"}"#),
        ] {
            let call = Call::peek(Endpoint::Messages, sent.as_bytes()).unwrap();
            let out = plan.prepare(&call, Bytes::from(sent), None, [].into_iter(), "cr_x").unwrap();
            assert_eq!(out.body, expected.as_bytes());
        }
    }

    #[test]
    fn a_plan_prints_no_secret() {
        let shown = format!("{:?}", plan(json!({"session_token":"tok-secret","headers":{"x-team":"hdr-secret"}})));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
