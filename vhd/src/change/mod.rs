//! Which parts of a disk changed since a point in time.
//!
//! A disk whose changes are tracked has a log: one bit for each [`REGION`] bytes, set when they are
//! written. A snapshot takes the log of its disk with it, and the disk gets a new one; the logs of
//! a disk and its snapshots know each other by UUID. What changed between two of them is all that
//! the logs between have.
//!
//! What is said is never too little: blocks that differ are among those that are called changed.
//! Where that cannot be known (a log was not closed, is missing, or does not fit its neighbours)
//! everything is called changed, and why.
//!
//! 1. [`map`]: the bits.
//! 2. [`log`]: one log in a file, in the layout of blktap's `cbtlog`.
//! 3. [`logs`]: all logs of a store: snapshots, deletions, and what changed between two.
//!
//! The logs lie beside the images, as `<uuid>.cbtlog`, and are reached through
//! [`crate::store::Store`]: the same code then works on directories and on volumes, under the lock
//! of the store, and can be tested with one that loses power. XenServer's tools find them where
//! they look for them. Whoever writes a disk keeps its log meanwhile; here nothing is watched.

pub mod log;
pub mod logs;
pub mod map;

pub use log::LogFile;
pub use logs::{Difference, Logs};
pub use map::Map;

/// Bytes of a bit: what blktap has, too.
pub const REGION: u64 = 64 << 10;

/// A range that did, or did not, change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Bytes.
    pub length: u64,
    /// Whether it changed, or may have.
    pub dirty: bool,
}
