//! What differs from vendor to vendor.

#[cfg(doc)]
use super::{Array, Part, Volume};
use crate::ledger::ResizeKind;
use crate::names::NameRule;
use crate::size::SizeRule;

/// What a vendor's arrays can do, as far as the driver has to know it.
#[derive(Clone, Debug)]
pub struct Capabilities {
    /// Names of volumes.
    pub names: NameRule,
    /// Whether the array refuses a second volume of the same name. Cinder does not.
    pub unique_names: bool,
    /// Sizes.
    pub size: SizeRule,
    /// How it takes a new size.
    pub resize: ResizeKind,
    /// What a clone is.
    pub clone: CloneKind,
    /// What a snapshot is.
    pub snapshots: SnapshotScope,
    /// Most snapshots of one volume.
    pub max_snapshots: Option<u32>,
    /// Whether several volumes can be caught at one instant.
    pub group_snapshots: bool,
    /// What a delete is, for people: all steps of it are in [`Array::delete`].
    pub delete: DeleteKind,
    /// Whether the snapshots of a volume vanish with it. The driver then keeps the volume, hidden,
    /// as long as it has any.
    pub delete_takes_snapshots: bool,
    /// Whether a restore removes the snapshots that are newer. The driver then refuses it.
    pub restore_drops_newer: bool,
    /// Where LUN numbers come from.
    pub lun: LunAddressing,
    /// Where metadata lies.
    pub metadata: MetadataPlace,
}

impl Capabilities {
    /// What arrays with an API over HTTP mostly have in common: unique names, sizes as such, snapshots
    /// and clones that stand by themselves, instants of several volumes. A vendor says what differs.
    pub const fn usual(
        names: NameRule,
        size: SizeRule,
        lun: LunAddressing,
        metadata: MetadataPlace,
    ) -> Self {
        Self {
            names,
            unique_names: true,
            size,
            resize: ResizeKind::Absolute,
            clone: CloneKind::Independent,
            snapshots: SnapshotScope::Volume,
            max_snapshots: None,
            group_snapshots: true,
            delete: DeleteKind::Immediate,
            delete_takes_snapshots: false,
            restore_drops_newer: false,
            lun,
            metadata,
        }
    }
}

/// What a clone shares with its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloneKind {
    /// Blocks, until one of them is written; both can be removed at any time.
    Independent,
    /// It hangs on a snapshot, which cannot be removed before it, unless it is
    /// [promoted](Array::promote). A clone of a volume needs a snapshot first: the driver makes it.
    Dependent,
    /// Nothing: the array copies what is used.
    Copies,
    /// There are no clones.
    None,
}

/// What a snapshot is named by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotScope {
    /// It is named like a volume.
    Volume,
    /// Its name is one within its volume: `vol.suffix`, `dataset@name`.
    Within,
    /// The array chooses the name, and it is changed afterwards.
    Unnamed,
}

/// What the snapshots of a group are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupNaming {
    /// Each as if it had been taken alone: [`Part::name`].
    Each,
    /// All the same, each within its volume, because the array takes one name for all. Which VDI one
    /// is stands in its metadata, so that needs room for a UUID more.
    Shared,
}

/// What removing a volume means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteKind {
    /// It is gone.
    Immediate,
    /// It must be offline first.
    OfflineFirst,
    /// It is destroyed, and its name is taken until it is eradicated.
    DestroyThenEradicate,
    /// It goes into a bin for a while.
    RecycleBin,
}

/// Where the number of a LUN comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LunAddressing {
    /// The array chooses it and answers it at the mapping, or at a second read.
    Chosen {
        /// The smallest number that it gives.
        first: u16,
        /// The largest.
        last: u16,
    },
    /// A target for each volume, with one LUN of this number.
    TargetPerVolume {
        /// The number.
        lun: u16,
    },
}

/// Where an array keeps a text with a volume, and of how many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataPlace {
    /// With the volume, from its first moment: [`Array::create`], [`Array::clone_of`] and
    /// [`Array::snapshot`] set it, and answer it in [`Volume::metadata`].
    AtCreate {
        /// Most bytes of UTF-8.
        limit: usize,
    },
    /// With the volume, set by a request of its own.
    Later {
        /// Most bytes of UTF-8.
        limit: usize,
    },
    /// In a place of its own, such as tags: [`Array::descriptions`] lists them.
    Apart {
        /// Most bytes of UTF-8.
        limit: usize,
    },
}

impl MetadataPlace {
    /// Most bytes of UTF-8.
    pub fn limit(self) -> usize {
        match self {
            Self::AtCreate { limit } | Self::Later { limit } | Self::Apart { limit } => limit,
        }
    }
}
