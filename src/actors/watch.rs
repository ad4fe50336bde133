//! The root watcher: respawns Front, Scheduler, Roster and Ledger when one of them panics.
//!
//! An actor holds a [`Watch`], whose drop tells of its death. Three deaths of one role within a minute end the
//! process, for the init system to start it afresh: a fault that comes back at once is not mended by trying.

use super::{Actors, Front, Ledger, Live, Parts, Roster, Scheduler};
use actix::{Actor, Context};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Deaths of one role within [`WITHIN`] that end the process.
const TOO_MANY: usize = 3;
const WITHIN: Duration = Duration::from_secs(60);

/// Which of the four.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Front
    Front,
    /// Scheduler
    Scheduler,
    /// Roster
    Roster,
    /// Ledger
    Ledger,
}

impl Role {
    const ALL: [Role; 4] = [Self::Scheduler, Self::Roster, Self::Front, Self::Ledger];

    fn name(self) -> &'static str {
        match self {
            Self::Front => "front",
            Self::Scheduler => "scheduler",
            Self::Roster => "roster",
            Self::Ledger => "ledger",
        }
    }
}

/// Held by a watched actor; its drop is the actor's death.
pub struct Watch {
    role: Role,
    deaths: UnboundedSender<Role>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        // The receiver is gone when the whole system stops: nobody is left to tell.
        let _ = self.deaths.send(self.role);
    }
}

/// Starts the four and the task that watches them.
pub(super) fn start_all(parts: Arc<Parts>, actors: &Actors) {
    let (deaths, died) = unbounded_channel();
    for role in Role::ALL {
        spawn(role, &parts, actors, &deaths);
    }
    let actors = actors.clone();
    actors.arbiters[0].clone().spawn(async move { respawn_the_dead(parts, actors, deaths, died).await });
}

async fn respawn_the_dead(
    parts: Arc<Parts>,
    actors: Actors,
    deaths: UnboundedSender<Role>,
    mut died: UnboundedReceiver<Role>,
) {
    let mut recent: [VecDeque<Instant>; 4] = Default::default();
    while let Some(role) = died.recv().await {
        if actors.stopping.load(SeqCst) {
            return;
        }
        let list = &mut recent[role as usize];
        list.push_back(Instant::now());
        list.retain(|t| t.elapsed() < WITHIN);
        tracing::error!(role = role.name(), deaths = list.len(), "an actor died and is respawned");
        if list.len() >= TOO_MANY {
            (parts.on_fatal)(role.name());
        }
        spawn(role, &parts, &actors, &deaths);
    }
}

fn spawn(role: Role, parts: &Arc<Parts>, actors: &Actors, deaths: &UnboundedSender<Role>) {
    let watch = Watch { role, deaths: deaths.clone() };
    let [control, books] = &actors.arbiters;
    let (parts, all) = (parts.clone(), actors.clone());
    match role {
        Role::Front => put(&actors.front, control, move |_| Front::new(&parts, &all, watch)),
        Role::Scheduler => put(&actors.scheduler, control, move |_| Scheduler::new(&parts, &all, watch)),
        Role::Roster => put(&actors.roster, control, move |_| Roster::new(parts, &all, watch)),
        Role::Ledger => put(&actors.ledger, books, move |_| Ledger::new(&parts, watch)),
    }
}

fn put<A>(live: &Live<A>, arbiter: &actix::ArbiterHandle, make: impl FnOnce(&mut Context<A>) -> A + Send + 'static)
where
    A: Actor<Context = Context<A>>,
{
    live.set(A::start_in_arbiter(arbiter, make));
}
