//! A raw HTTP/1.1 client for tests that must see exact bytes and how an answer ended. It owns the
//! request's bytes, the decoding of the answer, and the ways to leave a connection.
#![allow(dead_code)] // each story uses its own part

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio::time::{Instant, timeout_at};

/// How long one request may take from its first byte to the last of its answer.
const LIMIT: Duration = Duration::from_secs(30);

const FIN: &str = "closed by the peer";

/// One request to send; `host` and `connection: keep-alive` are added unless set.
#[derive(Clone, Debug, Default)]
pub struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Bytes,
    by_hand: Option<Bytes>,
}

impl Request {
    /// A request of any method.
    pub fn new(method: &str, path: &str) -> Self {
        Self { method: method.into(), path: path.into(), ..Self::default() }
    }

    /// `GET path`.
    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    /// `HEAD path`.
    pub fn head(path: &str) -> Self {
        Self::new("HEAD", path)
    }

    /// `POST path`.
    pub fn post(path: &str) -> Self {
        Self::new("POST", path)
    }

    /// `PATCH path`.
    pub fn patch(path: &str) -> Self {
        Self::new("PATCH", path)
    }

    /// `DELETE path`.
    pub fn delete(path: &str) -> Self {
        Self::new("DELETE", path)
    }

    /// These bytes and no others, head and body.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        let start = String::from_utf8_lossy(&bytes).lines().next().unwrap_or_default().to_string();
        let (method, path) = start.split_once(' ').unwrap_or((&start, ""));
        Self { by_hand: Some(bytes.into()), ..Self::new(method, path) }
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// A body with its content-length.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Bytes::from(body.into());
        self
    }

    /// A JSON body with its content-length and type.
    pub fn json(self, body: Value) -> Self {
        self.header("content-type", "application/json").body(body.to_string())
    }

    /// A chunked body of exactly these chunks; the terminal one is added.
    pub fn chunked_body(self, chunks: Vec<Vec<u8>>) -> Self {
        let mut body = Vec::new();
        for chunk in chunks.into_iter().filter(|chunk| !chunk.is_empty()) {
            body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            body.extend_from_slice(&chunk);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"0\r\n\r\n");
        self.header("transfer-encoding", "chunked").body(body)
    }

    fn head_bytes(&self, host: &str) -> Vec<u8> {
        let unset = |name| find(&self.headers, name).is_empty();
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        let mut add = |name: &str, value: &str| head.push_str(&format!("{name}: {value}\r\n"));
        if unset("host") {
            add("host", host);
        }
        if unset("connection") {
            add("connection", "keep-alive");
        }
        for (name, value) in &self.headers {
            add(name, value);
        }
        let sends_body = !self.body.is_empty() || matches!(self.method.as_str(), "POST" | "PUT" | "PATCH");
        if sends_body && unset("content-length") && unset("transfer-encoding") {
            add("content-length", &self.body.len().to_string());
        }
        (head + "\r\n").into_bytes()
    }
}

/// How an answer ended: as its framing says, or before that, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    Complete,
    Cut(String),
}

/// One answer with its body; status 0 where the connection ended before a whole head.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub ended: Ended,
    /// The 1xx statuses that came first.
    pub interim: Vec<u16>,
}

impl Answer {
    /// The first header of this name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers_named(name).into_iter().next()
    }

    /// Every header of this name, in any case.
    pub fn headers_named(&self, name: &str) -> Vec<&str> {
        find(&self.headers, name)
    }

    /// The body as JSON; panics with the answer printed.
    pub fn json(&self) -> Value {
        let failed = |error| panic!("not JSON ({error}): status {}, {:?}: {}", self.status, self.ended, self.text());
        serde_json::from_slice(&self.body).unwrap_or_else(failed)
    }

    /// The body as text, with replacement characters where it is not UTF-8.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Sends one request on a connection of its own and reads the whole answer.
pub async fn send(addr: impl ToSocketAddrs, request: Request) -> Answer {
    open(addr, request).await.rest().await
}

/// Sends one request on a connection of its own and reads the answer's head.
pub async fn open(addr: impl ToSocketAddrs, request: Request) -> Streaming {
    Connection::open(addr).await.stream(request).await
}

/// An answer being read; dropping it closes the connection.
pub struct Streaming {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    connection: Connection,
    answer: Answer,
}

impl Streaming {
    /// The first header of this name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.answer.header(name)
    }

    /// Every header of this name, in any case.
    pub fn headers_named(&self, name: &str) -> Vec<&str> {
        self.answer.headers_named(name)
    }

    /// The next decoded piece of the body as it arrives; `Err` once where the answer was cut. May be
    /// dropped while it waits, and called again.
    pub async fn next(&mut self) -> Option<Result<Vec<u8>, String>> {
        self.connection.piece().await
    }

    /// Reads to the end; the body holds what `next` has not given yet.
    pub async fn rest(mut self) -> Answer {
        self.connection.read_body(&mut self.answer).await;
        self.answer
    }

    /// Closes the connection in order (FIN).
    pub fn leave(self) {
        self.connection.leave();
    }

    /// Closes the connection by a reset (RST).
    pub fn reset(self) {
        self.connection.reset();
    }
}

/// What is still to be read of an answer.
#[derive(Clone, Copy, Debug)]
enum Framing {
    Length(usize),
    /// So many bytes of a chunk; at 0 its line end.
    Chunk(usize),
    ChunkSize,
    Trailers,
    UntilClose,
    NoHead,
    Nothing,
}

/// One socket for several requests, one after the other.
pub struct Connection {
    socket: TcpStream,
    host: String,
    inbox: BytesMut,
    outbox: BytesMut,
    /// A body that waits for `100 Continue`.
    held: Bytes,
    framing: Framing,
    /// Why the current answer ended before its time.
    cut: Option<String>,
    what: String,
    bodiless: bool,
    deadline: Instant,
}

impl Connection {
    /// Connects.
    pub async fn open(addr: impl ToSocketAddrs) -> Self {
        let socket = TcpStream::connect(addr).await.expect("the address to call accepts connections");
        socket.set_nodelay(true).expect("TCP_NODELAY can be set");
        let host = socket.peer_addr().expect("a connected socket has a peer").to_string();
        Self {
            socket,
            host,
            inbox: BytesMut::new(),
            outbox: BytesMut::new(),
            held: Bytes::new(),
            framing: Framing::Nothing,
            cut: None,
            what: "nothing sent yet".into(),
            bodiless: false,
            deadline: Instant::now() + LIMIT,
        }
    }

    /// Sends one request and reads the whole answer.
    pub async fn send(&mut self, request: Request) -> Answer {
        self.begin(request);
        let mut answer = self.read_head().await;
        self.read_body(&mut answer).await;
        answer
    }

    /// Sends one request and reads the answer's head.
    pub async fn stream(mut self, request: Request) -> Streaming {
        self.begin(request);
        let answer = self.read_head().await;
        Streaming { status: answer.status, headers: answer.headers.clone(), connection: self, answer }
    }

    /// Sends bytes without waiting for an answer, as of a request that stays incomplete.
    pub async fn write(&mut self, bytes: &[u8]) {
        tokio::io::AsyncWriteExt::write_all(&mut self.socket, bytes).await.expect("the peer takes the bytes");
    }

    /// Resolves when the peer closes (`Complete`) or resets; whatever it still sends is dropped.
    pub async fn closed(&mut self) -> Ended {
        self.deadline = Instant::now() + LIMIT;
        loop {
            if let Err(end) = self.fill().await {
                return if end == FIN { Ended::Complete } else { Ended::Cut(end) };
            }
            self.inbox.clear();
        }
    }

    /// Closes in order (FIN).
    pub fn leave(self) {
        // First the FIN: a close over unread bytes would be a reset alone.
        if let Ok(socket) = self.socket.into_std() {
            let _ = socket.shutdown(std::net::Shutdown::Write);
        }
    }

    /// Closes by a reset (RST).
    pub fn reset(self) {
        self.socket.set_zero_linger().expect("SO_LINGER can be set");
    }

    fn begin(&mut self, request: Request) {
        self.deadline = Instant::now() + LIMIT;
        self.what = format!("{} {}", request.method, request.path);
        self.cut = None;
        self.bodiless = request.method == "HEAD";
        if let Some(bytes) = &request.by_hand {
            return self.outbox.extend_from_slice(bytes);
        }
        self.outbox.extend_from_slice(&request.head_bytes(&self.host));
        if find(&request.headers, "expect").is_empty() {
            self.outbox.extend_from_slice(&request.body);
        } else {
            self.held = request.body;
        }
    }

    /// Writes what is still to be sent and waits for more bytes from the peer; `Err` tells its end.
    async fn fill(&mut self) -> Result<(), String> {
        let filled = timeout_at(self.deadline, poll_fn(|cx| self.poll_fill(cx))).await;
        filled.unwrap_or_else(|_| panic!("no end within {LIMIT:?}: {}", self.what))
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        while !self.outbox.is_empty() {
            match Pin::new(&mut self.socket).poll_write(cx, &self.outbox) {
                Poll::Ready(Ok(count)) => self.outbox.advance(count),
                // The peer takes no more, but may have answered before.
                Poll::Ready(Err(_)) => self.outbox.clear(),
                Poll::Pending => break,
            }
        }
        let mut space = [0; 16 * 1024];
        let mut read = ReadBuf::new(&mut space);
        Pin::new(&mut self.socket).poll_read(cx, &mut read).map(|outcome| match outcome {
            Err(error) => Err(error.to_string()),
            Ok(()) if read.filled().is_empty() => Err(FIN.into()),
            Ok(()) => {
                self.inbox.extend_from_slice(read.filled());
                Ok(())
            }
        })
    }

    async fn line(&mut self) -> Result<String, String> {
        loop {
            if let Some(at) = self.inbox.windows(2).position(|pair| pair == b"\r\n") {
                let line = self.inbox.split_to(at + 2);
                return Ok(String::from_utf8_lossy(&line[..at]).into_owned());
            }
            self.fill().await?;
        }
    }

    async fn read_head(&mut self) -> Answer {
        let mut answer =
            Answer { status: 0, headers: Vec::new(), body: Vec::new(), ended: Ended::Complete, interim: Vec::new() };
        if let Err(reason) = self.try_head(&mut answer).await {
            answer.status = 0;
            self.framing = Framing::NoHead;
            self.cut = Some(format!("no whole head: {reason}"));
        }
        answer
    }

    async fn try_head(&mut self, answer: &mut Answer) -> Result<(), String> {
        loop {
            let start = self.line().await?;
            let status = start
                .strip_prefix("HTTP/1.1 ")
                .or_else(|| start.strip_prefix("HTTP/1.0 "))
                .and_then(|rest| rest.get(..3)?.parse().ok());
            answer.status = status.ok_or_else(|| format!("not a status line: {start:?}"))?;
            answer.headers.clear();
            loop {
                let line = self.line().await?;
                if line.is_empty() {
                    break;
                }
                let (name, value) = line.split_once(':').ok_or_else(|| format!("not a header: {line:?}"))?;
                answer.headers.push((name.into(), value.trim().into()));
            }
            if !(100..200).contains(&answer.status) {
                break;
            }
            answer.interim.push(answer.status);
            self.outbox.extend_from_slice(&std::mem::take(&mut self.held));
        }
        let chunked = answer.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
        self.framing = match answer.header("content-length") {
            _ if self.bodiless || matches!(answer.status, 204 | 304) => Framing::Nothing,
            _ if chunked => Framing::ChunkSize,
            Some(length) => Framing::Length(length.parse().map_err(|_| format!("content-length {length:?}"))?),
            None => Framing::UntilClose,
        };
        Ok(())
    }

    async fn read_body(&mut self, answer: &mut Answer) {
        while let Some(piece) = self.piece().await {
            answer.body.extend_from_slice(&piece.unwrap_or_default());
        }
        answer.ended = self.cut.clone().map_or(Ended::Complete, Ended::Cut);
    }

    async fn piece(&mut self) -> Option<Result<Vec<u8>, String>> {
        let piece = self.try_piece().await;
        if let Err(reason) = &piece {
            self.cut = Some(format!("{reason}, at {:?}", self.framing));
            self.framing = Framing::Nothing;
            return self.cut.clone().map(Err);
        }
        piece.transpose()
    }

    async fn try_piece(&mut self) -> Result<Option<Vec<u8>>, String> {
        loop {
            match self.framing {
                Framing::Nothing => return Ok(None),
                Framing::NoHead => return Err(self.cut.clone().unwrap_or_default()),
                Framing::Length(0) => self.framing = Framing::Nothing,
                Framing::Length(left) => {
                    let piece = self.at_most(left).await?;
                    self.framing = Framing::Length(left - piece.len());
                    return Ok(Some(piece));
                }
                Framing::Chunk(0) => match self.line().await?.as_str() {
                    "" => self.framing = Framing::ChunkSize,
                    line => return Err(format!("no line end after a chunk: {line:?}")),
                },
                Framing::Chunk(left) => {
                    let piece = self.at_most(left).await?;
                    self.framing = Framing::Chunk(left - piece.len());
                    return Ok(Some(piece));
                }
                Framing::ChunkSize => {
                    let line = self.line().await?;
                    let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16);
                    let size = size.map_err(|_| format!("not a chunk size: {line:?}"))?;
                    self.framing = if size == 0 { Framing::Trailers } else { Framing::Chunk(size) };
                }
                Framing::Trailers => {
                    if self.line().await?.is_empty() {
                        self.framing = Framing::Nothing;
                    }
                }
                Framing::UntilClose => match self.at_most(usize::MAX).await {
                    Err(end) if end == FIN => self.framing = Framing::Nothing,
                    piece => return piece.map(Some),
                },
            }
        }
    }

    async fn at_most(&mut self, limit: usize) -> Result<Vec<u8>, String> {
        while self.inbox.is_empty() {
            self.fill().await?;
        }
        let count = limit.min(self.inbox.len());
        Ok(self.inbox.split_to(count).to_vec())
    }
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    let named = headers.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name));
    named.map(|(_, value)| value.as_str()).collect()
}
