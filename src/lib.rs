//! claude-relay: one service between many clients and many upstream AI accounts.
//!
//! `main → startup → http → {upstream, actors} → {platform, store} → domain`; arrows may skip down, never up or
//! sideways, and a test holds them to it. The actors are a public API: see [`actors`].

pub mod actors;
pub mod cli;
pub mod clock;
pub mod domain;
pub mod http;
pub mod platform;
pub mod settings;
pub mod startup;
pub mod store;
pub mod telemetry;
pub mod upstream;
