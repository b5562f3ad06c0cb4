//! Directories of images: long chains, shared and moved parents, what is put in a parent's place,
//! and the end of what the format can hold.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;
#[path = "common/store.rs"]
mod store;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use common::Spec;
use common::cases::{file_name, id};
use uuid::Uuid;
use vhd::error::Fault;
use vhd::tree::{Health, Kind, Node};
use vhd::{Chain, Disk, Error, ExtentKind, Image, Layer, Mode, Tree};

const MIB: u64 = 1 << 20;

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn image(number: u128) -> Spec {
    Spec { uuid: id(number), ..Spec::default() }
}

fn child(number: u128, parent: &Spec) -> Spec {
    image(number).child_of(parent, &file_name(parent.uuid))
}

fn put(spec: &Spec, dir: &Path) -> PathBuf {
    spec.write(&dir.join(file_name(spec.uuid)))
}

fn layers(paths: &[PathBuf]) -> Vec<Layer<'_>> {
    paths.iter().map(|path| Layer::Vhd(path)).collect()
}

fn byte(disk: &dyn Disk, at: u64) -> u8 {
    let mut byte = [0xee];
    disk.read_at(at, &mut byte).unwrap();
    byte[0]
}

fn node(tree: &Tree, number: u128) -> Node {
    let nodes = tree.list().unwrap().nodes;
    nodes.into_iter().find(|node| node.uuid == Uuid::from_u128(id(number))).unwrap()
}

fn reason(tree: &Tree, number: u128) -> String {
    match node(tree, number).health {
        Health::Quarantined(reason) => reason,
        Health::Ok => panic!("{number} is not quarantined"),
    }
}

fn open(tree: &Tree, number: u128) -> Result<Chain, Error> {
    tree.open_disk(Uuid::from_u128(id(number)), Mode::Read)
}

/// A chain of that many images; the root holds block 0, the leaf block 1.
fn long(depth: u128, dir: &Path) -> Vec<PathBuf> {
    let mut spec = image(1).full(0, 7);
    let mut paths = vec![put(&spec, dir)];
    for number in 2..=depth {
        spec = child(number, &spec);
        if number == depth {
            spec = spec.full(1, 8);
        }
        paths.insert(0, put(&spec, dir));
    }
    paths
}

#[test]
fn a_chain_is_read_however_long_it_is_and_snapshots_stop_at_thirty() {
    // A thousand open files are as many as some systems allow at first.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    for depth in [29, 30, 31, 1000] {
        let dir = dir();
        let paths = long(depth, dir.path());
        let chain = Chain::open(&layers(&paths), Mode::Read).unwrap();
        assert_eq!((chain.depth() as u128, byte(&chain, 0)), (depth, 7));
        assert_eq!((byte(&chain, 2 * MIB), byte(&chain, 4 * MIB)), (8, 0));
        let extents = chain.extents(0, chain.size()).unwrap();
        assert_eq!(extents.iter().map(|extent| extent.length).sum::<u64>(), chain.size());
        let last = extents.last().unwrap();
        assert!(last.kind == ExtentKind::Zero && last.offset <= 4 * MIB, "{extents:?}");
        drop(chain);

        let tree = Tree::init(dir.path()).unwrap();
        let leaf = node(&tree, depth);
        assert_eq!((leaf.depth as u128, leaf.kind), (depth, Kind::Leaf));
        assert_eq!(byte(&open(&tree, depth).unwrap(), 0), 7);
        let guard = store::lock(&tree);
        let request = vhd::tree::Snapshot {
            op: store::id(store::OP),
            source: Uuid::from_u128(id(depth)),
            new: store::id(0xff_ffff),
            new_metadata: &serde_json::json!({}),
            allow_copy: true,
        };
        let made = tree.snapshot(&guard, &request, &mut |_| std::ops::ControlFlow::Continue(()));
        match made {
            Ok(_) => assert!(depth < 30, "{depth}"),
            Err(Error::ChainTooLong { depth: found, limit, .. }) => {
                assert_eq!((found as u128, limit), (depth, 30));
            }
            Err(error) => panic!("{depth}: {}", error.reason()),
        }
    }
}

#[test]
fn two_disks_share_a_parent_and_neither_sees_the_other() {
    let dir = dir();
    let base = image(1).full(0, 1);
    let (left, right) = (child(2, &base), child(3, &base));
    let files: Vec<PathBuf> = [&base, &left, &right].map(|spec| put(spec, dir.path())).into();
    let before = std::fs::read(&files[0]).unwrap();
    let tree = Tree::init(dir.path()).unwrap();
    for (number, fill) in [(2, 0x22), (3, 0x33)] {
        let disk = tree.open_disk(Uuid::from_u128(id(number)), Mode::Write).unwrap();
        disk.write_at(100, &[fill; 50]).unwrap();
        disk.flush().unwrap();
    }
    for (number, fill) in [(2, 0x22), (3, 0x33)] {
        let disk = open(&tree, number).unwrap();
        assert_eq!([0, 99, 100, 149, 150].map(|at| byte(&disk, at)), [1, 1, fill, fill, 1]);
    }
    assert!(std::fs::read(&files[0]).unwrap() == before);
    assert_eq!(node(&tree, 1).kind, Kind::Base);
}

#[test]
fn of_two_files_with_the_parents_uuid_the_locators_one_counts_or_none() {
    let dir = dir();
    let base = image(1).full(0, 1);
    put(&base, dir.path());
    // Another image of the same UUID, under another name.
    let twin = Spec { blocks: vec![(0, vec![0xff; 512], 9)], ..base.clone() };
    twin.write(&dir.path().join(file_name(id(5))));
    put(&child(2, &base), dir.path());
    put(&image(3).child_of(&base, &file_name(id(5))), dir.path());
    let blind = Spec { locators: Vec::new(), parent_name: String::new(), ..child(4, &base) };
    put(&blind, dir.path());
    put(&child(6, &blind), dir.path());
    let tree = Tree::init(dir.path()).unwrap();
    assert_eq!(byte(&open(&tree, 2).unwrap(), 0), 1);
    assert_eq!(byte(&open(&tree, 3).unwrap(), 0), 9);
    assert!(reason(&tree, 4).contains("several images claim to be its parent"));
    assert!(reason(&tree, 6).contains("several images claim"), "{}", reason(&tree, 6));
    assert!(matches!(open(&tree, 4), Err(Error::Quarantined { .. })));
}

#[test]
fn a_parent_that_was_renamed_is_found_by_its_uuid() {
    let dir = dir();
    let base = image(1).full(0, 1);
    base.write(&dir.path().join(file_name(id(8))));
    put(&child(2, &base), dir.path());
    let tree = Tree::init(dir.path()).unwrap();
    assert_eq!(byte(&open(&tree, 2).unwrap(), 0), 1);
    assert_eq!(node(&tree, 2).parent, Some(Uuid::from_u128(id(8))));
    // The name is another image's now: the UUID counts.
    put(&Spec { uuid: id(9), ..image(1).full(0, 0x99) }, dir.path());
    std::fs::rename(dir.path().join(file_name(id(9))), dir.path().join(file_name(id(1)))).unwrap();
    assert_eq!(byte(&open(&tree, 2).unwrap(), 0), 1);
    assert_eq!(node(&tree, 2).parent, Some(Uuid::from_u128(id(8))));
    // And without the right one the other does not take its place.
    std::fs::remove_file(dir.path().join(file_name(id(8)))).unwrap();
    assert!(reason(&tree, 2).contains("expects the parent"), "{}", reason(&tree, 2));
}

#[test]
fn what_is_no_file_is_never_a_parent() {
    type Make = fn(&Path, &Path);
    let base = image(1).full(0, 1);
    let kinds: [(&str, Make); 5] = [
        ("a symbolic link", |at, real| std::os::unix::fs::symlink(real, at).unwrap()),
        ("a link to a host's file", |at, _| std::os::unix::fs::symlink("/etc/passwd", at).unwrap()),
        ("a FIFO", |at, _| {
            assert!(std::process::Command::new("mkfifo").arg(at).status().unwrap().success());
        }),
        ("a directory", |at, _| std::fs::create_dir(at).unwrap()),
        ("a socket", |at, _| drop(std::os::unix::net::UnixListener::bind(at).unwrap())),
    ];
    for (what, make) in kinds {
        let dir = dir();
        // The real one is elsewhere, and right.
        let real = base.write(&dir.path().join("real"));
        let at = dir.path().join(file_name(base.uuid));
        make(&at, &real);
        let leaf = put(&child(2, &base), dir.path());
        let error = Chain::open(&layers(&[leaf.clone(), at.clone()]), Mode::Read).err().unwrap();
        let refused = match &error {
            Error::Format { fault, .. } => *fault == Fault::NotAFile,
            Error::Io { path, action, .. } => *path == at && *action == "open",
            _ => false,
        };
        assert!(refused, "{what}: {error:?}");
        let tree = Tree::init(dir.path()).unwrap();
        let ancestor = format!("its ancestor {} cannot be used", Uuid::from_u128(base.uuid));
        assert!(reason(&tree, 2).contains(&ancestor), "{what}: {}", reason(&tree, 2));
        assert!(matches!(open(&tree, 2), Err(Error::Quarantined { .. })), "{what}");
    }
}

#[test]
fn a_parent_that_is_replaced_while_it_is_opened_is_the_right_one_or_refused() {
    let dir = dir();
    let right = image(1).full(0, 1);
    let wrong = Spec { uuid: id(7), ..image(1).full(0, 0x99) };
    let at = put(&right, dir.path());
    let leaf = put(&child(2, &right), dir.path());
    let paths = [leaf, at.clone()];

    // Between looking it up and opening it.
    let open_chain = Chain::open(&layers(&paths), Mode::Read).unwrap();
    wrong.write(&dir.path().join("new"));
    std::fs::rename(dir.path().join("new"), &at).unwrap();
    let error = Chain::open(&layers(&paths), Mode::Read).err().unwrap();
    assert!(matches!(error, Error::ParentMismatch { .. }), "{error}");
    assert_eq!(byte(&open_chain, 0), 1, "what is open stays what it was");

    // At any moment.
    let tree = Tree::init(dir.path()).unwrap();
    let done = AtomicBool::new(false);
    let (mut opened, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for spec in [&right, &wrong] {
                    spec.write(&dir.path().join("new"));
                    std::fs::rename(dir.path().join("new"), &at).unwrap();
                }
            }
        });
        for attempt in 0..400 {
            let disk = match attempt % 2 {
                0 => Chain::open(&layers(&paths), Mode::Read),
                _ => open(&tree, 2),
            };
            match disk {
                Ok(disk) => {
                    assert_eq!(byte(&disk, 0), 1);
                    opened += 1;
                }
                Err(error) => {
                    assert!(error.is_corrupt() || error.is_not_found(), "{}", error.reason());
                    refused += 1;
                }
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    println!("{opened} opened, {refused} refused");
}

#[test]
fn at_two_tebibytes_the_file_is_full_and_stays_whole() {
    let dir = dir();
    let stride = 512 + 2 * MIB;
    // The last sector whose block has its data on 4 KiB, and that a table can name.
    let last = 0xffff_fff7 * 512;
    let spec = Spec { blocks_at: Some(last - stride), ..image(1).full(0, 1) };
    let path = put(&spec, dir.path());
    let image = Image::open(&path, Mode::Write).unwrap();
    image.write_at(2 * MIB, &[2; 512]).unwrap();
    let length = std::fs::metadata(&path).unwrap().len();
    assert_eq!(length, last + stride + 512);
    let error = image.write_at(4 * MIB, &[3; 512]).err().unwrap();
    assert!(matches!(error, Error::FileFull { .. }) && error.is_no_space(), "{error}");
    // What is there can still be written, and a write that needs a block and half of one is not
    // half done.
    image.write_at(2 * MIB + 512, &[4; 512]).unwrap();
    assert!(image.write_at(4 * MIB - 512, &[5; 1024]).err().unwrap().is_no_space());
    image.flush().unwrap();
    drop(image);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), length);
    let image = Image::open(&path, Mode::Write).unwrap();
    let at = [0, 2 * MIB, 2 * MIB + 512, 2 * MIB + 1024, 4 * MIB - 512, 4 * MIB];
    assert_eq!(at.map(|at| byte(&image, at)), [1, 2, 4, 0, 0, 0]);
    assert_eq!(image.allocated_blocks(), 2);
    assert!(
        vhd::check::check_image(&path).iter().all(|f| f.severity < vhd::check::Severity::Error)
    );
    let file = std::fs::File::open(&path).unwrap();
    let mut entries = [0; 12];
    file.read_exact_at(&mut entries, 1536).unwrap();
    assert_eq!(entries[4..], [0xff, 0xff, 0xff, 0xf7, 0xff, 0xff, 0xff, 0xff]);
}
