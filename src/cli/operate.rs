//! `account drain|enable|disable|reset|probe|events`: what an operator does to an account that runs.
//!
//! Called by `account`. Each prints what became of the account; a probe that failed ends with code 1, as a test
//! does.

use super::account::show_tested;
use super::client::{ClientFlags, Relay, TEST_PATIENCE};
use super::pool::line;
use super::table::{Table, cell, clean, items, time_cell};
use super::{Failure, show};
use crate::domain::{AccountId, Time};
use chrono::Utc;
use clap::{Args, Subcommand};
use serde_json::Value;

/// One of these commands.
#[derive(Debug, Subcommand)]
pub enum Operation {
    /// Send an account no new calls; running ones end in peace
    Drain(Target),
    /// Let an account take calls (again)
    Enable(Target),
    /// Switch an account off
    Disable(Target),
    /// Forget what went wrong with an account: cooldowns, faults, a rejected credential
    Reset(Target),
    /// Ask an account's upstream, at next to no cost, whether it is well, and say what came back
    Probe(Target),
    /// What became of an account: its last transitions, newest first
    Events(Target),
}

/// The account that is meant.
#[derive(Debug, Args)]
pub struct Target {
    /// The account's id
    #[arg(value_parser = AccountId::parse)]
    id: AccountId,
}

/// Runs it.
pub fn run(operation: Operation, client: &ClientFlags) -> Result<(), Failure> {
    let relay = || Relay::find(client);
    let (verb, id) = match operation {
        Operation::Drain(Target { id }) => ("drain", id),
        Operation::Enable(Target { id }) => ("enable", id),
        Operation::Disable(Target { id }) => ("disable", id),
        Operation::Reset(Target { id }) => ("reset", id),
        Operation::Probe(Target { id }) => {
            let answer = relay()?.command(&format!("/accounts/{id}/probe"), Some(TEST_PATIENCE))?;
            return show_tested(client.json, &answer);
        }
        Operation::Events(Target { id }) => {
            let answer = relay()?.get(&format!("/accounts/{id}/events"), &[])?;
            return show(client.json, &answer, |answer| events(answer, Utc::now()));
        }
    };
    let account = relay()?.command(&format!("/accounts/{id}/{verb}"), None)?;
    show(client.json, &account, |account| clean(&line(account, Utc::now())))
}

fn events(answer: &Value, now: Time) -> String {
    let events = items(answer, "events");
    if events.is_empty() {
        return "Nothing has become of it yet.".to_owned();
    }
    let mut table = Table::new(&["AT", "SCHEDULABLE", "REASONS", "CAUSE"]);
    for event in events {
        table.row([
            time_cell(event.get("at"), now),
            cell(event.get("schedulable")),
            cell(event.get("reasons")),
            cell(event.get("cause")),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_are_a_table_newest_first() {
        let now: Time = "2026-11-23T12:00:00Z".parse().unwrap();
        let answer = json!({"events": [
            {"at": "2026-11-23T11:57:00Z", "schedulable": true, "reasons": [], "cause": "success"},
            {"at": "2026-11-23T10:00:00Z", "schedulable": false, "reasons": ["overloaded", "server_fault"],
                "cause": "529: \u{1b}[2J"},
            {"at": null}]});
        assert_eq!(
            events(&answer, now),
            "\
AT      SCHEDULABLE  REASONS                   CAUSE
3m ago  yes          -                         success
2h ago  no           overloaded, server_fault  529: \u{fffd}[2J
-       -            -                         -
"
        );
        for none in [json!({"events": []}), json!({"events": null}), json!({})] {
            assert_eq!(events(&none, now), "Nothing has become of it yet.");
        }
    }
}
