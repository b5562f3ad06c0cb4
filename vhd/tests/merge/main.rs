//! Merging an image into its parent, against a model in memory; stopped, cut and failing at every
//! write.
//!
//! The law: at any cut the child over its parent reads as before, both footers of the parent are
//! there, and the merge can go on from where it was last told to be; then the parent alone reads
//! as both did.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;
mod family;
mod memory;

use std::ops::ControlFlow;

use common::{Content, Random};
use family::{Family, Kind, make};
use memory::{Change, Memory};
use uuid::Uuid;
use vhd::chain::Level;
use vhd::image::{NewImage, ParentLink, create};
use vhd::merge::{Options, Step, covered_bytes, merge, merge_bytes};
use vhd::store::Blob;
use vhd::{Chain, Disk, Error, Image, Mode};

const SECTOR: u64 = 512;

fn go(_: Step) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn chain(files: &[Memory]) -> Chain {
    let levels = files.iter().map(|file| Ok(Level::Vhd(Box::new(file.open(Mode::Read)))));
    Chain::of(levels).unwrap()
}

fn all(disk: &dyn Disk) -> Vec<u8> {
    let mut buf = vec![0xee; disk.size() as usize];
    disk.read_at(0, &mut buf).unwrap();
    buf
}

#[track_caller]
fn reads(files: &[Memory], model: &[u8], what: &str) {
    let found = all(&chain(files));
    if found != model {
        let at = found.iter().zip(model).position(|(found, want)| found != want);
        panic!(
            "{what}: {} bytes of {}, differ at {at:?}: {:?} instead of {:?}",
            found.len(),
            model.len(),
            at.map(|at| found[at]),
            at.map(|at| model[at])
        );
    }
}

/// A parent as large as the child, before a merge.
fn grown(files: &[Memory]) {
    let child = files[0].open(Mode::Read);
    let parent = files[1].open(Mode::Write);
    parent.grow(child.size()).unwrap();
    files[1].log.lock().unwrap().clear();
}

/// The parent, in a file or on a volume with what earlier users have left there. Whether the
/// latter.
fn placed(random: &mut Random, family: &Family, files: &mut [Memory]) -> bool {
    grown(files);
    let on = family.made[1].spec.kind != 2 && random.below(3) == 0;
    if on {
        let plain = files[1].content();
        let trial = [files[0].clone(), Memory::new(2, plain.clone())];
        let (child, parent) = (trial[0].open(Mode::Read), trial[1].open(Mode::Write));
        merge(&child, &parent, 0, &Options::default(), &mut go).unwrap();
        // A cut may leave the places of a batch unused between blocks that were published.
        let length = trial[1].content().length * 2;
        files[1] = Memory::volume(on_volume(&plain, length));
    }
    on
}

fn options(random: &mut Random) -> Options {
    Options { batch: [0, 1, 4096, 100_000, 256 << 20][random.below(5) as usize] }
}

#[test]
fn the_parent_reads_as_both_did() {
    let mut random = Random::new();
    for _ in 0..150 {
        let seed = random.0;
        let family = Family::random(&mut random, 1 << 20);
        let model = family.model();
        let files = family.files();
        let what = format!("seed {seed}");
        reads(&files, &model, &what);
        grown(&files);
        let (child, parent) = (files[0].open(Mode::Read), files[1].open(Mode::Write));
        let held = family.made[0].sectors.iter().flatten().count() as u64 * SECTOR;
        let both = family.made[0].sectors.iter().zip(&family.made[1].sectors);
        let both = match family.made[1].spec.kind {
            // Grown: it holds every sector.
            2 => held,
            _ => both.filter(|(a, b)| a.is_some() && b.is_some()).count() as u64 * SECTOR,
        };
        assert_eq!(merge_bytes(&child).unwrap(), held, "{what}");
        assert_eq!(covered_bytes(&child, &parent).unwrap(), both, "{what}");
        let mut told = Vec::new();
        let step = merge(&child, &parent, 0, &options(&mut random), &mut |step| {
            // As durable as it is said to be.
            assert!(matches!(files[1].log.lock().unwrap().last(), Some(Change::Sync)));
            told.push(step);
            ControlFlow::Continue(())
        });
        let step = step.unwrap();
        assert_eq!(step.bytes, held, "{what}");
        assert!(told.is_sorted_by_key(|step| (step.next_block, step.bytes)));
        drop((child, parent));
        reads(&files, &model, &what);
        reads(&files[1..], &model, &what);
        files[1].sound(&what);
    }
}

#[test]
fn a_merge_can_be_stopped_and_resumed_after_each_batch() {
    let mut random = Random::new();
    for _ in 0..40 {
        let seed = random.0;
        let what = format!("seed {seed}");
        let family = Family::random(&mut random, 1 << 20);
        let (model, files) = (family.model(), family.files());
        grown(&files);
        let options = Options { batch: 1 + random.below(100_000) };
        let mut next = 0;
        for round in 0.. {
            assert!(round < 10_000, "{what}: no end");
            let (child, parent) = (files[0].open(Mode::Read), files[1].open(Mode::Write));
            let result = merge(&child, &parent, next, &options, &mut |step| {
                assert!(step.next_block > next, "{what}");
                next = step.next_block;
                ControlFlow::Break(())
            });
            drop((child, parent));
            if round % 7 == 0 || result.is_ok() {
                reads(&files, &model, &what);
                files[1].sound(&what);
            }
            match result {
                Ok(step) => {
                    assert!(step.next_block >= next && step.bytes == 0, "{what}");
                    break;
                }
                Err(Error::Stopped { .. }) => {}
                Err(error) => panic!("{what}: {error}"),
            }
        }
        reads(&files[1..], &model, &what);
    }
}

/// What is left of a file when power goes: all up to the last sync, and of what came after it any
/// sectors.
fn after_power_cut(random: &mut Random, before: &Content, log: &[Change]) -> Content {
    let synced = log.iter().rposition(|change| matches!(change, Change::Sync)).unwrap_or(0);
    let mut content = before.clone();
    let keep = random.below(4);
    for (index, change) in log.iter().enumerate() {
        match change {
            Change::Write(at, bytes) if index < synced => content.put(*at, bytes),
            Change::Write(at, bytes) => {
                let mut at = *at;
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let (sector, tail) = rest.split_at(rest.len().min(512 - at as usize % 512));
                    let kept = match keep {
                        0 => random.below(8) == 0,
                        1 => random.below(8) != 0,
                        2 => (index as u64).is_multiple_of(2),
                        _ => random.below(2) == 0,
                    };
                    if kept {
                        content.put(at, sector);
                    }
                    at += sector.len() as u64;
                    rest = tail;
                }
            }
            Change::Length(length) if index < synced || random.below(2) == 0 => {
                content.set_length(*length);
            }
            Change::Length(_) | Change::Sync => {}
        }
    }
    content
}

/// The chain is as it was, the parent is sound, and the merge can go on.
fn survives(files: &[Memory], cut: Content, model: &[u8], next: u64, what: &str) {
    let mut files = files.to_vec();
    files[1] = Memory { volume: files[1].volume, ..Memory::new(2, cut) };
    files[1].sound(what);
    reads(&files, model, what);
    let (child, parent) = (files[0].open(Mode::Read), files[1].open(Mode::Write));
    merge(&child, &parent, next, &Options { batch: 50_000 }, &mut go).unwrap();
    drop((child, parent));
    files[1].sound(what);
    reads(&files[1..], model, what);
}

#[test]
fn a_cut_at_any_write_changes_nothing() {
    let mut random = Random::new();
    let mut cuts = 0;
    while cuts < 1500 {
        let seed = random.0;
        let family = Family::random(&mut random, 200 << 10);
        let (model, mut files) = (family.model(), family.files());
        let volume = placed(&mut random, &family, &mut files);
        let before = files[1].content();
        let (child, parent) = (files[0].open(Mode::Read), files[1].open(Mode::Write));
        let options = Options { batch: 1 + random.below(100_000) };
        // How many changes there were when a step was told.
        let mut told = vec![(0, 0)];
        merge(&child, &parent, 0, &options, &mut |step| {
            told.push((files[1].log.lock().unwrap().len(), step.next_block));
            ControlFlow::Continue(())
        })
        .unwrap();
        drop((child, parent));
        let log = files[1].log.lock().unwrap().clone();
        for end in 0..=log.len() {
            if log.len() > 100 && random.below(log.len() as u64) > 100 {
                continue;
            }
            let next = told.iter().rev().find(|(changes, _)| *changes <= end).unwrap().1;
            let what = format!("seed {seed}, volume {volume}, {end} of {} changes", log.len());
            let mut killed = before.clone();
            for change in &log[..end] {
                match change {
                    Change::Write(at, bytes) => killed.put(*at, bytes),
                    Change::Length(length) => killed.set_length(*length),
                    Change::Sync => {}
                }
            }
            survives(&files, killed, &model, next, &format!("{what}, killed"));
            for round in 0..2 {
                let cut = after_power_cut(&mut random, &before, &log[..end]);
                survives(&files, cut, &model, next, &format!("{what}, power, {round}"));
                cuts += 1;
            }
        }
    }
}

#[test]
fn a_full_storage_changes_nothing() {
    let mut random = Random::new();
    let (mut failed, mut given_back) = (0, false);
    while failed < 600 {
        let seed = random.0;
        let family = Family::random(&mut random, 200 << 10);
        let model = family.model();
        let options = Options { batch: 1 + random.below(100_000) };
        for write in 0.. {
            let mut files = family.files();
            let volume = placed(&mut random, &family, &mut files);
            let before = files[1].content();
            let (child, parent) = (files[0].open(Mode::Read), files[1].open(Mode::Write));
            let often = if random.below(2) == 0 { 1 } else { usize::MAX };
            *files[1].fails.lock().unwrap() = Some((write, often));
            let mut next = 0;
            let result = merge(&child, &parent, 0, &options, &mut |step| {
                next = step.next_block;
                ControlFlow::Continue(())
            });
            *files[1].fails.lock().unwrap() = None;
            let what = format!("seed {seed}, volume {volume}, write {write}");
            let Err(error) = result else { break };
            assert!(error.is_no_space(), "{what}: {error}");
            failed += 1;
            let behind = |change: &Change| match change {
                Change::Write(at, bytes) => at + bytes.len() as u64 > before.length,
                _ => false,
            };
            // The footer behind the new blocks, and at least a part of one of them.
            let begun = files[1].log.lock().unwrap().iter().filter(|c| behind(c)).count() > 1;
            given_back |= begun && files[1].content().length == before.length;
            // By this process, which has the image open, ...
            let levels = [Ok(Level::Vhd(Box::new(child))), Ok(Level::Vhd(Box::new(parent)))];
            let rest =
                files[2..].iter().map(|file| Ok(Level::Vhd(Box::new(file.open(Mode::Read)))));
            let found = all(&Chain::of(levels.into_iter().chain(rest)).unwrap());
            assert!(found == model, "{what}");
            // ... by the next one, and after a power cut; each can go on.
            let log = files[1].log.lock().unwrap().clone();
            survives(&files, files[1].content(), &model, next, &what);
            for _ in 0..4 {
                let tail = log.len() - random.below(6).min(log.len() as u64) as usize;
                let next = if tail == log.len() { next } else { 0 };
                let cut = after_power_cut(&mut random, &before, &log[..tail]);
                survives(&files, cut, &model, next, &format!("{what}, power"));
            }
            if random.below(2) == 0 {
                // The same open image, once there is space again.
                let (child, parent) = (files[0].open(Mode::Read), files[1].open(Mode::Write));
                *files[1].fails.lock().unwrap() = Some((write / 2, 1 + random.below(4) as usize));
                let first = merge(&child, &parent, next, &options, &mut go);
                *files[1].fails.lock().unwrap() = None;
                if first.is_err() {
                    merge(&child, &parent, next, &options, &mut go).unwrap();
                }
                drop((child, parent));
                files[1].sound(&what);
                reads(&files[1..], &model, &what);
            }
        }
    }
    assert!(given_back, "no file became as short as it was");
}

/// The same image on a volume of that length, whose free part holds anything.
fn on_volume(file: &Content, length: u64) -> Content {
    let footer_at = file.length - 512;
    let mut content = Content::default();
    content.put(0, &file.bytes(0, footer_at as usize));
    content.put(footer_at, &vec![0xcc; (length - 512 - footer_at) as usize]);
    content.put(length - 512, &file.bytes(footer_at, 512));
    content
}

#[test]
fn a_volume_that_is_too_small_is_refused_before_anything_is_changed() {
    let mut random = Random::new();
    let mut refused = 0;
    while refused < 30 {
        let seed = random.0;
        let what = format!("seed {seed}");
        let family = Family::random(&mut random, 200 << 10);
        if family.made[1].spec.kind == 2 {
            continue;
        }
        let model = family.model();
        let mut files = family.files();
        grown(&files);
        let plain = files[1].content();
        files[1] = Memory::volume(on_volume(&plain, plain.length));
        let options = options(&mut random);
        let (child, parent) = (files[0].open(Mode::Read), files[1].open(Mode::Write));
        let result = merge(&child, &parent, 0, &options, &mut go);
        drop((child, parent));
        if let Err(error) = result {
            let Error::VolumeFull { needed, .. } = error else { panic!("{what}: {error}") };
            assert!(files[1].log.lock().unwrap().is_empty(), "{what}");
            assert!(needed > plain.length, "{what}");
            files[1] = Memory::volume(on_volume(&plain, needed));
            let (child, parent) = (files[0].open(Mode::Read), files[1].open(Mode::Write));
            merge(&child, &parent, 0, &options, &mut go).unwrap();
            refused += 1;
        }
        files[1].sound(&what);
        reads(&files, &model, &what);
        reads(&files[1..], &model, &what);
    }
}

/// Files of a file system: holes, pieces inside blocks, zeros over the parent's data.
#[test]
fn a_merge_takes_no_more_space_than_its_data() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let (base, leaf) = (dir.path().join("base.vhd"), dir.path().join("leaf.vhd"));
    let size = 96 << 20;
    let link = ParentLink { uuid: Uuid::from_u128(1), name: "base.vhd".to_owned() };
    for (path, number, parent) in [(&base, 1, None), (&leaf, 2, Some(link))] {
        create(path, &NewImage { uuid: Uuid::from_u128(number), size, parent }).unwrap();
    }
    let mut model = vec![0; size as usize];
    let mut put = |image: &Image, at: usize, length: usize, byte: u8| {
        image.write_at(at as u64, &vec![byte; length]).unwrap();
        model[at..at + length].fill(byte);
    };
    {
        let (parent, child) =
            (Image::open(&base, Mode::Write).unwrap(), Image::open(&leaf, Mode::Write).unwrap());
        // 32 MiB of the parent's, of which 16 MiB become zeros.
        put(&parent, 0, 32 << 20, 1);
        put(&child, 0, 16 << 20, 0);
        // Pieces over nothing, and over the parent's.
        for at in (24 << 20..72 << 20).step_by(128 << 10) {
            put(&child, at, 64 << 10, (at >> 17) as u8);
        }
        // Whole blocks, and sectors.
        put(&child, 76 << 20, 12 << 20, 7);
        for at in (90 << 20..96 << 20).step_by(64 << 10) {
            put(&child, at + 512, 512, 9);
            put(&child, at + 2048, 1024, 10);
        }
    }
    let file = std::fs::OpenOptions::new().write(true).open(&leaf).unwrap();
    let image = Image::open(&leaf, Mode::Read).unwrap();
    for run in image.map(0, 16 << 20).unwrap() {
        // As a guest's discard does.
        file.punch(run.at.unwrap(), run.length).unwrap();
    }
    let parent = Image::open(&base, Mode::Write).unwrap();
    let mut steps = 0;
    merge(&image, &parent, 0, &Options { batch: 16 << 20 }, &mut |_| {
        steps += 1;
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(steps >= 3, "{steps}");
    drop((image, parent));
    let merged = Image::open(&base, Mode::Read).unwrap();
    assert!(all(&merged) == model);
    // 16 MiB of the parent's own, of which pieces replaced some; pieces; whole blocks; sectors.
    let data = (16 << 20) + (20 << 20) + (12 << 20) + 96 * 4096;
    let taken = std::fs::metadata(&base).unwrap().blocks() * 512;
    assert!(taken <= data * 21 / 20, "{taken} bytes for {data}");
    assert!(vhd::check::check_image(&base).is_empty());
    let (ok, text) = common::vhdiinfo(&base);
    assert!(ok, "{text}");
    let raw = dir.path().join("raw");
    let [from, to] = [&base, &raw].map(|path| path.to_str().unwrap());
    let (ok, text) = common::qemu_img(&["convert", "-f", "vpc", "-O", "raw", from, to]);
    assert!(ok && std::fs::read(raw).unwrap() == model, "{text}");
}

#[test]
fn what_cannot_be_merged_is_refused() {
    let mut random = Random::new();
    let parent = make(&mut random, 1, Kind::Dynamic, 64 << 10, None);
    let child = make(&mut random, 2, Kind::Dynamic, 128 << 10, Some(&parent.spec));
    let fixed = make(&mut random, 3, Kind::Fixed, 128 << 10, None);
    let [parent, child, fixed] =
        [(1, parent), (2, child), (3, fixed)].map(|(id, made)| Memory::new(id, made.file));
    let run = |from: &Memory, to: &Memory, mode| {
        let (from, to) = (from.open(Mode::Read), to.open(mode));
        merge(&from, &to, 0, &Options::default(), &mut go).unwrap_err()
    };
    assert!(matches!(run(&child, &parent, Mode::Write), Error::OutOfRange { .. }));
    assert!(matches!(run(&parent, &child, Mode::Read), Error::ReadOnly { .. }));
    assert!(matches!(run(&fixed, &child, Mode::Write), Error::WrongType { .. }));
    assert!(matches!(run(&child, &child, Mode::Write), Error::Cycle { .. }));
    assert!(child.log.lock().unwrap().is_empty() && parent.log.lock().unwrap().is_empty());
}
