//! Hosts, connections and ports: who reaches what, and where.

use serde_json::{Value, json};

use super::failure::{Refused, each};
use super::objects::{Connection, Host, check_name, named, serial, volume_of};
use super::request::{Request, Sorted, done};
use crate::core::{Array, Change, Export, Identity, Trouble, View, Volume, Who};
use crate::http::Say;

/// Private LUNs are counted up from 1.
const LUNS: std::ops::RangeInclusive<u16> = 1..=4095;

fn host_of(view: &View, name: &str) -> Result<String, Refused> {
    named::<Host>(view, name).ok_or_else(|| Refused::of("Host does not exist.", name))
}

fn show(view: &View, name: &str, host: &Host) -> Value {
    let count = view.all::<Connection>().iter().filter(|(_, one)| one.host == name).count();
    let chap = |key: &str| host.chap.as_ref().and_then(|chap| chap.get(key)).cloned();
    let hidden = |key: &str| chap(key).map(|_| "****");
    json!({
        "name": name, "iqns": host.iqns, "wwns": host.wwns, "nqns": host.nqns,
        "personality": host.personality, "connection_count": count, "is_local": true,
        "host_group": {"name": null}, "preferred_arrays": [], "vlan": null,
        "chap": {
            "host_user": chap("host_user"), "host_password": hidden("host_password"),
            "target_user": chap("target_user"), "target_password": hidden("target_password"),
        },
    })
}

pub(super) fn list(request: &Request<'_>) -> Result<Say, Refused> {
    let view = request.array.view();
    let names = request.list("names");
    let names = if names.is_empty() {
        view.all::<Host>().into_iter().map(|(name, _)| name).collect()
    } else {
        each(&names, |name| host_of(&view, name))?
    };
    let items = names.into_iter().filter_map(|name| {
        let host = view.get::<Host>(&name)?;
        Some((name.clone(), show(&view, &name, &host)))
    });
    request.page(items.collect::<Vec<Sorted>>())
}

fn texts(request: &Request<'_>, field: &str) -> Option<Vec<String>> {
    let list = request.member(field)?.as_array()?;
    Some(list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

/// An initiator belongs to one host.
fn check_ports(change: &Change<'_>, name: &str, host: &Host) -> Result<(), Refused> {
    for iqn in &host.iqns {
        if !["iqn.", "eui.", "naa."].iter().any(|prefix| iqn.starts_with(prefix)) {
            return Err(Refused::of("Invalid IQN.", iqn));
        }
    }
    for (other, its) in change.all::<Host>() {
        let taken = |own: &[String], its: &[String]| {
            own.iter().find(|port| its.iter().any(|one| one.eq_ignore_ascii_case(port))).cloned()
        };
        let taken = taken(&host.iqns, &its.iqns)
            .or_else(|| taken(&host.wwns, &its.wwns))
            .or_else(|| taken(&host.nqns, &its.nqns));
        if let Some(port) = taken.filter(|_| other != name) {
            return Err(Refused::of(
                &format!("The specified IQN is already in use by {other}."),
                &port,
            ));
        }
    }
    Ok(())
}

pub(super) fn create(request: &Request<'_>) -> Result<Say, Refused> {
    let array = request.array;
    let made = each(&request.list("names"), |name| {
        array.change(|change| {
            check_name(name, "host")?;
            if named::<Host>(&change.view(), name).is_some() {
                return Err(Refused::of("Host already exists.", name));
            }
            change.within("hosts", change.all::<Host>().len() as u64)?;
            let mut host = Host::default();
            set(request, &mut host);
            check_ports(change, name, &host)?;
            change.put::<_, Refused>(name, &host)?;
            Ok(show(&change.view(), name, &host))
        })
    })?;
    Ok(done(made))
}

fn set(request: &Request<'_>, host: &mut Host) {
    for (field, own) in
        [("iqns", &mut host.iqns), ("wwns", &mut host.wwns), ("nqns", &mut host.nqns)]
    {
        if let Some(list) = texts(request, field) {
            *own = list;
        }
        for one in texts(request, &format!("add_{field}")).unwrap_or_default() {
            if !own.contains(&one) {
                own.push(one);
            }
        }
        let gone = texts(request, &format!("remove_{field}")).unwrap_or_default();
        own.retain(|one| !gone.contains(one));
    }
    if let Some(personality) = request.member("personality").and_then(Value::as_str) {
        host.personality = Some(personality.to_owned());
    }
    if let Some(chap) = request.member("chap") {
        host.chap = Some(chap.clone());
    }
}

pub(super) fn update(request: &Request<'_>) -> Result<Say, Refused> {
    let array = request.array;
    let changed = each(&request.list("names"), |name| {
        array.change(|change| {
            let mut name = host_of(&change.view(), name)?;
            let mut host = change.get::<Host>(&name).map(|one| (*one).clone()).unwrap_or_default();
            set(request, &mut host);
            check_ports(change, &name, &host)?;
            change.put::<_, Refused>(&name, &host)?;
            if let Some(to) = request.member("name").and_then(Value::as_str) {
                check_name(to, "host")?;
                if named::<Host>(&change.view(), to).is_some() {
                    return Err(Refused::of("Host already exists.", to));
                }
                change.remove::<Host>(&name);
                change.put::<_, Refused>(to, &host)?;
                for (key, one) in change.all::<Connection>() {
                    if one.host == name {
                        change.remove::<Connection>(&key);
                        let moved = Connection { host: to.to_owned(), ..(*one).clone() };
                        change.put::<_, Refused>(&Connection::key(to, &one.volume), &moved)?;
                    }
                }
                to.clone_into(&mut name);
            }
            Ok::<_, Refused>(show(&change.view(), &name, &host))
        })
    })?;
    Ok(done(changed))
}

pub(super) fn delete(request: &Request<'_>) -> Result<Say, Refused> {
    each(&request.list("names"), |name| {
        request.array.change(|change| {
            let name = host_of(&change.view(), name)?;
            if change.all::<Connection>().iter().any(|(_, one)| one.host == name) {
                let text = "Host cannot be deleted due to existing connections.";
                return Err(Refused::of(text, &name));
            }
            change.remove::<Host>(&name);
            Ok(())
        })
    })?;
    Ok(done(Vec::new()))
}

fn show_connection(view: &View, one: &Connection) -> Value {
    let volume = view.get::<Volume>(&one.volume).map(|volume| super::objects::id(&volume.uuid));
    json!({
        "host": {"name": one.host}, "host_group": {"name": null}, "lun": one.lun,
        "volume": {"id": volume, "name": one.volume},
        "protocol_endpoint": {"id": null, "name": null},
    })
}

/// The hosts and volumes that a request names. Host groups are not configured here.
fn pair(request: &Request<'_>, view: &View) -> Result<(Vec<String>, Vec<String>), Refused> {
    if let Some(group) = request.list("host_group_names").first() {
        return Err(Refused::of("Host group does not exist.", group));
    }
    let hosts = each(&request.list("host_names"), |name| host_of(view, name))?;
    let volumes = match (request.list("volume_names"), request.list("volume_ids")) {
        (names, _) if !names.is_empty() => each(&names, |name| volume_of(view, name, false))?,
        (_, ids) => each(&ids, |id| volume_of(view, id, true))?,
    };
    Ok((hosts, volumes))
}

pub(super) fn connections(request: &Request<'_>) -> Result<Say, Refused> {
    let view = request.array.view();
    let (hosts, volumes) = pair(request, &view)?;
    let all = view.all::<Connection>().into_iter().filter(|(_, one)| {
        (hosts.is_empty() || hosts.contains(&one.host))
            && (volumes.is_empty() || volumes.contains(&one.volume))
    });
    request.page(all.map(|(key, one)| (key, show_connection(&view, &one))).collect())
}

/// The host and volume of a change: one of each, at least.
fn needed(request: &Request<'_>, view: &View) -> Result<(Vec<String>, Vec<String>), Refused> {
    let (hosts, volumes) = pair(request, view)?;
    if hosts.is_empty() || volumes.is_empty() {
        return Err(Refused::of("A host and a volume are required.", ""));
    }
    Ok((hosts, volumes))
}

pub(super) fn connect(request: &Request<'_>) -> Result<Say, Refused> {
    let array = request.array;
    let (hosts, volumes) = needed(request, &array.current())?;
    let wanted = request.member("lun").and_then(Value::as_u64);
    let wanted = wanted.and_then(|lun| u16::try_from(lun).ok());
    let mut made = Vec::new();
    for host in &hosts {
        made.extend(each(&volumes, |volume| {
            array.change(|change| {
                if !change.volume(volume)?.online {
                    return Err(Refused::of("Volume has been destroyed.", volume));
                }
                let key = Connection::key(host, volume);
                if change.get::<Connection>(&key).is_some() {
                    return Err(Refused::of("Connection already exists.", volume));
                }
                let all = change.all::<Connection>();
                let own = all.iter().filter(|(_, one)| one.host == *host);
                let taken: Vec<u16> = own.map(|(_, one)| one.lun).collect();
                change.within("luns", taken.len() as u64)?;
                if let Some(lun) = wanted.filter(|lun| taken.contains(lun)) {
                    return Err(Refused::of(&format!("LUN {lun} is already in use."), host));
                }
                let free = || LUNS.into_iter().find(|lun| !taken.contains(lun));
                let full = || Trouble::Limit("LUNs of a host", 4095);
                let lun = wanted.or_else(free).ok_or_else(full)?;
                let one = Connection { host: host.clone(), volume: volume.to_owned(), lun };
                change.put::<_, Refused>(&key, &one)?;
                Ok(show_connection(&change.view(), &one))
            })
        })?);
    }
    Ok(done(made))
}

pub(super) fn disconnect(request: &Request<'_>) -> Result<Say, Refused> {
    let array = request.array;
    let (hosts, volumes) = needed(request, &array.current())?;
    for host in &hosts {
        each(&volumes, |volume| {
            array.change(|change| {
                let key = Connection::key(host, volume);
                if change.get::<Connection>(&key).is_none() {
                    return Err(Refused::of("Connection does not exist.", volume));
                }
                change.remove::<Connection>(&key);
                Ok(())
            })
        })?;
    }
    Ok(done(Vec::new()))
}

/// The array's target: one for all its ports.
fn target(vendor: &serde_json::Map<String, Value>) -> String {
    let own = vendor.get("iqn").and_then(Value::as_str);
    own.unwrap_or("iqn.2010-06.com.purestorage:flasharray.5eed5eed5eed5eed").to_owned()
}

/// A port of iSCSI, and one of Fibre Channel, which has neither portal nor qualified name.
pub(super) fn ports(request: &Request<'_>) -> Result<Say, Refused> {
    let array = request.array;
    let portal = array.portal().map(|address| address.to_string());
    let mut items = vec![
        (
            "CT0.ETH4".to_owned(),
            json!({"name": "CT0.ETH4", "iqn": target(&array.settings().vendor), "portal": portal,
                "nqn": null, "wwn": null, "failover": null}),
        ),
        (
            "CT0.FC0".to_owned(),
            json!({"name": "CT0.FC0", "iqn": null, "portal": null, "nqn": null,
                "wwn": "52:4A:93:70:4E:E5:68:00", "failover": null}),
        ),
    ];
    let names = request.list("names");
    items.retain(|(name, _)| names.is_empty() || names.contains(name));
    request.page(items)
}

/// The LUNs that the connections make.
pub(super) fn exports(view: &View) -> Vec<Export> {
    let settings = view.get::<crate::core::Settings>("");
    let target =
        settings.map_or_else(|| target(&serde_json::Map::new()), |own| target(&own.vendor));
    let export = |one: &Connection| {
        let (host, volume) = (view.get::<Host>(&one.host)?, view.get::<Volume>(&one.volume)?);
        let secret = |key: &str| {
            let chap = host.chap.as_ref()?.get(key)?.as_str()?;
            (!chap.is_empty()).then(|| chap.to_owned())
        };
        let serial = serial(&volume.uuid);
        Some(Export {
            target: target.clone(),
            lun: one.lun,
            volume: one.volume.clone(),
            snapshot: false,
            who: Who::Only(host.iqns.clone()),
            chap: secret("host_user").zip(secret("host_password")),
            read_only: false,
            block: 512,
            identity: Identity {
                vendor: "PURE".to_owned(),
                product: "FlashArray".to_owned(),
                revision: "8888".to_owned(),
                naa: format!("624a9370{}", serial.to_ascii_lowercase()),
                serial,
            },
        })
    };
    view.all::<Connection>().iter().filter_map(|(_, one)| export(one)).collect()
}

/// What `GET /arrays` shows.
pub(super) fn arrays(request: &Request<'_>) -> Result<Say, Refused> {
    let array: &Array = request.array;
    let mut items = Vec::new();
    for (name, _) in array.view().all::<crate::core::Pool>() {
        let space = array.space(&name)?;
        let provisioned: u64 =
            array.view().all::<Volume>().iter().map(|(_, volume)| volume.size).sum();
        let mut sizes = json!({
            "total_physical": space.used, "unique": space.used, "shared": 0, "snapshots": 0,
            "system": 0, "total_provisioned": provisioned, "data_reduction": 1.0,
            "thin_provisioning": 0.0, "total_reduction": 1.0, "replication": 0,
        });
        if let (true, Some(sizes)) = (request.version >= 26, sizes.as_object_mut()) {
            sizes.insert("total_used".to_owned(), json!(space.used));
        }
        items.push((
            name.clone(),
            json!({
                "id": "5eed5eed-0000-4000-8000-000000000001", "name": name, "os": "Purity//FA",
                "version": "6.4.10", "capacity": space.capacity, "space": sizes, "parity": 1.0,
                "idle_timeout": 3_600_000, "scsi_timeout": 60_000, "banner": "",
                "console_lock_enabled": false, "ntp_servers": [],
            }),
        ));
    }
    request.page(items)
}
