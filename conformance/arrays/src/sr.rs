//! An SR on a simulated array, and a host that repeats what it wants.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use array_kit::driver::Offload;
use array_sim::core::{Asked, Effect, Fault};
use plugin_sdk::model::operation::Request;
use plugin_sdk::prelude::*;
use plugin_sdk::testing::{Opened, TestHost};

use crate::host::{Tested, forget, register};
use crate::vendor::{Simulated, Vendor, runtime};
use crate::wishes::{SR, vdi};

/// The driver of a [`Vendor`] under test.
pub type Driver<V, const PATIENT: bool> = Offload<Tested<V, PATIENT>>;

/// The calls that change something, of each operation in its turn.
pub type Learned = Vec<Vec<String>>;

/// What shall happen to the first call of each kind in each operation.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// What.
    pub effect: Effect,
    /// Whether the array restarts when it has happened for the first time in an operation.
    pub restarts: bool,
    /// To whom.
    pub learned: Learned,
}

/// An SR, and who wants something of it.
pub struct Sr<V: Vendor, const PATIENT: bool = false> {
    /// The array.
    pub simulated: Simulated,
    /// Where it keeps its state.
    pub folder: tempfile::TempDir,
    /// The host.
    pub host: TestHost,
    /// The driver, opened.
    pub driver: Opened<Driver<V, PATIENT>>,
    /// How often an operation had to be asked for again.
    pub repeated: u32,
    /// Calls that went wrong.
    pub befallen: usize,
    /// Calls that should have gone wrong, and were never sent.
    pub spared: Vec<String>,
    /// Calls that change something, by operation.
    pub learned: Learned,
    /// Requests of the last operation.
    pub asked: Vec<Asked>,
    trouble: Option<Trouble>,
}

impl<V: Vendor, const PATIENT: bool> Drop for Sr<V, PATIENT> {
    fn drop(&mut self) {
        forget(&self.simulated);
    }
}

/// Starts a vendor's array in a folder of its own.
pub fn start<V: Vendor>() -> (tempfile::TempDir, Simulated) {
    let folder = tempfile::tempdir().unwrap();
    let simulated = runtime().block_on(V::start(folder.path()));
    (folder, simulated)
}

/// Opens the driver with a device configuration.
pub async fn open<V: Vendor, const PATIENT: bool>(
    host: &TestHost,
    config: &[(&'static str, String)],
) -> Result<Opened<Driver<V, PATIENT>>> {
    let pairs: Vec<(&str, &str)> =
        config.iter().map(|(key, value)| (*key, value.as_str())).collect();
    host.open::<Driver<V, PATIENT>>(SR, &pairs).await
}

impl<V: Vendor, const PATIENT: bool> Sr<V, PATIENT> {
    /// A new array with the driver on it. Nothing is asked of the driver yet.
    pub async fn new() -> Result<Self> {
        let (folder, simulated) = start::<V>();
        Self::on(folder, simulated, &[]).await
    }

    /// The driver on an array that runs, with more keys in its device configuration or others.
    pub async fn on(
        folder: tempfile::TempDir,
        simulated: Simulated,
        more: &[(&'static str, String)],
    ) -> Result<Self> {
        register(&simulated);
        let mut config = simulated.config.clone();
        config.retain(|(key, _)| more.iter().all(|(other, _)| key != other));
        config.extend_from_slice(more);
        let host = TestHost::new();
        let driver = open::<V, PATIENT>(&host, &config).await?;
        simulated.array.requests().clear();
        Ok(Self {
            simulated,
            folder,
            host,
            driver,
            repeated: 0,
            befallen: 0,
            spared: Vec::new(),
            learned: Vec::new(),
            asked: Vec::new(),
            trouble: None,
        })
    }

    /// From now on each operation meets that trouble.
    pub fn meets(&mut self, trouble: Trouble) {
        self.trouble = Some(trouble);
    }

    /// Calls until it is done, as a host does that repeats a wish with the same operation id.
    pub async fn until_done<R: Request + Clone>(&mut self, request: R) -> Result<R::Reply> {
        let array = self.simulated.array.clone();
        let number = self.learned.len();
        array.requests().clear();
        array.faults().clear();
        let trouble = self.trouble.as_ref();
        let restarts = trouble.is_some_and(|trouble| trouble.restarts);
        let learned = trouble.and_then(|trouble| trouble.learned.get(number));
        for call in learned.into_iter().flatten() {
            let effect = trouble.map(|trouble| trouble.effect.clone()).unwrap();
            array.faults().add(Fault { call: call.clone(), after: 0, times: 1, effect });
        }
        let id = OperationId::from_halves([77, number as u64]);
        let mut last = None;
        for _ in 0..12 {
            let call = self.driver.call(request.clone()).operation_id(id);
            let running = call.budget(Duration::from_secs(60));
            let done = if restarts {
                let simulated = self.simulated.clone();
                // The simulator's own threads see to it, while the driver still asks.
                let watch = runtime().spawn(async move {
                    let hit = |asked: &Asked| asked.fault.is_some();
                    while !simulated.array.requests().all().iter().any(hit) {
                        plugin_sdk::tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    simulated.restart();
                });
                let done = running.await;
                // It has happened, or there was nothing to happen to.
                watch.abort();
                done
            } else {
                running.await
            };
            match done {
                Ok(reply) => {
                    self.asked = array.requests().all();
                    let wrong = self.asked.iter().filter(|asked| asked.fault.is_some()).count();
                    self.befallen += wrong;
                    let left = array.faults().left();
                    self.spared.extend(left.iter().map(|f| format!("{} {}", R::OPERATION, f.call)));
                    array.faults().clear();
                    let mut calls: Vec<String> = Vec::new();
                    for asked in self.asked.iter().filter(|asked| V::FACTS.changes(asked)) {
                        if !calls.contains(&asked.call) {
                            calls.push(asked.call.clone());
                        }
                    }
                    self.learned.push(calls);
                    return Ok(reply);
                }
                Err(error) => last = Some(error),
            }
            self.repeated += 1;
        }
        panic!("{} does not succeed: {last:?}", R::OPERATION)
    }

    /// All VDIs.
    pub async fn listed(&self) -> Result<BTreeMap<VdiUuid, VdiInfo>> {
        let page = self.driver.call(SrScan::default()).await?;
        let count = page.vdis.len();
        let vdis: BTreeMap<_, _> = page.vdis.into_iter().map(|vdi| (vdi.uuid, vdi)).collect();
        assert_eq!(vdis.len(), count, "a VDI is listed twice");
        Ok(vdis)
    }

    /// That there are these VDIs, and all of them well.
    pub async fn holds(&self, expected: &[u32], when: &str) -> Result<BTreeMap<VdiUuid, VdiInfo>> {
        let expected: BTreeSet<VdiUuid> = expected.iter().map(|n| vdi(*n)).collect();
        let listed = self.listed().await?;
        let found: BTreeSet<VdiUuid> = listed.keys().copied().collect();
        assert_eq!(found, expected, "{when}: {:#}", self.simulated.objects());
        for vdi in listed.values() {
            assert_eq!(vdi.health, Health::Ok, "{when}: {vdi:?}");
        }
        Ok(listed)
    }

    /// The key of a VDI's volume.
    pub fn volume(&self, n: u32) -> String {
        V::volume(&self.simulated.array.current(), SR, vdi(n))
    }

    /// What a guest wrote is there.
    pub fn write(&self, n: u32, content: u8) {
        self.simulated.array.write(&self.volume(n), 1 << 20, &vec![content; 64 << 10]).unwrap();
    }

    /// What a guest finds there.
    pub fn content(&self, n: u32) -> u8 {
        let bytes = self.simulated.array.read(&self.volume(n), 1 << 20, 64 << 10).unwrap();
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{n} is mixed");
        bytes[0]
    }
}
