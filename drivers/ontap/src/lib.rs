//! Driver for NetApp ONTAP: the array makes LUNs, snapshots and clones, no data crosses this host.
//!
//! An SR lies in a FlexVol, a VDI is a thin LUN in it, snapshots and clones are LUN clones, which share
//! blocks and depend on nobody. What is known about each is an attribute of its LUN. A mapped LUN is
//! one of an initiator group that holds this host alone.
//!
//! All that is not this vendor's own is in [`array_kit`].
//!
//! # Why not ...
//!
//! - **snapshots of the FlexVol as snapshots of a VDI?** Each catches all LUNs of the FlexVol, a restore
//!   puts all of them back, and there are 1023 at most. One is made for the instant of a group
//!   snapshot, and removed when each disk has its LUN clone of it.
//! - **a FlexVol for each VDI**, as other clients have: there are a thousand of them on a node, and each
//!   takes seconds and a job. A LUN is one request.
//! - **the LUN's `comment`**: it has 254 bytes, and is shown and edited in the array's own pages.
//! - **consistency groups of the array**: all disks of an SR are in one FlexVol, whose snapshot is one
//!   instant for all of them.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod api;
mod array;
mod object;
mod probe;
mod san;

use array_kit::array_manifest;
use array_kit::config::{Address, trust};
use array_kit::driver::{Offload, Product};
use array_kit::iscsi::IscsiHost;
use plugin_sdk::config::{ConfigValue, RawConfig};
use plugin_sdk::model::Bytes;
use plugin_sdk::model::manifest::{FieldKind, feature};
use plugin_sdk::model::sr::SrProbed;
use plugin_sdk::{Cx, Feature, Manifest, Result, Secret};

use api::Api;

pub use array::{NAMES, Ontap};

/// Name of a FlexVol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeName(String);

impl ConfigValue for VolumeName {
    const KIND: FieldKind = FieldKind::Text;

    fn parse(text: &str) -> std::result::Result<Self, String> {
        // With the names of LUNs a path has 255 characters at most.
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let first = text.chars().next().is_some_and(|c| !c.is_ascii_digit());
        if first && text.len() <= 170 && text.chars().all(plain) {
            return Ok(Self(text.to_owned()));
        }
        Err("the name of a FlexVol: letters, digits and _, 170 at most, no digit first".to_owned())
    }
}

plugin_sdk::device_config! {
    /// Which array, and where on it.
    pub struct Config {
        /// Address of the management of cluster or SVM: host, host:port or URL; https unless it says http.
        pub target: Address,
        /// User.
        pub username: String,
        /// Password of the user.
        pub password: Secret,
        /// Name of the SVM.
        pub svm: String,
        /// Name of the FlexVol that the SR lies in; several SRs may share one.
        pub volume: VolumeName,
        /// Aggregate to make the FlexVol in, if it is not there when the SR is created.
        pub aggregate: Option<String>,
        /// Size of a FlexVol that is made; it takes from the aggregate what is written only.
        #[key = "volume-size"]
        pub volume_size: Bytes = "1TiB",
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
pub struct OntapProduct;

impl OntapProduct {
    /// Connects to the array that a configuration names.
    pub async fn array(config: Config, cx: &Cx) -> Result<Ontap> {
        let trust = trust(config.ca, config.fingerprint)?;
        let (base, user) = (config.target.url(), &config.username);
        let api = Api::open(cx, base, &trust, user, &config.password, &config.svm).await?;
        let size = config.volume_size;
        Ok(Ontap::new(api, config.volume.0, config.aggregate.map(|name| (name, size))))
    }
}

impl Product for OntapProduct {
    type Config = Config;
    type Array = Ontap;
    type Connector = IscsiHost;

    const MANIFEST: Manifest = array_manifest! {
        qos,
        name: "ontap",
        title: "NetApp ONTAP: LUNs, snapshots and clones made by the array",
        features: &[
            Feature::new(feature::RAW),
            Feature::new(feature::THIN),
            Feature::new(feature::OFFLOAD),
            Feature::new(feature::LIVE_SNAPSHOT),
            Feature::new(feature::LIVE_RESIZE),
            Feature::new(feature::GROUP_SNAPSHOT),
            Feature::new(feature::QOS_OPERATIONS),
            Feature::new(feature::QOS_BYTES),
        ],
        needs_root: true,
    };

    fn pool(config: &Config) -> Option<String> {
        Some(config.volume.0.clone())
    }

    async fn open(config: Config, cx: &Cx) -> Result<(Ontap, IscsiHost)> {
        let here = IscsiHost::new(config.initiator.clone());
        Ok((Self::array(config, cx).await?, here))
    }

    async fn probe(config: RawConfig, cx: &Cx) -> Result<SrProbed> {
        probe::probe(&config, cx).await
    }
}

plugin_sdk::export_driver!(Offload<OntapProduct>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_named_as_the_array_takes_it() {
        for good in ["vol1", "_x", &"v".repeat(170)] {
            assert!(VolumeName::parse(good).is_ok(), "{good}");
        }
        for wrong in ["", "1vol", "a-b", "a/b", "v l", &"v".repeat(171)] {
            assert!(VolumeName::parse(wrong).is_err(), "{wrong}");
        }
    }
}
