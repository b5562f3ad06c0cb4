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
//! | snapshot of a leaf with data | 8 | two leaves, metadata, record, directory with the base's link, both directories with the switch, the base's footers |
//! | snapshot of an empty leaf, or of a raw disk | 4 | as create |
//! | revert | 5 | leaf, metadata, record, both directories; 8 when the snapshot holds data |
//! | resize | 5 | metadata, record, each footer, directory of the metadata |
//! | delete | 1 | directory |
//!
//! New metadata of a snapshot's source adds 1, or 2 where there is no record.
//!
//! Why no database: the directory is the truth, also for XenServer's own tools, and a listing
//! that reads every image's header is faster than keeping an index honest.

mod apply;
mod doc;
mod journal;
mod node;
mod ops;
mod recover;
mod scan;

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use apply::{Revert, Snapshot};
pub use node::{Change, Format, Health, Kind, Listing, Method, Node, Outcome};
pub use recover::{Failed, Recovery};

use crate::error::{Error, Result};
use crate::sys;

/// Most images of a chain, leaf and root included; XenServer's tools refuse more.
pub const MAX_DEPTH: usize = 30;

/// Our directory inside the store.
const OURS: &str = ".sm";

/// A store of disks in one directory. Holds open directories and nothing else, so it is cheap to
/// open and never stale.
pub struct Tree {
    path: PathBuf,
    dir: File,
    vdi: File,
    journal: File,
    tmp: File,
}

/// The exclusive right to change a store, from [`Tree::lock`]; given back when dropped, and by the
/// system when the process dies.
pub struct Guard {
    _file: File,
    path: PathBuf,
}

impl Tree {
    /// Makes a directory a store. It may hold images already, such as a file SR of XenServer, and
    /// may be a store already.
    pub fn init(dir: &Path) -> Result<Self> {
        let ours = dir.join(OURS);
        for path in [ours.clone(), ours.join("vdi"), ours.join("journal"), ours.join("tmp")] {
            match std::fs::create_dir(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io(&path, "create directory")(error)),
            }
        }
        let tree = Self::open(dir)?;
        sys::sync_dir(open_dir(&ours)?, &ours)?;
        sys::sync_dir(&tree.dir, dir)?;
        Ok(tree)
    }

    /// Opens a store. [`Error::is_not_found`] when the directory is not there or is no store.
    pub fn open(dir: &Path) -> Result<Self> {
        let ours = dir.join(OURS);
        Ok(Self {
            path: dir.to_owned(),
            dir: open_dir(dir)?,
            vdi: open_dir(&ours.join("vdi"))?,
            journal: open_dir(&ours.join("journal"))?,
            tmp: open_dir(&ours.join("tmp"))?,
        })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.path
    }

    /// Locks the store against other processes and other callers in this one, waiting until
    /// `deadline` at most. [`Error::Busy`] then tells who holds it.
    pub fn lock(&self, deadline: Instant) -> Result<Guard> {
        let path = self.path.join(OURS).join("lock");
        let start = Instant::now();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        let mut file: File = rustix::fs::open(&path, flags, mode)
            .map_err(|errno| Error::io(&path, "open")(errno.into()))?
            .into();
        let mut pause = Duration::from_millis(1);
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                Err(errno) => return Err(Error::io(&path, "lock")(errno.into())),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let waited_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
                return Err(Error::Busy { holder: holder(&file), path, waited_ms });
            }
            std::thread::sleep(pause.min(left));
            pause = (pause * 2).min(Duration::from_millis(50));
        }
        // For whoever waits next; nothing depends on it.
        let text = format!("pid {}\n", std::process::id());
        let _ = file.set_len(0).and_then(|()| file.write_all(text.as_bytes()));
        Ok(Guard { _file: file, path: self.path.clone() })
    }

    /// Everything that changes the store starts here: the lock is ours, what an earlier call left
    /// behind is dealt with, and none of `uuids` is part of something that could not be.
    fn ready(&self, guard: &Guard, uuids: &[Uuid]) -> Result<()> {
        if guard.path != self.path {
            let (held, wanted) = (guard.path.clone(), self.path.clone());
            return Err(Error::WrongLock { held, wanted });
        }
        let recovery = self.recover(guard)?;
        for failed in &recovery.failed {
            if let Some(uuid) = uuids.iter().find(|uuid| failed.uuids.contains(uuid)) {
                let reason = format!("operation {} is unfinished: {}", failed.op, failed.reason);
                return Err(Error::Quarantined { uuid: *uuid, reason });
            }
        }
        Ok(())
    }

    fn image_path(&self, uuid: Uuid, format: Format) -> PathBuf {
        self.path.join(image_name(uuid, format))
    }

    fn doc_path(&self, uuid: Uuid) -> PathBuf {
        self.path.join(OURS).join("vdi").join(format!("{uuid}.json"))
    }

    fn tmp_path(&self, name: &str) -> PathBuf {
        self.path.join(OURS).join("tmp").join(name)
    }

    fn journal_path(&self, op: Uuid) -> PathBuf {
        self.path.join(OURS).join("journal").join(format!("{op}.json"))
    }

    fn sync_images(&self) -> Result<()> {
        sys::sync_dir(&self.dir, &self.path)
    }

    fn sync_docs(&self) -> Result<()> {
        sys::sync_dir(&self.vdi, &self.path.join(OURS).join("vdi"))
    }
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

fn open_dir(path: &Path) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty())
        .map(File::from)
        .map_err(|errno| Error::io(path, "open directory")(errno.into()))
}

/// Names in a directory, without the dot entries.
fn names(dir: &File, path: &Path) -> Result<Vec<String>> {
    let failed = |errno: Errno| Error::io(path, "read directory")(errno.into());
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // A name that is not UTF-8 is none of ours.
        if let Ok(name) = entry.file_name().to_str()
            && name != "."
            && name != ".."
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn exists(path: &Path) -> Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(path, "stat")(error)),
    }
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(Error::io(from, "rename"))
}

/// Removes a file; none there is fine. Returns whether there was one.
fn remove(path: &Path) -> Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(path, "remove")(error)),
    }
}

fn holder(file: &File) -> String {
    let mut text = [0; 64];
    let got = file.read_at(&mut text, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(&text[..got]).trim().to_owned();
    if text.is_empty() { "another process".to_owned() } else { text }
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
