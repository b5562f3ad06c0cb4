//! A good driver of a simulated array, and on demand one that has a single defect.
//!
//! The key `defect` of its device configuration names a line of `defects.txt`; without it the driver
//! keeps the contract, and a conformance suite must find nothing. The array is a PowerStore, of which it
//! uses what volumes, snapshots and clones need: no disk is attached, so that it runs where there is no
//! initiator. What is wrong is at the place where a real driver had it wrong, behind `is("name")`.

#![forbid(unsafe_code)]

mod api;
mod array;

use std::time::Duration;

use array_kit::driver::{Connector, Disconnected, Lun};
use array_kit::prelude::*;
use plugin_sdk::model::manifest::feature;
use plugin_sdk::{Feature, Utf8PathBuf, manifest};

use api::Web;
use array::Shelf;

device_config! {
    /// Which array, and what is wrong.
    pub struct Config {
        /// Address of its management.
        pub target: Address,
        /// User.
        pub username: String,
        /// Password of the user.
        pub password: Secret,
        /// A name of the list of defects.
        pub defect: Option<String>,
    }
}

/// What this crate's driver is, for [`Offload`].
#[derive(Debug)]
pub struct FaultyProduct;

impl Product for FaultyProduct {
    type Config = Config;
    type Array = Shelf;
    type Connector = Nowhere;

    const MANIFEST: Manifest = manifest! {
        name: "faulty-rest",
        title: "A simulated array, right or wrong as asked",
        operations: [sr_probe, sr_create, sr_attach, sr_detach, sr_destroy, sr_scan, sr_recover, sr_stat,
            sr_update, vdi_create, vdi_stat, vdi_update, vdi_resize, vdi_snapshot, vdi_clone, vdi_revert,
            vdi_destroy],
        features: &[
            Feature::new(feature::RAW),
            Feature::new(feature::THIN),
            Feature::new(feature::OFFLOAD),
        ],
        services: &["kv", "secret"],
    };

    const SETTLE: Settle =
        Settle { stale: Duration::from_millis(100), pause: Duration::from_millis(10), tries: 4 };

    fn pool(_: &Config) -> Option<String> {
        None
    }

    async fn open(config: Config, cx: &Cx) -> Result<(Shelf, Nowhere)> {
        let Config { target, username, password, defect } = config;
        let defect = defect.unwrap_or_default();
        let mut known =
            include_str!("defects.txt").lines().filter_map(|line| line.split(' ').next());
        if !defect.is_empty() && !known.any(|name| name == defect) {
            return Err(Error::config("the value of defect is no defect"));
        }
        let web = Web::new(username, password.clone(), defect);
        let api = Rest::open(cx, target.url(), &trust(None, None)?, &password, web).await?;
        Ok((Shelf::new(api), Nowhere))
    }
}

/// No host reaches its volumes.
#[derive(Debug)]
pub struct Nowhere;

impl Connector for Nowhere {
    async fn initiator(&self, _: &Cx) -> Result<Initiator> {
        let iqn = "iqn.2004-01.com.example:nobody".to_owned();
        Ok(Initiator { host: "nobody".to_owned(), iqn, chap: None })
    }

    async fn connect(&self, _: &Cx, _: &Lun<'_>, _: bool) -> Result<Utf8PathBuf> {
        Err(Error::unsupported("this driver attaches no disks"))
    }

    async fn disconnect(&self, _: &Cx, _: &Lun<'_>) -> Result<Disconnected> {
        Ok(Disconnected::default())
    }
}

export_driver!(Offload<FaultyProduct>);
