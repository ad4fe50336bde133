//! `status` and `usage`: what a relay can do now, and what was used.
//!
//! Called by `cli::run`. Both read the API's JSON as it comes rather than through the relay's own types: a
//! command line may be older or newer than the relay it asks.

use super::client::{ClientFlags, Relay};
use super::table::{Table, cell, relative, time_cell};
use super::{Failure, show};
use crate::domain::{AccountId, Time};
use chrono::{NaiveDate, Utc};
use clap::Args;
use serde_json::Value;

/// `status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    client: ClientFlags,
}

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

/// Runs `status`.
pub fn run(args: &StatusArgs) -> Result<(), Failure> {
    let answer = Relay::find(&args.client)?.get("/status", &[])?;
    show(args.client.json, &answer, |answer| status(answer, Utc::now()))
}

/// Runs `usage`.
pub fn run_usage(args: &UsageArgs) -> Result<(), Failure> {
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

fn status(answer: &Value, now: Time) -> String {
    let mut out = format!("relay {}: ", cell(answer.get("version")));
    out += if answer["ready"] == true { "ready" } else { "not ready" };
    let reasons = answer["reasons"].as_array().map_or(&[][..], Vec::as_slice);
    let reasons: Vec<_> = reasons.iter().map(|r| reason(r, now)).collect();
    if !reasons.is_empty() {
        out += &format!(" ({})", reasons.join("; "));
    }
    out += &format!("\nkeys: {}\n\n", cell(answer.get("keys")));
    let accounts = answer["accounts"].as_array().map_or(&[][..], Vec::as_slice);
    if accounts.is_empty() {
        return out + "No accounts yet. Add one with: claude-relay account add --file account.json";
    }
    let mut table = Table::new(&["ID", "NAME", "PLATFORM", "SCHEDULABLE", ">IN USE", ">LIMIT", "LAST", "REASONS"]);
    for account in accounts {
        let reasons = account["reasons"].as_array().map_or(&[][..], Vec::as_slice);
        let reasons: Vec<_> = reasons.iter().map(|r| reason(r, now)).collect();
        table.row([
            cell(account.get("id")),
            cell(account.get("name")),
            cell(account.get("platform")),
            cell(account.get("schedulable")),
            cell(account.get("in_use")),
            cell(account.get("limit")),
            last(&account["last"], now),
            if reasons.is_empty() { "-".to_owned() } else { reasons.join("; ") },
        ]);
    }
    out + &table.render()
}

/// `rate_limited_burst (429, retry-after 20), ends in 17s`; a bare text stands for itself.
fn reason(reason: &Value, now: Time) -> String {
    let Some(code) = reason["code"].as_str() else {
        return cell(Some(reason));
    };
    let mut text = code.to_owned();
    if let Some(evidence) = reason["evidence"].as_str().filter(|e| !e.is_empty()) {
        text += &format!(" ({evidence})");
    }
    let time = |name: &str| reason[name].as_str().and_then(|t| relative(t, now));
    if let Some(end) = time("until") {
        text += &format!(", ends {end}");
    } else if let Some(start) = time("since") {
        text += &format!(", since {start}");
    }
    text
}

/// `complete 200, 3m ago`
fn last(last: &Value, now: Time) -> String {
    if last.is_null() {
        return "-".to_owned();
    }
    let status = last["status"].as_u64().map_or(String::new(), |status| format!(" {status}"));
    format!("{}{status}, {}", cell(last.get("kind")), time_cell(last.get("at"), now))
}

fn usage(answer: &Value) -> String {
    let rows = answer["rows"].as_array().map_or(&[][..], Vec::as_slice);
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
    fn status_says_why_and_until_when() {
        let now: Time = "2026-11-23T12:00:00Z".parse().unwrap();
        let answer = json!({"ready": false, "reasons": ["no_schedulable_account"], "keys": 2, "version": "0.1.0",
            "accounts": [{"id": "a", "name": "A", "platform": "claude", "schedulable": false, "in_use": 1, "limit": 5,
                "last": {"at": "2026-11-23T11:57:00Z", "kind": "rate_limited", "status": 429},
                "reasons": [{"code": "rate_limited_burst", "since": null, "until": "2026-11-23T12:00:17Z",
                    "evidence": "429"}]}]});
        let text = status(&answer, now);
        assert!(text.starts_with("relay 0.1.0: not ready (no_schedulable_account)\nkeys: 2\n"), "{text}");
        assert!(text.contains("rate_limited 429, 3m ago  rate_limited_burst (429), ends in 17s\n"), "{text}");
    }

    #[test]
    fn usage_has_a_total_below_several_rows() {
        let row = json!({"key": "k", "account": "a", "model": "m", "day": "2026-11-23", "requests": 2,
            "input_tokens": 10, "output_tokens": 5, "endings": {"complete": 2}});
        let text = usage(&json!({"rows": [row, row]}));
        assert!(text.lines().last().unwrap().starts_with("total"), "{text}");
        assert!(text.contains("complete 2"), "{text}");
    }
}
