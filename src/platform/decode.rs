//! Reads a compressed answer beside its way to the client, so that usage is counted whatever encoding it has.
//!
//! The decoded bytes go straight into the reader given, never into a buffer of their own: a small chunk that
//! decodes to gigabytes costs time, not memory.

use std::io::{self, Write};

/// A decoder in front of `W`, by content coding (RFC 9110, 8.4.1; RFC 7932; RFC 8878).
pub enum Decode<W: Write> {
    /// No coding.
    Identity(W),
    /// `gzip`
    Gzip(flate2::write::MultiGzDecoder<W>),
    /// `deflate`, which means the zlib format.
    Deflate(flate2::write::ZlibDecoder<W>),
    /// `br`
    Brotli(Box<brotli_decompressor::DecompressorWriter<W>>),
    /// `zstd`
    Zstd(Box<zstd::stream::write::Decoder<'static, W>>),
}

impl<W: Write> Decode<W> {
    /// The decoder for a `content-encoding`; `None` if the coding is none of these, or several at once.
    pub fn new(coding: Option<&str>, sink: W) -> Option<Self> {
        Some(match coding.map(|c| c.trim().to_ascii_lowercase()).as_deref() {
            None | Some("" | "identity") => Self::Identity(sink),
            Some("gzip" | "x-gzip") => Self::Gzip(flate2::write::MultiGzDecoder::new(sink)),
            Some("deflate") => Self::Deflate(flate2::write::ZlibDecoder::new(sink)),
            Some("br") => Self::Brotli(Box::new(brotli_decompressor::DecompressorWriter::new(sink, 4096))),
            Some("zstd") => Self::Zstd(Box::new(zstd::stream::write::Decoder::new(sink).ok()?)),
            Some(_) => return None,
        })
    }

    /// Shows the decoder the next bytes, and pushes through what they decode to.
    ///
    /// # Errors
    /// When the bytes are not of the coding; the caller stops reading and passes on all the same.
    pub fn feed(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Identity(w) => w.write_all(bytes),
            Self::Gzip(w) => w.write_all(bytes).and_then(|()| w.flush()),
            Self::Deflate(w) => w.write_all(bytes).and_then(|()| w.flush()),
            Self::Brotli(w) => w.write_all(bytes).and_then(|()| w.flush()),
            Self::Zstd(w) => w.write_all(bytes).and_then(|()| w.flush()),
        }
    }

    /// The sink.
    pub fn sink(&self) -> &W {
        match self {
            Self::Identity(w) => w,
            Self::Gzip(w) => w.get_ref(),
            Self::Deflate(w) => w.get_ref(),
            Self::Brotli(w) => w.get_ref(),
            Self::Zstd(w) => w.get_ref(),
        }
    }
}
