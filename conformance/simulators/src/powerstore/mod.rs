//! Dell PowerStore: its REST API, as of release 4.0.
//!
//! Source of what is asked and answered: the vendor's "PowerStore REST API" (Swagger 2.0, version
//! 4.0.0.0); of codes and of what deployed clients send: the vendor's Go library `gopowerstore` and the
//! Cinder driver. An appliance is a pool of the core, by its name.
//!
//! Settings of this vendor: `user`, `password`, `ports` (iSCSI ports of an appliance, 2), `addresses`
//! (of these ports, by default that of the data path), `first_lun` (1), `rotate` (each change brings
//! another CSRF token), `version` (4.0.0.0). Limits: `volumes`, `snapshots_per_volume`, `hosts`, `luns`.

mod failure;
mod group;
mod host;
mod policy;
mod query;
mod resource;
mod schema;
mod volume;
mod wire;

use crate::core::{Array, Effect, Export, Trouble, Vendor, View};
use crate::http::{Ask, Say, Web};

/// Who manages it, where the settings say nothing else.
pub const USER: &str = "admin";
/// The password of that user.
pub const PASSWORD: &str = "simulated-password";
/// What the vendor's identifiers of volumes begin with.
pub const NAA: &str = "68ccf098";

/// The vendor.
#[derive(Clone, Copy, Debug, Default)]
pub struct PowerStore;

impl Vendor for PowerStore {
    fn name(&self) -> &'static str {
        "powerstore"
    }

    fn prepare(&self, array: &Array) -> Result<(), Trouble> {
        // The data path asks without a portal at hand: what is served is derived from settings.
        let Some(portal) = array.portal() else { return Ok(()) };
        array.set(|settings| {
            settings
                .vendor
                .entry("addresses")
                .or_insert_with(|| serde_json::json!([portal.ip().to_string()]));
        })
    }

    fn exports(&self, view: &View) -> Vec<Export> {
        host::exports(view)
    }
}

impl Web for PowerStore {
    fn call(&self, ask: &Ask) -> String {
        wire::call_of(ask)
    }

    fn answer(&self, array: &Array, ask: &Ask, effect: Option<&Effect>) -> Say {
        wire::answer(array, ask, effect)
    }

    fn refusal(&self, status: u16) -> Say {
        wire::refusal(status)
    }
}
