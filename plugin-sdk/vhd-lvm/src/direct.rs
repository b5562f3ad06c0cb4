//! Reading and writing a device past the host's page cache.
//!
//! Another host may have written what the cache of this one still holds, and a device of the SR is
//! open as long as the SR is attached, so that nothing ever empties its cache. Hence `O_DIRECT`, which
//! wants whole blocks of the device, from memory that is aligned.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use plugin_sdk::Error;
use plugin_sdk::model::Kind;
use rustix::fs::{Mode, OFlags};

/// Where in memory a device's blocks may begin, whatever the device.
const ALIGNMENT: usize = 4096;

/// A device, or in tests a file.
pub(crate) struct Direct {
    file: File,
    /// Bytes of its blocks.
    step: u64,
    /// Who changes a part of a block writes the rest of it as well.
    turn: Mutex<()>,
}

/// What the kernel makes of a reservation conflict (`EBADE`), in words.
fn refused(error: io::Error) -> io::Error {
    if error.raw_os_error() != Some(rustix::io::Errno::BADE.raw_os_error()) {
        return error;
    }
    let error = Error::new(Kind::Fenced, "the storage refuses what this host writes")
        .source(&error)
        .hint(
            "another host has shut this one out (smctl host fence), or reserves the LUN for itself. \
             Detach the VDIs and the SR here, or boot this host anew; then smctl sr attach",
        );
    io::Error::other(error)
}

/// Memory that begins where devices want it.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    fn new(length: usize) -> Self {
        let bytes = vec![0; length + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { bytes, start, length }
    }

    fn as_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.start + self.length).unwrap_or_default()
    }
}

impl Direct {
    /// Opens a device. `cached` is for files that have no other way.
    pub(crate) fn open(path: &Path, write: bool, cached: bool) -> io::Result<Self> {
        let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let past = if cached { OFlags::empty() } else { OFlags::DIRECT };
        let file =
            File::from(rustix::fs::open(path, access | past | OFlags::CLOEXEC, Mode::empty())?);
        let step = rustix::fs::ioctl_blksszget(&file).map_or(512, u64::from).max(512);
        Ok(Self { file, step, turn: Mutex::new(()) })
    }

    /// The whole blocks around a range: the first byte, and how many.
    fn around(&self, offset: u64, length: usize) -> io::Result<(u64, usize)> {
        let from = offset / self.step * self.step;
        let end =
            offset.checked_add(length as u64).and_then(|e| e.checked_next_multiple_of(self.step));
        let end = end.ok_or(ErrorKind::InvalidInput)?;
        Ok((from, (end - from) as usize))
    }

    pub(crate) fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let (from, length) = self.around(offset, buf.len())?;
        let mut whole = Aligned::new(length);
        self.file.read_exact_at(whole.as_mut(), from)?;
        let skip = (offset - from) as usize;
        let part = whole.as_mut().get(skip..skip + buf.len()).ok_or(ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(part);
        Ok(())
    }

    pub(crate) fn write(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let (from, length) = self.around(offset, buf.len())?;
        let mut whole = Aligned::new(length);
        let skip = (offset - from) as usize;
        let part = skip != 0 || length != buf.len();
        let _turn = part.then(|| self.turn.lock().unwrap_or_else(PoisonError::into_inner));
        if part {
            self.file.read_exact_at(whole.as_mut(), from)?;
        }
        let target =
            whole.as_mut().get_mut(skip..skip + buf.len()).ok_or(ErrorKind::InvalidInput)?;
        target.copy_from_slice(buf);
        self.file.write_all_at(whole.as_mut(), from).map_err(refused)
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_data().map_err(refused)
    }
}
