//! Who may hold a VDI, and how.

use sm_core::model::manifest::feature;
use sm_core::model::{Access, AttachMode, Bytes, ImageFormat, Kind};
use sm_core::{NewSnapshot, NewVdi, Op};

use crate::{PLACEMENTS, Site};
use AttachMode::{ReadOnly, ReadWrite};

#[tokio::test]
async fn a_disk_is_reached_until_its_last_holder_leaves() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let (sr, disk) = (&site.sr, site.disk("a").await);
        let op = Op::new;
        let first = sr.vdi_attach(&op(), disk, "vm", ReadWrite).await.unwrap();
        let [Access::Nbd { uri }] = first.as_slice() else { panic!("{first:?}") };
        assert!(uri.starts_with(&format!("nbd+unix:///{disk}?socket=/")), "{uri}");
        assert_eq!(sr.vdi_attach(&op(), disk, "vm", ReadWrite).await.unwrap(), first);
        sr.vdi_activate(&op(), disk, "vm").await.unwrap();
        // A reader joins a writer; the writer stays a writer.
        sr.vdi_attach(&op(), disk, "backup", ReadOnly).await.unwrap();

        // Another process sees it, and the holders outlive ours.
        site.manager.clone().close().await;
        let (_manager, sr) = site.again().await;
        let held = sr.attachments().unwrap();
        assert_eq!(held.len(), 1);
        assert_eq!(held[0].datapaths.keys().collect::<Vec<_>>(), ["backup", "vm"]);

        let error = sr.vdi_destroy(&op(), disk).await.unwrap_err();
        assert_eq!(error.kind, Kind::InUse);
        assert_eq!(error.message, format!("VDI {disk} is attached by \"backup\", \"vm\""));
        assert_eq!(error.legacy_code(), 24);
        let error = sr.detach(&op()).await.unwrap_err();
        assert_eq!(error.kind, Kind::InUse);
        assert_eq!(error.legacy_code(), 16);

        let error = sr.vdi_detach(&op(), disk, "vm").await.unwrap_err();
        assert_eq!(
            error.message,
            format!("VDI {disk}, datapath \"vm\": it is activated; deactivate it first")
        );
        sr.vdi_deactivate(&op(), disk, "vm").await.unwrap();
        sr.vdi_detach(&op(), disk, "vm").await.unwrap();
        sr.vdi_detach(&op(), disk, "vm").await.unwrap();
        sr.vdi_detach(&op(), disk, "backup").await.unwrap();
        assert_eq!(sr.attachments().unwrap(), []);
        sr.vdi_destroy(&op(), disk).await.unwrap();
    }
}

#[tokio::test]
async fn reading_never_rises_to_writing() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let (sr, disk) = (&site.sr, site.disk("a").await);
        sr.vdi_attach(&Op::new(), disk, "vm", ReadOnly).await.unwrap();
        for datapath in ["vm", "other"] {
            let error = sr.vdi_attach(&Op::new(), disk, datapath, ReadWrite).await.unwrap_err();
            assert_eq!(error.kind, Kind::InUse, "{datapath}");
            assert!(error.message.contains("never becomes read-write"), "{}", error.message);
        }
        assert_eq!(sr.attachments().unwrap()[0].datapaths.len(), 1);
        sr.vdi_detach(&Op::new(), disk, "vm").await.unwrap();
        sr.vdi_attach(&Op::new(), disk, "vm", ReadWrite).await.unwrap();
    }
}

#[tokio::test]
async fn activate_needs_attach() {
    let site = Site::new(PLACEMENTS[0]).await;
    let disk = site.disk("a").await;
    let error = site.sr.vdi_activate(&Op::new(), disk, "vm").await.unwrap_err();
    assert_eq!(error.message, format!("VDI {disk}, datapath \"vm\": it is not attached"));
    assert_eq!(site.sr.attachments().unwrap(), []);
}

#[tokio::test]
async fn one_writer_at_a_time_unless_sharable() {
    let site = Site::new(PLACEMENTS[0]).await;
    let sr = &site.sr;
    for sharable in [false, true] {
        let new = NewVdi { virtual_size: Bytes::mib(2), sharable, ..NewVdi::default() };
        let disk = sr.vdi_create(&Op::new(), new).await.unwrap().vdi.uuid;
        // A migration attaches on both sides, and hands the activation over.
        for vm in ["source", "target"] {
            sr.vdi_attach(&Op::new(), disk, vm, ReadWrite).await.unwrap();
        }
        sr.vdi_activate(&Op::new(), disk, "source").await.unwrap();
        let second = sr.vdi_activate(&Op::new(), disk, "target").await;
        if sharable {
            second.unwrap();
            continue;
        }
        let error = second.unwrap_err();
        assert_eq!(error.kind, Kind::InUse);
        assert_eq!(error.message, format!("VDI {disk} is being written by \"source\""));
        sr.vdi_deactivate(&Op::new(), disk, "source").await.unwrap();
        sr.vdi_activate(&Op::new(), disk, "target").await.unwrap();
    }
}

#[tokio::test]
async fn a_snapshot_is_never_attached_for_writing() {
    let site = Site::new(PLACEMENTS[1]).await;
    let (sr, disk) = (&site.sr, site.disk("a").await);
    let spec = [NewSnapshot { vdi: disk, name: "s".into(), description: String::new() }];
    let snapshot = sr.vdi_snapshot(&Op::new(), &spec).await.unwrap().vdis[0].uuid;
    let error = sr.vdi_attach(&Op::new(), snapshot, "vm", ReadWrite).await.unwrap_err();
    assert_eq!(error.message, format!("VDI {snapshot} is a snapshot, which stays read-only"));
    assert_eq!(sr.attachments().unwrap(), []);
    sr.vdi_attach(&Op::new(), snapshot, "vm", ReadOnly).await.unwrap();
}

/// A raw disk is written without a data path of ours, so nobody can be told to stop.
#[tokio::test]
async fn a_writer_that_cannot_be_told_is_safe_from_snapshot_revert_and_resize() {
    let site = Site::new(PLACEMENTS[0]).await;
    let sr = &site.sr;
    let new =
        NewVdi { virtual_size: Bytes::mib(8), format: Some(ImageFormat::Raw), ..NewVdi::default() };
    let disk = sr.vdi_create(&Op::new(), new).await.unwrap().vdi.uuid;
    let spec = [NewSnapshot { vdi: disk, name: "s".into(), description: String::new() }];
    let snapshot = sr.vdi_snapshot(&Op::new(), &spec).await.unwrap().vdis[0].uuid;
    assert!(!site.manager.driver("file").unwrap().manifest.can(feature::LIVE_SNAPSHOT));
    let path = site.sr_folder().join(format!("{disk}.raw"));
    let expected = Access::File {
        path,
        format: ImageFormat::Raw,
        backing: vec![],
        changes: None,
        shut_out: None,
    };
    assert_eq!(sr.vdi_attach(&Op::new(), disk, "vm", ReadWrite).await.unwrap(), [expected]);
    assert!(sr.datapath(disk).await.unwrap().is_none());
    sr.vdi_activate(&Op::new(), disk, "vm").await.unwrap();
    let errors = [
        sr.vdi_snapshot(&Op::new(), &spec).await.unwrap_err(),
        sr.vdi_clone(&Op::new(), disk, "c", "").await.unwrap_err(),
        sr.vdi_revert(&Op::new(), disk, snapshot).await.unwrap_err(),
        sr.vdi_resize(&Op::new(), disk, Bytes::mib(16)).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind, Kind::InUse);
        assert_eq!(error.message, format!("VDI {disk} is attached by \"vm\""));
    }
}
