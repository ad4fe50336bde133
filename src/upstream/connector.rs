//! Connections to upstreams: name, TCP, TLS, and a stream that does not take a cut for an end.
//!
//! awc reports a FIN inside a body as a clean end, so the outermost stream turns a zero-byte read into an
//! error; a peer that means to end an answer says so by its framing. TLS is spoken here rather than by awc,
//! since it must lie below that stream. Only HTTP/1.1 is offered by ALPN: awc's HTTP/2 client sends a stray
//! request when a pooled connection ends.

use super::head::{Heads, date_line};
use actix_http::Uri;
use actix_rt::net::{ActixStream, Ready, TcpStream};
use actix_service::Service;
use actix_tls::connect::{ConnectError, ConnectInfo, Connection, ConnectorService};
use futures_util::future::LocalBoxFuture;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Dials, with TLS or without.
#[derive(Clone)]
pub struct UpstreamConnector {
    tcp: ConnectorService,
    tls: Option<TlsConnector>,
}

impl UpstreamConnector {
    /// A connector that speaks in the clear.
    pub fn plain() -> Self {
        Self { tcp: ConnectorService::default(), tls: None }
    }

    /// A connector that speaks TLS to every host, whatever the scheme of the URI says.
    pub fn tls(config: Arc<rustls::ClientConfig>) -> Self {
        Self { tcp: ConnectorService::default(), tls: Some(TlsConnector::from(config)) }
    }
}

/// The TLS settings for upstreams: Mozilla's roots and those of `ca_file`, no client certificate, HTTP/1.1. One
/// for the whole process, so that sessions are resumed across threads.
///
/// # Errors
/// When `ca_file` cannot be read or holds no certificate.
pub fn tls_config(ca_file: Option<&Path>) -> io::Result<Arc<rustls::ClientConfig>> {
    let mut roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(path) = ca_file {
        let bad = |e: String| io::Error::new(io::ErrorKind::InvalidData, e);
        let certificates = CertificateDer::pem_file_iter(path).map_err(|e| bad(e.to_string()))?;
        let found = certificates.collect::<Result<Vec<_>, _>>().map_err(|e| bad(e.to_string()))?;
        if found.is_empty() {
            return Err(bad("no certificate in it".to_owned()));
        }
        for certificate in found {
            roots.add(certificate).map_err(|e| bad(e.to_string()))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().expect("ring offers TLS 1.2 and 1.3");
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl Service<ConnectInfo<Uri>> for UpstreamConnector {
    type Response = Connection<Uri, UpstreamStream>;
    type Error = ConnectError;
    type Future = LocalBoxFuture<'static, Result<Self::Response, Self::Error>>;

    actix_service::always_ready!();

    fn call(&self, request: ConnectInfo<Uri>) -> Self::Future {
        let dial = self.tcp.call(request);
        let tls = self.tls.clone();
        Box::pin(async move {
            let (tcp, uri) = dial.await?.into_parts();
            tcp.set_nodelay(true).map_err(ConnectError::Io)?;
            let inner = match tls {
                None => Inner::Plain(tcp),
                Some(tls) => {
                    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
                    let name = ServerName::try_from(host).map_err(|_| ConnectError::Unresolved)?;
                    Inner::Tls(Box::new(tls.connect(name, tcp).await.map_err(ConnectError::Io)?))
                }
            };
            Ok(Connection::new(
                uri,
                UpstreamStream { inner, refused: false, requests: 0, reading: Reading::Body, omit: None },
            ))
        })
    }
}

/// How a connection ends that was kept and that the upstream had given up meanwhile.
pub(super) const STALE: io::ErrorKind = io::ErrorKind::ConnectionAborted;

/// A connection on which an end is an error.
#[derive(Debug)]
pub struct UpstreamStream {
    inner: Inner,
    /// The peer took no more of our request. What it answered may still lie in our receive buffer.
    refused: bool,
    /// Requests that were written on it.
    requests: u32,
    reading: Reading,
    /// What of the bytes that come next is not written.
    omit: Option<Range<usize>>,
}

/// What the next bytes from the peer are.
#[derive(Debug)]
enum Reading {
    /// The head of the answer to the request that was written last.
    Head(Heads),
    /// Bytes that were read and not handed on yet, from the given place; `true` if nothing may follow them.
    Held(Vec<u8>, usize, bool),
    /// The body, or nothing while the connection is idle.
    Body,
    /// Nothing: whatever came would be taken for the answer to another request.
    Nothing,
}

#[derive(Debug)]
enum Inner {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl UpstreamStream {
    fn tcp(&self) -> &TcpStream {
        match &self.inner {
            Inner::Plain(tcp) => tcp,
            Inner::Tls(tls) => tls.get_ref().0,
        }
    }

    /// An upstream that answers before it has read everything closes its end: the rest of our request has
    /// nowhere to go, but its answer is there to be read, which awc does only once it has sent all.
    fn written(&mut self, all: usize, result: io::Result<usize>) -> io::Result<usize> {
        match result {
            Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                self.refused = true;
                Ok(all)
            }
            other => other,
        }
    }

    /// Reads from the peer; its end is an error.
    fn poll_peer(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = match &mut self.inner {
            Inner::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Inner::Tls(tls) => Pin::new(tls).poll_read(cx, buf),
        };
        Poll::Ready(match ready!(read) {
            Ok(()) if buf.filled().len() == before && buf.remaining() > 0 => Err(self.ended()),
            Err(_) if self.refused || self.is_stale() => Err(self.ended()),
            other => other,
        })
    }

    /// It was kept from an earlier request, and ended before a byte of this answer: the upstream had given it up.
    fn is_stale(&self) -> bool {
        self.requests > 1 && matches!(&self.reading, Reading::Head(heads) if heads.is_empty())
    }

    fn ended(&self) -> io::Error {
        let kind = match (self.is_stale(), self.refused) {
            (true, _) => STALE,
            (false, true) => io::ErrorKind::BrokenPipe,
            (false, false) => io::ErrorKind::UnexpectedEof,
        };
        io::Error::new(kind, "the upstream ended the connection")
    }
}

impl AsyncRead for UpstreamStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            match &mut this.reading {
                Reading::Nothing => return Poll::Ready(Err(this.ended())),
                Reading::Body => return this.poll_peer(cx, buf),
                Reading::Held(bytes, from, last) => {
                    let n = buf.remaining().min(bytes.len() - *from);
                    buf.put_slice(&bytes[*from..*from + n]);
                    *from += n;
                    if *from == bytes.len() {
                        this.reading = if *last { Reading::Nothing } else { Reading::Body };
                    }
                    return Poll::Ready(Ok(()));
                }
                Reading::Head(_) => {}
            }
            let before = buf.filled().len();
            ready!(this.poll_peer(cx, buf))?;
            let Reading::Head(heads) = &mut this.reading else { return Poll::Ready(Ok(())) };
            let read = &buf.filled()[before..];
            if heads.is_empty()
                && let Some(last) = Heads::at_once(read)
            {
                this.reading = if last { Reading::Nothing } else { Reading::Body };
                return Poll::Ready(Ok(()));
            }
            let done = heads.take(read);
            buf.set_filled(before);
            if let Some(done) = done {
                this.reading = Reading::Held(done.bytes, 0, done.last);
            }
        }
    }
}

impl AsyncWrite for UpstreamStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // awc writes a request only when it has read the last answer: what comes next is a head.
        if matches!(this.reading, Reading::Body) {
            this.reading = Reading::Head(Heads::default());
            this.requests += 1;
            this.omit = date_line(bytes);
        }
        if this.refused {
            return Poll::Ready(Ok(bytes.len()));
        }
        let omit = this.omit.clone().unwrap_or(bytes.len()..bytes.len());
        let parts = [IoSlice::new(&bytes[..omit.start]), IoSlice::new(&bytes[omit.end..])];
        let wrote = ready!(match &mut this.inner {
            Inner::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, &parts),
            Inner::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, &parts),
        });
        // Told in awc's count, which knows nothing of what is left out.
        let wrote = wrote.map(|n| if n < omit.start { n } else { n + omit.len() });
        this.omit = match &wrote {
            Ok(n) if *n < omit.start => Some(omit.start - n..omit.end - n),
            _ => None,
        };
        Poll::Ready(this.written(bytes.len(), wrote))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.refused {
            return Poll::Ready(Ok(()));
        }
        let flushed = ready!(match &mut this.inner {
            Inner::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Inner::Tls(tls) => Pin::new(tls).poll_flush(cx),
        });
        Poll::Ready(this.written(0, flushed.map(|()| 0)).map(drop))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().inner {
            Inner::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Inner::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
        }
    }
}

impl ActixStream for UpstreamStream {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        ActixStream::poll_read_ready(self.tcp(), cx)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        ActixStream::poll_write_ready(self.tcp(), cx)
    }
}
