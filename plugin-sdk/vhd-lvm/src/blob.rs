//! What is open of a store: a volume where it lies, or a small thing in memory.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhd::Error;
use vhd::store::{Blob, Stat};

use crate::direct::Direct;
use crate::inner::Inner;
use crate::objects::Change;

/// Bytes in a row on a device.
pub(crate) struct Part {
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) disk: Arc<Direct>,
    pub(crate) offset: u64,
}

/// Where a volume lies.
pub(crate) struct Places {
    pub(crate) length: u64,
    pub(crate) extent: u64,
    pub(crate) parts: Vec<Part>,
}

/// An open volume.
pub(crate) struct VolumeBlob {
    /// None for one that keeps its length.
    pub(crate) store: Option<Arc<Inner>>,
    /// LVM's identity of it, which no renaming changes.
    pub(crate) id: String,
    pub(crate) write: bool,
    pub(crate) places: Mutex<Arc<Places>>,
}

impl VolumeBlob {
    fn places(&self) -> Arc<Places> {
        Arc::clone(&self.places.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Does something with each piece of a range: the piece's device, where on it, and which of the
    /// range's bytes.
    fn each(
        &self,
        offset: u64,
        length: usize,
        mut work: impl FnMut(&Direct, u64, Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        let (places, end) = (self.places(), offset + length as u64);
        for part in &places.parts {
            let (from, to) = (offset.max(part.start), end.min(part.start + part.length));
            if from < to {
                let bytes = (from - offset) as usize..(to - offset) as usize;
                work(&part.disk, part.offset + (from - part.start), bytes)?;
            }
        }
        Ok(())
    }
}

impl Blob for VolumeBlob {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.places().length.saturating_sub(offset);
        let count = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.each(offset, count, |disk, at, bytes| {
            disk.read(buf.get_mut(bytes).unwrap_or_default(), at)
        })?;
        Ok(count)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if !self.write {
            return Err(ErrorKind::PermissionDenied.into());
        }
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.places().length) {
            return Err(ErrorKind::StorageFull.into());
        }
        if let Some(store) = &self.store {
            store.rights.check().map_err(io::Error::other)?;
        }
        self.each(offset, buf.len(), |disk, at, bytes| {
            disk.write(buf.get(bytes).unwrap_or_default(), at)
        })
    }

    fn stat(&self) -> io::Result<Stat> {
        let length = self.places().length;
        let mut hash = DefaultHasher::new();
        self.id.hash(&mut hash);
        // It does not tell when it was written.
        let (id, modified) = ((0, hash.finish()), (0, 0));
        Ok(Stat { length, allocated: length, id, modified, fixed_length: true })
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let store = self.store.as_ref().ok_or(ErrorKind::Unsupported)?;
        let places = store.resize(&self.id, length, self.write).map_err(|error| match error {
            Error::Io { source, .. } => source,
            other => io::Error::other(other),
        })?;
        *self.places.lock().unwrap_or_else(PoisonError::into_inner) = places;
        Ok(())
    }

    fn length_for(&self, length: u64) -> Option<u64> {
        self.store.is_some().then(|| length.max(1).next_multiple_of(self.places().extent))
    }

    fn sync(&self) -> io::Result<()> {
        if !self.write {
            return Ok(());
        }
        let places = self.places();
        let mut synced: Vec<&Arc<Direct>> = Vec::new();
        for Part { disk, .. } in &places.parts {
            if !synced.iter().any(|done| Arc::ptr_eq(done, disk)) {
                disk.sync()?;
                synced.push(disk);
            }
        }
        Ok(())
    }

    fn punch(&self, _: u64, _: u64) -> io::Result<bool> {
        Ok(false)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        let length = self.places().length;
        Ok((from < length).then_some(from..length))
    }
}

/// An open small thing. What is written is there when it is synced.
pub(crate) struct Small {
    pub(crate) store: Arc<Inner>,
    pub(crate) key: (u8, String),
    pub(crate) bytes: Mutex<Vec<u8>>,
    pub(crate) write: bool,
}

impl Small {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blob for Small {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.bytes();
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let rest = bytes.get(from..).unwrap_or_default();
        let count = rest.len().min(buf.len());
        buf.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        Ok(count)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if !self.write {
            return Err(ErrorKind::PermissionDenied.into());
        }
        let mut bytes = self.bytes();
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        let end = from.checked_add(buf.len()).ok_or(ErrorKind::InvalidInput)?;
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes.get_mut(from..end).unwrap_or_default().copy_from_slice(buf);
        Ok(())
    }

    fn stat(&self) -> io::Result<Stat> {
        let length = self.bytes().len() as u64;
        let (id, modified) = ((1, 0), (0, 0));
        Ok(Stat { length, allocated: length, id, modified, fixed_length: false })
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.bytes().resize(usize::try_from(length).map_err(io::Error::other)?, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let bytes = self.bytes().clone();
        let set = Change::Set(self.key.0, self.key.1.clone());
        let written = self.store.change(false, |view| self.store.write(view, set, &bytes));
        written.map_err(|error| match error {
            Error::Io { source, .. } => source,
            other => io::Error::other(other),
        })
    }

    fn punch(&self, _: u64, _: u64) -> io::Result<bool> {
        Ok(false)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        let length = self.bytes().len() as u64;
        Ok((from < length).then_some(from..length))
    }
}
