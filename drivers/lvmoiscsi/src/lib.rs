//! Driver for LVM on LUNs of iSCSI targets.
//!
//! An SR is a volume group on one LUN, called as XenServer calls it; a VDI is a linear volume,
//! reached as a block device. The LUN is found by its SCSIid, at all portals of its target, which
//! dm-multipath makes one device. Sessions begin with the attach of the first SR that needs the target and
//! end with the detach of the last.
//!
//! All that is known about a VDI is in tags of its volume, as of the driver `lvm`, with which it
//! shares everything from the volume group upwards ([`host_kit::lvm`]).
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
mod probe;
mod reach;

use host_kit::lvm::{Allocation, Devices, Lvm, Names, Repository};
use plugin_sdk::config::RawConfig;
use plugin_sdk::model::manifest::feature;
use plugin_sdk::model::sr::{
    SrAttach, SrCreate, SrCreated, SrDestroy, SrDetach, SrDone, SrInfo, SrProbed, SrRecover,
    SrRecovered, SrScan, SrScanned, SrStat, SrUpdate,
};
use plugin_sdk::model::vdi::{
    Health, VdiActivate, VdiAttach, VdiAttached, VdiCheck, VdiChecked, VdiCreate, VdiDatapathDone,
    VdiDeactivate, VdiDestroy, VdiDestroyed, VdiDetach, VdiDone, VdiForest, VdiInfo, VdiIntroduce,
    VdiResize, VdiStat, VdiTree, VdiUpdate,
};
use plugin_sdk::model::{Changed, Kind, SrUuid};
use plugin_sdk::{Cx, Driver, Feature, Manifest, Result, manifest};

pub use config::{Addresses, Config, Port, Wanted};

use config::Place;
use reach::Lun;

/// One SR on a LUN.
#[derive(Debug)]
pub struct LvmOIscsiDriver {
    sr: SrUuid,
    lun: Lun,
    force: bool,
}

impl LvmOIscsiDriver {
    fn on(&self, device: String) -> Repository {
        let lvm = Lvm::new(Devices::one(device));
        Repository::new(self.sr, Names::XenServer, lvm, Allocation::Thick, self.force)
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

impl Driver for LvmOIscsiDriver {
    type Config = Config;

    const MANIFEST: Manifest = manifest! {
        name: "lvmoiscsi",
        title: "LVM on a LUN of an iSCSI target, with multipath",
        operations: [
            sr_probe, sr_create, sr_attach, sr_detach, sr_destroy, sr_scan, sr_recover, sr_stat,
            sr_update, vdi_create, vdi_introduce, vdi_stat, vdi_update, vdi_resize, vdi_destroy,
            vdi_tree, vdi_check, vdi_attach, vdi_activate, vdi_deactivate, vdi_detach,
        ],
        features: &[Feature::new(feature::RAW), Feature::new(feature::LIVE_RESIZE)],
        needs_root: true,
    };

    async fn probe(config: RawConfig, cx: &Cx) -> Result<SrProbed> {
        probe::probe(&config, cx).await
    }

    async fn open(config: Config, sr: SrUuid, _: &Cx) -> Result<Self> {
        let place = Place::of_config(&config)?;
        let Config { iqn: wanted, scsi_id: id, force, .. } = config;
        Ok(Self { sr, lun: Lun { place, wanted, id, user: sr.to_string() }, force })
    }

    async fn sr_create(&self, cx: &Cx, request: SrCreate) -> Result<SrCreated> {
        let changed =
            self.connected(cx, async |device| self.on(device).create(cx, &request).await).await?;
        let mut device_config = cx.device_config().clone();
        // Meant for this once.
        device_config.remove("force");
        Ok(SrCreated { changed, device_config })
    }

    async fn sr_attach(&self, cx: &Cx, _: SrAttach) -> Result<SrRecovered> {
        self.connected(cx, async |device| self.on(device).attach(cx).await).await
    }

    async fn sr_detach(&self, cx: &Cx, _: SrDetach) -> Result<SrDone> {
        let changed = self.deactivate(cx).await?;
        self.lun.disconnect(cx).await?;
        Ok(SrDone { changed })
    }

    async fn sr_destroy(&self, cx: &Cx, _: SrDestroy) -> Result<SrDone> {
        let destroy = async |device| self.on(device).destroy(cx).await;
        let changed = self.connected(cx, destroy).await?;
        self.lun.disconnect(&cx.shielded()).await?;
        Ok(SrDone { changed })
    }

    async fn sr_scan(&self, cx: &Cx, _: SrScan) -> Result<SrScanned> {
        self.repository()?.scan(cx).await
    }

    async fn sr_recover(&self, cx: &Cx, _: SrRecover) -> Result<SrRecovered> {
        // What the LUN has grown by is there for the group from here on.
        self.lun.refresh(cx).await?;
        self.repository()?.recover(cx).await
    }

    async fn sr_stat(&self, cx: &Cx, _: SrStat) -> Result<SrInfo> {
        let paths = self.lun.paths(cx).await?;
        let mut info = self.repository()?.stat(cx).await?;
        if paths.up < paths.max && info.health == Health::Ok {
            let reason = format!("{} of {} paths are up", paths.up, paths.max);
            info.health = Health::Degraded { reason };
        }
        info.paths = Some(paths);
        Ok(info)
    }

    async fn sr_update(&self, cx: &Cx, request: SrUpdate) -> Result<SrDone> {
        Ok(SrDone { changed: self.repository()?.update(cx, &request).await? })
    }

    async fn vdi_create(&self, cx: &Cx, request: VdiCreate) -> Result<VdiDone> {
        self.repository()?.vdi_create(cx, &request).await
    }

    async fn vdi_introduce(&self, cx: &Cx, request: VdiIntroduce) -> Result<VdiDone> {
        self.repository()?.vdi_introduce(cx, &request).await
    }

    async fn vdi_stat(&self, cx: &Cx, request: VdiStat) -> Result<VdiInfo> {
        self.repository()?.vdi_stat(cx, request.vdi).await
    }

    async fn vdi_update(&self, cx: &Cx, request: VdiUpdate) -> Result<VdiDone> {
        self.repository()?.vdi_update(cx, &request).await
    }

    async fn vdi_resize(&self, cx: &Cx, request: VdiResize) -> Result<VdiDone> {
        self.repository()?.vdi_resize(cx, &request).await
    }

    async fn vdi_destroy(&self, cx: &Cx, request: VdiDestroy) -> Result<VdiDestroyed> {
        self.repository()?.vdi_destroy(cx, request.vdi).await
    }

    async fn vdi_tree(&self, cx: &Cx, _: VdiTree) -> Result<VdiForest> {
        self.repository()?.vdi_tree(cx).await
    }

    async fn vdi_check(&self, cx: &Cx, request: VdiCheck) -> Result<VdiChecked> {
        self.repository()?.vdi_check(cx, request.vdi).await
    }

    async fn vdi_attach(&self, cx: &Cx, request: VdiAttach) -> Result<VdiAttached> {
        self.repository()?.vdi_attach(cx, &request).await
    }

    async fn vdi_activate(&self, cx: &Cx, request: VdiActivate) -> Result<VdiDatapathDone> {
        self.repository()?.vdi_activate(cx, &request).await?;
        Ok(VdiDatapathDone::default())
    }

    async fn vdi_deactivate(&self, cx: &Cx, request: VdiDeactivate) -> Result<VdiDatapathDone> {
        // The device of the volume has to go also if the LUN has.
        let repository = self.repository().unwrap_or_else(|_| self.on("/dev/null".to_owned()));
        repository.vdi_deactivate(cx, request.vdi).await?;
        Ok(VdiDatapathDone::default())
    }

    async fn vdi_detach(&self, cx: &Cx, request: VdiDetach) -> Result<VdiDatapathDone> {
        // It is inactive, unless a call in between was lost.
        self.vdi_deactivate(cx, VdiDeactivate { vdi: request.vdi }).await
    }
}

plugin_sdk::export_driver!(LvmOIscsiDriver);
