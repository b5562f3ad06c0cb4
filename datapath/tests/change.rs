//! Changed blocks: whatever happens to disks and their logs, and wherever the power goes, blocks
//! that differ are among those that are called changed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

use std::collections::BTreeMap;
use std::sync::Arc;

use datapath::change::{Named, Tracker, WithBitmaps};
use datapath::disk::Watcher;
use datapath::export::{Changed, Export};
use uuid::Uuid;
use vhd::change::{Difference, LogFile, Logs, Map, REGION};
use vhd::store::{Area, At, Directory, Store};

#[path = "../../vhd/tests/simulated/mod.rs"]
mod simulated;

use simulated::{Rng, Simulated};

fn id(number: u64) -> Uuid {
    Uuid::from_u128(u128::from(number) << 64 | 0x5eed)
}

const DISK: u64 = 1;

/// A disk, its snapshots, and its logs, on a store that loses power.
struct World {
    store: Simulated,
    rng: Rng,
    /// Which write each region holds: now, and at each snapshot, in their order.
    now: Vec<u64>,
    points: Vec<(Uuid, Vec<u64>)>,
    tracker: Option<Arc<Tracker>>,
    writes: u64,
    next: u64,
    /// A snapshot that was cut, and may be made again.
    begun: Option<Uuid>,
    known: u64,
    unknown: u64,
}

impl World {
    fn new(seed: u64, volumes: bool) -> Self {
        let mut rng = Rng::new(seed);
        let now = vec![0; 3 + rng.below(20) as usize];
        let store = Simulated::new(volumes);
        let mut world = Self {
            store,
            rng,
            now,
            points: Vec::new(),
            tracker: None,
            writes: 0,
            next: DISK + 1,
            begun: None,
            known: 0,
            unknown: 0,
        };
        Logs::of(&world.store).enable(id(DISK), world.size()).unwrap();
        world.take_snapshot(None).unwrap();
        world
    }

    fn size(&self) -> u64 {
        self.now.len() as u64 * REGION
    }

    fn attach(&mut self) -> Result<(), datapath::error::Error> {
        if self.tracker.is_none() {
            self.tracker = Tracker::open(&self.store, id(DISK), self.size())?;
        }
        Ok(())
    }

    fn write(&mut self) {
        let first = self.rng.below(self.now.len() as u64);
        let count = 1 + self.rng.below(3);
        let last = (first + count).min(self.now.len() as u64);
        if let Some(tracker) = &self.tracker {
            tracker.touched(first * REGION + 512, (last - first) * REGION - 600);
        }
        self.writes += 1;
        for region in first..last {
            self.now[region as usize] = self.writes;
        }
    }

    fn close(&mut self) -> Result<(), datapath::error::Error> {
        match self.tracker.take() {
            Some(tracker) => tracker.close(),
            None => Ok(()),
        }
    }

    /// As the control plane goes about it: the writer is paused and closes its log, the logs are
    /// switched, then the image is, then the writer goes on.
    fn take_snapshot(&mut self, again: Option<Uuid>) -> Result<(), datapath::error::Error> {
        let writer = self.tracker.is_some();
        let new = again.unwrap_or_else(|| {
            self.next += 1;
            id(self.next)
        });
        // What takes time is done before; sometimes it is cleared away in between.
        match self.rng.below(3) {
            0 => {}
            1 => drop(Logs::of(&self.store).prepare_snapshot(id(DISK), new, self.size())?),
            _ => {
                Logs::of(&self.store).prepare_snapshot(id(DISK), new, self.size())?;
                Logs::of(&self.store).unstage(id(DISK));
            }
        }
        self.close()?;
        self.begun = Some(new);
        Logs::of(&self.store).snapshot(id(DISK), new, self.size())?;
        if self.rng.below(6) == 0 {
            // A death between the log and the image: the snapshot is not there.
            return Ok(());
        }
        self.points.push((new, self.now.clone()));
        self.begun = None;
        if writer { self.attach() } else { Ok(()) }
    }

    fn step(&mut self) -> Result<(), datapath::error::Error> {
        match self.rng.below(12) {
            // Writing is what happens to an open disk only.
            0..5 => {
                self.attach()?;
                self.write();
            }
            5 => self.close()?,
            6 | 7 => self.take_snapshot(None)?,
            8 => {
                let again = self.begun;
                if again.is_some() {
                    self.take_snapshot(again)?;
                }
            }
            9 => {
                if self.points.len() > 1 {
                    let index = self.rng.below(self.points.len() as u64) as usize;
                    let (gone, _) = self.points.remove(index);
                    Logs::of(&self.store).forget(gone)?;
                }
            }
            10 => {
                let writer = self.tracker.is_some();
                self.close()?;
                let more = self.now.len() + 1 + self.rng.below(9) as usize;
                self.now.resize(more, 0);
                if writer {
                    self.attach()?;
                }
            }
            // Here no disk has an image, so all logs seem to be of disks that are gone: those that
            // are of none of ours are.
            11 if self.rng.below(2) == 0 => {
                let ours: Vec<Uuid> = self.points.iter().map(|point| point.0).collect();
                for dead in Logs::of(&self.store).forgettable()? {
                    if dead != id(DISK) && !ours.contains(&dead) {
                        assert!(Logs::of(&self.store).forget(dead)?, "{dead} was told to be ready");
                    }
                }
            }
            // The process dies.
            _ => self.tracker = None,
        }
        Ok(())
    }

    fn check(&mut self) {
        let mut points = self.points.clone();
        points.push((id(DISK), self.now.clone()));
        let logs = Logs::of(&self.store);
        let live = self.tracker.as_ref().map(|tracker| tracker.map());
        for (index, (from, before)) in points.iter().enumerate() {
            for (to, after) in &points[index + 1..] {
                let live = live.as_ref().map(|map| (id(DISK), map));
                let size = after.len() as u64 * REGION;
                let difference = logs.diff(*from, *to, size, live).unwrap();
                match &difference {
                    Difference::Known(_) => self.known += 1,
                    Difference::Everything { .. } => self.unknown += 1,
                }
                let said = difference.clone().into_map(size);
                for (region, value) in after.iter().enumerate() {
                    let same = before.get(region) == Some(value);
                    assert!(
                        same || said.get(region as u64),
                        "{from} to {to}: region {region} differs, and is not called changed"
                    );
                }
            }
        }
    }
}

fn seed() -> u64 {
    let given = std::env::var("CHANGE_SEED").ok().and_then(|text| text.parse().ok());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = given.unwrap_or_else(|| u64::try_from(now.as_micros()).unwrap() | 1);
    println!("CHANGE_SEED={seed}");
    seed
}

#[test]
fn what_differs_is_called_changed_wherever_the_power_goes() {
    let seed = seed();
    let (mut known, mut unknown, mut cuts) = (0, 0, 0);
    for round in 0..1500 {
        let mut world = World::new(seed.wrapping_add(round), round % 2 == 1);
        for _ in 0..25 {
            if world.rng.below(4) == 0 {
                let call = world.store.calls() + world.rng.below(10);
                world.store.cut_at(Some(call));
            }
            let result = world.step();
            if world.store.is_dark() {
                cuts += 1;
                // The process is gone, and what was not synced may be.
                world.tracker = None;
                let luck = world.rng.below(10);
                let mut rng = world.rng.clone();
                world.store = world.store.reboot(&mut rng, luck);
                world.rng = rng;
            } else {
                world.store.cut_at(None);
                result.unwrap();
            }
            world.check();
        }
        known += world.known;
        unknown += world.unknown;
    }
    println!("{known} differences known, {unknown} not, {cuts} cuts");
    assert!(known > 10_000 && unknown > 1000 && cuts > 1000);
}

/// Without accidents exactly what was written is called changed.
#[test]
fn a_chain_of_snapshots_says_exactly_what_was_written() {
    let seed = seed();
    let mut rng = Rng::new(seed);
    let store = Simulated::new(false);
    let (size, logs) = (100 * REGION - 512, Logs::of(&store));
    assert!(logs.enable(id(DISK), size).unwrap());
    assert!(!logs.enable(id(DISK), size).unwrap(), "it was before");
    let mut written: Vec<Map> = Vec::new();
    for number in 10..16 {
        let tracker = Tracker::open(&store, id(DISK), size).unwrap().unwrap();
        let mut map = Map::empty(size);
        for _ in 0..8 {
            let at = rng.below(size - 1);
            let length = 1 + rng.below((size - at).min(4 * REGION) - 1);
            tracker.touched(at, length);
            map.set(&(at..at + length));
        }
        tracker.close().unwrap();
        assert_eq!(tracker.map(), map);
        assert!(logs.snapshot(id(DISK), id(number), size).unwrap());
        written.push(map);
    }
    let union = |from: usize, to: usize| {
        let mut all = Map::empty(size);
        written[from + 1..=to].iter().for_each(|map| all.add(map));
        Difference::Known(all)
    };
    let diff = |from: u64, to: u64| logs.diff(id(from), id(to), size, None).unwrap();
    for from in 0..6 {
        for to in from..6 {
            assert_eq!(diff(10 + from as u64, 10 + to as u64), union(from, to));
        }
        assert_eq!(diff(10 + from as u64, DISK), union(from, 5));
    }
    let backwards = "does not come after";
    assert!(matches!(diff(12, 11), Difference::Everything { why } if why.contains(backwards)));

    // One in the middle goes: what it had is in the next one.
    assert!(logs.forget(id(12)).unwrap() && logs.forget(id(12)).unwrap());
    assert_eq!(diff(11, 13), union(1, 3));
    let why = format!("{} has no log of changes", id(12));
    assert_eq!(diff(12, 13), Difference::Everything { why });
    // The last one's next is in use: it waits.
    let tracker = Tracker::open(&store, id(DISK), size).unwrap().unwrap();
    assert!(!logs.forget(id(15)).unwrap());
    let open = format!("the log of {} was not closed", id(DISK));
    assert_eq!(diff(14, DISK), Difference::Everything { why: open });
    tracker.touched(0, 1);
    let live = tracker.map();
    let live = Some((id(DISK), &live));
    let Difference::Known(map) = logs.diff(id(15), id(DISK), size, live).unwrap() else { panic!() };
    assert_eq!((map.count(), map.get(0)), (1, true));
    tracker.close().unwrap();
    assert!(logs.forget(id(15)).unwrap());
    assert_eq!(diff(14, DISK), {
        let mut all = written[5].clone();
        all.add(&map);
        Difference::Known(all)
    });
    assert!(logs.disable(id(DISK)).unwrap() && !logs.disable(id(DISK)).unwrap());
    assert!(matches!(diff(14, DISK), Difference::Everything { .. }));
    assert!(Tracker::open(&store, id(DISK), size).unwrap().is_none());
}

#[test]
fn a_log_that_was_not_closed_calls_everything_changed_until_the_next_snapshot() {
    let store = Simulated::new(false);
    let (size, logs) = (10 * REGION, Logs::of(&store));
    logs.enable(id(DISK), size).unwrap();
    logs.snapshot(id(DISK), id(2), size).unwrap();
    drop(Tracker::open(&store, id(DISK), size).unwrap());
    let head = LogFile::open(&store, id(DISK), false).unwrap().unwrap().head().unwrap();
    assert!(!head.consistent, "marked before anything is written");
    let tracker = Tracker::open(&store, id(DISK), size).unwrap().unwrap();
    assert_eq!(tracker.map(), Map::full(size));
    tracker.close().unwrap();
    let diff = |from: u64| logs.diff(id(from), id(DISK), size, None).unwrap();
    assert_eq!(diff(2), Difference::Known(Map::full(size)));
    logs.snapshot(id(DISK), id(3), size).unwrap();
    assert_eq!(diff(3), Difference::Known(Map::empty(size)));
    // Put back to a snapshot.
    logs.spoil_all(id(DISK)).unwrap();
    assert!(matches!(diff(3), Difference::Everything { .. }));
}

/// Files that are no logs, or say what cannot be, are not believed, and take no memory.
#[test]
fn a_damaged_log_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Directory::init(dir.path()).unwrap();
    let logs = Logs::of(&store);
    let size = 10 * REGION;
    logs.enable(id(DISK), size).unwrap();
    logs.snapshot(id(DISK), id(2), size).unwrap();
    let path = dir.path().join(format!("{}.cbtlog", id(DISK)));
    let sound = std::fs::read(&path).unwrap();
    let diff = || logs.diff(id(2), id(DISK), size, None).unwrap();
    assert!(matches!(diff(), Difference::Known(_)));
    let mut damages: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    damages.insert("is shorter than the head of a log", sound[..40].to_vec());
    damages.insert("is shorter than its bitmap", sound[..49].to_vec());
    let mut huge = sound.clone();
    huge[40..48].copy_from_slice(&(32_u64 << 40).to_le_bytes());
    damages.insert("is shorter than its bitmap ", huge.clone());
    huge[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
    damages.insert("is not a log of changes", huge);
    let mut stranger = sound.clone();
    stranger[0] ^= 1;
    damages.insert("does not follow the one of", stranger);
    for (what, bytes) in damages {
        std::fs::write(&path, bytes).unwrap();
        let Difference::Everything { why } = diff() else { panic!("{what}") };
        assert!(why.contains(what.trim_end()), "{why}");
    }
    // A circle.
    let path = dir.path().join(format!("{}.cbtlog", id(2)));
    let mut own = std::fs::read(&path).unwrap();
    own[..16].copy_from_slice(id(2).as_bytes());
    own[16..32].copy_from_slice(id(2).as_bytes());
    std::fs::write(&path, own).unwrap();
    let Difference::Everything { why } = diff() else { panic!() };
    assert!(why.contains("in a circle"), "{why}");
}

/// The logs are in the directory of the images, and the tree does not mind.
#[test]
fn a_tree_with_logs_is_as_one_without() {
    let dir = tempfile::tempdir().unwrap();
    let tree = vhd::Tree::init(dir.path()).unwrap();
    let store = Directory::open(dir.path()).unwrap();
    Logs::of(&store).enable(id(DISK), 1 << 30).unwrap();
    let guard = tree.lock(std::time::Instant::now() + std::time::Duration::from_secs(20)).unwrap();
    assert_eq!(tree.recover(&guard).unwrap().removed, Vec::<String>::new());
    assert!(tree.list().unwrap().nodes.is_empty());
    assert!(store.exists(&At::new(Area::Images, format!("{}.cbtlog", id(DISK)))).unwrap());
}

#[test]
fn bitmaps_of_an_export_say_what_the_maps_say() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::File::create(&path).unwrap().set_len(8 * REGION).unwrap();
    let plan = datapath::disk::Plan {
        leaf: datapath::disk::Layer { path, format: datapath::disk::Format::Raw },
        backing: Vec::new(),
        read_only: false,
    };
    let drive = datapath::disk::Drive::open(&plan, datapath::disk::Options::default()).unwrap();
    let mut map = Map::empty(8 * REGION);
    map.set(&(2 * REGION..4 * REGION));
    let named = Named { name: "since".to_owned(), bitmap: Arc::new(map) };
    let export = WithBitmaps::new(drive, vec![named]);
    assert_eq!(export.bitmaps(), ["since"]);
    let mut found = Vec::new();
    export.changed("since", REGION, 4 * REGION, 10, &mut found).unwrap();
    let run = |length, dirty| Changed { length, dirty };
    assert_eq!(found, [run(REGION, false), run(2 * REGION, true), run(REGION, false)]);
    let error = export.changed("other", 0, 1, 1, &mut found).unwrap_err();
    assert_eq!(error.what, "no bitmap has that name");
    assert!(export.changed("since", 8 * REGION, 1, 1, &mut found).is_err());
    export.write(0, &[1; 512], true).unwrap();
}
