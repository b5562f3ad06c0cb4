//! Commands of block devices (SBC-3).

use std::collections::BTreeMap;

use super::vpd;
use crate::core::{Array, Export, Snapshot, Trouble, Volume};

/// What became of a command.
pub(super) enum Done {
    Good,
    Data(Vec<u8>),
    Check(Sense),
}

/// Why not: key, code and qualifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sense(u8, u8, u8);

const INVALID_COMMAND: Sense = Sense(5, 0x20, 0x00);
const OUT_OF_RANGE: Sense = Sense(5, 0x21, 0x00);
const INVALID_FIELD: Sense = Sense(5, 0x24, 0x00);
const NO_SUCH_UNIT: Sense = Sense(5, 0x25, 0x00);
const CAPACITY_CHANGED: Sense = Sense(6, 0x2a, 0x09);
const WRITE_PROTECTED: Sense = Sense(7, 0x27, 0x00);
const SPACE_USED_UP: Sense = Sense(7, 0x27, 0x07);
const NOT_READY: Sense = Sense(2, 0x04, 0x03);
const MISCOMPARE: Sense = Sense(0x0e, 0x1d, 0x00);
const FAILED: Sense = Sense(4, 0x44, 0x00);

impl Sense {
    pub(super) fn bytes(self) -> [u8; 18] {
        let mut bytes = [0; 18];
        bytes[0] = 0x70;
        bytes[2] = self.0;
        bytes[7] = 10;
        bytes[12] = self.1;
        bytes[13] = self.2;
        bytes
    }
}

impl From<Trouble> for Sense {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::NoSpace(_) => SPACE_USED_UP,
            Trouble::Offline(_) => NOT_READY,
            Trouble::Invalid(_) => OUT_OF_RANGE,
            Trouble::Missing(..) => NO_SUCH_UNIT,
            _ => FAILED,
        }
    }
}

/// What a session remembers of its units: the size that it was told.
#[derive(Default)]
pub(super) struct Unit {
    sizes: BTreeMap<u16, u64>,
}

impl Unit {
    pub(super) fn command(
        &mut self,
        array: &Array,
        own: &[Export],
        lun: u16,
        cdb: &[u8; 16],
        data: &[u8],
    ) -> Done {
        let export = own.iter().find(|export| export.lun == lun);
        let cut = |mut answer: Vec<u8>, at: usize, length: usize| {
            answer.truncate(number(cdb, at, length) as usize);
            Ok(Done::Data(answer))
        };
        let done = match (cdb[0], export) {
            (0xa0, _) => cut(report_luns(own), 6, 4),
            (0x12, _) => inquiry(array, export, cdb),
            (0x03, _) => cut(Sense(0, 0, 0).bytes().to_vec(), 4, 1),
            (_, None) => Err(NO_SUCH_UNIT),
            (_, Some(export)) => self.of_unit(array, export, cdb, data),
        };
        done.unwrap_or_else(Done::Check)
    }

    fn of_unit(
        &mut self,
        array: &Array,
        export: &Export,
        cdb: &[u8; 16],
        data: &[u8],
    ) -> Result<Done, Sense> {
        let size = size_of(array, export)?;
        let before = self.sizes.insert(export.lun, size);
        if before.is_some_and(|before| before != size) {
            return Err(CAPACITY_CHANGED);
        }
        let block = u64::from(export.block);
        let blocks = size / block;
        let last = blocks.saturating_sub(1);
        let big = |at: usize| number(cdb, at, 8);
        let word = |at: usize| number(cdb, at, 4);
        let short = |at: usize| number(cdb, at, 2);
        let cut = |mut answer: Vec<u8>, at: usize, length: usize| {
            answer.truncate(number(cdb, at, length) as usize);
            Ok(Done::Data(answer))
        };
        // Blocks carry no protection information, so nobody may ask for some.
        let moves = matches!(cdb[0], 0x28 | 0x2a | 0x88 | 0x8a | 0xa8 | 0xaa | 0x41 | 0x93);
        if moves && cdb[1] >> 5 != 0 {
            return Err(INVALID_FIELD);
        }
        match cdb[0] {
            0x00 | 0x1b | 0x35 | 0x91 | 0x1e | 0x16 | 0x17 | 0x56 | 0x57 => Ok(Done::Good),
            0x2f => verify(array, export, cdb[1], word(2), short(7), data),
            0x8f => verify(array, export, cdb[1], big(2), word(10), data),
            0x1a => cut(mode_sense(export, false), 4, 1),
            0x5a => cut(mode_sense(export, true), 7, 2),
            0x25 => {
                let last = u32::try_from(last).unwrap_or(u32::MAX);
                let mut answer = last.to_be_bytes().to_vec();
                answer.extend(export.block.to_be_bytes());
                Ok(Done::Data(answer))
            }
            0x9e if cdb[1] & 0x1f == 0x10 => {
                let mut answer = last.to_be_bytes().to_vec();
                answer.extend(export.block.to_be_bytes());
                answer.resize(32, 0);
                // Thin; unmapped blocks read as zeros.
                answer[14] = 0xc0;
                cut(answer, 10, 4)
            }
            0x08 => read(array, export, number(cdb, 1, 3) & 0x1f_ffff, six(cdb[4])),
            0x28 => read(array, export, word(2), short(7)),
            0xa8 => read(array, export, word(2), word(6)),
            0x88 => read(array, export, big(2), word(10)),
            0x0a => write(array, export, number(cdb, 1, 3) & 0x1f_ffff, six(cdb[4]), data),
            0x2a => write(array, export, word(2), short(7), data),
            0xaa => write(array, export, word(2), word(6), data),
            0x8a => write(array, export, big(2), word(10), data),
            0x41 => same(array, export, cdb[1], word(2), short(7), data),
            0x93 => same(array, export, cdb[1], big(2), word(10), data),
            0x42 => unmap(array, export, data),
            _ => Err(INVALID_COMMAND),
        }
    }
}

fn number(cdb: &[u8], at: usize, length: usize) -> u64 {
    let bytes = cdb.get(at..at + length).unwrap_or_default();
    bytes.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

/// In the short commands 0 is 256.
fn six(count: u8) -> u64 {
    if count == 0 { 256 } else { u64::from(count) }
}

fn size_of(array: &Array, export: &Export) -> Result<u64, Sense> {
    let view = array.current();
    if export.snapshot {
        return view.get::<Snapshot>(&export.volume).map(|s| s.size).ok_or(NO_SUCH_UNIT);
    }
    let volume = view.get::<Volume>(&export.volume).ok_or(NO_SUCH_UNIT)?;
    if volume.online { Ok(volume.size) } else { Err(NOT_READY) }
}

/// Bytes of a range of blocks, if it lies within the unit.
fn range(array: &Array, export: &Export, from: u64, count: u64) -> Result<(u64, u64), Sense> {
    let block = u64::from(export.block);
    let end = from.checked_add(count).and_then(|end| end.checked_mul(block)).ok_or(OUT_OF_RANGE)?;
    let size = size_of(array, export)?;
    // A range of no blocks must begin within the unit, too.
    if end > size || from * block >= size {
        return Err(OUT_OF_RANGE);
    }
    Ok((from * block, count * block))
}

fn read(array: &Array, export: &Export, from: u64, count: u64) -> Result<Done, Sense> {
    let (offset, length) = range(array, export, from, count)?;
    if length > 64 << 20 {
        return Err(INVALID_FIELD);
    }
    let data = array.read(&export.volume, offset, length as usize)?;
    array.moved().read(length);
    Ok(Done::Data(data))
}

fn writable(export: &Export) -> Result<(), Sense> {
    if export.read_only || export.snapshot { Err(WRITE_PROTECTED) } else { Ok(()) }
}

fn write(
    array: &Array,
    export: &Export,
    from: u64,
    count: u64,
    data: &[u8],
) -> Result<Done, Sense> {
    writable(export)?;
    let (offset, length) = range(array, export, from, count)?;
    let data = data.get(..length as usize).ok_or(INVALID_FIELD)?;
    array.write(&export.volume, offset, data)?;
    array.moved().written(length);
    Ok(Done::Good)
}

fn verify(
    array: &Array,
    export: &Export,
    flags: u8,
    from: u64,
    count: u64,
    data: &[u8],
) -> Result<Done, Sense> {
    if flags >> 5 != 0 {
        return Err(INVALID_FIELD);
    }
    let (offset, length) = range(array, export, from, count)?;
    if flags & 0x02 != 0 {
        let own = array.read(&export.volume, offset, data.len().min(length as usize))?;
        if own != data.get(..own.len()).unwrap_or_default() {
            return Err(MISCOMPARE);
        }
    }
    Ok(Done::Good)
}

fn same(
    array: &Array,
    export: &Export,
    flags: u8,
    from: u64,
    count: u64,
    data: &[u8],
) -> Result<Done, Sense> {
    writable(export)?;
    // Blocks cannot be anchored.
    if count == 0 || flags & 0x10 != 0 {
        return Err(INVALID_FIELD);
    }
    let (offset, length) = range(array, export, from, count)?;
    if flags & 0x08 != 0 {
        array.unmap(&export.volume, offset, length)?;
        return Ok(Done::Good);
    }
    let one = data.get(..export.block as usize).ok_or(INVALID_FIELD)?;
    for at in (offset..offset + length).step_by(export.block as usize) {
        array.write(&export.volume, at, one)?;
    }
    Ok(Done::Good)
}

fn unmap(array: &Array, export: &Export, data: &[u8]) -> Result<Done, Sense> {
    writable(export)?;
    let length = number(data, 2, 2) as usize;
    for at in (8..8 + length).step_by(16) {
        let Some(descriptor) = data.get(at..at + 16) else { break };
        let (from, count) = (number(descriptor, 0, 8), number(descriptor, 8, 4));
        if count == 0 {
            continue;
        }
        let (offset, length) = range(array, export, from, count)?;
        array.unmap(&export.volume, offset, length)?;
    }
    Ok(Done::Good)
}

fn inquiry(array: &Array, export: Option<&Export>, cdb: &[u8; 16]) -> Result<Done, Sense> {
    let length = number(cdb, 3, 2) as usize;
    let mut answer = match (cdb[1] & 1, export) {
        (0, _) if cdb[2] != 0 => return Err(INVALID_FIELD),
        (0, export) => vpd::standard(export.map(|export| &export.identity)),
        (_, Some(export)) => {
            vpd::page(cdb[2], &export.identity, export.block, array.page()).ok_or(INVALID_FIELD)?
        }
        (_, None) => return Err(NO_SUCH_UNIT),
    };
    answer.truncate(length);
    Ok(Done::Data(answer))
}

fn report_luns(own: &[Export]) -> Vec<u8> {
    let mut list: Vec<u16> = own.iter().map(|export| export.lun).collect();
    if !list.contains(&0) {
        list.insert(0, 0);
    }
    let mut answer = (list.len() as u32 * 8).to_be_bytes().to_vec();
    answer.resize(8, 0);
    for lun in list {
        // Flat addressing from 256 on.
        let address = if lun < 256 { lun } else { 0x4000 | lun };
        answer.extend(address.to_be_bytes());
        answer.extend([0; 6]);
    }
    answer
}

fn mode_sense(export: &Export, ten: bool) -> Vec<u8> {
    // Writes may ask to go through at once.
    let protected = if export.read_only || export.snapshot { 0x90 } else { 0x10 };
    // The caching page: writes are cached.
    let mut caching = vec![0x08, 0x12, 0x04];
    caching.resize(20, 0);
    let mut answer =
        if ten { vec![0, 26, 0, protected, 0, 0, 0, 0] } else { vec![23, 0, protected, 0] };
    answer.extend(caching);
    answer
}
