//! Repairs: what they bring in order, and that they touch nothing else.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use vhd::check::{Code, Depth, Severity, check_image, examine, worst};
use vhd::repair::{Step, plan, repair};
use vhd::{Error, Image, Mode};

use crate::cases::{Expected, base, corpus, is_small, must_refuse, write};
use crate::check::codes;
use crate::common::Spec;

fn tap() -> Spec {
    Spec { creator: *b"tap\0", version: 0x1_0003, ..base() }
}

/// An image of ours, with a batmap: block 0 full, block 1 in part.
fn ours(dir: &Path) -> PathBuf {
    let path = dir.join("ours.vhd");
    let new = vhd::image::NewImage { uuid: uuid::Uuid::from_u128(5), size: 64 << 20, parent: None };
    vhd::image::create(&path, &new).unwrap();
    let image = Image::open(&path, Mode::Write).unwrap();
    image.write_at(0, &vec![1; 2 << 20]).unwrap();
    image.write_at(2 << 20, &[2; 4096]).unwrap();
    image.flush().unwrap();
    path
}

/// The bytes of every block, bitmap and data, by where the table says they are.
fn blocks(bytes: &[u8]) -> HashMap<usize, Vec<u8>> {
    let be = |at: usize, n: usize| {
        bytes[at..at + n].iter().fold(0_usize, |value, byte| value << 8 | usize::from(*byte))
    };
    let (table, entries, size) = (be(512 + 16, 8), be(512 + 28, 4), be(512 + 32, 4));
    let stride = size + (size / 4096).max(1).next_multiple_of(512);
    (0..entries)
        .map(|index| be(table + index * 4, 4))
        .filter(|sector| *sector != 0xffff_ffff)
        .map(|sector| (sector * 512, bytes[sector * 512..sector * 512 + stride].to_vec()))
        .collect()
}

/// Repairs, and verifies what every repair promises: data untouched, a plan that is what is done,
/// no worse after each single write, nothing left to do. Answers the codes before.
fn repaired(path: &Path) -> String {
    let original = std::fs::read(path).unwrap();
    let before = check_image(path);
    let planned = plan(path).unwrap();
    assert_eq!(std::fs::read(path).unwrap(), original, "a plan writes nothing");
    assert!(!planned.refused && !planned.steps.is_empty(), "{planned:#?}");

    let fixed = matches!(original.get(original.len() - 512 + 63), Some(2));
    let data = if fixed { HashMap::new() } else { blocks(&original) };
    // Cut after each of the writes, and repaired again from there.
    for count in 1..planned.steps.len() {
        let cut = path.with_extension("cut.vhd");
        std::fs::write(&cut, apply(&original, &planned.steps[..count])).unwrap();
        assert!(worst(&check_image(&cut)) <= worst(&before), "{count}");
        assert_eq!(worst(&repair(&cut).unwrap().after), worst(&planned.after));
        std::fs::remove_file(&cut).unwrap();
    }
    let done = repair(path).unwrap();
    assert_eq!(done.steps, planned.steps);
    assert_eq!(codes(&done.after), codes(&planned.after));
    let now = std::fs::read(path).unwrap();
    assert_eq!(now, apply(&original, &planned.steps), "only what was planned is written");
    if !fixed {
        assert_eq!(blocks(&now), data);
    }
    assert!(repair(path).unwrap().steps.is_empty(), "a second time there is nothing to do");
    assert!(Image::open(path, Mode::Write).is_ok());
    codes(&before)
}

fn apply(bytes: &[u8], steps: &[Step]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for step in steps {
        let at = step.offset as usize;
        let end = at + step.bytes.len();
        bytes.resize(bytes.len().max(end), 0);
        bytes[at..end].copy_from_slice(&step.bytes);
    }
    bytes
}

fn left(path: &Path) -> String {
    let mut findings = check_image(path);
    findings.retain(|finding| finding.severity > Severity::Note);
    codes(&findings)
}

#[test]
fn a_footer_is_restored_from_the_other_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.vhd");
    let whole = base().build();
    Spec { end: false, ..base() }.write(&path);
    assert_eq!(repaired(&path), "footer-end-missing");
    assert_eq!(std::fs::read(&path).unwrap(), whole);
    Spec { copy: false, ..base() }.write(&path);
    assert_eq!(repaired(&path), "footer-copy-missing");
    assert_eq!(std::fs::read(&path).unwrap(), whole);
    Spec { cut: 1, ..base() }.write(&path);
    assert_eq!(repaired(&path), "footer-short");
    assert_eq!(std::fs::read(&path).unwrap(), whole);
    // Damaged, not gone: it is written where it was.
    for at in [64, whole.len() - 512 + 64, whole.len() - 512 + 3] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        repaired(&path);
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }
    // Junk behind the last block is nobody's, and stays.
    let mut bytes = whole.clone();
    bytes.truncate(whole.len() - 512);
    bytes.extend([7; 700]);
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(repaired(&path), "footer-end-missing");
    assert_eq!(std::fs::read(&path).unwrap().len(), whole.len() - 512 + 1024 + 512);
}

#[test]
fn footers_that_differ_follow_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.vhd");
    for copy in [
        Spec { hidden: 1, ..base() },
        Spec { size: 60 << 20, ..base() },
        Spec { timestamp: 7, ..base() },
    ] {
        let mut bytes = base().build();
        bytes[..512].copy_from_slice(&copy.footer());
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(repaired(&path), "footers-differ");
        assert_eq!(std::fs::read(&path).unwrap(), base().build());
    }
    // Old blktap hid an image in the copy only.
    let old = Spec { creator: *b"tap\0", version: 0x1_0001, ..base() };
    let mut bytes = old.build();
    bytes[85] = 1;
    std::fs::write(&path, &bytes).unwrap();
    repaired(&path);
    assert!(vhd::image::probe(&path).unwrap().hidden);
    assert_eq!(left(&path), "");
}

#[test]
fn a_batmap_is_made_from_the_bitmaps() {
    let dir = tempfile::tempdir().unwrap();
    let path = ours(dir.path());
    let good = std::fs::read(&path).unwrap();
    let header = good.windows(8).position(|part| part == b"tdbatmap").unwrap();
    let bit = |bytes: &[u8]| bytes[header + 512];
    // The map is wrong, and so is the checksum.
    let mut bytes = good.clone();
    bytes[header + 512] = 0xff;
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(repaired(&path), "batmap-checksum");
    assert_eq!((bit(&std::fs::read(&path).unwrap()), left(&path)), (0x80, String::new()));
    // It is gone.
    let mut bytes = good.clone();
    bytes[header..header + 512].fill(0xff);
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(repaired(&path), "batmap-missing");
    assert_eq!((bit(&std::fs::read(&path).unwrap()), left(&path)), (0x80, String::new()));
    // It lies, with the right checksum: block 1 has holes, block 9 is not there at all.
    let mut bytes = good.clone();
    bytes[header + 512..header + 514].copy_from_slice(&[0xc0, 0x40]);
    let sum = !(0xc0_u32 + 0x40);
    bytes[header + 24..header + 28].copy_from_slice(&sum.to_be_bytes());
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(repaired(&path), "batmap-wrong");
    assert_eq!((bit(&std::fs::read(&path).unwrap()), left(&path)), (0x80, String::new()));
}

#[test]
fn without_room_for_a_batmap_the_file_is_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = tap().write(&dir.path().join("a.vhd"));
    let planned = repair(&path).unwrap();
    assert!(planned.steps.is_empty() && !planned.refused);
    assert_eq!(codes(&planned.after), "batmap-missing");
    assert_eq!(std::fs::read(&path).unwrap(), tap().build());
}

fn poison(bytes: &mut [u8], at: usize) {
    bytes[at..at + 8].copy_from_slice(b"v_poison");
    bytes[at + 64..at + 68].fill(0);
    let sum = !bytes[at..at + 512].iter().map(|byte| u32::from(*byte)).sum::<u32>();
    bytes[at + 64..at + 68].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn a_resize_that_moved_nothing_yet_is_undone() {
    let dir = tempfile::tempdir().unwrap();
    let path = ours(dir.path());
    let good = std::fs::read(&path).unwrap();
    let end = good.len() - 512;
    for places in [&[0, end][..], &[0], &[end]] {
        let mut bytes = good.clone();
        for at in places {
            poison(&mut bytes, *at);
        }
        std::fs::write(&path, &bytes).unwrap();
        assert!(Image::open(&path, Mode::Read).is_err());
        assert_eq!(repaired(&path), "interrupted-resize");
        assert_eq!(std::fs::read(&path).unwrap(), good);
    }
}

type Damage<'a> = &'a dyn Fn(&mut Vec<u8>);

#[test]
fn a_resize_that_may_have_moved_a_block_is_left_to_its_journal() {
    let dir = tempfile::tempdir().unwrap();
    let path = ours(dir.path());
    let good = std::fs::read(&path).unwrap();
    let end = good.len() - 512;
    let start = *blocks(&good).keys().max().unwrap();
    let header = good.windows(8).position(|part| part == b"tdbatmap").unwrap();
    let damage: [Damage<'_>; 3] = [
        // A block that was copied elsewhere is zeroed before the table says so.
        &|bytes| bytes[start..start + 512].fill(0),
        // The batmap is written last.
        &|bytes| bytes[header] = 0,
        // The header has more entries already, and the table is not yet longer.
        &|bytes| bytes[512 + 31] = bytes[512 + 31].wrapping_sub(1),
    ];
    for change in damage {
        let mut bytes = good.clone();
        change(&mut bytes);
        poison(&mut bytes, 0);
        poison(&mut bytes, end);
        std::fs::write(&path, &bytes).unwrap();
        let done = repair(&path).unwrap();
        assert!(done.refused && done.steps.is_empty(), "{done:#?}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
}

#[test]
fn what_cannot_be_repaired_is_refused_and_not_touched() {
    let of_the_file_itself =
        |code: &Code| !code.as_str().starts_with("parent-") && code.severity() == Severity::Error;
    for case in corpus().iter().filter(|case| must_refuse(case)) {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = write(case, dir.path());
        let before = examine(&path, Depth::Bitmaps).findings;
        let damaged = before.iter().any(|f| of_the_file_itself(&f.code));
        let original = is_small(case).then(|| std::fs::read(&path).unwrap());
        let done = repair(&path).unwrap();
        // A resize that had moved nothing yet.
        if done.steps.iter().any(|step| step.code == Code::InterruptedResize) {
            assert!(worst(&done.after) < Some(Severity::Error), "{}", case.name);
            continue;
        }
        assert_eq!(done.refused, damaged, "{}: {done:#?}", case.name);
        if damaged {
            assert!(done.steps.is_empty(), "{}", case.name);
            assert!(original.is_none_or(|bytes| std::fs::read(&path).unwrap() == bytes));
        }
    }
    // One fault that it knows and one that it does not: nothing at all is done.
    let dir = tempfile::tempdir().unwrap();
    let spec = Spec { end: false, table: vec![(1, 4)], ..base() };
    let path = spec.write(&dir.path().join("a.vhd"));
    let done = repair(&path).unwrap();
    assert!(done.refused && done.steps.is_empty());
    assert_eq!(std::fs::read(&path).unwrap(), spec.build());
}

#[test]
fn a_sound_file_is_left_alone() {
    for case in corpus().iter().filter(|case| matches!(case.expected, Expected::Reads(_))) {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = write(case, dir.path());
        let sound = !check_image(&path).iter().any(|finding| finding.code.is_repairable());
        let original = is_small(case).then(|| std::fs::read(&path).unwrap());
        let done = repair(&path).unwrap();
        assert!(!done.refused, "{}: {done:#?}", case.name);
        if sound {
            assert!(done.steps.is_empty(), "{}: {done:#?}", case.name);
            assert!(original.is_none_or(|bytes| std::fs::read(&path).unwrap() == bytes));
        } else if is_small(case) && !done.steps.is_empty() {
            // All that every repair promises, on a fresh copy.
            write(case, dir.path());
            repaired(&path);
        }
    }
}

#[test]
fn a_fixed_image_is_never_written_where_its_data_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.vhd");
    // A guest that wrote a footer of another image to its first sector.
    let mut bytes = Spec { kind: 2, size: 1 << 20, ..Spec::default() }.build();
    bytes[..512].copy_from_slice(&Spec { uuid: 77, ..Spec::default() }.footer());
    std::fs::write(&path, &bytes).unwrap();
    assert!(repair(&path).unwrap().steps.is_empty());
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    bytes.pop();
    std::fs::write(&path, &bytes).unwrap();
    let done = repair(&path).unwrap();
    assert_eq!((done.steps.len(), done.steps[0].offset), (1, (1 << 20) + 511));
}

#[test]
fn a_file_that_somebody_has_locked_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = Spec { copy: false, ..base() }.write(&dir.path().join("a.vhd"));
    let holder = File::open(&path).unwrap();
    holder.lock_shared().unwrap();
    assert!(matches!(repair(&path), Err(Error::Busy { .. })));
    assert!(matches!(plan(&path), Err(Error::Busy { .. })));
    holder.unlock().unwrap();
    assert_eq!(repair(&path).unwrap().steps.len(), 1);
}

#[test]
fn a_file_that_qemu_has_open_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = ours(dir.path());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[512 * 10] ^= 0;
    bytes[64] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    // qemu refuses an image without a copy, so it is given the file as raw.
    let image = format!("driver=file,filename={}", path.display());
    let mut qemu = std::process::Command::new("qemu-io")
        .args(["--image-opts", &image])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("install the package qemu-utils");
    // It answers a command only when the file is open.
    let mut answer = [0; 1];
    std::io::Write::write_all(qemu.stdin.as_mut().unwrap(), b"length\n").unwrap();
    std::io::Read::read_exact(qemu.stdout.as_mut().unwrap(), &mut answer).unwrap();
    let refused = repair(&path);
    drop(qemu.stdin.take());
    qemu.wait().unwrap();
    assert!(matches!(refused, Err(Error::Busy { .. })), "{refused:?}");
    assert_eq!(repair(&path).unwrap().steps.len(), 1);
}
