//! What the vendor's document says of the bodies of requests: "PowerStore REST API", Swagger 2.0,
//! version 4.0.0.0, `definitions`. Members, types and limits are written off it by hand; descriptions are
//! not. A member that is not in a table is refused, as is a value that does not fit.

use serde_json::Value;

use super::failure::Failure;
use crate::schema::Kind::{self, Bool, List, Of, OneOf, Plain, Text, Within};
use crate::schema::{Field, Reading, STRICT, Wrong, may, must};

/// An id, or `name:` and a name.
const ID: Kind = Plain(1, usize::MAX);
/// The same, and null or an empty text to have none.
const ID_OR_NONE: Kind = Plain(0, usize::MAX);
const IDS: Kind = List(&Text);
const NAME: Kind = Plain(1, 128);
const DESCRIPTION: Kind = Plain(0, 128);
const SIZE: Kind = Within(1_048_576, 281_474_976_710_656);
const LUN: Kind = Within(0, 16383);
const TIME: Kind = Plain(1, 64);
const APP_TYPE: &str = "app_type";

/// `volume_create`
pub(super) const VOLUME_CREATE: &[Field] = &[
    must("name", NAME),
    must("size", SIZE),
    may("host_id", ID),
    may("host_group_id", ID),
    may("logical_unit_number", LUN),
    may("description", DESCRIPTION),
    may("appliance_id", ID),
    may("volume_group_id", ID),
    may("min_size", SIZE),
    may("sector_size", Within(512, 4096)),
    may("protection_policy_id", ID),
    may("performance_policy_id", ID),
    may("qos_performance_policy_id", ID),
    may(APP_TYPE, Plain(0, 64)),
    may("app_type_other", Plain(0, 32)),
];

/// `volume_modify`
pub(super) const VOLUME_MODIFY: &[Field] = &[
    may("name", NAME),
    may("description", DESCRIPTION),
    may("size", SIZE),
    may("expiration_timestamp", ID_OR_NONE),
    may("protection_policy_id", ID_OR_NONE),
    may("performance_policy_id", ID),
    may("qos_performance_policy_id", ID_OR_NONE),
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
    may(APP_TYPE, Plain(0, 64)),
    may("app_type_other", Plain(0, 32)),
    may("is_secure", Bool),
];

/// `volume_delete`
pub(super) const VOLUME_DELETE: &[Field] = &[may("immediate", Bool)];

/// `volume_snapshot`
pub(super) const VOLUME_SNAPSHOT: &[Field] = &[
    may("name", NAME),
    may("description", DESCRIPTION),
    may("performance_policy_id", ID),
    may("expiration_timestamp", TIME),
    may("creator_type", OneOf(&["User", "System", "Scheduler", "External"])),
    may("is_secure", Bool),
];

/// `volume_clone`
pub(super) const VOLUME_CLONE: &[Field] = &[
    may("name", NAME),
    may("description", DESCRIPTION),
    may("host_id", ID),
    may("host_group_id", ID),
    may("logical_unit_number", LUN),
    may("performance_policy_id", ID),
    may("qos_performance_policy_id", ID),
    may("protection_policy_id", ID),
];

/// `volume_restore`
pub(super) const VOLUME_RESTORE: &[Field] = &[
    must("from_snap_id", ID),
    may("create_backup_snap", Bool),
    may("backup_snap_profile", Of(VOLUME_SNAPSHOT)),
];

/// `volume_refresh`
pub(super) const VOLUME_REFRESH: &[Field] = &[
    must("from_object_id", ID),
    may("create_backup_snap", Bool),
    may("backup_snap_profile", Of(VOLUME_SNAPSHOT)),
];

/// `volume_attach`
pub(super) const VOLUME_ATTACH: &[Field] =
    &[may("host_id", ID), may("host_group_id", ID), may("logical_unit_number", LUN)];

/// `volume_detach`
pub(super) const VOLUME_DETACH: &[Field] =
    &[may("host_id", ID), may("host_group_id", ID), may("clear_host_agent_data", Bool)];

/// `initiator_create_modify`
const INITIATOR: &[Field] = &[
    must("port_name", Plain(1, 223)),
    must("port_type", OneOf(&["iSCSI", "FC", "NVMe", "NVMe_vVol"])),
    may("chap_single_username", Plain(1, 64)),
    may("chap_single_password", Plain(12, 64)),
    may("chap_mutual_username", Plain(1, 64)),
    may("chap_mutual_password", Plain(12, 64)),
];

/// `update_initiator_in_host`
const INITIATOR_UPDATE: &[Field] = &[
    may("port_name", Plain(1, 223)),
    may("chap_single_username", Plain(1, 64)),
    may("chap_single_password", Plain(12, 64)),
    may("chap_mutual_username", Plain(1, 64)),
    may("chap_mutual_password", Plain(12, 64)),
];

const CONNECTIVITY: Kind =
    OneOf(&["Local_Only", "Metro_Optimize_Both", "Metro_Optimize_Local", "Metro_Optimize_Remote"]);

/// `host_create`
pub(super) const HOST_CREATE: &[Field] = &[
    must("name", NAME),
    may("description", Plain(0, 256)),
    must("os_type", OneOf(&["Windows", "Linux", "ESXi", "AIX", "HP-UX", "Solaris"])),
    may("host_connectivity", CONNECTIVITY),
    must("initiators", List(&Of(INITIATOR))),
];

/// `host_modify`
pub(super) const HOST_MODIFY: &[Field] = &[
    may("name", NAME),
    may("description", Plain(0, 256)),
    may("host_connectivity", CONNECTIVITY),
    may("remove_initiators", IDS),
    may("add_initiators", List(&Of(INITIATOR))),
    may("modify_initiators", List(&Of(INITIATOR_UPDATE))),
];

/// `host_attach`
pub(super) const HOST_ATTACH: &[Field] = &[must("volume_id", ID), may("logical_unit_number", LUN)];

/// `host_detach`
pub(super) const HOST_DETACH: &[Field] = &[must("volume_id", ID)];

/// `host_delete`, `logout`, and what else has no members.
pub(super) const NOTHING: &[Field] = &[];

/// `volume_group_create`
pub(super) const GROUP_CREATE: &[Field] = &[
    must("name", NAME),
    may("description", Plain(0, 256)),
    may("volume_ids", IDS),
    may("is_write_order_consistent", Bool),
    may("protection_policy_id", ID),
    may("qos_performance_policy_id", ID),
];

/// `volume_group_modify`
pub(super) const GROUP_MODIFY: &[Field] = &[
    may("name", NAME),
    may("description", Plain(0, 256)),
    may("is_write_order_consistent", Bool),
    may("protection_policy_id", ID_OR_NONE),
    may("qos_performance_policy_id", ID_OR_NONE),
    may("expiration_timestamp", ID_OR_NONE),
    may("is_secure", Bool),
    may("is_replication_destination", Bool),
    may("force", Bool),
];

/// `volume_group_delete`
pub(super) const GROUP_DELETE: &[Field] = &[may("delete_members", Bool), may("immediate", Bool)];

/// `volume_group_add_members` and `volume_group_remove_members`
pub(super) const GROUP_MEMBERS: &[Field] = &[must("volume_ids", IDS)];

/// `volume_group_snapshot`
pub(super) const GROUP_SNAPSHOT: &[Field] = &[
    must("name", NAME),
    may("description", Plain(0, 256)),
    may("expiration_timestamp", TIME),
    may("is_secure", Bool),
];

/// `volume_group_clone`
pub(super) const GROUP_CLONE: &[Field] = &[
    must("name", NAME),
    may("description", Plain(0, 256)),
    may("protection_policy_id", ID),
    may("qos_performance_policy_id", ID_OR_NONE),
    may("is_replication_destination", Bool),
];

/// `policy_create`
pub(super) const POLICY_CREATE: &[Field] = &[
    must("name", NAME),
    may("description", Plain(0, 256)),
    may("snapshot_rule_ids", IDS),
    may("replication_rule_ids", IDS),
    may("io_limit_rule_id", ID),
];

/// `policy_modify`, what of it a QoS policy has.
pub(super) const POLICY_MODIFY: &[Field] =
    &[may("name", NAME), may("description", Plain(0, 256)), may("io_limit_rule_id", ID)];

const IOPS: Kind = Within(1, 2_147_483_646);
const KILOBYTES: Kind = Within(2000, 2_147_483_646);

/// `io_limit_rule_create`
pub(super) const RULE_CREATE: &[Field] = &[
    must("name", NAME),
    must("type", OneOf(&["Absolute", "Density"])),
    may("max_iops", IOPS),
    may("max_bw", KILOBYTES),
    may("burst_percentage", Within(0, 100)),
];

/// `io_limit_rule_modify`
pub(super) const RULE_MODIFY: &[Field] = &[
    may("name", NAME),
    may("type", OneOf(&["Absolute", "Density"])),
    may("max_iops", IOPS),
    may("max_bw", KILOBYTES),
    may("burst_percentage", Within(0, 100)),
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
    must("entity_id", Plain(1, 128)),
    may(
        "interval",
        OneOf(&["Best_Available", "Five_Sec", "Twenty_Sec", "Five_Mins", "One_Hour", "One_Day"]),
    ),
];

/// Deployed clients (Cinder) name what they do not want, with null.
const READING: Reading = Reading { null_is_none: true, ..STRICT };

/// Checks a body.
pub(super) fn check(fields: &'static [Field], body: &Value) -> Result<(), Failure> {
    let faults = READING.faults(Of(fields), body);
    let Some(fault) = faults.first() else { return Ok(()) };
    let name = fault.name();
    let text = match fault.wrong {
        Wrong::Unknown => format!("The property {name} is not allowed"),
        Wrong::Missing => format!("The property {name} is required"),
        Wrong::Not(List(_)) => format!("{name} must be a list"),
        Wrong::Not(Of(_)) => format!("{name} must be an object"),
        Wrong::Not(_) => format!("The value of {name} is not valid: {}", fault.value),
    };
    Err(Failure::invalid(text).about(name))
}
