//! Which of the files that are only read has which part of the disk.
//!
//! Those files do not change while they are open, so what was found out once is kept: for each
//! [`PAGE`] of the disk the runs of sectors with the file that has them, merged from the bitmaps of
//! all of them. A read looks at the leaf, and then once here, however long the chain is.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use vhd::SECTOR;
use vhd::image::Run;

use super::level::Level;
use crate::error::Result;

/// Bytes of the disk of which is known at once who has them.
const PAGE: u64 = 2 << 20;

/// Locks of the pages that are known.
const SHARDS: usize = 16;

/// Sectors in a row of which one file has all, or none has any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    /// First sector of the page behind it.
    end: u16,
    /// Which file; [`NOBODY`] for zeros.
    level: u16,
    /// Sector of the file.
    at: u32,
}

const NOBODY: u16 = u16::MAX;

type Page = Arc<[Stretch]>;

#[derive(Default)]
struct Shard {
    pages: HashMap<u32, Page>,
    order: VecDeque<u32>,
    bytes: usize,
}

/// A piece of the disk: who has it, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Bytes.
    pub(super) length: u64,
    /// The file, counted from the leaf, and the position in it; none for zeros.
    pub(super) place: Option<(usize, u64)>,
}

/// Appends a piece, to the one before it where they are one.
pub(super) fn push(pieces: &mut Vec<Piece>, piece: Piece) {
    if piece.length == 0 {
        return;
    }
    if let Some(last) = pieces.last_mut()
        && match (last.place, piece.place) {
            (None, None) => true,
            (Some((level, at)), Some((next, from))) => level == next && at + last.length == from,
            _ => false,
        }
    {
        last.length += piece.length;
        return;
    }
    pieces.push(piece);
}

/// See the module.
pub(super) struct Owners {
    /// All files but the leaf, the nearest first.
    levels: Vec<Arc<Level>>,
    shards: Vec<Mutex<Shard>>,
    /// Bytes that a shard may take.
    budget: usize,
}

impl Owners {
    pub(super) fn new(levels: Vec<Arc<Level>>, memory: usize) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { levels, shards, budget: memory / SHARDS }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }

    /// Who has a range in one piece; none when it takes several.
    pub(super) fn locate(&self, offset: u64, length: u64) -> Result<Option<Piece>> {
        if self.levels.is_empty() {
            return Ok(Some(Piece { length, place: None }));
        }
        let within = offset % PAGE;
        if within + length > PAGE {
            return Ok(None);
        }
        let page = self.page((offset / PAGE) as u32)?;
        let sector = (within / SECTOR) as u16;
        let index = page.partition_point(|stretch| stretch.end <= sector);
        let Some(stretch) = page.get(index) else { return Ok(None) };
        let start = index.checked_sub(1).and_then(|index| page.get(index)).map_or(0, |s| s.end);
        if within + length > u64::from(stretch.end) * SECTOR {
            return Ok(None);
        }
        let place = (stretch.level != NOBODY).then(|| {
            let at = u64::from(stretch.at) * SECTOR + (within - u64::from(start) * SECTOR);
            (usize::from(stretch.level), at)
        });
        Ok(Some(Piece { length, place }))
    }

    /// Appends the pieces of a range.
    pub(super) fn resolve(&self, offset: u64, length: u64, pieces: &mut Vec<Piece>) -> Result<()> {
        if self.levels.is_empty() {
            push(pieces, Piece { length, place: None });
            return Ok(());
        }
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let base = at / PAGE * PAGE;
            let stop = end.min(base + PAGE);
            let page = self.page((at / PAGE) as u32)?;
            let mut start = base;
            for stretch in page.iter() {
                let next = base + u64::from(stretch.end) * SECTOR;
                let (from, to) = (start.max(at), next.min(stop));
                if from < to {
                    let place = (stretch.level != NOBODY).then(|| {
                        let file_at = u64::from(stretch.at) * SECTOR + (from - start);
                        (usize::from(stretch.level), file_at)
                    });
                    push(pieces, Piece { length: to - from, place });
                }
                start = next;
            }
            at = stop;
        }
        Ok(())
    }

    fn page(&self, number: u32) -> Result<Page> {
        let shard = &self.shards[number as usize % SHARDS];
        let held = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(page) = held.pages.get(&number) {
            return Ok(page.clone());
        }
        drop(held);
        let page: Page = self.look(u64::from(number) * PAGE)?.into();
        let mut held = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if held.pages.insert(number, page.clone()).is_none() {
            held.bytes += bytes_of(&page);
            held.order.push_back(number);
        }
        while held.bytes > self.budget && held.order.len() > 1 {
            let Some(eldest) = held.order.pop_front() else { break };
            if let Some(page) = held.pages.remove(&eldest) {
                held.bytes -= bytes_of(&page);
            }
        }
        Ok(page)
    }

    /// Asks all files who has what of a page.
    fn look(&self, base: u64) -> Result<Vec<Stretch>> {
        let mut found: Vec<(u64, u64, u16, u64)> = Vec::new();
        let mut missing = vec![(base, PAGE)];
        let mut runs: Vec<Run> = Vec::new();
        for (index, level) in self.levels.iter().enumerate() {
            if missing.is_empty() {
                break;
            }
            let mut below = Vec::new();
            // Beyond the end of a smaller parent is nothing. The last sector of a raw file may not
            // be whole: what it lacks is read as zeros.
            let size = level.size().next_multiple_of(SECTOR);
            for (offset, length) in missing {
                let inside = size.saturating_sub(offset).min(length);
                if inside == 0 {
                    continue;
                }
                level.map(offset, inside, &mut runs)?;
                for run in &runs {
                    match run.at {
                        // Counted from the leaf.
                        Some(at) => found.push((run.offset, run.length, index as u16 + 1, at)),
                        None => below.push((run.offset, run.length)),
                    }
                }
            }
            missing = below;
        }
        found.sort_unstable_by_key(|piece| piece.0);
        let sector = |offset: u64| ((offset - base) / SECTOR) as u16;
        let mut page: Vec<Stretch> = Vec::new();
        let mut end = base;
        for (offset, length, level, at) in found {
            if offset > end {
                page.push(Stretch { end: sector(offset), level: NOBODY, at: 0 });
            }
            end = offset + length;
            page.push(Stretch { end: sector(end), level, at: (at / SECTOR) as u32 });
        }
        if end < base + PAGE {
            page.push(Stretch { end: (PAGE / SECTOR) as u16, level: NOBODY, at: 0 });
        }
        Ok(page)
    }
}

/// With what a map and a counted pointer add.
fn bytes_of(page: &Page) -> usize {
    size_of_val::<[Stretch]>(page) + 64
}
