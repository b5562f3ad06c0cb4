//! Which blocks change: the logs beside the images (`<vdi>.cbtlog`), and what they tell.
//!
//! The logs are changed under the folder's lock, and those of a disk that is written only while its
//! data path is paused: then it has closed them. It is always told where the log of its disk would
//! be, and looks whether there is one each time it goes on; so none can be overlooked, whoever dies
//! when.

use std::cell::Cell;

use plugin_sdk::model::host::DatapathChanges;
use plugin_sdk::model::uuid::Uuid;
use plugin_sdk::model::vdi::{VdiCbt, VdiChanged, VdiChanges, VdiDone, VdiInfo};
use plugin_sdk::model::{Bytes, VdiUuid};
use plugin_sdk::{Cx, Error, Result, Utf8PathBuf, step};
use vhd::change::log::name_of;
use vhd::change::{Difference, Logs, Map};
use vhd::tree::{self, Guard, Node, Outcome, Tree, Writer};

use crate::error::from_vhd;
use crate::metadata::Metadata;
use crate::place::Place;
use crate::vdis::{disk, done, incomplete, usable};
use crate::writer::{self, Told};

fn logs(tree: &Tree) -> Logs<'_> {
    Logs::of(tree.store())
}

/// Where the log of a disk is, if it has one.
pub(crate) fn place(tree: &Tree, vdi: VdiUuid) -> Option<Utf8PathBuf> {
    Utf8PathBuf::from_path_buf(tree.store().path_of(&name_of(vdi.0))).ok()
}

/// Says of VDIs whether they have a log.
pub(crate) fn mark(tree: &Tree, vdis: &mut [VdiInfo]) -> Result<()> {
    for vdi in vdis {
        vdi.cbt_enabled = logs(tree).is_enabled(vdi.uuid.0).map_err(from_vhd)?;
    }
    Ok(())
}

/// Begins, or ends, to track the changes of a disk.
pub(crate) fn set(place: &dyn Place, cx: &Cx, request: &VdiCbt) -> Result<VdiDone> {
    let VdiCbt { vdi, enabled } = *request;
    let (tree, guard) = place.locked(cx)?;
    tree.recover(&guard).map_err(from_vhd)?;
    let node = usable(&tree, vdi)?;
    refuse_untrackable(&node, enabled)?;
    let logs = logs(&tree);
    if logs.is_enabled(vdi.0).map_err(from_vhd)? == enabled {
        return done(&tree, vdi, Outcome::Already);
    }
    let told = Told::of(&tree, &guard, cx, vdi)?;
    told.as_ref().map_or(Ok(()), Writer::stop).map_err(from_vhd)?;
    step!("vdi_cbt.paused");
    if enabled {
        logs.enable(vdi.0, node.virtual_size).map_err(|error| {
            logs.unstage(vdi.0);
            from_vhd(error)
        })?;
    } else {
        logs.disable(vdi.0).map_err(from_vhd)?;
    }
    step!("vdi_cbt.switched");
    if let Some(Err(error)) = told.as_ref().map(Told::refresh) {
        if enabled {
            // Without the lock's end it does not go on, and then it finds no log.
            logs.disable(vdi.0).map_err(from_vhd)?;
            return Err(error);
        }
        plugin_sdk::tracing::warn!(%vdi, %error, "the writer was not told to go on");
    }
    done(&tree, vdi, Outcome::Modified)
}

/// Refuses a disk that is written by whom we cannot see, or never.
fn refuse_untrackable(node: &Node, enabled: bool) -> Result<()> {
    const VDI_TYPE: u16 = 66;
    let (vdi, metadata) = (VdiUuid::from(node.uuid), Metadata::of(node)?);
    let refused = |why: &str, hint: &str| {
        Err(Error::unsupported(format!("the changes of VDI {vdi} cannot be tracked: {why}"))
            .legacy(VDI_TYPE)
            .hint(hint.to_owned()))
    };
    if metadata.is_a_snapshot {
        return refused("it is a snapshot", "its log comes from its disk, and goes with it");
    }
    if !enabled {
        return Ok(());
    }
    if metadata.incomplete {
        return Err(incomplete(vdi));
    }
    if node.format == tree::Format::Raw {
        let why = "it is raw, and its users write the file themselves";
        return refused(why, "smctl vdi copy --format vhd makes a disk whose changes can be");
    }
    if metadata.sharable {
        return refused(
            "it is sharable, so that several hosts may write it",
            "make one that is not",
        );
    }
    Ok(())
}

/// What changed between two points of one disk.
pub(crate) fn changed(place: &dyn Place, cx: &Cx, request: &VdiChanged) -> Result<VdiChanges> {
    let tree = place.tree()?;
    disk(&tree, request.from)?;
    let size = usable(&tree, request.to)?.virtual_size;
    let look = |now: Option<&Map>| {
        let now = now.map(|map| (request.to.0, map));
        logs(&tree).diff(request.from.0, request.to.0, size, now).map_err(from_vhd)
    };
    let mut found = look(None)?;
    if matches!(found, Difference::Everything { .. }) {
        // Somebody may have changed the logs while they were read. A folder that cannot be locked,
        // since it is mounted read-only, is changed by nobody.
        if let Ok(guard) = tree.lock(cx.deadline()) {
            let now = by_now(&tree, &guard, cx, request.to)?;
            found = look(now.as_ref())?;
        }
    }
    Ok(match found {
        Difference::Known(map) => VdiChanges {
            virtual_size: Bytes(size),
            known: true,
            why: None,
            bitmap: VdiChanges::encode(&map.to_msb_first()),
        },
        Difference::Everything { why } => VdiChanges {
            virtual_size: Bytes(size),
            known: false,
            why: Some(why),
            bitmap: String::new(),
        },
    })
}

/// What the log of a disk would have if it were closed now: of one that is written here, from its
/// data path. With the lock held no snapshot takes the log meanwhile.
fn by_now(tree: &Tree, _guard: &Guard, cx: &Cx, vdi: VdiUuid) -> Result<Option<Map>> {
    if !writer::is_written_here(tree, cx, vdi)? {
        return Ok(None);
    }
    let request = DatapathChanges { vdi };
    match cx.request_blocking::<VdiChanges>("datapath.changes", &request) {
        Ok(now) if now.known => Ok(Some(Map::of_msb_first(now.virtual_size.0, &now.bits()?))),
        Ok(_) => Ok(None),
        Err(error) => {
            // What is not known is answered as what is not known.
            plugin_sdk::tracing::info!(%vdi, %error, "the data path does not say what changed");
            Ok(None)
        }
    }
}

/// All of a disk may change, or has, without its log being told.
pub(crate) fn spoil(tree: &Tree, _guard: &Guard, vdi: VdiUuid) -> Result<()> {
    logs(tree).spoil_all(vdi.0).map_err(from_vhd)
}

/// A VDI is gone; what its log has goes to the one after it. One that is being written keeps it
/// waiting: then [`sweep`] does it one day.
pub(crate) fn forget(tree: &Tree, _guard: &Guard, vdi: VdiUuid) -> Result<()> {
    logs(tree).forget(vdi.0).map(drop).map_err(from_vhd)
}

/// Whether there are logs of VDIs that are gone. Without the lock it is a guess.
pub(crate) fn has_dead(tree: &Tree) -> Result<bool> {
    Ok(!logs(tree).forgettable().map_err(from_vhd)?.is_empty())
}

/// Takes away the logs of VDIs that are gone; answers whose they were.
pub(crate) fn sweep(tree: &Tree, _guard: &Guard) -> Result<Vec<Uuid>> {
    let mut gone = Vec::new();
    // One that goes may be what another one waits for.
    loop {
        let found = logs(tree).forgettable().map_err(from_vhd)?;
        let before = gone.len();
        for vdi in found {
            if logs(tree).forget(vdi).map_err(from_vhd)? {
                step!("recover.log_forgotten");
                gone.push(vdi);
            }
        }
        if gone.len() == before {
            return Ok(gone);
        }
    }
}

/// One disk of a snapshot that is being taken.
#[derive(Clone, Copy)]
pub(crate) struct Member {
    pub(crate) disk: Uuid,
    pub(crate) snapshot: Uuid,
    pub(crate) size: u64,
}

/// What happens beside the images while snapshots are taken: who writes the disks is told, and their
/// logs become the snapshots'.
pub(crate) struct Taking<'a> {
    tree: &'a Tree,
    guard: &'a Guard,
    cx: &'a Cx,
    told: Option<Told<'a>>,
    tracked: Vec<Member>,
    switched: Cell<bool>,
}

impl<'a> Taking<'a> {
    pub(crate) fn of(
        tree: &'a Tree,
        guard: &'a Guard,
        cx: &'a Cx,
        members: &[Member],
    ) -> Result<Self> {
        let vdis: Vec<VdiUuid> = members.iter().map(|member| member.disk.into()).collect();
        let told = Told::of_all(tree, guard, cx, &vdis)?;
        let mut tracked = Vec::new();
        for member in members {
            if logs(tree).is_enabled(member.disk).map_err(from_vhd)? {
                tracked.push(*member);
            }
        }
        Ok(Self { tree, guard, cx, told, tracked, switched: Cell::new(false) })
    }

    /// None if there is nothing to be told.
    pub(crate) fn writer(&self) -> Option<&dyn Writer> {
        (self.told.is_some() || !self.tracked.is_empty()).then_some(self)
    }

    /// After a failure: what the snapshots' logs have goes back to the disks'. What cannot be done
    /// now is by recovery.
    pub(crate) fn give_up(&self) {
        for member in &self.tracked {
            logs(self.tree).unstage(member.disk);
        }
        if self.switched.get()
            && let Err(error) = sweep(self.tree, self.guard)
        {
            plugin_sdk::tracing::warn!(%error, "logs of changes are left for the next scan");
        }
    }
}

impl Writer for Taking<'_> {
    fn prepare(&self) -> vhd::Result<()> {
        if self.switched.get() {
            return Ok(());
        }
        for Member { disk, snapshot, size } in &self.tracked {
            logs(self.tree).prepare_snapshot(*disk, *snapshot, *size)?;
        }
        Ok(())
    }

    fn stop(&self) -> vhd::Result<()> {
        if let Some(told) = &self.told {
            told.stop()?;
        }
        if self.switched.replace(true) {
            return Ok(());
        }
        for Member { disk, snapshot, size } in &self.tracked {
            logs(self.tree).snapshot(*disk, *snapshot, *size)?;
            step!("vdi_snapshot.log_switched");
        }
        Ok(())
    }

    fn go_on(&self) {
        // First of all: what the guests ask for from now on waits for what follows.
        self.cx.snapshots_caught_blocking();
        if let Some(told) = &self.told {
            told.go_on();
        }
    }
}
