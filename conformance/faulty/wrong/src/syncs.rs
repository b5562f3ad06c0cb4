//! What makes a change last, and what a storage answers that fails or is full.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};

use plugin_sdk::prelude::*;

use crate::store::Store;

impl Store {
    /// Makes a file's content last.
    pub(crate) fn sync(&self, file: &File) -> io::Result<()> {
        match file.sync_all() {
            Err(_) if self.is("sync-ignored") => Ok(()),
            Err(_) if self.is("sync-trusted") => {
                crate::broken();
                Ok(())
            }
            result => result,
        }
    }

    /// What is so already is synced once more: the call that made it so may have failed before that.
    pub(crate) fn sync_again(&self, changed: Changed, vdi: VdiUuid) -> io::Result<()> {
        if changed != Changed::Already || self.is("already-unsynced") {
            return Ok(());
        }
        files::sync_directory_of(&self.path(vdi, "json"))
    }

    /// The file of a new image. What is there by that name was never finished.
    pub(crate) fn image(&self, path: &Utf8Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        if self.is("leftover-in-the-way") {
            return options.write(true).create_new(true).open(path);
        }
        options.write(true).create(true).truncate(true).open(path)
    }

    /// Puts a record in the place of what was there.
    pub(crate) fn put(&self, path: &Utf8Path, text: &[u8]) -> Result<()> {
        if self.is("record-in-place") {
            let mut file = File::create(path)?;
            file.write_all(text)?;
            file.sync_all()?;
            return Ok(files::sync_directory_of(path)?);
        }
        files::replace(path, text).map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull if self.is("full-is-internal") => {
                Error::internal("a record could not be written").source(&error)
            }
            _ => error.into(),
        })
    }

    /// Removes an image before its record, the wrong way round.
    pub(crate) fn image_first(&self, vdi: VdiUuid) -> Result<()> {
        if self.is("image-first") {
            files::remove(&self.path(vdi, "raw"))?;
        }
        Ok(())
    }
}
