//! A simulated array, and an SR on it through the core.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use array_sim::core::{Array, Asked, Options};
use array_sim::equallogic::{Group, plan};
use array_sim::truenas::{PASSWORD, TrueNas, USER};
use array_sim::{Plan, Simulator};
use camino::Utf8Path;
use sm_core::model::Bytes;
use sm_core::model::vdi::VdiInfo;
use sm_core::{NewSnapshot, NewSr, NewVdi, Op, Placement, Sr, StorageManager};

use crate::{Result, Setting};

/// Bytes of the array's pool: more than any part asks for.
const POOL: u64 = 1 << 50;

/// Whose array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vendor {
    TrueNas,
    EqualLogic,
}

impl Vendor {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::TrueNas => "truenas",
            Self::EqualLogic => "equallogic",
        }
    }

    pub(crate) fn pool(self) -> &'static str {
        match self {
            Self::TrueNas => "tank",
            Self::EqualLogic => "default",
        }
    }
}

/// What serves.
enum Running {
    TrueNas(Simulator),
    EqualLogic(Group),
}

/// A simulated array with an SR.
pub(crate) struct World {
    pub(crate) sr: Sr,
    pub(crate) array: Array,
    pub(crate) manager: StorageManager,
    _running: Running,
}

impl World {
    /// A new array and a new SR, attached.
    pub(crate) async fn new(setting: &Setting, vendor: Vendor, part: &str) -> Result<Self> {
        let folder = setting.work.join(format!("{part}-{}", vendor.name()));
        let (running, config) = start(vendor, &folder).await?;
        let array = match &running {
            Running::TrueNas(simulator) => simulator.array.clone(),
            Running::EqualLogic(group) => group.array.clone(),
        };
        let driver = format!("libsm_driver_{}.so", vendor.name());
        let manager = StorageManager::builder(utf8(&folder.join("state"))?)
            .driver(utf8(&setting.product.join(driver))?)
            .placement(Placement::InProcess)
            .open()
            .await?;
        let device_config: BTreeMap<String, String> = config.into_iter().collect();
        let new = NewSr { driver: vendor.name().into(), device_config, ..NewSr::default() };
        let record = manager.sr_create(&Op::new(), new).await?;
        let sr = manager.sr(&record.uuid.to_string())?;
        Ok(Self { sr, array, manager, _running: running })
    }

    /// Adds milliseconds to each request.
    pub(crate) fn latency(&self, milliseconds: u64) -> Result<()> {
        Ok(self.array.set(|settings| settings.latency = milliseconds)?)
    }

    pub(crate) async fn create(&self, name: &str, bytes: u64) -> Result<VdiInfo> {
        let new = NewVdi { name: name.to_owned(), virtual_size: Bytes(bytes), ..NewVdi::default() };
        Ok(self.sr.vdi_create(&Op::new(), new).await?.vdi)
    }

    pub(crate) async fn snapshot(&self, of: &VdiInfo) -> Result<VdiInfo> {
        let spec =
            NewSnapshot { vdi: of.uuid, name: "snapshot".to_owned(), description: String::new() };
        let done = self.sr.vdi_snapshot(&Op::new(), &[spec]).await?;
        done.vdis.into_iter().next().ok_or_else(|| "no snapshot is answered".into())
    }

    /// The key of a disk's volume at the array.
    pub(crate) fn volume(&self, of: &VdiInfo) -> Result<String> {
        // Names have the VDI's UUID in a form of their own: it is the one volume of this size.
        let view = self.array.current();
        let all = view.all::<array_sim::core::Volume>();
        let found = all.into_iter().find(|(_, volume)| volume.size == of.virtual_size.0);
        Ok(found.ok_or("the array has no volume of this size")?.0)
    }

    /// What was asked since the last look, without logins and what belongs to them.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        let mut all = self.array.requests().all();
        self.array.requests().clear();
        let of_login = ["settings", "other", "group.show", "auth.", "session", "system."];
        all.retain(|one| !of_login.iter().any(|start| one.call.starts_with(start)));
        all
    }

    /// Ends the driver.
    pub(crate) async fn close(self) {
        self.manager.close().await;
    }
}

async fn start(vendor: Vendor, folder: &Path) -> Result<(Running, Vec<(String, String)>)> {
    let place = folder.join("array");
    let own = |pairs: &[(&str, String)]| {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
    };
    let initiator = ("initiator", "iqn.2004-01.example:bench".to_owned());
    match vendor {
        Vendor::TrueNas => {
            let options = Options {
                page: 64 << 10,
                pools: vec![(vendor.pool().to_owned(), POOL)],
                ..Options::default()
            };
            let plan = Plan { options, tls: true, ..Plan::default() };
            let simulator = Simulator::start(Arc::new(TrueNas), &place, &plan).await?;
            let certificate = simulator.certificate().ok_or("the array has no certificate")?;
            let config = own(&[
                ("target", simulator.url()),
                ("pool", vendor.pool().to_owned()),
                ("username", USER.to_owned()),
                ("password", PASSWORD.to_owned()),
                ("fingerprint", certificate.fingerprint()?),
                initiator,
            ]);
            Ok((Running::TrueNas(simulator), config))
        }
        Vendor::EqualLogic => {
            let group = Group::start(&place, &plan(POOL)).await?;
            let line = &group.command_line;
            let config = own(&[
                ("target", "127.0.0.1".to_owned()),
                ("port", line.address.port().to_string()),
                ("username", "grpadmin".to_owned()),
                ("password", "grpadmin".to_owned()),
                ("storagepool", vendor.pool().to_owned()),
                ("host-key-fingerprint", line.fingerprint.clone()),
                ("session-directory", folder.join("locks").display().to_string()),
                initiator,
            ]);
            Ok((Running::EqualLogic(group), config))
        }
    }
}

fn utf8(path: &Path) -> Result<&Utf8Path> {
    Ok(Utf8Path::from_path(path).ok_or("a path is not UTF-8")?)
}

/// Milliseconds, to calculate with.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// A count, to calculate with.
pub(crate) fn number(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from)
}
