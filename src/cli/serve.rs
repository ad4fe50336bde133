//! `serve`: loads the settings and hands over to `startup`, or with `--check` only prints them.
//!
//! Bad settings end with code 2, a relay that cannot start or dies with 1, so that a supervisor can tell them
//! apart.

use super::{Failure, print};
use crate::settings::{ServeFlags, Settings, environment};
use crate::startup;

/// Runs until the relay ends.
pub fn run(flags: &ServeFlags) -> Result<(), Failure> {
    let settings = Settings::load(flags, environment()).map_err(|e| Failure::Usage(e.to_string()))?;
    if flags.check {
        return print(&settings.effective());
    }
    startup::serve(settings).map_err(|e| Failure::Refused(e.to_string()))
}
