//! Verdicts.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use uuid::Uuid;
use vhd::check::{Code, Depth, Finding, Severity, check_image, examine, worst};
use vhd::folder::{Examined, Folder, Parents, examine_chain};
use vhd::footer::DiskType;
use vhd::{Image, Mode};

use crate::cases::{Case, Expected, base, child, corpus, leaf, must_refuse, write};
use crate::common::{Random, Spec, utf16le};

/// A check that takes longer goes through something that a field of the file has sized.
const HANGS: Duration = Duration::from_secs(20);

pub(crate) fn chain(path: &Path) -> Examined {
    examine_chain(path, Parents::default(), Depth::Bitmaps)
}

/// The codes of findings, the worst first, each once.
pub(crate) fn codes(findings: &[Finding]) -> String {
    let mut codes: Vec<Code> = findings.iter().map(|finding| finding.code).collect();
    codes.sort_unstable();
    codes.dedup();
    codes.iter().map(|code| code.as_str()).collect::<Vec<_>>().join(" ")
}

/// Examines a case where it lies, with the raw file that it is based on.
pub(crate) fn judge(case: &Case, dir: &Path) -> Examined {
    let (path, raw) = write(case, dir);
    let parents = Parents { dir: None, raw: raw.as_deref() };
    examine_chain(&path, parents, Depth::Bitmaps)
}

#[test]
fn every_file_of_the_corpus_gets_its_verdict_at_once() {
    let cases = corpus();
    assert!(cases.len() > 53);
    let mut wrong = Vec::new();
    for case in &cases {
        let dir = tempfile::tempdir().unwrap();
        let start = Instant::now();
        let examined = judge(case, dir.path());
        let findings = examined.findings;
        let time = start.elapsed();
        let error = worst(&findings) == Some(Severity::Error);
        // A batmap that lies is damage, although the reader may see through it.
        let lies = findings.iter().any(|finding| finding.code == Code::BatmapWrong);
        // Nobody says of a whole image that another file is its parent.
        let anatomy = examined.links[0].1.as_ref().and_then(|found| found.anatomy.as_ref());
        let is_child = anatomy.is_some_and(|anatomy| {
            anatomy.footer.as_ref().is_some_and(|f| f.disk_type == DiskType::Differencing)
        });
        let of_chain = matches!(case.expected, Expected::ChainRefused(_));
        let refused = must_refuse(case) && (is_child || !of_chain);
        if error != refused && !lies {
            wrong.push(format!("{} {}: {findings:?}", case.name, case.what));
        }
        if matches!(case.expected, Expected::ReadsOnly(..)) {
            assert_eq!(worst(&findings), Some(Severity::Warning), "{}", case.name);
        }
        assert!(time < HANGS, "{} took {time:?}", case.name);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What the reader refuses is never called sound, and what it accepts is never refused, but for
/// what only the whole structure or the directory tells.
#[test]
fn a_check_and_the_reader_agree_on_random_damage() {
    let mut random = Random::new();
    let dir = tempfile::tempdir().unwrap();
    let originals = [
        base(),
        child(),
        Spec { creator: *b"tap\0", version: 0x1_0003, ..base() },
        Spec { cut: 1, ..base() },
    ];
    let originals: Vec<(PathBuf, Vec<u8>)> = originals
        .iter()
        .zip(0..)
        .map(|(spec, n)| (spec.write(&dir.path().join(format!("{n}.vhd"))), spec.build()))
        .collect();
    for round in 0..1000 {
        let (path, original) = &originals[round % originals.len()];
        // Where structure is: the start and the end. The rest stays as it is in the file.
        let mut bytes = original[..4096].to_vec();
        bytes.extend(&original[original.len() - 512..]);
        for _ in 0..=random.below(3) {
            let at = match random.below(4) {
                0 => bytes.len() - 1 - random.below(512) as usize,
                1 => random.below(512) as usize,
                _ => 512 + random.below(1536) as usize,
            };
            bytes[at] = random.next() as u8;
        }
        for (at, length, field) in [(0, 512, 64), (512, 1024, 36), (bytes.len() - 512, 512, 64)] {
            if random.below(4) > 0 {
                let part = &mut bytes[at..at + length];
                part[field..field + 4].fill(0);
                let sum = !part.iter().map(|byte| u32::from(*byte)).fold(0, u32::wrapping_add);
                part[field..field + 4].copy_from_slice(&sum.to_be_bytes());
            }
        }
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes[..4096], 0).unwrap();
        let end = original.len() as u64 - 512;
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes[4096..], end).unwrap();
        let findings = check_image(path);
        let bad = worst(&findings) == Some(Severity::Error);
        let only_here = findings.iter().any(|finding| finding.code == Code::BatmapWrong);
        let refused = Image::open(path, Mode::Read).err();
        assert_eq!(
            bad && !only_here,
            refused.is_some(),
            "round {round}: {findings:#?} but {:?}",
            refused.map(|error| error.reason())
        );
        // Whatever it is, planning a repair neither fails nor touches data.
        let plan = vhd::repair::plan(path).unwrap();
        assert!(!plan.refused || plan.steps.is_empty());
    }
}

#[test]
fn a_parent_is_found_by_uuid_wherever_its_locator_leads() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = child();
    spec.locators = vec![(*b"MacX", b"file:///etc/passwd".to_vec(), None, None)];
    let path = spec.write(&dir.path().join("a.vhd"));
    assert_eq!(codes(&chain(&path).findings), "parent-outside");
    base().write(&dir.path().join("another name.VHD"));
    let examined = chain(&path);
    assert_eq!(codes(&examined.findings), "locator-outside");
    assert_eq!(examined.links.len(), 2);

    // In another directory, if somebody names it.
    let parents = tempfile::tempdir().unwrap();
    let moved = parents.path().join("base.avhd");
    std::fs::rename(dir.path().join("another name.VHD"), &moved).unwrap();
    assert_eq!(codes(&chain(&path).findings), "parent-outside");
    let named = Parents { dir: Some(parents.path()), raw: None };
    assert_eq!(codes(&examine_chain(&path, named, Depth::Tables).findings), "locator-outside");
}

#[test]
fn what_is_no_regular_file_or_not_named_as_an_image_is_no_parent() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let path = child().write(&dir.path().join("a.vhd"));
    let real = base().write(&elsewhere.path().join("base.vhd"));
    std::os::unix::fs::symlink(&real, dir.path().join("base.vhd")).unwrap();
    let fifo = dir.path().join("fifo.vhd");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // A raw disk whose guest has written a VHD's headers into it.
    std::fs::copy(&real, dir.path().join("guest.raw")).unwrap();
    std::fs::create_dir(dir.path().join("folder.vhd")).unwrap();
    assert_eq!(codes(&chain(&path).findings), "parent-missing");
    assert_eq!(codes(&check_image(&fifo)), "not-a-file");
    assert_eq!(codes(&check_image(&dir.path().join("base.vhd"))), "not-a-file");
    assert_eq!(codes(&check_image(dir.path())), "not-a-file");
    assert_eq!(codes(&check_image(Path::new("/dev/null"))), "not-a-file");
}

#[test]
fn two_files_of_one_uuid_are_no_parent_and_two_names_of_one_file_are_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = child().write(&dir.path().join("a.vhd"));
    let first = base().write(&dir.path().join("b.vhd"));
    std::fs::hard_link(&first, dir.path().join("c.vhd")).unwrap();
    assert_eq!(codes(&chain(&path).findings), "");
    std::fs::copy(&first, dir.path().join("d.vhd")).unwrap();
    let findings = chain(&path).findings;
    assert_eq!(codes(&findings), "parent-ambiguous");
    assert!(findings[0].text.contains("b.vhd and "), "{findings:?}");
}

#[test]
fn a_raw_parent_is_used_when_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = child();
    spec.parent = 0;
    let path = spec.write(&dir.path().join("a.vhd"));
    let raw = dir.path().join("base.raw");
    std::fs::write(&raw, vec![1; 3 << 20]).unwrap();
    assert_eq!(codes(&chain(&path).findings), "parent-raw");
    let parents = Parents { dir: None, raw: Some(&raw) };
    let examined = examine_chain(&path, parents, Depth::Bitmaps);
    assert_eq!(codes(&examined.findings), "");
    assert!(examined.links[1].0.raw);
    std::fs::write(&raw, vec![1; 65 << 20]).unwrap();
    assert_eq!(codes(&examine_chain(&path, parents, Depth::Bitmaps).findings), "parent-larger");
}

#[test]
fn damage_of_a_parent_is_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = leaf().write(&dir.path().join("leaf.vhd"));
    child().write(&dir.path().join("child.vhd"));
    Spec { table: vec![(1, 4)], ..base() }.write(&dir.path().join("base.vhd"));
    let findings = chain(&path).findings;
    assert!(findings.iter().all(|finding| finding.path.ends_with("base.vhd")), "{findings:?}");
    assert_eq!(worst(&findings), Some(Severity::Error));
    // Also one whose header is gone: the footer tells who it is.
    Spec { header_cookie: *b"xxxxxxxx", ..base() }.write(&dir.path().join("base.vhd"));
    assert_eq!(codes(&chain(&path).findings), "header-cookie");
    // A child smaller than its parent.
    Spec { size: 66 << 20, ..base() }.entries(33).write(&dir.path().join("base.vhd"));
    assert_eq!(codes(&chain(&path).findings), "parent-larger");
}

#[test]
fn a_chain_of_a_thousand_images_and_a_cycle_of_a_thousand_end() {
    let dir = tempfile::tempdir().unwrap();
    let spec = |n: u128| Spec { size: 2 << 20, uuid: n, ..Spec::default() }.entries(1);
    let name = |n: u128| dir.path().join(format!("{n}.vhd"));
    spec(1).write(&name(1));
    for n in 2..=1000 {
        spec(n).child_of(&spec(n - 1), "x.vhd").write(&name(n));
    }
    let examined = examine_chain(&name(1000), Parents::default(), Depth::Tables);
    assert_eq!((examined.links.len(), codes(&examined.findings)), (1000, "chain-long".to_owned()));
    spec(1).child_of(&spec(1000), "x.vhd").write(&name(1));
    let found = codes(&examine_chain(&name(1000), Parents::default(), Depth::Tables).findings);
    assert_eq!(found, "parent-cycle chain-long");
}

#[test]
fn oddities_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.vhd");
    let d = Spec::default;
    let found = |spec: Spec| codes(&check_image(&spec.write(&path)));
    assert_eq!(found(Spec { features: 0x10, ..d() }), "feature-bits");
    assert_eq!(found(Spec { features: 0, ..d() }), "feature-bits");
    assert_eq!(found(Spec { next_record: 0xffff_ffff, ..d() }), "next-record-short");
    assert_eq!(found(Spec { next_record: 4096, ..d() }), "next-record");
    assert_eq!(found(Spec { uuid: 0, ..d() }), "uuid-null");
    assert_eq!(found(Spec { table: vec![(40, 77)], ..d() }.entries(600)), "table-tail");
    assert_eq!(found(Spec { footer_cookie: *b"v_poison", ..d() }), "interrupted-resize");
    let locators = vec![
        (*b"W2ru", utf16le(".\\b.vhd"), None, None),
        (*b"MacX", b"file://./c.vhd".to_vec(), None, None),
        (*b"Wi2k", b"d.vhd".to_vec(), None, None),
    ];
    let many = Spec { kind: 4, parent: 7, locators, ..d() };
    assert_eq!(found(many), "locator-unknown locators-disagree");
    let mut bytes = Spec { kind: 2, size: 1 << 20, ..d() }.build();
    bytes.splice(0..0, vec![0; 512]);
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(codes(&check_image(&path)), "fixed-tail");
}

#[test]
fn footers_that_differ_are_compared_field_by_field() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.vhd");
    let mut bytes = base().build();
    bytes[..512].copy_from_slice(&Spec { hidden: 1, timestamp: 5, ..base() }.footer());
    std::fs::write(&path, &bytes).unwrap();
    let findings = check_image(&path);
    assert_eq!(codes(&findings), "footers-differ");
    assert!(findings[0].text.contains("the hidden flag, the timestamp"), "{findings:?}");
    bytes[..512].copy_from_slice(&Spec { uuid: 5, ..base() }.footer());
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(codes(&check_image(&path)), "footers-disagree");
}

#[test]
fn space_without_use_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.vhd");
    // The block is there, and its entry says that it is not.
    Spec { table: vec![(1, u32::MAX)], ..base() }.write(&path);
    let found = examine(&path, Depth::Tables);
    assert_eq!(codes(&found.findings), "dead-space");
    assert_eq!((found.space.dead, found.space.allocated), ((2 << 20) + 512, 2));
    assert_eq!(check_image(&path), []);
}

/// 100 GiB, of which 10 GiB are there: 5120 bitmaps, and nothing else of the data, is read.
#[test]
fn a_large_image_is_checked_by_its_tables_and_bitmaps() {
    let dir = tempfile::tempdir().unwrap();
    let path = large(dir.path());
    let start = Instant::now();
    let found = examine(&path, Depth::Bitmaps);
    let time = start.elapsed();
    println!("checked in {time:?}");
    assert_eq!(codes(&found.findings), "");
    assert_eq!((found.space.blocks, found.space.allocated), (51200, 5120));
    assert!(time < HANGS, "{time:?}");
}

fn large(dir: &Path) -> PathBuf {
    let path = dir.join("large.vhd");
    let id = Uuid::from_u128(1);
    let mut writer = vhd::image::BlockWriter::create(&path, id, 100 << 30).unwrap();
    for block in 0..5120 {
        writer.write(block * 10, 4096, &[7; 512]).unwrap();
    }
    writer.finish().unwrap();
    path
}

#[test]
fn a_batmap_that_lies_is_an_error_wherever_it_lies() {
    let dir = tempfile::tempdir().unwrap();
    let path = large(dir.path());
    let image = Image::open(&path, Mode::Read).unwrap();
    let run = image.map(3000 * 10 * (2 << 20), 512).unwrap()[0];
    let bitmap = run.at.unwrap() - 512;
    drop(image);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xfe], bitmap + 200).unwrap();
    let findings = check_image(&path);
    assert_eq!(codes(&findings), "batmap-wrong");
    assert!(findings[0].text.contains("block 30000 "), "{findings:?}");
}

#[test]
fn a_directory_is_looked_at_once_and_what_cannot_be_told_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("junk.vhd"), [7; 4096]).unwrap();
    base().write(&dir.path().join("base.vhd"));
    let folder = Folder::scan(dir.path()).unwrap();
    assert_eq!(folder.unreadable(), [dir.path().join("junk.vhd")]);
    assert_eq!(folder.find(Uuid::from_u128(base().uuid)).len(), 1);
    let path = Spec { parent: 99, ..child() }.write(&dir.path().join("a.vhd"));
    let findings = chain(&path).findings;
    assert!(findings[0].text.contains("1 files cannot be told"), "{findings:?}");
}
