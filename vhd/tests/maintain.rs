//! Maintenance: what is merged, in which order, what is left alone, and what a kill leaves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;
#[path = "common/store.rs"]
mod store;

use std::ops::ControlFlow;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use store::{A, C, D, E, MIB, R, assert_at_rest, copy_store, fill, id, lock, setup, snap, state};
use vhd::tree::{Budget, Format, Kind, Maintained, Pace, Stopped};
use vhd::{Disk, Error, Mode, Tree};

fn place() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn on(_: Pace) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn maintain(tree: &Tree) -> Maintained {
    tree.maintain(soon(), &Budget::default(), &on).unwrap()
}

/// Small batches, one merge at a time: every step is passed several times.
const FINE: Budget =
    Budget { bytes_per_second: None, wall: None, cpu_percent: None, parallel: 1, batch: 256 << 10 };

/// A disk whose chain has `levels` base copies, each with some data; the snapshots are gone.
fn chain(tree: &Tree, disk: u128, levels: u64) {
    let guard = lock(tree);
    tree.create(&guard, id(disk), Format::Vhd, 16 * MIB, &json!({ "name": "chain" })).unwrap();
    for level in 0..levels {
        fill(tree, disk, level % 12 * MIB, 3 * MIB as usize, level as u8 + 1);
        let snapshot = disk * 0x100 + u128::from(level);
        snap(tree, &guard, 0x1_0000 + snapshot, disk, snapshot).unwrap();
        tree.delete(&guard, id(snapshot)).unwrap();
    }
    fill(tree, disk, 5 * MIB + 512, 70_000, 0x77);
}

fn depth(tree: &Tree, disk: u128) -> usize {
    tree.get(id(disk)).unwrap().depth
}

fn bases(tree: &Tree) -> usize {
    tree.list().unwrap().nodes.iter().filter(|node| node.kind == Kind::Base).count()
}

#[test]
fn chains_become_as_short_as_they_can_and_no_byte_changes() {
    let place = place();
    setup(place.path());
    let tree = Tree::open(place.path()).unwrap();
    chain(&tree, 0x70, 6);
    assert_eq!(depth(&tree, 0x70), 7);
    let before = state(&tree);
    let planned = tree.plan().unwrap().planned;
    assert!(planned.len() >= 6, "{planned:?}");
    assert_eq!(state(&tree), before, "a plan changes nothing");

    let report = maintain(&tree);
    assert_eq!((report.stopped, report.planned.len()), (None, 0), "{report:?}");
    assert!(report.merged.len() >= planned.len());
    assert_eq!(depth(&tree, 0x70), 1);
    // `A`, `S` and `C` still share their bases, each with two children.
    assert!(depth(&tree, A) > 1 && depth(&tree, C) > 1);
    assert_eq!(depth(&tree, D), 1);
    assert_eq!(state(&tree), before);
    assert_at_rest(&tree);
    assert_eq!(maintain(&tree), Maintained::default(), "a second run finds nothing to do");
}

/// The node nearest the root goes first, so that every byte is copied once at most, and the report
/// counts what was copied.
#[test]
fn a_chain_is_merged_from_its_root_and_each_byte_is_copied_once() {
    let place = place();
    let tree = Tree::init(place.path()).unwrap();
    chain(&tree, 0x70, 5);
    let expected: u64 = tree.plan().unwrap().planned.iter().map(|merge| merge.bytes).sum();
    let report = tree.maintain(soon(), &FINE, &on).unwrap();
    assert_eq!(report.bytes_copied, expected);
    assert_eq!(report.merged.iter().map(|merged| merged.bytes).sum::<u64>(), expected);
    // All into the one that was the root, and that is the disk now.
    let root = report.merged[0].into;
    assert!(report.merged.iter().all(|merged| merged.into == root), "{:?}", report.merged);
    assert_eq!(bases(&tree), 0);
    assert!(report.freed > 0);
}

#[test]
fn a_stopped_merge_goes_on_where_it_was() {
    let place = place();
    let tree = Tree::init(place.path()).unwrap();
    chain(&tree, 0x70, 1);
    fill(&tree, 0x70, 0, 14 * MIB as usize, 0x31);
    let before = state(&tree);
    let all: u64 = tree.plan().unwrap().planned.iter().map(|merge| merge.bytes).sum();
    let (mut copied, mut calls) = (0, 0);
    loop {
        let batches = AtomicUsize::new(0);
        let report = tree
            .maintain(soon(), &FINE, &|pace| {
                if pace.bytes_done == 0 || batches.fetch_add(1, Ordering::Relaxed) == 0 {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })
            .unwrap();
        copied += report.bytes_copied;
        calls += 1;
        assert!(calls < 100);
        if report.stopped.is_none() {
            break;
        }
        assert_eq!(report.stopped, Some(Stopped::Cancelled));
        assert!(report.bytes_copied > 0, "it got nowhere");
        assert_eq!(state(&tree), before);
    }
    assert!(calls > 2, "it was never stopped half-way");
    assert_eq!(copied, all, "bytes were copied twice");
    assert_eq!(state(&tree), before);
    assert_at_rest(&tree);
}

#[test]
fn the_time_and_the_rate_of_a_budget_are_kept() {
    let place = place();
    let tree = Tree::init(place.path()).unwrap();
    chain(&tree, 0x70, 1);
    fill(&tree, 0x70, 0, 12 * MIB as usize, 0x31);
    let budget = Budget { bytes_per_second: Some(4 * MIB), batch: MIB, ..FINE };
    let wall = Duration::from_millis(700);
    let started = Instant::now();
    let report = tree.maintain(soon(), &Budget { wall: Some(wall), ..budget }, &on).unwrap();
    assert_eq!(report.stopped, Some(Stopped::OutOfTime));
    assert!(report.bytes_copied <= 5 * MIB, "{} bytes in 0.7 s", report.bytes_copied);
    assert_eq!(report.planned.len(), 1);
    let report = tree.maintain(soon(), &budget, &on).unwrap();
    assert_eq!((report.stopped, report.merged.len()), (None, 1));
    // 12 MiB at 4 MiB/s: never faster, however fast the machine is.
    assert!(started.elapsed() >= Duration::from_millis(2500));
}

/// What an owner does to his disk, and its name.
type Act = (&'static str, fn(&Tree));

/// What a disk's owner does wins over a merge of it, at whatever moment.
#[test]
fn a_disk_that_changes_or_is_opened_is_not_merged_behind_its_owner() {
    let place = place();
    let template = place.path().join("template");
    std::fs::create_dir(&template).unwrap();
    let tree = Tree::init(&template).unwrap();
    chain(&tree, 0x70, 1);
    fill(&tree, 0x70, 0, 8 * MIB as usize, 0x31);
    drop(tree);
    let acts: [Act; 6] = [
        ("open", |tree| tree.claim(&lock(tree), id(0x70), "a data path").unwrap()),
        ("open and write", |tree| {
            tree.claim(&lock(tree), id(0x70), "a data path").unwrap();
            fill(tree, 0x70, 0, 4096, 0x99);
            tree.unclaim(&lock(tree), id(0x70), "a data path").unwrap();
        }),
        ("snapshot", |tree| {
            snap(tree, &lock(tree), 0x55, 0x70, 0x71).unwrap();
        }),
        ("resize", |tree| {
            tree.resize(&lock(tree), id(0x56), id(0x70), 40 << 30, &json!({})).unwrap();
        }),
        ("delete", |tree| {
            tree.delete(&lock(tree), id(0x70)).unwrap();
        }),
        ("nothing", |_| ()),
    ];
    for (name, act) in acts {
        let dir = place.path().join("work");
        copy_store(&template, &dir);
        let tree = Tree::open(&dir).unwrap();
        let batches = AtomicUsize::new(0);
        let expected = std::sync::Mutex::new(None);
        tree.maintain(soon(), &FINE, &|pace| {
            if pace.bytes_done > 0 && batches.fetch_add(1, Ordering::Relaxed) == 2 {
                act(&tree);
                *expected.lock().unwrap() = Some(state(&tree));
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        let expected = expected.into_inner().unwrap().expect("the merge had several batches");
        assert_eq!(state(&tree), expected, "{name}");
        match name {
            "open" => {
                assert_eq!(depth(&tree, 0x70), 2, "an open disk was merged");
                let skipped = maintain(&tree).skipped;
                assert!(skipped[0].reason.contains("a data path"), "{skipped:?}");
                tree.unclaim(&lock(&tree), id(0x70), "a data path").unwrap();
            }
            "nothing" => assert_eq!(depth(&tree, 0x70), 1),
            _ => {}
        }
        maintain(&tree);
        assert_eq!(state(&tree), expected, "{name}, then maintained");
        assert_at_rest(&tree);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

#[test]
fn one_damaged_tree_never_stops_the_others() {
    let place = place();
    let tree = Tree::init(place.path()).unwrap();
    for disk in [0x70, 0x80, 0x90] {
        chain(&tree, disk, 3);
    }
    let before = state(&tree);
    let chain = tree.chain(id(0x80)).unwrap();
    let file = |path: &Path| std::fs::OpenOptions::new().write(true).open(path).unwrap();
    // The footers and the header of a middle node, and a whole file of rubbish beside it.
    let damaged = file(&chain[1]);
    let length = damaged.metadata().unwrap().len();
    for at in [0, length - 512] {
        std::os::unix::fs::FileExt::write_all_at(&damaged, &[0x11; 512], at).unwrap();
    }
    let rubbish = place.path().join(format!("{}.vhd", id(0xbad)));
    std::fs::write(&rubbish, vec![0x22; 100_000]).unwrap();

    let report = maintain(&tree);
    assert_eq!((depth(&tree, 0x70), depth(&tree, 0x90)), (1, 1), "{report:?}");
    let skipped = |path: &Path| {
        report
            .skipped
            .iter()
            .any(|skipped| path.to_str().unwrap().contains(&skipped.uuid.to_string()))
    };
    assert!(skipped(&chain[1]) && skipped(&rubbish), "{:?}", report.skipped);
    // Everything that the damaged one may need is still there, so that a repair gives it all back.
    assert!(chain.iter().all(|path| path.exists()));
    for disk in [0x70, 0x90] {
        let now = tree.open_disk(id(disk), Mode::Read).unwrap();
        assert_eq!(store::digest(&now), before[&id(disk)].1);
    }
}

/// A damaged image that does not even tell whom it needs holds up merges, since any base copy may
/// be its parent; and is named.
#[test]
fn an_unreadable_image_with_a_footer_holds_up_merges() {
    let place = place();
    let tree = Tree::init(place.path()).unwrap();
    chain(&tree, 0x70, 2);
    let guard = lock(&tree);
    snap(&tree, &guard, 0x1234, 0x70, 0x71).unwrap();
    drop(guard);
    let path = &tree.chain(id(0x71)).unwrap()[0];
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    // The dynamic header, which names the parent.
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 1024], 512).unwrap();
    let report = maintain(&tree);
    assert_eq!(report.merged, []);
    assert!(report.skipped[0].reason.contains("may need any base copy"), "{report:?}");
    assert_eq!(report.skipped[0].uuid, id(0x71));
    // Deleting it, which is how such a disk is given up, lets the others go on.
    tree.delete(&lock(&tree), id(0x71)).unwrap();
    maintain(&tree);
    assert_eq!(depth(&tree, 0x70), 1);
}

/// XenServer's error 109, unless the chain can be made shorter.
#[test]
fn a_chain_at_its_limit_is_made_shorter_on_demand() {
    let place = place();
    let tree = Tree::init(place.path()).unwrap();
    let limit = vhd::tree::MAX_DEPTH as u64;
    chain(&tree, 0x70, limit - 1);
    let refused = snap(&tree, &lock(&tree), 0x1234, 0x70, 0x71);
    assert!(matches!(refused, Err(Error::ChainTooLong { .. })), "{refused:?}");
    let before = state(&tree);
    assert!(tree.shorten(soon(), id(0x70), &on).unwrap());
    assert_eq!(state(&tree), before);
    snap(&tree, &lock(&tree), 0x1234, 0x70, 0x71).unwrap();
    assert!(depth(&tree, 0x70) < 4);
    assert!(!tree.shorten(soon(), id(0x71), &on).unwrap(), "its base has two children");
    assert_at_rest(&tree);
}

#[test]
fn two_maintenances_of_a_store_do_not_meet() {
    let place = place();
    let tree = Tree::init(place.path()).unwrap();
    chain(&tree, 0x70, 1);
    let second = std::sync::Mutex::new(None);
    tree.maintain(soon(), &FINE, &|_| {
        let again = Tree::open(place.path()).unwrap().maintain(soon(), &FINE, &on);
        *second.lock().unwrap() = Some(again);
        ControlFlow::Continue(())
    })
    .unwrap();
    let second = second.into_inner().unwrap().unwrap();
    assert!(matches!(second, Err(Error::Busy { .. })), "{second:?}");
}

/// Owners write, snapshot, delete and open their disks while another thread merges all it can.
#[test]
fn disks_in_use_beside_maintenance_keep_their_bytes() {
    let place = place();
    let tree = Tree::init(place.path()).unwrap();
    let mut random = common::Random::new();
    let stop = AtomicBool::new(false);
    let merged = AtomicUsize::new(0);
    for disk in [0x70, 0x71, 0x72] {
        chain(&tree, disk, 2);
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let other = Tree::open(place.path()).unwrap();
            while !stop.load(Ordering::Relaxed) {
                match other.maintain(soon(), &Budget { parallel: 2, ..FINE }, &on) {
                    Ok(report) => drop(merged.fetch_add(report.merged.len(), Ordering::Relaxed)),
                    Err(error) => panic!("{}", error.reason()),
                }
            }
        });
        let mut models: std::collections::BTreeMap<u128, Vec<u8>> =
            std::collections::BTreeMap::new();
        let read = |disk: u128| {
            let open = tree.open_disk(id(disk), Mode::Read).unwrap();
            let mut bytes = vec![0; open.size() as usize];
            open.read_at(0, &mut bytes).unwrap();
            bytes
        };
        for disk in [0x70, 0x71, 0x72] {
            models.insert(disk, read(disk));
        }
        for round in 0..100_u128 {
            let disk = 0x70 + u128::from(random.next() % 3);
            match random.next() % 4 {
                0 | 1 => {
                    tree.claim(&lock(&tree), id(disk), "test").unwrap();
                    let at = (random.next() % (15 * MIB)) as usize;
                    let length = (random.next() % 200_000) as usize;
                    let byte = round as u8 | 1;
                    let open = tree.open_disk(id(disk), Mode::Write).unwrap();
                    let model = models.get_mut(&disk).unwrap();
                    open.write_at(at as u64, &vec![byte; length]).unwrap();
                    model[at..at + length].fill(byte);
                    drop(open);
                    tree.unclaim(&lock(&tree), id(disk), "test").unwrap();
                }
                2 => {
                    let snapshot = 0x1000 + round;
                    snap(&tree, &lock(&tree), 0x2000 + round, disk, snapshot).unwrap();
                    if random.next().is_multiple_of(4) {
                        models.insert(snapshot, models[&disk].clone());
                    } else {
                        tree.delete(&lock(&tree), id(snapshot)).unwrap();
                    }
                }
                _ => {
                    let known: Vec<u128> = models.keys().copied().collect();
                    let disk = known[random.next() as usize % known.len()];
                    assert!(read(disk) == models[&disk], "disk {disk:x} in round {round}");
                    if disk >= 0x1000 {
                        tree.delete(&lock(&tree), id(disk)).unwrap();
                        models.remove(&disk);
                    }
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        for (disk, model) in &models {
            assert!(read(*disk) == *model, "disk {disk:x} at the end");
        }
    });
    assert!(merged.into_inner() > 10, "hardly anything was merged");
    maintain(&tree);
    assert_at_rest(&tree);
}

/// The sum over all images is what the file system says of their files.
#[test]
fn space_adds_up() {
    use std::os::unix::fs::MetadataExt;
    let place = place();
    setup(place.path());
    let tree = Tree::open(place.path()).unwrap();
    chain(&tree, 0x70, 3);
    let physical =
        || -> u64 { tree.list().unwrap().nodes.iter().map(|node| node.physical_size).sum() };
    let files = std::fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap());
    let files = files.filter(|entry| entry.file_type().unwrap().is_file());
    let taken: u64 = files.map(|entry| entry.metadata().unwrap().blocks() * 512).sum();
    assert_eq!(physical(), taken);
    let exclusive = |disk: u128| tree.list().unwrap().exclusive()[&id(disk)];
    // All of the chain is this disk's, and nothing of what `A` shares is only its own.
    let chain = tree.chain(id(0x70)).unwrap();
    let chain: u64 = chain.iter().map(|path| path.metadata().unwrap().blocks() * 512).sum();
    assert_eq!(exclusive(0x70), chain);
    assert_eq!(exclusive(A), tree.get(id(A)).unwrap().physical_size);
    // What is promised is what comes back.
    for disk in [0x70, A] {
        let (before, promised) = (physical(), exclusive(disk));
        tree.delete(&lock(&tree), id(disk)).unwrap();
        assert_eq!(before - physical(), promised);
    }
}

/// Space that belongs to nobody, as a cut write leaves it behind the last block.
fn leave_a_gap(tree: &Tree, disk: u128) {
    use std::os::unix::fs::FileExt;
    let path = &tree.chain(id(disk)).unwrap()[0];
    let bytes = std::fs::read(path).unwrap();
    let (end, footer) = (bytes.len() as u64 - 512, &bytes[bytes.len() - 512..]);
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&vec![0x33; MIB as usize], end).unwrap();
    file.write_all_at(footer, end + MIB).unwrap();
}

#[test]
fn zeros_and_space_of_nobody_are_given_back() {
    let place = place();
    setup(place.path());
    let tree = Tree::open(place.path()).unwrap();
    for disk in [E, R] {
        fill(&tree, disk, 0, 4 * MIB as usize, 0x42);
        fill(&tree, disk, MIB / 2, 2 * MIB as usize, 0);
    }
    leave_a_gap(&tree, E);
    assert!(tree.reclaimable(id(E)).unwrap() >= MIB - 4096);
    let before = state(&tree);
    for disk in [E, R] {
        tree.claim(&lock(&tree), id(disk), "somebody").unwrap();
        let refused = tree.reclaim(soon(), id(disk), &on);
        assert!(matches!(refused, Err(Error::InUse { .. })), "{refused:?}");
        tree.unclaim(&lock(&tree), id(disk), "somebody").unwrap();
        let reclaimed = tree.reclaim(soon(), id(disk), &on).unwrap();
        assert!(reclaimed.freed >= 2 * MIB - 8192, "{reclaimed:?}");
        assert!(reclaimed.scanned >= 4 * MIB - 8192, "{reclaimed:?}");
        let again = tree.reclaim(soon(), id(disk), &on).unwrap();
        assert_eq!(again.freed, 0);
    }
    assert_eq!(state(&tree), before);
    // Zeros over a parent's data are data: they must not show it again.
    fill(&tree, C, 0, 8 * MIB as usize, 0);
    let before = state(&tree);
    tree.reclaim(soon(), id(C), &on).unwrap();
    assert_eq!(state(&tree), before);
    assert_at_rest(&tree);
}

/// Runs maintenance, or a reclaim, in a process that is killed at `step`. Whether it was.
fn killed(dir: &Path, step: &str) -> bool {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--quiet"])
        .env("VHD_MAINTAIN_DIR", dir)
        .env(sm_step::VARIABLE, step)
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success() || status.signal() == Some(9), "{step}: {status}");
    !status.success()
}

#[test]
#[ignore = "the process that is killed; run by the others"]
fn child() {
    let Ok(dir) = std::env::var("VHD_MAINTAIN_DIR") else { return };
    let tree = Tree::open(Path::new(&dir)).unwrap();
    tree.maintain(soon(), &FINE, &on).unwrap();
    tree.reclaim(soon(), id(A), &on).unwrap();
}

/// Every step of every visit, as often as there are visits; then recovery is killed as well.
#[test]
fn maintenance_is_killed_anywhere() {
    let place = place();
    let template = place.path().join("template");
    std::fs::create_dir(&template).unwrap();
    setup(&template);
    let tree = Tree::open(&template).unwrap();
    chain(&tree, 0x70, 2);
    // A base with several children below another: all of them are given a new parent.
    let guard = lock(&tree);
    snap(&tree, &guard, 0x901, 0x70, 0x71).unwrap();
    fill(&tree, 0x70, 9 * MIB, 4096, 0x13);
    snap(&tree, &guard, 0x902, 0x70, 0x72).unwrap();
    fill(&tree, A, 2 * MIB, 300_000, 0);
    leave_a_gap(&tree, A);
    drop(guard);
    // Larger than its base.
    tree.resize(&lock(&tree), id(0x903), id(D), 20 * MIB, &json!({})).unwrap();
    let before = state(&tree);
    drop(tree);
    // Those beside readers are killed where there are some, with a data path.
    let beside = ["sr_maintain.readers_closed", "sr_maintain.relinked", "sr_maintain.readers_told"];
    let ours = |step: &str| {
        (step.starts_with("sr_maintain.") && !beside.contains(&step))
            || step.starts_with("vdi_reclaim.")
    };
    let (dir, saved) = (place.path().join("cut"), place.path().join("saved"));
    let copy = |from: &Path, to: &Path| {
        let _ = std::fs::remove_dir_all(to);
        let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
        assert!(status.success());
    };
    let (mut kills, mut in_recovery) = (0, 0);
    for step in common::steps().iter().filter(|step| ours(step)) {
        for visit in 1..3 {
            copy(&template, &dir);
            if !killed(&dir, &format!("{step}:{visit}")) {
                assert!(visit > 1, "{step} is never passed");
                break;
            }
            kills += 1;
            copy(&dir, &saved);
            finish(&dir, &before, &format!("{step}:{visit}"));
            if visit > 1 {
                continue;
            }
            // Killed again while the next run completes what was left.
            for second in common::steps()
                .iter()
                .filter(|second| ours(second) || second.starts_with("recover."))
            {
                copy(&saved, &dir);
                if killed(&dir, second) {
                    in_recovery += 1;
                    finish(&dir, &before, &format!("{step}:{visit}, then {second}"));
                }
            }
        }
    }
    println!("{kills} kills, {in_recovery} more in the next run");
}

fn finish(dir: &Path, before: &store::State, what: &str) {
    let tree = Tree::open(dir).unwrap();
    // Before recovery: every disk is listed and holds what it held, and no base copy is a disk.
    for node in tree.list().unwrap().nodes {
        assert!(node.is_ok(), "{what}: {node:?}");
        let known = before.contains_key(&node.uuid);
        assert_eq!(node.kind == Kind::Leaf, known, "{what}: {node:?}");
    }
    assert!(state(&tree) == *before, "{what}");
    let recovery = tree.recover(&lock(&tree)).unwrap();
    assert_eq!(recovery.failed, [], "{what}");
    assert!(state(&tree) == *before, "{what}, recovered");
    let report = tree.maintain(soon(), &FINE, &on).unwrap();
    assert_eq!(report.planned, [], "{what}");
    assert!(state(&tree) == *before, "{what}, maintained");
    assert_at_rest(&tree);
    let left = dir.join(".sm/merge");
    let left = std::fs::read_dir(left).map_or(0, Iterator::count);
    assert_eq!(left, 0, "{what}: records of merges are left over");
}
