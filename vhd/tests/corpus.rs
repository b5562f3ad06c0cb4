//! What the reader makes of files that change between two looks, or were damaged at random. The
//! corpus itself is in `common/cases/`, its verdicts are in `corpus_cases.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::path::{Path, PathBuf};

use common::{Spec, utf16le};
use vhd::error::Fault;
use vhd::{Chain, Disk, Error, Image, Layer, Mode};

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn read(chain: &Chain, offset: u64, length: usize) -> Vec<u8> {
    let mut buf = vec![0xee; length];
    chain.read_at(offset, &mut buf).unwrap();
    buf
}

fn open(path: &Path) -> Result<Image, Error> {
    Image::open(path, Mode::Read)
}

const MIB: u64 = 1 << 20;

#[test]
fn a_probe_states_what_is_special() {
    let dir = dir();
    let path = dir.path().join("x.vhd");
    let probe = |spec: Spec| vhd::image::probe(&spec.write(&path)).unwrap();
    // 1927 cylinders, 4 heads, 17 sectors: 63.98 MiB of 64.
    let chs = [0x07, 0x87, 4, 17];
    let info = probe(Spec { creator: *b"vpc ", geometry: chs, ..Spec::default() });
    assert_eq!((info.size, info.chs_size), (64 << 20, Some(1927 * 4 * 17 * 512)));
    assert!(probe(Spec { creator: *b"qemu", geometry: chs, ..Spec::default() }).chs_size.is_some());
    assert_eq!(probe(Spec::default()).chs_size, None);
    assert!(probe(Spec { hidden: 1, ..Spec::default() }).hidden);
    let info = probe(Spec { end: false, ..Spec::default() }.full(0, 1));
    assert!(info.needs_repair() && !info.end_footer);
    assert!(probe(Spec { copy: false, ..Spec::default() }).needs_repair());
}

#[test]
fn a_missing_footer_is_repaired_before_anything_is_written() {
    for spec in [Spec { end: false, ..Spec::default() }, Spec { copy: false, ..Spec::default() }] {
        let dir = dir();
        let path = spec.full(0, 7).write(&dir.path().join("x.vhd"));
        assert!(matches!(Image::open(&path, Mode::Write), Err(Error::NeedsRepair { .. })));
        assert!(vhd::image::repair(&path).unwrap());
        assert!(!vhd::image::repair(&path).unwrap());
        let image = Image::open(&path, Mode::Write).unwrap();
        image.write_at(4 << 20, &[3; 512]).unwrap();
        let mut buf = [0; 512];
        image.read_at(0, &mut buf).unwrap();
        assert_eq!(buf, [7; 512]);
    }
}

#[test]
fn of_two_valid_footers_the_end_counts_unless_they_are_of_different_images() {
    let dir = dir();
    let path = dir.path().join("x.vhd");
    let spec = Spec::default();
    let mut raw = spec.build();
    let hidden = Spec { hidden: 1, ..spec.clone() }.footer();
    let at = raw.len() - 512;
    raw[at..].copy_from_slice(&hidden);
    std::fs::write(&path, &raw).unwrap();
    assert!(vhd::image::probe(&path).unwrap().hidden);
    drop(Image::open(&path, Mode::Write).unwrap());
    assert!(std::fs::read(&path).unwrap()[..512] == hidden, "the copy follows");
    raw[at..].copy_from_slice(&Spec { uuid: 99, ..spec.clone() }.footer());
    std::fs::write(&path, &raw).unwrap();
    assert!(matches!(fault(&path), Fault::FootersDisagree { .. }));
    // A guest of a dynamic disk that was cut off behind its last block claims a fixed one.
    raw[at..].copy_from_slice(&Spec { kind: 2, size: 1 << 20, ..spec }.footer());
    std::fs::write(&path, &raw).unwrap();
    assert!(matches!(fault(&path), Fault::FootersDisagree { .. }));
}

fn fault(path: &Path) -> Fault {
    match open(path) {
        Err(Error::Format { fault, .. }) => fault,
        Err(other) => panic!("{}: {}", path.display(), other.reason()),
        Ok(_) => panic!("{} was accepted", path.display()),
    }
}

#[test]
fn a_footer_and_a_batmap_that_are_repaired_do_not_share_a_place() {
    let dir = dir();
    let mut spec = Spec { creator: *b"tap\0", version: 0x0001_0001, end: false, ..Spec::default() };
    let mut batmap = common::Batmap { sum_off: 1, ..common::Batmap::of(&[]) };
    // The map is the file's last sector, and looks like what is left of a footer.
    batmap.map[68..84].copy_from_slice(&spec.uuid.to_be_bytes());
    spec.batmap = Some(batmap);
    let path = spec.write(&dir.path().join("x.vhd"));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 3072);
    let repair = vhd::repair::repair(&path).unwrap();
    assert!(!repair.refused && repair.after.is_empty(), "{repair:?}");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 3584);
    assert!(vhd::check::check_image(&path).is_empty());
    Image::open(&path, Mode::Write).unwrap();
}

#[test]
fn one_repair_is_enough_of_a_file_that_is_cut_off_inside_a_sector() {
    let dir = dir();
    // Its last sector, but for one byte, is room for the batmap.
    let (creator, end, blocks_at) = (*b"tap\0", false, Some(3072));
    let spec = Spec { creator, version: 0x0001_0003, end, blocks_at, cut: 1, ..Spec::default() };
    let path = spec.write(&dir.path().join("x.vhd"));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 3071);
    let repair = vhd::repair::repair(&path).unwrap();
    assert!(!repair.refused && repair.after.is_empty(), "{repair:?}");
    assert!(vhd::repair::repair(&path).unwrap().steps.is_empty());
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 3584);
}

#[test]
fn a_repair_does_not_make_a_batmap_count_that_did_not() {
    // The batmap reaches one byte behind the end of the file, and over a block.
    let dir = dir();
    let spec = Spec { creator: *b"tap\0", version: 0x0001_0003, size: 8 << 10, ..Spec::default() };
    let spec = Spec { end: false, ..spec.block(1 << 10) };
    let map = Some(common::Batmap { map: vec![0; 4 * 512], ..common::Batmap::of(&[]) });
    let mut file = Spec { batmap: map, table: vec![(0, 6)], ..spec }.content();
    file.set_length(4607);
    let path = file.write(&dir.path().join("x.vhd"));
    let is_on_it =
        |path| matches!(fault(path), Fault::BlockOnMetadata { block: 0, area: "the batmap", .. });
    assert!(is_on_it(&path));
    assert!(vhd::repair::repair(&path).unwrap().refused);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 4607);
    assert!(is_on_it(&path));
}

#[test]
fn a_batmap_that_is_not_believed_is_never_believed_again() {
    // It reaches behind the end of the file, where the next block goes, and its checksum is right
    // as soon as that block is written.
    let dir = dir();
    let spec = Spec { creator: *b"tap\0", version: 0x0001_0003, ..Spec::default() }.block(1 << 20);
    let batmap = common::Batmap { map: vec![0; 9 * 512], ..common::Batmap::of(&[]) };
    let mut file = Spec { batmap: Some(batmap), ..spec.clone() }.content();
    file.set_length(2560);
    file.put(2560 + 1024, &spec.footer());
    let mut map = vec![0; 9 * 512];
    map[1024] = 0x80;
    map[1536..2048].fill(9);
    file.put(2048 + 24, &common::sum(&map).to_be_bytes());
    let path = file.write(&dir.path().join("x.vhd"));
    for block in 0..64 {
        let image = Image::open(&path, Mode::Write).unwrap();
        image.write_at(block << 20, &[9; 512]).unwrap();
        drop(image);
        let image = Image::open(&path, Mode::Read).unwrap();
        assert_eq!(image.map(0, image.size()).unwrap().len(), 2 * block as usize + 2);
    }
    let found = vhd::check::check_image(&path);
    assert!(found.iter().all(|found| found.severity < vhd::check::Severity::Error), "{found:?}");
}

#[test]
fn a_parents_name_is_not_written_over_what_lies_behind_its_locator() {
    let dir = dir();
    let packed = |first: u64, second: u64| {
        let names = [(*b"W2ru", first), (*b"MacX", second)];
        let locators = names.map(|(code, at)| (code, utf16le("b.vhd"), None, Some(at)));
        let spec =
            Spec { kind: 4, uuid: 2, parent: 3, locators: locators.into(), ..Spec::default() };
        spec.full(0, 7).content()
    };
    // Two names in one sector; a name at the end of one, before a block; one with room.
    let (block, file) = (3072, packed(2048, 2560));
    for (first, second, good) in
        [(2048, 2048 + 10, false), (2048, block - 10, false), (2048, 2560, true)]
    {
        let mut file = packed(first, second);
        // All of the room that the header can say, in sectors.
        for slot in [576, 600] {
            file.put(512 + slot + 4, &511_u32.to_be_bytes());
        }
        let mut header = file.bytes(512, 1024);
        fix(&mut header, 0, 1024, 36);
        file.put(512, &header);
        let path = file.write(&dir.path().join("x.vhd"));
        let before = std::fs::read(&path).unwrap();
        let image = Image::open(&path, Mode::Write).unwrap();
        let done = image.set_parent(uuid::Uuid::from_u128(9), &common::cases::file_name(9));
        drop(image);
        if good {
            done.unwrap();
        } else {
            assert!(matches!(done, Err(Error::WrongType { .. })), "{done:?}");
            assert!(std::fs::read(&path).unwrap() == before);
        }
        let mut buf = [0; 4096];
        open(&path).unwrap().read_at(0, &mut buf).unwrap();
        assert_eq!(buf, [7; 4096]);
    }
    assert_eq!(file.length, block + 512 + 2 * MIB + 512);
}

#[test]
fn what_is_no_file_is_not_opened() {
    let dir = dir();
    assert_eq!(fault(dir.path()), Fault::NotAFile, "a directory");
    let fifo = dir.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    assert_eq!(fault(&fifo), Fault::NotAFile, "a FIFO, without waiting for its writer");
    let path = Spec::default().write(&dir.path().join("x.vhd"));
    let link = dir.path().join("link.vhd");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(matches!(open(&link), Err(Error::Io { .. })), "a symbolic link");
}

#[test]
fn a_fixed_image_that_is_cut_off_is_refused() {
    let dir = dir();
    let mut raw = Spec { kind: 2, size: 8 << 20, ..Spec::default() }.build();
    raw.drain(..1 << 20);
    let path = dir.path().join("x.vhd");
    std::fs::write(&path, raw).unwrap();
    assert!(matches!(fault(&path), Fault::FixedTooShort { .. }));
}

fn base() -> Spec {
    Spec::default().full(0, 1).full(1, 2).full(2, 3)
}

/// G18 to G20: base, a child with half of block 1, a grandchild with every other sector of 2.
fn three(dir: &Path) -> [PathBuf; 3] {
    let base = base();
    let mut half = vec![0; 512];
    half[0] = 0xf0;
    let child = Spec { uuid: 2, blocks: vec![(1, half, 0x42)], ..Spec::default() }
        .child_of(&base, "base.vhd");
    let bits = vec![0xaa; 512];
    let leaf = Spec { uuid: 3, blocks: vec![(2, bits, 0x43)], ..Spec::default() }
        .child_of(&child, "child.vhd");
    [
        leaf.write(&dir.join("leaf.vhd")),
        child.write(&dir.join("child.vhd")),
        base.write(&dir.join("base.vhd")),
    ]
}

fn layers(paths: &[PathBuf]) -> Vec<Layer<'_>> {
    paths.iter().map(|path| Layer::Vhd(path)).collect()
}

#[test]
fn a_chain_of_three_reads_through_its_levels() {
    let dir = dir();
    let paths = three(dir.path());
    let chain = Chain::open(&layers(&paths), Mode::Read).unwrap();
    assert_eq!(chain.depth(), 3);
    assert_eq!(read(&chain, 0, 4096), vec![1; 4096]);
    let block1 = read(&chain, 2 * MIB, 4096);
    assert_eq!(block1[..2048], [0x42; 2048]);
    assert_eq!(block1[2048..], [2; 2048]);
    let block2 = read(&chain, 4 * MIB, 4096);
    for (index, sector) in block2.chunks(512).enumerate() {
        assert_eq!(sector, [if index % 2 == 0 { 0x43 } else { 3 }; 512]);
    }
    assert!(vhd::check::check_chain(&layers(&paths)).is_empty());
}

#[test]
fn levels_may_differ_in_block_size_and_the_root_may_be_raw_or_fixed() {
    let dir = dir();
    let base = Spec::default().block(512 << 10).full(0, 1).full(4, 2);
    let parent = base.write(&dir.path().join("base.vhd"));
    let spec = Spec { uuid: 2, ..Spec::default() }.child_of(&base, "base.vhd");
    let child = spec.write(&dir.path().join("child.vhd"));
    let chain = Chain::open(&layers(&[child.clone(), parent.clone()]), Mode::Write).unwrap();
    assert_eq!(read(&chain, 2 * MIB, 4096), vec![2; 4096]);
    chain.write_at(2 * MIB + 100, &[9; 10]).unwrap();
    let got = read(&chain, 2 * MIB, 4096);
    assert_eq!((got[99], &got[100..110], got[110], got[4095]), (2, &[9; 10][..], 2, 2));

    let fixed = Spec { kind: 2, size: 8 << 20, ..Spec::default() }.full(0, 6);
    fixed.write(&parent);
    let spec = Spec { uuid: 2, ..Spec::default() }.child_of(&fixed, "base.vhd");
    spec.write(&child);
    let chain = Chain::open(&layers(&[child.clone(), parent]), Mode::Read).unwrap();
    assert_eq!(read(&chain, 0, 4096), vec![6; 4096]);

    let raw = dir.path().join("base.raw");
    std::fs::write(&raw, vec![8; 3 << 20]).unwrap();
    let mut spec = spec;
    spec.parent = 0;
    spec.write(&child);
    let chain = Chain::open(&[Layer::Vhd(&child), Layer::Raw(&raw)], Mode::Read).unwrap();
    assert_eq!(read(&chain, 2 * MIB, 4096), vec![8; 4096]);
    assert_eq!(read(&chain, 3 * MIB, 4096), vec![0; 4096]);
    let wrong = Chain::open(&[Layer::Vhd(&child), Layer::Vhd(&raw)], Mode::Read);
    assert!(wrong.is_err(), "the format is what the caller says");
}

#[test]
fn links_that_do_not_hold_are_refused() {
    let dir = dir();
    let [leaf, child, base_path] = three(dir.path());
    let error = |paths: &[PathBuf]| Chain::open(&layers(paths), Mode::Read).err().unwrap();
    let skipped = error(&[leaf.clone(), base_path.clone()]);
    assert!(matches!(skipped, Error::ParentMismatch { .. }), "B22: {skipped}");
    let missing = error(&[leaf.clone(), child.clone()]);
    assert!(matches!(missing, Error::ChainIncomplete { .. }), "B23: {missing}");
    let cycle = error(&[leaf.clone(), child.clone(), leaf.clone()]);
    assert!(matches!(cycle, Error::Cycle { .. }), "B25: {cycle}");
    let surplus = error(&[base_path.clone(), child.clone()]);
    assert!(matches!(surplus, Error::WrongType { .. }), "{surplus}");
    let null = Spec {
        kind: 4,
        parent: 0,
        locators: vec![(*b"MacX", b"file:///etc/passwd".to_vec(), None, None)],
        ..Spec::default()
    };
    let path = null.write(&dir.path().join("null.vhd"));
    assert!(matches!(error(std::slice::from_ref(&path)), Error::ChainIncomplete { .. }), "B32");
    let info = vhd::image::probe(&path).unwrap();
    assert_eq!(info.parent.unwrap().elsewhere(), Some("/etc/passwd"));
    let _ = utf16le("");
}

#[test]
fn flipped_bytes_never_panic_hang_or_allocate_without_measure() {
    let dir = dir();
    let paths = three(dir.path());
    let original = std::fs::read(&paths[0]).unwrap();
    let mut random = common::Random::new();
    for _ in 0..400 {
        let mut raw = original.clone();
        for _ in 0..=random.below(4) {
            // Where structure is: the first 4 KiB and the footer.
            let at = if random.below(4) == 0 {
                raw.len() - 1 - random.below(512) as usize
            } else {
                random.below(4096) as usize
            };
            raw[at] = random.next() as u8;
        }
        // With good checksums, so that the values are looked at.
        fix(&mut raw, 0, 512, 64);
        fix(&mut raw, 512, 1024, 36);
        let end = raw.len() - 512;
        fix(&mut raw, end, 512, 64);
        std::fs::write(&paths[0], &raw).unwrap();
        let _ = vhd::check::check_image(&paths[0]);
        if let Ok(chain) = Chain::open(&layers(&paths), Mode::Read) {
            let mut buf = vec![0; 8192];
            let _ = chain.read_at(4 << 20, &mut buf);
            let _ = chain.extents(0, chain.size());
        }
    }
}

fn fix(raw: &mut [u8], at: usize, length: usize, field: usize) {
    let part = &mut raw[at..at + length];
    part[field..field + 4].fill(0);
    let sum = !part.iter().map(|byte| u32::from(*byte)).fold(0_u32, u32::wrapping_add);
    part[field..field + 4].copy_from_slice(&sum.to_be_bytes());
}
