//! The leaf of a disk that is written all the time is merged into its parent, with the store's part
//! of it, and given up at any moment.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

#[path = "mirror/guests.rs"]
mod guests;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use datapath::disk::{Drive, Format, Layer, Options as DriveOptions, Paused, Plan};
use datapath::export::Export;
use datapath::sync::{Converged, LeafMerge, Phase};
use guests::{MIB, quick, seed, soon, wait_for, with_guests};
use serde_json::json;
use uuid::Uuid;
use vhd::tree::{Format as TreeFormat, Guard, Snapshot};
use vhd::{Disk, Mode, Tree};

const SIZE: u64 = 32 * MIB;
const HOLDER: &str = "a data path";

fn id(number: u64) -> Uuid {
    Uuid::from_u128(u128::from(number) << 64 | 7)
}

const DISK: u64 = 1;

fn lock(tree: &Tree) -> Guard {
    tree.lock(soon()).unwrap()
}

fn snapshot(tree: &Tree, number: u64) {
    let request = Snapshot {
        op: id(number + 1000),
        source: id(DISK),
        new: id(number),
        new_metadata: &json!({}),
        allow_copy: false,
    };
    tree.snapshot(&lock(tree), &request, &mut |_| ControlFlow::Continue(())).unwrap();
}

/// A disk with data in its own image and in `depth` base copies.
fn prepare(dir: &Path, depth: u64) -> Tree {
    let tree = Tree::init(dir).unwrap();
    tree.create(&lock(&tree), id(DISK), TreeFormat::Vhd, SIZE, &json!({})).unwrap();
    let fill = |level: u64| {
        let disk = tree.open_disk(id(DISK), Mode::Write).unwrap();
        for part in 0..24 {
            let at = (level * 7 + part) * MIB % SIZE + level * 512;
            disk.write_at(at, &vec![level as u8 + 1; 70_000 + part as usize * 1024]).unwrap();
        }
        disk.flush().unwrap();
    };
    for level in 0..depth {
        fill(level);
        snapshot(&tree, level + 10);
        tree.delete(&lock(&tree), id(level + 10)).unwrap();
    }
    fill(depth);
    tree.claim(&lock(&tree), id(DISK), HOLDER).unwrap();
    tree
}

/// As a driver makes it: the disk's file, and those that it names.
fn plan(dir: &Path, tree: &Tree) -> Plan {
    let layer = |uuid: Uuid| Layer { path: dir.join(format!("{uuid}.vhd")), format: Format::Vhd };
    let mut backing = Vec::new();
    let mut next = tree.get(id(DISK)).unwrap().parent;
    while let Some(uuid) = next {
        backing.push(layer(uuid));
        next = tree.get(uuid).unwrap().parent;
    }
    Plan { leaf: layer(id(DISK)), backing, read_only: false }
}

fn open(plan: &Plan) -> Arc<Drive> {
    Drive::open(plan, DriveOptions::default()).unwrap()
}

fn start(drive: &Arc<Drive>) -> LeafMerge {
    LeafMerge::start(drive, &DriveOptions::default(), quick(), soon()).unwrap()
}

fn content(paused: &Paused) -> Vec<u8> {
    let mut content = vec![0; SIZE as usize];
    paused.read(0, &mut content).unwrap();
    content
}

fn more(changes: &AtomicU64, count: u64) {
    let goal = changes.load(Ordering::Relaxed) + count;
    wait_for("more changes", || changes.load(Ordering::Relaxed) >= goal);
}

/// Under load; refusals are for good reasons, and not for ever.
fn converge(merge: &LeafMerge) -> Converged {
    let mut converged = None;
    wait_for("the end of a merge under load", || {
        merge.wait_ready(soon()).unwrap();
        converged = merge.converge(soon()).ok();
        converged.is_some()
    });
    converged.unwrap()
}

/// What is on the storage, as others read it.
fn reread(tree: &Tree) -> Vec<u8> {
    let disk = tree.open_disk(id(DISK), Mode::Read).unwrap();
    let mut content = vec![0; SIZE as usize];
    disk.read_at(0, &mut content).unwrap();
    content
}

#[test]
fn leaves_are_merged_one_after_the_other_while_guests_write() {
    let (seed, dir) = (seed(), tempfile::tempdir().unwrap());
    let tree = prepare(dir.path(), 3);
    let drive = open(&plan(dir.path(), &tree));
    let (merges, count) = with_guests(&drive, seed, 4, |changes| {
        for round in 0..3 {
            let live = tree.begin_live_merge(&lock(&tree), id(DISK), &[HOLDER]).unwrap();
            let merge = start(&drive);
            more(changes, 100);
            let mut converged = converge(&merge);
            let before = content(converged.source().unwrap());
            let op = id(2000 + round);
            tree.finish_live_merge(&lock(&tree), op, &live, &[HOLDER]).unwrap();
            converged.switch(&plan(dir.path(), &tree)).unwrap();
            let after = content(converged.source().unwrap());
            assert!(before == after, "round {round}: the disk holds something else");
            drop(converged);
            more(changes, 100);
            println!("{:?}", merge.progress());
        }
        3
    });
    assert_eq!(tree.get(id(DISK)).unwrap().depth, 1, "{merges} levels are gone, {count} changes");
    let mut last = vec![0; SIZE as usize];
    drive.read(0, &mut last).unwrap();
    drive.close(soon()).unwrap();
    assert!(reread(&tree) == last, "the files hold something else");
    let error = LeafMerge::start(&drive, &DriveOptions::default(), quick(), soon()).err().unwrap();
    assert_eq!(error.what, "the disk has no parent to be merged into");
}

/// Whenever it is given up, and by whom, the disk goes on and loses nothing; and what other readers
/// of the files see is what was answered before a flush.
#[test]
fn a_merge_is_given_up_at_any_moment() {
    let (seed, dir) = (seed(), tempfile::tempdir().unwrap());
    let tree = prepare(dir.path(), 2);
    let drive = open(&plan(dir.path(), &tree));
    with_guests(&drive, seed, 3, |changes| {
        for moment in 0..4 {
            let live = tree.begin_live_merge(&lock(&tree), id(DISK), &[HOLDER]).unwrap();
            let merge = start(&drive);
            match moment {
                0 => merge.cancel(soon()).unwrap(),
                1 => {
                    merge.wait_ready(soon()).unwrap();
                    more(changes, 50);
                    merge.cancel(soon()).unwrap();
                }
                2 => drop(merge),
                _ => {
                    // The store has changed its mind.
                    tree.cancel_live_merge(&lock(&tree), id(DISK)).unwrap();
                    let converged = converge(&merge);
                    let guard = lock(&tree);
                    assert!(tree.finish_live_merge(&guard, id(3000), &live, &[HOLDER]).is_err());
                    drop(converged);
                }
            }
            more(changes, 50);
            let paused = drive.pause(soon()).unwrap();
            assert!(content(&paused) == reread(&tree), "moment {moment}: the files differ");
        }
    });
    assert_eq!(tree.get(id(DISK)).unwrap().depth, 3);
}

/// Given up again and again, each time with more in the parent, while guests write all the time; and
/// then finished.
#[test]
fn a_merge_that_was_given_up_goes_on_where_it_was() {
    let (seed, dir) = (seed(), tempfile::tempdir().unwrap());
    let tree = prepare(dir.path(), 2);
    let drive = open(&plan(dir.path(), &tree));
    let go_on =
        |left| LeafMerge::go_on(&drive, &DriveOptions::default(), quick(), left, soon()).unwrap();
    with_guests(&drive, seed, 3, |changes| {
        let live = tree.begin_live_merge(&lock(&tree), id(DISK), &[HOLDER]).unwrap();
        let mut left = None;
        for round in 0..12 {
            let merge = go_on(left.take());
            match round % 3 {
                // Before all of the leaf was looked at, perhaps.
                0 => {}
                1 => more(changes, 30),
                _ => merge.wait_ready(soon()).unwrap(),
            }
            left = merge.suspend(soon()).unwrap();
            assert!(left.as_ref().unwrap().fits(&drive), "round {round}");
            more(changes, round * 3);
        }
        let merge = go_on(left.take());
        let mut converged = converge(&merge);
        let before = content(converged.source().unwrap());
        tree.finish_live_merge(&lock(&tree), id(5000), &live, &[HOLDER]).unwrap();
        converged.switch(&plan(dir.path(), &tree)).unwrap();
        assert!(before == content(converged.source().unwrap()), "the parent lacks something");
        drop(converged);
        more(changes, 100);
    });
    assert_eq!(tree.get(id(DISK)).unwrap().depth, 2);
    let mut last = vec![0; SIZE as usize];
    drive.read(0, &mut last).unwrap();
    drive.close(soon()).unwrap();
    assert!(reread(&tree) == last, "the files hold something else");
}

#[test]
fn what_a_merge_has_left_is_believed_only_of_the_same_files() {
    let dir = tempfile::tempdir().unwrap();
    let tree = prepare(dir.path(), 1);
    let drive = open(&plan(dir.path(), &tree));
    let go_on =
        |left| LeafMerge::go_on(&drive, &DriveOptions::default(), quick(), left, soon()).unwrap();
    // What there is to copy for a merge, and what it leaves.
    let merged = |left| {
        let merge = go_on(left);
        merge.wait_ready(soon()).unwrap();
        (merge.progress().total, merge.suspend(soon()).unwrap().unwrap())
    };
    let (all, left) = merged(None);
    assert!(all > MIB, "{all}");
    let (total, left) = merged(Some(left));
    assert_eq!(total, 0, "nothing was written since");
    drive.write(5 * MIB + 100, &vec![1; 70_000], false).unwrap();
    drive.trim(9 * MIB, 512, false).unwrap();
    let (total, left) = merged(Some(left));
    assert_eq!(total, 3 * 65536, "two regions of the one, and that of the other");
    // Somebody else has written the parent.
    let parent = drive.plan().backing[0].path.clone();
    let file = std::fs::File::options().write(true).open(parent).unwrap();
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert!(!left.fits(&drive));
    let (total, left) = merged(Some(left));
    assert!(total >= all, "{total}");
    // The disk has another leaf.
    let paused = drive.pause(soon()).unwrap();
    snapshot(&tree, 50);
    paused.replace(drive.prepare(&plan(dir.path(), &tree)).unwrap()).unwrap();
    drop(paused);
    assert!(!left.fits(&drive));
    drop(left);
    drive.close(soon()).unwrap();
}

#[test]
fn a_disk_whose_leaf_lost_its_name_stays_paused_rather_than_write_to_nowhere() {
    let (seed, dir) = (seed(), tempfile::tempdir().unwrap());
    let tree = prepare(dir.path(), 1);
    let drive = open(&plan(dir.path(), &tree));
    drive.write(0, &seed.to_le_bytes(), false).unwrap();
    let live = tree.begin_live_merge(&lock(&tree), id(DISK), &[HOLDER]).unwrap();
    let merge = start(&drive);
    let converged = converge(&merge);
    tree.finish_live_merge(&lock(&tree), id(4000), &live, &[HOLDER]).unwrap();
    drop(converged);
    let at_once = Instant::now() + Duration::from_millis(10);
    let error = drive.pause(at_once).err().unwrap();
    assert_eq!(error.what, "the disk is paused by somebody else");
}

/// A snapshot in between, by somebody who forgot to cancel the merge: what the guest writes then
/// belongs to another leaf, and must not get below the snapshot.
#[test]
fn a_merge_ends_when_the_disk_gets_another_leaf() {
    let (seed, dir) = (seed(), tempfile::tempdir().unwrap());
    let tree = prepare(dir.path(), 1);
    let drive = open(&plan(dir.path(), &tree));
    let taken = with_guests(&drive, seed, 3, |changes| {
        tree.begin_live_merge(&lock(&tree), id(DISK), &[HOLDER]).unwrap();
        let merge = start(&drive);
        merge.wait_ready(soon()).unwrap();
        let paused = drive.pause(soon()).unwrap();
        let taken = content(&paused);
        snapshot(&tree, 50);
        let prepared = drive.prepare(&plan(dir.path(), &tree)).unwrap();
        paused.replace(prepared).unwrap();
        drop(paused);
        more(changes, 100);
        wait_for("the merge to end", || matches!(merge.progress().phase, Phase::Failed(_)));
        let Phase::Failed(what) = merge.progress().phase else { panic!() };
        assert!(what.contains("the disk has another leaf now"), "{what}");
        assert!(merge.converge(soon()).is_err());
        more(changes, 100);
        taken
    })
    .0;
    let snapshot = tree.open_disk(id(50), Mode::Read).unwrap();
    let mut held = vec![0; SIZE as usize];
    snapshot.read_at(0, &mut held).unwrap();
    assert!(held == taken, "the snapshot has changed");
}
