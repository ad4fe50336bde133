//! Every integration test, in one binary: linking it is what costs.

mod accounts;
mod fake_upstream;
mod raw_client;
mod relay_app;
mod settings;
