//! Reads usage out of an answer on its way to the client, and knows when the answer is whole.
//!
//! `message_start` gives input and cache figures; the **last** `message_delta` is cumulative and overrides,
//! it is never summed (docs.anthropic.com/en/api/messages-streaming). An event stream is whole when its
//! `message_stop` has passed, whatever the connection does afterwards.

use super::decode::Decode;
use super::sse::{Events, Scanner};
use crate::domain::Usage;
use serde::Deserialize;
use std::io::{self, Write};

/// A JSON answer is read up to this size; a larger one is passed on uncounted. The largest output that a model
/// gives today is well below 1 MiB of text.
const LARGEST_JSON: usize = 4 << 20;

/// A compressed stream is read up to so many decoded bytes: what decodes to more is no answer of a model, and would
/// hold this thread up.
const LARGEST_DECODED: usize = 64 << 20;

/// How the answer's own terminal event ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terminal {
    /// `message_stop`
    Stop,
    /// `error`; `of_client`: what was asked is at fault, not the upstream.
    Error { of_client: bool },
}

/// Error types that speak of the request (docs.anthropic.com/en/api/errors).
const OF_CLIENT: [&str; 4] = ["invalid_request_error", "not_found_error", "permission_error", "request_too_large"];

/// The reader beside one answer.
pub struct Meter {
    decode: Option<Decode<Reader>>,
    stream: bool,
    identity: bool,
}

enum Reader {
    Json(Vec<u8>),
    /// An answer that has no usage.
    Nothing,
    /// The scanner, what it saw, and how many more bytes it may be shown.
    Sse(Box<Scanner>, Seen, usize),
}

#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    usage: Usage,
    terminal: Option<Terminal>,
}

impl Meter {
    /// A reader for an answer with these headers; `counts` says whether it can have usage at all.
    pub fn new(content_type: Option<&str>, content_encoding: Option<&str>, counts: bool) -> Self {
        let kind = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        let stream = kind.eq_ignore_ascii_case("text/event-stream");
        let plain = content_encoding.is_none_or(|c| c.trim().eq_ignore_ascii_case("identity"));
        let budget = if plain { usize::MAX } else { LARGEST_DECODED };
        let reader = match (stream, counts) {
            (true, _) => Reader::Sse(Box::default(), Seen::default(), budget),
            (false, true) => Reader::Json(Vec::new()),
            (false, false) => Reader::Nothing,
        };
        let decode = Decode::new(content_encoding, reader);
        let identity = matches!(decode, Some(Decode::Identity(_)));
        Self { decode, stream, identity }
    }

    /// True if the answer is an event stream.
    pub fn is_stream(&self) -> bool {
        self.stream
    }

    /// True if an event of our own could be put in here: an uncompressed event stream, between two events.
    pub fn accepts_event(&self) -> bool {
        self.identity && matches!(self.reader(), Some(Reader::Sse(scanner, ..)) if scanner.at_boundary())
    }

    /// True if the stream's bytes can be read at all (its coding is known), so that a missing terminal event
    /// means something.
    pub fn is_legible(&self) -> bool {
        self.decode.is_some()
    }

    /// True if the bytes are as they were written, without a coding.
    pub fn is_identity(&self) -> bool {
        self.identity
    }

    /// Shows it the next bytes of the answer.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.decode.as_mut().is_some_and(|d| d.feed(bytes).is_err()) {
            tracing::warn!("an answer is not in the content-encoding it names; its usage is not counted");
            self.decode = None;
        }
    }

    /// The terminal event, once it has passed.
    pub fn terminal(&self) -> Option<Terminal> {
        match self.reader()? {
            Reader::Sse(_, seen, _) => seen.terminal,
            Reader::Json(_) | Reader::Nothing => None,
        }
    }

    /// What has been used, as far as the answer has said by now.
    pub fn usage(&self) -> Usage {
        match self.reader() {
            Some(Reader::Sse(_, seen, _)) => seen.usage,
            Some(Reader::Json(body)) => {
                let mut usage = Usage::default();
                if let Ok(Body { usage: Some(wire) }) = serde_json::from_slice(body) {
                    wire.lay_over(&mut usage);
                }
                usage
            }
            None | Some(Reader::Nothing) => Usage::default(),
        }
    }

    fn reader(&self) -> Option<&Reader> {
        self.decode.as_ref().map(Decode::sink)
    }
}

impl Write for Reader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Sse(scanner, seen, budget) => {
                *budget = budget.checked_sub(bytes.len()).ok_or_else(|| io::Error::other("decodes to too much"))?;
                scanner.feed(bytes, seen);
            }
            Self::Json(body) if body.len() + bytes.len() <= LARGEST_JSON => body.extend_from_slice(bytes),
            Self::Nothing => {}
            Self::Json(_) => return Err(io::Error::other("larger than what is read")),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Events for Seen {
    fn wants(name: &str) -> bool {
        matches!(name, "message_start" | "message_delta" | "message_stop" | "error")
    }

    fn event(&mut self, name: Option<&str>, data: &[u8]) {
        // Most events without a name are deltas of text: look before parsing.
        if name.is_none()
            && !["\"message_", "\"error\""].iter().any(|s| memchr::memmem::find(data, s.as_bytes()).is_some())
        {
            return;
        }
        let event: Event = serde_json::from_slice(data).unwrap_or_default();
        match name.or(event.kind.as_deref()) {
            Some("message_start") => event.message.and_then(|m| m.usage).unwrap_or_default().lay_over(&mut self.usage),
            Some("message_delta") => event.usage.unwrap_or_default().lay_over(&mut self.usage),
            Some("message_stop") => self.terminal = Some(Terminal::Stop),
            Some("error") => {
                let kind = event.error.and_then(|e| e.kind).unwrap_or_default();
                self.terminal = Some(Terminal::Error { of_client: OF_CLIENT.contains(&kind.as_str()) });
            }
            _ => {}
        }
    }
}

#[derive(Default, Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: Option<String>,
    message: Option<Body>,
    usage: Option<WireUsage>,
    error: Option<WireError>,
}

#[derive(Deserialize)]
struct WireError {
    #[serde(rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Body {
    usage: Option<WireUsage>,
}

/// `usage` as the API writes it; what is absent or null changes nothing.
#[derive(Default, Deserialize)]
struct WireUsage {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    cache_creation: Option<WireCacheCreation>,
}

#[derive(Default, Deserialize)]
struct WireCacheCreation {
    ephemeral_5m_input_tokens: Option<u64>,
    ephemeral_1h_input_tokens: Option<u64>,
}

impl WireUsage {
    fn lay_over(self, usage: &mut Usage) {
        let set = |field: &mut u64, value: Option<u64>| *field = value.unwrap_or(*field);
        set(&mut usage.input_tokens, self.input_tokens);
        set(&mut usage.output_tokens, self.output_tokens);
        set(&mut usage.cache_read_input_tokens, self.cache_read_input_tokens);
        set(&mut usage.cache_creation_input_tokens, self.cache_creation_input_tokens);
        if let Some(by_lifetime) = self.cache_creation {
            set(&mut usage.cache_creation_5m_input_tokens, by_lifetime.ephemeral_5m_input_tokens);
            set(&mut usage.cache_creation_1h_input_tokens, by_lifetime.ephemeral_1h_input_tokens);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = concat!(
        "event: message_start\ndata: {\"message\":{\"usage\":{\"input_tokens\":10,\"output_tokens\":1,",
        "\"cache_creation_input_tokens\":7,\"cache_read_input_tokens\":3,",
        "\"cache_creation\":{\"ephemeral_5m_input_tokens\":5,\"ephemeral_1h_input_tokens\":2}}},\"type\":\"message_start\"}\n\n",
        "event: ping\ndata: {\"type\":\"ping\"}\n\n",
        "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"\\\"usage\\\":{\\\"output_tokens\\\":99}\"}}\n\n",
        "event: message_delta\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":20}}\n\n",
        "event: message_delta\ndata: {\"usage\":{\"output_tokens\":42,\"input_tokens\":null},\"type\":\"message_delta\"}\n\n",
        "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
    );

    const BROTLI: &str = "1b3900e09c07b62df2937c5f2c0223d985b582c8579fbad92b90bad4f99a73ca8907466d492b0eec748fb16b6c3844a141da998341017d6acf36b8c77b00";

    fn expected() -> Usage {
        Usage {
            input_tokens: 10,
            output_tokens: 42,
            cache_creation_input_tokens: 7,
            cache_creation_5m_input_tokens: 5,
            cache_creation_1h_input_tokens: 2,
            cache_read_input_tokens: 3,
        }
    }

    fn read(coding: Option<&str>, bytes: &[u8], size: usize) -> Meter {
        let mut meter = Meter::new(Some("text/event-stream; charset=utf-8"), coding, true);
        bytes.chunks(size).for_each(|c| meter.feed(c));
        meter
    }

    #[test]
    fn the_last_delta_overrides_at_every_chunk_size() {
        for text in [STREAM.to_owned(), STREAM.replace('\n', "\r\n")] {
            for size in [1, 2, 3, 7, 64, 10_000] {
                let meter = read(None, text.as_bytes(), size);
                assert_eq!((meter.usage(), meter.terminal()), (expected(), Some(Terminal::Stop)));
            }
        }
    }

    #[test]
    fn a_stream_without_event_lines_is_read_by_type() {
        let text: String = STREAM.lines().filter(|l| !l.starts_with("event:")).map(|l| format!("{l}\n")).collect();
        let meter = read(None, text.as_bytes(), 5);
        assert_eq!((meter.usage(), meter.terminal()), (expected(), Some(Terminal::Stop)));
    }

    #[test]
    fn a_cut_stream_has_no_terminal_event_and_keeps_what_it_said() {
        let cut = STREAM.find("event: message_delta").unwrap();
        let meter = read(None, &STREAM.as_bytes()[..cut], 11);
        assert_eq!((meter.terminal(), meter.usage().output_tokens, meter.accepts_event()), (None, 1, true));
    }

    #[test]
    fn an_error_event_is_terminal() {
        let meter = read(None, b"event: error\ndata: {\"type\":\"error\"}\n\n", 4);
        assert_eq!(meter.terminal(), Some(Terminal::Error { of_client: false }));
    }

    #[test]
    fn a_json_answer_and_every_coding_are_read() {
        use std::io::Write as _;
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(STREAM.as_bytes()).unwrap();
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        zlib.write_all(STREAM.as_bytes()).unwrap();
        let zstd = zstd::stream::encode_all(STREAM.as_bytes(), 3).unwrap();
        for (coding, bytes) in [("gzip", gzip.finish().unwrap()), ("deflate", zlib.finish().unwrap()), ("zstd", zstd)] {
            for size in [1, 13, 10_000] {
                let meter = read(Some(coding), &bytes, size);
                assert_eq!((meter.usage(), meter.terminal()), (expected(), Some(Terminal::Stop)), "{coding} {size}");
                assert!(!meter.accepts_event());
            }
        }
        let mut json = Meter::new(Some("application/json"), None, true);
        json.feed(br#"{"content":[],"usage":{"input_tokens":1,"#);
        json.feed(br#""output_tokens":2,"cache_creation":null}}"#);
        assert_eq!((json.usage().input_tokens, json.usage().output_tokens), (1, 2));
    }

    #[test]
    fn brotli_is_read() {
        // `event: message_delta\ndata: {"usage":{"output_tokens":7}}\n\n`, by Node's zlib.
        let bytes = hex::decode(BROTLI).unwrap();
        for size in [1, 5, 100] {
            assert_eq!(read(Some("br"), &bytes, size).usage().output_tokens, 7);
        }
    }

    #[test]
    fn a_stream_that_decodes_to_too_much_is_read_no_further() {
        let bomb = zstd::stream::encode_all(&vec![b'x'; LARGEST_DECODED + 1][..], 3).unwrap();
        assert!(bomb.len() < 100_000);
        assert!(!read(Some("zstd"), &bomb, 1 << 16).is_legible());
    }

    #[test]
    fn bytes_that_are_not_of_their_coding_are_passed_over() {
        let meter = read(Some("gzip"), b"this is not gzip at all", 8);
        assert!(!meter.is_legible());
        assert!(!Meter::new(Some("text/event-stream"), Some("gzip, br"), true).is_legible());
    }
}
