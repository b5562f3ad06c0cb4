//! Files that survive a power cut.

use std::fs::{self, File};
use std::io::{self, Write as _};

use camino::Utf8Path;
use sm_model::Changed;

/// Replaces a file as a whole, for good: a reader, and the file system after a power cut, has
/// either the old text or the new. Blocks, so call it from [`Cx::blocking`](crate::Cx::blocking).
///
/// Writes `<path>.new`, syncs, renames, syncs the directory. A `.new` that a crash left is
/// overwritten by the next replacement; two at once of the same path are the caller's business.
pub fn replace(path: &Utf8Path, text: &[u8]) -> io::Result<()> {
    let new = format!("{path}.new");
    let mut file = File::create(&new)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_directory_of(path)
}

/// Makes what was created, renamed or removed beside `path` last.
pub fn sync_directory_of(path: &Utf8Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Utf8Path::new("/")))?.sync_all()
}

/// Removes a file for good; that it is gone already is success. The directory is synced then, too: the
/// call that removed the file may have died or failed before it could.
pub fn remove(path: &Utf8Path) -> io::Result<Changed> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match sync_directory_of(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
            return Ok(Changed::Already);
        }
        result => result?,
    }
    sync_directory_of(path)?;
    Ok(Changed::Modified)
}
