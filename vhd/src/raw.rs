//! A raw disk: a file or block device whose bytes are the disk's.

use std::path::{Path, PathBuf};

use crate::disk::{Disk, Extent, ExtentKind, push};
use crate::error::{Error, Result};
use crate::store::Blob;
use crate::{Mode, sys};

/// An open raw file or block device.
pub struct Raw {
    file: Box<dyn Blob>,
    path: PathBuf,
    size: u64,
    writable: bool,
    id: (u64, u64),
}

impl Raw {
    /// Opens a file or block device. The content is never looked at to tell a format.
    pub fn open(path: &Path, mode: Mode) -> Result<Self> {
        Self::from_blob(Box::new(sys::open(path, mode == Mode::Write)?), path, mode)
    }

    /// As [`Raw::open`], of what is already open; `path` is for messages.
    pub fn from_blob(file: Box<dyn Blob>, path: &Path, mode: Mode) -> Result<Self> {
        let stat = sys::stat(&*file, path)?;
        let (size, id) = (stat.length, stat.id);
        Ok(Self { file, path: path.to_owned(), size, writable: mode == Mode::Write, id })
    }

    /// Creates a file that reads as zeros; not yet synced. Fails when the name exists.
    pub fn create(path: &Path, size: u64) -> Result<Self> {
        let file = sys::create_new(path)?;
        sys::set_len(&file, path, size)?;
        Self::from_blob(Box::new(file), path, Mode::Write)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode number.
    pub fn file_id(&self) -> (u64, u64) {
        self.id
    }

    fn check(&self, offset: u64, length: u64) -> Result<()> {
        if offset.checked_add(length).is_some_and(|end| end <= self.size) {
            return Ok(());
        }
        Err(Error::OutOfRange { path: self.path.clone(), offset, length, size: self.size })
    }

    fn check_writable(&self) -> Result<()> {
        if self.writable { Ok(()) } else { Err(Error::ReadOnly { path: self.path.clone() }) }
    }
}

impl Disk for Raw {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check(offset, buf.len() as u64)?;
        sys::read_at(&*self.file, &self.path, buf, offset)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.check_writable()?;
        self.check(offset, buf.len() as u64)?;
        sys::write_at(&*self.file, &self.path, buf, offset)
    }

    fn flush(&self) -> Result<()> {
        if self.writable { sys::sync(&*self.file, &self.path) } else { Ok(()) }
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>> {
        self.check(offset, length)?;
        let end = offset + length;
        let mut extents = Vec::new();
        let mut at = offset;
        while at < end {
            let found = self.file.next_data(at).map_err(Error::io(&self.path, "seek"))?;
            let data = found.unwrap_or(end..end);
            let (start, stop) = (data.start.min(end), data.end.min(end));
            push(&mut extents, Extent { offset: at, length: start - at, kind: ExtentKind::Zero });
            let length = stop - start;
            push(&mut extents, Extent { offset: start, length, kind: ExtentKind::Data });
            at = stop;
        }
        Ok(extents)
    }

    fn write_zeros(&self, offset: u64, length: u64) -> Result<()> {
        self.check_writable()?;
        self.check(offset, length)?;
        if length == 0 || sys::punch(&*self.file, &self.path, offset, length)? {
            return Ok(());
        }
        let zeros = vec![0; length.min(1 << 20) as usize];
        let mut done = 0;
        while done < length {
            let count = (length - done).min(zeros.len() as u64);
            sys::write_at(&*self.file, &self.path, &zeros[..count as usize], offset + done)?;
            done += count;
        }
        Ok(())
    }
}
