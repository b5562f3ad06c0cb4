//! A real LUN of a simulated array, in guests of the lab: by `smctl`, with the kernel's initiator.
//!
//! A [`Station`] says how an array is started there; [`luns`] does the rest.
//! What only one vendor has is done with the same [`Place`] before everything is removed.

mod luns;
mod place;
pub mod stations;

pub use luns::{luns, told};
pub use place::Place;

use ::lab::Result;

/// Mebibytes of a disk, and of one that has grown: whole pages of any array.
pub const SIZE: u64 = 30;
/// See [`SIZE`].
pub const LARGER: u64 = 60;

/// A driver's array in the lab.
pub trait Station {
    /// The driver's name.
    const DRIVER: &'static str;

    /// How each SCSIid of its arrays begins.
    const SCSI_ID: &'static str;

    /// Words of `array-sim`: the vendor, then options, all but those for state and addresses.
    const ARRAY: &'static [&'static str];

    /// Whether LUNs are served at both of the array's networks, and not at the first one alone.
    const BOTH_NETWORKS: bool = false;

    /// Whether each volume is a target of its own, with a session.
    const TARGET_PER_VOLUME: bool = false;

    /// The key of the simulator's volume that [`furnish`](Self::furnish) makes for somebody else.
    const THEIRS: &'static str;

    /// Makes on the array what SRs need, and a volume of a mebibyte of somebody else's.
    fn furnish(place: &Place) -> Result<()>;

    /// `key=value` of the device configuration, without `initiator`.
    fn config(place: &Place) -> Vec<String>;
}
