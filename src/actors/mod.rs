//! The actors, as a library: start them with [`start`], talk to them with the messages in their modules.
//!
//! | actor | asked | told |
//! | --- | --- | --- |
//! | [`Front`] | [`front::Drain`] | [`front::Route`], [`reply::Left`] |
//! | [`Scheduler`] | [`scheduler::Explain`], [`scheduler::Survey`] | [`scheduler::Select`], [`reply::Left`], [`scheduler::Reported`], [`scheduler::Freed`], [`scheduler::Gone`], [`scheduler::Close`] |
//! | [`Account`] | [`account::Acquire`], [`account::Probe`], [`account::Describe`] | [`account::Settled`], [`account::Amended`], [`account::Reset`] |
//! | [`Roster`] | [`roster::Enlist`], [`roster::Amend`], [`roster::Retire`], [`roster::Find`] | [`roster::Down`] |
//! | [`Ledger`] | [`ledger::Flush`] | |
//!
//! Front, Scheduler, Roster and every Account live on one control thread, so that the hops of a request among
//! them cross no thread; Ledger has a thread of its own. `actix::Supervisor` does not restart an actor that
//! panicked, so Roster watches accounts and [`watch`] the other four; addresses stand behind [`Live`], which
//! a respawn exchanges.

pub mod account;
pub mod front;
pub mod keys;
pub mod ledger;
pub mod permit;
pub mod reply;
pub mod roster;
pub mod scheduler;
pub mod seats;
pub mod watch;

pub use crate::domain::slots::Slots;
pub use account::Account;
pub use front::{Admission, Front};
pub use keys::{KeyEntry, KeyRing};
pub use ledger::Ledger;
pub use permit::{Pass, Permit};
pub use roster::Roster;
pub use scheduler::Scheduler;

use crate::clock::Clock;
use crate::domain::dispatch::Rules;
use crate::domain::health::Policy;
use crate::domain::retry::RetryBudget;
use crate::domain::{AccountId, Call, ProbeKind, ProbeReport, Refusal};
use crate::platform::Plan;
use crate::store::Stores;
use crate::store::journal::{JournalHealth, Settler};
use actix::{Actor, Addr, Arbiter, ArbiterHandle};
use arc_swap::ArcSwapOption;
use chrono::TimeDelta;
use futures_util::future::LocalBoxFuture;
use reply::{Reply, Ticket, TicketCounter};
use scheduler::Scope;
use seats::Seats;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Sends one small request of a kind, for a model, through a plan and says what came back; given from outside, so that the actors
/// know no socket. Runs on the control thread.
pub type ProbeFn = Arc<dyn Fn(Arc<Plan>, ProbeKind, String) -> LocalBoxFuture<'static, ProbeReport> + Send + Sync>;

/// The address of an actor that may be respawned: read it anew for every message.
pub struct Live<A: Actor>(Arc<ArcSwapOption<Addr<A>>>);

impl<A: Actor> Live<A> {
    fn empty() -> Self {
        Self(Arc::new(ArcSwapOption::empty()))
    }

    fn set(&self, addr: Addr<A>) {
        self.0.store(Some(Arc::new(addr)));
    }

    /// The address as of now.
    ///
    /// # Panics
    /// Before [`start`] has started the actor, which no caller can see.
    pub fn addr(&self) -> Addr<A> {
        Addr::clone(self.0.load().as_ref().expect("set before anything is sent"))
    }
}

impl<A: Actor> Clone for Live<A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// What the actors need from outside.
pub struct Parts {
    /// Where records and usage are kept.
    pub stores: Stores,
    /// What brings the workers' journal into the store; `None` in tests without a journal.
    pub settler: Option<Arc<tokio::sync::Mutex<Settler>>>,
    /// Tells whether the workers have written anything.
    pub journal: Arc<JournalHealth>,
    /// How often the journal is looked at.
    pub settle_interval: Duration,
    /// The clock.
    pub clock: Clock,
    /// Cooldowns and the circuit breaker.
    pub policy: Policy,
    /// Waiting and sessions.
    pub dispatch: Rules,
    /// How long a call may wait for an account.
    pub wait: TimeDelta,
    /// How many calls may be tried again.
    pub retries: RetryBudget,
    /// How to probe an account.
    pub probe: ProbeFn,
    /// The model a probe asks for unless told.
    pub probe_model: String,
    /// Called with the role of an actor that died three times within a minute: the process should end.
    pub on_fatal: Arc<dyn Fn(&'static str) + Send + Sync>,
}

/// The running actors.
#[derive(Clone)]
pub struct Actors {
    /// Admission.
    pub front: Live<Front>,
    /// Selection.
    pub scheduler: Live<Scheduler>,
    /// Accounts' supervisor.
    pub roster: Live<Roster>,
    /// Usage.
    pub ledger: Live<Ledger>,
    /// Keys.
    pub keys: Arc<KeyRing>,
    /// Every enlisted account's slots and view.
    pub seats: Arc<Seats>,
    /// Tickets.
    pub tickets: Arc<TicketCounter>,
    clock: Clock,
    wait: TimeDelta,
    arbiters: [ArbiterHandle; 2],
    draining: Arc<AtomicBool>,
    stopping: Arc<AtomicBool>,
}

/// Starts the actors and enlists every stored account.
///
/// # Errors
/// When the store cannot be read.
pub async fn start(parts: Parts) -> Result<Actors, crate::store::StoreError> {
    let keys = KeyRing::load(parts.stores.keys.clone()).await?;
    // Roster retries what it cannot read; at start that is an error.
    parts.stores.accounts.list().await?;
    let (control, books) = (Arbiter::new(), Arbiter::new());
    let (scheduler, wait) = (Live::empty(), parts.wait);
    let actors = Actors {
        front: Live::empty(),
        seats: Arc::new(Seats::new(scheduler.clone())),
        scheduler,
        clock: parts.clock.clone(),
        wait,
        roster: Live::empty(),
        ledger: Live::empty(),
        keys,
        tickets: Arc::default(),
        arbiters: [control.handle(), books.handle()],
        draining: Arc::default(),
        stopping: Arc::default(),
    };
    watch::start_all(Arc::new(parts), &actors);
    // Roster enlists in `started`; a round trip through its mailbox proves that it has.
    let _ = actors.roster.addr().send(roster::Settle).await;
    Ok(actors)
}

/// What is held now; all zero when nothing runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outstanding {
    /// Slots of accounts.
    pub permits: u32,
    /// Slots of keys.
    pub passes: u32,
    /// Questions that wait.
    pub tickets: usize,
}

impl Actors {
    /// Asks Front for admission, as the HTTP workers do. Dropping the future leaves the line.
    ///
    /// # Errors
    /// The refusal to answer with.
    pub async fn route(
        &self,
        key: Arc<KeyEntry>,
        call: Arc<Call>,
        tried: Arc<[AccountId]>,
        mut pass: Option<Pass>,
    ) -> Result<Admission, Refusal> {
        // A call that holds a pass has been let in, and sent, before.
        let again = pass.is_some();
        // A reply dropped unanswered means that Front or Scheduler died with it: its successor is asked once.
        for _ in 0..2 {
            let ticket = Ticket::new(&self.front, &self.tickets);
            let (reply, answer) = Reply::channel();
            let (key, call, tried, pass) = (key.clone(), call.clone(), tried.clone(), pass.take());
            self.front.addr().do_send(front::Route { ticket: ticket.id(), key, call, tried, again, pass, reply });
            if let Ok(answer) = answer.await {
                ticket.answered();
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(Refusal::Internal)
    }

    /// Asks the Scheduler for a permit, as Front does. Dropping the future leaves the line.
    ///
    /// # Errors
    /// The refusal to answer with.
    pub async fn select(&self, call: Arc<Call>, scope: Scope, tried: &[AccountId]) -> Result<Permit, Refusal> {
        let ticket = Ticket::new(&self.front, &self.tickets);
        let (reply, answer) = Reply::channel();
        let deadline = call.deadline.unwrap_or(self.clock.now() + self.wait);
        let question = scheduler::question(ticket.id(), call, scope, tried, deadline);
        self.scheduler.addr().do_send(scheduler::Select { question, reply });
        let answer = answer.await;
        ticket.answered();
        answer.unwrap_or(Err(Refusal::Internal))
    }

    /// Front lets nobody in any more.
    pub fn is_draining(&self) -> bool {
        self.draining.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// What is held now.
    pub fn outstanding(&self) -> Outstanding {
        Outstanding {
            permits: self.seats.in_use(),
            passes: self.keys.entries().iter().map(|e| e.slots().in_use()).sum(),
            tickets: self.tickets.outstanding(),
        }
    }

    /// Ends the actors' threads; nothing is answered any more.
    pub fn stop(&self) {
        self.stopping.store(true, std::sync::atomic::Ordering::SeqCst);
        for arbiter in &self.arbiters {
            arbiter.stop();
        }
    }
}
