//! NetApp ONTAP: its REST API, as of release 9.10.1 and later.
//!
//! Source of what is asked and answered: the vendor's "ONTAP REST API reference" 9.10.1
//! (`docs.netapp.com`), its tables of error codes among it; of what deployed clients send: the vendor's
//! Trident and the Cinder driver. An SVM with one iSCSI target; a FlexVol is a pool of the core, a LUN a
//! volume of it, by its path (`/vol/VOLUME/LUN`).
//!
//! Settings of this vendor: `user`, `password`, `svm` (its name), `version` (`9.14.1`), `addresses` (of
//! the interfaces for iSCSI, by default that of the data path), `aggregate` (bytes of the only
//! aggregate), `geometry` (what sizes of LUNs are rounded up to, 4096), `empty_pages` (each page of LUNs
//! is preceded by an empty one with a link to it), `incomplete` (a new LUN is answered with 5374863: made,
//! but without its attributes). Limits: `volumes`, `snapshots_per_volume`, `hosts`, `luns`.

mod failure;
mod lun;
mod objects;
mod query;
mod san;
mod schema;
mod system;
mod volume;
mod wire;

use crate::core::{Array, Effect, Export, Pool, Trouble, Vendor, View};
use crate::http::{Ask, Say, Web};

/// Who manages it, where the settings say nothing else.
pub const USER: &str = "vsadmin";
/// The password of that user.
pub const PASSWORD: &str = "simulated-password";
/// The SVM, where the settings say nothing else.
pub const SVM: &str = "svm1";

/// The vendor.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ontap;

impl Vendor for Ontap {
    fn name(&self) -> &'static str {
        "ontap"
    }

    fn prepare(&self, array: &Array) -> Result<(), Trouble> {
        array.change(|change| {
            for (name, pool) in change.all::<Pool>() {
                if let Some(pool) = volume::furnish(&pool, change.now()) {
                    change.put::<_, Trouble>(&name, &pool)?;
                }
            }
            Ok(())
        })
    }

    fn exports(&self, view: &View) -> Vec<Export> {
        san::exports(view)
    }
}

impl Web for Ontap {
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
