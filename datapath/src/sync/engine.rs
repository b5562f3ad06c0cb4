//! The copy: threads that bring a target to the content of a source, and the watcher that sees what
//! a guest writes meanwhile. Which regions differ is kept by [`super::regions`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::bits::Bits;
use super::options::{Load, Options, Phase, Progress};
use super::pace::{InFlight, Latency, Throttle};
use super::regions::{self, Regions};
use super::target::{Failure, Sent, Source, Target};
use super::work::ZeroPlaces;
use crate::disk::{Change, Ticket, Watcher};
use crate::error::{Errno, Error, Result};

/// Bytes of a request for zeros in the accounts of what is forwarded.
const ZEROES_WEIGHT: u64 = 4096;

/// Answers that are fetched before anybody is told of them.
const ANSWERS: usize = 64;

/// Time that answers which nobody waits for are left to gather.
const GATHER: Duration = Duration::from_micros(500);

/// A write that was sent to the target: which one, when it was, and who waits for the answer.
type Underway = (regions::Ticket, u64, Box<dyn FnOnce() -> Result<(), Failure> + Send>);

/// What the threads of a copy share. Handed out as a [`Watcher`] of the source.
pub struct Copy {
    /// Bytes of the source at the start.
    size: u64,
    pub(super) source: Arc<dyn Source>,
    pub(super) target: Arc<dyn Target>,
    pub(super) regions: Regions,
    pub(super) options: Options,
    pub(super) in_flight: InFlight,
    pub(super) throttle: Throttle,
    /// Nanoseconds of processors per second.
    pub(super) processor: Throttle,
    pub(super) latency: Latency,
    pub(super) zeros: RwLock<ZeroPlaces>,
    /// Bytes copied, writes forwarded, writes of the guest.
    pub(super) copied: AtomicU64,
    pub(super) forwarded: AtomicU64,
    pub(super) guest: AtomicU64,
    pub(super) busy: AtomicBool,
    run: Mutex<Run>,
    changed: Condvar,
    flushing: Mutex<()>,
    underway: Sender<Option<Underway>>,
}

pub(super) enum State {
    Running,
    Retrying(String, Instant),
    Failed(String),
    Ended,
}

pub(super) struct Run {
    pub(super) state: State,
    /// Goes up with each failure: what was begun before has failed for the same reason.
    pub(super) generation: u64,
    /// All of the source has been looked at.
    pub(super) seeded: bool,
    pub(super) total: u64,
    pub(super) flush_due: bool,
    /// Nothing is forwarded before.
    pub(super) forward_after: Option<Instant>,
    /// Requests of an ended connection may still be done by the server.
    pub(super) unsettled: bool,
    attempts: u32,
    failing_since: Instant,
    retries: u64,
    threads: usize,
}

impl Copy {
    /// Begins to copy. The caller lets the result watch the source before it calls [`Copy::seed`].
    pub fn start(
        source: Arc<dyn Source>,
        target: Arc<dyn Target>,
        options: Options,
    ) -> Result<Arc<Self>> {
        let (size, room) = (source.size(), target.size());
        if room < size {
            let what = format!("the target has {room} bytes, the source {size}");
            return Err(Error::new(Errno::Invalid, what));
        }
        let (underway, answers) = channel();
        let copy = Arc::new(Self {
            size,
            regions: Regions::new(size),
            in_flight: InFlight::default(),
            throttle: Throttle::new(options.rate),
            processor: Throttle::new(processor(options.cpu_percent)),
            latency: Latency::default(),
            zeros: RwLock::default(),
            copied: AtomicU64::new(0),
            forwarded: AtomicU64::new(0),
            guest: AtomicU64::new(0),
            busy: AtomicBool::new(false),
            run: Mutex::new(Run {
                state: State::Running,
                generation: 0,
                seeded: false,
                total: 0,
                flush_due: false,
                forward_after: None,
                unsettled: false,
                attempts: 0,
                failing_since: Instant::now(),
                retries: 0,
                threads: 0,
            }),
            changed: Condvar::new(),
            flushing: Mutex::new(()),
            underway,
            source,
            target,
            options,
        });
        let started = copy.thread("copy-answers", move |copy| copy.fetch_answers(&answers));
        let started = started.and_then(|()| copy.thread("copy-keeper", Self::keep));
        let workers = copy.options.workers.max(1);
        let started = (0..workers).fold(started, |started, _| {
            started.and_then(|()| copy.thread("copy-worker", Self::work))
        });
        started.inspect_err(|_| copy.end())?;
        Ok(copy)
    }

    /// Looks for what is to be copied, on a thread of its own.
    pub fn seed(self: &Arc<Self>) -> Result<()> {
        self.thread("copy-seed", Self::find)
    }

    fn thread(
        self: &Arc<Self>,
        name: &str,
        work: impl FnOnce(&Self) + Send + 'static,
    ) -> Result<()> {
        let copy = Arc::clone(self);
        self.run().threads += 1;
        let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let leaving = Leaving(copy);
            work(&leaving.0);
        });
        if let Err(error) = spawned {
            self.run().threads -= 1;
            return Err(Error::io("start a thread", &error));
        }
        Ok(())
    }

    pub(super) fn run(&self) -> MutexGuard<'_, Run> {
        self.run.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until something is different, at most until `deadline`.
    pub(super) fn sleep<'a>(
        &self,
        run: MutexGuard<'a, Run>,
        until: Instant,
    ) -> MutexGuard<'a, Run> {
        let left = until.saturating_duration_since(Instant::now());
        self.changed.wait_timeout(run, left).unwrap_or_else(PoisonError::into_inner).0
    }

    pub(super) fn tell(&self) {
        self.changed.notify_all();
        self.regions.wake_idle();
    }

    pub(super) fn load(&self) -> Load {
        if self.busy.load(Ordering::Relaxed) { self.options.busy } else { self.options.idle }
    }

    /// The target has failed, while something was done that began in `generation`.
    pub(super) fn failed(&self, generation: u64, failure: &Failure) {
        let mut run = self.run();
        if generation != run.generation || !matches!(run.state, State::Running) {
            return;
        }
        self.retry_later(&mut run, failure);
        drop(run);
        self.tell();
    }

    /// Decides what a failure leads to.
    pub(super) fn retry_later(&self, run: &mut Run, failure: &Failure) {
        let now = Instant::now();
        run.generation += 1;
        if run.attempts == 0 {
            run.failing_since = now;
        }
        if failure.lost {
            self.regions.lost();
            run.unsettled = true;
        }
        let what = failure.what.clone();
        if failure.permanent || now.duration_since(run.failing_since) >= self.options.give_up {
            tracing::error!(what, "the copy has failed");
            run.state = State::Failed(what);
            self.stop_forwarding();
            return;
        }
        let (first, most) = self.options.retry;
        let delay = first.saturating_mul(1 << run.attempts.min(20)).min(most);
        run.attempts += 1;
        run.retries += 1;
        tracing::warn!(what, ?delay, "the target of a copy failed and is tried again");
        run.state = State::Retrying(what, now + delay);
    }

    /// The target has done something.
    pub(super) fn succeeded(&self) {
        let mut run = self.run();
        if matches!(run.state, State::Running) {
            run.attempts = 0;
        }
    }

    /// The source has failed, which nobody here can mend.
    pub(super) fn source_failed(&self, error: &Error) {
        let mut run = self.run();
        if matches!(run.state, State::Running | State::Retrying(..)) {
            tracing::error!(%error, "the source of a copy failed");
            run.state = State::Failed(format!("the source: {error}"));
            self.stop_forwarding();
        }
        drop(run);
        self.tell();
    }

    /// Nobody waits for the target any longer.
    fn stop_forwarding(&self) {
        self.regions.forward(false);
        self.target.abandon();
        // Whoever listens has ended, or ends with this.
        let _ = self.underway.send(None);
    }

    /// Ends it: the guest does not notice the copy any more, and the threads end when what they
    /// wait for lets them. See [`Copy::wait_ended`].
    pub fn end(&self) {
        let mut run = self.run();
        if !matches!(run.state, State::Failed(_) | State::Ended) {
            run.state = State::Ended;
            self.stop_forwarding();
        }
        drop(run);
        self.tell();
    }

    /// Waits until all threads have ended; whether they have. Not while the source is paused,
    /// whose readers wait.
    pub fn wait_ended(&self, deadline: Instant) -> bool {
        let mut run = self.run();
        while run.threads > 0 && Instant::now() < deadline {
            run = self.sleep(run, deadline);
        }
        run.threads == 0
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let run = self.run();
        let counts = self.regions.counts();
        let clean = run.seeded && counts.dirty == 0 && counts.copying == 0;
        let phase = match &run.state {
            State::Running if clean && counts.forward => Phase::Ready,
            State::Running => Phase::Copying,
            State::Retrying(what, _) => Phase::Retrying(what.clone()),
            State::Failed(what) => Phase::Failed(what.clone()),
            State::Ended => Phase::Ended,
        };
        Progress {
            phase,
            total: run.total,
            copied: self.copied.load(Ordering::Relaxed),
            dirty: counts.dirty,
            copying: counts.copying,
            redirtied: counts.redirtied,
            forwarded: self.forwarded.load(Ordering::Relaxed),
            forward: counts.forward,
            retries: run.retries,
            rate: self.throttle.rate(),
        }
    }

    /// Another limit for the copy, bytes per second.
    pub fn set_rate(&self, rate: Option<u64>) {
        self.throttle.set(rate);
        self.tell();
    }

    /// Another limit for the copy, percent of one processor.
    pub fn set_cpu_percent(&self, percent: Option<u8>) {
        self.processor.set(processor(percent));
        self.tell();
    }

    /// The regions that the target may lack, and whether those are all: else the source has not
    /// been looked through yet. Of use when it has ended.
    pub(super) fn missing(&self) -> (Bits, bool) {
        (self.regions.missing(), self.run().seeded)
    }

    /// Waits until the target lags behind by what is in flight only.
    pub fn wait_ready(&self, deadline: Instant) -> Result<()> {
        loop {
            let progress = self.progress();
            match progress.phase {
                Phase::Ready => return Ok(()),
                Phase::Failed(what) => return Err(Error::new(Errno::Io, what)),
                Phase::Ended => return Err(Error::new(Errno::Io, "the copy was ended")),
                Phase::Copying | Phase::Retrying(_) if Instant::now() >= deadline => {
                    let what = format!("not ready in time: {progress:?}");
                    return Err(Error::new(Errno::Io, what));
                }
                Phase::Copying | Phase::Retrying(_) => {
                    let soon = Instant::now() + Duration::from_millis(5);
                    drop(self.sleep(self.run(), soon.min(deadline)));
                }
            }
        }
    }

    /// Makes durable what the target has.
    pub fn flush(&self) -> Result<(), Failure> {
        let _one_at_a_time = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = self.run().generation;
        self.regions.flushing();
        match self.target.flush() {
            Ok(()) => {
                self.regions.flushed();
                Ok(())
            }
            Err(failure) => {
                self.failed(generation, &failure);
                Err(failure)
            }
        }
    }

    /// Comes back to a target that has failed. Between the failure and now the target may have been
    /// lost without anybody seeing it: whoever failed meanwhile failed for a reason known before.
    /// No flush is under way: one that a new connection answers says nothing of what an old one
    /// was told.
    pub(super) fn renew(&self) -> Result<(), Failure> {
        let _no_flush = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.target.renew()? {
            self.regions.lost();
            self.run().unsettled = true;
        }
        Ok(())
    }

    /// While no write of the guest is under way: waits until the target has everything, durably.
    /// Refuses when it lacks something that would have to be copied first.
    pub fn settle(&self, deadline: Instant) -> Result<()> {
        let refuse = |what: String| Err(Error::new(Errno::Io, what));
        let generation = self.settled(deadline)?;
        if let Err(failure) = self.flush() {
            return refuse(format!("the target cannot be flushed: {failure}"));
        }
        // A loss that came with the flush, or just before it, has made something dirty again.
        if self.settled(deadline)? != generation {
            return refuse("the target failed just now".to_owned());
        }
        Ok(())
    }

    /// The generation in which nothing is missing.
    fn settled(&self, deadline: Instant) -> Result<u64> {
        let refuse = |what: String| Err(Error::new(Errno::Io, what));
        let counts = self.regions.counts();
        if counts.dirty + counts.copying > 0 {
            return refuse(format!("{} bytes are not copied yet", counts.dirty + counts.copying));
        }
        if !self.regions.wait_settled(deadline) {
            return refuse("the target does not answer in time".to_owned());
        }
        let run = self.run();
        match &run.state {
            State::Running if run.seeded => Ok(run.generation),
            State::Running => refuse("the source has not been looked through yet".to_owned()),
            State::Retrying(what, _) => refuse(format!("the target fails: {what}")),
            State::Failed(what) => refuse(format!("the copy has failed: {what}")),
            State::Ended => refuse("the copy was ended".to_owned()),
        }
    }

    fn fetch_answers(&self, answers: &Receiver<Option<Underway>>) {
        let (mut sent, mut ends) = (Vec::new(), Vec::new());
        let mut over = false;
        while !over && let Ok(Some(first)) = answers.recv() {
            sent.push(first);
            while sent.len() < ANSWERS && !over {
                match answers.try_recv() {
                    Ok(Some(one)) => sent.push(one),
                    Ok(None) => over = true,
                    Err(_) => break,
                }
            }
            // Answers that come meanwhile wake nobody, and one call fetches them all.
            self.regions.rest(Instant::now() + GATHER);
            let mut failures = Vec::new();
            for (ticket, generation, wait) in sent.drain(..) {
                let answer = wait();
                ends.push((ticket, answer.is_ok()));
                failures.extend(answer.err().map(|failure| (generation, failure)));
            }
            self.regions.forwarded_all(&ends);
            let done = ends.len() - failures.len();
            self.forwarded.fetch_add(done as u64, Ordering::Relaxed);
            ends.clear();
            for (generation, failure) in failures {
                self.failed(generation, &failure);
            }
        }
        // What was sent after the end was said.
        while let Ok(Some((ticket, ..))) = answers.try_recv() {
            self.regions.forwarded(&ticket, false);
        }
    }

    fn send(&self, change: &Change<'_>, ticket: regions::Ticket) {
        let generation = self.run().generation;
        match self.target.forward(change) {
            Ok(Sent::Done) => {
                self.forwarded.fetch_add(1, Ordering::Relaxed);
                self.regions.forwarded(&ticket, true);
            }
            Ok(Sent::Waiting(wait)) => {
                if let Err(unsent) = self.underway.send(Some((ticket, generation, wait)))
                    && let Some((ticket, ..)) = unsent.0
                {
                    self.regions.forwarded(&ticket, false);
                }
            }
            Err(failure) => {
                self.regions.forwarded(&ticket, false);
                self.failed(generation, &failure);
            }
        }
    }
}

/// Nanoseconds of processors per second, of so many percent of one.
fn processor(percent: Option<u8>) -> Option<u64> {
    percent.map(|percent| u64::from(percent.max(1)) * 10_000_000)
}

/// Counts a thread out, however it ends.
struct Leaving(Arc<Copy>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.run().threads -= 1;
        self.0.changed.notify_all();
    }
}

/// What is kept from the beginning of a write to its end.
struct Begun {
    ticket: regions::Ticket,
    at: Instant,
}

impl Watcher for Copy {
    fn before(&self, change: &Change<'_>) -> Ticket {
        let at = Instant::now();
        self.guest.fetch_add(1, Ordering::Relaxed);
        let range = change.offset()..change.offset() + change.length();
        if range.end > self.size {
            // The disk has grown, and the target has no place for it.
            let what = format!("it has grown beyond {} bytes, to be mirrored anew", self.size);
            self.source_failed(&Error::new(Errno::Invalid, what));
            return Ticket::none();
        }
        let least = self.target.least_block();
        let whole = range.start.is_multiple_of(least)
            && (range.end.is_multiple_of(least) || range.end == self.target.size());
        let weight = match change {
            Change::Data { bytes, .. } => bytes.len() as u64,
            Change::Zeroes { .. } => ZEROES_WEIGHT,
        };
        let ticket = self.regions.begin(range, whole.then_some(weight), self.options.patience);
        if ticket.gave_up {
            self.regions.forward(false);
            self.run().forward_after = Some(at + self.options.patience.saturating_mul(4));
        }
        Ticket::of(Begun { ticket, at })
    }

    fn after(&self, change: &Change<'_>, ticket: Ticket, written: bool) {
        let Some(begun) = ticket.take::<Begun>() else { return };
        if let Some(ticket) = self.regions.wrote(begun.ticket, written) {
            self.send(change, ticket);
        }
        if self.options.regard {
            self.latency.count(begun.at.elapsed());
        }
    }

    fn resized(&self, size: u64) {
        // The target is as large as the disk was.
        self.source_failed(&Error::new(Errno::Io, format!("it has {size} bytes now")));
    }
}
