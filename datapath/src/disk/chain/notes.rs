//! Where notes of metadata are that is not in an image yet.

use std::path::{Path, PathBuf};

use rustix::fs::{Mode as FileMode, OFlags};
use vhd::Image;

use super::super::drive::Options;
use super::super::level::Level;
use super::Chain;
use crate::error::{Errno, Error, Result};

impl Chain {
    /// Notes that a process has left for an image that is a parent by now were never put into it:
    /// what they are about would be lost without a word.
    pub(super) fn check_notes_below(&self, options: &Options) -> Result<()> {
        for level in self.levels.iter().skip(1) {
            let Some(path) = notes_path(options, level) else { continue };
            if path.exists() && std::fs::metadata(&path).is_ok_and(|found| found.len() > 0) {
                let is_ours = level.image().is_some_and(Image::is_live);
                if !is_ours && noted(&path, level)? {
                    let what = format!(
                        "{}: {} has notes of writes that were not put into it",
                        level.path.display(),
                        path.display()
                    );
                    return Err(Error::new(Errno::Io, what));
                }
            }
        }
        Ok(())
    }
}

/// Where the notes of an image are: a file for each, so that those of one are never taken for those
/// of another.
pub(super) fn notes_path(options: &Options, level: &Level) -> Option<PathBuf> {
    let prefix = options.pending.as_ref()?;
    let mut name = prefix.file_name()?.to_os_string();
    name.push(format!(".{:x}-{:x}", level.stat.id.0, level.stat.id.1));
    Some(prefix.with_file_name(name))
}

pub(super) fn open_notes(path: &Path) -> Result<std::fs::File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, FileMode::RUSR | FileMode::WUSR)
        .map(std::fs::File::from)
        .map_err(|errno| Error::io(format_args!("{}: open", path.display()), &errno.into()))
}

/// Whether a file of notes has any that are still good for an image.
fn noted(path: &Path, level: &Level) -> Result<bool> {
    let Some(image) = level.image() else { return Ok(false) };
    Ok(image.is_noted(&open_notes(path)?, path, boot()?)?)
}

/// Which run of the system this is.
pub(super) fn boot() -> Result<uuid::Uuid> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path).map_err(|error| Error::io(path, &error))?;
    text.trim().parse().map_err(|_| Error::new(Errno::Io, format!("{path}: is no UUID")))
}
