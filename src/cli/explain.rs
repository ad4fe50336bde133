//! `explain`: who would take a call right now, and what speaks against each of the others.
//!
//! Called by `cli::run`. The relay judges, by the same rule that it selects with; nothing is asked of an upstream
//! and no slot is taken. People name a key by its id or its name; the API wants the id.

use super::client::{ClientFlags, Relay};
use super::pool::{NO_ACCOUNTS, in_use, reasons, verdict, who};
use super::table::{Table, cell, clean, items, relative};
use super::{Failure, key, show};
use crate::domain::Time;
use chrono::{TimeDelta, Utc};
use clap::Args;
use serde_json::Value;
use std::time::Duration;

/// How many keys an error lists.
const KEYS_LISTED: usize = 20;

/// `explain`
#[derive(Debug, Args)]
pub struct ExplainArgs {
    #[command(flatten)]
    client: ClientFlags,
    /// The model that the call asks for
    #[arg(long)]
    model: String,
    /// The key that it comes with, by id or name; without one no binding applies
    #[arg(long, value_name = "ID|NAME")]
    key: Option<String>,
    /// The session that it belongs to
    #[arg(long, value_name = "ID")]
    session: Option<String>,
}

/// Runs it.
pub fn run(args: &ExplainArgs) -> Result<(), Failure> {
    if args.key.as_deref().is_some_and(key::is_plain) {
        return Err(Failure::Usage(
            "expected a key's id or name, not the key itself; see claude-relay key list".to_owned(),
        ));
    }
    let relay = Relay::find(&args.client)?;
    let mut query = vec![("model", args.model.clone())];
    if let Some(wanted) = &args.key {
        query.push(("key", resolve(&relay.get("/keys", &[])?, wanted)?));
    }
    query.extend(args.session.clone().map(|session| ("session", session)));
    show(args.client.json, &relay.get("/explain", &query)?, |answer| explain(answer, Utc::now()))
}

/// The id of the one key that `wanted` names; an id goes before a name.
fn resolve(answer: &Value, wanted: &str) -> Result<String, Failure> {
    let keys = items(answer, "keys");
    if keys.iter().any(|key| key["id"] == wanted) {
        return Ok(wanted.to_owned());
    }
    let named: Vec<_> = keys.iter().filter(|key| key["name"] == wanted).collect();
    match (named.as_slice(), keys) {
        ([one], _) => Ok(cell(one.get("id"))),
        ([], []) => Err(Failure::Refused(clean(&format!("there is no key {wanted:?}, nor any other")))),
        ([], _) => Err(Failure::Refused(clean(&format!(
            "there is no key with the id or name {wanted:?}; there are {}",
            listed(keys.iter())
        )))),
        (several, _) => Err(Failure::Refused(clean(&format!(
            "{} keys are named {wanted:?}; say which by its id: {}",
            several.len(),
            listed(several.iter().copied())
        )))),
    }
}

/// `6f1c (alice), 77aa (alice, revoked) and 3 more`
fn listed<'a>(keys: impl ExactSizeIterator<Item = &'a Value>) -> String {
    let more = keys.len().saturating_sub(KEYS_LISTED);
    let shown = keys.take(KEYS_LISTED).map(|key| {
        let status = key["status"].as_str().filter(|status| *status != "active");
        let status = status.map_or(String::new(), |status| format!(", {status}"));
        format!("{} ({}{status})", cell(key.get("id")), cell(key.get("name")))
    });
    let shown = shown.collect::<Vec<_>>().join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

fn explain(answer: &Value, now: Time) -> String {
    let (head, accounts) = (clean(&head(answer, now)), items(answer, "accounts"));
    if accounts.is_empty() {
        // A binding may leave none although there are some.
        return if answer["key"].is_null() { format!("{head}\n\n{NO_ACCOUNTS}") } else { head };
    }
    let mut table = Table::new(&["", "ID", "NAME", ">PRIORITY", ">IN USE", "VERDICT", "REASONS"]);
    for account in accounts {
        let marks: Vec<_> = ["picked", "home"].into_iter().filter(|mark| account[*mark] == true).collect();
        table.row([
            marks.join(", "),
            cell(account.get("id")),
            cell(account.get("name")),
            cell(account.get("priority")),
            in_use(account),
            verdict(account).to_owned(),
            reasons(account, now),
        ]);
    }
    format!("{head}\n\n{}", table.render())
}

/// What would become of the call, and why.
fn head(answer: &Value, now: Time) -> String {
    let part = |name: &str, with: &str| answer[name].as_str().map_or(String::new(), |text| format!("{with}{text}"));
    let call = format!("call{}{}{}", part("model", " for "), part("key", " by key "), part("session", " in session "));
    let why = part("why", ": ");
    let others = match answer["waiting"].as_u64() {
        None | Some(0) => String::new(),
        Some(1) => "; 1 call waits already".to_owned(),
        Some(n) => format!("; {n} calls wait already"),
    };
    let refusal = &answer["refusal"];
    if let Some(id) = answer["picked"].as_str() {
        let account = items(answer, "accounts").iter().find(|account| account["id"] == id);
        let account = account.map_or(id.to_owned(), who);
        format!("{account} would take a {call}{why}{others}")
    } else if answer["waits"] == true {
        format!("No account can take a {call} now; it would wait{why}{others}")
    } else if refusal.is_null() {
        format!("No account would take a {call}{why}{others}")
    } else {
        let why = refusal["message"].as_str().map_or(why, |message| format!(": {message}"));
        let back = comes_back(&refusal["retry_after"], now).map_or(String::new(), |t| format!("; come back {t}"));
        format!("A {call} would be refused, {}{why}{back}{others}", cell(refusal.get("code")))
    }
}

/// `in 17s`, from a number of seconds or a time.
fn comes_back(retry_after: &Value, now: Time) -> Option<String> {
    let Some(seconds) = retry_after.as_f64() else {
        return relative(retry_after.as_str()?, now);
    };
    let distance = TimeDelta::from_std(Duration::try_from_secs_f64(seconds).ok()?).ok()?;
    relative(&now.checked_add_signed(distance)?.to_rfc3339(), now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn now() -> Time {
        "2026-11-23T12:00:00Z".parse().unwrap()
    }

    fn first_line(answer: &Value) -> String {
        explain(answer, now()).lines().next().unwrap().to_owned()
    }

    #[test]
    fn the_first_line_says_who_and_each_row_why() {
        let answer = json!({"picked": "b", "why": "the session lives there", "waits": false, "refusal": null,
            "key": "k", "model": "m", "session": "s", "waiting": 0, "accounts": [
            {"id": "a", "name": "Team", "platform": "claude", "priority": 1, "in_use": 5, "limit": 5,
                "schedulable": false, "last_resort": false, "home": false, "picked": false, "reasons": [
                    {"code": "at_capacity", "evidence": "5 of 5", "since": null, "until": null, "blocks": true},
                    {"code": "rate_limited_burst", "evidence": "429", "since": "2026-11-23T11:59:00Z",
                        "until": "2026-11-23T12:00:14Z", "blocks": false}]},
            {"id": "b", "name": "Other\u{1b}", "platform": "claude", "priority": 50, "in_use": 2, "limit": 5,
                "schedulable": true, "last_resort": true, "home": true, "picked": true,
                "reasons": [{"code": "server_fault", "evidence": "502", "until": null, "blocks": false}]}]});
        assert_eq!(
            explain(&answer, now()),
            "\
b (Other\u{fffd}) would take a call for m by key k in session s: the session lives there

              ID  NAME    PRIORITY  IN USE  VERDICT      REASONS
              a   Team           1     5/5  no           at_capacity: 5 of 5; (rate_limited_burst: 429, until 14s)
picked, home  b   Other\u{fffd}        50     2/5  last resort  (server_fault: 502)
"
        );
    }

    #[test]
    fn a_call_that_nobody_can_take_waits_or_is_refused() {
        let mut answer = json!({"picked": null, "why": "every slot is taken", "waits": true, "refusal": null,
            "key": null, "model": "m", "session": null, "waiting": 3, "accounts": []});
        let waits = "No account can take a call for m now; it would wait: every slot is taken; 3 calls wait already";
        assert_eq!(explain(&answer, now()), format!("{waits}\n\n{NO_ACCOUNTS}"));
        (answer["waits"], answer["waiting"], answer["key"]) = (json!(false), json!(1), json!("k"));
        answer["refusal"] = json!({"code": "at_capacity", "message": "all is taken", "retry_after": 17});
        let refused = "A call for m by key k would be refused, at_capacity: all is taken; come back in 17s; \
                       1 call waits already";
        assert_eq!(explain(&answer, now()), refused);
    }

    #[test]
    fn a_refusal_may_know_less() {
        for (refusal, line) in [
            (json!({"code": "no_account"}), "A call would be refused, no_account: because"),
            (json!({"code": "c", "message": "m", "retry_after": null}), "A call would be refused, c: m"),
            (json!({"code": "c", "message": "m", "retry_after": -1}), "A call would be refused, c: m"),
            (
                json!({"code": "c", "message": "m", "retry_after": "2026-11-23T13:00:00Z"}),
                "A call would be refused, c: m; come back in 1h",
            ),
            (json!(null), "No account would take a call: because"),
        ] {
            assert_eq!(first_line(&json!({"why": "because", "refusal": refusal})), line);
        }
        assert_eq!(first_line(&json!({})), "No account would take a call");
        assert_eq!(first_line(&json!({"picked": "gone", "accounts": null})), "gone would take a call");
        let bare = explain(&json!({"picked": "a", "accounts": [{}, {"reasons": null, "in_use": null}]}), now());
        assert_eq!(bare.lines().last().unwrap().split_whitespace().collect::<String>(), "------", "{bare}");
    }

    #[test]
    fn a_key_is_found_by_id_or_by_a_name_of_its_own() {
        let keys = json!({"keys": [{"id": "1", "name": "alice"}, {"id": "2", "name": "bob"},
            {"id": "3", "name": "bob", "status": "revoked"}, {"id": "4", "name": "2"}]});
        assert_eq!(resolve(&keys, "alice").unwrap(), "1");
        assert_eq!(resolve(&keys, "2").unwrap(), "2");
        let said = |keys: &Value, wanted: &str| resolve(keys, wanted).unwrap_err().to_string();
        assert_eq!(said(&keys, "bob"), "2 keys are named \"bob\"; say which by its id: 2 (bob), 3 (bob, revoked)");
        let unknown = said(&keys, "eve");
        assert!(unknown.ends_with("; there are 1 (alice), 2 (bob), 3 (bob, revoked), 4 (2)"), "{unknown}");
        assert_eq!(said(&json!({"keys": []}), "eve"), "there is no key \"eve\", nor any other");
        let many: Vec<_> = (0..25).map(|n| json!({"id": format!("k{n}"), "name": "n"})).collect();
        assert!(said(&json!({ "keys": many }), "eve").ends_with("k19 (n) and 5 more"));
    }

    #[test]
    fn a_key_in_the_clear_is_neither_sent_nor_repeated() {
        let key = Some("cr_0123abcd".to_owned());
        let args = ExplainArgs { client: ClientFlags::default(), model: "m".into(), key, session: None };
        let error = run(&args).unwrap_err();
        assert!(error.code() == 2 && !error.to_string().contains("0123abcd"), "{error}");
    }
}
