//! Checking a large image.

use std::fs::File;
use std::path::Path;

use rustix::fs::{Advice, FallocateFlags};
use uuid::Uuid;
use vhd::BLOCK;
use vhd::check::check_image;
use vhd::image::BlockWriter;

use crate::images::MIB;
use crate::table::{Row, Table};
use crate::{Result, Setting, seconds};

pub(crate) fn measure(setting: &Setting, table: &mut Table) -> Result<()> {
    let (size, blocks) = (setting.bytes(100 << 30), setting.bytes(10 << 30) / BLOCK);
    let path = setting.disk.join("large.vhd");
    let mut writer = BlockWriter::create(&path, Uuid::from_u128(1), size)?;
    // The whole space, so that bitmaps lie as far apart as in an image full of data.
    let file = File::options().write(true).open(&path)?;
    rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, blocks * (BLOCK + 4096) + 16 * MIB)?;
    let step = size / BLOCK / blocks;
    for block in 0..blocks {
        writer.write(block * step, 0, &[1; 4096])?;
    }
    writer.finish()?;
    for (state, rounds) in [("cold", 5), ("warm", 9)] {
        let mut ours = Vec::new();
        for _ in 0..setting.rounds(rounds) {
            if state == "cold" {
                forget(&path)?;
            }
            let time = seconds(|| match &check_image(&path)[..] {
                [] => Ok(()),
                findings => Err(format!("{findings:?}").into()),
            })?;
            ours.push(1000.0 * time);
        }
        table.push(Row {
            name: format!(
                "check a VHD of {} GiB, {} in the file, {state}, disk",
                size >> 30,
                (blocks * BLOCK) >> 30
            ),
            unit: "ms",
            ours,
            peer: None,
            bar: None,
            note: format!(
                "{blocks} bitmaps; qemu-img does not check VHDs, vhdiinfo reads their headers only"
            ),
        });
    }
    std::fs::remove_file(&path)?;
    Ok(())
}

/// Drops what the system keeps of a file in memory.
fn forget(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    Ok(rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?)
}
