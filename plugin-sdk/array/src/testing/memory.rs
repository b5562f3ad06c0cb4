//! An array in memory.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::pending;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use plugin_sdk::model::vdi::Qos;
use plugin_sdk::model::{Bytes, Error, Kind, Result};
use plugin_sdk::tokio::sync::Notify;

use crate::array::{
    Capabilities, CloneKind, DeleteKind, GroupNaming, LunAddressing, MetadataPlace, New,
    SnapshotScope, Volume,
};
use crate::ledger::ResizeKind;
use crate::names::NameRule;
use crate::outcome::{Class, Failure, Outcome};
use crate::size::SizeRule;

/// How an array behaves.
#[derive(Clone, Debug)]
pub struct Habits {
    /// What it says of itself.
    pub capabilities: Capabilities,
    /// How long its reads are stale after a change.
    pub stale: Duration,
    /// What it adds to a size by itself.
    pub added: u64,
}

impl Habits {
    fn base(names: NameRule, unit: u64, metadata: MetadataPlace) -> Self {
        let capabilities = Capabilities {
            names,
            unique_names: true,
            size: SizeRule::new(Bytes(unit), Bytes(unit.max(1 << 20)), Bytes(1 << 46)),
            resize: ResizeKind::Absolute,
            clone: CloneKind::Independent,
            snapshots: SnapshotScope::Volume,
            max_snapshots: None,
            group_snapshots: true,
            delete: DeleteKind::Immediate,
            delete_takes_snapshots: true,
            restore_drops_newer: false,
            lun: LunAddressing::Chosen { first: 0, last: 16383 },
            metadata,
        };
        Self { capabilities, stale: Duration::ZERO, added: 0 }
    }

    /// One target per volume, names given after the fact, clones that are copies.
    pub fn equallogic() -> Self {
        let mut habits =
            Self::base(NameRule::new(63), 15 << 20, MetadataPlace::Later { limit: 4096 });
        habits.capabilities.clone = CloneKind::Copies;
        habits.capabilities.snapshots = SnapshotScope::Unnamed;
        habits.capabilities.group_snapshots = false;
        habits.capabilities.lun = LunAddressing::TargetPerVolume { lun: 0 };
        habits.capabilities.delete = DeleteKind::OfflineFirst;
        habits
    }

    /// Clones that hang on snapshots; a volume stays as long as it has any; a restore removes newer ones.
    pub fn truenas() -> Self {
        let mut habits =
            Self::base(NameRule::new(200), 16 << 10, MetadataPlace::AtCreate { limit: 4096 });
        habits.capabilities.clone = CloneKind::Dependent;
        habits.capabilities.snapshots = SnapshotScope::Within;
        habits.capabilities.delete_takes_snapshots = false;
        habits.capabilities.restore_drops_newer = true;
        habits
    }

    /// Snapshots that are volumes; lists that lag.
    pub fn powerstore() -> Self {
        let mut habits = Self::base(NameRule::new(128), 8192, MetadataPlace::Later { limit: 250 });
        habits.stale = Duration::from_millis(20);
        habits.capabilities.delete = DeleteKind::RecycleBin;
        habits
    }

    /// Tags apart from volumes, `vol.suffix`, names without case.
    pub fn pure() -> Self {
        let names = NameRule::new(63).case_insensitive();
        let mut habits = Self::base(names, 512, MetadataPlace::Apart { limit: 1024 });
        habits.capabilities.snapshots = SnapshotScope::Within;
        habits.capabilities.delete = DeleteKind::DestroyThenEradicate;
        habits.capabilities.lun = LunAddressing::Chosen { first: 1, last: 4095 };
        habits
    }

    /// Sizes that the array rounds as it likes.
    pub fn ontap() -> Self {
        let mut habits =
            Self::base(NameRule::new(200), 4096, MetadataPlace::AtCreate { limit: 254 });
        habits.capabilities.size.slack = Bytes(64 << 20);
        habits.added = 28 << 12;
        habits
    }

    /// Sizes given as differences, short names, names that are not unique, lists that lag.
    pub fn odd() -> Self {
        let mut habits =
            Self::base(NameRule::new(31), 256 << 20, MetadataPlace::Later { limit: 1024 });
        habits.capabilities.resize = ResizeKind::Delta;
        habits.capabilities.unique_names = false;
        habits.stale = Duration::from_millis(20);
        habits
    }
}

/// What goes wrong at a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The array says that it is busy, and does nothing.
    Refused,
    /// The request does not arrive, which nobody can tell.
    RequestLost,
    /// It is done, and the answer does not arrive.
    ReplyLost,
    /// Whoever asked dies before the request arrives.
    DiesBefore,
    /// It is done, and whoever asked dies.
    DiesAfter,
}

impl Trouble {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Refused, Self::RequestLost, Self::ReplyLost, Self::DiesBefore, Self::DiesAfter];
}

/// An array in memory. Clones are the same array.
#[derive(Clone, Debug)]
pub struct MemoryArray(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    habits: Habits,
    state: Mutex<State>,
    died: Notify,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Objects {
    /// By id. Names may not be unique.
    pub(super) volumes: BTreeMap<String, Disk>,
    pub(super) snapshots: BTreeMap<String, Disk>,
    pub(super) texts: BTreeMap<String, String>,
    /// Objects that group snapshots need.
    pub(super) groups: BTreeSet<String>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) content: u64,
    pub(super) text: Option<String>,
    /// Of a snapshot: the id of its volume.
    pub(super) of: Option<String>,
    /// Of a clone: the id of its snapshot.
    pub(super) origin: Option<String>,
    pub(super) order: u64,
    pub(super) qos: Qos,
    pub(super) hosts: BTreeSet<String>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) now: Objects,
    /// What reads saw until when.
    pub(super) before: VecDeque<(Instant, Objects)>,
    pub(super) next: u64,
    pub(super) calls: Vec<&'static str>,
    pub(super) changes: usize,
    pub(super) trouble: Option<(usize, Trouble)>,
    pub(super) connected: BTreeMap<String, u64>,
    pub(super) unreachable: bool,
    pub(super) violations: Vec<String>,
}

impl MemoryArray {
    /// An array with these habits, and two volumes of somebody else's.
    pub fn new(habits: Habits) -> Self {
        let array = Self(Arc::new(Shared { habits, state: Mutex::default(), died: Notify::new() }));
        for name in ["payroll", "smv-by-hand"] {
            let mut state = array.lock();
            let id = state.id();
            let disk = Disk { name: name.to_owned(), size: 1 << 30, content: 7, ..Disk::default() };
            state.now.volumes.insert(id.clone(), disk);
            let snapshot = state.id();
            let disk = Disk { name: "nightly".to_owned(), of: Some(id), ..Disk::default() };
            state.now.snapshots.insert(snapshot, disk);
        }
        array
    }

    /// Lets the `n`-th change from now on (1 is the next) go wrong.
    pub fn trouble(&self, n: usize, trouble: Trouble) {
        let mut state = self.lock();
        state.changes = 0;
        state.trouble = Some((n, trouble));
    }

    /// How many changes there were since the last [`Self::trouble`].
    pub fn changes(&self) -> usize {
        self.lock().changes
    }

    /// All primitives that were called, in order; forgets them.
    pub fn take_calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.lock().calls)
    }

    /// Waits until somebody has died.
    pub async fn died(&self) {
        self.0.died.notified().await;
    }

    /// All objects as lines of text: what a leak is looked for in.
    pub fn inventory(&self) -> Vec<String> {
        let state = self.lock();
        let line = |kind: &str, disk: &Disk| {
            format!("{kind} {} {} {} {:?}", disk.name, disk.size, disk.content, disk.hosts)
        };
        let volumes = state.now.volumes.values().map(|disk| line("volume", disk));
        let snapshots = state.now.snapshots.values().map(|disk| line("snapshot", disk));
        let texts = state.now.texts.keys().map(|id| format!("text {id}"));
        let groups = state.now.groups.iter().map(|name| format!("group {name}"));
        volumes.chain(snapshots).chain(texts).chain(groups).collect()
    }

    /// What was done in an order that it must not be done in.
    pub fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    /// A guest writes: the content of the volume with this name becomes a number.
    pub fn write(&self, name: &str, content: u64) {
        let mut state = self.lock();
        for disk in state.now.volumes.values_mut().filter(|disk| disk.name == name) {
            disk.content = content;
        }
    }

    /// The content of the volume or snapshot whose name ends so.
    pub fn content(&self, name: &str) -> Vec<u64> {
        let state = self.lock();
        let all = state.now.volumes.values().chain(state.now.snapshots.values());
        all.filter(|disk| disk.name == name).map(|disk| disk.content).collect()
    }

    /// Somebody at the array's console removes a volume, with its snapshots.
    pub fn remove_by_hand(&self, name: &str) {
        let mut state = self.lock();
        let ids: Vec<String> = state.volume_ids(name);
        state.now.volumes.retain(|id, _| !ids.contains(id));
        state.now.snapshots.retain(|_, disk| disk.of.as_ref().is_none_or(|of| !ids.contains(of)));
    }

    /// Somebody at the array's console takes a snapshot of a volume.
    pub fn snapshot_by_hand(&self, volume: &str, name: &str) {
        let mut state = self.lock();
        for of in state.volume_ids(volume) {
            let content = state.now.volumes.get(&of).map_or(0, |disk| disk.content);
            let (id, of) = (state.id(), Some(of));
            let disk = Disk { name: name.to_owned(), content, of, ..Disk::default() };
            state.now.snapshots.insert(id, disk);
        }
    }

    /// Somebody at the array's console removes a snapshot.
    pub fn remove_snapshot_by_hand(&self, name: &str) {
        self.lock().now.snapshots.retain(|_, disk| disk.name != name);
    }

    /// Somebody at the array's console changes a volume's size, text, or hosts.
    pub fn change_by_hand(&self, name: &str, size: u64, text: Option<&str>) {
        let mut state = self.lock();
        for id in state.volume_ids(name) {
            if let Some(disk) = state.now.volumes.get_mut(&id) {
                disk.size = size;
                if disk.text.is_some() {
                    disk.text = text.map(str::to_owned);
                }
            }
        }
    }

    /// Sizes of what hosts are connected to, as they know them.
    pub fn connected(&self) -> Vec<u64> {
        self.lock().connected.values().copied().collect()
    }

    /// From now on connecting fails, or works again.
    pub fn unreachable(&self, unreachable: bool) {
        self.lock().unreachable = unreachable;
    }

    pub(super) fn connect(&self, scsi_id: &str, size: Bytes) -> Result<()> {
        let mut state = self.lock();
        if state.unreachable {
            return Err(Error::new(Kind::Unreachable, "no path leads to the LUN"));
        }
        let id = scsi_id.trim_start_matches("36").to_owned();
        let all = &state.now;
        let disk = all.volumes.get(&id).or_else(|| all.snapshots.get(&id));
        if disk.is_none_or(|disk| disk.hosts.is_empty()) {
            return Err(Error::internal(format!("no LUN has the identity {scsi_id}")));
        }
        state.connected.insert(id, size.0);
        Ok(())
    }

    pub(super) fn disconnect(&self, scsi_id: &str) {
        self.lock().connected.remove(scsi_id.trim_start_matches("36"));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn caps(&self) -> &Capabilities {
        &self.0.habits.capabilities
    }

    /// Snapshots that share a name: where they lie within volumes, as ZFS does.
    pub(super) fn group_names(&self) -> GroupNaming {
        match (self.caps().snapshots, self.caps().clone) {
            (SnapshotScope::Within, CloneKind::Dependent) => GroupNaming::Shared,
            _ => GroupNaming::Each,
        }
    }

    pub(super) async fn change<T>(
        &self,
        call: &'static str,
        work: impl FnOnce(&mut State, &Habits) -> Outcome<T> + Send,
    ) -> Outcome<T> {
        let trouble = {
            let mut state = self.lock();
            state.calls.push(call);
            state.changes += 1;
            let changes = state.changes;
            state.trouble.take_if(|(n, _)| *n == changes).map(|(_, trouble)| trouble)
        };
        let lost = || Failure::new(Class::Unknown).fact(format!("the answer to {call} was lost"));
        let work = |state: &mut State| {
            let stale = self.0.habits.stale;
            if !stale.is_zero() {
                let seen = state.now.clone();
                state.before.push_back((Instant::now() + stale, seen));
            }
            work(state, &self.0.habits)
        };
        match trouble {
            None => work(&mut self.lock()),
            Some(Trouble::Refused) => Err(Failure::new(Class::Busy)),
            Some(Trouble::RequestLost) => Err(lost()),
            Some(Trouble::ReplyLost) => {
                let _ = work(&mut self.lock());
                Err(lost())
            }
            Some(Trouble::DiesBefore) => {
                self.0.died.notify_one();
                pending().await
            }
            Some(Trouble::DiesAfter) => {
                let _ = work(&mut self.lock());
                self.0.died.notify_one();
                pending().await
            }
        }
    }

    pub(super) fn read<T>(
        &self,
        call: &'static str,
        work: impl FnOnce(&Objects, &Self) -> Outcome<T>,
    ) -> Outcome<T> {
        let mut state = self.lock();
        state.calls.push(call);
        let now = Instant::now();
        while state.before.front().is_some_and(|(until, _)| *until <= now) {
            state.before.pop_front();
        }
        let seen = state.before.front().map_or_else(|| state.now.clone(), |(_, seen)| seen.clone());
        drop(state);
        work(&seen, self)
    }

    pub(super) fn show(&self, objects: &Objects, id: &str, disk: &Disk) -> Volume {
        let snapshot_of = disk.of.as_ref().map(|of| {
            objects.volumes.get(of).map_or_else(String::new, |volume| volume.name.clone())
        });
        let apart = matches!(self.caps().metadata, MetadataPlace::Apart { .. });
        Volume {
            id: id.to_owned(),
            name: disk.name.clone(),
            size: Bytes(disk.size),
            used: Some(Bytes(0)),
            snapshot_of,
            origin: disk.origin.clone(),
            metadata: disk.text.clone().filter(|_| !apart),
            order: disk.order,
            qos: disk.qos,
            trouble: None,
        }
    }
}

impl State {
    pub(super) fn id(&mut self) -> String {
        self.next += 1;
        format!("{:032x}", self.next)
    }

    fn volume_ids(&self, name: &str) -> Vec<String> {
        let named = self.now.volumes.iter().filter(|(_, disk)| disk.name == name);
        named.map(|(id, _)| id.clone()).collect()
    }

    pub(super) fn check_name(&self, name: &str, habits: &Habits) -> Outcome<()> {
        if name.len() > habits.capabilities.names.max {
            return Err(Failure::new(Class::Invalid).words("name too long"));
        }
        if habits.capabilities.unique_names && !self.volume_ids(name).is_empty() {
            return Err(Failure::new(Class::AlreadyExists).words("already exists"));
        }
        Ok(())
    }

    pub(super) fn add(
        &mut self,
        new: &New<'_>,
        content: u64,
        origin: Option<String>,
        habits: &Habits,
    ) -> String {
        let id = self.id();
        let at_create = matches!(habits.capabilities.metadata, MetadataPlace::AtCreate { .. });
        let disk = Disk {
            name: new.name.to_owned(),
            size: new.size.0,
            content,
            text: at_create.then(|| new.metadata.to_owned()),
            origin,
            ..Disk::default()
        };
        self.now.volumes.insert(id.clone(), disk);
        id
    }

    pub(super) fn add_snapshot(
        &mut self,
        of: &str,
        name: &str,
        text: &str,
        habits: &Habits,
    ) -> Outcome<String> {
        let volume =
            self.now.volumes.get(of).cloned().ok_or_else(|| Failure::not_found("the volume"))?;
        let taken = |disk: &Disk| disk.name == name && disk.of.as_deref() == Some(of);
        if self.now.snapshots.values().any(taken) {
            return Err(Failure::new(Class::AlreadyExists).words("snapshot exists"));
        }
        let id = self.id();
        let at_create = matches!(habits.capabilities.metadata, MetadataPlace::AtCreate { .. });
        let disk = Disk {
            name: name.to_owned(),
            text: at_create.then(|| text.to_owned()).filter(|text| !text.is_empty()),
            of: Some(of.to_owned()),
            origin: None,
            order: self.next,
            qos: Qos::default(),
            hosts: BTreeSet::new(),
            ..volume
        };
        self.now.snapshots.insert(id.clone(), disk);
        Ok(id)
    }
}
