//! What a merge that was given up leaves for the next one: the regions that the parent has already.
//!
//! A merge with a budget is given up many times before it is through. What it has copied is as good
//! as new for the next one, if since then
//!
//! - the guest has not written it: from the beginning of the first merge on, each region that is
//!   written is noted. That costs a write an atomic operation, as tracking its changes does;
//! - the leaf is the same file, and no larger;
//! - nobody has written the parent: its file is as it was left.
//!
//! It is kept in memory. With the process it is gone, and so is the guest's connection; the next
//! merge begins anew then.

use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::bits::Bits;
use super::regions::REGION;
use crate::disk::{Drive, Paused, Watcher, WatcherId};
use crate::error::Result;
use crate::export::Export;

/// Time that a dropped one waits for requests that are still noted.
const LEAVE: Duration = Duration::from_secs(1);

/// Which regions the parent has.
pub(super) struct Notes {
    regions: u64,
    /// What it had when the last merge was given up.
    had: RwLock<Bits>,
    /// What was written since: a bit for each region.
    written: Vec<AtomicU64>,
    /// The disk has another size now.
    void: AtomicBool,
}

impl Notes {
    fn new(size: u64) -> Self {
        let regions = size.div_ceil(REGION);
        let written = (0..regions.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let had = RwLock::new(Bits::new(regions));
        Self { regions, had, written, void: AtomicBool::new(false) }
    }

    fn is_written(&self, region: u64) -> bool {
        let word = self.written.get((region / 64) as usize);
        word.is_none_or(|word| word.load(Ordering::Relaxed) & (1 << (region % 64)) != 0)
    }

    /// Whether the parent has what is at a position, and up to where that is so.
    ///
    /// Whoever asks while the guest writes also hears of each write: what is not seen here yet is
    /// copied because of that.
    pub(super) fn run(&self, range: &Range<u64>) -> (bool, u64) {
        let had = self.had.read().unwrap_or_else(PoisonError::into_inner);
        if had.ones() == 0 || self.void.load(Ordering::Relaxed) {
            return (false, range.end);
        }
        let has = |region| had.all(region..region + 1) && !self.is_written(region);
        let first = range.start / REGION;
        let whether = has(first);
        let last = range.end.div_ceil(REGION);
        let end = (first + 1..last).find(|region| has(*region) != whether).unwrap_or(last);
        (whether, (end * REGION).min(range.end))
    }

    /// From here on what is written is noted anew. Answers what the parent had until now.
    fn begin(&self) -> Bits {
        let none = Bits::new(self.regions);
        let mut had = {
            let mut had = self.had.write().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *had, none)
        };
        // Only now: whoever asks in between hears that it has nothing.
        for (word, first) in self.written.iter().zip((0..).step_by(64)) {
            let word = word.swap(0, Ordering::Relaxed);
            let written = (0..64_u64).filter(|bit| word & (1 << bit) != 0);
            for bit in written {
                had.clear(first + bit..first + bit + 1);
            }
        }
        had
    }

    fn set(&self, had: Bits) {
        *self.had.write().unwrap_or_else(PoisonError::into_inner) = had;
    }
}

impl Watcher for Notes {
    fn only_ranges(&self) -> bool {
        true
    }

    fn touched(&self, offset: u64, length: u64) {
        for region in offset / REGION..offset.saturating_add(length).div_ceil(REGION) {
            let Some(word) = self.written.get((region / 64) as usize) else { return };
            let bit = 1 << (region % 64);
            if word.load(Ordering::Relaxed) & bit == 0 {
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
    }

    fn resized(&self, _size: u64) {
        self.void.store(true, Ordering::Relaxed);
    }
}

/// Of a file that nobody has changed since it is the same: device, inode, bytes, time of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp([i128; 5]);

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let found = std::fs::symlink_metadata(path).ok()?;
        let file = [found.dev(), found.ino(), found.len()].map(i128::from);
        let [seconds, nanoseconds] = [found.ctime(), found.ctime_nsec()].map(i128::from);
        Some(Self([file[0], file[1], file[2], seconds, nanoseconds]))
    }
}

/// What a merge has left. Whoever keeps it, and gives it to the next merge of the same disk, does
/// not have the same copied twice.
pub struct Left {
    drive: Arc<Drive>,
    leaf: (u64, u64),
    parent: PathBuf,
    /// None while a merge is under way.
    stamp: Option<Stamp>,
    notes: Arc<Notes>,
    watcher: Option<WatcherId>,
}

impl Left {
    /// Of a disk that was not merged before.
    pub(super) fn none(drive: &Arc<Drive>, parent: &Path, deadline: Instant) -> Result<Self> {
        let notes = Arc::new(Notes::new(Export::size(&**drive)));
        let watcher = drive.add_watcher(notes.clone(), deadline)?;
        Ok(Self {
            drive: drive.clone(),
            leaf: drive.leaf_id(),
            parent: parent.to_owned(),
            stamp: None,
            notes,
            watcher: Some(watcher),
        })
    }

    pub(super) fn notes(&self) -> Arc<Notes> {
        Arc::clone(&self.notes)
    }

    /// Whether it says something of the disk and its parent as they are now.
    pub fn fits(&self, drive: &Arc<Drive>) -> bool {
        let parent = drive.plan().backing.first().map(|parent| parent.path.clone());
        Arc::ptr_eq(&self.drive, drive)
            && drive.leaf_id() == self.leaf
            && !self.notes.void.load(Ordering::Relaxed)
            && parent.as_ref() == Some(&self.parent)
            && self.stamp.is_some()
            && self.stamp == Stamp::of(&self.parent)
    }

    /// A merge is about to end; it still sees what is written.
    pub(super) fn begin(&mut self) -> Bits {
        self.stamp = None;
        self.notes.begin()
    }

    /// It has ended, and the parent is closed and durable. It lacks what is `missing`, and if not
    /// all of the leaf was looked at, it has only what it had `before`.
    pub(super) fn end(&mut self, before: Bits, missing: &Bits, all: bool) {
        let mut had = before;
        if all {
            had.set(0..self.notes.regions);
        }
        let mut at = 0;
        while let Some(start) = missing.next(at) {
            at = missing.end_of_run(start, self.notes.regions).max(start + 1);
            had.clear(start..at);
        }
        self.notes.set(had);
        self.stamp = Stamp::of(&self.parent);
    }

    /// Nothing is noted any more, of a disk that is paused.
    pub fn forget_in(mut self, paused: &Paused) {
        if let Some(watcher) = self.watcher.take() {
            paused.remove_watcher(watcher);
        }
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        if let Some(watcher) = self.watcher.take() {
            // A disk that is paused, or has ended, keeps notes that nobody reads.
            let _ = self.drive.remove_watcher(watcher, Instant::now() + LEAVE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_not_had_and_runs_end_where_that_changes() {
        let notes = Notes::new(10 * REGION + 512);
        let all = 0..10 * REGION + 512;
        assert_eq!(notes.run(&all), (false, all.end), "at first it has nothing");
        let mut had = notes.begin();
        had.set(2..11);
        notes.set(had);
        assert_eq!(notes.run(&all), (false, 2 * REGION));
        assert_eq!(notes.run(&(2 * REGION + 5..all.end)), (true, all.end));
        notes.touched(4 * REGION - 1, 2);
        assert_eq!(notes.run(&(2 * REGION..all.end)), (true, 3 * REGION));
        assert_eq!(notes.run(&(3 * REGION..all.end)), (false, 5 * REGION));
        assert_eq!(notes.run(&(3 * REGION..3 * REGION + 7)), (false, 3 * REGION + 7));
        // What was written stays written, also beyond a new beginning.
        let had = notes.begin();
        assert!(had.all(2..3) && had.all(5..11) && !had.all(3..4) && !had.all(4..5));
        assert_eq!(notes.run(&all), (false, all.end));
        notes.set(had);
        notes.touched(10 * REGION, 4 * REGION);
        assert_eq!(notes.run(&(5 * REGION..all.end)), (true, 10 * REGION));
        notes.resized(11 * REGION);
        assert_eq!(notes.run(&(5 * REGION..all.end)), (false, all.end));
    }
}
