//! A simulated array, and an SR on it through the core.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use array_sim::core::{Array, Asked, Options};
use array_sim::equallogic::{Group, plan};
use array_sim::http::Web;
use array_sim::{Plan, Simulator, ontap, powerstore, purestorage, truenas};
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
    PowerStore,
    PureStorage,
    Ontap,
}

impl Vendor {
    pub(crate) const ALL: [Self; 5] =
        [Self::TrueNas, Self::EqualLogic, Self::PowerStore, Self::PureStorage, Self::Ontap];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::TrueNas => "truenas",
            Self::EqualLogic => "equallogic",
            Self::PowerStore => "powerstore",
            Self::PureStorage => "purestorage",
            Self::Ontap => "ontap",
        }
    }

    pub(crate) fn pool(self) -> &'static str {
        match self {
            Self::TrueNas => "tank",
            Self::EqualLogic => "default",
            Self::PowerStore => "pool",
            Self::PureStorage => "flash1",
            Self::Ontap => "vol1",
        }
    }

    /// Requests that an operation may take: its row in the table of the driver's document.
    pub(crate) fn documented(self, operation: &str) -> Option<f64> {
        let document = match self {
            Self::TrueNas => include_str!("../../../docs/drivers/truenas.md"),
            Self::EqualLogic => include_str!("../../../docs/drivers/equallogic.md"),
            Self::PowerStore => include_str!("../../../docs/drivers/powerstore.md"),
            Self::PureStorage => include_str!("../../../docs/drivers/purestorage.md"),
            Self::Ontap => include_str!("../../../docs/drivers/ontap.md"),
        };
        let start = format!("| {operation} | ");
        let row = document.lines().find_map(|line| line.strip_prefix(&start))?;
        row.split_once(' ')?.0.parse().ok()
    }
}

/// What serves.
enum Running {
    Web(Simulator),
    Group(Group),
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
            Running::Web(simulator) => simulator.array.clone(),
            Running::Group(group) => group.array.clone(),
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
        let of_login = ["settings", "other", "group.show", "auth.", "session", "system.", "login"];
        all.retain(|one| !of_login.iter().any(|start| one.call.starts_with(start)));
        all
    }

    /// Ends the driver.
    pub(crate) async fn close(self) {
        self.manager.close().await;
    }
}

type Config = Vec<(String, String)>;

async fn start(vendor: Vendor, folder: &Path) -> Result<(Running, Config)> {
    let place = folder.join("array");
    let key = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let web = |web: Arc<dyn Web>| {
        let options = Options {
            page: 64 << 10,
            pools: vec![(vendor.pool().to_owned(), POOL)],
            ..Options::default()
        };
        let plan = Plan { options, tls: true, ..Plan::default() };
        let place = &place;
        async move { Simulator::start(web, place, &plan).await }
    };
    let (running, mut config) = match vendor {
        Vendor::EqualLogic => {
            let group = Group::start(&place, &plan(POOL)).await?;
            let line = &group.command_line;
            let config = vec![
                key("target", "127.0.0.1"),
                key("port", &line.address.port().to_string()),
                key("username", "grpadmin"),
                key("password", "grpadmin"),
                key("storagepool", vendor.pool()),
                key("host-key-fingerprint", &line.fingerprint),
                key("session-directory", &folder.join("locks").display().to_string()),
            ];
            (Running::Group(group), config)
        }
        Vendor::TrueNas => {
            let user = [key("username", truenas::USER), key("password", truenas::PASSWORD)];
            let own = [key("pool", vendor.pool())];
            (Running::Web(web(Arc::new(truenas::TrueNas)).await?), [&user[..], &own].concat())
        }
        Vendor::PowerStore => {
            let user = [key("username", powerstore::USER), key("password", powerstore::PASSWORD)];
            (Running::Web(web(Arc::new(powerstore::PowerStore)).await?), user.to_vec())
        }
        Vendor::PureStorage => {
            let token = vec![key("api-token", purestorage::API_TOKEN)];
            (Running::Web(web(Arc::new(purestorage::PureStorage)).await?), token)
        }
        Vendor::Ontap => {
            let user = [key("username", ontap::USER), key("password", ontap::PASSWORD)];
            let own = [key("svm", ontap::SVM), key("volume", vendor.pool())];
            (Running::Web(web(Arc::new(ontap::Ontap)).await?), [&user[..], &own].concat())
        }
    };
    if let Running::Web(simulator) = &running {
        let certificate = simulator.certificate().ok_or("the array has no certificate")?;
        config.push(key("target", &simulator.url()));
        config.push(key("fingerprint", &certificate.fingerprint()?));
    }
    config.push(key("initiator", "iqn.2004-01.example:bench"));
    Ok((running, config))
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
