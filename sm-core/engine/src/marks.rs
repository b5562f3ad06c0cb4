//! What the core keeps with a VDI: keys of its own, beside the user's.
//!
//! A driver keeps keys and knows nothing of what they mean, so what is kept so needs no word of the
//! driver's, moves with the SR, and is there after it was forgotten and introduced again.

use std::collections::BTreeMap;

use sm_model::vdi::{VdiDone, VdiUpdate};
use sm_model::{Error, Kind, Result, VdiUuid, name};

use crate::events::Event;
use crate::op::Op;
use crate::sr::Sr;

/// What the core's own keys begin with.
pub const OWN: &str = "sm:";
/// The group that a VDI is in ([`crate::Group`]).
pub const GROUP: &str = "sm:group";
/// Of a snapshot: the set that it is of ([`crate::snapshot_set_of`]).
pub const SET: &str = "sm:set";
/// What its data path lets a VDI be asked for in a second ([`Sr::vdi_qos`]).
pub const QOS: &str = "sm:qos";

/// Checks a user's key, which must not be one of the core's.
pub(crate) fn check_key(key: &str, value: &str) -> Result<()> {
    if key.starts_with(OWN) {
        return Err(Error::new(
            Kind::Limit,
            format!("the key {key:?} begins with {OWN:?}, which is for the storage manager"),
        )
        .hint("choose another key"));
    }
    name::check_key(key, value)
}

impl Sr {
    /// Sets (a text) or removes (none) keys of the core.
    pub async fn vdi_mark(
        &self,
        op: &Op,
        vdi: VdiUuid,
        keys: BTreeMap<String, Option<String>>,
    ) -> Result<VdiDone> {
        if let Some(other) = keys.keys().find(|key| !key.starts_with(OWN)) {
            return Err(Error::internal(format!("the key {other:?} is not the core's")));
        }
        for (key, value) in &keys {
            name::check_key(key, value.as_deref().unwrap_or_default())?;
        }
        let request = VdiUpdate {
            vdi,
            name: None,
            description: None,
            vdi_type: None,
            read_only: None,
            keys,
            incomplete: None,
        };
        let done = self.perform(op, &[vdi], &request).await?;
        self.event(Event::VdiChanged { sr: self.uuid(), vdi });
        Ok(done)
    }
}
