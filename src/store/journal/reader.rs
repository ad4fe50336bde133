//! Reads the journal's files, in pieces of whole lines, while their writers still append to them.
//!
//! Called by the [`super::Settler`], and by the writer to find its next file. A line that is broken but ended is
//! skipped and counted; a tail without an end is left alone until its file is finished, since it may be half of
//! a line that is being written, or a torn one that its writer is about to cut off.

use super::{Entry, make_dir};
use crate::store::Settlement;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Lines in one piece at most: what a transaction holds.
const MAX_LINES: usize = 4096;

/// A file of the journal; ordered by boot, worker and number, which within one worker is the order of writing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct JournalFile {
    /// The boot that wrote it.
    pub boot: String,
    /// The worker that wrote it.
    pub worker: usize,
    /// Its number, from 0.
    pub n: u64,
}

impl JournalFile {
    /// The file's name.
    pub fn name(&self) -> String {
        Self::name_of(&self.boot, self.worker, self.n)
    }

    pub(super) fn name_of(boot: &str, worker: usize, n: u64) -> String {
        format!("{boot}-{worker}-{n}.jnl")
    }

    /// Reads a name; `None` if it is not one of ours.
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_suffix(".jnl")?.split('-');
        let file = Self {
            boot: parts.next()?.to_owned(),
            worker: parts.next()?.parse().ok()?,
            n: parts.next()?.parse().ok()?,
        };
        (file.name() == name).then_some(file)
    }

    /// Every file in `dir`. A scan that races with a rotation may give a file and not the one before it, which
    /// is older than both: the gaps are looked at once more, since an ending must not be settled before its
    /// beginning.
    pub(super) fn list(dir: &Path) -> io::Result<BTreeSet<Self>> {
        let mut files = BTreeSet::new();
        for entry in fs::read_dir(dir)? {
            files.extend(entry?.file_name().to_str().and_then(Self::parse));
        }
        let mut before: Option<Self> = None;
        for file in files.clone() {
            if let Some(before) = before.filter(|b| b.boot == file.boot && b.worker == file.worker) {
                let gap = (before.n + 1..file.n).map(|n| Self { n, ..file.clone() });
                files.extend(gap.filter(|missed| dir.join(missed.name()).exists()));
            }
            before = Some(file);
        }
        Ok(files)
    }
}

/// Reads the files of one journal directory.
#[derive(Debug, Clone)]
pub struct JournalReader {
    dir: PathBuf,
}

impl JournalReader {
    /// Reads from `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(dir: &Path) -> io::Result<Self> {
        make_dir(dir)?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Every file, in order, and whether it is finished: nothing will be appended to it, since its writer has
    /// moved on to the next, or its boot is not `current_boot` (two relays never share a directory).
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn finished(&self, current_boot: &str) -> io::Result<Vec<(JournalFile, bool)>> {
        let files = self.files()?;
        let follows = |nth: usize| {
            files.get(nth + 1).is_some_and(|next| (&next.boot, next.worker) == (&files[nth].boot, files[nth].worker))
        };
        let finished: Vec<_> = (0..files.len()).map(|nth| files[nth].boot != current_boot || follows(nth)).collect();
        Ok(files.into_iter().zip(finished).collect())
    }

    /// Every file, in order.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn files(&self) -> io::Result<Vec<JournalFile>> {
        Ok(JournalFile::list(&self.dir)?.into_iter().collect())
    }

    /// The length of a file, in bytes.
    ///
    /// # Errors
    /// When it cannot be looked at.
    pub fn len(&self, file: &str) -> io::Result<u64> {
        Ok(fs::metadata(self.dir.join(file))?.len())
    }

    /// The lines of `file` from byte `from`, about `max_bytes` of them, with the number of broken lines among
    /// them; `None` if there is no whole line yet. Of a file that is `finished`, a tail without an end counts as
    /// a broken line.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read_piece(
        &self,
        file: &str,
        from: u64,
        max_bytes: usize,
        finished: bool,
    ) -> io::Result<Option<(Settlement, u64)>> {
        let Some((bytes, at_end)) = self.read(file, from, max_bytes)? else { return Ok(None) };
        let mut piece = Settlement { file: file.to_owned(), from, to: from, begun: Vec::new(), ended: Vec::new() };
        let (mut skipped, mut lines, mut at) = (0, 0, 0);
        while lines < MAX_LINES
            && let Some(length) = memchr::memchr(b'\n', &bytes[at..])
        {
            match Entry::decode(&bytes[at..at + length]) {
                Some(Entry::Begun(begun)) => piece.begun.push(begun),
                Some(Entry::Ended(ended)) => piece.ended.push(ended),
                None => skipped += 1,
            }
            lines += 1;
            at += length + 1;
        }
        if finished && at_end && lines < MAX_LINES && at < bytes.len() {
            skipped += 1;
            at = bytes.len();
        }
        piece.to += at as u64;
        Ok((at > 0).then_some((piece, skipped)))
    }

    /// Bytes from `from` on, and whether they reach to the end; `None` if there are none. Reads beyond
    /// `max_bytes` until there is a line break, or one long line would hold everything up for ever.
    fn read(&self, file: &str, from: u64, max_bytes: usize) -> io::Result<Option<(Vec<u8>, bool)>> {
        let mut source = File::open(self.dir.join(file))?;
        let step = max_bytes.max(1) as u64;
        let length = source.metadata()?.len().saturating_sub(from);
        if length == 0 {
            return Ok(None);
        }
        source.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::with_capacity(usize::try_from(length.min(step)).unwrap_or_default());
        loop {
            let before = bytes.len();
            let read = (&source).take(step).read_to_end(&mut bytes)? as u64;
            let at_end = read < step || bytes.len() as u64 >= length;
            if at_end || memchr::memchr(b'\n', &bytes[before..]).is_some() {
                return Ok(Some((bytes, at_end)));
            }
        }
    }

    /// Removes a file; one that is not there is no error.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove(&self, file: &str) -> io::Result<()> {
        match fs::remove_file(self.dir.join(file)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_a_writer_gives_are_files_of_the_journal() {
        let file = JournalFile::parse("00ff-12-3.jnl").unwrap();
        assert_eq!((file.boot.as_str(), file.worker, file.n), ("00ff", 12, 3));
        for other in ["00ff-12-03.jnl", "00ff-12.jnl", "00ff-1-2-3.jnl", "00ff-1-2.jnl.bak", "a-+1-2.jnl", "x"] {
            assert!(JournalFile::parse(other).is_none(), "{other}");
        }
    }

    #[test]
    fn files_are_in_the_order_of_writing_and_the_last_of_the_current_boot_is_not_finished() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b-0-10.jnl", "b-0-9.jnl", "b-1-0.jnl", "a-0-0.jnl", "b-10-0.jnl", "notes.txt"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let files = JournalReader::open(dir.path()).unwrap().finished("b").unwrap();
        let shown: Vec<_> = files.iter().map(|(file, finished)| (file.name(), *finished)).collect();
        let expected = [
            ("a-0-0.jnl", true),
            ("b-0-9.jnl", true),
            ("b-0-10.jnl", false),
            ("b-1-0.jnl", false),
            ("b-10-0.jnl", false),
        ];
        assert_eq!(shown, expected.map(|(name, finished)| (name.to_owned(), finished)));
    }
}
