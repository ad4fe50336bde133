//! What a call used and how it ended: the values that the journal carries and the ledger sums.

use serde::{Deserialize, Serialize};

/// Tokens as the upstream counted them (Messages API, `usage`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usage {
    /// Input tokens that were neither written to nor read from the cache.
    pub input_tokens: u64,
    /// Output tokens.
    pub output_tokens: u64,
    /// Tokens written to the prompt cache, all lifetimes.
    pub cache_creation_input_tokens: u64,
    /// Of these, with a lifetime of 5 minutes.
    pub cache_creation_5m_input_tokens: u64,
    /// Of these, with a lifetime of 1 hour.
    pub cache_creation_1h_input_tokens: u64,
    /// Tokens read from the prompt cache.
    pub cache_read_input_tokens: u64,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The whole answer was handed on.
    Complete,
    /// The client left before that.
    ClientGone,
    /// The upstream's answer ended early, or stopped coming.
    UpstreamCut,
    /// The upstream answered with an error, or could not be reached.
    UpstreamError,
    /// The relay ended it: the key was revoked, or a drain ran out of time.
    RelayEnded,
    /// The relay died before it knew.
    RelayCrashed,
}

impl Ending {
    /// Every ending.
    pub const ALL: [Ending; 6] = [
        Self::Complete,
        Self::ClientGone,
        Self::UpstreamCut,
        Self::UpstreamError,
        Self::RelayEnded,
        Self::RelayCrashed,
    ];

    /// The name in rows and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::ClientGone => "client_gone",
            Self::UpstreamCut => "upstream_cut",
            Self::UpstreamError => "upstream_error",
            Self::RelayEnded => "relay_ended",
            Self::RelayCrashed => "relay_crashed",
        }
    }
}
