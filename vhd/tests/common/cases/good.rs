//! Files that must be read.

use super::super::build::Spec;
use super::{BASE, Case, Expected, Fill, base, bits, child_of, image, tap};

const MIB: u64 = 1 << 20;

/// Half of block 1 of its parent is its own.
pub(super) fn child() -> Spec {
    child_of(Spec { blocks: vec![(1, bits(&[0xf0]), 0x42)], ..image(2) }, &base())
}

/// Every other sector of block 2 is its own.
fn grandchild() -> Spec {
    child_of(Spec { blocks: vec![(2, vec![0xaa; 512], 0x43)], ..image(3) }, &child())
}

fn child_reads() -> Vec<Fill> {
    let mut fills = BASE.to_vec();
    fills.push((2 * MIB, 2048, 0x42));
    fills
}

fn grandchild_reads() -> Vec<Fill> {
    let mut fills = child_reads();
    // Beyond the first 4 KiB the data of its sectors is zero, as is the parent's.
    fills.extend((0..4).map(|pair| (4 * MIB + pair * 1024, 512, 0x43)));
    fills
}

pub(super) fn cases() -> Vec<Case> {
    let reads = Case::reads;
    let fixed = Spec { kind: 2, size: 8 << 20, ..image(1) }.full(0, 0x11);
    let odd = Spec { size: (64 << 20) + 7 * 512, ..image(1) }.entries(33).full(0, 1).full(32, 2);
    let partly = Spec { blocks: vec![(0, bits(&[0xf0]), 9)], ..image(1) };
    let disk2vhd =
        Spec { creator: *b"d2v ", version: 0x10000, geometry: [0xff, 0xff, 16, 255], ..image(1) };
    // 1927 cylinders, 4 heads, 17 sectors: 63.98 MiB of 64.
    let short =
        Spec { creator: *b"vpc ", version: 0x5_0003, geometry: [0x07, 0x87, 4, 17], ..image(1) };
    let reversed = Spec { blocks: vec![(0, bits(&[0x0f]), 5)], ..tap(1, 1) };
    let full = |spec: Spec| spec.full(0, 4);
    let four: &[Fill] = &[(0, 4096, 4)];
    let only = |missing| Expected::ReadsOnly(four.to_vec(), missing);
    let larger = child_of(Spec { size: 128 << 20, ..image(2) }.entries(64), &base());
    vec![
        reads("G1", "fixed", &[&fixed], &[(0, 4096, 0x11)]),
        reads(
            "G2",
            "dynamic",
            &[&image(1).full(0, 0x21).full(3, 0x22)],
            &[(0, 4096, 0x21), (6 * MIB, 4096, 0x22)],
        ),
        reads(
            "G3",
            "512 KiB blocks",
            &[&image(1).block(512 << 10).full(0, 1).full(3, 2).full(5, 3)],
            &[(0, 4096, 1), (3 << 19, 4096, 2), (5 << 19, 4096, 3)],
        ),
        reads(
            "G4",
            "4 MiB blocks",
            &[&image(1).block(4 << 20).full(0, 1).full(3, 2)],
            &[(0, 4096, 1), (12 * MIB, 4096, 2)],
        ),
        reads("G5", "odd size", &[&odd], &[(0, 4096, 1), (64 * MIB, 7 * 512, 2)]),
        reads("G6", "block partly present", &[&partly], &[(0, 4 * 512, 9)]),
        reads("G7", "large table", &[&image(1).entries(600).full(1, 7)], &[(2 * MIB, 4096, 7)]),
        reads("G8", "Disk2vhd style geometry", &[&disk2vhd], &[]),
        reads("G9", "creator vpc, smaller by geometry", &[&short], &[])
            .says(|info| info.size == 64 << 20 && info.chs_size == Some(1927 * 4 * 17 * 512)),
        reads("G10", "tap 1.3 without batmap", &[&full(tap(1, 0x1_0003))], four),
        reads("G11", "tap 0.1: bits the other way round", &[&reversed], &[(0, 4 * 512, 5)]),
        reads("G12", "Azure", &[&full(Spec { creator: *b"wa\0\0", ..image(1) })], four),
        reads("G13", "511-byte footer", &[&full(Spec { cut: 1, ..image(1) })], four),
        reads("G14", "hidden", &[&full(Spec { hidden: 1, ..image(1) })], four)
            .says(|info| info.hidden),
        Case::new(
            "G15",
            "no footer at the end",
            &[&full(Spec { end: false, ..image(1) })],
            only("the footer at the end"),
        )
        .says(|info| !info.end_footer && info.copy_footer),
        Case::new(
            "G16",
            "no footer copy",
            &[&full(Spec { copy: false, ..image(1) })],
            only("the footer copy at offset 0"),
        )
        .says(|info| info.end_footer && !info.copy_footer),
        reads("G17", "in the future", &[&Spec { timestamp: 0x7fff_ffff, ..image(1) }], &[]),
        reads("G18", "base of the next ones", &[&base()], &BASE),
        reads("G19", "differencing", &[&child(), &base()], &child_reads()),
        reads("G20", "depth 3", &[&grandchild(), &child(), &base()], &grandchild_reads()),
        reads("G21", "larger than its parent", &[&larger, &base()], &BASE),
    ]
}
