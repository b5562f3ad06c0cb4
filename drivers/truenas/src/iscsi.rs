//! A volume as a LUN of this host: portal, initiator group, target, extent, association.
//!
//! A target gives all its LUNs to all initiators it admits, so each host has a target of its own in
//! each SR: what is mapped for one host is not there for another. Initiator group and target are
//! made when the SR is attached, extent and association when a volume is mapped.

use array_kit::array::{Initiator, Mapping, Target as Place, Volume};
use array_kit::outcome::{Class, Failure, OrAbsent as _, Outcome};
use plugin_sdk::Cx;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::api::Call;
use crate::array::TrueNas;
use crate::object::{Association, Extent, Global, Initiators, Portal, Target};

const EXTENT: &str = "iscsi.extent";
const ASSOCIATION: &str = "iscsi.targetextent";
const TARGET: &str = "iscsi.target";
const INITIATOR: &str = "iscsi.initiator";

/// This host's way to its LUNs.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    initiator: String,
    target: u64,
    places: Vec<Place>,
}

impl TrueNas {
    /// What initiator group and target of a host in this SR are called: 44 characters of those that
    /// an iSCSI name can have.
    fn door_name(&self, of: &Initiator) -> String {
        let digest = Sha256::digest(of.iqn.as_bytes());
        let tag = digest.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
        format!("sm-{}-{tag:08x}", self.sr.0.simple())
    }

    async fn find_target(&self, cx: &Cx, name: &str) -> Outcome<Option<Target>> {
        let call = Call::query("target_get", TARGET, &[("name", "=", json!(name))]);
        Ok(self.api.run::<Vec<Target>>(cx, &call).await?.into_iter().next())
    }

    async fn find_initiators(&self, cx: &Cx, name: &str) -> Outcome<Vec<Initiators>> {
        let call = Call::query("initiator_get", INITIATOR, &[("comment", "=", json!(name))]);
        self.api.run(cx, &call).await
    }

    async fn portal(&self, cx: &Cx) -> Outcome<Portal> {
        let portals: Vec<Portal> =
            self.api.run(cx, &Call::query("portals", "iscsi.portal", &[])).await?;
        let count = portals.len();
        let mut fitting =
            portals.into_iter().filter(|one| self.portal.is_none_or(|id| one.id == id));
        match (fitting.next(), fitting.next()) {
            (Some(portal), None) => Ok(portal),
            (None, _) => Err(Failure::new(Class::NotFound)
                .fact(match self.portal {
                    Some(id) => format!("the array has no portal {id}"),
                    None => "the array has no portal for iSCSI".to_owned(),
                })
                .hint("smctl sr probe shows the portals; one is made on the array")),
            (Some(_), Some(_)) => Err(Failure::new(Class::Unsupported)
                .fact(format!("the array has {count} portals, and none is configured"))
                .hint("set portal in the device configuration; smctl sr probe shows them")),
        }
    }

    /// Finds or makes what this host needs.
    pub(crate) async fn open_door(&self, cx: &Cx, to: &Initiator) -> Outcome<Door> {
        // Held while it is made: the array lets two groups have one name.
        let mut known = self.door.lock().await;
        if let Some(door) = known.as_ref().filter(|door| door.initiator == to.iqn) {
            return Ok(door.clone());
        }
        let name = self.door_name(to);
        let portal = self.portal(cx).await?;
        let global: Global =
            self.api.run(cx, &Call::config("global", "iscsi.global", "config")).await?;
        let group = match self.find_initiators(cx, &name).await?.into_iter().next() {
            Some(found) if found.initiators == [to.iqn.clone()] => found.id,
            Some(found) => {
                return Err(Failure::new(Class::AlreadyExists)
                    .object(format!("initiator group {name}"))
                    .fact("it admits others than this host")
                    .hint(format!("look at initiator group {} on the array", found.id)));
            }
            None => {
                // An empty list would admit everybody.
                let body = json!({ "initiators": [to.iqn], "comment": name });
                let call = Call::create("initiator_create", INITIATOR, body);
                self.api.run::<Initiators>(cx, &call).await?.id
            }
        };
        let found = if let Some(found) = self.find_target(cx, &name).await? {
            found
        } else {
            let body = json!({
                "name": name,
                // An empty text is refused.
                "alias": null,
                "mode": "ISCSI",
                "groups": [{
                    "portal": portal.id, "initiator": group, "authmethod": "NONE", "auth": null
                }],
            });
            self.api.run(cx, &Call::create("target_create", TARGET, body)).await?
        };
        let ours =
            |one: &crate::object::Group| one.portal == portal.id && one.initiator == Some(group);
        if found.groups.is_empty() || !found.groups.iter().all(ours) {
            return Err(Failure::new(Class::AlreadyExists)
                .object(format!("target {name}"))
                .fact("it admits others than this host, or at another portal")
                .hint(format!("look at target {} on the array", found.id)));
        }
        let iqn = format!("{}:{name}", global.basename);
        let places = portal.listen.iter().map(|listen| {
            let everywhere = matches!(listen.ip.as_str(), "0.0.0.0" | "::");
            let ip = if everywhere { self.host.as_str() } else { listen.ip.as_str() };
            let ip = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
            let port = listen.port.or(global.listen_port).unwrap_or(3260);
            Place { portal: format!("{ip}:{port}"), iqn: iqn.clone() }
        });
        let door = Door { initiator: to.iqn.clone(), target: found.id, places: places.collect() };
        *known = Some(door.clone());
        Ok(door)
    }

    /// Removes target and initiator group of a host, unless volumes are mapped to it.
    pub(crate) async fn close_door(&self, cx: &Cx, of: &Initiator) -> Outcome<()> {
        let mut known = self.door.lock().await;
        let name = self.door_name(of);
        if let Some(target) = self.find_target(cx, &name).await? {
            let filter = [("target", "=", json!(target.id))];
            let call = Call::query("association_get", ASSOCIATION, &filter);
            if !self.api.run::<Vec<Association>>(cx, &call).await?.is_empty() {
                return Ok(());
            }
            *known = None;
            let (id, no) = (json!(target.id), json!(false));
            let call = Call::delete("target_delete", TARGET, &id, &no, vec![no.clone()]);
            self.api.just(cx, &call).await.or_absent()?;
        }
        *known = None;
        for group in self.find_initiators(cx, &name).await? {
            let call =
                Call::delete("initiator_delete", INITIATOR, &json!(group.id), &json!({}), vec![]);
            self.api.just(cx, &call).await.or_absent()?;
        }
        Ok(())
    }

    async fn find_extent(&self, cx: &Cx, volume: &Volume) -> Outcome<Option<Extent>> {
        let call = Call::query("extent_get", EXTENT, &[("name", "=", json!(volume.name))]);
        let found = self.api.run::<Vec<Extent>>(cx, &call).await?.into_iter().next();
        match found {
            Some(found) if found.disk.as_deref().is_none_or(|disk| disk == device(volume)) => {
                Ok(Some(found))
            }
            Some(found) => Err(Failure::new(Class::AlreadyExists)
                .object(format!("extent {}", volume.name))
                .fact("it is of another volume")
                .hint(format!("look at extent {} on the array", found.id))),
            None => Ok(None),
        }
    }

    async fn associations(&self, cx: &Cx, extent: u64) -> Outcome<Vec<Association>> {
        let filter = [("extent", "=", json!(extent))];
        self.api.run(cx, &Call::query("association_get", ASSOCIATION, &filter)).await
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
        let door = self.open_door(cx, to).await?;
        let body = json!({
            "name": volume.name,
            "type": "DISK",
            "disk": device(volume),
            "blocksize": 512,
            "insecure_tpc": false,
            "xen": true,
            "rpm": "SSD",
            "ro": false,
        });
        let call = Call::create("extent_create", EXTENT, body);
        let extent: Extent = match self.api.run(cx, &call).await {
            Err(failure) if failure.class == Class::AlreadyExists => {
                let found = self.find_extent(cx, volume).await?.ok_or(failure)?;
                self.serve_extent(cx, &found, true).await?;
                found
            }
            other => other?,
        };
        let body = json!({ "target": door.target, "extent": extent.id, "lunid": null });
        let call = Call::create("association_create", ASSOCIATION, body);
        let made: Outcome<Association> = self.api.run(cx, &call).await;
        let made = match made {
            Err(failure) if failure.class == Class::AlreadyExists => {
                let all = self.associations(cx, extent.id).await?;
                all.into_iter().find(|one| one.target == door.target).ok_or(failure)?
            }
            Err(failure) => {
                if matches!(failure.class, Class::NotFound | Class::Invalid) {
                    // The target may have been removed on the array: the next try looks.
                    *self.door.lock().await = None;
                }
                return Err(failure);
            }
            Ok(made) => made,
        };
        let naa = extent.naa.strip_prefix("0x").unwrap_or(&extent.naa);
        let (Some(lun), false) = (made.lunid, naa.is_empty()) else {
            return Err(Failure::new(Class::Unknown)
                .object(format!("extent {}", volume.name))
                .fact("the array does not say the number or the identity of the LUN"));
        };
        Ok(Mapping { lun, scsi_id: format!("3{naa}"), targets: door.places })
    }

    pub(crate) async fn unmap_volume(
        &self,
        cx: &Cx,
        volume: &Volume,
        from: &Initiator,
    ) -> Outcome<()> {
        let Some(extent) = self.find_extent(cx, volume).await? else { return Ok(()) };
        let all = self.associations(cx, extent.id).await?;
        let mut others = 0;
        if !all.is_empty() {
            let known =
                self.door.lock().await.as_ref().map(|door| (door.initiator.clone(), door.target));
            let target = match known {
                Some((initiator, target)) if initiator == from.iqn => Some(target),
                _ => self.find_target(cx, &self.door_name(from)).await?.map(|target| target.id),
            };
            for one in all {
                if Some(one.target) != target {
                    others += 1;
                    continue;
                }
                // By force: the target is in use as long as this host has another LUN of it. The
                // device of this one is gone here, and nobody else is admitted.
                let (id, yes) = (json!(one.id), json!(true));
                let call =
                    Call::delete("association_delete", ASSOCIATION, &id, &yes, vec![yes.clone()]);
                self.api.just(cx, &call).await.or_absent()?;
            }
        }
        if others > 0 {
            return Ok(());
        }
        self.serve_extent(cx, &extent, false).await.or_absent().map(drop)
    }

    /// Has the array serve an extent, or not. It stays, because the volume's NAA is the extent's, and
    /// nobody can say which one a new extent gets; and one that is not served costs the array no
    /// device, no thread and no open volume (`docs/decisions/0015-one-naa-for-a-volume.md`).
    async fn serve_extent(&self, cx: &Cx, extent: &Extent, on: bool) -> Outcome<()> {
        if extent.enabled == on {
            return Ok(());
        }
        let body = json!({ "enabled": on });
        let call = Call::update("extent_serve", EXTENT, &json!(extent.id), body);
        self.api.just(cx, &call).await
    }

    async fn remove_extent(&self, cx: &Cx, extent: u64) -> Outcome<()> {
        let body = json!({ "remove": false, "force": false });
        let more = vec![json!(false), json!(false)];
        let call = Call::delete("extent_delete", EXTENT, &json!(extent), &body, more);
        self.api.just(cx, &call).await.or_absent().map(drop)
    }

    /// Removes the extent of a volume that is to go. [`Class::InUse`] if the volume is mapped.
    pub(crate) async fn remove_idle_extent(&self, cx: &Cx, volume: &Volume) -> Outcome<()> {
        let Some(extent) = self.find_extent(cx, volume).await? else { return Ok(()) };
        if !self.associations(cx, extent.id).await?.is_empty() {
            return Err(Failure::new(Class::InUse)
                .object(volume.name.clone())
                .fact("it is mapped"));
        }
        self.remove_extent(cx, extent.id).await
    }

    /// Those who can reach a volume.
    pub(crate) async fn mapped_to(&self, cx: &Cx, volume: &Volume) -> Outcome<Vec<String>> {
        let Some(extent) = self.find_extent(cx, volume).await? else { return Ok(Vec::new()) };
        let all = self.associations(cx, extent.id).await?;
        if all.is_empty() {
            return Ok(Vec::new());
        }
        let targets: Vec<Target> = self.api.run(cx, &Call::query("targets", TARGET, &[])).await?;
        let groups: Vec<Initiators> =
            self.api.run(cx, &Call::query("initiators", INITIATOR, &[])).await?;
        let mut names = Vec::new();
        for one in all {
            let admitted = targets.iter().filter(|target| target.id == one.target);
            for group in admitted.flat_map(|target| &target.groups) {
                let initiators = groups.iter().find(|known| Some(known.id) == group.initiator);
                match initiators.map(|group| group.initiators.as_slice()) {
                    None | Some([]) => names.push("everybody".to_owned()),
                    Some(some) => names.extend(some.iter().cloned()),
                }
            }
        }
        names.sort();
        names.dedup();
        Ok(names)
    }
}

/// What an extent calls a volume: a space in a path is a `+` there.
fn device(volume: &Volume) -> String {
    format!("zvol/{}", volume.id.replace(' ', "+"))
}
