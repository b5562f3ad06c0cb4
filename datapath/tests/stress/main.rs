//! Disks that are written and verified by a real client while everything is changed underneath.
//!
//! Each workload has a new disk. `fio` writes and reads back with checksums, again and again, and
//! meanwhile operations of [`operations::ALL`] are done to the disk in random order. At the end the
//! disk as its clients saw it is compared with its images as they lie there, byte by byte, and the
//! images are checked. `STRESS_SECONDS=3600 STRESS_SEED=7 cargo test -p datapath --test stress`
//! runs it longer, and again with the same choices.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails so")]

mod disk;
mod operations;

use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use disk::{Disk, SIZE};

/// Time for all workloads together, when nothing else is said.
const SECONDS: u64 = 45;

/// What `fio` does in a round, beside verifying it.
const WORKLOADS: &[(&str, &[&str])] = &[
    ("random 4 KiB", &["--rw=randwrite", "--bs=4k", "--iodepth=16", "--io_size=32M"]),
    ("random sizes", &["--rw=randwrite", "--bsrange=512-131072", "--iodepth=8", "--io_size=48M"]),
    ("sequential", &["--rw=write", "--bs=1M", "--iodepth=8"]),
    (
        "four connections",
        &[
            "--rw=randwrite",
            "--bs=4k",
            "--iodepth=8",
            "--numjobs=4",
            "--size=25%",
            "--offset_increment=25%",
        ],
    ),
    ("flushes", &["--rw=randwrite", "--bs=8k", "--iodepth=4", "--fsync=4", "--io_size=8M"]),
    ("reads between", &["--rw=randrw", "--bs=4k", "--iodepth=16", "--rwmixread=70"]),
    ("trims", &["--rw=randtrimwrite", "--bs=64k", "--iodepth=4"]),
];

fn number(variable: &str, otherwise: u64) -> u64 {
    let given = std::env::var(variable).ok();
    given.map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

#[test]
fn everything_reads_back_while_the_disk_is_changed_underneath() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number("STRESS_SEED", u64::from(now.subsec_nanos()));
    let all = Duration::from_secs(number("STRESS_SECONDS", SECONDS));
    println!("STRESS_SEED={seed}");
    let share = all / u32::try_from(WORKLOADS.len()).unwrap();
    for (index, (name, words)) in WORKLOADS.iter().enumerate() {
        let mut random = Random::new(seed.wrapping_add(index as u64));
        let mut disk = Disk::start();
        let stop = AtomicBool::new(false);
        let uri = disk.uri();
        let fio_seed = random.next();
        let (history, rounds) = std::thread::scope(|scope| {
            let changes = scope.spawn(|| operations::some(&mut disk, &mut random, &stop));
            let result = verified(&uri, words, fio_seed, share);
            stop.store(true, Ordering::Relaxed);
            let history = changes.join().unwrap();
            let rounds = result.unwrap_or_else(|why| {
                panic!("{name}, STRESS_SEED={seed}: {why}\nmeanwhile: {}", history.join(", "))
            });
            (history, rounds)
        });
        println!("{name}: {rounds} rounds, {} operations: {}", history.len(), history.join(", "));
        assert!(!history.is_empty(), "{name}: nothing was done to the disk");
        disk.compare();
    }
}

/// Rounds of writing and verifying for a time; at least one. Answers how many.
fn verified(uri: &str, words: &[&str], seed: u64, time: Duration) -> Result<u64, String> {
    let end = Instant::now() + time;
    let mut rounds = 0;
    loop {
        let mut command = Command::new("timeout");
        command.args(["--signal=KILL", "120", "fio", "--name=stress", "--ioengine=nbd"]);
        command.args(["--thread", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1"]);
        command.arg(format!("--uri={uri}")).arg(format!("--size={SIZE}"));
        // As many numbers as `fio` takes.
        command.arg(format!("--randseed={}", (seed + rounds) & 0xffff_ffff)).args(words);
        let output = ended(&mut command);
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        // It counts a mismatch as an error of the job and may end with success all the same.
        if !output.status.success()
            || said.contains("verify:")
            || said.contains("err=") && !said.contains("err= 0")
        {
            return Err(format!("round {rounds}: {}: {said}", output.status));
        }
        rounds += 1;
        if Instant::now() > end {
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
