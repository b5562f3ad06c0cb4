//! `pool.dataset`: file systems and zvols.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::block;
use super::failure::{EEXIST, EINVAL, ENOENT, Failure};
use super::objects::{Filesystem, FilesystemSnapshot};
use super::query::Query;
use super::schema::{self, DATASET_CREATE, DATASET_DELETE, DATASET_UPDATE};
use super::snapshot;
use crate::core::{Array, Change, NewVolume, Pool, Snapshot, Space, View, Volume};

/// A name is at most so long on Linux, `zvol/` not counted.
const LONGEST: usize = 255;

pub(super) fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
}

pub(super) fn pool_of(name: &str) -> &str {
    name.split(['/', '@']).next().unwrap_or(name)
}

/// A property as the API shows it.
pub(super) fn property(value: &str, raw: &str, parsed: impl Into<Value>, source: &str) -> Value {
    let parsed = parsed.into();
    json!({"value": value, "rawvalue": raw, "parsed": parsed, "source": source,
           "source_info": null})
}

pub(super) fn bytes(number: u64, source: &str) -> Value {
    property(&human(number), &number.to_string(), json!(number), source)
}

pub(super) fn text(value: &str) -> Value {
    property(value, value, json!(value), "LOCAL")
}

fn human(number: u64) -> String {
    let units = ["B", "K", "M", "G", "T", "P"];
    let unit = (1..units.len()).rev().find(|unit| number >> (10 * unit) > 0).unwrap_or(0);
    let name = units.get(unit).unwrap_or(&"");
    let whole = number >> (10 * unit);
    let hundredths =
        ((number - (whole << (10 * unit))) >> (10 * unit.saturating_sub(1))) * 100 / 1024;
    if unit == 0 || hundredths == 0 {
        return format!("{whole}{name}");
    }
    format!("{whole}.{hundredths:02}{name}")
}

pub(super) fn block_size(word: &str) -> u64 {
    match word {
        "512" | "512B" => 512,
        word => word.trim_end_matches('K').parse::<u64>().unwrap_or(16) << 10,
    }
}

fn user_of(volume: &Volume) -> BTreeMap<String, String> {
    let own = volume.attributes.get("user").cloned().unwrap_or_default();
    serde_json::from_value(own).unwrap_or_default()
}

fn user_json(user: &BTreeMap<String, String>) -> Value {
    Value::Object(user.iter().map(|(key, value)| (key.clone(), text(value))).collect())
}

/// Bytes of a volume and of the snapshots it has, without those of the snapshot it hangs on.
fn used(array: &Array, view: &View, volume: &Volume) -> u64 {
    let origin = volume.origin.as_ref().and_then(|of| view.get::<Snapshot>(of));
    array.between(volume.layer, origin.map(|origin| origin.layer))
}

/// What datasets are shown by: their objects at one moment, and the space of pools, asked once.
struct Show<'a> {
    array: &'a Array,
    view: View,
    spaces: BTreeMap<String, Space>,
}

impl<'a> Show<'a> {
    fn new(array: &'a Array, view: View) -> Self {
        let pools = view.all::<Pool>().into_iter();
        let spaces = pools.filter_map(|(name, _)| Some((name.clone(), array.space(&name).ok()?)));
        Self { array, spaces: spaces.collect(), view }
    }
}

fn zvol(show: &Show<'_>, name: &str, volume: &Volume) -> Value {
    let free = show.spaces.get(&volume.pool).map_or(0, Space::free);
    let referenced = show.array.referenced(volume.layer);
    let written = used(show.array, &show.view, volume);
    let reserved = if volume.thick { volume.size } else { 0 };
    let block = volume.attributes.get("volblocksize").and_then(Value::as_str).unwrap_or("16K");
    let user = user_of(volume);
    let mut object = json!({
        "id": name, "name": name, "type": "VOLUME", "pool": volume.pool,
        "encrypted": false, "encryption_root": null, "key_loaded": false, "locked": false,
        "children": [],
        "user_properties": user_json(&user),
        "volsize": bytes(volume.size, "LOCAL"),
        "volblocksize": property(block, &block_size(block).to_string(), json!(block_size(block)), "NONE"),
        "used": bytes(written.max(reserved), "NONE"),
        "usedbydataset": bytes(referenced.min(written), "NONE"),
        "usedbysnapshots": bytes(written.saturating_sub(referenced), "NONE"),
        "usedbychildren": bytes(0, "NONE"),
        "usedbyrefreservation": bytes(reserved.saturating_sub(written), "NONE"),
        "refreservation": bytes(reserved, "LOCAL"),
        "reservation": bytes(0, "DEFAULT"),
        "available": bytes(free, "NONE"),
        "origin": property(
            volume.origin.as_deref().unwrap_or(""), volume.origin.as_deref().unwrap_or(""),
            json!(volume.origin.as_deref().unwrap_or("")), "NONE"),
        "sync": property("STANDARD", "standard", json!("standard"), "DEFAULT"),
        "compression": property("LZ4", "lz4", json!("lz4"), "DEFAULT"),
        "readonly": property("OFF", "off", json!(false), "DEFAULT"),
        "creation": created(volume.created),
        "mountpoint": null,
    });
    let comments = volume.attributes.get("comments").and_then(Value::as_str);
    if let (Some(comments), Some(object)) = (comments, object.as_object_mut()) {
        object.insert("comments".to_owned(), text(comments));
    }
    object
}

pub(super) fn created(at: u64) -> Value {
    let seconds = (at / 1000).to_string();
    property(&seconds, &seconds, json!({"$date": at / 1000 * 1000}), "NONE")
}

fn filesystem(show: &Show<'_>, name: &str, own: &Filesystem) -> Value {
    let space = show.spaces.get(pool_of(name));
    let (used, free) = space.map_or((0, 0), |s| (s.used + s.reserved, s.free()));
    let mut object = json!({
        "id": name, "name": name, "type": "FILESYSTEM", "pool": pool_of(name),
        "encrypted": false, "encryption_root": null, "key_loaded": false, "locked": false,
        "children": [],
        "user_properties": user_json(&own.user),
        "used": bytes(used, "NONE"),
        "available": bytes(free, "NONE"),
        "mountpoint": format!("/mnt/{name}"),
        "creation": created(own.created),
    });
    if let (Some(comments), Some(object)) = (&own.comments, object.as_object_mut()) {
        object.insert("comments".to_owned(), text(comments));
    }
    object
}

fn one(show: &Show<'_>, name: &str) -> Option<Value> {
    if let Some(volume) = show.view.get::<Volume>(name) {
        return Some(zvol(show, name, &volume));
    }
    Some(filesystem(show, name, &*show.view.get::<Filesystem>(name)?))
}

/// A dataset as it is now.
fn shown(array: &Array, name: &str) -> Result<Value, Failure> {
    let found = one(&Show::new(array, array.current()), name);
    found.ok_or_else(|| Failure::NoInstance(name.to_owned()))
}

/// The names of all datasets.
fn names(view: &View) -> Vec<String> {
    let mut names: Vec<String> = view.all::<Volume>().into_iter().map(|(name, _)| name).collect();
    names.extend(view.all::<Filesystem>().into_iter().map(|(name, _)| name));
    names.sort_unstable();
    names
}

pub(super) fn query(array: &Array, query: &Query) -> Result<Value, Failure> {
    let show = Show::new(array, array.view());
    if let Some(name) = query.exactly("id").or_else(|| query.exactly("name")) {
        let nested = query.extra("retrieve_children") != Some(&json!(false));
        let found = one(&show, name).map(|mut object| {
            if nested && object.get("type") == Some(&json!("FILESYSTEM")) {
                set(&mut object, "children", children(&show, name));
            }
            object
        });
        return query.run(found.into_iter().collect());
    }
    let names = names(&show.view);
    let mut all: Vec<Value> = names.iter().filter_map(|name| one(&show, name)).collect();
    if query.extra("retrieve_children") != Some(&json!(false)) {
        for object in &mut all {
            if object.get("type") == Some(&json!("FILESYSTEM")) {
                let name = object.get("id").and_then(Value::as_str).unwrap_or("").to_owned();
                set(object, "children", children(&show, &name));
            }
        }
    }
    if query.extra("flat") == Some(&json!(false)) {
        all.retain(|object| object.get("id") == object.get("pool"));
    }
    query.run(all)
}

fn set(object: &mut Value, name: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(name.to_owned(), value);
    }
}

fn children(show: &Show<'_>, of: &str) -> Value {
    let own = names(&show.view).into_iter().filter(|name| parent(name) == of);
    let own = own.filter_map(|name| {
        let mut object = one(show, &name)?;
        if show.view.get::<Filesystem>(&name).is_some() {
            set(&mut object, "children", children(show, &name));
        }
        Some(object)
    });
    Value::Array(own.collect())
}

fn exists(change: &Change<'_>, name: &str) -> bool {
    change.get::<Volume>(name).is_some() || change.get::<Filesystem>(name).is_some()
}

/// Whether a dataset of that name can be made.
pub(super) fn place(change: &Change<'_>, name: &str, at: &str) -> Result<(), Failure> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.:/ ".contains(c);
    if !name.chars().all(good) || name.split('/').any(str::is_empty) || !name.contains('/') {
        return Err(Failure::field(at, format!("'{name}' is not a valid dataset name"), EINVAL));
    }
    if name.len() > LONGEST {
        let text = format!("Dataset name must be {LONGEST} or fewer characters");
        return Err(Failure::field(at, text, EINVAL));
    }
    if exists(change, name) {
        return Err(Failure::field(at, format!("{name} already exists"), EEXIST));
    }
    Ok(())
}

fn parent_of(change: &mut Change<'_>, name: &str, make: bool) -> Result<(), Failure> {
    let at = "pool_dataset_create.name";
    let up = parent(name).to_owned();
    if change.get::<Filesystem>(&up).is_some() {
        return Ok(());
    }
    if change.get::<Volume>(&up).is_some() {
        return Err(Failure::field(at, format!("Parent dataset ({up}) is a volume"), EINVAL));
    }
    if !make || !up.contains('/') {
        let text = format!("Parent dataset ({up}) does not exist.");
        return Err(Failure::field(at, text, ENOENT));
    }
    parent_of(change, &up, true)?;
    let created = change.now();
    change.put(&up, &Filesystem { created, ..Filesystem::default() })
}

/// The user properties of a list of keys and values. ZFS wants a colon in a key.
fn user_list(list: &Value, at: &str) -> Result<BTreeMap<String, String>, Failure> {
    let mut user = BTreeMap::new();
    for item in list.as_array().into_iter().flatten() {
        let field = |name: &str| item.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
        snapshot::check_key(&field("key"), at)?;
        user.insert(field("key"), field("value"));
    }
    Ok(user)
}

/// How much a new volume may have: 80 % of what is free, unless it is forced; thin or not.
fn fits(size: u64, free: u64, force: bool, at: &str) -> Result<(), Failure> {
    let most = free / 5 * 4;
    if size > most && !force {
        let text = "It is not recommended to use more than 80% of your available space for VOLUME";
        return Err(Failure::field(at, text, EINVAL));
    }
    Ok(())
}

pub(super) fn create(array: &Array, body: &Value) -> Result<Value, Failure> {
    schema::check("pool_dataset_create", DATASET_CREATE, body, true)?;
    let field = |name: &str| body.get(name).cloned().unwrap_or(Value::Null);
    let flag = |name: &str| field(name) == Value::Bool(true);
    let name = field("name").as_str().unwrap_or("").to_owned();
    let comments = field("comments").as_str().map(str::to_owned);
    let user = user_list(&field("user_properties"), "pool_dataset_create.user_properties")?;
    array.change(|change| {
        place(change, &name, "pool_dataset_create.name")?;
        parent_of(change, &name, flag("create_ancestors"))?;
        if field("type").as_str().unwrap_or("FILESYSTEM") == "FILESYSTEM" {
            if body.get("volsize").is_some() {
                let at = "pool_dataset_create.volsize";
                return Err(Failure::field(at, "This field is not valid for FILESYSTEM", EINVAL));
            }
            let created = change.now();
            return change.put(&name, &Filesystem { created, comments, user });
        }
        for wrong in
            ["aclmode", "acltype", "atime", "casesensitivity", "quota", "refquota", "recordsize"]
        {
            if body.get(wrong).is_some() {
                let at = format!("pool_dataset_create.{wrong}");
                return Err(Failure::field(&at, "This field is not valid for VOLUME", EINVAL));
            }
        }
        let at = "pool_dataset_create.volsize";
        let required = || Failure::field(at, "This field is required for VOLUME", EINVAL);
        let size = field("volsize").as_u64().filter(|size| *size > 0).ok_or_else(required)?;
        let block = field("volblocksize").as_str().unwrap_or("16K").to_owned();
        let free = change.space(pool_of(&name))?.free();
        fits(size, free, flag("force_size"), at)?;
        if !size.is_multiple_of(block_size(&block)) {
            let text = "Volume size should be a multiple of volume block size";
            return Err(Failure::field(at, text, EINVAL));
        }
        let mut new = NewVolume::thin(pool_of(&name), size);
        new.thick = !flag("sparse");
        new.attributes.insert("volblocksize".to_owned(), json!(block));
        new.attributes.insert("user".to_owned(), json!(user));
        if let Some(comments) = comments {
            new.attributes.insert("comments".to_owned(), json!(comments));
        }
        change.create_volume(&name, new).map_err(|trouble| match Failure::from(trouble) {
            Failure::Call(text, errno) => {
                Failure::Call(format!("Failed to create dataset: {text}"), errno)
            }
            other => other,
        })?;
        Ok(())
    })?;
    shown(array, &name)
}

fn change_user(user: &mut BTreeMap<String, String>, body: &Value) -> Result<(), Failure> {
    let at = "pool_dataset_update.user_properties_update";
    if let Some(list) = body.get("user_properties") {
        *user = user_list(list, "pool_dataset_update.user_properties")?;
    }
    snapshot::update_user(user, body.get("user_properties_update"), at)
}

pub(super) fn update(array: &Array, name: &str, body: &Value) -> Result<Value, Failure> {
    schema::check("pool_dataset_update", DATASET_UPDATE, body, false)?;
    array.change(|change| {
        let comments = body.get("comments").and_then(Value::as_str);
        if let Some(own) = change.get::<Filesystem>(name) {
            let mut own = (*own).clone();
            change_user(&mut own.user, body)?;
            if let Some(comments) = comments {
                own.comments = Some(comments.to_owned());
            }
            return change.put(name, &own);
        }
        let mut volume = change.volume(name)?;
        let mut user = user_of(&volume);
        change_user(&mut user, body)?;
        volume.attributes.insert("user".to_owned(), json!(user));
        if let Some(comments) = comments {
            volume.attributes.insert("comments".to_owned(), json!(comments));
        }
        if let Some(reserved) = body.get("refreservation").and_then(Value::as_u64) {
            volume.thick = reserved >= volume.size;
        }
        change.put::<_, Failure>(name, &volume)?;
        let Some(size) = body.get("volsize").and_then(Value::as_u64) else { return Ok(()) };
        let at = "pool_dataset_update.volsize";
        let force = body.get("force_size") == Some(&Value::Bool(true));
        let free = change.space(&volume.pool)?.free() + change.referenced(volume.layer);
        fits(size, free, force, at)?;
        let block = volume.attributes.get("volblocksize").and_then(Value::as_str).unwrap_or("16K");
        if !size.is_multiple_of(block_size(block)) {
            let text = "Volume size should be a multiple of volume block size";
            return Err(Failure::field(at, text, EINVAL));
        }
        if size < volume.size {
            let text = "You cannot shrink a zvol from GUI, this may lead to data loss.";
            return Err(Failure::field(at, text, EINVAL));
        }
        change.resize(name, size)?;
        Ok(())
    })?;
    shown(array, name)
}

pub(super) fn delete(array: &Array, name: &str, options: &Value) -> Result<Value, Failure> {
    schema::check("dataset_delete", DATASET_DELETE, options, false)?;
    let flag = |name: &str| options.get(name) == Some(&Value::Bool(true));
    array.change(|change| {
        if !exists(change, name) {
            let text = format!("PoolDataset {name} does not exist");
            return Err(Failure::Call(text, ENOENT));
        }
        let below = format!("{name}/");
        let view = change.view();
        let doomed = |other: &str| other == name || other.starts_with(&below);
        let datasets: Vec<String> =
            names(&view).into_iter().filter(|other| doomed(other)).collect();
        let snapshots: Vec<String> =
            snapshot::names(&view).into_iter().filter(|id| doomed(snapshot::dataset(id))).collect();
        let kind = if view.get::<Volume>(name).is_some() { "volume" } else { "filesystem" };
        let fails = |text: &str| {
            Failure::call(format!("Failed to delete dataset: cannot destroy '{name}': {text}"))
        };
        if !flag("recursive") && (datasets.len() > 1 || !snapshots.is_empty()) {
            return Err(fails(&format!(
                "{kind} has children\nuse '-r' to destroy the following datasets:\n{}",
                snapshots.join("\n")
            )));
        }
        for id in &snapshots {
            if change.clones_of(id).iter().any(|clone| !doomed(clone)) {
                return Err(fails(&format!("{kind} has dependent clones")));
            }
        }
        for dataset in &datasets {
            // Extents of what goes are removed with it, unless somebody has one open.
            block::detach(change, dataset, flag("force")).map_err(|()| fails("dataset is busy"))?;
        }
        for dataset in &datasets {
            if change.get::<Volume>(dataset).is_some() {
                change.delete_volume(dataset)?;
            } else if dataset != pool_of(dataset) {
                // The root dataset stays, whatever becomes of what was in it.
                change.remove::<Filesystem>(dataset);
            }
        }
        for id in &snapshots {
            if change.get::<Snapshot>(id).is_some() {
                change.delete_snapshot(id)?;
            } else {
                change.remove::<FilesystemSnapshot>(id);
            }
        }
        Ok(Value::Bool(true))
    })
}

pub(super) fn promote(array: &Array, name: &str) -> Result<Value, Failure> {
    array.change(|change| {
        let volume = change.volume(name)?;
        if volume.origin.is_none() {
            return Err(Failure::Call(
                format!(
                    "Failed to promote dataset: cannot promote '{name}': not a cloned filesystem"
                ),
                EINVAL,
            ));
        }
        let own = name.to_owned();
        change.promote(name, move |old| {
            format!("{own}@{}", old.rsplit_once('@').map_or(old, |(_, snapshot)| snapshot))
        })?;
        Ok(Value::Null)
    })
}

/// The attributes of a clone of a volume or snapshot.
pub(super) fn clone_attributes(source: &Volume, user: &Map<String, Value>) -> Map<String, Value> {
    let mut attributes = Map::new();
    if let Some(block) = source.attributes.get("volblocksize") {
        attributes.insert("volblocksize".to_owned(), block.clone());
    }
    attributes.insert("user".to_owned(), Value::Object(user.clone()));
    attributes
}
