//! A raw disk: a file or block device whose bytes are the disk's.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, SeekFrom};
use rustix::io::Errno;

use crate::disk::{Disk, Extent, ExtentKind, push};
use crate::error::{Error, Fault, Result};
use crate::{Mode, sys};

/// An open raw file or block device.
pub struct Raw {
    file: File,
    path: PathBuf,
    size: u64,
    writable: bool,
    id: (u64, u64),
}

impl Raw {
    /// Opens a file or block device. The content is never looked at to tell a format.
    pub fn open(path: &Path, mode: Mode) -> Result<Self> {
        Self::from_file(sys::open(path, mode == Mode::Write)?, path, mode)
    }

    /// As [`Raw::open`], of an open file; `path` is for messages.
    pub fn from_file(file: File, path: &Path, mode: Mode) -> Result<Self> {
        let stat =
            rustix::fs::fstat(&file).map_err(|errno| Error::io(path, "stat")(errno.into()))?;
        let size = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => u64::try_from(stat.st_size).unwrap_or(0),
            FileType::BlockDevice => rustix::fs::seek(&file, SeekFrom::End(0))
                .map_err(|errno| Error::io(path, "seek")(errno.into()))?,
            _ => return Err(Error::format(path)(Fault::NotAFile)),
        };
        let id = (stat.st_dev, stat.st_ino);
        Ok(Self { file, path: path.to_owned(), size, writable: mode == Mode::Write, id })
    }

    /// Creates a file that reads as zeros; not yet synced. Fails when the name exists.
    pub fn create(path: &Path, size: u64) -> Result<Self> {
        let file = sys::create_new(path)?;
        file.set_len(size).map_err(Error::io(path, "set the length"))?;
        Self::from_file(file, path, Mode::Write)
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

    /// The next position at or after `at` that `to` seeks for; the size when there is none.
    fn seek(&self, to: SeekFrom) -> Result<Option<u64>> {
        match rustix::fs::seek(&self.file, to) {
            Ok(at) => Ok(Some(at.min(self.size))),
            Err(Errno::NXIO) => Ok(Some(self.size)),
            // Block devices, and file systems that do not tell: everything counts as data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(None),
            Err(errno) => Err(Error::io(&self.path, "seek")(errno.into())),
        }
    }
}

impl Disk for Raw {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check(offset, buf.len() as u64)?;
        sys::read_at(&self.file, &self.path, buf, offset)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.check_writable()?;
        self.check(offset, buf.len() as u64)?;
        sys::write_at(&self.file, &self.path, buf, offset)
    }

    fn flush(&self) -> Result<()> {
        if self.writable { sys::sync(&self.file, &self.path) } else { Ok(()) }
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>> {
        self.check(offset, length)?;
        let end = offset + length;
        let mut extents = Vec::new();
        let mut at = offset;
        while at < end {
            let Some(data) = self.seek(SeekFrom::Data(at))? else {
                push(&mut extents, Extent { offset: at, length: end - at, kind: ExtentKind::Data });
                break;
            };
            let data = data.min(end);
            push(&mut extents, Extent { offset: at, length: data - at, kind: ExtentKind::Zero });
            if data == end {
                break;
            }
            let hole = self.seek(SeekFrom::Hole(data))?.unwrap_or(end).min(end);
            push(
                &mut extents,
                Extent { offset: data, length: hole - data, kind: ExtentKind::Data },
            );
            at = hole;
        }
        Ok(extents)
    }

    fn write_zeros(&self, offset: u64, length: u64) -> Result<()> {
        self.check_writable()?;
        self.check(offset, length)?;
        if length == 0 || sys::punch(&self.file, &self.path, offset, length)? {
            return Ok(());
        }
        let zeros = vec![0; length.min(1 << 20) as usize];
        let mut done = 0;
        while done < length {
            let count = (length - done).min(zeros.len() as u64);
            sys::write_at(&self.file, &self.path, &zeros[..count as usize], offset + done)?;
            done += count;
        }
        Ok(())
    }
}
