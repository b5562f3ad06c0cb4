//! Each case of the corpus gets its verdict: file by file, as a chain, and in a store.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use common::cases::{Case, Expected, Fill, case, corpus, id};
use uuid::Uuid;
use vhd::check::{Code, Severity, check_image};
use vhd::tree::{Format, Health, Node};
use vhd::{Chain, Disk, Error, ExtentKind, Extents, Image, Layer, Mode, Tree};

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Writes the files, each once; answers the chain that the case lists.
fn write(case: &Case, dir: &Path) -> Vec<PathBuf> {
    case.files.iter().map(|(name, content)| content.write(&dir.join(name))).collect()
}

fn is_raw(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "raw")
}

fn layers(paths: &[PathBuf]) -> Vec<Layer<'_>> {
    let layer = |path| if is_raw(path) { Layer::Raw(path) } else { Layer::Vhd(path) };
    paths.iter().map(|path| layer(path.as_path())).collect()
}

fn expected_at(fills: &[Fill], offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    for (at, count, fill) in fills {
        let (start, end) = ((*at).max(offset), (at + count).min(offset + length as u64));
        if start < end {
            bytes[(start - offset) as usize..(end - offset) as usize].fill(*fill);
        }
    }
    bytes
}

/// The disk is exactly this: what may hold data is read, the rest is zero by its own word.
fn assert_reads(name: &str, disk: &dyn Disk, fills: &[Fill]) {
    const CHUNK: u64 = 4 << 20;
    let mut data = Vec::new();
    for extent in Extents::new(disk, 0, disk.size()) {
        let extent = extent.unwrap();
        if extent.kind == ExtentKind::Zero {
            continue;
        }
        data.push(extent.offset..extent.offset + extent.length);
        let mut at = extent.offset;
        while at < extent.offset + extent.length {
            let count = (extent.offset + extent.length - at).min(CHUNK) as usize;
            let mut bytes = vec![0xee; count];
            disk.read_at(at, &mut bytes).unwrap();
            assert!(bytes == expected_at(fills, at, count), "{name}: differs after {at}");
            at += count as u64;
        }
    }
    for (at, count, fill) in fills {
        let known = data.iter().any(|range| range.start <= *at && at + count <= range.end);
        assert!(known || *fill == 0, "{name}: data at {at} is called zero");
    }
    // What is called zero is not only said to be.
    let mut bytes = [0xee; 700];
    let at = disk.size() - 700;
    disk.read_at(at, &mut bytes).unwrap();
    assert!(bytes[..] == expected_at(fills, at, 700), "{name}: differs at its end");
}

fn open_all(paths: &[PathBuf], mode: Mode) -> Result<Chain, Error> {
    Chain::open(&layers(paths), mode)
}

fn errors(path: &Path) -> Vec<Code> {
    let findings = check_image(path).into_iter();
    findings.filter(|found| found.severity == Severity::Error).map(|found| found.code).collect()
}

fn judge(case: &Case, dir: &Path) {
    let name = case.name;
    let paths = write(case, dir);
    let refusal = |error: &Error| match error {
        Error::Format { fault, .. } => fault.clone(),
        other => panic!("{name}: {}", other.reason()),
    };
    match &case.expected {
        Expected::Reads(fills) | Expected::ReadsOnly(fills, _) => {
            let chain = open_all(&paths, Mode::Read);
            let chain = chain.unwrap_or_else(|error| panic!("{name}: {}", error.reason()));
            assert_reads(name, &chain, fills);
            assert!((case.says)(chain.info()[0]), "{name}: {:?}", chain.info()[0]);
            assert_eq!(vhd::image::probe(&paths[0]).unwrap(), *chain.info()[0], "{name}");
            for path in &paths {
                let errors = errors(path);
                let known = |code: &Code| *code == Code::BatmapWrong;
                assert!(is_raw(path) || errors.iter().all(known), "{name}: {errors:?}");
            }
        }
        Expected::Refused(is) => {
            let fault = refusal(&Image::open(&paths[0], Mode::Read).err().unwrap());
            assert!(is(&fault), "{name}: {fault:?}");
            assert!(!errors(&paths[0]).is_empty(), "{name}: check finds nothing");
            let error = Image::open(&paths[0], Mode::Write).err().unwrap();
            assert!(error.is_corrupt(), "{name}: {}", error.reason());
        }
        Expected::ChainRefused(is) => {
            let image = Image::open(&paths[0], Mode::Read).unwrap();
            assert!((case.says)(image.info()), "{name}: {:?}", image.info());
            let error = open_all(&paths, Mode::Read).err().unwrap();
            assert!(is(&error), "{name}: {error:?}");
        }
    }
    // Nothing was changed by looking.
    for ((_, content), path) in case.files.iter().zip(&paths) {
        if content.length < 16 << 20 {
            let now = std::fs::read(path).unwrap();
            assert!(now == content.bytes(0, content.length as usize), "{name}: changed");
        }
    }
}

fn node(tree: &Tree, uuid: u128) -> Node {
    let nodes = tree.list().unwrap().nodes;
    nodes.into_iter().find(|node| node.uuid == Uuid::from_u128(uuid)).unwrap()
}

/// The same directory as a store.
fn judge_in_store(case: &Case, dir: &Path) {
    let name = case.name;
    let tree = Tree::init(dir).unwrap();
    let leaf = Uuid::parse_str(&case.files[0].0[..36]).unwrap();
    let node = node(&tree, leaf.as_u128());
    assert_eq!(tree.get(leaf).unwrap().health, node.health, "{name}");
    let opened = tree.open_disk(leaf, Mode::Read);
    let words = match (&case.expected, case.store) {
        (_, Some(words)) => words,
        // A listing reads no block tables: those are refused when the disk is opened.
        (Expected::Refused(is), None) if node.is_ok() => {
            let error = opened.err().unwrap();
            assert!(matches!(&error, Error::Format { fault, .. } if is(fault)), "{name}: {error}");
            return;
        }
        (Expected::Refused(_), None) => "",
        (Expected::Reads(fills) | Expected::ReadsOnly(fills, _), None) => {
            assert!(node.is_ok(), "{name}: {:?}", node.health);
            assert_eq!(node.depth, case.files.len(), "{name}");
            assert_reads(name, &opened.unwrap(), fills);
            return;
        }
        (Expected::ChainRefused(_), None) => {
            assert!(node.is_ok() && opened.is_ok(), "{name}: {:?}", node.health);
            return;
        }
    };
    let Health::Quarantined(reason) = &node.health else { panic!("{name}: {node:?}") };
    assert!(reason.contains(words), "{name}: {reason}");
    assert!(matches!(opened, Err(Error::Quarantined { .. })), "{name}");
}

/// Writes where there was nothing and over what there was; everything else stays.
fn write_to(case: &Case, dir: &Path) {
    let name = case.name;
    let paths = write(case, dir);
    let (fills, missing) = match &case.expected {
        Expected::Reads(fills) => (fills, None),
        Expected::ReadsOnly(fills, missing) => (fills, Some(*missing)),
        _ => return,
    };
    let opened = open_all(&paths, Mode::Write);
    if let Some(wanted) = missing {
        let Err(Error::NeedsRepair { missing, .. }) = opened else { panic!("{name}: written") };
        assert_eq!(missing, wanted, "{name}");
        return;
    }
    let chain = opened.unwrap_or_else(|error| panic!("{name}: {}", error.reason()));
    let mut fills = fills.clone();
    // A part of a sector in the middle, in a block that may be there or not, and the last bytes.
    for (at, count, fill) in [
        (300, 1000, 0x51),
        (chain.size() / 2 - 700, 1400, 0x52),
        (2 << 20, 512, 0x53),
        (chain.size() - 100, 100, 0x54),
    ] {
        if at + count <= chain.size() {
            chain.write_at(at, &vec![fill; count as usize]).unwrap();
            fills.push((at, count, fill));
        }
    }
    chain.flush().unwrap();
    assert_reads(name, &chain, &fills);
    drop(chain);
    let chain = open_all(&paths, Mode::Read).unwrap();
    assert_reads(name, &chain, &fills);
    let errors = errors(&paths[0]);
    let known = ["X34", "X37"].contains(&name) && errors == [Code::BatmapWrong];
    assert!(errors.is_empty() || known, "{name}: {errors:?}");
    for ((_, content), path) in case.files.iter().zip(&paths).skip(1) {
        let now = std::fs::read(path).unwrap();
        assert!(now == content.bytes(0, content.length as usize), "{name}: its parent has changed");
    }
}

#[test]
fn names_are_told_apart_and_none_is_missing() {
    let cases = corpus();
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases.len());
    for number in 1..=32 {
        assert!(names.contains(format!("B{number}").as_str()));
        assert!(number > 21 || names.contains(format!("G{number}").as_str()));
    }
    for case in &cases {
        let leaf = &case.files[0].1;
        assert!(leaf.length <= 21 << 30 && !case.what.is_empty(), "{}", case.name);
    }
}

#[test]
fn each_case_gets_its_verdict() {
    for case in corpus() {
        judge(&case, dir().path());
    }
}

#[test]
fn each_case_gets_its_verdict_in_a_store() {
    for case in corpus() {
        let dir = dir();
        write(&case, dir.path());
        judge_in_store(&case, dir.path());
    }
}

#[test]
fn each_case_that_reads_can_be_written_to_or_says_why_not() {
    for case in corpus() {
        write_to(&case, dir().path());
    }
}

#[test]
fn the_type_is_what_the_caller_says_and_never_what_the_bytes_look_like() {
    // A guest's VHD in a raw disk stays the guest's, and a raw disk is no VHD.
    let dir = dir();
    let (_, content) = &case("G2").files[0];
    let raw = content.write(&dir.path().join("disk.raw"));
    let chain = Chain::open(&[Layer::Raw(&raw)], Mode::Read).unwrap();
    assert_eq!(chain.size(), content.length);
    let mut bytes = vec![0; 8];
    chain.read_at(0, &mut bytes).unwrap();
    assert_eq!(bytes, b"conectix");
    let tree = Tree::init(dir.path()).unwrap();
    content.write(&dir.path().join(format!("{}.raw", Uuid::from_u128(id(9)))));
    let node = node(&tree, id(9));
    assert_eq!((node.format, node.virtual_size), (Format::Raw, content.length));
}
