//! The journal: the one way usage takes from the HTTP workers into the store. This file: lines and health.
//!
//! [`writer`] is used by the workers, [`reader`] and [`settler`] by the Ledger actor. A line is
//! `xxxxxxxx {json}` with the CRC-32 of the JSON, in files `<boot>-<worker>-<n>.jnl`. Nothing is ever synced: a
//! `kill -9` loses no line, since written pages belong to the kernel; a power loss may lose the last seconds,
//! which is cheaper than a sync for every call.

pub mod reader;
pub mod settler;
pub mod writer;

pub use reader::{JournalFile, JournalReader};
pub use settler::{JournalError, SettleReport, Settler};
pub use writer::JournalWriter;

use super::{Begun, Ended};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Where the JSON begins, behind the CRC and a space.
const JSON_AT: usize = 9;

/// A line on its way out.
#[derive(Serialize)]
#[serde(tag = "t", rename_all = "snake_case")]
enum Line<'a> {
    Begun(&'a Begun),
    Ended(&'a Ended),
}

impl Line<'_> {
    /// Puts the whole line, with its line break, into `buffer` in place of what is there.
    fn encode(&self, buffer: &mut Vec<u8>) -> io::Result<()> {
        buffer.clear();
        buffer.extend_from_slice(b"00000000 ");
        serde_json::to_writer(&mut *buffer, self)?;
        let crc = crc32fast::hash(&buffer[JSON_AT..]);
        hex::encode_to_slice(crc.to_be_bytes(), &mut buffer[..8]).map_err(io::Error::other)?;
        buffer.push(b'\n');
        Ok(())
    }
}

/// A line that was read.
#[derive(Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
enum Entry {
    Begun(Begun),
    Ended(Ended),
}

impl Entry {
    /// Reads a line without its line break; `None` if its CRC or JSON is wrong.
    fn decode(line: &[u8]) -> Option<Self> {
        let mut crc = [0; 4];
        hex::decode_to_slice(line.get(..8)?, &mut crc).ok()?;
        let json = line.get(JSON_AT..)?;
        if line[8] != b' ' || crc32fast::hash(json).to_be_bytes() != crc {
            return None;
        }
        serde_json::from_slice(json).ok()
    }
}

/// How all the writers of this process fare; shared with readiness, the metrics and the Ledger.
#[derive(Debug, Default)]
pub struct JournalHealth {
    degraded: AtomicUsize,
    lost: AtomicU64,
    appended: AtomicU64,
}

impl JournalHealth {
    /// True while a writer holds lines that it cannot write, as on a full disk. They are lost if the process
    /// dies now.
    pub fn degraded(&self) -> bool {
        self.degraded.load(Relaxed) > 0
    }

    /// Lines lost for good, because the backlog of a writer was full or could not be written to the last.
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    /// Lines written so far: if it has not moved, there is nothing new to settle.
    pub fn appended(&self) -> u64 {
        self.appended.load(Relaxed)
    }
}

/// Makes the journal's directory, for the owner alone, if it is not there.
fn make_dir(dir: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Ending, Usage};

    #[test]
    fn a_line_reads_back_and_any_flipped_bit_is_noticed() {
        let ended = Ended {
            call: "b-0-1".to_owned(),
            ending: Ending::UpstreamCut,
            status: Some(200),
            usage: Usage { output_tokens: 7, ..Usage::default() },
            first_byte_ms: None,
            duration_ms: 12,
        };
        let mut line = Vec::new();
        Line::Ended(&ended).encode(&mut line).unwrap();
        assert_eq!(line.pop(), Some(b'\n'));
        assert!(line[JSON_AT..].starts_with(b"{\"t\":\"ended\","));
        assert!(matches!(Entry::decode(&line), Some(Entry::Ended(read)) if read == ended));
        for at in 0..line.len() {
            let mut other = line.clone();
            other[at] ^= 1;
            assert!(Entry::decode(&other).is_none(), "byte {at}");
            assert!(Entry::decode(&line[..at]).is_none(), "cut at {at}");
        }
    }
}
