//! Usage in Redis: sums by key, account, model and day, open calls, the last calls, and the journal's offsets.
//!
//! Reached through [`UsageLedger`] by the Ledger actor and the Admin API. A journal file is settled into the tag
//! of its worker, where its calls begin and end: so rows, sums, open calls and the offset are written by one
//! script, and a replay finds the offset. Each tag also keeps a bit for every call that ended, so that a piece that
//! comes twice by another accident counts once. What is to be written is worked out here from what was read, and
//! written only if the tag's `rev` has not moved.

use super::commit::{Commit, Sent};
use super::keys::Tag;
use super::link::Wire;
use super::sums::{Group, Sum, read_day};
use super::{RedisStore, Shared};
use crate::domain::{Ending, Usage};
use crate::store::{Begun, Ended, Settlement, StoreError, UsageFilter, UsageLedger, UsageRow};
use async_trait::async_trait;
use chrono::SecondsFormat;
use deadpool_redis::redis::{Cmd, Pipeline, cmd, pipe};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};

/// The field of a guard that changes with every settlement.
const REV: &str = "rev";

/// What the field of a journal file's offset begins with.
pub(super) const AT: &str = "at:";

/// How many rows of calls a tag keeps.
const CALLS_KEPT: i64 = 20_000;

/// The list is cut down to [`CALLS_KEPT`] at every so many settlements: a command saved at all the others.
const CUT_EVERY: u64 = 16;

/// How long it is remembered that a call ended, in seconds: far longer than a journal file is left lying.
const DONE_KEPT: u64 = 14 * 24 * 3_600;

/// How often a settlement begins again when another one moves the tag's `rev`.
const TRIES: usize = 100;

#[async_trait]
impl UsageLedger for RedisStore {
    async fn settle(&self, piece: Settlement) -> Result<(), StoreError> {
        self.run(|shared| async move { shared.settle(&piece).await }).await
    }

    async fn offsets(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.run(|shared| async move { shared.offsets().await }).await
    }

    async fn close_crashed(&self, boot: &str) -> Result<u64, StoreError> {
        let boot = format!("{boot}-");
        self.run(|shared| async move {
            let (mut wire, mut closed) = (shared.link.wire().await?, 0);
            for tag in Tag::usage() {
                closed += shared.close_crashed(&mut wire, tag, &boot).await?;
            }
            Ok(closed)
        })
        .await
    }

    async fn forget(&self, file: &str) -> Result<(), StoreError> {
        let file = file.to_owned();
        self.run(|shared| async move {
            let tag = Tag::of_file(&file);
            let mut commit = Commit::new(&shared.names, tag);
            commit.run("HDEL", &shared.names.guard(tag), 1, [format!("{AT}{file}")]);
            shared.commit(&mut shared.link.wire().await?, &commit).await.map(drop)
        })
        .await
    }

    async fn sums(&self, filter: &UsageFilter) -> Result<Vec<UsageRow>, StoreError> {
        let filter = filter.clone();
        self.run(|shared| async move { shared.sums(&filter).await }).await
    }
}

/// A row of the list of calls. Without `usage` and durations the relay died before it knew.
#[derive(Serialize)]
struct Row<'a> {
    #[serde(flatten)]
    begun: &'a Begun,
    ending: Ending,
    status: Option<u16>,
    usage: Option<Usage>,
    first_byte_ms: Option<u64>,
    duration_ms: Option<u64>,
}

/// What is known of a call that comes to its end: its beginning, and how it ended if the relay lived to see it.
type Closing<'a> = (Begun, Option<&'a Ended>);

/// A commit in the making.
struct Intake {
    tag: Tag,
    commit: Commit,
    rev: u64,
}

impl Shared {
    async fn settle(&self, piece: &Settlement) -> Result<(), StoreError> {
        let tag = Tag::of_file(&piece.file);
        let (guard, offset) = (self.names.guard(tag), format!("{AT}{}", piece.file));
        let mut wire = self.link.wire().await?;
        let begun: HashMap<&str, &Begun> = piece.begun.iter().map(|b| (b.call.as_str(), b)).collect();
        let ended: HashSet<&str> = piece.ended.iter().map(|e| e.call.as_str()).collect();
        // Most calls end in the piece they began in.
        let late: Vec<&str> = ended.iter().filter(|call| !begun.contains_key(*call)).copied().collect();
        for _ in 0..TRIES {
            let mut reads = pipe();
            reads.cmd("HMGET").arg(&guard).arg(REV).arg(&offset);
            if !late.is_empty() {
                reads.cmd("HMGET").arg(self.names.open(tag)).arg(&late);
            }
            let mut found: Vec<Vec<Option<String>>> = wire.ask_all(&reads).await?;
            let opened = if late.is_empty() { Vec::new() } else { found.pop().unwrap_or_default() };
            let [rev, settled] = numbers(found.pop().unwrap_or_default())?;
            if piece.to <= settled {
                return Ok(());
            }
            if piece.from != settled {
                let Settlement { file, from, to, .. } = piece;
                let problem = format!("{file}: bytes {from} to {to} do not follow the settled {settled}");
                return Err(StoreError::Engine(problem));
            }
            let opened: HashMap<&str, Begun> = late
                .iter()
                .zip(opened)
                .filter_map(|(call, text)| Some((*call, serde_json::from_str(&text?).ok()?)))
                .collect();
            let beginning = |call: &str| begun.get(call).map(|b| (*b).clone()).or_else(|| opened.get(call).cloned());
            let closing: Vec<Closing> =
                piece.ended.iter().filter_map(|e| Some((beginning(&e.call)?, Some(e)))).collect();
            let open: Vec<&Begun> = begun.values().filter(|b| !ended.contains(b.call.as_str())).copied().collect();

            let mut intake = self.intake(tag, rev);
            intake.commit.run("HDEL", &self.names.open(tag), 1, opened.keys().copied());
            self.take_in(&mut wire, &mut intake, &closing, &open).await?;
            intake.commit.run("HSET", &guard, 2, [REV, &(rev + 1).to_string(), &offset, &piece.to.to_string()]);
            if self.commit(&mut wire, &intake.commit).await? == Sent::Done {
                let orphans = piece.ended.len() - closing.len();
                if orphans > 0 {
                    let file = &piece.file;
                    tracing::warn!(file, orphans, "calls ended whose beginning is unknown; they are not counted");
                }
                return Ok(());
            }
        }
        Err(StoreError::Engine(format!("{}: others settled into its tag {TRIES} times meanwhile", piece.file)))
    }

    async fn close_crashed(&self, wire: &mut Wire, tag: Tag, boot: &str) -> Result<u64, StoreError> {
        for _ in 0..TRIES {
            let [rev] = numbers(wire.ask(cmd("HMGET").arg(self.names.guard(tag)).arg(REV)).await?)?;
            let calls = self.open_calls(wire, tag).await?.into_iter().filter(|begun| begun.call.starts_with(boot));
            let closing: Vec<Closing> = calls.map(|begun| (begun, None)).collect();
            if closing.is_empty() {
                return Ok(0);
            }
            let mut intake = self.intake(tag, rev);
            let names = closing.iter().map(|(begun, _)| begun.call.as_str());
            intake.commit.run("HDEL", &self.names.open(tag), 1, names);
            self.take_in(wire, &mut intake, &closing, &[]).await?;
            intake.commit.run("HSET", &self.names.guard(tag), 2, [REV, &(rev + 1).to_string()]);
            if self.commit(wire, &intake.commit).await? == Sent::Done {
                return Ok(closing.len() as u64);
            }
        }
        Err(StoreError::Engine(format!("calls of {boot}: others settled into their tag {TRIES} times meanwhile")))
    }

    fn intake(&self, tag: Tag, rev: u64) -> Intake {
        let mut commit = Commit::new(&self.names, tag);
        commit.expect(&self.names.guard(tag), REV, Some(&rev.to_string()).filter(|_| rev > 0).map(String::as_str));
        Intake { tag, commit, rev }
    }

    /// Adds to `intake` what closes these calls and keeps those open, as far as they are new.
    async fn take_in(
        &self,
        wire: &mut Wire,
        intake: &mut Intake,
        closing: &[Closing<'_>],
        open: &[&Begun],
    ) -> Result<(), StoreError> {
        let tag = intake.tag;
        let calls = closing.iter().map(|(begun, _)| begun.call.as_str()).chain(open.iter().map(|b| b.call.as_str()));
        let mut bitmaps: BTreeMap<String, Vec<(&str, u64)>> = BTreeMap::new();
        for call in calls {
            if let Some((key, bit)) = self.names.done(tag, call) {
                bitmaps.entry(key).or_default().push((call, bit));
            }
        }
        let mut groups: BTreeMap<String, BTreeMap<String, Sum>> = BTreeMap::new();
        for (begun, _) in closing {
            groups.entry(day(begun)).or_default().insert(group(begun).field(), Sum::default());
        }
        let mut reads = pipe();
        for (key, bits) in &bitmaps {
            reads.add_command(look(key, bits));
        }
        for (day, groups) in &groups {
            reads.cmd("HMGET").arg(self.names.sums(tag, day)).arg(groups.keys().collect::<Vec<_>>());
        }
        let mut found = if bitmaps.is_empty() && groups.is_empty() { Vec::new() } else { ask(wire, &reads).await? };
        let stored = found.split_off(bitmaps.len().min(found.len()));
        let mut done: HashSet<&str> = HashSet::new();
        for (bits, found) in bitmaps.values().zip(found) {
            done.extend(
                bits.iter().zip(found).filter(|(_, bit)| bit.as_deref() == Some("1")).map(|((call, _), _)| *call),
            );
        }
        for ((day, groups), found) in groups.iter_mut().zip(stored) {
            if found.iter().all(Option::is_none) {
                intake.commit.run("SADD", &self.names.days(tag), 1, [day.as_str()]);
            }
            for (sum, text) in groups.values_mut().zip(found) {
                *sum = Sum::read(text.as_deref())?;
            }
        }

        let (mut rows, mut ended) = (Vec::new(), HashMap::<String, Vec<String>>::new());
        for (begun, end) in closing {
            if !done.insert(&begun.call) {
                continue;
            }
            let ending = end.map_or(Ending::RelayCrashed, |e| e.ending);
            let usage = end.map(|e| e.usage);
            if let Some(sum) = groups.get_mut(&day(begun)).and_then(|day| day.get_mut(&group(begun).field())) {
                sum.add_call(&usage.unwrap_or_default(), ending);
            }
            if let Some((key, bit)) = self.names.done(tag, &begun.call) {
                ended.entry(key).or_default().extend(["SET".into(), "u1".into(), bit.to_string(), "1".into()]);
            }
            let (status, first_byte_ms) = (end.and_then(|e| e.status), end.and_then(|e| e.first_byte_ms));
            let row = Row { begun, ending, status, usage, first_byte_ms, duration_ms: end.map(|e| e.duration_ms) };
            rows.push(json(&row)?);
        }
        let names = &self.names;
        let commit = &mut intake.commit;
        for (key, bits) in ended {
            commit.run("BITFIELD", &key, 4, bits);
            commit.run("EXPIRE", &key, 1, [DONE_KEPT.to_string()]);
        }
        let mut opens = Vec::new();
        for begun in open.iter().filter(|begun| !done.contains(begun.call.as_str())) {
            opens.extend([begun.call.clone(), json(begun)?]);
        }
        commit.run("HSET", &names.open(tag), 2, opens);
        for (day, groups) in groups {
            commit.run("HSET", &names.sums(tag, &day), 2, groups.into_iter().flat_map(|(f, sum)| [f, sum.text()]));
        }
        commit.run("RPUSH", &names.calls(tag), 1, rows);
        if intake.rev.is_multiple_of(CUT_EVERY) {
            commit.run("LTRIM", &names.calls(tag), 2, [(-CALLS_KEPT).to_string(), "-1".to_owned()]);
        }
        Ok(())
    }

    /// What is open in a tag. An entry that cannot be read is left where it is.
    pub(super) async fn open_calls(&self, wire: &mut Wire, tag: Tag) -> Result<Vec<Begun>, StoreError> {
        let texts: Vec<String> = wire.ask(cmd("HVALS").arg(self.names.open(tag))).await?;
        Ok(texts.iter().filter_map(|text| serde_json::from_str(text).ok()).collect())
    }

    async fn offsets(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let reads: Vec<Cmd> = Tag::usage().map(|tag| cmd("HGETALL").arg(self.names.guard(tag)).clone()).collect();
        let guards: Vec<Vec<(String, String)>> = self.link.wire().await?.ask_each(&reads).await?;
        let mut offsets = Vec::new();
        for (field, value) in guards.into_iter().flatten() {
            if let Some(file) = field.strip_prefix(AT) {
                let [offset] = numbers(vec![Some(value)])?;
                offsets.push((file.to_owned(), offset));
            }
        }
        offsets.sort_unstable();
        Ok(offsets)
    }

    async fn sums(&self, filter: &UsageFilter) -> Result<Vec<UsageRow>, StoreError> {
        let mut wire = self.link.wire().await?;
        let reads: Vec<Cmd> = Tag::usage().map(|tag| cmd("SMEMBERS").arg(self.names.days(tag)).clone()).collect();
        let days: Vec<Vec<String>> = wire.ask_each(&reads).await?;
        let (since, until) = (filter.since.map(|d| d.to_string()), filter.until.map(|d| d.to_string()));
        let within = |day: &String| since.as_ref().is_none_or(|s| day >= s) && until.as_ref().is_none_or(|u| day <= u);
        let wanted: Vec<(Tag, String)> = Tag::usage()
            .zip(days)
            .flat_map(|(tag, days)| days.into_iter().filter(within).map(move |day| (tag, day)))
            .collect();
        let reads: Vec<Cmd> =
            wanted.iter().map(|(tag, day)| cmd("HGETALL").arg(self.names.sums(*tag, day)).clone()).collect();
        let found: Vec<Vec<(String, String)>> = wire.ask_each(&reads).await?;
        let fits = |group: &Group| {
            let one = |wanted: &Option<String>, has: &str| wanted.as_ref().is_none_or(|w| w == has);
            one(&filter.key, &group.key) && one(&filter.account, &group.account) && one(&filter.model, &group.model)
        };
        // A group may have a part in each tag.
        let mut merged: BTreeMap<(Group, String), Sum> = BTreeMap::new();
        for ((_, day), fields) in wanted.into_iter().zip(found) {
            for (group, sum) in read_day(fields)?.into_iter().filter(|(group, _)| fits(group)) {
                merged.entry((group, day.clone())).or_default().add_sum(&sum);
            }
        }
        Ok(merged.into_iter().map(|((group, day), sum)| sum.row(group, day)).collect())
    }
}

/// One answer a command, each a list of numbers or texts.
async fn ask(wire: &mut Wire, reads: &Pipeline) -> Result<Vec<Vec<Option<String>>>, StoreError> {
    wire.ask_all(reads).await
}

fn look(key: &str, bits: &[(&str, u64)]) -> Cmd {
    let mut look = cmd("BITFIELD_RO");
    look.arg(key);
    for (_, bit) in bits {
        look.arg("GET").arg("u1").arg(bit);
    }
    look
}

/// The numbers of a hash's fields; a field that is not there is 0.
fn numbers<const N: usize>(found: Vec<Option<String>>) -> Result<[u64; N], StoreError> {
    let number = |text: Option<String>| text.map_or(Some(0), |text| text.parse().ok());
    let numbers: Option<Vec<u64>> = found.into_iter().map(number).collect();
    numbers
        .and_then(|numbers| numbers.try_into().ok())
        .ok_or_else(|| StoreError::Engine("a stored offset cannot be read".to_owned()))
}

fn json(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|e| StoreError::Engine(e.to_string()))
}

/// The UTC day a call began on: the beginning of an RFC 3339 time in Z.
fn day(begun: &Begun) -> String {
    let mut text = begun.at.to_rfc3339_opts(SecondsFormat::Secs, true);
    text.truncate(10);
    text
}

fn group(begun: &Begun) -> Group {
    Group { key: begun.key.clone(), account: begun.account.clone(), model: begun.model.clone() }
}
