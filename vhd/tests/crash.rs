//! Every operation killed at every step, also inside recovery, also with the disk full.
//!
//! The law: after a cut, the next call finds every disk that there was, byte for byte; either
//! nothing has happened or everything; the operation repeated with the same id completes; and
//! nothing is left over.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;
#[path = "common/store.rs"]
mod store;

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use store::{SCENARIOS, Scenario, assert_at_rest, copy_store, lock, setup, state};
use vhd::Tree;
use vhd::tree::Outcome;

/// Stores of the tests: in memory where possible, since thousands of syncs are part of them.
fn place() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// Runs a scenario, or only recovery, in a process that is killed at `step`. Whether it was.
fn killed(dir: &Path, scenario: &str, step: &str) -> bool {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--quiet"])
        .env("VHD_CRASH_DIR", dir)
        .env("VHD_CRASH_SCENARIO", scenario)
        .env(sm_step::VARIABLE, step)
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success() || status.signal() == Some(9), "{scenario} at {step}: {status}");
    !status.success()
}

#[test]
#[ignore = "the process that is killed; run by the others"]
fn child() {
    let (Ok(dir), Ok(name)) = (std::env::var("VHD_CRASH_DIR"), std::env::var("VHD_CRASH_SCENARIO"))
    else {
        return;
    };
    let tree = Tree::open(Path::new(&dir)).unwrap();
    let guard = lock(&tree);
    match SCENARIOS.iter().find(|(known, _)| *known == name) {
        Some((_, run)) => drop(run(&tree, &guard).unwrap()),
        None => drop(tree.recover(&guard).unwrap()),
    }
}

/// Steps of the operations that are cut here; maintenance is in `maintain.rs`.
fn ours(step: &str) -> bool {
    // A resize beside a writer is killed where there is one, with a data path.
    let elsewhere = ["vdi_reclaim.", "vdi_resize.writer_"];
    step.starts_with("vdi_") && !elsewhere.iter().any(|start| step.starts_with(start))
}

/// Steps that recovery can pass.
fn in_recovery(step: &str) -> bool {
    let late = [
        "metadata_placed",
        "new_placed",
        "base_hidden",
        "parents_moved",
        "member_placed",
        "finished",
    ];
    step.starts_with("recover.") || late.iter().any(|end| step.ends_with(end))
}

fn cut_everywhere(scenario: &Scenario) -> BTreeSet<String> {
    let (name, run) = scenario;
    let place = place();
    let template = place.path().join("template");
    std::fs::create_dir(&template).unwrap();
    setup(&template);
    let before = state(&Tree::open(&template).unwrap());
    let done = place.path().join("done");
    copy_store(&template, &done);
    let tree = Tree::open(&done).unwrap();
    run(&tree, &lock(&tree)).unwrap();
    let after = state(&tree);
    assert_at_rest(&tree);

    let steps = common::steps();
    let mut visited = BTreeSet::new();
    let dir = place.path().join("cut");
    let saved = place.path().join("saved");
    for step in steps.iter().filter(|step| ours(step)) {
        let _ = std::fs::remove_dir_all(&dir);
        copy_store(&template, &dir);
        if !killed(&dir, name, step) {
            continue;
        }
        visited.insert(step.clone());
        let _ = std::fs::remove_dir_all(&saved);
        // A cut between link and rename leaves two names of one file, which a copy would part.
        let status = Command::new("cp").arg("-a").arg(&dir).arg(&saved).status().unwrap();
        assert!(status.success());
        finish(&dir, scenario, &before, &after, step);

        for second in steps.iter().filter(|second| in_recovery(second)) {
            let _ = std::fs::remove_dir_all(&dir);
            let status = Command::new("cp").arg("-a").arg(&saved).arg(&dir).status().unwrap();
            assert!(status.success());
            if killed(&dir, "recovery", second) {
                visited.insert(second.clone());
                finish(&dir, scenario, &before, &after, &format!("{step}, then {second}"));
            }
        }
    }
    assert!(!visited.is_empty(), "{name} passes no step");
    visited
}

fn finish(
    dir: &Path,
    (name, run): &Scenario,
    before: &store::State,
    after: &store::State,
    step: &str,
) {
    let what = format!("{name} cut at {step}");
    let tree = Tree::open(dir).unwrap();
    // Even before recovery: whoever lists the store must see every disk that is there before and
    // after, and no base copy as a disk.
    let listing = tree.list().unwrap();
    for uuid in before.keys().filter(|uuid| after.contains_key(uuid)) {
        let node = listing.nodes.iter().find(|node| node.uuid == *uuid);
        assert!(node.is_some_and(vhd::tree::Node::is_ok), "{what}: {uuid} is {node:?}");
    }
    for node in listing.nodes.iter().filter(|node| node.kind == vhd::tree::Kind::Leaf) {
        let known = before.contains_key(&node.uuid) || after.contains_key(&node.uuid);
        assert!(known, "{what}: {node:?} is no disk");
    }
    let guard = lock(&tree);
    tree.recover(&guard).unwrap();
    let recovered = state(&tree);
    for (uuid, (size, digest, _)) in &recovered {
        let same = |state: &store::State| {
            state.get(uuid).is_some_and(|(s, d, _)| (s, d) == (size, digest))
        };
        assert!(same(before) || same(after), "{what}: {uuid} has changed");
    }
    let names: Vec<_> = recovered.keys().collect();
    let all = |state: &store::State| state.keys().collect::<Vec<_>>() == names;
    assert!(all(before) || all(after), "{what}: disks are {names:?}");
    assert_at_rest(&tree);
    assert_eq!(tree.recover(&guard).unwrap(), vhd::tree::Recovery::default(), "{what}");

    run(&tree, &guard).unwrap_or_else(|error| panic!("{what}, repeated: {}", error.reason()));
    assert!(state(&tree) == *after, "{what}, repeated");
    assert_at_rest(&tree);
    let again = run(&tree, &guard).unwrap();
    assert_eq!(again.outcome, Outcome::Already, "{what}, repeated twice");
    assert!(state(&tree) == *after, "{what}, repeated twice");
}

macro_rules! cut {
    ($($name:ident: $($scenario:literal),+;)+) => {
        $(#[test]
        fn $name() {
            for scenario in SCENARIOS.iter().filter(|(name, _)| [$($scenario),+].contains(name)) {
                let visited = cut_everywhere(scenario);
                println!("{}: {visited:?}", scenario.0);
            }
        })+

        #[test]
        fn every_scenario_is_cut() {
            let cut = [$($($scenario),+),+];
            assert!(SCENARIOS.iter().all(|(name, _)| cut.contains(name)));
        }
    };
}

cut! {
    create_is_cut_anywhere: "create_vhd", "create_raw";
    a_snapshot_of_data_is_cut_anywhere: "snapshot_data";
    a_snapshot_of_what_is_written_is_cut_anywhere: "snapshot_written", "snapshot_written_new";
    a_snapshot_without_data_is_cut_anywhere: "snapshot_empty", "snapshot_new", "snapshot_raw";
    a_group_is_cut_anywhere: "snapshot_group", "snapshot_group_empty", "snapshot_group_written";
    a_prepared_group_is_cut_anywhere: "snapshot_group_prepared", "snapshot_group_prepared_written";
    a_revert_is_cut_anywhere: "revert_empty", "revert_raw", "revert_collects";
    a_revert_to_data_is_cut_anywhere: "revert_data";
    a_resize_is_cut_anywhere: "resize_vhd", "resize_table", "resize_raw";
    a_delete_is_cut_anywhere: "delete", "delete_collects", "delete_raw";
    metadata_is_cut_anywhere: "update", "introduce";
}

/// Every step that is compiled in is passed by at least one of the scenarios, so none is dead.
#[test]
fn every_step_is_passed_by_some_scenario() {
    let place = place();
    let template = place.path().join("template");
    std::fs::create_dir(&template).unwrap();
    setup(&template);
    let dir = place.path().join("cut");
    for step in common::steps().iter().filter(|step| ours(step)) {
        let operation = step.split(['_', '.']).nth(1).unwrap();
        let mut candidates = SCENARIOS.iter().filter(|(name, _)| name.starts_with(operation));
        let passed = candidates.any(|(name, _)| {
            let _ = std::fs::remove_dir_all(&dir);
            copy_store(&template, &dir);
            killed(&dir, name, step)
        });
        assert!(passed, "{step} is never passed");
    }
}

/// Where there are no hard links the leaf is renamed to be the base, and for a moment the disk has
/// no file: recovery gives the name back.
#[test]
fn without_hard_links_a_cut_snapshot_is_undone_as_well() {
    let place = place();
    setup(place.path());
    let tree = Tree::open(place.path()).unwrap();
    let before = state(&tree);
    assert!(killed(place.path(), "snapshot_data", "vdi_snapshot.linked"));
    // What a rename in place of the link leaves behind.
    std::fs::remove_file(place.path().join(format!("{}.vhd", store::id(store::A)))).unwrap();
    let listing = tree.list().unwrap();
    assert!(
        listing.unfinished && listing.nodes.iter().any(|node| node.uuid == store::id(store::A))
    );
    let guard = lock(&tree);
    assert_eq!(tree.recover(&guard).unwrap().undone, [store::id(store::OP)]);
    assert!(state(&tree) == before);
    assert_at_rest(&tree);
}

/// A record cut while it was written: it was not synced, so nothing was done.
#[test]
fn a_torn_record_is_removed() {
    let place = place();
    setup(place.path());
    let tree = Tree::open(place.path()).unwrap();
    let before = state(&tree);
    let path = place.path().join(".sm/journal").join(format!("{}.json", store::id(store::OP)));
    std::fs::write(path, b"{\"sm\":1,\"op\"").unwrap();
    assert!(tree.list().unwrap().unfinished);
    let removed = tree.recover(&lock(&tree)).unwrap().removed;
    assert_eq!(removed.len(), 1);
    assert!(state(&tree) == before);
    assert_at_rest(&tree);
}

/// The table at the top of the module `tree`.
#[test]
fn operations_sync_as_often_as_documented() {
    let place = place();
    let template = place.path().join("template");
    std::fs::create_dir(&template).unwrap();
    setup(&template);
    let documented = [
        ("create_vhd", 4),
        ("create_raw", 4),
        ("update", 2),
        ("introduce", 2),
        ("snapshot_data", 7),
        ("snapshot_empty", 4),
        ("snapshot_group", 22),
        ("revert_empty", 5),
        ("revert_data", 7),
        ("resize_vhd", 6),
        ("delete", 1),
        ("delete_collects", 1),
    ];
    for (scenario, syncs) in documented {
        let dir = place.path().join(scenario);
        copy_store(&template, &dir);
        let log = place.path().join("log");
        let status = Command::new("strace")
            .args(["-f", "-e", "trace=fsync,fdatasync", "-o"])
            .arg(&log)
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--ignored", "--quiet"])
            .env("VHD_CRASH_DIR", &dir)
            .env("VHD_CRASH_SCENARIO", scenario)
            .stdout(std::process::Stdio::null())
            .status()
            .expect("strace cannot be run: install the package strace");
        assert!(status.success());
        let log = std::fs::read_to_string(&log).unwrap();
        let count = log.lines().filter(|line| line.contains("sync(")).count();
        assert_eq!(count, syncs, "{scenario}");
    }
}

#[test]
fn a_full_file_system_undoes_or_completes_and_loses_nothing() {
    let place = place();
    let status = Command::new("unshare")
        .args([
            "-m",
            "sh",
            "-c",
            "mount -t tmpfs -o size=40m none \"$1\" && shift && exec \"$@\"",
            "sh",
        ])
        .arg(place.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "full_child", "--ignored", "--nocapture"])
        .env("VHD_FULL_DIR", place.path())
        .status()
        .expect("unshare cannot be run: install the package util-linux and run the tests as root");
    assert!(status.success(), "see above; the tests need root for a mount of their own");
}

#[test]
#[ignore = "runs inside a mount of its own, started by the other test"]
fn full_child() {
    let Ok(dir) = std::env::var("VHD_FULL_DIR") else { return };
    let dir = Path::new(&dir);
    let template = dir.join("template");
    std::fs::create_dir(&template).unwrap();
    setup(&template);
    let before = state(&Tree::open(&template).unwrap());
    let mut refused = 0;
    for (name, run) in SCENARIOS {
        let done = dir.join("done");
        copy_store(&template, &done);
        let tree = Tree::open(&done).unwrap();
        run(&tree, &lock(&tree)).unwrap();
        let after = state(&tree);
        std::fs::remove_dir_all(&done).unwrap();
        // From nothing free up to where the operation fits.
        for pages in (0..24).chain([32, 64, 200, 600]) {
            let work = dir.join("work");
            copy_store(&template, &work);
            let filler = dir.join("filler");
            fill_up(dir, &filler, pages);
            let tree = Tree::open(&work).unwrap();
            let guard = lock(&tree);
            let result = run(&tree, &guard);
            let what = format!("{name} with {pages} pages free");
            if let Err(error) = &result {
                assert!(error.is_no_space(), "{what}: {}", error.reason());
                refused += 1;
            }
            std::fs::remove_file(&filler).unwrap();
            tree.recover(&guard).unwrap();
            let now = state(&tree);
            let same = |state: &store::State| {
                now.len() == state.len()
                    && now.iter().all(|(uuid, (size, digest, _))| {
                        state.get(uuid).is_some_and(|(s, d, _)| (s, d) == (size, digest))
                    })
            };
            assert!(same(&before) || same(&after), "{what}: {now:?}");
            assert_at_rest(&tree);
            run(&tree, &guard).unwrap_or_else(|error| panic!("{what}: {}", error.reason()));
            assert!(state(&tree) == after, "{what}, repeated");
            assert_at_rest(&tree);
            drop(guard);
            std::fs::remove_dir_all(&work).unwrap();
            if result.is_ok() {
                break;
            }
        }
    }
    println!("{refused} operations were refused for lack of space");
    assert!(refused > 20, "the file system was never full");
}

/// Leaves that many pages of 4 KiB free.
fn fill_up(dir: &Path, filler: &Path, pages: u64) {
    let stat = rustix::fs::statvfs(dir).unwrap();
    let free = stat.f_bavail * stat.f_frsize;
    let length = free.saturating_sub(pages * 4096);
    std::fs::write(filler, vec![0x55; length as usize]).unwrap();
}
