//! Accounts without actors: drives [`Dispatch`] as the Scheduler's actor does, with real slots and bells, on a clock
//! of its own. The benchmark of selection drives the same.

use claude_relay::domain::account::{AuthScheme, Models};
use claude_relay::domain::call::Model;
use claude_relay::domain::dispatch::{Command, Dispatch, Question, Rules, Scope};
use claude_relay::domain::health::{Asked, Attempted, Health, Policy};
use claude_relay::domain::slots::Slots;
use claude_relay::domain::standing::Grant;
use claude_relay::domain::verdict::Want;
use claude_relay::domain::{
    Account, AccountId, Call, Endpoint, Fault, KeyId, Outcome, Platform, ProbeKind, Refusal, Secret, Session, Standing,
    TicketId, Time,
};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

pub use chrono::TimeDelta;

/// The beginning, and so many milliseconds after it.
pub fn at(millis: i64) -> Time {
    chrono::DateTime::from_timestamp_millis(1_800_000_000_000 + millis).unwrap()
}

pub fn ms(millis: i64) -> TimeDelta {
    TimeDelta::milliseconds(millis)
}

pub fn id(text: &str) -> AccountId {
    AccountId::parse(text).unwrap()
}

/// An account that could take any call, if `edit` leaves it so.
pub fn account(name: &str, edit: impl FnOnce(&mut Account)) -> Account {
    let mut account = Account {
        id: id(name),
        name: name.to_owned(),
        platform: Platform::Anthropic,
        endpoint: None,
        session_token: None,
        access_token: None,
        api_key: Some(Secret::new("k")),
        auth_scheme: AuthScheme::Auto,
        active: true,
        draining: false,
        schedulable: true,
        concurrency_limit: 5,
        priority: 50,
        weight: 100,
        group: None,
        reserve: 0,
        probe: ProbeKind::None,
        headers: Vec::new(),
        models: Models::Any,
        expires_at: None,
    };
    edit(&mut account);
    account
}

/// These models and no others.
pub fn models<'a>(names: impl IntoIterator<Item = &'a str>) -> Models {
    Models::Map(names.into_iter().map(|name| (name.to_owned(), name.to_owned())).collect())
}

pub fn call(model: &str) -> Arc<Call> {
    let model = Some(Model { name: model.to_owned(), span: 0..0 });
    Arc::new(Call { model, ..Call::bodiless(Endpoint::Messages) })
}

pub fn groups<'a>(names: impl IntoIterator<Item = &'a str>) -> Scope {
    Scope::of([], names.into_iter().map(Arc::from))
}

/// Outcomes by what they do to an account of which nothing else is known.
pub const FAILED: Outcome = Outcome::Failed { fault: Fault::Closed };
pub const OK: Outcome = Outcome::Success { status: 200 };

pub struct Pool {
    pub dispatch: Dispatch,
    pub policy: Policy,
    pub now: Time,
    /// The truth, which its actors would keep.
    pub accounts: BTreeMap<AccountId, Standing>,
    pub held: BTreeMap<TicketId, (AccountId, Grant)>,
    /// Who was asked, in order; the next call of [`Pool::take`] has the rest.
    pub asked: Vec<(TicketId, AccountId, bool)>,
    pub refused: BTreeMap<TicketId, Refusal>,
    /// Answers are left open until [`Pool::answer`].
    pub slow: bool,
    pub pending: VecDeque<Command>,
    pub busy: usize,
    bells: Arc<Mutex<Vec<AccountId>>>,
    last: u64,
}

impl Pool {
    pub fn new(rules: Rules) -> Self {
        Self {
            dispatch: Dispatch::new(rules, 7),
            policy: Policy::default(),
            now: at(0),
            accounts: BTreeMap::new(),
            held: BTreeMap::new(),
            asked: Vec::new(),
            refused: BTreeMap::new(),
            slow: false,
            pending: VecDeque::new(),
            busy: 0,
            bells: Arc::default(),
            last: 0,
        }
    }

    /// Enlists an account, or edits its record.
    pub fn put(&mut self, record: Account) {
        let (id, bells) = (record.id.clone(), self.bells.clone());
        let limit = record.concurrency_limit;
        let bell = move |id: AccountId| move || bells.lock().unwrap().push(id.clone());
        let standing = self.accounts.entry(id.clone()).or_insert_with(|| Standing {
            record: Arc::new(record.clone()),
            health: Health::new(Session::of(&KeyId::new("account"), id.as_str()).0),
            slots: Slots::with_bell(limit, bell(id.clone())),
        });
        standing.slots.set_limit(limit);
        standing.record = Arc::new(record);
        self.report(&id);
    }

    pub fn retire(&mut self, name: &str) {
        self.accounts.remove(&id(name));
        self.dispatch.remove(&id(name), self.now);
        self.act();
    }

    /// A call that the account granted just now came to this.
    pub fn outcome(&mut self, name: &str, outcome: Outcome) {
        self.outcome_of(name, outcome, self.now);
    }

    pub fn outcome_of(&mut self, name: &str, outcome: Outcome, granted: Time) {
        let standing = self.accounts.get_mut(&id(name)).unwrap();
        let successes = standing.slots.vitals().successes(self.now, self.policy.breaker_window);
        standing.health.after(
            outcome,
            Attempted { asked: Asked::Message(None), granted, successes },
            self.now,
            &self.policy,
        );
        self.report(&id(name));
    }

    pub fn report(&mut self, id: &AccountId) {
        self.dispatch.put(self.accounts[id].clone(), self.now);
        self.act();
    }

    pub fn question(&mut self, model: &str, scope: Scope) -> Question {
        self.last += 1;
        let (ticket, key) = (TicketId(self.last), KeyId::new("k"));
        let deadline = self.now + TimeDelta::seconds(600);
        Question { ticket, key, call: call(model), session: None, scope, tried: Arc::default(), deadline }
    }

    pub fn ask(&mut self, question: Question) -> TicketId {
        let ticket = question.ticket;
        self.dispatch.ask(question, self.now);
        self.act();
        ticket
    }

    /// The call is over: its slot comes back.
    pub fn end(&mut self, ticket: TicketId) -> Option<AccountId> {
        let (account, grant) = self.held.remove(&ticket)?;
        drop(grant);
        self.ring();
        Some(account)
    }

    pub fn left(&mut self, ticket: TicketId) {
        self.dispatch.left(ticket, self.now);
        self.act();
    }

    pub fn pass(&mut self, time: TimeDelta) {
        let before = self.now;
        self.now += time;
        self.dispatch.tick(self.now);
        self.act();
        // An account tells when it expires; what else ends with time the dispatcher knows from its health.
        let now = self.now;
        let expired = |s: &&Standing| s.record.expires_at.is_some_and(|end| before < end && end <= now);
        let expired: Vec<_> = self.accounts.values().filter(expired).map(|s| s.record.id.clone()).collect();
        expired.iter().for_each(|id| self.report(id));
    }

    /// Slots that came back are told of.
    pub fn ring(&mut self) {
        loop {
            let rung = std::mem::take(&mut *self.bells.lock().unwrap());
            if rung.is_empty() {
                return;
            }
            for id in rung {
                self.dispatch.freed(&id, self.now);
                self.act();
            }
        }
    }

    fn act(&mut self) {
        while let Some(command) = self.dispatch.command() {
            match command {
                Command::Ask { ticket, ref account, bounded, .. } => {
                    self.asked.push((ticket, account.clone(), bounded));
                    self.pending.push_back(command);
                    if !self.slow {
                        self.answer();
                    }
                }
                Command::Refuse { ticket, refusal } => _ = self.refused.insert(ticket, refusal),
            }
        }
    }

    /// The account that was asked first of those who did not answer yet answers.
    pub fn answer(&mut self) -> bool {
        let Some(Command::Ask { ticket, account, call, bounded }) = self.pending.pop_front() else { return false };
        let grant = self.accounts.get(&account).map(|s| s.grant(Want::of(&call), bounded, self.now));
        match grant {
            Some(Ok(grant)) => {
                self.held.insert(ticket, (account, grant));
                self.dispatch.granted(ticket, self.now);
            }
            Some(Err(_)) | None => {
                self.busy += 1;
                self.dispatch.busy(ticket, self.now);
            }
        }
        self.act();
        true
    }
}
