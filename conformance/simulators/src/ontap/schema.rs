//! What requests take, member by member, after the ONTAP REST API reference 9.10.1 (`docs.netapp.com`,
//! "ontap-restapi-9101"), with the limits that its models name. What is not in it is refused.
//!
//! A body may have its members nested or with dotted names (`"space.size"`), and both at once: the
//! reference's own examples, and clients, have both.

use std::collections::BTreeMap;

use serde_json::Value;

use super::failure::Failure;

/// What a member may be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Bool,
    /// From one to another.
    Int(i64, i64),
    /// Of so many bytes, from one to another.
    Text(usize, usize),
    OneOf(&'static [&'static str]),
    /// A list of objects.
    List(&'static [Field]),
}

/// A member: dotted path, what it may be, whether it must be there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field(pub(super) &'static str, pub(super) Kind, pub(super) bool);

const fn must(name: &'static str, kind: Kind) -> Field {
    Field(name, kind, true)
}

const fn may(name: &'static str, kind: Kind) -> Field {
    Field(name, kind, false)
}

use Kind::{Bool, Int, List, OneOf, Text};

/// The longest LUN: 128 TiB.
pub(super) const LARGEST: u64 = 140_737_488_355_328;
/// The shortest.
pub(super) const SMALLEST: u64 = 4096;
/// Bytes of name and value of an attribute together.
pub(super) const ATTRIBUTE: usize = 4092;

const SIZE: Kind = Int(0, i64::MAX);
const NAME: Kind = Text(1, 255);
const UUID: Kind = Text(36, 36);
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
const PAIR: &[Field] = &[must("name", Text(1, 4091)), must("value", Text(1, 4091))];

pub(super) const LUN_CREATE: &[Field] = &[
    must("name", NAME),
    may("os_type", OneOf(OS)),
    may("comment", Text(0, 254)),
    may("auto_delete", Bool),
    may("attributes", List(PAIR)),
    may("class", OneOf(&["regular", "protocol_endpoint", "vvol"])),
    may("clone.source.name", NAME),
    may("clone.source.uuid", UUID),
    may("location.logical_unit", NAME),
    may("location.volume.name", NAME),
    may("location.volume.uuid", UUID),
    may("qos_policy.name", Text(0, 255)),
    may("qos_policy.uuid", UUID),
    may("space.size", SIZE),
    may("space.guarantee.requested", Bool),
    may("space.scsi_thin_provisioning_support_enabled", Bool),
    may("svm.name", NAME),
    may("svm.uuid", UUID),
];

pub(super) const LUN_MODIFY: &[Field] = &[
    may("name", NAME),
    may("comment", Text(0, 254)),
    may("auto_delete", Bool),
    may("enabled", Bool),
    may("clone.source.name", NAME),
    may("clone.source.uuid", UUID),
    may("location.volume.name", NAME),
    may("os_type", OneOf(OS)),
    may("qos_policy.name", Text(0, 255)),
    may("qos_policy.uuid", UUID),
    may("space.size", SIZE),
    may("space.guarantee.requested", Bool),
    may("space.scsi_thin_provisioning_support_enabled", Bool),
];

pub(super) const ATTRIBUTE_CREATE: &[Field] = PAIR;
pub(super) const ATTRIBUTE_MODIFY: &[Field] = &[must("value", Text(1, 4091))];

const INITIATOR: &[Field] = &[must("name", Text(1, 96)), may("comment", Text(0, 254))];

pub(super) const IGROUP_CREATE: &[Field] = &[
    must("name", Text(1, 96)),
    may("comment", Text(0, 254)),
    may("protocol", OneOf(&["fcp", "iscsi", "mixed"])),
    must(
        "os_type",
        OneOf(&[
            "aix", "hpux", "hyper_v", "linux", "netware", "openvms", "solaris", "vmware",
            "windows", "xen",
        ]),
    ),
    may("initiators", List(INITIATOR)),
    may("svm.name", NAME),
    may("svm.uuid", UUID),
];

pub(super) const IGROUP_MODIFY: &[Field] =
    &[may("name", Text(1, 96)), may("comment", Text(0, 254)), may("os_type", Text(1, 16))];

pub(super) const INITIATOR_CREATE: &[Field] =
    &[may("name", Text(1, 96)), may("comment", Text(0, 254)), may("records", List(INITIATOR))];

pub(super) const MAP_CREATE: &[Field] = &[
    may("lun.name", NAME),
    may("lun.uuid", UUID),
    may("igroup.name", Text(1, 96)),
    may("igroup.uuid", UUID),
    may("logical_unit_number", Int(0, 4095)),
    may("svm.name", NAME),
    may("svm.uuid", UUID),
];

pub(super) const VOLUME_CREATE: &[Field] = &[
    must("name", Text(1, 203)),
    may("comment", Text(0, 1023)),
    must("aggregates", List(&[may("name", NAME), may("uuid", UUID)])),
    must("size", Int(20_971_520, 112_589_990_684_262_400)),
    may("type", OneOf(&["rw", "dp"])),
    may("style", OneOf(&["flexvol", "flexgroup"])),
    may("guarantee.type", OneOf(&["volume", "none"])),
    may("snapshot_policy.name", NAME),
    may("space.snapshot.reserve_percent", Int(0, 100)),
    may("svm.name", NAME),
    may("svm.uuid", UUID),
];

pub(super) const VOLUME_MODIFY: &[Field] =
    &[may("comment", Text(0, 1023)), may("size", Int(20_971_520, 112_589_990_684_262_400))];

pub(super) const SNAPSHOT_CREATE: &[Field] =
    &[must("name", Text(1, 255)), may("comment", Text(0, 255)), may("svm.name", NAME)];
pub(super) const SNAPSHOT_MODIFY: &[Field] =
    &[may("name", Text(1, 255)), may("comment", Text(0, 255))];

pub(super) const QOS_CREATE: &[Field] = &[
    must("name", Text(1, 127)),
    may("fixed.max_throughput_iops", Int(0, 2_147_483_647)),
    may("fixed.max_throughput_mbps", Int(0, 4_194_303)),
    may("fixed.min_throughput_iops", Int(0, 2_147_483_647)),
    may("fixed.capacity_shared", Bool),
    may("svm.name", NAME),
    may("svm.uuid", UUID),
];
pub(super) const QOS_MODIFY: &[Field] = &[
    may("name", Text(1, 127)),
    may("fixed.max_throughput_iops", Int(0, 2_147_483_647)),
    may("fixed.max_throughput_mbps", Int(0, 4_194_303)),
];

/// A body, its members by dotted path.
#[derive(Clone, Debug, Default)]
pub(super) struct Body(BTreeMap<String, Value>);

impl Body {
    /// Reads a body, and refuses what the fields do not have.
    pub(super) fn read(bytes: &[u8], fields: &'static [Field]) -> Result<Self, Failure> {
        let malformed = || Failure::new(400, "262180", "JSON string is malformed.");
        let value: Value = serde_json::from_slice(bytes).map_err(|_| malformed())?;
        let mut members = BTreeMap::new();
        if !value.is_object() {
            return Err(malformed());
        }
        flatten("", value, &mut members);
        check("", fields, &members)?;
        Ok(Self(members))
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
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

fn flatten(prefix: &str, value: Value, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                let path = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
                flatten(&path, value, into);
            }
        }
        other => {
            into.insert(prefix.to_owned(), other);
        }
    }
}

fn check(
    at: &str,
    fields: &'static [Field],
    members: &BTreeMap<String, Value>,
) -> Result<(), Failure> {
    let full = |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
    for (name, value) in members {
        let field = fields.iter().find(|field| field.0 == name);
        let Field(_, kind, _) = field.ok_or_else(|| Failure::unexpected(&full(name)))?;
        one(&full(name), *kind, value)?;
    }
    let lacks = fields.iter().find(|field| field.2 && !members.contains_key(field.0));
    lacks.map_or(Ok(()), |field| Err(Failure::required(&full(field.0))))
}

fn one(name: &str, kind: Kind, value: &Value) -> Result<(), Failure> {
    let wrong = |what: &str| Err(Failure::value(name, what));
    match kind {
        Bool if !value.is_boolean() => wrong("<true|false>"),
        Int(from, to) if !value.as_i64().is_some_and(|n| (from..=to).contains(&n)) => {
            wrong(&format!("<{from}..{to}>"))
        }
        Text(from, to) if !value.as_str().is_some_and(|t| (from..=to).contains(&t.len())) => {
            wrong(&format!("<text of {from} to {to} bytes>"))
        }
        OneOf(words) if !value.as_str().is_some_and(|word| words.contains(&word)) => {
            wrong(&words.join("|"))
        }
        List(fields) => match value {
            Value::Array(list) => list.iter().try_for_each(|item| {
                let mut members = BTreeMap::new();
                flatten("", item.clone(), &mut members);
                check(name, fields, &members)
            }),
            _ => wrong("<list>"),
        },
        _ => Ok(()),
    }
}
