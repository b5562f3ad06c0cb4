//! What the control plane says to this process.
//!
//! 1. [`run`]: the directory of a process, where it is found, and its lock.
//! 2. [`protocol`]: what is said, as lines of JSON.
//! 3. [`client`]: finds, starts, tells and ends processes; the control plane uses it.
//! 4. [`served`]: the disk of this process: attached, active, paused.
//! 5. [`process`]: this process from its first line to its last.
//! 6. [`mirroring`]: a mirror of the disk, and its move to another place.
//! 7. [`remote`]: the disk for other hosts.
//! 8. `pausing`: who has stopped the disk, and what happens when he is gone.
//! 9. `merging`: a merge of the leaf into its parent.
//! 10. `look`: which images the disk has, when whoever was changing them is gone.
//!
//! # Who decides when the one who paused is gone
//!
//! A pause belongs to a connection. While it lasts, somebody changes the images: the control plane,
//! or a driver in a process of its own. When the connection ends without a word, nobody here knows
//! how far they have come, or whether they go on. So whoever changes images holds a lock meanwhile
//! ([`protocol::Command::Pause`] names it), and this process waits for that lock before it looks.
//! With the lock in its hand it looks at the path of the leaf: the same file, and it goes on; another
//! one that is based on ours, and it goes over to that; neither, and it waits until it is one of the
//! two.

pub mod client;
mod inherit;
mod look;
mod merging;
pub mod mirroring;
mod pausing;
pub mod process;
pub mod protocol;
pub mod remote;
pub mod run;
pub mod served;
mod server;
mod tracking;

pub use client::{Client, end, find, locate, start};
pub use run::{Place, Run};
