//! Requests and replies about virtual disk images.

mod changes;

use std::collections::BTreeMap;

pub use changes::{CHANGED_BLOCK, VdiCbt, VdiChanged, VdiChanges};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Changed;
use crate::access::{Access, AttachMode, ImageFormat};
use crate::id::VdiUuid;
use crate::size::Bytes;

/// What a VDI is for, as in xapi.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VdiType {
    /// A disk of a VM's user.
    #[default]
    User,
    /// A system disk.
    System,
    /// Lost at shutdown.
    Ephemeral,
    /// Memory of a suspended VM.
    Suspend,
    /// Memory of a crashed VM.
    Crashdump,
    /// Heartbeat of high availability.
    HaStatefile,
    /// Metadata of a pool.
    Metadata,
    /// Redo log of a pool's database.
    RedoLog,
    /// Statistics.
    Rrd,
    /// Cache of a provisioning server.
    PvsCache,
    /// Only the record of changed blocks is left.
    CbtMetadata,
}

/// Whether an object can be trusted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Health {
    /// It can.
    Ok,
    /// It works; something needs attention.
    Degraded {
        /// What.
        reason: String,
    },
    /// It is shown and kept, and nothing touches it until somebody has looked.
    Quarantined {
        /// Why.
        reason: String,
    },
}

/// A VDI, as the backend describes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiInfo {
    /// Its UUID.
    pub uuid: VdiUuid,
    /// Name.
    pub name: String,
    /// Description.
    pub description: String,
    /// Size the guest sees, in bytes.
    pub virtual_size: Bytes,
    /// Bytes it takes on the backend by itself, without what it shares with others.
    pub physical_utilisation: Bytes,
    /// Bytes that come back when it is destroyed, its own base copies included; absent where the
    /// driver cannot tell, or was not asked ([`VdiStat::space`]) and it is costly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclusive: Option<Bytes>,
    /// Bytes that `sr_maintain` and `vdi_reclaim` can give back, about; absent as `exclusive`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reclaimable: Option<Bytes>,
    /// Format on the backend.
    pub format: ImageFormat,
    /// What it is for.
    #[serde(default)]
    pub vdi_type: VdiType,
    /// Whether it may never be written.
    #[serde(default)]
    pub read_only: bool,
    /// Whether several may write at once.
    #[serde(default)]
    pub sharable: bool,
    /// Whether it is a snapshot.
    #[serde(default)]
    pub is_a_snapshot: bool,
    /// Whether it has a log of changed blocks: of a disk, those since its last snapshot; of a
    /// snapshot, those up to it.
    #[serde(default)]
    pub cbt_enabled: bool,
    /// The VDI it was taken of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_of: Option<VdiUuid>,
    /// When, in seconds since 1970-01-01 UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_time: Option<u64>,
    /// What the storage lets it be asked for in a second ([`VdiQos`]); empty: as much as it can.
    #[serde(default, skip_serializing_if = "Qos::is_unlimited")]
    pub qos: Qos,
    /// The user's own keys.
    #[serde(default)]
    pub keys: BTreeMap<String, String>,
    /// Set while an import or copy is filling it: its content is not complete.
    #[serde(default)]
    pub incomplete: bool,
    /// Whether it can be trusted.
    pub health: Health,
}

/// Makes an empty VDI. Replay: a VDI of this UUID with the same size and format is `already`;
/// with others it is an `exists` error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiCreate {
    /// The UUID it gets.
    pub uuid: VdiUuid,
    /// Name.
    #[serde(default)]
    pub name: String,
    /// Description.
    #[serde(default)]
    pub description: String,
    /// Size in bytes; the driver rounds up to what its format needs.
    pub virtual_size: Bytes,
    /// Format; the driver's own choice if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<ImageFormat>,
    /// What it is for.
    #[serde(default)]
    pub vdi_type: VdiType,
    /// Whether several may write at once.
    #[serde(default)]
    pub sharable: bool,
    /// The user's own keys.
    #[serde(default)]
    pub keys: BTreeMap<String, String>,
    /// Mark it as being filled, see [`VdiInfo::incomplete`].
    #[serde(default)]
    pub incomplete: bool,
}

/// Adopts an image that already lies on the backend under this UUID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiIntroduce {
    /// The UUID it is stored under.
    pub uuid: VdiUuid,
    /// Name.
    #[serde(default)]
    pub name: String,
    /// Description.
    #[serde(default)]
    pub description: String,
    /// What it is for.
    #[serde(default)]
    pub vdi_type: VdiType,
    /// The user's own keys.
    #[serde(default)]
    pub keys: BTreeMap<String, String>,
}

/// Describes one VDI.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiStat {
    /// Which.
    pub vdi: VdiUuid,
    /// Also [`VdiInfo::exclusive`] and [`VdiInfo::reclaimable`], whatever they cost.
    #[serde(default, skip_serializing_if = "is_false")]
    pub space: bool,
}

impl VdiStat {
    /// Without what is costly.
    pub fn of(vdi: VdiUuid) -> Self {
        Self { vdi, space: false }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Changes what the backend keeps about a VDI. An absent field stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiUpdate {
    /// Which.
    pub vdi: VdiUuid,
    /// The new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The new description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The new type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vdi_type: Option<VdiType>,
    /// Whether it may never be written, from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// Keys to set (a text) or to remove (null).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub keys: BTreeMap<String, Option<String>>,
    /// Set or clear the mark of [`VdiInfo::incomplete`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incomplete: Option<bool>,
}

/// Makes a VDI larger. A smaller size is a `limit` error with SMAPI's 79.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiResize {
    /// Which.
    pub vdi: VdiUuid,
    /// The new size in bytes; rounded up as at creation.
    pub virtual_size: Bytes,
}

/// Takes snapshots of one point in time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiSnapshot {
    /// The disks. More than one only if the driver declares group snapshots.
    pub snapshots: Vec<SnapshotSpec>,
    /// The time to record, in seconds since 1970-01-01 UTC.
    pub time: u64,
}

/// One disk of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotSpec {
    /// The disk.
    pub vdi: VdiUuid,
    /// The UUID the snapshot gets.
    pub uuid: VdiUuid,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its description.
    #[serde(default)]
    pub description: String,
}

/// Does ahead what the `vdi_snapshot` with the same operation id and the same disks would have to
/// wait for: looks at the disks, makes the storage's own group of them. Nothing that a listing shows
/// changes. A `vdi_snapshot` without it does the same, and takes longer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiSnapshotPrepare {
    /// The disks, as in the request to come.
    pub snapshots: Vec<SnapshotSpec>,
    /// What each of them gets by a `vdi_update` afterwards: keys, and values that are as long as those.
    /// Refused (`limit`) if there is no room for them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub keys: BTreeMap<String, String>,
    /// That request will not come: undoes what was done ahead.
    #[serde(default, skip_serializing_if = "is_false")]
    pub abandon: bool,
}

/// It is done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiSnapshotPrepared {}

/// Makes a writable VDI from a VDI or a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiClone {
    /// The VDI or snapshot.
    pub vdi: VdiUuid,
    /// The UUID the clone gets.
    pub uuid: VdiUuid,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its description.
    #[serde(default)]
    pub description: String,
}

/// Puts a VDI back to a snapshot. The VDI keeps its UUID, name and keys and takes the
/// snapshot's size and content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiRevert {
    /// The VDI to change.
    pub vdi: VdiUuid,
    /// The snapshot, which stays.
    pub snapshot: VdiUuid,
}

/// Gives back space: blocks that hold only zeros, and what nothing refers to any more. The content
/// stays the same. Refused while the VDI is attached for writing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiReclaim {
    /// Which.
    pub vdi: VdiUuid,
}

/// What a reclaim gave back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiReclaimed {
    /// `modified`, or `already` if there was nothing to give back.
    pub changed: Changed,
    /// Bytes that came back to the backend.
    pub freed: Bytes,
    /// Bytes that were looked at.
    pub scanned: Bytes,
}

/// So many in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Rate {
    /// In the long run, above 0.
    pub per_second: u64,
    /// How many may come at once after a rest, beyond that; the storage's own choice if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
}

/// What a VDI may be asked for in a second. An absent field is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Qos {
    /// Requests that read or write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations: Option<Rate>,
    /// Bytes read or written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<Rate>,
}

impl Qos {
    /// Whether it limits nothing.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

/// Limits what may be asked of a VDI in a second, whoever asks; kept with the VDI. The limits replace
/// those before; none at all lifts them. The storage may round down, and the answer says what it
/// took. Error kinds: `limit` for a number that it cannot have, `unsupported` for a kind of limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiQos {
    /// Which.
    pub vdi: VdiUuid,
    /// The limits.
    pub qos: Qos,
}

/// Removes a VDI.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiDestroy {
    /// Which.
    pub vdi: VdiUuid,
}

/// A VDI is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiDestroyed {
    /// `modified`, or `already` if it was not there.
    pub changed: Changed,
}

/// A VDI is as asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiDone {
    /// What changed.
    pub changed: Changed,
    /// The VDI now.
    pub vdi: VdiInfo,
}

/// Several VDIs are as asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdisDone {
    /// What changed.
    pub changed: Changed,
    /// The VDIs, in the order of the request.
    pub vdis: Vec<VdiInfo>,
}

/// Asks for the forest of all images.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiTree {}

/// What depends on what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiForest {
    /// All nodes, parents before children.
    pub nodes: Vec<TreeNode>,
}

/// An image and its parent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TreeNode {
    /// Its UUID.
    pub uuid: VdiUuid,
    /// What it is based on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<VdiUuid>,
    /// Whether it is a disk, a snapshot, or an inner node that no user sees.
    pub kind: NodeKind,
    /// Name, empty for a base copy.
    #[serde(default)]
    pub name: String,
    /// Size the guest sees, in bytes.
    pub virtual_size: Bytes,
    /// Bytes this node takes on the backend.
    pub physical_utilisation: Bytes,
    /// Whether it can be trusted.
    pub health: Health,
}

/// What a node of the forest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeKind {
    /// A VDI that can be written.
    Leaf,
    /// A snapshot.
    Snapshot,
    /// An inner node.
    BaseCopy,
}

/// Examines a VDI.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiCheck {
    /// Which.
    pub vdi: VdiUuid,
}

/// What an examination found; empty when all is well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiChecked {
    /// The findings.
    pub findings: Vec<Finding>,
}

/// One thing that an examination found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The object: a path, a volume.
    pub object: String,
    /// The fact.
    pub text: String,
}

/// How bad a finding is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Odd, harmless.
    Note,
    /// Works, should be repaired.
    Warning,
    /// Data is lost or at risk.
    Error,
}

/// Makes a VDI reachable on this host. Replay: the same answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiAttach {
    /// Which.
    pub vdi: VdiUuid,
    /// For reading, or for writing too.
    pub mode: AttachMode,
}

/// How to reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiAttached {
    /// The ways, best first; at least one.
    pub access: Vec<Access>,
}

/// Allows I/O.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiActivate {
    /// Which.
    pub vdi: VdiUuid,
    /// As at attach.
    pub mode: AttachMode,
    /// Whoever writes it notes which blocks change, in the log that comes with the image
    /// ([`Access::File`]). If not, the driver makes sure that the log claims nothing.
    #[serde(default, skip_serializing_if = "is_false")]
    pub tracked: bool,
}

/// Ends I/O.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiDeactivate {
    /// Which.
    pub vdi: VdiUuid,
}

/// Ends the reachability.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiDetach {
    /// Which.
    pub vdi: VdiUuid,
}

/// A step of the data path is done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VdiDatapathDone {
    /// Of an activation: how the VDI is reached now, where that may have changed since the attach.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub access: Vec<Access>,
    /// Of an activation for writing: the epoch of the writer's lock on the backend, where there is
    /// one. A later writer has a larger one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
}
