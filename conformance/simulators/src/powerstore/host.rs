//! Hosts, their initiators, mappings, and the ports where mapped volumes are served.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::failure::{ATTACHED, Failure, INTERNAL, NO_HOST, NOT_ATTACHED, NOT_MAPPED};
use super::resource::{Show, appliances, object, text, wwn};
use super::schema::{
    HOST_ATTACH, HOST_CREATE, HOST_DETACH, HOST_MODIFY, VOLUME_ATTACH, VOLUME_DETACH, check,
};
use super::volume;
use crate::core::{Array, Change, Export, Identity, Record, Settings, View, Volume, Who};

/// A host, with its initiators as they were given.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Host {
    fields: Map<String, Value>,
    initiators: Vec<Map<String, Value>>,
}

impl Record for Host {
    const TABLE: &'static str = "powerstore.host";
}

/// A volume that a host reaches.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Mapping(pub(super) Map<String, Value>);

impl Record for Mapping {
    const TABLE: &'static str = "powerstore.mapping";
}

impl Mapping {
    fn lun(&self) -> Option<u64> {
        self.0.get("logical_unit_number")?.as_u64()
    }
}

impl Host {
    /// As the collection has it. Passwords are never shown.
    pub(super) fn object(&self, show: &Show<'_>) -> Map<String, Value> {
        let mut fields = self.fields.clone();
        let initiators = self.ports(show).into_iter().map(|mut port| {
            port.remove("id");
            port.remove("host_id");
            Value::Object(port)
        });
        fields.insert("host_initiators".to_owned(), initiators.collect());
        fields
    }

    /// Its initiators, with the targets at which each is logged in.
    pub(super) fn ports(&self, show: &Show<'_>) -> Vec<Map<String, Value>> {
        let logins = show.array.logins(None);
        let all = self.initiators.iter().map(|port| {
            let name = text(port, "port_name");
            let mine = logins.iter().filter(|(_, who, _)| who.eq_ignore_ascii_case(name));
            let sessions = mine.map(|(target, _, _)| json!({ "port_name": target }));
            object(json!({
                "id": format!("{}:{name}", text(&self.fields, "id")),
                "host_id": text(&self.fields, "id"), "port_name": name,
                "port_type": text(port, "port_type"),
                "chap_single_username": port.get("chap_single_username"),
                "active_sessions": sessions.collect::<Vec<_>>(),
            }))
        });
        all.collect()
    }

    fn names(&self) -> Vec<String> {
        self.initiators.iter().map(|port| text(port, "port_name").to_owned()).collect()
    }
}

/// An iSCSI port of an appliance.
#[derive(Clone, Debug)]
pub(super) struct Port {
    number: usize,
    appliance: String,
    address: String,
    iqn: String,
}

impl Port {
    fn id(&self) -> String {
        format!("IP_PORT{}", self.number)
    }

    /// As `ip_pool_address` has it.
    pub(super) fn address(&self) -> Map<String, Value> {
        object(json!({
            "id": format!("IP{}", self.number), "name": format!("{} ({})", self.id(), self.address),
            "network_id": "NW1", "ip_port_id": self.id(), "appliance_id": self.appliance,
            "node_id": "N1", "address": self.address, "purposes": ["Storage_Iscsi_Target"],
        }))
    }

    /// As `ip_port` has it.
    pub(super) fn port(&self) -> Map<String, Value> {
        object(json!({
            "id": self.id(), "partner_id": null, "target_iqn": self.iqn,
            "available_usages": ["ISCSI"], "current_usages": ["ISCSI"],
        }))
    }
}

/// The ports: as many of each appliance as the settings say, at the addresses in turn.
pub(super) fn ports(view: &View) -> Vec<Port> {
    let settings = view.get::<Settings>("");
    let get = |name: &str| settings.as_ref().and_then(|all| all.vendor.get(name).cloned());
    let each = get("ports").and_then(|value| value.as_u64()).unwrap_or(2);
    let addresses = get("addresses").unwrap_or_default();
    let addresses: Vec<&str> =
        addresses.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut all = Vec::new();
    for (appliance, _) in appliances(view) {
        for of_appliance in 0..each {
            let number = all.len() + 1;
            let address = addresses.iter().cycle().nth(number - 1).unwrap_or(&"127.0.0.1");
            let node = if of_appliance % 2 == 0 { 'a' } else { 'b' };
            let iqn = format!(
                "iqn.2015-10.com.dell:dellemc-powerstore-sim-{}-{node}-{number:08x}",
                appliance.to_lowercase(),
            );
            let (appliance, address) = (appliance.clone(), (*address).to_owned());
            all.push(Port { number, appliance, address, iqn });
        }
    }
    all
}

/// Every mapping, at every port of the volume's appliance.
pub(super) fn exports(view: &View) -> Vec<Export> {
    let (ports, appliances) = (ports(view), appliances(view));
    let mut all = Vec::new();
    for (_, mapping) in view.all::<Mapping>() {
        let id = text(&mapping.0, "volume_id");
        let host = view.get::<Host>(text(&mapping.0, "host_id"));
        let (Some(volume), Some(host)) = (view.get::<Volume>(id), host) else { continue };
        let Some(lun) = mapping.lun().and_then(|lun| u16::try_from(lun).ok()) else { continue };
        let appliance = appliances.iter().find(|(_, pool)| *pool == volume.pool);
        let own = ports.iter().filter(|port| Some(&port.appliance) == appliance.map(|(id, _)| id));
        let naa = wwn(&volume.uuid).trim_start_matches("naa.").to_owned();
        all.extend(own.map(|port| Export {
            target: port.iqn.clone(),
            lun,
            volume: id.to_owned(),
            snapshot: false,
            who: Who::Only(host.names()),
            chap: None,
            read_only: false,
            block: 512,
            identity: Identity {
                vendor: "DellEMC".to_owned(),
                product: "PowerStore".to_owned(),
                revision: "4000".to_owned(),
                serial: naa.clone(),
                naa: naa.clone(),
            },
        }));
    }
    all
}

/// The id of a host by id or name.
fn host_id(view: &View, wanted: &str) -> Result<String, Failure> {
    let missing = || {
        let text = format!("No host object found in management database for ID {wanted}");
        Failure::new(404, NO_HOST, text).about(wanted)
    };
    match wanted.strip_prefix("name:") {
        None if view.get::<Host>(wanted).is_some() => Ok(wanted.to_owned()),
        None => Err(missing()),
        Some(name) => {
            let all = view.all::<Host>().into_iter();
            let mut own = all.filter(|(_, host)| text(&host.fields, "name") == name);
            own.next().map(|(id, _)| id).ok_or_else(missing)
        }
    }
}

/// Whether any of these initiators is another host's.
fn unused(change: &Change<'_>, ports: &[Value], own: &str) -> Result<(), Failure> {
    for (id, host) in change.all::<Host>() {
        let taken = |name: &str| host.names().iter().any(|other| other.eq_ignore_ascii_case(name));
        let names = ports.iter().filter_map(|port| port.get("port_name")?.as_str());
        if let Some(name) = names.filter(|_| id != own).find(|name| taken(name)) {
            let text = format!(
                "Initiator {name} is registered with host {} already",
                text(&host.fields, "name")
            );
            return Err(Failure::failed(text).about(name));
        }
    }
    Ok(())
}

fn name_is_free(change: &Change<'_>, name: &str, own: &str) -> Result<(), Failure> {
    let all = change.all::<Host>();
    let mut others = all.iter().filter(|(id, _)| id != own);
    if others.any(|(_, host)| text(&host.fields, "name").eq_ignore_ascii_case(name)) {
        return Err(Failure::failed(format!("The host name {name} is already in use")).about(name));
    }
    Ok(())
}

fn list(body: &Value, name: &str) -> Vec<Value> {
    body.get(name).and_then(Value::as_array).cloned().unwrap_or_default()
}

pub(super) fn create(array: &Array, body: &Value) -> Result<Value, Failure> {
    check(HOST_CREATE, body)?;
    let ports = list(body, "initiators");
    if ports.is_empty() {
        return Err(Failure::invalid("A host needs an initiator").about("initiators"));
    }
    let id = Uuid::new_v4().to_string();
    array.change(|change| {
        change.within("hosts", change.all::<Host>().len() as u64)?;
        let name = body.get("name").and_then(Value::as_str).unwrap_or("");
        name_is_free(change, name, "")?;
        unused(change, &ports, "")?;
        let os = body.get("os_type").cloned();
        let fields = object(json!({
            "id": id, "name": name, "description": body.get("description"), "type": "External",
            "os_type": os, "host_group_id": null, "import_host_system_id": null,
            "host_connectivity": body.get("host_connectivity").cloned()
                .unwrap_or_else(|| json!("Local_Only")),
            "type_l10n": "External", "os_type_l10n": os,
        }));
        let initiators = ports.iter().cloned().map(object).collect();
        change.put::<_, Failure>(&id, &Host { fields, initiators })
    })?;
    Ok(json!({ "id": id }))
}

pub(super) fn modify(array: &Array, id: &str, body: &Value) -> Result<Value, Failure> {
    check(HOST_MODIFY, body)?;
    let (add, remove) = (list(body, "add_initiators"), list(body, "remove_initiators"));
    let modify = list(body, "modify_initiators");
    let kinds = [&add, &remove, &modify].iter().filter(|all| !all.is_empty()).count();
    if kinds > 1 {
        let text = "Only one of add, remove and modify of initiators is supported in a request";
        return Err(Failure::invalid(text));
    }
    array.change(|change| {
        let id = host_id(&change.view(), id)?;
        let host = change.get::<Host>(&id);
        let mut host =
            host.map(|host| (*host).clone()).ok_or_else(|| Failure::no_instance("host", &id))?;
        if let Some(name) = body.get("name").and_then(Value::as_str) {
            name_is_free(change, name, &id)?;
        }
        unused(change, &add, &id)?;
        for name in ["name", "description", "host_connectivity"] {
            if let Some(value) = body.get(name) {
                host.fields.insert(name.to_owned(), value.clone());
            }
        }
        let is = |port: &Map<String, Value>, name: Option<&Value>| {
            name.and_then(Value::as_str)
                .is_some_and(|name| name.eq_ignore_ascii_case(text(port, "port_name")))
        };
        for name in &remove {
            let before = host.initiators.len();
            host.initiators.retain(|port| !is(port, Some(name)));
            if host.initiators.len() == before {
                return Err(Failure::failed(format!("Initiator {name} is not of this host")));
            }
        }
        host.initiators.extend(add.iter().cloned().map(object));
        for other in &modify {
            for port in host.initiators.iter_mut().filter(|port| is(port, other.get("port_name"))) {
                port.extend(object(other.clone()));
            }
        }
        change.put::<_, Failure>(&id, &host)
    })?;
    Ok(Value::Null)
}

pub(super) fn delete(array: &Array, id: &str) -> Result<Value, Failure> {
    array.change(|change| {
        let id = host_id(&change.view(), id)?;
        if change.all::<Mapping>().iter().any(|(_, one)| text(&one.0, "host_id") == id) {
            let text = format!("Host {id} is attached to volumes and cannot be removed");
            return Err(Failure::failed(text).about(&id));
        }
        change.remove::<Host>(&id);
        Ok(Value::Null)
    })
}

/// Attaches a volume to a host, within a change that may do more.
pub(super) fn attach(change: &mut Change<'_>, volume: &str, body: &Value) -> Result<(), Failure> {
    let get = |name: &str| body.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let host = match (get("host_id"), get("host_group_id")) {
        (Some(_), Some(_)) => {
            let text = "Volume internal error. Contact your support provider.";
            return Err(Failure::new(500, INTERNAL, text));
        }
        (None, None) => return Err(Failure::invalid("A host or a host group must be given")),
        (None, Some(group)) => return Err(Failure::no_instance("host_group", group)),
        (Some(host), None) => host_id(&change.view(), host)?,
    };
    let all = change.all::<Mapping>();
    let of_host: Vec<_> = all.iter().filter(|(_, one)| text(&one.0, "host_id") == host).collect();
    if of_host.iter().any(|(_, one)| text(&one.0, "volume_id") == volume) {
        let text = format!("Volume {volume} is attached to host {host} already");
        return Err(Failure::failed(text).about(volume));
    }
    change.within("luns", of_host.len() as u64)?;
    let taken: Vec<u64> = of_host.iter().filter_map(|(_, one)| one.lun()).collect();
    let first = change.settings().vendor.get("first_lun").and_then(Value::as_u64).unwrap_or(1);
    let lun = match body.get("logical_unit_number").and_then(Value::as_u64) {
        Some(lun) if taken.contains(&lun) => {
            let text = format!("Logical unit number {lun} is in use for host {host}");
            return Err(Failure::failed(text));
        }
        Some(lun) => lun,
        None => {
            let free = (first..=16383).find(|lun| !taken.contains(lun));
            free.ok_or_else(|| Failure::failed("All logical unit numbers are in use"))?
        }
    };
    let id = Uuid::new_v4().to_string();
    let fields = object(json!({
        "id": id, "host_id": host, "host_group_id": null, "volume_id": volume,
        "logical_unit_number": lun,
    }));
    change.put(&id, &Mapping(fields))
}

/// `code` and `status` are how this resource says that there is no mapping.
fn detach(
    change: &mut Change<'_>,
    volume: &str,
    host: &str,
    (status, code): (u16, &'static str),
) -> Result<(), Failure> {
    let host = host_id(&change.view(), host)?;
    let all = change.all::<Mapping>();
    let mut own = all
        .iter()
        .filter(|(_, one)| text(&one.0, "host_id") == host && text(&one.0, "volume_id") == volume);
    let Some((id, _)) = own.next() else {
        let text = format!("Volume {volume} is not attached to host {host}");
        return Err(Failure::new(status, code, text).about(volume));
    };
    change.remove::<Mapping>(id);
    Ok(())
}

pub(super) fn attach_volume(array: &Array, id: &str, body: &Value) -> Result<Value, Failure> {
    check(VOLUME_ATTACH, body)?;
    array.change(|change| {
        let id = volume::writable(change, id)?;
        attach(change, &id, body)
    })?;
    Ok(Value::Null)
}

pub(super) fn detach_volume(array: &Array, id: &str, body: &Value) -> Result<Value, Failure> {
    check(VOLUME_DETACH, body)?;
    let host = body.get("host_id").and_then(Value::as_str).unwrap_or("");
    array.change(|change| {
        let id = volume::writable(change, id)?;
        detach(change, &id, host, (422, NOT_MAPPED))
    })?;
    Ok(Value::Null)
}

pub(super) fn attach_host(array: &Array, id: &str, body: &Value) -> Result<Value, Failure> {
    check(HOST_ATTACH, body)?;
    array.change(|change| {
        let wanted = body.get("volume_id").and_then(Value::as_str).unwrap_or("");
        let volume = volume::writable(change, wanted)?;
        let mut body = body.clone();
        if let Some(body) = body.as_object_mut() {
            body.insert("host_id".to_owned(), json!(id));
        }
        attach(change, &volume, &body)
    })?;
    Ok(Value::Null)
}

pub(super) fn detach_host(array: &Array, id: &str, body: &Value) -> Result<Value, Failure> {
    check(HOST_DETACH, body)?;
    array.change(|change| {
        let wanted = body.get("volume_id").and_then(Value::as_str).unwrap_or("");
        let volume = volume::writable(change, wanted)?;
        detach(change, &volume, id, (400, NOT_ATTACHED))
    })?;
    Ok(Value::Null)
}

/// Refuses for a volume that a host reaches.
pub(super) fn unattached(change: &Change<'_>, volume: &str) -> Result<(), Failure> {
    if change.all::<Mapping>().iter().any(|(_, one)| text(&one.0, "volume_id") == volume) {
        let text = format!("Volume {volume} is attached to a host");
        return Err(Failure::new(422, ATTACHED, text).about(volume));
    }
    Ok(())
}
