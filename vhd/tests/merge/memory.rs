//! Files in memory.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};

use vhd::check::Severity;
use vhd::store::{Blob, Stat};
use vhd::{Image, Mode};

use crate::common::Content;

/// A change that a file went through.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
    Sync,
}

/// A file in memory that remembers what was done to it.
#[derive(Clone, Default)]
pub(crate) struct Memory {
    pub(crate) id: u64,
    pub(crate) volume: bool,
    pub(crate) content: Arc<Mutex<Content>>,
    pub(crate) log: Arc<Mutex<Vec<Change>>>,
    /// Writes that still succeed; then that many fail for want of space.
    pub(crate) fails: Arc<Mutex<Option<(usize, usize)>>>,
}

impl Memory {
    pub(crate) fn new(id: u64, content: Content) -> Self {
        Self { id, content: Arc::new(Mutex::new(content)), ..Self::default() }
    }

    /// A parent on a volume.
    pub(crate) fn volume(content: Content) -> Self {
        Self { volume: true, ..Self::new(2, content) }
    }

    pub(crate) fn content(&self) -> Content {
        self.content.lock().unwrap().clone()
    }

    pub(crate) fn open(&self, mode: Mode) -> Image {
        Image::from_blob(Box::new(self.clone()), Path::new("memory"), mode).unwrap()
    }

    pub(crate) fn sound(&self, what: &str) {
        let findings = vhd::check::check_blob(self, Path::new("memory"));
        let bad = findings.iter().any(|found| found.severity == Severity::Error);
        assert!(!bad, "{what}: {findings:?}");
        let missing = self.open(Mode::Read).info().missing_footer();
        assert_eq!(missing, None, "{what}");
    }

    /// Whether a write fails now.
    pub(crate) fn full(&self) -> bool {
        match &mut *self.fails.lock().unwrap() {
            Some((0, 0)) | None => false,
            Some((0, left)) => {
                *left -= 1;
                true
            }
            Some((left, _)) => {
                *left -= 1;
                false
            }
        }
    }
}

impl Blob for Memory {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(self.content.lock().unwrap().get(offset, buf))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let full = self.full();
        let half = buf.len() / 2 / 512 * 512;
        let buf = if full { &buf[..half] } else { buf };
        let mut content = self.content.lock().unwrap();
        assert!(!self.volume || offset + buf.len() as u64 <= content.length);
        if !buf.is_empty() {
            content.put(offset, buf);
            self.log.lock().unwrap().push(Change::Write(offset, buf.to_vec()));
        }
        if full { Err(io::Error::from_raw_os_error(28)) } else { Ok(()) }
    }

    fn stat(&self) -> io::Result<Stat> {
        let length = self.content.lock().unwrap().length;
        Ok(Stat {
            length,
            allocated: length,
            id: (7, self.id),
            modified: (0, 0),
            fixed_length: self.volume,
        })
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        assert!(!self.volume);
        self.content.lock().unwrap().set_length(length);
        self.log.lock().unwrap().push(Change::Length(length));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        if self.full() {
            return Err(io::Error::from_raw_os_error(28));
        }
        let _content = self.content.lock().unwrap();
        self.log.lock().unwrap().push(Change::Sync);
        Ok(())
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<bool> {
        self.write_at(&vec![0; length as usize], offset)?;
        Ok(true)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        // Holes of 4 KiB: what is zero there.
        let content = self.content.lock().unwrap();
        let hole = |at: u64| content.bytes(at, 4096).iter().all(|byte| *byte == 0);
        let mut start = from;
        while start < content.length && hole(start / 4096 * 4096) {
            start = start / 4096 * 4096 + 4096;
        }
        let mut end = start;
        while end < content.length && !hole(end / 4096 * 4096) {
            end = end / 4096 * 4096 + 4096;
        }
        Ok((start < content.length).then(|| start..end.min(content.length)))
    }
}
