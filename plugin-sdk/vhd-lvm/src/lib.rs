//! VHD trees on logical volumes, in XenServer's layout: the store that the trees of the `vhd` crate
//! lie in, and an SR on it.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod blob;
mod direct;
mod disks;
mod fence;
mod inner;
mod lease;
mod objects;
mod rights;
mod store;
mod volumes;

pub use disks::{Disks, Right};
pub use fence::{Fenced, Hosts};
pub use store::LvStore;
pub use vhd_folder::{Fence, MAX_CHAIN, MAX_VDI_SIZE};
pub use volumes::Volumes;
