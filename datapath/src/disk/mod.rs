//! One disk made of a chain of images.
//!
//! 1. [`Plan`]: which files make it up.
//! 2. [`Drive`]: the disk in use: the gate that stops its requests, statistics, limits, watchers,
//!    and the exchange of files underneath.
//! 3. `chain`: the files as one disk: who has which part, and reading and writing it.
//!
//! Blocks are allocated by [`vhd::Image`], which keeps the order that survives a power cut; there
//! is no second implementation of it here.

mod chain;
mod drive;
mod gate;
mod level;
mod limit;
mod owners;
mod paused;
mod plan;
mod publisher;
mod stats;
mod storage;
mod watch;

pub use drive::{Drive, Options};
pub use limit::{Limits, Rate};
pub use paused::{Paused, Prepared};
pub use plan::{Format, Layer, Plan};
pub use stats::{Kind, KindStats, Stats};
pub use watch::{Change, Ticket, Watcher, WatcherId};
