//! What drivers do on the host that they run on, so that none of them writes it again.
//!
//! | module | what |
//! |---|---|
//! | [`block`] | SCSI disks by their SCSIid; sizes, rescans, removal; what lies on a device |
//! | [`iscsi`] | open-iscsi: discovery, sessions, CHAP, who needs which target |
//! | [`mount`] | file systems of servers that may stop answering, NFS above all |
//! | [`lun`] | a LUN as one device: found by what it is, joined by multipath, grown, let go of |
//! | [`lvm`] | LVM by its JSON reports; SRs whose VDIs are logical volumes |
//! | [`multipath`] | maps of dm-multipath and what their paths are worth |
//! | [`reservation`] | persistent reservations: the array refuses what a host writes that was shut out |
//!
//! Programs are run by argument vector, with the deadline of the call; waiting is for a condition,
//! never for a time. Errors are those of the model, with SMAPI's numbers.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod block;
pub mod iscsi;
pub mod lun;
pub mod lvm;
pub mod mount;
pub mod multipath;
pub mod reservation;
