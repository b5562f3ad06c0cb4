//! What a change can do. All of it happens, or nothing.

use std::sync::Arc;

use serde_json::{Map, Value};
use uuid::Uuid;

use super::model::{
    Counter, Depletion, Hold, Job, JobState, Layer, Settings, Snapshot, Trouble, Volume, WhenFull,
};
use super::objects::{Record, View};
use super::state::{Space, State};

/// A volume to make.
#[derive(Clone, Debug)]
pub struct NewVolume {
    /// Its pool.
    pub pool: String,
    /// Bytes that a host sees.
    pub size: u64,
    /// Whether its whole size is taken at once.
    pub thick: bool,
    /// Whether it serves at once.
    pub online: bool,
    /// What it does in a full pool.
    pub when_full: WhenFull,
    /// Bytes reserved for its snapshots, and what happens when they are used up.
    pub snapshot_reserve: Option<(u64, Depletion)>,
    /// What the vendor adds.
    pub attributes: Map<String, Value>,
}

impl NewVolume {
    /// A thin one that serves.
    pub fn thin(pool: &str, size: u64) -> Self {
        Self {
            pool: pool.to_owned(),
            size,
            thick: false,
            online: true,
            when_full: WhenFull::Refuse,
            snapshot_reserve: None,
            attributes: Map::new(),
        }
    }
}

/// A change under way.
#[derive(Debug)]
pub struct Change<'a> {
    state: &'a mut State,
    now: u64,
    pub(super) collect: bool,
}

impl<'a> Change<'a> {
    pub(super) fn new(state: &'a mut State, now: u64) -> Self {
        Self { state, now, collect: false }
    }

    /// Milliseconds since 1970, by the array's clock.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// The objects, with what this change did so far.
    pub fn view(&self) -> View {
        self.state.objects.now.clone()
    }

    /// The record of that key.
    pub fn get<R: Record>(&self, key: &str) -> Option<Arc<R>> {
        self.state.objects.now.get(key)
    }

    /// All records of a table.
    pub fn all<R: Record>(&self) -> Vec<(String, Arc<R>)> {
        self.state.objects.now.all()
    }

    /// Keeps a record. Not for volumes and snapshots that are not there yet.
    pub fn put<R: Record, E: From<Trouble>>(&mut self, key: &str, record: &R) -> Result<(), E> {
        self.state.objects.put(key, record).map_err(|error| Trouble::from(error).into())
    }

    /// Removes a record. Volumes and snapshots have ways of their own.
    pub fn remove<R: Record>(&mut self, key: &str) {
        self.state.objects.remove::<R>(key);
    }

    /// The next number of a series, from 1.
    pub fn number(&mut self, series: &str) -> Result<u64, Trouble> {
        let next = self.get::<Counter>(series).map_or(0, |counter| counter.0) + 1;
        self.put::<_, Trouble>(series, &Counter(next))?;
        Ok(next)
    }

    /// What the array is set to.
    pub fn settings(&self) -> Settings {
        self.get::<Settings>("").map_or_else(Settings::default, |settings| (*settings).clone())
    }

    /// Refuses the next one when there are as many as a limit of the settings says.
    pub fn within(&self, limit: &'static str, there: u64) -> Result<(), Trouble> {
        match self.settings().limits.get(limit) {
            Some(most) if there >= *most => Err(Trouble::Limit(limit, *most)),
            _ => Ok(()),
        }
    }

    /// How full a pool is.
    pub fn space(&self, pool: &str) -> Result<Space, Trouble> {
        self.state.space(pool)
    }

    /// Whether a target has sessions.
    pub fn has_logins(&self, target: &str) -> bool {
        self.state.logins.keys().any(|(name, _)| name == target)
    }

    /// Bytes that a reader of this layer finds.
    pub fn referenced(&self, layer: u64) -> u64 {
        self.state.contents.referenced(&self.state.chain(layer))
    }

    /// The volume of that key, or why not.
    pub fn volume(&self, key: &str) -> Result<Volume, Trouble> {
        let volume = self.get::<Volume>(key);
        volume.map(|v| (*v).clone()).ok_or_else(|| Trouble::Missing("volume", key.to_owned()))
    }

    /// The snapshot of that key, or why not.
    pub fn snapshot(&self, key: &str) -> Result<Snapshot, Trouble> {
        let found = self.get::<Snapshot>(key);
        found.map(|s| (*s).clone()).ok_or_else(|| Trouble::Missing("snapshot", key.to_owned()))
    }

    /// The snapshots of a volume, oldest first.
    pub fn snapshots_of(&self, volume: &str) -> Vec<(String, Arc<Snapshot>)> {
        let all = self.all::<Snapshot>();
        let mut own: Vec<_> = all.into_iter().filter(|(_, s)| s.volume == volume).collect();
        own.sort_by_key(|(_, snapshot)| snapshot.order);
        own
    }

    /// The volumes that hang on a snapshot.
    pub fn clones_of(&self, snapshot: &str) -> Vec<String> {
        let all = self.all::<Volume>().into_iter();
        all.filter(|(_, v)| v.origin.as_deref() == Some(snapshot)).map(|(key, _)| key).collect()
    }

    fn layer(&mut self, pool: &str, below: Option<u64>) -> Result<u64, Trouble> {
        let number = self.number("layer")?;
        self.put::<_, Trouble>(&number.to_string(), &Layer { pool: pool.to_owned(), below })?;
        Ok(number)
    }

    /// Makes a volume that reads as zeros.
    pub fn create_volume(&mut self, key: &str, new: NewVolume) -> Result<Volume, Trouble> {
        if self.get::<Volume>(key).is_some() {
            return Err(Trouble::Exists("volume", key.to_owned()));
        }
        self.within("volumes", self.state.objects.now.count::<Volume>() as u64)?;
        let free = self.space(&new.pool)?.free();
        let reserve = new.snapshot_reserve.map_or(0, |(bytes, _)| bytes);
        if new.thick && new.size.saturating_add(reserve) > free {
            return Err(Trouble::NoSpace(new.pool));
        }
        let layer = self.layer(&new.pool, None)?;
        let volume = Volume {
            pool: new.pool,
            size: new.size,
            thick: new.thick,
            online: new.online,
            uuid: Uuid::new_v4().simple().to_string(),
            created: self.now,
            origin: None,
            when_full: new.when_full,
            snapshot_reserve: new.snapshot_reserve,
            attributes: new.attributes,
            layer,
        };
        self.put::<_, Trouble>(key, &volume)?;
        Ok(volume)
    }

    /// Makes a volume with the content of a volume or snapshot, sharing its pages. `origin` says
    /// whether it hangs on that snapshot for ever.
    pub fn clone_volume(
        &mut self,
        from: &str,
        key: &str,
        new: NewVolume,
        origin: bool,
    ) -> Result<Volume, Trouble> {
        let frozen = self.freeze(from)?;
        let pool = new.pool.clone();
        let mut volume = self.create_volume(key, new)?;
        let empty = std::mem::replace(&mut volume.layer, self.layer(&pool, Some(frozen))?);
        self.remove::<Layer>(&empty.to_string());
        volume.origin = origin.then(|| from.to_owned());
        self.put::<_, Trouble>(key, &volume)?;
        Ok(volume)
    }

    /// The layer that has what a volume or snapshot has now, and that nobody writes.
    fn freeze(&mut self, key: &str) -> Result<u64, Trouble> {
        if let Some(snapshot) = self.get::<Snapshot>(key) {
            return Ok(snapshot.layer);
        }
        let mut volume = self.volume(key)?;
        let frozen = volume.layer;
        volume.layer = self.layer(&volume.pool, Some(frozen))?;
        self.put::<_, Trouble>(key, &volume)?;
        Ok(frozen)
    }

    pub(super) fn hold(&mut self, key: &str) -> Result<String, Trouble> {
        let hold = Hold { layer: self.freeze(key)? };
        let name = self.number("hold")?.to_string();
        self.put::<_, Trouble>(&name, &hold)?;
        Ok(name)
    }

    pub(super) fn release(&mut self, hold: &str) {
        self.remove::<Hold>(hold);
        self.collect = true;
    }

    /// Takes a snapshot. Several in one change are of one instant.
    pub fn create_snapshot(
        &mut self,
        volume: &str,
        key: &str,
        attributes: Map<String, Value>,
    ) -> Result<Snapshot, Trouble> {
        if self.get::<Snapshot>(key).is_some() {
            return Err(Trouble::Exists("snapshot", key.to_owned()));
        }
        self.within("snapshots_per_volume", self.snapshots_of(volume).len() as u64)?;
        let layer = self.freeze(volume)?;
        let snapshot = Snapshot {
            volume: volume.to_owned(),
            size: self.volume(volume)?.size,
            uuid: Uuid::new_v4().simple().to_string(),
            created: self.now,
            order: self.number("snapshot")?,
            attributes,
            layer,
        };
        self.put::<_, Trouble>(key, &snapshot)?;
        Ok(snapshot)
    }

    /// Removes a volume. Its snapshots must be gone, unless the vendor keeps them.
    pub fn delete_volume(&mut self, key: &str) -> Result<(), Trouble> {
        self.volume(key)?;
        self.remove::<Volume>(key);
        self.collect = true;
        Ok(())
    }

    /// Removes a snapshot on which no clone hangs.
    pub fn delete_snapshot(&mut self, key: &str) -> Result<(), Trouble> {
        self.snapshot(key)?;
        let clones = self.clones_of(key);
        if !clones.is_empty() {
            return Err(Trouble::InUse(key.to_owned(), clones));
        }
        self.remove::<Snapshot>(key);
        self.collect = true;
        Ok(())
    }

    /// Puts a volume's content and size back to a snapshot of it.
    pub fn restore(&mut self, volume: &str, snapshot: &str) -> Result<(), Trouble> {
        let source = self.snapshot(snapshot)?;
        let mut target = self.volume(volume)?;
        target.layer = self.layer(&target.pool, Some(source.layer))?;
        target.size = source.size;
        self.collect = true;
        self.put(volume, &target)
    }

    /// Changes a volume's size. What is past the new end is gone.
    pub fn resize(&mut self, key: &str, size: u64) -> Result<(), Trouble> {
        let mut volume = self.volume(key)?;
        let more = size.saturating_sub(volume.size);
        if volume.thick && more > self.space(&volume.pool)?.free() {
            return Err(Trouble::NoSpace(volume.pool));
        }
        if size < volume.size {
            // In a layer of its own, so that nothing is lost if the change fails.
            volume.layer = self.layer(&volume.pool, Some(volume.layer))?;
            let chain = self.state.chain(volume.layer);
            self.state.contents.cut(&chain, size, volume.size)?;
            self.collect = true;
        }
        volume.size = size;
        self.put(key, &volume)
    }

    /// Turns a clone around: the snapshots of its origin's volume up to that one become its own, and
    /// the other volume hangs on it. `rename` gives the snapshots their new keys.
    pub fn promote(&mut self, key: &str, rename: impl Fn(&str) -> String) -> Result<(), Trouble> {
        let mut clone = self.volume(key)?;
        let not = || Trouble::Invalid(format!("{key} is not a clone"));
        let origin = clone.origin.clone().ok_or_else(not)?;
        let at = self.snapshot(&origin)?;
        let parent = at.volume.clone();
        let moved: Vec<_> =
            self.snapshots_of(&parent).into_iter().filter(|(_, s)| s.order <= at.order).collect();
        for (old, snapshot) in &moved {
            let new = rename(old);
            if self.get::<Snapshot>(&new).is_some() {
                return Err(Trouble::Exists("snapshot", new));
            }
            self.remove::<Snapshot>(old);
            let snapshot = Snapshot { volume: key.to_owned(), ..(**snapshot).clone() };
            self.put::<_, Trouble>(&new, &snapshot)?;
        }
        let parent_volume = self.volume(&parent)?;
        clone.origin = parent_volume
            .origin
            .as_ref()
            .map(|of| if moved.iter().any(|(old, _)| old == of) { rename(of) } else { of.clone() });
        self.put::<_, Trouble>(key, &clone)?;
        for (other, volume) in self.all::<Volume>() {
            let mut volume = (*volume).clone();
            let hangs = volume.origin.clone().filter(|of| moved.iter().any(|(old, _)| old == of));
            if let (Some(of), true) = (hangs, other != key) {
                volume.origin = Some(rename(&of));
                self.put::<_, Trouble>(&other, &volume)?;
            }
        }
        let parent_volume = Volume { origin: Some(rename(&origin)), ..parent_volume };
        self.put(&parent, &parent_volume)
    }

    /// Gives a volume another key; its snapshots and clones follow.
    pub fn rename_volume(&mut self, from: &str, to: &str) -> Result<(), Trouble> {
        let volume = self.volume(from)?;
        if self.get::<Volume>(to).is_some() {
            return Err(Trouble::Exists("volume", to.to_owned()));
        }
        self.remove::<Volume>(from);
        self.put::<_, Trouble>(to, &volume)?;
        for (key, snapshot) in self.snapshots_of(from) {
            self.put::<_, Trouble>(
                &key,
                &Snapshot { volume: to.to_owned(), ..(*snapshot).clone() },
            )?;
        }
        Ok(())
    }

    /// Gives a snapshot another key; the clones that hang on it follow.
    pub fn rename_snapshot(&mut self, from: &str, to: &str) -> Result<(), Trouble> {
        let snapshot = self.snapshot(from)?;
        if self.get::<Snapshot>(to).is_some() {
            return Err(Trouble::Exists("snapshot", to.to_owned()));
        }
        for clone in self.clones_of(from) {
            let volume = Volume { origin: Some(to.to_owned()), ..self.volume(&clone)? };
            self.put::<_, Trouble>(&clone, &volume)?;
        }
        self.remove::<Snapshot>(from);
        self.put(to, &snapshot)
    }

    /// Starts a job, which ends when the array's clock says so; with an error, if it shall fail.
    /// What is visible before its end is up to the caller, who does it in this change, and what is
    /// done at its end in [`Array::end_jobs`](super::Array::end_jobs).
    pub fn start_job(
        &mut self,
        method: &str,
        arguments: Value,
        error: Option<String>,
    ) -> Result<u64, Trouble> {
        let number = self.number("job")?;
        let job = Job {
            method: method.to_owned(),
            arguments,
            created: self.now,
            ends: self.now + self.settings().job,
            error,
            finished: false,
            result: Value::Null,
        };
        self.put::<_, Trouble>(&number.to_string(), &job)?;
        Ok(number)
    }
}

impl Job {
    /// How it stands at a time of the array's clock.
    pub fn state(&self, now: u64) -> JobState {
        if now < self.ends || !self.finished {
            let (gone, all) = (now.saturating_sub(self.created), self.ends - self.created);
            let percent = (gone * 100).checked_div(all).unwrap_or(99).min(99);
            return JobState::Running(u8::try_from(percent).unwrap_or(99));
        }
        match &self.error {
            Some(error) => JobState::Failed(error.clone()),
            None => JobState::Done(self.result.clone()),
        }
    }
}
