//! The regions of the synchroniser, tried in many orders of their threads: guests, copiers, a
//! target that answers late, fails and forgets, flushes, and changes of mode.
//!
//! `regions.rs` is compiled here a second time, with locks that a scheduler decides about. The
//! harness stands for the rest of the synchroniser. It can be made to do one thing in the wrong
//! order, and each of those is found.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]
#![allow(dead_code, unreachable_pub, reason = "not all of the module is used here")]

use std::sync::Arc;
use std::sync::Mutex as Plain;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::sync::{Mutex, RwLock};
use shuttle::thread::{self, yield_now};

#[path = "../../src/sync/bits.rs"]
mod bits;
mod lock {
    pub(super) use shuttle::sync::{Condvar, Mutex, MutexGuard};
}
#[path = "../../src/sync/regions.rs"]
mod regions;

use regions::{REGION, Regions, Ticket};

/// Regions, and blocks of each that are ever written.
const REGIONS: usize = 2;
const EACH: usize = 2;
const BLOCKS: usize = REGIONS * EACH;

const LONG: Duration = Duration::from_secs(1000);

/// What is done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// The copier reads before it clears the bits.
    ReadBeforeTake,
    /// The copier ends its copy before the target has it.
    ReleaseBeforeWrite,
    /// A write is dirty when it is submitted, and not when the source has it.
    DirtyAtSubmission,
    /// A write is answered for before the target has it.
    ForwardedBeforeWrite,
    /// A failed write to the source is taken for one that changed nothing.
    FailureChangesNothing,
    /// A copy that the target refused counts as done.
    RefusalForgotten,
    /// Nobody says that the target has died.
    LossForgotten,
    /// A flush that failed counts as one.
    FlushForgotten,
}

type Content = [u64; BLOCKS];

/// Lets others run, up to so many times.
fn pass_time(most: usize) {
    (0..thread_rng().gen_range(0..=most)).for_each(|_| yield_now());
}

fn at(block: usize) -> u64 {
    (block / EACH) as u64 * REGION + (block % EACH) as u64 * 8192
}

fn blocks_in(range: &std::ops::Range<u64>) -> Vec<usize> {
    (0..BLOCKS).filter(|block| range.contains(&at(*block))).collect()
}

/// The other disk: what it says it holds, and what it would hold after its death.
#[derive(Default)]
struct Target {
    held: Content,
    durable: Content,
    dead: bool,
    /// Forwarded writes that have not arrived.
    queue: Vec<(Ticket, Vec<usize>, u64)>,
}

struct World {
    flaw: Flaw,
    regions: Regions,
    /// Never held across a point where another thread may run.
    source: Plain<Content>,
    target: Plain<Target>,
    /// Held by each write; taken whole by the switch.
    gate: RwLock<()>,
    flushing: Mutex<()>,
    values: AtomicU64,
    guests_done: AtomicBool,
    /// Whoever may wait for an answer of the target has ended.
    others_done: AtomicBool,
}

impl World {
    fn new(flaw: Flaw) -> Self {
        Self {
            flaw,
            regions: Regions::new(REGIONS as u64 * REGION),
            source: Plain::default(),
            target: Plain::default(),
            gate: RwLock::new(()),
            flushing: Mutex::new(()),
            values: AtomicU64::new(1),
            guests_done: AtomicBool::new(false),
            others_done: AtomicBool::new(false),
        }
    }

    /// One write of a guest, as the watcher of a disk goes about it.
    fn write(&self, sound: bool) {
        let _open = self.gate.read().unwrap();
        let value = self.values.fetch_add(1, Ordering::Relaxed);
        let first = thread_rng().gen_range(0..BLOCKS);
        let last = if thread_rng().gen_bool(0.3) { BLOCKS - 1 } else { first };
        let blocks: Vec<usize> = (first..=last).collect();
        let range = at(first)..at(last) + 4096;
        let patience = if thread_rng().gen_bool(0.2) { Duration::ZERO } else { LONG };
        let ticket = self.regions.begin(range, Some(4096), patience);
        if self.flaw == Flaw::DirtyAtSubmission {
            let forward = self.regions.wrote(ticket, true);
            self.fill_source(&blocks, value, blocks.len());
            if let Some(ticket) = forward {
                self.send(ticket, blocks, value);
            }
            return;
        }
        let fails = !sound && thread_rng().gen_bool(0.1);
        let count = if fails { thread_rng().gen_range(0..=blocks.len()) } else { blocks.len() };
        self.fill_source(&blocks, value, count);
        let written = !fails || self.flaw == Flaw::FailureChangesNothing;
        if let Some(ticket) = self.regions.wrote(ticket, written) {
            if fails {
                self.regions.forwarded(&ticket, true);
            } else {
                self.send(ticket, blocks, value);
            }
        }
    }

    fn fill_source(&self, blocks: &[usize], value: u64, count: usize) {
        for block in blocks.iter().take(count) {
            yield_now();
            self.source.lock().unwrap()[*block] = value;
        }
    }

    fn send(&self, ticket: Ticket, blocks: Vec<usize>, value: u64) {
        if self.flaw == Flaw::ForwardedBeforeWrite {
            self.regions.forwarded(&ticket, true);
        }
        self.target.lock().unwrap().queue.push((ticket, blocks, value));
    }

    /// Takes one forwarded write that has arrived, any of them.
    fn receive(&self) -> bool {
        yield_now();
        let (ticket, blocks, value) = {
            let mut target = self.target.lock().unwrap();
            if target.queue.is_empty() {
                return false;
            }
            let index = thread_rng().gen_range(0..target.queue.len());
            target.queue.swap_remove(index)
        };
        let mut done = true;
        for block in blocks {
            yield_now();
            done &= self.put(block, value);
        }
        pass_time(3);
        if self.flaw != Flaw::ForwardedBeforeWrite {
            self.regions.forwarded(&ticket, done);
        }
        true
    }

    fn put(&self, block: usize, value: u64) -> bool {
        let mut target = self.target.lock().unwrap();
        if !target.dead {
            target.held[block] = value;
        }
        !target.dead
    }

    /// Copies one range; false when there is none.
    fn copy(&self, refuses: bool) -> bool {
        let Some(hint) = self.regions.next(REGION) else { return false };
        let read = |blocks: &[usize]| -> Vec<(usize, u64)> {
            let one = |block: &usize| {
                yield_now();
                (*block, self.source.lock().unwrap()[*block])
            };
            blocks.iter().map(one).collect()
        };
        let early = (self.flaw == Flaw::ReadBeforeTake).then(|| read(&blocks_in(&hint)));
        let Some(copy) = self.regions.take(&hint) else { return true };
        let content = early.unwrap_or_else(|| read(&blocks_in(&copy.range)));
        if self.flaw == Flaw::ReleaseBeforeWrite {
            self.regions.release(&copy, true);
        }
        let refused = refuses && thread_rng().gen_bool(0.1);
        let mut done = !refused;
        for (block, value) in content {
            yield_now();
            done &= refused || self.put(block, value);
        }
        pass_time(3);
        if self.flaw != Flaw::ReleaseBeforeWrite {
            self.regions.release(&copy, done || self.flaw == Flaw::RefusalForgotten);
        }
        true
    }

    fn flush(&self) {
        let _one_at_a_time = self.flushing.lock().unwrap();
        self.regions.flushing();
        yield_now();
        let done = {
            let mut target = self.target.lock().unwrap();
            if !target.dead {
                target.durable = target.held;
            }
            !target.dead
        };
        yield_now();
        if done || self.flaw == Flaw::FlushForgotten {
            self.regions.flushed();
        }
    }

    /// The target dies and forgets, is seen to be dead, and comes back.
    fn die(&self) {
        pass_time(60);
        {
            let mut target = self.target.lock().unwrap();
            target.dead = true;
            for block in 0..BLOCKS {
                if thread_rng().gen_bool(0.5) {
                    target.held[block] = target.durable[block];
                }
            }
            target.durable = target.held;
        }
        // Noticed late.
        pass_time(20);
        // What was under way to it fails before there is a new connection.
        while self.receive() {}
        if self.flaw != Flaw::LossForgotten {
            self.regions.lost();
        }
        self.target.lock().unwrap().dead = false;
    }

    /// No write is under way. If the disks are said to be equal, they are; and what is said to be
    /// durable is.
    fn try_to_switch(&self) -> bool {
        let _flushing = self.flushing.lock().unwrap();
        let _closed = self.gate.write().unwrap();
        if !self.regions.is_settled() {
            return false;
        }
        let source = *self.source.lock().unwrap();
        let held = self.target.lock().unwrap().held;
        // A death that nobody has noticed yet is noticed by the flush, which is below.
        self.regions.flushing();
        let dead = {
            let mut target = self.target.lock().unwrap();
            if !target.dead {
                target.durable = target.held;
            }
            target.dead
        };
        if dead {
            return false;
        }
        self.regions.flushed();
        if !self.regions.is_settled() {
            return false;
        }
        let durable = self.target.lock().unwrap().durable;
        assert_eq!(source, durable, "settled, and the target lacks something; before: {held:?}");
        true
    }
}

fn run(flaw: Flaw, deaths: bool) {
    let world = Arc::new(World::new(flaw));
    world.source.lock().unwrap()[0] = 1000;
    assert_eq!(world.regions.mark(&(0..REGION)), REGION);
    let mut threads = Vec::new();
    let mut start = |work: Box<dyn FnOnce(&World) + Send>| {
        let world = Arc::clone(&world);
        threads.push(thread::spawn(move || work(&world)));
    };
    for _ in 0..2 {
        start(Box::new(|world| (0..4).for_each(|_| world.write(false))));
    }
    for _ in 0..2 {
        start(Box::new(|world| {
            // Goes on while there are guests, and then until nothing is left.
            while !world.guests_done.load(Ordering::SeqCst) {
                if !world.copy(true) {
                    yield_now();
                }
            }
        }));
    }
    start(Box::new(|world| {
        for _ in 0..6 {
            world.regions.forward(thread_rng().gen_bool(0.6));
            pass_time(10);
        }
    }));
    start(Box::new(|world| {
        for _ in 0..3 {
            pass_time(20);
            world.flush();
        }
        world.try_to_switch();
    }));
    if deaths {
        start(Box::new(World::die));
    }
    start(Box::new(|world| {
        while !world.others_done.load(Ordering::SeqCst) {
            if !world.receive() {
                yield_now();
            }
        }
    }));
    let receiver = threads.pop().unwrap();
    let mut threads = threads.into_iter();
    for guest in threads.by_ref().take(2) {
        guest.join().unwrap();
    }
    world.guests_done.store(true, Ordering::SeqCst);
    for other in threads {
        other.join().unwrap();
    }
    world.others_done.store(true, Ordering::SeqCst);
    receiver.join().unwrap();
    while world.receive() || world.copy(false) {}
    assert!(world.try_to_switch(), "it comes to an end: {:?}", world.regions.counts());
}

const STEPS: usize = 100_000;

fn config() -> shuttle::Config {
    let mut config = shuttle::Config::new();
    config.max_steps = shuttle::MaxSteps::FailAfter(STEPS);
    config.failure_persistence = shuttle::FailurePersistence::None;
    config
}

fn orders() -> usize {
    std::env::var("SYNC_ORDERS").ok().and_then(|text| text.parse().ok()).unwrap_or(3000)
}

/// A fixed seed, printed, so that a failure is seen again.
fn seed() -> u64 {
    let given = std::env::var("SYNC_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or(0x5eed_0001);
    println!("SYNC_SEED={seed}");
    seed
}

fn try_orders(flaw: Flaw, deaths: bool) {
    let random = RandomScheduler::new_from_seed(seed(), orders());
    shuttle::Runner::new(random, config()).run(move || run(flaw, deaths));
    let few = PctScheduler::new_from_seed(seed(), 4, orders());
    shuttle::Runner::new(few, config()).run(move || run(flaw, deaths));
}

#[test]
fn no_order_of_the_threads_loses_a_write() {
    try_orders(Flaw::None, false);
}

#[test]
fn no_order_of_the_threads_loses_a_write_when_the_target_dies_and_forgets() {
    try_orders(Flaw::None, true);
}

/// While writes are forwarded, a guest makes nothing dirty that was clean: the copy ends.
#[test]
fn what_was_copied_stays_so_while_writes_are_forwarded() {
    let random = RandomScheduler::new_from_seed(seed(), orders());
    shuttle::Runner::new(random, config()).run(|| {
        let world = Arc::new(World::new(Flaw::None));
        assert_eq!(world.regions.mark(&(0..REGIONS as u64 * REGION)), REGIONS as u64 * REGION);
        world.regions.forward(true);
        let mut threads: Vec<_> = (0..3)
            .map(|number| {
                let world = Arc::clone(&world);
                thread::spawn(move || match number {
                    0 => while world.copy(false) {},
                    1 => {
                        while !world.others_done.load(Ordering::SeqCst) {
                            if !world.receive() {
                                yield_now();
                            }
                        }
                    }
                    _ => {
                        for _ in 0..6 {
                            let first = thread_rng().gen_range(0..BLOCKS);
                            let ticket =
                                world.regions.begin(at(first)..at(first) + 4096, Some(4096), LONG);
                            world.fill_source(&[first], 7, 1);
                            if let Some(ticket) = world.regions.wrote(ticket, true) {
                                world.send(ticket, vec![first], 7);
                            }
                        }
                    }
                })
            })
            .collect();
        let receiver = threads.remove(1);
        for thread in threads {
            thread.join().unwrap();
        }
        world.others_done.store(true, Ordering::SeqCst);
        receiver.join().unwrap();
        while world.receive() {}
        let counts = world.regions.counts();
        assert_eq!((counts.redirtied, counts.dirty), (0, 0), "{counts:?}");
        assert!(counts.passes <= 1, "each region was copied once: {counts:?}");
        assert!(world.try_to_switch());
    });
}

/// Each way to go wrong is seen by what the tests above look at.
#[test]
fn every_flaw_is_found() {
    let flaws = [
        Flaw::ReadBeforeTake,
        Flaw::ReleaseBeforeWrite,
        Flaw::DirtyAtSubmission,
        Flaw::ForwardedBeforeWrite,
        Flaw::FailureChangesNothing,
        Flaw::RefusalForgotten,
        Flaw::LossForgotten,
        Flaw::FlushForgotten,
    ];
    for flaw in flaws {
        let found = std::panic::catch_unwind(|| try_orders(flaw, true));
        let panic = found.err().unwrap_or_else(|| panic!("{flaw:?} was not found"));
        let text = panic.downcast_ref::<String>().map_or("", |text| text);
        assert!(text.contains("the target lacks something"), "{flaw:?} ended with: {text}");
    }
}
