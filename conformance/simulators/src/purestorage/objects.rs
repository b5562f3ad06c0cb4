//! What a FlashArray keeps beside volumes and snapshots, and what it adds to those.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::failure::Refused;
use crate::core::{Change, Record, Snapshot, View, Volume};

/// A host: who may reach what is connected to it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Host {
    pub(super) iqns: Vec<String>,
    pub(super) wwns: Vec<String>,
    pub(super) nqns: Vec<String>,
    pub(super) personality: Option<String>,
    pub(super) chap: Option<Value>,
}

impl Record for Host {
    const TABLE: &'static str = "purestorage.host";
}

/// That a host reaches a volume. Its key is made of both.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Connection {
    pub(super) host: String,
    pub(super) volume: String,
    pub(super) lun: u16,
}

impl Connection {
    pub(super) fn key(host: &str, volume: &str) -> String {
        format!("{host}:{volume}")
    }
}

impl Record for Connection {
    const TABLE: &'static str = "purestorage.connection";
}

/// A protection group: volumes that are caught at one instant.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Group {
    pub(super) volumes: Vec<String>,
    pub(super) destroyed: Option<u64>,
}

impl Record for Group {
    const TABLE: &'static str = "purestorage.group";
}

/// A snapshot of a protection group; its key is `group.suffix`, and those of its volumes are
/// snapshots `group.suffix.volume`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct GroupSnapshot {
    pub(super) group: String,
    pub(super) created: u64,
    pub(super) destroyed: Option<u64>,
}

impl Record for GroupSnapshot {
    const TABLE: &'static str = "purestorage.group_snapshot";
}

/// A tag of a volume or snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Tag {
    pub(super) namespace: String,
    pub(super) key: String,
    pub(super) value: String,
    pub(super) copyable: bool,
}

/// What a FlashArray adds to a volume or snapshot.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct More {
    /// When it was destroyed: it is pending eradication.
    pub(super) destroyed: Option<u64>,
    /// It was destroyed with its volume, and comes back with it.
    pub(super) with_volume: bool,
    pub(super) tags: Vec<Tag>,
    pub(super) qos: Map<String, Value>,
    /// Of a copy: the volume it is of.
    pub(super) source: Option<Value>,
    pub(super) suffix: String,
    /// Of a snapshot: the group's snapshot it is a part of.
    pub(super) part_of: Option<String>,
}

impl More {
    pub(super) fn of(attributes: &Map<String, Value>) -> Self {
        serde_json::from_value(Value::Object(attributes.clone())).unwrap_or_default()
    }

    pub(super) fn attributes(&self) -> Map<String, Value> {
        serde_json::to_value(self).ok().and_then(|all| all.as_object().cloned()).unwrap_or_default()
    }
}

/// The id of an object with these random digits: the same for ever, also under another name.
pub(super) fn id(uuid: &str) -> String {
    uuid::Uuid::parse_str(uuid).map_or_else(|_| uuid.to_owned(), |uuid| uuid.to_string())
}

/// The serial number: 24 digits.
pub(super) fn serial(uuid: &str) -> String {
    uuid.chars().take(24).collect::<String>().to_ascii_uppercase()
}

/// A letter or digit at both ends, `-` and `_` between.
pub(super) fn check_name(name: &str, what: &str) -> Result<(), Refused> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if name.contains("::") {
        return Err(Refused::of("Pod does not exist.", name));
    }
    if name.contains('/') {
        return Err(Refused::of("Volume group does not exist.", name));
    }
    let sound = name.len() <= 63 && name.chars().all(plain);
    if sound && ends(name.chars().next()) && ends(name.chars().last()) {
        return Ok(());
    }
    Err(Refused::of(&format!("Invalid {what} name."), name))
}

/// The key of a record whose name is written in upper or lower case.
pub(super) fn named<R: Record>(view: &View, name: &str) -> Option<String> {
    if view.get::<R>(name).is_some() {
        return Some(name.to_owned());
    }
    view.all::<R>().into_iter().map(|(key, _)| key).find(|key| key.eq_ignore_ascii_case(name))
}

/// A volume by name or id.
pub(super) fn volume_of(view: &View, name: &str, by_id: bool) -> Result<String, Refused> {
    let found = if by_id {
        let all = view.all::<Volume>();
        all.into_iter().find(|(_, one)| id(&one.uuid) == name).map(|(key, _)| key)
    } else {
        named::<Volume>(view, name)
    };
    found.ok_or_else(|| Refused::of("Volume does not exist.", name))
}

/// A snapshot by name or id.
pub(super) fn snapshot_of(view: &View, name: &str, by_id: bool) -> Result<String, Refused> {
    let found = if by_id {
        let all = view.all::<Snapshot>();
        all.into_iter().find(|(_, one)| id(&one.uuid) == name).map(|(key, _)| key)
    } else {
        named::<Snapshot>(view, name)
    };
    found.ok_or_else(|| Refused::of("Volume snapshot does not exist.", name))
}

/// How many connections each volume has.
pub(super) fn connected(view: &View) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for (_, connection) in view.all::<Connection>() {
        *counts.entry(connection.volume.clone()).or_default() += 1;
    }
    counts
}

/// Changes what the array adds to a volume.
pub(super) fn change_volume<T>(
    change: &mut Change<'_>,
    key: &str,
    work: impl FnOnce(&mut More) -> T,
) -> Result<T, Refused> {
    let mut volume = change.volume(key)?;
    let mut more = More::of(&volume.attributes);
    let done = work(&mut more);
    volume.attributes = more.attributes();
    volume.online = more.destroyed.is_none();
    change.put::<_, Refused>(key, &volume)?;
    Ok(done)
}

/// Changes what the array adds to a snapshot.
pub(super) fn change_snapshot<T>(
    change: &mut Change<'_>,
    key: &str,
    work: impl FnOnce(&mut More) -> T,
) -> Result<T, Refused> {
    let mut snapshot = change.snapshot(key)?;
    let mut more = More::of(&snapshot.attributes);
    let done = work(&mut more);
    snapshot.attributes = more.attributes();
    change.put::<_, Refused>(key, &snapshot)?;
    Ok(done)
}

/// A reference by id and name.
pub(super) fn reference(uuid: &str, name: &str) -> Value {
    json!({"id": id(uuid), "name": name})
}
