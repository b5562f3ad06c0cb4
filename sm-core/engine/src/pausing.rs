//! Disks that are stopped for somebody else's sake: for a snapshot that the storage takes below all
//! of them, say.

use std::sync::Arc;

use sm_model::{Result, VdiUuid};

use crate::locks::Held as Locked;
use crate::op::Op;
use crate::services::blocking;
use crate::serving::{Datapaths, SOON, told};
use crate::sr::Sr;

/// VDIs whose requests wait, with all durable that was answered. They go on with
/// [`PausedVdis::resume`], when this is dropped, and when this process dies.
#[must_use = "their requests wait"]
pub struct PausedVdis {
    datapaths: Arc<Datapaths>,
    vdis: Vec<VdiUuid>,
    /// Nothing else is done with them meanwhile.
    _locked: Locked,
}

impl PausedVdis {
    /// Has them go on. All are told; the first error is answered, and that one goes on by itself.
    pub async fn resume(self) -> Result<()> {
        let (datapaths, vdis) = (Arc::clone(&self.datapaths), self.vdis.clone());
        blocking(move || {
            let told = vdis.iter().map(|vdi| datapaths.resume(*vdi));
            told.collect::<Vec<_>>().into_iter().collect()
        })
        .await
    }
}

impl Drop for PausedVdis {
    fn drop(&mut self) {
        // With its connection a pause ends.
        self.datapaths.paused().retain(|vdi, _| !self.vdis.contains(vdi));
    }
}

impl Datapaths {
    fn resume(&self, vdi: VdiUuid) -> Result<()> {
        let held = self.paused().remove(&vdi);
        let resumed = held.map(|mut held| held.client.resume(SOON));
        resumed.unwrap_or(Ok(())).map_err(|error| told(vdi, &error))
    }
}

impl Sr {
    /// Stops the requests of attached VDIs, of all of them at one point in time, and makes durable
    /// what was answered. Refused for one that no data path serves. What lies on the storage while
    /// they are stopped is what they held at that point; nothing else is done with them meanwhile.
    pub async fn vdi_pause(&self, op: &Op, vdis: &[VdiUuid]) -> Result<PausedVdis> {
        let locked = self.manager.lock(op, &self.vdi_locks(op, vdis)).await?;
        for vdi in vdis {
            self.served(op, *vdi, "be paused").await?;
            self.refuse_moved(*vdi)?;
        }
        let datapaths = self.manager.inner.datapaths.clone();
        let paused = PausedVdis { datapaths, vdis: vdis.to_vec(), _locked: locked };
        let (datapaths, vdis, operation) = (Arc::clone(&paused.datapaths), vdis.to_vec(), op.id);
        blocking(move || datapaths.pause(&vdis, None, false, Some(operation))).await?;
        Ok(paused)
    }
}
