//! Maintenance over the file driver: shorter chains, space that comes back, and what is left alone.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use camino::Utf8Path;
use sha2::{Digest, Sha256};
use sm_core::model::sr::{Budget, SrMaintain, SrMaintained, SrRecovered, Stopped};
use sm_core::model::vdi::{Health, NodeKind};
use sm_core::model::{AttachMode, Bytes, Changed, Kind, VdiUuid};
use sm_core::{JobState, NewSnapshot, NewVdi, Op, Sr};
use vhd::{Disk, Mode, Tree};

use crate::{PLACEMENTS, Site, files};

/// Within a second it ends, and as much again for a machine that does other things.
const SOON: Duration = Duration::from_secs(10);

fn now(budget: Budget) -> SrMaintain {
    SrMaintain { budget, dry_run: false }
}

fn dry() -> SrMaintain {
    SrMaintain { dry_run: true, ..SrMaintain::default() }
}

fn write(site: &Site, vdi: VdiUuid, offset: u64, length: usize, seed: u64) {
    let tree = Tree::open(site.sr_folder().as_std_path()).unwrap();
    let disk = tree.open_disk(vdi.0, Mode::Write).unwrap();
    let bytes: Vec<u8> = (0..length as u64 / 8)
        .flat_map(|n| {
            ((n + offset).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (seed << 1 | 1)).to_le_bytes()
        })
        .collect();
    disk.write_at(offset, &bytes).unwrap();
    disk.flush().unwrap();
}

/// The content of a disk, as whoever attaches it sees it.
fn content(site: &Site, vdi: VdiUuid) -> String {
    let tree = Tree::open(site.sr_folder().as_std_path()).unwrap();
    let disk = tree.open_disk(vdi.0, Mode::Read).unwrap();
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    let mut at = 0;
    while at < disk.size() {
        let length = (disk.size() - at).min(piece.len() as u64) as usize;
        disk.read_at(at, &mut piece[..length]).unwrap();
        hash.update(&piece[..length]);
        at += length as u64;
    }
    format!("{} {:x?}", disk.size(), hash.finalize())
}

fn contents(site: &Site, vdis: &[VdiUuid]) -> BTreeMap<VdiUuid, String> {
    vdis.iter().map(|vdi| (*vdi, content(site, *vdi))).collect()
}

async fn snapshot(sr: &Sr, vdi: VdiUuid, name: &str) -> VdiUuid {
    let spec = [NewSnapshot { vdi, name: name.into(), description: String::new() }];
    sr.vdi_snapshot(&Op::new(), &spec).await.unwrap().vdis[0].uuid
}

/// A disk with so many levels below it, each with `length` bytes of its own at another place; the
/// snapshots are returned, the oldest first.
async fn layered(site: &Site, name: &str, levels: usize, length: usize) -> (VdiUuid, Vec<VdiUuid>) {
    let size = Bytes((levels as u64 + 1) * length.next_multiple_of(2 << 20) as u64);
    let new = NewVdi { name: name.into(), virtual_size: size, ..NewVdi::default() };
    let disk = site.sr.vdi_create(&Op::new(), new).await.unwrap().vdi.uuid;
    let mut snapshots = Vec::new();
    for level in 0..levels {
        // Half of it lies over what the level before wrote.
        let offset = level as u64 * (length as u64 / 2);
        write(site, disk, offset, length, level as u64 + 1);
        snapshots.push(snapshot(&site.sr, disk, &format!("{name}-{level}")).await);
    }
    write(site, disk, 4096, 8192, 99);
    (disk, snapshots)
}

/// Base copies, with the number of their children.
async fn bases(sr: &Sr) -> Vec<usize> {
    let nodes = sr.tree(&Op::new()).await.unwrap().nodes;
    let children = |uuid| nodes.iter().filter(|node| node.parent == Some(uuid)).count();
    nodes
        .iter()
        .filter(|node| node.kind == NodeKind::BaseCopy)
        .map(|node| children(node.uuid))
        .collect()
}

async fn check_sound(sr: &Sr, vdis: &[VdiUuid]) {
    for vdi in vdis {
        let checked = sr.vdi_check(&Op::new(), *vdi).await.unwrap();
        assert_eq!(checked.findings, [], "{vdi}");
    }
}

/// Every file with its size, time of change and allocation.
fn traces(folder: &Utf8Path) -> Vec<(String, u64, i64, i64, u64)> {
    files(&folder.to_owned())
        .into_iter()
        .map(|name| {
            let found = folder.join(&name).symlink_metadata().unwrap();
            (name, found.len(), found.mtime(), found.mtime_nsec(), found.blocks())
        })
        .collect()
}

/// What a folder takes, as `du` says it.
fn du(folder: &Utf8Path) -> u64 {
    let out = std::process::Command::new("du").args(["-s", "--block-size=1"]).arg(folder).output();
    let text = String::from_utf8(out.unwrap().stdout).unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn maintenance_shortens_chains_and_changes_no_byte() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let sr = &site.sr;
        let (disk, snapshots) = layered(&site, "a", 5, 1 << 20).await;
        let clone = sr.vdi_clone(&Op::new(), snapshots[1], "c", "").await.unwrap().vdi.uuid;
        // The first, and two in the middle: what lies between is needed by one child only.
        for gone in [0, 2, 3] {
            sr.vdi_destroy(&Op::new(), snapshots[gone]).await.unwrap();
        }
        let disks = [disk, clone, snapshots[1], snapshots[4]];
        let before = contents(&site, &disks);
        let lonely = bases(sr).await.iter().filter(|children| **children == 1).count();
        assert!(lonely >= 3, "{:?}", bases(sr).await);
        let reclaimable = sr.vdi_stat(&Op::new(), disk, true).await.unwrap().reclaimable.unwrap();
        assert!(reclaimable > Bytes(0));
        assert_eq!(sr.vdi_stat(&Op::new(), disk, false).await.unwrap().reclaimable, None);

        let traces_before = traces(&site.sr_folder());
        let plan = sr.maintain(&Op::new(), dry()).await.unwrap();
        assert_eq!(traces(&site.sr_folder()), traces_before, "a dry run changed something");
        assert_eq!(site.manager.jobs().unwrap().len(), 0, "a dry run is no job");
        assert_eq!((plan.changed, plan.finished), (Changed::Already, false));
        assert_eq!(plan.remaining as usize, plan.planned.len());
        assert!(plan.remaining >= 3 && plan.merged.is_empty(), "{plan:?}");

        let taken = du(&site.sr_folder());
        let op = Op::new();
        let done = sr.maintain(&op, now(Budget::default())).await.unwrap();
        assert_eq!((done.changed, done.finished), (Changed::Modified, true));
        assert_eq!((done.remaining, done.stopped), (0, None));
        assert_eq!(done.skipped, []);
        assert!(done.merged.len() >= plan.planned.len(), "{plan:?}\n{done:?}");
        assert!(done.freed > Bytes(0));
        assert!(du(&site.sr_folder()) < taken);
        assert!(bases(sr).await.iter().all(|children| *children > 1), "{:?}", bases(sr).await);
        assert_eq!(contents(&site, &disks), before);
        check_sound(sr, &disks).await;
        assert_eq!(sr.scan(&Op::new()).await.unwrap().recovered, SrRecovered::default());

        let job = site.manager.job(&op.id.to_string()).unwrap();
        assert_eq!((job.kind(), job.state, job.vdi), ("maintain", JobState::Done, None));
        assert_eq!(job.maintained.as_ref(), Some(&done));
        assert_eq!(job.bytes_done, done.bytes_copied);
        // The same wish has the same answer; a new one finds nothing to do.
        assert_eq!(sr.maintain(&op, now(Budget::default())).await.unwrap(), done);
        let again = sr.maintain(&Op::new(), now(Budget::default())).await.unwrap();
        assert_eq!((again.changed, again.finished), (Changed::Already, true));
        assert_eq!((again.merged, again.collected), (vec![], vec![]));
    }
}

#[tokio::test]
async fn the_sums_are_what_the_folder_takes_and_what_a_destroy_gives_back() {
    let site = Site::new(PLACEMENTS[0]).await;
    let sr = &site.sr;
    let (disk, snapshots) = layered(&site, "a", 3, 1 << 20).await;
    sr.vdi_clone(&Op::new(), snapshots[1], "c", "").await.unwrap();
    sr.vdi_destroy(&Op::new(), snapshots[0]).await.unwrap();
    let usage = sr.stat(&Op::new()).await.unwrap().usage.unwrap();
    assert_eq!(usage.total(), Bytes(du(&site.sr_folder())));
    let vdis = sr.vdis(&Op::new()).await.unwrap();
    assert_eq!(usage.vdis, Bytes(vdis.iter().map(|vdi| vdi.physical_utilisation.0).sum()));
    assert!(usage.base_copies > Bytes(0) && usage.overhead > Bytes(0));
    for vdi in [snapshots[2], disk, snapshots[1]] {
        let listed = sr.vdis(&Op::new()).await.unwrap().into_iter().find(|found| found.uuid == vdi);
        let exclusive = sr.vdi_stat(&Op::new(), vdi, true).await.unwrap().exclusive.unwrap();
        assert_eq!(listed.unwrap().exclusive, Some(exclusive));
        let before = sr.stat(&Op::new()).await.unwrap().usage.unwrap();
        sr.vdi_destroy(&Op::new(), vdi).await.unwrap();
        let after = sr.stat(&Op::new()).await.unwrap().usage.unwrap();
        let images = |usage: sm_core::model::sr::SrUsage| usage.vdis.0 + usage.base_copies.0;
        assert_eq!(images(before) - images(after), exclusive.0, "{vdi}");
    }
}

#[tokio::test]
async fn a_cancel_from_another_process_ends_it_within_a_second() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let (disk, snapshots) = layered(&site, "a", 2, 16 << 20).await;
        site.sr.vdi_destroy(&Op::new(), snapshots[0]).await.unwrap();
        let disks = [disk, snapshots[1]];
        let before = contents(&site, &disks);
        let (other, _) = site.again().await;
        let op = Op::new();
        let id = op.id;
        let told = Arc::new(AtomicBool::new(false));
        let op = op.with_progress(Arc::new({
            let told = told.clone();
            move |_, _: &str| told.store(true, Ordering::SeqCst)
        }));
        let slow = Budget { bytes_per_second: Some(Bytes::mib(1)), ..Budget::default() };
        let (sr, request) = (site.sr.clone(), now(slow.clone()));
        let work = tokio::spawn({
            let op = op.clone();
            async move { sr.maintain(&op, request).await }
        });
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let job = loop {
            assert!(!work.is_finished(), "it does not keep to its budget, or tells no progress");
            let job = other.job(&id.to_string()).unwrap();
            if told.load(Ordering::SeqCst) && !job.stage.is_empty() {
                break job;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        assert_eq!(job.state, JobState::Running);

        let begin = Instant::now();
        assert!(other.job_cancel(id).unwrap().cancel_requested);
        let error = work.await.unwrap().unwrap_err();
        assert!(begin.elapsed() < SOON, "{placement:?}: it took {:?}", begin.elapsed());
        assert_eq!(error.kind, Kind::Cancelled);
        assert!(error.message.starts_with("the maintenance was cancelled: "), "{error}");
        let job = other.job(&id.to_string()).unwrap();
        assert_eq!(job.state, JobState::Cancelled);
        let partial = job.maintained.unwrap();
        assert_eq!((partial.stopped, partial.finished), (Some(Stopped::Cancelled), false));
        assert!(partial.remaining > 0);
        assert_eq!(contents(&site, &disks), before);
        check_sound(&site.sr, &disks).await;

        // The session still works, and the same wish goes on to its end.
        let op = Op::new().with_id(id);
        let error = site.sr.maintain(&op, now(Budget::default())).await.unwrap_err();
        assert_eq!(error.kind, Kind::Exists, "another budget is another wish");
        let done = site.sr.maintain(&Op::new(), now(Budget::default())).await.unwrap();
        assert!(done.finished, "{done:?}");
        assert_eq!(contents(&site, &disks), before);
    }
}

#[tokio::test]
async fn its_time_over_it_answers_with_what_is_left() {
    let site = Site::new(PLACEMENTS[0]).await;
    let (_, snapshots) = layered(&site, "a", 2, 16 << 20).await;
    site.sr.vdi_destroy(&Op::new(), snapshots[0]).await.unwrap();
    let short =
        Budget { bytes_per_second: Some(Bytes::mib(1)), seconds: Some(1), ..Budget::default() };
    let begin = Instant::now();
    let op = Op::new();
    let done = site.sr.maintain(&op, now(short)).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1) + SOON, "{:?}", begin.elapsed());
    assert_eq!((done.stopped, done.finished), (Some(Stopped::OutOfTime), false));
    assert!(done.remaining > 0);
    assert_eq!(site.manager.job(&op.id.to_string()).unwrap().state, JobState::Done);
    assert!(site.sr.maintain(&Op::new(), now(Budget::default())).await.unwrap().finished);
}

#[tokio::test]
async fn impossible_budgets_are_refused_before_a_job_is_made() {
    let site = Site::new(PLACEMENTS[0]).await;
    for (budget, what) in [
        (Budget { bytes_per_second: Some(Bytes(0)), ..Budget::default() }, "0 bytes per second"),
        (Budget { seconds: Some(0), ..Budget::default() }, "no time"),
        (Budget { cpu_percent: Some(101), ..Budget::default() }, "101 percent"),
        (Budget { parallel: Some(0), ..Budget::default() }, "0 merges"),
    ] {
        let error = site.sr.maintain(&Op::new(), now(budget)).await.unwrap_err();
        assert_eq!(error.kind, Kind::Limit);
        assert!(error.message.contains(what), "{error}");
    }
    assert_eq!(site.manager.jobs().unwrap().len(), 0);
}

/// Whoever has a disk open on another host was told names of files, which have to stay.
#[tokio::test]
async fn nothing_that_another_host_has_open_is_touched() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let (disk, other) = two_long_chains(&site).await;
        let tree = Tree::open(site.sr_folder().as_std_path()).unwrap();
        let guard = || tree.lock(Instant::now() + Duration::from_secs(60)).unwrap();
        let holder = "another host, boot 11111111-2222-4333-8444-555555555555";
        tree.claim(&guard(), disk.0, holder).unwrap();
        let paths = tree.chain(disk.0).unwrap();
        assert!(paths.len() >= 4, "{paths:?}");
        let identities = || -> Vec<_> {
            paths.iter().map(|path| path.symlink_metadata().unwrap().ino()).collect()
        };
        let before = (identities(), contents(&site, &[disk, other]));
        let done = site.sr.maintain(&Op::new(), now(Budget::default())).await.unwrap();
        assert!(!done.merged.is_empty(), "the other disk was left alone as well: {done:?}");
        assert!(done.skipped.iter().any(|skipped| skipped.reason.contains("open")), "{done:?}");
        assert_eq!((identities(), contents(&site, &[disk, other])), before);

        tree.unclaim(&guard(), disk.0, holder).unwrap();
        let done = site.sr.maintain(&Op::new(), now(Budget::default())).await.unwrap();
        assert!(done.finished && done.skipped.is_empty(), "{done:?}");
        assert_eq!(bases(&site.sr).await, Vec::<usize>::new());
        assert_eq!(contents(&site, &[disk, other]), before.1);
    }
}

/// A disk that is attached and not in use keeps its own image; what is below it is merged, and
/// whoever has it attached sees nothing of that.
#[tokio::test]
async fn what_is_below_an_attached_disk_is_merged() {
    for placement in PLACEMENTS {
        for mode in [AttachMode::ReadOnly, AttachMode::ReadWrite] {
            let site = Site::new(placement).await;
            let (disk, other) = two_long_chains(&site).await;
            let access = site.sr.vdi_attach(&Op::new(), disk, "vm", mode).await.unwrap();
            let before = contents(&site, &[disk, other]);
            // It holds although the process that attached is gone.
            site.manager.clone().close().await;
            let (manager, sr) = site.again().await;
            let done = sr.maintain(&Op::new(), now(Budget::default())).await.unwrap();
            assert!(done.merged.iter().any(|merged| merged.live), "{done:?}");
            assert!(done.merged.iter().any(|merged| !merged.live), "{done:?}");
            let skipped: Vec<VdiUuid> = done.skipped.iter().map(|skipped| skipped.node).collect();
            assert_eq!(skipped, [disk], "{done:?}");
            assert_eq!(bases(&sr).await.len(), 1);
            assert_eq!(contents(&site, &[disk, other]), before);
            assert_eq!(sr.vdi_attach(&Op::new(), disk, "vm", mode).await.unwrap(), access);

            sr.vdi_detach(&Op::new(), disk, "vm").await.unwrap();
            let done = sr.maintain(&Op::new(), now(Budget::default())).await.unwrap();
            assert!(done.finished && done.skipped.is_empty(), "{done:?}");
            assert_eq!(bases(&sr).await, Vec::<usize>::new());
            assert_eq!(contents(&site, &[disk, other]), before);
            manager.close().await;
        }
    }
}

/// Two disks, each upon base copies that nothing else needs.
async fn two_long_chains(site: &Site) -> (VdiUuid, VdiUuid) {
    let (disk, snapshots) = layered(site, "a", 3, 1 << 20).await;
    let (other, others) = layered(site, "b", 2, 1 << 20).await;
    for gone in snapshots.into_iter().chain(others) {
        site.sr.vdi_destroy(&Op::new(), gone).await.unwrap();
    }
    (disk, other)
}

/// What a host had open before it was booted is not open any more.
#[tokio::test]
async fn a_claim_of_an_earlier_boot_does_not_hold() {
    let site = Site::new(PLACEMENTS[0]).await;
    let (disk, snapshots) = layered(&site, "a", 2, 1 << 20).await;
    for gone in snapshots {
        site.sr.vdi_destroy(&Op::new(), gone).await.unwrap();
    }
    let host =
        String::from_utf8(std::process::Command::new("uname").arg("-n").output().unwrap().stdout)
            .unwrap();
    let claim = |holder: &str| {
        let tree = Tree::open(site.sr_folder().as_std_path()).unwrap();
        let guard = tree.lock(Instant::now() + Duration::from_secs(60)).unwrap();
        tree.claim(&guard, disk.0, holder).unwrap();
    };
    claim("another host, boot 11111111-2222-4333-8444-555555555555");
    let done = site.sr.maintain(&Op::new(), now(Budget::default())).await.unwrap();
    assert!(done.merged.is_empty(), "another host's claim holds: {done:?}");
    assert!(done.skipped[0].reason.contains("another host"), "{done:?}");
    let tree = Tree::open(site.sr_folder().as_std_path()).unwrap();
    let guard = tree.lock(Instant::now() + Duration::from_secs(60)).unwrap();
    tree.unclaim(&guard, disk.0, "another host, boot 11111111-2222-4333-8444-555555555555")
        .unwrap();
    drop(guard);

    claim(&format!("{}, boot 11111111-2222-4333-8444-555555555555", host.trim()));
    let done = site.sr.maintain(&Op::new(), now(Budget::default())).await.unwrap();
    assert!(done.finished && !done.merged.is_empty(), "{done:?}");
    assert_eq!(tree.claims(disk.0).unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_damaged_image_is_named_and_the_others_go_on() {
    let site = Site::new(PLACEMENTS[0]).await;
    let sr = &site.sr;
    let (sound, snapshots) = layered(&site, "sound", 2, 1 << 20).await;
    let (broken, more) = layered(&site, "broken", 2, 1 << 20).await;
    for gone in snapshots.into_iter().chain(more) {
        sr.vdi_destroy(&Op::new(), gone).await.unwrap();
    }
    let before = content(&site, sound);
    // The document of one disk is no JSON any more: what its image needs is known all the same.
    let document = site.sr_folder().join(format!(".sm/vdi/{broken}.json"));
    std::fs::write(&document, "{").unwrap();
    let listed = sr.vdis(&Op::new()).await.unwrap();
    let health = &listed.iter().find(|vdi| vdi.uuid == broken).unwrap().health;
    assert!(matches!(health, Health::Quarantined { .. }));
    let done = sr.maintain(&Op::new(), now(Budget::default())).await.unwrap();
    assert!(done.skipped.iter().any(|skipped| skipped.node == broken), "{done:?}");
    assert_eq!(content(&site, sound), before);
    let depth = |done: &SrMaintained| done.merged.len();
    assert!(depth(&done) >= 2, "the sound disk was left alone: {done:?}");
}

#[tokio::test]
async fn a_reclaim_gives_back_zeros_and_keeps_the_content() {
    for placement in PLACEMENTS {
        let site = Site::new(placement).await;
        let sr = &site.sr;
        let new = NewVdi { virtual_size: Bytes::mib(16), ..NewVdi::default() };
        let disk = sr.vdi_create(&Op::new(), new).await.unwrap().vdi.uuid;
        write(&site, disk, 0, 8 << 20, 1);
        let tree = Tree::open(site.sr_folder().as_std_path()).unwrap();
        let open = tree.open_disk(disk.0, Mode::Write).unwrap();
        open.write_at(2 << 20, &vec![0; 4 << 20]).unwrap();
        open.flush().unwrap();
        drop(open);
        let before = (content(&site, disk), sr.vdi_stat(&Op::new(), disk, false).await.unwrap());
        let op = Op::new();
        let done = sr.vdi_reclaim(&op, disk).await.unwrap();
        assert_eq!(done.changed, Changed::Modified);
        // All but the block of the file system at each end, which holds other bytes too.
        let zeros = (4 << 20) - (8 << 10);
        assert!(done.freed.0 >= zeros && done.scanned >= Bytes::mib(8), "{done:?}");
        let after = sr.vdi_stat(&Op::new(), disk, false).await.unwrap();
        let freed = before.1.physical_utilisation.0 - after.physical_utilisation.0;
        assert_eq!(freed, done.freed.0);
        assert_eq!(content(&site, disk), before.0);
        check_sound(sr, &[disk]).await;
        assert_eq!(sr.vdi_reclaim(&op, disk).await.unwrap(), done, "a replay");
        let again = sr.vdi_reclaim(&Op::new(), disk).await.unwrap();
        assert_eq!((again.changed, again.freed), (Changed::Already, Bytes(0)));
    }
}

#[tokio::test]
async fn a_disk_that_is_attached_for_writing_is_not_reclaimed() {
    let site = Site::new(PLACEMENTS[0]).await;
    let disk = site.disk("a").await;
    site.sr.vdi_attach(&Op::new(), disk, "vm", AttachMode::ReadWrite).await.unwrap();
    let error = site.sr.vdi_reclaim(&Op::new(), disk).await.unwrap_err();
    assert_eq!(error.kind, Kind::InUse);
    assert_eq!(error.message, format!("VDI {disk} is attached by \"vm\""));
    assert_eq!(error.legacy_code(), 24);
    assert_eq!(
        error.hint.as_deref(),
        Some(format!("smctl vdi detach {disk} --datapath vm").as_str())
    );
    site.sr.vdi_detach(&Op::new(), disk, "vm").await.unwrap();
    site.sr.vdi_reclaim(&Op::new(), disk).await.unwrap();
}

/// At the limit, a snapshot first makes the chain shorter; where it cannot it is refused, with
/// what helps.
#[tokio::test]
async fn a_full_chain_is_warned_of_and_then_made_shorter() {
    let site = Site::new(PLACEMENTS[0]).await;
    let sr = &site.sr;
    let (disk, snapshots) = layered(&site, "a", 29, 4096).await;
    let warnings = sr.stat(&Op::new()).await.unwrap().warnings;
    let long =
        format!("VDI {disk}: chain of 30 of at most 30 images; smctl sr maintain shortens it");
    assert!(warnings.contains(&long), "{warnings:?}");
    assert!(warnings.len() > 5, "{warnings:?}");

    let spec = [NewSnapshot { vdi: disk, name: "s".into(), description: String::new() }];
    let error = sr.vdi_snapshot(&Op::new(), &spec).await.unwrap_err();
    assert_eq!((error.kind.clone(), error.legacy_code()), (Kind::Limit, 109));
    let hint = error.hint.clone().unwrap();
    assert!(hint.contains(&format!("smctl sr maintain {}", sr.uuid())), "{hint}");

    let before = content(&site, disk);
    sr.vdi_destroy(&Op::new(), snapshots[10]).await.unwrap();
    sr.vdi_destroy(&Op::new(), snapshots[20]).await.unwrap();
    let op = Op::new();
    let made = sr.vdi_snapshot(&op, &spec).await.unwrap();
    assert_eq!(made.changed, Changed::Created);
    assert_eq!(made.vdis[0].uuid, op.id.vdi(0));
    assert_eq!((content(&site, disk), content(&site, made.vdis[0].uuid)), (before.clone(), before));
    check_sound(sr, &[disk, made.vdis[0].uuid, snapshots[0], snapshots[28]]).await;
}

/// The catalog knows nothing of it any more, and the storage still says that the disk is open.
#[tokio::test]
async fn a_detach_ends_what_a_lost_state_directory_has_left_open() {
    let site = Site::new(PLACEMENTS[0]).await;
    let (disk, snapshots) = layered(&site, "a", 2, 1 << 20).await;
    for gone in snapshots {
        site.sr.vdi_destroy(&Op::new(), gone).await.unwrap();
    }
    site.sr.vdi_attach(&Op::new(), disk, "vm", AttachMode::ReadWrite).await.unwrap();
    let uuid = site.sr.uuid();
    let Site { manager, folder, placement, .. } = &site;
    manager.clone().close().await;
    std::fs::remove_dir_all(folder.join("state")).unwrap();
    let manager = crate::manager(folder, *placement).await;
    let config = [("location".to_owned(), folder.join("images").into_string())].into();
    let known = sm_core::NewSr {
        driver: "file".into(),
        uuid: Some(uuid),
        device_config: config,
        ..sm_core::NewSr::default()
    };
    manager.sr_introduce(&Op::new(), known).await.unwrap();
    let sr = manager.sr(&uuid.to_string()).unwrap();
    let done = sr.maintain(&Op::new(), now(Budget::default())).await.unwrap();
    assert!(done.merged.is_empty() && !done.skipped.is_empty(), "{done:?}");
    sr.vdi_detach(&Op::new(), disk, "vm").await.unwrap();
    let done = sr.maintain(&Op::new(), now(Budget::default())).await.unwrap();
    assert!(done.finished && !done.merged.is_empty(), "{done:?}");
}
