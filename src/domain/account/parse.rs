//! From a record to an [`Account`]: every field checked, and an error that names it.

use super::{Account, AccountId, AuthScheme, DEFAULT_CONCURRENCY_LIMIT, Models, Platform, ProbeKind};
use crate::domain::Secret;
use crate::domain::document::{Document, FieldError, wrong};
use http::Uri;
use serde_json::Value;
use std::collections::BTreeMap;

/// Headers that an operator may not set: they frame the message, or carry the credential that other fields set.
const RESERVED_HEADERS: [&str; 19] = [
    "date",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "cookie",
    "accept-encoding",
    "content-encoding",
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "authorization",
    "x-api-key",
    "x-goog-api-key",
    "api-key",
];

/// As long as a group's name may be, characters.
const LONGEST_GROUP: usize = 64;

impl Account {
    /// The typed view of a record, new or stored. Every optional field may be missing; unknown ones are ignored.
    ///
    /// # Errors
    /// Names the first field at fault.
    pub fn parse(doc: &Document) -> Result<Self, FieldError> {
        let id = AccountId::parse(doc.text("id")?.unwrap_or_default())?;
        let platform = parse_platform(doc)?;
        let endpoint = doc.text("custom_api_endpoint")?.map(parse_endpoint).transpose()?;
        doc.text("description")?;
        if platform == Platform::ClaudeConsole && endpoint.is_none() {
            return Err(FieldError::new(
                "custom_api_endpoint",
                "required for platform claudeconsole; set the base URL of its API",
            ));
        }
        let status = choice(
            doc,
            "status",
            &[
                ("active", Status::Active),
                ("draining", Status::Draining),
                ("disabled", Status::Off),
                ("inactive", Status::Off),
            ],
        )?;
        Ok(Self {
            name: doc.text("name")?.unwrap_or(id.as_str()).to_owned(),
            id,
            platform,
            endpoint,
            session_token: doc.secret("session_token")?,
            access_token: doc.secret("access_token")?,
            api_key: doc.secret("api_key")?,
            auth_scheme: choice(
                doc,
                "auth_scheme",
                &[("auto", AuthScheme::Auto), ("x-api-key", AuthScheme::XApiKey), ("bearer", AuthScheme::Bearer)],
            )?,
            active: status != Status::Off,
            draining: status == Status::Draining,
            schedulable: doc.flag("schedulable", true)?,
            concurrency_limit: u32::try_from(
                doc.integer("concurrencyLimit", 1..=100_000)?.unwrap_or(DEFAULT_CONCURRENCY_LIMIT),
            )
            .unwrap_or(u32::MAX),
            priority: doc.integer("priority", -1_000_000..=1_000_000)?.unwrap_or(50),
            weight: u32::try_from(doc.integer("weight", 1..=1_000)?.unwrap_or(100)).unwrap_or(100),
            group: doc.text("group")?.map(|name| group_name("group", name)).transpose()?.map(str::to_owned),
            reserve: doc.integer("reserve", 0..=99)?.and_then(|n| u8::try_from(n).ok()).unwrap_or(0),
            probe: choice(doc, "probe", &ProbeKind::ALL)?,
            headers: parse_headers(doc)?,
            models: parse_models(doc)?,
            expires_at: doc.time("expires_at")?,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Active,
    Draining,
    Off,
}

/// A group's name, trimmed: accounts bear one, keys list some, and both must mean the same by it.
///
/// # Errors
/// When it is empty, longer than 64 characters, or has control characters.
pub fn group_name<'a>(field: &str, text: &'a str) -> Result<&'a str, FieldError> {
    let name = text.trim();
    if name.is_empty() || name.chars().count() > LONGEST_GROUP || name.chars().any(char::is_control) {
        let problem = format!("a group's name has 1 to {LONGEST_GROUP} characters, none of them a control character");
        return Err(FieldError::new(field, format!("{problem}; got {:?}", shortened(text))));
    }
    Ok(name)
}

fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}

fn parse_platform(doc: &Document) -> Result<Platform, FieldError> {
    let known = || Platform::ALL.map(|(n, _)| n).join(", ");
    let name = doc.text("platform")?.ok_or_else(|| FieldError::new("platform", format!("required: {}", known())))?;
    let found = Platform::ALL.iter().find(|(n, _)| *n == name);
    found
        .map(|(_, p)| *p)
        .ok_or_else(|| FieldError::new("platform", format!("unknown platform {name:?}; known are {}", known())))
}

fn choice<T: Copy>(doc: &Document, name: &str, options: &[(&str, T)]) -> Result<T, FieldError> {
    let Some(text) = doc.text(name)? else { return Ok(options[0].1) };
    options.iter().find(|(n, _)| *n == text).map(|(_, v)| *v).ok_or_else(|| {
        let known: Vec<_> = options.iter().map(|(n, _)| *n).collect();
        FieldError::new(name, format!("expected one of {}, got {text:?}", known.join(", ")))
    })
}

/// A base URL that a token may be sent to: http or https, a host, no user info, query or fragment.
fn parse_endpoint(text: &str) -> Result<Uri, FieldError> {
    let wrong = |problem: &str| Err(FieldError::new("custom_api_endpoint", problem));
    if text.contains('#') {
        return wrong("must not have a fragment; remove everything from '#'");
    }
    let Ok(uri) = text.parse::<Uri>() else {
        return wrong("expected a URL such as https://upstream.example/api");
    };
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
        return wrong("expected an http or https URL such as https://upstream.example/api");
    }
    if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
        return wrong("must not carry credentials; put the token into session_token");
    }
    if uri.path().split('/').any(|segment| segment == "." || segment == "..") {
        return wrong("must not have '.' or '..' in its path; write the path it means");
    }
    if uri.query().is_some() {
        return wrong("must not have a query; remove everything from '?'");
    }
    if uri.authority().is_some_and(|a| {
        a.as_str().ends_with(':')
            || (a.as_str().rfind(':') > a.as_str().rfind(']') && a.port_u16().is_none_or(|p| p == 0))
    }) {
        return wrong("the port must be a number from 1 to 65535");
    }
    Ok(uri)
}

fn parse_headers(doc: &Document) -> Result<Vec<(String, Secret)>, FieldError> {
    let Some(value) = doc.get("headers") else { return Ok(Vec::new()) };
    let map = value.as_object().ok_or_else(|| FieldError::new("headers", "expected an object of name to string"))?;
    let mut out = Vec::with_capacity(map.len());
    for (name, value) in map {
        let field = format!("headers.{name}");
        let lower = name.to_ascii_lowercase();
        if http::header::HeaderName::from_bytes(lower.as_bytes()).is_err() {
            return Err(FieldError::new(field, "not a header name"));
        }
        if RESERVED_HEADERS.contains(&lower.as_str()) {
            return Err(FieldError::new(field, "set by the relay; a credential goes into the token fields"));
        }
        let text = value.as_str().ok_or_else(|| FieldError::new(&field, "expected a string"))?;
        if http::header::HeaderValue::from_str(text).is_err() {
            return Err(FieldError::new(field, "not a header value: line breaks and control characters are out"));
        }
        if out.iter().any(|(known, _)| *known == lower) {
            return Err(FieldError::new(field, "stands twice, in two spellings; leave one"));
        }
        out.push((lower, Secret::new(text)));
    }
    Ok(out)
}

fn parse_models(doc: &Document) -> Result<Models, FieldError> {
    let expected = "a list of model names, or an object of asked name to upstream name";
    let Some(value) = doc.get("models") else { return Ok(Models::Any) };
    let fits = |s: &&str| !s.is_empty() && s.len() <= 256 && !s.chars().any(char::is_control);
    let name = |v: &Value| v.as_str().filter(fits).map(str::to_owned);
    let map: Option<BTreeMap<_, _>> = match value {
        Value::Array(list) => list.iter().map(|v| name(v).map(|n| (n.clone(), n))).collect(),
        Value::Object(map) => map.iter().map(|(k, v)| name(v).map(|n| (k.clone(), n))).collect(),
        _ => None,
    };
    let map = map.ok_or_else(|| wrong("models", expected, value))?;
    Ok(if map.is_empty() { Models::Any } else { Models::Map(map) })
}

#[cfg(test)]
mod tests {
    use super::super::FIELDS;
    use super::*;
    use serde_json::json;

    fn parse(value: Value) -> Result<Account, FieldError> {
        Document::from_input(value, FIELDS).and_then(|doc| Account::parse(&doc))
    }

    #[test]
    fn a_record_with_only_what_is_required_loads() {
        let account = parse(json!({"id": "a", "platform": "claude"})).unwrap();
        assert_eq!((account.concurrency_limit, account.active, account.schedulable), (5, true, true));
        assert!(account.session_token.is_none());
    }

    #[test]
    fn a_status_says_active_draining_or_off() {
        for (status, expected) in [
            (json!(null), (true, false)),
            (json!("active"), (true, false)),
            (json!("draining"), (true, true)),
            (json!("disabled"), (false, false)),
            (json!("inactive"), (false, false)),
        ] {
            let account = parse(json!({"id": "a", "platform": "claude", "status": status})).unwrap();
            assert_eq!((account.active, account.draining), expected, "{status}");
        }
    }

    #[test]
    fn a_probe_a_reserve_and_a_group_are_read_and_have_defaults() {
        let plain = parse(json!({"id": "a", "platform": "claude"})).unwrap();
        assert_eq!((plain.probe, plain.reserve, plain.group), (ProbeKind::CountTokens, 0, None));
        for (name, kind) in ProbeKind::ALL {
            let account = parse(json!({"id": "a", "platform": "claude", "probe": name})).unwrap();
            assert_eq!((account.probe, account.probe.name()), (kind, name));
        }
        let longest = "\u{e9}".repeat(64);
        for (group, expected) in [(" team a ", "team a"), (longest.as_str(), longest.as_str())] {
            let account = parse(json!({"id": "a", "platform": "claude", "reserve": 99, "group": group})).unwrap();
            assert_eq!((account.reserve, account.group.as_deref()), (99, Some(expected)));
        }
    }

    #[test]
    fn both_spellings_are_read() {
        let one = parse(json!({"id":"a","platform":"claude","concurrency_limit":7,"sessionToken":"t"})).unwrap();
        assert_eq!(one.concurrency_limit, 7);
        assert_eq!(one.session_token.unwrap().expose(), "t");
    }

    #[test]
    fn errors_name_the_field() {
        let console = |endpoint: &str| json!({"id":"a","platform":"claudeconsole","custom_api_endpoint":endpoint});
        for (value, field) in [
            (json!({"id":"a"}), "platform"),
            (json!({"id":"a","platform":"gpt"}), "platform"),
            (json!({"id":"a b","platform":"claude"}), "id"),
            (json!({"id":"a","platform":"claude","concurrencyLimit":-1}), "concurrencyLimit"),
            (json!({"id":"a","platform":"claude","concurrencyLimit":1e30}), "concurrencyLimit"),
            (json!({"id":"a","platform":"claude","concurrencyLimit":"5"}), "concurrencyLimit"),
            (json!({"id":"a","platform":"claude","concurrencyLimit":5,"concurrency_limit":6}), "concurrencyLimit"),
            (json!({"id":"a","platform":"claude","schedulable":"yes"}), "schedulable"),
            (json!({"id":"a","platform":"claude","name":" "}), "name"),
            (json!({"id":"a","platform":"claude","status":""}), "status"),
            (json!({"id":"a","platform":"claude","status":"drain"}), "status"),
            (json!({"id":"a","platform":"claude","probe":"ping"}), "probe"),
            (json!({"id":"a","platform":"claude","probe":false}), "probe"),
            (json!({"id":"a","platform":"claude","reserve":100}), "reserve"),
            (json!({"id":"a","platform":"claude","reserve":-1}), "reserve"),
            (json!({"id":"a","platform":"claude","reserve":2.5}), "reserve"),
            (json!({"id":"a","platform":"claude","reserve":"10"}), "reserve"),
            (json!({"id":"a","platform":"claude","group":"g".repeat(65)}), "group"),
            (json!({"id":"a","platform":"claude","group":"a\nb"}), "group"),
            (json!({"id":"a","platform":"claude","group":["a"]}), "group"),
            (json!({"id":"a","platform":"claude","headers":{"Date":"x"}}), "headers.Date"),
            (json!({"id":"a","platform":"claude","colour":"red"}), "colour"),
            (json!({"id":"a","platform":"claude","created_at":"x"}), "created_at"),
            (json!({"id":"a","platform":"claude","expires_at":"soon"}), "expires_at"),
            (json!({"id":"a","platform":"claude","headers":{"X-Api-Key":"k"}}), "headers.X-Api-Key"),
            (json!({"id":"a","platform":"claude","session_token":"two words"}), "session_token"),
            (json!({"id":"a","platform":"claudeconsole"}), "custom_api_endpoint"),
            (console("ftp://h/api"), "custom_api_endpoint"),
            (console("h/api"), "custom_api_endpoint"),
            (console("https://u:p@h/api"), "custom_api_endpoint"),
            (console("https://h/api?x=1"), "custom_api_endpoint"),
            (console("https://h:99999/api"), "custom_api_endpoint"),
            (console("https://h:0/api"), "custom_api_endpoint"),
        ] {
            let shown = value.to_string();
            let sent = value.as_object().unwrap().clone();
            let error = parse(Value::Object(sent)).expect_err(&shown);
            assert!(error.field.eq_ignore_ascii_case(field) || error.field == "concurrency_limit", "{shown}: {error}");
        }
    }

    #[test]
    fn an_endpoint_may_be_an_ipv6_literal() {
        assert!(
            parse(json!({"id":"a","platform":"claudeconsole","custom_api_endpoint":"http://[::1]:8080/api"})).is_ok()
        );
        assert!(parse(json!({"id":"a","platform":"claudeconsole","custom_api_endpoint":"http://[::1]/api"})).is_ok());
    }
}
