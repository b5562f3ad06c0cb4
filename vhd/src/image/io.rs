//! Where an image has what, and reading it.

use std::ops::Range;
use std::sync::MutexGuard;

use super::cache::Bits;
use super::{Image, State};
use crate::bat::ABSENT;
use crate::error::{Error, Result};
use crate::footer::DiskType;
use crate::{SECTOR, bits, sys};

/// A piece of the disk and where this file has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Position in the disk, bytes.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Position in the file, bytes; none when this file does not have it.
    pub at: Option<u64>,
}

/// Where a range of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In one piece, at this position of the file, bytes.
    At(u64),
    /// Not in this file.
    Absent,
    /// In several pieces, or only some of it here: [`Image::map`] tells.
    Mixed,
}

/// Runs shorter than this are not looked at for holes, bytes.
const LOOK: u64 = 64 << 10;

/// What is to be known of a bitmap before it can be read.
#[derive(Clone, Copy)]
struct Shape {
    /// It need not be read: the batmap says so.
    full: bool,
    reversed: bool,
    bytes: u64,
    sectors: u64,
}

impl Shape {
    fn of(state: &State, block: u32) -> Self {
        let (sectors, bytes) = state.header.as_ref().map_or((0, 0), |header| {
            (u64::from(header.block_size) / SECTOR, header.bitmap_bytes())
        });
        let batmap = state.batmap.as_ref();
        let full = batmap.is_some_and(|batmap| bits::get(&batmap.map, u64::from(block)));
        Self { full, reversed: state.footer.has_reversed_bits(), bytes, sectors }
    }
}

impl Image {
    /// Where this file has a range of the disk: runs in order, covering exactly the range, adjacent
    /// ones merged. Runs begin and end on sectors, or where the range does.
    pub fn map(&self, offset: u64, length: u64) -> Result<Vec<Run>> {
        let mut runs = Vec::new();
        self.map_to(offset, length, &mut runs)?;
        Ok(runs)
    }

    /// As [`Image::map`], of what is present only, with the file's holes left out: `each` gets
    /// what may be anything but zeros (`true`), and what is present and zero (`false`).
    pub(crate) fn each_present(
        &self,
        offset: u64,
        length: u64,
        each: &mut dyn FnMut(u64, u64, bool),
    ) -> Result<()> {
        // Where the file is known to have no holes.
        let mut data = 0..0;
        for run in self.map(offset, length)? {
            let Some(place) = run.at else { continue };
            let mut done = 0;
            while done < run.length {
                let (at, left) = (place + done, run.length - done);
                // A look costs as much as reading the smallest.
                if left < LOOK || data.contains(&at) {
                    let stop = if left < LOOK { left } else { left.min(data.end - at) };
                    each(run.offset + done, stop, true);
                    done += stop;
                    continue;
                }
                let found = self.file.next_data(at).map_err(Error::io(&self.path, "seek"))?;
                data = found.map_or(u64::MAX..u64::MAX, |found| {
                    let end = found.end.checked_next_multiple_of(SECTOR).unwrap_or(u64::MAX);
                    found.start / SECTOR * SECTOR..end.max(at + SECTOR)
                });
                let hole = data.start.saturating_sub(at).min(left);
                each(run.offset + done, hole, false);
                done += hole;
            }
        }
        Ok(())
    }

    /// Where a range is, when one answer does for all of it.
    pub fn locate(&self, offset: u64, length: u64) -> Result<Place> {
        let state = self.state();
        self.check_range(&state, offset, length)?;
        let Some(header) = &state.header else { return Ok(Place::At(offset)) };
        let (block_size, bitmap_bytes) = (u64::from(header.block_size), header.bitmap_bytes());
        let (block, within) = ((offset / block_size) as u32, offset % block_size);
        if within + length > block_size {
            return Ok(Place::Mixed);
        }
        let sector = state.table.get(block as usize).copied().unwrap_or(ABSENT);
        if sector == ABSENT {
            return Ok(Place::Absent);
        }
        let mut state = if state.bitmaps.get(block).is_some() {
            state
        } else {
            drop(state);
            self.ready(block)?
        };
        let at = u64::from(sector) * SECTOR + bitmap_bytes + within;
        Ok(match self.bitmap(&mut state, block, sector)? {
            Bits::Full => Place::At(at),
            Bits::Map(map) => {
                let (first, end) = (within / SECTOR, (within + length).div_ceil(SECTOR));
                match bits::run(map, first, end) {
                    (true, count) if first + count == end => Place::At(at),
                    (false, count) if first + count == end => Place::Absent,
                    _ => Place::Mixed,
                }
            }
        })
    }

    /// As [`Image::map`], into runs that are there already, which are dropped.
    pub fn map_to(&self, offset: u64, length: u64, runs: &mut Vec<Run>) -> Result<()> {
        runs.clear();
        let state = self.state();
        self.check_range(&state, offset, length)?;
        let Some(header) = &state.header else {
            push(runs, Run { offset, length, at: Some(offset) });
            return Ok(());
        };
        let block_size = u64::from(header.block_size);
        drop(state);
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let block = (at / block_size) as u32;
            let stop = end.min((at / block_size + 1) * block_size);
            // Each block by itself: what belongs together for a writer lies in one.
            let mut state = self.ready(block)?;
            self.map_block(&mut state, block, at..stop, runs)?;
            at = stop;
        }
        Ok(())
    }

    /// Appends the runs of a part of a block.
    fn map_block(
        &self,
        state: &mut State,
        block: u32,
        range: Range<u64>,
        runs: &mut Vec<Run>,
    ) -> Result<()> {
        let Some(header) = &state.header else { return Ok(()) };
        let (block_size, bitmap_bytes) = (u64::from(header.block_size), header.bitmap_bytes());
        let base = u64::from(block) * block_size;
        let (mut at, stop) = (range.start, range.end);
        let sector = state.table.get(block as usize).copied().unwrap_or(ABSENT);
        if sector == ABSENT {
            push(runs, Run { offset: at, length: stop - at, at: None });
            return Ok(());
        }
        let data = u64::from(sector) * SECTOR + bitmap_bytes;
        match self.bitmap(state, block, sector)? {
            Bits::Full => {
                push(runs, Run { offset: at, length: stop - at, at: Some(data + at - base) });
            }
            Bits::Map(map) => {
                let limit = (stop - base).div_ceil(SECTOR);
                while at < stop {
                    let first = (at - base) / SECTOR;
                    let (present, count) = bits::run(map, first, limit);
                    let next = stop.min(base + (first + count) * SECTOR);
                    let place = present.then_some(data + at - base);
                    push(runs, Run { offset: at, length: next - at, at: place });
                    at = next;
                }
            }
        }
        Ok(())
    }

    /// The state, with the bits of a block in memory if the block is there. They are read without
    /// the lock, so that nobody waits for the storage who does not need them.
    pub(super) fn ready(&self, block: u32) -> Result<MutexGuard<'_, State>> {
        for _ in 0..2 {
            let state = self.state();
            let sector = state.table.get(block as usize).copied().unwrap_or(ABSENT);
            if sector == ABSENT || state.bitmaps.get(block).is_some() {
                return Ok(state);
            }
            let changes = state.changes;
            let shape = Shape::of(&state, block);
            drop(state);
            let bits = self.read_bits(sector, shape)?;
            let mut state = self.state();
            if state.changes == changes {
                state.bitmaps.keep(block, bits);
                return Ok(state);
            }
            // What was read may be older than what was published meanwhile.
        }
        let mut state = self.state();
        let sector = state.table.get(block as usize).copied().unwrap_or(ABSENT);
        if sector != ABSENT {
            self.bitmap(&mut state, block, sector)?;
        }
        Ok(state)
    }

    /// The bits of an allocated block, read when they are not in memory.
    pub(super) fn bitmap<'a>(
        &self,
        state: &'a mut State,
        block: u32,
        sector: u32,
    ) -> Result<&'a Bits> {
        if state.bitmaps.get(block).is_none() {
            let bits = self.read_bits(sector, Shape::of(state, block))?;
            state.bitmaps.keep(block, bits);
        }
        // The newest is never dropped.
        state.bitmaps.get(block).ok_or_else(|| self.wrong_type("lost a bitmap"))
    }

    fn read_bits(&self, sector: u32, shape: Shape) -> Result<Bits> {
        if shape.full {
            return Ok(Bits::Full);
        }
        let mut map = vec![0; shape.bytes as usize];
        sys::read_at(&*self.file, &self.path, &mut map, u64::from(sector) * SECTOR)?;
        if shape.reversed {
            for byte in &mut map {
                *byte = byte.reverse_bits();
            }
        }
        Ok(Bits::of(map, shape.sectors))
    }

    /// Keeps about that many bytes of bitmaps in memory, besides those that are not in the file.
    pub fn set_memory(&self, bytes: usize) {
        self.state().bitmaps.set_budget(bytes);
    }

    /// Reads what this file has; the rest of `buf` is left as it is. Returns the runs it lacks.
    pub fn read_present(&self, offset: u64, buf: &mut [u8]) -> Result<Vec<Run>> {
        let mut absent = Vec::new();
        for run in self.map(offset, buf.len() as u64)? {
            let start = (run.offset - offset) as usize;
            match run.at {
                Some(at) => {
                    let part = &mut buf[start..start + run.length as usize];
                    sys::read_at(&*self.file, &self.path, part, at)?;
                }
                None => absent.push(run),
            }
        }
        Ok(absent)
    }

    /// Reads a part of the disk, taking this image as one without a parent: what it does not hold
    /// reads as zeros. [`crate::Chain`] reads through to parents.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        for run in self.read_present(offset, buf)? {
            let start = (run.offset - offset) as usize;
            buf[start..start + run.length as usize].fill(0);
        }
        Ok(())
    }

    /// Writes a part of the disk. A differencing image takes whole sectors only, since the rest of
    /// a part-written one is in its parent: write those through a [`crate::Chain`].
    pub fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let aligned = offset.is_multiple_of(SECTOR) && (buf.len() as u64).is_multiple_of(SECTOR);
        if !aligned && self.info.disk_type == DiskType::Differencing {
            let length = buf.len() as u64;
            return Err(Error::Unaligned { path: self.path.clone(), offset, length });
        }
        crate::disk::by_sectors(
            offset,
            buf,
            &mut |offset, sector| self.read_at(offset, sector),
            &mut |offset, part| self.write_sectors(offset, part),
        )
    }

    pub(super) fn check_range(&self, state: &State, offset: u64, length: u64) -> Result<()> {
        let size = state.footer.current_size;
        if offset.checked_add(length).is_some_and(|end| end <= size) {
            return Ok(());
        }
        Err(Error::OutOfRange { path: self.path.clone(), offset, length, size })
    }
}

fn push(runs: &mut Vec<Run>, run: Run) {
    if let Some(last) = runs.last_mut()
        && match (last.at, run.at) {
            (Some(last_at), Some(at)) => last_at + last.length == at,
            (None, None) => true,
            _ => false,
        }
    {
        last.length += run.length;
        return;
    }
    if run.length > 0 {
        runs.push(run);
    }
}
