//! The threads of a copy: looking for what is to be copied, copying it, and deciding how.

use std::ops::Range;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::engine::{Copy, State};
use super::pace::{Held, Regard, Room, Throttle, thread_time};
use super::regions::{self, REGION};
use super::target::{Failure, Piece, PieceKind};
use crate::error::Error;

/// Zeros are sent as requests of this many bytes at most.
const LOOK: u64 = 64 << 20;

/// Zeros that were seen at the start are sent without reading them when there are so many bytes of
/// them together. Others are read: that costs less than to ask a file where its holes are, which
/// some file systems answer by going through all that follows.
const MANY: u64 = 4 << 20;

/// So many such places are remembered; of more, the rest is read.
const PLACES: usize = 1 << 16;

/// Bytes of the source that are looked at at a time at the start.
const SEED: u64 = 1 << 30;

/// What goes from the source's files to the target by itself has so many bytes at most: a pipe
/// holds twice as much when they are pages.
const CARRIED: u64 = 512 << 10;

/// So many bytes of a region tell that it is not zeros, most likely.
const BEGIN: usize = 512;

/// Time between two decisions.
const TICK: Duration = Duration::from_millis(50);

/// Ticks that a decision looks back.
const BACK: usize = 4;

/// Ticks without a write after which the guest counts as idle.
const QUIET: u32 = 10;

/// A thread without work looks again after this.
const IDLE: Duration = Duration::from_secs(1);

/// Why a piece was not copied.
enum Trouble {
    Source(Error),
    Target(Failure),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Source(error)
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self::Target(failure)
    }
}

/// A piece that a worker has taken.
struct Next {
    /// In which it was begun.
    generation: u64,
    copy: regions::Copy,
    /// It is looked at before it is copied.
    look: bool,
    /// As they are counted in flight.
    bytes: u64,
}

/// What a worker keeps.
#[derive(Default)]
struct Bench {
    buffer: Vec<u8>,
    pieces: Vec<Piece>,
}

/// Large places that held zeros at the start, in order: hints. Whoever uses one looks again.
#[derive(Default)]
pub(super) struct ZeroPlaces(Vec<Range<u64>>);

impl ZeroPlaces {
    fn add(&mut self, range: &Range<u64>) {
        let count = self.0.len();
        match self.0.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ if count < PLACES => self.0.push(range.clone()),
            _ => {}
        }
    }

    /// Forgets what is too small.
    fn done(&mut self) {
        self.0.retain(|range| range.end - range.start >= MANY);
        self.0.shrink_to_fit();
    }

    /// Where the zeros that are at a position end, if there are any.
    fn end(&self, at: u64) -> Option<u64> {
        let index = self.0.partition_point(|range| range.end <= at);
        self.0.get(index).filter(|range| range.start <= at).map(|range| range.end)
    }
}

impl Copy {
    /// Marks what the source holds.
    pub(super) fn find(&self) {
        let (mut at, size) = (0, self.source.size());
        let mut pieces = Vec::new();
        while at < size {
            let end = size.min(at + SEED);
            pieces.clear();
            if let Err(error) = self.source.pieces(at..end, &mut pieces) {
                return self.source_failed(&error);
            }
            let wanted = |piece: &&Piece| match piece.kind {
                PieceKind::Data => true,
                PieceKind::Zeros => !self.target.is_blank(),
                PieceKind::Same => false,
            };
            {
                let mut zeros = self.zeros.write().unwrap_or_else(PoisonError::into_inner);
                for piece in pieces.iter().filter(|piece| piece.kind == PieceKind::Zeros) {
                    zeros.add(&piece.range);
                }
            }
            // Each region once: it may be copied as soon as it is marked.
            let (mut marked, mut run) = (0, 0..0);
            for piece in pieces.iter().filter(wanted) {
                let start = piece.range.start / REGION * REGION;
                if start > run.end {
                    marked += self.regions.mark(&run);
                    run = start..start;
                }
                run.end = piece.range.end.next_multiple_of(REGION);
            }
            marked += self.regions.mark(&run);
            at = end;
            let mut run = self.run();
            if !matches!(run.state, State::Running | State::Retrying(..)) {
                return;
            }
            run.total += marked;
            run.seeded = at >= size;
        }
        self.zeros.write().unwrap_or_else(PoisonError::into_inner).done();
        let mut run = self.run();
        run.seeded = true;
        drop(run);
        self.tell();
    }

    /// What each worker does.
    pub(super) fn work(&self) {
        let mut bench = Bench::default();
        while self.wait_running() {
            let Some(next) = self.take_next(&mut bench) else { continue };
            let Next { generation, copy, look, bytes } = next;
            let before = self.processor.rate().map(|_| thread_time());
            let done = self.copy(&copy, look, &mut bench);
            if let Some(before) = before {
                self.processor.spend(thread_time().saturating_sub(before));
            }
            self.regions.release(&copy, done.is_ok());
            match done {
                Ok(()) => {
                    let bytes = copy.range.end - copy.range.start;
                    self.copied.fetch_add(bytes, Ordering::Relaxed);
                    self.succeeded();
                }
                Err(Trouble::Source(error)) => self.source_failed(&error),
                Err(Trouble::Target(failure)) => self.failed(generation, &failure),
            }
            self.in_flight.give_back(bytes);
        }
    }

    /// Takes what is to be copied next, when the limits let it. None: look again whether to go on.
    fn take_next(&self, bench: &mut Bench) -> Option<Next> {
        let turns = [&self.throttle, &self.processor].map(Throttle::turn);
        let run = self.run();
        if !matches!(run.state, State::Running) {
            return None;
        }
        let wait = self.throttle.wait().max(self.processor.wait());
        if !wait.is_zero() {
            drop(self.sleep(run, Instant::now() + wait));
            return None;
        }
        let generation = run.generation;
        drop(run);
        let Some(hint) = self.regions.next(LOOK) else {
            drop(turns);
            // Room for the others.
            *bench = Bench::default();
            self.regions.wait_dirty(Instant::now() + IDLE);
            return None;
        };
        let load = self.load();
        let (range, look) = self.how_much(&hint, load.piece);
        let bytes = (range.end - range.start).min(load.piece);
        if !self.in_flight.take(bytes, load.in_flight) {
            return None;
        }
        let Some(copy) = self.regions.take(&range) else {
            self.in_flight.give_back(bytes);
            return None;
        };
        self.throttle.spend(bytes);
        Some(Next { generation, copy, look, bytes })
    }

    /// Waits until there may be something to do, and flushes when that is due. False: it is over.
    fn wait_running(&self) -> bool {
        let mut run = self.run();
        loop {
            match run.state {
                State::Running if run.flush_due => {
                    run.flush_due = false;
                    drop(run);
                    // What it leads to has been decided there.
                    let _ = self.flush();
                    run = self.run();
                }
                State::Running => return true,
                State::Retrying(..) => run = self.sleep(run, Instant::now() + IDLE),
                State::Failed(_) | State::Ended => return false,
            }
        }
    }

    /// How much of what is next is copied as one piece, and whether to look at what it is first.
    fn how_much(&self, hint: &Range<u64>, piece: u64) -> (Range<u64>, bool) {
        let chunk = hint.start..hint.end.min(hint.start + piece);
        let zeros = self.zeros.read().unwrap_or_else(PoisonError::into_inner);
        match zeros.end(hint.start) {
            Some(end) if end > chunk.end => {
                let whole = if end >= hint.end { hint.end } else { end / REGION * REGION };
                (hint.start..whole.max(chunk.end), true)
            }
            _ => (chunk, self.source.is_partial()),
        }
    }

    fn copy(&self, copy: &regions::Copy, look: bool, bench: &mut Bench) -> Result<(), Trouble> {
        let Bench { buffer, pieces } = bench;
        pieces.clear();
        if look {
            self.source.pieces(copy.range.clone(), pieces)?;
        } else {
            pieces.push(Piece { range: copy.range.clone(), kind: PieceKind::Data });
        }
        let least = self.target.least_block();
        let uneven = |at: u64| !at.is_multiple_of(least) && at != copy.range.end;
        if pieces.iter().any(|piece| uneven(piece.range.start) || uneven(piece.range.end)) {
            pieces.clear();
            pieces.push(Piece { range: copy.range.clone(), kind: PieceKind::Data });
        }
        for piece in pieces.iter() {
            match piece.kind {
                PieceKind::Same => {}
                PieceKind::Zeros => {
                    self.target.zero(piece.range.start, piece.range.end - piece.range.start)?;
                }
                PieceKind::Data => self.copy_data(&piece.range, buffer)?,
            }
        }
        Ok(())
    }

    /// Copies data: from the source's files by themselves where the target takes that, else
    /// through memory. What may be zeros is looked at, and goes through memory.
    ///
    /// In the first way the target may get a part of a write that comes while the range is being
    /// copied. That is the same as if the copy had read it in the middle of that write, which makes
    /// the range dirty when it ends.
    fn copy_data(&self, range: &Range<u64>, buffer: &mut Vec<u8>) -> Result<(), Trouble> {
        let most = self.options.idle.piece.max(REGION);
        let by_files = self.target.takes_files();
        let mut at = range.start;
        while at < range.end {
            let mut end = range.end.min(at + most);
            if by_files {
                let zeros = self.begins_with_zeros(at, end)?;
                end = self.end_of_like(at, end.min(at + CARRIED), zeros)?;
                if !zeros
                    && let Some(transfer) = self.source.place(at, end - at)
                    && self.target.write_from(at, transfer)?
                {
                    at = end;
                    continue;
                }
            }
            buffer.resize((end - at) as usize, 0);
            self.source.read(at, buffer)?;
            self.put(at, buffer)?;
            at = end;
        }
        Ok(())
    }

    /// Whether the first bytes of a piece are zeros.
    fn begins_with_zeros(&self, at: u64, end: u64) -> Result<bool, Trouble> {
        let mut bytes = [0; BEGIN];
        let bytes = bytes.get_mut(..(end - at).min(BEGIN as u64) as usize).unwrap_or_default();
        self.source.read(at, bytes)?;
        Ok(vhd::copy::is_zero(bytes))
    }

    /// Where the pieces of a region's length end that begin as the first one does.
    fn end_of_like(&self, at: u64, end: u64, zeros: bool) -> Result<u64, Trouble> {
        let mut like = end.min(at + REGION);
        while like < end && self.begins_with_zeros(like, end)? == zeros {
            like = end.min(like + REGION);
        }
        Ok(like)
    }

    /// Writes data, with zeros as zeros.
    fn put(&self, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        let unit = REGION as usize;
        let zero =
            |from: usize| bytes.get(from..bytes.len().min(from + unit)).map(vhd::copy::is_zero);
        let mut start = 0;
        while start < bytes.len() {
            let kind = zero(start);
            let mut end = bytes.len().min(start + unit);
            while end < bytes.len() && zero(end) == kind {
                end = bytes.len().min(end + unit);
            }
            let at = offset + start as u64;
            if kind == Some(true) {
                self.target.zero(at, (end - start) as u64)?;
            } else {
                self.target.write(at, bytes.get(start..end).unwrap_or_default())?;
            }
            start = end;
        }
        Ok(())
    }

    /// What the keeper does: tries a target again that failed, and decides what happens next.
    pub(super) fn keep(&self) {
        let mut view = View::new(self);
        loop {
            let run = self.run();
            match &run.state {
                State::Failed(_) | State::Ended => return,
                State::Retrying(_, until) if Instant::now() >= *until => {
                    drop(run);
                    self.try_again();
                }
                State::Retrying(_, until) => {
                    let until = *until;
                    drop(self.sleep(run, until));
                }
                State::Running => {
                    let next = Instant::now() + TICK;
                    let mut run = run;
                    while matches!(run.state, State::Running) && Instant::now() < next {
                        run = self.sleep(run, next);
                    }
                    drop(run);
                    view.tick(self);
                }
            }
        }
    }

    fn try_again(&self) {
        let mut outcome = self.renew();
        let settle = self.run().unsettled;
        if settle && outcome.is_ok() {
            // The new connection answers, so the server runs; what it still had of the old one is
            // done before this is over.
            outcome = self.target.flush();
            let until = Instant::now() + self.options.settle;
            let mut run = self.run();
            while matches!(run.state, State::Retrying(..)) && Instant::now() < until {
                run = self.sleep(run, until);
            }
        }
        let mut run = self.run();
        if !matches!(run.state, State::Retrying(..)) {
            return;
        }
        match outcome {
            Ok(()) => {
                run.state = State::Running;
                run.unsettled = false;
            }
            Err(failure) => self.retry_later(&mut run, &failure),
        }
        drop(run);
        self.tell();
    }
}

/// What the keeper remembers from tick to tick.
struct View {
    /// Bytes copied, bytes made dirty again, and writes of the guest, at the last ticks, the oldest
    /// first.
    past: Vec<(Instant, [u64; 3])>,
    guest: u64,
    room: Room,
    /// Ticks without a write of the guest.
    quiet: u32,
    passes: u64,
    /// Bytes that were dirty when this pass began.
    pass_began_with: u64,
    flushed: (Instant, u64),
    ready: bool,
    regard: Regard,
}

impl View {
    fn new(copy: &Copy) -> Self {
        Self {
            past: Vec::new(),
            guest: copy.guest.load(Ordering::Relaxed),
            room: Room::default(),
            quiet: 0,
            passes: 0,
            pass_began_with: u64::MAX,
            flushed: (Instant::now(), 0),
            ready: false,
            regard: Regard::new(),
        }
    }

    fn tick(&mut self, copy: &Copy) {
        let now = Instant::now();
        let counts = copy.regions.counts();
        let copied = copy.copied.load(Ordering::Relaxed);
        let guest = copy.guest.load(Ordering::Relaxed);
        // A guest that waits for us does not write either.
        self.quiet = if guest == self.guest { self.quiet + 1 } else { 0 };
        self.guest = guest;
        let all = [copied, counts.redirtied, guest];
        self.past.push((now, all));
        if self.past.len() > BACK + 1 {
            self.past.remove(0);
        }
        let first = self.past.first().copied().unwrap_or((now, all));
        let time = now.duration_since(first.0).max(TICK);
        let per_second = |(now, before)| {
            u128::from(u64::saturating_sub(now, before)) * 1000 / time.as_millis().max(1)
        };
        let [rate, again, writes] =
            [0, 1, 2].map(|what: usize| per_second((all[what], first.1[what])) as u64);

        if copy.options.regard
            && let Some(slowest) = copy.latency.take()
        {
            if copied == 0 {
                self.regard.learn(slowest);
            } else {
                let limit = self.regard.decide(copy.throttle.rate(), rate, slowest);
                copy.throttle.set(limit.or(copy.options.rate));
            }
        }
        if self.pass_began_with == u64::MAX {
            self.pass_began_with = counts.dirty + counts.copying;
        }
        let left = counts.dirty + counts.copying;
        let mut run = copy.run();
        let done = if run.seeded {
            1000 - (left.saturating_mul(1000) / run.total.max(1)).min(1000)
        } else {
            0
        };
        // Whoever asked for a rate has decided; and a copy that has nothing to do has no speed.
        let held = if copy.throttle.rate().is_some() || left == 0 {
            self.room = Room::default();
            Held::Beside
        } else {
            self.room.decide(writes, copied, now, done)
        };
        copy.throttle.set_room(held.rate());
        let busy = self.quiet < QUIET && guest > 0 && held != Held::Not;
        copy.busy.store(busy, Ordering::Relaxed);
        let allowed = run.forward_after.is_none_or(|after| now >= after);
        if run.seeded && allowed && !counts.forward && matches!(run.state, State::Running) {
            let passed = counts.passes > self.passes;
            // In this order: it ends soon; it did not get anywhere; it will not.
            if left <= rate
                || left == 0
                || (passed && left > self.pass_began_with / 2)
                || again * 2 > rate
            {
                copy.regions.forward(true);
            }
        }
        if counts.passes > self.passes {
            (self.passes, self.pass_began_with) = (counts.passes, left);
        }
        let ready = run.seeded && counts.forward && left == 0;
        let old = now.duration_since(self.flushed.0) >= copy.options.flush_every;
        let forwarded = copy.forwarded.load(Ordering::Relaxed);
        if (ready && !self.ready) || (old && self.flushed.1 != copied + forwarded) {
            run.flush_due = true;
            self.flushed = (now, copied + forwarded);
        }
        self.ready = ready;
        drop(run);
        if ready || self.flushed.0 == now {
            copy.tell();
        }
    }
}
