//! Health and verdict over random histories: what a cooldown promises, what says nothing of an account, and that
//! the two forms of the verdict are one. The breaker has [`crate::breaker_rules`].

use crate::pool::{account, at, models, ms};
use claude_relay::domain::health::{Asked, Attempted, Health, Policy};
use claude_relay::domain::slots::Slots;
use claude_relay::domain::verdict::{Code, Load, Verdict, Want, glance, verdict};
use claude_relay::domain::{Account, Family, Fault, Limit, Outcome, Reading, Standing, Time, Window};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashSet};

pub fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

pub fn policy() -> impl Strategy<Value = Policy> {
    let times = (1..5_000_i64, 1..5_000_i64, 5_000..90_000_i64, 1..4_000_i64, 0..40_000_i64);
    let counts = (0..=1_000_u16, 1..8_u32, 1..=100_u32, 1..30_u32);
    (times, counts).prop_map(|((limited, overloaded, longest, breaker, slow), (jitter, failures, rate, minimum))| {
        Policy {
            rate_limited_first: ms(limited),
            overloaded_first: ms(overloaded),
            longest: ms(longest),
            jitter,
            breaker_failures: failures,
            breaker_rate: rate,
            breaker_minimum: minimum,
            breaker_first: ms(breaker),
            slow_start: ms(slow),
            ..Policy::default()
        }
    })
}

pub fn family() -> impl Strategy<Value = Option<Family>> {
    prop_oneof![Just(None), (0..Family::ALL.len()).prop_map(|n| Some(Family::ALL[n].1))]
}

fn limit() -> impl Strategy<Value = Limit> {
    let window = prop_oneof![Just(Window::FiveHour), Just(Window::SevenDay), Just(Window::Tokens)];
    prop_oneof![Just(Limit::Burst), (window, family()).prop_map(|(window, family)| Limit::Window { window, family })]
}

/// An outcome, given when it comes.
#[derive(Debug, Clone)]
pub enum Came {
    Plain(Outcome),
    Limited(Limit, Option<i64>),
    Overloaded(Option<i64>),
}

impl Came {
    pub fn at(&self, now: Time) -> Outcome {
        match self {
            Self::Plain(outcome) => outcome.clone(),
            Self::Limited(limit, until) => {
                Outcome::RateLimited { limit: *limit, until: until.map(|t| now + ms(t)), header: Some("retry-after") }
            }
            Self::Overloaded(until) => Outcome::Overloaded { status: 529, until: until.map(|t| now + ms(t)) },
        }
    }
}

/// What says nothing against an account.
pub fn blameless() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        prop::sample::select(vec![300_u16, 400, 404, 413, 422, 429]).prop_map(|status| Outcome::Neutral { status }),
        Just(Outcome::Failed { fault: Fault::EarlyClose }),
    ]
}

pub fn came() -> impl Strategy<Value = Came> {
    let until = || prop::option::of(-1_000..30_000_i64);
    let plain = prop_oneof![
        3 => Just(Outcome::Success { status: 200 }),
        1 => blameless(),
        3 => Just(Outcome::ServerFault { status: 500 }),
        1 => Just(Outcome::Failed { fault: Fault::Cut }),
        1 => Just(Outcome::CredentialRejected { status: 401 }),
        1 => Just(Outcome::Billing { status: 403 }),
        1 => Just(Outcome::RefreshFailed),
    ];
    prop_oneof![
        3 => plain.prop_map(Came::Plain),
        2 => (limit(), until()).prop_map(|(limit, until)| Came::Limited(limit, until)),
        1 => until().prop_map(Came::Overloaded),
    ]
}

/// Outcomes, each so long after the one before, of a call that was granted so long before.
pub fn history() -> impl Strategy<Value = Vec<(i64, i64, Came)>> {
    prop::collection::vec((0..4_000_i64, 0..3_000_i64, came()), 0..40)
}

/// Plays a history and shows each outcome with the health before and after it.
pub fn play(
    history: &[(i64, i64, Came)],
    policy: &Policy,
    mut see: impl FnMut(&Outcome, Attempted, &Health, &Health, Time),
) -> (Health, Time) {
    let (mut health, mut now) = (Health::new(3), at(0));
    let slots = Slots::new(1);
    for (gap, ago, came) in history {
        now += ms(*gap);
        let outcome = came.at(now);
        if let Outcome::Success { status } = outcome {
            slots.vitals().note_success(status, now, policy.breaker_window);
        }
        let successes = slots.vitals().successes(now, policy.breaker_window);
        let (before, call) =
            (health.clone(), Attempted { asked: Asked::Message(None), granted: now - ms(*ago), successes });
        health.after(outcome.clone(), call, now, policy);
        see(&outcome, call, &before, &health, now);
    }
    (health, now)
}

pub fn says(health: &Health, want: Want, now: Time) -> Verdict {
    verdict(&account("a", |_| ()), health, Load::default(), want, now)
}

pub fn of(family: Option<Family>) -> Want<'static> {
    Want { model: None, family: Some(family) }
}

/// A cooldown as the rules have it.
#[derive(Debug, Clone, Copy)]
struct Rule {
    since: Time,
    /// The earliest and the latest end; the same where the upstream named it.
    until: (Time, Time),
    named: bool,
    strikes: u32,
}

type Of = (Code, Option<(Window, Option<Family>)>);

/// The rules again, as plainly as they can be written.
fn expect(rules: &mut BTreeMap<String, (Of, Rule)>, outcome: &Outcome, call: Attempted, now: Time, policy: &Policy) {
    rules.retain(|_, (_, r)| !r.named || r.until.0 > now);
    let (of, said) = match outcome {
        Outcome::Success { .. } => {
            // A call of no family says nothing of what is limited by family.
            let by_family = |of: &Of| of.1.is_some_and(|(_, family)| family.is_some());
            return rules.retain(|_, (of, r)| r.named || r.until.1 > now || r.since > call.granted || by_family(of));
        }
        Outcome::RateLimited { limit: Limit::Burst, until, .. } => ((Code::RateLimitedBurst, None), until),
        Outcome::RateLimited { limit: Limit::Window { window, family }, until, .. } => {
            ((Code::RateLimitedWindow, Some((*window, *family))), until)
        }
        Outcome::Overloaded { until, .. } => ((Code::Overloaded, None), until),
        _ => return,
    };
    // An overload is not believed to last for longer than the longest guess, and then one call tries.
    let last = if of.0 == Code::Overloaded { now + policy.longest } else { Time::MAX_UTC };
    let named = said.is_none_or(|t| t <= last);
    let old = rules.remove(&format!("{of:?}")).map(|(_, rule)| rule);
    let running = old.filter(|r| r.until.1 > now);
    let rule = match (said.map(|t| t.min(last)).filter(|t| *t > now), running) {
        (Some(said), Some(running)) if running.named && running.until.0 >= said => running,
        (Some(said), running) => {
            Rule { since: running.map_or(now, |r| r.since), until: (said, said), named, strikes: 0 }
        }
        (None, Some(running)) => running,
        (None, None) if old.is_some_and(|r| call.granted < r.since) => old.unwrap(),
        (None, None) => {
            let strikes = old.map_or(0, |r| r.strikes) + 1;
            let first = if of.0 == Code::Overloaded { policy.overloaded_first } else { policy.rate_limited_first };
            let whole = (first * 2_i32.pow(strikes.min(17) - 1)).min(policy.longest);
            let least = whole - whole * i32::from(policy.jitter) / 1_000;
            Rule { since: now, until: (now + least, now + whole.max(ms(1))), named: false, strikes }
        }
    };
    rules.insert(format!("{of:?}"), (of, rule));
}

proptest! {
    #![proptest_config(config(512))]

    /// Neither longer nor shorter than the upstream named, whatever else comes; what is guessed is within its bounds,
    /// and then one call is let in to try.
    #[test]
    fn a_cooldown_lasts_as_long_as_the_rules_say(history in history(), policy in policy(), later in 0..40_000_i64) {
        let mut rules = BTreeMap::new();
        let check = |health: &Health, rules: &mut BTreeMap<String, (Of, Rule)>, now: Time| {
            for (_, family) in Family::ALL {
                let verdict = says(health, of(Some(family)), now);
                let mut seen: Vec<_> = verdict.reasons.iter().filter(|r| {
                    matches!(r.code, Code::RateLimitedBurst | Code::RateLimitedWindow | Code::Overloaded)
                }).collect();
                for ((code, of), rule) in rules.values_mut() {
                    if of.is_some_and(|(_, only)| only.is_some_and(|only| only != family)) || rule.until.1 <= now {
                        continue;
                    }
                    let found = seen.iter().position(|r| {
                        let until = r.until.unwrap();
                        r.code == *code && r.since == Some(rule.since) && rule.until.0 <= until && until <= rule.until.1
                    });
                    match found {
                        // From now on it is known to the millisecond, and may not move.
                        Some(found) => rule.until = seen.swap_remove(found).until.map(|t| (t, t)).unwrap(),
                        None => assert!(rule.until.0 <= now, "{rule:?} of {code:?} is not in {verdict:?}"),
                    }
                }
                assert!(seen.is_empty(), "nobody said this: {seen:?} of {rules:?}");
            }
        };
        let (health, now) = play(&history, &policy, |outcome, call, _, health, now| {
            expect(&mut rules, outcome, call, now, &policy);
            check(health, &mut rules, now);
        });
        check(&health, &mut rules, now + ms(later));
    }

    #[test]
    fn guesses_grow_twofold_up_to_the_longest(policy in policy(), overloaded in any::<bool>(), seed in any::<u64>()) {
        let (mut health, mut now) = (Health::new(seed), at(0));
        let came = if overloaded { Came::Overloaded(None) } else { Came::Limited(Limit::Burst, None) };
        let mut whole = if overloaded { policy.overloaded_first } else { policy.rate_limited_first };
        for _ in 0..30 {
            health.after(came.at(now), Attempted { asked: Asked::Message(None), granted: now, successes: 0 }, now, &policy);
            let until = says(&health, of(None), now).until().unwrap();
            let least = whole - whole * i32::from(policy.jitter) / 1_000;
            prop_assert!(now + least <= until && until <= now + whole.max(ms(1)), "{} of {whole}", until - now);
            whole = (whole * 2).min(policy.longest);
            now = until;
        }
    }

    #[test]
    fn of_two_named_times_the_later_stands(limit in limit(), times in prop::collection::vec(1_000..60_000_i64, 1..6)) {
        let (policy, mut health) = (Policy::default(), Health::new(1));
        for time in &times {
            health.after(Came::Limited(limit, Some(*time)).at(at(0)), Attempted { asked: Asked::Message(None), granted: at(0), successes: 0 }, at(0), &policy);
        }
        let family = match limit { Limit::Window { family, .. } => family, Limit::Burst => None };
        let until = says(&health, of(family), at(1)).until();
        prop_assert_eq!(until, times.iter().max().map(|t| at(*t)));
        let until = until.unwrap();
        prop_assert!(!says(&health, of(family), until - ms(1)).schedulable && says(&health, of(family), until).is_clear());
    }

    #[test]
    fn a_window_of_one_family_blocks_that_family_only(limited in family(), wanted in family(), named in any::<bool>()) {
        let mut health = Health::new(1);
        let limit = Limit::Window { window: Window::SevenDay, family: limited };
        let came = Came::Limited(limit, named.then_some(60_000));
        health.after(came.at(at(0)), Attempted { asked: Asked::Message(None), granted: at(0), successes: 0 }, at(0), &Policy::default());
        let verdict = says(&health, of(wanted), at(1));
        prop_assert_eq!(verdict.schedulable, limited.is_some() && limited != wanted);
        prop_assert_eq!(verdict.is_clear(), verdict.schedulable, "another's limit is not even told of");
        prop_assert_eq!(says(&health, Want::default(), at(1)).schedulable, limited.is_some(), "one limit is not all");
    }

    /// A client's 4xx and the connection's own troubles leave everything as it was, for better and for worse: a request
    /// that is refused does not show that messages flow again.
    #[test]
    fn what_is_not_the_accounts_fault_never_speaks_against_it(
        history in history(), policy in policy(), gap in 0..9_000_i64, ago in 0..9_000_i64, outcome in blameless()
    ) {
        let (before, now) = play(&history, &policy, |_, _, _, _, _| ());
        let (mut after, now) = (before.clone(), now + ms(gap));
        after.after(outcome.clone(), Attempted { asked: Asked::Message(None), granted: now - ms(ago), successes: 0 }, now, &policy);
        for (_, family) in Family::ALL {
            prop_assert_eq!(says(&before, of(Some(family)), now), says(&after, of(Some(family)), now));
            prop_assert_eq!(after.strikes(), before.strikes());
        }
    }

    #[test]
    fn a_fresh_start_clears_all_and_a_second_chance_what_was_guessed(history in history(), policy in policy(), used in 0..=1_000_u16) {
        let (mut health, now) = play(&history, &policy, |_, _, _, _, _| ());
        health.observe(&[Reading { window: Window::FiveHour, family: None, used, reset: now + ms(9) }], now);
        prop_assert_eq!((health.used(None, now), health.used(None, now + ms(9))), (used, 0), "a reading ends with its window");
        let before = says(&health, Want::default(), now);
        health.forgive();
        let after = says(&health, Want::default(), now);
        let limits = |code| matches!(code, Code::RateLimitedBurst | Code::RateLimitedWindow | Code::Overloaded);
        prop_assert!(after.reasons.iter().all(|r| before.reasons.contains(r) && limits(r.code)), "{after:?}");
        prop_assert_eq!((health.used(None, now), health.strikes(), health.trial_at(now)), (used, 0, None));
        health.forget();
        prop_assert!(health.is_clear() && says(&health, Want::default(), now).is_clear());
        prop_assert_eq!((health.used(None, now), health.strikes(), health.trial_at(now)), (0, 0, None));
    }

    /// What count_tokens and models come to says nothing of messages, unless it is the credential or the connection.
    #[test]
    fn other_endpoints_neither_bench_nor_bring_back(history in history(), policy in policy(), gap in 0..9_000_i64, status in prop::sample::select(vec![200_u16, 404, 429, 500, 502, 529])) {
        let (before, now) = play(&history, &policy, |_, _, _, _, _| ());
        let (mut after, now) = (before.clone(), now + ms(gap));
        let outcome = match status {
            529 => Outcome::Overloaded { status, until: None },
            500.. => Outcome::ServerFault { status },
            _ => Outcome::Neutral { status },
        };
        after.after(outcome, Attempted { asked: Asked::Other, granted: now, successes: 0 }, now, &policy);
        prop_assert_eq!(says(&before, Want::default(), now), says(&after, Want::default(), now));
    }

    #[test]
    fn the_two_forms_of_a_verdict_are_one(state in state()) {
        let State { account, health, load, want, now } = state;
        let (long, short) = (verdict(&account, &health, load, want, now), glance(&account, &health, load, want, now));
        prop_assert_eq!(long.schedulable, short.schedulable());
        prop_assert_eq!(long.last_resort, short.last_resort && short.schedulable());
        let blocking = || long.reasons.iter().filter(|r| r.blocks);
        prop_assert_eq!(short.obstacle.is_some(), blocking().count() > 0);
        prop_assert!(short.obstacle.is_none_or(|(code, _)| blocking().any(|r| r.code == code)));
        let half_open = || long.reasons.iter().filter(|r| r.code == Code::HalfOpen);
        prop_assert!(!short.trial || half_open().any(|r| !r.blocks));
        prop_assert!(short.trial || load.bounded || half_open().all(|r| r.blocks));
        // Being full has no time of its own: the other reasons alone decide when it is over.
        let busy = |code| matches!(code, Code::AtCapacity | Code::HalfOpen | Code::SlowStart);
        let lasting = long.reasons.iter().filter(|r| r.blocks && !busy(r.code));
        let ends: Option<Vec<Time>> = lasting.map(|r| r.until).collect();
        prop_assert_eq!(short.end, ends.map(|ends| ends.into_iter().max().unwrap_or(now)));
        if !blocking().any(|r| busy(r.code)) {
            prop_assert_eq!(long.until(), short.end.filter(|_| !long.schedulable));
        }
        prop_assert!(long.reasons.iter().all(|r| r.until.is_none_or(|until| until > now)), "over is over");
        let standing = Standing { record: account.into(), health, slots: Slots::new(0) };
        prop_assert_eq!(standing.glance(load, want, now), short);
    }

    #[test]
    fn what_the_operator_keeps_back_is_kept(
        reserve in 0..=99_u8, used in 0..=1_000_u16, limited in family(), wanted in family(), later in 0..20_i64
    ) {
        let (account, mut health) = (account("a", |a| a.reserve = reserve), Health::new(1));
        health.observe(&[Reading { window: Window::SevenDay, family: limited, used, reset: at(10) }], at(0));
        let seen = verdict(&account, &health, Load::default(), of(wanted), at(later));
        let reached = reserve > 0 && used >= 1_000 - 10 * u16::from(reserve);
        let out = reached && later < 10 && (limited.is_none() || limited == wanted);
        prop_assert_eq!((seen.schedulable, seen.until()), (!out, out.then_some(at(10))));
        let any = verdict(&account, &health, Load::default(), Want::default(), at(later));
        prop_assert_eq!((any.schedulable, any.is_clear()), (!out || limited.is_some(), !reached || later >= 10));
    }
}

/// Anything that a verdict is over.
#[derive(Debug)]
struct State {
    account: Account,
    health: Health,
    load: Load,
    want: Want<'static>,
    now: Time,
}

fn state() -> impl Strategy<Value = State> {
    let switches = (prop::bool::weighted(0.9), prop::bool::weighted(0.9), prop::bool::weighted(0.1), any::<bool>());
    let record = (1..6_u32, prop_oneof![Just(0_u8), 1..99_u8], prop::option::of(-5_000..5_000_i64));
    let load = (0..7_u32, prop::option::of(0..9_000_i64), any::<bool>());
    let want = (prop::option::of(prop::sample::select(vec!["m", "n"])), prop::option::of(family()));
    let reading = (family(), 0..=1_000_u16, -10..10_000_i64);
    (switches, record, load, want, (history(), policy(), 0..20_000_i64), prop::collection::vec(reading, 0..3)).prop_map(
        |(switches, (limit, reserve, expires), (in_use, on_trial, bounded), (model, family), past, readings)| {
            let (mut health, now) = play(&past.0, &past.1, |_, _, _, _, _| ());
            let reading =
                |(family, used, left)| Reading { window: Window::FiveHour, family, used, reset: now + ms(left) };
            health.observe(&readings.into_iter().map(reading).collect::<Vec<_>>(), now);
            let now = now + ms(past.2);
            let account = account("a", |a| {
                (a.active, a.schedulable, a.draining) = (switches.0, switches.1, switches.2);
                (a.concurrency_limit, a.reserve) = (limit, reserve);
                a.expires_at = expires.map(|t| now + ms(t));
                a.models = if switches.3 { models(["m"]) } else { a.models.clone() };
            });
            let on_trial = on_trial.map(|ago| now - ms(ago));
            State {
                account,
                health,
                load: Load { in_use, on_trial, overdue: in_use % 3, bounded },
                want: Want { model, family },
                now,
            }
        },
    )
}

#[test]
fn every_code_has_a_name_of_its_own() {
    let names: HashSet<_> = Code::ALL.iter().map(|code| code.name()).collect();
    assert_eq!(names.len(), Code::ALL.len());
    for (place, code) in Code::ALL.into_iter().enumerate() {
        let name = code.name();
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') && !name.starts_with('_'), "{name}");
        assert_eq!(serde_json::to_value(code).unwrap(), name);
        assert_eq!(code as usize, place, "in the order in which they are listed");
    }
}
