//! Files and a directory in memory.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vhd::Result;
use vhd::store::{Area, At, Blob, Held, Stat, Store};

use crate::build::Content;

/// A file in memory. Clones are the same file.
#[derive(Clone)]
pub struct Memory {
    content: Arc<Mutex<Content>>,
    number: u64,
}

impl Memory {
    pub fn new(content: Content, number: u64) -> Self {
        Self { content: Arc::new(Mutex::new(content)), number }
    }

    pub fn content(&self) -> Content {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blob for Memory {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(self.lock().get(offset, buf))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        // As a file system does, whose files have an end, too.
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > 1 << 44) {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.lock().put(offset, buf);
        Ok(())
    }

    fn stat(&self) -> io::Result<Stat> {
        let content = self.lock();
        Ok(Stat {
            length: content.length,
            allocated: content.length,
            id: (0, self.number),
            modified: (0, 0),
            fixed_length: false,
        })
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.lock().set_length(length);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<bool> {
        let mut content = self.lock();
        let end = offset.saturating_add(length).min(content.length);
        let zeros = vec![0; 1 << 16];
        let mut at = offset;
        while at < end {
            let count = (end - at).min(zeros.len() as u64);
            content.put(at, &zeros[..count as usize]);
            at += count;
        }
        Ok(true)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        Ok(self.lock().next_data(from))
    }
}

/// A directory of images in memory, with nothing else in it.
pub struct Shelf {
    pub files: Vec<(String, Memory)>,
}

fn unsupported<T>() -> Result<T> {
    Err(vhd::Error::Io {
        path: PathBuf::from("memory"),
        action: "change",
        source: io::ErrorKind::Unsupported.into(),
    })
}

impl Store for Shelf {
    fn path(&self) -> PathBuf {
        PathBuf::from("memory")
    }

    fn path_of(&self, at: &At) -> PathBuf {
        PathBuf::from(&at.name)
    }

    fn names(&self, area: Area) -> Result<Vec<String>> {
        Ok(match area {
            Area::Images => self.files.iter().map(|(name, _)| name.clone()).collect(),
            _ => Vec::new(),
        })
    }

    fn exists(&self, at: &At) -> Result<bool> {
        Ok(at.area == Area::Images && self.files.iter().any(|(name, _)| *name == at.name))
    }

    fn open(&self, at: &At, _write: bool) -> Result<Box<dyn Blob>> {
        let found = self.files.iter().find(|(name, _)| at.area == Area::Images && *name == at.name);
        match found {
            Some((_, file)) => Ok(Box::new(file.clone())),
            None => Err(vhd::Error::Io {
                path: self.path_of(at),
                action: "open",
                source: io::ErrorKind::NotFound.into(),
            }),
        }
    }

    fn create(&self, _at: &At, _room: u64) -> Result<Box<dyn Blob>> {
        unsupported()
    }

    fn link(&self, _from: &At, _to: &At) -> Result<bool> {
        unsupported()
    }

    fn rename(&self, _from: &At, _to: &At) -> Result<()> {
        unsupported()
    }

    fn remove(&self, _at: &At) -> Result<bool> {
        unsupported()
    }

    fn sync(&self, _area: Area) -> Result<()> {
        Ok(())
    }

    fn lock(&self, _deadline: Instant) -> Result<Held> {
        Ok(Box::new(()))
    }

    fn try_lock_maintenance(&self) -> Result<Option<Held>> {
        Ok(Some(Box::new(())))
    }

    fn try_lock_shared(&self) -> Option<Held> {
        Some(Box::new(()))
    }

    fn stamp(&self) -> Result<[(i64, i64); 2]> {
        Ok([(0, 0); 2])
    }
}
