//! Appends to the journal: one writer for each HTTP worker, one `write` for each line.
//!
//! Called on the workers' threads, on the request's path. A write that fails does not fail the request: the line
//! waits in a bounded backlog, the health says so, and every later call tries again. A torn line is cut off
//! again at once, so that the file always ends with a whole line while its writer lives.

use super::reader::JournalFile;
use super::{JournalHealth, Line, make_dir};
use crate::store::{Begun, Ended};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// A file is left for the next one when it is this long, in bytes.
pub const ROTATE_AT: u64 = 16 << 20;

/// Bytes that may wait for a disk with room, for each writer.
pub const BACKLOG: usize = 4 << 20;

/// What lies between the call numbers of two writers of one worker: more calls than fit into one file.
const CALLS_PER_FILE: u64 = 1 << 32;

/// The journal of one worker. When a worker starts anew in one process, its old writer must be dropped first.
pub struct JournalWriter {
    dir: PathBuf,
    boot: String,
    worker: usize,
    next_call: u64,
    file: File,
    /// Where the last whole line ends.
    good: u64,
    /// The file is longer than `good`, since cutting a torn line off failed.
    torn: bool,
    rotate_every: u64,
    rotate_at: u64,
    line: Vec<u8>,
    /// Whole lines, oldest first.
    backlog: Vec<u8>,
    degraded: bool,
    health: Arc<JournalHealth>,
}

impl JournalWriter {
    /// Starts a new file in `dir` (made if it is not there) for this worker of this boot. `boot` is new at every
    /// start of the process and has no `-`.
    ///
    /// # Errors
    /// When the directory or the file cannot be made, or `boot` is empty or has a `-` or `/`.
    pub fn create(dir: &Path, boot: &str, worker: usize, health: Arc<JournalHealth>) -> io::Result<Self> {
        Self::create_rotating(dir, boot, worker, health, ROTATE_AT)
    }

    /// As [`JournalWriter::create`], with files of about `rotate_every` bytes.
    ///
    /// # Errors
    /// The same.
    pub fn create_rotating(
        dir: &Path,
        boot: &str,
        worker: usize,
        health: Arc<JournalHealth>,
        rotate_every: u64,
    ) -> io::Result<Self> {
        if boot.is_empty() || boot.contains(['-', '/']) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a boot id is not empty and has no '-' or '/'"));
        }
        make_dir(dir)?;
        let (n, file) = next_file(dir, boot, worker)?;
        Ok(Self {
            dir: dir.to_owned(),
            boot: boot.to_owned(),
            worker,
            // An earlier writer of this boot and worker has used numbers below: they must not come again.
            next_call: n.saturating_mul(CALLS_PER_FILE),
            file,
            good: 0,
            torn: false,
            rotate_every,
            rotate_at: rotate_every,
            line: Vec::with_capacity(512),
            backlog: Vec::new(),
            degraded: false,
            health,
        })
    }

    /// A name for a new call that no other call has: boot, worker, counter.
    pub fn next_call(&mut self) -> String {
        self.next_call += 1;
        format!("{}-{}-{}", self.boot, self.worker, self.next_call)
    }

    /// Notes that a call is about to be sent to an upstream. Never fails; see [`JournalHealth`].
    pub fn begun(&mut self, begun: &Begun) {
        self.append(&Line::Begun(begun));
    }

    /// Notes how a call ended; goes to the same writer as its [`JournalWriter::begun`].
    pub fn ended(&mut self, ended: &Ended) {
        self.append(&Line::Ended(ended));
    }

    /// Tries again what could not be written; for a timer, so that a quiet worker recovers too.
    pub fn retry(&mut self) {
        if self.drain() && self.good >= self.rotate_at {
            self.rotate();
        }
    }

    fn append(&mut self, line: &Line) {
        let mut bytes = std::mem::take(&mut self.line);
        if let Err(error) = line.encode(&mut bytes) {
            tracing::error!(%error, "a journal line could not be encoded");
            self.health.lost.fetch_add(1, Relaxed);
        } else if !self.drain() || self.put(&bytes) == 0 {
            self.keep(&bytes);
        } else {
            self.caught_up();
            if self.good >= self.rotate_at {
                self.rotate();
            }
        }
        self.line = bytes;
    }

    /// Writes `lines` by one call and gives how many bytes of whole lines are now in the file.
    fn put(&mut self, lines: &[u8]) -> usize {
        if self.torn && self.cut().is_err() {
            return 0;
        }
        let (written, fault) = match self.file.write(lines) {
            Ok(n) if n == lines.len() => (n, None),
            Ok(n) => (n, Some(io::Error::new(io::ErrorKind::WriteZero, "short write"))),
            Err(error) => (0, Some(error)),
        };
        let whole = memchr::memrchr(b'\n', &lines[..written]).map_or(0, |at| at + 1);
        self.good += whole as u64;
        if written > whole {
            // If it fails, the next attempt cuts before it writes.
            let _ = self.cut();
        }
        self.health.appended.fetch_add(count_lines(&lines[..whole]), Relaxed);
        if let Some(error) = fault {
            self.fell_behind(&error);
        }
        whole
    }

    /// Cuts a torn line off. A reader that sees it before leaves it, since it has no end.
    fn cut(&mut self) -> io::Result<()> {
        let done = self.file.set_len(self.good);
        self.torn = done.is_err();
        done
    }

    /// Writes the backlog; true if nothing is left of it.
    fn drain(&mut self) -> bool {
        if self.backlog.is_empty() {
            return true;
        }
        let mut backlog = std::mem::take(&mut self.backlog);
        let whole = self.put(&backlog);
        backlog.drain(..whole);
        self.backlog = backlog;
        if self.backlog.is_empty() {
            self.backlog.shrink_to_fit();
            self.caught_up();
        }
        self.backlog.is_empty()
    }

    fn keep(&mut self, line: &[u8]) {
        if self.backlog.len() + line.len() > BACKLOG {
            // The newest is dropped: the oldest are the beginnings without which later endings mean nothing.
            self.health.lost.fetch_add(1, Relaxed);
        } else {
            self.backlog.extend_from_slice(line);
        }
    }

    fn rotate(&mut self) {
        match next_file(&self.dir, &self.boot, self.worker) {
            Ok((_, file)) => {
                self.file = file;
                self.good = 0;
                self.rotate_at = self.rotate_every;
            }
            Err(error) => {
                tracing::warn!(%error, "no new journal file; the old one grows on");
                self.rotate_at = self.good + self.rotate_every;
            }
        }
    }

    fn fell_behind(&mut self, error: &io::Error) {
        if !self.degraded {
            self.degraded = true;
            self.health.degraded.fetch_add(1, Relaxed);
            tracing::error!(%error, dir = %self.dir.display(), "the journal cannot be written; usage waits in memory");
        }
    }

    fn caught_up(&mut self) {
        if self.degraded {
            self.degraded = false;
            self.health.degraded.fetch_sub(1, Relaxed);
            tracing::warn!(lost = self.health.lost(), "the journal is written again");
        }
    }
}

impl Drop for JournalWriter {
    fn drop(&mut self) {
        if !self.drain() {
            let lost = count_lines(&self.backlog);
            self.health.lost.fetch_add(lost, Relaxed);
            tracing::error!(lost, "the journal could not be written to the last");
            self.caught_up();
        }
    }
}

fn count_lines(bytes: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', bytes).count() as u64
}

/// Makes the file behind the last one of this worker. The last is never removed while its boot lives, so no
/// number comes twice.
fn next_file(dir: &Path, boot: &str, worker: usize) -> io::Result<(u64, File)> {
    let listed = JournalFile::list(dir)?;
    let last = listed.iter().filter(|f| f.boot == boot && f.worker == worker).map(|f| f.n).max();
    let n = last.map_or(0, |n| n + 1);
    let path = dir.join(JournalFile::name_of(boot, worker, n));
    let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path)?;
    Ok((n, file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::journal::JournalReader;

    fn writer(dir: &Path) -> (JournalWriter, Arc<JournalHealth>) {
        let health = Arc::new(JournalHealth::default());
        (JournalWriter::create(dir, "b", 0, health.clone()).unwrap(), health)
    }

    fn begin(writer: &mut JournalWriter) -> String {
        let call = writer.next_call();
        let name = || "x".to_owned();
        let at = chrono::DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        writer.begun(&Begun { call: call.clone(), key: name(), account: name(), model: name(), endpoint: name(), at });
        call
    }

    /// A file that takes nothing, as on a full disk: it is open for reading only.
    fn unwritable(writer: &JournalWriter) -> File {
        File::open(writer.dir.join(JournalFile::name_of("b", 0, 0))).unwrap()
    }

    #[test]
    fn a_worker_that_starts_anew_repeats_neither_file_nor_call() {
        let dir = tempfile::tempdir().unwrap();
        let first = begin(&mut writer(dir.path()).0);
        let again = begin(&mut writer(dir.path()).0);
        assert_eq!(first, "b-0-1");
        assert_ne!(first, again);
        assert_eq!(JournalReader::open(dir.path()).unwrap().files().unwrap().len(), 2);
    }

    #[test]
    fn lines_wait_in_order_and_the_newest_are_dropped_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, health) = writer(dir.path());
        begin(&mut writer);
        let full = unwritable(&writer);
        let room = std::mem::replace(&mut writer.file, full);
        while health.lost() < 10 {
            begin(&mut writer);
        }
        assert!(health.degraded() && writer.backlog.len() <= BACKLOG && writer.backlog.len() > BACKLOG - 200);
        assert_eq!(health.appended(), 1);
        let asked = writer.next_call;
        writer.file = room;
        writer.retry();
        assert!(!health.degraded());
        assert_eq!(health.appended() + health.lost(), asked);
        let reader = JournalReader::open(dir.path()).unwrap();
        let (piece, skipped) = reader.read_piece("b-0-0.jnl", 0, 1 << 20, false).unwrap().unwrap();
        assert_eq!((skipped, piece.begun[0].call.as_str(), piece.begun[1].call.as_str()), (0, "b-0-1", "b-0-2"));
    }

    #[test]
    fn a_torn_line_is_cut_off_before_the_next_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, _) = writer(dir.path());
        begin(&mut writer);
        (&writer.file).write_all(b"0123 torn").unwrap();
        writer.torn = true;
        begin(&mut writer);
        let reader = JournalReader::open(dir.path()).unwrap();
        let (piece, skipped) = reader.read_piece("b-0-0.jnl", 0, 1 << 20, false).unwrap().unwrap();
        assert_eq!((piece.begun.len(), skipped, piece.to), (2, 0, writer.good));
    }

    #[test]
    fn what_cannot_be_written_to_the_last_is_counted_as_lost() {
        let dir = tempfile::tempdir().unwrap();
        let (mut writer, health) = writer(dir.path());
        writer.file = unwritable(&writer);
        begin(&mut writer);
        begin(&mut writer);
        assert_eq!((health.lost(), health.degraded()), (0, true));
        drop(writer);
        assert_eq!((health.lost(), health.degraded()), (2, false));
    }
}
