//! A driver that stores nothing and answers at once. What a call of it takes is what the storage
//! manager itself adds to a call; the benchmark measures that.
#![forbid(unsafe_code)]

use plugin_sdk::model::access::ImageFormat;
use plugin_sdk::model::sr::{SrAttach, SrCreate, SrCreated, SrRecovered};
use plugin_sdk::model::vdi::{Health, Qos, VdiDone, VdiInfo, VdiStat, VdiType, VdiUpdate};
use plugin_sdk::model::{Bytes, Changed, SrUuid, VdiUuid};
use plugin_sdk::{Cx, Driver, Manifest, Result, manifest};

plugin_sdk::device_config! {
    /// Nothing to configure.
    pub struct Config {}
}

struct Noop;

impl Driver for Noop {
    type Config = Config;

    const MANIFEST: Manifest = manifest! {
        name: "noop",
        title: "Stores nothing, answers at once",
        operations: [sr_create, sr_attach, vdi_stat, vdi_update],
        features: &[],
    };

    async fn open(_: Config, _: SrUuid, _: &Cx) -> Result<Self> {
        Ok(Self)
    }

    async fn sr_create(&self, cx: &Cx, _: SrCreate) -> Result<SrCreated> {
        Ok(SrCreated { changed: Changed::Created, device_config: cx.device_config().clone() })
    }

    async fn sr_attach(&self, _: &Cx, _: SrAttach) -> Result<SrRecovered> {
        Ok(SrRecovered::default())
    }

    async fn vdi_stat(&self, _: &Cx, request: VdiStat) -> Result<VdiInfo> {
        Ok(info(request.vdi))
    }

    async fn vdi_update(&self, _: &Cx, request: VdiUpdate) -> Result<VdiDone> {
        Ok(VdiDone { changed: Changed::Modified, vdi: info(request.vdi) })
    }
}

/// A reply of the usual length.
fn info(uuid: VdiUuid) -> VdiInfo {
    VdiInfo {
        uuid,
        name: "system disk of the web server".to_owned(),
        description: String::new(),
        virtual_size: Bytes::gib(10),
        physical_utilisation: Bytes::mib(700),
        exclusive: None,
        reclaimable: None,
        format: ImageFormat::Vhd,
        vdi_type: VdiType::User,
        read_only: false,
        sharable: false,
        is_a_snapshot: false,
        cbt_enabled: false,
        snapshot_of: None,
        snapshot_time: None,
        qos: Qos::default(),
        keys: [("owner".to_owned(), "web".to_owned())].into(),
        incomplete: false,
        health: Health::Ok,
    }
}

plugin_sdk::export_driver!(Noop);
