//! How layers of settings are laid over each other, and what each value may be.
//!
//! Used by [`Settings::load`] alone. Every value is checked when it is laid on, by itself, over the defaults:
//! so the first bad one is named together with the flag, variable or file it came from.

use super::{DAY, HOUR, MINUTE, MOMENT, Origin, PREFIX, SECOND, ServeFlags, Settings, SettingsError};
use crate::store::redis::check_prefix;
use humantime_serde::re::humantime::{format_duration, parse_duration};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use toml::{Table, Value};
use tracing_subscriber::EnvFilter;

enum Range {
    Whole(i64, i64),
    Span(Duration, Duration),
}

const TEN_MS: Duration = Duration::from_millis(10);

/// Every number and duration with its range; a unit test fails if one is missing.
const RANGES: &[(&str, Range)] = &[
    ("workers", Range::Whole(0, 256)),
    ("drain_timeout", Range::Span(Duration::ZERO, DAY)),
    ("limits.max_body_bytes", Range::Whole(1 << 10, 256 << 20)),
    ("limits.body_memory_bytes", Range::Whole(1 << 10, 1 << 40)),
    ("limits.upload_timeout", Range::Span(MOMENT, DAY)),
    ("limits.header_timeout", Range::Span(MOMENT, HOUR)),
    ("limits.keep_alive", Range::Span(Duration::ZERO, DAY)),
    ("limits.send_timeout", Range::Span(Duration::from_secs(1), DAY)),
    ("upstream.connect_timeout", Range::Span(MOMENT, HOUR)),
    ("upstream.first_byte_timeout", Range::Span(MOMENT, DAY)),
    ("upstream.idle_timeout", Range::Span(MOMENT, DAY)),
    ("upstream.abort_linger", Range::Span(Duration::ZERO, Duration::from_secs(10))),
    ("health.rate_limited_first", Range::Span(MOMENT, DAY)),
    ("health.overloaded_first", Range::Span(MOMENT, DAY)),
    ("health.longest", Range::Span(MOMENT, DAY)),
    ("health.trial", Range::Span(MOMENT, DAY)),
    ("health.jitter", Range::Whole(0, 50)),
    ("health.breaker_failures", Range::Whole(1, 1_000)),
    ("health.breaker_rate", Range::Whole(1, 100)),
    ("health.breaker_minimum", Range::Whole(1, 100_000)),
    ("health.breaker_window", Range::Span(SECOND, HOUR)),
    ("health.breaker_first", Range::Span(MOMENT, DAY)),
    ("health.slow_start", Range::Span(Duration::ZERO, HOUR)),
    ("health.ejected_share", Range::Whole(0, 100)),
    ("health.probe_first", Range::Span(MOMENT, DAY)),
    ("health.probe_longest", Range::Span(MOMENT, DAY)),
    ("queue.timeout", Range::Span(Duration::ZERO, DAY)),
    ("queue.per_key", Range::Whole(1, 1_000_000)),
    ("queue.total", Range::Whole(1, 1_000_000)),
    ("queue.keep_alive", Range::Span(Duration::ZERO, HOUR)),
    ("affinity.sessions", Range::Whole(0, 10_000_000)),
    ("affinity.ttl", Range::Span(Duration::ZERO, DAY)),
    ("affinity.patience", Range::Span(Duration::ZERO, HOUR)),
    ("failover.attempts", Range::Whole(1, 10)),
    ("failover.budget", Range::Whole(0, 100)),
    ("failover.floor", Range::Whole(0, 10_000)),
    ("redis.pool_size", Range::Whole(1, 256)),
    ("redis.connect_timeout", Range::Span(TEN_MS, MINUTE)),
    ("redis.command_timeout", Range::Span(TEN_MS, MINUTE)),
    ("redis.wait_timeout", Range::Span(TEN_MS, MINUTE)),
    ("redis.wait_at_start", Range::Span(Duration::ZERO, DAY)),
    ("redis.lock_ttl", Range::Span(SECOND, Duration::from_mins(10))),
    ("redis.settle_interval", Range::Span(MOMENT, HOUR)),
    ("journal.settle_interval", Range::Span(MOMENT, HOUR)),
];

/// Variables that are no settings: read by the client commands, or here under a rule of their own.
const OTHER_VARIABLES: [&str; 4] = ["ADMIN_TOKEN", "ADMIN_URL", "SEALING_KEY", "CONFIG"];

/// The defaults with one layer after the other laid over them.
pub(super) struct Layers {
    defaults: Table,
    /// The default of each setting by its path.
    known: BTreeMap<String, Value>,
    table: Table,
    origins: BTreeMap<String, Origin>,
}

impl Layers {
    pub(super) fn new() -> Self {
        let defaults = Table::try_from(Settings::default()).unwrap_or_default();
        let known = leaves("", &defaults).into_iter().collect();
        Self { table: defaults.clone(), defaults, known, origins: BTreeMap::new() }
    }

    pub(super) fn lay_file(&mut self, named: Option<PathBuf>) -> Result<(), SettingsError> {
        let path = named.clone().unwrap_or_else(|| "./claude-relay.toml".into());
        let origin = || Origin::File(path.clone());
        let text = match std::fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && named.is_none() => return Ok(()),
            read => read.map_err(|e| SettingsError::new("settings file", e.to_string(), origin()))?,
        };
        let table: Table = text.parse().map_err(|e: toml::de::Error| {
            // The line's text is left out: it may hold what somebody took for a place for a secret.
            let line = e.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            SettingsError::new("settings file", format!("line {line}: {}", e.message()), origin())
        })?;
        for (setting, value) in leaves("", &table) {
            let empty_section = value.is_table() && self.defaults.get(&setting).is_some_and(Value::is_table);
            if !empty_section {
                self.lay(&setting, value, origin())?;
            }
        }
        Ok(())
    }

    pub(super) fn lay_variable(&mut self, name: &str, text: String) -> Result<(), SettingsError> {
        let short = name.trim_start_matches(PREFIX);
        if OTHER_VARIABLES.contains(&short) || is_service_link(short, &text) {
            return Ok(());
        }
        let origin = Origin::Variable(name.to_owned());
        let Some((setting, default)) = self.known.iter().find(|(path, _)| variable(path) == name) else {
            let others = OTHER_VARIABLES.iter().map(|short| format!("{PREFIX}{short}"));
            let near = near(name, self.known.keys().map(|path| variable(path)).chain(others));
            return Err(SettingsError::new(name, format!("no such variable{near}"), origin));
        };
        let value = match default {
            Value::Integer(_) => text.parse().map_or(Value::String(text), Value::Integer),
            Value::Boolean(_) => text.parse().map_or(Value::String(text), Value::Boolean),
            _ => Value::String(text),
        };
        self.lay(&setting.clone(), value, origin)
    }

    pub(super) fn lay_flags(&mut self, flags: &ServeFlags) -> Result<(), SettingsError> {
        let data_dir = flags.data_dir.as_ref().map(|dir| dir.to_string_lossy().into_owned().into());
        let given = [
            ("data_dir", "--data-dir", data_dir),
            ("listen", "--listen", flags.listen.clone().map(Value::from)),
            ("admin_listen", "--admin-listen", flags.admin_listen.clone().map(Value::from)),
            ("workers", "--workers", flags.workers.map(Value::from)),
            ("redis.url", "--redis-url", flags.redis_url.clone().map(Value::from)),
            ("demo", "--no-demo", flags.no_demo.then_some(Value::Boolean(false))),
        ];
        let mut given = given.into_iter().filter_map(|(path, flag, value)| Some((path, flag, value?)));
        given.try_for_each(|(path, flag, value)| self.lay(path, value, Origin::Flag(flag)))
    }

    /// Checks one value and lays it on.
    fn lay(&mut self, path: &str, value: Value, origin: Origin) -> Result<(), SettingsError> {
        if !self.known.contains_key(path) {
            let near = near(path, self.known.keys().cloned());
            return Err(SettingsError::new(path, format!("no such setting{near}"), origin));
        }
        let expected = RANGES.iter().find(|(name, _)| *name == path).and_then(|(_, range)| range.misfit(&value));
        let mut alone = self.defaults.clone();
        put(&mut alone, path, value.clone());
        let problem = expected.or_else(|| match alone.try_into::<Settings>() {
            Ok(settings) => settings.misfit(path).map(str::to_owned),
            Err(e) => Some(e.message().lines().next().unwrap_or_default().to_owned()),
        });
        if let Some(problem) = problem {
            let shown: String = value.to_string().chars().take(80).collect();
            // An address may hold a password, also one that is no address.
            let shown = if path == "redis.url" { "***".to_owned() } else { shown };
            return Err(SettingsError::new(path, format!("{problem}, got {shown}"), origin));
        }
        put(&mut self.table, path, value);
        self.origins.insert(path.to_owned(), origin);
        Ok(())
    }

    /// Checks what two settings must be to each other.
    pub(super) fn finish(self) -> Result<Settings, SettingsError> {
        let origin = |path: &str| self.origins.get(path).cloned().unwrap_or(Origin::Default);
        let wrong = |path: &str, problem: String| Err(SettingsError::new(path, problem, origin(path)));
        let settings: Settings =
            self.table.clone().try_into().map_err(|e: toml::de::Error| {
                SettingsError::new("settings", e.message().to_owned(), Origin::Default)
            })?;
        let (limits, health) = (&settings.limits, &settings.health);
        if limits.body_memory_bytes < limits.max_body_bytes {
            let problem = format!(
                "expected at least limits.max_body_bytes ({}), got {}",
                limits.max_body_bytes, limits.body_memory_bytes
            );
            return wrong("limits.body_memory_bytes", problem);
        }
        for (path, longest, first, least) in [
            ("health.longest", health.longest, "health.rate_limited_first", health.rate_limited_first),
            ("health.longest", health.longest, "health.overloaded_first", health.overloaded_first),
            ("health.longest", health.longest, "health.breaker_first", health.breaker_first),
            ("health.probe_longest", health.probe_longest, "health.probe_first", health.probe_first),
        ] {
            if longest < least {
                let (longest, least) = (format_duration(longest), format_duration(least));
                return wrong(path, format!("expected at least {first} ({least}), got {longest}"));
            }
        }
        if settings.listen.addrs.iter().any(|a| a.port() != 0 && settings.admin_listen.addrs.contains(a)) {
            return wrong("admin_listen", "expected another address than listen; the Admin API is apart".to_owned());
        }
        Ok(settings)
    }
}

impl Settings {
    /// What is wrong with the text setting at `path`, beyond its type.
    fn misfit(&self, path: &str) -> Option<&'static str> {
        let visible = |text: &str| !text.is_empty() && text.len() <= 256 && text.bytes().all(|b| b.is_ascii_graphic());
        match path {
            "data_dir" if self.data_dir.as_os_str().is_empty() => Some("expected a directory"),
            "data_dir" if self.data_dir.to_string_lossy().contains('\u{fffd}') => Some("expected a path in UTF-8"),
            "log.level" if EnvFilter::try_new(&self.log.level).is_err() => {
                Some("expected error, warn, info, debug, trace, or a filter such as warn,claude_relay=debug")
            }
            "redis.key_prefix" => check_prefix(&self.redis.key_prefix),
            "health.probe_model" if !visible(&self.health.probe_model) => Some("expected a model's name"),
            _ => None,
        }
    }
}

impl Range {
    /// What was expected, if `value` is not it.
    fn misfit(&self, value: &Value) -> Option<String> {
        match self {
            Self::Whole(least, most) => {
                let fits = value.as_integer().is_some_and(|n| (*least..=*most).contains(&n));
                (!fits).then(|| format!("expected a whole number from {least} to {most}"))
            }
            Self::Span(least, most) => {
                let span = value.as_str().and_then(|text| parse_duration(text).ok());
                let fits = span.is_some_and(|span| (*least..=*most).contains(&span));
                let (least, most) = (format_duration(*least), format_duration(*most));
                (!fits).then(|| format!("expected a duration such as \"10s\", from {least} to {most}"))
            }
        }
    }
}

/// Every value of a table by its path; an empty section stands for itself.
fn leaves(prefix: &str, table: &Table) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for (name, value) in table {
        match value {
            Value::Table(section) if !section.is_empty() => found.extend(leaves(&format!("{prefix}{name}."), section)),
            value => found.push((format!("{prefix}{name}"), value.clone())),
        }
    }
    found
}

fn put(table: &mut Table, path: &str, value: Value) {
    match path.split_once('.') {
        None => drop(table.insert(path.to_owned(), value)),
        Some((section, rest)) => {
            if let Some(Value::Table(inner)) = table.get_mut(section) {
                put(inner, rest, value);
            }
        }
    }
}

fn variable(path: &str) -> String {
    format!("{PREFIX}{}", path.replace('.', "_").to_uppercase())
}

/// Kubernetes and Docker announce a service named `claude-relay…` as variables of these names; refusing them
/// would keep the relay from starting beside its own service.
fn is_service_link(short: &str, value: &str) -> bool {
    let port = short.starts_with("PORT") || short.contains("_PORT");
    let of_link = short.contains("_TCP") || short.contains("_UDP") || value.contains("://");
    short.contains("SERVICE_HOST") || short.contains("SERVICE_PORT") || (port && of_link)
}

/// `; did you mean …?`, or nothing.
fn near(name: &str, known: impl Iterator<Item = String>) -> String {
    let tail = |text: &str| text.trim_start_matches(PREFIX).to_owned();
    let wanted = tail(name);
    let mut close: Vec<_> = known
        .filter(|k| distance(&wanted, &tail(k)) <= 3 || tail(k).ends_with(&wanted) || wanted.ends_with(&tail(k)))
        .collect();
    close.sort_by_key(|k| distance(&wanted, &tail(k)));
    close.truncate(3);
    if close.is_empty() { String::new() } else { format!("; did you mean {}?", close.join(" or ")) }
}

/// How many single-character edits lie between two names.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let edit = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = edit.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_and_duration_has_a_range_that_its_default_fits() {
        let known = Layers::new().known;
        assert_eq!(known.len(), 54, "{known:?}");
        for (path, default) in &known {
            let range = RANGES.iter().find(|(name, _)| name == path);
            let needs = default.is_integer() || default.as_str().is_some_and(|text| parse_duration(text).is_ok());
            assert_eq!(range.is_some(), needs, "{path}");
            assert!(range.is_none_or(|(_, range)| range.misfit(default).is_none()), "{path}");
        }
        assert!(RANGES.iter().all(|(path, _)| known.contains_key(*path)));
    }

    #[test]
    fn variables_of_a_service_of_the_same_name_are_known() {
        for (name, value) in [
            ("SERVICE_HOST", "10.0.0.1"),
            ("SERVICE_PORT_HTTP", "8080"),
            ("PORT", "tcp://10.0.0.1:8080"),
            ("PORT_8080_TCP_ADDR", "10.0.0.1"),
            ("ADMIN_PORT_8081_TCP", "tcp://10.0.0.1:8081"),
        ] {
            assert!(is_service_link(name, value), "{name}");
        }
        assert!(!is_service_link("PORT", "9000"));
        assert!(!is_service_link("LISTEN_PORT", "9000"));
    }
}
