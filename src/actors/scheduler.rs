//! Scheduler: keeps a view of every account and finds one that takes a call.
//!
//! In a large pool of equals it looks at a few instead of all. Its views are advice: only the Account grants. It asks the best candidate, and on `Busy` walks on to the
//! next, each account at most once. In this form a call that finds nobody is refused at once.

use super::account::{Account, AccountView, Acquire, Busy};
use super::permit::Permit;
use super::reply::{Left, Reply, TicketId};
use super::watch::Watch;
use super::{Actors, Parts};
use crate::clock::Clock;
use crate::domain::selection::{self, Candidate};
use crate::domain::verdict::{Code, Verdict, glance};
use crate::domain::{AccountId, Call, Refusal, Time};
use actix::{
    Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, MailboxError, Message, SpawnHandle, WrapFuture,
};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The actor.
pub struct Scheduler {
    entries: Vec<Entry>,
    index: HashMap<AccountId, usize>,
    /// How many entries have each priority.
    priorities: BTreeMap<i64, usize>,
    dice: Dice,
    pending: HashMap<TicketId, (SpawnHandle, AccountId)>,
    clock: Clock,
    _watch: Watch,
}

struct Entry {
    view: AccountView,
    picks: u64,
    /// Asked, and not answered yet: counted as load, or calls that arrive together would all see the same free one.
    asked: u32,
}

/// A pool of so many accounts is looked at whole for every call; a larger one is sampled.
const SCANNED: usize = 64;

/// Accounts looked at in a large pool: with 8, half of the pool may be out and one call in 256 costs a whole look.
const SAMPLE: usize = 8;

/// A generator for sampling (xorshift64*): fast, and the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) as usize;
        high % n
    }
}

impl Entry {
    /// This account as a candidate, if it may take the call.
    fn candidate(&self, call: &Call, tried: &[AccountId], now: Time) -> Option<Candidate<'_>> {
        let AccountView { account, health, slots, .. } = &self.view;
        let in_use = slots.in_use();
        let seen = glance(account, health, in_use, Some(call), now);
        (seen.schedulable() && !tried.contains(&account.id)).then(|| Candidate {
            id: &account.id,
            priority: account.priority,
            weight: account.weight,
            in_use: in_use + self.asked,
            limit: account.concurrency_limit,
            picks: self.picks,
            last_resort: seen.last_resort(),
        })
    }
}

/// Which accounts may be considered.
#[derive(Debug, Clone)]
pub enum Scope {
    /// Every one.
    All,
    /// These and no others, even if none of them can.
    Only(Arc<[AccountId]>),
}

/// Finds an account for one call.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Select {
    /// The caller's place in the line.
    pub ticket: TicketId,
    /// Which call.
    pub call: Arc<Call>,
    /// Among which accounts.
    pub scope: Scope,
    /// But not these.
    pub tried: Vec<AccountId>,
    /// Where the answer goes.
    pub reply: Reply<Result<Permit, Refusal>>,
}

/// Each account's verdict over a call, now.
#[derive(Message)]
#[rtype(result = "Vec<(AccountId, Verdict)>")]
pub struct Explain {
    /// Which call.
    pub call: Arc<Call>,
    /// Among which accounts.
    pub scope: Scope,
}

/// Every view, by id.
#[derive(Message)]
#[rtype(result = "Vec<AccountView>")]
pub struct Survey;

/// An account says how it is.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Reported(pub AccountView);

/// An account is gone, or its actor is dead.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Gone {
    /// Which.
    pub id: AccountId,
}

impl Scheduler {
    pub(super) fn new(parts: &Parts, actors: &Actors, watch: Watch) -> Self {
        let mut new = Self {
            entries: Vec::new(),
            index: HashMap::new(),
            priorities: BTreeMap::new(),
            dice: Dice(0x9E37_79B9_7F4A_7C15),
            pending: HashMap::new(),
            clock: parts.clock.clone(),
            _watch: watch,
        };
        actors.seats.views().into_iter().for_each(|view| new.put(view));
        new
    }

    fn put(&mut self, view: AccountView) {
        if let Some(&at) = self.index.get(&view.account.id) {
            self.uncount(self.entries[at].view.account.priority);
        }
        *self.priorities.entry(view.account.priority).or_default() += 1;
        match self.index.get(&view.account.id) {
            Some(&at) => self.entries[at].view = view,
            None => {
                self.index.insert(view.account.id.clone(), self.entries.len());
                // A newcomer starts level with the others, or it would get every call until it had caught up.
                let picks = self.entries.iter().map(|e| e.picks).min().unwrap_or_default();
                self.entries.push(Entry { view, picks, asked: 0 });
            }
        }
    }

    fn uncount(&mut self, priority: i64) {
        if let Some(count) = self.priorities.get_mut(&priority) {
            *count -= 1;
            if *count == 0 {
                self.priorities.remove(&priority);
            }
        }
    }

    fn in_scope<'a>(&'a self, scope: &'a Scope) -> Box<dyn Iterator<Item = &'a Entry> + 'a> {
        match scope {
            Scope::All => Box::new(self.entries.iter()),
            Scope::Only(ids) => Box::new(ids.iter().filter_map(|id| self.index.get(id)).map(|&at| &self.entries[at])),
        }
    }

    /// The best account that has not been tried, or `None`.
    fn pick(
        &mut self,
        call: &Call,
        scope: &Scope,
        tried: &[AccountId],
        now: Time,
    ) -> Option<(AccountId, Addr<Account>)> {
        let sampled = self.sample(scope, call, tried, now);
        let at = match sampled {
            Some(at) => at,
            None => {
                let candidates = self.in_scope(scope).filter_map(|entry| entry.candidate(call, tried, now));
                *self.index.get(selection::best(candidates)?.id)?
            }
        };
        let entry = &mut self.entries[at];
        entry.picks += 1;
        entry.asked += 1;
        Some((entry.view.account.id.clone(), entry.view.addr.clone()))
    }

    /// The best of a few in a large pool of equals, or `None` if the whole must be looked at: so that a choice does
    /// not cost more the more accounts there are.
    fn sample(&mut self, scope: &Scope, call: &Call, tried: &[AccountId], now: Time) -> Option<usize> {
        let n = self.entries.len();
        if matches!(scope, Scope::Only(_)) || n <= SCANNED || self.priorities.len() > 1 {
            return None;
        }
        let drawn: [usize; SAMPLE] = std::array::from_fn(|_| self.dice.below(n));
        let candidates = drawn.iter().filter_map(|&at| self.entries[at].candidate(call, tried, now));
        let best = selection::best(candidates.filter(|c| !c.last_resort))?;
        self.index.get(best.id).copied()
    }

    fn walk(&mut self, job: Select, now: Time, ctx: &mut Context<Self>) {
        let Some((id, addr)) = self.pick(&job.call, &job.scope, &job.tried, now) else {
            let refusal = self.refusal(&job, now);
            return job.reply.send(Err(refusal));
        };
        let (ticket, asked) = (job.ticket, id.clone());
        let ask = addr.send(Acquire { call: job.call.clone() }).into_actor(self);
        let next = ask.map(move |answer, actor, ctx| actor.answered(answer, asked, job, now, ctx));
        let handle = ctx.spawn(next);
        self.pending.insert(ticket, (handle, id));
    }

    fn answered(
        &mut self,
        answer: Result<Result<Permit, Busy>, MailboxError>,
        id: AccountId,
        mut job: Select,
        now: Time,
        ctx: &mut Context<Self>,
    ) {
        self.no_longer_asked(job.ticket);
        match answer {
            Ok(Ok(permit)) => job.reply.send(Ok(permit)),
            // A dead mailbox is as good as busy: Roster is about to respawn it.
            Ok(Err(Busy(_))) | Err(_) => {
                job.tried.push(id);
                self.walk(job, now, ctx);
            }
        }
    }

    fn no_longer_asked(&mut self, ticket: TicketId) -> Option<SpawnHandle> {
        let (handle, id) = self.pending.remove(&ticket)?;
        if let Some(&at) = self.index.get(&id) {
            self.entries[at].asked = self.entries[at].asked.saturating_sub(1);
        }
        Some(handle)
    }

    fn refusal(&self, job: &Select, now: Time) -> Refusal {
        let mut counts: BTreeMap<Code, usize> = BTreeMap::new();
        let mut until = None::<Time>;
        for entry in self.in_scope(&job.scope) {
            let AccountView { account, health, slots, .. } = &entry.view;
            let seen = glance(account, health, slots.in_use(), Some(&job.call), now);
            // An account that looks free by now was full when it was asked.
            *counts.entry(seen.first.unwrap_or(Code::AtCapacity)).or_default() += 1;
            until = [until, seen.end].into_iter().flatten().min();
        }
        let mut parts: Vec<_> = counts.iter().map(|(code, n)| format!("{n} {}", code.name())).collect();
        if parts.is_empty() {
            parts.push(match &job.scope {
                Scope::All => "none is enlisted".to_owned(),
                Scope::Only(_) => "none of those this key is bound to is enlisted".to_owned(),
            });
        }
        let common = counts.keys().next().copied().filter(|_| counts.len() == 1);
        let transient = counts.keys().any(|code| code.passes_by_itself());
        Refusal::NoAccount { common, summary: parts.join(", "), until, transient }
    }
}

impl Actor for Scheduler {
    type Context = Context<Self>;
}

impl Handler<Select> for Scheduler {
    type Result = ();

    fn handle(&mut self, msg: Select, ctx: &mut Self::Context) {
        let now = self.clock.now();
        self.walk(msg, now, ctx);
    }
}

impl Handler<Left> for Scheduler {
    type Result = ();

    /// The walk ends here; a grant that is already under way is dropped with it and gives its slot back.
    fn handle(&mut self, msg: Left, ctx: &mut Self::Context) {
        if let Some(handle) = self.no_longer_asked(msg.ticket) {
            ctx.cancel_future(handle);
        }
    }
}

impl Handler<Reported> for Scheduler {
    type Result = ();

    fn handle(&mut self, msg: Reported, _: &mut Self::Context) {
        self.put(msg.0);
    }
}

impl Handler<Gone> for Scheduler {
    type Result = ();

    fn handle(&mut self, msg: Gone, _: &mut Self::Context) {
        let Some(at) = self.index.remove(&msg.id) else { return };
        let gone = self.entries.swap_remove(at);
        self.uncount(gone.view.account.priority);
        if let Some(moved) = self.entries.get(at) {
            self.index.insert(moved.view.account.id.clone(), at);
        }
    }
}

impl Handler<Explain> for Scheduler {
    type Result = Vec<(AccountId, Verdict)>;

    fn handle(&mut self, msg: Explain, _: &mut Self::Context) -> Self::Result {
        let now = self.clock.now();
        let said = self.in_scope(&msg.scope).map(|e| (e.view.account.id.clone(), e.view.verdict(Some(&msg.call), now)));
        said.collect()
    }
}

impl Handler<Survey> for Scheduler {
    type Result = Vec<AccountView>;

    fn handle(&mut self, _: Survey, _: &mut Self::Context) -> Self::Result {
        let mut views: Vec<_> = self.entries.iter().map(|e| e.view.clone()).collect();
        views.sort_by(|a, b| a.account.id.cmp(&b.account.id));
        views
    }
}
