//! A private copy of a driver's file under the name of its content.
//!
//! Why a copy: writing over a shared library that is mapped kills whoever runs in it (`cp new
//! old`). Why the content's name: the dynamic loader knows libraries by their path, so an upgrade
//! under the old path would get the old code again.
//!
//! Copies are never removed: one is some MB, there is one for each build of a driver, and another
//! process may be about to load it. Whoever owns the state directory may clear it while nothing
//! runs.
//!
//! Beside the copies an index remembers which file was copied, one small file for each. The key
//! holds everything that changes when the file does, so a second process neither hashes nor
//! copies. Each file appears by rename, complete or not at all; a lost index entry costs one
//! copy.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sm_model::Manifest;

use crate::inspect::{Inspection, inspect_file, open_file};
use crate::{LoadError, verify};

/// A driver that was inspected, verified and copied.
#[derive(Clone, Debug)]
pub struct Staged {
    /// What the file says of itself.
    pub inspection: Inspection,
    /// The private copy.
    pub copy: PathBuf,
    /// SHA-256 of the content, in lower-case hexadecimal.
    pub sha256: String,
    /// Whether an earlier copy could be used.
    pub reused: bool,
}

/// What identifies a file's content without reading it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    path: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    mtime_ns: i128,
    ctime_ns: i128,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    key: Key,
    sha256: String,
    copy: String,
}

impl Key {
    fn of(file: &File, path: &Path) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let nanoseconds =
            |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Ok(Self {
            path: path.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            mtime_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            ctime_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// One index file for each path: a newer file at the same path replaces the entry.
    fn index_name(&self) -> String {
        let hash = hexadecimal(&Sha256::digest(self.path.as_os_str().as_encoded_bytes()));
        format!("{}.json", hash.get(..32).unwrap_or(&hash))
    }
}

/// Inspects and verifies the driver at `path`, and makes sure of a private copy in
/// `<state>/drivers`.
pub fn stage(path: &Path, state: &Path) -> Result<Staged, LoadError> {
    let path = &std::path::absolute(path)
        .map_err(|source| LoadError::Unreadable { path: path.to_owned(), source })?;
    let unreadable = |source| LoadError::Unreadable { path: path.clone(), source };
    let file = open_file(path)?;
    let inspection = inspect_file(&file, path)?;
    verify::ownership(&file, path)?;
    let lock = verify::locked(path, &inspection.manifest.name)?;
    if let Some(lock) = &lock {
        lock.check_size(inspection.size)?;
    }
    let key = Key::of(&file, path).map_err(unreadable)?;
    let directory = state.join("drivers");
    let index = directory.join("index").join(key.index_name());
    let entry = match lookup(&index, &key, &directory) {
        Some(entry) => {
            if let Some(lock) = &lock {
                lock.check_hash(&entry.sha256)?;
            }
            let copy = directory.join(&entry.copy);
            return Ok(Staged { inspection, copy, sha256: entry.sha256, reused: true });
        }
        None => copy(&file, &key, &inspection.manifest, &directory)?,
    };
    if let Some(lock) = &lock {
        lock.check_hash(&entry.sha256)?;
    }
    let json = serde_json::to_vec(&entry).map_err(|error| LoadError::Host {
        what: "the index of staged drivers",
        why: error.to_string(),
    })?;
    // Without the entry the next process copies again, so a failure here is not one of loading.
    if let Err(error) = write_by_rename(&index, &json, 0o644) {
        tracing::warn!(target: "driver", path = %index.display(), %error, "index not written");
    }
    let copy = directory.join(&entry.copy);
    Ok(Staged { inspection, copy, sha256: entry.sha256, reused: false })
}

/// The index entry, if it is for this very file and its copy is still as it was made.
fn lookup(index: &Path, key: &Key, directory: &Path) -> Option<Entry> {
    let entry: Entry = serde_json::from_slice(&fs::read(index).ok()?).ok()?;
    (entry.key == *key && !entry.copy.contains('/') && is_intact(&directory.join(&entry.copy), key))
        .then_some(entry)
}

/// Whether a copy has the right size, is ours and cannot be written by others.
fn is_intact(copy: &Path, key: &Key) -> bool {
    fs::symlink_metadata(copy).is_ok_and(|metadata| {
        metadata.is_file()
            && metadata.size() == key.size
            && metadata.mode() & 0o022 == 0
            && metadata.uid() == rustix::process::geteuid().as_raw()
    })
}

fn copy(
    mut file: &File,
    key: &Key,
    manifest: &Manifest,
    directory: &Path,
) -> Result<Entry, LoadError> {
    let unreadable = |source| LoadError::Unreadable { path: key.path.clone(), source };
    let failed = |source| LoadError::Stage { path: directory.to_owned(), source };
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory.join("index"))
        .map_err(failed)?;

    let temporary = Temporary::create(directory, 0o555).map_err(failed)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    let mut copied: u64 = 0;
    file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    loop {
        let count = file.read(&mut buffer).map_err(unreadable)?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
        hash.update(bytes);
        (&temporary.file).write_all(bytes).map_err(failed)?;
        copied += count as u64;
    }
    // A file that is written to while we read it shows another length or another time now.
    if copied != key.size || Key::of(file, &key.path).map_err(unreadable)? != *key {
        return Err(LoadError::Changed { path: key.path.clone() });
    }
    let sha256 = hexadecimal(&hash.finalize());
    let short = sha256.get(..12).unwrap_or(&sha256);
    let name = format!("{}-{}-{short}.so", manifest.name, manifest.version);
    let target = directory.join(&name);
    // Same name, same content: what is there may be mapped and stays.
    if !is_intact(&target, key) {
        temporary.persist(&target).map_err(failed)?;
    }
    Ok(Entry { key: key.clone(), sha256, copy: name })
}

/// Writes a file so that it is there completely or not at all.
fn write_by_rename(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let temporary = Temporary::create(path.parent().unwrap_or(Path::new(".")), mode)?;
    (&temporary.file).write_all(bytes)?;
    temporary.persist(path)
}

/// A file under a name of its own, removed unless it is persisted.
struct Temporary {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl Temporary {
    fn create(directory: &Path, mode: u32) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = directory.join(format!(".new-{}-{number}", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).mode(mode).open(&path) {
                Ok(file) => {
                    let new = Self { path, file, kept: false };
                    // Whatever the umask: a child without rights must be able to map the copy.
                    new.file.set_permissions(fs::Permissions::from_mode(mode))?;
                    return Ok(new);
                }
                // Left by a process that had our number before us and died: not ours to touch.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn persist(mut self, target: &Path) -> io::Result<()> {
        // Before the name: after a power cut a full name must not lead to an empty file.
        self.file.sync_data()?;
        fs::rename(&self.path, target)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
