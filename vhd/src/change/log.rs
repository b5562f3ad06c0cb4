//! One log in a file or a volume.
//!
//! The layout is that of blktap's `cbt-util` (`struct cbt_log_metadata`, then the bitmap):
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 16 | UUID of the log before, zero for none |
//! | 16 | 16 | UUID of the log after, zero for none |
//! | 32 | 4 | consistent: 1, or 0 while the disk is written; little-endian |
//! | 36 | 4 | padding |
//! | 40 | 8 | bytes of the disk, little-endian |
//! | 48 | | one bit for each 64 KiB, least significant first |

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use uuid::Uuid;

use super::map::{Map, length};
use crate::error::{Error, Result};
use crate::store::{Area, At, Blob, Store};
use crate::sys;

/// Bytes before the bitmap.
pub const HEAD: u64 = 48;

/// The largest disk, bytes: what a VHD can have, with room to spare. More is taken for damage.
const LARGEST: u64 = 64 << 40;

/// What a log says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The log before: of the last snapshot of the same disk.
    pub parent: Uuid,
    /// The log after.
    pub child: Uuid,
    /// The bitmap can be relied on.
    pub consistent: bool,
    /// Bytes of the disk.
    pub size: u64,
}

impl Head {
    /// As it is in the file.
    pub fn to_bytes(&self) -> [u8; HEAD as usize] {
        let mut bytes = [0; HEAD as usize];
        bytes[..16].copy_from_slice(self.parent.as_bytes());
        bytes[16..32].copy_from_slice(self.child.as_bytes());
        bytes[32..36].copy_from_slice(&i32::from(self.consistent).to_le_bytes());
        bytes[40..].copy_from_slice(&self.size.to_le_bytes());
        bytes
    }

    /// None: no log looks like this. Only 1 is consistent.
    pub fn parse(bytes: &[u8; HEAD as usize]) -> Option<Self> {
        let field = |from: usize| -> [u8; 16] {
            let mut field = [0; 16];
            field.copy_from_slice(&bytes[from..from + 16]);
            field
        };
        let (words, last) = (field(32), field(32));
        let consistent = i32::from_le_bytes([words[0], words[1], words[2], words[3]]);
        let mut size = [0; 8];
        size.copy_from_slice(&last[8..]);
        let size = u64::from_le_bytes(size);
        (size <= LARGEST).then(|| Self {
            parent: Uuid::from_bytes(field(0)),
            child: Uuid::from_bytes(field(16)),
            consistent: consistent == 1,
            size,
        })
    }
}

/// An open log.
pub struct LogFile {
    blob: Box<dyn Blob>,
    path: PathBuf,
}

/// The name of a disk's log.
pub fn name_of(disk: Uuid) -> At {
    At::new(Area::Images, format!("{disk}.cbtlog"))
}

impl LogFile {
    /// The log at a path, if there is one; symbolic links are not followed in its last component.
    pub fn open_path(path: &Path, write: bool) -> Result<Option<Self>> {
        let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(file) => Ok(Some(Self { blob: Box::new(File::from(file)), path: path.to_owned() })),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::io(path, "open")(errno.into())),
        }
    }

    /// Writes what changed from one point to another as a file of its own, in place of what has the
    /// name. It need not survive a power cut.
    pub fn write_path(path: &Path, from: Uuid, to: Uuid, map: &Map) -> Result<()> {
        let head = Head { parent: from, child: to, consistent: true, size: map.size() };
        let mut bytes = head.to_bytes().to_vec();
        bytes.extend_from_slice(map.bytes());
        let new = path.with_extension("new");
        std::fs::write(&new, bytes)
            .and_then(|()| std::fs::rename(&new, path))
            .map_err(Error::io(path, "write"))
    }

    /// The log of a disk, if there is one.
    pub fn open(store: &dyn Store, disk: Uuid, write: bool) -> Result<Option<Self>> {
        Self::open_at(store, &name_of(disk), write)
    }

    pub(super) fn open_at(store: &dyn Store, at: &At, write: bool) -> Result<Option<Self>> {
        match store.open(at, write) {
            Ok(blob) => Ok(Some(Self { blob, path: store.path_of(at) })),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a log, whole and durable but for its name.
    pub(super) fn create(store: &dyn Store, at: &At, head: &Head, map: &Map) -> Result<Self> {
        let blob = store.create(at, HEAD + length(head.size))?;
        let file = Self { blob, path: store.path_of(at) };
        file.write_map(map)?;
        file.write_head(head)?;
        Ok(file)
    }

    fn damaged(&self, what: &'static str) -> Error {
        Error::Log { path: self.path.clone(), what }
    }

    /// Tells two names of one file from two files.
    pub(super) fn id(&self) -> Result<(u64, u64)> {
        Ok(sys::stat(&*self.blob, &self.path)?.id)
    }

    /// What it says of itself.
    pub fn head(&self) -> Result<Head> {
        self.look()?
    }

    /// What it says of itself, or what is wrong with it. The outer error is the storage's, and may
    /// be another one the next time.
    pub fn look(&self) -> Result<Result<Head>> {
        let mut bytes = [0; HEAD as usize];
        let got = sys::read_upto(&*self.blob, &self.path, &mut bytes, 0)?;
        if got < bytes.len() {
            return Ok(Err(self.damaged("is shorter than the head of a log")));
        }
        Ok(Head::parse(&bytes).ok_or_else(|| self.damaged("is not a log of changes")))
    }

    /// Its bitmap, of a disk of `size` bytes.
    pub fn map(&self, size: u64) -> Result<Map> {
        let want = length(size);
        let there = sys::stat(&*self.blob, &self.path)?.length;
        // Before memory is taken for what is not there.
        if there < HEAD + want {
            return Err(self.damaged("is shorter than its bitmap"));
        }
        let mut bytes = vec![0; want as usize];
        let got = sys::read_upto(&*self.blob, &self.path, &mut bytes, HEAD)?;
        if got < bytes.len() {
            return Err(self.damaged("is shorter than its bitmap"));
        }
        Ok(Map::of(size, bytes))
    }

    /// Writes the head, durably. It is within one sector, so it is the old one or the new one.
    pub fn write_head(&self, head: &Head) -> Result<()> {
        self.write(&head.to_bytes(), 0)
    }

    /// Writes the bitmap, durably.
    pub fn write_map(&self, map: &Map) -> Result<()> {
        self.write(map.bytes(), HEAD)
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        sys::write_at(&*self.blob, &self.path, bytes, at)?;
        sys::sync(&*self.blob, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::Head;

    #[test]
    fn the_head_is_laid_out_as_blktap_does() {
        let head = Head {
            parent: Uuid::from_u128(0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f),
            child: Uuid::from_u128(0x1011_1213_1415_1617_1819_1a1b_1c1d_1e1f),
            consistent: true,
            size: 0x0102_0304_0506,
        };
        let mut bytes: Vec<u8> = (0..32).collect();
        bytes.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([6, 5, 4, 3, 2, 1, 0, 0]);
        assert_eq!(head.to_bytes().to_vec(), bytes);
        assert_eq!(Head::parse(&head.to_bytes()), Some(head));
        let mut other = head.to_bytes();
        other[32] = 2;
        assert!(!Head::parse(&other).unwrap().consistent, "only 1 is");
        other[47] = 1;
        assert_eq!(Head::parse(&other), None, "a disk of 2^56 bytes");
    }
}
