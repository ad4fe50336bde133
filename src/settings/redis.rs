//! `[redis]`: where the store is, if not in the data directory.

use super::{SECOND, Settings};
use crate::domain::Secret;
use crate::store::redis::{DEFAULT_PREFIX, RedisOptions, RedisUrl};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::time::Duration;

section! {
    /// `[redis]`
    Redis {
        /// `redis://`, `rediss://`, `redis+unix://`, `redis+sentinel://` or `redis+cluster://`; empty, the default,
        /// is the embedded store. Shown with its password masked.
        url: RedisAddress = RedisAddress(None),
        /// What every key begins with, 1 to 64 of letters, digits and `:._-`. Default `claude-relay:`.
        key_prefix: String = DEFAULT_PREFIX.to_owned(),
        /// Connections at most, 1 to 256. Default 4.
        pool_size: usize = 4,
        /// To connect, TLS and login included, 10ms to 1m. Default 2s.
        #[serde(with = "humantime_serde")]
        connect_timeout: Duration = 2 * SECOND,
        /// For the answer to one command, pipeline or script, 10ms to 1m. Default 2s.
        #[serde(with = "humantime_serde")]
        command_timeout: Duration = 2 * SECOND,
        /// For a free connection of the pool, 10ms to 1m. Default 2s.
        #[serde(with = "humantime_serde")]
        wait_timeout: Duration = 2 * SECOND,
        /// How long to keep trying at start when Redis does not answer, 0s to 24h. Default 0s.
        #[serde(with = "humantime_serde")]
        wait_at_start: Duration = Duration::ZERO,
        /// How long the claim of a relay that died holds, 1s to 10m. Default 15s.
        #[serde(with = "humantime_serde")]
        lock_ttl: Duration = 15 * SECOND,
        /// How often the journal is settled into Redis, in place of `journal.settle_interval`, 1ms to 1h. Each round
        /// costs some ten commands for each worker, however many calls are in it, and whoever asks for usage gets
        /// it settled first. Default 15s.
        #[serde(with = "humantime_serde")]
        settle_interval: Duration = 15 * SECOND,
    }
}

/// An address that may hold a password, checked; or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisAddress(Option<Secret>);

impl RedisAddress {
    /// Checks `text`; empty is none.
    ///
    /// # Errors
    /// What is wrong with it, without quoting it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let secret = Secret::new(text);
        RedisUrl::parse(&secret).map_err(|e| e.to_string())?;
        Ok(Self(Some(secret)))
    }

    /// The address taken apart, if there is one.
    pub fn url(&self) -> Option<RedisUrl> {
        self.0.as_ref().and_then(|secret| RedisUrl::parse(secret).ok())
    }
}

impl Serialize for RedisAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.url().as_ref().map_or("", RedisUrl::masked))
    }
}

impl<'de> Deserialize<'de> for RedisAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl Settings {
    /// How to reach Redis, if that is the store.
    pub fn redis_options(&self) -> Option<RedisOptions> {
        self.redis.url.url().map(|url| self.redis_options_at(url))
    }

    /// How to reach the Redis at `url`, as the settings say for theirs.
    pub fn redis_options_at(&self, url: RedisUrl) -> RedisOptions {
        let redis = &self.redis;
        RedisOptions {
            key_prefix: redis.key_prefix.clone(),
            pool_size: redis.pool_size,
            connect_timeout: redis.connect_timeout,
            command_timeout: redis.command_timeout,
            wait_timeout: redis.wait_timeout,
            wait_at_start: redis.wait_at_start,
            lock_ttl: redis.lock_ttl,
            ..RedisOptions::new(url)
        }
    }
}
