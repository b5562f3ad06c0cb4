//! Driver for Dell PowerStore: the array makes volumes, snapshots and clones, no data crosses this
//! host.
//!
//! A VDI is a volume, always thin; a snapshot is a volume of the type Snapshot; a clone shares blocks
//! and depends on nobody. What is known about each stands in its description, set by the very request
//! that makes it. A mapped volume is a LUN of this host's entry at the array, which holds this host's
//! initiator alone.
//!
//! All that is not this vendor's own is in [`array_kit`].
//!
//! # Why not ...
//!
//! - **a volume group for each SR**: a group has one appliance, a volume one group, and a volume in it is
//!   not deleted before it has left.
//! - **a snapshot set for several VDIs at one instant**: its snapshots are not removed one by one, and go
//!   when the group goes. `group.rs` clones a group instead.
//! - **asynchronous jobs**: what the driver asks for takes no time, and a job's record may be gone before
//!   it is asked for.
//! - **the recycle bin**: a destroyed VDI would come back under a UUID that is in use again. A delete
//!   without a body is permanent in all releases.
//! - **one host entry for each SR**: an initiator is in one entry of the whole array.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod api;
mod array;
mod group;
mod host;
mod object;
mod probe;
mod qos;

use array_kit::array_manifest;
use array_kit::config::{Address, trust};
use array_kit::driver::{Offload, Product};
use array_kit::http::Trust;
use array_kit::iscsi::IscsiHost;
use plugin_sdk::config::RawConfig;
use plugin_sdk::model::manifest::feature;
use plugin_sdk::model::sr::SrProbed;
use plugin_sdk::{Cx, Feature, Manifest, Result, Secret};

use api::Api;

pub use array::{NAMES, PowerStore};

plugin_sdk::device_config! {
    /// Which array.
    pub struct Config {
        /// Address of the cluster's management: host, host:port or URL; https unless it says http.
        pub target: Address,
        /// User.
        pub username: String,
        /// Password of the user.
        pub password: Secret,
        /// Name or id of the appliance for new volumes [default: the array's choice].
        pub appliance: Option<String>,
        /// PEM text of the authority that signed the array's certificate, if this host does not trust it.
        pub ca: Option<String>,
        /// SHA-256 of the array's certificate, for the one it comes with.
        pub fingerprint: Option<String>,
        /// iSCSI name of this host [default: that of /etc/iscsi/initiatorname.iscsi].
        pub initiator: Option<String>,
    }
}

/// What this crate's driver is, for [`Offload`].
#[derive(Debug)]
pub struct PowerStoreProduct;

impl PowerStoreProduct {
    /// Connects to the array that a configuration names.
    pub async fn array(config: Config, cx: &Cx) -> Result<PowerStore> {
        let Config { target, username, password, appliance, ca, fingerprint, .. } = config;
        let trust: Trust = trust(ca, fingerprint)?;
        let api = Api::open(cx, target.url(), &trust, username, password).await?;
        PowerStore::new(cx, api, appliance).await
    }
}

impl Product for PowerStoreProduct {
    type Config = Config;
    type Array = PowerStore;
    type Connector = IscsiHost;

    const MANIFEST: Manifest = array_manifest! {
        qos,
        name: "powerstore",
        title: "Dell PowerStore: volumes, snapshots and clones made by the array",
        features: &[
            Feature::new(feature::RAW),
            Feature::new(feature::THIN),
            Feature::new(feature::OFFLOAD),
            Feature::new(feature::LIVE_SNAPSHOT),
            Feature::new(feature::GROUP_SNAPSHOT),
            Feature::new(feature::LIVE_RESIZE),
            Feature::new(feature::QOS_OPERATIONS),
            Feature::new(feature::QOS_BYTES),
        ],
        needs_root: true,
    };

    fn pool(config: &Config) -> Option<String> {
        config.appliance.clone()
    }

    async fn open(config: Config, cx: &Cx) -> Result<(PowerStore, IscsiHost)> {
        let here = IscsiHost::new(config.initiator.clone());
        Ok((Self::array(config, cx).await?, here))
    }

    async fn probe(config: RawConfig, cx: &Cx) -> Result<SrProbed> {
        probe::probe(&config, cx).await
    }
}

plugin_sdk::export_driver!(Offload<PowerStoreProduct>);
