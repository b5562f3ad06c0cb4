//! A directory of images that somebody else has written: listed, each disk opened by its UUID with
//! all its parents, its extents walked, some of it read, and some written.
//!
//! No panic, no hang, no more memory than the format's limits explain; extents cover the disk;
//! what is called zero reads as zeros; what was written reads back, and changes nothing else; and
//! an image that was written to is as sound as it was.
#![no_main]

use std::path::Path;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use vhd::check::{Severity, check_blob};
use vhd::{Chain, Disk, Extent, ExtentKind, Extents, Mode, Tree};
use vhd_fuzz::input::Input;
use vhd_fuzz::memory::{Memory, Shelf};
use vhd_fuzz::{mutate, seeds};

/// Blocks of a disk beyond which an execution would only be slow.
const BLOCKS: u64 = 1 << 14;
/// Extents looked at one by one.
const LOOKED_AT: usize = 24;

fuzz_target!(
    init: {
        if let Some(dir) = seeds::wanted() {
            seeds::write(&dir);
        }
    },
    |data: &[u8]| -> () {
        let input = Input::decode(data);
        vhd_fuzz::limit_memory(32 << 20);
        let files: Vec<(String, Memory)> = input
            .files
            .iter()
            .enumerate()
            .map(|(index, file)| {
                let name = format!("{}.vhd", seeds::uuid(index));
                (name, Memory::new(file.content(), index as u64))
            })
            .collect();
        let tree = Tree::on(Box::new(Shelf { files: files.clone() }));
        let listing = tree.list().expect("one bad file is never the end of a listing");
        assert_eq!(listing.nodes.len(), files.len());
        for node in &listing.nodes {
            let _ = tree.chain(node.uuid);
            if node.virtual_size > 1 << 30 {
                continue;
            }
            if let Ok(chain) = tree.open_disk(node.uuid, Mode::Read) {
                let blocks = |info: &&vhd::Info| info.size / u64::from(info.block_size.max(512));
                if chain.info().iter().map(blocks).sum::<u64>() <= BLOCKS {
                    assert!(node.is_ok(), "{node:?}");
                    walk(&chain);
                }
            }
        }
        if input.control & 1 != 0
            && let Some(node) = listing.nodes.first()
            && node.virtual_size <= 1 << 30
            && let Ok(chain) = tree.open_disk(node.uuid, Mode::Write)
        {
            let (_, file) = &files[0];
            write(&chain, file, input.control);
        }
    }
);

fn walk(chain: &Chain) {
    let mut at = 0;
    let mut last: Option<Extent> = None;
    for (index, extent) in Extents::new(chain, 0, chain.size()).enumerate() {
        let extent = extent.expect("the image was verified when it was opened");
        assert_eq!(extent.offset, at);
        assert!(extent.length > 0);
        assert!(last.is_none_or(|last| last.kind != extent.kind));
        at += extent.length;
        last = Some(extent);
        if index < LOOKED_AT {
            let mut buf = [0xee; 1024];
            let count = extent.length.min(1024) as usize;
            for start in [extent.offset, extent.offset + extent.length - count as u64] {
                chain.read_at(start, &mut buf[..count]).expect("it is within the disk");
                let zero = buf[..count].iter().all(|byte| *byte == 0);
                assert!(extent.kind == ExtentKind::Data || zero, "{extent:?}");
            }
        }
    }
    assert_eq!(at, chain.size());
    assert!(chain.read_at(chain.size() - 1, &mut [0; 2]).is_err());
}

fn write(chain: &Chain, file: &Memory, control: u8) {
    let before = worst(file);
    let size = chain.size();
    let offset = (size / 256 * u64::from(control)).min(size - 512);
    let count = (700 + usize::from(control)).min((size - offset) as usize);
    let around = offset.saturating_sub(512)..(offset + count as u64 + 512).min(size);
    let mut old = vec![0; (around.end - around.start) as usize];
    chain.read_at(around.start, &mut old).expect("it is within the disk");
    match chain.write_at(offset, &vec![control; count]) {
        Ok(()) => {
            let at = (offset - around.start) as usize;
            old[at..at + count].fill(control);
        }
        // A file at its end; some of it may be there.
        Err(error) => {
            assert!(!error.is_corrupt(), "{error}");
            return;
        }
    }
    let mut new = vec![0; old.len()];
    chain.read_at(around.start, &mut new).expect("it is within the disk");
    assert!(old == new, "a write of {count} bytes at {offset} is not what reads back");
    assert!(worst(file) <= before, "{:?}", check_blob(file, Path::new("memory")));
}

fn worst(file: &Memory) -> Option<Severity> {
    check_blob(file, Path::new("memory")).iter().map(|finding| finding.severity).max()
}

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate::mutate(data, size, max_size, seed, &mut |part| {
        let length = part.len();
        let kept = libfuzzer_sys::fuzzer_mutate(part, length, length);
        part[kept..].fill(0);
    })
});
