//! The resources, as their collections answer them: fields after the document's `*_instance`.

use serde_json::{Map, Value, json};

use super::group::Group;
use super::host::{self, Host, Mapping};
use super::policy::{Policy, Rule};
use crate::core::{Array, Job, JobState, Pool, Record, Snapshot, View, Volume};

/// A collection: its name, its fields, and its relations with the resource that each leads to.
#[derive(Debug)]
pub(super) struct Resource {
    pub(super) name: &'static str,
    pub(super) fields: &'static [&'static str],
    relations: &'static [(&'static str, &'static str)],
}

impl Resource {
    /// The resource that a relation leads to.
    pub(super) fn target(&self, relation: &str) -> Option<&'static Resource> {
        let (_, target) = self.relations.iter().find(|(name, _)| *name == relation)?;
        find(target)
    }
}

/// The resource of that name.
pub(super) fn find(name: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|resource| resource.name == name)
}

const RESOURCES: &[Resource] = &[
    Resource {
        name: "volume",
        fields: &[
            "id",
            "name",
            "description",
            "type",
            "wwn",
            "nsid",
            "nguid",
            "appliance_id",
            "state",
            "size",
            "logical_used",
            "node_affinity",
            "creation_timestamp",
            "protection_policy_id",
            "performance_policy_id",
            "qos_performance_policy_id",
            "is_replication_destination",
            "migration_session_id",
            "metro_replication_session_id",
            "is_host_access_available",
            "protection_data",
            "location_history",
            "app_type",
            "app_type_other",
            "type_l10n",
            "state_l10n",
        ],
        relations: &[
            ("appliance", "appliance"),
            ("mapped_volumes", "host_volume_mapping"),
            ("volume_groups", "volume_group"),
            ("qos_performance_policy", "policy"),
        ],
    },
    Resource {
        name: "host",
        fields: &[
            "id",
            "name",
            "description",
            "type",
            "os_type",
            "host_group_id",
            "import_host_system_id",
            "host_connectivity",
            "host_initiators",
            "type_l10n",
            "os_type_l10n",
        ],
        relations: &[("initiators", "initiator"), ("mapped_hosts", "host_volume_mapping")],
    },
    Resource {
        name: "initiator",
        fields: &[
            "id",
            "host_id",
            "port_name",
            "port_type",
            "chap_single_username",
            "active_sessions",
        ],
        relations: &[("host", "host")],
    },
    Resource {
        name: "host_volume_mapping",
        fields: &["id", "host_id", "host_group_id", "volume_id", "logical_unit_number"],
        relations: &[("host", "host"), ("volume", "volume"), ("host_group", "host_group")],
    },
    Resource { name: "host_group", fields: &["id", "name", "description"], relations: &[] },
    Resource {
        name: "volume_group",
        fields: &[
            "id",
            "name",
            "description",
            "creation_timestamp",
            "is_protectable",
            "protection_policy_id",
            "qos_performance_policy_id",
            "is_write_order_consistent",
            "placement_rule",
            "type",
            "is_replication_destination",
            "protection_data",
            "is_importing",
            "type_l10n",
        ],
        relations: &[("volumes", "volume"), ("qos_performance_policy", "policy")],
    },
    Resource {
        name: "policy",
        fields: &["id", "name", "description", "type", "managed_by", "is_read_only", "type_l10n"],
        relations: &[("io_limit_rule", "io_limit_rule"), ("qos_volumes", "volume")],
    },
    Resource {
        name: "io_limit_rule",
        fields: &["id", "name", "type", "max_iops", "max_bw", "burst_percentage", "type_l10n"],
        relations: &[("policies", "policy")],
    },
    Resource {
        name: "appliance",
        fields: &[
            "id",
            "name",
            "service_tag",
            "express_service_code",
            "model",
            "mode",
            "node_count",
            "is_hyper_converged",
        ],
        relations: &[
            ("ip_pool_addresses", "ip_pool_address"),
            ("software_installed", "software_installed"),
            ("volumes", "volume"),
        ],
    },
    Resource {
        name: "ip_pool_address",
        fields: &[
            "id",
            "name",
            "network_id",
            "ip_port_id",
            "appliance_id",
            "node_id",
            "address",
            "purposes",
        ],
        relations: &[("ip_port", "ip_port"), ("appliance", "appliance")],
    },
    Resource {
        name: "ip_port",
        fields: &["id", "partner_id", "target_iqn", "available_usages", "current_usages"],
        relations: &[("ip_pool_addresses", "ip_pool_address")],
    },
    Resource {
        name: "cluster",
        fields: &[
            "id",
            "global_id",
            "name",
            "management_address",
            "storage_discovery_address",
            "primary_appliance_id",
            "appliance_count",
            "compatibility_level",
            "state",
            "system_time",
        ],
        relations: &[],
    },
    Resource {
        name: "software_installed",
        fields: &["id", "is_cluster", "release_version", "build_version", "build_id"],
        relations: &[],
    },
    Resource { name: "chap_config", fields: &["id", "mode"], relations: &[] },
    Resource { name: "fc_port", fields: &["id", "name", "wwn", "is_link_up"], relations: &[] },
    Resource {
        name: "job",
        fields: &[
            "id",
            "resource_action",
            "resource_type",
            "resource_id",
            "resource_name",
            "description_l10n",
            "state",
            "start_time",
            "phase",
            "end_time",
            "progress_percentage",
            "parent_id",
            "root_id",
            "user",
            "response_body",
            "response_status",
            "step_order",
        ],
        relations: &[],
    },
];

/// What the collections are made of: the objects at one moment.
pub(super) struct Show<'a> {
    pub(super) array: &'a Array,
    pub(super) view: View,
}

/// A time of the array's clock in the form of RFC 3339.
pub(super) fn timestamp(milliseconds: u64) -> String {
    let (days, rest) = (milliseconds / 86_400_000, milliseconds % 86_400_000);
    // Civil date of a day count: Howard Hinnant, "chrono-compatible low-level date algorithms".
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    let (seconds, fraction) = (rest / 1000, rest % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction:03}+00:00")
}

/// The members of an object.
pub(super) fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}

/// The identifier of a unit, with what stands before it here.
pub(super) fn wwn(uuid: &str) -> String {
    format!("naa.{}{}", super::NAA, uuid.get(..24).unwrap_or(""))
}

/// The appliances: id, and the pool that each is.
pub(super) fn appliances(view: &View) -> Vec<(String, String)> {
    let names = view.all::<Pool>().into_iter().enumerate();
    names.map(|(number, (name, _))| (format!("A{}", number + 1), name)).collect()
}

fn appliance_of(view: &View, pool: &str) -> String {
    let mut all = appliances(view).into_iter();
    all.find(|(_, name)| name == pool).map_or_else(String::new, |(id, _)| id)
}

impl<'a> Show<'a> {
    pub(super) fn new(array: &'a Array, view: View) -> Self {
        Self { array, view }
    }

    /// All objects of a collection. `name` tells that only those of that name are wanted.
    pub(super) fn all(&self, resource: &Resource, name: Option<&str>) -> Vec<Map<String, Value>> {
        let view = &self.view;
        let wanted = |attributes: &Map<String, Value>| {
            name.is_none_or(|name| attributes.get("name").and_then(Value::as_str) == Some(name))
        };
        match resource.name {
            "volume" => {
                let volumes = view.all::<Volume>().into_iter();
                let volumes = volumes.filter(|(_, volume)| wanted(&volume.attributes));
                let mut all: Vec<_> =
                    volumes.filter_map(|(id, volume)| self.volume(&id, &volume)).collect();
                let snapshots = view.all::<Snapshot>().into_iter();
                let snapshots = snapshots.filter(|(_, snapshot)| wanted(&snapshot.attributes));
                all.extend(snapshots.map(|(id, snapshot)| self.snapshot(&id, &snapshot)));
                all
            }
            "host" => rows::<Host>(view, |host| host.object(self)),
            "initiator" => {
                let hosts = view.all::<Host>().into_iter();
                hosts.flat_map(|(_, host)| host.ports(self)).collect()
            }
            "host_volume_mapping" => rows::<Mapping>(view, |mapping| mapping.0.clone()),
            "volume_group" => rows::<Group>(view, |group| group.0.clone()),
            "policy" => rows::<Policy>(view, |policy| policy.0.clone()),
            "io_limit_rule" => rows::<Rule>(view, |rule| rule.0.clone()),
            "appliance" => appliances(view).iter().map(|(id, name)| appliance(id, name)).collect(),
            "ip_pool_address" => host::ports(view).iter().map(host::Port::address).collect(),
            "ip_port" => host::ports(view).iter().map(host::Port::port).collect(),
            "cluster" => vec![self.cluster()],
            "software_installed" => vec![software(&self.array.settings().vendor)],
            "chap_config" => vec![object(json!({ "id": "0", "mode": "Disabled" }))],
            "job" => view.all::<Job>().into_iter().map(|(id, job)| self.job(&id, &job)).collect(),
            _ => Vec::new(),
        }
    }

    /// The object of an id, or of `name:` and a name.
    pub(super) fn one(&self, resource: &Resource, id: &str) -> Option<Map<String, Value>> {
        if let Some(name) = id.strip_prefix("name:") {
            return self
                .all(resource, Some(name))
                .into_iter()
                .find(|one| text(one, "name") == name);
        }
        match resource.name {
            "volume" => match self.view.get::<Volume>(id) {
                Some(volume) => self.volume(id, &volume),
                None => self.view.get::<Snapshot>(id).map(|own| self.snapshot(id, &own)),
            },
            _ => self.all(resource, None).into_iter().find(|one| text(one, "id") == id),
        }
    }

    /// What a relation leads to: a list, an object, or null.
    pub(super) fn related(
        &self,
        of: &Resource,
        object: &Map<String, Value>,
        relation: &str,
    ) -> Value {
        let id = text(object, "id");
        let Some(target) = of.target(relation) else { return Value::Null };
        let by = |field: &'static str| {
            let all = self.all(target, None).into_iter();
            let all = all.filter(|one| text(one, field) == id).map(Value::Object);
            Value::Array(all.collect())
        };
        let one = |field: &str| match text(object, field) {
            "" => Value::Null,
            other => self.one(target, other).map_or(Value::Null, Value::Object),
        };
        match (of.name, relation) {
            ("volume", "mapped_volumes") => by("volume_id"),
            ("host", "mapped_hosts" | "initiators") => by("host_id"),
            ("ip_port", "ip_pool_addresses") => by("ip_port_id"),
            ("appliance", "ip_pool_addresses" | "volumes") => by("appliance_id"),
            ("appliance", "software_installed") => {
                Value::Array(self.all(target, None).into_iter().map(Value::Object).collect())
            }
            ("volume", "volume_groups") => {
                let groups = self.view.all::<Group>().into_iter();
                let own = groups.filter(|(_, group)| group.members().iter().any(|one| one == id));
                Value::Array(own.map(|(_, group)| Value::Object(group.0.clone())).collect())
            }
            ("volume_group", "volumes") => {
                let group = self.view.get::<Group>(id);
                let members = group.map(|group| group.members()).unwrap_or_default();
                let all = members.iter().filter_map(|member| self.one(target, member));
                Value::Array(all.map(Value::Object).collect())
            }
            ("policy", "qos_volumes") => by("qos_performance_policy_id"),
            ("policy", "io_limit_rule") => {
                let rule = self.view.get::<Policy>(id).map(|policy| policy.rule().to_owned());
                let rule = rule.and_then(|rule| self.one(target, &rule));
                rule.map_or(Value::Null, Value::Object)
            }
            ("io_limit_rule", "policies") => {
                let all = self.view.all::<Policy>().into_iter();
                let own = all.filter(|(_, policy)| policy.rule() == id);
                Value::Array(own.map(|(_, policy)| Value::Object(policy.0.clone())).collect())
            }
            (_, relation) => one(&format!("{relation}_id")),
        }
    }

    /// None of one that is in the recycle bin.
    fn volume(&self, id: &str, volume: &Volume) -> Option<Map<String, Value>> {
        let own = &volume.attributes;
        if own.contains_key("binned") {
            return None;
        }
        let used = self.array.referenced(volume.layer);
        let state = if volume.online { "Ready" } else { "Offline" };
        let mut fields = common(id, own, &volume.uuid, volume.size, volume.created);
        fields.insert("appliance_id".to_owned(), json!(appliance_of(&self.view, &volume.pool)));
        fields.insert("state".to_owned(), json!(state));
        fields.insert("state_l10n".to_owned(), json!(state));
        // It is collected every five minutes, and null before the first time.
        fields.insert("logical_used".to_owned(), if used > 0 { json!(used) } else { Value::Null });
        Some(fields)
    }

    fn snapshot(&self, id: &str, snapshot: &Snapshot) -> Map<String, Value> {
        let own = &snapshot.attributes;
        let mut fields = common(id, own, &snapshot.uuid, snapshot.size, snapshot.created);
        let pool = self.view.get::<Volume>(&snapshot.volume).map(|volume| volume.pool.clone());
        let appliance = appliance_of(&self.view, &pool.unwrap_or_default());
        fields.insert("appliance_id".to_owned(), json!(appliance));
        let used = self.array.referenced(snapshot.layer);
        fields.insert("logical_used".to_owned(), json!(used));
        fields
    }

    fn cluster(&self) -> Map<String, Value> {
        let all = appliances(&self.view);
        let address = self.array.portal().map(|portal| portal.ip().to_string());
        object(json!({
            "id": "0", "global_id": "PS0000000001", "name": "simulated",
            "management_address": address, "storage_discovery_address": address,
            "primary_appliance_id": "A1", "appliance_count": all.len(),
            "compatibility_level": 20, "state": "Configured",
            "system_time": timestamp(self.array.clock().now()),
        }))
    }

    fn job(&self, id: &str, job: &Job) -> Map<String, Value> {
        let (phase, percent, body, status) = match job.state(self.array.clock().now()) {
            JobState::Running(percent) => ("In_Progress", percent, Value::Null, Value::Null),
            JobState::Done(result) => {
                let get = |name: &str| result.get(name).cloned().unwrap_or(Value::Null);
                ("Completed", 100, get("body"), get("status"))
            }
            JobState::Failed(text) => {
                let message = json!({ "code": super::failure::UNPUBLISHED, "severity": "Error",
                    "message_l10n": text, "arguments": [] });
                ("Failed", 100, json!({ "messages": [message] }), json!("422"))
            }
        };
        object(json!({
            "id": id, "resource_action": job.method, "resource_type": "volume",
            "resource_id": null, "resource_name": null, "description_l10n": job.method,
            "state": phase.to_uppercase(), "start_time": timestamp(job.created), "phase": phase,
            "end_time": null, "progress_percentage": percent, "parent_id": null, "root_id": id,
            "user": super::USER, "response_body": body, "response_status": status,
            "step_order": 0,
        }))
    }
}

/// What a volume and a snapshot have alike.
fn common(
    id: &str,
    own: &Map<String, Value>,
    uuid: &str,
    size: u64,
    created: u64,
) -> Map<String, Value> {
    let kind = own.get("type").cloned().unwrap_or_else(|| json!("Primary"));
    let get = |name: &str| own.get(name).cloned().unwrap_or(Value::Null);
    object(json!({
        "id": id, "name": get("name"), "description": get("description"), "type": kind,
        "wwn": wwn(uuid), "nsid": null, "nguid": null, "appliance_id": null,
        "state": "Ready", "size": size, "logical_used": null,
        "node_affinity": "System_Select_At_Attach", "creation_timestamp": timestamp(created),
        "protection_policy_id": get("protection_policy_id"),
        "performance_policy_id": own.get("performance_policy_id").cloned()
            .unwrap_or_else(|| json!("default_medium")),
        "qos_performance_policy_id": get("qos_performance_policy_id"),
        "is_replication_destination": false, "migration_session_id": null,
        "metro_replication_session_id": null, "is_host_access_available": kind != "Snapshot",
        "protection_data": {
            "family_id": own.get("family_id").cloned().unwrap_or_else(|| json!(id)),
            "source_id": get("source_id"), "parent_id": get("parent_id"),
            "source_timestamp": get("source_timestamp"), "creator_type": "User",
            "expiration_timestamp": null, "copy_signature": null,
            "created_by_rule_id": null, "created_by_rule_name": null,
            "is_app_consistent": false, "is_secure": false, "creator_type_l10n": "User",
        },
        "location_history": null, "app_type": get("app_type"),
        "app_type_other": get("app_type_other"), "type_l10n": kind, "state_l10n": "Ready",
    }))
}

fn rows<R: Record>(
    view: &View,
    object: impl Fn(&R) -> Map<String, Value>,
) -> Vec<Map<String, Value>> {
    view.all::<R>().iter().map(|(_, row)| object(row)).collect()
}

fn appliance(id: &str, name: &str) -> Map<String, Value> {
    object(json!({
        "id": id, "name": name, "service_tag": format!("SIM000{id}"),
        "express_service_code": "1", "model": "PowerStore 500T", "mode": "Block",
        "node_count": 2, "is_hyper_converged": false,
    }))
}

fn software(settings: &Map<String, Value>) -> Map<String, Value> {
    let version = settings.get("version").and_then(Value::as_str).unwrap_or("4.0.0.0");
    object(json!({
        "id": "1", "is_cluster": true, "release_version": version, "build_version": version,
        "build_id": "simulated",
    }))
}

/// A member that is a text.
pub(super) fn text<'a>(object: &'a Map<String, Value>, name: &str) -> &'a str {
    object.get(name).and_then(Value::as_str).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_civil_date() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000+00:00");
        assert_eq!(timestamp(1_709_210_096_789), "2024-02-29T12:34:56.789+00:00");
        assert_eq!(timestamp(1_735_689_599_999), "2024-12-31T23:59:59.999+00:00");
    }

    #[test]
    fn every_relation_leads_to_a_resource() {
        for resource in RESOURCES {
            for (name, target) in resource.relations {
                assert!(find(target).is_some(), "{}.{name}: {target}", resource.name);
            }
        }
    }
}
