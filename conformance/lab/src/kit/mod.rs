//! What hosts and arrays of a lab are made of: services set up in a guest, the way a driver's
//! test wants them. Everything is plain commands and files, so a test can do more beside it.

pub mod dm;
pub mod iscsi;
pub mod lvm;
pub mod multipath;
pub mod nbd;
pub mod nfs;
pub mod smctl;
pub mod udev;

use crate::error::Result;
use crate::guest::Guest;
use crate::wire::Step;

/// Makes an XFS with reflinks on a device or in a file, and mounts it. A file is made with that
/// many bytes first.
pub fn xfs(guest: &Guest, on: &str, bytes: Option<u64>, folder: &str) -> Result<()> {
    guest.load(&["xfs", "loop"])?;
    guest.steps(vec![Step::Directory(folder.into())])?;
    let mut mount = vec!["mount"];
    if let Some(bytes) = bytes {
        guest.check(["truncate", "--size", &bytes.to_string(), on])?;
        mount.extend(["-o", "loop"]);
    }
    guest.check(["mkfs.xfs", "-q", "-f", "-m", "reflink=1", on])?;
    mount.extend([on, folder]);
    guest.check(mount).map(drop)
}
