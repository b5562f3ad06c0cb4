//! A VDI is mapped to this host, and reached.

use plugin_sdk::model::access::{Access, AttachMode};
use plugin_sdk::model::vdi::{VdiAttach, VdiAttached};
use plugin_sdk::model::{Bytes, Error, VdiUuid};
use plugin_sdk::{Cx, Result, step};
use serde::{Deserialize, Serialize};

use super::{Connector, Lun, Offload, Product};
use crate::array::{Initiator, Mapping, Masking as _, Volume};
use crate::outcome::{Class, OrAbsent as _, Outcome};
use crate::retry::resolving;

/// What is attached, in the host's state: a detach must find the device also when the volume is gone
/// from the array.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Attached {
    volume: Volume,
    /// None until the array's answer is recorded.
    mapping: Option<Mapping>,
}

const PREFIX: &str = "attached/";

fn key(vdi: VdiUuid) -> String {
    format!("{PREFIX}{vdi}")
}

/// Whether the array would not map it, whenever it was asked.
fn is_refusal(class: Class) -> bool {
    use Class::{AlreadyExists, InUse, Invalid, LimitReached, NoSpace, Unsupported};
    matches!(class, AlreadyExists | InUse | Invalid | LimitReached | NoSpace | Unsupported)
}

impl<P: Product> Offload<P> {
    pub(super) async fn attach(&self, cx: &Cx, request: &VdiAttach) -> Result<VdiAttached> {
        let vdi = request.vdi;
        let item = self.known(cx, vdi).await?;
        let document = item.usable(self.sr)?;
        let writable = request.mode == AttachMode::ReadWrite;
        if writable && (item.is_snapshot || document.read_only) {
            return Err(Error::unsupported(format!("VDI {vdi} is read-only"))
                .legacy(46)
                .hint("clone it to get a disk that can be written"));
        }
        let initiator = self.connector.initiator(cx).await?;
        let (kv, key) = (cx.kv(), key(vdi));
        let before = kv.get::<Attached>(&key).await?;
        let is_first = before.is_none();
        // Before the mapping: a detach then knows that there may be one. A mapping that is known
        // stays so, because there may be a device by it.
        let mapping = before.and_then(|before| before.mapping);
        let mut attached = Attached { volume: item.volume, mapping };
        kv.put(&key, &attached).await?;
        step!("array.map_intended");
        let done: Result<_> = async {
            let mapped = self.map(cx, &attached.volume, &initiator).await;
            let mapping = mapped.map_err(|failure| failure.object(attached.volume.name.clone()))?;
            step!("array.mapped");
            match &attached.mapping {
                // Unmapped and mapped anew by somebody else: what there is of the old one goes.
                Some(old) if old.scsi_id != mapping.scsi_id => {
                    let size = attached.volume.size;
                    let gone =
                        self.connector.disconnect(cx, &Lun { vdi, mapping: old, size }).await?;
                    drop(gone);
                }
                _ => {}
            }
            attached.mapping = Some(mapping.clone());
            kv.put(&key, &attached).await?;
            step!("array.mapping_noted");
            let lun = Lun { vdi, mapping: &mapping, size: attached.volume.size };
            self.connector.connect(cx, &lun, writable).await
        }
        .await;
        match done {
            Ok(path) => {
                step!("array.connected");
                Ok(VdiAttached { access: vec![Access::BlockDevice { path }] })
            }
            Err(error) => {
                // What an earlier call began, somebody may be using.
                if is_first && let Err(left) = self.detach(&resolving(cx), vdi).await {
                    plugin_sdk::tracing::warn!(%vdi, error = %left, "a mapping stays until the VDI is detached");
                }
                Err(error)
            }
        }
    }

    /// Maps a volume. Twice is the same as once, so a lost answer is asked for again.
    async fn map(&self, cx: &Cx, volume: &Volume, to: &Initiator) -> Outcome<Mapping> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.array.map(cx, volume, to).await {
                Err(failure) if !failure.class.is_certain() && tries < P::SETTLE.tries => {
                    cx.check()?;
                }
                other => return other,
            }
        }
    }

    async fn unmap(&self, cx: &Cx, volume: &Volume, from: &Initiator) -> Outcome<()> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.array.unmap(cx, volume, from).await.or_absent() {
                Ok(_) => return Ok(()),
                Err(failure) if !failure.class.is_certain() && tries < P::SETTLE.tries => {
                    cx.check()?;
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Ends what an attach of this host began, as far as it came.
    pub(super) async fn detach(&self, cx: &Cx, vdi: VdiUuid) -> Result<()> {
        let (kv, key) = (cx.kv(), key(vdi));
        let Some(attached) = kv.get::<Attached>(&key).await? else { return Ok(()) };
        let Attached { volume, mapping } = &attached;
        self.release(cx, vdi, volume, mapping.clone())
            .await
            .map_err(|failure| failure.object(volume.name.clone()))?;
        step!("array.unmapped");
        kv.remove(&key).await
    }

    /// The device first, since one whose LUN vanished hangs whoever touches it; then the mapping.
    async fn release(
        &self,
        cx: &Cx,
        vdi: VdiUuid,
        volume: &Volume,
        mapping: Option<Mapping>,
    ) -> Outcome<()> {
        let initiator = self.connector.initiator(cx).await?;
        // An attach was cut before it knew. The LUN may be mapped, and another VDI's attach have
        // found it: asking once more for the mapping tells what to look for.
        let mapping = match mapping {
            None => match self.map(cx, volume, &initiator).await.or_absent() {
                Err(failure) if is_refusal(failure.class) => None,
                other => other?,
            },
            known => known,
        };
        let disconnected = match &mapping {
            Some(mapping) => {
                let lun = Lun { vdi, mapping, size: volume.size };
                Some(self.connector.disconnect(cx, &lun).await?)
            }
            None => None,
        };
        step!("array.disconnected");
        let unmapped = self.unmap(cx, volume, &initiator).await;
        drop(disconnected);
        unmapped
    }

    /// Ends all that attaches of this host have left in the SR.
    pub(super) async fn detach_all(&self, cx: &Cx) -> Result<()> {
        for name in cx.kv().list::<Attached>(PREFIX).await?.into_keys() {
            if let Some(vdi) = name.strip_prefix(PREFIX).and_then(|uuid| uuid.parse().ok()) {
                self.detach(cx, vdi).await?;
            }
        }
        Ok(())
    }

    /// Ends a mapping to this host of which nothing was recorded here, if nobody else has the volume.
    pub(super) async fn unmap_stale(&self, cx: &Cx, volume: &Volume) -> Outcome<bool> {
        let Some(named) = self.codec.read(&volume.name) else { return Ok(false) };
        let initiator = self.connector.initiator(cx).await?;
        let hosts = self.array.mappings(cx, volume).await?;
        if hosts.is_empty() || hosts.iter().any(|host| *host != initiator.iqn) {
            return Ok(false);
        }
        self.release(cx, VdiUuid(named.uuid), volume, None).await?;
        Ok(true)
    }

    /// Has what was written to an attached VDI reach its volume.
    pub(super) async fn written(&self, cx: &Cx, vdi: VdiUuid) -> Result<()> {
        match cx.kv().get::<Attached>(&key(vdi)).await? {
            Some(Attached { volume, mapping: Some(mapping) }) => {
                self.connector.written(cx, &Lun { vdi, mapping: &mapping, size: volume.size }).await
            }
            _ => Ok(()),
        }
    }

    /// Has the device of an attached VDI take the size that its volume has.
    pub(super) async fn resized(&self, cx: &Cx, vdi: VdiUuid, size: Bytes) -> Result<()> {
        let (kv, key) = (cx.kv(), key(vdi));
        let Some(mut attached) = kv.get::<Attached>(&key).await? else { return Ok(()) };
        let Some(mapping) = attached.mapping.clone() else { return Ok(()) };
        self.connector.resized(cx, &Lun { vdi, mapping: &mapping, size }).await?;
        attached.volume.size = size;
        kv.put(&key, &attached).await
    }
}
