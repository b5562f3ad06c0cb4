//! A directory as a store of disks: chains of VHD files and raw files, with snapshots, clones,
//! and recovery after a cut at any step.
//!
//! # On disk
//!
//! ```text
//! <dir>/<uuid>.vhd            an image, in XenServer's layout: a disk, or a base copy
//! <dir>/<uuid>.raw            a raw disk
//! <dir>/.sm/vdi/<uuid>.json   what the caller says about a disk, and the last operations on it
//! <dir>/.sm/journal/<op>.json an operation between its first visible effect and its last
//! <dir>/.sm/tmp/              files that are not there yet, or no longer
//! <dir>/.sm/lock              locked exclusively by whoever changes anything
//! ```
//!
//! File names are made from UUIDs only, and symbolic links are never followed.
//!
//! # Invariants
//!
//! 1. An image in place is complete. Images are made in `tmp` and renamed.
//! 2. A disk's metadata is in place before its image, and goes after it. So metadata without an
//!    image is a disk that was lost, and is listed as such, *unless* `tmp` holds the image
//!    (`tmp/<uuid>.vhd` or `.raw`): then the disk is not created yet or deleted already, and
//!    recovery removes both, the metadata first.
//! 3. A journal record exists whenever a snapshot, revert or resize has a visible effect that is
//!    not finished. Everything that needs space was written and synced before the record was. So
//!    what a record starts can be completed, and before its commit point it can be undone, by
//!    looking at what is there: doing either twice is the same as once.
//! 4. An image that others need is never changed except to be marked hidden, and that only when
//!    the new leaf above it is durable.
//! 5. A base copy is deleted only when it is hidden and every image in the directory could be read
//!    and names another parent.
//!
//! # Syncs per operation
//!
//! | operation | syncs | of what |
//! |---|---|---|
//! | create | 4 | image, metadata, both directories |
//! | update, introduce | 2 | metadata, its directory |
//! | snapshot of a leaf with data | 7 | two leaves, metadata, record, both directories with the switch, the base's footers |
//! | snapshot of an empty leaf, or of a raw disk | 4 | as create |
//! | snapshots of several disks | 2, and for each 6 or 4 | record and names of the switch; for each as above, without a record of its own |
//! | revert | 5 | leaf, metadata, record, both directories; 7 when the snapshot holds data |
//! | resize | 6 | metadata, record with its directory, each footer, directory of the metadata |
//! | delete | 1 | directory |
//! | merge | 6 and more | record of progress, twice for each batch (data, record), journal record with its directory, then 1 for a disk and 3 for each child of a base copy |
//!
//! New metadata of a snapshot's source adds 1, or 2 where there is no record.
//!
//! Why no database: the directory is the truth, also for XenServer's own tools, and a listing
//! that reads every image's header is faster than keeping an index honest.

mod apply;
mod claim;
mod doc;
mod group;
mod journal;
mod links;
mod live;
mod maintain;
mod merges;
mod node;
mod ops;
mod readers;
mod recover;
mod resize;
mod scan;
mod space;
mod targets;

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use apply::{Revert, Snapshot, Writer};
pub use claim::name_part;
pub use live::LiveMerge;
pub use maintain::{Budget, Maintained, Merged, Pace, Planned, Skipped, Stopped, Watch};
pub use node::{Change, Format, Health, Kind, Listing, Method, Node, Outcome};
pub use readers::Readers;
pub use recover::{Failed, Recovery};
pub use space::Reclaimed;

use crate::error::{Error, Result};
use crate::image::{self, Image, Info, Mode};
use crate::store::{Area, At, Directory, Held, Store};

/// Most images of a chain, leaf and root included; XenServer's tools refuse more.
pub const MAX_DEPTH: usize = 30;

/// A store of disks.
pub struct Tree {
    store: Box<dyn Store>,
}

/// The exclusive right to change a store, from [`Tree::lock`]; given back when dropped, and by the
/// system when the process dies.
pub struct Guard {
    _held: Held,
    path: PathBuf,
}

impl Tree {
    /// Makes a directory a store. It may hold images already, such as a file SR of XenServer, and
    /// may be a store already.
    pub fn init(dir: &Path) -> Result<Self> {
        Ok(Self::on(Box::new(Directory::init(dir)?)))
    }

    /// Opens a store in a directory. [`Error::is_not_found`] when the directory is not there or is
    /// no store.
    pub fn open(dir: &Path) -> Result<Self> {
        Ok(Self::on(Box::new(Directory::open(dir)?)))
    }

    /// As [`Tree::open`], for somebody who may be shut out: while there is a file `mark`, no lock is
    /// given ([`Error::ShutOut`]).
    pub fn open_unless(dir: &Path, mark: PathBuf) -> Result<Self> {
        Ok(Self::on(Box::new(Directory::open_unless(dir, mark)?)))
    }

    /// Disks in any other kind of store.
    pub fn on(store: Box<dyn Store>) -> Self {
        Self { store }
    }

    /// What the disks lie in, for whoever keeps something beside them. Changes need the lock.
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    /// What the place is called.
    pub fn path(&self) -> PathBuf {
        self.store.path()
    }

    /// Locks the store against other processes and other callers in this one, waiting until
    /// `deadline` at most. [`Error::Busy`] then tells who holds it.
    pub fn lock(&self, deadline: Instant) -> Result<Guard> {
        Ok(Guard { _held: self.store.lock(deadline)?, path: self.store.path() })
    }

    /// Makes the volume of a disk's own image at least `length` bytes long: what
    /// [`Error::VolumeFull`] asks for. Files are as long as they need to be.
    pub fn extend(&self, guard: &Guard, uuid: Uuid, length: u64) -> Result<()> {
        self.ready_to_change(guard, &[uuid])?;
        self.open_image(&Self::image_at(uuid, Format::Vhd), Mode::Write)?.extend_volume(length)
    }

    /// Restores the footer that a power cut may have left out of a disk's own image; everything
    /// else is verified first. Answers whether there was anything to do.
    pub fn repair(&self, guard: &Guard, uuid: Uuid) -> Result<bool> {
        self.ready(guard, &[uuid])?;
        let at = Self::image_at(uuid, Format::Vhd);
        image::repair_blob(self.store.open(&at, true)?, &self.store.path_of(&at))
    }

    /// The images of a disk, the leaf first, by paths at which other programs of this host can open
    /// them from now on: a volume has to be made a device first.
    pub fn expose(&self, uuid: Uuid, write: bool) -> Result<Vec<PathBuf>> {
        let (_, images) = self.chain_nodes(uuid)?;
        self.store.expose(&images, write)
    }

    /// Gives the volume of an image room for all of its blocks, or with `full` unset takes what it
    /// does not need. Answers whether its length was another; files are as long as they need to be.
    pub fn fit(&self, guard: &Guard, uuid: Uuid, full: bool) -> Result<bool> {
        self.ready_to_change(guard, &[uuid])?;
        let at = Self::image_at(uuid, Format::Vhd);
        let info = self.probe(&at)?;
        let Some(room) = self.store.full_room(info.size) else { return Ok(false) };
        if full {
            if info.file_size >= room && !info.needs_repair() {
                return Ok(false);
            }
            self.open_image(&at, Mode::Write)?.extend_volume(room)?;
            return Ok(true);
        }
        self.open_image(&at, Mode::Write)?.shrink_volume()
    }

    fn check_guard(&self, guard: &Guard) -> Result<()> {
        let wanted = self.store.path();
        if guard.path == wanted {
            return Ok(());
        }
        Err(Error::WrongLock { held: guard.path.clone(), wanted })
    }

    /// Everything that changes the store starts here: the lock is ours, what an earlier call left
    /// behind is dealt with, and none of `uuids` is part of something that could not be.
    fn ready(&self, guard: &Guard, uuids: &[Uuid]) -> Result<()> {
        Self::sound(&self.recover(guard)?, uuids)
    }

    fn sound(recovery: &Recovery, uuids: &[Uuid]) -> Result<()> {
        for failed in &recovery.failed {
            if let Some(uuid) = uuids.iter().find(|uuid| failed.uuids.contains(uuid)) {
                let reason = format!("operation {} is unfinished: {}", failed.op, failed.reason);
                return Err(Error::Quarantined { uuid: *uuid, reason });
            }
        }
        Ok(())
    }

    /// As [`Tree::ready`], for what changes the disks `uuids`.
    fn ready_to_change(&self, guard: &Guard, uuids: &[Uuid]) -> Result<()> {
        self.ready_beside(guard, uuids, None)
    }

    /// As [`Tree::ready_to_change`], with what was done ahead left as it is.
    fn ready_beside(
        &self,
        guard: &Guard,
        uuids: &[Uuid],
        ahead: Option<&journal::Record>,
    ) -> Result<()> {
        Self::sound(&self.recover_beside(guard, ahead)?, uuids)?;
        uuids.iter().try_for_each(|uuid| self.abandon_merge(*uuid))
    }

    fn image_at(uuid: Uuid, format: Format) -> At {
        At::new(Area::Images, image_name(uuid, format))
    }

    /// What children call an image.
    fn link_name(&self, uuid: Uuid) -> String {
        self.store.link_name(&Self::image_at(uuid, Format::Vhd))
    }

    fn doc_at(uuid: Uuid) -> At {
        At::new(Area::Docs, format!("{uuid}.json"))
    }

    fn tmp_at(name: impl Into<String>) -> At {
        At::new(Area::Tmp, name)
    }

    fn journal_at(op: Uuid) -> At {
        At::new(Area::Journal, format!("{op}.json"))
    }

    fn open_image(&self, at: &At, mode: Mode) -> Result<Image> {
        let path = self.store.path_of(at);
        let open = || Image::from_blob(self.store.open(at, mode == Mode::Write)?, &path, mode);
        match open() {
            // A file or volume that became longer, and the power went before its footer was there.
            // Everything else is verified before the footer is written.
            Err(Error::NeedsRepair { .. }) => {
                image::repair_blob(self.store.open(at, true)?, &path)?;
                open()
            }
            other => other,
        }
    }

    fn probe(&self, at: &At) -> Result<Info> {
        image::probe_blob(&*self.store.open(at, false)?, &self.store.path_of(at))
    }
}

/// UUID and format of an image by the name that a locator has for it: that of a file, or of a
/// volume, as XenServer's tools write it.
fn parse_link(name: &str) -> Option<(Uuid, Format)> {
    let volume = name.strip_prefix("VHD-").filter(|uuid| uuid.len() == 36);
    let volume = volume.and_then(|uuid| Uuid::try_parse(uuid).ok());
    volume.map_or_else(|| parse_image(name), |uuid| Some((uuid, Format::Vhd)))
}

fn image_name(uuid: Uuid, format: Format) -> String {
    format!("{uuid}.{}", format.extension())
}

/// The UUID and extension of a file name that we could have made: lower case, hyphens.
fn parse_name(name: &str) -> Option<(Uuid, &str)> {
    let (stem, extension) = name.split_at_checked(36)?;
    let uuid = Uuid::try_parse(stem).ok()?;
    let mut buffer = Uuid::encode_buffer();
    (uuid.hyphenated().encode_lower(&mut buffer) == stem)
        .then(|| extension.strip_prefix('.').map(|extension| (uuid, extension)))
        .flatten()
}

/// UUID and format of an image's file name.
fn parse_image(name: &str) -> Option<(Uuid, Format)> {
    let (uuid, extension) = parse_name(name)?;
    Format::from_extension(extension).map(|format| (uuid, format))
}

/// Which operation a shared piece of code works for, so that crash points carry its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Operation {
    Create,
    Snapshot,
    Revert,
    Resize,
    Update,
    Introduce,
}

/// A crash point of code shared by operations: the names in the order the caller lists them.
macro_rules! mark {
    ($operation:expr, $($kind:ident => $name:literal),+ $(,)?) => {
        match $operation {
            $(Operation::$kind => sm_step::step!($name),)+
            _ => {}
        }
    };
}
use mark;
