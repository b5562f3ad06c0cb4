//! What is refused of a VDI because it is attached.

use sm_model::manifest::feature;
use sm_model::{AttachMode, Error, Kind, Result, VdiUuid};

use crate::attach::is_job;
use crate::catalog::AttachmentRecord;
use crate::op::Op;
use crate::sr::Sr;

impl Sr {
    /// Refuses if the VDI is attached, unless the driver has the `live` capability. With a mode,
    /// only an attachment of that mode counts.
    pub(crate) async fn refuse_if_attached(
        &self,
        op: &Op,
        vdi: VdiUuid,
        live: &str,
        mode: Option<AttachMode>,
    ) -> Result<()> {
        let Some(mut record) = self.attachment(vdi)? else { return Ok(()) };
        self.finish(op, &mut record).await?;
        let held = record.driver_state.mode();
        if held.is_none() || mode.is_some_and(|mode| held != Some(mode)) {
            return Ok(());
        }
        if self.driver_manifest()?.can(live) {
            return Ok(());
        }
        Err(Error::new(Kind::InUse, format!("VDI {vdi} is attached by {}", holders(&record)))
            .legacy(24)
            .context("vdi", vdi)
            .hint(detach_hint(&record)))
    }

    /// As [`Self::refuse_if_attached`], but lets pass what its data path can be told of. `live` is
    /// what a driver has that can do it without.
    pub(crate) async fn refuse_unless_live(
        &self,
        op: &Op,
        vdi: VdiUuid,
        live: &str,
        mode: Option<AttachMode>,
    ) -> Result<()> {
        if let Some(mut record) = self.attachment(vdi)?
            && record.served
            && !record.datapaths.keys().any(|name| is_job(name))
            && self.driver_manifest()?.can(feature::DATAPATH)
        {
            // One that was killed is there again after this.
            self.finish(op, &mut record).await?;
            return self.refuse_moved(vdi);
        }
        self.refuse_if_attached(op, vdi, live, mode).await
    }

    /// Refuses to resize a VDI that is attached, unless the driver can do that: one that has data
    /// paths, of VDIs that nobody but a data path has open.
    pub(crate) async fn refuse_resize(&self, op: &Op, vdi: VdiUuid) -> Result<()> {
        let manifest = self.driver_manifest()?;
        if !manifest.can(feature::DATAPATH) {
            return self.refuse_if_attached(op, vdi, feature::LIVE_RESIZE, None).await;
        }
        let (live, never) = (manifest.can(feature::LIVE_RESIZE), "");
        if let Some(mut record) = self.attachment(vdi)?
            && live
            && record.served
            && !record.datapaths.keys().any(|name| is_job(name))
        {
            // One that was killed is there again after this.
            return self.finish(op, &mut record).await;
        }
        self.refuse_if_attached(op, vdi, never, None).await
    }

    pub(crate) fn refuse_if_any_attached(&self) -> Result<()> {
        let attached = self.attachments()?;
        let Some(first) = attached.first() else { return Ok(()) };
        Err(Error::new(
            Kind::InUse,
            format!(
                "{} VDIs of SR {} are attached, among them {} by {}",
                attached.len(),
                self.uuid(),
                first.vdi,
                holders(first)
            ),
        )
        .legacy(16)
        .hint("detach them first; smctl vdi list --attached shows them"))
    }
}

fn detach_hint(record: &AttachmentRecord) -> String {
    let commands: Vec<String> = record
        .datapaths
        .keys()
        .map(|name| format!("smctl vdi detach {} --datapath {name}", record.vdi))
        .collect();
    commands.join("; ")
}

/// Who holds a VDI, for people.
pub(crate) fn holders(record: &AttachmentRecord) -> String {
    let names: Vec<String> = record.datapaths.keys().map(|name| format!("{name:?}")).collect();
    if names.is_empty() { "nobody any more".to_owned() } else { names.join(", ") }
}
