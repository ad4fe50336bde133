//! `usage`: what was used, by key, account, model and day.
//!
//! Called by `cli::run`. It reads the API's JSON as it comes rather than through the relay's own types: a command
//! line may be older or newer than the relay it asks.

use super::client::{ClientFlags, Relay};
use super::table::{Table, cell, items};
use super::{Failure, show};
use crate::domain::AccountId;
use chrono::NaiveDate;
use clap::Args;
use serde_json::Value;

/// `usage`
#[derive(Debug, Args)]
pub struct UsageArgs {
    #[command(flatten)]
    client: ClientFlags,
    /// Of this key, by its id
    #[arg(long, value_name = "ID")]
    key: Option<String>,
    /// Of this account
    #[arg(long, value_name = "ID", value_parser = AccountId::parse)]
    account: Option<AccountId>,
    /// Of this model
    #[arg(long)]
    model: Option<String>,
    /// From this day on (UTC), YYYY-MM-DD
    #[arg(long, value_name = "DATE")]
    since: Option<NaiveDate>,
    /// To this day, included (UTC), YYYY-MM-DD
    #[arg(long, value_name = "DATE")]
    until: Option<NaiveDate>,
}

/// Runs `usage`.
pub fn run(args: &UsageArgs) -> Result<(), Failure> {
    let given = [
        ("key", args.key.clone()),
        ("account", args.account.as_ref().map(ToString::to_string)),
        ("model", args.model.clone()),
        ("since", args.since.map(|day| day.to_string())),
        ("until", args.until.map(|day| day.to_string())),
    ];
    let query: Vec<_> = given.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    show(args.client.json, &Relay::find(&args.client)?.get("/usage", &query)?, usage)
}

fn usage(answer: &Value) -> String {
    let rows = items(answer, "rows");
    if rows.is_empty() {
        return "Nothing was used, or nothing that fits.".to_owned();
    }
    let names = ["day", "key", "account", "model"];
    let counts =
        ["requests", "input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"];
    let mut table = Table::new(&[
        "DAY",
        "KEY",
        "ACCOUNT",
        "MODEL",
        ">REQUESTS",
        ">INPUT",
        ">OUTPUT",
        ">CACHE WRITE",
        ">CACHE READ",
        "ENDINGS",
    ]);
    let mut totals = counts.map(|_| 0_u64);
    for row in rows {
        let texts = names.iter().map(|name| cell(row.get(*name)));
        let endings = row["endings"].as_object().into_iter().flatten();
        let endings: Vec<_> = endings.map(|(name, count)| format!("{name} {count}")).collect();
        for (total, name) in totals.iter_mut().zip(counts) {
            *total = total.saturating_add(row[name].as_u64().unwrap_or(0));
        }
        table.row(texts.chain(counts.iter().map(|name| cell(row.get(*name)))).chain([endings.join(", ")]));
    }
    if rows.len() > 1 {
        let blank = std::iter::repeat_n(String::new(), names.len() - 1);
        table.row(std::iter::once("total".to_owned()).chain(blank).chain(totals.map(|n| n.to_string())));
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn usage_has_a_total_below_several_rows() {
        let row = json!({"key": "k", "account": "a", "model": "m", "day": "2026-11-23", "requests": 2,
            "input_tokens": 10, "output_tokens": 5, "endings": {"complete": 2}});
        let text = usage(&json!({"rows": [row, row]}));
        assert!(text.lines().last().unwrap().starts_with("total"), "{text}");
        assert!(text.contains("complete 2"), "{text}");
    }
}
