//! Records of operations between their first visible effect and their last.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::doc::VERSION;
use super::merges::{Relink, Replace};
use super::{Format, Operation, Tree, parse_name};
use crate::error::Result;
use crate::store::{Area, At};

/// One operation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// [`VERSION`].
    pub(super) sm: u32,
    pub(super) op: Uuid,
    pub(super) action: Action,
}

/// What it does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Action {
    /// A snapshot, clone or revert: new leaves take the place of what is there.
    Switch(Switch),
    /// Snapshots of one point in time: completed when every disk is switched, else taken back.
    Group { members: Vec<Member> },
    /// A base copy was merged into its parent.
    Relink(Relink),
    /// A disk was merged into its parent.
    Replace(Replace),
    /// The same, of a disk that is open: undone, unless its parent has its name.
    Exchange(Replace),
    /// A disk becomes larger.
    Resize {
        uuid: Uuid,
        format: Format,
        /// Bytes it gets.
        size: u64,
        /// Bytes it had.
        from: u64,
        /// Somebody has it open: only its size says how far it is.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        live: bool,
    },
}

/// New leaves, ready in `tmp/<uuid>.new`, take their places.
///
/// With `base` the commit point is the rename of the source's new leaf over the source; without,
/// the rename of the target's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Switch {
    pub(super) operation: Operation,
    pub(super) base: Option<Base>,
    pub(super) target: Uuid,
    pub(super) format: Format,
    /// How the target's new file is known.
    pub(super) target_id: FileId,
    /// What the target's parent was, when it is replaced: nobody may need it any longer.
    pub(super) old_parent: Option<Uuid>,
}

/// One disk of a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Member {
    /// It has data.
    Switch(Switch),
    /// It shares nothing that changes.
    Beside(Beside),
}

/// A snapshot that is complete in `tmp/<target>.new`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Beside {
    pub(super) source: Uuid,
    pub(super) target: Uuid,
    pub(super) format: Format,
    pub(super) id: FileId,
}

/// A leaf that becomes a base copy: its file gets the base's name, a new leaf gets its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Base {
    pub(super) source: Uuid,
    /// The name its file gets.
    pub(super) name: Uuid,
    /// Footer UUID of the source's new leaf.
    pub(super) leaf: Uuid,
}

/// How a file is recognised whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum FileId {
    /// Footer UUID of a VHD.
    Image(Uuid),
    /// Inode number of a raw file.
    Inode(u64),
}

impl Record {
    pub(super) fn new(op: Uuid, action: Action) -> Self {
        Self { sm: VERSION, op, action }
    }

    /// Disks and base copies that are part of it.
    pub(super) fn uuids(&self) -> Vec<Uuid> {
        match &self.action {
            Action::Switch(switch) => switch.uuids(),
            Action::Group { members } => {
                let of = |member: &Member| match member {
                    Member::Switch(switch) => switch.uuids(),
                    Member::Beside(beside) => vec![beside.source, beside.target],
                };
                members.iter().flat_map(of).collect()
            }
            Action::Relink(relink) => {
                let children = relink.children.iter().map(|child| child.uuid);
                children.chain([relink.node, relink.into]).collect()
            }
            Action::Replace(replace) | Action::Exchange(replace) => {
                vec![replace.disk, replace.base]
            }
            Action::Resize { uuid, .. } => vec![*uuid],
        }
    }
}

impl Record {
    /// The disks that are coming, and the base copies in the making.
    pub(super) fn coming(&self) -> (Vec<Uuid>, Vec<Uuid>) {
        let base = |switch: &Switch| switch.base.as_ref().map(|base| base.name);
        match &self.action {
            Action::Switch(switch) => (vec![switch.target], base(switch).into_iter().collect()),
            Action::Group { members } => {
                let targets = members.iter().map(|member| match member {
                    Member::Switch(switch) => switch.target,
                    Member::Beside(beside) => beside.target,
                });
                let bases = members.iter().filter_map(|member| match member {
                    Member::Switch(switch) => base(switch),
                    Member::Beside(_) => None,
                });
                (targets.collect(), bases.collect())
            }
            _ => (Vec::new(), Vec::new()),
        }
    }
}

impl Switch {
    fn uuids(&self) -> Vec<Uuid> {
        let base = self.base.iter().flat_map(|base| [base.source, base.name]);
        base.chain([self.target]).collect()
    }
}

/// What a file in the journal holds.
pub(super) enum Entry {
    Record(Record),
    /// Cut while it was written, so nothing was done yet: a record is synced before its effects.
    Torn(String),
}

impl Tree {
    /// Writes a record and syncs it. From here on the operation is either completed or undone.
    pub(super) fn write_record(&self, record: &Record) -> Result<()> {
        let at = Self::journal_at(record.op);
        self.store.remove(&at)?;
        self.write_small(&at, record)?;
        match record.action {
            // It goes on with a change of names, and those arrive in their order.
            Action::Switch(_) | Action::Group { .. } => Ok(()),
            // What is written into images may arrive before any name does.
            _ => self.store.sync(Area::Journal),
        }
    }

    pub(super) fn remove_record(&self, op: Uuid) -> Result<()> {
        self.store.remove(&Self::journal_at(op)).map(|_| ())
    }

    pub(super) fn records(&self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut found = self.store.names(Area::Journal)?;
        found.sort();
        for name in found {
            if !matches!(parse_name(&name), Some((_, "json"))) {
                continue;
            }
            let Some(bytes) = self.read_small(&At::new(Area::Journal, &*name))? else { continue };
            entries.push(match serde_json::from_slice::<Record>(&bytes) {
                Ok(record) if record.sm <= VERSION => Entry::Record(record),
                _ => Entry::Torn(name),
            });
        }
        Ok(entries)
    }
}
