//! A disk is merged into its parent while somebody has it open: who may, what is refused, and what
//! a kill at any step leaves to a holder that goes on by itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;
#[path = "common/store.rs"]
mod store;

use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use store::{A, MIB, assert_at_rest, copy_store, fill, id, lock, setup, snap, state};
use vhd::merge::{Options, merge};
use vhd::tree::{Budget, Format, Kind, LiveMerge, Outcome};
use vhd::{Disk, Error, Image, Mode, Tree};

const DISK: u128 = 0x70;
const OP: u128 = 0x71;
const HOLDER: &str = "a data path";

fn place() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// A disk that is open, with one base copy of its own, which has another below it.
fn prepare(dir: &Path) -> Tree {
    setup(dir);
    let tree = Tree::open(dir).unwrap();
    let guard = lock(&tree);
    tree.create(&guard, id(DISK), Format::Vhd, 16 * MIB, &json!({ "name": "busy" })).unwrap();
    for (index, snapshot) in [0x81, 0x82].into_iter().enumerate() {
        fill(&tree, DISK, index as u64 * MIB, 3 * MIB as usize, index as u8 + 1);
        snap(&tree, &guard, 0x100 + snapshot, DISK, snapshot).unwrap();
    }
    tree.delete(&guard, id(0x82)).unwrap();
    fill(&tree, DISK, 5 * MIB + 512, 70_000, 0x77);
    tree.claim(&guard, id(DISK), HOLDER).unwrap();
    drop(guard);
    tree
}

fn path(dir: &Path, disk: uuid::Uuid) -> PathBuf {
    dir.join(format!("{disk}.vhd"))
}

/// What the holder does between the two calls: all of the disk's own image into its parent.
fn copy_over(dir: &Path, live: &LiveMerge) {
    let child = Image::open(&path(dir, live.disk), Mode::Read).unwrap();
    let parent = Image::open(&path(dir, live.into), Mode::Write).unwrap();
    merge(&child, &parent, 0, &Options::default(), &mut |_| ControlFlow::Continue(())).unwrap();
}

fn begin(tree: &Tree) -> LiveMerge {
    tree.begin_live_merge(&lock(tree), id(DISK), &[HOLDER]).unwrap()
}

fn finish(tree: &Tree, live: &LiveMerge) -> vhd::Result<()> {
    tree.finish_live_merge(&lock(tree), id(OP), live, &[HOLDER])
}

fn records(dir: &Path) -> usize {
    std::fs::read_dir(dir.join(".sm/merge")).map_or(0, Iterator::count)
}

#[test]
fn an_open_disk_takes_its_parents_place_and_no_byte_changes() {
    let place = place();
    let tree = prepare(place.path());
    let before = state(&tree);
    let depth = tree.get(id(DISK)).unwrap().depth;
    let live = begin(&tree);
    assert_eq!(begin(&tree), live, "the same again");
    assert_eq!(state(&tree), before);
    copy_over(place.path(), &live);
    // Maintenance leaves it alone meanwhile.
    let soon = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let report = tree.maintain(soon, &Budget::default(), &|_| ControlFlow::Continue(())).unwrap();
    assert!(report.merged.iter().all(|merged| merged.node != id(DISK)), "{report:?}");
    let parent = std::fs::metadata(path(place.path(), live.into)).unwrap().ino();
    finish(&tree, &live).unwrap();
    finish(&tree, &live).unwrap();
    assert_eq!(std::fs::metadata(path(place.path(), id(DISK))).unwrap().ino(), parent);
    assert_eq!(state(&tree), before);
    assert_eq!(tree.get(id(DISK)).unwrap().depth, depth - 1);
    assert_eq!((records(place.path()), tree.claims(id(DISK)).unwrap().len()), (0, 1));
    assert_at_rest(&tree);
}

/// The reason in the words of the error.
fn refused<T>(result: vhd::Result<T>, words: &str) {
    let Err(error) = result else { panic!("not refused: {words}") };
    assert!(error.to_string().contains(words), "{error}");
}

#[test]
fn what_cannot_be_merged_is_refused_and_nothing_is_left() {
    let place = place();
    let tree = prepare(place.path());
    let begin = |disk, holder| tree.begin_live_merge(&lock(&tree), id(disk), &[holder]);
    let before = state(&tree);
    assert!(matches!(begin(DISK, "another"), Err(Error::InUse { holder, .. }) if holder == HOLDER));
    // A base that others need, and one that is none.
    refused(begin(A, HOLDER), "it has none, or others need that");
    let base = tree.get(id(DISK)).unwrap().parent.unwrap();
    assert!(matches!(
        tree.begin_live_merge(&lock(&tree), base, &[HOLDER]),
        Err(Error::NotALeaf { .. })
    ));
    assert!(begin(0x999, HOLDER).is_err());
    // A disk that has become larger than its parent.
    tree.resize(&lock(&tree), id(0x903), id(DISK), 20 * MIB, &json!({})).unwrap();
    refused(begin(DISK, HOLDER), "is smaller than the disk");
    assert_eq!((records(place.path()), state(&tree).len()), (0, before.len()));
}

#[test]
fn a_disk_that_was_changed_meanwhile_stays_as_it_is() {
    for change in 0..4 {
        let place = place();
        let tree = prepare(place.path());
        let live = begin(&tree);
        copy_over(place.path(), &live);
        let guard = lock(&tree);
        match change {
            0 => assert_eq!(
                snap(&tree, &guard, 0x200, DISK, 0x90).unwrap().outcome,
                Outcome::Created
            ),
            1 => tree.claim(&guard, id(DISK), "another").unwrap(),
            2 => tree.cancel_live_merge(&guard, id(DISK)).unwrap(),
            _ => {
                tree.unclaim(&guard, id(DISK), HOLDER).unwrap();
                tree.resize(&guard, id(0x201), id(DISK), 18 * MIB, &json!({})).unwrap();
            }
        }
        drop(guard);
        let before = state(&tree);
        refused(finish(&tree, &live), "was changed since its merge began");
        assert_eq!(state(&tree), before);
        assert_at_rest(&tree);
    }
}

/// Finishes in a process that is killed at `step`. Whether it was.
fn killed(dir: &Path, step: &str) -> bool {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--quiet"])
        .env("VHD_LIVE_DIR", dir)
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
    let Ok(dir) = std::env::var("VHD_LIVE_DIR") else { return };
    let tree = Tree::open(Path::new(&dir)).unwrap();
    // What an earlier one left is dealt with first.
    tree.recover(&lock(&tree)).unwrap();
    let guard = lock(&tree);
    // Refused when an earlier one had got that far.
    let Ok(live) = tree.begin_live_merge(&guard, id(DISK), &[HOLDER]) else { return };
    drop(guard);
    copy_over(Path::new(&dir), &live);
    finish(&tree, &live).unwrap();
}

/// The holder finds itself alone: it goes on with the file that has the disk's name. What it writes
/// from then on must not be lost by whatever recovery does.
fn go_on_alone(dir: &Path, what: &str) {
    let tree = Tree::open(dir).unwrap();
    for node in tree.list().unwrap().nodes {
        assert!(node.is_ok(), "{what}: {node:?}");
    }
    tree.open_disk(id(DISK), Mode::Write).unwrap().write_at(7 * MIB, &[0x55; 4096]).unwrap();
    let before = state(&tree);
    let recovery = tree.recover(&lock(&tree)).unwrap();
    assert_eq!(recovery.failed, [], "{what}");
    assert!(state(&tree) == before, "{what}, recovered");
    let bases = tree.list().unwrap().nodes.iter().filter(|n| n.kind == Kind::Base).count();
    assert!(bases > 0, "{what}: the base is a disk now");
    let open = std::fs::metadata(path(dir, id(DISK))).unwrap().ino();

    // And it can be merged all the same: now, or when the disk is closed.
    let guard = lock(&tree);
    match tree.begin_live_merge(&guard, id(DISK), &[HOLDER]) {
        Ok(live) => {
            drop(guard);
            copy_over(dir, &live);
            finish(&tree, &live).unwrap();
            assert_ne!(std::fs::metadata(path(dir, id(DISK))).unwrap().ino(), open);
        }
        Err(error) => {
            drop(guard);
            refused::<()>(Err(error), "it has none, or others need that");
        }
    }
    assert!(state(&tree) == before, "{what}, merged");
    assert_eq!(records(dir), 0, "{what}");
    tree.unclaim(&lock(&tree), id(DISK), HOLDER).unwrap();
    let soon = std::time::Instant::now() + std::time::Duration::from_secs(60);
    tree.maintain(soon, &Budget::default(), &|_| ControlFlow::Continue(())).unwrap();
    assert!(state(&tree) == before, "{what}, maintained");
    assert_at_rest(&tree);
}

#[test]
fn a_live_merge_is_killed_anywhere_and_the_holder_goes_on() {
    let place = place();
    let template = place.path().join("template");
    std::fs::create_dir(&template).unwrap();
    drop(prepare(&template));
    let (dir, saved) = (place.path().join("cut"), place.path().join("saved"));
    let copy = |from: &Path, to: &Path| {
        let _ = std::fs::remove_dir_all(to);
        copy_store(from, to);
    };
    let steps = common::steps();
    let ours = |step: &&String| step.starts_with("sr_maintain.") || step.starts_with("recover.");
    let (mut kills, mut in_recovery) = (0, 0);
    for step in steps.iter().filter(ours) {
        copy(&template, &dir);
        if !killed(&dir, step) {
            continue;
        }
        kills += 1;
        copy(&dir, &saved);
        go_on_alone(&dir, step);
        for second in steps.iter().filter(ours) {
            copy(&saved, &dir);
            if killed(&dir, second) {
                in_recovery += 1;
                go_on_alone(&dir, &format!("{step}, then {second}"));
            }
        }
    }
    println!("{kills} kills, {in_recovery} more in the next run");
    assert!(kills >= 5 && in_recovery >= 8, "{kills}, {in_recovery}");
}
