//! Disks to mirror, and servers that are mirrored to.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use datapath::disk::{Drive, Format, Layer, Options as DriveOptions, Plan};
use datapath::export::{Export, Exports};
use datapath::nbd::client::Options as ClientOptions;
use datapath::nbd::uri::Uri;
use datapath::nbd::{Limits, Listener, Server};
use datapath::sync::{Mirror, NbdTarget, Target};

use super::guests::{Chance, MIB, quick, soon, stamp, wait_for};

/// A dynamic VHD with random data in its first half, and some in its second.
pub(crate) fn new_disk(dir: &Path, size: u64, seed: u64) -> Arc<Drive> {
    let path = dir.join("source.vhd");
    let image = vhd::image::NewImage { uuid: uuid::Uuid::new_v4(), size, parent: None };
    vhd::image::create(&path, &image).unwrap();
    let drive = open(&path, Format::Vhd);
    let mut chance = Chance::new(seed, 0);
    let mut buf = vec![0; MIB as usize];
    for at in (0..size / 2).step_by(MIB as usize) {
        stamp(&mut buf, at, chance.below(1 << 30));
        drive.write(at, &buf, false).unwrap();
    }
    for _ in 0..20 {
        let at = size / 2 + chance.below(size / 2 - 4096) / 512 * 512;
        stamp(&mut buf[..4096], at, chance.below(1 << 30));
        drive.write(at, &buf[..4096], false).unwrap();
    }
    drive
}

pub(crate) fn open(path: &Path, format: Format) -> Arc<Drive> {
    let plan = Plan {
        leaf: Layer { path: path.to_owned(), format },
        backing: Vec::new(),
        read_only: false,
    };
    Drive::open(&plan, DriveOptions::default()).unwrap()
}

/// A server of another program; killed when dropped.
pub(crate) struct Peer {
    child: Child,
    pub(crate) socket: PathBuf,
}

impl Peer {
    /// Starts it and waits until it answers. `{socket}` stands for the socket.
    pub(crate) fn start(socket: &Path, program: &str, arguments: &[&str]) -> Self {
        let _ = std::fs::remove_file(socket);
        let text = socket.to_str().unwrap();
        let child = Command::new(program)
            .args(arguments.iter().map(|argument| argument.replace("{socket}", text)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program} cannot be started: {error}"));
        let peer = Self { child, socket: socket.to_owned() };
        wait_for(program, || UnixStream::connect(&peer.socket).is_ok());
        peer
    }

    pub(crate) fn qemu(socket: &Path, file: &Path) -> Self {
        let file = file.to_str().unwrap();
        let arguments = ["-f", "raw", "--persistent", "--shared=0", "-k", "{socket}", file];
        Self::start(socket, "qemu-nbd", &arguments)
    }

    /// Dies as with `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server of ours with one disk, on a socket.
pub(crate) fn our_server(socket: &Path, drive: &Arc<Drive>) -> Server {
    struct One(Arc<Drive>);
    impl Exports for One {
        fn names(&self) -> Vec<String> {
            vec!["disk".to_owned()]
        }
        fn find(&self, _name: &str) -> Option<Arc<dyn Export>> {
            Some(self.0.clone())
        }
    }
    let server = Server::new(Arc::new(One(drive.clone())), Limits::default());
    server.serve(Listener::Unix(UnixListener::bind(socket).unwrap())).unwrap();
    server
}

pub(crate) fn target(socket: &Path, blank: bool) -> Arc<dyn Target> {
    let options = ClientOptions { timeout: Duration::from_secs(10), ..ClientOptions::default() };
    Arc::new(NbdTarget::connect(Uri::unix(socket, ""), options, blank).unwrap())
}

pub(crate) fn mirror(drive: &Arc<Drive>, socket: &Path, blank: bool) -> Mirror {
    Mirror::start(drive, target(socket, blank), quick(), soon()).unwrap()
}
