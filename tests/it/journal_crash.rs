//! The journal and ways to die or to be denied the disk: at every step of settling, by `kill -9`, by a full disk.
//!
//! The last two run an ignored test of this binary in a process of its own.

use super::journal_replay::{Data, Rows, begin, end};
use async_trait::async_trait;
use claude_relay::store::journal::{JournalHealth, JournalWriter, Settler};
use claude_relay::store::{Settlement, StoreError, UsageFilter, UsageLedger, UsageRow};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

/// A ledger whose process dies at its `n`th step: before it is done, or after it and before anyone hears of it.
struct Dying {
    inner: Arc<dyn UsageLedger>,
    left: AtomicI64,
    before: bool,
}

impl Dying {
    fn dead(&self, now_before: bool) -> Result<(), StoreError> {
        let left = if now_before { self.left.fetch_sub(1, SeqCst) } else { self.left.load(SeqCst) + 1 };
        let dies = left < 0 || (left == 0 && self.before == now_before);
        if dies { Err(StoreError::Engine("dead".to_owned())) } else { Ok(()) }
    }
}

#[async_trait]
impl UsageLedger for Dying {
    async fn settle(&self, piece: Settlement) -> Result<(), StoreError> {
        self.dead(true)?;
        self.inner.settle(piece).await?;
        self.dead(false)
    }
    async fn offsets(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.inner.offsets().await
    }
    async fn close_crashed(&self, boot: &str) -> Result<u64, StoreError> {
        self.dead(true)?;
        let closed = self.inner.close_crashed(boot).await?;
        self.dead(false).map(|()| closed)
    }
    async fn forget(&self, file: &str) -> Result<(), StoreError> {
        self.dead(true)?;
        self.inner.forget(file).await?;
        self.dead(false)
    }
    async fn sums(&self, filter: &UsageFilter) -> Result<Vec<UsageRow>, StoreError> {
        self.inner.sums(filter).await
    }
}

/// Two workers with several files each, half of it settled; gives what the rows must be when boot `aa` is dead.
async fn half_settled(data: &Data) -> Rows {
    let mut expected = Rows::new();
    let stores = data.stores();
    let mut settler = data.settler(&stores, "aa").with_piece_bytes(300);
    let mut writers = [data.writer("aa", 0, 700).0, data.writer("aa", 1, 700).0];
    let mut open: [Vec<String>; 2] = Default::default();
    for n in 0..24 {
        let (writer, open) = (&mut writers[n % 2], &mut open[n % 2]);
        let call = begin(writer);
        expected.insert(call.clone(), "relay_crashed".to_owned());
        open.push(call);
        if n % 3 != 0 {
            let call = open.remove(0);
            end(writer, &call);
            expected.insert(call, "complete".to_owned());
        }
        if n == 11 {
            settler.settle_all().await.unwrap();
        }
    }
    expected
}

/// Lets `first` die at every step of settling, then lets each of `after` run to its end.
async fn die_everywhere(first: &str, after: &[&str]) {
    let data = Data::new();
    let expected = half_settled(&data).await;
    let mut deaths = 0;
    for step in 0.. {
        let mut died = false;
        for before in [true, false] {
            let copy = data.copy();
            let stores = copy.stores();
            let usage = Arc::new(Dying { inner: stores.usage.clone(), left: AtomicI64::new(step), before });
            let mut settler = Settler::new(&copy.journal(), usage, first).unwrap().with_piece_bytes(300);
            died |= settler.settle_all().await.is_err();
            drop((settler, stores));
            for boot in after {
                let stores = copy.stores();
                copy.settler(&stores, boot).with_piece_bytes(300).settle_all().await.unwrap();
            }
            assert_eq!(copy.rows(), expected, "died at step {step}, before it was done: {before}");
            assert!(copy.files().is_empty());
            let stores = copy.stores();
            assert!(stores.usage.offsets().await.unwrap().is_empty());
            deaths += u32::from(died);
        }
        if !died {
            break;
        }
    }
    assert!(deaths > 20, "only {deaths} deaths");
}

#[actix_rt::test]
async fn dying_at_any_step_of_recovery_loses_and_doubles_nothing() {
    die_everywhere("bb", &["bb"]).await;
    die_everywhere("bb", &["cc"]).await;
}

#[actix_rt::test]
async fn dying_at_any_step_of_settling_loses_and_doubles_nothing() {
    die_everywhere("aa", &["bb"]).await;
    die_everywhere("aa", &["aa", "bb"]).await;
}

#[actix_rt::test]
async fn a_settler_goes_on_after_an_answer_was_lost() {
    let data = Data::new();
    let stores = data.stores();
    let (mut writer, _) = data.writer("b", 0, 1 << 20);
    let call = begin(&mut writer);
    let usage = Arc::new(Dying { inner: stores.usage.clone(), left: AtomicI64::new(0), before: false });
    let mut settler = Settler::new(&data.journal(), usage.clone(), "b").unwrap();
    assert!(settler.settle_all().await.is_err());
    usage.left.store(i64::MAX, SeqCst);
    end(&mut writer, &call);
    let report = settler.settle_all().await.unwrap();
    assert_eq!((report.begun, report.ended), (0, 1), "the beginning was taken in, though nobody heard of it");
    drop((settler, usage, stores));
    assert_eq!(data.rows().len(), 1);
}

/// Runs the ignored test `name` of this binary in a process of its own, with `JOURNAL_TEST_DIR` set.
fn child(name: &str, dir: &Path, prefix: &str) -> Command {
    let mut command = Command::new("sh");
    let exec = format!("{prefix} exec \"$0\" --exact journal_crash::{name} --ignored --nocapture");
    command.arg("-c").arg(exec).arg(std::env::current_exe().unwrap()).env("JOURNAL_TEST_DIR", dir);
    command
}

#[actix_rt::test]
async fn kill_9_loses_no_call() {
    let data = Data::new();
    let mut process = child("child_that_is_killed", &data.journal(), "").stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(process.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut told: Vec<String> = lines.filter(|l| l.starts_with("k9-")).take(2_000).collect();
    process.kill().unwrap();
    process.wait().unwrap();
    let stores = data.stores();
    let report = data.settler(&stores, "next").settle_all().await.unwrap();
    drop(stores);
    let rows = data.rows();
    told.retain(|call| !rows.contains_key(call));
    assert!(told.is_empty(), "lost: {told:?}");
    assert!(report.crashed >= 500, "every fourth call is left open: {report:?}");
}

#[test]
#[ignore = "the process that kill_9_loses_no_call kills"]
fn child_that_is_killed() {
    let Ok(dir) = std::env::var("JOURNAL_TEST_DIR") else { return };
    let mut writer = JournalWriter::create_rotating(Path::new(&dir), "k9", 0, Arc::default(), 50_000).unwrap();
    println!();
    for n in 0_u64.. {
        let call = begin(&mut writer);
        if n % 4 != 0 {
            end(&mut writer, &call);
        }
        println!("{call}");
    }
}

#[actix_rt::test]
async fn a_full_disk_delays_lines_and_loses_none() {
    let data = Data::new();
    // SIGXFSZ is ignored across the exec, so that a write beyond the limit fails as on a full disk.
    let output = child("child_with_a_full_disk", &data.journal(), "trap '' XFSZ;").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let stores = data.stores();
    let report = data.settler(&stores, "next").settle_all().await.unwrap();
    assert_eq!((report.begun, report.ended, report.skipped, report.crashed), (500, 500, 0, 0));
    drop(stores);
    assert_eq!(data.rows().len(), 500);
}

#[test]
#[ignore = "the process that a_full_disk_delays_lines_and_loses_none starts"]
fn child_with_a_full_disk() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Ok(dir) = std::env::var("JOURNAL_TEST_DIR") else { return };
    let health = Arc::new(JournalHealth::default());
    let mut writer = JournalWriter::create(Path::new(&dir), "full", 0, health.clone()).unwrap();
    let path = Path::new(&dir).join("full-0-0.jnl");
    let length = || fs::metadata(&path).unwrap().len();
    let maximum = getrlimit(Resource::Fsize).maximum;
    let disk = |bytes: Option<u64>| setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum }).unwrap();
    // 10,007 and 10,500: both in the middle of a line, so that writes come short.
    disk(Some(10_007));
    let mut calls = Vec::new();
    for _ in 0..250 {
        calls.push(begin(&mut writer));
    }
    assert!(health.degraded() && health.lost() == 0);
    assert!(length() < 10_007 && fs::read(&path).unwrap().ends_with(b"\n"), "the torn line is not cut off");
    assert!(health.appended() < 250);
    disk(Some(10_500));
    writer.retry();
    assert!(health.degraded() && length() > 10_100 && length() <= 10_500, "{}", length());
    assert!(fs::read(&path).unwrap().ends_with(b"\n"), "the torn backlog is not cut off");
    disk(maximum);
    writer.retry();
    assert!(!health.degraded() && health.appended() == 250);
    for _ in 0..250 {
        calls.push(begin(&mut writer));
    }
    calls.iter().for_each(|call| end(&mut writer, call));
    assert_eq!((health.degraded(), health.lost(), health.appended()), (false, 0, 1_000));
}
