//! What there is, apart from what a driver says: looked at before and after each check.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

mod host;

pub(crate) use host::{Kernel, Volumes, command};

/// Somebody who can list what a backend holds without asking the driver. A directory is one; a
/// simulator's admin port, and the volumes of a host, are others.
pub(crate) trait Inventory {
    /// Everything that is there, each with a name that says what it is.
    fn look(&self) -> Result<BTreeSet<String>, String>;

    /// Bytes that are taken there.
    fn taken(&self) -> Result<u64, String>;

    /// What is known of each thing that is there, where it is more than that it is there.
    fn records(&self) -> Result<BTreeMap<String, String>, String> {
        Ok(BTreeMap::new())
    }
}

/// The files below a folder. Folders count only with what is in them: an empty one is no leak.
#[derive(Clone, Debug)]
pub(crate) struct Tree(pub(crate) PathBuf);

impl Tree {
    fn walk(&self, each: &mut dyn FnMut(&Path, &fs::Metadata)) -> Result<(), String> {
        let mut folders = vec![self.0.clone()];
        while let Some(folder) = folders.pop() {
            let fail = |error: std::io::Error| format!("{}: {error}", folder.display());
            for entry in fs::read_dir(&folder).map_err(fail)? {
                let path = entry.map_err(fail)?.path();
                // Gone meanwhile is not there.
                let Ok(facts) = fs::symlink_metadata(&path) else { continue };
                if facts.is_dir() {
                    folders.push(path);
                } else {
                    each(&path, &facts);
                }
            }
        }
        Ok(())
    }
}

impl Inventory for Tree {
    fn look(&self) -> Result<BTreeSet<String>, String> {
        let mut found = BTreeSet::new();
        self.walk(&mut |path, _| {
            let short = path.strip_prefix(&self.0).unwrap_or(path);
            found.insert(short.to_string_lossy().into_owned());
        })?;
        Ok(found)
    }

    fn taken(&self) -> Result<u64, String> {
        use std::os::unix::fs::MetadataExt as _;
        // What has several names is there once.
        let mut files = BTreeMap::new();
        self.walk(&mut |_, facts| {
            files.insert((facts.dev(), facts.ino()), facts.blocks() * 512);
        })?;
        Ok(files.into_values().sum())
    }
}

/// Several that are looked at together.
pub(crate) struct Several(pub(crate) Vec<Box<dyn Inventory>>);

impl Inventory for Several {
    fn look(&self) -> Result<BTreeSet<String>, String> {
        let mut found = BTreeSet::new();
        for one in &self.0 {
            found.append(&mut one.look()?);
        }
        Ok(found)
    }

    fn taken(&self) -> Result<u64, String> {
        self.0.iter().map(|one| one.taken()).sum()
    }

    fn records(&self) -> Result<BTreeMap<String, String>, String> {
        let mut found = BTreeMap::new();
        for one in &self.0 {
            found.append(&mut one.records()?);
        }
        Ok(found)
    }
}

/// The objects of a simulated array, by its admin port.
#[derive(Clone, Debug)]
pub(crate) struct Simulator(pub(crate) String);

/// How long the admin port may take for an answer.
const ANSWER: Duration = Duration::from_secs(20);

/// Most bytes of an answer.
const MOST: u64 = 256 << 20;

/// Tables that every array has, and that grow without a leak.
const PASSING: [&str; 5] = ["pool", "settings", "counter", "job", "hold"];

impl Simulator {
    /// By HTTP/1.0, where the body is what comes until the end of the connection: so this needs no
    /// client.
    pub(crate) fn admin(&self, method: &str, path: &str, body: &str) -> Result<Value, String> {
        serde_json::from_slice(&self.exchange(method, path, body.as_bytes())?)
            .map_err(|_| self.odd())
    }

    fn odd(&self) -> String {
        format!("{} does not answer as a simulator does", self.0)
    }

    /// The keys of its volumes.
    pub(crate) fn volumes(&self) -> Result<BTreeSet<String>, String> {
        let answer = self.ask()?;
        let table = answer.pointer("/objects/volume").and_then(Value::as_object);
        Ok(table.into_iter().flatten().map(|(key, _)| key.clone()).collect())
    }

    /// Writes a volume from its beginning on, as its administrator.
    pub(crate) fn put(&self, volume: &str, bytes: &[u8]) -> Result<(), String> {
        let path = format!("/content?volume={}&offset=0", encoded(volume));
        self.exchange("PUT", &path, bytes).map(drop)
    }

    /// Reads a volume from its beginning on, as its administrator.
    pub(crate) fn get(&self, volume: &str, length: usize) -> Result<Vec<u8>, String> {
        let path = format!("/content?volume={}&offset=0&length={length}", encoded(volume));
        self.exchange("GET", &path, &[])
    }

    fn exchange(&self, method: &str, path: &str, body: &[u8]) -> Result<Vec<u8>, String> {
        let fail = |error: std::io::Error| format!("the simulator at {}: {error}", self.0);
        let odd = || self.odd();
        let address = self.0.to_socket_addrs().map_err(fail)?.next().ok_or_else(odd)?;
        let mut stream = TcpStream::connect_timeout(&address, ANSWER).map_err(fail)?;
        stream.set_read_timeout(Some(ANSWER)).map_err(fail)?;
        let length = match body.len() {
            0 => String::new(),
            length => format!("Content-Length: {length}\r\n"),
        };
        let head = format!("{method} {path} HTTP/1.0\r\n{length}\r\n");
        stream.write_all(&[head.as_bytes(), body].concat()).map_err(fail)?;
        let mut answer = Vec::new();
        stream.take(MOST).read_to_end(&mut answer).map_err(fail)?;
        let head = answer.windows(4).position(|end| end == b"\r\n\r\n").ok_or_else(odd)?;
        let body = answer.get(head + 4..).unwrap_or_default();
        if answer.split(|byte| *byte == b' ').nth(1) != Some(b"200".as_slice()) {
            let text = String::from_utf8_lossy(body);
            return Err(format!("the simulator at {} refuses {method} {path}: {text}", self.0));
        }
        Ok(body.to_vec())
    }

    fn ask(&self) -> Result<Value, String> {
        self.admin("GET", "/inventory", "")
    }
}

impl Inventory for Simulator {
    fn look(&self) -> Result<BTreeSet<String>, String> {
        Ok(self.records()?.into_keys().collect())
    }

    fn records(&self) -> Result<BTreeMap<String, String>, String> {
        let answer = self.ask()?;
        let tables = answer.get("objects").and_then(Value::as_object).into_iter().flatten();
        let tables = tables.filter(|(name, _)| !PASSING.contains(&name.as_str()));
        let objects = tables.flat_map(|(name, table)| {
            let keys = table.as_object().into_iter().flatten();
            // A number or UUID that is never given twice tells nothing: what has a name is called by
            // that.
            keys.map(move |(key, record)| {
                let numbered = key.parse::<u64>().is_ok() || uuid::Uuid::try_parse(key).is_ok();
                let mut fields = ["/name", "/attributes/name", "/fields/name", "/comment"].iter();
                let named = fields.find_map(|field| record.pointer(field)?.as_str());
                let called = named.filter(|named| numbered && !named.is_empty()).unwrap_or(key);
                (format!("{name}/{called}"), record.to_string())
            })
        });
        Ok(objects.collect())
    }

    fn taken(&self) -> Result<u64, String> {
        let answer = self.ask()?;
        let pools = answer.get("space").and_then(Value::as_object).into_iter().flatten();
        Ok(pools.filter_map(|(_, pool)| pool.get("used")?.as_u64()).sum())
    }
}

/// A text as a part of a query.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut done, byte| {
        if byte.is_ascii_alphanumeric() {
            done.push(char::from(byte));
        } else {
            done.push('%');
            done.push_str(&crate::hex(&[byte]));
        }
        done
    })
}

/// The processes below one, those whose parent died included if this one adopts orphans. Dead ones
/// that nobody has waited for do not count.
pub(crate) fn processes(root: u32) -> BTreeSet<(u32, String)> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name is in brackets and may hold anything.
        let Some((name, rest)) = stat.rsplit_once(')') else { continue };
        let name = name.split_once('(').map_or("", |(_, name)| name).to_owned();
        let mut fields = rest.split_whitespace();
        let dead = matches!(fields.next(), Some("Z" | "X"));
        let parent = fields.next().and_then(|text| text.parse::<u32>().ok());
        all.push((pid, parent.unwrap_or(0), name, dead));
    }
    let mut below = BTreeSet::from([root]);
    loop {
        let before = below.len();
        below.extend(
            all.iter()
                .filter(|(_, p, ..)| below.contains(p))
                .map(|(pid, ..)| *pid)
                .collect::<Vec<_>>(),
        );
        if below.len() == before {
            break;
        }
    }
    all.into_iter()
        .filter(|(pid, _, _, dead)| *pid != root && !dead && below.contains(pid))
        .map(|(pid, _, name, _)| (pid, name))
        .collect()
}

/// What a process has open, and how many threads it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) descriptors: usize,
    pub(crate) sockets: usize,
    pub(crate) threads: usize,
}

/// What a process has done since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spent {
    /// On a processor, in itself and in the kernel.
    pub(crate) time: Duration,
    /// How often one of its threads began to wait: it wakes up as often.
    pub(crate) wakeups: u64,
}

/// What a tick of `/proc/PID/stat` is: USER_HZ is 100 on all that Linux runs on but Alpha and IA-64.
const TICK: Duration = Duration::from_millis(10);

/// Looks at a process; none if it is gone.
pub(crate) fn spent(pid: u32) -> Option<Spent> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Fields 14 and 15 (proc_pid_stat(5)); the second is in brackets and may hold anything.
    let fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11).take(2);
    let ticks: u32 = fields.filter_map(|field| field.parse::<u32>().ok()).sum();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten();
    let wakeups = threads.filter_map(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).ok()?;
        field(&status, "voluntary_ctxt_switches:")
    });
    Some(Spent { time: TICK * ticks, wakeups: wakeups.sum() })
}

/// Bytes of a process that are in memory; none if it is gone.
pub(crate) fn resident(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(field(&status, "RssAnon:")? * 1024)
}

/// How often a process has read from a file, with those that it has started and waited for; none if it is
/// gone, or the kernel does not count.
pub(crate) fn reads(pid: u32) -> Option<u64> {
    field(&fs::read_to_string(format!("/proc/{pid}/io")).ok()?, "syscr:")
}

/// Bytes that a process has read and written with such calls, with those of the same processes.
pub(crate) fn moved(pid: u32) -> Option<u64> {
    let counts = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    Some(field(&counts, "rchar:")? + field(&counts, "wchar:")?)
}

/// A number of `/proc/PID/status` (proc_pid_status(5)) or `/proc/PID/io` (proc_pid_io(5)).
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Looks at a process; none if it is gone.
pub(crate) fn held(pid: u32) -> Option<Held> {
    let place = PathBuf::from(format!("/proc/{pid}"));
    let mut held = Held::default();
    for entry in fs::read_dir(place.join("fd")).ok()?.flatten() {
        held.descriptors += 1;
        let to = fs::read_link(entry.path()).unwrap_or_default();
        held.sockets += usize::from(to.to_string_lossy().starts_with("socket:"));
    }
    held.threads = fs::read_dir(place.join("task")).ok()?.count();
    Some(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_lists_files_and_not_empty_folders() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/empty")).unwrap();
        fs::write(folder.path().join("a/file"), "x").unwrap();
        let tree = Tree(folder.path().to_owned());
        assert_eq!(tree.look().unwrap(), BTreeSet::from(["a/file".to_owned()]));
        let taken = tree.taken().unwrap();
        fs::hard_link(folder.path().join("a/file"), folder.path().join("a/other name")).unwrap();
        assert_eq!((tree.look().unwrap().len(), tree.taken().unwrap()), (2, taken));
    }

    #[test]
    fn a_simulator_lists_what_an_administrator_sees() {
        use std::io::BufRead as _;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let body = r#"{"objects": {"volume": {"a": {}, "b": {}}, "pool": {"tank": {}}, "job": {"1": {}}},
            "space": {"tank": {"used": 7, "free": 1}, "two": {"used": 5}}}"#;
        let server = std::thread::spawn(move || {
            for _ in 0..2 {
                let (stream, _) = listener.accept().unwrap();
                let mut lines = std::io::BufReader::new(&stream).lines();
                assert_eq!(lines.next().unwrap().unwrap(), "GET /inventory HTTP/1.0");
                assert_eq!(lines.next().unwrap().unwrap(), "");
                write!(&stream, "HTTP/1.0 200 OK\r\n\r\n{body}").unwrap();
            }
        });
        let simulator = Simulator(address.clone());
        let expected = BTreeSet::from(["volume/a".to_owned(), "volume/b".to_owned()]);
        assert_eq!((simulator.look(), simulator.taken()), (Ok(expected), Ok(12)));
        server.join().unwrap();
        let error = simulator.look().unwrap_err();
        assert!(error.starts_with(&format!("the simulator at {address}: ")), "{error}");
    }

    #[test]
    fn a_child_is_seen_until_it_has_ended() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let of = |pid| processes(std::process::id()).iter().any(|(other, _)| *other == pid);
        assert!(of(child.id()));
        assert!(held(child.id()).is_some_and(|held| held.threads == 1));
        let me = std::process::id();
        let before = spent(me).unwrap();
        while spent(me).unwrap().time < before.time + TICK {}
        std::thread::sleep(Duration::from_millis(1));
        assert!(spent(me).unwrap().wakeups > before.wakeups);
        if let (Some(calls), Some(bytes)) = (reads(me), moved(me)) {
            assert_eq!(fs::read("/dev/zero".replace("zero", "null")).unwrap().len(), 0);
            fs::write("/dev/null", [0; 4096]).unwrap();
            assert!(reads(me).unwrap() > calls && moved(me).unwrap() >= bytes + 4096);
        }
        let taken = resident(me).unwrap();
        let more = std::hint::black_box(vec![1_u8; 16 << 20]);
        assert!(resident(me).unwrap() >= taken + more.len() as u64 / 2);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!of(child.id()) && held(child.id()).is_none());
        assert_eq!((spent(child.id()), resident(child.id())), (None, None));
    }
}
