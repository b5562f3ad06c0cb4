//! `/volume_group`: groups of volumes, and sets of snapshots that are of one instant.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::failure::Failure;
use super::policy::Policy;
use super::resource::{object, text, timestamp};
use super::schema::{
    GROUP_CLONE, GROUP_CREATE, GROUP_DELETE, GROUP_MEMBERS, GROUP_MODIFY, GROUP_SNAPSHOT, check,
};
use super::volume;
use crate::core::{Array, Change, Record, Snapshot};

/// A group, or a set of snapshots; its fields as they are answered, and its members apart.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Group(pub(super) Map<String, Value>, Vec<String>);

impl Record for Group {
    const TABLE: &'static str = "powerstore.volume_group";
}

impl Group {
    /// The ids of its volumes or snapshots.
    pub(super) fn members(&self) -> Vec<String> {
        self.1.clone()
    }

    fn is_set(&self) -> bool {
        text(&self.0, "type") == "Snapshot"
    }
}

fn find(change: &Change<'_>, wanted: &str) -> Result<(String, Group), Failure> {
    let all = change.all::<Group>();
    let is = |id: &str, group: &Group| match wanted.strip_prefix("name:") {
        // Unlike those of volumes, these names have no case.
        Some(name) => text(&group.0, "name").eq_ignore_ascii_case(name),
        None => id == wanted,
    };
    let found = all.iter().find(|(id, group)| is(id, group));
    let found = found.map(|(id, group)| (id.clone(), (**group).clone()));
    found.ok_or_else(|| Failure::no_instance("volume_group", wanted))
}

fn name_is_free(change: &Change<'_>, name: &str, own: &str) -> Result<(), Failure> {
    match find(change, &format!("name:{name}")) {
        Ok((id, _)) if id != own => {
            let text = format!("The volume group name {name} is already in use");
            Err(Failure::failed(text).about(name))
        }
        _ => Ok(()),
    }
}

fn texts(body: &Value, name: &str) -> Vec<String> {
    let all = body.get(name).and_then(Value::as_array).into_iter().flatten();
    all.filter_map(|one| one.as_str().map(str::to_owned)).collect()
}

/// Adds volumes to a group: each is in one at most, and all are on one appliance.
pub(super) fn join(change: &mut Change<'_>, group: &str, ids: &[String]) -> Result<(), Failure> {
    let (id, mut group) = find(change, group)?;
    if group.is_set() {
        return Err(Failure::failed("Members cannot be added to a snapshot set").about(&id));
    }
    for wanted in ids {
        let volume = volume::writable(change, wanted)?;
        let all = change.all::<Group>();
        if all.iter().any(|(_, other)| other.1.contains(&volume)) || group.1.contains(&volume) {
            let text = format!("Volume {volume} is a member of a volume group already");
            return Err(Failure::failed(text).about(&volume));
        }
        let pool = change.volume(&volume)?.pool;
        if let Some(first) = group.1.first()
            && change.volume(first)?.pool != pool
        {
            let text = "All members of a volume group must be on the same appliance";
            return Err(Failure::failed(text).about(&volume));
        }
        group.1.push(volume);
    }
    change.put(&id, &group)
}

fn fields(
    id: &str,
    name: &str,
    kind: &str,
    body: &Value,
    now: u64,
    source: &Value,
) -> Map<String, Value> {
    let ordered = body.get("is_write_order_consistent").and_then(Value::as_bool).unwrap_or(true);
    object(json!({
        "id": id, "name": name, "description": body.get("description"),
        "creation_timestamp": timestamp(now), "is_protectable": true,
        "protection_policy_id": null, "qos_performance_policy_id": null,
        "is_write_order_consistent": ordered, "placement_rule": "Same_Appliance", "type": kind,
        "is_replication_destination": false,
        "protection_data": { "source_id": source, "parent_id": source, "family_id": source,
            "creator_type": "User", "source_timestamp": timestamp(now) },
        "is_importing": false, "type_l10n": kind,
    }))
}

pub(super) fn create(array: &Array, body: &Value) -> Result<Value, Failure> {
    check(GROUP_CREATE, body)?;
    let id = Uuid::new_v4().to_string();
    let name = body.get("name").and_then(Value::as_str).unwrap_or("");
    array.change(|change| {
        name_is_free(change, name, "")?;
        let fields = fields(&id, name, "Primary", body, change.now(), &Value::Null);
        change.put::<_, Failure>(&id, &Group(fields, Vec::new()))?;
        policy(change, &id, body)?;
        join(change, &id, &texts(body, "volume_ids"))
    })?;
    Ok(json!({ "id": id }))
}

fn policy(change: &mut Change<'_>, id: &str, body: &Value) -> Result<(), Failure> {
    let Some(wanted) = body.get("qos_performance_policy_id") else { return Ok(()) };
    let (id, mut group) = find(change, id)?;
    let policy = match wanted.as_str().unwrap_or("") {
        "" => Value::Null,
        wanted => json!(Policy::id(change, wanted)?),
    };
    group.0.insert("qos_performance_policy_id".to_owned(), policy);
    change.put(&id, &group)
}

pub(super) fn modify(array: &Array, id: &str, body: &Value) -> Result<Value, Failure> {
    check(GROUP_MODIFY, body)?;
    array.change(|change| {
        let (id, mut group) = find(change, id)?;
        if let Some(name) = body.get("name").and_then(Value::as_str) {
            name_is_free(change, name, &id)?;
        }
        for name in ["name", "description", "is_write_order_consistent"] {
            if let Some(value) = body.get(name) {
                group.0.insert(name.to_owned(), value.clone());
            }
        }
        change.put::<_, Failure>(&id, &group)?;
        policy(change, &id, body)
    })?;
    Ok(Value::Null)
}

pub(super) fn members(array: &Array, id: &str, body: &Value, add: bool) -> Result<Value, Failure> {
    check(GROUP_MEMBERS, body)?;
    let ids = texts(body, "volume_ids");
    if ids.is_empty() {
        return Err(Failure::invalid("volume_ids is empty").about("volume_ids"));
    }
    array.change(|change| {
        if add {
            return join(change, id, &ids);
        }
        let (id, mut group) = find(change, id)?;
        if group.is_set() {
            return Err(Failure::failed("Members cannot be removed from a snapshot set").about(&id));
        }
        for wanted in &ids {
            let volume = volume::writable(change, wanted)?;
            if !group.1.contains(&volume) {
                let text = format!("Volume {volume} is not a member of the volume group");
                return Err(Failure::failed(text).about(&volume));
            }
            group.1.retain(|one| *one != volume);
        }
        change.put(&id, &group)
    })?;
    Ok(Value::Null)
}

/// What a member of a set or a clone is called: no document says it.
fn member_name(name: &str, number: usize) -> String {
    format!("{}.{}", name.chars().take(120).collect::<String>(), number + 1)
}

/// All members at one instant: one change.
pub(super) fn snapshot(array: &Array, id: &str, body: &Value) -> Result<Value, Failure> {
    check(GROUP_SNAPSHOT, body)?;
    let set = Uuid::new_v4().to_string();
    let name = body.get("name").and_then(Value::as_str).unwrap_or("");
    array.change(|change| {
        let (id, group) = find(change, id)?;
        name_is_free(change, name, "")?;
        if group.is_set() || group.1.is_empty() {
            return Err(Failure::failed("The volume group has nothing to snapshot").about(&id));
        }
        let mut taken = Vec::new();
        for (number, member) in group.1.iter().enumerate() {
            let own = json!({ "name": member_name(name, number) });
            taken.push(volume::take(change, member, &own, Some(&set))?);
        }
        let fields = fields(&set, name, "Snapshot", body, change.now(), &json!(id));
        change.put::<_, Failure>(&set, &Group(fields, taken))
    })?;
    Ok(json!({ "id": set }))
}

/// Clones of all members at one instant, in a group of their own.
pub(super) fn clone(array: &Array, id: &str, body: &Value) -> Result<Value, Failure> {
    check(GROUP_CLONE, body)?;
    let made = Uuid::new_v4().to_string();
    let name = body.get("name").and_then(Value::as_str).unwrap_or("");
    array.change(|change| {
        let (id, group) = find(change, id)?;
        name_is_free(change, name, "")?;
        let mut clones = Vec::new();
        for (number, member) in group.1.iter().enumerate() {
            let own = json!({ "name": member_name(name, number) });
            clones.push(volume::copy(change, member, &own)?);
        }
        let fields = fields(&made, name, "Clone", body, change.now(), &json!(id));
        change.put::<_, Failure>(&made, &Group(fields, clones))
    })?;
    Ok(json!({ "id": made }))
}

pub(super) fn delete(array: &Array, id: &str, body: &Value) -> Result<Value, Failure> {
    check(GROUP_DELETE, body)?;
    let with_members = body.get("delete_members") == Some(&Value::Bool(true));
    array.change(|change| {
        let (id, group) = find(change, id)?;
        remove_set_or_group(change, &id, &group)?;
        if !group.is_set() {
            // Its snapshot sets go with it.
            for (set, other) in change.all::<Group>() {
                let data = other.0.get("protection_data").and_then(|data| data.get("source_id"));
                if data.and_then(Value::as_str) == Some(&id) {
                    remove_set_or_group(change, &set, &other)?;
                }
            }
            for member in group.1.iter().filter(|_| with_members) {
                volume::remove(change, member, false)?;
            }
        }
        Ok::<_, Failure>(())
    })?;
    Ok(Value::Null)
}

fn remove_set_or_group(change: &mut Change<'_>, id: &str, group: &Group) -> Result<(), Failure> {
    change.remove::<Group>(id);
    for snapshot in group.1.iter().filter(|_| group.is_set()) {
        if change.get::<Snapshot>(snapshot).is_some() {
            change.delete_snapshot(snapshot)?;
        }
    }
    Ok(())
}
