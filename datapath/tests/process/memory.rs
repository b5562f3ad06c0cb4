//! What the process of a large and busy disk has resident.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use uuid::Uuid;
use vhd::image::{NewImage, ParentLink, create};

use super::place::{PROGRAM, until};

const GIB: u64 = 1 << 30;

const SIZE: u64 = 100 * GIB;

/// Bytes, of the whole process.
const MOST: u64 = 32 << 20;

const LAYERS: u128 = 3;

/// A chain with something in each block, in one of its images; the leaf.
fn chain(folder: &Path) -> PathBuf {
    let mut parent: Option<ParentLink> = None;
    let path = |number: u128| folder.join(format!("{number}.vhd"));
    for number in 0..LAYERS {
        let uuid = Uuid::from_u128(number + 1);
        create(&path(number), &NewImage { uuid, size: SIZE, parent }).unwrap();
        parent = Some(ParentLink { uuid, name: format!("{number}.vhd") });
        let image = vhd::Image::open(&path(number), vhd::Mode::Write).unwrap();
        for block in (0..SIZE / vhd::BLOCK).filter(|block| u128::from(*block) % LAYERS == number) {
            image.write_at(block * vhd::BLOCK, &[number as u8 + 1; 4096]).unwrap();
        }
    }
    path(LAYERS - 1)
}

struct Server(Child);

impl Server {
    fn start(leaf: &Path, socket: &Path) -> Self {
        let child = Command::new(PROGRAM)
            .args(["serve", "--foreground", "--direct", "--image"])
            .arg(leaf)
            .arg("--socket")
            .arg(socket)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self(child);
        until("its socket", || std::os::unix::net::UnixStream::connect(socket).is_ok());
        server
    }

    /// The most that it has had resident, bytes.
    fn most(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Requests of four connections of a guest, all over the disk.
#[test]
fn a_disk_of_100_gib_with_busy_connections_takes_32_mib() {
    // The file system of temporary files may be memory, which takes no direct transfers.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (leaf, socket) = (chain(folder.path()), folder.path().join("s"));
    let server = Server::start(&leaf, &socket);
    for (rw, block, depth) in [("randread", "4k", 64), ("randrw", "4k", 64)] {
        let output = Command::new("timeout")
            .args(["60", "fio", "--name=load", "--ioengine=nbd", "--thread", "--numjobs=4"])
            .args(["--norandommap=1", "--randrepeat=0", "--time_based", "--runtime=3"])
            .arg(format!("--uri=nbd+unix:///?socket={}", socket.display()))
            .args([format!("--rw={rw}"), format!("--bs={block}"), format!("--iodepth={depth}")])
            .arg(format!("--size={SIZE}"))
            // What the first writes take on the disk.
            .args(["--rwmixread=90", "--rate=,64m"])
            .output()
            .unwrap();
        assert!(output.status.success(), "fio: {output:?}");
        let most = server.most();
        println!("{rw} {block}: {} KiB", most >> 10);
        assert!(most <= MOST, "{} KiB after {rw} of {block}", most >> 10);
    }
}
