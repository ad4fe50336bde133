//! Roster: enlists, amends and retires accounts, and is their death watch.
//!
//! `actix::Supervisor` does not restart an actor that panicked, so Roster does: an Account's `Drop` tells
//! `Down`, and a fresh one is made from the store, after a back-off that grows with deaths in a row. Edits block
//! this actor while the store works, so that the store and the account see them in the same order.

use super::account::{Account, Amended, Describe, Retired, Surroundings};
use super::scheduler::Gone;
use super::seats::Seats;
use super::watch::Watch;
use super::{Actors, Parts};
use crate::domain::document::Document;
use crate::domain::{self, AccountId};
use crate::store::StoreError;
use actix::{
    Actor, ActorFutureExt, Addr, AsyncContext, AtomicResponse, Context, Handler, Message, ResponseFuture, WrapFuture,
};
use futures_util::future::join_all;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The first wait before a respawn; doubles with each death within a minute, up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The wait before the store is asked again for the accounts, when it could not say.
const READ_AGAIN: Duration = Duration::from_secs(1);
/// An account whose actor is back within this time is not taken out of the pool: nobody who waits for it is sent away.
const UNNOTICED: Duration = Duration::from_millis(100);
const FORGET_DEATHS: Duration = Duration::from_secs(60);

/// The actor.
pub struct Roster {
    parts: Arc<Parts>,
    seats: Arc<Seats>,
    surroundings: Surroundings,
    deaths: HashMap<AccountId, (u32, Instant)>,
    /// Edits so far: what was read of the store while one went on may be older than it.
    edits: u64,
    _watch: Watch,
}

/// Stores a new account and starts it.
#[derive(Message)]
#[rtype(result = "Result<Document, StoreError>")]
pub struct Enlist {
    /// Its record, `id` set.
    pub record: Document,
}

/// Changes an account's record.
#[derive(Message)]
#[rtype(result = "Result<Document, StoreError>")]
pub struct Amend {
    /// Whose.
    pub id: AccountId,
    /// The fields that change.
    pub patch: Document,
}

/// Removes an account; its running calls go on.
#[derive(Message)]
#[rtype(result = "Result<(), StoreError>")]
pub struct Retire {
    /// Which.
    pub id: AccountId,
}

/// An account's address.
#[derive(Message)]
#[rtype(result = "Option<Addr<Account>>")]
pub struct Find {
    /// Whose.
    pub id: AccountId,
}

/// An account's actor died.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Down {
    /// Which.
    pub id: AccountId,
    /// Whether by a panic.
    pub panicked: bool,
}

/// Answered once every stored account is enlisted and has reported.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Settle;

impl Roster {
    pub(super) fn new(parts: Arc<Parts>, actors: &Actors, watch: Watch) -> Self {
        let surroundings = Surroundings::new(&parts, actors);
        Self { parts, seats: actors.seats.clone(), surroundings, deaths: HashMap::new(), edits: 0, _watch: watch }
    }

    fn spawn(&self, record: domain::Account) -> Addr<Account> {
        let id = record.id.clone();
        let slots = self.seats.slots(&id, record.concurrency_limit);
        let addr = Account::new(Arc::new(record), slots, self.surroundings.clone()).start();
        self.seats.sit(&id, addr.clone());
        addr
    }

    fn take_off(&mut self, id: &AccountId) {
        self.deaths.remove(id);
        if let Some(addr) = self.seats.leave(id) {
            addr.do_send(Retired);
        }
        self.surroundings.scheduler.addr().do_send(Gone { id: id.clone() });
    }

    /// Makes what runs equal to what is stored: at start, and after a panic of an earlier Roster.
    fn reconcile(&mut self, stored: Vec<Document>) {
        let parsed = stored.iter().filter_map(|doc| match domain::Account::parse(doc) {
            Ok(account) => Some((account.id.clone(), account)),
            Err(error) => {
                tracing::error!(%error, id = ?doc.get("id"), "a stored account is left out");
                None
            }
        });
        let mut wanted: HashMap<AccountId, domain::Account> = parsed.collect();
        for (id, alive) in self.seats.roll() {
            match (wanted.contains_key(&id), alive) {
                // An edit may have been stored and not told: whoever lives is told what is stored.
                (true, true) => {
                    if let (Some(record), Some(addr)) = (wanted.remove(&id), self.seats.find(&id)) {
                        addr.do_send(Amended { record: Arc::new(record) });
                    }
                }
                (true, false) => {}
                (false, _) => self.take_off(&id),
            }
        }
        wanted.into_values().for_each(|account| drop(self.spawn(account)));
    }

    /// A store that fails may have done what was asked all the same: the record is read until it answers, and what
    /// runs is made equal to it.
    fn read_again(id: AccountId, ctx: &mut Context<Self>) {
        ctx.run_later(READ_AGAIN, move |actor, ctx| actor.respawn(id, ctx));
    }

    /// Reads one account and makes what runs equal to it: starts it, tells it, or ends it.
    fn respawn(&mut self, id: AccountId, ctx: &mut Context<Self>) {
        let (accounts, edits) = (self.parts.stores.accounts.clone(), self.edits);
        let load = async move { (accounts.load(&id).await, id) };
        ctx.spawn(load.into_actor(self).map(move |(loaded, id), actor, ctx| {
            if edits != actor.edits {
                return actor.respawn(id, ctx);
            }
            match loaded.and_then(|doc| Ok(domain::Account::parse(&doc)?)) {
                Ok(account) => match actor.seats.find(&id) {
                    Some(addr) => addr.do_send(Amended { record: Arc::new(account) }),
                    None => drop(actor.spawn(account)),
                },
                Err(StoreError::Missing(_)) => actor.take_off(&id),
                Err(error) => {
                    tracing::error!(%error, account = %id, "an account cannot be read; trying again");
                    if actor.seats.find(&id).is_none() {
                        actor.surroundings.scheduler.addr().do_send(Gone { id: id.clone() });
                    }
                    Self::read_again(id, ctx);
                }
            }
        }));
    }
}

impl Roster {
    fn enlist_stored(&mut self, ctx: &mut Context<Self>) {
        let accounts = self.parts.stores.accounts.clone();
        let list = async move { accounts.list().await }.into_actor(self).map(|listed, actor, ctx| match listed {
            Ok(stored) => actor.reconcile(stored),
            Err(error) => {
                tracing::error!(%error, "the stored accounts cannot be read; trying again");
                ctx.run_later(READ_AGAIN, Self::enlist_stored);
            }
        });
        // No message before the accounts are there: whoever asks would find an empty pool.
        ctx.wait(list);
    }
}

impl Actor for Roster {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.enlist_stored(ctx);
    }
}

impl Handler<Enlist> for Roster {
    type Result = AtomicResponse<Self, Result<Document, StoreError>>;

    fn handle(&mut self, msg: Enlist, _: &mut Self::Context) -> Self::Result {
        self.edits += 1;
        let (accounts, now) = (self.parts.stores.accounts.clone(), self.parts.clock.now());
        let id = msg.record.text("id").ok().flatten().and_then(|id| AccountId::parse(id).ok());
        let insert = async move { accounts.insert(msg.record, now).await }.into_actor(self);
        AtomicResponse::new(Box::pin(insert.then(|stored, actor, ctx| {
            if let (Err(StoreError::Engine(_)), Some(id)) = (&stored, id) {
                Self::read_again(id, ctx);
            }
            let started = stored.and_then(|doc| Ok((actor.spawn(domain::Account::parse(&doc)?), doc)));
            async move {
                let (addr, doc) = started?;
                // Its answer comes after its first report: whoever is told of the account can use it.
                let _ = addr.send(Describe).await;
                Ok(doc)
            }
            .into_actor(actor)
        })))
    }
}

impl Handler<Amend> for Roster {
    type Result = AtomicResponse<Self, Result<Document, StoreError>>;

    fn handle(&mut self, msg: Amend, _: &mut Self::Context) -> Self::Result {
        self.edits += 1;
        let (accounts, now) = (self.parts.stores.accounts.clone(), self.parts.clock.now());
        let Amend { id, patch } = msg;
        let write = async move { (accounts.patch(&id, patch, now).await, id) }.into_actor(self);
        AtomicResponse::new(Box::pin(write.then(move |(stored, id), actor, ctx| {
            match &stored {
                Err(StoreError::Missing(_)) => actor.take_off(&id),
                Err(StoreError::Engine(_)) => Self::read_again(id.clone(), ctx),
                _ => {}
            }
            let amended = stored.and_then(|doc| {
                let record = domain::Account::parse(&doc)?;
                let addr = actor.seats.find(&id).unwrap_or_else(|| actor.spawn(record.clone()));
                Ok((addr.send(Amended { record: Arc::new(record) }), doc))
            });
            async move {
                let (told, doc) = amended?;
                let _ = told.await;
                Ok(doc)
            }
            .into_actor(actor)
        })))
    }
}

impl Handler<Retire> for Roster {
    type Result = AtomicResponse<Self, Result<(), StoreError>>;

    fn handle(&mut self, msg: Retire, _: &mut Self::Context) -> Self::Result {
        self.edits += 1;
        let accounts = self.parts.stores.accounts.clone();
        let remove = async move { (accounts.remove(&msg.id).await, msg.id) }.into_actor(self);
        AtomicResponse::new(Box::pin(remove.map(|(removed, id), actor, ctx| {
            match &removed {
                // What the store does not have must not run here either.
                Ok(()) | Err(StoreError::Missing(_)) => actor.take_off(&id),
                Err(StoreError::Engine(_)) => Self::read_again(id, ctx),
                Err(_) => {}
            }
            removed
        })))
    }
}

impl Handler<Find> for Roster {
    type Result = Option<Addr<Account>>;

    fn handle(&mut self, msg: Find, _: &mut Self::Context) -> Self::Result {
        self.seats.find(&msg.id)
    }
}

impl Handler<Down> for Roster {
    type Result = ();

    fn handle(&mut self, msg: Down, ctx: &mut Self::Context) {
        if self.seats.find(&msg.id).is_some() {
            return;
        }
        self.seats.down(&msg.id);
        let (count, last) = self.deaths.get(&msg.id).copied().unwrap_or((0, Instant::now()));
        let count = if last.elapsed() > FORGET_DEATHS { 1 } else { count + 1 };
        self.deaths.insert(msg.id.clone(), (count, Instant::now()));
        let wait = FIRST_WAIT.saturating_mul(1 << (count - 1).min(20)).min(LONGEST_WAIT);
        if wait > UNNOTICED {
            self.surroundings.scheduler.addr().do_send(Gone { id: msg.id.clone() });
        }
        tracing::error!(account = %msg.id, panicked = msg.panicked, deaths = count, ?wait, "an account's actor died");
        ctx.run_later(wait, |actor, ctx| actor.respawn(msg.id, ctx));
    }
}

impl Handler<Settle> for Roster {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Settle, _: &mut Self::Context) -> Self::Result {
        let asked = self.seats.addresses().into_iter().map(|addr| addr.send(Describe));
        Box::pin(async move { drop(join_all(asked).await) })
    }
}
