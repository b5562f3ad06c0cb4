//! The store's own protocol over its Unix socket (`xen/include/public/io/xs_wire.h`).

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sm_model::{Error, Kind, Result};

use super::XenStore;
use crate::agent::connect;
use crate::quiescer::left;

/// Where the store of a Xen host listens.
pub const DEFAULT_SOCKET: &str = "/run/xenstored/socket";

/// The longest payload of a message.
const LONGEST: usize = 4096;

/// How long a watch's event may be waited for before a deadline is looked at.
const LISTEN: Duration = Duration::from_secs(3600);

const DIRECTORY: u32 = 1;
const READ: u32 = 2;
const WATCH: u32 = 4;
const WRITE: u32 = 11;
const REMOVE: u32 = 13;
const SET_PERMS: u32 = 14;
const WATCH_EVENT: u32 = 15;
const ERROR: u32 = 16;

/// A connection to a store.
#[derive(Debug)]
pub struct Socket {
    stream: UnixStream,
    path: PathBuf,
    next: u32,
    /// Events that came while an answer was waited for.
    events: VecDeque<Vec<u8>>,
    /// What came of a message that is not whole.
    partial: Vec<u8>,
    /// After an error nothing that comes can be told apart.
    broken: bool,
}

/// A message.
#[derive(Debug, PartialEq, Eq)]
struct Message {
    kind: u32,
    request: u32,
    payload: Vec<u8>,
}

impl Message {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16 + self.payload.len());
        for field in [self.kind, self.request, 0, self.payload.len() as u32] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.extend(&self.payload);
        bytes
    }

    /// The first message in `bytes`, which it is taken out of.
    fn take(bytes: &mut Vec<u8>) -> Option<Result<Self>> {
        let field = |at: usize| {
            let four = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_ne_bytes(four))
        };
        let (kind, request, length) = (field(0)?, field(4)?, field(12)? as usize);
        if length > LONGEST {
            let text = format!("a message of {length} bytes is none of a XenStore");
            return Some(Err(Error::new(Kind::Corrupt, text)));
        }
        let payload = bytes.get(16..16 + length)?.to_vec();
        bytes.drain(..16 + length);
        Some(Ok(Self { kind, request, payload }))
    }
}

impl Socket {
    /// Connects to a store.
    pub fn connect(path: &Path, until: Instant) -> Result<Self> {
        let stream = connect(path, until)?;
        Ok(Self {
            stream,
            path: path.to_owned(),
            next: 1,
            events: VecDeque::new(),
            partial: Vec::new(),
            broken: false,
        })
    }

    /// One request and its answer; none where the store has no such path.
    fn call(&mut self, kind: u32, parts: &[&str], until: Instant) -> Result<Option<Vec<u8>>> {
        if self.broken {
            return Err(self.gone());
        }
        // Whatever goes wrong below leaves the stream in the middle of something.
        self.broken = true;
        let request = self.next;
        self.next = self.next.wrapping_add(1);
        let payload = parts.concat().into_bytes();
        if payload.len() > LONGEST {
            self.broken = false;
            let text = format!("{} bytes are too many for XenStore", payload.len());
            return Err(Error::new(Kind::Limit, text));
        }
        self.send(&Message { kind, request, payload }.bytes(), until)?;
        loop {
            let Some(message) = self.message(until)? else {
                let text = format!("the XenStore at {} does not answer", self.path.display());
                return Err(Error::new(Kind::DeadlineExceeded, text));
            };
            match message.kind {
                WATCH_EVENT => self.events.push_back(message.payload),
                _ if message.request != request => {}
                ERROR => {
                    self.broken = false;
                    let words = String::from_utf8_lossy(&message.payload);
                    let words = words.trim_end_matches('\0');
                    if words == "ENOENT" {
                        return Ok(None);
                    }
                    let path = parts.first().copied().unwrap_or_default();
                    let path = path.trim_end_matches('\0');
                    let text = format!("the XenStore refuses {path}");
                    let kind = if words == "EACCES" { Kind::Auth } else { Kind::Internal };
                    return Err(Error::new(kind, text).backend(words));
                }
                _ => {
                    self.broken = false;
                    return Ok(Some(message.payload));
                }
            }
        }
    }

    fn send(&mut self, mut bytes: &[u8], until: Instant) -> Result<()> {
        while !bytes.is_empty() {
            let gone = |_| self.gone();
            self.stream.set_write_timeout(Some(left(until))).map_err(gone)?;
            match self.stream.write(bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if is_late(&error) && Instant::now() < until => {}
                Err(_) => return Err(self.gone()),
            }
        }
        Ok(())
    }

    /// The next message; none at the deadline.
    fn message(&mut self, until: Instant) -> Result<Option<Message>> {
        let mut bytes = [0; 4096];
        loop {
            if let Some(message) = Message::take(&mut self.partial) {
                return message.map(Some);
            }
            if Instant::now() >= until {
                return Ok(None);
            }
            let gone = |_| self.gone();
            self.stream.set_read_timeout(Some(left(until).min(LISTEN))).map_err(gone)?;
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(self.gone()),
                Ok(count) => self.partial.extend(bytes.get(..count).unwrap_or_default()),
                Err(error) if is_late(&error) => {}
                Err(_) => return Err(self.gone()),
            }
        }
    }

    fn gone(&self) -> Error {
        let text = format!("the XenStore at {} has gone away", self.path.display());
        Error::new(Kind::Unreachable, text)
    }
}

fn is_late(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

impl XenStore for Socket {
    fn read(&mut self, path: &str, until: Instant) -> Result<Option<String>> {
        let answer = self.call(READ, &[path, "\0"], until)?;
        Ok(answer.map(|text| String::from_utf8_lossy(&text).into_owned()))
    }

    fn write(&mut self, path: &str, value: &str, until: Instant) -> Result<()> {
        self.call(WRITE, &[path, "\0", value], until).map(drop)
    }

    fn remove(&mut self, path: &str, until: Instant) -> Result<()> {
        self.call(REMOVE, &[path, "\0"], until).map(drop)
    }

    fn list(&mut self, path: &str, until: Instant) -> Result<Vec<String>> {
        let answer = self.call(DIRECTORY, &[path, "\0"], until)?.unwrap_or_default();
        let names = answer.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        let mut names: Vec<String> =
            names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
        names.sort();
        Ok(names)
    }

    fn give(&mut self, path: &str, domain: u32, until: Instant) -> Result<()> {
        self.call(SET_PERMS, &[path, "\0", &format!("n{domain}"), "\0"], until).map(drop)
    }

    fn watch(&mut self, path: &str, until: Instant) -> Result<()> {
        self.call(WATCH, &[path, "\0", "sm", "\0"], until).map(drop)
    }

    fn changed(&mut self, until: Instant) -> Result<()> {
        if self.events.pop_front().is_some() {
            return Ok(());
        }
        // An answer that nobody waits for any more is no event.
        while let Some(message) = self.message(until)? {
            if message.kind == WATCH_EVENT {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Answers one client as a store does, from a store in memory, until the client goes: for tests
/// and simulations.
pub fn serve(mut stream: UnixStream, store: &super::Memory) -> std::io::Result<()> {
    let mut memory = store.clone();
    let mut output = stream.try_clone()?;
    let end = || Instant::now() + LISTEN;
    let mut partial = Vec::new();
    let mut bytes = [0; 4096];
    stream.set_read_timeout(Some(Duration::from_millis(1)))?;
    let refused = |error: Error| std::io::Error::other(error.to_string());
    let mut tokens: Vec<(String, String, Option<String>)> = Vec::new();
    loop {
        while let Some(message) = Message::take(&mut partial) {
            let Message { kind, request, payload } = message.map_err(refused)?;
            let text = String::from_utf8_lossy(&payload).into_owned();
            let (path, rest) = text.split_once('\0').unwrap_or((&text, ""));
            let answer = match kind {
                READ => memory.read(path, end()),
                WRITE => memory.write(path, rest, end()).map(|()| Some("OK\0".to_owned())),
                DIRECTORY => memory.list(path, end()).map(|names| {
                    Some(names.iter().fold(String::new(), |all, name| all + name + "\0"))
                }),
                REMOVE => memory.remove(path, end()).map(|()| Some("OK\0".to_owned())),
                SET_PERMS => {
                    let domain = rest.trim_end_matches('\0').get(1..).and_then(|n| n.parse().ok());
                    let domain = domain.unwrap_or(0);
                    memory.give(path, domain, end()).map(|()| Some("OK\0".to_owned()))
                }
                WATCH => {
                    let token = rest.trim_end_matches('\0').to_owned();
                    tokens.push((path.to_owned(), token, Some(String::new())));
                    Ok(Some("OK\0".to_owned()))
                }
                _ => Ok(None),
            };
            let (kind, payload) = match answer.map_err(refused)? {
                Some(text) => (kind, text.into_bytes()),
                None => (ERROR, b"ENOENT\0".to_vec()),
            };
            output.write_all(&Message { kind, request, payload }.bytes())?;
        }
        let now = store.dump();
        for (path, token, last) in &mut tokens {
            let state: String = now
                .iter()
                .filter(|(key, _)| key.starts_with(path.as_str()))
                .fold(String::new(), |all, (key, value)| all + key + "=" + value + "\n");
            if last.as_ref() != Some(&state) {
                *last = Some(state);
                let payload = format!("{path}\0{token}\0").into_bytes();
                let event = Message { kind: WATCH_EVENT, request: 0, payload };
                output.write_all(&event.bytes())?;
            }
        }
        match stream.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(count) => partial.extend(bytes.get(..count).unwrap_or_default()),
            Err(error) if is_late(&error) => {}
            Err(error) => return Err(error),
        }
    }
}
