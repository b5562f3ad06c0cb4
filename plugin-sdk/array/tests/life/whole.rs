//! Everything a user does with an SR, and each change of it going wrong.

use crate::*;

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
