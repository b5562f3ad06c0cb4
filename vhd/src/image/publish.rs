//! Bringing new metadata into the file, in an order that any power cut survives.
//!
//! 1. A sync: the data of all sectors whose bits are to be written, the footer behind them, and
//!    the bitmaps, without a bit set, of the new blocks.
//! 2. The bitmaps and the entries of the block table. They may arrive in any order, and any of
//!    them may be missing: a bit that is set has its data, a block without bits holds nothing.
//! 3. A sync.
//!
//! Only one thread does this at a time; flushes that come meanwhile wait for the next time, and
//! share it.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, PoisonError};

use super::cache::Bits;
use super::notes::Notes;
use super::{Image, Stage, State, lock};
use crate::SECTOR;
use crate::bat::ABSENT;
use crate::error::{Error, Result};
use crate::store::Blob;
use crate::sys;

/// Entries of the block table between two new ones that are written again rather than left out.
const NEAR: u32 = 128;

/// Bytes and where they go.
type Write = (u64, Vec<u8>);

/// What is to be written.
pub(super) struct Metadata {
    /// Most significant bit first.
    pub(super) bitmaps: Vec<Write>,
    pub(super) entries: Vec<Write>,
    pub(super) reversed: bool,
}

impl Metadata {
    fn is_empty(&self) -> bool {
        self.bitmaps.is_empty() && self.entries.is_empty()
    }

    /// Bitmaps first: a killed process leaves no block without the bits it has.
    pub(super) fn write(&self, file: &dyn Blob, path: &Path) -> Result<()> {
        for (at, map) in &self.bitmaps {
            write_bitmap(file, path, map, *at, self.reversed)?;
        }
        self.entries.iter().try_for_each(|(at, bytes)| sys::write_at(file, path, bytes, *at))
    }
}

/// Writes a bitmap, most significant bit first in memory.
pub(super) fn write_bitmap(
    file: &dyn Blob,
    path: &Path,
    map: &[u8],
    at: u64,
    reversed: bool,
) -> Result<()> {
    if reversed {
        let turned: Vec<u8> = map.iter().map(|byte| byte.reverse_bits()).collect();
        sys::write_at(file, path, &turned, at)
    } else {
        sys::write_at(file, path, map, at)
    }
}

/// Flushes that wait for each other.
#[derive(Default)]
pub(super) struct Flushes {
    state: Mutex<Numbers>,
    ended: Condvar,
}

#[derive(Default)]
struct Numbers {
    running: bool,
    /// The number of the last one that began, that ended, and that succeeded.
    begun: u64,
    ended: u64,
    good: u64,
    /// Why the last one that failed did.
    failure: Option<(&'static str, io::ErrorKind, Option<i32>)>,
}

impl Image {
    /// Makes everything written so far durable. Flushes that come at the same time share the work.
    pub fn flush(&self) -> Result<()> {
        if !self.writable || self.stage() == Stage::Sealed {
            return Ok(());
        }
        self.check_writable()?;
        let mut numbers = lock(&self.flushes.state);
        // One that runs already may have begun before what is to be flushed was written.
        let wanted = numbers.begun + 1;
        loop {
            if numbers.good >= wanted {
                return Ok(());
            }
            if numbers.ended >= wanted {
                let (action, kind, code) =
                    numbers.failure.unwrap_or(("sync", io::ErrorKind::Other, None));
                let source = code.map_or_else(|| kind.into(), io::Error::from_raw_os_error);
                return Err(Error::Io { path: self.path.clone(), action, source });
            }
            if numbers.running {
                numbers = self.flushes.ended.wait(numbers).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            numbers.running = true;
            numbers.begun += 1;
            let number = numbers.begun;
            drop(numbers);
            let result = self.publish(true);
            numbers = lock(&self.flushes.state);
            numbers.running = false;
            numbers.ended = number;
            match &result {
                Ok(()) => numbers.good = number,
                Err(Error::Io { action, source, .. }) => {
                    numbers.failure = Some((action, source.kind(), source.raw_os_error()));
                }
                Err(_) => numbers.failure = None,
            }
            drop(numbers);
            self.flushes.ended.notify_all();
            return result;
        }
    }

    /// Writes metadata to the file; `durable` in the order described at the top of the module,
    /// otherwise for somebody who syncs later and needs no order.
    pub(super) fn publish(&self, durable: bool) -> Result<()> {
        let _publishing = lock(&self.publishing);
        let (metadata, blocks, area) = {
            let mut notes = lock(&self.notes);
            let mut state = self.state();
            // Of what is noted in this area by now, all bits are set: both happen with the notes
            // held.
            let area = notes.as_mut().map(Notes::turn);
            self.crowded.store(false, Ordering::Relaxed);
            let (metadata, blocks) = state.take_metadata();
            (metadata, blocks, area)
        };
        let write = || {
            if durable {
                self.sync()?;
            }
            if metadata.is_empty() {
                return Ok(());
            }
            metadata.write(&*self.file, &self.path)?;
            if durable { self.sync() } else { Ok(()) }
        };
        let result = write();
        let mut state = self.state();
        state.bitmaps.written(result.is_ok());
        if result.is_err() {
            state.fresh.extend(blocks);
        }
        drop(state);
        if result.is_ok()
            && let (Some(notes), Some(area)) = (lock(&self.notes).as_mut(), area)
        {
            notes.empty(area);
        }
        result
    }
}

impl State {
    /// What is in memory and not in the file, and the blocks that are new in the table.
    fn take_metadata(&mut self) -> (Metadata, Vec<u32>) {
        let reversed = self.footer.has_reversed_bits();
        let mut metadata = Metadata { bitmaps: Vec::new(), entries: Vec::new(), reversed };
        let sectors = self.sectors();
        let Some(header) = &self.header else { return (metadata, Vec::new()) };
        let taken: Vec<(u32, Bits)> = self.bitmaps.take();
        for (block, bits) in taken {
            let sector = self.table.get(block as usize).copied().unwrap_or(ABSENT);
            if sector != ABSENT {
                let map = bits.to_bytes(header.bitmap_bytes(), sectors);
                metadata.bitmaps.push((u64::from(sector) * SECTOR, map));
            }
        }
        let blocks: Vec<u32> = std::mem::take(&mut self.fresh).into_iter().collect();
        let mut rest = &blocks[..];
        while let Some(&first) = rest.first() {
            let near = rest.windows(2).take_while(|pair| pair[1] - pair[0] <= NEAR).count();
            let (run, tail) = rest.split_at(near + 1);
            let last = run.last().copied().unwrap_or(first);
            // What is between is in the file already, or absent: all that is new is taken at once.
            let entries = self.table.get(first as usize..=last as usize).unwrap_or_default();
            let bytes = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
            metadata.entries.push((header.table_offset + u64::from(first) * 4, bytes));
            rest = tail;
        }
        (metadata, blocks)
    }
}
