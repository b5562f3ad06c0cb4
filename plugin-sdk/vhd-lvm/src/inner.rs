//! What the store does with the group and with its small things.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use host_kit::lvm::{Group, Piece, Volume};
use plugin_sdk::model::Kind;
use plugin_sdk::model::uuid::Uuid;
use plugin_sdk::step;
use vhd::store::{Area, At, Blob as _};
use vhd::{Error, Result};

use crate::blob::{Part, Places, VolumeBlob};
use crate::direct::Direct;
use crate::lease::Right;
use crate::objects::{self, Change, Objects};
use crate::rights::{Entered, Rights};
use crate::volumes::Volumes;

/// The volume of everything that is small.
pub(crate) const OBJECTS: &str = "sm-store";
/// The same before it is whole.
pub(crate) const NEW_OBJECTS: &str = "sm-tmp-store";
pub(crate) const IMAGE: &str = "VHD-";
pub(crate) const TMP: &str = "sm-tmp-";
pub(crate) const OLD: &str = "sm-old-";
/// Where volumes are, among the small things, that are just getting longer; beside the areas of a tree.
const LONGER: u8 = u8::MAX - 1;
/// Bytes at the end of a volume that tell what it is.
const FOOTER: u64 = 512;
/// How long one change of another process may take.
pub(crate) const TURN: Duration = Duration::from_secs(60);
/// Between two tries at a lock, at most.
pub(crate) const PAUSE: Duration = Duration::from_millis(50);

/// The store; nothing of it is held open but the group's devices.
pub(crate) struct Inner {
    pub(crate) volumes: Box<dyn Volumes>,
    pub(crate) group: String,
    pub(crate) locks: PathBuf,
    /// How claims name this host.
    pub(crate) me: String,
    pub(crate) rights: Arc<Rights>,
    /// The right to change the store, while somebody of this process has it.
    pub(crate) entered: Mutex<Weak<Entered>>,
    pub(crate) view: Mutex<View>,
}

/// What was read, as long as nobody can have changed it.
#[derive(Default)]
pub(crate) struct View {
    pub(crate) group: Option<Arc<Group>>,
    pub(crate) objects: Option<Objects>,
    pub(crate) disks: HashMap<(PathBuf, bool), Arc<Direct>>,
}

impl View {
    /// Notes a change of a volume in what was read.
    pub(crate) fn note(&mut self, name: &str, change: impl FnOnce(&mut Volume)) {
        let group = self.group.as_mut().map(Arc::make_mut);
        let volume = group.and_then(|group| group.volumes.iter_mut().find(|v| v.name == name));
        if let Some(volume) = volume {
            change(volume);
        }
    }
}

/// An error of LVM as one of the store; `vhd_folder` gets it out again as it was.
pub(crate) fn told(path: &Path, action: &'static str) -> impl FnOnce(plugin_sdk::Error) -> Error {
    move |error| {
        let kind = match error.kind {
            Kind::NoSpace => ErrorKind::StorageFull,
            Kind::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::Other,
        };
        Error::io(path, action)(io::Error::new(kind, error))
    }
}

/// The volume that a thing is; none if it is small.
pub(crate) fn volume_of(at: &At) -> Option<String> {
    let (stem, extension) = at.name.rsplit_once('.')?;
    match at.area {
        Area::Images if extension == "vhd" => Some(format!("{IMAGE}{stem}")),
        Area::Tmp if matches!(extension, "vhd" | "new") => Some(format!("{TMP}{}", at.name)),
        _ => None,
    }
}

/// The thing that a volume is.
pub(crate) fn thing_of(volume: &str) -> Option<At> {
    if let Some(uuid) = volume.strip_prefix(IMAGE) {
        return Some(At::new(Area::Images, format!("{uuid}.vhd")));
    }
    let name = volume.strip_prefix(TMP)?;
    Some(At::new(Area::Tmp, name)).filter(|at| volume_of(at).is_some())
}

/// A volume by its name; one whose name is just changing hands is there by the one it has meanwhile.
pub(crate) fn find<'a>(group: &'a Group, name: &str) -> Option<&'a Volume> {
    group.volume(name).or_else(|| {
        let uuid = name.strip_prefix(IMAGE)?;
        group.volume(&format!("{OLD}{uuid}"))
    })
}

impl Inner {
    pub(crate) fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn dir(&self) -> PathBuf {
        Path::new("/dev").join(&self.group)
    }

    pub(crate) fn lvm<T>(
        &self,
        action: &'static str,
        name: &str,
        done: plugin_sdk::Result<T>,
    ) -> Result<T> {
        done.map_err(told(&self.dir().join(name), action))
    }

    pub(crate) fn group(&self, view: &mut View) -> Result<Arc<Group>> {
        if let Some(group) = &view.group {
            return Ok(Arc::clone(group));
        }
        let group = Arc::new(self.volumes.group().map_err(told(&self.dir(), "list"))?);
        view.group = Some(Arc::clone(&group));
        Ok(group)
    }

    pub(crate) fn lock_file(&self, name: &str) -> PathBuf {
        self.locks.join(format!("{}.{name}", self.group))
    }

    pub(crate) fn open_lock(&self, name: &str) -> Result<File> {
        let path = self.lock_file(name);
        std::fs::create_dir_all(&self.locks).map_err(Error::io(&path, "lock"))?;
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        file.map_err(Error::io(&path, "lock"))
    }

    pub(crate) fn attempt(
        &self,
        name: &str,
        lock: fn(&File) -> std::result::Result<(), TryLockError>,
    ) -> Result<Option<File>> {
        let file = self.open_lock(name)?;
        match lock(&file) {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(Error::io(&self.lock_file(name), "lock")(error)),
        }
    }

    /// Takes a lock of this host.
    pub(crate) fn take(&self, name: &str, deadline: Instant) -> Result<File> {
        let (start, mut pause) = (Instant::now(), Duration::from_millis(1));
        loop {
            if let Some(file) = self.attempt(name, File::try_lock)? {
                return Ok(file);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let waited_ms = start.elapsed().as_millis() as u64;
                let holder = "another process of this host".to_owned();
                return Err(Error::Busy { path: self.lock_file(name), holder, waited_ms });
            }
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(PAUSE);
        }
    }

    /// Takes the right to change the store. What was read is from then on, or from before and still
    /// so. Error kind `fenced` if this host is shut out.
    pub(crate) fn enter(&self, deadline: Instant) -> Result<Arc<Entered>> {
        let entered = self.enter_also_fenced(deadline)?;
        if entered.lease.is_some() {
            self.refuse_fenced(&mut self.view())?;
        }
        Ok(entered)
    }

    /// As [`Inner::enter`], also for a host that is shut out.
    pub(crate) fn enter_also_fenced(&self, deadline: Instant) -> Result<Arc<Entered>> {
        let file = self.take("lock", deadline)?;
        let known = {
            let mut view = self.view();
            let known = view.objects.is_some();
            if !known {
                view.group = None;
            }
            self.open_rights(&mut view)?;
            known
        };
        let lease = self.rights.take(Right::Change, deadline)?;
        let entered = Arc::new(Entered { lease, _file: file });
        *self.entered.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&entered);
        let Some(lease) = &entered.lease else { return Ok(entered) };
        let mut view = self.view();
        if known {
            // Who changed volumes meanwhile has written that down before.
            self.refresh(&mut view)?;
        } else if !lease.alone {
            view.group = None;
        }
        self.objects(&mut view)?;
        if lease.fence {
            self.leave_half(&mut view)?;
            lease.fenced();
            step!("store.fenced");
        }
        Ok(entered)
    }

    /// Goes over to the other half of the log: what somebody else still writes does not count.
    pub(crate) fn leave_half(&self, view: &mut View) -> Result<()> {
        let path = self.dir().join(OBJECTS);
        self.objects(view)?.leave_half().map_err(Error::io(&path, "write"))?;
        view.group = None;
        Ok(())
    }

    /// The epoch of the right that this process has; 0 if it has none.
    pub(crate) fn epoch(&self) -> u64 {
        let held = self.entered.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        let lease = held.as_ref().and_then(|entered| entered.lease.as_ref());
        lease.map_or(0, |lease| lease.held.epoch())
    }

    /// Reads what there is, with one report: what it says is no older than the small things unless
    /// somebody changed something just then.
    pub(crate) fn glance(&self) -> Result<()> {
        let mut view = self.view();
        if view.objects.is_some() {
            return self.refresh(&mut view);
        }
        let Some(_nobody_here) = self.attempt("lock", File::try_lock_shared)? else {
            return Ok(());
        };
        view.group = None;
        self.objects(&mut view)?;
        self.open_rights(&mut view)?;
        if !self.rights.is_alone().map_err(Error::io(&self.dir().join(OBJECTS), "lease"))? {
            view.group = None;
        }
        Ok(())
    }

    /// Finds the slots of the hosts, if there are any.
    pub(crate) fn open_rights(&self, view: &mut View) -> Result<()> {
        if self.rights.is_open() || self.group(view)?.volume(OBJECTS).is_none() {
            return Ok(());
        }
        let blob = self.blob(view, OBJECTS, true)?;
        self.rights.open(blob).map(drop).map_err(told(&self.dir().join(OBJECTS), "lease"))
    }

    /// Changes volumes or small things, with nobody else changing any. With `tick` the store's stamp
    /// is another one before.
    pub(crate) fn change<T>(
        &self,
        tick: bool,
        work: impl FnOnce(&mut View) -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + TURN;
        let held = self.entered.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        let _entered = held.map_or_else(|| self.enter(deadline), Ok)?;
        let _turn = self.take("turn", deadline)?;
        self.check()?;
        let mut view = self.view();
        self.refresh(&mut view)?;
        if tick {
            self.write(&mut view, Change::Tick, &[])?;
        }
        work(&mut view)
    }

    /// Error kind `fenced` for whoever has lost its right.
    pub(crate) fn check(&self) -> Result<()> {
        self.rights.check().map_err(told(&self.dir(), "change"))
    }

    pub(crate) fn write(&self, view: &mut View, change: Change, content: &[u8]) -> Result<()> {
        let path = self.dir().join(OBJECTS);
        self.objects(view)?;
        self.check()?;
        self.objects(view)?.write(change, content).map_err(Error::io(&path, "write"))
    }

    /// Takes in what others have written of small things; what was read of volumes is old then.
    pub(crate) fn refresh(&self, view: &mut View) -> Result<()> {
        let Some(objects) = &mut view.objects else { return Ok(()) };
        if objects.refresh().map_err(Error::io(&self.dir().join(OBJECTS), "read"))? {
            view.group = None;
        }
        Ok(())
    }

    /// The small things, read once.
    pub(crate) fn objects<'a>(&self, view: &'a mut View) -> Result<&'a mut Objects> {
        if view.objects.is_none() {
            let mut blob = self.blob(view, OBJECTS, true)?;
            blob.store = None;
            let objects = Objects::open(Box::new(blob));
            view.objects = Some(objects.map_err(Error::io(&self.dir().join(OBJECTS), "read"))?);
        }
        let none = || Error::io(&self.dir().join(OBJECTS), "read")(ErrorKind::NotFound.into());
        view.objects.as_mut().ok_or_else(none)
    }

    pub(crate) fn disk(&self, view: &mut View, path: PathBuf, write: bool) -> Result<Arc<Direct>> {
        let key = (path, write);
        if let Some(disk) = view.disks.get(&key) {
            return Ok(Arc::clone(disk));
        }
        let disk = Direct::open(&key.0, write, self.volumes.cached());
        let disk = Arc::new(disk.map_err(Error::io(&key.0, "open"))?);
        view.disks.insert(key, Arc::clone(&disk));
        Ok(disk)
    }

    /// An open volume.
    pub(crate) fn blob(&self, view: &mut View, name: &str, write: bool) -> Result<VolumeBlob> {
        let group = self.group(view)?;
        let path = self.dir().join(name);
        let volume = find(&group, name);
        let volume = volume.ok_or_else(|| Error::io(&path, "open")(ErrorKind::NotFound.into()))?;
        let places = self.places(view, &group, volume, write)?;
        Ok(VolumeBlob { store: None, id: volume.id.clone(), write, places: Mutex::new(places) })
    }

    /// Lets a volume be written whose device would not: what guests read of base copies is read-only.
    pub(crate) fn permit(&self, name: &str) -> Result<()> {
        let locked = |volume: &Volume| volume.active && !volume.writable;
        if !find(&*self.group(&mut self.view())?, name).is_some_and(locked) {
            return Ok(());
        }
        self.change(true, |view| {
            let group = self.group(view)?;
            let Some(volume) = find(&group, name).filter(|volume| locked(volume)) else {
                return Ok(());
            };
            self.lvm("permit", &volume.name, self.volumes.permit(&volume.name, true))?;
            view.note(&volume.name, |volume| volume.writable = true);
            step!("store.permitted");
            Ok(())
        })
    }

    /// Makes a device of a volume that is about to be merged into: whoever opens it on this host from
    /// now on sees what is written, because it goes the same way. Error [`Error::InUse`] if there is
    /// one already, and another host has written to the volume since.
    pub(crate) fn ready_target(&self, uuid: Uuid, name: &str) -> Result<()> {
        // Who has written to it last by merging.
        let by = objects::key(&At::new(Area::Merges, format!("{uuid}.by")));
        self.change(true, |view| {
            view.group = None;
            let group = self.group(view)?;
            let gone = || Error::io(&self.dir().join(name), "open")(ErrorKind::NotFound.into());
            let volume = find(&group, name).ok_or_else(gone)?;
            let last = self.objects(view)?.get(&by);
            let ours = last.as_ref().is_some_and(|last| **last == *self.me.as_bytes());
            if volume.active
                && !ours
                && let Some(last) = last
            {
                let holder = String::from_utf8_lossy(&last).into_owned();
                let holder = format!("it has a device here from before {holder} wrote to it");
                return Err(Error::InUse { uuid, holder });
            }
            if !ours {
                self.write(view, Change::Set(by.0, by.1.clone()), self.me.as_bytes())?;
            }
            if !volume.active {
                self.lvm("activate", name, self.volumes.activate(&[&volume.name]))?;
                view.group = None;
            }
            Ok(())
        })
    }

    /// Where a volume lies.
    pub(crate) fn places(
        &self,
        view: &mut View,
        group: &Group,
        volume: &Volume,
        write: bool,
    ) -> Result<Arc<Places>> {
        let (length, extent) = (volume.size, group.extent);
        if volume.active {
            // Not from the view: it would be open when somebody deactivates it.
            let path = self.volumes.device(&volume.name);
            let disk = Direct::open(&path, write, self.volumes.cached());
            let disk = Arc::new(disk.map_err(Error::io(&path, "open"))?);
            let parts = vec![Part { start: 0, length, disk, offset: 0 }];
            return Ok(Arc::new(Places { length, extent, parts }));
        }
        if volume.pieces.is_empty() {
            let what = "is not linear, and so none of an SR of VHDs".to_owned();
            return Err(Error::Store { path: self.dir().join(&volume.name), what });
        }
        let mut parts = Vec::with_capacity(volume.pieces.len());
        for Piece { start, length, device, offset } in &volume.pieces {
            let disk = self.disk(view, self.volumes.disk(device), write)?;
            parts.push(Part { start: *start, length: *length, disk, offset: *offset });
        }
        Ok(Arc::new(Places { length, extent, parts }))
    }

    /// Gives a volume another size, and answers where it lies then.
    pub(crate) fn resize(&self, id: &str, length: u64, write: bool) -> Result<Arc<Places>> {
        self.change(true, |view| {
            let find = |group: &Group| group.volumes.iter().find(|v| v.id == id).cloned();
            let gone = || Error::io(&self.dir(), "resize")(ErrorKind::NotFound.into());
            let mut group = self.group(view)?;
            let mut volume = find(&group).ok_or_else(gone)?;
            let bytes = length.max(1).next_multiple_of(group.extent);
            if volume.size != bytes {
                let longer = bytes > volume.size;
                if longer {
                    let set = Change::Set(LONGER, id.to_owned());
                    self.write(view, set, volume.size.to_string().as_bytes())?;
                }
                let done = self.volumes.resize(&volume.name, bytes, !longer);
                let done = self.lvm("resize", &volume.name, done);
                step!("store.resized");
                view.group = None;
                if longer {
                    self.clear_end(view, id)?;
                }
                done?;
                group = self.group(view)?;
                volume = find(&group).ok_or_else(gone)?;
            }
            self.places(view, &group, &volume, write)
        })
    }

    /// The volumes that were cut while they got longer.
    pub(crate) fn cut_longer(&self) -> Result<Vec<String>> {
        Ok(self.objects(&mut self.view())?.names(LONGER))
    }

    /// Clears the end of a volume that has become longer: what its last owner has left there may be a
    /// footer, also an older one of the same image.
    pub(crate) fn clear_end(&self, view: &mut View, id: &str) -> Result<()> {
        let key = (LONGER, id.to_owned());
        let Some(before) = self.objects(view)?.get(&key) else { return Ok(()) };
        let before = String::from_utf8_lossy(&before).parse().unwrap_or(u64::MAX);
        let group = self.group(view)?;
        let volume = group.volumes.iter().find(|volume| volume.id == id);
        if let Some(volume) = volume.filter(|volume| volume.size > before) {
            let path = self.dir().join(&volume.name);
            let mut volume = volume.clone();
            if volume.active && !volume.writable {
                self.lvm("permit", &volume.name, self.volumes.permit(&volume.name, true))?;
                view.note(&volume.name, |volume| volume.writable = true);
                volume.writable = true;
            }
            let places = Mutex::new(self.places(view, &group, &volume, true)?);
            let blob = VolumeBlob { store: None, id: id.to_owned(), write: true, places };
            let clear = blob.write_at(&[0; FOOTER as usize], volume.size - FOOTER);
            clear.and_then(|()| blob.sync()).map_err(Error::io(&path, "write"))?;
            step!("store.end_cleared");
        }
        self.write(view, Change::Remove(key.0, key.1), &[])
    }

    /// Renames a volume, also in what was read.
    pub(crate) fn rename_volume(&self, view: &mut View, from: &str, to: &str) -> Result<()> {
        self.lvm("rename", from, self.volumes.rename(from, to))?;
        view.note(from, |volume| to.clone_into(&mut volume.name));
        Ok(())
    }

    pub(crate) fn remove_volume(&self, view: &mut View, id: &str, name: &str) -> Result<()> {
        self.lvm("remove", name, self.volumes.remove(id))?;
        if let Some(group) = view.group.as_mut().map(Arc::make_mut) {
            group.volumes.retain(|volume| volume.id != id);
        }
        Ok(())
    }

    /// Lets a volume take the name of another one, or a free one. That of an image goes on being
    /// there under [`OLD`] until the other one has it.
    pub(crate) fn take_name(&self, view: &mut View, from: &str, to: &str) -> Result<()> {
        let group = self.group(view)?;
        let not_there = || Error::io(&self.dir().join(from), "rename")(ErrorKind::NotFound.into());
        let from = find(&group, from).ok_or_else(not_there)?.name.clone();
        let Some(there) = group.volume(to) else { return self.rename_volume(view, &from, to) };
        let Some(uuid) = to.strip_prefix(IMAGE) else {
            self.remove_volume(view, &there.id, to)?;
            return self.rename_volume(view, &from, to);
        };
        let aside = format!("{OLD}{uuid}");
        if let Some(left) = group.volume(&aside) {
            self.remove_volume(view, &left.id, &aside)?;
        }
        self.rename_volume(view, to, &aside)?;
        step!("store.moved_aside");
        self.rename_volume(view, &from, to)?;
        step!("store.renamed");
        // It has its place, whatever becomes of the other one: healing removes that as well.
        if let Err(error) = self.remove_volume(view, &there.id, &aside) {
            plugin_sdk::tracing::warn!(%error, volume = aside, "it stays until the next recovery");
        }
        step!("store.old_removed");
        Ok(())
    }
}
