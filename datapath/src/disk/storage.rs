//! An open file of a disk, through the system's page cache or past it.
//!
//! # Both at once
//!
//! With a descriptor of its own for direct transfers, what is aligned to [`UNIT`] in the file goes
//! past the page cache, all else through it: metadata, and parts of pages. Linux keeps the two
//! views of a file together except while both write to the same page. Metadata never shares a
//! page with data that is transferred directly: blocks lie so that their data begins and ends with
//! a page, or none of it is aligned. That a part of a page is not written together with all of it
//! is seen to by [`super::chain`].

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FlockOperation, Mode, OFlags};
use vhd::store::{Blob, Stat};

use crate::error::{Errno, Error, Result};

/// Direct transfers begin, end and lie in memory at multiples of this, bytes. Drives with sectors
/// of 4096 bytes need it, and it is the page size.
pub(super) const UNIT: u64 = 4096;

/// An open file or block device. Clones are the same one.
#[derive(Clone)]
pub(super) struct Storage {
    pub(super) cached: Arc<File>,
    pub(super) direct: Option<Arc<File>>,
}

/// Memory for direct transfers.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    fn new(length: usize) -> Self {
        let bytes = vec![0; length + UNIT as usize];
        let start = bytes.as_ptr().addr().next_multiple_of(UNIT as usize) - bytes.as_ptr().addr();
        Self { bytes, start, length }
    }

    fn get(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

fn is_aligned(buf: &[u8], offset: u64) -> bool {
    offset.is_multiple_of(UNIT) && (buf.len() as u64).is_multiple_of(UNIT)
}

fn lies_aligned(buf: &[u8]) -> bool {
    buf.as_ptr().addr().is_multiple_of(UNIT as usize)
}

impl Storage {
    /// Opens a file. Symbolic links are not followed, and a FIFO is not waited for.
    pub(super) fn open(path: &Path, write: bool, direct: bool) -> Result<Self> {
        let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let failed = |errno: rustix::io::Errno| {
            Error::io(format_args!("{}: open", path.display()), &errno.into())
        };
        let cached = File::from(rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?);
        let direct = direct.then(|| reopen_direct(&cached, access)).flatten();
        Ok(Self { cached: Arc::new(cached), direct: direct.map(Arc::new) })
    }

    /// Keeps other processes from serving the same file for writing, as long as this is open or
    /// until [`Storage::unlock`].
    pub(super) fn lock(&self, path: &Path) -> Result<()> {
        match rustix::fs::flock(&*self.cached, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let what = format!("{}: another process is writing to it", path.display());
                Err(Error::new(Errno::NotPermitted, what))
            }
            Err(errno) => Err(Error::io(format_args!("{}: lock", path.display()), &errno.into())),
        }
    }

    pub(super) fn unlock(&self) {
        // Closing the file does the same; until then the next one would have to wait.
        let _ = rustix::fs::flock(&*self.cached, FlockOperation::Unlock);
    }

    /// The file for a transfer of that alignment by somebody else, past the page cache.
    pub(super) fn for_ring(&self, offset: u64, length: u64) -> Option<Arc<File>> {
        let aligned = offset.is_multiple_of(UNIT) && length.is_multiple_of(UNIT);
        self.direct.as_ref().filter(|_| aligned).cloned()
    }
}

/// Opens the same file for direct transfers; none where that does not work.
fn reopen_direct(file: &File, access: OFlags) -> Option<File> {
    // By its descriptor: the name may be another file's by now.
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let flags = access | OFlags::DIRECT | OFlags::CLOEXEC | OFlags::NOCTTY;
    let direct = File::from(rustix::fs::open(path, flags, Mode::empty()).ok()?);
    // Some file systems refuse only when it is used.
    let mut probe = Aligned::new(UNIT as usize);
    FileExt::read_at(&direct, probe.get(), 0).ok()?;
    Some(direct)
}

fn read_all(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    Blob::read_at(file, buf, offset)
}

impl Blob for Storage {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        match &self.direct {
            Some(direct) if is_aligned(buf, offset) => {
                if lies_aligned(buf) {
                    return read_direct(direct, buf, offset);
                }
                let mut bounce = Aligned::new(buf.len());
                let got = read_direct(direct, bounce.get(), offset)?;
                buf[..got].copy_from_slice(&bounce.get()[..got]);
                Ok(got)
            }
            _ => read_all(&self.cached, buf, offset),
        }
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        match &self.direct {
            Some(direct) if is_aligned(buf, offset) => {
                if lies_aligned(buf) {
                    return direct.write_all_at(buf, offset);
                }
                let mut bounce = Aligned::new(buf.len());
                bounce.get().copy_from_slice(buf);
                direct.write_all_at(bounce.get(), offset)
            }
            _ => self.cached.write_all_at(buf, offset),
        }
    }

    fn stat(&self) -> io::Result<Stat> {
        self.cached.stat()
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        Blob::set_len(&*self.cached, length)
    }

    fn sync(&self) -> io::Result<()> {
        self.cached.sync()
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<bool> {
        self.cached.punch(offset, length)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        self.cached.next_data(from)
    }

    fn as_file(&self) -> Option<&File> {
        Some(&self.cached)
    }
}

/// Reads past the page cache. A read that ends early, at the end of the file, ends inside a unit:
/// it is not tried again from there.
fn read_direct(file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match FileExt::read_at(file, &mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => {
                done += count;
                if !(count as u64).is_multiple_of(UNIT) {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use vhd::store::Blob;

    use super::{Storage, UNIT};

    #[test]
    fn both_ways_see_what_the_other_has_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, vec![1; 3 * UNIT as usize + 100]).unwrap();
        let storage = Storage::open(&path, true, true).unwrap();
        // Aligned and not, in the file and in memory.
        let unit = vec![7; UNIT as usize + 1];
        storage.write_at(&unit[1..], UNIT).unwrap();
        storage.write_at(&unit[..9], UNIT - 4).unwrap();
        let mut all = vec![0; 4 * UNIT as usize];
        let end = 3 * UNIT as usize + 100;
        assert_eq!(storage.read_at(&mut all, 0).unwrap(), end);
        let want: Vec<u8> = (0..all.len())
            .map(|at| match at {
                4092..8192 => 7,
                at if at < end => 1,
                _ => 0,
            })
            .collect();
        assert!(all == want);
        let mut again = vec![0; end];
        storage.cached.read_exact_at(&mut again, 0).unwrap();
        assert!(again == want[..end]);
    }

    #[test]
    fn a_file_is_locked_by_one_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, [1]).unwrap();
        let one = Storage::open(&path, true, false).unwrap();
        let two = Storage::open(&path, true, false).unwrap();
        one.lock(&path).unwrap();
        let error = two.lock(&path).unwrap_err();
        assert!(error.what.ends_with("another process is writing to it"), "{error}");
        one.unlock();
        two.lock(&path).unwrap();
        std::os::unix::fs::symlink(&path, dir.path().join("y")).unwrap();
        assert!(Storage::open(&dir.path().join("y"), true, false).is_err());
    }
}
