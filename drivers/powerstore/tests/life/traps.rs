//! What makes drivers of this array wrong.

use array_matrix::wishes::{
    MIB, attach, clone, create, destroy, detach, revert, snapshot, snapshots, vdi,
};
use array_matrix::{Simulated, Sr};
use array_sim::core::{Effect, Snapshot};
use plugin_sdk::model::vdi::{Qos, Rate, VdiQos};
use plugin_sdk::prelude::*;
use plugin_sdk::testing::run;
use serde_json::{Value, json};

use crate::array::{Array, managed};

async fn attached() -> Result<Sr<Array>> {
    let mut sr = Sr::<Array>::new().await?;
    sr.until_done(SrCreate::default()).await?;
    sr.until_done(SrAttach {}).await?;
    sr.until_done(create(1, 30 * MIB)).await?;
    Ok(sr)
}

fn counted(sr: &Sr<Array>, call: &str) -> usize {
    sr.asked.iter().filter(|asked| asked.call == call).count()
}

/// The array's default would leave a snapshot under a name of its own.
#[test]
fn a_revert_leaves_no_backup_behind() {
    run(async {
        let mut sr = attached().await?;
        sr.until_done(snapshot(1, 2)).await?;
        let before = sr.simulated.array.current().count::<Snapshot>();
        sr.until_done(revert(1, 2)).await?;
        assert_eq!(sr.simulated.array.current().count::<Snapshot>(), before);
        Ok(())
    })
    .unwrap();
}

/// Who was detached by somebody else is detached; the number is that of the mapping.
#[test]
fn a_volume_that_is_attached_or_detached_already_is_no_failure() {
    run(async {
        let mut sr = attached().await?;
        let volume = sr.volume(1);
        let hosts = managed(&sr.simulated, &[("GET", "host?select=id,name", Value::Null)]).await;
        let own = hosts[0].1.as_array().unwrap().iter().find(|host| host["name"] != "them");
        let own = json!({ "host_id": own.unwrap()["id"] });
        let path = format!("volume/{volume}/attach");
        let mut with_lun = own.clone();
        with_lun["logical_unit_number"] = json!(16383);
        let said = managed(&sr.simulated, &[("POST", &path, with_lun)]).await;
        assert_eq!(said[0].0, 204, "{said:?}");
        // The watcher compares number and identity with what is served.
        sr.until_done(attach(1, AttachMode::ReadWrite)).await?;
        assert_eq!(counted(&sr, "volume.attach"), 1);
        let said =
            managed(&sr.simulated, &[("POST", &path.replace("attach", "detach"), own)]).await;
        assert_eq!(said[0].0, 204, "{said:?}");
        sr.until_done(detach(1)).await?;
        assert_eq!((sr.repeated, counted(&sr, "volume.detach")), (0, 1));
        Ok(())
    })
    .unwrap();
}

/// Another SR of this host was detached, and took the entry of the host with it.
#[test]
fn a_host_entry_that_vanished_is_made_again() {
    run(async {
        let mut sr = attached().await?;
        let hosts = managed(&sr.simulated, &[("GET", "host?select=id,name", Value::Null)]).await;
        let own = hosts[0].1.as_array().unwrap().iter().find(|host| host["name"] != "them");
        let path = format!("host/{}", own.unwrap()["id"].as_str().unwrap());
        let said = managed(&sr.simulated, &[("DELETE", &path, json!({}))]).await;
        assert_eq!(said[0].0, 204, "{said:?}");
        sr.until_done(attach(1, AttachMode::ReadWrite)).await?;
        assert_eq!((sr.repeated, counted(&sr, "host.create")), (0, 1));
        Ok(())
    })
    .unwrap();
}

/// Those of a group are clones: a disk is refreshed from one, and no group is left.
#[test]
fn a_disk_goes_back_to_a_snapshot_that_was_taken_with_others() {
    run(async {
        let mut sr = attached().await?;
        sr.until_done(create(2, 30 * MIB)).await?;
        sr.write(1, 11);
        sr.until_done(snapshots(&[(1, 3), (2, 4)])).await?;
        assert_eq!(counted(&sr, "volume_group.clone"), 1, "one instant");
        sr.write(1, 12);
        let before = sr.simulated.array.current().count::<Snapshot>();
        sr.until_done(revert(1, 3)).await?;
        assert_eq!((sr.content(1), counted(&sr, "volume.refresh")), (11, 1));
        assert_eq!(sr.simulated.array.current().count::<Snapshot>(), before);
        let path = "volume_group?select=name";
        let groups = managed(&sr.simulated, &[("GET", path, Value::Null)]).await;
        assert_eq!(groups[0].1, json!([{ "name": "theirs" }]));
        // The disk is kept for its snapshot, and goes with it.
        sr.until_done(destroy(1)).await?;
        sr.holds(&[2, 3, 4], "without the disk").await?;
        sr.until_done(destroy(3)).await?;
        sr.holds(&[2, 4], "without both").await?;
        let path = "volume?select=name&name=like.smv-*";
        let left = managed(&sr.simulated, &[("GET", path, Value::Null)]).await;
        assert_eq!(left[0].1.as_array().unwrap().len(), 1, "{:?}", left[0].1);
        Ok(())
    })
    .unwrap();
}

/// What is mapped to an entry of several initiators is mapped to all of them.
#[test]
fn an_entry_with_other_initiators_is_not_used() {
    run(async {
        let mut sr = attached().await?;
        let path = "host?select=id,name";
        let hosts = managed(&sr.simulated, &[("GET", path, Value::Null)]).await;
        let own = hosts[0].1.as_array().unwrap().iter().find(|host| host["name"] != "them");
        let own = own.unwrap();
        let path = format!("host/{}", own["id"].as_str().unwrap());
        let add = json!({ "add_initiators": [
            { "port_name": "iqn.2000-01.com.example:third", "port_type": "iSCSI" }] });
        let said = managed(&sr.simulated, &[("PATCH", &path, add)]).await;
        assert_eq!(said[0].0, 204, "{said:?}");
        sr.until_done(SrDetach {}).await?;
        // Nothing was mapped, so the entry that was ours is gone with the other's initiator.
        let add = json!({ "name": "both", "os_type": "Linux", "initiators": [
            { "port_name": array_matrix::host::IQN, "port_type": "iSCSI" },
            { "port_name": "iqn.2000-01.com.example:third", "port_type": "iSCSI" }] });
        let said = managed(&sr.simulated, &[("POST", "host", add)]).await;
        assert_eq!(said[0].0, 201, "{said:?}");
        let error = sr.driver.call(SrAttach {}).await.unwrap_err();
        assert_eq!(error.kind, Kind::Exists, "{error:?}");
        assert!(error.to_string().contains("other initiators than this host's"), "{error}");
        Ok(())
    })
    .unwrap();
}

/// A code says more than the status that it comes with, which is another one in some releases.
#[test]
fn codes_count_before_statuses() {
    run(async {
        let mut sr = attached().await?;
        let message = |code: &str| {
            let message = json!({ "code": code, "severity": "Error", "message_l10n": "no" });
            json!({ "messages": [message] }).to_string()
        };
        let refuse = |status, code: &str| Effect::Refuse {
            status,
            retry_after: None,
            body: Some(message(code)),
        };
        // Of a status that would leave open whether it was done.
        sr.simulated.fault("volume.snapshot", 0, refuse(500, "0xE0A040010003"));
        let error = sr.driver.call(snapshot(1, 2)).await.unwrap_err();
        assert_eq!(error.kind, Kind::Limit, "{error:?}");
        sr.simulated.fault("volume.delete", 0, refuse(400, "0xE0A08001000E"));
        sr.driver.call(destroy(1)).await?;
        sr.until_done(create(3, MIB)).await?;
        sr.simulated.fault("volume.delete", 0, refuse(422, "0xE0A080020001"));
        let error = sr.driver.call(destroy(3)).await.unwrap_err();
        assert_eq!(error.kind, Kind::InUse, "{error:?}");
        Ok(())
    })
    .unwrap();
}

/// Each change may bring another token; one that was missed costs a login, not the change.
#[test]
fn tokens_that_change_with_each_answer_are_taken() {
    run(async {
        let mut sr = Sr::<Array>::new().await?;
        sr.simulated
            .array
            .set(|all| {
                all.vendor.insert("rotate".to_owned(), json!(true));
            })
            .unwrap();
        let before = sr.simulated.array.sessions().opened();
        sr.until_done(SrCreate::default()).await?;
        sr.until_done(SrAttach {}).await?;
        for n in 1..4 {
            sr.until_done(create(n, MIB)).await?;
        }
        assert_eq!(sr.simulated.array.sessions().opened(), before, "nobody logs in again");
        Ok(())
    })
    .unwrap();
}

/// Limits are shared policies: they are read back with the listing, and go with the last volume.
#[test]
fn limits_are_read_back_and_leave_nothing_behind() {
    run(async {
        let mut sr = attached().await?;
        sr.until_done(create(2, MIB)).await?;
        let before = sr.simulated.objects();
        let rate = |per_second| Some(Rate { per_second, burst: None });
        let limits = Qos { operations: rate(500), bytes: rate(4_096_000) };
        for n in [1, 2] {
            let told = sr.until_done(VdiQos { vdi: vdi(n), qos: limits }).await?;
            assert_eq!(told.vdi.qos, limits);
        }
        let other = Qos { bytes: None, ..limits };
        sr.until_done(VdiQos { vdi: vdi(1), qos: other }).await?;
        let listed = sr.listed().await?;
        assert_eq!((listed[&vdi(1)].qos, listed[&vdi(2)].qos), (other, limits));
        for n in [1, 2] {
            sr.until_done(VdiQos { vdi: vdi(n), qos: Qos::default() }).await?;
        }
        let lifted = |mut objects: Value| {
            for volume in objects["volume"].as_object_mut().unwrap().values_mut() {
                volume["attributes"].as_object_mut().unwrap().remove("qos_performance_policy_id");
            }
            objects
        };
        assert_eq!(lifted(sr.simulated.objects()), lifted(before));
        // A disk that goes takes its policy along.
        sr.until_done(VdiQos { vdi: vdi(2), qos: limits }).await?;
        sr.until_done(destroy(2)).await?;
        let left = managed(&sr.simulated, &[("GET", "policy?select=name", Value::Null)]).await;
        assert_eq!(left[0].1, json!([{ "name": "slow" }]));
        let error = sr.driver.call(VdiQos { vdi: vdi(1), qos: Qos { bytes: rate(1), ..other } });
        let error = error.await.unwrap_err();
        assert_eq!(error.kind, Kind::Limit, "{error:?}");
        Ok(())
    })
    .unwrap();
}

/// The array removes the snapshots of a volume with it.
#[test]
fn a_disk_with_snapshots_of_others_stays_until_they_are_gone() {
    run(async {
        let mut sr = attached().await?;
        let path = format!("volume/{}/snapshot", sr.volume(1));
        let taken = managed(&sr.simulated, &[("POST", &path, json!({ "name": "nightly" }))]).await;
        assert_eq!(taken[0].0, 200, "{taken:?}");
        let volume = sr.volume(1);
        sr.until_done(destroy(1)).await?;
        sr.holds(&[], "it is gone for the user").await?;
        assert_eq!(sr.volume(1), volume, "it is there for the snapshot");
        let path = format!("volume/{}", taken[0].1["id"].as_str().unwrap());
        let said = managed(&sr.simulated, &[("DELETE", &path, json!({}))]).await;
        assert_eq!(said[0].0, 204, "{said:?}");
        sr.until_done(SrDetach {}).await?;
        sr.until_done(SrDestroy {}).await?;
        Ok(())
    })
    .unwrap();
}

/// Releases before 4.0 have no limits, and refuse to be asked for them.
#[test]
fn an_older_release_is_not_asked_for_what_it_does_not_have() {
    let folder = tempfile::tempdir().unwrap();
    let settings = json!({ "version": "3.6.0.0" });
    let simulated = array_matrix::runtime().block_on(crate::array::start(folder.path(), settings));
    run(async {
        let mut sr = Sr::<Array>::on(folder, simulated, &[]).await?;
        sr.until_done(SrCreate::default()).await?;
        sr.until_done(create(1, MIB)).await?;
        sr.until_done(clone(1, 2)).await?;
        sr.holds(&[1, 2], "on 3.6").await?;
        let rate = Some(Rate { per_second: 500, burst: None });
        let limits = Qos { operations: rate, bytes: None };
        let error = sr.driver.call(VdiQos { vdi: vdi(1), qos: limits }).await.unwrap_err();
        assert_eq!(error.kind, Kind::Unsupported, "{error:?}");
        let asked = sr.simulated.array.requests().all();
        assert!(asked.iter().all(|one| !one.line.contains("qos")), "{asked:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_hidden_disk_goes_with_the_sr_wherever_that_is_cut_off() {
    let ask = async |simulated: &Simulated, method: &str, path: &str, body: Value| {
        let said = managed(simulated, &[(method, path, body)]).await;
        assert!(said[0].0 < 300, "{said:?}");
    };
    array_matrix::kills::hidden_disks_go_with_the_sr::<Array>(
        async |simulated, volume| {
            let path = format!("volume/{volume}/snapshot");
            ask(simulated, "POST", &path, json!({ "name": "nightly" })).await;
        },
        async |simulated, _| {
            ask(simulated, "DELETE", "volume/name:nightly", json!({})).await;
        },
    );
}

#[test]
fn a_group_that_was_never_finished_leaves_nothing_wherever_that_is_cut_off() {
    array_matrix::kills::cleanup_of_a_group::<Array>();
}
