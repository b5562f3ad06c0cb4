//! Who serves a disk, and with which options.

use std::path::Path;
use std::process::Command;

use crate::images::Kind;
use crate::process::Server;
use crate::{Result, Setting};

/// A program that serves disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// `sm-datapath`.
    Ours,
    QemuNbd,
    /// `qemu-storage-daemon`, with a thread of its own for the disk.
    StorageDaemon,
    /// `nbdkit file`, with its 16 threads.
    NbdkitFile,
    /// `nbdkit null`, which has no disk: what is left is the protocol.
    NbdkitNull,
}

/// A program and what it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) program: Program,
    pub(crate) kind: Kind,
}

impl Peer {
    const fn new(name: &'static str, program: Program, kind: Kind) -> Self {
        Self { name, program, kind }
    }
}

pub(crate) const VHD: Peer = Peer::new("VHD", Program::Ours, Kind::Vhd);
pub(crate) const RAW: Peer = Peer::new("raw", Program::Ours, Kind::Raw);
pub(crate) const CHAIN_3: Peer = Peer::new("chain of 3", Program::Ours, Kind::VhdChain(3));
pub(crate) const CHAIN_30: Peer = Peer::new("chain of 30", Program::Ours, Kind::VhdChain(30));
pub(crate) const NBDKIT_FILE: Peer = Peer::new("nbdkit file", Program::NbdkitFile, Kind::Raw);
pub(crate) const NBDKIT_NULL: Peer = Peer::new("nbdkit null", Program::NbdkitNull, Kind::Raw);
pub(crate) const NBD_RAW: Peer = Peer::new("qemu-nbd raw", Program::QemuNbd, Kind::Raw);
pub(crate) const NBD_VPC: Peer = Peer::new("qemu-nbd vpc", Program::QemuNbd, Kind::Vpc);
pub(crate) const NBD_QCOW2: Peer = Peer::new("qemu-nbd qcow2", Program::QemuNbd, Kind::Qcow2);
pub(crate) const NBD_CHAIN: Peer =
    Peer::new("qemu-nbd qcow2, chain of 3", Program::QemuNbd, Kind::Qcow2Chain(3));
pub(crate) const QSD_RAW: Peer =
    Peer::new("qemu-storage-daemon raw", Program::StorageDaemon, Kind::Raw);
pub(crate) const QSD_VPC: Peer =
    Peer::new("qemu-storage-daemon vpc", Program::StorageDaemon, Kind::Vpc);
pub(crate) const QSD_QCOW2: Peer =
    Peer::new("qemu-storage-daemon qcow2", Program::StorageDaemon, Kind::Qcow2);
pub(crate) const QSD_CHAIN: Peer =
    Peer::new("qemu-storage-daemon qcow2, chain of 3", Program::StorageDaemon, Kind::Qcow2Chain(3));

/// How a file is read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cache {
    /// Through the system's page cache.
    Page,
    /// `O_DIRECT`; qemu through `io_uring`. nbdkit has no such mode.
    Direct,
}

/// A disk that is being served.
pub(crate) struct Served {
    pub(crate) server: Server,
    pub(crate) uri: String,
}

/// The address of what is served at a socket.
pub(crate) fn uri(export: &str, socket: &Path) -> String {
    format!("nbd+unix:///{export}?socket={}", socket.display())
}

impl Peer {
    /// Serves the image of `folder`. One server at a time.
    pub(crate) fn serve(
        self,
        setting: &Setting,
        folder: &Path,
        size: u64,
        cache: Cache,
    ) -> Result<Served> {
        let image = self.kind.path(folder);
        let socket = setting.memory.join("socket");
        let _ = std::fs::remove_file(&socket);
        let mut export = "";
        let mut command = match self.program {
            Program::Ours => ours(setting, &image, self.kind, cache),
            Program::QemuNbd => {
                let mut command = setting.scheduling.command("qemu-nbd");
                command.args(["--persistent", "--shared=8", "--format", self.kind.qemu()]);
                command.args(match cache {
                    Cache::Page => ["--cache=writeback", "--aio=threads"],
                    Cache::Direct => ["--cache=none", "--aio=io_uring"],
                });
                command.arg("--socket").arg(&socket).arg(&image);
                command
            }
            Program::StorageDaemon => {
                export = "disk";
                let mut command = setting.scheduling.command("qemu-storage-daemon");
                command.arg("--object").arg("iothread,id=thread").arg("--blockdev");
                command.arg(blockdev("file", &image, cache)).arg("--blockdev");
                command.arg(format!("driver={},node-name=disk,file=file", self.kind.qemu()));
                command.arg("--nbd-server");
                command.arg(format!("addr.type=unix,addr.path={}", socket.display()));
                command.args(["--export", EXPORT]);
                command
            }
            Program::NbdkitFile => {
                let mut command = setting.scheduling.command("nbdkit");
                command.arg("--foreground").arg("--unix").arg(&socket).arg("file").arg(&image);
                command
            }
            Program::NbdkitNull => {
                let mut command = setting.scheduling.command("nbdkit");
                command.arg("--foreground").arg("--unix").arg(&socket);
                command.arg("null").arg(size.to_string());
                command
            }
        };
        if self.program == Program::Ours {
            command.arg("--socket").arg(&socket);
        }
        let server = Server::start(&mut command, &socket)?;
        Ok(Served { server, uri: uri(export, &socket) })
    }
}

/// The export of a storage daemon whose disk is the node `disk`.
pub(crate) const EXPORT: &str =
    "type=nbd,id=export,node-name=disk,name=disk,writable=on,iothread=thread";

/// The file of a storage daemon's disk.
pub(crate) fn blockdev(node: &str, image: &Path, cache: Cache) -> String {
    let how = match cache {
        Cache::Page => "aio=threads",
        Cache::Direct => "cache.direct=on,aio=io_uring",
    };
    format!("driver=file,node-name={node},filename={},{how}", image.display())
}

/// `sm-datapath` on an image whose parents are in the same folder.
pub(crate) fn ours(setting: &Setting, image: &Path, kind: Kind, cache: Cache) -> Command {
    let mut command = setting.scheduling.command(setting.product.join("sm-datapath"));
    command.args(["serve", "--foreground", "--image"]).arg(image);
    if kind == Kind::Raw {
        command.args(["--format", "raw"]);
    } else {
        command.args(["--format", "vhd"]).arg("--parents-in").arg(vhd::folder::dir_of(image));
    }
    command.arg(match cache {
        Cache::Page => "--cached",
        Cache::Direct => "--direct",
    });
    command
}
