//! `status`: the pool at a glance, once or again and again.
//!
//! Called by `cli::run`. Like every client command it reads the API's JSON as it comes rather than through the
//! relay's own types: a command line may be newer than the relay it asks, and then shows what is missing as `-`.

use super::client::{ClientFlags, Relay};
use super::pool::{NO_ACCOUNTS, in_use, reason, verdict};
use super::table::{Table, cell, clean, items, time_cell};
use super::watch::Watch;
use super::{Failure, show};
use crate::domain::Time;
use chrono::Utc;
use clap::{Args, value_parser};
use serde_json::Value;
use std::time::Duration;

/// `status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    client: ClientFlags,
    /// Again every so many seconds, until interrupted; a relay that goes away is waited for. With --json one
    /// document a line
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
        value_parser = value_parser!(u64).range(1..=3_600))]
    pub(super) watch: Option<u64>,
}

/// Runs `status`.
pub fn run(args: &StatusArgs) -> Result<(), Failure> {
    // The relay is found anew each time: one that starts again may have another address.
    let ask = || Relay::find(&args.client)?.get("/status", &[]);
    match args.watch {
        None => show(args.client.json, &ask()?, |answer| status(answer, Utc::now())),
        Some(seconds) => {
            let watch = Watch::new(Duration::from_secs(seconds), args.client.json);
            Err(watch.run(ask, |answer| {
                let now = Utc::now();
                format!("{}, every {seconds}s\n{}", now.format("%F %T UTC"), status(answer, now))
            }))
        }
    }
}

fn status(answer: &Value, now: Time) -> String {
    let accounts = items(answer, "accounts");
    let head = clean(&summary(answer, accounts, now));
    if accounts.is_empty() {
        return format!("{head}\n\n{NO_ACCOUNTS}");
    }
    let mut table =
        Table::new(&["NAME", "ID", "PLATFORM", "VERDICT", ">IN USE", ">WAITING", ">TTFB", ">SUCCESS", "UNTIL"]);
    // The relay gives them in no order that lasts, and who watches wants each in its place.
    let mut accounts: Vec<_> = accounts.iter().collect();
    accounts.sort_by_key(|account| (account["name"].as_str(), account["id"].as_str()));
    for account in accounts {
        let codes: Vec<_> = items(account, "reasons").iter().map(code).collect();
        let codes = if codes.is_empty() { String::new() } else { format!(" ({})", codes.join(", ")) };
        table.row([
            cell(account.get("name")),
            cell(account.get("id")),
            cell(account.get("platform")),
            format!("{}{codes}", verdict(account)),
            in_use(account),
            cell(account.get("waiting")),
            latency(&account["ttfb_ms"]),
            percent(&account["success_rate"]),
            time_cell(account.get("until"), now),
        ]);
    }
    format!("{head}\n\n{}", table.render())
}

/// `relay 0.1.0: ready; keys 2; accounts 3: yes 1, last resort 1, no 1; in use 4/15; waiting 2`
fn summary(answer: &Value, accounts: &[Value], now: Time) -> String {
    let reasons: Vec<_> = items(answer, "reasons").iter().map(|r| reason(r, now)).collect();
    let reasons = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join("; ")) };
    let ready = if answer["ready"] == true { "ready" } else { "not ready" };
    let (version, keys, waiting) = (cell(answer.get("version")), cell(answer.get("keys")), cell(answer.get("waiting")));
    let count = |word: &str| accounts.iter().filter(|account| verdict(account) == word).count();
    let sum = |name: &str| accounts.iter().filter_map(|account| account[name].as_u64()).sum::<u64>();
    let (yes, last, no) = (count("yes"), count("last resort"), count("no"));
    format!(
        "relay {version}: {ready}{reasons}; keys {keys}; accounts {}: yes {yes}, last resort {last}, no {no}; \
         in use {}/{}; waiting {waiting}",
        accounts.len(),
        sum("in_use"),
        sum("limit"),
    )
}

fn code(reason: &Value) -> String {
    cell(Some(reason.get("code").unwrap_or(reason)))
}

/// `412ms`, `1.3s`
fn latency(millis: &Value) -> String {
    match millis.as_f64() {
        None => "-".to_owned(),
        Some(ms) if ms < 1_000.0 => format!("{ms:.0}ms"),
        Some(ms) => format!("{:.1}s", ms / 1_000.0),
    }
}

/// `99.9%`, rounded down: only what never failed reads `100%`.
fn percent(rate: &Value) -> String {
    // The little more is for rates such as 0.57, which times 1,000 is a hair below 570.
    let tenths = |rate: f64| (rate * 1_000.0 + 1e-6).floor() / 10.0;
    rate.as_f64().map_or("-".to_owned(), |rate| format!("{}%", tenths(rate)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn now() -> Time {
        "2026-11-23T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn status_shows_each_account_and_the_totals() {
        let answer = json!({"ready": true, "reasons": [], "keys": 2, "version": "0.1.0", "waiting": 3, "accounts": [
            {"id": "b", "name": "B", "platform": "claude", "schedulable": false, "last_resort": false, "in_use": 5,
                "limit": 5, "waiting": 3, "ttfb_ms": 1260, "success_rate": 0.9996, "until": "2026-11-23T12:00:17Z",
                "reasons": [{"code": "at_capacity"}, {"code": "rate_limited_burst", "evidence": "429"}]},
            {"id": "a", "name": "A", "platform": "claude", "schedulable": true, "last_resort": true, "in_use": 0,
                "limit": 10, "waiting": 0, "ttfb_ms": 412, "success_rate": 0.57, "until": null,
                "reasons": [{"code": "server_fault"}]}]});
        assert_eq!(
            status(&answer, now()),
            "\
relay 0.1.0: ready; keys 2; accounts 2: yes 0, last resort 1, no 1; in use 5/15; waiting 3

NAME  ID  PLATFORM  VERDICT                               IN USE  WAITING   TTFB  SUCCESS  UNTIL
A     a   claude    last resort (server_fault)              0/10        0  412ms      57%  -
B     b   claude    no (at_capacity, rate_limited_burst)     5/5        3   1.3s    99.9%  in 17s
"
        );
    }

    #[test]
    fn an_older_relay_is_shown_as_far_as_it_goes() {
        let answer = json!({"ready": false, "reasons": ["no_schedulable_account", {"code": "journal",
            "evidence": "disk full"}], "keys": 2, "version": "0.1.0", "accounts": [{"id": "a", "name": "A",
                "platform": "claude", "schedulable": true, "in_use": 1, "limit": 5, "reasons": []}]});
        let text = status(&answer, now());
        let head = "relay 0.1.0: not ready (no_schedulable_account; journal: disk full); keys 2; accounts 1: yes 1, \
                    last resort 0, no 0; in use 1/5; waiting -\n";
        assert!(text.starts_with(head), "{text}");
        assert!(text.ends_with("A     a   claude    yes         1/5        -     -        -  -\n"), "{text}");
    }

    #[test]
    fn nothing_at_all_is_shown_too() {
        assert!(status(&json!({"accounts": []}), now()).ends_with(NO_ACCOUNTS));
        assert!(status(&json!({}), now()).starts_with("relay -: not ready; keys -; accounts 0"));
        let bare = status(&json!({"accounts": [{}, {"name": null, "reasons": null, "limit": 3}]}), now());
        assert!(bare.contains("in use 0/3; waiting -\n") && bare.contains("  -/3  "), "{bare}");
    }

    #[test]
    fn numbers_are_short_and_never_flatter() {
        assert_eq!([0.4, 999.4, 1_000.0, 61_250.0].map(|ms| latency(&json!(ms))), ["0ms", "999ms", "1.0s", "61.2s"]);
        assert_eq!(
            [json!(1), json!(0), json!(0.9999), json!(0.29)].map(|r| percent(&r)),
            ["100%", "0%", "99.9%", "29%"]
        );
    }
}
