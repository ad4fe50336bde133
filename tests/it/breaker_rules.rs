//! The circuit breaker over random histories: when it opens, what may close it, that its trial is one, and how the
//! slots grow back.

use crate::health_rules::{Came, came, config, history, of, play, policy, says};
use crate::pool::{FAILED, OK, account, at, ms};
use claude_relay::domain::health::{Asked, Attempted, Health, Policy};
use claude_relay::domain::slots::Slots;
use claude_relay::domain::standing::Grant;
use claude_relay::domain::verdict::{Code, Load, Want, verdict};
use claude_relay::domain::{Family, Fault, Limit, Outcome, Standing, Time};
use proptest::prelude::*;
use std::sync::{Arc, Barrier};

fn fresh(now: Time) -> Attempted {
    Attempted { asked: Asked::Message(None), granted: now, successes: 0 }
}

fn tripped(policy: &Policy) -> Health {
    let mut health = Health::new(5);
    (0..policy.breaker_failures).for_each(|_| health.after(FAILED, fresh(at(0)), at(0), policy));
    health
}

fn standing(health: Health, limit: u32) -> Standing {
    let record = account("a", |a| a.concurrency_limit = limit);
    Standing { record: Arc::new(record), health, slots: Slots::new(limit) }
}

/// The end of an open breaker, also if that is past.
fn open_until(health: &Health) -> Option<Time> {
    health.trial_at(at(-1_000_000_000))
}

/// How many slots an account with this health may use.
fn usable(health: &Health, limit: u32, now: Time) -> (u32, Option<Time>) {
    let account = account("a", |a| a.concurrency_limit = limit);
    let says = |in_use| verdict(&account, health, Load { in_use, ..Load::default() }, of(None), now);
    let full = (0..=limit).find(|in_use| !says(*in_use).schedulable).unwrap();
    (full, says(full).until())
}

proptest! {
    #![proptest_config(config(512))]

    /// Failures in a row, or too many in a hundred: by one of the two, and never by less.
    #[test]
    fn it_opens_by_the_thresholds_and_by_nothing_else(policy in policy(), events in prop::collection::vec((0..6_000_i64, 0..100_u8), 0..80)) {
        let (mut health, slots, mut now) = (Health::new(5), Slots::new(1), at(0));
        let (mut streak, mut failures) = (0_u32, Vec::<Time>::new());
        for (gap, kind) in events {
            now += ms(gap);
            let good = kind >= 60;
            if good {
                slots.vitals().note_success(200, now, policy.breaker_window);
            }
            let successes = slots.vitals().successes(now, policy.breaker_window);
            health.after(if good { OK } else { FAILED }, Attempted { asked: Asked::Message(None), granted: now, successes }, now, &policy);
            streak = if good { 0 } else { streak + 1 };
            if !good {
                failures.push(now);
            }
            // The count is an estimate over a sliding window: never more than what two windows hold.
            let failed = u32::try_from(failures.iter().filter(|t| **t > now - policy.breaker_window * 2).count()).unwrap();
            let often = failed + successes >= policy.breaker_minimum && failed * 100 >= policy.breaker_rate * (failed + successes);
            let open = open_until(&health).is_some();
            prop_assert!(!open || !good && (streak >= policy.breaker_failures || often), "{streak}, {failed} and {successes}");
            prop_assert!(open || streak < policy.breaker_failures);
            if open {
                return Ok(());
            }
        }
    }

    #[test]
    fn the_rate_opens_it_where_no_streak_does(rate in 2..=90_u32, minimum in 1..50_u32) {
        let policy = Policy { breaker_rate: rate, breaker_minimum: minimum, breaker_failures: u32::MAX, ..Policy::default() };
        let (mut health, mut failed, mut good) = (Health::new(5), 0, 0);
        while open_until(&health).is_none() {
            // As few failures as keep just below, then one more.
            let fail = (failed + 1) * 100 < rate * (failed + good + 1) || failed + good + 1 >= minimum;
            (failed, good) = if fail { (failed + 1, good) } else { (failed, good + 1) };
            let call = Attempted { asked: Asked::Message(None), granted: at(0), successes: good };
            health.after(if fail { FAILED } else { OK }, call, at(0), &policy);
            prop_assert!(failed + good <= 12 * minimum + 200);
        }
        prop_assert!(failed + good >= minimum && failed * 100 >= rate * (failed + good), "{failed} of {}", failed + good);
    }

    /// Nothing that comes of a call granted before it opened closes it or puts it off, however late it comes.
    #[test]
    fn calls_of_before_are_no_news(
        policy in policy(), events in prop::collection::vec((0..20_000_i64, 1..9_000_i64, came()), 1..20)
    ) {
        let mut health = tripped(&policy);
        let (until, mut now) = (open_until(&health), at(0));
        prop_assert!(until.is_some_and(|t| now < t && t <= now + policy.breaker_first.min(policy.longest)));
        for (gap, before, came) in &events {
            now += ms(*gap);
            health.after(came.at(now), Attempted { asked: Asked::Message(None), granted: at(-before), successes: 0 }, now, &policy);
            prop_assert_eq!(open_until(&health), until);
        }
    }

    /// A trial that fails keeps it out for longer and longer, one that goes well lets it back in, one that says
    /// nothing changes nothing.
    #[test]
    fn the_trial_decides(policy in policy(), trials in prop::collection::vec(came(), 1..20)) {
        let (mut health, mut whole) = (tripped(&policy), policy.breaker_first.min(policy.longest));
        for came in &trials {
            let now = open_until(&health).unwrap();
            prop_assert!(!says(&health, of(None), now - ms(1)).schedulable);
            health.after(came.at(now), fresh(now), now, &policy);
            match came {
                Came::Plain(Outcome::ServerFault { .. } | Outcome::Failed { .. }) if came_is_failure(came) => {
                    whole = (whole * 2).min(policy.longest);
                    let wait = open_until(&health).unwrap() - now;
                    prop_assert!(whole - whole * i32::from(policy.jitter) / 1_000 <= wait && wait <= whole, "{wait} of {whole}");
                }
                Came::Plain(Outcome::Success { .. }) => {
                    prop_assert_eq!(open_until(&health), None);
                    return Ok(());
                }
                _ => prop_assert_eq!(open_until(&health), Some(now)),
            }
        }
    }

    #[test]
    fn slots_grow_back_from_one_to_all(limit in 1..300_u32, slow in 1..60_000_i64, steps in 1..50_i64) {
        let policy = Policy { slow_start: ms(slow), ..Policy::default() };
        let mut health = tripped(&policy);
        let begun = open_until(&health).unwrap();
        health.after(OK, fresh(begun), begun, &policy);
        let mut last = 0;
        for step in 0..=steps {
            let now = begun + ms(slow * step / steps);
            let (open, more) = usable(&health, limit, now);
            prop_assert!(last <= open && open <= limit && (step > 0 || open == 1), "{last}, then {open}");
            prop_assert!(step < steps || open == limit);
            if let Some(more) = more {
                prop_assert!(now < more && usable(&health, limit, more).0 > open, "one more at the time it names");
                let just_before = usable(&health, limit, more - ms(2)).0;
                prop_assert!(more - ms(2) < now || just_before == open, "and not much sooner");
            }
            last = open;
        }
        let seen = says(&health, of(None), begun + ms(slow));
        prop_assert!(seen.is_clear(), "{seen:?}");
    }

    /// After whatever history, once every time that was named or guessed is over and one call went well, the account
    /// is as good as new, unless its credential is rejected; and that ends too, with a call that goes well.
    #[test]
    fn everything_heals(history in history(), policy in policy()) {
        let (mut health, now) = play(&history, &policy, |_, _, _, _, _| ());
        let later = now + policy.longest.max(ms(40_000));
        let families = [None].into_iter().chain(Family::ALL.map(|(_, family)| Some(family)));
        for family in families {
            health.after(OK, Attempted { asked: Asked::Message(family), ..fresh(later) }, later, &policy);
        }
        let healed = later + policy.slow_start;
        prop_assert!(says(&health, Want::default(), healed).is_clear());
        health.after(OK, fresh(healed), healed, &policy);
        prop_assert!(health.is_clear(), "{health:?}");
    }
}

fn came_is_failure(came: &Came) -> bool {
    !matches!(came, Came::Plain(Outcome::Failed { fault }) if fault.is_connections())
}

#[test]
fn a_half_open_account_lets_exactly_one_in() {
    let policy = Policy::default();
    let mut limited = Health::new(5);
    limited.after(Came::Overloaded(None).at(at(0)), fresh(at(0)), at(0), &policy);
    for health in [tripped(&policy), limited] {
        let (standing, now) = (standing(health, 50), at(60_000));
        let ask = || standing.grant(of(None), false, now);
        let mut granted: Vec<Grant> = (0..50).filter_map(|_| ask().ok()).collect();
        assert_eq!((granted.len(), standing.slots.in_use()), (1, 1));
        let refused = ask().unwrap_err();
        assert!(refused.reasons.iter().any(|r| r.code == Code::HalfOpen && r.blocks), "{refused:?}");
        let trial = granted.pop().unwrap();
        assert!(trial.trial.is_some());
        drop(trial);
        assert!(ask().is_ok(), "the next one may try");
        assert!(standing.slots.on_trial().is_none());
    }
}

/// The same where fifty threads ask at the same moment.
#[test]
fn a_half_open_account_lets_exactly_one_thread_in() {
    for _ in 0..40 {
        let standing = Arc::new(standing(tripped(&Policy::default()), 50));
        let start = Arc::new(Barrier::new(50));
        let ask = || {
            let (standing, start) = (standing.clone(), start.clone());
            std::thread::spawn(move || {
                start.wait();
                standing.grant(of(None), false, at(60_000)).ok()
            })
        };
        let threads: Vec<_> = (0..50).map(|_| ask()).collect();
        let granted: Vec<Grant> = threads.into_iter().filter_map(|t| t.join().unwrap()).collect();
        assert_eq!((granted.len(), standing.slots.in_use()), (1, 1));
        drop(granted);
        assert!(standing.slots.on_trial().is_none() && standing.slots.in_use() == 0);
    }
}

/// Where breakers are put aside, calls flow past an open one and past a trial, but never past the limit.
#[test]
fn a_breaker_that_is_put_aside_does_not_lift_the_limit() {
    for now in [at(1), at(60_000)] {
        let standing = standing(tripped(&Policy::default()), 5);
        let granted: Vec<_> = (0..50).filter_map(|_| standing.grant(of(None), true, now).ok()).collect();
        assert_eq!(granted.len(), 5);
        assert!(granted.iter().filter(|g| g.trial.is_some()).count() <= 1);
    }
}

/// A trial keeps others away for a while, not for as long as its answer takes: a model may think for minutes, and an
/// upstream that hung may be well again. One that fails again and again is tried less and less often.
#[test]
fn a_trial_that_takes_long_keeps_the_next_away_for_a_while() {
    let (policy, now) = (Policy::default(), at(600_000));
    let mut limited = Health::new(5);
    limited.after(Came::Limited(Limit::Burst, None).at(at(0)), fresh(at(0)), at(0), &policy);
    let mut again = tripped(&policy);
    for _ in 0..2 {
        let until = open_until(&again).unwrap();
        again.after(FAILED, fresh(until), until, &policy);
    }
    for (health, wait) in [(limited, policy.trial), (tripped(&policy), policy.trial), (again, policy.trial * 4)] {
        let standing = standing(health, 5);
        let first = standing.grant(of(None), false, now).unwrap();
        let refused = standing.grant(of(None), false, now + wait - ms(1)).unwrap_err();
        assert_eq!(refused.until(), Some(now + wait));
        let second = standing.grant(of(None), false, now + wait).unwrap();
        assert!(second.trial.is_some() && standing.grant(of(None), false, now + wait).is_err());
        // Two that are not answered keep the next away for twice as long.
        let later = now + wait * 3;
        assert!(standing.grant(of(None), false, later - ms(1)).is_err());
        drop(standing.grant(of(None), false, later).unwrap());
        let first_again = standing.grant(of(None), false, later).unwrap();
        drop((second, first_again));
        let _second = standing.grant(of(None), false, now + wait).unwrap();
        // The first ends no other's trial.
        drop(first);
        assert!(standing.grant(of(None), false, now + wait).is_err());
    }
}

/// An endpoint that is broken by itself says nothing of messages: it may put off one trial, not all of them. A connection
/// that is refused says it of all.
#[test]
fn a_probe_of_another_endpoint_does_not_keep_an_account_out_for_ever() {
    let policy = Policy::default();
    let refused = Outcome::Failed { fault: Fault::Connect };
    for (outcome, puts_off) in [(Outcome::ServerFault { status: 500 }, 1), (FAILED, 1), (refused, 6)] {
        let mut health = tripped(&policy);
        let mut put_off = 0;
        for _ in 0..6 {
            let until = open_until(&health).unwrap();
            let now = until - ms(100);
            let call = Attempted { asked: Asked::Other, ..fresh(now) };
            health.probed(outcome.clone(), false, call, now, &policy);
            put_off += i32::from(open_until(&health) > Some(until));
        }
        assert_eq!(put_off, puts_off, "{outcome:?}");
        // After a call has failed, it may put off the next one.
        let now = open_until(&health).unwrap();
        health.after(FAILED, fresh(now), now, &policy);
        let (until, now) = (open_until(&health).unwrap(), open_until(&health).unwrap() - ms(100));
        health.probed(outcome.clone(), false, fresh(now), now, &policy);
        assert!(open_until(&health) > Some(until), "{outcome:?}");
    }
}

/// A probe that is a message like any client's is as sure as a client's call.
#[test]
fn a_message_that_fails_as_a_probe_keeps_it_out() {
    let (policy, mut health) = (Policy::default(), tripped(&Policy::default()));
    for _ in 0..6 {
        let until = open_until(&health).unwrap();
        let now = until - ms(100);
        health.probed(FAILED, true, fresh(now), now, &policy);
        assert!(open_until(&health) > Some(until));
    }
}

/// A slow start is over when its time is, but only for an account that has served a call to its end.
#[test]
fn time_alone_does_not_prove_an_account() {
    let (policy, mut health) = (Policy::default(), tripped(&Policy::default()));
    let (begun, hung) = (Outcome::Answered { status: 200 }, Outcome::Failed { fault: Fault::IdleTimeout });
    let mut waits = Vec::new();
    for _ in 0..4 {
        let now = open_until(&health).unwrap();
        health.after(begun.clone(), fresh(now), now, &policy);
        let later = now + policy.slow_start * 10;
        health.after(hung.clone(), fresh(now), later, &policy);
        waits.push(open_until(&health).expect("one failure is the trial's") - later);
    }
    assert!(waits.is_sorted() && waits[3] > waits[0] * 4, "{waits:?}");
}

/// An idle connection that is closed as it is used again fails no trial.
#[test]
fn a_stale_connection_is_no_trial() {
    let (policy, mut health) = (Policy::default(), tripped(&Policy::default()));
    let now = open_until(&health).unwrap();
    health.after(Outcome::Failed { fault: Fault::Stale }, fresh(now), now, &policy);
    assert_eq!(open_until(&health), Some(now));
}

/// Who is refused the credential after the money, or the other way round, is told the later of the two.
#[test]
fn a_rejection_of_another_kind_replaces_the_first() {
    let (policy, mut health) = (Policy::default(), Health::new(5));
    health.after(Outcome::Billing { status: 400 }, fresh(at(0)), at(0), &policy);
    health.after(Outcome::CredentialRejected { status: 401 }, fresh(at(5)), at(5), &policy);
    let said = says(&health, Want::default(), at(6));
    let [reason] = said.reasons.as_slice() else { panic!("{said:?}") };
    assert_eq!((reason.code, reason.since), (Code::CredentialRejected, Some(at(5))));
    assert!(reason.evidence.contains("401") && !health.wants_money());
}

/// A good beginning lets more calls in; only a good end takes the failures before it away.
#[test]
fn an_upstream_that_begins_well_and_breaks_off_is_ejected_and_stays_out() {
    let (policy, mut health, mut now) = (Policy::default(), Health::new(5), at(0));
    let (begun, cut) = (Outcome::Answered { status: 200 }, Outcome::Failed { fault: Fault::Cut });
    for broken in 1..=policy.breaker_failures {
        assert_eq!(open_until(&health), None, "after {broken}");
        health.after(begun.clone(), fresh(now), now, &policy);
        health.after(cut.clone(), fresh(now), now, &policy);
    }
    let mut waits = Vec::new();
    for _ in 0..4 {
        let until = open_until(&health).expect("it is out");
        waits.push(until - now);
        now = until;
        health.after(begun.clone(), fresh(now), now, &policy);
        assert!(says(&health, of(None), now).schedulable, "it answers again");
        health.after(cut.clone(), fresh(now), now + ms(400), &policy);
        now += ms(400);
    }
    assert!(waits.is_sorted() && waits[3] > waits[0] * 4, "longer and longer: {waits:?}");
    // One that ends well is proof; from then on it takes as many as at first.
    now = open_until(&health).unwrap();
    health.after(OK, fresh(now), now, &policy);
    health.after(cut, fresh(now), now, &policy);
    assert_eq!(open_until(&health), None);
}

/// What fails late, of calls from before the breaker opened, does not count when it is closed again.
#[test]
fn failures_of_before_do_not_open_it_again() {
    let policy = Policy { breaker_minimum: 6, ..Policy::default() };
    let mut health = tripped(&policy);
    let now = open_until(&health).unwrap();
    (0..50).for_each(|_| health.after(FAILED, fresh(at(0)), now, &policy));
    health.after(OK, fresh(now), now, &policy);
    health.after(FAILED, Attempted { successes: 5, ..fresh(now) }, now, &policy);
    assert_eq!(open_until(&health), None, "one of six");
}
