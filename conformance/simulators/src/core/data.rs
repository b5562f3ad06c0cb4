//! What hosts and the array itself read, write and copy.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::array::Array;
use super::model::{Hold, Snapshot, Trouble, Volume, WhenFull};
use super::state::{State, deplete, kept, put_offline, snapshots_of};

/// Bytes since the array was started.
#[derive(Debug, Default)]
pub struct Moved {
    read: AtomicU64,
    written: AtomicU64,
    copied: AtomicU64,
}

impl Moved {
    /// An initiator has read so many.
    pub(crate) fn read(&self, bytes: u64) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
    }

    /// An initiator has written so many.
    pub(crate) fn written(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What initiators have read and written, and what the array has copied by itself.
    pub fn all(&self) -> [u64; 3] {
        [&self.read, &self.written, &self.copied].map(|count| count.load(Ordering::Relaxed))
    }
}

impl Array {
    /// Reads a volume, or a snapshot of that key.
    pub fn read(&self, key: &str, offset: u64, length: usize) -> Result<Vec<u8>, Trouble> {
        let state = self.lock();
        let (layer, size) = match state.objects.now.get::<Volume>(key) {
            Some(volume) if !volume.online => return Err(Trouble::Offline(key.to_owned())),
            Some(volume) => (volume.layer, volume.size),
            None => {
                let snapshot = state.objects.now.get::<Snapshot>(key);
                let snapshot =
                    snapshot.ok_or_else(|| Trouble::Missing("volume", key.to_owned()))?;
                (snapshot.layer, snapshot.size)
            }
        };
        within(offset, length as u64, size)?;
        let mut bytes = vec![0; length];
        state.contents.read(&state.chain(layer), offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes a volume, as a host does.
    pub fn write(&self, key: &str, offset: u64, bytes: &[u8]) -> Result<(), Trouble> {
        let mut state = self.lock();
        loop {
            let volume = online(&state, key)?;
            within(offset, bytes.len() as u64, volume.size)?;
            let needed = state.contents.needed(volume.layer, offset, bytes.len() as u64);
            // Without snapshots nothing is kept, and the reserve is of no matter.
            let reserve = volume.snapshot_reserve.filter(|_| !snapshots_of(&state, key).is_empty());
            if let Some((reserve, depletion)) = reserve {
                // Each page written anew keeps an old one for the snapshots.
                if needed > 0 && kept(&state, key, &volume) + needed > reserve {
                    if !deplete(&mut state, key, &volume, depletion)? {
                        return Err(Trouble::Offline(key.to_owned()));
                    }
                    continue;
                }
            }
            let free = state.space(&volume.pool)?.free();
            let room = if volume.thick { u64::MAX } else { free };
            if needed > room {
                if volume.when_full == WhenFull::Offline {
                    put_offline(&mut state, key, &volume)?;
                }
                return Err(Trouble::NoSpace(volume.pool.clone()));
            }
            let chain = state.chain(volume.layer);
            return Ok(state.contents.write(&chain, offset, bytes)?);
        }
    }

    /// Gives back the pages of a range of a volume.
    pub fn unmap(&self, key: &str, offset: u64, length: u64) -> Result<(), Trouble> {
        let mut state = self.lock();
        let volume = online(&state, key)?;
        within(offset, length, volume.size)?;
        let chain = state.chain(volume.layer);
        Ok(state.contents.unmap(&chain, offset, length)?)
    }

    /// Copies the used pages of a volume or snapshot into a volume that shares nothing with it, and
    /// tells how far it is: pages copied, pages in all. The caller made the volume `to` just now.
    /// The source may be written meanwhile: what is copied is its content at the beginning.
    pub fn copy_pages(
        &self,
        from: &str,
        to: &str,
        progress: impl FnMut(u64, u64),
    ) -> Result<(), Trouble> {
        let hold = self.change(|change| change.hold(from))?;
        let copied = self.copy_held(&hold, to, progress);
        self.change(|change| {
            change.release(&hold);
            Ok::<_, Trouble>(())
        })?;
        copied
    }

    fn copy_held(
        &self,
        hold: &str,
        to: &str,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<(), Trouble> {
        let held = |state: &State| {
            // Its number may change while others are removed; what it holds does not.
            let hold = state.objects.now.get::<Hold>(hold);
            hold.map_or_else(Vec::new, |hold| state.chain(hold.layer))
        };
        let pages = {
            let state = self.lock();
            state.contents.pages(&held(&state))
        };
        let all = pages.len() as u64;
        progress(0, all);
        for (done, part) in pages.chunks(64).enumerate() {
            let mut state = self.lock();
            let volume = state.objects.now.get::<Volume>(to);
            let volume = volume.ok_or_else(|| Trouble::Missing("volume", to.to_owned()))?;
            let needed = part.len() as u64 * self.page();
            if !volume.thick && needed > state.space(&volume.pool)?.free() {
                return Err(Trouble::NoSpace(volume.pool.clone()));
            }
            let chain = held(&state);
            for page in part {
                state.contents.copy_page(&chain, *page, volume.layer)?;
            }
            drop(state);
            self.moved().copied.fetch_add(needed, Ordering::Relaxed);
            progress((done as u64 * 64 + part.len() as u64).min(all), all);
        }
        Ok(())
    }
}

fn within(offset: u64, length: u64, size: u64) -> Result<(), Trouble> {
    match offset.checked_add(length) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Trouble::Invalid(format!("{length} bytes at {offset} are past the end, {size}"))),
    }
}

fn online(state: &State, key: &str) -> Result<Arc<Volume>, Trouble> {
    let volume = state.objects.now.get::<Volume>(key);
    let volume = volume.ok_or_else(|| Trouble::Missing("volume", key.to_owned()))?;
    if volume.online { Ok(volume) } else { Err(Trouble::Offline(key.to_owned())) }
}
