//! The copy with all its threads, from memory to memory, to a target that fails in every way: it
//! refuses, dies and forgets what was not flushed, answers late and in any order, or not at all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use datapath::disk::{Change, Watcher};
use datapath::error::{Errno, Result};
use datapath::sync::{Copy, Failure, Load, Options, Phase, Piece, PieceKind, Sent, Source, Target};

const REGION: usize = 64 << 10;
const SIZE: usize = 48 * REGION + 12_800;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = soon();
    while !done() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::yield_now();
    }
}

/// The seed of a run, printed: `SYNC_SEED` repeats it.
fn seed() -> u64 {
    let given = std::env::var("SYNC_SEED").ok().and_then(|text| text.parse().ok());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = given.unwrap_or_else(|| u64::try_from(now.as_micros()).unwrap() | 1);
    println!("SYNC_SEED={seed}");
    seed
}

/// xorshift64*.
struct Chance(u64);

impl Chance {
    fn new(seed: u64, number: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number * 2 + 1) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn percent(&mut self, percent: u32) -> bool {
        self.below(100) < percent as usize
    }
}

/// A disk in memory, written through a watcher. The gate is held by each write.
struct Memory {
    bytes: Mutex<Vec<u8>>,
    gate: RwLock<()>,
    fails: AtomicBool,
}

impl Memory {
    fn new(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self { bytes: Mutex::new(bytes), gate: RwLock::new(()), fails: false.into() })
    }

    fn content(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    fn change(&self, watcher: &dyn Watcher, change: &Change<'_>) {
        let _open = self.gate.read().unwrap();
        let ticket = watcher.before(change);
        let (from, length) = (change.offset() as usize, change.length() as usize);
        // In two steps, so that a copy can come between.
        let parts = [(0, length / 2), (length / 2, length)];
        for (start, end) in parts {
            let mut bytes = self.bytes.lock().unwrap();
            let into = &mut bytes[from + start..from + end];
            match change {
                Change::Data { bytes, .. } => into.copy_from_slice(&bytes[start..end]),
                Change::Zeroes { .. } => into.fill(0),
            }
        }
        watcher.after(change, ticket, true);
    }
}

impl Source for Memory {
    fn size(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }

    fn pieces(&self, range: std::ops::Range<u64>, into: &mut Vec<Piece>) -> Result<()> {
        let bytes = self.bytes.lock().unwrap();
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min((at / 4096 + 1) * 4096);
            let zero = bytes[at as usize..end as usize].iter().all(|byte| *byte == 0);
            let kind = if zero { PieceKind::Zeros } else { PieceKind::Data };
            into.push(Piece { range: at..end, kind });
            at = end;
        }
        Ok(())
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(datapath::error::Error::new(Errno::Io, "a bad sector"));
        }
        let from = offset as usize;
        let half = buf.len() / 2;
        buf[..half].copy_from_slice(&self.bytes.lock().unwrap()[from..from + half]);
        std::thread::yield_now();
        let length = buf.len();
        buf[half..].copy_from_slice(&self.bytes.lock().unwrap()[from + half..from + length]);
        Ok(())
    }
}

type Forwarded = (u64, Vec<u8>, Sender<Result<(), Failure>>);

/// A target in memory, and what is wrong with it.
struct Server {
    held: Mutex<Vec<u8>>,
    durable: Mutex<Vec<u8>>,
    dead: AtomicBool,
    /// Percent of requests.
    refuses: AtomicU32,
    stalls: AtomicBool,
    gone: AtomicBool,
    /// Dies and is there again before anybody has noticed.
    restarts: AtomicBool,
    blank: bool,
    least: u64,
    written: AtomicU64,
    queue: Sender<Forwarded>,
    chance: Mutex<Chance>,
}

impl Server {
    fn start(size: usize, blank: bool, least: u64, seed: u64) -> Arc<Self> {
        let (queue, requests) = channel();
        let fill = if blank { 0 } else { 0xee };
        let server = Arc::new(Self {
            held: Mutex::new(vec![fill; size]),
            durable: Mutex::new(vec![fill; size]),
            dead: false.into(),
            refuses: 0.into(),
            stalls: false.into(),
            gone: false.into(),
            restarts: false.into(),
            blank,
            least,
            written: 0.into(),
            queue,
            chance: Mutex::new(Chance::new(seed, 77)),
        });
        let weak = Arc::downgrade(&server);
        std::thread::spawn(move || serve(&weak, &requests, Chance::new(seed, 78)));
        server
    }

    fn put(&self, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        assert!(offset.is_multiple_of(self.least), "uneven: {offset}");
        let end = offset + bytes.len() as u64;
        assert!(end.is_multiple_of(self.least) || end == self.size(), "uneven end: {end}");
        // A stalled server answers nobody until it goes on, or is given up.
        while self.stalls.load(Ordering::Relaxed) && !self.dead.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        if self.chance.lock().unwrap().percent(self.refuses.load(Ordering::Relaxed)) {
            return Err(Failure { what: "refused".into(), lost: false, permanent: false });
        }
        let mut held = self.held.lock().unwrap();
        if self.dead.load(Ordering::Relaxed) {
            return Err(Failure { what: "dead".into(), lost: true, permanent: false });
        }
        let from = offset as usize;
        held[from..from + bytes.len()].copy_from_slice(bytes);
        self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Dies, and forgets some of what was not flushed.
    fn die(&self, chance: &mut Chance) {
        let (mut held, durable) = (self.held.lock().unwrap(), self.durable.lock().unwrap());
        self.dead.store(true, Ordering::Relaxed);
        for (held, durable) in held.chunks_mut(4096).zip(durable.chunks(4096)) {
            if chance.percent(50) {
                held.copy_from_slice(durable);
            }
        }
    }
}

/// Applies forwarded writes late and in any order.
fn serve(server: &std::sync::Weak<Server>, requests: &Receiver<Forwarded>, mut chance: Chance) {
    let mut waiting: Vec<Forwarded> = Vec::new();
    loop {
        match requests.recv_timeout(Duration::from_millis(1)) {
            Ok(request) => waiting.push(request),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return,
        }
        waiting.extend(requests.try_iter().take(8));
        let Some(server) = server.upgrade() else { return };
        while !waiting.is_empty() && chance.percent(70) {
            let (offset, bytes, answer) = waiting.swap_remove(chance.below(waiting.len()));
            let _ = answer.send(server.put(offset, &bytes));
        }
    }
}

impl Target for Server {
    fn size(&self) -> u64 {
        self.held.lock().unwrap().len() as u64
    }

    fn least_block(&self) -> u64 {
        self.least
    }

    fn is_blank(&self) -> bool {
        self.blank
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Failure> {
        let half = (bytes.len() / 2) / self.least as usize * self.least as usize;
        self.put(offset, &bytes[..half])?;
        self.put(offset + half as u64, &bytes[half..])
    }

    fn zero(&self, offset: u64, length: u64) -> Result<(), Failure> {
        self.put(offset, &vec![0; length as usize])
    }

    fn forward(&self, change: &Change<'_>) -> Result<Sent, Failure> {
        let bytes = match change {
            Change::Data { bytes, .. } => bytes.to_vec(),
            Change::Zeroes { length, .. } => vec![0; *length as usize],
        };
        let (answer, wait) = channel();
        self.queue.send((change.offset(), bytes, answer)).unwrap();
        Ok(Sent::Waiting(Box::new(move || wait.recv().unwrap())))
    }

    fn flush(&self) -> Result<(), Failure> {
        let held = self.held.lock().unwrap();
        if self.dead.load(Ordering::Relaxed) {
            return Err(Failure { what: "dead".into(), lost: true, permanent: false });
        }
        self.durable.lock().unwrap().copy_from_slice(&held);
        Ok(())
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        let from = offset as usize;
        buf.copy_from_slice(&self.held.lock().unwrap()[from..from + buf.len()]);
        Ok(())
    }

    fn renew(&self) -> Result<bool, Failure> {
        if self.gone.load(Ordering::Relaxed) {
            return Err(Failure { what: "nobody there".into(), lost: true, permanent: false });
        }
        if self.restarts.swap(false, Ordering::Relaxed) {
            self.die(&mut self.chance.lock().unwrap());
        }
        Ok(self.dead.swap(false, Ordering::Relaxed))
    }

    fn abandon(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }
}

fn quick() -> Options {
    Options {
        workers: 4,
        idle: Load { in_flight: 8 * REGION as u64, piece: 2 * REGION as u64 },
        busy: Load { in_flight: 2 * REGION as u64, piece: REGION as u64 },
        patience: Duration::from_millis(50),
        retry: (Duration::from_millis(1), Duration::from_millis(20)),
        settle: Duration::from_millis(1),
        flush_every: Duration::from_millis(20),
        ..Options::default()
    }
}

fn start(source: &Arc<Memory>, server: &Arc<Server>, options: Options) -> Arc<Copy> {
    let copy = Copy::start(source.clone(), server.clone(), options).unwrap();
    copy.seed().unwrap();
    copy
}

/// Writes until it is told to stop; answers how many.
fn guest(source: &Memory, copy: &Copy, mut chance: Chance, least: usize, stop: &AtomicBool) -> u64 {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        count += 1;
        // Mostly in a few hot places.
        let place = if chance.percent(70) { chance.below(SIZE / 16) } else { chance.below(SIZE) };
        let offset = place / least * least;
        let most = (SIZE - offset).min(if chance.percent(5) { 5 * REGION } else { 8192 });
        let length = (chance.below(most).max(1)).next_multiple_of(least).min(SIZE - offset);
        let change_offset = offset as u64;
        if chance.percent(15) {
            let length = length as u64;
            let zeroes = Change::Zeroes { offset: change_offset, length, keep_space: false };
            source.change(copy, &zeroes);
        } else {
            let stamp = chance.next().to_le_bytes();
            let bytes: Vec<u8> = stamp.iter().copied().cycle().take(length).collect();
            source.change(copy, &Change::Data { offset: change_offset, bytes: &bytes });
        }
    }
    count
}

fn same(ours: &[u8], theirs: &[u8], what: &str) {
    if let Some(at) = ours.iter().zip(theirs).position(|(a, b)| a != b) {
        panic!("{what}: differs at {at} (region {})", at / REGION);
    }
}

/// Stops the guests; if the copy says that it can be switched, then it can.
fn try_to_switch(source: &Memory, server: &Server, copy: &Copy) -> Result<()> {
    let _closed = source.gate.write().unwrap();
    copy.settle(Instant::now() + Duration::from_secs(5))?;
    same(&source.content(), &server.durable.lock().unwrap(), "settled, and not the same");
    Ok(())
}

fn chaos(seed: u64, least: usize, blank: bool) {
    let mut content = vec![0; SIZE];
    let mut chance = Chance::new(seed, 0);
    for _ in 0..20 {
        let at = chance.below(SIZE - 3 * REGION);
        content[at..at + 2 * REGION].fill(chance.next() as u8 | 1);
    }
    let source = Memory::new(content);
    let server = Server::start(SIZE, blank, least as u64, seed);
    let copy = start(&source, &server, quick());
    let stop = AtomicBool::new(false);
    let (mut switched, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        let guests: Vec<_> = (1..=3)
            .map(|number| {
                let (source, copy, stop) = (&source, &copy, &stop);
                scope.spawn(move || guest(source, copy, Chance::new(seed, number), least, stop))
            })
            .collect();
        let calm = |time: u64| {
            let until = Instant::now() + Duration::from_millis(time);
            while Instant::now() < until {
                std::thread::yield_now();
            }
        };
        for _ in 0..12 {
            match chance.below(4) {
                0 => server.die(&mut chance),
                1 => {
                    server.refuses.store(20, Ordering::Relaxed);
                    calm(20);
                    server.refuses.store(0, Ordering::Relaxed);
                }
                2 => {
                    server.stalls.store(true, Ordering::Relaxed);
                    calm(80);
                    server.stalls.store(false, Ordering::Relaxed);
                }
                _ => {}
            }
            calm(chance.below(30) as u64);
            match try_to_switch(&source, &server, &copy) {
                Ok(()) => switched += 1,
                Err(_) => refused += 1,
            }
        }
        // The guests write as fast as they can, and it ends all the same.
        wait_for("a switch while guests write", || {
            copy.wait_ready(soon()).unwrap();
            try_to_switch(&source, &server, &copy).is_ok()
        });
        stop.store(true, Ordering::Relaxed);
        let writes: u64 = guests.into_iter().map(|guest| guest.join().unwrap()).sum();
        assert!(writes > 0);
    });
    copy.wait_ready(soon()).unwrap();
    try_to_switch(&source, &server, &copy).unwrap();
    let progress = copy.progress();
    println!("switched {switched}, refused {refused}, {progress:?}");
    assert!(progress.forwarded > 0, "writes were forwarded");
    copy.end();
    assert!(copy.wait_ended(soon()), "its threads end");
}

#[test]
fn whatever_the_target_does_what_can_be_switched_is_the_same() {
    let seed = seed();
    for round in 0..4 {
        chaos(seed.wrapping_add(round), 1, round % 2 == 0);
    }
}

/// The connection ends while the copy waits to try again for another reason.
#[test]
fn a_target_that_is_lost_after_it_has_refused_is_copied_again() {
    let source = Memory::new(vec![7; SIZE]);
    let server = Server::start(SIZE, false, 1, seed());
    let long = Duration::from_secs(1000);
    let copy = start(&source, &server, Options { flush_every: long, ..quick() });
    copy.wait_ready(soon()).unwrap();
    server.restarts.store(true, Ordering::Relaxed);
    server.refuses.store(100, Ordering::Relaxed);
    source.change(&*copy, &Change::Data { offset: 0, bytes: &[9; 512] });
    wait_for("the restart", || !server.restarts.load(Ordering::Relaxed));
    server.refuses.store(0, Ordering::Relaxed);
    copy.wait_ready(soon()).unwrap();
    try_to_switch(&source, &server, &copy).unwrap();
    copy.end();
    assert!(copy.wait_ended(soon()), "its threads end");
}

/// The target takes 4096 bytes at least, the guest writes 512.
#[test]
fn a_target_with_large_blocks_gets_whole_ones() {
    let seed = seed();
    let source = Memory::new(vec![3; SIZE]);
    let server = Server::start(SIZE, false, 4096, seed);
    let copy = start(&source, &server, quick());
    let mut chance = Chance::new(seed, 9);
    for _ in 0..500 {
        let offset = (chance.below(SIZE - 512) / 512 * 512) as u64;
        let bytes = [chance.next() as u8; 512];
        source.change(&*copy, &Change::Data { offset, bytes: &bytes });
    }
    copy.wait_ready(soon()).unwrap();
    wait_for("a switch", || try_to_switch(&source, &server, &copy).is_ok());
    copy.end();
    assert!(copy.wait_ended(soon()));
}

#[test]
fn a_target_that_stays_away_fails_for_good_and_the_guest_goes_on() {
    let source = Memory::new(vec![3; SIZE]);
    let server = Server::start(SIZE, false, 1, 5);
    let options = Options { give_up: Duration::from_millis(50), ..quick() };
    let copy = start(&source, &server, options);
    copy.wait_ready(soon()).unwrap();
    server.gone.store(true, Ordering::Relaxed);
    server.die(&mut Chance::new(1, 1));
    let write = || source.change(&*copy, &Change::Data { offset: 100, bytes: b"after all" });
    wait_for("the failure", || {
        write();
        matches!(copy.progress().phase, Phase::Failed(_))
    });
    // It comes back, and that changes nothing.
    server.gone.store(false, Ordering::Relaxed);
    server.renew().unwrap();
    write();
    let error = copy.settle(soon()).unwrap_err();
    assert!(error.what.contains("not copied yet"), "{error}");
    assert_eq!(copy.wait_ready(soon()).unwrap_err().what, "nobody there");
    assert_eq!(&source.content()[100..109], b"after all");
    assert!(copy.wait_ended(soon()), "its threads end by themselves");
}

#[test]
fn a_failure_that_cannot_be_mended_is_not_tried_again() {
    let source = Memory::new(vec![3; SIZE]);
    let error = Copy::start(source.clone(), Server::start(SIZE - 1, false, 1, 5), quick());
    let what = error.err().unwrap().what;
    assert_eq!(what, format!("the target has {} bytes, the source {SIZE}", SIZE - 1));

    let server = Server::start(SIZE, false, 1, 5);
    source.fails.store(true, Ordering::Relaxed);
    let copy = start(&source, &server, quick());
    let error = copy.wait_ready(soon()).unwrap_err();
    assert_eq!(error.what, "the source: a bad sector");
    assert_eq!(copy.progress().retries, 0);
    assert!(copy.wait_ended(soon()));
}

/// Each step of the rate limit is checked beside it; here, that the copy is held to it at all.
#[test]
fn a_limited_copy_writes_no_more_than_it_may() {
    let source = Memory::new(vec![3; SIZE]);
    let server = Server::start(SIZE, false, 1, 5);
    let began = Instant::now();
    let rate = 4 * SIZE as u64;
    let copy = start(&source, &server, Options { rate: Some(rate), ..quick() });
    copy.wait_ready(soon()).unwrap();
    let allowed = rate * u64::try_from(began.elapsed().as_millis()).unwrap() / 1000;
    // What is in flight may be ahead of its time.
    let ahead = 8 * REGION as u64;
    assert!(server.written.load(Ordering::Relaxed) <= allowed + ahead);
    copy.end();
    assert!(copy.wait_ended(soon()));
}

/// Zeros are not copied to a target that is known to have nothing else.
#[test]
fn a_blank_target_is_not_sent_zeros() {
    let mut content = vec![0; SIZE];
    content[5 * REGION..6 * REGION].fill(9);
    let source = Memory::new(content);
    let server = Server::start(SIZE, true, 1, 5);
    let copy = start(&source, &server, quick());
    copy.wait_ready(soon()).unwrap();
    assert_eq!(server.written.load(Ordering::Relaxed), REGION as u64);
    assert_eq!(copy.progress().total, REGION as u64);
    try_to_switch(&source, &server, &copy).unwrap();
    copy.end();
    let error = copy.settle(soon()).unwrap_err();
    assert_eq!(error.what, "the copy was ended");
    assert!(copy.wait_ended(soon()));
}
