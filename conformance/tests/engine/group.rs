//! Snapshots of several disks at one point in time, while they are written.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use ::datapath::nbd::Client;
use ::datapath::nbd::client::Options;
use sm_core::model::vdi::VdisDone;
use sm_core::model::{AttachMode, Bytes, Changed, ImageFormat, Kind, VdiUuid};
use sm_core::{NewSnapshot, NewVdi, Op};

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

/// Writes n to the first disk, then to the second, and so on, until it is told to end.
fn write_in_order(uris: Vec<String>, end: Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
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
        }
        n
    })
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
        let writer = write_in_order(uris.clone(), end.clone());
        let mut groups = Vec::new();
        for _ in 0..12 {
            groups.push(site.taken(&disks).await);
        }
        assert_eq!(load.try_wait().unwrap(), None, "the load ended before the last group");
        load.kill().unwrap();
        load.wait().unwrap();
        end.store(true, Ordering::Relaxed);
        let last = writer.join().unwrap();
        assert!(last > 100, "only {last} writes");
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
                std::thread::sleep(std::time::Duration::from_micros(round * 700));
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
