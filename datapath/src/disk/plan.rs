//! Which files make up a disk.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How the content of a file is to be understood. It is always said, never guessed: a guest can
/// write the header of any format into its raw disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A VHD, of any type.
    Vhd,
    /// The bytes of the disk; only as the last of a chain.
    Raw,
}

/// One file, or block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Absolute path. Symbolic links are not followed in its last component.
    pub path: PathBuf,
    /// What is in it.
    pub format: Format,
}

/// Which files make up a disk. Its size is the leaf's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The only file that is written.
    pub leaf: Layer,
    /// What the leaf is based on, the nearest first; read only.
    #[serde(default)]
    pub backing: Vec<Layer>,
    /// Nothing is written, and nobody else is kept from writing.
    #[serde(default)]
    pub read_only: bool,
}

impl Plan {
    /// All files, the leaf first.
    pub fn layers(&self) -> impl Iterator<Item = &Layer> {
        std::iter::once(&self.leaf).chain(&self.backing)
    }
}
