//! Images in memory: what the software costs.

use crate::fio::Load;
use crate::images::{GIB, Kind, MIB};
use crate::peers::{
    CHAIN_3, CHAIN_30, Cache, NBD_CHAIN, NBD_QCOW2, NBD_RAW, NBD_VPC, NBDKIT_FILE, NBDKIT_NULL,
    Peer, QSD_CHAIN, QSD_QCOW2, QSD_RAW, QSD_VPC, RAW, VHD,
};
use crate::rounds::{Place, What, rounds};
use crate::table::{Bar, Table};
use crate::{Result, Setting};

const QCOW2: &[Peer] = &[NBD_QCOW2, QSD_QCOW2];
const VPC: &[Peer] = &[NBD_VPC, QSD_VPC];
const QEMU_RAW: &[Peer] = &[NBD_RAW, QSD_RAW];

/// Ours and those that a bar compares it with.
const FEW: &[Peer] = &[VHD, RAW, NBDKIT_FILE, NBD_QCOW2, QSD_QCOW2];

/// The others, too.
const ALL: &[Peer] =
    &[VHD, RAW, NBDKIT_FILE, NBD_QCOW2, QSD_QCOW2, NBDKIT_NULL, NBD_RAW, QSD_RAW, NBD_VPC, QSD_VPC];

fn size(setting: &Setting) -> u64 {
    if setting.quick { GIB / 4 } else { GIB }
}

/// Makes images in a folder in memory that goes away with the answer.
fn images(setting: &Setting, kinds: &[Kind]) -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir_in(&setting.memory)?;
    for kind in kinds {
        kind.fill(folder.path(), size(setting))?;
    }
    Ok(folder)
}

fn place<'a>(setting: &Setting, folder: &'a tempfile::TempDir) -> Place<'a> {
    Place { folder: folder.path(), size: size(setting), cache: Cache::Page, fresh: false }
}

const FULL: &[Kind] = &[Kind::Raw, Kind::Vhd, Kind::Vpc, Kind::Qcow2];

/// Random requests of 4 KiB.
pub(crate) fn random(setting: &Setting, table: &mut Table) -> Result<()> {
    let folder = images(setting, FULL)?;
    for (kind, word) in [("randread", "read"), ("randwrite", "write")] {
        for depth in [1, 16, 64] {
            let name = format!("random 4 KiB {word}, depth {depth}");
            let peers = if depth == 16 { ALL } else { FEW };
            let load = Load::new(kind, 4096, depth);
            let series = rounds(setting, place(setting, &folder), load, peers)?;
            let bar = if depth == 1 { 1.5 } else { 1.3 };
            let requests = (What::Requests, None);
            let mut row = |pair, what, note| series.row(table, &name, pair, what, note);
            row((VHD, QCOW2), (What::Requests, Some(Bar::Ratio(bar))), "");
            row((RAW, &[NBDKIT_FILE]), (What::Requests, Some(Bar::Ratio(1.0))), "");
            if depth == 16 {
                row((VHD, VPC), requests, "");
                row((RAW, QEMU_RAW), requests, "");
                row((VHD, &[NBDKIT_NULL]), requests, "the protocol alone, without a disk");
            }
            let bar = (depth == 16).then_some(Bar::Ratio(1.0));
            row((VHD, &[NBDKIT_FILE]), (What::Processor, bar), "");
            row((VHD, QCOW2), (What::Processor, None), "");
            row((VHD, QCOW2), (What::Slowest, None), "");
        }
    }
    Ok(())
}

/// Requests of 1 MiB, one after the other.
pub(crate) fn sequential(setting: &Setting, table: &mut Table) -> Result<()> {
    let folder = images(setting, FULL)?;
    for kind in ["read", "write"] {
        let name = format!("sequential 1 MiB {kind}, depth 16");
        let load = Load::new(kind, MIB, 16);
        let series = rounds(setting, place(setting, &folder), load, ALL)?;
        let mut row = |pair, what| series.row(table, &name, pair, what, "");
        row((VHD, QCOW2), (What::Bytes, Some(Bar::Ratio(1.5))));
        row((VHD, &[NBDKIT_FILE]), (What::Bytes, Some(Bar::Ratio(0.9))));
        row((RAW, &[NBDKIT_FILE]), (What::Bytes, Some(Bar::Ratio(1.0))));
        row((VHD, VPC), (What::Bytes, None));
        row((RAW, QEMU_RAW), (What::Bytes, None));
        row((VHD, &[NBDKIT_NULL]), (What::Bytes, None));
        row((VHD, &[NBDKIT_FILE]), (What::Processor, None));
    }
    Ok(())
}

/// Reads and writes together; several connections.
pub(crate) fn mixed(setting: &Setting, table: &mut Table) -> Result<()> {
    let folder = images(setting, &[Kind::Raw, Kind::Vhd, Kind::Qcow2])?;
    let four = |kind| Load { connections: 4, ..Load::new(kind, 4096, 16) };
    let loads = [
        ("random 4 KiB, 70 of 100 are reads, depth 16", Load::new("randrw", 4096, 16)),
        ("random 4 KiB read, four connections of depth 16", four("randread")),
        ("random 4 KiB write, four connections of depth 16", four("randwrite")),
    ];
    for (name, load) in loads {
        let series = rounds(setting, place(setting, &folder), load, FEW)?;
        let mut row = |pair, what| series.row(table, name, pair, what, "");
        row((VHD, QCOW2), (What::Requests, None));
        row((RAW, &[NBDKIT_FILE]), (What::Requests, Some(Bar::Ratio(1.0))));
        row((VHD, &[NBDKIT_FILE]), (What::Processor, None));
    }
    Ok(())
}

/// Reads of chains.
pub(crate) fn chain(setting: &Setting, table: &mut Table) -> Result<()> {
    let peers = [VHD, CHAIN_3, CHAIN_30, NBD_CHAIN, QSD_CHAIN];
    let folder = images(setting, &peers.map(|peer| peer.kind)[..4])?;
    let load = Load::new("randread", 4096, 16);
    let name = "random 4 KiB read, depth 16";
    let series = rounds(setting, place(setting, &folder), load, &peers)?;
    let mut row = |pair, what, note| series.row(table, name, pair, what, note);
    let pieces = "each layer has an equal part, in pieces of 64 KiB";
    row((CHAIN_3, &[VHD]), (What::Requests, Some(Bar::Ratio(0.9))), pieces);
    row((CHAIN_30, &[VHD]), (What::Requests, Some(Bar::Ratio(0.75))), pieces);
    row((CHAIN_3, &[NBD_CHAIN, QSD_CHAIN]), (What::Requests, None), "");
    row((CHAIN_3, &[VHD]), (What::Processor, None), "");
    row((CHAIN_30, &[VHD]), (What::Processor, None), "");
    Ok(())
}

/// First writes into an empty image.
pub(crate) fn first(setting: &Setting, table: &mut Table) -> Result<()> {
    let folder = images(setting, &[])?;
    let place = Place { fresh: true, ..place(setting, &folder) };
    let load = Load { bytes: 64 * MIB, ..Load::new("randwrite", 4096, 16) };
    let peers = [VHD, RAW, NBDKIT_FILE, NBD_QCOW2, QSD_QCOW2, NBD_VPC];
    let series = rounds(setting, place, load, &peers)?;
    let name = "first writes of 4 KiB, random, depth 16";
    let mut row = |pair, what, note| series.row(table, name, pair, what, note);
    row((VHD, QCOW2), (What::Requests, Some(Bar::Ratio(2.0))), "16384 requests");
    row((VHD, QCOW2), (What::Slowest, Some(Bar::Most(2.0))), "");
    row((VHD, &[NBD_VPC]), (What::Requests, None), "");
    row((VHD, QCOW2), (What::Processor, None), "");
    row((RAW, &[NBDKIT_FILE]), (What::Requests, Some(Bar::Ratio(1.0))), "");
    let load = Load { bytes: size(setting), ..Load::new("write", MIB, 16) };
    let series = rounds(setting, place, load, &peers)?;
    let name = "first writes of 1 MiB, sequential, depth 16";
    let mut row = |pair, what| series.row(table, name, pair, what, "");
    row((VHD, QCOW2), (What::Bytes, None));
    row((RAW, &[NBDKIT_FILE]), (What::Bytes, Some(Bar::Ratio(1.0))));
    Ok(())
}
