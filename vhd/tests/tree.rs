//! What a store promises besides surviving cuts: damaged files stay alone, replays are seen,
//! limits hold.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;
#[path = "common/store.rs"]
mod store;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Spec, utf16le};
use serde_json::json;
use store::*;
use uuid::Uuid;
use vhd::store::{Directory, Store as _};
use vhd::tree::{Format, Health, Kind, Node, Outcome};
use vhd::{Error, Mode, Tree};

fn store() -> (tempfile::TempDir, Tree) {
    let dir = tempfile::tempdir().unwrap();
    setup(dir.path());
    let tree = Tree::open(dir.path()).unwrap();
    (dir, tree)
}

fn node(tree: &Tree, uuid: Uuid) -> Node {
    tree.list().unwrap().nodes.into_iter().find(|node| node.uuid == uuid).unwrap()
}

fn reason(tree: &Tree, uuid: Uuid) -> String {
    match node(tree, uuid).health {
        Health::Quarantined(reason) => reason,
        Health::Ok => panic!("{uuid} is not quarantined"),
    }
}

fn file(tree: &Tree, uuid: Uuid) -> PathBuf {
    tree.path().join(format!("{uuid}.vhd"))
}

#[test]
fn a_store_at_rest_lists_its_disks_and_get_says_the_same() {
    let (_dir, tree) = store();
    assert_at_rest(&tree);
    let listing = tree.list().unwrap();
    for node in &listing.nodes {
        assert_eq!(tree.get(node.uuid).unwrap(), *node);
    }
    let a = node(&tree, id(A));
    assert_eq!((a.kind, a.depth, a.virtual_size), (Kind::Leaf, 2, 8 * MIB));
    assert_eq!(a.metadata, Some(json!({ "name": "vhd" })));
    assert_eq!(node(&tree, id(S)).created_by, Some(id(1)));
    let c = node(&tree, id(C));
    assert_eq!(c.depth, 2, "a clone of an empty snapshot adds no level");
    assert_eq!(c.parent, a.parent);
    assert_eq!(node(&tree, id(FOREIGN)).metadata, None);
    assert!(matches!(tree.get(id(N)), Err(Error::NotFound { .. })));
}

#[test]
fn one_damaged_file_concerns_nobody_but_those_above_it() {
    let (_dir, tree) = store();
    let base = node(&tree, id(A)).parent.unwrap();
    let before = tree.list().unwrap().nodes.len();
    std::fs::write(file(&tree, base), vec![0; 1 << 20]).unwrap();
    assert!(reason(&tree, base).contains("has no VHD footer"), "{}", reason(&tree, base));
    for above in [A, S, C] {
        let reason = reason(&tree, id(above));
        assert!(reason.contains(&base.to_string()) && reason.contains("footer"), "{reason}");
        assert!(matches!(tree.chain(id(above)), Err(Error::Quarantined { .. })));
        assert!(tree.open_disk(id(above), Mode::Read).is_err());
    }
    for other in [D, E, R, R2, FOREIGN] {
        assert!(node(&tree, id(other)).is_ok());
    }
    assert_eq!(node(&tree, base).kind, Kind::Base);
    assert_eq!(tree.list().unwrap().nodes.len(), before);
    // Work goes on elsewhere, and nothing is collected while a parent is unknown.
    let guard = lock(&tree);
    snap(&tree, &guard, 50, D, N).unwrap();
    assert!(matches!(snap(&tree, &guard, 51, A, 0x51), Err(Error::Quarantined { .. })));
    let bases = tree.list().unwrap().nodes.iter().filter(|n| n.kind == Kind::Base).count();
    tree.delete(&guard, id(D)).unwrap();
    tree.delete(&guard, id(N)).unwrap();
    let left = tree.list().unwrap().nodes.iter().filter(|n| n.kind == Kind::Base).count();
    assert_eq!(bases, left);
    // The damaged ones can be deleted; then the rest can be collected.
    for disk in [A, S, C] {
        assert_eq!(tree.delete(&guard, id(disk)).unwrap().outcome, Outcome::Deleted);
    }
    tree.delete(&guard, base).unwrap();
    assert_eq!(tree.collect(&guard).unwrap().len(), left - 1);
    assert_at_rest(&tree);
}

/// Where an image goes by a command, its metadata go noticeably later.
#[test]
fn a_disk_that_goes_while_it_is_listed_is_not_called_damaged() {
    let (_dir, tree) = store();
    let _changing = tree.lock(Instant::now() + Duration::from_secs(5)).unwrap();
    let (image, doc) = (file(&tree, id(A)), format!(".sm/vdi/{}.json", id(A)));
    std::fs::remove_file(image).unwrap();
    let doc = tree.path().join(doc);
    let gone = doc.clone();
    let later = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        std::fs::remove_file(gone).unwrap();
    });
    let listed = tree.list().unwrap().nodes;
    assert!(!doc.exists(), "the listing has not waited for what was under way");
    assert!(listed.iter().all(|node| node.uuid != id(A)), "{listed:?}");
    later.join().unwrap();
}

#[test]
fn every_kind_of_damage_is_named() {
    let (_dir, tree) = store();
    let a = file(&tree, id(A));
    let good = std::fs::read(&a).unwrap();
    let base = node(&tree, id(A)).parent.unwrap();
    let said = |what: &str| {
        let reason = reason(&tree, id(A));
        assert!(reason.contains(what), "{reason:?} lacks {what:?}");
        assert!(tree.list().unwrap().nodes.iter().any(|node| node.uuid == id(D) && node.is_ok()));
        assert!(matches!(tree.get(id(A)).unwrap().health, Health::Quarantined(_)));
    };
    std::fs::write(&a, &good[..100]).unwrap();
    said("100 bytes");
    std::fs::write(&a, b"").unwrap();
    said("0 bytes");
    std::fs::remove_file(&a).unwrap();
    said("is gone");
    std::os::unix::fs::symlink("/etc/passwd", &a).unwrap();
    said("symbolic link");
    std::fs::remove_file(&a).unwrap();
    std::fs::create_dir(&a).unwrap();
    said("not a regular file");
    std::fs::remove_dir(&a).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&a).status().unwrap().success());
    said("not a regular file");
    std::fs::remove_file(&a).unwrap();
    std::fs::write(&a, &good).unwrap();

    let raw = tree.path().join(format!("{}.raw", id(A)));
    std::fs::write(&raw, b"x").unwrap();
    said("both a VHD and a raw file");
    std::fs::remove_file(&raw).unwrap();

    let doc = tree.path().join(".sm/vdi").join(format!("{}.json", id(A)));
    let text = std::fs::read(&doc).unwrap();
    std::fs::write(&doc, b"{ \"sm\": 1, ").unwrap();
    said("metadata document is damaged");
    std::fs::write(&doc, br#"{"sm":9,"format":"vhd","metadata":{}}"#).unwrap();
    said("version 9");
    std::fs::write(&doc, text).unwrap();

    let lost = file(&tree, base);
    std::fs::rename(&lost, tree.path().join("elsewhere")).unwrap();
    said("is missing");
    std::fs::rename(tree.path().join("elsewhere"), &lost).unwrap();
    assert!(node(&tree, id(A)).is_ok());
}

fn place(tree: &Tree, number: u128, spec: &Spec) {
    spec.write(&file(tree, id(number)));
}

fn child(number: u128, parent: u128, locator: &str) -> Spec {
    let locators = vec![
        (*b"MacX", format!("file://{locator}").into_bytes(), None, None),
        (*b"W2ku", utf16le(locator), None, None),
        (*b"W2ru", utf16le(locator), None, None),
    ];
    Spec { kind: 4, uuid: number, parent, locators, ..Spec::default() }
}

#[test]
fn no_locator_leads_out_of_the_directory() {
    let (dir, tree) = store();
    place(&tree, 0x100, &Spec { uuid: 0x100, ..Spec::default() }.full(0, 1));
    let out = tempfile::NamedTempFile::new_in(dir.path().parent().unwrap()).unwrap();
    std::fs::write(out.path(), Spec { uuid: 0x100, ..Spec::default() }.build()).unwrap();
    let secret = out.path().to_str().unwrap().to_owned();
    for (number, parent, locator) in [
        (0x101, 0x100, "../../../../../../etc/passwd"),
        (0x102, 0x100, secret.as_str()),
        (0x103, 0, "/etc/passwd"),
        (0x104, 0, secret.as_str()),
        (0x105, 0x100, "..\\..\\x.vhd"),
    ] {
        place(&tree, number, &child(number, parent, locator));
        let reason = reason(&tree, id(number));
        assert!(reason.contains("leaves the directory"), "{reason}");
    }
    place(&tree, 0x106, &child(0x106, 0, &format!("./{}.raw", id(R))));
    assert!(reason(&tree, id(0x106)).contains("raw file as its parent"));
}

#[test]
fn parents_are_known_by_uuid_and_the_name_is_only_a_hint() {
    let (_dir, tree) = store();
    place(&tree, 0x100, &Spec { uuid: 0x100, ..Spec::default() }.full(0, 1));
    let spec = child(0x101, 0x100, "./no-such-file.vhd");
    place(&tree, 0x101, &spec);
    assert_eq!(node(&tree, id(0x101)).parent, Some(id(0x100)), "found by its UUID");
    assert_eq!(tree.chain(id(0x101)).unwrap().len(), 2);
    // The hint is another image.
    place(&tree, 0x102, &child(0x102, 0x999, &format!("./{}.vhd", id(0x100))));
    assert!(reason(&tree, id(0x102)).contains("expects the parent"));
    // Two images with the parent's UUID, and no hint which.
    place(&tree, 0x103, &Spec { uuid: 0x100, ..Spec::default() });
    assert!(reason(&tree, id(0x101)).contains("several images"));
    place(&tree, 0x101, &child(0x101, 0x100, &format!("./{}.vhd", id(0x103))));
    assert_eq!(node(&tree, id(0x101)).parent, Some(id(0x103)));
    // Smaller than its parent.
    let mut small = child(0x104, 0x100, &format!("./{}.vhd", id(0x100)));
    small.size = 32 << 20;
    place(&tree, 0x104, &small);
    assert!(reason(&tree, id(0x104)).contains("fewer than its parent's"));
}

#[test]
fn cycles_and_long_chains_neither_hang_nor_hide_anything() {
    let (_dir, tree) = store();
    let name = |number: u128| format!("./{}.vhd", id(number));
    place(&tree, 0x100, &child(0x100, 0x101, &name(0x101)));
    place(&tree, 0x101, &child(0x101, 0x100, &name(0x100)));
    place(&tree, 0x102, &child(0x102, 0x101, &name(0x101)));
    place(&tree, 0x103, &child(0x103, 0x103, &name(0x103)));
    for number in [0x100, 0x101] {
        assert!(reason(&tree, id(number)).contains("leads back to itself"));
    }
    assert!(reason(&tree, id(0x102)).contains("its ancestor"));
    assert!(reason(&tree, id(0x103)).contains("itself"));
    assert!(tree.chain(id(0x102)).is_err());

    let start = 0x1000;
    place(&tree, start, &Spec { uuid: start, ..Spec::default() }.full(0, 9));
    for number in start + 1..start + 1000 {
        place(&tree, number, &child(number, number - 1, &name(number - 1)));
    }
    let top = node(&tree, id(start + 999));
    assert!(top.is_ok());
    assert_eq!(top.depth, 1000);
    let guard = lock(&tree);
    fill(&tree, start + 999, 0, 512, 1);
    let error = snap(&tree, &guard, 77, start + 999, N).unwrap_err();
    assert!(matches!(error, Error::ChainTooLong { depth: 1000, .. }), "{error}");
}

#[test]
fn thirty_levels_are_allowed_and_not_one_more() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Tree::init(dir.path()).unwrap();
    let guard = lock(&tree);
    tree.create(&guard, id(A), Format::Vhd, MIB, &json!({})).unwrap();
    for level in 1..30 {
        fill(&tree, A, 0, 512, level as u8);
        snap(&tree, &guard, level, A, 0x100 + level).unwrap();
        // A second snapshot without a write adds no level.
        snap(&tree, &guard, 0x1000 + level, A, 0x200 + level).unwrap();
    }
    assert_eq!(node(&tree, id(A)).depth, 30);
    fill(&tree, A, 0, 512, 30);
    let error = snap(&tree, &guard, 0x3000, A, 0x300).unwrap_err();
    assert!(matches!(error, Error::ChainTooLong { depth: 30, limit: 30, .. }), "{error}");
    assert_at_rest(&tree);
    // Each snapshot still reads what was there.
    for level in 1..30 {
        let mut buf = [0; 512];
        let disk = tree.open_disk(id(0x100 + level), Mode::Read).unwrap();
        vhd::Disk::read_at(&disk, 0, &mut buf).unwrap();
        assert_eq!(buf, [level as u8; 512]);
    }
    // In any order, everything is collected in the end.
    let mut random = common::Random::new();
    let mut disks: Vec<u128> = (1..30).flat_map(|level| [0x100 + level, 0x200 + level]).collect();
    disks.push(A);
    while !disks.is_empty() {
        let disk = disks.swap_remove(random.below(disks.len() as u64) as usize);
        tree.delete(&guard, id(disk)).unwrap();
        assert_at_rest(&tree);
    }
    assert!(tree.list().unwrap().nodes.is_empty());
}

#[test]
fn a_name_that_is_taken_is_not_given_twice() {
    let (_dir, tree) = store();
    let guard = lock(&tree);
    let none = json!(null);
    let create = |format, size| tree.create(&guard, id(A), format, size, &none);
    assert_eq!(create(Format::Vhd, 8 * MIB).unwrap().outcome, Outcome::Already);
    assert!(matches!(create(Format::Vhd, 10 * MIB), Err(Error::Exists { .. })));
    assert!(matches!(create(Format::Raw, 8 * MIB), Err(Error::Exists { .. })));
    assert!(matches!(snap(&tree, &guard, 60, A, S), Err(Error::Exists { .. })));
    assert_eq!(snap(&tree, &guard, 1, A, S).unwrap().outcome, Outcome::Already);
    let base = node(&tree, id(A)).parent.unwrap();
    assert!(matches!(tree.delete(&guard, base), Err(Error::NotALeaf { .. })));
    assert!(matches!(tree.set_metadata(&guard, base, &none), Err(Error::NotALeaf { .. })));
    assert_eq!(tree.delete(&guard, id(N)).unwrap().outcome, Outcome::Already);
    let error = tree.resize(&guard, id(61), id(A), MIB, &none).unwrap_err();
    assert!(matches!(error, Error::Shrink { .. }));
    let error = tree.resize(&guard, id(61), id(A), u64::MAX, &none).unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }));
    assert!(matches!(revert(&tree, &guard, 62, A, R), Err(Error::FormatsDiffer { .. })));
    assert_at_rest(&tree);
}

#[test]
fn a_late_replay_of_a_revert_does_not_revert_again() {
    let (_dir, tree) = store();
    let guard = lock(&tree);
    assert_eq!(revert(&tree, &guard, 70, A, S).unwrap().outcome, Outcome::Modified);
    fill(&tree, A, 0, 512, 0x99);
    tree.resize(&guard, id(71), id(A), 20 * MIB, &json!({})).unwrap();
    snap(&tree, &guard, 72, A, N).unwrap();
    assert_eq!(revert(&tree, &guard, 70, A, S).unwrap().outcome, Outcome::Already);
    let mut buf = [0; 512];
    vhd::Disk::read_at(&tree.open_disk(id(A), Mode::Read).unwrap(), 0, &mut buf).unwrap();
    assert_eq!(buf, [0x99; 512]);
}

#[test]
fn a_raw_disk_is_not_copied_unless_allowed() {
    let (_dir, tree) = store();
    let guard = lock(&tree);
    let none = json!(null);
    let mut request = vhd::tree::Snapshot {
        op: id(80),
        source: id(R),
        new: id(N),
        new_metadata: &none,
        allow_copy: false,
    };
    let mut go = |_| std::ops::ControlFlow::Continue(());
    match tree.snapshot(&guard, &request, &mut go) {
        Ok(change) => assert_eq!(change.method, vhd::tree::Method::Reflink),
        Err(error) => {
            assert!(matches!(error, Error::CopyNotAllowed { .. }), "{error}");
            request.allow_copy = true;
            let change = tree.snapshot(&guard, &request, &mut go).unwrap();
            assert_eq!(change.method, vhd::tree::Method::Copy);
        }
    }
    // A stopped copy leaves nothing.
    request.op = id(81);
    request.new = id(0x81);
    if let Err(error) = tree.snapshot(&guard, &request, &mut |_| std::ops::ControlFlow::Break(())) {
        assert!(matches!(error, Error::Stopped { .. }), "{error}");
    }
    assert_at_rest(&tree);
}

#[test]
fn the_lock_names_its_holder_and_gives_up_in_time() {
    let (dir, tree) = store();
    let guard = lock(&tree);
    let start = Instant::now();
    let error = tree.lock(Instant::now() + Duration::from_millis(30)).err().unwrap();
    assert!(start.elapsed() < Duration::from_secs(10));
    assert!(error.is_busy());
    assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
    let other = tempfile::tempdir().unwrap();
    let second = Tree::init(other.path()).unwrap();
    let wrong = second.delete(&guard, id(A));
    assert!(matches!(wrong, Err(Error::WrongLock { .. })));
    drop(guard);
    drop(lock(&Tree::open(dir.path()).unwrap()));
    assert!(Tree::open(Path::new("/nonexistent")).err().unwrap().is_not_found());
    assert!(Tree::open(other.path().parent().unwrap()).err().unwrap().is_not_found());
}

/// A directory as XenServer's tools leave it after a crash between rename and hiding: the base is
/// not hidden, has no metadata, and must not become a disk.
#[test]
fn a_base_copy_that_nobody_hid_is_not_a_disk() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Tree::init(dir.path()).unwrap();
    let base = Spec { uuid: 0x100, ..Spec::default() }.full(0, 1);
    place(&tree, 0x100, &base);
    place(&tree, 0x101, &child(0x101, 0x100, &format!("./{}.vhd", id(0x100))));
    assert_eq!(node(&tree, id(0x100)).kind, Kind::Base);
    assert_eq!(tree.get(id(0x100)).unwrap().kind, Kind::Base);
    let guard = lock(&tree);
    assert!(matches!(tree.delete(&guard, id(0x100)), Err(Error::NotALeaf { .. })));
    let resized = tree.resize(&guard, id(1), id(0x100), 1 << 30, &json!({}));
    assert!(matches!(resized, Err(Error::NotALeaf { .. })));
    assert!(matches!(tree.adopt(&guard, id(0x100), &json!({})), Err(Error::NotALeaf { .. })));
    assert_eq!(tree.adopt(&guard, id(0x101), &json!({})).unwrap().outcome, Outcome::Created);
}

/// A listing beside a thread that snapshots and deletes: never a base copy as a disk, never a
/// disk missing, never a false alarm.
#[test]
fn a_listing_beside_changes_is_right() {
    let (_dir, tree) = store();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..40_u128 {
                let guard = lock(&tree);
                fill(&tree, A, 0, 512, round as u8 + 1);
                snap(&tree, &guard, 0x5000 + round, A, 0x6000 + round).unwrap();
                if round >= 5 {
                    tree.delete(&guard, id(0x6000 + round - 5)).unwrap();
                }
                if round % 7 == 6 {
                    // Keeps the chain short enough: the leaf starts anew.
                    revert(&tree, &guard, 0x7000 + round, A, S).unwrap();
                }
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            let listing = tree.list().unwrap();
            for disk in [A, S, C, D, E, R, R2, FOREIGN] {
                let node = listing.nodes.iter().find(|node| node.uuid == id(disk));
                assert!(
                    node.is_some_and(|node| node.is_ok() && node.kind == Kind::Leaf),
                    "{node:?}"
                );
            }
            for node in listing.nodes.iter().filter(|node| node.kind == Kind::Leaf) {
                let known =
                    [A, S, C, D, E, R, R2, FOREIGN].iter().any(|disk| node.uuid == id(*disk));
                let fresh = (0..40).any(|round| node.uuid == id(0x6000 + round));
                assert!(known || fresh, "{node:?}");
            }
        }
    });
    assert_at_rest(&tree);
}

#[test]
fn a_group_that_was_prepared_has_what_was_written_since_and_says_its_own_time() {
    let (_dir, tree) = store();
    let guard = lock(&tree);
    let (listed, before) = (tree.list().unwrap().nodes, state(&tree));
    prepare(&tree, &guard, &[A, C]).unwrap();
    assert_eq!(tree.list().unwrap().nodes, listed, "nothing of it is seen");
    // Whoever has them open writes on in the same images.
    fill(&tree, A, 5 * MIB, 5000, 9);
    let written = state(&tree);
    assert_ne!(written, before);
    let journal = tree.path().join(".sm/journal");
    let staged = |uuid: u128| tree.path().join(".sm/tmp").join(format!("{}.new", id(uuid)));
    let leaf = std::fs::metadata(staged(N)).unwrap().ino();
    assert_eq!(std::fs::read_dir(&journal).unwrap().count(), 1);
    let change = snap_group_as(&tree, &guard, &[A, C], "later").unwrap();
    assert_eq!(change.outcome, Outcome::Created);
    assert_eq!(std::fs::metadata(file(&tree, id(N))).unwrap().ino(), leaf, "made anew");
    let after = state(&tree);
    for (source, new) in [(A, N), (C, N + 1)] {
        let (size, digest, metadata) = &after[&id(new)];
        assert_eq!((size, digest), (&written[&id(source)].0, &written[&id(source)].1));
        assert_eq!(metadata, &Some(json!({ "name": "later" })));
        assert_eq!(after[&id(source)], written[&id(source)]);
    }
    assert_at_rest(&tree);
}

#[test]
fn what_was_prepared_goes_with_the_next_change_and_the_group_is_made_all_the_same() {
    let (_dir, tree) = store();
    let guard = lock(&tree);
    let before = state(&tree);
    prepare(&tree, &guard, &[A, C]).unwrap();
    tree.set_metadata(&guard, id(E), &json!({ "name": "renamed" })).unwrap();
    assert_at_rest(&tree);
    // Of other disks under the same id, it is nobody's.
    prepare(&tree, &guard, &[A, D]).unwrap();
    snap_group(&tree, &guard, &[A, C], &[]).unwrap();
    assert_at_rest(&tree);
    assert_eq!(state(&tree)[&id(N + 1)].1, before[&id(C)].1);
    // A part that is not as it was left: all is made anew.
    for name in [format!("{}.new", id(A)), format!("{}.json", id(N + 9))] {
        let (_dir, tree) = store();
        let guard = lock(&tree);
        prepare(&tree, &guard, &[A, C]).unwrap();
        std::fs::write(tree.path().join(".sm/tmp").join(name), "x").unwrap();
        snap_group(&tree, &guard, &[A, C], &[]).unwrap();
        assert_at_rest(&tree);
        assert_eq!(state(&tree)[&id(N)].1, before[&id(A)].1);
    }
    // What a raw disk holds is copied, so nothing of it can be done ahead.
    let (_dir, tree) = store();
    prepare(&tree, &lock(&tree), &[A, R]).unwrap();
    assert_at_rest(&tree);
}

/// Removed by another host, it may be what a disk is still read from.
#[test]
fn what_a_client_of_nfs_keeps_of_a_removed_file_is_left_to_that_client() {
    let (_dir, tree) = store();
    let before = tree.list().unwrap().nodes;
    let kept = ["", ".sm/tmp", ".sm/journal", ".sm/vdi"]
        .map(|area| tree.path().join(area).join(".nfs000000000000009500000001"));
    for path in &kept {
        std::fs::write(path, "still open").unwrap();
    }
    let listing = tree.list().unwrap();
    assert_eq!((listing.nodes, listing.unfinished), (before, false));
    let guard = lock(&tree);
    let recovered = tree.recover(&guard).unwrap();
    assert_eq!(recovered.removed, Vec::<String>::new());
    tree.delete(&guard, id(E)).unwrap();
    tree.collect(&guard).unwrap();
    for path in &kept {
        assert_eq!(std::fs::read(path).unwrap(), b"still open", "{}", path.display());
    }
}

/// See `Directory::try_lock_shared`: a client of NFS that had the file open for reading alone hung.
#[test]
fn who_only_looks_has_the_lock_open_for_writing_as_well() {
    let (_dir, tree) = store();
    let path = tree.path().join(".sm/lock").canonicalize().unwrap();
    let held = Directory::open(&tree.path()).unwrap().try_lock_shared().unwrap();
    let mut found = 0;
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        if std::fs::read_link(entry.path()).is_ok_and(|target| target == path) {
            let info = Path::new("/proc/self/fdinfo").join(entry.file_name());
            let info = std::fs::read_to_string(info).unwrap();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
            let flags = u32::from_str_radix(flags.trim(), 8).unwrap();
            assert_eq!(flags & 0o3, 0o2, "not for reading and writing: {flags:o}");
            found += 1;
        }
    }
    assert_eq!(found, 1);
    drop(held);
}
