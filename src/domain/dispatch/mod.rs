//! Who gets which account, as a pure machine: the Scheduler's actor feeds it what happens and carries out its
//! [`Command`]s; the simulation in the tests drives the very same code on a clock of its own.
//!
//! It never grants: it asks the best candidate, and the account answers. A call that finds every account busy waits
//! in the [`Line`]. One invariant holds after every event: nobody waits who could be served.

mod class;
mod entry;
mod explain;
mod group;
mod homes;
mod look;
mod question;
mod records;
mod refusing;
mod rest;
mod scope;
mod settle;
mod waiting;

pub use explain::{Explained, Explanation, Why};
pub use question::{Command, Question, Rules};
pub use scope::{Binding, Scope};

use super::affinity::Affinity;
use super::line::{Line, Served, TicketId};
use super::standing::Standing;
use super::window::Family;
use super::{AccountId, KeyId, Refusal, Time};
use chrono::TimeDelta;
use class::{Class, ClassKey, Wanted};
use entry::Entry;
use group::Group;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

struct Open {
    question: Question,
    arrived: u64,
    state: State,
}

enum State {
    Asked { account: AccountId, served: Option<Served<KeyId, Group>> },
    Waiting { due: Time },
}

/// How long an account that said no unexpectedly is left alone.
const DOUBT: TimeDelta = TimeDelta::milliseconds(20);

/// Classes are made as they are asked for; at so many all are made anew.
const MOST_CLASSES: usize = 65_536;

/// A class that has missed more changes than this is made anew.
const MOST_CHANGES: usize = 32;

/// The machine.
pub struct Dispatch {
    rules: Rules,
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    index: HashMap<AccountId, usize>,
    /// Places of the accounts of each group.
    by_group: HashMap<Arc<str>, BTreeSet<usize>>,
    /// Model names that stand in accounts, and in how many.
    listed: HashMap<Arc<str>, usize>,
    /// Raised when a record changes: classes of an older epoch are patched before they are used.
    epoch: u64,
    /// The last changes of records, by epoch: which place.
    changes: VecDeque<usize>,
    /// Makings of classes so far.
    makings: u64,
    /// A model is listed that was not, or the other way round: those who wait are to be grouped anew.
    regroup: bool,
    class_ids: HashMap<ClassKey, usize>,
    classes: Vec<Class>,
    wakes: BTreeSet<(Time, usize)>,
    /// Accounts that were woken and not yet offered to those who wait.
    woken: Vec<usize>,
    line: Line<KeyId, Group>,
    open: HashMap<TicketId, Open>,
    due: BTreeSet<(Time, TicketId)>,
    affinity: Affinity,
    arrivals: u64,
    dice: u64,
    /// The usual time to the first byte, over the accounts that are picked.
    usual: Option<Duration>,
    /// Time between two waiters that are served, smoothed.
    pace: TimeDelta,
    /// When the last one was served, if somebody has waited ever since.
    served: Option<Time>,
    /// Nobody is let in any more, and this is why.
    closed: Option<Refusal>,
    commands: VecDeque<Command>,
}

impl Dispatch {
    /// A machine without accounts. The same `seed` makes the same choices.
    pub fn new(rules: Rules, seed: u64) -> Self {
        Self {
            rules,
            entries: Vec::new(),
            free: Vec::new(),
            index: HashMap::new(),
            by_group: HashMap::new(),
            listed: HashMap::new(),
            epoch: 0,
            changes: VecDeque::new(),
            makings: 0,
            regroup: false,
            class_ids: HashMap::new(),
            classes: Vec::new(),
            wakes: BTreeSet::new(),
            woken: Vec::new(),
            line: Line::new(rules.line, Group::reach),
            open: HashMap::new(),
            due: BTreeSet::new(),
            affinity: Affinity::new(rules.sessions, rules.session_ttl),
            arrivals: 0,
            dice: seed | 1,
            usual: None,
            pace: TimeDelta::milliseconds(100),
            served: None,
            closed: None,
            commands: VecDeque::new(),
        }
    }

    /// The next thing to do.
    pub fn command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// A watched slot of the account came back.
    pub fn freed(&mut self, id: &AccountId, now: Time) {
        if let Some(&at) = self.index.get(id) {
            self.wake(at);
            self.serve_at(at, now);
        }
    }

    /// The account gave the call a slot.
    pub fn granted(&mut self, ticket: TicketId, now: Time) {
        let Some(open) = self.open.remove(&ticket) else { return };
        if let State::Asked { account, .. } = &open.state {
            if let Some(session) = open.question.session {
                self.note_home(session, account, &open.question, now);
            }
            self.answered(account, now);
        }
    }

    /// The account said no, or did not answer.
    pub fn busy(&mut self, ticket: TicketId, now: Time) {
        let Some(open) = self.open.remove(&ticket) else { return };
        let Open { question, arrived, state } = open;
        let State::Asked { account, served } = state else { return };
        self.unask(&account);
        if let Some(&at) = self.index.get(&account) {
            self.doubt(at, now);
        }
        match served {
            Some(mut served) => {
                // Its patience is used up, or as good as.
                served.place.group.home = None;
                self.line.put_back(served);
                self.park(question, arrived);
                self.regroup(ticket);
                let group = self.line.group(ticket).cloned();
                self.settle_groups(group.into_iter().collect(), now);
            }
            None => self.seek(question, arrived, false, now),
        }
    }

    /// The asker left.
    pub fn left(&mut self, ticket: TicketId, now: Time) {
        let Some(open) = self.open.remove(&ticket) else { return };
        match open.state {
            State::Waiting { due } => {
                self.leave_line(ticket);
                self.due.remove(&(due, ticket));
            }
            State::Asked { account, .. } => self.answered(&account, now),
        }
    }

    /// Nobody is let in any more: whoever waits is told.
    pub fn refuse_all(&mut self, refusal: &Refusal) {
        self.closed = Some(refusal.clone());
        for ticket in self.line.tickets().collect::<Vec<_>>() {
            self.refuse(ticket, refusal.clone());
        }
    }

    /// A call wants an account.
    pub fn ask(&mut self, question: Question, now: Time) {
        self.arrivals += 1;
        let arrived = self.arrivals;
        self.wake_due(now);
        self.serve_woken(now);
        self.seek(question, arrived, true, now);
    }

    /// When [`Dispatch::tick`] has something to do; only calls that wait need it.
    pub fn due(&self) -> Option<Time> {
        let first = self.due.first().map(|(at, _)| *at)?;
        Some(self.wakes.first().map_or(first, |(at, _)| first.min(*at)))
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Time) {
        self.wake_due(now);
        self.serve_woken(now);
        self.end_waits(now);
    }

    /// Calls that wait.
    pub fn waiting(&self) -> usize {
        self.line.len()
    }

    /// Every account's standing, with the number of waiting calls that it could take, in no order.
    pub fn survey(&self) -> Vec<(Standing, usize)> {
        let mut counts = vec![0; self.entries.len()];
        for (group, waiting) in self.line.groups() {
            let places = match &group.home {
                Some(home) => self.index.get(home).copied().into_iter().collect(),
                None => self.within(&group.class.scope),
            };
            for at in places {
                if self.entries[at].as_ref().is_some_and(|e| group.fits(&e.standing)) {
                    counts[at] += waiting;
                }
            }
        }
        let seen = self.entries.iter().zip(counts);
        seen.filter_map(|(entry, waiting)| Some((entry.as_ref()?.standing.clone(), waiting))).collect()
    }

    /// The sessions whose home is remembered.
    pub fn sessions(&self) -> usize {
        self.affinity.len()
    }

    fn class_key(&self, question: &Question) -> ClassKey {
        let model = question.call.model_name();
        let wanted = match model.and_then(|m| self.listed.get_key_value(m)) {
            Some((model, _)) => Wanted::Listed(model.clone()),
            None => Wanted::Unlisted(model.and_then(Family::of)),
        };
        ClassKey { scope: question.scope.clone(), wanted }
    }

    /// The account answered what it was asked. It may have looked fuller than it was meanwhile.
    fn answered(&mut self, account: &AccountId, now: Time) {
        if let Some(at) = self.unask(account) {
            self.serve_at(at, now);
        }
    }

    fn unask(&mut self, account: &AccountId) -> Option<usize> {
        let at = *self.index.get(account)?;
        if let Some(entry) = &mut self.entries[at] {
            entry.asked = entry.asked.saturating_sub(1);
        }
        self.wake(at);
        Some(at)
    }
}
