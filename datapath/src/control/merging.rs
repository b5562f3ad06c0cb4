//! The merge of the leaf into its parent while the disk is served.
//!
//! It belongs to a connection, and is given up with it. Until the disk goes over to the parent, by
//! a refresh in the pause that [`Command::Converge`](super::protocol::Command::Converge) begins, the
//! leaf has everything: so whatever else is to be done with the images comes first, and ends the
//! merge.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::pausing::Pause;
use super::protocol::{
    Failure, FailureKind, MergePace, MergePhase, Merging, Paused as PausedReply, State,
};
use super::served::{Active, Served, failure, not_active, paused_by_another};
use crate::disk::{Options as DriveOptions, Paused, Plan};
use crate::sync::{LeafMerge, Options, Phase};

/// How long requests may take to end when a merge begins or ends.
const DRAIN: Duration = Duration::from_secs(10);

/// Bytes of metadata of the parent that are kept in memory beside those of the disk.
const MEMORY: usize = 4 << 20;

/// Threads that copy: all of it is one storage.
const WORKERS: usize = 4;

/// The merge of a disk.
pub(super) struct Merge {
    /// The connection.
    owner: u64,
    leaf: LeafMerge,
}

impl Active {
    /// Gives up a merge that is in the way of something else.
    pub(super) fn end_merge(&mut self) -> Result<(), Failure> {
        let Some(merge) = self.merge.take() else { return Ok(()) };
        // One that does not end in time writes nothing more to the parent: the leaf has another
        // file then, or none.
        self.left = merge.leaf.suspend(Instant::now() + DRAIN).map_err(|error| {
            Failure::new(FailureKind::Busy, format!("the merge does not end: {error}"))
        })?;
        Ok(())
    }

    /// Forgets what a merge has left, when that is of no use any more: in a pause, after the images
    /// were exchanged. `changed`: whoever had them may have changed anything in them.
    pub(super) fn forget_merge(&mut self, paused: &Paused, changed: bool) {
        if let Some(left) = self.left.take_if(|left| changed || !left.fits(&self.drive)) {
            left.forget_in(paused);
        }
    }
}

impl Served {
    pub(super) fn merge(
        &self,
        connection: u64,
        pace: MergePace,
        parent: Option<&Path>,
    ) -> Result<(), Failure> {
        let MergePace { rate, cpu_percent } = pace;
        let mut inner = self.inner();
        let active = inner.active.as_mut().ok_or_else(not_active)?;
        if active.pause.is_some() {
            return Err(paused_by_another());
        }
        match &active.merge {
            Some(merge) if merge.owner == connection => {
                merge.leaf.set_rate(rate);
                merge.leaf.set_cpu_percent(cpu_percent);
                return Ok(());
            }
            Some(_) => {
                let text = "the disk is being merged for somebody else";
                return Err(Failure::new(FailureKind::Busy, text));
            }
            None => {}
        }
        if let Some(parent) = parent {
            refuse_other_parent(&active.drive.plan(), parent)?;
        }
        let options = DriveOptions {
            direct: active.drive.is_direct(),
            memory: MEMORY,
            ..DriveOptions::default()
        };
        let copy = Options { rate, cpu_percent, workers: WORKERS, ..Options::default() };
        let (left, until) = (active.left.take(), Instant::now() + DRAIN);
        let leaf = LeafMerge::go_on(&active.drive, &options, copy, left, until)
            .map_err(|error| failure(&error))?;
        tracing::info!("the leaf is being merged into its parent");
        active.merge = Some(Merge { owner: connection, leaf });
        Ok(())
    }

    pub(super) fn merging(&self, connection: u64) -> Result<Merging, Failure> {
        let inner = self.inner();
        let active = inner.active.as_ref().ok_or_else(not_active)?;
        let Some(merge) = active.merge.as_ref().filter(|merge| merge.owner == connection) else {
            let phase = MergePhase::None;
            return Ok(Merging { phase, reason: None, total: 0, copied: 0, remaining: 0 });
        };
        let progress = merge.leaf.progress();
        let (phase, reason) = match progress.phase {
            Phase::Copying => (MergePhase::Copying, None),
            Phase::Ready => (MergePhase::Ready, None),
            Phase::Retrying(why) => (MergePhase::Retrying, Some(why)),
            Phase::Failed(why) => (MergePhase::Failed, Some(why)),
            Phase::Ended => (MergePhase::Failed, Some("it has ended".to_owned())),
        };
        Ok(Merging {
            phase,
            reason,
            total: progress.total,
            copied: progress.copied,
            remaining: progress.dirty + progress.copying,
        })
    }

    pub(super) fn converge(
        &self,
        connection: u64,
        patience: Duration,
        lock: Option<PathBuf>,
    ) -> Result<PausedReply, Failure> {
        let mut inner = self.inner();
        let active = inner.active.as_mut().ok_or_else(not_active)?;
        if active.pause.is_some() {
            return Err(paused_by_another());
        }
        let Some(merge) = active.merge.as_ref().filter(|merge| merge.owner == connection) else {
            let text = "this connection has no merge";
            return Err(Failure::new(FailureKind::NotMerging, text));
        };
        let start = Instant::now();
        let converged = merge.leaf.converge(start + patience).map_err(|error| {
            Failure::new(FailureKind::Busy, format!("the merge cannot end now: {error}"))
        })?;
        let parent = merge.leaf.parent_id();
        active.merge = None;
        let Some(paused) = converged.into_paused() else { return Err(not_active()) };
        active.log.close(&paused);
        active.pause = Some(Pause::of(connection, lock, paused, Some(parent)));
        self.show(State::Paused);
        let milliseconds = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(PausedReply { milliseconds, closed: false })
    }

    pub(super) fn cancel_merge(&self, connection: u64) -> Result<(), Failure> {
        let mut inner = self.inner();
        let Some(active) = &mut inner.active else { return Ok(()) };
        if active.merge.as_ref().is_none_or(|merge| merge.owner != connection) {
            return Ok(());
        }
        tracing::info!("the merge of the leaf is given up");
        active.end_merge()
    }
}

/// What is merged into a parent that is not the one which gets the disk's name would be lost.
fn refuse_other_parent(plan: &Plan, parent: &Path) -> Result<(), Failure> {
    let ours = plan.backing.first().map(|layer| layer.path.as_path());
    if ours == Some(parent) {
        return Ok(());
    }
    let (leaf, ours) = (plan.leaf.path.display(), ours.unwrap_or(Path::new("no parent")).display());
    let text = format!("{leaf} is served with {ours}, not with {}", parent.display());
    Err(Failure::new(FailureKind::InUse, text))
}
