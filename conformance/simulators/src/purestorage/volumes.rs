//! Volumes: made, copied, overwritten, resized, renamed; destroyed, brought back and eradicated.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::failure::{Refused, each};
use super::objects::{
    Connection, Group, More, change_snapshot, change_volume, check_name, connected, id, named,
    reference, serial, snapshot_of, volume_of,
};
use super::request::{Request, Sorted, done};
use super::snapshots;
use crate::core::{Array, Change, NewVolume, Snapshot, View, Volume};
use crate::http::Say;

/// A size is a multiple of it, and at least this.
const SECTOR: u64 = 512;
const SMALLEST: u64 = 1 << 20;

/// How long a destroyed object is kept: `eradication_delay`, 24 hours.
pub(super) fn delay(array: &Array) -> u64 {
    let settings = array.settings();
    settings.vendor.get("eradication_delay").and_then(Value::as_u64).unwrap_or(86_400_000)
}

/// The time that is left of a destroyed object.
pub(super) fn remaining(array: &Array, destroyed: Option<u64>) -> Value {
    let now = array.clock().now();
    destroyed.map_or(Value::Null, |at| json!((at + delay(array)).saturating_sub(now)))
}

/// Whether the array is set (SafeMode) to let nobody eradicate.
pub(super) fn may_eradicate(array: &Array, what: &str) -> Result<(), Refused> {
    let manual = array.settings().vendor.get("manual_eradication").cloned();
    if manual == Some(Value::Bool(false)) {
        return Err(Refused::of("Manual eradication is disabled.", what));
    }
    Ok(())
}

fn show(array: &Array, name: &str, volume: &Volume, connections: u64) -> Value {
    let more = More::of(&volume.attributes);
    let (own, all) = (array.own(volume.layer), array.referenced(volume.layer));
    json!({
        "id": id(&volume.uuid), "name": name, "provisioned": volume.size,
        "created": volume.created, "serial": serial(&volume.uuid), "subtype": "regular",
        "destroyed": more.destroyed.is_some(), "time_remaining": remaining(array, more.destroyed),
        "connection_count": connections, "qos": more.qos,
        "source": more.source.unwrap_or_else(|| json!({"id": null, "name": null})),
        "space": {
            "unique": own, "total_physical": own, "total_provisioned": volume.size,
            "virtual": all, "snapshots": 0, "shared": null, "data_reduction": 1.0,
            "thin_provisioning": 0.0, "total_reduction": 1.0, "system": 0,
        },
        "pod": {"id": null, "name": null}, "volume_group": {"id": null, "name": null},
        "host_encryption_key_status": "none", "promotion_status": "promoted",
        "requested_promotion_state": "promoted",
        "priority": 0,
        "priority_adjustment":
            {"priority_adjustment_operator": "+", "priority_adjustment_value": 0},
    })
}

fn shown(array: &Array, view: &View, name: &str) -> Result<Value, Refused> {
    let volume = view.get::<Volume>(name);
    let volume = volume.ok_or_else(|| Refused::of("Volume does not exist.", name))?;
    Ok(show(array, name, &volume, connected(view).get(name).copied().unwrap_or(0)))
}

/// The names that are asked for, or all.
pub(super) fn chosen(
    request: &Request<'_>,
    view: &View,
    find: fn(&View, &str, bool) -> Result<String, Refused>,
    all: impl FnOnce() -> Vec<String>,
) -> Result<Vec<String>, Refused> {
    match (request.list("names"), request.list("ids")) {
        (names, _) if !names.is_empty() => each(&names, |name| find(view, name, false)),
        (_, ids) if !ids.is_empty() => each(&ids, |one| find(view, one, true)),
        _ => Ok(all()),
    }
}

pub(super) fn list(request: &Request<'_>) -> Result<Say, Refused> {
    let (array, view) = (request.array, request.array.view());
    let keys = || view.all::<Volume>().into_iter().map(|(key, _)| key).collect();
    let names = chosen(request, &view, volume_of, keys)?;
    let connections = connected(&view);
    let wanted = request.flag("destroyed");
    let items = names.into_iter().filter_map(|name| {
        let volume = view.get::<Volume>(&name)?;
        let destroyed = More::of(&volume.attributes).destroyed.is_some();
        if wanted.is_some_and(|wanted| wanted != destroyed) {
            return None;
        }
        let count = connections.get(&name).copied().unwrap_or(0);
        Some((name.clone(), show(array, &name, &volume, count)))
    });
    request.page(items.collect::<Vec<Sorted>>())
}

/// What a copy is made of: the key of a volume or snapshot that is not destroyed.
fn source(view: &View, wanted: &Value) -> Result<(String, bool), Refused> {
    let text = |name: &str| wanted.get(name).and_then(Value::as_str);
    let (name, by_id) = match (text("id"), text("name")) {
        (Some(id), _) => (id, true),
        (None, Some(name)) => (name, false),
        (None, None) => return Err(Refused::of("A source needs a name.", "source")),
    };
    let nothing = || Refused::of("No such volume or snapshot.", name);
    if let Ok(key) = volume_of(view, name, by_id) {
        let live = view.get::<Volume>(&key).is_some_and(|volume| volume.online);
        return if live { Ok((key, false)) } else { Err(nothing()) };
    }
    let key = snapshot_of(view, name, by_id).map_err(|_| nothing())?;
    let found = view.get::<Snapshot>(&key);
    let live = found.is_some_and(|one| More::of(&one.attributes).destroyed.is_none());
    if live { Ok((key, true)) } else { Err(nothing()) }
}

/// The volume that a copy is of, and the tags that go along.
fn inherited(
    view: &View,
    key: &str,
    is_snapshot: bool,
) -> Option<(Value, Vec<super::objects::Tag>)> {
    let (name, attributes) = if is_snapshot {
        let snapshot = view.get::<Snapshot>(key)?;
        (snapshot.volume.clone(), snapshot.attributes.clone())
    } else {
        (key.to_owned(), view.get::<Volume>(key)?.attributes.clone())
    };
    let mut tags = More::of(&attributes).tags;
    tags.retain(|tag| tag.copyable);
    let uuid = view.get::<Volume>(&name)?.uuid.clone();
    Some((reference(&uuid, &name), tags))
}

fn size(wanted: Option<u64>) -> Result<u64, Refused> {
    let size = wanted.unwrap_or(SMALLEST);
    if size < SMALLEST || !size.is_multiple_of(SECTOR) {
        return Err(Refused::of("Invalid volume size.", "provisioned"));
    }
    Ok(size)
}

pub(super) fn create(request: &Request<'_>) -> Result<Say, Refused> {
    let array = request.array;
    let overwrite = request.flag("overwrite") == Some(true);
    let provisioned = request.member("provisioned").and_then(Value::as_u64);
    let qos = request.member("qos").and_then(Value::as_object).cloned().unwrap_or_default();
    let names = request.list("names");
    each(&names, |name| {
        array.change(|change| {
            let Some(wanted) = request.member("source") else {
                if overwrite {
                    return Err(Refused::of("A source is needed to overwrite.", name));
                }
                fresh(change, name)?;
                let mut new = NewVolume::thin(&pool(change)?, size(provisioned)?);
                new.attributes = More { qos: qos.clone(), ..More::default() }.attributes();
                change.create_volume(name, new)?;
                return Ok(());
            };
            if provisioned.is_some() {
                return Err(Refused::of("A copy has the size of its source.", "provisioned"));
            }
            let (from, is_snapshot) = source(&change.view(), wanted)?;
            if overwrite {
                return overwritten(change, name, &from, is_snapshot);
            }
            copy(change, name, &from, is_snapshot, &qos)
        })
    })?;
    let view = array.current();
    let made = names.iter().map(|name| shown(array, &view, &volume_of(&view, name, false)?));
    Ok(done(made.collect::<Result<_, _>>()?))
}

/// The only pool.
fn pool(change: &Change<'_>) -> Result<String, Refused> {
    let pools = change.all::<crate::core::Pool>();
    let name = pools.into_iter().next().map(|(name, _)| name);
    let name = name.ok_or_else(|| Refused::of("Insufficient capacity.", ""))?;
    if change.space(&name)?.free() == 0 {
        return Err(Refused::of("Insufficient capacity.", &name));
    }
    Ok(name)
}

/// Whether a volume of that name can be made. A destroyed one keeps its name, and counts.
fn fresh(change: &Change<'_>, name: &str) -> Result<(), Refused> {
    check_name(name, "volume")?;
    if named::<Volume>(&change.view(), name).is_some() {
        return Err(Refused::of("Volume already exists.", name));
    }
    Ok(())
}

fn copy(
    change: &mut Change<'_>,
    name: &str,
    from: &str,
    is_snapshot: bool,
    qos: &Map<String, Value>,
) -> Result<(), Refused> {
    fresh(change, name)?;
    let view = change.view();
    let (source, tags) = inherited(&view, from, is_snapshot).unzip();
    let size = match view.get::<Snapshot>(from).filter(|_| is_snapshot) {
        Some(snapshot) => snapshot.size,
        None => change.volume(from)?.size,
    };
    let mut new = NewVolume::thin(&pool(change)?, size);
    let tags = tags.unwrap_or_default();
    new.attributes = More { source, tags, qos: qos.clone(), ..More::default() }.attributes();
    change.clone_volume(from, name, new, false)?;
    Ok(())
}

/// Puts another content into a volume; what it had is a destroyed snapshot.
fn overwritten(
    change: &mut Change<'_>,
    name: &str,
    from: &str,
    is_snapshot: bool,
) -> Result<(), Refused> {
    let view = change.view();
    let key = volume_of(&view, name, false)?;
    if !change.volume(&key)?.online {
        return Err(Refused::of("Volume has been destroyed.", name));
    }
    snapshots::undo(change, &key)?;
    if is_snapshot {
        change.restore(&key, from)?;
    } else {
        let between = format!("{key}.overwriting");
        change.create_snapshot(from, &between, Map::new())?;
        change.restore(&key, &between)?;
        change.delete_snapshot(&between)?;
    }
    let source = inherited(&view, from, is_snapshot).map(|(source, _)| source);
    change_volume(change, &key, |more| more.source = source)
}

pub(super) fn update(request: &Request<'_>) -> Result<Say, Refused> {
    let array = request.array;
    let (names, by_id) = request.targets("")?;
    let field = |name: &str| request.member(name);
    if field("pod").is_some() || field("volume_group").is_some() {
        return Err(Refused::of("Pods and volume groups are not configured.", ""));
    }
    let keys = each(&names, |name| {
        array.change(|change| {
            let mut key = volume_of(&change.view(), name, by_id)?;
            match field("destroyed").and_then(Value::as_bool) {
                Some(true) => return destroy(change, &key).map(|()| key),
                Some(false) => return recover(change, &key).map(|()| key),
                None => {}
            }
            if !change.volume(&key)?.online {
                return Err(Refused::of("Volume has been destroyed.", &key));
            }
            if let Some(size) = field("provisioned").and_then(Value::as_u64) {
                resize(change, &key, size, request.flag("truncate") == Some(true))?;
            }
            if let Some(qos) = field("qos").and_then(Value::as_object) {
                change_volume(change, &key, |more| {
                    for (name, limit) in qos {
                        more.qos.insert(name.clone(), limit.clone());
                    }
                    more.qos.retain(|_, limit| limit != "");
                })?;
            }
            if let Some(to) = field("name").and_then(Value::as_str) {
                rename(change, &key, to)?;
                to.clone_into(&mut key);
            }
            Ok(key)
        })
    })?;
    let view = array.current();
    Ok(done(keys.iter().map(|key| shown(array, &view, key)).collect::<Result<_, _>>()?))
}

fn resize(change: &mut Change<'_>, key: &str, to: u64, truncate: bool) -> Result<(), Refused> {
    let to = size(Some(to))?;
    if to < change.volume(key)?.size {
        if !truncate {
            return Err(Refused::of("Implicit truncation not permitted.", key));
        }
        snapshots::undo(change, key)?;
    }
    Ok(change.resize(key, to)?)
}

fn rename(change: &mut Change<'_>, key: &str, to: &str) -> Result<(), Refused> {
    fresh(change, to)?;
    change.rename_volume(key, to)?;
    for (old, snapshot) in change.snapshots_of(to) {
        let more = More::of(&snapshot.attributes);
        if more.part_of.is_none() {
            change.rename_snapshot(&old, &format!("{to}.{}", more.suffix))?;
        }
    }
    for (old, connection) in change.all::<Connection>() {
        if connection.volume == key {
            let moved = Connection { volume: to.to_owned(), ..(*connection).clone() };
            change.remove::<Connection>(&old);
            change.put::<_, Refused>(&Connection::key(&moved.host, to), &moved)?;
        }
    }
    for (name, group) in change.all::<Group>() {
        let mut group = (*group).clone();
        group.volumes.iter_mut().filter(|volume| *volume == key).for_each(|volume| {
            to.clone_into(volume);
        });
        change.put::<_, Refused>(&name, &group)?;
    }
    Ok(())
}

fn destroy(change: &mut Change<'_>, key: &str) -> Result<(), Refused> {
    if !change.volume(key)?.online {
        return Err(Refused::of("Volume has been destroyed.", key));
    }
    if connected(&change.view()).contains_key(key) {
        return Err(Refused::of("Volume cannot be deleted due to existing connections.", key));
    }
    let now = change.now();
    change_volume(change, key, |more| more.destroyed = Some(now))?;
    for (snapshot, _) in change.snapshots_of(key) {
        change_snapshot(change, &snapshot, |more| {
            if more.destroyed.is_none() && more.part_of.is_none() {
                more.destroyed = Some(now);
                more.with_volume = true;
            }
        })?;
    }
    Ok(())
}

fn recover(change: &mut Change<'_>, key: &str) -> Result<(), Refused> {
    if change.volume(key)?.online {
        return Err(Refused::of("Volume is not destroyed.", key));
    }
    change_volume(change, key, |more| more.destroyed = None)?;
    for (snapshot, _) in change.snapshots_of(key) {
        change_snapshot(change, &snapshot, |more| {
            if std::mem::take(&mut more.with_volume) {
                more.destroyed = None;
            }
        })?;
    }
    Ok(())
}

pub(super) fn eradicate(request: &Request<'_>) -> Result<Say, Refused> {
    let (names, by_id) = request.targets("")?;
    each(&names, |name| {
        may_eradicate(request.array, name)?;
        request.array.change(|change| {
            let key = volume_of(&change.view(), name, by_id)?;
            if change.volume(&key)?.online {
                return Err(Refused::of("Volume is not destroyed.", &key));
            }
            remove(change, &key)
        })
    })?;
    Ok(done(Vec::new()))
}

/// Removes a destroyed volume with its snapshots. Those of groups stay: they are of the group.
fn remove(change: &mut Change<'_>, key: &str) -> Result<(), Refused> {
    for (snapshot, own) in change.snapshots_of(key) {
        if More::of(&own.attributes).part_of.is_none() {
            change.delete_snapshot(&snapshot)?;
        }
    }
    Ok(change.delete_volume(key)?)
}

/// Eradicates what was destroyed long enough ago.
pub(super) fn expire(array: &Array) -> Result<(), Refused> {
    let (now, delay) = (array.clock().now(), delay(array));
    let view = array.current();
    let due = |attributes: &Map<String, Value>| {
        attributes.get("destroyed").and_then(Value::as_u64).is_some_and(|at| at + delay <= now)
    };
    let volumes: BTreeMap<_, _> = view.all::<Volume>().into_iter().collect();
    for key in volumes.iter().filter(|(_, one)| due(&one.attributes)).map(|(key, _)| key) {
        array.change(|change| remove(change, key))?;
    }
    for (key, _) in view.all::<Snapshot>().iter().filter(|(_, one)| due(&one.attributes)) {
        array.change(|change| match change.snapshot(key) {
            Ok(_) => Ok::<_, Refused>(change.delete_snapshot(key)?),
            // It went with its volume.
            Err(_) => Ok(()),
        })?;
    }
    Ok(())
}
