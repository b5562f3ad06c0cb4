//! Long requests on real disks: they are done in parts, and by pipes where the disk lets them.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use datapath::disk::{Drive, Format, Kind, Layer, Options, Plan};
use datapath::error::Errno;
use datapath::export::{Export, Exports};
use datapath::nbd::Limits;
use datapath::nbd::client::{Client, Kind as Failure};
use datapath::nbd::protocol::{Request, command, command_flag};
use uuid::Uuid;
use vhd::image::{NewImage, ParentLink, create};

use super::disks::noise;
use super::place::{PATIENCE, Place, fio_verifies, good, until};
use super::raw::{Raw, Reply};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 24 * MIB;

/// One disk, whatever it is called.
pub(crate) struct Only(pub(crate) Arc<Drive>);

impl Exports for Only {
    fn names(&self) -> Vec<String> {
        vec![String::new()]
    }

    fn find(&self, _: &str) -> Option<Arc<dyn Export>> {
        Some(self.0.clone())
    }
}

/// What makes up a disk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Files {
    Raw,
    Vhd,
    /// A leaf over a parent of which every other 64 KiB are written.
    Chain,
}

fn layer(path: &Path, format: Format) -> Layer {
    Layer { path: path.to_owned(), format }
}

/// Makes the files; what the disk holds.
pub(crate) fn make(folder: &Path, files: Files) -> (Plan, Vec<u8>) {
    let path = folder.join("disk");
    let mut content = vec![0; SIZE as usize];
    if files == Files::Raw {
        std::fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
        let leaf = layer(&path, Format::Raw);
        return (Plan { leaf, backing: Vec::new(), read_only: false }, content);
    }
    let (uuid, base) = (Uuid::from_u128(7), folder.join("base"));
    let mut backing = Vec::new();
    let mut parent = None;
    if files == Files::Chain {
        create(&base, &NewImage { uuid, size: SIZE, parent: None }).unwrap();
        let image = vhd::Image::open(&base, vhd::Mode::Write).unwrap();
        for at in (0..SIZE as usize).step_by(128 << 10) {
            let bytes = noise(at as u64 + 5, 64 << 10);
            image.write_at(at as u64, &bytes).unwrap();
            content[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        image.flush().unwrap();
        backing.push(layer(&base, Format::Vhd));
        parent = Some(ParentLink { uuid, name: "base".to_owned() });
    }
    create(&path, &NewImage { uuid: Uuid::from_u128(8), size: SIZE, parent }).unwrap();
    (Plan { leaf: layer(&path, Format::Vhd), backing, read_only: false }, content)
}

struct Site {
    /// Before the folder, so that nobody uses its files when it goes.
    place: Place,
    drive: Arc<Drive>,
    content: Vec<u8>,
    _folder: tempfile::TempDir,
}

impl Site {
    /// On the file system of the build: the one of temporary files may be memory, which takes no
    /// direct transfers.
    fn new(files: Files, direct: bool, ring: bool) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (plan, content) = make(folder.path(), files);
        let drive = Drive::open(&plan, Options { direct, ..Options::default() }).unwrap();
        assert_eq!(drive.is_direct(), direct, "the file system of the build takes no O_DIRECT");
        let limits = Limits { ring, ..Limits::default() };
        let place = Place::with(Only(drive.clone()), limits);
        Self { place, drive, content, _folder: folder }
    }

    fn client(&self) -> Client {
        self.place.client("")
    }

    fn raw(&self) -> Raw {
        Raw::using(&self.place.socket(), "", true, &[])
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.content[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }

    /// All of it, by reads of this length.
    fn check(&self, length: usize) {
        let client = self.client();
        let mut back = vec![1; length];
        for (index, want) in self.content.chunks(length).enumerate() {
            let back = &mut back[..want.len()];
            client.read((index * length) as u64, back).unwrap();
            let wrong = back.iter().zip(want).position(|(a, b)| a != b);
            assert_eq!(wrong, None, "byte of read {index} of {length} bytes");
        }
    }

    fn close(self) {
        until("clients are gone", || self.place.server.connections().is_empty());
        self.drive.close(Instant::now() + PATIENCE).unwrap();
    }
}

/// Each kind of files, by the page cache and past it, with and without io_uring.
fn everywhere(test: impl Fn(Site)) {
    for files in [Files::Raw, Files::Vhd, Files::Chain] {
        for (direct, ring) in [(false, true), (true, true), (true, false)] {
            println!("{files:?}, direct: {direct}, ring: {ring}");
            test(Site::new(files, direct, ring));
        }
    }
}

#[test]
fn long_requests_of_any_place_and_length_read_back() {
    let all = noise(1, 4 << 20);
    everywhere(|mut site| {
        let client = site.client();
        let mut state = 11_u64;
        let mut any = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for round in 0..45 {
            // Whole pages, whole sectors, anything.
            let unit = [4096, 512, 1][round % 3];
            let length = (any(3 * MIB) / unit + 1) * unit;
            let at = any(SIZE - length) / unit * unit;
            let bytes = &all[round * 4099..][..length as usize];
            client.write(at, bytes, round % 10 == 9).unwrap();
            site.put(at, bytes);
            let mut back = vec![1; length as usize];
            client.read(at, &mut back).unwrap();
            assert!(back == bytes, "round {round}: {length} bytes at {at}");
        }
        drop(client);
        for length in [31 << 10, 200_001, 1 << 20] {
            site.check(length);
        }
        site.close();
    });
}

#[test]
fn a_write_may_come_in_pieces_of_any_size() {
    everywhere(|mut site| {
        let mut raw = site.raw();
        let length = 900_000;
        for (round, piece) in [1 << 20, 100_000, 4096, 28, 1].into_iter().enumerate() {
            let at = round as u64 * 2 * MIB + 4096;
            let bytes = noise(at, length);
            // Twice: first writes, and writes over those; and its head at once with another.
            for again in [false, true] {
                let (flags, cookie) = (if again { command_flag::FUA } else { 0 }, at);
                let (command, length) = (command::WRITE, length as u32);
                let request = Request { flags, command, cookie, offset: at, length };
                raw.give(&request.encode());
                // Small pieces at first, which fill a pipe, and the rest of it sooner.
                let (few, rest) = bytes.split_at(piece.min(64) * 600 % bytes.len());
                few.chunks(piece).for_each(|piece| raw.give(piece));
                raw.give(rest);
                assert_eq!(raw.reply(), Reply::Simple { cookie: at, error: 0 });
            }
            site.put(at, &bytes);
        }
        raw.works();
        drop(raw);
        site.check(1 << 20);
        site.close();
    });
}

#[test]
fn fio_verifies_long_requests_of_real_disks() {
    everywhere(|site| {
        for (rw, block, depth) in
            [("write", "1M", 16), ("randwrite", "64k", 16), ("randrw", "200k", 4)]
        {
            fio_verifies(&site.place.uri(""), rw, block, depth, "16m");
        }
        site.close();
    });
}

/// What a client has not sent yet keeps nobody waiting.
#[test]
fn a_write_that_has_come_in_part_does_not_hold_a_pause_up() {
    everywhere(|mut site| {
        let mut raw = site.raw();
        let bytes = noise(3, 1 << 20);
        for (round, part) in [100, 70_000, 600_000].into_iter().enumerate() {
            let offset = round as u64 * 2 * MIB;
            let (flags, command, length) = (0, command::WRITE, bytes.len() as u32);
            raw.give(&Request { flags, command, cookie: 1, offset, length }.encode());
            raw.give(&bytes[..part]);
            until("the write is there", || {
                site.place.server.connections().iter().any(|one| one.in_flight > 0)
            });
            let paused = site.drive.pause(Instant::now() + PATIENCE).unwrap();
            raw.give(&bytes[part..part + 1000]);
            drop(paused);
            raw.give(&bytes[part + 1000..]);
            assert_eq!(raw.reply(), Reply::Simple { cookie: 1, error: 0 });
            site.put(offset, &bytes);
        }
        drop(raw);
        site.check(1 << 20);
        site.close();
    });
}

#[test]
fn each_request_is_counted_once_however_it_is_done() {
    everywhere(|site| {
        let io = |rw: &str, size: &str, bytes: u64, depth: &str| {
            let uri = format!("--uri={}", site.place.uri(""));
            let words = [format!("--rw={rw}"), format!("--bs={size}"), format!("--size={bytes}")];
            let depth = format!("--iodepth={depth}");
            let fixed = ["--name=count", "--ioengine=nbd", "--end_fsync=0", &uri, &depth];
            good("fio", &[&fixed[..], &[&words[0], &words[1], &words[2]]].concat());
            until("fio is gone", || site.place.server.connections().is_empty());
        };
        // First writes, and writes over those; short and long, one and many at a time.
        let loads = [("4k", 4096, "16"), ("64k", 65536, "4"), ("1M", MIB, "4")];
        let (mut operations, mut bytes) = (0, 0);
        for (size, length, depth) in loads {
            for rw in ["write", "randwrite", "randread"] {
                io(rw, size, 16 * MIB, depth);
            }
            operations += 16 * MIB / length;
            bytes += 16 * MIB;
        }
        let stats = site.drive.stats();
        let (reads, writes) = (stats.of(Kind::Read).unwrap(), stats.of(Kind::Write).unwrap());
        assert_eq!((reads.operations, reads.bytes, reads.errors), (operations, bytes, 0));
        assert_eq!(
            (writes.operations, writes.bytes, writes.errors),
            (2 * operations, 2 * bytes, 0)
        );
        site.close();
    });
}

#[test]
fn a_file_that_has_become_shorter_is_an_error_and_not_zeros() {
    // Through the page cache, past it, and by the ring.
    for (direct, ring) in [(false, false), (true, false), (true, true)] {
        let site = Site::new(Files::Raw, direct, ring);
        let client = site.client();
        let bytes = noise(9, 4 << 20);
        client.write(0, &bytes, false).unwrap();
        let file = std::fs::File::options().write(true).open(&site.drive.plan().leaf.path).unwrap();
        file.set_len(MIB + 4096 + 100).unwrap();
        for (offset, length) in [(0, 2 << 20), (MIB, 8192), (2 * MIB, 4096)] {
            let failed = client.read(offset, &mut vec![1; length]).unwrap_err();
            assert_eq!(failed.kind, Failure::Server(Errno::Io), "{offset} {failed}");
        }
        let mut back = vec![1; 1 << 20];
        client.read(4096, &mut back).unwrap();
        assert!(back == bytes[4096..4096 + (1 << 20)]);
        drop(client);
        site.close();
    }
}

#[test]
fn a_disk_that_may_not_be_written_refuses_long_writes() {
    let folder = tempfile::tempdir().unwrap();
    let (plan, _) = make(folder.path(), Files::Vhd);
    let drive = Drive::open(&Plan { read_only: true, ..plan }, Options::default()).unwrap();
    let place = Place::new(Only(drive));
    let mut raw = Raw::using(&place.socket(), "", true, &[]);
    let (flags, command, length) = (0, command::WRITE, 1 << 20);
    raw.give(&Request { flags, command, cookie: 1, offset: 0, length }.encode());
    raw.give(&vec![5; 1 << 20]);
    let error = Errno::NotPermitted as u32;
    assert_eq!(raw.reply(), Reply::Simple { cookie: 1, error });
    raw.works();
}
