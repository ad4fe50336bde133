//! How to reach Redis: the address in its five forms, and the timeouts.
//!
//! Made by start-up and the CLI from the settings, read by [`super::link`]. An address is taken apart here, at
//! parse time, so that a bad one is refused before anything connects; and no error, `Debug` or `Display` of it
//! shows the password: [`RedisUrl::masked`] is the one form for people.

use crate::domain::Secret;
use deadpool_redis::redis::{ConnectionInfo, IntoConnectionInfo};
use std::fmt;
use std::time::Duration;

/// Where Redis is and how long to wait for it.
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// The address.
    pub url: RedisUrl,
    /// What every key begins with; see [`check_prefix`]. Default `claude-relay:`.
    pub key_prefix: String,
    /// Connections at most. Default 4.
    pub pool_size: usize,
    /// To connect, TLS and login included. Default 2 s.
    pub connect_timeout: Duration,
    /// For the answer to one command, pipeline or script. Default 2 s.
    pub command_timeout: Duration,
    /// For a free connection of the pool. Default 2 s.
    pub wait_timeout: Duration,
    /// How long to keep trying at start when Redis does not answer; zero is not at all. Default 0.
    pub wait_at_start: Duration,
    /// How long the claim of a relay that died holds; a living one renews it three times as often. Default 15 s.
    pub lock_ttl: Duration,
}

/// What every key begins with unless told otherwise.
pub const DEFAULT_PREFIX: &str = "claude-relay:";

impl RedisOptions {
    /// The defaults for this address.
    pub fn new(url: RedisUrl) -> Self {
        let seconds = Duration::from_secs;
        Self {
            url,
            key_prefix: DEFAULT_PREFIX.to_owned(),
            pool_size: 4,
            connect_timeout: seconds(2),
            command_timeout: seconds(2),
            wait_timeout: seconds(2),
            wait_at_start: Duration::ZERO,
            lock_ttl: seconds(15),
        }
    }
}

/// What is wrong with a key prefix, if anything: it goes into `MATCH` patterns and ACLs, so it is kept plain.
pub fn check_prefix(prefix: &str) -> Option<&'static str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b":._-".contains(&b);
    let fits = !prefix.is_empty() && prefix.len() <= 64 && prefix.bytes().all(plain);
    (!fits).then_some("expected 1 to 64 letters, digits, ':', '.', '_' or '-'")
}

/// Why an address was refused; it is not quoted, since it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}; expected {FORMS}")]
pub struct RedisUrlError(String);

const FORMS: &str = "redis://[user[:password]@]host[:port][/db], rediss:// the same over TLS, \
    redis+unix:///path?db=N&user=U&pass=P, redis+sentinel://[user:password@]host:port,host:port/service[/db] \
    or redis+cluster://[user:password@]host:port,host:port; percent-encode what is special in a password";

/// An address that was taken apart.
#[derive(Clone)]
pub struct RedisUrl {
    pub(super) place: Place,
    masked: String,
}

/// One server, or how to find one of several.
#[derive(Clone)]
pub(super) enum Place {
    Server(Box<ConnectionInfo>),
    /// The sentinels' addresses, the service they watch, and how to log in at the server they name.
    Sentinel {
        sentinels: Vec<ConnectionInfo>,
        service: String,
        server: Box<ConnectionInfo>,
    },
    Cluster(Vec<ConnectionInfo>),
}

impl RedisUrl {
    /// Reads an address.
    ///
    /// # Errors
    /// Says what is wrong with it, without quoting it.
    pub fn parse(url: &Secret) -> Result<Self, RedisUrlError> {
        let text = url.expose().trim();
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("a Redis address needs a scheme"))?;
        let place = match scheme {
            "redis" | "rediss" => Place::Server(Box::new(server(text)?)),
            "unix" | "redis+unix" => Place::Server(Box::new(server(text)?)),
            "redis+sentinel" | "rediss+sentinel" => sentinel(&scheme[..scheme.len() - "+sentinel".len()], rest)?,
            "redis+cluster" | "rediss+cluster" => cluster(&scheme[..scheme.len() - "+cluster".len()], rest)?,
            _ => return Err(wrong("this is not a scheme of Redis")),
        };
        Ok(Self { place, masked: masked(scheme, rest) })
    }

    /// The address with `***` in place of its password, for messages.
    pub fn masked(&self) -> &str {
        &self.masked
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked)
    }
}

fn wrong(problem: impl Into<String>) -> RedisUrlError {
    RedisUrlError(problem.into())
}

fn server(text: &str) -> Result<ConnectionInfo, RedisUrlError> {
    let (place, query) = text.split_once('?').map_or((text, ""), |(place, query)| (place, query));
    let known = |pair: &str| ["db=", "user=", "pass="].iter().any(|name| pair.starts_with(name));
    let plain = query.is_empty() || (place.contains("unix://") && query.split('&').all(known));
    // With a fragment the library would not look at certificates.
    if !plain || text.contains('#') {
        return Err(wrong("only a unix socket has parameters, which are db, user and pass"));
    }
    let info = text.into_connection_info();
    // The library's message is one of its fixed texts and quotes nothing but the protocol's name.
    let info = info.map_err(|e| wrong(e.to_string()))?;
    if info.redis_settings().db() < 0 {
        return Err(wrong("a database's number is 0 or more"));
    }
    // Only Redis 7.2 knows the command, and a tight ACL would have to allow it.
    let settings = info.redis_settings().clone().set_skip_set_lib_name();
    Ok(info.set_redis_settings(settings))
}

/// `user:password@`, the hosts, and what follows them.
struct Parts<'a> {
    login: &'a str,
    hosts: Vec<&'a str>,
    path: &'a str,
}

fn parts(rest: &str) -> Result<Parts<'_>, RedisUrlError> {
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (login, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
    let hosts: Vec<&str> = hosts.split(',').map(str::trim).collect();
    if hosts.iter().any(|host| host.is_empty()) {
        return Err(wrong("a host is missing"));
    }
    if path.contains(['?', '#']) {
        return Err(wrong("this form takes no parameters"));
    }
    Ok(Parts { login, hosts, path })
}

fn sentinel(scheme: &str, rest: &str) -> Result<Place, RedisUrlError> {
    let Parts { login, hosts, path } = parts(rest)?;
    let mut path = path.trim_matches('/').split('/');
    let service = path.next().filter(|s| !s.is_empty()).ok_or_else(|| wrong("the sentinels' service is missing"))?;
    let db = path.next().unwrap_or("0");
    if path.next().is_some() {
        return Err(wrong("too many parts in the path"));
    }
    // Sentinels usually have no login of their own; the one in the address is the server's.
    let port = |host: &str| if has_port(host) { String::new() } else { ":26379".to_owned() };
    let sentinels: Result<_, _> =
        hosts.iter().map(|host| server(&format!("{scheme}://{host}{}", port(host)))).collect();
    let server = Box::new(server(&format!("{scheme}://{login}{}/{db}", hosts[0]))?);
    Ok(Place::Sentinel { sentinels: sentinels?, service: service.to_owned(), server })
}

fn has_port(host: &str) -> bool {
    let behind = host.rsplit_once(']').map_or(host, |(_, behind)| behind);
    behind.contains(':')
}

fn cluster(scheme: &str, rest: &str) -> Result<Place, RedisUrlError> {
    let Parts { login, hosts, path } = parts(rest)?;
    if !matches!(path, "" | "/" | "/0") {
        return Err(wrong("a Redis Cluster has database 0 only"));
    }
    let nodes: Result<_, _> = hosts.iter().map(|host| server(&format!("{scheme}://{login}{host}"))).collect();
    Ok(Place::Cluster(nodes?))
}

fn masked(scheme: &str, rest: &str) -> String {
    let (place, query) = rest.split_once('?').map_or((rest, None), |(place, query)| (place, Some(query)));
    let authority_end = place.find('/').unwrap_or(place.len());
    let (authority, path) = place.split_at(authority_end);
    let authority = match authority.rsplit_once('@') {
        Some((login, hosts)) => match login.split_once(':') {
            Some((user, _)) => format!("{user}:***@{hosts}"),
            None => format!("{login}@{hosts}"),
        },
        None => authority.to_owned(),
    };
    let hidden = |pair: &str| match pair.split_once('=') {
        Some((name, _)) if !matches!(name, "db" | "user" | "protocol") => format!("{name}=***"),
        _ => pair.to_owned(),
    };
    let query = query.map(|query| query.split('&').map(hidden).collect::<Vec<_>>().join("&"));
    format!("{scheme}://{authority}{path}{}", query.map_or(String::new(), |query| format!("?{query}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<RedisUrl, RedisUrlError> {
        RedisUrl::parse(&Secret::new(text))
    }

    #[test]
    fn every_form_is_read_and_shown_without_its_password() {
        for (text, shown) in [
            ("redis://127.0.0.1", "redis://127.0.0.1"),
            ("redis://user:s3cret@h:1234/5", "redis://user:***@h:1234/5"),
            ("rediss://:s3cret@h", "rediss://:***@h"),
            ("redis://user@h", "redis://user@h"),
            ("redis+unix:///run/r.sock?db=2&user=u&pass=s3cret", "redis+unix:///run/r.sock?db=2&user=u&pass=***"),
            ("unix:///run/r.sock", "unix:///run/r.sock"),
            ("redis+sentinel://u:s3cret@a:1,b/main/3", "redis+sentinel://u:***@a:1,b/main/3"),
            ("redis+cluster://u:s3c%40ret@a:1,b:2", "redis+cluster://u:***@a:1,b:2"),
            ("rediss+cluster://[::1]:7000", "rediss+cluster://[::1]:7000"),
        ] {
            let url = parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(url.masked(), shown);
            assert_eq!(format!("{url:?}"), shown);
        }
    }

    #[test]
    fn a_sentinel_address_keeps_its_parts() {
        let Place::Sentinel { sentinels, service, server } = parse("redis+sentinel://u:p@a:1,b/main/3").unwrap().place
        else {
            panic!("not a sentinel")
        };
        let addresses: Vec<_> = sentinels.iter().map(|s| s.addr().to_string()).collect();
        assert_eq!((addresses, service.as_str()), (vec!["a:1".to_owned(), "b:26379".to_owned()], "main"));
        let login = server.redis_settings();
        assert_eq!((login.username(), login.password(), login.db()), (Some("u"), Some("p"), 3));
        assert!(sentinels[0].redis_settings().password().is_none());
    }

    #[test]
    fn what_is_no_address_is_refused_without_quoting_it() {
        for text in [
            "",
            "s3cret",
            "http://u:s3cret@h",
            "redis://",
            "redis://u:s3cret@h:port",
            "redis://u:s3cret@h/db",
            "redis://u:s3cret@h/-1",
            "redis+sentinel://u:s3cret@a:1",
            "redis+sentinel://u:s3cret@a:1/main/0/1",
            "redis+sentinel://u:s3cret@,a:1/main",
            "redis+cluster://u:s3cret@a:1/2",
            "redis+cluster://u:s3cret@a:1?x=y",
            "redis+unix:///run/r.sock?db=x&pass=s3cret",
            "redis+unix:///run/r.sock?password=s3cret",
            "rediss://u:s3cret@h#insecure",
            "redis://u:s3cret@h?protocol=resp3",
        ] {
            let error = parse(text).map(|url| url.masked().to_owned()).expect_err(text).to_string();
            assert!(!error.contains("s3cret") && error.contains("expected"), "{text}: {error}");
        }
    }

    #[test]
    fn a_prefix_is_plain() {
        assert_eq!(check_prefix(DEFAULT_PREFIX), None);
        for prefix in ["", "a b", "a*", "{a}", &"a".repeat(65)] {
            assert!(check_prefix(prefix).is_some(), "{prefix}");
        }
    }
}
