//! A VDI is mapped to this host, and reached.

use plugin_sdk::model::access::{Access, AttachMode};
use plugin_sdk::model::vdi::{VdiAttach, VdiAttached};
use plugin_sdk::model::{Error, VdiUuid};
use plugin_sdk::{Cx, Result, step};
use serde::{Deserialize, Serialize};

use super::{Connector, Offload, Product};
use crate::array::{Array, Mapping, Volume};
use crate::outcome::OrAbsent as _;

/// What is attached, in the host's state: a detach must find the device also when the volume is gone
/// from the array.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Attached {
    volume: Volume,
    /// None until the array has mapped it.
    mapping: Option<Mapping>,
}

fn key(vdi: VdiUuid) -> String {
    format!("attached/{vdi}")
}

impl<P: Product> Offload<P> {
    pub(super) async fn attach(&self, cx: &Cx, request: &VdiAttach) -> Result<VdiAttached> {
        let item = self.known(cx, request.vdi).await?;
        let document = item.usable(self.sr)?;
        let writable = request.mode == AttachMode::ReadWrite;
        if writable && (item.is_snapshot || document.read_only) {
            return Err(Error::unsupported(format!("VDI {} is read-only", request.vdi))
                .legacy(46)
                .hint("clone it to get a disk that can be written"));
        }
        let initiator = self.connector.initiator(cx).await?;
        let (kv, key) = (cx.kv(), key(request.vdi));
        // Before the mapping: a detach then knows that there may be one.
        let mut attached = Attached { volume: item.volume, mapping: None };
        kv.put(&key, &attached).await?;
        step!("array.map_intended");
        let mut tries = 0;
        let mapping = loop {
            tries += 1;
            match self.array.map(cx, &attached.volume, &initiator).await {
                Ok(mapping) => break mapping,
                // Mapping twice is the same as once.
                Err(failure) if !failure.class.is_certain() && tries < P::SETTLE.tries => {
                    cx.check()?;
                }
                Err(failure) => return Err(failure.object(attached.volume.name.clone()).into()),
            }
        };
        step!("array.mapped");
        attached.mapping = Some(mapping.clone());
        kv.put(&key, &attached).await?;
        let path = self.connector.connect(cx, &mapping, writable).await?;
        step!("array.connected");
        Ok(VdiAttached { access: vec![Access::BlockDevice { path }] })
    }

    pub(super) async fn detach(&self, cx: &Cx, vdi: VdiUuid) -> Result<()> {
        let (kv, key) = (cx.kv(), key(vdi));
        let Some(attached) = kv.get::<Attached>(&key).await? else { return Ok(()) };
        // The device first: one whose LUN vanished hangs whoever touches it.
        if let Some(mapping) = &attached.mapping {
            self.connector.disconnect(cx, mapping).await?;
        }
        step!("array.disconnected");
        let initiator = self.connector.initiator(cx).await?;
        let mut tries = 0;
        loop {
            tries += 1;
            match self.array.unmap(cx, &attached.volume, &initiator).await.or_absent() {
                Ok(_) => break,
                Err(failure) if !failure.class.is_certain() && tries < P::SETTLE.tries => {
                    cx.check()?;
                }
                Err(failure) => return Err(failure.object(attached.volume.name.clone()).into()),
            }
        }
        step!("array.unmapped");
        kv.remove(&key).await
    }
}
