//! The volumes of a group as a store of images.
//!
//! ```text
//! VG_XenStorage-<sr>
//!   VHD-<uuid>        an image: a disk, or a base copy
//!   sm-tmp-<name>     an image that is not there yet, or no longer
//!   sm-old-<uuid>     what had a name that another image is just getting
//!   sm-store          everything that is small, see `objects`
//!   LV-<uuid>         a raw disk: not of this store
//! ```
//!
//! An image is read and written where it lies on the group's devices, unless it is active on this
//! host: then through its device, whose cache would else be wrong. So a listing costs one report,
//! however many images there are, and only what a guest uses is ever activated.
//!
//! Why writing past LVM is sound: its report says which bytes of which device a volume has, a device
//! of the volume would be a map of just these, and while it is inactive nobody else has them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use host_kit::lvm::{Allocation, Group, Repository, Volume};
use plugin_sdk::model::Kind;
use plugin_sdk::model::uuid::Uuid;
use plugin_sdk::step;
use vhd::store::{Area, At, Blob, Held, Store};
use vhd::{Error, Result};

use crate::blob::Small;
use crate::inner::{IMAGE, Inner, NEW_OBJECTS, OBJECTS, OLD, TMP, find, thing_of, told, volume_of};
use crate::lease::Right;
use crate::objects::{self, Change, Objects};
use crate::rights::{Entered, Leased, Rights};
use crate::volumes::Volumes;

/// Bytes of metadata that XenServer's tools reckon with for each image: tables for 2 TiB.
const TABLES: u64 = 4_329_472;
/// Bytes of a block's bitmap, with what aligns it.
const BITMAP: u64 = 4096;

fn is_in_use(error: &Error) -> bool {
    let Error::Io { source, .. } = error else { return false };
    let told = source.get_ref().and_then(|told| told.downcast_ref::<plugin_sdk::Error>());
    told.is_some_and(|told| told.kind == Kind::InUse)
}

/// A store. A copy of it is the same one.
#[derive(Clone)]
pub struct LvStore(pub(crate) Arc<Inner>);

impl LvStore {
    /// The store in a group. `locks` is a folder of this host for locks between its processes; `host`
    /// is its name, which no other host of the store has.
    pub fn new(volumes: Box<dyn Volumes>, group: &str, locks: &Path, host: &str) -> Self {
        Self::known_as(volumes, group, locks, host, host)
    }

    /// As [`LvStore::new`]; `me` is what claims of this host are called.
    pub fn known_as(
        volumes: Box<dyn Volumes>,
        group: &str,
        locks: &Path,
        host: &str,
        me: &str,
    ) -> Self {
        let rights = Arc::new(Rights::new(group, host, locks));
        Self(Arc::new(Inner {
            volumes: Box::new(Leased { volumes, rights: Arc::clone(&rights) }),
            group: group.to_owned(),
            locks: locks.to_owned(),
            me: me.to_owned(),
            rights,
            entered: Mutex::new(Weak::new()),
            view: Mutex::default(),
        }))
    }

    /// The group, as it was when it was last looked at.
    pub fn group(&self) -> Result<Arc<Group>> {
        self.0.group(&mut self.0.view())
    }

    /// Whether a volume was cut while it got longer.
    pub(crate) fn is_cut(&self) -> Result<bool> {
        Ok(!self.0.cut_longer()?.is_empty())
    }

    pub(crate) fn rights(&self) -> Arc<Rights> {
        Arc::clone(&self.0.rights)
    }

    /// The hosts that have a slot in the store.
    pub(crate) fn hosts(&self) -> Result<BTreeSet<String>> {
        self.0.open_rights(&mut self.0.view())?;
        self.0.rights.names().map_err(Error::io(&self.0.dir().join(OBJECTS), "lease"))
    }

    /// Has a host's turn count as over.
    pub(crate) fn pass_over(&self, host: &str) -> Result<()> {
        self.0.open_rights(&mut self.0.view())?;
        self.0.rights.pass_over(host).map_err(Error::io(&self.0.dir().join(OBJECTS), "lease"))
    }

    /// Makes the volume of small things if it is not there; whether it was not.
    pub fn init(&self) -> Result<bool> {
        let inner = &self.0;
        if inner.group(&mut inner.view())?.volume(OBJECTS).is_some() {
            return Ok(false);
        }
        inner.change(false, |view| {
            let group = inner.group(view)?;
            if group.volume(OBJECTS).is_some() {
                return Ok(false);
            }
            if let Some(begun) = group.volume(NEW_OBJECTS) {
                inner.lvm("remove", NEW_OBJECTS, inner.volumes.remove(&begun.id))?;
                view.group = None;
            }
            let bytes = objects::VOLUME.next_multiple_of(group.extent);
            inner.lvm("create", NEW_OBJECTS, inner.volumes.create(NEW_OBJECTS, bytes))?;
            view.group = None;
            step!("sr_create.store_volume_made");
            let blob = inner.blob(view, NEW_OBJECTS, true)?;
            let path = inner.volumes.device(NEW_OBJECTS);
            Objects::format(&blob).map_err(Error::io(&path, "format"))?;
            let hosts = inner.rights.open(blob).map_err(told(&path, "lease"))?;
            hosts.preset().map_err(Error::io(&path, "lease"))?;
            step!("sr_create.store_formatted");
            inner.lvm("rename", OBJECTS, inner.volumes.rename(NEW_OBJECTS, OBJECTS))?;
            view.group = None;
            step!("sr_create.store_named");
            Ok(true)
        })
    }

    /// Removes all volumes that are the store's own.
    pub fn remove(&self) -> Result<()> {
        let inner = &self.0;
        inner.change(false, |view| {
            let group = inner.group(view)?;
            let mut own: Vec<_> = group.volumes.iter().filter(|v| Self::is_own(&v.name)).collect();
            // The last one holds the right to do this.
            own.sort_by_key(|volume| volume.name == OBJECTS);
            for volume in own {
                if volume.name == OBJECTS {
                    inner.check()?;
                    view.objects = None;
                    inner.rights.forget();
                }
                inner.lvm("remove", &volume.name, inner.volumes.remove(&volume.id))?;
                step!("sr_destroy.store_removed");
            }
            view.group = None;
            Ok(())
        })
    }

    /// Whether a volume is one of a store but for its images. What has been moved aside may be the only
    /// copy of a disk.
    pub fn is_own(name: &str) -> bool {
        name == OBJECTS || name.starts_with(TMP)
    }

    /// Takes the devices away of images that are active and not in `used`. Answers whether there
    /// were any.
    pub fn deactivate_but(&self, used: &[String]) -> Result<bool> {
        let inner = &self.0;
        inner.change(true, |view| {
            let group = inner.group(view)?;
            let idle = |volume: &&Volume| {
                let name = &volume.name;
                let image = name.starts_with(IMAGE) || name.starts_with(OLD) || Self::is_own(name);
                image && volume.active && !used.contains(&volume.name)
            };
            let names: Vec<&str> =
                group.volumes.iter().filter(idle).map(|volume| volume.name.as_str()).collect();
            if names.is_empty() {
                return Ok(false);
            }
            inner.lvm("deactivate", &names.join(" "), inner.volumes.deactivate(&names))?;
            for name in names {
                view.note(name, |volume| volume.active = false);
            }
            step!("vdi_detach.inactive");
            Ok(true)
        })
    }

    /// Sets an image's volume read-only, unless it is.
    pub fn freeze(&self, uuid: Uuid) -> Result<bool> {
        let inner = &self.0;
        inner.change(true, |view| {
            let name = format!("{IMAGE}{uuid}");
            let group = inner.group(view)?;
            if group.volume(&name).is_none_or(|volume| !volume.writable) {
                return Ok(false);
            }
            inner.lvm("permit", &name, inner.volumes.permit(&name, false))?;
            view.note(&name, |volume| volume.writable = false);
            step!("vdi_snapshot.base_read_only");
            Ok(true)
        })
    }
}

impl Store for LvStore {
    fn path(&self) -> PathBuf {
        self.0.dir()
    }

    fn path_of(&self, at: &At) -> PathBuf {
        match volume_of(at) {
            Some(name) => self.0.volumes.device(&name),
            None => self.0.dir().join(&at.name),
        }
    }

    fn names(&self, area: Area) -> Result<Vec<String>> {
        let mut view = self.0.view();
        let mut names = if area == Area::Images {
            Vec::new()
        } else {
            let key = objects::key(&At::new(area, ""));
            self.0.objects(&mut view)?.names(key.0)
        };
        if matches!(area, Area::Images | Area::Tmp) {
            let group = self.0.group(&mut view)?;
            for volume in &group.volumes {
                let aside = volume.name.strip_prefix(OLD).map(|uuid| format!("{IMAGE}{uuid}"));
                let name = match &aside {
                    Some(name) if group.volume(name).is_none() => name,
                    Some(_) => continue,
                    None => &volume.name,
                };
                names.extend(thing_of(name).filter(|at| at.area == area).map(|at| at.name));
            }
        }
        Ok(names)
    }

    fn exists(&self, at: &At) -> Result<bool> {
        let mut view = self.0.view();
        match volume_of(at) {
            Some(name) => Ok(find(&*self.0.group(&mut view)?, &name).is_some()),
            None => Ok(self.0.objects(&mut view)?.get(&objects::key(at)).is_some()),
        }
    }

    fn open(&self, at: &At, write: bool) -> Result<Box<dyn Blob>> {
        if let Some(name) = volume_of(at).filter(|_| write) {
            self.0.permit(&name)?;
        }
        let mut view = self.0.view();
        if let Some(name) = volume_of(at) {
            let mut blob = self.0.blob(&mut view, &name, write)?;
            blob.store = Some(Arc::clone(&self.0));
            return Ok(Box::new(blob));
        }
        let key = objects::key(at);
        let found = self.0.objects(&mut view)?.get(&key);
        let not_there = || Error::io(&self.path_of(at), "open")(ErrorKind::NotFound.into());
        let bytes = Mutex::new(found.ok_or_else(not_there)?.to_vec());
        Ok(Box::new(Small { store: Arc::clone(&self.0), key, bytes, write }))
    }

    fn create(&self, at: &At, room: u64) -> Result<Box<dyn Blob>> {
        let inner = &self.0;
        let taken = || Error::io(&self.path_of(at), "create")(ErrorKind::AlreadyExists.into());
        let Some(name) = volume_of(at) else {
            let key = objects::key(at);
            inner.change(false, |view| {
                if inner.objects(view)?.get(&key).is_some() {
                    return Err(taken());
                }
                // One with a content is there with it, when that is synced.
                if room == 0 {
                    inner.write(view, Change::Set(key.0, key.1.clone()), &[])?;
                }
                Ok(())
            })?;
            let (store, bytes) = (Arc::clone(inner), Mutex::default());
            return Ok(Box::new(Small { store, key, bytes, write: true }));
        };
        inner.change(true, |view| {
            let group = inner.group(view)?;
            if find(&group, &name).is_some() {
                return Err(taken());
            }
            let bytes = room.max(1).next_multiple_of(group.extent);
            inner.lvm("create", &name, inner.volumes.create(&name, bytes))?;
            step!("store.created");
            view.group = None;
            let mut blob = inner.blob(view, &name, true)?;
            blob.store = Some(Arc::clone(inner));
            Ok(Box::new(blob) as Box<dyn Blob>)
        })
    }

    fn link(&self, _: &At, _: &At) -> Result<bool> {
        Ok(false)
    }

    fn rename(&self, from: &At, to: &At) -> Result<()> {
        let inner = &self.0;
        match (volume_of(from), volume_of(to)) {
            (Some(from), Some(to)) => {
                inner.change(true, |view| inner.take_name(view, &from, &to))?;
                step!("store.name_taken");
                Ok(())
            }
            (None, None) => inner.change(false, |view| {
                let (from_key, to_key) = (objects::key(from), objects::key(to));
                if inner.objects(view)?.get(&from_key).is_none() {
                    let path = self.path_of(from);
                    return Err(Error::io(&path, "rename")(ErrorKind::NotFound.into()));
                }
                inner.write(view, Change::Rename(from_key, to_key), &[])
            }),
            _ => {
                let what = "a volume and a small thing cannot have each other's name".to_owned();
                Err(Error::Store { path: self.path_of(from), what })
            }
        }
    }

    fn remove(&self, at: &At) -> Result<bool> {
        let inner = &self.0;
        let Some(name) = volume_of(at) else {
            let key = objects::key(at);
            if inner.objects(&mut inner.view())?.get(&key).is_none() {
                return Ok(false);
            }
            return inner.change(false, |view| {
                inner.write(view, Change::Remove(key.0, key.1.clone()), &[]).map(|()| true)
            });
        };
        if find(&*inner.group(&mut inner.view())?, &name).is_none() {
            return Ok(false);
        }
        inner.change(true, |view| {
            let group = inner.group(view)?;
            let Some(volume) = find(&group, &name) else { return Ok(false) };
            let is_staged = at.name.strip_suffix(".new").is_some();
            match inner.remove_volume(view, &volume.id, &volume.name) {
                // Nobody needs it, but somebody still has it open. Nothing else has to wait for him.
                Err(error) if !is_staged && is_in_use(&error) => {
                    plugin_sdk::tracing::warn!(%error, name, "it stays until the next recovery");
                }
                removed => removed?,
            }
            step!("store.removed");
            Ok(true)
        })
    }

    fn sync(&self, _: Area) -> Result<()> {
        // Each change was durable when it was done.
        Ok(())
    }

    fn heal(&self) -> Result<()> {
        let inner = &self.0;
        let longer = inner.cut_longer()?;
        if !longer.is_empty() {
            inner
                .change(true, |view| longer.iter().try_for_each(|id| inner.clear_end(view, id)))?;
        }
        let aside = |group: &Group| -> Vec<Volume> {
            group.volumes.iter().filter(|v| v.name.starts_with(OLD)).cloned().collect()
        };
        if aside(&*inner.group(&mut inner.view())?).is_empty() {
            return Ok(());
        }
        inner.change(true, |view| {
            let group = inner.group(view)?;
            for volume in aside(&group) {
                let name = volume.name.replacen(OLD, IMAGE, 1);
                if group.volume(&name).is_some() {
                    inner.remove_volume(view, &volume.id, &volume.name)?;
                    step!("recover.aside_removed");
                } else {
                    inner.rename_volume(view, &volume.name, &name)?;
                    step!("recover.aside_back");
                }
            }
            Ok(())
        })
    }

    fn lock_file(&self) -> Option<PathBuf> {
        Some(self.0.lock_file("lock"))
    }

    fn link_name(&self, at: &At) -> String {
        volume_of(at).unwrap_or_else(|| at.name.clone())
    }

    fn full_room(&self, size: u64) -> Option<u64> {
        Some(size + TABLES + size.div_ceil(vhd::BLOCK) * BITMAP)
    }

    fn reserves(&self) -> bool {
        let group = self.group();
        group.is_ok_and(|group| Repository::allocation_of(&group) == Allocation::Thick)
    }

    fn expose(&self, images: &[At], write: bool) -> Result<Vec<PathBuf>> {
        let inner = &self.0;
        let names: Vec<String> = images.iter().filter_map(volume_of).collect();
        let (leaf, missing) = {
            let group = inner.group(&mut inner.view())?;
            let volume = |name: &String| find(&group, name).cloned();
            let leaf = names.first().and_then(volume).filter(|leaf| write && !leaf.writable);
            let all = names.iter().filter_map(volume).filter(|volume| !volume.active);
            (leaf, all.map(|volume| volume.name).collect::<Vec<_>>())
        };
        let done = |inner: &Inner| {
            // The name of the volume is a symbolic link to the device.
            let device = |name: &String| {
                let path = inner.volumes.device(name);
                path.canonicalize().map_err(Error::io(&path, "find"))
            };
            names.iter().map(device).collect()
        };
        if leaf.is_none() && missing.is_empty() {
            return done(inner);
        }
        inner.change(true, |view| {
            if let Some(leaf) = leaf {
                inner.lvm("permit", &leaf.name, inner.volumes.permit(&leaf.name, true))?;
                view.note(&leaf.name, |volume| volume.writable = true);
                step!("vdi_attach.leaf_writable");
            }
            if !missing.is_empty() {
                let names: Vec<&str> = missing.iter().map(String::as_str).collect();
                inner.lvm("activate", &names.join(" "), inner.volumes.activate(&names))?;
                for name in names {
                    view.note(name, |volume| volume.active = true);
                }
                step!("vdi_attach.active");
            }
            Ok(())
        })?;
        done(inner)
    }

    fn lock(&self, deadline: Instant) -> Result<Held> {
        let entered = self.0.enter(deadline)?;
        self.0.objects(&mut self.0.view())?;
        Ok(Box::new(entered))
    }

    fn try_lock_maintenance(&self) -> Result<Option<Held>> {
        let Some(file) = self.0.attempt("maintenance", File::try_lock)? else { return Ok(None) };
        self.0.open_rights(&mut self.0.view())?;
        self.0.refuse_fenced(&mut self.0.view())?;
        match self.0.rights.take(Right::Merge, Instant::now()) {
            Ok(lease) => Ok(Some(Box::new(Entered { lease, _file: file }))),
            Err(Error::Busy { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn try_lock_shared(&self) -> Option<Held> {
        // It would keep nobody on another host from a change: stamps tell of that. If this fails, so
        // does what follows.
        let _ = self.0.glance();
        None
    }

    fn merges_as(&self) -> Option<String> {
        Some(self.0.me.clone())
    }

    fn is_near(&self, holder: &str) -> bool {
        vhd_folder::same_boot(holder, &self.0.me)
    }

    fn ready_target(&self, at: &At) -> Result<()> {
        let uuid = at.name.strip_suffix(".vhd").and_then(|uuid| Uuid::try_parse(uuid).ok());
        let Some((uuid, name)) = uuid.zip(volume_of(at)) else { return Ok(()) };
        self.0.ready_target(uuid, &name)
    }

    fn stamp(&self) -> Result<[(i64, i64); 2]> {
        let mut view = self.0.view();
        if view.objects.is_some() {
            self.0.refresh(&mut view)?;
        } else {
            self.0.objects(&mut view)?;
            // What was read of volumes may be older than the small things.
            view.group = None;
        }
        let (generation, sequence) = self.0.objects(&mut view)?.stamp();
        Ok([(generation.cast_signed(), sequence.cast_signed()), (0, 0)])
    }
}
