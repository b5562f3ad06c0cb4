//! Disks that are written and verified by a real client while everything is changed underneath.
//!
//! Each workload has a new disk. `fio` writes and reads back with checksums, again and again, and
//! meanwhile operations are done to the disk in random order: those of [`process::ALL`] to one that
//! is served by `sm-datapath`, those of [`library::ALL`] to one that is served by this program. At
//! the end the disk as its clients see it is compared with its images as they lie there, byte by
//! byte, and the images are checked. `STRESS_SECONDS=3600 STRESS_SEED=7 cargo test -p datapath
//! --test stress` runs longer, and makes the same choices again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

mod images;
mod library;
mod process;

use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use images::SIZE;

/// Time for all workloads of a test together, when nothing else is said.
const SECONDS: u64 = 8;

/// What `fio` does in a round, beside verifying it: what it has written is read back in the order in
/// which it was written, with as many requests in flight. Each workload of the benchmark is here under
/// its name (`docs/performance.md`), and two that it has not.
const WORKLOADS: &[(&str, &[&str])] = &[
    ("random 4 KiB, depth 1", &["--rw=randwrite", "--bs=4k", "--iodepth=1", "--io_size=4M"]),
    ("random 4 KiB, depth 16", &["--rw=randwrite", "--bs=4k", "--iodepth=16", "--io_size=16M"]),
    ("random 4 KiB, depth 64", &["--rw=randwrite", "--bs=4k", "--iodepth=64", "--io_size=16M"]),
    (
        "mixed 70/30, depth 16",
        &["--rw=randrw", "--rwmixread=70", "--bs=4k", "--iodepth=16", "--io_size=16M"],
    ),
    (
        "four connections",
        &[
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=8",
            "--numjobs=4",
            "--size=25%",
            "--io_size=4M",
            "--offset_increment=25%",
        ],
    ),
    ("sequential 1 MiB", &["--rw=write", "--bs=1M", "--iodepth=8"]),
    // Each place of the disk once; in the first round there is nothing yet.
    ("first writes, depth 16", &["--rw=randwrite", "--bs=64k", "--iodepth=16"]),
    (
        "a flush after each write",
        &["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1", "--io_size=512k"],
    ),
    ("random sizes", &["--rw=randwrite", "--bsrange=512-131072", "--iodepth=8", "--io_size=16M"]),
    ("trims", &["--rw=randtrimwrite", "--bs=64k", "--iodepth=4"]),
];

/// One test at a time: they are to meet their own operations, not each other.
static ALONE: Mutex<()> = Mutex::new(());

fn number(variable: &str, otherwise: u64) -> u64 {
    let given = std::env::var(variable).ok();
    given.map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

#[test]
fn what_a_process_serves_reads_back_whatever_it_is_told_meanwhile() {
    // Every other one, beginning with either: all of them are in the other test.
    let half = |index, seed| (index + seed) % 2 == 0;
    stressed(half, process::Disk::start, process::Disk::uri, process::Disk::compare, process::ALL);
}

#[test]
fn a_disk_reads_back_through_snapshots_merges_and_mirrors() {
    let all = |_, _| true;
    stressed(all, library::Disk::start, library::Disk::uri, library::Disk::compare, library::ALL);
}

type Operation<D> = (&'static str, fn(&mut D, &mut Random));

fn stressed<D: Send>(
    is_wanted: fn(u64, u64) -> bool,
    start: fn() -> D,
    uri: fn(&D) -> String,
    compare: fn(D),
    operations: &[Operation<D>],
) {
    let _alone = ALONE.lock();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number("STRESS_SEED", u64::from(now.subsec_nanos()));
    let all = Duration::from_secs(number("STRESS_SECONDS", SECONDS));
    println!("STRESS_SEED={seed}");
    let wanted = (0..).zip(WORKLOADS).filter(|(index, _)| is_wanted(*index, seed));
    let share = all / u32::try_from(wanted.clone().count()).unwrap();
    for (index, (name, words)) in wanted {
        let mut random = Random::new(seed.wrapping_add(index));
        let mut disk = start();
        let stop = AtomicBool::new(false);
        let uri = uri(&disk);
        let fio_seed = random.next();
        let (history, rounds) = std::thread::scope(|scope| {
            let changes = scope.spawn(|| some(&mut disk, operations, &mut random, &stop));
            let result = verified(&uri, words, fio_seed, share, &changes);
            stop.store(true, Ordering::Relaxed);
            let history = changes.join().unwrap();
            let rounds = result.unwrap_or_else(|why| {
                panic!("{name}, STRESS_SEED={seed}: {why}\nmeanwhile: {}", history.join(", "))
            });
            (history, rounds)
        });
        println!("{name}: {rounds} rounds, {} operations: {}", history.len(), history.join(", "));
        compare(disk);
    }
}

/// Does each operation once, then random ones, with short breaks, until it is told to stop. Answers
/// their names.
fn some<D>(
    disk: &mut D,
    operations: &[Operation<D>],
    random: &mut Random,
    stop: &AtomicBool,
) -> Vec<&'static str> {
    let mut history = Vec::new();
    while history.len() < operations.len() || !stop.load(Ordering::Relaxed) {
        let index = match operations.get(history.len()) {
            Some(_) => history.len(),
            None => random.below(operations.len() as u64) as usize,
        };
        let (name, operation) = operations[index];
        operation(disk, random);
        history.push(name);
        std::thread::sleep(Duration::from_millis(random.below(100)));
    }
    history
}

/// Rounds of writing and verifying for a time, and as long as the first operations take, so that
/// each of them meets a load. Answers how many.
fn verified<T>(
    uri: &str,
    words: &[&str],
    seed: u64,
    time: Duration,
    changes: &std::thread::ScopedJoinHandle<'_, T>,
) -> Result<u64, String> {
    let end = Instant::now() + time;
    let mut rounds = 0;
    loop {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", "120", "fio", "--name=stress", "--ioengine=nbd"]);
        command.args(["--thread", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1"]);
        // A trim and a write of the same place, on their way at the same time, may come in any order.
        command.args(["--verify_state_save=0", "--serialize_overlap=1"]);
        command.arg(format!("--uri={uri}")).arg(format!("--size={SIZE}"));
        // As many numbers as `fio` takes.
        command.arg(format!("--randseed={}", (seed + rounds) & 0xffff_ffff)).args(words);
        let output = ended(&mut command);
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        // A line for each job tells its error; without one it has not come to its end.
        let errors: Vec<_> = said.match_indices("err=").map(|(at, _)| &said[at..at + 6]).collect();
        let clean = !errors.is_empty() && errors.iter().all(|error| *error == "err= 0");
        if !output.status.success() || !clean || said.contains("verify:") {
            return Err(format!("round {rounds}: {}: {said}", output.status));
        }
        rounds += 1;
        // A panic of the other thread is told by its join.
        if Instant::now() > end || changes.is_finished() {
            return Ok(rounds);
        }
    }
}

/// Runs a program to its end.
fn ended(command: &mut Command) -> Output {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    let text = words.join(" ");
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// Numbers that can be had again: xorshift64.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
