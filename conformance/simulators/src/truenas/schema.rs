//! What calls take, field by field, after the vendor's published schema (REST of SCALE 22.12 and
//! methods of 25.04). What is not in it is refused.

use serde_json::Value;

use super::failure::{EINVAL, Failure};
use crate::schema::Kind::{
    self, Bool, Bytes, Either, Int, IntOf, List, Null, Of, OneOf, Open, Text,
};
use crate::schema::{Fault, Field, Reading, STRICT, Wrong, may, must};

const TEXTS: Kind = List(&Text);
/// A number, or a word such as `INHERIT`.
const INT_OR_TEXT: Kind = Either(&Int, &Text);

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
    may("quota", Either(&Int, &Null)),
    may("quota_warning", INT_OR_TEXT),
    may("quota_critical", INT_OR_TEXT),
    may("refquota", Either(&Int, &Null)),
    may("refquota_warning", INT_OR_TEXT),
    may("refquota_critical", INT_OR_TEXT),
    may("reservation", Int),
    may("refreservation", Int),
    may("special_small_block_size", INT_OR_TEXT),
    may("copies", INT_OR_TEXT),
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
    may("encryption_options", Open),
    may("encryption", Bool),
    may("inherit_encryption", Bool),
    may("user_properties", List(&Of(PROPERTY))),
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
    may("quota", Either(&Int, &Null)),
    may("refquota", Either(&Int, &Null)),
    may("reservation", Int),
    may("refreservation", Int),
    may("copies", INT_OR_TEXT),
    may("snapdir", Text),
    may("deduplication", Text),
    may("checksum", Text),
    may("readonly", Text),
    may("recordsize", Text),
    may("user_properties", List(&Of(PROPERTY))),
    may("user_properties_update", List(&Of(PROPERTY_CHANGE))),
    may("create_ancestors", Bool),
];

pub(super) const DATASET_DELETE: &[Field] = &[may("recursive", Bool), may("force", Bool)];

pub(super) const SNAPSHOT_CREATE: &[Field] = &[
    must("dataset", Text),
    may("name", Text),
    may("naming_schema", Text),
    may("recursive", Bool),
    may("exclude", TEXTS),
    may("suspend_vms", Bool),
    may("vmware_sync", Bool),
    may("properties", Open),
];

pub(super) const SNAPSHOT_UPDATE: &[Field] =
    &[may("user_properties_update", List(&Of(PROPERTY_CHANGE)))];

pub(super) const SNAPSHOT_DELETE: &[Field] = &[may("defer", Bool), may("recursive", Bool)];

pub(super) const SNAPSHOT_CLONE: &[Field] =
    &[must("snapshot", Text), must("dataset_dst", Text), may("dataset_properties", Open)];

pub(super) const SNAPSHOT_ROLLBACK: &[Field] = &[
    may("recursive", Bool),
    may("recursive_clones", Bool),
    may("force", Bool),
    may("recursive_rollback", Bool),
];

pub(super) const DESTROY_SNAPSHOTS: &[Field] =
    &[may("all", Bool), may("recursive", Bool), may("snapshots", TEXTS)];

const LISTEN: &[Field] = &[must("ip", Text), may("port", Int)];
pub(super) const PORTAL: &[Field] = &[
    must("listen", List(&Of(LISTEN))),
    may("comment", Text),
    may("discovery_authmethod", OneOf(&["NONE", "CHAP", "CHAP_MUTUAL"])),
    may("discovery_authgroup", Either(&Int, &Null)),
];

pub(super) const INITIATOR: &[Field] = &[may("initiators", TEXTS), may("comment", Text)];

const GROUP: &[Field] = &[
    must("portal", Int),
    may("initiator", Either(&Int, &Null)),
    may("authmethod", OneOf(&["NONE", "CHAP", "CHAP_MUTUAL"])),
    may("auth", Either(&Int, &Null)),
];
pub(super) const TARGET: &[Field] = &[
    must("name", Bytes(1, 120)),
    may("alias", Either(&Bytes(1, 120), &Null)),
    may("mode", OneOf(&["ISCSI", "FC", "BOTH"])),
    may("groups", List(&Of(GROUP))),
    may("auth_networks", TEXTS),
    may("iscsi_parameters", Either(&Open, &Null)),
];

pub(super) const EXTENT: &[Field] = &[
    must("name", Bytes(1, 64)),
    may("type", OneOf(&["DISK", "FILE"])),
    may("disk", Either(&Text, &Null)),
    may("serial", Either(&Bytes(1, 20), &Null)),
    may("path", Either(&Text, &Null)),
    may("filesize", INT_OR_TEXT),
    may("blocksize", IntOf(&[512, 1024, 2048, 4096])),
    may("pblocksize", Bool),
    may("avail_threshold", Either(&Int, &Null)),
    may("comment", Text),
    may("insecure_tpc", Bool),
    may("xen", Bool),
    may("rpm", OneOf(&["UNKNOWN", "SSD", "5400", "7200", "10000", "15000"])),
    may("ro", Bool),
    may("enabled", Bool),
];

pub(super) const TARGET_EXTENT: &[Field] =
    &[must("target", Int), must("extent", Int), may("lunid", Either(&Int, &Null))];

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
    may("isns_servers", TEXTS),
    may("listen_port", Int),
    may("pool_avail_threshold", Either(&Int, &Null)),
    may("alua", Bool),
    may("iser", Bool),
];

pub(super) const SERVICE_CONTROL: &[Field] = &[may("ha_propagate", Bool), may("silent", Bool)];

/// Checks an object. `whole` is whether what must be there must be there: not so in an update.
pub(super) fn check(
    schema: &str,
    fields: &'static [Field],
    object: &Value,
    whole: bool,
) -> Result<(), Failure> {
    let faults = Reading { whole, ..STRICT }.faults(Of(fields), object);
    if faults.is_empty() {
        return Ok(());
    }
    let said = |fault: &Fault<'_>| {
        let path = &fault.path;
        let at = if path.is_empty() { schema.to_owned() } else { format!("{schema}.{path}") };
        let what = match fault.wrong {
            Wrong::Unknown => "Field was not expected".to_owned(),
            Wrong::Missing => "attribute required".to_owned(),
            Wrong::Not(kind) => words(kind, fault.value),
        };
        (at, what, EINVAL)
    };
    Err(Failure::Validation(faults.iter().map(said).collect()))
}

/// The array's words about a value that is not of a kind.
fn words(kind: Kind, value: &Value) -> String {
    let text = value.as_str();
    match kind {
        Bool => "Not a boolean".to_owned(),
        IntOf(_) if value.is_i64() => format!("Invalid choice: {value}"),
        Int | IntOf(_) => "Not an integer".to_owned(),
        OneOf(_) if text.is_some() => format!("Invalid choice: {}", text.unwrap_or_default()),
        Bytes(..) if text == Some("") => "Empty value not allowed".to_owned(),
        Bytes(_, most) if text.is_some() => {
            format!("The value may not be longer than {most} characters")
        }
        List(_) => "Not a list".to_owned(),
        Of(_) | Open => "A dict was expected".to_owned(),
        _ => "Not a string".to_owned(),
    }
}
