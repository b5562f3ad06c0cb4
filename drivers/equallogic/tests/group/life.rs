//! The life of an SR, as far as this command line is peculiar.

use array_matrix::life::live;
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
