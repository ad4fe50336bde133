//! Carries the journal into the store: piece by piece, exactly once, across every way to die.
//!
//! Called by the Ledger actor: [`Settler::settle_all`] at a tick, and it begins with [`Settler::recover`] by
//! itself. Nothing is kept in memory that the store and the directory do not hold (the offsets are a cache), so a
//! settler that fails or is killed is replaced by a new one.
//!
//! Why a `kill -9` between any two steps neither loses nor doubles a call:
//! - Before or after one `settle`: its rows and its offset commit together, so that the next reads on from there.
//! - After the last piece of a dead boot and before `close_crashed`: the files are all there; the next run finds
//!   nothing to settle in them and closes the boot.
//! - After `close_crashed` and before the files are removed: nothing is open any more, closing again does nothing.
//!   Removing first would be wrong: with files and offsets gone, nobody would know of the boot's open calls.
//! - After a file is removed and before its offset is forgotten: an offset without a file is forgotten at the
//!   next recovery. The other way round the file would be settled again from its beginning.
//! - All files of a boot are settled before it is closed, since a call may end in a later file than it began in.

use super::JournalReader;
use super::reader::JournalFile;
use crate::store::{StoreError, UsageLedger};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Bytes of journal in one transaction.
const PIECE: usize = 256 << 10;

/// Why settling stopped; nothing is lost, and the next attempt goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The journal could not be read, or a file of it not removed.
    #[error("journal {0}: {1}")]
    Io(String, io::Error),
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What one run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SettleReport {
    /// Calls that began.
    pub begun: u64,
    /// Calls that ended.
    pub ended: u64,
    /// Calls of earlier boots that never ended and became rows `relay_crashed`.
    pub crashed: u64,
    /// Broken lines that were passed over.
    pub skipped: u64,
    /// Files that were settled to their end and removed.
    pub removed: u64,
}

/// Settles one journal directory into one store.
pub struct Settler {
    reader: JournalReader,
    usage: Arc<dyn UsageLedger>,
    boot: String,
    piece_bytes: usize,
    /// What the store said last; `None` when it must be asked (again).
    offsets: Option<HashMap<String, u64>>,
    recovered: bool,
}

impl Settler {
    /// Settles `dir` into `usage`; `boot` is that of this process.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new(dir: &Path, usage: Arc<dyn UsageLedger>, boot: &str) -> io::Result<Self> {
        let reader = JournalReader::open(dir)?;
        Ok(Self { reader, usage, boot: boot.to_owned(), piece_bytes: PIECE, offsets: None, recovered: false })
    }

    /// The same with pieces of about `bytes`.
    pub fn with_piece_bytes(self, bytes: usize) -> Self {
        Self { piece_bytes: bytes, ..self }
    }

    /// Settles what this boot has written so far and removes the files that are finished. Recovers first, if
    /// that has not been done.
    ///
    /// # Errors
    /// When the journal cannot be read or the store refuses; call it again later.
    pub async fn settle_all(&mut self) -> Result<SettleReport, JournalError> {
        let mut report = if self.recovered { SettleReport::default() } else { self.recover().await? };
        for (file, finished) in self.list()? {
            if file.boot == self.boot {
                self.settle_file(&file, finished, &mut report).await?;
                if finished {
                    self.discard(&file.name(), &mut report).await?;
                }
            }
        }
        Ok(report)
    }

    /// Settles what earlier boots left, to the end; turns their calls that never ended into rows
    /// `relay_crashed`; removes their files. Running it again changes nothing.
    ///
    /// # Errors
    /// When the journal cannot be read or the store refuses; call it again later.
    pub async fn recover(&mut self) -> Result<SettleReport, JournalError> {
        let mut report = SettleReport::default();
        // Before the directory is listed, so that an offset without a file is one whose file is gone.
        let settled: Vec<String> = self.offsets().await?.keys().cloned().collect();
        let listed = self.list()?;
        let earlier: Vec<&JournalFile> = listed.iter().map(|(file, _)| file).filter(|f| f.boot != self.boot).collect();
        for file in &earlier {
            self.settle_file(file, true, &mut report).await?;
        }
        // Boots whose files are gone still have their offsets, if they died between the two. Those of another data
        // directory are left alone: their files may hold how their calls ended, and come back with their relay.
        let boots = earlier.iter().map(|f| f.boot.as_str());
        let ours = |name: &&String| home(name) == home(&self.boot);
        let own = settled.iter().filter(ours).filter_map(|name| name.split('-').next());
        let boots: BTreeSet<&str> = boots.chain(own).collect();
        for boot in boots.into_iter().filter(|boot| *boot != self.boot) {
            report.crashed += self.usage.close_crashed(boot).await?;
        }
        let names: BTreeSet<String> = listed.iter().map(|(file, _)| file.name()).collect();
        let here = home(&self.boot).to_owned();
        let gone = settled.into_iter().filter(|name| !names.contains(name) && home(name) == here);
        for name in gone {
            self.forget(&name).await?;
        }
        for file in &earlier {
            self.discard(&file.name(), &mut report).await?;
        }
        self.recovered = true;
        if report != SettleReport::default() {
            tracing::info!(?report, "usage of earlier boots is settled");
        }
        Ok(report)
    }

    /// Settles `file` to its end if it is finished, else to where it ended when this began, so that a busy
    /// writer cannot hold the others up.
    async fn settle_file(
        &mut self,
        file: &JournalFile,
        finished: bool,
        report: &mut SettleReport,
    ) -> Result<(), JournalError> {
        let name = file.name();
        let failed = |error| JournalError::Io(name.clone(), error);
        let end = if finished { u64::MAX } else { self.reader.len(&name).map_err(failed)? };
        let mut at = self.offsets().await?.get(&name).copied().unwrap_or(0);
        while at < end
            && let Some((piece, skipped)) =
                self.reader.read_piece(&name, at, self.piece_bytes, finished).map_err(failed)?
        {
            let (begun, ended, to) = (piece.begun.len() as u64, piece.ended.len() as u64, piece.to);
            if skipped > 0 {
                tracing::warn!(file = name, from = at, to, skipped, "broken journal lines are passed over");
            }
            if let Err(error) = self.usage.settle(piece).await {
                // It may have been taken in, and only the answer lost.
                self.offsets = None;
                return Err(error.into());
            }
            at = to;
            if let Some(offsets) = &mut self.offsets {
                offsets.insert(name.clone(), at);
            }
            report.begun += begun;
            report.ended += ended;
            report.skipped += skipped;
        }
        Ok(())
    }

    async fn discard(&mut self, name: &str, report: &mut SettleReport) -> Result<(), JournalError> {
        self.reader.remove(name).map_err(|error| JournalError::Io(name.to_owned(), error))?;
        report.removed += 1;
        self.forget(name).await
    }

    async fn forget(&mut self, name: &str) -> Result<(), JournalError> {
        self.usage.forget(name).await?;
        if let Some(offsets) = &mut self.offsets {
            offsets.remove(name);
        }
        Ok(())
    }

    async fn offsets(&mut self) -> Result<&mut HashMap<String, u64>, JournalError> {
        match &mut self.offsets {
            Some(offsets) => Ok(offsets),
            unknown => Ok(unknown.insert(self.usage.offsets().await?.into_iter().collect())),
        }
    }

    fn list(&self) -> Result<Vec<(JournalFile, bool)>, JournalError> {
        self.reader.finished(&self.boot).map_err(|error| JournalError::Io("directory".to_owned(), error))
    }
}

/// The data directory that a boot, or a file of it, belongs to: the first half of a boot's 16 hex digits. Shorter
/// names, as tests use them, all belong together.
fn home(name: &str) -> &str {
    let boot = name.split('-').next().unwrap_or(name);
    if boot.len() == 16 { &boot[..8] } else { "" }
}
