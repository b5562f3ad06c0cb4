//! The rights that this host has on a store while it changes it, and their signs of life.
//!
//! Processes of one host wait for each other by `flock`; whoever has that takes the lease of the host
//! ([`crate::lease`]). Everything that changes the store asks [`Rights::check`] just before.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use host_kit::lvm::Group;
use plugin_sdk::model::Kind;
use plugin_sdk::{Error, Result};
use vhd::store::Blob;

use crate::blob::VolumeBlob;
use crate::inner::told;
use crate::lease::{Board, HOSTS, Held, Hosts, Kernel, Lease, Refused, Right, SLOT, TIMES};
use crate::volumes::Volumes;

/// Names the boot of a host.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A right on the store, against other processes of this host and against other hosts. The lease ends
/// before the lock does.
pub(crate) struct Entered {
    /// None where there is no place for leases yet: nobody else can know of the store.
    pub(crate) lease: Option<Lease>,
    pub(crate) _file: File,
}

/// The leases that have to be renewed while they are held.
#[derive(Default)]
struct Keeper {
    held: Mutex<Kept>,
    ended: Condvar,
}

#[derive(Default)]
struct Kept {
    leases: Vec<Weak<Held>>,
    runs: bool,
    over: bool,
}

impl Keeper {
    /// Gives signs of life until it is over. A write that hangs holds up this thread and nobody else.
    fn run(&self) {
        let mut kept = locked(&self.held);
        while !kept.over {
            let leases: Vec<Arc<Held>> = kept.leases.iter().filter_map(Weak::upgrade).collect();
            drop(kept);
            for lease in leases {
                lease.renew();
            }
            kept = locked(&self.held);
            if !kept.over {
                let waited = self.ended.wait_timeout(kept, TIMES.renew / 2);
                kept = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

/// What one process of this host has of a store's rights.
pub(crate) struct Rights {
    group: String,
    host: String,
    /// Where processes of this host keep what they have seen.
    memory: PathBuf,
    hosts: Mutex<Option<Arc<Hosts>>>,
    keeper: Arc<Keeper>,
}

impl Rights {
    pub(crate) fn new(group: &str, host: &str, locks: &Path) -> Self {
        Self {
            group: group.to_owned(),
            host: host.to_owned(),
            memory: locks.join(format!("{group}.hosts")),
            hosts: Mutex::default(),
            keeper: Arc::default(),
        }
    }

    /// The hosts of the store whose slots are here.
    pub(crate) fn open(&self, blob: VolumeBlob) -> Result<Arc<Hosts>> {
        let boot = std::fs::read_to_string(BOOT)
            .map_err(|error| Error::internal(format!("{BOOT} cannot be read")).source(&error))?;
        let hosts = Arc::new(Hosts {
            board: Box::new(Slots(blob)),
            clock: Box::new(Kernel),
            times: TIMES,
            host: self.host.clone(),
            boot: boot.trim().to_owned(),
            memory: Some(self.memory.clone()),
            slot: Mutex::default(),
        });
        *locked(&self.hosts) = Some(Arc::clone(&hosts));
        Ok(hosts)
    }

    /// The name of this host.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    fn opened(&self) -> io::Result<Arc<Hosts>> {
        locked(&self.hosts).clone().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The hosts that have a slot.
    pub(crate) fn names(&self) -> io::Result<BTreeSet<String>> {
        self.opened()?.names()
    }

    /// Has a host's turn count as over.
    pub(crate) fn pass_over(&self, host: &str) -> io::Result<()> {
        self.opened()?.pass_over(host)
    }

    pub(crate) fn is_open(&self) -> bool {
        locked(&self.hosts).is_some()
    }

    /// Whether no other host has changed the store since this host did.
    pub(crate) fn is_alone(&self) -> io::Result<bool> {
        let hosts = locked(&self.hosts).clone();
        hosts.map_or(Ok(false), |hosts| hosts.is_alone(Right::Change))
    }

    /// Takes a right, waiting for it until then; none where there is no place for leases.
    pub(crate) fn take(&self, right: Right, deadline: Instant) -> vhd::Result<Option<Lease>> {
        let Some(hosts) = locked(&self.hosts).clone() else { return Ok(None) };
        let (began, now) = (Instant::now(), hosts.clock.now());
        let until = now + deadline.saturating_duration_since(began);
        let path = PathBuf::from("/dev").join(&self.group);
        let lease = hosts.acquire(right, until).map_err(|refused| match refused {
            Refused::Held(host) => {
                let (holder, waited) = (format!("host {host}"), began.elapsed());
                vhd::Error::Busy { path, holder, waited_ms: waited.as_millis() as u64 }
            }
            Refused::Io(error) => vhd::Error::io(&path, "lease")(error),
            Refused::Late => {
                let late = io::Error::from(io::ErrorKind::TimedOut);
                vhd::Error::io(&path, "lease")(late)
            }
            Refused::Full => told(&path, "lease")(
                Error::new(Kind::Limit, format!("{HOSTS} hosts have used {} already", self.group))
                    .hint("a group that more hosts share has to be made anew"),
            ),
            Refused::Twin => told(&path, "lease")(
                Error::new(
                    Kind::Fenced,
                    format!("another host calls itself {} as this one does", self.host),
                )
                .hint("give each host of a shared SR a name of its own"),
            ),
        })?;
        self.keep(&lease);
        Ok(Some(lease))
    }

    fn keep(&self, lease: &Lease) {
        let mut kept = locked(&self.keeper.held);
        kept.leases.retain(|lease| lease.strong_count() > 0);
        kept.leases.push(Arc::downgrade(&lease.held));
        if !std::mem::replace(&mut kept.runs, true) {
            let keeper = Arc::clone(&self.keeper);
            let thread = std::thread::Builder::new().name("sm-lease".to_owned());
            if let Err(error) = thread.spawn(move || keeper.run()) {
                // Then what takes longer than a lease fails, and is recovered.
                plugin_sdk::tracing::warn!(%error, "leases are not renewed");
                kept.runs = false;
            }
        }
    }

    /// Error kind `fenced` if a right that this process works with has been lost.
    pub(crate) fn check(&self) -> Result<()> {
        let kept = locked(&self.keeper.held);
        let mut lost = kept.leases.iter().filter_map(Weak::upgrade).filter(|l| !l.is_valid());
        lost.next().map_or(Ok(()), |lost| Err(self.lost(&lost)))
    }

    fn lost(&self, lease: &Held) -> Error {
        let (host, group, time) = (&self.host, &self.group, lease.time());
        Error::new(
            Kind::Fenced,
            format!(
                "host {host} has lost its right to change {group}: its lease could not be renewed \
                 for {} s",
                time.as_secs()
            ),
        )
        .context("lease", lease.epoch())
        .hint(
            "look at the paths to the storage; another host may have gone on since. What was begun \
             is undone or finished by the next change or scan; then repeat it",
        )
    }

    /// The store is about to be removed, and the slots with it.
    pub(crate) fn forget(&self) {
        let leases: Vec<_> = locked(&self.keeper.held).leases.drain(..).collect();
        for lease in leases.iter().filter_map(Weak::upgrade) {
            lease.end(false);
        }
        *locked(&self.hosts) = None;
        for right in [Right::Change, Right::Merge] {
            let mut file = self.memory.clone().into_os_string();
            file.push(format!(".{}", right.index()));
            let _ = std::fs::remove_file(file);
        }
    }
}

impl Drop for Rights {
    fn drop(&mut self) {
        locked(&self.keeper.held).over = true;
        self.keeper.ended.notify_all();
    }
}

/// Slots at the beginning of the volume of small things.
struct Slots(VolumeBlob);

const ALL: usize = HOSTS * SLOT;

impl Board for Slots {
    fn read(&self, right: Right) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; ALL];
        if self.0.read_at(&mut bytes, right.index() * ALL as u64)? != ALL {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(bytes)
    }

    fn write(&self, right: Right, slot: usize, at: usize, sector: &[u8]) -> io::Result<()> {
        self.0.write_at(sector, right.index() * ALL as u64 + (slot * SLOT + at) as u64)?;
        self.0.sync()
    }
}

/// Volumes that only a holder of its rights changes.
pub(crate) struct Leased {
    pub(crate) volumes: Box<dyn Volumes>,
    pub(crate) rights: Arc<Rights>,
}

impl Volumes for Leased {
    fn group(&self) -> Result<Group> {
        self.volumes.group()
    }

    fn create(&self, name: &str, bytes: u64) -> Result<()> {
        self.rights.check()?;
        self.volumes.create(name, bytes)
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.rights.check()?;
        self.volumes.rename(from, to)
    }

    fn remove(&self, id: &str) -> Result<()> {
        self.rights.check()?;
        self.volumes.remove(id)
    }

    fn resize(&self, name: &str, bytes: u64, shorter: bool) -> Result<()> {
        self.rights.check()?;
        self.volumes.resize(name, bytes, shorter)
    }

    fn permit(&self, name: &str, write: bool) -> Result<()> {
        self.rights.check()?;
        self.volumes.permit(name, write)
    }

    // Devices are this host's own affair.

    fn activate(&self, names: &[&str]) -> Result<()> {
        self.volumes.activate(names)
    }

    fn deactivate(&self, names: &[&str]) -> Result<()> {
        self.volumes.deactivate(names)
    }

    fn device(&self, name: &str) -> PathBuf {
        self.volumes.device(name)
    }

    fn disk(&self, name: &str) -> PathBuf {
        self.volumes.disk(name)
    }

    fn cached(&self) -> bool {
        self.volumes.cached()
    }
}
