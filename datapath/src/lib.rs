//! Serves one virtual disk as a network block device, and changes it underneath while it runs.
//!
//! From the guest's side to the storage:
//!
//! 1. [`nbd`]: the protocol, as a server and as a client; knows exports, not disks.
//! 2. [`export`]: what stands between the two: requests as calls on a trait.
//! 3. [`disk`]: one disk made of a chain of images, with the gate that stops its requests while
//!    something underneath is changed.
//! 4. [`sync`]: brings another disk to the same content while the first is written: mirrors, and
//!    leaves that are merged while they are in use.
//! 5. [`change`]: which parts changed since a point in time, for backups.
//! 6. [`control`]: what the control plane says to this process.
//!
//! It is told what to do and decides nothing: which images make up the disk, who may write, when a
//! snapshot is taken are decided by whoever started it.
#![deny(unsafe_code)]

pub mod change;
pub mod control;
pub mod disk;
pub mod error;
pub mod export;
pub mod nbd;
pub mod sync;
