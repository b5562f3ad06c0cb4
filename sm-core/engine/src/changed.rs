//! Changed blocks: tracking them, asking for them, and showing them to programs that back disks up.
//!
//! The driver keeps the logs and tells what changed; the data path notes changes while a disk is
//! written. Here it is seen to that nothing is written past both, and what the driver tells is put
//! where the data path shows it, as a bitmap that clients of NBD can ask for.

use datapath::control::Place;
use datapath::control::protocol::{BitmapFile, FailureKind, Tracking};
use sm_model::vdi::{VdiCbt, VdiChanged, VdiChanges, VdiDone};
use sm_model::{Access, AttachMode, Error, Kind, Result, VdiUuid};
use vhd::change::{LogFile, Map};

use crate::attach::is_job;
use crate::catalog::AttachmentRecord;
use crate::events::Event;
use crate::op::Op;
use crate::services::blocking;
use crate::serving::{Datapaths, STORAGE, is_active, told};
use crate::sr::Sr;

impl AttachmentRecord {
    /// Whether all that is written through this attachment is noted by a data path.
    pub(crate) fn is_tracked(&self, served: bool) -> bool {
        let writes = |held: &crate::catalog::Datapath| held.mode == AttachMode::ReadWrite;
        served && !self.datapaths.iter().any(|(name, held)| is_job(name) && writes(held))
    }

    /// What the data path is told of changes.
    pub(crate) fn tracking(&self, place: &Place) -> Tracking {
        let bitmaps = self.bitmaps.iter().map(|from| BitmapFile {
            name: from.to_string(),
            path: place.changed_since(&from.to_string()),
        });
        let (changes, shut_out) = (log_of(&self.images), shut_out_of(&self.images));
        Tracking { changes, bitmaps: bitmaps.collect(), shut_out }
    }
}

/// Where the log of changed blocks is, of a disk that is reached so.
pub(crate) fn log_of(access: &[Access]) -> Option<std::path::PathBuf> {
    match access.first() {
        Some(Access::File { changes: Some(path), .. }) => Some(path.clone().into()),
        _ => None,
    }
}

/// What is there when this host is shut out of the SR.
pub(crate) fn shut_out_of(access: &[Access]) -> Option<std::path::PathBuf> {
    match access.first() {
        Some(Access::File { shut_out: Some(path), .. }) => Some(path.clone().into()),
        _ => None,
    }
}

impl Datapaths {
    /// What has changed by now of a VDI that is served, as far as its log goes back; none if its
    /// process has no log open.
    pub(crate) fn changes(&self, vdi: VdiUuid) -> Result<Option<Map>> {
        let found = match self.must_find(vdi)?.changes(STORAGE) {
            // It knows of no log: it is of an earlier release, or serves nothing.
            Err(error)
                if matches!(
                    error.kind(),
                    Some(FailureKind::Unsupported | FailureKind::NotActive)
                ) =>
            {
                return Ok(None);
            }
            other => other.map_err(|error| told(vdi, &error))?,
        };
        let Some(path) = found.path else { return Ok(None) };
        let broken = |error: vhd::Error| Error::internal(error.reason()).context("vdi", vdi);
        let Some(file) = LogFile::open_path(&path, false).map_err(broken)? else {
            return Ok(None);
        };
        let map = file.head().and_then(|head| file.map(head.size)).map_err(broken)?;
        let _ = std::fs::remove_file(&path);
        Ok(Some(map))
    }
}

impl Sr {
    /// Begins, or ends, to track which blocks of a VDI change; also while it is attached.
    pub async fn vdi_cbt(&self, op: &Op, vdi: VdiUuid, enabled: bool) -> Result<VdiDone> {
        let _held = self.manager.lock(op, &self.vdi_locks(op, &[vdi])).await?;
        let writing = Some(AttachMode::ReadWrite);
        // What is written past the data path would not be noted.
        self.refuse_unless_live(op, vdi, "", writing).await?;
        let _paused = self.manager.inner.datapaths.let_go(op.id, &[vdi]);
        let done = self.perform_locked(op, &VdiCbt { vdi, enabled }).await?;
        self.event(Event::VdiChanged { sr: self.uuid(), vdi });
        Ok(done)
    }

    /// What changed from one point in time to another: from a snapshot to a later one, or to the
    /// disk itself. Of a disk that is written on this host that is what changed by now, asked of its
    /// data path.
    pub async fn vdi_changed(&self, op: &Op, from: VdiUuid, to: VdiUuid) -> Result<VdiChanges> {
        self.read(op, &VdiChanged { from, to }).await
    }

    /// As [`Self::vdi_attach`] for reading, and lets clients ask what changed since `from`: by the
    /// bitmap `qemu:dirty-bitmap:<from>`, whose blocks are those of [`Self::vdi_changed`]. It is
    /// there as long as the VDI is attached.
    pub async fn vdi_attach_since(
        &self,
        op: &Op,
        vdi: VdiUuid,
        datapath: &str,
        from: VdiUuid,
    ) -> Result<(Vec<Access>, VdiChanges)> {
        // Asked first: an answer that there is none shall leave nothing attached.
        let changes = self.vdi_changed(op, from, vdi).await?;
        let bits = changes.bits()?;
        let held = self
            .attachment(vdi)?
            .is_some_and(|record| record.driver_state.mode() == Some(AttachMode::ReadWrite));
        if held {
            return Err(Error::new(
                Kind::InUse,
                format!("VDI {vdi} is attached for writing, so that what changed is not fixed"),
            )
            .legacy(24)
            .context("vdi", vdi)
            .hint("take a snapshot, and attach that"));
        }
        let access = self.vdi_attach(op, vdi, datapath, AttachMode::ReadOnly).await?;
        let map = Map::of_msb_first(changes.virtual_size.0, &bits);
        if let Err(error) = self.show_changes(op, vdi, from, map).await {
            if let Err(also) = self.vdi_detach(op, vdi, datapath).await {
                tracing::warn!(%vdi, error = %also, "what was attached could not be detached");
            }
            return Err(error);
        }
        Ok((access, changes))
    }

    async fn show_changes(&self, op: &Op, vdi: VdiUuid, from: VdiUuid, map: Map) -> Result<()> {
        let _held = self.manager.lock(op, &self.vdi_locks(op, &[vdi])).await?;
        let mut record = self.served(op, vdi, "show what changed").await?;
        let datapaths = self.manager.inner.datapaths.clone();
        let place = datapaths.place(vdi);
        let path = place.changed_since(&from.to_string());
        blocking(move || {
            LogFile::write_path(&path, from.0, vdi.0, &map)
                .map_err(|error| Error::internal(error.reason()))
        })
        .await?;
        if !record.bitmaps.contains(&from) {
            // The file first: whoever starts the process again takes it for granted.
            record.bitmaps.push(from);
            self.keep(&record)?;
        }
        let status = blocking({
            let datapaths = datapaths.clone();
            move || datapaths.status(vdi)
        })
        .await?;
        // One that is not active yet is told when it is.
        if let (true, Some(plan)) = (status.as_ref().is_some_and(is_active), record.plan()) {
            let (epoch, limits) = (record.epoch, record.limits);
            let tracking = record.tracking(&place);
            blocking(move || datapaths.activate(vdi, plan, tracking, epoch, limits)).await?;
        }
        Ok(())
    }
}
