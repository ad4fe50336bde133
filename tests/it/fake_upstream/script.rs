//! What the fake upstream answers: `Reply` describes one answer (status, headers, body, timing,
//! framing, how it breaks off) and builds the shapes of Anthropic's Messages API.

use std::io::Write;
use std::time::Duration;

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};

/// The five token counts that a messages answer reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub input: u64,
    pub output: u64,
    pub cache_creation_5m: u64,
    pub cache_creation_1h: u64,
    pub cache_read: u64,
}

/// How a body is split into writes, and into HTTP chunks where it is chunked.
#[derive(Clone, Debug)]
pub enum Chunks {
    Whole,
    /// One server-sent event a write.
    Events,
    /// So many bytes a write.
    Bytes(usize),
    /// A split before each of these offsets.
    At(Vec<usize>),
}

/// How the server ends a connection before its answer is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Fin,
    Rst,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    ContentLength,
    Chunked,
    UntilClose,
    /// The body is the whole answer, head included.
    Raw,
}

/// Where an answer stops short.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stop {
    /// Before the first byte of the head.
    Silent,
    /// Before the first byte of the head, and the connection ends.
    Hangup(Cut),
    /// After so many body bytes as they travel (compressed ones under gzip), and holds the socket.
    Hang(usize),
    /// After so many body bytes, and the connection ends.
    Cut(usize, Cut),
}

/// One scripted answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) framing: Framing,
    pub(super) delay: Duration,
    pub(super) pause: Duration,
    pub(super) stop: Option<Stop>,
    pub(super) early: bool,
    pub(super) close: bool,
    body: Vec<u8>,
    chunks: Chunks,
    gzip: bool,
}

impl Reply {
    /// A body of any type, sent whole with a content-length.
    pub fn text(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: vec![("content-type".into(), content_type.into())],
            framing: Framing::ContentLength,
            delay: Duration::ZERO,
            pause: Duration::ZERO,
            stop: None,
            early: false,
            close: false,
            body: body.into(),
            chunks: Chunks::Whole,
            gzip: false,
        }
    }

    /// Exactly these bytes, head and all, on a connection that stays open.
    pub fn raw(answer: &str) -> Self {
        Self { framing: Framing::Raw, ..Self::text(200, "", answer) }
    }

    /// A JSON body, sent whole with a content-length.
    pub fn json(status: u16, body: Value) -> Self {
        Self::text(status, "application/json", body.to_string())
    }

    /// A 200 event stream of exactly this text, chunked, one event a write.
    pub fn sse(text: &str) -> Self {
        Self::text(200, "text/event-stream; charset=utf-8", text)
            .header("cache-control", "no-cache")
            .chunked()
            .chunks(Chunks::Events)
    }

    /// A complete Messages answer without streaming.
    pub fn message(text: &str, usage: Usage) -> Self {
        let mut message = message_shell(usage, usage.output);
        message["content"] = json!([{"type": "text", "text": text}]);
        message["stop_reason"] = json!("end_turn");
        Self::json(200, message)
    }

    /// A complete Messages stream, one `content_block_delta` a piece.
    pub fn stream(pieces: &[&str], usage: Usage) -> Self {
        let mut events = vec![
            json!({"type": "message_start", "message": message_shell(usage, 1)}),
            json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
            json!({"type": "ping"}),
        ];
        events.extend(pieces.iter().map(
            |piece| json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}),
        ));
        events.push(json!({"type": "content_block_stop", "index": 0}));
        events.push(json!({
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": null},
            "usage": {
                "input_tokens": usage.input,
                "cache_creation_input_tokens": usage.cache_creation_5m + usage.cache_creation_1h,
                "cache_read_input_tokens": usage.cache_read,
                "output_tokens": usage.output,
            },
        }));
        events.push(json!({"type": "message_stop"}));
        let text: String = events
            .iter()
            .map(|event| {
                let name = event["type"].as_str().expect("every event above has a type");
                format!("event: {name}\ndata: {event}\n\n")
            })
            .collect();
        Self::sse(&text)
    }

    /// Closes the connection without one byte of answer.
    pub fn hangup(how: Cut) -> Self {
        let mut reply = Self::text(200, "text/plain", "");
        reply.stop = Some(Stop::Hangup(how));
        reply
    }

    /// Adds a header; a `content-type` replaces the one there is.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if name.eq_ignore_ascii_case("content-type") {
            self.headers.retain(|(known, _)| !known.eq_ignore_ascii_case(name));
        }
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Replaces the status.
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Waits before the head.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Waits between two chunks.
    pub fn pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// Never answers; holds the socket until the peer leaves.
    pub fn hang(mut self) -> Self {
        self.stop = Some(Stop::Silent);
        self
    }

    /// Sends the head and so many body bytes, then holds the socket until the peer leaves.
    pub fn hang_after(mut self, body_bytes: usize) -> Self {
        self.stop = Some(Stop::Hang(body_bytes));
        self
    }

    /// Sends the head and so many body bytes, then ends the connection; never a terminal chunk.
    pub fn cut(mut self, after_body_bytes: usize, how: Cut) -> Self {
        self.stop = Some(Stop::Cut(after_body_bytes, how));
        self
    }

    /// Answers from the request's head on without reading the body, then closes.
    pub fn early(mut self) -> Self {
        self.early = true;
        self
    }

    /// Points elsewhere: `location`, and status 307 unless it is a 3xx already.
    pub fn redirect(mut self, url: &str) -> Self {
        if !(300..400).contains(&self.status) {
            self.status = 307;
        }
        self.header("location", url)
    }

    /// Neither content-length nor chunks: the end of the connection ends the body.
    pub fn no_framing(mut self) -> Self {
        self.framing = Framing::UntilClose;
        self
    }

    /// Frames the body by content-length.
    pub fn content_length(mut self) -> Self {
        self.framing = Framing::ContentLength;
        self
    }

    /// Frames the body by HTTP chunks.
    pub fn chunked(mut self) -> Self {
        self.framing = Framing::Chunked;
        self
    }

    /// Decides how the body is split into writes.
    pub fn chunks(mut self, chunks: Chunks) -> Self {
        self.chunks = chunks;
        self
    }

    /// Compresses the body, flushed at each split so that a stream still streams.
    pub fn gzip(mut self) -> Self {
        self.gzip = true;
        self.header("content-encoding", "gzip")
    }

    /// Announces and does `Connection: close` after the answer.
    pub fn close(mut self) -> Self {
        self.close = true;
        self.header("connection", "close")
    }

    /// The body as it travels, a piece a write; none is empty, since an empty chunk ends a body.
    pub(super) fn pieces(&self) -> Vec<Vec<u8>> {
        let mut pieces = split(&self.body, &self.chunks);
        if self.gzip {
            pieces = compress(&pieces);
        }
        pieces.retain(|piece| !piece.is_empty());
        pieces
    }
}

fn message_shell(usage: Usage, output: u64) -> Value {
    json!({
        "id": "msg_01FakeUpstream", "type": "message", "role": "assistant",
        "model": "claude-sonnet-4-5-20250929", "content": [],
        "stop_reason": null, "stop_sequence": null,
        "usage": {
            "input_tokens": usage.input,
            "cache_creation_input_tokens": usage.cache_creation_5m + usage.cache_creation_1h,
            "cache_read_input_tokens": usage.cache_read,
            "cache_creation": {
                "ephemeral_5m_input_tokens": usage.cache_creation_5m,
                "ephemeral_1h_input_tokens": usage.cache_creation_1h,
            },
            "output_tokens": output,
            "service_tier": "standard",
        },
    })
}

fn split(body: &[u8], chunks: &Chunks) -> Vec<Vec<u8>> {
    let ends: Vec<usize> = match chunks {
        Chunks::Whole => Vec::new(),
        Chunks::Bytes(size) => (1..).map(|n| n * size.max(&1)).take_while(|end| *end < body.len()).collect(),
        Chunks::At(offsets) => offsets.clone(),
        Chunks::Events => (1..body.len())
            .filter(|end| [&b"\n\n"[..], b"\r\n\r\n", b"\r\r"].iter().any(|gap| body[..*end].ends_with(gap)))
            .collect(),
    };
    let mut pieces = Vec::with_capacity(ends.len() + 1);
    let mut from = 0;
    for end in ends.into_iter().chain([body.len()]) {
        let end = end.clamp(from, body.len());
        pieces.push(body[from..end].to_vec());
        from = end;
    }
    pieces
}

fn compress(pieces: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    let mut packed = Vec::with_capacity(pieces.len() + 1);
    for (index, piece) in pieces.iter().enumerate() {
        encoder.write_all(piece).expect("a Vec takes every write");
        if index + 1 < pieces.len() {
            encoder.flush().expect("a Vec takes every flush");
            packed.push(std::mem::take(encoder.get_mut()));
        }
    }
    packed.push(encoder.finish().expect("a Vec takes the trailer"));
    packed
}
