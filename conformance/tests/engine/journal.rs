//! The same operation id, the same answer.

use sm_core::model::{Bytes, Changed, Kind};
use sm_core::{NewSnapshot, NewVdi, Op};

use crate::{PLACEMENTS, Site};

fn new(name: &str) -> NewVdi {
    NewVdi { name: name.into(), virtual_size: Bytes::mib(8), ..NewVdi::default() }
}

#[tokio::test]
async fn a_replay_gets_the_first_answer_also_in_another_process() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let op = Op::new();
        let first = site.sr.vdi_create(&op, new("a")).await.unwrap();
        let second = site.sr.vdi_create(&op, new("a")).await.unwrap();
        let (_other, sr) = site.again().await;
        let third = sr.vdi_create(&op, new("a")).await.unwrap();
        assert_eq!(first, second);
        assert_eq!(first, third);
        assert_eq!(first.changed, Changed::Created);
        assert_eq!(sr.vdis(&Op::new()).await.unwrap().len(), 1);
    }
}

/// Introducing what is known already must not wipe what is known of it.
#[tokio::test]
async fn introducing_a_known_disk_changes_nothing() {
    use sm_core::model::vdi::VdiIntroduce;
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let disk = site.disk("a").await;
        let spec = [NewSnapshot { vdi: disk, name: "s".into(), description: String::new() }];
        let snapshot = site.sr.vdi_snapshot(&Op::new(), &spec).await.unwrap().vdis.remove(0);
        let introduce = VdiIntroduce {
            uuid: snapshot.uuid,
            name: "another name".into(),
            description: String::new(),
            vdi_type: sm_core::model::vdi::VdiType::User,
            keys: std::collections::BTreeMap::new(),
        };
        let answer = site.sr.vdi_introduce(&Op::new(), introduce).await.unwrap();
        assert_eq!(answer.changed, Changed::Already);
        assert_eq!(answer.vdi, snapshot);
    }
}

/// Only a VHD ends at 2040 GiB.
#[tokio::test]
async fn a_raw_disk_may_be_larger_than_a_vhd() {
    use sm_core::model::ImageFormat;
    let site = Site::new(PLACEMENTS[0]).await;
    let large = |size| NewVdi {
        virtual_size: Bytes(size),
        format: Some(ImageFormat::Raw),
        ..NewVdi::default()
    };
    let vdi = site.sr.vdi_create(&Op::new(), large(3 << 40)).await.unwrap().vdi;
    assert_eq!(vdi.virtual_size, Bytes(3 << 40));
    let odd = site.sr.vdi_create(&Op::new(), large(5000)).await.unwrap().vdi;
    assert_eq!(odd.virtual_size, Bytes(8192));
    let error = site.sr.vdi_create(&Op::new(), large(u64::MAX)).await.unwrap_err();
    assert_eq!(error.kind, Kind::Limit);
}

/// A destruction that was cut while it removed our folder.
#[tokio::test]
async fn a_destruction_is_finished_wherever_it_was_cut() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let ours = site.sr_folder().join(".sm");
        std::fs::remove_file(ours.join("sr.json")).unwrap();
        std::fs::remove_dir_all(ours.join("vdi")).unwrap();
        site.sr.destroy(&Op::new()).await.unwrap();
        assert!(!site.sr_folder().exists());
        assert_eq!(site.manager.srs().unwrap(), []);
    }
}

#[tokio::test]
async fn the_same_id_with_other_arguments_is_refused() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let op = Op::new();
        site.sr.vdi_create(&op, new("a")).await.unwrap();
        let error = site.sr.vdi_create(&op, new("b")).await.unwrap_err();
        assert_eq!(error.kind, Kind::Exists);
        assert_eq!(
            error.message,
            format!("operation id {} was used for vdi_create with other arguments", op.id)
        );
        assert_eq!(site.sr.vdis(&Op::new()).await.unwrap().len(), 1);
    }
}

/// Even if the journal is lost, the storage knows: the UUID follows from the operation id.
#[tokio::test]
async fn without_a_journal_the_storage_answers_already() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let disk = site.disk("a").await;
        let (create, snapshot, clone, resize, destroy) =
            (Op::new(), Op::new(), Op::new(), Op::new(), Op::new());
        let spec = [NewSnapshot { vdi: disk, name: "s".into(), description: String::new() }];
        site.sr.vdi_create(&create, new("b")).await.unwrap();
        site.sr.vdi_snapshot(&snapshot, &spec).await.unwrap();
        site.sr.vdi_clone(&clone, disk, "c", "").await.unwrap();
        site.sr.vdi_resize(&resize, disk, Bytes::mib(64)).await.unwrap();
        let victim = site.disk("victim").await;
        site.sr.vdi_destroy(&destroy, victim).await.unwrap();
        let before = site.sr.vdis(&Op::new()).await.unwrap();

        site.manager.clone().close().await;
        let record = site.sr.record().clone();
        std::fs::remove_dir_all(site.folder.join("state")).unwrap();
        let manager = crate::manager(&site.folder, placement).await;
        let introduce = sm_core::NewSr {
            driver: "file".into(),
            uuid: Some(record.uuid),
            device_config: record.device_config,
            ..sm_core::NewSr::default()
        };
        let record = manager.sr_introduce(&Op::new(), introduce).await.unwrap();
        assert_eq!(record.name, "sr", "the name lies on the storage");
        let sr = manager.sr(&record.uuid.to_string()).unwrap();
        let again = sr.vdi_create(&create, new("b")).await.unwrap();
        assert_eq!(again.changed, Changed::Already);
        let again = sr.vdi_snapshot(&snapshot, &spec).await.unwrap();
        assert_eq!(again.changed, Changed::Already);
        let again = sr.vdi_clone(&clone, disk, "c", "").await.unwrap();
        assert_eq!(again.changed, Changed::Already);
        let again = sr.vdi_resize(&resize, disk, Bytes::mib(64)).await.unwrap();
        assert_eq!(again.changed, Changed::Already);
        let again = sr.vdi_destroy(&destroy, victim).await.unwrap();
        assert_eq!(again.changed, Changed::Already);
        assert_eq!(sr.vdis(&Op::new()).await.unwrap(), before);
    }
}

#[tokio::test]
async fn a_failed_operation_can_be_repeated_with_its_id_once_the_cause_is_gone() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let op = Op::new();
        let too_large = NewVdi { virtual_size: Bytes::gib(2041), ..new("a") };
        let error = site.sr.vdi_create(&op, too_large).await.unwrap_err();
        assert_eq!(
            error.message,
            "a VDI of 2041GiB is above the limit of 2040GiB of the VHD format"
        );
        assert_eq!(
            error.legacy.as_ref().unwrap().text,
            "VDI Invalid size [opterr=VDI size must be between 1 MB and 2088960 MB]"
        );
        let made = site.sr.vdi_create(&op, new("a")).await.unwrap();
        assert_eq!(made.changed, Changed::Created);
    }
}

#[tokio::test]
async fn a_uuid_that_exists_with_another_size_is_refused() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let disk = site.disk("a").await;
        let other = NewVdi { uuid: Some(disk), virtual_size: Bytes::mib(16), ..new("a") };
        let error = site.sr.vdi_create(&Op::new(), other).await.unwrap_err();
        assert_eq!(error.kind, Kind::Exists);
        assert_eq!(error.legacy_code(), 43);
        let kept = site.sr.vdi(&Op::new(), &disk.to_string()).await.unwrap();
        assert_eq!(kept.virtual_size, Bytes::mib(8));
    }
}
