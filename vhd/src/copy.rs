//! Copying disks, whatever they are stored as.

use std::io::{ErrorKind, Read, Write};
use std::ops::ControlFlow;
use std::path::Path;

use uuid::Uuid;

use crate::disk::{Disk, ExtentKind, Extents};
use crate::error::{Error, Result};
use crate::image::{BlockWriter, create_fixed};
use crate::{Mode, Raw};

/// Called now and then with the bytes done so far; says whether to go on.
pub type Progress<'a> = &'a mut dyn FnMut(u64) -> ControlFlow<()>;

/// Bytes read at a time: one block of a VHD.
const CHUNK: u64 = 2 << 20;

/// Zeros are looked for in pieces of this size. Smaller finds little more in real disks, whose
/// file systems allocate in such pieces, and costs a system call per hole.
const PIECE: usize = 64 << 10;

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // In chunks without a branch, which the compiler turns into wide loads.
    bytes.chunks(256).all(|chunk| chunk.iter().fold(0, |any, byte| any | byte) == 0)
}

fn report(progress: Progress<'_>, done: u64) -> Result<()> {
    match progress(done) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Stopped { done }),
    }
}

/// Copies `source` over `target`, which must be at least as large, and syncs the target. What is
/// zero in the source is made zero in the target, without writing where the target says that it
/// is. `progress` counts bytes of the source, holes included.
pub fn copy(source: &dyn Disk, target: &dyn Disk, progress: Progress<'_>) -> Result<()> {
    if target.size() < source.size() {
        return Err(Error::Shrink { from: source.size(), to: target.size() });
    }
    let mut buf = vec![0; CHUNK as usize];
    for extent in Extents::new(source, 0, source.size()) {
        let extent = extent?;
        let mut at = extent.offset;
        let end = extent.offset + extent.length;
        if extent.kind == ExtentKind::Zero {
            make_zero(target, extent.offset, extent.length)?;
            report(progress, end)?;
            continue;
        }
        while at < end {
            // Chunks end on multiples of their size, so that each fills a block of a VHD.
            let stop = end.min((at / CHUNK + 1) * CHUNK);
            let part = &mut buf[..(stop - at) as usize];
            source.read_at(at, part)?;
            write_sparse(target, at, part)?;
            at = stop;
            report(progress, at)?;
        }
    }
    target.flush()
}

/// Makes a range zero, leaving alone what is so already.
fn make_zero(target: &dyn Disk, offset: u64, length: u64) -> Result<()> {
    for extent in Extents::new(target, offset, length) {
        let extent = extent?;
        if extent.kind == ExtentKind::Data {
            target.write_zeros(extent.offset, extent.length)?;
        }
    }
    Ok(())
}

/// Splits a buffer at its zero pieces and hands each run on, with whether it is zero.
fn pieces(buf: &[u8], mut each: impl FnMut(u64, &[u8], bool) -> Result<()>) -> Result<()> {
    let mut start = 0;
    while start < buf.len() {
        let zero = is_zero(&buf[start..buf.len().min(start + PIECE)]);
        let mut end = buf.len().min(start + PIECE);
        while end < buf.len() && is_zero(&buf[end..buf.len().min(end + PIECE)]) == zero {
            end = buf.len().min(end + PIECE);
        }
        each(start as u64, &buf[start..end], zero)?;
        start = end;
    }
    Ok(())
}

fn write_sparse(target: &dyn Disk, offset: u64, buf: &[u8]) -> Result<()> {
    pieces(buf, |at, part, zero| {
        if zero {
            make_zero(target, offset + at, part.len() as u64)
        } else {
            target.write_at(offset + at, part)
        }
    })
}

/// Writes `source` as one new dynamic image without a parent, front to back, and syncs it. Returns
/// the file's length in bytes. A failure leaves a file that is not an image.
pub fn flatten(source: &dyn Disk, path: &Path, uuid: Uuid, progress: Progress<'_>) -> Result<u64> {
    let mut writer = BlockWriter::create(path, uuid, source.size())?;
    let mut buf = vec![0; CHUNK as usize];
    for extent in Extents::new(source, 0, source.size()) {
        let extent = extent?;
        let (mut at, end) = (extent.offset, extent.offset + extent.length);
        while extent.kind == ExtentKind::Data && at < end {
            let stop = end.min((at / CHUNK + 1) * CHUNK);
            let part = &mut buf[..(stop - at) as usize];
            source.read_at(at, part)?;
            write_block(&mut writer, at, part)?;
            at = stop;
            report(progress, at)?;
        }
        report(progress, end)?;
    }
    writer.finish()
}

fn write_block(writer: &mut BlockWriter, at: u64, part: &[u8]) -> Result<()> {
    let (block, within) = (at / writer.block_size(), at % writer.block_size());
    pieces(
        part,
        |offset, piece, zero| {
            if zero { Ok(()) } else { writer.write(block, within + offset, piece) }
        },
    )
}

/// Writes `source` as one new fixed image and syncs it; zeros become holes in the file.
pub fn write_fixed(
    source: &dyn Disk,
    path: &Path,
    uuid: Uuid,
    progress: Progress<'_>,
) -> Result<()> {
    let file = create_fixed(path, uuid, source.size())?;
    let target = Raw::from_blob(Box::new(file), path, Mode::Write)?;
    copy(source, &target, progress)
}

/// Fills `target` from a stream of exactly its size, and syncs it. Zeros in the stream are not
/// written where the target is zero already.
pub fn import(stream: &mut dyn Read, target: &dyn Disk, progress: Progress<'_>) -> Result<()> {
    let size = target.size();
    let done = each_chunk(stream, size, progress, &mut |at, part| write_sparse(target, at, part))?;
    if done != size {
        return Err(Error::StreamLength { got: done, expected: size });
    }
    target.flush()
}

/// Writes a stream of exactly `size` bytes as one new dynamic image, and syncs it.
pub fn import_flat(
    stream: &mut dyn Read,
    size: u64,
    path: &Path,
    uuid: Uuid,
    progress: Progress<'_>,
) -> Result<u64> {
    let mut writer = BlockWriter::create(path, uuid, size)?;
    let done =
        each_chunk(stream, size, progress, &mut |at, part| write_block(&mut writer, at, part))?;
    if done != size {
        return Err(Error::StreamLength { got: done, expected: size });
    }
    writer.finish()
}

fn each_chunk(
    stream: &mut dyn Read,
    size: u64,
    progress: Progress<'_>,
    each: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<u64> {
    let failed = |error| Error::io(Path::new("the stream"), "read")(error);
    let mut buf = vec![0; CHUNK as usize];
    let mut at = 0;
    loop {
        // One byte beyond the end tells a stream that is too long.
        let room = (size - at).clamp(1, CHUNK) as usize;
        let mut got = 0;
        while got < room {
            match stream.read(&mut buf[got..room]) {
                Ok(0) => break,
                Ok(count) => got += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        if got == 0 {
            return Ok(at);
        }
        if at == size {
            return Ok(size + 1);
        }
        each(at, &buf[..got])?;
        at += got as u64;
        report(progress, at)?;
    }
}

/// Writes the whole disk to a stream, as raw bytes.
pub fn export(source: &dyn Disk, stream: &mut dyn Write, progress: Progress<'_>) -> Result<()> {
    let failed = |error| Error::io(Path::new("the stream"), "write")(error);
    let mut buf = vec![0; CHUNK as usize];
    let mut at = 0;
    while at < source.size() {
        let part = &mut buf[..(source.size() - at).min(CHUNK) as usize];
        source.read_at(at, part)?;
        stream.write_all(part).map_err(failed)?;
        at += part.len() as u64;
        report(progress, at)?;
    }
    stream.flush().map_err(failed)
}
