//! The driver over the array in memory.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use plugin_sdk::{Cx, Error, Manifest, Result, Utf8PathBuf, device_config};

use super::memory::MemoryArray;
use crate::array::Initiator;
use crate::driver::{Connector, Disconnected, Lun, Product};
use crate::ledger::Settle;

device_config! {
    /// Which array in memory.
    pub struct Config {
        /// The name it was registered under.
        pub target: String,
        /// Name of this host.
        pub host: String = "host1",
    }
}

static ARRAYS: Mutex<BTreeMap<String, MemoryArray>> = Mutex::new(BTreeMap::new());

/// The driver over a [`MemoryArray`].
#[derive(Debug)]
pub struct MemoryProduct;

impl MemoryProduct {
    /// Makes an array known under a name, for the device configuration's `target`.
    pub fn register(name: &str, array: &MemoryArray) {
        let mut arrays = ARRAYS.lock().unwrap_or_else(PoisonError::into_inner);
        arrays.insert(name.to_owned(), array.clone());
    }
}

impl Product for MemoryProduct {
    type Config = Config;
    type Array = MemoryArray;
    type Connector = MemoryConnector;

    const MANIFEST: Manifest = crate::array_manifest! {
        qos,
        name: "memory-array",
        title: "An array in memory",
    };

    const SETTLE: Settle =
        Settle { stale: Duration::from_millis(60), pause: Duration::from_millis(5), tries: 4 };

    fn pool(_: &Config) -> Option<String> {
        Some("pool1".to_owned())
    }

    async fn open(config: Config, _: &Cx) -> Result<(MemoryArray, MemoryConnector)> {
        let array = {
            let arrays = ARRAYS.lock().unwrap_or_else(PoisonError::into_inner);
            arrays.get(&config.target).cloned()
        };
        let array = array.ok_or_else(|| Error::config("there is no array of that name"))?;
        Ok((array.clone(), MemoryConnector { array, host: config.host }))
    }
}

/// Reaches volumes of a [`MemoryArray`]: the device is a path that nothing is behind.
#[derive(Debug)]
pub struct MemoryConnector {
    array: MemoryArray,
    host: String,
}

impl Connector for MemoryConnector {
    async fn initiator(&self, _: &Cx) -> Result<Initiator> {
        let iqn = format!("iqn.2004-01.example:{}", self.host);
        Ok(Initiator { host: self.host.clone(), iqn, chap: None })
    }

    async fn connect(&self, _: &Cx, lun: &Lun<'_>, _: bool) -> Result<Utf8PathBuf> {
        let identity = &lun.mapping.scsi_id;
        self.array.connect(identity, lun.size)?;
        Ok(format!("/dev/memory/{identity}").into())
    }

    async fn disconnect(&self, _: &Cx, lun: &Lun<'_>) -> Result<Disconnected> {
        self.array.disconnect(&lun.mapping.scsi_id);
        Ok(Disconnected::default())
    }

    async fn resized(&self, _: &Cx, lun: &Lun<'_>) -> Result<()> {
        self.array.connect(&lun.mapping.scsi_id, lun.size)
    }
}
