//! What one attempt at an upstream came to, as far as the account's health is concerned.

use super::{Family, Time, Window};
use serde::Serialize;

/// The judgement over one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Outcome {
    /// 2xx to a Messages call, to its end.
    Success {
        /// The upstream's status.
        status: u16,
    },
    /// The head of the same: how it ends is not known yet.
    Answered {
        /// The upstream's status.
        status: u16,
    },
    /// An answer that says nothing about the account: the client's fault, a redirect, or an endpoint whose limits
    /// are its own.
    Neutral {
        /// The upstream's status.
        status: u16,
    },
    /// 401, or a 403 that says so: the upstream does not take the credential.
    CredentialRejected {
        /// The upstream's status.
        status: u16,
    },
    /// The upstream takes the credential, but not its money: no credit, or a disabled organisation.
    Billing {
        /// The upstream's status.
        status: u16,
    },
    /// The account's own token could not be renewed.
    RefreshFailed,
    /// 429.
    RateLimited {
        /// Which of the account's limits.
        #[serde(flatten)]
        limit: Limit,
        /// Until when, if the upstream said so.
        until: Option<Time>,
        /// The header that said so.
        header: Option<&'static str>,
    },
    /// 529 or 503.
    Overloaded {
        /// The upstream's status.
        status: u16,
        /// Until when, if the upstream said so.
        until: Option<Time>,
    },
    /// Any other 5xx, or a 403 that is not the API's own.
    ServerFault {
        /// The upstream's status.
        status: u16,
    },
    /// No answer, or not a whole one.
    Failed {
        /// In which way.
        fault: Fault,
    },
}

/// Which limit a 429 speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "limit", rename_all = "snake_case")]
pub enum Limit {
    /// A rate of seconds or minutes.
    Burst,
    /// A subscription's window that is used up.
    Window {
        /// Which.
        window: Window,
        /// For these models only; `None` is all.
        family: Option<Family>,
    },
}

impl Outcome {
    /// The upstream's status, if it answered.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Success { status }
            | Self::Answered { status }
            | Self::Neutral { status }
            | Self::CredentialRejected { status }
            | Self::Billing { status }
            | Self::Overloaded { status, .. }
            | Self::ServerFault { status } => Some(*status),
            Self::RateLimited { .. } => Some(429),
            Self::RefreshFailed | Self::Failed { .. } => None,
        }
    }

    /// True where the account is at fault and another one may do better: what failover is for.
    pub fn is_accounts_fault(&self) -> bool {
        !matches!(self, Self::Success { .. } | Self::Answered { .. } | Self::Neutral { .. })
    }
}

/// The ways an attempt fails without a usable answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// No connection: name, route, refusal, TLS.
    #[error("the upstream could not be reached")]
    Connect,
    /// No connection within the connect timeout.
    #[error("the upstream did not accept a connection in time")]
    ConnectTimeout,
    /// Connected, but no response head in time.
    #[error("the upstream did not answer in time")]
    FirstByteTimeout,
    /// The connection ended before a response head.
    #[error("the upstream closed the connection without an answer")]
    Closed,
    /// The upstream closed while the request body was still going up; says nothing about the account.
    #[error("the upstream closed the connection while the request was being sent")]
    EarlyClose,
    /// A connection that was kept from an earlier call was closed just as it was used again. Once says nothing; an
    /// upstream that does it to every call is down.
    #[error("the upstream closed an idle connection as it was used again")]
    Stale,
    /// An answer whose end cannot be known (neither content-length nor chunked).
    #[error("the upstream's answer has no framing")]
    Framing,
    /// What came was not HTTP.
    #[error("the upstream's answer was not valid HTTP")]
    Protocol,
    /// The answer ended early.
    #[error("the upstream's answer was cut")]
    Cut,
    /// Nothing came for longer than the idle timeout.
    #[error("the upstream's answer stopped coming")]
    IdleTimeout,
    /// A stream that began well ended with an error event of the upstream's own making.
    #[error("the upstream ended its stream with an error")]
    ErrorEvent,
}

impl Fault {
    /// The name in rows, logs and `x-relay-error`.
    pub fn code(self) -> &'static str {
        match self {
            Self::Connect => "upstream_unreachable",
            Self::ConnectTimeout => "upstream_connect_timeout",
            Self::FirstByteTimeout => "upstream_timeout",
            Self::Closed => "upstream_closed",
            Self::EarlyClose => "upstream_early_close",
            Self::Stale => "upstream_stale",
            Self::Framing => "upstream_framing",
            Self::Protocol => "upstream_protocol",
            Self::Cut => "upstream_cut",
            Self::IdleTimeout => "upstream_idle_timeout",
            Self::ErrorEvent => "upstream_error_event",
        }
    }

    /// True where the connection may have been at fault rather than the account: the same one may be asked once more.
    pub fn is_connections(self) -> bool {
        matches!(self, Self::EarlyClose | Self::Stale)
    }

    /// True where waiting, not failing, was the trouble: 504 rather than 502.
    pub fn is_timeout(self) -> bool {
        matches!(self, Self::ConnectTimeout | Self::FirstByteTimeout | Self::IdleTimeout)
    }
}

/// What a small request of the relay's own through one account came to (`account test`, a re-probe).
#[derive(Debug, Clone, Serialize)]
pub struct ProbeReport {
    /// What was asked: the name of a [`super::ProbeKind`].
    pub probe: &'static str,
    /// The judgement, as for any call.
    pub outcome: Outcome,
    /// `error.type` of the upstream's answer, if it had one.
    pub error_type: Option<String>,
    /// `error.message` of the upstream's answer, or what kept it from coming.
    pub message: Option<String>,
    /// How long it took.
    pub duration_ms: u64,
}
