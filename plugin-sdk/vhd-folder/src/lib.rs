//! An SR that is a folder of VHD trees, on whatever file system: the driver but for where the folder
//! is.
//!
//! The layout is XenServer's, so that an SR of XenServer or XCP-ng can be introduced and used, and
//! ours read by theirs: `<vdi uuid>.vhd` dynamic and differencing images, `<vdi uuid>.raw` raw ones.
//! What they have no place for (names, keys, snapshot relations) lies in `.sm/` inside the folder.
//!
//! The trees of images, with their crash safety, are the `vhd` crate's; here are the SR, the
//! metadata and the words. A driver says by a [`Site`] how the folder is found and reached, and
//! exports [`FolderDriver`] of it.
//!
//! Why not a library of functions, one for each operation: the operations of all such drivers would
//! then be a page of the same calls in each, and one that is forgotten shows in none.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod changes;
mod error;
mod fence;
mod folder;
mod live;
mod maintain;
mod metadata;
mod place;
mod recover;
mod snapshot;
mod space;
mod vdis;
mod writer;

use plugin_sdk::config::{DeviceConfig, RawConfig};
use plugin_sdk::model::sr::{
    SrAttach, SrCreate, SrCreated, SrDestroy, SrDetach, SrDone, SrFence, SrFenced, SrInfo,
    SrMaintain, SrMaintained, SrProbed, SrRecover, SrRecovered, SrScan, SrScanned, SrStat,
    SrUpdate,
};
use plugin_sdk::model::vdi::{
    VdiActivate, VdiAttach, VdiAttached, VdiCbt, VdiChanged, VdiChanges, VdiCheck, VdiChecked,
    VdiClone, VdiCreate, VdiDatapathDone, VdiDeactivate, VdiDestroy, VdiDestroyed, VdiDetach,
    VdiDone, VdiForest, VdiInfo, VdiIntroduce, VdiReclaim, VdiReclaimed, VdiResize, VdiRevert,
    VdiSnapshot, VdiSnapshotPrepare, VdiSnapshotPrepared, VdiStat, VdiTree, VdiUpdate, VdisDone,
};
use plugin_sdk::model::{Changed, SrUuid};
use plugin_sdk::{Cx, Driver, Manifest, Result};

pub use error::{from_io, from_vhd};
pub use fence::Fence;
pub use folder::{Folder, found};
pub use place::Place;
pub use space::warnings;
pub use writer::{claim_here, same_boot};

/// The longest chain of images, and where the number comes from.
pub const MAX_CHAIN: (u64, &str) = (30, "XenServer's tools: MAX_CHAIN");

/// The largest disk, and where the number comes from.
pub const MAX_VDI_SIZE: (u64, &str) =
    (vhd::MAX_SIZE, "VHD: 0xff000000 sectors, so that a full image stays below 2^32 sectors");

/// The manifest of such a driver: `name`, `title`, then any other field of
/// [`Manifest`](plugin_sdk::Manifest). Operations and features are those of [`FolderDriver`].
#[macro_export]
macro_rules! folder_manifest {
    (name: $name:expr, title: $title:expr $(, $field:ident: $value:expr)* $(,)?) => {
        plugin_sdk::manifest! {
            name: $name,
            title: $title,
            operations: [
                sr_probe, sr_create, sr_attach, sr_detach, sr_destroy, sr_scan, sr_recover,
                sr_maintain, sr_stat, sr_update, sr_fence, vdi_create, vdi_introduce, vdi_stat, vdi_update,
                vdi_resize, vdi_snapshot, vdi_snapshot_prepare, vdi_clone, vdi_reclaim, vdi_cbt,
                vdi_changed, vdi_revert, vdi_destroy, vdi_tree, vdi_check, vdi_attach, vdi_activate,
                vdi_deactivate, vdi_detach
            ],
            features: &[
                plugin_sdk::Feature::new(plugin_sdk::model::manifest::feature::VHD),
                plugin_sdk::Feature::new(plugin_sdk::model::manifest::feature::RAW),
                plugin_sdk::Feature::new(plugin_sdk::model::manifest::feature::THIN),
                plugin_sdk::Feature::new(plugin_sdk::model::manifest::feature::DATAPATH),
                plugin_sdk::Feature::new(plugin_sdk::model::manifest::feature::LIVE_RESIZE),
                plugin_sdk::Feature::new(plugin_sdk::model::manifest::feature::CHANGED_BLOCKS),
                plugin_sdk::Feature::new(plugin_sdk::model::manifest::feature::GROUP_SNAPSHOT),
                plugin_sdk::Feature::limit(
                    plugin_sdk::model::manifest::feature::MAX_VDI_SIZE,
                    $crate::MAX_VDI_SIZE.0,
                    $crate::MAX_VDI_SIZE.1,
                ),
                plugin_sdk::Feature::limit(
                    plugin_sdk::model::manifest::feature::MAX_CHAIN,
                    $crate::MAX_CHAIN.0,
                    $crate::MAX_CHAIN.1,
                ),
            ]
            $(, $field: $value)*
        }
    };
}

/// What an operation needs the folder for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The SR is being made: its folder is not there yet.
    Create,
    /// The SR becomes usable on this host.
    Attach,
    /// The SR is being removed, with its folder.
    Destroy,
    /// All else.
    Use,
}

/// Where the folder of an SR is, and how it is reached.
pub trait Site: Send + Sync + Sized + 'static {
    /// The device configuration.
    type Config: DeviceConfig;

    /// What the driver says of itself, made by [`folder_manifest!`].
    const MANIFEST: Manifest;

    /// Looks for what an incomplete configuration leaves open, and for SRs: [`found`].
    fn probe(config: RawConfig, cx: &Cx) -> impl Future<Output = Result<SrProbed>> + Send;

    /// The site of one SR. Nothing is reached yet.
    fn open(config: Self::Config, sr: SrUuid, cx: &Cx)
    -> impl Future<Output = Result<Self>> + Send;

    /// Makes the folder reachable as far as the purpose asks for, and does work that blocks on it.
    fn work<T: Send + 'static>(
        &self,
        cx: &Cx,
        purpose: Purpose,
        work: impl FnOnce(&Folder, &Cx) -> Result<T> + Send + 'static,
    ) -> impl Future<Output = Result<T>> + Send;

    /// Gives up on this host what [`Site::work`] has reached.
    fn let_go(&self, cx: &Cx) -> impl Future<Output = Result<Changed>> + Send {
        let _ = cx;
        std::future::ready(Ok(Changed::Already))
    }
}

/// The driver over a [`Site`].
#[derive(Debug)]
pub struct FolderDriver<S> {
    site: S,
}

impl<S: Site> FolderDriver<S> {
    async fn at<T: Send + 'static>(
        &self,
        cx: &Cx,
        purpose: Purpose,
        work: impl FnOnce(&Folder, &Cx) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.site.work(cx, purpose, work).await
    }
}

impl<S: Site> Driver for FolderDriver<S> {
    type Config = S::Config;

    const MANIFEST: Manifest = S::MANIFEST;

    async fn probe(config: RawConfig, cx: &Cx) -> Result<SrProbed> {
        S::probe(config, cx).await
    }

    async fn open(config: Self::Config, sr: SrUuid, cx: &Cx) -> Result<Self> {
        Ok(Self { site: S::open(config, sr, cx).await? })
    }

    async fn sr_create(&self, cx: &Cx, request: SrCreate) -> Result<SrCreated> {
        let changed =
            self.at(cx, Purpose::Create, move |folder, cx| folder.create(cx, &request)).await?;
        Ok(SrCreated { changed, device_config: cx.device_config().clone() })
    }

    async fn sr_attach(&self, cx: &Cx, _: SrAttach) -> Result<SrRecovered> {
        self.at(cx, Purpose::Attach, Folder::attach).await
    }

    async fn sr_detach(&self, cx: &Cx, _: SrDetach) -> Result<SrDone> {
        Ok(SrDone { changed: self.site.let_go(cx).await? })
    }

    async fn sr_destroy(&self, cx: &Cx, _: SrDestroy) -> Result<SrDone> {
        let changed = self.at(cx, Purpose::Destroy, Folder::destroy).await?;
        Ok(SrDone { changed })
    }

    async fn sr_scan(&self, cx: &Cx, _: SrScan) -> Result<SrScanned> {
        self.at(cx, Purpose::Use, |folder, _| vdis::scan(folder)).await
    }

    async fn sr_recover(&self, cx: &Cx, _: SrRecover) -> Result<SrRecovered> {
        self.at(cx, Purpose::Use, Folder::recover).await
    }

    async fn sr_maintain(&self, cx: &Cx, request: SrMaintain) -> Result<SrMaintained> {
        self.at(cx, Purpose::Use, move |folder, cx| maintain::maintain(folder, cx, &request)).await
    }

    async fn sr_stat(&self, cx: &Cx, _: SrStat) -> Result<SrInfo> {
        self.at(cx, Purpose::Use, |folder, _| folder.stat()).await
    }

    async fn sr_update(&self, cx: &Cx, request: SrUpdate) -> Result<SrDone> {
        let changed =
            self.at(cx, Purpose::Use, move |folder, cx| folder.update(cx, &request)).await?;
        Ok(SrDone { changed })
    }

    async fn sr_fence(&self, cx: &Cx, request: SrFence) -> Result<SrFenced> {
        self.at(cx, Purpose::Use, move |folder, cx| folder.fence(cx, &request)).await
    }

    async fn vdi_create(&self, cx: &Cx, request: VdiCreate) -> Result<VdiDone> {
        self.at(cx, Purpose::Use, move |folder, cx| vdis::create(folder, cx, &request)).await
    }

    async fn vdi_introduce(&self, cx: &Cx, request: VdiIntroduce) -> Result<VdiDone> {
        self.at(cx, Purpose::Use, move |folder, cx| vdis::introduce(folder, cx, &request)).await
    }

    async fn vdi_stat(&self, cx: &Cx, request: VdiStat) -> Result<VdiInfo> {
        self.at(cx, Purpose::Use, move |folder, _| vdis::stat(folder, &request)).await
    }

    async fn vdi_update(&self, cx: &Cx, request: VdiUpdate) -> Result<VdiDone> {
        self.at(cx, Purpose::Use, move |folder, cx| vdis::update(folder, cx, &request)).await
    }

    async fn vdi_resize(&self, cx: &Cx, request: VdiResize) -> Result<VdiDone> {
        self.at(cx, Purpose::Use, move |folder, cx| vdis::resize(folder, cx, &request)).await
    }

    async fn vdi_snapshot(&self, cx: &Cx, request: VdiSnapshot) -> Result<VdisDone> {
        self.at(cx, Purpose::Use, move |folder, cx| snapshot::snapshot(folder, cx, &request)).await
    }

    async fn vdi_snapshot_prepare(
        &self,
        cx: &Cx,
        request: VdiSnapshotPrepare,
    ) -> Result<VdiSnapshotPrepared> {
        self.at(cx, Purpose::Use, move |folder, cx| snapshot::prepare(folder, cx, &request)).await
    }

    async fn vdi_clone(&self, cx: &Cx, request: VdiClone) -> Result<VdiDone> {
        self.at(cx, Purpose::Use, move |folder, cx| vdis::clone(folder, cx, &request)).await
    }

    async fn vdi_revert(&self, cx: &Cx, request: VdiRevert) -> Result<VdiDone> {
        self.at(cx, Purpose::Use, move |folder, cx| vdis::revert(folder, cx, &request)).await
    }

    async fn vdi_reclaim(&self, cx: &Cx, request: VdiReclaim) -> Result<VdiReclaimed> {
        self.at(cx, Purpose::Use, move |folder, cx| maintain::reclaim(folder, cx, request.vdi))
            .await
    }

    async fn vdi_cbt(&self, cx: &Cx, request: VdiCbt) -> Result<VdiDone> {
        self.at(cx, Purpose::Use, move |folder, cx| changes::set(folder, cx, &request)).await
    }

    async fn vdi_changed(&self, cx: &Cx, request: VdiChanged) -> Result<VdiChanges> {
        self.at(cx, Purpose::Use, move |folder, cx| changes::changed(folder, cx, &request)).await
    }

    async fn vdi_destroy(&self, cx: &Cx, request: VdiDestroy) -> Result<VdiDestroyed> {
        self.at(cx, Purpose::Use, move |folder, cx| vdis::destroy(folder, cx, request.vdi)).await
    }

    async fn vdi_tree(&self, cx: &Cx, _: VdiTree) -> Result<VdiForest> {
        self.at(cx, Purpose::Use, |folder, _| vdis::forest(folder)).await
    }

    async fn vdi_check(&self, cx: &Cx, request: VdiCheck) -> Result<VdiChecked> {
        self.at(cx, Purpose::Use, move |folder, _| vdis::check(folder, request.vdi)).await
    }

    async fn vdi_attach(&self, cx: &Cx, request: VdiAttach) -> Result<VdiAttached> {
        self.at(cx, Purpose::Use, move |folder, cx| vdis::attach(folder, cx, &request)).await
    }

    // The images are files that are always there: attach and detach only claim the disk, so that no
    // maintenance rewrites what somebody has open; activate and deactivate claim the writing.

    async fn vdi_activate(&self, cx: &Cx, request: VdiActivate) -> Result<VdiDatapathDone> {
        self.at(cx, Purpose::Use, move |folder, cx| writer::activate(folder, cx, &request)).await
    }

    async fn vdi_deactivate(&self, cx: &Cx, request: VdiDeactivate) -> Result<VdiDatapathDone> {
        self.at(cx, Purpose::Use, move |folder, cx| writer::deactivate(folder, cx, request.vdi))
            .await?;
        Ok(VdiDatapathDone::default())
    }

    async fn vdi_detach(&self, cx: &Cx, request: VdiDetach) -> Result<VdiDatapathDone> {
        self.at(cx, Purpose::Use, move |folder, cx| maintain::release(folder, cx, request.vdi))
            .await?;
        Ok(VdiDatapathDone::default())
    }
}
