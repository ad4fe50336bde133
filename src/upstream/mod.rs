//! The way to the upstreams: connections, one attempt, the answer's way back, and probes.
//!
//! One [`dial::Dialer`] for each HTTP worker thread; a body never leaves the thread it arrived on.

pub mod connector;
pub mod dial;
pub mod head;
pub mod probe;
pub mod stall;
pub mod tap;
