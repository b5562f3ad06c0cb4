//! Whether a driver's file may be trusted.
//!
//! A driver may run as root, so nobody but root, or the user this process runs as, may be able to
//! change it. Where a `drivers.lock` lies beside it, size and hash must be those of the lock: that
//! is what sees a file cut short behind its last loaded byte, which loads and works.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::LoadError;

/// Name of the lock file, beside the drivers.
pub const LOCK_FILE: &str = "drivers.lock";

/// A lock file: what was installed, by the name in the manifest.
pub type Lock = BTreeMap<String, Locked>;

/// One driver in a lock file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locked {
    /// Size of the file, in bytes.
    pub size: u64,
    /// SHA-256 of the file, in lower-case hexadecimal.
    pub sha256: String,
}

/// Refuses a file that somebody else than root or this user can write.
pub fn ownership(file: &File, path: &Path) -> Result<(), LoadError> {
    let metadata = file
        .metadata()
        .map_err(|source| LoadError::Unreadable { path: path.to_owned(), source })?;
    let untrusted = |why: String| LoadError::Untrusted { path: path.to_owned(), why };
    let ours = rustix::process::geteuid().as_raw();
    if metadata.uid() != 0 && metadata.uid() != ours {
        return Err(untrusted(format!(
            "its owner is user {}, this process runs as user {ours}",
            metadata.uid()
        )));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o022 != 0 {
        let whom = match mode & 0o022 {
            0o020 => "its group",
            0o002 => "everybody",
            _ => "its group and everybody",
        };
        return Err(untrusted(format!("{whom} may write to it (mode {mode:04o})")));
    }
    Ok(())
}

/// What a lock file says of one driver.
#[derive(Clone, Debug)]
pub struct LockEntry {
    lock: PathBuf,
    driver: String,
    locked: Locked,
}

/// The entry for `driver` in the lock file beside `path`; `None` if there is no lock file. Where
/// there is one, every driver must be in it.
pub fn locked(path: &Path, driver: &str) -> Result<Option<LockEntry>, LoadError> {
    let lock = path.parent().unwrap_or(Path::new("")).join(LOCK_FILE);
    let text = match std::fs::read(&lock) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(LoadError::Unreadable { path: lock, source }),
    };
    let mut all: Lock = serde_json::from_slice(&text)
        .map_err(|error| LoadError::BadLock { path: lock.clone(), why: error.to_string() })?;
    match all.remove(driver) {
        Some(locked) => Ok(Some(LockEntry { lock, driver: driver.to_owned(), locked })),
        None => Err(LoadError::NotLocked { driver: driver.to_owned(), lock }),
    }
}

impl LockEntry {
    /// Compares the size, which costs nothing.
    pub fn check_size(&self, size: u64) -> Result<(), LoadError> {
        if size == self.locked.size {
            return Ok(());
        }
        Err(self.differs("the size", size.to_string(), self.locked.size.to_string()))
    }

    /// Compares the hash.
    pub fn check_hash(&self, sha256: &str) -> Result<(), LoadError> {
        if sha256.eq_ignore_ascii_case(&self.locked.sha256) {
            return Ok(());
        }
        Err(self.differs("the sha256", sha256.to_owned(), self.locked.sha256.clone()))
    }

    fn differs(&self, what: &'static str, actual: String, locked: String) -> LoadError {
        LoadError::LockDiffers {
            driver: self.driver.clone(),
            lock: self.lock.clone(),
            what,
            actual,
            locked,
        }
    }
}
