//! Disks for the tests: in memory, with faults on demand.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::time::Duration;

use datapath::error::{Errno, Error, Result};
use datapath::export::{Changed, Export, Exports, Extent, Zeroes};

/// Granularity of what is allocated and what has changed, bytes.
pub(crate) const GRAIN: usize = 4096;

/// A disk in memory.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) content: RwLock<Content>,
    pub(crate) size: u64,
    pub(crate) read_only: bool,
    pub(crate) least: u32,
    pub(crate) bitmaps: Vec<String>,
    /// Requests that touch these bytes fail.
    pub(crate) bad: Option<(std::ops::Range<u64>, Errno)>,
    /// Requests wait here while it is closed.
    pub(crate) gate: Gate,
    /// Whether zeros are ever fast.
    pub(crate) no_fast_zeroes: bool,
    pub(crate) flushes: AtomicUsize,
    /// Requests that were let in at the same time, at most.
    pub(crate) inside: AtomicUsize,
    pub(crate) most_inside: AtomicUsize,
}

#[derive(Default)]
pub(crate) struct Content {
    bytes: Vec<u8>,
    /// Per grain: it takes space; it has changed.
    taken: Vec<bool>,
    changed: Vec<bool>,
}

/// Lets requests pass, or has them wait.
#[derive(Default)]
pub(crate) struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub(crate) fn close(&self) {
        *self.closed.lock().unwrap() = true;
    }

    pub(crate) fn open(&self) {
        *self.closed.lock().unwrap() = false;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let closed = self.closed.lock().unwrap();
        let waited = self.opened.wait_timeout_while(closed, Duration::from_secs(60), |c| *c);
        assert!(!waited.unwrap().1.timed_out(), "the gate was never opened");
    }
}

/// Counts who is inside.
struct Inside<'a>(&'a AtomicUsize);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Memory {
    pub(crate) fn new(size: u64) -> Self {
        let grains = (size as usize).div_ceil(GRAIN);
        let content = Content {
            bytes: vec![0; size as usize],
            taken: vec![false; grains],
            changed: vec![false; grains],
        };
        Self { content: RwLock::new(content), size, least: 1, ..Self::default() }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.content.read().unwrap().bytes.clone()
    }

    pub(crate) fn fill(&self, bytes: &[u8]) {
        self.put(0, bytes, true, true);
    }

    fn enter(&self, offset: u64, length: u64) -> Result<Inside<'_>> {
        let now = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        let inside = Inside(&self.inside);
        self.most_inside.fetch_max(now, Ordering::SeqCst);
        self.gate.pass();
        assert!(length > 0 && offset + length <= self.size, "the server has not checked");
        assert_eq!((offset % u64::from(self.least), length % u64::from(self.least)), (0, 0));
        match &self.bad {
            Some((bad, errno)) if bad.start < offset + length && offset < bad.end => {
                Err(Error::new(*errno, format!("{offset} is bad")))
            }
            _ => Ok(inside),
        }
    }

    fn put(&self, offset: u64, bytes: &[u8], taken: bool, changed: bool) {
        let mut content = self.content.write().unwrap();
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        content.bytes[start..end].copy_from_slice(bytes);
        // Only whole grains become holes.
        let grains = if taken {
            start / GRAIN..end.div_ceil(GRAIN)
        } else {
            start.div_ceil(GRAIN)..(end / GRAIN).max(start.div_ceil(GRAIN))
        };
        content.taken[grains].fill(taken);
        if changed {
            content.changed[start / GRAIN..end.div_ceil(GRAIN)].fill(true);
        }
    }

    /// Runs of alike grains within a range, as lengths.
    fn runs(
        &self,
        offset: u64,
        length: u64,
        limit: usize,
        of: impl Fn(&Content) -> &Vec<bool>,
    ) -> Vec<(u64, bool)> {
        let content = self.content.read().unwrap();
        let grains = of(&content);
        let (mut at, end) = (offset as usize, (offset + length) as usize);
        let mut runs: Vec<(u64, bool)> = Vec::new();
        while at < end {
            let value = grains[at / GRAIN];
            let next = ((at / GRAIN + 1) * GRAIN).min(end);
            let count = (next - at) as u64;
            let full = runs.len() == limit;
            match runs.last_mut() {
                Some(last) if last.1 == value => last.0 += count,
                _ if full => break,
                _ => runs.push((count, value)),
            }
            at = next;
        }
        runs
    }
}

impl Export for Memory {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn block_sizes(&self) -> (u32, u32) {
        (self.least, 4096)
    }

    fn description(&self) -> Option<String> {
        Some("a disk in memory".to_owned())
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let _inside = self.enter(offset, buf.len() as u64)?;
        let content = self.content.read().unwrap();
        buf.copy_from_slice(&content.bytes[offset as usize..][..buf.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, buf: &[u8], durable: bool) -> Result<()> {
        let _inside = self.enter(offset, buf.len() as u64)?;
        assert!(!self.read_only, "the server has not checked");
        self.put(offset, buf, true, true);
        self.flushes.fetch_add(usize::from(durable), Ordering::SeqCst);
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let _inside = self.enter(0, u64::from(self.least))?;
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn trim(&self, offset: u64, length: u64, durable: bool) -> Result<()> {
        let how = Zeroes { durable, ..Zeroes::default() };
        self.write_zeroes(offset, length, how)
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: Zeroes) -> Result<()> {
        let _inside = self.enter(offset, length)?;
        assert!(!self.read_only, "the server has not checked");
        if how.only_if_fast && self.no_fast_zeroes {
            return Err(Error::new(Errno::NotSupported, "not fast"));
        }
        self.put(offset, &vec![0; length as usize], how.keep_space, true);
        self.flushes.fetch_add(usize::from(how.durable), Ordering::SeqCst);
        Ok(())
    }

    fn extents(
        &self,
        offset: u64,
        length: u64,
        limit: usize,
        into: &mut Vec<Extent>,
    ) -> Result<()> {
        let _inside = self.enter(offset, length)?;
        let runs = self.runs(offset, length, limit, |content| &content.taken);
        into.extend(runs.into_iter().map(|(length, taken)| Extent {
            length,
            hole: !taken,
            zero: !taken,
        }));
        Ok(())
    }

    fn bitmaps(&self) -> Vec<String> {
        self.bitmaps.clone()
    }

    fn changed(
        &self,
        name: &str,
        offset: u64,
        length: u64,
        limit: usize,
        into: &mut Vec<Changed>,
    ) -> Result<()> {
        assert!(self.bitmaps.iter().any(|known| known == name));
        let runs = self.runs(offset, length, limit, |content| &content.changed);
        into.extend(runs.into_iter().map(|(length, dirty)| Changed { length, dirty }));
        Ok(())
    }
}

/// Disks by name.
#[derive(Clone, Default)]
pub(crate) struct Disks(BTreeMap<String, Arc<Memory>>);

impl Disks {
    pub(crate) fn add(mut self, name: &str, disk: Memory) -> Self {
        self.0.insert(name.to_owned(), Arc::new(disk));
        self
    }

    pub(crate) fn get(&self, name: &str) -> &Arc<Memory> {
        &self.0[name]
    }
}

impl Exports for Disks {
    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn find(&self, name: &str) -> Option<Arc<dyn Export>> {
        self.0.get(name).map(|disk| Arc::clone(disk) as Arc<dyn Export>)
    }
}

/// Bytes that look random; the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| next().to_le_bytes()).collect();
    bytes.truncate(length);
    bytes
}
