//! Reading and writing the data of one image.

use super::{BITMAPS, Bits, Image, State};
use crate::bat::{ABSENT, LAST_SECTOR};
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

/// Runs shorter than this are not looked at for holes, bytes.
const LOOK: u64 = 64 << 10;

/// A block that a write has to allocate.
struct Fresh {
    block: u32,
    start: u64,
}

impl Image {
    /// Where this file has a range of the disk: runs in order, covering exactly the range, adjacent
    /// ones merged. Runs begin and end on sectors, or where the range does.
    pub fn map(&self, offset: u64, length: u64) -> Result<Vec<Run>> {
        let mut state = self.state();
        self.check_range(&state, offset, length)?;
        let mut runs = Vec::new();
        self.map_into(&mut state, offset, length, &mut runs)?;
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

    fn map_into(
        &self,
        state: &mut State,
        offset: u64,
        length: u64,
        runs: &mut Vec<Run>,
    ) -> Result<()> {
        let Some(header) = &state.header else {
            push(runs, Run { offset, length, at: Some(offset) });
            return Ok(());
        };
        let (block_size, bitmap_bytes) = (u64::from(header.block_size), header.bitmap_bytes());
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let block = (at / block_size) as u32;
            let base = u64::from(block) * block_size;
            let stop = end.min(base + block_size);
            let sector = state.table.get(block as usize).copied().unwrap_or(ABSENT);
            if sector == ABSENT {
                push(runs, Run { offset: at, length: stop - at, at: None });
                at = stop;
                continue;
            }
            let data = u64::from(sector) * SECTOR + bitmap_bytes;
            match self.bitmap(state, block, sector)? {
                Bits::Full => {
                    push(runs, Run { offset: at, length: stop - at, at: Some(data + at - base) });
                    at = stop;
                }
                Bits::Map(map) => {
                    let limit = (stop - base).div_ceil(SECTOR);
                    while at < stop {
                        let (present, count) = bits::run(map, (at - base) / SECTOR, limit);
                        let first = (at - base) / SECTOR;
                        let next = stop.min(base + (first + count) * SECTOR);
                        let place = present.then_some(data + at - base);
                        push(runs, Run { offset: at, length: next - at, at: place });
                        at = next;
                    }
                }
            }
        }
        Ok(())
    }

    /// The bits of an allocated block, read when they are not in memory.
    pub(super) fn bitmap<'a>(
        &self,
        state: &'a mut State,
        block: u32,
        sector: u32,
    ) -> Result<&'a mut Bits> {
        if state.bitmaps.len() >= BITMAPS && !state.bitmaps.contains_key(&block) {
            state.bitmaps.clear();
        }
        let (sectors, size) = state.header.as_ref().map_or((0, 0), |header| {
            (u64::from(header.block_size) / SECTOR, header.bitmap_bytes())
        });
        match state.bitmaps.entry(block) {
            std::collections::hash_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let full = state
                    .batmap
                    .as_ref()
                    .is_some_and(|batmap| bits::get(&batmap.map, u64::from(block)));
                if full {
                    return Ok(entry.insert(Bits::Full));
                }
                let mut map = vec![0; size as usize];
                sys::read_at(&*self.file, &self.path, &mut map, u64::from(sector) * SECTOR)?;
                if state.footer.has_reversed_bits() {
                    for byte in &mut map {
                        *byte = byte.reverse_bits();
                    }
                }
                let full = bits::all(&map, sectors);
                Ok(entry.insert(if full { Bits::Full } else { Bits::Map(map.into()) }))
            }
        }
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

    /// Writes whole sectors. A failed write has changed some of its sectors or none, and no others.
    pub(crate) fn write_sectors(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.check_writable()?;
        let length = buf.len() as u64;
        let mut state = self.state();
        self.check_range(&state, offset, length)?;
        let mut runs = Vec::new();
        self.map_into(&mut state, offset, length, &mut runs)?;
        if runs.iter().all(|run| run.at.is_some()) {
            // Overwrites change no metadata: other writers need not wait for them.
            drop(state);
            for run in runs {
                let start = (run.offset - offset) as usize;
                let part = &buf[start..start + run.length as usize];
                if let Some(at) = run.at {
                    sys::write_at(&*self.file, &self.path, part, at)?;
                }
            }
            return Ok(());
        }
        self.write_allocating(&mut state, offset, buf)
    }

    fn write_allocating(&self, state: &mut State, offset: u64, buf: &[u8]) -> Result<()> {
        let Some(header) = state.header.clone() else { return Ok(()) };
        let block_size = u64::from(header.block_size);
        let last = offset + buf.len() as u64 - 1;
        let blocks = (offset / block_size) as u32..=(last / block_size) as u32;

        // 1. A footer at the new end, before anything is written behind the old one.
        let mut fresh = Vec::new();
        let mut end = state.end;
        for block in blocks.clone() {
            if state.table.get(block as usize) == Some(&ABSENT) {
                let start = place(end, header.bitmap_bytes());
                if start / SECTOR > LAST_SECTOR {
                    return Err(Error::FileFull { path: self.path.clone() });
                }
                end = start + header.stride();
                fresh.push(Fresh { block, start });
            }
        }
        if !fresh.is_empty() && state.volume {
            if end > state.footer_at {
                let needed = end + SECTOR;
                return Err(Error::VolumeFull { path: self.path.clone(), needed });
            }
        } else if !fresh.is_empty() {
            let footer = state.footer.to_bytes();
            if let Err(error) = sys::write_at(&*self.file, &self.path, &footer, end) {
                self.shrink_back(state);
                return Err(error);
            }
        }
        let result = self.write_pieces(state, &header, &fresh, blocks, offset, buf);
        if result.is_ok() {
            if !fresh.is_empty() {
                state.move_end(end);
            }
        } else if !fresh.is_empty()
            && fresh.iter().all(|new| state.table.get(new.block as usize) == Some(&ABSENT))
        {
            self.shrink_back(state);
        } else if !fresh.is_empty() {
            // Some entries made it into the table: their blocks stay, and so does the new end.
            state.move_end(end);
        }
        result
    }

    /// Steps 2 to 4 of the order described at the top of the module.
    fn write_pieces(
        &self,
        state: &mut State,
        header: &crate::header::Header,
        fresh: &[Fresh],
        blocks: std::ops::RangeInclusive<u32>,
        offset: u64,
        buf: &[u8],
    ) -> Result<()> {
        let (block_size, bitmap_bytes) = (u64::from(header.block_size), header.bitmap_bytes());
        let sectors = block_size / SECTOR;
        let reversed = state.footer.has_reversed_bits();
        let end = offset + buf.len() as u64;
        let mut changed: Vec<(u32, u64, Bits)> = Vec::new();
        let mut fresh_left = fresh.iter().peekable();
        for block in blocks {
            let base = u64::from(block) * block_size;
            let (from, to) = (offset.max(base), end.min(base + block_size));
            let part = &buf[(from - offset) as usize..(to - offset) as usize];
            let (first, count) = ((from - base) / SECTOR, (to - from) / SECTOR);
            if let Some(new) = fresh_left.next_if(|new| new.block == block) {
                sys::write_at(
                    &*self.file,
                    &self.path,
                    part,
                    new.start + bitmap_bytes + from - base,
                )?;
                let mut map = vec![0; bitmap_bytes as usize];
                bits::set(&mut map, first, count);
                self.write_bitmap(&map, new.start, reversed)?;
                let kept = if count == sectors { Bits::Full } else { Bits::Map(map.into()) };
                changed.push((block, new.start, kept));
                continue;
            }
            let sector = state.table.get(block as usize).copied().unwrap_or(ABSENT);
            let start = u64::from(sector) * SECTOR;
            sys::write_at(&*self.file, &self.path, part, start + bitmap_bytes + from - base)?;
            if let Bits::Map(map) = self.bitmap(state, block, sector)?
                && bits::run(map, first, first + count) != (true, count)
            {
                let mut map = map.clone();
                bits::set(&mut map, first, count);
                changed.push((block, start, Bits::Map(map)));
            }
        }
        if self.power_safe.load(std::sync::atomic::Ordering::Relaxed) {
            self.flush()?;
        }
        for (block, start, kept) in changed {
            if let Bits::Map(map) = &kept
                && !fresh.iter().any(|new| new.block == block)
            {
                self.write_bitmap(map, start, reversed)?;
            }
            let full = matches!(&kept, Bits::Map(map) if bits::all(map, sectors));
            state.bitmaps.insert(block, if full { Bits::Full } else { kept });
        }
        // Neighbouring entries go out in one write.
        let mut rest = fresh;
        while let Some(first) = rest.first() {
            let count = rest.iter().zip(first.block..).take_while(|(new, want)| new.block == *want);
            let (run, tail) = rest.split_at(count.count());
            let sectors = run.iter().map(|new| (new.start / SECTOR) as u32);
            let bytes: Vec<u8> = sectors.clone().flat_map(u32::to_be_bytes).collect();
            let at = header.table_offset + u64::from(first.block) * 4;
            sys::write_at(&*self.file, &self.path, &bytes, at)?;
            for (new, sector) in run.iter().zip(sectors) {
                if let Some(entry) = state.table.get_mut(new.block as usize) {
                    *entry = sector;
                }
            }
            rest = tail;
        }
        Ok(())
    }

    pub(super) fn write_bitmap(&self, map: &[u8], at: u64, reversed: bool) -> Result<()> {
        if reversed {
            let turned: Vec<u8> = map.iter().map(|byte| byte.reverse_bits()).collect();
            sys::write_at(&*self.file, &self.path, &turned, at)
        } else {
            sys::write_at(&*self.file, &self.path, map, at)
        }
    }

    /// Gives back the space behind the end after a write that did not come to a block of its own.
    /// Best effort: the file is sound either way, only longer.
    fn shrink_back(&self, state: &mut State) {
        for new in state.bitmaps.keys().copied().collect::<Vec<_>>() {
            if state.table.get(new as usize) == Some(&ABSENT) {
                state.bitmaps.remove(&new);
            }
        }
        let footer = state.footer.to_bytes();
        if !state.volume && sys::write_at(&*self.file, &self.path, &footer, state.footer_at).is_ok()
        {
            let _ = self.file.set_len(state.footer_at + footer.len() as u64);
        }
    }

    fn check_range(&self, state: &State, offset: u64, length: u64) -> Result<()> {
        let size = state.footer.current_size;
        if offset.checked_add(length).is_some_and(|end| end <= size) {
            return Ok(());
        }
        Err(Error::OutOfRange { path: self.path.clone(), offset, length, size })
    }
}

impl State {
    /// Blocks reach to `end` now.
    pub(super) fn move_end(&mut self, end: u64) {
        self.end = end;
        if !self.volume {
            self.footer_at = end;
        }
    }
}

/// Where a block whose bitmap takes `bitmap_bytes` goes when it may start at `end`: its data on a
/// multiple of 4096, as blktap does, so that direct I/O and drives with 4 KiB sectors work.
pub(super) fn place(end: u64, bitmap_bytes: u64) -> u64 {
    (end + bitmap_bytes).next_multiple_of(4096) - bitmap_bytes
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
