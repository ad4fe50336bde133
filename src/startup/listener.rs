//! Listening sockets of our own, so that they can be closed for newcomers while running answers go on: actix's
//! own stop puts `Connection: close` on heads, which streams must not carry.

use super::StartError;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io;
use std::net::{SocketAddr, TcpListener};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// Descriptors that 1,000 streams and then some need: two each.
const DESCRIPTORS: u64 = 65_536;

/// One address or several, bound.
pub(super) struct Listener(Vec<TcpListener>);

impl Listener {
    /// Binds every address that can be; `localhost` may stand for one that cannot.
    pub fn bind(addrs: &[SocketAddr]) -> Result<Self, StartError> {
        let mut failed = None;
        let mut bound = Vec::new();
        for addr in addrs {
            match TcpListener::bind(addr)
                .and_then(|l| rustix::net::listen(&l, BACKLOG).map(|()| l).map_err(io::Error::from))
            {
                Ok(listener) => bound.push(listener),
                Err(error) => failed = Some(StartError::Listen { addr: addr.to_string(), error }),
            }
        }
        match failed {
            Some(error) if bound.is_empty() => Err(error),
            _ => Ok(Self(bound)),
        }
    }

    /// The first address.
    pub fn addr(&self) -> SocketAddr {
        self.0.first().and_then(|l| l.local_addr().ok()).unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    /// Handles for a server.
    pub fn sockets(&self) -> Result<Vec<TcpListener>, StartError> {
        self.0.iter().map(TcpListener::try_clone).collect::<io::Result<_>>().map_err(StartError::file("socket"))
    }

    /// From now on a newcomer is refused by the kernel. Connections that were accepted are not touched.
    pub fn refuse(&self) {
        for listener in &self.0 {
            if let Err(error) = rustix::net::shutdown(listener, rustix::net::Shutdown::Both) {
                tracing::debug!(%error, "a listening socket could not be shut");
            }
        }
    }
}

/// Raises the soft limit on open descriptors as far as it goes, and says so if that is not far.
pub(super) fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(DESCRIPTORS, |max| max.min(DESCRIPTORS));
    if current.is_some_and(|now| now < wanted) {
        let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
        if raised.is_err() || wanted < DESCRIPTORS {
            tracing::warn!(limit = wanted, "few open files are allowed: each streaming call takes two");
        }
    }
}
