//! The reading side of a connection: takes requests apart, by length or by chunk, and tells when the
//! peer has gone.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, Interest};
use tokio::net::tcp::ReadHalf;
use tokio::time::sleep;

use super::calls::Recorded;

/// The reading side; bytes beyond the current request wait here for the next one.
pub(super) struct Inlet<'a> {
    half: ReadHalf<'a>,
    waiting: Vec<u8>,
    received: &'a AtomicU64,
}

impl<'a> Inlet<'a> {
    pub(super) fn new(half: ReadHalf<'a>, received: &'a AtomicU64) -> Self {
        Self { half, waiting: Vec::new(), received }
    }

    async fn more(&mut self) -> io::Result<()> {
        let mut space = [0; 16 * 1024];
        let count = self.half.read(&mut space).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.received.fetch_add(count as u64, Ordering::SeqCst);
        self.waiting.extend_from_slice(&space[..count]);
        Ok(())
    }

    /// Ends when the peer has closed. Where the body must stay unread, the readiness flags tell it.
    pub(super) async fn peer_gone(&mut self, may_read: bool) {
        if may_read {
            while self.more().await.is_ok() {}
            return;
        }
        while self.half.ready(Interest::READABLE).await.is_ok_and(|ready| !ready.is_read_closed()) {
            sleep(Duration::from_millis(2)).await;
        }
    }

    async fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.waiting.len() < count {
            self.more().await?;
        }
        Ok(self.waiting.drain(..count).collect())
    }

    async fn line(&mut self) -> io::Result<String> {
        let mut seen = 0;
        loop {
            if let Some(at) = self.waiting[seen..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.waiting.drain(..=seen + at).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_string());
            }
            seen = self.waiting.len();
            self.more().await?;
        }
    }

    /// Reads one request up to its body.
    pub(super) async fn head(&mut self, connection: u64) -> io::Result<Recorded> {
        let start = self.line().await?;
        let mut words = start.split(' ');
        let (Some(method), Some(target), Some("HTTP/1.1" | "HTTP/1.0"), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            eprintln!("fake upstream: not a request line: {start:?}");
            return Err(io::ErrorKind::InvalidData.into());
        };
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_string())),
            None => (target, None),
        };
        let (method, path) = (method.to_string(), path.to_string());
        let mut headers = Vec::new();
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or(io::ErrorKind::InvalidData)?;
            headers.push((name.to_string(), value.trim().to_string()));
        }
        let mut request = Recorded { method, path, query, headers, body: Vec::new(), credential: None, connection };
        let bearer = || request.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
        request.credential = request.header("x-api-key").or_else(bearer).map(str::to_string);
        Ok(request)
    }

    /// Reads the body of the request that `head` gave.
    pub(super) async fn body(&mut self, request: &Recorded) -> io::Result<Vec<u8>> {
        if request.header("transfer-encoding").is_none_or(|value| !value.eq_ignore_ascii_case("chunked")) {
            let length = request.header("content-length").unwrap_or("0");
            let length = length.parse().map_err(|_| io::ErrorKind::InvalidData)?;
            return self.take(length).await;
        }
        let mut body = Vec::new();
        loop {
            let line = self.line().await?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16).map_err(|_| io::ErrorKind::InvalidData)?;
            if size == 0 {
                while !self.line().await?.is_empty() {}
                return Ok(body);
            }
            body.append(&mut self.take(size).await?);
            if self.take(2).await? != b"\r\n" {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
    }
}
