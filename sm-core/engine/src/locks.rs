//! Locks on SRs and VDIs, between all processes that share a state directory.
//!
//! A lock is an `flock` on a file under `locks/`: the kernel drops it with the process that held
//! it, however that ended. It orders the work of one installation; what orders the work of
//! several hosts lies on the storage.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use sm_model::{Error, OperationId, Result, SrUuid, VdiUuid};

use crate::op::Op;

/// Locks under one folder.
#[derive(Clone, Debug)]
pub(crate) struct Locks(PathBuf);

/// What to lock.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lock {
    name: String,
    shared: bool,
}

impl Lock {
    /// An SR, for work that must be alone on it.
    pub(crate) fn sr(sr: SrUuid) -> Self {
        Self { name: format!("sr-{sr}"), shared: false }
    }

    /// An SR, for work on one of its VDIs.
    pub(crate) fn sr_shared(sr: SrUuid) -> Self {
        Self { name: format!("sr-{sr}"), shared: true }
    }

    /// A VDI.
    pub(crate) fn vdi(vdi: VdiUuid) -> Self {
        Self { name: format!("vdi-{vdi}"), shared: false }
    }

    /// A guest that is brought to rest, whatever its name consists of.
    pub(crate) fn guest(guest: &str) -> Self {
        let id = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, guest.as_bytes());
        Self { name: format!("guest-{id}"), shared: false }
    }

    /// An operation: it runs once at a time.
    pub(crate) fn operation(id: OperationId) -> Self {
        Self { name: format!("operation-{id}"), shared: false }
    }
}

/// Held locks; dropping them lets go.
#[derive(Debug)]
pub(crate) struct Held(#[expect(dead_code, reason = "held for its drop")] Vec<HeldFile>);

#[derive(Debug)]
struct HeldFile {
    /// The file to remove; none for the file of an SR, which has several holders and stays.
    path: Option<PathBuf>,
    // Closed after the path is gone, so that nobody can hold a file that has lost its name.
    _file: File,
}

impl Drop for HeldFile {
    fn drop(&mut self) {
        // Whoever waits sees that the file it locked has lost its name and makes a new one.
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Locks {
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)
            .map_err(|error| Error::from(error).context("path", folder.display()))?;
        Ok(Self(folder.to_owned()))
    }

    /// Takes locks of several names, in one order for everybody, waiting until the deadline of
    /// `op`.
    ///
    /// Cancel safety: dropping the future lets go of what it had.
    pub(crate) async fn take(&self, op: &Op, locks: &[Lock]) -> Result<Held> {
        let mut locks = locks.to_vec();
        locks.sort();
        locks.dedup();
        let deadline = op.deadline();
        let mut held = Vec::with_capacity(locks.len());
        for lock in locks {
            held.push(self.take_one(op, &lock, deadline).await?);
        }
        Ok(Held(held))
    }

    /// Takes a lock if nobody holds it.
    pub(crate) fn try_take(&self, lock: &Lock) -> Result<Option<Held>> {
        Ok(try_lock(&self.0.join(&lock.name), lock)?.map(|file| Held(vec![file])))
    }

    /// Removes the files of locks whose holders died.
    pub(crate) fn sweep(&self) -> Result<()> {
        let failed = |error| Error::from(error).context("path", self.0.display());
        for entry in std::fs::read_dir(&self.0).map_err(failed)? {
            let Ok(name) = entry.map_err(failed)?.file_name().into_string() else { continue };
            // Letting go removes the file.
            drop(self.try_take(&Lock { name, shared: false })?);
        }
        Ok(())
    }

    async fn take_one(&self, op: &Op, lock: &Lock, deadline: Instant) -> Result<HeldFile> {
        let name = &lock.name;
        let path = self.0.join(name);
        let mut pause = Duration::from_millis(1);
        loop {
            op.check_cancelled()?;
            if let Some(file) = try_lock(&path, lock)? {
                return Ok(file);
            }
            if Instant::now() >= deadline {
                let holder = std::fs::read_to_string(&path).unwrap_or_default();
                return Err(Error::busy(format!(
                    "{name} is locked by process {}",
                    if holder.is_empty() { "?" } else { holder.trim() }
                ))
                .hint("wait for it to end, or allow more time"));
            }
            // flock has no deadline, and a blocked thread per waiter is worse than asking again.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

fn try_lock(path: &Path, lock: &Lock) -> Result<Option<HeldFile>> {
    let failed = |error: std::io::Error| Error::from(error).context("path", path.display());
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(failed)?;
    let operation = if lock.shared {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    match rustix::fs::flock(&file, operation) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(failed(error.into())),
    }
    // The holder before us removes the file as it lets go: a lock on a nameless file is none.
    let same = match std::fs::metadata(path) {
        Ok(named) => named.ino() == file.metadata().map_err(failed)?.ino(),
        Err(_) => false,
    };
    if !same {
        return Ok(None);
    }
    // Only for the message of whoever waits: that it may fail (a full disk) does no harm. Most locks
    // are new files, and the file of an SR has our number already: to cut those is a transaction of
    // the file system for nothing.
    let own = std::process::id().to_string();
    let mut there = [0; 32];
    let length = rustix::io::pread(&file, &mut there, 0).unwrap_or(there.len());
    if there.get(..length) != Some(own.as_bytes()) {
        if length > 0 {
            let _ = file.set_len(0);
        }
        let _ = rustix::io::pwrite(&file, own.as_bytes(), 0);
    }
    let path = (!lock.name.starts_with("sr-")).then(|| path.to_owned());
    Ok(Some(HeldFile { path, _file: file }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sm_model::Kind;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn locks() -> (tempfile::TempDir, Locks) {
        let folder = tempfile::tempdir().unwrap();
        let locks = Locks::new(folder.path()).unwrap();
        (folder, locks)
    }

    fn vdi(n: u128) -> Lock {
        Lock::vdi(uuid::Uuid::from_u128(n).into())
    }

    fn soon() -> Op {
        Op::new().with_budget(Duration::from_millis(20))
    }

    #[tokio::test]
    async fn the_holder_is_named() {
        let (_folder, locks) = locks();
        let _held = locks.take(&soon(), &[vdi(1)]).await.unwrap();
        assert!(locks.try_take(&vdi(1)).unwrap().is_none());
        let error = locks.take(&soon(), &[vdi(1)]).await.unwrap_err();
        assert_eq!(error.kind, Kind::Busy { retry_after_ms: None });
        assert_eq!(
            error.message,
            format!(
                "vdi-00000000-0000-0000-0000-000000000001 is locked by process {}",
                std::process::id()
            )
        );
    }

    #[tokio::test]
    async fn letting_go_of_vdis_leaves_no_file() {
        let (folder, locks) = locks();
        drop(locks.take(&soon(), &[vdi(1), vdi(2), vdi(1)]).await.unwrap());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_sweep_removes_what_the_dead_left_and_nothing_that_is_held() {
        let (folder, locks) = locks();
        let _held = locks.take(&soon(), &[vdi(1)]).await.unwrap();
        std::fs::write(folder.path().join("vdi-of-a-dead-process"), "1").unwrap();
        locks.sweep().unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(locks.try_take(&vdi(1)).unwrap().is_none());
    }

    #[tokio::test]
    async fn an_sr_is_shared_by_vdis_and_exclusive_otherwise() {
        let (_folder, locks) = locks();
        let sr = SrUuid::random();
        let first = locks.take(&soon(), &[Lock::sr_shared(sr)]).await.unwrap();
        let second = locks.take(&soon(), &[Lock::sr_shared(sr)]).await.unwrap();
        assert!(locks.take(&soon(), &[Lock::sr(sr)]).await.is_err());
        drop((first, second));
        let _alone = locks.take(&soon(), &[Lock::sr(sr)]).await.unwrap();
        assert!(locks.take(&soon(), &[Lock::sr_shared(sr)]).await.is_err());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn only_one_is_inside_at_a_time() {
        let (_folder, locks) = locks();
        let inside = AtomicU32::new(0);
        let overlapped = AtomicU32::new(0);
        let visit = |order: [u128; 2]| {
            let (locks, inside, overlapped) = (&locks, &inside, &overlapped);
            async move {
                for _ in 0..20 {
                    let _held = locks.take(&Op::new(), &order.map(vdi)).await.unwrap();
                    if inside.fetch_add(1, Ordering::SeqCst) != 0 {
                        overlapped.fetch_add(1, Ordering::SeqCst);
                    }
                    tokio::task::yield_now().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                }
            }
        };
        // Opposite orders: sorted inside, or this would deadlock.
        tokio::join!(visit([1, 2]), visit([2, 1]), visit([1, 2]), visit([2, 1]));
        assert_eq!(overlapped.load(Ordering::SeqCst), 0);
    }
}
