//! Disks: the image, and the record that makes it one.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::time::Duration;

use plugin_sdk::model::vdi::SnapshotSpec;
use plugin_sdk::prelude::*;
use serde_json::json;

use crate::store::Store;

/// The file system's blocks; sizes are multiples of it.
const UNIT: u64 = 4096;

/// The largest disk; the manifest says so too.
const LARGEST: u64 = 64 << 30;

/// What the defect takes for each block that it copies.
const SLOW: Duration = Duration::from_millis(5);

/// The most images of a disk: its own, and those of its snapshots; the manifest says so too.
const CHAIN: u64 = 24;

/// How many operations a disk remembers.
const REMEMBERED: usize = 8;

/// What `<vdi>.json` holds.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Record {
    pub(crate) info: VdiInfo,
    /// The operations that made or changed it, the newest last.
    operations: Vec<OperationId>,
}

/// Bytes that a file takes which nothing else is a name of.
pub(crate) fn own_size_of(path: &Utf8Path) -> u64 {
    path.metadata().map_or(0, |facts| if facts.nlink() > 1 { 0 } else { facts.blocks() * 512 })
}

fn unknown(vdi: VdiUuid) -> Error {
    Error::not_found(format!("there is no VDI {vdi}")).context("vdi", vdi)
}

impl Store {
    fn record(&self, vdi: VdiUuid) -> Result<Record> {
        let text = match fs::read(self.path(vdi, "json")) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(match () {
                    () if self.is("wrong-kind") => Error::internal(format!("no record of {vdi}")),
                    () if self.is("retry-helps") => unknown(vdi).retry(Retry::Temporary),
                    () if self.is("chatty") => Error::not_found("not found\n".repeat(40)),
                    () => unknown(vdi),
                });
            }
            Err(error) => return Err(error.into()),
        };
        serde_json::from_slice(&text).map_err(|error| {
            if self.is("record-trusted") {
                return crate::broken();
            }
            Error::new(Kind::Corrupt, format!("the record of {vdi} cannot be read")).source(&error)
        })
    }

    fn keep(&self, record: &Record) -> Result<()> {
        let path = self.path(record.info.uuid, "json");
        self.put(&path, json!(record).to_string().as_bytes())
    }

    /// What a VDI is.
    pub(crate) fn read(&self, vdi: VdiUuid) -> Result<VdiInfo> {
        let mut info = self.record(vdi)?.info;
        if !self.is("used-never-grows") {
            let image = self.path(vdi, "raw");
            let twice = self.is("shared-counts-twice");
            let all = image.metadata().map_or(0, |facts| facts.blocks() * 512);
            info.physical_utilisation = Bytes(if twice { all } else { own_size_of(&image) });
        }
        let memory = self.memory();
        if let Some(name) = memory.names.get(&vdi) {
            info.name.clone_from(name);
        }
        if let Some(size) = memory.sizes.get(&vdi) {
            info.virtual_size = *size;
        }
        Ok(info)
    }

    fn done(&self, changed: Changed, vdi: VdiUuid) -> Result<VdiDone> {
        self.sync_again(changed, vdi)?;
        Ok(VdiDone { changed, vdi: self.read(vdi)? })
    }

    /// The size that a disk gets.
    fn size(&self, wanted: Bytes) -> Result<Bytes> {
        let size = match wanted.round_up(Bytes(UNIT)) {
            Some(size) if size.0 <= LARGEST => size,
            _ => {
                let kind = if self.is("limit-as-no-space") { Kind::NoSpace } else { Kind::Limit };
                return Err(Error::new(kind, format!("a disk has at most {}", Bytes(LARGEST))));
            }
        };
        if self.is("rounds-down") {
            return Ok(Bytes((wanted.0 / UNIT).max(1) * UNIT));
        }
        Ok(size.max(Bytes(UNIT)))
    }

    pub(crate) fn create(&self, request: &VdiCreate) -> Result<VdiDone> {
        if self.is("refusal-leaves") {
            File::create(self.folder.join(format!("{}.lock", request.uuid)))?;
        }
        let size = self.size(request.virtual_size)?;
        if self.is("refusal-leaves") {
            files::remove(&self.folder.join(format!("{}.lock", request.uuid)))?;
        }
        let image = self.path(request.uuid, "raw");
        match self.read(request.uuid) {
            Ok(there) if there.virtual_size == size || self.is("exists-ignored") => {
                if self.is("create-again-wipes") {
                    File::create(&image)?.set_len(size.0)?;
                }
                return self.done(Changed::Already, request.uuid);
            }
            Ok(there) => {
                let text = format!("VDI {} exists with {} bytes", there.uuid, there.virtual_size.0);
                return Err(Error::new(Kind::Exists, text).context("vdi", there.uuid));
            }
            Err(error) if error.kind != Kind::NotFound && error.kind != Kind::Internal => {
                return Err(error);
            }
            Err(_) => {}
        }
        if self.is("stale-space") && fs::rename(self.folder.join("free.pool"), &image).is_ok() {
            OpenOptions::new().write(true).open(&image)?.set_len(size.0)?;
        } else {
            let file = self.image(&image)?;
            let length = if self.is("said-and-done") { size.0 - 512 } else { size.0 };
            file.set_len(length)?;
            if self.is("thick-but-thin") {
                for at in (0..size.0.min(256 << 20)).step_by(UNIT as usize) {
                    file.write_all_at(&[0], at)?;
                }
            }
            self.sync(&file)?;
        }
        step!("vdi_create.image_made");
        let mut info = new_vdi(request.clone(), ImageFormat::Raw);
        info.virtual_size = size;
        if self.is("trims-names") {
            info.name = String::from(info.name.trim());
        }
        self.keep(&Record { info, operations: vec![] })?;
        self.done(Changed::Created, request.uuid)
    }

    pub(crate) fn update(&self, request: &VdiUpdate) -> Result<VdiDone> {
        let mut record = self.record(request.vdi)?;
        let before = record.info.clone();
        let info = &mut record.info;
        if self.is("memory-names") {
            if let Some(name) = &request.name {
                self.memory().names.insert(request.vdi, name.clone());
            }
        } else if let Some(name) = &request.name {
            info.name.clone_from(name);
        }
        if self.is("update-forgets") {
            info.description = String::new();
        }
        if let Some(description) = &request.description {
            info.description.clone_from(description);
        }
        info.vdi_type = request.vdi_type.unwrap_or(info.vdi_type);
        info.read_only = request.read_only.unwrap_or(info.read_only);
        info.incomplete = request.incomplete.unwrap_or(info.incomplete);
        for (key, value) in &request.keys {
            match value {
                Some(value) => info.keys.insert(key.clone(), value.clone()),
                None => info.keys.remove(key),
            };
        }
        if *info == before && !self.is("memory-names") {
            return self.done(Changed::Already, request.vdi);
        }
        self.keep(&record)?;
        self.done(Changed::Modified, request.vdi)
    }

    pub(crate) fn resize(&self, id: OperationId, request: &VdiResize) -> Result<VdiDone> {
        let mut record = self.record(request.vdi)?;
        if record.operations.contains(&id) {
            return self.done(Changed::Already, request.vdi);
        }
        let size = self.size(request.virtual_size)?;
        if size == record.info.virtual_size {
            return self.done(Changed::Already, request.vdi);
        }
        if size < record.info.virtual_size && !self.is("shrinks") {
            let text = format!("VDI {} cannot become smaller", request.vdi);
            return Err(Error::new(Kind::Limit, text).legacy(79).context("vdi", request.vdi));
        }
        self.unshare(request.vdi)?;
        let path = self.path(request.vdi, "raw");
        let file = OpenOptions::new().write(true).open(&path)?;
        if self.is("resize-wipes") {
            file.set_len(0)?;
        }
        if self.is("resize-swaps") {
            let new = path.with_extension("raw.new");
            fs::copy(&path, &new)?;
            OpenOptions::new().write(true).open(&new)?.set_len(size.0)?;
            fs::rename(&new, &path)?;
        }
        file.set_len(size.0)?;
        file.sync_all()?;
        step!("vdi_resize.image_grown");
        if self.is("memory-size") {
            self.memory().sizes.insert(request.vdi, size);
        } else {
            record.info.virtual_size = size;
        }
        if !self.is("resize-late") {
            remember(&mut record, id);
        }
        self.keep(&record)?;
        self.done(Changed::Modified, request.vdi)
    }

    pub(crate) fn snapshot(&self, id: OperationId, request: &VdiSnapshot) -> Result<VdisDone> {
        let [spec] = request.snapshots.as_slice() else {
            return Err(Error::unsupported("one disk at a time"));
        };
        if self.is_own(id, spec.uuid, spec.vdi)? && !self.is("snapshot-again") {
            self.sync_again(Changed::Already, spec.uuid)?;
            return Ok(VdisDone { changed: Changed::Already, vdis: vec![self.read(spec.uuid)?] });
        }
        if self.snapshots_of(spec.vdi)? + 1 >= CHAIN {
            let number = if self.is("chain-unsaid") { 79 } else { 109 };
            let text = format!("VDI {} has {} snapshots", spec.vdi, CHAIN - 1);
            return Err(Error::new(Kind::Limit, text).legacy(number).context("vdi", spec.vdi));
        }
        let mut info = self.copy(spec)?;
        info.is_a_snapshot = true;
        info.read_only = true;
        info.snapshot_of = Some(if self.is("snapshot-of-itself") { spec.uuid } else { spec.vdi });
        info.snapshot_time = Some(request.time);
        self.keep(&Record { info, operations: vec![id] })?;
        Ok(VdisDone { changed: Changed::Created, vdis: vec![self.read(spec.uuid)?] })
    }

    pub(crate) fn clone_vdi(&self, id: OperationId, request: &VdiClone) -> Result<VdiDone> {
        let VdiClone { vdi, uuid, name, description } = request.clone();
        if self.is_own(id, uuid, vdi)? {
            return self.done(Changed::Already, uuid);
        }
        let spec = SnapshotSpec { vdi, uuid, name, description };
        let mut info = self.copy(&spec)?;
        info.is_a_snapshot = false;
        info.read_only = false;
        (info.snapshot_of, info.snapshot_time) = (None, None);
        self.keep(&Record { info, operations: vec![id] })?;
        self.done(Changed::Created, uuid)
    }

    /// Whether a VDI is what this very operation has made. One that is there and is not is in the way.
    fn is_own(&self, id: OperationId, uuid: VdiUuid, source: VdiUuid) -> Result<bool> {
        match self.record(uuid) {
            Ok(_) if self.is("clone-by-name") => Ok(true),
            Ok(_) if self.is("snapshot-again") => Ok(false),
            Ok(record) if record.operations.first() == Some(&id) => Ok(true),
            Ok(_) => {
                let text = format!("VDI {uuid} exists, and is no copy of {source} by this wish");
                Err(Error::new(Kind::Exists, text).context("vdi", uuid))
            }
            Err(error) if error.kind == Kind::NotFound || error.kind == Kind::Internal => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The image of a new disk, and what it is said to be.
    fn copy(&self, spec: &SnapshotSpec) -> Result<VdiInfo> {
        let source = self.record(spec.vdi)?.info;
        if !self.is("copies-while-written") {
            self.refuse_elsewhere(spec.vdi)?;
        }
        let (from, to) = (self.path(spec.vdi, "raw"), self.path(spec.uuid, "raw"));
        let new = if self.is("leftovers-of-a-host") {
            self.folder.join(format!("{}.{}.new", spec.uuid, self.host))
        } else {
            self.path(spec.uuid, "raw.new")
        };
        let half = to.exists() && self.is("half-clone");
        let clone_only = spec.name.contains("clone");
        let shares = if clone_only {
            self.is("clone-shares")
        } else {
            self.shares_with_snapshots(spec.vdi)?
        };
        if shares {
            // What an earlier try has left is of another time.
            files::remove(&to)?;
            fs::hard_link(&from, &to)?;
            files::sync_directory_of(&to)?;
        } else if !half {
            let made = if self.is("half-clone") { &to } else { &new };
            let file = OpenOptions::new().write(true).create(true).truncate(true).open(made)?;
            file.set_len(source.virtual_size.0)?;
            let mut end = source.virtual_size.0;
            if clone_only && self.is("clone-empty") {
                end = 0;
            }
            if clone_only && self.is("clone-partial") {
                end = end.saturating_sub(1 << 20);
            }
            let mut from = from;
            if self.is("depth-two") && !clone_only {
                from = self.older(spec.vdi)?.map_or(from, |older| self.path(older, "raw"));
            }
            step!("vdi_copy.image_begun");
            let moment = if clone_only && self.is("clone-goes-on") { SLOW } else { Duration::ZERO };
            transfer(&File::open(from)?, &file, end, moment)?;
            file.sync_all()?;
            if made != &to {
                fs::rename(made, &to)?;
            }
            files::sync_directory_of(&to)?;
        }
        step!("vdi_copy.image_made");
        Ok(VdiInfo {
            uuid: spec.uuid,
            name: spec.name.clone(),
            description: spec.description.clone(),
            ..source
        })
    }

    /// Whether a snapshot is another name for the image, which whoever writes the disk next parts from it.
    /// Not while it is written.
    fn shares_with_snapshots(&self, vdi: VdiUuid) -> Result<bool> {
        let copies = ["snapshot-copies", "half-clone", "depth-two", "leftovers-of-a-host"];
        let written = self.path(vdi, "writer").exists() || self.record(vdi)?.info.sharable;
        Ok(self.is("snapshot-live") || !written && !copies.iter().any(|defect| self.is(defect)))
    }

    /// Gives a disk an image of its own, if it shares one with snapshots.
    pub(crate) fn unshare(&self, vdi: VdiUuid) -> Result<()> {
        let image = self.path(vdi, "raw");
        let own = fs::metadata(&image)?.nlink() == 1;
        if own || self.is("snapshot-live") || self.is("clone-shares") {
            return Ok(());
        }
        let new = self.path(vdi, "raw.new");
        let (from, file) = (File::open(&image)?, File::create(&new)?);
        let length = from.metadata()?.len();
        file.set_len(length)?;
        step!("vdi_unshare.image_begun");
        transfer(&from, &file, length, Duration::ZERO)?;
        file.sync_all()?;
        step!("vdi_unshare.image_made");
        fs::rename(&new, &image)?;
        Ok(files::sync_directory_of(&image)?)
    }

    fn snapshots_of(&self, vdi: VdiUuid) -> Result<u64> {
        let all = self.list()?.into_iter().filter_map(|other| self.record(other).ok());
        Ok(all.filter(|record| record.info.snapshot_of == Some(vdi)).count() as u64)
    }

    /// A snapshot that the disk has already.
    fn older(&self, vdi: VdiUuid) -> Result<Option<VdiUuid>> {
        for other in self.list()? {
            if self.record(other)?.info.snapshot_of == Some(vdi) {
                return Ok(Some(other));
            }
        }
        Ok(None)
    }

    pub(crate) fn revert(&self, id: OperationId, request: &VdiRevert) -> Result<VdiDone> {
        let mut record = self.record(request.vdi)?;
        let snapshot = self.record(request.snapshot)?.info;
        if record.operations.contains(&id) && !self.is("revert-again") {
            return self.done(Changed::Already, request.vdi);
        }
        if !self.is("revert-nothing") {
            let to = self.path(request.vdi, "raw");
            let in_place = self.is("revert-in-place");
            let new = if in_place { to.clone() } else { to.with_extension("raw.new") };
            let file = OpenOptions::new().write(true).create(true).truncate(true).open(&new)?;
            file.set_len(snapshot.virtual_size.0)?;
            step!("vdi_revert.image_begun");
            let from = File::open(self.path(request.snapshot, "raw"))?;
            transfer(&from, &file, snapshot.virtual_size.0, Duration::ZERO)?;
            file.sync_all()?;
            step!("vdi_revert.image_made");
            if !in_place {
                fs::rename(&new, &to)?;
            }
            files::sync_directory_of(&to)?;
            record.info.virtual_size = snapshot.virtual_size;
        }
        remember(&mut record, id);
        self.keep(&record)?;
        self.done(Changed::Modified, request.vdi)
    }

    pub(crate) fn destroy(&self, vdi: VdiUuid) -> Result<Changed> {
        if self.is("attach-counts") && !self.uses(vdi)?.is_empty() {
            return Err(Error::new(Kind::InUse, format!("VDI {vdi} is attached")));
        }
        let record = self.record(vdi).ok();
        if record.is_none() && self.is("destroy-twice") {
            return Err(unknown(vdi));
        }
        let of = record.as_ref().and_then(|record| record.info.snapshot_of);
        if let Some(source) = of.filter(|_| self.is("snapshot-destroy-wipes"))
            && let Ok(file) = OpenOptions::new().write(true).open(self.path(source, "raw"))
        {
            file.write_all_at(&[0; UNIT as usize], 0)?;
        }
        if self.is("source-destroy-wipes")
            && let Some(snapshot) = self.older(vdi)?
        {
            let file = OpenOptions::new().write(true).open(self.path(snapshot, "raw"))?;
            let length = file.metadata()?.len();
            file.set_len(0)?;
            file.set_len(length)?;
        }
        self.image_first(vdi)?;
        let changed = files::remove(&self.path(vdi, "json"))?;
        step!("vdi_destroy.forgotten");
        let image = self.path(vdi, "raw");
        if self.is("stale-space") {
            let _ = fs::rename(&image, self.folder.join("free.pool"));
        } else if !self.is("destroy-leaves-image") {
            files::remove(&image)?;
        }
        self.forget_uses(vdi)?;
        Ok(changed)
    }
}

fn remember(record: &mut Record, id: OperationId) {
    record.operations.push(id);
    // The first is the one that made it.
    if record.operations.len() > REMEMBERED {
        record.operations.remove(1);
    }
}

impl Store {
    /// What the defect does with old records.
    pub(crate) fn forget_old_wishes(&self, path: &Utf8Path) -> Result<()> {
        let age = path.metadata()?.modified()?.elapsed().unwrap_or_default();
        let Ok(mut record) = serde_json::from_slice::<Record>(&fs::read(path)?) else {
            return Ok(());
        };
        if age > Duration::from_secs(12 * 3600) {
            record.operations.clear();
            self.keep(&record)?;
        }
        Ok(())
    }
}

/// Copies what is not zero, block by block, up to `end`, and waits a moment at each.
fn transfer(from: &File, to: &File, end: u64, moment: Duration) -> Result<()> {
    let mut block = vec![0; 256 << 10];
    let mut at = 0;
    while at < end {
        let length = (block.len() as u64).min(end - at) as usize;
        let part = block.get_mut(..length).unwrap_or_default();
        let read = from.read_at(part, at)?;
        std::thread::sleep(moment);
        let part = part.get(..read).unwrap_or_default();
        if read == 0 {
            break;
        }
        if part.iter().any(|byte| *byte != 0) {
            to.write_all_at(part, at)?;
        }
        at += read as u64;
    }
    Ok(())
}
