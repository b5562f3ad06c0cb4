//! A store on volumes that are kept in memory and lie in a file: the commands of each operation are
//! counted, and each operation is cut before and after each of its commands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

#[path = "common/fake.rs"]
mod fake;

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use fake::{Died, EXTENT, MIB, id, lock, prepared, snapshot, state};
use plugin_sdk::model::Kind as ErrorKind;
use serde_json::json;
use vhd::Tree;
use vhd::store::Store as _;
use vhd::tree::{Budget, Format, Revert};

type Operation = fn(&Tree);

fn merged(tree: &Tree) {
    let deadline = Instant::now() + Duration::from_secs(60);
    tree.maintain(deadline, &Budget::default(), &|_| ControlFlow::Continue(())).unwrap();
}

const OPERATIONS: &[(&str, Operation, &[&str])] = &[
    (
        "create",
        |tree| {
            let guard = lock(tree);
            tree.create(&guard, id(9), Format::Vhd, 6 * MIB, &json!({ "name": "new" })).unwrap();
        },
        &["report", "lvcreate", "report", "lvrename"],
    ),
    (
        "snapshot",
        |tree| snapshot(tree, &lock(tree), 11, 1, 9),
        &["report", "lvcreate", "report", "lvcreate", "report", "lvrename", "lvrename", "lvrename"],
    ),
    (
        "snapshot of an empty disk",
        |tree| snapshot(tree, &lock(tree), 12, 3, 9),
        &["report", "lvcreate", "report", "lvrename"],
    ),
    (
        "revert",
        |tree| {
            let metadata = json!({ "name": "reverted" });
            let (op, vdi, snapshot) = (id(13), id(2), id(3));
            let request = Revert { op, vdi, snapshot, metadata: &metadata, allow_copy: true };
            tree.revert(&lock(tree), &request, &mut |_| ControlFlow::Continue(())).unwrap();
        },
        &["report", "lvcreate", "report", "lvrename", "lvrename", "lvremove"],
    ),
    (
        "resize",
        |tree| {
            let metadata = json!({ "name": "larger" });
            tree.resize(&lock(tree), id(14), id(1), 16 * MIB, &metadata).unwrap();
        },
        &["report", "lvextend", "report"],
    ),
    (
        "delete",
        |tree| {
            tree.delete(&lock(tree), id(2)).unwrap();
        },
        &["report", "lvrename", "lvremove"],
    ),
    (
        "deflate and inflate",
        |tree| {
            let guard = lock(tree);
            for full in [false, true, false] {
                tree.fit(&guard, id(2), full).unwrap();
            }
        },
        &["report", "lvreduce", "report", "lvextend", "report", "lvreduce", "report"],
    ),
    (
        "merge",
        |tree| {
            tree.delete(&lock(tree), id(4)).unwrap();
            merged(tree);
        },
        &[],
    ),
];

#[test]
fn each_operation_is_as_before_or_as_after_wherever_it_is_cut_and_takes_few_commands() {
    let place = prepared();
    let before = state(&place.tree());
    for (what, operation, expected) in OPERATIONS {
        let whole = place.copied();
        let start = whole.fake.world.lock().unwrap().commands.len();
        let commands = whole.commands(|| operation(&whole.tree()));
        if !expected.is_empty() {
            assert_eq!(commands, *expected, "{what}");
        }
        let after = state(&whole.tree());
        for (at, command) in commands.iter().enumerate() {
            for done in [false, true] {
                // Between two commands there are only small writes: each second place will do.
                if !done && at % 2 == 1 {
                    continue;
                }
                let cut = place.copied();
                cut.fake.world.lock().unwrap().cut = Some((start + at, done));
                let died = catch_unwind(AssertUnwindSafe(|| operation(&cut.tree())));
                let died = died.expect_err("it was cut");
                assert!(died.is::<Died>() || *what == "merge", "{what}: {died:?}");
                {
                    let mut world = cut.fake.world.lock().unwrap();
                    (world.cut, world.died) = (None, false);
                }
                let place = format!("{what} at {at} ({command}), done: {done}");

                let tree = cut.tree();
                let guard = lock(&tree);
                tree.recover(&guard).unwrap();
                drop(guard);
                let seen = state(&cut.tree());
                // A merge begins with a disk that is destroyed.
                let between = *what == "merge" && seen.len() + 1 == before.len();
                assert!(seen == before || seen == after || between, "{place}: {seen:?}");
                let guard = lock(&tree);
                let again = tree.recover(&guard).unwrap();
                assert!(
                    again.completed.is_empty() && again.undone.is_empty(),
                    "{place}: {again:?}"
                );
                drop(guard);
                let fine = |name: &String| name.starts_with("VHD-") || name == "sm-store";
                assert!(cut.names().iter().all(fine), "{place}: {:?}", cut.names());
                // It is repeated, with the same id.
                operation(&cut.tree());
                assert_eq!(state(&cut.tree()), after, "{place}");
            }
        }
    }
}

#[test]
fn a_listing_is_one_report_however_many_disks_there_are() {
    let place = prepared();
    assert_eq!(
        place.commands(|| assert_eq!(place.tree().list().unwrap().nodes.len(), 5)),
        ["report"]
    );
}

#[test]
fn a_disk_has_all_its_room_and_its_snapshot_little() {
    let place = prepared();
    let extents = |name: String| {
        let world = place.fake.world.lock().unwrap();
        world.volumes.iter().find(|v| v.name == name).unwrap().extents.len() as u64
    };
    let full = place.store().full_room(4 * MIB).unwrap().div_ceil(EXTENT);
    assert_eq!(extents(format!("VHD-{}", id(1))), full);
    let tree = place.tree();
    let guard = lock(&tree);
    snapshot(&tree, &guard, 30, 2, 5);
    drop(guard);
    assert_eq!(extents(format!("VHD-{}", id(2))), full);
    assert!(extents(format!("VHD-{}", id(5))) < full / 4);
    // Full, which is told as it is, and changes nothing.
    let tree = place.tree();
    let (before, names) = (state(&tree), place.names());
    let guard = lock(&tree);
    let full = tree.create(&guard, id(9), Format::Vhd, 600 * MIB, &json!({})).unwrap_err();
    assert!(full.is_no_space(), "{full}");
    let told = vhd_folder::from_vhd(full);
    assert_eq!((told.kind.clone(), told.legacy_code()), (ErrorKind::NoSpace, 44));
    assert_eq!((state(&tree), place.names()), (before, names));
}

/// Two processes at once, both changing small things and volumes: each has its own lock, and the log
/// is whole.
#[test]
fn who_has_a_disk_open_is_told_while_another_process_works() {
    let place = prepared();
    std::thread::scope(|scope| {
        for number in 0..4_u128 {
            let place = &place;
            scope.spawn(move || {
                for round in 0..10 {
                    let tree = place.tree();
                    let guard = lock(&tree);
                    let holder = format!("host {number}, round {round}");
                    tree.claim(&guard, id(1), &holder).unwrap();
                    assert!(tree.claims(id(1)).unwrap().contains(&holder));
                    tree.unclaim(&guard, id(1), &holder).unwrap();
                    tree.claim(&guard, id(2), &holder).unwrap();
                }
            });
        }
    });
    let tree = place.tree();
    assert!(tree.claims(id(1)).unwrap().is_empty());
    assert_eq!(tree.claims(id(2)).unwrap().len(), 40);
}

/// Three hosts at once, each with its own locks: nothing of any of them is lost, and no command of
/// LVM overlaps another one's.
#[test]
fn hosts_that_change_a_store_at_once_lose_nothing() {
    let place = prepared();
    let before = state(&place.tree()).len();
    let start = std::sync::Barrier::new(3);
    std::thread::scope(|scope| {
        for host in 0..3_u128 {
            let (place, start) = (&place, &start);
            scope.spawn(move || {
                start.wait();
                for round in 0..2 {
                    // Each call of a driver has a store of its own.
                    let tree = || {
                        let store = place.store_of(&format!("host {host}"));
                        Tree::on(Box::new(store))
                    };
                    let number = 100 * (host + 1) + 10 * round;
                    let made = tree();
                    let guard = lock(&made);
                    let told = json!({ "name": number.to_string() });
                    made.create(&guard, id(number), Format::Vhd, 4 * MIB, &told).unwrap();
                    drop(guard);
                    let claimed = tree();
                    let guard = lock(&claimed);
                    claimed.claim(&guard, id(number), &format!("host {host}")).unwrap();
                    drop(guard);
                    let taken = tree();
                    let guard = lock(&taken);
                    snapshot(&taken, &guard, 1000 + number, number, number + 1);
                    drop(guard);
                }
            });
        }
    });
    let seen = state(&Tree::on(Box::new(place.store_of("a fourth one"))));
    assert_eq!(seen.len(), before + 12, "{seen:?}");
    assert_eq!(state(&place.tree()), seen);
    let tree = place.tree();
    for host in 0..3_u128 {
        for round in 0..2 {
            let disk = id(100 * (host + 1) + 10 * round);
            assert_eq!(tree.claims(disk).unwrap(), [format!("host {host}")]);
        }
    }
    let fine = |name: &String| name.starts_with("VHD-") || name == "sm-store";
    assert!(place.names().iter().all(fine), "{:?}", place.names());
}
