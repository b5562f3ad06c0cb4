//! A store in memory that loses power.
//!
//! What was not synced when the power goes may or may not have reached the disk, sector by sector
//! and in any order; changes of names that were not synced survive as a beginning of their
//! sequence, as journalling file systems keep them. Calls are counted, and at a chosen one the
//! power goes: every call after it fails.
#![allow(dead_code, reason = "each test uses its part")]

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vhd::store::{Area, At, Blob, Held, Stat, Store};
use vhd::{Error, Result};

const SECTOR: u64 = 512;

/// What a volume holds where nothing was written.
const STALE: u8 = 0xa5;

/// Volumes come in multiples of this.
const EXTENT: u64 = 4 << 20;

/// Small, fast and seeded: xorshift64*.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit.max(1)
    }
}

/// What a file holds: its sectors that are not zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Content {
    length: u64,
    sectors: HashMap<u64, Arc<[u8; 512]>>,
}

/// A change of a file that is not durable yet.
#[derive(Clone, Debug)]
enum Change {
    Sector(u64, Option<Arc<[u8; 512]>>),
    Length(u64),
}

#[derive(Clone, Debug, Default)]
struct Thing {
    now: Content,
    durable: Content,
    pending: Vec<Change>,
    /// Counts what was changed.
    changes: i64,
    /// An image on a store of volumes; what is said about disks is kept elsewhere there.
    volume: bool,
}

/// A change of names that is not durable yet.
#[derive(Clone, Debug)]
enum Naming {
    Set(At, u64),
    Remove(At),
    Rename(At, At),
}

#[derive(Clone, Debug, Default)]
struct World {
    things: BTreeMap<u64, Thing>,
    names: BTreeMap<At, u64>,
    durable_names: BTreeMap<At, u64>,
    naming: Vec<Naming>,
    next_id: u64,
    volumes: bool,
    /// Calls that change something so far.
    calls: u64,
    /// The call at which the power goes.
    cut_at: Option<u64>,
    /// The call that fails for want of space, and all like it after.
    full_at: Option<u64>,
    /// Writes after this call find no space for what is not there yet, and get half-way.
    crowded_at: Option<u64>,
    /// Syncs after this call fail, and nobody knows what became of the data.
    deaf_at: Option<u64>,
    /// Writes with these numbers fail, and change nothing.
    bad: Range<u64>,
    dark: bool,
    stamp: i64,
}

impl Content {
    fn get(&self, sector: u64) -> Option<&Arc<[u8; 512]>> {
        self.sectors.get(&sector)
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Sector(sector, Some(bytes)) => {
                self.sectors.insert(*sector, bytes.clone());
                self.length = self.length.max((sector + 1) * SECTOR);
            }
            Change::Sector(sector, None) => drop(self.sectors.remove(sector)),
            Change::Length(length) => {
                self.length = *length;
                self.sectors.retain(|sector, _| sector * SECTOR < *length);
            }
        }
    }
}

impl World {
    fn call(&mut self) -> io::Result<()> {
        if self.dark {
            return Err(io::Error::other("the power is off"));
        }
        if self.cut_at == Some(self.calls) {
            self.dark = true;
            return Err(io::Error::other("the power is off"));
        }
        self.calls += 1;
        if self.full_at.is_some_and(|at| self.calls > at) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn look(&self) -> io::Result<()> {
        if self.dark { Err(io::Error::other("the power is off")) } else { Ok(()) }
    }

    fn name(&mut self, change: Naming) {
        self.stamp += 1;
        apply_naming(&mut self.names, &change);
        self.naming.push(change);
    }
}

fn apply_naming(names: &mut BTreeMap<At, u64>, change: &Naming) {
    match change {
        Naming::Set(at, id) => drop(names.insert(at.clone(), *id)),
        Naming::Remove(at) => drop(names.remove(at)),
        Naming::Rename(from, to) => {
            if let Some(id) = names.remove(from) {
                names.insert(to.clone(), id);
            }
        }
    }
}

/// The store; clones are the same one.
#[derive(Clone)]
pub(crate) struct Simulated(Arc<Mutex<World>>);

impl Simulated {
    /// An empty store of files, or of volumes: no hard links, lengths in extents.
    pub(crate) fn new(volumes: bool) -> Self {
        Self(Arc::new(Mutex::new(World { volumes, next_id: 1, ..World::default() })))
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls that have changed something so far.
    pub(crate) fn calls(&self) -> u64 {
        self.world().calls
    }

    /// From the call with this number on, counted as [`Simulated::calls`] does, the power is off.
    pub(crate) fn cut_at(&self, call: Option<u64>) {
        self.world().cut_at = call;
    }

    /// After this many calls every further one finds the disk full.
    pub(crate) fn full_after(&self, call: Option<u64>) {
        self.world().full_at = call;
    }

    /// After this many calls there is no space for sectors that hold nothing yet; what is there can
    /// be written over, and synced.
    pub(crate) fn crowded_after(&self, call: Option<u64>) {
        self.world().crowded_at = call;
    }

    /// Of the calls with these numbers, those that write fail.
    pub(crate) fn bad_writes(&self, calls: Range<u64>) {
        self.world().bad = calls;
    }

    /// After this many calls syncs fail.
    pub(crate) fn deaf_after(&self, call: Option<u64>) {
        self.world().deaf_at = call;
    }

    pub(crate) fn is_dark(&self) -> bool {
        self.world().dark
    }

    /// Another store with the same content and history.
    pub(crate) fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(self.world().clone())))
    }

    /// The same store for another process.
    pub(crate) fn restart(&self) -> Self {
        let mut world = self.world().clone();
        (world.dark, world.cut_at, world.crowded_at, world.deaf_at) = (false, None, None, None);
        Self(Arc::new(Mutex::new(world)))
    }

    /// What is there when the power comes back. `luck` of 8 unsynced changes arrived.
    pub(crate) fn reboot(&self, rng: &mut Rng, luck: u64) -> Self {
        let mut world = self.world().clone();
        world.dark = false;
        (world.cut_at, world.crowded_at, world.deaf_at) = (None, None, None);
        let kept = match luck {
            0 => 0,
            8.. => world.naming.len() as u64,
            _ => rng.below(world.naming.len() as u64 + 1),
        };
        for change in world.naming.iter().take(kept as usize) {
            apply_naming(&mut world.durable_names, change);
        }
        world.names = world.durable_names.clone();
        world.naming.clear();
        for thing in world.things.values_mut() {
            let mut content = std::mem::take(&mut thing.durable);
            for change in std::mem::take(&mut thing.pending) {
                if rng.below(8) < luck {
                    content.apply(&change);
                }
            }
            thing.now = content.clone();
            thing.durable = content;
        }
        let named: std::collections::BTreeSet<u64> = world.names.values().copied().collect();
        world.things.retain(|id, _| named.contains(id));
        Self(Arc::new(Mutex::new(world)))
    }

    /// Names in an area, for assertions.
    pub(crate) fn names_in(&self, area: Area) -> Vec<String> {
        let world = self.world();
        world.names.keys().filter(|at| at.area == area).map(|at| at.name.clone()).collect()
    }
}

struct Open {
    world: Simulated,
    id: u64,
    write: bool,
    path: PathBuf,
}

impl Open {
    fn thing<T>(&self, look: impl FnOnce(&Thing) -> T) -> io::Result<T> {
        let world = self.world.world();
        world.look()?;
        world.things.get(&self.id).map(look).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn change(&self, changes: Vec<Change>) -> io::Result<()> {
        let mut world = self.world.world();
        let was_dark = world.dark;
        let bad = world.bad.contains(&world.calls);
        let mut result = world.call();
        if bad && result.is_ok() {
            return Err(io::Error::other("a bad place"));
        }
        let crowded = world.crowded_at.is_some_and(|at| world.calls > at);
        let Some(thing) = world.things.get_mut(&self.id) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let takes_space = |change: &Change| match change {
            Change::Sector(sector, Some(_)) => !thing.now.sectors.contains_key(sector),
            _ => false,
        };
        if result.is_ok() && crowded && !thing.volume && changes.iter().any(takes_space) {
            result = Err(io::ErrorKind::StorageFull.into());
        }
        let count = match &result {
            Ok(()) => changes.len(),
            Err(_) if was_dark => 0,
            // A write that is cut, or finds no space, has got half-way: in whole pages.
            Err(_) => changes.len() / 2 / 8 * 8,
        };
        for change in changes.into_iter().take(count) {
            thing.changes += 1;
            thing.now.apply(&change);
            thing.pending.push(change);
        }
        result
    }
}

impl Blob for Open {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.thing(|thing| {
            let end = thing.now.length.min(offset + buf.len() as u64);
            let mut at = offset;
            while at < end {
                let (sector, within) = (at / SECTOR, (at % SECTOR) as usize);
                let count = (SECTOR as usize - within).min((end - at) as usize);
                let target = &mut buf[(at - offset) as usize..][..count];
                match thing.now.get(sector) {
                    Some(bytes) => target.copy_from_slice(&bytes[within..within + count]),
                    // A volume holds what its last owner left there.
                    None => target.fill(if thing.volume { STALE } else { 0 }),
                }
                at += count as u64;
            }
            end.saturating_sub(offset) as usize
        })
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        assert!(self.write, "{}: written, but opened for reading", self.path.display());
        let (volume, length) = self.thing(|thing| (thing.volume, thing.now.length))?;
        let end = offset + buf.len() as u64;
        if volume && end > length {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut changes = Vec::new();
        let mut at = offset;
        while at < end {
            let (sector, within) = (at / SECTOR, (at % SECTOR) as usize);
            let count = (SECTOR as usize - within).min((end - at) as usize);
            let mut bytes = [0; 512];
            if count < 512 {
                self.read_at(&mut bytes, sector * SECTOR)?;
            }
            bytes[within..within + count].copy_from_slice(&buf[(at - offset) as usize..][..count]);
            changes.push(Change::Sector(sector, Some(Arc::new(bytes))));
            at += count as u64;
        }
        // A length that is not in sectors: the last one is shorter.
        if end > length && !end.is_multiple_of(SECTOR) {
            changes.push(Change::Length(end));
        }
        self.change(changes)
    }

    fn stat(&self) -> io::Result<Stat> {
        self.thing(|thing| Stat {
            length: thing.now.length,
            allocated: if thing.volume {
                thing.now.length
            } else {
                thing.now.sectors.len() as u64 * SECTOR
            },
            id: (1, self.id),
            modified: (thing.changes, 0),
            fixed_length: thing.volume,
        })
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let volume = self.thing(|thing| thing.volume)?;
        let length = if volume { length.next_multiple_of(EXTENT) } else { length };
        self.change(vec![Change::Length(length)])
    }

    fn sync(&self) -> io::Result<()> {
        let mut world = self.world.world();
        world.call()?;
        if world.deaf_at.is_some_and(|at| world.calls > at) {
            return Err(io::Error::other("the disk does not answer"));
        }
        if let Some(thing) = world.things.get_mut(&self.id) {
            thing.durable = thing.now.clone();
            thing.pending.clear();
        }
        Ok(())
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<bool> {
        if self.thing(|thing| thing.volume)? {
            return Ok(false);
        }
        let sectors = offset.div_ceil(SECTOR)..(offset + length) / SECTOR;
        let held = self.thing(|thing| {
            let held = thing.now.sectors.keys().copied();
            held.filter(|sector| sectors.contains(sector)).collect::<Vec<_>>()
        })?;
        self.change(held.into_iter().map(|sector| Change::Sector(sector, None)).collect())?;
        Ok(true)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        self.thing(|thing| {
            if thing.volume {
                return (from < thing.now.length).then_some(from..thing.now.length);
            }
            let first =
                thing.now.sectors.keys().copied().filter(|at| (at + 1) * SECTOR > from).min()?;
            let mut end = first;
            while thing.now.sectors.contains_key(&end) {
                end += 1;
            }
            Some((first * SECTOR).max(from)..(end * SECTOR).min(thing.now.length))
        })
    }
}

impl Store for Simulated {
    fn path(&self) -> PathBuf {
        PathBuf::from("simulated")
    }

    fn path_of(&self, at: &At) -> PathBuf {
        self.path().join(at.to_string())
    }

    fn names(&self, area: Area) -> Result<Vec<String>> {
        self.world().look().map_err(Error::io(&self.path(), "list"))?;
        Ok(self.names_in(area))
    }

    fn exists(&self, at: &At) -> Result<bool> {
        let world = self.world();
        world.look().map_err(Error::io(&self.path_of(at), "stat"))?;
        Ok(world.names.contains_key(at))
    }

    fn open(&self, at: &At, write: bool) -> Result<Box<dyn Blob>> {
        let world = self.world();
        let found = world.look().and_then(|()| {
            world.names.get(at).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
        });
        let path = self.path_of(at);
        let id = found.map_err(Error::io(&path, "open"))?;
        Ok(Box::new(Open { world: self.clone(), id, write, path }))
    }

    fn create(&self, at: &At, room: u64) -> Result<Box<dyn Blob>> {
        let path = self.path_of(at);
        let failed = Error::io(&path, "create");
        let mut world = self.world();
        if world.names.contains_key(at) {
            return Err(failed(io::ErrorKind::AlreadyExists.into()));
        }
        world.call().map_err(failed)?;
        let id = world.next_id;
        world.next_id += 1;
        let image = [".vhd", ".new"].iter().any(|end| at.name.ends_with(end));
        let mut thing = Thing { volume: world.volumes && image, ..Thing::default() };
        if thing.volume {
            thing.now.length = room.max(1).next_multiple_of(EXTENT);
            thing.durable.length = thing.now.length;
        }
        world.things.insert(id, thing);
        world.name(Naming::Set(at.clone(), id));
        Ok(Box::new(Open { world: self.clone(), id, write: true, path }))
    }

    fn link(&self, from: &At, to: &At) -> Result<bool> {
        let path = self.path_of(to);
        let mut world = self.world();
        if world.volumes {
            return Ok(false);
        }
        world.call().map_err(Error::io(&path, "link"))?;
        let Some(id) = world.names.get(from).copied() else {
            return Err(Error::io(&path, "link")(io::ErrorKind::NotFound.into()));
        };
        world.name(Naming::Set(to.clone(), id));
        Ok(true)
    }

    fn rename(&self, from: &At, to: &At) -> Result<()> {
        let path = self.path_of(from);
        let mut world = self.world();
        if !world.names.contains_key(from) {
            world.look().map_err(Error::io(&path, "rename"))?;
            return Err(Error::io(&path, "rename")(io::ErrorKind::NotFound.into()));
        }
        world.call().map_err(Error::io(&path, "rename"))?;
        world.name(Naming::Rename(from.clone(), to.clone()));
        Ok(())
    }

    fn remove(&self, at: &At) -> Result<bool> {
        let path = self.path_of(at);
        let mut world = self.world();
        world.look().map_err(Error::io(&path, "remove"))?;
        if !world.names.contains_key(at) {
            return Ok(false);
        }
        // Space is given back also when there is none left.
        let full = world.full_at.take();
        let called = world.call();
        world.full_at = full;
        called.map_err(Error::io(&path, "remove"))?;
        world.name(Naming::Remove(at.clone()));
        Ok(true)
    }

    fn sync(&self, area: Area) -> Result<()> {
        let mut world = self.world();
        world.call().map_err(Error::io(&self.path(), "sync"))?;
        // Up to the last change in this area: earlier ones elsewhere come along.
        let touches = |change: &Naming| match change {
            Naming::Set(at, _) | Naming::Remove(at) => at.area == area,
            Naming::Rename(from, to) => from.area == area || to.area == area,
        };
        let count = world.naming.iter().rposition(touches).map_or(0, |last| last + 1);
        let done: Vec<Naming> = world.naming.drain(..count).collect();
        for change in &done {
            apply_naming(&mut world.durable_names, change);
        }
        Ok(())
    }

    fn lock(&self, _deadline: Instant) -> Result<Held> {
        Ok(Box::new(()))
    }

    fn try_lock_maintenance(&self) -> Result<Option<Held>> {
        Ok(Some(Box::new(())))
    }

    fn try_lock_shared(&self) -> Option<Held> {
        Some(Box::new(()))
    }

    fn stamp(&self) -> Result<[(i64, i64); 2]> {
        Ok([(self.world().stamp, 0); 2])
    }
}
