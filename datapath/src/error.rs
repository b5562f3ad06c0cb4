//! Why a request of a guest failed.

use std::io;

/// What the client is told. The numbers are those of the NBD protocol, section "Error values".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// Not allowed: writing to a read-only disk.
    NotPermitted = 1,
    /// The storage failed.
    Io = 5,
    /// Not enough memory.
    NoMemory = 12,
    /// The request makes no sense.
    Invalid = 22,
    /// No space left.
    NoSpace = 28,
    /// The request, or its answer, is too large.
    Overflow = 75,
    /// Not possible here, or not fast.
    NotSupported = 95,
    /// The server is going away.
    Shutdown = 108,
}

impl std::fmt::Display for Errno {
    /// In words, for people.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotPermitted => "not permitted",
            Self::Io => "input/output error",
            Self::NoMemory => "not enough memory",
            Self::Invalid => "invalid request",
            Self::NoSpace => "no space left",
            Self::Overflow => "too large",
            Self::NotSupported => "not supported",
            Self::Shutdown => "it is going away",
        })
    }
}

/// A request that failed: what the client is told, and what the log says.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what}")]
pub struct Error {
    /// What the client is told.
    pub errno: Errno,
    /// The whole of it, for people: object, fact, system's words.
    pub what: String,
}

/// Shorthand.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error for the client and for the log.
    pub fn new(errno: Errno, what: impl Into<String>) -> Self {
        Self { errno, what: what.into() }
    }

    /// A failed system call while doing `what`.
    pub fn io(what: impl std::fmt::Display, error: &io::Error) -> Self {
        Self { errno: errno_of(error), what: format!("{what}: {error}") }
    }
}

/// What a client is told of a failed system call. A quota or the largest file size is no space to
/// a guest; anything unknown is a failure of the storage.
fn errno_of(error: &io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Errno::NoSpace
        }
        io::ErrorKind::OutOfMemory => Errno::NoMemory,
        io::ErrorKind::ReadOnlyFilesystem => Errno::NotPermitted,
        _ => Errno::Io,
    }
}

impl From<vhd::Error> for Error {
    fn from(error: vhd::Error) -> Self {
        let errno = match &error {
            vhd::Error::Io { source, .. } => errno_of(source),
            vhd::Error::FileFull { .. } | vhd::Error::VolumeFull { .. } => Errno::NoSpace,
            vhd::Error::ReadOnly { .. } => Errno::NotPermitted,
            vhd::Error::OutOfRange { .. } | vhd::Error::Unaligned { .. } => Errno::Invalid,
            _ => Errno::Io,
        };
        Self { errno, what: error.reason() }
    }
}
