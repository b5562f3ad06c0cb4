//! Driver for local disks with LVM.
//!
//! An SR is a volume group of its own, `sm-<sr uuid>`, on one or more disks. With `allocation=thin`
//! it has a thin pool, and a VDI is a thin volume: snapshot, clone, revert and resize are LVM's own, and
//! take space only for what differs. With `allocation=thick` a VDI is a linear volume, without
//! snapshots. A VDI is reached as a block device; no process is in the way of the data.
//!
//! All that is known about a VDI is in tags of its volume, and of the SR in tags of the group, so
//! the disks can be moved to another machine as they are.
//!
//! # Why not ...
//!
//! - **a volume for the metadata**, as XenServer has: it would be written by a second command, after
//!   or before the one that makes the volume, so that a cut between them leaves a disk without a
//!   name or a name without a disk. Tags are written by the very command that makes the volume, in
//!   LVM's own atomic commit, and are there in the one report that a scan needs anyway.
//! - **`lvcreate` alone for snapshots of several VDIs at one instant**: it suspends each origin for its own
//!   snapshot. With the origins suspended beforehand by `dmsetup`, LVM 2.03.16 makes the first snapshot in
//!   its metadata without the pool having made it, after which the pool refuses all changes
//!   ("unexpected transaction id"). `host_kit::lvm` has the way that is gone instead.
//! - **XenServer's layout**, VHDs in volumes: its snapshots need a data path that follows chains, and
//!   space for a whole second disk when thick. Drivers for storage that several hosts share use it.
//! - **thick snapshots of LVM**: each write to the origin becomes two for each snapshot, and one that
//!   fills up is lost.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

use host_kit::lvm::{Allocation, Devices, Found, Lvm, Names, Repository, candidates};
use plugin_sdk::config::{ConfigValue, RawConfig};
use plugin_sdk::model::SrUuid;
use plugin_sdk::model::manifest::{FieldKind, feature};
use plugin_sdk::model::sr::{
    ProbeItem, SrAttach, SrCreate, SrCreated, SrDestroy, SrDetach, SrDone, SrInfo, SrProbed,
    SrRecover, SrRecovered, SrScan, SrScanned, SrStat, SrUpdate,
};
use plugin_sdk::model::vdi::{
    VdiActivate, VdiAttach, VdiAttached, VdiCheck, VdiChecked, VdiClone, VdiCreate,
    VdiDatapathDone, VdiDeactivate, VdiDestroy, VdiDestroyed, VdiDetach, VdiDone, VdiForest,
    VdiInfo, VdiIntroduce, VdiResize, VdiRevert, VdiSnapshot, VdiSnapshotPrepare,
    VdiSnapshotPrepared, VdiStat, VdiTree, VdiUpdate, VdisDone,
};
use plugin_sdk::{Cx, Driver, Feature, Manifest, Result, manifest};

plugin_sdk::device_config! {
    /// Which disks, and how.
    pub struct Config {
        /// Disk or partition that the SR takes as a whole, or several with commas between; best by its name in /dev/disk/by-id.
        pub device: DeviceNames,
        /// thin: a pool, with snapshots; thick: linear volumes, without. Decided when the SR is made.
        pub allocation: Allocation = "thin",
        /// Whether creating the SR erases what is on the devices.
        pub force: bool = "false",
    }
}

/// The value of the key `device`.
#[derive(Clone, Debug)]
pub struct DeviceNames(Devices);

impl ConfigValue for DeviceNames {
    const KIND: FieldKind = Devices::KIND;

    fn parse(text: &str) -> std::result::Result<Self, String> {
        Devices::parse(text).map(Self)
    }
}

/// One SR on disks of this host.
#[derive(Debug)]
pub struct LvmDriver {
    sr: Repository,
}

impl Driver for LvmDriver {
    type Config = Config;

    const MANIFEST: Manifest = manifest! {
        name: "lvm",
        title: "Local disks with LVM: thin pools with native snapshots, or thick volumes",
        operations: [
            sr_probe, sr_create, sr_attach, sr_detach, sr_destroy, sr_scan, sr_recover, sr_stat,
            sr_update, vdi_create, vdi_introduce, vdi_stat, vdi_update, vdi_resize, vdi_snapshot,
            vdi_snapshot_prepare, vdi_clone, vdi_revert, vdi_destroy, vdi_tree, vdi_check, vdi_attach, vdi_activate,
            vdi_deactivate, vdi_detach,
        ],
        features: &[
            Feature::new(feature::RAW),
            Feature::new(feature::THIN),
            Feature::new(feature::LIVE_SNAPSHOT),
            Feature::new(feature::GROUP_SNAPSHOT),
            Feature::new(feature::LIVE_RESIZE),
        ],
        needs_root: true,
    };

    async fn probe(config: RawConfig, cx: &Cx) -> Result<SrProbed> {
        probe(&config, cx).await
    }

    async fn open(config: Config, sr: SrUuid, _: &Cx) -> Result<Self> {
        let Config { device, allocation, force } = config;
        let lvm = Lvm::new(device.0);
        Ok(Self { sr: Repository::new(sr, Names::Own, lvm, allocation, force) })
    }

    async fn sr_create(&self, cx: &Cx, request: SrCreate) -> Result<SrCreated> {
        let changed = self.sr.create(cx, &request).await?;
        let mut device_config = cx.device_config().clone();
        // Meant for this once.
        device_config.remove("force");
        Ok(SrCreated { changed, device_config })
    }

    async fn sr_attach(&self, cx: &Cx, _: SrAttach) -> Result<SrRecovered> {
        self.sr.attach(cx).await
    }

    async fn sr_detach(&self, cx: &Cx, _: SrDetach) -> Result<SrDone> {
        Ok(SrDone { changed: self.sr.detach(cx).await? })
    }

    async fn sr_destroy(&self, cx: &Cx, _: SrDestroy) -> Result<SrDone> {
        Ok(SrDone { changed: self.sr.destroy(cx).await? })
    }

    async fn sr_scan(&self, cx: &Cx, _: SrScan) -> Result<SrScanned> {
        self.sr.scan(cx).await
    }

    async fn sr_recover(&self, cx: &Cx, _: SrRecover) -> Result<SrRecovered> {
        self.sr.recover(cx).await
    }

    async fn sr_stat(&self, cx: &Cx, _: SrStat) -> Result<SrInfo> {
        self.sr.stat(cx).await
    }

    async fn sr_update(&self, cx: &Cx, request: SrUpdate) -> Result<SrDone> {
        Ok(SrDone { changed: self.sr.update(cx, &request).await? })
    }

    async fn vdi_create(&self, cx: &Cx, request: VdiCreate) -> Result<VdiDone> {
        self.sr.vdi_create(cx, &request).await
    }

    async fn vdi_introduce(&self, cx: &Cx, request: VdiIntroduce) -> Result<VdiDone> {
        self.sr.vdi_introduce(cx, &request).await
    }

    async fn vdi_stat(&self, cx: &Cx, request: VdiStat) -> Result<VdiInfo> {
        self.sr.vdi_stat(cx, request.vdi).await
    }

    async fn vdi_update(&self, cx: &Cx, request: VdiUpdate) -> Result<VdiDone> {
        self.sr.vdi_update(cx, &request).await
    }

    async fn vdi_resize(&self, cx: &Cx, request: VdiResize) -> Result<VdiDone> {
        self.sr.vdi_resize(cx, &request).await
    }

    async fn vdi_snapshot(&self, cx: &Cx, request: VdiSnapshot) -> Result<VdisDone> {
        self.sr.vdi_snapshot(cx, &request).await
    }

    async fn vdi_snapshot_prepare(
        &self,
        cx: &Cx,
        request: VdiSnapshotPrepare,
    ) -> Result<VdiSnapshotPrepared> {
        self.sr.vdi_snapshot_prepare(cx, &request).await
    }

    async fn vdi_clone(&self, cx: &Cx, request: VdiClone) -> Result<VdiDone> {
        self.sr.vdi_clone(cx, &request).await
    }

    async fn vdi_revert(&self, cx: &Cx, request: VdiRevert) -> Result<VdiDone> {
        self.sr.vdi_revert(cx, &request).await
    }

    async fn vdi_destroy(&self, cx: &Cx, request: VdiDestroy) -> Result<VdiDestroyed> {
        self.sr.vdi_destroy(cx, request.vdi).await
    }

    async fn vdi_tree(&self, cx: &Cx, _: VdiTree) -> Result<VdiForest> {
        self.sr.vdi_tree(cx).await
    }

    async fn vdi_check(&self, cx: &Cx, request: VdiCheck) -> Result<VdiChecked> {
        self.sr.vdi_check(cx, request.vdi).await
    }

    async fn vdi_attach(&self, cx: &Cx, request: VdiAttach) -> Result<VdiAttached> {
        self.sr.vdi_attach(cx, &request).await
    }

    async fn vdi_activate(&self, cx: &Cx, request: VdiActivate) -> Result<VdiDatapathDone> {
        self.sr.vdi_activate(cx, &request).await?;
        Ok(VdiDatapathDone::default())
    }

    async fn vdi_deactivate(&self, cx: &Cx, request: VdiDeactivate) -> Result<VdiDatapathDone> {
        self.sr.vdi_deactivate(cx, request.vdi).await?;
        Ok(VdiDatapathDone::default())
    }

    async fn vdi_detach(&self, cx: &Cx, request: VdiDetach) -> Result<VdiDatapathDone> {
        // It is inactive, unless a call in between was lost.
        self.sr.vdi_deactivate(cx, request.vdi).await?;
        Ok(VdiDatapathDone::default())
    }
}

/// Without a device, those of this host; with it, what is on it.
async fn probe(config: &RawConfig, cx: &Cx) -> Result<SrProbed> {
    let Some(named) = config.get::<Devices>("device")? else {
        return Ok(SrProbed { items: candidates(cx).await? });
    };
    let found = Repository::probe(&Lvm::new(named), Names::Own, cx).await?;
    let text = |facts: Vec<(&str, String)>| {
        facts.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    };
    let item = |found| match found {
        Found::Sr { sr, size, allocation, devices, missing } => {
            let mut facts = vec![
                ("size", size.to_string()),
                ("allocation", allocation.to_string()),
                ("devices", devices.join(",")),
            ];
            if missing > 0 {
                facts.push(("missing", format!("{missing} devices are not named")));
            }
            ProbeItem {
                complete: missing == 0,
                sr: Some(sr),
                extra_info: text(facts),
                ..ProbeItem::default()
            }
        }
        Found::Occupied(reason) => ProbeItem {
            complete: true,
            extra_info: text(vec![("occupied", reason)]),
            ..ProbeItem::default()
        },
        Found::Nothing => ProbeItem { complete: true, ..ProbeItem::default() },
    };
    Ok(SrProbed { items: found.into_iter().map(item).collect() })
}

plugin_sdk::export_driver!(LvmDriver);
