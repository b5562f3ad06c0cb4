//! All logs of a store. The caller holds the store's lock.
//!
//! # A snapshot
//!
//! ```text
//! 1  tmp/<disk>.cbtlog    the new log: nothing has changed, the log before it is the snapshot's
//! 2  <disk>.cbtlog        says that the log after it is the disk's
//! 3  <snapshot>.cbtlog    a second name of it (or, on volumes, another one)
//! 4  <before>.cbtlog      says that the log after it is the snapshot's
//! 5  the new log gets the disk's name
//! ```
//!
//! The disk is paused, or closed, and the image's own snapshot comes after this. Cut anywhere, the
//! walk from an older snapshot to the disk meets all that was tracked: until 5 the disk's log is the
//! old one, whichever names lead to it. A walk looks whether each log names the one that it came
//! from, so that a half-made change is seen and not believed.
//!
//! When the same snapshot is made again, after a cut, the disk may have been written in between. If
//! it was tracked all the time, what the snapshot's log has goes back to the disk's first. If not,
//! or if it cannot be told, both are spoiled: they call everything changed.

use std::collections::HashSet;

use uuid::Uuid;

use super::log::{Head, LogFile, name_of};
use super::map::Map;
use crate::error::Result;
use crate::store::{Area, At, Store};

/// What changed between two points in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// These regions did, or may have; all others did not.
    Known(Map),
    /// It is not known, so everything may have.
    Everything {
        /// For people.
        why: String,
    },
}

impl Difference {
    /// As a map, of a disk of `size` bytes.
    pub fn into_map(self, size: u64) -> Map {
        match self {
            Self::Known(map) => map,
            Self::Everything { .. } => Map::full(size),
        }
    }
}

/// The logs of a store.
#[derive(Clone, Copy)]
pub struct Logs<'a> {
    store: &'a dyn Store,
}

impl<'a> Logs<'a> {
    /// Of this store.
    pub fn of(store: &'a dyn Store) -> Self {
        Self { store }
    }

    fn open(&self, disk: Uuid) -> Result<Option<LogFile>> {
        LogFile::open(self.store, disk, true)
    }

    fn staged_at(disk: Uuid) -> At {
        At::new(Area::Tmp, format!("{disk}.cbtlog"))
    }

    /// A log, complete and ready to get its name.
    fn stage(&self, disk: Uuid, head: &Head) -> Result<At> {
        let at = Self::staged_at(disk);
        self.store.remove(&at)?;
        LogFile::create(self.store, &at, head, &Map::empty(head.size))?;
        Ok(at)
    }

    fn place(&self, staged: &At, disk: Uuid) -> Result<()> {
        self.store.rename(staged, &name_of(disk))?;
        self.store.sync(Area::Images)
    }

    /// Whether changes of a disk are tracked.
    pub fn is_enabled(&self, disk: Uuid) -> Result<bool> {
        self.store.exists(&name_of(disk))
    }

    /// From now on changes of a disk of `size` bytes are tracked. It is not being written. Answers
    /// whether they were not before.
    pub fn enable(&self, disk: Uuid, size: u64) -> Result<bool> {
        if self.is_enabled(disk)? {
            return Ok(false);
        }
        let (parent, child) = (Uuid::nil(), Uuid::nil());
        let staged = self.stage(disk, &Head { parent, child, consistent: true, size })?;
        self.place(&staged, disk)?;
        Ok(true)
    }

    /// Changes of a disk are not tracked any more. Answers whether they were.
    pub fn disable(&self, disk: Uuid) -> Result<bool> {
        if let Some(log) = self.open(disk)?
            && let Ok(head) = log.head()
        {
            self.name_child(head.parent, disk, Uuid::nil())?;
        }
        let was = self.store.remove(&name_of(disk))?;
        self.store.sync(Area::Images)?;
        Ok(was)
    }

    /// The log before `old` has another one after it now.
    fn name_child(&self, parent: Uuid, old: Uuid, new: Uuid) -> Result<()> {
        let Some(log) = self.open(parent)? else { return Ok(()) };
        // A damaged one is not walked over anyway.
        let Ok(head) = log.head() else { return Ok(()) };
        if head.child == old { log.write_head(&Head { child: new, ..head }) } else { Ok(()) }
    }

    /// Does of [`Logs::snapshot`] what takes time, while the disk is still written. It is found by
    /// that if nothing has cleared it away in between. Answers whether the changes of the disk are
    /// tracked.
    pub fn prepare_snapshot(&self, disk: Uuid, snapshot: Uuid, size: u64) -> Result<bool> {
        if !self.is_enabled(disk)? {
            return Ok(false);
        }
        let head = Head { parent: snapshot, child: Uuid::nil(), consistent: true, size };
        if let Err(error) = self.stage(disk, &head) {
            self.unstage(disk);
            return Err(error);
        }
        Ok(true)
    }

    /// Takes back [`Logs::prepare_snapshot`], as far as it can be.
    pub fn unstage(&self, disk: Uuid) {
        let _ = self.store.remove(&Self::staged_at(disk));
    }

    /// A log that was prepared, or one made now. One that is there is complete: its head is
    /// written last, durably.
    fn staged(&self, disk: Uuid, head: &Head) -> Result<At> {
        let at = Self::staged_at(disk);
        let found = LogFile::open_at(self.store, &at, false)?;
        let ready = match found {
            Some(file) => file.look()?.is_ok_and(|found| found == *head),
            None => false,
        };
        if ready { Ok(at) } else { self.stage(disk, head) }
    }

    /// A snapshot takes the log of its disk, of `size` bytes, and the disk gets a new one: see the
    /// module. Answers whether the changes of the disk are tracked.
    pub fn snapshot(&self, disk: Uuid, snapshot: Uuid, size: u64) -> Result<bool> {
        let fresh = |consistent| Head { parent: snapshot, child: Uuid::nil(), consistent, size };
        // Both are there: the disk was never without.
        if self.is_enabled(disk)? && self.is_enabled(snapshot)? {
            self.forget(snapshot)?;
        }
        if let Some(begun) = self.open(snapshot)? {
            let log = self.open(disk)?;
            let own = match &log {
                Some(log) => log.id()? != begun.id()?,
                None => false,
            };
            Self::spoil(&begun)?;
            if let Some(log) = log.filter(|_| own) {
                Self::spoil(&log)?;
            } else {
                let staged = self.stage(disk, &fresh(false))?;
                if let Ok(head) = begun.head() {
                    self.name_child(head.parent, disk, snapshot)?;
                }
                self.place(&staged, disk)?;
            }
            return Ok(true);
        }
        let Some(log) = self.open(disk)? else { return Ok(false) };
        // A damaged one is the snapshot's from now on, and the disk's next one is sound.
        let head = log.look()?.ok();
        let staged = self.staged(disk, &fresh(true))?;
        if let Some(head) = head {
            log.write_head(&Head { child: disk, ..head })?;
        }
        let (from, to) = (name_of(disk), name_of(snapshot));
        if !self.store.link(&from, &to)? {
            self.store.rename(&from, &to)?;
        }
        self.store.sync(Area::Images)?;
        if let Some(head) = head {
            self.name_child(head.parent, disk, snapshot)?;
        }
        self.place(&staged, disk)?;
        Ok(true)
    }

    /// From now on a log calls everything changed.
    fn spoil(log: &LogFile) -> Result<()> {
        match log.look()? {
            Ok(head) => log.write_head(&Head { consistent: false, ..head }),
            // Nobody believes it.
            Err(_) => Ok(()),
        }
    }

    /// All of a disk may have changed: it was put back to a snapshot, say. Not while it is open.
    pub fn spoil_all(&self, disk: Uuid) -> Result<()> {
        match self.open(disk)? {
            Some(log) => Self::spoil(&log),
            None => Ok(()),
        }
    }

    /// A disk or snapshot is gone: what its log has goes to the one after it. `false`: that one is
    /// in use just now, or was not closed, and the log stays, which does no harm; to be called
    /// again.
    pub fn forget(&self, disk: Uuid) -> Result<bool> {
        let Some(log) = self.open(disk)? else { return Ok(true) };
        if let Ok(head) = log.head() {
            let after = if head.child == disk { None } else { self.open(head.child)? };
            let mut child = Uuid::nil();
            if let Some(after) = after
                && let Ok(next) = after.head()
            {
                if next.parent == disk {
                    if !next.consistent {
                        return Ok(false);
                    }
                    let map = match log.map(head.size).ok().filter(|_| head.consistent) {
                        None => Map::full(next.size),
                        Some(older) => {
                            let mut map =
                                after.map(next.size).unwrap_or_else(|_| Map::full(next.size));
                            map.add(&older);
                            grown(&mut map, older.size());
                            map
                        }
                    };
                    after.write_head(&Head { consistent: false, ..next })?;
                    after.write_map(&map)?;
                    after.write_head(&Head { parent: head.parent, ..next })?;
                    child = head.child;
                } else if next.parent == head.parent {
                    // Done before, and cut.
                    child = head.child;
                }
            }
            self.name_child(head.parent, disk, child)?;
        }
        self.store.remove(&name_of(disk))?;
        self.store.sync(Area::Images)?;
        Ok(true)
    }

    /// Logs of disks that are gone, which [`Logs::forget`] can take away. Looks only, so what a change
    /// under way explains may be among them: who has not got the lock looks again when he has.
    pub fn forgettable(&self) -> Result<Vec<Uuid>> {
        let names = self.store.names(Area::Images)?;
        let stem = |name: &str, extension: &str| -> Option<Uuid> {
            name.strip_suffix(extension)?.parse().ok()
        };
        let logs: Vec<Uuid> = names.iter().filter_map(|name| stem(name, ".cbtlog")).collect();
        if logs.is_empty() {
            return Ok(logs);
        }
        let images = names.iter().filter_map(|name| stem(name, ".vhd").or(stem(name, ".raw")));
        let docs = self.store.names(Area::Docs)?;
        let docs = docs.iter().filter_map(|name| stem(name, ".json"));
        let known: HashSet<Uuid> = images.chain(docs).collect();
        let mut found = Vec::new();
        for disk in logs.into_iter().filter(|disk| !known.contains(disk)) {
            let Some(log) = LogFile::open(self.store, disk, false)? else { continue };
            let after = match log.look()? {
                Ok(head) if head.child != disk => LogFile::open(self.store, head.child, false)?,
                _ => None,
            };
            // As `forget` has it: one that is in use, or was not closed, has to be closed first.
            let waits = match after.map(|after| after.look()).transpose()? {
                Some(Ok(next)) => next.parent == disk && !next.consistent,
                _ => false,
            };
            if !waits {
                found.push(disk);
            }
        }
        Ok(found)
    }

    /// What changed after `from` and up to `to`, which is a later point of the same disk and has
    /// `size` bytes. `live`: what the log of a disk that is open has, from the process that has it.
    pub fn diff(
        &self,
        from: Uuid,
        to: Uuid,
        size: u64,
        live: Option<(Uuid, &Map)>,
    ) -> Result<Difference> {
        let mut map = Map::empty(size);
        let unknown = |why: String| Ok(Difference::Everything { why });
        let mut seen = HashSet::new();
        let mut at = from;
        let Some(mut log) = LogFile::open(self.store, from, false)? else {
            return unknown(format!("{from} has no log of changes"));
        };
        while at != to {
            if !seen.insert(at) {
                return unknown(format!("the logs lead in a circle at {at}"));
            }
            let head = match log.head() {
                Ok(head) => head,
                Err(error) => return unknown(error.reason()),
            };
            let next = head.child;
            if next.is_nil() {
                return unknown(format!("{to} does not come after {from}"));
            }
            let Some(after) = LogFile::open(self.store, next, false)? else {
                return unknown(format!("{next}, after {at}, has no log of changes"));
            };
            let head = match after.head() {
                Ok(head) => head,
                Err(error) => return unknown(error.reason()),
            };
            if head.parent != at {
                return unknown(format!("the log of {next} does not follow the one of {at}"));
            }
            match live {
                Some((disk, live)) if disk == next => {
                    map.add(live);
                    grown(&mut map, live.size());
                }
                _ if !head.consistent => {
                    return unknown(format!("the log of {next} was not closed"));
                }
                _ => match after.map(head.size) {
                    Ok(more) => {
                        map.add(&more);
                        grown(&mut map, more.size());
                    }
                    Err(error) => return unknown(error.reason()),
                },
            }
            (at, log) = (next, after);
        }
        Ok(Difference::Known(map))
    }
}

/// What a log does not reach to may have changed after it was written, without its disk being open:
/// when the disk grew.
fn grown(map: &mut Map, known: u64) {
    if known < map.size() {
        map.set(&(known..map.size()));
    }
}
