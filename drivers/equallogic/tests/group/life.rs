//! The life of an SR, as far as this command line is peculiar.

use array_matrix::life::live;
use array_matrix::wishes::{rename, snapshot};
use plugin_sdk::prelude::*;

use crate::support::{Fixture, MIB, Ps, counts, create, name, run, vdi};

/// However the command line behaves.
#[test]
fn an_sr_lives_however_it_is_answered() {
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
            let mut sr = Fixture::with(habits, 1 << 40).sr().await?;
            live(&mut sr).await?;
            assert_eq!(sr.repeated, 0, "no second try is needed");
            sr.driver.close().await;
            Ok(())
        })
        .unwrap();
    }
}

/// However many volumes there are, and whatever happens to them at the group.
#[test]
fn a_scan_takes_four_commands_and_sees_what_was_done_by_hand() {
    run(async {
        let mut sr = Fixture::new().sr().await?;
        sr.until_done(SrCreate::default()).await?;
        for n in 1..=30 {
            sr.until_done(create(n, 30 * MIB)).await?;
        }
        let array = sr.simulated.array.clone();
        counts(&sr.simulated);
        assert_eq!(sr.listed().await?.len(), 30);
        let three = [("volume.list".to_owned(), 1), ("volume.show".to_owned(), 3)];
        assert_eq!(counts(&sr.simulated), three.into());

        // Resized, removed and put offline by hand: the next scan shows it.
        let (one, two, last) = (name(21), name(22), name(30));
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
        sr.simulated.fault("volume.describe", 0, array_sim::core::Effect::DropReply);
        sr.until_done(update).await?;
        sr.driver =
            array_matrix::sr::open::<Ps, false>(&sr.host, &sr.simulated.config.clone()).await?;
        assert_eq!(sr.listed().await?[&vdi(5)].name, "web");
        Ok(())
    })
    .unwrap();
}

/// What is kept with a snapshot of a set has room beside a name that people give; where it has not,
/// that is said before anything is taken.
#[test]
fn a_set_fits_into_a_description_or_is_refused_before_it_is_taken() {
    run(async {
        let mut sr = Fixture::new().sr().await?;
        sr.until_done(SrCreate::default()).await?;
        sr.until_done(create(1, 30 * MIB)).await?;
        let (key, value) = ("sm:set".to_owned(), "XyLg8A5NT1ydC2uPax96EQqRb4/wf8".to_owned());
        let mut take = snapshot(1, 2);
        take.snapshots[0].name = "x".repeat(40);
        let ahead = |take: &VdiSnapshot| VdiSnapshotPrepare {
            snapshots: take.snapshots.clone(),
            keys: [(key.clone(), value.clone())].into(),
            abandon: false,
        };
        let before = sr.simulated.objects();
        let error = sr.driver.call(ahead(&take)).await.unwrap_err();
        assert_eq!(error.kind, Kind::Limit);
        let room = " bytes on the array, which has room for 127";
        assert!(error.message.starts_with("name, description and keys take "), "{error}");
        assert!(error.message.ends_with(room), "{error}");
        assert_eq!(
            error.hint.as_deref(),
            Some("shorten the name or the description, or remove keys")
        );
        assert_eq!(sr.simulated.objects(), before);

        take.snapshots[0].name = "nightly".into();
        let id = OperationId::from_halves([79, 1]);
        sr.driver.call(ahead(&take)).operation_id(id).await?;
        sr.driver.call(take).operation_id(id).await?;
        let mut mark = rename(2, "");
        (mark.name, mark.keys) = (None, [(key.clone(), Some(value.clone()))].into());
        sr.until_done(mark).await?;
        let listed = sr.holds(&[1, 2], "marked").await?;
        assert_eq!(listed[&vdi(2)].keys[&key], value);
        sr.driver.close().await;
        Ok(())
    })
    .unwrap();
}
