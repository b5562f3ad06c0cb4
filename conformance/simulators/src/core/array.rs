//! The array: its state, how it is changed, and its data path.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::change::Change;
use super::clock::Clock;
use super::content::Contents;
use super::faults::Faults;
use super::model::{
    Depletion, Export, Hold, Layer, Pool, Settings, Snapshot, Trouble, Volume, WhenFull,
};
use super::objects::{Objects, View};
use super::requests::Requests;
use super::sessions::Sessions;

/// How an array is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of a page: the grain of its accounting.
    pub page: u64,
    /// Pools to make, where the state is new: name and bytes.
    pub pools: Vec<(String, u64)>,
    /// What it is set to, where the state is new.
    pub settings: Settings,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            page: 16 << 10,
            pools: vec![("pool".to_owned(), 1 << 40)],
            settings: Settings::default(),
        }
    }
}

/// How full a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes it has.
    pub capacity: u64,
    /// Bytes of pages in it, each counted once.
    pub used: u64,
    /// Bytes kept for thick volumes and not written.
    pub reserved: u64,
}

impl Space {
    /// What is left.
    pub fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.used + self.reserved)
    }
}

/// An array. Clones are the same array.
#[derive(Clone, Debug)]
pub struct Array(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    page: u64,
    state: Mutex<State>,
    clock: Clock,
    sessions: Sessions,
    faults: Faults,
    requests: Requests,
    /// Until when only reads are answered: a controller takes over.
    read_only: Mutex<Option<Instant>>,
    portal: Mutex<Option<SocketAddr>>,
    changes: AtomicU64,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) objects: Objects,
    pub(super) contents: Contents,
    /// What reads see until when, oldest first.
    stale: VecDeque<(Instant, View)>,
    /// Targets that an initiator has open, by target and initiator: how many sessions.
    pub(super) logins: BTreeMap<(String, String), usize>,
    /// When the last session of a target ended.
    pub(super) left: BTreeMap<String, u64>,
}

impl State {
    fn open(folder: &Path, page: u64) -> std::io::Result<Self> {
        let objects = Objects::open(folder)?;
        let layers = objects.now.all::<Layer>();
        let known: Vec<u64> = layers.iter().filter_map(|(key, _)| key.parse().ok()).collect();
        let contents = Contents::open(folder, page, &known)?;
        let (stale, logins, left) = (VecDeque::new(), BTreeMap::new(), BTreeMap::new());
        Ok(Self { objects, contents, stale, logins, left })
    }

    /// The layers from `top` down.
    pub(super) fn chain(&self, top: u64) -> Vec<u64> {
        let mut chain = Vec::new();
        let mut next = Some(top);
        while let Some(number) = next {
            chain.push(number);
            next = self.objects.now.get::<Layer>(&number.to_string()).and_then(|layer| layer.below);
        }
        chain
    }

    pub(super) fn space(&self, pool: &str) -> Result<Space, Trouble> {
        let missing = || Trouble::Missing("pool", pool.to_owned());
        let capacity = self.objects.now.get::<Pool>(pool).ok_or_else(missing)?.capacity;
        let layers = self.objects.now.all::<Layer>();
        let of_pool = layers.iter().filter(|(_, layer)| layer.pool == pool);
        let used =
            of_pool.filter_map(|(key, _)| Some(self.contents.bytes(key.parse().ok()?))).sum();
        let volumes = self.objects.now.all::<Volume>();
        let thick = volumes.iter().filter(|(_, volume)| volume.thick && volume.pool == pool);
        let reserved = thick
            .map(|(_, volume)| volume.size.saturating_sub(self.contents.bytes(volume.layer)))
            .sum();
        Ok(Space { capacity, used, reserved })
    }

    /// Removes layers that nobody reads, and joins those that one reader alone needs.
    fn collect(&mut self) -> Result<(), Trouble> {
        loop {
            let now = &self.objects.now;
            let mut held: BTreeSet<u64> = BTreeSet::new();
            held.extend(now.all::<Volume>().iter().map(|(_, volume)| volume.layer));
            held.extend(now.all::<Snapshot>().iter().map(|(_, snapshot)| snapshot.layer));
            held.extend(now.all::<Hold>().iter().map(|(_, hold)| hold.layer));
            let layers: BTreeMap<u64, Arc<Layer>> = now
                .all::<Layer>()
                .into_iter()
                .filter_map(|(key, layer)| Some((key.parse().ok()?, layer)))
                .collect();
            let mut above: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
            for (number, layer) in &layers {
                if let Some(below) = layer.below {
                    above.entry(below).or_default().push(*number);
                }
            }
            let nobody = |number: &u64| above.get(number).map_or(0, Vec::len);
            let lost = layers.keys().find(|number| !held.contains(number) && nobody(number) == 0);
            if let Some(number) = lost.copied() {
                self.objects.remove::<Layer>(&number.to_string());
                self.objects.commit()?;
                self.contents.remove(number)?;
                continue;
            }
            let single = layers.keys().find(|number| !held.contains(number) && nobody(number) == 1);
            let Some(lower) = single.copied() else { return Ok(()) };
            let Some(upper) = above.get(&lower).and_then(|all| all.first()).copied() else {
                return Ok(());
            };
            self.join(lower, upper, above.get(&upper).map_or(&[][..], Vec::as_slice))?;
        }
    }

    /// Joins a layer and the only one above it into the lower.
    fn join(&mut self, lower: u64, upper: u64, above: &[u64]) -> Result<(), Trouble> {
        let below = self.chain(lower).split_off(1);
        self.contents.merge(upper, lower, &below)?;
        for number in above {
            let key = number.to_string();
            if let Some(layer) = self.objects.now.get::<Layer>(&key) {
                let layer = Layer { below: Some(lower), ..(*layer).clone() };
                self.objects.put(&key, &layer)?;
            }
        }
        for (key, volume) in self.objects.now.all::<Volume>() {
            if volume.layer == upper {
                self.objects.put(&key, &Volume { layer: lower, ..(*volume).clone() })?;
            }
        }
        for (key, snapshot) in self.objects.now.all::<Snapshot>() {
            if snapshot.layer == upper {
                self.objects.put(&key, &Snapshot { layer: lower, ..(*snapshot).clone() })?;
            }
        }
        for (key, hold) in self.objects.now.all::<Hold>() {
            if hold.layer == upper {
                self.objects.put(&key, &Hold { layer: lower })?;
            }
        }
        self.objects.remove::<Layer>(&upper.to_string());
        self.objects.commit()?;
        self.contents.remove(upper)?;
        Ok(())
    }

    /// What a copy held that did not end before the array was killed.
    fn drop_holds(&mut self) -> Result<(), Trouble> {
        for (key, _) in self.objects.now.all::<Hold>() {
            self.objects.remove::<Hold>(&key);
        }
        self.objects.commit()?;
        self.collect()
    }
}

impl Array {
    /// Opens the state in a folder, or makes it.
    pub fn open(folder: &Path, options: &Options) -> Result<Self, Trouble> {
        std::fs::create_dir_all(folder)?;
        let mut state = State::open(folder, options.page)?;
        if state.objects.now.get::<Settings>("").is_none() {
            for (name, capacity) in &options.pools {
                let pool = Pool { capacity: *capacity, attributes: serde_json::Map::new() };
                state.objects.put(name, &pool)?;
            }
            state.objects.put("", &options.settings)?;
            state.objects.commit()?;
        }
        state.drop_holds()?;
        let clock = Clock::default();
        Ok(Self(Arc::new(Shared {
            folder: folder.to_owned(),
            page: options.page,
            state: Mutex::new(state),
            sessions: Sessions::new(clock.clone()),
            clock,
            faults: Faults::default(),
            requests: Requests::default(),
            read_only: Mutex::new(None),
            portal: Mutex::new(None),
            changes: AtomicU64::new(0),
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The clock.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// The sessions of those who manage it.
    pub fn sessions(&self) -> &Sessions {
        &self.0.sessions
    }

    /// What is to go wrong.
    pub fn faults(&self) -> &Faults {
        &self.0.faults
    }

    /// What was asked.
    pub fn requests(&self) -> &Requests {
        &self.0.requests
    }

    /// What it is set to.
    pub fn settings(&self) -> Settings {
        let settings = self.lock().objects.now.get::<Settings>("");
        settings.map_or_else(Settings::default, |settings| (*settings).clone())
    }

    /// Sets it otherwise.
    pub fn set(&self, work: impl FnOnce(&mut Settings)) -> Result<(), Trouble> {
        let mut settings = self.settings();
        work(&mut settings);
        self.sessions().limit(settings.sessions, settings.session_idle);
        self.change(|change| change.put("", &settings))
    }

    /// The objects as they are.
    pub fn current(&self) -> View {
        self.lock().objects.now.clone()
    }

    /// The objects as a reader sees them, who may be late.
    pub fn view(&self) -> View {
        let mut state = self.lock();
        let now = Instant::now();
        while state.stale.front().is_some_and(|(until, _)| *until <= now) {
            state.stale.pop_front();
        }
        state.stale.front().map_or_else(|| state.objects.now.clone(), |(_, view)| view.clone())
    }

    /// Lets readers see the objects as they are now, for a while.
    pub fn freeze_reads(&self, milliseconds: u64) {
        let mut state = self.lock();
        let until = Instant::now() + Duration::from_millis(milliseconds);
        let view = state.objects.now.clone();
        state.stale.push_front((until, view));
    }

    /// Changes objects: all of what `work` does, or nothing of it where it fails.
    pub fn change<T, E: From<Trouble>>(
        &self,
        work: impl FnOnce(&mut Change<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let lag = self.settings().stale;
        let mut state = self.lock();
        let before = (lag > 0).then(|| state.objects.now.clone());
        let mut change = Change::new(&mut state, self.0.clock.now());
        let done = work(&mut change);
        let collect = change.collect;
        self.0.changes.fetch_add(1, Ordering::SeqCst);
        match done {
            Ok(value) => {
                let changed = state.objects.commit().map_err(Trouble::from)?;
                if let (true, Some(view)) = (changed, before) {
                    let until = Instant::now() + Duration::from_millis(lag);
                    state.stale.push_back((until, view));
                }
                if collect {
                    state.collect()?;
                }
                Ok(value)
            }
            Err(error) => {
                state.objects.roll_back();
                Err(error)
            }
        }
    }

    /// How full a pool is.
    pub fn space(&self, pool: &str) -> Result<Space, Trouble> {
        self.lock().space(pool)
    }

    /// Bytes that a reader of a volume or snapshot finds.
    pub fn referenced(&self, layer: u64) -> u64 {
        let state = self.lock();
        state.contents.referenced(&state.chain(layer))
    }

    /// Bytes that only this volume or snapshot has: those written since its last snapshot.
    pub fn own(&self, layer: u64) -> u64 {
        self.lock().contents.bytes(layer)
    }

    /// Bytes of the layers from one down to another, which is not counted.
    pub fn between(&self, top: u64, bottom: Option<u64>) -> u64 {
        let state = self.lock();
        let chain = state.chain(top);
        let own = chain.iter().take_while(|number| Some(**number) != bottom);
        own.map(|number| state.contents.bytes(*number)).sum()
    }

    /// Reads a volume, or a snapshot of that key.
    pub fn read(&self, key: &str, offset: u64, length: usize) -> Result<Vec<u8>, Trouble> {
        let state = self.lock();
        let (layer, size) = match state.objects.now.get::<Volume>(key) {
            Some(volume) if !volume.online => return Err(Trouble::Offline(key.to_owned())),
            Some(volume) => (volume.layer, volume.size),
            None => {
                let snapshot = state.objects.now.get::<Snapshot>(key);
                let snapshot =
                    snapshot.ok_or_else(|| Trouble::Missing("volume", key.to_owned()))?;
                (snapshot.layer, snapshot.size)
            }
        };
        within(offset, length as u64, size)?;
        let mut bytes = vec![0; length];
        state.contents.read(&state.chain(layer), offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes a volume, as a host does.
    pub fn write(&self, key: &str, offset: u64, bytes: &[u8]) -> Result<(), Trouble> {
        let mut state = self.lock();
        loop {
            let volume = online(&state, key)?;
            within(offset, bytes.len() as u64, volume.size)?;
            let needed = state.contents.needed(volume.layer, offset, bytes.len() as u64);
            // Without snapshots nothing is kept, and the reserve is of no matter.
            let reserve = volume.snapshot_reserve.filter(|_| !snapshots_of(&state, key).is_empty());
            if let Some((reserve, depletion)) = reserve {
                // Each page written anew keeps an old one for the snapshots.
                if needed > 0 && kept(&state, key, &volume) + needed > reserve {
                    if !deplete(&mut state, key, &volume, depletion)? {
                        return Err(Trouble::Offline(key.to_owned()));
                    }
                    continue;
                }
            }
            let free = state.space(&volume.pool)?.free();
            let room = if volume.thick { u64::MAX } else { free };
            if needed > room {
                if volume.when_full == WhenFull::Offline {
                    put_offline(&mut state, key, &volume)?;
                }
                return Err(Trouble::NoSpace(volume.pool.clone()));
            }
            let chain = state.chain(volume.layer);
            return Ok(state.contents.write(&chain, offset, bytes)?);
        }
    }

    /// Gives back the pages of a range of a volume.
    pub fn unmap(&self, key: &str, offset: u64, length: u64) -> Result<(), Trouble> {
        let mut state = self.lock();
        let volume = online(&state, key)?;
        within(offset, length, volume.size)?;
        let chain = state.chain(volume.layer);
        Ok(state.contents.unmap(&chain, offset, length)?)
    }

    /// Copies the used pages of a volume or snapshot into a volume that shares nothing with it, and
    /// tells how far it is: pages copied, pages in all. The caller made the volume `to` just now.
    /// The source may be written meanwhile: what is copied is its content at the beginning.
    pub fn copy_pages(
        &self,
        from: &str,
        to: &str,
        progress: impl FnMut(u64, u64),
    ) -> Result<(), Trouble> {
        let hold = self.change(|change| change.hold(from))?;
        let copied = self.copy_held(&hold, to, progress);
        self.change(|change| {
            change.release(&hold);
            Ok::<_, Trouble>(())
        })?;
        copied
    }

    fn copy_held(
        &self,
        hold: &str,
        to: &str,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<(), Trouble> {
        let held = |state: &State| {
            // Its number may change while others are removed; what it holds does not.
            let hold = state.objects.now.get::<Hold>(hold);
            hold.map_or_else(Vec::new, |hold| state.chain(hold.layer))
        };
        let pages = {
            let state = self.lock();
            state.contents.pages(&held(&state))
        };
        let all = pages.len() as u64;
        progress(0, all);
        for (done, part) in pages.chunks(64).enumerate() {
            let mut state = self.lock();
            let volume = state.objects.now.get::<Volume>(to);
            let volume = volume.ok_or_else(|| Trouble::Missing("volume", to.to_owned()))?;
            let needed = part.len() as u64 * self.0.page;
            if !volume.thick && needed > state.space(&volume.pool)?.free() {
                return Err(Trouble::NoSpace(volume.pool.clone()));
            }
            let chain = held(&state);
            for page in part {
                state.contents.copy_page(&chain, *page, volume.layer)?;
            }
            drop(state);
            progress((done as u64 * 64 + part.len() as u64).min(all), all);
        }
        Ok(())
    }

    /// An initiator logs in to a target, or leaves it: what "in use" is about.
    pub fn login(&self, target: &str, initiator: &str) {
        *self.lock().logins.entry((target.to_owned(), initiator.to_owned())).or_default() += 1;
    }

    /// See [`login`](Self::login).
    pub fn logout(&self, target: &str, initiator: &str) {
        let now = self.clock().now();
        let mut state = self.lock();
        let key = (target.to_owned(), initiator.to_owned());
        if let Some(sessions) = state.logins.get_mut(&key) {
            *sessions -= 1;
            if *sessions == 0 {
                state.logins.remove(&key);
            }
        }
        state.left.insert(target.to_owned(), now);
    }

    /// Initiators that have a target open, and how many sessions each has.
    pub fn logins(&self, target: Option<&str>) -> Vec<(String, String, usize)> {
        let state = self.lock();
        let all = state.logins.iter().filter(|((name, _), _)| target.is_none_or(|t| t == name));
        all.map(|((target, who), sessions)| (target.clone(), who.clone(), *sessions)).collect()
    }

    /// Whether a target has sessions, or had some a moment ago.
    pub fn target_in_use(&self, target: &str) -> bool {
        let settle = self.settings().settle;
        let now = self.clock().now();
        let state = self.lock();
        state.logins.keys().any(|(name, _)| name == target)
            || state.left.get(target).is_some_and(|left| now < left + settle)
    }

    /// Bytes of a page.
    pub fn page(&self) -> u64 {
        self.0.page
    }

    /// How often its objects may have changed: who keeps something derived from them looks here.
    pub fn changes(&self) -> u64 {
        self.0.changes.load(Ordering::SeqCst)
    }

    /// Where its LUNs are served.
    pub fn portal(&self) -> Option<SocketAddr> {
        *self.0.portal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says where its LUNs are served.
    pub fn set_portal(&self, portal: SocketAddr) {
        *self.0.portal.lock().unwrap_or_else(PoisonError::into_inner) = Some(portal);
    }

    /// The other controller takes over: all sessions are lost, and changes are refused for a while.
    pub fn fail_over(&self, milliseconds: u64) {
        self.sessions().drop_all();
        let until = Instant::now() + Duration::from_millis(milliseconds);
        *self.0.read_only.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    /// Whether changes are refused for the time being.
    pub fn is_failing_over(&self) -> bool {
        let until = *self.0.read_only.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Forgets what is not on disk, and reads that again: what a restart of the array is.
    pub fn restart(&self) -> Result<(), Trouble> {
        let mut state = self.lock();
        *state = State::open(&self.0.folder, self.0.page)?;
        state.drop_holds()?;
        drop(state);
        self.0.changes.fetch_add(1, Ordering::SeqCst);
        self.sessions().drop_all();
        Ok(())
    }

    /// Objects, space, sessions: what a leak is looked for in.
    pub fn inventory(&self, exports: &[Export]) -> Value {
        let state = self.lock();
        let pools = state.objects.now.all::<Pool>().into_iter().filter_map(|(name, _)| {
            let space = state.space(&name).ok()?;
            let (used, reserved, free) = (space.used, space.reserved, space.free());
            let capacity = space.capacity;
            Some((
                name,
                serde_json::json!({
                    "capacity": capacity, "used": used, "reserved": reserved, "free": free,
                }),
            ))
        });
        let pools: serde_json::Map<String, Value> = pools.collect();
        let logins = state.logins.iter().map(|((target, initiator), sessions)| {
            serde_json::json!({"target": target, "initiator": initiator, "sessions": sessions})
        });
        serde_json::json!({
            "objects": state.objects.now.json(),
            "space": pools,
            "exports": exports,
            "logins": logins.collect::<Vec<_>>(),
            "sessions": self.sessions().count(),
        })
    }
}

fn within(offset: u64, length: u64, size: u64) -> Result<(), Trouble> {
    match offset.checked_add(length) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Trouble::Invalid(format!("{length} bytes at {offset} are past the end, {size}"))),
    }
}

fn online(state: &State, key: &str) -> Result<Arc<Volume>, Trouble> {
    let volume = state.objects.now.get::<Volume>(key);
    let volume = volume.ok_or_else(|| Trouble::Missing("volume", key.to_owned()))?;
    if volume.online { Ok(volume) } else { Err(Trouble::Offline(key.to_owned())) }
}

fn put_offline(state: &mut State, key: &str, volume: &Volume) -> Result<(), Trouble> {
    state.objects.put(key, &Volume { online: false, ..volume.clone() })?;
    state.objects.commit()?;
    Ok(())
}

fn snapshots_of(state: &State, key: &str) -> Vec<(String, Arc<Snapshot>)> {
    let all = state.objects.now.all::<Snapshot>();
    let mut own: Vec<_> = all.into_iter().filter(|(_, snapshot)| snapshot.volume == key).collect();
    own.sort_by_key(|(_, snapshot)| snapshot.order);
    own
}

/// Bytes that the snapshots of a volume hold and the volume itself does not read any more.
fn kept(state: &State, key: &str, volume: &Volume) -> u64 {
    if snapshots_of(state, key).is_empty() { 0 } else { state.contents.bytes(volume.layer) }
}

/// Makes room in the reserve. Says whether the volume still serves.
fn deplete(
    state: &mut State,
    key: &str,
    volume: &Volume,
    depletion: Depletion,
) -> Result<bool, Trouble> {
    let oldest = snapshots_of(state, key).into_iter().next();
    if let (Depletion::DeleteOldest, Some((oldest, _))) = (depletion, oldest) {
        state.objects.remove::<Snapshot>(&oldest);
        state.objects.commit()?;
        state.collect()?;
        return Ok(true);
    }
    put_offline(state, key, volume)?;
    Ok(false)
}
