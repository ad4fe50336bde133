//! Every integration test, in one binary: linking it is what costs.

mod accounts;
mod actors;
mod bad_input;
mod cuts;
mod disconnects;
mod failing_store;
mod fake_upstream;
mod journal_crash;
mod journal_replay;
mod layering;
mod limits;
mod process;
mod raw_client;
mod relay_app;
mod relay_process;
mod settings;
mod store_contract;
mod store_usage;
mod streaming;
mod tls;
