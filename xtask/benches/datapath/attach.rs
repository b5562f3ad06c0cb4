//! Starting and ending the server of a disk, and the memory it takes.

use std::path::Path;
use std::time::Duration;

use crate::fio::Load;
use crate::images::{GIB, Kind, MIB, vhd_layers};
use crate::ours::Installation;
use crate::peers::{Cache, NBD_VPC, Peer, Program, VHD};
use crate::table::{Bar, Row, Table, amount};
use crate::{Result, Setting};

/// Starts that are timed.
const STARTS: usize = 21;

/// Random reads, so many that they come to nearly every block.
const READS: Duration = Duration::from_secs(8);

/// One place in each block of a disk, in each layer of a chain (`everywhere`) or in one of them in
/// turn.
fn sparse_chain(folder: &Path, depth: u32, size: u64, everywhere: bool) -> Result<Peer> {
    let kind = Kind::VhdChain(depth);
    let path = kind.path(folder);
    let chain = vhd::folder::dir_of(&path);
    std::fs::create_dir(chain)?;
    let layers = vhd_layers(chain, depth, size)?;
    for (block, at) in (0..size).step_by(vhd::BLOCK as usize).enumerate() {
        for (index, layer) in layers.iter().enumerate() {
            if everywhere || block % layers.len() == index {
                layer.write_at(at + 4096 * index as u64, &[1; 4096])?;
            }
        }
    }
    for layer in layers {
        layer.flush()?;
    }
    Ok(Peer { name: "VHD", program: Program::Ours, kind })
}

pub(crate) fn attach(setting: &Setting, table: &mut Table) -> Result<()> {
    let size = 64 * GIB;
    let folder = tempfile::tempdir_in(&setting.memory)?;
    let peer = Peer { name: "qemu-nbd vpc", ..NBD_VPC };
    peer.kind.empty(folder.path(), size)?;
    for (depth, bar) in [(1, 15.0), (30, 60.0)] {
        let ours = sparse_chain(folder.path(), depth, size, false)?;
        let mut figures = [const { Vec::new() }; 4];
        for _ in 0..setting.rounds(STARTS) {
            for (at, peer) in [ours, peer].into_iter().enumerate() {
                let served = peer.serve(setting, folder.path(), size, Cache::Page)?;
                let started = served.server.started;
                let ended = served.server.stop()?;
                figures[at].push(started.as_secs_f64() * 1e3);
                figures[at + 2].push(ended.as_secs_f64() * 1e3);
            }
        }
        let [start, peer_start, end, peer_end] = figures;
        let name = format!("64 GiB, chain of {depth}");
        let mut row = |what: &str, ours, peer, bar| {
            table.push(Row {
                name: format!("{name}: {what}"),
                unit: "ms",
                ours,
                peer: Some((peer, NBD_VPC.name)),
                bar: Some(Bar::Most(bar)),
                note: String::new(),
            });
        };
        row("start of the server until it greets a client", start, peer_start, bar);
        row("end of the server", end, peer_end, 20.0);
    }
    commands(setting, table)
}

/// The same through the whole storage manager, as a command.
fn commands(setting: &Setting, table: &mut Table) -> Result<()> {
    let folder = tempfile::tempdir_in(&setting.memory)?;
    let installation = Installation::new(setting, folder.path())?;
    for (depth, bar) in [(1, 15.0), (30, 60.0)] {
        let disk = installation.create(64 * GIB)?;
        installation.attach(disk.clone())?.deepen(depth)?;
        let (mut attach, mut detach) = (Vec::new(), Vec::new());
        for _ in 0..setting.rounds(STARTS) {
            attach.push(installation.timed(&["vdi", "attach", &disk])?);
            detach.push(installation.timed(&["vdi", "detach", &disk])?);
        }
        for (word, ours, bar) in [("attach", attach, bar), ("detach", detach, 20.0)] {
            table.push(Row {
                name: format!("64 GiB, chain of {depth}: smctl vdi {word}"),
                unit: "ms",
                ours,
                peer: None,
                bar: Some(Bar::Most(bar)),
                note: "the command's own start included".to_owned(),
            });
        }
    }
    Ok(())
}

/// Memory of a server that has seen all of a large disk.
pub(crate) fn memory(setting: &Setting, table: &mut Table) -> Result<()> {
    let size = if setting.quick { 10 * GIB } else { 100 * GIB };
    let time = if setting.quick { READS / 8 } else { READS };
    let small = Load::new("randread", 4096, 64);
    let long = Load { connections: 4, ..Load::new("randread", MIB, 16) };
    let loads = [
        ("random reads", small, &setting.memory, Cache::Page),
        ("reads of 1 MiB on four connections, depth 16", long, &setting.memory, Cache::Page),
        ("the same past the page cache", long, &setting.disk, Cache::Direct),
    ];
    for (what, load, folder, cache) in loads {
        let folder = tempfile::tempdir_in(folder)?;
        let ours = sparse_chain(folder.path(), 3, size, true)?;
        let served = ours.serve(setting, folder.path(), size, cache)?;
        load.run(setting, &served.server, &served.uri, size, time)?;
        let most = amount(served.server.memory("VmHWM")?) / amount(1 << 20);
        served.server.stop()?;
        table.push(Row {
            name: format!("memory of the server, {} GiB, chain of 3, after {what}", size / GIB),
            unit: "MiB",
            ours: vec![most],
            peer: None,
            bar: Some(Bar::Most(32.0)),
            note: format!("each block of each image has a bitmap; {} reads only", VHD.name),
        });
    }
    Ok(())
}
