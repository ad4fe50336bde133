//! An account's state in words: its verdict, its slots, its reasons.
//!
//! Called by every command that shows the state of accounts, so that they all say it alike. Fields that a relay
//! leaves out read `-`.

use super::table::{cell, items, relative};
use crate::domain::Time;
use serde_json::Value;

/// What there is to say where no account is.
pub const NO_ACCOUNTS: &str = "No accounts yet. Add one with: claude-relay account add --file account.json";

/// `yes`, `last resort` or `no`.
pub fn verdict(account: &Value) -> &'static str {
    // A relay that does not say `last_resort` keeps reasons beside a yes for just that.
    let last_resort = || account["last_resort"].as_bool().unwrap_or_else(|| !items(account, "reasons").is_empty());
    match account["schedulable"].as_bool() {
        None => "-",
        Some(false) => "no",
        Some(true) if last_resort() => "last resort",
        Some(true) => "yes",
    }
}

/// `2/5`: the slots taken, of all.
pub fn in_use(account: &Value) -> String {
    match (cell(account.get("in_use")), cell(account.get("limit"))) {
        (used, limit) if used == "-" && limit == "-" => used,
        (used, limit) => format!("{used}/{limit}"),
    }
}

/// All reasons of an account; what does not block it stands in parentheses.
pub fn reasons(account: &Value, now: Time) -> String {
    let told = items(account, "reasons").iter().map(|r| {
        let text = reason(r, now);
        if r["blocks"] == false { format!("({text})") } else { text }
    });
    let told: Vec<_> = told.collect();
    if told.is_empty() { "-".to_owned() } else { told.join("; ") }
}

/// `rate_limited_burst: 429, retry-after 20, until 17s`; a bare text stands for itself.
pub fn reason(reason: &Value, now: Time) -> String {
    let Some(code) = reason["code"].as_str() else {
        return cell(Some(reason));
    };
    let mut text = code.to_owned();
    if let Some(evidence) = reason["evidence"].as_str().filter(|e| !e.is_empty()) {
        text += &format!(": {evidence}");
    }
    let time = |name: &str| reason[name].as_str().and_then(|t| relative(t, now));
    if let Some(end) = time("until") {
        // An end that has passed since the relay answered is over as far as anybody can see.
        text += &format!(", until {}", end.strip_prefix("in ").unwrap_or("now"));
    } else if let Some(start) = time("since") {
        text += &format!(", since {start}");
    }
    text
}

/// `a (Team console): no, 2/5 in use, draining: by the operator`: an account in a line.
pub fn line(account: &Value, now: Time) -> String {
    let (verdict, in_use, reasons) = (verdict(account), in_use(account), reasons(account, now));
    let reasons = if reasons == "-" { String::new() } else { format!(", {reasons}") };
    format!("{}: {verdict}, {in_use} in use{reasons}", who(account))
}

/// `a (Team console)`
pub fn who(account: &Value) -> String {
    let (id, name) = (cell(account.get("id")), cell(account.get("name")));
    if name == "-" || name == id { id } else { format!("{id} ({name})") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn now() -> Time {
        "2026-11-23T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn a_verdict_needs_no_word_of_last_resort() {
        for (account, word) in [
            (json!({"schedulable": true, "reasons": []}), "yes"),
            (json!({"schedulable": true, "reasons": [{"code": "server_fault"}]}), "last resort"),
            (json!({"schedulable": true, "last_resort": false, "reasons": [{"code": "slow"}]}), "yes"),
            (json!({"schedulable": true, "last_resort": true}), "last resort"),
            (json!({"schedulable": false, "last_resort": false}), "no"),
            (json!({"schedulable": null}), "-"),
            (json!({}), "-"),
        ] {
            assert_eq!(verdict(&account), word, "{account}");
        }
    }

    #[test]
    fn reasons_say_why_and_until_when() {
        let account = json!({"reasons": [
            {"code": "rate_limited_burst", "evidence": "429", "since": null, "until": "2026-11-23T12:00:14Z",
                "blocks": true},
            {"code": "server_fault", "evidence": "502", "since": "2026-11-23T11:57:00Z", "blocks": false},
            {"code": "overloaded", "evidence": "", "until": "2026-11-23T11:59:50Z"},
            {"code": "draining", "evidence": null, "until": "soon"},
            "bare"]});
        assert_eq!(
            reasons(&account, now()),
            "rate_limited_burst: 429, until 14s; (server_fault: 502, since 3m ago); overloaded, until now; draining; bare"
        );
        assert_eq!(reasons(&json!({"reasons": null}), now()), "-");
    }

    #[test]
    fn an_account_stands_in_a_line() {
        let account = json!({"id": "a", "name": "Team", "schedulable": false, "in_use": 2, "limit": 5,
            "reasons": [{"code": "draining"}]});
        assert_eq!(line(&account, now()), "a (Team): no, 2/5 in use, draining");
        assert_eq!(line(&json!({"id": "a", "name": "a", "schedulable": true}), now()), "a: yes, - in use");
    }
}
