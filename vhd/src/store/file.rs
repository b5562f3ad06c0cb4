//! Files and block devices of the operating system.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, FallocateFlags, FileType, SeekFrom};
use rustix::io::Errno;

use super::{Blob, Stat};

impl Blob for File {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match FileExt::read_at(self, &mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(buf, offset)
    }

    fn write_parts_at(&self, parts: &[io::IoSlice<'_>], offset: u64) -> io::Result<()> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let mut done = rustix::io::pwritev(self, parts, offset)?;
        // Short only when the disk is about to be full, or past the kernel's limits.
        let mut at = 0;
        for part in parts {
            let skip = done.saturating_sub(at).min(part.len());
            if skip < part.len() && done < total {
                self.write_all_at(&part[skip..], offset + (at + skip) as u64)?;
                done = at + part.len();
            }
            at += part.len();
        }
        Ok(())
    }

    fn stat(&self) -> io::Result<Stat> {
        let stat = rustix::fs::fstat(self)?;
        let (length, fixed_length) = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => (u64::try_from(stat.st_size).unwrap_or(0), false),
            FileType::BlockDevice => (rustix::fs::seek(self, SeekFrom::End(0))?, true),
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let allocated =
            if fixed_length { length } else { u64::try_from(stat.st_blocks).unwrap_or(0) * 512 };
        let modified = (stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0));
        Ok(Stat { length, allocated, id: (stat.st_dev, stat.st_ino), modified, fixed_length })
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        File::set_len(self, length)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<bool> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(self, flags, offset, length) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        let start = match rustix::fs::seek(self, SeekFrom::Data(from)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            // Block devices, and file systems that do not tell.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                let length = self.stat()?.length;
                return Ok((from < length).then_some(from..length));
            }
            Err(errno) => return Err(errno.into()),
        };
        match rustix::fs::seek(self, SeekFrom::Hole(start)) {
            Ok(end) => Ok(Some(start..end)),
            // Cut shorter meanwhile.
            Err(Errno::NXIO) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn expect_random(&self) {
        // Advice only: an error changes nothing.
        let _ = rustix::fs::fadvise(self, 0, None, Advice::Random);
    }

    fn write_out(&self, range: Range<u64>) {
        // That is what Linux does on this advice before it drops pages, and what is being written
        // is not dropped.
        let length = NonZeroU64::new(range.end.saturating_sub(range.start));
        let _ = rustix::fs::fadvise(self, range.start, length, Advice::DontNeed);
    }

    fn copy_from(&self, source: &dyn Blob, from: u64, to: u64, length: u64) -> io::Result<u64> {
        let Some(source) = source.as_file() else { return Ok(0) };
        let (mut from, mut to, mut done) = (from, to, 0);
        while done < length {
            let want = usize::try_from(length - done).unwrap_or(usize::MAX);
            match rustix::fs::copy_file_range(source, Some(&mut from), self, Some(&mut to), want) {
                Ok(0) => break,
                Ok(count) => done += count as u64,
                Err(Errno::INTR) => {}
                Err(errno @ (Errno::NOSPC | Errno::DQUOT)) => return Err(errno.into()),
                // Whether it cannot, or the storage fails: reading and writing will tell.
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn reflink(&self, source: &dyn Blob) -> io::Result<bool> {
        let Some(source) = source.as_file() else { return Ok(false) };
        match rustix::fs::ioctl_ficlone(self, source) {
            Ok(()) => Ok(true),
            Err(Errno::NOSPC) => Err(Errno::NOSPC.into()),
            Err(_) => Ok(false),
        }
    }

    fn as_file(&self) -> Option<&File> {
        Some(self)
    }
}
