//! Chains: who is whose parent, and what the locators say about it.

use vhd::Error;
use vhd::image::Parent;
use vhd::locator::Hint;

use super::super::build::{Content, Locator, Spec, utf16le};
use super::{BASE, Case, Expected, Fill, base, child_of, file_name, id, image};

fn parent(info: &vhd::Info) -> Option<&Parent> {
    info.parent.as_ref()
}

fn sibling(info: &vhd::Info) -> Option<&str> {
    parent(info).and_then(Parent::sibling)
}

fn is_base(info: &vhd::Info) -> bool {
    sibling(info) == Some(file_name(id(1)).as_str())
}

fn has_no_hint(info: &vhd::Info) -> bool {
    parent(info).is_some_and(|parent| parent.hints.is_empty())
}

fn locator(code: [u8; 4], bytes: Vec<u8>) -> Locator {
    (code, bytes, None, None)
}

/// A child of [`base`] with these locators.
fn linked(locators: Vec<Locator>) -> Spec {
    Spec { locators, ..child_of(image(2), &base()) }
}

fn reads(name: &'static str, what: &'static str, child: &Spec) -> Case {
    Case::reads(name, what, &[child, &base()], &BASE)
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = locators();
    cases.extend(links());
    cases
}

fn locators() -> Vec<Case> {
    let name = file_name(id(1));
    let windows = |prefix: &str| utf16le(&format!("{prefix}{name}"));
    let url = |prefix: &str| format!("{prefix}{name}").into_bytes();
    let one = |code: [u8; 4], bytes| linked(vec![locator(code, bytes)]);
    let mut padded = windows(".\\");
    padded.extend([0; 20]);
    // An unpaired surrogate, then a letter.
    let units = vec![0xd800, u16::from(b'a')];
    let broken: Vec<u8> = units.iter().copied().flat_map(u16::to_le_bytes).collect();
    let disagree = linked(vec![
        locator(*b"W2ku", utf16le("C:\\vm\\other.vhd")),
        locator(*b"MacX", b"file:///etc/passwd".to_vec()),
        locator(*b"MacX", url("file://./")),
        locator(*b"W2ru", utf16le("..\\..\\secret.vhd")),
        locator(*b"W2ru", utf16le(&file_name(id(9)))),
        locator(*b"Wi2r", b"x.vhd".to_vec()),
        locator(*b"Mac ", b"y.vhd".to_vec()),
        locator(*b"W2ku", windows("")),
    ]);
    let absolute = linked(vec![
        locator(*b"W2ku", utf16le(&format!("C:\\vm\\{name}"))),
        locator(*b"W2ru", windows("..\\elsewhere\\")),
    ]);
    vec![
        reads(
            "X60",
            "room of a locator in bytes",
            &Spec { space: 512, ..one(*b"W2ru", windows(".\\")) },
        )
        .says(is_base),
        reads("X61", "in sectors", &Spec { space: 1, ..one(*b"W2ru", windows(".\\")) })
            .says(is_base),
        reads("X62", "no room at all", &Spec { space: 0, ..one(*b"W2ru", windows(".\\")) })
            .says(is_base),
        reads("X63", "W2ku with a relative path", &one(*b"W2ku", windows(".\\"))).says(is_base),
        reads("X64", "W2ku with a path of vhd-util's", &one(*b"W2ku", windows("./"))).says(is_base),
        reads("X65", "W2ku with a plain name", &one(*b"W2ku", windows(""))).says(is_base),
        reads("X66", "W2ru, zeros behind it", &one(*b"W2ru", padded)).says(is_base),
        reads("X67", "only MacX", &one(*b"MacX", url("file://./"))).says(is_base),
        reads("X68", "MacX without a URL", &one(*b"MacX", url("./"))).says(is_base),
        reads(
            "X69",
            "only deprecated codes: found by UUID",
            &linked(vec![
                locator(*b"Wi2r", url("")),
                locator(*b"Wi2k", url("C:\\")),
                locator(*b"Mac ", vec![1; 64]),
            ]),
        )
        .says(has_no_hint),
        reads("X70", "no locator: found by UUID", &linked(vec![])).says(has_no_hint),
        reads(
            "X71",
            "unpaired surrogates: found by UUID",
            &Spec { parent_units: Some(units), ..one(*b"W2ru", broken) },
        )
        .says(|info| {
            sibling(info) == Some("\u{fffd}a")
                && parent(info).is_some_and(|p| p.name == "\u{fffd}a")
        }),
        reads(
            "X72",
            "a name beyond ASCII: found by UUID",
            &Spec {
                parent_name: "B\u{e4}se \u{1f4be}.vhd".to_owned(),
                ..one(*b"MacX", "file://./B\u{e4}se \u{1f4be}.vhd".as_bytes().to_vec())
            },
        )
        .says(|info| {
            sibling(info) == Some("B\u{e4}se \u{1f4be}.vhd")
                && parent(info).is_some_and(|parent| parent.name == "B\u{e4}se \u{1f4be}.vhd")
        }),
        reads("X73", "bytes that are no UTF-8: found by UUID", &one(*b"MacX", vec![0xff; 40])),
        reads("X74", "eight locators that disagree: found by UUID", &disagree).says(|info| {
            let hints = parent(info).map(|parent| parent.hints.clone()).unwrap_or_default();
            // Each once: two of W2ru, two of MacX, and of W2ku the one that is new.
            hints.len() == 5
                && hints[0] == Hint::Elsewhere("..\\..\\secret.vhd".to_owned())
                && hints[1] == Hint::Sibling(file_name(id(9)))
                && sibling(info) == Some(file_name(id(9)).as_str())
        }),
        reads("X75", "all locators lead out, and the parent is here", &absolute)
            .says(|info| parent(info).is_some_and(|parent| parent.elsewhere().is_some()))
            .store("its parent locator leaves the directory"),
        reads("X76", "two locators share their bytes", &{
            let mut spec = one(*b"W2ru", windows(".\\"));
            spec.locators.push((*b"W2ku", Vec::new(), Some(84), Some(2048)));
            spec
        })
        .expecting(Expected::Refused(|f| {
            matches!(
                f,
                vhd::error::Fault::MetadataOverlap {
                    left: "a parent locator",
                    right: "a parent locator"
                }
            )
        })),
    ]
}

fn links() -> Vec<Case> {
    let fill: &[Fill] = &[(0, 4096, 6)];
    let small = Spec { size: 32 << 20, ..image(2) };
    let other_blocks = image(1).block(512 << 10).full(0, 1).full(4, 2).full(8, 3);
    let fixed = Spec { kind: 2, size: 8 << 20, ..image(1) }.full(0, 6);
    let odd = Spec { size: (4 << 20) + 512, ..image(1) }.entries(3).full(2, 7);
    let raw_child = Spec { parent: 0, ..child_of(image(2), &base()) };
    let raw = |name, what, length: u64, expected| {
        let mut case = Case::new(name, what, &[&raw_child], expected);
        let mut content = Content::default();
        content.put(0, &[6; 4096]);
        content.set_length(length);
        case.files.push((format!("{}.raw", uuid::Uuid::from_u128(id(1))), content));
        case.store("names a raw file as its parent")
    };
    let twin = Spec { uuid: id(1), ..base() };
    vec![
        Case::new(
            "X80",
            "smaller than its parent",
            &[&child_of(small, &base()), &base()],
            Expected::ChainRefused(|e| {
                matches!(
                    e,
                    Error::ParentLarger { child_size: 0x200_0000, parent_size: 0x400_0000, .. }
                )
            }),
        )
        .store("fewer than its parent's"),
        Case::reads(
            "X81",
            "parent with blocks of 512 KiB",
            &[&child_of(image(2), &other_blocks), &other_blocks],
            &BASE,
        ),
        Case::reads("X82", "parent fixed", &[&child_of(image(2), &fixed), &fixed], fill),
        Case::reads(
            "X83",
            "parent ends inside a block",
            &[&child_of(image(2), &odd), &odd],
            &[(4 << 20, 512, 7)],
        ),
        raw("X84", "parent raw, in the same directory", 3 << 20, Expected::Reads(fill.to_vec())),
        raw(
            "X85",
            "parent raw and of an odd length",
            (3 << 20) + 100,
            Expected::Reads(fill.to_vec()),
        ),
        raw(
            "X86",
            "parent raw and larger",
            65 << 20,
            Expected::ChainRefused(|e| matches!(e, Error::ParentLarger { .. })),
        ),
        Case::reads(
            "X87",
            "another timestamp than its parent's",
            &[&Spec { parent_timestamp: 1, ..child_of(image(2), &base()) }, &base()],
            &BASE,
        ),
        Case::new(
            "X88",
            "parent of its own UUID",
            &[&Spec { uuid: id(2), parent: id(2), ..child_of(image(2), &base()) }, &twin],
            Expected::Refused(|f| *f == vhd::error::Fault::OwnParent),
        ),
        Case::new(
            "X89",
            "a dynamic image is not a child",
            &[&image(2), &base()],
            Expected::ChainRefused(|e| matches!(e, Error::WrongType { .. })),
        ),
        Case::new(
            "X90",
            "null UUIDs, its own and its parent's: a raw file, not itself",
            &[&Spec { uuid: 0, ..raw_child.clone() }, &base()],
            Expected::ChainRefused(
                |e| matches!(e, Error::ParentMismatch { expected, .. } if expected.is_nil()),
            ),
        )
        .store("names a raw file as its parent"),
    ]
}

impl Case {
    fn expecting(mut self, expected: Expected) -> Self {
        self.expected = expected;
        self
    }
}
