//! LUNs: `/storage/luns`.

use std::collections::BTreeSet;

use serde_json::{Map as Members, Value, json};

use super::failure::Failure;
use super::objects::{
    Igroup, Map, Policy, dashed, new_uuid, pairs, parts, serial, set_pairs, text, time,
};
use super::query::Query;
use super::schema::{
    ATTRIBUTE, ATTRIBUTE_CREATE, ATTRIBUTE_MODIFY, Body, LARGEST, LUN_CREATE, LUN_MODIFY, SMALLEST,
};
use super::system::{Answer, Said, pool_uuid, setting, svm, svm_of};
use crate::core::{Array, Change, NewVolume, Pool, Snapshot, View, Volume};

/// Fields to ask for and to filter by.
pub(super) const FIELDS: &[&str] = &[
    "uuid",
    "name",
    "svm.name",
    "svm.uuid",
    "location.volume.name",
    "location.volume.uuid",
    "location.logical_unit",
    "os_type",
    "comment",
    "enabled",
    "serial_number",
    "create_time",
    "space.size",
    "space.used",
    "space.guarantee.requested",
    "space.guarantee.reserved",
    "space.scsi_thin_provisioning_support_enabled",
    "status.state",
    "status.mapped",
    "status.read_only",
    "status.container_state",
    "qos_policy.name",
    "qos_policy.uuid",
    "class",
    "auto_delete",
    "attributes.name",
    "attributes.value",
    "lun_maps.igroup.name",
    "lun_maps.igroup.uuid",
    "lun_maps.logical_unit_number",
];

fn uuid(lun: &Volume) -> String {
    dashed(&lun.uuid)
}

/// The LUN of a UUID, and its path.
pub(super) fn find(view: &View, id: &str) -> Option<(String, Volume)> {
    let all = view.all::<Volume>().into_iter();
    let mut found = all.filter(|(_, lun)| uuid(lun) == id);
    found.next().map(|(path, lun)| (path, (*lun).clone()))
}

fn known(change: &Change<'_>, id: &str) -> Result<(String, Volume), Failure> {
    let missing = || Failure::new(404, "5374875", "The specified LUN was not found.").at("uuid");
    find(&change.view(), id).ok_or_else(missing)
}

/// What all LUNs need to be described.
struct Show<'a> {
    array: &'a Array,
    view: View,
    mapped: BTreeSet<String>,
}

impl<'a> Show<'a> {
    fn new(array: &'a Array, view: View) -> Self {
        let mapped = view.all::<Map>().into_iter().map(|(_, map)| map.lun.clone()).collect();
        Self { array, view, mapped }
    }

    fn lun(&self, path: &str, lun: &Volume) -> Value {
        let (volume, _, name) = parts(path).unwrap_or(("", None, path));
        let thin = lun.attributes.get("unmap").is_none_or(|value| value == &json!(true));
        let pairs: Vec<Value> =
            pairs(lun).iter().map(|(n, v)| json!({ "name": n, "value": v })).collect();
        let policy = text(lun, "qos_policy");
        let mut record = json!({
            "uuid": uuid(lun), "name": path, "svm": svm(self.array), "class": "regular",
            "location": {
                "volume": { "name": volume, "uuid": pool_uuid(&self.view, volume) },
                "logical_unit": name,
            },
            "os_type": if text(lun, "os_type").is_empty() { "linux" } else { text(lun, "os_type") },
            "comment": text(lun, "comment"), "enabled": lun.online, "auto_delete": false,
            "serial_number": serial(lun), "create_time": time(lun.created),
            "space": {
                "size": lun.size, "used": self.array.referenced(lun.layer),
                "guarantee": { "requested": lun.thick, "reserved": lun.thick },
                "scsi_thin_provisioning_support_enabled": thin,
            },
            "status": {
                "state": if lun.online { "online" } else { "offline" },
                "container_state": "online", "mapped": self.mapped.contains(path),
                "read_only": false,
            },
        });
        if let Some(record) = record.as_object_mut() {
            if !pairs.is_empty() {
                record.insert("attributes".to_owned(), Value::Array(pairs));
            }
            if let Some(own) = self.view.get::<Policy>(policy) {
                let policy = json!({ "name": policy, "uuid": own.uuid });
                record.insert("qos_policy".to_owned(), policy);
            }
            if self.mapped.contains(path) {
                record.insert("lun_maps".to_owned(), self.maps(path));
            }
        }
        record
    }

    fn maps(&self, path: &str) -> Value {
        let maps = self.view.all::<Map>().into_iter().filter(|(_, map)| map.lun == path);
        let maps = maps.map(|(_, map)| {
            let name = self.view.get::<Igroup>(&map.igroup).map(|igroup| igroup.name.clone());
            let igroup = json!({ "uuid": map.igroup, "name": name });
            json!({ "igroup": igroup, "logical_unit_number": map.number })
        });
        maps.collect()
    }
}

pub(super) fn query(array: &Array, query: &Query) -> Said {
    let show = Show::new(array, array.view());
    let chosen = show.view.all::<Volume>().into_iter().filter(|(path, lun)| {
        query.may_be("name", path) && query.exactly("uuid").is_none_or(|id| id == uuid(lun))
    });
    let records = chosen.map(|(path, lun)| (path.clone(), show.lun(&path, &lun)));
    let empty = setting(array, "empty_pages", &json!(false)) == json!(true);
    (200, query.page("/api/storage/luns", empty, records.collect()))
}

pub(super) fn get(array: &Array, id: &str, query: &Query) -> Answer {
    let view = array.view();
    let missing = || Failure::new(404, "5374875", "The specified LUN was not found.").at("uuid");
    let (path, lun) = find(&view, id).ok_or_else(missing)?;
    Ok((200, query.shown(Show::new(array, view).lun(&path, &lun), true)))
}

/// The records of what was made, if they were asked for.
pub(super) fn made(query: &Query, record: impl FnOnce() -> Value) -> Said {
    let mut answer = json!({ "num_records": 1 });
    if let (Some(true), Some(answer)) = (query.return_records, answer.as_object_mut()) {
        answer.insert("records".to_owned(), json!([record()]));
    }
    (201, answer)
}

/// What sizes are rounded up to.
fn geometry(array: &Array) -> u64 {
    setting(array, "geometry", &json!(SMALLEST)).as_u64().unwrap_or(SMALLEST)
}

/// A size as the array makes it: at least whole blocks, and larger where its geometry wants it.
fn rounded(grain: u64, size: u64) -> Result<u64, Failure> {
    if size < SMALLEST {
        let text = "The specified size is too small for the LUN.";
        return Err(Failure::new(400, "5374124", text).at("space.size"));
    }
    let size = size.checked_next_multiple_of(grain.max(512)).unwrap_or(u64::MAX);
    if size > LARGEST {
        let text = "The specified size is too large for the LUN.";
        return Err(Failure::new(400, "5374125", text).at("space.size"));
    }
    Ok(size)
}

/// A path at which a LUN can be.
fn place(path: &str) -> Result<&str, Failure> {
    let invalid = |code, text: &str| Failure::new(400, code, text).at("name");
    let Some((volume, snapshot, name)) = parts(path) else {
        return Err(invalid("5374859", "No volume was specified for the LUN."));
    };
    if snapshot.is_some() {
        return Err(invalid("5374238", "LUNs cannot be created in Snapshot copies."));
    }
    let good = |c: char| c.is_ascii_alphanumeric() || "-._{}".contains(c);
    let mut pieces = name.split('/');
    if name.is_empty() || !pieces.all(|piece| !piece.is_empty() && piece.chars().all(good)) {
        let text = "A LUN name can only contain characters A-Z, a-z, 0-9, \"-\", \".\", \"_\", \
                    \"{\" and \"}\".";
        return Err(invalid("5374121", text));
    }
    Ok(volume)
}

/// Path, size and attributes.
type Source = (String, u64, Members<String, Value>);

/// What a clone is made of: a LUN, or one in a snapshot of the FlexVol; and what it has.
fn source(change: &Change<'_>, body: &Body, to: &str) -> Result<Option<Source>, Failure> {
    let missing = || Failure::new(400, "5374876", "The specified clone.source was not found.");
    let name = match (body.text("clone.source.name"), body.text("clone.source.uuid")) {
        (None, None) => return Ok(None),
        (Some(name), None) => name.to_owned(),
        (None, Some(id)) => known(change, id).map_err(|_| missing().at("clone.source.uuid"))?.0,
        (Some(name), Some(id)) => {
            if known(change, id)?.0 != name {
                let text = "clone.source.uuid and clone.source.name are not the same LUN.";
                return Err(Failure::new(400, "5374874", text));
            }
            name.to_owned()
        }
    };
    if parts(&name).map(|(volume, ..)| volume) != parts(to).map(|(volume, ..)| volume) {
        let text = "Clone operation across volumes is not allowed.";
        return Err(Failure::new(400, "1260121", text));
    }
    if let Some(lun) = change.get::<Volume>(&name) {
        return Ok(Some((name, lun.size, lun.attributes.clone())));
    }
    let snapshot = change.get::<Snapshot>(&name).ok_or_else(|| missing().at("clone.source"))?;
    Ok(Some((name, snapshot.size, snapshot.attributes.clone())))
}

fn policy(change: &Change<'_>, body: &Body) -> Result<Option<String>, Failure> {
    let Some(name) = body.text("qos_policy.name") else { return Ok(None) };
    if !name.is_empty() && change.get::<Policy>(name).is_none() {
        let text = format!("QoS policy group \"{name}\" does not exist.");
        return Err(Failure::new(400, "8454204", text).at("qos_policy.name"));
    }
    Ok(Some(name.to_owned()))
}

pub(super) fn create(array: &Array, body: &[u8], query: &Query, tunnel: bool) -> Answer {
    let body = &Body::read(body, LUN_CREATE)?;
    svm_of(array, body, tunnel)?;
    let path = body.text("name").unwrap_or_default().to_owned();
    let volume = place(&path)?.to_owned();
    let incomplete = setting(array, "incomplete", &json!(false)) == json!(true);
    let grain = geometry(array);
    array.change(|change| {
        if change.get::<Pool>(&volume).is_none() {
            let text = format!("Volume \"{volume}\" was not found.");
            return Err(Failure::new(404, "917927", text).at("name"));
        }
        let cloned = source(change, body, &path)?;
        let property = |name: &str| body.has(name);
        if cloned.is_some() {
            // What comes with the source.
            let fixed = ["os_type", "space.size", "attributes"];
            if let Some(name) = fixed.into_iter().find(|name| property(name)) {
                let text = "The property cannot be specified when creating a LUN clone.";
                return Err(Failure::new(400, "5374883", text).at(name));
            }
        } else if let Some(name) =
            ["os_type", "space.size"].into_iter().find(|name| !property(name))
        {
            let text = "A property that is required when creating a new LUN was not supplied.";
            return Err(Failure::new(400, "5374884", text).at(name));
        }
        if change.get::<Volume>(&path).is_some() {
            let text = "A LUN or NVMe namespace already exists at the specified path.";
            return Err(Failure::new(409, "5374242", text).at("name"));
        }
        let mut new = NewVolume::thin(&volume, 0);
        new.thick = body.flag("space.guarantee.requested") == Some(true);
        let mut lun = if let Some((from, size, attributes)) = cloned {
            new.size = size;
            new.attributes = attributes;
            new.attributes.remove("qos_policy");
            change.clone_volume(&from, &path, new, false)?
        } else {
            new.size = rounded(grain, body.number("space.size").unwrap_or(0))?;
            let os = body.text("os_type").unwrap_or("linux");
            new.attributes.insert("os_type".to_owned(), json!(os));
            change.create_volume(&path, new)?
        };
        settle(change, &mut lun, body)?;
        let list = body.list("attributes");
        if !incomplete && !list.is_empty() {
            let field = |pair: &Value, name: &str| {
                pair.get(name).and_then(Value::as_str).unwrap_or("").to_owned()
            };
            let pairs: Vec<(String, String)> =
                list.iter().map(|pair| (field(pair, "name"), field(pair, "value"))).collect();
            pairs.iter().try_for_each(|(name, value)| fits(name, value))?;
            set_pairs(&mut lun, &pairs);
        }
        change.put(&path, &lun)
    })?;
    if incomplete {
        let text = "An error occurred after successfully creating the LUN. Some properties were \
                    not set.";
        return Err(Failure::new(500, "5374863", text));
    }
    let view = array.current();
    let lun = view.get::<Volume>(&path).ok_or_else(|| Failure::missing("uuid"))?;
    Ok(made(query, || query.shown(Show::new(array, view).lun(&path, &lun), true)))
}

/// What POST and PATCH set alike.
fn settle(change: &Change<'_>, lun: &mut Volume, body: &Body) -> Result<(), Failure> {
    if let Some(comment) = body.text("comment") {
        lun.attributes.insert("comment".to_owned(), json!(comment));
    }
    if let Some(policy) = policy(change, body)? {
        lun.attributes.insert("qos_policy".to_owned(), json!(policy));
    }
    if let Some(thin) = body.flag("space.scsi_thin_provisioning_support_enabled") {
        lun.attributes.insert("unmap".to_owned(), json!(thin));
    }
    Ok(())
}

fn fits(name: &str, value: &str) -> Result<(), Failure> {
    if name.len() + value.len() <= ATTRIBUTE {
        return Ok(());
    }
    let text = "The combined sizes of an attribute name and value are too large.";
    Err(Failure::new(400, "5374929", text))
}

pub(super) fn modify(array: &Array, id: &str, body: &[u8]) -> Answer {
    let body = &Body::read(body, LUN_MODIFY)?;
    let grain = geometry(array);
    array.change(|change| {
        let (mut path, mut lun) = known(change, id)?;
        if let Some((from, ..)) = source(change, body, &path)? {
            overwrite(change, &path, &from)?;
            lun = change.volume(&path)?;
        }
        if let Some(size) = body.number("space.size") {
            let wanted = rounded(grain, size)?;
            if wanted == lun.size {
                let text = "LUN already has the requested size.";
                return Err(Failure::new(400, "1254226", text).at("space.size"));
            }
            if wanted < lun.size {
                let text = "An attempt was made to reduce the size of a LUN.";
                return Err(Failure::new(400, "5374892", text).at("space.size"));
            }
            change.resize(&path, wanted)?;
            lun = change.volume(&path)?;
        }
        if let Some(name) = body.text("name").filter(|name| *name != path) {
            let (to, from) = (place(name)?.to_owned(), place(&path)?.to_owned());
            if to != from {
                return Err(Failure::new(400, "7018880", "The simulator moves no LUN."));
            }
            change.rename_volume(&path, name)?;
            for (key, map) in change.all::<Map>() {
                if map.lun == path {
                    change.remove::<Map>(&key);
                    let map = Map { lun: name.to_owned(), ..(*map).clone() };
                    let key = super::objects::map_key(&map.lun, &map.igroup);
                    change.put::<_, Failure>(&key, &map)?;
                }
            }
            name.clone_into(&mut path);
        }
        if let Some(enabled) = body.flag("enabled") {
            lun.online = enabled;
        }
        settle(change, &mut lun, body)?;
        change.put::<_, Failure>(&path, &lun)
    })?;
    Ok((200, json!({})))
}

/// Makes a LUN have what another one has. Who it is stays: the reference names UUID, serial number,
/// maps and state; attributes are not among what is kept.
fn overwrite(change: &mut Change<'_>, path: &str, from: &str) -> Result<(), Failure> {
    let attributes = match change.get::<Volume>(from) {
        Some(lun) => lun.attributes.clone(),
        None => change.snapshot(from)?.attributes,
    };
    if change.get::<Snapshot>(from).is_some() {
        change.restore(path, from)?;
    } else {
        let passing = format!("{path}\u{0}{}", new_uuid());
        change.create_snapshot(from, &passing, Members::new())?;
        change.restore(path, &passing)?;
        change.delete_snapshot(&passing)?;
    }
    let lun = change.volume(path)?;
    change.put(path, &Volume { attributes, ..lun })
}

pub(super) fn delete(array: &Array, id: &str, query: &Query) -> Answer {
    array.change(|change| {
        let (path, _) = known(change, id)?;
        let maps: Vec<String> = change
            .all::<Map>()
            .into_iter()
            .filter(|(_, map)| map.lun == path)
            .map(|(key, _)| key)
            .collect();
        if !maps.is_empty() && !query.force {
            let text = "LUN is mapped and cannot be deleted without allow_delete_while_mapped.";
            return Err(Failure::new(409, "1254197", text));
        }
        for key in maps {
            change.remove::<Map>(&key);
        }
        Ok(change.delete_volume(&path)?)
    })?;
    Ok((200, json!({})))
}

pub(super) fn attributes(array: &Array, id: &str, name: Option<&str>) -> Answer {
    let view = array.view();
    let missing = || Failure::new(404, "5374875", "The specified LUN was not found.").at("uuid");
    let (_, lun) = find(&view, id).ok_or_else(missing)?;
    let of = json!({ "uuid": id });
    let record =
        |(name, value): (String, String)| json!({ "lun": of, "name": name, "value": value });
    if let Some(name) = name {
        let found = pairs(&lun).into_iter().find(|(own, _)| own == name).map(record);
        return Ok((200, found.ok_or_else(no_attribute)?));
    }
    let all: Vec<Value> = pairs(&lun).into_iter().map(record).collect();
    Ok((200, json!({ "num_records": all.len(), "records": all })))
}

fn no_attribute() -> Failure {
    Failure::new(404, "5374931", "The specified attribute was not found.").at("name")
}

/// Adds an attribute, changes or removes one.
pub(super) fn set_attribute(
    array: &Array,
    method: &str,
    id: &str,
    name: Option<&str>,
    body: &[u8],
) -> Answer {
    let body = match method {
        "POST" => Body::read(body, ATTRIBUTE_CREATE)?,
        "PATCH" => Body::read(body, ATTRIBUTE_MODIFY)?,
        _ => Body::default(),
    };
    let name = name.or_else(|| body.text("name")).unwrap_or_default();
    let value = body.text("value").unwrap_or_default();
    fits(name, value)?;
    array.change(|change| {
        let (path, mut lun) = known(change, id)?;
        let mut all = pairs(&lun);
        let at = all.iter().position(|(own, _)| own == name);
        match (method, at) {
            ("POST", Some(_)) => {
                let text = "The attribute already exists for the LUN.";
                return Err(Failure::new(409, "5374930", text).at("name"));
            }
            ("POST", None) => all.push((name.to_owned(), value.to_owned())),
            (_, None) => return Err(no_attribute()),
            ("PATCH", Some(at)) => value.clone_into(&mut all[at].1),
            (_, Some(at)) => drop(all.remove(at)),
        }
        set_pairs(&mut lun, &all);
        change.put::<_, Failure>(&path, &lun)
    })?;
    Ok((if method == "POST" { 201 } else { 200 }, json!({})))
}
