//! What passes between a driver and the process that loaded it, beside the operations.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::DeviceConfig;
use crate::access::Access;
use crate::id::{HostId, OperationId, SrUuid, VdiUuid};

/// Opens a driver for one SR, or for a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OpenRequest {
    /// The SR to serve; absent for a probe, which is then the only operation allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sr: Option<SrUuid>,
    /// How to reach the backend. Checked against the manifest before the driver sees it; for a
    /// probe, required keys may be absent. Secrets are references, see [`SecretGet`].
    pub device_config: DeviceConfig,
    /// This host.
    pub host: HostId,
    /// Which of several installations of this host it is, each with a state directory of its own; a
    /// short word. What one holds, another one does not give back. Empty from a host of an earlier
    /// release.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub installation: String,
}

/// Prefix of a device-config value that stands for a secret kept by the host.
pub const SECRET_PREFIX: &str = "secret://";

/// Service `kv.get`: a value of the driver's own state. State is a convenience (a cache, a hint);
/// what must survive the machine lies on the storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KvGet {
    /// The key.
    pub key: String,
}

/// Answer to `kv.get`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KvValue {
    /// The value, if the key exists.
    pub value: Option<serde_json::Value>,
}

/// Service `kv.put`: sets a key, or removes it (null).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KvPut {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Option<serde_json::Value>,
    /// The answer comes after the change is on the disk: a loss of power does not undo it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub durable: bool,
}

/// Service `kv.list`: all keys with a prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KvList {
    /// What they begin with.
    #[serde(default)]
    pub prefix: String,
}

/// Answer to `kv.list`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KvKeys {
    /// Keys and values.
    pub entries: BTreeMap<String, serde_json::Value>,
}

/// Service `secret.get`: the text behind a `secret://` reference of this SR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretGet {
    /// The reference, as it stands in the device configuration.
    pub reference: String,
}

/// Answer to `secret.get`. Has no `Debug` on purpose.
#[derive(Serialize, Deserialize, JsonSchema)]
pub struct SecretText {
    /// The secret.
    pub text: String,
}

/// Service `command.record`: a command the driver has run, for the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CommandRecord {
    /// The argument vector, secrets replaced by `***`.
    pub argv: Vec<String>,
    /// Exit status, or absent if a signal or the deadline ended it.
    pub status: Option<i32>,
    /// How long it took, in milliseconds.
    pub milliseconds: u64,
}

/// Service `datapath.pause`: stops whoever writes these VDIs on this host, all of them at one point
/// in time, and makes durable what was written. They stay stopped until [`DatapathRefresh`], or
/// until the call that asked has ended. Error `in_use` when one of them is written otherwise than
/// through a data path, and cannot be stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DatapathPause {
    /// The VDIs. One that nobody writes is no error.
    pub vdis: Vec<VdiUuid>,
    /// A file that whoever changes the images holds locked (`flock`) until they are a whole again.
    /// If the host dies meanwhile, the data path goes on by itself when it gets that lock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<String>,
    /// The images are closed too, those of VDIs that are only read as well: from now on the driver
    /// may rewrite any of them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub close: bool,
    /// The operation whose call asks, so that the end of another one does not end the pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationId>,
}

/// Answer to `datapath.pause`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DatapathPaused {
    /// Whether the images are closed: a host of an earlier release does not know how, and says
    /// nothing.
    #[serde(default)]
    pub closed: bool,
}

/// Service `datapath.merge`: the data path of a VDI begins to merge the leaf into its parent, while
/// the guest goes on. The driver has made sure that nobody else uses the parent, and that it is as
/// large as the leaf. The merge ends when the driver says so, with the call that asked, and when
/// anything else happens to the VDI.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DatapathMerge {
    /// The VDI.
    pub vdi: VdiUuid,
    /// Bytes per second that are copied at most; what the guest writes is not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// Percent of one processor that copying may use. A data path of an earlier release does not
    /// know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u8>,
    /// The parent's file, as it is named in an access: a disk that is served with another one is not
    /// merged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The operation whose call asks.
    pub operation: OperationId,
}

/// Services `datapath.merging`: how far a merge is, answered with [`DatapathMergeState`]; and
/// `datapath.cancel_merge`: it is given up, and the VDI is as if there had been none. None is fine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DatapathMerging {
    /// The VDI.
    pub vdi: VdiUuid,
}

/// Service `datapath.changes`: what has changed by now of a VDI that is written, as far as its log
/// goes back, from the data path that has it; answered with
/// [`VdiChanges`](crate::vdi::VdiChanges), which is not known while no log is open. All that was
/// written before the request is in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DatapathChanges {
    /// The VDI.
    pub vdi: VdiUuid,
}

/// How far a merge is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DatapathMergeState {
    /// Where it is.
    pub phase: MergePhase,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Bytes that there were to copy, as far as they have been counted.
    pub total: u64,
    /// Bytes copied, including those that were copied again.
    pub copied: u64,
    /// Bytes to be copied still.
    pub remaining: u64,
}

/// Where a merge is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MergePhase {
    /// There is none, or something else has ended it.
    None,
    /// Something is still to be copied.
    Copying,
    /// The parent lacks only what is in flight: `datapath.converge` may come.
    Ready,
    /// It failed, and the VDI is as if there had been none.
    Failed,
}

/// Service `datapath.converge`: stops the VDI with its parent complete, durable and closed. The
/// driver, with `lock` in its hand, gives the parent the name of the leaf, and has the data path go
/// over to it with [`DatapathRefresh`]. Error `busy` when the merge is not ready; the guest goes on
/// then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DatapathConverge {
    /// The VDI.
    pub vdi: VdiUuid,
    /// As [`DatapathPause::lock`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<String>,
}

/// Service `datapath.refresh`: the images of a VDI have changed; whoever serves it goes over to
/// them, and goes on. What it had open before is not open any more when this is answered. A VDI that nobody
/// serves is no error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DatapathRefresh {
    /// The VDI.
    pub vdi: VdiUuid,
    /// How it is reached now, as [`crate::vdi::VdiAttached`].
    pub access: Vec<Access>,
}

/// Service `snapshot.caught`: the snapshots that a `vdi_snapshot` takes hold all that was written
/// before, whatever happens from now on, and nothing of what is written from now on. What the driver
/// still does is to describe them; guests that were stopped for them may go on. If the call fails all
/// the same, none of them counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotCaught {
    /// The operation that takes them.
    pub operation: OperationId,
}

/// Service `datapath.served`: whether the images of a VDI are open on this host in no other way than
/// by a data path, which can be told with [`DatapathRefresh`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DatapathServed {
    /// The VDI.
    pub vdi: VdiUuid,
}

/// Answer to `datapath.served`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DatapathIsServed {
    /// Whether it is so.
    pub served: bool,
}
