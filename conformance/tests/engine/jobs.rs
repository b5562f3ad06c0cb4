//! Import, export, copy.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sm_core::model::{Bytes, ImageFormat, Kind};
use sm_core::{CancelFlag, ExportTarget, ImportSource, JobState, NewVdi, Op};

use crate::{PLACEMENTS, Site};

fn pattern(length: usize) -> Vec<u8> {
    (0..length / 8)
        .flat_map(|n| {
            // Every third MiB is a hole.
            let hole = (n >> 17) % 3 == 2;
            let word = if hole { 0 } else { (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 };
            word.to_le_bytes()
        })
        .collect()
}

#[tokio::test]
async fn what_goes_in_comes_out_in_every_format_and_through_a_copy() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let bytes = pattern(8 << 20);
        let source = site.folder.join("in.raw");
        std::fs::write(&source, &bytes).unwrap();
        for format in [ImageFormat::Vhd, ImageFormat::Raw] {
            let from = ImportSource::File { path: source.clone(), format: None };
            let new = NewVdi { name: "d".into(), format: Some(format), ..NewVdi::default() };
            let disk = site.sr.import(&Op::new(), from, new.clone()).await.unwrap();
            assert_eq!(disk.virtual_size, Bytes(bytes.len() as u64));
            assert_eq!(disk.format, format);
            assert!(!disk.incomplete);
            let copy = site.sr.copy(&Op::new(), disk.uuid, &site.sr, new).await.unwrap();
            for (n, to) in [ImageFormat::Raw, ImageFormat::Vhd].into_iter().enumerate() {
                let path = site.folder.join(format!("out.{n}"));
                let target = ExportTarget { path: path.clone(), format: to, overwrite: true };
                let done = site.sr.export(&Op::new(), copy.uuid, target).await.unwrap();
                assert_eq!(done.bytes, disk.virtual_size);
                assert!(done.allocated < done.bytes, "{to}: the holes take space");
                let from = ImportSource::File { path: path.clone(), format: None };
                let back = site
                    .sr
                    .import(&Op::new(), from, NewVdi::default())
                    .await
                    .unwrap_or_else(|error| panic!("{to}: {error}"));
                let check = ExportTarget {
                    path: site.folder.join("check.raw"),
                    format: ImageFormat::Raw,
                    overwrite: true,
                };
                site.sr.export(&Op::new(), back.uuid, check.clone()).await.unwrap();
                assert!(std::fs::read(check.path).unwrap() == bytes, "{format} to {to}");
            }
        }
        assert_eq!(site.sr.attachments().unwrap(), []);
        assert!(site.manager.jobs().unwrap().iter().all(|job| job.state == JobState::Done));
    }
}

#[tokio::test]
async fn a_cancelled_import_leaves_nothing() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let source = site.folder.join("in.raw");
        std::fs::write(&source, pattern(32 << 20)).unwrap();
        let cancel = CancelFlag::default();
        let begun = Arc::new(AtomicBool::new(false));
        let op = Op::new().with_cancel(cancel.clone()).with_progress(Arc::new({
            let (cancel, begun) = (cancel.clone(), begun.clone());
            move |permille, stage: &str| {
                if stage == "copying" && permille > 0 {
                    begun.store(true, Ordering::SeqCst);
                    cancel.cancel();
                }
            }
        }));
        let from = ImportSource::File { path: source, format: Some(ImageFormat::Raw) };
        let error = site.sr.import(&op, from, NewVdi::default()).await.unwrap_err();
        assert!(begun.load(Ordering::SeqCst), "the cancel came before the copy");
        assert_eq!(error.kind, Kind::Cancelled);
        assert_eq!(site.sr.vdis(&Op::new()).await.unwrap(), []);
        assert_eq!(site.sr.attachments().unwrap(), []);
        let job = site.manager.job(&op.id.to_string()).unwrap();
        assert_eq!(job.state, JobState::Cancelled);
        let error = site.manager.job_cancel(op.id).unwrap_err();
        assert_eq!(error.message, format!("job {} was cancelled already", op.id));
    }
}

#[tokio::test]
async fn a_job_is_cancelled_from_another_process() {
    let site = Site::new(PLACEMENTS[0]).await;
    let source = site.folder.join("in.raw");
    std::fs::write(&source, pattern(64 << 20)).unwrap();
    let (other, _) = site.again().await;
    let op = Op::new();
    let id = op.id;
    // The copy holds still until the other side has asked.
    let asked = Arc::new(AtomicBool::new(false));
    let op = op.with_progress(Arc::new({
        let asked = asked.clone();
        move |_, stage: &str| {
            if stage == "copying" && !asked.swap(true, Ordering::SeqCst) {
                assert_eq!(other.job(&id.to_string()).unwrap().state, JobState::Running);
                assert!(other.job_cancel(id).unwrap().cancel_requested);
                // Longer than the time between two looks at the record.
                std::thread::sleep(std::time::Duration::from_millis(300));
            }
        }
    }));
    let from = ImportSource::File { path: source, format: Some(ImageFormat::Raw) };
    let error = site.sr.import(&op, from, NewVdi::default()).await.unwrap_err();
    assert_eq!(error.kind, Kind::Cancelled);
    assert!(asked.load(Ordering::SeqCst));
}

#[tokio::test]
async fn bad_sources_and_targets_are_refused_exactly() {
    let site = Site::new(PLACEMENTS[0]).await;
    let import = |path: &str, format| {
        let from = ImportSource::File { path: site.folder.join(path), format };
        let sr = site.sr.clone();
        async move { sr.import(&Op::new(), from, NewVdi::default()).await.unwrap_err() }
    };
    assert_eq!(import("nothing", None).await.kind, Kind::NotFound);

    let mut file = std::fs::File::create(site.folder.join("damaged.vhd")).unwrap();
    file.write_all(&[0x55; 4096]).unwrap();
    let error = import("damaged.vhd", None).await;
    assert_eq!(error.kind, Kind::Corrupt, "a file named .vhd is not taken for a raw disk");

    // A differencing image is no disk without its parent.
    let disk = site.disk("a").await;
    let tree = vhd::Tree::open(site.sr_folder().as_std_path()).unwrap();
    let open = tree.open_disk(disk.0, vhd::Mode::Write).unwrap();
    vhd::Disk::write_at(&open, 0, &[7; 4096]).unwrap();
    drop(open);
    site.sr.vdi_clone(&Op::new(), disk, "c", "").await.unwrap();
    let leaf = site.sr_folder().join(format!("{disk}.vhd"));
    let from = ImportSource::File { path: leaf, format: Some(ImageFormat::Vhd) };
    let error = site.sr.import(&Op::new(), from, NewVdi::default()).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unsupported);
    assert!(error.message.contains("is a differencing image"), "{}", error.message);

    let path = site.folder.join("exists");
    std::fs::write(&path, "keep me").unwrap();
    let target = ExportTarget { path: path.clone(), format: ImageFormat::Raw, overwrite: false };
    let error = site.sr.export(&Op::new(), disk, target).await.unwrap_err();
    assert_eq!(error.message, format!("{path} exists"));
    assert_eq!(std::fs::read(path).unwrap(), b"keep me");

    let small = NewVdi { virtual_size: Bytes::mib(2), ..NewVdi::default() };
    std::fs::write(site.folder.join("in.raw"), vec![1; 3 << 20]).unwrap();
    let from = ImportSource::File { path: site.folder.join("in.raw"), format: None };
    let error = site.sr.import(&Op::new(), from, small).await.unwrap_err();
    assert_eq!(error.message, "a VDI of 2MiB cannot hold 3145728 bytes");
}

/// What a person does after a crash: looks, and goes on.
#[tokio::test]
async fn an_interrupted_job_is_seen_and_resumed() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let bytes = pattern(16 << 20);
        let source = site.folder.join("in.raw");
        std::fs::write(&source, &bytes).unwrap();
        let died = std::process::Command::new(crate::path("smctl"))
            .args(["vdi", "import", source.as_str(), "--name", "d"])
            .env("SMCTL_STATE_DIR", site.folder.join("state"))
            .env("SM_STEP_KILL", "job.copying:2")
            .status()
            .unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&died), Some(9));

        let job = site.manager.jobs().unwrap().remove(0);
        assert_eq!(job.state, JobState::Interrupted);
        let vdi = site.sr.vdis(&Op::new()).await.unwrap().remove(0);
        assert!(vdi.incomplete);
        let error = site
            .sr
            .vdi_attach(&Op::new(), vdi.uuid, "vm", sm_core::model::AttachMode::ReadWrite)
            .await
            .unwrap_err();
        assert_eq!(error.kind, Kind::Busy { retry_after_ms: None });
        let clone = site.sr.vdi_clone(&Op::new(), vdi.uuid, "c", "").await.unwrap_err();
        assert!(matches!(clone.kind, Kind::Busy { .. } | Kind::InUse), "{clone}");

        // A scan lets go of what the dead process held, and keeps the disk for the resume.
        assert_eq!(site.sr.scan(&Op::new()).await.unwrap().vdis.len(), 1);
        assert_eq!(site.sr.attachments().unwrap(), []);
        let job = site.manager.job_resume(&Op::new(), job.id).await.unwrap();
        assert_eq!(job.state, JobState::Done);
        assert_eq!(job.bytes_done, Bytes(bytes.len() as u64));
        let path = site.folder.join("out.raw");
        let target =
            ExportTarget { path: path.clone(), format: ImageFormat::Raw, overwrite: false };
        site.sr.export(&Op::new(), vdi.uuid, target).await.unwrap();
        assert!(std::fs::read(path).unwrap() == bytes);
        let again = site.manager.job_resume(&Op::new(), job.id).await.unwrap_err();
        assert_eq!(again.message, format!("job {} is done already", job.id));
    }
}

/// A job fills only a disk that it has made: it never writes over, or destroys, another one.
#[tokio::test]
async fn an_import_never_touches_a_disk_that_was_there() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let bytes = pattern(8 << 20);
        let source = site.folder.join("in.raw");
        std::fs::write(&source, &bytes).unwrap();
        let from = |path: &str| ImportSource::File { path: site.folder.join(path), format: None };
        let first = Op::new();
        let disk = site.sr.import(&first, from("in.raw"), NewVdi::default()).await.unwrap();

        // The same UUID, size and format, by another wish.
        std::fs::write(site.folder.join("other.raw"), vec![9; 8 << 20]).unwrap();
        let new = NewVdi { uuid: Some(disk.uuid), ..NewVdi::default() };
        let op = Op::new();
        for _ in 0..2 {
            let again = site.sr.import(&op, from("other.raw"), new.clone()).await.unwrap_err();
            assert_eq!(again.kind, Kind::Exists);
            assert_eq!(again.message, format!("VDI {} exists", disk.uuid));
        }
        let path = site.folder.join("out.raw");
        let target = ExportTarget { path: path.clone(), format: ImageFormat::Raw, overwrite: true };
        site.sr.export(&Op::new(), disk.uuid, target.clone()).await.unwrap();
        assert!(std::fs::read(&path).unwrap() == bytes, "it was written over");

        // A process that died between the last byte and the end of its job: whoever used the
        // disk since must not lose what he wrote when the job is repeated.
        let late = Op::new();
        let died = std::process::Command::new(crate::path("smctl"))
            .args(["--operation-id", &late.id.to_string()])
            .args(["vdi", "import", source.as_str(), "--name", "late"])
            .env("SMCTL_STATE_DIR", site.folder.join("state"))
            .env("SM_STEP_KILL", "job.completed")
            .status()
            .unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&died), Some(9));
        let tree = vhd::Tree::open(site.sr_folder().as_std_path()).unwrap();
        let open = tree.open_disk(late.id.vdi(0).0, vhd::Mode::Write).unwrap();
        vhd::Disk::write_at(&open, 0, &[7; 4096]).unwrap();
        drop(open);
        let job = site.manager.job_resume(&Op::new(), late.id).await.unwrap();
        assert_eq!(job.state, JobState::Done);
        site.sr.export(&Op::new(), late.id.vdi(0), target).await.unwrap();
        assert!(std::fs::read(&path).unwrap()[..4096] == [7; 4096], "the guest's write is lost");
    }
}
