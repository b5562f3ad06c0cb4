//! Live images on a store that loses power, is killed, or runs full at any call.
//!
//! Batches of requests run on several threads at once. After each, every sector of the disk is
//! compared with what it may hold: what was answered is there, also after a kill; after a power
//! cut each sector holds what it had at the last flush or something written since, and never
//! anything else. `LIVE_SEQUENCES` says how many sequences, `LIVE_SEED` where to begin.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;
mod lab;
mod races;
#[path = "../simulated/mod.rs"]
mod simulated;

use lab::{Fault, Kind, Lab, Request, Setup};
use simulated::Rng;
use vhd::Error;

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

const KINDS: [Kind; 4] = [Kind::Dynamic, Kind::Differencing, Kind::Reversed, Kind::NoBatmap];

fn setup(rng: &mut Rng) -> Setup {
    let blocks = [512, 4096, 8192, 64 << 10, 512 << 10];
    let block = blocks[rng.below(5) as usize];
    let most = (block * 24).min(1 << 20).max(block * 2);
    Setup {
        kind: KINDS[rng.below(4) as usize],
        block: block as u32,
        sectors: (1 + rng.below(most / 512)).max(9),
        volume: rng.below(4) == 0,
        notes: rng.below(4) != 0,
    }
}

fn request(rng: &mut Rng, lab: &mut Lab) -> Request {
    let sectors = lab.setup.sectors;
    let block = u64::from(lab.setup.block) / 512;
    // Mostly near where blocks meet, and short.
    let first = match rng.below(3) {
        0 => rng.below(sectors),
        _ => (rng.below(sectors / block + 1) * block).saturating_sub(rng.below(4)),
    }
    .min(sectors - 1);
    let count = match rng.below(4) {
        0 => 1 + rng.below(block * 3),
        _ => 1 + rng.below(9),
    }
    .min(sectors - first);
    match rng.below(10) {
        0..6 => Request::Write { first, count, stamp: lab.stamp() },
        6 | 7 => Request::Zero { first, count },
        8 => Request::Read { first, count },
        _ => Request::Flush,
    }
}

fn sequence(seed: u64) {
    let mut rng = Rng::new(seed);
    let mut lab = Lab::new(setup(&mut rng), &mut rng);
    for _ in 0..=rng.below(12) {
        let threads = if rng.below(2) == 0 { 1 } else { 2 + rng.below(3) };
        let batch: Vec<Request> = (0..threads).map(|_| request(&mut rng, &mut lab)).collect();
        let call = rng.below(14);
        let fault = match rng.below(8) {
            0 => Some(Fault::Kill(call)),
            1 | 2 => Some(Fault::Cut { call, luck: rng.below(9), seed: rng.next() }),
            3 => Some(Fault::Crowded(call)),
            4 if rng.below(3) == 0 => Some(Fault::Deaf(call)),
            4 => Some(Fault::Bad(call)),
            _ => None,
        };
        lab.run(&batch, fault, &mut rng);
        if rng.below(12) == 0 {
            lab.close_and_open();
        }
    }
    lab.finish();
}

#[test]
fn whatever_happens_every_sector_holds_what_it_may() {
    let (count, seed) = (from_env("LIVE_SEQUENCES", 1500), from_env("LIVE_SEED", 1));
    println!("{count} sequences, LIVE_SEED={seed}");
    for index in 0..count {
        let seed = seed + index;
        let result = std::panic::catch_unwind(|| sequence(seed));
        assert!(result.is_ok(), "LIVE_SEED={seed} LIVE_SEQUENCES=1");
    }
}

/// One write to each kind of place, cut and killed at every call it makes, with nothing, some and
/// all of what was not synced.
#[test]
fn a_write_is_cut_at_each_of_its_calls() {
    let mut cuts = 0;
    for kind in KINDS {
        for volume in [false, true] {
            for (flushes, place) in [(true, 0), (false, 0), (true, 100), (true, 60)] {
                let setup = Setup { kind, block: 32 << 10, sectors: 640, volume, notes: true };
                for call in 0.. {
                    let mut dark = false;
                    for luck in 0..10 {
                        let mut rng = Rng::new(call * 77 + luck);
                        let mut lab = Lab::new(setup, &mut rng);
                        let write = |lab: &mut Lab, first, count| {
                            vec![Request::Write { first, count, stamp: lab.stamp() }]
                        };
                        let first = write(&mut lab, 70, 5);
                        lab.run(&first, None, &mut rng);
                        let mut batch = write(&mut lab, place, 20);
                        batch.extend(write(&mut lab, place + 120, 17));
                        // One after the other, so that the calls are the same each time.
                        let fault = match luck {
                            9 => Fault::Kill(call),
                            luck => Fault::Cut { call, luck, seed: rng.next() },
                        };
                        if flushes {
                            batch.push(Request::Flush);
                        }
                        dark |= lab.run_in_order(&batch, fault, &mut rng);
                        lab.finish();
                        cuts += 1;
                    }
                    if !dark {
                        break;
                    }
                }
            }
        }
    }
    assert!(cuts > 1000, "{cuts}");
}

#[test]
fn a_full_disk_is_told_when_the_block_is_taken_and_never_later() {
    let mut rng = Rng::new(5);
    let setup = Setup {
        kind: Kind::Differencing,
        block: 64 << 10,
        sectors: 4096,
        volume: false,
        notes: true,
    };
    for call in 0..12 {
        let mut lab = Lab::new(setup, &mut rng);
        let stamp = lab.stamp();
        lab.run(&[Request::Write { first: 0, count: 8, stamp }], None, &mut rng);
        let calls = lab.store.calls();
        lab.store.crowded_after(Some(calls + call));
        let mut failed = 0;
        for block in 1..8 {
            let stamp = lab.stamp();
            let request = Request::Write { first: block * 128 + 3, count: 8, stamp };
            failed += usize::from(!lab.run(&[request], None, &mut rng));
            // Publishing needs no space.
            assert!(lab.run(&[Request::Flush], None, &mut rng));
        }
        assert!(failed > 0 || call > 8, "the disk never was full");
        lab.store.crowded_after(None);
        let stamp = lab.stamp();
        assert!(lab.run(&[Request::Write { first: 900, count: 200, stamp }], None, &mut rng));
        lab.finish();
    }
}

#[test]
fn after_a_failed_sync_nothing_is_promised_any_more() {
    let mut rng = Rng::new(9);
    let setup = Setup { kind: Kind::Dynamic, block: 4096, sectors: 64, volume: false, notes: true };
    let lab = Lab::new(setup, &mut rng);
    let calls = lab.store.calls();
    lab.store.deaf_after(Some(calls));
    lab.leaf().write_at(0, &[1; 512]).unwrap();
    assert!(matches!(lab.leaf().flush(), Err(Error::Io { action: "sync", .. })));
    lab.store.deaf_after(None);
    assert!(lab.leaf().is_unsynced());
    assert!(matches!(lab.leaf().flush(), Err(Error::Unsynced { .. })));
    assert!(matches!(lab.leaf().write_at(0, &[1; 512]), Err(Error::Unsynced { .. })));
    assert!(matches!(lab.leaf().write_at(8192, &[1; 512]), Err(Error::Unsynced { .. })));
    assert!(matches!(lab.leaf().zero(0, 512), Err(Error::Unsynced { .. })));
    assert!(matches!(lab.leaf().close(), Err(Error::Unsynced { .. })));
    let mut buf = [0; 512];
    lab.leaf().read_at(0, &mut buf).unwrap();
    assert_eq!(buf, [1; 512]);
}

#[test]
fn notes_of_another_image_or_of_another_state_are_not_taken() {
    let mut rng = Rng::new(11);
    let setup =
        Setup { kind: Kind::Dynamic, block: 4096, sectors: 640, volume: false, notes: true };
    let lab = Lab::new(setup, &mut rng);
    lab.leaf().write_at(4096, &[1; 4096]).unwrap();
    // Somebody writes to the image who has not put the notes into it first.
    let other = lab.open_plain();
    other.write_at(8192, &[2; 4096]).unwrap();
    other.write_at(4096, &[3; 4096]).unwrap();
    other.flush().unwrap();
    let (store, boot) = (lab.store.restart(), lab.boot);
    let error = lab::open(&store, setup, boot).err().expect("refused");
    assert!(matches!(error, Error::BadNotes { .. }), "{error}");
    // The same notes with an image of another UUID.
    let error = lab::open_named(&store, "other.vhd", setup, boot).err().expect("refused");
    assert!(matches!(error, Error::OtherNotes { .. }), "{error}");
    // After a reboot they are void.
    lab::open(&store, setup, boot + 1).expect("void notes are not looked at");
}

/// A write to an image that is not live puts something into a new block, fails, and cannot even
/// take the place back: what it left must not show in a block that is made zeros.
#[test]
fn what_a_failed_write_has_left_does_not_become_part_of_a_later_block() {
    let mut rng = Rng::new(13);
    let setup =
        Setup { kind: Kind::Differencing, block: 4096, sectors: 640, volume: false, notes: false };
    for first in 1..4 {
        let lab = Lab::new(setup, &mut rng);
        let image = lab.open_plain();
        let calls = lab.store.calls();
        lab.store.bad_writes(calls + first..calls + first + 4);
        image.write_at(0, &[7; 8192]).unwrap_err();
        lab.store.bad_writes(0..0);
        image.zero(0, 8192).unwrap();
        let mut buf = [1; 8192];
        image.read_at(0, &mut buf).unwrap();
        assert_eq!(buf, [0; 8192], "writes from {first} on failed");
    }
}

/// Notes that cannot be written are no reason to refuse a write, nor to lose one.
#[test]
fn without_room_for_notes_metadata_goes_into_the_image_at_once() {
    for luck in 0..9 {
        let mut rng = Rng::new(17 + luck);
        let setup = Setup {
            kind: Kind::Differencing,
            block: 16 << 10,
            sectors: 640,
            volume: false,
            notes: true,
        };
        let mut lab = Lab::new(setup, &mut rng);
        let stamp = lab.stamp();
        assert!(lab.run(&[Request::Write { first: 0, count: 2, stamp }], None, &mut rng));
        assert!(lab.run(&[Request::Flush], None, &mut rng));
        // Data, then the note.
        let stamp = lab.stamp();
        let calls = lab.store.calls();
        lab.store.bad_writes(calls + 1..calls + 2);
        assert!(lab.run(&[Request::Write { first: 10, count: 2, stamp }], None, &mut rng));
        lab.store.bad_writes(0..0);
        // Cut right after it, or killed.
        let fault = match luck {
            8 => Fault::Kill(0),
            luck => Fault::Cut { call: 0, luck, seed: rng.next() },
        };
        lab.run(&[Request::Flush], Some(fault), &mut rng);
        lab.finish();
    }
}
