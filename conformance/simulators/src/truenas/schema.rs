//! What calls take, field by field, after the vendor's published schema (REST of SCALE 22.12 and
//! methods of 25.04). What is not in it is refused.

use serde_json::Value;

use super::failure::{EINVAL, Failure};

/// What a field may be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Bool,
    Int,
    Text,
    /// At most so many characters, at least one.
    Short(usize),
    OneOf(&'static [&'static str]),
    IntOf(&'static [i64]),
    Texts,
    /// Properties: any names.
    Object,
    /// A list of objects.
    List(&'static [Field]),
    /// A number, or a word such as `INHERIT`.
    IntOrText,
    /// Either of these or null.
    OrNull(&'static Kind),
}

/// A field.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field(pub(super) &'static str, pub(super) Kind, pub(super) bool);

const fn must(name: &'static str, kind: Kind) -> Field {
    Field(name, kind, true)
}

const fn may(name: &'static str, kind: Kind) -> Field {
    Field(name, kind, false)
}

use Kind::{Bool, Int, IntOf, IntOrText, List, Object, OneOf, OrNull, Short, Text, Texts};

const PROPERTY: &[Field] = &[must("key", Text), must("value", Text)];
const PROPERTY_CHANGE: &[Field] = &[must("key", Text), may("value", Text), may("remove", Bool)];

/// Block sizes of a zvol.
pub(super) const BLOCKS: &[&str] =
    &["512", "512B", "1K", "2K", "4K", "8K", "16K", "32K", "64K", "128K"];

pub(super) const DATASET_CREATE: &[Field] = &[
    must("name", Text),
    may("type", OneOf(&["FILESYSTEM", "VOLUME"])),
    may("volsize", Int),
    may("volblocksize", OneOf(BLOCKS)),
    may("sparse", Bool),
    may("force_size", Bool),
    may("comments", Text),
    may("sync", Text),
    may("snapdev", Text),
    may("compression", Text),
    may("atime", Text),
    may("exec", Text),
    may("managedby", Text),
    may("quota", OrNull(&Int)),
    may("quota_warning", IntOrText),
    may("quota_critical", IntOrText),
    may("refquota", OrNull(&Int)),
    may("refquota_warning", IntOrText),
    may("refquota_critical", IntOrText),
    may("reservation", Int),
    may("refreservation", Int),
    may("special_small_block_size", IntOrText),
    may("copies", IntOrText),
    may("snapdir", Text),
    may("deduplication", Text),
    may("checksum", Text),
    may("readonly", Text),
    may("recordsize", Text),
    may("casesensitivity", Text),
    may("aclmode", Text),
    may("acltype", Text),
    may("share_type", Text),
    may("xattr", Text),
    may("encryption_options", Object),
    may("encryption", Bool),
    may("inherit_encryption", Bool),
    may("user_properties", List(PROPERTY)),
    may("create_ancestors", Bool),
];

pub(super) const DATASET_UPDATE: &[Field] = &[
    may("volsize", Int),
    may("force_size", Bool),
    may("comments", Text),
    may("sync", Text),
    may("snapdev", Text),
    may("compression", Text),
    may("atime", Text),
    may("exec", Text),
    may("managedby", Text),
    may("quota", OrNull(&Int)),
    may("refquota", OrNull(&Int)),
    may("reservation", Int),
    may("refreservation", Int),
    may("copies", IntOrText),
    may("snapdir", Text),
    may("deduplication", Text),
    may("checksum", Text),
    may("readonly", Text),
    may("recordsize", Text),
    may("user_properties", List(PROPERTY)),
    may("user_properties_update", List(PROPERTY_CHANGE)),
    may("create_ancestors", Bool),
];

pub(super) const DATASET_DELETE: &[Field] = &[may("recursive", Bool), may("force", Bool)];

pub(super) const SNAPSHOT_CREATE: &[Field] = &[
    must("dataset", Text),
    may("name", Text),
    may("naming_schema", Text),
    may("recursive", Bool),
    may("exclude", Texts),
    may("suspend_vms", Bool),
    may("vmware_sync", Bool),
    may("properties", Object),
];

pub(super) const SNAPSHOT_UPDATE: &[Field] =
    &[may("user_properties_update", List(PROPERTY_CHANGE))];

pub(super) const SNAPSHOT_DELETE: &[Field] = &[may("defer", Bool), may("recursive", Bool)];

pub(super) const SNAPSHOT_CLONE: &[Field] =
    &[must("snapshot", Text), must("dataset_dst", Text), may("dataset_properties", Object)];

pub(super) const SNAPSHOT_ROLLBACK: &[Field] = &[
    may("recursive", Bool),
    may("recursive_clones", Bool),
    may("force", Bool),
    may("recursive_rollback", Bool),
];

pub(super) const DESTROY_SNAPSHOTS: &[Field] =
    &[may("all", Bool), may("recursive", Bool), may("snapshots", Texts)];

const LISTEN: &[Field] = &[must("ip", Text), may("port", Int)];
pub(super) const PORTAL: &[Field] = &[
    must("listen", List(LISTEN)),
    may("comment", Text),
    may("discovery_authmethod", OneOf(&["NONE", "CHAP", "CHAP_MUTUAL"])),
    may("discovery_authgroup", OrNull(&Int)),
];

pub(super) const INITIATOR: &[Field] = &[may("initiators", Texts), may("comment", Text)];

const GROUP: &[Field] = &[
    must("portal", Int),
    may("initiator", OrNull(&Int)),
    may("authmethod", OneOf(&["NONE", "CHAP", "CHAP_MUTUAL"])),
    may("auth", OrNull(&Int)),
];
pub(super) const TARGET: &[Field] = &[
    must("name", Short(120)),
    may("alias", OrNull(&Short(120))),
    may("mode", OneOf(&["ISCSI", "FC", "BOTH"])),
    may("groups", List(GROUP)),
    may("auth_networks", Texts),
    may("iscsi_parameters", OrNull(&Object)),
];

pub(super) const EXTENT: &[Field] = &[
    must("name", Short(64)),
    may("type", OneOf(&["DISK", "FILE"])),
    may("disk", OrNull(&Text)),
    may("serial", OrNull(&Short(20))),
    may("path", OrNull(&Text)),
    may("filesize", IntOrText),
    may("blocksize", IntOf(&[512, 1024, 2048, 4096])),
    may("pblocksize", Bool),
    may("avail_threshold", OrNull(&Int)),
    may("comment", Text),
    may("insecure_tpc", Bool),
    may("xen", Bool),
    may("rpm", OneOf(&["UNKNOWN", "SSD", "5400", "7200", "10000", "15000"])),
    may("ro", Bool),
    may("enabled", Bool),
];

pub(super) const TARGET_EXTENT: &[Field] =
    &[must("target", Int), must("extent", Int), may("lunid", OrNull(&Int))];

pub(super) const AUTH: &[Field] = &[
    must("tag", Int),
    must("user", Text),
    must("secret", Text),
    may("peeruser", Text),
    may("peersecret", Text),
    may("discovery_auth", OneOf(&["NONE", "CHAP", "CHAP_MUTUAL"])),
];

pub(super) const GLOBAL: &[Field] = &[
    may("basename", Text),
    may("isns_servers", Texts),
    may("listen_port", Int),
    may("pool_avail_threshold", OrNull(&Int)),
    may("alua", Bool),
    may("iser", Bool),
];

pub(super) const SERVICE_CONTROL: &[Field] = &[may("ha_propagate", Bool), may("silent", Bool)];

/// Checks an object. `all` is whether what must be there must be there: not so in an update.
pub(super) fn check(
    schema: &str,
    fields: &'static [Field],
    object: &Value,
    all: bool,
) -> Result<(), Failure> {
    let mut wrong = Vec::new();
    members(schema, fields, object, all, &mut wrong);
    if wrong.is_empty() { Ok(()) } else { Err(Failure::Validation(wrong)) }
}

type Wrong = Vec<(String, String, i64)>;

fn members(schema: &str, fields: &'static [Field], object: &Value, all: bool, wrong: &mut Wrong) {
    let mut say = |at: String, what: String| wrong.push((at, what, EINVAL));
    let Some(object) = object.as_object() else {
        say(schema.to_owned(), "A dict was expected".to_owned());
        return;
    };
    for name in object.keys().filter(|name| !fields.iter().any(|field| field.0 == *name)) {
        say(format!("{schema}.{name}"), "Field was not expected".to_owned());
    }
    for Field(name, kind, must) in fields {
        let at = format!("{schema}.{name}");
        match object.get(*name) {
            None if all && *must => wrong.push((at, "attribute required".to_owned(), EINVAL)),
            None => {}
            Some(value) => one(&at, *kind, value, wrong),
        }
    }
}

fn one(at: &str, kind: Kind, value: &Value, wrong: &mut Wrong) {
    let fault = match kind {
        Bool => (!value.is_boolean()).then(|| "Not a boolean".to_owned()),
        Int => (value.as_i64().is_none()).then(|| "Not an integer".to_owned()),
        Text => (!value.is_string()).then(|| "Not a string".to_owned()),
        Short(most) => match value.as_str().map(str::len) {
            None => Some("Not a string".to_owned()),
            Some(0) => Some("Empty value not allowed".to_owned()),
            Some(length) if length > most => {
                Some(format!("The value may not be longer than {most} characters"))
            }
            Some(_) => None,
        },
        OneOf(words) => match value.as_str() {
            None => Some("Not a string".to_owned()),
            Some(word) => (!words.contains(&word)).then(|| format!("Invalid choice: {word}")),
        },
        IntOf(numbers) => match value.as_i64() {
            None => Some("Not an integer".to_owned()),
            Some(n) => (!numbers.contains(&n)).then(|| format!("Invalid choice: {n}")),
        },
        Texts => {
            let texts = value.as_array().is_some_and(|list| list.iter().all(Value::is_string));
            (!texts).then(|| "Not a list".to_owned())
        }
        Object => (!value.is_object()).then(|| "A dict was expected".to_owned()),
        IntOrText => {
            let ok = value.is_string() || value.as_i64().is_some();
            (!ok).then(|| "Not an integer".to_owned())
        }
        OrNull(kind) => {
            if !value.is_null() {
                one(at, *kind, value, wrong);
            }
            None
        }
        List(fields) => match value.as_array() {
            None => Some("Not a list".to_owned()),
            Some(list) => {
                for (number, item) in list.iter().enumerate() {
                    members(&format!("{at}.{number}"), fields, item, true, wrong);
                }
                None
            }
        },
    };
    wrong.extend(fault.map(|what| (at.to_owned(), what, EINVAL)));
}
