//! Growing an image in place.
//!
//! As long as the block table has room, growing changes the footers and nothing else, except that a
//! last block that was not whole is cleared behind the old end first. Otherwise
//! the table must become longer where it is (XenServer's tools insist that everything before the
//! first block is metadata), so what lies behind it has to go first:
//!
//! 1. copy the blocks in the way to the end of the file, sync;
//! 2. point their table entries at the copies, sync: old and new hold the same, so each entry may
//!    arrive by itself;
//! 3. move parent locators that are in the way, name their new place in the header, sync;
//! 4. fill the table's new part with "absent" and write the batmap behind it, sync. The old header
//!    still tells the old table, which is whole; only its batmap is gone, and that is optional;
//! 5. write the header with the new number of entries: one sector when no locator moved, sync;
//! 6. write the footers with the new size.
//!
//! Each step looks at what it finds, so running all of it again after a cut anywhere completes it.

use super::create::tables_end;
use super::write::place;
use super::{Image, State};
use crate::bat::{ABSENT, LAST_SECTOR};
use crate::error::{Error, Fault, Result};
use crate::footer::{DiskType, Footer};
use crate::geometry::Geometry;
use crate::header::{Header, roomy_entries};
use crate::{MAX_SIZE, SECTOR, bat, batmap, sys};

impl Image {
    /// Grows the disk to `size` bytes, durably. The same size again completes what a cut left
    /// undone; a smaller size is refused.
    ///
    /// Until the last step the image has its old size and all of its data.
    pub fn grow(&self, size: u64) -> Result<()> {
        self.check_plain()?;
        let mut state = self.state();
        let from = state.footer.current_size;
        if size < from {
            return Err(Error::Shrink { from, to: size });
        }
        if size > MAX_SIZE {
            return Err(Error::TooLarge { requested: size, limit: MAX_SIZE });
        }
        if !size.is_multiple_of(SECTOR) {
            return Err(Error::format(&self.path)(Fault::SizeNotSectors(size)));
        }
        if size == from {
            // A cut between the two footers: the end decides, the copy follows.
            self.write_footers(&state, &state.footer)?;
            return self.sync();
        }
        if let Some(header) = state.header.clone() {
            self.clear_last_block(&state, &header)?;
            let needed = size.div_ceil(u64::from(header.block_size));
            if needed > u64::from(header.table_entries) {
                self.extend_table(&mut state, header, size)?;
            } else {
                self.check_tail(&state, &header, needed)?;
            }
            state.table.resize(needed as usize, ABSENT);
        } else if state.footer.disk_type == DiskType::Fixed {
            return self.grow_fixed(&mut state, size);
        }
        let mut footer = state.footer.clone();
        footer.current_size = size;
        footer.geometry = Geometry::for_size(size);
        sys::write_at(&*self.file, &self.path, &footer.to_bytes(), state.footer_at)?;
        self.sync()?;
        sys::write_at(&*self.file, &self.path, &footer.to_bytes(), 0)?;
        self.sync()?;
        state.footer = footer;
        Ok(())
    }

    /// Zeros what other tools have left behind the disk's end in a last block that is not whole: it
    /// would become part of the disk.
    fn clear_last_block(&self, state: &State, header: &Header) -> Result<()> {
        let block_size = u64::from(header.block_size);
        let (block, tail) =
            (state.footer.current_size / block_size, state.footer.current_size % block_size);
        let sector = state.table.get(block as usize).copied().unwrap_or(ABSENT);
        if tail == 0 || sector == ABSENT {
            return Ok(());
        }
        let at = u64::from(sector) * SECTOR + header.bitmap_bytes() + tail;
        let zeros = vec![0; (block_size - tail).min(1 << 20) as usize];
        let mut done = tail;
        while done < block_size {
            let count = (block_size - done).min(zeros.len() as u64);
            let part = zeros.get(..count as usize).unwrap_or(&zeros);
            sys::write_at(&*self.file, &self.path, part, at + done - tail)?;
            done += count;
        }
        self.sync()
    }

    /// Makes the volume that the image lies in at least `length` bytes long, durably. A cut leaves
    /// it without a footer at the end, which [`super::repair`] writes. Nothing to do for a file.
    pub fn extend_volume(&self, length: u64) -> Result<()> {
        self.check_plain()?;
        let mut state = self.state();
        if !state.volume || sys::stat(&*self.file, &self.path)?.length >= length {
            return Ok(());
        }
        sys::set_len(&*self.file, &self.path, length)?;
        let at = super::volume_footer(sys::stat(&*self.file, &self.path)?.length);
        sys::write_at(&*self.file, &self.path, &state.footer.to_bytes(), at)?;
        self.sync()?;
        state.footer_at = at;
        Ok(())
    }

    /// Gives back what the volume has behind the last block, durably: the footer is at the new end
    /// before the volume is shorter, so a cut leaves one where it is looked for. Answers whether the
    /// volume is shorter. Nobody else may have the image open for writing.
    pub fn shrink_volume(&self) -> Result<bool> {
        self.check_plain()?;
        let mut state = self.state();
        let length = sys::stat(&*self.file, &self.path)?.length;
        if !state.volume || state.footer.disk_type == DiskType::Fixed {
            return Ok(false);
        }
        let Some(shorter) = self.file.length_for(state.end + SECTOR) else { return Ok(false) };
        if shorter >= length {
            return Ok(false);
        }
        let at = super::volume_footer(shorter);
        sys::write_at(&*self.file, &self.path, &state.footer.to_bytes(), at)?;
        self.sync()?;
        sys::set_len(&*self.file, &self.path, shorter)?;
        state.footer_at = at;
        Ok(true)
    }

    /// Zeros the footer that a fixed image had when it was `from` bytes large, if a cut of
    /// [`Image::grow`] has left it there: nobody has written to the new part yet.
    pub fn finish_growing(&self, from: u64) -> Result<()> {
        self.check_plain()?;
        let state = self.state();
        if state.footer.disk_type != DiskType::Fixed || from >= state.footer_at {
            return Ok(());
        }
        let mut raw = [0; 512];
        sys::read_at(&*self.file, &self.path, &mut raw, from)?;
        let old = Footer::parse(&raw);
        if old.is_ok_and(|old| old.uuid == state.footer.uuid && old.current_size == from) {
            sys::write_at(&*self.file, &self.path, &[0; 512], from)?;
        }
        self.sync()
    }

    /// The new footer makes the file longer; until it is there the old one, further down, is no
    /// longer at the end. So the old one goes last, when the new one is durable: see
    /// [`Image::finish_growing`] for what a cut in between leaves.
    fn grow_fixed(&self, state: &mut State, size: u64) -> Result<()> {
        let mut footer = state.footer.clone();
        footer.current_size = size;
        footer.geometry = Geometry::for_size(size);
        sys::write_at(&*self.file, &self.path, &footer.to_bytes(), size)?;
        self.sync()?;
        sys::write_at(&*self.file, &self.path, &[0; 512], state.footer_at)?;
        self.sync()?;
        state.move_end(size);
        state.footer = footer;
        Ok(())
    }

    /// Entries beyond the disk's present end become blocks when it grows: they must be free.
    fn check_tail(&self, state: &State, header: &Header, needed: u64) -> Result<()> {
        let have = state.table.len() as u64;
        let mut raw = vec![0; (needed.saturating_sub(have) * 4) as usize];
        sys::read_at(&*self.file, &self.path, &mut raw, header.table_offset + have * 4)?;
        match bat::parse(&raw).iter().position(|entry| *entry != ABSENT) {
            None => Ok(()),
            Some(index) => {
                Err(Error::format(&self.path)(Fault::TableTail((have as usize + index) as u32)))
            }
        }
    }

    fn extend_table(&self, state: &mut State, mut header: Header, size: u64) -> Result<()> {
        self.check_tail(state, &header, u64::from(header.table_entries))?;
        let entries = roomy_entries(size, header.block_size);
        let tables = tables_end(header.table_offset, entries);
        let room: u64 = if state.footer.disk_type == DiskType::Differencing {
            let moving = header.locators.iter().filter(|slot| slot.is_known());
            moving.map(|slot| slot.space_bytes().next_multiple_of(SECTOR)).sum()
        } else {
            0
        };
        self.move_blocks(state, &header, tables + room)?;

        // Locators between the table and its new end.
        let mut at = tables;
        let old_end = header.table_end();
        let mut moved = false;
        for slot in header.locators.iter_mut().filter(|slot| slot.is_known()) {
            let (start, length) = (slot.offset, slot.length as usize);
            if start >= tables || start + slot.space_bytes() <= header.table_offset {
                continue;
            }
            let mut name = vec![0; length];
            sys::read_at(&*self.file, &self.path, &mut name, start)?;
            name.resize(length.next_multiple_of(SECTOR as usize).max(SECTOR as usize), 0);
            sys::write_at(&*self.file, &self.path, &name, at)?;
            (slot.offset, slot.space) = (at, name.len() as u32);
            at += name.len() as u64;
            moved = true;
        }
        if moved {
            self.sync()?;
            self.write_header(state, &header)?;
        }

        // The table's new part, and the batmap behind it. Bits that were set stay true.
        let mut map = state.batmap.take().map_or_else(Vec::new, |batmap| batmap.map);
        map.resize(batmap::map_bytes(entries) as usize, 0);
        header.table_entries = entries;
        let mut raw = vec![0xff; (header.table_end() - old_end) as usize];
        if state.footer.is_tap_from(0x0001_0002) {
            raw.extend_from_slice(&batmap::to_bytes(header.table_end(), &map));
            let offset = header.table_end() + batmap::HEADER;
            state.batmap = Some(batmap::Batmap { offset, map });
        }
        sys::write_at(&*self.file, &self.path, &raw, old_end)?;
        self.sync()?;
        self.write_header(state, &header)?;
        Ok(())
    }

    /// Moves every block that starts below `limit` to the end of the file.
    fn move_blocks(&self, state: &mut State, header: &Header, limit: u64) -> Result<()> {
        let mut moves = Vec::new();
        let mut end = state.end.max(limit);
        for (block, sector) in state.table.iter().enumerate() {
            if *sector != ABSENT && u64::from(*sector) * SECTOR < limit {
                let start = place(end, header.bitmap_bytes());
                if start / SECTOR > LAST_SECTOR {
                    return Err(Error::FileFull { path: self.path.clone() });
                }
                end = start + header.stride();
                moves.push((block, *sector, start));
            }
        }
        if state.volume {
            if end > state.footer_at {
                let needed = end + SECTOR;
                return Err(Error::VolumeFull { path: self.path.clone(), needed });
            }
            state.end = end;
        } else if end != state.end {
            // Also without a block to move: the footer itself may be in the way.
            sys::write_at(&*self.file, &self.path, &state.footer.to_bytes(), end)?;
            state.move_end(end);
        }
        let mut buf = vec![0; (1 << 20).min(header.stride() as usize)];
        for (_, sector, to) in &moves {
            let from = u64::from(*sector) * SECTOR;
            let mut done = 0;
            while done < header.stride() {
                let count = (header.stride() - done).min(buf.len() as u64) as usize;
                sys::read_at(&*self.file, &self.path, &mut buf[..count], from + done)?;
                sys::write_at(&*self.file, &self.path, &buf[..count], to + done)?;
                done += count as u64;
            }
        }
        self.sync()?;
        for (block, _, to) in &moves {
            let sector = (to / SECTOR) as u32;
            let at = header.table_offset + *block as u64 * 4;
            sys::write_at(&*self.file, &self.path, &sector.to_be_bytes(), at)?;
            if let Some(entry) = state.table.get_mut(*block) {
                *entry = sector;
            }
        }
        state.changes += 1;
        self.sync()
    }

    fn write_header(&self, state: &mut State, header: &Header) -> Result<()> {
        sys::write_at(&*self.file, &self.path, &header.to_bytes(), state.footer.data_offset)?;
        self.sync()?;
        state.header = Some(header.clone());
        Ok(())
    }
}
