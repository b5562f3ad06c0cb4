//! What happens, for whoever watches.

use serde::Serialize;
use sm_model::{OperationId, SrUuid, VdiUuid};

/// Something that happened in this process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// An SR was created or introduced.
    SrAdded {
        /// Which.
        sr: SrUuid,
    },
    /// An SR was attached, detached, renamed.
    SrChanged {
        /// Which.
        sr: SrUuid,
    },
    /// An SR was forgotten or destroyed.
    SrRemoved {
        /// Which.
        sr: SrUuid,
    },
    /// A VDI was made.
    VdiAdded {
        /// Its SR.
        sr: SrUuid,
        /// Which.
        vdi: VdiUuid,
    },
    /// A VDI is different: size, name, content, attachment.
    VdiChanged {
        /// Its SR.
        sr: SrUuid,
        /// Which.
        vdi: VdiUuid,
    },
    /// A VDI was destroyed.
    VdiRemoved {
        /// Its SR.
        sr: SrUuid,
        /// Which.
        vdi: VdiUuid,
    },
    /// The mirror of a VDI began, ended, or was switched to.
    MirrorChanged {
        /// Its SR.
        sr: SrUuid,
        /// Which.
        vdi: VdiUuid,
    },
    /// A job started, went on or ended.
    JobChanged {
        /// Which.
        job: OperationId,
    },
}
