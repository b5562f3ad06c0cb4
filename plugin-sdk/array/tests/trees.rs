//! Disks that hang on each other, on an array whose clones hang on snapshots: whatever order they are
//! destroyed in, what is left keeps its content, and in the end nothing is there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use array_kit::array::Array as _;
use array_kit::driver::Offload;
use array_kit::names::{Codec, Role};
use array_kit::testing::{Habits, MemoryArray, MemoryProduct, Trouble};
use plugin_sdk::model::operation::Request;
use plugin_sdk::model::uuid::Uuid;
use plugin_sdk::prelude::*;
use plugin_sdk::testing::{Opened, TestHost};
use plugin_sdk::tokio;

type Driver = Offload<MemoryProduct>;

const MIB: u64 = 1 << 20;

/// Who hangs on whom: the image is 1, and each pair is a clone and what it is made of. 8 is a snapshot
/// of the image, and 9 one of the clone 3.
const TREE: [(u32, u32); 8] = [(2, 1), (3, 1), (8, 1), (4, 1), (5, 8), (6, 3), (9, 3), (7, 9)];

fn vdi(n: u32) -> VdiUuid {
    VdiUuid(Uuid::from_u128(0xabc0 + u128::from(n)))
}

fn is_snapshot(n: u32) -> bool {
    n == 8 || n == 9
}

struct Sr {
    host: TestHost,
    array: MemoryArray,
    target: String,
    uuid: SrUuid,
    driver: Opened<Driver>,
    /// After a death: attach the SR, or only repeat the wish.
    attaches: bool,
    wishes: u64,
    /// What the array has while the SR is empty.
    empty: Vec<String>,
}

impl Sr {
    async fn new(attaches: bool) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let target = format!("tree{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let (host, array) = (TestHost::new(), MemoryArray::new(Habits::truenas()));
        MemoryProduct::register(&target, &array);
        let uuid = SrUuid(Uuid::from_u128(0x5e5e_0002));
        let driver = host.open::<Driver>(uuid, &[("target", &target)]).await?;
        let mut sr =
            Self { host, array, target, uuid, driver, attaches, wishes: 0, empty: Vec::new() };
        sr.until_done(SrCreate::default()).await?;
        sr.until_done(SrAttach {}).await?;
        sr.empty = sr.array.inventory();
        Ok(sr)
    }

    /// Calls until it is done. Whoever died is opened anew.
    async fn until_done<R: Request + Clone>(&mut self, request: R) -> Result<R::Reply> {
        self.wishes += 1;
        let id = OperationId::from_halves([78, self.wishes]);
        let mut last = None;
        for _ in 0..6 {
            let call = self.driver.call(request.clone()).operation_id(id);
            let outcome = tokio::select! {
                outcome = call.budget(Duration::from_secs(20)).start() => Some(outcome),
                () = self.array.died() => None,
            };
            match outcome {
                Some(Ok(reply)) => return Ok(reply),
                Some(Err(error)) => last = Some(error),
                None => {
                    self.open().await?;
                    if self.attaches {
                        self.driver.call(SrAttach {}).await?;
                    }
                }
            }
        }
        panic!("{} does not succeed: {last:?}", R::OPERATION)
    }

    async fn open(&mut self) -> Result<()> {
        let config = [("target", self.target.as_str())];
        self.driver = self.host.open::<Driver>(self.uuid, &config).await?;
        Ok(())
    }

    fn name(&self, n: u32) -> String {
        Codec::new(self.array.capabilities().names, self.uuid).unwrap().name(Role::Disk, vdi(n).0)
    }

    /// The tree, each disk with its own number as content.
    async fn grow(&mut self) -> Result<()> {
        let image = VdiCreate {
            uuid: vdi(1),
            name: "image".into(),
            description: String::new(),
            virtual_size: Bytes(64 * MIB),
            format: None,
            vdi_type: VdiType::default(),
            sharable: false,
            keys: [].into(),
            incomplete: false,
        };
        self.until_done(image).await?;
        self.array.write(&self.name(1), 1);
        for (n, of) in TREE {
            let name = format!("disk {n}");
            if is_snapshot(n) {
                let description = String::new();
                let spec = SnapshotSpec { vdi: vdi(of), uuid: vdi(n), name, description };
                self.until_done(VdiSnapshot { snapshots: vec![spec], time: 1 }).await?;
            } else {
                self.until_done(clone(of, n)).await?;
                self.array.write(&self.name(n), u64::from(n));
            }
        }
        Ok(())
    }

    /// Destroys all in this order.
    async fn fell(&mut self, order: &[u32], what: &str) -> Result<()> {
        for (at, n) in order.iter().enumerate() {
            self.until_done(VdiDestroy { vdi: vdi(*n) }).await?;
            let mut left = order[at + 1..].to_vec();
            left.sort_unstable();
            let listed = self.driver.call(SrScan::default()).await?.vdis;
            let listed: Vec<VdiUuid> = listed.iter().map(|vdi| vdi.uuid).collect();
            assert_eq!(listed, left.iter().map(|n| vdi(*n)).collect::<Vec<_>>(), "{what}");
            for n in left.into_iter().filter(|n| !is_snapshot(*n)) {
                assert_eq!(self.array.content(&self.name(n)), [u64::from(n)], "{what}: disk {n}");
            }
        }
        self.is_empty(what);
        Ok(())
    }

    /// Nothing is left on the array, and no intent is open.
    fn is_empty(&self, what: &str) {
        assert_eq!(self.array.inventory(), self.empty, "{what}");
        let open = self.host.kv().into_keys().filter(|key| key.starts_with("intent/"));
        assert_eq!(open.collect::<Vec<_>>(), Vec::<String>::new(), "{what}");
    }
}

fn clone(of: u32, n: u32) -> VdiClone {
    let name = format!("disk {n}");
    VdiClone { vdi: vdi(of), uuid: vdi(n), name, description: String::new() }
}

fn run<T>(work: impl Future<Output = Result<T>>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(work).unwrap()
}

/// An order drawn by chance.
fn order(seed: u64) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut order: Vec<u32> = (1..=9).collect();
    for last in (1..order.len()).rev() {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let drawn = state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        order.swap(last, usize::try_from(drawn).unwrap() % (last + 1));
    }
    order
}

#[test]
fn disks_that_hang_on_each_other_go_in_any_order() {
    for seed in 0..300 {
        let order = order(seed);
        run(async {
            let mut sr = Sr::new(false).await?;
            sr.grow().await?;
            sr.fell(&order, &format!("order {seed}: {order:?}")).await
        });
    }
}

/// A dozen clones and more: the image goes with one promotion, not with one for each.
#[test]
fn an_image_with_many_clones_goes_with_one_promotion() {
    run(async {
        let mut sr = Sr::new(false).await?;
        sr.grow().await?;
        for n in 10..40 {
            sr.until_done(clone(1, n)).await?;
            sr.array.write(&sr.name(n), u64::from(n));
        }
        // Their disk cannot go before them.
        for n in [5, 8] {
            sr.until_done(VdiDestroy { vdi: vdi(n) }).await?;
        }
        sr.array.take_calls();
        sr.until_done(VdiDestroy { vdi: vdi(1) }).await?;
        let calls = sr.array.take_calls();
        let promotions = calls.iter().filter(|call| **call == "promote").count();
        assert_eq!((promotions, sr.array.content(&sr.name(1)).len()), (1, 0), "{calls:?}");
        let rest: Vec<u32> = [2, 3, 4, 6, 7, 9].into_iter().chain(10..40).rev().collect();
        sr.fell(&rest, "clones whose image is gone").await
    });
}

/// Each change of the destroys goes wrong in each way, in orders drawn by chance.
#[test]
fn every_change_of_a_destroy_may_fail() {
    for seed in 0..6 {
        let order = order(seed);
        let changes = run(async {
            let mut sr = Sr::new(false).await?;
            sr.grow().await?;
            sr.array.trouble(usize::MAX, Trouble::Refused);
            sr.fell(&order, "nothing goes wrong").await?;
            Ok(sr.array.changes())
        });
        assert!(changes > 9, "order {seed}: {changes}");
        for n in 1..=changes {
            for trouble in Trouble::ALL {
                for attaches in [false, true] {
                    let what = format!("order {seed}, change {n}, {trouble:?}, {attaches}");
                    run(async {
                        let mut sr = Sr::new(attaches).await?;
                        sr.grow().await?;
                        sr.array.trouble(n, trouble);
                        sr.fell(&order, &what).await
                    });
                }
            }
        }
    }
}

/// Whoever clones dies, and nobody repeats it: the next attach of the SR removes what was made.
#[test]
fn a_clone_that_was_never_finished_leaves_no_snapshot() {
    for change in 1..=2 {
        for trouble in [Trouble::DiesBefore, Trouble::DiesAfter] {
            run(async {
                let mut sr = Sr::new(false).await?;
                sr.grow().await?;
                let before = sr.array.inventory();
                sr.array.trouble(change, trouble);
                tokio::select! {
                    outcome = sr.driver.call(clone(1, 30)) => panic!("{outcome:?}"),
                    () = sr.array.died() => {}
                }
                sr.open().await?;
                sr.driver.call(SrAttach {}).await?;
                // A whole clone, of which nobody was told, is shown.
                if change == 2 && trouble == Trouble::DiesAfter {
                    sr.driver.call(VdiDestroy { vdi: vdi(30) }).await?;
                }
                assert_eq!(sr.array.inventory(), before, "change {change}, {trouble:?}");
                Ok(())
            });
        }
    }
}
