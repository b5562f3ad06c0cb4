//! The driver over an [`Array`]: the operations of an SR as sequences of primitives.
//!
//! # What lies where
//!
//! | of the SR | on the array |
//! |---|---|
//! | the SR | a volume of the smallest size, its record; name and description are its metadata |
//! | a VDI | a volume, named by SR and UUID ([`crate::names`]), with a [`Document`] |
//! | a snapshot | a snapshot of its volume, named by its UUID, with a document |
//! | a VDI that is destroyed while something hangs on it | the volume, its document marked as gone; removed with the last of those |
//!
//! All else on the array is foreign: never shown, never touched. Sizes, and what there is, are read
//! from the array at each scan.

mod attach;
mod destroy;
mod group;
mod item;
mod make;
pub mod probe;
mod recent;
mod record;
mod resizes;

use host_kit::iscsi::uses::Held;
use plugin_sdk::config::{DeviceConfig, RawConfig};
use plugin_sdk::model::sr::{
    SrAttach, SrCreate, SrCreated, SrDestroy, SrDetach, SrDone, SrInfo, SrProbed, SrRecover,
    SrRecovered, SrScan, SrScanned, SrStat, SrUpdate,
};
use plugin_sdk::model::uuid::Uuid;
use plugin_sdk::model::vdi::{
    VdiActivate, VdiAttach, VdiAttached, VdiClone, VdiCreate, VdiDatapathDone, VdiDeactivate,
    VdiDestroy, VdiDestroyed, VdiDetach, VdiDone, VdiInfo, VdiQos, VdiResize, VdiRevert,
    VdiSnapshot, VdiSnapshotPrepare, VdiSnapshotPrepared, VdiStat, VdiUpdate, VdisDone,
};
use plugin_sdk::model::{Bytes, Kind, SrUuid, VdiUuid};
use plugin_sdk::{Cx, Driver, Error, Manifest, Result, SessionHealth, Utf8PathBuf};

use self::group::Ahead;
use self::item::Item;
use self::recent::Recent;
use crate::array::{Array, Initiator, Mapping, SnapshotScope, Volume};
use crate::ledger::{Ledger, Settle};
use crate::metadata::Document;
use crate::names::{Codec, Role};

/// A mapped volume, as a [`Connector`] reaches it.
#[derive(Clone, Copy, Debug)]
pub struct Lun<'a> {
    /// Whose it is: who needs its target.
    pub vdi: VdiUuid,
    /// Where the array shows it.
    pub mapping: &'a Mapping,
    /// The size it has on the array.
    pub size: Bytes,
}

/// That a volume is not connected. As long as this is held, nobody of this host looks for LUNs at
/// its targets: the mapping ends meanwhile, and what was found just before would lead nowhere.
#[derive(Debug, Default)]
#[must_use = "the mapping must end before this is dropped"]
pub struct Disconnected {
    _targets: Vec<Held>,
}

impl Disconnected {
    /// With the right to work on these targets.
    pub fn holding(targets: impl IntoIterator<Item = Held>) -> Self {
        Self { _targets: targets.into_iter().collect() }
    }
}

/// How this host reaches a mapped volume. [`IscsiHost`](crate::iscsi::IscsiHost) does by iSCSI.
pub trait Connector: Send + Sync + 'static {
    /// Who this host is at the array.
    fn initiator(&self, cx: &Cx) -> impl Future<Output = Result<Initiator>> + Send;

    /// The block device of a mapped volume, found by its identity. Connected already: the same.
    fn connect(
        &self,
        cx: &Cx,
        lun: &Lun<'_>,
        writable: bool,
    ) -> impl Future<Output = Result<Utf8PathBuf>> + Send;

    /// Removes the block device with all its paths, before the array ends the mapping. Not
    /// connected: success.
    fn disconnect(
        &self,
        cx: &Cx,
        lun: &Lun<'_>,
    ) -> impl Future<Output = Result<Disconnected>> + Send;

    /// Has what this host keeps of the volume's content written out. Not connected: success.
    fn written(&self, cx: &Cx, lun: &Lun<'_>) -> impl Future<Output = Result<()>> + Send {
        let _ = (cx, lun);
        std::future::ready(Ok(()))
    }

    /// The volume has another size: its device takes it. Not connected: success.
    fn resized(&self, cx: &Cx, lun: &Lun<'_>) -> impl Future<Output = Result<()>> + Send {
        let _ = (cx, lun);
        std::future::ready(Ok(()))
    }
}

/// A vendor's driver: what it is called, how it is configured, how it is opened. [`Offload`] makes a
/// [`Driver`] of it.
pub trait Product: Send + Sync + Sized + 'static {
    /// Its device configuration.
    type Config: DeviceConfig;
    /// Its array.
    type Array: Array;
    /// How this host reaches volumes.
    type Connector: Connector;

    /// What it says of itself, made by [`array_manifest!`](crate::array_manifest).
    const MANIFEST: Manifest;

    /// The key of the configuration that names the pool, if there is one.
    const POOL_KEY: Option<&'static str> = None;

    /// How long its arrays may show stale lists.
    const SETTLE: Settle = Settle {
        stale: std::time::Duration::from_secs(5),
        pause: std::time::Duration::from_millis(250),
        tries: 4,
    };

    /// The pool that the configuration names.
    fn pool(config: &Self::Config) -> Option<String>;

    /// Opens it. Logs in, so that a wrong password shows now.
    fn open(
        config: Self::Config,
        cx: &Cx,
    ) -> impl Future<Output = Result<(Self::Array, Self::Connector)>> + Send;

    /// Looks for what an incomplete configuration leaves open: pools, portals, SRs. This one is for
    /// configurations that lack no more than the pool, which need not be there.
    fn probe(config: RawConfig, cx: &Cx) -> impl Future<Output = Result<SrProbed>> + Send {
        async move {
            let pool = match Self::POOL_KEY {
                Some(key) => config.get::<String>(key)?,
                None => None,
            };
            let (array, _) = Self::open(config.complete()?, cx).await?;
            probe::look::<Self>(array, cx, pool.as_deref()).await
        }
    }
}

/// The manifest of an array's driver: `name`, `title`, then any other field of
/// [`Manifest`]. The operations are those that [`Offload`] serves; `qos` before them is for a driver
/// whose array has a [rule](crate::array::Array::qos_rule) of limits. Features after the title may be
/// said by their names alone, with a limit and where it is from in brackets:
/// `features: [RAW, THIN, QOS_OPERATIONS(1000, "REST 2.26")]`.
#[macro_export]
macro_rules! array_manifest {
    (qos, $($rest:tt)*) => {
        $crate::array_manifest! { @operations [vdi_qos] $($rest)* }
    };
    (@feature $feature:ident) => {
        plugin_sdk::Feature::new(plugin_sdk::model::manifest::feature::$feature)
    };
    (@feature $feature:ident $most:expr, $source:expr) => {
        plugin_sdk::Feature::limit(
            plugin_sdk::model::manifest::feature::$feature, $most, $source)
    };
    (@operations [$($more:ident)*] name: $name:expr, title: $title:expr,
        features: [$($feature:ident $(($most:expr, $source:expr))?),* $(,)?]
        $(, $field:ident: $value:expr)* $(,)?) => {
        $crate::array_manifest! { @operations [$($more)*] name: $name, title: $title,
            features: &[$($crate::array_manifest!(@feature $feature $($most, $source)?)),*]
            $(, $field: $value)* }
    };
    (@operations [$($more:ident)*]
        name: $name:expr, title: $title:expr $(, $field:ident: $value:expr)* $(,)?) => {
        plugin_sdk::manifest! {
            name: $name,
            title: $title,
            operations: [sr_probe, sr_create, sr_attach, sr_detach, sr_destroy, sr_scan, sr_recover,
                sr_stat, sr_update, vdi_create, vdi_stat, vdi_update, vdi_resize, vdi_snapshot,
                vdi_snapshot_prepare, vdi_clone, vdi_revert, vdi_destroy, $($more,)* vdi_attach,
                vdi_activate, vdi_deactivate, vdi_detach],
            services: &["kv"]
            $(, $field: $value)*
        }
    };
    ($($rest:tt)*) => {
        $crate::array_manifest! { @operations [] $($rest)* }
    };
}

/// A driver over an array, opened for one SR.
pub struct Offload<P: Product> {
    sr: SrUuid,
    array: P::Array,
    connector: P::Connector,
    codec: Codec,
    pool: Option<String>,
    recent: Recent,
    ahead: Ahead,
}

impl<P: Product> Offload<P> {
    /// The array.
    pub fn array(&self) -> &P::Array {
        &self.array
    }

    fn ledger(cx: &Cx) -> Ledger {
        Ledger::new(cx, P::SETTLE)
    }

    fn disk_name(&self, vdi: Uuid) -> String {
        self.codec.name(Role::Disk, vdi)
    }

    /// The name of a snapshot, as the array's scope of such names wants it.
    fn snapshot_name(&self, role: Role, uuid: Uuid) -> String {
        match self.array.capabilities().snapshots {
            SnapshotScope::Within => Codec::inner(role, uuid),
            SnapshotScope::Volume | SnapshotScope::Unnamed => self.codec.name(role, uuid),
        }
    }

    /// What a snapshot's name says, if it is ours. One within a volume is ours if the volume is.
    fn read_snapshot(&self, snapshot: &Volume) -> Option<(Role, Uuid)> {
        if self.array.capabilities().snapshots == SnapshotScope::Within {
            self.codec.read(snapshot.snapshot_of.as_deref()?)?;
            return Codec::read_inner(&snapshot.name);
        }
        self.codec.read(&snapshot.name).map(|named| (named.role, named.uuid))
    }

    fn text(&self, document: &Document) -> Result<String> {
        let limit = self.array.capabilities().metadata.limit();
        document.write_as(limit, |text| self.array.text_size(text))
    }
}

impl<P: Product> Driver for Offload<P> {
    type Config = P::Config;
    const MANIFEST: Manifest = P::MANIFEST;

    async fn probe(config: RawConfig, cx: &Cx) -> Result<SrProbed> {
        P::probe(config, cx).await
    }

    async fn open(config: P::Config, sr: SrUuid, cx: &Cx) -> Result<Self> {
        let pool = P::pool(&config);
        let (mut array, connector) = P::open(config, cx).await?;
        array.assign(sr);
        let codec = Codec::new(array.capabilities().names, sr)?;
        let (recent, ahead) = (Recent::default(), Ahead::default());
        Ok(Self { sr, array, connector, codec, pool, recent, ahead })
    }

    async fn sr_create(&self, cx: &Cx, request: SrCreate) -> Result<SrCreated> {
        self.create_record(cx, request).await
    }

    async fn sr_attach(&self, cx: &Cx, _: SrAttach) -> Result<SrRecovered> {
        self.attach_sr(cx).await
    }

    async fn sr_detach(&self, cx: &Cx, _: SrDetach) -> Result<SrDone> {
        self.detach_sr(cx).await
    }

    async fn sr_destroy(&self, cx: &Cx, _: SrDestroy) -> Result<SrDone> {
        self.destroy_record(cx).await
    }

    async fn sr_scan(&self, cx: &Cx, _: SrScan) -> Result<SrScanned> {
        let vdis = self.visible(cx).await?;
        Ok(SrScanned { vdis: vdis.iter().map(Item::info).collect(), next: None })
    }

    async fn sr_recover(&self, cx: &Cx, _: SrRecover) -> Result<SrRecovered> {
        // Others may be at work: only what is too old to be theirs is settled.
        self.settle(cx, false).await
    }

    async fn sr_stat(&self, cx: &Cx, _: SrStat) -> Result<SrInfo> {
        self.stat(cx).await
    }

    async fn sr_update(&self, cx: &Cx, request: SrUpdate) -> Result<SrDone> {
        self.update_record(cx, request).await
    }

    async fn vdi_create(&self, cx: &Cx, request: VdiCreate) -> Result<VdiDone> {
        self.create(cx, request).await
    }

    async fn vdi_stat(&self, cx: &Cx, request: VdiStat) -> Result<VdiInfo> {
        Ok(self.known(cx, request.vdi).await?.info())
    }

    async fn vdi_update(&self, cx: &Cx, request: VdiUpdate) -> Result<VdiDone> {
        self.update(cx, request).await
    }

    async fn vdi_resize(&self, cx: &Cx, request: VdiResize) -> Result<VdiDone> {
        self.resize(cx, request).await
    }

    async fn vdi_snapshot(&self, cx: &Cx, request: VdiSnapshot) -> Result<VdisDone> {
        self.snapshot(cx, request).await
    }

    async fn vdi_snapshot_prepare(
        &self,
        cx: &Cx,
        request: VdiSnapshotPrepare,
    ) -> Result<VdiSnapshotPrepared> {
        self.prepare(cx, request).await
    }

    async fn vdi_qos(&self, cx: &Cx, request: VdiQos) -> Result<VdiDone> {
        self.qos(cx, request).await
    }

    async fn vdi_clone(&self, cx: &Cx, request: VdiClone) -> Result<VdiDone> {
        self.clone_vdi(cx, request).await
    }

    async fn vdi_revert(&self, cx: &Cx, request: VdiRevert) -> Result<VdiDone> {
        self.revert(cx, request).await
    }

    async fn vdi_destroy(&self, cx: &Cx, request: VdiDestroy) -> Result<VdiDestroyed> {
        let done = self.destroy(cx, request.vdi).await?;
        Self::forget_resizes(cx, request.vdi).await?;
        Ok(done)
    }

    async fn vdi_attach(&self, cx: &Cx, request: VdiAttach) -> Result<VdiAttached> {
        self.attach(cx, &request).await
    }

    async fn vdi_activate(&self, _: &Cx, _: VdiActivate) -> Result<VdiDatapathDone> {
        Ok(VdiDatapathDone::default())
    }

    async fn vdi_deactivate(&self, cx: &Cx, request: VdiDeactivate) -> Result<VdiDatapathDone> {
        self.written(cx, request.vdi).await?;
        Ok(VdiDatapathDone::default())
    }

    async fn vdi_detach(&self, cx: &Cx, request: VdiDetach) -> Result<VdiDatapathDone> {
        self.detach(cx, request.vdi).await?;
        Ok(VdiDatapathDone::default())
    }

    fn health(&self) -> SessionHealth {
        if self.array.is_denied() { SessionHealth::Poisoned } else { SessionHealth::Ok }
    }

    async fn close(&self, cx: &Cx) {
        self.array.close(cx).await;
    }
}

/// The error for a UUID that the SR does not have.
fn no_vdi(vdi: impl std::fmt::Display) -> Error {
    Error::not_found(format!("there is no VDI {vdi}")).legacy(144)
}

/// The error for a VDI of which it cannot be told what it is.
fn quarantined(vdi: impl std::fmt::Display, reason: &str) -> Error {
    Error::new(Kind::Corrupt, format!("VDI {vdi} is quarantined: {reason}"))
        .legacy(65)
        .hint("look at the volume on the array, or destroy the VDI")
}
