//! Snapshots of all disks of a VM, with the guest at rest.
//!
//! | module | what it does |
//! |---|---|
//! | `coordinator` | one snapshot: prepares, freezes, takes, lets go on, judges, marks or discards |
//! | `ledger` | what is recorded of it, so that whoever comes after a dead one knows what to undo |
//! | `recover` | that undoing |
//! | `sets` | the sets that are on the storage: listed, put back, destroyed, shown to hosts |
//! | `keys` | what is kept with each snapshot |
//!
//! What is slow is done before the guest is at rest: sessions, locks, the storage's own groups, the
//! connection to the guest. While it is at rest nothing happens but the snapshots. Then it goes on,
//! whatever came of them, and first of all that is done. A snapshot is kept only if all of its set
//! were taken, and the guest says that it was at rest all the time; else all are destroyed, also
//! those that the storage takes later than it was waited for.
//!
//! The guest is held by a process of its own, see [`sm_quiesce::freezer`].

mod coordinator;
mod keys;
mod ledger;
mod recover;
mod sets;

use std::path::PathBuf;

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};
use sm_model::vdi::VdiInfo;
use sm_model::{Access, SrUuid, VdiUuid};
use sm_quiesce::{Consistency, Limits, Method};
use uuid::Uuid;

pub use recover::Recovered;
pub use sets::SnapshotSets;

/// The set that a snapshot is of. What was made of the snapshot is of none.
pub fn snapshot_set_of(vdi: &VdiInfo) -> Option<Uuid> {
    keys::Mark::read(vdi).map(|mark| mark.set)
}

/// The longest document that is kept with a set, in bytes.
pub const DOCUMENT_LIMIT: usize = 256 << 10;

/// A disk in an SR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DiskOf {
    /// The SR.
    pub sr: SrUuid,
    /// The disk.
    pub vdi: VdiUuid,
}

/// A snapshot of all disks of a VM that is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSnapshot {
    /// The disks, also of several SRs.
    pub disks: Vec<DiskOf>,
    /// The name of each snapshot; that of its disk if absent.
    pub name: Option<String>,
    /// The description of each.
    pub description: String,
    /// How the guest is brought to rest.
    pub method: Method,
    /// How long each step may take.
    pub limits: Limits,
    /// Take them also where the guest cannot be brought to rest, or where they are not of one
    /// point in time, and say so.
    pub allow_crash_consistent: bool,
    /// A text to keep with the set: what a requester of the caller's own says about it.
    pub document: Option<String>,
}

/// A set of snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSet {
    /// Its id.
    pub id: Uuid,
    /// What it can be relied on for.
    pub consistency: Consistency,
    /// Whether all are of one point in time for whoever wrote them: the storage took them so, or
    /// the guest was at rest.
    pub one_point_in_time: bool,
    /// When it was taken, in seconds since 1970-01-01 UTC.
    pub time: u64,
    /// How many snapshots it had when it was taken.
    pub size: u32,
    /// What the guest said that it is.
    pub system: String,
    /// Bytes of the document that is kept with it.
    pub document: u64,
    /// The snapshots that are there.
    pub members: Vec<SetMember>,
    /// Microseconds that the guest was at rest; known only of a set that was just taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_microseconds: Option<u64>,
    /// What somebody should know who relies on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl SnapshotSet {
    /// Whether all its snapshots are there.
    pub fn is_complete(&self) -> bool {
        self.members.len() == self.size as usize
    }
}

/// A snapshot of a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetMember {
    /// The SR of both.
    pub sr: SrUuid,
    /// The disk; none if the storage does not know it any more.
    pub vdi: Option<VdiUuid>,
    /// The snapshot.
    pub snapshot: VdiUuid,
    /// Its name.
    pub name: String,
}

/// A snapshot that this host can read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presented {
    /// The SR.
    pub sr: SrUuid,
    /// The snapshot.
    pub snapshot: VdiUuid,
    /// What is attached: the snapshot, or a clone of it.
    pub vdi: VdiUuid,
    /// How it is reached.
    pub access: Vec<Access>,
}

/// Where the process is that holds guests, and where it writes.
#[derive(Debug)]
pub(crate) struct Quiescing {
    pub(crate) program: Option<Utf8PathBuf>,
    pub(crate) folder: PathBuf,
}
