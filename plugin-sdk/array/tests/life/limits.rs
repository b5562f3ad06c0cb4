//! What is seen, what is refused, and what it costs.

use crate::*;

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

/// A snapshot that somebody took at the array outlives the VDI, also where an array's delete of a volume
/// takes its snapshots along.
#[test]
fn somebody_elses_snapshot_of_our_volume_outlives_vdi_and_sr() {
    for (what, habits) in habits() {
        run(async {
            let mut sr = Sr::new(habits, false).await?;
            sr.until_done(1, SrCreate::default()).await?;
            sr.until_done(11, create(1, 64 * MIB)).await?;
            let volume = volume_name(&sr, 1);
            sr.array.write(&volume, 5);
            sr.array.snapshot_by_hand(&volume, "before-the-upgrade");
            tokio::time::sleep(Duration::from_millis(70)).await;
            sr.until_done(12, VdiDestroy { vdi: vdi(1) }).await?;
            assert_eq!(sr.listed().await?.len(), 0, "{what}");
            assert_eq!(sr.array.content("before-the-upgrade"), [5], "{what}");

            let destroyed = sr.driver.call(SrDestroy {}).await;
            assert_eq!(sr.array.content("before-the-upgrade"), [5], "{what}");
            if sr.array.content(&volume).is_empty() {
                // Its snapshots stand by themselves.
                destroyed?;
                return Ok(());
            }
            let error = destroyed.unwrap_err();
            assert_eq!(error.kind, Kind::InUse, "{what}: {error:?}");
            if sr.array.capabilities().delete_takes_snapshots {
                let said = format!(
                    "volume {volume} has snapshot before-the-upgrade, which is not this SR's"
                );
                assert_eq!(error.message, said, "{what}");
            }
            sr.array.remove_snapshot_by_hand("before-the-upgrade");
            tokio::time::sleep(Duration::from_millis(70)).await;
            sr.until_done(13, SrDestroy {}).await?;
            assert_eq!(sr.array.content(&volume), Vec::<u64>::new(), "{what}");
            Ok(())
        })
        .unwrap();
    }
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
