//! This host's entry at the array, and mappings to it.

use array_kit::array::{Initiator, Mapping, Target, Volume};
use array_kit::http::Request;
use array_kit::ledger::{Ledger, Settle};
use array_kit::outcome::{Class, Failure, Outcome};
use plugin_sdk::Cx;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::api::{NO_HOST, path};
use crate::array::PowerStore;
use crate::object::{list, text};

/// The port of every iSCSI portal of a PowerStore.
const PORT: u16 = 3260;

/// What this host needs at the array before a volume can be mapped to it.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    initiator: String,
    /// The id of the host entry.
    host: String,
    /// The targets, with the appliance that each is of: others do not have its volumes.
    ports: Vec<(String, Target)>,
}

/// The name of the entry that we make. It follows from the initiator, because an initiator is in one
/// entry of the whole array: all SRs of this host share it.
fn entry(initiator: &Initiator) -> String {
    let digest = Sha256::digest(initiator.iqn.to_ascii_lowercase().as_bytes());
    let number = digest.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    format!("sm-{number:016x}")
}

impl PowerStore {
    /// The id of the entry that has this initiator, whoever made it.
    async fn find_host(&self, cx: &Cx, of: &Initiator) -> Outcome<Option<String>> {
        let query = [
            ("select", "host_id,host(name,host_group_id,initiators(port_name))"),
            ("port_name", &*format!("eq.{}", of.iqn)),
        ];
        let found: Vec<Value> = self.api.few(cx, "host_get", "initiator", &query).await?;
        let Some(found) = found.first() else { return Ok(None) };
        let host = found.get("host").unwrap_or(&Value::Null);
        let refuse = |fact: &str, hint: &str| {
            let object = format!("host {}", text(host, "name"));
            Err(Failure::new(Class::AlreadyExists).object(object).fact(fact).hint(hint))
        };
        if !text(host, "host_group_id").is_empty() {
            return refuse(
                "it is in a host group, whose hosts all reach what is mapped",
                "take the host out of its group on the array",
            );
        }
        let other = |port: &Value| !text(port, "port_name").eq_ignore_ascii_case(&of.iqn);
        if list(host, "initiators").iter().any(other) {
            return refuse(
                "it has other initiators than this host's, who would reach what is mapped",
                "give this host's initiator an entry of its own on the array",
            );
        }
        Ok(Some(text(found, "host_id").to_owned()))
    }

    /// Makes this host known to the array, unless it is.
    pub(crate) async fn open_door(&self, cx: &Cx, to: &Initiator) -> Outcome<Door> {
        let mut known = self.door.lock().await;
        if let Some(door) = known.as_ref().filter(|door| door.initiator == to.iqn) {
            return Ok(door.clone());
        }
        let host = if let Some(found) = self.find_host(cx, to).await? {
            found
        } else {
            let body = json!({
                "name": entry(to),
                "description": format!("storage manager, {}", to.host),
                "os_type": "Linux",
                "initiators": [{ "port_name": to.iqn, "port_type": "iSCSI" }],
            });
            let request = Request::post("host_create", &path("host")).json(&body);
            match self.api.made(cx, request).await {
                // By another SR of this host, at the same moment.
                Err(failure) if matches!(failure.class, Class::AlreadyExists | Class::Invalid) => {
                    self.find_host(cx, to).await?.ok_or(failure)?
                }
                other => other?,
            }
        };
        let query = [
            ("select", "address,appliance_id,ip_port(target_iqn)"),
            ("purposes", "cs.{Storage_Iscsi_Target}"),
        ];
        let all: Vec<Value> = self.api.few(cx, "ports", "ip_pool_address", &query).await?;
        let ports = all.iter().filter_map(|one| {
            let iqn = text(one.get("ip_port")?, "target_iqn").to_owned();
            let ip = text(one, "address");
            let ip = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
            let target = Target { portal: format!("{ip}:{PORT}"), iqn };
            Some((text(one, "appliance_id").to_owned(), target))
        });
        let door = Door { initiator: to.iqn.clone(), host, ports: ports.collect() };
        *known = Some(door.clone());
        Ok(door)
    }

    /// Removes the entry that we made; one that another SR needs is refused by the array, and stays.
    pub(crate) async fn close_door(&self, cx: &Cx, of: &Initiator) -> Outcome<()> {
        *self.door.lock().await = None;
        let request = Request::delete("host_delete", &path(&format!("host/name:{}", entry(of))));
        match self.api.just(cx, request).await {
            Err(failure) if failure.class == Class::InUse => Ok(()),
            other => other,
        }
    }

    /// How this host reaches a volume; none if it does not, as far as the array shows.
    async fn reach(&self, cx: &Cx, volume: &Volume, door: &Door) -> Outcome<Option<Mapping>> {
        let query = [
            ("select", "wwn,appliance_id,mapped_volumes(host_id,logical_unit_number)"),
            ("id", &*format!("eq.{}", volume.id)),
        ];
        let found: Vec<Value> = self.api.few(cx, "reach", "volume", &query).await?;
        let Some(found) = found.first() else { return Ok(None) };
        let mut all = list(found, "mapped_volumes").iter();
        let lun = all.find(|one| text(one, "host_id") == door.host);
        let lun = lun.and_then(|one| one.get("logical_unit_number")?.as_u64());
        let Some(lun) = lun.and_then(|lun| u16::try_from(lun).ok()) else { return Ok(None) };
        let naa = text(found, "wwn").trim_start_matches("naa.").to_ascii_lowercase();
        let own = door.ports.iter().filter(|(of, _)| of == text(found, "appliance_id"));
        let targets = own.map(|(_, target)| target.clone()).collect();
        Ok(Some(Mapping { lun, scsi_id: format!("3{naa}"), targets }))
    }

    pub(crate) async fn map_volume(
        &self,
        cx: &Cx,
        volume: &Volume,
        to: &Initiator,
    ) -> Outcome<Mapping> {
        if volume.snapshot_of.is_some() {
            return Err(Failure::new(Class::Unsupported)
                .fact("the array gives no LUN to a snapshot")
                .hint("clone it, and attach the clone"));
        }
        let mut door = self.open_door(cx, to).await?;
        let mut attached = self.attach(cx, volume, &door).await;
        if let Err(failure) = &attached
            && failure.code.as_deref() == Some(NO_HOST)
        {
            // Somebody has removed the entry: another SR of this host, when it was detached.
            *self.door.lock().await = None;
            door = self.open_door(cx, to).await?;
            attached = self.attach(cx, volume, &door).await;
        }
        match attached {
            // The answer says nothing, and what is read next may be from before.
            Ok(()) => {
                let look = |cx: Cx| {
                    let door = &door;
                    async move { self.reach(&cx, volume, door).await }
                };
                Ledger::new(cx, Settle::default()).appears(look).await?.ok_or_else(|| {
                    Failure::new(Class::Unknown)
                        .fact("the array does not show the mapping that it has made")
                })
            }
            // Attached already, perhaps.
            Err(failure) if matches!(failure.class, Class::InUse | Class::AlreadyExists) => {
                self.reach(cx, volume, &door).await?.ok_or(failure)
            }
            Err(failure) => Err(failure),
        }
    }

    async fn attach(&self, cx: &Cx, volume: &Volume, door: &Door) -> Outcome<()> {
        let request = Request::post("map", &path("volume")).segment(&volume.id).then("/attach");
        self.api.just(cx, request.json(&json!({ "host_id": door.host }))).await
    }

    pub(crate) async fn unmap_volume(
        &self,
        cx: &Cx,
        volume: &Volume,
        from: &Initiator,
    ) -> Outcome<()> {
        let known = self.door.lock().await.clone().filter(|door| door.initiator == from.iqn);
        let host = match known {
            Some(door) => door.host,
            // Without an entry nothing is mapped to it.
            None => match self.find_host(cx, from).await? {
                Some(host) => host,
                None => return Ok(()),
            },
        };
        let request = Request::post("unmap", &path("volume")).segment(&volume.id).then("/detach");
        self.api.just(cx, request.json(&json!({ "host_id": host }))).await
    }

    /// Those who can reach a volume.
    pub(crate) async fn mapped_to(&self, cx: &Cx, volume: &Volume) -> Outcome<Vec<String>> {
        let query = [
            ("select", "mapped_volumes(host(initiators(port_name)),host_group(name))"),
            ("id", &*format!("eq.{}", volume.id)),
        ];
        let found: Vec<Value> = self.api.few(cx, "mappings", "volume", &query).await?;
        let mut names = Vec::new();
        for one in found.iter().flat_map(|found| list(found, "mapped_volumes")) {
            let group = one.get("host_group").filter(|group| group.is_object());
            names.extend(group.map(|group| format!("host group {}", text(group, "name"))));
            let host = one.get("host").unwrap_or(&Value::Null);
            let ports = list(host, "initiators").iter();
            names.extend(ports.map(|port| text(port, "port_name").to_owned()));
        }
        names.sort();
        names.dedup();
        Ok(names)
    }
}
