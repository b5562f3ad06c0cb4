//! Many threads on one disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use datapath::disk::{Drive, Format, Options, Plan};
use datapath::export::{Export, Zeroes};

use crate::files::{Rng, layer, new_image, options, plan, soon, sound};

const SIZE: u64 = 32 << 20;
const BLOCK: u64 = 4096;
const READERS: u64 = 2;

/// Ends the others also when this thread fails, which would wait for them.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Says where it belongs and when it was written.
fn stamped(block: u64, generation: u64) -> Vec<u8> {
    let mut bytes = vec![generation as u8; BLOCK as usize];
    for sector in bytes.chunks_mut(512) {
        sector[..8].copy_from_slice(&block.to_be_bytes());
        sector[8..16].copy_from_slice(&generation.to_be_bytes());
    }
    bytes
}

/// The generation of each sector of a block; 0 for zeros.
fn generations(block: u64, bytes: &[u8]) -> Vec<u64> {
    let of = |sector: &[u8]| {
        if vhd::copy::is_zero(sector) {
            return 0;
        }
        let generation = u64::from_be_bytes(sector[8..16].try_into().unwrap());
        assert_eq!(u64::from_be_bytes(sector[..8].try_into().unwrap()), block, "of elsewhere");
        assert!(sector[16..].iter().all(|byte| *byte == generation as u8), "torn");
        generation
    };
    bytes.chunks(512).map(of).collect()
}

/// Readers, writers and zeroers at once, with the leaf exchanged for a new one every now and then;
/// each block has one writer, so a reader can tell what it must find.
fn storm(direct: bool, rounds: u64) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let first = new_image(dir.path(), 1, SIZE, None);
    let mut chain = vec![first];
    let options = Options { direct, memory: 256 << 10, ..options(dir.path()) };
    let drive = Drive::open(&plan(&chain), options.clone()).unwrap();
    let blocks = SIZE / BLOCK;
    // Begun and ended: a block holds a generation between the two. Zeros have odd ones.
    let begun: Vec<AtomicU64> = (0..blocks).map(|_| AtomicU64::new(0)).collect();
    let ended: Vec<AtomicU64> = (0..blocks).map(|_| AtomicU64::new(0)).collect();
    let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    let seed = Rng::any().next();
    std::thread::scope(|scope| {
        let (drive, begun, ended, stop, reads) = (&drive, &begun, &ended, &stop, &reads);
        let _stops = Stops(stop);
        for writer in 0..3_u64 {
            scope.spawn(move || {
                let mut rng = Rng::new(seed + writer);
                while !stop.load(Ordering::SeqCst) {
                    let block = rng.below(blocks / 3) * 3 + writer;
                    if block >= blocks {
                        continue;
                    }
                    let generation = begun[block as usize].load(Ordering::SeqCst) + 1;
                    begun[block as usize].store(generation, Ordering::SeqCst);
                    if generation % 4 == 3 {
                        let at = block * BLOCK;
                        if rng.below(2) == 0 {
                            drive.write_zeroes(at, BLOCK, Zeroes::default()).unwrap();
                        } else {
                            drive.trim(at, BLOCK, false).unwrap();
                        }
                    } else {
                        drive.write(block * BLOCK, &stamped(block, generation), false).unwrap();
                    }
                    ended[block as usize].store(generation, Ordering::SeqCst);
                    if rng.below(200) == 0 {
                        drive.flush().unwrap();
                    }
                }
            });
        }
        for reader in 0..READERS {
            scope.spawn(move || {
                let mut rng = Rng::new(seed + 100 + reader);
                let mut buf = vec![0; 16 * BLOCK as usize];
                while !stop.load(Ordering::SeqCst) {
                    let block = rng.below(blocks - 16);
                    let count = 1 + rng.below(16);
                    let buf = &mut buf[..(count * BLOCK) as usize];
                    let before: Vec<u64> = (block..block + count)
                        .map(|block| ended[block as usize].load(Ordering::SeqCst))
                        .collect();
                    drive.read(block * BLOCK, buf).unwrap();
                    for (index, bytes) in buf.chunks(BLOCK as usize).enumerate() {
                        let block = block + index as u64;
                        let last = begun[block as usize].load(Ordering::SeqCst);
                        for found in generations(block, bytes) {
                            let zeros = || (before[index]..=last).any(|of| of % 4 == 3 || of == 0);
                            let may = if found == 0 {
                                zeros()
                            } else {
                                (before[index]..=last).contains(&found)
                            };
                            assert!(may, "block {block}: {found}, {}..={last}", before[index]);
                        }
                    }
                    reads.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let until = soon() + std::time::Duration::from_secs(120);
        for round in 0..rounds {
            // Something happens between two pauses.
            let before = reads.load(Ordering::SeqCst);
            while reads.load(Ordering::SeqCst) < before + 30 {
                assert!(Instant::now() < until, "nobody reads any more");
                std::thread::yield_now();
            }
            let number = 2 + u128::from(round);
            let parent = chain[0].clone();
            let new = new_image(dir.path(), number, SIZE, Some((number - 1, &parent)));
            chain.insert(0, new);
            let prepared = drive.prepare(&plan(&chain)).unwrap();
            let paused = drive.pause(soon()).unwrap();
            let quiet = reads.load(Ordering::SeqCst);
            let old = vhd::Image::open(&parent, vhd::Mode::Read).unwrap();
            // All that was answered is in the file by now.
            drop(old);
            paused.replace(prepared).unwrap();
            // A reader counts when it has looked at what it read: of each, one read that ended before the
            // pause may be counted in it.
            let late = reads.load(Ordering::SeqCst) - quiet;
            assert!(late <= READERS, "{late} requests ended in a pause");
        }
    });
    let check = |drive: &Drive| {
        for block in 0..blocks {
            let mut buf = vec![0; BLOCK as usize];
            drive.read(block * BLOCK, &mut buf).unwrap();
            let last = ended[block as usize].load(Ordering::SeqCst);
            let want = if last % 4 == 3 || last == 0 { 0 } else { last };
            assert_eq!(generations(block, &buf), [want; 8], "block {block}");
        }
    };
    check(&drive);
    // Killed, in effect; then ended in order.
    drop(drive);
    let drive = Drive::open(&plan(&chain), options.clone()).unwrap();
    check(&drive);
    drive.close(soon()).unwrap();
    for path in &chain {
        sound(path);
    }
    let drive = Drive::open(&plan(&chain), options).unwrap();
    check(&drive);
}

#[test]
fn every_reader_finds_what_was_answered_while_leaves_are_exchanged() {
    storm(false, 8);
}

#[test]
fn so_it_does_past_the_page_cache() {
    storm(true, 6);
}

/// Threads that write to different bytes of the same sectors, while others write whole sectors
/// beside them: each finds its own bytes in the end.
fn neighbours(drive: &Arc<Drive>) {
    let threads = 4;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let mut rng = Rng::new(thread + 1);
                for step in 0..300_u64 {
                    // Sectors 0 to 31 by bytes, from 32 on whole ones, in the same pages.
                    let sector = rng.below(32);
                    let at = sector * 512 + thread * 128;
                    drive.write(at, &[(step % 250) as u8 + 1; 100], false).unwrap();
                    let mut buf = [0; 128];
                    drive.read(at, &mut buf).unwrap();
                    assert!(buf[..100].iter().all(|byte| *byte == (step % 250) as u8 + 1));
                    assert!(buf[100..].iter().all(|byte| *byte == 0), "bytes of nobody");
                    let whole = (33 + rng.below(30) * 4 + thread) * 512;
                    drive.write(whole, &[thread as u8 + 1; 512], false).unwrap();
                    let mut buf = [0; 512];
                    drive.read(whole, &mut buf).unwrap();
                    assert_eq!(buf, [thread as u8 + 1; 512]);
                }
            });
        }
    });
}

#[test]
fn neighbours_in_one_sector_do_not_lose_each_others_bytes() {
    for direct in [false, true] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let leaf = new_image(dir.path(), 1, 4 << 20, None);
        let options = Options { direct, ..options(dir.path()) };
        let drive = Drive::open(&plan(&[leaf]), options.clone()).unwrap();
        neighbours(&drive);
        drive.close(soon()).unwrap();

        let path = dir.path().join("x.raw");
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        let raw = Plan { leaf: layer(&path, Format::Raw), backing: Vec::new(), read_only: false };
        neighbours(&Drive::open(&raw, options).unwrap());
    }
}

/// One thread writes whole pages, another a few bytes in each at the same time: whatever comes
/// last there, the rest of the page is what the first one has written.
#[test]
fn a_part_of_a_page_does_not_bring_back_what_was_beside_it() {
    for direct in [false, true] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let leaf = new_image(dir.path(), 1, 4 << 20, None);
        let options = Options { direct, ..options(dir.path()) };
        let drive = Drive::open(&plan(&[leaf]), options).unwrap();
        let together = std::sync::Barrier::new(2);
        // Told at the end: one that fails in between would leave the other waiting.
        let mut wrong = Vec::new();
        std::thread::scope(|scope| {
            let (drive, together) = (&drive, &together);
            scope.spawn(move || {
                for _ in 0..1500 {
                    together.wait();
                    let written = drive.write(4096 + 5, &[255; 3], false);
                    together.wait();
                    written.unwrap();
                }
            });
            for round in 0..1500_u64 {
                let generation = (round % 250) as u8;
                together.wait();
                let written = drive.write(4096, &[generation; 4096], false);
                together.wait();
                let mut page = [0; 4096];
                let read = drive.read(4096, &mut page);
                let is_wrong = |(at, byte): &(usize, &u8)| {
                    **byte != generation && !((5..8).contains(at) && **byte == 255)
                };
                if written.is_err()
                    || read.is_err()
                    || page.iter().enumerate().any(|b| is_wrong(&b))
                {
                    wrong
                        .push((round, page.iter().enumerate().find(is_wrong).map(|b| (b.0, *b.1))));
                }
            }
        });
        assert!(wrong.is_empty(), "direct: {direct}, in rounds, byte and what it is: {wrong:?}");
        drive.close(soon()).unwrap();
    }
}
