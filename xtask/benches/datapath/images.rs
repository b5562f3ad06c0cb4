//! Images to serve: the same disk in every format.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use uuid::Uuid;
use vhd::copy::flatten;
use vhd::image::{NewImage, ParentLink, create};
use vhd::{Image, Mode, Raw};

use crate::Result;
use crate::process::succeed;

pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;

/// A chain is made of pieces this long, each in a layer of its own choice.
const PIECE: u64 = 64 << 10;

/// Time to make one image.
const MAKE: Duration = Duration::from_secs(120);

/// An image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Raw,
    /// Made by us.
    Vhd,
    /// A VHD as `qemu-img` makes it.
    Vpc,
    Qcow2,
    /// So many VHDs, each with an equal part of the disk in random pieces of 64 KiB.
    VhdChain(u32),
    /// The same as qcow2.
    Qcow2Chain(u32),
}

impl Kind {
    /// Where it is.
    pub(crate) fn path(self, folder: &Path) -> PathBuf {
        match self {
            Self::Raw => folder.join("disk.raw"),
            Self::Vhd => folder.join("disk.vhd"),
            Self::Vpc => folder.join("qemu.vhd"),
            Self::Qcow2 => folder.join("disk.qcow2"),
            Self::VhdChain(depth) => layer(&chain_folder(folder, "vhd", depth), depth - 1, "vhd"),
            Self::Qcow2Chain(depth) => {
                layer(&chain_folder(folder, "qcow2", depth), depth - 1, "qcow2")
            }
        }
    }

    /// Makes it with every byte written; those with one file are converted from the raw one.
    pub(crate) fn fill(self, folder: &Path, size: u64) -> Result<()> {
        let path = self.path(folder);
        let raw = Self::Raw.path(folder);
        if !matches!(self, Self::VhdChain(_) | Self::Qcow2Chain(_)) && !raw.exists() {
            let file = File::create_new(&raw)?;
            noise(size, MIB, |at, buf| Ok(file.write_all_at(buf, at)?))?;
        }
        match self {
            Self::Raw => {}
            Self::Vhd => {
                let source = Raw::open(&raw, Mode::Read)?;
                flatten(&source, &path, Uuid::from_u128(1), &mut |_| ControlFlow::Continue(()))?;
            }
            Self::Vpc | Self::Qcow2 => convert(&raw, &path, self.qemu())?,
            Self::VhdChain(depth) => {
                let folder = chain_folder(folder, "vhd", depth);
                std::fs::create_dir(&folder)?;
                let images = vhd_layers(&folder, depth, size)?;
                noise(size, PIECE, |at, buf| {
                    let owner = images.get(owner(at, depth) as usize).ok_or("no such layer")?;
                    Ok(owner.write_at(at, buf)?)
                })?;
                for image in images {
                    image.flush()?;
                }
            }
            Self::Qcow2Chain(depth) => {
                let folder = chain_folder(folder, "qcow2", depth);
                std::fs::create_dir(&folder)?;
                qcow2_layers(&folder, depth, size)?;
            }
        }
        Ok(())
    }

    /// Makes it with nothing written, in the place of what there is.
    pub(crate) fn empty(self, folder: &Path, size: u64) -> Result<()> {
        let path = self.path(folder);
        let _ = std::fs::remove_file(&path);
        match self {
            Self::Raw => File::create_new(&path)?.set_len(size)?,
            Self::Vhd => {
                create(&path, &NewImage { uuid: Uuid::from_u128(1), size, parent: None })?;
            }
            Self::Vpc | Self::Qcow2 => {
                let mut command = Command::new("qemu-img");
                command.args(["create", "-q", "-f", self.qemu()]).arg(&path);
                if self == Self::Vpc {
                    // The size of the disk as it is, not as cylinders.
                    command.args(["-o", "force_size=on"]);
                }
                succeed(command.arg(size.to_string()), MAKE)?;
            }
            Self::VhdChain(_) | Self::Qcow2Chain(_) => return Err("chains are not empty".into()),
        }
        Ok(())
    }

    /// What qemu calls it.
    pub(crate) fn qemu(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vhd | Self::Vpc | Self::VhdChain(_) => "vpc",
            Self::Qcow2 | Self::Qcow2Chain(_) => "qcow2",
        }
    }
}

/// The folder of a chain.
fn chain_folder(folder: &Path, kind: &str, depth: u32) -> PathBuf {
    folder.join(format!("{kind}-{depth}"))
}

fn layer(folder: &Path, index: u32, extension: &str) -> PathBuf {
    folder.join(format!("layer-{index}.{extension}"))
}

/// Identity of a layer of every chain.
fn identity(index: u32) -> Uuid {
    Uuid::from_u128(0x1000 + u128::from(index))
}

/// Empty images, each the parent of the next.
pub(crate) fn vhd_layers(folder: &Path, depth: u32, size: u64) -> Result<Vec<Image>> {
    let make = |index: u32| {
        let path = layer(folder, index, "vhd");
        let parent = index
            .checked_sub(1)
            .map(|below| ParentLink { uuid: identity(below), name: format!("layer-{below}.vhd") });
        create(&path, &NewImage { uuid: identity(index), size, parent })?;
        Ok(Image::open(&path, Mode::Write)?)
    };
    (0..depth).map(make).collect()
}

fn qcow2_layers(folder: &Path, depth: u32, size: u64) -> Result<()> {
    let raw = folder.join("raw");
    for index in 0..depth {
        let file = File::create(&raw)?;
        file.set_len(size)?;
        noise(size, PIECE, |at, buf| {
            if owner(at, depth) == index { Ok(file.write_all_at(buf, at)?) } else { Ok(()) }
        })?;
        let path = layer(folder, index, "qcow2");
        convert(&raw, &path, "qcow2")?;
        if let Some(below) = index.checked_sub(1) {
            let mut command = Command::new("qemu-img");
            command.args(["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b"]);
            succeed(command.arg(layer(folder, below, "qcow2")).arg(&path), MAKE)?;
        }
    }
    Ok(std::fs::remove_file(&raw)?)
}

fn convert(from: &Path, to: &Path, format: &str) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", "raw", "-O", format]);
    if format == "vpc" {
        command.args(["-o", "force_size=on"]);
    }
    succeed(command.arg(from).arg(to), MAKE).map(drop)
}

/// Which layer of a chain has the piece at an offset: each as likely as the others.
fn owner(at: u64, depth: u32) -> u32 {
    let mixed = (at / PIECE + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
    (mixed % u64::from(depth)) as u32
}

/// Hands out a whole disk in pieces of bytes that no one can make smaller.
fn noise(size: u64, length: u64, mut each: impl FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let mut buf = vec![0; length as usize];
    for at in (0..size).step_by(length as usize) {
        let mut state = at.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for word in buf.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        each(at, &buf)?;
    }
    Ok(())
}
