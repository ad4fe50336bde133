//! What the world keeps beside the production code, and the invariants that it checks by it.

use chrono::TimeDelta;
use claude_relay::domain::dispatch::{Explanation, Question, Rules, Why};
use claude_relay::domain::verdict::Want;
use claude_relay::domain::{AccountId, Standing, TicketId, Time};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub invariant: &'static str,
    pub what: String,
}

impl Violation {
    pub fn new(invariant: &'static str, what: impl Into<String>) -> Self {
        Self { invariant, what: what.into() }
    }
}

/// A call that has no answer yet.
struct Open {
    question: Question,
    arrived: u64,
    since: i64,
    /// Whom it is asking.
    asking: bool,
}

#[derive(Default)]
pub struct Books {
    pub steps: u64,
    pub until: i64,
    pub mischief: u64,
    pub grants: u64,
    pub refusals: u64,
    pub leavers: u64,
    pub busy: u64,
    pub trials: u64,
    pub faults: u64,
    pub most_waiting: usize,
    trace: DefaultHasher,
    arrivals: u64,
    open: BTreeMap<TicketId, Open>,
    /// Who said no lately though asked: the dispatcher leaves it alone for a moment.
    doubted: i64,
    running: BTreeMap<AccountId, u32>,
    /// Trials under way by permit, and when each began.
    on_trial: BTreeMap<AccountId, BTreeMap<u64, Time>>,
    /// Calls without an answer by permit, and when each was granted; less those that a breaker was put aside for.
    unanswered: BTreeMap<AccountId, BTreeMap<u64, Time>>,
    /// Who came in this very step.
    newcomers: Vec<TicketId>,
    /// Accounts that are well again, and have not been used since.
    recovering: BTreeMap<AccountId, i64>,
}

/// How long a session's patience and the dispatcher's doubt can keep a call from a free account, beyond the rules.
const SLACK: i64 = 25;

impl Books {
    pub fn note(&mut self, at: i64, event: &impl Debug) {
        self.steps += 1;
        self.newcomers.clear();
        // The kind of event and its time: what it carries hangs on both.
        let text = format!("{:?}", std::mem::discriminant(event));
        (at, text).hash(&mut self.trace);
    }

    pub fn trace(&self) -> u64 {
        self.trace.finish() ^ self.grants.rotate_left(32) ^ self.refusals
    }

    pub fn asks(&mut self, question: &Question, now: i64) {
        self.arrivals += 1;
        self.newcomers.push(question.ticket);
        let open = Open { question: question.clone(), arrived: self.arrivals, since: now, asking: false };
        self.open.insert(question.ticket, open);
        self.most_waiting = self.most_waiting.max(self.open.values().filter(|o| !o.asking).count());
    }

    /// The dispatcher sends this one to an account: nobody of its key and kind may have come before it.
    pub fn asked(&mut self, ticket: TicketId, now: i64) -> Result<(), Violation> {
        let Some(mine) = self.open.get_mut(&ticket) else {
            return Err(Violation::new("who left is forgotten", format!("{ticket:?} is asked for")));
        };
        mine.asking = true;
        let mine = &self.open[&ticket];
        let alike = |other: &&Open| {
            let (a, b) = (&mine.question, &other.question);
            let plain = a.session.is_none() && b.session.is_none();
            let same =
                (&a.key, a.call.model_name(), &a.scope, &a.tried) == (&b.key, b.call.model_name(), &b.scope, &b.tried);
            plain && same && !other.asking && other.arrived < mine.arrived && now > self.doubted + SLACK
        };
        match self.open.values().find(alike) {
            Some(older) => {
                let what = format!("{:?} was asked for before {:?}", ticket, older.question.ticket);
                Err(Violation::new("no newcomer overtakes", what))
            }
            None => Ok(()),
        }
    }

    /// A newcomer is sent to this account: nobody who waits, of whatever key, could have had it.
    pub fn nobody_is_passed_by(
        &self,
        ticket: TicketId,
        account: &Standing,
        rules: &Rules,
        now: Time,
    ) -> Result<(), Violation> {
        let millis = now.timestamp_millis();
        if !self.newcomers.contains(&ticket) || millis <= self.doubted + SLACK {
            return Ok(());
        }
        let waits = self.open.values().filter(|o| !o.asking && !self.newcomers.contains(&o.question.ticket));
        let passed = waits.map(|o| (o, &o.question)).find(|(open, q)| {
            let patient = q.session.is_some() && millis - open.since <= rules.patience.num_milliseconds() + SLACK;
            let fits = q.scope.admits(&account.record) && !q.tried.contains(&account.record.id);
            !patient && fits && account.glance(account.load(0, false), Want::of(&q.call), now).schedulable()
        });
        match passed {
            Some((_, q)) => {
                let what = format!("{ticket:?} was asked for at {} past {:?}", account.record.id, q.ticket);
                Err(Violation::new("no newcomer overtakes", what))
            }
            None => Ok(()),
        }
    }

    /// Somebody is sent away: there is no account that could take the call. To be asked when no message is under way.
    pub fn nobody_is_refused_in_vain(&self, ticket: TicketId, sites: &[&Standing], now: Time) -> Result<(), Violation> {
        let Some(open) = self.open.get(&ticket).filter(|_| now.timestamp_millis() > self.doubted + SLACK) else {
            return Ok(());
        };
        match could_take(&open.question, sites, now) {
            Some(free) => {
                let what = format!("{ticket:?} is refused while {} is free", free.record.id);
                Err(Violation::new("nobody is refused while an eligible slot is free", what))
            }
            None => Ok(()),
        }
    }

    pub fn busy(&mut self, ticket: TicketId, now: i64) {
        self.busy += 1;
        self.doubted = now;
        if let Some(open) = self.open.get_mut(&ticket) {
            open.asking = false;
        }
    }

    pub fn is_open(&self, ticket: TicketId) -> bool {
        self.open.contains_key(&ticket)
    }

    pub fn served(&mut self, ticket: TicketId) -> Result<(), Violation> {
        self.end(ticket)
    }

    pub fn refused(&mut self, ticket: TicketId) -> Result<(), Violation> {
        self.refusals += 1;
        self.end(ticket)
    }

    fn end(&mut self, ticket: TicketId) -> Result<(), Violation> {
        let ended = self.open.remove(&ticket);
        ended.map(drop).ok_or_else(|| Violation::new("every ticket ends once", format!("{ticket:?} has ended before")))
    }

    pub fn leave(&mut self, ticket: TicketId, _: i64) -> bool {
        let left = self.open.remove(&ticket).is_some();
        self.leavers += u64::from(left);
        left
    }

    /// The Scheduler is a new one: everybody asks again, in the order in which they came.
    pub fn asked_anew(&mut self, now: i64) -> Vec<Question> {
        let mut all: Vec<_> = self.open.values_mut().collect();
        all.sort_by_key(|o| o.arrived);
        self.doubted = now;
        all.into_iter()
            .map(|open| {
                (open.asking, open.since) = (false, now);
                open.question.clone()
            })
            .collect()
    }

    /// `half_open`: since when it is, and for how long a call that was let in since then keeps others away.
    pub fn granted(
        &mut self,
        permit: u64,
        id: &AccountId,
        limit: u32,
        (trial, half_open): (bool, Option<(Time, TimeDelta)>),
        now: Time,
    ) -> Result<(), Violation> {
        self.grants += 1;
        self.recovering.remove(id);
        let running = self.running.entry(id.clone()).or_default();
        *running += 1;
        if *running > limit {
            return Err(Violation::new("calls held ≤ limit", format!("{id} runs {running} over {limit}")));
        }
        if let Some((since, patience)) = half_open {
            // Whoever was let in since then was its trial, be that called so or not.
            let unanswered = self.unanswered.entry(id.clone()).or_default();
            if unanswered.values().any(|at| *at >= since && now - *at < patience) {
                return Err(Violation::new("at most one half-open probe", format!("{id} has {unanswered:?}")));
            }
            unanswered.insert(permit, now);
        }
        if trial {
            self.trials += 1;
            let patience = half_open.map_or(TimeDelta::zero(), |(_, patience)| patience);
            let trials = self.on_trial.entry(id.clone()).or_default();
            if trials.values().any(|began| now - *began < patience) {
                return Err(Violation::new("at most one half-open probe", format!("{id} has {trials:?}")));
            }
            trials.insert(permit, now);
        }
        Ok(())
    }

    pub fn tried(&mut self, _: &AccountId, good: bool, _: i64) {
        self.faults += u64::from(!good);
    }

    pub fn trial_over(&mut self, id: &AccountId, permit: u64) {
        if let Some(trials) = self.on_trial.get_mut(id) {
            trials.remove(&permit);
        }
    }

    pub fn answered(&mut self, id: &AccountId, permit: u64) {
        if let Some(unanswered) = self.unanswered.get_mut(id) {
            unanswered.remove(&permit);
        }
    }

    pub fn over(&mut self, id: &AccountId) {
        if let Some(running) = self.running.get_mut(id) {
            *running -= 1;
        }
    }

    /// Nothing waits past its deadline; the alarm may be a millisecond late.
    pub fn in_time(&self, now: i64) -> Result<(), Violation> {
        let late = |o: &&Open| !o.asking && o.question.deadline.timestamp_millis() + 2 < now;
        match self.open.values().find(late) {
            Some(late) => {
                let ticket = late.question.ticket;
                Err(Violation::new("nothing waits past its deadline", format!("{ticket:?} at {now}")))
            }
            None => Ok(()),
        }
    }

    /// To be asked when no message is under way.
    pub fn nobody_waits_in_vain(&self, sites: &[&Standing], rules: &Rules, now: Time) -> Result<(), Violation> {
        let millis = now.timestamp_millis();
        if millis <= self.doubted + SLACK {
            return Ok(());
        }
        let patience = rules.patience.num_milliseconds() + SLACK;
        let mut seen: Vec<&Question> = Vec::new();
        for open in self.open.values().filter(|o| !o.asking) {
            let q = &open.question;
            let patient = q.session.is_some() && millis - open.since <= patience;
            let known =
                |s: &&Question| (s.call.model_name(), &s.scope, &s.tried) == (q.call.model_name(), &q.scope, &q.tried);
            if patient || seen.iter().any(known) {
                continue;
            }
            seen.push(q);
            if let Some(free) = could_take(q, sites, now) {
                let what = format!("{:?} waits while {} is free", q.ticket, free.record.id);
                return Err(Violation::new("nobody waits while an eligible slot is free", what));
            }
        }
        Ok(())
    }

    /// A question like one that waits, for a look.
    pub fn sample(&self) -> Option<Question> {
        let open = self.open.values().find(|o| !o.asking)?;
        Some(Question { ticket: TicketId(u64::MAX), session: None, tried: Arc::default(), ..open.question.clone() })
    }

    /// Somebody is picked exactly when a verdict says that somebody may take it, and then it is one of those.
    pub fn explanation_is_true(&self, explained: &Explanation, question: &Question, now: i64) -> Result<(), Violation> {
        if now <= self.doubted + SLACK {
            return Ok(());
        }
        let wrong = |what: String| Err(Violation::new("the scheduler picks exactly when the verdict says so", what));
        let may: Vec<_> = explained.accounts.iter().filter(|a| a.verdict.schedulable).collect();
        match &explained.picked {
            Some(id) if may.iter().any(|a| a.standing.record.id == *id) => Ok(()),
            Some(id) => wrong(format!("{id} was picked for {:?}", question.call.model_name())),
            None if may.is_empty() || explained.why == Why::HomeFull => Ok(()),
            None => wrong(format!("{} was not picked", may[0].standing.record.id)),
        }
    }

    pub fn recovering(&mut self, ids: Vec<AccountId>, now: i64) {
        self.recovering = ids.into_iter().map(|id| (id, now)).collect();
    }

    /// The time in which every account that is well again should have been used is over.
    pub fn all_recovered(&self) -> Result<(), Violation> {
        match self.recovering.keys().next() {
            Some(id) => Err(Violation::new("a recovered account is used again", format!("{id} was not"))),
            None => Ok(()),
        }
    }

    pub fn all_ended(&self) -> Result<(), Violation> {
        match self.open.keys().next() {
            Some(ticket) => Err(Violation::new("every ticket ends once", format!("{ticket:?} never did"))),
            None => Ok(()),
        }
    }
}

/// An account that could take this call, now and a moment ago: an alarm may be a millisecond late.
fn could_take<'a>(q: &Question, sites: &[&'a Standing], now: Time) -> Option<&'a Standing> {
    sites.iter().copied().find(|s| {
        let fits = q.scope.admits(&s.record) && !q.tried.contains(&s.record.id);
        let free = |at| s.glance(s.load(0, false), Want::of(&q.call), at).schedulable();
        fits && free(now) && free(now - TimeDelta::milliseconds(2))
    })
}
