//! A LUN of this host: initiator group, map, target.
//!
//! Each host has a group of its own in each SR, which holds its initiator alone: made when the SR is
//! attached, and gone with it. All LUNs of the SVM are in one target; who sees which is the maps' matter.

use array_kit::array::{Initiator, Mapping, Target, Volume};
use array_kit::http::Request;
use array_kit::outcome::{Class, Failure, OrAbsent as _, Outcome};
use array_kit::retry::wait;
use plugin_sdk::Cx;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::time::Duration;

use crate::array::Ontap;
use crate::object::{Named, scsi_id, uuid};

const IGROUPS: &str = "/api/protocols/san/igroups";
const MAPS: &str = "/api/protocols/san/lun-maps";
/// The port of iSCSI at all interfaces; the API does not tell it.
const PORT: u16 = 3260;
/// The pause between two looks for what the array says is there, and how many looks there are: its
/// reads may be late for five seconds.
const LOOKS: (Duration, u32) = (Duration::from_millis(250), 24);

/// This host's way to its LUNs.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    initiator: String,
    igroup: String,
    targets: Vec<Target>,
}

#[derive(Debug, Deserialize)]
struct Igroup {
    uuid: String,
    #[serde(default)]
    initiators: Vec<Named>,
}

#[derive(Debug, Deserialize)]
struct Service {
    #[serde(default)]
    enabled: bool,
    #[serde(default)]
    target: Named,
}

#[derive(Debug, Deserialize)]
struct Interface {
    ip: Address,
    #[serde(default)]
    enabled: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Address {
    address: String,
}

#[derive(Debug, Deserialize)]
struct Map {
    #[serde(default)]
    logical_unit_number: Option<u16>,
    #[serde(default)]
    igroup: Members,
}

#[derive(Debug, Default, Deserialize)]
struct Members {
    #[serde(default)]
    name: String,
    #[serde(default)]
    initiators: Vec<String>,
}

/// Looks for what is there, also where reads are late.
async fn appears<T: Send, F>(cx: &Cx, look: impl Fn() -> F + Send + Sync) -> Outcome<Option<T>>
where
    F: Future<Output = Outcome<Option<T>>> + Send,
{
    for _ in 1..LOOKS.1 {
        if let Some(found) = look().await? {
            return Ok(Some(found));
        }
        wait(cx, LOOKS.0).await?;
    }
    look().await
}

impl Ontap {
    /// What the group of a host in this SR is called.
    fn igroup_name(&self, of: &Initiator) -> String {
        let digest = Sha256::digest(of.iqn.to_ascii_lowercase().as_bytes());
        let tag = digest.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        format!("sm-{}-{tag:08x}", self.sr.0.simple())
    }

    async fn find_igroup(&self, cx: &Cx, of: &Initiator) -> Outcome<Option<Igroup>> {
        let request = Request::get("igroup_get", IGROUPS).query("name", &self.igroup_name(of));
        let request = request.query("fields", "uuid,name,initiators.name");
        let found: Vec<Igroup> = self.api.records(cx, "igroup_get", request).await?;
        Ok(found.into_iter().next())
    }

    /// Finds or makes this host's group.
    async fn igroup(&self, cx: &Cx, to: &Initiator) -> Outcome<String> {
        let name = self.igroup_name(to);
        let body = json!({
            "name": name, "protocol": "iscsi", "os_type": "linux",
            "initiators": [{ "name": to.iqn }], "svm": { "name": self.api.svm() },
        });
        let request = Request::post("igroup_create", IGROUPS).json(&body);
        let found = match self.api.made::<Igroup>(cx, request).await {
            Ok(Some(made)) => return Ok(made.uuid),
            Err(failure) if failure.class != Class::AlreadyExists => return Err(failure),
            Ok(None) | Err(_) => appears(cx, || self.find_igroup(cx, to)).await?,
        };
        let group = || format!("initiator group {name}");
        let found = found.ok_or_else(|| Failure::not_found(group()))?;
        let ours = |one: &Named| one.name.eq_ignore_ascii_case(&to.iqn);
        if found.initiators.len() == 1 && found.initiators.iter().all(ours) {
            return Ok(found.uuid);
        }
        Err(Failure::new(Class::AlreadyExists)
            .object(group())
            .fact("it does not hold this host's initiator alone")
            .hint("look at it on the array"))
    }

    async fn targets(&self, cx: &Cx) -> Outcome<Vec<Target>> {
        let request = Request::get("service", "/api/protocols/san/iscsi/services");
        let request = request.query("fields", "enabled,target.name");
        let services: Vec<Service> = self.api.records(cx, "service", request).await?;
        let request = Request::get("interfaces", "/api/network/ip/interfaces");
        let request = request.query("services", "data_iscsi").query("fields", "ip.address,enabled");
        let interfaces: Vec<Interface> = self.api.records(cx, "interfaces", request).await?;
        let service = services.into_iter().find(|service| service.enabled);
        let up = interfaces.into_iter().filter(|one| one.enabled != Some(false));
        let up: Vec<String> = up.map(|one| one.ip.address).collect();
        let Some(service) = service.filter(|_| !up.is_empty()) else {
            return Err(Failure::new(Class::Unsupported)
                .fact(format!("the SVM {} serves no iSCSI", self.api.svm()))
                .hint("start its iSCSI service, and give it an interface with data_iscsi"));
        };
        let target = |ip: String| {
            let ip = if ip.contains(':') { format!("[{ip}]") } else { ip };
            Target { portal: format!("{ip}:{PORT}"), iqn: service.target.name.clone() }
        };
        Ok(up.into_iter().map(target).collect())
    }

    /// Finds or makes what this host needs.
    pub(crate) async fn open_door(&self, cx: &Cx, to: &Initiator) -> Outcome<Door> {
        let mut known = self.door.lock().await;
        if let Some(door) = known.as_ref().filter(|door| door.initiator == to.iqn) {
            return Ok(door.clone());
        }
        let (igroup, targets) = (self.igroup(cx, to).await?, self.targets(cx).await?);
        Ok(known.insert(Door { initiator: to.iqn.clone(), igroup, targets }).clone())
    }

    /// The UUID of a host's group, if it has one.
    async fn known_igroup(&self, cx: &Cx, of: &Initiator) -> Outcome<Option<String>> {
        if let Some(door) = self.door.lock().await.as_ref().filter(|d| d.initiator == of.iqn) {
            return Ok(Some(door.igroup.clone()));
        }
        Ok(self.find_igroup(cx, of).await?.map(|found| found.uuid))
    }

    /// Removes a host's group, unless LUNs are mapped to it.
    pub(crate) async fn close_door(&self, cx: &Cx, of: &Initiator) -> Outcome<()> {
        // Asked for, since another one of this name may have been made meanwhile.
        let Some(found) = self.find_igroup(cx, of).await? else { return Ok(()) };
        *self.door.lock().await = None;
        let request = Request::delete("igroup_delete", IGROUPS).segment(&found.uuid);
        match self.api.send(cx, request).await.or_absent() {
            Err(failure) if failure.class == Class::InUse => Ok(()),
            other => other.map(drop),
        }
    }

    pub(crate) async fn map_lun(
        &self,
        cx: &Cx,
        volume: &Volume,
        to: &Initiator,
    ) -> Outcome<Mapping> {
        let Some(scsi_id) = scsi_id(volume) else {
            return Err(Failure::new(Class::Garbled)
                .object(volume.name.clone())
                .fact("the array does not say the serial number of its LUN"));
        };
        let mut again = self.door.lock().await.is_some();
        loop {
            let door = self.open_door(cx, to).await?;
            let body = json!({
                "lun": { "uuid": uuid(volume) }, "igroup": { "uuid": door.igroup },
                "svm": { "name": self.api.svm() },
            });
            let request = Request::post("map", MAPS).json(&body);
            let made = match self.api.made::<Map>(cx, request).await {
                Err(failure) if failure.class == Class::AlreadyExists => None,
                Err(failure) if failure.class == Class::NotFound && again => {
                    // The group may have been removed on the array.
                    again = false;
                    *self.door.lock().await = None;
                    continue;
                }
                other => other?,
            };
            let number = match made.and_then(|made| made.logical_unit_number) {
                Some(number) => Some(number),
                None => appears(cx, || self.number(cx, volume, &door.igroup)).await?,
            };
            let Some(lun) = number else {
                return Err(Failure::new(Class::Unknown)
                    .object(volume.name.clone())
                    .fact("the array does not say the number of its LUN"));
            };
            return Ok(Mapping { lun, scsi_id, targets: door.targets });
        }
    }

    async fn number(&self, cx: &Cx, volume: &Volume, igroup: &str) -> Outcome<Option<u16>> {
        let request = Request::get("map_get", MAPS).query("lun.uuid", uuid(volume));
        let request = request.query("igroup.uuid", igroup).query("fields", "logical_unit_number");
        let found: Vec<Map> = self.api.records(cx, "map_get", request).await?;
        Ok(found.into_iter().find_map(|map| map.logical_unit_number))
    }

    pub(crate) async fn unmap_lun(
        &self,
        cx: &Cx,
        volume: &Volume,
        from: &Initiator,
    ) -> Outcome<()> {
        let Some(igroup) = self.known_igroup(cx, from).await? else { return Ok(()) };
        let request = Request::delete("unmap", MAPS).segment(uuid(volume)).segment(&igroup);
        self.api.send(cx, request).await.or_absent().map(drop)
    }

    /// Those who can reach a LUN.
    pub(crate) async fn mapped_to(&self, cx: &Cx, volume: &Volume) -> Outcome<Vec<String>> {
        let request = Request::get("maps", MAPS).query("lun.uuid", uuid(volume));
        let request = request.query("fields", "igroup.name,igroup.initiators");
        let maps: Vec<Map> = self.api.records(cx, "maps", request).await?;
        let mut names = Vec::new();
        for map in maps {
            if map.igroup.initiators.is_empty() {
                names.push(format!("initiator group {}", map.igroup.name));
            }
            names.extend(map.igroup.initiators);
        }
        names.sort();
        names.dedup();
        Ok(names)
    }
}
