//! What other readers make of the corpus, and the tables of `docs/vhd.md`.

use std::fmt::Write as _;
use std::path::Path;

use vhd::check::{Code, Severity, worst};

use crate::cases::{Case, corpus, write};
use crate::check::{codes, judge};
use crate::common::{qemu_img, vhdiinfo};

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/vhd.md");

/// Compares a part of the document with what it must be, or writes it.
fn part(name: &str, wanted: &str) {
    let text = std::fs::read_to_string(DOCS).unwrap();
    let (begin, end) = (format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->\n"));
    let start = text.find(&begin).expect("the part begins") + begin.len();
    let stop = text.find(&end).expect("the part ends");
    if std::env::var_os("UPDATE_GOLDENS").is_some() {
        let new = format!("{}{wanted}{}", &text[..start], &text[stop..]);
        std::fs::write(DOCS, new).unwrap();
        return;
    }
    assert!(
        text[start..stop] == *wanted,
        "docs/vhd.md is not current (UPDATE_GOLDENS=1 writes it); this is wanted:\n{wanted}"
    );
}

fn yes(opens: bool) -> &'static str {
    if opens { "ok" } else { "no" }
}

/// Why another reader judges otherwise than the check, by what the check has found.
const REASONS: &[(Code, &str)] = &[
    (Code::FooterChecksum, "libvhdi verifies no checksum"),
    (Code::HeaderChecksum, "qemu verifies only the footer's checksum, libvhdi none"),
    (Code::BlockSize, "neither has an upper limit, and libvhdi takes any multiple of a sector"),
    (Code::TableOutside, "libvhdi looks at the table only when data is read"),
    (
        Code::TableTooSmall,
        "libvhdi looks at the table only when data is read; to qemu the size of the copy counts",
    ),
    (Code::TableTooLarge, "libvhdi looks at the table only when data is read"),
    (Code::TableUnaligned, "both read a table from any byte; the format counts in sectors"),
    (Code::MetadataOverlap, "neither compares where structures lie"),
    (Code::BlockOnMetadata, "to both, every place in the file is good for a block"),
    (Code::OverlappingBlocks, "neither compares blocks: a write to one is a write to the other"),
    (
        Code::BlockOutside,
        "libvhdi looks at a table entry only when its block is read; qemu lets one reach into the footer",
    ),
    (Code::SizeZero, "a disk without bytes is nothing to either; no tool makes one"),
    (Code::SizeTooLarge, "libvhdi has no limit; block numbers do not reach further"),
    (Code::DiskType, "qemu takes what is not fixed for dynamic"),
    (Code::OwnParent, "qemu's vpc driver and vhdiinfo do not look at parents"),
    (Code::ParentMissing, "qemu's vpc driver and vhdiinfo do not look at parents"),
    (Code::ParentOutside, "qemu's vpc driver and vhdiinfo do not look at parents"),
    (Code::ParentAmbiguous, "qemu's vpc driver and vhdiinfo do not look at parents"),
    (Code::ParentRaw, "qemu's vpc driver and vhdiinfo do not look at parents"),
    (Code::ParentCycle, "qemu's vpc driver and vhdiinfo do not look at parents"),
    (Code::ParentLarger, "qemu's vpc driver and vhdiinfo do not look at parents"),
    (Code::LocatorRange, "qemu's vpc driver and vhdiinfo do not look at parents"),
    (
        Code::InterruptedResize,
        "one of the two footers is as before, and they look at that one only",
    ),
    (Code::FootersDisagree, "both look at one of the two footers only"),
    (Code::NextRecord, "neither looks at it; the format has no such structure"),
    (Code::HeaderOffset, "libvhdi takes any place"),
    (Code::SizeNotSectors, "both round to sectors"),
    (Code::BatmapWrong, "a batmap is blktap's; neither looks at it"),
    (Code::FootersDiffer, "qemu verifies the copy, whose checksum old blktap did not redo"),
    (Code::FooterShort, "libvhdi reads only footers of 512 bytes; `repair` adds the byte"),
    (Code::FooterEndMissing, "libvhdi looks only at the end; `repair` restores it"),
    (Code::FooterCopyMissing, "qemu looks at offset 0 first; `repair` restores it"),
];

/// Answers the row of the table, and whether a reason is lacking in it.
fn row(case: &Case) -> (String, bool) {
    let dir = tempfile::tempdir().unwrap();
    let findings = judge(case, dir.path()).findings;
    let (path, _) = write(case, dir.path());
    let ours = worst(&findings) != Some(Severity::Error);
    let qemu = qemu_img(&["info", "-f", "vpc", path.to_str().unwrap()]).0;
    let libvhdi = vhdiinfo(&path).0;
    let found = codes(&findings).replace(' ', ", ");
    let differ = qemu != ours || libvhdi != ours;
    let has = |code: &Code| findings.iter().any(|finding| finding.code == *code);
    let why = REASONS.iter().find(|(code, _)| has(code)).map(|(_, why)| *why);
    let why = why.or_else(|| other_reason(case));
    let row = format!(
        "| {} | {} | {} | {found} | {} | {} | {} |\n",
        case.name,
        case.what,
        yes(ours),
        yes(qemu),
        yes(libvhdi),
        if differ { why.unwrap_or("?") } else { "" },
    );
    (row, differ && why.is_none())
}

/// Of files that the check has nothing to say about.
fn other_reason(case: &Case) -> Option<&'static str> {
    match case.name {
        "X57" => Some("qemu looks at offset 0 first, where this is the guest's data"),
        "X71" => Some("libvhdi refuses a parent's name that is not Unicode"),
        _ => None,
    }
}

/// Wherever a reader that shares no code with ours judges differently, the table says why.
#[test]
fn other_readers_agree_or_the_documentation_says_why_not() {
    let mut table = String::from(
        "| file | what it is | check | found | qemu-img | vhdiinfo | why they differ |\n\
         |---|---|---|---|---|---|---|\n",
    );
    let mut lacking = Vec::new();
    for case in &corpus() {
        let (row, lacks) = row(case);
        if lacks {
            lacking.push(row.clone());
        }
        table.push_str(&row);
    }
    assert!(lacking.is_empty(), "a reason is wanted where they differ:\n{}", lacking.join(""));
    part("corpus", &table);
}

#[test]
fn every_code_is_documented() {
    let mut table =
        String::from("| code | severity | `repair` | what it means |\n|---|---|---|---|\n");
    for code in Code::ALL {
        let repair = if code.is_repairable() { "yes" } else { "" };
        let (severity, meaning) = (code.severity(), code.meaning());
        writeln!(table, "| `{code}` | {severity} | {repair} | {meaning} |").unwrap();
    }
    part("codes", &table);
}

/// A repaired file is one that the others read, too.
#[test]
fn what_is_repaired_is_read_by_all() {
    for case in corpus().iter().filter(|case| matches!(case.name, "G13" | "G15" | "G16")) {
        let dir = tempfile::tempdir().unwrap();
        let (path, _) = write(case, dir.path());
        let opens = |path: &Path| {
            let qemu = qemu_img(&["info", "-f", "vpc", path.to_str().unwrap()]).0;
            qemu && vhdiinfo(path).0
        };
        assert!(!opens(&path), "{}", case.name);
        assert!(!vhd::repair::repair(&path).unwrap().refused);
        assert!(opens(&path), "{}", case.name);
    }
}
