//! Copying disks, whatever they are stored as.

use std::io::{ErrorKind, Read, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread;

use uuid::Uuid;

use crate::disk::{Disk, ExtentKind, Extents};
use crate::error::{Error, Result};
use crate::image::{BlockWriter, create_fixed};
use crate::{Mode, Raw};

/// Called now and then with the bytes done so far; says whether to go on.
pub type Progress<'a> = &'a mut dyn FnMut(u64) -> ControlFlow<()>;

/// Bytes read at a time, at most: half a block of a VHD, little enough that what was read is still
/// in the processor's cache when it is written.
const CHUNK: u64 = 1 << 20;

/// Chunks that are read before the first of them is written.
const AHEAD: usize = 8;

/// Ranges of a disk in one chunk, at most.
const RANGES: usize = 256;

/// Bytes of zeros that are handed on at a time, so that a stream of them can be stopped.
const ZEROS: u64 = 64 << 20;

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
    read_ahead(source, progress, &mut |range, data| match data {
        Some(data) => target.write_at(range.0, data),
        None => make_zero(target, range.0, range.1 - range.0),
    })?;
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

/// First byte, and first after it.
type Range = (u64, u64);

/// Takes a range of a disk and its data; none for zeros.
type Sink<'a> = &'a mut dyn FnMut(Range, Option<&[u8]>) -> Result<()>;

/// What was read of a disk.
struct Chunk {
    /// [`CHUNK`] bytes.
    bytes: Vec<u8>,
    used: usize,
    /// Ranges of the disk in order, and where in `bytes` each is; none for zeros.
    ranges: Vec<(Range, Option<usize>)>,
}

impl Chunk {
    fn new() -> Self {
        Self { bytes: vec![0; CHUNK as usize], used: 0, ranges: Vec::new() }
    }

    /// Reads a range of data and looks for the zeros in it.
    fn read(&mut self, source: &dyn Disk, (start, end): Range) -> Result<()> {
        let first = self.used;
        self.used += (end - start) as usize;
        let part = self.bytes.get_mut(first..self.used).unwrap_or_default();
        source.read_at(start, part)?;
        let ranges = &mut self.ranges;
        pieces(part, |at, piece, zero| {
            let range = (start + at as u64, start + (at + piece.len()) as u64);
            ranges.push((range, (!zero).then_some(first + at)));
            Ok(())
        })
    }
}

/// Hands a whole disk on, in order, data by data and zeros by zeros, reading on one thread while
/// this one writes.
fn read_ahead(source: &dyn Disk, progress: Progress<'_>, write: Sink<'_>) -> Result<()> {
    thread::scope(|scope| {
        let (filled, chunks) = sync_channel::<Result<Chunk>>(AHEAD - 2);
        let (done, empty) = channel::<Chunk>();
        scope.spawn(move || {
            if let Err(error) = read_chunks(source, &filled, &empty) {
                // Nobody listens any more when the writer has failed.
                let _ = filled.send(Err(error));
            }
        });
        for chunk in chunks {
            let chunk = chunk?;
            for (range, at) in &chunk.ranges {
                let length = (range.1 - range.0) as usize;
                write(*range, at.and_then(|at| chunk.bytes.get(at..at + length)))?;
                report(progress, range.1)?;
            }
            let _ = done.send(chunk);
        }
        Ok(())
    })
}

/// Reads a disk until it ends or nobody wants it.
fn read_chunks(
    source: &dyn Disk,
    filled: &SyncSender<Result<Chunk>>,
    empty: &Receiver<Chunk>,
) -> Result<()> {
    let take = || {
        let mut chunk = empty.try_recv().unwrap_or_else(|_| Chunk::new());
        chunk.used = 0;
        chunk.ranges.clear();
        chunk
    };
    let mut chunk = take();
    for extent in Extents::new(source, 0, source.size()) {
        let extent = extent?;
        let (mut at, end) = (extent.offset, extent.offset + extent.length);
        while at < end {
            let left = CHUNK.saturating_sub(chunk.used as u64);
            if left == 0 || chunk.ranges.len() >= RANGES {
                if filled.send(Ok(std::mem::replace(&mut chunk, take()))).is_err() {
                    return Ok(());
                }
                continue;
            }
            let length = if extent.kind == ExtentKind::Zero { ZEROS } else { left };
            let stop = end.min(at + length);
            if extent.kind == ExtentKind::Zero {
                chunk.ranges.push(((at, stop), None));
            } else {
                chunk.read(source, (at, stop))?;
            }
            at = stop;
        }
    }
    let _ = filled.send(Ok(chunk));
    Ok(())
}

/// Splits a buffer at its zero pieces and hands each run on, with whether it is zero.
fn pieces(buf: &[u8], mut each: impl FnMut(usize, &[u8], bool) -> Result<()>) -> Result<()> {
    let mut start = 0;
    while start < buf.len() {
        let zero = is_zero(&buf[start..buf.len().min(start + PIECE)]);
        let mut end = buf.len().min(start + PIECE);
        while end < buf.len() && is_zero(&buf[end..buf.len().min(end + PIECE)]) == zero {
            end = buf.len().min(end + PIECE);
        }
        each(start, &buf[start..end], zero)?;
        start = end;
    }
    Ok(())
}

fn write_sparse(target: &dyn Disk, offset: u64, buf: &[u8]) -> Result<()> {
    pieces(buf, |at, part, zero| {
        let at = offset + at as u64;
        if zero { make_zero(target, at, part.len() as u64) } else { target.write_at(at, part) }
    })
}

/// Writes `source` as one new dynamic image without a parent, front to back, and syncs it. Returns
/// the file's length in bytes. A failure leaves a file that is not an image.
pub fn flatten(source: &dyn Disk, path: &Path, uuid: Uuid, progress: Progress<'_>) -> Result<u64> {
    let mut writer = BlockWriter::create(path, uuid, source.size())?;
    read_ahead(source, progress, &mut |range, data| {
        data.map_or(Ok(()), |data| write_blocks(&mut writer, range.0, data))
    })?;
    writer.finish()
}

/// Writes data, whose zeros have been left out, to the blocks it belongs to.
fn write_blocks(writer: &mut BlockWriter, at: u64, data: &[u8]) -> Result<()> {
    let (mut at, mut rest) = (at, data);
    while !rest.is_empty() {
        let (block, within) = (at / writer.block_size(), at % writer.block_size());
        let count = (writer.block_size() - within).min(rest.len() as u64);
        let (part, tail) = rest.split_at(count as usize);
        writer.write(block, within, part)?;
        at += count;
        rest = tail;
    }
    Ok(())
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
    write_behind(stream, size, progress, &mut |at, part| write_sparse(target, at, part))?;
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
    write_behind(stream, size, progress, &mut |offset, part| {
        pieces(part, |at, piece, zero| {
            if zero { Ok(()) } else { write_blocks(&mut writer, offset + at as u64, piece) }
        })
    })?;
    writer.finish()
}

/// Hands on a stream of exactly `size` bytes, reading on this thread while another writes.
fn write_behind(
    stream: &mut dyn Read,
    size: u64,
    progress: Progress<'_>,
    write: &mut (dyn FnMut(u64, &[u8]) -> Result<()> + Send),
) -> Result<()> {
    thread::scope(|scope| {
        let (filled, chunks) = sync_channel::<(u64, Vec<u8>)>(AHEAD - 2);
        let (done, empty) = channel::<Vec<u8>>();
        let writing = scope.spawn(move || {
            for (at, bytes) in chunks {
                write(at, &bytes)?;
                let _ = done.send(bytes);
            }
            Ok(())
        });
        let mut read = || {
            let mut at = 0;
            loop {
                let mut bytes = empty.try_recv().unwrap_or_default();
                // One byte beyond the end tells a stream that is too long.
                fill(stream, &mut bytes, (size - at).clamp(1, CHUNK))?;
                let got = bytes.len() as u64;
                if got > size - at || (got == 0 && at < size) {
                    return Err(Error::StreamLength { got: at + got, expected: size });
                }
                // Not taken when the writer has failed, which tells why.
                if got == 0 || filled.send((at, bytes)).is_err() {
                    return Ok(());
                }
                at += got;
                report(progress, at)?;
            }
        };
        let read = read();
        drop(filled);
        let written = writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        written.and(read)
    })
}

/// Reads up to `room` bytes; fewer only at the end of the stream.
fn fill(stream: &mut dyn Read, bytes: &mut Vec<u8>, room: u64) -> Result<()> {
    bytes.resize(room as usize, 0);
    let mut got = 0;
    while got < bytes.len() {
        match stream.read(&mut bytes[got..]) {
            Ok(0) => break,
            Ok(count) => got += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(Path::new("the stream"), "read")(error)),
        }
    }
    bytes.truncate(got);
    Ok(())
}

/// Writes the whole disk to a stream, as raw bytes.
pub fn export(source: &dyn Disk, stream: &mut dyn Write, progress: Progress<'_>) -> Result<()> {
    let failed = |error| Error::io(Path::new("the stream"), "write")(error);
    let zeros = vec![0; CHUNK as usize];
    read_ahead(source, progress, &mut |range, data| {
        if let Some(data) = data {
            return stream.write_all(data).map_err(failed);
        }
        let mut left = range.1 - range.0;
        while left > 0 {
            let count = left.min(CHUNK);
            stream.write_all(&zeros[..count as usize]).map_err(failed)?;
            left -= count;
        }
        Ok(())
    })?;
    stream.flush().map_err(failed)
}
