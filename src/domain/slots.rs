//! The concurrency semaphore of an account or a key, and what its calls note beside it.
//!
//! Slots outlive their actor and need no mailbox: a slot gives itself back, from whichever thread it ends on. Who
//! waits for one sets [`Slots::watch`] and looks once more; the slot that is given back next rings the bell, once.

use super::Time;
use super::tally::SharedTally;
use super::window::{Reading, fingerprint};
use chrono::TimeDelta;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Called when a watched slot is given back.
type Bell = Box<dyn Fn() + Send + Sync>;

/// A limit and how much of it is taken.
#[derive(Default)]
pub struct Slots {
    limit: AtomicU32,
    in_use: AtomicU32,
    /// Somebody wants to know of the next slot that is given back.
    watched: AtomicBool,
    /// When the one call that a half-open account may have began: milliseconds since 1970; 0 is none under way.
    trial: AtomicI64,
    /// Trials before that one that are not answered yet.
    overdue: AtomicU32,
    bell: OnceLock<Bell>,
    vitals: Vitals,
}

impl Slots {
    /// `limit` free slots.
    pub fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self { limit: AtomicU32::new(limit), ..Self::default() })
    }

    /// The same, with somebody to tell when a watched slot comes back.
    pub fn with_bell(limit: u32, bell: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { limit: AtomicU32::new(limit), bell: OnceLock::from(Box::new(bell) as Bell), ..Self::default() })
    }

    /// Takes a slot, unless all are taken. Checked and taken in one step.
    pub fn try_take(self: &Arc<Self>) -> Option<Slot> {
        let limit = self.limit();
        let more = |n| (n < limit).then_some(n + 1);
        self.in_use.fetch_update(SeqCst, SeqCst, more).ok().map(|_| Slot(self.clone()))
    }

    /// Takes the one trial of a half-open account, unless another began since `seen` (see [`Slots::on_trial`]) was
    /// looked at. One that was seen under way is the trial no longer.
    pub fn try_trial(self: &Arc<Self>, seen: Option<Time>, now: Time) -> Option<Trial> {
        let (seen, began) = (seen.map_or(0, |at| at.timestamp_millis()), now.timestamp_millis().max(1));
        let taken = self.trial.compare_exchange(seen, began, SeqCst, SeqCst);
        taken.ok().map(|earlier| {
            self.overdue.fetch_add(u32::from(earlier != 0), SeqCst);
            Trial { slots: self.clone(), began }
        })
    }

    /// Trials that took so long that another was let in, and that are not answered yet.
    pub fn overdue(&self) -> u32 {
        self.overdue.load(SeqCst)
    }

    /// Since when the trial is under way, if it is.
    pub fn on_trial(&self) -> Option<Time> {
        let began = self.trial.load(SeqCst);
        chrono::DateTime::from_timestamp_millis(began).filter(|_| began != 0)
    }

    /// From now on the next slot, or trial, that is given back rings the bell. Look once more after this: one may
    /// have come back just before.
    pub fn watch(&self) {
        self.watched.store(true, SeqCst);
    }

    /// Slots taken now. May exceed [`Slots::limit`] for a while after the limit was lowered.
    pub fn in_use(&self) -> u32 {
        self.in_use.load(SeqCst)
    }

    /// Slots in all.
    pub fn limit(&self) -> u32 {
        self.limit.load(SeqCst)
    }

    /// Changes the limit; calls that run are not touched.
    pub fn set_limit(&self, limit: u32) {
        self.limit.store(limit, SeqCst);
    }

    /// What its calls noted.
    pub fn vitals(&self) -> &Vitals {
        &self.vitals
    }

    fn ring(&self) {
        // Read before it is written: nearly always nobody watches, and a plain load costs nothing.
        if self.watched.load(SeqCst)
            && self.watched.swap(false, SeqCst)
            && let Some(bell) = self.bell.get()
        {
            bell();
        }
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slots({} of {})", self.in_use(), self.limit())
    }
}

/// One slot; dropping it gives it back.
#[derive(Debug)]
pub struct Slot(Arc<Slots>);

impl Slot {
    /// Whose it is.
    pub fn of(&self) -> &Arc<Slots> {
        &self.0
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.in_use.fetch_sub(1, SeqCst);
        self.0.ring();
    }
}

/// The trial call of a half-open account; dropping it lets the next one try.
#[derive(Debug)]
pub struct Trial {
    slots: Arc<Slots>,
    began: i64,
}

impl Drop for Trial {
    fn drop(&mut self) {
        // Another may be the trial by now.
        if self.slots.trial.compare_exchange(self.began, 0, SeqCst, SeqCst).is_err() {
            self.slots.overdue.fetch_sub(1, SeqCst);
        }
        self.slots.ring();
    }
}

/// What the calls of a healthy account note instead of telling its actor: that spares a message, and the waking of
/// a thread, for nearly every call.
#[derive(Debug, Default)]
pub struct Vitals {
    /// Nothing speaks against the account, so that one more success is no news.
    well: AtomicBool,
    /// The last success: milliseconds since 1970 times 1,000, plus its status; 0 is none.
    last_success: AtomicI64,
    successes: SharedTally,
    /// Calls that failed by the account's fault, of whatever kind.
    faults: SharedTally,
    /// Microseconds to the first byte, smoothed; 0 is none yet.
    first_byte: AtomicU32,
    /// The [`super::window::fingerprint`] of the readings that the account was last told.
    told: AtomicU64,
}

/// The share of the newest answer in the smoothed time to the first byte is one in so many.
const SMOOTHING: i64 = 8;

impl Vitals {
    /// The account's actor says whether successes are news to it.
    pub fn set_well(&self, well: bool) {
        self.well.store(well, SeqCst);
    }

    /// Whether a success is no news.
    pub fn is_well(&self) -> bool {
        self.well.load(SeqCst)
    }

    /// One more success, within a window of this length.
    pub fn note_success(&self, status: u16, now: Time, window: TimeDelta) {
        self.last_success.store(now.timestamp_millis() * 1_000 + i64::from(status), Relaxed);
        self.successes.add(now, window);
    }

    /// One more call that failed by the account's fault, within a window of this length.
    pub fn note_fault(&self, now: Time, window: TimeDelta) {
        self.faults.add(now, window);
    }

    /// Such calls within the last `window`.
    pub fn faults(&self, now: Time, window: TimeDelta) -> u32 {
        self.faults.get().count(now, window)
    }

    /// What the account was told is forgotten: the next reading is news.
    pub fn forget_told(&self) {
        self.told.store(0, Relaxed);
    }

    /// The last success: when, and its status.
    pub fn last_success(&self) -> Option<(Time, i64)> {
        let noted = self.last_success.load(Relaxed);
        let at = chrono::DateTime::from_timestamp_millis(noted / 1_000)?;
        (noted != 0).then_some((at, noted % 1_000))
    }

    /// Successes within the last `window`.
    pub fn successes(&self, now: Time, window: TimeDelta) -> u32 {
        self.successes.get().count(now, window)
    }

    /// A client left before the first byte came: the time is at least so long.
    pub fn note_no_first_byte(&self, after: Duration) {
        if self.first_byte().is_some_and(|usual| after > usual) {
            self.note_first_byte(after);
        }
    }

    /// One more answer's time to the first byte. Not the time of the whole answer: that is the client's doing.
    pub fn note_first_byte(&self, took: Duration) {
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX).max(1);
        let old = self.first_byte.load(Relaxed);
        // Two threads that note at once may lose one of two: it is an average.
        let smoothed = i64::from(old) + (i64::from(took) - i64::from(old)) / SMOOTHING;
        self.first_byte.store(if old == 0 { took } else { u32::try_from(smoothed.max(1)).unwrap_or(took) }, Relaxed);
    }

    /// The smoothed time to the first byte.
    pub fn first_byte(&self) -> Option<Duration> {
        let micros = self.first_byte.load(Relaxed);
        (micros != 0).then(|| Duration::from_micros(u64::from(micros)))
    }

    /// Whether these readings differ from what the account was last told; then it is to be told. None are no news.
    pub fn is_news(&self, readings: &[Reading]) -> bool {
        let print = fingerprint(readings);
        print != 0 && self.told.swap(print, Relaxed) != print
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn a_limit_is_never_exceeded_and_every_slot_comes_back() {
        let slots = Slots::new(5);
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let slots = slots.clone();
                std::thread::spawn(move || {
                    for _ in 0..10_000 {
                        let slot = slots.try_take();
                        assert!(slots.in_use() <= 5);
                        drop(slot);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(slots.in_use(), 0);
    }

    #[test]
    fn lowering_the_limit_keeps_running_calls_and_refuses_new_ones() {
        let slots = Slots::new(2);
        let held = [slots.try_take().unwrap(), slots.try_take().unwrap()];
        slots.set_limit(1);
        assert!(slots.try_take().is_none());
        drop(held);
        assert!(slots.try_take().is_some());
    }

    #[test]
    fn a_watched_slot_rings_once() {
        let rung = Arc::new(AtomicUsize::new(0));
        let counter = rung.clone();
        let slots = Slots::with_bell(2, move || {
            counter.fetch_add(1, SeqCst);
        });
        let (a, b) = (slots.try_take().unwrap(), slots.try_take().unwrap());
        slots.watch();
        drop(a);
        drop(b);
        assert_eq!(rung.load(SeqCst), 1);
        let at = |ms: i64| chrono::DateTime::from_timestamp_millis(1_800_000_000_000 + ms).unwrap();
        let trial = slots.try_trial(None, at(0)).unwrap();
        assert!(slots.try_trial(None, at(1)).is_none() && slots.on_trial() == Some(at(0)));
        slots.watch();
        drop(trial);
        assert!(slots.on_trial().is_none() && rung.load(SeqCst) == 2);
        let late = slots.try_trial(None, at(2)).unwrap();
        let next = slots.try_trial(Some(at(2)), at(9)).unwrap();
        assert_eq!(slots.overdue(), 1);
        drop(late);
        assert_eq!(slots.on_trial(), Some(at(9)), "one that took too long ends no other's trial");
        assert_eq!(slots.overdue(), 0);
        drop(next);
        assert!(slots.on_trial().is_none() && slots.overdue() == 0);
    }

    /// The promise that no wake-up is lost: whoever watches and then finds all slots taken is told.
    #[test]
    fn no_wake_up_is_lost_between_threads() {
        for _ in 0..2_000 {
            let rung = Arc::new(AtomicUsize::new(0));
            let counter = rung.clone();
            let slots = Slots::with_bell(1, move || {
                counter.fetch_add(1, SeqCst);
            });
            let slot = slots.try_take().unwrap();
            let other = std::thread::spawn(move || drop(slot));
            slots.watch();
            let free = slots.in_use() == 0;
            other.join().unwrap();
            assert!(free || rung.load(SeqCst) == 1);
        }
    }
}
