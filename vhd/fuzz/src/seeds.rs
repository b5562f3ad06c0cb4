//! What a run starts from: files of the tests' own builder, small where the format allows it.

use std::path::Path;

use crate::build::{Batmap, Content, Spec, utf16le};
use crate::input::{File, Input};

/// The UUID of the file with that number, and of the image in it.
pub fn uuid(number: usize) -> uuid::Uuid {
    uuid::Uuid::from_u128(0xabcd_0000_0000_4000_8000_0000_0000_0000 | (number as u128 + 1))
}

fn id(number: usize) -> u128 {
    uuid(number).as_u128()
}

fn name(number: usize) -> String {
    format!("{}.vhd", uuid(number))
}

fn spec(number: usize) -> Spec {
    Spec { uuid: id(number), ..Spec::default() }
}

fn small(number: usize) -> Spec {
    Spec { size: 16 << 10, ..spec(number) }.block(1 << 10)
}

fn half() -> Vec<u8> {
    let mut bits = vec![0; 512];
    bits[0] = 0xf0;
    bits
}

/// Sets of files, the first the leaf of the rest.
pub fn files() -> Vec<Vec<Content>> {
    let tap = |number| Spec { creator: *b"tap\0", version: 0x0001_0003, ..small(number) };
    let batmap = |blocks: &[usize]| Some(Batmap::of(blocks));
    let base = spec(2).full(0, 1).full(1, 2).full(2, 3);
    let child = Spec { blocks: vec![(1, half(), 0x42)], ..spec(1) }.child_of(&base, &name(2));
    let leaf =
        Spec { blocks: vec![(2, vec![0xaa; 512], 0x43)], ..spec(0) }.child_of(&child, &name(1));
    let small_base = small(2).full(0, 1).full(5, 2);
    let small_child = Spec { blocks: vec![(5, vec![0x80; 512], 0x42)], ..small(1) }
        .child_of(&small_base, &name(2));
    let mut small_leaf = Spec { blocks: vec![(7, vec![0xaa; 512], 0x43)], ..small(0) }
        .child_of(&small_child, &name(1));
    small_leaf.locators = vec![
        (*b"MacX", format!("file://./{}", name(1)).into_bytes(), None, None),
        (*b"W2ku", utf16le(&format!(".\\{}", name(1))), None, None),
        (*b"W2ru", utf16le(&format!(".\\{}", name(1))), None, None),
    ];
    let signed =
        Batmap { map: vec![0xff; 512], version: 0x0001_0001, signed: true, ..Batmap::of(&[]) };
    let poisoned = *b"v_poison";
    let raw_parent = Spec { parent: 0, ..small(0).child_of(&small_base, &name(2)) };
    let mut disagree = small(0).full(0, 3);
    disagree.end_footer = Some(Spec { hidden: 1, ..disagree.clone() }.footer());
    let fixed = Spec { kind: 2, size: 8 << 10, ..spec(2) }.full(0, 0x11);
    let larger = Spec { size: 32 << 10, ..small(0) }.block(1 << 10).child_of(&small_base, &name(2));
    let sets: Vec<Vec<Spec>> = vec![
        vec![leaf, child, base.clone()],
        vec![small_leaf.clone(), small_child.clone(), small_base.clone()],
        vec![larger, small_base.clone()],
        vec![small(0).child_of(&fixed, &name(2)), fixed.clone()],
        vec![small(0).child_of(&small(1), &name(1)), small(1).child_of(&small(0), &name(0))],
        vec![small(0).child_of(&small(0), &name(0))],
        vec![raw_parent],
        vec![fixed],
        vec![spec(0).full(0, 0x21).full(3, 0x22)],
        vec![spec(0).block(512 << 10).full(0, 1).full(5, 3)],
        vec![Spec { creator: *b"tap\0", version: 1, blocks: vec![(0, half(), 5)], ..small(0) }],
        vec![Spec { batmap: batmap(&[0, 3]), ..tap(0) }.full(0, 1).full(3, 2)],
        vec![Spec { batmap: batmap(&[0]), blocks: vec![(0, half(), 5)], ..tap(0) }],
        vec![Spec { batmap: Some(Batmap { sum_off: 1, ..Batmap::of(&[0]) }), ..tap(0) }.full(0, 1)],
        vec![Spec { batmap: Some(signed), version: 0x0001_0001, ..tap(0) }.full(0, 1)],
        vec![tap(0).full(0, 1)],
        vec![Spec { cut: 1, ..small(0) }.full(0, 4)],
        vec![Spec { end: false, ..small(0) }.full(0, 4)],
        vec![Spec { copy: false, ..small(0) }.full(0, 4)],
        vec![Spec { footer_cookie: poisoned, ..small(0) }.full(0, 4)],
        vec![disagree],
        vec![small(0).entries(600).full(1, 7)],
        vec![Spec { truncate: Some(6000), ..small(0) }.full(0, 1).full(3, 1)],
        vec![small(0)],
    ];
    sets.into_iter().map(|set| set.iter().map(Spec::content).collect()).collect()
}

/// Longest seed, bytes: a long one makes everything that grows from it slow.
const LONGEST: usize = 24 << 10;

/// Writes the seeds of a target that takes files: those above, and the corpus of the tests.
pub fn write(dir: &Path) {
    let _ = std::fs::create_dir_all(dir);
    let put = |name: String, control, files: &[File]| {
        let bytes = Input { control, files: files.to_vec() }.encode();
        if bytes.len() <= LONGEST {
            let _ = std::fs::write(dir.join(name), bytes);
        }
    };
    for (index, set) in files().iter().enumerate() {
        let files: Vec<File> = set.iter().map(File::of).collect();
        for control in 0..4 {
            put(format!("seed-{index:02}-{control}"), control, &files);
        }
    }
    for case in crate::cases::corpus() {
        let mut files: Vec<File> = case.files.iter().map(|(_, file)| File::of(file)).collect();
        // What is wrong with a checksum stays so.
        for file in &mut files {
            file.fixes = 0;
        }
        put(format!("case-{}", case.name), 1, &files);
    }
}

/// Writes the seeds of a target that takes the bytes of one file, after one byte of its own.
pub fn write_flat(dir: &Path) {
    let _ = std::fs::create_dir_all(dir);
    for (index, set) in files().iter().enumerate() {
        let Some(file) = set.first() else { continue };
        if file.length > 7 << 10 {
            continue;
        }
        for control in [0, 7] {
            let mut bytes = vec![control];
            bytes.extend(file.bytes(0, file.length as usize));
            let _ = std::fs::write(dir.join(format!("seed-{index:02}-{control}")), bytes);
        }
    }
}

/// Where the seeds of this run are wanted.
pub fn wanted() -> Option<std::path::PathBuf> {
    std::env::var_os("VHD_FUZZ_SEEDS").map(Into::into)
}
