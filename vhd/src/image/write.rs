//! Writing the data of one image.

use std::sync::atomic::Ordering;

use super::notes::{Note, Notes};
use super::publish::Metadata;
use super::{Image, Place, Stage, State, lock};
use crate::bat::{ABSENT, LAST_SECTOR};
use crate::error::{Error, Result};
use crate::footer::DiskType;
use crate::header::Header;
use crate::{SECTOR, sys};

/// A live image makes room for blocks of about this many bytes at once, by moving the footer; the
/// file is sparse, so that costs no space.
const ROOM: u64 = 256 << 20;

/// Bitmaps of a live image that may wait for being published, bytes: whoever adds more publishes.
const WAITING: u64 = 4 << 20;

/// Zeros are written in pieces of this size, bytes.
const ZEROS: u64 = 1 << 20;

/// Smaller than this, zeros are written rather than a hole punched, bytes.
const HOLE: u64 = 4096;

/// Sectors of one block, and where the block is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) block: u32,
    /// Where the block's bitmap begins in the file, bytes.
    pub(super) start: u64,
    /// First sector of the block.
    pub(super) first: u64,
    /// Number of sectors.
    pub(super) count: u64,
    /// The block was added for this write, and its place reads as zeros.
    blank: bool,
}

impl Part {
    /// Sectors of a block that is there.
    pub(super) fn new(block: u32, sector: u32, first: u32, count: u32) -> Self {
        let start = u64::from(sector) * SECTOR;
        Self { block, start, first: first.into(), count: count.into(), blank: false }
    }
}

/// What is to be in a range.
#[derive(Clone, Copy)]
enum Content<'a> {
    Data(&'a [u8]),
    Zeros,
}

/// Places for new blocks.
struct Places {
    /// Block, and where its bitmap will be.
    blocks: Vec<(u32, u64)>,
    /// Behind the last of them.
    end: u64,
}

impl Image {
    /// Writes whole sectors. A failed write has changed some of its sectors or none, and no others.
    pub(crate) fn write_sectors(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.check_writable()?;
        if let Place::At(at) = self.locate(offset, buf.len() as u64)? {
            // Overwrites change no metadata.
            return sys::write_at(&*self.file, &self.path, buf, at);
        }
        self.put(offset, buf.len() as u64, Content::Data(buf))
    }

    /// Makes whole sectors read as zeros, and gives their space back where the storage can. In a
    /// differencing image the sectors are present afterwards, so that a parent's do not show; in
    /// others, what is not there stays so.
    pub fn zero(&self, offset: u64, length: u64) -> Result<()> {
        self.check_writable()?;
        self.check_range(&self.state(), offset, length)?;
        if !offset.is_multiple_of(SECTOR) || !length.is_multiple_of(SECTOR) {
            return Err(Error::Unaligned { path: self.path.clone(), offset, length });
        }
        if self.info.disk_type == DiskType::Differencing {
            return self.put(offset, length, Content::Zeros);
        }
        for run in self.map(offset, length)? {
            if let Some(at) = run.at {
                self.clear(at, run.length)?;
            }
        }
        Ok(())
    }

    /// Makes a part of the file read as zeros.
    fn clear(&self, at: u64, length: u64) -> Result<()> {
        if length >= HOLE && sys::punch(&*self.file, &self.path, at, length)? {
            return Ok(());
        }
        let zeros = vec![0; length.min(ZEROS) as usize];
        let mut done = 0;
        while done < length {
            let part = zeros.get(..(length - done).min(ZEROS) as usize).unwrap_or(&zeros);
            sys::write_at(&*self.file, &self.path, part, at + done)?;
            done += part.len() as u64;
        }
        Ok(())
    }

    /// Writes sectors that are not all present.
    fn put(&self, offset: u64, length: u64, content: Content<'_>) -> Result<()> {
        if length == 0 {
            return Ok(());
        }
        if self.stage() == Stage::Plain {
            return self.put_plain(offset, length, content);
        }
        let mut parts = self.parts(offset, length)?;
        if parts.iter().any(|part| part.start == 0) {
            let turn = lock(&self.turn);
            self.add_blocks(&mut parts)?;
            drop(turn);
        }
        for part in &parts {
            self.fill(part, offset, content)?;
        }
        self.commit(&parts)?;
        let waiting = self.waiting();
        let full = lock(&self.notes).as_ref().is_some_and(Notes::is_crowded);
        if full || waiting > WAITING / 2 {
            self.crowded.store(true, Ordering::Relaxed);
        }
        if waiting > WAITING { self.flush() } else { Ok(()) }
    }

    /// As [`Image::put`] of an image that is not live: one after the other, and all is in the file
    /// at the end.
    fn put_plain(&self, offset: u64, length: u64, content: Content<'_>) -> Result<()> {
        let _turn = lock(&self.turn);
        let mut parts = self.parts(offset, length)?;
        let Some(header) = self.header() else { return Ok(()) };
        let (places, before) = {
            let state = self.state();
            let places = self.choose(&state, &header, &parts)?;
            (places, state.footer_at)
        };
        if !places.blocks.is_empty() {
            self.move_footer(places.end)?;
        }
        // Nobody sees the blocks before their data is there.
        self.take_places(&mut parts, &places);
        let filled = parts.iter().try_for_each(|part| self.fill(part, offset, content));
        if let Err(error) = filled {
            if !places.blocks.is_empty() && !self.shrink_back(before) {
                // Part of the data is there: a later block gets another place.
                self.state().end = places.end;
            }
            return Err(error);
        }
        if !places.blocks.is_empty() {
            self.enter(&header, &places, false);
        }
        self.commit(&parts)?;
        self.publish(false)
    }

    /// The parts of the blocks that a range covers; `start` is 0 of those that are not there.
    fn parts(&self, offset: u64, length: u64) -> Result<Vec<Part>> {
        let state = self.state();
        self.check_range(&state, offset, length)?;
        let block_size = state.header.as_ref().map_or(u64::MAX, |header| header.block_size.into());
        let end = offset + length;
        let blocks = (offset / block_size) as u32..=((end - 1) / block_size) as u32;
        Ok(blocks
            .map(|block| {
                let base = u64::from(block) * block_size;
                let (from, to) = (offset.max(base), end.min(base + block_size));
                let sector = state.table.get(block as usize).copied().unwrap_or(ABSENT);
                let start = if sector == ABSENT { 0 } else { u64::from(sector) * SECTOR };
                let (first, count) = ((from - base) / SECTOR, (to - from) / SECTOR);
                Part { block, start, first, count, blank: false }
            })
            .collect())
    }

    /// Chooses places for the blocks that are not there, behind all others.
    fn choose(&self, state: &State, header: &Header, parts: &[Part]) -> Result<Places> {
        let mut places = Places { blocks: Vec::new(), end: state.end };
        for part in parts.iter().filter(|part| part.start == 0) {
            if state.table.get(part.block as usize) != Some(&ABSENT) {
                continue;
            }
            let start = place(places.end, header.bitmap_bytes());
            if start / SECTOR > LAST_SECTOR {
                return Err(Error::FileFull { path: self.path.clone() });
            }
            places.end = start + header.stride();
            places.blocks.push((part.block, start));
        }
        if state.volume && places.end > state.footer_at {
            let needed = places.end + SECTOR;
            return Err(Error::VolumeFull { path: self.path.clone(), needed });
        }
        Ok(places)
    }

    fn take_places(&self, parts: &mut [Part], places: &Places) {
        // A volume holds what its last owner left there.
        let blank = !self.state().volume;
        for part in parts.iter_mut().filter(|part| part.start == 0) {
            if let Some((_, start)) = places.blocks.iter().find(|place| place.0 == part.block) {
                (part.start, part.blank) = (*start, blank);
            }
        }
    }

    /// Adds the blocks that are not there to a live image; with the turn held. Each gets its
    /// bitmap, without a bit set, in the file: so a full disk is told here, and after a power cut
    /// a block whose bitmap was not published holds nothing.
    fn add_blocks(&self, parts: &mut [Part]) -> Result<()> {
        let (header, places, room) = {
            let state = self.state();
            let Some(header) = state.header.clone() else { return Ok(()) };
            // Somebody else may have added some of them meanwhile.
            for part in parts.iter_mut().filter(|part| part.start == 0) {
                match state.table.get(part.block as usize) {
                    Some(&ABSENT) | None => {}
                    Some(sector) => part.start = u64::from(*sector) * SECTOR,
                }
            }
            let places = self.choose(&state, &header, parts)?;
            (header, places, state.footer_at)
        };
        if places.blocks.is_empty() {
            return Ok(());
        }
        if places.end > room {
            // As many whole blocks as fit, so that the last one ends where the footer is: what a
            // footer leaves in a block's place is not zeros.
            let step = header.stride().next_multiple_of(4096);
            let far = places.end.saturating_add((ROOM / step).max(1) * step);
            if self.move_footer(far).is_err() {
                self.move_footer(places.end)?;
            }
        }
        let zeros = vec![0; header.bitmap_bytes() as usize];
        for (_, start) in &places.blocks {
            sys::write_at(&*self.file, &self.path, &zeros, *start)?;
        }
        self.take_places(parts, &places);
        self.enter(&header, &places, true);
        Ok(())
    }

    /// Writes the footer at a new end of the file, before anything is written behind the old one.
    /// Does nothing on a volume.
    fn move_footer(&self, to: u64) -> Result<()> {
        let (footer, old, volume) = {
            let state = self.state();
            (state.footer.to_bytes(), state.footer_at, state.volume)
        };
        if volume || to <= old {
            return Ok(());
        }
        if let Err(error) = sys::write_at(&*self.file, &self.path, &footer, to) {
            let _ = self.shrink_back(old);
            return Err(error);
        }
        self.state().footer_at = to;
        Ok(())
    }

    /// Gives the space behind a former footer back, after a write that did not come to a block of
    /// its own. Best effort: the file is sound either way, only longer. Answers whether what is
    /// behind the footer is gone.
    fn shrink_back(&self, to: u64) -> bool {
        let mut state = self.state();
        let footer = state.footer.to_bytes();
        let shrunk = !state.volume
            && sys::write_at(&*self.file, &self.path, &footer, to).is_ok()
            && self.file.set_len(to + SECTOR).is_ok();
        if shrunk {
            state.footer_at = to;
        }
        shrunk
    }

    /// Blocks have their places from now on, in memory. `stored` says that their bitmaps, without a
    /// bit set, are in the file.
    fn enter(&self, header: &Header, places: &Places, stored: bool) {
        let mut state = self.state();
        for (block, start) in &places.blocks {
            if let Some(entry) = state.table.get_mut(*block as usize) {
                *entry = (start / SECTOR) as u32;
            }
            state.fresh.insert(*block);
            state.bitmaps.begin(*block, header.bitmap_bytes(), stored);
        }
        state.changes += 1;
        state.end = places.end;
    }

    /// Writes the data of a part, or makes it zeros; `offset` is where the content begins.
    fn fill(&self, part: &Part, offset: u64, content: Content<'_>) -> Result<()> {
        let (block_size, bitmap_bytes) = {
            let state = self.state();
            let Some(header) = &state.header else { return Ok(()) };
            (u64::from(header.block_size), header.bitmap_bytes())
        };
        let at = part.start + bitmap_bytes + part.first * SECTOR;
        match content {
            Content::Data(buf) => {
                let from = u64::from(part.block) * block_size + part.first * SECTOR - offset;
                let range = from as usize..(from + part.count * SECTOR) as usize;
                sys::write_at(&*self.file, &self.path, &buf[range], at)
            }
            Content::Zeros if part.blank => Ok(()),
            Content::Zeros => self.clear(at, part.count * SECTOR),
        }
    }

    /// Makes the sectors of parts present, in memory. Their data is in the file. What is not in the
    /// file is noted first: as soon as a bit can be seen, others write to its sector without a
    /// note.
    pub(super) fn commit(&self, parts: &[Part]) -> Result<()> {
        let mut notes = lock(&self.notes);
        for (index, part) in parts.iter().enumerate() {
            let lacking = {
                let state = self.ready(part.block)?;
                state.bitmaps.lacks(part.block, part.first, part.count)
            };
            if !lacking {
                continue;
            }
            if let Some(notes_file) = notes.as_mut()
                && notes_file.append(note(part)).is_err()
            {
                drop(notes);
                return self.write_through(parts.get(index..).unwrap_or(parts));
            }
            self.set_bits(part)?;
        }
        Ok(())
    }

    /// With the notes held.
    fn set_bits(&self, part: &Part) -> Result<()> {
        let mut state = self.ready(part.block)?;
        let sectors = state.sectors();
        state.changes += 1;
        state.bitmaps.set(part.block, part.first, part.count, sectors);
        if state.bitmaps.lacks(part.block, part.first, part.count) {
            // Nobody may be told that this was written.
            return Err(self.wrong_type("lost a bitmap"));
        }
        Ok(())
    }

    /// Makes sectors present in the file, without the notes, which cannot be written.
    fn write_through(&self, parts: &[Part]) -> Result<()> {
        let _publishing = lock(&self.publishing);
        // Nobody sets bits meanwhile.
        let _notes = lock(&self.notes);
        self.sync()?;
        for part in parts {
            let metadata = {
                let state = self.ready(part.block)?;
                let Some(header) = &state.header else { return Ok(()) };
                let sectors = state.sectors();
                let mut map = match state.bitmaps.get(part.block) {
                    Some(bits) => bits.to_bytes(header.bitmap_bytes(), sectors),
                    None => return Err(self.wrong_type("lost a bitmap")),
                };
                crate::bits::set(&mut map, part.first, part.count);
                let entry = ((part.start / SECTOR) as u32).to_be_bytes().to_vec();
                let entry_at = header.table_offset + u64::from(part.block) * 4;
                Metadata {
                    bitmaps: vec![(part.start, map)],
                    entries: vec![(entry_at, entry)],
                    reversed: state.footer.has_reversed_bits(),
                }
            };
            metadata.write(&*self.file, &self.path)?;
            // It counts as not in the file, which only means that it is written once more.
            self.set_bits(part)?;
        }
        Ok(())
    }

    /// Bytes of bitmaps that wait for being published.
    fn waiting(&self) -> u64 {
        let state = self.state();
        let each = state.header.as_ref().map_or(0, Header::bitmap_bytes);
        state.bitmaps.waiting() as u64 * each
    }

    /// Whether so much waits for being published that somebody should see to it now.
    pub fn wants_publishing(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }

    /// Whether anything waits for being published.
    pub fn has_unpublished(&self) -> bool {
        let state = self.state();
        state.bitmaps.waiting() > 0 || !state.fresh.is_empty()
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

    /// Sectors of a block.
    pub(super) fn sectors(&self) -> u64 {
        self.header.as_ref().map_or(0, |header| u64::from(header.block_size) / SECTOR)
    }
}

fn note(part: &Part) -> Note {
    Note {
        block: part.block,
        sector: (part.start / SECTOR) as u32,
        first: part.first as u32,
        count: part.count as u32,
    }
}

/// Where a block whose bitmap takes `bitmap_bytes` goes when it may start at `end`: its data on a
/// multiple of 4096, as blktap does, so that direct I/O and drives with 4 KiB sectors work.
pub(super) fn place(end: u64, bitmap_bytes: u64) -> u64 {
    (end + bitmap_bytes).next_multiple_of(4096) - bitmap_bytes
}
