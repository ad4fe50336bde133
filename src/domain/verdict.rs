//! The one verdict that everybody reads: may this account take this call now, and if not, why and until when.
//!
//! Scheduler, Account, Admin API and CLI ask here; the rule is written down once, in `weigh`.

use super::health::Health;
use super::{Account, Call, Time, credential};
use serde::Serialize;

/// Why an account may not take a call, or only as a last resort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// `status` is not `active`.
    OperatorDisabled,
    /// `schedulable` is false.
    Unschedulable,
    /// `expires_at` has passed.
    Expired,
    /// No credential that the platform could use.
    NoCredential,
    /// The upstream answered 401.
    CredentialRejected,
    /// The upstream answered 429.
    RateLimitedBurst,
    /// The upstream answered 529 or 503.
    Overloaded,
    /// The upstream failed: another 5xx, no answer, or half of one.
    ServerFault,
    /// The model is not among the account's.
    ModelUnsupported,
    /// Every slot is taken.
    AtCapacity,
}

impl Code {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::OperatorDisabled => "operator_disabled",
            Self::Unschedulable => "unschedulable",
            Self::Expired => "expired",
            Self::NoCredential => "no_credential",
            Self::CredentialRejected => "credential_rejected",
            Self::RateLimitedBurst => "rate_limited_burst",
            Self::Overloaded => "overloaded",
            Self::ServerFault => "server_fault",
            Self::ModelUnsupported => "model_unsupported",
            Self::AtCapacity => "at_capacity",
        }
    }

    /// True if it only moves the account to the end of the line.
    pub(super) fn is_soft(self) -> bool {
        self == Self::ServerFault
    }

    /// True if waiting is a remedy; false where only an operator can mend it.
    pub fn passes_by_itself(self) -> bool {
        matches!(self, Self::RateLimitedBurst | Self::Overloaded | Self::ServerFault | Self::AtCapacity)
    }
}

/// One reason with its evidence and the time it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// What.
    pub code: Code,
    /// Since when, if it began with an event.
    pub since: Option<Time>,
    /// Until when, if that is known.
    pub until: Option<Time>,
    /// The status, header or count that caused it.
    pub evidence: String,
}

/// The answer to "may this account take this call now".
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// It may, though with reasons present only as a last resort.
    pub schedulable: bool,
    /// Why not, or why last.
    pub reasons: Vec<Reason>,
}

impl Verdict {
    /// It may, and nothing speaks against it.
    pub fn is_clear(&self) -> bool {
        self.reasons.is_empty()
    }

    /// The time all that stands in the way is over, if known.
    pub fn until(&self) -> Option<Time> {
        self.reasons.iter().map(|r| r.until).collect::<Option<Vec<_>>>()?.into_iter().max()
    }
}

/// The verdict over `account` with this health, `in_use` of its slots taken, for `call` (or any call) at `now`.
pub fn verdict(account: &Account, health: &Health, in_use: u32, call: Option<&Call>, now: Time) -> Verdict {
    let mut reasons = Vec::new();
    weigh(account, health, in_use, call, now, |code, since, until, evidence| {
        reasons.push(Reason { code, since, until, evidence: evidence() });
    });
    Verdict { schedulable: reasons.iter().all(|r| r.code.is_soft()), reasons }
}

/// The same verdict in brief, for the Scheduler's walk over many accounts: nothing is allocated.
pub fn glance(account: &Account, health: &Health, in_use: u32, call: Option<&Call>, now: Time) -> Glance {
    let mut glance = Glance { first: None, soft: true, end: Some(now) };
    weigh(account, health, in_use, call, now, |code, _, until, _| {
        glance.first.get_or_insert(code);
        glance.soft &= code.is_soft();
        // A slot frees itself at any moment: it has no time of its own, and puts no other off.
        if code != Code::AtCapacity {
            glance.end = glance.end.zip(until).map(|(a, b)| a.max(b));
        }
    });
    glance
}

/// A verdict in brief.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glance {
    /// The gravest reason, if there is one.
    pub first: Option<Code>,
    soft: bool,
    /// When all that stands in the way is over, as far as it has an end.
    pub end: Option<Time>,
}

impl Glance {
    /// The account may take the call, if only as a last resort.
    pub fn schedulable(&self) -> bool {
        self.soft
    }

    /// It may, but others should be asked first.
    pub fn last_resort(&self) -> bool {
        self.soft && self.first.is_some()
    }
}

/// Every reason that holds, gravest first. The one place where the rule is written down.
fn weigh(
    account: &Account,
    health: &Health,
    in_use: u32,
    call: Option<&Call>,
    now: Time,
    mut say: impl FnMut(Code, Option<Time>, Option<Time>, &dyn Fn() -> String),
) {
    if !account.active {
        say(Code::OperatorDisabled, None, None, &|| "status is not active".to_owned());
    }
    if !account.schedulable {
        say(Code::Unschedulable, None, None, &|| "schedulable is false".to_owned());
    }
    if let Some(end) = account.expires_at.filter(|end| *end <= now) {
        say(Code::Expired, Some(end), None, &|| "expires_at has passed".to_owned());
    }
    if credential::choose(account).is_none() {
        say(Code::NoCredential, None, None, &|| format!("no credential for platform {}", account.platform.name()));
    }
    if let Some(r) = &health.rejection {
        let evidence = || format!("status {}, rejected again by {} probes since", r.status, r.probes);
        say(Code::CredentialRejected, Some(r.since), None, &evidence);
    }
    if let Some(model) = call.and_then(Call::model_name).filter(|m| account.models.upstream_name(m).is_none()) {
        say(Code::ModelUnsupported, None, None, &|| format!("models has no {model}"));
    }
    if let Some(c) = health.cooldown.as_ref().filter(|c| c.until > now) {
        say(c.code, Some(c.since), Some(c.until), &|| c.evidence.clone());
    }
    if in_use >= account.concurrency_limit {
        say(Code::AtCapacity, None, None, &|| format!("{in_use} of {} slots in use", account.concurrency_limit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::health::{Health, Policy};
    use crate::domain::{Endpoint, Fault, Outcome, document::Document};
    use chrono::TimeDelta;
    use serde_json::json;

    fn at(seconds: i64) -> Time {
        chrono::DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    fn account(extra: serde_json::Value) -> Account {
        let mut doc = Document::default();
        doc.set("id", "a");
        doc.set("platform", "claude");
        doc.set("session_token", "t");
        doc.apply(Document::from_input(extra, crate::domain::account::FIELDS).unwrap());
        Account::parse(&doc).unwrap()
    }

    fn codes(account: &Account, health: &Health, now: Time) -> Vec<Code> {
        verdict(account, health, 0, None, now).reasons.into_iter().map(|r| r.code).collect()
    }

    #[test]
    fn operator_switches_expiry_and_a_missing_credential_are_reasons() {
        let health = Health::default();
        assert_eq!(codes(&account(json!({})), &health, at(0)), []);
        assert_eq!(codes(&account(json!({"status":"disabled"})), &health, at(0)), [Code::OperatorDisabled]);
        assert_eq!(codes(&account(json!({"schedulable":false})), &health, at(0)), [Code::Unschedulable]);
        assert_eq!(codes(&account(json!({"session_token":null})), &health, at(0)), [Code::NoCredential]);
        let expiring = account(json!({"expires_at": at(10).to_rfc3339()}));
        assert_eq!(codes(&expiring, &health, at(9)), []);
        assert_eq!(codes(&expiring, &health, at(10)), [Code::Expired]);
    }

    #[test]
    fn a_model_outside_the_list_and_full_slots_are_reasons() {
        let listed = account(json!({"models":["m"],"concurrencyLimit":2}));
        let call = |body: &[u8]| Call::peek(Endpoint::Messages, body).unwrap();
        let health = Health::default();
        assert!(verdict(&listed, &health, 1, Some(&call(br#"{"model":"m"}"#)), at(0)).is_clear());
        let other = verdict(&listed, &health, 2, Some(&call(br#"{"model":"n"}"#)), at(0));
        assert_eq!(
            other.reasons.iter().map(|r| r.code).collect::<Vec<_>>(),
            [Code::ModelUnsupported, Code::AtCapacity]
        );
    }

    #[test]
    fn a_429_lasts_as_long_as_the_upstream_said_and_no_longer() {
        let (account, mut health) = (account(json!({})), Health::default());
        health.after(Outcome::RateLimited { until: Some(at(17)) }, at(0), &Policy::default());
        assert_eq!(codes(&account, &health, at(16)), [Code::RateLimitedBurst]);
        assert_eq!(codes(&account, &health, at(17)), []);
    }

    #[test]
    fn cooldowns_without_a_time_grow_and_stay_bounded_and_end_with_a_success() {
        let (account, mut health, policy) = (account(json!({})), Health::default(), Policy::default());
        let mut now = at(0);
        for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
            health.after(Outcome::Overloaded { status: 529, until: None }, now, &policy);
            let until = verdict(&account, &health, 0, None, now).until().unwrap();
            assert_eq!((until - now).num_seconds(), wait);
            now = until;
        }
        health.after(Outcome::Success { status: 200 }, now, &policy);
        health.after(Outcome::Overloaded { status: 529, until: None }, now, &policy);
        assert_eq!(verdict(&account, &health, 0, None, now).until(), Some(now + TimeDelta::seconds(1)));
    }

    #[test]
    fn failures_at_one_instant_are_one_failure() {
        let (account, mut health, policy) = (account(json!({})), Health::default(), Policy::default());
        for _ in 0..10 {
            health.after(Outcome::Overloaded { status: 529, until: None }, at(0), &policy);
            health.after(Outcome::CredentialRejected { status: 401 }, at(0), &policy);
        }
        assert_eq!(health.probe_at(), Some(at(60)));
        health.forgive();
        for _ in 0..10 {
            health.after(Outcome::Overloaded { status: 529, until: None }, at(0), &policy);
        }
        assert_eq!(verdict(&account, &health, 0, None, at(0)).until(), Some(at(1)));
    }

    #[test]
    fn a_time_that_the_upstream_named_outlives_a_success_under_way() {
        let (account, mut health, policy) = (account(json!({})), Health::default(), Policy::default());
        health.after(Outcome::RateLimited { until: Some(at(3600)) }, at(0), &policy);
        health.after(Outcome::Success { status: 200 }, at(0), &policy);
        assert_eq!(codes(&account, &health, at(3599)), [Code::RateLimitedBurst]);
        assert_eq!(codes(&account, &health, at(3600)), []);
        health.after(Outcome::RateLimited { until: None }, at(4000), &policy);
        health.after(Outcome::Success { status: 200 }, at(4000), &policy);
        assert_eq!(codes(&account, &health, at(4000)), []);
    }

    #[test]
    fn an_inconclusive_probe_is_followed_by_another() {
        let (mut health, policy) = (Health::default(), Policy::default());
        health.after(Outcome::CredentialRejected { status: 401 }, at(0), &policy);
        health.after(Outcome::ServerFault { status: 500 }, at(60), &policy);
        health.defer_probe(at(60), &policy);
        assert_eq!(health.probe_at(), Some(at(180)));
    }

    #[test]
    fn a_500_is_soft_and_does_not_displace_a_hard_cooldown() {
        let (account, mut health, policy) = (account(json!({})), Health::default(), Policy::default());
        health.after(Outcome::ServerFault { status: 500 }, at(0), &policy);
        let soft = verdict(&account, &health, 0, None, at(0));
        assert!(soft.schedulable && !soft.is_clear());
        health.after(Outcome::RateLimited { until: Some(at(1)) }, at(0), &policy);
        assert!(!verdict(&account, &health, 0, None, at(0)).schedulable);
        health.after(Outcome::Failed { fault: Fault::Cut }, at(0), &policy);
        assert!(!verdict(&account, &health, 0, None, at(0)).schedulable);
    }

    #[test]
    fn a_rejected_credential_stays_out_until_forgiven_and_is_probed_with_back_off() {
        let (account, mut health, policy) = (account(json!({})), Health::default(), Policy::default());
        health.after(Outcome::CredentialRejected { status: 401 }, at(0), &policy);
        assert_eq!(health.probe_at(), Some(at(60)));
        health.after(Outcome::CredentialRejected { status: 401 }, at(60), &policy);
        assert_eq!(health.probe_at(), Some(at(180)));
        assert_eq!(codes(&account, &health, at(1_000_000)), [Code::CredentialRejected]);
        health.forgive();
        assert_eq!((codes(&account, &health, at(0)), health.probe_at()), (vec![], None));
    }

    #[test]
    fn a_clients_fault_and_an_early_close_change_nothing() {
        let (account, mut health, policy) = (account(json!({})), Health::default(), Policy::default());
        health.after(Outcome::Neutral { status: 400 }, at(0), &policy);
        health.after(Outcome::Failed { fault: Fault::EarlyClose }, at(0), &policy);
        assert_eq!(codes(&account, &health, at(0)), []);
        assert!(health.last().is_some());
    }
}
