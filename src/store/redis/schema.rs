//! The schema of the Redis engine: Lua migrations, applied in order when the owner starts.
//!
//! Called by [`super::RedisStore::connect`] under the owner's lock, and by the CLI for [`status`] and [`dry_run`].
//! A migration is run once for every key it names, each run a fenced script within one tag, found by SCAN. How far
//! it came is not recorded, on purpose: a cursor means nothing to a Redis that was restarted, so one that was
//! interrupted begins again, and every migration must be safe to run twice.

use super::commit::{Commit, Sent};
use super::keys::{KeyNames, Tag};
use super::link::{Link, Wire};
use crate::store::StoreError;
use crate::store::migration::{Applied, Forecast, Status, listed};
use deadpool_redis::redis::{Cmd, Script, cmd};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// One step of the schema; its version is its place in the list, from 1.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// As in the file's name.
    pub name: &'static str,
    /// The file.
    pub script: &'static str,
}

/// Every migration of this binary, in order. A file that was released is never edited.
pub const MIGRATIONS: &[Migration] = &[
    Migration { name: "initial", script: include_str!("../../../migrations-redis/0001_initial.lua") },
    Migration { name: "key_hashes", script: include_str!("../../../migrations-redis/0002_key_hashes.lua") },
];

/// Comes before every migration. KEYS: the key, the keys of the `with:` lines, the tag's guard. ARGV: the token,
/// and `dry` if nothing may be written: the first write then ends the script.
const PRELUDE: &str = r"
local fence = tonumber(redis.call('HGET', KEYS[#KEYS], 'fence') or '0')
if ARGV[2] ~= 'dry' and tonumber(ARGV[1]) < fence then return -1 end
local reads = { EXISTS=1, TYPE=1, TTL=1, PTTL=1, GET=1, STRLEN=1, HGET=1, HMGET=1, HGETALL=1, HKEYS=1, HLEN=1,
  HEXISTS=1, SMEMBERS=1, SISMEMBER=1, SCARD=1, LLEN=1, LRANGE=1 }
local real = redis
local function looked_at(how)
  return function(name, ...)
    if ARGV[2] == 'dry' and not reads[string.upper(name)] then error('WOULD WRITE') end
    return how(name, ...)
  end
end
local redis = setmetatable({ call = looked_at(real.call), pcall = looked_at(real.pcall) }, { __index = real })
";

const FENCED: i64 = -1;

/// Keys looked at in one go.
const BATCH: usize = 200;

/// Why the schema could not be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// A newer relay has been here.
    #[error(
        "Redis has schema version {found} and this relay knows {known}; run the newer relay again, or restore the \
         backup from before its first start"
    )]
    Newer {
        /// The version in Redis.
        found: u32,
        /// The latest of this binary.
        known: usize,
    },
    /// A file with this version but another text was applied.
    #[error("schema version {version} ({name}) was applied from another file than this relay's; it is not its Redis")]
    Differs {
        /// Which version.
        version: u32,
        /// Its name as recorded.
        name: String,
    },
    /// The header of a migration says something else than it may.
    #[error("migration {0}: {1}")]
    Header(String, String),
    /// Redis failed; the next start goes on.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Every migration, known or recorded, in order.
///
/// # Errors
/// When Redis fails.
pub async fn status(link: &Link, names: &KeyNames, known: &[Migration]) -> Result<Vec<Status>, SchemaError> {
    let recorded = recorded(&mut link.wire().await?, names).await?;
    Ok(listed(known.iter().map(|migration| migration.name), recorded))
}

/// What every pending migration would do. Writes nothing, and needs no lock.
///
/// # Errors
/// As [`migrate`].
pub async fn dry_run(link: &Link, names: &KeyNames, known: &[Migration]) -> Result<Vec<Forecast>, SchemaError> {
    let mut wire = link.wire().await?;
    let mut forecasts = Vec::new();
    for (version, migration) in pending(&recorded(&mut wire, names).await?, known)? {
        let (keys, changes) = run(&mut wire, names, migration, None).await?;
        forecasts.push(Forecast { version, name: migration.name.to_owned(), keys, changes });
    }
    Ok(forecasts)
}

/// Whether these data are ours to use. Changes nothing.
///
/// # Errors
/// When Redis is newer than this binary, was migrated by other files, or fails.
pub async fn check(link: &Link, names: &KeyNames, known: &[Migration]) -> Result<(), SchemaError> {
    let recorded = recorded(&mut link.wire().await?, names).await?;
    pending(&recorded, known).map(drop)
}

/// Applies every pending migration as the owner with `token`.
///
/// # Errors
/// When Redis is newer than this binary, was migrated by other files, or fails.
pub async fn migrate(link: &Link, names: &KeyNames, known: &[Migration], token: u64) -> Result<(), SchemaError> {
    let mut wire = link.wire().await?;
    for (version, migration) in pending(&recorded(&mut wire, names).await?, known)? {
        let (keys, changed) = run(&mut wire, names, migration, Some(token)).await?;
        let (seconds, micros): (i64, u32) = wire.ask_at(&names.schema(), cmd("TIME")).await?;
        let applied = Applied {
            name: migration.name.to_owned(),
            checksum: checksum(migration),
            applied_at: chrono::DateTime::from_timestamp(seconds, micros * 1_000)
                .unwrap_or_default()
                .to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
            keys,
            changed,
        };
        let record = serde_json::to_string(&applied).map_err(|e| StoreError::Engine(e.to_string()))?;
        let mut commit = Commit::new(names, Tag::Owner);
        commit.run("HSET", &names.schema(), 2, [version.to_string(), record]);
        if commit.send(&mut wire, token).await? != Sent::Done {
            return Err(fenced().into());
        }
        if changed > 0 {
            tracing::info!(version, name = migration.name, keys, changed, "schema migrated");
        }
    }
    Ok(())
}

fn checksum(migration: &Migration) -> String {
    hex::encode(Sha256::digest(migration.script))
}

fn fenced() -> StoreError {
    StoreError::Engine("another relay took this Redis over while it was migrated".to_owned())
}

async fn recorded(wire: &mut Wire, names: &KeyNames) -> Result<BTreeMap<u32, Applied>, SchemaError> {
    let raw: Vec<(String, String)> = wire.ask(cmd("HGETALL").arg(names.schema())).await?;
    let read = |(version, record): (String, String)| {
        let unreadable = || StoreError::Engine(format!("{}: {version} cannot be read", names.schema()));
        let applied = serde_json::from_str(&record).map_err(|_| unreadable())?;
        Ok((version.parse().map_err(|_| unreadable())?, applied))
    };
    raw.into_iter().map(read).collect()
}

/// What has not been applied, if what has been is ours.
fn pending<'a>(
    recorded: &BTreeMap<u32, Applied>,
    known: &'a [Migration],
) -> Result<Vec<(u32, &'a Migration)>, SchemaError> {
    if let Some((&found, _)) = recorded.last_key_value().filter(|(found, _)| **found as usize > known.len()) {
        return Err(SchemaError::Newer { found, known: known.len() });
    }
    let mut pending = Vec::new();
    for (version, migration) in (1..).zip(known) {
        match recorded.get(&version) {
            None => pending.push((version, migration)),
            Some(applied) if applied.checksum == checksum(migration) => {}
            Some(applied) => return Err(SchemaError::Differs { version, name: applied.name.clone() }),
        }
    }
    Ok(pending)
}

/// Which keys a migration wants: its `-- keys:` and `-- with:` lines, as tag and rest.
struct Wanted {
    /// For each tag the pattern of its keys.
    keys: Vec<(Tag, String)>,
    with: Vec<String>,
}

fn wanted(migration: &Migration) -> Result<Wanted, SchemaError> {
    let failed = |problem: &str| SchemaError::Header(migration.name.to_owned(), problem.to_owned());
    let lines = |what: &'static str| {
        let lines = migration.script.lines().filter_map(move |line| line.strip_prefix(what));
        lines.map(|line| {
            line.trim().split_once('}').and_then(|(tag, rest)| Some((tag.strip_prefix('{')?, rest.to_owned())))
        })
    };
    let (mut keys, mut own) = (Vec::new(), None);
    for line in lines("-- keys:") {
        let (tag, pattern) = line.ok_or_else(|| failed("a keys line is `{tag}pattern`"))?;
        let tags: Vec<Tag> = match tag {
            "usage-*" => Tag::usage().collect(),
            tag => Tag::all().filter(|known| known.text() == format!("{{{tag}}}")).collect(),
        };
        if tags.is_empty() || own.is_some_and(|own| own != tag) {
            return Err(failed("a migration has keys of one tag, which is owner, accounts, keys or usage-*"));
        }
        own = Some(tag);
        keys.extend(tags.into_iter().map(|tag| (tag, pattern.clone())));
    }
    let mut with = Vec::new();
    for line in lines("-- with:") {
        let (tag, rest) = line.ok_or_else(|| failed("a with line is `{tag}key`"))?;
        if own != Some(tag) {
            return Err(failed("a with line has the tag of the keys line"));
        }
        with.push(rest);
    }
    Ok(Wanted { keys, with })
}

/// Runs one migration over its keys, dry without a token; gives how many keys there were and how many it changed.
async fn run(
    wire: &mut Wire,
    names: &KeyNames,
    migration: &Migration,
    token: Option<u64>,
) -> Result<(u64, u64), SchemaError> {
    let script = Script::new(&format!("{PRELUDE}{}", migration.script));
    let wanted = wanted(migration)?;
    let (mut looked, mut changed) = (0, 0);
    for (tag, pattern) in &wanted.keys {
        let guard = names.guard(*tag);
        let mut cursor = "0".to_owned();
        loop {
            let mut scan: Cmd = cmd("SCAN");
            scan.arg(&cursor).arg("MATCH").arg(names.at(*tag, pattern)).arg("COUNT").arg(BATCH);
            let (next, keys): (String, Vec<String>) = wire.ask_at(&guard, scan).await?;
            for key in keys {
                let mut call = script.key(key);
                call.key(wanted.with.iter().map(|rest| names.at(*tag, rest)).collect::<Vec<_>>()).key(&guard);
                call.arg(token.unwrap_or_default()).arg(if token.is_none() { "dry" } else { "" });
                let answer: i64 = match wire.run(&call).await {
                    Err(StoreError::Engine(text)) if token.is_none() && text.contains("WOULD WRITE") => 1,
                    answer => answer?,
                };
                if answer == FENCED {
                    return Err(fenced().into());
                }
                looked += 1;
                changed += u64::from(answer > 0);
            }
            if next == "0" {
                break;
            }
            cursor = next;
        }
    }
    Ok((looked, changed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(script: &'static str) -> Result<Wanted, SchemaError> {
        wanted(&Migration { name: "m", script })
    }

    #[test]
    fn a_header_names_keys_of_one_tag() {
        let wanted = header("-- keys: {usage-*}sums:*\n-- with: {usage-*}days\nreturn 0").unwrap();
        assert_eq!((wanted.keys.len(), wanted.keys[3].1.as_str(), wanted.with.len()), (16, "sums:*", 1));
        assert!(header("return 0").unwrap().keys.is_empty());
        for script in [
            "-- keys: accounts",
            "-- keys: {nobody}rec:*",
            "-- keys: {keys}rec:*\n-- keys: {accounts}rec:*",
            "-- keys: {keys}rec:*\n-- with: {accounts}ids",
        ] {
            assert!(header(script).is_err(), "{script}");
        }
    }

    #[test]
    fn every_migration_here_has_a_good_header() {
        for migration in MIGRATIONS {
            wanted(migration).unwrap();
        }
    }
}
