//! A simulated array, and the driver on it with a host that reaches no LUN but looks whether it
//! might.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use array_kit::array::Initiator;
use array_kit::driver::{Connector, Disconnected, Lun, Offload, Product};
use array_kit::http::{Client, Limits, Request, Trust, basic};
use array_kit::ledger::Settle;
use array_kit::recorder::Recorder;
use array_sim::core::{Array, Effect, Fault, Options, Vendor as _};
use array_sim::truenas::TrueNas as Simulated;
use array_sim::{Plan, Simulator};
use plugin_sdk::model::operation::Request as Operation;
use plugin_sdk::model::uuid::Uuid;
use plugin_sdk::prelude::*;
use plugin_sdk::testing::{Opened, TestHost};
use plugin_sdk::tokio::runtime::Builder;
use serde_json::{Value, json};
use sm_driver_truenas::{Config, TrueNas, TrueNasProduct};

pub(crate) const IQN: &str = "iqn.1993-08.org.debian:01:222";
pub(crate) const POOL: &str = "tank/vms";
pub(crate) const MIB: u64 = 1 << 20;

/// All calls that change something.
pub(crate) const CHANGES: [&str; 16] = [
    "pool.dataset.create",
    "pool.dataset.update",
    "pool.dataset.delete",
    "pool.dataset.promote",
    "zfs.snapshot.create",
    "zfs.snapshot.clone",
    "zfs.snapshot.update",
    "zfs.snapshot.delete",
    "zfs.snapshot.rollback",
    "iscsi.initiator.create",
    "iscsi.initiator.delete",
    "iscsi.target.create",
    "iscsi.target.delete",
    "iscsi.extent.create",
    "iscsi.extent.delete",
    "iscsi.targetextent.create",
];

/// The driver, whose host is [`Watcher`].
pub(crate) struct Tested;

/// Which array is behind an address.
static ARRAYS: Mutex<BTreeMap<String, Array>> = Mutex::new(BTreeMap::new());

impl Product for Tested {
    type Config = Config;
    type Array = TrueNas;
    type Connector = Watcher;

    const MANIFEST: Manifest = array_kit::array_manifest! { name: "truenas", title: "tested" };

    const SETTLE: Settle =
        Settle { stale: Duration::from_millis(1), pause: Duration::from_millis(1), tries: 4 };

    fn pool(config: &Config) -> Option<String> {
        TrueNasProduct::pool(config)
    }

    async fn open(config: Config, cx: &Cx) -> Result<(TrueNas, Watcher)> {
        let target = cx.device_config().get("target").unwrap().clone();
        let array = ARRAYS.lock().unwrap()[&target].clone();
        Ok((TrueNasProduct::array(config, cx).await?, Watcher(array)))
    }
}

/// Looks whether the array would serve the LUN, to this host and nobody else.
pub(crate) struct Watcher(Array);

impl Connector for Watcher {
    async fn initiator(&self, _: &Cx) -> Result<Initiator> {
        Ok(Initiator { host: "host1".to_owned(), iqn: IQN.to_owned(), chap: None })
    }

    async fn connect(&self, _: &Cx, lun: &Lun<'_>, _: bool) -> Result<Utf8PathBuf> {
        let mapping = lun.mapping;
        assert!(mapping.scsi_id.starts_with("36589cfc000000"), "{mapping:?}");
        assert_eq!(mapping.scsi_id.len(), 33);
        let exports = Simulated.exports(&self.0.current());
        let served = exports
            .iter()
            .find(|export| export.target == mapping.targets[0].iqn && export.lun == mapping.lun);
        let served = served.unwrap_or_else(|| panic!("{mapping:?} is not in {exports:?}"));
        assert!(served.who.lets(IQN) && !served.who.lets("iqn.1993-08.org.debian:01:333"));
        let identity = format!("{:?}", served.identity);
        assert!(identity.contains(&mapping.scsi_id[1..]), "{identity} is not {mapping:?}");
        Ok(format!("/dev/disk/{}", mapping.scsi_id).into())
    }

    async fn disconnect(&self, _: &Cx, _: &Lun<'_>) -> Result<Disconnected> {
        Ok(Disconnected::default())
    }
}

/// An SR on a simulated array.
pub(crate) struct World {
    pub(crate) simulator: Simulator,
    pub(crate) driver: Opened<Offload<Tested>>,
    host: TestHost,
    pub(crate) sr: SrUuid,
    /// What befalls the first call of each kind in each operation.
    pub(crate) effect: Option<Effect>,
    pub(crate) repeated: u32,
    /// Calls that went wrong.
    pub(crate) befallen: usize,
    /// Requests of the last operation.
    pub(crate) asked: Vec<String>,
}

impl World {
    pub(crate) async fn new(folder: &Path, api: &str, effect: Option<Effect>) -> Self {
        let mut options =
            Options { pools: vec![("tank".to_owned(), 1 << 40)], ..Options::default() };
        if api == "rest" {
            options.settings.vendor.insert("version".to_owned(), "22.12.3".into());
        }
        let plan = Plan { options, tls: true, ..Plan::default() };
        let simulator = Simulator::start(Arc::new(Simulated), folder, &plan).await.unwrap();
        ARRAYS.lock().unwrap().insert(simulator.url(), simulator.array.clone());
        let (host, sr) = (TestHost::new(), SrUuid(Uuid::from_u128(0x5e5e_0001)));
        let (url, pin) = (simulator.url(), simulator.certificate().unwrap().fingerprint().unwrap());
        let keys = [
            ("target", url.as_str()),
            ("pool", POOL),
            ("username", array_sim::truenas::USER),
            ("password", array_sim::truenas::PASSWORD),
            ("fingerprint", pin.as_str()),
        ];
        foreign(&simulator).await;
        let driver = host.open::<Offload<Tested>>(sr, &keys).await.unwrap();
        let asked = Vec::new();
        Self { simulator, driver, host, sr, effect, repeated: 0, befallen: 0, asked }
    }

    /// All objects of the array.
    pub(crate) fn objects(&self) -> Value {
        let mut objects = self.simulator.array.inventory(&[])["objects"].clone();
        // Numbers are never given twice.
        if let Some(objects) = objects.as_object_mut() {
            objects.remove("counter");
        }
        objects
    }

    /// What is left in the host's state.
    pub(crate) fn state(&self) -> Vec<String> {
        self.host.kv().into_keys().collect()
    }

    /// Calls until it is done, as a host does that repeats a wish, with each call that changes
    /// something going wrong once.
    pub(crate) async fn until_done<R: Operation + Clone>(
        &mut self,
        id: u64,
        request: R,
    ) -> R::Reply {
        let faults = self.simulator.array.faults();
        faults.clear();
        if let Some(effect) = &self.effect {
            for call in CHANGES.into_iter().chain(["iscsi.targetextent.delete"]) {
                let (call, effect) = (call.to_owned(), effect.clone());
                faults.add(Fault { call, after: 0, times: 1, effect });
            }
        }
        self.simulator.array.requests().clear();
        let mut last = None;
        for _ in 0..8 {
            let call =
                self.driver.call(request.clone()).operation_id(OperationId::from_halves([7, id]));
            match call.await {
                Ok(reply) => {
                    let asked = self.simulator.array.requests().all();
                    self.befallen += asked.iter().filter(|one| one.fault.is_some()).count();
                    self.asked = asked.into_iter().map(|one| one.call).collect();
                    return reply;
                }
                Err(error) => last = Some(error),
            }
            self.repeated += 1;
        }
        panic!("{} does not succeed: {last:?}", R::OPERATION)
    }

    /// Where a VDI's volume lies.
    pub(crate) fn path(&self, n: u32) -> String {
        use array_kit::names::{Codec, NameRule, Role};
        let codec = Codec::new(NameRule::new(63), self.sr).unwrap();
        let record = codec.name(Role::Record, self.sr.0);
        format!("{POOL}/{record}/{}", codec.name(Role::Disk, vdi(n).0))
    }

    pub(crate) fn write(&self, n: u32, byte: u8) {
        self.simulator.array.write(&self.path(n), 4096, &[byte; 8192]).unwrap();
    }

    pub(crate) fn byte(&self, n: u32) -> u8 {
        let bytes = self.simulator.array.read(&self.path(n), 4096, 8192).unwrap();
        assert!(bytes.iter().all(|byte| *byte == bytes[0]));
        bytes[0]
    }
}

pub(crate) fn vdi(n: u32) -> VdiUuid {
    VdiUuid(Uuid::from_u128(0xabc0 + u128::from(n)))
}

/// What somebody else has on the array, and the dataset for SRs.
async fn foreign(simulator: &Simulator) {
    let pin = simulator.certificate().unwrap().fingerprint().unwrap();
    let (limits, recorder) = (Limits::default(), Recorder::default());
    let client = Client::new(&simulator.url(), &Trust::Fingerprint(pin), limits, recorder).unwrap();
    let password = Secret::from(array_sim::truenas::PASSWORD);
    let authorization = basic(array_sim::truenas::USER, &password);
    let volume = format!("{POOL}/theirs");
    let objects = [
        ("pool/dataset", json!({ "name": POOL, "type": "FILESYSTEM" })),
        (
            "pool/dataset",
            json!({ "name": volume, "type": "VOLUME", "volsize": MIB, "sparse": true,
                "volblocksize": "16K" }),
        ),
        ("zfs/snapshot", json!({ "dataset": volume, "name": "theirs" })),
        ("iscsi/initiator", json!({ "initiators": ["iqn.2000-01.com.example:them"] })),
        (
            "iscsi/target",
            json!({ "name": "theirs", "alias": null, "mode": "ISCSI", "groups": [
                { "portal": 1, "initiator": 1, "authmethod": "NONE", "auth": null }] }),
        ),
        (
            "iscsi/extent",
            json!({ "name": "theirs", "type": "DISK", "disk": format!("zvol/{volume}") }),
        ),
        ("iscsi/targetextent", json!({ "target": 1, "extent": 1, "lunid": 0 })),
    ];
    let work = |cx: Cx| async move {
        for (path, body) in objects {
            let request = Request::post("foreign", &format!("/api/v2.0/{path}")).json(&body);
            let reply =
                client.send(&cx, &request.header("authorization", authorization.clone())).await?;
            let said = String::from_utf8_lossy(reply.body()).into_owned();
            assert!(reply.is_success(), "{path}: {said}");
        }
        Ok(())
    };
    TestHost::new().with_cx(Duration::from_secs(30), work).await.unwrap();
}

/// Runs a test with its folder and runtime.
pub(crate) fn with_folder<F: Future<Output = ()>>(work: impl FnOnce(std::path::PathBuf) -> F) {
    let folder = tempfile::tempdir().unwrap();
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap().block_on(work(folder.path().to_owned()));
}
