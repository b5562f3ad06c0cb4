//! A simulated array as a process, and its admin port.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

use crate::failure::{Doing, Failure, Result};

/// Time for the simulator to start, and for an answer of its admin port.
const ANSWER: Duration = Duration::from_secs(30);

/// A running simulator; it ends with this value.
pub(crate) struct Simulated {
    child: Child,
    /// What it said about itself.
    told: Value,
    /// Address and port of its admin port.
    admin: String,
}

impl Simulated {
    /// Starts it; `words` are what follows the vendor.
    pub(crate) fn start(
        program: &Path,
        vendor: &str,
        state: &Path,
        words: &[&str],
    ) -> Result<Self> {
        let name = program.display().to_string();
        let mut child = Command::new(program)
            .arg(vendor)
            .arg("--state")
            .arg(state)
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .doing(|| format!("run {name}"))?;
        let output = child.stdout.take();
        // From here on it is ended, whatever fails.
        let mut simulated = Self { child, told: Value::Null, admin: String::new() };
        let (send, line) = mpsc::channel();
        // On its own, because reading a pipe has no deadline. It ends with the simulator.
        std::thread::spawn(move || {
            let mut line = String::new();
            let read = output.map(|output| BufReader::new(output).read_line(&mut line));
            drop(send.send(read.is_some().then_some(line)));
        });
        let line = line.recv_timeout(ANSWER).ok().flatten().unwrap_or_default();
        simulated.told =
            serde_json::from_str(&line).doing(|| format!("read what {name} says of itself"))?;
        let admin = simulated.said("admin")?;
        admin.trim_start_matches("http://").clone_into(&mut simulated.admin);
        Ok(simulated)
    }

    /// One of its addresses, or its fingerprint.
    pub(crate) fn said(&self, what: &str) -> Result<String> {
        let value = self.told.get(what).and_then(Value::as_str);
        let value = value.ok_or_else(|| Failure::new(format!("the simulator tells no {what}")));
        value.map(str::to_owned)
    }

    /// Another way to its admin port, for another thread.
    pub(super) fn admin(&self) -> Admin {
        Admin { address: self.admin.clone() }
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The admin port: content of volumes, objects, space, what was asked.
#[derive(Clone)]
pub(super) struct Admin {
    address: String,
}

impl Admin {
    /// Writes into a volume, as the guest of a host would.
    pub(super) fn write(&self, volume: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        let path = format!("/content?volume={volume}&offset={offset}");
        self.ask("PUT", &path, bytes).map(drop)
    }

    /// Reads from a volume.
    pub(super) fn read(&self, volume: &str, offset: u64, length: usize) -> Result<Vec<u8>> {
        self.ask("GET", &format!("/content?volume={volume}&offset={offset}&length={length}"), &[])
    }

    fn json(&self, path: &str) -> Result<Value> {
        let answer = self.ask("GET", path, &[])?;
        serde_json::from_slice(&answer).doing(|| format!("read the admin port's answer to {path}"))
    }

    /// Names of all volumes.
    pub(super) fn volumes(&self) -> Result<Vec<String>> {
        let inventory = self.json("/inventory")?;
        let volumes = inventory.pointer("/objects/volume").and_then(Value::as_object);
        Ok(volumes.map_or_else(Vec::new, |all| all.keys().cloned().collect()))
    }

    /// Bytes in use in a pool.
    pub(super) fn used(&self, pool: &str) -> Result<u64> {
        let inventory = self.json("/inventory")?;
        let used = inventory.pointer(&format!("/space/{pool}/used")).and_then(Value::as_u64);
        used.ok_or_else(|| Failure::new(format!("the array tells no space of the pool {pool}")))
    }

    /// How many commands the array was asked, and how many LUN sessions it has.
    pub(super) fn asked(&self) -> Result<(u64, usize)> {
        let counts = self.json("/counts")?;
        let commands = counts.as_object().map_or(0, |all| {
            let own = all.iter().filter(|(call, _)| *call != "settings");
            own.filter_map(|(_, count)| count.as_u64()).sum()
        });
        let inventory = self.json("/inventory")?;
        let logins = inventory.get("logins").and_then(Value::as_array).map_or(0, Vec::len);
        Ok((commands, logins))
    }

    /// One request: the admin port speaks HTTP without TLS on a loopback address.
    fn ask(&self, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>> {
        let doing = || format!("ask the simulator's admin port: {method} {path}");
        let mut stream = TcpStream::connect(&self.address).doing(doing)?;
        stream.set_read_timeout(Some(ANSWER)).doing(doing)?;
        stream.set_write_timeout(Some(ANSWER)).doing(doing)?;
        let (host, length) = (&self.address, body.len());
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\
             content-length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).doing(doing)?;
        stream.write_all(body).doing(doing)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).doing(doing)?;
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.ok_or_else(|| Failure::new(format!("cannot {}", doing())))?;
        let content = answer.split_off(end + 4);
        let head = String::from_utf8_lossy(&answer);
        if head.starts_with("HTTP/1.1 200") {
            return Ok(content);
        }
        Err(Failure::new(format!("cannot {}", doing())).cause(String::from_utf8_lossy(&content)))
    }
}
