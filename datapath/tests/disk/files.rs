//! Files for disks, and small things that tests share.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use datapath::disk::{Format, Layer, Options, Plan};
use uuid::Uuid;
use vhd::image::{NewImage, ParentLink, create};

/// Small, fast and seeded: xorshift64*.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// With the seed of the environment, or another each time.
    pub(crate) fn any() -> Self {
        let seed = std::env::var("DISK_SEED").ok().and_then(|text| text.parse().ok());
        let seed = seed.unwrap_or_else(|| {
            let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
            now.as_nanos() as u64
        });
        println!("DISK_SEED={seed}");
        Self::new(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit.max(1)
    }
}

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

pub(crate) fn layer(path: &Path, format: Format) -> Layer {
    Layer { path: path.to_owned(), format }
}

/// A plan of VHDs, the leaf first.
pub(crate) fn plan(paths: &[PathBuf]) -> Plan {
    let mut layers = paths.iter().map(|path| layer(path, Format::Vhd));
    Plan { leaf: layers.next().unwrap(), backing: layers.collect(), read_only: false }
}

/// A new image; `parent` is its number and file.
pub(crate) fn new_image(
    dir: &Path,
    number: u128,
    size: u64,
    parent: Option<(u128, &Path)>,
) -> PathBuf {
    let path = dir.join(format!("{number}.vhd"));
    let parent = parent.map(|(number, path)| ParentLink {
        uuid: Uuid::from_u128(number),
        name: path.file_name().unwrap().to_str().unwrap().to_owned(),
    });
    create(&path, &NewImage { uuid: Uuid::from_u128(number), size, parent }).unwrap();
    path
}

/// Options with notes in a directory.
pub(crate) fn options(dir: &Path) -> Options {
    Options { pending: Some(dir.join("pending")), ..Options::default() }
}

/// Files of notes in a directory.
pub(crate) fn notes(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .filter(|path| path.file_name().unwrap().to_str().unwrap().contains("pending."))
        .collect()
}

pub(crate) fn sound(path: &Path) {
    let findings = vhd::check::check_image(path);
    let bad = findings.iter().find(|found| found.severity > vhd::check::Severity::Note);
    assert!(bad.is_none(), "{}: {bad:?}", path.display());
}
