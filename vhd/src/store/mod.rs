//! What images lie in: files of a directory, or logical volumes, behind two small traits.
//!
//! A [`Blob`] is one open file or volume; a [`Store`] is the place that holds them by name. The
//! rest of the crate knows no other way to the storage, so that the same code runs on a directory,
//! on volumes, and on a simulated store that loses power at any write.

mod directory;
mod file;

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Instant;

pub use directory::Directory;

use crate::error::Result;

/// What a [`Blob`] says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Bytes that can be read.
    pub length: u64,
    /// Bytes that it takes of its storage.
    pub allocated: u64,
    /// Tells it from every other: device and inode number of a file.
    pub id: (u64, u64),
    /// Differs when it was written since: the time of the last change, seconds and nanoseconds. A
    /// volume may not tell.
    pub modified: (i64, i64),
    /// The length changes only by [`Blob::set_len`], and writing behind it fails: a logical
    /// volume or another block device.
    pub fixed_length: bool,
}

/// One open file or volume; positions and lengths are in bytes.
pub trait Blob: Send + Sync {
    /// Reads at `offset`. Fewer bytes than `buf` holds only at the end.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of `buf` at `offset`. A failure may have written a part.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Writes the parts one behind the other, as one write where that is possible.
    fn write_parts_at(&self, parts: &[io::IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut at = offset;
        for part in parts {
            self.write_at(part, at)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// What it is now. [`io::ErrorKind::InvalidInput`] for what is neither a file nor a volume.
    fn stat(&self) -> io::Result<Stat>;

    /// Makes it shorter or longer; what is added reads as zeros, on a volume as anything.
    fn set_len(&self, length: u64) -> io::Result<()>;

    /// The length that a volume gets by [`Blob::set_len`] with this one; none for what cannot be
    /// made shorter.
    fn length_for(&self, _length: u64) -> Option<u64> {
        None
    }

    /// Makes what was written, and the length, durable.
    fn sync(&self) -> io::Result<()>;

    /// Gives a range back to the storage and makes it read as zeros; `false`, with nothing
    /// changed, where the storage cannot.
    fn punch(&self, offset: u64, length: u64) -> io::Result<bool>;

    /// The first range at or after `from` that may hold anything but zeros; none when all the rest
    /// is a hole. Where the storage does not tell holes, everything counts.
    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>>;

    /// Tells the storage that reads will jump, so that reading ahead is in vain.
    fn expect_random(&self) {}

    /// Asks the storage to begin writing out a range. Nothing is durable before [`Blob::sync`], and
    /// errors are told there.
    fn write_out(&self, _range: Range<u64>) {}

    /// Copies `length` bytes of `source` from `from` to `to` without passing them through this
    /// process; answers how many were, 0 where the storage cannot.
    fn copy_from(&self, _source: &dyn Blob, _from: u64, _to: u64, _length: u64) -> io::Result<u64> {
        Ok(0)
    }

    /// Makes this empty one a copy of `source` that shares its space until either is written;
    /// `false`, with nothing changed, where the storage cannot.
    fn reflink(&self, _source: &dyn Blob) -> io::Result<bool> {
        Ok(false)
    }

    /// The open file behind it, where there is one.
    fn as_file(&self) -> Option<&File> {
        None
    }
}

/// The kinds of things that a store holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Area {
    /// Images.
    Images,
    /// What is said about disks.
    Docs,
    /// Operations between their first visible effect and their last.
    Journal,
    /// How far merges have come.
    Merges,
    /// Who has a disk open.
    Claims,
    /// What is not there yet, or no longer.
    Tmp,
}

impl Area {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Images, Self::Docs, Self::Journal, Self::Merges, Self::Claims, Self::Tmp];
}

/// The name of one thing in a store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct At {
    /// Where.
    pub area: Area,
    /// Its name there: ASCII letters, digits, hyphens, dots and percent signs.
    pub name: String,
}

impl At {
    /// A name in an area.
    pub fn new(area: Area, name: impl Into<String>) -> Self {
        Self { area, name: name.into() }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}", self.area, self.name)
    }
}

/// Why something is locked, until it is dropped.
pub type Held = Box<dyn Send + Sync>;

/// A place that holds images and what belongs to them, by name.
///
/// # What an implementation promises
///
/// - A change of names that was followed by [`Store::sync`] of the areas it touched is there after
///   a power cut. Changes of names that were not synced reach the storage in their order.
/// - [`Store::rename`] over an existing name is one step: whoever looks, also after a cut and
///   [`Store::heal`], finds the old thing or the new one under the name.
/// - What is removed stays readable by whoever has it open, unless [`Store::merges_as`] says a name.
pub trait Store: Send + Sync {
    /// What the place is called in messages.
    fn path(&self) -> PathBuf;

    /// What a thing is called in messages, and by other programs.
    fn path_of(&self, at: &At) -> PathBuf;

    /// The names in an area that could be ours, in no order.
    fn names(&self, area: Area) -> Result<Vec<String>>;

    /// Whether a name is taken, by whatever.
    fn exists(&self, at: &At) -> Result<bool>;

    /// Opens a thing; [`crate::Error::is_not_found`] when it is not there. Symbolic links are not
    /// followed.
    fn open(&self, at: &At, write: bool) -> Result<Box<dyn Blob>>;

    /// Makes a thing; fails when the name is taken. `room` is how many bytes it must be able to
    /// hold: a volume has that length at least, a file is empty.
    fn create(&self, at: &At, room: u64) -> Result<Box<dyn Blob>>;

    /// Gives a thing a second name. `false` where things cannot have two.
    fn link(&self, from: &At, to: &At) -> Result<bool>;

    /// Gives a thing another name, in place of what had it.
    fn rename(&self, from: &At, to: &At) -> Result<()>;

    /// Removes a name, and the thing with its last name. Answers whether it was there.
    fn remove(&self, at: &At) -> Result<bool>;

    /// Makes the names in an area durable.
    fn sync(&self, area: Area) -> Result<()>;

    /// Finishes what a cut left of a single call; called before anything else is recovered, with
    /// the lock held.
    fn heal(&self) -> Result<()> {
        Ok(())
    }

    /// Locks the store against everybody else who changes it, waiting until `deadline` at most:
    /// then [`crate::Error::Busy`].
    fn lock(&self, deadline: Instant) -> Result<Held>;

    /// The right to merge and reclaim in this store, which one has at a time and which does not
    /// keep others from changing it; none when somebody has it.
    fn try_lock_maintenance(&self) -> Result<Option<Held>>;

    /// Keeps everybody from changing it, if nobody is at it just now.
    fn try_lock_shared(&self) -> Option<Held>;

    /// What other programs lock to wait for whoever changes the store; none where there is no such
    /// file.
    fn lock_file(&self) -> Option<PathBuf> {
        None
    }

    /// The file that is there while whoever opened the store is shut out of it; none where that is told
    /// in another way.
    fn shut_out_mark(&self) -> Option<PathBuf> {
        None
    }

    /// What a child calls an image in its parent locators.
    fn link_name(&self, at: &At) -> String {
        at.name.clone()
    }

    /// Bytes of a volume in which an image of this virtual size has room for all of its blocks; none
    /// where images grow by themselves.
    fn full_room(&self, _size: u64) -> Option<u64> {
        None
    }

    /// Whether a new disk gets [`Store::full_room`] at once.
    fn reserves(&self) -> bool {
        false
    }

    /// Lets other programs of this host open images: the first one for writing if `write`, the others
    /// for reading. Answers by which paths, none of which is a symbolic link.
    fn expose(&self, images: &[At], _write: bool) -> Result<Vec<PathBuf>> {
        Ok(images.iter().map(|at| self.path_of(at)).collect())
    }

    /// How claims name whoever merges in this store, where the place of what is removed or made shorter
    /// goes to others at once: what is open is then claimed, base copies too. None where it stays with
    /// whoever has it open.
    fn merges_as(&self) -> Option<String> {
        None
    }

    /// Whether whoever has made this claim sees what is written here: on another host he may have read it
    /// before, and keep that.
    fn is_near(&self, _holder: &str) -> bool {
        true
    }

    /// Readies an image for being merged into while others of this host read it, with the lock held.
    fn ready_target(&self, _at: &At) -> Result<()> {
        Ok(())
    }

    /// Changes whenever an image or a journal record comes, goes or is renamed.
    fn stamp(&self) -> Result<[(i64, i64); 2]>;
}
