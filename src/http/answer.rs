//! The answer's way back: an upstream's head as the client gets it, over a body that is a [`Tap`], or a whole answer
//! that was kept while another account was tried.

use super::attempt::Attempt;
use super::failover::{Relaying, book_whole, usefulness};
use crate::domain::Endpoint;
use crate::platform::decode::Decode;
use crate::platform::headers;
use crate::platform::meter::Meter;
use crate::upstream::dial::content_length;
use crate::upstream::stall::ClientSocket;
use crate::upstream::tap::{Expect, Tap};
use actix_web::HttpResponse;
use actix_web::body::BoxBody;
use actix_web::http::header::{self, HeaderMap};
use actix_web::http::{StatusCode, Version};
use actix_web::web::Bytes;
use awc::ClientResponse;
use bytes::BytesMut;
use futures_util::StreamExt;
use std::io::{self, Write};
use std::time::Duration;

/// A body up to this size is read whole before its answer is judged: errors are small.
const SMALL: usize = 64 * 1024;

/// And so is one that comes within this time.
const QUICK: Duration = Duration::from_secs(2);

/// What has been read of a body before its answer goes on.
pub enum Start {
    /// All of it.
    Whole(Bytes),
    /// This much; the rest is yet to come.
    Open(Bytes),
    /// It broke off.
    Cut,
}

impl Start {
    /// Reads a body as far as it is small and quick.
    pub async fn read(upstream: &mut ClientResponse) -> Self {
        let mut read = BytesMut::new();
        let reading = async {
            while let Some(chunk) = upstream.next().await {
                read.extend_from_slice(&chunk.map_err(|_| ())?);
                if read.len() > SMALL {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        let done = tokio::time::timeout(QUICK, reading).await;
        match done {
            Ok(Ok(true)) => Self::Whole(read.freeze()),
            Ok(Ok(false)) | Err(_) => Self::Open(read.freeze()),
            Ok(Err(())) => Self::Cut,
        }
    }

    /// The whole body without its content coding, where it is whole and not absurdly large.
    pub fn plain(&self, coding: Option<&str>) -> Option<Vec<u8>> {
        let Self::Whole(body) = self else { return None };
        let mut decode = Decode::new(coding, Bounded::default())?;
        decode.feed(body).ok()?;
        Some(decode.sink().0.clone())
    }
}

/// Takes a bounded number of bytes, whatever they are decoded from.
#[derive(Default)]
struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > 4 * SMALL {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A whole answer that was put aside.
pub struct Kept {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Kept {
    /// Puts this answer aside.
    pub fn new(upstream: &ClientResponse, body: Bytes) -> Self {
        let mut headers = HeaderMap::new();
        pass_back(upstream.headers(), &mut headers);
        Self { status: upstream.status(), headers, body }
    }

    /// Its status.
    pub fn status(&self) -> u16 {
        self.status.as_u16()
    }

    /// The more useful of the two; of equals the later.
    #[must_use]
    pub fn or_better(self, other: Self) -> Self {
        if usefulness(self.status()) > usefulness(other.status()) { self } else { other }
    }

    /// As it was.
    pub fn respond(self) -> HttpResponse {
        let mut response = HttpResponse::new(self.status);
        *response.headers_mut() = self.headers;
        response.set_body(BoxBody::new(self.body))
    }
}

/// The upstream's answer, of which `start` was read already.
pub fn respond(relaying: &Relaying, upstream: ClientResponse, start: Start, mut attempt: Attempt) -> HttpResponse {
    let (call, worker) = (&relaying.call, &relaying.worker);
    let status = upstream.status();
    let success = status.as_u16() < 400;
    if relaying.uncoded.get() && is_coded(upstream.headers()) {
        // The client could not read it: its head is out, and names no coding.
        let unread = Kept::new(&upstream, Bytes::new());
        drop(upstream);
        book_whole(&mut attempt, false);
        return unread.respond();
    }
    let first = match start {
        Start::Whole(body) => {
            book_whole(&mut attempt, success);
            return Kept::new(&upstream, body).respond();
        }
        Start::Open(first) => first,
        Start::Cut => Bytes::new(),
    };
    let find = |name: header::HeaderName| upstream.headers().get(name).and_then(|v| v.to_str().ok());
    let counts = status.is_success() && call.endpoint == Endpoint::Messages;
    let meter = Meter::new(find(header::CONTENT_TYPE), find(header::CONTENT_ENCODING), counts);
    let bodiless = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let terminal_event = counts && meter.is_stream();
    let announced = if bodiless { Some(0) } else { content_length(&upstream) };
    let length = announced.filter(|_| !terminal_event);
    let old_client = relaying.request.version() < Version::HTTP_11;
    let expect = Expect {
        success,
        terminal_event,
        length,
        blunt: old_client,
        idle: worker.dialer.timeouts().idle,
        send: worker.shared.settings.limits.send_timeout,
        request_id: attempt.request_id().to_owned(),
        socket: relaying.request.conn_data::<ClientSocket>().copied(),
    };
    let mut response = HttpResponse::new(status);
    pass_back(upstream.headers(), response.headers_mut());
    if old_client && length.is_none() {
        // HTTP/1.0 knows no chunking: the end of the connection is the end of the body.
        response.head_mut().no_chunking(true);
        response.head_mut().set_connection_type(actix_http::ConnectionType::Close);
    }
    if length == Some(0) {
        // actix asks an empty body for nothing, so that a tap would not learn that it is over.
        book_whole(&mut attempt, success);
        return response.set_body(BoxBody::new(()));
    }
    let revoked = relaying.caller.key.revoked();
    let tap = Tap::new(upstream, first, meter, expect, attempt, revoked, worker.under_way.clone());
    response.set_body(tap).map_into_boxed_body()
}

/// Whether the body has a content coding.
pub fn is_coded(headers: &HeaderMap) -> bool {
    let plain = |v: &header::HeaderValue| v.is_empty() || v.as_bytes().eq_ignore_ascii_case(b"identity");
    !headers.get_all(header::CONTENT_ENCODING).all(plain)
}

fn pass_back(from: &HeaderMap, to: &mut HeaderMap) {
    for (name, value) in from {
        if headers::returned(name.as_str()) {
            to.append(name.clone(), value.clone());
        }
    }
}
