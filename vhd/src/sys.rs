//! The few system calls the crate is made of, each naming its file when it fails.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Reads exactly `buf` at `offset`.
pub(crate) fn read_at(file: &File, path: &Path, buf: &mut [u8], offset: u64) -> Result<()> {
    file.read_exact_at(buf, offset).map_err(Error::io(path, "read"))
}

/// Reads up to `buf.len()` bytes at `offset`; fewer only at the end of the file.
pub(crate) fn read_upto(file: &File, path: &Path, buf: &mut [u8], offset: u64) -> Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(path, "read")(error)),
        }
    }
    Ok(done)
}

/// Writes all of `buf` at `offset`.
pub(crate) fn write_at(file: &File, path: &Path, buf: &[u8], offset: u64) -> Result<()> {
    file.write_all_at(buf, offset).map_err(Error::io(path, "write"))
}

/// Makes data and size durable.
pub(crate) fn sync(file: &File, path: &Path) -> Result<()> {
    file.sync_data().map_err(Error::io(path, "sync"))
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
pub(crate) fn punch(file: &File, path: &Path, offset: u64, length: u64) -> Result<bool> {
    use rustix::fs::FallocateFlags as Flags;
    match rustix::fs::fallocate(file, Flags::PUNCH_HOLE | Flags::KEEP_SIZE, offset, length) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => Ok(false),
        Err(errno) => Err(Error::io(path, "punch a hole")(errno.into())),
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: impl AsFd, path: &Path) -> Result<()> {
    rustix::fs::fsync(dir).map_err(|errno| Error::io(path, "sync directory")(errno.into()))
}
