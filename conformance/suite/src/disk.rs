//! An attached disk, by the way its driver named: what a guest would read and write.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datapath::disk::{Drive, Format, Layer, Options, Plan};
use datapath::export::Export as _;
use datapath::nbd::client::{Client, Options as NbdOptions};
use datapath::nbd::uri::Uri;
use sm_model::{Access, ImageFormat};

use crate::oracle::{self, BLOCK, Content};

/// How long an image may take to become durable.
pub(crate) const STORAGE: Duration = Duration::from_secs(30);

/// Bytes that are read at once.
const STRIDE: u64 = 1 << 20;

/// How many differences are told.
const TOLD: usize = 4;

/// A disk that can be read, and written if it was attached for that.
pub(crate) enum Disk {
    /// The bytes of a device.
    Raw(File, u64),
    /// Images, by the code that serves them to guests.
    Images(Arc<Drive>),
    /// A network block device.
    Nbd(Client),
}

impl Disk {
    /// Opens the first way that this host can use. A file must lie in the backend's folder: what a
    /// driver says is not believed further than that.
    pub(crate) fn open(
        access: &[Access],
        read_only: bool,
        backend: Option<&Path>,
    ) -> Result<Self, String> {
        let first = access.first().ok_or("the driver answered no way to reach the disk")?;
        let raw = |path: &Path| {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(!read_only).open(path);
            let file = file.map_err(|error| format!("{}: {error}", path.display()))?;
            let size = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))
                .map_err(|error| format!("{}: {error}", path.display()))?;
            Ok(Self::Raw(file, size))
        };
        match first {
            Access::BlockDevice { path } => {
                if !path.starts_with("/dev") {
                    return Err(format!("{path} is no device"));
                }
                raw(path.as_std_path())
            }
            Access::File { path, backing, .. } => {
                for path in backing.iter().map(|image| &image.path).chain([path]) {
                    inside(path.as_std_path(), backend)?;
                }
                let plan = plan(first, read_only).ok_or("the images make no disk")?;
                let drive = Drive::open(&plan, Options::default());
                drive.map(Self::Images).map_err(|error| format!("{path}: {error}"))
            }
            Access::Nbd { uri } => {
                let parsed: Uri = uri.parse().map_err(|error| format!("{uri}: {error}"))?;
                let client = Client::connect(&parsed, &NbdOptions::default());
                client.map(Self::Nbd).map_err(|error| format!("{uri}: {error}"))
            }
        }
    }

    /// The images that a pause has to stop.
    pub(crate) fn drive(&self) -> Option<Arc<Drive>> {
        match self {
            Self::Images(drive) => Some(Arc::clone(drive)),
            Self::Raw(..) | Self::Nbd(_) => None,
        }
    }

    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Self::Raw(_, size) => *size,
            Self::Images(drive) => drive.size(),
            Self::Nbd(client) => client.size(),
        }
    }

    pub(crate) fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), String> {
        let said = |error: &dyn std::fmt::Display| format!("a read at {offset} failed: {error}");
        match self {
            Self::Raw(file, _) => file.read_exact_at(bytes, offset).map_err(|e| said(&e)),
            Self::Images(drive) => drive.read(offset, bytes).map_err(|e| said(&e)),
            Self::Nbd(client) => client.read(offset, bytes).map_err(|e| said(&e)),
        }
    }

    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), String> {
        let said = |error: &dyn std::fmt::Display| format!("a write at {offset} failed: {error}");
        match self {
            Self::Raw(file, _) => file.write_all_at(bytes, offset).map_err(|e| said(&e)),
            Self::Images(drive) => drive.write(offset, bytes, false).map_err(|e| said(&e)),
            Self::Nbd(client) => client.write(offset, bytes, false).map_err(|e| said(&e)),
        }
    }

    /// Writes, however it was opened; images as they were opened.
    pub(crate) fn force(&self, offset: u64, bytes: &[u8]) -> Result<(), String> {
        match self {
            Self::Raw(file, size) => {
                let again = format!("/proc/self/fd/{}", file.as_raw_fd());
                let file = OpenOptions::new().write(true).open(again);
                let opened = file.map(|file| Self::Raw(file, *size));
                let opened = opened.map_err(|error| format!("it cannot be opened: {error}"));
                opened.and_then(|disk| disk.write(offset, bytes).and_then(|()| disk.flush()))
            }
            Self::Nbd(_) | Self::Images(_) => self.write(offset, bytes),
        }
    }

    pub(crate) fn flush(&self) -> Result<(), String> {
        let said = |error: &dyn std::fmt::Display| format!("a flush failed: {error}");
        match self {
            Self::Raw(file, _) => file.sync_all().map_err(|e| said(&e)),
            Self::Images(drive) => drive.flush().map_err(|e| said(&e)),
            Self::Nbd(client) => client.flush().map_err(|e| said(&e)),
        }
    }

    pub(crate) fn close(self) -> Result<(), String> {
        match self {
            Self::Raw(..) => Ok(()),
            Self::Images(drive) => drive
                .close(Instant::now() + STORAGE)
                .map_err(|error| format!("the images could not be closed: {error}")),
            Self::Nbd(client) => {
                client.close();
                Ok(())
            }
        }
    }

    /// Compares all of it with what must be there; the answer is empty when it is.
    pub(crate) fn compare(&self, content: &Content) -> Result<Vec<String>, String> {
        let mut found = Vec::new();
        let mut buffer = vec![0; STRIDE as usize];
        let mut offset = 0;
        while offset < self.size() && found.len() < TOLD {
            let length = STRIDE.min(self.size() - offset);
            let bytes = buffer.get_mut(..length as usize).unwrap_or_default();
            self.read(offset, bytes)?;
            oracle::differences(bytes, offset / BLOCK, content, &mut found);
            offset += length;
        }
        if let Some((lba, _)) = content.blocks.range(self.size().div_ceil(BLOCK)..).next() {
            found.push(format!("block {lba} was written and lies beyond the end of the disk"));
        }
        found.truncate(TOLD);
        Ok(found)
    }
}

/// What the data path is told of images.
pub(crate) fn plan(access: &Access, read_only: bool) -> Option<Plan> {
    let Access::File { path, format, backing, .. } = access else { return None };
    let layer = |path: &Path, format: ImageFormat| Layer {
        path: path.to_owned(),
        format: match format {
            ImageFormat::Vhd => Format::Vhd,
            ImageFormat::Raw => Format::Raw,
        },
    };
    Some(Plan {
        leaf: layer(path.as_std_path(), *format),
        backing: backing.iter().map(|b| layer(b.path.as_std_path(), b.format)).collect(),
        read_only,
    })
}

fn inside(path: &Path, backend: Option<&Path>) -> Result<(), String> {
    let Some(backend) = backend else { return Ok(()) };
    let real = path.canonicalize().map_err(|error| format!("{}: {error}", path.display()))?;
    if backend.canonicalize().is_ok_and(|backend| real.starts_with(backend)) {
        return Ok(());
    }
    Err(format!("the driver names {}, which is not in its backend", path.display()))
}
