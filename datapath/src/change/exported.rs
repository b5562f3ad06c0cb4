//! Changes as bitmaps of an export (`qemu:dirty-bitmap:NAME`), for programs that back disks up.

use std::sync::Arc;

use vhd::change::Map;
use vhd::change::map::runs;

use super::tracker::Tracker;
use crate::error::{Errno, Error, Result};
use crate::export::{Changed, Ended, Export, Extent, Mapped, Transfer, Zeroes};

/// What changed, as clients ask for it.
pub trait Bitmap: Send + Sync {
    /// Appends what changed of a range: in order, neighbours different, at most `limit` and at
    /// least one.
    fn changed(&self, offset: u64, length: u64, limit: usize, into: &mut Vec<Changed>);
}

impl Bitmap for Map {
    fn changed(&self, offset: u64, length: u64, limit: usize, into: &mut Vec<Changed>) {
        self.runs(offset, length, limit, into);
    }
}

/// Of a disk that is written while it is asked: what was answered before is there.
impl Bitmap for Tracker {
    fn changed(&self, offset: u64, length: u64, limit: usize, into: &mut Vec<Changed>) {
        runs(&|region| self.get(region), offset, length, limit, into);
    }
}

/// A bitmap and its name: the UUID of the snapshot since which things changed.
#[derive(Clone)]
pub struct Named {
    /// What clients ask for.
    pub name: String,
    /// What changed.
    pub bitmap: Arc<dyn Bitmap>,
}

/// An export with bitmaps, and in all else as it is.
pub struct WithBitmaps {
    inner: Arc<dyn Export>,
    bitmaps: Vec<Named>,
}

impl WithBitmaps {
    /// Adds bitmaps to an export.
    pub fn new(inner: Arc<dyn Export>, bitmaps: Vec<Named>) -> Self {
        Self { inner, bitmaps }
    }
}

impl Export for WithBitmaps {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_only(&self) -> bool {
        self.inner.read_only()
    }

    fn block_sizes(&self) -> (u32, u32) {
        self.inner.block_sizes()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read(offset, buf)
    }

    fn write(&self, offset: u64, buf: &[u8], durable: bool) -> Result<()> {
        self.inner.write(offset, buf, durable)
    }

    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }

    fn trim(&self, offset: u64, length: u64, durable: bool) -> Result<()> {
        self.inner.trim(offset, length, durable)
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: Zeroes) -> Result<()> {
        self.inner.write_zeroes(offset, length, how)
    }

    fn cache(&self, offset: u64, length: u64) -> Result<()> {
        self.inner.cache(offset, length)
    }

    fn extents(
        &self,
        offset: u64,
        length: u64,
        limit: usize,
        into: &mut Vec<Extent>,
    ) -> Result<()> {
        self.inner.extents(offset, length, limit, into)
    }

    fn bitmaps(&self) -> Vec<String> {
        let own = self.bitmaps.iter().map(|named| named.name.clone());
        own.chain(self.inner.bitmaps()).collect()
    }

    fn changed(
        &self,
        name: &str,
        offset: u64,
        length: u64,
        limit: usize,
        into: &mut Vec<Changed>,
    ) -> Result<()> {
        let end = offset.checked_add(length);
        if length == 0 || end.is_none_or(|end| end > self.size()) {
            return Err(Error::new(Errno::Invalid, "not a range of the disk"));
        }
        match self.bitmaps.iter().find(|named| named.name == name) {
            Some(named) => {
                named.bitmap.changed(offset, length, limit, into);
                Ok(())
            }
            None => self.inner.changed(name, offset, length, limit, into),
        }
    }

    fn description(&self) -> Option<String> {
        self.inner.description()
    }

    fn map_read(&self, offset: u64, length: u64) -> Mapped {
        self.inner.map_read(offset, length)
    }

    fn map_write(&self, offset: u64, length: u64) -> Mapped {
        self.inner.map_write(offset, length)
    }

    fn admit(&self, bytes: u64) {
        self.inner.admit(bytes);
    }

    fn read_part(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read_part(offset, buf)
    }

    fn write_part(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.inner.write_part(offset, buf)
    }

    fn place_part(&self, offset: u64, length: u64, write: bool) -> Option<Transfer> {
        self.inner.place_part(offset, length, write)
    }

    fn count(&self, ended: &Ended) {
        self.inner.count(ended);
    }
}
