//! The array: how it is made, changed and asked.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::change::Change;
use super::clock::Clock;
use super::data::Moved;
use super::faults::Faults;
use super::model::{Export, Pool, Settings, Trouble};
use super::objects::View;
use super::requests::Requests;
use super::sessions::Sessions;
use super::state::{Space, State};

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
    moved: Moved,
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
            moved: Moved::default(),
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

    /// How many bytes came and went, by whom.
    pub fn moved(&self) -> &Moved {
        &self.0.moved
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
