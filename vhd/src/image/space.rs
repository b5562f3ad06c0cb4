//! What a file takes of its storage, and giving back parts of it.

use std::ops::Range;

use super::{Image, areas};
use crate::bat::ABSENT;
use crate::error::{Error, Result};
use crate::footer::DiskType;
use crate::{SECTOR, copy, sys};

/// Smallest piece that is given back: file systems allocate in such pieces.
const PIECE: u64 = 4096;

/// Bytes read at a time when looking for zeros.
const CHUNK: u64 = 1 << 20;

impl Image {
    /// Parts of the file that belong neither to a block nor to the image's own structures, in
    /// whole pieces of a file system's allocation. A cut write leaves such, and a moved block.
    pub fn gaps(&self) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut end = 0;
        for used in self.used() {
            let gap = u64::next_multiple_of(end, PIECE)..used.start / PIECE * PIECE;
            if gap.start < gap.end {
                gaps.push(gap);
            }
            end = end.max(used.end);
        }
        gaps
    }

    /// Behind what belongs to something, the footer at the end left out. None when that cannot be
    /// told: another tool may have put something behind the block table, or there is no table.
    pub(super) fn used_end(&self) -> Option<u64> {
        let state = self.state();
        state.header.as_ref()?;
        let blocks = state.table.iter().any(|sector| *sector != ABSENT);
        if !blocks && state.batmap.is_none() {
            return None;
        }
        let footer_at = state.footer_at;
        drop(state);
        let used = self.used();
        let ends = used.iter().filter(|range| range.start != footer_at).map(|range| range.end);
        ends.max().map(|end| end.next_multiple_of(SECTOR))
    }

    /// What belongs to something, in order of position.
    fn used(&self) -> Vec<Range<u64>> {
        let state = self.state();
        let mut used = Vec::new();
        used.push(state.footer_at..state.footer_at + SECTOR);
        let Some(header) = state.header.as_ref().filter(|_| state.footer.data_offset != u64::MAX)
        else {
            used.insert(0, 0..state.footer_at);
            return used;
        };
        // Verified when the image was opened.
        let structures = areas(&state.footer, header, state.batmap.as_ref()).unwrap_or_default();
        used.extend(structures.iter().map(|area| area.start..area.end));
        if state.footer.disk_type == DiskType::Differencing {
            // Whole spaces, also of locators that only other tools read.
            let slots = header.locators.iter().filter(|slot| slot.code != [0; 4]);
            used.extend(slots.map(|slot| slot.offset..slot.offset + slot.space_bytes()));
        }
        let first = state.table.iter().filter(|sector| **sector != ABSENT).min();
        if state.batmap.is_none()
            && let Some(first) = first
        {
            // A batmap that is ignored is still not ours to remove.
            used.push(header.table_end()..u64::from(*first) * SECTOR);
        }
        let blocks = state.table.iter().filter(|sector| **sector != ABSENT);
        used.extend(blocks.map(|sector| {
            let start = u64::from(*sector) * SECTOR;
            start..start + header.stride()
        }));
        used.sort_unstable_by_key(|range| range.start);
        used
    }

    /// Bytes of a part of the file that take space.
    pub fn allocated_in(&self, range: Range<u64>) -> Result<u64> {
        let mut bytes = 0;
        self.each_data(range, &mut |data| {
            bytes += data.end - data.start;
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Gives a part of the file back to the file system. Where that cannot be done, nothing is.
    pub fn release(&self, range: Range<u64>) -> Result<()> {
        self.check_writable()?;
        sys::punch(&*self.file, &self.path, range.start, range.end - range.start).map(drop)
    }

    /// Gives back the space of zeros that a range of the disk has in this file. The sectors stay
    /// present, so a parent's do not reappear. Answers how many bytes were read.
    pub fn release_zeros(&self, range: Range<u64>) -> Result<u64> {
        self.check_writable()?;
        let mut scanned = 0;
        let mut buf = vec![0; CHUNK as usize];
        for run in self.map(range.start, range.end.saturating_sub(range.start))? {
            let Some(at) = run.at else { continue };
            self.each_data(at..at + run.length, &mut |data| {
                let mut at = data.start;
                while at < data.end {
                    let part = &mut buf[..(data.end - at).min(CHUNK) as usize];
                    sys::read_at(&*self.file, &self.path, part, at)?;
                    for zeros in zero_pieces(at, part) {
                        self.release(zeros)?;
                    }
                    at += part.len() as u64;
                    scanned += part.len() as u64;
                }
                Ok(())
            })?;
        }
        Ok(scanned)
    }

    /// Walks the parts of a range of the file that take space.
    fn each_data(
        &self,
        range: Range<u64>,
        each: &mut dyn FnMut(Range<u64>) -> Result<()>,
    ) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let found = self.file.next_data(at).map_err(Error::io(&self.path, "seek"))?;
            let Some(data) = found.filter(|data| data.start < range.end) else { break };
            let (start, end) = (data.start.max(at), data.end.min(range.end));
            each(start..end)?;
            at = end;
        }
        Ok(())
    }
}

/// Runs of whole zero pieces in what was read from position `at` of a file.
pub(crate) fn zero_pieces(at: u64, buf: &[u8]) -> Vec<Range<u64>> {
    let mut found: Vec<Range<u64>> = Vec::new();
    let skip = at.next_multiple_of(PIECE) - at;
    let whole = buf.get(skip as usize..).unwrap_or_default();
    for (index, piece) in whole.chunks_exact(PIECE as usize).enumerate() {
        if !copy::is_zero(piece) {
            continue;
        }
        let start = at + skip + index as u64 * PIECE;
        match found.last_mut() {
            Some(last) if last.end == start => last.end += PIECE,
            _ => found.push(start..start + PIECE),
        }
    }
    found
}
