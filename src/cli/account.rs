//! `account add|list|show|set|remove|test`: upstream accounts, by way of the Admin API.
//!
//! Called by `cli::run`; what an operator does to a running account is in `operate`. The relay checks every field and names the one at fault; only what would never leave
//! this machine is checked here. Secrets come from a file, standard input or a named variable.

use super::client::{ClientFlags, Relay, TEST_PATIENCE};
use super::input::{read_object, read_variable};
use super::operate::{self, Operation};
use super::pool::NO_ACCOUNTS;
use super::table::{Table, cell, items, record, time_cell};
use super::{Failure, show};
use crate::domain::{AccountId, Time};
use chrono::Utc;
use clap::{Args, Subcommand, value_parser};
use serde_json::{Map, Value};
use std::path::PathBuf;

/// `account …`
#[derive(Debug, Args)]
pub struct AccountArgs {
    #[command(flatten)]
    client: ClientFlags,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Add an account from a JSON object
    Add {
        /// A file with the account, or - for standard input
        #[arg(long)]
        file: PathBuf,
    },
    /// List all accounts
    List,
    /// Show one account, secrets marked
    Show {
        /// The account's id
        #[arg(value_parser = AccountId::parse)]
        id: AccountId,
    },
    /// Change the given fields of an account
    Set {
        /// The account's id
        #[arg(value_parser = AccountId::parse)]
        id: AccountId,
        #[command(flatten)]
        changes: Box<Changes>,
    },
    /// Remove an account; its usage stays
    Remove {
        /// The account's id
        #[arg(value_parser = AccountId::parse)]
        id: AccountId,
    },
    /// Send one small real request through an account and say what came back
    Test {
        /// The account's id
        #[arg(value_parser = AccountId::parse)]
        id: AccountId,
        /// The model to ask for [default: the relay's health.probe_model]
        #[arg(long)]
        model: Option<String>,
    },
    #[command(flatten)]
    Operate(Operation),
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Changes {
    /// A file with a JSON object of the fields to change (null clears one), or - for standard input
    #[arg(long)]
    file: Option<PathBuf>,
    /// What people call it
    #[arg(long)]
    name: Option<String>,
    /// The operator's first switch
    #[arg(long, value_parser = ["active", "draining", "disabled"])]
    status: Option<String>,
    /// The operator's second switch: keep it, but send it nothing
    #[arg(long, value_name = "true|false")]
    schedulable: Option<bool>,
    /// How many calls it may hold at once
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    concurrency: Option<u32>,
    /// Lower goes first
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    priority: Option<i64>,
    /// Its share among those of one priority
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    weight: Option<u32>,
    /// How much of the upstream's quota to leave untouched
    #[arg(long, value_name = "PERCENT", value_parser = value_parser!(u8).range(0..=99))]
    reserve: Option<u8>,
    /// What the relay asks its upstream to find out whether it is well
    #[arg(long, value_parser = ["count_tokens", "models", "messages", "none"])]
    probe: Option<String>,
    /// A label for keys and people; empty clears it
    #[arg(long)]
    group: Option<String>,
    /// A note; empty clears it
    #[arg(long)]
    description: Option<String>,
    /// The environment variable that holds the session token
    #[arg(long, value_name = "VAR")]
    session_token_env: Option<String>,
    /// The environment variable that holds the access token
    #[arg(long, value_name = "VAR")]
    access_token_env: Option<String>,
    /// The environment variable that holds the API key
    #[arg(long, value_name = "VAR")]
    api_key_env: Option<String>,
}

impl Changes {
    /// The patch: the file's fields, and over them what the flags say.
    fn patch(self) -> Result<Map<String, Value>, Failure> {
        let mut patch = self.file.as_deref().map(read_object).transpose()?.unwrap_or_default();
        let empty_clears = |text: String| {
            if text.is_empty() { Value::Null } else { Value::String(text) }
        };
        let given = [
            ("name", self.name.map(Value::from)),
            ("status", self.status.map(Value::from)),
            ("schedulable", self.schedulable.map(Value::from)),
            ("concurrencyLimit", self.concurrency.map(Value::from)),
            ("priority", self.priority.map(Value::from)),
            ("weight", self.weight.map(Value::from)),
            ("reserve", self.reserve.map(Value::from)),
            ("probe", self.probe.map(Value::from)),
            ("group", self.group.map(empty_clears)),
            ("description", self.description.map(empty_clears)),
        ];
        patch.extend(given.into_iter().filter_map(|(field, value)| Some((field.to_owned(), value?))));
        for (field, flag, variable) in [
            ("session_token", "--session-token-env", self.session_token_env),
            ("access_token", "--access-token-env", self.access_token_env),
            ("api_key", "--api-key-env", self.api_key_env),
        ] {
            if let Some(variable) = variable {
                patch.insert(field.to_owned(), read_variable(flag, &variable)?.expose().into());
            }
        }
        if patch.is_empty() {
            return Err(Failure::Usage("nothing to change; the object has no fields".to_owned()));
        }
        Ok(patch)
    }
}

/// Runs one of the account commands.
pub fn run(args: AccountArgs) -> Result<(), Failure> {
    let (json, now) = (args.client.json, Utc::now());
    let relay = || Relay::find(&args.client);
    match args.action {
        Action::Add { file } => {
            let account = read_object(&file)?;
            show(json, &relay()?.post("/accounts", account, None)?, |a| record(a, now))
        }
        Action::List => show(json, &relay()?.get("/accounts", &[])?, |answer| list(answer, now)),
        Action::Show { id } => show(json, &relay()?.get(&format!("/accounts/{id}"), &[])?, |a| record(a, now)),
        Action::Set { id, changes } => {
            let patch = changes.patch()?;
            show(json, &relay()?.patch(&format!("/accounts/{id}"), patch)?, |a| record(a, now))
        }
        Action::Remove { id } => {
            show(json, &relay()?.delete(&format!("/accounts/{id}"))?, |_| format!("removed account {id}"))
        }
        Action::Test { id, model } => {
            let body = model.map(|model| ("model".to_owned(), Value::String(model))).into_iter().collect();
            let answer = relay()?.post(&format!("/accounts/{id}/test"), body, Some(TEST_PATIENCE))?;
            show_tested(json, &answer)
        }
        Action::Operate(operation) => operate::run(operation, &args.client),
    }
}

fn list(answer: &Value, now: Time) -> String {
    let accounts = items(answer, "accounts");
    if accounts.is_empty() {
        return NO_ACCOUNTS.to_owned();
    }
    let mut table = Table::new(&[
        "ID",
        "NAME",
        "PLATFORM",
        "STATUS",
        "SCHEDULABLE",
        ">LIMIT",
        ">PRIORITY",
        "GROUP",
        "CREDENTIAL",
        "EXPIRES",
        "CREATED",
    ]);
    for account in accounts {
        let or = |name: &str, default: &str| account.get(name).map_or(default.to_owned(), |v| cell(Some(v)));
        let secrets = ["session_token", "access_token", "api_key"];
        let set: Vec<_> = secrets.into_iter().filter(|name| account[*name].is_string()).collect();
        table.row([
            or("id", "-"),
            or("name", "-"),
            or("platform", "-"),
            or("status", "active"),
            or("schedulable", "yes"),
            or("concurrencyLimit", "-"),
            or("priority", "-"),
            or("group", "-"),
            if set.is_empty() { "none".to_owned() } else { set.join(", ") },
            time_cell(account.get("expires_at"), now),
            time_cell(account.get("created_at"), now),
        ]);
    }
    table.render()
}

/// Shows what a test or a probe found; one that failed is a failure of the command too.
pub(super) fn show_tested(json: bool, answer: &Value) -> Result<(), Failure> {
    show(json, answer, tested)?;
    if answer["ok"] == true { Ok(()) } else { Err(Failure::Told) }
}

fn tested(answer: &Value) -> String {
    let word = if answer["ok"] == true { "ok" } else { "failed" };
    let mut table = Table::new(&["", ""]);
    table.row([cell(answer.get("account")), word.to_owned()]);
    for name in ["model", "probe", "outcome", "status", "error_type", "message", "duration_ms"] {
        if let Some(value) = answer.get(name).filter(|v| !v.is_null()) {
            table.row([name.to_owned(), cell(Some(value))]);
        }
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use serde_json::json;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        changes: Changes,
    }

    #[test]
    fn a_flag_becomes_the_field_that_the_relay_knows() {
        let patch = |line: &str| Line::parse_from(line.split(' ')).changes.patch().unwrap();
        assert_eq!(
            Value::Object(patch("set --status draining --weight 50 --reserve 10 --probe models --concurrency 3")),
            json!({"status": "draining", "weight": 50, "reserve": 10, "probe": "models", "concurrencyLimit": 3})
        );
        assert_eq!(Value::Object(patch("set --reserve 0 --group=")), json!({"reserve": 0, "group": null}));
    }

    #[test]
    fn a_test_and_a_probe_say_what_was_found() {
        let answer = json!({"account": "a", "ok": false, "probe": "count_tokens", "outcome": "rate_limited",
            "status": 429, "error_type": null, "message": "slow\u{1b}[31m", "duration_ms": 12});
        let text = "a            failed\nprobe        count_tokens\noutcome      rate_limited\nstatus       429\n\
                    message      slow\u{fffd}[31m\nduration_ms  12\n";
        assert_eq!(tested(&answer), text);
        assert_eq!(tested(&json!({"ok": true})), "-  ok\n");
    }
}
