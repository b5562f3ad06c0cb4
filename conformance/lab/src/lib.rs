//! Real kernels for tests: guests of user-mode Linux with disks, networks and faults.
//!
//! A guest is a process of this machine, boots in two seconds, and has a kernel of its own with
//! device-mapper, LVM, an NFS server, an iSCSI target and initiator, multipath, NBD. It sees the
//! machine's own files, so a program that was just built runs in it as it is; what it writes
//! stays in its memory, except to its disks and shares.
//!
//! ```no_run
//! # fn main() -> lab::Result<()> {
//! use lab::{Lab, kit};
//!
//! let lab = Lab::new()?;
//! let network = lab.network()?;
//! let disk = lab.disk("data", 1 << 30)?;
//! let [nas, host] = lab.boot([
//!     lab.guest("nas").network(&network).disk(&disk),
//!     lab.guest("host").network(&network),
//! ])?;
//! kit::xfs(&nas, "/dev/ubda", None, "/srv/nfs")?;
//! let server = kit::nfs::Server::start(&nas, "/srv/nfs")?;
//! kit::nfs::mount(&host, nas.address(&network)?, "/", "/sr", "vers=4.2,soft")?;
//!
//! let writer = host.command(["dd", "if=/dev/zero", "of=/sr/file", "bs=1M", "count=8"]).start()?;
//! network.unplug(&nas); // a cable
//! server.stop()?; // a service
//! nas.pause()?; // a host that hangs
//! host.kill(); // a host that loses power
//! host.boot()?;
//! # Ok(())
//! # }
//! ```
//!
//! A test that is to run on such a kernel as a whole says so with [`in_guest`]. Everything has a
//! deadline, and ends with the process that began it, also if that is killed.
//!
//! `docs/lab.md` says what works in guests, what does not, and how long it takes.
//!
//! # Why not ...
//!
//! - **virtual machines**: hardware for them is missing where tests usually run, in containers and
//!   in virtual machines. Emulated in software, the same LVM commands take three times as long.
//! - **containers, or the machine's own kernel**: device-mapper, iSCSI sessions, NFS mounts and the
//!   target belong to the whole machine. A test would need modules that are not there, and a bug in
//!   a driver would reach the machine's disks.
//! - **simulated commands**: they do what their author believed. Simulators of arrays have their
//!   place beside this one.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[doc(hidden)]
pub mod balance;
mod call;
mod disk;
mod error;
mod guest;
mod inside;
pub mod kit;
mod lab;
pub mod log_writes;
mod machine;
mod network;
mod power;
mod processors;
#[doc(hidden)]
pub mod wire;

pub use call::{Call, Output, Running};
pub use disk::Disk;
pub use error::{Error, Result};
pub use guest::{Builder, Guest};
pub use inside::{in_guest, inside};
pub use lab::Lab;
pub use machine::{cargo, forget_package};
pub use network::Network;
pub use wire::Step;
