//! The bytes of import, export and copy. Runs on a thread of its own; no policy.

use std::io::Read;
use std::ops::ControlFlow;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use sm_model::{Access, Error, ImageFormat, Kind, Result};
use vhd::{Chain, Disk, Extent, Layer, Mode};

use crate::checksum::Sum;

/// Bytes between two flushes of the target: what a resumed job may have to copy again.
const CHECKPOINT: u64 = 256 << 20;

/// Bytes read from a stream at a time: one block of a VHD.
const CHUNK: usize = 2 << 20;

/// Zeros in a stream are looked for in pieces of this size, as file systems allocate.
const PIECE: usize = 64 << 10;

/// Told how many bytes are done; `true` for those that are safe on the storage. Answers whether
/// to go on.
pub(crate) type Report<'a> = &'a mut dyn FnMut(u64, bool) -> ControlFlow<()>;

/// Opens a disk by the first way that this process can go.
pub(crate) fn open(access: &[Access], mode: Mode) -> Result<Box<dyn Disk>> {
    for way in access {
        let opened = match way {
            Access::BlockDevice { path } => {
                // Names of devices are links, made by root; an image's path never is one.
                let node = std::fs::canonicalize(path).map_err(|error| {
                    let words = error.to_string();
                    let mut error = Error::from(error);
                    error.message = format!("the device {path}: {words}");
                    error
                })?;
                Chain::single(Layer::Raw(&node), mode)
            }
            Access::File { path, format, backing, .. } => {
                let layers: Vec<Layer<'_>> = std::iter::once((path, format))
                    .chain(backing.iter().map(|image| (&image.path, &image.format)))
                    .map(|(path, format)| layer(path.as_std_path(), *format))
                    .collect();
                Chain::open(&layers, mode)
            }
            Access::Nbd { .. } => continue,
        };
        return opened.map(|chain| Box::new(chain) as Box<dyn Disk>).map_err(|e| from_vhd(&e));
    }
    Err(Error::unsupported("the disk is reached in no way that this release can copy"))
}

fn layer(path: &Path, format: ImageFormat) -> Layer<'_> {
    match format {
        ImageFormat::Raw => Layer::Raw(path),
        ImageFormat::Vhd => Layer::Vhd(path),
    }
}

/// Has what is read of a disk next come from the storage, and not from this host's memory. It must
/// be durable. Where the system cannot do that, memory is looked at.
pub(crate) fn forget_cached(access: &[Access]) {
    for way in access {
        if let Access::File { path, .. } | Access::BlockDevice { path } = way {
            forget_cached_file(path.as_std_path());
        }
    }
}

/// As [`forget_cached`], of a file.
pub(crate) fn forget_cached_file(path: &Path) {
    if let Ok(file) = std::fs::File::open(path) {
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
    }
}

fn check_source(path: &Path) -> Result<()> {
    let kind = std::fs::metadata(path)
        .map_err(|error| {
            let words = error.to_string();
            let mut error = Error::from(error);
            error.message = format!("{}: {words}", path.display());
            error
        })?
        .file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    Err(Error::unsupported(format!("{} is neither a file nor a block device", path.display())))
}

/// Opens a file that somebody wants to import.
pub(crate) fn open_source(path: &Path, format: ImageFormat) -> Result<Box<dyn Disk>> {
    check_source(path)?;
    if format == ImageFormat::Vhd {
        let info = vhd::image::probe(path).map_err(|e| from_vhd(&e))?;
        if let Some(parent) = info.parent {
            return Err(Error::unsupported(format!(
                "{} is a differencing image: without its parent {:?} it is no disk",
                path.display(),
                parent.name
            ))
            .hint("flatten the chain where it lies, and import the result"));
        }
    }
    let chain = Chain::single(layer(path, format), Mode::Read).map_err(|e| from_vhd(&e))?;
    Ok(Box::new(chain))
}

/// The format of a file that somebody wants to import, by looking at it. Only an import may look:
/// everywhere else the format is known, and a guest can write a VHD's footer into its raw disk.
pub(crate) fn look(path: &Path) -> Result<ImageFormat> {
    check_source(path)?;
    match vhd::image::probe(path) {
        Ok(_) => Ok(ImageFormat::Vhd),
        Err(error) => {
            let named_vhd = path.extension().is_some_and(|name| name.eq_ignore_ascii_case("vhd"));
            // A damaged VHD must not become a raw disk full of headers.
            if named_vhd || matches!(error, vhd::Error::Io { .. }) {
                Err(from_vhd(&error))
            } else {
                Ok(ImageFormat::Raw)
            }
        }
    }
}

/// Copies `source` over the beginning of `target` from byte `start` on.
pub(crate) fn copy(
    source: &dyn Disk,
    target: &dyn Disk,
    start: u64,
    report: Report<'_>,
) -> Result<()> {
    let (from, to) = (Tail { disk: source, start }, Tail { disk: target, start });
    let mut checkpoint = 0;
    let mut failed = None;
    let mut progress = |done: u64| {
        let mut safe = false;
        if done - checkpoint >= CHECKPOINT {
            if let Err(error) = target.flush() {
                failed = Some(error);
                return ControlFlow::Break(());
            }
            checkpoint = done;
            safe = true;
        }
        report(start + done, safe)
    };
    let result = vhd::copy::copy(&from, &to, &mut progress);
    match (failed, result) {
        (Some(error), _) | (None, Err(error)) => Err(from_vhd(&error)),
        (None, Ok(())) => Ok(()),
    }
}

/// Writes `source` to a new file at `path`.
pub(crate) fn write(
    source: &dyn Disk,
    path: &Path,
    format: ImageFormat,
    report: Report<'_>,
) -> Result<()> {
    let mut progress = |done: u64| report(done, false);
    let written = match format {
        ImageFormat::Vhd => {
            vhd::copy::flatten(source, path, uuid::Uuid::new_v4(), &mut progress).map(drop)
        }
        ImageFormat::Raw => vhd::Raw::create(path, source.size())
            .and_then(|target| vhd::copy::copy(source, &target, &mut progress)),
    };
    written.map_err(|e| from_vhd(&e))
}

/// Fills the beginning of `target` from a stream of exactly `size` bytes, and takes their checksum.
pub(crate) fn fill(
    stream: &mut dyn Read,
    size: u64,
    target: &dyn Disk,
    mut sum: Option<&mut Sum>,
    report: Report<'_>,
) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut done = 0;
    loop {
        let mut got = 0;
        while got < buffer.len() {
            match stream.read(&mut buffer[got..]) {
                Ok(0) => break,
                Ok(count) => got += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::from(error)),
            }
        }
        if got == 0 {
            break;
        }
        if done + got as u64 > size {
            return Err(Error::new(
                Kind::Limit,
                format!("the stream goes on beyond the {size} bytes that were announced"),
            )
            .hint("give its exact size with --size"));
        }
        if let Some(sum) = &mut sum {
            sum.add(&buffer[..got]);
        }
        for (n, piece) in buffer[..got].chunks(PIECE).enumerate() {
            if !vhd::copy::is_zero(piece) {
                target.write_at(done + (n * PIECE) as u64, piece).map_err(|e| from_vhd(&e))?;
            }
        }
        done += got as u64;
        if report(done, false).is_break() {
            return Err(Error::new(Kind::Cancelled, "the caller cancelled"));
        }
    }
    if done < size {
        return Err(Error::new(
            Kind::Limit,
            format!("the stream ended after {done} of the {size} bytes that were announced"),
        )
        .hint("the source was cut short, or its size is not what --size says"));
    }
    target.flush().map_err(|e| from_vhd(&e))
}

/// A disk from some byte on.
struct Tail<'a> {
    disk: &'a dyn Disk,
    start: u64,
}

impl Disk for Tail<'_> {
    fn size(&self) -> u64 {
        self.disk.size().saturating_sub(self.start)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> vhd::Result<()> {
        self.disk.read_at(self.start + offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> vhd::Result<()> {
        self.disk.write_at(self.start + offset, buf)
    }

    fn flush(&self) -> vhd::Result<()> {
        self.disk.flush()
    }

    fn extents(&self, offset: u64, length: u64) -> vhd::Result<Vec<Extent>> {
        let mut extents = self.disk.extents(self.start + offset, length)?;
        for extent in &mut extents {
            extent.offset -= self.start;
        }
        Ok(extents)
    }

    fn write_zeros(&self, offset: u64, length: u64) -> vhd::Result<()> {
        self.disk.write_zeros(self.start + offset, length)
    }
}

/// An error of the image library as one of ours.
pub(crate) fn from_vhd(error: &vhd::Error) -> Error {
    let kind = if error.is_no_space() {
        Kind::NoSpace
    } else if error.is_not_found() {
        Kind::NotFound
    } else if error.is_corrupt() {
        Kind::Corrupt
    } else if matches!(error, vhd::Error::Stopped { .. }) {
        Kind::Cancelled
    } else {
        Kind::Internal
    };
    Error::new(kind, error.reason())
}
