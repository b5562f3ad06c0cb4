//! Serving an attached disk to other hosts.
//!
//! The data path listens; what it shall listen to is in the record of the attachment. So a data
//! path that was killed is reached at the same address when it is there again, and a mirror of
//! another host that leads to it goes on. It ends with the last detach.

use std::time::Duration;

use datapath::control::protocol::{Listen, RemoteStatus, Status};
use sm_model::{Result, VdiUuid};

use crate::catalog::AttachmentRecord;
use crate::events::Event;
use crate::op::Op;
use crate::services::blocking;
use crate::serving::{Datapaths, told};
use crate::sr::Sr;

/// How long it may take; clients that are sent away have ten seconds of it.
const PATIENCE: Duration = Duration::from_secs(30);

impl Datapaths {
    fn listen(&self, vdi: VdiUuid, asked: Listen) -> Result<RemoteStatus> {
        self.must_find(vdi)?.listen(asked, PATIENCE).map_err(|error| told(vdi, &error))
    }

    fn unlisten(&self, vdi: VdiUuid) -> Result<()> {
        let Some(mut client) = self.find(vdi)? else { return Ok(()) };
        client.unlisten(PATIENCE).map_err(|error| told(vdi, &error))
    }
}

impl Sr {
    /// Serves an attached VDI at an address of this host, until it is detached. Clients must show
    /// a certificate; without credentials the address must be a loopback address. Answers what
    /// clients are given.
    pub async fn vdi_serve(&self, op: &Op, vdi: VdiUuid, asked: Listen) -> Result<RemoteStatus> {
        let _held = self.manager.lock(op, &self.vdi_locks(op, &[vdi])).await?;
        let mut record = self.served(op, vdi, "serve it").await?;
        self.refuse_moved(vdi)?;
        let datapaths = self.manager.inner.datapaths.clone();
        let credentials = asked.credentials.clone();
        let status = blocking(move || datapaths.listen(vdi, asked)).await?;
        // With the port that was found: clients find it there again.
        record.remote = Some(Listen { address: status.address, credentials });
        self.keep(&record)?;
        self.event(Event::VdiChanged { sr: self.uuid(), vdi });
        Ok(status)
    }

    /// Serves a VDI to other hosts no more, and sends their clients away. Answers whether it did.
    pub async fn vdi_serve_end(&self, op: &Op, vdi: VdiUuid) -> Result<bool> {
        let _held = self.manager.lock(op, &self.vdi_locks(op, &[vdi])).await?;
        let Some(mut record) = self.attachment(vdi)? else { return Ok(false) };
        let there = record.remote.take().is_some();
        // First the record: nobody raises it again.
        self.keep(&record)?;
        let datapaths = self.manager.inner.datapaths.clone();
        blocking(move || datapaths.unlisten(vdi)).await?;
        self.event(Event::VdiChanged { sr: self.uuid(), vdi });
        Ok(there)
    }

    /// Has a data path listen that was started anew. That its address is taken by now must keep
    /// nobody here from the disk.
    pub(crate) async fn raise_remote(&self, record: &AttachmentRecord, status: Option<&Status>) {
        let Some(asked) = record.remote.clone() else { return };
        if status.is_some_and(|status| status.remote.is_some()) {
            return;
        }
        let (vdi, datapaths) = (record.vdi, self.manager.inner.datapaths.clone());
        if let Err(error) = blocking(move || datapaths.listen(vdi, asked)).await {
            tracing::warn!(%vdi, %error, "other hosts cannot reach the VDI any more");
        }
    }
}
