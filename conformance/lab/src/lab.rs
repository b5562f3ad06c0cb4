//! A lab: guests that belong together, and the folder they live in.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use tempfile::TempDir;

use crate::disk::{Disk, plain};
use crate::error::{Doing, Error, Result};
use crate::guest::{Builder, Guest};
use crate::machine::{self, Machine};
use crate::network::Network;
use crate::processors::Turns;

/// Makes [`Lab::keep_logs`] the rule.
const KEEP: &str = "LAB_KEEP_LOGS";

/// Labs whose consoles are kept; those of older ones go.
const KEPT: usize = 30;

/// A set of guests with their networks and disks. It shares nothing with another lab, so any
/// number can run at once. All of it goes with the last handle to it or to one of its guests.
#[derive(Clone)]
pub struct Lab {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) machine: Machine,
    pub(crate) folder: TempDir,
    /// Removes the folder if we cannot.
    sweeper: Child,
    turns: Turns,
    guests: AtomicU8,
    networks: AtomicU8,
    pub(crate) requests: AtomicU32,
    keep: AtomicBool,
}

impl Lab {
    /// An empty lab.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where no guest can run, with the reason.
    pub fn new() -> Result<Self> {
        let machine = Machine::get()?;
        let base = machine::base();
        let folder = tempfile::Builder::new().prefix("lab-").tempdir_in(&base);
        let folder = folder.doing(|| format!("make a folder in {}", base.display()))?;
        plain(folder.path())?;
        // What host and guests exchange.
        for name in ["share", "disks"] {
            std::fs::create_dir(folder.path().join(name)).doing(|| format!("make {name}"))?;
        }
        // Of a group of its own: Ctrl-C is for us only.
        let sweeper = Command::new(&machine.agent)
            .arg("sweep")
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .doing(|| "start the lab's sweeper".into())?;
        let inner = Inner {
            machine,
            folder,
            sweeper,
            turns: Turns::begin(),
            guests: AtomicU8::new(0),
            networks: AtomicU8::new(0),
            requests: AtomicU32::new(1),
            keep: AtomicBool::new(std::env::var_os(KEEP).is_some()),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// A guest of that host name, to be described and booted.
    pub fn guest(&self, name: &str) -> Builder {
        let number = self.inner.guests.fetch_add(1, Ordering::Relaxed) + 1;
        let processor = self.inner.turns.processor(number);
        Builder::new(Arc::clone(&self.inner), name, number, processor)
    }

    /// Boots several guests at the same time.
    pub fn boot<const N: usize>(&self, guests: [Builder; N]) -> Result<[Guest; N]> {
        let wrong = |_| Error::Wrong("a thread that boots a guest has panicked".into());
        let booted: Vec<Guest> = std::thread::scope(|scope| {
            let threads = guests.map(|guest| scope.spawn(|| guest.boot()));
            let booted = threads.map(|thread| thread.join().map_err(wrong).flatten());
            booted.into_iter().collect::<Result<_>>()
        })?;
        booted.try_into().map_err(|_| Error::Wrong("a guest is missing".into()))
    }

    /// A network that guests can be plugged into: one switch, no way out to the machine.
    pub fn network(&self) -> Result<Network> {
        let number = self.inner.networks.fetch_add(1, Ordering::Relaxed);
        Network::new(number)
    }

    /// A new empty disk, which is gone with the lab.
    pub fn disk(&self, name: &str, bytes: u64) -> Result<Disk> {
        if name.contains('/') {
            return Err(Error::Wrong(format!("{name:?} is no name for a disk")));
        }
        Disk::create(self.folder().join("disks").join(name), bytes)
    }

    /// The folder of this lab on the machine, which goes with it.
    pub fn folder(&self) -> &Path {
        self.inner.folder.path()
    }

    /// A folder that every guest sees under the same path, and both sides may write.
    pub fn share(&self) -> PathBuf {
        self.inner.share()
    }

    /// Keeps the consoles of the guests, and says where. It is done without being asked when a
    /// test panics, a guest does not boot or goes away, or something takes too long.
    pub fn keep_logs(&self) {
        self.inner.keep();
    }
}

impl Inner {
    pub(crate) fn share(&self) -> PathBuf {
        self.folder.path().join("share")
    }

    pub(crate) fn keep(&self) {
        self.keep.store(true, Ordering::Relaxed);
    }

    /// Copies the consoles to where they stay: the lab's own folder goes with the lab.
    fn save_logs(&self) -> std::io::Result<PathBuf> {
        let logs = self.machine.logs();
        let kept = logs.join(self.folder.path().file_name().unwrap_or_default());
        std::fs::create_dir_all(&kept)?;
        for entry in std::fs::read_dir(self.folder.path())?.flatten() {
            let console = entry.path().join("console");
            if console.is_file() {
                std::fs::copy(console, kept.join(entry.file_name()))?;
            }
        }
        let entries = std::fs::read_dir(logs)?.flatten();
        let mut all: Vec<_> = entries
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        all.sort();
        for (_, old) in all.iter().take(all.len().saturating_sub(KEPT)) {
            std::fs::remove_dir_all(old)?;
        }
        Ok(kept)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Every guest has a handle to this, so none is on any more.
        if self.keep.load(Ordering::Relaxed) || std::thread::panicking() {
            match self.save_logs() {
                Ok(kept) => eprintln!("lab: the guests' consoles are in {}", kept.display()),
                Err(error) => eprintln!("lab: the guests' consoles cannot be kept: {error}"),
            }
        }
        let _ = std::fs::remove_dir_all(self.folder.path());
        drop(self.sweeper.stdin.take());
        let _ = self.sweeper.wait();
    }
}
