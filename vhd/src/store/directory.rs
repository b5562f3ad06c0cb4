//! A directory as a store of images.
//!
//! ```text
//! <dir>/<uuid>.vhd, .raw   images
//! <dir>/.sm/vdi/           what is said about disks
//! <dir>/.sm/journal/       operations under way
//! <dir>/.sm/merge/         how far merges have come; made when first needed
//! <dir>/.sm/open/          who has a disk open; made when first needed
//! <dir>/.sm/tmp/           what is not there yet, or no longer
//! <dir>/.sm/lock           locked by whoever changes anything
//! <dir>/.sm/maintenance.lock  locked by whoever merges images
//! ```

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, OFlags};
use rustix::io::Errno;
use rustix::path::Arg;

use super::{Area, At, Blob, Held, Store};
use crate::error::{Error, Result};
use crate::sys;

/// Our directory inside the store.
const OURS: &str = ".sm";

/// In it, locked by whoever changes anything.
const LOCK: &str = "lock";

/// In it, locked by whoever merges images.
const MAINTENANCE_LOCK: &str = "maintenance.lock";

/// A store in one directory. Holds open directories and nothing else, so it is cheap to open and
/// never stale.
pub struct Directory {
    path: PathBuf,
    images: File,
    ours: File,
    docs: File,
    journal: File,
    tmp: File,
    shut_out: Option<PathBuf>,
}

impl Directory {
    /// Makes a directory a store. It may hold images already, such as a file SR of XenServer, and
    /// may be a store already.
    pub fn init(path: &Path) -> Result<Self> {
        let ours = path.join(OURS);
        make(&ours)?;
        for area in [Area::Docs, Area::Journal, Area::Tmp] {
            make(&ours.join(folder(area)))?;
        }
        let directory = Self::open(path)?;
        sys::sync_dir(&directory.ours, &ours)?;
        sys::sync_dir(&directory.images, path)?;
        Ok(directory)
    }

    /// Opens a store. [`Error::is_not_found`] when the directory is not there or is no store.
    pub fn open(path: &Path) -> Result<Self> {
        // Each from the one above it: over NFS every part of a path asks the server.
        let images = open_dir(path)?;
        let at = path.join(OURS);
        let ours = open_dir_at(&images, OURS, &at)?;
        let area = |area| open_dir_at(&ours, folder(area), &at.join(folder(area)));
        let (docs, journal, tmp) = (area(Area::Docs)?, area(Area::Journal)?, area(Area::Tmp)?);
        Ok(Self { path: path.to_owned(), images, ours, docs, journal, tmp, shut_out: None })
    }

    /// As [`Directory::open`], for somebody who may be shut out: while there is a file `mark`, whoever
    /// locks the store is refused with [`Error::ShutOut`].
    pub fn open_unless(path: &Path, mark: PathBuf) -> Result<Self> {
        Ok(Self { shut_out: Some(mark), ..Self::open(path)? })
    }

    /// With the lock held, under which the mark is made.
    fn refuse_shut_out(&self) -> Result<()> {
        let Some(mark) = &self.shut_out else { return Ok(()) };
        match rustix::fs::lstat(mark) {
            Ok(_) => Err(Error::ShutOut { mark: mark.clone() }),
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(Error::io(mark, "stat")(errno.into())),
        }
    }

    fn area(&self, area: Area) -> PathBuf {
        match area {
            Area::Images => self.path.clone(),
            other => self.path.join(OURS).join(folder(other)),
        }
    }

    /// The open directory of an area that every store has from the start.
    fn held(&self, area: Area) -> Option<&File> {
        match area {
            Area::Images => Some(&self.images),
            Area::Docs => Some(&self.docs),
            Area::Journal => Some(&self.journal),
            Area::Tmp => Some(&self.tmp),
            Area::Merges | Area::Claims => None,
        }
    }

    fn lock_path(&self) -> PathBuf {
        self.path.join(OURS).join(LOCK)
    }

    /// Opens a file to lock, and makes it if it is not there.
    fn open_lock(&self, name: &str, path: &Path) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::openat(&self.ours, name, flags, mode)
            .map(File::from)
            .map_err(|errno| Error::io(path, "open")(errno.into()))
    }
}

impl Store for Directory {
    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    fn path_of(&self, at: &At) -> PathBuf {
        self.area(at.area).join(&at.name)
    }

    fn names(&self, area: Area) -> Result<Vec<String>> {
        let path = self.area(area);
        match self.held(area) {
            Some(dir) => names(dir, &path),
            None => match open_dir_at(&self.ours, folder(area), &path) {
                Ok(dir) => names(&dir, &path),
                Err(error) if error.is_not_found() => Ok(Vec::new()),
                Err(error) => Err(error),
            },
        }
    }

    fn exists(&self, at: &At) -> Result<bool> {
        let path = self.path_of(at);
        let found = match self.held(at.area) {
            Some(dir) => rustix::fs::statat(dir, &at.name, AtFlags::SYMLINK_NOFOLLOW),
            None => rustix::fs::lstat(&path),
        };
        match found {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(Error::io(&path, "stat")(errno.into())),
        }
    }

    fn open(&self, at: &At, write: bool) -> Result<Box<dyn Blob>> {
        let opened = match self.held(at.area) {
            Some(dir) => sys::open_at(dir, Path::new(&at.name), write),
            None => sys::open(&self.path_of(at), write),
        };
        opened.map(|file| Box::new(file) as Box<dyn Blob>).map_err(|error| match error {
            Error::Io { action, source, .. } => Error::io(&self.path_of(at), action)(source),
            other => other,
        })
    }

    fn create(&self, at: &At, _room: u64) -> Result<Box<dyn Blob>> {
        let path = self.path_of(at);
        let file = match sys::create_new(&path) {
            Err(error) if error.is_not_found() && self.held(at.area).is_none() => {
                make(&self.area(at.area))?;
                sys::create_new(&path)?
            }
            other => other?,
        };
        Ok(Box::new(file))
    }

    fn link(&self, from: &At, to: &At) -> Result<bool> {
        let path = self.path_of(to);
        match std::fs::hard_link(self.path_of(from), &path) {
            Ok(()) => Ok(true),
            Err(error) if cannot_link(&error) => Ok(false),
            Err(error) => Err(Error::io(&path, "link")(error)),
        }
    }

    fn rename(&self, from: &At, to: &At) -> Result<()> {
        let from = self.path_of(from);
        std::fs::rename(&from, self.path_of(to)).map_err(Error::io(&from, "rename"))
    }

    fn remove(&self, at: &At) -> Result<bool> {
        let path = self.path_of(at);
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io(&path, "remove")(error)),
        }
    }

    fn sync(&self, area: Area) -> Result<()> {
        let path = self.area(area);
        match self.held(area) {
            Some(dir) => sys::sync_dir(dir, &path),
            None => sys::sync_dir(open_dir_at(&self.ours, folder(area), &path)?, &path),
        }
    }

    fn lock_file(&self) -> Option<PathBuf> {
        Some(self.lock_path())
    }

    fn shut_out_mark(&self) -> Option<PathBuf> {
        self.shut_out.clone()
    }

    fn lock(&self, deadline: Instant) -> Result<Held> {
        let path = self.lock_path();
        let start = Instant::now();
        let mut file = self.open_lock(LOCK, &path)?;
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
        self.refuse_shut_out()?;
        // For whoever waits next; nothing depends on it.
        let text = format!("pid {}\n", std::process::id());
        let _ = file.set_len(0).and_then(|()| file.write_all(text.as_bytes()));
        Ok(Box::new(file))
    }

    fn try_lock_maintenance(&self) -> Result<Option<Held>> {
        let path = self.path.join(OURS).join(MAINTENANCE_LOCK);
        let file = self.open_lock(MAINTENANCE_LOCK, &path)?;
        match sys::try_lock(&file) {
            Ok(true) => Ok(Some(Box::new(file))),
            Ok(false) => Ok(None),
            Err(errno) => Err(Error::io(&path, "lock")(errno.into())),
        }
    }

    fn try_lock_shared(&self) -> Option<Held> {
        // Never for reading alone: a server of NFS delegates a file that nobody writes, and Linux's client
        // then gives shared locks without asking it. If one is given while an exclusive one is being given
        // back, and the delegation recalled, each of the two waits for the other, for ever.
        let file = sys::open_at(&self.ours, Path::new(LOCK), true).ok()?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).ok()?;
        Some(Box::new(file))
    }

    fn stamp(&self) -> Result<[(i64, i64); 2]> {
        let time = |dir: &File, area: Area| {
            let stat = rustix::fs::fstat(dir)
                .map_err(|errno| Error::io(&self.area(area), "stat")(errno.into()))?;
            Ok::<_, Error>((stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0)))
        };
        Ok([time(&self.journal, Area::Journal)?, time(&self.images, Area::Images)?])
    }
}

fn folder(area: Area) -> &'static str {
    match area {
        Area::Images => "",
        Area::Docs => "vdi",
        Area::Journal => "journal",
        Area::Merges => "merge",
        Area::Claims => "open",
        Area::Tmp => "tmp",
    }
}

fn make(path: &Path) -> Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(Error::io(path, "create directory")(error))
        }
        _ => Ok(()),
    }
}

fn open_dir(path: &Path) -> Result<File> {
    open_dir_at(rustix::fs::CWD, path, path)
}

/// Opens `name`, which is seen from `dir`; an error names `path`.
fn open_dir_at(dir: impl AsFd, name: impl Arg, path: &Path) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, rustix::fs::Mode::empty())
        .map(File::from)
        .map_err(|errno| Error::io(path, "open directory")(errno.into()))
}

/// What Linux's client of NFS calls a file that was removed and is still open here or on another host:
/// its content is there as long as it has this name, and the client removes it.
const REMOVED: &str = ".nfs";

/// Names in a directory, without the dot entries and without files that are removed already.
fn names(dir: &File, path: &Path) -> Result<Vec<String>> {
    let failed = |errno: Errno| Error::io(path, "read directory")(errno.into());
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // A name that is not UTF-8 is none of ours.
        if let Ok(name) = entry.file_name().to_str()
            && name != "."
            && name != ".."
            && !name.starts_with(REMOVED)
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Errors of file systems without hard links, or of kernels that forbid them here.
fn cannot_link(error: &std::io::Error) -> bool {
    let known = [Errno::PERM, Errno::OPNOTSUPP, Errno::NOSYS, Errno::MLINK];
    known.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn holder(file: &File) -> String {
    let mut text = [0; 64];
    let got = FileExt::read_at(file, &mut text, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(&text[..got]).trim().to_owned();
    if text.is_empty() { "another process".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::Directory;
    use crate::error::Error;
    use crate::store::Store as _;

    #[test]
    fn whoever_is_shut_out_gets_no_lock_and_keeps_none() {
        let dir = tempfile::tempdir().unwrap();
        Directory::init(dir.path()).unwrap();
        let mark = dir.path().join("mark");
        let ours = Directory::open_unless(dir.path(), mark.clone()).unwrap();
        drop(ours.lock(Instant::now()).unwrap());
        std::fs::write(&mark, []).unwrap();
        let refused = ours.lock(Instant::now()).err().unwrap();
        assert!(matches!(&refused, Error::ShutOut { mark: found } if *found == mark), "{refused}");
        // Nobody waits for it.
        drop(Directory::open(dir.path()).unwrap().lock(Instant::now()).unwrap());
    }
}
