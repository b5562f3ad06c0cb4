//! Orders of events that chance does not bring about.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use vhd::image::Live;
use vhd::store::{Blob, Stat};
use vhd::{Image, Mode};

use crate::common::Spec;

/// A file of which one read is held up, with what it has read in its hands.
struct Held {
    file: std::fs::File,
    /// Taken by the read of that place, when it is armed.
    hook: Arc<Mutex<Option<Hook>>>,
}

struct Hook {
    at: u64,
    reached: Sender<()>,
    go_on: Receiver<()>,
}

impl Blob for Held {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let got = Blob::read_at(&self.file, buf, offset)?;
        let hook = self.hook.lock().unwrap().take_if(|hook| hook.at == offset);
        if let Some(hook) = hook {
            hook.reached.send(()).unwrap();
            hook.go_on.recv().unwrap();
        }
        Ok(got)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        Blob::write_at(&self.file, buf, offset)
    }

    fn stat(&self) -> io::Result<Stat> {
        self.file.stat()
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        Blob::set_len(&self.file, length)
    }

    fn sync(&self) -> io::Result<()> {
        Blob::sync(&self.file)
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<bool> {
        Blob::punch(&self.file, offset, length)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<Range<u64>>> {
        Blob::next_data(&self.file, from)
    }
}

/// Bitmaps are read without the lock. One that was read before a sector became present, and comes
/// back after that was published and forgotten, must not be taken for what is in the file.
#[test]
fn a_bitmap_that_changes_while_it_is_read_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = Spec { size: 64 << 10, ..Spec::default() }.block(4096);
    spec.blocks.push((3, vec![0; 512], 0));
    let path = spec.write(&dir.path().join("x.vhd"));
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let hook = Arc::new(Mutex::new(None));
    let blob = Box::new(Held { file, hook: hook.clone() });
    let image = Image::from_blob(blob, Path::new("held"), Mode::Write).unwrap();
    image.go_live(Live::default()).unwrap();
    let place = 1536 + 512;
    let (reached, arrives) = channel();
    let (continues, go_on) = channel();
    *hook.lock().unwrap() = Some(Hook { at: place, reached, go_on });
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| image.map(3 * 4096, 4096).unwrap());
        arrives.recv().unwrap();
        image.write_at(3 * 4096 + 512, &[7; 512]).unwrap();
        image.flush().unwrap();
        image.set_memory(0);
        continues.send(()).unwrap();
        reader.join().unwrap();
    });
    assert!(hook.lock().unwrap().is_none());
    let mut buf = [0; 4096];
    image.read_at(3 * 4096, &mut buf).unwrap();
    assert_eq!((buf[511], buf[512], buf[1023], buf[1024]), (0, 7, 7, 0));
    // And what is written next to it does not undo it in the file.
    image.write_at(3 * 4096, &[8; 512]).unwrap();
    image.close().unwrap();
    let image = Image::open(&path, Mode::Read).unwrap();
    image.read_at(3 * 4096, &mut buf).unwrap();
    assert_eq!((buf[511], buf[512], buf[1023], buf[1024]), (8, 7, 7, 0));
}
