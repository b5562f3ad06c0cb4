//! What may be asked of a VDI in a second: by the storage where it can, else by the VDI's data path.

use ::datapath::disk::{Limits, Rate as DatapathRate};
use sm_model::manifest::feature;
use sm_model::vdi::{Qos, Rate, VdiDone, VdiInfo, VdiQos, VdiStat};
use sm_model::{Error, ImageFormat, Operation, Result, VdiUuid};

use crate::events::Event;
use crate::marks::QOS;
use crate::op::Op;
use crate::services::blocking;
use crate::sr::Sr;

/// A description as it came from the driver, with the limits that the data path keeps to.
pub(crate) fn with_limits(mut vdi: VdiInfo) -> VdiInfo {
    if vdi.qos.is_unlimited() && !vdi.is_a_snapshot {
        vdi.qos = kept(&vdi);
    }
    vdi
}

fn kept(vdi: &VdiInfo) -> Qos {
    let text = vdi.keys.get(QOS);
    text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

fn limits(qos: &Qos) -> Limits {
    let rate = |rate: Rate| {
        let burst = rate.burst.unwrap_or(rate.per_second);
        DatapathRate { per_second: rate.per_second, burst }
    };
    Limits { operations: qos.operations.map(rate), bytes: qos.bytes.map(rate) }
}

impl Sr {
    /// Limits what may be asked of a VDI in a second, from now on and wherever it is attached; none at
    /// all lifts the limits. The storage does it where it can (the driver has `vdi_qos`), else the VDI's
    /// data path. Refused where there is neither.
    pub async fn vdi_qos(&self, op: &Op, vdi: VdiUuid, qos: Qos) -> Result<VdiDone> {
        for rate in [qos.operations, qos.bytes].into_iter().flatten() {
            if rate.per_second == 0 {
                return Err(Error::new(sm_model::Kind::Limit, "a limit must be above 0"));
            }
        }
        let manifest = self.driver_manifest()?;
        if manifest.can(Operation::VdiQos.name()) {
            let done = self.perform(op, &[vdi], &VdiQos { vdi, qos }).await?;
            self.event(Event::VdiChanged { sr: self.uuid(), vdi });
            return Ok(done);
        }
        let unable = |why: String| Err(Error::unsupported(why).context("vdi", vdi));
        if !manifest.can(feature::DATAPATH) {
            let driver = &self.record.driver;
            return unable(format!("the driver {driver} cannot limit what is asked of a VDI"));
        }
        if self.read(op, &VdiStat::of(vdi)).await?.format == ImageFormat::Raw {
            return unable(format!("VDI {vdi} is raw: no process is there that could limit it"));
        }
        let text = serde_json::to_string(&qos)
            .map_err(|error| Error::internal("limits cannot be written").source(&error))?;
        let keys = [(QOS.to_owned(), (!qos.is_unlimited()).then_some(text))].into();
        let mut done = self.vdi_mark(op, vdi, keys).await?;
        done.vdi = with_limits(done.vdi);
        let apply = op.part("limit");
        let _held = self.manager.lock(&apply, &self.vdi_locks(&apply, &[vdi])).await?;
        if let Some(mut record) = self.attachment(vdi)?.filter(|record| record.served) {
            self.finish(&apply, &mut record).await?;
            let limits = limits(&qos);
            record.limits = limits;
            self.keep(&record)?;
            let datapaths = self.manager.inner.datapaths.clone();
            blocking(move || datapaths.limit(vdi, limits)).await?;
        }
        Ok(done)
    }
}

/// The limits that a data path of a VDI begins with.
pub(crate) fn first_limits(vdi: &VdiInfo) -> Limits {
    limits(&kept(vdi))
}
