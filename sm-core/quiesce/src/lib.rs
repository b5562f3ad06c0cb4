//! Brings guests to rest for a snapshot, and lets them go on whatever happens.
//!
//! | module | what it does |
//! |---|---|
//! | [`quiescer`] | what every way to bring a guest to rest can do, and what it answers |
//! | [`agent`] | the QEMU guest agent over its socket |
//! | [`vss`] | XenServer's conversation with the VSS provider of a Windows guest |
//! | [`xenstore`] | the store that conversation is held in: over its socket, and in memory |
//! | [`exec`] | two programs: one before the snapshot, one after it |
//! | [`freezer`] | the process that holds all of these while a guest is at rest |
//!
//! A guest that stays frozen is worse than a snapshot that fails. So nothing here is called by the
//! storage manager itself: a small process of its own, `sm-freezer`, holds the connection to the
//! guest, and lets it go on when it is told, when the window is over, and when whoever started it
//! is gone, by the end of a socket that the kernel closes with him.
//!
//! All of it blocks, each call until a point in time that its caller names; plain threads, no
//! runtime.
//!
//! Why not a task of the storage manager: it would end with it, and a driver's code can end it.
//! Why not a second connection for the watchdog: an agent serves one client, the second one waits
//! until the first has gone.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod agent;
pub mod exec;
pub mod freezer;
pub mod quiescer;
pub mod vss;
pub mod xenstore;

pub use freezer::{Freezer, Report};
pub use quiescer::{Consistency, Frozen, Limits, Method, Outcome, Quiescer, Ready, Taken, Thawed};
