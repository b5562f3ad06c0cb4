//! `zfs.snapshot`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::dataset::{self, bytes, created, pool_of, property, text};
use super::failure::{EINVAL, ENOENT, Failure};
use super::objects::{Filesystem, FilesystemSnapshot};
use super::query::Query;
use super::schema::{
    self, SNAPSHOT_CLONE, SNAPSHOT_CREATE, SNAPSHOT_DELETE, SNAPSHOT_ROLLBACK, SNAPSHOT_UPDATE,
};
use crate::core::{Array, Change, NewVolume, Snapshot, View, Volume};

/// The dataset of a snapshot's id.
pub(super) fn dataset(id: &str) -> &str {
    id.split_once('@').map_or(id, |(dataset, _)| dataset)
}

/// A user property has a colon in its name.
pub(super) fn check_key(key: &str, at: &str) -> Result<(), Failure> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ":+-._".contains(c);
    if key.contains(':') && key.chars().all(good) && key.len() <= 255 {
        return Ok(());
    }
    Err(Failure::field(at, format!("'{key}' is not a valid user property"), EINVAL))
}

pub(super) fn update_user(
    user: &mut BTreeMap<String, String>,
    list: Option<&Value>,
    at: &str,
) -> Result<(), Failure> {
    for item in list.and_then(Value::as_array).into_iter().flatten() {
        let field = |name: &str| item.get(name).and_then(Value::as_str);
        let key = field("key").unwrap_or("");
        check_key(key, at)?;
        let remove = item.get("remove") == Some(&Value::Bool(true));
        match (remove, field("value")) {
            (true, Some(_)) => {
                return Err(Failure::field(
                    at,
                    "When \"value\" is set, \"remove\" cannot be",
                    EINVAL,
                ));
            }
            (true, None) => {
                user.remove(key);
            }
            (false, Some(value)) => {
                user.insert(key.to_owned(), value.to_owned());
            }
            (false, None) => {
                return Err(Failure::field(
                    at,
                    "Either \"value\" or \"remove\" is required",
                    EINVAL,
                ));
            }
        }
    }
    Ok(())
}

fn user_of(snapshot: &Snapshot) -> BTreeMap<String, String> {
    serde_json::from_value(Value::Object(snapshot.attributes.clone())).unwrap_or_default()
}

/// The ids of all snapshots.
pub(super) fn names(view: &View) -> Vec<String> {
    let mut names: Vec<String> = view.all::<Snapshot>().into_iter().map(|(id, _)| id).collect();
    names.extend(view.all::<FilesystemSnapshot>().into_iter().map(|(id, _)| id));
    names.sort_unstable();
    names
}

/// The clones that hang on each snapshot.
fn clones(view: &View) -> BTreeMap<String, Vec<String>> {
    let mut clones: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, volume) in view.all::<Volume>() {
        if let Some(origin) = &volume.origin {
            clones.entry(origin.clone()).or_default().push(name);
        }
    }
    clones
}

fn one(
    array: &Array,
    view: &View,
    clones: &BTreeMap<String, Vec<String>>,
    id: &str,
) -> Option<Value> {
    let mut properties = Map::new();
    let (user, at, order) = if let Some(snapshot) = view.get::<Snapshot>(id) {
        properties.insert("volsize".to_owned(), bytes(snapshot.size, "NONE"));
        let referenced = array.referenced(snapshot.layer);
        properties.insert("referenced".to_owned(), bytes(referenced, "NONE"));
        properties.insert("used".to_owned(), bytes(0, "NONE"));
        let clones = clones.get(id).map_or_else(String::new, |clones| clones.join(","));
        properties.insert("clones".to_owned(), property(&clones, &clones, json!(clones), "NONE"));
        (user_of(&snapshot), snapshot.created, snapshot.order)
    } else {
        let snapshot = view.get::<FilesystemSnapshot>(id)?;
        (snapshot.user.clone(), snapshot.created, snapshot.order)
    };
    properties.insert("creation".to_owned(), created(at));
    properties.insert("createtxg".to_owned(), text(&order.to_string()));
    for (key, value) in &user {
        properties.insert(key.clone(), text(value));
    }
    let (dataset, name) = id.split_once('@')?;
    Some(json!({
        "id": id, "name": id, "pool": pool_of(id), "type": "SNAPSHOT", "dataset": dataset,
        "snapshot_name": name, "createtxg": order.to_string(), "properties": properties,
    }))
}

/// A snapshot as it is now.
fn shown(array: &Array, id: &str) -> Result<Value, Failure> {
    let view = array.current();
    let found = one(array, &view, &clones(&view), id);
    found.ok_or_else(|| Failure::NoInstance(id.to_owned()))
}

pub(super) fn query(array: &Array, query: &Query) -> Result<Value, Failure> {
    let view = array.view();
    let clones = clones(&view);
    let all = match query.exactly("id").or_else(|| query.exactly("name")) {
        Some(id) => one(array, &view, &clones, id).into_iter().collect(),
        None => names(&view).iter().filter_map(|id| one(array, &view, &clones, id)).collect(),
    };
    query.run(all)
}

pub(super) fn create(array: &Array, body: &Value) -> Result<Value, Failure> {
    schema::check("snapshot_create", SNAPSHOT_CREATE, body, true)?;
    let field = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
    let (of, name) = (field("dataset"), field("name"));
    let missing = "Either name or naming schema must be specified";
    if name.is_empty() {
        return Err(Failure::field("snapshot_create.name", missing, EINVAL));
    }
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.: ".contains(c);
    if !name.chars().all(good) || of.len() + 1 + name.len() > 255 {
        return Err(Failure::field("snapshot_create.name", "Invalid snapshot name", EINVAL));
    }
    let user = match body.get("properties") {
        Some(Value::Object(properties)) => properties.clone(),
        _ => Map::new(),
    };
    for key in user.keys() {
        check_key(key, "snapshot_create.properties")?;
    }
    let recursive = body.get("recursive") == Some(&Value::Bool(true));
    let exclude: Vec<&str> = body
        .get("exclude")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let id = format!("{of}@{name}");
    array.change(|change| {
        let fails = |text: String| Failure::call(format!("Failed to snapshot {id}: {text}"));
        let view = change.view();
        if view.get::<Volume>(&of).is_none() && view.get::<Filesystem>(&of).is_none() {
            let text = format!("Failed to snapshot {id}: dataset not found");
            return Err(Failure::Call(text, ENOENT));
        }
        let below = format!("{of}/");
        let caught = |other: &String| {
            *other == of
                || (recursive && other.starts_with(&below) && !exclude.contains(&other.as_str()))
        };
        let now = change.now();
        for (volume, _) in view.all::<Volume>().into_iter().filter(|(other, _)| caught(other)) {
            let key = format!("{volume}@{name}");
            change.create_snapshot(&volume, &key, user.clone()).map_err(|trouble| {
                fails(match trouble {
                    crate::core::Trouble::Exists(..) => "dataset already exists".to_owned(),
                    other => other.to_string(),
                })
            })?;
        }
        for (dataset, _) in view.all::<Filesystem>().into_iter().filter(|(other, _)| caught(other))
        {
            let key = format!("{dataset}@{name}");
            if change.get::<FilesystemSnapshot>(&key).is_some() {
                return Err(fails("dataset already exists".to_owned()));
            }
            let user = serde_json::from_value(Value::Object(user.clone())).unwrap_or_default();
            let order = change.number("snapshot")?;
            change.put::<_, Failure>(
                &key,
                &FilesystemSnapshot { dataset, created: now, order, user },
            )?;
        }
        Ok(())
    })?;
    shown(array, &id)
}

pub(super) fn update(array: &Array, id: &str, body: &Value) -> Result<Value, Failure> {
    schema::check("snapshot_update", SNAPSHOT_UPDATE, body, false)?;
    array.change(|change| {
        let mut snapshot = change.snapshot(id)?;
        let mut user = user_of(&snapshot);
        update_user(&mut user, body.get("user_properties_update"), "snapshot_update")?;
        snapshot.attributes = user.into_iter().map(|(key, value)| (key, json!(value))).collect();
        change.put::<_, Failure>(id, &snapshot)
    })?;
    shown(array, id)
}

fn remove(change: &mut Change<'_>, id: &str) -> Result<(), Failure> {
    if change.get::<FilesystemSnapshot>(id).is_some() {
        change.remove::<FilesystemSnapshot>(id);
        return Ok(());
    }
    if change.get::<Snapshot>(id).is_none() {
        return Err(Failure::Call(format!("Snapshot {id} not found"), ENOENT));
    }
    let held = change.snapshot(id)?.attributes.contains_key(HOLD);
    if held {
        let text =
            format!("Failed to delete snapshot: cannot destroy snapshot {id}: dataset is busy");
        return Err(Failure::call(text));
    }
    let clones = change.clones_of(id);
    if !clones.is_empty() {
        let text = format!(
            "Failed to delete snapshot: cannot destroy '{id}': snapshot has dependent clones\n\
             use '-R' to destroy the following datasets:\n{}",
            clones.join("\n")
        );
        return Err(Failure::call(text));
    }
    Ok(change.delete_snapshot(id)?)
}

pub(super) fn delete(array: &Array, id: &str, options: &Value) -> Result<Value, Failure> {
    schema::check("options", SNAPSHOT_DELETE, options, false)?;
    let recursive = options.get("recursive") == Some(&Value::Bool(true));
    array.change(|change| {
        remove(change, id)?;
        if recursive && let Some((of, name)) = id.split_once('@') {
            let below = format!("{of}/");
            let tail = format!("@{name}");
            for other in names(&change.view()) {
                if other.starts_with(&below) && other.ends_with(&tail) {
                    remove(change, &other)?;
                }
            }
        }
        Ok(Value::Bool(true))
    })
}

pub(super) fn clone(array: &Array, body: &Value) -> Result<Value, Failure> {
    schema::check("snapshot_clone", SNAPSHOT_CLONE, body, true)?;
    let field = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
    let (id, to) = (field("snapshot"), field("dataset_dst"));
    let mut user = Map::new();
    for (key, value) in
        body.get("dataset_properties").and_then(Value::as_object).into_iter().flatten()
    {
        if key.contains(':') {
            check_key(key, "snapshot_clone.dataset_properties")?;
            user.insert(key.clone(), value.clone());
        }
    }
    array.change(|change| {
        let snapshot = change.snapshot(&id)?;
        let fails = |text: &str| {
            Failure::call(format!("Failed to clone snapshot: cannot create '{to}': {text}"))
        };
        if change.get::<Volume>(&to).is_some() || change.get::<Filesystem>(&to).is_some() {
            return Err(fails("dataset already exists"));
        }
        if change.get::<Filesystem>(dataset::parent(&to)).is_none() {
            return Err(fails("parent does not exist"));
        }
        if pool_of(&to) != pool_of(&id) {
            return Err(fails("source and target pools differ"));
        }
        dataset::place(change, &to, "snapshot_clone.dataset_dst")?;
        let source = change.volume(&snapshot.volume)?;
        let mut new = NewVolume::thin(&source.pool, snapshot.size);
        new.attributes = dataset::clone_attributes(&source, &user);
        change.clone_volume(&id, &to, new, true)?;
        Ok(Value::Bool(true))
    })
}

pub(super) fn rollback(array: &Array, id: &str, options: &Value) -> Result<Value, Failure> {
    schema::check("options", SNAPSHOT_ROLLBACK, options, false)?;
    let flag = |name: &str| options.get(name) == Some(&Value::Bool(true));
    array.change(|change| {
        let snapshot = change.snapshot(id)?;
        let newer: Vec<(String, _)> = change.snapshots_of(&snapshot.volume);
        let newer: Vec<String> = newer
            .into_iter()
            .filter(|(_, other)| other.order > snapshot.order)
            .map(|(key, _)| key)
            .collect();
        if !newer.is_empty() && !flag("recursive") && !flag("recursive_clones") {
            return Err(Failure::call(format!(
                "Failed to rollback snapshot: cannot rollback to '{id}': more recent snapshots or \
                 bookmarks exist\nuse '-r' to force deletion of the following snapshots and \
                 bookmarks:\n{}",
                newer.join("\n")
            )));
        }
        for other in &newer {
            for clone in change.clones_of(other) {
                if !flag("recursive_clones") {
                    return Err(Failure::call(format!(
                        "Failed to rollback snapshot: cannot rollback to '{id}': clones of previous \
                         snapshots exist\nuse '-R' to force deletion of the following clones and \
                         dependents:\n{clone}"
                    )));
                }
                change.delete_volume(&clone)?;
            }
            change.delete_snapshot(other)?;
        }
        change.restore(&snapshot.volume, id)?;
        Ok(Value::Null)
    })
}

/// What marks a snapshot that is held.
const HOLD: &str = "simulator:held";

pub(super) fn hold(array: &Array, id: &str, on: bool) -> Result<Value, Failure> {
    array.change(|change| {
        let mut snapshot = change.snapshot(id)?;
        if on {
            snapshot.attributes.insert(HOLD.to_owned(), json!("truenas"));
        } else {
            snapshot.attributes.remove(HOLD);
        }
        change.put::<_, Failure>(id, &snapshot)?;
        Ok(Value::Null)
    })
}

/// What the job `pool.dataset.destroy_snapshots` does at its end.
pub(super) fn destroy_all(change: &mut Change<'_>, arguments: &Value) -> Result<Value, String> {
    let of = arguments.get(0).and_then(Value::as_str).unwrap_or("");
    let chosen = arguments.get(1).and_then(|options| options.get("snapshots"));
    let chosen: Option<Vec<&str>> = chosen
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(Value::as_str).collect());
    let mut gone = Vec::new();
    for id in names(&change.view()) {
        let Some((dataset, name)) = id.split_once('@') else { continue };
        if dataset == of && chosen.as_ref().is_none_or(|chosen| chosen.contains(&name)) {
            remove(change, &id).map_err(|failure| format!("{failure:?}"))?;
            gone.push(id);
        }
    }
    Ok(json!(gone))
}
