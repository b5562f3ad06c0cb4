//! Rights on a store that one host has at a time, by what hosts write on the storage.
//!
//! For each right each host has a slot, which it alone writes and all read. Who wants the right takes
//! a number above all that it sees, and waits for the lower ones: Lamport's bakery. That needs nothing
//! of the storage but that a sector reads as it was before a write of it, as after it, or as damaged
//! while it lasts; no clock, and no command that not every array has.
//!
//! Time comes in for hosts that are gone. Who has a number, waiting or at work, writes its slot anew
//! every [`Times::renew`]. A slot that has not changed for [`Times::take`] is passed over. Its host has
//! stopped before: it does nothing later than [`Times::stop`] after the beginning of its last write,
//! and a write that took longer counts as none. Each host measures spans by its own clock, which
//! runs on while the host sleeps; no clock is compared with another one's. What has been given to the
//! storage by then and lands later is out of reach of all this; `docs/decisions/` has the record.
//!
//! A number is never used twice, also not by a host that comes back: an idle slot keeps the last one.
//! So the number is the epoch of the right, which grows from holder to holder.

mod slot;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use plugin_sdk::model::uuid::Uuid;
use serde::{Deserialize, Serialize};

use self::slot::{Read, SECTOR, Slot, State, digest};

/// Most hosts that can use a store.
pub(crate) const HOSTS: usize = 64;
/// Bytes of a slot: no block of a device is larger, so no two hosts write the same one.
pub(crate) const SLOT: usize = 4096;
/// Between the first two looks at who is before us; the next ones come later and later.
const LOOK: Duration = Duration::from_millis(1);

/// What one host has at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    /// To change the store.
    Change,
    /// To merge in it.
    Merge,
}

impl Right {
    pub(crate) const COUNT: u64 = 2;

    /// Its place among them.
    pub(crate) fn index(self) -> u64 {
        match self {
            Self::Change => 0,
            Self::Merge => 1,
        }
    }
}

/// How long what may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// Between two signs of life.
    pub(crate) renew: Duration,
    /// From the beginning of the last sign of life to where its host does nothing any more.
    pub(crate) stop: Duration,
    /// From when a slot was first seen as it is to where its host counts as gone.
    pub(crate) take: Duration,
    /// Between a host's first write of a slot and its use: what another new host writes there shows by
    /// then.
    pub(crate) settle: Duration,
    /// Between two looks at who is before us, at most.
    pub(crate) look: Duration,
}

/// A path that dies is given up within a few seconds, so a holder outlives that. What is between
/// `stop` and `take` is for requests under way, and for clocks of which one is faster than the other.
pub(crate) const TIMES: Times = Times {
    renew: Duration::from_secs(2),
    stop: Duration::from_secs(12),
    take: Duration::from_secs(20),
    settle: Duration::from_millis(500),
    look: Duration::from_millis(50),
};

/// Where the slots are.
pub(crate) trait Board: Send + Sync {
    /// All slots of a right, one behind the other.
    fn read(&self, right: Right) -> io::Result<Vec<u8>>;

    /// Writes at a place in a slot, durably.
    fn write(&self, right: Right, slot: usize, at: usize, sector: &[u8]) -> io::Result<()>;
}

/// A clock of this host that never stands still.
pub(crate) trait Clock: Send + Sync {
    fn now(&self) -> Duration;
    fn pause(&self, time: Duration);
}

/// The kernel's, sleep of the host included.
pub(crate) struct Kernel;

impl Clock for Kernel {
    fn now(&self) -> Duration {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
    }

    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// Why there is no lease.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The storage.
    Io(io::Error),
    /// The time is over, and this host has it.
    Held(String),
    /// All slots are taken.
    Full,
    /// Somebody else writes the slot of this host.
    Twin,
    /// A write took too long: from the beginning again.
    Late,
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What this host has seen of another one, for all of its processes.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Watched {
    mark: String,
    since: Duration,
    /// What it may still write into the log does not count any more.
    fenced: bool,
}

type Watch = BTreeMap<usize, Watched>;

/// The hosts of a store, as one of them sees them.
pub(crate) struct Hosts {
    pub(crate) board: Box<dyn Board>,
    pub(crate) clock: Box<dyn Clock>,
    pub(crate) times: Times,
    /// Its name, which no other host of the store has.
    pub(crate) host: String,
    /// Names its boot.
    pub(crate) boot: String,
    /// The beginning of names of files in which the processes of this host keep what they have seen,
    /// until its next boot.
    pub(crate) memory: Option<PathBuf>,
    pub(crate) slot: Mutex<Option<usize>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a host looks for a slot first.
fn preferred(host: &str) -> usize {
    let mut hash = DefaultHasher::new();
    host.hash(&mut hash);
    (hash.finish() % HOSTS as u64) as usize
}

/// A sign of life of this host while it has a number.
struct Own {
    slot: Slot,
    /// When the last write of it began.
    since: Duration,
    ended: bool,
}

impl Hosts {
    /// Gives this host its slot in a store that nobody else can know of yet.
    pub(crate) fn preset(&self) -> io::Result<()> {
        let slot = preferred(&self.host);
        self.write(Right::Change, slot, &mut self.idle(&Read::Free))
    }

    /// What this host says next without a wish, after what it has said.
    fn idle(&self, before: &Read) -> Slot {
        let (host, boot) = (self.host.clone(), self.boot.clone());
        let serial = if let Read::Slot(slot) = before { slot.serial } else { 0 };
        Slot { host, boot, number: before.number(), serial, ..Slot::default() }
    }

    fn write(&self, right: Right, place: usize, slot: &mut Slot) -> io::Result<()> {
        slot.serial += 1;
        let sector = slot.encode()?;
        self.board.write(right, place, (slot.serial % 2) as usize * SECTOR, &sector)
    }

    fn read(&self, right: Right) -> io::Result<Vec<(Read, Vec<u8>)>> {
        let all = self.board.read(right)?;
        let written = |slot: &[u8]| slot.get(..2 * SECTOR).unwrap_or_default().to_vec();
        let slots = all.chunks(SLOT).map(written);
        let slots: Vec<_> = slots.map(|bytes| (Read::of(&bytes), bytes)).collect();
        if slots.len() == HOSTS { Ok(slots) } else { Err(ErrorKind::UnexpectedEof.into()) }
    }

    /// The slot of this host. A new host takes a free one, and uses it when whoever else saw it free
    /// must have written it as well.
    fn register(&self) -> Result<usize, Refused> {
        if let Some(slot) = *locked(&self.slot) {
            return Ok(slot);
        }
        let found = loop {
            let began = self.clock.now();
            let slots = self.read(Right::Change)?;
            let is_ours = |read: &Read| matches!(read, Read::Slot(slot) if slot.host == self.host);
            if let Some(ours) = slots.iter().position(|(read, _)| is_ours(read)) {
                break ours;
            }
            let first = preferred(&self.host);
            let mut order = (0..HOSTS).map(|n| (first + n) % HOSTS);
            let is_free = |slot: &usize| slots.get(*slot).is_some_and(|s| s.0 == Read::Free);
            let free = order.find(is_free).ok_or(Refused::Full)?;
            let wish = Uuid::new_v4().as_u64_pair().0;
            let mut mine = Slot { wish, ..self.idle(&Read::Free) };
            self.write(Right::Change, free, &mut mine)?;
            // Had it taken longer, somebody who saw it free as well may be at work in it by now.
            let late = self.clock.now().saturating_sub(began) >= self.times.settle / 2;
            self.clock.pause(if late { self.times.take } else { self.times.settle });
            let slots = self.read(Right::Change)?;
            if slots.get(free).is_some_and(|(read, _)| *read == Read::Slot(mine)) {
                break free;
            }
        };
        *locked(&self.slot) = Some(found);
        Ok(found)
    }

    /// Writes a slot with a number or on the way to one. What it says counts for `stop` from when
    /// this began; `before` is until when what it said before does.
    fn put(
        &self,
        right: Right,
        slot: usize,
        own: &mut Own,
        before: Duration,
    ) -> Result<Duration, Refused> {
        let began = self.clock.now();
        self.write(right, slot, &mut own.slot)?;
        own.since = began;
        // Had it taken longer, somebody could have passed over us while it was under way.
        let until = began + self.times.stop;
        if self.clock.now() >= before.min(until) { Err(Refused::Late) } else { Ok(until) }
    }

    /// Whether no other host has had a right since this host had it last. Where nobody of this host
    /// has it now, that says whether what was read before is still so.
    pub(crate) fn is_alone(&self, right: Right) -> io::Result<bool> {
        let slots = self.read(right)?;
        let is_ours = |read: &Read| matches!(read, Read::Slot(slot) if slot.host == self.host);
        let Some(ours) = slots.iter().position(|(read, _)| is_ours(read)) else { return Ok(false) };
        let last = slots.get(ours).map_or(0, |(read, _)| read.number());
        Ok(are_before(&slots, ours, last))
    }

    /// Takes a right, waiting for it until then by this host's clock.
    pub(crate) fn acquire(
        self: &Arc<Self>,
        right: Right,
        until: Duration,
    ) -> Result<Lease, Refused> {
        loop {
            match self.attempt(right, until) {
                Err(Refused::Late) if self.clock.now() < until => {}
                other => return other,
            }
        }
    }

    fn attempt(self: &Arc<Self>, right: Right, give_up: Duration) -> Result<Lease, Refused> {
        let me = self.register()?;
        let slots = self.read(right)?;
        let is_foreign = |read: &Read| matches!(read, Read::Slot(slot) if slot.host != self.host);
        if slots.get(me).is_some_and(|(read, _)| is_foreign(read)) {
            *locked(&self.slot) = None;
            return Err(Refused::Twin);
        }
        let before = slots.get(me).map_or(&Read::Torn, |(read, _)| read);
        let last = before.number();
        let quiet = are_before(&slots, me, last);
        let wish = Uuid::new_v4().as_u64_pair().0;
        let state = State::Choosing;
        let slot = Slot { state, wish, ..self.idle(before) };
        let mut own = Own { slot, since: Duration::ZERO, ended: false };
        let mut until = self.put(right, me, &mut own, Duration::MAX)?;
        let slots = self.read(right)?;
        let highest = slots.iter().map(|(read, _)| read.number()).max().unwrap_or(0);
        (own.slot.state, own.slot.number) = (State::Numbered, highest.max(last) + 1);
        let number = own.slot.number;
        until = self.put(right, me, &mut own, until)?;

        let mut passed = vec![false; HOSTS];
        let mut gone = Vec::new();
        let mut pause = LOOK;
        loop {
            let slots = self.read(right)?;
            if slots.get(me).is_some_and(|(read, _)| *read != Read::Slot(own.slot.clone())) {
                return Err(Refused::Twin);
            }
            let mut before = None;
            for (other, ((read, bytes), passed)) in slots.iter().zip(&mut passed).enumerate() {
                // Who has let us pass once takes a higher number next time.
                if other == me || *passed {
                    continue;
                }
                *passed = match read {
                    Read::Free => true,
                    Read::Slot(slot) if slot.state == State::Idle => true,
                    Read::Slot(slot) if slot.state == State::Numbered => {
                        (slot.number, other) > (number, me)
                    }
                    _ => false,
                };
                if !*passed && self.is_gone(right, other, bytes) {
                    *passed = true;
                    gone.push(other);
                }
                if !*passed {
                    before.get_or_insert_with(|| read.host());
                }
            }
            let now = self.clock.now();
            let Some(before) = before else {
                if now >= until {
                    return Err(Refused::Late);
                }
                // Then nobody has had it since this host had it last.
                let alone = quiet && number == last + 1 && are_before(&slots, me, number);
                let fence = gone.iter().any(|slot| !self.is_fenced(right, *slot));
                let until = AtomicU64::new(nanos(until));
                let hosts = Arc::clone(self);
                let held = Held { hosts, right, slot: me, number, until, own: Mutex::new(own) };
                return Ok(Lease { held: Arc::new(held), alone, gone, fence });
            };
            if now >= give_up {
                own.slot.state = State::Idle;
                self.write(right, me, &mut own.slot)?;
                return Err(Refused::Held(before));
            }
            if now >= own.since + self.times.renew {
                until = self.put(right, me, &mut own, until)?;
            }
            self.clock.pause(pause);
            pause = (pause * 2).min(self.times.look);
        }
    }

    fn memory_of(&self, right: Right) -> Option<PathBuf> {
        let mut path = self.memory.clone()?.into_os_string();
        path.push(format!(".{}", right.index()));
        Some(path.into())
    }

    /// What was seen before. What cannot be read was not seen.
    fn watch(&self, right: Right) -> Watch {
        let bytes = self.memory_of(right).and_then(|path| std::fs::read(path).ok());
        let kept: Option<(String, Watch)> = bytes.and_then(|b| serde_json::from_slice(&b).ok());
        // Of this boot, or its times are of another clock.
        kept.filter(|(boot, _)| *boot == self.boot).map(|(_, watch)| watch).unwrap_or_default()
    }

    fn remember(&self, right: Right, watch: &Watch) {
        let Some(path) = self.memory_of(right) else { return };
        let written = serde_json::to_vec(&(&self.boot, watch)).map_err(io::Error::other);
        if let Err(error) = written.and_then(|bytes| std::fs::write(&path, bytes)) {
            // Then the next process begins to watch anew, which takes longer and is no danger.
            plugin_sdk::tracing::warn!(%error, path = %path.display(), "what was seen of hosts is lost");
        }
    }

    /// Whether a slot has been as it is for so long that its host does nothing any more.
    fn is_gone(&self, right: Right, slot: usize, bytes: &[u8]) -> bool {
        let now = self.clock.now();
        let mark = mark_of(bytes);
        let mut watch = self.watch(right);
        if let Some(seen) = watch.get(&slot).filter(|seen| seen.mark == mark && seen.since <= now) {
            return now.saturating_sub(seen.since) >= self.times.take;
        }
        watch.insert(slot, Watched { mark, since: now, fenced: false });
        self.remember(right, &watch);
        false
    }

    /// The hosts that have a slot.
    pub(crate) fn names(&self) -> io::Result<BTreeSet<String>> {
        let slots = self.read(Right::Change)?.into_iter();
        let name = |(read, _)| if let Read::Slot(slot) = read { Some(slot.host) } else { None };
        Ok(slots.filter_map(name).collect())
    }

    /// Takes a host for gone at once whose slots stay as they are now: for one whose writes the
    /// storage refuses.
    pub(crate) fn pass_over(&self, host: &str) -> io::Result<()> {
        for right in [Right::Change, Right::Merge] {
            let mut watch = self.watch(right);
            for (slot, (read, bytes)) in self.read(right)?.into_iter().enumerate() {
                if !read.is_quiet() && read.host() == host {
                    let since = self.clock.now().saturating_sub(self.times.take);
                    watch.insert(slot, Watched { mark: mark_of(&bytes), since, fenced: false });
                }
            }
            self.remember(right, &watch);
        }
        Ok(())
    }

    fn is_fenced(&self, right: Right, slot: usize) -> bool {
        self.watch(right).get(&slot).is_some_and(|seen| seen.fenced)
    }
}

/// Whether all other hosts are idle, and had their numbers before this one.
fn are_before(slots: &[(Read, Vec<u8>)], me: usize, number: u64) -> bool {
    let mut others = slots.iter().enumerate().filter(|(slot, _)| *slot != me);
    others.all(|(_, (read, _))| read.is_quiet() && read.number() < number.max(1))
}

/// Tells a slot as it is from whatever else is written there.
fn mark_of(bytes: &[u8]) -> String {
    u128::from_le_bytes(digest(bytes)).to_string()
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A right, until it is dropped.
pub(crate) struct Lease {
    pub(crate) held: Arc<Held>,
    /// Nobody else has had it since this host had it last.
    pub(crate) alone: bool,
    /// The slots of hosts that were passed over.
    gone: Vec<usize>,
    /// One of them may still write to the log.
    pub(crate) fence: bool,
}

impl Lease {
    /// What the hosts that were passed over may still write does not count any more.
    pub(crate) fn fenced(&self) {
        let Held { hosts, right, .. } = &*self.held;
        let mut watch = hosts.watch(*right);
        for slot in &self.gone {
            if let Some(seen) = watch.get_mut(slot) {
                seen.fenced = true;
            }
        }
        hosts.remember(*right, &watch);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.held.end(true);
    }
}

/// A right that this host has, for whoever needs to know that it still has.
pub(crate) struct Held {
    hosts: Arc<Hosts>,
    right: Right,
    slot: usize,
    number: u64,
    /// Nanoseconds of this host's clock; beside the lock, which a write that hangs holds.
    until: AtomicU64,
    own: Mutex<Own>,
}

impl Held {
    /// The epoch: whoever has the right later has a higher one. Two that came at the same instant
    /// have the same number, and the lower slot goes first.
    pub(crate) fn epoch(&self) -> u64 {
        self.number * HOSTS as u64 + self.slot as u64
    }

    pub(crate) fn is_valid(&self) -> bool {
        nanos(self.hosts.clock.now()) < self.until.load(Ordering::SeqCst)
    }

    /// For how long it counts without a sign of life.
    pub(crate) fn time(&self) -> Duration {
        self.hosts.times.stop
    }

    /// Gives a sign of life. What was lost stays lost.
    pub(crate) fn renew(&self) {
        let mut own = locked(&self.own);
        let now = self.hosts.clock.now();
        if own.ended || !self.is_valid() || now < own.since + self.hosts.times.renew {
            return;
        }
        let before = Duration::from_nanos(self.until.load(Ordering::SeqCst));
        match self.hosts.put(self.right, self.slot, &mut own, before) {
            Ok(until) => self.until.store(nanos(until), Ordering::SeqCst),
            Err(Refused::Late) => self.until.store(0, Ordering::SeqCst),
            Err(error) => {
                plugin_sdk::tracing::warn!(?error, "a lease could not be renewed this time");
            }
        }
    }

    /// Gives it back; with `tell` unset, the slots are gone.
    pub(crate) fn end(&self, tell: bool) {
        let mut own = locked(&self.own);
        if std::mem::replace(&mut own.ended, true) {
            return;
        }
        // What is given back is not lost, for whoever still looks at it.
        self.until.store(u64::MAX, Ordering::SeqCst);
        if !tell {
            return;
        }
        own.slot.state = State::Idle;
        if let Err(error) = self.hosts.write(self.right, self.slot, &mut own.slot) {
            plugin_sdk::tracing::warn!(%error, "a lease is not given back, and runs out");
        }
    }
}

#[cfg(test)]
mod model;
