//! Driver for TrueNAS SCALE: the array makes volumes, snapshots and clones, no data crosses this
//! host.
//!
//! An SR is a dataset, a VDI a sparse zvol in it, a snapshot one of ZFS, a clone a dependent clone. What
//! is known about each is a user property of it, set by the very request that makes it. A mapped
//! volume is a LUN of a target that admits this host alone. Both of the array's APIs are spoken, REST
//! v2.0 and, from 25.04 on, JSON-RPC over a WebSocket; which one is found out at open.
//!
//! All that is not this vendor's own is in [`array_kit`].
//!
//! # Why not ...
//!
//! - **a target per VDI**, as `democratic-csi` has: a login and a session for each disk, while one target
//!   has room for a thousand LUNs. The LUN is found by its NAA, so its number may be any.
//! - **one target for all hosts**: a target shows all its LUNs to all it admits.
//! - **`recursive` or `force` in deletes**: they would remove snapshots of the array's own tasks, or
//!   extents that others use. A volume that the array does not give up is kept, hidden.
//! - **the property `comments`**: it is shown and edited in the array's own pages, and inherited.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod api;
mod array;
mod iscsi;
mod object;
mod probe;

use array_kit::array_manifest;
use array_kit::config::{Address, trust};
use array_kit::driver::{Offload, Product};
use array_kit::iscsi::IscsiHost;
use plugin_sdk::config::{ConfigValue, RawConfig};
use plugin_sdk::model::manifest::{FieldKind, feature};
use plugin_sdk::model::sr::SrProbed;
use plugin_sdk::{Cx, Error, Feature, Manifest, Result, Secret};

use api::{Api, Credentials};

pub use api::Choice;
pub use array::TrueNas;

/// Path of a dataset: a pool, or a dataset in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetPath(String);

impl ConfigValue for DatasetPath {
    const KIND: FieldKind = FieldKind::Text;

    fn parse(text: &str) -> std::result::Result<Self, String> {
        // The names of record and volume take 128 more of ZFS's 255.
        let sound = |part: &str| {
            let name = part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.: ".contains(c));
            name && !part.is_empty() && part != "." && part != ".."
        };
        if text.len() <= 120 && text.split('/').all(sound) {
            return Ok(Self(text.to_owned()));
        }
        Err("a pool, or a dataset in it, such as tank/vms, of 120 characters at most".to_owned())
    }
}

plugin_sdk::device_config! {
    /// Which array, and where on it.
    pub struct Config {
        /// Address of the array's web interface: host, host:port or URL; https unless it says http.
        pub target: Address,
        /// Pool or dataset that SRs lie in, such as tank or tank/vms.
        pub pool: DatasetPath,
        /// API key; instead of a password.
        #[key = "api-key"]
        pub api_key: Option<Secret>,
        /// User; needed with a password.
        pub username: Option<String>,
        /// Password of the user.
        pub password: Option<Secret>,
        /// Number of the portal for iSCSI; needed where the array has several.
        pub portal: Option<u64>,
        /// PEM text of the authority that signed the array's certificate, if this host does not trust it.
        pub ca: Option<String>,
        /// SHA-256 of the array's certificate, for one that no authority signed.
        pub fingerprint: Option<String>,
        /// auto, rest or websocket: auto takes JSON-RPC over a WebSocket where the array has it.
        pub api: Choice = "auto",
        /// iSCSI name of this host [default: that of /etc/iscsi/initiatorname.iscsi].
        pub initiator: Option<String>,
    }
}

/// Who we are, out of the keys `api-key`, `username` and `password`.
fn credentials(
    key: Option<Secret>,
    user: Option<String>,
    password: Option<Secret>,
) -> Result<Credentials> {
    match (key, user, password) {
        (Some(key), user, None) => Ok(Credentials::Key(user, key)),
        (None, Some(user), Some(password)) => Ok(Credentials::Password(user, password)),
        (Some(_), _, Some(_)) => {
            Err(Error::config("api-key and password are both given").hint("leave one out"))
        }
        _ => Err(Error::config("the device configuration lacks api-key, or username and password")
            .hint("an API key is made in the array's web interface, under the user's menu")),
    }
}

/// What this crate's driver is, for [`Offload`].
#[derive(Debug)]
pub struct TrueNasProduct;

impl TrueNasProduct {
    /// Connects to the array that a configuration names.
    pub async fn array(config: Config, cx: &Cx) -> Result<TrueNas> {
        let trust = trust(config.ca, config.fingerprint)?;
        let credentials = credentials(config.api_key, config.username, config.password)?;
        let (base, host) = (config.target.url(), config.target.host().to_owned());
        let api = Api::open(cx, base, &trust, credentials, config.api).await?;
        Ok(TrueNas::new(api, config.pool.0, config.portal, host))
    }
}

impl Product for TrueNasProduct {
    type Config = Config;
    type Array = TrueNas;
    type Connector = IscsiHost;

    const MANIFEST: Manifest = array_manifest! {
        name: "truenas",
        title: "TrueNAS SCALE: volumes, snapshots and clones made by the array",
        features: &[
            Feature::new(feature::RAW),
            Feature::new(feature::THIN),
            Feature::new(feature::OFFLOAD),
            Feature::new(feature::LIVE_SNAPSHOT),
            Feature::new(feature::GROUP_SNAPSHOT),
            Feature::new(feature::LIVE_RESIZE),
        ],
        needs_root: true,
    };

    fn pool(config: &Config) -> Option<String> {
        Some(config.pool.0.clone())
    }

    async fn open(config: Config, cx: &Cx) -> Result<(TrueNas, IscsiHost)> {
        let here = IscsiHost::new(config.initiator.clone());
        Ok((Self::array(config, cx).await?, here))
    }

    async fn probe(config: RawConfig, cx: &Cx) -> Result<SrProbed> {
        probe::probe(&config, cx).await
    }
}

plugin_sdk::export_driver!(Offload<TrueNasProduct>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_a_path_that_zfs_takes() {
        for good in ["tank", "tank/vms", "My Pool/x_y-z.1"] {
            assert!(DatasetPath::parse(good).is_ok(), "{good}");
        }
        for wrong in ["", "/tank", "tank/", "tank//x", "tank/../x", "tank@s", &"x".repeat(121)] {
            assert!(DatasetPath::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn credentials_are_a_key_or_a_password() {
        let text = |text: &str| Some(text.to_owned());
        let secret = || Some(Secret::from("canary"));
        assert!(credentials(secret(), None, None).is_ok());
        assert!(credentials(None, text("root"), secret()).is_ok());
        let error = credentials(secret(), text("root"), secret()).unwrap_err();
        assert_eq!(error.message, "api-key and password are both given");
        for (user, password) in [(None, secret()), (text("root"), None), (None, None)] {
            let error = credentials(None, user, password).unwrap_err();
            let lacks = "the device configuration lacks api-key, or username and password";
            assert_eq!(error.message, lacks);
        }
    }
}
