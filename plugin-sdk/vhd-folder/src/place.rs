//! Where the images of an SR are: a folder, or volumes. What is done with them is the same.

use std::collections::BTreeSet;

use plugin_sdk::model::sr::{SrMaintain, SrMaintained, SrRecovered, SrScanned};
use plugin_sdk::model::vdi::{
    VdiActivate, VdiAttach, VdiAttached, VdiChecked, VdiClone, VdiCreate, VdiDatapathDone,
    VdiDestroyed, VdiDone, VdiForest, VdiInfo, VdiIntroduce, VdiResize, VdiRevert, VdiSnapshot,
    VdiStat, VdiUpdate, VdisDone,
};
use plugin_sdk::model::{SrUuid, VdiUuid};
use plugin_sdk::{Cx, Result};
use vhd::tree::{Guard, Tree};

use crate::error::from_vhd;
use crate::{maintain, recover, snapshot, vdis, writer};

/// Where the images of an SR are, reached in one call of a driver.
pub trait Place: Send + Sync {
    /// The SR.
    fn sr(&self) -> SrUuid;

    /// The images. Error kind `not_found` with SMAPI's 47 if the SR is not there.
    fn tree(&self) -> Result<Tree>;

    /// The images, and the right to change them, waiting for it as long as the call may take.
    fn locked(&self, cx: &Cx) -> Result<(Tree, Guard)> {
        let tree = self.tree()?;
        let guard = tree.lock(cx.deadline()).map_err(from_vhd)?;
        cx.check()?;
        Ok((tree, guard))
    }

    /// As [`Place::tree`], also for a host that is shut out: to give back what it has.
    fn tree_to_leave(&self) -> Result<Tree> {
        self.tree()
    }

    /// A disk that was taken from this host, when it was shut out, is not in use here any more.
    fn give_back(&self, _cx: &Cx, _vdi: VdiUuid) -> Result<()> {
        Ok(())
    }

    /// Waits until a host that was shut out has let go of a disk that it wrote. Its epoch, 0 if there
    /// is no such host.
    fn wait_for_the_shut_out(&self, _cx: &Cx, _tree: &Tree, _vdi: VdiUuid) -> Result<u64> {
        Ok(0)
    }

    /// Readies a disk for whoever opens it next, with the lock held.
    fn prepare(&self, _tree: &Tree, _guard: &Guard, _vdi: VdiUuid, _write: bool) -> Result<()> {
        Ok(())
    }

    /// Whether the own image of a disk that is open can be merged, as base copies below it can.
    fn merges_leaves(&self) -> bool {
        true
    }
}

/// The operations, wherever the images are.
impl dyn Place + '_ {
    /// Lists the disks.
    pub fn scan(&self) -> Result<SrScanned> {
        vdis::scan(self)
    }

    /// Describes a disk.
    pub fn vdi_stat(&self, request: &VdiStat) -> Result<VdiInfo> {
        vdis::stat(self, request)
    }

    /// Makes a disk.
    pub fn vdi_create(&self, cx: &Cx, request: &VdiCreate) -> Result<VdiDone> {
        vdis::create(self, cx, request)
    }

    /// Takes in an image that somebody else made.
    pub fn vdi_introduce(&self, cx: &Cx, request: &VdiIntroduce) -> Result<VdiDone> {
        vdis::introduce(self, cx, request)
    }

    /// Changes what is said about a disk.
    pub fn vdi_update(&self, cx: &Cx, request: &VdiUpdate) -> Result<VdiDone> {
        vdis::update(self, cx, request)
    }

    /// Lets a disk grow.
    pub fn vdi_resize(&self, cx: &Cx, request: &VdiResize) -> Result<VdiDone> {
        vdis::resize(self, cx, request)
    }

    /// Takes snapshots of one point in time.
    pub fn vdi_snapshot(&self, cx: &Cx, request: &VdiSnapshot) -> Result<VdisDone> {
        snapshot::snapshot(self, cx, request)
    }

    /// Makes a disk that begins with the content of another one.
    pub fn vdi_clone(&self, cx: &Cx, request: &VdiClone) -> Result<VdiDone> {
        vdis::clone(self, cx, request)
    }

    /// Gives a disk the content of its snapshot.
    pub fn vdi_revert(&self, cx: &Cx, request: &VdiRevert) -> Result<VdiDone> {
        vdis::revert(self, cx, request)
    }

    /// Removes a disk.
    pub fn vdi_destroy(&self, cx: &Cx, vdi: VdiUuid) -> Result<VdiDestroyed> {
        vdis::destroy(self, cx, vdi)
    }

    /// Who is based on whom.
    pub fn vdi_tree(&self) -> Result<VdiForest> {
        vdis::forest(self)
    }

    /// What is wrong with a disk.
    pub fn vdi_check(&self, vdi: VdiUuid) -> Result<VdiChecked> {
        vdis::check(self, vdi)
    }

    /// Claims a disk for this host, and says how it is reached.
    pub fn vdi_attach(&self, cx: &Cx, request: &VdiAttach) -> Result<VdiAttached> {
        vdis::attach(self, cx, request)
    }

    /// Allows I/O. For writing the disk is claimed: one host at a time.
    pub fn vdi_activate(&self, cx: &Cx, request: &VdiActivate) -> Result<VdiDatapathDone> {
        writer::activate(self, cx, request)
    }

    /// Claims a disk for writing that lies beside the images, as `vdi_activate` does.
    pub fn claim_writer(&self, cx: &Cx, vdi: VdiUuid, sharable: bool) -> Result<()> {
        writer::claim_writer(self, cx, vdi, sharable)
    }

    /// Error kind `in_use` for a disk that another host has open, with the lock held.
    pub fn refuse_elsewhere(&self, cx: &Cx, tree: &Tree, _: &Guard, vdi: VdiUuid) -> Result<()> {
        writer::refuse_elsewhere(tree, cx, vdi)
    }

    /// The hosts that have disks open.
    pub fn hosts(&self, tree: &Tree) -> Result<BTreeSet<String>> {
        writer::hosts(tree)
    }

    /// Ends what another host has open. The disks.
    pub fn end_claims(&self, tree: &Tree, guard: &Guard, host: &str) -> Result<Vec<VdiUuid>> {
        writer::end_claims(tree, guard, host)
    }

    /// Ends the writing.
    pub fn vdi_deactivate(&self, cx: &Cx, vdi: VdiUuid) -> Result<()> {
        writer::deactivate(self, cx, vdi)
    }

    /// Ends this host's claims on a disk.
    pub fn vdi_release(&self, cx: &Cx, vdi: VdiUuid) -> Result<()> {
        maintain::release(self, cx, vdi)
    }

    /// The disks that this host has open.
    pub fn open_here(&self, cx: &Cx, tree: &Tree) -> Result<Vec<VdiUuid>> {
        maintain::open_here(tree, cx)
    }

    /// Ends the claims of this host that are of an earlier boot.
    pub fn release_stale(&self, cx: &Cx, tree: &Tree) -> Result<()> {
        maintain::release_stale(tree, cx)
    }

    /// Finishes or undoes what a crash left.
    pub fn recover(&self, cx: &Cx) -> Result<SrRecovered> {
        recover::recover(&self.tree()?, cx)
    }

    /// Merges what can be merged.
    pub fn maintain(&self, cx: &Cx, request: &SrMaintain) -> Result<SrMaintained> {
        maintain::maintain(self, cx, request)
    }
}
