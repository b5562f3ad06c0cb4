//! Everything a user does with an SR, with data and state checked at each step.

use std::collections::BTreeSet;

use array_kit::driver::Product as _;
use plugin_sdk::model::operation::Operation;
use plugin_sdk::prelude::*;
use plugin_sdk::testing::run;

use crate::host::IQN;
use crate::sr::Sr;
use crate::vendor::Vendor;
use crate::wishes::{
    MIB, attach, clone, create, destroy, detach, rename, resize, revert, snapshot, snapshots, vdi,
};

/// A life in which nothing goes wrong, so that nothing has to be asked twice.
pub fn calm<V: Vendor>() {
    run(async {
        let mut sr = Sr::<V>::new().await?;
        live(&mut sr).await?;
        assert_eq!(sr.repeated, 0, "no second try is needed");
        sr.driver.close().await;
        Ok(())
    })
    .unwrap();
}

/// From an SR's creation to its end. Some arrays cannot go back past a newer snapshot, which a clone
/// may hang on, so the revert comes before the clones.
pub async fn live<V: Vendor, const PATIENT: bool>(sr: &mut Sr<V, PATIENT>) -> Result<()> {
    let facts = V::FACTS;
    let foreign = sr.simulated.objects();
    sr.until_done(SrCreate { name: "vms".into(), description: "of the test".into() }).await?;
    sr.until_done(SrAttach {}).await?;
    sr.until_done(SrUpdate { name: Some("VMs".into()), description: None }).await?;

    let made = sr.until_done(create(1, 100 * MIB + 1)).await?.vdi;
    assert_eq!(made.virtual_size, Bytes(facts.size(100 * MIB + 1)));
    sr.until_done(create(2, 30 * MIB)).await?;
    let listed = sr.holds(&[1, 2], "after creating").await?;
    assert_eq!(listed[&vdi(1)], made);
    sr.write(1, 11);
    let updated = sr.until_done(rename(1, "root")).await?.vdi;
    assert_eq!((updated.name.as_str(), updated.keys.len()), ("root", 0));

    let taken = sr.until_done(snapshot(1, 3)).await?.vdis.remove(0);
    assert!(taken.is_a_snapshot && taken.read_only);
    assert_eq!((taken.snapshot_of, taken.virtual_size), (Some(vdi(1)), made.virtual_size));
    assert_eq!(taken.snapshot_time, Some(1_700_000_000));
    let error = sr.driver.call(snapshot(3, 9)).await.unwrap_err();
    assert_eq!(error.message, format!("VDI {} is a snapshot", vdi(3)));
    sr.holds(&[1, 2, 3], "after the snapshot").await?;

    sr.write(1, 12);
    let reverted = sr.until_done(revert(1, 3)).await?.vdi;
    assert_eq!((reverted.name.as_str(), sr.content(1)), ("root", 11), "put back");
    sr.holds(&[1, 2, 3], "after the revert").await?;

    sr.write(1, 12);
    let cloned = sr.until_done(clone(3, 4)).await?.vdi;
    assert_eq!((cloned.name.as_str(), cloned.read_only), ("clone 4", false));
    sr.until_done(clone(1, 5)).await?;
    assert_eq!((sr.content(4), sr.content(5)), (11, 12), "of the snapshot, and of the disk");
    sr.holds(&[1, 2, 3, 4, 5], "after cloning").await?;
    sr.write(4, 44);
    assert_eq!((sr.content(1), sr.content(5)), (12, 12), "nobody else has what a clone is written");

    let grown = sr.until_done(resize(1, 150 * MIB)).await?.vdi;
    assert_eq!((grown.virtual_size, sr.content(1)), (Bytes(facts.size(150 * MIB)), 12));
    let error = sr.driver.call(resize(1, 15 * MIB)).await.unwrap_err();
    assert_eq!((error.kind.clone(), error.legacy_code()), (Kind::Limit, 79), "{error}");

    if facts.group_snapshots {
        let pair = sr.until_done(snapshots(&[(1, 6), (2, 7)])).await?.vdis;
        assert_eq!(pair.len(), 2);
        sr.holds(&[1, 2, 3, 4, 5, 6, 7], "after a group").await?;
        sr.until_done(destroy(6)).await?;
        sr.until_done(destroy(7)).await?;
    }
    if attaches::<V>() {
        reach(sr).await?;
    }

    // Parents before children: snapshots and clones outlive their disk.
    let error = sr.driver.call(SrDestroy {}).await.unwrap_err();
    assert_eq!((error.kind.clone(), error.legacy_code()), (Kind::InUse, 39), "{error}");
    sr.until_done(destroy(1)).await?;
    sr.holds(&[2, 3, 4, 5], "after the parent's end").await?;
    assert_eq!((sr.content(4), sr.content(5)), (44, 12));
    for (n, left) in [(3, &[2, 4, 5][..]), (4, &[2, 5]), (5, &[2]), (2, &[])] {
        sr.until_done(destroy(n)).await?;
        sr.holds(left, "towards the end").await?;
    }
    sr.until_done(SrDetach {}).await?;
    sr.until_done(SrDestroy {}).await?;
    assert_eq!(sr.simulated.objects(), foreign, "what is not ours, and nothing else");
    let kept: Vec<String> = sr.host.kv().into_keys().collect();
    assert_eq!(kept, Vec::<String>::new(), "the ledger is closed");
    Ok(())
}

/// An image with a dozen clones, of which the image goes first and the others in no order: those that are
/// left keep their content, and nothing stays on the array.
pub fn image_with_clones<V: Vendor>() {
    run(async {
        let mut sr = Sr::<V>::new().await?;
        sr.until_done(SrCreate::default()).await?;
        sr.until_done(SrAttach {}).await?;
        let before = sr.simulated.objects();
        sr.until_done(create(1, 30 * MIB)).await?;
        sr.write(1, 1);
        let mut left: Vec<u8> = (2..14).collect();
        for n in &left {
            sr.until_done(clone(1, u32::from(*n))).await?;
            sr.write(u32::from(*n), *n);
        }
        sr.until_done(destroy(1)).await?;
        for n in [3_u8, 9, 5, 13, 4, 2, 12, 6, 11, 8, 10, 7] {
            sr.until_done(destroy(u32::from(n))).await?;
            left.retain(|one| *one != n);
            let listed: Vec<u32> = left.iter().map(|n| u32::from(*n)).collect();
            sr.holds(&listed, "clones whose image is gone").await?;
            for n in &left {
                assert_eq!(sr.content(u32::from(*n)), *n);
            }
        }
        assert_eq!(sr.simulated.objects(), before);
        sr.driver.close().await;
        Ok(())
    })
    .unwrap();
}

/// Whether the driver attaches.
pub(crate) fn attaches<V: Vendor>() -> bool {
    V::Product::MANIFEST.operations.contains(&Operation::VdiAttach)
}

/// LUNs are served to this host while they are attached, and to nobody afterwards.
async fn reach<V: Vendor, const PATIENT: bool>(sr: &mut Sr<V, PATIENT>) -> Result<()> {
    let ours = |sr: &Sr<V, PATIENT>| {
        // One may be served at several targets.
        let exports = sr.simulated.exports().into_iter();
        let exports = exports.filter(|export| export.who.lets(IQN));
        exports.map(|export| export.identity.naa).collect::<BTreeSet<_>>().len()
    };
    let mut wanted = vec![(4, AttachMode::ReadWrite), (1, AttachMode::ReadWrite)];
    if V::FACTS.snapshots_attach {
        wanted.push((3, AttachMode::ReadOnly));
    } else {
        // What was asked for in vain is in nobody's way when the snapshot is to go.
        let refused = sr.driver.call(attach(3, AttachMode::ReadOnly)).await.unwrap_err();
        assert_eq!(refused.kind, Kind::Unsupported, "{refused:?}");
        sr.until_done(detach(3)).await?;
    }
    for (there, (n, mode)) in wanted.iter().enumerate() {
        let access = sr.until_done(attach(*n, *mode)).await?.access;
        let [Access::BlockDevice { path }] = access.as_slice() else { panic!("{access:?}") };
        assert_eq!(ours(sr), there + 1, "{path}: {:?}", sr.simulated.exports());
    }
    // Twice is once.
    let again = sr.until_done(attach(4, AttachMode::ReadWrite)).await?.access;
    assert_eq!((again.len(), ours(sr)), (1, wanted.len()));
    for (gone, (n, _)) in wanted.iter().enumerate() {
        sr.until_done(detach(*n)).await?;
        assert_eq!(ours(sr), wanted.len() - gone - 1, "{:?}", sr.simulated.exports());
    }
    sr.until_done(detach(4)).await?;
    Ok(())
}
