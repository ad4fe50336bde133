//! `key create|list|show|revoke|remove`: what clients hold, by way of the Admin API.
//!
//! Called by `cli::run`. A key is named by its id; whoever gives the key itself is told so, and it is neither
//! sent nor repeated.

use super::client::{ClientFlags, Relay};
use super::table::{Table, cell, record, time_cell};
use super::{Failure, show};
use crate::domain::{AccountId, Time};
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand, value_parser};
use serde_json::{Map, Value, json};

/// `key …`
#[derive(Debug, Args)]
pub struct KeyArgs {
    #[command(flatten)]
    client: ClientFlags,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a key; it is printed once
    Create(NewKey),
    /// List all keys
    List,
    /// Show one key's record
    Show {
        /// The key's id, not the key
        id: String,
    },
    /// Refuse a key from now on; running calls end, the record stays
    Revoke {
        /// The key's id, not the key
        id: String,
    },
    /// Remove a key's record; its usage stays
    Remove {
        /// The key's id, not the key
        id: String,
    },
}

#[derive(Debug, Args)]
struct NewKey {
    /// Who will hold it
    #[arg(long)]
    name: String,
    /// An account it may use, repeatable; without any it may use all
    #[arg(long = "account", value_name = "ID", value_parser = AccountId::parse)]
    accounts: Vec<AccountId>,
    /// How many calls it may hold at once [default: no limit]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    concurrency: Option<u32>,
    /// When it stops being accepted, such as 2027-01-31T00:00:00Z
    #[arg(long, value_name = "RFC3339", value_parser = DateTime::parse_from_rfc3339)]
    expires: Option<DateTime<chrono::FixedOffset>>,
    /// A note
    #[arg(long)]
    description: Option<String>,
}

impl NewKey {
    /// The record to send: only what was given.
    fn body(self) -> Map<String, Value> {
        let accounts: Vec<_> = self.accounts.iter().map(AccountId::as_str).collect();
        let given = [
            ("name", Some(self.name.into())),
            ("accounts", (!accounts.is_empty()).then(|| json!(accounts))),
            ("concurrencyLimit", self.concurrency.map(Value::from)),
            (
                "expires_at",
                self.expires.map(|t| t.to_utc().to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true).into()),
            ),
            ("description", self.description.map(Value::from)),
        ];
        given.into_iter().filter_map(|(field, value)| Some((field.to_owned(), value?))).collect()
    }
}

/// Runs one of the key commands.
pub fn run(args: KeyArgs) -> Result<(), Failure> {
    let (json, now) = (args.client.json, Utc::now());
    let relay = || Relay::find(&args.client);
    match args.action {
        Action::Create(key) => show(json, &relay()?.post("/keys", key.body(), None)?, |answer| created(answer, now)),
        Action::List => show(json, &relay()?.get("/keys", &[])?, |answer| list(answer, now)),
        Action::Show { id } => show(json, &relay()?.get(&path(&id)?, &[])?, |key| record(key, now)),
        Action::Revoke { id } => {
            let patch = Map::from_iter([("status".to_owned(), "revoked".into())]);
            show(json, &relay()?.patch(&path(&id)?, patch)?, |_| format!("revoked key {id}"))
        }
        Action::Remove { id } => show(json, &relay()?.delete(&path(&id)?)?, |_| format!("removed key {id}")),
    }
}

/// The path of a key's record.
fn path(id: &str) -> Result<String, Failure> {
    let fits = !id.is_empty() && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if id.starts_with("cr_") || !fits {
        return Err(Failure::Usage("expected a key's id, not the key itself; see claude-relay key list".to_owned()));
    }
    Ok(format!("/keys/{id}"))
}

fn created(answer: &Value, now: Time) -> String {
    let mut rest = answer.clone();
    if let Some(fields) = rest.as_object_mut() {
        fields.remove("key");
    }
    let key = cell(answer.get("key"));
    format!("{key}\n\nThis is the key. Keep it now: it is not shown again.\n\n{}", record(&rest, now))
}

fn list(answer: &Value, now: Time) -> String {
    let keys = answer["keys"].as_array().map_or(&[][..], Vec::as_slice);
    if keys.is_empty() {
        return "No keys yet. Make one with: claude-relay key create --name NAME".to_owned();
    }
    let mut table = Table::new(&["ID", "NAME", "KEY", "STATUS", "ACCOUNTS", ">LIMIT", "EXPIRES", "CREATED"]);
    for key in keys {
        let or = |name: &str, default: &str| {
            key.get(name).filter(|v| !v.is_null()).map_or(default.to_owned(), |v| cell(Some(v)))
        };
        let bound = key["accounts"].as_array().is_some_and(|list| !list.is_empty());
        table.row([
            or("id", "-"),
            or("name", "-"),
            or("mark", "-"),
            or("status", "active"),
            if bound { or("accounts", "all") } else { "all".to_owned() },
            or("concurrencyLimit", "none"),
            time_cell(key.get("expires_at"), now),
            time_cell(key.get("created_at"), now),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_given_for_its_id_is_neither_sent_nor_repeated() {
        for id in ["cr_0123abcd", "a/b", "", "a b", "?"] {
            let error = path(id).unwrap_err().to_string();
            assert!(!error.contains("0123abcd"), "{error}");
        }
        assert_eq!(path("6f1c-a.b_c").unwrap(), "/keys/6f1c-a.b_c");
    }

    #[test]
    fn only_what_was_given_is_sent() {
        let key = NewKey { name: "n".into(), accounts: vec![], concurrency: None, expires: None, description: None };
        assert_eq!(Value::Object(key.body()), json!({"name": "n"}));
    }
}
