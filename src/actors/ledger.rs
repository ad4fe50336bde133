//! Ledger: brings what the workers wrote into the journal into the store, in batches, on a thread of its own.
//!
//! It learns of calls from the journal alone, so that a call is booked the same way whether the relay lives or
//! was killed in between.

use super::Parts;
use super::watch::Watch;
use crate::store::journal::{JournalError, JournalHealth, Settler};
use actix::{Actor, ActorFutureExt, AsyncContext, Context, Handler, Message, ResponseFuture, WrapFuture};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// The actor.
pub struct Ledger {
    settler: Option<Arc<Mutex<Settler>>>,
    journal: Arc<JournalHealth>,
    /// Appended bytes at the last round that went well; nothing new means nothing to do.
    settled: Option<u64>,
    interval: Duration,
    _watch: Watch,
}

/// Settles everything the journal holds; what a call wrote before this was sent is in the store after it.
#[derive(Message)]
#[rtype(result = "Result<(), JournalError>")]
pub struct Flush;

impl Ledger {
    pub(super) fn new(parts: &Parts, watch: Watch) -> Self {
        let (settler, journal) = (parts.settler.clone(), parts.journal.clone());
        Self { settler, journal, settled: None, interval: parts.settle_interval, _watch: watch }
    }

    fn settle(&self) -> ResponseFuture<Result<(), JournalError>> {
        let settler = self.settler.clone();
        Box::pin(async move {
            match settler {
                Some(settler) => settler.lock().await.settle_all().await.map(drop),
                None => Ok(()),
            }
        })
    }
}

impl Actor for Ledger {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(self.interval, |actor, ctx| {
            let appended = actor.journal.appended();
            let free = actor.settler.as_ref().is_some_and(|s| s.try_lock().is_ok());
            // A round that is still under way is followed by another.
            if free && actor.settled != Some(appended) {
                let round = actor.settle().into_actor(actor);
                ctx.spawn(round.map(move |done, actor, _| match done {
                    Ok(()) => actor.settled = Some(appended),
                    Err(error) => tracing::error!(%error, "usage could not be settled; it stays in the journal"),
                }));
            }
        });
    }
}

impl Handler<Flush> for Ledger {
    type Result = ResponseFuture<Result<(), JournalError>>;

    fn handle(&mut self, _: Flush, _: &mut Self::Context) -> Self::Result {
        self.settle()
    }
}
