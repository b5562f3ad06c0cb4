//! Which parts of two disks may differ, while one is written by a guest and copied to the other.
//!
//! The disk is cut into regions of [`REGION`] bytes. A region is *dirty* when it is to be copied.
//! What must hold whenever nobody holds the lock:
//!
//! > Where source and target differ, the region is dirty, or it is being copied, or a write to it
//! > is in flight that ends by making it dirty or by having changed both.
//!
//! So the two are equal when nothing is dirty, being copied or in flight: [`Regions::is_settled`].
//!
//! # A copy
//!
//! [`Regions::take`] clears the bits *before* anything is read, so that a write that comes after
//! the read sets them again. Nothing that is being copied is copied a second time meanwhile: the
//! older content could arrive last.
//!
//! # A write
//!
//! [`Regions::begin`] decides, before the source is written:
//!
//! - *later*: the regions are dirty when the source has been written ([`Regions::wrote`]). Marking
//!   them earlier would not do: a copy could clear the bits, read what was there before, and leave
//!   nothing behind that says so.
//! - *forward*: the target gets the write, too, once the source has it. It keeps its place until the
//!   target has answered ([`Regions::forwarded`]): a copy of it waits, and so does another write
//!   to the same blocks, since the target may take two writes in any order.
//!
//! Writes are forwarded when [`Regions::forward`] says so and part of what they write is clean.
//! Those to dirty regions are left to the copy. While writes are forwarded, a copy also waits for
//! the writes that are in flight to its regions, and new ones for the copy. So nothing that was
//! copied becomes dirty again, and the copy comes to an end however fast the guest writes.
//!
//! The guest is answered when the source has its data, not when the target has: until the switch
//! the source alone counts. What the target lacks is bounded by [`WINDOW`].
//!
//! # A target that dies
//!
//! What it has answered may have been in its memory only. Everything since the last flush that it
//! answered is dirty again after [`Regions::lost`]; answers from before that count as failures.

use std::borrow::Borrow;
use std::ops::Range;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use super::bits::Bits;
use super::lock::{Condvar, Mutex, MutexGuard};

/// Bytes of a region.
pub const REGION: u64 = 64 << 10;

/// Bytes of forwarded writes that the target has not answered; then writes wait. A single larger
/// one is let through.
pub const WINDOW: u64 = 1 << 20;

/// Forwarded writes to the same block of this many bytes go one after the other: targets write a
/// part of a block by reading the rest of it first.
const BLOCK: u64 = 4096;

/// A guest's write between its beginning and its end.
#[derive(Debug)]
#[must_use = "a write that is not ended keeps its place for good"]
pub struct Ticket {
    id: u64,
    /// It has waited for as long as it would.
    pub gave_up: bool,
}

/// A range that is being copied, bytes.
#[derive(Debug)]
#[must_use = "a copy that is not ended keeps its place for good"]
pub struct Copy {
    id: u64,
    epoch: u64,
    /// What to copy.
    pub range: Range<u64>,
}

/// How much of what there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes to be copied, not counting those being copied.
    pub dirty: u64,
    /// Bytes being copied.
    pub copying: u64,
    /// Bytes that guests made dirty, in all: what was clean before.
    pub redirtied: u64,
    /// How many times the copy has gone through the disk.
    pub passes: u64,
    /// Writes in flight.
    pub writes: usize,
    /// Whether writes are forwarded.
    pub forward: bool,
}

/// See the module.
pub struct Regions {
    size: u64,
    state: Mutex<State>,
    /// A write or copy that somebody waits for may have ended.
    space: Condvar,
    /// There may be something to copy.
    work: Condvar,
    /// It may be settled.
    settled: Condvar,
    /// Somebody waits for what the target has not answered.
    wanted: Condvar,
}

struct Write {
    id: u64,
    range: Range<u64>,
    forward: bool,
    weight: u64,
    epoch: u64,
}

struct State {
    dirty: Bits,
    /// Copied or forwarded since the target was last asked to flush, and before that.
    unsynced: Bits,
    syncing: Bits,
    forward: bool,
    /// Goes up when a target is lost.
    epoch: u64,
    next_id: u64,
    writes: Vec<Write>,
    copies: Vec<(u64, Range<u64>)>,
    window: u64,
    cursor: u64,
    redirtied: u64,
    passes: u64,
    /// Who waits for [`Regions::space`], for [`Regions::work`], for [`Regions::settled`], for
    /// [`Regions::wanted`]: waking nobody costs a system call, too.
    waiting: [usize; 4],
}

const SPACE: usize = 0;
const WORK: usize = 1;
const SETTLED: usize = 2;
const WANTED: usize = 3;

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

fn outward(range: &Range<u64>, unit: u64) -> Range<u64> {
    range.start / unit * unit..range.end.next_multiple_of(unit)
}

/// The numbers of the regions that a range touches.
fn regions(range: &Range<u64>) -> Range<u64> {
    range.start / REGION..range.end.div_ceil(REGION)
}

impl State {
    fn is_copied(&self, range: &Range<u64>) -> bool {
        self.copies.iter().any(|copy| overlap(&copy.1, range))
    }

    fn make_dirty(&mut self, range: &Range<u64>) -> u64 {
        self.dirty.set(regions(range)) * REGION
    }

    /// Whether somebody waits for answers of the target, or soon will.
    fn is_wanted(&self) -> bool {
        self.waiting[SPACE] > 0 || self.waiting[SETTLED] > 0 || self.window > WINDOW / 2
    }

    fn is_settled(&self) -> bool {
        self.dirty.ones() == 0 && self.copies.is_empty() && self.writes.is_empty()
    }

    /// How a write that begins now goes on; none while it has to wait.
    fn way(&self, range: &Range<u64>, weight: u64) -> Option<bool> {
        if !self.forward {
            return Some(false);
        }
        if self.is_copied(&outward(range, REGION)) {
            return None;
        }
        if self.dirty.all(regions(range)) {
            return Some(false);
        }
        let blocks = outward(range, BLOCK);
        let taken = self.writes.iter().any(|write| write.forward && overlap(&write.range, &blocks));
        let full = self.window > 0 && self.window + weight > WINDOW;
        (!taken && !full).then_some(true)
    }

    /// Whether a copy of a range has to wait for a write that is in flight.
    fn is_written(&self, range: &Range<u64>) -> bool {
        let waits = |write: &&Write| write.forward || self.forward;
        self.writes.iter().filter(waits).any(|write| overlap(&write.range, range))
    }

    /// The first run of regions from `from` to `limit` that can be copied, at most `most` of them.
    fn run(&self, mut from: u64, limit: u64, most: u64) -> Option<Range<u64>> {
        loop {
            let start = self.dirty.next(from).filter(|start| *start < limit)?;
            let first = start * REGION..(start + 1) * REGION;
            if let Some((_, copy)) = self.copies.iter().find(|copy| overlap(&copy.1, &first)) {
                from = copy.end.div_ceil(REGION);
                continue;
            }
            let mut end = self.dirty.end_of_run(start, limit.min(start.saturating_add(most)));
            for (_, copy) in &self.copies {
                if copy.start >= first.end {
                    end = end.min(copy.start / REGION);
                }
            }
            return Some(start..end);
        }
    }
}

impl Regions {
    /// Of a disk of `size` bytes; nothing is dirty.
    pub fn new(size: u64) -> Self {
        let count = size.div_ceil(REGION);
        let state = State {
            dirty: Bits::new(count),
            unsynced: Bits::new(count),
            syncing: Bits::new(count),
            forward: false,
            epoch: 0,
            next_id: 0,
            writes: Vec::new(),
            copies: Vec::new(),
            window: 0,
            cursor: 0,
            redirtied: 0,
            passes: 0,
            waiting: [0; 4],
        };
        let [space, work, settled, wanted] = std::array::from_fn(|_| Condvar::new());
        Self { size, state: Mutex::new(state), space, work, settled, wanted }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way through a change, so a poisoned lock is still good.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, state: &State, freed: bool) {
        if freed && state.waiting[SPACE] > 0 {
            self.space.notify_all();
        }
        if state.waiting[WORK] > 0 && state.dirty.ones() > 0 {
            self.work.notify_all();
        }
        if state.waiting[SETTLED] > 0 && state.is_settled() {
            self.settled.notify_all();
        }
    }

    fn want(&self, state: &State) {
        if state.waiting[WANTED] > 0 && state.is_wanted() {
            self.wanted.notify_all();
        }
    }

    /// Waits until `deadline` at most; the guard back, and whether there is time left.
    fn wait<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        which: usize,
        deadline: Instant,
    ) -> (MutexGuard<'a, State>, bool) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return (state, false);
        }
        state.waiting[which] += 1;
        self.want(&state);
        let condvar = [&self.space, &self.work, &self.settled, &self.wanted][which];
        let (mut state, _) =
            condvar.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        state.waiting[which] -= 1;
        (state, true)
    }

    /// Makes a range dirty: it is to be copied. Answers how many bytes were not.
    pub fn mark(&self, range: &Range<u64>) -> u64 {
        let mut state = self.state();
        let marked = state.make_dirty(range);
        self.wake(&state, false);
        marked
    }

    /// Whether writes to clean regions are forwarded from now on. Those that wait go on.
    pub fn forward(&self, on: bool) {
        let mut state = self.state();
        state.forward = on;
        self.wake(&state, true);
    }

    /// A write is about to begin, whose forwarding takes `weight` bytes of [`WINDOW`]; none: it
    /// cannot be forwarded. Waits for copies and other writes of the same place, but not longer
    /// than `patience`: a write that does not wait any longer becomes one that is copied later.
    /// Every call is followed by [`Regions::wrote`].
    pub fn begin(&self, range: Range<u64>, weight: Option<u64>, patience: Duration) -> Ticket {
        let mut state = self.state();
        let mut gave_up = false;
        let mut way = weight.map_or(Some(false), |weight| state.way(&range, weight));
        if let (None, Some(weight)) = (way, weight) {
            let deadline = Instant::now() + patience;
            while way.is_none() {
                let (again, more) = self.wait(state, SPACE, deadline);
                state = again;
                way = state.way(&range, weight);
                if way.is_none() && !more {
                    (way, gave_up) = (Some(false), true);
                }
            }
        }
        let forward = way == Some(true);
        let (id, epoch) = (state.next_id, state.epoch);
        state.next_id += 1;
        let weight = weight.filter(|_| forward).unwrap_or(0);
        state.window += weight;
        state.writes.push(Write { id, range, forward, weight, epoch });
        self.want(&state);
        Ticket { id, gave_up }
    }

    /// The source has the write, or has failed and may hold a part of it. Answers a ticket when
    /// the target is to get it, too: the caller sends it and tells [`Regions::forwarded`].
    pub fn wrote(&self, ticket: Ticket, written: bool) -> Option<Ticket> {
        let mut state = self.state();
        let index = state.writes.iter().position(|write| write.id == ticket.id)?;
        if written && state.writes.get(index).is_some_and(|write| write.forward) {
            return Some(ticket);
        }
        let write = state.writes.swap_remove(index);
        state.window -= write.weight;
        let redirtied = state.make_dirty(&write.range);
        state.redirtied += redirtied;
        self.wake(&state, true);
        None
    }

    /// The target has a forwarded write, or nobody knows.
    pub fn forwarded(&self, ticket: &Ticket, done: bool) {
        self.forwarded_all(&[(ticket, done)]);
    }

    /// As [`Regions::forwarded`], of several.
    pub fn forwarded_all(&self, tickets: &[(impl Borrow<Ticket>, bool)]) {
        let mut state = self.state();
        for (ticket, done) in tickets {
            let id = ticket.borrow().id;
            let found = state.writes.iter().position(|write| write.id == id);
            let Some(write) = found.map(|index| state.writes.swap_remove(index)) else { continue };
            state.window -= write.weight;
            if *done && write.epoch == state.epoch {
                state.unsynced.set(regions(&write.range));
            } else {
                let redirtied = state.make_dirty(&write.range);
                state.redirtied += redirtied;
            }
        }
        self.wake(&state, true);
    }

    /// Waits until somebody waits for what the target has not answered, or soon will, or until
    /// `deadline`: whoever fetches answers fetches many at a time so.
    pub fn rest(&self, deadline: Instant) {
        let mut state = self.state();
        let mut more = true;
        while more && !state.is_wanted() {
            (state, more) = self.wait(state, WANTED, deadline);
        }
    }

    /// What would be copied next, at most `most` bytes: a hint, others may take it first.
    pub fn next(&self, most: u64) -> Option<Range<u64>> {
        let state = self.state();
        let most = (most / REGION).max(1);
        let found =
            state.run(state.cursor, u64::MAX, most).or_else(|| state.run(0, u64::MAX, most));
        found.map(|run| self.bytes(&run))
    }

    /// Takes the first of a range that can be copied. Waits for writes that are in flight to it.
    /// Every copy is followed by [`Regions::release`].
    pub fn take(&self, range: &Range<u64>) -> Option<Copy> {
        let within = regions(range);
        let mut state = self.state();
        let run = state.run(within.start, within.end, u64::MAX)?;
        let range = self.bytes(&run);
        if run.start < state.cursor {
            state.passes += 1;
        }
        state.cursor = run.end;
        let id = state.next_id;
        state.next_id += 1;
        // From here on new writes wait, so those in flight come to an end.
        state.copies.push((id, range.clone()));
        while state.is_written(&range) {
            state = self.wait(state, SPACE, Instant::now() + Duration::from_secs(3600)).0;
        }
        state.dirty.clear(run);
        Some(Copy { id, epoch: state.epoch, range })
    }

    /// A copy is done, or has failed.
    pub fn release(&self, copy: &Copy, done: bool) {
        let mut state = self.state();
        state.copies.retain(|(id, _)| *id != copy.id);
        if done && copy.epoch == state.epoch {
            state.unsynced.set(regions(&copy.range));
        } else {
            state.make_dirty(&copy.range);
        }
        self.wake(&state, true);
    }

    /// The target is about to be asked to flush. One at a time: the next comes when the last has
    /// ended, well or not.
    pub fn flushing(&self) {
        let mut state = self.state();
        let State { unsynced, syncing, .. } = &mut *state;
        syncing.take_from(unsynced);
    }

    /// What the target had answered before [`Regions::flushing`] is durable there.
    pub fn flushed(&self) {
        self.state().syncing.empty();
    }

    /// The target may have died: what it had not made durable is to be copied again, and writes
    /// are not forwarded any more.
    pub fn lost(&self) {
        let mut state = self.state();
        state.epoch += 1;
        state.forward = false;
        let State { dirty, unsynced, syncing, .. } = &mut *state;
        dirty.take_from(unsynced);
        dirty.take_from(syncing);
        self.wake(&state, true);
    }

    /// Whether source and target are equal, as far as the target has answered.
    pub fn is_settled(&self) -> bool {
        self.state().is_settled()
    }

    /// Waits until they are equal; whether they are.
    pub fn wait_settled(&self, deadline: Instant) -> bool {
        let mut state = self.state();
        loop {
            if state.is_settled() {
                return true;
            }
            let (again, more) = self.wait(state, SETTLED, deadline);
            state = again;
            if !more {
                return state.is_settled();
            }
        }
    }

    /// Waits until something is dirty, or until `deadline`.
    pub fn wait_dirty(&self, deadline: Instant) {
        let state = self.state();
        if state.run(0, u64::MAX, 1).is_none() {
            drop(self.wait(state, WORK, deadline));
        }
    }

    /// Has everybody who waits for something dirty look again.
    pub fn wake_idle(&self) {
        drop(self.state());
        self.work.notify_all();
    }

    /// The regions in which source and target may differ.
    pub fn missing(&self) -> Bits {
        let state = self.state();
        let mut missing = state.dirty.clone();
        let writes = state.writes.iter().map(|write| &write.range);
        for range in state.copies.iter().map(|(_, range)| range).chain(writes) {
            missing.set(regions(range));
        }
        missing
    }

    /// How much of what there is.
    pub fn counts(&self) -> Counts {
        let state = self.state();
        Counts {
            dirty: (state.dirty.ones() * REGION).min(self.size),
            copying: state.copies.iter().map(|(_, range)| range.end - range.start).sum(),
            redirtied: state.redirtied,
            passes: state.passes,
            writes: state.writes.len(),
            forward: state.forward,
        }
    }

    fn bytes(&self, run: &Range<u64>) -> Range<u64> {
        run.start * REGION..(run.end * REGION).min(self.size)
    }
}
