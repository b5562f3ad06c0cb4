//! A disk in memory that checks what it is asked.

use std::sync::{Arc, Mutex};

use datapath::error::{Errno, Error, Result};
use datapath::export::{Changed, Export, Exports, Extent, Zeroes};

/// Bytes of the disk.
pub const SIZE: u64 = 640 * 1024;

/// The first of the last bytes, which cannot be read or written.
pub const BAD: u64 = SIZE - 4096;

/// The disk `disk`, which is also the default, and the read-only disk `locked`.
pub struct Disk {
    pub bytes: Mutex<Vec<u8>>,
    locked: bool,
}

impl Disk {
    fn check(offset: u64, length: u64) -> Result<()> {
        assert!(length > 0 && offset < SIZE && length <= SIZE - offset, "it was not checked");
        if offset + length > BAD {
            return Err(Error::new(Errno::Io, "a bad sector"));
        }
        Ok(())
    }

    fn put(&self, offset: u64, length: u64, from: impl FnOnce(&mut [u8])) -> Result<()> {
        assert!(!self.locked, "it was not checked");
        Self::check(offset, length)?;
        from(&mut self.bytes.lock().expect("nobody panics")[offset as usize..][..length as usize]);
        Ok(())
    }
}

impl Export for Disk {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read_only(&self) -> bool {
        self.locked
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        Self::check(offset, buf.len() as u64)?;
        let bytes = self.bytes.lock().expect("nobody panics");
        buf.copy_from_slice(&bytes[offset as usize..][..buf.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, buf: &[u8], _: bool) -> Result<()> {
        self.put(offset, buf.len() as u64, |place| place.copy_from_slice(buf))
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn trim(&self, offset: u64, length: u64, _: bool) -> Result<()> {
        self.put(offset, length, |place| place.fill(0))
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: Zeroes) -> Result<()> {
        if how.only_if_fast {
            return Err(Error::new(Errno::NotSupported, "never fast"));
        }
        self.put(offset, length, |place| place.fill(0))
    }

    fn extents(
        &self,
        offset: u64,
        length: u64,
        limit: usize,
        into: &mut Vec<Extent>,
    ) -> Result<()> {
        assert!(length > 0 && offset + length <= SIZE && limit > 0);
        let mut at = offset;
        while at < offset + length && into.len() < limit {
            let end = (at / 4096 + 1) * 4096;
            let odd = at / 4096 % 2 == 1;
            into.push(Extent { length: end.min(offset + length) - at, hole: false, zero: odd });
            at = end;
        }
        Ok(())
    }

    fn bitmaps(&self) -> Vec<String> {
        vec!["b".to_owned()]
    }

    fn changed(
        &self,
        name: &str,
        offset: u64,
        length: u64,
        limit: usize,
        into: &mut Vec<Changed>,
    ) -> Result<()> {
        assert!(name == "b" && length > 0 && offset + length <= SIZE && limit > 0);
        into.push(Changed { length, dirty: true });
        Ok(())
    }
}

/// The disks of one execution.
pub struct Disks {
    pub disk: Arc<Disk>,
    locked: Arc<Disk>,
}

impl Disks {
    /// With this content.
    pub fn new(bytes: &[u8]) -> Self {
        let disk = |locked| Arc::new(Disk { bytes: Mutex::new(bytes.to_vec()), locked });
        Self { disk: disk(false), locked: disk(true) }
    }
}

impl Exports for Disks {
    fn names(&self) -> Vec<String> {
        vec!["disk".to_owned(), "locked".to_owned()]
    }

    fn find(&self, name: &str) -> Option<Arc<dyn Export>> {
        match name {
            "" | "disk" => Some(Arc::clone(&self.disk) as Arc<dyn Export>),
            "locked" => Some(Arc::clone(&self.locked) as Arc<dyn Export>),
            _ => None,
        }
    }
}
