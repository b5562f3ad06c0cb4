//! A disk as the server sees it: what clients ask for, as calls.
//!
//! Calls come from many threads at once, one per connection, and may overlap. Two writes that
//! overlap in time and place leave, for each sector, what one of them wrote. When a call returns,
//! every later call on any connection sees its effect ("multi-conn" of the NBD protocol), and a
//! flush makes durable what every call that returned before it, on any connection, has written.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

pub use vhd::change::Changed;

use crate::error::Result;

/// How zeros are to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Zeroes {
    /// The space must stay allocated (`NBD_CMD_FLAG_NO_HOLE`).
    pub keep_space: bool,
    /// Fails with [`crate::error::Errno::NotSupported`], at once and with nothing changed, when it would take as
    /// long as writing the zeros (`NBD_CMD_FLAG_FAST_ZERO`).
    pub only_if_fast: bool,
    /// Durable when the call returns (`NBD_CMD_FLAG_FUA`).
    pub durable: bool,
}

/// What a range of a disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes.
    pub length: u64,
    /// Takes no space of its own: `NBD_STATE_HOLE`.
    pub hole: bool,
    /// Reads as zeros: `NBD_STATE_ZERO`.
    pub zero: bool,
}

/// Requests on one disk. Offsets and lengths are in bytes, within [`Export::size`], lengths above
/// 0 (the server has checked).
pub trait Export: Send + Sync {
    /// Bytes. What a client was told at its start holds for its connection.
    fn size(&self) -> u64;

    /// Writing is refused.
    fn read_only(&self) -> bool;

    /// Block sizes to advertise, bytes: least (what works), preferred (what is fast).
    fn block_sizes(&self) -> (u32, u32) {
        (1, 4096)
    }

    /// Fills `buf` from `offset`.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Writes `buf` at `offset`; `durable` as in [`Zeroes::durable`].
    fn write(&self, offset: u64, buf: &[u8], durable: bool) -> Result<()>;

    /// Makes everything durable that was answered before.
    fn flush(&self) -> Result<()>;

    /// Gives space back where that is cheap; the range reads as zeros afterwards (more than the
    /// protocol asks for).
    fn trim(&self, offset: u64, length: u64, durable: bool) -> Result<()>;

    /// Makes a range read as zeros.
    fn write_zeroes(&self, offset: u64, length: u64, how: Zeroes) -> Result<()>;

    /// A hint that a range will be read.
    fn cache(&self, _offset: u64, _length: u64) -> Result<()> {
        Ok(())
    }

    /// Appends what a range holds, from `offset` on, in order: at most `limit` extents and
    /// at least one, neighbours different, no further than `offset + length`.
    fn extents(&self, offset: u64, length: u64, limit: usize, into: &mut Vec<Extent>)
    -> Result<()>;

    /// Names of the change bitmaps that clients may ask for (`qemu:dirty-bitmap:NAME`).
    fn bitmaps(&self) -> Vec<String> {
        Vec::new()
    }

    /// As [`Export::extents`], of the bitmap `name`, one of [`Export::bitmaps`].
    fn changed(
        &self,
        _name: &str,
        _offset: u64,
        _length: u64,
        _limit: usize,
        _into: &mut Vec<Changed>,
    ) -> Result<()> {
        Err(crate::error::Error::new(crate::error::Errno::Invalid, "no bitmap has that name"))
    }

    /// What this disk is, for people who list what a server has.
    fn description(&self) -> Option<String> {
        None
    }

    /// A read that is nothing but transfers from files, for a caller that runs many at a time
    /// (a ring). Nothing is transferred yet. Never waits: see [`Mapped::Closed`].
    fn map_read(&self, _offset: u64, _length: u64) -> Mapped {
        Mapped::NotSimple
    }

    /// A write that is nothing but transfers to files and changes no metadata. Nothing is
    /// transferred yet. Never waits: see [`Mapped::Closed`].
    fn map_write(&self, _offset: u64, _length: u64) -> Mapped {
        Mapped::NotSimple
    }

    /// Waits as long as limits want it, for a read or write of so many bytes that is then done in
    /// parts, which are neither limited nor counted, and ends with [`Export::count`].
    fn admit(&self, _bytes: u64) {}

    /// Reads a part of what was admitted.
    fn read_part(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read(offset, buf)
    }

    /// Writes a part of what was admitted.
    fn write_part(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.write(offset, buf, false)
    }

    /// A part of what was admitted as transfers through the page cache; a write as a single one
    /// that changes no metadata. Nothing is transferred yet. None where it is more than that, and
    /// after an error: [`Export::read_part`] or [`Export::write_part`] does it, or tells what is
    /// wrong. Never waits.
    fn place_part(&self, _offset: u64, _length: u64, _write: bool) -> Option<Transfer> {
        None
    }

    /// A request that was done in parts, or as transfers only, has ended.
    fn count(&self, _ended: &Ended) {}
}

/// What came of a request, for statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// It was a write; otherwise a read.
    pub write: bool,
    /// Bytes.
    pub bytes: u64,
    /// Time that the disk took for it.
    pub took: Duration,
    /// Whether it succeeded.
    pub good: bool,
}

/// What [`Export::map_read`] and [`Export::map_write`] answer.
pub enum Mapped {
    /// Only transfers. The caller does all of them, or, after an error, drops this and calls
    /// [`Export::read`] or [`Export::write`], which then tells what is wrong.
    Transfer(Transfer),
    /// More than transfers, or a disk that is no slower without them: call [`Export::read`] or
    /// [`Export::write`].
    NotSimple,
    /// The disk is being changed underneath. The caller ends the transfers it has, all of them,
    /// and then calls [`Export::read`] or [`Export::write`], which wait. To wait with transfers
    /// in flight would be to wait for oneself.
    Closed,
}

/// Transfers that stand for one request.
pub struct Transfer {
    /// In the order of the buffer; together as long as it. A file that ends early has failed.
    pub pieces: Vec<Piece>,
    /// Keeps the disk from changing underneath; dropped when all pieces are done or have failed.
    /// The caller says [`Export::count`] when the request has ended.
    pub held: Box<dyn Send>,
}

/// A part of a transfer.
pub struct Piece {
    /// The bytes of the buffer.
    pub part: Range<usize>,
    /// Where they are; none for zeros (of a read).
    pub place: Option<(Arc<File>, u64)>,
}

/// Finds disks by the name that clients ask for.
pub trait Exports: Send + Sync {
    /// All names, for clients that ask what there is.
    fn names(&self) -> Vec<String>;

    /// The disk of a name; the empty name is the default, where there is one.
    fn find(&self, name: &str) -> Option<Arc<dyn Export>>;
}
