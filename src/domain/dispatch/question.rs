//! What goes into the dispatcher and what comes out: rules, questions, commands.

use super::Scope;
use crate::domain::affinity::Session;
use crate::domain::line::Bounds;
use crate::domain::{AccountId, Call, KeyId, Refusal, TicketId, Time};
use chrono::TimeDelta;
use std::sync::Arc;

/// The constants of dispatching. All are settings, where their meaning stands.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// The most waiting calls.
    pub line: Bounds,
    /// How long a session waits for its home while another account is free.
    pub patience: TimeDelta,
    /// How many sessions are remembered.
    pub sessions: usize,
    /// For how long after their last use.
    pub session_ttl: TimeDelta,
    /// Of a hundred usable accounts of a class, so many may be ejected by their breakers at once.
    pub ejected: usize,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            line: Bounds { per_key: 1_000, total: 10_000 },
            patience: TimeDelta::seconds(2),
            sessions: 100_000,
            session_ttl: TimeDelta::hours(1),
            ejected: 50,
        }
    }
}

/// One call that wants an account.
#[derive(Debug, Clone)]
pub struct Question {
    /// Its name.
    pub ticket: TicketId,
    /// Whose call.
    pub key: KeyId,
    /// Which call.
    pub call: Arc<Call>,
    /// Which session it belongs to.
    pub session: Option<Session>,
    /// Among which accounts.
    pub scope: Scope,
    /// But not these: they were tried for it already.
    pub tried: Arc<[AccountId]>,
    /// Until when it may wait; a time that is past is not at all.
    pub deadline: Time,
}

/// What is to be done.
#[derive(Debug)]
pub enum Command {
    /// Ask this account for a slot, and tell [`super::Dispatch::granted`] or [`super::Dispatch::busy`].
    Ask {
        /// For whom.
        ticket: TicketId,
        /// Whom.
        account: AccountId,
        /// For which call.
        call: Arc<Call>,
        /// Whatever its breaker says.
        bounded: bool,
    },
    /// Answer no.
    Refuse {
        /// Whom.
        ticket: TicketId,
        /// Why.
        refusal: Refusal,
    },
}
