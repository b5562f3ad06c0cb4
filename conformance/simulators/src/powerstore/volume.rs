//! `/volume`: volumes, clones and snapshots, which are volumes of another type.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::failure::{Failure, SNAPSHOT_NAME, VOLUME_NAME};
use super::group::{self, Group};
use super::host;
use super::policy::Policy;
use super::resource::{appliances, text, timestamp};
use super::schema::{
    VOLUME_CLONE, VOLUME_CREATE, VOLUME_DELETE, VOLUME_MODIFY, VOLUME_REFRESH, VOLUME_RESTORE,
    VOLUME_SNAPSHOT, check,
};
use crate::core::{Array, Change, NewVolume, Snapshot, Volume};

/// Every size is a multiple of it.
const UNIT: u64 = 8192;

/// What an id or `name:` and a name lead to.
pub(super) enum Found {
    Volume(String),
    Snapshot(String),
}

/// The volume or snapshot of an id or a name.
pub(super) fn lookup(change: &Change<'_>, wanted: &str) -> Result<Found, Failure> {
    let missing = || Failure::no_volume(wanted);
    let Some(name) = wanted.strip_prefix("name:") else {
        if let Some(volume) = change.get::<Volume>(wanted) {
            let binned = volume.attributes.contains_key("binned");
            return if binned { Err(missing()) } else { Ok(Found::Volume(wanted.to_owned())) };
        }
        let snapshot = change.get::<Snapshot>(wanted);
        return snapshot.map(|_| Found::Snapshot(wanted.to_owned())).ok_or_else(missing);
    };
    let all = change.all::<Volume>();
    let mut all = all.iter().filter(|(_, one)| !one.attributes.contains_key("binned"));
    if let Some((id, _)) = all.find(|(_, one)| text(&one.attributes, "name") == name) {
        return Ok(Found::Volume(id.clone()));
    }
    let all = change.all::<Snapshot>();
    let mut all = all.iter();
    let found = all.find(|(_, one)| text(&one.attributes, "name") == name);
    found.map(|(id, _)| Found::Snapshot(id.clone())).ok_or_else(missing)
}

/// The id of a volume or clone.
pub(super) fn writable(change: &Change<'_>, wanted: &str) -> Result<String, Failure> {
    match lookup(change, wanted)? {
        Found::Volume(id) => Ok(id),
        Found::Snapshot(id) => {
            let text = format!("The operation is not allowed for the snapshot {id}");
            Err(Failure::failed(text).about(&id))
        }
    }
}

fn member<'a>(body: &'a Value, name: &str) -> &'a str {
    body.get(name).and_then(Value::as_str).unwrap_or("")
}

/// Refuses a name that is taken; a volume in the recycle bin gives its name back.
fn name_is_free(
    change: &Change<'_>,
    name: &str,
    own: &str,
    (status, code): (u16, &'static str),
) -> Result<(), Failure> {
    let same = |id: &str, attributes: &Map<String, Value>| {
        id != own && text(attributes, "name") == name && !attributes.contains_key("binned")
    };
    let taken = change.all::<Volume>().iter().any(|(id, one)| same(id, &one.attributes))
        || change.all::<Snapshot>().iter().any(|(id, one)| same(id, &one.attributes));
    if taken {
        let text = format!("The volume name is already in use: {name}");
        return Err(Failure::new(status, code, text).about(name));
    }
    Ok(())
}

const OF_VOLUME: (u16, &str) = (422, VOLUME_NAME);
const OF_SNAPSHOT: (u16, &str) = (400, SNAPSHOT_NAME);

fn sized(body: &Value) -> Result<Option<u64>, Failure> {
    let Some(size) = body.get("size").and_then(Value::as_u64) else { return Ok(None) };
    if !size.is_multiple_of(UNIT) {
        let text = format!("The size {size} is not a multiple of {UNIT}");
        return Err(Failure::failed(text).about("size"));
    }
    Ok(Some(size))
}

/// The members of a body that are kept as they are.
fn kept(change: &Change<'_>, body: &Value, into: &mut Map<String, Value>) -> Result<(), Failure> {
    for name in ["name", "description", "app_type", "app_type_other", "performance_policy_id"] {
        if let Some(value) = body.get(name).filter(|value| !value.is_null()) {
            into.insert(name.to_owned(), value.clone());
        }
    }
    let wanted = member(body, "qos_performance_policy_id");
    if body.get("qos_performance_policy_id").is_some() {
        let policy =
            if wanted.is_empty() { Value::Null } else { json!(Policy::id(change, wanted)?) };
        into.insert("qos_performance_policy_id".to_owned(), policy);
    }
    // There are no protection policies here but those that a test writes.
    match body.get("protection_policy_id") {
        Some(Value::String(id)) if !id.is_empty() => {
            return Err(Failure::no_instance("policy", id));
        }
        Some(_) => {
            into.insert("protection_policy_id".to_owned(), Value::Null);
        }
        None => {}
    }
    Ok(())
}

/// Maps and groups a new volume, where the request asks for it.
fn joined(change: &mut Change<'_>, id: &str, body: &Value) -> Result<(), Failure> {
    if !member(body, "host_id").is_empty() || !member(body, "host_group_id").is_empty() {
        host::attach(change, id, body)?;
    }
    match member(body, "volume_group_id") {
        "" => Ok(()),
        group => group::join(change, group, &[id.to_owned()]),
    }
}

fn pool(change: &Change<'_>, wanted: &str) -> Result<String, Failure> {
    let all = appliances(&change.view());
    let found = match wanted.strip_prefix("name:") {
        _ if wanted.is_empty() => all.first(),
        Some(name) => all.iter().find(|(_, pool)| pool == name),
        None => all.iter().find(|(id, _)| id == wanted),
    };
    let pool = found.map(|(_, pool)| pool.clone());
    pool.ok_or_else(|| Failure::no_instance("appliance", wanted))
}

fn has_room(change: &Change<'_>, pool: &str) -> Result<(), Failure> {
    if change.space(pool)?.free() == 0 {
        return Err(Failure::failed(format!("Insufficient space on appliance {pool}")));
    }
    Ok(())
}

pub(super) fn create(array: &Array, body: &Value) -> Result<Value, Failure> {
    check(VOLUME_CREATE, body)?;
    let size = sized(body)?.unwrap_or(0);
    let id = Uuid::new_v4().to_string();
    array.change(|change| {
        name_is_free(change, member(body, "name"), "", OF_VOLUME)?;
        let pool = pool(change, member(body, "appliance_id"))?;
        has_room(change, &pool)?;
        let mut new = NewVolume::thin(&pool, size);
        kept(change, body, &mut new.attributes)?;
        new.attributes.insert("type".to_owned(), json!("Primary"));
        new.attributes.insert("family_id".to_owned(), json!(id));
        change.create_volume(&id, new)?;
        joined(change, &id, body)
    })?;
    Ok(json!({ "id": id }))
}

pub(super) fn modify(array: &Array, id: &str, body: &Value) -> Result<Value, Failure> {
    check(VOLUME_MODIFY, body)?;
    let size = sized(body)?;
    array.change(|change| match lookup(change, id)? {
        Found::Volume(id) => {
            let mut volume = change.volume(&id)?;
            if !member(body, "name").is_empty() {
                name_is_free(change, member(body, "name"), &id, OF_VOLUME)?;
            }
            kept(change, body, &mut volume.attributes)?;
            let now = volume.size;
            change.put::<_, Failure>(&id, &volume)?;
            match size {
                Some(size) if size > now => Ok(change.resize(&id, size)?),
                Some(size) => {
                    let text = format!("The new size {size} must be larger than {now}");
                    Err(Failure::failed(text).about("size"))
                }
                None => Ok(()),
            }
        }
        Found::Snapshot(id) => {
            let mut snapshot = change.snapshot(&id)?;
            if size.is_some() {
                return Err(Failure::failed("A snapshot cannot be resized").about(&id));
            }
            if !member(body, "name").is_empty() {
                name_is_free(change, member(body, "name"), &id, OF_SNAPSHOT)?;
            }
            kept(change, body, &mut snapshot.attributes)?;
            change.put(&id, &snapshot)
        }
    })?;
    Ok(Value::Null)
}

pub(super) fn delete(array: &Array, id: &str, body: &Value) -> Result<Value, Failure> {
    check(VOLUME_DELETE, body)?;
    let bin = body.get("immediate") == Some(&Value::Bool(false));
    array.change(|change| match lookup(change, id)? {
        Found::Snapshot(id) => {
            let set = text(&change.snapshot(&id)?.attributes, "set").to_owned();
            if !set.is_empty() {
                let text = format!("Snapshot {id} is a member of the snapshot set {set}");
                return Err(Failure::failed(text).about(&id));
            }
            Ok(change.delete_snapshot(&id)?)
        }
        Found::Volume(id) => remove(change, &id, bin),
    })?;
    Ok(Value::Null)
}

/// Removes a volume with its snapshots, as the vendor does.
pub(super) fn remove(change: &mut Change<'_>, id: &str, bin: bool) -> Result<(), Failure> {
    host::unattached(change, id)?;
    let mut volume = change.volume(id)?;
    let refuse = |text: String| Err(Failure::failed(text).about(id));
    if !text(&volume.attributes, "protection_policy_id").is_empty() {
        return refuse(format!("Volume {id} has a protection policy"));
    }
    if change.all::<Group>().iter().any(|(_, group)| group.members().iter().any(|one| one == id)) {
        return refuse(format!("Volume {id} is a member of a volume group"));
    }
    let snapshots = change.snapshots_of(id);
    if snapshots.iter().any(|(_, one)| !text(&one.attributes, "set").is_empty()) {
        return refuse(format!("Volume {id} has snapshots that are part of a snapshot set"));
    }
    if bin {
        let now = change.now();
        volume.attributes.insert("binned".to_owned(), json!(now));
        return change.put(id, &volume);
    }
    for (snapshot, _) in snapshots {
        change.delete_snapshot(&snapshot)?;
    }
    Ok(change.delete_volume(id)?)
}

/// Takes a snapshot. `set` is the set that it is part of.
pub(super) fn take(
    change: &mut Change<'_>,
    volume: &str,
    body: &Value,
    set: Option<&str>,
) -> Result<String, Failure> {
    let now = timestamp(change.now());
    let name = match member(body, "name") {
        "" => format!("snapshot.{}.{now}", change.number("snapshot_name")?),
        name => name.to_owned(),
    };
    name_is_free(change, &name, "", OF_SNAPSHOT)?;
    let of = change.volume(volume)?;
    let id = Uuid::new_v4().to_string();
    let mut attributes = Map::new();
    kept(change, body, &mut attributes)?;
    attributes.insert("name".to_owned(), json!(name));
    attributes.insert("type".to_owned(), json!("Snapshot"));
    attributes.insert("family_id".to_owned(), json!(text(&of.attributes, "family_id")));
    attributes.insert("source_id".to_owned(), json!(volume));
    attributes.insert("parent_id".to_owned(), json!(volume));
    attributes.insert("source_timestamp".to_owned(), json!(now));
    if let Some(set) = set {
        attributes.insert("set".to_owned(), json!(set));
    }
    change.create_snapshot(volume, &id, attributes)?;
    Ok(id)
}

pub(super) fn snapshot(array: &Array, id: &str, body: &Value) -> Result<Value, Failure> {
    check(VOLUME_SNAPSHOT, body)?;
    let id = array.change(|change| {
        let volume = writable(change, id)?;
        take(change, &volume, body, None)
    })?;
    Ok(json!({ "id": id }))
}

pub(super) fn clone(array: &Array, id: &str, body: &Value) -> Result<Value, Failure> {
    check(VOLUME_CLONE, body)?;
    let id = array.change(|change| copy(change, id, body))?;
    Ok(json!({ "id": id }))
}

/// Makes a clone, and answers its id.
pub(super) fn copy(change: &mut Change<'_>, id: &str, body: &Value) -> Result<String, Failure> {
    let new_id = Uuid::new_v4().to_string();
    let now = timestamp(change.now());
    let (source, of, size) = match lookup(change, id)? {
        Found::Volume(id) => {
            let size = change.volume(&id)?.size;
            (id.clone(), id, size)
        }
        Found::Snapshot(id) => {
            let snapshot = change.snapshot(&id)?;
            (id, snapshot.volume, snapshot.size)
        }
    };
    let of = change.volume(&of)?;
    has_room(change, &of.pool)?;
    let name = match member(body, "name") {
        "" => format!("clone.{}.{now}", change.number("clone_name")?),
        name => name.to_owned(),
    };
    name_is_free(change, &name, "", OF_VOLUME)?;
    let mut new = NewVolume::thin(&of.pool, size);
    // Without one of its own it has that of its source.
    for own in ["description", "app_type", "app_type_other"] {
        if let Some(value) = of.attributes.get(own) {
            new.attributes.insert(own.to_owned(), value.clone());
        }
    }
    kept(change, body, &mut new.attributes)?;
    new.attributes.insert("name".to_owned(), json!(name));
    new.attributes.insert("type".to_owned(), json!("Clone"));
    let family = text(&of.attributes, "family_id");
    new.attributes.insert("family_id".to_owned(), json!(family));
    new.attributes.insert("source_id".to_owned(), json!(source));
    new.attributes.insert("parent_id".to_owned(), json!(source));
    new.attributes.insert("source_timestamp".to_owned(), json!(now));
    change.clone_volume(&source, &new_id, new, false)?;
    joined(change, &new_id, body)?;
    Ok(new_id)
}

/// Puts a volume to the content of another object of its family.
fn put_to(
    array: &Array,
    id: &str,
    body: &Value,
    source: &str,
    immediate: bool,
) -> Result<Value, Failure> {
    let backup = array.change(|change| {
        let id = writable(change, id)?;
        let family = text(&change.volume(&id)?.attributes, "family_id").to_owned();
        let wrong = |text: &str| Err(Failure::failed(text.to_owned()).about(source));
        let (source, mut made) = match lookup(change, source)? {
            Found::Snapshot(snapshot) => {
                let own = change.snapshot(&snapshot)?;
                if immediate && own.volume != id {
                    return wrong("A volume can only be restored from one of its own snapshots");
                }
                if text(&own.attributes, "family_id") != family {
                    return wrong("The source is not of the same family");
                }
                (snapshot, None)
            }
            Found::Volume(_) if immediate => return wrong("The source is not a snapshot"),
            Found::Volume(other) => {
                if text(&change.volume(&other)?.attributes, "family_id") != family {
                    return wrong("The source is not of the same family");
                }
                let taken = take(change, &other, &json!({}), None)?;
                (taken.clone(), Some(taken))
            }
        };
        let backup = if body.get("create_backup_snap") == Some(&Value::Bool(false)) {
            None
        } else {
            let profile = body.get("backup_snap_profile").cloned().unwrap_or_else(|| json!({}));
            Some(take(change, &id, &profile, None)?)
        };
        change.restore(&id, &source)?;
        if let Some(made) = made.take() {
            change.delete_snapshot(&made)?;
        }
        let now = timestamp(change.now());
        let mut volume = change.volume(&id)?;
        volume.attributes.insert("source_timestamp".to_owned(), json!(now));
        change.put::<_, Failure>(&id, &volume)?;
        Ok(backup)
    })?;
    Ok(match backup {
        Some(id) => json!({ "backup_snapshot_id": id }),
        None => Value::Null,
    })
}

pub(super) fn restore(array: &Array, id: &str, body: &Value) -> Result<Value, Failure> {
    check(VOLUME_RESTORE, body)?;
    put_to(array, id, body, member(body, "from_snap_id"), true)
}

pub(super) fn refresh(array: &Array, id: &str, body: &Value) -> Result<Value, Failure> {
    check(VOLUME_REFRESH, body)?;
    put_to(array, id, body, member(body, "from_object_id"), false)
}
