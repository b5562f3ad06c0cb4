//! Locks of an SR between processes of this host.
//!
//! LVM orders its own commands. These order what takes several: who works on a VDI holds the SR's
//! lock shared, so that a recovery, which holds it alone, never meets work that is under way.

use std::fs::{File, TryLockError};
use std::path::PathBuf;
use std::time::Duration;

use plugin_sdk::{Cx, Error, Result, tokio};

/// Gone at a reboot, as are the processes that held a lock.
const FOLDER: &str = "/run/lock/sm-lvm";
/// Between two tries, at most.
const PAUSE: Duration = Duration::from_millis(50);

/// A lock, held until it is dropped or its process ends.
#[derive(Debug)]
pub(crate) struct Held {
    _file: File,
}

fn open(group: &str) -> Result<File> {
    let failed = |error: std::io::Error| {
        Error::internal(format!("the lock {FOLDER}/{group} cannot be opened")).source(&error)
    };
    std::fs::create_dir_all(FOLDER).map_err(failed)?;
    let path = PathBuf::from(FOLDER).join(group);
    File::options().create(true).truncate(false).write(true).open(path).map_err(failed)
}

/// The right to work on VDIs, which many can have.
pub(crate) async fn shared(cx: &Cx, group: &str) -> Result<Held> {
    wait(cx, group, File::try_lock_shared).await
}

/// The right to work on the SR as a whole.
pub(crate) async fn exclusive(cx: &Cx, group: &str) -> Result<Held> {
    wait(cx, group, File::try_lock).await
}

/// As [`exclusive`], if nobody has a lock now.
pub(crate) fn try_exclusive(group: &str) -> Result<Option<Held>> {
    attempt(group, File::try_lock)
}

fn attempt(
    group: &str,
    lock: fn(&File) -> std::result::Result<(), TryLockError>,
) -> Result<Option<Held>> {
    let file = open(group)?;
    match lock(&file) {
        Ok(()) => Ok(Some(Held { _file: file })),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => {
            Err(Error::internal(format!("the lock {FOLDER}/{group} cannot be taken"))
                .source(&error))
        }
    }
}

async fn wait(
    cx: &Cx,
    group: &str,
    lock: fn(&File) -> std::result::Result<(), TryLockError>,
) -> Result<Held> {
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(held) = attempt(group, lock)? {
            return Ok(held);
        }
        cx.check().map_err(|error| {
            error.hint(format!("another process works on the SR; it holds {FOLDER}/{group}"))
        })?;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE);
    }
}

/// The name of the lock of who brings the thin pool to what LVM has recorded.
pub(crate) fn of_transactions(group: &str) -> String {
    format!("{group}.transactions")
}

/// The file of another lock of the SR.
pub(crate) fn place(name: &str) -> Result<PathBuf> {
    open(name)?;
    Ok(PathBuf::from(FOLDER).join(name))
}

/// Takes the file of a lock away, with the SR.
pub(crate) fn remove(group: &str) {
    // Of no use without the SR, and gone with the next boot anyway.
    for name in [group, &format!("{group}.suspended"), &of_transactions(group)] {
        let _ = std::fs::remove_file(PathBuf::from(FOLDER).join(name));
    }
}
