//! Initiator groups, maps, and how LUNs are reached: `/protocols/san`, `/network/ip/interfaces`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::failure::Failure;
use super::lun::{find, made};
use super::objects::{Igroup, Map, dashed, map_key, new_uuid, serial};
use super::query::Query;
use super::schema::{Body, IGROUP_CREATE, IGROUP_MODIFY, INITIATOR_CREATE, MAP_CREATE};
use super::system::{Answer, SVM_UUID, Said, setting, svm, svm_of};
use crate::core::{Array, Change, Export, Identity, View, Volume, Who, hex};

pub(super) const IGROUP_FIELDS: &[&str] = &[
    "uuid",
    "name",
    "os_type",
    "protocol",
    "comment",
    "initiators.name",
    "svm.name",
    "svm.uuid",
    "lun_maps.lun.name",
];
pub(super) const MAP_FIELDS: &[&str] = &[
    "lun.name",
    "lun.uuid",
    "igroup.name",
    "igroup.uuid",
    "igroup.initiators",
    "igroup.os_type",
    "igroup.protocol",
    "logical_unit_number",
    "svm.name",
    "svm.uuid",
];
pub(super) const SERVICE_FIELDS: &[&str] =
    &["enabled", "svm.name", "svm.uuid", "target.name", "target.alias"];
pub(super) const INTERFACE_FIELDS: &[&str] = &[
    "uuid",
    "name",
    "enabled",
    "state",
    "ip.address",
    "ip.netmask",
    "services",
    "svm.name",
    "svm.uuid",
    "scope",
    "location.node.name",
    "location.home_node.name",
];

/// The target of the SVM: one for all its LUNs.
fn target() -> String {
    format!("iqn.1992-08.com.netapp:sn.{}:vs.3", SVM_UUID.replace('-', ""))
}

fn igroup(array: &Array, uuid: &str, own: &Igroup) -> Value {
    let initiators: Vec<Value> =
        own.initiators.iter().map(|name| json!({ "name": name })).collect();
    json!({
        "uuid": uuid, "name": own.name, "os_type": own.os_type, "protocol": own.protocol,
        "comment": own.comment, "initiators": initiators, "svm": svm(array),
    })
}

pub(super) fn igroups(array: &Array, query: &Query) -> Said {
    let all = array.view().all::<Igroup>().into_iter();
    let records = all.map(|(uuid, own)| (own.name.clone(), igroup(array, &uuid, &own)));
    let mut records: Vec<_> = records.collect();
    records.sort_by(|a, b| a.0.cmp(&b.0));
    (200, query.page("/api/protocols/san/igroups", false, records))
}

pub(super) fn get_igroup(array: &Array, uuid: &str, query: &Query) -> Answer {
    let own = array.view().get::<Igroup>(uuid).ok_or_else(no_igroup)?;
    Ok((200, query.shown(igroup(array, uuid, &own), true)))
}

fn no_igroup() -> Failure {
    Failure::new(404, "5374852", "The initiator group does not exist in the SVM.").at("uuid")
}

fn known(change: &Change<'_>, uuid: &str) -> Result<Igroup, Failure> {
    change.get::<Igroup>(uuid).map(|own| (*own).clone()).ok_or_else(no_igroup)
}

/// The names in a list of initiators. They are qualified names here; the array keeps them in lower
/// case.
fn names(list: &[Value]) -> Result<Vec<String>, Failure> {
    let mut names = Vec::new();
    for item in list {
        let name = item.get("name").and_then(Value::as_str).unwrap_or("").to_ascii_lowercase();
        if !["iqn.", "eui."].iter().any(|begin| name.starts_with(begin)) {
            let text = format!("\"{name}\" is not a valid iSCSI initiator name.");
            return Err(Failure::new(400, "5374029", text).at("initiators.name"));
        }
        names.push(name);
    }
    Ok(names)
}

pub(super) fn create_igroup(array: &Array, body: &[u8], query: &Query, tunnel: bool) -> Answer {
    let body = &Body::read(body, IGROUP_CREATE)?;
    svm_of(array, body, tunnel)?;
    let text = |name: &str, other: &str| body.text(name).unwrap_or(other).to_owned();
    let own = Igroup {
        name: text("name", ""),
        os_type: text("os_type", ""),
        protocol: text("protocol", "mixed"),
        comment: text("comment", ""),
        initiators: names(&body.list("initiators"))?,
    };
    let uuid = new_uuid();
    array.change(|change| {
        let all = change.all::<Igroup>();
        if all.iter().any(|(_, other)| other.name == own.name) {
            let text = "An initiator group with the supplied name already exists.";
            return Err(Failure::new(409, "5374023", text).at("name"));
        }
        change.within("hosts", all.len() as u64)?;
        change.put::<_, Failure>(&uuid, &own)
    })?;
    Ok(made(query, || igroup(array, &uuid, &own)))
}

pub(super) fn modify_igroup(array: &Array, uuid: &str, body: &[u8]) -> Answer {
    let body = &Body::read(body, IGROUP_MODIFY)?;
    array.change(|change| {
        let mut own = known(change, uuid)?;
        for (field, slot) in
            [("name", &mut own.name), ("comment", &mut own.comment), ("os_type", &mut own.os_type)]
        {
            if let Some(text) = body.text(field) {
                text.clone_into(slot);
            }
        }
        change.put::<_, Failure>(uuid, &own)
    })?;
    Ok((200, json!({})))
}

pub(super) fn delete_igroup(array: &Array, uuid: &str, query: &Query) -> Answer {
    array.change(|change| {
        known(change, uuid)?;
        let maps = change.all::<Map>().into_iter().filter(|(_, map)| map.igroup == uuid);
        let maps: Vec<String> = maps.map(|(key, _)| key).collect();
        if !maps.is_empty() && !query.force {
            let text = "LUNs are mapped to the initiator group.";
            return Err(Failure::new(409, "1254213", text));
        }
        for key in maps {
            change.remove::<Map>(&key);
        }
        change.remove::<Igroup>(uuid);
        Ok::<_, Failure>(())
    })?;
    Ok((200, json!({})))
}

pub(super) fn add_initiators(array: &Array, uuid: &str, body: &[u8]) -> Answer {
    let body = &Body::read(body, INITIATOR_CREATE)?;
    let mut list = body.list("records");
    if let Some(name) = body.text("name") {
        list.push(json!({ "name": name }));
    }
    let names = names(&list)?;
    if names.is_empty() {
        return Err(Failure::required("name"));
    }
    array.change(|change| {
        let mut own = known(change, uuid)?;
        for name in names {
            if own.initiators.contains(&name) {
                let text = format!("Initiator \"{name}\" is in the initiator group already.");
                return Err(Failure::new(409, "5374035", text).at("name"));
            }
            own.initiators.push(name);
        }
        change.put::<_, Failure>(uuid, &own)
    })?;
    Ok((201, json!({})))
}

pub(super) fn remove_initiator(array: &Array, uuid: &str, name: &str) -> Answer {
    array.change(|change| {
        let mut own = known(change, uuid)?;
        let before = own.initiators.len();
        own.initiators.retain(|other| !other.eq_ignore_ascii_case(name));
        if own.initiators.len() == before {
            return Err(Failure::new(404, "5374038", "The initiator is not in the group."));
        }
        change.put::<_, Failure>(uuid, &own)
    })?;
    Ok((200, json!({})))
}

fn map(array: &Array, view: &View, map: &Map) -> Option<Value> {
    let lun = view.get::<Volume>(&map.lun)?;
    let own = view.get::<Igroup>(&map.igroup)?;
    Some(json!({
        "svm": svm(array), "logical_unit_number": map.number,
        "lun": { "name": map.lun, "uuid": dashed(&lun.uuid), "node": { "name": "node1" } },
        "igroup": {
            "name": own.name, "uuid": map.igroup, "os_type": own.os_type,
            "protocol": own.protocol, "initiators": own.initiators,
        },
    }))
}

/// Objects that have neither UUID nor name: what is answered without being asked for is this.
fn keyed(mut record: Value, query: &Query) -> Value {
    let initiators = query.exactly("igroup.initiators").is_some() || query.asks("igroup");
    if let (false, Some(group)) =
        (initiators, record.get_mut("igroup").and_then(Value::as_object_mut))
    {
        group.retain(|name, _| matches!(name.as_str(), "name" | "uuid"));
    }
    record
}

pub(super) fn maps(array: &Array, query: &Query) -> Said {
    let view = array.view();
    let all = view.all::<Map>().into_iter();
    let records = all.filter_map(|(key, own)| Some((key, keyed(map(array, &view, &own)?, query))));
    (200, query.page_whole("/api/protocols/san/lun-maps", records.collect()))
}

pub(super) fn get_map(array: &Array, lun: &str, igroup: &str) -> Answer {
    let view = array.view();
    let path = find(&view, lun).map(|(path, _)| path).unwrap_or_default();
    let found = view.get::<Map>(&map_key(&path, igroup)).and_then(|own| map(array, &view, &own));
    Ok((200, found.ok_or_else(no_map)?))
}

fn no_map() -> Failure {
    Failure::new(404, "5374922", "The specified LUN map was not found.")
}

pub(super) fn create_map(array: &Array, body: &[u8], query: &Query, tunnel: bool) -> Answer {
    let body = &Body::read(body, MAP_CREATE)?;
    svm_of(array, body, tunnel)?;
    let made_map = array.change(|change| {
        let view = change.view();
        let path = match (body.text("lun.uuid"), body.text("lun.name")) {
            (Some(uuid), _) => find(&view, uuid).map(|(path, _)| path),
            (None, Some(name)) => Some(name.to_owned()),
            (None, None) => {
                let text = "Either lun.uuid or lun.name must be provided to create a LUN map.";
                return Err(Failure::new(400, "5374901", text));
            }
        };
        let missing = || Failure::new(404, "5374875", "The specified LUN was not found.").at("lun");
        let path = path.filter(|path| view.get::<Volume>(path).is_some()).ok_or_else(missing)?;
        let all = view.all::<Igroup>();
        let uuid = match (body.text("igroup.uuid"), body.text("igroup.name")) {
            (Some(uuid), _) => all.iter().find(|(own, _)| own == uuid),
            (None, Some(name)) => all.iter().find(|(_, own)| own.name == name),
            (None, None) => {
                let text =
                    "Either igroup.uuid or igroup.name must be provided to create a LUN map.";
                return Err(Failure::new(400, "5374902", text));
            }
        };
        let (uuid, group) = uuid.ok_or_else(no_igroup)?;
        let key = map_key(&path, uuid);
        if change.get::<Map>(&key).is_some() {
            let text = "The LUN is already mapped to the same initiator group.";
            return Err(Failure::new(409, "1254207", text));
        }
        // Numbers are one's own for each initiator, in whichever groups it is.
        let theirs =
            |other: &Igroup| other.initiators.iter().any(|name| group.initiators.contains(name));
        let others = change.all::<Map>().into_iter().filter(|(_, other)| {
            other.igroup == *uuid || view.get::<Igroup>(&other.igroup).is_some_and(|o| theirs(&o))
        });
        let taken: BTreeSet<u16> = others.map(|(_, other)| other.number).collect();
        let most = change.settings().limits.get("luns").copied().unwrap_or(4095).min(4095) as u16;
        let free = (0..=most).find(|number| !taken.contains(number));
        let number = match body.number("logical_unit_number") {
            Some(number) => u16::try_from(number).unwrap_or(u16::MAX),
            None => free.ok_or_else(|| {
                Failure::new(400, "1254194", "No LUN ID is left in the initiator group.")
            })?,
        };
        if taken.contains(&number) {
            let text = "LUN ID is already in use by another LUN of this initiator.";
            return Err(Failure::new(409, "1254193", text).at("logical_unit_number"));
        }
        let own = Map { lun: path, igroup: uuid.clone(), number };
        change.put::<_, Failure>(&key, &own)?;
        Ok::<_, Failure>(own)
    })?;
    Ok(made(query, || map(array, &array.current(), &made_map).unwrap_or_default()))
}

pub(super) fn delete_map(array: &Array, lun: &str, igroup: &str) -> Answer {
    array.change(|change| {
        let path = find(&change.view(), lun).map(|(path, _)| path).unwrap_or_default();
        let key = map_key(&path, igroup);
        change.get::<Map>(&key).ok_or_else(no_map)?;
        change.remove::<Map>(&key);
        Ok::<_, Failure>(())
    })?;
    Ok((200, json!({})))
}

pub(super) fn services(array: &Array, query: &Query) -> Said {
    let service = json!({
        "svm": svm(array), "enabled": setting(array, "iscsi", &json!(true)),
        "target": { "name": target(), "alias": "svm" },
    });
    (200, query.page_whole("/api/protocols/san/iscsi/services", vec![(String::new(), service)]))
}

pub(super) fn interfaces(array: &Array, query: &Query) -> Said {
    let served = array.portal().map_or_else(|| "127.0.0.1".to_owned(), |at| at.ip().to_string());
    let addresses = setting(array, "addresses", &json!([served]));
    let addresses: Vec<&str> =
        addresses.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let records = addresses.iter().enumerate().map(|(n, address)| {
        let name = format!("iscsi_lif_{n}");
        let record = json!({
            "uuid": format!("1cd8a442-86d1-11e0-ae1c-{n:012}"), "name": name, "enabled": true,
            "state": "up", "ip": { "address": address, "netmask": "24" }, "scope": "svm",
            "services": ["data_core", "data_iscsi"], "svm": svm(array),
        });
        (name, record)
    });
    (200, query.page("/api/network/ip/interfaces", false, records.collect()))
}

/// The LUNs that the objects make.
pub(super) fn exports(view: &View) -> Vec<Export> {
    let all = view.all::<Map>().into_iter();
    let exports = all.filter_map(|(_, own)| {
        let lun = view.get::<Volume>(&own.lun)?;
        let group = view.get::<Igroup>(&own.igroup)?;
        if !lun.online {
            return None;
        }
        let serial = serial(&lun);
        Some(Export {
            target: target(),
            lun: own.number,
            volume: own.lun.clone(),
            snapshot: false,
            who: Who::Only(group.initiators.clone()),
            chap: None,
            read_only: false,
            block: 512,
            identity: Identity {
                vendor: "NETAPP".to_owned(),
                product: "LUN C-Mode".to_owned(),
                revision: "9141".to_owned(),
                naa: format!("600a0980{}", hex(serial.as_bytes())),
                serial,
            },
        })
    });
    exports.collect()
}
