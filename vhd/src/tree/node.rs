//! What a store answers.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

/// How a disk is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A chain of VHD files; thin, snapshots at once.
    Vhd,
    /// A raw file; snapshots at once where the file system clones files.
    Raw,
}

impl Format {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Vhd, Self::Raw];

    /// The file name's extension.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Vhd => "vhd",
            Self::Raw => "raw",
        }
    }

    pub(super) fn from_extension(extension: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.extension() == extension)
    }
}

/// What a node is to its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A disk.
    Leaf,
    /// An inner node that holds what several disks share, or that waits to be collected. No user
    /// sees it.
    Base,
}

/// Whether a node can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It can.
    Ok,
    /// It cannot, for this reason; nothing changes it except deleting it.
    Quarantined(String),
}

/// One image of a store, or what is left of one.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Name of the disk, and of its file.
    pub uuid: Uuid,
    /// How it is stored.
    pub format: Format,
    /// Disk or base copy.
    pub kind: Kind,
    /// Size of the disk, bytes; 0 when it could not be read.
    pub virtual_size: u64,
    /// Space that this file takes, bytes. The sum over all nodes is what the file system says of
    /// their files.
    pub physical_size: u64,
    /// The node whose file is the parent of this one's.
    pub parent: Option<Uuid>,
    /// UUID in the footer; children know their parent by it. It changes with each snapshot.
    pub image_uuid: Option<Uuid>,
    /// The footer's hidden flag.
    pub hidden: bool,
    /// Files from this one to the root, both included; 0 when the chain is broken.
    pub depth: usize,
    /// What the caller said about the disk; none for base copies and for images nobody introduced.
    pub metadata: Option<Value>,
    /// The operation that made the disk, when it was a snapshot or clone.
    pub created_by: Option<Uuid>,
    /// The last operation on the disk that carried an id.
    pub last_op: Option<Uuid>,
    /// Whether it can be used.
    pub health: Health,
    /// Which of the two footers of its image is missing: it can be read, and written only after
    /// a repair.
    pub needs_repair: Option<&'static str>,
}

impl Node {
    /// Whether it can be used.
    pub fn is_ok(&self) -> bool {
        self.health == Health::Ok
    }
}

/// Everything in a store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listing {
    /// Disks and base copies, in order of UUID.
    pub nodes: Vec<Node>,
    /// An operation is under way, or was cut: [`super::Tree::recover`] tells.
    pub unfinished: bool,
}

impl Listing {
    /// For each disk, the bytes that come back when it is deleted: its own file's, and those of
    /// the base copies that only it needs.
    pub fn exclusive(&self) -> HashMap<Uuid, u64> {
        let mut children: HashMap<Uuid, usize> = HashMap::new();
        for parent in self.nodes.iter().filter_map(|node| node.parent) {
            *children.entry(parent).or_default() += 1;
        }
        let known: HashMap<Uuid, &Node> = self.nodes.iter().map(|node| (node.uuid, node)).collect();
        let of = |leaf: &Node| {
            let (mut bytes, mut next) = (leaf.physical_size, leaf.parent);
            // A chain that turns in a circle is damaged, and must not keep us here.
            for _ in 0..self.nodes.len() {
                let Some(base) = next.and_then(|parent| known.get(&parent)) else { break };
                if base.kind != Kind::Base || children.get(&base.uuid) != Some(&1) {
                    break;
                }
                bytes = bytes.saturating_add(base.physical_size);
                next = base.parent;
            }
            bytes
        };
        let leaves = self.nodes.iter().filter(|node| node.kind == Kind::Leaf);
        leaves.map(|leaf| (leaf.uuid, of(leaf))).collect()
    }
}

/// What a change came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Something new is there.
    Created,
    /// Something that was there is different now.
    Modified,
    /// Something is gone.
    Deleted,
    /// It was so already: a repeated call.
    Already,
}

/// How a disk got its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// It shares a base copy, or was not given any.
    Thin,
    /// The file system shares the blocks.
    Reflink,
    /// Every byte was copied.
    Copy,
}

/// Answer of a call that changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub outcome: Outcome,
    /// Size of the disk now, bytes; 0 after a delete.
    pub virtual_size: u64,
    /// How it got its content.
    pub method: Method,
}

impl Change {
    pub(super) fn new(outcome: Outcome, virtual_size: u64) -> Self {
        Self { outcome, virtual_size, method: Method::Thin }
    }
}
