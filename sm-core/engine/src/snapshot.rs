//! Snapshots, of several disks at one point in time: what can be done before, and the point.

use std::collections::BTreeMap;

use sm_loader::port;
use sm_model::manifest::feature;
use sm_model::vdi::{SnapshotSpec, VdiSnapshot, VdiSnapshotPrepare, VdisDone};
use sm_model::{AttachMode, Error, Kind, Operation, Request as _, Result, VdiUuid, name};

use crate::events::Event;
use crate::journal;
use crate::locks::Held;
use crate::op::Op;
use crate::sr::{NewSnapshot, Sr};

/// Snapshots that only have to be taken: all that could be looked at, locked and made ahead is. Nothing
/// else happens to the disks meanwhile.
///
/// [`Self::commit`] takes them, [`Self::abandon`] does not. Dropped, it is as abandoned, but for what
/// the storage made ahead (an empty group of volumes at most), which stays until the SR is attached
/// the next time.
#[must_use = "nothing is taken yet"]
pub struct PreparedSnapshot {
    sr: Sr,
    op: Op,
    specs: Vec<SnapshotSpec>,
    /// Whether the driver has done its part.
    ahead: bool,
    /// Until it is dropped, nobody else works on the disks.
    _locked: Held,
}

impl std::fmt::Debug for PreparedSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (op, specs) = (&self.op, &self.specs);
        let mut shown = f.debug_struct("PreparedSnapshot");
        shown.field("op", op).field("specs", specs).finish_non_exhaustive()
    }
}

impl PreparedSnapshot {
    /// The UUIDs that the snapshots will have, in the order of the disks.
    pub fn snapshots(&self) -> impl Iterator<Item = VdiUuid> + '_ {
        self.specs.iter().map(|spec| spec.uuid)
    }

    /// Takes the snapshots: all or none, of one point in time between this call and its answer.
    pub async fn commit(self) -> Result<VdisDone> {
        self.commit_telling(|| ()).await
    }

    /// As [`Self::commit`]; `caught` is called as soon as the snapshots hold what they are to hold, if
    /// the driver says so before the answer. Only the answer says whether they are there to stay.
    pub async fn commit_telling(self, caught: impl FnOnce() + Send + 'static) -> Result<VdisDone> {
        let Self { sr, op, specs, .. } = &self;
        let _waiting = sr.manager.inner.caught.wait(sr.uuid(), op.id, caught);
        let vdis: Vec<VdiUuid> = specs.iter().flat_map(|spec| [spec.vdi, spec.uuid]).collect();
        let _paused = sr.manager.inner.datapaths.let_go(op.id, &vdis);
        // A replay must send the very request that was journalled, its time included.
        let time = sr.journalled_time(op)?.unwrap_or_else(journal::now);
        let request = VdiSnapshot { snapshots: specs.clone(), time };
        let done = sr.perform_locked(op, &request).await?;
        for vdi in &done.vdis {
            sr.event(Event::VdiAdded { sr: sr.uuid(), vdi: vdi.uuid });
        }
        Ok(done)
    }

    /// Undoes what was done ahead; no snapshot is taken.
    pub async fn abandon(self) -> Result<()> {
        if self.ahead { self.tell(true, BTreeMap::new()).await } else { Ok(()) }
    }

    async fn tell(&self, abandon: bool, keys: BTreeMap<String, String>) -> Result<()> {
        let request = VdiSnapshotPrepare { snapshots: self.specs.clone(), keys, abandon };
        let (_, port) = self.sr.manager.session(&self.op, self.sr.uuid()).await?;
        let call = self.op.call(VdiSnapshotPrepare::OPERATION);
        self.sr.within(port::call(port.as_ref(), call, &request)).await.map(drop)
    }
}

impl Sr {
    /// Takes snapshots, all of one point in time.
    pub async fn vdi_snapshot(&self, op: &Op, snapshots: &[NewSnapshot]) -> Result<VdisDone> {
        self.ready(op, snapshots).await?.commit().await
    }

    /// Does all of a [`Self::vdi_snapshot`] that need not be done at the point in time itself: checks,
    /// locks, the session with the storage, and what the storage can make ahead. Refused for what that
    /// would be refused for, as far as it can be told.
    pub async fn vdi_snapshot_prepare(
        &self,
        op: &Op,
        snapshots: &[NewSnapshot],
    ) -> Result<PreparedSnapshot> {
        self.vdi_snapshot_prepare_marked(op, snapshots, BTreeMap::new()).await
    }

    /// As [`Self::vdi_snapshot_prepare`], for snapshots that get these keys later: refused where there
    /// is no room for them.
    pub(crate) async fn vdi_snapshot_prepare_marked(
        &self,
        op: &Op,
        snapshots: &[NewSnapshot],
        keys: BTreeMap<String, String>,
    ) -> Result<PreparedSnapshot> {
        let mut prepared = self.ready(op, snapshots).await?;
        // One that was asked for before is taken, or not: the driver looks.
        let first = journal::find(&self.manager.inner.catalog, op.id)?.is_none();
        if first && self.driver_manifest()?.can(Operation::VdiSnapshotPrepare.name()) {
            prepared.ahead = true;
            prepared.tell(false, keys).await?;
        } else {
            self.manager.session(op, self.uuid()).await?;
        }
        Ok(prepared)
    }

    /// Checks and locks.
    async fn ready(&self, op: &Op, snapshots: &[NewSnapshot]) -> Result<PreparedSnapshot> {
        let mut specs = Vec::with_capacity(snapshots.len());
        for (n, snapshot) in snapshots.iter().enumerate() {
            name::check_name(&snapshot.name)?;
            name::check_description(&snapshot.description)?;
            specs.push(SnapshotSpec {
                vdi: snapshot.vdi,
                uuid: op.id.vdi(n as u32),
                name: snapshot.name.clone(),
                description: snapshot.description.clone(),
            });
        }
        let twice = |spec: &SnapshotSpec| specs.iter().filter(|s| s.vdi == spec.vdi).count() > 1;
        if let Some(spec) = specs.iter().find(|spec| twice(spec)) {
            let text = format!("VDI {} is named twice: one snapshot of it is enough", spec.vdi);
            return Err(Error::new(Kind::Limit, text).context("vdi", spec.vdi));
        }
        if specs.is_empty() {
            return Err(Error::new(Kind::Limit, "a snapshot needs a VDI to be taken of"));
        }
        let vdis: Vec<VdiUuid> = specs.iter().flat_map(|spec| [spec.vdi, spec.uuid]).collect();
        let locked = self.manager.lock(op, &self.vdi_locks(op, &vdis)).await?;
        if specs.len() != 1 {
            self.require(feature::GROUP_SNAPSHOT)?;
        }
        for spec in &specs {
            let writing = Some(AttachMode::ReadWrite);
            self.refuse_unless_live(op, spec.vdi, feature::LIVE_SNAPSHOT, writing).await?;
        }
        let (sr, op) = (self.clone(), op.clone());
        Ok(PreparedSnapshot { sr, op, specs, ahead: false, _locked: locked })
    }
}
