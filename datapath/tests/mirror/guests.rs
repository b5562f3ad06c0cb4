//! Guests that write a disk all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use datapath::disk::Drive;
use datapath::error::{Errno, Result};
use datapath::export::{Export, Zeroes};
use datapath::sync::Options;

pub(crate) const MIB: u64 = 1 << 20;

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(90)
}

pub(crate) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = soon();
    while !done() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The seed of a run, printed: `MIRROR_SEED` repeats it.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("MIRROR_SEED").ok().and_then(|text| text.parse().ok());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let seed = given.unwrap_or_else(|| u64::try_from(now.as_micros()).unwrap() | 1);
    println!("MIRROR_SEED={seed}");
    seed
}

/// xorshift64*.
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64, number: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number * 2 + 1) | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % limit
    }
}

/// Says of each eight bytes where they belong and which write they are of.
pub(crate) fn stamp(buf: &mut [u8], at: u64, write: u64) {
    for (index, word) in buf.chunks_mut(8).enumerate() {
        let text = ((at / 8 + index as u64) << 32 | (write & 0xffff_ffff)).to_le_bytes();
        word.copy_from_slice(&text[..word.len()]);
    }
}

/// One change of a guest, of any kind.
fn change(drive: &Drive, chance: &mut Chance, buf: &mut Vec<u8>) -> Result<()> {
    let size = drive.size();
    // Mostly a few hot places, as real guests have.
    let room = if chance.below(10) < 7 { size / 16 } else { size };
    let offset = chance.below(room) / 512 * 512;
    let most = if chance.below(20) == 0 { 256 << 10 } else { 8192 };
    let length = ((chance.below(most) / 512 + 1) * 512).min(size - offset);
    match chance.below(10) {
        0 => drive.trim(offset, length, false),
        1 => {
            let keep_space = chance.below(2) == 0;
            let how = Zeroes { keep_space, ..Zeroes::default() };
            drive.write_zeroes(offset, length, how)
        }
        _ => {
            buf.resize(length as usize, 0);
            stamp(buf, offset, chance.below(1 << 32));
            drive.write(offset, buf, chance.below(200) == 0)
        }
    }
}

/// Sets a flag when it goes.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs guests, as many as asked for and as fast as they can, while `during` does its work.
/// Answers what that answers, and how many changes were made. A guest ends when its disk does; any
/// other failure ends the test.
pub(crate) fn with_guests<T>(
    drive: &Arc<Drive>,
    seed: u64,
    count: u64,
    during: impl FnOnce(&AtomicU64) -> T,
) -> (T, u64) {
    let (stop, changes) = (AtomicBool::new(false), AtomicU64::new(0));
    let result = std::thread::scope(|scope| {
        for number in 1..=count {
            let (drive, stop, changes) = (drive.clone(), &stop, &changes);
            scope.spawn(move || {
                let (mut chance, mut buf) = (Chance::new(seed, number), Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    match change(&drive, &mut chance, &mut buf) {
                        Ok(()) => {}
                        Err(error) if error.errno == Errno::Shutdown => return,
                        Err(error) => panic!("a guest was told: {error}"),
                    }
                    changes.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Also when `during` panics.
        let _stop = Stop(&stop);
        wait_for("the guests", || changes.load(Ordering::Relaxed) > 10);
        during(&changes)
    });
    (result, changes.into_inner())
}

/// As a product would, but quicker to try again.
pub(crate) fn quick() -> Options {
    Options {
        retry: (Duration::from_millis(5), Duration::from_millis(100)),
        settle: Duration::from_millis(100),
        flush_every: Duration::from_millis(200),
        ..Options::default()
    }
}
