//! Errors are data.
//!
//! The [`Kind`] drives control flow, [`Retry`] says whether trying again can help, the rest is for
//! people: a message (object and fact), the backend's own words, a hint (the next step), and
//! SMAPI's number with its exact text where a toolstack expects one.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, DerefMut};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::legacy;
use crate::sr::ProbeItem;

/// A result whose error is an [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What class of thing went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Kind {
    /// The object does not exist.
    NotFound,
    /// Something of that identity exists already, and differs from what was asked.
    Exists,
    /// Somebody uses it.
    InUse,
    /// The backend is full.
    NoSpace,
    /// A limit of size, count, length or format.
    Limit,
    /// It works, not now.
    Busy {
        /// When to come back, in milliseconds, if the backend said so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
    /// The device configuration is not complete or not right.
    Config {
        /// All keys that are required and absent.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        missing: Vec<String>,
        /// What could be filled in, found by looking.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        candidates: Vec<ProbeItem>,
    },
    /// The backend does not accept our credentials, or they lack a right.
    Auth,
    /// The backend does not answer.
    Unreachable,
    /// This host has lost its right to the object.
    Fenced,
    /// The data is damaged.
    Corrupt,
    /// The driver or the backend cannot do it.
    Unsupported,
    /// The caller cancelled.
    Cancelled,
    /// The time given was used up.
    DeadlineExceeded,
    /// The call ended without an answer: it may have been done. Look before doing it again.
    Unknown,
    /// A defect of ours. Also what a kind that this release does not know is read as.
    #[serde(other)]
    Internal,
}

impl Kind {
    /// The name in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Exists => "exists",
            Self::InUse => "in_use",
            Self::NoSpace => "no_space",
            Self::Limit => "limit",
            Self::Busy { .. } => "busy",
            Self::Config { .. } => "config",
            Self::Auth => "auth",
            Self::Unreachable => "unreachable",
            Self::Fenced => "fenced",
            Self::Corrupt => "corrupt",
            Self::Unsupported => "unsupported",
            Self::Cancelled => "cancelled",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::Unknown => "unknown",
            Self::Internal => "internal",
        }
    }

    fn usual_retry(&self) -> Retry {
        match self {
            Self::Busy { .. } | Self::Unreachable | Self::DeadlineExceeded | Self::Unknown => {
                Retry::Temporary
            }
            _ => Retry::Permanent,
        }
    }
}

/// Whether the same call can succeed later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Retry {
    /// No: something must change first.
    Permanent,
    /// Yes: nobody has tried again yet.
    Temporary,
    /// It was tried again and still fails: stop.
    Persistent,
}

/// SMAPI's number and text, for toolstacks that know those.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LegacyError {
    /// The n of `SR_BACKEND_FAILURE_n`.
    pub code: u16,
    /// The exact text, with ` [opterr=...]` where there is a detail.
    pub text: String,
}

/// What went wrong, in one box.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorData {
    /// The class.
    #[serde(flatten)]
    pub kind: Kind,
    /// Object and fact, one sentence without a full stop.
    pub message: String,
    /// Whether to try again.
    pub retry: Retry,
    /// The operation that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// More facts: `sr`, `vdi`, `path`, `signal`, ...
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub context: BTreeMap<String, String>,
    /// The backend's own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// The next step for whoever reads this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// SMAPI's number and text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub legacy: Option<LegacyError>,
    /// What caused it, nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
}

/// An error of any operation. See [`ErrorData`] for its parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Error(Box<ErrorData>);

impl Error {
    /// An error of `kind`, with the retry status usual for it.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        let retry = kind.usual_retry();
        Self(Box::new(ErrorData {
            kind,
            message: message.into(),
            retry,
            operation: None,
            context: BTreeMap::new(),
            backend: None,
            hint: None,
            legacy: None,
            causes: Vec::new(),
        }))
    }

    /// [`Kind::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, message)
    }

    /// [`Kind::Unsupported`], with SMAPI's 38.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(Kind::Unsupported, message).legacy(38)
    }

    /// [`Kind::Busy`] without a time to come back.
    pub fn busy(message: impl Into<String>) -> Self {
        Self::new(Kind::Busy { retry_after_ms: None }, message)
    }

    /// [`Kind::Config`] without missing keys or candidates.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(Kind::Config { missing: Vec::new(), candidates: Vec::new() }, message)
    }

    /// [`Kind::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// Sets whether to try again.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.0.retry = retry;
        self
    }

    /// Names the operation, unless a deeper layer has named one.
    #[must_use]
    pub fn operation(mut self, operation: impl Into<String>) -> Self {
        self.0.operation.get_or_insert_with(|| operation.into());
        self
    }

    /// Adds a fact. The first to set a key wins: the deeper layer knows better.
    #[must_use]
    pub fn context(mut self, key: &str, value: impl fmt::Display) -> Self {
        self.0.context.entry(key.to_owned()).or_insert_with(|| value.to_string());
        self
    }

    /// Sets the backend's own words.
    #[must_use]
    pub fn backend(mut self, words: impl Into<String>) -> Self {
        self.0.backend = Some(words.into());
        self
    }

    /// Sets the next step.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Sets SMAPI's number with its exact text.
    #[must_use]
    pub fn legacy(mut self, code: u16) -> Self {
        self.0.legacy = legacy::text(code).map(|text| LegacyError { code, text: text.to_owned() });
        self
    }

    /// As [`Self::legacy`], with the detail that SMAPI shows as ` [opterr=...]`.
    #[must_use]
    pub fn legacy_detail(mut self, code: u16, detail: &str) -> Self {
        self.0.legacy = legacy::text(code)
            .map(|text| LegacyError { code, text: format!("{text} [opterr={detail}]") });
        self
    }

    /// Adds an error and all it was caused by to the causes.
    #[must_use]
    pub fn source(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        let mut next = Some(error);
        while let Some(error) = next {
            self.0.causes.push(error.to_string());
            next = error.source();
        }
        self
    }

    /// The number xapi would see: ours, or the one usual for the kind.
    pub fn legacy_code(&self) -> u16 {
        self.0.legacy.as_ref().map_or_else(|| legacy::usual_code(&self.0.kind), |l| l.code)
    }
}

impl Deref for Error {
    type Target = ErrorData;

    fn deref(&self) -> &ErrorData {
        &self.0
    }
}

impl DerefMut for Error {
    fn deref_mut(&mut self) -> &mut ErrorData {
        &mut self.0
    }
}

impl fmt::Display for Error {
    /// The message and the backend's words on one line. Causes and hint are for whoever prints
    /// last.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(words) = &self.backend {
            write!(f, " (the backend says: {words})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// The system's number for an input or output error, the same on all of Linux' processors; the standard
/// library has no kind for it.
const EIO: i32 = 5;

impl From<std::io::Error> for Error {
    /// The class that the operating system's error stands for. Say which object by
    /// [`Error::context`] or with a message of your own.
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match error.kind() {
            Io::NotFound => Kind::NotFound,
            Io::AlreadyExists => Kind::Exists,
            Io::StorageFull | Io::QuotaExceeded => Kind::NoSpace,
            Io::FileTooLarge => Kind::Limit,
            Io::ResourceBusy | Io::WouldBlock => Kind::Busy { retry_after_ms: None },
            Io::PermissionDenied | Io::ReadOnlyFilesystem => Kind::Auth,
            Io::TimedOut => Kind::DeadlineExceeded,
            Io::NetworkUnreachable | Io::HostUnreachable | Io::ConnectionRefused => {
                Kind::Unreachable
            }
            Io::InvalidData => Kind::Corrupt,
            Io::Unsupported => Kind::Unsupported,
            // The storage's failure, and no defect of whoever asked it.
            _ if error.raw_os_error() == Some(EIO) => Kind::Unreachable,
            _ => Kind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_flat_and_round_trips() {
        let error = Error::new(
            Kind::Config { missing: vec!["location".into()], candidates: vec![] },
            "the device configuration lacks location",
        )
        .legacy(94)
        .context("driver", "file");
        let text = serde_json::to_string(&error).unwrap();
        assert_eq!(
            text,
            r#"{"kind":"config","missing":["location"],"message":"the device configuration lacks location","retry":"permanent","context":{"driver":"file"},"legacy":{"code":94,"text":"The request is missing the location parameter"}}"#
        );
        assert_eq!(serde_json::from_str::<Error>(&text).unwrap(), error);
    }

    #[test]
    fn a_kind_from_a_later_release_is_read_as_internal() {
        let text = r#"{"kind":"melted","degrees":900,"message":"m","retry":"temporary"}"#;
        let error: Error = serde_json::from_str(text).unwrap();
        assert_eq!(error.kind, Kind::Internal);
        assert_eq!(error.retry, Retry::Temporary);
    }

    #[test]
    fn a_storage_that_fails_is_no_defect_of_who_asked_it() {
        for (code, kind) in [(EIO, Kind::Unreachable), (28, Kind::NoSpace)] {
            let error = Error::from(std::io::Error::from_raw_os_error(code));
            assert_eq!(error.kind, kind);
        }
    }

    #[test]
    fn the_detail_is_rendered_as_smapi_does() {
        let error = Error::new(Kind::Limit, "m").legacy_detail(79, "shrinking not allowed");
        assert_eq!(
            error.legacy.as_ref().unwrap().text,
            "VDI Invalid size [opterr=shrinking not allowed]"
        );
    }
}
