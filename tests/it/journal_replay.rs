//! The journal from its writers to settled rows, across torn lines, broken lines and rotation.
//!
//! The promise under test: exactly one row for each call whose beginning was written, whatever was interrupted;
//! `journal_crash` interrupts it.

use chrono::DateTime;
use claude_relay::domain::{Ending, Secret, Usage};
use claude_relay::store::journal::{JournalHealth, JournalReader, JournalWriter, SettleReport, Settler};
use claude_relay::store::seal::Sealer;
use claude_relay::store::sqlite::SqliteStore;
use claude_relay::store::{Begun, Ended, Stores};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;

/// Rows of `calls`: call to ending.
pub type Rows = BTreeMap<String, String>;

/// A data directory, with the journal in it and a database beside it.
pub struct Data(pub TempDir);

impl Data {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn journal(&self) -> PathBuf {
        self.0.path().join("journal")
    }

    pub fn stores(&self) -> Stores {
        let sealer = Sealer::open_or_create(self.0.path(), Some(&Secret::new("ab".repeat(32)))).unwrap();
        SqliteStore::open(&self.0.path().join("relay.db"), Arc::new(sealer)).unwrap().into_stores()
    }

    pub fn writer(&self, boot: &str, worker: usize, rotate: u64) -> (JournalWriter, Arc<JournalHealth>) {
        let health = Arc::new(JournalHealth::default());
        (JournalWriter::create_rotating(&self.journal(), boot, worker, health.clone(), rotate).unwrap(), health)
    }

    pub fn settler(&self, stores: &Stores, boot: &str) -> Settler {
        Settler::new(&self.journal(), stores.usage.clone(), boot).unwrap()
    }

    pub fn files(&self) -> Vec<String> {
        JournalReader::open(&self.journal()).unwrap().files().unwrap().iter().map(|f| f.name()).collect()
    }

    /// The rows of a database that nobody has open, with the sums checked against them.
    pub fn rows(&self) -> Rows {
        let db = rusqlite::Connection::open(self.0.path().join("relay.db")).unwrap();
        let mut query = db.prepare("SELECT call, ending FROM calls").unwrap();
        let rows: Rows =
            query.query_map([], |r| Ok((r.get(0)?, r.get(1)?))).unwrap().collect::<Result<_, _>>().unwrap();
        let sum = "SELECT ifnull(sum(requests), 0), ifnull(sum(output_tokens), 0) FROM rollups";
        let sums: (i64, i64) = db.query_row(sum, [], |r| Ok((r.get(0)?, r.get(1)?))).unwrap();
        let complete = rows.values().filter(|ending| *ending == "complete").count();
        assert_eq!(sums, (rows.len() as i64, 10 * complete as i64), "sums and rows disagree");
        rows
    }

    pub fn copy(&self) -> Self {
        let copy = Self::new();
        fs::create_dir(copy.journal()).unwrap();
        fs::copy(self.0.path().join("relay.db"), copy.0.path().join("relay.db")).unwrap();
        for name in self.files() {
            fs::copy(self.journal().join(&name), copy.journal().join(&name)).unwrap();
        }
        copy
    }
}

pub fn begin(writer: &mut JournalWriter) -> String {
    begin_with(writer, "m")
}

fn begin_with(writer: &mut JournalWriter, model: &str) -> String {
    let call = writer.next_call();
    let text = str::to_owned;
    let at = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
    let (key, account, model) = (text("k"), text("a"), text(model));
    writer.begun(&Begun { call: call.clone(), key, account, model, endpoint: text("messages"), at });
    call
}

pub fn end(writer: &mut JournalWriter, call: &str) {
    let usage = Usage { output_tokens: 10, ..Usage::default() };
    let (call, ending) = (call.to_owned(), Ending::Complete);
    writer.ended(&Ended { call, ending, status: Some(200), usage, first_byte_ms: Some(1), duration_ms: 2 });
}

fn row(call: &str, ending: &str) -> (String, String) {
    (call.to_owned(), ending.to_owned())
}

#[actix_rt::test]
async fn a_live_journal_is_settled_as_it_grows() {
    let data = Data::new();
    let stores = data.stores();
    let (mut writer, health) = data.writer("b", 0, 1 << 20);
    let mode = fs::metadata(data.journal().join("b-0-0.jnl")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut settler = data.settler(&stores, "b");
    assert_eq!(settler.settle_all().await.unwrap(), SettleReport::default());
    let first = begin(&mut writer);
    let second = begin(&mut writer);
    assert_eq!((health.appended(), first.as_str(), second.as_str()), (2, "b-0-1", "b-0-2"));
    end(&mut writer, &second);
    let report = settler.settle_all().await.unwrap();
    assert_eq!((report.begun, report.ended, report.removed), (2, 1, 0));
    end(&mut writer, &first);
    let report = settler.settle_all().await.unwrap();
    assert_eq!((report.begun, report.ended), (0, 1));
    assert_eq!(settler.settle_all().await.unwrap(), SettleReport::default());
    drop((stores, settler));
    assert_eq!(data.rows(), [row(&first, "complete"), row(&second, "complete")].into());
}

#[actix_rt::test]
async fn a_torn_tail_waits_while_its_writer_lives_and_is_passed_over_when_it_is_dead() {
    let data = Data::new();
    let (mut writer, _) = data.writer("b", 0, 1 << 20);
    let call = begin(&mut writer);
    let mut torn = OpenOptions::new().append(true).open(data.journal().join("b-0-0.jnl")).unwrap();
    torn.write_all(b"01234567 {\"t\":\"ended\",\"call\":\"b-0-1\"").unwrap();
    drop(writer);
    let stores = data.stores();
    let alive = data.settler(&stores, "b").settle_all().await.unwrap();
    assert_eq!((alive.begun, alive.skipped, alive.removed), (1, 0, 0));
    let dead = data.settler(&stores, "c").recover().await.unwrap();
    assert_eq!((dead.crashed, dead.skipped, dead.removed), (1, 1, 1));
    assert!(data.files().is_empty() && stores.usage.offsets().await.unwrap().is_empty());
    drop(stores);
    assert_eq!(data.rows(), [row(&call, "relay_crashed")].into());
}

#[actix_rt::test]
async fn broken_lines_are_passed_over_and_counted_and_long_ones_do_not_stop_it() {
    let data = Data::new();
    let (mut writer, _) = data.writer("b", 0, 1 << 20);
    let broken = begin(&mut writer);
    let whole = begin(&mut writer);
    let long = begin_with(&mut writer, &"m".repeat(5_000));
    end(&mut writer, &whole);
    drop(writer);
    let path = data.journal().join("b-0-0.jnl");
    let mut bytes = fs::read(&path).unwrap();
    bytes[20] ^= 1;
    bytes.extend_from_slice(b"\nnot a line\n");
    fs::write(&path, bytes).unwrap();
    let stores = data.stores();
    let report = data.settler(&stores, "c").with_piece_bytes(64).recover().await.unwrap();
    assert_eq!((report.skipped, report.begun, report.crashed), (3, 2, 1));
    drop(stores);
    assert_eq!(data.rows(), [row(&whole, "complete"), row(&long, "relay_crashed")].into());
    assert_ne!(broken, whole);
}

#[actix_rt::test]
async fn files_rotate_and_are_removed_when_they_are_settled() {
    let data = Data::new();
    let stores = data.stores();
    let (mut writer, health) = data.writer("b", 3, 1_000);
    let mut settler = data.settler(&stores, "b");
    let mut open = Vec::new();
    let mut report = SettleReport::default();
    for n in 0..200 {
        open.push(begin(&mut writer));
        if n % 3 == 2 {
            // The oldest ends, often files after the one it began in.
            end(&mut writer, &open.remove(0));
        }
        if n % 50 == 49 {
            assert!(data.files().len() > 5, "{:?}", data.files());
            let now = settler.settle_all().await.unwrap();
            report.removed += now.removed;
            report.ended += now.ended;
            assert_eq!(data.files().len(), 1);
        }
    }
    assert_eq!((report.ended, health.appended()), (66, 266));
    assert!(report.removed > 20 && stores.usage.offsets().await.unwrap().len() <= 1);
    for call in open {
        end(&mut writer, &call);
    }
    drop(writer);
    let last = data.settler(&stores, "c").recover().await.unwrap();
    assert_eq!((last.ended, last.crashed), (134, 0));
    assert!(data.files().is_empty());
    drop((stores, settler));
    assert_eq!(data.rows().len(), 200);
}

#[actix_rt::test]
async fn a_boot_whose_files_are_gone_is_known_by_its_offsets() {
    let data = Data::new();
    let stores = data.stores();
    let (mut writer, _) = data.writer("b", 0, 1 << 20);
    let call = begin(&mut writer);
    data.settler(&stores, "b").settle_all().await.unwrap();
    fs::remove_file(data.journal().join("b-0-0.jnl")).unwrap();
    assert_eq!(data.settler(&stores, "c").settle_all().await.unwrap().crashed, 1);
    assert!(stores.usage.offsets().await.unwrap().is_empty());
    drop(stores);
    assert_eq!(data.rows(), [row(&call, "relay_crashed")].into());
}

#[actix_rt::test]
async fn a_journal_cut_at_any_byte_gives_a_row_for_every_beginning_in_it() {
    let whole = Data::new();
    let (mut writer, _) = whole.writer("b", 0, 1 << 20);
    for _ in 0..3 {
        let call = begin(&mut writer);
        end(&mut writer, &call);
    }
    drop(writer);
    let bytes = fs::read(whole.journal().join("b-0-0.jnl")).unwrap();
    for cut in (0..=bytes.len()).step_by(7).chain([bytes.len() - 1, bytes.len()]) {
        let data = Data::new();
        fs::create_dir(data.journal()).unwrap();
        fs::write(data.journal().join("b-0-0.jnl"), &bytes[..cut]).unwrap();
        let stores = data.stores();
        let report = data.settler(&stores, "c").recover().await.unwrap();
        drop(stores);
        let lines: Vec<_> = bytes[..cut].split_inclusive(|b| *b == b'\n').filter(|l| l.ends_with(b"\n")).collect();
        let begun = lines.iter().filter(|l| l.windows(5).any(|w| w == b"begun")).count();
        assert_eq!((data.rows().len(), report.begun), (begun, begun as u64), "cut at {cut}");
        assert_eq!(report.skipped, u64::from(!bytes[..cut].ends_with(b"\n") && cut > 0));
    }
}
