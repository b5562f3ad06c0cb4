//! What requests take, member by member, after the ONTAP REST API reference 9.10.1 (`docs.netapp.com`,
//! "ontap-restapi-9101"), with the limits that its models name. What is not in it is refused.
//!
//! A body may have its members nested or with dotted names (`"space.size"`), and both at once: the
//! reference's own examples, and clients, have both.

use serde_json::{Map, Value};

use super::failure::Failure;
use crate::schema::Kind::{self, Bool, Bytes, List, Of, OneOf, Within};
use crate::schema::{Fault, Field, STRICT, Wrong, may, must};

/// The longest LUN: 128 TiB.
pub(super) const LARGEST: u64 = 140_737_488_355_328;
/// The shortest.
pub(super) const SMALLEST: u64 = 4096;
/// Bytes of name and value of an attribute together.
pub(super) const ATTRIBUTE: usize = 4092;

const SIZE: Kind = Within(0, i64::MAX);
const NAME: Kind = Bytes(1, 255);
const UUID: Kind = Bytes(36, 36);
const OS: &[&str] = &[
    "aix",
    "hpux",
    "hyper_v",
    "linux",
    "netware",
    "openvms",
    "solaris",
    "solaris_efi",
    "vmware",
    "windows",
    "windows_2008",
    "windows_gpt",
    "xen",
];
const PAIR: &[Field] = &[must("name", Bytes(1, 4091)), must("value", Bytes(1, 4091))];

pub(super) const LUN_CREATE: &[Field] = &[
    must("name", NAME),
    may("os_type", OneOf(OS)),
    may("comment", Bytes(0, 254)),
    may("auto_delete", Bool),
    may("attributes", List(&Of(PAIR))),
    may("class", OneOf(&["regular", "protocol_endpoint", "vvol"])),
    may("clone.source.name", NAME),
    may("clone.source.uuid", UUID),
    may("location.logical_unit", NAME),
    may("location.volume.name", NAME),
    may("location.volume.uuid", UUID),
    may("qos_policy.name", Bytes(0, 255)),
    may("qos_policy.uuid", UUID),
    may("space.size", SIZE),
    may("space.guarantee.requested", Bool),
    may("space.scsi_thin_provisioning_support_enabled", Bool),
    may("svm.name", NAME),
    may("svm.uuid", UUID),
];

pub(super) const LUN_MODIFY: &[Field] = &[
    may("name", NAME),
    may("comment", Bytes(0, 254)),
    may("auto_delete", Bool),
    may("enabled", Bool),
    may("clone.source.name", NAME),
    may("clone.source.uuid", UUID),
    may("location.volume.name", NAME),
    may("os_type", OneOf(OS)),
    may("qos_policy.name", Bytes(0, 255)),
    may("qos_policy.uuid", UUID),
    may("space.size", SIZE),
    may("space.guarantee.requested", Bool),
    may("space.scsi_thin_provisioning_support_enabled", Bool),
];

pub(super) const ATTRIBUTE_CREATE: &[Field] = PAIR;
pub(super) const ATTRIBUTE_MODIFY: &[Field] = &[must("value", Bytes(1, 4091))];

const INITIATOR: &[Field] = &[must("name", Bytes(1, 96)), may("comment", Bytes(0, 254))];

pub(super) const IGROUP_CREATE: &[Field] = &[
    must("name", Bytes(1, 96)),
    may("comment", Bytes(0, 254)),
    may("protocol", OneOf(&["fcp", "iscsi", "mixed"])),
    must(
        "os_type",
        OneOf(&[
            "aix", "hpux", "hyper_v", "linux", "netware", "openvms", "solaris", "vmware",
            "windows", "xen",
        ]),
    ),
    may("initiators", List(&Of(INITIATOR))),
    may("svm.name", NAME),
    may("svm.uuid", UUID),
];

pub(super) const IGROUP_MODIFY: &[Field] =
    &[may("name", Bytes(1, 96)), may("comment", Bytes(0, 254)), may("os_type", Bytes(1, 16))];

pub(super) const INITIATOR_CREATE: &[Field] = &[
    may("name", Bytes(1, 96)),
    may("comment", Bytes(0, 254)),
    may("records", List(&Of(INITIATOR))),
];

pub(super) const MAP_CREATE: &[Field] = &[
    may("lun.name", NAME),
    may("lun.uuid", UUID),
    may("igroup.name", Bytes(1, 96)),
    may("igroup.uuid", UUID),
    may("logical_unit_number", Within(0, 4095)),
    may("svm.name", NAME),
    may("svm.uuid", UUID),
];

pub(super) const VOLUME_CREATE: &[Field] = &[
    must("name", Bytes(1, 203)),
    may("comment", Bytes(0, 1023)),
    must("aggregates", List(&Of(&[may("name", NAME), may("uuid", UUID)]))),
    must("size", Within(20_971_520, 112_589_990_684_262_400)),
    may("type", OneOf(&["rw", "dp"])),
    may("style", OneOf(&["flexvol", "flexgroup"])),
    may("guarantee.type", OneOf(&["volume", "none"])),
    may("snapshot_policy.name", NAME),
    may("space.snapshot.reserve_percent", Within(0, 100)),
    may("svm.name", NAME),
    may("svm.uuid", UUID),
];

pub(super) const VOLUME_MODIFY: &[Field] =
    &[may("comment", Bytes(0, 1023)), may("size", Within(20_971_520, 112_589_990_684_262_400))];

pub(super) const SNAPSHOT_CREATE: &[Field] =
    &[must("name", Bytes(1, 255)), may("comment", Bytes(0, 255)), may("svm.name", NAME)];
pub(super) const SNAPSHOT_MODIFY: &[Field] =
    &[may("name", Bytes(1, 255)), may("comment", Bytes(0, 255))];

pub(super) const QOS_CREATE: &[Field] = &[
    must("name", Bytes(1, 127)),
    may("fixed.max_throughput_iops", Within(0, 2_147_483_647)),
    may("fixed.max_throughput_mbps", Within(0, 4_194_303)),
    may("fixed.min_throughput_iops", Within(0, 2_147_483_647)),
    may("fixed.capacity_shared", Bool),
    may("svm.name", NAME),
    may("svm.uuid", UUID),
];
pub(super) const QOS_MODIFY: &[Field] = &[
    may("name", Bytes(1, 127)),
    may("fixed.max_throughput_iops", Within(0, 2_147_483_647)),
    may("fixed.max_throughput_mbps", Within(0, 4_194_303)),
];

/// A body, its members by dotted path.
#[derive(Clone, Debug, Default)]
pub(super) struct Body(Value);

impl Body {
    /// Reads a body, and refuses what the fields do not have.
    pub(super) fn read(bytes: &[u8], fields: &'static [Field]) -> Result<Self, Failure> {
        let malformed = || Failure::new(400, "262180", "JSON string is malformed.");
        let value: Value = serde_json::from_slice(bytes).map_err(|_| malformed())?;
        if !value.is_object() {
            return Err(malformed());
        }
        let body = flat(value);
        match STRICT.faults(Of(fields), &body).first() {
            Some(fault) => Err(refusal(fault)),
            None => Ok(Self(body)),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.as_str()
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.as_u64()
    }

    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        self.get(name)?.as_bool()
    }

    pub(super) fn list(&self, name: &str) -> Vec<Value> {
        self.get(name).and_then(Value::as_array).cloned().unwrap_or_default()
    }
}

/// An object with its members by dotted path, and so the items of its lists.
fn flat(value: Value) -> Value {
    match value {
        Value::Object(_) => {
            let mut members = Map::new();
            flatten("", value, &mut members);
            Value::Object(members)
        }
        Value::Array(items) => items.into_iter().map(flat).collect(),
        other => other,
    }
}

fn flatten(prefix: &str, value: Value, into: &mut Map<String, Value>) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                let path = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
                flatten(&path, value, into);
            }
        }
        other => {
            into.insert(prefix.to_owned(), flat(other));
        }
    }
}

fn refusal(fault: &Fault<'_>) -> Failure {
    let path = &fault.path;
    match fault.wrong {
        Wrong::Unknown => Failure::unexpected(path),
        Wrong::Missing => Failure::required(path),
        Wrong::Not(Bool) => Failure::value(path, "<true|false>"),
        Wrong::Not(Within(from, to)) => Failure::value(path, &format!("<{from}..{to}>")),
        Wrong::Not(Bytes(from, to)) => {
            Failure::value(path, &format!("<text of {from} to {to} bytes>"))
        }
        Wrong::Not(OneOf(words)) => Failure::value(path, &words.join("|")),
        Wrong::Not(_) => Failure::value(path, "<list>"),
    }
}
