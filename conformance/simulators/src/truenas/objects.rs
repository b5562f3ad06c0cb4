//! What TrueNAS keeps beside volumes and snapshots.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::core::Record;

/// A dataset that is not a volume: the pool itself, or a folder of others.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Filesystem {
    pub(super) created: u64,
    pub(super) comments: Option<String>,
    pub(super) user: BTreeMap<String, String>,
}

impl Record for Filesystem {
    const TABLE: &'static str = "truenas.filesystem";
}

/// A snapshot of a file system: what a recursive one leaves at the parent. It has no data here.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct FilesystemSnapshot {
    pub(super) dataset: String,
    pub(super) created: u64,
    pub(super) order: u64,
    pub(super) user: BTreeMap<String, String>,
}

impl Record for FilesystemSnapshot {
    const TABLE: &'static str = "truenas.filesystem_snapshot";
}

/// Objects of iSCSI, as they are answered. Their keys are their numbers.
macro_rules! tables {
    ($($name:ident $table:literal $series:literal;)*) => {$(
        #[derive(Clone, Debug, Default, Serialize, Deserialize)]
        pub(super) struct $name(pub(super) Map<String, Value>);

        impl Record for $name {
            const TABLE: &'static str = $table;
        }

        impl Row for $name {
            const NAME: &'static str = $series;

            fn fields(&self) -> &Map<String, Value> {
                &self.0
            }

            fn new(fields: Map<String, Value>) -> Self {
                Self(fields)
            }
        }
    )*};
}

/// A row of a table whose fields are those of the API.
pub(super) trait Row: Record {
    /// Its service: `iscsi.target`.
    const NAME: &'static str;

    fn fields(&self) -> &Map<String, Value>;

    fn new(fields: Map<String, Value>) -> Self;

    fn id(&self) -> i64 {
        self.number("id").unwrap_or(0)
    }

    fn number(&self, name: &str) -> Option<i64> {
        self.fields().get(name)?.as_i64()
    }

    fn text(&self, name: &str) -> &str {
        self.fields().get(name).and_then(Value::as_str).unwrap_or("")
    }

    fn is(&self, name: &str) -> bool {
        self.fields().get(name) == Some(&Value::Bool(true))
    }

    fn list(&self, name: &str) -> &[Value] {
        self.fields().get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }
}

/// The key of a row: numbers in the order of numbers.
pub(super) fn key(id: i64) -> String {
    format!("{id:010}")
}

tables! {
    Portal "truenas.portal" "iscsi.portal";
    Initiator "truenas.initiator" "iscsi.initiator";
    Target "truenas.target" "iscsi.target";
    Extent "truenas.extent" "iscsi.extent";
    TargetExtent "truenas.target_extent" "iscsi.targetextent";
    Auth "truenas.auth" "iscsi.auth";
    Global "truenas.global" "iscsi.global";
    Service "truenas.service" "service";
}
