//! Which resizes of a VDI were asked for on this host, so that one that comes again after a later one is
//! known: it must not be taken for a shrinking.
//!
//! They are kept in the host's state. An array has no room for them, and a host that never heard of a
//! resize can only refuse it.

use plugin_sdk::model::{Bytes, OperationId, VdiUuid};
use plugin_sdk::{Cx, Result};
use serde::{Deserialize, Serialize};

use super::{Offload, Product};

/// What stands before each key of the host's state.
const PREFIX: &str = "resizes/";

/// How many of a VDI are known.
const KEPT: usize = 8;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Asked {
    id: OperationId,
    to: Bytes,
}

fn key(vdi: VdiUuid) -> String {
    format!("{PREFIX}{vdi}")
}

impl<P: Product> Offload<P> {
    /// Whether this call was heard before.
    pub(super) async fn is_late_resize(cx: &Cx, vdi: VdiUuid, to: Bytes) -> Result<bool> {
        let known = cx.kv().get::<Vec<Asked>>(&key(vdi)).await?.unwrap_or_default();
        Ok(known.contains(&Asked { id: cx.operation_id(), to }))
    }

    /// Notes this call, before anything is asked of the array.
    pub(super) async fn note_resize(cx: &Cx, vdi: VdiUuid, to: Bytes) -> Result<()> {
        let mut known = cx.kv().get::<Vec<Asked>>(&key(vdi)).await?.unwrap_or_default();
        let asked = Asked { id: cx.operation_id(), to };
        if known.contains(&asked) {
            return Ok(());
        }
        known.push(asked);
        known.drain(..known.len().saturating_sub(KEPT));
        cx.kv().put(&key(vdi), &known).await
    }

    /// The VDI is gone.
    pub(super) async fn forget_resizes(cx: &Cx, vdi: VdiUuid) -> Result<()> {
        cx.kv().remove(&key(vdi)).await
    }

    /// The SR is gone, and with it VDIs that other hosts have destroyed.
    pub(super) async fn forget_all_resizes(cx: &Cx) -> Result<()> {
        for key in cx.kv().list::<Vec<Asked>>(PREFIX).await?.into_keys() {
            cx.kv().remove(&key).await?;
        }
        Ok(())
    }
}
