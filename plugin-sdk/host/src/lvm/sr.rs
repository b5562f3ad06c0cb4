//! The SR: a volume group named after it.

use plugin_sdk::model::sr::{FoundSr, SrCreate, SrInfo, SrRecovered, SrUpdate};
use plugin_sdk::model::vdi::Health;
use plugin_sdk::model::{Bytes, Changed, Kind, SrUuid, VdiUuid};
use plugin_sdk::{Cx, Error, Result, step};

use crate::lvm::command::Lvm;
use crate::lvm::devices;
use crate::lvm::group;
use crate::lvm::lock::{self, Held};
use crate::lvm::metadata::{Metadata, SrDocument, difference, vdis};
use crate::lvm::names::Names;
use crate::lvm::pool;
use crate::lvm::report::{Device, Group, Report, Volume};
use crate::lvm::repository::{Allocation, Found};
use crate::lvm::thin;
use crate::lvm::vdis::{is_being_made, zero};

/// Room for the texts of the group: a VDI takes about 1 KiB, and one with 16 KiB of description
/// 50 KiB. LVM writes only what is there.
const METADATA_AREA: &str = "32m";

/// One SR. Holds nothing open and no state.
#[derive(Clone, Debug)]
pub(crate) struct Sr {
    pub(crate) uuid: SrUuid,
    pub(crate) names: Names,
    pub(crate) lvm: Lvm,
    pub(crate) allocation: Allocation,
    pub(crate) force: bool,
}

impl Sr {
    pub(crate) fn name(&self) -> String {
        self.names.group(self.uuid)
    }

    /// The group's own path of a volume, as LVM's commands take it.
    pub(crate) fn path(&self, volume: &str) -> String {
        format!("{}/{volume}", self.name())
    }

    fn missing(&self) -> Error {
        let (sr, devices) = (self.uuid, self.lvm.devices());
        Error::not_found(format!("there is no SR {sr} on {devices}"))
            .legacy(47)
            .hint("smctl sr probe shows which SRs there are on a device")
    }

    /// The group, all of its devices there. Error kind `not_found` with SMAPI's 47, `unreachable`.
    pub(crate) async fn group(&self, cx: &Cx) -> Result<Group> {
        let report = self.lvm.report(cx).await?;
        let name = self.name();
        let group = report.groups.into_iter().find(|group| group.name == name);
        let group = group.ok_or_else(|| self.missing())?;
        if SrDocument::of(&group)?.is_none() {
            return Err(Error::new(
                Kind::Exists,
                format!("the group {name} is not of this driver"),
            ));
        }
        Ok(group)
    }

    /// The group, and the right to work on its VDIs. A pool that is filling has grown before.
    pub(crate) async fn changing(&self, cx: &Cx) -> Result<(Held, Group)> {
        let held = lock::shared(cx, &self.name()).await?;
        let mut group = self.group(cx).await?;
        self.whole(&group)?;
        if self.grow(cx, &group).await {
            group = self.group(cx).await?;
        }
        Ok((held, group))
    }

    fn whole(&self, group: &Group) -> Result<()> {
        if group.missing == 0 {
            return Ok(());
        }
        let (missing, all) = (group.missing, group.devices.len());
        let message = format!("{missing} of {all} devices of SR {} are missing", self.uuid);
        let hint =
            format!("the SR is reached by {}; are all of its disks named?", self.lvm.devices());
        Err(Error::new(Kind::Unreachable, message).legacy(47).hint(hint))
    }

    /// Lets the pool grow if it should. Whether it has: if it cannot, what is asked for may still
    /// be possible.
    async fn grow(&self, cx: &Cx, group: &Group) -> bool {
        let mut grown = false;
        for words in pool::growth(group) {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            match self.lvm.change(cx, "lvextend", &words).await {
                Ok(()) => grown = true,
                Err(error) => plugin_sdk::tracing::warn!(%error, "the thin pool does not grow"),
            }
            step!("pool.grown");
        }
        grown
    }

    pub(crate) async fn create(&self, cx: &Cx, request: &SrCreate) -> Result<Changed> {
        self.lvm.devices().check()?;
        let name = self.name();
        let _held = lock::exclusive(cx, &name).await?;
        let report = self.lvm.report(cx).await?;
        if let Some(group) = report.groups.iter().find(|group| group.name == name) {
            let document = SrDocument::of(group)?;
            if document.is_none_or(|document| document.made_by != Some(cx.operation_id())) {
                return Err(Error::new(Kind::Exists, format!("SR {} exists already", self.uuid))
                    .legacy(42)
                    .hint("smctl sr introduce makes it known here"));
            }
            self.ensure_pool(cx, group).await?;
            return Ok(Changed::Already);
        }
        let targets = self.lvm.devices().resolved()?;
        if let Some(reason) = occupied(cx, &report, &targets).await? {
            if !self.force {
                return Err(Error::new(Kind::Exists, reason)
                    .legacy(42)
                    .hint("force=true erases it, with all that is on it"));
            }
            devices::wipe(cx, &targets).await?;
            step!("sr_create.wiped");
        }
        let document = SrDocument {
            name: request.name.clone(),
            description: request.description.clone(),
            thick: self.allocation == Allocation::Thick,
            made_by: Some(cx.operation_id()),
        };
        // No host activates it by itself, not even a part: who uses the SR does.
        let mut words = vec!["--setautoactivation", "n", "--metadatasize", METADATA_AREA];
        let tags = document.tags();
        words.extend(tags.iter().flat_map(|tag| ["--addtag", tag]));
        words.push(&name);
        words.extend(targets.iter().map(String::as_str));
        self.lvm.change(cx, "vgcreate", &words).await.map_err(|error| in_use(error, &targets))?;
        step!("sr_create.group_made");
        if !document.thick {
            let group = self.group(&cx.shielded()).await?;
            self.ensure_pool(&cx.shielded(), &group).await?;
        }
        Ok(Changed::Created)
    }

    /// Makes the pool of a thin SR if it is not there yet.
    async fn ensure_pool(&self, cx: &Cx, group: &Group) -> Result<bool> {
        let thick = SrDocument::of(group)?.is_some_and(|document| document.thick);
        // What is thin in a group of XenServer's layout are images, and of no pool.
        if thick || self.names == Names::XenServer || pool::of(group).is_some() {
            return Ok(false);
        }
        let layout = pool::Layout::of(group)?;
        let (extents, metadata, chunk) = (
            layout.extents.to_string(),
            format!("{}b", layout.metadata),
            format!("{}b", layout.chunk),
        );
        // `--zero y`: what a guest has not written reads as zeros, not as another guest's data.
        let words = [
            "--type",
            "thin-pool",
            "--name",
            pool::NAME,
            "--extents",
            &extents,
            "--poolmetadatasize",
            &metadata,
            "--chunksize",
            &chunk,
            "--zero",
            "y",
            &group.name,
        ];
        self.lvm.change(cx, "lvcreate", &words).await?;
        step!("sr_create.pool_made");
        Ok(true)
    }

    pub(crate) async fn attach(&self, cx: &Cx) -> Result<SrRecovered> {
        let mut group = self.group(cx).await?;
        self.whole(&group)?;
        let mut recovered = SrRecovered::default();
        if self.ensure_pool(cx, &group).await? {
            recovered.completed.push("creation of the SR: its pool was missing".to_owned());
            group = self.group(cx).await?;
        }
        if pool::of(&group).is_some_and(|pool| !pool.active) {
            self.lvm.change(cx, "lvchange", &["--activate", "y", &self.path(pool::NAME)]).await?;
            step!("sr_attach.pool_active");
        }
        let more = self.recover_from(cx, group).await?;
        recovered.completed.extend(more.completed);
        Ok(SrRecovered { completed: recovered.completed, ..more })
    }

    pub(crate) async fn detach(&self, cx: &Cx) -> Result<Changed> {
        let group = self.group(cx).await?;
        if !group.volumes.iter().any(|volume| volume.active) {
            return Ok(Changed::Already);
        }
        self.lvm.change(cx, "vgchange", &["--activate", "n", &self.name()]).await.map_err(
            |error| {
                if error.kind != Kind::InUse {
                    return error;
                }
                let mut busy =
                    Error::new(Kind::InUse, format!("a VDI of SR {} is in use", self.uuid))
                        .legacy(16)
                        .hint("lsof and lsblk show who has its device open");
                busy.backend.clone_from(&error.backend);
                busy
            },
        )?;
        step!("sr_detach.inactive");
        Ok(Changed::Modified)
    }

    pub(crate) async fn destroy(&self, cx: &Cx) -> Result<Changed> {
        let name = self.name();
        let _held = lock::exclusive(cx, &name).await?;
        let report = self.lvm.report(cx).await?;
        let Some(group) = report.groups.iter().find(|group| group.name == name) else {
            return Ok(Changed::Already);
        };
        if SrDocument::of(group)?.is_none() {
            return Err(Error::new(
                Kind::Exists,
                format!("the group {name} is not of this driver"),
            ));
        }
        self.whole(group)?;
        let others: Vec<&Volume> = group.volumes.iter().filter(|volume| !volume.is_pool).collect();
        if let Some(first) = others.first() {
            let count = others.len();
            return Err(Error::new(
                Kind::InUse,
                format!(
                    "SR {} is not empty: it holds {count} volumes, among them {}",
                    self.uuid, first.name
                ),
            )
            .legacy(39)
            .hint("destroy its VDIs first; a volume that is no VDI is removed by lvremove"));
        }
        step!("sr_destroy.checked");
        if let Some(pool) = pool::of(group) {
            self.remove(cx, pool).await?;
            step!("sr_destroy.pool_removed");
        }
        // Without force: it fails if a volume has come in between.
        self.lvm.change(cx, "vgremove", &[&name]).await?;
        step!("sr_destroy.group_removed");
        let devices: Vec<&str> = group.devices.iter().map(String::as_str).collect();
        self.lvm.change(&cx.shielded(), "pvremove", &devices).await?;
        step!("sr_destroy.labels_removed");
        lock::remove(&name);
        Ok(Changed::Modified)
    }

    /// Gives the group what its devices have got since. Whether it got any: a device that has not
    /// grown by an extent is left alone.
    async fn grow_devices(&self, cx: &Cx, group: &Group) -> Result<bool> {
        let devices: Vec<&str> = larger(group).map(|device| device.name.as_str()).collect();
        if devices.is_empty() {
            return Ok(false);
        }
        self.lvm.change(cx, "pvresize", &devices).await?;
        step!("sr_recover.devices_grown");
        Ok(true)
    }

    pub(crate) async fn update(&self, cx: &Cx, request: &SrUpdate) -> Result<Changed> {
        let (_held, group) = self.changing(cx).await?;
        let mut document = SrDocument::of(&group)?.unwrap_or_default();
        if let Some(name) = &request.name {
            document.name.clone_from(name);
        }
        if let Some(description) = &request.description {
            document.description.clone_from(description);
        }
        let words = difference(&group.tags, &document.tags());
        if words.is_empty() {
            return Ok(Changed::Already);
        }
        let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
        words.push(&group.name);
        self.lvm.change(cx, "vgchange", &words).await?;
        step!("sr_update.written");
        Ok(Changed::Modified)
    }

    pub(crate) async fn stat(&self, cx: &Cx) -> Result<SrInfo> {
        let group = self.group(cx).await?;
        self.stat_of(&group)
    }

    /// As [`Self::stat`], of a group that was looked at.
    pub(crate) fn stat_of(&self, group: &Group) -> Result<SrInfo> {
        let document = SrDocument::of(group)?.unwrap_or_default();
        let infos: Vec<_> = vdis(group).iter().map(|vdi| vdi.info(group)).collect();
        let quarantined: Vec<VdiUuid> = infos
            .iter()
            .filter(|info| matches!(info.health, Health::Quarantined { .. }))
            .map(|info| info.uuid)
            .collect();
        let degraded = |reason| Health::Degraded { reason };
        let health = if group.missing > 0 {
            degraded(format!("{} of {} devices are missing", group.missing, group.devices.len()))
        } else if let Some(reason) = pool::trouble(group) {
            degraded(reason)
        } else if quarantined.is_empty() {
            Health::Ok
        } else {
            degraded(format!("{} VDIs are quarantined", quarantined.len()))
        };
        let (size, used) = match pool::of(group) {
            Some(pool) => (pool::size(group, pool), pool.mapped().unwrap_or_default()),
            None => (group.size, group.size - group.free.min(group.size)),
        };
        Ok(SrInfo {
            uuid: self.uuid,
            name: document.name,
            description: document.description,
            physical_size: Bytes(size),
            physical_utilisation: Bytes(used),
            virtual_allocation: Bytes(infos.iter().map(|info| info.virtual_size.0).sum()),
            vdis: infos.len() as u64,
            quarantined,
            health,
            usage: None,
            warnings: pool::warnings(group),
            paths: None,
        })
    }

    /// Finishes or undoes what a crash left.
    pub(crate) async fn recover(&self, cx: &Cx) -> Result<SrRecovered> {
        let group = self.group(cx).await?;
        self.whole(&group)?;
        self.recover_from(cx, group).await
    }

    async fn recover_from(&self, cx: &Cx, mut group: Group) -> Result<SrRecovered> {
        let mut recovered = SrRecovered::default();
        if self.grow_devices(cx, &group).await? {
            recovered.completed.push("growth of the SR: its devices had become larger".to_owned());
            group = self.group(cx).await?;
        }
        self.grow(cx, &group).await;
        let unfinished = group.volumes.iter().any(|volume| is_unfinished(self.names, volume));
        if !unfinished && !thin::is_begun(self, cx, &group).await? {
            return Ok(recovered);
        }
        // Whoever holds it is at work, and what is unfinished is his.
        let Some(_held) = lock::try_exclusive(&self.name())? else { return Ok(recovered) };
        let mut group = self.group(cx).await?;
        for volume in group.volumes.iter().filter(|volume| is_unfinished(self.names, volume)) {
            if thin::resume(self, cx, volume).await? {
                recovered.completed.push(format!("{} was suspended, and goes on", volume.name));
            }
        }
        match thin::finish(self, cx).await {
            Ok(false) => {}
            Ok(true) => {
                recovered.completed.push("change of the thin pool that was cut".to_owned());
                group = self.group(cx).await?;
            }
            // Its disks can be read as they are.
            Err(error) => {
                plugin_sdk::tracing::warn!(%error, "the thin pool is not what LVM has recorded");
            }
        }
        for volume in group.volumes.iter().filter(|volume| is_unfinished(self.names, volume)) {
            if let Some(vdi) = Names::reverted_of(&volume.name) {
                if is_being_made(volume) {
                    self.remove(cx, volume).await?;
                    recovered.undone.push(format!("revert of VDI {vdi}"));
                } else {
                    self.finish_revert(cx, &group, vdi).await?;
                    recovered.completed.push(format!("revert of VDI {vdi}"));
                }
            }
            let Some(vdi) = self.names.vdi_of(&volume.name) else { continue };
            match Metadata::of(volume).ok().and_then(|metadata| metadata.zeroed_to) {
                None => {}
                Some(0) => {
                    if let Some(time) = group::of_caught(&group, self.names, volume) {
                        group::finish(self, cx, volume, time).await?;
                        recovered.completed.push(format!("snapshot {vdi} of several disks"));
                    } else {
                        self.remove(cx, volume).await?;
                        recovered.undone.push(format!("creation of VDI {vdi}"));
                    }
                }
                Some(_) => {
                    zero(self, cx, volume).await?;
                    recovered.completed.push(format!("resize of VDI {vdi}"));
                }
            }
        }
        Ok(recovered)
    }

    /// Removes a volume, by its identity: another one that has got its name since stays.
    pub(crate) async fn remove(&self, cx: &Cx, volume: &Volume) -> Result<()> {
        let select = format!("lv_uuid={}", volume.id);
        thin::change(self, cx, "lvremove", &["--select", &select, &self.name()]).await
    }

    /// Puts the volume that a revert has made in its place. It is complete, so going on is always
    /// right, whatever was done already.
    pub(crate) async fn finish_revert(&self, cx: &Cx, group: &Group, vdi: VdiUuid) -> Result<()> {
        let name = self.names.volume(vdi);
        if let Some(old) = group.volume(&name) {
            self.remove(cx, old).await?;
            step!("vdi_revert.old_removed");
        }
        let new = Names::revert(vdi);
        self.lvm.change(&cx.shielded(), "lvrename", &[&group.name, &new, &name]).await?;
        step!("vdi_revert.renamed");
        Ok(())
    }
}

/// The devices that have got more than the group uses.
fn larger(group: &Group) -> impl Iterator<Item = &Device> {
    let is_larger = |device: &&Device| device.size.saturating_sub(device.used_to) >= group.extent;
    group.sizes.iter().filter(is_larger)
}

/// Whether a recovery has anything to do but for a thin pool.
pub(crate) fn is_to_recover(names: Names, group: &Group) -> bool {
    larger(group).next().is_some() || group.volumes.iter().any(|v| is_unfinished(names, v))
}

fn is_unfinished(names: Names, volume: &Volume) -> bool {
    let ours = names.vdi_of(&volume.name).is_some();
    (ours && volume.suspended)
        || Names::reverted_of(&volume.name).is_some()
        || (ours && Metadata::of(volume).is_ok_and(|metadata| metadata.zeroed_to.is_some()))
}

/// Why one of the devices must not be taken: somebody's data is on it.
async fn occupied(cx: &Cx, report: &Report, targets: &[String]) -> Result<Option<String>> {
    for group in &report.groups {
        let of = group.devices.iter().find(|device| names_one_of(device, targets));
        let Some(device) = of else { continue };
        return Ok(Some(match (Names::sr_of(&group.name), SrDocument::of(group)) {
            (Some(sr), Ok(Some(_))) => format!("{device} belongs to SR {sr}"),
            _ => format!("{device} belongs to the volume group {}", group.name),
        }));
    }
    let signatures = devices::signatures(cx, targets).await?;
    let foreign = signatures.iter().find(|signature| {
        // A physical volume without a group holds nothing: a creation that was cut leaves one.
        let device = [signature.device()];
        !(signature.is_lvm() && report.orphans.iter().any(|orphan| names_one_of(orphan, &device)))
    });
    Ok(foreign.map(|signature| format!("{} holds {signature}", signature.device())))
}

/// LVM shows the name it likes best of those that a device has.
fn names_one_of(device: &str, targets: &[String]) -> bool {
    let canonical = std::fs::canonicalize(device);
    let canonical = canonical.as_deref().unwrap_or(std::path::Path::new(device));
    targets.iter().any(|target| canonical == std::path::Path::new(target))
}

fn in_use(error: Error, targets: &[String]) -> Error {
    if error.kind != Kind::InUse {
        return error;
    }
    let mut busy = Error::new(Kind::InUse, format!("{} is in use", targets.join(" or ")))
        .legacy(16)
        .hint("lsblk shows where it is mounted, or what is on top of it");
    busy.backend.clone_from(&error.backend);
    busy
}

/// What is on these devices: the SRs, or if there is none, whether somebody else's data is.
pub(crate) async fn probe(lvm: &Lvm, names: Names, cx: &Cx) -> Result<Vec<Found>> {
    lvm.devices().check()?;
    let targets = lvm.devices().resolved()?;
    let report = lvm.report(cx).await?;
    let mut found = Vec::new();
    for group in report.groups.iter().filter(|group| group.names() == names) {
        if let (Some(uuid), Ok(Some(document))) = (Names::sr_of(&group.name), SrDocument::of(group))
        {
            found.push(Found::Sr {
                sr: FoundSr { uuid, name: document.name, description: document.description },
                size: Bytes(group.size),
                allocation: if document.thick { Allocation::Thick } else { Allocation::Thin },
                devices: group.devices.clone(),
                missing: group.missing,
            });
        }
    }
    if found.is_empty() {
        let by = occupied(cx, &report, &targets).await?;
        found.push(by.map_or(Found::Nothing, Found::Occupied));
    }
    Ok(found)
}
