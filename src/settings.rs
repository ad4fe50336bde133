//! Every setting with its default and range, and the only place that reads the environment.
//!
//! `cli::serve` loads them once at start, `startup` hands the sections on; the client commands take
//! their variables from `environment`. Falling order: flag, environment, `claude-relay.toml`, default. Each value is
//! checked as it is laid on, not at the end: so an error can always name the setting and where it came from.

/// Declares a section with each field's default beside it.
macro_rules! section {
    ($(#[$about:meta])* $name:ident { $($(#[$doc:meta])* $field:ident: $kind:ty = $default:expr,)+ }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name { $($(#[$doc])* pub $field: $kind,)+ }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }
    };
}

mod layers;
mod pool;
mod redis;

use crate::domain::Secret;
use layers::Layers;
pub use pool::{Affinity, Failover, Health, Queue};
pub use redis::{Redis, RedisAddress};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);
const QUARTER: Duration = Duration::from_millis(250);
/// The least where zero would mean "at once, always too late".
const MOMENT: Duration = Duration::from_millis(1);

section! {
    /// All settings of one relay. In the environment, `limits.keep_alive` is `CLAUDE_RELAY_LIMITS_KEEP_ALIVE`.
    /// Durations are written as `250ms`, `75s`, `1h 30m`.
    Settings {
        /// Where everything is kept; relative to the working directory. Default `./data`.
        data_dir: PathBuf = "./data".into(),
        /// Where clients connect, `host:port`. Default `127.0.0.1:8080`.
        listen: Listen = Listen::at(SocketAddr::from(([127, 0, 0, 1], 8080))),
        /// Where the Admin API listens, never the same as `listen`. Default `127.0.0.1:8081`.
        admin_listen: Listen = Listen::at(SocketAddr::from(([127, 0, 0, 1], 8081))),
        /// HTTP worker threads, 0 to 256; 0, the default, is one per core.
        workers: usize = 0,
        /// Start an empty store with a demo account and key. Default true.
        demo: bool = true,
        /// How long running answers may go on after SIGTERM, 0s to 24h. Default 60s.
        #[serde(with = "humantime_serde")]
        drain_timeout: Duration = MINUTE,
        /// From the environment alone: 64 hex digits that seal stored secrets, in place of the key file.
        #[serde(skip)]
        sealing_key: Option<Secret> = None,
        /// What is logged and how.
        log: Log = Log::default(),
        /// What a client may ask of the relay.
        limits: Limits = Limits::default(),
        /// Patience with upstreams.
        upstream: Upstream = Upstream::default(),
        /// Cooldowns, the circuit breaker and probes.
        health: Health = Health::default(),
        /// Calls that wait for an account.
        queue: Queue = Queue::default(),
        /// Sessions and their accounts.
        affinity: Affinity = Affinity::default(),
        /// Trying a call again on another account.
        failover: Failover = Failover::default(),
        /// The usage journal.
        journal: Journal = Journal::default(),
        /// The store, if it is not the embedded one.
        redis: Redis = Redis::default(),
    }
}

section! {
    /// `[log]`
    Log {
        /// `auto`, `pretty` or `json`. Default `auto`.
        format: LogFormat = LogFormat::Auto,
        /// What to log, as a `tracing` filter such as `info` or `warn,claude_relay=debug`. Default `info`.
        level: String = "info".to_owned(),
    }
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// `pretty` if standard output is a terminal, else `json`.
    Auto,
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

section! {
    /// `[limits]`
    Limits {
        /// The largest request body, bytes, 1 KiB to 256 MiB. Default 33554432 (32 MiB).
        max_body_bytes: usize = 32 << 20,
        /// All request bodies in memory together, bytes, `max_body_bytes` to 1 TiB. Default 1073741824 (1 GiB).
        body_memory_bytes: usize = 1 << 30,
        /// How long a request body may take to arrive, 1ms to 24h. Default 60s.
        #[serde(with = "humantime_serde")]
        upload_timeout: Duration = MINUTE,
        /// How long a request's head may take to arrive, 1ms to 1h. Default 10s.
        #[serde(with = "humantime_serde")]
        header_timeout: Duration = 10 * SECOND,
        /// How long an idle client connection is kept, 0s to 24h. Default 75s.
        #[serde(with = "humantime_serde")]
        keep_alive: Duration = 75 * SECOND,
        /// How long a client may take none of an answer that is there for it, 1s to 24h. Default 60s, as nginx's
        /// `send_timeout`.
        #[serde(with = "humantime_serde")]
        send_timeout: Duration = MINUTE,
    }
}

section! {
    /// `[upstream]`
    Upstream {
        /// To connect, name lookup and TLS included, 1ms to 1h. Default 10s.
        #[serde(with = "humantime_serde")]
        connect_timeout: Duration = 10 * SECOND,
        /// From the request to the answer's first byte, connecting and the upload included, 1ms to 24h. Default 10m.
        #[serde(with = "humantime_serde")]
        first_byte_timeout: Duration = 10 * MINUTE,
        /// Between two chunks of an answer, 1ms to 24h. Default 5m.
        #[serde(with = "humantime_serde")]
        idle_timeout: Duration = 5 * MINUTE,
        /// How long a call that we abort keeps its slot, 0s to 10s; the upstream may work on. Default 250ms.
        #[serde(with = "humantime_serde")]
        abort_linger: Duration = QUARTER,
        /// A PEM file of certificate authorities that are trusted besides Mozilla's; empty is none. Default empty.
        ca_file: PathBuf = PathBuf::new(),
    }
}

section! {
    /// `[journal]`
    Journal {
        /// How often the journal is settled into the store, 1ms to 1h. Default 250ms.
        #[serde(with = "humantime_serde")]
        settle_interval: Duration = QUARTER,
    }
}

/// An address to listen at, as written and as resolved; `localhost` may be two.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Listen {
    text: String,
    addrs: Vec<SocketAddr>,
}

impl Listen {
    /// Exactly this address.
    pub fn at(addr: SocketAddr) -> Self {
        Self { text: addr.to_string(), addrs: vec![addr] }
    }

    /// What to bind, at least one.
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let host = text.rsplit_once(':').map_or("", |(host, _)| host);
        let found = text.to_socket_addrs().map(Vec::from_iter).map_err(|e| e.to_string());
        match found {
            Ok(addrs) if !addrs.is_empty() && !host.is_empty() => Ok(Self { text, addrs }),
            Err(e) if !host.is_empty() => Err(format!("expected host:port such as 127.0.0.1:8080 ({e})")),
            _ => Err("expected host:port such as 127.0.0.1:8080".to_owned()),
        }
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> Self {
        listen.text
    }
}

/// The flags of `serve`; what is not given here comes from the environment, the file or the default.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ServeFlags {
    /// Settings file [default: ./claude-relay.toml if there is one]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where everything is kept [default: ./data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where clients connect [default: 127.0.0.1:8080]
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Where the Admin API listens [default: 127.0.0.1:8081]
    #[arg(long, value_name = "HOST:PORT")]
    pub admin_listen: Option<String>,
    /// HTTP worker threads, at most 256; 0 is one per core [default: 0]
    #[arg(long, value_name = "N")]
    pub workers: Option<u32>,
    /// Never make a demo account and key
    #[arg(long)]
    pub no_demo: bool,
    /// Keep accounts, keys and usage in this Redis [default: the embedded store]. A password in it is seen by
    /// whoever lists processes: better CLAUDE_RELAY_REDIS_URL or the settings file
    #[arg(long, value_name = "URL")]
    pub redis_url: Option<String>,
    /// Print the effective settings and exit
    #[arg(long)]
    pub check: bool,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The settings file.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// A flag of `serve`.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// Why settings were refused; `Display` says which, what to change, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {problem} (from {origin})")]
pub struct SettingsError {
    /// The setting's path, such as `limits.keep_alive`; or the variable or file that is no good as a whole.
    pub setting: String,
    /// What was expected, with the range, and what came; a secret is not quoted.
    pub problem: String,
    /// Where it was given.
    pub origin: Origin,
}

impl SettingsError {
    fn new(setting: impl Into<String>, problem: impl Into<String>, origin: Origin) -> Self {
        Self { setting: setting.into(), problem: problem.into(), origin }
    }
}

const PREFIX: &str = "CLAUDE_RELAY_";

/// The `CLAUDE_RELAY_*` part of the process's environment.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.to_string_lossy().into()));
    std::env::vars_os().filter_map(text).filter(|(name, _): &(String, String)| name.starts_with(PREFIX))
}

/// A secret from the environment variable that an operator named; `None` if it is not set or no UTF-8.
pub fn secret_variable(name: &str) -> Option<Secret> {
    std::env::var(name).ok().map(Secret::new)
}

impl Settings {
    /// The settings in force, each value checked.
    ///
    /// # Errors
    /// Names the first setting, variable or file at fault.
    pub fn load(flags: &ServeFlags, env: impl Iterator<Item = (String, String)>) -> Result<Settings, SettingsError> {
        let mut env: BTreeMap<String, String> = env.filter(|(name, _)| name.starts_with(PREFIX)).collect();
        let mut layers = Layers::new();
        let named = env.remove("CLAUDE_RELAY_CONFIG").map(PathBuf::from);
        layers.lay_file(flags.config.clone().or(named))?;
        let sealing_key = env.remove("CLAUDE_RELAY_SEALING_KEY").map(parse_sealing_key).transpose()?;
        for (name, value) in env {
            layers.lay_variable(&name, value)?;
        }
        layers.lay_flags(flags)?;
        let settings = layers.finish()?;
        Ok(Settings { sealing_key, ..settings })
    }

    /// All settings as TOML that could be saved as `claude-relay.toml`; a secret shows as `***` in a comment.
    pub fn effective(&self) -> String {
        let secret = self.sealing_key.as_ref().map_or("", |_| "# CLAUDE_RELAY_SEALING_KEY = \"***\"\n");
        format!("{secret}{}", toml::to_string(self).unwrap_or_else(|e| format!("# cannot be shown: {e}\n")))
    }

    /// Settings for a relay inside a test: free ports, two workers, no demo, a short drain.
    pub fn for_tests(data_dir: impl Into<PathBuf>) -> Self {
        let free = Listen::at(SocketAddr::from(([127, 0, 0, 1], 0)));
        Self {
            data_dir: data_dir.into(),
            listen: free.clone(),
            admin_listen: free,
            workers: 2,
            demo: false,
            drain_timeout: 2 * SECOND,
            ..Self::default()
        }
    }
}

fn parse_sealing_key(text: String) -> Result<Secret, SettingsError> {
    let key = Secret::new(text);
    let name = "CLAUDE_RELAY_SEALING_KEY";
    if key.expose().len() == 64 && key.expose().bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(key);
    }
    Err(SettingsError::new(name, "expected 64 hex digits, got ***", Origin::Variable(name.to_owned())))
}
