//! FlexVols and their snapshots: `/storage/volumes`.

use serde_json::{Value, json};

use super::failure::Failure;
use super::objects::{Container, Map, new_uuid, parts, time};
use super::query::Query;
use super::schema::{Body, SNAPSHOT_CREATE, SNAPSHOT_MODIFY, VOLUME_CREATE, VOLUME_MODIFY};
use super::system::{AGGREGATE, Answer, Said, by_job, svm, svm_of};
use crate::core::{Array, Change, Effect, Pool, Snapshot, View, Volume};

pub(super) const FIELDS: &[&str] = &[
    "uuid",
    "name",
    "comment",
    "size",
    "state",
    "style",
    "type",
    "svm.name",
    "svm.uuid",
    "aggregates.name",
    "aggregates.uuid",
    "create_time",
    "guarantee.type",
    "space.size",
    "space.available",
    "space.used",
    "space.afs_total",
    "is_svm_root",
];
pub(super) const SNAPSHOT_FIELDS: &[&str] =
    &["uuid", "name", "comment", "create_time", "volume.name", "volume.uuid", "size", "svm.name"];

/// Most snapshots of a FlexVol.
const SNAPSHOTS: u64 = 1023;

/// What a FlexVol that the array was started with has, beside its size.
pub(super) fn furnish(pool: &Pool, now: u64) -> Option<Pool> {
    if pool.attributes.contains_key("uuid") {
        return None;
    }
    let mut pool = pool.clone();
    pool.attributes.insert("uuid".to_owned(), json!(new_uuid()));
    pool.attributes.insert("created".to_owned(), json!(now));
    Some(pool)
}

fn text<'a>(pool: &'a Pool, name: &str) -> &'a str {
    pool.attributes.get(name).and_then(Value::as_str).unwrap_or("")
}

fn record(array: &Array, name: &str, pool: &Pool) -> Option<Value> {
    let space = array.space(name).ok()?;
    let created = pool.attributes.get("created").and_then(Value::as_u64).unwrap_or(0);
    Some(json!({
        "uuid": text(pool, "uuid"), "name": name, "comment": text(pool, "comment"),
        "size": pool.capacity, "state": "online", "style": "flexvol", "type": "rw",
        "svm": svm(array), "aggregates": [{ "name": AGGREGATE }], "is_svm_root": false,
        "create_time": time(created), "guarantee": { "type": "none" },
        "space": {
            "size": pool.capacity, "available": space.free(), "afs_total": pool.capacity,
            "used": space.used + space.reserved,
        },
    }))
}

pub(super) fn query(array: &Array, query: &Query) -> Said {
    let all = array.view().all::<Pool>().into_iter();
    let chosen = all.filter(|(name, _)| query.may_be("name", name));
    let records = chosen.filter_map(|(name, pool)| {
        let record = record(array, &name, &pool)?;
        Some((name, record))
    });
    (200, query.page("/api/storage/volumes", false, records.collect()))
}

fn find(view: &View, uuid: &str) -> Result<(String, Pool), Failure> {
    let missing = || Failure::new(404, "917927", "The specified volume was not found.").at("uuid");
    let mut all = view.all::<Pool>().into_iter();
    let (name, pool) = all.find(|(_, pool)| text(pool, "uuid") == uuid).ok_or_else(missing)?;
    Ok((name, (*pool).clone()))
}

pub(super) fn get(array: &Array, uuid: &str, query: &Query) -> Answer {
    let (name, pool) = find(&array.view(), uuid)?;
    let record = record(array, &name, &pool).ok_or_else(|| Failure::missing("uuid"))?;
    Ok((200, query.shown(record, true)))
}

pub(super) fn create(
    array: &Array,
    body: &[u8],
    query: &Query,
    tunnel: bool,
    effect: Option<&Effect>,
) -> Answer {
    let body = &Body::read(body, VOLUME_CREATE)?;
    svm_of(array, body, tunnel)?;
    let name = body.text("name").unwrap_or_default();
    let good = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if !name.chars().all(good) || name.starts_with(|c: char| c.is_ascii_digit()) {
        let text = "A volume name has letters, digits and \"_\", and begins with no digit.";
        return Err(Failure::new(400, "917888", text).at("name"));
    }
    let aggregates = body.list("aggregates");
    if !aggregates.iter().any(|one| one.get("name") == Some(&json!(AGGREGATE))) {
        let text = "The specified aggregate was not found.";
        return Err(Failure::new(400, "787140", text).at("aggregates.name"));
    }
    by_job(array, "POST /api/storage/volumes", query, effect, 201, |change| {
        if change.get::<Pool>(name).is_some() {
            let text = format!("Volume \"{name}\" already exists.");
            return Err(Failure::new(409, "917835", text).at("name"));
        }
        let capacity = body.number("size").unwrap_or(0);
        let pool = Pool { capacity, attributes: serde_json::Map::new() };
        let mut pool = furnish(&pool, change.now()).unwrap_or(pool);
        pool.attributes.insert("comment".to_owned(), json!(body.text("comment").unwrap_or("")));
        change.put::<_, Failure>(name, &pool)?;
        Ok(Some(json!({ "uuid": text(&pool, "uuid"), "name": name })))
    })
}

pub(super) fn modify(
    array: &Array,
    uuid: &str,
    body: &[u8],
    query: &Query,
    effect: Option<&Effect>,
) -> Answer {
    let body = &Body::read(body, VOLUME_MODIFY)?;
    by_job(array, "PATCH /api/storage/volumes", query, effect, 200, |change| {
        let (name, mut pool) = find(&change.view(), uuid)?;
        pool.capacity = body.number("size").unwrap_or(pool.capacity);
        if let Some(comment) = body.text("comment") {
            pool.attributes.insert("comment".to_owned(), json!(comment));
        }
        change.put::<_, Failure>(&name, &pool)?;
        Ok(None)
    })
}

/// The LUNs of a FlexVol.
fn luns(change: &Change<'_>, volume: &str) -> Vec<String> {
    let all = change.all::<Volume>().into_iter();
    let own = all.filter(|(path, _)| parts(path).is_some_and(|(name, ..)| name == volume));
    own.map(|(path, _)| path).collect()
}

pub(super) fn delete(array: &Array, uuid: &str, query: &Query, effect: Option<&Effect>) -> Answer {
    by_job(array, "DELETE /api/storage/volumes", query, effect, 200, |change| {
        let (name, _) = find(&change.view(), uuid)?;
        let own = luns(change, &name);
        if change.all::<Map>().iter().any(|(_, map)| own.contains(&map.lun)) {
            let text = format!("Volume \"{name}\" has LUNs that are mapped.");
            return Err(Failure::new(400, "917858", text));
        }
        let containers: Vec<String> = change
            .all::<Container>()
            .into_iter()
            .filter(|(_, own)| own.volume == name)
            .map(|(path, _)| path)
            .collect();
        for container in containers {
            drop_snapshot(change, &container)?;
        }
        for lun in own {
            change.delete_volume(&lun)?;
        }
        change.remove::<Pool>(&name);
        Ok(None)
    })
}

fn container(view: &View, path: &str, own: &Container) -> Value {
    let uuid = super::system::pool_uuid(view, &own.volume);
    json!({
        "uuid": own.uuid, "name": own.name, "comment": own.comment, "size": 0,
        "create_time": time(own.created), "volume": { "name": own.volume, "uuid": uuid },
        "_links": { "self": { "href": format!("/api/storage/volumes/{uuid}/snapshots/{path}") } },
    })
}

pub(super) fn snapshots(array: &Array, uuid: &str, query: &Query) -> Answer {
    let view = array.view();
    let (volume, _) = find(&view, uuid)?;
    let all = view.all::<Container>().into_iter().filter(|(_, own)| own.volume == volume);
    let records = all.map(|(path, own)| (own.name.clone(), container(&view, &path, &own)));
    let path = format!("/api/storage/volumes/{uuid}/snapshots");
    Ok((200, query.page(&path, false, records.collect())))
}

pub(super) fn get_snapshot(array: &Array, volume: &str, id: &str, query: &Query) -> Answer {
    let view = array.view();
    let (path, own) = known(&view, volume, id)?;
    Ok((200, query.shown(container(&view, &path, &own), true)))
}

fn known(view: &View, volume: &str, id: &str) -> Result<(String, Container), Failure> {
    let (volume, _) = find(view, volume)?;
    let mut all = view.all::<Container>().into_iter();
    let found = all.find(|(_, own)| own.volume == volume && own.uuid == id);
    let (path, own) = found.ok_or_else(|| Failure::missing("snapshot.uuid"))?;
    Ok((path, (*own).clone()))
}

fn snapshot_path(volume: &str, name: &str) -> String {
    format!("/vol/{volume}/.snapshot/{name}")
}

pub(super) fn create_snapshot(
    array: &Array,
    uuid: &str,
    body: &[u8],
    query: &Query,
    effect: Option<&Effect>,
) -> Answer {
    let body = &Body::read(body, SNAPSHOT_CREATE)?;
    let name = body.text("name").unwrap_or_default();
    let good = |c: char| c.is_ascii_graphic() && !"/*?\\:\"<>|".contains(c);
    if !name.chars().all(good) {
        return Err(Failure::new(400, "1638477", "The snapshot name is invalid.").at("name"));
    }
    by_job(array, "POST /api/storage/volumes/snapshots", query, effect, 201, |change| {
        let (volume, _) = find(&change.view(), uuid)?;
        let path = snapshot_path(&volume, name);
        if change.get::<Container>(&path).is_some() {
            let text = format!("Snapshot copy \"{name}\" already exists.");
            return Err(Failure::new(409, "525059", text).at("name"));
        }
        let there = change.all::<Container>();
        let there = there.iter().filter(|(_, own)| own.volume == volume).count() as u64;
        change.within("snapshots_per_volume", there)?;
        if there >= SNAPSHOTS {
            let text = "No more Snapshot copies can be created in the volume.";
            return Err(Failure::new(400, "525062", text));
        }
        // In one change: all LUNs at one instant.
        for lun in luns(change, &volume) {
            let (_, _, own) = parts(&lun).unwrap_or(("", None, ""));
            let attributes = change.volume(&lun)?.attributes;
            change.create_snapshot(&lun, &format!("{path}/{own}"), attributes)?;
        }
        let own = Container {
            volume: volume.clone(),
            name: name.to_owned(),
            uuid: new_uuid(),
            comment: body.text("comment").unwrap_or("").to_owned(),
            created: change.now(),
        };
        change.put::<_, Failure>(&path, &own)?;
        Ok(Some(container(&change.view(), &path, &own)))
    })
}

fn drop_snapshot(change: &mut Change<'_>, path: &str) -> Result<(), Failure> {
    let below = format!("{path}/");
    let all = change.view().starting::<Snapshot>(&below);
    for (key, _) in all {
        change.delete_snapshot(&key)?;
    }
    change.remove::<Container>(path);
    Ok(())
}

pub(super) fn set_snapshot(
    array: &Array,
    method: &str,
    volume: &str,
    id: &str,
    body: &[u8],
    query: &Query,
    effect: Option<&Effect>,
) -> Answer {
    let body =
        &if method == "PATCH" { Body::read(body, SNAPSHOT_MODIFY)? } else { Body::default() };
    by_job(array, method, query, effect, 200, |change| {
        let (path, mut own) = known(&change.view(), volume, id)?;
        if method == "DELETE" {
            drop_snapshot(change, &path)?;
            return Ok(None);
        }
        if let Some(comment) = body.text("comment") {
            comment.clone_into(&mut own.comment);
        }
        if let Some(name) = body.text("name") {
            let to = snapshot_path(&own.volume, name);
            if change.get::<Container>(&to).is_some() {
                let text = format!("Snapshot copy \"{name}\" already exists.");
                return Err(Failure::new(409, "525059", text).at("name"));
            }
            for (key, _) in change.view().starting::<Snapshot>(&format!("{path}/")) {
                change.rename_snapshot(&key, &key.replacen(&path, &to, 1))?;
            }
            change.remove::<Container>(&path);
            name.clone_into(&mut own.name);
            change.put::<_, Failure>(&to, &own)?;
            return Ok(None);
        }
        change.put::<_, Failure>(&path, &own)?;
        Ok(None)
    })
}
