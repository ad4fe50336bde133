//! Scheduler: finds every call an account, or a place in the line. It carries out what [`Dispatch`] decides: asks
//! accounts, answers those who asked, and wakes itself when somebody's time is over.
//!
//! Its views are advice: only the Account grants. It asks the best candidate, and on `Busy` the next.

use super::account::{Account, AccountView, Acquire, Busy};
use super::permit::Permit;
use super::reply::{Left, Reply, TicketId};
use super::seats::Seats;
use super::watch::Watch;
use super::{Actors, Parts};
use crate::clock::Clock;
use crate::domain::dispatch::{Command, Dispatch, Explanation, Question};
use crate::domain::standing::PutAside;
use crate::domain::{AccountId, Call, Refusal, Time};
use actix::{
    Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, MailboxError, Message, MessageResult, SpawnHandle,
    WrapFuture,
};
use chrono::TimeDelta;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

pub use crate::domain::dispatch::Scope;

/// The actor.
pub struct Scheduler {
    dispatch: Dispatch,
    addrs: HashMap<AccountId, Addr<Account>>,
    replies: HashMap<TicketId, Reply<Result<Permit, Refusal>>>,
    asks: HashMap<TicketId, SpawnHandle>,
    alarm: Option<(Time, SpawnHandle)>,
    clock: Clock,
    draining: Arc<AtomicBool>,
    seats: Arc<Seats>,
    _watch: Watch,
}

/// Finds an account for one call.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Select {
    /// Which call, whose, and among which accounts.
    pub question: Question,
    /// Where the answer goes.
    pub reply: Reply<Result<Permit, Refusal>>,
}

/// What would become of a call now, and each account's verdict over it.
#[derive(Message)]
#[rtype(result = "Explanation")]
pub struct Explain(pub Question);

/// Every account as the Scheduler sees it, by id, and how many calls wait that it could take.
#[derive(Message)]
#[rtype(result = "Overview")]
pub struct Survey;

/// What [`Survey`] finds.
pub struct Overview {
    /// By id.
    pub accounts: Vec<AccountView>,
    /// Calls that wait.
    pub waiting: usize,
    /// Sessions whose home is remembered.
    pub sessions: usize,
    /// The breakers that are put aside, since too many accounts are ejected.
    pub aside: PutAside,
}

/// An account says how it is.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Reported(pub AccountView);

/// A slot of this account came back, and somebody may want it.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Freed {
    /// Whose.
    pub id: AccountId,
}

/// An account is gone, or its actor is dead.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Gone {
    /// Which.
    pub id: AccountId,
}

/// Nobody is let in any more: those who wait are told.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Close;

impl Scheduler {
    pub(super) fn new(parts: &Parts, actors: &Actors, watch: Watch) -> Self {
        let now = parts.clock.now();
        let mut new = Self {
            dispatch: Dispatch::new(parts.dispatch, now.timestamp_millis().unsigned_abs()),
            addrs: HashMap::new(),
            replies: HashMap::new(),
            asks: HashMap::new(),
            alarm: None,
            clock: parts.clock.clone(),
            draining: actors.draining.clone(),
            seats: actors.seats.clone(),
            _watch: watch,
        };
        actors.seats.views().into_iter().for_each(|view| new.put(view, now));
        new
    }

    fn put(&mut self, view: AccountView, now: Time) {
        self.addrs.insert(view.standing.record.id.clone(), view.addr);
        self.dispatch.put(view.standing, now);
    }

    /// Carries out what was decided, and sees to it that the next deadline is kept.
    fn act(&mut self, now: Time, ctx: &mut Context<Self>) {
        while let Some(command) = self.dispatch.command() {
            match command {
                Command::Ask { ticket, account, call, bounded } => match self.addrs.get(&account) {
                    Some(addr) => {
                        let ask = addr.send(Acquire { call, bounded }).into_actor(self);
                        let handle = ctx.spawn(ask.map(move |answer, actor, ctx| actor.answered(ticket, answer, ctx)));
                        self.asks.insert(ticket, handle);
                    }
                    None => self.dispatch.busy(ticket, now),
                },
                Command::Refuse { ticket, refusal } => {
                    if let Some(reply) = self.replies.remove(&ticket) {
                        reply.send(Err(refusal));
                    }
                }
            }
        }
        self.set_alarm(now, ctx);
    }

    fn answered(
        &mut self,
        ticket: TicketId,
        answer: Result<Result<Permit, Busy>, MailboxError>,
        ctx: &mut Context<Self>,
    ) {
        let now = self.clock.now();
        self.asks.remove(&ticket);
        match answer {
            Ok(Ok(permit)) => {
                self.dispatch.granted(ticket, now);
                if let Some(reply) = self.replies.remove(&ticket) {
                    reply.send(Ok(permit));
                }
            }
            // A dead mailbox is as good as busy: Roster is about to respawn it.
            Ok(Err(Busy(_))) | Err(_) => self.dispatch.busy(ticket, now),
        }
        self.act(now, ctx);
    }

    fn set_alarm(&mut self, now: Time, ctx: &mut Context<Self>) {
        let Some(due) = self.dispatch.due() else { return };
        if self.alarm.as_ref().is_some_and(|(at, _)| *at <= due) {
            return;
        }
        if let Some((_, handle)) = self.alarm.take() {
            ctx.cancel_future(handle);
        }
        // Not before: half a millisecond early would be a turn for nothing.
        let wait = (due - now).max(TimeDelta::zero()) + TimeDelta::milliseconds(1);
        let handle = ctx.run_later(wait.to_std().unwrap_or_default(), |actor, ctx| {
            actor.alarm = None;
            let now = actor.clock.now();
            actor.dispatch.tick(now);
            actor.act(now, ctx);
        });
        self.alarm = Some((due, handle));
    }
}

impl Actor for Scheduler {
    type Context = Context<Self>;
}

impl Handler<Select> for Scheduler {
    type Result = ();

    fn handle(&mut self, msg: Select, ctx: &mut Self::Context) {
        if self.draining.load(SeqCst) {
            return msg.reply.send(Err(Refusal::Draining));
        }
        let now = self.clock.now();
        self.replies.insert(msg.question.ticket, msg.reply);
        self.dispatch.ask(msg.question, now);
        self.act(now, ctx);
    }
}

impl Handler<Left> for Scheduler {
    type Result = ();

    /// The walk ends here; a grant that is already under way is dropped with it and gives its slot back.
    fn handle(&mut self, msg: Left, ctx: &mut Self::Context) {
        let now = self.clock.now();
        self.replies.remove(&msg.ticket);
        if let Some(handle) = self.asks.remove(&msg.ticket) {
            ctx.cancel_future(handle);
        }
        self.dispatch.left(msg.ticket, now);
        self.act(now, ctx);
    }
}

impl Handler<Reported> for Scheduler {
    type Result = ();

    fn handle(&mut self, msg: Reported, ctx: &mut Self::Context) {
        // The last words of one that was retired, or that has a successor, may come late.
        let id = &msg.0.standing.record.id;
        if self.seats.find(id).is_none_or(|addr| addr != msg.0.addr) {
            return;
        }
        let now = self.clock.now();
        self.put(msg.0, now);
        self.act(now, ctx);
    }
}

impl Handler<Freed> for Scheduler {
    type Result = ();

    fn handle(&mut self, msg: Freed, ctx: &mut Self::Context) {
        let now = self.clock.now();
        self.dispatch.freed(&msg.id, now);
        self.act(now, ctx);
    }
}

impl Handler<Gone> for Scheduler {
    type Result = ();

    fn handle(&mut self, msg: Gone, ctx: &mut Self::Context) {
        let now = self.clock.now();
        self.addrs.remove(&msg.id);
        self.dispatch.remove(&msg.id, now);
        self.act(now, ctx);
    }
}

impl Handler<Close> for Scheduler {
    type Result = ();

    fn handle(&mut self, _: Close, ctx: &mut Self::Context) {
        self.dispatch.refuse_all(&Refusal::Draining);
        self.act(self.clock.now(), ctx);
    }
}

impl Handler<Explain> for Scheduler {
    type Result = MessageResult<Explain>;

    fn handle(&mut self, msg: Explain, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.dispatch.explain(&msg.0, self.clock.now()))
    }
}

impl Handler<Survey> for Scheduler {
    type Result = MessageResult<Survey>;

    fn handle(&mut self, _: Survey, _: &mut Self::Context) -> Self::Result {
        let seen = self.dispatch.survey().into_iter().filter_map(|(standing, waiting)| {
            let addr = self.addrs.get(&standing.record.id)?.clone();
            Some(AccountView { standing, addr, waiting })
        });
        let mut accounts: Vec<_> = seen.collect();
        accounts.sort_by(|a, b| a.standing.record.id.cmp(&b.standing.record.id));
        let (waiting, sessions) = (self.dispatch.waiting(), self.dispatch.sessions());
        MessageResult(Overview { accounts, waiting, sessions, aside: self.dispatch.put_aside(self.clock.now()) })
    }
}

/// A question of somebody who has no key, for tests and tools that talk to the Scheduler itself.
pub fn question(ticket: TicketId, call: Arc<Call>, scope: Scope, tried: &[AccountId], deadline: Time) -> Question {
    let key = crate::domain::KeyId::new("-");
    Question { ticket, key, call, session: None, scope, tried: tried.into(), deadline }
}
