//! How an attached disk is reached.

use std::fmt;

use camino::Utf8PathBuf;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One way to reach an attached disk. Attach returns a list, best first.
///
/// The format is always stated here and never probed: a guest can write an image header into its
/// own raw disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Access {
    /// A raw block device of this host.
    BlockDevice {
        /// Path of the device node.
        #[schemars(with = "String")]
        path: Utf8PathBuf,
    },
    /// An image in a file system of this host.
    File {
        /// Path of the image that is written.
        #[schemars(with = "String")]
        path: Utf8PathBuf,
        /// Its format.
        format: ImageFormat,
        /// What it is based on, nearest first; never written. Empty for a disk of its own.
        #[serde(default)]
        backing: Vec<BackingImage>,
        /// Where the log of changed blocks is while there is one, in the layout of blktap's
        /// `cbtlog`; absent where changes cannot be tracked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(with = "Option<String>")]
        changes: Option<Utf8PathBuf>,
        /// A file that is there when this host is shut out of the SR: whoever writes the image ends
        /// that then. Absent where the storage says it in another way.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(with = "Option<String>")]
        shut_out: Option<Utf8PathBuf>,
    },
    /// A network block device.
    Nbd {
        /// `nbd+unix:///NAME?socket=PATH` or `nbd://HOST:PORT/NAME`.
        uri: String,
    },
}

/// An image that another one is based on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BackingImage {
    /// Path of the image.
    #[schemars(with = "String")]
    pub path: Utf8PathBuf,
    /// Its format.
    pub format: ImageFormat,
}

/// Format of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImageFormat {
    /// The bytes of the disk and nothing else.
    Raw,
    /// Virtual Hard Disk: fixed, dynamic or differencing.
    Vhd,
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Raw => "raw",
            Self::Vhd => "vhd",
        })
    }
}

impl std::str::FromStr for ImageFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "raw" => Ok(Self::Raw),
            "vhd" => Ok(Self::Vhd),
            _ => Err(format!("{text:?} is not a format: raw or vhd")),
        }
    }
}

/// What the one who attaches may do. It never rises from reading to writing.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum AttachMode {
    /// Reading only; many may hold it.
    ReadOnly,
    /// Reading and writing; one holder, unless the VDI is sharable.
    ReadWrite,
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::ReadOnly => "read-only",
            Self::ReadWrite => "read-write",
        })
    }
}
