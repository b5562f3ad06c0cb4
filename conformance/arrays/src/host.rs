//! The driver under test: its own, but for its way to block devices.

use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use array_kit::array::Initiator;
use array_kit::driver::{Connector, Disconnected, Lun, Product};
use array_kit::ledger::Settle;
use plugin_sdk::config::RawConfig;
use plugin_sdk::model::sr::SrProbed;
use plugin_sdk::{Cx, Manifest, Result, Utf8PathBuf};

use crate::vendor::{Simulated, Vendor};

/// The host, unless the device configuration has an `initiator`.
pub const IQN: &str = "iqn.1993-08.org.debian:01:222";

/// Somebody who is never let in.
pub const OTHER: &str = "iqn.1993-08.org.debian:01:333";

/// The arrays that run, by their device configuration.
static ARRAYS: Mutex<Vec<Simulated>> = Mutex::new(Vec::new());

/// Makes an array known to the connector of drivers that are opened with its configuration.
pub fn register(simulated: &Simulated) {
    ARRAYS.lock().unwrap_or_else(PoisonError::into_inner).push(simulated.clone());
}

/// Forgets it.
pub fn forget(simulated: &Simulated) {
    let mut arrays = ARRAYS.lock().unwrap_or_else(PoisonError::into_inner);
    arrays.retain(|other| other.config != simulated.config);
}

/// A vendor's product with [`Watcher`]. `PATIENT`: with the driver's own bounds for lists that lag
/// behind, instead of ones that keep tests short.
#[derive(Debug)]
pub struct Tested<V, const PATIENT: bool>(PhantomData<V>);

impl<V: Vendor, const PATIENT: bool> Product for Tested<V, PATIENT> {
    type Config = <V::Product as Product>::Config;
    type Array = <V::Product as Product>::Array;
    type Connector = Watcher;

    const MANIFEST: Manifest = V::Product::MANIFEST;

    const SETTLE: Settle = if PATIENT {
        V::Product::SETTLE
    } else {
        Settle { stale: Duration::from_millis(50), pause: Duration::from_millis(5), tries: 4 }
    };

    fn pool(config: &Self::Config) -> Option<String> {
        V::Product::pool(config)
    }

    async fn open(config: Self::Config, cx: &Cx) -> Result<(Self::Array, Watcher)> {
        let given = cx.device_config();
        let known = |simulated: &&Simulated| {
            simulated.config.iter().all(|(key, value)| given.get(*key) == Some(value))
        };
        let simulated =
            ARRAYS.lock().unwrap_or_else(PoisonError::into_inner).iter().find(known).cloned();
        let iqn = given.get("initiator").map_or(IQN, String::as_str).to_owned();
        let (array, _) = V::Product::open(config, cx).await?;
        Ok((array, Watcher { simulated, iqn, scsi_id: V::FACTS.scsi_id }))
    }

    async fn probe(config: RawConfig, cx: &Cx) -> Result<SrProbed> {
        V::Product::probe(config, cx).await
    }
}

/// A host that reaches no LUN, but looks whether it might: the array must serve it under the identity
/// that the driver says, to this host and to nobody else.
#[derive(Debug)]
pub struct Watcher {
    simulated: Option<Simulated>,
    iqn: String,
    scsi_id: &'static str,
}

impl Connector for Watcher {
    async fn initiator(&self, _: &Cx) -> Result<Initiator> {
        Ok(Initiator { host: "host1".to_owned(), iqn: self.iqn.clone(), chap: None })
    }

    async fn connect(&self, _: &Cx, lun: &Lun<'_>, _: bool) -> Result<Utf8PathBuf> {
        let mapping = lun.mapping;
        assert!(mapping.scsi_id.starts_with(self.scsi_id), "{mapping:?}");
        assert_eq!(mapping.scsi_id.len(), 33, "{mapping:?}");
        let Some(simulated) = &self.simulated else { panic!("nobody knows the array") };
        let exports = simulated.exports();
        for target in &mapping.targets {
            let served = exports.iter().find(|export| {
                export.target == target.iqn
                    && export.lun == mapping.lun
                    && export.who.lets(&self.iqn)
            });
            let served = served.unwrap_or_else(|| panic!("{mapping:?} is not in {exports:?}"));
            assert!(!served.who.lets(OTHER), "{served:?} is for everybody");
            assert_eq!(format!("3{}", served.identity.naa), mapping.scsi_id, "{served:?}");
        }
        assert!(!mapping.targets.is_empty(), "{mapping:?}");
        Ok(format!("/dev/disk/{}", mapping.scsi_id).into())
    }

    async fn disconnect(&self, _: &Cx, _: &Lun<'_>) -> Result<Disconnected> {
        Ok(Disconnected::default())
    }
}
