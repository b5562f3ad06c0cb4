//! Merging an image into its parent.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vhd::merge::{Options, merge};
use vhd::store::Blob;
use vhd::{Image, Mode};

use crate::images::{MIB, child, fill, parent};
use crate::table::{Bar, Row, Table, amount};
use crate::{Result, Setting, qemu_img, seconds, utf8};

pub(crate) fn measure(setting: &Setting, table: &mut Table) -> Result<()> {
    whole(setting, table)?;
    sectors(setting, table)?;
    pieces(setting, table)
}

/// Merges, with all its syncs; seconds.
fn merged(child: &Path, into: &Path) -> Result<f64> {
    let from = Image::open(child, Mode::Read)?;
    let to = Image::open(into, Mode::Write)?;
    seconds(|| Ok(merge(&from, &to, 0, &Options::default(), &mut |_| ControlFlow::Continue(()))?))
}

/// What a copy of a file costs: reads and writes of 1 MiB, one sync at the end; seconds.
fn copied(from: &Path, to: &Path) -> Result<f64> {
    let from = File::open(from)?;
    let to = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(to)?;
    let length = from.metadata()?.len();
    let mut buf = vec![0; MIB as usize];
    seconds(|| {
        let mut at = 0;
        while at < length {
            let part = &mut buf[..(length - at).min(MIB) as usize];
            from.read_exact_at(part, at)?;
            to.write_all_at(part, at)?;
            at += part.len() as u64;
        }
        Ok(to.sync_data()?)
    })
}

/// Whole blocks, on the disk.
fn whole(setting: &Setting, table: &mut Table) -> Result<()> {
    let size = setting.bytes(2048 * MIB);
    let place = |name: &str| setting.disk.join(name);
    let (leaf, base, full) = (place("leaf.vhd"), place("empty.vhd"), place("full.vhd"));
    for path in [&leaf, &full] {
        let image = if *path == leaf { child(path, size)? } else { parent(path, size)? };
        fill(size, 4 * MIB, 4 * MIB, |at, buf| Ok(image.write_at(at, buf)?))?;
        image.flush()?;
    }
    let (copy, over) = (place("copy"), place("over"));
    copied(&leaf, &over)?;
    let mut figures = [const { Vec::new() }; 4];
    for _ in 0..setting.rounds(3) {
        drop(parent(&base, size)?);
        let times = [
            merged(&leaf, &base)?,
            copied(&leaf, &copy)?,
            merged(&leaf, &full)?,
            copied(&leaf, &over)?,
        ];
        for (figures, time) in figures.iter_mut().zip(times) {
            figures.push(amount(size) / amount(MIB) / time);
        }
        std::fs::remove_file(&base)?;
        std::fs::remove_file(&copy)?;
    }
    let [empty, copy, full_rates, over] = figures;
    let name =
        |into: &str| format!("merge {} MiB of whole blocks into {into} parent, disk", size / MIB);
    table.push(Row {
        name: name("an empty"),
        unit: "MiB/s",
        ours: empty,
        peer: Some((copy, "copy of the file, new, and fdatasync")),
        bar: Some(Bar::Ratio(0.7)),
        note: "vhd-util coalesce: 469 recorded elsewhere".to_owned(),
    });
    table.push(Row {
        name: name("a full"),
        unit: "MiB/s",
        ours: full_rates,
        peer: Some((over, "copy of the file, over another, and fdatasync")),
        bar: Some(Bar::Ratio(0.7)),
        note: "vhd-util coalesce: 395 recorded elsewhere".to_owned(),
    });
    for path in [leaf, full, place("over")] {
        std::fs::remove_file(path)?;
    }
    Ok(())
}

/// Blocks of which every other sector is present, on the disk.
fn sectors(setting: &Setting, table: &mut Table) -> Result<()> {
    let blocks = 16;
    let size = blocks * vhd::BLOCK;
    let (leaf, base) = (setting.disk.join("leaf.vhd"), setting.disk.join("parent.vhd"));
    let image = child(&leaf, size)?;
    fill(size, 512, 1024, |at, buf| Ok(image.write_at(at, buf)?))?;
    image.flush()?;
    let image = parent(&base, size)?;
    fill(size, 2 * MIB, 2 * MIB, |at, buf| Ok(image.write_at(at, buf)?))?;
    image.flush()?;
    drop(image);
    let mut ours = Vec::new();
    for _ in 0..setting.rounds(9) {
        ours.push(merged(&leaf, &base)?);
    }
    table.push(Row {
        name: format!("merge {blocks} blocks, every other sector set, into full ones, disk"),
        unit: "s",
        ours,
        peer: None,
        bar: Some(Bar::Most(0.5)),
        note: "vhd-util coalesce: 16.1-20.2 recorded elsewhere".to_owned(),
    });
    std::fs::remove_file(&leaf)?;
    std::fs::remove_file(&base)?;
    Ok(())
}

/// Pieces of 64 KiB, an eighth of the disk, in memory.
fn pieces(setting: &Setting, table: &mut Table) -> Result<()> {
    const PIECE: u64 = 64 << 10;
    let size = setting.bytes(4096 * MIB);
    let data = size / 8;
    let place = |name: &str| setting.memory.join(name);
    let (leaf, base, raw) = (place("leaf.vhd"), place("parent.vhd"), place("raw"));
    let image = child(&leaf, size)?;
    fill(size, PIECE, 8 * PIECE, |at, buf| Ok(image.write_at(at, buf)?))?;
    drop(image);
    // The same as a qcow2 over an empty one.
    let file = File::create_new(&raw)?;
    file.set_len(size)?;
    fill(size, PIECE, 8 * PIECE, |at, buf| Ok(Blob::write_at(&file, buf, at)?))?;
    let (over, under) = (place("over.qcow2"), place("under.qcow2"));
    let (over_text, under_text) = (utf8(&over)?, utf8(&under)?);
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", utf8(&raw)?, over_text])?;
    std::fs::remove_file(&raw)?;
    let bytes = size.to_string();
    let empty = || qemu_img(&["create", "-q", "-f", "qcow2", under_text, &bytes]);
    empty()?;
    qemu_img(&["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", under_text, over_text])?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..setting.rounds(9) {
        drop(parent(&base, size)?);
        ours.push(amount(data) / 1e9 / merged(&leaf, &base)?);
        std::fs::remove_file(&base)?;
        empty()?;
        // `-d` leaves the overlay as it is, as we do.
        let time = seconds(|| qemu_img(&["commit", "-q", "-d", "-f", "qcow2", over_text]))?;
        theirs.push(amount(data) / 1e9 / time);
        std::fs::remove_file(&under)?;
    }
    let name = format!("merge {} MB in pieces of 64 KiB, memory", data / 1_000_000);
    table.push(Row {
        name: name.clone(),
        unit: "GB/s",
        ours: ours.clone(),
        peer: Some((theirs, "qemu-img commit -d of a qcow2")),
        bar: Some(Bar::Ratio(0.8)),
        note: String::new(),
    });
    table.push(Row {
        name: format!("{name}, by itself"),
        unit: "GB/s",
        ours,
        peer: None,
        bar: Some(Bar::Least(0.9)),
        note: "vhd-util coalesce: 0.11 recorded elsewhere".to_owned(),
    });
    for path in [leaf, over] {
        std::fs::remove_file(path)?;
    }
    Ok(())
}
