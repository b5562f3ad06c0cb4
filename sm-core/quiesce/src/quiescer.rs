//! What every way to bring a guest to rest can do.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sm_model::{Error, Kind, Result, VdiUuid};
use uuid::Uuid;

use crate::agent::Agent;
use crate::exec::Hook;
use crate::vss::Vss;
use crate::xenstore::Socket;

/// What a snapshot can be relied on for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Consistency {
    /// As after a power cut: journals have to be replayed, applications recover.
    #[serde(rename = "crash-consistent")]
    Crash,
    /// File systems were at rest: nothing has to be replayed. What applications had in memory is
    /// not there.
    #[serde(rename = "fs-consistent")]
    FileSystem,
    /// Applications had written what they need, and file systems were at rest.
    #[serde(rename = "app-consistent")]
    Application,
}

impl Consistency {
    /// As it is kept with a snapshot.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crash => "crash-consistent",
            Self::FileSystem => "fs-consistent",
            Self::Application => "app-consistent",
        }
    }
}

impl fmt::Display for Consistency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Consistency {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::Crash, Self::FileSystem, Self::Application]
            .into_iter()
            .find(|level| level.name() == text)
            .ok_or_else(|| Error::config(format!("{text:?} is no consistency of this release")))
    }
}

/// How a guest is brought to rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Method {
    /// It is not.
    #[default]
    None,
    /// By the QEMU guest agent.
    Agent {
        /// Its socket.
        socket: PathBuf,
        /// The file systems, by where the guest has them mounted; all if empty.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        mounts: Vec<String>,
    },
    /// By the VSS provider of a Windows guest, through XenStore.
    XenStore {
        /// The socket of the store.
        socket: PathBuf,
        /// The guest's domain.
        domain: u32,
    },
    /// By programs of whoever runs the guest.
    Exec {
        /// Program and arguments that bring it to rest.
        before: Vec<String>,
        /// Program and arguments that let it go on; they are run whatever the first one says.
        after: Vec<String>,
    },
}

impl Method {
    /// Names the guest: two snapshots of one guest exclude each other. None where nothing is
    /// brought to rest.
    pub fn guest(&self) -> Option<String> {
        let real = |path: &Path| {
            let found = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
            found.display().to_string()
        };
        match self {
            Self::None => None,
            Self::Agent { socket, .. } => Some(format!("agent {}", real(socket))),
            Self::XenStore { domain, .. } => Some(format!("domain {domain}")),
            Self::Exec { before, .. } => Some(format!("hook {}", before.join(" "))),
        }
    }

    /// What does it, to be driven through the trait.
    pub fn quiescer(&self, set: Uuid) -> Box<dyn Quiescer> {
        match self {
            Self::None => Box::new(Nothing),
            Self::Agent { socket, mounts } => Box::new(Agent::new(socket, mounts)),
            Self::XenStore { socket, domain } => {
                let socket = socket.clone();
                let connect = move |until| Socket::connect(&socket, until);
                Box::new(Vss::new(connect, *domain, set))
            }
            Self::Exec { before, after } => Box::new(Hook::new(before, after, set)),
        }
    }
}

/// How long each step may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// To be ready for the freeze.
    pub prepare: Duration,
    /// From the request to freeze until the guest is frozen: its applications may write all they
    /// have.
    pub freeze: Duration,
    /// How long the guest may stay frozen.
    pub window: Duration,
    /// From the request to go on until the guest has said that it did.
    pub thaw: Duration,
    /// How long it is tried to let a guest go on that did not answer.
    pub rescue: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            prepare: Duration::from_secs(10),
            // Writers of VSS have a minute.
            freeze: Duration::from_secs(60),
            // Windows cancels what is held after ten.
            window: Duration::from_secs(10),
            thaw: Duration::from_secs(30),
            rescue: Duration::from_secs(60),
        }
    }
}

/// What is known of a guest before it is frozen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// What a snapshot in the window is worth.
    pub level: Consistency,
    /// What the guest says that it is, for people.
    pub system: String,
}

/// What is frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// How many file systems, volumes or disks.
    pub count: u64,
}

/// A snapshot that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Of this disk.
    pub vdi: VdiUuid,
    /// The snapshot.
    pub snapshot: VdiUuid,
}

/// What came of the snapshots, as the guest is told it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All were taken.
    Taken(Vec<Taken>),
    /// Not all were, or nobody knows.
    Failed,
}

/// A guest goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thawed {
    /// How many file systems, volumes or disks.
    pub count: u64,
    /// What the guest's requester says about the set: on Windows the backup components document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<String>,
}

/// Brings a guest to rest. Every call ends at `until`, about.
pub trait Quiescer: Send {
    /// Does everything that may take time, and nothing that the guest notices.
    fn prepare(&mut self, until: Instant) -> Result<Ready>;

    /// Brings the guest to rest. After an error it may be at rest all the same: [`Self::thaw`]
    /// follows in any case.
    fn freeze(&mut self, disks: &[VdiUuid], until: Instant) -> Result<Frozen>;

    /// Lets the guest go on. An error says that the guest was not at rest all the time, or that
    /// nobody knows.
    fn thaw(&mut self, outcome: &Outcome, until: Instant) -> Result<Thawed>;

    /// Looks at the guest anew, with nothing remembered, and lets it go on if it is at rest.
    /// Answers whether it was.
    fn rescue(&mut self, until: Instant) -> Result<bool>;
}

/// For disks whose guest is not asked.
#[derive(Debug)]
struct Nothing;

impl Quiescer for Nothing {
    fn prepare(&mut self, _: Instant) -> Result<Ready> {
        Ok(Ready { level: Consistency::Crash, system: String::new() })
    }

    fn freeze(&mut self, _: &[VdiUuid], _: Instant) -> Result<Frozen> {
        Ok(Frozen { count: 0 })
    }

    fn thaw(&mut self, _: &Outcome, _: Instant) -> Result<Thawed> {
        Ok(Thawed::default())
    }

    fn rescue(&mut self, _: Instant) -> Result<bool> {
        Ok(false)
    }
}

/// A guest that would not, or did not, come to rest: the next time it may.
pub(crate) const REFUSED: Kind = Kind::Busy { retry_after_ms: None };

/// Time that is left, never none: a timeout of zero means for ever to a socket.
pub(crate) fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consistency_is_read_as_it_is_written() {
        for level in [Consistency::Crash, Consistency::FileSystem, Consistency::Application] {
            assert_eq!(level.name().parse::<Consistency>().unwrap(), level);
            assert_eq!(serde_json::to_value(level).unwrap(), level.name());
        }
        let error = "best".parse::<Consistency>().unwrap_err();
        assert_eq!(error.message, "\"best\" is no consistency of this release");
    }

    #[test]
    fn one_socket_by_two_paths_is_one_guest() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent");
        std::fs::write(&socket, "").unwrap();
        std::os::unix::fs::symlink(&socket, folder.path().join("other")).unwrap();
        let guest = |name: &str| {
            Method::Agent { socket: folder.path().join(name), mounts: Vec::new() }.guest()
        };
        assert_eq!(guest("agent"), guest("other"));
        assert_ne!(guest("agent"), guest("third"));
        assert_eq!(Method::None.guest(), None);
    }
}
