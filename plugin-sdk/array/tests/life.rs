//! The whole life of an SR, on arrays of six habits, with every change going wrong in every way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

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

/// Everything a user does with an SR, with the state checked at each step.
async fn life(sr: &mut Sr) -> Result<()> {
    let foreign = sr.array.inventory();
    let groups = sr.array.capabilities().group_snapshots;
    let request = SrCreate { name: "vms".into(), description: "of the test".into() };
    sr.until_done(1, request).await?;
    sr.until_done(2, SrAttach {}).await?;
    sr.until_done(3, SrUpdate { name: Some("VMs".into()), description: None }).await?;

    let made = sr.until_done(10, create(1, 100 * MIB + 1)).await?.vdi;
    assert!(made.virtual_size.0 > 100 * MIB);
    assert_eq!((made.name.as_str(), made.description.as_str()), ("disk 1", "for a test"));
    sr.until_done(11, create(2, 700 * MIB)).await?;
    let listed = sr.holds(&[1, 2], "after creating").await?;
    assert_eq!(listed[&vdi(1)], made);
    sr.array.write(&volume_name(sr, 1), 11);

    let update = VdiUpdate {
        vdi: vdi(1),
        name: Some("root".into()),
        description: None,
        vdi_type: None,
        read_only: None,
        keys: [("owner".to_owned(), None)].into(),
        incomplete: None,
    };
    let updated = sr.until_done(12, update).await?.vdi;
    assert_eq!((updated.name.as_str(), updated.keys.len()), ("root", 0));

    let taken = sr.until_done(13, snapshot(1, 3)).await?.vdis.remove(0);
    assert!(taken.is_a_snapshot && taken.read_only);
    assert_eq!((taken.snapshot_of, taken.snapshot_time), (Some(vdi(1)), Some(1_700_000_000)));
    sr.holds(&[1, 2, 3], "after the snapshot").await?;

    sr.array.write(&volume_name(sr, 1), 12);
    sr.until_done(14, clone(3, 4)).await?;
    sr.until_done(15, clone(1, 5)).await?;
    let listed = sr.holds(&[1, 2, 3, 4, 5], "after cloning").await?;
    assert!(!listed[&vdi(4)].is_a_snapshot && !listed[&vdi(4)].read_only);
    assert_eq!(listed[&vdi(4)].virtual_size, made.virtual_size);
    assert_eq!(sr.array.content(&volume_name(sr, 4)), [11], "the clone of the snapshot");
    assert_eq!(sr.array.content(&volume_name(sr, 5)), [12], "the clone of the disk");

    sr.until_done(16, VdiResize { vdi: vdi(2), virtual_size: Bytes(1500 * MIB) }).await?;
    let grown = sr.holds(&[1, 2, 3, 4, 5], "after the resize").await?[&vdi(2)].virtual_size.0;
    assert!((1500 * MIB..2100 * MIB).contains(&grown), "grown to {grown}, once");
    let error = sr
        .driver
        .call(VdiResize { vdi: vdi(2), virtual_size: Bytes(500 * MIB) })
        .await
        .unwrap_err();
    assert_eq!((error.kind.clone(), error.legacy_code()), (Kind::Limit, 79));

    // The hidden snapshot of clone 5 is newer: an array whose restore would remove it says so.
    let revert = VdiRevert { vdi: vdi(1), snapshot: vdi(3) };
    if sr.array.capabilities().restore_drops_newer {
        let error = sr.driver.call(revert).await.unwrap_err();
        assert_eq!(error.kind, Kind::InUse, "{error}");
    } else {
        let reverted = sr.until_done(17, revert).await?.vdi;
        assert_eq!((reverted.name.as_str(), reverted.virtual_size), ("root", made.virtual_size));
        assert_eq!(sr.array.content(&volume_name(sr, 1)), [11]);
    }

    if groups {
        let mut group = snapshot(1, 6);
        group.snapshots.extend(snapshot(2, 7).snapshots);
        let mut ahead = VdiSnapshotPrepare {
            snapshots: group.snapshots.clone(),
            keys: BTreeMap::new(),
            abandon: false,
        };
        sr.until_done(18, ahead.clone()).await?;
        sr.array.write(&volume_name(sr, 1), 21);
        sr.array.write(&volume_name(sr, 2), 22);
        sr.holds(&[1, 2, 3, 4, 5], "before the group").await?;
        let both = sr.until_done(18, group).await?.vdis;
        assert_eq!([both[0].snapshot_of, both[1].snapshot_of], [Some(vdi(1)), Some(vdi(2))]);
        sr.holds(&[1, 2, 3, 4, 5, 6, 7], "after the group").await?;
        // One that was prepared and is not wanted leaves nothing.
        sr.until_done(40, ahead.clone()).await?;
        ahead.abandon = true;
        sr.until_done(40, ahead).await?;
    }

    let rate = |per_second| Some(Rate { per_second, burst: None });
    let qos = Qos { operations: rate(500), bytes: rate((5 << 20) + 1) };
    let limited = sr.until_done(41, VdiQos { vdi: vdi(2), qos }).await?.vdi.qos;
    assert_eq!(limited, Qos { bytes: rate(5 << 20), ..qos }, "rounded down, and told");
    let few = Qos { operations: rate(1), bytes: None };
    let error = sr.driver.call(VdiQos { vdi: vdi(2), qos: few }).await.unwrap_err();
    assert_eq!(error.message, "the array cannot limit a disk to 1 requests per second");

    let attach = VdiAttach { vdi: vdi(4), mode: AttachMode::ReadWrite };
    let access = sr.until_done(19, attach).await?.access;
    assert!(matches!(access.as_slice(), [Access::BlockDevice { .. }]));
    sr.until_done(20, VdiDetach { vdi: vdi(4) }).await?;
    assert_eq!(sr.array.violations(), Vec::<String>::new());

    // Parents before children: snapshots and clones outlive their disk.
    let error = sr.driver.call(SrDestroy {}).await.unwrap_err();
    assert_eq!((error.kind.clone(), error.legacy_code()), (Kind::InUse, 39));
    sr.until_done(30, VdiDestroy { vdi: vdi(1) }).await?;
    let left: &[u32] = if groups { &[2, 3, 4, 5, 6, 7] } else { &[2, 3, 4, 5] };
    sr.holds(left, "after the parent's end").await?;
    assert_eq!(sr.array.content(&volume_name(sr, 4)), [11]);
    assert_eq!(sr.array.content(&volume_name(sr, 5)), [12]);
    for (n, id) in [(5, 31), (3, 32), (4, 33)] {
        sr.until_done(id, VdiDestroy { vdi: vdi(n) }).await?;
    }
    if groups {
        sr.until_done(34, VdiDestroy { vdi: vdi(6) }).await?;
        sr.until_done(35, VdiDestroy { vdi: vdi(7) }).await?;
    }
    sr.holds(&[2], "before the last").await?;
    sr.until_done(36, VdiDestroy { vdi: vdi(2) }).await?;
    sr.holds(&[], "at the end").await?;
    sr.until_done(37, SrDetach {}).await?;
    sr.until_done(38, SrDestroy {}).await?;
    assert_eq!(sr.array.inventory(), foreign, "what is not ours, and nothing else");
    let kept: Vec<String> = sr.host.kv().into_keys().collect();
    assert_eq!(kept, Vec::<String>::new(), "the ledger is closed");
    Ok(())
}

#[test]
fn an_sr_lives_and_leaves_nothing_behind() {
    for (name, habits) in habits() {
        run(async {
            let mut sr = Sr::new(habits, false).await?;
            life(&mut sr).await?;
            println!("{name}: {} changes", sr.array.changes());
            assert_eq!(sr.repeated, 0, "{name} needs no second try");
            Ok(())
        })
        .unwrap();
    }
}

/// A run of a life with one change going wrong.
fn life_with(name: &str, habits: &Habits, n: usize, trouble: Trouble, attach_first: bool) {
    let what = format!("{name}, change {n}, {trouble:?}, attach first: {attach_first}");
    println!("{what}");
    let outcome = run(async {
        let mut sr = Sr::new(habits.clone(), attach_first).await?;
        sr.array.trouble(n, trouble);
        life(&mut sr).await
    });
    outcome.unwrap_or_else(|error| panic!("{what}: {error}"));
}

/// For every change of the life of an SR, and every way in which it can go wrong: the wish that is
/// repeated succeeds, there is one object of each or none, and nothing is left in the end.
fn every_change_may_fail(name: &str, habits: &Habits) {
    let mut changes = 0;
    run(async {
        let mut sr = Sr::new(habits.clone(), false).await?;
        sr.array.trouble(usize::MAX, Trouble::Refused);
        life(&mut sr).await?;
        changes = sr.array.changes();
        Ok(())
    })
    .unwrap();
    assert!(changes > 20, "{name}: {changes}");
    for n in 1..=changes {
        for trouble in Trouble::ALL {
            let dies = matches!(trouble, Trouble::DiesBefore | Trouble::DiesAfter);
            for attach_first in [false, true] {
                if dies || !attach_first {
                    life_with(name, habits, n, trouble, attach_first);
                }
            }
        }
    }
}

#[test]
fn every_change_of_an_equallogic_may_fail() {
    every_change_may_fail("equallogic", &Habits::equallogic());
}

#[test]
fn every_change_of_a_truenas_may_fail() {
    every_change_may_fail("truenas", &Habits::truenas());
}

#[test]
fn every_change_of_a_powerstore_may_fail() {
    every_change_may_fail("powerstore", &Habits::powerstore());
}

#[test]
fn every_change_of_a_pure_may_fail() {
    every_change_may_fail("pure", &Habits::pure());
}

#[test]
fn every_change_of_an_ontap_may_fail() {
    every_change_may_fail("ontap", &Habits::ontap());
}

#[test]
fn every_change_of_an_odd_array_may_fail() {
    every_change_may_fail("odd", &Habits::odd());
}

/// What somebody does at the array's console is seen at the next scan, and nothing else changes.
#[test]
fn changes_by_hand_are_seen_at_the_next_scan() {
    run(async {
        let mut sr = Sr::new(Habits::truenas(), false).await?;
        sr.until_done(1, SrCreate::default()).await?;
        for n in 1..=4 {
            sr.until_done(10 + n, create(n, 64 * MIB)).await?;
        }
        tokio::time::sleep(Duration::from_millis(70)).await;
        sr.array.change_by_hand(&volume_name(&sr, 1), 99 * MIB, Some("made by hand"));
        let kept = sr.listed().await?[&vdi(2)].clone();
        let text = format!(r#"{{"v":1,"sr":"{}","n":"renamed"}}"#, sr.uuid);
        sr.array.change_by_hand(&volume_name(&sr, 2), 128 * MIB, Some(&text));
        sr.array.change_by_hand(&volume_name(&sr, 3), 64 * MIB, Some(""));
        sr.array.remove_by_hand(&volume_name(&sr, 4));
        let listed = sr.listed().await?;
        assert_eq!(listed.len(), 3);
        let reason = "its metadata on the array cannot be read".to_owned();
        assert_eq!(listed[&vdi(1)].health, Health::Quarantined { reason });
        assert_eq!(listed[&vdi(2)].virtual_size, Bytes(128 * MIB));
        assert_eq!((kept.name.as_str(), listed[&vdi(2)].name.as_str()), ("disk 2", "renamed"));
        let reason = "its metadata on the array is missing: a new name restores it".to_owned();
        assert_eq!(listed[&vdi(3)].health, Health::Degraded { reason });
        let error = sr.driver.call(VdiStat::of(vdi(4))).await.unwrap_err();
        assert_eq!(
            (error.kind.clone(), error.message.as_str()),
            (Kind::NotFound, &*format!("there is no VDI {}", vdi(4)),)
        );
        let error = sr.driver.call(clone(1, 9)).await.unwrap_err();
        assert_eq!(error.kind, Kind::Corrupt);
        let gone = sr.driver.call(VdiDestroy { vdi: vdi(4) }).await?;
        assert_eq!(gone.changed, Changed::Already);
        Ok(())
    })
    .unwrap();
}

/// A text of another SR under a name of ours, or rubbish under a short name, is foreign.
#[test]
fn another_srs_volume_is_never_shown_or_removed() {
    run(async {
        let mut sr = Sr::new(Habits::truenas(), false).await?;
        sr.until_done(1, SrCreate::default()).await?;
        sr.until_done(11, create(1, 64 * MIB)).await?;
        tokio::time::sleep(Duration::from_millis(70)).await;
        let text = format!(r#"{{"v":1,"sr":"{}"}}"#, SrUuid::random());
        sr.array.change_by_hand(&volume_name(&sr, 1), 64 * MIB, Some(&text));
        assert_eq!(sr.listed().await?.len(), 0);
        let before = sr.array.inventory();
        let destroyed = sr.driver.call(VdiDestroy { vdi: vdi(1) }).await?;
        assert_eq!(destroyed.changed, Changed::Already);
        assert_eq!(sr.array.inventory(), before);
        Ok(())
    })
    .unwrap();
}

/// Two volumes or two thousand: a scan asks as often.
#[test]
fn a_scan_asks_as_often_for_many_volumes_as_for_few() {
    for (name, habits) in habits() {
        run(async {
            let mut sr = Sr::new(habits, false).await?;
            sr.until_done(1, SrCreate::default()).await?;
            for n in 1..=20 {
                sr.until_done(10 + n, create(n, 1)).await?;
            }
            sr.until_done(50, snapshot(1, 40)).await?;
            tokio::time::sleep(Duration::from_millis(70)).await;
            sr.array.take_calls();
            assert_eq!(sr.listed().await?.len(), 21);
            let calls = sr.array.take_calls();
            assert!(calls.len() <= 3, "{name}: {calls:?}");
            sr.until_done(60, create(30, 1)).await?;
            let calls = sr.array.take_calls();
            assert!(calls.len() <= 3, "{name}: a create takes {calls:?}");
            Ok(())
        })
        .unwrap();
    }
}

/// A metadata text that the array has no room for is refused before anything is made.
#[test]
fn too_long_a_description_makes_nothing() {
    run(async {
        let mut sr = Sr::new(Habits::powerstore(), false).await?;
        sr.until_done(1, SrCreate::default()).await?;
        let before = sr.array.inventory();
        let request = VdiCreate { description: "x".repeat(300), ..create(1, MIB) };
        let error = sr.driver.call(request).await.unwrap_err();
        assert_eq!(error.kind, Kind::Limit);
        assert!(error.message.ends_with("bytes on the array, which has room for 250"), "{error}");
        assert_eq!(sr.array.inventory(), before);
        Ok(())
    })
    .unwrap();
}

fn attach(n: u32) -> VdiAttach {
    VdiAttach { vdi: vdi(n), mode: AttachMode::ReadWrite }
}

/// A LUN that cannot be reached is not left mapped; one that somebody may be using is.
#[test]
fn an_attach_that_fails_ends_what_it_began_and_no_more() {
    run(async {
        let mut sr = Sr::new(Habits::truenas(), false).await?;
        sr.until_done(1, SrCreate::default()).await?;
        sr.until_done(11, create(1, 64 * MIB)).await?;
        let (before, kept) = (sr.array.inventory(), sr.host.kv());
        sr.array.unreachable(true);
        let error = sr.driver.call(attach(1)).await.unwrap_err();
        assert_eq!(
            (error.kind.clone(), error.message.as_str()),
            (Kind::Unreachable, "no path leads to the LUN")
        );
        assert_eq!((sr.array.inventory(), sr.host.kv()), (before, kept));
        sr.array.unreachable(false);
        sr.driver.call(attach(1)).await?;
        let mapped = sr.array.inventory();
        sr.array.unreachable(true);
        sr.driver.call(attach(1)).await.unwrap_err();
        assert_eq!((sr.array.inventory(), sr.array.connected()), (mapped, vec![64 * MIB]));
        assert_eq!(sr.array.violations(), Vec::<String>::new());
        Ok(())
    })
    .unwrap();
}

/// The device of an attached disk follows its volume, also if the one who resized it died between.
#[test]
fn an_attached_disk_grows_with_its_volume() {
    run(async {
        let mut sr = Sr::new(Habits::equallogic(), false).await?;
        sr.until_done(1, SrCreate::default()).await?;
        sr.until_done(11, create(1, 60 * MIB)).await?;
        sr.driver.call(attach(1)).await?;
        let resize = VdiResize { vdi: vdi(1), virtual_size: Bytes(120 * MIB) };
        sr.array.unreachable(true);
        sr.driver.call(resize.clone()).await.unwrap_err();
        assert_eq!(sr.array.connected(), [60 * MIB]);
        sr.array.unreachable(false);
        assert_eq!(sr.driver.call(resize).await?.changed, Changed::Already);
        assert_eq!(sr.array.connected(), [120 * MIB]);
        sr.driver.call(VdiDetach { vdi: vdi(1) }).await?;
        assert_eq!(sr.array.connected(), Vec::<u64>::new());
        Ok(())
    })
    .unwrap();
}

/// A resize that comes again after a later one has been done: it is no shrinking, and changes nothing. One
/// that nobody ever asked for is.
#[test]
fn a_resize_that_comes_late_is_known() {
    for (name, habits) in habits() {
        run(async {
            let mut sr = Sr::new(habits, false).await?;
            sr.until_done(1, SrCreate::default()).await?;
            sr.until_done(11, create(1, 256 * MIB)).await?;
            let to = |size: u64| VdiResize { vdi: vdi(1), virtual_size: Bytes(size * MIB) };
            sr.until_done(12, to(1024)).await?;
            let large = sr.until_done(13, to(2048)).await?.vdi.virtual_size;
            sr.driver = sr.host.open::<Driver>(sr.uuid, &[("target", &sr.target)]).await?;
            tokio::time::sleep(Duration::from_millis(70)).await;
            let late = sr.until_done(12, to(1024)).await?;
            assert_eq!((late.changed, late.vdi.virtual_size), (Changed::Already, large), "{name}");
            let error = sr.driver.call(to(1024)).operation_id(op(14)).await.unwrap_err();
            assert_eq!((error.kind.clone(), error.legacy_code()), (Kind::Limit, 79), "{name}");
            assert_eq!(sr.driver.call(VdiStat::of(vdi(1))).await?.virtual_size, large, "{name}");
            sr.until_done(15, VdiDestroy { vdi: vdi(1) }).await?;
            let kept = sr.host.kv().into_keys().filter(|key| key.starts_with("resizes"));
            assert_eq!(kept.collect::<Vec<_>>(), Vec::<String>::new(), "{name}");
            Ok(())
        })
        .unwrap();
    }
}

/// Whoever attached has died before it was told anything, and nobody repeats it.
#[test]
fn what_a_cut_attach_left_goes_with_the_disk_or_with_the_sr() {
    for trouble in [Trouble::DiesBefore, Trouble::DiesAfter] {
        for destroys in [false, true] {
            run(async {
                let mut sr = Sr::new(Habits::powerstore(), true).await?;
                sr.until_done(1, SrCreate::default()).await?;
                sr.until_done(2, SrAttach {}).await?;
                sr.until_done(11, create(1, 64 * MIB)).await?;
                let before = sr.array.inventory();
                sr.array.trouble(1, trouble);
                tokio::select! {
                    outcome = sr.driver.call(attach(1)) => panic!("{outcome:?}"),
                    () = sr.array.died() => {}
                }
                assert_eq!(sr.array.inventory() == before, matches!(trouble, Trouble::DiesBefore));
                sr.driver = sr.host.open::<Driver>(sr.uuid, &[("target", &sr.target)]).await?;
                if destroys {
                    sr.driver.call(VdiDestroy { vdi: vdi(1) }).await?;
                } else {
                    sr.driver.call(SrDetach {}).await?;
                    assert_eq!(sr.array.inventory(), before);
                }
                let kept = sr.host.kv().into_keys().filter(|key| key.starts_with("attached"));
                assert_eq!(kept.collect::<Vec<_>>(), Vec::<String>::new());
                assert_eq!(sr.array.violations(), Vec::<String>::new());
                Ok(())
            })
            .unwrap();
        }
    }
}

/// A guest goes on when the host is told that the snapshots hold what they are to hold. What it writes
/// from then on is in none of them, whatever becomes of the rest of the call.
#[test]
fn what_a_guest_writes_after_the_word_is_in_no_snapshot() {
    for (name, habits) in habits() {
        for trouble in Trouble::ALL {
            if matches!(trouble, Trouble::DiesBefore | Trouble::DiesAfter) {
                continue; // Then nobody waits for the word any more, and nothing is kept.
            }
            for change in 1..=8 {
                let what = format!("{name}, change {change}, {trouble:?}");
                run(caught(&what, habits.clone(), trouble, change)).unwrap();
            }
        }
    }
}

async fn caught(what: &str, habits: Habits, trouble: Trouble, change: usize) -> Result<()> {
    let mut sr = Sr::new(habits, false).await?;
    sr.until_done(1, SrCreate::default()).await?;
    let mut wish = snapshot(1, 11);
    if sr.array.capabilities().group_snapshots {
        wish.snapshots.extend(snapshot(2, 12).snapshots);
    }
    for n in [1, 2] {
        sr.until_done(10 + n, create(n, 64 * MIB)).await?;
        sr.array.write(&volume_name(&sr, n), 50);
    }
    let words = Arc::new(AtomicU32::new(0));
    let (array, names, told) =
        (sr.array.clone(), [1, 2].map(|n| volume_name(&sr, n)), words.clone());
    let host = sr.host.clone().service("snapshot.caught", move |_| {
        told.fetch_add(1, Ordering::Relaxed);
        for name in &names {
            array.write(name, 99);
        }
        Ok(serde_json::json!({}))
    });
    sr.driver = host.open::<Driver>(sr.uuid, &[("target", sr.target.as_str())]).await?;
    sr.array.trouble(sr.array.changes() + change, trouble);
    let specs = wish.snapshots.clone();
    let outcome = sr.driver.call(wish).operation_id(op(20)).budget(Duration::from_secs(20)).await;
    sr.array.trouble(usize::MAX, Trouble::Refused);
    let words = words.load(Ordering::Relaxed);
    assert!(words <= 1, "{what}: {words} words");
    if let Err(error) = outcome {
        println!("{what}: {error}");
        return Ok(());
    }
    for (spec, n) in specs.iter().zip(31..) {
        let copy = VdiClone {
            vdi: spec.uuid,
            uuid: vdi(n),
            name: "copy".into(),
            description: String::new(),
        };
        sr.until_done(n, copy).await?;
        let content = sr.array.content(&volume_name(&sr, n));
        assert_eq!(content, [50], "{what}, told {words} times");
    }
    Ok(())
}

/// An array whose descriptions are short says before anything is taken that a set's marks have no room.
#[test]
fn a_snapshot_whose_marks_have_no_room_is_refused_before_it_is_taken() {
    for (habits, room) in [(Habits::ontap(), 254), (Habits::powerstore(), 250)] {
        run(async {
            let mut sr = Sr::new(habits, false).await?;
            sr.until_done(1, SrCreate::default()).await?;
            sr.until_done(2, create(1, 64 * MIB)).await?;
            let mark = ("sm:set".to_owned(), "XyLg8A5NT1ydC2uPax96EQqRb4/wf8".to_owned());
            let mut wish = VdiSnapshotPrepare {
                snapshots: snapshot(1, 2).snapshots,
                keys: [mark.clone()].into(),
                abandon: false,
            };
            wish.snapshots[0].name = "x".repeat(100);
            let changes = sr.array.changes();
            let error = sr.driver.call(wish.clone()).operation_id(op(3)).await.unwrap_err();
            assert_eq!(error.kind, Kind::Limit);
            let has = format!(" bytes on the array, which has room for {room}");
            assert!(error.message.starts_with("name, description and keys take "), "{error}");
            assert!(error.message.ends_with(&has), "{error}");
            assert_eq!(error.context["vdi"], vdi(1).to_string());
            assert_eq!(sr.array.changes(), changes, "nothing was asked of the array");

            // With a name that people give there is room, and the marks are kept.
            wish.snapshots[0].name = "nightly, 2026-11-22 02:00".into();
            let take = VdiSnapshot { snapshots: wish.snapshots.clone(), time: 1_700_000_000 };
            sr.until_done(4, wish).await?;
            sr.until_done(4, take).await?;
            let marked = VdiUpdate {
                vdi: vdi(2),
                name: None,
                description: None,
                vdi_type: None,
                read_only: None,
                keys: [(mark.0.clone(), Some(mark.1.clone()))].into(),
                incomplete: None,
            };
            sr.until_done(5, marked).await?;
            assert_eq!(sr.holds(&[1, 2], "marked").await?[&vdi(2)].keys[&mark.0], mark.1);
            Ok(())
        })
        .unwrap();
    }
}
