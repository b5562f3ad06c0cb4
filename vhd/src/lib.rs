//! VHD images, chains of them, and directories full of chains.
//!
//! The crate has four layers, each usable without the ones below it in this list:
//!
//! 1. the format: [`footer`], [`header`], [`locator`], [`bat`], [`batmap`], [`geometry`];
//! 2. one file: [`image`] (open, probe, read, write, grow), [`raw`];
//! 3. several files as one disk: [`chain`], and [`copy`](mod@copy) between any two disks;
//! 4. a directory as a store of disks: [`tree`], which owns snapshots, clones and recovery.
//!
//! For files that belong to no store: [`check`] looks at one that may be damaged and says everything
//! that is wrong with it, [`repair`] brings its metadata in order, [`folder`] finds parents by UUID in
//! one directory, [`diff`] says what changed between two images of a chain. [`change`] keeps the logs
//! of what was written to disks between their snapshots.
//!
//! Why not async, and no policy: every call is a handful of system calls on files, whose only
//! wait is the storage itself. A caller that must not block runs the call on a thread. What to
//! snapshot, when to collapse a chain and what a disk is called are decided elsewhere; this crate
//! only promises that each step it takes can be cut at any point without losing a disk.
//!
//! All sizes and offsets are in bytes unless a name says sectors; a sector is 512 bytes.
#![forbid(unsafe_code)]

pub mod bat;
pub mod batmap;
pub mod bits;
pub mod chain;
pub mod change;
pub mod check;
pub mod copy;
pub mod diff;
pub mod disk;
pub mod error;
pub mod folder;
pub mod footer;
pub mod geometry;
pub mod header;
pub mod image;
pub mod locator;
pub mod merge;
pub mod raw;
pub mod repair;
pub mod store;
pub mod tree;

mod sys;

pub use chain::{Chain, Layer};
pub use disk::{Disk, Extent, ExtentKind, Extents};
pub use error::{Error, Fault, Result};
pub use image::{Image, Info, Mode};
pub use raw::Raw;
pub use tree::Tree;

/// Bytes in a sector; every offset of the format counts in these.
pub const SECTOR: u64 = 512;

/// Block size of the images we write: 2 MiB, the only one XenServer's tools fully support.
pub const BLOCK: u64 = 2 << 20;

/// Sizes of new disks are rounded up to a multiple of this: one block, as XenServer does, so that
/// a disk never ends inside a block and a resize never has to look into the last one.
pub const SIZE_STEP: u64 = BLOCK;

/// Smallest disk: one block. XenServer refuses less.
pub const MIN_SIZE: u64 = BLOCK;

/// Largest disk: 2040 GiB, that is 0xff00_0000 sectors. Above it block offsets, which are 32-bit
/// sector numbers, no longer reach every block of a full image.
pub const MAX_SIZE: u64 = 0xff00_0000 * SECTOR;

/// Rounds a requested size up to what a disk can have: at least [`MIN_SIZE`], a multiple of
/// [`SIZE_STEP`], at most [`MAX_SIZE`].
pub fn round_size(requested: u64) -> Result<u64> {
    requested
        .max(MIN_SIZE)
        .checked_next_multiple_of(SIZE_STEP)
        .filter(|size| *size <= MAX_SIZE)
        .ok_or(Error::TooLarge { requested, limit: MAX_SIZE })
}
