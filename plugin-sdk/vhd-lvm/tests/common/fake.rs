//! Volumes that are kept in memory and lie in a file.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part of a shared file")]

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use host_kit::lvm::{Group, Piece, Volume};
use plugin_sdk::model::Kind as ErrorKind;
use plugin_sdk::{Error, Result};
use serde_json::json;
use uuid::Uuid;
use vhd::tree::{Format, Guard, Kind, Snapshot};
use vhd::{Disk as _, Mode, Tree};
use vhd_lvm::{LvStore, Volumes};

pub const MIB: u64 = 1 << 20;
pub const EXTENT: u64 = 256 << 10;
pub const EXTENTS: u64 = 600;

/// What LVM keeps of a volume.
#[derive(Clone)]
pub struct Kept {
    pub name: String,
    pub id: u64,
    pub extents: Vec<u64>,
    pub writable: bool,
}

#[derive(Clone, Default)]
pub struct World {
    pub volumes: Vec<Kept>,
    next: u64,
    /// Commands that were run.
    pub commands: Vec<&'static str>,
    /// The process dies at this one: before it, or when it is done.
    pub cut: Option<(usize, bool)>,
    pub died: bool,
}

/// The process has died; nothing of it goes on.
pub struct Died;

#[derive(Clone)]
pub struct Fake {
    pub world: Arc<Mutex<World>>,
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
pub fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// A group in a folder of its own.
pub struct Place {
    folder: tempfile::TempDir,
    pub fake: Fake,
}

impl Place {
    pub fn new() -> Self {
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
    pub fn copied(&self) -> Self {
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

    pub fn store(&self) -> LvStore {
        self.store_of("host")
    }

    /// As another host has it, with locks of its own.
    pub fn store_of(&self, host: &str) -> LvStore {
        let locks = self.folder.path().join(format!("locks of {host}"));
        LvStore::new(Box::new(self.fake.clone()), "VG", &locks, host)
    }

    pub fn tree(&self) -> Tree {
        Tree::on(Box::new(self.store()))
    }

    /// The commands of a piece of work.
    pub fn commands(&self, work: impl FnOnce()) -> Vec<&'static str> {
        let before = self.fake.world.lock().unwrap().commands.len();
        work();
        self.fake.world.lock().unwrap().commands[before..].to_vec()
    }

    pub fn names(&self) -> Vec<String> {
        let world = self.fake.world.lock().unwrap();
        world.volumes.iter().map(|volume| volume.name.clone()).collect()
    }
}

pub fn id(number: u128) -> Uuid {
    Uuid::from_u128(0xabcd_0000_0000_4000_8000_0000_0000_0000 | number)
}

pub fn lock(tree: &Tree) -> Guard {
    tree.lock(Instant::now() + Duration::from_secs(60)).unwrap()
}

/// As a guest does, to whom the disk was attached.
pub fn fill(tree: &Tree, guard: &Guard, disk: u128, offset: u64, byte: u8) {
    tree.fit(guard, id(disk), true).unwrap();
    let disk = tree.open_disk(id(disk), Mode::Write).unwrap();
    disk.write_at(offset, &[byte; 5000]).unwrap();
    disk.flush().unwrap();
}

pub fn snapshot(tree: &Tree, guard: &Guard, op: u128, source: u128, new: u128) {
    let metadata = json!({ "name": format!("made by {op}") });
    let (op, source, new) = (id(op), id(source), id(new));
    let request = Snapshot { op, source, new, new_metadata: &metadata, allow_copy: true };
    tree.snapshot(guard, &request, &mut |_| ControlFlow::Continue(())).unwrap();
}

/// A disk with data and a snapshot that has some, a disk of its own, and an empty one.
pub fn prepared() -> Place {
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
pub fn state(tree: &Tree) -> Vec<String> {
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
