//! The log of a disk that is written.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use uuid::Uuid;
use vhd::change::log::{Head, LogFile};
use vhd::change::{Map, REGION};
use vhd::store::Store;

use crate::disk::Watcher;
use crate::error::Result;

/// Notes which parts of a disk are written, in memory; the file says meanwhile that it cannot be
/// relied on. It can again after [`Tracker::close`]: a death before leaves a log that calls
/// everything changed.
///
/// A request costs one atomic operation for each region that it touches, and a second one the
/// first time.
pub struct Tracker {
    words: Vec<AtomicU64>,
    head: Head,
    file: Mutex<LogFile>,
}

impl Tracker {
    /// Opens the log of a disk of `size` bytes that is about to be written. None: its changes are
    /// not tracked. When this returns, the log is marked, durably: so it comes before the first
    /// write. A log that was not closed, or belongs to a larger disk, calls everything changed from
    /// now on; the new part of a disk that has grown counts as changed.
    pub fn open(store: &dyn Store, disk: Uuid, size: u64) -> Result<Option<Arc<Self>>> {
        LogFile::open(store, disk, true)?.map_or(Ok(None), |file| Self::on(file, size))
    }

    /// As [`Tracker::open`], of the log at a path.
    pub fn open_path(path: &Path, size: u64) -> Result<Option<Arc<Self>>> {
        LogFile::open_path(path, true)?.map_or(Ok(None), |file| Self::on(file, size))
    }

    fn on(file: LogFile, size: u64) -> Result<Option<Arc<Self>>> {
        let head = match file.look()? {
            Ok(head) => head,
            // Nobody believes it, so it need not be marked. A guest shall not wait for it.
            Err(error) => {
                tracing::warn!(%error, "changes are not tracked");
                return Ok(None);
            }
        };
        let known = head.consistent && head.size <= size;
        // Whoever cannot read it takes it for one that was not closed.
        let map = if known { file.map(head.size).ok() } else { None };
        let map = map.map_or_else(
            || Map::full(size),
            |mut map| {
                map.grow(size);
                map
            },
        );
        file.write_head(&Head { consistent: false, ..head })?;
        let words = map.bytes().chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            AtomicU64::new(u64::from_le_bytes(word))
        });
        let words = words.collect();
        Ok(Some(Arc::new(Self { words, head: Head { size, ..head }, file: Mutex::new(file) })))
    }

    /// The log before this one: what has changed since that point is what this one has.
    pub fn since(&self) -> Uuid {
        self.head.parent
    }

    /// What has changed up to now. A write that is under way may be missing.
    pub fn map(&self) -> Map {
        let words = self.words.iter().map(|word| word.load(Ordering::Relaxed).to_le_bytes());
        Map::of(self.head.size, words.flatten().collect())
    }

    pub(super) fn get(&self, region: u64) -> bool {
        let word = self.words.get((region / 64) as usize);
        word.is_some_and(|word| word.load(Ordering::Relaxed) & (1 << (region % 64)) != 0)
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.head.size
    }

    /// Writes the log, durably. The disk is not written any more: the tracker watches nothing, or
    /// its disk is paused. It can be closed again if it was written since.
    pub fn close(&self) -> Result<()> {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        // What others have changed meanwhile: a snapshot's log gets a child.
        let child = file.head()?.child;
        file.write_head(&Head { consistent: false, child, ..self.head })?;
        file.write_map(&self.map())?;
        Ok(file.write_head(&Head { consistent: true, child, ..self.head })?)
    }
}

impl Watcher for Tracker {
    fn only_ranges(&self) -> bool {
        true
    }

    fn touched(&self, offset: u64, length: u64) {
        // Bits are read when no write is under way, or by who can do with fewer: the order of
        // memory is made elsewhere.
        let end = offset.saturating_add(length).min(self.head.size).div_ceil(REGION);
        for region in offset / REGION..end {
            let Some(word) = self.words.get((region / 64) as usize) else { return };
            let bit = 1 << (region % 64);
            if word.load(Ordering::Relaxed) & bit == 0 {
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
    }
}
