//! `iscsi.*`: the objects that make a zvol a LUN, and the LUNs that they make.

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::failure::{EINVAL, Failure};
use super::objects::{
    Auth, Extent, Global, Initiator, Portal, Row, Service, Target, TargetExtent, key,
};
use super::query::Query;
use super::schema::{self, AUTH, EXTENT, GLOBAL, INITIATOR, PORTAL, TARGET, TARGET_EXTENT};
use crate::core::{Array, Change, Export, Identity, Snapshot, View, Volume, Who, hex};
use crate::schema::Field;

/// The highest LUN number.
const LUNS: i64 = 16382;

pub(super) fn rows<R: Row>(array: &Array, query: &Query) -> Result<Value, Failure> {
    let view = array.view();
    let all = view.all::<R>().into_iter().map(|(_, row)| Value::Object(row.fields().clone()));
    query.run(all.collect())
}

/// A portal says the port at which LUNs are really served.
fn shown(array: &Array, row: &Portal) -> Value {
    let port = array.portal().map_or(3260, |served| served.port());
    let mut fields = row.fields().clone();
    let listen = row.list("listen").iter().map(|listen| {
        let ip = listen.get("ip").and_then(Value::as_str).unwrap_or("0.0.0.0");
        json!({"ip": ip, "port": port})
    });
    fields.insert("listen".to_owned(), listen.collect());
    Value::Object(fields)
}

pub(super) fn portals(array: &Array, query: &Query) -> Result<Value, Failure> {
    let view = array.view();
    query.run(view.all::<Portal>().iter().map(|(_, row)| shown(array, row)).collect())
}

fn with_defaults(body: &Value, defaults: Value) -> Map<String, Value> {
    let mut fields = match defaults {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    for (name, value) in body.as_object().into_iter().flatten() {
        fields.insert(name.clone(), value.clone());
    }
    fields
}

fn find<R: Row>(change: &Change<'_>, id: i64) -> Result<R, Failure> {
    let row = change.get::<R>(&key(id));
    row.map(|row| (*row).clone()).ok_or_else(|| Failure::NoInstance(format!("{} {id}", R::NAME)))
}

/// Makes a row or changes one: checks what the schema says, then what `check` says.
fn keep<R: Row>(
    array: &Array,
    id: Option<i64>,
    body: &Value,
    fields: &'static [Field],
    check: impl Fn(&Change<'_>, &str, &mut Map<String, Value>, Option<i64>) -> Result<(), Failure>,
    defaults: Value,
) -> Result<Value, Failure> {
    let name = R::NAME.replace('.', "_");
    let at = format!("{name}_{}", if id.is_some() { "update" } else { "create" });
    schema::check(&at, fields, body, id.is_none())?;
    array.change(|change| {
        let mut row = match id {
            Some(id) => {
                let old = Value::Object(find::<R>(change, id)?.fields().clone());
                with_defaults(body, old)
            }
            None => with_defaults(body, defaults),
        };
        check(change, &at, &mut row, id)?;
        let id = match id {
            Some(id) => id,
            None => i64::try_from(change.number(R::TABLE)?).unwrap_or(0),
        };
        row.insert("id".to_owned(), json!(id));
        change.put::<_, Failure>(&key(id), &R::new(row.clone()))?;
        Ok(Value::Object(row))
    })
}

pub(super) fn keep_portal(array: &Array, id: Option<i64>, body: &Value) -> Result<Value, Failure> {
    let made =
        keep::<Portal>(array, id, body, PORTAL, |_, _, _, _| Ok(()), json!({"comment": ""}))?;
    let id = made.get("id").and_then(Value::as_i64).unwrap_or(0);
    let portal = array.change(|change| {
        let mut portal = find::<Portal>(change, id)?;
        portal.0.insert("tag".to_owned(), json!(id));
        change.put::<_, Failure>(&key(id), &portal)?;
        Ok::<_, Failure>(portal)
    })?;
    Ok(shown(array, &portal))
}

pub(super) fn keep_initiator(
    array: &Array,
    id: Option<i64>,
    body: &Value,
) -> Result<Value, Failure> {
    let defaults = json!({"initiators": [], "comment": ""});
    keep::<Initiator>(array, id, body, INITIATOR, |_, _, _, _| Ok(()), defaults)
}

pub(super) fn keep_auth(array: &Array, id: Option<i64>, body: &Value) -> Result<Value, Failure> {
    let check = |_: &Change<'_>, at: &str, row: &mut Map<String, Value>, _| {
        let secret = row.get("secret").and_then(Value::as_str).unwrap_or("").len();
        if (12..=16).contains(&secret) {
            return Ok(());
        }
        let text = "Secret must be between 12 and 16 characters.";
        Err(Failure::field(&format!("{at}.secret"), text, EINVAL))
    };
    let defaults = json!({"peeruser": "", "peersecret": "", "discovery_auth": "NONE"});
    keep::<Auth>(array, id, body, AUTH, check, defaults)
}

pub(super) fn keep_target(array: &Array, id: Option<i64>, body: &Value) -> Result<Value, Failure> {
    let defaults = json!({
        "alias": null, "mode": "ISCSI", "groups": [], "auth_networks": [], "iscsi_parameters": null,
    });
    keep::<Target>(array, id, body, TARGET, check_target, defaults)
}

fn check_target(
    change: &Change<'_>,
    at: &str,
    row: &mut Map<String, Value>,
    id: Option<i64>,
) -> Result<(), Failure> {
    let name = row.get("name").and_then(Value::as_str).unwrap_or("").to_owned();
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-:".contains(c);
    let fails =
        |field: &str, text: &str| Err(Failure::field(&format!("{at}.{field}"), text, EINVAL));
    if !name.chars().all(good) {
        let text =
            "Lowercase alphanumeric characters plus dot (.), dash (-), and colon (:) are allowed.";
        return fails("name", text);
    }
    for (_, other) in change.all::<Target>() {
        if Some(other.id()) == id {
            continue;
        }
        if other.text("name") == name {
            return fails("name", "Target with this name already exists");
        }
        let alias = row.get("alias").and_then(Value::as_str);
        if alias.is_some_and(|alias| other.text("alias") == alias) {
            return fails("alias", "Target with this alias already exists");
        }
    }
    if !row.contains_key("rel_tgt_id") {
        let all = change.all::<Target>();
        let last = all.iter().filter_map(|(_, one)| one.number("rel_tgt_id")).max();
        row.insert("rel_tgt_id".to_owned(), json!(last.unwrap_or(0) + 1));
    }
    let mut groups = row.get("groups").and_then(Value::as_array).cloned().unwrap_or_default();
    for (number, group) in groups.iter_mut().enumerate() {
        let is = |name: &str| group.get(name).and_then(Value::as_i64);
        let field = |name: &str| format!("groups.{number}.{name}");
        if is("portal").is_none_or(|id| change.get::<Portal>(&key(id)).is_none()) {
            return fails(&field("portal"), "Invalid portal");
        }
        if is("initiator").is_some_and(|id| change.get::<Initiator>(&key(id)).is_none()) {
            return fails(&field("initiator"), "Invalid initiator");
        }
        let method = group.get("authmethod").and_then(Value::as_str).unwrap_or("NONE").to_owned();
        let tag = is("auth");
        if method != "NONE" && tag.is_none() {
            let text = "Authentication group is required for CHAP and CHAP Mutual";
            return fails(&field("auth"), text);
        }
        if tag.is_some_and(|tag| {
            !change.all::<Auth>().iter().any(|(_, a)| a.number("tag") == Some(tag))
        }) {
            return fails(&field("auth"), "Invalid authentication group");
        }
        let (initiator, tag) = (is("initiator"), tag);
        if let Some(group) = group.as_object_mut() {
            group.insert("authmethod".to_owned(), json!(method));
            group.insert("initiator".to_owned(), json!(initiator));
            group.insert("auth".to_owned(), json!(tag));
        }
    }
    row.insert("groups".to_owned(), Value::Array(groups));
    Ok(())
}

pub(super) fn keep_extent(array: &Array, id: Option<i64>, body: &Value) -> Result<Value, Failure> {
    let uuid = Uuid::new_v4().to_string();
    let digest = Sha256::digest(uuid.as_bytes());
    let digits = hex(&digest);
    let serial: String = Uuid::new_v4().simple().to_string().chars().take(15).collect();
    let defaults = json!({
        "type": "DISK", "disk": null, "serial": serial, "path": null, "filesize": "0",
        "blocksize": 512, "pblocksize": false, "avail_threshold": null, "comment": "",
        "naa": format!("0x6589cfc000000{}", digits.get(..19).unwrap_or("")),
        "insecure_tpc": true, "xen": false, "rpm": "SSD", "ro": false, "enabled": true,
        "vendor": "TrueNAS", "locked": false,
    });
    keep::<Extent>(array, id, body, EXTENT, check_extent, defaults)
}

fn check_extent(
    change: &Change<'_>,
    at: &str,
    row: &mut Map<String, Value>,
    id: Option<i64>,
) -> Result<(), Failure> {
    let text = |name: &str| row.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
    let fails =
        |field: &str, text: &str| Err(Failure::field(&format!("{at}.{field}"), text, EINVAL));
    let (name, disk, serial) = (text("name"), text("disk"), text("serial"));
    if name.contains('"') {
        return fails("name", "Double quotes are not allowed");
    }
    if text("type") != "DISK" {
        return fails("type", "The simulator has no extents in files");
    }
    if disk.is_empty() {
        return fails("disk", "This field is required");
    }
    let Some(zvol) = disk.strip_prefix("zvol/") else {
        return fails("disk", "Disk name must start with \"zvol/\"");
    };
    for (_, other) in change.all::<Extent>() {
        if Some(other.id()) == id {
            continue;
        }
        if other.text("name") == name {
            return fails("name", "Extent name must be unique");
        }
        if other.text("serial") == serial {
            return fails("serial", "Serial number must be unique");
        }
        if other.text("disk") == disk {
            return fails(
                "disk",
                &format!("Disk currently in use by extent {}", other.text("name")),
            );
        }
    }
    let snapshot = zvol.contains('@');
    let there = if snapshot {
        change.get::<Snapshot>(zvol).is_some()
    } else {
        change.get::<Volume>(zvol).is_some()
    };
    if !there {
        return fails("disk", &format!("Device '/dev/{disk}' for volume '{zvol}' does not exist"));
    }
    if snapshot && row.get("ro") != Some(&Value::Bool(true)) {
        return fails("ro", "Must be set when disk is a ZFS Snapshot");
    }
    if row.get("serial") == Some(&Value::Null) {
        let serial: String = Uuid::new_v4().simple().to_string().chars().take(15).collect();
        row.insert("serial".to_owned(), json!(serial));
    }
    row.insert("path".to_owned(), json!(disk));
    Ok(())
}

pub(super) fn keep_targetextent(
    array: &Array,
    id: Option<i64>,
    body: &Value,
) -> Result<Value, Failure> {
    keep::<TargetExtent>(array, id, body, TARGET_EXTENT, check_targetextent, json!({"lunid": null}))
}

fn check_targetextent(
    change: &Change<'_>,
    at: &str,
    row: &mut Map<String, Value>,
    id: Option<i64>,
) -> Result<(), Failure> {
    let number = |name: &str| row.get(name).and_then(Value::as_i64).unwrap_or(-1);
    let fails =
        |field: &str, text: &str| Err(Failure::field(&format!("{at}.{field}"), text, EINVAL));
    let (target, extent) = (number("target"), number("extent"));
    if change.get::<Target>(&key(target)).is_none() {
        return fails("target", &format!("Target {target} does not exist"));
    }
    if change.get::<Extent>(&key(extent)).is_none() {
        return fails("extent", &format!("Extent {extent} does not exist"));
    }
    let others = change.all::<TargetExtent>();
    let others: Vec<_> = others
        .iter()
        .filter(|(_, other)| Some(other.id()) != id && other.number("target") == Some(target))
        .collect();
    let taken: Vec<i64> = others.iter().filter_map(|(_, other)| other.number("lunid")).collect();
    // The smallest free number, where none is asked for.
    let free = (0..=LUNS).find(|lun| !taken.contains(lun)).unwrap_or(LUNS);
    let lun = row.get("lunid").and_then(Value::as_i64).unwrap_or(free);
    if !(0..=LUNS).contains(&lun) {
        let text = format!("LUN ID must be a positive integer and lower than {LUNS}");
        return fails("lunid", &text);
    }
    if taken.contains(&lun) {
        return fails("lunid", "LUN ID is already being used for this target.");
    }
    if others.iter().any(|(_, other)| other.number("extent") == Some(extent)) {
        return fails("target", "Extent is already in this target.");
    }
    row.insert("lunid".to_owned(), json!(lun));
    Ok(())
}

fn in_use(array: &Array, name: &str) -> bool {
    let basename = basename(&array.current());
    array.target_in_use(&qualified(&basename, name))
}

fn forced(force: &Value) -> Result<bool, Failure> {
    match force {
        Value::Null => Ok(false),
        Value::Bool(force) => Ok(*force),
        _ => Err(Failure::field("force", "Not a boolean", EINVAL)),
    }
}

pub(super) fn delete_target(array: &Array, id: i64, force: &Value) -> Result<Value, Failure> {
    let force = forced(force)?;
    let name = array.current().get::<Target>(&key(id)).map(|row| row.text("name").to_owned());
    let busy = name.as_ref().is_some_and(|name| in_use(array, name));
    array.change(|change| {
        let target = find::<Target>(change, id)?;
        if busy && !force {
            return Err(Failure::call(format!("Target {} is in use.", target.text("name"))));
        }
        for (other, row) in change.all::<TargetExtent>() {
            if row.number("target") == Some(id) {
                change.remove::<TargetExtent>(&other);
            }
        }
        change.remove::<Target>(&key(id));
        Ok(Value::Bool(true))
    })
}

/// The names of the targets that an extent is in.
fn targets_of(view: &View, extent: i64) -> Vec<String> {
    let rows = view.all::<TargetExtent>().into_iter();
    let of = rows.filter(|(_, row)| row.number("extent") == Some(extent));
    let targets = of.filter_map(|(_, row)| view.get::<Target>(&key(row.number("target")?)));
    targets.map(|target| target.text("name").to_owned()).collect()
}

pub(super) fn delete_extent(array: &Array, id: i64, options: &Value) -> Result<Value, Failure> {
    let force = forced(options.get("force").unwrap_or(&Value::Null))?;
    let busy: Vec<String> =
        targets_of(&array.current(), id).into_iter().filter(|name| in_use(array, name)).collect();
    array.change(|change| {
        find::<Extent>(change, id)?;
        if !busy.is_empty() && !force {
            return Err(Failure::call(format!(
                "Associated target(s) {} is in use.",
                busy.join(",")
            )));
        }
        drop_extent(change, id);
        Ok(Value::Bool(true))
    })
}

fn drop_extent(change: &mut Change<'_>, id: i64) {
    for (other, row) in change.all::<TargetExtent>() {
        if row.number("extent") == Some(id) {
            change.remove::<TargetExtent>(&other);
        }
    }
    change.remove::<Extent>(&key(id));
}

pub(super) fn delete_targetextent(array: &Array, id: i64, force: &Value) -> Result<Value, Failure> {
    let force = forced(force)?;
    let view = array.current();
    let target = view.get::<TargetExtent>(&key(id)).and_then(|row| row.number("target"));
    let target = target.and_then(|target| view.get::<Target>(&key(target)));
    let name = target.map(|target| target.text("name").to_owned()).unwrap_or_default();
    let busy = !name.is_empty() && in_use(array, &name);
    array.change(|change| {
        find::<TargetExtent>(change, id)?;
        if busy && !force {
            return Err(Failure::call(format!("Associated target {name} is in use.")));
        }
        change.remove::<TargetExtent>(&key(id));
        Ok(Value::Bool(true))
    })
}

/// Removes a row that others name only by way of what is checked when they are made.
pub(super) fn delete_row<R: Row>(array: &Array, id: i64) -> Result<Value, Failure> {
    array.change(|change| {
        find::<R>(change, id)?;
        let named = |row: &Target| {
            row.list("groups").iter().any(|group| {
                let field = if R::NAME == "iscsi.portal" { "portal" } else { "initiator" };
                group.get(field).and_then(Value::as_i64) == Some(id)
            })
        };
        if R::NAME != "iscsi.auth" && change.all::<Target>().iter().any(|(_, row)| named(row)) {
            return Err(Failure::call(format!("{} {id} is in use by a target", R::NAME)));
        }
        change.remove::<R>(&key(id));
        Ok(Value::Bool(true))
    })
}

/// Removes the extents of a dataset that is to go. Fails if somebody has one open.
pub(super) fn detach(change: &mut Change<'_>, dataset: &str, force: bool) -> Result<(), ()> {
    let disk = format!("zvol/{dataset}");
    let snapshots = format!("{disk}@");
    let view = change.view();
    let basename = basename(&view);
    for (_, extent) in view.all::<Extent>() {
        if extent.text("disk") != disk && !extent.text("disk").starts_with(&snapshots) {
            continue;
        }
        let targets = targets_of(&view, extent.id());
        if !force && targets.iter().any(|name| change.has_logins(&qualified(&basename, name))) {
            return Err(());
        }
        drop_extent(change, extent.id());
    }
    Ok(())
}

pub(super) fn global(view: &View) -> Map<String, Value> {
    let defaults = json!({
        "id": 1, "basename": "iqn.2005-10.org.freenas.ctl", "isns_servers": [],
        "listen_port": 3260, "pool_avail_threshold": null, "alua": false, "iser": false,
    });
    let own = view.get::<Global>("").map(|row| Value::Object(row.fields().clone()));
    with_defaults(&own.unwrap_or(Value::Null), defaults)
}

pub(super) fn update_global(array: &Array, body: &Value) -> Result<Value, Failure> {
    schema::check("iscsiglobal_update", GLOBAL, body, false)?;
    array.change(|change| {
        let row = with_defaults(body, Value::Object(global(&change.view())));
        change.put::<_, Failure>("", &Global(row.clone()))?;
        Ok(Value::Object(row))
    })
}

fn basename(view: &View) -> String {
    global(view).get("basename").and_then(Value::as_str).unwrap_or("").to_owned()
}

/// The qualified name of a target: with the base name, unless it is one already.
fn qualified(basename: &str, name: &str) -> String {
    let is_whole = ["iqn.", "eui.", "naa."].iter().any(|prefix| name.starts_with(prefix));
    if is_whole { name.to_owned() } else { format!("{basename}:{name}") }
}

pub(super) fn sessions(array: &Array, query: &Query) -> Result<Value, Failure> {
    let all = array.logins(None).into_iter().flat_map(|(target, initiator, count)| {
        let session = json!({
            "initiator": initiator, "initiator_addr": "127.0.0.1", "initiator_alias": null,
            "target": target, "target_alias": target.rsplit(':').next(), "header_digest": "NONE",
            "data_digest": "NONE", "max_data_segment_length": 262_144,
            "max_receive_data_segment_length": 262_144, "max_xmit_data_segment_length": null,
            "max_burst_length": 262_144, "first_burst_length": 65536, "immediate_data": true,
            "iser": false, "offload": false,
        });
        std::iter::repeat_n(session, count)
    });
    query.run(all.collect())
}

/// The LUNs that the objects make.
pub(super) fn exports(view: &View) -> Vec<Export> {
    let service = view.get::<Service>("iscsitarget");
    if service.is_some_and(|service| service.text("state") != "RUNNING") {
        return Vec::new();
    }
    let basename = basename(view);
    let rows = view.all::<TargetExtent>().into_iter();
    rows.filter_map(|(_, row)| export(view, &basename, &row)).collect()
}

fn export(view: &View, basename: &str, row: &TargetExtent) -> Option<Export> {
    let target = view.get::<Target>(&key(row.number("target")?))?;
    let extent = view.get::<Extent>(&key(row.number("extent")?))?;
    if !extent.is("enabled") {
        return None;
    }
    let volume = extent.text("disk").strip_prefix("zvol/")?.to_owned();
    let mut names = Vec::new();
    let mut all = false;
    let mut chap = None;
    for group in target.list("groups") {
        let number = |name: &str| group.get(name).and_then(Value::as_i64);
        let initiators = number("initiator").and_then(|id| view.get::<Initiator>(&key(id)));
        match initiators {
            // No group, or one without names: everybody.
            None => all = true,
            Some(group) if group.list("initiators").is_empty() => all = true,
            Some(group) => {
                let list = group.list("initiators").iter().filter_map(Value::as_str);
                names.extend(list.map(str::to_owned));
            }
        }
        if group.get("authmethod").and_then(Value::as_str) != Some("NONE") {
            let auths = view.all::<Auth>();
            let auth = auths.iter().find(|(_, auth)| auth.number("tag") == number("auth"));
            chap = auth.map(|(_, auth)| (auth.text("user").into(), auth.text("secret").into()));
        }
    }
    Some(Export {
        target: qualified(basename, target.text("name")),
        lun: u16::try_from(row.number("lunid")?).ok()?,
        snapshot: volume.contains('@'),
        volume,
        who: if all { Who::All } else { Who::Only(names) },
        chap,
        read_only: extent.is("ro"),
        block: u32::try_from(extent.number("blocksize")?).ok()?,
        identity: Identity {
            vendor: extent.text("vendor").to_owned(),
            product: "iSCSI Disk".to_owned(),
            revision: "0123".to_owned(),
            serial: extent.text("serial").to_owned(),
            naa: extent.text("naa").trim_start_matches("0x").to_owned(),
        },
    })
}
