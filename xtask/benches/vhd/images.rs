//! Images to work on.

use std::path::Path;

use uuid::Uuid;
use vhd::image::{NewImage, ParentLink, create};
use vhd::{Image, Mode};

use crate::Result;

pub(crate) const MIB: u64 = 1 << 20;

/// Identity of every parent.
const PARENT: Uuid = Uuid::from_u128(0x1000);

/// Makes an empty image without a parent.
pub(crate) fn parent(path: &Path, size: u64) -> Result<Image> {
    create(path, &NewImage { uuid: PARENT, size, parent: None })?;
    Ok(Image::open(path, Mode::Write)?)
}

/// Makes an empty child of `parent.vhd` in the same folder.
pub(crate) fn child(path: &Path, size: u64) -> Result<Image> {
    let link = ParentLink { uuid: PARENT, name: "parent.vhd".to_owned() };
    create(path, &NewImage { uuid: Uuid::from_u128(0x2000), size, parent: Some(link) })?;
    Ok(Image::open(path, Mode::Write)?)
}

/// Bytes that no one can make smaller, different at every place.
pub(crate) fn noise(at: u64, buf: &mut [u8]) {
    let mut state = at.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for word in buf.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}

/// Fills `length` bytes in every `step` of a disk and makes all of it durable.
pub(crate) fn fill(
    size: u64,
    length: u64,
    step: u64,
    mut write: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let mut buf = vec![0; length as usize];
    for at in (0..size).step_by(step as usize) {
        noise(at, &mut buf);
        write(at, &buf)?;
    }
    Ok(())
}
