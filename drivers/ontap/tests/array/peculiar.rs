//! What is peculiar to this vendor.

use array_kit::driver::Offload;
use array_matrix::wishes::{
    MIB, SR, attach, clone, create, destroy, detach, resize, revert, snapshot, snapshots, vdi,
};
use array_matrix::{Simulated, Sr, runtime};
use array_sim::core::Effect;
use array_sim::ontap::SVM;
use plugin_sdk::prelude::*;
use plugin_sdk::testing::{TestHost, run};
use serde_json::{Value, json};
use sm_driver_ontap::OntapProduct;

use crate::world::{Ontap, POOL, ask, start};

type Driver = Offload<OntapProduct>;

/// An SR on an array with settings of its own, and with more keys in its configuration.
async fn sr(settings: &[(&str, Value)], more: &[(&'static str, &str)]) -> Result<Sr<Ontap>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let settings: Vec<(String, Value)> =
        settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let starting = runtime().spawn(async move {
        let settings: Vec<(&str, Value)> =
            settings.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        start(&path, &settings).await
    });
    let simulated = starting.await.unwrap();
    let more: Vec<_> = more.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
    let mut sr = Sr::on(folder, simulated, &more).await?;
    sr.until_done(SrCreate::default()).await?;
    sr.until_done(SrAttach {}).await?;
    Ok(sr)
}

fn count(sr: &Sr<Ontap>, call: &str) -> usize {
    sr.asked.iter().filter(|asked| asked.call == call).count()
}

/// 300 GiB become 322163441664 bytes: what the array says is what the disk has.
#[test]
fn the_size_that_the_array_made_is_that_of_the_disk() {
    run(async {
        let mut sr = sr(&[("geometry", json!(47 << 20))], &[]).await?;
        let made = sr.until_done(create(1, 300 << 30)).await?.vdi;
        assert_eq!(made.virtual_size, Bytes(322_163_441_664));
        assert_eq!(sr.holds(&[1], "made").await?[&vdi(1)].virtual_size, Bytes(322_163_441_664));
        // The size that it has, by either number, is no change.
        for size in [300 << 30, 322_163_441_664] {
            let same = sr.until_done(resize(1, size)).await?;
            assert_eq!((same.changed, count(&sr, "lun.modify")), (Changed::Already, 0), "{size}");
        }
        let grown = sr.until_done(resize(1, 400 << 30)).await?.vdi;
        assert!(grown.virtual_size.0 > 400 << 30, "{}", grown.virtual_size.0);
        assert_eq!(sr.listed().await?[&vdi(1)].virtual_size, grown.virtual_size);
        assert_eq!(sr.until_done(resize(1, 400 << 30)).await?.changed, Changed::Already);
        // A smaller one is none, however little: nobody asked for it.
        for size in [(400 << 30) - 4096, grown.virtual_size.0 - 4096] {
            let error = sr.driver.call(resize(1, size)).await.unwrap_err();
            assert_eq!((error.kind.clone(), error.legacy_code()), (Kind::Limit, 79), "{size}");
        }
        let error = sr.driver.call(create(1, (400 << 30) - 4096)).await.unwrap_err();
        assert_eq!(error.kind, Kind::Exists, "{error:?}");
        // A disk that was put back has the size of then, by both numbers.
        sr.until_done(snapshot(1, 2)).await?;
        sr.until_done(resize(1, 500 << 30)).await?;
        let back = sr.until_done(revert(1, 2)).await?.vdi;
        assert_eq!(back.virtual_size, grown.virtual_size);
        let same = sr.until_done(resize(1, 400 << 30)).await?;
        assert_eq!((same.changed, same.vdi.virtual_size), (Changed::Already, grown.virtual_size));
        sr.driver.close().await;
        Ok(())
    })
    .unwrap();
}

/// An error that says that the LUN is there, and not all of it: it is looked for, never made again.
#[test]
fn what_was_made_and_is_not_complete_is_completed() {
    run(async {
        let mut sr = sr(&[], &[]).await?;
        let vendor = |settings: &mut array_sim::core::Settings| {
            settings.vendor.insert("incomplete".to_owned(), json!(true));
        };
        sr.simulated.array.set(vendor).unwrap();
        let made = sr.until_done(create(1, MIB)).await?;
        assert_eq!((made.changed, made.vdi.name.as_str()), (Changed::Created, "disk 1"));
        assert_eq!((count(&sr, "lun.create"), sr.repeated), (1, 0));
        let listed = sr.holds(&[1], "completed").await?;
        assert_eq!(listed[&vdi(1)].name, "disk 1");
        sr.driver.close().await;
        Ok(())
    })
    .unwrap();
}

#[test]
fn an_empty_page_with_a_next_one_is_not_the_end() {
    run(async {
        let mut sr = sr(&[("empty_pages", json!(true))], &[]).await?;
        for n in 1..=3 {
            sr.until_done(create(n, MIB)).await?;
        }
        sr.until_done(snapshot(2, 4)).await?;
        sr.holds(&[1, 2, 3, 4], "with empty pages").await?;
        sr.driver.close().await;
        Ok(())
    })
    .unwrap();
}

/// A map that is there answers with its number, one that is not is no error.
#[test]
fn a_map_that_is_there_is_read_and_one_that_is_gone_is_gone() {
    run(async {
        let mut sr = sr(&[], &[]).await?;
        sr.until_done(create(1, MIB)).await?;
        let first = sr.until_done(attach(1, AttachMode::ReadWrite)).await?;
        assert_eq!(sr.until_done(attach(1, AttachMode::ReadWrite)).await?, first);
        assert_eq!((count(&sr, "map.create"), count(&sr, "map.query")), (1, 1));
        let (_, maps) =
            ask(&sr.simulated, "GET /protocols/san/lun-maps?lun.name=*smv*", &json!({})).await;
        let map = &maps["records"][0];
        let (lun, igroup) = (map["lun"]["uuid"].as_str().unwrap(), &map["igroup"]["uuid"]);
        let line = format!("DELETE /protocols/san/lun-maps/{lun}/{}", igroup.as_str().unwrap());
        assert_eq!(ask(&sr.simulated, &line, &json!({})).await.0, 200);
        sr.until_done(detach(1)).await?;
        // Somebody removed the group, and it comes again.
        let line = format!("DELETE /protocols/san/igroups/{}", igroup.as_str().unwrap());
        assert_eq!(ask(&sr.simulated, &line, &json!({})).await.0, 200);
        sr.until_done(attach(1, AttachMode::ReadWrite)).await?;
        sr.until_done(detach(1)).await?;
        sr.driver.close().await;
        Ok(())
    })
    .unwrap();
}

/// A group of this name with others in it would let them to the LUNs.
#[test]
fn a_group_with_others_in_it_is_not_used() {
    run(async {
        let mut sr = sr(&[], &[]).await?;
        let (_, groups) =
            ask(&sr.simulated, "GET /protocols/san/igroups?name=sm-*", &json!({})).await;
        let uuid = groups["records"][0]["uuid"].as_str().unwrap().to_owned();
        let line = format!("POST /protocols/san/igroups/{uuid}/initiators");
        let body = json!({ "name": "iqn.2000-01.com.example:stranger" });
        assert_eq!(ask(&sr.simulated, &line, &body).await.0, 201);
        sr.driver.close().await;
        let more: Vec<_> = sr.simulated.config.clone();
        let keys: Vec<(&str, &str)> = more.iter().map(|(k, v)| (*k, v.as_str())).collect();
        sr.driver = sr.host.open(SR, &keys).await?;
        let error = sr.driver.call(SrAttach {}).await.unwrap_err();
        assert_eq!(error.kind, Kind::Exists, "{error:?}");
        let end = "it has other initiators than this host's, which would reach the same volumes";
        assert!(error.message.ends_with(end), "{}", error.message);
        sr.driver.close().await;
        Ok(())
    })
    .unwrap();
}

/// Also where it has snapshots, which would stay: the other host uses it.
#[test]
fn a_disk_that_another_host_has_is_not_destroyed() {
    run(async {
        let mut sr = sr(&[], &[]).await?;
        sr.until_done(create(1, MIB)).await?;
        sr.until_done(snapshot(1, 2)).await?;
        let map = json!({ "lun.name": sr.volume(1), "igroup.name": "theirs", "svm.name": SVM });
        assert_eq!(ask(&sr.simulated, "POST /protocols/san/lun-maps", &map).await.0, 201);
        let error = sr.driver.call(destroy(1)).await.unwrap_err();
        assert_eq!(error.kind, Kind::InUse, "{error:?}");
        let end = "is mapped to other hosts: iqn.2000-01.com.example:them";
        assert!(error.message.ends_with(end), "{}", error.message);
        sr.holds(&[1, 2], "refused").await?;
        sr.driver.close().await;
        Ok(())
    })
    .unwrap();
}

/// A revert makes the LUN a clone of its snapshot: its identity, name and limits stay its own.
#[test]
fn a_disk_that_is_put_back_stays_itself() {
    run(async {
        let mut sr = sr(&[], &[]).await?;
        sr.until_done(create(1, 3 * MIB)).await?;
        let first = sr.until_done(attach(1, AttachMode::ReadWrite)).await?;
        sr.until_done(detach(1)).await?;
        let rate = |per_second| Some(Rate { per_second, burst: None });
        let qos = Qos { operations: rate(500), bytes: rate(20 << 20) };
        sr.until_done(VdiQos { vdi: vdi(1), qos }).await?;
        sr.write(1, 7);
        sr.until_done(snapshot(1, 2)).await?;
        sr.write(1, 8);
        sr.until_done(array_matrix::wishes::rename(1, "later")).await?;
        sr.until_done(revert(1, 2)).await?;
        assert_eq!(sr.content(1), 7);
        let listed = sr.holds(&[1, 2], "put back").await?;
        let disk = &listed[&vdi(1)];
        assert_eq!((disk.name.as_str(), disk.qos), ("later", qos));
        assert_eq!(sr.until_done(attach(1, AttachMode::ReadWrite)).await?, first, "the same LUN");
        sr.until_done(detach(1)).await?;
        // A clone begins without limits, and a policy that nobody needs is not kept.
        sr.until_done(clone(1, 3)).await?;
        assert_eq!(sr.listed().await?[&vdi(3)].qos, Qos::default());
        sr.until_done(VdiQos { vdi: vdi(1), qos: Qos::default() }).await?;
        let policies = ask(&sr.simulated, "GET /storage/qos/policies", &json!({})).await.1;
        assert_eq!(policies["records"], json!([]));
        sr.driver.close().await;
        Ok(())
    })
    .unwrap();
}

/// Jobs: their record is gone, they fail after their work, they take a while. With a FlexVol that the
/// driver makes, and removes with the SR.
#[test]
fn a_job_is_waited_for_and_its_object_counts() {
    for effect in [None, Some(Effect::JobLost)] {
        run(async {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().to_owned();
            let starting = runtime().spawn(async move { start(&path, &[]).await });
            let simulated = starting.await.unwrap();
            let foreign = simulated.objects();
            simulated.array.set(|settings| settings.job = 20_000).unwrap();
            if let Some(effect) = &effect {
                simulated.fault("volume.create", 0, effect.clone());
                simulated.fault("snapshot.create", 0, effect.clone());
                simulated.fault("snapshot.delete", 0, effect.clone());
                simulated.fault("volume.delete", 0, effect.clone());
            }
            // The array's clock runs a hundred times as fast, so that a job is seen running.
            let clock = simulated.array.clock().clone();
            let runs = runtime().spawn(async move {
                loop {
                    plugin_sdk::tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                    clock.advance(1000);
                }
            });
            let more = [("volume", "made".to_owned()), ("aggregate", "aggr1".to_owned())];
            let sr = Sr::<Ontap>::on(folder, simulated, &more).await?;
            sr.driver.call(SrCreate::default()).await?;
            sr.driver.call(SrAttach {}).await?;
            for n in [1, 2] {
                sr.driver.call(create(n, MIB)).await?;
            }
            sr.driver.call(snapshots(&[(1, 3), (2, 4)])).await?;
            sr.holds(&[1, 2, 3, 4], "caught").await?;
            let jobs = sr.simulated.array.requests().all();
            let jobs = jobs.iter().filter(|asked| asked.call == "job.get").count();
            assert!(jobs > 1, "{effect:?}: {jobs}");
            for n in 1..=4 {
                sr.driver.call(destroy(n)).await?;
            }
            sr.driver.call(SrDetach {}).await?;
            sr.driver.call(SrDestroy {}).await?;
            runs.abort();
            assert_eq!(sr.simulated.objects(), foreign, "{effect:?}");
            sr.driver.close().await;
            Ok(())
        })
        .unwrap();
    }
}

/// The snapshot of the FlexVol is seen, and its job failed: nothing is left of the group.
#[test]
fn a_group_whose_job_fails_leaves_nothing() {
    run(async {
        let mut sr = sr(&[], &[]).await?;
        for n in [1, 2] {
            sr.until_done(create(n, MIB)).await?;
        }
        let before = sr.simulated.objects();
        let error = "525062: No more Snapshot copies can be created in the volume.".to_owned();
        sr.simulated.fault("snapshot.create", 0, Effect::JobFails { error });
        let error = sr.driver.call(snapshots(&[(1, 3), (2, 4)])).await.unwrap_err();
        assert_eq!(error.kind, Kind::Limit, "{error:?}");
        assert_eq!(sr.simulated.objects(), before);
        sr.until_done(snapshots(&[(1, 3), (2, 4)])).await?;
        sr.holds(&[1, 2, 3, 4], "caught").await?;
        sr.driver.close().await;
        Ok(())
    })
    .unwrap();
}

fn keys<'a>(
    simulated: &'a Simulated,
    other: &[(&'static str, &'a str)],
) -> Vec<(&'static str, &'a str)> {
    let given = simulated.config.iter().filter(|(key, _)| other.iter().all(|(own, _)| own != key));
    let given = given.map(|(key, value)| (*key, value.as_str()));
    given.chain(other.iter().copied()).filter(|(_, value)| !value.is_empty()).collect()
}

async fn refused(simulated: &Simulated, other: &[(&'static str, &'static str)]) -> Error {
    simulated.array.requests().clear();
    match TestHost::new().open::<Driver>(SR, &keys(simulated, other)).await {
        Ok(_) => panic!("it opens with {other:?}"),
        Err(error) => error,
    }
}

/// One question, so that no account is locked; and it is said without the password.
#[test]
fn what_cannot_be_opened_says_why() {
    run(async {
        let sr = sr(&[("version", json!("9.9.1"))], &[]).await;
        let Err(error) = sr else { panic!("ONTAP 9.9.1 is taken") };
        assert_eq!(
            (error.kind.clone(), error.message.as_str()),
            (Kind::Unsupported, "the array has ONTAP 9.9.1")
        );
        let (_folder, simulated) = array_matrix::sr::start::<Ontap>();
        let error = refused(&simulated, &[("password", "canary-of-the-mine")]).await;
        assert_eq!(error.kind, Kind::Auth, "{error:?}");
        assert_eq!(error.message, "the array does not accept user and password");
        assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        assert_eq!(simulated.array.requests().all().len(), 1);
        let error = refused(&simulated, &[("svm", "other")]).await;
        assert_eq!(error.kind, Kind::NotFound, "{error:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_volume_that_is_not_there_is_told_and_a_probe_shows_those_that_are() {
    run(async {
        let mut sr = sr(&[], &[]).await?;
        sr.until_done(SrUpdate { name: Some("vms".into()), description: None }).await?;
        let found =
            TestHost::new().probe::<Driver>(&keys(&sr.simulated, &[("volume", "")])).await?;
        let short: Vec<_> = found
            .items
            .iter()
            .map(|item| {
                let sr = item.sr.as_ref().map(|sr| (sr.uuid, sr.name.as_str()));
                (item.configuration["volume"].as_str(), item.complete, sr)
            })
            .collect();
        assert_eq!(short, [(POOL, true, Some((SR, "vms"))), (POOL, true, None)]);
        assert!(found.items[1].extra_info.contains_key("free"));
        sr.driver.close().await;
        let keys = keys(&sr.simulated, &[("volume", "nowhere")]);
        let driver = TestHost::new().open::<Driver>(SR, &keys).await?;
        let error = driver.call(SrCreate::default()).await.unwrap_err();
        assert_eq!(error.kind, Kind::NotFound, "{error:?}");
        let fact = format!("the SVM {SVM} has no volume nowhere");
        assert!(error.message.ends_with(&fact), "{}", error.message);
        driver.close().await;
        Ok(())
    })
    .unwrap();
}
