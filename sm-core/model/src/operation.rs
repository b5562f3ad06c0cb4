//! The operations, one row each.

use std::fmt;
use std::str::FromStr;

use schemars::Schema;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{sr, vdi};

/// The request type of an operation; ties it to its reply.
pub trait Request: Serialize + DeserializeOwned + Send + 'static {
    /// The operation it asks for.
    const OPERATION: Operation;
    /// What a driver answers.
    type Reply: Serialize + DeserializeOwned + Send + 'static;
}

/// What is fixed about an operation.
#[derive(Debug)]
pub struct Row {
    /// The operation.
    pub operation: Operation,
    /// Its name on the wire.
    pub name: &'static str,
    /// Whether it changes anything on the backend: then it carries an operation id, is journalled
    /// and its future is never dropped.
    pub mutating: bool,
    /// SMAPIv1's name for it, where it has one.
    pub smapi: Option<&'static str>,
    /// What it does, one sentence.
    pub summary: &'static str,
    /// JSON Schema of the request.
    pub request_schema: fn() -> Schema,
    /// JSON Schema of the reply.
    pub reply_schema: fn() -> Schema,
}

macro_rules! operations {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal, $mutating:literal, $smapi:expr,
       $request:ty => $reply:ty;)*) => {
        /// An operation of a driver.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Operation {
            $($(#[doc = $doc])* $variant,)*
        }

        /// All operations.
        pub const OPERATIONS: &[Row] = &[$(Row {
            operation: Operation::$variant,
            name: $name,
            mutating: $mutating,
            smapi: $smapi,
            summary: concat!($($doc),*),
            request_schema: || schemars::schema_for!($request),
            reply_schema: || schemars::schema_for!($reply),
        },)*];

        $(impl Request for $request {
            const OPERATION: Operation = Operation::$variant;
            type Reply = $reply;
        })*
    };
}

operations! {
    /// Looks for what the device configuration leaves open, and for SRs that exist.
    SrProbe = "sr_probe", false, Some("sr_probe"), sr::SrProbe => sr::SrProbed;
    /// Makes an SR on the backend.
    SrCreate = "sr_create", true, Some("sr_create"), sr::SrCreate => sr::SrCreated;
    /// Makes the SR usable on this host, and finishes or undoes what a crash left half done.
    SrAttach = "sr_attach", true, Some("sr_attach"), sr::SrAttach => sr::SrRecovered;
    /// Lets go of the SR on this host.
    SrDetach = "sr_detach", true, Some("sr_detach"), sr::SrDetach => sr::SrDone;
    /// Removes the SR from the backend; it must hold no VDI.
    SrDestroy = "sr_destroy", true, Some("sr_delete"), sr::SrDestroy => sr::SrDone;
    /// Lists every VDI, the damaged ones too, or fails as a whole.
    SrScan = "sr_scan", false, Some("sr_scan"), sr::SrScan => sr::SrScanned;
    /// Finishes or undoes what a crash left half done.
    SrRecover = "sr_recover", true, None, sr::SrRecover => sr::SrRecovered;
    /// Shortens chains and removes base copies that nothing needs, within a budget; what it did
    /// stays done, and the next call goes on.
    SrMaintain = "sr_maintain", true, None, sr::SrMaintain => sr::SrMaintained;
    /// Says how full and how healthy the SR is.
    SrStat = "sr_stat", false, Some("sr_update"), sr::SrStat => sr::SrInfo;
    /// Changes the SR's name or description on the backend.
    SrUpdate = "sr_update", true, None, sr::SrUpdate => sr::SrDone;
    /// Takes from another host what it has of the SR, because it is gone for good or hangs.
    SrFence = "sr_fence", true, None, sr::SrFence => sr::SrFenced;
    /// Makes an empty VDI.
    VdiCreate = "vdi_create", true, Some("vdi_create"), vdi::VdiCreate => vdi::VdiDone;
    /// Adopts an image that already lies on the backend.
    VdiIntroduce = "vdi_introduce", true, Some("vdi_introduce"), vdi::VdiIntroduce => vdi::VdiDone;
    /// Describes one VDI.
    VdiStat = "vdi_stat", false, Some("vdi_update"), vdi::VdiStat => vdi::VdiInfo;
    /// Changes name, description, type or user keys on the backend.
    VdiUpdate = "vdi_update", true, None, vdi::VdiUpdate => vdi::VdiDone;
    /// Makes a VDI larger.
    VdiResize = "vdi_resize", true, Some("vdi_resize"), vdi::VdiResize => vdi::VdiDone;
    /// Takes read-only copies of one point in time, of several VDIs at once where the driver can.
    VdiSnapshot = "vdi_snapshot", true, Some("vdi_snapshot"), vdi::VdiSnapshot => vdi::VdisDone;
    /// Does ahead what the `vdi_snapshot` with the same operation id would have to wait for.
    VdiSnapshotPrepare = "vdi_snapshot_prepare", true, None, vdi::VdiSnapshotPrepare => vdi::VdiSnapshotPrepared;
    /// Makes a writable VDI from a VDI or a snapshot.
    VdiClone = "vdi_clone", true, Some("vdi_clone"), vdi::VdiClone => vdi::VdiDone;
    /// Gives the space of a VDI back to the backend that holds zeros or nothing any more.
    VdiReclaim = "vdi_reclaim", true, None, vdi::VdiReclaim => vdi::VdiReclaimed;
    /// Limits what may be asked of a VDI in a second, on the storage.
    VdiQos = "vdi_qos", true, None, vdi::VdiQos => vdi::VdiDone;
    /// Begins, or ends, to track which blocks of a VDI change.
    VdiCbt = "vdi_cbt", true, Some("vdi_enable_cbt"), vdi::VdiCbt => vdi::VdiDone;
    /// Tells which blocks changed from one point in time to another.
    VdiChanged = "vdi_changed", false, Some("vdi_list_changed_blocks"), vdi::VdiChanged => vdi::VdiChanges;
    /// Puts a VDI back to a snapshot of it; the VDI keeps its identity.
    VdiRevert = "vdi_revert", true, Some("vdi_revert"), vdi::VdiRevert => vdi::VdiDone;
    /// Removes a VDI; that it is gone already is success.
    VdiDestroy = "vdi_destroy", true, Some("vdi_delete"), vdi::VdiDestroy => vdi::VdiDestroyed;
    /// Shows what depends on what, base copies included.
    VdiTree = "vdi_tree", false, None, vdi::VdiTree => vdi::VdiForest;
    /// Examines the structure of a VDI and of all it is based on.
    VdiCheck = "vdi_check", false, None, vdi::VdiCheck => vdi::VdiChecked;
    /// Makes a VDI reachable on this host; no I/O yet.
    VdiAttach = "vdi_attach", true, Some("vdi_attach"), vdi::VdiAttach => vdi::VdiAttached;
    /// Allows I/O.
    VdiActivate = "vdi_activate", true, Some("vdi_activate"), vdi::VdiActivate => vdi::VdiDatapathDone;
    /// Ends I/O.
    VdiDeactivate = "vdi_deactivate", true, Some("vdi_deactivate"), vdi::VdiDeactivate => vdi::VdiDatapathDone;
    /// Ends the reachability.
    VdiDetach = "vdi_detach", true, Some("vdi_detach"), vdi::VdiDetach => vdi::VdiDatapathDone;
}

impl Operation {
    /// Its row in [`OPERATIONS`].
    pub fn row(self) -> &'static Row {
        // The table is made from the same list as the enum, in the same order.
        &OPERATIONS[self as usize]
    }

    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// Whether it changes anything on the backend.
    pub fn is_mutating(self) -> bool {
        self.row().mutating
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Operation {
    type Err = UnknownOperation;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        OPERATIONS
            .iter()
            .find(|row| row.name == name)
            .map(|row| row.operation)
            .ok_or_else(|| UnknownOperation(name.to_owned()))
    }
}

/// A name that is no operation of this release.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an operation of this release")]
pub struct UnknownOperation(pub String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_in_the_order_of_the_enum() {
        for row in OPERATIONS {
            assert_eq!(row.operation.row().name, row.name);
            assert_eq!(row.name.parse(), Ok(row.operation));
        }
    }
}
