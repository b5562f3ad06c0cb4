//! The disks of an SR whose images are volumes.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use host_kit::lvm::{Gate, Group, Lvm, Repository};
use plugin_sdk::model::sr::{SrMaintain, SrMaintained, SrRecovered};
use plugin_sdk::model::uuid::Uuid;
use plugin_sdk::model::vdi::{
    VdiChecked, VdiClone, VdiDone, VdiInfo, VdiRevert, VdiSnapshot, VdisDone,
};
use plugin_sdk::model::{AttachMode, Kind, SrUuid, VdiUuid};
use plugin_sdk::{Cx, Error, Result, step};
use vhd::store::{At, Store as _};
use vhd::tree::{self, Guard, Tree};
use vhd_folder::{Place, from_vhd};

use crate::rights::Rights;
use crate::store::LvStore;
use crate::volumes::Commands;

/// Locks between the processes of this host; gone at a reboot, as are the processes.
const LOCKS: &str = "/run/lock/sm-lvm";
/// XenServer's tag of a volume that says what it is in the middle of.
const JOURNAL: &str = "journaler";

/// The disks of an SR in one call of a driver, for a thread that may block. What they have in common
/// with disks in a folder is done by [`Place`]'s methods.
pub struct Disks {
    sr: SrUuid,
    store: LvStore,
}

/// The right to change an SR, which one process of one host has, until it is dropped.
pub struct Right {
    _guard: Guard,
    rights: Arc<Rights>,
}

impl fmt::Debug for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Right")
    }
}

impl Gate for Right {
    fn check(&self) -> Result<()> {
        self.rights.check()
    }
}

impl Place for Disks {
    fn sr(&self) -> SrUuid {
        self.sr
    }

    fn tree(&self) -> Result<Tree> {
        Ok(Tree::on(Box::new(self.store.clone())))
    }

    fn prepare(&self, tree: &Tree, guard: &Guard, vdi: VdiUuid, write: bool) -> Result<()> {
        self.drop_left(tree, vdi)?;
        // Nobody makes it longer while a guest writes.
        if write && tree.fit(guard, vdi.0, true).map_err(from_vhd)? {
            step!("vdi_attach.inflated");
        }
        Ok(())
    }

    fn merges_leaves(&self) -> bool {
        // Its parent would need all of its room beside the disk's own.
        false
    }
}

impl Disks {
    /// Those of a group.
    pub fn new(sr: SrUuid, lvm: Lvm, group: &str, cx: &Cx) -> Self {
        let volumes = Commands { lvm, cx: cx.clone(), group: group.to_owned() };
        let host = &cx.host().0;
        let me = vhd_folder::claim_here(cx).unwrap_or_else(|_| host.clone());
        Self::on(sr, LvStore::known_as(Box::new(volumes), group, Path::new(LOCKS), host, &me))
    }

    /// Those of a store.
    pub fn on(sr: SrUuid, store: LvStore) -> Self {
        Self { sr, store }
    }

    pub(crate) fn store(&self) -> &LvStore {
        &self.store
    }

    /// The operations that disks in a folder have as well.
    pub fn place(&self) -> &dyn Place {
        self
    }

    /// The group as it was when it was last looked at.
    pub fn group(&self) -> Result<Arc<Group>> {
        self.store.group().map_err(from_vhd)
    }

    /// The right to change the SR, for changes of what lies beside the images: of raw disks. With a
    /// disk, error kind `in_use` if another host has it open.
    pub fn right(&self, cx: &Cx, vdi: Option<VdiUuid>) -> Result<Right> {
        let (tree, guard) = self.place().locked(cx)?;
        if let Some(vdi) = vdi {
            self.place().refuse_elsewhere(cx, &tree, &guard, vdi)?;
        }
        Ok(Right { _guard: guard, rights: self.store.rights() })
    }

    /// Claims a raw disk for this host, as images are claimed: for writing one host at a time. Error
    /// kind `not_found` if there is none.
    pub fn claim_raw(&self, cx: &Cx, vdi: VdiUuid, mode: AttachMode) -> Result<()> {
        let disks = Repository::disks_of(&*self.group()?);
        let Some(disk) = disks.iter().find(|disk| disk.uuid == vdi) else {
            return Err(Error::not_found(format!("there is no VDI {vdi}")).legacy(144));
        };
        if mode == AttachMode::ReadOnly {
            return Ok(());
        }
        self.place().claim_writer(cx, vdi, disk.sharable)
    }

    /// Makes the group a store of images, if it is not. Error kind `in_use` if XenServer is in the
    /// middle of something.
    pub fn init(&self) -> Result<bool> {
        let group = self.group()?;
        let journal = group.volumes.iter().find(|v| v.tags.iter().any(|tag| tag == JOURNAL));
        if let Some(journal) = journal {
            let sr = self.sr;
            return Err(Error::new(
                Kind::InUse,
                format!("XenServer has not finished what it does with SR {sr}: {}", journal.name),
            )
            .legacy(16)
            .hint("attach it to XenServer, which completes or undoes it, and detach it there"));
        }
        self.store.init().map_err(from_vhd)
    }

    /// Makes the SR ready for use on this host, and recovers.
    pub fn attach(&self, cx: &Cx) -> Result<SrRecovered> {
        self.init()?;
        self.place().release_stale(cx, &self.tree()?)?;
        self.recover(cx)
    }

    /// Finishes or undoes what a crash left.
    pub fn recover(&self, cx: &Cx) -> Result<SrRecovered> {
        if self.store.is_cut().map_err(from_vhd)? {
            let (_tree, _guard) = self.place().locked(cx)?;
            self.store.heal().map_err(from_vhd)?;
        }
        let mut recovered = self.place().recover(cx)?;
        // A snapshot or a merge that was cut behind its last step.
        let settled = self.settle_loose(cx)?.into_iter();
        recovered.completed.extend(settled.map(|base| format!("base copy {base} is settled")));
        Ok(recovered)
    }

    /// Settles the base copies that can be written, but for those that are being merged.
    fn settle_loose(&self, cx: &Cx) -> Result<Vec<Uuid>> {
        let group = self.group()?;
        let tree = self.tree()?;
        let nodes = tree.list().map_err(from_vhd)?.nodes;
        let bases = nodes.iter().filter(|node| node.kind == tree::Kind::Base && node.is_ok());
        let loose: Vec<_> = bases
            .filter(|base| {
                let name = self
                    .store
                    .link_name(&At::new(vhd::store::Area::Images, format!("{}.vhd", base.uuid)));
                group.volume(&name).is_some_and(|volume| volume.writable)
            })
            .map(|base| base.uuid)
            .collect();
        let mut settled = Vec::new();
        if !loose.is_empty() {
            let guard = tree.lock(cx.deadline()).map_err(from_vhd)?;
            for base in loose {
                // What was seen before may be another one's merge by now.
                let there = tree.get(base).is_ok_and(|node| node.kind == tree::Kind::Base);
                if there && !tree.is_kept(base).map_err(from_vhd)? {
                    self.settle(&tree, &guard, base)?;
                    settled.push(base);
                }
            }
        }
        Ok(settled)
    }

    /// Takes devices of a disk's images away that nobody of this host has claimed: what was killed has
    /// left them, and other hosts may have changed where the volumes lie since.
    fn drop_left(&self, tree: &Tree, vdi: VdiUuid) -> Result<()> {
        let group = self.group()?;
        let active = |uuid: &Uuid| group.volume(&format!("VHD-{uuid}")).is_some_and(|v| v.active);
        if !group.volumes.iter().any(|volume| volume.active && volume.name.starts_with("VHD-")) {
            return Ok(());
        }
        let nodes = tree.list().map_err(from_vhd)?.nodes;
        let parents: HashMap<Uuid, Option<Uuid>> =
            nodes.iter().map(|node| (node.uuid, node.parent)).collect();
        let chain = |leaf: Uuid| {
            std::iter::successors(Some(leaf), |uuid| parents.get(uuid).copied().flatten())
                .take(nodes.len() + 1)
        };
        let mut used = HashSet::new();
        for disk in tree.open_disks().map_err(from_vhd)? {
            let claims = tree.claims(disk).map_err(from_vhd)?;
            if claims.iter().any(|claim| self.store.is_near(claim)) {
                used.extend(chain(disk));
            }
        }
        if chain(vdi.0).any(|uuid| active(&uuid) && !used.contains(&uuid)) {
            let used: Vec<String> = used.iter().map(|uuid| format!("VHD-{uuid}")).collect();
            self.store.deactivate_but(&used).map_err(from_vhd)?;
            step!("vdi_attach.left_devices_gone");
        }
        Ok(())
    }

    /// What a base copy is that nobody writes any more: as small as can be, and read-only. In this
    /// order, because the second says that it is done.
    fn settle(&self, tree: &Tree, guard: &Guard, base: Uuid) -> Result<()> {
        tree.fit(guard, base, false).map_err(from_vhd)?;
        step!("vdi_snapshot.base_deflated");
        self.store.freeze(base).map_err(from_vhd)?;
        Ok(())
    }

    /// Settles what a disk is based on.
    fn settle_below(&self, cx: &Cx, vdi: VdiUuid) -> Result<()> {
        // What was asked for is done, and the next recovery does this as well.
        let cx = &cx.shielded();
        let (tree, guard) = self.place().locked(cx)?;
        let Some(base) = tree.get(vdi.0).map_err(from_vhd)?.parent else { return Ok(()) };
        let name = format!("VHD-{base}");
        if self.group()?.volume(&name).is_some_and(|volume| volume.writable) {
            self.settle(&tree, &guard, base)?;
        }
        Ok(())
    }

    /// Lists the disks.
    pub fn scan(&self) -> Result<Vec<VdiInfo>> {
        Ok(self.place().scan()?.vdis)
    }

    /// Takes snapshots of one point in time.
    pub fn vdi_snapshot(&self, cx: &Cx, request: &VdiSnapshot) -> Result<VdisDone> {
        let done = self.place().vdi_snapshot(cx, request)?;
        for spec in &request.snapshots {
            self.settled(cx, spec.uuid);
        }
        Ok(done)
    }

    /// Makes a disk that begins with the content of another one.
    pub fn vdi_clone(&self, cx: &Cx, request: &VdiClone) -> Result<VdiDone> {
        let done = self.place().vdi_clone(cx, request)?;
        self.settled(cx, request.uuid);
        Ok(done)
    }

    /// Gives a disk the content of its snapshot.
    pub fn vdi_revert(&self, cx: &Cx, request: &VdiRevert) -> Result<VdiDone> {
        let done = self.place().vdi_revert(cx, request)?;
        self.settled(cx, request.vdi);
        Ok(done)
    }

    fn settled(&self, cx: &Cx, vdi: VdiUuid) {
        if let Err(error) = self.settle_below(cx, vdi) {
            plugin_sdk::tracing::warn!(%vdi, %error, "its base copy is settled by the next scan");
        }
    }

    /// What is wrong with a disk.
    pub fn vdi_check(&self, cx: &Cx, vdi: VdiUuid) -> Result<VdiChecked> {
        let found = self.place().vdi_check(vdi);
        self.deactivate_unused(&cx.shielded())?;
        found
    }

    /// Lets go of a disk: its claims, and the devices that no other disk of this host needs.
    pub fn vdi_detach(&self, cx: &Cx, vdi: VdiUuid) -> Result<()> {
        self.place().vdi_deactivate(cx, vdi)?;
        self.place().vdi_release(cx, vdi)?;
        self.deactivate_unused(cx)?;
        let thin = !self.store.reserves();
        if !thin {
            return Ok(());
        }
        let (tree, guard) = self.place().locked(cx)?;
        let still = !tree.claims(vdi.0).map_err(from_vhd)?.is_empty();
        match tree.get(vdi.0) {
            Ok(node) if !still && node.is_ok() => {
                tree.fit(&guard, vdi.0, false).map_err(from_vhd)?;
                step!("vdi_detach.deflated");
                Ok(())
            }
            Ok(_) | Err(vhd::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(from_vhd(error)),
        }
    }

    fn deactivate_unused(&self, cx: &Cx) -> Result<()> {
        let (tree, _guard) = self.place().locked(cx)?;
        let mut used = Vec::new();
        for vdi in self.place().open_here(cx, &tree)? {
            match tree.chain(vdi.0) {
                Ok(paths) => used.extend(
                    paths.iter().filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())),
                ),
                // What cannot be followed any more may be all of them.
                Err(error) if !error.is_not_found() => {
                    plugin_sdk::tracing::warn!(%vdi, %error, "the devices of the SR stay");
                    return Ok(());
                }
                Err(_) => {}
            }
        }
        self.store.deactivate_but(&used).map_err(from_vhd)?;
        Ok(())
    }

    /// Merges what can be merged.
    pub fn maintain(&self, cx: &Cx, request: &SrMaintain) -> Result<SrMaintained> {
        let done = self.place().maintain(cx, request);
        if !request.dry_run {
            // Whatever became of it: what was written is made small again, and has no device that no
            // guest needs.
            let cx = &cx.shielded();
            let settled = self.settle_loose(cx).map(drop).and(self.deactivate_unused(cx));
            if let Err(error) = settled {
                plugin_sdk::tracing::warn!(%error, "what was merged is settled by the next scan");
            }
        }
        done
    }

    /// What is close to its limit, and the disks.
    pub fn look(&self) -> Result<(Vec<String>, Vec<VdiInfo>)> {
        let listing = self.tree()?.list().map_err(from_vhd)?;
        Ok((vhd_folder::warnings(&listing.nodes), self.scan()?))
    }

    /// Empties the group for its removal. Error kind `in_use` with SMAPI's 39 if it holds a disk.
    pub fn destroy(&self, cx: &Cx) -> Result<()> {
        let others = |group: &Group| {
            let foreign = group.volumes.iter().filter(|volume| !LvStore::is_own(&volume.name));
            foreign.map(|volume| volume.name.clone()).collect::<Vec<_>>()
        };
        let mut found = others(&*self.group()?);
        if !found.is_empty() {
            // What a crash left may be all of it.
            self.init()?;
            self.place().recover(cx)?;
            found = others(&*self.group()?);
        }
        if let Some(first) = found.first() {
            let (sr, count) = (self.sr, found.len());
            return Err(Error::new(
                Kind::InUse,
                format!("SR {sr} is not empty: it holds {count} volumes, among them {first}"),
            )
            .legacy(39)
            .hint("destroy its VDIs first; a volume that is no VDI is removed by lvremove"));
        }
        self.store.remove().map_err(from_vhd)
    }
}
