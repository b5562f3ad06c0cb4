//! The few calls to the storage that the crate is made of, each naming its file when it fails.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Fault, Result};
use crate::store::{Blob, Stat};

/// How long a lock that was given back may seem to be held: a process that is being started holds
/// copies of its parent's descriptors until it runs its own program.
const HANDOVER: Duration = Duration::from_millis(250);

/// Takes the lock of a whole file, until it is closed. `false` when somebody has it.
pub(crate) fn try_lock(file: &File) -> rustix::io::Result<bool> {
    let give_up = Instant::now() + HANDOVER;
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < give_up => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(Errno::WOULDBLOCK | Errno::INTR) => return Ok(false),
            Err(errno) => return Err(errno),
        }
    }
}

/// Reads exactly `buf` at `offset`.
pub(crate) fn read_at(blob: &dyn Blob, path: &Path, buf: &mut [u8], offset: u64) -> Result<()> {
    if read_upto(blob, path, buf, offset)? == buf.len() {
        return Ok(());
    }
    Err(Error::io(path, "read")(io::ErrorKind::UnexpectedEof.into()))
}

/// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file.
pub(crate) fn read_upto(
    blob: &dyn Blob,
    path: &Path,
    buf: &mut [u8],
    offset: u64,
) -> Result<usize> {
    blob.read_at(buf, offset).map_err(Error::io(path, "read"))
}

/// Writes all of `buf` at `offset`.
pub(crate) fn write_at(blob: &dyn Blob, path: &Path, buf: &[u8], offset: u64) -> Result<()> {
    blob.write_at(buf, offset).map_err(Error::io(path, "write"))
}

/// Makes data and size durable.
pub(crate) fn sync(blob: &dyn Blob, path: &Path) -> Result<()> {
    blob.sync().map_err(Error::io(path, "sync"))
}

/// What the blob is; an error when it is neither a file nor a block device.
pub(crate) fn stat(blob: &dyn Blob, path: &Path) -> Result<Stat> {
    blob.stat().map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => Error::format(path)(Fault::NotAFile),
        _ => Error::io(path, "stat")(error),
    })
}

/// Sets the length.
pub(crate) fn set_len(blob: &dyn Blob, path: &Path, length: u64) -> Result<()> {
    blob.set_len(length).map_err(Error::io(path, "set the length"))
}

/// Opens `name` relative to `dir` without following a symbolic link in its last component, and
/// without waiting for a writer should it be a FIFO.
pub(crate) fn open_at(dir: impl AsFd, name: &Path, write: bool) -> Result<File> {
    let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
    let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::openat(dir, name, flags, Mode::empty())
        .map(File::from)
        .map_err(|errno| Error::io(name, "open")(errno.into()))
}

/// [`open_at`] for a path of its own.
pub(crate) fn open(path: &Path, write: bool) -> Result<File> {
    open_at(rustix::fs::CWD, path, write)
}

/// Creates a new file for reading and writing; fails when the name exists.
pub(crate) fn create_new(path: &Path) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    // Guests' data: for the owner only.
    rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
        .map(File::from)
        .map_err(|errno| Error::io(path, "create")(errno.into()))
}

/// Deallocates a range so that it reads as zeros. `false` when the file system cannot.
pub(crate) fn punch(blob: &dyn Blob, path: &Path, offset: u64, length: u64) -> Result<bool> {
    blob.punch(offset, length).map_err(Error::io(path, "punch a hole"))
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: impl AsFd, path: &Path) -> Result<()> {
    rustix::fs::fsync(dir).map_err(|errno| Error::io(path, "sync directory")(errno.into()))
}
