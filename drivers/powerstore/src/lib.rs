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
mod qos;

use array_kit::prelude::*;

use api::Web;

pub use array::{NAMES, PowerStore};

device_config! {
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

impl Product for PowerStoreProduct {
    type Config = Config;
    type Array = PowerStore;
    type Connector = IscsiHost;

    const MANIFEST: Manifest = array_manifest! {
        qos,
        name: "powerstore",
        title: "Dell PowerStore: volumes, snapshots and clones made by the array",
        features: [RAW, THIN, OFFLOAD, LIVE_SNAPSHOT, GROUP_SNAPSHOT, LIVE_RESIZE, QOS_OPERATIONS,
            QOS_BYTES],
        needs_root: true,
    };
    const POOL_KEY: Option<&'static str> = Some("appliance");

    fn pool(config: &Config) -> Option<String> {
        config.appliance.clone()
    }

    async fn open(config: Config, cx: &Cx) -> Result<(PowerStore, IscsiHost)> {
        let Config { target, username: user, password, appliance, .. } = config;
        let trust = trust(config.ca, config.fingerprint)?;
        let web = Web { user, password: password.clone() };
        let api = Rest::open(cx, target.url(), &trust, &password, web).await?;
        Ok((PowerStore::new(cx, api, appliance).await?, IscsiHost::new(config.initiator)))
    }
}

export_driver!(Offload<PowerStoreProduct>);
