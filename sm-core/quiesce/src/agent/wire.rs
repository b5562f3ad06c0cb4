//! One connection to an agent: lines of JSON, each waited for with a deadline.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::{Value, json};
use sm_model::{Error, Kind, Result};

use crate::quiescer::{REFUSED, left};

/// Ends what the agent was reading, and comes before its answer to a `guest-sync-delimited`.
const SENTINEL: u8 = 0xff;

/// The longest answer: the file systems of a guest with thousands of disks.
const LONGEST: usize = 8 << 20;

/// Until it is asked again whether a socket takes one more connection.
const NAP: Duration = Duration::from_millis(10);

/// How much of what an agent says an error repeats.
const REPEATED: usize = 200;

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    socket: PathBuf,
    /// What came after the last line.
    rest: Vec<u8>,
    /// What is read next may not be the answer to what is asked next.
    dirty: bool,
}

/// Connects to a Unix socket. The system's own call waits for ever where the backlog is full, as it
/// is where somebody accepts nothing.
pub(crate) fn connect(socket: &Path, until: Instant) -> Result<UnixStream> {
    let failed = |error: std::io::Error| {
        Error::new(Kind::Unreachable, format!("nobody answers at {}", socket.display()))
            .source(&error)
    };
    let address = SocketAddrUnix::new(socket).map_err(|error| failed(error.into()))?;
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let made = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let made = made.map_err(|error| failed(error.into()))?;
        match rustix::net::connect(&made, &address) {
            Ok(()) => {
                let stream = UnixStream::from(made);
                stream.set_nonblocking(false).map_err(failed)?;
                return Ok(stream);
            }
            Err(Errno::AGAIN) if Instant::now() < until => std::thread::sleep(NAP),
            Err(Errno::AGAIN) => {
                let text = format!("{} takes no further connection", socket.display());
                return Err(Error::busy(text).hint("somebody else is talking to it"));
            }
            Err(error) => return Err(failed(error.into())),
        }
    }
}

impl Connection {
    pub(super) fn open(socket: &Path, until: Instant) -> Result<Self> {
        let stream = connect(socket, until)
            .map_err(|error| error.hint("is the guest running, and the guest agent in it?"))?;
        let socket = socket.to_owned();
        // Somebody before us may have left a question half asked, or an answer unread.
        Ok(Self { stream, socket, rest: Vec::new(), dirty: true })
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Skips everything up to now, on both ways.
    pub(super) fn sync(&mut self, until: Instant) -> Result<()> {
        let id = u64::from(uuid::Uuid::new_v4().as_fields().0);
        let question = json!({"execute": "guest-sync-delimited", "arguments": {"id": id}});
        let mut bytes = vec![SENTINEL];
        bytes.extend(question.to_string().into_bytes());
        bytes.push(b'\n');
        self.send(&bytes, until)?;
        loop {
            self.skip_to_sentinel(until)?;
            let line = self.line(until)?;
            let answer = serde_json::from_slice::<Value>(&line).unwrap_or_default();
            // Another one's, whose client did not wait for it.
            if answer["return"].as_u64() == Some(id) {
                self.dirty = false;
                return Ok(());
            }
        }
    }

    /// One question and its answer.
    pub(super) fn call(
        &mut self,
        command: &str,
        arguments: Value,
        until: Instant,
    ) -> Result<Value> {
        let mut question = json!({"execute": command});
        if !arguments.is_null() {
            question["arguments"] = arguments;
        }
        self.dirty = true;
        self.send(format!("{question}\n").as_bytes(), until)?;
        let line = self.line(until)?;
        let odd = || {
            let said = shortened(&String::from_utf8_lossy(&line));
            let socket = self.socket.display();
            let text = format!("what answers {command} at {socket} is no guest agent: {said:?}");
            Error::new(Kind::Corrupt, text)
        };
        let mut answer: Value = serde_json::from_slice(&line).map_err(|_| odd())?;
        if let Some(error) = answer.get("error") {
            self.dirty = false;
            return Err(self.refused(command, error));
        }
        match answer.get_mut("return") {
            Some(value) => {
                self.dirty = false;
                Ok(value.take())
            }
            None => Err(odd()),
        }
    }

    fn refused(&self, command: &str, error: &Value) -> Error {
        let class = error["class"].as_str().unwrap_or_default();
        let words = error["desc"].as_str().unwrap_or("no reason");
        let kind = if class == "CommandNotFound" { Kind::Unsupported } else { REFUSED };
        let text = format!("the guest agent at {} refuses {command}", self.socket.display());
        Error::new(kind, text).backend(words).context("agent_error", class)
    }

    /// Leaves, after everything that the agent still has to say.
    pub(super) fn close(mut self, until: Instant) {
        let _ = self.stream.shutdown(Shutdown::Write);
        let mut bytes = [0; 4096];
        while Instant::now() < until {
            let _ = self.stream.set_read_timeout(Some(left(until)));
            match self.stream.read(&mut bytes) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn send(&mut self, mut bytes: &[u8], until: Instant) -> Result<()> {
        while !bytes.is_empty() {
            self.check(until)?;
            self.stream.set_write_timeout(Some(left(until))).map_err(|e| self.broken(&e))?;
            match self.stream.write(bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if is_late(&error) => {}
                Err(error) => return Err(self.broken(&error)),
            }
        }
        Ok(())
    }

    fn line(&mut self, until: Instant) -> Result<Vec<u8>> {
        let mut looked = 0;
        loop {
            let found = self.rest.iter().skip(looked).position(|byte| *byte == b'\n');
            if let Some(at) = found {
                let after = self.rest.split_off(looked + at + 1);
                return Ok(std::mem::replace(&mut self.rest, after));
            }
            looked = self.rest.len();
            if looked > LONGEST {
                let text = format!("an answer at {} has no end", self.socket.display());
                return Err(Error::new(Kind::Corrupt, text));
            }
            self.more(until)?;
        }
    }

    fn skip_to_sentinel(&mut self, until: Instant) -> Result<()> {
        loop {
            if let Some(at) = self.rest.iter().position(|byte| *byte == SENTINEL) {
                self.rest.drain(..=at);
                return Ok(());
            }
            self.rest.clear();
            self.more(until)?;
        }
    }

    /// Reads what there is, at least a byte.
    fn more(&mut self, until: Instant) -> Result<()> {
        let mut bytes = [0; 4096];
        loop {
            self.check(until)?;
            self.stream.set_read_timeout(Some(left(until))).map_err(|e| self.broken(&e))?;
            match self.stream.read(&mut bytes) {
                Ok(0) => {
                    let text =
                        format!("the guest agent at {} has gone away", self.socket.display());
                    return Err(Error::new(Kind::Unreachable, text));
                }
                Ok(count) => {
                    self.rest.extend(bytes.get(..count).unwrap_or_default());
                    return Ok(());
                }
                Err(error) if is_late(&error) => {}
                Err(error) => return Err(self.broken(&error)),
            }
        }
    }

    fn check(&self, until: Instant) -> Result<()> {
        if Instant::now() < until {
            return Ok(());
        }
        let text = format!("the guest agent at {} does not answer in time", self.socket.display());
        Err(Error::new(Kind::DeadlineExceeded, text)
            .hint("it serves one client at a time: another one may be talking to it"))
    }

    fn broken(&self, error: &std::io::Error) -> Error {
        let text = format!("the guest agent at {} has gone away", self.socket.display());
        Error::new(Kind::Unreachable, text).source(error)
    }
}

fn is_late(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// The beginning of what an agent said.
pub(super) fn shortened(text: &str) -> String {
    let text = text.trim();
    match text.char_indices().nth(REPEATED) {
        None => text.to_owned(),
        Some((at, _)) => format!("{} ...", text.get(..at).unwrap_or_default()),
    }
}
