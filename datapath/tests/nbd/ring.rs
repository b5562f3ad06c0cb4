//! Requests as transfers, many at a time, and the same without a ring. These tests want io_uring
//! and fail without it.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use datapath::error::{Errno, Error, Result};
use datapath::export::{Export, Exports, Extent, Mapped, Piece, Transfer, Zeroes};
use datapath::nbd::Limits;
use datapath::nbd::client::{Client, Kind, Options};
use datapath::nbd::protocol::{REQUEST_LENGTH, Request, command, command_flag};

use super::disks::noise;
use super::place::{PATIENCE, Place, fio_verifies, good, until};
use super::raw::{Raw, Reply};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 32 * MIB;
/// Each transfer is cut here, bytes.
const BLOCK: u64 = 64 * 1024;

/// A disk in a file. Some blocks are holes until they are written, some are never transfers.
struct Filed {
    file: Arc<File>,
    /// Reading and writing through it fails.
    wrong: Arc<File>,
    holes: Mutex<HashSet<u64>>,
    bad: Option<std::ops::Range<u64>>,
    gate: Arc<Gate>,
    mapped: AtomicUsize,
    called: AtomicUsize,
}

#[derive(Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    closed: bool,
    inside: usize,
    most: usize,
}

struct Pass(Arc<Gate>);

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.state.lock().unwrap().inside -= 1;
        self.0.changed.notify_all();
    }
}

impl Gate {
    fn try_enter(self: &Arc<Self>) -> Option<Pass> {
        let mut state = self.state.lock().unwrap();
        if state.closed {
            return None;
        }
        state.inside += 1;
        state.most = state.most.max(state.inside);
        Some(Pass(Arc::clone(self)))
    }

    fn enter(self: &Arc<Self>) -> Pass {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(pass) = self.try_enter() {
                return pass;
            }
            let state = self.state.lock().unwrap();
            if state.closed {
                let left = end.saturating_duration_since(Instant::now());
                assert!(!left.is_zero(), "the gate was never opened");
                drop(self.changed.wait_timeout(state, left).unwrap());
            }
        }
    }

    /// Nobody is inside when it returns, and nobody comes in.
    fn close(&self) {
        let mut state = self.state.lock().unwrap();
        state.closed = true;
        let (_state, time) =
            self.changed.wait_timeout_while(state, PATIENCE, |state| state.inside > 0).unwrap();
        assert!(!time.timed_out(), "it was never drained");
    }

    fn open(&self) {
        self.state.lock().unwrap().closed = false;
        self.changed.notify_all();
    }
}

impl Filed {
    fn new() -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(SIZE).unwrap();
        // Open for nothing but its path.
        let wrong = rustix::fs::open(
            file.path(),
            rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        );
        Self {
            wrong: Arc::new(File::from(wrong.unwrap())),
            file: Arc::new(file.into_file()),
            holes: Mutex::new((0..SIZE / BLOCK).filter(|block| block % 8 == 5).collect()),
            bad: None,
            gate: Arc::default(),
            mapped: AtomicUsize::new(0),
            called: AtomicUsize::new(0),
        }
    }

    fn check(&self, offset: u64, length: usize) -> Result<()> {
        assert!(length > 0 && offset + length as u64 <= SIZE);
        self.called.fetch_add(1, Ordering::SeqCst);
        match &self.bad {
            Some(bad) if bad.start < offset + length as u64 && offset < bad.end => {
                Err(Error::new(Errno::Io, "a bad place"))
            }
            _ => Ok(()),
        }
    }

    fn map(&self, offset: u64, length: u64, write: bool) -> Mapped {
        let Some(pass) = self.gate.try_enter() else { return Mapped::Closed };
        let holes = self.holes.lock().unwrap();
        let mut pieces = Vec::new();
        let mut at = offset;
        while at < offset + length {
            let block = at / BLOCK;
            let end = ((block + 1) * BLOCK).min(offset + length);
            let part = (at - offset) as usize..(end - offset) as usize;
            let bad = self.bad.as_ref().is_some_and(|bad| bad.start < end && at < bad.end);
            let file = if bad { &self.wrong } else { &self.file };
            if block % 16 == 3 || (write && holes.contains(&block)) {
                return Mapped::NotSimple;
            }
            let place = (!holes.contains(&block)).then(|| (Arc::clone(file), at));
            pieces.push(Piece { part, place });
            at = end;
        }
        self.mapped.fetch_add(1, Ordering::SeqCst);
        Mapped::Transfer(Transfer { pieces, held: Box::new(pass) })
    }

    /// Requests and transfers that were let in.
    fn began(&self) -> usize {
        self.mapped.load(Ordering::SeqCst) + self.called.load(Ordering::SeqCst)
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; SIZE as usize];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }
}

impl Export for Filed {
    fn size(&self) -> u64 {
        SIZE
    }

    fn read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let _pass = self.gate.enter();
        self.check(offset, buf.len())?;
        self.file.read_exact_at(buf, offset).map_err(|error| Error::io("read", &error))
    }

    fn write(&self, offset: u64, buf: &[u8], _: bool) -> Result<()> {
        let _pass = self.gate.enter();
        self.check(offset, buf.len())?;
        self.file.write_all_at(buf, offset).map_err(|error| Error::io("write", &error))?;
        let mut holes = self.holes.lock().unwrap();
        let last = (offset + buf.len() as u64 - 1) / BLOCK;
        for block in offset / BLOCK..=last {
            holes.remove(&block);
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let _pass = self.gate.enter();
        Ok(())
    }

    fn trim(&self, _: u64, _: u64, _: bool) -> Result<()> {
        let _pass = self.gate.enter();
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64, how: Zeroes) -> Result<()> {
        self.write(offset, &vec![0; length as usize], how.durable)
    }

    fn extents(&self, _: u64, length: u64, _: usize, into: &mut Vec<Extent>) -> Result<()> {
        into.push(Extent { length, hole: false, zero: false });
        Ok(())
    }

    fn map_read(&self, offset: u64, length: u64) -> Mapped {
        self.map(offset, length, false)
    }

    fn map_write(&self, offset: u64, length: u64) -> Mapped {
        self.map(offset, length, true)
    }
}

struct Only(Arc<Filed>);

impl Exports for Only {
    fn names(&self) -> Vec<String> {
        vec![String::new()]
    }

    fn find(&self, _: &str) -> Option<Arc<dyn Export>> {
        Some(Arc::clone(&self.0) as Arc<dyn Export>)
    }
}

/// A server with a ring, and one where none is to be had.
fn both(test: impl Fn(bool)) {
    for ring in [true, false] {
        println!("with a ring: {ring}");
        test(ring);
    }
}

fn place(disk: Filed, ring: bool) -> (Place, Arc<Filed>) {
    let disk = Arc::new(disk);
    let limits = Limits { ring, ..Limits::default() };
    (Place::with(Only(Arc::clone(&disk)), limits), disk)
}

/// The ring has been in use, with several transfers at a time; or nothing was asked of one.
fn was_used(disk: &Filed, ring: bool) {
    if !ring {
        assert_eq!(disk.mapped.load(Ordering::SeqCst), 0, "there is a ring");
        assert_eq!(disk.gate.state.lock().unwrap().inside, 0, "something is still held");
        return;
    }
    let (mapped, most) = (disk.mapped.load(Ordering::SeqCst), disk.gate.state.lock().unwrap().most);
    assert!(mapped > 10 && most > 1, "{mapped} transfers, {most} at a time: is io_uring allowed?");
    assert_eq!(disk.gate.state.lock().unwrap().inside, 0, "something is still held");
}

#[test]
fn fio_verifies_what_it_wrote_through_the_ring() {
    both(|ring| {
        let (place, disk) = place(Filed::new(), ring);
        for (rw, block, depth) in [
            ("randwrite", "4k", 32),
            ("randrw", "512", 64),
            ("write", "1M", 4),
            ("randwrite", "48k", 16),
        ] {
            fio_verifies(&place.uri(""), rw, block, depth, "8m");
        }
        until("fio is gone", || place.server.connections().is_empty());
        was_used(&disk, ring);
        assert!(disk.called.load(Ordering::SeqCst) > 10, "some were not for the ring");
    });
}

#[test]
fn many_threads_read_what_they_wrote_of_any_length() {
    both(|ring| {
        let (place, disk) = place(Filed::new(), ring);
        let client = place.client("");
        std::thread::scope(|scope| {
            for thread in 0..8_u64 {
                let client = &client;
                scope.spawn(move || {
                    for round in 0..48_u64 {
                        let length =
                            [512, 4096, 70_000, 300_001, 1_000_000, 3 << 20][round as usize % 6];
                        let at = thread * 4 * MIB + round % 24 * 4096;
                        let bytes = noise(at + round, length);
                        client.write(at, &bytes, round % 5 == 0).unwrap();
                        let mut back = vec![1; length];
                        client.read(at, &mut back).unwrap();
                        assert!(back == bytes, "thread {thread}, round {round}");
                    }
                });
            }
        });
        client.flush().unwrap();
        drop(client);
        until("it is gone", || place.server.connections().is_empty());
        was_used(&disk, ring);
    });
}

#[test]
fn copies_in_both_directions_are_the_same() {
    both(|ring| {
        let (place, disk) = place(Filed::new(), ring);
        let content = noise(77, SIZE as usize);
        let file = place.path("file");
        std::fs::write(&file, &content).unwrap();
        let uri = place.uri("").to_string();
        good("nbdcopy", &["--flush", file.to_str().unwrap(), &uri]);
        assert!(disk.bytes() == content);
        let back = place.path("back");
        good("nbdcopy", &[&uri, back.to_str().unwrap()]);
        assert!(std::fs::read(&back).unwrap() == content);
        let other = place.path("other");
        good("qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri, other.to_str().unwrap()]);
        assert!(std::fs::read(&other).unwrap() == content);
        until("they are gone", || place.server.connections().is_empty());
        was_used(&disk, ring);
    });
}

#[test]
fn a_disk_is_drained_although_its_client_never_reads() {
    both(|ring| {
        let disk = Filed::new();
        disk.file.write_all_at(&noise(5, SIZE as usize), 0).unwrap();
        disk.holes.lock().unwrap().clear();
        let (place, disk) = place(disk, ring);
        let mut raw = Raw::using(&place.socket(), "", true, &[]);
        // So few that they fit into the socket's buffer, however few of them the server takes in
        // while its replies are not read: each takes hundreds of bytes there.
        let count = 128_u64;
        for number in 0..count {
            raw.request(command::READ, 0, number % 64 * BLOCK * 2, BLOCK as u32);
        }
        until("requests are under way", || disk.began() > 8);
        disk.gate.close();
        // Those that wait for the gate are let in again, and the client gets all of it.
        disk.gate.open();
        for _ in 0..count {
            let Reply::Chunk { kind: 1, last: true, body, .. } = raw.reply() else {
                panic!("no data")
            };
            assert_eq!(body.len() as u64, BLOCK + 8);
        }
        raw.works();
        was_used(&disk, ring);
    });
}

#[test]
fn a_busy_client_is_paused_and_goes_on_many_times() {
    both(|ring| {
        let (place, disk) = place(Filed::new(), ring);
        let client = place.client("");
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4_u64)
                .map(|thread| {
                    let (client, stop) = (&client, &stop);
                    scope.spawn(move || {
                        let mut round = 0;
                        while !stop.load(Ordering::SeqCst) {
                            let at = thread * 8 * MIB + round % 100 * 65_536;
                            let bytes = noise(at + 1, 40_000);
                            let pending: Vec<_> = (0..4)
                                .map(|n| client.start_write(at + n * 4096, &bytes[..4096], false))
                                .collect();
                            for one in pending {
                                one.unwrap().wait().unwrap();
                            }
                            client.write(at, &bytes, round % 7 == 0).unwrap();
                            let mut back = vec![0; bytes.len()];
                            client.read(at, &mut back).unwrap();
                            assert!(back == bytes);
                            round += 1;
                        }
                        round
                    })
                })
                .collect();
            for pause in 0..50 {
                let before = disk.began();
                until("it is busy", || disk.began() > before + 2);
                disk.gate.close();
                let still = disk.began();
                std::thread::yield_now();
                assert_eq!(disk.began(), still, "pause {pause}");
                disk.gate.open();
            }
            stop.store(true, Ordering::SeqCst);
            assert!(writers.into_iter().all(|writer| writer.join().unwrap() > 0));
        });
        drop(client);
        until("it is gone", || place.server.connections().is_empty());
        was_used(&disk, ring);
    });
}

#[test]
fn a_transfer_that_fails_is_the_error_of_its_request_only() {
    both(|ring| {
        let bad = Some(6 * MIB..6 * MIB + BLOCK);
        let (place, disk) = place(Filed { bad, ..Filed::new() }, ring);
        let mut raw = Raw::using(&place.socket(), "", true, &[]);
        let ask = |raw: &mut Raw, command, places: &[(u64, u32)]| {
            // All at once, so that they are for the ring.
            let mut bytes = Vec::new();
            for &(offset, length) in places {
                let request = Request { flags: 0, command, cookie: offset, offset, length };
                bytes.extend(request.encode());
                if command == command::WRITE {
                    bytes.resize(bytes.len() + length as usize, 7);
                }
            }
            raw.give(&bytes);
            let mut errors = Vec::new();
            while errors.len() < places.len() {
                match raw.reply() {
                    Reply::Chunk { last: false, .. } => {}
                    reply => {
                        let (Reply::Chunk { cookie, .. } | Reply::Simple { cookie, .. }) = reply;
                        errors.push((cookie / 1024, reply.error()));
                    }
                }
            }
            errors.sort_unstable();
            errors
        };
        let io = Errno::Io as u32;
        // Short ones, of which the second is bad, and long ones, of which the last is.
        let short = [(0, 4096), (6 * MIB, 4096), (7 * MIB, 4096)];
        let long = [(0, 1 << 20), (1 << 20, 1 << 20), (5 * MIB + 512 * 1024, 1 << 20)];
        for command in [command::READ, command::WRITE] {
            let mapped = disk.mapped.load(Ordering::SeqCst);
            assert_eq!(ask(&mut raw, command, &short), [(0, 0), (6144, io), (7168, 0)]);
            assert_eq!(ask(&mut raw, command, &long), [(0, 0), (1024, 0), (5632, io)]);
            let transfers = disk.mapped.load(Ordering::SeqCst) - mapped;
            assert_eq!(transfers > 4, ring, "{transfers} transfers");
        }
        raw.works();
    });
}

#[test]
fn refused_and_unusual_requests_among_transfers_have_their_answers() {
    both(|ring| {
        let (place, _disk) = place(Filed::new(), ring);
        let mut raw = Raw::using(&place.socket(), "", true, &["base:allocation"]);
        let mut bytes = Vec::new();
        let mut put = |command, flags, offset, length: u32, cookie| {
            bytes.extend(Request { flags, command, cookie, offset, length }.encode());
            if command == command::WRITE {
                bytes.resize(bytes.len() + length as usize, 9);
            }
        };
        let (einval, enospc) = (Errno::Invalid as u32, Errno::NoSpace as u32);
        let mut want = Vec::new();
        for round in 0..20 {
            for (command, flags, offset, length, error) in [
                (command::READ, 0, 0, 4096, 0),
                (command::WRITE, 0, SIZE, 100_000, enospc),
                (command::READ, 0, 8192, 4096, 0),
                (command::WRITE, 1 << 9, 0, 33 << 10, einval),
                (command::READ, command_flag::DF, 0, 1 << 20, 0),
                (command::WRITE, command_flag::FUA, 1 << 20, 300_000, 0),
                (command::READ, 0, SIZE - 1, 2, einval),
                (command::FLUSH, 0, 0, 0, 0),
                (command::BLOCK_STATUS, 0, 0, 65536, 0),
                (command::TRIM, 0, 4096, 4096, 0),
                (77, 0, 0, 0, einval),
                (command::WRITE_ZEROES, 0, 12288, 4096, 0),
                (command::READ, 0, 0, 5 << 20, 0),
            ] {
                let cookie = round * 100 + want.len() as u64 % 100;
                put(command, flags, offset, length, cookie);
                want.push((cookie, error));
            }
        }
        put(command::DISC, 0, 0, 0, 0);
        let sender = raw.0.try_clone().unwrap();
        let sending = std::thread::spawn(move || Raw(sender).give(&bytes));
        let mut have = Vec::new();
        while have.len() < want.len() {
            let reply = raw.reply();
            let (error, cookie, last) = match &reply {
                Reply::Simple { cookie, .. } => (reply.error(), *cookie, true),
                Reply::Chunk { cookie, last, .. } => (reply.error(), *cookie, *last),
            };
            if last {
                have.push((cookie, error));
            }
        }
        have.sort_unstable();
        want.sort_unstable();
        assert_eq!(have, want);
        sending.join().unwrap();
        assert!(raw.is_closed());
    });
}

#[test]
fn a_client_that_vanishes_or_stalls_leaves_nothing_behind() {
    both(|ring| {
        let disk = Arc::new(Filed::new());
        let limits = Limits { stall: Duration::from_millis(300), ring, ..Limits::default() };
        let place = Place::with(Only(Arc::clone(&disk)), limits);
        for stays in [false, true] {
            for cut in [10, REQUEST_LENGTH + 100, REQUEST_LENGTH + 70_000] {
                let mut raw = Raw::using(&place.socket(), "", true, &[]);
                for number in 0..64 {
                    raw.request(command::READ, 0, number * 8192, 4096);
                }
                let (flags, cookie, offset, length) = (0, 1, 0, 200_000);
                let head = Request { flags, command: command::WRITE, cookie, offset, length };
                let bytes = [&head.encode()[..], &vec![3; 200_000]].concat();
                raw.give(&bytes[..cut]);
                if stays {
                    assert!(raw.is_closed(), "stalled after {cut} bytes");
                }
            }
        }
        // One that does not read is ended too, and its memory comes back.
        let mut raw = Raw::using(&place.socket(), "", true, &[]);
        let mut writer = raw.0.try_clone().unwrap();
        let flood = std::thread::spawn(move || {
            use std::io::Write as _;
            let request = Request {
                flags: 0,
                command: command::READ,
                cookie: 1,
                offset: MIB,
                length: 200_000,
            };
            (0..200_000).any(|_| writer.write_all(&request.encode()).is_err())
        });
        assert!(flood.join().unwrap(), "two hundred thousand requests were taken");
        assert!(raw.is_closed());
        until("all are gone", || place.server.connections().is_empty());
        was_used(&disk, ring);
        let client = Client::connect(&place.uri(""), &Options::default()).unwrap();
        client.flush().unwrap();
        assert!(place.server.close_export("", PATIENCE));
        assert_eq!(client.flush().unwrap_err().kind, Kind::Disconnected);
    });
}
