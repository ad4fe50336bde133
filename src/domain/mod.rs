//! The vocabulary and the rules of the relay, as pure values: no actor, no socket, no clock.
//!
//! Everything else imports this; it imports nothing of the crate. Time is always an argument.

pub mod account;
pub mod affinity;
mod breaker;
pub mod call;
pub mod credential;
pub mod dispatch;
pub mod document;
pub mod health;
pub mod key;
pub mod line;
pub mod outcome;
pub mod refusal;
pub mod retry;
pub mod secret;
pub mod selection;
mod skim;
pub mod slots;
pub mod standing;
pub mod tally;
pub mod usage;
pub mod verdict;
pub mod window;

pub use account::{Account, AccountId, Platform, ProbeKind};
pub use affinity::Session;
pub use call::{Call, Endpoint};
pub use key::{Key, KeyHash, KeyId, PlainKey};
pub use line::TicketId;
pub use outcome::{Fault, Limit, Outcome, ProbeReport};
pub use refusal::Refusal;
pub use secret::Secret;
pub use standing::Standing;
pub use usage::{Ending, Usage};
pub use window::{Family, Reading, Window};

/// A point in time. Wall-clock, since resets and expiries come from the outside as wall-clock times.
pub type Time = chrono::DateTime<chrono::Utc>;
