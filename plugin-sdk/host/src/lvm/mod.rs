//! LVM: volume groups by their JSON report, and SRs whose VDIs are logical volumes.
//!
//! [`Lvm`] runs commands on some devices and sees nothing else of the host; [`Report`] is all that
//! lies on them. [`Repository`] is an SR on top: a volume group, each VDI a volume, what is known
//! about it in the volume's tags. Drivers differ in how they come by the devices.
//!
//! # Why not ...
//!
//! - **a trait for drivers to fill in**: nothing differs but names ([`Names`]) and what is to be
//!   done before, which each driver does in its own methods.

mod attach;
mod command;
mod devices;
mod group;
mod lock;
mod metadata;
mod names;
mod pool;
mod report;
mod repository;
mod rounds;
mod sr;
mod tags;
mod thin;
mod vdis;

pub use command::{Gate, Lvm};
pub use devices::{Devices, Signature, candidates, signatures, wipe};
pub use names::Names;
pub use report::{Device, Group, Piece, Report, Volume};
pub use repository::{Allocation, Found, Repository};
