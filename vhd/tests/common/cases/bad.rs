//! Files that must be refused.

use vhd::Error;
use vhd::error::Fault;

use super::super::build::{Content, Spec, utf16le};
use super::{Case, Expected, base, child_of, file_name, id, image};

fn bytes(name: &'static str, what: &'static str, bytes: &[u8], is: fn(&Fault) -> bool) -> Case {
    let mut case = Case::refused(name, what, &image(1), is);
    case.files[0].1 = Content::of(bytes);
    case
}

fn differencing(parent: u128, code: [u8; 4], name: Vec<u8>) -> Spec {
    Spec { kind: 4, parent, locators: vec![(code, name, None, None)], ..image(2) }
}

pub(super) fn cases() -> Vec<Case> {
    let no = Case::refused;
    let d = || image(1);
    let said = |at| Spec { bat_offset_said: Some(at), ..d() };
    let entry = |sector| Spec { table: vec![(0, sector)], ..d() };
    let block = |block| Spec { block, ..d() };
    let locator = |code, length, offset| {
        let locators = vec![(code, b"file://./x.vhd".to_vec(), length, offset)];
        Spec { kind: 4, parent: id(7), locators, ..d() }
    };
    let mut cookie = vec![0; 511];
    cookie[..8].copy_from_slice(b"conectix");
    let mut mismatch = child_of(image(2), &base());
    mismatch.parent = 1;
    let a = child_of(image(0xa), &image(0xb));
    let b = child_of(image(0xb), &a);
    let outside = differencing(id(7), *b"W2ru", utf16le("../../../../../../etc/passwd#1.vhd"));
    let null = differencing(0, *b"W2ru", utf16le(&format!(".\\{}", file_name(id(1)))));
    let exfiltrate = differencing(0, *b"MacX", b"file:///etc/passwd".to_vec());
    let incomplete: fn(&Error) -> bool = |e| matches!(e, Error::ChainIncomplete { .. });
    let chain =
        |name, what, specs: &[&Spec], is| Case::new(name, what, specs, Expected::ChainRefused(is));
    let mut cases = vec![
        no(
            "B1",
            "footer checksum",
            &Spec { footer_sum_off: 1, ..d() },
            |f| matches!(f, Fault::FooterChecksum { stored, computed } if *stored == computed + 1),
        ),
        no(
            "B2",
            "header checksum",
            &Spec { header_sum_off: 1, ..d() },
            |f| matches!(f, Fault::HeaderChecksum { stored, computed } if *stored == computed + 1),
        ),
        no("B3", "footer cookie", &Spec { footer_cookie: *b"conectiX", ..d() }, |f| {
            *f == Fault::NoFooter { end: "conectiX".to_owned(), start: "conectiX".to_owned() }
        }),
        no("B4", "header cookie", &Spec { header_cookie: *b"cxsparsE", ..d() }, |f| {
            *f == Fault::HeaderCookie("cxsparsE".to_owned())
        }),
        no("B5", "block size 0", &block(0), |f| *f == Fault::BlockSize(0)),
        no("B6", "block size 3 MiB", &block(3 << 20), |f| *f == Fault::BlockSize(3 << 20)),
        no("B7", "block size 256", &block(256), |f| *f == Fault::BlockSize(256)),
        no("B8", "block size 2 GiB", &block(2 << 30), |f| *f == Fault::BlockSize(2 << 30)),
        no("B9", "16 GiB table", &Spec { entries: u32::MAX, ..d() }, |f| {
            matches!(f, Fault::TableOutside { offset: 1536, entries: u32::MAX, .. })
        }),
        no("B10", "table smaller than the disk", &Spec { entries: 3, ..d() }, |f| {
            *f == Fault::TableTooSmall { entries: 3, needed: 32 }
        }),
        no("B11", "table beyond the end", &said(1 << 40), |f| {
            matches!(f, Fault::TableOutside { offset: 0x100_0000_0000, entries: 32, .. })
        }),
        no("B12", "table not on a sector", &said(1537), |f| *f == Fault::TableUnaligned(1537)),
        no("B13", "block in the headers", &entry(1).full(1, 1), |f| {
            matches!(f, Fault::BlockOnMetadata { block: 0, sector: 1, .. })
        }),
        no("B14", "two entries for one block", &entry(4).full(1, 1), |f| {
            matches!(f, Fault::BlocksOverlap { first_sector: 4, second_sector: 4, .. })
        }),
        no("B15", "overlapping blocks", &entry(12).full(1, 1).full(2, 1), |f| {
            *f == Fault::BlocksOverlap { first: 1, first_sector: 4, second: 0, second_sector: 12 }
        }),
        no("B16", "block beyond the end", &entry(0x7fff_ffff), |f| {
            matches!(f, Fault::BlockOutside { block: 0, sector: 0x7fff_ffff, .. })
        }),
        no(
            "B17",
            "cut off inside a block",
            &Spec { truncate: Some(3 << 20), ..d() }.full(0, 1).full(3, 1),
            |f| matches!(f, Fault::BlockOutside { block: 3, .. }),
        ),
        no("B18", "size 0", &Spec { size: 0, ..d() }, |f| *f == Fault::SizeZero),
        no("B19", "size 2041 GiB", &Spec { size: 2041 << 30, ..d() }, |f| {
            *f == Fault::SizeTooLarge(2041 << 30)
        }),
        no("B20", "type 0", &Spec { kind: 0, ..d() }, |f| *f == Fault::DiskType(0)),
        no("B21", "type 6", &Spec { kind: 6, ..d() }, |f| *f == Fault::DiskType(6)),
        chain(
            "B22",
            "parent of another UUID",
            &[&mismatch, &base()],
            |e| matches!(e, Error::ParentMismatch { expected, .. } if expected.as_u128() == 1),
        )
        .store("expects the parent"),
        chain("B23", "parent gone", &[&child_of(image(2), &base())], incomplete)
            .store("is missing"),
        chain("B24", "locator leads out", &[&outside], incomplete)
            .store("its parent locator leaves the directory"),
        chain("B25", "cycle of two", &[&a, &b, &a], |e| matches!(e, Error::Cycle { .. }))
            .store("leads back to itself"),
        no("B26", "its own parent", &child_of(d(), &d()), |f| *f == Fault::OwnParent),
        chain(
            "B27",
            "null parent UUID, relative locator: a raw file, not this VHD",
            &[&null, &base()],
            |e| matches!(e, Error::ParentMismatch { expected, .. } if expected.is_nil()),
        )
        .store("names a raw file as its parent"),
        no("B28", "locator of 4 GiB", &locator(*b"W2ru", Some(u32::MAX), Some(2048)), |f| {
            matches!(f, Fault::Locator { offset: 2048, length: u32::MAX, .. })
        }),
        no("B29", "locator at 2^50", &locator(*b"MacX", Some(20), Some(1 << 50)), |f| {
            matches!(f, Fault::Locator { offset: 0x4_0000_0000_0000, length: 20, .. })
        }),
        bytes("B30", "empty file", &[], |f| *f == Fault::TooShort(0)),
        bytes("B31", "511 bytes, only a cookie", &cookie, |f| {
            matches!(f, Fault::FooterChecksum { stored: 0, .. })
        }),
        chain("B32", "null parent UUID, locator of a host's file", &[&exfiltrate], incomplete)
            .says(|info| {
                let parent = info.parent.as_ref();
                parent.is_some_and(|parent| parent.elsewhere() == Some("/etc/passwd"))
            })
            .store("its parent locator leaves the directory"),
    ];
    cases.sort_by_key(|case| case.name[1..].parse::<u32>().unwrap_or(0));
    cases
}
