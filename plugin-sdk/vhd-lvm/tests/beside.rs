//! Merges in volumes, beside others: below disks that are open, with the power going at each command,
//! and while another host deletes and makes disks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

#[path = "common/fake.rs"]
mod fake;

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fake::{Died, EXTENT, EXTENTS, MIB, Place, fill, id, lock, snapshot, state};
use serde_json::json;
use uuid::Uuid;
use vhd::tree::{Budget, Format, Kind, Maintained, Readers};
use vhd::{Chain, Disk as _, Error, Mode, Tree};

/// Who has the disk open: the host whose store is [`Place::store`].
const HOST: &str = "host";
const DISK: u128 = 1;
const PLACES: [u64; 4] = [0, MIB, 2 * MIB, 3 * MIB];

fn content(disk: &Chain) -> Vec<u8> {
    let mut all = Vec::new();
    for at in PLACES {
        let mut bytes = [0; 8192];
        disk.read_at(at, &mut bytes).unwrap();
        all.extend(bytes);
    }
    all
}

/// A disk on three base copies, of which the middle one, or the uppermost, is to be merged.
fn prepared(own: bool, size: u64) -> Place {
    let place = Place::new();
    let store = place.store();
    assert!(store.init().unwrap());
    let tree = Tree::on(Box::new(store.clone()));
    let guard = lock(&tree);
    tree.create(&guard, id(DISK), Format::Vhd, size, &json!({ "name": "disk" })).unwrap();
    for (number, snap) in (1..).zip([4, 5, 6]) {
        fill(&tree, &guard, DISK, u64::from(number - 1) * MIB + 1000, number);
        for at in (0..size).step_by(4 << 20) {
            fill(&tree, &guard, DISK, at + 500, 0x10 + number);
        }
        snapshot(&tree, &guard, u128::from(number) + 10, DISK, snap);
        // As the driver leaves a base copy.
        let base = tree.get(id(DISK)).unwrap().parent.unwrap();
        tree.fit(&guard, base, false).unwrap();
        store.freeze(base).unwrap();
    }
    fill(&tree, &guard, DISK, 3 * MIB, 9);
    tree.delete(&guard, id(if own { 6 } else { 5 })).unwrap();
    if own {
        tree.delete(&guard, id(5)).unwrap();
    }
    tree.claim(&guard, id(DISK), HOST).unwrap();
    place
}

/// The data path of the disk: what it has open, it reads until it is told to go over.
struct Path<'a> {
    place: &'a Place,
    disk: Mutex<Option<Chain>>,
    expected: Vec<u8>,
}

impl<'a> Path<'a> {
    fn of(place: &'a Place) -> Self {
        let disk = place.tree().open_disk(id(DISK), Mode::Read).unwrap();
        let expected = content(&disk);
        Self { place, disk: Mutex::new(Some(disk)), expected }
    }

    /// No data path at all.
    fn of_nothing(place: &'a Place) -> Self {
        Self { place, disk: Mutex::default(), expected: Vec::new() }
    }

    /// As after the loss of whoever told it: it goes on with what there is.
    fn look(&self) {
        let mut disk = self.disk.lock().unwrap();
        if disk.is_none() {
            *disk = Some(self.place.tree().open_disk(id(DISK), Mode::Read).unwrap());
        }
        assert!(content(disk.as_ref().unwrap()) == self.expected);
    }
}

impl Readers for Path<'_> {
    fn hears(&self, disk: Uuid, holder: &str) -> bool {
        disk == id(DISK) && holder == HOST
    }

    fn close(&self, disks: &[Uuid]) -> vhd::Result<()> {
        if disks.contains(&id(DISK)) {
            self.disk.lock().unwrap().take();
        }
        Ok(())
    }

    fn go_over(&self, _: Uuid) -> vhd::Result<()> {
        let disk = self.place.tree().open_disk(id(DISK), Mode::Read)?;
        *self.disk.lock().unwrap() = Some(disk);
        self.look();
        Ok(())
    }
}

/// Another host, where no data path has the disk.
struct Nobody;
impl Readers for Nobody {
    fn hears(&self, _: Uuid, _: &str) -> bool {
        false
    }
    fn close(&self, _: &[Uuid]) -> vhd::Result<()> {
        Ok(())
    }
    fn go_over(&self, disk: Uuid) -> vhd::Result<()> {
        Err(Error::InUse { uuid: disk, holder: "nobody".to_owned() })
    }
}

fn maintain(tree: &Tree, readers: &dyn Readers) -> Maintained {
    let soon = Instant::now() + Duration::from_secs(60);
    let budget = Budget { parallel: 1, ..Budget::default() };
    tree.maintain_beside(soon, &budget, &|_| ControlFlow::Continue(()), readers).unwrap()
}

/// Another host does what it does: it recovers, merges what it may, and takes all the space there is.
fn another_host(place: &Place) {
    let tree = || Tree::on(Box::new(place.store_of("other")));
    let first = tree();
    let guard = lock(&first);
    first.recover(&guard).unwrap();
    first.collect(&guard).unwrap();
    drop(guard);
    let soon = Instant::now() + Duration::from_secs(60);
    first.maintain(soon, &Budget::default(), &|_| ControlFlow::Continue(())).unwrap();
    let second = tree();
    let guard = lock(&second);
    let used: u64 =
        place.fake.world.lock().unwrap().volumes.iter().map(|v| v.extents.len() as u64).sum();
    // Disks are full of what their volumes' last owners left; so all of it is written over.
    let size = (EXTENTS - used) * EXTENT * 3 / 4 / (2 * MIB) * (2 * MIB);
    second.create(&guard, id(99), Format::Vhd, size, &json!({ "name": "other" })).unwrap();
    second.fit(&guard, id(99), true).unwrap();
    let disk = second.open_disk(id(99), Mode::Write).unwrap();
    let bytes = vec![0xee; MIB as usize];
    for at in (0..size).step_by(MIB as usize) {
        disk.write_at(at, &bytes).unwrap();
    }
    disk.flush().unwrap();
    drop(disk);
    second.delete(&guard, id(99)).unwrap();
}

#[test]
fn a_merge_below_an_open_disk_loses_nothing_wherever_it_is_cut() {
    for own in [false, true] {
        let place = prepared(own, 4 * MIB);
        let before = state(&place.tree());
        let whole = place.copied();
        let path = Path::of(&whole);
        let depth = |place: &Place| place.tree().chain(id(DISK)).unwrap().len();
        let commands = whole.commands(|| {
            let done = maintain(&whole.tree(), &path);
            assert!(done.merged.iter().any(|merged| merged.live), "{done:?}");
        });
        path.look();
        println!("own: {own}: {commands:?}");
        let shorter = depth(&whole);
        assert!(shorter < depth(&place), "{own}: {commands:?}");
        assert_eq!(state(&whole.tree()), before);
        assert_eq!(whole.tree().open_disks().unwrap().into_iter().collect::<Vec<_>>(), [id(DISK)]);
        for (at, command) in commands.iter().enumerate() {
            for done in [false, true] {
                let cut = place.copied();
                let path = Path::of(&cut);
                {
                    let mut world = cut.fake.world.lock().unwrap();
                    world.cut = Some((world.commands.len() + at, done));
                }
                let died = catch_unwind(AssertUnwindSafe(|| maintain(&cut.tree(), &path)));
                assert!(died.is_err_and(|died| died.is::<Died>()), "it was cut");
                {
                    let mut world = cut.fake.world.lock().unwrap();
                    (world.cut, world.died) = (None, false);
                }
                let place = format!("own: {own}, at {at} ({command}), done: {done}");
                println!("{place}");
                // The data path goes on by itself; nobody takes from it what it reads.
                path.look();
                another_host(&cut);
                path.look();
                // The host does it again.
                let tree = cut.tree();
                let guard = lock(&tree);
                tree.recover(&guard).unwrap();
                drop(guard);
                path.look();
                maintain(&cut.tree(), &path);
                path.look();
                assert_eq!(state(&cut.tree()), before, "{place}");
                assert_eq!(depth(&cut), shorter, "{place}");
                let fine = |name: &String| name.starts_with("VHD-") || name == "sm-store";
                assert!(cut.names().iter().all(fine), "{place}: {:?}", cut.names());
                assert_eq!(cut.names().len(), whole.names().len(), "{place}");
                let open = cut.tree().open_disks().unwrap();
                assert_eq!(open.into_iter().collect::<Vec<_>>(), [id(DISK)], "{place}");
            }
        }
    }
}

#[test]
fn a_disk_that_is_open_on_another_host_is_left_alone_and_its_host_is_named() {
    let place = prepared(true, 4 * MIB);
    let other = Tree::on(Box::new(place.store_of("other")));
    let path = Path::of(&place);
    let done = maintain(&other, &Nobody);
    assert!(done.merged.is_empty() && !done.skipped.is_empty(), "{done:?}");
    for skipped in &done.skipped {
        assert_eq!(skipped.reason, "is part of a disk that is open: host");
    }
    path.look();
}

/// What a merge writes lands in volumes that nobody else has meanwhile.
#[test]
fn a_disk_that_is_deleted_during_its_merge_gives_its_space_to_others_only_afterwards() {
    let place = prepared(true, 32 * MIB);
    let guard_of = place.tree();
    guard_of.unclaim(&lock(&guard_of), id(DISK), HOST).unwrap();
    let done = AtomicBool::new(false);
    let soon = Instant::now() + Duration::from_secs(60);
    let budget = Budget { parallel: 1, batch: 1, ..Budget::default() };
    let other = || Tree::on(Box::new(place.store_of("other")));
    let merging = place.tree();
    merging
        .maintain(soon, &budget, &|pace| {
            if pace.bytes_done > 0 && !done.swap(true, Ordering::Relaxed) {
                let tree = other();
                let guard = lock(&tree);
                for disk in [DISK, 4] {
                    tree.delete(&guard, id(disk)).unwrap();
                }
                drop((guard, tree));
                let tree = other();
                let guard = lock(&tree);
                for number in 50..58 {
                    tree.create(&guard, id(number), Format::Vhd, 4 * MIB, &json!({})).unwrap();
                    tree.fit(&guard, id(number), true).unwrap();
                    let disk = tree.open_disk(id(number), Mode::Write).unwrap();
                    for at in PLACES {
                        disk.write_at(at, &vec![number as u8; MIB as usize]).unwrap();
                    }
                    disk.flush().unwrap();
                }
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(done.load(Ordering::Relaxed));
    let tree = other();
    for number in 50..58 {
        let disk = tree.open_disk(id(number), Mode::Read).unwrap();
        for at in PLACES {
            let mut bytes = vec![0; MIB as usize];
            disk.read_at(at, &mut bytes).unwrap();
            assert!(bytes.iter().all(|byte| *byte == number as u8), "{number} at {at}");
        }
    }
    // What was left is collected by the next one.
    maintain(&place.tree(), &Path::of_nothing(&place));
    let nodes = place.tree().list().unwrap().nodes;
    let bases = nodes.iter().filter(|node| node.kind == Kind::Base).count();
    assert_eq!(bases, 0, "{nodes:?}");
}
