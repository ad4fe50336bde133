//! The vocabulary and the rules of the relay, as pure values: no actor, no socket, no clock.
//!
//! Everything else imports this; it imports nothing of the crate. Time is always an argument.

pub mod account;
pub mod call;
pub mod credential;
pub mod document;
pub mod health;
pub mod key;
pub mod outcome;
pub mod refusal;
pub mod secret;
pub mod selection;
pub mod usage;
pub mod verdict;

pub use account::{Account, AccountId, Platform};
pub use call::{Call, Endpoint};
pub use key::{Key, KeyHash, KeyId, PlainKey};
pub use outcome::{Fault, Outcome, ProbeReport};
pub use refusal::Refusal;
pub use secret::Secret;
pub use usage::{Ending, Usage};

/// A point in time. Wall-clock, since resets and expiries come from the outside as wall-clock times.
pub type Time = chrono::DateTime<chrono::Utc>;
