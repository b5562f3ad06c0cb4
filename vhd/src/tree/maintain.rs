//! Keeping a store short and small: base copies that nobody needs are deleted, and images with a
//! single child are merged away.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::merges::{Candidate, Ended};
use super::readers::{Beside, Readers};
use super::{Format, Guard, Tree};
use crate::error::{Error, Result};
use crate::image::Mode;
use crate::merge::{self, Options};

/// What maintenance may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Bytes copied per second, all merges together; without, as many as there are.
    pub bytes_per_second: Option<u64>,
    /// Time that it may take; what is not done by then is done by the next call.
    pub wall: Option<Duration>,
    /// Share of one processor that each merge may use, 1 to 100.
    pub cpu_percent: Option<u8>,
    /// Trees that are merged at the same time; at least 1.
    pub parallel: usize,
    /// Bytes copied between two syncs, and two looks at whether to go on; with a rate, a quarter of
    /// a second's worth if that is less.
    pub batch: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes_per_second: None, wall: None, cpu_percent: None, parallel: 2, batch: BATCH }
    }
}

/// How far maintenance is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// Bytes copied.
    pub bytes_done: u64,
    /// Bytes that all merges together copy.
    pub bytes_total: u64,
    /// Merges finished.
    pub merges_done: usize,
    /// All merges.
    pub merges_total: usize,
}

/// One merge that was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merged {
    /// What is gone: a base copy, or a disk's own image (the disk is there, with its name).
    pub node: Uuid,
    /// What it was merged into.
    pub into: Uuid,
    /// Bytes copied.
    pub bytes: u64,
    /// Disks above it, or the disk itself, were open.
    pub live: bool,
}

/// One merge that is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// What goes.
    pub node: Uuid,
    /// What it is merged into.
    pub into: Uuid,
    /// Bytes that are left to copy, at most.
    pub bytes: u64,
    /// The disk is open, and merged by who has it open.
    pub live: bool,
}

/// What is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The image.
    pub uuid: Uuid,
    /// Why.
    pub reason: String,
}

/// Why maintenance ended before it was through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The caller wanted it to.
    Cancelled,
    /// The time was over.
    OutOfTime,
}

/// What maintenance did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Maintained {
    /// Base copies that nobody needed, deleted.
    pub collected: Vec<Uuid>,
    /// Merges that were done.
    pub merged: Vec<Merged>,
    /// Images that were left alone.
    pub skipped: Vec<Skipped>,
    /// Merges that are to be done still.
    pub planned: Vec<Planned>,
    /// Bytes copied, also by merges that are not finished.
    pub bytes_copied: u64,
    /// Bytes of the storage that came back.
    pub freed: u64,
    /// Why it ended early, if it did.
    pub stopped: Option<Stopped>,
}

/// Called now and then; says whether to go on.
pub type Watch<'a> = &'a (dyn Fn(Pace) -> ControlFlow<()> + Sync);

/// [`Budget::batch`] unless the caller says otherwise: some tenths of a second.
const BATCH: u64 = 64 << 20;

/// Longest pause before it is looked again whether to go on.
const NAP: Duration = Duration::from_millis(50);

impl Tree {
    /// Deletes what nobody needs and merges what can be merged, within a budget. The store's lock
    /// is taken for moments only, waiting until `deadline` each time at most.
    ///
    /// Errors of one tree leave the others alone: they are told as [`Skipped`]. What was not
    /// finished goes on where it was stopped, also after a kill or a power cut.
    pub fn maintain(
        &self,
        deadline: Instant,
        budget: &Budget,
        progress: Watch<'_>,
    ) -> Result<Maintained> {
        self.work(deadline, budget, progress, None, None)
    }

    /// As [`Tree::maintain`], also below disks that are open by those who can be told.
    pub fn maintain_beside(
        &self,
        deadline: Instant,
        budget: &Budget,
        progress: Watch<'_>,
        readers: &dyn Readers,
    ) -> Result<Maintained> {
        self.work(deadline, budget, progress, None, Some(readers))
    }

    /// Merges what can be merged in one disk's chain. Answers whether it is shorter now.
    pub fn shorten(&self, deadline: Instant, uuid: Uuid, progress: Watch<'_>) -> Result<bool> {
        let done = self.work(deadline, &Budget::default(), progress, Some(uuid), None)?;
        if done.stopped.is_some() {
            return Err(Error::Stopped { done: done.bytes_copied });
        }
        Ok(!done.merged.is_empty())
    }

    /// What [`Tree::maintain`] would merge, and what it would leave alone.
    pub fn plan(&self) -> Result<Maintained> {
        self.plan_any(None)
    }

    /// What [`Tree::maintain_beside`] would.
    pub fn plan_beside(&self, readers: &dyn Readers) -> Result<Maintained> {
        self.plan_any(Some(readers))
    }

    fn plan_any(&self, readers: Option<&dyn Readers>) -> Result<Maintained> {
        let scan = self.settled(|| self.scan())?;
        let (candidates, skipped) = self.candidates_beside(&scan, Beside::readers(readers))?;
        let planned = candidates.into_iter().map(|candidate| self.planned(candidate)).collect();
        Ok(Maintained { skipped, planned, ..Maintained::default() })
    }

    pub(super) fn planned(&self, candidate: Candidate) -> Planned {
        let Candidate { node, into } = candidate;
        let image = self.open_image(&Self::image_at(node, Format::Vhd), Mode::Read);
        let left = image.and_then(|image| {
            let all = merge::merge_bytes(&image)?;
            let block = u64::from(image.info().block_size.max(1));
            Ok(all.min(image.size().saturating_sub(self.merged_blocks(candidate) * block)))
        });
        // What cannot be read now is told by the merge itself.
        Planned { node, into, bytes: left.unwrap_or(0), live: false }
    }

    fn work(
        &self,
        deadline: Instant,
        budget: &Budget,
        progress: Watch<'_>,
        only: Option<Uuid>,
        readers: Option<&dyn Readers>,
    ) -> Result<Maintained> {
        let Some(_one_at_a_time) = self.store.try_lock_maintenance()? else {
            let holder = "another maintenance of this store".to_owned();
            return Err(Error::Busy { path: self.path(), holder, waited_ms: 0 });
        };
        let mut report = Maintained::default();
        {
            let guard = self.lock(deadline)?;
            self.ready(&guard, &[])?;
            self.release_kept(&guard)?;
            if only.is_none() {
                match readers.map(|readers| self.collect_beside(&guard, readers)) {
                    None => report.collected = self.collect(&guard)?,
                    Some(Ok(collected)) => report.collected = collected,
                    Some(Err(error)) => self.not_collected(&error, &mut report)?,
                }
            }
            self.forget_merges(&self.scan()?)?;
        }
        let control = Control::new(budget, progress);
        let mut tried: HashSet<Uuid> = report.skipped.iter().map(|known| known.uuid).collect();
        let mut first = true;
        loop {
            let scan = self.settled(|| self.scan())?;
            let (mut candidates, skipped) =
                self.candidates_beside(&scan, Beside::readers(readers))?;
            if let Some(uuid) = only {
                let chain: HashSet<Uuid> = scan.index.get(&uuid).map_or_else(HashSet::new, |at| {
                    scan.ancestry(*at).map(|entry| entry.uuid).collect()
                });
                candidates.retain(|candidate| chain.contains(&candidate.node));
            } else {
                report.skipped.retain(|known| tried.contains(&known.uuid));
                report.skipped.extend(skipped);
            }
            if first {
                let planned = candidates.iter().map(|candidate| self.planned(*candidate));
                control.expect(&planned.collect::<Vec<_>>());
                first = false;
            }
            candidates.retain(|candidate| !tried.contains(&candidate.node));
            if candidates.is_empty() || control.stopped().is_some() {
                report.planned = candidates.into_iter().map(|left| self.planned(left)).collect();
                break;
            }
            // One merge in a tree at a time; the next one starts from what it left.
            let mut roots = HashSet::new();
            candidates.retain(|candidate| roots.insert(root(&scan, candidate.node)));
            for (node, ended) in self.round(&candidates, deadline, budget, &control, readers) {
                match ended {
                    Ok((into, Ended::Done { bytes, freed, live })) => {
                        report.merged.push(Merged { node, into, bytes, live });
                        report.freed += freed;
                    }
                    Ok((_, Ended::Stays { why })) => {
                        tried.insert(node);
                        report.skipped.push(Skipped { uuid: node, reason: why });
                    }
                    Ok((_, Ended::Moot)) => drop(tried.insert(node)),
                    Err(Error::Stopped { .. }) => {}
                    Err(error) => {
                        tried.insert(node);
                        report.skipped.push(Skipped { uuid: node, reason: error.reason() });
                    }
                }
            }
        }
        report.bytes_copied = control.pace().bytes_done;
        report.stopped = control.stopped();
        Ok(report)
    }

    /// Nothing was deleted, because somebody may have it open.
    fn not_collected(&self, error: &Error, report: &mut Maintained) -> Result<()> {
        for entry in self.scan()?.entries.iter().filter(|e| e.hidden() && e.named_by == 0) {
            let reason = format!("nothing needs it, but it may be open: {}", error.reason());
            report.skipped.push(Skipped { uuid: entry.uuid, reason });
        }
        Ok(())
    }

    /// Runs merges of different trees, several at a time.
    fn round(
        &self,
        candidates: &[Candidate],
        deadline: Instant,
        budget: &Budget,
        control: &Control<'_>,
        readers: Option<&dyn Readers>,
    ) -> Vec<(Uuid, Result<(Uuid, Ended)>)> {
        let queue = Mutex::new(candidates.iter());
        let results = Mutex::new(Vec::new());
        let worker = || {
            while control.stopped().is_none() {
                let Some(candidate) = locked(&queue).next().copied() else { break };
                let mut before = 0;
                let mut began = Instant::now();
                let mut pace = |bytes: u64| {
                    let flow = control.copied(bytes - before, began.elapsed());
                    (before, began) = (bytes, Instant::now());
                    flow
                };
                let options = Options { batch: control.batch() };
                let lock = || self.lock_watching(deadline, control);
                let ended = self.merge_node(candidate, &lock, options, readers, &mut pace);
                if matches!(ended, Ok(Ended::Done { .. })) {
                    control.finished();
                }
                let ended = ended.map(|ended| (candidate.into, ended));
                locked(&results).push((candidate.node, ended));
            }
        };
        let workers = budget.parallel.clamp(1, candidates.len().max(1));
        if workers == 1 {
            worker();
        } else {
            std::thread::scope(|scope| {
                for _ in 0..workers {
                    scope.spawn(worker);
                }
            });
        }
        results.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tree {
    /// The store's lock, unless it is time to stop before it is free.
    fn lock_watching(&self, deadline: Instant, control: &Control<'_>) -> Result<Guard> {
        loop {
            match self.lock(deadline.min(Instant::now() + NAP)) {
                Err(Error::Busy { .. }) if Instant::now() < deadline => {
                    if control.look().is_break() {
                        return Err(Error::Stopped { done: control.pace().bytes_done });
                    }
                }
                other => return other,
            }
        }
    }
}

/// What all merges of a call share: the budget, and who is told.
struct Control<'a> {
    budget: Budget,
    started: Instant,
    progress: Watch<'a>,
    state: Mutex<(Pace, Option<Stopped>)>,
}

impl<'a> Control<'a> {
    fn new(budget: &Budget, progress: Watch<'a>) -> Self {
        let state = Mutex::new((Pace::default(), None));
        Self { budget: *budget, started: Instant::now(), progress, state }
    }

    fn expect(&self, planned: &[Planned]) {
        let mut state = locked(&self.state);
        state.0.bytes_total = planned.iter().map(|planned| planned.bytes).sum();
        state.0.merges_total = planned.len();
        drop(state);
        let _ = self.look();
    }

    fn pace(&self) -> Pace {
        locked(&self.state).0
    }

    fn stopped(&self) -> Option<Stopped> {
        locked(&self.state).1
    }

    fn finished(&self) {
        locked(&self.state).0.merges_done += 1;
        let _ = self.look();
    }

    fn batch(&self) -> u64 {
        let second = self.budget.bytes_per_second.unwrap_or(u64::MAX);
        self.budget.batch.min((second / 4).max(1 << 20))
    }

    /// Counts a batch, and waits as long as the budget says.
    fn copied(&self, bytes: u64, took: Duration) -> ControlFlow<()> {
        let done = {
            let mut state = locked(&self.state);
            state.0.bytes_done += bytes;
            state.0.bytes_total = state.0.bytes_total.max(state.0.bytes_done);
            state.0.bytes_done
        };
        let mut until = Instant::now();
        if let Some(percent) = self.budget.cpu_percent {
            let percent = u32::from(percent.clamp(1, 100));
            until += took * (100 - percent) / percent;
        }
        if let Some(rate) = self.budget.bytes_per_second {
            let due = Duration::from_micros(done.saturating_mul(1_000_000) / rate.max(1));
            until = until.max(self.started + due);
        }
        loop {
            self.look()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return ControlFlow::Continue(());
            }
            std::thread::sleep(left.min(NAP));
        }
    }

    /// Tells how far it is and asks whether to go on.
    fn look(&self) -> ControlFlow<()> {
        let wanted = (self.progress)(self.pace());
        let mut state = locked(&self.state);
        if state.1.is_none() {
            if wanted.is_break() {
                state.1 = Some(Stopped::Cancelled);
            } else if self.budget.wall.is_some_and(|wall| self.started.elapsed() >= wall) {
                state.1 = Some(Stopped::OutOfTime);
            }
        }
        if state.1.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

fn root(scan: &super::scan::Scan, node: Uuid) -> Uuid {
    let index = scan.index.get(&node).copied().unwrap_or(usize::MAX);
    scan.ancestry(index).last().map_or(node, |root| root.uuid)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
