//! The QEMU guest agent, over the Unix socket that its channel ends in.
//!
//! The agent serves one client. A second one can connect and gets no answer, so what is silent may
//! be absent, busy with somebody else, or dead: an error says what was seen, not more. Whatever an
//! earlier client left in the channel is skipped: the byte 0xFF ends what the agent was reading,
//! and its answer to `guest-sync-delimited` comes after another one.

mod wire;

pub(crate) use wire::connect;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sm_model::{Error, Kind, Result, VdiUuid};

use crate::quiescer::{Consistency, Frozen, Outcome, Quiescer, REFUSED, Ready, Thawed};
use wire::Connection;

/// How long a goodbye may take: what the agent still sends is read, because an agent whose client
/// leaves it unread can die of that, with the guest frozen.
const GOODBYE: Duration = Duration::from_millis(500);

/// A guest behind its agent.
#[derive(Debug)]
pub struct Agent {
    socket: PathBuf,
    mounts: Vec<String>,
    connection: Option<Connection>,
    /// What the agent said that it froze.
    frozen: Option<u64>,
}

impl Agent {
    /// At this socket; `mounts` are the file systems to freeze, all if it is empty.
    pub fn new(socket: &Path, mounts: &[String]) -> Self {
        Self { socket: socket.to_owned(), mounts: mounts.to_vec(), connection: None, frozen: None }
    }

    /// A connection over which the next answer is the one to the next question.
    fn connection(&mut self, until: Instant) -> Result<&mut Connection> {
        if self.connection.is_none() {
            self.connection = Some(Connection::open(&self.socket, until)?);
        }
        let Some(connection) = &mut self.connection else {
            return Err(Error::internal("the connection that was just made is gone"));
        };
        if connection.is_dirty() {
            connection.sync(until)?;
        }
        Ok(connection)
    }

    fn call(&mut self, command: &str, arguments: Value, until: Instant) -> Result<Value> {
        self.connection(until)?.call(command, arguments, until)
    }

    /// As [`Self::call`]; an agent of another release that does not have the command is none.
    fn ask(&mut self, command: &str, until: Instant) -> Result<Option<Value>> {
        match self.call(command, Value::Null, until) {
            Err(error) if error.kind == Kind::Unsupported => Ok(None),
            other => other.map(Some),
        }
    }

    fn is_frozen(&mut self, until: Instant) -> Result<bool> {
        let status = self.call("guest-fsfreeze-status", Value::Null, until)?;
        match status.as_str() {
            Some("frozen") => Ok(true),
            Some("thawed") => Ok(false),
            _ => Err(self.odd("guest-fsfreeze-status", &status)),
        }
    }

    /// A number that the agent answers.
    fn count(&mut self, command: &str, arguments: Value, until: Instant) -> Result<u64> {
        let answer = self.call(command, arguments, until)?;
        answer.as_u64().ok_or_else(|| self.odd(command, &answer))
    }

    fn odd(&self, command: &str, answer: &Value) -> Error {
        let text = format!("the guest agent at {} answers {command} with", self.socket.display());
        Error::new(Kind::Corrupt, format!("{text} {}", wire::shortened(&answer.to_string())))
    }

    /// Refuses file systems that the guest does not have: the agent would pass over them.
    fn check_mounts(&mut self, until: Instant) -> Result<()> {
        let Some(known) = self.ask("guest-get-fsinfo", until)? else { return Ok(()) };
        let known = known.as_array().map(Vec::as_slice).unwrap_or_default();
        let known: Vec<&str> = known.iter().filter_map(|it| it["mountpoint"].as_str()).collect();
        match self.mounts.iter().find(|mount| !known.contains(&mount.as_str())) {
            None => Ok(()),
            Some(missing) => Err(Error::not_found(format!(
                "the guest behind {} has nothing mounted at {missing:?}",
                self.socket.display()
            ))
            .hint(format!("mounted there: {}", known.join(", ")))),
        }
    }

    /// The guest's operating system, for people, and whether it is Windows.
    fn system(&mut self, until: Instant) -> Result<(String, bool)> {
        let Some(info) = self.ask("guest-get-osinfo", until)? else {
            return Ok((String::new(), false));
        };
        let name = info["pretty-name"].as_str().or(info["name"].as_str()).unwrap_or_default();
        Ok((name.to_owned(), info["id"].as_str() == Some("mswindows")))
    }
}

impl Quiescer for Agent {
    fn prepare(&mut self, until: Instant) -> Result<Ready> {
        if self.is_frozen(until)? {
            return Err(Error::new(
                Kind::InUse,
                format!("the guest behind {} is frozen by somebody else", self.socket.display()),
            )
            .hint("a snapshot by another program is running, or has left it so"));
        }
        let (system, windows) = self.system(until)?;
        if !self.mounts.is_empty() {
            self.check_mounts(until)?;
        }
        // On Windows the agent is a requester of VSS, so applications take part. What hooks of an
        // agent elsewhere do cannot be seen from here.
        let level = if windows { Consistency::Application } else { Consistency::FileSystem };
        Ok(Ready { level, system })
    }

    fn freeze(&mut self, _: &[VdiUuid], until: Instant) -> Result<Frozen> {
        let (command, arguments) = if self.mounts.is_empty() {
            ("guest-fsfreeze-freeze", Value::Null)
        } else {
            ("guest-fsfreeze-freeze-list", json!({"mountpoints": self.mounts}))
        };
        self.frozen = None;
        let count = self.count(command, arguments, until)?;
        self.frozen = Some(count);
        let socket = self.socket.display();
        if count == 0 {
            // Said without an error for a list of which nothing is mounted.
            let text = format!("the guest agent at {socket} has frozen no file system");
            return Err(Error::unsupported(text));
        }
        if count < self.mounts.len() as u64 {
            let asked = self.mounts.len();
            let text = format!("the guest agent at {socket} has frozen {count} of {asked}");
            return Err(Error::unsupported(format!("{text} file systems")));
        }
        Ok(Frozen { count })
    }

    fn thaw(&mut self, _: &Outcome, until: Instant) -> Result<Thawed> {
        let thawed = self.count("guest-fsfreeze-thaw", Value::Null, until)?;
        let frozen = self.frozen.take();
        if let Some(frozen) = frozen.filter(|frozen| thawed < *frozen) {
            // By hand in the guest, or by Windows, which then answers none and no error.
            return Err(Error::new(
                REFUSED,
                format!(
                    "of {frozen} file systems that were frozen {thawed} still were when the guest \
                     behind {} was let go on",
                    self.socket.display()
                ),
            ));
        }
        if let Some(connection) = self.connection.take() {
            connection.close(Instant::now() + GOODBYE);
        }
        Ok(Thawed { count: thawed, document: None })
    }

    fn rescue(&mut self, until: Instant) -> Result<bool> {
        // The agent may be another one by now.
        if let Some(connection) = self.connection.take() {
            connection.close(Instant::now() + GOODBYE);
        }
        if !self.is_frozen(until)? {
            return Ok(false);
        }
        self.count("guest-fsfreeze-thaw", Value::Null, until)?;
        Ok(true)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.close(Instant::now() + GOODBYE);
        }
    }
}
