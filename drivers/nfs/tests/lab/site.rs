//! A server, a host, and `smctl` on it.

use std::sync::Arc;
use std::time::Duration;

use conformance::built::artefact;
use lab::kit::smctl::Smctl;
use lab::kit::{self, nfs};
use lab::{Guest, Lab, Network, Output};
use serde_json::Value;

/// What the server exports; with NFS 4 it is the root.
pub(crate) const EXPORT: &str = "/srv/nfs";

pub(crate) struct Site {
    pub(crate) network: Network,
    pub(crate) nas: Guest,
    pub(crate) server: Arc<nfs::Server>,
    pub(crate) host: Guest,
}

impl Site {
    pub(crate) fn new() -> lab::Result<Self> {
        let [site] = Self::of(["host"])?;
        Ok(site)
    }

    /// The same server for several hosts.
    pub(crate) fn of<const N: usize>(names: [&str; N]) -> lab::Result<[Self; N]> {
        // Built before guests run, which see the files.
        assert!(artefact("libsm_driver_nfs.so").is_file());
        let lab = Lab::new()?;
        let network = lab.network()?;
        let [nas] = lab.boot([lab.guest("nas").network(&network)])?;
        let hosts = lab.boot(names.map(|name| lab.guest(name).network(&network).memory(512)))?;
        kit::xfs(&nas, "/srv/nfs.img", Some(512 << 20), EXPORT)?;
        let server = Arc::new(nfs::Server::start(&nas, EXPORT)?);
        let sites = hosts.map(|host| {
            let (network, nas, server) = (network.clone(), nas.clone(), server.clone());
            Self { network, nas, server, host }
        });
        for site in &sites {
            site.ready()?;
        }
        Ok(sites)
    }

    /// What a host needs that has just booted.
    pub(crate) fn ready(&self) -> lab::Result<()> {
        self.host.load(&["nfsv4", "nfsv3"])
    }

    /// The key `server`.
    pub(crate) fn key(&self) -> String {
        format!("server={}", self.address())
    }

    pub(crate) fn address(&self) -> String {
        self.nas.address(&self.network).unwrap().to_string()
    }

    fn smctl(&self) -> Smctl<'_> {
        Smctl::new(&self.host, artefact("smctl").display().to_string())
    }

    pub(crate) fn call(&self, words: &[&str]) -> lab::Call<'_> {
        self.smctl().call(words)
    }

    pub(crate) fn ok(&self, words: &[&str]) -> String {
        self.smctl().check(words).unwrap()
    }

    pub(crate) fn json(&self, words: &[&str]) -> Value {
        self.smctl().json(words).unwrap()
    }

    /// A command that fails: its error, as programs read it.
    pub(crate) fn refused(&self, words: &[&str]) -> Value {
        let output = self.call(&[words, &["--json"]].concat()).run().unwrap();
        error_of(&output)
    }

    /// Creates an SR; its UUID.
    pub(crate) fn create(&self, name: &str, keys: &[&str]) -> String {
        let server = self.key();
        let words = ["sr", "create", "--driver", "nfs", "--name", name, &server];
        self.ok(&[&words[..], keys].concat())
    }

    /// Where an SR is mounted, as the kernel says it; empty if it is not.
    pub(crate) fn mount(&self, sr: &str) -> String {
        let mounts = String::from_utf8(self.host.read("/proc/mounts").unwrap()).unwrap();
        let line = mounts.lines().find(|line| line.contains(&format!("/run/nfs/{sr}")));
        line.unwrap_or_default().to_owned()
    }

    /// Attaches; where a client of NBD connects to.
    pub(crate) fn attach(&self, sr: &str, vdi: &str) -> String {
        let text = self.ok(&["vdi", "attach", vdi, "--sr", sr]);
        let uri = text.split_whitespace().find(|word| word.starts_with("nbd+unix:"));
        uri.unwrap_or_else(|| panic!("{text}")).to_owned()
    }

    /// A client of NBD that starts quickly, where `fio` takes half a second in a guest.
    fn qemu_io(&self, uri: &str, words: &[&str]) {
        let words = [&["qemu-io", "-f", "raw"], words, &[uri]].concat();
        let said = self.host.check(words).unwrap();
        assert!(!said.contains("failed"), "{said}");
    }

    /// Fills a place of a disk, in KiB, with a byte.
    pub(crate) fn write(&self, uri: &str, byte: u8, at: u64, length: u64) {
        let write = format!("write -P {byte:#04x} {at}k {length}k");
        self.qemu_io(uri, &["-c", &write, "-c", "flush"]);
    }

    /// A place of a disk, in KiB, holds a byte.
    pub(crate) fn holds(&self, uri: &str, byte: u8, at: u64, length: u64) {
        let read = format!("read -P {byte:#04x} {at}k {length}k");
        self.qemu_io(uri, &["-r", "-c", &read]);
    }
}

pub(crate) fn error_of(output: &Output) -> Value {
    assert_ne!(output.status, 0, "{}", output.text());
    let both = format!("{}\n{}", output.text(), output.errors());
    let begin = both.find('{').unwrap_or_else(|| panic!("no document: {both}"));
    let document = both[begin..].lines().collect::<String>();
    let parsed: Value = serde_json::Deserializer::from_str(&document)
        .into_iter()
        .next()
        .unwrap()
        .unwrap_or_else(|error| panic!("{error}: {both}"));
    if parsed["error"].is_object() { parsed["error"].clone() } else { parsed }
}

pub(crate) const LONG: Duration = Duration::from_secs(90);
