//! A group, an SR on it, and a host that repeats what it wants.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use array_kit::array::Initiator;
use array_kit::driver::{Connector, Disconnected, Lun, Offload, Product};
use array_kit::ledger::Settle;
use array_kit::names::{Codec, Role};
use array_sim::core::{Effect, Fault};
use array_sim::equallogic::{Group, plan};
use plugin_sdk::model::operation::Request;
use plugin_sdk::model::uuid::Uuid;
use plugin_sdk::prelude::*;
pub(crate) use plugin_sdk::testing::run;
use plugin_sdk::testing::{Opened, TestHost};
use plugin_sdk::tokio;
use sm_driver_equallogic::PsGroup;
use sm_driver_equallogic::array::{EqualLogic, NAMES};
use sm_driver_equallogic::config::Config;

/// The password of the simulator's account, and one that must not be seen anywhere.
pub(crate) const PASSWORD: &str = "canary-of-the-password";
/// The same for CHAP.
pub(crate) const CHAP: &str = "canary-of-chap-1";

pub(crate) const MIB: u64 = 1 << 20;

/// The driver, with a host that needs no iSCSI.
pub(crate) struct Tested;

pub(crate) type Driver = Offload<Tested>;

/// A host that is connected as soon as it is mapped.
pub(crate) struct NoDisk {
    iqn: String,
}

impl Connector for NoDisk {
    async fn initiator(&self, _: &Cx) -> Result<Initiator> {
        Ok(Initiator { host: "test".into(), iqn: self.iqn.clone(), chap: None })
    }

    async fn connect(&self, _: &Cx, lun: &Lun<'_>, _: bool) -> Result<Utf8PathBuf> {
        Ok(format!("/dev/disk/by-id/scsi-{}", lun.mapping.scsi_id).into())
    }

    async fn disconnect(&self, _: &Cx, _: &Lun<'_>) -> Result<Disconnected> {
        Ok(Disconnected::default())
    }
}

impl Product for Tested {
    type Config = Config;
    type Array = EqualLogic;
    type Connector = NoDisk;

    /// With attach, which the driver itself does not have yet.
    const MANIFEST: Manifest = array_kit::array_manifest! {
        name: "equallogic",
        title: "EqualLogic, for tests",
        workers: 2,
    };
    const SETTLE: Settle =
        Settle { stale: Duration::from_millis(100), pause: Duration::from_millis(10), tries: 4 };

    fn pool(config: &Config) -> Option<String> {
        PsGroup::pool(config)
    }

    async fn open(config: Config, cx: &Cx) -> Result<(EqualLogic, NoDisk)> {
        let iqn = config.initiator.clone().unwrap_or_else(|| "iqn.2004-01.example:h1".into());
        let (array, _) = PsGroup::open(config, cx).await?;
        Ok((array, NoDisk { iqn }))
    }

    async fn probe(config: RawConfig, cx: &Cx) -> Result<SrProbed> {
        PsGroup::probe(config, cx).await
    }
}

/// The simulator's threads.
pub(crate) fn simulator() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    })
}

pub(crate) fn vdi(n: u32) -> VdiUuid {
    VdiUuid(Uuid::from_u128(0xabc0 + u128::from(n)))
}

fn op(n: u32) -> OperationId {
    OperationId::from_halves([77, u64::from(n)])
}

/// A group with somebody else's volumes on it.
pub(crate) struct Fixture {
    pub(crate) group: Arc<Group>,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) uuid: SrUuid,
    pub(crate) extra: Vec<(&'static str, String)>,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(&[], 1 << 40)
    }

    /// A group with habits, and a pool of so many bytes.
    pub(crate) fn with(habits: &[(&str, serde_json::Value)], pool: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let group = simulator().block_on(Group::start(folder.path(), &plan(pool))).unwrap();
        let group = Arc::new(group);
        group
            .array
            .set(|settings| {
                let accounts = serde_json::json!({ "vms": PASSWORD });
                settings.vendor.insert("accounts".into(), accounts);
                settings.vendor.insert("chap".into(), serde_json::json!({ "vms": CHAP }));
                for (habit, value) in habits {
                    settings.vendor.insert((*habit).into(), value.clone());
                }
            })
            .unwrap();
        group
            .array
            .change(|change| {
                for name in ["payroll", "smv-by-hand"] {
                    let mut new = array_sim::core::NewVolume::thin("default", 30 * MIB);
                    new.attributes.insert("description".into(), "not ours".into());
                    change.create_volume(name, new)?;
                    change.create_snapshot(
                        name,
                        &format!("{name}/nightly"),
                        serde_json::Map::new(),
                    )?;
                }
                Ok::<_, array_sim::core::Trouble>(())
            })
            .unwrap();
        let uuid = SrUuid(Uuid::from_u128(0x5e5e_0001));
        Self { group, folder, uuid, extra: Vec::new() }
    }

    pub(crate) fn config(&self) -> Vec<(&'static str, String)> {
        let line = &self.group.command_line;
        let mut config = vec![
            ("target", "127.0.0.1".to_owned()),
            ("port", line.address.port().to_string()),
            ("username", "vms".to_owned()),
            ("password", PASSWORD.to_owned()),
            ("storagepool", "default".to_owned()),
            ("host-key-fingerprint", line.fingerprint.clone()),
            ("session-directory", self.folder.path().join("locks").to_str().unwrap().to_owned()),
        ];
        for (key, value) in &self.extra {
            config.retain(|(other, _)| other != key);
            config.push((*key, value.clone()));
        }
        config
    }

    pub(crate) async fn open(&self, host: &TestHost) -> Result<Opened<Driver>> {
        let config = self.config();
        let pairs: Vec<(&str, &str)> = config.iter().map(|(k, v)| (*k, v.as_str())).collect();
        host.open::<Driver>(self.uuid, &pairs).await
    }

    /// The name of a VDI's volume.
    pub(crate) fn name(&self, n: u32) -> String {
        Codec::new(NAMES, self.uuid).unwrap().name(Role::Disk, vdi(n).0)
    }

    pub(crate) fn fault(&self, call: &str, after: u64, effect: Effect) {
        self.group.array.faults().add(Fault { call: call.to_owned(), after, times: 1, effect });
    }

    /// What a guest wrote is there.
    pub(crate) fn write(&self, n: u32, content: u8) {
        let bytes = vec![content; 64 << 10];
        self.group.array.write(&self.name(n), 1 << 20, &bytes).unwrap();
    }

    pub(crate) fn content(&self, n: u32) -> u8 {
        self.group.array.read(&self.name(n), 1 << 20, 64 << 10).unwrap()[7]
    }

    /// How often each call came since the last look.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        let counts = self.group.array.requests().counts();
        self.group.array.requests().clear();
        counts.into_iter().filter(|(call, _)| call != "settings").collect()
    }
}

/// An SR, and who wants something of it.
pub(crate) struct Sr {
    pub(crate) fixture: Fixture,
    pub(crate) host: TestHost,
    pub(crate) driver: Opened<Driver>,
    pub(crate) repeated: u32,
}

impl Sr {
    pub(crate) async fn new(fixture: Fixture) -> Result<Self> {
        let host = TestHost::new();
        let driver = fixture.open(&host).await?;
        Ok(Self { fixture, host, driver, repeated: 0 })
    }

    /// Calls until it is done, as a host does that repeats a wish with the same id.
    pub(crate) async fn until_done<R: Request + Clone>(
        &mut self,
        id: u32,
        request: R,
    ) -> Result<R::Reply> {
        let mut last = None;
        for _ in 0..6 {
            let call = self.driver.call(request.clone()).operation_id(op(id));
            match call.budget(Duration::from_secs(30)).await {
                Ok(reply) => return Ok(reply),
                Err(error) => last = Some(error),
            }
            self.repeated += 1;
        }
        panic!("{} does not succeed: {last:?}", R::OPERATION)
    }

    pub(crate) async fn listed(&self) -> Result<BTreeMap<VdiUuid, VdiInfo>> {
        let page = self.driver.call(SrScan::default()).await?;
        let count = page.vdis.len();
        let vdis: BTreeMap<_, _> = page.vdis.into_iter().map(|vdi| (vdi.uuid, vdi)).collect();
        assert_eq!(vdis.len(), count, "a VDI is listed twice");
        Ok(vdis)
    }

    pub(crate) async fn holds(
        &self,
        expected: &[u32],
        when: &str,
    ) -> Result<BTreeMap<VdiUuid, VdiInfo>> {
        let expected: BTreeSet<VdiUuid> = expected.iter().map(|n| vdi(*n)).collect();
        let listed = self.listed().await?;
        let found: BTreeSet<VdiUuid> = listed.keys().copied().collect();
        assert_eq!(found, expected, "{when}: {:#?}", self.fixture.group.inventory());
        for vdi in listed.values() {
            assert_eq!(vdi.health, Health::Ok, "{when}: {vdi:?}");
        }
        Ok(listed)
    }
}

pub(crate) fn create(n: u32, size: u64) -> VdiCreate {
    VdiCreate {
        uuid: vdi(n),
        name: format!("disk {n}"),
        description: "for a test".into(),
        virtual_size: Bytes(size),
        format: None,
        vdi_type: VdiType::default(),
        sharable: false,
        keys: [("owner".to_owned(), "me".to_owned())].into(),
        incomplete: false,
    }
}

pub(crate) fn snapshot(of: u32, n: u32) -> VdiSnapshot {
    let spec = SnapshotSpec {
        vdi: vdi(of),
        uuid: vdi(n),
        name: format!("snapshot {n}"),
        description: String::new(),
    };
    VdiSnapshot { snapshots: vec![spec], time: 1_700_000_000 }
}

pub(crate) fn clone(of: u32, n: u32) -> VdiClone {
    let name = format!("clone {n}");
    VdiClone { vdi: vdi(of), uuid: vdi(n), name, description: String::new() }
}

/// Restarts the group as soon as a fault has befallen it.
pub(crate) struct Restarter {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Restarter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// See [`Restarter`].
pub(crate) fn restart_at_fault(group: &Arc<Group>) -> Restarter {
    let (stop, group) = (Arc::new(AtomicBool::new(false)), Arc::clone(group));
    let stopped = Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        while !stopped.load(Ordering::SeqCst) {
            if group.array.requests().all().iter().any(|asked| asked.fault.is_some()) {
                group.restart().unwrap();
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    Restarter { stop, thread: Some(thread) }
}
