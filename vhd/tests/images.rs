//! What we write, against a model in memory and against other readers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use uuid::Uuid;
use vhd::image::{NewImage, ParentLink, create};
use vhd::{Chain, Disk, Error, ExtentKind, Extents, Image, Layer, Mode, Raw};

const MIB: u64 = 1 << 20;

fn new(path: &Path, number: u128, size: u64, parent: Option<(u128, &str)>) {
    let parent = parent
        .map(|(uuid, name)| ParentLink { uuid: Uuid::from_u128(uuid), name: name.to_owned() });
    create(path, &NewImage { uuid: Uuid::from_u128(number), size, parent }).unwrap();
}

fn go(_: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn all(disk: &dyn Disk) -> Vec<u8> {
    let mut buf = vec![0xee; disk.size() as usize];
    disk.read_at(0, &mut buf).unwrap();
    buf
}

/// What another program makes of an image, as raw bytes.
fn by_qemu(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("qemu");
    let (text_path, text_raw) = (path.to_str().unwrap(), raw.to_str().unwrap());
    let (ok, text) = common::qemu_img(&["info", "-f", "vpc", text_path]);
    assert!(ok, "{text}");
    let (ok, text) = common::qemu_img(&["convert", "-f", "vpc", "-O", "raw", text_path, text_raw]);
    assert!(ok, "{text}");
    std::fs::read(raw).unwrap()
}

fn sound(path: &Path) {
    let findings = vhd::check::check_image(path);
    assert!(findings.is_empty(), "{findings:?}");
    let (ok, text) = common::vhdiinfo(path);
    assert!(ok && text.contains("Media size"), "{text}");
}

/// Extents must not hide data and must not touch.
fn honest(disk: &dyn Disk, content: &[u8]) {
    let mut at = 0;
    let mut last = None;
    for extent in Extents::new(disk, 0, disk.size()) {
        let extent = extent.unwrap();
        assert_eq!(extent.offset, at);
        assert_ne!(last, Some(extent.kind));
        at += extent.length;
        last = Some(extent.kind);
        if extent.kind == ExtentKind::Zero {
            let part = &content[extent.offset as usize..at as usize];
            assert!(vhd::copy::is_zero(part));
        }
    }
    assert_eq!(at, disk.size());
}

#[test]
fn an_empty_image_is_what_other_readers_expect() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.vhd");
    for size in [2 * MIB, 64 * MIB, 130 << 30, vhd::MAX_SIZE] {
        let _ = std::fs::remove_file(&path);
        new(&path, 5, size, None);
        sound(&path);
        let (ok, text) = common::qemu_img(&["info", "-f", "vpc", path.to_str().unwrap()]);
        assert!(ok, "{text}");
        if size < 4 << 40 {
            assert!(text.contains(&format!("({size} bytes)")), "{text}");
        }
        let (_, text) = common::vhdiinfo(&path);
        assert!(text.contains("Dynamic"), "{text}");
    }
    let _ = std::fs::remove_file(&path);
    new(&path, 5, 8 * MIB, Some((4, "base.vhd")));
    sound(&path);
    let (_, text) = common::vhdiinfo(&path);
    assert!(text.contains("Differential") && text.contains("base.vhd"), "{text}");
}

#[test]
fn the_layout_is_the_one_that_blktap_expects() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.vhd");
    new(&path, 5, 8 * MIB, None);
    let image = Image::open(&path, Mode::Write).unwrap();
    image.write_at(3 * MIB, &[1; 512]).unwrap();
    let raw = std::fs::read(&path).unwrap();
    let be32 = |at: usize| u32::from_be_bytes(raw[at..at + 4].try_into().unwrap());
    let be64 = |at: usize| u64::from_be_bytes(raw[at..at + 8].try_into().unwrap());
    assert_eq!(&raw[28..36], b"tap\0\0\x01\0\x03");
    assert_eq!((be64(512 + 16), be32(512 + 28)), (1536, 4096), "table and its entries");
    let batmap = 1536 + 4096 * 4;
    assert_eq!(&raw[batmap..batmap + 8], b"tdbatmap");
    assert_eq!(be64(batmap + 8), batmap as u64 + 512);
    assert_eq!(be32(1536), u32::MAX);
    let block = u64::from(be32(1536 + 4)) * 512;
    assert_eq!((block + 512) % 4096, 0, "data is aligned, not the bitmap");
    // Sector 2048 of block 1: byte 256, most significant bit first.
    assert_eq!(raw[block as usize + 256], 0x80);
    assert_eq!(raw[..512], raw[raw.len() - 512..], "both footers");
}

fn writes() -> impl Strategy<Value = Vec<(u64, u64, u8)>> {
    let offset = prop_oneof![
        0..9 * MIB,
        (0..18_u64).prop_map(|n| n * MIB / 2),
        (0..18_432_u64).prop_map(|n| n * 512),
    ];
    let length = prop_oneof![1..3000_u64, (1..40_u64).prop_map(|n| n * 512), 1..3 * MIB];
    prop::collection::vec((offset, length, 1..=255_u8), 1..14)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// One image: random writes, reopened in between, read back by us and by qemu.
    #[test]
    fn an_image_holds_what_was_written(writes in writes(), odd in 0..3_u64, live: bool) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.vhd");
        let size = 9 * MIB + odd * 512;
        new(&path, 5, size, None);
        let mut model = vec![0; size as usize];
        for chunk in writes.chunks(3) {
            let image = Image::open(&path, Mode::Write).unwrap();
            if live {
                image.go_live(vhd::image::Live::default()).unwrap();
            }
            for (offset, length, byte) in chunk {
                let end = (offset + length).min(size);
                let offset = (*offset).min(end);
                let data = vec![*byte; (end - offset) as usize];
                image.write_at(offset, &data).unwrap();
                model[offset as usize..end as usize].fill(*byte);
            }
            prop_assert!(all(&image) == model);
            image.close().unwrap();
        }
        let image = Image::open(&path, Mode::Read).unwrap();
        honest(&image, &model);
        sound(&path);
        // Qemu ignores bitmaps, which makes no difference as long as what they hide is zero.
        prop_assert!(by_qemu(&path)[..size as usize] == model[..]);
    }

    /// Four levels, each written at random, the upper ones larger; then flattened, copied, and
    /// streamed, each read back.
    #[test]
    fn a_chain_holds_what_was_written(levels in prop::collection::vec(writes(), 1..4)) {
        let dir = tempfile::tempdir().unwrap();
        let mut paths: Vec<PathBuf> = Vec::new();
        let mut model: Vec<u8> = Vec::new();
        for (index, writes) in levels.iter().enumerate() {
            let name = format!("{index}.vhd");
            let path = dir.path().join(&name);
            let size = 9 * MIB + index as u64 * 3 * 512;
            let parent = index.checked_sub(1).map(|below| (100 + below as u128, format!("{below}.vhd")));
            let link = parent.as_ref().map(|(uuid, name)| (*uuid, name.as_str()));
            new(&path, 100 + index as u128, size, link);
            paths.insert(0, path);
            model.resize(size as usize, 0);
            let layers: Vec<_> = paths.iter().map(|path| Layer::Vhd(path)).collect();
            let chain = Chain::open(&layers, Mode::Write).unwrap();
            for (offset, length, byte) in writes {
                let end = (offset + length).min(size);
                let offset = (*offset).min(end);
                chain.write_at(offset, &vec![*byte; (end - offset) as usize]).unwrap();
                model[offset as usize..end as usize].fill(*byte);
            }
            prop_assert!(all(&chain) == model);
        }
        let layers: Vec<_> = paths.iter().map(|path| Layer::Vhd(path)).collect();
        let chain = Chain::open(&layers, Mode::Read).unwrap();
        honest(&chain, &model);

        let flat = dir.path().join("flat.vhd");
        let length = vhd::copy::flatten(&chain, &flat, Uuid::from_u128(1), &mut go).unwrap();
        prop_assert_eq!(length, flat.metadata().unwrap().len());
        sound(&flat);
        prop_assert!(by_qemu(&flat)[..model.len()] == model[..]);
        prop_assert!(all(&Image::open(&flat, Mode::Read).unwrap()) == model);

        let fixed = dir.path().join("fixed.vhd");
        vhd::copy::write_fixed(&chain, &fixed, Uuid::from_u128(2), &mut go).unwrap();
        sound(&fixed);
        prop_assert!(all(&Image::open(&fixed, Mode::Read).unwrap()) == model);

        // Over a target full of something else.
        let raw = dir.path().join("x.raw");
        std::fs::write(&raw, vec![0x77; model.len()]).unwrap();
        let target = Raw::open(&raw, Mode::Write).unwrap();
        vhd::copy::copy(&chain, &target, &mut go).unwrap();
        prop_assert!(all(&target) == model);
        honest(&target, &model);

        let piped = dir.path().join("piped.vhd");
        let size = model.len() as u64;
        vhd::copy::import_flat(&mut &model[..], size, &piped, Uuid::from_u128(3), &mut go).unwrap();
        sound(&piped);
        let mut out = Vec::new();
        vhd::copy::export(&Image::open(&piped, Mode::Read).unwrap(), &mut out, &mut go).unwrap();
        prop_assert!(out == model);
    }
}

#[test]
fn a_stream_of_another_length_is_refused_and_a_copy_can_be_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let raw = Raw::create(&dir.path().join("x.raw"), 5 * MIB).unwrap();
    let short = vhd::copy::import(&mut &vec![1; 4 << 20][..], &raw, &mut go);
    assert!(matches!(short, Err(Error::StreamLength { got, .. }) if got == 4 * MIB));
    let long = vhd::copy::import(&mut &vec![1; (5 << 20) + 1][..], &raw, &mut go);
    assert!(matches!(long, Err(Error::StreamLength { .. })));
    let target = Raw::create(&dir.path().join("y.raw"), 5 * MIB).unwrap();
    let stopped = vhd::copy::copy(&raw, &target, &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(Error::Stopped { .. })));
}

#[test]
fn a_differencing_image_alone_takes_whole_sectors_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.vhd");
    new(&path, 5, 8 * MIB, Some((4, "base.vhd")));
    let image = Image::open(&path, Mode::Write).unwrap();
    assert!(matches!(image.write_at(5, &[1]), Err(Error::Unaligned { .. })));
    image.write_at(512, &[1; 512]).unwrap();
    assert!(matches!(image.write_at(8 * MIB - 512, &[1; 1024]), Err(Error::OutOfRange { .. })));
    assert!(matches!(image.write_at(u64::MAX - 511, &[1; 512]), Err(Error::OutOfRange { .. })));
    let image = Image::open(&path, Mode::Read).unwrap();
    assert!(matches!(image.write_at(0, &[1; 512]), Err(Error::ReadOnly { .. })));
}

#[test]
fn growing_keeps_the_content_whether_the_table_has_room_or_not() {
    let dir = tempfile::tempdir().unwrap();
    for parent in [None, Some((4, "base.vhd"))] {
        let path = dir.path().join("x.vhd");
        let _ = std::fs::remove_file(&path);
        new(&path, 5, 8 * MIB, parent);
        let image = Image::open(&path, Mode::Write).unwrap();
        for block in [3, 0, 2] {
            image.write_at(block * 2 * MIB + 512, &[block as u8 + 1; 4096]).unwrap();
        }
        let verify = |image: &Image| {
            for block in [3_u64, 0, 2] {
                let mut buf = [0; 4096];
                image.read_at(block * 2 * MIB + 512, &mut buf).unwrap();
                assert_eq!(buf, [block as u8 + 1; 4096]);
            }
        };
        for size in [8 << 30, 9 << 30, 9 << 30, 200 << 30, vhd::MAX_SIZE] {
            image.grow(size).unwrap();
            assert_eq!(image.size(), size);
            verify(&image);
            let again = Image::open(&path, Mode::Write).unwrap();
            assert_eq!(again.size(), size);
            verify(&again);
            sound(&path);
            if parent.is_some() {
                let hints = again.info().parent.clone().unwrap();
                assert_eq!(hints.sibling(), Some("base.vhd"));
            }
        }
        image.write_at(vhd::MAX_SIZE - 512, &[9; 512]).unwrap();
        verify(&image);
        assert!(matches!(image.grow(MIB), Err(Error::Shrink { .. })));
        assert!(matches!(image.grow(vhd::MAX_SIZE + 512), Err(Error::TooLarge { .. })));
    }
}

#[test]
fn growing_moves_the_locators_of_other_tools_out_of_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let base = common::Spec::default();
    // Table, locator, block: as blktap lays them out.
    let spec = common::Spec { uuid: 9, ..common::Spec::default() };
    let path = spec.full(0, 7).child_of(&base, "base.vhd").write(&dir.path().join("x.vhd"));
    Image::open(&path, Mode::Write).unwrap().grow(200 << 30).unwrap();
    let image = Image::open(&path, Mode::Read).unwrap();
    assert_eq!(image.info().parent.as_ref().unwrap().sibling(), Some("base.vhd"));
    let mut buf = [0; 4096];
    image.read_at(0, &mut buf).unwrap();
    assert_eq!(buf, [7; 4096]);
    assert!(
        vhd::check::check_image(&path).iter().all(|f| f.severity < vhd::check::Severity::Error)
    );
}

/// Other tools make disks that end inside a block, and leave in it what they like.
#[test]
fn what_lies_behind_the_end_does_not_become_part_of_a_larger_disk() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.vhd");
    let new = NewImage { uuid: Uuid::from_u128(1), size: 4 << 20, parent: None };
    create(&path, &new).unwrap();
    let image = Image::open(&path, Mode::Write).unwrap();
    image.write_at(0, &vec![0x55; 4 << 20]).unwrap();
    let (mut footer, end) = (image.footer(), (3 << 20) + 512);
    drop(image);
    footer.current_size = end;
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let length = file.metadata().unwrap().len();
    for at in [0, length - 512] {
        file.write_all_at(&footer.to_bytes(), at).unwrap();
    }
    let image = Image::open(&path, Mode::Write).unwrap();
    image.grow(4 << 20).unwrap();
    let mut bytes = vec![0; 4 << 20];
    image.read_at(0, &mut bytes).unwrap();
    let (before, behind) = bytes.split_at(end as usize);
    assert!(before.iter().all(|byte| *byte == 0x55) && vhd::copy::is_zero(behind));
}

/// Growing beyond the table, its writes cut at any byte count: a file is always the old disk or
/// the new one, and growing again completes it.
#[test]
fn growing_again_completes_what_a_cut_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.vhd");
    new(&path, 5, 8 * MIB, None);
    let image = Image::open(&path, Mode::Write).unwrap();
    image.write_at(512, &[1; 4096]).unwrap();
    image.write_at(6 * MIB, &[2; 4096]).unwrap();
    let before = all(&image);
    drop(image);
    let original = std::fs::read(&path).unwrap();
    let writes = recorded("grow_child", &path);
    assert!(writes.len() >= 6, "{} writes", writes.len());
    for count in 0..=writes.len() {
        let mut raw = original.clone();
        for (offset, data) in &writes[..count] {
            raw.resize(raw.len().max(offset + data.len()), 0);
            raw[*offset..offset + data.len()].copy_from_slice(data);
        }
        std::fs::write(&path, &raw).unwrap();
        let image = Image::open(&path, Mode::Read)
            .unwrap_or_else(|error| panic!("after {count} writes: {}", error.reason()));
        let mut buf = vec![0; before.len()];
        image.read_at(0, &mut buf).unwrap();
        assert!(buf == before, "after {count} writes");
        drop(image);
        Image::open(&path, Mode::Write).unwrap().grow(40 << 30).unwrap();
        let image = Image::open(&path, Mode::Read).unwrap();
        assert_eq!(image.size(), 40 << 30);
        image.read_at(0, &mut buf).unwrap();
        assert!(buf == before, "after {count} writes and growing again");
        sound(&path);
    }
}

#[test]
#[ignore = "run under strace by the test above"]
fn grow_child() {
    if let Ok(path) = std::env::var("VHD_RECORD") {
        Image::open(Path::new(&path), Mode::Write).unwrap().grow(40 << 30).unwrap();
    }
}

/// The writes that another test of this binary makes to a file, as strace sees them.
fn recorded(test: &str, path: &Path) -> Vec<(usize, Vec<u8>)> {
    let log = path.with_extension("log");
    let status = std::process::Command::new("strace")
        .args(["-f", "-y", "-e", "trace=pwrite64,ftruncate", "-xx", "-s", "4000000", "-o"])
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored"])
        .env("VHD_RECORD", path)
        .stdout(std::process::Stdio::null())
        .status()
        .expect("strace cannot be run: install the package strace");
    assert!(status.success());
    parse_strace(&std::fs::read_to_string(&log).unwrap(), "x.vhd")
}

/// An image with its writes cut at any of them: it opens, has both or one of its footers, and each
/// sector is old or new.
#[test]
fn a_cut_between_any_two_writes_leaves_old_or_new_sectors() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.vhd");
    new(&path, 5, 8 * MIB, None);
    let image = Image::open(&path, Mode::Write).unwrap();
    image.write_at(2 * MIB + 512, &[1; 4096]).unwrap();
    let mut old = all(&image);
    drop(image);
    let original = std::fs::read(&path).unwrap();
    let writes = recorded("write_child", &path);
    let new = all(&Image::open(&path, Mode::Read).unwrap());
    assert!(old != new && writes.len() >= 9);
    let mut raw = original;
    for (index, (offset, data)) in writes.iter().enumerate() {
        raw.resize(raw.len().max(offset + data.len()), 0);
        raw[*offset..offset + data.len()].copy_from_slice(data);
        std::fs::write(&path, &raw).unwrap();
        let image = Image::open(&path, Mode::Write)
            .unwrap_or_else(|error| panic!("after {index} writes: {}", error.reason()));
        let now = all(&image);
        for (sector, (got, (old, new))) in
            now.chunks(512).zip(old.chunks(512).zip(new.chunks(512))).enumerate()
        {
            assert!(got == old || got == new, "sector {sector} after {index} writes");
        }
        // What was new once stays so.
        old = now;
        let findings = vhd::check::check_image(&path);
        assert!(findings.is_empty(), "{findings:?}");
    }
    assert!(old == new);
}

#[test]
#[ignore = "run under strace by the test above"]
fn write_child() {
    if let Ok(path) = std::env::var("VHD_RECORD") {
        let image = Image::open(Path::new(&path), Mode::Write).unwrap();
        // Part of a block that exists, a new block, both at once, and part of a sector.
        image.write_at(2 * MIB, &[2; 8192]).unwrap();
        image.write_at(6 * MIB + 1024, &[3; 512]).unwrap();
        image.write_at(4 * MIB - 2048, &[4; 4096]).unwrap();
        image.write_at(100, &[5; 1000]).unwrap();
    }
}

/// Offset and data of each write to `name`.
fn parse_strace(log: &str, name: &str) -> Vec<(usize, Vec<u8>)> {
    let hexed: Vec<String> = name.bytes().map(|byte| format!("\\x{byte:02x}")).collect();
    let hexed = hexed.concat();
    log.lines()
        .filter(|line| line.contains("pwrite64(") && (line.contains(&hexed) || line.contains(name)))
        .map(|line| {
            let mut parts = line.split('"');
            parts.next();
            let data = parts.next().unwrap();
            let data = data.split("\\x").skip(1).map(|hex| u8::from_str_radix(hex, 16).unwrap());
            let data: Vec<u8> = data.collect();
            let rest = parts.next().unwrap();
            assert!(!rest.starts_with("..."), "the write was cut off in the log");
            let offset = rest.split(", ").nth(2).unwrap().split(')').next().unwrap();
            (offset.parse().unwrap(), data)
        })
        .collect()
}

#[test]
fn the_two_tib_wall_is_no_space_and_not_a_wrap() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.vhd");
    new(&path, 5, 8 * MIB, None);
    // The footer so far out that the next block has no sector number.
    let raw = std::fs::read(&path).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let end = (0xffff_ffff_u64) * 512;
    std::os::unix::fs::FileExt::write_all_at(&file, &raw[..512], end).unwrap();
    let image = Image::open(&path, Mode::Write).unwrap();
    let error = image.write_at(0, &[1; 512]).unwrap_err();
    assert!(error.is_no_space(), "{error}");
    let mut buf = [9; 512];
    image.read_at(0, &mut buf).unwrap();
    assert_eq!(buf, [0; 512]);
}

#[test]
fn a_new_parent_and_the_hidden_flag_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.vhd");
    new(&path, 5, 8 * MIB, Some((4, "base.vhd")));
    let image = Image::open(&path, Mode::Write).unwrap();
    image.set_parent(Uuid::from_u128(44), "other.vhd").unwrap();
    image.set_hidden(true).unwrap();
    let info = vhd::image::probe(&path).unwrap();
    let parent = info.parent.unwrap();
    assert!(info.hidden);
    assert_eq!((parent.uuid, parent.sibling()), (Uuid::from_u128(44), Some("other.vhd")));
    assert_eq!(parent.hints.len(), 1, "all locators agree");
    image.set_hidden(false).unwrap();
    sound(&path);
    assert!(matches!(
        image.set_parent(Uuid::nil(), &"x".repeat(600)),
        Err(Error::WrongType { .. })
    ));
}

#[test]
fn writers_on_different_sectors_do_not_disturb_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.vhd");
    new(&path, 5, 64 * MIB, None);
    let image = Image::open(&path, Mode::Write).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let image = &image;
            scope.spawn(move || {
                for step in 0..400_u64 {
                    let sector = (step * 4 + thread) * 77 % (64 * 2048);
                    image.write_at(sector * 512, &[thread as u8 + 1; 512]).unwrap();
                }
            });
        }
    });
    for thread in 0..4_u64 {
        for step in 0..400_u64 {
            let sector = (step * 4 + thread) * 77 % (64 * 2048);
            let mut buf = [0; 512];
            image.read_at(sector * 512, &mut buf).unwrap();
            assert_eq!(buf, [thread as u8 + 1; 512]);
        }
    }
    drop(image);
    sound(&path);
}
