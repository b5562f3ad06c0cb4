//! Why a driver was refused.

use std::io;
use std::path::PathBuf;

use sm_abi::compat::Mismatch;
use sm_model::error::Kind;

/// Why a driver was refused. Each variant is one sentence that names both sides; [`Self::hint`]
/// is the next step for whoever reads it.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No file at the path.
    #[error("there is no driver at {path}", path = path.display())]
    NotFound {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The operating system does not let us read it.
    #[error("the driver {path} cannot be read: {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// A directory, a device, a pipe.
    #[error("{path} is {what}, not a file", path = path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is, with its article.
        what: &'static str,
    },
    /// Not an ELF file, or one whose headers make no sense.
    #[error("{path} is not a shared object: {why}", path = path.display())]
    NotAnObject {
        /// The file.
        path: PathBuf,
        /// What is in it instead.
        why: String,
    },
    /// The headers speak of more bytes than there are. Mapping such a file ends in SIGBUS.
    #[error(
        "{path} is cut short: its headers speak of {expected} bytes, the file has {actual}",
        path = path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes the headers need.
        expected: u64,
        /// Bytes there are.
        actual: u64,
    },
    /// Built for another processor.
    #[error("{path} is built for {theirs}, this host is {ours}", path = path.display())]
    WrongMachine {
        /// The file.
        path: PathBuf,
        /// The file's architecture.
        theirs: String,
        /// This host's architecture.
        ours: &'static str,
    },
    /// A shared object without a manifest.
    #[error("{path} is a shared object but not a driver: it has no {section} section",
        path = path.display(), section = sm_model::manifest::SECTION)]
    NotADriver {
        /// The file.
        path: PathBuf,
    },
    /// The manifest cannot be understood.
    #[error("the manifest in {path} cannot be understood: {why}", path = path.display())]
    BadManifest {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Made for another major version of the interface.
    #[error("the driver {driver} is made for interface {theirs}, this host has {ours}")]
    OtherMajor {
        /// The driver.
        driver: String,
        /// Its interface.
        theirs: String,
        /// The host's interface.
        ours: &'static str,
    },
    /// Somebody who is not to be trusted with root could have changed the file.
    #[error("the driver {path} is not to be trusted: {why}", path = path.display())]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// Who could change it.
        why: String,
    },
    /// `drivers.lock` cannot be understood.
    #[error("the lock file {path} cannot be understood: {why}", path = path.display())]
    BadLock {
        /// The lock file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// `drivers.lock` does not know the driver.
    #[error("the driver {driver} is not in {lock}", lock = lock.display())]
    NotLocked {
        /// The driver.
        driver: String,
        /// The lock file.
        lock: PathBuf,
    },
    /// Size or hash differ from `drivers.lock`.
    #[error(
        "the driver {driver} is not the one in {lock}: {what} is {actual}, locked is {locked}",
        lock = lock.display()
    )]
    LockDiffers {
        /// The driver.
        driver: String,
        /// The lock file.
        lock: PathBuf,
        /// `the size` or `the sha256`.
        what: &'static str,
        /// What the file has.
        actual: String,
        /// What the lock file has.
        locked: String,
    },
    /// The file was written to while it was being copied.
    #[error("the driver {path} was changed while it was being read", path = path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// No private copy could be made.
    #[error("no private copy of the driver can be made at {path}: {source}", path = path.display())]
    Stage {
        /// Where.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The dynamic loader refuses it.
    #[error("the dynamic loader refuses the driver {driver}: {why}")]
    Dlopen {
        /// The driver.
        driver: String,
        /// The dynamic loader's words.
        why: String,
    },
    /// It has a manifest but no header.
    #[error("the driver {driver} has a manifest but exports no header ({why})")]
    NoHeader {
        /// The driver.
        driver: String,
        /// The dynamic loader's words.
        why: String,
    },
    /// The binary interface does not fit.
    #[error("the driver {driver} does not fit this host: {mismatch}")]
    Mismatch {
        /// The driver.
        driver: String,
        /// How it differs.
        mismatch: Box<Mismatch>,
    },
    /// The manifest in the section is not the one the code gives.
    #[error(
        "the driver in the manifest of {path} is {section}, its code says it is {code}",
        path = path.display()
    )]
    OtherManifest {
        /// The file.
        path: PathBuf,
        /// Name and version in the section.
        section: String,
        /// Name and version the code gives.
        code: String,
    },
    /// A panic of it would end this process.
    #[error(
        "the driver {driver} is built with panic=abort, and this host was to load it in process"
    )]
    PanicAbort {
        /// The driver.
        driver: String,
    },
    /// It asks for a process of its own.
    #[error("the driver {driver} asks for a child process, and was to be loaded in process")]
    NeedsChild {
        /// The driver.
        driver: String,
    },
    /// The host lacks services.
    #[error(
        "the driver {driver} needs the host services {}, this host has {}",
        missing.join(", "),
        if offered.is_empty() { "none".to_owned() } else { offered.join(", ") }
    )]
    MissingServices {
        /// The driver.
        driver: String,
        /// What it needs and we lack.
        missing: Vec<String>,
        /// What we have.
        offered: Vec<String>,
    },
    /// The program that runs drivers is not there.
    #[error("the program sm-driver-host was not found; looked at {}", searched.join(", "))]
    NoDriverHost {
        /// Where it was looked for.
        searched: Vec<String>,
    },
    /// The child process cannot be started.
    #[error("the process for the driver {driver} cannot be started from {program}: {source}",
        program = program.display())]
    Spawn {
        /// The driver.
        driver: String,
        /// The program.
        program: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// This process is out of something it needs (threads, descriptors).
    #[error("this host cannot set up {what}: {why}")]
    Host {
        /// What was to be set up.
        what: &'static str,
        /// Why it failed.
        why: String,
    },
}

impl LoadError {
    /// The next step for whoever reads the error.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => {
                "install the driver, or name its file; `smctl driver list` shows what is there"
            }
            Self::Unreadable { .. } => "check the path's permissions",
            Self::NotAFile { .. } => "name the driver's .so file",
            Self::NotAnObject { .. } => "name the driver's .so file, or copy it again",
            Self::Truncated { .. } => "copy the file again; the last copy did not finish",
            Self::WrongMachine { .. } => "get the driver's build for this architecture",
            Self::NotADriver { .. } => {
                "a driver is a cdylib with plugin-sdk's export_driver! in it, not stripped of \
                 its section headers"
            }
            Self::BadManifest { .. } => "rebuild the driver with a current plugin-sdk",
            Self::OtherMajor { .. } | Self::Mismatch { .. } => {
                "rebuild the driver with the plugin-sdk of this host's interface, or run it with \
                 the toolstack it was made for"
            }
            Self::Untrusted { .. } => {
                "make root (or the user this runs as) its owner, and take the write permission \
                 from group and others (chmod go-w)"
            }
            Self::BadLock { .. } | Self::NotLocked { .. } | Self::LockDiffers { .. } => {
                "if you trust this file, write its size and SHA-256 into drivers.lock beside it"
            }
            Self::Changed { .. } => {
                "try again when it is complete; install by rename, never by writing over it"
            }
            Self::Stage { .. } => "check space and permissions of the state directory",
            Self::Dlopen { .. } => {
                "a missing GLIBC version means it was built on a newer distribution than this; \
                 a lack of static TLS, that it brings an allocator of its own"
            }
            Self::NoHeader { .. } => "put plugin-sdk's export_driver! into the driver's lib.rs",
            Self::OtherManifest { .. } => "rebuild the driver; its file was put together by hand",
            Self::PanicAbort { .. } => {
                "build it with panic=unwind, or run it in a child process, where only its own \
                 calls are lost"
            }
            Self::NeedsChild { .. } => "run it in a child process",
            Self::MissingServices { .. } => {
                "run it under a host that has them; smctl and the daemon have all"
            }
            Self::NoDriverHost { .. } => {
                "install it beside this program, or set SM_DRIVER_HOST to its path"
            }
            Self::Spawn { .. } => {
                "the program must be executable for the user nobody, directories included"
            }
            Self::Host { .. } => "look at the limits of this process (threads, open files)",
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::NotFound { .. } | Self::NoDriverHost { .. } => Kind::NotFound,
            Self::Unreadable { source, .. } | Self::Stage { source, .. } => {
                sm_model::Error::from(io::Error::from(source.kind())).kind.clone()
            }
            Self::Untrusted { .. } | Self::NotLocked { .. } => Kind::Auth,
            Self::Truncated { .. } | Self::LockDiffers { .. } | Self::BadLock { .. } => {
                Kind::Corrupt
            }
            Self::Changed { .. } => Kind::Busy { retry_after_ms: None },
            Self::Host { .. } | Self::Spawn { .. } => Kind::Internal,
            Self::NotAFile { .. }
            | Self::NotAnObject { .. }
            | Self::WrongMachine { .. }
            | Self::NotADriver { .. }
            | Self::BadManifest { .. }
            | Self::OtherMajor { .. }
            | Self::Dlopen { .. }
            | Self::NoHeader { .. }
            | Self::Mismatch { .. }
            | Self::OtherManifest { .. }
            | Self::PanicAbort { .. }
            | Self::NeedsChild { .. }
            | Self::MissingServices { .. } => Kind::Unsupported,
        }
    }
}

impl From<LoadError> for sm_model::Error {
    fn from(error: LoadError) -> Self {
        if let LoadError::Mismatch { mismatch, .. } = &error
            && let Mismatch::Layout { report, .. } = mismatch.as_ref()
        {
            // Hundreds of lines: for whoever changes the interface, not for an operator.
            tracing::debug!(target: "driver", report, "layout comparison");
        }
        Self::new(error.kind(), error.to_string()).hint(error.hint())
    }
}

/// An error and all it was caused by, joined by colons: libloading keeps the reason in `source`.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let words = error.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = error.source();
    }
    text
}
