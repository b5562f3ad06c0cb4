//! Maintenance of chains whose disks are open by data paths of this host.
//!
//! Base copies below such a disk are merged by the tree; it tells the data paths through
//! [`Served`]. The disk's own image is merged by the data path itself, which knows what the guest
//! writes meanwhile: it is told to begin, asked how far it is, and stopped for the moment in which
//! the parent gets the disk's name.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use plugin_sdk::model::host::{
    DatapathConverge, DatapathIsServed, DatapathMerge, DatapathMergeState, DatapathMerging,
    DatapathRefresh, DatapathServed, MergePhase,
};
use plugin_sdk::model::sr::{Budget, SrMaintain};
use plugin_sdk::model::uuid::Uuid;
use plugin_sdk::model::{Kind, VdiUuid};
use plugin_sdk::{Cx, Result, step};
use vhd::tree::{
    Guard, LiveMerge, Maintained, Merged, Pace, Planned, Readers, Skipped, Stopped, Tree, Watch,
};

use crate::error::from_vhd;
use crate::vdis::access;
use crate::writer::{Holder, lock_of, pause};

/// Between two looks at how far a data path is.
const LOOK: Duration = Duration::from_millis(50);

/// How often a merge that is ready may fail to end: the storage failed just then.
const TRIES: usize = 5;

/// The data paths of this host.
pub(crate) struct Served<'a> {
    tree: &'a Tree,
    cx: &'a Cx,
    here: Holder,
}

impl<'a> Served<'a> {
    pub(crate) fn of(tree: &'a Tree, cx: &'a Cx) -> Result<Self> {
        Ok(Self { tree, cx, here: Holder::here(cx)? })
    }
}

impl Readers for Served<'_> {
    fn hears(&self, disk: Uuid, holder: &str) -> bool {
        let ours = Holder::of(holder).is_some_and(|by| by.is_at(&self.here));
        ours && self
            .cx
            .request_blocking::<DatapathIsServed>(
                "datapath.served",
                &DatapathServed { vdi: disk.into() },
            )
            .is_ok_and(|answer| answer.served)
    }

    fn close(&self, disks: &[Uuid]) -> vhd::Result<()> {
        if disks.is_empty() {
            return Ok(());
        }
        let vdis: Vec<VdiUuid> = disks.iter().map(|disk| (*disk).into()).collect();
        pause(self.tree, self.cx, &vdis, true)
    }

    fn go_over(&self, disk: Uuid) -> vhd::Result<()> {
        go_over(self.tree, self.cx, disk.into()).map_err(|error| vhd::Error::InUse {
            uuid: disk,
            holder: format!("its data path: {}", error.message),
        })
    }
}

/// Has the data path of a disk go over to the images as they are, and go on.
fn go_over(tree: &Tree, cx: &Cx, vdi: VdiUuid) -> Result<()> {
    let request = DatapathRefresh { vdi, access: vec![access(tree, vdi, true)?] };
    cx.request_blocking::<serde_json::Value>("datapath.refresh", &request).map(drop)
}

/// What is to be merged by data paths, and that it is not left alone.
pub(crate) fn plan(tree: &Tree, served: &Served<'_>, done: &mut Maintained) -> Result<()> {
    let leaves = tree.live_leaves(served).map_err(from_vhd)?;
    done.skipped.retain(|skipped| leaves.iter().all(|leaf| leaf.node != skipped.uuid));
    done.planned.extend(leaves);
    Ok(())
}

/// How a merge by a data path ended.
enum End {
    Merged {
        bytes: u64,
    },
    /// Something else has come first, or it is not possible.
    Not(String),
    Stopped {
        why: Stopped,
        bytes: u64,
    },
}

/// How long merges may go on, and who is told of it.
pub(crate) struct Work<'a> {
    pub(crate) until: Option<Instant>,
    pub(crate) watch: Watch<'a>,
}

/// Has the data paths merge the leaves that can be merged, one after the other.
pub(crate) fn merge_leaves(
    tree: &Tree,
    cx: &Cx,
    request: &SrMaintain,
    work: &Work<'_>,
    done: &mut Maintained,
) -> Result<()> {
    let served = Served::of(tree, cx)?;
    let leaves = tree.live_leaves(&served).map_err(from_vhd)?;
    done.skipped.retain(|skipped| leaves.iter().all(|leaf| leaf.node != skipped.uuid));
    if leaves.is_empty() || done.stopped.is_some() {
        done.planned.extend(leaves);
        return Ok(());
    }
    // Nobody else may merge what a data path is merging into.
    let Some(_one_at_a_time) = tree.store().try_lock_maintenance().map_err(from_vhd)? else {
        done.planned.extend(leaves);
        return Ok(());
    };
    let mut left = leaves.iter().copied();
    while let Some(leaf) = left.next() {
        let before = Pace {
            bytes_done: done.bytes_copied,
            bytes_total: done.bytes_copied
                + leaf.bytes
                + left.clone().map(|leaf| leaf.bytes).sum::<u64>(),
            merges_done: done.merged.len(),
            merges_total: done.merged.len() + 1 + left.len(),
        };
        let merge = Leaf { tree, cx, served: &served, planned: leaf, work, before };
        let taken = merge.allocated();
        match merge.run(&request.budget) {
            Ok(End::Merged { bytes }) => {
                let Planned { node, into, .. } = leaf;
                done.merged.push(Merged { node, into, bytes, live: true });
                done.bytes_copied += bytes;
                done.freed += taken.saturating_sub(merge.allocated());
            }
            Ok(End::Not(reason)) => done.skipped.push(Skipped { uuid: leaf.node, reason }),
            Ok(End::Stopped { why, bytes }) => {
                // The parent has them, and the next merge of this data path goes on there.
                done.bytes_copied += bytes;
                done.stopped = Some(why);
                done.planned.push(leaf);
                done.planned.extend(left);
                break;
            }
            Err(error) => {
                let reason = format!("the data path did not merge it: {}", error.message);
                done.skipped.push(Skipped { uuid: leaf.node, reason });
            }
        }
    }
    Ok(())
}

/// One leaf that is merged by its data path.
struct Leaf<'a> {
    tree: &'a Tree,
    cx: &'a Cx,
    served: &'a Served<'a>,
    planned: Planned,
    work: &'a Work<'a>,
    /// How far all merges were when it began.
    before: Pace,
}

/// Ends what was begun, unless it came to its end.
struct Begun<'a> {
    of: &'a Leaf<'a>,
    ended: bool,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let vdi = self.of.vdi();
        // A data path that is gone has ended it; what is left here, the next merge takes away.
        let told =
            self.of.told::<serde_json::Value>("datapath.cancel_merge", &DatapathMerging { vdi });
        if let Err(error) = told {
            plugin_sdk::tracing::warn!(%vdi, %error, "a merge was not given up in order");
        }
        let soon = Instant::now() + LOOK;
        if let Ok(guard) = self.of.tree.lock(soon) {
            let _ = self.of.tree.cancel_live_merge(&guard, vdi.0);
        }
    }
}

impl Leaf<'_> {
    fn vdi(&self) -> VdiUuid {
        self.planned.node.into()
    }

    fn told<A: serde::de::DeserializeOwned>(
        &self,
        service: &str,
        request: &impl serde::Serialize,
    ) -> Result<A> {
        self.cx.request_blocking(service, request)
    }

    fn path(&self, image: Uuid) -> PathBuf {
        self.tree.path().join(format!("{image}.vhd"))
    }

    /// Bytes that the disk's own image and its parent take.
    fn allocated(&self) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        let files = [self.path(self.planned.node), self.path(self.planned.into)];
        files.iter().filter_map(|file| file.symlink_metadata().ok()).map(|f| f.blocks() * 512).sum()
    }

    fn run(&self, budget: &Budget) -> Result<End> {
        let claims = self.tree.claims(self.planned.node).map_err(from_vhd)?;
        let heard = claims.iter().filter(|claim| self.served.hears(self.planned.node, claim));
        let holders: Vec<&str> = heard.map(String::as_str).collect();
        let live = loop {
            if let Some(why) = self.stopped() {
                return Ok(End::Stopped { why, bytes: 0 });
            }
            let Some(guard) = self.lock()? else { continue };
            match self.tree.begin_live_merge(&guard, self.planned.node, &holders) {
                Ok(live) => break live,
                Err(error) => return Ok(End::Not(error.to_string())),
            }
        };
        step!("sr_maintain.live_recorded");
        let mut begun = Begun { of: self, ended: false };
        let (vdi, operation) = (self.vdi(), self.cx.operation_id());
        let Budget { bytes_per_second, cpu_percent, .. } = budget;
        let bytes_per_second = bytes_per_second.map(|bytes| bytes.0);
        let parent = self.path(live.into).into_os_string().into_string().ok();
        let cpu_percent = *cpu_percent;
        let request = DatapathMerge { vdi, bytes_per_second, cpu_percent, parent, operation };
        self.told::<serde_json::Value>("datapath.merge", &request)?;
        let mut tries = 0;
        loop {
            let state: DatapathMergeState =
                self.told("datapath.merging", &DatapathMerging { vdi })?;
            self.tell(&state);
            match state.phase {
                MergePhase::None => {
                    let why = "something else was done with the disk meanwhile; the next \
                               maintenance merges it";
                    return Ok(End::Not(why.to_owned()));
                }
                MergePhase::Failed => {
                    let why = state.reason.unwrap_or_else(|| "no reason was told".to_owned());
                    return Ok(End::Not(format!("its data path could not merge it: {why}")));
                }
                MergePhase::Ready => match self.converge(&live, &holders) {
                    Ok(true) => {
                        begun.ended = true;
                        return Ok(End::Merged { bytes: state.copied });
                    }
                    // Somebody else is at the store.
                    Ok(false) => {}
                    Err(error) => {
                        tries += 1;
                        if tries == TRIES || !matches!(error.kind, Kind::Busy { .. }) {
                            return Err(error);
                        }
                    }
                },
                MergePhase::Copying => {}
            }
            if let Some(why) = self.stopped() {
                return Ok(End::Stopped { why, bytes: state.copied });
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The store's lock, if it is free soon.
    fn lock(&self) -> Result<Option<Guard>> {
        match self.tree.lock(Instant::now() + LOOK) {
            Ok(guard) => Ok(Some(guard)),
            Err(vhd::Error::Busy { .. }) => Ok(None),
            Err(error) => Err(from_vhd(error)),
        }
    }

    /// Lets the parent take the disk's place, for which the guest waits. Whether it has.
    fn converge(&self, live: &LiveMerge, holders: &[&str]) -> Result<bool> {
        let vdi = self.vdi();
        let Some(guard) = self.lock()? else { return Ok(false) };
        let request = DatapathConverge { vdi, lock: lock_of(self.tree) };
        self.told::<serde_json::Value>("datapath.converge", &request)?;
        step!("sr_maintain.converged");
        let finished = self.tree.finish_live_merge(&guard, Uuid::new_v4(), live, holders);
        step!("sr_maintain.live_replaced");
        // With whatever has the disk's name. If it cannot be told, it looks by itself.
        if let Err(error) = go_over(self.tree, self.cx, vdi) {
            plugin_sdk::tracing::warn!(%vdi, %error, "the data path was not told to go on");
        }
        step!("sr_maintain.live_went_on");
        finished.map_err(from_vhd)?;
        Ok(true)
    }

    fn tell(&self, state: &DatapathMergeState) {
        let done = state.total.saturating_sub(state.remaining);
        // What the guest has written since, there was not when it was counted.
        let more = state.total.saturating_sub(self.planned.bytes);
        let _ = (self.work.watch)(Pace {
            bytes_done: self.before.bytes_done + done,
            bytes_total: self.before.bytes_total + more,
            ..self.before
        });
    }

    fn stopped(&self) -> Option<Stopped> {
        if self.cx.is_cancelled() {
            return Some(Stopped::Cancelled);
        }
        let over =
            self.cx.check().is_err() || self.work.until.is_some_and(|end| Instant::now() >= end);
        over.then_some(Stopped::OutOfTime)
    }
}
