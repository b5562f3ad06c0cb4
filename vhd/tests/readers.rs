//! Base copies are merged below disks that are open: who is told what, in which order, and what
//! happens to the base copy when somebody does not go over.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;
#[path = "common/store.rs"]
mod store;

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::json;
use store::{MIB, assert_at_rest, fill, id, lock, setup, snap, state};
use uuid::Uuid;
use vhd::tree::{Budget, Format, Kind, Maintained, Readers, Writer};
use vhd::{Error, Result, Tree};

const DISK: u128 = 0x70;
const HOLDER: &str = "a data path";

/// Whoever has disks open, and what was said to him: with the parent that the disk's image names,
/// and whether the node is there.
struct Open<'a> {
    tree: &'a Tree,
    node: PathBuf,
    said: Mutex<Vec<(&'static str, Uuid, usize, bool)>>,
    goes_over: bool,
}

impl Open<'_> {
    fn note(&self, what: &'static str, disk: Uuid) {
        let depth = self.tree.chain(disk).unwrap().len();
        self.said.lock().unwrap().push((what, disk, depth, self.node.exists()));
    }
}

impl Readers for Open<'_> {
    fn hears(&self, _: Uuid, holder: &str) -> bool {
        holder == HOLDER
    }

    fn close(&self, disks: &[Uuid]) -> Result<()> {
        for disk in disks {
            self.note("close", *disk);
        }
        Ok(())
    }

    fn go_over(&self, disk: Uuid) -> Result<()> {
        self.note("go over", disk);
        if self.goes_over {
            return Ok(());
        }
        Err(Error::InUse { uuid: disk, holder: "nobody answers".to_owned() })
    }
}

/// A disk on base copies `top`, `middle` and `bottom`, of which `top` has a snapshot, too, and
/// `middle` is the only child of `bottom`. Answers them, from the top.
fn prepare(tree: &Tree) -> Vec<Uuid> {
    let guard = lock(tree);
    tree.create(&guard, id(DISK), Format::Vhd, 16 * MIB, &json!({})).unwrap();
    for (index, snapshot) in [0x81, 0x82, 0x83].into_iter().enumerate() {
        fill(tree, DISK, index as u64 * MIB, 3 * MIB as usize, index as u8 + 1);
        snap(tree, &guard, 0x100 + snapshot, DISK, snapshot).unwrap();
    }
    fill(tree, DISK, 9 * MIB, 8192, 9);
    tree.delete(&guard, id(0x81)).unwrap();
    let chain = tree.chain(id(DISK)).unwrap();
    let uuid = |path: &PathBuf| path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
    chain.iter().skip(1).map(uuid).collect()
}

fn maintain(tree: &Tree, readers: &dyn Readers) -> Maintained {
    let soon = Instant::now() + Duration::from_secs(60);
    let budget = Budget::default();
    tree.maintain_beside(soon, &budget, &|_| ControlFlow::Continue(()), readers).unwrap()
}

fn open(tree: &Tree, node: Uuid, goes_over: bool) -> Open<'_> {
    let node = tree.path().join(format!("{node}.vhd"));
    Open { tree, node, said: Mutex::default(), goes_over }
}

#[test]
fn those_above_a_node_go_over_before_it_is_deleted() {
    // The node is below the disk's own parent; or it is that parent, and the disk is relinked.
    for own in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        setup(dir.path());
        let tree = Tree::open(dir.path()).unwrap();
        let bases = prepare(&tree);
        if own {
            let guard = lock(&tree);
            tree.delete(&guard, id(0x82)).unwrap();
        }
        tree.claim(&lock(&tree), id(DISK), HOLDER).unwrap();
        let before = state(&tree);
        let node = if own { bases[0] } else { bases[1] };
        let readers = open(&tree, node, true);
        let done = maintain(&tree, &readers);
        let merged: Vec<Uuid> = done.merged.iter().map(|merged| merged.node).collect();
        assert!(merged.contains(&node), "{done:?}");
        assert!(done.merged.iter().filter(|m| bases.contains(&m.node)).all(|m| m.live));
        let said = readers.said.into_inner().unwrap();
        // All is said while the node is there, and nobody is told before the names are right.
        let of_node: Vec<_> = said.iter().filter(|(.., there)| *there).collect();
        let last = of_node.last().unwrap();
        assert_eq!((last.0, last.1), ("go over", id(DISK)));
        assert_eq!(of_node.iter().any(|(what, ..)| *what == "close"), own, "{said:?}");
        let (depth_before, depth_after) = (bases.len() + 1, tree.chain(id(DISK)).unwrap().len());
        assert!(said.iter().any(|(what, _, depth, _)| (*what, *depth) == ("go over", depth_after)));
        assert!(depth_after < depth_before);
        assert!(!open(&tree, node, true).node.exists());
        assert_eq!(state(&tree), before);
        tree.unclaim(&lock(&tree), id(DISK), HOLDER).unwrap();
        assert_at_rest(&tree);
    }
}

#[test]
fn a_node_stays_until_all_have_gone_over() {
    let dir = tempfile::tempdir().unwrap();
    setup(dir.path());
    let tree = Tree::open(dir.path()).unwrap();
    let bases = prepare(&tree);
    tree.claim(&lock(&tree), id(DISK), HOLDER).unwrap();
    let (before, node) = (state(&tree), bases[1]);
    for _ in 0..2 {
        let readers = open(&tree, node, false);
        let done = maintain(&tree, &readers);
        assert!(done.merged.iter().all(|merged| merged.node != node), "{done:?}");
        let skipped = done.skipped.iter().find(|skipped| skipped.uuid == node).unwrap();
        assert!(skipped.reason.contains("nobody answers"), "{skipped:?}");
        assert!(readers.node.exists());
        // Those that answered nothing read on, and what is opened now has no need of it.
        assert_eq!(tree.chain(id(DISK)).unwrap().len(), 3);
        assert_eq!(state(&tree), before);
    }
    let done = maintain(&tree, &open(&tree, node, true));
    assert!(done.collected.contains(&node), "{done:?}");
    assert_eq!(state(&tree), before);
    assert!(tree.list().unwrap().nodes.iter().all(|n| n.is_ok() && n.uuid != node));
    tree.unclaim(&lock(&tree), id(DISK), HOLDER).unwrap();
    assert_at_rest(&tree);
}

#[test]
fn what_cannot_be_told_or_would_move_blocks_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    setup(dir.path());
    let tree = Tree::open(dir.path()).unwrap();
    let bases = prepare(&tree);
    let reason = |done: &Maintained, node: Uuid| {
        let skipped = done.skipped.iter().find(|skipped| skipped.uuid == node);
        skipped.unwrap_or_else(|| panic!("{done:?}")).reason.clone()
    };
    for holders in [&[HOLDER, "another"][..], &["another", HOLDER]] {
        for holder in holders {
            tree.claim(&lock(&tree), id(DISK), holder).unwrap();
        }
        let done = maintain(&tree, &open(&tree, bases[1], true));
        assert_eq!(reason(&done, bases[1]), "is part of a disk that is open: another");
        for holder in holders {
            tree.unclaim(&lock(&tree), id(DISK), holder).unwrap();
        }
    }
    // A node that is larger than what it would be merged into.
    let guard = lock(&tree);
    tree.create(&guard, id(0x90), Format::Vhd, 4 * MIB, &json!({})).unwrap();
    for (snapshot, size) in [(0x91, 8), (0x92, 8)] {
        fill(&tree, 0x90, MIB, MIB as usize, snapshot as u8);
        snap(&tree, &guard, 0x200 + snapshot, 0x90, snapshot).unwrap();
        tree.resize(&guard, id(0x300 + snapshot), id(0x90), size * MIB, &json!({})).unwrap();
    }
    fill(&tree, 0x90, 0, 4096, 7);
    tree.delete(&guard, id(0x91)).unwrap();
    tree.claim(&guard, id(0x90), HOLDER).unwrap();
    drop(guard);
    let node = tree.get(id(0x90)).unwrap().parent.unwrap();
    let done = maintain(&tree, &open(&tree, node, true));
    assert!(reason(&done, node).contains("is smaller, and a disk above is open"), "{done:?}");
    tree.unclaim(&lock(&tree), id(0x90), HOLDER).unwrap();
    let done = maintain(&tree, &open(&tree, node, true));
    assert!(done.skipped.is_empty(), "{done:?}");
    assert_at_rest(&tree);
}

/// Whoever has a disk open, and how large he finds it.
struct Grows<'a>(&'a Tree, Mutex<Vec<(&'static str, u64)>>, bool);

impl Writer for Grows<'_> {
    fn stop(&self) -> Result<()> {
        self.1.lock().unwrap().push(("stop", self.0.get(id(DISK)).unwrap().virtual_size / MIB));
        if self.2 {
            return Ok(());
        }
        Err(Error::InUse { uuid: id(DISK), holder: "it does not stop".to_owned() })
    }

    fn go_on(&self) {
        self.1.lock().unwrap().push(("go on", self.0.get(id(DISK)).unwrap().virtual_size / MIB));
    }
}

#[test]
fn a_disk_grows_between_stop_and_go_on() {
    let dir = tempfile::tempdir().unwrap();
    setup(dir.path());
    let tree = Tree::open(dir.path()).unwrap();
    prepare(&tree);
    let guard = lock(&tree);
    for (op, size, stops, wanted) in [
        (0x400, 32, false, vec![("stop", 16), ("go on", 16)]),
        (0x401, 32, true, vec![("stop", 16), ("go on", 32)]),
        (0x401, 32, true, vec![]),
        (0x402, 24, true, vec![]),
    ] {
        let open = Grows(&tree, Mutex::default(), stops);
        let grown =
            tree.resize_written(&guard, id(op), id(DISK), size * MIB, &json!({}), Some(&open));
        assert_eq!(open.1.into_inner().unwrap(), wanted, "{op:x}");
        assert_eq!(grown.is_ok(), stops && size == 32, "{grown:?}");
    }
    drop(guard);
    assert_eq!(tree.get(id(DISK)).unwrap().virtual_size, 32 * MIB);
    assert!(tree.list().unwrap().nodes.iter().any(|node| node.kind == Kind::Base));
    assert_at_rest(&tree);
}
