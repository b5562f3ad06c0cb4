//! Merging an image into its parent: what a coalesce copies.
//!
//! # Why any cut is harmless
//!
//! The child stays where it is until its merge is complete, and hides from every reader the
//! sectors that it holds. So those sectors of the parent may be torn at any moment, and only they
//! are ever changed:
//!
//! - in a block that the parent has, sectors are written in place. What lies between them is at
//!   most written again as it was read. Bits are only added to its bitmap, in any order with the
//!   data: they are bits of the child's sectors;
//! - a new block is prepared behind the end of the file, data and bitmap, made durable, and only
//!   then entered into the block table. A stale bitmap would hide the grandparent's sectors, or
//!   let through what nobody wrote.
//!
//! Nobody else may write to the parent meanwhile; readers of either image may read.
//!
//! # Batches
//!
//! Each of those steps is taken for many blocks at once, so that the cost of the three syncs is
//! shared by some hundred megabytes. While data is copied, a second thread has the system write
//! out what was copied before.
//!
//! The batmap of the parent is left as it is. A clear bit is always right, and a batmap that is
//! torn by a cut makes other tools refuse the image.

use std::ops::ControlFlow;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;

use crate::copy::is_zero;
use crate::error::{Error, Result};
use crate::image::{Held, Image, Reserved, Shape};
use crate::{SECTOR, bits, sys};

/// What a merge has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Blocks of the child below this one are in the parent, and durable.
    pub next_block: u64,
    /// Bytes of data copied since the start of this call.
    pub bytes: u64,
}

/// How a merge goes about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes copied between two calls of `pace`; at least one block is.
    pub batch: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { batch: 256 << 20 }
    }
}

/// Bytes of tables and bitmaps that a batch may hold in memory.
const MEMORY: usize = 4 << 20;

/// A batch is given to the storage in this many parts, while copying goes on,
const PARTS: u64 = 8;

/// but none smaller than this.
const EARLY: u64 = 4 << 20;

/// Writes at most this far apart are written out together.
const NEAR: u64 = 2 << 20;

/// A run of sectors of this length is copied by itself, without passing through this process
/// where the storage can do that.
const LARGE: u64 = 64 << 10;

/// Shorter runs are collected up to this length.
const SPAN: u64 = 1 << 20;

/// Runs this near to each other are written as one, with what is between them.
const GAP: u64 = 8 << 10;

/// Copies every sector that `child` itself holds into `parent`, starting at the child's block
/// `from_block`. `pace` is called when a batch is durable; its `Break` stops the merge with
/// [`Error::Stopped`]. Cut anywhere, it can be done again from the last block that `pace` was told.
///
/// The parent must be at least as large as the child: [`Image::grow`] comes before. A volume that
/// is too small is refused before anything is changed; a cut may leave the places of one batch
/// unused, so that going on needs that much more.
pub fn merge(
    child: &Image,
    parent: &Image,
    from_block: u64,
    options: &Options,
    pace: &mut dyn FnMut(Step) -> ControlFlow<()>,
) -> Result<Step> {
    let job = Job::new(child, parent)?;
    job.check_room(from_block)?;
    // What the child does not hold after a power cut, it would no longer hide.
    sys::sync(child.blob(), child.path())?;
    let mut step = Step { next_block: from_block, bytes: 0 };
    loop {
        let batch = job.plan(step.next_block, options.batch)?;
        if batch.blocks.is_empty() {
            return Ok(Step { next_block: batch.next, ..step });
        }
        job.run(&batch, (options.batch / PARTS).max(EARLY))?;
        step = Step { next_block: batch.next, bytes: step.bytes + batch.bytes };
        if pace(step).is_break() {
            return Err(Error::Stopped { done: step.bytes });
        }
    }
}

/// Bytes of data that a merge would copy; from the tables and bitmaps only.
pub fn merge_bytes(child: &Image) -> Result<u64> {
    let source = Source::new(child)?;
    let mut bytes = 0;
    for block in 0..source.blocks() {
        if let Some(held) = child.held(block)? {
            bytes += source.runs(block, &held, source.range(block)).map(|run| run.1).sum::<u64>();
        }
    }
    Ok(bytes)
}

/// Bytes of the parent's data that the child holds too: the space that a merge frees when the
/// child goes. From the tables, and from the bitmaps of blocks that both have.
pub fn covered_bytes(child: &Image, parent: &Image) -> Result<u64> {
    let source = Source::new(child)?;
    let mut bytes = 0;
    for block in 0..source.blocks() {
        let Some(held) = child.held(block)? else { continue };
        for (at, length) in source.runs(block, &held, source.range(block)) {
            let length = length.min(parent.size().saturating_sub(at));
            if length > 0 {
                let own = parent.map(at, length)?;
                bytes += own.iter().filter(|r| r.at.is_some()).map(|r| r.length).sum::<u64>();
            }
        }
    }
    Ok(bytes)
}

/// A range of the disk, bytes: first, and first after it.
type Range = (u64, u64);

/// What a merge takes from.
#[derive(Clone, Copy)]
struct Source<'a> {
    image: &'a Image,
    block: u64,
    size: u64,
}

impl<'a> Source<'a> {
    fn new(image: &'a Image) -> Result<Self> {
        let Some(shape) = image.shape() else {
            let what = "a fixed image cannot be merged into another";
            return Err(Error::WrongType { path: image.path().to_owned(), what });
        };
        Ok(Self { image, block: shape.block, size: image.size() })
    }

    fn blocks(&self) -> u32 {
        // A table has fewer entries than that: `header::MAX_TABLE`.
        u32::try_from(self.size.div_ceil(self.block)).unwrap_or(u32::MAX)
    }

    fn range(&self, block: u32) -> Range {
        let start = u64::from(block) * self.block;
        (start, (start + self.block).min(self.size))
    }

    /// The sectors that a block holds within a range of it: position in the disk and length.
    fn runs<'h>(
        &self,
        block: u32,
        held: &'h Held,
        (start, end): Range,
    ) -> impl Iterator<Item = (u64, u64)> + use<'h> {
        let base = u64::from(block) * self.block;
        let mut at = start;
        std::iter::from_fn(move || {
            while at < end {
                let (sector, limit) = ((at - base) / SECTOR, (end - base) / SECTOR);
                let (present, count) = match &held.map {
                    None => (true, limit - sector),
                    Some(map) => bits::run(map, sector, limit),
                };
                let run = (at, count * SECTOR);
                at += count * SECTOR;
                if present {
                    return Some(run);
                }
            }
            None
        })
    }
}

/// Blocks of the child that are merged together.
struct Batch {
    blocks: Vec<(u32, Held)>,
    /// Blocks that the parent gets, ascending.
    fresh: Vec<u32>,
    next: u64,
    bytes: u64,
}

struct Job<'a> {
    source: Source<'a>,
    parent: &'a Image,
    /// None when the parent is a fixed image.
    shape: Option<Shape>,
}

impl<'a> Job<'a> {
    fn new(child: &'a Image, parent: &'a Image) -> Result<Self> {
        let source = Source::new(child)?;
        if child.info().file_id == parent.info().file_id {
            return Err(Error::Cycle { path: child.path().to_owned() });
        }
        if parent.size() < source.size {
            let (path, size) = (parent.path().to_owned(), parent.size());
            return Err(Error::OutOfRange { path, offset: 0, length: source.size, size });
        }
        parent.check_writable()?;
        Ok(Self { source, parent, shape: parent.shape() })
    }

    /// The parts of a block of the child that lie in one block of the parent each.
    fn cells(&self, block: u32) -> impl Iterator<Item = (u32, Range)> + use<> {
        let (start, end) = self.source.range(block);
        let step = self.shape.map_or(end, |shape| shape.block);
        let mut at = start;
        std::iter::from_fn(move || {
            (at < end).then(|| {
                let owner = at / step;
                let cell = (at, end.min((owner + 1) * step));
                at = cell.1;
                (owner as u32, cell)
            })
        })
    }

    /// As many blocks as make a batch, and always one if there is one.
    fn plan(&self, from: u64, limit: u64) -> Result<Batch> {
        let blocks = self.source.blocks();
        let mut batch = Batch {
            blocks: Vec::new(),
            fresh: Vec::new(),
            next: from.max(blocks.into()),
            bytes: 0,
        };
        let mut memory = 0;
        for block in u32::try_from(from).unwrap_or(blocks)..blocks {
            let Some(held) = self.source.image.held(block)? else { continue };
            let runs = self.source.runs(block, &held, self.source.range(block));
            let bytes: u64 = runs.map(|run| run.1).sum();
            if bytes == 0 {
                continue;
            }
            if !batch.blocks.is_empty() && (batch.bytes + bytes > limit || memory > MEMORY) {
                batch.next = block.into();
                break;
            }
            if self.shape.is_some() {
                for (owner, cell) in self.cells(block) {
                    if batch.fresh.last() != Some(&owner)
                        && self.parent.start(owner).is_none()
                        && self.source.runs(block, &held, cell).next().is_some()
                    {
                        batch.fresh.push(owner);
                        memory += 24;
                    }
                }
            }
            memory += 64 + held.map.as_ref().map_or(0, |map| map.len());
            batch.bytes += bytes;
            batch.blocks.push((block, held));
        }
        Ok(batch)
    }

    /// Looks for room before anything is changed: on a volume, and near the limit of the format.
    /// A file system's free space is nobody's promise.
    fn check_room(&self, from: u64) -> Result<()> {
        if self.shape.is_none() || self.parent.room_for(self.most_fresh()).is_ok() {
            return Ok(());
        }
        let (mut next, mut count, mut last) = (from, 0, None);
        loop {
            let batch = self.plan(next, Options::default().batch)?;
            if batch.blocks.is_empty() {
                return self.parent.room_for(count);
            }
            let again = last.is_some() && batch.fresh.first().copied() == last;
            count += batch.fresh.len() as u64 - u64::from(again);
            last = batch.fresh.last().copied().or(last);
            next = batch.next;
        }
    }

    /// Blocks that the parent could get at most.
    fn most_fresh(&self) -> u64 {
        self.shape.map_or(0, |shape| self.source.size.div_ceil(shape.block))
    }

    /// Merges a batch; afterwards all of it is durable.
    fn run(&self, batch: &Batch, early: u64) -> Result<()> {
        if batch.fresh.is_empty() {
            self.copy(batch, None, early)?;
            return self.parent.flush();
        }
        let reserved = self.parent.reserve(&batch.fresh)?;
        let copied = self.copy(batch, Some(&reserved), early);
        if let Err(error) = copied.and_then(|()| self.parent.flush()) {
            self.parent.give_back(&reserved);
            return Err(error);
        }
        // From here on the places may be the blocks': nobody may take them back.
        self.parent.publish_reserved(&reserved)?;
        self.parent.flush()
    }

    fn copy(&self, batch: &Batch, reserved: Option<&Reserved>, early: u64) -> Result<()> {
        thread::scope(|scope| {
            let (ask, asked) = sync_channel::<Range>(0);
            scope.spawn(move || {
                for (start, end) in asked {
                    self.parent.blob().write_out(start..end);
                }
            });
            let mut copier = Copier {
                job: self,
                reserved,
                ask,
                early,
                written: (0, 0),
                unwritten: 0,
                passes: true,
                data: (0, 0),
                span: Vec::new(),
                under: Vec::new(),
            };
            copier.blocks(&batch.blocks)
        })
    }
}

/// Where a part of the disk is in the files.
#[derive(Clone, Copy)]
struct Cell {
    /// Its start: in the disk, in the child's file, in the parent's.
    start: u64,
    from: u64,
    to: u64,
    /// The parent's block is a new one.
    fresh: bool,
}

impl Cell {
    fn child(self, at: u64) -> u64 {
        self.from + (at - self.start)
    }

    fn parent(self, at: u64) -> u64 {
        self.to + (at - self.start)
    }
}

struct Copier<'a> {
    job: &'a Job<'a>,
    reserved: Option<&'a Reserved>,
    /// Takes what is to be written out.
    ask: SyncSender<Range>,
    /// Bytes after which to ask for that, bytes since it was done, and where in the file they are.
    early: u64,
    unwritten: u64,
    written: Range,
    /// The storage copies by itself.
    passes: bool,
    /// Where the child's file is known to have no holes.
    data: Range,
    /// Short runs of the child, and what the parent has between them.
    span: Vec<u8>,
    under: Vec<u8>,
}

impl Copier<'_> {
    fn blocks(&mut self, blocks: &[(u32, Held)]) -> Result<()> {
        let job = self.job;
        let parent = job.parent;
        // The parent's block in work, and its new bits.
        let mut owner: Option<(u32, Vec<u8>)> = None;
        for (block, held) in blocks {
            let base = job.source.range(*block).0;
            for (index, cell) in job.cells(*block) {
                let from = held.data + (cell.0 - base);
                let Some(shape) = job.shape else {
                    let place = Cell { start: cell.0, from, to: cell.0, fresh: false };
                    self.cell(*block, held, cell, place)?;
                    continue;
                };
                let mut runs = job.source.runs(*block, held, cell).peekable();
                if runs.peek().is_none() {
                    continue;
                }
                if owner.as_ref().is_none_or(|owner| owner.0 != index) {
                    if let Some((done, map)) = owner.take() {
                        parent.mark(done, &map, self.reserved)?;
                    }
                    owner = Some((index, vec![0; shape.bitmap as usize]));
                }
                let start = u64::from(index) * shape.block;
                for (at, length) in runs {
                    if let Some((_, map)) = &mut owner {
                        bits::set(map, (at - start) / SECTOR, length / SECTOR);
                    }
                }
                let (place, fresh) = parent.place_of(index, self.reserved)?;
                let to = place + shape.bitmap + (cell.0 - start);
                self.cell(*block, held, cell, Cell { start: cell.0, from, to, fresh })?;
            }
        }
        owner.map_or(Ok(()), |(done, map)| parent.mark(done, &map, self.reserved))
    }

    /// Copies the child's sectors of a cell: long runs by themselves, short ones together.
    fn cell(&mut self, block: u32, held: &Held, range: Range, cell: Cell) -> Result<()> {
        let mut span: Option<Range> = None;
        for (at, length) in self.job.source.runs(block, held, range) {
            if let Some((start, end)) = span {
                if length < LARGE && at - end <= GAP && at + length - start <= SPAN {
                    span = Some((start, at + length));
                    continue;
                }
                self.short(block, held, (start, end), cell)?;
                span = None;
            }
            if length < LARGE {
                span = Some((at, at + length));
            } else {
                self.long((at, at + length), cell)?;
            }
        }
        span.map_or(Ok(()), |span| self.short(block, held, span, cell))
    }

    /// Copies a run without gaps, leaving its holes holes.
    fn long(&mut self, (start, end): Range, cell: Cell) -> Result<()> {
        let child = self.job.source.image;
        let mut at = start;
        while at < end {
            let from = cell.child(at);
            if !(self.data.0..self.data.1).contains(&from) {
                let found =
                    child.blob().next_data(from).map_err(Error::io(child.path(), "seek"))?;
                let data = found.map_or((u64::MAX, u64::MAX), |data| (data.start, data.end));
                // Holes are looked at by sector: beyond it may be another run's.
                let hole = (data.0 / SECTOR * SECTOR).saturating_sub(from).min(end - at);
                if hole > 0 {
                    self.zero((at, at + hole), cell)?;
                    at += hole;
                }
                let stop = data.1.checked_next_multiple_of(SECTOR).unwrap_or(u64::MAX);
                self.data = (data.0 / SECTOR * SECTOR, stop.max(from + SECTOR));
                continue;
            }
            let stop = end.min(at + (self.data.1 - from)).min(at + self.early);
            self.pass((at, stop), cell)?;
            at = stop;
        }
        Ok(())
    }

    /// Copies a run without gaps or holes.
    fn pass(&mut self, (mut at, end): Range, cell: Cell) -> Result<()> {
        let (child, parent) = (self.job.source.image, self.job.parent);
        if self.passes {
            let copied = parent
                .blob()
                .copy_from(child.blob(), cell.child(at), cell.parent(at), end - at)
                .map_err(Error::io(parent.path(), "copy"))?;
            self.passes = copied == end - at;
            self.wrote(cell.parent(at), copied);
            at += copied.min(end - at);
        }
        while at < end {
            let stop = end.min(at + SPAN);
            self.read_span((at, stop), cell)?;
            self.write_span((at, stop), cell)?;
            at = stop;
        }
        Ok(())
    }

    /// Copies short runs that are near to each other with one write.
    fn short(&mut self, block: u32, held: &Held, span: Range, cell: Cell) -> Result<()> {
        let (start, end) = span;
        self.read_span(span, cell)?;
        let runs = || self.job.source.runs(block, held, span);
        if runs().next() != Some((start, end - start)) {
            self.under.clear();
            self.under.resize((end - start) as usize, 0);
            if !cell.fresh {
                let parent = self.job.parent;
                let at = cell.parent(start);
                sys::read_at(parent.blob(), parent.path(), &mut self.under, at)?;
            }
            for (at, length) in runs() {
                let part = (at - start) as usize..(at - start + length) as usize;
                if let (Some(to), Some(from)) =
                    (self.under.get_mut(part.clone()), self.span.get(part))
                {
                    to.copy_from_slice(from);
                }
            }
            std::mem::swap(&mut self.span, &mut self.under);
        }
        self.write_span(span, cell)
    }

    fn read_span(&mut self, (start, end): Range, cell: Cell) -> Result<()> {
        let child = self.job.source.image;
        self.span.resize((end - start) as usize, 0);
        sys::read_at(child.blob(), child.path(), &mut self.span, cell.child(start))
    }

    fn write_span(&mut self, (start, end): Range, cell: Cell) -> Result<()> {
        if is_zero(&self.span) {
            return self.zero((start, end), cell);
        }
        let parent = self.job.parent;
        sys::write_at(parent.blob(), parent.path(), &self.span, cell.parent(start))?;
        self.wrote(cell.parent(start), end - start);
        Ok(())
    }

    /// Makes a range read as zeros: the child's zeros hide what the parent has.
    fn zero(&mut self, (start, end): Range, cell: Cell) -> Result<()> {
        if cell.fresh && self.reserved.is_some_and(|reserved| reserved.zeroed) {
            return Ok(());
        }
        let parent = self.job.parent;
        let (mut at, end) = (cell.parent(start), cell.parent(end));
        if end - at >= LARGE && sys::punch(parent.blob(), parent.path(), at, end - at)? {
            return Ok(());
        }
        let zeros = vec![0; (end - at).min(SPAN) as usize];
        while at < end {
            let part = zeros.get(..(end - at).min(SPAN) as usize).unwrap_or(&zeros);
            sys::write_at(parent.blob(), parent.path(), part, at)?;
            at += part.len() as u64;
        }
        self.wrote(cell.parent(start), end - cell.parent(start));
        Ok(())
    }

    fn wrote(&mut self, at: u64, bytes: u64) {
        if at < self.written.0 || at > self.written.1.saturating_add(NEAR) {
            // Others' data in between would be dropped from the system's memory.
            (self.written, self.unwritten) = ((at, at), 0);
        }
        self.unwritten += bytes;
        self.written.1 = self.written.1.max(at + bytes);
        // Not taken when the last one is still under way: then it is asked for with the next.
        if self.unwritten >= self.early && self.ask.try_send(self.written).is_ok() {
            (self.written, self.unwritten) = ((self.written.1, self.written.1), 0);
        }
    }
}
