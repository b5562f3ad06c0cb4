//! Each parser on arbitrary bytes: an answer, no panic, little memory; what was understood and
//! written again is understood the same.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use vhd::batmap::BatmapHeader;
use vhd::footer::Footer;
use vhd::header::Header;
use vhd::locator::{self, Hint, Locator};
use vhd_fuzz::build::Content;
use vhd_fuzz::input;
use vhd_fuzz::memory::Memory;
use vhd_fuzz::seeds;

fuzz_target!(
    init: {
        if let Some(dir) = seeds::wanted() {
            seeds::write_flat(&dir);
        }
    },
    |data: &[u8]| -> () {
        let Some((control, bytes)) = data.split_first() else { return };
        vhd_fuzz::limit_memory(16 << 20);
        let file = input::File {
            fixes: *control,
            length: bytes.len() as u64,
            pieces: vec![(0, bytes.to_vec())],
        };
        let content = file.content();
        let bytes = content.bytes(0, content.length as usize);
        footer(&bytes);
        footer(bytes.get(bytes.len().saturating_sub(512)..).unwrap_or_default());
        header(&bytes);
        header(bytes.get(512..).unwrap_or_default());
        table(bytes.get(..512).unwrap_or(&bytes));
        locators(bytes.get(..600).unwrap_or(&bytes));
        probe(content);
    }
);

fn footer(bytes: &[u8]) {
    if let Ok(footer) = Footer::parse(bytes) {
        assert!(footer.current_size > 0 && footer.current_size <= vhd::MAX_SIZE);
        assert_eq!(Footer::parse(&footer.to_bytes()).as_ref(), Ok(&footer));
        let _ = (footer.creator_text(), footer.smaller_chs_size(), footer.geometry.size());
    }
}

fn header(bytes: &[u8]) {
    if let Ok(header) = Header::parse(bytes) {
        assert!(header.block_size.is_power_of_two());
        assert_eq!(Header::parse(&header.to_bytes()).as_ref(), Ok(&header));
        let _ = (header.stride(), header.table_end(), header.bitmap_bytes());
        let _ = locator::parent_name_text(&header.parent_name);
        for (size, length) in [(64 << 20, 1 << 30), (vhd::MAX_SIZE, u64::MAX), (512, 0)] {
            if header.verify(size, length).is_ok() {
                assert!(header.table_end() <= length);
            }
        }
    }
}

fn table(bytes: &[u8]) {
    let table = vhd::bat::parse(bytes);
    for (stride, end) in [(512 + 512, 1 << 20), (512 + (2 << 20), 2 << 40)] {
        if vhd::bat::verify(&table, stride, end, &[]).is_ok() {
            let used = table.iter().filter(|sector| **sector != vhd::bat::ABSENT);
            let mut used: Vec<u64> = used.map(|sector| u64::from(*sector) * 512).collect();
            used.sort_unstable();
            assert!(used.windows(2).all(|pair| pair[0] + stride <= pair[1]));
            assert!(used.last().is_none_or(|last| last + stride <= end));
        }
    }
    for entries in [1, 32, 1 << 20, u32::MAX] {
        if let Some(header) = BatmapHeader::parse(bytes, entries, 1 << 30) {
            assert!(header.offset + header.length <= 1 << 30);
            let _ = header.matches(bytes);
        }
    }
}

fn locators(bytes: &[u8]) {
    for code in [locator::MACX, locator::W2KU, locator::W2RU, *b"Wi2k"] {
        let locator = Locator { code, space: 1, length: bytes.len() as u32, offset: 0 };
        let Some(hint) = locator.decode(bytes) else { continue };
        if let Hint::Sibling(name) = hint {
            let mut parts = Path::new(&name).components();
            let first = parts.next();
            assert!(matches!(first, Some(std::path::Component::Normal(_))), "{name:?}");
            assert!(parts.next().is_none(), "{name:?}");
            assert!(!name.contains(['/', '\\', '\0']), "{name:?}");
        }
    }
}

fn probe(content: Content) {
    let length = content.length;
    if let Ok(info) = vhd::image::probe_blob(&Memory::new(content, 1), Path::new("memory")) {
        assert_eq!(info.file_size, length);
        assert!(info.size > 0 && info.size <= vhd::MAX_SIZE);
    }
}
