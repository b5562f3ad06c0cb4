//! What makes drivers of this vendor wrong.

use array_matrix::host::IQN;
use array_matrix::wishes::{
    MIB, attach, clone, create, destroy, detach, resize, revert, snapshot, snapshots, vdi,
};
use array_matrix::{Sr, Vendor};
use array_sim::core::{Effect, Fault};
use plugin_sdk::model::vdi::{Qos, Rate, VdiQos};
use plugin_sdk::prelude::*;
use plugin_sdk::testing::run;
use serde_json::{Value, json};

use crate::array::{Console, Newer, Older};

/// An SR that is attached, with these keys, and a disk 1.
async fn with_disk<V: Vendor>(more: &[(&'static str, &str)]) -> Result<Sr<V>> {
    let (folder, simulated) = array_matrix::sr::start::<V>();
    let more: Vec<_> = more.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
    let mut sr = Sr::<V>::on(folder, simulated, &more).await?;
    sr.until_done(SrCreate::default()).await?;
    sr.until_done(SrAttach {}).await?;
    sr.until_done(create(1, 30 * MIB)).await?;
    Ok(sr)
}

fn set<V: Vendor>(sr: &Sr<V>, name: &str, value: Value) {
    let set = |settings: &mut array_sim::core::Settings| {
        settings.vendor.insert(name.to_owned(), value);
    };
    sr.simulated.array.set(set).unwrap();
}

/// Destroyed volumes and snapshots of the array.
async fn pending<V: Vendor>(sr: &Sr<V>, path: &str) -> usize {
    let console = Console::new(&sr.simulated).await;
    let found = console.ask("GET", &format!("{path}?destroyed=true"), &Value::Null).await;
    found["items"].as_array().unwrap().len()
}

/// A name stays taken while its volume waits for its eradication, also where nobody may eradicate.
async fn name_is_free_again<V: Vendor>(keys: &[(&'static str, &str)], safe: bool) -> Result<()> {
    let mut sr = with_disk::<V>(keys).await?;
    if safe {
        set(&sr, "manual_eradication", json!(false));
    }
    for round in 1..=2 {
        sr.until_done(snapshot(1, 2)).await?;
        sr.until_done(destroy(2)).await?;
        sr.until_done(destroy(1)).await?;
        sr.holds(&[], "destroyed").await?;
        assert!(pending(&sr, "volumes").await >= round, "it is kept under another name");
        sr.until_done(create(1, 40 * MIB)).await?;
        let listed = sr.holds(&[1], "made anew").await?;
        assert_eq!(listed[&vdi(1)].virtual_size, Bytes(40 * MIB));
    }
    // After the array's delay they are gone by themselves.
    sr.simulated.array.clock().advance(86_400_001);
    sr.holds(&[1], "a day later").await?;
    assert_eq!((pending(&sr, "volumes").await, pending(&sr, "volume-snapshots").await), (0, 0));
    Ok(())
}

#[test]
fn a_name_is_free_again_while_its_volume_waits_for_its_eradication() {
    run(async {
        name_is_free_again::<Newer>(&[("eradicate", "false")], false).await?;
        name_is_free_again::<Newer>(&[], true).await?;
        name_is_free_again::<Older>(&[("eradicate", "false")], false).await
    })
    .unwrap();
}

#[test]
fn what_somebody_destroyed_on_the_array_is_not_there() {
    run(async {
        let mut sr = with_disk::<Newer>(&[]).await?;
        sr.until_done(snapshot(1, 2)).await?;
        sr.until_done(clone(1, 3)).await?;
        let console = Console::new(&sr.simulated).await;
        let names = format!("volumes?names={}", sr.volume(3));
        console.ask("PATCH", &names, &json!({ "destroyed": true })).await;
        sr.holds(&[1, 2], "the clone").await?;
        let error = sr.driver.call(VdiStat { vdi: vdi(3), space: false }).await.unwrap_err();
        assert_eq!(error.message, format!("there is no VDI {}", vdi(3)));
        let names = format!("volumes?names={}", sr.volume(1));
        console.ask("PATCH", &names, &json!({ "destroyed": true })).await;
        sr.holds(&[], "the disk, and its snapshot with it").await?;
        console.ask("PATCH", &names, &json!({ "destroyed": false })).await;
        sr.holds(&[1, 2], "brought back").await?;
        Ok(())
    })
    .unwrap();
}

/// A rename is never sent twice; a rollback is a POST; a request names one object; no connection has
/// the number 0.
async fn requests_are_sound<V: Vendor>() -> Result<()> {
    let mut sr = with_disk::<V>(&[]).await?;
    sr.until_done(snapshot(1, 2)).await?;
    sr.until_done(revert(1, 2)).await?;
    let overwrites: Vec<_> =
        sr.asked.iter().filter(|one| one.line.contains("overwrite=true")).collect();
    assert!(overwrites.len() == 1 && overwrites[0].call == "POST volumes", "{overwrites:?}");
    assert!(sr.asked.iter().all(|one| one.call != "PATCH volumes"), "{:?}", sr.asked);
    sr.until_done(attach(1, AttachMode::ReadWrite)).await?;
    let luns: Vec<u16> = sr.simulated.exports().iter().map(|export| export.lun).collect();
    assert!(luns.iter().all(|lun| (1..=4095).contains(lun)), "{luns:?}");
    sr.until_done(detach(1)).await?;
    sr.until_done(destroy(2)).await?;
    sr.simulated.array.requests().clear();
    // Of the two the first is the new name: its answer is lost.
    sr.simulated.fault("PATCH volumes", 0, Effect::DropReply);
    sr.driver.call(destroy(1)).await?;
    let all = sr.simulated.array.requests().all();
    let patches = all.iter().filter(|one| one.call == "PATCH volumes").count();
    assert_eq!(patches, 2, "{all:#?}");
    for one in &all {
        let query = one.line.split_once('?').map_or("", |(_, query)| query);
        assert!(!query.contains("%2C") && !query.contains(','), "{one:?}");
    }
    sr.holds(&[], "in the end").await.map(drop)
}

#[test]
fn requests_name_one_object_and_a_rename_is_not_sent_twice() {
    run(requests_are_sound::<Newer>()).unwrap();
}

#[test]
fn a_busy_server_is_asked_again_also_at_login() {
    run(async {
        let mut sr = with_disk::<Newer>(&[]).await?;
        let body = json!({ "errors": [{ "message": "Server is busy", "context": null }] });
        let busy = |call: &str, times| Fault {
            call: call.to_owned(),
            after: 0,
            times,
            effect: Effect::Refuse { status: 500, retry_after: None, body: Some(body.to_string()) },
        };
        let array = sr.simulated.array.clone();
        array.sessions().drop_all();
        array.faults().add(busy("POST login", 2));
        array.faults().add(busy("POST volumes", 2));
        array.requests().clear();
        sr.driver.call(create(2, MIB)).await?;
        let counts = array.requests().counts();
        assert_eq!(counts["POST login"], 3, "{counts:?}");
        // One of them had no session.
        assert_eq!(counts["POST volumes"], 4, "{counts:?}");
        sr.holds(&[1, 2], "in the end").await?;
        sr.until_done(destroy(2)).await?;
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_volume_that_somebody_uses_is_not_destroyed_and_keeps_its_name() {
    run(async {
        let mut sr = with_disk::<Newer>(&[]).await?;
        let console = Console::new(&sr.simulated).await;
        let both = format!("connections?host_names=theirs&volume_names={}", sr.volume(1));
        console.ask("POST", &both, &json!({})).await;
        let error = sr.driver.call(destroy(1)).await.unwrap_err();
        let others = "iqn.2000-01.com.example:them";
        assert_eq!(error.message, format!("VDI {} is mapped to other hosts: {others}", vdi(1)));
        sr.holds(&[1], "refused").await?;
        console.ask("DELETE", &both, &Value::Null).await;
        sr.until_done(destroy(1)).await?;
        sr.holds(&[], "destroyed").await?;
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_host_of_the_administrators_is_used_and_one_of_several_initiators_is_not() {
    run(async {
        let mut sr = Sr::<Newer>::new().await?;
        let console = Console::new(&sr.simulated).await;
        let initiators = json!({ "iqns": [IQN.to_uppercase().replace("IQN", "iqn")] });
        console.ask("POST", "hosts?names=web1", &initiators).await;
        sr.until_done(SrCreate::default()).await?;
        sr.until_done(SrAttach {}).await?;
        sr.until_done(create(1, MIB)).await?;
        sr.until_done(attach(1, AttachMode::ReadWrite)).await?;
        let found = console.ask("GET", "connections?host_names=web1", &Value::Null).await;
        assert_eq!(found["items"][0]["lun"], 1, "{found}");
        sr.until_done(detach(1)).await?;
        sr.until_done(SrDetach {}).await?;
        console.ask("GET", "hosts?names=web1", &Value::Null).await;
        let more = json!({ "add_iqns": ["iqn.2000-01.com.example:other"] });
        console.ask("PATCH", "hosts?names=web1", &more).await;
        let error = sr.driver.call(SrAttach {}).await.unwrap_err();
        let fact = "it has other initiators than this host's, which would reach the same volumes";
        assert_eq!(error.message, format!("host web1: {fact}"));
        Ok(())
    })
    .unwrap();
}

async fn limits<V: Vendor>() -> Result<()> {
    let mut sr = with_disk::<V>(&[]).await?;
    let rate = |per_second| Some(Rate { per_second, burst: None });
    let qos = |operations, bytes| VdiQos { vdi: vdi(1), qos: Qos { operations, bytes } };
    let wanted = qos(rate(500), rate(10 << 20));
    assert_eq!(sr.until_done(wanted.clone()).await?.vdi.qos, wanted.qos);
    assert_eq!(sr.listed().await?[&vdi(1)].qos, wanted.qos, "also in a listing");
    sr.until_done(resize(1, 40 * MIB)).await?;
    assert_eq!(sr.listed().await?[&vdi(1)].qos, wanted.qos, "and after a resize");
    let error = sr.driver.call(qos(rate(99), None)).await.unwrap_err();
    assert_eq!(error.message, "the array cannot limit a disk to 99 requests per second");
    sr.until_done(qos(None, rate(1 << 20))).await?;
    assert_eq!(sr.listed().await?[&vdi(1)].qos, qos(None, rate(1 << 20)).qos);
    sr.until_done(qos(None, None)).await?;
    assert_eq!(sr.listed().await?[&vdi(1)].qos, Qos::default());
    Ok(())
}

#[test]
fn limits_are_kept_by_the_array_and_lifted() {
    run(async {
        limits::<Newer>().await?;
        limits::<Older>().await
    })
    .unwrap();
}

async fn group<V: Vendor>() -> Result<()> {
    let mut sr = with_disk::<V>(&[]).await?;
    sr.until_done(create(2, 30 * MIB)).await?;
    sr.write(1, 11);
    sr.write(2, 21);
    sr.until_done(snapshots(&[(1, 3), (2, 4)])).await?;
    sr.write(1, 12);
    sr.write(2, 22);
    let listed = sr.holds(&[1, 2, 3, 4], "caught").await?;
    assert_eq!(listed[&vdi(4)].snapshot_of, Some(vdi(2)));
    // Each goes by itself: nothing of the group is left on the array.
    let objects = sr.simulated.objects();
    let tables: Vec<&String> = objects.as_object().unwrap().keys().collect();
    assert!(tables.iter().all(|table| !table.contains("group")), "{tables:?}");
    sr.until_done(destroy(4)).await?;
    sr.until_done(revert(1, 3)).await?;
    assert_eq!((sr.content(1), sr.content(2)), (11, 22));
    sr.until_done(clone(3, 5)).await?;
    assert_eq!(sr.content(5), 11);
    // The disk is kept, hidden, for its snapshot.
    sr.until_done(destroy(1)).await?;
    sr.holds(&[2, 3, 5], "without the disk").await?;
    for n in [3, 5, 2] {
        sr.until_done(destroy(n)).await?;
    }
    sr.until_done(SrDetach {}).await?;
    sr.until_done(SrDestroy {}).await?;
    Ok(())
}

#[test]
fn a_group_is_caught_at_one_instant_and_its_snapshots_go_one_by_one() {
    run(async {
        group::<Newer>().await?;
        group::<Older>().await
    })
    .unwrap();
}

/// Half destroyed it has another name, by which no listing shows it.
fn a_hidden_disk<V: Vendor>() {
    array_matrix::kills::hidden_disks_go_with_the_sr::<V>(
        async |simulated, volume| {
            let path = format!("volume-snapshots?source_names={volume}");
            let suffix = json!({ "suffix": "nightly" });
            Console::new(simulated).await.ask("POST", &path, &suffix).await;
        },
        async |simulated, volume| {
            let console = Console::new(simulated).await;
            let path = format!("volume-snapshots?names={volume}.nightly");
            console.ask("PATCH", &path, &json!({ "destroyed": true })).await;
            console.ask("DELETE", &path, &Value::Null).await;
        },
    );
}

#[test]
fn a_hidden_disk_goes_with_the_sr_wherever_that_is_cut_off() {
    a_hidden_disk::<Newer>();
    a_hidden_disk::<Older>();
}

#[test]
fn a_group_that_was_never_finished_leaves_nothing_wherever_that_is_cut_off() {
    array_matrix::kills::cleanup_of_a_group::<Newer>();
}
