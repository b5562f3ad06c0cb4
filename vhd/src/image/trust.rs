//! Whether an image's batmap can be believed.
//!
//! A bit that is set wrongly hides the bitmap of a block that is written later in parts: the rest of
//! that block would no longer come from the parent. So a batmap that says anything about a block
//! that is not there is not believed in the rest either; and before an image is written to, what
//! is not believed is replaced, or it might be believed again when the file has grown.

use std::path::Path;

use crate::bat::{ABSENT, Area};
use crate::batmap::{self, Batmap, BatmapHeader};
use crate::error::Result;
use crate::footer::Footer;
use crate::header::Header;
use crate::store::Blob;
use crate::{SECTOR, bits, sys};

/// Reads the batmap, if there is one whose place and checksum are right; `end` is the first byte
/// that neither it nor blocks may reach. A sector that the end of the file cuts in two is complete
/// once the footer is restored behind it, so it is taken for complete now: what it lacks is zero.
pub(super) fn read(
    file: &dyn Blob,
    path: &Path,
    footer: &Footer,
    header: &Header,
    end: u64,
) -> Result<Option<Batmap>> {
    let end = end.next_multiple_of(SECTOR);
    if !is_promised(footer, header, end) {
        return Ok(None);
    }
    let mut raw = [0; batmap::HEADER as usize];
    sys::read_upto(file, path, &mut raw, header.table_end())?;
    let Some(found) = BatmapHeader::parse(&raw, header.table_entries, end) else {
        return Ok(None);
    };
    let mut map = vec![0; found.length as usize];
    sys::read_upto(file, path, &mut map, found.offset)?;
    Ok(found.matches(&map).then_some(Batmap { offset: found.offset, map }))
}

fn is_promised(footer: &Footer, header: &Header, end: u64) -> bool {
    footer.is_tap_from(0x0001_0001)
        && header.table_end().checked_add(batmap::HEADER).is_some_and(|stop| stop <= end)
}

/// Whether every bit that is set is of a block that is there.
pub(super) fn is_plausible(batmap: &Batmap, table: &[u32]) -> bool {
    let end = batmap.map.len() as u64 * 8;
    let mut block = 0;
    while block < end {
        let (set, count) = bits::run(&batmap.map, block, end);
        let claimed = || table.get(block as usize..(block + count) as usize);
        if set && claimed().is_none_or(|claimed| claimed.contains(&ABSENT)) {
            return false;
        }
        block += count;
    }
    true
}

/// Puts an empty batmap in the place of one that is not believed, or removes it where it is in the
/// way. `areas` and `table` are verified, and `end` is the first byte that they do not reach.
pub(super) fn replace(
    file: &dyn Blob,
    path: &Path,
    footer: &Footer,
    header: &Header,
    table: &[u32],
    areas: &[Area],
    end: u64,
) -> Result<Option<Batmap>> {
    if !is_promised(footer, header, end) {
        return Ok(None);
    }
    let at = header.table_end();
    let mut raw = [0; batmap::HEADER as usize];
    sys::read_at(file, path, &mut raw, at)?;
    let others = || areas.iter().filter(|area| !area.name.contains("batmap"));
    let is_free = |length: u64| {
        let stop = at + length;
        let block = |sector: u32| {
            let start = u64::from(sector) * SECTOR;
            sector != ABSENT && start < stop && at < start + header.stride()
        };
        stop <= end
            && others().all(|area| area.end <= at || stop <= area.start)
            && !table.iter().any(|sector| block(*sector))
    };
    if !raw.starts_with(batmap::COOKIE) || !is_free(batmap::HEADER) {
        return Ok(None);
    }
    let map = vec![0; batmap::map_bytes(header.table_entries) as usize];
    if is_free(batmap::HEADER + map.len() as u64) {
        sys::write_at(file, path, &batmap::to_bytes(at, &map), at)?;
        return Ok(Some(Batmap { offset: at + batmap::HEADER, map }));
    }
    sys::write_at(file, path, &[0; batmap::HEADER as usize], at)?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::{Batmap, is_plausible};
    use crate::bat::ABSENT;

    #[test]
    fn a_batmap_is_believed_only_if_all_its_blocks_are_there() {
        let table = [ABSENT, 100, 200, ABSENT];
        let says = |byte: u8| is_plausible(&Batmap { offset: 0, map: vec![byte, 0] }, &table);
        assert!(says(0b0000_0000) && says(0b0100_0000) && says(0b0110_0000));
        assert!(!says(0b1000_0000) && !says(0b0111_0000) && !says(0b0110_1000));
        assert!(!says(0xff));
    }
}
