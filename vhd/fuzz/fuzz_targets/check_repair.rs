//! A damaged image, checked and repaired.
//!
//! What a check calls free of errors opens. A repair leaves every block as it was, and what the
//! disk reads; when it has done something, nothing is left for it to do; when it refuses, it has
//! changed nothing.
#![no_main]

use std::path::Path;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use vhd::bat::ABSENT;
use vhd::check::{Code, Depth, Examination, Finding, Severity, check_blob, examine_blob};
use vhd::repair::repair_blob;
use vhd::{Image, Mode};
use vhd_fuzz::build::Content;
use vhd_fuzz::input::Input;
use vhd_fuzz::memory::Memory;
use vhd_fuzz::{mutate, seeds};

/// Entries of a block table beyond which an execution would only be slow.
const ENTRIES: u32 = 1 << 14;

fuzz_target!(
    init: {
        if let Some(dir) = seeds::wanted() {
            seeds::write(&dir);
        }
    },
    |data: &[u8]| -> () {
        vhd_fuzz::limit_memory(32 << 20);
        for file in Input::decode(data).files.iter().take(2) {
            let content = file.content();
            if is_quick(&content) {
                one(&content);
            }
        }
    }
);

fn is_quick(content: &Content) -> bool {
    (0..16_u64).all(|sector| {
        let header = vhd::header::Header::parse(&content.bytes(sector * 512, 1024));
        header.map_or(true, |header| header.table_entries <= ENTRIES)
    })
}

fn one(before: &Content) {
    let path = Path::new("memory");
    let file = Memory::new(before.clone(), 1);
    let Examination { findings, anatomy, .. } = examine_blob(&file, path, Depth::Bitmaps);
    let open = |mode| Image::from_blob(Box::new(file.clone()), path, mode);
    let opened = open(Mode::Read);
    match &opened {
        Ok(_) => assert_eq!(errors(&findings), 0, "it opens, and is called {findings:?}"),
        Err(error) => assert_ne!(errors(&findings), 0, "nothing found, and {}", error.reason()),
    }
    let runs = opened.ok().map(|image| {
        let runs = image.map(0, image.size().min(1 << 26)).expect("it was verified");
        (runs, image.size())
    });
    assert!(file.content() == *before, "looking has changed it");

    let done = repair_blob(&file, path).expect("memory does not fail, and nothing of value is hit");
    let after = file.content();
    let changed = before.differences(&after);
    if done.steps.is_empty() {
        assert!(after == *before, "there were no steps, and something has changed");
    } else {
        assert!(!done.refused);
        let findings = check_blob(&file, path);
        // For a batmap there may be no room: then nothing was done about it.
        let batmap = [Code::BatmapMissing, Code::BatmapChecksum];
        let excused =
            |code: Code| batmap.contains(&code) && done.steps.iter().all(|step| step.code != code);
        let left = |finding: &&Finding| finding.code.is_repairable() && !excused(finding.code);
        let left = findings.iter().find(left);
        assert!(left.is_none(), "{:?} were done, {left:?} is left", done.steps);
        assert_eq!(errors(&findings), 0, "{:?} were done, {findings:?} is left", done.steps);
        let again = repair_blob(&file, path).expect("the first did not fail");
        assert!(again.steps.is_empty(), "{:?}, then {:?}", done.steps, again.steps);
        assert!(file.content() == after, "a second repair has changed something");
        open(Mode::Write).expect("it was repaired");
        // Opening for writing may put an empty batmap in the place of one that is not believed.
        let findings = check_blob(&file, path);
        assert_eq!(errors(&findings), 0, "opened for writing, and {findings:?}");
    }
    let within =
        |sector: &u64, at: u64, length: u64| (at / 512..(at + length) / 512).contains(sector);
    for sector in &changed {
        let mut steps = done.steps.iter();
        let planned = steps
            .any(|step| within(sector, step.offset / 512 * 512, step.bytes.len() as u64 + 511));
        assert!(planned, "sector {sector} was not to be changed");
    }
    let Some(anatomy) = anatomy else { return };
    if let Some(header) = &anatomy.header {
        for entry in anatomy.table.iter().filter(|entry| **entry != ABSENT) {
            let hit = |sector: &&u64| within(sector, u64::from(*entry) * 512, header.stride());
            let hit = changed.iter().find(hit);
            assert!(hit.is_none(), "sector {hit:?} of a block was changed");
        }
    } else if let (true, Some(footer)) = (anatomy.is_fixed(), &anatomy.footer) {
        assert!(changed.iter().all(|sector| sector * 512 >= footer.current_size));
    }
    if let Some((runs, size)) = runs {
        let image = open(Mode::Read).expect("it could be opened before the repair");
        assert_eq!(image.size(), size);
        let now = image.map(0, size.min(1 << 26)).expect("it was verified");
        // A batmap that was wrong is right now, and what it hid is seen.
        let hidden = findings.iter().any(|finding| finding.code == Code::BatmapWrong);
        assert!(hidden || now == runs, "what the disk reads has changed");
    }
}

fn errors(findings: &[Finding]) -> usize {
    let fatal = |finding: &&Finding| {
        finding.severity == Severity::Error && finding.code != Code::BatmapWrong
    };
    findings.iter().filter(fatal).count()
}

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    mutate::mutate(data, size, max_size, seed, &mut |part| {
        let length = part.len();
        let kept = libfuzzer_sys::fuzzer_mutate(part, length, length);
        part[kept..].fill(0);
    })
});
