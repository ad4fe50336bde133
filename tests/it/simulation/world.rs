//! The simulated world: virtual time, a heap of events, accounts and clients. It plays the actors' shell (messages,
//! permits, alarms) around the production dispatcher, health and slots; a [`Mutant`] makes it play one part badly.

use super::Mutant;
use super::books::{Books, Violation};
use chrono::{DateTime, TimeDelta};
use claude_relay::domain::dispatch::{Command, Dispatch, Question, Rules, Scope};
use claude_relay::domain::document::Document;
use claude_relay::domain::health::{Asked, Attempted, Health, Policy};
use claude_relay::domain::line::Bounds;
use claude_relay::domain::slots::{Slots, Trial};
use claude_relay::domain::standing::Grant;
use claude_relay::domain::verdict::{Code, Want};
use claude_relay::domain::{
    Account, AccountId, Call, Endpoint, Family, Fault, KeyId, Limit, Outcome, Refusal, Session, Standing, TicketId,
    Time, Window,
};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Something that happens at a time.
#[derive(Debug)]
enum Event {
    Arrive,
    Asked { ticket: TicketId, account: AccountId, call: Arc<Call>, bounded: bool, of: u64 },
    Answered { ticket: TicketId, grant: Option<u64>, of: u64 },
    Head { permit: u64 },
    End { permit: u64 },
    Leave { ticket: TicketId },
    Freed { account: AccountId },
    Reported { standing: Box<Standing> },
    Gone { account: AccountId },
    Alarm,
    Turn { account: AccountId },
    Mischief,
}

/// What an upstream does to calls that reach it now.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Weather {
    Fair,
    Failing,
    Limited(Option<i64>),
    OpusLimited(i64),
    Overloaded,
    Silent,
    Cutting,
    Rejecting,
}

pub struct Site {
    pub standing: Standing,
    weather: Weather,
}

struct Permit {
    account: AccountId,
    grant: Option<Grant>,
    trial: bool,
    granted: Time,
    outcome: Option<Outcome>,
}

pub struct World {
    pub seed: u64,
    dice: u64,
    pub now: i64,
    heap: BTreeMap<(i64, u64), Event>,
    sequence: u64,
    /// Messages under way: nothing is settled while there are some.
    under_way: usize,
    last_mail: i64,
    /// Which Scheduler it is: answers to an earlier one's questions go nowhere.
    generation: u64,
    pub dispatch: Dispatch,
    pub rules: Rules,
    pub policy: Policy,
    pub sites: BTreeMap<AccountId, Site>,
    permits: BTreeMap<u64, Permit>,
    freed: Arc<Mutex<Vec<AccountId>>>,
    alarm: Option<i64>,
    mutant: Option<Mutant>,
    pub closing: bool,
    pub books: Books,
}

const START: i64 = 1_800_000_000_000;
const MODELS: [&str; 4] = ["claude-opus", "claude-sonnet", "listed-haiku", "whatever"];

impl World {
    pub fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut policy = Policy {
            slow_start: TimeDelta::seconds(10),
            longest: TimeDelta::seconds(8),
            trial: TimeDelta::milliseconds(500),
            ..Policy::default()
        };
        if mutant == Some(Mutant::EndlessCooldown) {
            (policy.rate_limited_first, policy.longest) = (TimeDelta::days(9), TimeDelta::days(9));
        }
        let rules = Rules {
            line: Bounds { per_key: 40, total: 100 },
            patience: TimeDelta::milliseconds(300),
            sessions: 50,
            session_ttl: TimeDelta::seconds(60),
            ejected: 50,
        };
        let mut world = Self {
            seed,
            dice: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            now: START,
            heap: BTreeMap::new(),
            sequence: 0,
            under_way: 0,
            last_mail: 0,
            generation: 0,
            dispatch: Dispatch::new(rules, seed),
            rules,
            policy,
            sites: BTreeMap::new(),
            permits: BTreeMap::new(),
            freed: Arc::default(),
            alarm: None,
            mutant,
            closing: false,
            books: Books::default(),
        };
        let sites = 2 + world.below(7);
        for n in 0..sites {
            world.enlist(&format!("a{n}"));
        }
        world.at(0, Event::Arrive);
        world.at(1, Event::Mischief);
        world
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        (self.dice >> 16) % n
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn time(&self) -> Time {
        DateTime::from_timestamp_millis(self.now).unwrap()
    }

    fn at(&mut self, delay: i64, event: Event) {
        self.sequence += 1;
        self.heap.insert((self.now + delay, self.sequence), event);
    }

    /// A message takes no time, mostly.
    fn tell(&mut self, event: Event) {
        self.under_way += 1;
        let delay = if self.chance(25) { 1 } else { 0 };
        // As in mailboxes, messages keep their order.
        self.last_mail = self.last_mail.max(self.now + delay);
        self.at(self.last_mail - self.now, event);
    }

    fn record(&mut self, id: &str) -> Arc<Account> {
        let models = match self.below(3) {
            0 => json!(["claude-opus", "listed-haiku"]),
            1 => json!(["claude-sonnet", "listed-haiku", "claude-opus"]),
            _ => json!(null),
        };
        let mut doc = Document::default();
        for (name, value) in [
            ("id", json!(id)),
            ("platform", json!("claude")),
            ("session_token", json!("t")),
            ("concurrencyLimit", json!(1 + self.below(4))),
            ("priority", json!(1 + self.below(2))),
            ("weight", json!(50 * (1 + self.below(3)))),
            ("group", if self.chance(50) { json!("g") } else { json!(null) }),
            ("models", models),
            ("status", json!(if !self.closing && self.chance(8) { "disabled" } else { "active" })),
        ] {
            if !value.is_null() {
                doc.set(name, value);
            }
        }
        Arc::new(Account::parse(&doc).unwrap())
    }

    fn enlist(&mut self, name: &str) {
        let id = AccountId::parse(name).unwrap();
        let record = self.record(name);
        let slots = self.slots(&id, record.concurrency_limit);
        let standing = Standing { record, health: Health::new(self.seed), slots };
        self.sites.insert(id.clone(), Site { standing, weather: Weather::Fair });
        self.report(&id);
        self.at(1, Event::Turn { account: id });
    }

    fn slots(&self, id: &AccountId, limit: u32) -> Arc<Slots> {
        let (freed, id) = (self.freed.clone(), id.clone());
        Slots::with_bell(limit, move || freed.lock().unwrap().push(id.clone()))
    }

    fn report(&mut self, id: &AccountId) {
        let standing = self.sites[id].standing.clone();
        standing.slots.vitals().set_well(standing.health.is_clear());
        if self.mutant == Some(Mutant::LostReport) && self.chance(30) {
            return;
        }
        self.tell(Event::Reported { standing: Box::new(standing) });
    }

    /// Runs one event; `false` when nothing is left to happen.
    pub fn step(&mut self) -> Result<bool, Violation> {
        let Some(((at, _), event)) = self.heap.pop_first() else { return Ok(false) };
        self.now = at;
        self.books.note(at, &event);
        self.happen(event)?;
        let freed = std::mem::take(&mut *self.freed.lock().unwrap());
        for account in freed {
            if self.mutant == Some(Mutant::DroppedFreed) && self.chance(5) {
                continue;
            }
            self.tell(Event::Freed { account });
        }
        self.act()?;
        self.books.in_time(self.now)?;
        if self.under_way == 0 && self.heap.first_key_value().is_none_or(|((next, _), _)| *next > self.now) {
            self.settled()?;
        }
        Ok(true)
    }

    fn settled(&mut self) -> Result<(), Violation> {
        if !self.books.steps.is_multiple_of(3) {
            return Ok(());
        }
        let now = self.time();
        let sites = self.sites.values().map(|s| &s.standing);
        self.books.nobody_waits_in_vain(sites.collect::<Vec<_>>().as_slice(), &self.rules, now)?;
        if self.books.steps.is_multiple_of(30)
            && let Some(question) = self.books.sample()
        {
            let explained = self.dispatch.explain(&question, now);
            self.books.explanation_is_true(&explained, &question, self.now)?;
        }
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Arrive => {
                let next = 1 + i64::try_from(self.below(30)).unwrap();
                if !self.closing || self.now < self.books.until {
                    self.at(next, Event::Arrive);
                    let crowd = if self.chance(3) { 30 } else { 1 };
                    (0..crowd).try_for_each(|_| self.arrive(crowd > 1, Arc::default()))?;
                }
            }
            Event::Asked { ticket, account, call, bounded, of } => {
                self.under_way -= 1;
                let grant = self.grant(&account, &call, bounded)?;
                self.tell(Event::Answered { ticket, grant, of });
            }
            Event::Answered { ticket, grant, of } => {
                self.under_way -= 1;
                match grant {
                    _ if of == self.generation => self.answered(ticket, grant)?,
                    Some(permit) => self.end(permit)?,
                    None => {}
                }
            }
            Event::Head { permit } => self.head(permit),
            Event::End { permit } => self.end(permit)?,
            Event::Leave { ticket } => {
                if self.books.leave(ticket, self.now) && self.mutant != Some(Mutant::ForgottenLeft) {
                    self.dispatch.left(ticket, self.time());
                }
            }
            Event::Freed { account } => {
                self.under_way -= 1;
                self.dispatch.freed(&account, self.time());
            }
            Event::Reported { standing } => {
                self.under_way -= 1;
                if self.sites.contains_key(&standing.record.id) {
                    self.dispatch.put(*standing, self.time());
                }
            }
            Event::Gone { account } => {
                self.under_way -= 1;
                self.dispatch.remove(&account, self.time());
            }
            // One that was put off in favour of a sooner one.
            Event::Alarm if self.alarm != Some(self.now) => {}
            Event::Alarm => {
                self.alarm = None;
                if self.mutant != Some(Mutant::DeafAlarm) {
                    self.dispatch.tick(self.time());
                }
            }
            Event::Turn { account } => self.turn(account),
            Event::Mischief => {
                if !self.closing {
                    let next = 200 + i64::try_from(self.below(2_000)).unwrap();
                    self.at(next, Event::Mischief);
                    self.mischief();
                }
            }
        }
        Ok(())
    }

    fn arrive(&mut self, heavy: bool, tried: Arc<[AccountId]>) -> Result<(), Violation> {
        self.sequence += 1;
        let ticket = TicketId(self.sequence);
        let body = json!({"model": MODELS[self.below(4) as usize]}).to_string();
        let call = Arc::new(Call::peek(Endpoint::Messages, body.as_bytes()).unwrap());
        let key = if heavy { "heavy".to_owned() } else { format!("k{}", self.below(5)) };
        let scope = match self.below(6) {
            0 => Scope::of([], [Arc::from("g")]),
            1 => Scope::only([AccountId::parse("a0").unwrap(), AccountId::parse("a1").unwrap()]),
            _ => Scope::All,
        };
        let session = self.chance(30).then(|| Session(self.below(30).wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        let wait = i64::try_from(self.below(6_000)).unwrap();
        let deadline = self.time() + TimeDelta::milliseconds(wait);
        let question = Question { ticket, key: KeyId::new(key), call, session, scope, tried, deadline };
        if self.chance(10) {
            let after = i64::try_from(self.below(800)).unwrap();
            self.at(after, Event::Leave { ticket });
        }
        if self.mutant == Some(Mutant::Barging) && self.chance(20) {
            let (want, now) = (Want::of(&question.call), self.time());
            let open = self.sites.iter().find(|(_, s)| s.standing.verdict(want, false, now).schedulable);
            if let Some(id) = open.map(|(id, _)| id.clone()).filter(|_| question.tried.is_empty()) {
                self.books.asks(&question, self.now);
                self.books.asked(ticket, self.now)?;
                let call = question.call.clone();
                let grant = self.grant(&id, &call, false)?;
                return self.answered(ticket, grant);
            }
        }
        self.books.asks(&question, self.now);
        self.dispatch.ask(question, self.time());
        Ok(())
    }

    fn grant(&mut self, id: &AccountId, call: &Call, bounded: bool) -> Result<Option<u64>, Violation> {
        let now = self.time();
        if self.mutant == Some(Mutant::LostAnswer) && self.chance(1) {
            return Ok(None);
        }
        let Some(site) = self.sites.get(id) else { return Ok(None) };
        let seen = site.standing.verdict(Want::of(call), false, now);
        let Ok(grant) = site.standing.grant(Want::of(call), bounded, now) else { return Ok(None) };
        let (limit, trial) = (site.standing.slots.limit(), grant.trial.is_some());
        // A trial that is not answered keeps others away for so long at least.
        let patience = self.policy.trial;
        self.sequence += 1;
        let permit = self.sequence;
        let half_open = seen.reasons.iter().filter(|r| r.code == Code::HalfOpen && !bounded).find_map(|r| r.since);
        self.books.granted(permit, id, limit, (trial, half_open.map(|since| (since, patience))), now)?;
        let mut grant = grant;
        if self.mutant == Some(Mutant::TwoTrials) {
            grant.trial = None;
        }
        let (account, outcome) = (id.clone(), None);
        self.permits.insert(permit, Permit { account, grant: Some(grant), trial, granted: now, outcome });
        Ok(Some(permit))
    }

    fn answered(&mut self, ticket: TicketId, grant: Option<u64>) -> Result<(), Violation> {
        let now = self.time();
        let Some(permit) = grant else {
            if self.mutant == Some(Mutant::LostAnswer) {
                return Ok(());
            }
            self.books.busy(ticket, self.now);
            self.dispatch.busy(ticket, now);
            return Ok(());
        };
        self.dispatch.granted(ticket, now);
        if self.books.is_open(ticket) {
            self.books.served(ticket)?;
            let account = self.permits[&permit].account.clone();
            let silent = self.sites.get(&account).is_some_and(|s| s.weather == Weather::Silent);
            let first = if silent { 900 } else { 1 + i64::try_from(self.below(60)).unwrap() };
            self.at(first, Event::Head { permit });
        } else {
            // Its asker left: the permit drops unanswered.
            self.end(permit)?;
        }
        Ok(())
    }

    /// The answer's head: the account learns what came of it.
    fn head(&mut self, number: u64) {
        let now = self.time();
        let Some(permit) = self.permits.get(&number) else { return };
        let (id, granted) = (permit.account.clone(), permit.granted);
        self.books.answered(&id, number);
        let weather = self.sites.get(&id).map_or(Weather::Fair, |s| s.weather);
        let luck = self.below(100);
        let until = |ms: i64| Some(now + TimeDelta::milliseconds(ms));
        let burst = |until: Option<Time>| Outcome::RateLimited { limit: Limit::Burst, until, header: None };
        let outcome = match weather {
            Weather::Failing if luck < 90 => Outcome::ServerFault { status: 500 },
            Weather::Limited(ms) => burst(ms.and_then(until)),
            Weather::OpusLimited(ms) => {
                let limit = Limit::Window { window: Window::SevenDay, family: Some(Family::Opus) };
                Outcome::RateLimited { limit, until: until(ms), header: None }
            }
            Weather::Overloaded if luck < 80 => Outcome::Overloaded { status: 529, until: None },
            Weather::Silent => Outcome::Failed { fault: Fault::FirstByteTimeout },
            Weather::Rejecting => Outcome::CredentialRejected { status: 401 },
            _ if luck < 2 => Outcome::Neutral { status: 400 },
            _ => Outcome::Answered { status: 200 },
        };
        let good = matches!(outcome, Outcome::Answered { .. });
        self.books.tried(&id, good, self.now);
        let permit = self.permits.get_mut(&number).unwrap();
        permit.outcome = Some(outcome.clone());
        let trial = permit.grant.as_mut().and_then(|g| g.trial.take());
        if std::mem::take(&mut permit.trial) {
            self.books.trial_over(&id, number);
        }
        if self.mutant == Some(Mutant::ReleasedAtHead) {
            permit.grant = None;
        }
        self.settle(&id, outcome, granted, trial);
        let rest = if good { i64::try_from(self.below(400)).unwrap() } else { 0 };
        self.at(rest, Event::End { permit: number });
    }

    fn settle(&mut self, id: &AccountId, outcome: Outcome, granted: Time, trial: Option<Trial>) {
        let (now, policy) = (self.time(), self.policy);
        let Some(site) = self.sites.get_mut(id) else { return };
        let vitals = site.standing.slots.vitals();
        if let Outcome::Success { status } = outcome {
            vitals.note_success(status, now, policy.breaker_window);
        }
        if matches!(outcome, Outcome::Answered { .. } | Outcome::Success { .. }) && vitals.is_well() {
            return;
        }
        let call =
            Attempted { asked: Asked::Message(None), granted, successes: vitals.successes(now, policy.breaker_window) };
        site.standing.health.after(outcome, call, now, &policy);
        drop(trial);
        self.report(id);
    }

    fn end(&mut self, number: u64) -> Result<(), Violation> {
        let Some(permit) = self.permits.remove(&number) else { return Ok(()) };
        if permit.trial {
            self.books.trial_over(&permit.account, number);
        }
        self.books.over(&permit.account);
        self.books.answered(&permit.account, number);
        if let Some(Outcome::Answered { status }) = permit.outcome {
            let cutting = self.sites.get(&permit.account).is_some_and(|s| s.weather == Weather::Cutting);
            let outcome = match self.chance(if cutting { 90 } else { 1 }) {
                true => Outcome::Failed { fault: Fault::Cut },
                false => Outcome::Success { status },
            };
            self.settle(&permit.account, outcome, permit.granted, None);
        }
        let Some(grant) = permit.grant else { return Ok(()) };
        if self.mutant == Some(Mutant::LeakedPermit) && self.chance(2) {
            std::mem::forget(grant);
            return Ok(());
        }
        if self.mutant == Some(Mutant::DoubleRelease) && self.chance(5) && grant.slot.of().in_use() > 1 {
            // The reference that the twin gives back is made up for, so that only the count is wrong.
            std::mem::forget(grant.slot.of().clone());
            // SAFETY: a slot is one reference, which was just added.
            drop(unsafe { std::ptr::read(&raw const grant.slot) });
        }
        drop(grant);
        // A fault of the account is tried again on another, now and then.
        let fault = permit.outcome.as_ref().is_some_and(Outcome::is_accounts_fault);
        if fault && !self.closing && self.chance(50) {
            self.arrive(false, Arc::from([permit.account]))?;
        }
        Ok(())
    }

    /// The upstream's weather changes.
    fn turn(&mut self, id: AccountId) {
        let span = i64::try_from(200 + self.below(9_000)).unwrap();
        let weather = match self.below(14) {
            0 => Weather::Failing,
            1 => Weather::Limited(None),
            2 => Weather::Limited(Some(span)),
            3 => Weather::OpusLimited(span),
            4 => Weather::Overloaded,
            5 => Weather::Silent,
            6 if self.chance(20) => Weather::Rejecting,
            7 => Weather::Cutting,
            _ => Weather::Fair,
        };
        let closing = self.closing;
        let Some(site) = self.sites.get_mut(&id) else { return };
        site.weather = if closing { Weather::Fair } else { weather };
        if !closing {
            self.at(span, Event::Turn { account: id });
        }
    }

    /// Operators and misfortune: edits, switches, resets, removals, panics, a new Scheduler.
    fn mischief(&mut self) {
        let ids: Vec<_> = self.sites.keys().cloned().collect();
        let id = ids[self.below(ids.len() as u64) as usize].clone();
        self.books.mischief += 1;
        match self.below(12) {
            0..=3 => self.amend(&id),
            4 | 5 => {
                let whole = self.chance(50);
                if let Some(Site { standing, .. }) = self.sites.get_mut(&id) {
                    if whole { standing.health.forget() } else { standing.health.forgive() }
                }
                self.report(&id);
            }
            6..=8 => self.panic(&id),
            9 if ids.len() < 10 => {
                let name = format!("a{}", self.sequence);
                self.enlist(&name);
            }
            10 if ids.len() > 2 => {
                self.sites.remove(&id);
                self.tell(Event::Gone { account: id });
            }
            _ => self.respawn(),
        }
    }

    fn amend(&mut self, id: &AccountId) {
        let record = self.record(id.as_str());
        let Some(site) = self.sites.get_mut(id) else { return };
        site.standing.slots.set_limit(record.concurrency_limit);
        site.standing.record = record;
        self.report(id);
    }

    /// The actor dies, and its successor starts with the slots and the last health.
    fn panic(&mut self, id: &AccountId) {
        self.tell(Event::Gone { account: id.clone() });
        let limit = self.sites[id].standing.record.concurrency_limit;
        if self.mutant == Some(Mutant::FreshSlots) {
            let slots = self.slots(id, limit);
            self.sites.get_mut(id).unwrap().standing.slots = slots;
        }
        let standing = Box::new(self.sites[id].standing.clone());
        self.tell(Event::Reported { standing });
    }

    /// The Scheduler dies: its successor starts from the standings, and every open question is asked once more.
    fn respawn(&mut self) {
        let now = self.time();
        self.dispatch = Dispatch::new(self.rules, self.seed ^ self.sequence);
        self.alarm = None;
        self.generation += 1;
        for site in self.sites.values() {
            self.dispatch.put(site.standing.clone(), now);
        }
        for question in self.books.asked_anew(self.now) {
            self.dispatch.ask(question, now);
        }
    }

    fn act(&mut self) -> Result<(), Violation> {
        // Nothing is under way that the dispatcher does not know of yet.
        let mut calm = self.under_way == 0;
        while let Some(command) = self.dispatch.command() {
            match command {
                Command::Ask { ticket, account, call, bounded } => {
                    self.books.asked(ticket, self.now)?;
                    if let Some(site) = self.sites.get(&account).filter(|_| calm) {
                        self.books.nobody_is_passed_by(ticket, &site.standing, &self.rules, self.time())?;
                    }
                    // What was given away in this very step is free no longer, though its account does not know yet.
                    calm = false;
                    let of = self.generation;
                    self.tell(Event::Asked { ticket, account, call, bounded, of });
                }
                Command::Refuse { ticket, refusal } => {
                    if calm && !matches!(refusal, Refusal::LineFull { .. }) {
                        let sites: Vec<_> = self.sites.values().map(|s| &s.standing).collect();
                        self.books.nobody_is_refused_in_vain(ticket, &sites, self.time())?;
                    }
                    self.books.refused(ticket)?;
                }
            }
        }
        if let Some(due) = self.dispatch.due().map(|due| due.timestamp_millis().max(self.now) + 1)
            && self.alarm.is_none_or(|at| at > due)
        {
            self.alarm = Some(due);
            self.at(due - self.now, Event::Alarm);
        }
        Ok(())
    }

    /// From now on all is well: every upstream serves, every account is enabled, clients keep coming for `span`.
    pub fn close(&mut self, span: i64) {
        self.closing = true;
        self.books.until = self.now + span;
        let ids: Vec<_> = self.sites.keys().cloned().collect();
        for id in &ids {
            self.sites.get_mut(id).unwrap().weather = Weather::Fair;
            self.amend(id);
            let site = self.sites.get_mut(id).unwrap();
            if site.standing.health.probe_at().is_some() {
                site.standing.health.forgive();
                self.report(id);
            }
        }
        self.books.recovering(ids, self.now);
    }

    /// Everything has come back.
    pub fn is_at_rest(&self) -> Result<(), Violation> {
        self.books.all_ended()?;
        for (id, site) in &self.sites {
            let slots = &site.standing.slots;
            if slots.in_use() != 0 || slots.on_trial().is_some() {
                return Err(Violation::new("each permit returned exactly once", format!("{id}: {slots:?} at rest")));
            }
        }
        match self.dispatch.waiting() {
            0 => Ok(()),
            n => Err(Violation::new("every ticket ends once", format!("{n} still wait"))),
        }
    }
}
