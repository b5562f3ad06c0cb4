//! What dm-log-writes has written down, replayed on the machine: what a disk with a volatile
//! cache can hold after a power cut.
//!
//! The log is in the order in which writes were made safe: at a flush, all that stands before it
//! is on the disk. What stands after it may be there or not, in any combination.
//! Layout: `Documentation/admin-guide/device-mapper/log-writes.rst` and `drivers/md/dm-log-writes.c`
//! of Linux.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

use crate::disk::Disk;
use crate::error::{Doing, Error, Result};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 1 << 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;

/// A log.
#[derive(Debug)]
pub struct Log {
    file: File,
    sector: u64,
    entries: Vec<Entry>,
}

/// One write, flush, discard or mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First byte on the disk.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
    /// Whether all that was written before is safe when it ends.
    pub flush: bool,
    /// Whether this write itself is safe when it ends.
    pub durable: bool,
    /// Whether it takes away what was there.
    pub discard: bool,
    /// Its name, if it is a mark.
    pub mark: Option<String>,
    /// Where in the log the data is.
    data: u64,
}

impl Log {
    /// Reads the log that lies on a disk.
    pub fn open(disk: &Disk) -> Result<Self> {
        let doing = || format!("read the log {}", disk.path().display());
        let file = File::open(disk.path()).doing(doing)?;
        let mut head = [0_u8; 28];
        file.read_exact_at(&mut head, 0).doing(doing)?;
        let (magic, entries) = (number(&head, 0), number(&head, 16));
        let sector = u64::from(u32::from_le_bytes([head[24], head[25], head[26], head[27]]));
        if magic != MAGIC || sector < 512 {
            return Err(Error::Wrong(format!("{} is no log of writes", disk.path().display())));
        }
        let mut log = Self { file, sector, entries: Vec::new() };
        let mut at = sector;
        for _ in 0..entries {
            at = log.entry(at).doing(doing)?;
        }
        Ok(log)
    }

    /// Reads the entry at a place, answers the place of the next.
    fn entry(&mut self, at: u64) -> std::io::Result<u64> {
        let mut bytes = vec![0_u8; self.sector as usize];
        self.file.read_exact_at(&mut bytes, at)?;
        let (flags, named) = (number(&bytes, 16), number(&bytes, 24) as usize);
        let name = bytes.get(32..32 + named).unwrap_or_default();
        let mark = (flags & MARK != 0).then(|| String::from_utf8_lossy(name).into_owned());
        let entry = Entry {
            offset: number(&bytes, 0) * self.sector,
            length: number(&bytes, 8) * self.sector,
            flush: flags & FLUSH != 0,
            durable: flags & FUA != 0,
            discard: flags & DISCARD != 0,
            mark,
            data: at + self.sector,
        };
        let has_data = !entry.discard && entry.mark.is_none();
        let next = entry.data + if has_data { entry.length } else { 0 };
        self.entries.push(entry);
        Ok(next)
    }

    /// Everything that was written down.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The places at which the disk was asked to be safe, and marks: how many entries stand
    /// before each, itself included.
    pub fn points(&self) -> Vec<usize> {
        let is_point = |entry: &Entry| entry.flush || entry.durable || entry.mark.is_some();
        let all = self.entries.iter().enumerate();
        all.filter(|(_, entry)| is_point(entry)).map(|(index, _)| index + 1).collect()
    }

    /// The place of a mark.
    pub fn mark(&self, name: &str) -> Option<usize> {
        let of_name = |entry: &Entry| entry.mark.as_deref() == Some(name);
        self.entries.iter().position(of_name).map(|index| index + 1)
    }

    /// Does the entries from one place to another to a file, which holds what was there before
    /// them. From 0, that is the disk as it was when the log began.
    pub fn replay(&self, from: usize, to: usize, onto: &Path) -> Result<()> {
        self.apply(from..to, onto, |_| true)
    }

    /// The same up to a place, with any of the writes after the last flush left out: which ones,
    /// `seed` decides. The file holds the disk as it was when the log began.
    pub fn cut(&self, to: usize, seed: u64, onto: &Path) -> Result<()> {
        let before = self.entries.get(..to).unwrap_or(&self.entries);
        let safe = before.iter().rposition(|entry| entry.flush).unwrap_or(0);
        let mut state = seed;
        self.apply(0..to, onto, |index| {
            // SplitMix64.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let kept = (mixed ^ (mixed >> 27)) & 1 == 0;
            index < safe || self.entries.get(index).is_some_and(|entry| entry.durable) || kept
        })
    }

    fn apply(
        &self,
        range: std::ops::Range<usize>,
        onto: &Path,
        mut keep: impl FnMut(usize) -> bool,
    ) -> Result<()> {
        let doing = || format!("replay onto {}", onto.display());
        let disk = File::options().write(true).open(onto).doing(doing)?;
        for index in range {
            let Some(entry) = self.entries.get(index) else { break };
            if !keep(index) || entry.length == 0 || entry.mark.is_some() {
                continue;
            }
            if entry.discard {
                // Reads as zeros, and takes no room.
                let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&disk, hole, entry.offset, entry.length).doing(doing)?;
                continue;
            }
            let mut bytes = vec![0_u8; entry.length as usize];
            self.file.read_exact_at(&mut bytes, entry.data).doing(doing)?;
            disk.write_all_at(&bytes, entry.offset).doing(doing)?;
        }
        Ok(())
    }
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let word = bytes.get(at..at + 8).and_then(|word| word.try_into().ok());
    word.map_or(0, u64::from_le_bytes)
}
