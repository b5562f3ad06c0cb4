//! SRs on arrays of six habits: their whole life, with every change going wrong in every way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

mod attach;
mod beside;
mod caught;
mod cut;
mod limits;
mod whole;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use array_kit::array::Array as _;
use array_kit::driver::Offload;
use array_kit::testing::{Habits, MemoryArray, MemoryProduct, Trouble};
use plugin_sdk::model::operation::Request;
use plugin_sdk::model::uuid::Uuid;
use plugin_sdk::prelude::*;
use plugin_sdk::testing::{Opened, TestHost};
use plugin_sdk::tokio;

type Driver = Offload<MemoryProduct>;

fn habits() -> [(&'static str, Habits); 6] {
    [
        ("equallogic", Habits::equallogic()),
        ("truenas", Habits::truenas()),
        ("powerstore", Habits::powerstore()),
        ("pure", Habits::pure()),
        ("ontap", Habits::ontap()),
        ("odd", Habits::odd()),
    ]
}

fn run<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

fn vdi(n: u32) -> VdiUuid {
    VdiUuid(Uuid::from_u128(0xabc0 + u128::from(n)))
}

fn op(n: u32) -> OperationId {
    OperationId::from_halves([77, u64::from(n)])
}

/// An SR on an array, and what it must hold.
struct Sr {
    host: TestHost,
    array: MemoryArray,
    target: String,
    uuid: SrUuid,
    driver: Opened<Driver>,
    /// Die and come back: with an attach of the SR first, or with the same request at once.
    attach_first: bool,
    repeated: u32,
}

impl Sr {
    async fn new(habits: Habits, attach_first: bool) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let target = format!("array{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let (host, array) = (TestHost::new(), MemoryArray::new(habits));
        MemoryProduct::register(&target, &array);
        let uuid = SrUuid(Uuid::from_u128(0x5e5e_0001));
        let driver = host.open::<Driver>(uuid, &[("target", &target)]).await?;
        Ok(Self { host, array, target, uuid, driver, attach_first, repeated: 0 })
    }

    /// Calls until it is done, as a host does that repeats a wish: after an error with the same
    /// id; after a death with another driver.
    async fn until_done<R: Request + Clone>(&mut self, id: u32, request: R) -> Result<R::Reply> {
        let mut last = None;
        for _ in 0..6 {
            let call = self
                .driver
                .call(request.clone())
                .operation_id(op(id))
                .budget(Duration::from_secs(20))
                .start();
            let outcome = tokio::select! {
                outcome = call => Some(outcome),
                () = self.array.died() => None,
            };
            match outcome {
                Some(Ok(reply)) => return Ok(reply),
                Some(Err(error)) => last = Some(error),
                None => {
                    let config = [("target", self.target.as_str())];
                    self.driver = self.host.open::<Driver>(self.uuid, &config).await?;
                    if self.attach_first {
                        // Before the SR is made there is nothing to attach.
                        let _ = self.driver.call(SrAttach {}).await;
                    }
                }
            }
            self.repeated += 1;
            // A host that comes back at once would only see what the array showed before.
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{} does not succeed: {last:?}", R::OPERATION)
    }

    async fn listed(&self) -> Result<BTreeMap<VdiUuid, VdiInfo>> {
        let page = self.driver.call(SrScan::default()).await?;
        assert_eq!(page.next, None);
        let count = page.vdis.len();
        let vdis: BTreeMap<_, _> = page.vdis.into_iter().map(|vdi| (vdi.uuid, vdi)).collect();
        assert_eq!(vdis.len(), count, "a VDI is listed twice");
        Ok(vdis)
    }

    /// Waits until the array's lists are not stale any more, then compares.
    async fn holds(&self, expected: &[u32], when: &str) -> Result<BTreeMap<VdiUuid, VdiInfo>> {
        let expected: BTreeSet<VdiUuid> = expected.iter().map(|n| vdi(*n)).collect();
        let end = std::time::Instant::now() + Duration::from_secs(5);
        loop {
            let listed = self.listed().await?;
            if listed.keys().copied().collect::<BTreeSet<_>>() == expected {
                for vdi in listed.values() {
                    assert_eq!(vdi.health, Health::Ok, "{when}: {vdi:?}");
                }
                return Ok(listed);
            }
            assert!(
                std::time::Instant::now() < end,
                "{when}: {:#?}\n{:#?}",
                listed.values().map(|v| (v.uuid, &v.name)).collect::<Vec<_>>(),
                self.array.inventory()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn create(n: u32, size: u64) -> VdiCreate {
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

fn snapshot(of: u32, n: u32) -> VdiSnapshot {
    let spec = SnapshotSpec {
        vdi: vdi(of),
        uuid: vdi(n),
        name: format!("snapshot {n}"),
        description: String::new(),
    };
    VdiSnapshot { snapshots: vec![spec], time: 1_700_000_000 }
}

fn clone(of: u32, n: u32) -> VdiClone {
    let name = format!("clone {n}");
    VdiClone { vdi: vdi(of), uuid: vdi(n), name, description: String::new() }
}

/// The volume's name on the array, read off the attached object.
fn volume_name(sr: &Sr, n: u32) -> String {
    let codec = array_kit::names::Codec::new(names(sr), sr.uuid).unwrap();
    codec.name(array_kit::names::Role::Disk, vdi(n).0)
}

fn names(sr: &Sr) -> array_kit::names::NameRule {
    sr.array.capabilities().names
}

const MIB: u64 = 1 << 20;
