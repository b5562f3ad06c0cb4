//! The array's objects as it describes them.

use plugin_sdk::model::Bytes;
use plugin_sdk::model::vdi::{Qos, Rate};
use serde::Deserialize;

use crate::api::{BYTES, OPERATIONS};

/// A name and an id, either of which may be missing.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Reference {
    pub(crate) id: Option<String>,
    pub(crate) name: Option<String>,
}

/// A volume or a snapshot.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Object {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) provisioned: Option<u64>,
    pub(crate) created: Option<u64>,
    pub(crate) serial: Option<String>,
    #[serde(default)]
    pub(crate) destroyed: bool,
    pub(crate) connection_count: Option<u64>,
    #[serde(default)]
    pub(crate) source: Reference,
    #[serde(default)]
    space: Space,
    #[serde(default)]
    qos: Limits,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Space {
    unique: Option<u64>,
    total_physical: Option<u64>,
    total_used: Option<u64>,
}

impl Space {
    /// Bytes of an array that are in use. The older of the two names is deprecated in 2.26.
    pub(crate) fn used(&self) -> Bytes {
        Bytes(self.total_used.or(self.total_physical).unwrap_or(0))
    }
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct Limits {
    bandwidth_limit: Option<u64>,
    iops_limit: Option<u64>,
}

impl Object {
    /// Bytes that only it has.
    pub(crate) fn unique(&self) -> Option<Bytes> {
        self.space.unique.map(Bytes)
    }

    /// What it is limited to. The largest limit is none: it is how one is lifted.
    pub(crate) fn limits(&self) -> Qos {
        let rate = |limit: Option<u64>, most: u64| {
            let limit = limit.filter(|limit| *limit > 0 && *limit < most);
            limit.map(|per_second| Rate { per_second, burst: None })
        };
        Qos {
            operations: rate(self.qos.iops_limit, OPERATIONS.1),
            bytes: rate(self.qos.bandwidth_limit, BYTES.1),
        }
    }
}

/// A tag.
#[derive(Debug, Deserialize)]
pub(crate) struct Tag {
    pub(crate) key: String,
    #[serde(default)]
    pub(crate) value: String,
    #[serde(default)]
    pub(crate) resource: Reference,
}

/// A host.
#[derive(Debug, Deserialize)]
pub(crate) struct Host {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) iqns: Vec<String>,
}

/// That a host reaches a volume.
#[derive(Debug, Deserialize)]
pub(crate) struct Connection {
    #[serde(default)]
    pub(crate) host: Reference,
    pub(crate) lun: Option<u64>,
}

/// A port; only those of iSCSI have a name of that and a portal.
#[derive(Debug, Deserialize)]
pub(crate) struct Port {
    pub(crate) iqn: Option<String>,
    pub(crate) portal: Option<String>,
}

/// The array.
#[derive(Debug, Deserialize)]
pub(crate) struct Arrays {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) id: String,
    pub(crate) os: Option<String>,
    #[serde(default)]
    pub(crate) version: String,
    pub(crate) capacity: Option<u64>,
    #[serde(default)]
    pub(crate) space: Space,
}
