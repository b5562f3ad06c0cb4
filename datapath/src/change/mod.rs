//! Changed blocks of a disk that is in use.
//!
//! The logs and what they tell are in [`vhd::change`]; whoever keeps images changes them under the
//! lock of the store. Here is what only the process that serves the disk can do:
//!
//! 1. [`tracker`]: the log of a disk that is written.
//! 2. [`exported`]: changes as bitmaps of an export, for backup programs.

pub mod exported;
pub mod tracker;

pub use exported::{Bitmap, Named, WithBitmaps};
pub use tracker::Tracker;
