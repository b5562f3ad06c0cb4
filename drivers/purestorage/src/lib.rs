//! Driver for Pure Storage FlashArray: the array makes volumes, snapshots and copies, no data crosses
//! this host.
//!
//! A VDI is a volume, a snapshot one of the array, `volume.suffix`; what is known about each stands in
//! tags of it. A mapped volume is a private connection of this host's object on the array. REST 2.26
//! and 2.2 are spoken, the higher of those that the array has.
//!
//! What cannot be `volume.suffix` is a **frozen copy**: a volume copied from the VDI's, to which nothing
//! is ever connected. Such are snapshots of several disks at one instant, because the array removes
//! the snapshots of a protection group only together, and all snapshots where the array keeps no tags
//! with snapshots (2.2).
//!
//! All that is not this vendor's own is in [`array_kit`].
//!
//! # Why not ...
//!
//! - **names with the user's words**: a name is the key by which a lost answer is looked for, and is
//!   reserved for a day after its volume was destroyed.
//! - **destroying under the own name**: the name would stay taken, also where nobody may eradicate. So
//!   a volume gets another name first.
//! - **several names in a request**: the array does some of them and refuses the others.
//! - **a `PATCH` to put a volume back**: the array answers well and does nothing.
//! - **a host group**: all its hosts would reach the volume.
//! - **the snapshot rows of several volumes in one request, for a group**: no document says that they
//!   are of one instant. Of a protection group it does.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod api;
mod array;
mod group;
mod host;
mod tags;

use array_kit::prelude::*;

use api::{BYTES, OPERATIONS, Purity};

pub use array::{NAMES, PureStorage};

device_config! {
    /// Which array.
    pub struct Config {
        /// Address of the array's management: host, host:port or URL; https unless it says http.
        pub target: Address,
        /// API token of a user with the role storage_admin.
        #[key = "api-token"]
        pub api_token: Secret,
        /// PEM text of the authority that signed the array's certificate, if this host does not trust it.
        pub ca: Option<String>,
        /// SHA-256 of the array's certificate, for one that no authority signed.
        pub fingerprint: Option<String>,
        /// Whether what is destroyed is eradicated at once; else the array keeps it for its
        /// eradication delay, under another name, and its space is not free before.
        pub eradicate: bool = "true",
        /// iSCSI name of this host [default: that of /etc/iscsi/initiatorname.iscsi].
        pub initiator: Option<String>,
    }
}

/// What this crate's driver is, for [`Offload`].
#[derive(Debug)]
pub struct PureStorageProduct;

impl Product for PureStorageProduct {
    type Config = Config;
    type Array = PureStorage;
    type Connector = IscsiHost;

    const MANIFEST: Manifest = array_manifest! {
        qos,
        name: "purestorage",
        title: "Pure Storage FlashArray: volumes, snapshots and copies made by the array",
        features: [RAW, THIN, OFFLOAD, LIVE_SNAPSHOT, LIVE_RESIZE, GROUP_SNAPSHOT,
            QOS_OPERATIONS(OPERATIONS.1, "REST 2.26"), QOS_BYTES(BYTES.1, "REST 2.26")],
        needs_root: true,
    };

    fn pool(_: &Config) -> Option<String> {
        None
    }

    async fn open(config: Config, cx: &Cx) -> Result<(PureStorage, IscsiHost)> {
        let trust = trust(config.ca, config.fingerprint)?;
        let (base, token) = (config.target.url(), config.api_token);
        let api = Rest::open(cx, base, &trust, &token, Purity::new(token.clone())).await?;
        Ok((PureStorage::new(api, config.eradicate)?, IscsiHost::new(config.initiator)))
    }
}

export_driver!(Offload<PureStorageProduct>);
