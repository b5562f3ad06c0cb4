//! Requests and replies about storage repositories.
//!
//! Which SR is meant, and how to reach it, is said once, when the driver is opened
//! ([`crate::host::OpenRequest`]).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::{SrUuid, VdiUuid};
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
}
