//! One attempt: sends a prepared request through this thread's client and waits for the head of the answer.
//!
//! No limit on connections (an account's slots are the limit), no redirects (the credential would travel), no
//! headers of our own, no decompression, and no timeout of awc's: its one timer would go on to bound the body.

use super::connector::{STALE, UpstreamConnector};
use crate::domain::Fault;
use crate::platform::{Plan, Prepared};
use actix_http::error::ParseError;
use actix_http::header::{CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use awc::error::{ConnectError, SendRequestError};
use awc::http::{Method, StatusCode, Version};
use awc::{Client, ClientResponse, Connector};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// How long an attempt may take, by phase.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// Name, TCP and TLS.
    pub connect: Duration,
    /// From the request to the head of the answer, connecting and the upload included.
    pub first_byte: Duration,
    /// Between two pieces of the answer.
    pub idle: Duration,
}

/// An idle connection is kept this long: shorter than what common balancers keep theirs (60 s and more), so that a
/// request seldom meets a connection that is being closed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const LIFETIME: Duration = Duration::from_secs(600);

/// This thread's way out.
pub struct Dialer {
    plain: Client,
    tls: Client,
    timeouts: Timeouts,
}

fn client(connector: UpstreamConnector, timeouts: Timeouts) -> Client {
    let connector = Connector::new().connector(connector).limit(0).timeout(timeouts.connect);
    let connector = connector.conn_keep_alive(KEEP_ALIVE).conn_lifetime(LIFETIME);
    Client::builder().connector(connector).no_default_headers().disable_redirects().disable_timeout().finish()
}

impl Dialer {
    /// A way out for this thread.
    pub fn new(timeouts: Timeouts, tls_config: Arc<rustls::ClientConfig>) -> Self {
        let tls = client(UpstreamConnector::tls(tls_config), timeouts);
        Self { plain: client(UpstreamConnector::plain(), timeouts), tls, timeouts }
    }

    /// The phases' bounds.
    pub fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// Sends `request` and waits for the head. Dropping the future closes the connection.
    ///
    /// # Errors
    /// In which way the attempt failed; an answer of any status is none.
    pub async fn send(&self, plan: &Plan, method: Method, request: Prepared) -> Result<ClientResponse, Fault> {
        let client = if plan.tls { &self.tls } else { &self.plain };
        let mut out = client.request(method, request.uri).no_decompress();
        for (name, value) in request.headers {
            out.headers_mut().append(name, value);
        }
        let bodiless = request.body.is_empty() && out.get_method() == Method::GET;
        let sending = if bodiless { out.send_body(actix_http::body::None::new()) } else { out.send_body(request.body) };
        let answer =
            tokio::time::timeout(self.timeouts.first_byte, sending).await.map_err(|_| Fault::FirstByteTimeout)?;
        let answer = answer.map_err(|e| fault(&e))?;
        if framed(&answer) { Ok(answer) } else { Err(Fault::Framing) }
    }
}

/// awc loses a body that neither length nor chunking delimits (an empty 200), and HTTP/1.0 has no chunking: better
/// no answer than half of one.
fn framed(answer: &ClientResponse) -> bool {
    let chunked = is_chunked(answer) && answer.version() == Version::HTTP_11;
    let bodiless = matches!(answer.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let interim = answer.status().is_informational();
    !interim && (chunked || bodiless || content_length(answer).is_some())
}

/// The length an answer announces; where it is chunked too, that is what counts (RFC 9112, 6.3).
pub fn content_length(answer: &ClientResponse) -> Option<u64> {
    let length = answer.headers().get(CONTENT_LENGTH).filter(|_| !is_chunked(answer))?;
    length.to_str().ok()?.parse().ok()
}

/// Only `chunked`, as the last coding, delimits a body (RFC 9112, 6.1).
fn is_chunked(answer: &ClientResponse) -> bool {
    let codings = answer.headers().get_all(TRANSFER_ENCODING).last().map(HeaderValue::as_bytes);
    codings.is_some_and(|c| {
        c.rsplit(|b| *b == b',').next().is_some_and(|c| c.trim_ascii().eq_ignore_ascii_case(b"chunked"))
    })
}

fn fault(error: &SendRequestError) -> Fault {
    tracing::debug!(%error, "an attempt failed");
    let by_io = |e: &io::Error| match e.kind() {
        STALE => Fault::Stale,
        io::ErrorKind::BrokenPipe => Fault::EarlyClose,
        io::ErrorKind::InvalidData => Fault::Protocol,
        _ => Fault::Closed,
    };
    match error {
        SendRequestError::Connect(ConnectError::Timeout) => Fault::ConnectTimeout,
        SendRequestError::Connect(ConnectError::Disconnected) => Fault::Closed,
        SendRequestError::Connect(_) => Fault::Connect,
        SendRequestError::Timeout => Fault::FirstByteTimeout,
        SendRequestError::Send(e) => by_io(e),
        SendRequestError::Response(ParseError::Io(e)) => by_io(e),
        SendRequestError::Response(_) => Fault::Protocol,
        _ => Fault::Closed,
    }
}
