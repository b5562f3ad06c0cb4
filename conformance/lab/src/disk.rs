//! Disks of guests: files of the machine.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use crate::error::{Doing, Error, Result};

/// A disk of a guest. It is a file of the machine, so it outlives the guest however that ends.
///
/// What survives when a guest is killed: every write that the guest's kernel had handed to the
/// disk, flushed or not, because it is in the page cache of the machine, which does not crash. So
/// a kill is the crash of a host whose disk loses nothing: what was only in the guest's memory is
/// gone, and of the writes under way any part may be there. A disk that loses what was not
/// flushed, or keeps it in another order, is made with [`crate::log_writes`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// A new disk of zeros in a file of that path. It takes no room until it is written.
    pub fn create(path: impl Into<PathBuf>, bytes: u64) -> Result<Self> {
        let path = path.into();
        let doing = || format!("make the disk {}", path.display());
        let file = OpenOptions::new().write(true).create_new(true).open(&path).doing(doing)?;
        file.set_len(bytes).doing(doing)?;
        Self::open(path)
    }

    /// A file that is there already.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let path = path.canonicalize().doing(|| format!("find the disk {}", path.display()))?;
        plain(&path)?;
        Ok(Self { path })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Changes the size, of the file only: a guest sees it at its next boot.
    pub fn resize(&self, bytes: u64) -> Result<()> {
        let doing = || format!("resize the disk {}", self.path.display());
        let file = File::options().write(true).open(&self.path).doing(doing)?;
        file.set_len(bytes).doing(doing)
    }
}

/// A path goes through the command line of a kernel, which ends words at blanks, and of disks
/// also at commas and colons.
pub(crate) fn plain(path: &Path) -> Result<()> {
    let text =
        path.to_str().filter(|text| path.is_absolute() && !text.contains([' ', ',', ':', '"']));
    match text {
        Some(_) => Ok(()),
        None => Err(Error::Wrong(format!(
            "{}: a path for a guest is absolute, without blanks, commas and colons",
            path.display()
        ))),
    }
}
