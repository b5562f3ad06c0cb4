//! Snapshots of several disks at one point in time, while they are written.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ::datapath::nbd::Client;
use ::datapath::nbd::client::Options;
use sm_core::model::vdi::{Qos, VdisDone};
use sm_core::model::{AttachMode, Bytes, Changed, ImageFormat, Kind, VdiUuid};
use sm_core::{
    Limits, NewSnapshot, NewVdi, Op, Rate, SnapshotSet, group_of, marks, snapshot_set_of,
};

use crate::datapath::{VM, guest, kill};
use crate::{PLACEMENTS, Site, files};

impl Site {
    async fn group(&self, op: &Op, disks: &[VdiUuid]) -> Result<VdisDone, sm_core::model::Error> {
        let specs: Vec<NewSnapshot> = disks
            .iter()
            .map(|vdi| NewSnapshot { vdi: *vdi, name: "g".into(), description: String::new() })
            .collect();
        self.sr.vdi_snapshot(op, &specs).await
    }

    async fn taken(&self, disks: &[VdiUuid]) -> Vec<VdiUuid> {
        let done = self.group(&Op::new(), disks).await.unwrap();
        assert_eq!(done.changed, Changed::Created);
        let of: Vec<VdiUuid> = done.vdis.iter().map(|vdi| vdi.snapshot_of.unwrap()).collect();
        assert_eq!(of, disks);
        assert!(done.vdis.iter().all(|vdi| vdi.snapshot_time == done.vdis[0].snapshot_time));
        done.vdis.iter().map(|vdi| vdi.uuid).collect()
    }

    async fn number(&self, vdi: VdiUuid) -> u64 {
        u64::from_le_bytes(self.content(vdi).await[..8].try_into().unwrap())
    }
}

/// Writes n to the first disk, then to the second, and so on, until it is told to end; tells what is on
/// all of them.
fn write_in_order(
    uris: Vec<String>,
    end: Arc<AtomicBool>,
    on_all: Arc<AtomicU64>,
) -> std::thread::JoinHandle<u64> {
    std::thread::spawn(move || {
        let connect = |uri: &String| Client::connect(&uri.parse().unwrap(), &Options::default());
        let clients: Vec<Client> = uris.iter().map(|uri| connect(uri).unwrap()).collect();
        let mut n = 0_u64;
        while !end.load(Ordering::Relaxed) {
            n += 1;
            for client in &clients {
                let mut block = [0; 4096];
                block[..8].copy_from_slice(&n.to_le_bytes());
                client.write(0, &block, false).unwrap();
            }
            on_all.store(n, Ordering::Release);
        }
        n
    })
}

/// Waits until a program has written on all disks twice more.
async fn moves_on(on_all: &AtomicU64) {
    let from = on_all.load(Ordering::Acquire);
    let end = Instant::now() + Duration::from_secs(30);
    while on_all.load(Ordering::Acquire) < from + 2 {
        assert!(Instant::now() < end, "nothing is written any more");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn disks_that_one_program_writes_in_order_are_in_order_in_every_group() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let mut disks = Vec::new();
        let mut uris = Vec::new();
        for name in ["a", "b", "c"] {
            let (disk, uri) = site.served(name).await;
            disks.push(disk);
            uris.push(uri);
        }
        let mut load = Command::new("fio")
            .args(["--name=load", "--ioengine=nbd", &format!("--uri={}", uris[0])])
            .args(["--rw=randwrite", "--bs=4k", "--iodepth=4", "--offset=2m", "--size=4m"])
            .args(["--time_based", "--runtime=120"])
            .current_dir(&site.folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let end = Arc::new(AtomicBool::new(false));
        let on_all = Arc::new(AtomicU64::new(0));
        let writer = write_in_order(uris.clone(), end.clone(), on_all.clone());
        let mut groups = Vec::new();
        for _ in 0..12 {
            groups.push(site.taken(&disks).await);
        }
        assert_eq!(load.try_wait().unwrap(), None, "the load ended before the last group");
        // One after the other breaks what all of these keep: the test can fail.
        let first = site.snapshot(disks[0]).await;
        moves_on(&on_all).await;
        let second = site.snapshot(disks[1]).await;
        load.kill().unwrap();
        load.wait().unwrap();
        end.store(true, Ordering::Relaxed);
        let last = writer.join().unwrap();
        assert!(last > 100, "only {last} writes");
        let (a, b) = (site.number(first).await, site.number(second).await);
        assert!(a < b, "{a} and {b} are not of one point in time");
        let mut before = 0;
        for group in &groups {
            let (a, b, c) = (
                site.number(group[0]).await,
                site.number(group[1]).await,
                site.number(group[2]).await,
            );
            assert!(a >= b && b >= c && a - c <= 1, "{a} {b} {c}");
            assert!(a >= before, "{a} after {before}");
            before = a;
        }
        for disk in disks {
            site.detach(disk).await;
            assert!(site.sr.vdi_check(&Op::new(), disk).await.unwrap().findings.is_empty());
            assert_eq!(site.number(disk).await, last);
        }
    }
}

#[tokio::test]
async fn a_group_is_made_once_for_an_operation_and_anew_when_a_part_is_gone() {
    let site = Site::new(PLACEMENTS[0]).await;
    let (served, uri) = site.served("a").await;
    guest(&uri, &["write -P 1 0 1M", "flush"]);
    let raw = NewVdi {
        name: "r".into(),
        virtual_size: Bytes::mib(4),
        format: Some(ImageFormat::Raw),
        ..NewVdi::default()
    };
    let raw = site.sr.vdi_create(&Op::new(), raw).await.unwrap().vdi.uuid;
    let empty = site.disk("e").await;
    let disks = [served, raw, empty];
    let op = Op::new();
    let first = site.group(&op, &disks).await.unwrap();
    let again = site.group(&op, &disks).await.unwrap();
    assert_eq!(again, first, "the answer that was kept");
    guest(&uri, &["write -P 2 0 1M", "flush"]);

    // The answer is lost, and one of the group is gone: a whole one is made now.
    site.sr.vdi_destroy(&Op::new(), first.vdis[1].uuid).await.unwrap();
    let other = sm_core::StorageManager::builder(site.folder.join("other"))
        .driver(crate::path("libsm_driver_file.so"))
        .driver_host(crate::path("sm-driver-host"))
        .datapath(crate::path("sm-datapath"))
        .placement(PLACEMENTS[0])
        .open()
        .await
        .unwrap();
    site.detach(served).await;
    let config = [("location".to_owned(), site.folder.join("images").into_string())].into();
    let new = sm_core::NewSr {
        uuid: Some(site.sr.uuid()),
        driver: "file".into(),
        name: "sr".into(),
        device_config: config,
        ..sm_core::NewSr::default()
    };
    other.sr_introduce(&Op::new(), new).await.unwrap();
    let sr = other.sr(&site.sr.uuid().to_string()).unwrap();
    let specs: Vec<NewSnapshot> = disks
        .iter()
        .map(|vdi| NewSnapshot { vdi: *vdi, name: "g".into(), description: String::new() })
        .collect();
    let anew = sr.vdi_snapshot(&Op::new().with_id(op.id), &specs).await.unwrap();
    assert_eq!(anew.changed, Changed::Created);
    let uuids = |done: &VdisDone| done.vdis.iter().map(|vdi| vdi.uuid).collect::<Vec<_>>();
    assert_eq!(uuids(&anew), uuids(&first));
    assert!(site.content(anew.vdis[0].uuid).await[..1 << 20].iter().all(|byte| *byte == 2));
}

#[tokio::test]
async fn a_group_with_a_disk_that_cannot_be_stopped_is_refused_and_nothing_stays() {
    let site = Site::new(PLACEMENTS[0]).await;
    let (served, uri) = site.served("a").await;
    guest(&uri, &["write -P 1 0 1M", "flush"]);
    let elsewhere = site.disk("b").await;
    let claim = format!("{elsewhere}.there%2c%20boot%201-2%2c%20writing%20since%2012");
    let claims = site.sr_folder().join(".sm/open");
    std::fs::write(claims.join(&claim), "").unwrap();
    let before = files(&site.sr_folder());
    let error = site.group(&Op::new(), &[served, elsewhere]).await.unwrap_err();
    assert_eq!(error.kind, Kind::InUse);
    assert_eq!(error.message, format!("VDI {elsewhere} is being written by host there"));
    std::fs::remove_file(claims.join(&claim)).unwrap();

    let raw = NewVdi {
        name: "r".into(),
        virtual_size: Bytes::mib(4),
        format: Some(ImageFormat::Raw),
        ..NewVdi::default()
    };
    let raw = site.sr.vdi_create(&Op::new(), raw).await.unwrap().vdi.uuid;
    site.sr.vdi_attach(&Op::new(), raw, VM, AttachMode::ReadWrite).await.unwrap();
    site.sr.vdi_activate(&Op::new(), raw, VM).await.unwrap();
    let error = site.group(&Op::new(), &[served, raw]).await.unwrap_err();
    assert_eq!(error.kind, Kind::InUse);
    assert_eq!(error.message, format!("VDI {raw} is attached by \"vm\""));
    site.detach(raw).await;
    site.sr.vdi_destroy(&Op::new(), raw).await.unwrap();
    let error = site.group(&Op::new(), &[served, served]).await.unwrap_err();
    assert_eq!(error.message, format!("VDI {served} is named twice: one snapshot of it is enough"));
    let gone = |name: &String| name.contains(&elsewhere.to_string()) && name.contains("open/");
    let expected: Vec<String> = before.into_iter().filter(|name| !gone(name)).collect();
    assert_eq!(files(&site.sr_folder()), expected);
    guest(&uri, &["read -P 1 0 1M"]);
    site.detach(served).await;
}

/// A process is killed while others are paused, at whatever moment; the guests of all go on.
#[tokio::test]
async fn data_paths_that_die_during_a_group_leave_a_whole_one_or_none() {
    let site = Site::new(PLACEMENTS[0]).await;
    let (a, uri) = site.served("a").await;
    let (b, _) = site.served("b").await;
    guest(&uri, &["write -P 1 0 64k", "flush"]);
    let sr = &site.sr;
    let mut made = 0;
    for round in 0..12_u64 {
        let pid = site.pid(if round % 2 == 0 { a } else { b }).await;
        let failed = Arc::new(Mutex::new(None));
        let killer = std::thread::spawn({
            let failed = failed.clone();
            move || {
                std::thread::sleep(Duration::from_micros(round * 700));
                kill(pid);
                *failed.lock().unwrap() = Some(());
            }
        });
        let done = site.group(&Op::new(), &[a, b]).await;
        killer.join().unwrap();
        sr.scan(&Op::new()).await.unwrap();
        let listed = sr.vdis(&Op::new()).await.unwrap();
        let count = listed.iter().filter(|vdi| vdi.is_a_snapshot).count();
        assert_eq!(count % 2, 0, "{count} snapshots");
        if done.is_ok() {
            made += 2;
        }
        assert!(count >= made, "{count} of {made}");
        made = count;
        guest(&uri, &["read -P 1 0 64k", "write -P 1 0 64k"]);
    }
    for disk in [a, b] {
        site.detach(disk).await;
        assert!(site.sr.vdi_check(&Op::new(), disk).await.unwrap().findings.is_empty());
    }
}

/// Disks that are written and disks that are not, in one group; what it is lies with them alone.
#[tokio::test]
async fn a_group_is_what_its_disks_say_and_survives_forget_and_introduce() {
    let site = Site::new(PLACEMENTS[0]).await;
    let (a, uri) = site.served("a").await;
    let (b, c) = (site.disk("b").await, site.disk("c").await);
    guest(&uri, &["write -P 1 0 64k", "flush"]);
    let sr = &site.sr;
    let members = |group: &sm_core::Group| {
        group.vdis.iter().map(|vdi| vdi.uuid).collect::<std::collections::BTreeSet<_>>()
    };
    let made = sr.group_create(&Op::new(), "database 1", &[a, b]).await.unwrap();
    assert_eq!((made.changed, members(&made.group)), (Changed::Modified, [a, b].into()));
    let again = sr.group_create(&Op::new(), "database 1", &[a, b]).await.unwrap();
    assert_eq!(again.changed, Changed::Already);
    let error = sr.group_create(&Op::new(), "database 1", &[c]).await.unwrap_err();
    assert_eq!(error.message, format!("SR {} has a group \"database 1\" already", sr.uuid()));
    let error = sr.group_create(&Op::new(), "other", &[c, a]).await.unwrap_err();
    assert_eq!((error.kind.clone(), error.message.clone()), {
        (Kind::InUse, format!("VDI {a} is in the group \"database 1\""))
    });
    let error = sr.group_add(&Op::new(), "other", &[c]).await.unwrap_err();
    assert_eq!(error.message, format!("SR {} has no group \"other\"", sr.uuid()));
    sr.group_add(&Op::new(), "database 1", &[c]).await.unwrap();

    let op = Op::new();
    let taken = sr.group_snapshot(&op, "database 1", Some("nightly"), "").await.unwrap();
    assert_eq!((taken.changed, taken.vdis.len()), (Changed::Created, 3));
    for vdi in &taken.vdis {
        assert_eq!((vdi.name.as_str(), group_of(vdi)), ("nightly", Some("database 1")));
        assert_eq!(snapshot_set_of(vdi), Some(op.id.0));
    }
    let replayed = sr.group_snapshot(&op, "database 1", Some("nightly"), "").await.unwrap();
    assert_eq!(replayed, taken);
    // Neither snapshots nor clones are members, and what is made of a set's snapshot is of no set.
    let copy = sr.vdi_clone(&Op::new(), b, "copy", "").await.unwrap().vdi;
    assert_eq!(group_of(&copy), None);
    let of_taken = sr.vdi_clone(&Op::new(), taken.vdis[0].uuid, "of it", "").await.unwrap().vdi;
    assert!(of_taken.keys.contains_key(marks::SET), "a clone takes keys over");
    let spec = NewSnapshot { vdi: of_taken.uuid, name: "s".into(), description: String::new() };
    let later = sr.vdi_snapshot(&Op::new(), &[spec]).await.unwrap().vdis.remove(0);
    assert_eq!((snapshot_set_of(&of_taken), snapshot_set_of(&later)), (None, None));
    let sets = site.manager.snapshot_sets(&Op::new()).await.unwrap().sets;
    let of_set = |set: &SnapshotSet| (set.id, set.size, set.members.len(), set.one_point_in_time);
    assert_eq!(sets.iter().map(of_set).collect::<Vec<_>>(), [(op.id.0, 3, 3, true)]);
    sr.vdi_destroy(&Op::new(), later.uuid).await.unwrap();
    sr.vdi_destroy(&Op::new(), of_taken.uuid).await.unwrap();
    let error = sr.group_add(&Op::new(), "database 1", &[taken.vdis[0].uuid]).await.unwrap_err();
    assert_eq!(error.message, format!("VDI {} is a snapshot", taken.vdis[0].uuid));
    let groups = sr.groups(&Op::new()).await.unwrap();
    assert_eq!(groups.iter().map(members).collect::<Vec<_>>(), [[a, b, c].into()]);

    site.detach(a).await;
    sr.detach(&Op::new()).await.unwrap();
    sr.forget(&Op::new()).await.unwrap();
    let config = [("location".to_owned(), site.folder.join("images").into_string())].into();
    let known = sm_core::NewSr {
        uuid: Some(sr.uuid()),
        driver: "file".into(),
        device_config: config,
        ..sm_core::NewSr::default()
    };
    site.manager.sr_introduce(&Op::new(), known).await.unwrap();
    let sr = site.manager.sr(&sr.uuid().to_string()).unwrap();
    let groups = sr.groups(&Op::new()).await.unwrap();
    assert_eq!(groups.iter().map(members).collect::<Vec<_>>(), [[a, b, c].into()]);
    sr.vdi_destroy(&Op::new(), c).await.unwrap();
    let left = sr.group_remove(&Op::new(), "database 1", &[a]).await.unwrap();
    assert_eq!(members(&left.group), [b].into());
    let ended = sr.group_destroy(&Op::new(), "database 1").await.unwrap();
    assert_eq!((ended.changed, ended.group.vdis.len()), (Changed::Modified, 0));
    let ended = sr.group_destroy(&Op::new(), "database 1").await.unwrap();
    assert_eq!(ended.changed, Changed::Already);
    let error = sr.group_snapshot(&Op::new(), "database 1", None, "").await.unwrap_err();
    assert_eq!(error.kind, Kind::NotFound);

    let keys = [("sm:group".to_owned(), "mine".to_owned())].into();
    let own = NewVdi { name: "k".into(), virtual_size: Bytes::mib(4), keys, ..NewVdi::default() };
    let error = sr.vdi_create(&Op::new(), own).await.unwrap_err();
    let said = "the key \"sm:group\" begins with \"sm:\", which is for the storage manager";
    assert_eq!(error.message, said);
}

#[tokio::test]
async fn snapshots_that_were_prepared_are_taken_or_abandoned_as_a_whole() {
    let site = Site::new(PLACEMENTS[0]).await;
    let (a, uri) = site.served("a").await;
    let b = site.disk("b").await;
    let spec = |vdi| NewSnapshot { vdi, name: "g".into(), description: String::new() };
    let op = Op::new();
    let prepared = site.sr.vdi_snapshot_prepare(&op, &[spec(a), spec(b)]).await.unwrap();
    let uuids: Vec<VdiUuid> = prepared.snapshots().collect();
    // Who wants one of the disks meanwhile waits.
    let short = Op::new().with_budget(Duration::from_millis(50));
    let error = site.sr.vdi_resize(&short, b, Bytes::gib(1)).await.unwrap_err();
    assert_eq!(error.kind, Kind::Busy { retry_after_ms: None });
    // What is written after it was prepared is in it.
    guest(&uri, &["write -P 7 0 64k", "flush"]);
    let done = prepared.commit().await.unwrap();
    assert_eq!(done.vdis.iter().map(|vdi| vdi.uuid).collect::<Vec<_>>(), uuids);
    assert!(site.content(uuids[0]).await[..64 << 10].iter().all(|byte| *byte == 7));

    let before = site.sr.vdis(&Op::new()).await.unwrap();
    let prepared = site.sr.vdi_snapshot_prepare(&Op::new(), &[spec(a), spec(b)]).await.unwrap();
    prepared.abandon().await.unwrap();
    drop(site.sr.vdi_snapshot_prepare(&Op::new(), &[spec(a)]).await.unwrap());
    assert_eq!(site.sr.vdis(&Op::new()).await.unwrap(), before);
    site.detach(a).await;
}

#[tokio::test]
async fn limits_of_a_disk_are_kept_with_it_and_hold_at_every_attach() {
    let site = Site::new(PLACEMENTS[0]).await;
    let (disk, _) = site.served("a").await;
    let rate = |per_second, burst| Some(sm_core::model::vdi::Rate { per_second, burst });
    let qos = Qos { operations: rate(100, None), bytes: rate(1 << 20, Some(1 << 21)) };
    let limits = Limits {
        operations: Some(Rate { per_second: 100, burst: 100 }),
        bytes: Some(Rate { per_second: 1 << 20, burst: 1 << 21 }),
    };
    let done = site.sr.vdi_qos(&Op::new(), disk, qos).await.unwrap();
    assert_eq!((done.changed, done.vdi.qos), (Changed::Modified, qos));
    assert_eq!(site.sr.datapath(disk).await.unwrap().unwrap().limits, limits);
    let again = site.sr.vdi_qos(&Op::new(), disk, qos).await.unwrap();
    assert_eq!(again.changed, Changed::Already);
    site.detach(disk).await;
    let snapshot = site.snapshot(disk).await;
    assert_eq!(told(&site.sr, disk).await, qos);
    assert_eq!(told(&site.sr, snapshot).await, Qos::default());
    site.attach_again(disk).await;
    assert_eq!(site.sr.datapath(disk).await.unwrap().unwrap().limits, limits);
    site.sr.vdi_qos(&Op::new(), disk, Qos::default()).await.unwrap();
    assert_eq!(site.sr.datapath(disk).await.unwrap().unwrap().limits, Limits::default());
    assert_eq!(told(&site.sr, disk).await, Qos::default());
    site.detach(disk).await;

    let none = Qos { operations: rate(0, None), bytes: None };
    let error = site.sr.vdi_qos(&Op::new(), disk, none).await.unwrap_err();
    assert_eq!(
        (error.kind.clone(), error.message.as_str()),
        (Kind::Limit, "a limit must be above 0")
    );
    let raw = NewVdi {
        name: "r".into(),
        virtual_size: Bytes::mib(4),
        format: Some(ImageFormat::Raw),
        ..NewVdi::default()
    };
    let raw = site.sr.vdi_create(&Op::new(), raw).await.unwrap().vdi.uuid;
    let error = site.sr.vdi_qos(&Op::new(), raw, qos).await.unwrap_err();
    let said = format!("VDI {raw} is raw: no process is there that could limit it");
    assert_eq!((error.kind.clone(), error.message.clone()), (Kind::Unsupported, said));
}

/// The limits, as all that describes the disk tells them.
async fn told(sr: &sm_core::Sr, vdi: VdiUuid) -> Qos {
    let listed = sr.vdis(&Op::new()).await.unwrap();
    let listed = listed.into_iter().find(|one| one.uuid == vdi).unwrap();
    assert_eq!(sr.vdi_stat(&Op::new(), vdi, false).await.unwrap().qos, listed.qos);
    listed.qos
}
