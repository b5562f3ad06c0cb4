//! An SR that is a volume group, as drivers see it.

use std::fmt;

use plugin_sdk::config::ConfigValue;
use plugin_sdk::model::manifest::FieldKind;
use plugin_sdk::model::sr::{FoundSr, SrCreate, SrInfo, SrRecovered, SrScanned, SrUpdate};
use plugin_sdk::model::vdi::{
    VdiActivate, VdiAttach, VdiAttached, VdiChecked, VdiClone, VdiCreate, VdiDestroyed, VdiDone,
    VdiForest, VdiInfo, VdiIntroduce, VdiResize, VdiRevert, VdiSnapshot, VdiSnapshotPrepare,
    VdiSnapshotPrepared, VdiUpdate, VdisDone,
};
use plugin_sdk::model::{Bytes, Changed, SrUuid, VdiUuid};
use plugin_sdk::{Cx, Result};

use crate::lvm::command::Lvm;
use crate::lvm::metadata::{SrDocument, vdis as vdis_of};
use crate::lvm::names::Names;
use crate::lvm::report::Group;
use crate::lvm::sr::{self, Sr};
use crate::lvm::{attach, group, vdis};

/// How VDIs take their space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// When they are written, from a pool.
    Thin,
    /// All at once.
    Thick,
}

impl ConfigValue for Allocation {
    const KIND: FieldKind = FieldKind::Text;

    fn parse(text: &str) -> std::result::Result<Self, String> {
        match text {
            "thin" => Ok(Self::Thin),
            "thick" => Ok(Self::Thick),
            _ => Err("thin or thick".to_owned()),
        }
    }
}

impl fmt::Display for Allocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Thin => "thin",
            Self::Thick => "thick",
        })
    }
}

/// What lies on devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// An SR.
    Sr {
        /// Which one.
        sr: FoundSr,
        /// Its size.
        size: Bytes,
        /// How its VDIs take their space.
        allocation: Allocation,
        /// LVM's names of its devices.
        devices: Vec<String>,
        /// How many more it has that were not looked at.
        missing: u64,
    },
    /// Somebody's data: a sentence that names device and owner.
    Occupied(String),
    /// Nothing that anybody would miss.
    Nothing,
}

/// One SR. Holds nothing open and no state: each operation is one report and as few changes as LVM
/// allows.
#[derive(Clone, Debug)]
pub struct Repository {
    sr: Sr,
}

impl Repository {
    /// The SR of that UUID, on the devices of `lvm`. `force` is whether [`create`](Self::create)
    /// erases what is there.
    pub fn new(uuid: SrUuid, names: Names, lvm: Lvm, allocation: Allocation, force: bool) -> Self {
        Self { sr: Sr { uuid, names, lvm, allocation, force } }
    }

    /// What is on the devices; one item at least.
    pub async fn probe(lvm: &Lvm, names: Names, cx: &Cx) -> Result<Vec<Found>> {
        sr::probe(lvm, names, cx).await
    }

    /// The name of its group.
    pub fn group_name(&self) -> String {
        self.sr.name()
    }

    /// Makes the group, and what goes with it. Error kind `exists` with SMAPI's 42 if somebody's
    /// data is on a device.
    pub async fn create(&self, cx: &Cx, request: &SrCreate) -> Result<Changed> {
        self.sr.create(cx, request).await
    }

    /// How the VDIs of a group take their space, by its tags.
    pub fn allocation_of(group: &Group) -> Allocation {
        match SrDocument::of(group) {
            Ok(Some(document)) if !document.thick => Allocation::Thin,
            _ => Allocation::Thick,
        }
    }

    /// The VDIs of a group that was looked at, each a volume of its own.
    pub fn disks_of(group: &Group) -> Vec<VdiInfo> {
        vdis_of(group).iter().map(|vdi| vdi.info(group)).collect()
    }

    /// Space and health of a group that was looked at.
    pub fn stat_of(&self, group: &Group) -> Result<SrInfo> {
        self.sr.stat_of(group)
    }

    /// Makes it ready for use, and recovers.
    pub async fn attach(&self, cx: &Cx) -> Result<SrRecovered> {
        self.sr.attach(cx).await
    }

    /// Deactivates all of it. Error kind `in_use` with SMAPI's 16.
    pub async fn detach(&self, cx: &Cx) -> Result<Changed> {
        self.sr.detach(cx).await
    }

    /// Removes it. Error kind `in_use` with SMAPI's 39 if it holds any volume.
    pub async fn destroy(&self, cx: &Cx) -> Result<Changed> {
        self.sr.destroy(cx).await
    }

    /// Names of its volumes that have a device on this host, by device-mapper's own word: also if
    /// the disks below do not answer.
    pub fn active_volumes(&self) -> Vec<String> {
        let prefix = format!("{}-", self.sr.name().replace('-', "--"));
        let of = |mapped: crate::block::Mapped| {
            let volume = mapped.name.strip_prefix(&prefix)?.replace("--", "-");
            mapped.uuid.starts_with("LVM-").then_some(volume)
        };
        crate::block::mapped().into_iter().filter_map(of).collect()
    }

    /// Lists the VDIs.
    pub async fn scan(&self, cx: &Cx) -> Result<SrScanned> {
        vdis::scan(&self.sr, cx).await
    }

    /// Whether [`Repository::recover`] would change anything of a group without a pool.
    pub fn is_to_recover(&self, group: &Group) -> bool {
        sr::is_to_recover(self.sr.names, group)
    }

    /// Finishes or undoes what a crash left, and takes what the devices have grown by.
    pub async fn recover(&self, cx: &Cx) -> Result<SrRecovered> {
        self.sr.recover(cx).await
    }

    /// Space and health.
    pub async fn stat(&self, cx: &Cx) -> Result<SrInfo> {
        self.sr.stat(cx).await
    }

    /// Changes name and description.
    pub async fn update(&self, cx: &Cx, request: &SrUpdate) -> Result<Changed> {
        self.sr.update(cx, request).await
    }

    /// Makes a VDI.
    pub async fn vdi_create(&self, cx: &Cx, request: &VdiCreate) -> Result<VdiDone> {
        vdis::create(&self.sr, cx, request).await
    }

    /// Takes in a volume that somebody else made under a VDI's name.
    pub async fn vdi_introduce(&self, cx: &Cx, request: &VdiIntroduce) -> Result<VdiDone> {
        vdis::introduce(&self.sr, cx, request).await
    }

    /// Describes a VDI.
    pub async fn vdi_stat(&self, cx: &Cx, vdi: VdiUuid) -> Result<VdiInfo> {
        vdis::stat(&self.sr, cx, vdi).await
    }

    /// Changes what is known about a VDI.
    pub async fn vdi_update(&self, cx: &Cx, request: &VdiUpdate) -> Result<VdiDone> {
        vdis::update(&self.sr, cx, request).await
    }

    /// Lets a VDI grow, also one in use.
    pub async fn vdi_resize(&self, cx: &Cx, request: &VdiResize) -> Result<VdiDone> {
        vdis::resize(&self.sr, cx, request).await
    }

    /// Makes ahead what a snapshot of several VDIs needs.
    pub async fn vdi_snapshot_prepare(
        &self,
        cx: &Cx,
        request: &VdiSnapshotPrepare,
    ) -> Result<VdiSnapshotPrepared> {
        group::prepare(&self.sr, cx, request).await
    }

    /// Takes a snapshot, or several at one instant. Error kind `unsupported` for thick volumes.
    pub async fn vdi_snapshot(&self, cx: &Cx, request: &VdiSnapshot) -> Result<VdisDone> {
        vdis::snapshot(&self.sr, cx, request).await
    }

    /// Makes a VDI that shares all blocks. Error kind `unsupported` for thick volumes.
    pub async fn vdi_clone(&self, cx: &Cx, request: &VdiClone) -> Result<VdiDone> {
        vdis::clone(&self.sr, cx, request).await
    }

    /// Gives a VDI the content of its snapshot.
    pub async fn vdi_revert(&self, cx: &Cx, request: &VdiRevert) -> Result<VdiDone> {
        vdis::revert(&self.sr, cx, request).await
    }

    /// Removes a VDI.
    pub async fn vdi_destroy(&self, cx: &Cx, vdi: VdiUuid) -> Result<VdiDestroyed> {
        vdis::destroy(&self.sr, cx, vdi).await
    }

    /// Who shares blocks with whom.
    pub async fn vdi_tree(&self, cx: &Cx) -> Result<VdiForest> {
        vdis::forest(&self.sr, cx).await
    }

    /// What is wrong with a VDI.
    pub async fn vdi_check(&self, cx: &Cx, vdi: VdiUuid) -> Result<VdiChecked> {
        vdis::check(&self.sr, cx, vdi).await
    }

    /// Says where the device will be.
    pub async fn vdi_attach(&self, cx: &Cx, request: &VdiAttach) -> Result<VdiAttached> {
        attach::attach(&self.sr, cx, request).await
    }

    /// Makes the device.
    pub async fn vdi_activate(&self, cx: &Cx, request: &VdiActivate) -> Result<()> {
        attach::activate(&self.sr, cx, request).await
    }

    /// Takes the device away, with all that was written on the storage. Nothing to do costs no
    /// command.
    pub async fn vdi_deactivate(&self, cx: &Cx, vdi: VdiUuid) -> Result<()> {
        attach::deactivate(&self.sr, cx, vdi).await
    }
}
