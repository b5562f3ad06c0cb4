//! Driver for a directory on any file system of this host.
//!
//! An SR is the folder `<location>/<sr uuid>` in XenServer's layout, so that an SR of XenServer or
//! XCP-ng can be introduced and used, and ours read by theirs: `<vdi uuid>.vhd` dynamic and
//! differencing images, `<vdi uuid>.raw` raw ones. What they have no place for (names, keys,
//! snapshot relations) lies in `.sm/` inside the folder.
//!
//! The trees of images, with their crash safety, are the `vhd` crate's; this driver adds the SR,
//! the metadata and the words.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod changes;
mod error;
mod folder;
mod live;
mod maintain;
mod metadata;
mod space;
mod vdis;
mod writer;

use plugin_sdk::config::RawConfig;
use plugin_sdk::model::manifest::feature;
use plugin_sdk::model::sr::{
    ProbeItem, SrAttach, SrCreate, SrCreated, SrDestroy, SrDetach, SrDone, SrInfo, SrMaintain,
    SrMaintained, SrProbed, SrRecover, SrRecovered, SrScan, SrScanned, SrStat, SrUpdate,
};
use plugin_sdk::model::vdi::{
    VdiActivate, VdiAttach, VdiAttached, VdiCbt, VdiChanged, VdiChanges, VdiCheck, VdiChecked,
    VdiClone, VdiCreate, VdiDatapathDone, VdiDeactivate, VdiDestroy, VdiDestroyed, VdiDetach,
    VdiDone, VdiForest, VdiInfo, VdiIntroduce, VdiReclaim, VdiReclaimed, VdiResize, VdiRevert,
    VdiSnapshot, VdiStat, VdiTree, VdiUpdate, VdisDone,
};
use plugin_sdk::model::{Changed, SrUuid};
use plugin_sdk::{Cx, Driver, Feature, Manifest, Result, Utf8PathBuf, manifest};

use folder::Folder;

plugin_sdk::device_config! {
    /// Where the images lie.
    pub struct Config {
        /// Directory that holds one folder for each SR; it must exist.
        pub location: Utf8PathBuf,
    }
}

/// One SR in a directory.
#[derive(Debug)]
pub struct FileDriver {
    folder: Folder,
}

impl Driver for FileDriver {
    type Config = Config;

    const MANIFEST: Manifest = manifest! {
        name: "file",
        title: "Directory on any file system: VHD trees and raw images",
        operations: [
            sr_probe, sr_create, sr_attach, sr_detach, sr_destroy, sr_scan, sr_recover,
            sr_maintain, sr_stat, sr_update, vdi_create, vdi_introduce, vdi_stat, vdi_update,
            vdi_resize, vdi_snapshot, vdi_clone, vdi_reclaim, vdi_cbt, vdi_changed, vdi_revert,
            vdi_destroy, vdi_tree, vdi_check, vdi_attach, vdi_activate, vdi_deactivate, vdi_detach,
        ],
        features: &[
            Feature::new(feature::VHD),
            Feature::new(feature::RAW),
            Feature::new(feature::THIN),
            Feature::new(feature::DATAPATH),
            Feature::new(feature::LIVE_RESIZE),
            Feature::new(feature::CHANGED_BLOCKS),
            Feature::new(feature::GROUP_SNAPSHOT),
            Feature::limit(
                feature::MAX_VDI_SIZE,
                vhd::MAX_SIZE,
                "VHD: 0xff000000 sectors, so that a full image stays below 2^32 sectors",
            ),
            Feature::limit(feature::MAX_CHAIN, 30, "XenServer's tools: MAX_CHAIN"),
        ],
        // It works on the files of whoever runs it; under another user id it could not.
        needs_root: true,
    };

    async fn probe(config: RawConfig, cx: &Cx) -> Result<SrProbed> {
        let location: Utf8PathBuf = config.complete::<Config>()?.location;
        cx.blocking(move |_| {
            let mut items = vec![ProbeItem { complete: true, ..ProbeItem::default() }];
            items.extend(folder::found(&location)?.into_iter().map(|sr| ProbeItem {
                complete: true,
                sr: Some(sr),
                ..ProbeItem::default()
            }));
            Ok(SrProbed { items })
        })
        .await
    }

    async fn open(config: Config, sr: SrUuid, _: &Cx) -> Result<Self> {
        Ok(Self { folder: Folder::new(&config.location, sr) })
    }

    async fn sr_create(&self, cx: &Cx, request: SrCreate) -> Result<SrCreated> {
        let changed = self.blocking(cx, move |folder, cx| folder.create(cx, &request)).await?;
        Ok(SrCreated { changed, device_config: cx.device_config().clone() })
    }

    async fn sr_attach(&self, cx: &Cx, _: SrAttach) -> Result<SrRecovered> {
        self.blocking(cx, Folder::attach).await
    }

    async fn sr_detach(&self, _: &Cx, _: SrDetach) -> Result<SrDone> {
        Ok(SrDone { changed: Changed::Already })
    }

    async fn sr_destroy(&self, cx: &Cx, _: SrDestroy) -> Result<SrDone> {
        let changed = self.blocking(cx, Folder::destroy).await?;
        Ok(SrDone { changed })
    }

    async fn sr_scan(&self, cx: &Cx, _: SrScan) -> Result<SrScanned> {
        self.blocking(cx, |folder, _| vdis::scan(folder)).await
    }

    async fn sr_recover(&self, cx: &Cx, _: SrRecover) -> Result<SrRecovered> {
        self.blocking(cx, Folder::recover).await
    }

    async fn sr_maintain(&self, cx: &Cx, request: SrMaintain) -> Result<SrMaintained> {
        self.blocking(cx, move |folder, cx| maintain::maintain(folder, cx, &request)).await
    }

    async fn sr_stat(&self, cx: &Cx, _: SrStat) -> Result<SrInfo> {
        self.blocking(cx, |folder, _| folder.stat()).await
    }

    async fn sr_update(&self, cx: &Cx, request: SrUpdate) -> Result<SrDone> {
        let changed = self.blocking(cx, move |folder, cx| folder.update(cx, &request)).await?;
        Ok(SrDone { changed })
    }

    async fn vdi_create(&self, cx: &Cx, request: VdiCreate) -> Result<VdiDone> {
        self.blocking(cx, move |folder, cx| vdis::create(folder, cx, &request)).await
    }

    async fn vdi_introduce(&self, cx: &Cx, request: VdiIntroduce) -> Result<VdiDone> {
        self.blocking(cx, move |folder, cx| vdis::introduce(folder, cx, &request)).await
    }

    async fn vdi_stat(&self, cx: &Cx, request: VdiStat) -> Result<VdiInfo> {
        self.blocking(cx, move |folder, _| vdis::stat(folder, &request)).await
    }

    async fn vdi_update(&self, cx: &Cx, request: VdiUpdate) -> Result<VdiDone> {
        self.blocking(cx, move |folder, cx| vdis::update(folder, cx, &request)).await
    }

    async fn vdi_resize(&self, cx: &Cx, request: VdiResize) -> Result<VdiDone> {
        self.blocking(cx, move |folder, cx| vdis::resize(folder, cx, &request)).await
    }

    async fn vdi_snapshot(&self, cx: &Cx, request: VdiSnapshot) -> Result<VdisDone> {
        self.blocking(cx, move |folder, cx| vdis::snapshot(folder, cx, &request)).await
    }

    async fn vdi_clone(&self, cx: &Cx, request: VdiClone) -> Result<VdiDone> {
        self.blocking(cx, move |folder, cx| vdis::clone(folder, cx, &request)).await
    }

    async fn vdi_revert(&self, cx: &Cx, request: VdiRevert) -> Result<VdiDone> {
        self.blocking(cx, move |folder, cx| vdis::revert(folder, cx, &request)).await
    }

    async fn vdi_reclaim(&self, cx: &Cx, request: VdiReclaim) -> Result<VdiReclaimed> {
        self.blocking(cx, move |folder, cx| maintain::reclaim(folder, cx, request.vdi)).await
    }

    async fn vdi_cbt(&self, cx: &Cx, request: VdiCbt) -> Result<VdiDone> {
        self.blocking(cx, move |folder, cx| changes::set(folder, cx, &request)).await
    }

    async fn vdi_changed(&self, cx: &Cx, request: VdiChanged) -> Result<VdiChanges> {
        self.blocking(cx, move |folder, cx| changes::changed(folder, cx, &request)).await
    }

    async fn vdi_destroy(&self, cx: &Cx, request: VdiDestroy) -> Result<VdiDestroyed> {
        self.blocking(cx, move |folder, cx| vdis::destroy(folder, cx, request.vdi)).await
    }

    async fn vdi_tree(&self, cx: &Cx, _: VdiTree) -> Result<VdiForest> {
        self.blocking(cx, |folder, _| vdis::forest(folder)).await
    }

    async fn vdi_check(&self, cx: &Cx, request: VdiCheck) -> Result<VdiChecked> {
        self.blocking(cx, move |folder, _| vdis::check(folder, request.vdi)).await
    }

    async fn vdi_attach(&self, cx: &Cx, request: VdiAttach) -> Result<VdiAttached> {
        self.blocking(cx, move |folder, cx| vdis::attach(folder, cx, &request)).await
    }

    // The images are files that are always there: attach and detach only claim the disk, so that no
    // maintenance rewrites what somebody has open; activate and deactivate claim the writing.

    async fn vdi_activate(&self, cx: &Cx, request: VdiActivate) -> Result<VdiDatapathDone> {
        self.blocking(cx, move |folder, cx| writer::activate(folder, cx, &request)).await
    }

    async fn vdi_deactivate(&self, cx: &Cx, request: VdiDeactivate) -> Result<VdiDatapathDone> {
        self.blocking(cx, move |folder, cx| writer::deactivate(folder, cx, request.vdi)).await?;
        Ok(VdiDatapathDone::default())
    }

    async fn vdi_detach(&self, cx: &Cx, request: VdiDetach) -> Result<VdiDatapathDone> {
        self.blocking(cx, move |folder, cx| maintain::release(folder, cx, request.vdi)).await?;
        Ok(VdiDatapathDone::default())
    }
}

impl FileDriver {
    async fn blocking<T: Send + 'static>(
        &self,
        cx: &Cx,
        work: impl FnOnce(&Folder, &Cx) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let folder = self.folder.clone();
        cx.blocking(move |cx| work(&folder, cx)).await
    }
}

plugin_sdk::export_driver!(FileDriver);
