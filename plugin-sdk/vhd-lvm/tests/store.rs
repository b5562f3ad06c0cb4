//! A store on volumes that are kept in memory and lie in a file: the commands of each operation are
//! counted, and each operation is cut before and after each of its commands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use host_kit::lvm::{Group, Piece, Volume};
use plugin_sdk::model::Kind as ErrorKind;
use plugin_sdk::{Error, Result};
use serde_json::json;
use uuid::Uuid;
use vhd::store::Store as _;
use vhd::tree::{Budget, Format, Guard, Kind, Revert, Snapshot};
use vhd::{Disk, Mode, Tree};
use vhd_lvm::{LvStore, Volumes};

const MIB: u64 = 1 << 20;
const EXTENT: u64 = 256 << 10;
const EXTENTS: u64 = 600;

/// What LVM keeps of a volume.
#[derive(Clone)]
struct Kept {
    name: String,
    id: u64,
    extents: Vec<u64>,
    writable: bool,
}

#[derive(Clone, Default)]
struct World {
    volumes: Vec<Kept>,
    next: u64,
    /// Commands that were run.
    commands: Vec<&'static str>,
    /// The process dies at this one: before it, or when it is done.
    cut: Option<(usize, bool)>,
    died: bool,
}

/// The process has died; nothing of it goes on.
struct Died;

#[derive(Clone)]
struct Fake {
    world: Arc<Mutex<World>>,
    disk: PathBuf,
}

impl Fake {
    fn run<T>(&self, name: &'static str, work: impl FnOnce(&mut World) -> Result<T>) -> Result<T> {
        let mut world = self.world.lock().unwrap();
        let index = world.commands.len();
        world.commands.push(name);
        // A merge has several threads, which all end.
        if world.died || world.cut == Some((index, false)) {
            world.died = true;
            drop(world);
            resume_unwind(Box::new(Died));
        }
        let done = work(&mut world);
        if world.cut == Some((index, true)) {
            world.died = true;
            drop(world);
            resume_unwind(Box::new(Died));
        }
        done
    }
}

impl World {
    fn find(&mut self, name: &str) -> Result<&mut Kept> {
        let found = self.volumes.iter_mut().find(|volume| volume.name == name);
        found.ok_or_else(|| Error::internal(format!("lvm: failed to find {name}")))
    }

    /// The lowest free extents, so that what was another's is used again soon.
    fn take(&self, count: u64) -> Result<Vec<u64>> {
        let used: Vec<u64> = self.volumes.iter().flat_map(|v| v.extents.clone()).collect();
        let free: Vec<u64> =
            (0..EXTENTS).filter(|e| !used.contains(e)).take(count as usize).collect();
        if (free.len() as u64) < count {
            return Err(Error::new(ErrorKind::NoSpace, "there is no room").legacy(44));
        }
        Ok(free)
    }
}

impl Volumes for Fake {
    fn group(&self) -> Result<Group> {
        self.run("report", |world| {
            let volume = |kept: &Kept| Volume {
                name: kept.name.clone(),
                id: format!("id-{}", kept.id),
                size: kept.extents.len() as u64 * EXTENT,
                writable: kept.writable,
                pieces: (0..)
                    .zip(&kept.extents)
                    .map(|(index, extent)| Piece {
                        start: index * EXTENT,
                        length: EXTENT,
                        device: "disk".to_owned(),
                        offset: extent * EXTENT,
                    })
                    .collect(),
                ..Volume::default()
            };
            Ok(Group {
                name: "VG_XenStorage-11111111-2222-4333-8444-555555555555".to_owned(),
                extent: EXTENT,
                size: EXTENTS * EXTENT,
                volumes: world.volumes.iter().map(volume).collect(),
                ..Group::default()
            })
        })
    }

    fn create(&self, name: &str, bytes: u64) -> Result<()> {
        self.run("lvcreate", |world| {
            assert!(world.find(name).is_err(), "{name} exists");
            let extents = world.take(bytes.div_ceil(EXTENT))?;
            world.next += 1;
            let id = world.next;
            world.volumes.push(Kept { name: name.to_owned(), id, extents, writable: true });
            Ok(())
        })
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.run("lvrename", |world| {
            assert!(world.find(to).is_err(), "{to} exists");
            to.clone_into(&mut world.find(from)?.name);
            Ok(())
        })
    }

    fn remove(&self, id: &str) -> Result<()> {
        self.run("lvremove", |world| {
            world.volumes.retain(|volume| format!("id-{}", volume.id) != id);
            Ok(())
        })
    }

    fn resize(&self, name: &str, bytes: u64, shorter: bool) -> Result<()> {
        self.run(if shorter { "lvreduce" } else { "lvextend" }, |world| {
            let count = bytes.div_ceil(EXTENT);
            let had = world.find(name)?.extents.len() as u64;
            assert_eq!(shorter, count < had);
            if shorter {
                world.find(name)?.extents.truncate(count as usize);
            } else {
                let more = world.take(count - had)?;
                world.find(name)?.extents.extend(more);
            }
            Ok(())
        })
    }

    fn permit(&self, name: &str, write: bool) -> Result<()> {
        self.run("lvchange -p", |world| {
            world.find(name)?.writable = write;
            Ok(())
        })
    }

    fn activate(&self, _: &[&str]) -> Result<()> {
        self.run("lvchange -ay", |_| Ok(()))
    }

    fn deactivate(&self, _: &[&str]) -> Result<()> {
        self.run("lvchange -an", |_| Ok(()))
    }

    fn device(&self, name: &str) -> PathBuf {
        Path::new("/nonexistent").join(name)
    }

    fn disk(&self, _: &str) -> PathBuf {
        self.disk.clone()
    }

    fn cached(&self) -> bool {
        true
    }
}

/// In memory, where there is such a place: each change is synced.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// A group in a folder of its own.
struct Place {
    folder: tempfile::TempDir,
    fake: Fake,
}

impl Place {
    fn new() -> Self {
        let folder = folder();
        let disk = folder.path().join("disk");
        // What its last owner left there is no zeros.
        let file = File::create(&disk).unwrap();
        file.set_len(EXTENTS * EXTENT).unwrap();
        for extent in 0..EXTENTS {
            file.write_all_at(&[0xa5; 4096], extent * EXTENT).unwrap();
        }
        Self { folder, fake: Fake { world: Arc::default(), disk } }
    }

    /// The same, as it is now.
    fn copied(&self) -> Self {
        let folder = folder();
        let disk = folder.path().join("disk");
        let (from, to) = (
            vhd::Raw::open(&self.fake.disk, Mode::Read).unwrap(),
            vhd::Raw::create(&disk, EXTENTS * EXTENT).unwrap(),
        );
        vhd::copy::copy(&from, &to, &mut |_| ControlFlow::Continue(())).unwrap();
        let world = self.fake.world.lock().unwrap().clone();
        Self { folder, fake: Fake { world: Arc::new(Mutex::new(world)), disk } }
    }

    fn store(&self) -> LvStore {
        self.store_of("host")
    }

    /// As another host has it, with locks of its own.
    fn store_of(&self, host: &str) -> LvStore {
        let locks = self.folder.path().join(format!("locks of {host}"));
        LvStore::new(Box::new(self.fake.clone()), "VG", &locks, host)
    }

    fn tree(&self) -> Tree {
        Tree::on(Box::new(self.store()))
    }

    /// The commands of a piece of work.
    fn commands(&self, work: impl FnOnce()) -> Vec<&'static str> {
        let before = self.fake.world.lock().unwrap().commands.len();
        work();
        self.fake.world.lock().unwrap().commands[before..].to_vec()
    }

    fn names(&self) -> Vec<String> {
        let world = self.fake.world.lock().unwrap();
        world.volumes.iter().map(|volume| volume.name.clone()).collect()
    }
}

fn id(number: u128) -> Uuid {
    Uuid::from_u128(0xabcd_0000_0000_4000_8000_0000_0000_0000 | number)
}

fn lock(tree: &Tree) -> Guard {
    tree.lock(Instant::now() + Duration::from_secs(60)).unwrap()
}

/// As a guest does, to whom the disk was attached.
fn fill(tree: &Tree, guard: &Guard, disk: u128, offset: u64, byte: u8) {
    tree.fit(guard, id(disk), true).unwrap();
    let disk = tree.open_disk(id(disk), Mode::Write).unwrap();
    disk.write_at(offset, &[byte; 5000]).unwrap();
    disk.flush().unwrap();
}

fn snapshot(tree: &Tree, guard: &Guard, op: u128, source: u128, new: u128) {
    let metadata = json!({ "name": format!("made by {op}") });
    let (op, source, new) = (id(op), id(source), id(new));
    let request = Snapshot { op, source, new, new_metadata: &metadata, allow_copy: true };
    tree.snapshot(guard, &request, &mut |_| ControlFlow::Continue(())).unwrap();
}

/// A disk with data and a snapshot that has some, a disk of its own, and an empty one.
fn prepared() -> Place {
    let place = Place::new();
    assert!(place.store().init().unwrap());
    let tree = place.tree();
    let guard = lock(&tree);
    for disk in [1, 2, 3] {
        tree.create(&guard, id(disk), Format::Vhd, 4 * MIB, &json!({ "name": disk as u64 }))
            .unwrap();
    }
    fill(&tree, &guard, 1, 1000, 1);
    snapshot(&tree, &guard, 10, 1, 4);
    fill(&tree, &guard, 1, MIB, 2);
    fill(&tree, &guard, 4, 3 * MIB, 3);
    fill(&tree, &guard, 2, 0, 4);
    place
}

/// What users see: each disk's name, size, content, and what is said about it.
fn state(tree: &Tree) -> Vec<String> {
    let mut state = Vec::new();
    for node in tree.list().unwrap().nodes {
        assert!(node.is_ok(), "{node:?}");
        if node.kind == Kind::Leaf {
            let disk = tree.open_disk(node.uuid, Mode::Read).unwrap();
            // Where something may be, and the place after it.
            let mut sum = 0_u64;
            for at in [0, MIB, 3 * MIB] {
                let mut bytes = [0; 8192];
                disk.read_at(at, &mut bytes).unwrap();
                sum = (1..).zip(&bytes).fold(sum, |sum, (n, byte): (u64, _)| {
                    sum.wrapping_mul(31).wrapping_add(n * u64::from(*byte))
                });
            }
            state.push(format!("{} {} {sum} {:?}", node.uuid, disk.size(), node.metadata));
        }
    }
    state.sort();
    state
}

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
