//! What we keep about a VDI beside its image.

use std::collections::BTreeMap;

use plugin_sdk::model::vdi::{Health, Qos, VdiInfo, VdiType};
use plugin_sdk::model::{Bytes, ImageFormat, Kind, VdiUuid};
use plugin_sdk::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vhd::tree::{self, Node};

/// The document of a VDI. An image of XenServer has none: then it is the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Metadata {
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) vdi_type: VdiType,
    pub(crate) read_only: bool,
    pub(crate) sharable: bool,
    pub(crate) is_a_snapshot: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) snapshot_of: Option<VdiUuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) snapshot_time: Option<u64>,
    pub(crate) keys: BTreeMap<String, String>,
    pub(crate) incomplete: bool,
}

impl Metadata {
    /// The document of a node. Error kind `corrupt` if it cannot be read.
    pub(crate) fn of(node: &Node) -> Result<Self> {
        let Some(value) = &node.metadata else { return Ok(Self::default()) };
        Self::deserialize(value).map_err(|error| {
            Error::new(Kind::Corrupt, format!("the metadata of VDI {} cannot be read", node.uuid))
                .legacy(181)
                .source(&error)
        })
    }

    /// The document as it is stored.
    pub(crate) fn document(&self) -> Result<Value> {
        serde_json::to_value(self)
            .map_err(|error| Error::internal("metadata cannot be written").source(&error))
    }
}

/// The VDI that a node is. Whatever is wrong with it, it is described.
pub(crate) fn describe(node: &Node) -> VdiInfo {
    let (metadata, unreadable) = match Metadata::of(node) {
        Ok(metadata) => (metadata, None),
        Err(error) => (Metadata::default(), Some(error.to_string())),
    };
    let health = match (&node.health, unreadable) {
        (tree::Health::Quarantined(reason), _) => Health::Quarantined { reason: reason.clone() },
        (tree::Health::Ok, Some(reason)) => Health::Quarantined { reason },
        (tree::Health::Ok, None) => match node.needs_repair {
            Some(missing) => Health::Degraded {
                reason: format!("{missing} is missing; an attach for writing restores it"),
            },
            None => Health::Ok,
        },
    };
    VdiInfo {
        uuid: node.uuid.into(),
        name: metadata.name,
        description: metadata.description,
        virtual_size: Bytes(node.virtual_size),
        physical_utilisation: Bytes(node.physical_size),
        exclusive: None,
        reclaimable: None,
        format: format(node.format),
        vdi_type: metadata.vdi_type,
        read_only: metadata.read_only,
        sharable: metadata.sharable,
        is_a_snapshot: metadata.is_a_snapshot,
        // The caller looks: it is told by a file of its own.
        cbt_enabled: false,
        snapshot_of: metadata.snapshot_of,
        snapshot_time: metadata.snapshot_time,
        qos: Qos::default(),
        keys: metadata.keys,
        incomplete: metadata.incomplete,
        health,
    }
}

/// The model's name of a format.
fn format(format: tree::Format) -> ImageFormat {
    match format {
        tree::Format::Raw => ImageFormat::Raw,
        tree::Format::Vhd => ImageFormat::Vhd,
    }
}
