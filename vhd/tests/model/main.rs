//! Random sequences of everything a store does, with power cuts and a full disk in between,
//! against a model in memory. Every byte of every disk is compared.
//!
//! `MODEL_SEQUENCES` says how many sequences (2,000 without), `MODEL_SEED` where to begin. A failure
//! prints the seed and the shortest sequence that fails.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod action;
#[path = "../simulated/mod.rs"]
mod simulated;
mod steps;

use std::collections::BTreeMap;
use std::time::Instant;

use action::{Action, is_refusal, sector_of};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use proptest_state_machine::ReferenceStateMachine;
use simulated::{Rng, Simulated};
use steps::{Sequences, Step};
use uuid::Uuid;
use vhd::check::{Severity, check_blob};
use vhd::store::{Area, At, Store};
use vhd::tree::{Format, Kind};
use vhd::{BLOCK, Disk, Error, ExtentKind, Extents, Mode, SECTOR, Tree};

/// What a disk holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Expected {
    uuid: Uuid,
    format: Format,
    size: u64,
    /// The number of the write that each sector holds; none is zeros.
    sectors: BTreeMap<u64, u64>,
    /// What a sector may hold instead after a power cut.
    older: BTreeMap<u64, Vec<u64>>,
    open: bool,
}

struct World {
    store: Simulated,
    tree: Tree,
    disks: Vec<Expected>,
    writes: u64,
    ids: u128,
    volumes: bool,
    /// A group that was done ahead in part, and its members.
    prepared: Option<(Uuid, Vec<(Uuid, Uuid)>)>,
}

impl World {
    fn new(volumes: bool) -> Self {
        let store = Simulated::new(volumes);
        let tree = Tree::on(Box::new(store.clone()));
        Self { store, tree, disks: Vec::new(), writes: 0, ids: 0, volumes, prepared: None }
    }

    fn id(&mut self) -> Uuid {
        self.ids += 1;
        Uuid::from_u128(self.ids)
    }

    fn pick(&self, index: usize) -> Option<usize> {
        index.checked_rem(self.disks.len())
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Cut { step, call, luck, seed } => {
                self.cut(step, *call, Some((*luck, *seed)));
            }
            Step::Kill { step, call } => self.cut(step, *call, None),
            Step::Full { step, call } => {
                let Some(mut action) = self.prepare(step) else { return };
                self.store.full_after(Some(self.store.calls() + call));
                let result = action.run(&self.tree);
                self.store.full_after(None);
                match result {
                    Ok(()) => self.done(&action),
                    Err(error) => {
                        assert!(
                            error.is_no_space() || is_refusal(&error),
                            "a full disk is told as {error:?}"
                        );
                        self.older_write(&action);
                        let reverted = self.settle(&action, false);
                        // The retry works, once there is space.
                        match action.run(&self.tree) {
                            Ok(()) if reverted => {}
                            Ok(()) => self.done(&action),
                            Err(error) => assert!(is_refusal(&error), "{step:?}: {error:?}"),
                        }
                    }
                }
            }
            Step::Layer { disk, place, sectors } if self.disks.len() < 8 => {
                let (place, sectors) = (*place, *sectors);
                self.run(&Step::Write { disk: *disk, place, sectors });
                self.run(&Step::Snapshot { disk: *disk });
                let last = self.disks.len().saturating_sub(1);
                self.run(&Step::Delete { disk: last });
                let place = place.rotate_left(9);
                return self.run(&Step::Write { disk: *disk, place, sectors });
            }
            plain => {
                let Some(mut action) = self.prepare(plain) else { return };
                match action.run(&self.tree) {
                    Ok(()) => self.done(&action),
                    Err(error) => assert!(is_refusal(&error), "{plain:?}: {error:?}"),
                }
            }
        }
        self.compare();
    }

    /// Stops a step at a call: by a power cut with its luck and seed, or by a kill.
    fn cut(&mut self, step: &Step, call: u64, power: Option<(u64, u64)>) {
        let Some(mut action) = self.prepare(step) else { return };
        self.store.cut_at(Some(self.store.calls() + call));
        let result = action.run(&self.tree);
        let dark = self.store.is_dark();
        self.store.cut_at(None);
        if dark {
            assert!(result.is_err(), "{step:?} succeeded in the dark");
            self.older_write(&action);
        } else {
            // The cut comes right after it, without a word to the store.
            match result {
                Ok(()) => self.done(&action),
                Err(error) => assert!(is_refusal(&error), "{step:?}: {error:?}"),
            }
        }
        self.store = match power {
            Some((luck, seed)) => self.store.reboot(&mut Rng::new(seed), luck),
            None => self.store.restart(),
        };
        self.tree = Tree::on(Box::new(self.store.clone()));
        let reverted = self.settle(&action, power.is_some());
        if dark {
            // The retry works.
            match action.run(&self.tree) {
                Ok(()) if reverted => {}
                Ok(()) => self.done(&action),
                Err(error) => assert!(is_refusal(&error), "{step:?} again: {error:?}"),
            }
        }
    }

    /// A write that did not end may have changed any of its sectors.
    fn older_write(&mut self, action: &Action) {
        if let Action::Write { uuid, first, count, number, .. } = action
            && let Some(disk) = self.disks.iter_mut().find(|disk| disk.uuid == *uuid)
        {
            for sector in *first..first + count {
                let now = disk.sectors.get(&sector).copied().unwrap_or(0);
                let older = disk.older.entry(sector).or_default();
                older.extend([now, *number]);
            }
        }
    }

    /// After a cut: a listing shows each disk there was, then recovery runs, and what the store
    /// holds is what is expected from now on, if it is one of the states that may be.
    ///
    /// Answers whether a revert was found done: its source may have lost since what was not flushed.
    fn settle(&mut self, action: &Action, rebooted: bool) -> bool {
        let listing = self.tree.list().unwrap();
        let seen: Vec<Uuid> = listing
            .nodes
            .iter()
            .filter(|node| node.kind == Kind::Leaf)
            .map(|node| node.uuid)
            .collect();
        for disk in &self.disks {
            let deleted = matches!(action, Action::Delete { uuid } if *uuid == disk.uuid);
            assert!(
                deleted || seen.contains(&disk.uuid),
                "{} is not listed after a cut",
                disk.uuid
            );
        }
        let guard = self.tree.lock(Instant::now()).unwrap();
        let recovery = self.tree.recover(&guard).unwrap();
        assert!(recovery.failed.is_empty(), "{:?}", recovery.failed);
        drop(guard);
        let listing = self.tree.list().unwrap();
        assert!(!listing.unfinished);
        let there = |uuid: Uuid| listing.nodes.iter().any(|node| node.uuid == uuid);
        let mut reverted = false;
        match action {
            Action::Create { uuid, format, size } if there(*uuid) => {
                self.add(*uuid, *format, *size, None);
            }
            Action::Snapshot { source, new, .. } if there(*new) => {
                let source = self.disks.iter().find(|disk| disk.uuid == *source).unwrap();
                let copy = source.clone();
                self.add(*new, copy.format, copy.size, Some(copy));
            }
            Action::Group { members, .. } => {
                let made = members.iter().filter(|(_, new)| there(*new)).count();
                assert!(made == 0 || made == members.len(), "{made} of a group: {members:?}");
                if made > 0 {
                    self.done(action);
                }
            }
            Action::Delete { uuid } if !there(*uuid) => {
                self.disks.retain(|disk| disk.uuid != *uuid);
            }
            Action::Resize { uuid, size, .. } => {
                let node = listing.nodes.iter().find(|node| node.uuid == *uuid).unwrap();
                let disk = self.disks.iter_mut().find(|disk| disk.uuid == *uuid).unwrap();
                assert!(node.virtual_size == disk.size || node.virtual_size == *size);
                disk.size = node.virtual_size;
            }
            Action::Revert { vdi, to, .. } => {
                let of = |uuid: Uuid| self.disks.iter().find(|disk| disk.uuid == uuid).unwrap();
                if let Err(difference) = self.difference(of(*vdi)) {
                    let mut wanted = of(*to).clone();
                    wanted.uuid = *vdi;
                    if let Err(other) = self.difference(&wanted) {
                        panic!("neither before nor after the revert: {difference}; {other}");
                    }
                    self.become_copy(*vdi, *to);
                    reverted = true;
                }
            }
            _ => {}
        }
        // From now on what is read is what there is.
        for index in 0..self.disks.len() {
            self.collapse(index, rebooted);
        }
        reverted
    }

    fn add(&mut self, uuid: Uuid, format: Format, size: u64, copy: Option<Expected>) {
        if self.disks.iter().any(|disk| disk.uuid == uuid) {
            return;
        }
        let (sectors, older) =
            copy.map_or_else(Default::default, |copy| (copy.sectors, copy.older));
        self.disks.push(Expected { uuid, format, size, sectors, older, open: false });
    }

    fn become_copy(&mut self, vdi: Uuid, to: Uuid) {
        let source = self.disks.iter().find(|disk| disk.uuid == to).unwrap().clone();
        let disk = self.disks.iter_mut().find(|disk| disk.uuid == vdi).unwrap();
        (disk.size, disk.sectors, disk.older) = (source.size, source.sectors, source.older);
    }

    /// Reads all of a disk: each sector that is not zero, with the write it holds.
    fn read(&self, uuid: Uuid) -> Result<(u64, BTreeMap<u64, u64>), String> {
        let fail = |error: Error| format!("{uuid}: {}", error.reason());
        let disk = self.tree.open_disk(uuid, Mode::Read).map_err(fail)?;
        let mut found = BTreeMap::new();
        for extent in Extents::new(&disk, 0, disk.size()) {
            let extent = extent.map_err(fail)?;
            if extent.kind == ExtentKind::Zero {
                continue;
            }
            let mut buf = vec![0; extent.length as usize];
            disk.read_at(extent.offset, &mut buf).map_err(fail)?;
            for (index, bytes) in buf.chunks(SECTOR as usize).enumerate() {
                let sector = extent.offset / SECTOR + index as u64;
                if vhd::copy::is_zero(bytes) {
                    continue;
                }
                let write = u64::from_be_bytes(bytes[..8].try_into().unwrap());
                if bytes != &sector_of(write, sector)[..bytes.len()] {
                    return Err(format!("{uuid}: sector {sector} is torn or of elsewhere"));
                }
                found.insert(sector, write);
            }
        }
        Ok((disk.size(), found))
    }

    /// Whether a disk holds what is expected, or what it may hold after a cut.
    fn difference(&self, disk: &Expected) -> Result<BTreeMap<u64, u64>, String> {
        let (size, found) = self.read(disk.uuid)?;
        if size != disk.size {
            return Err(format!("{} has {size} bytes, not {}", disk.uuid, disk.size));
        }
        let sectors = found.keys().chain(disk.sectors.keys()).chain(disk.older.keys());
        for sector in sectors {
            let got = found.get(sector).copied().unwrap_or(0);
            let want = disk.sectors.get(sector).copied().unwrap_or(0);
            let may = disk.older.get(sector).is_some_and(|older| older.contains(&got));
            if got != want && !may {
                return Err(format!("{} sector {sector}: write {got}, not {want}", disk.uuid));
            }
        }
        Ok(found)
    }

    fn collapse(&mut self, index: usize, rebooted: bool) {
        let found = self.difference(&self.disks[index]).unwrap_or_else(|text| panic!("{text}"));
        self.disks[index].sectors = found;
        if rebooted {
            self.disks[index].older.clear();
        }
    }

    /// Without a cut: everything is exactly as expected, and nothing is left over.
    fn compare(&self) {
        for disk in &self.disks {
            let exactly = Expected { older: BTreeMap::new(), ..disk.clone() };
            self.difference(&exactly).unwrap_or_else(|text| panic!("{text}"));
        }
        let listing = self.tree.list().unwrap();
        let mut leaves: Vec<Uuid> = Vec::new();
        for node in &listing.nodes {
            assert!(node.is_ok(), "{node:?}");
            if node.format == Format::Vhd {
                let at = At::new(Area::Images, format!("{}.vhd", node.uuid));
                let blob = self.store.open(&at, false).unwrap();
                let findings = check_blob(&*blob, &self.store.path_of(&at));
                let bad = findings.iter().find(|found| found.severity == Severity::Error);
                assert!(bad.is_none(), "{bad:?}");
            }
            if node.kind == Kind::Leaf {
                leaves.push(node.uuid);
            }
        }
        let mut expected: Vec<Uuid> = self.disks.iter().map(|disk| disk.uuid).collect();
        expected.sort();
        assert_eq!(leaves, expected);
        assert!(!listing.unfinished || self.prepared.is_some(), "something is left over");
    }
}

impl World {
    fn group(&mut self, disk: usize, count: usize) -> Option<(Uuid, Vec<(Uuid, Uuid)>)> {
        let first = self.pick(disk)?;
        if count > self.disks.len() || self.disks.len() + count > 8 {
            return None;
        }
        let sources: Vec<Uuid> =
            (0..count).map(|n| self.disks[(first + n) % self.disks.len()].uuid).collect();
        let op = self.id();
        Some((op, sources.iter().map(|of| (*of, self.id())).collect()))
    }

    fn prepare(&mut self, step: &Step) -> Option<Action> {
        Some(match step {
            Step::Create { .. } | Step::Snapshot { .. } if self.disks.len() >= 8 => return None,
            Step::Create { blocks, raw } => Action::Create {
                uuid: self.id(),
                format: if *raw && !self.volumes { Format::Raw } else { Format::Vhd },
                size: blocks * BLOCK,
            },
            Step::Write { disk, place, sectors }
            | Step::Zero { disk, place, sectors }
            | Step::RogueWrite { disk, place, sectors } => {
                let rogue = matches!(step, Step::RogueWrite { .. });
                let disk = &self.disks[self.pick(*disk)?];
                // Mostly where blocks meet, since that is where the bugs are.
                let (block, within) = (place % (disk.size / BLOCK), (place >> 8) % 64);
                let first = (block * 4096 + within).saturating_sub(20);
                let count = (*sectors).min(disk.size / SECTOR - first);
                self.writes += 1;
                let number = if matches!(step, Step::Zero { .. }) { 0 } else { self.writes };
                Action::Write { uuid: disk.uuid, first, count, number, rogue }
            }
            Step::Flush { disk } => Action::Flush { uuid: self.disks[self.pick(*disk)?].uuid },
            Step::Snapshot { disk } => {
                let source = self.disks[self.pick(*disk)?].uuid;
                Action::Snapshot { op: self.id(), source, new: self.id() }
            }
            Step::Group { disk, count, ahead } => {
                let there = |uuid: &Uuid| self.disks.iter().any(|disk| disk.uuid == *uuid);
                match self.prepared.take() {
                    // What happened since may have taken it back, or not.
                    Some((op, members))
                        if members.iter().all(|(source, _)| there(source))
                            && self.disks.len() + members.len() <= 8 =>
                    {
                        Action::Group { op, members, ahead: false }
                    }
                    _ => {
                        let (op, members) = self.group(*disk, *count)?;
                        Action::Group { op, members, ahead: *ahead }
                    }
                }
            }
            Step::Prepare { disk, count } => {
                let (op, members) = self.group(*disk, *count)?;
                self.prepared = Some((op, members.clone()));
                Action::Prepare { op, members }
            }
            Step::Revert { disk, to } => {
                let vdi = self.disks[self.pick(*disk)?].uuid;
                let to = self.disks[self.pick(*to)?].uuid;
                Action::Revert { op: self.id(), vdi, to }
            }
            Step::Resize { disk, blocks } => {
                let disk = &self.disks[self.pick(*disk)?];
                // Half of them while somebody has it open; raw disks are not served.
                let (uuid, open) = (disk.uuid, blocks % 2 == 0 && disk.format == Format::Vhd);
                Action::Resize { op: self.id(), uuid, size: blocks * BLOCK, open }
            }
            Step::Delete { disk } => Action::Delete { uuid: self.disks[self.pick(*disk)?].uuid },
            Step::Maintain => Action::Maintain { batches: u64::MAX, told: false },
            Step::MaintainTold => Action::Maintain { batches: u64::MAX, told: true },
            Step::MaintainABit { batches } => Action::Maintain { batches: *batches, told: true },
            Step::Reclaim { disk } => Action::Reclaim { uuid: self.disks[self.pick(*disk)?].uuid },
            Step::Open { disk } => {
                Action::Claim { uuid: self.disks[self.pick(*disk)?].uuid, open: true }
            }
            Step::Close { disk } => {
                Action::Claim { uuid: self.disks[self.pick(*disk)?].uuid, open: false }
            }
            Step::Layer { .. } | Step::Cut { .. } | Step::Kill { .. } | Step::Full { .. } => {
                return None;
            }
        })
    }

    fn done(&mut self, action: &Action) {
        let at = |uuid: Uuid, disks: &[Expected]| disks.iter().position(|d| d.uuid == uuid);
        match action {
            Action::Create { uuid, format, size } => self.add(*uuid, *format, *size, None),
            Action::Write { uuid, first, count, number, .. } => {
                let Some(index) = at(*uuid, &self.disks) else { return };
                let disk = &mut self.disks[index];
                for sector in *first..first + count {
                    let old = disk.sectors.insert(sector, *number).unwrap_or(0);
                    disk.older.entry(sector).or_default().push(old);
                }
            }
            Action::Flush { uuid } => {
                let Some(index) = at(*uuid, &self.disks) else { return };
                self.disks[index].older.clear();
            }
            Action::Snapshot { source, new, .. } => {
                let Some(index) = at(*source, &self.disks) else { return };
                let copy = self.disks[index].clone();
                self.add(*new, copy.format, copy.size, Some(copy));
            }
            Action::Group { members, .. } => {
                for (source, new) in members {
                    let Some(index) = at(*source, &self.disks) else { continue };
                    let copy = self.disks[index].clone();
                    self.add(*new, copy.format, copy.size, Some(copy));
                }
            }
            Action::Revert { vdi, to, .. } if vdi != to => self.become_copy(*vdi, *to),
            Action::Resize { uuid, size, .. } => {
                let Some(index) = at(*uuid, &self.disks) else { return };
                self.disks[index].size = *size;
            }
            Action::Delete { uuid } => self.disks.retain(|disk| disk.uuid != *uuid),
            _ => {}
        }
    }
}

fn sequences(name: &str, volumes: bool, share: u64) {
    let read = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (count, seed) = (read("MODEL_SEQUENCES", 2000) * share / 4, read("MODEL_SEED", 1));
    println!("{name}: {count} sequences, MODEL_SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8] = u8::from(volumes);
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let config = Config {
        cases: u32::try_from(count).unwrap(),
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..Config::default()
    };
    let started = Instant::now();
    // One report at the end, instead of one for each try on the way to the shortest sequence.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let strategy = Sequences::sequential_strategy(1..40);
    let result = TestRunner::new_with_rng(config, rng).run(&strategy, |((), steps, seen)| {
        let mut world = World::new(volumes);
        for step in &steps {
            if let Some(seen) = &seen {
                seen.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
            world.run(step);
        }
        Ok(())
    });
    std::panic::set_hook(hook);
    println!("{name}: {:.1} s", started.elapsed().as_secs_f64());
    if let Err(error) = result {
        panic!("MODEL_SEED={seed}: {error}");
    }
}

#[test]
fn sequences_on_files() {
    sequences("files", false, 2);
}

#[test]
fn sequences_on_volumes() {
    sequences("volumes", true, 2);
}
