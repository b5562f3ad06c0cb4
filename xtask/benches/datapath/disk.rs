//! Images on the disk, past the page cache; and what flushes cost.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::fio::Load;
use crate::images::{GIB, Kind, MIB};
use crate::peers::{Cache, NBD_QCOW2, NBD_RAW, NBDKIT_FILE, Peer, QSD_QCOW2, QSD_RAW, RAW, VHD};
use crate::rounds::{Place, What, rounds};
use crate::table::{Bar, Row, Table, amount};
use crate::{Result, Setting};

const QCOW2: &[Peer] = &[NBD_QCOW2, QSD_QCOW2];
const QEMU_RAW: &[Peer] = &[NBD_RAW, QSD_RAW];

pub(crate) fn measure(setting: &Setting, table: &mut Table) -> Result<()> {
    let folder = tempfile::tempdir_in(&setting.disk)?;
    let size = if setting.quick { GIB / 4 } else { GIB };
    for kind in [Kind::Raw, Kind::Vhd, Kind::Qcow2] {
        kind.fill(folder.path(), size)?;
        // What is still to be written out would be in the way of what is measured.
        std::fs::File::open(kind.path(folder.path()))?.sync_all()?;
    }
    let place = Place { folder: folder.path(), size, cache: Cache::Direct, fresh: false };
    for (kind, word, bar) in [("randread", "read", 1.5), ("randwrite", "write", 1.3)] {
        let name = format!("disk, O_DIRECT: random 4 KiB {word}, depth 64");
        let peers = [VHD, RAW, NBD_QCOW2, QSD_QCOW2, NBD_RAW, QSD_RAW];
        let series = rounds(setting, place, Load::new(kind, 4096, 64), &peers)?;
        let mut row = |pair, what| series.row(table, &name, pair, what, "");
        row((VHD, QCOW2), (What::Requests, Some(Bar::Ratio(bar))));
        row((RAW, QEMU_RAW), (What::Requests, None));
        row((VHD, QCOW2), (What::Processor, None));
    }
    let place = Place { cache: Cache::Page, ..place };
    for connections in [1, 4] {
        let name = match connections {
            1 => "disk: 4 KiB writes, a flush after each",
            _ => "disk: 4 KiB writes, a flush after each, four connections",
        };
        let load = Load { connections, flush: true, ..Load::new("randwrite", 4096, 1) };
        let peers = [VHD, RAW, NBDKIT_FILE, NBD_QCOW2, QSD_QCOW2];
        let series = rounds(setting, place, load, &peers)?;
        let mut row = |pair, what| series.row(table, name, pair, what, "");
        row((VHD, QCOW2), (What::Requests, None));
        row((RAW, &[NBDKIT_FILE]), (What::Requests, Some(Bar::Ratio(1.0))));
    }
    space(setting, table, folder.path(), size)
}

/// What an image takes on the disk when an eighth of it was written in pieces of 64 KiB.
fn space(setting: &Setting, table: &mut Table, folder: &Path, size: u64) -> Result<()> {
    let written = size / 8;
    let load = Load { bytes: written, ..Load::new("randwrite", 64 << 10, 16) };
    let taken = |peer: Peer| {
        peer.kind.empty(folder, size)?;
        let served = peer.serve(setting, folder, size, Cache::Page)?;
        load.run(setting, &served.server, &served.uri, size, Duration::ZERO)?;
        served.server.stop()?;
        let file = std::fs::File::open(peer.kind.path(folder))?;
        file.sync_all()?;
        Ok::<f64, Box<dyn std::error::Error>>(
            amount(file.metadata()?.blocks() * 512) / amount(written),
        )
    };
    table.push(Row {
        name: "disk: space of 64 KiB first writes, times their bytes, VHD".to_owned(),
        unit: "x",
        ours: vec![taken(VHD)?],
        peer: Some((vec![taken(NBD_QCOW2)?], NBD_QCOW2.name)),
        bar: Some(Bar::Most(1.05)),
        note: format!("{} of {} MiB written", written / MIB, size / MIB),
    });
    Ok(())
}
