//! Every key that the relay has in Redis: its name, and the hash tag that says in which slot it lies.
//!
//! Used by every file of this engine; no other file spells a key. All keys of one tag lie in one slot, and a
//! script never leaves its tag. Usage is spread over [`SHARDS`] tags by the worker that wrote its journal: a call
//! begins and ends in one worker's files, so that a whole piece, offset included, is taken in by one script.
//! `migrations-redis/README.md` has the table with types and fields.

use crate::store::journal::JournalFile;

/// Into how many tags usage is spread. Stored offsets depend on it: changing it takes a migration.
pub const SHARDS: u16 = 16;

/// Bits in one bitmap of ended calls, which is 128 KiB.
const DONE_BITS: u64 = 1 << 20;

/// A group of keys in one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tag {
    /// What belongs to the installation: the claim, the schema, the facts.
    Owner,
    /// Accounts.
    Accounts,
    /// Keys that clients hold.
    Keys,
    /// Usage that the journals of some workers brought, 0 to [`SHARDS`] - 1.
    Usage(u16),
}

impl Tag {
    /// Every tag.
    pub fn all() -> impl Iterator<Item = Tag> {
        [Self::Owner, Self::Accounts, Self::Keys].into_iter().chain(Self::usage())
    }

    /// Every tag of usage.
    pub fn usage() -> impl Iterator<Item = Tag> {
        (0..SHARDS).map(Self::Usage)
    }

    /// Where the journal file `name` is settled.
    pub fn of_file(name: &str) -> Tag {
        // Offsets of files that no writer of ours named still need one fixed place each.
        let worker = JournalFile::parse(name).map_or_else(|| crc32fast::hash(name.as_bytes()) as usize, |f| f.worker);
        Self::of_worker(worker)
    }

    /// Where the call `name` is while it is open.
    pub fn of_call(name: &str) -> Tag {
        let worker = name.split('-').nth(1).and_then(|worker| worker.parse().ok());
        Self::of_worker(worker.unwrap_or_default())
    }

    fn of_worker(worker: usize) -> Tag {
        Self::Usage(u16::try_from(worker % usize::from(SHARDS)).unwrap_or_default())
    }

    /// As it stands in a key: `{accounts}`, `{usage-3}`.
    pub fn text(self) -> String {
        match self {
            Self::Owner => "{owner}".to_owned(),
            Self::Accounts => "{accounts}".to_owned(),
            Self::Keys => "{keys}".to_owned(),
            Self::Usage(shard) => format!("{{usage-{shard}}}"),
        }
    }
}

/// Names keys under one prefix.
#[derive(Debug, Clone)]
pub struct KeyNames {
    prefix: String,
}

impl KeyNames {
    /// Under `prefix`.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// `prefix{tag}rest`.
    pub fn at(&self, tag: Tag, rest: &str) -> String {
        format!("{}{}{rest}", self.prefix, tag.text())
    }

    /// Hash: `fence`, the highest token that was ever let in; in usage tags also `rev` and the offsets.
    pub fn guard(&self, tag: Tag) -> String {
        self.at(tag, "guard")
    }

    /// String with a TTL: who owns this prefix now.
    pub fn lock(&self) -> String {
        self.at(Tag::Owner, "lock")
    }

    /// Hash: schema version to what was applied.
    pub fn schema(&self) -> String {
        self.at(Tag::Owner, "schema")
    }

    /// Hash: facts about the installation, by name.
    pub fn facts(&self) -> String {
        self.at(Tag::Owner, "facts")
    }

    /// Hash: what tells this data from that of another or an emptied Redis.
    pub fn birth(&self) -> String {
        self.at(Tag::Owner, "birth")
    }

    /// Set: the ids of the records of `tag`.
    pub fn ids(&self, tag: Tag) -> String {
        self.at(tag, "ids")
    }

    /// Hash: one record, a field for each of its fields.
    pub fn record(&self, tag: Tag, id: &str) -> String {
        self.at(tag, &format!("rec:{id}"))
    }

    /// List: an account's events, oldest first, a JSON object each.
    pub fn events(&self, id: &str) -> String {
        self.at(Tag::Accounts, &format!("events:{id}"))
    }

    /// Hash: key hash to key id, so that none comes twice.
    pub fn hashes(&self) -> String {
        self.at(Tag::Keys, "hashes")
    }

    /// Hash: open calls, by name.
    pub fn open(&self, tag: Tag) -> String {
        self.at(tag, "open")
    }

    /// Set: the days that have sums.
    pub fn days(&self, tag: Tag) -> String {
        self.at(tag, "days")
    }

    /// Hash: the sums of one day, by key, account and model.
    pub fn sums(&self, tag: Tag, day: &str) -> String {
        self.at(tag, &format!("sums:{day}"))
    }

    /// List: the last calls, a row each.
    pub fn calls(&self, tag: Tag) -> String {
        self.at(tag, "calls")
    }

    /// String with a TTL: a bitmap with the call's bit in it; `None` for a name that no journal writer gives.
    pub fn done(&self, tag: Tag, call: &str) -> Option<(String, u64)> {
        let (writer, number) = call.rsplit_once('-')?;
        let number: u64 = number.parse().ok()?;
        Some((self.at(tag, &format!("done:{writer}:{}", number / DONE_BITS)), number % DONE_BITS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_and_its_calls_share_a_tag() {
        assert_eq!(Tag::of_file("00ff-18-3.jnl"), Tag::Usage(2));
        assert_eq!(Tag::of_call("00ff-18-4294967296"), Tag::Usage(2));
        assert_eq!(Tag::of_file("unheard of"), Tag::of_file("unheard of"));
        assert_eq!(Tag::all().count(), 19);
    }

    #[test]
    fn every_key_has_its_tag_in_braces() {
        let keys = KeyNames::new("p:");
        assert_eq!(keys.lock(), "p:{owner}lock");
        assert_eq!(keys.record(Tag::Accounts, "a1"), "p:{accounts}rec:a1");
        let done = keys.done(Tag::Usage(0), "b-0-1048577");
        assert_eq!(done, Some(("p:{usage-0}done:b-0:1".to_owned(), 1)));
        assert_eq!(keys.done(Tag::Usage(0), "free text"), None);
    }
}
