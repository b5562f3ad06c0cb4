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
mod limits;
mod object;
mod san;

use array_kit::prelude::*;
use plugin_sdk::model::manifest::FieldKind;

use api::Web;

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

device_config! {
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
    async fn array(config: Config, cx: &Cx) -> Result<Ontap> {
        let Config { target, svm, password, .. } = config;
        let trust = trust(config.ca, config.fingerprint)?;
        let web = Web { credentials: basic(&config.username, &password), svm: svm.clone() };
        let opened = Rest::open(cx, target.url(), &trust, &password, web).await;
        let api = opened.map_err(|failure| match failure.class {
            Class::NotFound => failure.object(format!("SVM {svm}")),
            _ => failure,
        })?;
        let aggregate = config.aggregate.map(|name| (name, config.volume_size));
        Ok(Ontap::new(api, config.volume.0, aggregate))
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
        features: [RAW, THIN, OFFLOAD, LIVE_SNAPSHOT, LIVE_RESIZE, GROUP_SNAPSHOT, QOS_OPERATIONS,
            QOS_BYTES],
        needs_root: true,
    };
    const POOL_KEY: Option<&'static str> = Some("volume");

    fn pool(config: &Config) -> Option<String> {
        Some(config.volume.0.clone())
    }

    async fn open(config: Config, cx: &Cx) -> Result<(Ontap, IscsiHost)> {
        let here = IscsiHost::new(config.initiator.clone());
        Ok((Self::array(config, cx).await?, here))
    }

    async fn probe(config: RawConfig, cx: &Cx) -> Result<SrProbed> {
        let named = config.get::<VolumeName>("volume")?.map(|volume| volume.0);
        // Without a name it looks at all of them; the configuration has to have some.
        let array = Self::array(with_default(&config, "volume", "any")?, cx).await?;
        let array = array.over(named.as_deref().unwrap_or("*"));
        probe::look::<Self>(array, cx, named.as_deref()).await
    }
}

export_driver!(Offload<OntapProduct>);

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
