//! An answer that the relay makes itself, as data: what happened, for whom, and when to come back.
//!
//! One table maps each to a code, a status and a protocol's error type; `http/reply` renders it. The code
//! stands in the `x-relay-error` header, which only such answers carry.

use super::call::BodyError;
use super::verdict::Code;
use super::{Fault, Time};

/// Why the relay did not pass an upstream's answer on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No key was sent.
    #[error("no relay key: send one in x-api-key or as Authorization: Bearer")]
    KeyMissing,
    /// The key is not one of ours.
    #[error("this relay does not know the key that was sent; it expects one that begins with cr_")]
    KeyUnknown,
    /// The key was revoked or disabled.
    #[error("the relay key is revoked")]
    KeyRevoked,
    /// The key's time is over.
    #[error("the relay key has expired")]
    KeyExpired,
    /// The key holds as many calls as it may.
    #[error("the relay key's concurrency limit of {limit} is reached; wait for a call to end")]
    KeyAtLimit {
        /// The key's limit.
        limit: u32,
    },
    /// The body is larger than the relay takes.
    #[error("the request body is larger than the limit of {limit} bytes")]
    BodyTooLarge {
        /// Bytes.
        limit: usize,
    },
    /// The body cannot be relayed.
    #[error(transparent)]
    BodyInvalid(#[from] BodyError),
    /// The body did not arrive in time.
    #[error("the request body did not arrive within {seconds} seconds")]
    UploadTimeout {
        /// The deadline.
        seconds: u64,
    },
    /// The body broke off or was framed wrongly.
    #[error("the request body could not be read: {0}")]
    UploadBroken(String),
    /// All memory set aside for bodies is taken.
    #[error("the relay holds as many request bodies as it may; try again")]
    BodyMemory,
    /// Nothing here.
    #[error("no such path on this relay: {0}")]
    NotFound(String),
    /// Something here, but not by this method.
    #[error("method {0} is not allowed here")]
    MethodNotAllowed(String),
    /// No account could take the call.
    #[error("no upstream account can take this call now: {summary}")]
    NoAccount {
        /// The reason, if it is the same for every account this key may use.
        common: Option<Code>,
        /// Counts of reasons for people.
        summary: String,
        /// The soonest end of what stands in the way.
        until: Option<Time>,
        /// Waiting may help: something that stands in the way passes by itself.
        transient: bool,
    },
    /// As many calls wait for an account as may.
    #[error("every account is busy, and {} waiting calls, which is the limit; try again later", who(*of_key, *limit))]
    LineFull {
        /// The limit.
        limit: usize,
        /// It is the key's own.
        of_key: bool,
        /// When those before it will have been served, by the pace of the last ones.
        until: Time,
    },
    /// It waited for an account as long as it may.
    #[error("no upstream account came free within the time that a call may wait")]
    WaitedTooLong {
        /// The soonest end of what stands in the way.
        until: Time,
    },
    /// So many calls are tried again already that this one is not.
    #[error("too many calls fail for this one to be tried again")]
    RetryBudget,
    /// The relay is shutting down.
    #[error("the relay is shutting down")]
    Draining,
    /// The attempt at the upstream failed.
    #[error("{0}")]
    Upstream(Fault),
    /// The relay's own fault.
    #[error("internal error of the relay")]
    Internal,
}

fn who(of_key: bool, limit: usize) -> String {
    if of_key { format!("this key has {limit}") } else { format!("the relay has {limit}") }
}

/// The error types of the Messages API that the relay uses.
/// Source: docs.anthropic.com/en/api/errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// 400-class faults of the request.
    InvalidRequest,
    /// 401.
    Authentication,
    /// 404.
    NotFound,
    /// 413.
    TooLarge,
    /// 429.
    RateLimit,
    /// 529.
    Overloaded,
    /// 504.
    Timeout,
    /// 500-class faults.
    Api,
}

impl Kind {
    /// `error.type` on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request_error",
            Self::Authentication => "authentication_error",
            Self::NotFound => "not_found_error",
            Self::TooLarge => "request_too_large",
            Self::RateLimit => "rate_limit_error",
            Self::Overloaded => "overloaded_error",
            Self::Timeout => "timeout_error",
            Self::Api => "api_error",
        }
    }
}

impl Refusal {
    /// The code in `x-relay-error` and in the log.
    pub fn code(&self) -> &'static str {
        match self {
            Self::KeyMissing => "key_missing",
            Self::KeyUnknown => "key_unknown",
            Self::KeyRevoked => "key_revoked",
            Self::KeyExpired => "key_expired",
            Self::KeyAtLimit { .. } => "key_at_limit",
            Self::BodyTooLarge { .. } => "body_too_large",
            Self::BodyInvalid(_) => "body_invalid",
            Self::UploadTimeout { .. } => "upload_timeout",
            Self::UploadBroken(_) => "upload_broken",
            Self::BodyMemory => "body_memory",
            Self::NotFound(_) => "not_found",
            Self::MethodNotAllowed(_) => "method_not_allowed",
            // `draining` is the relay itself.
            Self::NoAccount { common: Some(Code::Draining), .. } => "account_draining",
            Self::NoAccount { common: Some(code), .. } => code.name(),
            Self::NoAccount { common: None, .. } => "no_account",
            Self::LineFull { .. } => "line_full",
            Self::WaitedTooLong { .. } => "wait_timeout",
            Self::RetryBudget => "retry_budget",
            Self::Draining => "draining",
            Self::Upstream(fault) => fault.code(),
            Self::Internal => "internal",
        }
    }

    /// The status and error type of the Messages API.
    pub fn anthropic(&self) -> (u16, Kind) {
        match self {
            Self::KeyMissing | Self::KeyUnknown | Self::KeyRevoked | Self::KeyExpired => (401, Kind::Authentication),
            Self::KeyAtLimit { .. } => (429, Kind::RateLimit),
            Self::BodyTooLarge { .. } => (413, Kind::TooLarge),
            Self::BodyInvalid(_) | Self::UploadBroken(_) => (400, Kind::InvalidRequest),
            Self::UploadTimeout { .. } => (408, Kind::InvalidRequest),
            Self::NotFound(_) => (404, Kind::NotFound),
            Self::MethodNotAllowed(_) => (405, Kind::InvalidRequest),
            Self::NoAccount { .. }
            | Self::LineFull { .. }
            | Self::WaitedTooLong { .. }
            | Self::RetryBudget
            | Self::Draining
            | Self::BodyMemory => (529, Kind::Overloaded),
            Self::Upstream(fault) if fault.is_timeout() => (504, Kind::Timeout),
            Self::Upstream(_) => (502, Kind::Api),
            Self::Internal => (500, Kind::Api),
        }
    }

    /// Seconds for `retry-after`, at least 1; `None` where coming back is no remedy by itself.
    pub fn retry_after(&self, now: Time) -> Option<u64> {
        match self {
            Self::NoAccount { until: Some(end), .. }
            | Self::LineFull { until: end, .. }
            | Self::WaitedTooLong { until: end } => {
                let millis = u64::try_from((*end - now).num_milliseconds()).unwrap_or(0);
                Some(millis.div_ceil(1_000).max(1))
            }
            Self::NoAccount { until: None, .. } if !self.is_transient() => Some(60),
            Self::NoAccount { .. } | Self::KeyAtLimit { .. } | Self::RetryBudget | Self::BodyMemory => Some(1),
            Self::Draining => Some(5),
            _ => None,
        }
    }

    /// The soonest end of what stands in the way, or `now` if that is unknown.
    pub fn until(&self, now: Time) -> Time {
        match self {
            Self::NoAccount { until, .. } => until.unwrap_or(now),
            _ => now,
        }
    }

    /// False where only an operator can mend it: such answers carry `x-should-retry: false`, which SDKs obey
    /// over the status.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::NoAccount { transient, .. } => *transient,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(common: Option<Code>, until: Option<Time>) -> Refusal {
        let transient = common.is_none_or(Code::passes_by_itself);
        Refusal::NoAccount { common, summary: String::new(), until, transient }
    }

    #[test]
    fn a_missing_credential_is_told_apart_and_not_retried() {
        let refusal = none(Some(Code::NoCredential), None);
        assert_eq!((refusal.code(), refusal.anthropic().0, refusal.is_transient()), ("no_credential", 529, false));
    }

    #[test]
    fn retry_after_is_the_end_of_the_obstacle_rounded_up() {
        let now = chrono::DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let in_ms = |ms| none(None, Some(now + chrono::TimeDelta::milliseconds(ms))).retry_after(now);
        assert_eq!((in_ms(1), in_ms(1_000), in_ms(1_001), in_ms(-5)), (Some(1), Some(1), Some(2), Some(1)));
        assert_eq!(none(Some(Code::AtCapacity), None).retry_after(now), Some(1));
    }
}
