//! Checksums of the content of disks.
//!
//! SHA-256, of the bytes a guest would read from the first to the last, whatever the disk is stored
//! as: `sha256sum` of a raw file with the same content says the same, so nobody needs this program
//! to look. Why not a faster one (BLAKE3, xxHash): with the processor's own instructions it is as
//! fast as disks are, it tells tampering too, and every machine has it.
//!
//! It is taken of what is read while it is copied, so an export costs no second look. A job that
//! goes on where another process stopped reads the beginning again, and then all of what it has
//! made: the beginning was written by somebody else.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use sm_model::{Error, Kind, Result};
use vhd::{Disk, Extent, ExtentKind, Extents};

/// Begins every checksum, so that there can be others one day.
const NAME: &str = "sha256:";

/// Bytes read at a time.
const CHUNK: u64 = 1 << 20;

/// Zeros, for what is not read.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The SHA-256 of the content of a disk.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Checksum([u8; 32]);

/// What a job makes sure of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checks {
    /// Takes the checksum of the content.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub checksum: bool,
    /// Fails when the content has another checksum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Checksum>,
    /// Reads back what was made and compares.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub verify: bool,
}

impl Checks {
    /// Whether there is nothing to make sure of: also for records.
    pub(crate) fn are_none(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAME)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl From<Checksum> for String {
    fn from(checksum: Checksum) -> Self {
        checksum.to_string()
    }
}

impl TryFrom<String> for Checksum {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Checksum {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let bad = || format!("{text:?} is no checksum: {NAME} and 64 hexadecimal digits");
        let digits = text.strip_prefix(NAME).ok_or_else(bad)?.as_bytes();
        if digits.len() != 64 {
            return Err(bad());
        }
        let digit = |byte: u8| char::from(byte).to_digit(16).ok_or_else(bad);
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let [high, low] = pair else { return Err(bad()) };
            *byte = (digit(*high)? * 16 + digit(*low)?) as u8;
        }
        Ok(Self(bytes))
    }
}

/// A checksum that is being taken, of bytes in order.
#[derive(Default)]
pub(crate) struct Sum {
    hasher: Sha256,
    at: u64,
}

impl Sum {
    /// The bytes that follow.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.at += bytes.len() as u64;
    }

    /// Nothing was read up to `offset`: zeros.
    fn zeros_to(&mut self, offset: u64) {
        while self.at < offset {
            let count = (offset - self.at).min(ZEROS.len() as u64);
            self.add(ZEROS.get(..count as usize).unwrap_or_default());
        }
    }

    /// The checksum of `size` bytes.
    pub(crate) fn finish(mut self, size: u64) -> Checksum {
        self.zeros_to(size);
        Checksum(self.hasher.finalize().into())
    }

    /// Adds the beginning of a disk, reading it.
    pub(crate) fn add_disk(
        &mut self,
        disk: &dyn Disk,
        end: u64,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<()> {
        let mut buffer = vec![0; CHUNK as usize];
        for extent in Extents::new(disk, 0, end) {
            let extent = extent.map_err(|error| crate::transfer::from_vhd(&error))?;
            let (mut at, stop) = (extent.offset, extent.offset + extent.length);
            while at < stop {
                let part = &mut buffer[..(stop - at).min(CHUNK) as usize];
                if extent.kind == ExtentKind::Data {
                    disk.read_at(at, part).map_err(|error| crate::transfer::from_vhd(&error))?;
                    self.add(part);
                } else {
                    self.zeros_to(at + part.len() as u64);
                }
                at += part.len() as u64;
                if !go_on(at) {
                    return Err(Error::new(Kind::Cancelled, "the caller cancelled"));
                }
            }
        }
        Ok(())
    }
}

/// The checksum of the beginning of a disk, by reading it.
pub(crate) fn of_disk(
    disk: &dyn Disk,
    size: u64,
    go_on: &mut dyn FnMut(u64) -> bool,
) -> Result<Checksum> {
    let mut sum = Sum::default();
    sum.add_disk(disk, size, go_on)?;
    Ok(sum.finish(size))
}

/// A disk whose checksum is taken while somebody reads it, each byte once and in order; what is
/// left out is zeros.
pub(crate) struct Summed<'a> {
    disk: &'a dyn Disk,
    state: Mutex<State>,
}

struct State {
    sum: Sum,
    disorder: bool,
}

impl<'a> Summed<'a> {
    /// Goes on with a sum of what was before.
    pub(crate) fn new(disk: &'a dyn Disk, sum: Sum) -> Self {
        Self { disk, state: Mutex::new(State { sum, disorder: false }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The checksum, when all was read.
    pub(crate) fn finish(self) -> Result<Checksum> {
        let size = self.disk.size();
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        if state.disorder {
            return Err(Error::internal("the disk was not read in order, so it has no checksum"));
        }
        Ok(state.sum.finish(size))
    }
}

impl Disk for Summed<'_> {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> vhd::Result<()> {
        self.disk.read_at(offset, buf)?;
        let mut state = self.state();
        state.disorder |= offset < state.sum.at;
        state.sum.zeros_to(offset);
        state.sum.add(buf);
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> vhd::Result<()> {
        self.disk.write_at(offset, buf)
    }

    fn flush(&self) -> vhd::Result<()> {
        self.disk.flush()
    }

    fn extents(&self, offset: u64, length: u64) -> vhd::Result<Vec<Extent>> {
        self.disk.extents(offset, length)
    }
}

/// The content is not what somebody has said.
pub(crate) fn check(found: Checksum, expected: Option<Checksum>) -> Result<()> {
    match expected {
        Some(expected) if expected != found => Err(Error::new(
            Kind::Corrupt,
            format!("the content has the checksum {found}, not {expected}"),
        )
        .hint(
            "the source was changed or damaged on its way; the checksum is that of its bytes, raw",
        )),
        _ => Ok(()),
    }
}

/// What was made does not read as what it was made of.
pub(crate) fn check_back(made: Checksum, of: Checksum) -> Result<()> {
    if made == of {
        return Ok(());
    }
    Err(Error::new(
        Kind::Corrupt,
        format!("what was written reads back with the checksum {made}, not {of}"),
    )
    .hint("the storage does not keep what it is given, or the source changed meanwhile"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails so")]

    use super::*;

    /// Of nothing, and of "abc": FIPS 180-4, examples.
    const NOTHING: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_checksum_is_written_and_read() {
        assert_eq!(Sum::default().finish(0).to_string(), NOTHING);
        let mut sum = Sum::default();
        sum.add(b"abc");
        assert_eq!(sum.finish(3), ABC.parse().unwrap());
        assert_eq!(ABC.to_uppercase().replace("SHA256", "sha256").parse(), ABC.parse::<Checksum>());
        for bad in ["", "sha256:", "md5:00", &ABC[..70], &format!("{ABC}0"), &ABC.replace('b', "g")]
        {
            let error = bad.parse::<Checksum>().unwrap_err();
            assert!(
                error.ends_with("is no checksum: sha256: and 64 hexadecimal digits"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_not_read_counts_as_zeros() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("raw");
        let size = 3_u64 << 20;
        let disk = vhd::Raw::create(&path, size).unwrap();
        disk.write_at(1 << 20, &[7; 4096]).unwrap();
        let summed = Summed::new(&disk, Sum::default());
        let target = vhd::Raw::create(&folder.path().join("copy"), size).unwrap();
        let mut go_on = |_| std::ops::ControlFlow::Continue(());
        vhd::copy::copy(&summed, &target, &mut go_on).unwrap();
        let mut whole = Sum::default();
        whole.add(&std::fs::read(&path).unwrap());
        let whole = whole.finish(size);
        assert_eq!(summed.finish().unwrap(), whole);
        assert_eq!(of_disk(&target, size, &mut |_| true).unwrap(), whole);

        let again = Summed::new(&disk, Sum::default());
        again.read_at(4096, &mut [0; 512]).unwrap();
        again.read_at(0, &mut [0; 512]).unwrap();
        assert!(again.finish().is_err(), "out of order");
    }
}
