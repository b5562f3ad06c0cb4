//! A folder, a server in it, and programs that are run with a deadline.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use datapath::export::Exports;
use datapath::nbd::client::{Client, Options};
use datapath::nbd::wire::{listen_tcp, listen_unix};
use datapath::nbd::{Limits, Listener, Server, Uri};
use tempfile::TempDir;

/// Longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A server on a socket in a folder of its own.
pub(crate) struct Place {
    pub(crate) folder: TempDir,
    pub(crate) server: Server,
}

impl Place {
    pub(crate) fn new(exports: impl Exports + 'static) -> Self {
        Self::with(exports, Limits::default())
    }

    pub(crate) fn with(exports: impl Exports + 'static, limits: Limits) -> Self {
        let folder = TempDir::new().unwrap();
        let server = Server::new(Arc::new(exports), limits);
        let place = Self { folder, server };
        let listener = listen_unix(&place.socket()).unwrap();
        place.server.serve(Listener::Unix(listener)).unwrap();
        place
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("nbd")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn uri(&self, name: &str) -> Uri {
        Uri::unix(self.socket(), name)
    }

    pub(crate) fn client(&self, name: &str) -> Client {
        Client::connect(&self.uri(name), &Options::default()).unwrap()
    }

    /// Also listens on a port of this machine; which one.
    pub(crate) fn tcp(&self, tls: Option<datapath::nbd::tls::TlsServer>) -> u16 {
        let listener = listen_tcp("localhost", 0).unwrap();
        let port = listener.local_addr().unwrap().port();
        self.server.serve(Listener::Tcp(listener, tls)).unwrap();
        port
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let stopped = self.server.stop(PATIENCE);
        if !std::thread::panicking() {
            assert!(stopped, "connections are left: {:?}", self.server.connections());
        }
    }
}

/// What a program has said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) good: bool,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs a program, which must be there, for a minute at most.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Said {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "60", program]).args(arguments);
    let output = command.stdin(Stdio::null()).output().expect("timeout (coreutils) is missing");
    assert_ne!(output.status.code(), Some(127), "{program} is missing: see `cargo xtask setup`");
    assert_ne!(output.status.code(), Some(124), "{program} {arguments:?} has not ended");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Said { good: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
}

/// Runs a program that must succeed; what it printed.
pub(crate) fn good(program: &str, arguments: &[&str]) -> String {
    let said = run(program, arguments);
    assert!(said.good, "{program} {arguments:?}: {said:?}");
    said.out
}

/// Has `fio` write, and read what it wrote: which way, with blocks of which size, how many at a time,
/// on how much of the disk.
pub(crate) fn fio_verifies(uri: &Uri, rw: &str, block: &str, depth: u32, size: &str) {
    let words = [
        "--name=verify".to_owned(),
        "--ioengine=nbd".to_owned(),
        format!("--uri={uri}"),
        format!("--rw={rw}"),
        format!("--bs={block}"),
        format!("--iodepth={depth}"),
        format!("--size={size}"),
        "--verify=crc32c".to_owned(),
        "--verify_fatal=1".to_owned(),
        "--verify_state_save=0".to_owned(),
        "--do_verify=1".to_owned(),
        "--randseed=1".to_owned(),
        "--randrepeat=1".to_owned(),
        "--fsync=100".to_owned(),
    ];
    let out = good("fio", &words.each_ref().map(String::as_str));
    assert!(out.contains("err= 0"), "{out}");
}

/// Waits for something.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A program that runs until it is dropped.
pub(crate) struct Running(Child);

impl Running {
    /// A server that listens on a socket of the file system.
    pub(crate) fn server(program: &str, arguments: &[&str], socket: &std::path::Path) -> Self {
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}: see `cargo xtask setup`"));
        let mut running = Self(child);
        until(program, || {
            assert!(running.0.try_wait().unwrap().is_none(), "{program} has ended");
            std::os::unix::net::UnixStream::connect(socket).is_ok()
        });
        running
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}
