//! The reasons of a verdict, and how much each weighs: names that operators and their tools read.

use serde::Serialize;

/// Why an account may not take a call, or what is to be known of it all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// `status` is not `active`.
    OperatorDisabled,
    /// `schedulable` is false.
    Unschedulable,
    /// `status` is `draining`: running calls end, no new one begins.
    Draining,
    /// `expires_at` has passed.
    Expired,
    /// No credential that the platform could use.
    NoCredential,
    /// The upstream answered 401, or a 403 that means the same.
    CredentialRejected,
    /// The account's own token could not be renewed.
    RefreshFailed,
    /// No credit, or a disabled organisation.
    Billing,
    /// The model is not among the account's.
    ModelUnsupported,
    /// The upstream answered 429: a window of hours or days is used up.
    RateLimitedWindow,
    /// The upstream answered 429: a rate of seconds or minutes.
    RateLimitedBurst,
    /// The upstream answered 529 or 503.
    Overloaded,
    /// What the operator keeps back of a window is all that is left of it.
    ReserveReached,
    /// The upstream failed too often: no call for a while.
    BreakerOpen,
    /// The while is over: one call at a time, until one goes well.
    HalfOpen,
    /// Back from failure: not all slots yet.
    SlowStart,
    /// Every slot is taken.
    AtCapacity,
}

/// How much a reason weighs; the graver is the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Grade {
    /// Full, or the trial after a guessed time is under way: free at any moment.
    Busy,
    /// Its breaker lets in no more for now: its one trial is under way, or it is as full as its slow start allows.
    /// Free at any moment too, but a fault of the pool where too many are so.
    Held,
    /// Its breaker is open.
    Ejected,
    /// The operator or the upstream keeps it out.
    Out,
}

impl Code {
    /// Every code, in the order in which reasons are named.
    pub const ALL: [Code; 17] = [
        Self::OperatorDisabled,
        Self::Unschedulable,
        Self::Draining,
        Self::Expired,
        Self::NoCredential,
        Self::CredentialRejected,
        Self::RefreshFailed,
        Self::Billing,
        Self::ModelUnsupported,
        Self::RateLimitedWindow,
        Self::RateLimitedBurst,
        Self::Overloaded,
        Self::ReserveReached,
        Self::BreakerOpen,
        Self::HalfOpen,
        Self::SlowStart,
        Self::AtCapacity,
    ];

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::OperatorDisabled => "operator_disabled",
            Self::Unschedulable => "unschedulable",
            Self::Draining => "draining",
            Self::Expired => "expired",
            Self::NoCredential => "no_credential",
            Self::CredentialRejected => "credential_rejected",
            Self::RefreshFailed => "refresh_failed",
            Self::Billing => "billing",
            Self::ModelUnsupported => "model_unsupported",
            Self::RateLimitedWindow => "rate_limited_window",
            Self::RateLimitedBurst => "rate_limited_burst",
            Self::Overloaded => "overloaded",
            Self::ReserveReached => "reserve_reached",
            Self::BreakerOpen => "breaker_open",
            Self::HalfOpen => "half_open",
            Self::SlowStart => "slow_start",
            Self::AtCapacity => "at_capacity",
        }
    }

    /// True if waiting is a remedy; false where only an operator can mend it.
    pub fn passes_by_itself(self) -> bool {
        self >= Self::RateLimitedWindow
    }
}
