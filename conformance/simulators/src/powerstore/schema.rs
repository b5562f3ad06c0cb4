//! What the vendor's document says of the bodies of requests: "PowerStore REST API", Swagger 2.0,
//! version 4.0.0.0, `definitions`. Members, types and limits are written off it by hand; descriptions are
//! not. A member that is not in a table is refused, as is a value that does not fit.

use serde_json::Value;

use super::failure::Failure;

/// What a member may hold.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Bool,
    /// A whole number from, to.
    Int(i64, i64),
    /// A text of so many characters at least, and at most, none of them a control character.
    Text(usize, usize),
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// An id, or `name:` and a name.
    Id,
    /// The same, and null or an empty text to have none.
    IdOrNone,
    /// A list of ids or names.
    Texts,
    /// A list of objects.
    List(&'static [Field]),
    /// An object.
    Object(&'static [Field]),
}

use Kind::{Bool, Id, IdOrNone, Int, List, Object, OneOf, Text, Texts};

/// A member: its name, what it holds, whether it must be there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field(&'static str, Kind, bool);

const fn must(name: &'static str, kind: Kind) -> Field {
    Field(name, kind, true)
}

const fn may(name: &'static str, kind: Kind) -> Field {
    Field(name, kind, false)
}

const NAME: Kind = Text(1, 128);
const DESCRIPTION: Kind = Text(0, 128);
const SIZE: Kind = Int(1_048_576, 281_474_976_710_656);
const LUN: Kind = Int(0, 16383);
const TIME: Kind = Text(1, 64);
const APP_TYPE: &str = "app_type";

/// `volume_create`
pub(super) const VOLUME_CREATE: &[Field] = &[
    must("name", NAME),
    must("size", SIZE),
    may("host_id", Id),
    may("host_group_id", Id),
    may("logical_unit_number", LUN),
    may("description", DESCRIPTION),
    may("appliance_id", Id),
    may("volume_group_id", Id),
    may("min_size", SIZE),
    may("sector_size", Int(512, 4096)),
    may("protection_policy_id", Id),
    may("performance_policy_id", Id),
    may("qos_performance_policy_id", Id),
    may(APP_TYPE, Text(0, 64)),
    may("app_type_other", Text(0, 32)),
];

/// `volume_modify`
pub(super) const VOLUME_MODIFY: &[Field] = &[
    may("name", NAME),
    may("description", DESCRIPTION),
    may("size", SIZE),
    may("expiration_timestamp", IdOrNone),
    may("protection_policy_id", IdOrNone),
    may("performance_policy_id", Id),
    may("qos_performance_policy_id", IdOrNone),
    may("is_replication_destination", Bool),
    may("force", Bool),
    may(
        "node_affinity",
        OneOf(&[
            "System_Select_At_Attach",
            "System_Selected_Node_A",
            "System_Selected_Node_B",
            "Preferred_Node_A",
            "Preferred_Node_B",
        ]),
    ),
    may(APP_TYPE, Text(0, 64)),
    may("app_type_other", Text(0, 32)),
    may("is_secure", Bool),
];

/// `volume_delete`
pub(super) const VOLUME_DELETE: &[Field] = &[may("immediate", Bool)];

/// `volume_snapshot`
pub(super) const VOLUME_SNAPSHOT: &[Field] = &[
    may("name", NAME),
    may("description", DESCRIPTION),
    may("performance_policy_id", Id),
    may("expiration_timestamp", TIME),
    may("creator_type", OneOf(&["User", "System", "Scheduler", "External"])),
    may("is_secure", Bool),
];

/// `volume_clone`
pub(super) const VOLUME_CLONE: &[Field] = &[
    may("name", NAME),
    may("description", DESCRIPTION),
    may("host_id", Id),
    may("host_group_id", Id),
    may("logical_unit_number", LUN),
    may("performance_policy_id", Id),
    may("qos_performance_policy_id", Id),
    may("protection_policy_id", Id),
];

/// `volume_restore`
pub(super) const VOLUME_RESTORE: &[Field] = &[
    must("from_snap_id", Id),
    may("create_backup_snap", Bool),
    may("backup_snap_profile", Object(VOLUME_SNAPSHOT)),
];

/// `volume_refresh`
pub(super) const VOLUME_REFRESH: &[Field] = &[
    must("from_object_id", Id),
    may("create_backup_snap", Bool),
    may("backup_snap_profile", Object(VOLUME_SNAPSHOT)),
];

/// `volume_attach`
pub(super) const VOLUME_ATTACH: &[Field] =
    &[may("host_id", Id), may("host_group_id", Id), may("logical_unit_number", LUN)];

/// `volume_detach`
pub(super) const VOLUME_DETACH: &[Field] =
    &[may("host_id", Id), may("host_group_id", Id), may("clear_host_agent_data", Bool)];

/// `initiator_create_modify`
const INITIATOR: &[Field] = &[
    must("port_name", Text(1, 223)),
    must("port_type", OneOf(&["iSCSI", "FC", "NVMe", "NVMe_vVol"])),
    may("chap_single_username", Text(1, 64)),
    may("chap_single_password", Text(12, 64)),
    may("chap_mutual_username", Text(1, 64)),
    may("chap_mutual_password", Text(12, 64)),
];

/// `update_initiator_in_host`
const INITIATOR_UPDATE: &[Field] = &[
    may("port_name", Text(1, 223)),
    may("chap_single_username", Text(1, 64)),
    may("chap_single_password", Text(12, 64)),
    may("chap_mutual_username", Text(1, 64)),
    may("chap_mutual_password", Text(12, 64)),
];

const CONNECTIVITY: Kind =
    OneOf(&["Local_Only", "Metro_Optimize_Both", "Metro_Optimize_Local", "Metro_Optimize_Remote"]);

/// `host_create`
pub(super) const HOST_CREATE: &[Field] = &[
    must("name", NAME),
    may("description", Text(0, 256)),
    must("os_type", OneOf(&["Windows", "Linux", "ESXi", "AIX", "HP-UX", "Solaris"])),
    may("host_connectivity", CONNECTIVITY),
    must("initiators", List(INITIATOR)),
];

/// `host_modify`
pub(super) const HOST_MODIFY: &[Field] = &[
    may("name", NAME),
    may("description", Text(0, 256)),
    may("host_connectivity", CONNECTIVITY),
    may("remove_initiators", Texts),
    may("add_initiators", List(INITIATOR)),
    may("modify_initiators", List(INITIATOR_UPDATE)),
];

/// `host_attach`
pub(super) const HOST_ATTACH: &[Field] = &[must("volume_id", Id), may("logical_unit_number", LUN)];

/// `host_detach`
pub(super) const HOST_DETACH: &[Field] = &[must("volume_id", Id)];

/// `host_delete`, `logout`, and what else has no members.
pub(super) const NOTHING: &[Field] = &[];

/// `volume_group_create`
pub(super) const GROUP_CREATE: &[Field] = &[
    must("name", NAME),
    may("description", Text(0, 256)),
    may("volume_ids", Texts),
    may("is_write_order_consistent", Bool),
    may("protection_policy_id", Id),
    may("qos_performance_policy_id", Id),
];

/// `volume_group_modify`
pub(super) const GROUP_MODIFY: &[Field] = &[
    may("name", NAME),
    may("description", Text(0, 256)),
    may("is_write_order_consistent", Bool),
    may("protection_policy_id", IdOrNone),
    may("qos_performance_policy_id", IdOrNone),
    may("expiration_timestamp", IdOrNone),
    may("is_secure", Bool),
    may("is_replication_destination", Bool),
    may("force", Bool),
];

/// `volume_group_delete`
pub(super) const GROUP_DELETE: &[Field] = &[may("delete_members", Bool), may("immediate", Bool)];

/// `volume_group_add_members` and `volume_group_remove_members`
pub(super) const GROUP_MEMBERS: &[Field] = &[must("volume_ids", Texts)];

/// `volume_group_snapshot`
pub(super) const GROUP_SNAPSHOT: &[Field] = &[
    must("name", NAME),
    may("description", Text(0, 256)),
    may("expiration_timestamp", TIME),
    may("is_secure", Bool),
];

/// `volume_group_clone`
pub(super) const GROUP_CLONE: &[Field] = &[
    must("name", NAME),
    may("description", Text(0, 256)),
    may("protection_policy_id", Id),
    may("qos_performance_policy_id", IdOrNone),
    may("is_replication_destination", Bool),
];

/// `policy_create`
pub(super) const POLICY_CREATE: &[Field] = &[
    must("name", NAME),
    may("description", Text(0, 256)),
    may("snapshot_rule_ids", Texts),
    may("replication_rule_ids", Texts),
    may("io_limit_rule_id", Id),
];

/// `policy_modify`, what of it a QoS policy has.
pub(super) const POLICY_MODIFY: &[Field] =
    &[may("name", NAME), may("description", Text(0, 256)), may("io_limit_rule_id", Id)];

const IOPS: Kind = Int(1, 2_147_483_646);
const KILOBYTES: Kind = Int(2000, 2_147_483_646);

/// `io_limit_rule_create`
pub(super) const RULE_CREATE: &[Field] = &[
    must("name", NAME),
    must("type", OneOf(&["Absolute", "Density"])),
    may("max_iops", IOPS),
    may("max_bw", KILOBYTES),
    may("burst_percentage", Int(0, 100)),
];

/// `io_limit_rule_modify`
pub(super) const RULE_MODIFY: &[Field] = &[
    may("name", NAME),
    may("type", OneOf(&["Absolute", "Density"])),
    may("max_iops", IOPS),
    may("max_bw", KILOBYTES),
    may("burst_percentage", Int(0, 100)),
];

/// `metrics_generate`
pub(super) const METRICS: &[Field] = &[
    must(
        "entity",
        OneOf(&[
            "space_metrics_by_cluster",
            "space_metrics_by_appliance",
            "space_metrics_by_volume",
        ]),
    ),
    must("entity_id", Text(1, 128)),
    may(
        "interval",
        OneOf(&["Best_Available", "Five_Sec", "Twenty_Sec", "Five_Mins", "One_Hour", "One_Day"]),
    ),
];

/// Checks a body.
pub(super) fn check(fields: &'static [Field], body: &Value) -> Result<(), Failure> {
    members("body", fields, body)
}

fn members(at: &str, fields: &'static [Field], object: &Value) -> Result<(), Failure> {
    let Some(object) = object.as_object() else {
        return Err(Failure::invalid(format!("{at} must be an object")).about(at));
    };
    let known = |name: &String| fields.iter().any(|field| field.0 == *name);
    if let Some(name) = object.keys().find(|name| !known(name)) {
        let text = format!("The property {name} is not allowed in {at}");
        return Err(Failure::invalid(text).about(name));
    }
    for Field(name, kind, must) in fields {
        match object.get(*name) {
            None if *must => {
                let text = format!("The property {name} is required in {at}");
                return Err(Failure::invalid(text).about(name));
            }
            None => {}
            // Deployed clients (Cinder) name what they do not want, with null.
            Some(Value::Null) if !must => {}
            Some(value) => one(name, *kind, value)?,
        }
    }
    Ok(())
}

fn one(name: &str, kind: Kind, value: &Value) -> Result<(), Failure> {
    let length = value.as_str().map(|text| text.chars().count());
    let plain = value.as_str().is_none_or(|text| !text.chars().any(char::is_control));
    let fits = match kind {
        Bool => value.is_boolean(),
        Int(least, most) => value.as_i64().is_some_and(|n| (least..=most).contains(&n)),
        Text(least, most) => plain && length.is_some_and(|n| (least..=most).contains(&n)),
        OneOf(words) => value.as_str().is_some_and(|word| words.contains(&word)),
        Id => plain && length.is_some_and(|n| n > 0),
        IdOrNone => plain && length.is_some(),
        Texts => value.as_array().is_some_and(|all| all.iter().all(Value::is_string)),
        List(fields) => {
            let Some(all) = value.as_array() else {
                return Err(Failure::invalid(format!("{name} must be a list")).about(name));
            };
            return all.iter().try_for_each(|item| members(name, fields, item));
        }
        Object(fields) => return members(name, fields, value),
    };
    if fits {
        return Ok(());
    }
    Err(Failure::invalid(format!("The value of {name} is not valid: {value}")).about(name))
}
