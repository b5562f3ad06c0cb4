//! One file that some tool writes, that a cut leaves, or that somebody could make on purpose.

use vhd::error::Fault;
use vhd::footer::DiskType;

use super::super::build::{Batmap, Spec, utf16le};
use super::{BASE, Case, Expected, Fill, base, bits, child_of, file_name, id, image, tap};

const FOUR: &[Fill] = &[(0, 4096, 4)];
const MIB: u64 = 1 << 20;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = footers();
    cases.extend(fields());
    cases.extend(batmaps());
    cases.extend(layouts());
    cases.extend(guests());
    cases
}

fn footers() -> Vec<Case> {
    let (no, reads) = (Case::refused, Case::reads);
    let d = || image(1).full(0, 4);
    let poison = || Spec { footer_cookie: *b"v_poison", ..d() };
    let at_end = |end: Spec, of: Spec| Spec { end_footer: Some(end.footer()), ..of };
    let at_start = |copy: Spec, of: Spec| Spec { copy_footer: Some(copy.footer()), ..of };
    let poisoned = |f: &Fault| *f == Fault::Poisoned;
    let old = |version| tap(1, version).full(0, 4);
    vec![
        no("X1", "poisoned: a resize was cut", &poison(), poisoned),
        no("X2", "poisoned at the end only", &at_end(poison(), d()), poisoned),
        no("X3", "poisoned copy only", &at_start(poison(), d()), poisoned),
        reads(
            "X4",
            "tap 1.1, hidden set in the copy without its checksum",
            &[&old(0x1_0001)],
            FOUR,
        )
        .patch(85, &[1])
        .says(|info| info.hidden && !info.needs_repair()),
        reads("X5", "the same of tap 0.1", &[&old(1)], FOUR)
            .patch(85, &[1])
            .says(|info| info.hidden && !info.needs_repair()),
        Case::new(
            "X6",
            "the same of tap 1.3: its copy is no footer",
            &[&old(0x1_0003)],
            Expected::ReadsOnly(FOUR.to_vec(), "the footer copy at offset 0"),
        )
        .patch(85, &[1])
        .says(|info| !info.hidden),
        reads(
            "X7",
            "sizes differ, a grow was cut between the footers: the end counts",
            &[&at_end(
                Spec { size: 128 << 20, ..image(1) },
                Spec { size: 64 << 20, ..image(1) }.entries(64).full(0, 4),
            )],
            FOUR,
        )
        .says(|info| info.size == 128 << 20),
        reads(
            "X8",
            "sizes differ, the copy is the newer one: the end counts all the same",
            &[&at_start(
                Spec { size: 128 << 20, timestamp: 800_000_000, ..image(1) },
                image(1).entries(64).full(0, 4),
            )],
            FOUR,
        )
        .says(|info| info.size == 64 << 20 && info.timestamp == 700_000_000),
        no(
            "X9",
            "the end says more than the table holds",
            &at_end(Spec { size: 128 << 20, ..image(1) }, d()),
            |f| *f == Fault::TableTooSmall { entries: 32, needed: 64 },
        ),
        no("X10", "footers of two images", &at_end(image(2), d()), |f| {
            matches!(f, Fault::FootersDisagree { .. })
        }),
        no("X11", "footers of two types", &at_end(Spec { kind: 2, ..image(1) }, d()), |f| {
            matches!(f, Fault::FootersDisagree { .. })
        }),
        reads("X12", "hidden at the end only", &[&at_end(Spec { hidden: 1, ..d() }, d())], FOUR)
            .says(|info| info.hidden),
        reads("X13", "hidden in the copy only", &[&at_start(Spec { hidden: 1, ..d() }, d())], FOUR)
            .says(|info| !info.hidden),
        reads(
            "X14",
            "tap 1.1, hidden in the copy only, with its checksum",
            &[&at_start(Spec { hidden: 1, ..old(0x1_0001) }, old(0x1_0001))],
            FOUR,
        )
        .says(|info| info.hidden),
        reads(
            "X15",
            "tap 1.1, hidden at the end only",
            &[&at_end(Spec { hidden: 1, ..old(0x1_0001) }, old(0x1_0001))],
            FOUR,
        )
        .says(|info| !info.hidden),
        Case::new(
            "X16",
            "cut behind the last block: the copy serves",
            &[&Spec { end: false, hidden: 1, ..d() }],
            Expected::ReadsOnly(FOUR.to_vec(), "the footer at the end"),
        )
        .says(|info| info.hidden),
        no("X17", "neither footer", &Spec { end: false, copy: false, ..d() }, |f| {
            matches!(f, Fault::NoFooter { .. })
        }),
    ]
}

fn fields() -> Vec<Case> {
    let (no, reads) = (Case::refused, Case::reads);
    let d = || image(1).full(0, 4);
    let block = |size: u32| Spec { block: size, ..image(1) };
    let features = |features| Spec { features, ..d() };
    let small = Spec { size: 1 << 20, ..image(1) }.block(512).full(0, 1).full(2047, 2);
    let large = Spec { size: 600 << 20, ..image(1) }.block(256 << 20).full(1, 5);
    let most = Spec { size: 2040 << 30, ..image(1) }.block(2 << 20).full(0, 4).full(1_044_479, 9);
    vec![
        reads(
            "X18",
            "creator qemu, smaller by geometry: the current size counts",
            &[&Spec { creator: *b"qemu", geometry: [0x07, 0x87, 4, 17], ..d() }],
            FOUR,
        )
        .says(|info| info.size == 64 << 20 && info.chs_size == Some(1927 * 4 * 17 * 512)),
        reads("X19", "feature bits that nobody knows", &[&features(0xffff_fffe)], FOUR),
        reads("X20", "no feature bit", &[&features(0)], FOUR),
        reads("X21", "temporary", &[&features(3)], FOUR),
        reads("X22", "next record of 32 bits", &[&Spec { next_record: 0xffff_ffff, ..d() }], FOUR),
        reads("X23", "of the other 32", &[&Spec { next_record: !0xffff_ffff, ..d() }], FOUR),
        no("X24", "next record", &Spec { next_record: 4096, ..d() }, |f| {
            *f == Fault::NextRecord(4096)
        }),
        no("X25", "block size 0x80", &block(0x80), |f| *f == Fault::BlockSize(0x80)),
        no("X26", "block size 0x12345678", &block(0x1234_5678), |f| {
            *f == Fault::BlockSize(0x1234_5678)
        }),
        reads("X27", "block size 512", &[&small], &[(0, 512, 1), (2047 * 512, 512, 2)]),
        reads("X28", "block size 256 MiB", &[&large], &[(256 * MIB, 4096, 5)]),
        no("X29", "block size 512 MiB", &block(512 << 20), |f| *f == Fault::BlockSize(512 << 20)),
        reads("X30", "largest disk", &[&most], &[(0, 4096, 4), ((2040 << 30) - 2 * MIB, 4096, 9)]),
        no("X31", "a sector more", &Spec { size: (2040 << 30) + 512, ..image(1) }, |f| {
            *f == Fault::SizeTooLarge((2040 << 30) + 512)
        }),
        no("X32", "part of a sector", &Spec { size: (64 << 20) + 1, ..image(1) }, |f| {
            *f == Fault::SizeNotSectors((64 << 20) + 1)
        }),
        no(
            "X33",
            "largest disk in the smallest blocks",
            // A file that is long enough for its table, 16 GiB, has a hole there.
            &Spec {
                size: 2040 << 30,
                entries: u32::MAX,
                block: 512,
                blocks_at: Some(20 << 30),
                ..image(1)
            },
            |f| matches!(f, Fault::TableTooLarge(bytes) if *bytes == 4 * (2040 << 30) / 512),
        ),
    ]
}

fn batmaps() -> Vec<Case> {
    let reads = Case::reads;
    // Block 0 has the first half of its 4 KiB by its bitmap, all of it by its batmap.
    let with = |version, batmap| Spec {
        batmap: Some(batmap),
        blocks: vec![(0, bits(&[0xf0]), 4), (3, vec![0xff; 512], 6)],
        ..tap(1, version)
    };
    let of = |blocks: &[usize]| Batmap::of(blocks);
    let half: &[Fill] = &[(0, 2048, 4), (6 * MIB, 4096, 6)];
    let whole: &[Fill] = &[(0, 4096, 4), (6 * MIB, 4096, 6)];
    let signed = Batmap { version: 0x1_0001, signed: true, ..of(&[0, 3]) };
    let unsigned = Batmap { version: 0x1_0001, ..of(&[0, 3]) };
    let absent = Spec { batmap: Some(of(&[1])), ..child_of(tap(2, 0x1_0003), &base()) };
    let mut cases = vec![
        reads("X34", "batmap 1.1, signed checksum", &[&with(0x1_0001, signed)], whole),
        reads("X35", "batmap 1.1, unsigned checksum: ignored", &[&with(0x1_0001, unsigned)], half),
        reads(
            "X36",
            "batmap checksum wrong: ignored",
            &[&with(0x1_0003, Batmap { sum_off: 1, ..of(&[0]) })],
            half,
        ),
        reads(
            "X37",
            "batmap calls a block full whose bitmap has holes: it counts, as for blktap",
            &[&with(0x1_0003, of(&[0]))],
            whole,
        ),
        reads(
            "X38",
            "batmap calls a block full that is not there: ignored as a whole",
            &[&with(0x1_0003, of(&[0, 1]))],
            half,
        ),
        reads("X39", "the same above a parent, which is read", &[&absent, &base()], &BASE),
        reads(
            "X40",
            "batmap of a creator that has none",
            &[&Spec { creator: *b"win ", ..with(6, of(&[0])) }],
            half,
        ),
        reads("X41", "batmap right", &[&with(0x1_0003, of(&[3]))], half),
    ];
    // The header is behind the table, the map elsewhere: behind the end, on the footer.
    let file = with(0x1_0003, of(&[0]));
    let end = file.content().length;
    for (name, what, at) in [
        ("X42", "batmap beyond the end: ignored", end),
        ("X43", "batmap on the footer: ignored", end - 512),
    ] {
        cases.push(reads(name, what, &[&file], half).patch(2048 + 8, &at.to_be_bytes()));
    }
    cases
}

fn layouts() -> Vec<Case> {
    let no = Case::refused;
    let said = |at: u64| Spec { bat_offset_said: Some(at), ..image(1) };
    let end = image(1).content().length - 512;
    let linked = |offset: u64| {
        let name = utf16le(&format!(".\\{}", file_name(id(2))));
        let locators = vec![(*b"W2ru", name, None, Some(offset))];
        Spec { kind: 4, parent: id(2), locators, ..image(1) }
    };
    let overlap: fn(&Fault) -> bool = |f| matches!(f, Fault::MetadataOverlap { .. });
    vec![
        no("X44", "table on the header", &said(1024), overlap),
        no("X45", "table on the footer", &said(end), |f| matches!(f, Fault::TableOutside { .. })),
        no("X46", "table wraps", &said(u64::MAX - 511), |f| {
            matches!(f, Fault::TableOutside { .. })
        }),
        no("X47", "locator on the table", &linked(1536), overlap),
        no("X48", "locator on the header", &linked(1024), overlap),
        no("X49", "locator on the copy", &linked(256), overlap),
        no("X50", "locator on a block", &linked(2560).full(0, 1), |f| {
            *f == Fault::BlockOnMetadata { block: 0, sector: 5, area: "a parent locator" }
        }),
        no("X51", "locator on the footer", &linked(2560), |f| matches!(f, Fault::Locator { .. })),
        no("X52", "entry at the top", &Spec { table: vec![(0, 0xffff_fffe)], ..image(1) }, |f| {
            matches!(f, Fault::BlockOutside { block: 0, sector: 0xffff_fffe, .. })
        }),
        no(
            "X53",
            "entry for the data, not the bitmap",
            &Spec { table: vec![(0, 5)], ..image(1) }.full(0, 1),
            |f| matches!(f, Fault::BlockOutside { block: 0, sector: 5, .. }),
        ),
    ]
}

/// A fixed image is what its footer at the end says, whatever its guest writes.
fn guests() -> Vec<Case> {
    let fixed = || Spec { kind: 2, size: 8 << 20, ..image(5) };
    let guest = |name, what, bytes: &[u8], fills: &[Fill]| {
        let is_fixed = |info: &vhd::Info| {
            info.disk_type == DiskType::Fixed && info.size == 8 << 20 && !info.needs_repair()
        };
        Case::reads(name, what, &[&fixed()], fills).patch(0, bytes).says(is_fixed)
    };
    // Written so that what reads back can be said as fills.
    let ascii = |text: &[u8]| -> Vec<Fill> {
        text.iter().enumerate().map(|(at, byte)| (at as u64, 1, *byte)).collect()
    };
    let qcow2 = b"QFI\xfb\0\0\0\x03";
    let inner = image(1).full(0, 4);
    let vhd = &inner.build();
    vec![
        guest("X54", "a guest's qcow2 header", qcow2, &ascii(qcow2)),
        guest("X55", "a guest's dynamic VHD", vhd, &ascii(&vhd[..2048])).and(
            &[(2048, 512, 0xff), (2560, 4096, 4)],
            vhd.len() as u64 - 512,
            &inner.footer(),
        ),
        guest("X56", "a guest's cookie of a resize", b"v_poison", &ascii(b"v_poison")),
        guest("X57", "a guest's cookie", b"conectix", &ascii(b"conectix")),
    ]
}

impl Case {
    /// More of what the first file must read as.
    fn and(mut self, fills: &[Fill], at: u64, bytes: &[u8]) -> Self {
        if let Expected::Reads(all) = &mut self.expected {
            all.extend(fills);
            all.extend(bytes.iter().zip(at..).map(|(byte, at)| (at, 1, *byte)));
        }
        self
    }
}
