//! Where a running data path is found.
//!
//! ```text
//! <base>/<installation>/<disk>/
//!   lock       locked by the process for its whole life: it runs if, and only if, this is locked
//!   process    who it is: process id, when it was started
//!   plan.json  what it was last told to serve
//!   control    socket for the control plane
//!   nbd        socket for the clients
//!   pending.*  what must be redone if the process is killed
//!   since.*    what changed since a point in time, as clients are shown it; since.now by now, for
//!              whoever has asked just now
//!   moved.json where the disk went, if it did
//!   log        its standard error
//! ```
//!
//! The base is a directory that a reboot empties. A path of a socket may have 107 bytes
//! (`sun_path` of `unix(7)`), so the directories are chosen short, and the installation's name is
//! a hash.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::mirroring::Moved;

/// Longest path of a socket, bytes: `sun_path` has 108 with the NUL at its end.
pub const LONGEST_SOCKET_PATH: usize = 107;

/// Names the base directory, before all others.
pub const VARIABLE: &str = "SM_RUN_DIR";

/// The longest thing that follows the base: installation, a UUID, the longer socket's name.
const ROOM: usize = "/01234567/01234567-0123-0123-0123-0123456789ab/control".len();

/// Why no run directory can be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A directory, or what is in it, cannot be used.
    #[error("{path}: {what}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// The system's words.
        source: io::Error,
    },
    /// Somebody else could put a socket there.
    #[error("{path} belongs to another user or can be written by others")]
    NotOurs {
        /// The directory.
        path: PathBuf,
    },
    /// The path of a socket in this directory would be too long.
    #[error(
        "{path} is too long for the path of a socket: {length} bytes, at most {LONGEST_SOCKET_PATH}"
    )]
    TooLong {
        /// The socket.
        path: PathBuf,
        /// Its length, bytes.
        length: usize,
    },
}

impl Error {
    /// For `map_err`.
    pub fn io(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), what, source }
    }

    /// Whether there is nothing there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == ErrorKind::NotFound)
    }
}

/// The directories of one installation: that of a state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run(PathBuf);

impl Run {
    /// The run directory of the installation whose state is in `state`. Nothing is made.
    ///
    /// The base is, in this order: what `SM_RUN_DIR` says; `/run/sm` for root;
    /// `$XDG_RUNTIME_DIR/sm`; `/tmp/sm-<user id>`. One whose sockets would have too long a path is
    /// passed over.
    pub fn of_installation(state: &Path) -> Self {
        let user = rustix::process::geteuid();
        let state = std::path::absolute(state).unwrap_or_else(|_| state.to_owned());
        let state = std::fs::canonicalize(&state).unwrap_or(state);
        let variable = |name: &str| {
            std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
        };
        let candidates = [
            variable(VARIABLE),
            user.is_root().then(|| PathBuf::from("/run/sm")),
            variable("XDG_RUNTIME_DIR").filter(|path| path.is_dir()).map(|path| path.join("sm")),
        ];
        let base = candidates
            .into_iter()
            .flatten()
            .find(|base| base.as_os_str().len() + ROOM <= LONGEST_SOCKET_PATH)
            .unwrap_or_else(|| PathBuf::from(format!("/tmp/sm-{}", user.as_raw())));
        Self(base.join(short_hash(state.as_os_str())))
    }

    /// The directory of a disk. Nothing is made.
    pub fn disk(&self, name: &str) -> Place {
        Place(self.0.join(name))
    }

    /// The disks that have a directory, whether a process runs or not.
    pub fn disks(&self) -> Result<Vec<Place>, Error> {
        let entries = match std::fs::read_dir(&self.0) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(Error::io(&self.0, "read directory"))?,
        };
        let mut found = Vec::new();
        for entry in entries {
            found.push(Place(entry.map_err(Error::io(&self.0, "read directory"))?.path()));
        }
        found.sort();
        Ok(found)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The name of the installation: the same for the same state directory, and short.
    pub fn installation(&self) -> String {
        self.0.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }
}

/// FNV-1a, 32 bits: the name only has to be short, and another one for another installation.
fn short_hash(text: &OsStr) -> String {
    let hash = text
        .as_bytes()
        .iter()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    format!("{hash:08x}")
}

/// The directory of one disk's process.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place(PathBuf);

/// Who serves a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// When it was started, in clock ticks since the boot: with the id, nobody else's
    /// (`/proc/<pid>/stat`, field 22).
    pub started: u64,
}

impl Process {
    /// This process.
    pub fn this() -> Self {
        let pid = std::process::id();
        Self { pid, started: started(pid).unwrap_or(0) }
    }

    /// Whether it is there still, and no zombie.
    pub fn is_alive(self) -> bool {
        started(self.pid) == Some(self.started)
    }
}

/// When a process that runs was started.
fn started(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// The right to be, or to replace, the process of a disk; given back when dropped and by the
/// kernel when the process dies.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its drop")] File);

impl Place {
    /// A directory that was told by its path.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The name of the disk.
    pub fn name(&self) -> String {
        self.0.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// The control plane's socket.
    pub fn control(&self) -> PathBuf {
        self.0.join("control")
    }

    /// The clients' socket.
    pub fn nbd(&self) -> PathBuf {
        self.0.join("nbd")
    }

    /// Where the clients find the disk.
    pub fn uri(&self) -> String {
        let path = self.nbd();
        format!("nbd+unix:///{}?socket={}", escape(self.name().as_bytes()), escape_path(&path))
    }

    /// What the process was told to serve.
    pub fn plan(&self) -> PathBuf {
        self.0.join("plan.json")
    }

    /// The beginning of the paths of what must be redone after a kill: a file for each image.
    pub fn pending(&self) -> PathBuf {
        self.0.join("pending")
    }

    fn pending_files(&self) -> Vec<PathBuf> {
        self.files("pending.")
    }

    /// The files whose names begin so.
    fn files(&self, prefix: &str) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(&self.0) else { return Vec::new() };
        entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                let name = path.file_name().and_then(|name| name.to_str());
                name.is_some_and(|name| name.starts_with(prefix))
            })
            .collect()
    }

    /// What changed since a point in time, in the layout of a log of changed blocks.
    pub fn changed_since(&self, name: &str) -> PathBuf {
        self.0.join(format!("since.{name}"))
    }

    /// What has changed by now, for whoever has asked.
    pub(super) fn changed_by_now(&self) -> PathBuf {
        self.changed_since("now")
    }

    fn changed_files(&self) -> Vec<PathBuf> {
        self.files("since.")
    }

    /// Its standard error.
    pub fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    fn moved_file(&self) -> PathBuf {
        self.0.join("moved.json")
    }

    /// Where the disk went, if a process has recorded that it did. A record that cannot be read is
    /// one of a disk that went nobody knows where.
    pub fn moved(&self) -> Option<Moved> {
        let unknown = || Moved {
            target: "an unknown place".to_owned(),
            verified: false,
            time: 0,
            milliseconds: 0,
        };
        match std::fs::read(self.moved_file()) {
            Ok(text) => Some(serde_json::from_slice(&text).unwrap_or_else(|_| unknown())),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(_) => self.exists().then(unknown),
        }
    }

    /// Records that the disk is in another place from now on. After a failure it is not.
    pub(super) fn write_moved(&self, moved: &Moved) -> Result<(), Error> {
        let (path, new) = (self.moved_file(), self.0.join("moved.new"));
        let text = serde_json::to_vec_pretty(moved).unwrap_or_default();
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            std::fs::rename(&new, &path)
        };
        write().map_err(Error::io(&path, "write"))?;
        // Of use where the directory does not live in memory. The record is there in any case.
        let _ = File::open(&self.0).and_then(|folder| folder.sync_all());
        Ok(())
    }

    /// Removes the record of a move: somebody else knows it now, or wants the old disk back.
    pub fn forget_moved(&self) -> Result<(), Error> {
        remove(&self.0.join("moved.new"))?;
        remove(&self.moved_file())
    }

    fn process_file(&self) -> PathBuf {
        self.0.join("process")
    }

    /// Makes the directory, with those above it. Nobody else may look into them.
    pub fn make(&self) -> Result<(), Error> {
        let longest = self.control();
        let length = longest.as_os_str().len();
        if length > LONGEST_SOCKET_PATH {
            return Err(Error::TooLong { path: longest, length });
        }
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&self.0).map_err(Error::io(&self.0, "make directory"))?;
        // What is above the installation's directory is the system's, or ours: made just now, or
        // by an earlier call, or by somebody who wants to be found in its place.
        let ours = self.0.ancestors().take(3);
        let user = rustix::process::geteuid();
        for path in ours {
            let found = std::fs::symlink_metadata(path).map_err(Error::io(path, "look"))?;
            let alone = found.is_dir()
                && (found.uid() == user.as_raw() || found.uid() == 0)
                && found.mode() & 0o022 == 0;
            if !alone {
                return Err(Error::NotOurs { path: path.to_owned() });
            }
        }
        Ok(())
    }

    /// Takes the process's lock; none while a process runs, or when the directory is gone.
    pub fn lock(&self) -> Result<Option<Lock>, Error> {
        let path = self.0.join("lock");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = match rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR) {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            other => File::from(other.map_err(|errno| Error::io(&path, "open")(errno.into()))?),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(errno) => return Err(Error::io(&path, "lock")(errno.into())),
        }
        // Whoever clears the directory away holds the lock meanwhile: one on a file that has lost
        // its name is none.
        let own = file.metadata().map_err(Error::io(&path, "look"))?;
        let named = std::fs::symlink_metadata(&path);
        let same = named.is_ok_and(|named| (named.dev(), named.ino()) == (own.dev(), own.ino()));
        Ok(same.then_some(Lock(file)))
    }

    /// Says who the process is. By the holder of the lock.
    pub fn write_process(&self, process: Process) -> Result<(), Error> {
        let path = self.process_file();
        let text = serde_json::to_vec(&process).unwrap_or_default();
        std::fs::write(&path, text).map_err(Error::io(&path, "write"))
    }

    /// Who the process is, or was.
    pub fn process(&self) -> Option<Process> {
        serde_json::from_slice(&std::fs::read(self.process_file()).ok()?).ok()
    }

    /// Removes what a process that is no more has left, except what must be redone. By the holder
    /// of the lock.
    pub fn clear_sockets(&self) -> Result<(), Error> {
        for path in [self.control(), self.nbd(), self.process_file()] {
            remove(&path)?;
        }
        Ok(())
    }

    /// Whether a process that was killed has left something to redo.
    pub fn has_pending(&self) -> bool {
        let is_used = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|found| found.len() > 0);
        self.pending_files().iter().any(is_used)
    }

    /// Removes the directory and what we have put into it; those above it when they are empty. By
    /// the holder of the lock.
    pub fn remove(&self) -> Result<(), Error> {
        self.clear_sockets()?;
        for path in self.pending_files().into_iter().chain(self.changed_files()) {
            remove(&path)?;
        }
        self.forget_moved()?;
        for path in [self.plan(), self.log(), self.0.join("lock")] {
            remove(&path)?;
        }
        match std::fs::remove_dir(&self.0) {
            // Somebody has made a lock of his own by now; he will see that it is over.
            Err(error)
                if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) =>
            {
                return Err(Error::io(&self.0, "remove directory")(error));
            }
            _ => {}
        }
        if let Some(above) = self.0.parent() {
            let _ = std::fs::remove_dir(above);
        }
        Ok(())
    }

    /// Whether there is a directory at all.
    pub fn exists(&self) -> bool {
        self.0.is_dir()
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io(path, "remove")(error)),
        _ => Ok(()),
    }
}

fn escape_path(path: &Path) -> String {
    escape(path.as_os_str().as_bytes())
}

/// For a part of a URI: other than unreserved characters and slashes as `%` and two digits
/// (RFC 3986, sections 2.1 and 2.3).
fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails so")]

    use super::*;

    const DISK: &str = "01234567-89ab-4cde-8f01-23456789abcd";

    #[test]
    fn sockets_of_any_installation_have_a_path_that_fits() {
        let deep = format!("/{}", "deep/".repeat(200));
        for state in ["/var/lib/sm", deep.as_str()] {
            let place = Run::of_installation(Path::new(state)).disk(DISK);
            assert!(place.control().as_os_str().len() <= LONGEST_SOCKET_PATH, "{place:?}");
        }
    }

    #[test]
    fn installations_do_not_meet() {
        let of = |path: &str| Run::of_installation(Path::new(path));
        assert_ne!(of("/usr/lib"), of("/usr/bin"));
        assert_eq!(of("/usr/lib"), of("/usr/bin/../lib"));
    }

    #[test]
    fn a_path_that_is_too_long_is_an_error_that_says_so() {
        let place = Place::at(format!("/tmp/{}/{DISK}", "x".repeat(80)));
        let error = place.make().unwrap_err().to_string();
        assert!(error.contains("is too long for the path of a socket: 130 bytes"), "{error}");
        assert!(!place.exists());
    }

    #[test]
    fn a_directory_that_others_can_write_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let shared = folder.path().join("shared");
        std::fs::create_dir(&shared).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(&shared, mode).unwrap();
        let place = Place::at(shared.join("i").join(DISK));
        let error = place.make().unwrap_err();
        assert!(matches!(&error, Error::NotOurs { path } if *path == shared), "{error}");
    }

    #[test]
    fn the_lock_has_one_holder_and_none_when_the_directory_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::at(folder.path().join("i").join(DISK));
        assert!(place.lock().unwrap().is_none(), "no directory");
        place.make().unwrap();
        let held = place.lock().unwrap().unwrap();
        assert!(place.lock().unwrap().is_none(), "it is held");
        place.write_process(Process::this()).unwrap();
        assert!(place.process().unwrap().is_alive());
        place.remove().unwrap();
        assert!(!place.exists() && !folder.path().join("i").exists());
        drop(held);
    }

    #[test]
    fn a_process_that_is_gone_is_not_alive() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let process = Process { pid: child.id(), started: started(child.id()).unwrap_or(0) };
        child.wait().unwrap();
        assert!(!process.is_alive());
        assert!(!Process { started: 1, ..Process::this() }.is_alive());
    }

    #[test]
    fn a_uri_names_disk_and_socket() {
        let place = Place::at("/run/sm/a b/disk");
        assert_eq!(place.uri(), "nbd+unix:///disk?socket=/run/sm/a%20b/disk/nbd");
    }
}
