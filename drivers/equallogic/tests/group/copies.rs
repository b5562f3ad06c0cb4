//! Clones: the group copies what is used, and tells how far it is.

use array_sim::core::{Effect, Fault, Volume};
use plugin_sdk::prelude::*;

use crate::support::{Fixture, MIB, clone, create, name, run, vdi};

const GIB: u64 = 1 << 30;

/// A volume of 40 GiB of which a part is used: what is copied is that part, within the array. (The
/// part is 70 MiB here, so that a build machine's disk is not what is measured.)
#[test]
fn a_clone_copies_used_pages_only_and_shows_how_far_it_is() {
    run(async {
        let mut sr = Fixture::new().sr().await?;
        sr.until_done(SrCreate::default()).await?;
        sr.until_done(create(1, 40 * GIB)).await?;
        let array = sr.simulated.array.clone();
        let source = name(1);
        for n in 0..70 {
            // All over the volume.
            array.write(&source, n * (40 * GIB / 70), &vec![n as u8 + 1; MIB as usize]).unwrap();
        }
        let volume = |name: &str| array.current().get::<Volume>(name).unwrap();
        let used = array.referenced(volume(&source).layer);
        assert!((70 * MIB..75 * MIB).contains(&used), "{used}");
        let before = array.space("default").unwrap().used;
        array.set(|settings| settings.job = 1500).unwrap();
        array.requests().clear();

        let cloned = sr.until_done(clone(1, 2)).await?.vdi;
        let space = array.space("default").unwrap().used - before;
        assert_eq!(space, used, "the array copied what is used, and nothing else");
        assert!(cloned.virtual_size.0 >= 40 * GIB);
        for n in [0, 33, 69] {
            let there = array.read(&name(2), n * (40 * GIB / 70), 8).unwrap();
            assert_eq!(there, [n as u8 + 1; 8]);
        }
        // The host carried commands, and no data: each is a line.
        let asked = array.requests().all();
        assert!(asked.iter().all(|asked| asked.line.len() < 300));
        let steps: Vec<u32> = sr.host.progress().iter().map(|step| step.permille).collect();
        println!("{} commands, progress {steps:?}", asked.len());
        assert!(steps.len() >= 3 && steps.is_sorted(), "{steps:?}");
        assert!(steps.iter().any(|step| (1..1000).contains(step)), "{steps:?}");
        assert_eq!(steps.last(), Some(&1000));
        assert_eq!(sr.host.progress()[0].stage, "the array copies used pages");
        Ok(())
    })
    .unwrap();
}

/// The array gives up in the middle: what it had made is removed, and the wish can be repeated.
#[test]
fn a_copy_that_fails_leaves_nothing() {
    run(async {
        let mut sr = Fixture::new().sr().await?;
        sr.until_done(SrCreate::default()).await?;
        sr.until_done(create(1, 30 * MIB)).await?;
        let array = sr.simulated.array.clone();
        let effect = Effect::JobFails { error: "no".into() };
        array.faults().add(Fault { call: "volume.clone".into(), after: 0, times: 1, effect });
        let error = sr.driver.call(clone(1, 2)).await.unwrap_err();
        assert_eq!(error.message, format!("{}: the array's copy failed", name(2)));
        sr.holds(&[1], "after the failure").await?;
        assert!(array.current().get::<Volume>(&name(2)).is_none());
        sr.until_done(clone(1, 2)).await?;
        sr.holds(&[1, 2], "after the second try").await?;
        Ok(())
    })
    .unwrap();
}

/// Who could reach the source cannot reach the clone.
#[test]
fn a_clone_begins_without_hosts_and_without_the_text_of_its_source() {
    run(async {
        let mut sr = Fixture::new().sr().await?;
        sr.until_done(SrCreate::default()).await?;
        sr.until_done(create(1, 30 * MIB)).await?;
        let attach = VdiAttach { vdi: vdi(1), mode: AttachMode::ReadWrite };
        sr.until_done(attach).await?;
        sr.simulated.fault("volume.clone", 0, Effect::DropReply);
        let made = sr.until_done(clone(1, 2)).await?.vdi;
        assert_eq!((made.name.as_str(), sr.repeated), ("clone 2", 0));
        let volume = sr.simulated.array.current().get::<Volume>(&name(2)).unwrap();
        assert_eq!(array_sim::equallogic::execute::records(&volume.attributes).len(), 0);
        Ok(())
    })
    .unwrap();
}
