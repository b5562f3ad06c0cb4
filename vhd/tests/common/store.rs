//! Stores to try operations on, and what must be true of a store at rest.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part of a shared file")]

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use uuid::Uuid;
use vhd::tree::{Change, Format, Guard, Kind, Revert, Snapshot, Writer};
use vhd::{Disk, Mode, Raw, Result, Tree};

pub const MIB: u64 = 1 << 20;

pub fn id(number: u128) -> Uuid {
    Uuid::from_u128(0xabcd_0000_0000_4000_8000_0000_0000_0000 | number)
}

pub const A: u128 = 0xa;
pub const S: u128 = 0x5;
pub const C: u128 = 0xc;
pub const D: u128 = 0xd;
pub const E: u128 = 0xe;
pub const R: u128 = 0x1;
pub const R2: u128 = 0x2;
pub const N: u128 = 0xff;
pub const FOREIGN: u128 = 0xf0;
pub const OP: u128 = 0x99;

pub fn lock(tree: &Tree) -> Guard {
    tree.lock(Instant::now() + Duration::from_secs(60)).unwrap()
}

pub fn fill(tree: &Tree, disk: u128, offset: u64, length: usize, byte: u8) {
    let disk = tree.open_disk(id(disk), Mode::Write).unwrap();
    disk.write_at(offset, &vec![byte; length]).unwrap();
    disk.flush().unwrap();
}

/// A guest that writes until it is stopped, and from when it goes on: what is there already.
struct Guest<'a> {
    tree: &'a Tree,
    disk: u128,
}

impl Guest<'_> {
    fn write(&self) -> Result<()> {
        let disk = self.tree.open_disk(id(self.disk), Mode::Write)?;
        let mut bytes = vec![0; 8192];
        disk.read_at(MIB, &mut bytes)?;
        disk.write_at(MIB, &bytes)?;
        disk.flush()
    }
}

impl Writer for Guest<'_> {
    fn stop(&self) -> Result<()> {
        self.write()
    }

    fn go_on(&self) {
        // A full disk it is told of, as a guest is.
        match self.write() {
            Err(vhd::Error::Io { source, .. }) if source.kind() == ErrorKind::StorageFull => {}
            other => other.unwrap(),
        }
    }
}

/// Guests of several disks.
struct Guests<'a>(Vec<Guest<'a>>);

impl Writer for Guests<'_> {
    fn stop(&self) -> Result<()> {
        self.0.iter().try_for_each(Guest::write)
    }

    fn go_on(&self) {
        self.0.iter().for_each(Writer::go_on);
    }
}

/// Snapshots of one point in time, the first named [`N`] and the others with the numbers after it.
/// Answers the first one's.
pub fn snap_group(
    tree: &Tree,
    guard: &Guard,
    sources: &[u128],
    written: &[u128],
) -> Result<Change> {
    snap_named(tree, guard, sources, written, "one of a group")
}

pub fn snap_group_as(tree: &Tree, guard: &Guard, sources: &[u128], name: &str) -> Result<Change> {
    snap_named(tree, guard, sources, &[], name)
}

fn snap_named(
    tree: &Tree,
    guard: &Guard,
    sources: &[u128],
    written: &[u128],
    name: &str,
) -> Result<Change> {
    let metadata = json!({ "name": name });
    let requests = group_of(sources, &metadata);
    let guests = Guests(written.iter().map(|disk| Guest { tree, disk: *disk }).collect());
    let writer = (!written.is_empty()).then_some(&guests as &dyn Writer);
    let go_on = &mut |_| ControlFlow::Continue(());
    let changes = tree.snapshot_group(guard, &requests, writer, go_on)?;
    assert_eq!(changes.len(), sources.len());
    assert!(changes.iter().all(|change| change.outcome == changes[0].outcome));
    Ok(changes[0])
}

fn group_of<'a>(sources: &[u128], metadata: &'a Value) -> Vec<Snapshot<'a>> {
    let pairs = sources.iter().zip(N..);
    pairs
        .map(|(source, new)| Snapshot {
            op: id(OP),
            source: id(*source),
            new: id(new),
            new_metadata: metadata,
            allow_copy: true,
        })
        .collect()
}

/// As [`snap_group`], with all that takes time done ahead.
fn snap_prepared(tree: &Tree, guard: &Guard, sources: &[u128], written: &[u128]) -> Result<Change> {
    prepare(tree, guard, sources)?;
    snap_group(tree, guard, sources, written)
}

pub fn prepare(tree: &Tree, guard: &Guard, sources: &[u128]) -> Result<()> {
    tree.prepare_group(guard, &group_of(sources, &json!({ "name": "one of a group" })))
}

/// As [`snap`], of a disk that is being written.
fn snap_written(tree: &Tree, guard: &Guard, op: u128, source: u128, new: u128) -> Result<Change> {
    let guest = Guest { tree, disk: source };
    snap_of(tree, guard, op, source, new, Some(&guest))
}

pub fn snap(tree: &Tree, guard: &Guard, op: u128, source: u128, new: u128) -> Result<Change> {
    snap_of(tree, guard, op, source, new, None)
}

fn snap_of(
    tree: &Tree,
    guard: &Guard,
    op: u128,
    source: u128,
    new: u128,
    writer: Option<&dyn Writer>,
) -> Result<Change> {
    let metadata = json!({ "name": format!("made by {op}") });
    let request = Snapshot {
        op: id(op),
        source: id(source),
        new: id(new),
        new_metadata: &metadata,
        allow_copy: true,
    };
    tree.snapshot_written(guard, &request, writer, &mut |_| ControlFlow::Continue(()))
}

pub fn revert(tree: &Tree, guard: &Guard, op: u128, vdi: u128, to: u128) -> Result<Change> {
    let metadata = json!({ "name": "reverted" });
    let (op, vdi, snapshot) = (id(op), id(vdi), id(to));
    let request = Revert { op, vdi, snapshot, metadata: &metadata, allow_copy: true };
    tree.revert(guard, &request, &mut |_| ControlFlow::Continue(()))
}

/// A store with every shape that the operations tell apart: `A` with data and an empty snapshot
/// `S`, `C` a clone of it with data, `D` the last user of a chain of two bases, `E` empty, `R` and
/// `R2` raw, and an image that nobody introduced.
pub fn setup(dir: &Path) {
    let tree = Tree::init(dir).unwrap();
    let guard = lock(&tree);
    let name = |name: &str| json!({ "name": name });
    for disk in [A, D, E] {
        tree.create(&guard, id(disk), Format::Vhd, 8 * MIB, &name("vhd")).unwrap();
    }
    for disk in [R, R2] {
        tree.create(&guard, id(disk), Format::Raw, 4 * MIB, &name("raw")).unwrap();
    }
    fill(&tree, A, 1000, 5000, 1);
    snap(&tree, &guard, 1, A, S).unwrap();
    fill(&tree, A, 3 * MIB, 70_000, 2);
    snap(&tree, &guard, 2, S, C).unwrap();
    fill(&tree, C, 1500, 3000, 3);
    fill(&tree, D, 0, 4096, 4);
    snap(&tree, &guard, 3, D, 0x31).unwrap();
    fill(&tree, D, 4096, 4096, 5);
    snap(&tree, &guard, 4, D, 0x32).unwrap();
    fill(&tree, D, 8192, 4096, 6);
    tree.delete(&guard, id(0x31)).unwrap();
    tree.delete(&guard, id(0x32)).unwrap();
    fill(&tree, R, 12345, 6000, 7);
    fill(&tree, R2, 2 * MIB, 6000, 8);
    let path = dir.join(format!("{}.vhd", id(FOREIGN)));
    let new = vhd::image::NewImage { uuid: Uuid::from_u128(77), size: 4 * MIB, parent: None };
    vhd::image::create(&path, &new).unwrap();
}

/// Copies a store file by file, keeping holes.
pub fn copy_store(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_store(&entry.path(), &target);
        } else {
            let source = Raw::open(&entry.path(), Mode::Read).unwrap();
            let target = Raw::create(&target, source.size()).unwrap();
            vhd::copy::copy(&source, &target, &mut |_| ControlFlow::Continue(())).unwrap();
        }
    }
}

/// What users of a store see: size, a digest of the content, and the metadata of each disk.
pub type State = BTreeMap<Uuid, (u64, u64, Option<Value>)>;

pub fn digest(disk: &dyn Disk) -> u64 {
    let mut buf = vec![0; disk.size().min(16 * MIB) as usize];
    let mut digest = 0xcbf2_9ce4_8422_2325_u64;
    for extent in vhd::Extents::new(disk, 0, disk.size()) {
        let extent = extent.unwrap();
        let mut at = extent.offset;
        while extent.kind == vhd::ExtentKind::Data && at < extent.offset + extent.length {
            let count = (extent.offset + extent.length - at).min(buf.len() as u64) as usize;
            disk.read_at(at, &mut buf[..count]).unwrap();
            // Position and value of each byte that is not zero, so that holes do not matter.
            for (index, word) in buf[..count].chunks(8).enumerate() {
                if word.iter().any(|byte| *byte != 0) {
                    let mut bytes = [0; 8];
                    bytes[..word.len()].copy_from_slice(word);
                    let place = at + index as u64 * 8;
                    digest ^= u64::from_le_bytes(bytes)
                        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                        .wrapping_add(place.wrapping_mul(0xff51_afd7_ed55_8ccd))
                        .rotate_left(31)
                        .wrapping_mul(0xc4ce_b9fe_1a85_ec53);
                }
            }
            at += count as u64;
        }
    }
    digest
}

pub fn state(tree: &Tree) -> State {
    let mut state = State::new();
    for node in tree.list().unwrap().nodes {
        assert!(node.is_ok(), "{node:?}");
        if node.kind == Kind::Leaf {
            let disk = tree.open_disk(node.uuid, Mode::Read).unwrap();
            assert_eq!(disk.size(), node.virtual_size);
            state.insert(node.uuid, (node.virtual_size, digest(&disk), node.metadata));
        }
    }
    state
}

/// Nothing is left over: no temporary file, no record, no base copy without children or not
/// marked, no metadata without a disk; and `check` finds nothing.
pub fn assert_at_rest(tree: &Tree) {
    let ours = tree.path().join(".sm");
    for part in ["tmp", "journal"] {
        let left: Vec<_> = std::fs::read_dir(ours.join(part))
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert!(left.is_empty(), "left in {part}: {left:?}");
    }
    let listing = tree.list().unwrap();
    assert!(!listing.unfinished);
    for node in &listing.nodes {
        assert!(node.is_ok(), "{node:?}");
        let children = listing.nodes.iter().filter(|child| child.parent == Some(node.uuid)).count();
        match node.kind {
            Kind::Base => {
                assert!(node.hidden, "{} is not marked", node.uuid);
                assert!(children > 0, "{} is an orphan", node.uuid);
                assert!(node.metadata.is_none());
            }
            Kind::Leaf => {
                assert_eq!(children, 0);
                let chain = tree.chain(node.uuid).unwrap();
                assert_eq!(chain.len(), node.depth);
            }
        }
        if node.format == Format::Vhd {
            let path = tree.path().join(format!("{}.vhd", node.uuid));
            let findings = vhd::check::check_image(&path);
            assert!(findings.is_empty(), "{findings:?}");
        }
    }
    for entry in std::fs::read_dir(ours.join("vdi")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let uuid: Uuid = name.strip_suffix(".json").unwrap().parse().unwrap();
        assert!(listing.nodes.iter().any(|node| node.uuid == uuid), "{name} has no disk");
    }
}

/// One operation to be cut.
pub type Scenario = (&'static str, fn(&Tree, &Guard) -> Result<Change>);

pub const SCENARIOS: &[Scenario] = &[
    ("create_vhd", |t, g| t.create(g, id(N), Format::Vhd, 6 * MIB, &json!({ "name": "new" }))),
    ("create_raw", |t, g| t.create(g, id(N), Format::Raw, 6 * MIB, &json!({ "name": "new" }))),
    ("snapshot_data", |t, g| snap(t, g, OP, A, N)),
    ("snapshot_empty", |t, g| snap(t, g, OP, S, N)),
    ("snapshot_new", |t, g| snap(t, g, OP, E, N)),
    ("snapshot_raw", |t, g| snap(t, g, OP, R, N)),
    ("snapshot_written", |t, g| snap_written(t, g, OP, A, N)),
    ("snapshot_written_new", |t, g| snap_written(t, g, OP, E, N)),
    ("snapshot_group", |t, g| snap_group(t, g, &[A, S, R, C], &[])),
    ("snapshot_group_empty", |t, g| snap_group(t, g, &[S, R, R2], &[])),
    // The second one gets data before its guest stops.
    ("snapshot_group_written", |t, g| snap_group(t, g, &[A, E, D], &[A, E])),
    ("snapshot_group_prepared", |t, g| snap_prepared(t, g, &[A, S, C], &[])),
    ("snapshot_group_prepared_written", |t, g| snap_prepared(t, g, &[A, E, D], &[A, E])),
    ("revert_empty", |t, g| revert(t, g, OP, A, S)),
    ("revert_data", |t, g| revert(t, g, OP, A, C)),
    ("revert_collects", |t, g| revert(t, g, OP, D, S)),
    ("revert_raw", |t, g| revert(t, g, OP, R, R2)),
    ("resize_vhd", |t, g| t.resize(g, id(OP), id(A), 100 * MIB, &json!({ "name": "big" }))),
    ("resize_table", |t, g| t.resize(g, id(OP), id(A), 40 << 30, &json!({ "name": "huge" }))),
    ("resize_raw", |t, g| t.resize(g, id(OP), id(R), 9 * MIB, &json!({ "name": "big" }))),
    ("delete", |t, g| t.delete(g, id(A))),
    ("delete_collects", |t, g| t.delete(g, id(D))),
    ("delete_raw", |t, g| t.delete(g, id(R))),
    ("update", |t, g| t.set_metadata(g, id(A), &json!({ "name": "renamed" }))),
    ("introduce", |t, g| t.adopt(g, id(FOREIGN), &json!({ "name": "introduced" }))),
];
