//! Requests and replies about storage repositories.
//!
//! Which SR is meant, and how to reach it, is said once, when the driver is opened
//! ([`crate::host::OpenRequest`]).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::candidate::Candidate;
use crate::id::{HostId, SrUuid, VdiUuid};
use crate::size::Bytes;
use crate::vdi::{Health, VdiInfo};
use crate::{Changed, DeviceConfig};

/// Looks for what the device configuration, given at open, leaves open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SrProbe {}

/// What a probe found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SrProbed {
    /// One item for each way to go on.
    pub items: Vec<ProbeItem>,
}

/// One way to go on from a device configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProbeItem {
    /// Keys to add to the device configuration.
    #[serde(default)]
    pub configuration: DeviceConfig,
    /// Whether the configuration is then enough to create or introduce an SR.
    pub complete: bool,
    /// The SR that exists there, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sr: Option<FoundSr>,
    /// More for people: vendor, size, LUN number, ...
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra_info: BTreeMap<String, String>,
    /// What it is, where toolstacks have a form of their own for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Candidate>,
}

/// An SR that a probe found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FoundSr {
    /// Its UUID.
    pub uuid: SrUuid,
    /// Its name, if the backend keeps one.
    #[serde(default)]
    pub name: String,
    /// Its description.
    #[serde(default)]
    pub description: String,
}

/// Makes the SR named at open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SrCreate {
    /// Name, kept on the backend.
    #[serde(default)]
    pub name: String,
    /// Description, kept on the backend.
    #[serde(default)]
    pub description: String,
}

/// The SR exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SrCreated {
    /// `created`, or `already` on a replay.
    pub changed: Changed,
    /// The device configuration to keep: as given, made canonical where the driver wishes.
    pub device_config: DeviceConfig,
}

/// Makes the SR usable on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SrAttach {}

/// Lets go of the SR on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SrDetach {}

/// Removes the SR from the backend. Error kind `in_use` with SMAPI's 39 if it holds VDIs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SrDestroy {}

/// Changes what the backend keeps about the SR. An absent field stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SrUpdate {
    /// The new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The new description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// A change to the SR is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SrDone {
    /// What changed.
    pub changed: Changed,
}

/// Shuts a host out of the SR that is gone, or hangs: its turn, its claims on VDIs, and where the
/// storage can, its right to write. Error kind `not_found` for a host that the SR does not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SrFence {
    /// The other host.
    pub host: HostId,
}

/// A host is shut out, until it attaches the SR again with nothing of it in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SrFenced {
    /// `modified`, or `already` for a host that was shut out before and has not come back.
    pub changed: Changed,
    /// Epoch from which on what the host does is refused.
    pub epoch: u64,
    /// VDIs that it had open, and that others can use now.
    #[serde(default)]
    pub vdis: Vec<VdiUuid>,
    /// Whether the storage refuses what the host still writes. If not, the host must be off.
    pub enforced: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Finishes or undoes what a crash left half done. Twice is the same as once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SrRecover {}

/// What a recovery did; empty when there was nothing to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SrRecovered {
    /// Operations that were finished, one sentence each.
    #[serde(default)]
    pub completed: Vec<String>,
    /// Operations that were undone.
    #[serde(default)]
    pub undone: Vec<String>,
    /// Leftovers that were removed.
    #[serde(default)]
    pub removed: Vec<String>,
}

/// Lists the VDIs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SrScan {
    /// Where to go on: [`SrScanned::next`] of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// A page of the listing. A volume the driver knows of is never left out; if the backend becomes
/// unreachable half-way, the scan fails as a whole, because a toolstack destroys its record of
/// a disk that a scan did not return.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SrScanned {
    /// The VDIs, without base copies.
    pub vdis: Vec<VdiInfo>,
    /// Set if there is more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Shortens chains and removes base copies that nothing needs. Safe at any time: what is in use in a
/// way that cannot be told of a change is left alone, and said to be. What was done stays done however the call ends, so that the same
/// request goes on where an earlier one stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SrMaintain {
    /// What it may use.
    #[serde(default)]
    pub budget: Budget,
    /// Changes nothing: [`SrMaintained::planned`] tells what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// What maintenance may use. An absent field is no limit, or the driver's own choice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Budget {
    /// Bytes to copy in a second, all merges together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<Bytes>,
    /// Time by the clock, in seconds; when it is over the call ends, with what it has done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
    /// Percent of one processor, 1 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<u8>,
    /// Merges at the same time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel: Option<u32>,
}

/// What maintenance did, and what is left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SrMaintained {
    /// `modified`, or `already` if nothing was done.
    pub changed: Changed,
    /// Base copies that nothing needed, and that are gone.
    #[serde(default)]
    pub collected: Vec<VdiUuid>,
    /// Merges that were completed.
    #[serde(default)]
    pub merged: Vec<Merged>,
    /// What was left alone, and why.
    #[serde(default)]
    pub skipped: Vec<Skipped>,
    /// Merges that are still to do; of a dry run, those that would be done.
    #[serde(default)]
    pub planned: Vec<PlannedMerge>,
    /// How many merges are still to do.
    #[serde(default)]
    pub remaining: u64,
    /// Bytes that were copied, those of unfinished merges included.
    #[serde(default)]
    pub bytes_copied: Bytes,
    /// Bytes that came back to the backend.
    #[serde(default)]
    pub freed: Bytes,
    /// Whether nothing is left that could be done now.
    pub finished: bool,
    /// Why it ended before it was finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Stopped>,
}

/// A node that went into another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Merged {
    /// The node that is gone.
    pub node: VdiUuid,
    /// The one that holds its data now.
    pub into: VdiUuid,
    /// Bytes that were copied for it.
    pub bytes_copied: Bytes,
    /// Disks above it, or the disk itself, were in use.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub live: bool,
}

/// A merge to come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlannedMerge {
    /// The node that will go.
    pub node: VdiUuid,
    /// The one that will hold its data.
    pub into: VdiUuid,
    /// Bytes that have to be copied for it.
    pub bytes: Bytes,
    /// The disk is in use, and stays so while it is merged.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub live: bool,
}

/// What maintenance left alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Skipped {
    /// The VDI or base copy.
    pub node: VdiUuid,
    /// Why, one sentence.
    pub reason: String,
}

/// Why maintenance ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stopped {
    /// Somebody asked it to.
    Cancelled,
    /// [`Budget::seconds`] was over.
    OutOfTime,
}

/// Asks for space and health.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SrStat {}

/// Space and health of an SR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SrInfo {
    /// Its UUID.
    pub uuid: SrUuid,
    /// Name as the backend keeps it.
    pub name: String,
    /// Description as the backend keeps it.
    pub description: String,
    /// Size of the backend, in bytes.
    pub physical_size: Bytes,
    /// Bytes of the backend in use, by anybody.
    pub physical_utilisation: Bytes,
    /// Sum of the virtual sizes of the VDIs, in bytes; may exceed the size when thin.
    pub virtual_allocation: Bytes,
    /// How many VDIs there are.
    pub vdis: u64,
    /// The quarantined ones among them.
    #[serde(default)]
    pub quarantined: Vec<VdiUuid>,
    /// Health of the SR as such.
    pub health: Health,
    /// What the SR itself takes on the backend, where the driver can tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<SrUsage>,
    /// What will become a problem if nobody does anything, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The ways from this host to the backend, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paths: Option<SrPaths>,
}

/// The ways from a host to the backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SrPaths {
    /// How many of them requests can take now.
    pub up: u32,
    /// How many there should be.
    pub max: u32,
    /// The others: each where it leads, and what is wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub down: Vec<String>,
}

/// What an SR takes on its backend: the sum of all fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SrUsage {
    /// Bytes of the VDIs: the sum of their `physical_utilisation`.
    pub vdis: Bytes,
    /// Bytes of the base copies.
    pub base_copies: Bytes,
    /// Bytes of all else: metadata, records, what is unfinished.
    pub overhead: Bytes,
}

impl SrUsage {
    /// All of it.
    pub fn total(&self) -> Bytes {
        Bytes(self.vdis.0.saturating_add(self.base_copies.0).saturating_add(self.overhead.0))
    }
}
