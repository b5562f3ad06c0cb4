//! The whole life of an SR.

use plugin_sdk::prelude::*;

use crate::support::{Fixture, MIB, Sr, clone, create, run, snapshot, vdi};

/// Everything a user does with an SR, with the state checked at each step.
pub(crate) async fn life(sr: &mut Sr) -> Result<()> {
    let foreign = sr.fixture.group.inventory();
    sr.until_done(1, SrCreate { name: "vms".into(), description: "of the test".into() }).await?;
    sr.until_done(2, SrAttach {}).await?;
    sr.until_done(3, SrUpdate { name: Some("VMs".into()), description: None }).await?;

    let made = sr.until_done(10, create(1, 100 * MIB + 1)).await?.vdi;
    assert_eq!(made.virtual_size, Bytes(105 * MIB), "whole pages of 15 MB");
    sr.until_done(11, create(2, 30 * MIB)).await?;
    let listed = sr.holds(&[1, 2], "after creating").await?;
    assert_eq!(listed[&vdi(1)], made);
    sr.fixture.write(1, 11);

    let update = VdiUpdate {
        vdi: vdi(1),
        name: Some("root".into()),
        description: None,
        vdi_type: None,
        read_only: None,
        keys: [("owner".to_owned(), None)].into(),
        incomplete: None,
    };
    assert_eq!(sr.until_done(12, update).await?.vdi.name, "root");

    let taken = sr.until_done(13, snapshot(1, 3)).await?.vdis.remove(0);
    assert!(taken.is_a_snapshot && taken.read_only);
    assert_eq!((taken.snapshot_of, taken.snapshot_time), (Some(vdi(1)), Some(1_700_000_000)));
    sr.holds(&[1, 2, 3], "after the snapshot").await?;
    let error = sr.driver.call(snapshot(3, 9)).await.unwrap_err();
    assert_eq!(error.message, format!("VDI {} is a snapshot", vdi(3)));

    sr.fixture.write(1, 12);
    sr.until_done(14, clone(3, 4)).await?;
    sr.until_done(15, clone(1, 5)).await?;
    let listed = sr.holds(&[1, 2, 3, 4, 5], "after cloning").await?;
    assert_eq!((listed[&vdi(4)].name.as_str(), listed[&vdi(4)].read_only), ("clone 4", false));
    assert_eq!(sr.fixture.content(4), 11, "the clone of the snapshot");
    assert_eq!(sr.fixture.content(5), 12, "the clone of the disk");

    let grown =
        sr.until_done(16, VdiResize { vdi: vdi(2), virtual_size: Bytes(100 * MIB) }).await?;
    assert_eq!(grown.vdi.virtual_size, Bytes(105 * MIB), "grown once");
    let smaller = VdiResize { vdi: vdi(2), virtual_size: Bytes(15 * MIB) };
    let error = sr.driver.call(smaller).await.unwrap_err();
    assert_eq!((error.kind.clone(), error.legacy_code()), (Kind::Limit, 79));

    let reverted = sr.until_done(17, VdiRevert { vdi: vdi(1), snapshot: vdi(3) }).await?.vdi;
    assert_eq!(reverted.name, "root");
    assert_eq!(sr.fixture.content(1), 11);
    sr.holds(&[1, 2, 3, 4, 5], "after the revert").await?;

    for (n, id) in [(4, 19), (3, 21)] {
        let mode = if n == 3 { AttachMode::ReadOnly } else { AttachMode::ReadWrite };
        let access = sr.until_done(id, VdiAttach { vdi: vdi(n), mode }).await?.access;
        let [Access::BlockDevice { path }] = access.as_slice() else { panic!("{access:?}") };
        let id_of = path.as_str().trim_start_matches("/dev/disk/by-id/scsi-");
        assert!(id_of.starts_with("36090a0") && id_of.len() == 33, "{path}");
        let exports = exports(sr);
        assert_eq!(exports.len(), 1, "{exports:?}");
        assert_eq!(format!("3{}", exports[0].identity.naa), id_of, "the LUN that is served");
        sr.until_done(id + 1, VdiDetach { vdi: vdi(n) }).await?;
        assert_eq!(self::exports(sr), [], "nobody reaches it");
    }

    // Parents before children: snapshots and clones outlive their disk.
    let error = sr.driver.call(SrDestroy {}).await.unwrap_err();
    assert_eq!((error.kind.clone(), error.legacy_code()), (Kind::InUse, 39));
    sr.until_done(30, VdiDestroy { vdi: vdi(1) }).await?;
    sr.holds(&[2, 3, 4, 5], "after the parent's end").await?;
    assert_eq!(sr.fixture.content(4), 11);
    for (n, id) in [(5, 31), (3, 32), (4, 33)] {
        sr.until_done(id, VdiDestroy { vdi: vdi(n) }).await?;
    }
    sr.holds(&[2], "before the last").await?;
    sr.until_done(36, VdiDestroy { vdi: vdi(2) }).await?;
    sr.holds(&[], "at the end").await?;
    sr.until_done(37, SrDetach {}).await?;
    sr.until_done(38, SrDestroy {}).await?;
    assert_eq!(sr.fixture.group.inventory(), foreign, "what is not ours, and nothing else");
    let kept: Vec<String> = sr.host.kv().into_keys().collect();
    assert_eq!(kept, Vec::<String>::new(), "the ledger is closed");
    Ok(())
}

fn exports(sr: &Sr) -> Vec<array_sim::core::Export> {
    use array_sim::core::Vendor as _;
    array_sim::equallogic::PsGroup.exports(&sr.fixture.group.array.current())
}

/// However the command line behaves.
#[test]
fn an_sr_lives_and_leaves_nothing_behind() {
    let yes = serde_json::json!(true);
    let no = serde_json::json!(false);
    let habits: [&[(&str, serde_json::Value)]; 4] = [
        &[],
        &[("echo", no.clone()), ("clone_waits", yes.clone())],
        &[("stray_events", yes.clone()), ("group", serde_json::json!("grp-7"))],
        &[("typeahead", no.clone())],
    ];
    for habits in habits {
        println!("{habits:?}");
        run(async {
            let mut sr = Sr::new(Fixture::with(habits, 1 << 40)).await?;
            life(&mut sr).await?;
            assert_eq!(sr.repeated, 0, "no second try is needed");
            sr.driver.close().await;
            Ok(())
        })
        .unwrap();
    }
}

/// The least that the command line takes: the document of the driver has this table.
#[test]
fn each_operation_takes_the_commands_that_it_needs() {
    run(async {
        let waits = [("clone_waits", serde_json::json!(true))];
        let mut sr = Sr::new(Fixture::with(&waits, 1 << 40)).await?;
        sr.until_done(1, SrCreate::default()).await?;
        sr.fixture.counts();
        let took = |sr: &Sr, expected: &[(&str, u64)]| {
            let counts = sr.fixture.counts();
            let expected = expected.iter().map(|(call, n)| ((*call).to_owned(), *n)).collect();
            assert_eq!(counts, expected);
        };
        sr.until_done(10, create(1, 30 * MIB)).await?;
        took(&sr, &[("volume.create", 1)]);
        sr.until_done(11, snapshot(1, 2)).await?;
        took(
            &sr,
            &[
                ("volume.show", 2),
                ("snapshot.list", 1),
                ("snapshot.create", 1),
                ("snapshot.rename", 1),
                ("snapshot.show", 1),
                ("snapshot.describe", 1),
            ],
        );
        sr.until_done(12, clone(1, 3)).await?;
        took(
            &sr,
            &[("volume.show", 3), ("volume.clone", 1), ("access.list", 1), ("volume.describe", 1)],
        );
        sr.until_done(13, VdiResize { vdi: vdi(1), virtual_size: Bytes(45 * MIB) }).await?;
        took(&sr, &[("volume.show", 2), ("volume.resize", 1)]);
        sr.until_done(14, VdiDestroy { vdi: vdi(3) }).await?;
        took(
            &sr,
            &[
                ("volume.show", 1),
                ("snapshot.list", 1),
                ("access.list", 1),
                ("volume.offline", 1),
                ("volume.delete", 1),
            ],
        );
        // The snapshot is known, and of the volumes three are asked for again.
        sr.listed().await?;
        took(&sr, &[("volume.list", 1), ("volume.show", 1), ("snapshot.list", 1)]);
        // Another host may have had the SR: all is asked for.
        sr.until_done(15, SrDetach {}).await?;
        sr.until_done(16, SrAttach {}).await?;
        sr.fixture.counts();
        sr.listed().await?;
        took(
            &sr,
            &[("volume.list", 1), ("volume.show", 1), ("snapshot.list", 1), ("snapshot.show", 1)],
        );
        Ok(())
    })
    .unwrap();
}

/// However many volumes there are, and whatever happens to them at the group.
#[test]
fn a_scan_takes_four_commands_and_sees_what_was_done_by_hand() {
    run(async {
        let mut sr = Sr::new(Fixture::new()).await?;
        sr.until_done(1, SrCreate::default()).await?;
        for n in 1..=30 {
            sr.until_done(10 + n, create(n, 30 * MIB)).await?;
        }
        let name = |sr: &Sr, n| sr.fixture.name(n);
        let array = sr.fixture.group.array.clone();
        sr.fixture.counts();
        assert_eq!(sr.listed().await?.len(), 30);
        let three = [("volume.list".to_owned(), 1), ("volume.show".to_owned(), 3)];
        assert_eq!(sr.fixture.counts(), three.into());

        // Resized, removed and put offline by hand: the next scan shows it.
        let (one, two, last) = (name(&sr, 21), name(&sr, 22), name(&sr, 30));
        array
            .change(|change| {
                change.resize(&one, 60 * MIB)?;
                change.delete_volume(&two)?;
                let mut volume = change.volume(&last)?;
                volume.attributes.insert("description".into(), "made by hand".into());
                change.put::<_, array_sim::core::Trouble>(&last, &volume)
            })
            .unwrap();
        let listed = sr.listed().await?;
        assert_eq!(listed[&vdi(21)].virtual_size, Bytes(60 * MIB));
        assert!(!listed.contains_key(&vdi(22)) && listed.len() == 29);

        // A text that was changed by hand is seen in its turn, and by whoever asks for this VDI.
        let reason = "its metadata on the array cannot be read".to_owned();
        let quarantined = Health::Quarantined { reason };
        assert_eq!(sr.driver.call(VdiStat::of(vdi(30))).await?.health, quarantined);
        let mut scans = 0;
        while sr.listed().await?[&vdi(30)].health != quarantined {
            scans += 1;
            assert!(scans < 30, "a text of somebody else's is never seen");
        }
        println!("seen after {scans} scans");

        // A name that is given is shown at once, by another driver too.
        let update = VdiUpdate {
            vdi: vdi(5),
            name: Some("web".into()),
            description: None,
            vdi_type: None,
            read_only: None,
            keys: std::collections::BTreeMap::new(),
            incomplete: None,
        };
        sr.fixture.fault("volume.describe", 0, array_sim::core::Effect::DropReply);
        sr.until_done(50, update).await?;
        sr.driver = sr.fixture.open(&sr.host).await?;
        assert_eq!(sr.listed().await?[&vdi(5)].name, "web");
        Ok(())
    })
    .unwrap();
}
