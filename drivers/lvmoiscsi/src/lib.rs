//! Driver for LVM on LUNs of iSCSI targets.
//!
//! An SR is a volume group on one LUN, in XenServer's layout: a VDI is a VHD in a linear volume,
//! based on others ([`vhd_lvm`]), or raw, a volume of its own ([`host_kit::lvm`]). The LUN is found by its SCSIid, at all portals of its target, which
//! dm-multipath makes one device. Sessions begin with the attach of the first SR that needs the target and
//! end with the detach of the last.
//!
//! # Why not ...
//!
//! - **`/dev/disk/by-path` or the LUN's number**: an array gives a number again. The SCSIid is read
//!   anew at each attach and scan; where it is another one, nothing is written.
//! - **counting who needs a session in memory**: a process that ends would forget it. The files are
//!   in `/run`, where they last as long as the sessions do.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod config;
mod fence;
mod probe;
mod reach;

use std::sync::{Arc, Mutex, PoisonError};

use host_kit::lun;
use host_kit::lvm::{Allocation, Devices, Lvm, Names, Repository};
use plugin_sdk::config::RawConfig;
use plugin_sdk::model::manifest::feature;
use plugin_sdk::model::sr::{
    SrAttach, SrCreate, SrCreated, SrDestroy, SrDetach, SrDone, SrFence, SrFenced, SrInfo,
    SrMaintain, SrMaintained, SrPaths, SrProbed, SrRecover, SrRecovered, SrScan, SrScanned, SrStat,
    SrUpdate,
};
use plugin_sdk::model::vdi::{
    Health, VdiActivate, VdiAttach, VdiAttached, VdiCheck, VdiChecked, VdiClone, VdiCreate,
    VdiDatapathDone, VdiDeactivate, VdiDestroy, VdiDestroyed, VdiDetach, VdiDone, VdiForest,
    VdiInfo, VdiIntroduce, VdiResize, VdiRevert, VdiSnapshot, VdiStat, VdiTree, VdiUpdate,
    VdisDone,
};
use plugin_sdk::model::{Changed, ImageFormat, Kind, SrUuid, VdiUuid};
use plugin_sdk::{Cx, Driver, Error, Feature, Manifest, Result, manifest};
use vhd_lvm::{Disks, Fence};

pub use config::{Addresses, Config, Port, Wanted};

use config::Place;
use reach::Lun;

/// One SR on a LUN.
#[derive(Debug)]
pub struct LvmOIscsiDriver {
    sr: SrUuid,
    lun: Lun,
    /// LVM on the device that the LUN had last: calls that wait at the same time share reports.
    lvm: Mutex<Option<Lvm>>,
    allocation: Allocation,
    force: bool,
}

/// SMAPI's number for a VDI that is not there.
const NO_VDI: u16 = 144;

impl LvmOIscsiDriver {
    fn on(&self, device: String) -> Repository {
        self.by(self.lvm(device))
    }

    fn lvm(&self, device: String) -> Lvm {
        let devices = Devices::one(device);
        let mut known = self.lvm.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some(lvm) if *lvm.devices() == devices => lvm.clone(),
            _ => known.insert(Lvm::new(devices)).clone(),
        }
    }

    fn by(&self, lvm: Lvm) -> Repository {
        Repository::new(self.sr, Names::XenServer, lvm, self.allocation, self.force)
    }

    /// Does work that blocks on the VHDs of a device.
    async fn images_on<T: Send + 'static>(
        &self,
        cx: &Cx,
        device: String,
        work: impl FnOnce(&Disks, &Cx) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (sr, lvm) = (self.sr, self.lvm(device));
        cx.blocking(move |cx| work(&Disks::new(sr, lvm, &Names::XenServer.group(sr), cx), cx)).await
    }

    /// Does work that blocks on the VHDs.
    async fn images<T: Send + 'static>(
        &self,
        cx: &Cx,
        work: impl FnOnce(&Disks, &Cx) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.images_on(cx, self.lun.device()?, work).await
    }

    /// What was to be done with a VHD is done with a raw disk if there is no such VHD. So the usual
    /// case costs no command to find out.
    async fn or_raw<T>(
        &self,
        done: Result<T>,
        raw: impl AsyncFnOnce(&Self) -> Result<T>,
    ) -> Result<T> {
        match done {
            Err(error) if error.legacy_code() == NO_VDI => match raw(self).await {
                // There is none of the name at all.
                Err(other) if other.legacy_code() == NO_VDI => Err(error),
                other => other,
            },
            other => other,
        }
    }

    /// Changes raw disks, with the right to change the SR, for which other hosts wait. With a disk,
    /// error kind `in_use` if another host has it open.
    async fn alone<T>(
        &self,
        cx: &Cx,
        vdi: Option<VdiUuid>,
        work: impl AsyncFnOnce(Repository) -> Result<T>,
    ) -> Result<T> {
        let device = self.lun.device()?;
        let right = self.images_on(cx, device.clone(), move |disks, cx| disks.right(cx, vdi)).await;
        let right = Arc::new(right?);
        let done = work(self.by(self.lvm(device).behind(right.clone()))).await;
        // Giving it back is a write.
        let give_back = move |_: &Cx| {
            drop(right);
            Ok(())
        };
        cx.shielded().blocking(give_back).await?;
        done
    }

    /// Takes the device of a raw disk away; it has to go also if the LUN has. It costs nothing where
    /// there is none.
    async fn let_go_raw(&self, cx: &Cx, vdi: VdiUuid) -> Result<()> {
        let repository = self.repository().unwrap_or_else(|_| self.on("/dev/null".to_owned()));
        repository.vdi_deactivate(cx, vdi).await
    }

    /// The SR by the device that the LUN has now. It costs no command.
    fn repository(&self) -> Result<Repository> {
        self.lun.device().map(|device| self.on(device))
    }

    /// Does something with the LUN reachable. If it fails, what was logged in to for it is logged
    /// out of.
    async fn connected<T>(
        &self,
        cx: &Cx,
        work: impl AsyncFnOnce(String) -> Result<T>,
    ) -> Result<T> {
        let was_there = self.lun.is_used();
        let done = async { work(self.lun.connect(cx).await?).await };
        let done = done.await;
        if done.is_err()
            && !was_there
            && let Err(left) = self.lun.disconnect(&cx.shielded()).await
        {
            plugin_sdk::tracing::warn!(error = %left, "the sessions of the target stay");
        }
        done
    }

    /// Deactivates the SR's volumes. A target that is gone takes none with it: without volumes the
    /// SR can be let go of.
    async fn deactivate(&self, cx: &Cx) -> Result<Changed> {
        let detached = match self.repository() {
            Ok(repository) => repository.detach(cx).await,
            Err(error) => Err(error),
        };
        match detached {
            Err(error)
                if matches!(error.kind, Kind::Unreachable | Kind::NotFound | Kind::Corrupt)
                    && self.on(String::new()).active_volumes().is_empty() =>
            {
                plugin_sdk::tracing::warn!(%error, "the LUN is not there; nothing is active on it");
                Ok(Changed::Already)
            }
            other => other,
        }
    }
}

/// What was recovered of raw disks and of images.
fn both(mut raw: SrRecovered, images: SrRecovered) -> SrRecovered {
    raw.completed.extend(images.completed);
    raw.undone.extend(images.undone);
    raw.removed.extend(images.removed);
    raw
}

/// That nothing can be asked of the LUN now: where multipath has requests wait, one would wait with them.
fn none_up(paths: &SrPaths) -> Error {
    let down = paths.down.join("; ");
    Error::new(Kind::Unreachable, format!("none of {} paths to the LUN is up: {down}", paths.max))
        .legacy(47)
        .hint("is the target up? disks that are attached go on by themselves when a path is back")
}

/// Adds what there is of images to what an SR says of itself.
fn add(info: &mut SrInfo, warnings: Vec<String>, vdis: &[VdiInfo]) {
    info.vdis += vdis.len() as u64;
    info.virtual_allocation.0 += vdis.iter().map(|vdi| vdi.virtual_size.0).sum::<u64>();
    info.warnings.extend(warnings);
    let bad = vdis.iter().filter(|vdi| matches!(vdi.health, Health::Quarantined { .. }));
    info.quarantined.extend(bad.map(|vdi| vdi.uuid));
    if info.health == Health::Ok && !info.quarantined.is_empty() {
        let reason = format!("{} VDIs are quarantined", info.quarantined.len());
        info.health = Health::Degraded { reason };
    }
}

impl Driver for LvmOIscsiDriver {
    type Config = Config;

    const MANIFEST: Manifest = manifest! {
        name: "lvmoiscsi",
        title: "LVM on a LUN of an iSCSI target, with multipath",
        operations: [
            sr_probe, sr_create, sr_attach, sr_detach, sr_destroy, sr_scan, sr_recover, sr_maintain,
            sr_stat, sr_update, sr_fence, vdi_create, vdi_introduce, vdi_stat, vdi_update, vdi_resize,
            vdi_snapshot, vdi_clone, vdi_revert, vdi_destroy, vdi_tree, vdi_check, vdi_attach,
            vdi_activate, vdi_deactivate, vdi_detach,
        ],
        features: &[
            Feature::new(feature::VHD),
            Feature::new(feature::RAW),
            Feature::new(feature::DATAPATH),
            Feature::new(feature::LIVE_RESIZE),
            Feature::new(feature::GROUP_SNAPSHOT),
            Feature::limit(
                feature::MAX_VDI_SIZE,
                vhd_lvm::MAX_VDI_SIZE.0,
                vhd_lvm::MAX_VDI_SIZE.1,
            ),
            Feature::limit(feature::MAX_CHAIN, vhd_lvm::MAX_CHAIN.0, vhd_lvm::MAX_CHAIN.1),
        ],
        needs_root: true,
    };

    async fn probe(config: RawConfig, cx: &Cx) -> Result<SrProbed> {
        probe::probe(&config, cx).await
    }

    async fn open(config: Config, sr: SrUuid, _: &Cx) -> Result<Self> {
        let place = Place::of_config(&config)?;
        let Config { iqn: wanted, scsi_id: id, allocation, force, .. } = config;
        let lun = Lun { place, wanted, id, user: sr.to_string() };
        Ok(Self { sr, lun, lvm: Mutex::default(), allocation, force })
    }

    async fn sr_create(&self, cx: &Cx, request: SrCreate) -> Result<SrCreated> {
        let changed = self
            .connected(cx, async |device| {
                let changed = self.on(device.clone()).create(cx, &request).await?;
                let made = self.images_on(cx, device, |disks, _| disks.init()).await?;
                Ok(if made { Changed::Created } else { changed })
            })
            .await?;
        let mut device_config = cx.device_config().clone();
        // Meant for this once; the other is in the group's tags.
        device_config.remove("force");
        device_config.remove("allocation");
        Ok(SrCreated { changed, device_config })
    }

    async fn sr_attach(&self, cx: &Cx, _: SrAttach) -> Result<SrRecovered> {
        self.connected(cx, async |device| {
            if !self.join(cx, &device).await? {
                // What has no place for leases yet gets one first.
                self.images_on(cx, device.clone(), |disks, _| disks.init()).await?;
            }
            let raw = self.alone(cx, None, async |raw| raw.attach(cx).await).await?;
            let images = self.images_on(cx, device, Disks::attach).await?;
            Ok(both(raw, images))
        })
        .await
    }

    async fn sr_detach(&self, cx: &Cx, _: SrDetach) -> Result<SrDone> {
        let changed = self.deactivate(cx).await?;
        self.leave(cx).await;
        self.lun.disconnect(cx).await?;
        Ok(SrDone { changed })
    }

    async fn sr_destroy(&self, cx: &Cx, _: SrDestroy) -> Result<SrDone> {
        let destroy = async |device: String| {
            match self.images_on(cx, device.clone(), Disks::destroy).await {
                // The group goes first, so there may be none any more.
                Err(error) if error.kind == Kind::NotFound => {}
                other => other?,
            }
            self.on(device).destroy(cx).await
        };
        let changed = self.connected(cx, destroy).await?;
        self.leave(&cx.shielded()).await;
        self.lun.disconnect(&cx.shielded()).await?;
        Ok(SrDone { changed })
    }

    async fn sr_scan(&self, cx: &Cx, _: SrScan) -> Result<SrScanned> {
        self.images(cx, |disks, _| {
            let mut vdis = disks.scan()?;
            vdis.extend(Repository::disks_of(&*disks.group()?));
            Ok(SrScanned { vdis, next: None })
        })
        .await
    }

    async fn sr_recover(&self, cx: &Cx, _: SrRecover) -> Result<SrRecovered> {
        // What the LUN has grown by is there for the group from here on.
        lun::refresh(cx, &self.lun.id).await?;
        let group = self.images(cx, |disks, _| disks.group()).await?;
        let raw = if self.repository()?.is_to_recover(&group) {
            self.alone(cx, None, async |raw| raw.recover(cx).await).await?
        } else {
            SrRecovered::default()
        };
        let images = self.images(cx, Disks::recover).await?;
        Ok(both(raw, images))
    }

    async fn sr_maintain(&self, cx: &Cx, request: SrMaintain) -> Result<SrMaintained> {
        self.images(cx, move |disks, cx| disks.maintain(cx, &request)).await
    }

    async fn sr_stat(&self, cx: &Cx, _: SrStat) -> Result<SrInfo> {
        let repository = self.repository()?;
        let paths = self.lun.paths(cx).await?;
        if paths.up == 0 && paths.max > 0 {
            return Err(none_up(&paths));
        }
        let fencing = self.fence_warning(cx).await?;
        let mut info = self
            .images(cx, move |disks, _| {
                let (warnings, vdis) = disks.look()?;
                let mut info = repository.stat_of(&*disks.group()?)?;
                add(&mut info, warnings, &vdis);
                let fences = disks.fences()?.unwrap_or_default();
                info.warnings.extend(fences.iter().map(Fence::sentence));
                Ok(info)
            })
            .await?;
        if paths.up < paths.max && info.health == Health::Ok {
            let reason = format!("{} of {} paths are up", paths.up, paths.max);
            info.health = Health::Degraded { reason };
        }
        info.warnings.extend(fencing);
        info.paths = Some(paths);
        Ok(info)
    }

    async fn sr_update(&self, cx: &Cx, request: SrUpdate) -> Result<SrDone> {
        let changed = self.alone(cx, None, async |raw| raw.update(cx, &request).await).await?;
        Ok(SrDone { changed })
    }

    async fn sr_fence(&self, cx: &Cx, request: SrFence) -> Result<SrFenced> {
        self.shut_out(cx, request).await
    }

    async fn vdi_create(&self, cx: &Cx, request: VdiCreate) -> Result<VdiDone> {
        if request.format == Some(ImageFormat::Raw) {
            return self.alone(cx, None, async |raw| raw.vdi_create(cx, &request).await).await;
        }
        self.images(cx, move |disks, cx| disks.place().vdi_create(cx, &request)).await
    }

    async fn vdi_introduce(&self, cx: &Cx, request: VdiIntroduce) -> Result<VdiDone> {
        let wish = request.clone();
        let done = self.images(cx, move |disks, cx| disks.place().vdi_introduce(cx, &wish)).await;
        let raw = async |raw: Repository| raw.vdi_introduce(cx, &request).await;
        self.or_raw(done, async |this| this.alone(cx, None, raw).await).await
    }

    async fn vdi_stat(&self, cx: &Cx, request: VdiStat) -> Result<VdiInfo> {
        let vdi = request.vdi;
        let done = self.images(cx, move |disks, _| disks.place().vdi_stat(&request)).await;
        self.or_raw(done, async |this| this.repository()?.vdi_stat(cx, vdi).await).await
    }

    async fn vdi_update(&self, cx: &Cx, request: VdiUpdate) -> Result<VdiDone> {
        let wish = request.clone();
        let done = self.images(cx, move |disks, cx| disks.place().vdi_update(cx, &wish)).await;
        let raw = async |raw: Repository| raw.vdi_update(cx, &request).await;
        self.or_raw(done, async |this| this.alone(cx, None, raw).await).await
    }

    async fn vdi_resize(&self, cx: &Cx, request: VdiResize) -> Result<VdiDone> {
        let wish = request.clone();
        let done = self.images(cx, move |disks, cx| disks.place().vdi_resize(cx, &wish)).await;
        let (vdi, raw) =
            (Some(request.vdi), async |raw: Repository| raw.vdi_resize(cx, &request).await);
        self.or_raw(done, async |this| this.alone(cx, vdi, raw).await).await
    }

    async fn vdi_snapshot(&self, cx: &Cx, request: VdiSnapshot) -> Result<VdisDone> {
        let wish = request.clone();
        let done = self.images(cx, move |disks, cx| disks.vdi_snapshot(cx, &wish)).await;
        self.or_raw(done, async |this| this.repository()?.vdi_snapshot(cx, &request).await).await
    }

    async fn vdi_clone(&self, cx: &Cx, request: VdiClone) -> Result<VdiDone> {
        let wish = request.clone();
        let done = self.images(cx, move |disks, cx| disks.vdi_clone(cx, &wish)).await;
        self.or_raw(done, async |this| this.repository()?.vdi_clone(cx, &request).await).await
    }

    async fn vdi_revert(&self, cx: &Cx, request: VdiRevert) -> Result<VdiDone> {
        self.images(cx, move |disks, cx| disks.vdi_revert(cx, &request)).await
    }

    async fn vdi_destroy(&self, cx: &Cx, request: VdiDestroy) -> Result<VdiDestroyed> {
        let vdi = request.vdi;
        let done = self.images(cx, move |disks, cx| disks.place().vdi_destroy(cx, vdi)).await?;
        match done.changed {
            Changed::Already => {
                self.alone(cx, Some(vdi), async |raw| raw.vdi_destroy(cx, vdi).await).await
            }
            _ => Ok(done),
        }
    }

    async fn vdi_tree(&self, cx: &Cx, _: VdiTree) -> Result<VdiForest> {
        let mut forest = self.images(cx, |disks, _| disks.place().vdi_tree()).await?;
        forest.nodes.extend(self.repository()?.vdi_tree(cx).await?.nodes);
        Ok(forest)
    }

    async fn vdi_check(&self, cx: &Cx, request: VdiCheck) -> Result<VdiChecked> {
        let vdi = request.vdi;
        let done = self.images(cx, move |disks, cx| disks.vdi_check(cx, vdi)).await;
        self.or_raw(done, async |this| this.repository()?.vdi_check(cx, vdi).await).await
    }

    async fn vdi_attach(&self, cx: &Cx, request: VdiAttach) -> Result<VdiAttached> {
        let wish = request.clone();
        let done = self.images(cx, move |disks, cx| disks.place().vdi_attach(cx, &wish)).await;
        self.or_raw(done, async |this| this.repository()?.vdi_attach(cx, &request).await).await
    }

    async fn vdi_activate(&self, cx: &Cx, request: VdiActivate) -> Result<VdiDatapathDone> {
        let wish = request.clone();
        let done = self.images(cx, move |disks, cx| disks.place().vdi_activate(cx, &wish)).await;
        let raw = async |this: &Self| {
            let (vdi, mode) = (request.vdi, request.mode);
            this.images(cx, move |disks, cx| disks.claim_raw(cx, vdi, mode)).await?;
            this.repository()?.vdi_activate(cx, &request).await?;
            Ok(VdiDatapathDone::default())
        };
        self.or_raw(done, raw).await
    }

    async fn vdi_deactivate(&self, cx: &Cx, request: VdiDeactivate) -> Result<VdiDatapathDone> {
        let vdi = request.vdi;
        self.let_go_raw(cx, vdi).await?;
        let done = self.images(cx, move |disks, cx| disks.place().vdi_deactivate(cx, vdi)).await;
        if_reachable(done)?;
        Ok(VdiDatapathDone::default())
    }

    async fn vdi_detach(&self, cx: &Cx, request: VdiDetach) -> Result<VdiDatapathDone> {
        let vdi = request.vdi;
        // It is inactive, unless a call in between was lost.
        self.let_go_raw(cx, vdi).await?;
        if_reachable(self.images(cx, move |disks, cx| disks.vdi_detach(cx, vdi)).await)?;
        Ok(VdiDatapathDone::default())
    }
}

/// A disk can be let go of also if its LUN is gone, or this host is shut out: what is on the LUN stays
/// as it is, and a claim of this host ends at its next attach of the SR, or with its boot.
fn if_reachable(done: Result<()>) -> Result<()> {
    match done {
        Err(error) if matches!(error.kind, Kind::Unreachable | Kind::NotFound | Kind::Fenced) => {
            plugin_sdk::tracing::warn!(%error, "a disk is let go of without its SR");
            Ok(())
        }
        other => other,
    }
}

plugin_sdk::export_driver!(LvmOIscsiDriver);
