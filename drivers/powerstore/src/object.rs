//! What the array answers, as far as the driver reads it.

use array_kit::array::Volume;
use array_kit::metadata::Document;
use array_kit::names::{Codec, Role};
use array_kit::text::decode;
use plugin_sdk::model::Bytes;
use plugin_sdk::model::vdi::{Qos, Rate};
use serde::Deserialize;
use serde_json::Value;

use crate::array::NAMES;
use crate::qos::KILOBYTE;

/// What is asked for of a volume.
pub(crate) const SELECT: &str = "id,name,description,type,state,size,logical_used,protection_data";

/// The same with its limits, which releases before 4.0 do not have.
pub(crate) const SELECT_LIMITED: &str = "id,name,description,type,state,size,logical_used,\
    protection_data,qos_performance_policy(io_limit_rule(type,max_iops,max_bw))";

/// A volume, clone or snapshot.
#[derive(Debug, Deserialize)]
pub(crate) struct Object {
    id: String,
    pub(crate) name: String,
    description: Option<String>,
    #[serde(rename = "type")]
    kind: String,
    state: Option<String>,
    size: u64,
    logical_used: Option<u64>,
    protection_data: Option<ProtectionData>,
    #[serde(default)]
    qos_performance_policy: Option<Policy>,
}

#[derive(Debug, Deserialize)]
struct ProtectionData {
    source_id: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Policy {
    io_limit_rule: Option<Rule>,
}

#[derive(Debug, Deserialize)]
struct Rule {
    #[serde(rename = "type")]
    kind: Option<String>,
    max_iops: Option<u64>,
    max_bw: Option<u64>,
}

impl Object {
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Whether it is not on its way out: its name may be taken still, but it serves nobody.
    pub(crate) fn is_there(&self) -> bool {
        self.state.as_deref() != Some("Destroying")
    }

    /// Whether it is a snapshot, or a clone that has the name of one.
    pub(crate) fn is_snapshot(&self) -> bool {
        let named = || NAMES.parse(&self.name).is_some_and(|named| named.role == Role::Snapshot);
        self.kind == "Snapshot" || (self.kind == "Clone" && named())
    }

    fn qos(&self) -> Qos {
        let rule =
            self.qos_performance_policy.as_ref().and_then(|policy| policy.io_limit_rule.as_ref());
        // By the gigabyte it is another limit for each size.
        let Some(rule) = rule.filter(|rule| rule.kind.as_deref() != Some("Density")) else {
            return Qos::default();
        };
        let rate = |per_second: u64| Rate { per_second, burst: None };
        let bytes = rule.max_bw.map(|kilobytes| rate(kilobytes.saturating_mul(KILOBYTE)));
        Qos { operations: rule.max_iops.map(rate), bytes }
    }

    /// As the kit has it. `of` is the volume that it is a snapshot of, where that is known; else its
    /// text says the VDI. The array tells an id, and a listing would need a request for each.
    pub(crate) fn volume(self, codec: Option<&Codec>, of: Option<&Volume>) -> Volume {
        let description = self.description.as_deref().unwrap_or_default();
        let metadata = decode(NAMES, &self.name, description);
        let source = self.protection_data.as_ref().and_then(|data| data.source_id.clone());
        let is_snapshot = self.is_snapshot();
        let origin = source.clone().filter(|_| is_snapshot && self.kind == "Clone");
        let snapshot_of = is_snapshot.then(|| {
            let document = metadata.as_ref().and_then(|text| Document::read(text).ok());
            let vdi = document.and_then(|document| document.snapshot_of);
            match (of.filter(|of| source.as_ref() == Some(&of.id)), vdi, codec) {
                (Some(of), ..) => of.name.clone(),
                (None, Some(vdi), Some(codec)) => codec.name(Role::Disk, vdi.0),
                _ => source.unwrap_or_default(),
            }
        });
        let qos = self.qos();
        let trouble = (self.state.as_deref() == Some("Offline"))
            .then(|| "the array has taken its volume offline".to_owned());
        Volume {
            id: self.id,
            name: self.name,
            size: Bytes(self.size),
            used: self.logical_used.map(Bytes),
            snapshot_of,
            origin,
            metadata,
            qos,
            trouble,
            ..Volume::default()
        }
    }
}

/// A member that is a text, or nothing.
pub(crate) fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    object.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// A member that is a list, or nothing.
pub(crate) fn list<'a>(object: &'a Value, name: &str) -> &'a [Value] {
    object.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}
