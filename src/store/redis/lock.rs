//! Who owns the data under this prefix: one relay, until several can share it.
//!
//! Taken by [`super::RedisStore::connect`], renewed in the background, given back when the store is dropped. The
//! claim in Redis has a TTL, but nobody trusts clocks for safety: each owner gets a higher token, raises the fence
//! of every tag to it before it reads anything, and no script writes for a lower one. So an owner that slept
//! through its TTL can find out late; it can do no harm meanwhile.

use super::keys::{KeyNames, Tag};
use super::link::{Link, Wire};
use crate::store::StoreError;
use deadpool_redis::redis::Script;
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Who holds a claim: shown to people, and checked where the holder may have run on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The machine's name.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// When it took the claim, RFC 3339.
    pub since: String,
    /// Tells processes that had the same id one after the other apart: clock ticks since the machine's start.
    #[serde(default)]
    started: String,
    /// The running kernel and the pid namespace: within these a pid means something.
    #[serde(default)]
    machine: String,
}

impl Holder {
    fn myself(since: String) -> Self {
        let pid = std::process::id();
        let host = read("/proc/sys/kernel/hostname").unwrap_or_else(|| "unknown host".to_owned());
        Self { host, pid, since, started: started(pid).unwrap_or_default(), machine: machine().unwrap_or_default() }
    }

    /// True only if it certainly is: it ran beside us, and no such process is there.
    fn is_dead(&self) -> bool {
        let beside_us = !self.started.is_empty() && machine().is_some_and(|here| here == self.machine);
        beside_us
            && match started(self.pid) {
                Some(now) => now != self.started,
                // Hidden is not gone: /proc may be mounted so that others' processes are not seen.
                None => is_gone(self.pid),
            }
    }
}

/// True if there certainly is no such process, or only what is left of it.
fn is_gone(pid: u32) -> bool {
    let zombie = read(&format!("/proc/{pid}/stat")).is_some();
    let known = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    zombie || known.is_none_or(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Field 22 of `/proc/PID/stat`, counted behind the command's name, which may have spaces.
fn started(pid: u32) -> Option<String> {
    let stat = read(&format!("/proc/{pid}/stat"))?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    // A zombie holds nothing any more: its connections are closed.
    let alive = fields.next().is_some_and(|state| state != "Z");
    fields.nth(18).filter(|_| alive).map(str::to_owned)
}

fn machine() -> Option<String> {
    let kernel = read("/proc/sys/kernel/random/boot_id")?;
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{kernel} {}", namespace.display()))
}

/// KEYS: lock, guard of the owner's tag. ARGV: holder, TTL in ms, the claim that may be replaced. The token is the
/// server's time, so that it also rises after the data were lost.
static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[3] then return { 0, held, redis.call('PTTL', KEYS[1]) } end
local time = redis.call('TIME')
local token = time[1] * 1000 + math.floor(time[2] / 1000)
local last = tonumber(redis.call('HGET', KEYS[2], 'fence') or '0')
if token <= last then token = last + 1 end
local text = string.format('%.0f', token)
redis.call('HSET', KEYS[2], 'fence', text)
redis.call('SET', KEYS[1], text .. ' ' .. ARGV[1], 'PX', ARGV[2])
return { token, '', 0 }
",
    )
});

/// KEYS: the same. ARGV: token, claim, TTL in ms. Gives 0 held, 1 taken up again (it had run out, and nobody came),
/// 2 taken up again in data that are not those it was taken in, -1 lost. It says 2 again until the owner's fence is
/// raised, which is the last thing to be done about it.
static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local held = redis.call('GET', KEYS[1])
local token = tonumber(ARGV[1])
local last = tonumber(redis.call('HGET', KEYS[2], 'fence') or '0')
if held == ARGV[2] and last == token then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  return 0
end
if last > token or (held and tonumber(string.match(held, '^%d+') or '0') > token) then return -1 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
if last == token then return 1 end
return 2
",
    )
});

/// KEYS: lock. ARGV: claim.
static RELEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new("if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0")
});

/// KEYS: a tag's guard. ARGV: token. Gives 1, or 0 if a higher one was here.
static FENCE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local last = tonumber(redis.call('HGET', KEYS[1], 'fence') or '0')
if last > tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'fence', ARGV[1])
return 1
",
    )
});

/// Why a claim was not got.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another relay has it and renews it.
    #[error(
        "{address} with key prefix {prefix} belongs to another relay: process {pid} on {host}, since {since}; stop \
         that one, or give this one another key prefix"
    )]
    Owned {
        /// The masked address.
        address: String,
        /// The prefix both want.
        prefix: String,
        /// Its process.
        pid: u32,
        /// Its machine.
        host: String,
        /// Since when, RFC 3339.
        since: String,
    },
    /// Redis failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How a renewal went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// It is ours, and always was.
    Held,
    /// It is ours again, in data that do not know us: they were lost, or are older than our claim.
    Strange,
    /// Another relay has it, or had it in between.
    Lost,
}

/// A claim that was got.
#[derive(Debug, Clone)]
pub struct OwnerLock {
    /// What every write shows; higher than that of every owner before.
    pub token: u64,
    claim: String,
    ttl: Duration,
}

impl OwnerLock {
    /// Takes the claim, and then fences everyone before off. Where another has it, waits until that one renews it
    /// (then it is alive, and refused is what we are) or its TTL has run out.
    ///
    /// # Errors
    /// [`LockError::Owned`] with who has it; [`LockError::Store`] when Redis fails.
    pub async fn take(link: &Link, names: &KeyNames, ttl: Duration, prefix: &str) -> Result<Self, LockError> {
        let mut wire = link.wire().await?;
        let since: (i64, u32) = wire.ask_at(&names.lock(), deadpool_redis::redis::cmd("TIME")).await?;
        let since = chrono::DateTime::from_timestamp(since.0, 0).unwrap_or_default();
        let me = Holder::myself(since.to_rfc3339_opts(chrono::SecondsFormat::Secs, true));
        let me = serde_json::to_string(&me).map_err(|e| StoreError::Engine(e.to_string()))?;
        let (began, mut replace) = (Instant::now(), String::new());
        // The claim seen first, and how much time it had then.
        let mut first: Option<(String, i64)> = None;
        loop {
            let mut call = TAKE.prepare_invoke();
            call.key(names.lock()).key(names.guard(Tag::Owner)).arg(&me).arg(millis(ttl)).arg(&replace);
            let (token, held, left): (u64, String, i64) = wire.run(&call).await?;
            if token > 0 {
                let lock = Self { token, claim: format!("{token} {me}"), ttl };
                lock.fence(&mut wire, names, Tag::all()).await?;
                return Ok(lock);
            }
            let holder = held.split_once(' ').and_then(|(_, json)| serde_json::from_str::<Holder>(json).ok());
            if let Some(Holder { host, pid, since, .. }) = holder.as_ref().filter(|h| h.is_dead() && replace != held) {
                tracing::info!(host, pid, since, "the relay that owned this Redis is dead; taking over");
                replace = held;
                continue;
            }
            let (seen, given) = first.get_or_insert_with(|| (held.clone(), left));
            let passed = i64::try_from(millis(began.elapsed())).unwrap_or(i64::MAX);
            // A claim that is left alone has ever less time; half a second is for the ways there and back.
            if *seen != held || left < 0 || left + passed > *given + 500 {
                let unknown = || "unknown".to_owned();
                let (host, pid, since) = holder.map_or_else(|| (unknown(), 0, unknown()), |h| (h.host, h.pid, h.since));
                let (address, prefix) = (link.address().to_owned(), prefix.to_owned());
                return Err(LockError::Owned { address, prefix, pid, host, since });
            }
            let left = u64::try_from(left).unwrap_or_default();
            tokio::time::sleep(Duration::from_millis(left.clamp(10, 250))).await;
        }
    }

    /// Raises the fence of these tags to our token.
    ///
    /// # Errors
    /// [`StoreError::Engine`] when Redis fails, or a higher token was here meanwhile.
    pub async fn fence(
        &self,
        wire: &mut Wire,
        names: &KeyNames,
        tags: impl Iterator<Item = Tag>,
    ) -> Result<(), StoreError> {
        for tag in tags {
            let mut call = FENCE.prepare_invoke();
            call.key(names.guard(tag)).arg(self.token);
            if wire.run::<u8>(&call).await? == 0 {
                return Err(StoreError::Engine("another relay took this Redis over at this moment".to_owned()));
            }
        }
        Ok(())
    }

    /// Renews the claim, or takes it up again if nobody came.
    ///
    /// # Errors
    /// [`StoreError::Engine`] when Redis fails; that is no loss, only no news.
    pub async fn renew(&self, wire: &mut Wire, names: &KeyNames) -> Result<Renewal, StoreError> {
        let mut call = RENEW.prepare_invoke();
        call.key(names.lock()).key(names.guard(Tag::Owner)).arg(self.token).arg(&self.claim).arg(millis(self.ttl));
        Ok(match wire.run::<i8>(&call).await? {
            0 | 1 => Renewal::Held,
            2 => Renewal::Strange,
            _ => Renewal::Lost,
        })
    }

    /// Gives the claim back, if it still is ours.
    ///
    /// # Errors
    /// [`StoreError::Engine`] when Redis fails; then it runs out by itself.
    pub async fn release(&self, wire: &mut Wire, names: &KeyNames) -> Result<(), StoreError> {
        let mut call = RELEASE.prepare_invoke();
        call.key(names.lock()).arg(&self.claim);
        wire.run(&call).await
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_dead_only_if_it_ran_here_and_is_gone() {
        let me = Holder::myself(String::new());
        assert!(!me.is_dead());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        assert!(Holder { pid, ..me.clone() }.is_dead());
        assert!(Holder { started: "1".to_owned(), ..me.clone() }.is_dead(), "another process with our pid");
        assert!(!Holder { pid, machine: "elsewhere".to_owned(), ..me.clone() }.is_dead());
        assert!(!Holder { pid, started: String::new(), ..me }.is_dead());
    }
}
