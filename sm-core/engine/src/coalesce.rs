//! Merging the leaf of a disk that is served, for a driver that asks for it: see
//! [`sm_model::host::DatapathMerge`].

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{MutexGuard, PoisonError};

use datapath::control::protocol::{MergePace, MergePhase as Phase};
use sm_model::host::{DatapathMerge, DatapathMergeState, MergePhase};
use sm_model::{Error, Kind, Result, VdiUuid};
use sm_step::step;

use crate::serving::{DRAIN, Datapaths, Held, SOON, STORAGE, told};

impl Datapaths {
    pub(crate) fn merging(&self) -> MutexGuard<'_, HashMap<VdiUuid, Held>> {
        self.merging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a merge; the same again has another rate.
    pub(crate) fn merge(&self, request: &DatapathMerge) -> Result<()> {
        let DatapathMerge { vdi, bytes_per_second: rate, cpu_percent, operation, .. } = *request;
        let held = self.merging().remove(&vdi).map(|held| held.client);
        let Some(mut client) = held.map_or_else(|| self.find(vdi), |held| Ok(Some(held)))? else {
            let text = format!("VDI {vdi} has no data path that could merge it");
            return Err(Error::new(Kind::InUse, text).legacy(24).context("vdi", vdi));
        };
        let pace = MergePace { rate, cpu_percent };
        let parent = request.parent.as_ref().map(PathBuf::from);
        client.merge(pace, parent, STORAGE).map_err(|error| told(vdi, &error))?;
        self.merging().insert(vdi, Held { client, operation: Some(operation) });
        step!("core.datapath_merging");
        Ok(())
    }

    /// How far a merge is.
    pub(crate) fn merge_state(&self, vdi: VdiUuid) -> Result<DatapathMergeState> {
        let none = DatapathMergeState {
            phase: MergePhase::None,
            reason: None,
            total: 0,
            copied: 0,
            remaining: 0,
        };
        let Some(mut held) = self.merging().remove(&vdi) else { return Ok(none) };
        let state = held.client.merging(SOON).map_err(|error| told(vdi, &error))?;
        let phase = match state.phase {
            Phase::None => return Ok(none),
            Phase::Ready => MergePhase::Ready,
            Phase::Failed => MergePhase::Failed,
            Phase::Copying | Phase::Retrying | Phase::Other => MergePhase::Copying,
        };
        self.merging().insert(vdi, held);
        let (total, copied, remaining) = (state.total, state.copied, state.remaining);
        Ok(DatapathMergeState { phase, reason: state.reason, total, copied, remaining })
    }

    /// Pauses a VDI whose merge is ready.
    pub(crate) fn converge(&self, vdi: VdiUuid, lock: Option<&str>) -> Result<()> {
        let Some(mut held) = self.merging().remove(&vdi) else {
            let text = format!("VDI {vdi} is not being merged");
            return Err(Error::busy(text).context("vdi", vdi));
        };
        if let Err(error) = held.client.converge(lock.map(PathBuf::from), DRAIN) {
            self.merging().insert(vdi, held);
            return Err(told(vdi, &error));
        }
        self.paused().insert(vdi, held);
        step!("core.datapath_converged");
        Ok(())
    }

    /// Gives a merge up.
    pub(crate) fn cancel_merge(&self, vdi: VdiUuid) -> Result<()> {
        let Some(mut held) = self.merging().remove(&vdi) else { return Ok(()) };
        held.client.cancel_merge(STORAGE).map_err(|error| told(vdi, &error))
    }
}
