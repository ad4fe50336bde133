//! `key create|list|show|set|revoke|remove`: what clients hold, by way of the Admin API.
//!
//! Called by `cli::run`. A key is named by its id; whoever gives the key itself is told so, and it is neither
//! sent nor repeated.

use super::client::{ClientFlags, Relay};
use super::input::read_object;
use super::table::{Table, cell, items, record, time_cell};
use super::{Failure, show};
use crate::domain::{AccountId, Time};
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand, value_parser};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

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
    /// Change the given fields of a key; a list that is given takes the place of the old one
    Set {
        /// The key's id, not the key
        id: String,
        /// A file with a JSON object of the fields to change (null clears one), or - for standard input
        #[arg(long)]
        file: Option<PathBuf>,
        /// Who holds it
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        fields: Fields,
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
    #[command(flatten)]
    fields: Fields,
}

/// What a key may have besides its name.
#[derive(Debug, Default, Args)]
struct Fields {
    /// An account it may use, repeatable; bound to no account and no group it may use all
    #[arg(long = "account", value_name = "ID", value_parser = AccountId::parse)]
    accounts: Vec<AccountId>,
    /// A group of accounts it may use, repeatable
    #[arg(long = "group", value_name = "NAME")]
    groups: Vec<String>,
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

impl Fields {
    /// The record to send: only what was given.
    fn body(self, name: Option<String>) -> Map<String, Value> {
        let accounts: Vec<_> = self.accounts.iter().map(AccountId::as_str).collect();
        let given = [
            ("name", name.map(Value::from)),
            ("accounts", (!accounts.is_empty()).then(|| json!(accounts))),
            ("groups", (!self.groups.is_empty()).then(|| json!(self.groups))),
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

/// What a change sends: the file's fields, and over them what the flags say.
fn patch(file: Option<&Path>, name: Option<String>, fields: Fields) -> Result<Map<String, Value>, Failure> {
    let mut patch = file.map(read_object).transpose()?.unwrap_or_default();
    patch.extend(fields.body(name));
    if patch.is_empty() {
        return Err(Failure::Usage("nothing to change; see claude-relay key set --help".to_owned()));
    }
    Ok(patch)
}

/// Runs one of the key commands.
pub fn run(args: KeyArgs) -> Result<(), Failure> {
    let (json, now) = (args.client.json, Utc::now());
    let relay = || Relay::find(&args.client);
    match args.action {
        Action::Create(NewKey { name, fields }) => {
            show(json, &relay()?.post("/keys", fields.body(Some(name)), None)?, |answer| created(answer, now))
        }
        Action::List => show(json, &relay()?.get("/keys", &[])?, |answer| list(answer, now)),
        Action::Show { id } => show(json, &relay()?.get(&path(&id)?, &[])?, |key| record(key, now)),
        Action::Set { id, file, name, fields } => {
            let (path, patch) = (path(&id)?, patch(file.as_deref(), name, fields)?);
            show(json, &relay()?.patch(&path, patch)?, |key| record(key, now))
        }
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
    if is_plain(id) || !fits {
        return Err(Failure::Usage("expected a key's id, not the key itself; see claude-relay key list".to_owned()));
    }
    Ok(format!("/keys/{id}"))
}

/// True for what looks like a key itself, in place of its id or name: it must not be sent or repeated.
pub(super) fn is_plain(text: &str) -> bool {
    text.starts_with("cr_")
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
    let keys = items(answer, "keys");
    if keys.is_empty() {
        return "No keys yet. Make one with: claude-relay key create --name NAME".to_owned();
    }
    let mut table = Table::new(&["ID", "NAME", "KEY", "STATUS", "ACCOUNTS", "GROUPS", ">LIMIT", "EXPIRES", "CREATED"]);
    for key in keys {
        let or = |name: &str, default: &str| {
            key.get(name).filter(|v| !v.is_null()).map_or(default.to_owned(), |v| cell(Some(v)))
        };
        let bound = ["accounts", "groups"].iter().any(|name| !items(key, name).is_empty());
        table.row([
            or("id", "-"),
            or("name", "-"),
            or("mark", "-"),
            or("status", "active"),
            if bound { or("accounts", "-") } else { "all".to_owned() },
            or("groups", "-"),
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
        assert_eq!(Value::Object(Fields::default().body(Some("n".into()))), json!({"name": "n"}));
        let fields = Fields { groups: vec!["g".into(), "h".into()], concurrency: Some(3), ..Fields::default() };
        let sent = patch(None, None, fields).unwrap();
        assert_eq!(Value::Object(sent), json!({"groups": ["g", "h"], "concurrencyLimit": 3}));
        assert_eq!(patch(None, None, Fields::default()).unwrap_err().code(), 2);
    }

    #[test]
    fn a_list_says_what_each_key_is_bound_to() {
        let now: Time = "2026-11-23T12:00:00Z".parse().unwrap();
        let text = list(
            &json!({"keys": [{"id": "1", "name": "free", "accounts": []}, {"id": "2", "name": "g", "groups": ["x", "y"]},
                {"id": "3", "name": "a", "accounts": ["a"], "groups": null}]}),
            now,
        );
        let column = |line: &str| {
            let cells: Vec<_> = line.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect();
            (cells[4].to_owned(), cells[5].to_owned())
        };
        let bound: Vec<_> = text.lines().skip(1).map(column).collect();
        assert_eq!(
            bound,
            [("all", "-"), ("-", "x, y"), ("a", "-")].map(|(a, b)| (a.to_owned(), b.to_owned())),
            "{text}"
        );
    }
}
